//! The sockets that tiny_http hides.
//!
//! tiny_http shows no socket, but its descriptors are this process's own: the one whose peer is the request's is
//! found among them. What Linux alone says of a socket is in `linux`, and what every Unix says in its plain twin `other`;
//! where a socket is no descriptor, `none` stands for all of it. The one rule: tiny_http may close a descriptor at any
//! time, and its number is used again. So what changes a socket is done through a copy of the descriptor, compared first.
//! What only asks is asked of the number, and counts if the number has the right cookie afterwards: a socket that gave
//! its number away never gets it back.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::io;
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::lock::lock;

#[cfg_attr(all(target_os = "linux", not(plain_unix)), path = "linux.rs")]
#[cfg_attr(not(all(target_os = "linux", not(plain_unix))), path = "other.rs")]
mod kernel;

pub(super) use kernel::{DEFERS, defer_accept};
use kernel::{cookie_of, facts_of, open_descriptors, unacknowledged_of};

/// One that is not found has ended.
pub(super) const ARE_FOUND: bool = true;

/// Tells a socket from every other, also from one with the same peer, and says where it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    /// What the kernel knows it by.
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
    /// What the kernel says; `None` if tiny_http has let go of it.
    pub fn facts(self) -> Option<Facts> {
        self.ask(facts_of)
    }

    /// Bytes that were written and not acknowledged by the peer.
    pub fn unacknowledged(self) -> Option<u64> {
        self.ask(unacknowledged_of)
    }

    /// Asks the socket, as long as tiny_http keeps it; also when its connection has ended.
    fn ask<T>(self, ask: impl Fn(RawFd) -> Option<T>) -> Option<T> {
        let is_it = |descriptor: RawFd| cookie_of(descriptor) == Some(self.cookie);
        self.descriptors.into_iter().find_map(|number| ask(number).filter(|_| is_it(number)))
    }
}

/// What the kernel says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Bytes that came from the peer.
    pub received: u64,
    /// Those of them that tiny_http has not read.
    pub unread: u64,
    /// Neither side has closed it.
    pub is_open: bool,
}

/// The connections that came in through one listener.
pub(super) struct Sockets {
    port: u16,
    known: Mutex<Known>,
    hand: Mutex<Hand>,
}

/// What is known of descriptors. Only ever a hint: see the rule above.
#[derive(Default)]
struct Known {
    /// Found when all descriptors were looked at last.
    by_peer: HashMap<SocketAddr, Vec<RawFd>>,
    /// Streams of which two descriptors were open when last looked at: tiny_http's reading thread is about to close one.
    two_open: Vec<Identity>,
    /// For each descriptor, the cookie of the stream that owns it, or 0.
    owners: Vec<u64>,
    /// Those of them that no stream owns, sorted: the only ones that are looked at. One block, because the many small
    /// ones of a set would keep a page each of what a crowd has left.
    others: Vec<RawFd>,
    /// The highest descriptor that was open when all were looked at last.
    highest: RawFd,
}

/// A descriptor of ours that names one of tiny_http's sockets for a moment. It takes no new number, so that it can be
/// used when descriptors are out.
struct Hand {
    holding: OwnedFd,
    /// What it names in between.
    nothing: OwnedFd,
}

/// How far a look at descriptors goes. A new connection gets the lowest that are free.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// To the first few closed ones in a row: a connection that has just come is mostly below.
    Near,
    /// To many closed ones in a row, and as far as there were open ones.
    Far,
    /// An older connection can be above any number of closed ones, and send its first request only now.
    Everywhere,
}

const FEW_CLOSED: usize = 8;
const CLOSED_IN_A_ROW: usize = 64;

impl Sockets {
    /// The sockets of connections to the listener at `address`.
    pub fn new(address: SocketAddr) -> io::Result<Sockets> {
        Ok(Sockets { port: address.port(), known: Mutex::default(), hand: Mutex::new(Hand::new()?) })
    }

    /// The open connection from `peer`.
    pub fn find(&self, peer: SocketAddr) -> Option<Identity> {
        let mut known = lock(&self.known);
        if let Some(identity) = self.identify(&known, peer) {
            return Some(identity);
        }
        // A burst is served by one look for all of it: the others find theirs above.
        known.look(Reach::Near);
        if let Some(identity) = self.identify(&known, peer) {
            return Some(identity);
        }
        known.look(Reach::Far);
        self.identify(&known, peer)
    }

    /// Whether the connection from `peer` is this one still, and not a later one from the same address.
    pub fn is_still(&self, identity: Identity, peer: SocketAddr) -> bool {
        // One that has ended has no peer any more. Another descriptor is the same connection, too, if there is no other.
        identity.ask(peer_of) == Some(peer) || self.find(peer).is_none_or(|found| found == identity)
    }

    /// Makes a connection a stream's: ends tiny_http's reading thread, lets writes return at once, and passes it over
    /// in searches from now on.
    pub fn make_stream(&self, identity: Identity) {
        self.act(identity, |socket| {
            socket.shutdown(Shutdown::Read).ok();
            socket.set_nonblocking(true).ok();
        });
        lock(&self.known).two_open.push(identity);
    }

    /// Closes a stream's connection. Its descriptors may be another's afterwards.
    pub fn end_stream(&self, identity: Identity) {
        self.close(identity);
        let mut known = lock(&self.known);
        known.two_open.retain(|other| *other != identity);
        for descriptor in identity.descriptors {
            if known.owner_of(descriptor) == identity.cookie {
                known.set_owner(descriptor, 0);
            }
        }
    }

    /// All open connections but streams. `is_thorough` finds those, too, that are above many closed descriptors.
    pub fn connections(&self, is_thorough: bool) -> Vec<(SocketAddr, Identity)> {
        let mut known = lock(&self.known);
        known.look(if is_thorough { Reach::Everywhere } else { Reach::Far });
        let ours = |peer: &SocketAddr| Some((*peer, self.identify(&known, *peer)?));
        known.by_peer.keys().filter_map(ours).collect()
    }

    /// Reads nothing more: whoever waits for more of this connection finds its end.
    pub fn shut_read(&self, identity: Identity) {
        self.act(identity, |socket| socket.shutdown(Shutdown::Read).ok());
    }

    /// Ends both directions, if it is open; what was written before still arrives.
    pub fn close(&self, identity: Identity) {
        self.act(identity, |socket| socket.shutdown(Shutdown::Both).ok());
    }

    /// Ends both directions, and throws away what tiny_http has not read yet.
    pub fn cut(&self, identity: Identity) {
        self.act(identity, |socket| {
            socket.shutdown(Shutdown::Both).ok();
            // Nothing more is received when both directions are shut.
            throw_away(socket);
        });
    }

    /// Throws away what was received and not read; says whether more may come.
    pub fn discard(&self, identity: Identity) -> bool {
        self.act(identity, throw_away) == Some(true)
    }

    /// Writes a short text past tiny_http's writer, which nobody may have written to.
    pub fn send(&self, identity: Identity, text: &[u8]) {
        self.act(identity, |socket| socket.send_with_flags(text, libc::MSG_DONTWAIT).ok());
    }

    /// Does something with a socket, as long as tiny_http keeps it; also when its connection has ended.
    fn act<T>(&self, identity: Identity, act: impl Fn(&SockRef) -> T) -> Option<T> {
        let mut hand = lock(&self.hand);
        let is_it = |socket: &SockRef| cookie_of(socket.as_raw_fd()) == Some(identity.cookie);
        let mut act_on = |number| hand.with(number, |socket| is_it(socket).then(|| act(socket))).flatten();
        identity.descriptors.into_iter().find_map(&mut act_on)
    }

    fn identify(&self, known: &Known, peer: SocketAddr) -> Option<Identity> {
        let mut identity: Option<Identity> = None;
        for descriptor in known.by_peer.get(&peer)? {
            match (cookie_of(*descriptor), &mut identity) {
                (Some(cookie), Some(same)) if cookie == same.cookie => same.descriptors[1] = *descriptor,
                (Some(cookie), None) => {
                    let found = Identity { cookie, descriptors: [*descriptor; 2] };
                    identity = self.is_from(found, peer).then_some(found);
                }
                _ => {}
            }
        }
        identity
    }

    /// Whether it is a connection from `peer` to our listener.
    fn is_from(&self, identity: Identity, peer: SocketAddr) -> bool {
        // A test has both ends in one process: the other one's peer is our listener.
        let ends = |number| Some((peer_of(number)?, local_of(number)?.port()));
        identity.ask(ends) == Some((peer, self.port))
    }
}

impl Known {
    /// Finds the peer of each descriptor that is not a stream's.
    fn look(&mut self, reach: Reach) {
        self.note_closed_readers();
        // Not cleared: a crowd's room would stay.
        self.by_peer = HashMap::new();
        let (descriptors, beyond) = match reach {
            Reach::Everywhere => (open_descriptors(), RawFd::MAX),
            _ => (self.others.clone(), self.owners.len() as RawFd),
        };
        if reach == Reach::Everywhere {
            self.highest = 0;
        }
        let mut closed = 0;
        for descriptor in descriptors.into_iter().chain(beyond..RawFd::MAX) {
            let is_stream = self.owner_of(descriptor) != 0;
            let peer = if is_stream { Ok(None) } else { end_of(descriptor, libc::getpeername) };
            match peer {
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => closed += 1,
                peer => {
                    (closed, self.highest) = (0, self.highest.max(descriptor));
                    if let Ok(Some(peer)) = peer {
                        self.by_peer.entry(peer).or_default().push(descriptor);
                    }
                }
            }
            let is_enough = match reach {
                Reach::Near => closed >= FEW_CLOSED,
                Reach::Far => closed >= CLOSED_IN_A_ROW && descriptor > self.highest,
                Reach::Everywhere => false,
            };
            if is_enough {
                return;
            }
        }
    }

    /// Notes the owner of each stream's descriptor that is left when its reading thread has ended.
    fn note_closed_readers(&mut self) {
        for identity in std::mem::take(&mut self.two_open) {
            let is_open = |descriptor: RawFd| cookie_of(descriptor) == Some(identity.cookie);
            let [first, second] = identity.descriptors;
            match (is_open(first), is_open(second)) {
                (true, true) if first != second => self.two_open.push(identity),
                (true, _) => self.set_owner(first, identity.cookie),
                (false, true) => self.set_owner(second, identity.cookie),
                (false, false) => {}
            }
        }
    }

    fn owner_of(&self, descriptor: RawFd) -> u64 {
        self.owners.get(descriptor as usize).copied().unwrap_or(0)
    }

    fn set_owner(&mut self, descriptor: RawFd, cookie: u64) {
        let new = self.owners.len() as RawFd..=descriptor;
        self.others.extend(new.clone());
        self.owners.extend(new.map(|_| 0));
        self.owners[descriptor as usize] = cookie;
        match self.others.binary_search(&descriptor) {
            Err(place) if cookie == 0 => self.others.insert(place, descriptor),
            Ok(place) if cookie != 0 => drop(self.others.remove(place)),
            _ => {}
        }
    }
}

impl Hand {
    fn new() -> io::Result<Hand> {
        let nothing: OwnedFd = Socket::new(Domain::UNIX, Type::STREAM, None)?.into();
        Ok(Hand { holding: nothing.try_clone()?, nothing })
    }

    /// Does something with the socket that has this number; `None` if the number is not open. tiny_http may close its
    /// own descriptor meanwhile: ours names the same socket until this returns.
    fn with<T>(&mut self, descriptor: RawFd, act: impl FnOnce(&SockRef) -> T) -> Option<T> {
        // The hand itself is none of tiny_http's.
        if descriptor == self.holding.as_raw_fd() || !self.take(descriptor) {
            return None;
        }
        let result = act(&SockRef::from(&self.holding));
        self.take(self.nothing.as_raw_fd());
        Some(result)
    }

    #[allow(unsafe_code)]
    fn take(&mut self, descriptor: RawFd) -> bool {
        let holding = self.holding.as_raw_fd();
        // SAFETY: the number that changes its meaning is the hand's own, which nobody else uses while `self` is borrowed.
        // The other may be any number; one that is not open is an error.
        unsafe { kernel::duplicate(descriptor, holding) >= 0 }
    }
}

/// Reads as long as there is something; says whether more may come.
fn throw_away(socket: &SockRef) -> bool {
    let mut piece = [MaybeUninit::uninit(); 16 << 10];
    loop {
        match socket.recv_with_flags(&mut piece, libc::MSG_DONTWAIT) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

fn peer_of(descriptor: RawFd) -> Option<SocketAddr> {
    end_of(descriptor, libc::getpeername).ok()?
}

fn local_of(descriptor: RawFd) -> Option<SocketAddr> {
    end_of(descriptor, libc::getsockname).ok()?
}

/// The kernel's question for the address of one end of a connection.
type EndQuestion = unsafe extern "C" fn(RawFd, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

#[allow(unsafe_code)]
fn end_of(descriptor: RawFd, question: EndQuestion) -> io::Result<Option<SocketAddr>> {
    // SAFETY: both questions write an address, within the length, to where they are told; a number that names no socket
    // is an error.
    let asked = unsafe {
        SockAddr::try_init(|place, length| match question(descriptor, place.cast(), length) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    };
    asked.map(|((), address)| address.as_socket())
}

/// Reads an option of a socket; returns its length in bytes.
#[allow(unsafe_code)]
fn option(descriptor: RawFd, level: libc::c_int, name: libc::c_int, value: &mut [u64]) -> Option<usize> {
    let mut length = size_of_val(value) as libc::socklen_t;
    let place = value.as_mut_ptr().cast();
    // SAFETY: the kernel writes no more than `length` bytes to the place; a number that names no socket is an error.
    let done = unsafe { libc::getsockopt(descriptor, level, name, place, &raw mut length) };
    (done == 0).then_some(length as usize)
}

/// Whether the descriptor is a socket that listens at `address`.
pub(super) fn is_listening(descriptor: RawFd, address: SocketAddr) -> bool {
    let mut listens = [0];
    option(descriptor, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, &mut listens).is_some()
        && listens != [0]
        && local_of(descriptor) == Some(address)
}

/// Ends `accept` in whatever thread waits in it, and refuses who comes later.
pub(super) fn stop_listening(listener: &TcpListener) {
    SockRef::from(listener).shutdown(Shutdown::Both).ok();
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpStream;

    fn accepted() -> (TcpListener, TcpStream, TcpStream, Sockets, Identity) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let sockets = Sockets::new(address).unwrap();
        let identity = sockets.find(peer).unwrap();
        (listener, client, accepted, sockets, identity)
    }

    #[test]
    fn a_connection_is_found_above_many_closed_descriptors() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let others: Vec<TcpListener> = (0..400).map(|_| listener.try_clone().unwrap()).collect();
        let (_accepted, peer) = listener.accept().unwrap();
        let sockets = Sockets::new(address).unwrap();
        // As the keeper does now and then.
        assert_eq!(sockets.connections(true).len(), 1);
        drop(others);
        lock(&sockets.known).by_peer.clear();
        assert_eq!(client.local_addr().unwrap(), peer);
        assert!(sockets.find(peer).is_some());
    }

    #[test]
    fn the_kernel_says_what_came_and_what_was_read() {
        let (_listener, mut client, mut accepted, _sockets, identity) = accepted();
        let none = Facts { received: 0, unread: 0, is_open: true };
        assert_eq!(identity.facts(), Some(none));
        client.write_all(b"12345").unwrap();
        assert_eq!(identity.facts(), Some(Facts { received: 5, unread: 5, is_open: true }));
        io::Read::read_exact(&mut accepted, &mut [0; 2]).unwrap();
        assert_eq!(identity.facts(), Some(Facts { received: 5, unread: 3, is_open: true }));
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(identity.facts(), Some(Facts { received: 5, unread: 3, is_open: false }));
        drop(accepted);
        assert_eq!(identity.facts(), None);
    }

    #[test]
    fn the_hand_holds_nothing_when_it_has_acted() {
        let (_listener, client, accepted, sockets, identity) = accepted();
        sockets.close(identity);
        drop(accepted);
        assert_eq!(identity.facts(), None);
        client.set_read_timeout(None).unwrap();
        assert_eq!(io::Read::read(&mut &client, &mut [0]).unwrap(), 0);
    }
}
