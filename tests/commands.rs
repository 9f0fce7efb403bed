//! `tail`, `set` and `send` as they are run: in pipes, with tokens, through restarts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use statecast::Token;
use support::*;

/// The program, under a limit: exit code 124 is a hang. The limit is long, for a server that stops may tell a client to
/// come back 15 s later.
fn statecast(arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.arg((4 * DEADLINE).as_secs().to_string()).arg(env!("CARGO_BIN_EXE_statecast")).args(arguments);
    command.env_remove("STATECAST_TOKEN").env_remove("STATECAST_TOKEN_FILE");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end.
fn run(arguments: &[&str]) -> Ended {
    Ended::from(statecast(arguments).output().unwrap())
}

/// How a command ended.
#[derive(Debug, PartialEq)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

fn done(out: &str) -> Ended {
    Ended { code: Some(0), out: out.into(), err: String::new() }
}

/// A command that goes on.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn start(arguments: &[&str]) -> Running {
        let mut child = statecast(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Running { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }

    fn json(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"))
    }

    fn input(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Nobody reads on; and how it ended.
    fn end(self) -> Ended {
        drop(self.out);
        Ended::from(self.child.wait_with_output().unwrap())
    }
}

#[test]
fn tail_shows_what_an_event_source_gives_and_at_once() {
    let server = start();
    let url = format!("{}/kitchen", server.address());
    let first = put(server.address(), "/state/kitchen", r#"{"temp":21.5}"#);
    let mut tail = Running::start(&["tail", &url]);
    let hello = tail.json();
    assert_eq!((hello["event"].as_str(), hello["id"].as_str()), (Some("hello"), Some("")));
    assert_eq!(
        tail.line(),
        format!(r#"{{"event":"init","data":"{{\"temp\":21.5}}","id":"{first}"}}"#) + "\n"
    );
    let second = patch(server.address(), "/state/kitchen", r#"{"temp":21.7}"#);
    assert_eq!(
        tail.line(),
        format!(r#"{{"event":"update","data":"{{\"temp\":21.7}}","id":"{second}"}}"#) + "\n"
    );
    let third = request(
        server.address(),
        "POST",
        "/events/kitchen?event=alert",
        &[("Content-Type", "text/plain")],
        "the \"kettle\"\nboils",
    )
    .id();
    assert_eq!(
        tail.line(),
        format!(r#"{{"event":"alert","data":"the \"kettle\"\nboils","id":"{third}"}}"#) + "\n"
    );
}

#[test]
fn tail_in_a_pipe_ends_quietly_with_its_reader_also_while_nothing_comes() {
    let server = start();
    let url = server.address().to_string();
    for option in [&["--event", "init"][..], &["--state"], &["--raw"], &[]] {
        let mut tail = Running::start(&[&["tail", &url][..], option].concat());
        assert_ne!(tail.line(), "");
        // There is a heartbeat every 15 s, and no other event at all.
        let start = Instant::now();
        assert_eq!(tail.end(), done(""), "{option:?}");
        assert!(start.elapsed() < DEADLINE, "it did not wait for something to write");
    }
    let script = format!("{} tail {url} --event init | head -1", env!("CARGO_BIN_EXE_statecast"));
    let output = Command::new("timeout").args(["20", "sh", "-c", &script]).output().unwrap();
    let ended = Ended::from(output);
    assert_eq!((ended.code, &*ended.err, ended.out.lines().count()), (Some(0), "", 1), "{ended:?}");
}

#[test]
fn tail_shows_the_document_once_or_after_each_change_and_no_more_than_asked() {
    let server = start();
    let (address, url) = (server.address(), server.address().to_string());
    put(address, "/state/a", "1");
    assert_eq!(run(&["tail", "--once", &url]), done("{\"a\":1}\n"));
    assert_eq!(run(&["tail", "--once", &format!("http://{url}/state/a")]), done("1\n"));
    assert_eq!(run(&["tail", "--once", &format!("{url}/absent")]), done("null\n"));
    let mut tail = Running::start(&["tail", "--state", "--count", "3", &url]);
    assert_eq!(tail.line(), "{\"a\":1}\n");
    patch(address, "/state", r#"{"a":null,"b":{"c":[]}}"#);
    assert_eq!(tail.line(), "{\"b\":{\"c\":[]}}\n");
    post(address, "/events?event=alert", "changes nothing");
    put(address, "/state/b", "2");
    assert_eq!(tail.line(), "{\"b\":2}\n");
    assert_eq!(tail.line(), "", "three documents");
    assert_eq!(tail.end(), done(""));

    let names = ["--event", "hello", "--event", "alert", "--event", "update"];
    let mut tail = Running::start(&[&["tail", &url, "--count=3"][..], &names].concat());
    assert_eq!(tail.json()["event"], "hello");
    post(address, "/events?event=alert", "1");
    assert_eq!(tail.json()["data"], "1");
    post(address, "/events?event=chat", "not asked for");
    put(address, "/state/b", "3");
    assert_eq!(tail.json()["data"], r#"{"b":3}"#);
    assert_eq!(tail.end(), done(""));
}

#[test]
fn tail_raw_is_the_bytes_as_they_come() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = listener.local_addr().unwrap().to_string();
    let mut tail = Running::start(&["tail", "--raw", &url, "--count", "3"]);
    let (mut server, _) = next_request(&listener);
    let stream = ": comment\r\nretry: 100\r\rid: 1\ndata: \u{1f600}\n\ndata:half";
    write!(server, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{stream}").unwrap();
    let mut bytes = vec![0; stream.len()];
    tail.out.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), stream, "also what is no event yet");
    drop(server);
    let (mut server, head) = next_request(&listener);
    assert!(head.to_ascii_lowercase().contains("last-event-id: 1\r\n"), "{head}");
    let more = "data: 2\n\ndata: 3\n\n";
    write!(server, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{more}data: 4\n\n").unwrap();
    let mut rest = String::new();
    tail.out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, more, "and not the fourth");
    let ended = tail.end();
    assert_eq!(ended.err, "statecast: the server ended the stream; connecting again in 100 ms\n");
}

#[test]
fn tail_says_why_it_is_refused_and_goes_on_through_what_passes() {
    let server = start();
    let url = server.address().to_string();
    let ended = run(&["tail", &format!("{url}/no/such/")]);
    let error = format!("statecast: http://{url}/no/such/events: the answer was 404: ");
    assert!(ended.code == Some(1) && ended.err.starts_with(&error), "{ended:?}");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tail = Running::start(&["tail", &listener.local_addr().unwrap().to_string(), "--once"]);
    let (mut proxy, _) = next_request(&listener);
    write!(proxy, "HTTP/1.1 502 Bad Gateway\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n").unwrap();
    let (mut proxy, _) = next_request(&listener);
    write!(proxy, "HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    let ended = tail.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.err, "statecast: the answer was 502; connecting again in 100 ms\n");
}

#[test]
fn a_token_comes_from_a_flag_the_environment_or_a_file_and_is_never_shown() {
    let token = |text| Some(Token::new(text).unwrap());
    let server = start_with(|config| {
        config.publish_token = token("publ1sh");
        config.subscribe_token = token("subscr1be");
    });
    let url = format!("{}/a", server.address());
    let file = std::env::temp_dir().join(format!("statecast-client-token-{}", std::process::id()));
    std::fs::write(&file, "publ1sh\n").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(run(&["set", &url, "1", "--token", "publ1sh"]).code, Some(0));
    assert_eq!(run(&["set", &url, "1", "--token-file", file]).code, Some(0));
    assert_eq!(run(&["tail", &url, "--once", "--token", "subscr1be"]), done("1\n"));
    let output = statecast(&["tail", &url, "--once"]).env("STATECAST_TOKEN", "subscr1be").output().unwrap();
    assert_eq!(Ended::from(output), done("1\n"));
    let output = statecast(&["send", &url, "x"]).env("STATECAST_TOKEN_FILE", file).output().unwrap();
    assert_eq!(Ended::from(output).code, Some(0));
    for command in [["tail", &url, "--once"], ["set", &url, "2"], ["set", &url, "-"], ["send", &url, "2"]] {
        let mut child =
            statecast(&command).env("STATECAST_TOKEN", "wr0ng").stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"2\n").unwrap();
        let ended = Ended::from(child.wait_with_output().unwrap());
        assert_eq!((ended.code, &*ended.out, ended.err.lines().count()), (Some(1), "", 1), "{ended:?}");
        assert!(ended.err.contains("the answer was 401: ") && !ended.err.contains("wr0ng"), "{ended:?}");
    }
    assert_eq!(run(&["set", &url, "1", "--token", "s3 cret"]).code, Some(2));
    std::fs::remove_file(file).unwrap();
}

#[test]
fn set_and_send_print_the_id_of_what_they_published() {
    let server = start();
    let (address, url) = (server.address(), format!("{}/kitchen", server.address()));
    let mut stream = Stream::open(address, "/events");
    stream.next_named("init");
    let set = run(&["set", &url, r#"{"temp":21.5}"#]);
    let update = stream.next();
    assert_eq!((&*update.name, &*update.data), ("update", r#"{"kitchen":{"temp":21.5}}"#));
    assert_eq!(set, done(&format!("{}\n", update.id())));
    assert_eq!(run(&["set", &address.to_string(), r#"{"hall":1,"kitchen":null}"#]).code, Some(0));
    assert_eq!(stream.next().data, r#"{"hall":1,"kitchen":null}"#);

    let alert = run(&["send", &url, "--event", "alert", "the kettle boils"]);
    let event = stream.next();
    assert_eq!((&*event.name, &*event.data), ("alert", r#"{"kitchen":"the kettle boils"}"#));
    assert_eq!(alert, done(&format!("{}\n", event.id())));
    assert_eq!(run(&["send", &url, "--json", r#"{"a":1}"#]).code, Some(0));
    let event = stream.next();
    assert_eq!((&*event.name, &*event.data), ("message", r#"{"kitchen":{"a":1}}"#));

    let refused = run(&["set", &url, r#"{"temp""#]);
    let error =
        format!("statecast: http://{address}/state/kitchen: the answer was 400: the body is not JSON: ");
    assert!(refused.code == Some(1) && refused.err.starts_with(&error), "{refused:?}");
    server.stop().unwrap();
    let refused = run(&["set", &url, "1"]);
    assert!(refused.code == Some(1) && refused.err.contains("Connection refused"), "{refused:?}");
}

#[test]
fn every_line_of_input_is_a_patch_and_a_wrong_one_is_named_and_left_out() {
    let server = start();
    let url = format!("{}/a", server.address());
    let mut set = Running::start(&["set", &url, "-"]);
    let lines = "\u{feff}{\"a\":1}\r\n\n{\"a\"\n\u{feff}{\"b\":[2]}\n\u{feff}\n[1\n{\"c\":3}";
    set.input().write_all(lines.as_bytes()).unwrap();
    let ended = set.end();
    assert_eq!(get(server.address(), "/state/a").json(), json!({"a": 1, "b": [2], "c": 3}));
    let err: Vec<_> = ended.err.lines().collect();
    assert_eq!((ended.code, err.len()), (Some(1), 3), "{ended:?}");
    assert!(
        err[0].starts_with("statecast: line 3 is left out: the answer was 400: the body is not JSON"),
        "{err:?}"
    );
    assert!(err[1].starts_with("statecast: line 6 is left out: the answer was 400: "), "{err:?}");
    assert_eq!(err[2], "statecast: 2 of 7 lines were left out");
}

#[test]
fn every_line_of_input_is_an_event() {
    let server = start();
    let mut stream = Stream::open(server.address(), "/events/log");
    stream.next_named("init");
    let mut send = Running::start(&["send", &format!("{}/log", server.address()), "-", "--event", "line"]);
    let mut input = send.input();
    for line in ["one", "", "ä: \"two\""] {
        writeln!(input, "{line}").unwrap();
        // At once, though more may come.
        assert_eq!((stream.next_but_heartbeats().data.as_str(), stream.retry.is_some()), (line, true));
    }
    drop(input);
    assert_eq!(send.end(), done(""));
}

#[test]
fn set_loses_nothing_across_five_restarts_of_the_server() {
    const HALF: u64 = 100;
    let file = std::env::temp_dir().join(format!("statecast-set-{}", std::process::id()));
    std::fs::remove_file(&file).ok();
    let options = ["--document", file.to_str().unwrap()];
    let mut server = Binary::start(&options);
    let address = server.address;
    let mut set = Running::start(&["set", &format!("{address}/sensor"), "-"]);
    let mut input = set.input();
    let mut number = 0;
    let mut write_half = || {
        for _ in 0..HALF {
            writeln!(input, "{{\"last\":{number},\"{number}\":true}}").unwrap();
            number += 1;
        }
    };
    let last = || {
        let answer = get(address, "/state/sensor");
        if answer.status == 200 { answer.json()["last"].as_u64() } else { None }
    };
    for restart in 0..5 {
        write_half();
        let written = (2 * restart + 1) * HALF;
        if restart % 2 == 0 {
            // All has arrived; the next half comes while the server is away.
            wait_until(last, |last| *last == Some(written - 1));
            server.signal("TERM");
            assert_eq!(server.wait().0, Some(0));
            write_half();
            server = Binary::start_at(address, &options);
        } else {
            // Lines are on their way, as many as are left by now.
            wait_until(last, |last| *last >= Some(written - HALF));
            server.signal("TERM");
            assert_eq!(server.wait().0, Some(0));
            server = Binary::start_at(address, &options);
            write_half();
        }
    }
    let lines = number;
    drop(input);
    let ended = set.end();
    assert_eq!((ended.code, &*ended.out), (Some(0), ""), "{ended:?}");
    let sensor = get(address, "/state/sensor").json();
    assert_eq!(sensor["last"], lines - 1, "the last line came last");
    let missing: Vec<_> = (0..lines).filter(|number| sensor[number.to_string()] != true).collect();
    assert!(missing.is_empty(), "{missing:?} were lost; {}", ended.err);
    std::fs::remove_file(&file).ok();
}

/// Takes a connection and reads a request with its body.
fn next_request(listener: &TcpListener) -> (TcpStream, String) {
    let (mut connection, _) = listener.accept().unwrap();
    let request = read_request(&mut connection);
    (connection, request)
}

fn read_request(connection: &mut TcpStream) -> String {
    let head = read_head(connection);
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    connection.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

const ACCEPTED: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"id\":\"1-0\"}";

#[test]
fn lines_go_in_order_over_one_connection_and_one_that_was_closed_meanwhile_loses_none() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut set = Running::start(&["set", &listener.local_addr().unwrap().to_string(), "-"]);
    let mut input = set.input();
    writeln!(input, "0\n1").unwrap();
    let (mut server, request) = next_request(&listener);
    assert!(request.starts_with("PATCH /state HTTP/1.1\r\n") && request.ends_with("\r\n\r\n0"), "{request}");
    server.write_all(ACCEPTED.as_bytes()).unwrap();
    assert!(read_request(&mut server).ends_with("\r\n\r\n1"), "on the same connection");
    server.write_all(ACCEPTED.as_bytes()).unwrap();
    // An idle connection is closed, as the server does after 75 s; the sensor speaks only then.
    server.shutdown(std::net::Shutdown::Both).unwrap();
    writeln!(input, "2").unwrap();
    let (mut server, request) = next_request(&listener);
    assert!(request.ends_with("\r\n\r\n2"), "{request}");
    server.write_all(ACCEPTED.as_bytes()).unwrap();
    // It is closed at the very moment at which a line is sent.
    writeln!(input, "3").unwrap();
    assert!(read_request(&mut server).ends_with("\r\n\r\n3"));
    drop(server);
    let (mut server, request) = next_request(&listener);
    assert!(request.ends_with("\r\n\r\n3"), "the same line again: {request}");
    // The answer is cut.
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-").unwrap();
    drop(server);
    let (mut server, request) = next_request(&listener);
    assert!(request.ends_with("\r\n\r\n3"), "{request}");
    // The server asks for a moment.
    let start = Instant::now();
    write!(server, "HTTP/1.1 503 x\r\nRetry-After: 1\r\nContent-Length: 15\r\n\r\n{{\"error\":\"full\"}}")
        .ok();
    drop(server);
    let (mut server, request) = next_request(&listener);
    assert!(request.ends_with("\r\n\r\n3"), "{request}");
    assert!(start.elapsed() >= Duration::from_secs(1), "it came early");
    server.write_all(ACCEPTED.as_bytes()).unwrap();
    drop(input);
    let ended = set.end();
    assert_eq!((ended.code, &*ended.out), (Some(0), ""), "{ended:?}");
    assert!(ended.err.contains("statecast: line 4: the answer was 503: "), "{ended:?}");
}

#[test]
fn an_answer_that_no_other_line_would_change_ends_the_command() {
    for answer in ["404 x", "301 x\r\nLocation: https://elsewhere.example/"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut set = Running::start(&["set", &listener.local_addr().unwrap().to_string(), "-"]);
        let mut input = set.input();
        writeln!(input, "1").unwrap();
        let (mut server, _) = next_request(&listener);
        write!(server, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").unwrap();
        let ended = set.end();
        assert_eq!((ended.code, ended.err.lines().count()), (Some(1), 1), "{ended:?}");
        assert!(ended.err.contains(&format!("the answer was {}", &answer[..3])), "{ended:?}");
        assert_eq!(ended.err.contains("elsewhere"), answer.contains("elsewhere"));
        drop(input);
    }
}

#[test]
fn each_command_has_a_help_and_says_what_is_wrong() {
    for command in ["tail", "set", "send"] {
        let help = run(&[command, "--help"]);
        assert_eq!((help.code, &*help.err), (Some(0), ""), "{command}");
        assert!(
            help.out.contains(&format!("Usage: statecast {command} [OPTIONS] URL[/TOPIC]")),
            "{}",
            help.out
        );
        assert!(help.out.contains("  --token TOKEN "), "{}", help.out);
        let wrong = run(&[command]);
        let line = format!("statecast: a URL is missing; statecast {command} --help shows how it is used\n");
        assert_eq!(wrong, Ended { code: Some(2), out: String::new(), err: line });
    }
}
