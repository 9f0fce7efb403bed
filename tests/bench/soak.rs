//! Soak: everything at once against the program as it is shipped, for as long as one likes.
//!
//! `cargo build --release && cargo run --release --example soak -- --seconds 60 --seed 1`
//! `cargo build --all-features && cargo run --all-features --example soak -- cluster --seconds 1200`: random faults among servers
//! on one Redis, instead.
//!
//! Publishers, and subscribers that stay, resume, read slowly, stall or vanish, run beside hostile input, first for a
//! short warm-up, then for the time asked for. The one rule: whoever behaves must hold the server's document at the
//! end and have seen each event once, and the process must be as small as after the warm-up. Only 127.0.0.1 is used.

#[cfg(feature = "redis")]
#[path = "../support/cluster.rs"]
mod cluster;
#[cfg(feature = "redis")]
#[path = "cluster.rs"]
mod faults;
#[cfg(feature = "redis")]
#[path = "../support/places.rs"]
mod places;
mod random;
#[cfg(feature = "redis")]
#[path = "../support/redis.rs"]
mod redis;
#[cfg(feature = "redis")]
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, sleep};
use std::time::{Duration, Instant, SystemTime};

use random::Rng;
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use statecast::EventId;

/// Longer than any answer takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);
/// What threads that nobody needs any more take to end (30 s in `listener`), and a stalled client to be removed.
const SETTLE: Duration = Duration::from_secs(75);
/// A long run may leave this much more resident than the warm-up did: holes in the heap, not data.
const RSS_ALLOWANCE_KIB: u64 = 12 << 10;
/// Descriptors and threads that come and go by themselves, such as the server's pokes.
const SLACK: u64 = 6;
/// tiny_http keeps a thread for 5 s after each connection, and the server pokes it up to twice a second.
const POOL_SLACK: u64 = 14;
/// Requests that cost the server a thread and two descriptors for good; of each of two kinds in each phase.
const COSTLY: usize = 3;
const PUBLISHERS: usize = 6;

fn pause(rng: &mut Rng, most_ms: u64) {
    sleep(Duration::from_millis(rng.below(most_ms)));
}

/// What all threads of one phase share.
struct Run {
    address: SocketAddr,
    stop: AtomicBool,
    /// By audience, once all load has ended: who has come to this id has everything.
    fences: OnceLock<BTreeMap<&'static str, EventId>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    faults: Mutex<Vec<(&'static str, String)>>,
    slowest_us: AtomicU64,
    /// What may still be sent of `HTTP/2.0`, and of bodies over 64 MiB.
    costly: [AtomicUsize; 2],
}

impl Run {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, what: &'static str) {
        *self.counts.lock().expect("counting does not panic").entry(what).or_default() += 1;
    }

    fn counted(&self, what: &str) -> u64 {
        self.counts.lock().expect("counting does not panic").get(what).copied().unwrap_or(0)
    }

    fn fault(&self, who: &'static str, text: String) {
        eprintln!("soak: {who}: {text}");
        self.faults.lock().expect("noting does not panic").push((who, text));
    }

    fn may_spend(&self, kind: usize) -> bool {
        let take = |left: usize| left.checked_sub(1);
        self.costly[kind].fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn connect(&self) -> io::Result<TcpStream> {
        connect(self.address)
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, DEADLINE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.set_write_timeout(Some(DEADLINE))?;
    Ok(socket)
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text.into())
}

/// A kept-alive connection that asks and waits for the answer.
struct Http(BufReader<TcpStream>);

impl Http {
    fn open(address: SocketAddr) -> io::Result<Http> {
        connect(address).map(|socket| Http(BufReader::new(socket)))
    }

    fn call(&mut self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        self.0.get_mut().write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        let (head, mut length) = (read_head(&mut self.0)?, 0);
        for line in head.lines() {
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse().map_err(|_| invalid(line))?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or_else(|| invalid(head))?, String::from_utf8(body).map_err(io::Error::other)?))
    }

    /// Publishes, and returns the id.
    fn publish(&mut self, method: &str, path: &str, body: &str) -> io::Result<EventId> {
        let (status, answer) = self.call(method, path, body)?;
        let id =
            serde_json::from_str(&answer).ok().and_then(|answer: Value| answer["id"].as_str()?.parse().ok());
        id.filter(|_| status == 200).ok_or_else(|| invalid(format!("{method} {path}: {status} {answer}")))
    }
}

fn read_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

/// A socket that may be read slowly while the load lasts.
struct Wire<'a> {
    socket: TcpStream,
    slow: Option<(Rng, &'a Run)>,
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut most = buffer.len();
        if self.slow.as_ref().is_some_and(|(_, run)| run.is_over()) {
            self.slow = None;
            // Through the narrowest of them what is left would take minutes: the kernel waits 200 ms for each 300 bytes.
            SockRef::from(&self.socket).set_recv_buffer_size(1 << 20)?;
        }
        if let Some((rng, _)) = &mut self.slow {
            if rng.one_in(8) {
                pause(rng, 300);
            }
            most = most.min(1 + rng.below(4_096) as usize);
        }
        self.socket.read(&mut buffer[..most])
    }
}

/// Takes the chunks off a stream; an end without the last chunk is an error.
struct Chunks<'a> {
    inner: BufReader<Wire<'a>>,
    /// Left of the chunk; `None` where there are no chunks (HTTP/1.0).
    left: Option<usize>,
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.left.as_mut() else { return self.inner.read(buffer) };
        let mut line = String::new();
        if *left == 0 {
            self.inner.read_line(&mut line)?;
            *left = usize::from_str_radix(line.trim_end(), 16)
                .map_err(|_| invalid(format!("a chunk of {line:?}")))?;
        }
        let most = buffer.len().min(*left);
        let count = self.inner.read(&mut buffer[..most])?;
        *left -= count;
        if *left == 0 {
            line.clear();
            self.inner.read_line(&mut line)?;
        }
        if count == 0 { Err(invalid("the stream ended")) } else { Ok(count) }
    }
}

#[derive(Default)]
struct Event {
    name: String,
    data: String,
    id: Option<EventId>,
}

fn next_event(stream: &mut impl BufRead) -> io::Result<Event> {
    let mut event = Event::default();
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(invalid("the stream ended"));
        }
        let text = line.strip_suffix('\n').ok_or_else(|| invalid("half a line"))?;
        match text.split_once(": ").unwrap_or((text.trim_end_matches(':'), "")) {
            ("event", name) => name.clone_into(&mut event.name),
            ("id", id) => event.id = Some(id.parse().map_err(|_| invalid(text))?),
            ("data", data) if event.data.is_empty() => data.clone_into(&mut event.data),
            ("data", data) => event.data = [event.data.as_str(), data].join("\n"),
            ("", "") if !event.name.is_empty() => return Ok(event),
            ("retry" | "", _) => {}
            _ => return Err(invalid(format!("an unknown field: {text:?}"))),
        }
    }
}

/// What a subscriber has, and what it checks.
#[derive(Default)]
struct Replica {
    document: Option<Value>,
    last: Option<EventId>,
    /// The last number of each publisher's one-off events since `init`.
    ticks: HashMap<String, u64>,
}

impl Replica {
    fn take(&mut self, event: &Event, kind: Kind, run: &Run) -> io::Result<()> {
        let parsed = || serde_json::from_str::<Value>(&event.data).map_err(io::Error::other);
        match event.name.as_str() {
            "heartbeat" => return Ok(()),
            "hello" => {
                let hello = parsed()?;
                match hello["reason"].as_str() {
                    Some("known") if self.last.is_some() => run.count("resumed: replay"),
                    Some("gap") if self.last.is_some() => run.count("resumed: gap"),
                    Some("lagged") if self.last.is_some() && kind != Kind::Healthy => run.count("lagged"),
                    Some("first") if self.last.is_none() => {}
                    _ => return Err(invalid(format!("{hello} after {:?}", self.last))),
                }
                return Ok(());
            }
            "init" => {
                self.document = Some(parsed()?);
                self.ticks.clear();
            }
            "update" => self.merge(parsed()?)?,
            name if name.starts_with("tick-") => {
                let tick = event.data.parse().map_err(io::Error::other)?;
                if self.ticks.insert(event.name.clone(), tick).is_some_and(|before| tick != before + 1) {
                    return Err(invalid(format!("{name} {tick} at {:?} after a gap or twice", event.id)));
                }
            }
            "chat" | "fence" => {}
            other => return Err(invalid(format!("an event {other:?}"))),
        }
        let is_newer = self.last < event.id || event.name == "init" && self.last == event.id;
        if event.id.is_none() || !is_newer {
            return Err(invalid(format!("{} {:?} after {:?}", event.name, event.id, self.last)));
        }
        self.last = event.id;
        run.count("events received");
        Ok(())
    }

    fn merge(&mut self, patch: Value) -> io::Result<()> {
        let document = self.document.as_mut().ok_or_else(|| invalid("an update before init"))?;
        let counters = match &patch {
            Value::Number(_) => vec![(&*document, &patch)],
            Value::Object(topics) => {
                let counters = topics.iter().filter(|(key, _)| key.starts_with("counter-"));
                counters.map(|(key, value)| (&document[key], value)).collect()
            }
            _ => Vec::new(),
        };
        for (before, after) in counters {
            if after.as_u64() != Some(before.as_u64().unwrap_or(0) + 1) {
                return Err(invalid(format!("counter {after} after {before}, id {:?}", self.last)));
            }
        }
        statecast::merge(document, patch);
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Healthy,
    Resuming,
    Slow,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Healthy => "healthy",
            Kind::Resuming => "resuming",
            Kind::Slow => "slow",
        }
    }
}

/// Follows a stream until it has come to the fence.
fn subscribe(run: &Run, path: &'static str, kind: Kind, mut rng: Rng) -> io::Result<Replica> {
    let mut replica = Replica::default();
    loop {
        let mut stream = open_stream(run, path, kind, replica.last, &mut rng)?;
        let mut stay = if kind == Kind::Resuming { 1 + rng.below(300) } else { u64::MAX };
        while stay > 0 || run.is_over() {
            if run.fences.get().is_some_and(|fences| replica.last >= Some(fences[path])) {
                return Ok(replica);
            }
            let event = next_event(&mut stream).inspect_err(|_| run.count("streams that failed"))?;
            replica.take(&event, kind, run)?;
            stay = stay.saturating_sub(1);
        }
        drop(stream);
        pause(&mut rng, 400);
    }
}

fn open_stream<'a>(
    run: &'a Run,
    path: &str,
    kind: Kind,
    last: Option<EventId>,
    rng: &mut Rng,
) -> io::Result<BufReader<Chunks<'a>>> {
    let slow = (kind == Kind::Slow).then(|| (rng.clone(), run));
    let mut socket = if slow.is_some() { narrow(run, 1 << rng.below(14))? } else { run.connect()? };
    let (header, query) = match last {
        None => (String::new(), String::new()),
        Some(id) => match rng.below(4) {
            0 => (format!("Last-Event-ID: {id}\r\n"), String::new()),
            1 => (format!("Last-Event-ID: {id}\r\n"), "?lastEventId=1-0".into()),
            2 => (String::new(), format!("?lastEventId={id}")),
            _ => (String::new(), format!("?last_event_id={id}")),
        },
    };
    let version = u8::from(!rng.one_in(4));
    write!(socket, "GET {path}{query} HTTP/1.{version}\r\nHost: localhost\r\n{header}\r\n")?;
    let mut inner = BufReader::new(Wire { socket, slow });
    let head = read_head(&mut inner)?;
    if !head.contains(" 200 OK") || (version == 1) != head.contains("chunked") {
        return Err(invalid(head));
    }
    run.count("streams opened");
    Ok(BufReader::new(Chunks { inner, left: (version == 1).then_some(0) }))
}

/// A connection that takes next to nothing before it is read.
fn narrow(run: &Run, receive_buffer: usize) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_recv_buffer_size(receive_buffer)?;
    socket.connect(&run.address.into())?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket.into())
}

fn publish(run: &Run, number: usize, mut rng: Rng) {
    let keeps_connection = number % 3 != 2;
    let (mut count, mut tick, mut connection) = (0, 0, None);
    while !run.is_over() {
        let (topic, key) = (format!("doc-{}", rng.below(4)), rng.of(&["a", "b", "c"]));
        let small = json!({"by": number, "n": count, "list": [null, tick], "text": "\u{e4}\u{2028}\r\n\"x"});
        let kind = rng.below(100);
        count += u64::from(kind < 50);
        tick += u64::from((72..85).contains(&kind));
        let (method, path, body) = match kind {
            0..35 => ("PUT", format!("/state/counter-{number}"), json!(count).to_string()),
            35..50 => {
                let counter = format!("counter-{number}");
                ("PATCH", "/state".into(), json!({ counter: count, topic: { "last": count } }).to_string())
            }
            50..58 => ("PATCH", format!("/state/{topic}"), json!({ key: small }).to_string()),
            58..62 => ("PATCH", format!("/state/{topic}"), json!({ key: null }).to_string()),
            62..68 => ("PUT", format!("/state/{topic}"), small.to_string()),
            68..72 => ("DELETE", format!("/state/{topic}"), String::new()),
            72..85 => ("POST", format!("/events?event=tick-{number}"), tick.to_string()),
            85..97 => ("POST", format!("/events/{topic}?event=chat"), "one\ntwo\r\n\n".into()),
            _ => {
                let letters = "x".repeat((20 << 10) + rng.below(180 << 10) as usize);
                let body = json!({ "n": count, "letters": letters }).to_string();
                ("PUT", format!("/state/big-{}", rng.below(2)), body)
            }
        };
        let sent = Instant::now();
        let answer = connection.take().map_or_else(|| Http::open(run.address), Ok).and_then(|mut http| {
            let answer = http.call(method, &path, &body)?;
            Ok((http, answer))
        });
        run.slowest_us.fetch_max(sent.elapsed().as_micros() as u64, Ordering::Relaxed);
        match answer {
            Ok((http, (200, _))) => connection = Some(http).filter(|_| keeps_connection),
            Ok((_, (404, _))) if method == "DELETE" => {}
            Ok((_, (status, text))) => {
                return run.fault("publisher", format!("{method} {path}: {status} {text}"));
            }
            Err(error) => return run.fault("publisher", format!("{method} {path}: {error}")),
        }
        run.count("publishes answered");
        pause(&mut rng, 12);
    }
}

/// Opens streams and never reads.
fn stall(run: &Run, mut rng: Rng) {
    while !run.is_over() {
        let opened = narrow(run, 1).and_then(|mut socket| {
            write!(socket, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").map(|()| socket)
        });
        run.count("stalled streams");
        for _ in 0..10 + rng.below(130) {
            if !run.is_over() {
                sleep(Duration::from_millis(100));
            }
        }
        drop(opened);
    }
}

/// Leaves at any point: in a head, in a body, before or in an answer or a stream.
fn vanish(run: &Run, mut rng: Rng) {
    while !run.is_over() {
        let Ok(mut socket) = run.connect() else { return run.fault("vanishing", "cannot connect".into()) };
        // No prefix of it may become a write, though each prefix of the body is JSON.
        let half = "PUT /state/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n".to_owned();
        let (request, most) = match rng.below(3) {
            0 => (half + &"1".repeat(4_000), 4_060),
            1 => ("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), 1_000),
            _ => ("GET /state HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), 1_000),
        };
        let end = if rng.one_in(2) { request.len() } else { rng.below(request.len() as u64) as usize };
        socket.write_all(&request.as_bytes()[..end.min(most)]).ok();
        if rng.one_in(2) {
            socket.set_read_timeout(Some(Duration::from_millis(1 + rng.below(100)))).ok();
            (&socket).take(1 + rng.below(9_000)).read_to_end(&mut Vec::new()).ok();
        }
        if rng.one_in(2) {
            SockRef::from(&socket).set_linger(Some(Duration::ZERO)).ok();
        }
        drop(socket);
        run.count("vanished clients");
        pause(&mut rng, 60);
    }
}

/// One kind of hostile input. Whatever write it tries to make is to a topic that must never be there.
fn hostile_input(run: &Run, rng: &mut Rng) -> (&'static str, Vec<u8>) {
    let request = |method: &str, target: &str, version: &str, rest: &str| {
        format!("{method} {target} {version}\r\nHost: localhost\r\n{rest}").into_bytes()
    };
    let put = |rest: &str| request("PUT", "/state/hostile", "HTTP/1.1", rest);
    let get = |target: &str| request("GET", target, "HTTP/1.1", "\r\n");
    let sized =
        |body: &[u8]| [put(&format!("Content-Length: {}\r\n\r\n", body.len())), body.to_vec()].concat();
    let smuggled = "0\r\n\r\nPUT /state/hostile HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1";
    match rng.below(19) {
        0 if run.may_spend(0) => ("HTTP/2.0", b"GET / HTTP/2.0\r\n\r\n".to_vec()),
        1 if run.may_spend(1) => {
            let lengths = ["67108865", "99999999999999", "9223372036854775808", "18446744073709551615"];
            ("body over 64 MiB", put(&format!("Content-Length: {}\r\n\r\n1", rng.of(&lengths))))
        }
        2 => {
            let lengths = [
                "-1",
                "+1",
                "1,1",
                "",
                "0x1",
                "1.0",
                "1 1",
                "18446744073709551616",
                "1\r\nContent-Length: 1",
            ];
            ("Content-Length", put(&format!("Content-Length: {}\r\n\r\n1", rng.of(&lengths))))
        }
        3 => {
            let codings =
                ["identity", "gzip, chunked", "xchunked", "chunked, chunked", "chunked\r\nContent-Length: 5"];
            ("Transfer-Encoding", put(&format!("Transfer-Encoding: {}\r\n\r\n{smuggled}", rng.of(&codings))))
        }
        4 => {
            let chunks =
                ["ffffffffffffffff\r\n1", "-1\r\n1", "g\r\n", "1\r\n11\r\n0\r\n\r\n", "1\r\n1", "\r\n\r\n"];
            ("chunks", put(&format!("Transfer-Encoding: chunked\r\n\r\n{}", rng.of(&chunks))))
        }
        5 => ("endless header", put(&format!("X: {}", "x".repeat(rng.below(1 << 20) as usize)))),
        6 => ("10,000 headers", put(&("A: b\r\n".repeat(10_000) + "Content-Length: x\r\n\r\n"))),
        7 => {
            let behind = get("/healthz").repeat(1 + rng.below(20) as usize);
            ("pipelined behind a stream", [get("/events"), behind].concat())
        }
        8 => ("pipelined", get("/healthz").repeat(1 + rng.below(400) as usize)),
        9 => {
            let values = ["a\rb", "a\nb", "a\0b", "\u{e4}", "\u{7f}", "\r\n b"];
            ("header value", put(&format!("X: {}\r\nContent-Length: 1\r\n\r\n1", rng.of(&values))))
        }
        10 => {
            let targets =
                ["/\u{e4}", "/a\rb", "*", "//", "/%00", "/%ff", "/../x", "http://x/state", "", "/a b"];
            ("target", get(rng.of(&targets)))
        }
        11 => ("deep JSON", sized(&b"[".repeat(1_000_000))),
        12 => ("1e999999", sized(b"1e999999")),
        13 => ("not UTF-8", sized(b"\"\xff\xfe\"")),
        14 => ("over --max-body", sized(&b" ".repeat((1 << 20) + 1))),
        15 => ("Expect", put("Content-Length: 2000000\r\nExpect: 100-continue\r\n\r\n")),
        16 => {
            let version = rng.of(&["HTTP/0.9", "HTTP/1.2", "x", "HTTP/1.0"]);
            ("version", request("PUT", "/state/hostile", version, "Content-Length: 1\r\n\r\n1"))
        }
        17 => {
            let method = rng.of(&["get", "CONNECT", "TRACE", "BREW", "\0", "\u{e4}", ""]);
            ("method", request(method, "/state/hostile", "HTTP/1.1", "\r\n"))
        }
        _ => ("random bytes", (0..rng.below(3_000)).map(|_| rng.next() as u8).collect()),
    }
}

/// Sends hostile input; what comes back, if anything, is HTTP.
fn attack(run: &Run, mut rng: Rng) {
    while !run.is_over() {
        let (what, bytes) = hostile_input(run, &mut rng);
        let Ok(mut socket) = run.connect() else { return run.fault("hostile", "cannot connect".into()) };
        // A body that is too long is refused while it is on its way: the write may fail.
        socket.write_all(&bytes).ok();
        if rng.one_in(2) {
            socket.shutdown(Shutdown::Write).ok();
        }
        socket.set_read_timeout(Some(Duration::from_millis(300))).ok();
        let mut answer = Vec::new();
        socket.take(64 << 10).read_to_end(&mut answer).ok();
        if !answer.is_empty() && !answer.starts_with(b"HTTP/") {
            run.fault("hostile", format!("{what} was answered {:?}", String::from_utf8_lossy(&answer)));
        }
        run.count(what);
        pause(&mut rng, 100);
    }
}

/// A head that never comes whole is cut.
fn drip(run: &Run) {
    while !run.is_over() {
        let Ok(mut socket) = run.connect() else { return run.fault("hostile", "cannot connect".into()) };
        socket.write_all(b"GET / HTTP/1.1\r\nX: ").ok();
        let began = Instant::now();
        while !run.is_over() && socket.write_all(b"x").is_ok() {
            sleep(Duration::from_millis(100));
            if began.elapsed() > DEADLINE {
                return run.fault("hostile", "a dripping head was not cut".into());
            }
        }
        run.count("dripping heads");
    }
}

/// The server's process, and what it costs.
struct Process {
    child: Mutex<Child>,
    pid: u32,
    address: SocketAddr,
    /// Lines of its log that say that something panicked.
    panics: Arc<Mutex<Vec<String>>>,
    /// Why clients are gone, as its log says.
    reasons: Arc<Mutex<BTreeMap<String, u64>>>,
    /// `HTTP/2.0` lines that were sent.
    deadlocked: AtomicU64,
}

/// Descriptors, threads, resident KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Size([u64; 3]);

impl Process {
    fn start(binary: &PathBuf) -> Process {
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--heartbeat", "1s", "--retry", "100ms"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| {
            fail(&format!("{}: {error}; `cargo build --release` builds it", binary.display()))
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("text");
        let address = line.trim_end().split('/').nth(2).and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| fail(&format!("the server said {line:?}")));
        let (panics, reasons) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(BTreeMap::new())));
        let (noted, tallied) = (Arc::clone(&panics), Arc::clone(&reasons));
        let log = BufReader::new(child.stderr.take().expect("a pipe"));
        thread::spawn(move || {
            for line in log.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if line.contains("panicked") || line.contains("our own fault") {
                    noted.lock().expect("noting does not panic").push(line);
                } else if let Some((_, reason)) = line.split_once(" events: ") {
                    let mut tallied = tallied.lock().expect("noting does not panic");
                    *tallied.entry(reason.to_owned()).or_default() += 1;
                }
            }
        });
        let pid = child.id();
        Process { child: Mutex::new(child), pid, address, panics, reasons, deadlocked: AtomicU64::new(0) }
    }

    fn has_ended(&self) -> Option<std::process::ExitStatus> {
        self.child.lock().expect("asking does not panic").try_wait().expect("our child")
    }

    fn size(&self) -> Size {
        let entries = |folder| {
            std::fs::read_dir(format!("/proc/{}/{folder}", self.pid))
                .map_or(0, |entries| entries.count() as u64)
        };
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        Size([entries("fd"), entries("task"), resident.unwrap_or(0)])
    }

    /// By name; tiny_http's have the process's.
    fn threads(&self) -> BTreeMap<String, usize> {
        let mut names = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten() {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            *names.entry(name.trim().to_owned()).or_default() += 1;
        }
        names
    }

    fn metric(&self, name: &str) -> u64 {
        let text = Http::open(self.address).and_then(|mut http| http.call("GET", "/metrics", ""));
        let text = text.map(|(_, text)| text).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok())
            .unwrap_or_else(|| fail(&format!("no metric {name} in {text:?}")))
    }

    /// Requests that cost a thread and two descriptors for good.
    fn costly(&self) -> u64 {
        self.metric("statecast_abandoned_requests_total") + self.deadlocked.load(Ordering::Relaxed)
    }

    /// Waits until all clients are gone and what served them has ended; returns the size at last.
    fn settle(&self, fresh: Size) -> (Size, Size) {
        let began = Instant::now();
        loop {
            let costly = self.costly();
            let most = Size([fresh.0[0] + 2 * costly + SLACK, fresh.0[1] + costly + POOL_SLACK, u64::MAX]);
            let clients = self.metric("statecast_clients");
            let size = self.size();
            let is_small = clients == 0 && size.0[0] <= most.0[0] && size.0[1] <= most.0[1];
            if is_small || began.elapsed() > SETTLE {
                return (size, most);
            }
            // Rarely: each look is a connection, and keeps threads of its own.
            sleep(Duration::from_secs(4));
        }
    }
}

const SUBSCRIBERS: &[(Kind, &str)] = &[
    (Kind::Healthy, "/events"),
    (Kind::Healthy, "/events"),
    (Kind::Healthy, "/events/counter-0"),
    (Kind::Healthy, "/events/doc-1"),
    (Kind::Resuming, "/events"),
    (Kind::Resuming, "/events"),
    (Kind::Resuming, "/events/counter-1"),
    (Kind::Resuming, "/events/doc-2"),
    (Kind::Slow, "/events"),
    (Kind::Slow, "/events"),
    (Kind::Slow, "/events/big-0"),
];

/// All of it for so long; at the end every replica is compared.
fn phase(process: &Process, time: Duration, rng: &mut Rng, stage: &dyn Fn(&'static str)) -> io::Result<Run> {
    let run = Run {
        address: process.address,
        stop: AtomicBool::new(false),
        fences: OnceLock::new(),
        counts: Mutex::default(),
        faults: Mutex::default(),
        slowest_us: AtomicU64::new(0),
        costly: [AtomicUsize::new(COSTLY), AtomicUsize::new(COSTLY)],
    };
    let mut http = Http::open(run.address)?;
    http.publish("DELETE", "/state", "")?;
    thread::scope(|scope| {
        let (run, mut fork) = (&run, || Rng(rng.next()));
        let mut load = vec![scope.spawn(move || drip(run))];
        for number in 0..PUBLISHERS {
            let rng = fork();
            load.push(scope.spawn(move || publish(run, number, rng)));
        }
        for attacker in [stall, stall, stall, vanish, vanish, attack, attack, attack] {
            let rng = fork();
            load.push(scope.spawn(move || attacker(run, rng)));
        }
        let follow = |(kind, path): &(Kind, &'static str)| {
            let (kind, path, rng) = (*kind, *path, fork());
            (kind, path, scope.spawn(move || subscribe(run, path, kind, rng)))
        };
        let subscribers: Vec<_> = SUBSCRIBERS.iter().map(follow).collect();
        sleep(time);
        stage("ending the load");
        run.stop.store(true, Ordering::Relaxed);
        for thread in load {
            thread.join().expect("a load does not panic");
        }
        process.deadlocked.fetch_add(run.counted("HTTP/2.0"), Ordering::Relaxed);
        stage("bringing every replica to the fence");
        let mut http = Http::open(run.address)?;
        let mut fence = |path| Ok((path, http.publish("POST", &format!("{path}?event=fence"), "")?));
        let fences = SUBSCRIBERS.iter().map(|(_, path)| fence(*path)).collect::<io::Result<_>>()?;
        run.fences.set(fences).expect("set once");
        for (kind, path, thread) in subscribers {
            match thread.join().expect("a subscriber does not panic") {
                Ok(replica) => compare(run, kind, path, &replica)?,
                Err(error) => run.fault(kind.name(), format!("{path}: {error}")),
            }
        }
        let (_, document) = Http::open(run.address)?.call("GET", "/state", "")?;
        let document: BTreeMap<String, Value> = serde_json::from_str(&document)?;
        for topic in document.keys().filter(|topic| !topic.starts_with(['c', 'd', 'b'])) {
            run.fault("smuggled", format!("a hostile or half request wrote {topic:?}"));
        }
        Ok::<(), io::Error>(())
    })?;
    Ok(run)
}

/// Asks on a connection of its own: a slow subscriber may take longer than an idle connection may.
fn compare(run: &Run, kind: Kind, path: &str, held: &Replica) -> io::Result<()> {
    let (answered, text) = Http::open(run.address)?.call("GET", &path.replace("/events", "/state"), "")?;
    let document = if answered == 404 { Value::Null } else { serde_json::from_str(&text)? };
    if held.document.as_ref() != Some(&document) {
        let held = held.document.clone().unwrap_or_default();
        let lacking = statecast::diff(&held, &document).to_string();
        let start: String = lacking.chars().take(2_000).collect();
        run.fault(kind.name(), format!("{path}: its document lacks this patch: {start}"));
    }
    Ok(())
}

fn fail(text: &str) -> ! {
    eprintln!("soak: {text}");
    std::process::exit(1)
}

struct Options {
    is_cluster: bool,
    seconds: u64,
    seed: u64,
    binary: PathBuf,
}

impl Options {
    fn parse() -> Result<Options, lexopt::Error> {
        use lexopt::prelude::*;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
        let here = std::env::current_exe().expect("a program has a path");
        let binary = here.parent().and_then(std::path::Path::parent).expect("target/release/examples");
        let binary = binary.join("statecast");
        let mut options = Options { is_cluster: false, seconds: 60, seed: now.as_secs(), binary };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Value(word) if word == "cluster" => options.is_cluster = true,
                Long("seconds") => options.seconds = parser.value()?.parse()?,
                Long("seed") => options.seed = parser.value()?.parse()?,
                Long("binary") => options.binary = parser.value()?.into(),
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    let Options { is_cluster, seconds, seed, binary } =
        Options::parse().unwrap_or_else(|error| fail(&error.to_string()));
    if is_cluster {
        return faults_of_a_cluster(seconds, seed);
    }
    println!("soak --seconds {seconds} --seed {seed} --binary {}", binary.display());
    let process = Process::start(&binary);
    let (peak, now_doing) = (Mutex::new(Size::default()), Mutex::new("starting"));
    let warm_up = Duration::from_secs((seconds / 4).clamp(5, 20));
    let limit = Instant::now() + warm_up + Duration::from_secs(seconds) + 2 * SETTLE + 6 * DEADLINE;
    let is_done = AtomicBool::new(false);
    let passed = thread::scope(|scope| {
        // The watchdog: a hang, and a server that ended, both end in a message.
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let stage = *now_doing.lock().expect("naming does not panic");
                if let Some(status) = process.has_ended() {
                    fail(&format!("the server ended with {status} while {stage}: {:?}", process.panics));
                }
                if Instant::now() > limit {
                    process.child.lock().expect("asking does not panic").kill().ok();
                    fail(&format!("a hang while {stage}"));
                }
                let (size, mut peak) = (process.size(), peak.lock().expect("measuring does not panic"));
                (0..3).for_each(|index| peak.0[index] = peak.0[index].max(size.0[index]));
                drop(peak);
                sleep(Duration::from_millis(100));
            }
        });
        let stage = |text| *now_doing.lock().expect("naming does not panic") = text;
        let result = soak(&process, warm_up, Duration::from_secs(seconds), seed, &stage, &peak);
        is_done.store(true, Ordering::Relaxed);
        result
    });
    let mut claims = passed.unwrap_or_else(|error| fail(&format!("while {now_doing:?}: {error}")));
    Command::new("kill").args(["-TERM", &process.pid.to_string()]).status().expect("kill runs");
    let told = Instant::now();
    let ended = loop {
        let status = process.has_ended();
        if status.is_some() || told.elapsed() > DEADLINE {
            break status;
        }
        sleep(Duration::from_millis(20));
    };
    claims.push((
        ended.and_then(|status| status.code()) == Some(0),
        format!("SIGTERM ends it with 0: {ended:?}"),
    ));
    for (is_so, claim) in &claims {
        println!("{} {claim}", if *is_so { "ok    " } else { "FAILED" });
    }
    let failed = claims.iter().filter(|(is_so, _)| !is_so).count();
    if ended.is_none() {
        process.child.lock().expect("asking does not panic").kill().ok();
    }
    println!("{} passed, {failed} failed", claims.len() - failed);
    ExitCode::from(u8::from(failed > 0))
}

#[cfg(feature = "redis")]
fn faults_of_a_cluster(seconds: u64, seed: u64) -> ExitCode {
    println!("soak cluster --seconds {seconds} --seed {seed}");
    faults::run(seconds, seed);
    ExitCode::SUCCESS
}

#[cfg(not(feature = "redis"))]
fn faults_of_a_cluster(_: u64, _: u64) -> ExitCode {
    fail("several servers need --features redis")
}

/// What was found: whether it is so, and what.
type Claims = Vec<(bool, String)>;

fn soak(
    process: &Process,
    warm_up: Duration,
    time: Duration,
    seed: u64,
    stage: &dyn Fn(&'static str),
    peak: &Mutex<Size>,
) -> io::Result<Claims> {
    let mut rng = Rng(seed);
    let fresh = process.size();
    stage("warming up");
    let warm = phase(process, warm_up, &mut rng, stage)?;
    stage("waiting for the clients of the warm-up to be gone");
    let (begin, _) = process.settle(fresh);
    stage("under load");
    let run = phase(process, time, &mut rng, stage)?;
    stage("waiting for the clients to be gone");
    let (end, most) = process.settle(fresh);
    let most_resident = begin.0[2] + RSS_ALLOWANCE_KIB;

    for (what, count) in run.counts.lock().expect("counting does not panic").iter() {
        println!("{what:>26} {count:>10} {:>10.1}/s", *count as f64 / time.as_secs_f64());
    }
    println!("{:>26} {:>10.1} ms", "slowest publish", run.slowest_us.load(Ordering::Relaxed) as f64 / 1e3);
    println!("{:>26} {:>10} {:>10} {:>10} {:>10}", "", "fresh", "begin", "peak", "end");
    let peak = *peak.lock().expect("measuring does not panic");
    for (index, what) in ["descriptors", "threads", "resident KiB"].iter().enumerate() {
        let [fresh, begin, peak, end] = [fresh, begin, peak, end].map(|size| size.0[index]);
        println!("{what:>26} {fresh:>10} {begin:>10} {peak:>10} {end:>10}");
    }
    for name in ["behind", "lagged", "gone", "cut_connections", "rebuilt_listeners", "unfound_sockets"] {
        println!("{name:>26} {:>10}", process.metric(&format!("statecast_{name}_total")));
    }
    println!("{:>26} {:>10}", "costly requests", process.costly());
    println!(
        "{:>26} {:?}",
        "clients are gone because",
        process.reasons.lock().expect("noting does not panic")
    );
    println!("{:>26} {:?}", "threads at the end", process.threads());

    let mut claims = Claims::new();
    let faults = [warm, run].map(|run| run.faults.into_inner().expect("noting does not panic")).concat();
    for (who, claim) in [
        ("publisher", "every publish was answered 200"),
        ("healthy", "healthy subscribers saw each event once, in order, and hold the document"),
        (
            "resuming",
            "resuming subscribers hold the document, with nothing twice and no gap but before an init",
        ),
        ("slow", "slow subscribers were not cut off, and hold the document"),
        ("vanishing", "whoever vanishes could connect before"),
        ("hostile", "hostile input was answered in HTTP or not at all, and dripping heads were cut"),
        ("smuggled", "no hostile or half request was taken for a write"),
    ] {
        let of_it: Vec<&str> =
            faults.iter().filter(|(other, _)| *other == who).map(|(_, text)| &**text).collect();
        claims.push((of_it.is_empty(), format!("{claim} {}", of_it.join("; "))));
    }
    let clients = process.metric("statecast_clients");
    claims.push((clients == 0, format!("no client is left: {clients}")));
    claims.push((
        end.0[0] <= most.0[0],
        format!("descriptors are back: {} of {} at most", end.0[0], most.0[0]),
    ));
    claims.push((end.0[1] <= most.0[1], format!("threads are back: {} of {} at most", end.0[1], most.0[1])));
    claims.push((
        end.0[2] <= most_resident,
        format!("memory is back: {} KiB of {most_resident} at most", end.0[2]),
    ));
    let panics = process.panics.lock().expect("noting does not panic");
    let of_ours = |line: &&String| line.contains(" src/") || line.contains("our own fault");
    let ours: Vec<&String> = panics.iter().filter(of_ours).collect();
    claims.push((
        ours.is_empty(),
        format!("no panic of ours ({} of tiny_http's) {ours:?}", panics.len() - ours.len()),
    ));
    Ok(claims)
}
