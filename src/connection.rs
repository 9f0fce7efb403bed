//! Connections: whose turn it is to be answered, and who has taken too long.
//!
//! tiny_http hands over requests, not connections; this keeps what belongs to one together. `listener` brings each
//! request here, in the order it came; `server` gets it with a `Turn`. The one rule: one request of a connection is
//! answered at a time, in order, and those behind it wait here without a thread.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tiny_http::{Header, Request, Response, ResponseBox};

use crate::allocator::is_anybody_sleeping;
use crate::door::has_body_to_come;
use crate::lock::lock;
use crate::metrics::Metrics;
use crate::socket::{Identity, Socket, Sockets};
use crate::stream::Wire;

/// Requests that may wait: behind another one of the same connection, and behind an open stream.
const MAX_PARKED: usize = 1_024;
const MAX_PARKED_BEHIND_STREAM: usize = 4;
/// What all that wait may take in memory: a head can have a quarter of a megabyte.
const MAX_PARKED_BYTES: usize = 16 << 20;
/// What each takes, or a little more, beside its head.
const REQUEST: usize = 1_024;

/// What is read and thrown away behind a refusal, so that closing does not take it along.
const DRAIN: Duration = Duration::from_secs(2);

/// What a connection may take its time for.
#[derive(Clone)]
pub(crate) struct Patience {
    /// Until a request has arrived whole, but for a long body.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// How many request threads may wait for slow peers at once; the others serve the rest.
    pub slow: usize,
}

/// Every connection that has sent a request and may send more.
pub(crate) struct Connections {
    sockets: Sockets,
    open: Mutex<HashMap<SocketAddr, Arc<Connection>>>,
    /// Since when a head has been on its way.
    heads: Mutex<HashMap<Identity, Instant>>,
    parked_bytes: AtomicUsize,
    slow: AtomicUsize,
    /// Cut by the keeper, and not let go by tiny_http when last looked at.
    cut: Mutex<HashSet<Identity>>,
    patience: Patience,
    metrics: Arc<Metrics>,
}

struct Connection {
    peer: SocketAddr,
    /// `None` where the socket was not found: its connection has ended already, or descriptors are out.
    identity: Option<Identity>,
    state: Mutex<State>,
}

struct State {
    doing: Doing,
    /// Requests that came meanwhile.
    parked: VecDeque<Parked>,
}

enum Parked {
    Request(Request),
    /// One that is not going to be answered, and of which the place in the order is left: dropped before its turn, it
    /// would let tiny_http's own answer to the next one into the middle of this one's (`util/sequential.rs:161`).
    Spent {
        _writer: Box<dyn Write + Send>,
    },
}

impl Parked {
    /// Of a request whose body tiny_http reads only when it is dropped nothing can be thrown away.
    fn spent(request: Request) -> Parked {
        if has_body_to_come(&request) {
            Parked::Request(request)
        } else {
            Parked::Spent { _writer: request.into_writer() }
        }
    }

    fn weight(&self) -> usize {
        match self {
            Parked::Request(request) => weight(request),
            Parked::Spent { .. } => REQUEST,
        }
    }
}

enum Doing {
    /// Between requests, since.
    Idle(Instant),
    /// A request is being answered. Its body has until then to arrive.
    Busy { body_until: Option<Instant> },
    /// A stream is open. What came behind it is not answered before it ends, and it ends with the connection.
    Streaming,
    /// We closed it then. tiny_http may have read more requests by that time, and they are on their way here: a
    /// smuggled one must not run.
    Closed(Instant),
}

/// What the keeper found when it looked at all connections.
pub(crate) struct Reaped {
    /// Connections that have gone since the last time.
    pub gone: usize,
    /// Connections that have sent something which nobody has read.
    pub stranded: usize,
}

/// What becomes of a request that was taken.
pub(crate) enum Begun {
    Turn {
        request: Request,
        turn: Turn,
        is_first: bool,
    },
    /// It waits behind an earlier one of its connection, which has too many waiting or has not.
    Parked {
        too_many: Option<Turnless>,
    },
    /// We closed its connection already.
    AfterTheEnd(Request),
}

/// A connection somebody else has the turn of.
pub(crate) struct Turnless(Arc<Connection>);

impl Connections {
    /// The connections to the listener at `address`.
    pub fn new(address: SocketAddr, patience: Patience, metrics: Arc<Metrics>) -> Connections {
        Connections {
            sockets: Sockets::new(address),
            open: Mutex::default(),
            heads: Mutex::default(),
            parked_bytes: AtomicUsize::new(0),
            slow: AtomicUsize::new(0),
            cut: Mutex::default(),
            patience,
            metrics,
        }
    }

    /// How long connections are waited for.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Gives a request its turn, or leaves it to the thread that is answering an earlier one: a writer whose turn it
    /// is not would block (`util/sequential.rs:142`). Must be called in the order in which requests were taken.
    pub fn begin(self: &Arc<Self>, request: Request) -> Begun {
        let Some(peer) = request.remote_addr().copied() else { return Begun::AfterTheEnd(request) };
        let mut open = lock(&self.open);
        if let Some(connection) = open.get(&peer)
            && self.is_still(connection)
        {
            let mut state = lock(&connection.state);
            let most = match state.doing {
                Doing::Idle(_) => {
                    state.doing = Doing::Busy { body_until: None };
                    let turn = Turn::new(self, connection);
                    return Begun::Turn { request, turn, is_first: false };
                }
                Doing::Closed(_) => return Begun::AfterTheEnd(request),
                Doing::Busy { .. } => MAX_PARKED,
                Doing::Streaming => MAX_PARKED_BEHIND_STREAM,
            };
            let in_all = self.parked_bytes.load(Ordering::Relaxed) + weight(&request);
            let is_too_many = state.parked.len() >= most || in_all > MAX_PARKED_BYTES;
            let is_spent = is_too_many || matches!(state.doing, Doing::Streaming);
            let parked = if is_spent { Parked::spent(request) } else { Parked::Request(request) };
            self.parked_bytes.fetch_add(parked.weight(), Ordering::Relaxed);
            state.parked.push_back(parked);
            return Begun::Parked { too_many: is_too_many.then(|| Turnless(Arc::clone(connection))) };
        }
        let state = State { doing: Doing::Busy { body_until: None }, parked: VecDeque::new() };
        let identity = self.sockets.find(peer);
        let connection = Arc::new(Connection { peer, identity, state: Mutex::new(state) });
        let turn = Turn::new(self, &connection);
        open.insert(peer, connection);
        Begun::Turn { request, turn, is_first: true }
    }

    /// Closes a connection that asks for too much; whoever has its turn finds out.
    pub fn cut(&self, connection: &Turnless) {
        self.metrics.cut_connections.add(1);
        connection.0.close();
    }

    /// Drops a request that came after the end of its connection.
    pub fn drop_late(&self, request: Request) {
        self.dismiss(request, Response::empty(400).boxed());
    }

    /// Closes whatever is open but streams.
    pub fn close_all(&self) {
        for (_, identity) in self.sockets.connections() {
            identity.close();
        }
    }

    /// Cuts connections that have sent no whole request, no whole body or nothing at all for too long. tiny_http has
    /// no timeouts, and a receive timeout of the listener's would end its accept thread (lib.rs:275). `all_busy`:
    /// a request may have arrived and wait for a thread.
    pub fn reap(&self, all_busy: bool) -> Reaped {
        let now = Instant::now();
        let found = self.sockets.connections();
        let identities: HashSet<Identity> = found.iter().map(|(_, identity)| *identity).collect();
        let mut open = lock(&self.open);
        let before = open.len();
        open.retain(|_, connection| {
            let is_over = |since: Instant| {
                let is_open = connection.identity.is_some_and(|identity| identities.contains(&identity));
                // One that was begun since we looked is none of those we saw.
                !is_open && since < now
            };
            match lock(&connection.state).doing {
                Doing::Idle(since) | Doing::Closed(since) => !is_over(since),
                Doing::Busy { .. } | Doing::Streaming => true,
            }
        });
        let mut heads = lock(&self.heads);
        let mut still_reading = HashMap::new();
        let mut late = Vec::new();
        let mut stranded = 0;
        for (peer, identity) in found {
            let connection = open.get(&peer).filter(|connection| match connection.identity {
                Some(known) => known == identity,
                // It was not found when it asked, and is being answered all the same.
                None => matches!(lock(&connection.state).doing, Doing::Busy { .. } | Doing::Streaming),
            });
            let is_late = match connection
                .map(|connection| lock(&connection.state))
                .as_deref()
                .map(|state| &state.doing)
            {
                Some(Doing::Busy { body_until: Some(until) }) => now > *until,
                // A head without end behind a stream, or behind an answer that takes its time, is on its way if
                // some thread sleeps and this connection has more than was read.
                Some(Doing::Busy { body_until: None } | Doing::Streaming)
                    if !is_anybody_sleeping() || !has_unread(identity) =>
                {
                    false
                }
                // It is to be closed for good, if it could not be the first time.
                Some(Doing::Closed(_)) => true,
                Some(Doing::Idle(since)) if now - *since > self.patience.idle => true,
                Some(Doing::Idle(since)) if !has_sent_within(identity, now - *since) => false,
                // A head is on its way, the first one or a later one.
                None | Some(Doing::Busy { .. } | Doing::Idle(_) | Doing::Streaming) => {
                    let since = heads.get(&identity).copied().filter(|_| !all_busy).unwrap_or(now);
                    still_reading.insert(identity, since);
                    now - since > self.patience.head
                }
            };
            stranded += usize::from(connection.is_none() && has_unread(identity));
            if is_late {
                late.push(identity);
            }
        }
        let gone = before - open.len();
        if open.capacity() > 4 * open.len() {
            // A crowd's room goes with it.
            open.shrink_to_fit();
        }
        *heads = still_reading;
        drop(heads);
        drop(open);
        let mut cut = lock(&self.cut);
        // tiny_http lets go of a connection that has ended, but for those on which it has locked itself up
        // (client.rs:234).
        cut.retain(|identity| identity.open().is_some());
        self.metrics.stuck_connections.set(cut.len() as u64);
        for identity in late {
            identity.cut();
            if cut.insert(identity) {
                self.metrics.cut_connections.add(1);
            }
        }
        Reaped { gone, stranded }
    }

    fn is_still(&self, connection: &Connection) -> bool {
        match &connection.identity {
            Some(identity) => self.sockets.is_still(*identity, connection.peer),
            // It was gone before its first request came here, so what is found now is another.
            None => self.sockets.find(connection.peer).is_none(),
        }
    }

    /// Answers a request of which nothing more was read, on a connection that will be closed. Blocks until its body
    /// has come or its socket is shut.
    fn dismiss(&self, request: Request, response: ResponseBox) {
        /// What tiny_http can be left to drop: it allocates what is unread of a body at once
        /// (`util/equal_reader.rs:61`), and when that fails, the process ends.
        const MAX_DROPPED_BODY: usize = 64 << 20;
        if request.body_length().is_some_and(|length| length > MAX_DROPPED_BODY) {
            // Costs its reading thread and two descriptors for good.
            self.metrics.abandoned_requests.add(1);
            std::mem::forget(request.upgrade("none", response));
        } else {
            request.respond(response).ok();
        }
    }
}

impl Connection {
    fn close(&self) {
        if let Some(identity) = self.identity {
            identity.close();
        }
    }
}

/// A connection's turn: whoever holds it answers, and nobody else writes to that connection. Dropping it closes the
/// connection.
pub(crate) struct Turn {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
    /// A stream's writer, as long as it is open.
    writer: Option<Box<dyn Write + Send>>,
    goes_on: bool,
}

impl Turn {
    fn new(connections: &Arc<Connections>, connection: &Arc<Connection>) -> Turn {
        Turn {
            connections: Arc::clone(connections),
            connection: Arc::clone(connection),
            writer: None,
            goes_on: false,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.connection.peer
    }

    /// Gives the body so long to arrive, or as long as it likes.
    pub fn set_body_deadline(&self, until: Option<Instant>) {
        if let Doing::Busy { body_until } = &mut lock(&self.connection.state).doing {
            *body_until = until;
        }
    }

    /// Reads nothing more from this connection: whoever waits for more of it finds its end.
    pub fn shut_read(&self) {
        if let Some(socket) = self.socket() {
            socket.shut_read();
        }
    }

    /// Ends the connection, once what was written has been sent.
    pub fn close(&self) {
        self.connection.close();
    }

    /// Whether the peer has closed its side, or could have: where sockets can be found, one that is not has ended.
    pub fn has_ended(&self) -> bool {
        self.socket().map_or(cfg!(target_os = "linux"), |socket| socket.has_ended())
    }

    /// A place among those that wait for slow peers; none is taken yet.
    pub fn slow_place(&self) -> SlowPlace {
        SlowPlace { connections: Arc::clone(&self.connections), is_taken: false }
    }

    /// Answers a request whose body is not wanted, and closes: nobody knows where the next would begin.
    pub fn refuse(self, request: Request, response: ResponseBox) {
        // What comes of the body meanwhile is read and thrown away, or closing would take our answer along.
        let mut slow = self.slow_place();
        if slow.take() {
            self.set_body_deadline(Some(Instant::now() + DRAIN));
        } else {
            self.shut_read();
        }
        self.connections.dismiss(request, response);
    }

    /// Makes the connection a stream's: nothing more is read from it, and its writes return at once. The request's
    /// body must have been read.
    pub fn into_stream(mut self, request: Request) -> StreamWire {
        let is_too_much = {
            let mut state = lock(&self.connection.state);
            state.doing = Doing::Streaming;
            for parked in std::mem::take(&mut state.parked) {
                let before = parked.weight();
                let parked = match parked {
                    Parked::Request(request) => Parked::spent(request),
                    spent @ Parked::Spent { .. } => spent,
                };
                self.connections.parked_bytes.fetch_sub(before - parked.weight(), Ordering::Relaxed);
                state.parked.push_back(parked);
            }
            state.parked.len() > MAX_PARKED_BEHIND_STREAM
        };
        if let Some(socket) = self.socket() {
            // tiny_http's reading thread would stay for as long as the stream, with a descriptor (client.rs:75).
            socket.shut_read();
            socket.set_nonblocking();
            if is_too_much {
                socket.close();
            }
        } else {
            // The inherited send timeout bounds what a write can wait.
            self.connections.metrics.unfound_sockets.add(1);
        }
        if let Some(identity) = self.connection.identity {
            self.connections.sockets.pin(identity);
        }
        self.writer = Some(request.into_writer());
        StreamWire(self)
    }

    /// The next request that this connection sent meanwhile; without one it is idle.
    pub fn next(mut self) -> Option<(Request, Turn)> {
        let mut state = lock(&self.connection.state);
        while let Some(parked) = state.parked.pop_front() {
            self.connections.parked_bytes.fetch_sub(parked.weight(), Ordering::Relaxed);
            if let Parked::Request(request) = parked {
                state.doing = Doing::Busy { body_until: None };
                drop(state);
                return Some((request, self));
            }
        }
        state.doing = Doing::Idle(Instant::now());
        drop(state);
        self.goes_on = true;
        None
    }

    fn socket(&self) -> Option<Socket> {
        self.connection.identity?.open()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.goes_on {
            return;
        }
        // What waits behind it, here and in tiny_http, must find the socket shut, and then the writer free.
        self.connection.close();
        if self.writer.is_some()
            && let Some(identity) = self.connection.identity
        {
            // Before the number can be used again.
            self.connections.sockets.unpin(identity);
        }
        self.writer = None;
        let parked = {
            let mut state = lock(&self.connection.state);
            state.doing = Doing::Closed(Instant::now());
            std::mem::take(&mut state.parked)
        };
        for parked in parked {
            self.connections.parked_bytes.fetch_sub(parked.weight(), Ordering::Relaxed);
            if let Parked::Request(request) = parked {
                // Not under the lock: it is answered (request.rs:463), here into a socket that is shut.
                self.connections.dismiss(request, Response::empty(503).boxed());
            }
        }
    }
}

/// A place among the threads that wait for slow peers. Given back when dropped.
pub(crate) struct SlowPlace {
    connections: Arc<Connections>,
    is_taken: bool,
}

impl SlowPlace {
    /// Says whether there was one left.
    pub fn take(&mut self) -> bool {
        if !self.is_taken {
            self.is_taken =
                self.connections.slow.fetch_add(1, Ordering::AcqRel) < self.connections.patience.slow;
            if !self.is_taken {
                self.connections.slow.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.is_taken
    }
}

impl Drop for SlowPlace {
    fn drop(&mut self) {
        if self.is_taken {
            self.connections.slow.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The writer of an open stream. Dropping it closes the connection.
pub(crate) struct StreamWire(Turn);

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
        self.0.socket()?.unacknowledged()
    }
}

/// Whether the peer has sent something within that time, and not just the end of the request before.
fn has_sent_within(identity: Identity, ago: Duration) -> bool {
    const MARGIN: Duration = Duration::from_millis(100);
    let last_received = identity.open().and_then(|socket| socket.last_received());
    last_received.is_some_and(|received| received + MARGIN < ago)
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

/// Whether something waits that tiny_http has not read.
fn has_unread(identity: Identity) -> bool {
    identity.open().and_then(|socket| socket.unread()).is_some_and(|count| count > 0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::sync::mpsc;
    use std::thread;

    /// A tiny_http of its own, and the requests that one client has sent.
    fn take(bytes: &str, count: usize) -> (Arc<Connections>, TcpStream, VecDeque<Request>) {
        let http = tiny_http::Server::http("127.0.0.1:0").expect("a free port");
        let address = http.server_addr().to_ip().expect("a port");
        let patience =
            Patience { head: Duration::from_secs(10), idle: Duration::from_secs(10), slow: usize::MAX };
        let connections = Arc::new(Connections::new(address, patience, Arc::default()));
        let mut client = TcpStream::connect(address).expect("it listens");
        client.write_all(bytes.as_bytes()).expect("it reads");
        let requests = (0..count).map(|_| http.recv().expect("it accepts")).collect();
        (connections, client, requests)
    }

    fn begin(connections: &Arc<Connections>, request: Option<Request>) -> (Request, Turn) {
        match connections.begin(request.expect("one was sent")) {
            Begun::Turn { request, turn, is_first: true } => (request, turn),
            _ => panic!("it is the first"),
        }
    }

    #[test]
    fn a_write_to_a_stream_does_not_wait_for_its_reader() {
        // A socket without a send timeout, and nobody reads.
        let (connections, _client, mut requests) = take("GET / HTTP/1.1\r\n\r\n", 1);
        let (request, turn) = begin(&connections, requests.pop_front());
        let mut wire = turn.into_stream(request);
        let (says, failed) = mpsc::channel();
        thread::spawn(move || says.send(wire.write_all(&vec![0; 64 << 20]).map_err(|error| error.kind())));
        assert_eq!(failed.recv_timeout(Duration::from_secs(30)), Ok(Err(ErrorKind::WouldBlock)));
    }

    #[test]
    fn of_what_waits_behind_a_stream_no_head_is_kept() {
        let behind = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(10_000));
        let bytes = format!("GET / HTTP/1.1\r\n\r\n{}", behind.repeat(4));
        let (connections, _client, mut requests) = take(&bytes, 5);
        let held = || connections.parked_bytes.load(Ordering::Relaxed);
        let (request, turn) = begin(&connections, requests.pop_front());
        // Two come before it is a stream, and two after.
        let rest = requests.split_off(2);
        for request in requests {
            assert!(matches!(connections.begin(request), Begun::Parked { too_many: None }));
        }
        assert!(held() > 20_000);
        let wire = turn.into_stream(request);
        assert_eq!(held(), 2 * REQUEST);
        for request in rest {
            assert!(matches!(connections.begin(request), Begun::Parked { too_many: None }));
        }
        assert_eq!(held(), 4 * REQUEST);
        drop(wire);
        assert_eq!(held(), 0);
    }
}
