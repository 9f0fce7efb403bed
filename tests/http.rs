//! Every route: what it does, what it refuses, and who may write.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;

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

/// The statuses of the answers.
fn statuses(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
}

#[test]
fn several_lines_of_a_condition_are_one_list() {
    let server = start();
    let address = server.address();
    let id = put(address, "/state/a", "1");
    let ask = |method: &str, headers: &str| {
        raw(
            address,
            &format!("{method} /state/a HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: 1\r\n\r\n2"),
        )
        .status
    };
    let lists = [
        format!("\"1-0\"\r\nNAME: \"{id}\""),
        format!("\"{id}\"\r\nX: y\r\nname: \"1-0\""),
        format!("\"1-0\", \"2-0\"\r\nNAME:\r\nNAME: \"3,0\", \"{id}\""),
        "\"1-0\"\r\nNAME: *".to_owned(),
    ];
    for list in lists {
        let lines =
            format!("NAME: {list}\r\n").replace("NAME", "If-None-Match").replace("name", "if-none-match");
        assert_eq!(ask("GET", &lines), 304, "{lines}");
        assert_eq!(ask("HEAD", &lines), 304, "{lines}");
        assert_eq!(ask("PUT", &lines), 412, "{lines}");
        let lines = lines.replace("If-None-Match", "If-Match").replace("if-none-match", "if-match");
        assert_eq!(ask("GET", &lines), 200, "{lines}");
    }
    assert_eq!(get(address, "/state/a").body, "1");
    let last = format!("If-Match: \"1-0\"\r\nIf-Match: \"{id}\"\r\n");
    assert_eq!(ask("PUT", &last), 200);
}

#[test]
fn a_write_whose_condition_does_not_hold_changes_nothing() {
    let server = start();
    let address = server.address();
    let old = put(address, "/state/a", r#"{"n":1}"#);
    let topic = put(address, "/state/a", r#"{"n":2}"#);
    let document = put(address, "/state/b", "1");
    let mut stream = Stream::open(address, "/events");
    stream.next_named("init");
    let (old, topic, document) = (format!("\"{old}\""), format!("\"{topic}\""), format!("\"{document}\""));
    let weak = format!("W/{topic}");
    let quoted = format!("\"x,{topic},y\"");
    let fails = [
        ("/state/a", "If-Match", &*old),
        ("/state/a", "If-Match", &document),
        ("/state/a", "If-Match", &weak),
        ("/state/a", "If-Match", &quoted),
        ("/state/a", "If-Match", topic.trim_matches('"')),
        ("/state/a", "If-Match", ""),
        ("/state/a", "If-None-Match", "*"),
        ("/state/a", "If-None-Match", &topic),
        ("/state/a", "If-None-Match", &weak),
        ("/state/absent", "If-Match", "*"),
        ("/state/absent", "If-Match", &topic),
        ("/state", "If-Match", &topic),
        ("/state", "If-None-Match", "*"),
        ("/state", "If-None-Match", &document),
    ];
    for (path, name, tags) in fails {
        for method in ["POST", "PATCH", "PUT", "DELETE"] {
            let refused = request(address, method, path, &[(name, tags)], r#"{"n":3}"#);
            assert_eq!(refused.status, 412, "{method} {path} {name}: {tags}");
            assert!(refused.error().contains(name), "{}", refused.error());
        }
    }
    let both = [("If-Match", topic.as_str()), ("If-None-Match", "*")];
    assert_eq!(request(address, "PUT", "/state/a", &both, "3").status, 412);
    assert_eq!(request(address, "POST", "/events", &[("If-Match", &topic)], "x").status, 412);
    let fence = put(address, "/state/b", "2");
    assert_eq!(stream.next_but_heartbeats().id(), fence, "nothing else came before it");
    assert_eq!(get(address, "/state").body, r#"{"a":{"n":2},"b":2}"#);
}

#[test]
fn a_write_whose_condition_holds_is_done() {
    let server = start();
    let address = server.address();
    let write = |method: &str, path: &str, name: &str, tags: &str| {
        let body = if method == "DELETE" { "" } else { r#"{"a":1}"# };
        format!("\"{}\"", request(address, method, path, &[(name, tags)], body).id())
    };
    for method in ["POST", "PATCH", "PUT"] {
        let made = write(method, "/state/t", "If-None-Match", "*");
        let changed = write(method, "/state/t", "If-Match", &format!("\"1-0\" ,{made}"));
        let again = write(method, "/state/t", "If-Match", "*");
        assert_eq!(get(address, "/state/t").header("ETag"), Some(&*again));
        write(method, "/state/t", "If-None-Match", &changed);
        let tag = get(address, "/state").header("ETag").unwrap().to_owned();
        write(method, "/state", "If-Match", &tag);
        let tag = get(address, "/state").header("ETag").unwrap().to_owned();
        write("DELETE", "/state", "If-Match", &tag);
    }
    let tag = write("PUT", "/state/t", "If-None-Match", "*");
    write("DELETE", "/state/t", "If-Match", &tag);
    // A condition that holds changes no answer, and reading knows If-Match, too.
    let absent = request(address, "DELETE", "/state/t", &[("If-None-Match", "*")], "");
    assert_eq!(absent.status, 404);
    let tag = write("PUT", "/state/t", "If-None-Match", "*");
    assert_eq!(request(address, "GET", "/state/t", &[("If-Match", &tag)], "").body, r#"{"a":1}"#);
    assert_eq!(request(address, "GET", "/state/t", &[("If-Match", "\"1-0\"")], "").status, 412);
}

#[test]
fn of_writers_that_name_one_tag_one_wins() {
    const WRITERS: usize = 8;
    let server = start();
    let address = server.address();
    put(address, "/state/n", "0");
    for round in 1..=20 {
        for (path, body) in [("/state/n", round.to_string()), ("/state", format!(r#"{{"n":{round}}}"#))] {
            let tag = get(address, path).header("ETag").unwrap().to_owned();
            let together = Barrier::new(WRITERS);
            let statuses: Vec<u16> = thread::scope(|scope| {
                let writers: Vec<_> = (0..WRITERS)
                    .map(|_| {
                        scope.spawn(|| {
                            together.wait();
                            request(address, "PUT", path, &[("If-Match", &tag)], &body).status
                        })
                    })
                    .collect();
                writers.into_iter().map(|writer| writer.join().unwrap()).collect()
            });
            let won = statuses.iter().filter(|status| **status == 200).count();
            let lost = statuses.iter().filter(|status| **status == 412).count();
            assert_eq!((won, lost), (1, WRITERS - 1), "{statuses:?}");
        }
    }
}

#[test]
fn a_patch_in_another_format_is_refused_and_not_stored() {
    let server = start();
    let address = server.address();
    put(address, "/state/k", r#"{"temp":21}"#);
    let patch = r#"[{"op":"replace","path":"/temp","value":22}]"#;
    let others = [
        "application/json-patch+json",
        "APPLICATION/JSON-Patch+JSON; charset=utf-8",
        " application/json-patch+json ;x=y",
        "application/json-patch",
        "application/json-patch-query+json",
        "application/merge-patch+cbor",
        "application/merge-patch+json-seq",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
        "application/vnd.example.patch+json",
        "text/x-patch",
        "merge-patch+json",
    ];
    for kind in others {
        for method in ["PATCH", "POST", "PUT"] {
            let refused = request(address, method, "/state/k", &[("Content-Type", kind)], patch);
            assert_eq!(refused.status, 415, "{method} {kind}");
            assert_eq!(refused.header("Accept-Patch"), Some("application/merge-patch+json"));
            assert!(refused.error().contains("application/merge-patch+json"));
        }
    }
    let twice = "Content-Type: application/json\r\nContent-Type: application/json-patch+json\r\n";
    let bytes = format!("PATCH /state/k HTTP/1.1\r\nHost: localhost\r\n{twice}Content-Length: 2\r\n\r\n{{}}");
    assert_eq!(raw(address, &bytes).status, 415);
    let large = format!("[\"{}\"]", "x".repeat(5_000));
    assert_eq!(request(address, "PATCH", "/state/k", &[("Content-Type", others[0])], &large).status, 415);
    assert_eq!(get(address, "/state").body, r#"{"k":{"temp":21}}"#);
    for path in ["/state", "/state/k", "/state/absent"] {
        let options = request(address, "OPTIONS", path, &[], "");
        assert_eq!(options.header("Accept-Patch"), Some("application/merge-patch+json"));
    }
    assert_eq!(request(address, "OPTIONS", "/events", &[], "").header("Accept-Patch"), None);
    for kind in [
        "application/merge-patch+json",
        "Application/Merge-Patch+JSON; charset=utf-8",
        "application/json; profile=patch",
        "application/x-www-form-urlencoded",
        "text/plain",
        "",
    ] {
        let taken = request(address, "PATCH", "/state/k", &[("Content-Type", kind)], r#"{"temp":23}"#);
        assert_eq!(taken.status, 200, "{kind}");
    }
    // To an event it is data as any other.
    assert_eq!(request(address, "POST", "/events", &[("Content-Type", others[0])], patch).status, 200);
}

#[test]
fn a_body_with_a_content_encoding_is_refused_and_not_stored() {
    let server = start();
    let address = server.address();
    for coding in ["gzip", "x-gzip", "br", "zstd", "deflate", "GZIP", "identity, gzip", "aws-chunked", "none"]
    {
        for (method, path) in [
            ("PATCH", "/state"),
            ("POST", "/state/a"),
            ("PUT", "/state/a"),
            ("POST", "/events"),
            ("DELETE", "/state"),
        ] {
            let refused = request(address, method, path, &[("Content-Encoding", coding)], "{}");
            assert_eq!(refused.status, 415, "{method} {path} {coding}");
            assert_eq!(refused.header("Accept-Encoding"), Some("identity"));
            assert!(refused.error().contains("compression is not spoken"), "{}", refused.error());
        }
    }
    let put = |lines: &str, body: &str| {
        let length = body.len();
        let head =
            format!("PUT /state/a HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {length}\r\n\r\n");
        raw(address, &(head + body)).status
    };
    assert_eq!(put("Content-Encoding: identity\r\nContent-Encoding: gzip\r\n", "1"), 415);
    assert_eq!(put("Content-Encoding: gzip\r\n", &"1".repeat(5_000)), 415);
    assert_eq!(get(address, "/state").body, "{}");
    for lines in [
        "Content-Encoding: identity\r\n",
        "content-encoding: Identity, identity\r\n",
        "Content-Encoding:\r\n",
    ] {
        assert_eq!(put(lines, "1"), 200, "{lines}");
    }
}

#[test]
fn json_that_nobody_can_read_is_refused_with_the_reason() {
    let server = start();
    let address = server.address();
    let json = [("Content-Type", "application/json")];
    let deep = "[".repeat(200) + &"]".repeat(200);
    for (method, path) in [("PUT", "/state/a"), ("PATCH", "/state"), ("POST", "/events")] {
        let refused = request(address, method, path, &json, &deep);
        assert_eq!((refused.status, &*refused.error()), (400, "the body is too deep: more than 100 levels"));
    }
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x33\x04\0\xb7\xef\xdc\x83\x01\0\0\0";
    for (path, kind) in [
        ("/state/a", "application/json"),
        ("/state", ""),
        ("/events", "application/json"),
        ("/events", "text/plain"),
    ] {
        let length = gzip.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        );
        let answer = exchange(address, &[head.as_bytes(), gzip].concat());
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("compression is not spoken"),
            "{answer}"
        );
    }
    assert_eq!(get(address, "/state").body, "{}");
}

#[test]
fn a_byte_order_mark_before_a_body_is_skipped() {
    let server = start();
    let address = server.address();
    let mut stream = Stream::open(address, "/events");
    stream.next_named("init");
    put(address, "/state/a", "\u{feff}1");
    assert_eq!(stream.next_named("update").data, r#"{"a":1}"#);
    let json = [("Content-Type", "application/json")];
    for (headers, body, data) in [
        (&json[..], "\u{feff}{\"b\":2}", "{\"b\":2}"),
        (&[], "\u{feff}text", "text"),
        (&[], "te\u{feff}xt", "te\u{feff}xt"),
    ] {
        request(address, "POST", "/events", headers, body).id();
        assert_eq!(stream.next_named("message").data, data);
    }
}

#[test]
fn minus_zero_over_zero_is_a_change() {
    let server = start();
    let address = server.address();
    put(address, "/state", r#"{"a":{"b":0.0},"c":[0.0],"d":1}"#);
    let mut stream = Stream::open(address, "/events");
    stream.next_named("init");
    put(address, "/state", r#"{"a":{"b":-0.0},"c":[-0.0],"d":1.0}"#);
    assert_eq!(stream.next_named("update").data, r#"{"a":{"b":-0.0},"c":[-0.0],"d":1.0}"#);
    assert_eq!(get(address, "/state").body, r#"{"a":{"b":-0.0},"c":[-0.0],"d":1.0}"#);
}

#[test]
fn integers_beyond_64_bits_are_rounded_as_the_readme_says() {
    assert!(README.contains("integers beyond 64 bits are rounded"));
    let server = start();
    let address = server.address();
    for (sent, kept) in [
        ("18446744073709551615", "18446744073709551615"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("18446744073709551616", "1.8446744073709552e+19"),
        ("-9223372036854775809", "-9.223372036854776e+18"),
    ] {
        put(address, "/state/n", sent);
        assert_eq!(get(address, "/state/n").body, kept);
    }
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
    assert_eq!(
        (of_stream.status, of_stream.header("Content-Type")),
        (200, Some("text/event-stream; charset=utf-8"))
    );
    assert_eq!(of_stream.body, "");
    let of_state = raw(address, "HEAD /state HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((of_state.header("Content-Length"), of_state.body.as_str()), (Some("8"), ""));
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
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue");
    connection.write_all(body.as_bytes()).unwrap();
    let state = wait_until(|| get(address, "/state/b"), |answer| answer.status == 200);
    assert_eq!(state.body, body);
    assert_eq!(get(address, "/state/a").body, "[1]");
}

#[test]
fn nothing_behind_a_chunked_request_runs_however_it_says_chunked() {
    let server = start();
    let address = server.address();
    let behind = "DELETE /state/a HTTP/1.1\r\nHost: localhost\r\n\r\n";
    put(address, "/state/a", "1");
    let codings = [
        "Transfer-Encoding: chunked",
        "transfer-encoding:chunked",
        "TRANSFER-ENCODING:  CHUNKED  ",
        "Transfer-Encoding:\tchunked\t",
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding:\x0cchunked",
        "Transfer-Encoding: chunked\x0b",
        "Transfer-Encoding: \x0c\x0b chunked\x0c",
        "\x0bTransfer-Encoding: chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n\tTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: \r\n\tchunked",
        "Transfer-Encoding: chunked\r\n ",
        "Transfer-Encoding: chunked\x00",
        "Transfer-Encoding: \x1fchunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nContent-Length: 1",
        "Content-Length: 1\r\nTransfer-Encoding:\x0bchunked",
        "Transfer_Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding\0: chunked\r\nTransfer-Encoding: chunked",
        "X: y\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Connection: keep-alive\r\nTransfer-Encoding: chunked",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding:\x0bchunked",
        "Trailer: X\r\nTransfer-Encoding: chunked",
    ];
    for coding in codings {
        for (method, path) in
            [("PUT", "/state/b"), ("GET", "/state"), ("DELETE", "/state/absent"), ("GET", "/nothing")]
        {
            let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{coding}\r\n\r\n");
            let answer = exchange(address, format!("{head}1\r\n1\r\n0\r\n\r\n{behind}").as_bytes());
            // tiny_http may refuse it, or what is behind what was refused, in its own words.
            let ours = answer.matches("\r\nServer: statecast\r\n").count();
            let closing = answer.matches("\r\nConnection: close\r\n").count();
            assert!(ours <= 1 && closing == ours, "{coding:?}: {answer}");
            let others = statuses(&answer).into_iter().skip(ours);
            assert!(others.clone().all(|status| status == "400"), "{coding:?}: {answer}");
            assert!(!answer.starts_with("HTTP/1.1 2") || others.count() == 0, "{coding:?}: {answer}");
        }
    }
    // What was smuggled, too, goes to the queue before this.
    assert_eq!(get(address, "/healthz").status, 200);
    assert_eq!(get(address, "/state").body, r#"{"a":1,"b":1}"#);
}

#[test]
fn an_answer_that_closes_says_so_and_another_does_not() {
    let server = start();
    let address = server.address();
    let kept = "PUT /state/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1";
    let last = "GET /state/a HTTP/1.1\r\nHost: localhost\r\nConnection: Close\r\n\r\n";
    let answers = exchange(address, format!("{kept}{kept}{last}").as_bytes());
    assert_eq!(statuses(&answers), ["200", "200", "200"]);
    let closing: Vec<bool> = answers
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| answer.contains("\r\nConnection: close\r\n"))
        .collect();
    assert_eq!(closing, [false, false, true]);
    let refused = exchange(address, b"GET / HTTP/1.1\r\n\r\n");
    assert!(refused.contains("\r\nConnection: close\r\n"), "{refused}");
}

#[test]
fn a_chunked_body_may_be_followed_by_a_trailer_that_was_announced() {
    let server = start();
    let address = server.address();
    for (trailer, fields) in [
        ("X-T", "X-T: y\r\n"),
        ("x-t, Server-Timing", "X-T: y\r\nServer-Timing: a\r\n"),
        ("X-T", ""),
        ("0", "0: y\r\n"),
        ("A", "A: 1\r\nPUT /state/a HTTP/1.1: x\r\n"),
    ] {
        let bytes = format!(
            "PUT /state/t HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: {trailer}\r\n\r\n\
             1\r\n[\r\n2\r\n5]\r\n0\r\n{fields}\r\n"
        );
        delete(address, "/state");
        assert_eq!(statuses(&exchange(address, bytes.as_bytes())), ["200"], "{fields:?}");
        assert_eq!(get(address, "/state").body, r#"{"t":[5]}"#);
    }
}

#[test]
fn what_tiny_http_keeps_from_the_server_is_as_the_readme_says() {
    let server = start();
    let address = server.address();
    let put =
        |value: u8| format!("PUT /state/t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n{value}");
    // An empty line is answered as if it were a request, and nothing behind it runs.
    assert!(README.contains("| an empty line before a request"));
    let answers = exchange(address, format!("{}\r\n{}", put(1), put(2)).as_bytes());
    assert_eq!(statuses(&answers), ["200", "400"]);
    let answers = exchange(address, format!("\r\n{}", put(3)).as_bytes());
    assert_eq!(statuses(&answers), ["400"]);
    assert_eq!(get(address, "/state/t").body, "1");
    // What the row says helps.
    let mut closing = put(4).replace("Host", "Connection: close\r\nHost");
    closing.push_str("\r\n");
    assert_eq!(statuses(&exchange(address, closing.as_bytes())), ["200"]);
    assert!(README.contains("| a trailer that no `Trailer` header announces"));
    let bytes = "PUT /state/t HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n5\r\n0\r\nX: y\r\n\r\n";
    let refused = exchange(address, bytes.as_bytes());
    assert_eq!(statuses(&refused)[0], "400");
    assert!(refused.contains("send the body with a Content-Length"), "{refused}");
    assert!(README.contains("| an `Expect` that is not `100-continue`"));
    let bytes = put(6).replace("Host", "Expect: 200-ok\r\nHost");
    assert_eq!(statuses(&exchange(address, bytes.as_bytes())), ["417"]);
    assert_eq!(get(address, "/state/t").body, "4");
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
    connection.read_to_string(&mut answer).unwrap();
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
            connection.read_exact(&mut answer).unwrap();
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
            body.strip_suffix('\n')?.parse().ok()
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

#[test]
fn an_answer_without_content_has_no_length() {
    let server = start();
    let address = server.address();
    put(address, "/state/a", "1");
    let tag = get(address, "/state/a").header("ETag").unwrap().to_owned();
    let known =
        raw(address, &format!("GET /state/a HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: {tag}\r\n\r\n"));
    assert_eq!(
        (known.status, known.header("Content-Length"), known.header("ETag")),
        (304, None, Some(&*tag))
    );
    let options = raw(address, "OPTIONS /state HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((options.status, options.header("Content-Length")), (204, None));
}

#[test]
fn a_request_of_http_1_0_is_the_last_of_its_connection() {
    let server = start();
    let request = "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    // `exchange` reads to the end, which comes without waiting for the time of an idle connection.
    let answer = exchange(server.address(), request.repeat(2).as_bytes());
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.").count(), 1, "{answer}");
}

#[test]
fn a_body_announced_with_more_than_can_be_dropped_gets_its_answer_whole() {
    let server = start();
    let mut connection = connect(server.address());
    let head = "PUT /state/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n";
    connection.write_all(head.as_bytes()).unwrap();
    connection.write_all(&vec![b'1'; 100_000]).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(
        answer.ends_with("{\"error\":\"the body is larger than 1048576 bytes (--max-body)\"}\n"),
        "{answer}"
    );
}

#[test]
fn a_head_beyond_ascii_is_answered_where_the_allocator_sees_it_and_counted() {
    let server = Binary::start(&[]);
    let address = server.address;
    for value in ["user=J\u{fc}rgen", "S\u{e3}o Paulo", "\u{1f600}"] {
        let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {value}\r\n\r\n");
        let answer = exchange(address, request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("a letter beyond ASCII"), "{answer}");
    }
    let metrics = get(address, "/metrics").body;
    assert!(metrics.contains("statecast_not_ascii_heads_total 3\n"), "{metrics}");
}
