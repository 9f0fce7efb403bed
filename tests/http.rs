//! Every route: what it does, what it refuses, and who may write.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::Write;
use std::net::SocketAddr;

use serde_json::json;
use support::*;

#[test]
fn a_topic_is_merged_replaced_read_and_removed() {
    let server = start();
    let address = server.address();
    let first = post(address, "/state/kitchen", r#"{"temp":21,"lamp":{"on":true}}"#);
    let second = patch(address, "/state/kitchen", r#"{"temp":null,"lamp":{"level":3}}"#);
    assert!(second > first);
    let read = get(address, "/state/kitchen");
    assert_eq!(read.body, r#"{"lamp":{"level":3,"on":true}}"#);
    assert_eq!(read.header("ETag"), Some(format!("\"{second}\"").as_str()));
    assert_eq!(read.header("Content-Type"), Some("application/json"));
    let third = put(address, "/state/kitchen", r#"["any",null,{"a":null}]"#);
    assert_eq!(get(address, "/state").json(), json!({"kitchen":["any",null,{"a":null}]}));
    put(address, "/state/hall", "1");
    assert_eq!(get(address, "/state/kitchen").header("ETag"), Some(format!("\"{third}\"").as_str()));
    delete(address, "/state/kitchen");
    assert_eq!(get(address, "/state").body, r#"{"hall":1}"#);
    let absent = get(address, "/state/kitchen");
    assert_eq!((absent.status, absent.error().as_str()), (404, "no such topic; PUT /state/TOPIC makes it"));
    assert_eq!(request(address, "DELETE", "/state/kitchen", &[], "").status, 404);
    post(address, "/state/hall", "null");
    assert_eq!(get(address, "/state").body, "{}");
}

#[test]
fn a_document_that_did_not_change_is_not_sent_again() {
    let server = start();
    let address = server.address();
    put(address, "/state/a", "1");
    let tag = get(address, "/state").header("ETag").unwrap().to_owned();
    let not_modified =
        |path: &str, tag: &str| request(address, "GET", path, &[("If-None-Match", tag)], "").status;
    assert_eq!(not_modified("/state", &tag), 304);
    assert_eq!(not_modified("/state/a", &format!("\"other\", W/{tag}")), 304);
    assert_eq!(not_modified("/state", "*"), 304);
    post(address, "/events", "a one-off event is no change");
    assert_eq!(not_modified("/state", &tag), 304);
    put(address, "/state/b", "1");
    assert_eq!(not_modified("/state", &tag), 200);
    assert_eq!(not_modified("/state/a", &tag), 304);
    let page = get(address, "/");
    assert_eq!(not_modified("/", page.header("ETag").unwrap()), 304);
}

#[test]
fn a_wrong_body_is_refused_and_changes_nothing() {
    let server = start_with(|config| (config.max_body_bytes, config.max_document_bytes) = (20_000, 10_000));
    let address = server.address();
    let id = put(address, "/state/a", "1");
    let deep = "[".repeat(101) + &"]".repeat(101);
    let large = format!("\"{}\"", "x".repeat(11_000));
    let table: [(&str, &str, &str, u16, &str); 10] = [
        ("PATCH", "/state", "{", 400, "the body is not JSON: EOF while parsing an object at line 1 column 1"),
        (
            "PATCH",
            "/state",
            "[1]",
            400,
            "the document is a JSON object; send one, or name a topic: /state/TOPIC",
        ),
        (
            "PUT",
            "/state",
            "null",
            400,
            "the document is a JSON object; send one, or name a topic: /state/TOPIC",
        ),
        ("PUT", "/state/a", "1e999999", 400, "the body is not JSON: number out of range at line 1 column 8"),
        ("PUT", "/state/a", &deep, 400, "the document would be deeper than 100 levels"),
        (
            "PATCH",
            "/state",
            r#"{"a/b":1}"#,
            400,
            "a key is no topic: a topic is 1 to 64 of A-Z a-z 0-9 . _ - and not . or ..",
        ),
        ("PUT", "/state/..", "1", 400, "a topic is 1 to 64 of A-Z a-z 0-9 . _ - and not . or .."),
        (
            "POST",
            "/events?event=init",
            "x",
            400,
            "an event cannot be called hello, init, update, heartbeat, open, error",
        ),
        (
            "PUT",
            "/state/a",
            &large,
            413,
            "the document would be larger than 10000 bytes (--max-document), each object and array counted with 40 more",
        ),
        ("PUT", "/state/a", &"1".repeat(20_001), 413, "the body is larger than 20000 bytes (--max-body)"),
    ];
    for (method, path, body, status, error) in table {
        let refused = if path.contains("..") {
            // ureq would tidy the path up.
            raw(
                address,
                &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n{body}"),
            )
        } else {
            request(address, method, path, &[], body)
        };
        assert_eq!((refused.status, refused.error().as_str()), (status, error), "{method} {path}");
    }
    let json = [("Content-Type", "application/json")];
    assert_eq!(request(address, "POST", "/events", &json, "no json").status, 400);
    assert_eq!(get(address, "/state").header("ETag"), Some(format!("\"{id}\"").as_str()));
}

/// Sends bytes and takes the answer apart; the connection must be closed by the server, or is told to.
fn raw(address: SocketAddr, bytes: &str) -> Answer {
    let bytes = bytes.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
    let text = exchange(address, bytes.as_bytes());
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?} is no answer"));
    let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        body: body.to_owned(),
    }
}

#[test]
fn a_path_knows_its_methods() {
    let server = start();
    let address = server.address();
    let table = [
        ("/events", "GET, HEAD, POST, OPTIONS"),
        ("/events/a", "GET, HEAD, POST, OPTIONS"),
        ("/state", "GET, HEAD, POST, PATCH, PUT, DELETE, OPTIONS"),
        ("/clients", "GET, HEAD, OPTIONS"),
        ("/clients/1", "DELETE, OPTIONS"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS"),
    ];
    for (path, methods) in table {
        let options = request(address, "OPTIONS", path, &[], "");
        assert_eq!((options.status, options.header("Allow")), (204, Some(methods)), "{path}");
        let refused = request(address, "TRACE", path, &[], "");
        assert_eq!((refused.status, refused.header("Allow")), (405, Some(methods)), "{path}");
        assert_eq!(refused.error(), format!("this path knows {methods}"));
    }
    assert_eq!(get(address, "/nothing").status, 404);
    assert_eq!(get(address, "/clients/x").status, 404);
}

#[test]
fn head_is_the_head_alone() {
    let server = start();
    let address = server.address();
    put(address, "/state/a", "1");
    let of_stream = raw(address, "HEAD /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((of_stream.status, of_stream.header("Content-Type")), (200, Some("text/event-stream")));
    assert_eq!(of_stream.body, "");
    let of_state = raw(address, "HEAD /state HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((of_state.header("Content-Length"), of_state.body.as_str()), (Some("7"), ""));
    assert_eq!(get(address, "/clients").body, "[]");
}

#[test]
fn a_client_is_described_while_it_is_there() {
    let server = start();
    let address = server.address();
    let mut stream = Stream::request(
        address,
        &format!("GET /events/a HTTP/1.1\r\nHost: {address}\r\nUser-Agent: a \"test\"\r\n\r\n"),
    );
    stream.next_named("init");
    let id = put(address, "/state/a", "1");
    stream.next_named("update");
    let clients = wait_until(|| get(address, "/clients").json(), |clients| clients[0]["state"] == "live");
    let client = &clients[0];
    assert_eq!(client["id"], 1);
    assert_eq!(client["address"], stream.local_address().to_string());
    assert_eq!((&client["topic"], &client["user_agent"]), (&json!("a"), &json!("a \"test\"")));
    assert_eq!((&client["events"], &client["last_event_id"]), (&json!(3), &json!(id.to_string())));
    assert!(client["bytes"].as_u64().unwrap() > 100);
    assert!(client["connected_at"].as_u64().unwrap() > 1_700_000_000_000);
}

#[test]
fn metrics_count_what_happened() {
    let server = start();
    let address = server.address();
    let mut stream = Stream::open(address, "/events");
    stream.next_named("init");
    put(address, "/state/a", "1");
    stream.next_named("update");
    assert_eq!(get(address, "/healthz").body, "ok\n");
    let text =
        wait_until(|| get(address, "/metrics").body, |text| text.contains("statecast_deliveries_total 1\n"));
    for line in ["statecast_writes_total 1", "statecast_streams_total 1", "statecast_clients 1"] {
        assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
    }
}

#[test]
fn a_foreign_page_or_a_forwarded_request_cannot_write() {
    let server = start();
    let address = server.address();
    let own = address.to_string();
    let write = |headers: &str| {
        raw(address, &format!("POST /state/a HTTP/1.1\r\n{headers}\r\nContent-Length: 1\r\n\r\n1"))
    };
    let refused = [
        format!("Host: {own}\r\nOrigin: http://evil.example"),
        format!("Host: {own}\r\nOrigin: null"),
        format!("Host: {own}\r\nOrigin: http://localhost"),
        // A name that was made to point here: the page's origin is its own host.
        "Host: evil.example\r\nOrigin: http://evil.example".to_owned(),
        "Host: evil.example".to_owned(),
        format!("Host: {own}\r\nForwarded: for=10.0.0.1"),
        format!("Host: {own}\r\nVia: 1.1 proxy"),
        format!("Host: {own}\r\nX-Real-IP: 10.0.0.1"),
        format!("Host: {own}\r\nX-Forwarded-For: 10.0.0.1"),
        format!("Host: {own}\r\nx-forwarded-anything: x"),
    ];
    for headers in refused {
        assert_eq!(write(&headers).status, 403, "{headers}");
    }
    assert_eq!(
        raw(address, "POST /state/a HTTP/1.0\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1").status,
        403
    );
    assert_eq!(raw(address, "DELETE /state HTTP/1.1\r\nHost: evil.example\r\n\r\n").status, 403);
    assert_eq!(raw(address, "GET /clients HTTP/1.1\r\nHost: evil.example\r\n\r\n").status, 403);
    assert_eq!(raw(address, "DELETE /clients/1 HTTP/1.1\r\nHost: evil.example\r\n\r\n").status, 403);
    assert_eq!(
        raw(address, "POST /events HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1\r\n\r\n1").status,
        403
    );
    assert_eq!(get(address, "/state").body, "{}");
    for headers in [
        format!("Host: {own}"),
        format!("Host: {own}\r\nOrigin: http://{own}"),
        "Host: localhost:8080\r\nOrigin: https://localhost:8080".to_owned(),
        "Host: [::1]:8080".to_owned(),
    ] {
        assert_eq!(write(&headers).status, 200, "{headers}");
    }
}

#[test]
fn an_open_server_takes_writes_from_anybody_but_foreign_pages() {
    let server = start_with(|config| config.open = true);
    let address = server.address();
    let write = |headers: &str| {
        raw(address, &format!("POST /state/a HTTP/1.1\r\n{headers}\r\nContent-Length: 1\r\n\r\n1")).status
    };
    assert_eq!(write("Host: statecast.example\r\nX-Forwarded-For: 10.0.0.1"), 200);
    assert_eq!(write("Host: statecast.example\r\nOrigin: https://statecast.example"), 200);
    assert_eq!(write("Host: statecast.example\r\nOrigin: https://evil.example"), 403);
    assert_eq!(write("Host: statecast.example\r\nOrigin: null"), 403);
}

#[test]
fn a_request_that_others_would_read_differently_is_refused_and_closed() {
    let server = start();
    let address = server.address();
    let smuggled = "DELETE /state/a HTTP/1.1\r\nHost: localhost\r\n\r\n";
    put(address, "/state/a", "1");
    let heads = [
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 1\r\nTransfer-Encoding: identity",
        "Content-Length: 1\r\nContent-Length: 1",
        "Content-Length: 0\r\nContent-Length: 50",
        "Content-Length: 0, 0",
        "Content-Length: x",
        "Content-Length: -1",
        "Content-Length: +0",
        "Content-Length:",
        "X: a\rb",
        "X: a\nb",
        "X: a\nContent-Length: 50",
        "X: a\0b",
        "X(y): z",
        "Host: localhost",
        "Origin: http://localhost\r\nOrigin: http://localhost",
        "Authorization: Bearer a\r\nAuthorization: Bearer b",
    ];
    for head in heads {
        let bytes = format!("PUT /state/b HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n{smuggled}");
        let answer = exchange(address, bytes.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{head:?}: {answer}");
        assert_eq!(get(address, "/state").body, r#"{"a":1}"#, "{head:?}");
    }
    // What was smuggled, too, goes to the queue before this.
    assert_eq!(request(address, "GET", "/healthz", &[], "").status, 200);
    assert_eq!(get(address, "/state").body, r#"{"a":1}"#);
}

#[test]
fn a_body_may_come_in_chunks_or_be_waited_for() {
    let server = start();
    let address = server.address();
    let chunked = "PUT /state/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n2\r\n1]\r\n0\r\n\r\n";
    assert_eq!(raw(address, chunked).status, 200);
    let mut connection = connect(address);
    let body = format!("\"{}\"", "x".repeat(3_000));
    let length = body.len();
    write!(
        connection,
        "PUT /state/b HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    )
    .unwrap();
    let mut answer = [0; 21];
    std::io::Read::read_exact(&mut connection, &mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue");
    connection.write_all(body.as_bytes()).unwrap();
    let state = wait_until(|| get(address, "/state/b"), |answer| answer.status == 200);
    assert_eq!(state.body, body);
    assert_eq!(get(address, "/state/a").body, "[1]");
}

#[test]
fn a_body_that_ends_early_is_no_body() {
    let server = start();
    let address = server.address();
    let mut connection = connect(address);
    // Longer than tiny_http reads by itself, and valid JSON as far as it comes.
    let body = format!("1{}", " ".repeat(2_000));
    write!(connection, "PUT /state/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n{body}")
        .unwrap();
    connection.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut connection, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(get(address, "/state").body, "{}");
}

#[test]
fn a_body_that_no_machine_could_hold_is_refused_and_the_server_goes_on() {
    let server = Binary::start(&[]);
    for length in [
        "2000000",
        "99999999",
        "99999999999999",
        "9223372036854775808",
        "18446744073709551615",
        "99999999999999999999",
    ] {
        for host in ["Host: localhost\r\n", "Host: localhost\r\nExpect: 100-continue\r\n"] {
            let head = format!("PUT /state/a HTTP/1.1\r\n{host}Content-Length: {length}\r\n\r\n");
            let mut connection = connect(server.address);
            connection.write_all(head.as_bytes()).unwrap();
            let mut answer = [0; 12];
            std::io::Read::read_exact(&mut connection, &mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.1 413", "{length}");
        }
    }
    put(server.address, "/state/a", "1");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    const COUNT: usize = 100;
    let server = start();
    let address = server.address();
    let pair = |count: usize| {
        let body = count.to_string();
        let length = body.len();
        let close = if count == COUNT - 1 { "Connection: close\r\n" } else { "" };
        format!(
            "PUT /state/n HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}\
             GET /state/n HTTP/1.1\r\nHost: localhost\r\n{close}\r\n"
        )
    };
    let bytes: String = (0..COUNT).map(pair).collect();
    let answers = exchange(address, bytes.as_bytes());
    let values: Vec<usize> = answers
        .split("HTTP/1.1 200 OK")
        .filter_map(|answer| {
            let body = answer.rsplit("\r\n\r\n").next().unwrap();
            body.parse().ok()
        })
        .collect();
    assert_eq!(values, (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn requests_behind_an_open_stream_wait_and_too_many_end_it() {
    let server = start();
    let address = server.address();
    let behind = "GET /state HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let stream_with =
        |count: usize| format!("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n{}", behind.repeat(count));
    let mut patient = Stream::request(address, &stream_with(2));
    patient.next_named("init");
    for _ in 0..20 {
        let answers = exchange(address, stream_with(40).as_bytes());
        assert!(!answers.contains("application/json"), "{answers}");
    }
    let id = put(address, "/state/a", "1");
    assert_eq!(
        patient.next_but_heartbeats().id(),
        id,
        "no thread was taken, and nothing was answered in between"
    );
}
