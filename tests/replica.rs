//! A replica holds the server's document, whatever happens between them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

#[path = "bench/random.rs"]
mod random;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use random::Rng;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use statecast::{EventSource, EventSourceInit, Reason, Replica};
use support::*;

fn replica_of(address: SocketAddr) -> Replica {
    let init = EventSourceInit {
        reconnection_time: Duration::from_millis(100),
        tries_again: |status| matches!(status, 408 | 425 | 429 | 500..=599),
        ..EventSourceInit::default()
    };
    let source = EventSource::with(&format!("http://{address}/events"), init).unwrap();
    Replica::follow(source).unwrap()
}

#[test]
fn a_replica_waits_for_a_document_and_says_what_it_has_instead() {
    let server = start();
    let replica = replica_of(server.address());
    put(server.address(), "/state/a", "1");
    let document = replica.wait_until(|document| document["a"] == 1, DEADLINE).unwrap();
    assert_eq!(*document, json!({"a": 1}));
    let id = patch(server.address(), "/state", r#"{"b":[2],"a":null}"#);
    replica.wait_until(|_| replica.last_event_id() == Some(id), DEADLINE).unwrap();
    assert_eq!(replica.current().as_deref(), Some(&json!({"b": [2]})));
    let not_so = replica.wait_until(|document| document["b"] == 3, Duration::from_millis(10)).unwrap_err();
    assert_eq!(not_so.to_string(), r#"it was not so in time; the document is {"b":[2]}"#);
}

#[test]
fn a_replica_of_a_source_that_closes_does_not_wait_out_its_time() {
    let server = start();
    let source = EventSource::new(&format!("http://{}/nothing", server.address())).unwrap();
    let replica = Replica::follow(source).unwrap();
    let not_so = replica.wait_until(|_| true, Duration::from_secs(100_000)).unwrap_err();
    assert!(not_so.has_ended && not_so.document.is_none());
    assert!(matches!(not_so.reason, Some(Reason::Refused { status: 404, .. })), "{not_so}");
}

#[test]
fn an_update_that_cannot_follow_makes_the_replica_begin_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let replica = replica_of(listener.local_addr().unwrap());
    let hello = "event: hello\ndata: {\"resume\":\"init\"}\n\n";
    let init = |id: u64, data: &str| format!("{hello}id: {id}-0\nevent: init\ndata: {data}\n\n");
    let update = |id: u64, data: &str| format!("id: {id}-0\nevent: update\ndata: {data}\n\n");
    let streams = [
        // An update without a document.
        format!("{hello}{}", update(5, r#"{"wrong":1}"#)),
        // One that came before, one without an id, one that is no JSON; each after one that follows.
        init(5, r#"{"a":0}"#) + &update(6, r#"{"a":1}"#) + &update(6, r#"{"wrong":1}"#),
        init(7, r#"{"a":2}"#) + "event: update\ndata: {\"wrong\":1}\n\n",
        init(8, r#"{"a":3}"#) + &update(9, r#"{"wrong":"#),
        // A server that would go on although it was asked for the present.
        "event: hello\ndata: {\"resume\":\"replay\"}\n\n".to_owned() + &update(10, r#"{"a":4}"#),
    ];
    for (number, stream) in streams.iter().enumerate() {
        let mut connection = listener.accept().unwrap().0;
        let head = read_head(&mut connection);
        assert!(!head.to_ascii_lowercase().contains("last-event-id"), "stream {number}: {head}");
        write!(connection, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{stream}").unwrap();
        // The client leaves; the server did not.
        wait_until(|| replica.source().reason(), |reason| matches!(reason, Some(Reason::StartedOver(_))));
        let mut rest = Vec::new();
        connection.read_to_end(&mut rest).unwrap();
    }
    let mut connection = listener.accept().unwrap().0;
    read_head(&mut connection);
    let stream = init(11, r#"{"a":5}"#);
    write!(connection, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{stream}").unwrap();
    let document = replica.wait_until(|document| document["a"] == 5, DEADLINE).unwrap();
    assert_eq!(*document, json!({"a": 5}));
}

/// Passes connections on, slowly and in small pieces, and cuts each after a while.
fn relay(to: SocketAddr, seed: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut rng = Rng(seed);
        for client in listener.incoming() {
            let (mut client, mut rng) = (client.unwrap(), Rng(rng.next()));
            thread::spawn(move || {
                // Little fits in between, so that the server sees how slow it goes.
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                socket.set_recv_buffer_size(4_096).unwrap();
                if socket.connect(&to.into()).is_err() {
                    return;
                }
                let mut server: TcpStream = socket.into();
                server.write_all(read_head(&mut client).as_bytes()).ok();
                let mut left = rng.below(2_000_000) + 50_000;
                let mut piece = [0; 2_048];
                while let Ok(count @ 1..) = server.read(&mut piece)
                    && client.write_all(&piece[..count]).is_ok()
                    && left > count as u64
                {
                    left -= count as u64;
                    thread::sleep(Duration::from_millis(rng.below(8)));
                }
                client.shutdown(Shutdown::Both).ok();
            });
        }
    });
    address
}

#[test]
fn replicas_equal_the_server_through_ten_seconds_of_chaos() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut rng = Rng(seed);
    let file = std::env::temp_dir().join(format!("statecast-chaos-{}", std::process::id()));
    std::fs::remove_file(&file).ok();
    let options = [
        "--document",
        file.to_str().unwrap(),
        "--heartbeat",
        "200ms",
        "--retry",
        "100ms",
        "--history",
        "200K",
    ];
    let mut server = Binary::start(&options);
    let address = server.address;
    let replicas = [replica_of(address), replica_of(address), replica_of(relay(address, seed))];
    let (is_over, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let publishers: Vec<_> = (0..3_u64)
        .map(|publisher| {
            let (mut rng, is_over, writes) =
                (Rng(seed + publisher), Arc::clone(&is_over), Arc::clone(&writes));
            thread::spawn(move || {
                let agent: ureq::Agent =
                    ureq::Agent::config_builder().timeout_global(Some(DEADLINE)).build().into();
                while !is_over.load(Ordering::Relaxed) {
                    let text = format!("{:?}", "x".repeat(rng.index(3_000)));
                    let value = rng.of(&["null", "1", r#"{"a":1}"#, r#"{"a":null,"b":{"c":[1]}}"#, &text]);
                    let url = format!("http://{address}/state/t{}", rng.below(9));
                    // The server may be away.
                    let sent = if rng.one_in(3) {
                        agent.put(&url).send(value)
                    } else {
                        agent.patch(&url).send(value)
                    };
                    match sent {
                        Ok(_) => writes.fetch_add(1, Ordering::Relaxed),
                        Err(_) => rng.next(),
                    };
                }
            })
        })
        .collect();

    let end = Instant::now() + Duration::from_secs(10);
    let mut turns = 0;
    while Instant::now() < end {
        // Chaos for a while.
        thread::sleep(Duration::from_millis(rng.below(300)));
        match rng.below(4) {
            0 => {
                server.signal("KILL");
                drop(server);
                server = Binary::start_at(address, &options);
            }
            1 => {
                server.signal("TERM");
                server.wait();
                server = Binary::start_at(address, &options);
            }
            2 => {
                for client in get(address, "/clients").json().as_array().unwrap() {
                    request(address, "DELETE", &format!("/clients/{}", client["id"]), &[], "");
                }
            }
            _ => {}
        }
        turns += 1;
        // The topic is nobody else's: whoever has it has, in its order, all that came before.
        put(address, "/state/turn", &turns.to_string());
        for replica in &replicas {
            replica.wait_until(|document| document["turn"] == turns, DEADLINE).unwrap();
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.join().unwrap();
    }
    let id = put(address, "/state/turn", "\"over\"");
    let document = get(address, "/state").json();
    for replica in &replicas {
        let over = replica.wait_until(|document| document["turn"] == "over", DEADLINE).unwrap();
        assert_eq!(*over, document, "after {turns} turns, seed {seed}");
        assert_eq!(replica.last_event_id(), Some(id));
        assert!(replica.source().reason().is_some(), "it was disturbed");
    }
    assert!(turns > 5 && writes.load(Ordering::Relaxed) > 100, "{turns} turns, {writes:?} writes");
    std::fs::remove_file(&file).ok();
}
