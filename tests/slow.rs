//! A client that stops reading: it delays nobody, and is right again when it goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::time::Duration;

use serde_json::json;
use statecast::Server;
use support::*;

/// Publishes until the server has seen that the one client does not read.
fn stall(server: &Server, large: &str) -> usize {
    let address = server.address();
    for count in 0.. {
        patch(address, "/state/large", &json!({"text": large, "count": count}).to_string());
        let clients = get(address, "/clients").json();
        if clients.as_array().unwrap().iter().any(|client| client["state"] == "catching_up") {
            return count;
        }
        assert!(count < 1_000, "it takes everything: {clients}");
    }
    unreachable!()
}

with_threads!(a_client_that_stops_reading_delays_nobody_and_catches_up_from_history);
fn a_client_that_stops_reading_delays_nobody_and_catches_up_from_history(threads: usize) {
    let server = start_with(|config| {
        config.threads = threads;
        config.history_bytes = 64 << 20;
    });
    let address = server.address();
    let mut healthy = Stream::open(address, "/events");
    let mut stalled = Stream::open_narrow(address, "/events");
    for stream in [&mut healthy, &mut stalled] {
        assert_eq!(stream.next().name, "hello");
        assert_eq!(stream.next().name, "init");
    }
    let last = stall(&server, &"x".repeat(20_000));
    let id = put(address, "/state/done", "true");
    // The healthy one has everything while the other still stands.
    let mut replica = Replica { document: Some(json!({})), last_id: None };
    while replica.last_id != Some(id) {
        replica.apply(&healthy.next());
    }
    let clients = get(address, "/clients").json();
    assert_eq!((&clients[0]["state"], &clients[1]["state"]), (&json!("live"), &json!("catching_up")));
    // Then it reads again: every event, none twice, no second init.
    let mut counts = Vec::new();
    let mut late = Replica { document: Some(json!({})), last_id: None };
    while late.last_id != Some(id) {
        let event = stalled.next();
        assert_eq!(event.name, "update");
        if let Some(count) = event.json()["large"]["count"].as_u64() {
            counts.push(count as usize);
        }
        late.apply(&event);
    }
    assert_eq!(counts, (0..=last).collect::<Vec<_>>());
    assert_eq!(late.document, replica.document);
    wait_until(|| get(address, "/clients").json()[1]["state"].clone(), |state| state == "live");
    let fence = put(address, "/state/fence", "1");
    assert_eq!((healthy.next().id(), stalled.next().id()), (fence, fence));
}

with_threads!(a_client_that_stops_reading_for_longer_than_history_gets_the_document);
fn a_client_that_stops_reading_for_longer_than_history_gets_the_document(threads: usize) {
    let server = start_with(|config| {
        config.threads = threads;
        config.history_bytes = 1_000;
    });
    let address = server.address();
    let mut stalled = Stream::open_narrow(address, "/events");
    assert_eq!(stalled.next().json()["reason"], "first");
    stall(&server, &"x".repeat(20_000));
    for count in 0..10 {
        put(address, "/state/more", &count.to_string());
    }
    let id = put(address, "/state/done", "true");
    let mut replica = Replica::default();
    let mut reasons = Vec::new();
    while replica.last_id != Some(id) {
        let event = stalled.next();
        if event.name == "hello" {
            reasons.push(event.json()["reason"].as_str().unwrap().to_owned());
        }
        replica.apply(&event);
    }
    assert_eq!(reasons, ["lagged"]);
    assert_eq!(replica.document.unwrap(), get(address, "/state").json());
    let fence = put(address, "/state/fence", "1");
    assert_eq!(stalled.next().id(), fence);
}

#[test]
fn a_fan_out_thread_whose_clients_are_all_stalled_delays_no_other() {
    let server = start_with(|config| {
        config.threads = 2;
        config.stall = DEADLINE;
    });
    let address = server.address();
    // Each goes to the thread that has fewest, so one thread has all that do not read.
    let mut pairs: Vec<[Stream; 2]> = (0..4)
        .map(|_| {
            let mut pair = [Stream::open_narrow(address, "/events"), Stream::open(address, "/events")];
            for stream in &mut pair {
                stream.next_named("init");
            }
            pair
        })
        .collect();
    let large = "x".repeat(20_000);
    let mut published = Vec::new();
    let count_behind = || server.clients().iter().filter(|client| !client.is_live).count();
    wait_until(
        || {
            // The others read what there is, so that they never block.
            published.push(patch(address, "/state/large", &json!([large, published.len()]).to_string()));
            for [_, reads] in &mut pairs {
                assert_eq!(reads.next().id(), published[published.len() - 1]);
            }
            count_behind()
        },
        |behind| *behind == 4,
    );
    for count in 0..100 {
        let id = put(address, "/state/small", &count.to_string());
        for [_, reads] in &mut pairs {
            assert_eq!(reads.next().id(), id);
        }
    }
    assert_eq!(count_behind(), 4, "the stalled ones are still there");
}

#[test]
fn a_client_that_never_reads_again_is_removed() {
    let server = start_with(|config| {
        config.stall = Duration::from_millis(300);
        config.heartbeat = Duration::from_secs(1);
    });
    let address = server.address();
    let mut healthy = Stream::open(address, "/events/healthy");
    healthy.next_named("init");
    let mut stalled = Stream::open_narrow(address, "/events");
    assert_eq!(stalled.next().name, "hello");
    stall(&server, &"x".repeat(20_000));
    let start = put(address, "/state/healthy", "0");
    let clients =
        wait_until(|| get(address, "/clients").json(), |clients| clients.as_array().unwrap().len() == 1);
    assert_eq!(clients[0]["topic"], "healthy");
    let end = put(address, "/state/healthy", "1");
    while healthy.next_named("update").id() != start {}
    // Long before a connection that acknowledges nothing would be: that takes twenty of these.
    let mut heartbeats = 0;
    loop {
        let event = healthy.next();
        if event.name != "heartbeat" {
            assert_eq!(event.id(), end);
            break;
        }
        heartbeats += 1;
    }
    assert!(heartbeats < 12, "{heartbeats} heartbeats");
}

#[test]
fn two_hundred_clients_that_never_read_cost_their_kernel_buffers_and_nothing_else() {
    let server = Binary::start(&[]);
    let address = server.address;
    let mut healthy = Stream::open(address, "/events");
    assert_eq!(healthy.next_named("init").data, "{}");
    // It reads all the time, and returns the last event.
    let healthy = std::thread::spawn(move || {
        loop {
            let event = healthy.next();
            if event.name == "update" && event.json()["done"] == 1 {
                return event.id();
            }
        }
    });
    let mut stalled: Vec<Stream> = (0..200).map(|_| Stream::open_narrow(address, "/events")).collect();
    for stream in &mut stalled {
        assert_eq!(stream.next().name, "hello");
    }
    let is_behind = |clients: &serde_json::Value| {
        let states = clients.as_array().unwrap().iter().map(|client| &client["state"]);
        states.filter(|state| *state == "catching_up").count() == 200
    };
    let text = "x".repeat(20_000);
    let mut count = 0;
    wait_until(
        || {
            put(address, "/state/large", &json!([text, count]).to_string());
            count += 1;
            get(address, "/clients").json()
        },
        is_behind,
    );
    // Twice what history holds: each of them needs the document by now.
    for more in 0..400 {
        put(address, "/state/large", &json!([text, more]).to_string());
    }
    let id = put(address, "/state/done", "1");
    assert_eq!(healthy.join().unwrap(), id);
    // History's 4 MiB and what it takes in transit; 200 times 64 KiB would be more.
    let resident = server.resident_kib();
    assert!(resident < 20 << 10, "{resident} KiB");
}

#[test]
fn a_client_that_reads_a_little_now_and_then_is_not_removed() {
    let server = start_with(|config| config.stall = Duration::from_millis(500));
    let address = server.address();
    let mut slow = Stream::open_narrow(address, "/events");
    assert_eq!(slow.next().name, "hello");
    assert_eq!(slow.next().name, "init");
    stall(&server, &"x".repeat(20_000));
    let done = put(address, "/state/done", "1");
    // Reads one event each 100 ms: never fast enough to be live, never silent for half a second.
    let mut replica = Replica { document: Some(json!({})), last_id: None };
    while replica.last_id != Some(done) {
        replica.apply(&slow.next_but_heartbeats());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(get(address, "/clients").json()[0]["id"], 1, "it is still the same connection");
}

#[test]
fn a_large_document_reaches_a_client_that_reads() {
    let server = start();
    let address = server.address();
    for part in 0..6 {
        let text = format!("{part}").repeat(600_000);
        put(address, &format!("/state/part{part}"), &json!(text).to_string());
    }
    let document = get(address, "/state").json();
    let mut streams: Vec<Stream> = (0..4).map(|_| Stream::open(address, "/events")).collect();
    for stream in &mut streams {
        assert_eq!(stream.next_named("init").json(), document);
    }
    let fence = put(address, "/state/fence", "1");
    for stream in &mut streams {
        assert_eq!(stream.next_but_heartbeats().id(), fence);
    }
}

#[test]
fn an_idle_stream_of_a_quiet_topic_ends_though_others_are_busy() {
    let server = start_with(|config| config.history_bytes = 4_096);
    let address = server.address();
    // Longer than the server leaves an idle client alone.
    let mut quiet = Stream::open(address, "/events/quiet?idle=6s");
    let topic = statecast::Topic::parse("busy").unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let names = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut count = 0;
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                count += 1;
                server.put(Some(&topic), json!(count)).unwrap();
                std::thread::yield_now();
            }
        });
        let names: Vec<String> = std::iter::from_fn(|| quiet.next_or_end()).map(|event| event.name).collect();
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        names
    });
    assert_eq!(names, ["hello", "init"], "it missed nothing, and ended");
}

#[test]
fn a_client_of_a_quiet_topic_that_blocks_on_a_heartbeat_has_missed_nothing() {
    let server = start_with(|config| {
        config.history_bytes = 4_096;
        config.heartbeat = Duration::from_millis(1);
        config.stall = DEADLINE;
    });
    let mut quiet = Stream::open_narrow(server.address(), "/events/quiet");
    quiet.next_named("init");
    let is_live = |is_live: bool| {
        wait_until(|| server.clients(), |clients| clients.iter().all(|client| client.is_live == is_live))
    };
    is_live(true);
    // What others publish leaves no event in history that this one has seen.
    let topic = statecast::Topic::parse("busy").unwrap();
    for _ in 0..10 {
        server.put(Some(&topic), json!("x".repeat(1_000))).unwrap();
    }
    is_live(false);
    server.put(Some(&statecast::Topic::parse("quiet").unwrap()), json!("done")).unwrap();
    assert_eq!(quiet.next_but_heartbeats().data, "\"done\"", "no second hello, no init");
}
