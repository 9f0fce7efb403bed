//! What every Unix says of a socket: the plain twin of `linux`.
//!
//! A build for Linux with `--cfg plain_unix` has it, too, and so the tests have tried it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use socket2::Socket;

use super::{Facts, local_of, peer_of};

/// No Unix has to.
pub(in crate::http) const DEFERS: bool = false;

/// A number made of both ends: a later connection between the same two is taken for this one. That has an end when the
/// connection has.
pub(super) fn cookie_of(descriptor: RawFd) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    (peer_of(descriptor)?, local_of(descriptor)?).hash(&mut hasher);
    // Never that of no socket.
    Some(hasher.finish() | 1)
}

/// Without a count of what came, only what is unread is known of it. So half a head is noticed where it is a connection's
/// first, and a later one is given as long as an idle connection.
pub(super) fn facts_of(descriptor: RawFd) -> Option<Facts> {
    peer_of(descriptor)?;
    let unread = unread(descriptor)?;
    Some(Facts { received: unread, unread, is_open: unread > 0 || !is_at_end(descriptor) })
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
