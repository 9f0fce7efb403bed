//! What a stream says, byte by byte, and that it says everything once and in order.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::{Read, Write};
use std::sync::Barrier;
use std::thread;

use serde_json::{Value, json};
use statecast::EventId;
use support::*;

#[test]
fn a_parameter_that_is_none_is_refused_and_not_ignored() {
    let server = start();
    let address = server.address();
    let stream = "a stream has the parameters max_events, idle, lastEventId and token";
    for query in [
        "maxEvents=1",
        "max_events=1&x",
        "Idle=1s",
        "event=a",
        "last-event-id=1-0",
        "%6dax=1",
        "=",
        "retry=5",
    ] {
        for path in ["/events", "/events/a"] {
            let answer = get(address, &format!("{path}?{query}"));
            assert_eq!((answer.status, &*answer.error()), (400, stream), "{path}?{query}");
            assert_eq!(request(address, "HEAD", &format!("{path}?{query}"), &[], "").status, 400, "{query}");
        }
    }
    for query in ["name=a", "event=a&topic=b", "Event=a", "token=x"] {
        let answer = request(address, "POST", &format!("/events/a?{query}"), &[], "x");
        assert_eq!(
            (answer.status, &*answer.error()),
            (400, "an event has the parameter event, its name"),
            "{query}"
        );
    }
    let known = "/events?idle=24h&lastEventId=1-0&last_event_id=1-0&token=x&%6dax_events=1&";
    assert!(get(address, known).body.contains("event: init\n"));
    assert_eq!(get(address, "/events?max_events=1&redirected=1").status, 200, "the lab's own");
}

#[test]
fn a_stream_is_these_bytes() {
    let server = start();
    let address = server.address();
    let first = patch(address, "/state", r#"{"temp":21.5}"#);
    let mut connection = connect(address);
    write!(connection, "GET /events?token=x HTTP/1.0\r\n\r\n").unwrap();
    let mut stream = Stream::on(connection.try_clone().unwrap());
    let expected = "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-store, no-transform\r\n\
                    X-Accel-Buffering: no\r\nConnection: close\r\n\r\n";
    assert_eq!(stream.head, expected);
    assert_eq!(stream.next().name, "hello");
    let init = stream.next();
    assert_eq!((init.name.as_str(), init.data.as_str(), init.id()), ("init", r#"{"temp":21.5}"#, first));
    let second = patch(address, "/state", r#"{"temp":21.7}"#);
    server.stop().unwrap();
    let mut rest = String::new();
    connection.read_to_string(&mut rest).unwrap();
    let update = format!("id: {second}\nevent: update\ndata: {{\"temp\":21.7}}\n\n");
    let seen = format!("{stream:?}{rest}");
    let (_, last) = seen.split_once(&update).expect("the update came");
    let digits = last.trim_matches(|letter: char| !letter.is_ascii_digit());
    let (retry, time) = digits.split_once("\nevent: heartbeat\ndata: ").expect("a last heartbeat");
    assert_eq!(last, format!("retry: {retry}\nevent: heartbeat\ndata: {time}\n\n"));
    assert!((100..=1_000).contains(&retry.parse().unwrap()), "{retry}");
    assert!(time.parse::<u64>().unwrap() > 1_700_000_000_000);
}

#[test]
fn a_stream_begins_with_hello_which_says_when_to_come_back_and_is_chunked() {
    let server = start();
    let mut stream = Stream::open(server.address(), "/events");
    let expected = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-store, no-transform\r\n\
                    X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(stream.head, expected);
    let hello = stream.next();
    let retry = stream.retry.expect("retry is in the block of hello");
    let data = r#"{"client":1,"heartbeat_ms":15000,"resume":"init","reason":"first"}"#;
    assert_eq!(hello.data, data);
    let seen = format!("{stream:?}");
    let bytes = format!("\r\n\r\nretry: {retry}\nevent: hello\ndata: {data}\n\n");
    assert!(seen.ends_with(&bytes), "{seen}");
    assert!((2_000..=4_000).contains(&retry), "{retry}");
    let init = stream.next();
    assert_eq!((init.name.as_str(), init.data.as_str()), ("init", "{}"));
}

#[test]
fn heartbeats_are_events_without_an_id() {
    let server = start_with(|config| config.heartbeat = std::time::Duration::from_millis(20));
    let mut stream = Stream::open(server.address(), "/events");
    for _ in 0..3 {
        let beat = stream.next_named("heartbeat");
        assert_eq!(beat.id, None);
        assert!(beat.data.parse::<u64>().unwrap() > 1_700_000_000_000);
    }
}

with_threads!(a_late_client_gets_the_document_and_then_every_change_while_four_publishers_write);
fn a_late_client_gets_the_document_and_then_every_change_while_four_publishers_write(threads: usize) {
    const EACH: usize = 100;
    let server = start_with(|config| config.threads = threads);
    let address = server.address();
    for round in 0..20 {
        put(address, "/state/before", &round.to_string());
    }
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let mut stream = Stream::open(address, "/events");
                assert_eq!(stream.next().name, "hello");
                scope.spawn(move || {
                    let mut replica = Replica::default();
                    let mut seen = vec![Vec::new(); 4];
                    while seen.iter().map(Vec::len).sum::<usize>() < 4 * EACH {
                        let event = stream.next();
                        replica.apply(&event);
                        if event.name == "update"
                            && let Value::Object(patch) = event.json()
                        {
                            for (topic, value) in patch {
                                let publisher: usize = topic[1..].parse().unwrap();
                                seen[publisher].push(value.as_u64().unwrap() as usize);
                            }
                        }
                    }
                    (replica, seen)
                })
            })
            .collect();
        for publisher in 0..4 {
            scope.spawn(move || {
                for count in 0..EACH {
                    put(address, &format!("/state/p{publisher}"), &count.to_string());
                }
            });
        }
        let all: Vec<usize> = (0..EACH).collect();
        for reader in readers {
            let (replica, seen) = reader.join().unwrap();
            assert_eq!(replica.document.unwrap(), get(address, "/state").json());
            for of_publisher in seen {
                assert_eq!(of_publisher, all);
            }
        }
    });
}

#[test]
fn metrics_count_the_passes_of_every_fan_out_thread_and_their_time() {
    let server = start_with(|config| config.threads = 2);
    let address = server.address();
    put(address, "/state/a", "1");
    let value = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
    };
    let is_passed = |text: &String| value(text, "statecast_pass_seconds_count ") == "2";
    let text = wait_until(|| get(address, "/metrics").body, is_passed);
    assert!(text.contains("\n# TYPE statecast_pass_seconds summary\n"), "{text}");
    let seconds: f64 = value(&text, "statecast_pass_seconds_sum ").parse().unwrap();
    assert!(seconds < DEADLINE.as_secs_f64(), "{text}");
}

#[test]
fn a_client_resumes_by_header_and_by_both_query_names() {
    let server = start();
    let address = server.address();
    let known = put(address, "/state/a", "1");
    let missed = put(address, "/state/a", "2");
    let by_header = Stream::resume(address, "/events", &known.to_string());
    let by_query = Stream::open(address, &format!("/events?lastEventId={known}"));
    let by_other_query = Stream::open(address, &format!("/events?last_event_id={known}"));
    // A page's first id stays in its URL; what the browser sends by itself is newer.
    let by_both = Stream::resume(address, "/events?lastEventId=1-0", &known.to_string());
    let mut streams = Vec::new();
    for mut stream in [by_header, by_query, by_other_query, by_both] {
        let hello = stream.next().json();
        assert_eq!((&hello["resume"], &hello["reason"]), (&json!("replay"), &json!("known")));
        let update = stream.next();
        assert_eq!(
            (update.name.as_str(), update.data.as_str(), update.id()),
            ("update", r#"{"a":2}"#, missed)
        );
        streams.push(stream);
    }
    let fence = put(address, "/state/fence", "1");
    for mut stream in streams {
        assert_eq!(stream.next().id(), fence, "nothing else came before it");
    }
}

#[test]
fn an_id_that_is_not_known_gets_the_document_and_the_reason() {
    let server = start_with(|config| config.history_bytes = 1_000);
    let address = server.address();
    let evicted = put(address, "/state/a", "1");
    for count in 0..20 {
        put(address, "/state/a", &count.to_string());
    }
    let before = put(address, "/state/a", "1").to_string();
    let last = put(address, "/state/a", "2");
    let in_range_but_never_issued = format!("{}-99", before.split('-').next().unwrap());
    let future = "99999999999999-0";
    let table = [
        (evicted.to_string(), "gap"),
        (in_range_but_never_issued, "gap"),
        (future.to_owned(), "gap"),
        ("1000-0".to_owned(), "restart"),
        ("nonsense".to_owned(), "first"),
        ("1763797512345".to_owned(), "first"),
    ];
    for (id, reason) in table {
        let mut stream = Stream::resume(address, "/events", &id);
        let hello = stream.next().json();
        assert_eq!((&hello["resume"], &hello["reason"]), (&json!("init"), &json!(reason)), "{id}");
        let init = stream.next();
        assert_eq!((init.name.as_str(), init.data.as_str(), init.id()), ("init", r#"{"a":2}"#, last));
    }
}

#[test]
fn an_id_of_the_process_before_is_answered_with_restart() {
    let server = start();
    let old = put(server.address(), "/state/a", "1");
    server.stop().unwrap();
    let server = start();
    let hello = Stream::resume(server.address(), "/events", &old.to_string()).next().json();
    assert_eq!(hello["reason"], "restart");
}

#[test]
fn ids_of_servers_that_run_at_the_same_time_differ() {
    let servers = [start(), start(), start()];
    let mut parts: Vec<u64> = servers
        .iter()
        .flat_map(|server| {
            let ids: Vec<String> = (0..10)
                .map(|count| put(server.address(), "/state/a", &count.to_string()).to_string())
                .collect();
            let parts = ids.iter().map(|id| id.split_once('-').unwrap().1.parse::<u64>().unwrap());
            // Ten ids of one server are near each other.
            let (low, high) = (parts.clone().min().unwrap(), parts.max().unwrap());
            assert!(high - low < 10, "{ids:?}");
            [low, high]
        })
        .collect();
    parts.sort_unstable();
    // Of two servers they are not, but by a chance of one in a hundred million.
    assert!(parts[2] - parts[1] > 10 && parts[4] - parts[3] > 10, "{parts:?}");
}

#[test]
fn history_serves_a_topic_nobody_listened_to() {
    let server = start();
    let address = server.address();
    let first = put(address, "/state/a", "1");
    put(address, "/state/b", "1");
    request(address, "POST", "/events/a?event=alert", &[], "hot\nhot");
    let mut stream = Stream::resume(address, "/events/a", &first.to_string());
    assert_eq!(stream.next().json()["resume"], "replay");
    let alert = stream.next();
    assert_eq!((alert.name.as_str(), alert.data.as_str()), ("alert", "hot\nhot"));
}

#[test]
fn a_topic_stream_shows_its_own_part_and_nothing_else() {
    let server = start();
    let address = server.address();
    let mut stream = Stream::open(address, "/events/a");
    assert_eq!(stream.next().name, "hello");
    let init = stream.next();
    assert_eq!((init.name.as_str(), init.data.as_str()), ("init", "null"));
    post(address, "/state", r#"{"b":1}"#);
    post(address, "/state", r#"{"b":2,"a":{"x":1}}"#);
    assert_eq!(stream.next().data, r#"{"x":1}"#);
    put(address, "/state/a", r#"{"x":1,"y":2}"#);
    assert_eq!(stream.next().data, r#"{"y":2}"#);
    put(address, "/state/a", r#"{"x":1,"y":2}"#);
    assert_eq!(stream.next().data, "{}", "a write that changes nothing is an event");
    delete(address, "/state/a");
    assert_eq!(stream.next().data, "null");
    put(address, "/state/a", "[null]");
    assert_eq!(stream.next().data, "[null]");
    delete(address, "/state");
    assert_eq!(stream.next().data, "null");
}

#[test]
fn a_one_off_event_reaches_its_streams_and_changes_nothing() {
    let server = start();
    let address = server.address();
    let mut whole = Stream::open(address, "/events");
    let mut topic = Stream::open(address, "/events/a");
    for stream in [&mut whole, &mut topic] {
        assert_eq!(stream.next().name, "hello");
        assert_eq!(stream.next().name, "init");
    }
    let tag = get(address, "/state").header("ETag").map(str::to_owned);
    request(address, "POST", "/events/a?event=chat", &[], "hi\r\nthere");
    let json = [("Content-Type", "application/json; charset=utf-8")];
    request(address, "POST", "/events/a", &json, "[1,\n2]");
    post(address, "/events", "to all");
    assert_eq!((topic.next().data, topic.next().data), ("hi\nthere".into(), "[1,\n2]".into()));
    let chat = whole.next();
    assert_eq!((chat.name.as_str(), chat.json()), ("chat", json!({"a":"hi\r\nthere"})));
    let message = whole.next();
    assert_eq!((message.name.as_str(), message.json()), ("message", json!({"a":[1,2]})));
    assert_eq!(whole.next().data, "to all");
    put(address, "/state/a", "1");
    assert_eq!(topic.next().data, "1", "what went to /events alone did not come here");
    assert_ne!(tag, get(address, "/state").header("ETag").map(str::to_owned));
    assert_eq!(get(address, "/state").body, r#"{"a":1}"#);
}

with_threads!(no_gap_and_no_double_while_clients_join_under_load);
fn no_gap_and_no_double_while_clients_join_under_load(threads: usize) {
    const ROUNDS: u64 = 150;
    let server = start_with(|config| config.threads = threads);
    let address = server.address();
    thread::scope(|scope| {
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        for publisher in 0..2 {
            let stopped = stopped.clone();
            scope.spawn(move || {
                let path = format!("/state/p{publisher}");
                for count in 0u64.. {
                    put(address, &path, &count.to_string());
                    if stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected) {
                        return;
                    }
                }
            });
        }
        let joiners: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(move || {
                    let mut last_id: Option<EventId> = None;
                    for round in 0..ROUNDS {
                        // Every other client comes back to where the one before it left.
                        let mut stream = match last_id.filter(|_| round % 2 == 1) {
                            Some(id) => Stream::resume(address, "/events", &id.to_string()),
                            None => Stream::open(address, "/events"),
                        };
                        let mut counts = [None::<u64>; 2];
                        for _ in 0..12 {
                            let event = stream.next();
                            let Some(id) = &event.id else { continue };
                            let Value::Object(members) = event.json() else { panic!("{event:?}") };
                            for (topic, value) in members {
                                let count = value.as_u64().unwrap();
                                let before = &mut counts[topic[1..].parse::<usize>().unwrap()];
                                if let Some(before) = before {
                                    assert_eq!(count, *before + 1, "{stream:?}");
                                }
                                *before = Some(count);
                            }
                            last_id = Some(id.parse().unwrap());
                        }
                    }
                })
            })
            .collect();
        for joiner in joiners {
            joiner.join().unwrap();
        }
        drop(stop);
    });
}

#[test]
fn a_thousand_clients_get_a_thousand_events() {
    const CLIENTS: usize = 1_000;
    const EVENTS: usize = 1_000;
    const READERS: usize = 4;
    let server = start();
    let address = server.address();
    let all_are_here = Barrier::new(READERS + 1);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut streams: Vec<Stream> =
                        (0..CLIENTS / READERS).map(|_| Stream::open(address, "/events")).collect();
                    for stream in &mut streams {
                        assert_eq!(stream.next().name, "hello");
                        assert_eq!(stream.next().name, "init");
                    }
                    all_are_here.wait();
                    // One after the other: what is not read yet waits in buffers, and some fall behind.
                    for stream in &mut streams {
                        for count in 0..EVENTS {
                            let event = stream.next_but_heartbeats();
                            assert_eq!(event.data, format!("{{\"n\":{count}}}"));
                        }
                    }
                })
            })
            .collect();
        all_are_here.wait();
        for count in 0..EVENTS {
            put(address, "/state/n", &count.to_string());
        }
        for reader in readers {
            reader.join().unwrap();
        }
    });
}
