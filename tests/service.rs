//! The program as a service: what it says at the start and in its log, and to a service manager.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::*;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_statecast"));
    command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
    command
}

/// Stops it, and returns the lines of its log.
fn log_of(server: Binary) -> Vec<String> {
    server.signal("TERM");
    let (code, log) = server.wait();
    assert_eq!(code, Some(0), "{log}");
    log.lines().map(str::to_owned).collect()
}

#[test]
fn the_first_line_is_the_url_and_the_others_say_who_may_do_what() {
    let this_machine = "this machine alone, for it listens to no other";
    let table: [(&[&str], &str, &str); 4] = [
        (&[], this_machine, "this machine alone; behind a proxy set --publish-token"),
        (&["--publish-token", "x"], this_machine, "whoever has the publish token"),
        (
            &["--subscribe-token", "x", "--open"],
            "whoever has the subscribe token",
            "anybody who can connect (--open)",
        ),
        (
            &["--listen", "0.0.0.0:0"],
            "anybody who can connect; --subscribe-token is for those you know",
            "this machine alone; behind a proxy set --publish-token",
        ),
    ];
    for (options, reads, writes) in table {
        let server = Binary::start(options);
        let first = format!("statecast listens on http://127.0.0.1:{}\n", server.address.port());
        assert!(server.greeting.starts_with(&first), "{}", server.greeting);
        assert!(server.greeting.contains(&format!("\n  reads:    {reads}\n")), "{}", server.greeting);
        assert!(server.greeting.contains(&format!("\n  writes:   {writes}\n")), "{}", server.greeting);
    }
}

#[test]
fn a_server_of_the_whole_network_says_where_others_open_it() {
    let server = Binary::start(&["--listen", "0.0.0.0:0"]);
    let (_, rest) = server.greeting.split_once("\n  network:  ").unwrap();
    let line = rest.lines().next().unwrap();
    for url in line.split(' ').filter(|word| word.contains(':')) {
        let address: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
        assert!(!address.ip().is_loopback() && !address.ip().is_unspecified(), "{line}");
        assert_eq!(get(address, "/healthz").status, 200, "{url}");
    }
    assert!(line.starts_with("http://") || line == "this machine has no address there yet", "{line}");
    let server = Binary::start(&[]);
    assert!(!server.greeting.contains("network:"), "{}", server.greeting);
}

#[test]
fn a_port_that_is_taken_is_one_line_with_a_free_one() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let output = program().args(["--listen", &listen]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.starts_with(&format!("statecast: --listen {listen}: Address already in use")), "{said}");
    let (_, free) = said.trim_end().split_once("; try --listen ").unwrap();
    let free: SocketAddr = free.parse().unwrap();
    assert!(free.ip().is_loopback() && free.port() > taken.local_addr().unwrap().port(), "{said}");
}

/// Whether a line begins with `2026-11-27T08:00:00Z statecast: `.
fn has_time(line: &str) -> bool {
    let Some((time, _)) = line.split_once(" statecast: ") else { return false };
    let shape: String =
        time.chars().map(|letter| if letter.is_ascii_digit() { '9' } else { letter }).collect();
    shape == "9999-99-99T99:99:99Z" && time > "2020"
}

#[test]
fn each_line_of_the_log_has_the_time_unless_a_journal_has_it() {
    for (journal, is_told) in [(None, true), (Some("8:4711"), false)] {
        let mut command = program();
        command.envs(journal.map(|value| ("JOURNAL_STREAM", value)));
        let server = Binary::spawn(&mut command);
        Stream::open(server.address, "/events").next_named("init");
        let log = log_of(server);
        assert!(log.iter().any(|line| line.contains("statecast: client 1 at 127.0.0.1:")), "{log:?}");
        assert!(log.iter().all(|line| has_time(line) == is_told), "{log:?}");
        assert!(is_told || log.iter().all(|line| line.starts_with("statecast: ")), "{log:?}");
    }
}

#[test]
fn whom_a_proxy_on_this_machine_asks_for_is_shown_as_its_claim_and_counts_for_nothing() {
    let server = Binary::spawn(program().args(["--max-clients-per-address", "1"]));
    let address = server.address;
    let claims =
        ["X-Forwarded-For: 203.0.113.7\r\n", "X-Forwarded-For: 10.0.0.1\r\nx-forwarded-for: \"a\\b\r\n", ""];
    let streams = claims.map(|claim| {
        let mut stream =
            Stream::request(address, &format!("GET /events HTTP/1.1\r\nHost: localhost\r\n{claim}\r\n"));
        stream.next_named("init");
        stream
    });
    let many =
        format!("GET /events HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {}\r\n\r\n", "1".repeat(1_000));
    let many = Stream::request(address, &many);
    let clients = wait_until(|| get(address, "/clients").json(), |clients| clients[3].is_object());
    let shown: Vec<&Value> = (0..4).map(|number| &clients[number]["forwarded_for"]).collect();
    assert_eq!(shown[..3], [&json!("203.0.113.7"), &json!("10.0.0.1, \"a\\b"), &json!(null)]);
    assert_eq!(shown[3].as_str().unwrap().len(), 256);
    assert!((0..4).all(|number| clients[number]["address"].as_str().unwrap().starts_with("127.0.0.1:")));
    // A claim makes nobody somebody of this machine, and nobody else somebody of another.
    let claim = [("X-Forwarded-For", "127.0.0.1")];
    assert_eq!(request(address, "PUT", "/state/a", &claim, "1").status, 403);
    drop((streams, many));
    let log = log_of(server);
    let line = |text: &str| log.iter().any(|line| line.contains(text));
    assert!(line(r#" (forwarded_for "127.0.0.1") was refused: 403 this came through a proxy"#), "{log:?}");
    assert!(line(r#"(forwarded_for "203.0.113.7") connected to /events"#), "{log:?}");
    assert!(line(r#"(forwarded_for "10.0.0.1, \"a\\b") connected to /events"#), "{log:?}");
}

#[test]
fn whoever_is_not_heard_finds_the_reason_in_the_log() {
    let table: [(&str, &str); 6] = [
        (
            "PUT /state/kitchen?token=s3cret HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{x",
            "PUT /state/kitchen from 127.0.0.1:9 was refused: 400 the body is not JSON: ",
        ),
        (
            "POST /state/kitchen HTTP/1.1\r\nHost: sensor.example\r\nContent-Length: 1\r\n\r\n1",
            "POST /state/kitchen from 127.0.0.1:9 was refused: 403 this is for the server's own machine alone, ",
        ),
        (
            "POST /state/kitchen?token=s3cret HTTP/1.1\r\nContent-Length: 1\r\n\r\n1",
            "POST /state/kitchen from 127.0.0.1:9 was refused: 400 an HTTP/1.1 request has a Host header",
        ),
        (
            "DELETE /state/kitchen HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "DELETE /state/kitchen from 127.0.0.1:9 was refused: 404 ",
        ),
        (
            "POST /a%0d%0a%1b[2Jb HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1",
            r"POST /a\r\n\u{1b}[2Jb from 127.0.0.1:9 was refused: 405 ",
        ),
        ("GET /state/kitchen HTTP/1.1\r\nHost: localhost\r\n\r\n", ""),
    ];
    for (head, line) in table {
        let server = Binary::spawn(&mut program());
        let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        assert!(exchange(server.address, head.as_bytes()).starts_with("HTTP/1.1 4"), "{head}");
        let log = log_of(server);
        let refusals: Vec<&String> = log.iter().filter(|line| line.contains(" was refused: ")).collect();
        assert_eq!(refusals.len(), usize::from(!line.is_empty()), "{log:?}");
        for refusal in refusals {
            let (before, after) = refusal.split_once("127.0.0.1:").unwrap();
            let after = after.trim_start_matches(|letter: char| letter.is_ascii_digit());
            assert!(format!("{before}127.0.0.1:9{after}").contains(line), "{refusal} is not {line}");
        }
        assert!(!log.concat().contains("s3cret"), "{log:?}");
    }
}

#[test]
fn refusals_without_end_get_a_few_lines_a_second_and_are_counted() {
    let server = Binary::spawn(&mut program());
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(2) {
        assert_eq!(request(server.address, "PUT", "/state/a", &[], "{").status, 400);
        count += 1;
    }
    let seconds = start.elapsed().as_secs() as usize;
    let log = log_of(server);
    let lines = log.iter().filter(|line| line.contains(" was refused: ")).count();
    assert!((2..=5 * (seconds + 1)).contains(&lines), "{lines} lines in {seconds} s, of {count}");
    let counted = log.iter().filter_map(|line| line.strip_suffix(" more were refused")?.rsplit(' ').next());
    let counted: usize = counted.map(|number| number.parse::<usize>().unwrap()).sum();
    assert!(counted > 0 && lines + counted <= count, "{lines} lines and {counted} more, of {count}: {log:?}");
}

#[test]
#[ignore = "needs systemd-analyze: tests/all installs it"]
fn systemd_accepts_the_unit_of_the_readme_and_finds_little_exposed() {
    let folder = Folder::new("unit");
    let [unit, socket] = ["statecast.service", "statecast.socket"].map(|name| folder.file(name));
    let [text, of_socket] = blocks("ini")[..] else { panic!("the README has two units") };
    let here = text.replace("/usr/local/bin/statecast", env!("CARGO_BIN_EXE_statecast"));
    assert_ne!(here, text);
    std::fs::write(&unit, here).unwrap();
    std::fs::write(&socket, of_socket).unwrap();
    // In tenths: 0 is nothing, 100 everything.
    let questions =
        [&["verify", &unit, &socket][..], &["security", "--offline=true", "--threshold=20", &unit]];
    for question in questions {
        let output = Command::new("systemd-analyze").args(question).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{question:?}: {said}");
    }
}

#[test]
fn a_service_manager_hears_when_it_serves_and_when_it_stops() {
    let folder = Folder::new("notify");
    let path = folder.file("socket");
    let name = format!("statecast-test-{}", std::process::id());
    let of_name = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let sockets = [
        (UnixDatagram::bind(&path).unwrap(), path.clone()),
        (UnixDatagram::bind_addr(&of_name).unwrap(), format!("@{name}")),
    ];
    for (socket, name) in sockets {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let heard = || {
            let mut bytes = [0; 100];
            let count = socket.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..count].to_vec()).unwrap()
        };
        let server = Binary::spawn(program().env("NOTIFY_SOCKET", &name));
        assert_eq!(heard(), "READY=1");
        if cfg!(target_os = "linux") {
            server.signal("USR2");
            assert!(heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
            assert_eq!(heard(), "READY=1");
        }
        server.signal("TERM");
        assert_eq!(heard(), "STOPPING=1");
        assert_eq!(server.wait().0, Some(0));
    }
    // A manager that is gone is no reason not to serve.
    let server = Binary::spawn(program().env("NOTIFY_SOCKET", folder.file("nobody")));
    assert_eq!(get(server.address, "/healthz").status, 200);
}
