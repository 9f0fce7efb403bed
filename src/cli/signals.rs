//! The signals that end the process, taken by a thread and not by a handler.
//!
//! `serve` blocks them before it starts another thread, so that this one alone gets them, at every moment and one after
//! the other. The one rule: a signal that was ignored at the start stays ignored, which is how `nohup` and a shell's `&`
//! ask for it.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::thread;

use libc::c_int;

/// Somebody or something wants an end: a service manager, a person, a limit on processor time.
const ENDS: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGXCPU];

/// Lets a write beyond the limit on the size of files be an error, where it would end the process. For a program's
/// `main`.
pub fn outlive_file_limits() {
    // SAFETY: `SIG_IGN` is no handler, so no code of ours runs in a signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Tells of each signal that asks for an end, from a thread of its own. To be called while there is only one thread: it
/// blocks the signals in that one, and those that it starts inherit it. SIGHUP means nothing from then on: there is no
/// file to read anew, and a terminal that goes is none of a server's business.
pub(crate) fn watch(mut tell: impl FnMut(c_int) + Send + 'static) -> io::Result<()> {
    // SAFETY: `SIG_IGN` is no handler, so no code of ours runs in a signal.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` makes a set of the memory; the others get that set, and numbers that are signals.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in ENDS.into_iter().filter(|signal| !is_ignored(*signal)) {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
        set.assume_init()
    };
    thread::Builder::new().name("signals".into()).spawn(move || {
        loop {
            let mut signal = 0;
            // SAFETY: both are ours, and the set is a set. It writes a number.
            if unsafe { libc::sigwait(&raw const set, &raw mut signal) } == 0 {
                tell(signal);
            }
        }
    })?;
    Ok(())
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
