//! Crowds: bursts of clients that tiny_http would strand, publishers beside them, and machines with too little of
//! descriptors, cores or memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;

use statecast::EventId;
use support::*;

/// Opens all connections at once, then reads each one's `init`.
fn burst(address: SocketAddr, clients: usize) -> Vec<Stream> {
    let mut streams = open_all(address, clients);
    for stream in &mut streams {
        stream.next_named("init");
    }
    streams
}

/// Opens all connections at once, then reads each one's head.
fn open_all(address: SocketAddr, clients: usize) -> Vec<Stream> {
    let connections: Vec<TcpStream> = (0..clients)
        .map(|_| {
            let mut connection = connect(address);
            write!(connection, "GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
            connection
        })
        .collect();
    connections.into_iter().map(Stream::on).collect()
}

fn bursts_are_served_beside_publishers(clients: usize) {
    let server = start();
    let address = server.address();
    for _ in 0..2 {
        let publishers: Vec<_> =
            (0..16).map(|number| thread::spawn(move || keep_publishing(address, number))).collect();
        // Connections that stay, each with a thread of tiny_http's for as long.
        let mut kept = ask_all(address, clients);
        let streams = burst(address, clients);
        read_all(&mut kept);
        drop(streams);
        for publisher in publishers {
            publisher.join().unwrap();
        }
    }
}

/// Connections that have asked for something, and stay open.
fn ask_all(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let ask = |_| {
        let mut connection = connect(address);
        write!(connection, "GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
        connection
    };
    (0..count).map(ask).collect()
}

fn read_all(connections: &mut [TcpStream]) {
    for connection in connections {
        let mut answer = [0; 15];
        std::io::Read::read_exact(connection, &mut answer).expect("each is answered while all stay open");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
}

/// Twenty writes over one connection.
fn keep_publishing(address: SocketAddr, number: usize) {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(DEADLINE)).build().into();
    for count in 0..20 {
        let url = format!("http://{address}/state/p{number}");
        agent.put(&url).send(count.to_string()).expect("the publisher gets its answer");
    }
}

#[test]
fn a_burst_of_5_is_served() {
    bursts_are_served_beside_publishers(5);
}

#[test]
fn a_burst_of_50_is_served() {
    bursts_are_served_beside_publishers(50);
}

#[test]
fn a_burst_of_500_is_served() {
    bursts_are_served_beside_publishers(500);
}

#[test]
fn kept_alive_connections_that_stay_open_strand_nobody() {
    let server = start();
    let address = server.address();
    read_all(&mut ask_all(address, 40));
}

/// The main thread and those for signals, the log, fan-out, catching up and the keeper, two for requests, and five of
/// tiny_http's.
const AT_REST: usize = 13;

#[test]
fn a_stream_costs_one_descriptor_and_no_thread() {
    let server = Binary::start(&["--threads", "1"]);
    let descriptors = || server.count_in("fd");
    let threads = || server.count_in("task");
    let mut streams = burst(server.address, 300);
    let most = wait_until(&descriptors, |count| *count < 300 + 20);
    assert!(most >= 300);
    wait_until(|| ("threads", threads()), |(_, count)| *count < 40);
    let id = put(server.address, "/state/a", "1");
    for stream in &mut streams {
        assert_eq!(stream.next().id(), id);
    }
    drop(streams);
    // A client that left is noticed when it is written to.
    wait_until(
        || {
            put(server.address, "/state/a", "2");
            ("descriptors", descriptors())
        },
        |(_, count)| *count < 20,
    );
    // Those that a crowd needed for a moment end, too, and take along what they hold of its memory.
    wait_until(|| ("threads", threads()), |(_, count)| *count <= AT_REST);
}

#[test]
fn out_of_descriptors_open_streams_go_on_and_new_ones_are_served_when_some_have_left() {
    let server = Binary::start_under("ulimit -n 64", &[]);
    let address = server.address;
    let mut streams = burst(address, 10);
    // Connections that say nothing take what is left, two descriptors each, until accepting fails.
    let silent: Vec<TcpStream> = (0..80).map(|_| connect(address)).collect();
    let id = wait_until(
        || {
            let mut publisher = TcpStream::connect(address).unwrap();
            publisher.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
            write!(publisher, "PUT /state/a HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1\r\n\r\n1")
                .unwrap();
            let mut answer = [0; 1];
            std::io::Read::read(&mut publisher, &mut answer).unwrap_or(0)
        },
        |count| *count == 0,
    );
    assert_eq!(id, 0, "nobody new is served");
    drop(silent);
    // It serves again by itself, and the streams never stopped.
    let published = wait_until(
        || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .timeout_global(Some(std::time::Duration::from_secs(1)))
                .build()
                .into();
            agent.put(format!("http://{address}/state/b")).send("2").is_ok()
        },
        |done| *done,
    );
    assert!(published);
    for stream in &mut streams {
        while stream.next_named("update").json()["b"] != 2 {}
    }
    let fresh = burst(address, 5);
    assert_eq!(fresh.len(), 5);
}

#[test]
fn the_start_says_how_many_clients_fit_and_that_many_do() {
    let server = Binary::start_under("ulimit -n 64", &[]);
    assert!(
        server.greeting.contains("\n  clients:  24 at most, for more files cannot be open (ulimit -n);"),
        "{}",
        server.greeting
    );
    let _streams = burst(server.address, 24);
    assert_eq!(get(server.address, "/events").status, 503);
}

#[test]
fn who_comes_when_the_server_is_full_is_told_when_to_come_back() {
    let server = start_with(|config| config.max_clients = 2);
    let address = server.address();
    let mut first = Stream::open(address, "/events");
    let _second = Stream::open(address, "/events");
    let refused = get(address, "/events");
    assert_eq!(refused.status, 503);
    let seconds: u64 = refused.header("Retry-After").unwrap().parse().unwrap();
    assert!((5..=15).contains(&seconds));
    assert_eq!(request(address, "DELETE", "/clients/1", &[], "").status, 200);
    assert!(first.ends_cleanly());
    assert_eq!(burst(address, 1).len(), 1);
}

/// Everybody in a crowd gets each event of some publishers once, in order, and nothing else.
fn a_crowd_is_told_everything(address: SocketAddr, clients: usize) {
    let mut streams = burst(address, clients);
    let publishers: Vec<_> =
        (0..4).map(|number| thread::spawn(move || keep_publishing(address, number))).collect();
    for publisher in publishers {
        publisher.join().unwrap();
    }
    let fence = put(address, "/state/fence", "true");
    let mut first = Vec::new();
    for (number, stream) in streams.iter_mut().enumerate() {
        let ids: Vec<_> = (0..=80).map(|_| stream.next_named("update").id()).collect();
        assert!(ids.is_sorted_by(|earlier, later| earlier < later), "{ids:?}");
        assert_eq!(ids.last(), Some(&fence));
        if number == 0 {
            first = ids;
        } else {
            assert_eq!(ids, first);
        }
    }
    assert_eq!(get(address, "/healthz").status, 200);
}

#[test]
fn on_one_core_a_crowd_is_told_everything() {
    let server = Binary::start_under("taskset -c -p 0 $$ >&2", &[]);
    a_crowd_is_told_everything(server.address, 200);
}

#[test]
fn with_256_descriptors_a_crowd_is_told_everything() {
    let server = Binary::start_under("ulimit -n 256", &[]);
    assert!(server.greeting.contains("216 at most"), "{}", server.greeting);
    // A burst takes two descriptors each for a moment.
    a_crowd_is_told_everything(server.address, 100);
}

/// A stream of a crowd, and what it has been told of each publisher's count.
struct Follower {
    stream: Stream,
    last_id: EventId,
    counts: [Option<u64>; PUBLISHERS],
}

const PUBLISHERS: usize = 16;

impl Follower {
    fn new(mut stream: Stream) -> Follower {
        let init = stream.next_named("init");
        let mut follower = Follower { stream, last_id: init.id(), counts: [None; PUBLISHERS] };
        follower.note(&init.json());
        follower
    }

    /// Comes back after the last id.
    fn come_back(self, address: SocketAddr) -> Follower {
        drop(self.stream);
        let mut stream = Stream::resume(address, "/events", &self.last_id.to_string());
        assert_eq!(stream.next().json()["reason"], "known");
        Follower { stream, last_id: self.last_id, counts: self.counts }
    }

    /// Takes the next update: it must be the next one of its publisher.
    fn follow(&mut self) {
        let event = self.stream.next_but_heartbeats();
        assert_eq!(event.name, "update", "history reaches far enough");
        assert!(event.id() > self.last_id, "{event:?} after {}", self.last_id);
        self.last_id = event.id();
        self.note(&event.json());
    }

    fn note(&mut self, document: &serde_json::Value) {
        for (topic, count) in document.as_object().unwrap() {
            let (Ok(publisher), count) = (topic[1..].parse::<usize>(), count.as_u64()) else { continue };
            let before = self.counts[publisher];
            assert!(
                before.is_none() || count == before.map(|count| count + 1),
                "{topic}: {count:?} after {before:?}"
            );
            self.counts[publisher] = count;
        }
    }
}

#[test]
fn a_crowd_comes_and_goes_while_16_publish_and_nobody_misses_anything() {
    for threads in [1, 2, 4] {
        come_and_go_while_16_publish(threads);
    }
}

fn come_and_go_while_16_publish(threads: usize) {
    const JOINERS: usize = 4;
    const WAVE: usize = 25;
    let server = start_with(|config| {
        config.threads = threads;
        config.stall = 10 * DEADLINE;
    });
    let address = server.address();
    // Each takes a descriptor at both ends, and one or two more on its way.
    let clients = 2_000.min(server.capacity().clients / 4);
    // Who comes lets some publishers write once each.
    let (turn, turns) = crossbeam_channel::bounded::<()>(PUBLISHERS);
    let (fence, fences) = crossbeam_channel::bounded(JOINERS);
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|number| {
                let turns = turns.clone();
                scope.spawn(move || {
                    for (count, ()) in turns.into_iter().enumerate() {
                        put(address, &format!("/state/p{number}"), &count.to_string());
                    }
                })
            })
            .collect();
        for _ in 0..JOINERS {
            let (turn, fences) = (turn.clone(), fences.clone());
            scope.spawn(move || {
                let mut followers = Vec::new();
                while followers.len() < clients / JOINERS {
                    let wave = open_all(address, WAVE);
                    // All of the wave are there, and will see what is written from here on.
                    (0..PUBLISHERS / 4).for_each(|_| turn.send(()).unwrap());
                    let mut wave: Vec<Follower> = wave.into_iter().map(Follower::new).collect();
                    wave.iter_mut().for_each(Follower::follow);
                    let come_back = |(number, follower): (usize, Follower)| {
                        if number % 2 == 0 { follower } else { follower.come_back(address) }
                    };
                    followers.extend(wave.into_iter().enumerate().map(come_back));
                }
                drop(turn);
                let last: EventId = fences.recv().unwrap();
                for follower in &mut followers {
                    while follower.last_id != last {
                        follower.follow();
                    }
                }
            });
        }
        drop((turn, turns));
        for publisher in publishers {
            publisher.join().unwrap();
        }
        let last = put(address, "/state/fence", "true");
        for _ in 0..JOINERS {
            fence.send(last).unwrap();
        }
    });
}

/// A memory cgroup of the first or the second kind; removed when dropped.
struct MemoryLimit(std::path::PathBuf);

impl MemoryLimit {
    fn new(bytes: u64) -> MemoryLimit {
        let name = format!("statecast-{}", std::process::id());
        let root = std::path::Path::new("/sys/fs/cgroup");
        let first_kind = root.join("memory");
        let (folder, file) = if first_kind.is_dir() {
            (first_kind.join(name), "memory.limit_in_bytes")
        } else {
            (root.join(name), "memory.max")
        };
        std::fs::create_dir(&folder).unwrap();
        let limit = MemoryLimit(folder);
        std::fs::write(limit.0.join(file), bytes.to_string()).unwrap();
        limit
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).ok();
    }
}

#[test]
#[ignore = "needs root, to make a memory cgroup"]
fn under_a_memory_limit_of_64_mib_500_clients_are_told_everything() {
    let limit = MemoryLimit::new(64 << 20);
    let enter = format!("echo $$ > {}", limit.0.join("cgroup.procs").display());
    let server = Binary::start_under(&enter, &[]);
    put(server.address, "/state/large", &format!("\"{}\"", "x".repeat(20_000)));
    a_crowd_is_told_everything(server.address, 500);
}
