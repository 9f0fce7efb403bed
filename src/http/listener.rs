//! tiny_http, kept alive: it accepts connections and reads requests, and this makes it go on whatever happens to it.
//!
//! Calls its handler for each request, one at a time and in order for each connection, many at a time over all. What
//! tiny_http does to a server like ours is cured in this house; nothing else in the program knows of it. Paths in
//! comments are those of tiny_http 0.12's `src`.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tiny_http::Request;

use crate::http::Exchange;
use crate::http::allocator::{self, TINY_HTTP};
use crate::http::keeper::Keeper;
use crate::http::socket::{DEFERS, defer_accept, is_listening, stop_listening};
use crate::http::turn::{Begun, Table, Turn};
use crate::lock::lock;
use crate::log::Log;
use crate::metrics::Metrics;

/// Threads for requests that wait at least: one takes a request, and the other is there for the next. More come as they
/// are needed.
const WAITING_THREADS: usize = 2;

/// How long the thread whose turn it is waits for a request before it looks how many others do; and when those are more
/// than needed, before it ends.
const WAIT: Duration = Duration::from_secs(2);
const WAIT_OF_MANY: Duration = Duration::from_millis(100);

/// Requests of a crowd that are taken at once.
const TAKEN_AT_ONCE: usize = 16;

/// How often a stopping listener lets a thread look up.
const STOP: Duration = Duration::from_millis(50);

/// Descriptors and threads that must be free before a new tiny_http is made, or it would end at once. Its own threads
/// are five, and live on for 5 s when it ends (`util/task_pool.rs:103`).
const SPARE: usize = 8;

/// A replaced tiny_http gets no request for so long beyond the time of an idle connection, and is let go.
const QUIET: Duration = Duration::from_secs(10);

/// What connections may take.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Until a request has arrived whole, but for a long body.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// Without progress on writing an answer.
    pub write: Duration,
    /// After so long without a word the peer's machine is asked whether it is there.
    pub unacknowledged: Duration,
    /// The send buffer asked for; the kernel takes about twice as much memory.
    pub send_buffer: usize,
    /// Requests that are answered at once.
    pub requests: usize,
}

impl Limits {
    /// How many request threads may wait for slow peers at once. The others serve the rest.
    pub fn slow(&self) -> usize {
        self.requests / 2
    }
}

/// Answers a request.
pub(super) type Handler = dyn Fn(Exchange) + Send + Sync;

/// A listener at work. It stops when told to, and not on drop.
pub(crate) struct Listener {
    shared: Arc<Core>,
    keeper: Option<JoinHandle<()>>,
}

pub(super) struct Core {
    pub address: SocketAddr,
    /// Ours, and the one that new tiny_http servers are made of.
    listening: TcpListener,
    pub table: Arc<Table>,
    /// How long the kernel keeps a silent connection to itself.
    pub deferred: Duration,
    current: Mutex<Arc<Intake>>,
    handler: Box<Handler>,
    /// Wakes the keeper.
    bell: Sender<()>,
    /// Threads for requests.
    threads: AtomicUsize,
    thread_ended: (Mutex<()>, Condvar),
    stopping: AtomicBool,
    pub log: Log,
    pub metrics: Arc<Metrics>,
}

/// A tiny_http server, with the threads that wait for its requests.
pub(super) struct Intake {
    http: tiny_http::Server,
    /// What its accept thread listens on, for as long as that thread lives.
    descriptor: RawFd,
    /// Requests that were taken from the queue, placed, and not begun. Held while one is taken; who waits for it waits
    /// for requests.
    taken: Mutex<VecDeque<Begun>>,
    /// Threads that wait.
    waiting: AtomicUsize,
    last_request: Mutex<Instant>,
    /// Another one accepts by now. Connections of this one may still send requests, which arrive in its queue.
    is_replaced: AtomicBool,
}

impl Listener {
    /// See [`listen`](super::listen).
    pub(super) fn start(
        addresses: &[SocketAddr],
        limits: &Limits,
        log: Log,
        metrics: Arc<Metrics>,
        handler: Box<Handler>,
    ) -> io::Result<Listener> {
        let deferred = deferral(limits.head);
        let listening = bind(addresses, limits, deferred)?;
        let address = listening.local_addr()?;
        let table = Arc::new(Table::new(address, limits.clone(), Arc::clone(&metrics))?);
        let (bell, rung) = bounded(1);
        let (intake, heads_are_bounded) = Intake::start(&listening)?;
        if !heads_are_bounded {
            log.line(|| "heads are not bounded: tiny_http's threads cannot be told from others here".into());
        }
        let shared = Arc::new(Core {
            address,
            listening,
            table,
            deferred,
            current: Mutex::new(Arc::new(intake)),
            handler,
            bell,
            threads: AtomicUsize::new(0),
            thread_ended: (Mutex::new(()), Condvar::new()),
            stopping: AtomicBool::new(false),
            log,
            metrics,
        });
        let mut listener = Listener { shared, keeper: None };
        match listener.start_threads(rung) {
            Ok(()) => Ok(listener),
            Err(error) => {
                listener.stop(Instant::now() + WAIT);
                Err(error)
            }
        }
    }

    fn start_threads(&mut self, rung: Receiver<()>) -> io::Result<()> {
        let intake = self.shared.current();
        for _ in 0..WAITING_THREADS {
            self.shared.spawn_waiting(&intake)?;
        }
        let keeper = Keeper::new(Arc::clone(&self.shared));
        let keeper = thread::Builder::new().name("keeper".into()).spawn(move || keeper.run(&rung))?;
        self.keeper = Some(keeper);
        Ok(())
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
        shared.ring();
        let current = shared.current();
        let (ended, changed) = &shared.thread_ended;
        let mut guard = lock(ended);
        while shared.threads.load(Ordering::Acquire) > 0 {
            // One call frees one thread.
            current.http.unblock();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            guard = changed.wait_timeout(guard, left.min(STOP)).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(guard);
        shared.table.close_all();
        // Left to tiny_http, a request is answered as it is dropped, body and date and all. Whoever holds the lock waits
        // for a request, and has left none.
        let taken = current.taken.try_lock().map(|mut taken| std::mem::take(&mut *taken));
        for begun in taken.unwrap_or_default() {
            if let Begun::Turn { request, .. } | Begun::Late(request) = begun {
                drop(shared.table.dismiss(request));
            }
        }
        while let Ok(Some(request)) = current.http.try_recv() {
            drop(shared.table.dismiss(request));
        }
        if let Some(keeper) = self.keeper {
            keeper.join().ok();
        }
    }
}

impl Core {
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The tiny_http that accepts.
    pub fn current(&self) -> Arc<Intake> {
        Arc::clone(&lock(&self.current))
    }

    fn ring(&self) {
        // Full: it rings already.
        self.bell.try_send(()).ok();
    }

    /// Starts a thread that waits for requests, unless there are too many.
    pub fn spawn_waiting(self: &Arc<Self>, intake: &Arc<Intake>) -> io::Result<()> {
        if self.threads.fetch_add(1, Ordering::AcqRel) >= self.table.limits.requests {
            self.threads.fetch_sub(1, Ordering::AcqRel);
            return Ok(());
        }
        intake.waiting.fetch_add(1, Ordering::AcqRel);
        let (shared, its_intake) = (Arc::clone(self), Arc::clone(intake));
        let spawned = thread::Builder::new().name("request".into()).spawn(move || {
            shared.wait_for_requests(&its_intake);
            // The last one lets go of tiny_http.
            drop(its_intake);
            shared.threads.fetch_sub(1, Ordering::AcqRel);
            let _guard = lock(&shared.thread_ended.0);
            shared.thread_ended.1.notify_all();
        });
        if spawned.is_err() {
            intake.waiting.fetch_sub(1, Ordering::AcqRel);
            self.threads.fetch_sub(1, Ordering::AcqRel);
        }
        spawned.map(drop)
    }

    /// Takes requests until there is nothing to wait for. `waiting` counts this thread when it comes in.
    fn wait_for_requests(self: &Arc<Self>, intake: &Arc<Intake>) {
        while !self.is_stopping() && !intake.is_quiet(self.table.limits.idle) {
            let taken = intake.take(|request| self.begin(intake, request));
            let others = intake.waiting.fetch_sub(1, Ordering::AcqRel) - 1;
            match taken {
                Ok(Some(begun)) => {
                    if others == 0
                        && let Err(error) = self.spawn_waiting(intake)
                    {
                        self.log.line(|| format!("no thread for requests: {error}"));
                    }
                    self.serve(begun);
                }
                Err(_) if self.is_stopping() => return,
                // The accept thread's last word (lib.rs:277). The keeper sees to it; the queue goes on.
                Err(error) => self.log.line(|| format!("tiny_http stopped accepting: {error}")),
                Ok(None) if others >= WAITING_THREADS => return,
                Ok(None) => {}
            }
            intake.waiting.fetch_add(1, Ordering::AcqRel);
        }
        intake.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    fn begin(&self, intake: &Intake, request: Request) -> Begun {
        *lock(&intake.last_request) = Instant::now();
        self.metrics.requests.add(1);
        self.table.begin(request)
    }

    fn serve(&self, begun: Begun) {
        match begun {
            Begun::Turn { request, turn, is_first } => {
                if is_first {
                    self.ring();
                }
                // A panic is a fault of ours; the thread has others to serve.
                let answered = catch_unwind(AssertUnwindSafe(|| {
                    let mut next = Some((request, turn));
                    while let Some((request, turn)) = next {
                        let mut given_back = None;
                        let exchange =
                            Exchange::begin(request, turn, (&self.metrics, &self.log), &mut given_back);
                        if let Some(exchange) = exchange {
                            (self.handler)(exchange);
                        }
                        next = given_back.and_then(Turn::next);
                    }
                }));
                if answered.is_err() {
                    self.log.line(|| "a request was not answered: our own fault, see above".into());
                }
            }
            Begun::Parked => {}
            Begun::TooMany(connection) => self.table.close_asking_too_much(&connection),
            Begun::Late(request) => drop(self.table.dismiss(request)),
        }
    }

    /// A new tiny_http on the same socket. Its accept thread ends for good on any error (lib.rs:275) and panics
    /// when it is out of descriptors or threads (`util/refined_tcp_stream.rs:18`), and closes its listener either way.
    pub fn replace(self: &Arc<Self>, old: &Intake) {
        match Intake::start(&self.listening) {
            Ok((new, _)) => {
                *lock(&self.current) = Arc::new(new);
                old.is_replaced.store(true, Ordering::Release);
                self.metrics.rebuilt_listeners.add(1);
                self.log.line(|| "tiny_http had stopped accepting; it accepts again".into());
                let intake = self.current();
                for _ in 0..WAITING_THREADS {
                    // Without one, the keeper tries again.
                    self.spawn_waiting(&intake).ok();
                }
            }
            Err(error) => {
                self.log.line(|| format!("tiny_http has stopped accepting and does not start: {error}"));
            }
        }
    }

    /// Whether a new tiny_http would have what it needs.
    pub fn has_spare(&self) -> bool {
        let descriptors: io::Result<Vec<_>> = (0..SPARE).map(|_| self.listening.try_clone()).collect();
        let gate = Mutex::new(());
        let threads = thread::scope(|scope| {
            // All of them at once, or they would take turns in one place.
            let closed = lock(&gate);
            let all =
                (0..SPARE).all(|_| thread::Builder::new().spawn_scoped(scope, || drop(lock(&gate))).is_ok());
            drop(closed);
            all
        });
        descriptors.is_ok() && threads
    }
}

impl Intake {
    /// A tiny_http that accepts on a clone of the listener; and whether its heads are bounded.
    fn start(listening: &TcpListener) -> io::Result<(Intake, bool)> {
        let listener = listening.try_clone()?;
        let descriptor = listener.as_raw_fd();
        let start = || {
            let heads_are_bounded = allocator::heads_are_bounded();
            let http = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
            Ok((http, heads_are_bounded))
        };
        // Its threads get their name from this one. It panics if it cannot start its accept thread (lib.rs:207).
        let started = thread::Builder::new().name(TINY_HTTP.into()).spawn(start)?.join();
        let (http, heads_are_bounded) = started.unwrap_or_else(|_| Err(io::Error::other("no thread")))?;
        let intake = Intake {
            http,
            descriptor,
            taken: Mutex::default(),
            waiting: AtomicUsize::new(0),
            last_request: Mutex::new(Instant::now()),
            is_replaced: AtomicBool::new(false),
        };
        Ok((intake, heads_are_bounded))
    }

    /// Takes a request and places it, in one step: two requests of one connection must not overtake each other. Of a
    /// crowd it takes several, for whoever comes next.
    fn take(&self, place: impl Fn(Request) -> Begun) -> io::Result<Option<Begun>> {
        let mut taken = lock(&self.taken);
        if let Some(begun) = taken.pop_front() {
            return Ok(Some(begun));
        }
        let is_many = self.waiting.load(Ordering::Acquire) > WAITING_THREADS;
        let looks_up_often = is_many || self.is_replaced.load(Ordering::Acquire);
        let first = self.http.recv_timeout(if looks_up_often { WAIT_OF_MANY } else { WAIT })?.map(&place);
        while first.is_some()
            && taken.len() < TAKEN_AT_ONCE
            && let Ok(Some(request)) = self.http.try_recv()
        {
            taken.push_back(place(request));
        }
        Ok(first)
    }

    /// Whether nobody waits for its requests.
    pub fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }

    /// Whether its accept thread lives.
    pub fn is_accepting(&self, address: SocketAddr) -> bool {
        is_listening(self.descriptor, address)
    }

    /// Whether it was replaced, and none of its connections can be alive.
    fn is_quiet(&self, idle: Duration) -> bool {
        self.is_replaced.load(Ordering::Acquire) && lock(&self.last_request).elapsed() > idle + QUIET
    }
}

/// How long the kernel keeps a silent connection to itself: it doubles the time between its tries, from one second on.
fn deferral(head: Duration) -> Duration {
    let steps = [7, 3, 1, 0].map(Duration::from_secs);
    let fits = |step: &Duration| DEFERS && *step <= head;
    steps.into_iter().find(fits).unwrap_or_default()
}

/// A listening socket. On Linux the sockets that it accepts inherit its options.
fn bind(addresses: &[SocketAddr], limits: &Limits, deferred: Duration) -> io::Result<TcpListener> {
    let mut failed = ErrorKind::AddrNotAvailable.into();
    for address in addresses {
        match bind_one(*address, limits, deferred) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn bind_one(address: SocketAddr, limits: &Limits, deferred: Duration) -> io::Result<TcpListener> {
    /// Connections that wait to be accepted; the kernel takes less where its own bound is lower.
    const BACKLOG: i32 = 4_096;
    /// What a peer may have sent that nobody has read: enough for a body, and a bound for a header without end.
    const RECEIVE_BUFFER: usize = 256 << 10;
    /// What a write may wait on a socket that could not be made non-blocking.
    const SEND_TIMEOUT: Duration = Duration::from_millis(10);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Without it two equal runs differ by a factor of 3.7.
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(limits.send_buffer)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    // Not TCP_USER_TIMEOUT: it also ends connections of peers that read all the time, but slowly and through a
    // small window (Linux, tcp_timer.c: the probe timer).
    let probe = TcpKeepalive::new().with_time(limits.unacknowledged).with_interval(limits.unacknowledged / 4);
    socket.set_tcp_keepalive(&probe)?;
    defer_accept(&socket, deferred)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Holds a port that nobody listens at until it is dropped: connecting is refused, and nobody else is given the port,
/// neither a server that asks for any port nor a client, which could find itself at the other end.
pub(crate) fn hold(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Answer;
    use socket2::SockRef;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    impl Limits {
        pub fn all(time: Duration) -> Limits {
            let (head, idle, write, unacknowledged) = (time, time, time, time);
            Limits { head, idle, write, unacknowledged, send_buffer: 64 << 10, requests: 8 }
        }
    }

    #[test]
    fn a_replaced_tiny_http_gets_no_more_threads_than_there_may_be() {
        const MOST: usize = 3;
        let limits = Limits { requests: MOST, ..Limits::all(Duration::from_secs(30)) };
        let (enter, entered) = bounded(100);
        let (open, gate) = bounded::<()>(0);
        let handler = move |exchange: Exchange| {
            if exchange.call().path == "/slow" {
                enter.send(()).unwrap();
                gate.recv().ok();
            }
            exchange.answer(Answer::empty(204));
        };
        let address = [SocketAddr::from(([127, 0, 0, 1], 0))];
        let listener = Listener::start(&address, &limits, Log::silent(), Arc::default(), Box::new(handler));
        let listener = listener.unwrap();
        let ask = |connection: &mut TcpStream, path: &str| {
            write!(connection, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        };
        let is_answered = |connection: &mut TcpStream| {
            connection.set_read_timeout(Some(limits.head)).unwrap();
            let mut answer = [0; 12];
            connection.read_exact(&mut answer).unwrap();
            answer == *b"HTTP/1.1 204"
        };
        let mut connections: Vec<TcpStream> = Vec::new();
        for _ in 0..12 {
            let mut connection = TcpStream::connect(listener.address()).unwrap();
            ask(&mut connection, "/");
            assert!(is_answered(&mut connection));
            while !connection.read(&mut [0; 512]).is_ok_and(|count| count < 512) {}
            connections.push(connection);
        }
        let old = listener.shared.current();
        listener.shared.replace(&old);
        for connection in &mut connections {
            ask(connection, "/slow");
        }
        for _ in 0..MOST - WAITING_THREADS {
            entered.recv_timeout(limits.head).expect("they are taken from the old one's queue");
        }
        for _ in 0..12 {
            listener.shared.spawn_waiting(&old).unwrap();
            assert!(listener.shared.threads.load(Ordering::Acquire) <= MOST);
        }
        drop(open);
        assert!(connections.iter_mut().all(is_answered));
        listener.stop(Instant::now());
    }

    #[test]
    fn accepted_sockets_inherit_the_listeners_options() {
        let limits = Limits::all(Duration::from_secs(10));
        let listener = bind(&[SocketAddr::from(([127, 0, 0, 1], 0))], &limits, Duration::ZERO).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert!(socket.write_timeout().unwrap().is_some());
        assert_eq!(
            socket.send_buffer_size().unwrap(),
            2 * limits.send_buffer,
            "the kernel takes twice as much"
        );
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }
}
