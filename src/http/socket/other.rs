//! What every Unix says of a socket: the plain twin of `linux`.
//!
//! A build for Linux with `--cfg plain_unix` has it, too, and so the tests have tried it.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{SockRef, Socket};

use super::{Facts, peer_of};

/// No Unix has to.
pub(in crate::http) const DEFERS: bool = false;

/// A socket has none before we give it one.
pub(super) const GIVES_COOKIES: bool = false;

/// A time-out of so many seconds or more is a cookie: some tens of years, which nobody waits for.
const LEAST_COOKIE: u64 = 1 << 30;

/// The cookie of a socket that was marked.
#[allow(unsafe_code)]
pub(super) fn cookie_of(descriptor: RawFd) -> Option<u64> {
    let mut timeout = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut length = size_of_val(&timeout) as libc::socklen_t;
    let place = (&raw mut timeout).cast();
    // SAFETY: the kernel writes no more than `length` bytes to the place; a number that names no socket is an error.
    let done =
        unsafe { libc::getsockopt(descriptor, libc::SOL_SOCKET, libc::SO_RCVTIMEO, place, &raw mut length) };
    (done == 0).then_some(timeout.tv_sec as u64).filter(|seconds| *seconds >= LEAST_COOKIE)
}

/// Gives a socket a cookie: the time-out of its reads, of which a socket that was just accepted has none.
pub(super) fn mark(socket: &SockRef) -> Option<u64> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let cookie = LEAST_COOKIE + NEXT.fetch_add(1, Ordering::Relaxed) % LEAST_COOKIE;
    socket.set_read_timeout(Some(Duration::from_secs(cookie))).ok()?;
    Some(cookie)
}

/// Without a count of what came, only what is unread is known of it. So half a head is noticed where it is a connection's
/// first, and a later one is given as long as an idle connection.
pub(super) fn facts_of(descriptor: RawFd) -> Option<Facts> {
    let unread = unread(descriptor)?;
    let is_open = peer_of(descriptor).is_some() && (unread > 0 || !is_at_end(descriptor));
    Some(Facts { received: unread, unread, is_open })
}

/// Each Unix would have to be asked in its own way. The kernel's keep-alive probes end a connection without a peer.
pub(super) fn unacknowledged_of(_descriptor: RawFd) -> Option<u64> {
    None
}

#[allow(unsafe_code)]
fn unread(descriptor: RawFd) -> Option<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: the request writes one int to where it is told; a number that names no socket is an error.
    let done = unsafe { libc::ioctl(descriptor, libc::FIONREAD, &raw mut count) };
    (done == 0).then_some(count as u64)
}

/// Whether the peer has closed its side, and all of it was read.
#[allow(unsafe_code)]
fn is_at_end(descriptor: RawFd) -> bool {
    let mut byte = 0u8;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: at most the one byte is written; a number that names no socket is an error.
    unsafe { libc::recv(descriptor, (&raw mut byte).cast(), 1, flags) == 0 }
}

/// Makes one number name what another one names; below zero if that is not open.
#[allow(unsafe_code)]
pub(super) unsafe fn duplicate(descriptor: RawFd, onto: RawFd) -> libc::c_int {
    // SAFETY: the caller's, whose number it is that changes its meaning; no program that is started gets it.
    unsafe {
        let taken = libc::dup2(descriptor, onto);
        libc::fcntl(onto, libc::F_SETFD, libc::FD_CLOEXEC);
        taken
    }
}

/// The numbers of all descriptors that could be open: a Mac lets a process have so many.
pub(super) fn open_descriptors() -> Vec<RawFd> {
    (0..10_240).collect()
}

#[allow(clippy::unnecessary_wraps, reason = "its twin can fail")]
pub(in crate::http) fn defer_accept(_socket: &Socket, _deferred: Duration) -> io::Result<()> {
    Ok(())
}
