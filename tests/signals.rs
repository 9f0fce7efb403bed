//! Signals: each one that asks for an end gets a clean one, a second one takes nothing away, and those that were ignored
//! at the start stay ignored.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use support::*;

/// The program with nothing ignored, whatever started the tests.
fn start(arguments: &[&str]) -> Binary {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,TERM,XCPU", env!("CARGO_BIN_EXE_statecast")]).args(arguments);
    Binary::spawn(&mut command)
}

/// A request that has not been sent whole. A server that stops waits for it.
fn hold(server: &Binary) -> TcpStream {
    let mut connection = connect(server.address);
    let head = "GET /state HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
    connection.write_all(head.as_bytes()).unwrap();
    assert!(read_head(&mut connection).starts_with("HTTP/1.1 100 Continue"));
    connection
}

fn wait_for_stop_to_begin(server: &Binary) {
    wait_until(
        || TcpStream::connect(server.address).err().map(|error| error.kind()),
        |refused| *refused == Some(ErrorKind::ConnectionRefused),
    );
}

#[test]
fn each_signal_that_asks_for_an_end_gets_a_clean_one() {
    let folder = Folder::new("ends");
    for name in ["TERM", "INT", "XCPU"] {
        let file = folder.file(name);
        let server = start(&["--document", &file]);
        let mut stream = Stream::open(server.address, "/events");
        stream.next_named("init");
        put(server.address, "/state/a", "1");
        server.signal(name);
        assert!(stream.ends_cleanly(), "{name}");
        let (code, log) = server.wait();
        assert_eq!(code, Some(0), "{name}: {log}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n", "{name}");
    }
}

#[test]
fn a_terminal_that_goes_or_a_reload_does_not_stop_it() {
    let server = start(&[]);
    let mut stream = Stream::open(server.address, "/events");
    stream.next_named("init");
    for round in 0..3 {
        server.signal("HUP");
        put(server.address, "/state/a", &round.to_string());
        assert_eq!(stream.next_named("update").data, format!("{{\"a\":{round}}}"));
    }
    server.signal("TERM");
    assert!(stream.ends_cleanly());
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn a_second_signal_takes_nothing_away() {
    let folder = Folder::new("second");
    for (first, second) in
        [("TERM", "TERM"), ("TERM", "XCPU"), ("XCPU", "TERM"), ("TERM", "INT"), ("INT", "TERM")]
    {
        let file = folder.file(&format!("{first}-{second}"));
        let server = start(&["--document", &file, "--grace", "120s"]);
        put(server.address, "/state/a", "1");
        let mut held = hold(&server);
        server.signal(first);
        server.signal(second);
        wait_for_stop_to_begin(&server);
        server.signal(second);
        held.write_all(b"1").unwrap();
        assert!(read_head(&mut held).starts_with("HTTP/1.1 200 OK"), "{first}, {second}");
        let (code, log) = server.wait();
        assert_eq!(code, Some(0), "{first}, {second}: {log}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n", "{first}, {second}");
    }
}

#[test]
fn what_was_acknowledged_is_kept_when_two_signals_come_at_once() {
    let folder = Folder::new("acknowledged");
    for signals in ["TERM TERM", "XCPU TERM", "INT INT"] {
        let file = folder.file(signals);
        let server = start(&["--document", &file]);
        let url = format!("http://{}/state/n", server.address);
        let writer = std::thread::spawn(move || {
            let agent: ureq::Agent =
                ureq::Agent::config_builder().timeout_global(Some(DEADLINE)).build().into();
            let mut acknowledged = 0;
            while agent.put(&url).send((acknowledged + 1).to_string()).is_ok() {
                acknowledged += 1;
            }
            acknowledged
        });
        wait_until(|| get(server.address, "/state").json(), |state| state["n"].as_u64() > Some(20));
        // One shell for both: a terminal and npm are as quick.
        let kills = signals.replace(' ', " \"$0\"; kill -s ");
        let kills = format!("kill -s {kills} \"$0\"");
        let id = server.child.id().to_string();
        Command::new("sh").args(["-c", &kills, &id]).stderr(Stdio::null()).status().unwrap();
        let (code, log) = server.wait();
        let acknowledged = writer.join().unwrap();
        assert_eq!(code, Some(0), "{signals}: {log}");
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{{\"n\":{acknowledged}}}\n"), "{signals}");
    }
}

#[test]
fn somebody_who_goes_on_interrupting_is_not_made_to_wait_and_the_document_is_saved_first() {
    let folder = Folder::new("impatient");
    let file = folder.file("document.json");
    let mut server = start(&["--document", &file, "--grace", "120s"]);
    put(server.address, "/state/a", "1");
    let _held = hold(&server);
    // Each look is a Ctrl-C. Those of the first second mean nothing; then one does.
    let id = server.child.id();
    let ended = wait_until(
        || {
            Command::new("kill").args(["-s", "INT", &id.to_string()]).stderr(Stdio::null()).status().unwrap();
            server.child.try_wait().unwrap()
        },
        Option::is_some,
    );
    assert_eq!(ended.and_then(|status| status.code()), Some(130));
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n");
}

#[test]
#[ignore = "needs strace: tests/all installs it"]
fn somebody_who_is_impatient_waits_for_a_slow_disk() {
    let folder = Folder::new("patient");
    let file = folder.file("document.json");
    let program = env!("CARGO_BIN_EXE_statecast");
    let options = ["--document", &file, "--grace", "120s"];
    let server = Binary::spawn(&mut strace("fsync:delay_enter=2000000", program, &options));
    put(server.address, "/state/a", "1");
    let _held = hold(&server);
    let id = server.child.id();
    wait_until(
        || {
            server.signal("INT");
            status_of(id, "State:")
        },
        |state| state.as_ref().is_none_or(|state| state.starts_with('Z')),
    );
    assert_eq!(server.wait().0, Some(130));
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n");
}

#[test]
fn signals_that_are_ignored_at_the_start_stay_ignored() {
    let folder = Folder::new("ignored");
    // As nohup does it, as a shell does it with `&`, and all of it.
    for ignored in ["HUP", "INT", "HUP INT", "XCPU"] {
        let file = folder.file(ignored);
        let server = Binary::start_under(&format!("trap '' {ignored}"), &["--document", &file]);
        let mask = |name: &str| {
            let mask = status_of(server.child.id(), name).unwrap();
            u64::from_str_radix(&mask, 16).unwrap()
        };
        for name in ignored.split(' ') {
            let number = match name {
                "HUP" => libc::SIGHUP,
                "INT" => libc::SIGINT,
                _ => libc::SIGXCPU,
            };
            // Neither taken by a handler nor by a thread that waits for it.
            let bit = 1 << (number - 1);
            assert_eq!((mask("SigIgn:") & bit, mask("SigBlk:") & bit, mask("SigCgt:") & bit), (bit, 0, 0));
            server.signal(name);
        }
        put(server.address, "/state/a", "1");
        wait_until(|| fs::read_to_string(&file).unwrap(), |text| text == "{\"a\":1}\n");
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0), "{ignored}");
    }
}

#[test]
fn sigterm_ends_it_at_every_moment_of_the_start() {
    let folder = Folder::new("moments");
    let file = folder.file("document.json");
    let text = format!("{{\"a\":[{}0]}}\n", "12345,".repeat(100_000));
    fs::write(&file, &text).unwrap();
    for moment in 0..40_u64 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_statecast"))
            .args(["--listen", "127.0.0.1:0", "--document", &file])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Anything that takes a while, and a little longer each time.
        for _ in 0..moment * 5_000 {
            std::thread::yield_now();
        }
        signal(&child, "TERM");
        let status = wait_until(|| child.try_wait().unwrap(), Option::is_some).unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        // Before it has taken signals over, it is one that ends any process.
        let is_clean = status.code() == Some(0) || status.signal() == Some(libc::SIGTERM);
        assert!(is_clean && said.is_empty(), "{status}: {said}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }
    // Whatever one of them was killed at.
    let server = start(&["--document", &file]);
    server.signal("TERM");
    assert_eq!(server.wait().0, Some(0));
    assert_eq!(folder.names(), ["document.json"]);
}

#[test]
#[ignore = "needs strace: tests/all installs it"]
fn sigterm_ends_a_start_that_waits_for_the_disk() {
    let folder = Folder::new("waits");
    let file = folder.file("document.json");
    fs::write(&file, "{}").unwrap();
    let mut command = strace("flock:delay_exit=120000000", env!("CARGO_BIN_EXE_statecast"), &["--document"]);
    let mut child = command
        .args([&file, "--listen", "127.0.0.1:0"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It has the lock, and has not been told.
    let held = File::open(&file).unwrap();
    wait_until(|| held.try_lock().is_err() || held.unlock().is_err(), |is_locked| *is_locked);
    signal(&child, "TERM");
    wait_until(|| status_of(child.id(), "State:").unwrap(), |state| state.starts_with('Z'));
    end_strace(child.id());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().code() == Some(0) && !said.contains("statecast:"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{}");
}

#[test]
fn a_terminal_that_takes_no_greeting_does_not_keep_it_from_stopping() {
    let folder = Folder::new("greeting");
    let (file, pipe) = (folder.file("document.json"), folder.file("pipe"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Full, and nobody reads.
    let mut pipe = File::options().read(true).write(true).open(&pipe).unwrap();
    let piece = [b'x'; 4_096];
    for _ in 0..16 {
        pipe.write_all(&piece).unwrap();
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_statecast"))
        .args(["--listen", "127.0.0.1:0", "--grace", "1s", "--document", &file])
        .stdout(pipe.try_clone().unwrap())
        .stderr(pipe)
        .spawn()
        .unwrap();
    wait_until(|| fs::read_to_string(&file).unwrap_or_default(), |text| text == "{}\n");
    signal(&child, "TERM");
    let status = wait_until(|| child.try_wait().unwrap(), Option::is_some).unwrap();
    assert_eq!(status.code(), Some(0));
}
