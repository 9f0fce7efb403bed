//! What Linux alone says of a socket.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use socket2::Socket;

use super::{Facts, option};

/// The kernel keeps silent connections to itself.
pub(in crate::http) const DEFERS: bool = true;

/// The kernel's number for a socket, which no other ever gets.
pub(super) fn cookie_of(descriptor: RawFd) -> Option<u64> {
    let mut cookie = [0];
    option(descriptor, libc::SOL_SOCKET, libc::SO_COOKIE, &mut cookie).map(|_| cookie[0])
}

pub(super) fn facts_of(descriptor: RawFd) -> Option<Facts> {
    /// The state of a connection that both sides use.
    const ESTABLISHED: u8 = 1;
    /// One whose peer has closed its side; the kernel counts the end as a byte.
    const CLOSE_WAIT: u8 = 8;
    /// Where the kernel's `tcp_info` has `tcpi_bytes_received`, since Linux 4.1; libc's is shorter.
    const RECEIVED: usize = 128 / size_of::<u64>();
    let mut info = [0u64; 32];
    let length = option(descriptor, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    if length < (RECEIVED + 1) * size_of::<u64>() {
        return None;
    }
    let state = info[0].to_ne_bytes()[0];
    let received = info[RECEIVED].saturating_sub(u64::from(state == CLOSE_WAIT));
    Some(Facts { received, unread: queued(descriptor, libc::FIONREAD)?, is_open: state == ESTABLISHED })
}

/// Bytes that were written and not acknowledged by the peer.
pub(super) fn unacknowledged_of(descriptor: RawFd) -> Option<u64> {
    queued(descriptor, libc::TIOCOUTQ)
}

#[allow(unsafe_code)]
fn queued(descriptor: RawFd, which: libc::Ioctl) -> Option<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: both requests write one int to where they are told; a number that names no socket is an error.
    let done = unsafe { libc::ioctl(descriptor, which, &raw mut count) };
    (done == 0).then_some(count as u64)
}

/// Makes one number name what another one names; below zero if that is not open.
#[allow(unsafe_code)]
pub(super) unsafe fn duplicate(descriptor: RawFd, onto: RawFd) -> libc::c_int {
    // SAFETY: the caller's, whose number it is that changes its meaning.
    unsafe { libc::dup3(descriptor, onto, libc::O_CLOEXEC) }
}

/// The numbers of all open descriptors, or of all that could be.
pub(super) fn open_descriptors() -> Vec<RawFd> {
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

/// Has the kernel keep connections to itself until they say something, or for that long.
#[allow(unsafe_code)]
pub(in crate::http) fn defer_accept(socket: &Socket, deferred: Duration) -> io::Result<()> {
    let seconds = deferred.as_secs() as libc::c_int;
    let (place, length) = ((&raw const seconds).cast(), size_of_val(&seconds) as libc::socklen_t);
    let option = libc::TCP_DEFER_ACCEPT;
    // SAFETY: the descriptor is open, and the option is one int.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, place, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
