//! Random faults: three servers on one Redis, writers, subscribers that come back anywhere, and what can go wrong.
//!
//! `soak` runs it as `cluster`. A round is a cluster of its own. In every other one Redis forgets nothing that only one
//! server has: there, whatever was answered must come to everybody once, and nobody may have to begin anew. In the
//! others writes may be lost as the README says, and history is so short that whoever was away may begin anew; what must
//! be is that all servers and all streams end alike.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde_json::json;
use statecast::EventId;

use crate::cluster::{Cluster, Follower, KEY, Node};
use crate::random::Rng;
use crate::redis::{Redis, Reply};
use crate::support::{get, signal, try_request, wait_until};

const ROUND: Duration = Duration::from_secs(20);

/// What is done to it. Those from `Split` on lose what was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillServer,
    StopServer,
    FreezeServer,
    FreezeRedis,
    HangLink,
    MuteLink,
    CutLinks,
    KillConnections,
    FlushScripts,
    Foreign,
    EmptyRedis,
    FlushAll,
    DeleteLast,
    Failover,
    FailoverWithoutTail,
    Split,
    LaggingFirst,
    EmptyUnderLoad,
}

const KEEPING: &[Fault] = &[
    Fault::KillServer,
    Fault::StopServer,
    Fault::FreezeServer,
    Fault::FreezeRedis,
    Fault::HangLink,
    Fault::MuteLink,
    Fault::CutLinks,
    Fault::KillConnections,
    Fault::FlushScripts,
    Fault::Foreign,
    Fault::EmptyRedis,
    Fault::FlushAll,
    Fault::DeleteLast,
    Fault::Failover,
    Fault::FailoverWithoutTail,
];

const LOSING: &[Fault] = &[Fault::Split, Fault::LaggingFirst, Fault::EmptyUnderLoad];

/// What writers and faults share.
struct Load {
    is_over: AtomicBool,
    /// Held by whoever writes, and alone by a fault that nobody may write before.
    gate: RwLock<()>,
    /// The ids that were answered.
    ids: Mutex<Vec<EventId>>,
}

/// Runs rounds for so long, and prints what there was. Panics at the first thing that is wrong.
pub fn run(seconds: u64, seed: u64) {
    let begin = Instant::now();
    let mut counts = BTreeMap::new();
    let mut round = 0;
    while begin.elapsed() < Duration::from_secs(seconds) {
        let time = ROUND.min(Duration::from_secs(seconds).saturating_sub(begin.elapsed()));
        round_of(time.max(Duration::from_secs(5)), seed + round, round % 2 == 1, &mut counts);
        round += 1;
        println!("round {round} converged after {} s", begin.elapsed().as_secs());
    }
    for (what, count) in counts {
        println!("{what:>28} {count:>8}");
    }
}

fn round_of(time: Duration, seed: u64, may_lose: bool, counts: &mut BTreeMap<String, u64>) {
    println!("a round with seed {seed}{}", if may_lose { ", in which writes may be lost" } else { "" });
    let mut rng = Rng(seed);
    let history = ["--history", if may_lose { "256K" } else { "16M" }];
    let mut cluster = Cluster::start_on(Redis::start(), 3, &history);
    let servers = cluster.addresses();
    let turned = |by: usize| [&servers[by % 3..], &servers[..by % 3]].concat();
    let followers: Vec<Follower> = (0..8).map(|by| Follower::start(&turned(by), "/events")).collect();
    let load = Load { is_over: AtomicBool::new(false), gate: RwLock::default(), ids: Mutex::default() };
    let begin = Instant::now();
    thread::scope(|scope| {
        for number in 0..4 {
            let (load, servers, rng) = (&load, turned(number), Rng(rng.next()));
            scope.spawn(move || write(load, &servers, number, rng));
        }
        let _ends = OverAtEnd(&load);
        while begin.elapsed() < time {
            sleep(Duration::from_millis(rng.below(600)));
            let fault = if may_lose && rng.one_in(2) { rng.of(LOSING) } else { rng.of(KEEPING) };
            *counts.entry(format!("{fault:?}")).or_default() += 1;
            println!("{:>8.1} s: {fault:?}", begin.elapsed().as_secs_f64());
            cluster.suffer(fault, &history, &load, &followers, &mut rng);
            cluster.recovers();
            if rng.one_in(2) {
                followers[rng.index(followers.len())].hop();
            }
        }
    });
    let ids = load.ids.into_inner().expect("nobody panics");
    let all = cluster.converges(followers);
    *counts.entry("writes answered".to_owned()).or_default() += ids.len() as u64;
    for word in ["conflicts", "reconnects", "restored", "branches"] {
        let sum = cluster.nodes.iter().map(|node| node.metric(word)).sum::<u64>();
        *counts.entry(format!("{word}, of those alive")).or_default() += sum;
    }
    for heard in &all {
        let had: BTreeSet<EventId> = heard.frames.iter().map(|frame| frame.id).collect();
        let mut lacking: Vec<&EventId> = ids.iter().filter(|id| !had.contains(id)).collect();
        lacking.sort();
        let is_known = heard.reasons[1..].iter().all(|reason| reason == "known");
        if !may_lose && (!lacking.is_empty() || !is_known) {
            for node in &cluster.nodes {
                println!("{} logged:\n{}", node.address, node.last_lines());
            }
            let (count, first, last) = (lacking.len(), lacking.first(), lacking.last());
            panic!(
                "{count} answered writes did not come, {first:?} to {last:?}; {:?}; seed {seed}",
                heard.reasons
            );
        }
    }
}

/// Ends the load, also when a check panics: the scope waits for it.
struct OverAtEnd<'a>(&'a Load);

impl Drop for OverAtEnd<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}

/// Writes here and there, and again where it was refused, until it is over.
fn write(load: &Load, servers: &[std::net::SocketAddr], number: usize, mut rng: Rng) {
    let mut turn = 0;
    for count in 0.. {
        if load.is_over.load(Ordering::SeqCst) {
            return;
        }
        let _gate = load.gate.read();
        let topic = format!("t{}", rng.below(6));
        let letters = "x".repeat(rng.below(2_000) as usize);
        let (method, path, body) = match rng.below(10) {
            0..4 => ("PUT", format!("/state/{topic}"), json!([number, count, letters]).to_string()),
            4..7 => ("PATCH", "/state".to_owned(), json!({ topic: { "n": count }, "x": null }).to_string()),
            7 => ("PUT", "/state".to_owned(), json!({ topic: count }).to_string()),
            8 => ("POST", format!("/events/{topic}"), json!({ "n": count }).to_string()),
            _ => ("POST", "/events?event=tick".to_owned(), letters),
        };
        match try_request(servers[turn % servers.len()], method, &path, &[], &body) {
            Ok(answer) if answer.status == 200 => {
                load.ids.lock().expect("nobody panics").push(answer.id());
            }
            Ok(answer) => {
                assert_eq!(answer.status, 503, "{method} {path}: {}", answer.body);
                turn += 1;
                sleep(Duration::from_millis(5));
            }
            Err(_) => turn += 1,
        }
        if rng.one_in(20) {
            turn += 1;
        }
    }
}

impl Cluster {
    /// Waits until every server takes writes again.
    fn recovers(&self) {
        for node in &self.nodes {
            wait_until(|| get(node.address, "/healthz?ready").status, |status| *status == 200);
            node.publish_at_last("recovered", "1");
        }
    }

    fn suffer(&mut self, fault: Fault, options: &[&str], load: &Load, followers: &[Follower], rng: &mut Rng) {
        let which = rng.index(self.nodes.len());
        let pause = |rng: &mut Rng, most: u64| sleep(Duration::from_millis(rng.below(most)));
        match fault {
            Fault::KillServer | Fault::StopServer => {
                let node = self.nodes.remove(which);
                let (address, url) = (node.address, self.links[which].url());
                if fault == Fault::KillServer {
                    node.kill();
                } else {
                    node.stop();
                }
                pause(rng, 500);
                self.nodes.insert(which, Node::start_at(address, &url, options));
            }
            Fault::FreezeServer => {
                signal(&self.nodes[which].binary.child, "STOP");
                pause(rng, 1_500);
                signal(&self.nodes[which].binary.child, "CONT");
            }
            Fault::FreezeRedis => {
                self.redis.freeze();
                pause(rng, 3_500);
                self.redis.thaw();
            }
            Fault::HangLink | Fault::MuteLink => {
                let link = &self.links[which];
                if fault == Fault::HangLink {
                    link.hang();
                } else {
                    link.mute();
                }
                pause(rng, 3_500);
                // What was held gets through, or does not.
                if rng.one_in(2) {
                    link.cut();
                }
                link.pass();
            }
            Fault::CutLinks => {
                self.links.iter().for_each(crate::redis::Link::cut);
                pause(rng, 500);
                self.links.iter().for_each(crate::redis::Link::pass);
            }
            Fault::KillConnections => drop(self.redis.call(&["CLIENT", "KILL", "TYPE", "normal"])),
            Fault::FlushScripts => drop(self.redis.call(&["SCRIPT", "FLUSH"])),
            Fault::Foreign => {
                // A record of now may come before the last one, where it is refused.
                if let Reply::Text(id) = self.redis.ask(&["XADD", KEY, "*", "hello", "world"]) {
                    pause(rng, 300);
                    self.redis.call(&["XDEL", KEY, &id]);
                }
            }
            Fault::EmptyUnderLoad => self.redis.restart_empty(),
            Fault::EmptyRedis | Fault::FlushAll | Fault::DeleteLast => {
                let _nobody_writes = self.everybody_has_everything(load, followers);
                match fault {
                    Fault::EmptyRedis => self.redis.restart_empty(),
                    Fault::FlushAll => drop(self.redis.call(&["FLUSHALL"])),
                    _ => {
                        let last = self.redis.records(KEY).pop().expect("a record");
                        self.redis.call(&["XDEL", KEY, &last.id]);
                    }
                }
            }
            Fault::Failover | Fault::FailoverWithoutTail => {
                let replica = Redis::replica_of(&self.redis);
                if fault == Fault::FailoverWithoutTail {
                    replica.promote();
                    pause(rng, 700);
                }
                let nobody_writes = self.everybody_has_everything(load, followers);
                replica.promote();
                self.redis.kill();
                drop(nobody_writes);
                pause(rng, 500);
                self.switch_to(replica);
            }
            Fault::Split | Fault::LaggingFirst => {
                let replica = Redis::replica_of(&self.redis);
                replica.promote();
                if fault == Fault::Split {
                    self.links[which].switch(replica.address);
                    pause(rng, 1_500);
                } else {
                    self.links[which].hang();
                    pause(rng, 700);
                    self.redis.kill();
                    self.links[which].switch(replica.address);
                    self.nodes[which].publish_at_last("first", "1");
                }
                self.redis.kill();
                self.switch_to(replica);
            }
        }
    }

    fn switch_to(&mut self, redis: Redis) {
        for link in &self.links {
            link.switch(redis.address);
        }
        self.redis = redis;
    }

    /// Lets nobody write, and waits until every server has what was written.
    fn everybody_has_everything<'a>(
        &self,
        load: &'a Load,
        followers: &[Follower],
    ) -> std::sync::RwLockWriteGuard<'a, ()> {
        let gate = load.gate.write().expect("nobody panics");
        let ids = self.nodes.iter().map(|node| node.publish_at_last("everybody", "1"));
        let last = ids.max().expect("a server");
        for node in &self.nodes {
            // What a server has can be read there, and it waits for what it has not.
            let since = format!("/state?lastEventId={last}");
            wait_until(|| get(node.address, &since).body, |body| body.contains("everybody"));
        }
        for follower in followers {
            follower.reaches(last);
        }
        gate
    }
}
