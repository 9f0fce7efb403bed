//! A server inside somebody's own program or test: its handle does what the requests do, and waits for what happens.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use statecast::{EventId, EventName, Refusal, Restart, Server, TimedOut, Topic};
use support::*;

/// For what must not happen: it ends in an error, and the test goes on.
const MOMENT: Duration = Duration::from_millis(100);

fn topic(name: &str) -> Topic {
    Topic::parse(name).unwrap()
}

/// A stream that has got its `init`.
fn open(server: &Server, path: &str) -> Stream {
    let mut stream = Stream::open(server.address(), path);
    stream.next_named("init");
    stream
}

/// Far more than the kernel keeps for a client that does not read, and less than history.
const LARGE_EVENTS: usize = 100;

fn publish_more_than_fits(server: &Server) {
    for count in 0..LARGE_EVENTS {
        server.patch(None, json!({"large": "x".repeat(20_000), "count": count})).unwrap();
    }
}

/// The text that a plain ureq gets, which returns when the stream has ended cleanly.
fn read_to_string(server: &Server, path: &str) -> String {
    let answer = get(server.address(), path);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

/// The names of the events in a text.
fn names(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("event: ")).collect()
}

/// Asks for a stream and reads its bytes until the connection is over, from the test's own connection.
fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut connection = connect(address);
    write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    connection
}

fn read_to_end(mut connection: TcpStream) -> String {
    let mut bytes = Vec::new();
    match connection.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}, after {:?}", String::from_utf8_lossy(&bytes)),
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn what_the_handle_writes_is_what_subscribers_get() {
    let server = start();
    let kitchen = topic("kitchen");
    let mut whole = open(&server, "/events");
    let mut part = open(&server, "/events/kitchen");
    let put = server.put(Some(&kitchen), json!({"temp": 21, "lamp": "on"})).unwrap();
    let patch = server.patch(Some(&kitchen), json!({"lamp": null})).unwrap();
    let both = server.patch(None, json!({"kitchen": {"temp": 22}, "door": "open"})).unwrap();
    assert_eq!(server.state(), json!({"kitchen": {"temp": 22}, "door": "open"}));
    assert_eq!(server.state_of(&kitchen), Some(json!({"temp": 22})));
    let text = server.publish(Some(&kitchen), EventName::MESSAGE, "it\nboils").unwrap();
    let json = server.publish(Some(&kitchen), EventName::parse("alert").unwrap(), json!([1, "a"])).unwrap();
    let gone = server.delete(Some(&kitchen)).unwrap();
    assert_eq!(server.state_of(&kitchen), None);
    let all = server.delete(None).unwrap();
    assert_eq!(server.state(), json!({}));
    let expected: [(EventId, &str, &str, Option<&str>); 7] = [
        (put, "update", r#"{"kitchen":{"lamp":"on","temp":21}}"#, Some(r#"{"lamp":"on","temp":21}"#)),
        (patch, "update", r#"{"kitchen":{"lamp":null}}"#, Some(r#"{"lamp":null}"#)),
        (both, "update", r#"{"door":"open","kitchen":{"temp":22}}"#, Some(r#"{"temp":22}"#)),
        (text, "message", r#"{"kitchen":"it\nboils"}"#, Some("it\nboils")),
        (json, "alert", r#"{"kitchen":[1,"a"]}"#, Some(r#"[1,"a"]"#)),
        (gone, "update", r#"{"kitchen":null}"#, Some("null")),
        (all, "update", r#"{"door":null}"#, None),
    ];
    for (id, name, of_whole, of_part) in expected {
        let event = |data: &str| Event { name: name.into(), data: data.into(), id: Some(id.to_string()) };
        assert_eq!(whole.next(), event(of_whole));
        if let Some(data) = of_part {
            assert_eq!(part.next(), event(data));
        }
    }
}

#[test]
fn what_the_handle_refuses_leaves_the_document_as_it_was() {
    let server = start_with(|config| config.max_document_bytes = 100);
    server.put(None, json!({"a": 1})).unwrap();
    assert!(matches!(server.patch(None, json!(1)), Err(Refusal::Invalid(_))));
    assert!(matches!(server.put(None, json!({"no topic": 1})), Err(Refusal::Invalid(_))));
    assert!(matches!(server.patch(None, json!({"b": "x".repeat(100)})), Err(Refusal::TooLarge(_))));
    assert!(matches!(server.delete(Some(&topic("b"))), Err(Refusal::Absent(_))));
    assert_eq!(server.state(), json!({"a": 1}));
}

#[test]
fn waiting_for_the_document_ends_when_somebody_has_made_it_so() {
    let server = start();
    let address = server.address();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.wait_for_state(|document| document["count"] == 50, DEADLINE));
        for count in 0..=50 {
            patch(address, "/state", &json!({"count": count}).to_string());
        }
        assert_eq!(waiting.join().unwrap().unwrap(), json!({"count": 50}));
    });
    let error = server.wait_for_state(|document| document["count"] == 51, MOMENT).unwrap_err();
    assert_eq!(error, TimedOut::State(json!({"count": 50})));
    // What does not end of itself ends nobody's time limit.
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (server, over) = (&server, &is_over);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                server.publish(None, EventName::MESSAGE, "more").unwrap();
            }
        });
        let waited = server.wait_for_state(|document| document["count"] == 51, MOMENT);
        is_over.store(true, Ordering::Relaxed);
        assert!(waited.is_err());
    });
}

#[test]
fn the_handle_shows_the_clients_that_get_clients_shows() {
    let server = start();
    let id = server.put(None, json!({"a": 1})).unwrap();
    let head = format!("GET /events/a HTTP/1.1\r\nHost: {}\r\nUser-Agent: x\r\n\r\n", server.address());
    let part = Stream::request(server.address(), &head);
    let whole = Stream::open(server.address(), "/events");
    let clients = server.wait_for_clients(2, DEADLINE).unwrap();
    wait_until(|| server.clients(), |clients| clients.iter().all(|client| client.is_live));
    let shown = get(server.address(), "/clients").json();
    let clients_now = server.clients();
    assert_eq!(shown.as_array().unwrap().len(), 2);
    for (shown, client) in shown.as_array().unwrap().iter().zip(&clients_now) {
        assert_eq!(shown["id"], client.id);
        assert_eq!(shown["address"], client.address.to_string());
        assert_eq!(shown["topic"], json!(client.topic.as_ref().map(Topic::as_str)));
        assert_eq!(shown["state"], if client.is_live { "live" } else { "catching_up" });
        assert_eq!(shown["connected_at"], client.connected_at_ms);
        assert_eq!(shown["last_event_id"], json!(client.last_event_id.map(|id| id.to_string())));
        assert_eq!(shown["events"], client.events);
        assert_eq!(shown["bytes"], client.bytes);
        assert_eq!(shown["user_agent"], json!(client.user_agent));
        assert_eq!(shown["forwarded_for"], json!(client.forwarded_for));
    }
    let of = |stream: &Stream| {
        clients.iter().find(|client| client.address == stream.local_address()).expect("it is listed")
    };
    assert_eq!(of(&part).topic, Some(topic("a")));
    assert_eq!(of(&part).user_agent.as_deref(), Some("x"));
    assert_eq!((&of(&whole).topic, &of(&whole).user_agent), (&None, &None));
    assert_eq!(clients_now[0].last_event_id, Some(id));
}

#[test]
fn waiting_for_clients_ends_when_there_are_exactly_so_many() {
    let server = start();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.wait_for_clients(2, DEADLINE));
        let streams = [open(&server, "/events"), open(&server, "/events/a")];
        let ids: Vec<u64> = waiting.join().unwrap().unwrap().iter().map(|client| client.id).collect();
        assert_eq!(ids, [1, 2]);
        let error = server.wait_for_clients(1, MOMENT).unwrap_err();
        assert!(matches!(&error, TimedOut::Clients { expected: 1, clients } if clients.len() == 2));
        let text = error.to_string();
        assert!(text.starts_with("expected 1 clients, there are 2: client 1 at 127.0.0.1:"), "{text}");
        // Going is waited for as well as coming.
        let waiting = scope.spawn(|| server.wait_for_clients(0, DEADLINE));
        for id in ids {
            assert!(server.disconnect(id));
        }
        assert_eq!(waiting.join().unwrap().unwrap(), []);
        drop(streams);
    });
}

#[test]
fn a_client_that_is_disconnected_gets_a_clean_end() {
    let server = start();
    let mut stays = open(&server, "/events");
    let mut goes = open(&server, "/events");
    let client = server.clients().into_iter().find(|client| client.address == goes.local_address());
    assert!(server.disconnect(client.as_ref().unwrap().id));
    assert!(goes.ends_cleanly());
    assert_eq!(server.wait_for_clients(1, DEADLINE).unwrap()[0].address, stays.local_address());
    assert!(!server.disconnect(client.unwrap().id), "it is gone");
    let id = server.patch(None, json!({"a": 1})).unwrap();
    assert_eq!(stays.next().id(), id);
}

with_threads!(delivered_is_what_every_client_was_written_and_a_stalled_one_is_named);
fn delivered_is_what_every_client_was_written_and_a_stalled_one_is_named(threads: usize) {
    let server = start_with(|config| config.threads = threads);
    // One that sees none of it must not be waited for.
    let other = open(&server, "/events/other");
    let healthy = open(&server, "/events");
    let mut narrow = Stream::open_narrow(server.address(), "/events");
    narrow.next_named("init");
    let started = Instant::now();
    let id = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Reads until it is told to stop.
            let mut healthy = healthy;
            healthy.next_named("message");
        });
        publish_more_than_fits(&server);
        let id = server.put(Some(&topic("done")), json!(true)).unwrap();
        let lacking = loop {
            // The others may take a moment.
            match server.wait_delivered(id, MOMENT).unwrap_err() {
                TimedOut::Delivery { id: of, lacking } if of == id && lacking.len() == 1 => break lacking,
                error => assert!(started.elapsed() < DEADLINE, "{error}"),
            }
        };
        assert_eq!(lacking[0].address, narrow.local_address());
        assert!(!lacking[0].is_live);
        // It is delivered when that one reads on, and not before.
        let server = &server;
        let waiting = scope.spawn(move || server.wait_delivered(id, DEADLINE));
        let mut replica = Replica { document: Some(json!({})), last_id: None };
        while replica.last_id != Some(id) {
            replica.apply(&narrow.next());
        }
        waiting.join().unwrap().unwrap();
        server.publish(None, EventName::MESSAGE, "enough").unwrap();
        id
    });
    // What was never published nobody has.
    let never: EventId = "99999999999999-0".parse().unwrap();
    let text = server.wait_delivered(never, MOMENT).unwrap_err().to_string();
    assert!(text.starts_with("event 99999999999999-0 is not delivered, "), "{text}");
    assert!(text.contains(&format!("client 1 at {} (live, sent ", other.local_address())), "{text}");
    assert!(server.wait_delivered(id, DEADLINE).is_ok());
}

#[test]
fn without_clients_everything_is_delivered() {
    let server = start();
    let id = server.put(None, json!({"a": 1})).unwrap();
    server.wait_delivered(id, Duration::ZERO).unwrap();
}

#[test]
fn a_restart_that_keeps_history_replays_what_was_missed() {
    let server = start();
    let address = server.address();
    let mut before = open(&server, "/events");
    let last = server.put(None, json!({"a": 1})).unwrap();
    assert_eq!(before.next().id(), last);
    let mut missed = None;
    server.restart_after(Restart::KeepHistory, || missed = server.patch(None, json!({"b": 2})).ok()).unwrap();
    assert_eq!(server.address(), address);
    let mut after = Stream::resume(address, "/events", &last.to_string());
    let hello = after.next().json();
    assert_eq!(
        (&hello["resume"], &hello["reason"], &hello["client"]),
        (&json!("replay"), &json!("known"), &json!(2))
    );
    let event = after.next();
    assert_eq!((event.id(), event.data.as_str()), (missed.unwrap(), r#"{"b":2}"#));
    let next = server.patch(None, json!({"c": 3})).unwrap();
    assert!(next > event.id());
    assert_eq!(after.next().id(), next);
}

#[test]
fn a_restart_that_forgets_history_gives_the_document_again() {
    let server = start();
    let mut before = open(&server, "/events");
    let last = server.put(None, json!({"a": 1})).unwrap();
    assert_eq!(before.next().id(), last);
    server.restart(Restart::ForgetHistory).unwrap();
    let mut after = Stream::resume(server.address(), "/events", &last.to_string());
    let hello = after.next().json();
    assert_eq!((&hello["resume"], &hello["reason"]), (&json!("init"), &json!("restart")));
    let init = after.next();
    assert_eq!((init.name.as_str(), init.data.as_str()), ("init", r#"{"a":1}"#));
    assert!(init.id() > last);
    // From here on it is a server like any other.
    drop(after);
    let missed = server.patch(None, json!({"b": 2})).unwrap();
    let mut again = Stream::resume(server.address(), "/events", &init.id().to_string());
    assert_eq!(again.next().json()["reason"], "known");
    assert_eq!(again.next().id(), missed);
}

#[test]
fn a_restart_cuts_streams_without_an_end_and_refuses_meanwhile() {
    let server = start();
    let address = server.address();
    let stream = ask(address, "/events");
    server.wait_for_clients(1, DEADLINE).unwrap();
    // A kept-alive connection that has had its answer.
    let mut idle = connect(address);
    write!(idle, "GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = vec![0; 12];
    idle.read_exact(&mut answer).unwrap();
    let mut meanwhile = None;
    server
        .restart_after(Restart::KeepHistory, || {
            let bytes = read_to_end(stream);
            assert!(bytes.contains("event: hello"), "{bytes}");
            assert!(!bytes.ends_with("0\r\n\r\n"), "{bytes}");
            read_to_end(idle);
            assert_eq!(server.clients(), []);
            meanwhile = TcpStream::connect(address).map_err(|error| error.kind()).err();
        })
        .unwrap();
    assert_eq!(meanwhile, Some(ErrorKind::ConnectionRefused));
    assert_eq!(get(address, "/healthz").body, "ok\n");
}

#[test]
fn publishers_and_a_client_that_resumes_survive_ten_restarts() {
    const RESTARTS: u64 = 10;
    let server = start();
    let address = server.address();
    let mut replica = Replica::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for count in 0..RESTARTS {
                server.patch(None, json!({"count": count})).unwrap();
                let how = if count % 2 == 0 { Restart::KeepHistory } else { Restart::ForgetHistory };
                server.restart(how).unwrap();
            }
            server.put(Some(&topic("done")), json!(true)).unwrap();
        });
        // A client as anybody would write it: it reads until the connection ends, and comes back with its last id.
        while replica.document.as_ref().is_none_or(|document| document["done"] != json!(true)) {
            let last = replica.last_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
            let Ok(mut connection) = TcpStream::connect(address) else { continue };
            connection.set_read_timeout(Some(DEADLINE)).unwrap();
            // Enough to have it all at the end: a stream that ends by itself.
            let head = format!("GET /events?idle=500ms HTTP/1.0\r\nHost: {address}\r\n{last}\r\n");
            if connection.write_all(head.as_bytes()).is_err() {
                continue;
            }
            let text = read_to_end(connection);
            // Half an event is none.
            let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
            for block in whole.split("\n\n") {
                let field =
                    |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                if let (Some(name), Some(data)) = (field("event: "), field("data: ")) {
                    replica.apply(&Event { name, data, id: field("id: ") });
                }
            }
        }
    });
    assert_eq!(replica.document, Some(server.state()));
    assert_eq!(server.state(), json!({"count": RESTARTS - 1, "done": true}));
}

#[test]
fn servers_side_by_side_know_nothing_of_each_other() {
    let servers: Vec<Server> = (0..4).map(|_| start()).collect();
    let mut streams: Vec<Stream> = servers.iter().map(|server| open(server, "/events")).collect();
    for (number, server) in servers.iter().enumerate() {
        server.put(Some(&topic("number")), json!(number)).unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        assert_eq!(stream.next().data, json!({"number": number}).to_string());
    }
    let mut servers = servers.into_iter();
    let mut streams = streams.into_iter();
    // One is restarted and one is dropped; the others go on.
    let (restarted, dropped) = (servers.next().unwrap(), servers.next().unwrap());
    restarted.restart(Restart::ForgetHistory).unwrap();
    drop(dropped);
    for (server, mut stream) in servers.zip(streams.by_ref().skip(2)) {
        let id = server.put(Some(&topic("more")), json!(true)).unwrap();
        assert_eq!(stream.next().id(), id);
        assert_eq!(server.clients().len(), 1);
    }
}

#[test]
fn a_server_that_is_dropped_ends_its_streams_and_its_port_refuses() {
    let server = start();
    let address = server.address();
    let mut stream = open(&server, "/events");
    drop(server);
    assert!(stream.ends_cleanly());
    let refused = TcpStream::connect(address).map_err(|error| error.kind()).err();
    assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
}

#[test]
fn the_handle_is_shared_among_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&start());
}

with_threads!(max_events_ends_a_stream_that_ureq_reads_to_its_end);
fn max_events_ends_a_stream_that_ureq_reads_to_its_end(threads: usize) {
    let server = start_with(|config| config.threads = threads);
    server.put(None, json!({"a": 1})).unwrap();
    // `init` is an event with an id.
    let text = read_to_string(&server, "/events?max_events=1");
    assert_eq!(names(&text), ["hello", "init"]);
    assert!(text.ends_with("event: init\ndata: {\"a\":1}\n\n"), "{text}");
    let text = std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_to_string(&server, "/events/a?max_events=3"));
        server.wait_for_clients(1, DEADLINE).unwrap();
        server.put(Some(&topic("b")), json!("not for this stream")).unwrap();
        server.publish(Some(&topic("a")), EventName::parse("alert").unwrap(), "now").unwrap();
        for value in 2..9 {
            server.put(Some(&topic("a")), json!(value)).unwrap();
        }
        reading.join().unwrap()
    });
    assert_eq!(names(&text), ["hello", "init", "alert", "update"]);
    assert!(text.ends_with("data: 2\n\n"), "{text}");
}

#[test]
fn max_events_counts_what_is_replayed() {
    let server = start();
    let first = server.put(None, json!({"a": 0})).unwrap();
    for value in 1..6 {
        server.put(Some(&topic("a")), json!(value)).unwrap();
    }
    let text = read_to_string(&server, &format!("/events/a?max_events=2&lastEventId={first}"));
    assert_eq!(names(&text), ["hello", "update", "update"]);
    assert!(text.ends_with("data: 2\n\n"), "{text}");
}

#[test]
fn a_stream_that_ends_itself_ends_with_the_last_chunk_and_leaves_the_list() {
    let server = start();
    let (address, hello) = (server.address(), "data: {\"client\":");
    let bytes = read_to_end(ask(address, "/events?max_events=1"));
    assert!(bytes.starts_with("HTTP/1.1 200 OK\r\n") && bytes.contains(hello), "{bytes}");
    assert!(bytes.ends_with("event: init\ndata: {}\n\n\r\n0\r\n\r\n"), "{bytes}");
    server.wait_for_clients(0, DEADLINE).unwrap();
    // Without chunks the end of the connection is the end.
    let bytes = exchange(address, b"GET /events?max_events=1 HTTP/1.0\r\n\r\n");
    assert!(bytes.contains("Connection: close\r\n"), "{bytes}");
    assert!(bytes.ends_with("event: init\ndata: {}\n\n"), "{bytes}");
    let bytes = read_to_end(ask(address, "/events?idle=100ms"));
    assert!(bytes.ends_with("event: init\ndata: {}\n\n\r\n0\r\n\r\n"), "{bytes}");
    server.wait_for_clients(0, DEADLINE).unwrap();
}

#[test]
fn heartbeats_do_not_keep_an_idle_stream() {
    let server = start_with(|config| config.heartbeat = Duration::from_millis(50));
    let text = read_to_string(&server, "/events?idle=1s");
    assert_eq!(names(&text)[..3], ["hello", "init", "heartbeat"], "{text}");
    // Nor are they counted.
    let text = read_to_string(&server, "/events?idle=1s&max_events=2");
    assert_eq!(names(&text)[..3], ["hello", "init", "heartbeat"], "{text}");
}

#[test]
fn an_event_keeps_an_idle_stream_for_as_long_again() {
    const IDLE: Duration = Duration::from_secs(3);
    let server = start_with(|config| config.heartbeat = Duration::from_secs(1));
    let mut stream = open(&server, "/events?idle=3s");
    // Some of its time is over.
    stream.next_named("heartbeat");
    let published_at = Instant::now();
    let id = server.put(None, json!({"a": 1})).unwrap();
    assert_eq!(stream.next_but_heartbeats().id(), id);
    assert!(stream.ends_cleanly());
    assert!(published_at.elapsed() >= IDLE);
}

#[test]
fn whichever_limit_comes_first_ends_the_stream() {
    let server = start();
    let text = read_to_string(&server, "/events?max_events=2&idle=200ms");
    assert_eq!(names(&text), ["hello", "init"]);
    let text = read_to_string(&server, "/events?max_events=1&idle=24h");
    assert_eq!(names(&text), ["hello", "init"]);
}

#[test]
fn an_idle_stream_that_stalls_gets_everything_and_then_its_end() {
    let server = start_with(|config| config.history_bytes = 64 << 20);
    let mut narrow = Stream::open_narrow(server.address(), "/events?idle=500ms");
    narrow.next_named("init");
    publish_more_than_fits(&server);
    // Longer than it may be idle: an event is on its way to it, and that is not idle.
    server.wait_for_clients(0, Duration::from_secs(1)).unwrap_err();
    let mut updates = 0;
    while let Some(event) = narrow.next_or_end() {
        updates += usize::from(event.name == "update");
    }
    assert_eq!(updates, LARGE_EVENTS);
    server.wait_for_clients(0, DEADLINE).unwrap();
}

#[test]
fn a_limit_that_is_none_is_refused_and_takes_no_place() {
    let server = start_with(|config| config.max_clients = 1);
    let table = [
        ("max_events=0", "max_events must be a number from 1"),
        ("max_events=", "max_events must be a number from 1"),
        ("max_events=-1", "max_events must be a number from 1"),
        ("max_events=ten", "max_events must be a number from 1"),
        ("idle=2", "idle must be a time, such as 500ms, 15s or 2m"),
        ("idle=", "idle must be a time, such as 500ms, 15s or 2m"),
        ("idle=0s", "idle must be a time from 1ms to 24h"),
        ("max_events=1&idle=25h", "idle must be a time from 1ms to 24h"),
    ];
    for (query, text) in table {
        let answer = get(server.address(), &format!("/events?{query}"));
        assert_eq!((answer.status, answer.error().as_str()), (400, text), "{query}");
    }
    let text = read_to_string(&server, "/events?max_events=1");
    let data: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    assert_eq!((&data[0]["client"], &data[1]), (&json!(1), &json!({})));
}
