//! Ends: clients that leave, clients that are sent away, and a server that stops.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;
use support::*;

#[test]
fn a_client_that_left_is_gone_at_the_third_heartbeat() {
    let server = start_with(|config| config.heartbeat = Duration::from_millis(200));
    let address = server.address();
    let mut witness = Stream::open(address, "/events/witness");
    drop(Stream::open(address, "/events"));
    witness.next_named("init");
    for _ in 0..3 {
        witness.next_named("heartbeat");
    }
    // The third reached this one; it reached the other in the same pass, or a moment later.
    let most =
        wait_until(|| get(address, "/clients").json(), |clients| clients.as_array().unwrap().len() == 1);
    assert_eq!(most[0]["topic"], "witness");
    let beat = witness.next_named("heartbeat");
    assert!(beat.data.parse::<u64>().is_ok());
}

#[test]
fn a_client_that_is_ended_sees_a_clean_end() {
    let server = start();
    let address = server.address();
    let reader = std::thread::spawn(move || {
        let mut answer = ureq::get(format!("http://{address}/events")).call().expect("a stream");
        answer.body_mut().read_to_string().expect("a clean end is no error")
    });
    wait_until(|| get(address, "/clients").json(), |clients| clients[0]["state"] == "live");
    assert_eq!(request(address, "DELETE", "/clients/1", &[], "").json(), json!({"id": 1}));
    let text = reader.join().unwrap();
    assert!(text.ends_with("event: init\ndata: {}\n\n"), "{text}");
    let again = request(address, "DELETE", "/clients/1", &[], "");
    assert_eq!((again.status, again.error().as_str()), (404, "no such client; GET /clients lists them"));
}

#[test]
fn what_waits_behind_a_stream_is_not_answered_at_its_end() {
    let server = start();
    let address = server.address();
    // tiny_http answers it by itself as soon as the writer is free, and must not be faster than we are.
    let mut all = vec!["no request\r\n"; 50];
    all.push("DELETE /state HTTP/1.1\r\nHost: localhost\r\n\r\n");
    all.push("PUT /state/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n1");
    for (count, behind) in all.into_iter().enumerate() {
        let head = format!("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n{behind}");
        let mut stream = Stream::request(address, &head);
        stream.next_named("init");
        assert_eq!(request(address, "DELETE", &format!("/clients/{}", count + 1), &[], "").status, 200);
        assert!(stream.ends_cleanly(), "{behind}");
    }
    assert_eq!(get(address, "/state").body, "{}");
}

#[test]
fn an_http_1_0_client_gets_the_same_bytes_and_then_the_end() {
    let server = start();
    let address = server.address();
    let mut connection = connect(address);
    write!(connection, "GET /events HTTP/1.0\r\n\r\n").unwrap();
    wait_until(|| get(address, "/clients").json(), |clients| clients[0]["state"] == "live");
    let id = put(address, "/state/a", "1");
    // An end does not wait for what is on its way to the stream.
    wait_until(|| get(address, "/clients").json(), |clients| clients[0]["last_event_id"] == id.to_string());
    request(address, "DELETE", "/clients/1", &[], "");
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    assert!(text.ends_with(&format!("\n\nid: {id}\nevent: update\ndata: {{\"a\":1}}\n\n")), "{text}");
}

with_threads!(sigterm_ends_every_stream_with_a_time_to_come_back);
fn sigterm_ends_every_stream_with_a_time_to_come_back(threads: usize) {
    let server = Binary::start(&["--grace", "20s", "--threads", &threads.to_string()]);
    let address = server.address;
    let mut streams: Vec<Stream> = (0..200).map(|_| Stream::open(address, "/events")).collect();
    for stream in &mut streams {
        stream.next_named("init");
        stream.retry = None;
    }
    let mut publisher = connect(address);
    write!(publisher, "PUT /state/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1").unwrap();
    let start = Instant::now();
    server.signal("TERM");
    let mut retries: Vec<u64> = streams
        .iter_mut()
        .map(|stream| {
            // A stream without a last chunk panics here.
            let last = std::iter::from_fn(|| stream.next_or_end()).last().expect("a last event");
            assert_eq!(last.name, "heartbeat");
            stream.retry.expect("a retry of its own")
        })
        .collect();
    let (code, log) = server.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(start.elapsed() < Duration::from_secs(20), "in time");
    retries.sort_unstable();
    assert!(retries[199] <= 1_000, "200 clients may come back within a second: {retries:?}");
    retries.dedup();
    assert!(retries.len() > 50, "each has its own: {retries:?}");
}

#[test]
fn a_stalled_client_does_not_keep_the_server_from_stopping() {
    let server = Binary::start(&["--grace", "1s"]);
    let address = server.address;
    let mut stalled = Stream::open_narrow(address, "/events");
    stalled.next_named("init");
    let text = json!("x".repeat(500_000)).to_string();
    wait_until(
        || {
            put(address, "/state/a", "1");
            put(address, "/state/a", &text);
            get(address, "/clients").json()[0]["state"].clone()
        },
        |state| state == "catching_up",
    );
    server.signal("INT");
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn a_stopped_server_gives_its_port_back() {
    let server = start();
    let address = server.address();
    let mut stream = Stream::open(address, "/events");
    stream.next_named("init");
    let idle = connect(address);
    server.stop().unwrap();
    assert!(stream.ends_cleanly());
    drop(idle);
    let again = start_with(|config| config.listen = vec![address]);
    assert_eq!(again.address(), address);
    assert_eq!(get(address, "/healthz").status, 200);
}

#[test]
fn a_server_that_stops_refuses_connections_and_answers_what_was_asked() {
    let server = start_with(|config| config.grace = 4 * DEADLINE);
    let address = server.address();
    let mut asked = connect(address);
    let head = "GET /state HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
    asked.write_all(head.as_bytes()).unwrap();
    assert!(read_head(&mut asked).starts_with("HTTP/1.1 100 Continue"));
    let stopping = std::thread::spawn(move || server.stop());
    wait_until(
        || TcpStream::connect(address).err().map(|error| error.kind()),
        |refused| *refused == Some(ErrorKind::ConnectionRefused),
    );
    asked.write_all(b"1").unwrap();
    assert!(read_head(&mut asked).starts_with("HTTP/1.1 200 OK"));
    stopping.join().unwrap().unwrap();
}

#[test]
fn a_request_that_never_ends_is_cut_and_others_are_not() {
    let server = start_with(|config| config.request_timeout = Duration::from_millis(500));
    let address = server.address();
    let mut stream = Stream::open(address, "/events");
    stream.next_named("init");
    let mut kept = connect(address);
    let ask = |connection: &mut TcpStream| {
        write!(connection, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = [0; 15];
        connection.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    };
    ask(&mut kept);
    let silent = connect(address);
    let mut half = connect(address);
    write!(half, "GET /events HTTP/1.1\r\nHo").unwrap();
    let mut short_body = connect(address);
    write!(short_body, "PUT /state/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n1").unwrap();
    for mut connection in [silent, half, short_body] {
        let mut rest = Vec::new();
        connection.read_to_end(&mut rest).expect("it is closed");
        assert_eq!(rest, b"");
    }
    let mut rest = vec![0; 4_096];
    let length = kept.read(&mut rest).unwrap();
    assert!(length > 0, "the rest of the first answer");
    ask(&mut kept);
    let id = put(address, "/state/a", "1");
    assert_eq!(stream.next_but_heartbeats().id(), id);
}

#[test]
fn a_clean_end_is_not_counted_with_those_that_are_gone() {
    let server = start();
    let address = server.address();
    let gone = || {
        let text = get(address, "/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix("statecast_gone_total ")).unwrap();
        line.parse::<u64>().unwrap()
    };
    let mut limited = Stream::open(address, "/events?max_events=1");
    assert!(limited.ends_cleanly());
    let mut ended = Stream::open(address, "/events");
    ended.next_named("init");
    server.disconnect(server.clients()[0].id);
    assert!(ended.ends_cleanly());
    server.wait_for_clients(0, DEADLINE).unwrap();
    assert_eq!(gone(), 0);
    let mut cut = Stream::open(address, "/events");
    cut.next_named("init");
    server.restart(statecast::Restart::KeepHistory).unwrap();
    assert_eq!(gone(), 1);
}
