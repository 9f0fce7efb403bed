//! The sockets that tiny_http hides.
//!
//! tiny_http shows no socket, but its descriptors are this process's own: the one whose peer is the request's is
//! found among them. `listener` uses it to end reading threads, to make a stream's socket non-blocking, and to close
//! what tiny_http would keep open. The one rule: a descriptor is duplicated first, compared on the duplicate, and
//! acted on through the duplicate, so it does not matter if tiny_http closes it and the number is used again.

use std::collections::HashMap;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use socket2::{SockAddr, SockRef};

use crate::lock::lock;

/// Tells a socket from every other, also from one with the same peer, and says where it was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    /// The kernel's number for it, which no other socket ever gets.
    cookie: u64,
    /// tiny_http has two descriptors for each connection that it reads; the same one twice where it has one.
    descriptors: [RawFd; 2],
}

/// Where it was found is not part of what it is.
impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        self.cookie == other.cookie
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.cookie.hash(state);
    }
}

impl Identity {
    /// The socket itself, as long as tiny_http keeps it; also when its connection has ended.
    pub fn open(&self) -> Option<Socket> {
        let is_it = |socket: &OwnedFd| cookie_of(socket.as_raw_fd()) == Some(self.cookie);
        self.descriptors.iter().find_map(|descriptor| duplicate(*descriptor).filter(is_it)).map(Socket)
    }

    /// Ends both directions, if it is open.
    pub fn close(&self) {
        if let Some(socket) = self.open() {
            socket.close();
        }
    }

    /// Ends both directions, and throws away what tiny_http has not read yet.
    pub fn cut(&self) {
        if let Some(socket) = self.open() {
            socket.close();
            socket.discard();
        }
    }
}

/// A connection's socket. Acting on it acts on tiny_http's, for the two share it; dropping it changes nothing.
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// Ends tiny_http's reading thread for this connection, and with it one of its two descriptors.
    pub fn shut_read(&self) {
        SockRef::from(&self.0).shutdown(Shutdown::Read).ok();
    }

    /// Ends both directions; what was written before still arrives.
    pub fn close(&self) {
        SockRef::from(&self.0).shutdown(Shutdown::Both).ok();
    }

    /// Throws away what was received and not read. When both directions are shut nothing more is received.
    fn discard(&self) {
        let mut piece = [MaybeUninit::uninit(); 16 << 10];
        let receive =
            |piece: &mut [_]| SockRef::from(&self.0).recv_with_flags(piece, libc::MSG_DONTWAIT).unwrap_or(0);
        while receive(&mut piece) > 0 {}
    }

    /// Makes writes through any descriptor of this socket return at once.
    pub fn set_nonblocking(&self) {
        SockRef::from(&self.0).set_nonblocking(true).ok();
    }

    /// Whether the peer has closed its side, or the connection is over.
    #[cfg(target_os = "linux")]
    pub fn has_ended(&self) -> bool {
        const ESTABLISHED: u8 = 1;
        self.info().is_none_or(|info| info.tcpi_state != ESTABLISHED)
    }

    /// How long ago the peer sent anything.
    #[cfg(target_os = "linux")]
    pub fn last_received(&self) -> Option<Duration> {
        self.info().map(|info| Duration::from_millis(info.tcpi_last_data_recv.into()))
    }

    #[cfg(not(target_os = "linux"))]
    pub fn has_ended(&self) -> bool {
        false
    }

    #[cfg(not(target_os = "linux"))]
    pub fn last_received(&self) -> Option<Duration> {
        None
    }

    #[cfg(target_os = "linux")]
    #[allow(unsafe_code)]
    fn info(&self) -> Option<libc::tcp_info> {
        // SAFETY: tcp_info is plain numbers, for which zeros are a value.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        let descriptor = self.0.as_raw_fd();
        let place = (&raw mut info).cast();
        // SAFETY: the descriptor is open, and the kernel writes no more than `length` bytes to the place.
        let done = unsafe {
            libc::getsockopt(descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length)
        };
        (done == 0).then_some(info)
    }

    /// Bytes that were written and not acknowledged by the peer.
    pub fn unacknowledged(&self) -> Option<u64> {
        self.queued(libc::TIOCOUTQ)
    }

    /// Bytes that were received and not read by tiny_http.
    pub fn unread(&self) -> Option<u64> {
        self.queued(libc::FIONREAD)
    }

    #[allow(unsafe_code)]
    fn queued(&self, which: libc::Ioctl) -> Option<u64> {
        let mut count: libc::c_int = 0;
        // SAFETY: the descriptor is open, for `self` owns it; both requests write one int to where they are told.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), which, &raw mut count) };
        (done == 0).then_some(count as u64)
    }
}

/// The connections that came in through one listener. Without cookies, which Linux alone has, it finds none.
pub(crate) struct Sockets {
    port: u16,
    known: Mutex<Known>,
}

/// What is known of descriptors. Only ever a hint: see the rule above.
#[derive(Default)]
struct Known {
    /// Found when all descriptors were looked at last.
    by_peer: HashMap<SocketAddr, Vec<RawFd>>,
    /// Streams of which two descriptors were open when last looked at.
    unsettled: Vec<Identity>,
    /// By number: the cookie of the stream that has this descriptor for as long as it is open, else 0. It need not be
    /// looked at again until then.
    pinned: Vec<u64>,
    /// The highest descriptor that was open when all were looked at last.
    highest: RawFd,
}

/// So many closed descriptors in a row mean that no new connection has a higher one: the lowest free one is taken. An
/// older one can: others between have been closed since, and it has sent its first request only now.
const CLOSED_IN_A_ROW: usize = 64;

impl Sockets {
    /// The sockets of connections to the listener at `address`.
    pub fn new(address: SocketAddr) -> Sockets {
        Sockets { port: address.port(), known: Mutex::default() }
    }

    /// The open connection from `peer`.
    pub fn find(&self, peer: SocketAddr) -> Option<Identity> {
        let mut known = self.lock();
        if let Some(identity) = self.identify(&known, peer) {
            return Some(identity);
        }
        // A burst is served by one look for all of it: the others find theirs above.
        known.look_at(0.., true);
        self.identify(&known, peer)
    }

    /// Whether the connection from `peer` is this one still, and not a later one from the same address.
    pub fn is_still(&self, identity: Identity, peer: SocketAddr) -> bool {
        let is_it = |descriptor: &RawFd| {
            peer_of(*descriptor) == Ok(Some(peer)) && cookie_of(*descriptor) == Some(identity.cookie)
        };
        // Two are the same connection, too, if there is no other.
        identity.descriptors.iter().any(is_it) || self.find(peer).is_none_or(|found| found == identity)
    }

    /// Notes that a connection is a stream now: its descriptor will stay, and is passed over in searches.
    pub fn pin(&self, identity: Identity) {
        self.lock().unsettled.push(identity);
    }

    /// Notes that a stream is about to be closed.
    pub fn unpin(&self, identity: Identity) {
        let mut known = self.lock();
        known.unsettled.retain(|unsettled| *unsettled != identity);
        for descriptor in identity.descriptors {
            if known.pin_of(descriptor) == identity.cookie {
                known.set_pin(descriptor, 0);
            }
        }
    }

    /// All open connections but streams.
    pub fn connections(&self) -> Vec<(SocketAddr, Identity)> {
        let mut known = self.lock();
        known.look_at(open_descriptors(), false);
        let ours = |peer: &SocketAddr| Some((*peer, self.identify(&known, *peer)?));
        known.by_peer.keys().filter_map(ours).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    fn identify(&self, known: &Known, peer: SocketAddr) -> Option<Identity> {
        let mut identity: Option<Identity> = None;
        for descriptor in known.by_peer.get(&peer)? {
            match (self.cookie_from(*descriptor, peer), &mut identity) {
                (Some(cookie), None) => identity = Some(Identity { cookie, descriptors: [*descriptor; 2] }),
                (Some(cookie), Some(same)) if cookie == same.cookie => same.descriptors[1] = *descriptor,
                _ => {}
            }
        }
        identity
    }

    /// The cookie of a connection from `peer` to our listener.
    fn cookie_from(&self, descriptor: RawFd, peer: SocketAddr) -> Option<u64> {
        let socket = duplicate(descriptor)?;
        let found = SockRef::from(&socket);
        let same_peer = found.peer_addr().ok()?.as_socket() == Some(peer);
        // A test has both ends in one process: the other one's peer is our listener.
        let our_port = found.local_addr().ok()?.as_socket()?.port() == self.port;
        if same_peer && our_port { cookie_of(socket.as_raw_fd()) } else { None }
    }
}

impl Known {
    /// Finds the peer of each descriptor that is not a stream's, until many in a row are closed or the end.
    fn look_at(&mut self, descriptors: impl IntoIterator<Item = RawFd>, stop_early: bool) {
        self.settle();
        // Not cleared: a crowd's room would stay.
        self.by_peer = HashMap::new();
        if !stop_early {
            self.highest = 0;
        }
        let mut closed = 0;
        for descriptor in descriptors {
            if self.pin_of(descriptor) != 0 {
                closed = 0;
                continue;
            }
            match peer_of(descriptor) {
                Ok(Some(peer)) => {
                    self.by_peer.entry(peer).or_default().push(descriptor);
                    closed = 0;
                }
                Ok(None) => closed = 0,
                Err(Closed) => closed += 1,
            }
            if closed == 0 {
                self.highest = self.highest.max(descriptor);
            }
            if stop_early && closed >= CLOSED_IN_A_ROW && descriptor > self.highest {
                return;
            }
        }
    }

    /// Pins the descriptors of streams whose reading side has ended since.
    fn settle(&mut self) {
        for identity in std::mem::take(&mut self.unsettled) {
            let is_open = |descriptor: &RawFd| cookie_of(*descriptor) == Some(identity.cookie);
            let [first, second] = identity.descriptors;
            match (is_open(&first), is_open(&second)) {
                (true, true) if first != second => self.unsettled.push(identity),
                (true, _) => self.set_pin(first, identity.cookie),
                (false, true) => self.set_pin(second, identity.cookie),
                (false, false) => {}
            }
        }
    }

    fn pin_of(&self, descriptor: RawFd) -> u64 {
        self.pinned.get(descriptor as usize).copied().unwrap_or(0)
    }

    fn set_pin(&mut self, descriptor: RawFd, cookie: u64) {
        let index = descriptor as usize;
        if self.pinned.len() <= index {
            self.pinned.resize(index + 1, 0);
        }
        self.pinned[index] = cookie;
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Closed;

/// The peer of a descriptor; `None` if it is open and no connected socket.
#[allow(unsafe_code)]
fn peer_of(descriptor: RawFd) -> Result<Option<SocketAddr>, Closed> {
    let ask = |storage: *mut socket2::SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: a number that is no open socket is an error, not undefined; the storage is as long as `length` says.
        match unsafe { libc::getpeername(descriptor, storage.cast(), length) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: getpeername fills in the storage and the length whenever it returns 0.
    match unsafe { SockAddr::try_init(ask) } {
        Ok(((), address)) => Ok(address.as_socket()),
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Err(Closed),
        Err(_) => Ok(None),
    }
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn cookie_of(descriptor: RawFd) -> Option<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    let place = (&raw mut cookie).cast();
    // SAFETY: a number that is no open socket is an error; the kernel writes no more than `length` bytes to the place.
    let done =
        unsafe { libc::getsockopt(descriptor, libc::SOL_SOCKET, libc::SO_COOKIE, place, &raw mut length) };
    (done == 0).then_some(cookie)
}

#[cfg(not(target_os = "linux"))]
fn cookie_of(_descriptor: RawFd) -> Option<u64> {
    None
}

#[allow(unsafe_code)]
fn duplicate(descriptor: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl takes any number; one that is not open is an error.
    let copy = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0) };
    // SAFETY: the kernel just made it for us, and nobody else knows of it.
    (copy >= 0).then(|| unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Whether the descriptor is a socket that listens at `address`.
#[allow(unsafe_code)]
pub(crate) fn is_listening(descriptor: RawFd, address: SocketAddr) -> bool {
    let Some(socket) = duplicate(descriptor) else {
        // Out of descriptors, or closed: EBADF is the one that says so.
        return io::Error::last_os_error().raw_os_error() != Some(libc::EBADF);
    };
    let socket = SockRef::from(&socket);
    let mut listens: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the option is one int.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut listens).cast(),
            &raw mut length,
        )
    };
    let same_address = socket.local_addr().is_ok_and(|local| local.as_socket() == Some(address));
    done == 0 && listens != 0 && same_address
}

/// Ends `accept` in whatever thread waits in it, and refuses who comes later.
#[allow(unsafe_code)]
pub(crate) fn stop_listening(listener: &std::net::TcpListener) {
    // SAFETY: the descriptor is open as long as the listener is borrowed.
    unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
}

/// The numbers of all open descriptors, or of all that could be.
fn open_descriptors() -> Vec<RawFd> {
    let numbers = || -> io::Result<Vec<RawFd>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir("/proc/self/fd")? {
            numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
        Ok(numbers)
    };
    // Without /proc, or without a descriptor to read it.
    numbers().unwrap_or_else(|_| (0..4_096).collect())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_is_found_above_many_closed_descriptors() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let others: Vec<TcpListener> = (0..400).map(|_| listener.try_clone().unwrap()).collect();
        let (_accepted, peer) = listener.accept().unwrap();
        let sockets = Sockets::new(address);
        // As the keeper does.
        assert_eq!(sockets.connections().len(), 1);
        drop(others);
        sockets.lock().by_peer.clear();
        assert_eq!(client.local_addr().unwrap(), peer);
        assert!(sockets.find(peer).is_some());
    }
}
