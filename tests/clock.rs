//! Clocks that are wrong: boards that boot at the same time each time, clocks that are set, and times nobody expects.
//!
//! `cargo test --test clock -- --include-ignored`; `tests/all` installs faketime first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/clock.rs"]
mod clock;
mod support;

use std::fs;
use std::io::Write;

use clock::Clock;
use support::*;

/// What `hello` says to whoever resumes after an id.
fn resume_after(server: &Binary, id: &str) -> String {
    Stream::resume(server.address, "/events", id).next().json()["resume"].as_str().unwrap().to_owned()
}

/// The tag of the document, and whether it is that of the document here.
fn is_tag_of(server: &Binary, tag: &str) -> bool {
    match request(server.address, "GET", "/state", &[("If-None-Match", tag)], "").status {
        304 => true,
        200 => false,
        status => panic!("{status}"),
    }
}

#[test]
#[ignore = "needs faketime: tests/all installs it"]
fn ids_and_tags_of_an_earlier_boot_at_the_same_time_are_not_known() {
    for time in ["2026-01-01 00:00:00", "1970-01-01 00:00:00", "1969-01-01 00:00:00"] {
        let clock = Clock::at(time);
        let earlier = clock.start(&[]);
        let ids: Vec<String> =
            (0..20).map(|count| put(earlier.address, "/state/a", &count.to_string()).to_string()).collect();
        let tag = get(earlier.address, "/state").header("ETag").unwrap().to_owned();
        for id in &ids {
            assert_eq!(resume_after(&earlier, id), "replay", "{time}: {id}");
        }
        assert!(is_tag_of(&earlier, &tag));
        drop(earlier);
        let later = clock.start(&[]);
        for count in 0..20 {
            put(later.address, "/state/b", &count.to_string());
            assert!(!is_tag_of(&later, &tag), "{time}");
        }
        for id in &ids {
            assert_eq!(resume_after(&later, id), "init", "{time}: {id}");
        }
    }
}

#[test]
#[ignore = "needs faketime: tests/all installs it"]
fn ids_rise_and_stay_known_while_the_clock_is_set_from_1970_to_now_and_back() {
    let clock = Clock::at("1970-01-01 00:00:05");
    let server = clock.start(&[]);
    let mut ids = Vec::new();
    for time in [
        "1970-01-01 00:00:05",
        "1970-01-01 00:00:06",
        "2026-01-01 00:00:00",
        "1970-01-01 00:00:07",
        "1969-12-31 00:00:00",
        "2026-01-01 00:00:01",
    ] {
        clock.set(time);
        ids.extend((0..3).map(|count| put(server.address, "/state/a", &count.to_string())));
    }
    assert!(ids.is_sorted_by(|before, after| before < after), "{ids:?}");
    assert!(ids[0].to_string().starts_with("5000-"), "{ids:?}");
    assert!(ids[ids.len() - 1].to_string().starts_with("1767225601000-"), "{ids:?}");
    for id in ids {
        assert_eq!(resume_after(&server, &id.to_string()), "replay", "{id}");
    }
}

#[test]
#[ignore = "needs faketime: tests/all installs it"]
fn a_planned_restart_costs_nobody_his_place_whatever_the_clock_says_after_it() {
    let folder = Folder::new("clock");
    let options = ["--document", &folder.file("document.json")];
    let clock = Clock::at("2026-01-01 00:00:00");
    let mut ids = Vec::new();
    // A board without a clock boots in 1970; another one comes back from a future that it was told of.
    for time in ["1970-01-01 00:00:00", "2100-01-01 00:00:00", "2026-01-01 00:00:01", "1969-01-01 00:00:00"] {
        let server = clock.start(&options);
        if ids.is_empty() {
            ids.push(Stream::open(server.address, "/events").next_named("init").id());
        }
        ids.push(put(server.address, "/state/a", "1"));
        for id in &ids {
            assert_eq!(resume_after(&server, &id.to_string()), "replay", "{time}: {id}");
        }
        ids.push(Stream::open(server.address, "/events").next_named("init").id());
        ids.push(post(server.address, "/events", "hi"));
        assert!(ids.is_sorted_by_key(|id| *id), "{ids:?}");
        server.signal("TERM");
        let (code, log) = server.wait();
        assert!(code == Some(0) && !log.contains("history"), "{time}: {log}");
        clock.set(time);
    }
}

#[test]
#[ignore = "needs faketime: tests/all installs it"]
fn ids_of_a_server_that_crashed_are_not_known_when_the_clock_was_set_back_to_the_stop_before_it() {
    let folder = Folder::new("crashed");
    let (file, history) = (folder.file("document.json"), folder.file("document.json.history"));
    let clock = Clock::at("2026-01-01 00:00:00");
    let server = clock.start(&["--document", &file]);
    let known = Stream::open(server.address, "/events").next_named("init").id.unwrap();
    put(server.address, "/state/a", "1");
    server.signal("TERM");
    server.wait();
    let stopped = fs::read(&history).unwrap();
    let lost: Vec<String> = {
        let server = clock.start(&["--document", &file]);
        (0..20).map(|_| post(server.address, "/events", "hi").to_string()).collect()
    };
    // As if a power cut had brought it back.
    fs::write(&history, stopped).unwrap();
    let server = clock.start(&["--document", &file]);
    for _ in 0..20 {
        post(server.address, "/events", "hi");
    }
    assert_eq!(resume_after(&server, &known), "replay");
    for id in lost {
        assert_eq!(resume_after(&server, &id), "init", "{id}");
    }
}

#[test]
#[ignore = "needs faketime: tests/all installs it"]
fn requests_are_answered_whatever_the_clock_says() {
    // httpdate, and tiny_http with it, panics before 1970 and after 9999.
    let (first, last) = ("Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT");
    for (time, is_dated, date) in [
        ("1969-01-01 00:00:00", false, first),
        ("1902-01-01 00:00:00", false, first),
        ("1970-01-01 00:00:00", true, first),
        ("2300-01-01 00:00:00", true, "Mon, 01 Jan 2300 00:00:00 GMT"),
        ("+9000y", false, last),
    ] {
        let clock = Clock::at(time);
        let server = clock.start(&["--lab"]);
        let address = server.address;
        let first = put(address, "/state/a", "1");
        assert!(put(address, "/state/a", "2") > first, "{time}");
        let answer = get(address, "/state");
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"a":2}"#), "{time}");
        assert_eq!(answer.header("Date"), Some(date), "{time}");
        for (method, path, body, status) in [
            ("GET", "/", "", 200),
            ("GET", "/healthz", "", 200),
            ("GET", "/nothing", "", 404),
            ("PUT", "/state/a", "{", 400),
            ("POST", "/healthz", "1", 405),
            ("HEAD", "/events", "", 200),
            ("GET", "/lab", "", 200),
            ("POST", "/lab/clients/9/cut", "", 404),
        ] {
            assert_eq!(request(address, method, path, &[], body).status, status, "{time}: {method} {path}");
        }
        let mut stream = Stream::resume(address, "/events", &first.to_string());
        assert_eq!(stream.next().json()["reason"], "known", "{time}");
        assert_eq!(stream.next().data, r#"{"a":2}"#);
        // tiny_http dates its own answers: where it cannot, a 100 is refused, and what it would refuse is closed.
        assert_eq!(exchange(address, b"nonsense\r\n\r\n").is_empty(), !is_dated, "{time}");
        for (length, expects, status) in [
            (2_000_000_u64, true, 413),
            (99_999_999_999_999, false, 413),
            (1, true, if is_dated { 100 } else { 417 }),
        ] {
            let expect = if expects { "Expect: 100-continue\r\n" } else { "" };
            let mut connection = connect(address);
            let head = "PUT /state/a HTTP/1.1\r\nHost: localhost\r\n";
            write!(connection, "{head}Content-Length: {length}\r\n{expect}\r\n").unwrap();
            let answer = read_head(&mut connection);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{time}: {answer}");
        }
        server.signal("TERM");
        assert!(stream.ends_cleanly(), "{time}");
        let (code, log) = server.wait();
        assert_eq!(code, Some(0), "{time}: {log}");
        assert!(!log.contains("panicked"), "{time}: {log}");
    }
}
