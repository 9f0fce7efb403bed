//! Taking over: the process becomes its own program anew, and the next server goes on where this one was.
//!
//! `serve` calls it, at the start for what it inherits and at the end for what it leaves. Descriptors and variables are
//! those of `sd_listen_fds(3)`, so that a service manager can pass the socket, too. The one rule: an `exec` that fails has
//! changed nothing.
#![allow(unsafe_code)]

use std::env;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process;
use std::ptr;

use socket2::Socket;

use crate::server::Inherited;

/// What is passed: a socket that listens; and of a process that took itself over, what its server knew, and the file of its
/// document with the lock.
const LISTENING: RawFd = 3;
const HANDOVER: RawFd = 4;
const LOCKED: RawFd = 5;
const NAMES: &str = "statecast:handover";
const NAMES_WITH_LOCK: &str = "statecast:handover:document";

/// The variables that say so.
const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// What this process was started with, if anything. To be called once, before anything else is opened.
///
/// # Errors
/// It is not what a server can go on with.
pub(crate) fn inherit() -> io::Result<Inherited> {
    let [for_process, count, names] = VARIABLES.map(|name| env::var(name).unwrap_or_default());
    let mut inherited = Inherited::default();
    if for_process == process::id().to_string() {
        match (count.as_str(), names.as_str()) {
            ("1", _) => inherited.listening = Some(listening(own(LISTENING)?)?),
            ("2", NAMES) | ("3", NAMES_WITH_LOCK) => {
                let (socket, mut stream) = (own(LISTENING)?, File::from(own(HANDOVER)?));
                inherited.listening = Some(listening(socket)?);
                let mut handed = Vec::new();
                stream.rewind()?;
                stream.read_to_end(&mut handed)?;
                inherited.handed = Some(handed);
                if names == NAMES_WITH_LOCK {
                    inherited.locked = Some(File::from(own(LOCKED)?));
                }
            }
            ("0" | "", _) => {}
            _ => return Err(unfit(&format!("{count} sockets were passed, and it listens on one"))),
        }
    }
    reserve()?;
    Ok(inherited)
}

fn unfit(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("LISTEN_FDS: {text}"))
}

/// A copy of what was passed, above the numbers that are passed, and one that `exec` closes.
fn own(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asking is allowed of any number.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(unfit(&format!("descriptor {number} is not open")));
    }
    // SAFETY: it is open, and passed to this process, in which nothing else has been opened yet.
    let passed = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: it copies a descriptor that is open.
    let copy = unsafe { libc::fcntl(passed.as_raw_fd(), libc::F_DUPFD_CLOEXEC, LOCKED + 1) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made, and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

fn listening(passed: OwnedFd) -> io::Result<TcpListener> {
    let socket = Socket::from(passed);
    let is_ours = socket.is_listener().unwrap_or(false)
        && socket.local_addr().is_ok_and(|address| address.as_socket().is_some());
    if is_ours { Ok(socket.into()) } else { Err(unfit("what was passed is no socket that listens for TCP")) }
}

/// Holds the numbers that are passed, so that they are never anybody else's.
fn reserve() -> io::Result<()> {
    loop {
        let file = File::open("/dev/null")?;
        if file.as_raw_fd() > LOCKED {
            return Ok(());
        }
        let _ = file.into_raw_fd();
    }
}

/// The program of this process, to be started again.
pub(crate) struct Program {
    path: PathBuf,
}

impl Program {
    /// By the path that it was started by. `/proc/self/exe` would be the old file after an upgrade.
    pub fn of_this_process() -> io::Result<Program> {
        // SAFETY: it takes a number, and returns one.
        let path = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const libc::c_char;
        if path.is_null() {
            return Ok(Program { path: env::current_exe()? });
        }
        // SAFETY: the kernel puts a text with an end there, for as long as the process lives.
        let path = OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes());
        Ok(Program { path: env::current_dir()?.join(path) })
    }

    /// Why it cannot be started again, if that can be seen.
    pub fn check(&self) -> io::Result<()> {
        let path = CString::new(self.path.as_os_str().as_bytes())?;
        // SAFETY: the path is a text with an end.
        let is_fit = unsafe { libc::access(path.as_ptr(), libc::X_OK) } == 0;
        if is_fit { Ok(()) } else { Err(self.about(&io::Error::last_os_error())) }
    }

    /// Becomes it, with what the next server goes on with; returns only if that fails. Signals that wait are left to it.
    pub fn start(&self, inherited: &Inherited) -> io::Error {
        let Err(error) = self.exec(inherited);
        if let Ok(null) = File::open("/dev/null") {
            pass(&null, LISTENING, libc::O_CLOEXEC).ok();
            pass(&null, HANDOVER, libc::O_CLOEXEC).ok();
            pass(&null, LOCKED, libc::O_CLOEXEC).ok();
        }
        self.about(&error)
    }

    fn exec(&self, inherited: &Inherited) -> io::Result<std::convert::Infallible> {
        let (Some(listening), Some(handed)) = (&inherited.listening, &inherited.handed) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut stream = memory()?;
        stream.write_all(handed)?;
        pass(listening, LISTENING, 0)?;
        pass(&stream, HANDOVER, 0)?;
        let (count, names) = match &inherited.locked {
            Some(locked) => {
                pass(locked, LOCKED, 0)?;
                ("3", NAMES_WITH_LOCK)
            }
            None => ("2", NAMES),
        };
        let path = CString::new(self.path.as_os_str().as_bytes())?;
        let arguments = env::args_os().map(|argument| CString::new(argument.as_bytes()));
        let arguments: Vec<CString> = arguments.collect::<Result<_, _>>()?;
        let kept = env::vars_os().filter(|(name, _)| !VARIABLES.iter().any(|other| *name == **other));
        let kept = kept.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
        let values = [&process::id().to_string(), count, names];
        let ours = VARIABLES.iter().zip(values).map(|(name, value)| format!("{name}={value}").into_bytes());
        let variables: Vec<CString> = kept.chain(ours).map(CString::new).collect::<Result<_, _>>()?;
        let [arguments, variables] = [&arguments, &variables]
            .map(|texts| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>());
        // SAFETY: a text with an end, and two lists of such with a null at theirs; all live until it returns.
        unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), variables.as_ptr()) };
        Err(io::Error::last_os_error())
    }

    fn about(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

/// A file without a name.
fn memory() -> io::Result<File> {
    // SAFETY: the name is a text with an end.
    let number = unsafe { libc::memfd_create(c"statecast".as_ptr(), libc::MFD_CLOEXEC) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made, and is nobody else's.
    Ok(unsafe { File::from_raw_fd(number) })
}

/// Gives something a number that is passed.
fn pass(what: &impl AsRawFd, number: RawFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the number is one of those that were reserved, or that nothing in this process uses.
    if unsafe { libc::dup3(what.as_raw_fd(), number, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
