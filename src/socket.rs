//! The sockets that tiny_http hides.
//!
//! tiny_http shows no socket, but its descriptors are this process's own: the one whose peer is the request's is
//! found among them. `listener` uses it to end reading threads, to make a stream's socket non-blocking, and to close
//! what tiny_http would keep open. The one rule: a descriptor is duplicated first, compared on the duplicate, and
//! acted on through the duplicate, so it does not matter if tiny_http closes it and the number is used again.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use socket2::{SockAddr, SockRef};

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

    /// Makes writes through any descriptor of this socket return at once.
    pub fn set_nonblocking(&self) {
        SockRef::from(&self.0).set_nonblocking(true).ok();
    }

    /// The kernel's number for this socket, which no other socket ever gets; `None` where the kernel has none.
    pub fn cookie(&self) -> Option<u64> {
        #[cfg(target_os = "linux")]
        return SockRef::from(&self.0).cookie().ok();
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Bytes that were written and not acknowledged by the peer.
    #[allow(unsafe_code)]
    pub fn unacknowledged(&self) -> Option<u64> {
        let mut count: libc::c_int = 0;
        // SAFETY: the descriptor is open, for `self` owns it; TIOCOUTQ writes one int to where it is told.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
        (done == 0).then_some(count as u64)
    }
}

/// The connections that came in through one listener.
pub(crate) struct Sockets {
    port: u16,
    known: Mutex<Known>,
}

/// What is known of descriptors. Only ever a hint: see the rule above.
#[derive(Default)]
struct Known {
    /// Found when all descriptors were looked at last. tiny_http has two for each connection that it reads.
    by_peer: HashMap<SocketAddr, Vec<RawFd>>,
    /// Of open streams. Their reading side has ended, or will soon.
    streams: HashMap<SocketAddr, Vec<RawFd>>,
    /// Streams of which two descriptors were open when last looked at.
    unsettled: Vec<SocketAddr>,
    /// By number: the one descriptor of a stream, which need not be looked at again while the stream is open.
    pinned: Vec<bool>,
}

/// So many closed descriptors in a row mean that no new connection has a higher one: the lowest free one is taken.
const CLOSED_IN_A_ROW: usize = 64;

impl Sockets {
    /// The sockets of connections to the listener at `address`.
    pub fn new(address: SocketAddr) -> Sockets {
        Sockets { port: address.port(), known: Mutex::default() }
    }

    /// The socket of the connection from `peer`. `None` if it is closed, or cannot be told from others.
    pub fn find(&self, peer: SocketAddr) -> Option<Socket> {
        let mut known = self.lock();
        if let Some(socket) = self.open_one_of(known.descriptors(peer), peer) {
            return Some(socket);
        }
        // A burst is served by one look for all of it: the others find theirs above.
        known.look_at(0.., true);
        if let Some(socket) = self.open_one_of(known.descriptors(peer), peer) {
            return Some(socket);
        }
        known.look_at(open_descriptors(), false);
        self.open_one_of(known.descriptors(peer), peer)
    }

    /// Notes that a connection is a stream now: its descriptor will stay, and is passed over in searches.
    pub fn pin(&self, peer: SocketAddr) {
        let mut known = self.lock();
        let descriptors = known.by_peer.remove(&peer).unwrap_or_default();
        known.streams.insert(peer, descriptors);
        known.unsettled.push(peer);
    }

    /// Notes that a stream is about to be closed.
    pub fn unpin(&self, peer: SocketAddr) {
        let mut known = self.lock();
        for descriptor in known.streams.remove(&peer).unwrap_or_default() {
            known.set_pinned(descriptor, false);
        }
    }

    /// The peers of all open connections but streams.
    pub fn peers(&self) -> Vec<SocketAddr> {
        let mut known = self.lock();
        known.look_at(open_descriptors(), false);
        let ours = |(peer, descriptors): (&SocketAddr, &Vec<RawFd>)| {
            self.open_one_of(descriptors, *peer).map(|_| *peer)
        };
        known.by_peer.iter().filter_map(ours).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_one_of(&self, descriptors: &[RawFd], peer: SocketAddr) -> Option<Socket> {
        descriptors.iter().find_map(|descriptor| {
            let socket = duplicate(*descriptor)?;
            let found = SockRef::from(&socket);
            let same_peer = found.peer_addr().ok()?.as_socket() == Some(peer);
            // A test has both ends in one process: the other one's peer is our listener.
            let our_port = found.local_addr().ok()?.as_socket()?.port() == self.port;
            (same_peer && our_port).then_some(Socket(socket))
        })
    }
}

impl Known {
    fn descriptors(&self, peer: SocketAddr) -> &[RawFd] {
        let of_stream = self.streams.get(&peer).filter(|descriptors| !descriptors.is_empty());
        of_stream.or_else(|| self.by_peer.get(&peer)).map_or(&[], Vec::as_slice)
    }

    /// Finds the peer of each descriptor that is not a stream's, until many in a row are closed or the end.
    fn look_at(&mut self, descriptors: impl IntoIterator<Item = RawFd>, stop_early: bool) {
        self.settle();
        self.by_peer.clear();
        let mut closed = 0;
        for descriptor in descriptors {
            if self.is_pinned(descriptor) {
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
            if stop_early && closed == CLOSED_IN_A_ROW {
                return;
            }
        }
    }

    /// Pins the descriptors of streams whose reading side has ended since.
    fn settle(&mut self) {
        for peer in std::mem::take(&mut self.unsettled) {
            let Some(mut descriptors) = self.streams.remove(&peer) else { continue };
            descriptors.retain(|descriptor| peer_of(*descriptor) == Ok(Some(peer)));
            match descriptors[..] {
                [only] => self.set_pinned(only, true),
                [] => {}
                _ => self.unsettled.push(peer),
            }
            self.streams.insert(peer, descriptors);
        }
    }

    fn is_pinned(&self, descriptor: RawFd) -> bool {
        self.pinned.get(descriptor as usize).copied().unwrap_or(false)
    }

    fn set_pinned(&mut self, descriptor: RawFd, pinned: bool) {
        let index = descriptor as usize;
        if self.pinned.len() <= index {
            self.pinned.resize(index + 1, false);
        }
        self.pinned[index] = pinned;
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

/// Raises the limit on descriptors as far as this process may, and returns it.
#[allow(unsafe_code)]
pub(crate) fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one rlimit, which is there.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return 256;
        }
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
            limit = raised;
        }
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// The numbers of all open descriptors, or of all that could be.
fn open_descriptors() -> Vec<RawFd> {
    let numbers = |folder: &str| -> io::Result<Vec<RawFd>> {
        let names = fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok())));
        Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    };
    numbers("/proc/self/fd").or_else(|_| numbers("/dev/fd")).unwrap_or_else(|_| (0..4_096).collect())
}
