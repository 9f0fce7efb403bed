//! The lab: each fault does what it says, to the client it is for and to nobody else, and heals.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;
#[path = "support/webdriver.rs"]
mod webdriver;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use statecast::{EventId, Server};
use support::*;
use webdriver::{Browser, tests_in_browsers};

fn start_lab() -> Server {
    start_with(|config| config.lab = true)
}

fn call(address: SocketAddr, path: &str) -> Answer {
    request(address, "POST", &format!("/lab/{path}"), &[], "")
}

/// Switches a fault on; says when that was at the earliest.
fn switch_on(address: SocketAddr, path: &str) -> Instant {
    let before = Instant::now();
    let answer = call(address, path);
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    before
}

/// A client that keeps to the standard: it reads leniently, keeps a replica, and comes back with the last id.
struct Client {
    address: SocketAddr,
    stream: Stream,
    id: u64,
    replica: Replica,
    /// The reasons of each `hello`.
    reasons: Vec<String>,
}

impl Client {
    fn open(address: SocketAddr) -> Client {
        let stream = Stream::open(address, "/events").lenient();
        let mut client = Client { address, stream, id: 0, replica: Replica::default(), reasons: Vec::new() };
        client.read_until(|replica| replica.last_id.is_some());
        client
    }

    fn come_back(&mut self) {
        let last = self.replica.last_id.unwrap().to_string();
        self.stream = Stream::resume(self.address, "/events", &last).lenient();
    }

    /// The next event but heartbeats; comes back as often as the stream ends.
    fn next(&mut self) -> Event {
        loop {
            match self.stream.next_or_end() {
                None => self.come_back(),
                Some(event) if event.name == "heartbeat" => {}
                Some(event) => {
                    if event.name == "hello" {
                        self.id = event.json()["client"].as_u64().unwrap();
                        self.reasons.push(event.json()["reason"].as_str().unwrap().to_owned());
                    }
                    self.replica.apply(&event);
                    return event;
                }
            }
        }
    }

    fn read_until(&mut self, is_there: impl Fn(&Replica) -> bool) {
        while !is_there(&self.replica) {
            self.next();
        }
    }

    /// Reads up to that change, and holds the server's document then.
    fn is_right_at(&mut self, id: EventId) {
        self.read_until(|replica| replica.last_id >= Some(id));
        assert_eq!(self.replica.document.as_ref().unwrap(), &get(self.address, "/state").json());
    }

    fn switch_on(&self, fault: &str) -> Instant {
        switch_on(self.address, &format!("clients/{}/{fault}", self.id))
    }
}

/// The head of the answer to whoever wants a stream.
fn head_of(address: SocketAddr, path: &str) -> String {
    Stream::open(address, path).head
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// A client in the lab, and another that nothing may happen to.
fn two_clients(address: SocketAddr) -> (Client, Stream) {
    let client = Client::open(address);
    let mut other = Stream::open(address, "/events");
    assert_eq!(other.next_but_heartbeats().name, "hello");
    assert_eq!(other.next_but_heartbeats().name, "init");
    (client, other)
}

#[test]
fn the_lab_is_there_only_when_it_was_asked_for() {
    let server = start();
    let stream = Client::open(server.address());
    assert_eq!(get(server.address(), "/lab").status, 404);
    assert_eq!(call(server.address(), "server/refuse").status, 404);
    let refused = call(server.address(), &format!("clients/{}/cut", stream.id));
    assert_eq!((refused.status, refused.error().as_str()), (404, "no lab here; statecast --lab has one"));
}

#[test]
fn the_list_has_every_fault_with_its_parameters() {
    let server = start_lab();
    let list = get(server.address(), "/lab").json();
    let faults = list["faults"].as_array().unwrap();
    let of = |scope: &str| -> Vec<&str> {
        let faults = faults.iter().filter(|fault| fault["scope"] == scope);
        faults.map(|fault| fault["name"].as_str().unwrap()).collect()
    };
    assert_eq!(
        of("client"),
        ["end", "cut", "stall", "swallow-heartbeats", "drip", "bom", "comments", "odd-framing"]
    );
    assert_eq!(of("server"), ["refuse", "redirect", "wrong-type", "delay", "forget-history", "restart"]);
    let (_, section) = README.split_once("## Break it on purpose").unwrap();
    for fault in faults {
        assert!(!fault["does"].as_str().unwrap().is_empty(), "{fault}");
        let row = format!("\n| `{}` |", fault["name"].as_str().unwrap());
        assert!(section.contains(&row), "the README says nothing of {fault}");
    }
    let parameters = |name: &str| -> Vec<&String> {
        let fault = faults.iter().find(|fault| fault["name"] == name).unwrap();
        fault["parameters"].as_object().unwrap().keys().collect()
    };
    assert_eq!(parameters("cut"), Vec::<&String>::new());
    assert_eq!(parameters("stall"), ["for"]);
    assert_eq!(parameters("refuse"), ["for", "status"]);
}

#[test]
fn a_fault_is_for_those_who_may_write() {
    let server = start_with(|config| {
        config.lab = true;
        config.publish_token = statecast::Token::new("s3cret").ok();
    });
    let address = server.address();
    let refuse =
        |headers: &[(&str, &str)]| request(address, "POST", "/lab/server/refuse?for=1ms", headers, "").status;
    assert_eq!(refuse(&[]), 401);
    assert_eq!(refuse(&[("Authorization", "Bearer s3cret"), ("Origin", "https://evil.example")]), 403);
    assert_eq!(refuse(&[("Authorization", "Bearer s3cret")]), 200);
    assert_eq!(get(address, "/lab").status, 200);
    let local = start_lab();
    let proxied = [("X-Forwarded-For", "10.0.0.1")];
    assert_eq!(request(local.address(), "POST", "/lab/server/restart", &proxied, "").status, 403);
}

#[test]
fn a_wrong_call_is_refused_and_changes_nothing() {
    let server = start_lab();
    let address = server.address();
    let (mut client, _other) = two_clients(address);
    let of_client = |fault: &str| format!("clients/{}/{fault}", client.id);
    for (path, status) in [
        (of_client("no-such-fault"), 404),
        (of_client("restart"), 404),
        ("clients/99/cut".into(), 404),
        ("clients/one/cut".into(), 404),
        ("server/cut".into(), 404),
        (of_client("stall?for=soon"), 400),
        (of_client("stall?for=0s"), 400),
        (of_client("stall?for=6m"), 400),
        (of_client("stall?far=5s"), 400),
        (of_client("cut?for=5s"), 400),
        ("server/refuse?status=200".into(), 400),
        ("server/delay?by=1h".into(), 400),
    ] {
        let answer = call(address, &path);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(!answer.error().is_empty());
    }
    let wrong_method = request(address, "DELETE", "/lab/server/restart", &[], "");
    assert_eq!((wrong_method.status, wrong_method.header("Allow")), (405, Some("POST, OPTIONS")));
    client.is_right_at(put(address, "/state/a", "1"));
    assert_eq!(client.reasons, ["first"]);
}

#[test]
fn an_end_is_clean_and_what_was_missed_follows() {
    let server = start_lab();
    let address = server.address();
    let (mut client, mut other) = two_clients(address);
    let answer = call(address, &format!("clients/{}/end", client.id)).json();
    assert_eq!(answer, json!({"fault": "end", "client": client.id, "for_ms": null}));
    assert_eq!(client.stream.raw_rest(), "0\r\n\r\n");
    let id = put(address, "/state/a", "1");
    client.is_right_at(id);
    assert_eq!(client.reasons, ["first", "known"]);
    assert_eq!(other.next_but_heartbeats().id(), id);
}

#[test]
fn a_cut_leaves_half_an_event_that_no_client_takes_for_one() {
    let server = start_lab();
    let address = server.address();
    let (mut client, mut other) = two_clients(address);
    client.switch_on("cut");
    let half = "id: 0-0\nevent: update\ndata: {\"this event\":\"was c";
    assert_eq!(client.stream.raw_rest(), format!("{:x}\r\n{half}", 2 * half.len()));
    let id = put(address, "/state/a", "1");
    client.is_right_at(id);
    assert_eq!(client.reasons, ["first", "known"]);
    assert_eq!(other.next_but_heartbeats().id(), id);
}

#[test]
fn a_cut_of_an_unchunked_stream_leaves_half_an_event_too() {
    let server = start_lab();
    let address = server.address();
    let mut stream = Stream::request(address, "GET /events HTTP/1.0\r\n\r\n");
    let id = stream.next().json()["client"].as_u64().unwrap();
    assert_eq!(stream.next().name, "init");
    switch_on(address, &format!("clients/{id}/cut"));
    assert_eq!(stream.raw_rest(), "id: 0-0\nevent: update\ndata: {\"this event\":\"was c");
}

#[test]
fn a_stalled_client_gets_nothing_and_then_what_it_missed() {
    let server = start_lab();
    let address = server.address();
    let (mut client, mut other) = two_clients(address);
    let before = client.switch_on("stall?for=3s");
    let first = put(address, "/state/a", "1");
    let last = put(address, "/state/b", "2");
    assert_eq!((other.next_but_heartbeats().id(), other.next_but_heartbeats().id()), (first, last));
    assert_eq!(get(address, "/clients").json()[0]["state"], "catching_up");
    assert_eq!(client.next().id(), first);
    assert!(before.elapsed() >= Duration::from_secs(3));
    client.is_right_at(last);
    assert_eq!(client.reasons, ["first"]);
    wait_until(|| get(address, "/clients").json()[0]["state"].clone(), |state| state == "live");
}

#[test]
fn a_stall_may_last_longer_than_a_client_that_does_not_read() {
    let server = start_with(|config| (config.lab, config.stall) = (true, Duration::from_secs(1)));
    let address = server.address();
    let (mut client, _other) = two_clients(address);
    client.switch_on("stall?for=2500ms");
    client.is_right_at(put(address, "/state/a", "1"));
    assert_eq!(client.reasons, ["first"], "it is the same connection");
}

#[test]
fn a_stalled_client_that_history_forgets_gets_the_document() {
    let server = start_with(|config| (config.lab, config.history_bytes) = (true, 0));
    let address = server.address();
    let (mut client, mut other) = two_clients(address);
    client.switch_on("stall?for=3s");
    let mut last = None;
    // What a stalled wire holds is one write; what comes after it is history's.
    for count in 0..5 {
        let id = put(address, "/state/a", &count.to_string());
        assert_eq!(other.next_but_heartbeats().id(), id);
        last = Some(id);
    }
    client.is_right_at(last.unwrap());
    // It may have happened more than once.
    client.reasons.dedup();
    assert_eq!(client.reasons, ["first", "lagged"]);
}

#[test]
fn swallowed_heartbeats_are_missing_and_nothing_else() {
    let server = start_with(|config| (config.lab, config.heartbeat) = (true, Duration::from_millis(20)));
    let address = server.address();
    let (mut client, mut other) = two_clients(address);
    let before = client.switch_on("swallow-heartbeats?for=1s");
    // Whatever came before this has been sent before the fault was on.
    let fence = put(address, "/state/a", "1");
    client.is_right_at(fence);
    let seen = other.next_named("update").id();
    assert_eq!((seen, other.next().name.as_str()), (fence, "heartbeat"));
    assert_eq!(client.stream.next_or_end().unwrap().name, "heartbeat");
    assert!(before.elapsed() >= Duration::from_secs(1));
}

#[test]
fn who_gets_no_heartbeats_is_told_at_a_stop_when_to_come_back() {
    let server = start_with(|config| (config.lab, config.heartbeat) = (true, Duration::from_secs(3_600)));
    let address = server.address();
    let (mut client, _other) = two_clients(address);
    client.switch_on("swallow-heartbeats?for=1m");
    client.stream.retry = None;
    server.stop().unwrap();
    assert!(client.stream.next_or_end().is_some_and(|event| event.name == "heartbeat"));
    assert!(client.stream.next_or_end().is_none());
    assert!(client.stream.retry.is_some());
}

#[test]
fn a_drip_sends_every_byte_in_a_chunk_of_its_own() {
    let server = start_lab();
    let address = server.address();
    let (mut client, mut other) = two_clients(address);
    client.switch_on("drip?for=1m");
    let id = put(address, "/state/a", r#""äöü""#);
    let mut text = Vec::new();
    while !text.ends_with(b"\n\n") {
        let chunk = client.stream.chunk().unwrap();
        assert_eq!(chunk.len(), 1);
        text.extend(chunk);
    }
    let expected = format!("id: {id}\nevent: update\ndata: {{\"a\":\"äöü\"}}\n\n");
    assert_eq!(String::from_utf8(text).unwrap(), expected);
    assert_eq!(other.next_but_heartbeats().id(), id);
    // A new call replaces the one before.
    client.switch_on("drip?for=1ms");
    wait_until(
        || {
            put(address, "/state/b", "1");
            client.stream.chunk().unwrap().len()
        },
        |size| *size > 1,
    );
}

#[test]
fn a_large_document_drips_and_flows_on_when_the_time_is_over() {
    let server = start_lab();
    let address = server.address();
    let (mut client, mut other) = two_clients(address);
    client.switch_on("drip?for=500ms");
    let id = put(address, "/state/large", &json!("ä".repeat(100_000)).to_string());
    assert_eq!(other.next_but_heartbeats().id(), id);
    client.is_right_at(id);
    assert_eq!(client.reasons, ["first"]);
}

#[test]
fn a_byte_order_mark_begins_the_next_stream_of_that_user_agent_alone() {
    let server = start_lab();
    let address = server.address();
    let open = |agent: &str| {
        let head = format!("GET /events HTTP/1.1\r\nHost: {address}\r\nUser-Agent: {agent}\r\n\r\n");
        Stream::request(address, &head)
    };
    let mut stream = open("tested");
    let id = stream.next().json()["client"].as_u64().unwrap();
    switch_on(address, &format!("clients/{id}/bom"));
    assert!(stream.ends_cleanly());
    let first_line = |mut stream: Stream| {
        let chunk = String::from_utf8(stream.chunk().unwrap()).unwrap();
        chunk.lines().next().unwrap().trim_end_matches(|letter: char| letter.is_ascii_digit()).to_owned()
    };
    assert_eq!(first_line(open("other")), "retry: ");
    assert_eq!(first_line(open("tested")), "\u{feff}event: hello");
    assert_eq!(first_line(open("tested")), "retry: ");
}

/// Publishes an event of each kind, and gives the ids.
fn publish_all_kinds(address: SocketAddr) -> Vec<EventId> {
    let event = |text: &str| post(address, "/events?event=alert", text);
    vec![
        put(address, "/state/a", r#"{"text":"ä\n","list":[1,2]}"#),
        event("one line"),
        event("  two spaces\nand\r\n\r\nlines: 3\n"),
        put(address, "/state/b", "21.5"),
        event("a colon: first"),
        event("two spaces at the end  "),
        event("data: x"),
        delete(address, "/state/b"),
        event("the last"),
    ]
}

/// What a client under a fault reads is what the other reads, but for spaces in JSON.
fn reads_the_same(fault: &str) -> String {
    let server = start_lab();
    let address = server.address();
    let (mut client, mut other) = two_clients(address);
    client.switch_on(fault);
    for id in publish_all_kinds(address) {
        let (read, expected) = (client.next(), other.next_but_heartbeats());
        assert_eq!(expected.id(), id);
        assert_eq!((&read.name, &read.id), (&expected.name, &expected.id));
        if read.name == "update" {
            assert_eq!(read.json(), expected.json());
        } else {
            assert_eq!(read.data, expected.data);
        }
    }
    // When it is over, it is over.
    let clean = fault.replace("1m", "1ms");
    let start = client.switch_on(&clean);
    wait_until(|| start.elapsed(), |time| *time > Duration::from_millis(1));
    let id = put(address, "/state/end", "1");
    assert_eq!(client.next(), other.next_but_heartbeats());
    let seen = format!("{:?}", client.stream);
    let end = format!("id: {id}\nevent: update\ndata: {{\"end\":1}}\n\n");
    seen.strip_suffix(&end).unwrap_or_else(|| panic!("something is left: {seen:?}")).to_owned()
}

#[test]
fn comments_before_every_line_change_no_event() {
    let seen = reads_the_same("comments?for=1m");
    assert!(seen.contains("\n:data: a comment, too\ndata: {\"a\":{"), "{seen}");
}

#[test]
fn odd_framing_is_read_as_the_same_events() {
    let seen = reads_the_same("odd-framing?for=1m");
    assert!(seen.contains("\ndata:{\ndata:\"a\":{"), "{seen}");
    assert!(seen.contains("\n\u{feff}data: "), "{seen}");
}

#[test]
fn odd_framing_ends_lines_in_each_of_three_ways() {
    let server = start_lab();
    let address = server.address();
    let (client, _other) = two_clients(address);
    client.switch_on("odd-framing?for=1m");
    let Client { mut stream, .. } = client;
    let mut ends = Vec::new();
    for count in 0..3 {
        let id = put(address, "/state/a", &count.to_string());
        let mut text = String::new();
        // The empty line is the last thing of an event; the odd id line is the last but one.
        while !["\n\n", "\r\n\r\n", "\r\r"].iter().any(|end| text.ends_with(end)) {
            text.push_str(&String::from_utf8(stream.chunk().unwrap()).unwrap());
        }
        let (_, rest) = text.split_once(&format!("id:{id}")).unwrap();
        ends.push(rest.split_once("event:update").unwrap().0.to_owned());
    }
    ends.sort();
    assert_eq!(ends, ["\n", "\r", "\r\n"]);
}

#[test]
fn a_refused_stream_gets_the_status_that_was_asked_for() {
    let server = start_lab();
    let address = server.address();
    let (mut client, _other) = two_clients(address);
    for (status, comes_back) in [(503, true), (429, true), (204, false), (404, false), (500, false)] {
        switch_on(address, &format!("server/refuse?for=1m&status={status}"));
        let head = head_of(address, "/events/a");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let retry_after = header(&head, "Retry-After").map(|seconds| seconds.parse::<u64>().unwrap());
        assert_eq!(retry_after.is_some(), comes_back, "{status}");
        assert!(retry_after.is_none_or(|seconds| (1..=60).contains(&seconds)));
    }
    // Nothing else is refused, and open streams go on.
    client.is_right_at(put(address, "/state/a", "1"));
    switch_on(address, "server/refuse?for=300ms");
    client.switch_on("end");
    wait_until(|| head_of(address, "/events"), |head| head.starts_with("HTTP/1.1 200 "));
    client.is_right_at(put(address, "/state/a", "2"));
    assert_eq!(client.reasons, ["first", "known"]);
}

#[test]
fn a_redirect_leads_to_the_same_stream() {
    let server = start_lab();
    let address = server.address();
    let seen = put(address, "/state/a", "1");
    put(address, "/state/a", "2");
    switch_on(address, "server/redirect?for=1m");
    let head = head_of(address, &format!("/events/a?lastEventId={seen}&token=%0d%0aX-Evil:%20y"));
    assert!(head.starts_with("HTTP/1.1 307 "), "{head}");
    let location = header(&head, "Location").unwrap();
    let id = seen.to_string().replace('-', "%2D");
    assert_eq!(location, format!("/events/a?redirected=1&lastEventId={id}&token=%0D%0AX%2DEvil%3A%20y"));
    let mut stream = Stream::open(address, location);
    assert_eq!(stream.next().json()["reason"], "known");
    assert_eq!(stream.next().data, "2");
}

#[test]
fn a_wrong_type_is_no_stream() {
    let server = start_lab();
    let address = server.address();
    let (mut client, _other) = two_clients(address);
    switch_on(address, "server/wrong-type?for=3s");
    let head = head_of(address, "/events");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(header(&head, "Content-Type"), Some("text/html"));
    let is_stream = |head: &String| header(head, "Content-Type") == Some("text/event-stream; charset=utf-8");
    wait_until(|| head_of(address, "/events"), is_stream);
    client.is_right_at(put(address, "/state/a", "1"));
}

#[test]
fn a_delayed_stream_begins_late_and_whole() {
    let server = start_with(|config| (config.lab, config.stall) = (true, Duration::from_secs(1)));
    let address = server.address();
    let (mut early, _other) = two_clients(address);
    switch_on(address, "server/delay?for=1m&by=2500ms");
    let before = Instant::now();
    let late = std::thread::spawn(move || Client::open(address));
    wait_until(|| get(address, "/clients").json().as_array().unwrap().len(), |count| *count == 3);
    let id = put(address, "/state/a", "1");
    early.is_right_at(id);
    let mut late = late.join().unwrap();
    assert!(before.elapsed() >= Duration::from_millis(2_500));
    late.is_right_at(id);
    assert_eq!(late.reasons, ["first"]);
}

#[test]
fn forgotten_history_is_missed_by_those_who_come_back_alone() {
    let server = start_lab();
    let address = server.address();
    let (mut client, mut other) = two_clients(address);
    put(address, "/state/a", "1");
    client.switch_on("end");
    assert!(client.stream.next_or_end().is_none_or(|event| event.name == "update"));
    switch_on(address, "server/forget-history");
    client.come_back();
    client.is_right_at(put(address, "/state/b", "2"));
    assert_eq!(client.reasons, ["first", "restart"]);
    assert_eq!(
        (other.next_but_heartbeats().data, other.next_but_heartbeats().data),
        (r#"{"a":1}"#.into(), r#"{"b":2}"#.into())
    );
}

#[test]
fn a_pretended_restart_ends_every_stream_and_ids_go_on_rising() {
    let server = start_lab();
    let address = server.address();
    let before = put(address, "/state/a", "1");
    let (mut client, mut other) = two_clients(address);
    switch_on(address, "server/restart");
    assert!(other.ends_cleanly());
    assert!(client.stream.next_or_end().is_none());
    client.come_back();
    let after = put(address, "/state/b", "2");
    assert!(after > before);
    client.is_right_at(after);
    assert_eq!(client.reasons, ["first", "restart"]);
    // What it has now is known.
    client.switch_on("end");
    client.is_right_at(put(address, "/state/c", "3"));
    assert_eq!(client.reasons, ["first", "restart", "known"]);
}

#[test]
fn a_client_that_keeps_to_the_standard_survives_every_fault_in_turn() {
    let server = start_with(|config| (config.lab, config.heartbeat) = (true, Duration::from_millis(30)));
    let address = server.address();
    let (mut client, mut other) = two_clients(address);
    let faults = get(address, "/lab").json();
    let mut last = None;
    for (number, fault) in faults["faults"].as_array().unwrap().iter().enumerate() {
        let name = fault["name"].as_str().unwrap();
        let time = if fault["parameters"]["for"].is_string() { "?for=150ms" } else { "" };
        match fault["scope"].as_str().unwrap() {
            "client" => client.switch_on(&format!("{name}{time}")),
            // Who is connected notices these alone; the tests above come back into the others.
            _ if time.is_empty() => switch_on(address, &format!("server/{name}")),
            _ => continue,
        };
        for count in 0..3 {
            let id = patch(address, "/state", &json!({name: [count, "ä"], "number": number}).to_string());
            if count == 1 {
                client.is_right_at(id);
            }
            last = Some(id);
        }
        client.is_right_at(last.unwrap());
        if name == "end" {
            assert_eq!(other.next_but_heartbeats().json()["end"], json!([0, "ä"]));
        }
    }
    assert!(other.ends_cleanly(), "the restart is the last fault of the list");
}

// Not in WebKit, which puts the half of an event that was cut before the first event of the next stream.
tests_in_browsers! {
    a_real_event_source_reads_every_odd_stream_as_the_same_events: chromium, firefox;
}

fn a_real_event_source_reads_every_odd_stream_as_the_same_events(browser: &str) {
    let server = start_with(|config| (config.lab, config.retry) = (true, Duration::from_millis(100)));
    let address = server.address();
    let browser = Browser::start_named(browser);
    // A page of the same origin that does nothing by itself.
    browser.open(&format!("http://{address}/healthz"));
    let script = "window.seen = [];
        const source = new EventSource('/events');
        for (const name of ['hello', 'init', 'update', 'alert', 'message', 'of-two-the-last']) {
            source.addEventListener(name, (event) => seen.push([event.type, event.data, event.lastEventId]));
        }";
    browser.run(script, &[]);
    let seen = || -> Vec<(String, String, String)> {
        serde_json::from_value(browser.run("return seen", &[])).expect("names, data and ids")
    };
    let mut count = 2;
    wait_until(&seen, |seen| seen.len() == count);
    for fault in ["odd-framing?for=1m", "comments?for=1m", "drip?for=1m", "bom", "cut", "end"] {
        let hello = seen().into_iter().rfind(|(name, ..)| name == "hello").unwrap().1;
        let id = serde_json::from_str::<Value>(&hello).unwrap()["client"].as_u64().unwrap();
        let mut other = Stream::open(address, "/events");
        assert_eq!(other.next_named("init").name, "init");
        switch_on(address, &format!("clients/{id}/{fault}"));
        let ids = publish_all_kinds(address);
        let before = count;
        // It comes back with what it has, and is told hello.
        count += ids.len() + usize::from(!fault.contains("for="));
        let events = wait_until(&seen, |seen| seen.len() >= count);
        assert_eq!(events.len(), count, "{fault}: {events:?}");
        let events = events[before..].iter().filter(|(name, ..)| name != "hello");
        for ((name, data, last_event_id), id) in events.zip(ids) {
            let expected = other.next_but_heartbeats();
            assert_eq!((name, last_event_id), (&expected.name, &id.to_string()), "{fault}");
            if name == "update" {
                let seen: Value =
                    serde_json::from_str(data).unwrap_or_else(|error| panic!("{fault}: {error} in {data:?}"));
                assert_eq!(seen, expected.json(), "{fault}");
            } else {
                assert_eq!(data, &expected.data, "{fault}");
            }
        }
    }
}
