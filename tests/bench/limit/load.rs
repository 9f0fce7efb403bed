//! The load: subscribers that check every byte, and publishers.
//!
//! `main` lets it loose on a server. One thread reads for all subscribers; each publisher is a thread with one
//! connection, which sends its next event when the last one was taken. The one rule: a number counts only if every
//! subscriber got every event once and in order. To check that at the speed of memory, the first one to get bytes is
//! read as an event stream, and what the others get must be the same bytes.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

/// Longer than anything takes that goes well.
const DEADLINE: Duration = Duration::from_secs(60);

/// How events get to a server, and how its streams look.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Bare,
    Statecast,
    Nchan,
}

impl Dialect {
    /// Where what every subscriber gets alike begins: behind the first of these, and the next empty line.
    fn preamble_end(self) -> &'static [u8] {
        match self {
            Dialect::Bare | Dialect::Statecast => b"event: init\n",
            Dialect::Nchan => b": hi",
        }
    }
}

/// What is published: how much, how fast, to how many topics at once.
#[derive(Clone, Copy)]
pub struct Plan {
    pub publishers: usize,
    /// Bytes of an event's data.
    pub size: usize,
    /// Of each publisher; flat out if none.
    pub per_second: Option<f64>,
    pub time: Duration,
    /// Each event is a patch that names every topic; one topic only is the document's.
    pub topics: usize,
}

/// What came of it.
#[derive(Default)]
pub struct Outcome {
    pub deliveries: u64,
    /// From the first event published to the last one delivered.
    pub time: Duration,
    /// The server's, for all of it. Whoever runs a plan knows it.
    pub cpu: Duration,
    /// Of each delivery, from the time its event was due; in order.
    latencies: Vec<Duration>,
    /// Of each publish, until it was answered; in order.
    answers: Vec<Duration>,
}

impl Outcome {
    /// What came of doing it once more.
    pub fn add(&mut self, again: Outcome) {
        self.deliveries += again.deliveries;
        self.time += again.time;
        self.cpu += again.cpu;
        self.latencies.extend(again.latencies);
        self.latencies.sort_unstable();
        self.answers.extend(again.answers);
        self.answers.sort_unstable();
    }

    /// In microseconds.
    pub fn cpu_per_delivery(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.deliveries as f64
    }

    pub fn latency(&self, quantile: f64) -> Duration {
        at(&self.latencies, quantile)
    }

    pub fn answer(&self, quantile: f64) -> Duration {
        at(&self.answers, quantile)
    }
}

fn at(times: &[Duration], quantile: f64) -> Duration {
    let index = (times.len() as f64 * quantile) as usize;
    times.get(index).or(times.last()).copied().unwrap_or_default()
}

/// Subscribers that are connected and have read as far as the first event that is for all of them.
pub struct Crowd {
    address: SocketAddr,
    /// Where publishers publish, each at the next of them: at the same server, if nobody says something else.
    pub publish_at: Vec<SocketAddr>,
    dialect: Dialect,
    poll: Poll,
    events: Events,
    subscribers: Vec<Subscriber>,
    audiences: Vec<Audience>,
    buffer: Vec<u8>,
    ready: usize,
    ended: usize,
    pub deliveries: u64,
    start: Instant,
    gap: Option<Duration>,
    latencies: Vec<Duration>,
}

/// What all subscribers of one stream get.
#[derive(Default)]
struct Audience {
    bytes: Vec<u8>,
    /// Where each event ends in `bytes`, and its number.
    events: Vec<(usize, u64)>,
    parsed: usize,
    /// The next number of each publisher.
    next: Vec<u64>,
    subscribers: usize,
}

struct Subscriber {
    socket: mio::net::TcpStream,
    audience: usize,
    framing: Framing,
    /// Of the head, then of the bytes before the common ones; `None` behind both.
    preamble: Option<Vec<u8>>,
    /// Its place among its audience's bytes and events.
    place: usize,
    event: usize,
}

enum Framing {
    Head,
    /// The size so far.
    Size(usize),
    /// So many bytes of the chunk are left.
    Chunk(usize),
    /// So many bytes of the line end are left.
    End(usize),
}

impl Crowd {
    pub fn new(address: SocketAddr, dialect: Dialect, topics: usize) -> io::Result<Crowd> {
        Ok(Crowd {
            address,
            publish_at: vec![address],
            dialect,
            poll: Poll::new()?,
            events: Events::with_capacity(1_024),
            subscribers: Vec::new(),
            audiences: (0..topics).map(|_| Audience::default()).collect(),
            buffer: vec![0; 256 << 10],
            ready: 0,
            ended: 0,
            deliveries: 0,
            start: Instant::now(),
            gap: None,
            latencies: Vec::new(),
        })
    }

    /// Connects so many more, at most so many a second, and reads until each has its `init`.
    pub fn connect(&mut self, count: usize, per_second: f64) -> io::Result<()> {
        let start = Instant::now();
        for number in 0..count {
            let due = start + Duration::from_secs_f64(number as f64 / per_second);
            while Instant::now() < due {
                self.read(due.saturating_duration_since(Instant::now()))?;
            }
            self.connect_one()?;
            if number % 16 == 0 {
                self.read(Duration::ZERO)?;
            }
        }
        while self.ready < self.subscribers.len() {
            check(start.elapsed() < DEADLINE, "some subscribers got no init")?;
            self.read(Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn connect_one(&mut self) -> io::Result<()> {
        let audience = self.subscribers.len() % self.audiences.len();
        let path = match (self.dialect, self.audiences.len()) {
            (Dialect::Nchan, _) => "/sub".to_owned(),
            (_, 1) => "/events".to_owned(),
            _ => format!("/events/t{audience}"),
        };
        let mut socket = TcpStream::connect(self.address)?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
        socket.write_all(head.as_bytes())?;
        socket.set_nonblocking(true)?;
        let mut socket = mio::net::TcpStream::from_std(socket);
        let token = Token(self.subscribers.len());
        self.poll.registry().register(&mut socket, token, Interest::READABLE)?;
        let framing = Framing::Head;
        let preamble = Some(Vec::new());
        self.subscribers.push(Subscriber { socket, audience, framing, preamble, place: 0, event: 0 });
        self.audiences[audience].subscribers += 1;
        Ok(())
    }

    /// How many are connected.
    pub fn len(&self) -> usize {
        self.subscribers.len()
    }

    /// Publishes as planned, and reads until everybody has everything.
    pub fn run(&mut self, plan: &Plan) -> io::Result<Outcome> {
        // What came before, a `PUT` that made the document say, is nobody's to miss.
        for audience in &mut self.audiences {
            audience.next = vec![0; plan.publishers];
        }
        self.gap = plan.per_second.map(|rate| Duration::from_secs_f64(1.0 / rate));
        self.start = Instant::now();
        let deliveries_before = self.deliveries;
        let published = AtomicU64::new(0);
        let (publish_at, dialect, start) = (self.publish_at.clone(), self.dialect, self.start);
        let mut answers = Vec::new();
        let per_event: u64 = self.audiences.iter().map(|audience| audience.subscribers as u64).sum();
        thread::scope(|scope| -> io::Result<()> {
            let mut publishers: Vec<_> = (0..plan.publishers)
                .map(|number| {
                    let published = &published;
                    let address = publish_at[number % publish_at.len()];
                    scope.spawn(move || publish(address, dialect, plan, number, start, published))
                })
                .collect();
            let mut last_progress = (Instant::now(), 0);
            loop {
                self.read(Duration::from_millis(10))?;
                let delivered = self.deliveries - deliveries_before;
                if publishers.iter().all(thread::ScopedJoinHandle::is_finished) {
                    for publisher in publishers.drain(..) {
                        answers.extend(publisher.join().expect("a publisher does not panic")?);
                    }
                    if delivered >= published.load(Ordering::Acquire) * per_event {
                        return Ok(());
                    }
                }
                if delivered > last_progress.1 {
                    last_progress = (Instant::now(), delivered);
                }
                check(last_progress.0.elapsed() < DEADLINE, "some events never came")?;
            }
        })?;
        let time = self.start.elapsed();
        let deliveries = self.deliveries - deliveries_before;
        check(deliveries == published.into_inner() * per_event, "more events came than were published")?;
        let mut latencies = std::mem::take(&mut self.latencies);
        latencies.sort_unstable();
        answers.sort_unstable();
        Ok(Outcome { deliveries, time, cpu: Duration::ZERO, latencies, answers })
    }

    /// Reads what has come, once something has or the time is over.
    pub fn read(&mut self, wait: Duration) -> io::Result<()> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        match self.poll.poll(&mut events, Some(wait)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            self.read_from(event.token().0)?;
        }
        self.events = events;
        Ok(())
    }

    fn read_from(&mut self, number: usize) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            match self.subscribers[number].socket.read(&mut buffer) {
                Ok(0) => self.ended += 1,
                Ok(count) => {
                    self.take(number, &buffer[..count])?;
                    // Less than was asked for: nothing is left (epoll(7), question 9).
                    if count == buffer.len() {
                        continue;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            break;
        }
        self.buffer = buffer;
        check(self.ended == 0, "a stream ended")
    }

    /// Takes the chunks apart.
    fn take(&mut self, number: usize, mut bytes: &[u8]) -> io::Result<()> {
        let now = Instant::now();
        while let Some(first) = bytes.first() {
            let subscriber = &mut self.subscribers[number];
            let taken = match &mut subscriber.framing {
                Framing::Head => {
                    let head = subscriber.preamble.as_mut().expect("a head comes first");
                    head.push(*first);
                    if head.ends_with(b"\r\n\r\n") {
                        check(head.starts_with(b"HTTP/1.1 200"), &String::from_utf8_lossy(head))?;
                        let is_chunked = find(head, b"Transfer-Encoding: chunked").is_some();
                        head.clear();
                        // Without chunks the rest is one.
                        let rest = Framing::Chunk(usize::MAX);
                        subscriber.framing = if is_chunked { Framing::Size(0) } else { rest };
                    }
                    1
                }
                Framing::Size(size) => {
                    match char::from(*first).to_digit(16) {
                        Some(digit) => *size = *size * 16 + digit as usize,
                        None if *first == b'\n' => subscriber.framing = Framing::Chunk(*size),
                        None if *first == b'\r' => {}
                        None => {
                            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]);
                            return Err(io::Error::other(format!("no chunk's size: {text:?}")));
                        }
                    }
                    1
                }
                Framing::Chunk(left) => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    if *left == 0 {
                        subscriber.framing = Framing::End(2);
                    }
                    self.deliver(number, &bytes[..taken], now)?;
                    taken
                }
                Framing::End(left) => {
                    *left -= 1;
                    if *left == 0 {
                        subscriber.framing = Framing::Size(0);
                    }
                    1
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Compares with what the others got, and counts what is complete.
    fn deliver(&mut self, number: usize, mut bytes: &[u8], now: Instant) -> io::Result<()> {
        let subscriber = &mut self.subscribers[number];
        if let Some(preamble) = &mut subscriber.preamble {
            let before = preamble.len();
            preamble.extend_from_slice(bytes);
            // Only the head of a large init is looked through again.
            let mark = self.dialect.preamble_end();
            let Some(mark) = preamble.windows(mark.len()).take(4_096).position(|window| window == mark)
            else {
                return Ok(());
            };
            let from = mark.max(before.saturating_sub(1));
            let Some(end) = find(&preamble[from..], b"\n\n").map(|end| from + end + 2) else { return Ok(()) };
            bytes = &bytes[end - before..];
            subscriber.preamble = None;
            self.ready += 1;
            // Nothing is published while somebody connects.
            let audience = &self.audiences[subscriber.audience];
            (subscriber.place, subscriber.event) = (audience.bytes.len(), audience.events.len());
        }
        let audience = &mut self.audiences[subscriber.audience];
        let known = &audience.bytes[subscriber.place..];
        let count = known.len().min(bytes.len());
        check(known[..count] == bytes[..count], "subscribers got different bytes")?;
        if count < bytes.len() {
            audience.bytes.extend_from_slice(&bytes[count..]);
            audience.parse()?;
        }
        subscriber.place += bytes.len();
        while let Some((end, number)) = audience.events.get(subscriber.event)
            && *end <= subscriber.place
        {
            subscriber.event += 1;
            self.deliveries += 1;
            if let Some(gap) = self.gap {
                let due = self.start + gap * *number as u32;
                self.latencies.push(now.saturating_duration_since(due));
            }
        }
        Ok(())
    }
}

impl Audience {
    /// Reads the events that are complete now: each publisher's must come in order, and none twice.
    fn parse(&mut self) -> io::Result<()> {
        while let Some(end) = find(&self.bytes[self.parsed..], b"\n\n") {
            let event = &self.bytes[self.parsed..self.parsed + end];
            let text = find(event, b"@").and_then(|at| std::str::from_utf8(event.get(at + 1..at + 12)?).ok());
            let (publisher, number) = text
                .and_then(|text| text.split_once('.'))
                .and_then(|(publisher, number)| {
                    Some((publisher.parse::<usize>().ok()?, number.parse().ok()?))
                })
                .ok_or_else(|| io::Error::other(format!("no event: {}", String::from_utf8_lossy(event))))?;
            check(self.next.get(publisher) == Some(&number), "an event is missing, doubled or out of order")?;
            self.next[publisher] += 1;
            self.parsed += end + 2;
            self.events.push((self.parsed, number));
        }
        Ok(())
    }
}

/// Sends events over one connection, each when the last one was taken, and counts them. Returns how long each answer
/// took.
fn publish(
    address: SocketAddr,
    dialect: Dialect,
    plan: &Plan,
    publisher: usize,
    start: Instant,
    sent: &AtomicU64,
) -> io::Result<Vec<Duration>> {
    let connection = TcpStream::connect(address)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(DEADLINE))?;
    if dialect == Dialect::Bare {
        (&connection).write_all(b"P")?;
    }
    let mut answers = BufReader::new(&connection);
    let mut times = Vec::new();
    for number in 0u64.. {
        let due = plan.per_second.map_or(start, |rate| start + Duration::from_secs_f64(number as f64 / rate));
        if due.max(Instant::now()).duration_since(start) >= plan.time {
            break;
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
        sent.fetch_add(1, Ordering::AcqRel);
        let begin = Instant::now();
        (&connection).write_all(&message(dialect, plan, publisher, number))?;
        match dialect {
            Dialect::Bare => answers.read_exact(&mut [0])?,
            Dialect::Statecast | Dialect::Nchan => read_answer(&mut answers)?,
        }
        times.push(begin.elapsed());
    }
    Ok(times)
}

/// One event as it goes over the wire to a server.
fn message(dialect: Dialect, plan: &Plan, publisher: usize, number: u64) -> Vec<u8> {
    let mark = format!("@{publisher:02}.{number:08}");
    let text = format!("{mark}{}", "x".repeat(plan.size.saturating_sub(mark.len() + 2)));
    match dialect {
        Dialect::Bare => {
            // The frame that statecast makes of it.
            let frame = format!("id: 1763797512345-0\nevent: update\ndata: {{\"t0\":\"{text}\"}}\n\n");
            let chunk = format!("{:x}\r\n{frame}\r\n", frame.len());
            [&(chunk.len() as u32).to_be_bytes(), chunk.as_bytes()].concat()
        }
        Dialect::Statecast if plan.topics == 1 => request("/state/t0", &format!("\"{text}\"")),
        Dialect::Statecast => {
            let topics: Vec<String> =
                (0..plan.topics).map(|topic| format!("\"t{topic}\":\"{text}\"")).collect();
            request("/state", &format!("{{{}}}", topics.join(",")))
        }
        Dialect::Nchan => request("/pub", &format!("{{\"t0\":\"{text}\"}}")),
    }
}

fn request(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

fn read_answer(answers: &mut impl BufRead) -> io::Result<()> {
    let mut line = String::new();
    answers.read_line(&mut line)?;
    check(line.starts_with("HTTP/1.1 20"), &line)?;
    let mut length = 0;
    while line.trim_end() != "" {
        line.clear();
        answers.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    io::copy(&mut answers.take(length), &mut io::sink()).map(drop)
}

/// Sends one request on a connection of its own, and waits for its answer.
pub fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<()> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(DEADLINE))?;
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    connection.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
    read_answer(&mut BufReader::new(connection))
}

/// How many passes a statecast has made over its clients, and the seconds that they took.
pub fn passes(address: SocketAddr) -> io::Result<(f64, f64)> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(DEADLINE))?;
    connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    connection.read_to_string(&mut text)?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        line.ok_or_else(|| io::Error::other(format!("no {name} in {text}")))
    };
    Ok((value("statecast_pass_seconds_count ")?, value("statecast_pass_seconds_sum ")?))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn check(is_so: bool, otherwise: &str) -> io::Result<()> {
    if is_so { Ok(()) } else { Err(io::Error::other(otherwise.to_owned())) }
}
