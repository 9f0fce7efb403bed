//! Other processors: the program built for a Raspberry Pi does what it does here.
//!
//! `tests/targets` builds it and sets `STATECAST_ELSEWHERE`, the command that runs it: an emulator and a path.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::json;
use support::*;

/// The program for the other processor.
fn elsewhere() -> Command {
    let words = std::env::var("STATECAST_ELSEWHERE").expect("tests/targets sets STATECAST_ELSEWHERE");
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().expect("a command"));
    command.args(words);
    command
}

fn start(file: &str) -> Binary {
    Binary::spawn(elsewhere().args(["--document", file, "--heartbeat", "1s"]))
}

#[test]
#[ignore = "needs a program for another processor: tests/targets builds it"]
fn elsewhere_it_publishes_streams_resumes_tails_saves_and_stops() {
    let folder = Folder::new("elsewhere");
    let file = folder.file("state.json");
    let server = start(&file);
    let mut stream = Stream::open(server.address, "/events");
    assert_eq!(stream.next_named("hello").json()["reason"], "first");
    assert_eq!(stream.next_named("init").json(), json!({}));
    let seen = patch(server.address, "/state/kitchen", r#"{"temp":21.5}"#);
    assert_eq!(stream.next_named("update").id(), seen);
    stream.next_named("heartbeat");

    let missed = patch(server.address, "/state/kitchen", r#"{"temp":22}"#);
    let mut away = Stream::resume(server.address, "/events", &seen.to_string());
    assert_eq!(away.next_named("hello").json()["reason"], "known");
    assert_eq!(away.next_named("update").id(), missed);

    let url = format!("http://{}", server.address);
    let tail = elsewhere().args(["tail", "--state", &url]).stdout(Stdio::piped()).spawn();
    let mut tail = tail.expect("the program starts");
    let first = BufReader::new(tail.stdout.take().unwrap()).lines().next().expect("tail shows the document");
    assert_eq!(first.unwrap(), r#"{"kitchen":{"temp":22}}"#);
    tail.kill().unwrap();
    tail.wait().unwrap();

    server.signal("TERM");
    assert!(stream.ends_cleanly());
    let (code, log) = server.wait();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"kitchen\":{\"temp\":22}}\n");
    let again = start(&file);
    assert_eq!(get(again.address, "/state/kitchen").json(), json!({"temp": 22}));
}
