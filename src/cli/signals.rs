//! The signals that end the process or have it take itself over, taken by a thread and not by a handler.
//!
//! `serve` blocks them before it starts another thread, so that this one alone gets them, at every moment and one after
//! the other. The one rule: a signal that was ignored at the start stays ignored, which is how `nohup` and a shell's `&`
//! ask for it.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::{self, JoinHandle};

use libc::c_int;

/// Somebody or something wants an end: a service manager, a person, a limit on processor time. Or a new program.
const WATCHED: [c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGXCPU, TAKE_OVER];

/// Asks the process to take itself over.
pub(crate) const TAKE_OVER: c_int = libc::SIGUSR2;

/// The thread that takes signals.
pub(crate) struct Watch {
    thread: JoinHandle<()>,
}

/// Lets a write beyond the limit on the size of files be an error, where it would end the process. For a program's
/// `main`.
pub fn outlive_file_limits() {
    // SAFETY: `SIG_IGN` is no handler, so no code of ours runs in a signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Tells of each signal that asks for an end, from a thread of its own. To be called while there is only one thread: it
/// blocks the signals in that one, and those that it starts inherit it. SIGHUP means nothing from then on: there is no
/// file to read anew, and a terminal that goes is none of a server's business.
pub(crate) fn watch(mut tell: impl FnMut(c_int) + Send + 'static) -> io::Result<Watch> {
    // SAFETY: `SIG_IGN` is no handler, so no code of ours runs in a signal.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` makes a set of the memory; the others get that set, and numbers that are signals.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), end_of_watch());
        for signal in WATCHED.into_iter().filter(|signal| !is_ignored(*signal)) {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
        set.assume_init()
    };
    let thread = thread::Builder::new().name("signals".into()).spawn(move || {
        loop {
            let mut signal = 0;
            // SAFETY: both are ours, and the set is a set. It writes a number.
            match unsafe { libc::sigwait(&raw const set, &raw mut signal) } {
                0 if signal == end_of_watch() => return,
                0 => tell(signal),
                _ => {}
            }
        }
    })?;
    Ok(Watch { thread })
}

impl Watch {
    /// Leaves signals that come from now on to whoever watches next, this process or the program that it becomes.
    pub fn end(self) {
        // SAFETY: the thread has not been joined, so its number is its own; the signal is one.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), end_of_watch()) };
        self.thread.join().ok();
    }
}

/// A signal that nobody sends.
fn end_of_watch() -> c_int {
    #[cfg(target_os = "linux")]
    return libc::SIGRTMIN();
    #[cfg(not(target_os = "linux"))]
    return libc::SIGURG;
}

fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action it only writes the current one. All of it being zero is an action, too.
    let action = unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}
