//! `tail`, `set` and `send` as they are run: in pipes, with tokens, through restarts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
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
    command.env_remove("STATECAST_TOKEN").env_remove("STATECAST_TOKEN_FILE").env_remove("STATECAST_PROXY");
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
    let lines =
        b"\xef\xbb\xbf{\"a\":1}\r\n\n{\"a\"\n{\"b\":[2]}\n\"caf\xe9\"\n\xef\xbb\xbf\n\xef\xbb\xbf{\"c\":3}";
    set.input().write_all(lines).unwrap();
    let ended = set.end();
    assert_eq!(get(server.address(), "/state/a").json(), json!({"a": 1, "b": [2], "c": 3}));
    let err: Vec<_> = ended.err.lines().collect();
    assert_eq!((ended.code, err.len()), (Some(1), 3), "{ended:?}");
    assert!(
        err[0].starts_with("statecast: line 3 is left out: the answer was 400: the body is not JSON"),
        "{err:?}"
    );
    assert_eq!(err[1], "statecast: line 5 is left out: it is not UTF-8");
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
    input.write_all(b"caf\xe9\n\xff\xfea\0\n\xef\xbb\xbflast\n").unwrap();
    drop(input);
    assert_eq!(stream.next_but_heartbeats().data, "last", "a body's mark is skipped");
    let ended = send.end();
    assert_eq!((ended.code, ended.err.lines().count()), (Some(1), 3), "{ended:?}");
    assert!(
        ended.err.starts_with("statecast: line 4 is left out: it is not UTF-8\nstatecast: line 5 "),
        "{ended:?}"
    );

    let mut send = Running::start(&["send", &format!("{}/log", server.address()), "-"]);
    send.input().write_all(b"\xef\xbb\xbffirst\n").unwrap();
    assert_eq!(stream.next_but_heartbeats().data, "first", "before a text it is none");
    assert_eq!(send.end(), done(""));
}

#[test]
fn what_is_no_utf8_is_wrong_usage_and_nothing_starts_or_is_sent() {
    let server = start();
    let url = format!("{}/a", server.address());
    let wrong = OsStr::from_bytes(b"s3cr\xfct");
    let serve = |name: &str| {
        let mut command = statecast(&["--listen", "127.0.0.1:0"]);
        command.env(name, wrong);
        command
    };
    let client = |arguments: &[&str], more: &[&OsStr]| {
        let mut command = statecast(arguments);
        command.args(more);
        command
    };
    let mut with_token = client(&["set", &url, "1"], &[]);
    with_token.env("STATECAST_TOKEN", wrong);
    let commands = [
        ("STATECAST_SUBSCRIBE_TOKEN", serve("STATECAST_SUBSCRIBE_TOKEN")),
        ("STATECAST_PUBLISH_TOKEN", serve("STATECAST_PUBLISH_TOKEN")),
        ("STATECAST_SUBSCRIBE_TOKEN_FILE", serve("STATECAST_SUBSCRIBE_TOKEN_FILE")),
        ("STATECAST_ALLOW_ORIGIN", serve("STATECAST_ALLOW_ORIGIN")),
        ("STATECAST_OPEN", serve("STATECAST_OPEN")),
        ("--publish-token", client(&["--publish-token"], &[wrong])),
        ("STATECAST_TOKEN", with_token),
        ("the data", client(&["set", &url], &[OsStr::from_bytes(b"\"caf\xe9\"")])),
        ("the data", client(&["send", &url], &[wrong])),
        ("the URL", client(&["set"], &[wrong, "1".as_ref()])),
        ("--header", client(&["set", &url, "1", "--header"], &[wrong])),
        ("unexpected argument", client(&[], &[wrong])),
    ];
    for (name, mut command) in commands {
        let ended = Ended::from(command.output().unwrap());
        assert_eq!(
            (ended.code, &*ended.out, ended.err.lines().count()),
            (Some(2), "", 1),
            "{name}: {ended:?}"
        );
        assert!(ended.err.starts_with(&format!("statecast: {name}")), "{name}: {ended:?}");
        assert!(!name.ends_with("TOKEN") || !ended.err.contains("s3cr"), "{ended:?}");
    }
    assert_eq!(get(server.address(), "/state").body, "{}");
}

#[test]
fn paths_have_any_bytes() {
    let folder = std::env::temp_dir().join(format!("statecast-paths-{}", std::process::id()));
    let folder = folder.join(OsStr::from_bytes(b"caf\xe9"));
    std::fs::create_dir_all(&folder).unwrap();
    let (document, token) = (folder.join(OsStr::from_bytes(b"d\xff.json")), folder.join("token"));
    std::fs::write(&token, "s3cret\n").unwrap();
    std::fs::write(folder.join("a.txt"), "public").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_statecast"));
    command.env("STATECAST_DOCUMENT", &document).env("STATECAST_PUBLISH_TOKEN_FILE", &token);
    let server = Binary::spawn(command.arg("--public").arg(&folder));
    let url = format!("{}/a", server.address);
    let set = statecast(&["set", &url, "1", "--token-file"]).arg(&token).output().unwrap();
    assert_eq!(Ended::from(set).code, Some(0));
    assert_eq!(get(server.address, "/a.txt").body, "public");
    server.signal("TERM");
    assert_eq!(server.wait().0, Some(0));
    assert_eq!(std::fs::read_to_string(&document).unwrap().trim(), r#"{"a":1}"#);
    std::fs::remove_dir_all(folder.parent().unwrap()).unwrap();
}

#[test]
fn a_port_that_is_none_is_wrong_usage_and_no_token_leaves() {
    for host in ["127.0.0.1", "localhost", "[::1]", "http://127.0.0.1"] {
        for port in ["80800", "65536", "8080x", "-1", "", "+80", " 80", "080", "0"] {
            let url = format!("{host}:{port}/a");
            for command in [&["tail", &url, "--once"][..], &["set", &url, "1"], &["send", &url, "-"]] {
                let ended = run(&[command, &["--token", "s3cret"]].concat());
                assert_eq!((ended.code, &*ended.out), (Some(2), ""), "{command:?}: {ended:?}");
                assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
            }
        }
    }
}

/// A command whose environment names a proxy.
fn through(variable: &str, proxy: &str, arguments: &[&str]) -> Command {
    let mut command = statecast(arguments);
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env(variable, format!("http://user:s3cret@{proxy}"));
    command
}

#[test]
fn a_proxy_is_asked_for_its_scheme_and_never_for_this_machine_unless_it_is_named() {
    let server = start();
    let url = format!("{}/a", server.address());
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"] {
        let set = Ended::from(through(variable, &nobody, &["set", &url, "1"]).output().unwrap());
        assert_eq!(set.code, Some(0), "{variable}: {set:?}");
        let tail = through(variable, &nobody, &["tail", &url, "--once"]).output().unwrap();
        assert_eq!(Ended::from(tail), done("1\n"), "{variable}");
    }
    let refused = format!("the proxy {nobody}: Connection refused");
    for (variable, target, more) in [
        ("http_proxy", "sensor.example/a", &[][..]),
        ("ALL_PROXY", "sensor.example/a", &[]),
        ("HTTPS_PROXY", &*url, &["--proxy", &format!("http://user:s3cret@{nobody}")]),
        ("STATECAST_PROXY", &*url, &[]),
    ] {
        let set = through(variable, &nobody, &[&["set", target, "2"][..], more].concat()).output().unwrap();
        let set = Ended::from(set);
        assert_eq!((set.code, set.err.lines().count()), (Some(1), 1), "{variable}: {set:?}");
        assert!(set.err.contains(&refused) && !set.err.contains("s3cret"), "{variable}: {set:?}");
    }
    let mut tail = through("http_proxy", &nobody, &["tail", "sensor.example/a"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(tail.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains(&refused) && !line.contains("s3cret"), "{line}");
    drop(tail.stdout.take());
    tail.wait().unwrap();
    assert_eq!(get(server.address(), "/state/a").body, "1");
}

#[test]
fn what_goes_through_a_proxy_reaches_the_host_it_is_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let arguments = ["set", "sensor.example:8080/a", "1", "--token", "t0ken"];
    let set = through("http_proxy", &address, &arguments).spawn().unwrap();
    let (mut proxy, request) = next_request(&listener);
    assert!(request.starts_with("CONNECT sensor.example:8080 HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("Proxy-Authorization: Basic dXNlcjpzM2NyZXQ=\r\n"), "{request}");
    assert!(!request.contains("t0ken"), "{request}");
    proxy.write_all(b"HTTP/1.1 200 x\r\n\r\n").unwrap();
    let request = read_request(&mut proxy);
    assert!(request.starts_with("PATCH /state/a HTTP/1.1\r\n"), "{request}");
    assert!(request.to_ascii_lowercase().contains("authorization: bearer t0ken\r\n"), "{request}");
    proxy.write_all(ACCEPTED.as_bytes()).unwrap();
    assert_eq!(Ended::from(set.wait_with_output().unwrap()), done("1-0\n"));

    let set = through("http_proxy", &address, &arguments).spawn().unwrap();
    let (mut proxy, _) = next_request(&listener);
    proxy.write_all(b"HTTP/1.1 407 x\r\n\r\n").unwrap();
    let ended = Ended::from(set.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains(&format!("the proxy {address}: ")) && ended.err.contains("407"), "{ended:?}");
    assert!(!ended.err.contains("s3cret"), "{ended:?}");
}

#[test]
fn a_proxy_that_cannot_be_spoken_with_is_wrong_usage() {
    for value in [&b"socks5://s3cret@127.0.0.1:1"[..], b"http://s3cret@127.0.0.1:80800", b"s3cr\xfct"] {
        for (variable, target) in [("http_proxy", "sensor.example/a"), ("STATECAST_PROXY", "localhost/a")] {
            let mut set = through("NO_PROXY", "", &["set", target, "1"]);
            let ended = Ended::from(set.env(variable, OsStr::from_bytes(value)).output().unwrap());
            assert_eq!((ended.code, ended.err.lines().count()), (Some(2), 1), "{ended:?}");
            assert!(ended.err.starts_with(&format!("statecast: {variable}: must be ")), "{ended:?}");
            assert!(!ended.err.contains("s3cr"), "{ended:?}");
        }
    }
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
fn get_put_and_rm_do_what_the_requests_do() {
    let server = start();
    let (address, url) = (server.address(), server.address().to_string());
    let topic = format!("{url}/kitchen");
    let id = |ended: Ended| {
        assert_eq!((ended.code, &*ended.err), (Some(0), ""), "{ended:?}");
        ended.out.trim_end().parse::<statecast::EventId>().unwrap()
    };
    put(address, "/state/kitchen", r#"{"temp":21,"lamp":"on"}"#);
    let mut stream = Stream::open(address, "/events/kitchen");
    stream.next_named("init");
    let put_id = id(run(&["put", &topic, r#"{"temp":22}"#]));
    let update = stream.next();
    assert_eq!((update.id(), &*update.data), (put_id, r#"{"lamp":null,"temp":22}"#));
    assert_eq!(run(&["get", &topic]), done("{\"temp\":22}\n"));
    assert_eq!(run(&["get", &url]), done("{\"kitchen\":{\"temp\":22}}\n"));
    let removed = id(run(&["rm", &topic]));
    assert_eq!(stream.next().id(), removed);
    for command in ["get", "rm"] {
        let ended = run(&[command, &topic]);
        assert_eq!((ended.code, &*ended.out), (Some(1), ""), "{ended:?}");
        assert!(ended.err.contains("/state/kitchen: the answer was 404: "), "{ended:?}");
    }
    id(run(&["put", &url, r#"{"a":1,"b":2}"#]));
    id(run(&["rm", &url]));
    assert_eq!(run(&["get", &url]), done("{}\n"));
    let mut lines = Running::start(&["put", &topic, "-"]);
    lines.input().write_all(b"1\n{\"a\":1}\n{\"b\":2}\n").unwrap();
    assert_eq!(lines.end(), done(""));
    assert_eq!(get(address, "/state/kitchen").body, r#"{"b":2}"#, "each line replaces");
    let large = "x".repeat(900_000);
    for topic in ["large", "larger", "largest"] {
        put(address, &format!("/state/{topic}"), &json!(large).to_string());
    }
    let ended = run(&["get", &url]);
    assert_eq!(serde_json::from_str::<Value>(&ended.out).unwrap(), server.state(), "also a large one");
}

#[test]
fn a_command_fails_where_nobody_answers() {
    // The kernel takes the connection, and nobody ever reads from it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("{}/a", listener.local_addr().unwrap());
    for command in [
        &["get", &url][..],
        &["set", &url, "1"],
        &["put", &url, "1"],
        &["rm", &url],
        &["send", &url, "x"],
        &["tail", &url, "--once"],
        &["tail", &url, "--count", "2"],
    ] {
        let ended = run(&[command, &["--timeout", "300ms"]].concat());
        assert_eq!((ended.code, &*ended.out), (Some(1), ""), "{command:?}: {ended:?}");
        assert!(ended.err.contains(" within 300ms; --timeout allows more\n"), "{command:?}: {ended:?}");
    }
    drop(listener);
    let ended = run(&["tail", &url, "--once", "--timeout", "300ms"]);
    assert!(ended.code == Some(1) && ended.err.contains("Connection refused"), "{ended:?}");
    assert!(ended.err.contains(" within 300ms; "), "{ended:?}");
    // A stream that goes on without what was asked for.
    let server = start();
    let ended = run(&["tail", &server.url(), "--event", "alert", "--count", "1", "--timeout", "300ms"]);
    assert!(ended.code == Some(1) && ended.err.contains(" within 300ms; "), "{ended:?}");
}

#[test]
fn each_command_has_a_help_of_80_columns_and_says_what_is_wrong() {
    for command in ["tail", "get", "set", "put", "rm", "send"] {
        let help = run(&[command, "--help"]);
        assert_eq!((help.code, &*help.err), (Some(0), ""), "{command}");
        assert_eq!(run(&["help", command]), help);
        assert!(
            help.out.contains(&format!("Usage: statecast {command} [OPTIONS] URL[/TOPIC]")),
            "{}",
            help.out
        );
        assert!(help.out.contains("  --token TOKEN "), "{}", help.out);
        let wrong = run(&[command]);
        let line = format!("statecast: a URL is missing; statecast {command} --help shows how it is used\n");
        assert_eq!(wrong, Ended { code: Some(2), out: String::new(), err: line });
        assert!(run(&["help"]).out.contains(&format!("\n  {command} ")), "the list of commands has it");
        let wide: Vec<&str> = help.out.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{wide:?}");
    }
    let help = run(&["--help"]);
    for same in [&["help"][..], &["help", "serve"], &["serve", "--help"], &["-h"]] {
        assert_eq!(run(same), help);
    }
    assert!(help.out.lines().all(|line| line.chars().count() <= 80), "{}", help.out);
    let wrong = run(&["help", "tial"]);
    let line = "statecast: no command \"tial\"; did you mean tail? statecast help lists them\n";
    assert_eq!(wrong, Ended { code: Some(2), out: String::new(), err: line.into() });
}
