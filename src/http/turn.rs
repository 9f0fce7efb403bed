//! Turns: one request of a connection is answered at a time, in order, and those behind it wait here without a thread.
//!
//! tiny_http hands over requests, not connections; this keeps what belongs to one together. `listener` brings each
//! request here, in the order it came; `server` gets it with a [`Turn`]; `keeper` goes through the table and closes
//! what takes too long. The one rule: whoever holds the turn writes, and nobody else.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tiny_http::{Header, Request};

use crate::http::body::has_body_to_come;
use crate::http::listener::Limits;
use crate::http::socket::{ARE_FOUND, Identity, Sockets};
use crate::lock::lock;
use crate::metrics::Metrics;
use crate::wire::Wire;

/// Requests that may wait: behind another one of the same connection, and behind an open stream.
const MAX_PARKED: usize = 1_024;
const MAX_PARKED_BEHIND_STREAM: usize = 4;
/// What all that wait may take in memory: a head can have a quarter of a megabyte.
const MAX_PARKED_BYTES: usize = 16 << 20;
/// What each takes, or a little more, beside its head.
const REQUEST: usize = 1_024;

/// What is read and thrown away behind a refusal, so that closing does not take it along.
const DRAIN: Duration = Duration::from_secs(2);
const DISCARD: Duration = Duration::from_millis(20);

/// What tiny_http can be left to drop: it allocates what is unread of a body at once (`util/equal_reader.rs:61`), and
/// when that fails, the process ends.
const MAX_DROPPED_BODY: usize = 64 << 20;

/// Every open connection.
pub(super) struct Table {
    pub sockets: Sockets,
    connections: Mutex<HashMap<SocketAddr, Arc<Connection>>>,
    pub limits: Limits,
    parked_bytes: AtomicUsize,
    slow: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// One of them.
pub(super) struct Connection {
    pub peer: SocketAddr,
    /// `None` where the socket was not found: its connection has ended already.
    pub identity: Option<Identity>,
    pub state: Mutex<Standing>,
}

pub(super) struct Standing {
    pub doing: Doing,
    /// Since when.
    pub since: Instant,
    /// What the keeper saw when it looked last.
    pub seen: Seen,
    /// Requests that came meanwhile.
    parked: VecDeque<Parked>,
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// No request of it has come here yet.
    Arriving,
    /// It is between requests.
    Idle,
    /// A request is being answered. Its body has until then to arrive.
    Answering { body_until: Option<Instant> },
    /// A stream is open. What came behind it is not answered before it ends, and it ends with the connection.
    Streaming,
    /// We closed it. tiny_http may have read more requests by that time, and they are on their way here: a smuggled one
    /// must not run.
    Closed,
}

/// What the keeper remembers of a connection from one look to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Bytes received when it had nothing to say, or was seen for the first time.
    pub received: Option<u64>,
    /// Since when a head has been on its way.
    pub head_since: Option<Instant>,
    /// The keeper has cut it, and counted that.
    pub is_cut: bool,
}

enum Parked {
    Request(Request),
    /// A request that will not be answered. Its writer stays as a placeholder, because tiny_http answers in order: dropped
    /// before its turn, it would let the next answer into the middle of this connection's (`util/sequential.rs:161`).
    Placeholder {
        _writer: Box<dyn Write + Send>,
    },
}

impl Parked {
    /// The placeholder of a request. A body that tiny_http reads only when the request is dropped keeps it whole.
    fn placeholder(request: Request) -> Parked {
        if has_body_to_come(&request) {
            Parked::Request(request)
        } else {
            Parked::Placeholder { _writer: request.into_writer() }
        }
    }

    fn weight(&self) -> usize {
        match self {
            Parked::Request(request) => weight(request),
            Parked::Placeholder { .. } => REQUEST,
        }
    }
}

/// What becomes of a request that was taken.
pub(super) enum Begun {
    Turn {
        request: Request,
        turn: Turn,
        is_first: bool,
    },
    /// It waits behind an earlier one of its connection.
    Parked,
    /// It waits as a placeholder, and its connection has asked for too much.
    TooMany(Arc<Connection>),
    /// We closed its connection already.
    Late(Request),
}

impl Table {
    /// A table of the connections to the listener at `address`.
    pub fn new(address: SocketAddr, limits: Limits, metrics: Arc<Metrics>) -> io::Result<Table> {
        Ok(Table {
            sockets: Sockets::new(address)?,
            connections: Mutex::default(),
            limits,
            parked_bytes: AtomicUsize::new(0),
            slow: AtomicUsize::new(0),
            metrics,
        })
    }

    /// Gives a request its turn, or leaves it to the thread that is answering an earlier one: a writer whose turn it
    /// is not would block (`util/sequential.rs:142`). Must be called in the order in which requests were taken.
    pub fn begin(self: &Arc<Self>, request: Request) -> Begun {
        let Some(peer) = request.remote_addr().copied() else { return Begun::Late(request) };
        let known = |connection: &Connection| self.is_still(connection);
        let connection = entry(&mut lock(&self.connections), peer, known, || self.sockets.find(peer));
        let mut state = lock(&connection.state);
        let most = match state.doing {
            Doing::Arriving | Doing::Idle => {
                let is_first = state.doing == Doing::Arriving;
                state.enter(Doing::Answering { body_until: None });
                return Begun::Turn { request, turn: Turn::new(self, &connection), is_first };
            }
            Doing::Closed => return Begun::Late(request),
            Doing::Answering { .. } => MAX_PARKED,
            Doing::Streaming => MAX_PARKED_BEHIND_STREAM,
        };
        let has_room = self.park(&mut state, request, most);
        drop(state);
        if has_room { Begun::Parked } else { Begun::TooMany(connection) }
    }

    /// All connections that are open and no streams; new ones where they have sent no request yet.
    pub fn open_connections(&self, is_thorough: bool) -> Vec<(Arc<Connection>, Identity)> {
        let found = self.sockets.connections(is_thorough);
        let mut connections = lock(&self.connections);
        let with_identity = |(peer, identity)| {
            let is_it = |connection: &Connection| match connection.identity {
                Some(known) => known == identity,
                // It was not found when it asked, and is being answered all the same.
                None => lock(&connection.state).is_held(),
            };
            (entry(&mut connections, peer, is_it, || Some(identity)), identity)
        };
        found.into_iter().map(with_identity).collect()
    }

    /// Takes connections off the table that have gone since the look at `now`; returns how many.
    pub fn forget_gone(&self, open: &[(Arc<Connection>, Identity)], now: Instant) -> usize {
        let open: HashSet<Identity> = open.iter().map(|(_, identity)| *identity).collect();
        let mut connections = lock(&self.connections);
        let before = connections.len();
        connections.retain(|_, connection| {
            let state = lock(&connection.state);
            let is_open = connection.identity.is_some_and(|identity| open.contains(&identity));
            // A connection that began after this look is not among those that were found.
            is_open || state.is_held() || state.since >= now
        });
        if connections.capacity() > 4 * connections.len() {
            // A crowd's room goes with it.
            connections.shrink_to_fit();
        }
        before - connections.len()
    }

    /// Keeps a request for later; says whether there was room for it.
    fn park(&self, state: &mut Standing, request: Request, most: usize) -> bool {
        let in_all = self.parked_bytes.load(Ordering::Relaxed) + weight(&request);
        let has_room = state.parked.len() < most && in_all <= MAX_PARKED_BYTES;
        let is_for_later = has_room && state.doing != Doing::Streaming;
        let parked = if is_for_later { Parked::Request(request) } else { Parked::placeholder(request) };
        self.parked_bytes.fetch_add(parked.weight(), Ordering::Relaxed);
        state.parked.push_back(parked);
        has_room
    }

    /// Takes the first of what waits.
    fn unpark(&self, state: &mut Standing) -> Option<Parked> {
        let parked = state.parked.pop_front()?;
        self.parked_bytes.fetch_sub(parked.weight(), Ordering::Relaxed);
        Some(parked)
    }

    /// Closes a connection that asks for too much; whoever has its turn finds out.
    pub fn close_asking_too_much(&self, connection: &Connection) {
        self.metrics.cut_connections.add(1);
        self.close(connection);
    }

    /// Closes whatever is open but streams.
    pub fn close_all(&self) {
        for (_, identity) in self.sockets.connections(true) {
            self.sockets.close(identity);
        }
    }

    fn close(&self, connection: &Connection) {
        if let Some(identity) = connection.identity {
            self.sockets.close(identity);
        }
    }

    fn is_still(&self, connection: &Connection) -> bool {
        match connection.identity {
            Some(identity) => self.sockets.is_still(identity, connection.peer),
            // It was gone before its first request came here, so what is found now is another.
            None => self.sockets.find(connection.peer).is_none(),
        }
    }

    /// Lets go of a request that is not answered, on a connection that is closed. What is unread of its body is read, so
    /// this blocks until it has come or its socket is shut. Returns the writer: what waits behind it in tiny_http may write
    /// when it is dropped.
    pub fn dismiss(&self, request: Request) -> Option<Box<dyn Write + Send>> {
        if request.body_length().is_some_and(|length| length > MAX_DROPPED_BODY) {
            // Costs its reading thread and two descriptors for good.
            self.metrics.abandoned_requests.add(1);
            std::mem::forget(request);
            return None;
        }
        Some(request.into_writer())
    }
}

/// The connection from a peer, if there is one and it is the right one; else a new one.
fn entry(
    connections: &mut HashMap<SocketAddr, Arc<Connection>>,
    peer: SocketAddr,
    is_it: impl Fn(&Connection) -> bool,
    identity: impl FnOnce() -> Option<Identity>,
) -> Arc<Connection> {
    if let Some(connection) = connections.get(&peer).filter(|connection| is_it(connection)) {
        return Arc::clone(connection);
    }
    let seen = Seen::default();
    let state = Standing { doing: Doing::Arriving, since: Instant::now(), seen, parked: VecDeque::new() };
    let connection = Arc::new(Connection { peer, identity: identity(), state: Mutex::new(state) });
    connections.insert(peer, Arc::clone(&connection));
    connection
}

impl Standing {
    /// Whether somebody has its turn.
    fn is_held(&self) -> bool {
        matches!(self.doing, Doing::Answering { .. } | Doing::Streaming)
    }

    fn enter(&mut self, doing: Doing) {
        self.doing = doing;
        self.since = Instant::now();
        self.seen = Seen { is_cut: self.seen.is_cut, ..Seen::default() };
    }
}

/// A connection's turn: whoever holds it answers. Dropping it closes the connection.
pub(super) struct Turn {
    table: Arc<Table>,
    connection: Arc<Connection>,
    /// A stream's writer, as long as it is open.
    writer: Option<Box<dyn Write + Send>>,
    goes_on: bool,
}

impl Turn {
    fn new(table: &Arc<Table>, connection: &Arc<Connection>) -> Turn {
        let (table, connection) = (Arc::clone(table), Arc::clone(connection));
        Turn { table, connection, writer: None, goes_on: false }
    }

    /// How long an answer may take without progress.
    pub fn write_patience(&self) -> Duration {
        self.table.limits.write
    }

    /// Who is at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.connection.peer
    }

    /// Gives the body so long to arrive, or as long as it likes.
    pub fn set_body_deadline(&self, until: Option<Instant>) {
        if let Doing::Answering { body_until } = &mut lock(&self.connection.state).doing {
            *body_until = until;
        }
    }

    /// Reads nothing more from this connection: whoever waits for more of it finds its end.
    pub fn shut_read(&self) {
        if let Some(identity) = self.connection.identity {
            self.table.sockets.shut_read(identity);
        }
    }

    /// Ends the connection, once what was written has been sent.
    pub fn close(&self) {
        self.table.close(&self.connection);
    }

    /// Whether the peer has closed its side, or could have: where sockets can be found, one that is not has ended.
    pub fn has_ended(&self) -> bool {
        let facts = self.connection.identity.and_then(Identity::facts);
        facts.map_or(ARE_FOUND, |facts| !facts.is_open)
    }

    /// A place among those that wait for slow peers; none is taken yet.
    pub fn slow_place(&self) -> SlowPlace {
        SlowPlace { table: Arc::clone(&self.table), is_taken: false }
    }

    /// Answers a request whose body is not wanted, and closes: nobody knows where the next would begin.
    pub fn refuse(self, request: Request, answer: &[u8]) {
        // Past tiny_http's writer, which is to be had only when the body has come.
        if let Some(identity) = self.connection.identity {
            self.table.sockets.send(identity, answer);
        }
        // What comes of the body meanwhile is read and thrown away, or closing would take our answer along.
        let mut slow = self.slow_place();
        if slow.take() {
            self.set_body_deadline(Some(Instant::now() + DRAIN));
        } else {
            self.shut_read();
        }
        let mut writer = self.table.dismiss(request);
        if writer.is_none() && slow.is_taken {
            self.discard_for(DRAIN);
        }
        if let (Some(writer), None) = (&mut writer, self.connection.identity) {
            writer.write_all(answer).and_then(|()| writer.flush()).ok();
        }
        // Before the writer is free: tiny_http may have an answer of its own to what follows.
        self.close();
        drop(writer);
    }

    /// Throws away what comes of a body that nobody reads.
    fn discard_for(&self, time: Duration) {
        let Some(identity) = self.connection.identity else { return };
        let until = Instant::now() + time;
        while Instant::now() < until && self.table.sockets.discard(identity) {
            thread::sleep(DISCARD);
        }
    }

    /// Makes the connection a stream's: nothing more is read from it, and its writes return at once. The request's
    /// body must have been read.
    pub fn into_stream(mut self, request: Request) -> StreamWire {
        let asks_too_much = self.keep_placeholders();
        match self.connection.identity {
            // tiny_http's reading thread would stay for as long as the stream, with a descriptor (client.rs:75).
            Some(identity) => self.table.sockets.make_stream(identity),
            // The inherited send timeout bounds what a write can wait.
            None => {
                self.table.metrics.unfound_sockets.add(1);
            }
        }
        if asks_too_much {
            self.table.close(&self.connection);
        }
        self.writer = Some(request.into_writer());
        StreamWire(self)
    }

    /// Keeps no head of what waits behind a stream; says whether that is too much.
    fn keep_placeholders(&self) -> bool {
        let mut state = lock(&self.connection.state);
        state.enter(Doing::Streaming);
        for _ in 0..state.parked.len() {
            let placeholder = match self.table.unpark(&mut state) {
                Some(Parked::Request(request)) => Parked::placeholder(request),
                Some(placeholder) => placeholder,
                None => break,
            };
            self.table.parked_bytes.fetch_add(placeholder.weight(), Ordering::Relaxed);
            state.parked.push_back(placeholder);
        }
        state.parked.len() > MAX_PARKED_BEHIND_STREAM
    }

    /// The next request that this connection sent meanwhile; without one it is idle.
    pub fn next(mut self) -> Option<(Request, Turn)> {
        let connection = Arc::clone(&self.connection);
        let mut state = lock(&connection.state);
        while let Some(parked) = self.table.unpark(&mut state) {
            if let Parked::Request(request) = parked {
                state.enter(Doing::Answering { body_until: None });
                return Some((request, self));
            }
        }
        state.enter(Doing::Idle);
        self.goes_on = true;
        None
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.goes_on {
            return;
        }
        // What waits behind it, here and in tiny_http, must find the socket shut, and then the writer free.
        match (self.connection.identity, &self.writer) {
            (Some(identity), Some(_)) => self.table.sockets.end_stream(identity),
            (Some(identity), None) => self.table.sockets.close(identity),
            (None, _) => {}
        }
        self.writer = None;
        lock(&self.connection.state).enter(Doing::Closed);
        loop {
            let parked = self.table.unpark(&mut lock(&self.connection.state));
            match parked {
                // Not locked meanwhile: its body may have to be read.
                Some(Parked::Request(request)) => drop(self.table.dismiss(request)),
                Some(Parked::Placeholder { .. }) => {}
                None => return,
            }
        }
    }
}

/// A place among the threads that wait for slow peers. Given back when dropped.
pub(super) struct SlowPlace {
    table: Arc<Table>,
    is_taken: bool,
}

impl SlowPlace {
    /// Says whether there was one left.
    pub fn take(&mut self) -> bool {
        if !self.is_taken {
            self.is_taken = self.table.slow.fetch_add(1, Ordering::AcqRel) < self.table.limits.slow();
            if !self.is_taken {
                self.table.slow.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.is_taken
    }
}

impl Drop for SlowPlace {
    fn drop(&mut self) {
        if self.is_taken {
            self.table.slow.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The writer of an open stream. Dropping it closes the connection.
pub(super) struct StreamWire(Turn);

impl Write for StreamWire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.writer.as_mut().ok_or(ErrorKind::BrokenPipe)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.writer.as_mut().ok_or(ErrorKind::BrokenPipe)?.flush()
    }
}

impl Wire for StreamWire {
    fn unacknowledged(&self) -> Option<u64> {
        self.0.connection.identity?.unacknowledged()
    }
}

/// What a request takes in memory while it waits, or a little more.
fn weight(request: &Request) -> usize {
    const HEADER: usize = 128;
    let headers = request.headers().iter();
    let text = |header: &Header| header.field.as_str().len() + header.value.len() + HEADER;
    // tiny_http reads up to so much of a body by itself (request.rs:184).
    let body = request.body_length().unwrap_or(0).min(1_024);
    REQUEST + request.url().len() + headers.map(text).sum::<usize>() + body
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::sync::mpsc;
    use std::thread;

    const TEN: Duration = Duration::from_secs(10);

    /// A tiny_http of its own, and the requests that one client has sent.
    fn take(bytes: &str, count: usize) -> (Arc<Table>, TcpStream, VecDeque<Request>) {
        let http = tiny_http::Server::http("127.0.0.1:0").expect("a free port");
        let address = http.server_addr().to_ip().expect("a port");
        let table = Arc::new(Table::new(address, Limits::all(TEN), Arc::default()).expect("descriptors"));
        let mut client = TcpStream::connect(address).expect("it listens");
        client.write_all(bytes.as_bytes()).expect("it reads");
        let requests = (0..count).map(|_| http.recv().expect("it accepts")).collect();
        (table, client, requests)
    }

    fn begin(table: &Arc<Table>, request: Option<Request>) -> (Request, Turn) {
        match table.begin(request.expect("one was sent")) {
            Begun::Turn { request, turn, is_first: true } => (request, turn),
            _ => panic!("it is the first"),
        }
    }

    #[test]
    fn a_write_to_a_stream_does_not_wait_for_its_reader() {
        // A socket without a send timeout, and nobody reads.
        let (table, _client, mut requests) = take("GET / HTTP/1.1\r\n\r\n", 1);
        let (request, turn) = begin(&table, requests.pop_front());
        let mut wire = turn.into_stream(request);
        let (says, failed) = mpsc::channel();
        thread::spawn(move || says.send(wire.write_all(&vec![0; 64 << 20]).map_err(|error| error.kind())));
        assert_eq!(failed.recv_timeout(Duration::from_secs(30)), Ok(Err(ErrorKind::WouldBlock)));
    }

    #[test]
    fn of_what_waits_behind_a_stream_no_head_is_kept() {
        let behind = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(10_000));
        let bytes = format!("GET / HTTP/1.1\r\n\r\n{}", behind.repeat(4));
        let (table, _client, mut requests) = take(&bytes, 5);
        let held = || table.parked_bytes.load(Ordering::Relaxed);
        let (request, turn) = begin(&table, requests.pop_front());
        // Two come before it is a stream, and two after.
        let rest = requests.split_off(2);
        for request in requests {
            assert!(matches!(table.begin(request), Begun::Parked));
        }
        assert!(held() > 20_000);
        let wire = turn.into_stream(request);
        assert_eq!(held(), 2 * REQUEST);
        for request in rest {
            assert!(matches!(table.begin(request), Begun::Parked));
        }
        assert_eq!(held(), 4 * REQUEST);
        drop(wire);
        assert_eq!(held(), 0);
    }
}
