//! The server as a process: it starts, says where it is, takes itself over, and stops when a signal asks for it.
//!
//! `main` calls it. The one rule: the main thread does nothing that may take time, neither disk nor terminal, so that a
//! signal is heard at every moment; and no signal, however many come, loses what a client was told is done.

use std::io::{self, IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::cli::signals::{self, TAKE_OVER};
use crate::cli::takeover::{self, Program};
use crate::config::Config;
use crate::server::{Inherited, Prepared, Server};

/// Between two SIGINTs of somebody who is impatient. A terminal and a program that hands signals on send two at once.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// Between two takeovers: each has every client come back.
const TAKEOVERS: Duration = Duration::from_secs(60);

/// Between two looks at what tiny_http keeps.
const LOOK: Duration = Duration::from_secs(1);

/// What the exit code is when such a person has ended it, as shells have it.
const INTERRUPTED: u8 = 130;

/// What the main thread hears.
enum Word {
    Signal(libc::c_int),
    Prepared(io::Result<Box<Prepared>>),
    HandedOver(Inherited, io::Result<()>),
    Stopped(ExitCode),
}

/// What a server that serves is to do next.
enum Wish {
    End(libc::c_int),
    TakeOver(TcpListener),
}

/// Serves until SIGTERM or SIGINT, and returns what the process is to end with: 0, or 1 where something went
/// wrong, which has been said on stderr by then. For a program's `main`: it takes these signals, but those that were
/// ignored, away from the whole process.
#[must_use]
pub fn serve(config: &Config) -> ExitCode {
    // Signals beyond that say nothing new.
    let (tell, told) = bounded(16);
    serve_until_told(config, &tell, &told).unwrap_or_else(|error| {
        let said = aside("error", move || drop(tell.send(Word::Stopped(fail(&error)))));
        match said.map(|()| told.recv()) {
            Ok(Ok(Word::Stopped(code))) => code,
            _ => ExitCode::FAILURE,
        }
    })
}

fn serve_until_told(config: &Config, tell: &Sender<Word>, told: &Receiver<Word>) -> io::Result<ExitCode> {
    let mut inherited = takeover::inherit()?;
    let program = Program::of_this_process()?;
    loop {
        let of_signals = tell.clone();
        let watch = signals::watch(move |signal| drop(of_signals.try_send(Word::Signal(signal))))?;
        let is_takeover = inherited.handed.is_some();
        let Some(server) = start(config.clone(), inherited, tell, told)? else {
            return Ok(ExitCode::SUCCESS);
        };
        greet(&server, config, is_takeover)?;
        let listening = match wait_for_end(&server, &program, is_takeover, told) {
            Wish::TakeOver(listening) => listening,
            Wish::End(signal) => {
                notify("STOPPING=1");
                return stop(server, config.grace, signal, tell, told);
            }
        };
        notify(&reloading());
        let saved;
        (inherited, saved) = hand_over(server, listening, tell, told)?;
        watch.end();
        // Signals that come from now on are the next program's.
        while let Ok(word) = told.try_recv() {
            if matches!(word, Word::Signal(signal) if signal != TAKE_OVER) {
                notify("STOPPING=1");
                return Ok(saved.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS));
            }
        }
        let error = program.start(&inherited);
        aside("error", move || drop(writeln!(io::stderr(), "statecast: it goes on as it is: {error}")))?;
    }
}

/// Starts the server; `None` if a signal came before it served.
fn start(
    config: Config,
    inherited: Inherited,
    tell: &Sender<Word>,
    told: &Receiver<Word>,
) -> io::Result<Option<Server>> {
    let grace = config.grace;
    let of_start = tell.clone();
    aside("start", move || {
        of_start.send(Word::Prepared(Server::prepare(config, inherited).map(Box::new))).ok();
    })?;
    loop {
        match told.recv() {
            Ok(Word::Prepared(prepared)) => return prepared?.listen().map(Some),
            // It is as new as can be.
            Ok(Word::Signal(TAKE_OVER)) => {}
            _ => {
                // Nobody has been served. A start that is nearly done is let end, so that it tidies up.
                told.recv_timeout(grace / 16).ok();
                return Ok(None);
            }
        }
    }
}

/// Says that it serves: to whoever started it, or after a takeover in the log.
fn greet(server: &Server, config: &Config, is_takeover: bool) -> io::Result<()> {
    notify("READY=1");
    if is_takeover {
        let version = env!("CARGO_PKG_VERSION");
        server.log().line(|| format!("it has taken itself over, and is version {version}"));
        return Ok(());
    }
    let text = format!(
        "statecast listens on {}\n{}  document: {}\n{}  clients:  {}\n",
        server.url(),
        network(server.address()),
        server.kept(),
        who(config, server.address()),
        server.capacity()
    );
    // Started without a terminal or with a closed pipe, it serves all the same.
    aside("greeting", move || {
        io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).ok();
    })
}

/// Waits for a signal that asks for an end, or for a takeover that is due and can be.
fn wait_for_end(server: &Server, program: &Program, is_takeover: bool, told: &Receiver<Word>) -> Wish {
    let mut not_before = is_takeover.then(|| Instant::now() + TAKEOVERS);
    let mut is_asked = false;
    loop {
        match told.recv_timeout(LOOK) {
            Ok(Word::Signal(TAKE_OVER)) => {
                is_asked = true;
                if not_before.is_some_and(|time| time > Instant::now()) {
                    server.log().line(|| "it takes itself over when the last time is a minute ago".into());
                }
            }
            Ok(Word::Signal(signal)) => return Wish::End(signal),
            _ => {}
        }
        let is_time = not_before.is_none_or(|time| time <= Instant::now());
        if !is_time || !(is_asked || server.is_worn()) {
            continue;
        }
        let is_failing = server.saver().is_some_and(|saver| saver.is_failing());
        let fit = if is_failing {
            Err(io::Error::other("the document cannot be saved"))
        } else {
            program.check().and_then(|()| server.listening())
        };
        let error = match fit {
            Ok(listening) => return Wish::TakeOver(listening),
            Err(error) => error,
        };
        server.log().line(|| format!("it does not take itself over: {error}"));
        (is_asked, not_before) = (false, Some(Instant::now() + TAKEOVERS));
    }
}

/// Ends the server for the next one. A signal that comes meanwhile is kept for later.
fn hand_over(
    server: Server,
    listening: TcpListener,
    tell: &Sender<Word>,
    told: &Receiver<Word>,
) -> io::Result<(Inherited, io::Result<()>)> {
    let of_server = tell.clone();
    aside("takeover", move || {
        let (inherited, saved) = server.hand_over(listening);
        of_server.send(Word::HandedOver(inherited, saved)).ok();
    })?;
    let mut signals = Vec::new();
    loop {
        match told.recv() {
            Ok(Word::HandedOver(inherited, saved)) => {
                for signal in signals {
                    tell.try_send(signal).ok();
                }
                return Ok((inherited, saved));
            }
            Ok(word) => signals.push(word),
            Err(_) => return Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// The start lines that say who may read and write.
fn who(config: &Config, listens: SocketAddr) -> String {
    let reads = match &config.subscribe_token {
        Some(_) => "whoever has the subscribe token",
        None if listens.ip().is_loopback() => "this machine alone, for it listens to no other",
        None => "anybody who can connect; --subscribe-token is for those you know",
    };
    let writes = match (config.open, &config.publish_token) {
        (_, Some(_)) => "whoever has the publish token",
        (true, None) => "anybody who can connect (--open)",
        (false, None) => "this machine alone; behind a proxy set --publish-token",
    };
    format!("  reads:    {reads}\n  writes:   {writes}\n")
}

/// The start line with the addresses by which other machines open it, where it listens at all of them.
fn network(listens: SocketAddr) -> String {
    if !listens.ip().is_unspecified() {
        return String::new();
    }
    let Ok(text) = std::fs::read_to_string("/proc/net/fib_trie") else { return String::new() };
    let (mut urls, mut leaf) = (Vec::new(), "");
    for line in text.lines().map(str::trim) {
        leaf = line.strip_prefix("|-- ").unwrap_or(leaf);
        let url = format!("http://{leaf}:{}", listens.port());
        // The table has each address twice.
        if line.starts_with("/32 host LOCAL") && !leaf.starts_with("127.") && !urls.contains(&url) {
            urls.push(url);
        }
    }
    let urls =
        if urls.is_empty() { "this machine has no address there yet".to_owned() } else { urls.join(" ") };
    format!("  network:  {urls}\n")
}

/// Tells a service manager that has asked for it (`Type=notify` of systemd). Nobody is there to hear of an error.
#[cfg(target_os = "linux")]
fn notify(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    if let (Ok(socket), Ok(address)) = (UnixDatagram::unbound(), address) {
        socket.set_nonblocking(true).ok();
        socket.send_to_addr(state.as_bytes(), &address).ok();
    }
}

/// What a service manager is told of a takeover, with the clock by which it tells one from an earlier one.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn reloading() -> String {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes a time to where it is told.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let micros = i128::from(time.tv_sec) * 1_000_000 + i128::from(time.tv_nsec) / 1_000;
    format!("RELOADING=1\nMONOTONIC_USEC={micros}")
}

#[cfg(not(target_os = "linux"))]
fn notify(_state: &str) {}

#[cfg(not(target_os = "linux"))]
fn reloading() -> String {
    String::new()
}

/// Stops the server within the grace; sooner, but not before the document is saved, for somebody who is impatient.
fn stop(
    server: Server,
    grace: Duration,
    first: libc::c_int,
    tell: &Sender<Word>,
    told: &Receiver<Word>,
) -> io::Result<ExitCode> {
    let (begun, deadline) = (Instant::now(), Instant::now() + grace);
    let saver = server.saver();
    let of_stop = tell.clone();
    aside("stop", move || {
        let code = server.stop().map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS);
        of_stop.send(Word::Stopped(code)).ok();
    })?;
    if io::stderr().is_terminal() {
        aside("stopping", || {
            let text = "statecast: stopping; Ctrl-C ends it as soon as the document is saved\n";
            io::stderr().write_all(text.as_bytes()).ok();
        })?;
    }
    let mut interrupted = (first == libc::SIGINT).then_some(begun);
    loop {
        match told.recv_deadline(deadline) {
            Ok(Word::Stopped(code)) => return Ok(code),
            Ok(Word::Signal(libc::SIGINT)) if interrupted.is_none() => interrupted = Some(Instant::now()),
            Ok(Word::Signal(libc::SIGINT)) if interrupted.is_some_and(|at| at.elapsed() >= IMPATIENCE) => {
                let (tell, saver) = (tell.clone(), saver.clone());
                aside("save", move || {
                    let code = match saver.map_or(Ok(()), |saver| saver.wait()) {
                        Ok(()) => ExitCode::from(INTERRUPTED),
                        Err(error) => fail(&error),
                    };
                    tell.send(Word::Stopped(code)).ok();
                })?;
            }
            Ok(_) => {}
            // All that stops keeps to the grace, so it is stderr that takes no word of what was not done.
            Err(_) => {
                let is_saved = saver.is_none_or(|saver| saver.wait().is_ok());
                return Ok(if is_saved { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
        }
    }
}

fn fail(error: &io::Error) -> ExitCode {
    writeln!(io::stderr(), "statecast: {error}").ok();
    ExitCode::FAILURE
}

/// Does in a thread of its own what may take any time.
fn aside(name: &str, act: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(act).map(drop)
}
