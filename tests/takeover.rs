//! The program takes itself over, for an upgrade and when tiny_http has kept too much: nobody is refused, nobody gets `init`,
//! nothing is lost or doubled.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use support::*;

/// What it says when it is its new self.
const DONE: &str = "it has taken itself over";

/// The lines of a program's log, as they come.
struct Lines(Receiver<String>);

impl Lines {
    fn of(server: &mut Binary) -> Lines {
        let (send, lines) = channel();
        let stderr = BufReader::new(server.child.stderr.take().unwrap());
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Lines(lines)
    }

    /// Waits for a line that has this in it, and returns those up to it.
    fn wait_for(&self, text: &str) -> Vec<String> {
        let mut seen = Vec::new();
        while let Ok(line) = self.0.recv_timeout(2 * DEADLINE) {
            seen.push(line);
            if seen.last().unwrap().contains(text) {
                return seen;
            }
        }
        panic!("no {text:?} in {seen:?}");
    }
}

/// The program with nothing ignored, whatever started the tests.
fn start(program: &str, arguments: &[&str]) -> (Binary, Lines) {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,TERM,XCPU,USR2", program]).args(arguments);
    let mut server = Binary::spawn(&mut command);
    let lines = Lines::of(&mut server);
    (server, lines)
}

/// Waits for its end; its log is read by another.
fn code_of(mut server: Binary) -> Option<i32> {
    wait_until(|| server.child.try_wait().unwrap(), Option::is_some).unwrap().code()
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_statecast");

/// A copy of the program that a test may replace.
fn copy_of_program(folder: &Folder) -> String {
    let copy = folder.file("statecast");
    fs::copy(PROGRAM, folder.file("new")).unwrap();
    fs::rename(folder.file("new"), &copy).unwrap();
    copy
}

/// Comes back after an id, which must be known.
fn come_back(address: SocketAddr, path: &str, id: &str) -> Stream {
    let mut stream = Stream::resume(address, path, id);
    assert_eq!(stream.next().json()["reason"], "known", "{stream:?}");
    stream
}

#[test]
fn an_upgrade_in_place_keeps_process_port_document_history_and_tags_with_and_without_a_file() {
    let folder = Folder::new("upgrade");
    let program = copy_of_program(&folder);
    let file = folder.file("document.json");
    for options in [&["--document", &file][..], &[]] {
        let (server, lines) = start(&program, options);
        let address = server.address;
        let mut stream = Stream::open(address, "/events");
        let first = stream.next_named("init").id.unwrap();
        let change = put(address, "/state/a", r#"{"x":1.10}"#);
        let chat = post(address, "/events/a", "hi");
        let tag = get(address, "/state/a").header("ETag").unwrap().to_owned();
        // As `install` and cargo do it.
        copy_of_program(&folder);
        server.signal("USR2");
        assert_eq!(stream.next_named("message").id(), chat);
        assert!(stream.ends_cleanly());
        assert!(stream.retry.is_some_and(|retry| (100..=1_000).contains(&retry)), "{stream:?}");
        // Before it is its new self, and not refused.
        let mut back = come_back(address, "/events", &first);
        lines.wait_for(DONE);
        assert_eq!(back.next_but_heartbeats().id(), change);
        assert_eq!(back.next_but_heartbeats().id(), chat);
        let number = |stream: &Stream| -> u64 {
            let text = format!("{stream:?}");
            text.split("\"client\":").nth(1).unwrap().split(',').next().unwrap().parse().unwrap()
        };
        assert!(number(&back) > number(&stream));
        assert_eq!(get(address, "/state").body, r#"{"a":{"x":1.1}}"#);
        assert_eq!(get(address, "/state/a").header("ETag").unwrap(), tag);
        let exe = fs::read_link(format!("/proc/{}/exe", server.child.id())).unwrap();
        assert_eq!(exe.to_str().unwrap(), program);
        assert!(put(address, "/state/b", "2") > chat);
        assert_eq!(back.next_but_heartbeats().data, r#"{"b":2}"#);
        if !options.is_empty() {
            wait_until(|| fs::read_to_string(&file).unwrap(), |text| text == "{\"a\":{\"x\":1.1},\"b\":2}\n");
        }
        server.signal("TERM");
        assert!(back.ends_cleanly());
        assert_eq!(code_of(server), Some(0));
    }
    assert_eq!(folder.names(), ["document.json", "document.json.history", "statecast"]);
}

/// A client that comes back until it has seen `end`; how often it saw each message.
fn follow(address: SocketAddr) -> BTreeMap<String, usize> {
    let mut stream = Stream::open(address, "/events");
    let mut last = stream.next_named("init").id.unwrap();
    let mut seen = BTreeMap::new();
    loop {
        match stream.next_or_end() {
            None => stream = come_back(address, "/events", &last),
            Some(event) => {
                assert_ne!(event.name, "init");
                last = event.id.clone().unwrap_or(last);
                if event.data == "end" {
                    return seen;
                }
                if event.name == "message" {
                    *seen.entry(event.data).or_default() += 1;
                }
            }
        }
    }
}

/// Publishes numbers until told to stop, over one connection as long as there is one; what was not answered was not done,
/// and is published again.
fn publish(address: SocketAddr, who: usize, is_enough: &AtomicBool) -> usize {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(2 * DEADLINE)).build().into();
    let mut count = 0;
    while !is_enough.load(Ordering::Relaxed) {
        match agent.post(format!("http://{address}/events")).send(format!("{who}: {count}")) {
            Ok(_) => count += 1,
            Err(ureq::Error::StatusCode(status)) => panic!("refused: {status}"),
            Err(_) => {}
        }
        // Not a wait for something: the machine has others to serve.
        thread::sleep(Duration::from_millis(5));
    }
    count
}

#[test]
fn three_thousand_strangers_who_stay_for_good_are_gone_after_a_takeover_that_loses_and_doubles_nothing() {
    const CLIENTS: usize = 200;
    const PUBLISHERS: usize = 4;
    let (server, lines) = start(PROGRAM, &["--history", "64M"]);
    let address = server.address;
    put(address, "/state/a", "1");
    let before = server.count_in("task");
    let is_enough = AtomicBool::new(false);
    thread::scope(|scope| {
        let is_enough = &is_enough;
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(move || follow(address))).collect();
        wait_until(|| get(address, "/clients").json().as_array().unwrap().len(), |count| *count == CLIENTS);
        let publishers: Vec<_> =
            (0..PUBLISHERS).map(|who| scope.spawn(move || publish(address, who, is_enough))).collect();
        for _ in 0..3_000 {
            TcpStream::connect(address).unwrap().write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").ok();
        }
        wait_until(|| server.count_in("task"), |threads| *threads > 500);
        lines.wait_for(DONE);
        post(address, "/events", "now");
        is_enough.store(true, Ordering::Relaxed);
        let counts: Vec<usize> = publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect();
        let expected = counts
            .iter()
            .enumerate()
            .flat_map(|(who, count)| (0..*count).map(move |number| (format!("{who}: {number}"), 1)));
        let expected: BTreeMap<String, usize> = expected.chain([("now".to_owned(), 1)]).collect();
        post(address, "/events", "end");
        for client in clients {
            let seen = client.join().unwrap();
            assert!(seen == expected, "{} of {}", seen.len(), expected.len());
        }
    });
    wait_until(|| server.count_in("task"), |threads| *threads < before + 100);
    wait_until(|| server.count_in("fd"), |descriptors| *descriptors < 100);
    assert_eq!(get(address, "/state").body, r#"{"a":1}"#);
}

/// A request that has not been sent whole.
fn hold(address: SocketAddr, topic: &str) -> TcpStream {
    let mut connection = connect(address);
    let head = format!(
        "PUT /state/{topic} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).unwrap();
    assert!(read_head(&mut connection).starts_with("HTTP/1.1 100 Continue"));
    connection
}

#[test]
fn what_is_under_way_is_answered_before_it_and_who_comes_meanwhile_after_it() {
    let (server, lines) = start(PROGRAM, &["--grace", "120s"]);
    let address = server.address;
    let mut slow = hold(address, "a");
    let mut stream = Stream::open(address, "/events");
    stream.next_named("init");
    let mut kept = connect(address);
    let ask = "PUT /state/n HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1";
    // Answers say that they are the last of their connection when it has begun.
    let mut asked = 0;
    wait_until(
        || {
            kept.write_all(ask.as_bytes()).unwrap();
            let head = read_head(&mut kept);
            let length = head.split("Content-Length: ").nth(1).unwrap().split("\r\n").next().unwrap();
            std::io::Read::read_exact(&mut kept, &mut vec![0; length.parse().unwrap()]).unwrap();
            assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
            asked += 1;
            if asked == 1 {
                server.signal("USR2");
            }
            head.contains("Connection: close")
        },
        |is_last| *is_last,
    );
    // Streams go on, and what is published reaches them.
    assert_eq!(stream.next_named("update").data, r#"{"n":1}"#);
    let waiting = thread::spawn(move || get(address, "/state").body);
    slow.write_all(b"1").unwrap();
    let head = read_head(&mut slow);
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("Connection: close"), "{head}");
    assert_eq!(waiting.join().unwrap(), r#"{"a":1,"n":1}"#);
    lines.wait_for(DONE);
    assert!(stream.ends_cleanly());
    assert!(format!("{stream:?}").contains(r#"{"a":1}"#), "{stream:?}");
}

#[test]
fn a_program_that_is_gone_or_none_by_now_is_a_line_in_the_log_and_it_goes_on() {
    let folder = Folder::new("none");
    let program = copy_of_program(&folder);
    let (server, lines) = start(&program, &["--document", &folder.file("document.json")]);
    let mut stream = Stream::open(server.address, "/events");
    stream.next_named("init");
    fs::remove_file(&program).unwrap();
    server.signal("USR2");
    lines.wait_for(&format!("it does not take itself over: {program}: No such file or directory"));
    let id = put(server.address, "/state/a", "1");
    assert_eq!(stream.next_named("update").id(), id);
    drop(server);

    let program = copy_of_program(&folder);
    let (server, lines) = start(&program, &["--document", &folder.file("document.json")]);
    let mut stream = Stream::open(server.address, "/events");
    let id = stream.next_named("init").id.unwrap();
    fs::write(folder.file("new"), "no program").unwrap();
    fs::set_permissions(folder.file("new"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(folder.file("new"), &program).unwrap();
    server.signal("USR2");
    assert!(stream.ends_cleanly());
    lines.wait_for(&format!("it goes on as it is: {program}: Exec format error"));
    let mut stream = come_back(server.address, "/events", &id);
    let id = put(server.address, "/state/a", "2");
    assert_eq!(stream.next_but_heartbeats().id(), id);
    // It hears signals as before.
    server.signal("TERM");
    assert!(stream.ends_cleanly());
    assert_eq!(code_of(server), Some(0));
    assert_eq!(fs::read_to_string(folder.file("document.json")).unwrap(), "{\"a\":2}\n");
}

#[test]
fn nobody_else_can_have_the_file_of_the_document_in_between() {
    use std::os::unix::fs::MetadataExt;
    let folder = Folder::new("lock");
    let file = folder.file("document.json");
    let (server, lines) = start(PROGRAM, &["--document", &file]);
    put(server.address, "/state/a", "1");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let thief = scope.spawn(|| {
            let mut tries = 0;
            while !is_over.load(Ordering::Relaxed) {
                let opened = fs::File::open(&file).unwrap();
                let has_lock = opened.try_lock().is_ok();
                // A save puts another file in its place.
                let is_it = opened.metadata().unwrap().ino() == fs::metadata(&file).unwrap().ino();
                assert!(!(has_lock && is_it), "after {tries} tries");
                tries += 1;
            }
            tries
        });
        server.signal("USR2");
        lines.wait_for(DONE);
        put(server.address, "/state/a", "2");
        wait_until(|| fs::read_to_string(&file).unwrap(), |text| text == "{\"a\":2}\n");
        is_over.store(true, Ordering::Relaxed);
        assert!(thief.join().unwrap() > 100);
    });
}

#[test]
fn it_takes_itself_over_once_a_minute_and_a_stop_in_the_middle_is_a_stop() {
    let folder = Folder::new("once");
    let file = folder.file("document.json");
    let (server, lines) = start(PROGRAM, &["--document", &file]);
    let address = server.address;
    put(address, "/state/a", "1");
    for _ in 0..3 {
        server.signal("USR2");
    }
    lines.wait_for(DONE);
    let mut stream = Stream::open(address, "/events");
    stream.next_named("init");
    server.signal("USR2");
    lines.wait_for("it takes itself over when the last time is a minute ago");
    let id = put(address, "/state/a", "2");
    assert_eq!(stream.next_named("update").id(), id);
    server.signal("TERM");
    assert!(stream.ends_cleanly());
    assert_eq!(code_of(server), Some(0));

    for signals in ["USR2 TERM", "USR2 INT", "TERM USR2"] {
        let (server, _lines) = start(PROGRAM, &["--document", &file]);
        put(server.address, "/state/a", &format!("\"{signals}\""));
        for signal in signals.split(' ') {
            server.signal(signal);
        }
        assert_eq!(code_of(server), Some(0), "{signals}");
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{{\"a\":\"{signals}\"}}\n"));
    }
}

/// A program that is given a socket as systemd gives it.
fn start_on(socket: impl Into<OwnedFd>, count: &str, arguments: &[&str]) -> Command {
    let script = "exec 3<&0 0</dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, PROGRAM]).args(arguments).env("LISTEN_FDS", count).stdin(socket.into());
    command
}

#[test]
fn a_service_manager_can_pass_the_socket_and_hold_who_comes_before_the_start() {
    for address in ["127.0.0.1:0", "[::]:0", "[::1]:0"] {
        let socket = TcpListener::bind(address).unwrap();
        // systemd can be told to.
        socket.set_nonblocking(true).unwrap();
        let port = socket.local_addr().unwrap().port();
        let host = if address.contains("127") { "127.0.0.1" } else { "[::1]" };
        let at: SocketAddr = format!("{host}:{port}").parse().unwrap();
        let early = thread::spawn(move || put(at, "/state/a", "1"));
        let mut server = Binary::spawn(&mut start_on(socket.try_clone().unwrap(), "1", &[]));
        let lines = Lines::of(&mut server);
        assert_eq!(server.address.port(), port, "{}", server.greeting);
        early.join().unwrap();
        let mut stream = Stream::open(at, "/events");
        let id = stream.next_named("init").id.unwrap();
        server.signal("USR2");
        assert!(stream.ends_cleanly());
        come_back(at, "/events", &id);
        lines.wait_for(DONE);
        server.signal("TERM");
        assert_eq!(code_of(server), Some(0));
    }
}

#[test]
fn what_is_passed_and_cannot_be_used_is_said_and_what_is_for_another_process_is_not_looked_at() {
    let folder = Folder::new("passed");
    let bound = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(bound.local_addr().unwrap()).unwrap();
    let unfit = "what was passed is no socket that listens for TCP";
    for (socket, count, why) in [
        (OwnedFd::from(connected), "1", unfit),
        (fs::File::open("/dev/null").unwrap().into(), "1", unfit),
        (UnixListener::bind(folder.file("socket")).unwrap().into(), "1", unfit),
        (bound.try_clone().unwrap().into(), "2", "2 sockets were passed, and it listens on one"),
        (bound.try_clone().unwrap().into(), "x", "x sockets were passed, and it listens on one"),
    ] {
        let output = start_on(socket, count, &[]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said), (Some(1), format!("statecast: LISTEN_FDS: {why}\n")));
    }
    let mut command = Command::new(PROGRAM);
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1").stdin(Stdio::null());
    assert!(get(Binary::spawn(&mut command).address, "/healthz").status == 200);
}
