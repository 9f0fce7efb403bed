//! Several servers on one Redis, and subscribers that come back anywhere and check all that they get.
//!
//! `Node` is a server of its own link to Redis, `Follower` a subscriber. `Cluster::converges` is the check at the end of
//! every test: all documents are equal, all streams are equal byte by byte, `init` and the updates make the document, the
//! journal is one chain, and no server found a divergence.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;
use statecast::EventId;

use crate::places::free_address;
use crate::redis::{Link, Redis};
use crate::support::{Answer, Binary, DEADLINE, get, request, wait_until};

/// The key of the journal.
pub const KEY: &str = "statecast";

/// One server.
pub struct Node {
    pub binary: Binary,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Node {
    /// Starts one that reaches Redis there.
    pub fn start(redis: &str, options: &[&str]) -> Node {
        Node::start_at(free_address(), redis, options)
    }

    /// Starts one where another one has been.
    pub fn start_at(address: SocketAddr, redis: &str, options: &[&str]) -> Node {
        let common = ["--redis", redis, "--heartbeat", "200ms", "--retry", "100ms"];
        Node::of(Binary::start_at(address, &[&common, options].concat()))
    }

    pub fn of(mut binary: Binary) -> Node {
        let log = Arc::default();
        let mut stderr = binary.child.stderr.take().expect("a pipe");
        let written: Arc<Mutex<String>> = Arc::clone(&log);
        thread::spawn(move || {
            let mut piece = [0; 4_096];
            while let Ok(count @ 1..) = stderr.read(&mut piece) {
                let text = String::from_utf8_lossy(&piece[..count]).into_owned();
                written.lock().expect("nobody panics").push_str(&text);
            }
        });
        Node { address: binary.address, binary, log }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("nobody panics").clone()
    }

    /// The end of its log, for the message of what does not come.
    pub fn last_lines(&self) -> String {
        let log = self.log.lock().expect("nobody panics");
        let lines: Vec<&str> =
            log.lines().rev().filter(|line| !line.contains(" was refused: ")).take(40).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Waits until it has logged a line with all of these.
    pub fn logs(&self, words: &[&str]) -> String {
        let is_it = |line: &&str| words.iter().all(|word| line.contains(word));
        let log = wait_until(|| self.log(), |log| log.lines().any(|line| is_it(&line)));
        log.lines().find(is_it).expect("it was there").to_owned()
    }

    /// What `GET /metrics` says of Redis in the line of that name.
    pub fn metric(&self, word: &str) -> u64 {
        let text = get(self.address, "/metrics").body;
        let is_it = |line: &&str| line.starts_with("statecast_redis_") && line.contains(word);
        let line = text.lines().find(is_it).unwrap_or_else(|| panic!("no {word} in {text}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    }

    pub fn kill(mut self) {
        self.binary.child.kill().expect("it runs");
        self.binary.child.wait().expect("our child");
    }

    /// Stops it as a service manager would.
    pub fn stop(mut self) {
        self.binary.signal("TERM");
        let child: &mut Child = &mut self.binary.child;
        let status = wait_until(|| child.try_wait().expect("our child"), Option::is_some);
        assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", self.log());
    }

    /// Asks for a change; the answer may be a refusal.
    pub fn put(&self, topic: &str, value: &str) -> Answer {
        request(self.address, "PUT", &format!("/state/{topic}"), &[], value)
    }

    /// Tries again until it is published.
    pub fn publish_at_last(&self, topic: &str, value: &str) -> EventId {
        let look = || (self.put(topic, value), self.last_lines());
        wait_until(look, |(answer, _)| answer.status == 200).0.id()
    }
}

/// Some servers, each with a link of its own to one Redis.
pub struct Cluster {
    pub redis: Redis,
    pub links: Vec<Link>,
    pub nodes: Vec<Node>,
}

impl Cluster {
    pub fn start(count: usize) -> Cluster {
        Cluster::start_on(Redis::start(), count, &[])
    }

    pub fn start_on(redis: Redis, count: usize, options: &[&str]) -> Cluster {
        let links: Vec<Link> = (0..count).map(|_| Link::to(redis.address)).collect();
        let nodes = links.iter().map(|link| Node::start(&link.url(), options)).collect();
        Cluster { redis, links, nodes }
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    /// A subscriber of each server, which stays there.
    pub fn followers(&self, path: &str) -> Vec<Follower> {
        self.nodes.iter().map(|node| Follower::start(&[node.address], path)).collect()
    }

    /// The check at the end: everybody has come to the same, by the same way.
    pub fn converges(&self, followers: Vec<Follower>) -> Vec<Heard> {
        converge(&self.nodes, &self.redis, followers)
    }
}

/// Publishes one more event and waits until everybody has it; then compares everything. Returns what each has heard.
pub fn converge(nodes: &[Node], redis: &Redis, followers: Vec<Follower>) -> Vec<Heard> {
    // Whatever came for a topic is in its stream before this.
    let mut fences = BTreeMap::new();
    for follower in &followers {
        let path = follower.heard().path;
        if path != "/events" && !fences.contains_key(&path) {
            let end = || request(nodes[0].address, "POST", &format!("{path}?event=end"), &[], "end");
            let end = wait_until(end, |answer| answer.status == 200).id();
            fences.insert(path, end);
        }
    }
    let mut fence = None;
    for node in nodes {
        fence = Some(node.publish_at_last("fence", "true"));
    }
    let fence = fence.expect("there is a node");
    let finish = |follower: Follower| {
        let path = follower.heard().path;
        follower.finish(fences.get(&path).copied().unwrap_or(fence))
    };
    let heard: Vec<Heard> = followers.into_iter().map(finish).collect();
    let states: Vec<Answer> = nodes
        .iter()
        .map(|node| {
            let since = fence.to_string();
            request(node.address, "GET", "/state", &[("Last-Event-ID", &since)], "")
        })
        .collect();
    for (node, state) in nodes.iter().zip(&states) {
        assert_eq!(state.body, states[0].body, "the documents of two servers");
        assert_eq!(state.header("ETag"), states[0].header("ETag"), "{}", state.body);
        assert_eq!(node.metric("divergences"), 0, "{}", node.log());
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
    let document = states[0].json();
    let mut by_path: BTreeMap<&str, Vec<&Heard>> = BTreeMap::new();
    for heard in &heard {
        by_path.entry(&heard.path).or_default().push(heard);
        let topic = heard.path.strip_prefix("/events").expect("a stream").trim_start_matches('/');
        let expected = if topic.is_empty() { &document } else { &document[topic] };
        assert_eq!(
            heard.document.as_ref().unwrap_or(&Value::Null),
            expected,
            "{}: init and updates",
            heard.path
        );
    }
    for heard in by_path.values() {
        assert_same_streams(heard);
    }
    assert_one_chain(redis);
    heard
}

/// Each stream is compared with the longest one, from where both have begun, or begun anew.
fn assert_same_streams(all: &[&Heard]) {
    let longest = all.iter().max_by_key(|heard| heard.since_init().len()).expect("there is one");
    for heard in all {
        let begin = heard.start.max(longest.start);
        let of = |heard: &Heard| -> Vec<Frame> {
            heard.since_init().iter().filter(|frame| Some(frame.id) > begin).cloned().collect()
        };
        let (one, other) = (of(heard), of(longest));
        let differs = one.iter().zip(&other).position(|(one, other)| one != other);
        assert_eq!(differs.map(|at| (&one[at], &other[at])), None, "{}: two streams differ", heard.path);
        assert_eq!(one.len(), other.len(), "{}: a stream ends early", heard.path);
    }
}

/// Each record names the one before it.
pub fn assert_one_chain(redis: &Redis) {
    let records = redis.records(KEY);
    for pair in records.windows(2) {
        assert_eq!(pair[1].field("p"), pair[0].id, "{:?} does not follow {:?}", pair[1], pair[0]);
    }
}

/// One event with an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub id: EventId,
    pub name: String,
    pub data: String,
}

/// What a subscriber has heard.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub path: String,
    /// Why each of its streams began as it did.
    pub reasons: Vec<String>,
    pub frames: Vec<Frame>,
    /// Where the last `init` stands among the frames, and its id.
    init: usize,
    pub start: Option<EventId>,
    pub document: Option<Value>,
    pub last: Option<EventId>,
    pub heartbeats: usize,
    faults: Vec<String>,
}

impl Heard {
    /// What it has heard after its last `init`.
    pub fn since_init(&self) -> &[Frame] {
        &self.frames[self.init..]
    }

    pub fn has(&self, id: EventId) -> bool {
        self.frames.iter().any(|frame| frame.id == id)
    }

    fn take(&mut self, name: &str, id: Option<EventId>, data: String) -> Result<(), String> {
        let json = || serde_json::from_str::<Value>(&data).map_err(|error| format!("{error} in {data}"));
        match name {
            "heartbeat" => {
                self.heartbeats += 1;
                return Ok(());
            }
            "hello" => {
                self.reasons.push(json()?["reason"].as_str().unwrap_or_default().to_owned());
                return Ok(());
            }
            "init" => {
                self.document = Some(json()?);
                (self.init, self.start, self.last) = (self.frames.len(), id, id);
                return id.map(drop).ok_or_else(|| "init without an id".to_owned());
            }
            "update" => {
                let document = self.document.as_mut().ok_or("an update before init")?;
                statecast::merge(document, json()?);
            }
            _ => {}
        }
        let id = id.ok_or_else(|| format!("{name} without an id"))?;
        if self.last >= Some(id) {
            return Err(format!("{name} {id} after {:?}", self.last));
        }
        self.last = Some(id);
        self.frames.push(Frame { id, name: name.to_owned(), data });
        Ok(())
    }
}

/// A subscriber that comes back, to the next server each time.
pub struct Follower {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    heard: Mutex<Heard>,
    servers: Mutex<Vec<SocketAddr>>,
    turn: AtomicUsize,
    socket: Mutex<Option<TcpStream>>,
    is_over: AtomicBool,
}

impl Follower {
    /// Follows one of the servers, and the next one when its stream ends; returns when it has its first event.
    pub fn start(servers: &[SocketAddr], path: &str) -> Follower {
        let follower = Follower::resume(servers, path, None);
        follower.wait("no init", |heard| heard.document.is_some());
        follower
    }

    /// Begins with an id.
    pub fn resume(servers: &[SocketAddr], path: &str, last: Option<EventId>) -> Follower {
        let heard = Heard { path: path.to_owned(), start: last, last, ..Heard::default() };
        let shared = Arc::new(Shared {
            heard: Mutex::new(heard),
            servers: Mutex::new(servers.to_vec()),
            turn: AtomicUsize::new(0),
            socket: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let following = Arc::clone(&shared);
        let thread = thread::Builder::new().stack_size(256 << 10).spawn(move || following.follow());
        Follower { shared, thread: Some(thread.expect("a thread")) }
    }

    pub fn heard(&self) -> Heard {
        self.shared.heard.lock().expect("nobody panics").clone()
    }

    pub fn last(&self) -> Option<EventId> {
        self.shared.heard.lock().expect("nobody panics").last
    }

    /// Leaves its server for the next one.
    pub fn hop(&self) {
        if let Some(socket) = &*self.shared.socket.lock().expect("nobody panics") {
            socket.shutdown(Shutdown::Both).ok();
        }
    }

    /// Goes to these from its next stream on.
    pub fn go_to(&self, servers: &[SocketAddr]) {
        *self.shared.servers.lock().expect("nobody panics") = servers.to_vec();
    }

    /// Waits until it is so of what was heard.
    pub fn wait(&self, otherwise: &str, is_so: impl Fn(&Heard) -> bool) {
        let begin = std::time::Instant::now();
        loop {
            let heard = self.shared.heard.lock().expect("nobody panics");
            assert!(heard.faults.is_empty(), "{}: {:?}", heard.path, heard.faults);
            if is_so(&heard) {
                return;
            }
            assert!(
                begin.elapsed() < DEADLINE,
                "{otherwise}: {} {:?}, {} frames, at {:?}",
                heard.path,
                heard.reasons,
                heard.frames.len(),
                heard.last
            );
            drop(heard);
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it has come to that id.
    pub fn reaches(&self, id: EventId) {
        self.wait(&format!("{id} does not come"), |heard| heard.last >= Some(id));
    }

    /// Waits for an id, leaves, and says what it has heard up to there.
    pub fn finish(self, fence: EventId) -> Heard {
        self.reaches(fence);
        let mut heard = self.heard();
        heard.frames.retain(|frame| frame.id <= fence);
        heard
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.hop();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Shared {
    fn follow(&self) {
        while !self.is_over.load(Ordering::SeqCst) {
            let servers = self.servers.lock().expect("nobody panics").clone();
            let turn = self.turn.fetch_add(1, Ordering::SeqCst);
            if let Err(fault) = self.follow_one(servers[turn % servers.len()]) {
                self.heard.lock().expect("nobody panics").faults.push(fault);
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Follows until the stream ends, however it does: a server may have been killed. HTTP/1.0 has no chunks.
    fn follow_one(&self, server: SocketAddr) -> Result<(), String> {
        let (path, last) = {
            let heard = self.heard.lock().expect("nobody panics");
            (heard.path.clone(), heard.last)
        };
        let Ok(mut socket) = TcpStream::connect_timeout(&server, DEADLINE) else { return Ok(()) };
        socket.set_read_timeout(Some(DEADLINE)).ok();
        *self.socket.lock().expect("nobody panics") = socket.try_clone().ok();
        let resume = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let head = format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n{resume}\r\n");
        if self.is_over.load(Ordering::SeqCst) || socket.write_all(head.as_bytes()).is_err() {
            return Ok(());
        }
        let mut lines = BufReader::new(socket).lines().map_while(Result::ok);
        let status = lines.next().unwrap_or_default();
        if !status.contains(" 200 ") {
            // A server that stops, or is full.
            return if status.is_empty() || status.contains(" 503 ") { Ok(()) } else { Err(status) };
        }
        while lines.next().is_some_and(|line| !line.is_empty()) {}
        let (mut name, mut id, mut data) = (String::new(), None, Vec::new());
        for line in lines {
            match line.split_once(':').map(|(field, value)| (field, value.strip_prefix(' ').unwrap_or(value)))
            {
                Some(("event", value)) => value.clone_into(&mut name),
                Some(("id", value)) => id = value.parse().ok(),
                Some(("data", value)) => data.push(value.to_owned()),
                None if line.is_empty() => {
                    let data = std::mem::take(&mut data).join("\n");
                    let name = std::mem::take(&mut name);
                    self.heard.lock().expect("nobody panics").take(&name, id.take(), data)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The program that is expected not to start: its exit code, and what it said.
pub fn does_not_start(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().expect("the program runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}
