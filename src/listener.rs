//! tiny_http, kept alive: it accepts connections and reads requests, and this makes it go on whatever happens to it.
//!
//! `server` gives it a handler; it calls the handler for each request, one at a time and in order for each
//! connection, many at a time over all. What tiny_http does to a server like ours is cured here, in `connection` and
//! in `socket`; nothing else in the program knows of it. Paths in comments are those of tiny_http 0.12's `src`.

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tiny_http::Request;

use crate::allocator;
use crate::connection::{Begun, Connections, Patience, Turn};
use crate::lock::lock;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::socket::{is_listening, stop_listening};

/// Threads for requests that wait at least: one takes a request, and the other is there for the next. More come as they
/// are needed.
const WAITING_THREADS: usize = 2;

/// How long the thread whose turn it is waits for a request before it looks how many others do; and when those are more
/// than needed, before it ends.
const WAIT: Duration = Duration::from_secs(2);
const WAIT_OF_MANY: Duration = Duration::from_millis(100);

/// How often the keeper looks after tiny_http, and after connections.
const KEEP: Duration = Duration::from_millis(500);
const REAP: Duration = Duration::from_secs(2);

/// Descriptors and threads that must be free before a new tiny_http is made, or it would end at once. Its own threads
/// are five, and live on for 5 s when it ends (`util/task_pool.rs:103`).
const SPARE: usize = 8;

/// Pokes at once, for connections that nobody reads: each keeps a thread for 5 s.
const MAX_POKES: usize = 32;

/// When so many connections have gone at once, their memory goes back to the system.
const CROWD: usize = 32;

/// So many times, with `REAP` between: tiny_http's threads end 5 s after their last connection, with memory of their
/// own (`util/task_pool.rs:103`).
const TRIMS: usize = 5;

/// How often the queues of tiny_http servers that were replaced are looked at.
const RETIRED: Duration = Duration::from_millis(10);

/// What the sockets of a listener inherit.
#[derive(Clone)]
pub(crate) struct SocketOptions {
    /// The send buffer asked for; the kernel takes about twice as much memory.
    pub send_buffer: usize,
    /// After so long without a word the peer's machine is asked whether it is there.
    pub unacknowledged: Duration,
}

/// Answers a request. Returns the turn when the connection goes on; drops it or keeps it to end it. The turn comes
/// first, so that a panic drops it last.
pub(crate) type Handler = dyn Fn(Turn, Request) -> Option<Turn> + Send + Sync;

/// A listener at work. It stops when told to, and not on drop.
pub(crate) struct Listener {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
}

struct Shared {
    address: SocketAddr,
    /// Ours, and the one that new tiny_http servers are made of.
    listening: TcpListener,
    connections: Arc<Connections>,
    current: Mutex<Arc<Accepting>>,
    /// Replaced, but their connections may still send requests, which arrive in their queues.
    retired: Mutex<Vec<Arc<Accepting>>>,
    handler: Box<Handler>,
    pokes: Sender<()>,
    /// Threads for requests, how many there may be, and how many of them wait.
    threads: AtomicUsize,
    max_threads: usize,
    waiting: AtomicUsize,
    thread_ended: (Mutex<()>, Condvar),
    stopping: AtomicBool,
    log: Log,
    metrics: Arc<Metrics>,
}

/// A tiny_http server.
struct Accepting {
    http: tiny_http::Server,
    /// What its accept thread listens on, for as long as that thread lives.
    descriptor: RawFd,
    /// Held while a request is taken from the queue and placed; who waits for it waits for requests.
    order: Mutex<()>,
    last_request: Mutex<Instant>,
}

impl Listener {
    /// A listener that accepts at one of these addresses and hands each request to `handler`, in `max_threads`
    /// threads at most.
    pub fn start(
        addresses: &[SocketAddr],
        options: &SocketOptions,
        patience: Patience,
        max_threads: usize,
        log: Log,
        metrics: Arc<Metrics>,
        handler: Box<Handler>,
    ) -> io::Result<Listener> {
        let listening = listen(addresses, options)?;
        let address = listening.local_addr()?;
        let (pokes, asked) = bounded(16);
        let current = Mutex::new(Arc::new(accept_on(&listening)?));
        let shared = Arc::new(Shared {
            address,
            listening,
            connections: Arc::new(Connections::new(address, patience, Arc::clone(&metrics))),
            current,
            retired: Mutex::default(),
            handler,
            pokes,
            threads: AtomicUsize::new(0),
            max_threads,
            waiting: AtomicUsize::new(0),
            thread_ended: (Mutex::new(()), Condvar::new()),
            stopping: AtomicBool::new(false),
            log,
            metrics,
        });
        for _ in 0..WAITING_THREADS {
            shared.spawn_waiting()?;
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
        let current = Arc::clone(&lock(&shared.current));
        let (ended, changed) = &shared.thread_ended;
        let mut guard = lock(ended);
        while shared.threads.load(Ordering::Acquire) > 0 {
            // One call frees one thread.
            current.http.unblock();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            guard =
                changed.wait_timeout(guard, left.min(KEEP / 10)).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(guard);
        shared.connections.close_all();
        // Left to tiny_http, a request is answered as it is dropped, body and date and all.
        while let Ok(Some(request)) = current.http.try_recv() {
            shared.connections.drop_late(request);
        }
        self.keeper.join().ok();
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Starts a thread that waits for requests, unless there are too many.
    fn spawn_waiting(self: &Arc<Self>) -> io::Result<()> {
        if self.threads.fetch_add(1, Ordering::AcqRel) >= self.max_threads {
            self.threads.fetch_sub(1, Ordering::AcqRel);
            return Ok(());
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new().name("request".into()).spawn(move || {
            allocator::trust_this_thread();
            shared.wait_for_requests();
            shared.threads.fetch_sub(1, Ordering::AcqRel);
            let _guard = lock(&shared.thread_ended.0);
            shared.thread_ended.1.notify_all();
        });
        if spawned.is_err() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.threads.fetch_sub(1, Ordering::AcqRel);
        }
        spawned.map(drop)
    }

    /// Takes requests until there is nothing to wait for. `waiting` counts this thread when it comes in.
    fn wait_for_requests(self: &Arc<Self>) {
        while !self.is_stopping() {
            let server = Arc::clone(&lock(&self.current));
            let begun = {
                // Taken and placed in one step: two requests of one connection must not overtake each other.
                let _order = lock(&server.order);
                let too_many = self.waiting.load(Ordering::Acquire) > WAITING_THREADS;
                let wait = if too_many { WAIT_OF_MANY } else { WAIT };
                server
                    .http
                    .recv_timeout(wait)
                    .map(|request| request.map(|request| self.begin(&server, request)))
            };
            let others = self.waiting.fetch_sub(1, Ordering::AcqRel) - 1;
            match begun {
                Ok(Some(begun)) => {
                    if others == 0
                        && let Err(error) = self.spawn_waiting()
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
            self.waiting.fetch_add(1, Ordering::AcqRel);
        }
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    fn begin(&self, server: &Accepting, request: Request) -> Begun {
        *lock(&server.last_request) = Instant::now();
        self.metrics.requests.add(1);
        self.connections.begin(request)
    }

    fn serve(&self, begun: Begun) {
        match begun {
            Begun::Turn { request, turn, is_first } => {
                if is_first {
                    self.pokes.try_send(()).ok();
                }
                // A panic is a fault of ours; the thread has others to serve.
                let answered = catch_unwind(AssertUnwindSafe(|| {
                    let mut next = Some((request, turn));
                    while let Some((request, turn)) = next {
                        next = (self.handler)(turn, request).and_then(Turn::next);
                    }
                }));
                if answered.is_err() {
                    self.log.line(|| "a request was not answered: our own fault, see above".into());
                }
            }
            Begun::Parked { too_many } => {
                if let Some(connection) = too_many {
                    self.connections.cut(&connection);
                }
            }
            Begun::AfterTheEnd(request) => self.connections.drop_late(request),
        }
    }

    /// The keeper thread: pokes tiny_http, replaces it when it has stopped accepting, and cuts what takes too long.
    fn keep(self: &Arc<Self>, asked: &Receiver<()>) {
        allocator::trust_this_thread();
        let mut reap_at = Instant::now() + REAP;
        let mut trims_left = 0;
        loop {
            match asked.recv_timeout(KEEP) {
                _ if self.is_stopping() => return,
                // A poke wakes one of tiny_http's threads, which then lives for 5 s more: those that a crowd has left must
                // be let go.
                Err(RecvTimeoutError::Timeout) if trims_left > 0 => {}
                Ok(()) | Err(RecvTimeoutError::Timeout) => self.poke(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            let current = Arc::clone(&lock(&self.current));
            let has_ended = !is_listening(current.descriptor, self.address);
            if has_ended && !self.is_stopping() && self.has_spare() {
                self.replace(&current);
            }
            let all_busy = self.waiting.load(Ordering::Acquire) == 0;
            if all_busy {
                // The last one may not have been able to start another.
                self.spawn_waiting().ok();
            }
            if now >= reap_at {
                let reaped = self.connections.reap(all_busy);
                if reaped.gone > CROWD {
                    trims_left = TRIMS;
                }
                if trims_left > 0 {
                    trims_left -= 1;
                    allocator::return_memory();
                }
                // Workers that tiny_http has locked up for good free nobody, and one each half second is few.
                for _ in 0..reaped.stranded.min(MAX_POKES) {
                    self.poke();
                }
                reap_at = now + REAP;
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
    fn replace(self: &Arc<Self>, old: &Arc<Accepting>) {
        // It panics if it cannot start its accept thread (lib.rs:207).
        let new = catch_unwind(AssertUnwindSafe(|| accept_on(&self.listening)));
        match new.unwrap_or_else(|_| Err(io::Error::other("no thread"))) {
            Ok(new) => {
                *lock(&self.current) = Arc::new(new);
                for _ in 0..self.threads.load(Ordering::Acquire) {
                    old.http.unblock();
                }
                self.metrics.rebuilt_listeners.add(1);
                self.log.line(|| "tiny_http had stopped accepting; it accepts again".into());
                self.retire(Arc::clone(old));
            }
            Err(error) => {
                self.log.line(|| format!("tiny_http has stopped accepting and does not start: {error}"));
            }
        }
    }

    fn has_spare(&self) -> bool {
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

    fn retire(self: &Arc<Self>, old: Arc<Accepting>) {
        let mut retired = lock(&self.retired);
        retired.push(old);
        if retired.len() == 1 {
            let shared = Arc::clone(self);
            let run = move || {
                allocator::trust_this_thread();
                shared.poll_retired();
            };
            thread::Builder::new().name("retired".into()).spawn(run).ok();
        }
    }

    /// Takes the requests of replaced servers, until none of their connections can be alive.
    fn poll_retired(self: &Arc<Self>) {
        while !self.is_stopping() {
            let servers = lock(&self.retired).clone();
            for server in &servers {
                let order = lock(&server.order);
                let mut taken = Vec::new();
                while let Ok(Some(request)) = server.http.try_recv() {
                    taken.push(self.begin(server, request));
                }
                drop(order);
                for begun in taken {
                    let shared = Arc::clone(self);
                    let serve = move || {
                        allocator::trust_this_thread();
                        shared.serve(begun);
                    };
                    // Without a thread the request is dropped, which answers it with 500 (request.rs:463).
                    thread::Builder::new().name("request".into()).spawn(serve).ok();
                }
            }
            let mut retired = lock(&self.retired);
            let patience = self.connections.patience().idle + 5 * REAP;
            retired.retain(|server| lock(&server.last_request).elapsed() < patience);
            if retired.is_empty() {
                return;
            }
            drop(retired);
            thread::sleep(RETIRED);
        }
    }
}

/// A listening socket. On Linux the sockets that it accepts inherit its options.
fn listen(addresses: &[SocketAddr], options: &SocketOptions) -> io::Result<TcpListener> {
    /// Connections that wait to be accepted; the kernel takes less where its own bound is lower.
    const BACKLOG: i32 = 4_096;
    /// What a peer may have sent that nobody has read: enough for a body, and a bound for a header without end.
    const RECEIVE_BUFFER: usize = 256 << 10;
    /// What a write may wait on a socket that could not be made non-blocking.
    const SEND_TIMEOUT: Duration = Duration::from_millis(10);
    let mut failed = ErrorKind::AddrNotAvailable.into();
    for address in addresses {
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        // Without it two equal runs differ by a factor of 3.7.
        socket.set_tcp_nodelay(true)?;
        socket.set_send_buffer_size(options.send_buffer)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        // Not TCP_USER_TIMEOUT: it also ends connections of peers that read all the time, but slowly and through a
        // small window (Linux, tcp_timer.c: the probe timer).
        let probe =
            TcpKeepalive::new().with_time(options.unacknowledged).with_interval(options.unacknowledged / 4);
        socket.set_tcp_keepalive(&probe)?;
        match socket.bind(&(*address).into()).and_then(|()| socket.listen(BACKLOG)) {
            Ok(()) => return Ok(socket.into()),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Holds a port that nobody listens at until it is dropped: connecting is refused, and nobody else is given the port,
/// neither a server that asks for any port nor a client, which could find itself at the other end.
pub(crate) fn hold(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A tiny_http server that accepts on a clone of the listener.
fn accept_on(listening: &TcpListener) -> io::Result<Accepting> {
    let listener = listening.try_clone()?;
    let descriptor = listener.as_raw_fd();
    let http = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
    Ok(Accepting { http, descriptor, order: Mutex::new(()), last_request: Mutex::new(Instant::now()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;

    #[test]
    fn accepted_sockets_inherit_the_listeners_options() {
        let unacknowledged = Duration::from_secs(20);
        let options = SocketOptions { send_buffer: 64 << 10, unacknowledged };
        let listener = listen(&[SocketAddr::from(([127, 0, 0, 1], 0))], &options).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert!(socket.write_timeout().unwrap().is_some());
        assert_eq!(
            socket.send_buffer_size().unwrap(),
            2 * options.send_buffer,
            "the kernel takes twice as much"
        );
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }
}
