//! tiny_http, kept alive: it accepts connections and reads requests, and this makes it go on whatever happens to it.
//!
//! `server` gives it a handler; it calls the handler for each request, one at a time and in order for each
//! connection, many at a time over all. Everything that tiny_http does to a server like ours is cured here and in
//! `socket`; nothing else in the program knows of it. Paths in comments are those of tiny_http 0.12's `src`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tiny_http::{Request, Response, ResponseBox};

use crate::log::Log;
use crate::metrics::Metrics;
use crate::socket::{Sockets, is_listening, stop_listening};
use crate::stream::Wire;

/// Threads that wait for requests: so many at least, and no more than so many, busy ones counted.
const WAITING_THREADS: usize = 8;
const MAX_THREADS: usize = 64;

/// A thread that waited so long in vain ends, if enough others wait.
const WAIT: Duration = Duration::from_secs(30);

/// Requests that one connection may have waiting: behind another request, and behind an open stream.
const MAX_PARKED: usize = 256;
const MAX_PARKED_BEHIND_STREAM: usize = 4;

/// How often the keeper looks after tiny_http, and after connections.
const KEEP: Duration = Duration::from_millis(500);
const REAP: Duration = Duration::from_secs(2);

/// Descriptors that must be free before a new tiny_http is made, or it would end at once.
const SPARE_DESCRIPTORS: usize = 8;

/// What a connection may take its time for.
#[derive(Clone)]
pub(crate) struct Patience {
    /// Until the first request has arrived whole, but for a long body.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// The send buffer asked for; the kernel takes about twice as much memory.
    pub send_buffer: usize,
    /// Data that the peer's machine does not acknowledge for so long ends the connection.
    pub unacknowledged: Duration,
}

/// Answers a request. Returns the turn when the connection goes on; drops it or keeps it to end it.
pub(crate) type Handler = dyn Fn(Request, Turn) -> Option<Turn> + Send + Sync;

/// A listener at work. It stops when told to, and not on drop.
pub(crate) struct Listener {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
}

struct Shared {
    address: SocketAddr,
    /// Ours, and the one that new tiny_http servers are made of.
    listening: TcpListener,
    sockets: Sockets,
    connections: Mutex<HashMap<SocketAddr, State>>,
    current: Mutex<Current>,
    handler: Box<Handler>,
    pokes: Sender<()>,
    threads: AtomicUsize,
    thread_ended: (Mutex<()>, Condvar),
    stopping: AtomicBool,
    patience: Patience,
    log: Log,
    metrics: Arc<Metrics>,
}

/// What one connection is doing. tiny_http does not tell when it is closed: the keeper finds out.
enum State {
    /// Between requests, since.
    Idle(Instant),
    /// A request is being answered; others wait behind it. Its body has until then to arrive.
    Busy { parked: VecDeque<Request>, body_until: Option<Instant> },
    /// A stream is open; requests that came behind it wait for it to end, and are not answered then.
    Streaming { parked: VecDeque<Request> },
    /// We closed it. tiny_http may have read more requests by then, and they are on their way here: a smuggled one
    /// must not run. The cookie tells a new connection from the same address.
    Closed { cookie: Option<u64> },
}

/// The tiny_http server that accepts now, and the descriptor that its accept thread listens on.
struct Current {
    server: Arc<Waiting>,
    descriptor: RawFd,
}

/// A tiny_http server and the threads that wait for its requests. One that has stopped accepting lives on for as
/// long as its connections may send requests: they arrive in its queue.
struct Waiting {
    http: tiny_http::Server,
    /// Held while a request is taken from the queue and placed; who waits for it waits for requests.
    order: Mutex<()>,
    threads: AtomicUsize,
    last_request: Mutex<Instant>,
}

/// What becomes of a request that was taken.
enum Begun {
    Turn(Request, Turn),
    /// It waits behind an earlier one of its connection.
    Parked {
        too_many_from: Option<SocketAddr>,
    },
    /// We closed its connection already.
    AfterTheEnd(Request),
}

impl Listener {
    /// A listener that accepts at `address` and hands each request to `handler`.
    pub fn start(
        address: &[SocketAddr],
        patience: Patience,
        log: Log,
        metrics: Arc<Metrics>,
        handler: Box<Handler>,
    ) -> io::Result<Listener> {
        let listening = listen(address, &patience)?;
        let address = listening.local_addr()?;
        let (pokes, asked) = bounded(16);
        let current = Mutex::new(accept_on(&listening)?);
        let shared = Arc::new(Shared {
            address,
            listening,
            sockets: Sockets::new(address),
            connections: Mutex::default(),
            current,
            handler,
            pokes,
            threads: AtomicUsize::new(0),
            thread_ended: (Mutex::new(()), Condvar::new()),
            stopping: AtomicBool::new(false),
            patience,
            log,
            metrics,
        });
        let server = Arc::clone(&lock(&shared.current).server);
        for _ in 0..WAITING_THREADS {
            shared.spawn_waiting(&server)?;
        }
        let keeper = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("keeper".into()).spawn(move || shared.keep(&asked))?
        };
        Ok(Listener { shared, keeper })
    }

    /// Where it listens; the port is the one that was found if none was asked for.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Accepts nothing more, waits until `deadline` for requests that are being answered, and closes what is open.
    pub fn stop(self, deadline: Instant) {
        let shared = self.shared;
        shared.stopping.store(true, Ordering::Release);
        stop_listening(&shared.listening);
        // The keeper, too, looks up.
        shared.pokes.try_send(()).ok();
        let server = Arc::clone(&lock(&shared.current).server);
        let (ended, changed) = &shared.thread_ended;
        let mut guard = lock(ended);
        while shared.threads.load(Ordering::Acquire) > 0 {
            // One call frees one thread, and which one is chance: those of a replaced server wake up by themselves.
            server.http.unblock();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            guard =
                changed.wait_timeout(guard, left.min(KEEP / 10)).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(guard);
        for peer in shared.sockets.peers() {
            shared.close(peer);
        }
        self.keeper.join().ok();
    }
}

/// A connection's turn: whoever holds it answers, and nobody else writes to that connection. Dropping it closes the
/// connection.
pub(crate) struct Turn {
    shared: Arc<Shared>,
    peer: SocketAddr,
    end: TurnEnd,
}

/// What the end of a turn means for its connection.
#[derive(PartialEq, Eq)]
enum TurnEnd {
    GoOn,
    Close,
    /// Closed already: only the requests that wait are left.
    Closed {
        cookie: Option<u64>,
    },
}

impl Turn {
    /// Who is at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Gives the body so long to arrive, or as long as it likes.
    pub fn set_body_deadline(&self, until: Option<Instant>) {
        if let Some(State::Busy { body_until, .. }) = self.shared.connections().get_mut(&self.peer) {
            *body_until = until;
        }
    }

    /// Reads nothing more from this connection: whoever waits for more of it finds its end.
    pub fn shut_read(&self) {
        if let Some(socket) = self.shared.sockets.find(self.peer) {
            socket.shut_read();
        }
    }

    /// Answers a request that did not get through the door, and closes: nobody knows where the next would begin.
    pub fn refuse(self, request: Request, response: ResponseBox) {
        // What comes of the body meanwhile is read and thrown away, or closing would take our answer along.
        self.set_body_deadline(Some(Instant::now() + self.shared.patience.head));
        dismiss(request, response, &self.shared.metrics);
    }

    /// Makes the connection a stream's: nothing more is read from it, and its writes return at once. The request's
    /// body must have been read.
    pub fn into_stream(self, request: Request) -> StreamWire {
        let mut too_many = false;
        if let Some(state) = self.shared.connections().get_mut(&self.peer)
            && let State::Busy { parked, .. } = state
        {
            too_many = parked.len() > MAX_PARKED_BEHIND_STREAM;
            *state = State::Streaming { parked: std::mem::take(parked) };
        }
        if let Some(socket) = self.shared.sockets.find(self.peer) {
            // tiny_http's reading thread would stay for as long as the stream, with a descriptor (client.rs:75).
            socket.shut_read();
            socket.set_nonblocking();
            self.shared.sockets.pin(self.peer);
        } else {
            // The inherited send timeout bounds what a write can wait.
            self.shared.metrics.unfound_sockets.add(1);
        }
        if too_many {
            self.shared.cut(self.peer);
        }
        StreamWire { writer: Some(request.into_writer()), turn: self }
    }

    /// The next request that this connection sent meanwhile; without one it is idle.
    fn next(mut self) -> Option<(Request, Turn)> {
        let mut connections = self.shared.connections();
        let request = match connections.get_mut(&self.peer) {
            Some(State::Busy { parked, body_until }) => {
                *body_until = None;
                parked.pop_front()
            }
            _ => None,
        };
        if request.is_none() {
            connections.insert(self.peer, State::Idle(Instant::now()));
            self.end = TurnEnd::GoOn;
        }
        drop(connections);
        request.map(|request| (request, self))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let cookie = match self.end {
            TurnEnd::GoOn => return,
            TurnEnd::Closed { cookie } => cookie,
            TurnEnd::Close => self.shared.close(self.peer),
        };
        let state = self.shared.connections().insert(self.peer, State::Closed { cookie });
        if let Some(State::Busy { parked, .. } | State::Streaming { parked }) = state {
            // Not under the lock: dropping a request answers it (request.rs:463), here into a socket that is shut.
            for request in parked {
                dismiss(request, Response::empty(503).boxed(), &self.shared.metrics);
            }
        }
    }
}

/// The writer of an open stream. Dropping it closes the connection.
pub(crate) struct StreamWire {
    /// `None` only while it is dropped.
    writer: Option<Box<dyn Write + Send>>,
    turn: Turn,
}

impl Write for StreamWire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.as_mut().ok_or(ErrorKind::BrokenPipe)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().ok_or(ErrorKind::BrokenPipe)?.flush()
    }
}

impl Wire for StreamWire {
    fn unacknowledged(&self) -> Option<u64> {
        self.turn.shared.sockets.find(self.turn.peer)?.unacknowledged()
    }
}

impl Drop for StreamWire {
    fn drop(&mut self) {
        // The requests that wait behind the stream must find the socket shut, and then the writer free.
        let cookie = self.turn.shared.close(self.turn.peer);
        self.turn.end = TurnEnd::Closed { cookie };
        // Before the number can be used again.
        self.turn.shared.sockets.unpin(self.turn.peer);
        self.writer = None;
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, HashMap<SocketAddr, State>> {
        lock(&self.connections)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Starts a thread that waits for requests, unless there are too many.
    fn spawn_waiting(self: &Arc<Self>, server: &Arc<Waiting>) -> io::Result<()> {
        if self.threads.fetch_add(1, Ordering::AcqRel) >= MAX_THREADS {
            self.threads.fetch_sub(1, Ordering::AcqRel);
            return Ok(());
        }
        server.threads.fetch_add(1, Ordering::AcqRel);
        let (shared, waiting) = (Arc::clone(self), Arc::clone(server));
        let spawned = thread::Builder::new().name("request".into()).spawn(move || {
            shared.wait_for_requests(&waiting);
            drop(waiting);
            shared.threads.fetch_sub(1, Ordering::AcqRel);
            let _guard = lock(&shared.thread_ended.0);
            shared.thread_ended.1.notify_all();
        });
        if spawned.is_err() {
            server.threads.fetch_sub(1, Ordering::AcqRel);
            self.threads.fetch_sub(1, Ordering::AcqRel);
        }
        spawned.map(drop)
    }

    /// Takes requests until there is nothing to wait for. `server.threads` counts those that wait.
    fn wait_for_requests(self: &Arc<Self>, server: &Arc<Waiting>) {
        loop {
            if self.is_stopping() {
                server.threads.fetch_sub(1, Ordering::AcqRel);
                return;
            }
            let begun = {
                // Taken and placed in one step: two requests of one connection must not overtake each other.
                let _order = lock(&server.order);
                server.http.recv_timeout(WAIT).map(|request| request.map(|request| self.begin(request)))
            };
            let others = server.threads.fetch_sub(1, Ordering::AcqRel) - 1;
            match begun {
                Ok(Some(begun)) => {
                    *lock(&server.last_request) = Instant::now();
                    if others == 0
                        && let Err(error) = self.spawn_waiting(server)
                    {
                        self.log.line(|| format!("no thread for requests: {error}"));
                    }
                    self.metrics.requests.add(1);
                    // A panic is a fault of ours; the thread has others to serve.
                    if catch_unwind(AssertUnwindSafe(|| self.serve(begun))).is_err() {
                        self.log.line(|| "a request was not answered: our own fault, see above".into());
                    }
                }
                // The accept thread's last word (lib.rs:277). The keeper sees to it; the queue goes on.
                Err(_) if self.is_stopping() => {}
                Err(error) => self.log.line(|| format!("tiny_http stopped accepting: {error}")),
                Ok(None) if self.is_stopping() || others >= self.needed_by(server) => return,
                Ok(None) => {}
            }
            server.threads.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// How many threads must wait beside the one that asks.
    fn needed_by(&self, server: &Arc<Waiting>) -> usize {
        let is_current = Arc::ptr_eq(&lock(&self.current).server, server);
        // A replaced server is needed while one of its connections may still send.
        let silent = lock(&server.last_request).elapsed() > self.patience.idle + WAIT;
        match (is_current, silent) {
            (true, _) => WAITING_THREADS,
            (false, false) => 1,
            (false, true) => 0,
        }
    }

    fn serve(&self, begun: Begun) {
        match begun {
            Begun::Turn(request, turn) => {
                let mut next = Some((request, turn));
                while let Some((request, turn)) = next {
                    next = (self.handler)(request, turn).and_then(Turn::next);
                }
            }
            Begun::Parked { too_many_from: Some(peer) } => self.cut(peer),
            Begun::Parked { too_many_from: None } => {}
            Begun::AfterTheEnd(request) => dismiss(request, Response::empty(400).boxed(), &self.metrics),
        }
    }

    /// Gives a request its turn, or leaves it to the thread that is answering an earlier one: a writer whose turn it
    /// is not would block (`util/sequential.rs:142`).
    fn begin(self: &Arc<Self>, request: Request) -> Begun {
        let Some(peer) = request.remote_addr().copied() else { return Begun::AfterTheEnd(request) };
        let mut connections = self.connections();
        let is_first = match connections.get_mut(&peer) {
            None => true,
            Some(State::Idle(_)) => false,
            Some(State::Busy { parked, .. }) => return park(request, peer, parked, MAX_PARKED),
            Some(State::Streaming { parked }) => {
                return park(request, peer, parked, MAX_PARKED_BEHIND_STREAM);
            }
            Some(State::Closed { cookie }) => {
                let open = self.sockets.find(peer);
                if open.is_none_or(|socket| socket.cookie() == *cookie) {
                    return Begun::AfterTheEnd(request);
                }
                true
            }
        };
        connections.insert(peer, State::Busy { parked: VecDeque::new(), body_until: None });
        drop(connections);
        if is_first {
            self.pokes.try_send(()).ok();
        }
        Begun::Turn(request, Turn { shared: Arc::clone(self), peer, end: TurnEnd::Close })
    }

    /// Closes a connection, and returns what tells it from another with the same peer.
    fn close(&self, peer: SocketAddr) -> Option<u64> {
        let socket = self.sockets.find(peer)?;
        let cookie = socket.cookie();
        socket.close();
        cookie
    }

    /// Closes a connection that asks for too much; whoever has its turn finds out.
    fn cut(&self, peer: SocketAddr) {
        self.close(peer);
        self.metrics.cut_connections.add(1);
    }

    /// The keeper thread: pokes tiny_http, replaces it when it has stopped accepting, and cuts what takes too long.
    fn keep(self: &Arc<Self>, asked: &Receiver<()>) {
        let mut first_seen = HashMap::new();
        let mut reap_at = Instant::now() + REAP;
        while !self.is_stopping() {
            match asked.recv_timeout(KEEP) {
                Ok(()) | Err(RecvTimeoutError::Timeout) if !self.is_stopping() => self.poke(),
                _ => return,
            }
            let (descriptor, server) = {
                let current = lock(&self.current);
                (current.descriptor, Arc::clone(&current.server))
            };
            if !is_listening(descriptor, self.address) && !self.is_stopping() {
                self.replace();
            } else if server.threads.load(Ordering::Acquire) == 0 {
                // All are busy, and the last one could not start another.
                self.spawn_waiting(&server).ok();
            }
            if Instant::now() >= reap_at {
                self.reap(&mut first_seen);
                reap_at = Instant::now() + REAP;
            }
        }
    }

    /// A connection that ends at once. tiny_http can queue a connection behind busy workers (`util/task_pool.rs:69`),
    /// where it would wait for as long as they are; the worker that takes this one goes on to that one.
    fn poke(&self) {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        TcpStream::connect_timeout(&SocketAddr::new(ip, self.address.port()), KEEP).ok();
    }

    /// A new tiny_http on the same socket. Its accept thread ends for good on any error (lib.rs:275) and panics
    /// when it is out of descriptors or threads (`util/refined_tcp_stream.rs:18`), and closes its listener either way.
    fn replace(self: &Arc<Self>) {
        let spare: io::Result<Vec<_>> = (0..SPARE_DESCRIPTORS).map(|_| self.listening.try_clone()).collect();
        if spare.map(drop).is_err() {
            return;
        }
        // It panics if it cannot start its accept thread (lib.rs:207).
        let new = catch_unwind(AssertUnwindSafe(|| accept_on(&self.listening)));
        match new.unwrap_or_else(|_| Err(io::Error::other("no thread"))) {
            Ok(new) => {
                let server = Arc::clone(&new.server);
                *lock(&self.current) = new;
                self.metrics.rebuilt_listeners.add(1);
                self.log.line(|| "tiny_http had stopped accepting; it accepts again".into());
                self.spawn_waiting(&server).ok();
            }
            Err(error) => {
                self.log.line(|| format!("tiny_http has stopped accepting and does not start: {error}"));
            }
        }
    }

    /// Cuts connections that have sent no whole request, no whole body or nothing at all for too long. tiny_http has
    /// no timeouts, and a receive timeout of the listener's would end its accept thread (lib.rs:275).
    fn reap(&self, first_seen: &mut HashMap<SocketAddr, Instant>) {
        let now = Instant::now();
        let open: HashSet<SocketAddr> = self.sockets.peers().into_iter().collect();
        let mut connections = self.connections();
        let may_be_over = |state: &State| matches!(state, State::Idle(_) | State::Closed { .. });
        connections.retain(|peer, state| !may_be_over(state) || open.contains(peer));
        first_seen.retain(|peer, _| open.contains(peer) && !connections.contains_key(peer));
        let late = |peer: &SocketAddr| match connections.get(peer) {
            None => now - *first_seen.entry(*peer).or_insert(now) > self.patience.head,
            Some(State::Idle(since)) => now - *since > self.patience.idle,
            Some(State::Busy { body_until, .. }) => body_until.is_some_and(|until| now > until),
            Some(State::Streaming { .. } | State::Closed { .. }) => false,
        };
        let late: Vec<SocketAddr> = open.into_iter().filter(late).collect();
        drop(connections);
        for peer in late {
            self.cut(peer);
        }
    }
}

/// A body that tiny_http can be left to drop: it allocates what is unread of it at once (`util/equal_reader.rs:61`),
/// and when that fails, the process ends.
const MAX_DROPPED_BODY: usize = 64 << 20;

/// Answers a request of which nothing more was read, on a connection that will be closed. Blocks until its body has
/// come or its socket is shut.
fn dismiss(request: Request, response: ResponseBox, metrics: &Metrics) {
    if request.body_length().is_some_and(|length| length > MAX_DROPPED_BODY) {
        // Costs its reading thread and two descriptors for good.
        metrics.abandoned_requests.add(1);
        std::mem::forget(request.upgrade("none", response));
    } else {
        request.respond(response).ok();
    }
}

fn park(request: Request, peer: SocketAddr, parked: &mut VecDeque<Request>, most: usize) -> Begun {
    parked.push_back(request);
    Begun::Parked { too_many_from: (parked.len() > most).then_some(peer) }
}

/// A listening socket. On Linux the sockets that it accepts inherit its options.
fn listen(addresses: &[SocketAddr], patience: &Patience) -> io::Result<TcpListener> {
    /// Connections that wait to be accepted; the kernel takes less where its own bound is lower.
    const BACKLOG: i32 = 4_096;
    /// What a write may wait on a socket that could not be made non-blocking.
    const SEND_TIMEOUT: Duration = Duration::from_millis(10);
    let mut failed = ErrorKind::AddrNotAvailable.into();
    for address in addresses {
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        // Without it two equal runs differ by a factor of 3.7.
        socket.set_tcp_nodelay(true)?;
        socket.set_send_buffer_size(patience.send_buffer)?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        let probe =
            TcpKeepalive::new().with_time(patience.unacknowledged).with_interval(patience.unacknowledged / 4);
        socket.set_tcp_keepalive(&probe)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(patience.unacknowledged))?;
        match socket.bind(&(*address).into()).and_then(|()| socket.listen(BACKLOG)) {
            Ok(()) => return Ok(socket.into()),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// A tiny_http server that accepts on a clone of the listener.
fn accept_on(listening: &TcpListener) -> io::Result<Current> {
    let listener = listening.try_clone()?;
    let descriptor = listener.as_raw_fd();
    let http = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
    let server = Waiting {
        http,
        order: Mutex::new(()),
        threads: AtomicUsize::new(0),
        last_request: Mutex::new(Instant::now()),
    };
    Ok(Current { server: Arc::new(server), descriptor })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is never left half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
