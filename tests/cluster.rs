//! Several servers that share one document and one history through Redis.
//!
//! `cargo test --all-features --test cluster -- --include-ignored`; `tests/all` installs redis-server and what else is
//! needed first. `REDIS_SERVER=valkey-server` runs them with that.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/clock.rs"]
mod clock;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/places.rs"]
mod places;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "bench/random.rs"]
mod random;
#[path = "support/redis.rs"]
mod redis;
mod support;
#[path = "support/webdriver.rs"]
mod webdriver;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use clock::Clock;
use cluster::*;
use places::free_address;
use proxy::Proxy;
use random::Rng;
use redis::{Link, Redis, Reply};
use serde_json::{Value, json};
use statecast::EventId;
use support::*;
use webdriver::Browser;

const NOTHING: &str = "nothing was published";
const NOT_KNOWN: &str = "not known whether it was published";

/// Something to publish, by chance.
fn random_request(rng: &mut Rng, count: usize) -> (&'static str, String, String) {
    let (topic, key) = (format!("t{}", rng.below(4)), rng.of(&["a", "b", "c"]));
    let small = json!({"n": count, "list": [null, [], {}], "big": u64::MAX, "text": "\u{e4}\u{2028}\r\n\"x"});
    match rng.below(100) {
        0..35 => ("PUT", format!("/state/{topic}"), json!({ key: count }).to_string()),
        35..55 => ("PATCH", format!("/state/{topic}"), json!({ key: small }).to_string()),
        55..60 => ("PATCH", format!("/state/{topic}"), json!({ key: null }).to_string()),
        60..70 => ("PATCH", "/state".into(), json!({ topic: { key: count }, "t1": null }).to_string()),
        70..75 => ("DELETE", format!("/state/{topic}"), String::new()),
        75..78 => ("PUT", "/state".into(), json!({ topic: count, "only": small }).to_string()),
        78..90 => ("POST", "/events?event=tick".into(), count.to_string()),
        90..95 => ("POST", format!("/events/{topic}?event=chat"), "one\ntwo\r\n\n".into()),
        _ => ("POST", format!("/events/{topic}"), small.to_string()),
    }
}

/// Publishes so much by chance, each at the next of the servers, and again where it was refused or cut. Returns the ids
/// that were answered.
fn publish_random(servers: &[SocketAddr], count: usize, seed: u64) -> Vec<EventId> {
    let mut rng = Rng(seed);
    let mut ids = Vec::new();
    for number in 0..count {
        let (method, path, body) = random_request(&mut rng, number);
        let mut turn = rng.index(servers.len());
        let taken = wait_until(
            || {
                turn += 1;
                try_request(servers[turn % servers.len()], method, &path, &[], &body).ok()
            },
            |answer| answer.as_ref().is_some_and(|answer| answer.status != 503),
        );
        let answer = taken.unwrap();
        // There may be no such topic to delete.
        if answer.status != 404 {
            ids.push(answer.id());
        }
    }
    ids
}

/// Nothing that was answered is missing, and nobody had to begin anew.
fn assert_all_heard(all: &[Heard], ids: &[EventId]) {
    for heard in all.iter().filter(|heard| heard.path == "/events") {
        assert_known(heard);
        let had: BTreeSet<EventId> = heard.frames.iter().map(|frame| frame.id).collect();
        let lacks: Vec<&EventId> = ids.iter().filter(|id| !had.contains(id)).collect();
        assert_eq!(lacks, [&ids[0]; 0], "answered and lost");
    }
}

/// Its stream began once, and each later one went on where that one ended.
fn assert_known(heard: &Heard) {
    assert_eq!(heard.reasons[0], "first", "{:?}", heard.reasons);
    assert!(heard.reasons[1..].iter().all(|reason| reason == "known"), "{:?}", heard.reasons);
}

/// Waits until a write is refused so; every refusal before says that it is not known.
fn refused_at_last(node: &Node, text: &str) -> Answer {
    let answer = wait_until(
        || node.put("refused", "1"),
        |answer| answer.status == 503 && answer.error().contains(text),
    );
    assert!(answer.header("Retry-After").is_some(), "{answer:?}");
    answer
}

fn all_reach(followers: &[Follower], id: EventId) {
    for follower in followers {
        follower.reaches(id);
    }
}

/// Leads servers to another Redis, as a failover does.
fn switch(links: &[Link], redis: &Redis) {
    for link in links {
        link.switch(redis.address);
    }
}

/// None in a replica that has just begun.
fn last_record(redis: &Redis) -> Option<redis::Record> {
    redis.records(KEY).pop()
}

/// Waits until a replica has all that its master has now.
fn wait_for_replica(replica: &Redis, master: &Redis) {
    let last = last_record(master);
    replica.wait_for("the replica lags", |replica| last_record(replica) == last);
}

/// A writer at each server, all at once; each goes to the next one where it is refused.
fn publish_everywhere(servers: &[SocketAddr], count: usize, seed: u64) -> Vec<EventId> {
    thread::scope(|scope| {
        let writers: Vec<_> = (0..servers.len())
            .map(|number| {
                let mut servers = servers.to_vec();
                servers.rotate_left(number);
                scope.spawn(move || publish_random(&servers, count, seed * 100 + number as u64))
            })
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

/// Publishes by chance for as long as something else takes, and tells both.
fn while_publishing<T>(servers: &[SocketAddr], seed: u64, then: impl FnOnce() -> T) -> (Vec<EventId>, T) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|number| {
                let is_over = &is_over;
                scope.spawn(move || {
                    let mut ids = Vec::new();
                    let mut seed = seed * 1_000 + 500 * number;
                    while !is_over.load(Ordering::SeqCst) {
                        seed += 1;
                        ids.extend(publish_random(servers, 5, seed));
                    }
                    ids
                })
            })
            .collect();
        let done = then();
        is_over.store(true, Ordering::SeqCst);
        (writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect(), done)
    })
}

// --- What it is for -----------------------------------------------------------------------------------------------

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn servers_that_write_at_once_have_one_document_and_streams_that_are_the_same_byte_by_byte() {
    let cluster = Cluster::start(3);
    let mut followers = cluster.followers("/events");
    followers.extend(cluster.followers("/events/t0"));
    followers.extend(cluster.followers("/events/t1"));
    let ids = publish_everywhere(&cluster.addresses(), 200, 1);
    assert_all_heard(&cluster.converges(followers), &ids);
    let conflicts: u64 = cluster.nodes.iter().map(|node| node.metric("conflicts")).sum();
    assert!(conflicts > 0, "they never wrote at once");
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn clients_of_a_server_that_is_killed_get_what_they_missed_on_any_other_and_on_one_started_just_now() {
    let mut cluster = Cluster::start(3);
    let dying = cluster.addresses()[0];
    let staying = cluster.followers("/events").split_off(1);
    let leaving: Vec<Follower> = (0..6).map(|_| Follower::start(&[dying], "/events")).collect();
    let ids = publish_random(&[dying], 40, 2);
    all_reach(&leaving, ids[20]);
    cluster.nodes.remove(0).kill();
    let missed = publish_everywhere(&cluster.addresses(), 30, 3);
    let url = cluster.links[0].url();
    cluster.nodes.push(Node::start(&url, &[]));
    for (number, follower) in leaving.iter().enumerate() {
        follower.go_to(&[cluster.addresses()[number % 3]]);
    }
    let all = cluster.converges(leaving.into_iter().chain(staying).collect());
    assert_all_heard(&all, &[ids, missed].concat());
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn an_id_that_another_server_has_just_answered_is_known_at_once_and_can_be_read() {
    let cluster = Cluster::start(2);
    let [writer, reader] = cluster.addresses()[..] else { panic!("two servers") };
    for count in 0..300 {
        let id = patch(writer, "/state", &format!(r#"{{"count":{count}}}"#)).to_string();
        let (as_header, as_query) = (count % 3 == 0, count % 3 == 1);
        if as_header {
            let state = request(reader, "GET", "/state/count", &[("Last-Event-ID", &id)], "");
            assert_eq!(state.body, count.to_string());
        } else if as_query {
            assert_eq!(get(reader, &format!("/state?lastEventId={id}")).json(), json!({ "count": count }));
        } else {
            assert_eq!(Stream::resume(reader, "/events", &id).next().json()["reason"], "known", "{count}");
        }
    }
    cluster.converges(Vec::new());
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn ids_that_nobody_issued_get_the_document_and_cost_one_look_at_the_journal_each() {
    let cluster = Cluster::start(2);
    let node = &cluster.nodes[0];
    let id = node.publish_at_last("a", "1");
    let looks = || ["xrange", "xrevrange"].map(|command| cluster.redis.calls(command)).iter().sum::<u64>();
    let before = looks();
    let huge = "18446744073709551615-18446744073709551615";
    let bogus: Vec<String> = (1..=20).map(|count| format!("9999999999999-{count}")).collect();
    for id in bogus.iter().map(String::as_str).chain([huge, "0-0", "1-1"]) {
        let mut stream = Stream::resume(node.address, "/events", id);
        assert_eq!(stream.next().json()["resume"], "init", "{id}");
        assert_eq!(stream.next().json(), json!({"a": 1}), "{id}");
        assert_eq!(request(node.address, "GET", "/state", &[("Last-Event-ID", id)], "").status, 200);
    }
    // Two requests for each of those that are ahead; now and then each server looks by itself.
    let most = 2 * 21 * 2 + 40;
    assert!(looks() - before <= most, "{} looks", looks() - before);
    assert_eq!(Stream::resume(node.address, "/events", &id.to_string()).next().json()["reason"], "known");
    cluster.converges(Vec::new());
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn five_hundred_clients_of_a_server_that_dies_are_back_on_the_others_and_known() {
    let mut cluster = Cluster::start(3);
    let dying = cluster.addresses()[0];
    let followers: Vec<Follower> = (0..500).map(|_| Follower::start(&[dying], "/events")).collect();
    let ids = publish_random(&[dying], 20, 4);
    followers[0].reaches(ids[10]);
    let (left, right) = (cluster.addresses()[1], cluster.addresses()[2]);
    for (number, follower) in followers.iter().enumerate() {
        let mut order = [left, right];
        order.rotate_left(number % 2);
        follower.go_to(&order);
    }
    cluster.nodes.remove(0).kill();
    let missed = publish_everywhere(&[left, right], 10, 5);
    let all = cluster.converges(followers);
    assert_all_heard(&all, &[ids, missed].concat());
    assert!(all.iter().all(|heard| heard.reasons.len() >= 2), "everybody had to come back");
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn all_servers_restart_one_by_one_under_load_and_nobody_begins_anew() {
    let mut cluster = Cluster::start(3);
    let servers = cluster.addresses();
    let turned = |by: usize| [&servers[by..], &servers[..by]].concat();
    let followers: Vec<Follower> = (0..9).map(|by| Follower::start(&turned(by % 3), "/events")).collect();
    let redis = cluster.redis.url();
    let (ids, ()) = while_publishing(&servers, 6, || {
        for (number, address) in servers.iter().enumerate() {
            cluster.nodes.remove(number).stop();
            cluster.nodes.insert(number, Node::start_at(*address, &redis, &[]));
            let id = cluster.nodes[number].publish_at_last("restarted", &number.to_string());
            all_reach(&followers, id);
        }
    });
    let all = cluster.converges(followers);
    assert_all_heard(&all, &ids);
    assert!(all.iter().all(|heard| heard.reasons.len() >= 2), "everybody had to come back");
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_server_takes_itself_over_under_load_and_not_while_redis_is_lost() {
    let mut cluster = Cluster::start(2);
    let servers = cluster.addresses();
    let followers: Vec<Follower> = servers.iter().map(|at| Follower::start(&[*at], "/events")).collect();
    let (ids, ()) = while_publishing(&servers, 6, || {
        cluster.nodes[0].binary.signal("USR2");
        cluster.nodes[0].logs(&["it has taken itself over"]);
        let id = cluster.nodes[0].publish_at_last("renewed", "1");
        all_reach(&followers, id);
    });
    cluster.redis.kill();
    cluster.nodes[1].logs(&["Redis", "cannot be used"]);
    cluster.nodes[1].binary.signal("USR2");
    cluster.nodes[1].logs(&["it does not take itself over: Redis is lost"]);
    cluster.redis.restart_empty();
    let all = cluster.converges(followers);
    assert_all_heard(&all, &ids);
    assert!(all[0].reasons.len() >= 2, "who listened to it had to come back");
}

#[test]
#[ignore = "needs redis-server and faketime: tests/all installs them"]
fn clocks_that_differ_by_hours_change_nothing() {
    let redis = Redis::start();
    let clocks = [Clock::at("+0"), Clock::at("+1h"), Clock::at("-1h")];
    let options = ["--redis", &redis.url(), "--heartbeat", "200ms"];
    let nodes: Vec<Node> = clocks.iter().map(|clock| Node::of(clock.start(&options))).collect();
    let servers: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
    let followers: Vec<Follower> =
        servers.iter().map(|server| Follower::start(&[*server], "/events")).collect();
    let roaming = Follower::start(&servers, "/events");
    let mut ids = publish_everywhere(&servers, 60, 7);
    for _ in 0..5 {
        roaming.hop();
        ids.extend(publish_everywhere(&servers, 5, 8));
    }
    let all = converge(&nodes, &redis, followers.into_iter().chain([roaming]).collect());
    assert_all_heard(&all, &ids);
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn no_two_clients_have_one_number_and_another_servers_client_is_not_found() {
    let cluster = Cluster::start(3);
    let streams: Vec<Stream> = cluster
        .addresses()
        .into_iter()
        .flat_map(|address| (0..5).map(move |_| Stream::open(address, "/events")))
        .collect();
    let number = |client: &Value| client["id"].as_u64().unwrap();
    let of = |address| {
        get(address, "/clients").json().as_array().unwrap().iter().map(number).collect::<Vec<u64>>()
    };
    let [first, second, third] = cluster.addresses()[..] else { panic!("three servers") };
    let all: BTreeSet<u64> = [of(first), of(second), of(third)].concat().into_iter().collect();
    assert_eq!(all.len(), streams.len(), "{all:?}");
    let end =
        |address, client: u64| request(address, "DELETE", &format!("/clients/{client}"), &[], "").status;
    let client = of(first)[0];
    assert_eq!([end(second, client), end(third, client), end(first, client)], [404, 404, 200]);
    assert_eq!([of(first).len(), of(second).len(), of(third).len()], [4, 5, 5]);
}

// --- When Redis is away -------------------------------------------------------------------------------------------

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn while_redis_answers_nothing_streams_go_on_and_writes_are_refused() {
    let cluster = Cluster::start(2);
    let followers = cluster.followers("/events");
    let node = &cluster.nodes[0];
    let ids = publish_everywhere(&cluster.addresses(), 20, 9);
    all_reach(&followers, ids[0]);
    assert_eq!(get(node.address, "/healthz?ready").status, 200);
    let document = get(node.address, "/state").body;
    cluster.redis.freeze();
    let refused = node.put("in-flight", "1");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!([NOTHING, NOT_KNOWN].iter().any(|text| refused.error().contains(text)), "{refused:?}");
    refused_at_last(node, NOTHING);
    wait_until(|| get(node.address, "/healthz?ready").status, |status| *status == 503);
    assert_eq!(get(node.address, "/healthz").status, 200);
    assert_eq!(get(node.address, "/state").body, document);
    assert_eq!(Stream::open(node.address, "/events").next_named("init").data, document);
    let heartbeats = followers[0].heard().heartbeats;
    followers[0].wait("no heartbeat", |heard| heard.heartbeats > heartbeats + 1);
    // What history has is replayed.
    let mut stream = Stream::resume(node.address, "/events", &ids[0].to_string());
    assert_eq!(stream.next().json()["reason"], "known");
    cluster.redis.thaw();
    wait_until(|| get(node.address, "/healthz?ready").status, |status| *status == 200);
    let all = cluster.converges(followers);
    assert_all_heard(&all, &ids);
    let log = node.log();
    let of_redis = log.lines().filter(|line| line.contains("Redis at ")).count();
    assert_eq!(of_redis, 2, "one line when it is lost, and one when it is back: {log}");
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn what_was_appended_and_not_answered_is_said_to_be_unknown_and_comes_once() {
    let cluster = Cluster::start(2);
    let followers = cluster.followers("/events");
    let ids = publish_everywhere(&cluster.addresses(), 10, 10);
    let node = &cluster.nodes[0];
    cluster.links[0].mute();
    let refused = node.put("unanswered", "1");
    assert_eq!(refused.status, 503);
    assert!(refused.error().contains(NOT_KNOWN), "{refused:?}");
    assert!(refused.header("Retry-After").is_some(), "{refused:?}");
    cluster.links[0].cut();
    cluster.links[0].pass();
    let all = cluster.converges(followers);
    assert_all_heard(&all, &ids);
    for heard in all {
        let count = heard.frames.iter().filter(|frame| frame.data.contains("unanswered")).count();
        assert_eq!(count, 1, "it was appended once: {:?}", heard.frames);
    }
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_redis_that_is_killed_and_back_with_nothing_gets_the_journal_from_memory_and_no_stream_notices() {
    let mut cluster = Cluster::start(3);
    let followers = cluster.followers("/events");
    let servers = cluster.addresses();
    let mut ids = Vec::new();
    for round in 0..3 {
        // What one server alone has is lost if another one writes first: they all have this.
        ids.extend(publish_everywhere(&servers, 10, 11 + round));
        all_reach(&followers, *ids.iter().max().unwrap());
        cluster.redis.kill();
        ids.extend(thread::scope(|scope| {
            let writers = scope.spawn(|| publish_everywhere(&servers, 10, 111 + round));
            refused_at_last(&cluster.nodes[0], NOTHING);
            cluster.redis.restart_empty();
            writers.join().unwrap()
        }));
    }
    let late = Node::start(&cluster.redis.url(), &[]);
    cluster.nodes.push(late);
    assert_all_heard(&cluster.converges(followers), &ids);
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_journal_that_is_flushed_deleted_or_evicted_is_restored_and_nobody_notices() {
    let cluster = Cluster::start(3);
    let followers = cluster.followers("/events");
    let mut ids = publish_everywhere(&cluster.addresses(), 20, 12);
    for words in [&["FLUSHALL"][..], &["DEL", KEY], &["FLUSHDB", "ASYNC"], &["UNLINK", KEY]] {
        all_reach(&followers, *ids.iter().max().unwrap());
        cluster.redis.call(words);
        // Writers notice by themselves: none is refused.
        for node in &cluster.nodes {
            ids.push(node.put("after", &json!(words).to_string()).id());
        }
    }
    assert_all_heard(&cluster.converges(followers), &ids);
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn an_idle_cluster_restores_a_journal_that_is_gone_or_has_lost_its_end() {
    let cluster = Cluster::start(2);
    let followers = cluster.followers("/events");
    let ids = publish_everywhere(&cluster.addresses(), 20, 13);
    let last = *ids.iter().max().unwrap();
    all_reach(&followers, last);
    let before = last_record(&cluster.redis).unwrap();
    cluster.redis.call(&["XDEL", KEY, &before.id]);
    cluster.redis.wait_for("the last record is not restored", |redis| redis.records(KEY).contains(&before));
    cluster.redis.call(&["FLUSHALL"]);
    cluster
        .redis
        .wait_for("the journal is not restored", |redis| redis.call(&["EXISTS", KEY]) == Reply::Number(1));
    assert_all_heard(&cluster.converges(followers), &ids);
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn scripts_that_are_flushed_and_connections_that_are_killed_lose_nothing() {
    let cluster = Cluster::start(3);
    let followers = cluster.followers("/events");
    let servers = cluster.addresses();
    let (mut ids, ()) = while_publishing(&servers, 14, || {
        for round in 0..10 {
            let id = cluster.nodes[round % 3].publish_at_last("round", &round.to_string());
            all_reach(&followers, id);
            cluster.redis.call(&["SCRIPT", "FLUSH"]);
            cluster.redis.call(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        }
    });
    cluster.redis.call(&["SCRIPT", "FLUSH"]);
    // A script that is gone is no reason to refuse anything.
    ids.extend(cluster.nodes.iter().map(|node| node.publish_at_last("before", "1")));
    for node in &cluster.nodes {
        cluster.redis.call(&["SCRIPT", "FLUSH"]);
        ids.push(node.put("after", "1").id());
    }
    assert_all_heard(&cluster.converges(followers), &ids);
    assert!(cluster.nodes.iter().all(|node| node.metric("reconnects") > 0));
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_redis_that_takes_no_writes_is_said_to_and_streams_go_on() {
    let redis = Redis::start_with(&["--save", "3600 1000000"]);
    let folder = redis.folder().to_owned();
    let cluster = Cluster::start_on(redis, 2, &[]);
    let followers = cluster.followers("/events");
    let mut ids = publish_everywhere(&cluster.addresses(), 20, 15);
    let redis = &cluster.redis;
    let cases: [(&str, &[&str], &[&str]); 5] = [
        ("OOM", &["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]),
        ("READONLY", &["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
        (
            "NOREPLICAS",
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
        ),
        ("MISCONF", &["BGSAVE"], &["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]),
        ("WRONGTYPE", &["SET", KEY, "1"], &["DEL", KEY]),
    ];
    for (name, begins, ends) in cases {
        if name == "MISCONF" {
            fs::remove_dir_all(&folder).unwrap();
        }
        redis.call(begins);
        if name == "MISCONF" {
            let is_noted = |redis: &Redis| redis.info("persistence", "rdb_last_bgsave_status") == "err";
            redis.wait_for("it was saved", is_noted);
        }
        for node in &cluster.nodes {
            refused_at_last(node, NOTHING);
            assert_eq!(get(node.address, "/state").status, 200, "{name}");
        }
        let heartbeats = followers[0].heard().heartbeats;
        followers[0].wait("no heartbeat", |heard| heard.heartbeats > heartbeats);
        redis.call(ends);
        ids.extend(cluster.nodes.iter().map(|node| node.publish_at_last("mended", &json!(name).to_string())));
        all_reach(&followers, ids[ids.len() - 1]);
    }
    assert_all_heard(&cluster.converges(followers), &ids);
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn an_append_only_file_brings_everything_back_even_when_all_servers_were_down() {
    let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut cluster = Cluster::start_on(redis, 2, &[]);
    let followers = cluster.followers("/events");
    let servers = cluster.addresses();
    let (mut ids, ()) = while_publishing(&servers, 16, || {
        let id = cluster.nodes[0].publish_at_last("before", "1");
        all_reach(&followers, id);
        cluster.redis.restart();
    });
    ids.push(cluster.nodes[1].publish_at_last("last", "1"));
    all_reach(&followers, ids[ids.len() - 1]);
    let document = get(servers[0], "/state").body;
    for node in cluster.nodes.drain(..) {
        node.kill();
    }
    cluster.redis.restart();
    for (address, link) in servers.iter().zip(&cluster.links) {
        cluster.nodes.push(Node::start_at(*address, &link.url(), &[]));
        assert_eq!(get(*address, "/state").body, document);
    }
    assert_all_heard(&cluster.converges(followers), &ids);
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn all_servers_down_and_redis_empty_leaves_what_one_of_them_has_in_its_file() {
    let folder = Folder::new("cluster-seed");
    let file = folder.file("document.json");
    let mut cluster = Cluster::start(1);
    let url = cluster.redis.url();
    cluster.nodes.push(Node::start(&url, &["--document", &file]));
    let id = cluster.nodes[0].publish_at_last("kept", "[1,[],{}]");
    Follower::start(&[cluster.addresses()[1]], "/events").reaches(id);
    for node in cluster.nodes.drain(..) {
        node.stop();
    }
    cluster.redis.restart_empty();
    cluster.nodes.push(Node::start(&url, &["--document", &file]));
    cluster.nodes.push(Node::start(&url, &[]));
    for node in &cluster.nodes {
        assert_eq!(get(node.address, "/state").json(), json!({"kept": [1, [], {}]}));
    }
    cluster.converges(Vec::new());
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn the_first_of_two_documents_seeds_the_journal_and_the_second_says_that_it_does_not() {
    let folder = Folder::new("cluster-two-documents");
    let files = ["first", "second"].map(|name| {
        let file = folder.file(name);
        fs::write(&file, json!({ "name": name }).to_string()).unwrap();
        file
    });
    let redis = Redis::start();
    let nodes = files.each_ref().map(|file| Node::start(&redis.url(), &["--document", file]));
    for node in &nodes {
        assert_eq!(get(node.address, "/state").json(), json!({"name": "first"}));
    }
    let greetings = nodes.each_ref().map(|node| node.binary.greeting.clone() + &node.log());
    assert!(greetings[0].contains("seeded"), "{}", greetings[0]);
    assert!(greetings[1].contains("found"), "{}", greetings[1]);
    assert!(!greetings[1].contains("seeded"), "{}", greetings[1]);
    // Its file becomes a copy.
    nodes[0].publish_at_last("more", "1");
    let is_copy =
        |text: &String| serde_json::from_str::<Value>(text).unwrap() == json!({"name": "first", "more": 1});
    wait_until(|| fs::read_to_string(&files[1]).unwrap(), is_copy);
    converge(&nodes, &redis, Vec::new());
}

// --- When Redis forgets or says two things -----------------------------------------------------------------------

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_replica_that_lacks_the_end_gets_it_from_a_server_and_no_stream_notices() {
    let mut cluster = Cluster::start(3);
    let replica = Redis::replica_of(&cluster.redis);
    let followers = cluster.followers("/events");
    let mut ids = publish_everywhere(&cluster.addresses(), 30, 17);
    wait_for_replica(&replica, &cluster.redis);
    replica.promote();
    let tail = publish_everywhere(&cluster.addresses(), 30, 18);
    all_reach(&followers, *tail.iter().max().unwrap());
    cluster.redis.kill();
    switch(&cluster.links, &replica);
    cluster.redis = replica;
    ids.extend(tail);
    ids.extend(publish_everywhere(&cluster.addresses(), 10, 19));
    assert_all_heard(&cluster.converges(followers), &ids);
    assert!(cluster.nodes.iter().map(|node| node.metric("restored")).sum::<u64>() >= 1);
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_lagging_server_that_writes_first_to_a_new_master_takes_the_others_to_its_branch() {
    let mut cluster = Cluster::start(3);
    let replica = Redis::replica_of(&cluster.redis);
    let followers = cluster.followers("/events");
    let ids = publish_everywhere(&cluster.addresses(), 30, 20);
    all_reach(&followers, *ids.iter().max().unwrap());
    wait_for_replica(&replica, &cluster.redis);
    replica.promote();
    cluster.links[2].hang();
    let tail = publish_everywhere(&cluster.addresses()[..2], 10, 21);
    all_reach(&followers[..2], *tail.iter().max().unwrap());
    cluster.redis.kill();
    cluster.links[2].switch(replica.address);
    let first = cluster.nodes[2].publish_at_last("first", "1");
    switch(&cluster.links[..2], &replica);
    cluster.redis = replica;
    let all = cluster.converges(followers);
    assert!(all.iter().all(|heard| heard.has(first) || heard.start >= Some(first)));
    assert_known(&all[2]);
    for heard in &all[..2] {
        assert_eq!(heard.reasons, ["first", "restart"], "who had the tail gets the document");
    }
    assert!(cluster.nodes[..2].iter().all(|node| node.metric("branches") == 1));
    cluster.nodes[0].logs(&["took what Redis has"]);
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn the_losing_side_of_a_split_brain_takes_the_other_branch_and_its_clients_get_the_document() {
    let mut cluster = Cluster::start(3);
    let replica = Redis::replica_of(&cluster.redis);
    let followers = cluster.followers("/events");
    let ids = publish_everywhere(&cluster.addresses(), 10, 22);
    all_reach(&followers, *ids.iter().max().unwrap());
    wait_for_replica(&replica, &cluster.redis);
    replica.promote();
    switch(&cluster.links[1..], &replica);
    let servers = cluster.addresses();
    let kept = thread::scope(|scope| {
        scope.spawn(|| publish_everywhere(&servers[..1], 100, 23));
        publish_everywhere(&servers[1..], 60, 24)
    });
    all_reach(&followers[1..], *kept.iter().max().unwrap());
    cluster.redis.kill();
    cluster.links[0].switch(replica.address);
    cluster.redis = replica;
    let all = cluster.converges(followers);
    assert_all_heard(&all[1..], &[ids, kept].concat());
    assert_eq!(all[0].reasons, ["first", "restart"]);
    assert_eq!(cluster.nodes[0].metric("branches"), 1);
}

/// The pass is a long one: each write to a socket takes 20 ms.
#[test]
#[ignore = "needs redis-server and strace: tests/all installs them"]
fn a_pass_that_is_under_way_when_the_other_branch_is_taken_writes_nothing_behind_it() {
    let redis = Redis::start();
    let replica = Redis::replica_of(&redis);
    let links = [Link::to(redis.address), Link::to(redis.address)];
    let program = program();
    let options = ["--redis", &links[0].url(), "--heartbeat", "1h", "--threads", "1"];
    let mut slow = strace("sendto:delay_enter=20000", program.to_str().unwrap(), &options);
    let slow = Node::of(Binary::spawn(&mut slow));
    let nodes = [slow, Node::start(&links[1].url(), &[])];
    let mut followers: Vec<Follower> =
        (0..30).map(|_| Follower::start(&[nodes[0].address], "/events")).collect();
    followers.push(Follower::start(&[nodes[1].address], "/events"));
    let common = nodes[0].publish_at_last("common", "1");
    all_reach(&followers, common);
    wait_for_replica(&replica, &redis);
    replica.promote();
    links[1].switch(replica.address);
    nodes[1].publish_at_last("kept", "1");
    // Its pass begins, and goes on while the server finds what the other Redis has.
    nodes[0].publish_at_last("lost", "1");
    links[0].switch(replica.address);
    let all = converge(&nodes, &replica, followers);
    for heard in &all[..30] {
        assert_eq!(heard.reasons, ["first", "restart"]);
        assert!(!heard.since_init().iter().any(|frame| frame.data.contains("lost")), "{heard:?}");
    }
}

/// Without chance in the ids both halves would issue the same ones: their clocks say the same, and are behind, too.
#[test]
#[ignore = "needs redis-server and faketime: tests/all installs them"]
fn two_halves_whose_clocks_stand_issue_no_id_twice() {
    let redis = Redis::start();
    let replica = Redis::replica_of(&redis);
    let links = [Link::to(redis.address), Link::to(redis.address)];
    let clock = Clock::at("2026-01-01 00:00:00");
    let nodes =
        links.each_ref().map(|link| Node::of(clock.start(&["--redis", &link.url(), "--heartbeat", "200ms"])));
    let followers: Vec<Follower> =
        nodes.iter().map(|node| Follower::start(&[node.address], "/events")).collect();
    let id = nodes[0].publish_at_last("common", "1");
    all_reach(&followers, id);
    wait_for_replica(&replica, &redis);
    replica.promote();
    links[1].switch(replica.address);
    let gone: Vec<EventId> =
        (0..5).map(|count| nodes[0].publish_at_last("lost", &count.to_string())).collect();
    let kept: Vec<EventId> =
        (0..9).map(|count| nodes[1].publish_at_last("kept", &count.to_string())).collect();
    assert!(gone.iter().all(|id| !kept.contains(id)), "{gone:?} and {kept:?}");
    followers[0].reaches(gone[4]);
    drop(redis);
    links[0].switch(replica.address);
    let all = converge(&nodes, &replica, followers);
    assert_eq!(all[0].reasons, ["first", "restart"]);
    assert_all_heard(&all[1..], &kept);
}

/// How a record differs from one of ours: fields, and what they are instead.
type Changes<'a> = &'a [(&'a str, Option<&'a str>)];

/// What is in the journal and is not ours: how each differs from a record that is.
#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_record_that_is_not_ours_stops_writes_until_it_is_gone_and_nobody_sees_it() {
    let cluster = Cluster::start(2);
    let followers = cluster.followers("/events");
    let mut ids = publish_everywhere(&cluster.addresses(), 10, 25);
    ids.push(cluster.nodes[0].publish_at_last("good", "1"));
    let deep = "[".repeat(500) + &"]".repeat(500);
    let cases: [(&str, Changes); 12] = [
        ("an unknown kind", &[("k", Some("nonsense"))]),
        ("no kind", &[("k", None)]),
        ("no data", &[("d", None)]),
        ("no predecessor", &[("p", None)]),
        ("broken JSON", &[("d", Some("{\"good\":"))]),
        ("a patch that is no object", &[("d", Some("1"))]),
        ("deep JSON", &[("d", Some(&deep))]),
        ("a bad topic in a patch", &[("d", Some(r#"{"a/b":1}"#))]),
        ("a bad topic", &[("k", Some("json")), ("t", Some("a b")), ("n", Some("x"))]),
        ("a name that is ours", &[("k", Some("text")), ("n", Some("init"))]),
        ("a document that is none", &[("k", Some("document")), ("d", Some("[1]"))]),
        ("another predecessor", &[("p", Some("1-1"))]),
    ];
    for (name, changes) in cases {
        let model = last_record(&cluster.redis).unwrap();
        let mut words = vec!["XADD", KEY, "*"];
        for (field, value) in &model.fields {
            let change = changes.iter().find(|(changed, _)| changed == field);
            // It follows the last record, as ours do.
            let value = if field == "p" { Some(model.id.as_str()) } else { Some(value.as_str()) };
            if let Some(value) = change.map_or(value, |(_, value)| *value) {
                words.extend([field, value]);
            }
        }
        is_refused_until_it_is_gone(&cluster, &followers, name, &words, &mut ids);
    }
    let foreign = ["XADD", KEY, "*", "hello", "world"];
    is_refused_until_it_is_gone(&cluster, &followers, "something else", &foreign, &mut ids);
    let future = ["XADD", KEY, "99999999999999-5", "hello", "world"];
    is_refused_until_it_is_gone(&cluster, &followers, "one of the future", &future, &mut ids);
    assert_all_heard(&cluster.converges(followers), &ids);
}

fn is_refused_until_it_is_gone(
    cluster: &Cluster,
    followers: &[Follower],
    name: &str,
    words: &[&str],
    ids: &mut Vec<EventId>,
) {
    let id = cluster.redis.call(words).text();
    for node in &cluster.nodes {
        refused_at_last(node, NOTHING);
        node.logs(&[&id, KEY]);
        assert_eq!(get(node.address, "/state").status, 200, "{name}");
    }
    cluster.redis.call(&["XDEL", KEY, &id]);
    for node in &cluster.nodes {
        ids.push(node.publish_at_last("good", &json!(name).to_string()));
    }
    all_reach(followers, ids[ids.len() - 1]);
    for node in &cluster.nodes {
        let lines = node.log().lines().filter(|line| line.contains(&id)).count();
        assert_eq!(lines, 1, "{name}: one line says which record it is: {}", node.log());
    }
    for follower in followers {
        assert!(!follower.heard().frames.iter().any(|frame| frame.id.to_string() == id), "{name}");
    }
}

// --- How much ----------------------------------------------------------------------------------------------------

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_journal_is_trimmed_behind_the_history_and_the_document_and_nobody_misses_anything() {
    let redis = Redis::start();
    let links = [Link::to(redis.address), Link::to(redis.address)];
    // The smallest history trims.
    let nodes = [Node::start(&links[0].url(), &["--history", "128K"]), Node::start(&links[1].url(), &[])];
    let servers = nodes.each_ref().map(|node| node.address);
    let followers: Vec<Follower> =
        servers.iter().map(|server| Follower::start(&[*server], "/events")).collect();
    let roaming = Follower::start(&servers, "/events");
    let document = 8 * (10 << 10);
    let used = || match redis.call(&["MEMORY", "USAGE", KEY, "SAMPLES", "0"]) {
        Reply::Number(bytes) => bytes as usize,
        other => panic!("{other:?}"),
    };
    let most = 3 * ((128 << 10) + document);
    let filler = "x".repeat(10 << 10);
    let ids: Vec<EventId> = thread::scope(|scope| {
        let writers = [0, 1].map(|number| {
            let (nodes, filler, used) = (&nodes, &filler, &used);
            scope.spawn(move || {
                let mut ids = Vec::new();
                for count in 0..1_500 {
                    let value = json!([count, &filler[..200 + count * 37 % 9_000]]);
                    // Both write: whoever has the smallest history trims when it does.
                    let node = &nodes[(number + count) % 2];
                    ids.push(node.publish_at_last(&format!("t{}", count % 8), &value.to_string()));
                    if count % 50 == 0 {
                        assert!(used() <= most, "{} bytes of {most} after {count}", used());
                    }
                }
                ids
            })
        });
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    assert!(used() <= most, "{} bytes of {most}", used());
    roaming.hop();
    let late = Node::start(&redis.url(), &["--history", "128K"]);
    let [one, other] = nodes;
    let all = converge(&[one, other, late], &redis, followers.into_iter().chain([roaming]).collect());
    assert_all_heard(&all, &ids);
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_document_of_four_mebibytes_is_everywhere_and_a_smaller_limit_refuses_growth_alone() {
    let mut cluster = Cluster::start(2);
    let followers = cluster.followers("/events");
    let text = json!("x".repeat(1_000_000)).to_string();
    let big = |number: usize| cluster.nodes[number % 2].publish_at_last(&format!("big{number}"), &text);
    let mut ids: Vec<EventId> = (0..4).map(big).collect();
    assert_eq!(cluster.nodes[0].put("more", &text).status, 413);
    for count in 0..300 {
        let body = json!({(count % 7).to_string(): count}).to_string();
        ids.push(cluster.nodes[count % 2].publish_at_last("small", &body));
    }
    let url = cluster.redis.url();
    let small = Node::start(&url, &["--max-document", "1M"]);
    assert_eq!(small.put("more", "[1,2,3,4]").status, 413);
    ids.push(small.publish_at_last("small", "1"));
    ids.push(small.publish_at_last("big3", "1"));
    cluster.nodes.push(small);
    assert_all_heard(&cluster.converges(followers), &ids);
}

// --- Start, secrets, stop ----------------------------------------------------------------------------------------

fn anywhere() -> Command {
    let mut command = Command::new(program());
    command.args(["--listen", "127.0.0.1:0"]);
    command
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_server_without_its_redis_does_not_start_and_says_why_without_the_password() {
    let redis = Redis::start_with(&["--requirepass", "s3cret"]);
    let taken = Redis::start();
    taken.call(&["SET", KEY, "1"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let other_address = other.local_addr().unwrap();
    thread::spawn(move || {
        for mut connection in other.incoming().flatten() {
            let _asked = connection.read(&mut [0; 100]);
            connection.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").ok();
        }
    });
    let nobody = free_address();
    for url in [
        format!("redis://:wrong-s3cret@{}", redis.address),
        format!("redis://someone:wrong-s3cret@{}/0", redis.address),
        format!("redis://{}", redis.address),
        format!("redis://:s3cret@{nobody}"),
        format!("redis://:s3cret@{}", taken.address),
        format!("redis://:s3cret@{}", silent.local_addr().unwrap()),
        format!("redis://:s3cret@{other_address}"),
        "redis+unix:///nowhere/at/all.sock".to_owned(),
        "redis://:s3cret@[::1".to_owned(),
        "http://:s3cret@127.0.0.1".to_owned(),
        "s3cret".to_owned(),
    ] {
        for is_option in [true, false] {
            let mut command = anywhere();
            if is_option {
                command.args(["--redis", &url]);
            } else {
                command.env("STATECAST_REDIS", &url);
            }
            let (code, said) = does_not_start(&mut command);
            let expected = if url.starts_with("redis") && !url.ends_with("[::1") { [1, 1] } else { [1, 2] };
            assert!(code.is_some_and(|code| expected.contains(&code)), "{url}: {code:?} {said}");
            assert_eq!(said.lines().count(), 1, "{url}: {said}");
            assert!(!said.contains("s3cret"), "{url}: {said}");
            assert!(!said.contains("panicked"), "{url}: {said}");
        }
    }
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn the_password_is_seen_nowhere_whatever_becomes_of_redis() {
    let mut redis = Redis::start();
    let folder = Folder::new("cluster-secret");
    let file = folder.file("url");
    redis.call(&["ACL", "SETUSER", "statecast", "on", ">s3cret", "~*", "&*", "+@all"]);
    fs::write(&file, format!("redis://statecast:s3cret@{}\n", redis.address)).unwrap();
    let by_file = Node::of(Binary::start(&["--redis-file", &file]));
    let mut command = Command::new(program());
    command.env("STATECAST_REDIS", format!("redis://statecast:s3cret@{}", redis.address));
    let by_environment = Node::of(Binary::spawn(&mut command));
    for node in [&by_file, &by_environment] {
        node.publish_at_last("a", "1");
    }
    redis.kill();
    for node in [&by_file, &by_environment] {
        refused_at_last(node, NOTHING);
    }
    redis.restart();
    for node in [&by_file, &by_environment] {
        // The user is gone with the rest.
        let said = refused_at_last(node, NOTHING).body + &node.log() + &node.binary.greeting;
        let metrics = get(node.address, "/metrics").body;
        let ps = fs::read_to_string(format!("/proc/{}/cmdline", node.binary.child.id())).unwrap();
        assert!(!(said.clone() + &metrics + &ps).contains("s3cret"), "{said}{metrics}{ps}");
        assert!(node.binary.greeting.contains(KEY), "{}", node.binary.greeting);
        assert!(node.binary.greeting.contains(&redis.address.to_string()), "{}", node.binary.greeting);
    }
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_server_whose_redis_answers_nothing_can_be_stopped() {
    let mut cluster = Cluster::start(2);
    let followers = cluster.followers("/events");
    cluster.nodes[0].publish_at_last("a", "1");
    cluster.redis.freeze();
    let address = cluster.nodes[0].address;
    let answer = thread::scope(|scope| {
        let writer = scope.spawn(move || try_request(address, "PUT", "/state/a", &[], "2"));
        cluster.nodes.remove(0).stop();
        writer.join().unwrap()
    });
    // It was stopped before it was asked, or it answered.
    assert!(answer.as_ref().map_or(true, |answer| answer.status == 503), "{answer:?}");
    cluster.redis.thaw();
    drop(followers);
    cluster.converges(Vec::new());
}

#[test]
#[ignore = "needs redis-server: tests/all installs it"]
fn a_socket_of_this_machine_and_another_key_do_as_well() {
    let folder = Folder::new("cluster-socket");
    let socket = folder.file("redis.sock");
    let redis = Redis::start_with(&["--unixsocket", &socket]);
    let options = ["--redis-key", "house"];
    let nodes =
        [Node::start(&format!("redis+unix://{socket}"), &options), Node::start(&redis.url(), &options)];
    let apart = Node::start(&redis.url(), &[]);
    let id = nodes[0].publish_at_last("a", "1").to_string();
    assert_eq!(
        request(nodes[1].address, "GET", "/state", &[("Last-Event-ID", &id)], "").json(),
        json!({"a": 1})
    );
    assert_eq!(get(apart.address, "/state").json(), json!({}));
    assert_eq!(redis.records("house").pop().unwrap().id, id);
}

// --- A cut link, a proxy and a page ------------------------------------------------------------------------------

/// Two hosts in network namespaces with a link between; removed at the end.
struct Hosts {
    hub: String,
    edge: String,
    running: Vec<Child>,
}

impl Hosts {
    fn new() -> Hosts {
        let number = std::process::id();
        let hosts = Hosts {
            hub: format!("statecast-h{number}"),
            edge: format!("statecast-e{number}"),
            running: Vec::new(),
        };
        let (hub, edge) = (&hosts.hub, &hosts.edge);
        for line in [
            format!("netns add {hub}"),
            format!("netns add {edge}"),
            format!("link add veth0 netns {hub} type veth peer name veth0 netns {edge}"),
            format!("-n {hub} address add 192.0.2.1/24 dev veth0"),
            format!("-n {edge} address add 192.0.2.2/24 dev veth0"),
            format!("-n {hub} link set lo up"),
            format!("-n {edge} link set lo up"),
            format!("-n {hub} link set veth0 up"),
            format!("-n {edge} link set veth0 up"),
        ] {
            ip(&line);
        }
        hosts
    }

    fn command(host: &str, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", host, program]).args(arguments);
        command
    }

    fn spawn(&mut self, host: &str, program: &str, arguments: &[&str]) {
        let mut command = Hosts::command(host, program, arguments);
        self.running.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    /// Asks a server from its own host: the status, and the body.
    fn ask(host: &str, arguments: &[&str]) -> (u16, String) {
        let common = ["-s", "--max-time", "10", "-w", "\n%{http_code}"];
        let output =
            Hosts::command(host, "curl", &[&common, arguments].concat()).output().expect("curl runs");
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for child in &mut self.running {
            child.kill().ok();
            child.wait().ok();
        }
        for host in [&self.hub, &self.edge] {
            Command::new("ip").args(["netns", "delete", host]).stderr(Stdio::null()).status().ok();
        }
    }
}

fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).status();
    let done = done.expect("ip is missing: it is in the package iproute2");
    assert!(done.success(), "ip {line} (as root?)");
}

#[test]
#[ignore = "needs root, redis-server, ip and curl: tests/all installs them"]
fn a_server_whose_link_goes_down_serves_what_it_has_and_then_catches_up() {
    let mut hosts = Hosts::new();
    let (hub, edge) = (hosts.hub.clone(), hosts.edge.clone());
    let redis = ["--bind", "192.0.2.1", "--protected-mode", "no", "--save", "", "--port", "6379"];
    hosts.spawn(&hub, &redis::program(), &redis);
    let answers = || {
        let probe = ["-c", "exec 3<>/dev/tcp/192.0.2.1/6379"];
        Hosts::command(&hub, "bash", &probe).stderr(Stdio::null()).status().unwrap().success()
    };
    wait_until(answers, |is_there| *is_there);
    let program = program();
    let options = ["--listen", "127.0.0.1:8080", "--redis", "redis://192.0.2.1:6379", "--heartbeat", "500ms"];
    for host in [&hub, &edge] {
        hosts.spawn(host, program.to_str().unwrap(), &options);
        wait_until(|| Hosts::ask(host, &["http://127.0.0.1:8080/healthz?ready"]).0, |status| *status == 200);
    }
    let state = "http://127.0.0.1:8080/state";
    let put = |host: &str, body: &str| Hosts::ask(host, &["-X", "PUT", "-d", body, &format!("{state}/a")]);
    assert_eq!(put(&edge, "1").0, 200);
    let mut stream = Hosts::command(&edge, "curl", &["-sN", "http://127.0.0.1:8080/events"]);
    let mut stream = stream.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(stream.stdout.take().unwrap()).lines().map_while(Result::ok);
    hosts.running.push(stream);
    let mut until =
        |wanted: &str| assert!(lines.any(|line| line.contains(wanted)), "the stream ends before {wanted}");
    until(r#"data: {"a":1}"#);

    ip(&format!("-n {edge} link set veth0 down"));
    assert_eq!(put(&hub, "2").0, 200);
    wait_until(|| put(&edge, "3"), |(status, body)| *status == 503 && body.contains(NOTHING));
    wait_until(|| Hosts::ask(&edge, &["http://127.0.0.1:8080/healthz?ready"]).0, |status| *status == 503);
    until("event: heartbeat");
    assert_eq!(Hosts::ask(&edge, &[state]), (200, "{\"a\":1}\n".to_owned()));
    ip(&format!("-n {edge} link set veth0 up"));

    until(r#"data: {"a":2}"#);
    wait_until(|| put(&edge, "4").0, |status| *status == 200);
    until(r#"data: {"a":4}"#);
    let [here, there] =
        [&edge, &hub].map(|host| wait_until(|| Hosts::ask(host, &[state]).1, |body| body.contains('4')));
    assert_eq!(here, there);
    for host in [&hub, &edge] {
        let (_, metrics) = Hosts::ask(host, &["http://127.0.0.1:8080/metrics"]);
        assert!(
            metrics.lines().any(|line| line.contains("divergences") && line.ends_with(" 0")),
            "{metrics}"
        );
    }
}

#[test]
#[ignore = "needs redis-server, nginx, Chromium and chromedriver: tests/all installs them"]
fn a_page_behind_nginx_over_three_servers_recovers_when_its_server_stops() {
    let redis = Redis::start();
    let token = ["--publish-token", "s3cret"];
    let mut nodes: Vec<Node> = (0..3).map(|_| Node::start(&redis.url(), &token)).collect();
    let servers: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
    let nginx = Proxy::nginx_over(&servers);
    let bearer = [("Authorization", "Bearer s3cret")];
    let publish = |text: &str| {
        let body = json!({ "sign": text }).to_string();
        let answer = || request(nginx.address, "PATCH", "/state/kitchen", &bearer, &body);
        wait_until(answer, |answer| answer.status == 200).id()
    };
    publish("it-was-there");
    let browser = Browser::start();
    browser.open(&format!("http://{}/", nginx.address));
    let shows = |text: &str| wait_until(|| browser.text("#document"), |shown| shown.contains(text));
    shows("it-was-there");
    let clients =
        |node: &Node| request(node.address, "GET", "/clients", &bearer, "").json().as_array().unwrap().len();
    // Whichever has the page is stopped, and then the next one.
    for (round, text) in ["one-is-stopped", "two-are-stopped"].into_iter().enumerate() {
        let has_it = || nodes.iter().position(|node| clients(node) > 0);
        let which = wait_until(has_it, Option::is_some).unwrap();
        if round == 0 {
            nodes.remove(which).kill();
        } else {
            nodes.remove(which).stop();
        }
        publish(text);
        shows(text);
        wait_until(|| browser.attribute("#state", "data-state"), |state| state == "open");
        assert_eq!(browser.text("#reason"), "the server sent what was missed");
    }
}
