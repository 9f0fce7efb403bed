//! Who may do what: tokens, and pages of other origins.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::net::SocketAddr;

use statecast::{Origin, Token};
use support::*;

#[test]
fn a_publish_token_is_needed_and_enough_to_write() {
    let server = start_with(|config| config.publish_token = Token::new("s3cret").ok());
    let address = server.address();
    let write = |headers: &[(&str, &str)]| request(address, "PUT", "/state/a", headers, "1").status;
    assert_eq!(write(&[]), 401);
    assert_eq!(write(&[("Authorization", "Bearer s3cre")]), 401);
    assert_eq!(write(&[("Authorization", "Basic s3cret")]), 401);
    assert_eq!(write(&[("Authorization", "s3cret")]), 401);
    assert_eq!(
        request(address, "PUT", "/state/a?token=s3cret", &[], "1").status,
        401,
        "a URL is no place for it"
    );
    let proxied = [("Authorization", "bearer s3cret"), ("X-Forwarded-For", "10.0.0.1")];
    assert_eq!(write(&proxied), 200);
    assert_eq!(write(&[("Authorization", "Bearer s3cret"), ("Origin", "http://evil.example")]), 403);
    let refused = request(address, "GET", "/clients", &[], "");
    assert_eq!((refused.status, refused.header("WWW-Authenticate")), (401, Some("Bearer")));
    assert!(!refused.body.contains("s3cret"));
    assert_eq!(request(address, "GET", "/clients", &[("Authorization", "Bearer s3cret")], "").status, 200);
    assert_eq!(get(address, "/state").body, r#"{"a":1}"#, "reading is open");
}

#[test]
fn a_subscribe_token_guards_the_streams_and_the_document() {
    let server = start_with(|config| {
        config.subscribe_token = Token::new("reader").ok();
        config.publish_token = Token::new("writer").ok();
    });
    let address = server.address();
    for path in ["/events", "/events/a", "/state", "/state/a"] {
        assert_eq!(get(address, path).status, 401, "{path}");
        assert_eq!(get(address, &format!("{path}?token=wrong")).status, 401, "{path}");
        assert_eq!(request(address, "HEAD", path, &[], "").status, 401, "{path}");
    }
    for path in ["/", "/statecast.js", "/healthz", "/metrics"] {
        assert_eq!(get(address, path).status, 200, "{path}");
    }
    assert_eq!(get(address, "/state?token=reader").body, "{}");
    assert_eq!(request(address, "GET", "/state", &[("Authorization", "Bearer writer")], "").status, 200);
    let mut stream = Stream::open(address, "/events?token=reader");
    assert_eq!(stream.next_named("init").data, "{}");
    assert_eq!(request(address, "PUT", "/state/a", &[("Authorization", "Bearer reader")], "1").status, 401);
    let clients = request(address, "GET", "/clients", &[("Authorization", "Bearer writer")], "");
    assert!(!clients.body.contains("reader"), "{}", clients.body);
}

#[test]
fn a_listed_origin_may_read_and_write_and_no_other() {
    let server =
        start_with(|config| config.allow_origin = vec![Origin::new("https://page.example").unwrap()]);
    let address = server.address();
    let listed = [("Origin", "https://page.example")];
    let foreign = [("Origin", "https://evil.example")];
    let allowed = "Access-Control-Allow-Origin";
    let read = request(address, "GET", "/state", &listed, "");
    assert_eq!((read.header(allowed), read.header("Vary")), (Some("https://page.example"), Some("Origin")));
    let read = request(address, "GET", "/state", &foreign, "");
    assert_eq!((read.status, read.header(allowed), read.header("Vary")), (200, None, Some("Origin")));
    assert_eq!(request(address, "PUT", "/state/a", &listed, "1").status, 200);
    assert_eq!(request(address, "PUT", "/state/a", &foreign, "1").status, 403);
    assert_eq!(request(address, "PUT", "/state/a", &[("Origin", "null")], "1").status, 403);
    let ask = |origin| {
        request(
            address,
            "OPTIONS",
            "/state/a",
            &[("Origin", origin), ("Access-Control-Request-Method", "PUT")],
            "",
        )
    };
    let preflight = ask("https://page.example");
    assert_eq!((preflight.status, preflight.header(allowed)), (204, Some("https://page.example")));
    assert_eq!(
        preflight.header("Access-Control-Allow-Methods"),
        Some("GET, HEAD, POST, PATCH, PUT, DELETE, OPTIONS")
    );
    assert!(preflight.header("Access-Control-Allow-Headers").unwrap().contains("Authorization"));
    assert_eq!(ask("https://evil.example").header(allowed), None);
    let head = format!("GET /events HTTP/1.1\r\nHost: {address}\r\nOrigin: https://page.example\r\n\r\n");
    let stream = Stream::request(address, &head);
    assert!(
        stream.head.contains("\r\nAccess-Control-Allow-Origin: https://page.example\r\n"),
        "{}",
        stream.head
    );
    // Refusals, too, can be read by the page that they are for.
    let refused = request(address, "PUT", "/state/a", &listed, "{");
    assert_eq!((refused.status, refused.header(allowed)), (400, Some("https://page.example")));
}

/// The status that a request gets, byte for byte as it is written here.
fn status(address: SocketAddr, method: &str, target: &str, headers: &str) -> u16 {
    let bytes =
        format!("{method} {target} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: 1\r\n\r\n1");
    let answer = exchange(address, bytes.as_bytes());
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

#[test]
fn no_way_of_writing_a_host_makes_a_foreign_one_ours() {
    let server = start();
    let address = server.address();
    let table = [
        (200, "/state/a", "Host: localhost\r\n"),
        (200, "/state/a", "host: LocalHost:1\r\n"),
        (200, "/state/a", "Host: a.localhost\r\n"),
        (200, "/state/a", "Host: [::1]:8080\r\n"),
        (200, "/state/a", "Host: [::ffff:127.0.0.1]\r\n"),
        (200, "http://localhost/state/a", "Host: localhost\r\n"),
        (200, "HTTP://127.0.0.1:8080/state/a", "Host: evil.example\r\n"),
        (403, "/state/a", "Host: localhost.\r\n"),
        (403, "/state/a", "Host: evil.example\r\n"),
        (403, "/state/a", "Host: localhost.evil.example\r\n"),
        (403, "/state/a", "Host: xlocalhost\r\n"),
        (403, "/state/a", "Host: localhost@evil.example\r\n"),
        (403, "/state/a", "Host: localhost:80@evil.example\r\n"),
        (403, "/state/a", "Host: localhost:evil.example\r\n"),
        (403, "/state/a", "Host: [::1]:evil.example\r\n"),
        (403, "/state/a", "Host: localhost/evil.example\r\n"),
        (403, "/state/a", "Host: evil.example, localhost\r\n"),
        (403, "/state/a", "Host: 127.0.0.1.evil.example\r\n"),
        (403, "/state/a", "Host: 127.1.evil\r\n"),
        (403, "/state/a", "Host: [::ffff:10.0.0.1]\r\n"),
        (403, "/state/a", "Host:\r\n"),
        (400, "/state/a", "X-Host: localhost\r\n"),
        (400, "/state/a", "Host: localhost\r\nHost: evil.example\r\n"),
        (400, "/state/a", "Host: evil.example\r\nhost: localhost\r\n"),
        // The target counts, not the header.
        (403, "http://evil.example/state/a", "Host: localhost\r\n"),
        (403, "http://localhost@evil.example/state/a", "Host: localhost\r\n"),
        (400, "evil://localhost/state/a", "Host: localhost\r\n"),
        (400, "x?http://localhost/state/a", "Host: localhost\r\n"),
        (400, "state/a", "Host: localhost\r\n"),
    ];
    for (expected, target, headers) in table {
        assert_eq!(status(address, "PUT", target, headers), expected, "{target} {headers}");
    }
    let proxies = [
        "Forwarded",
        "VIA",
        "x-real-ip",
        "X-Forwarded-Host",
        "X-FORWARDED-FOR",
        "x-forwarded-",
        "X-Forwarded",
    ];
    for proxy in proxies {
        let headers = format!("Host: localhost\r\n{proxy}: 127.0.0.1\r\n");
        assert_eq!(status(address, "PUT", "/state/a", &headers), 403, "{headers}");
        assert_eq!(status(address, "GET", "/clients", &headers), 403, "{headers}");
    }
}

#[test]
fn no_way_of_writing_an_origin_makes_a_foreign_one_ours() {
    let server = start_with(|config| {
        config.open = true;
        config.allow_origin = vec![Origin::new("https://page.example").unwrap()];
    });
    let address = server.address();
    let table = [
        (200, "http://here.example:8080"),
        (200, "https://HERE.example:8080"),
        (200, "https://page.example"),
        (403, "null"),
        (403, ""),
        (403, "http://"),
        (403, "here.example:8080"),
        (403, "http://here.example"),
        (403, "http://here.example:80800"),
        (403, "http://here.example:8080/"),
        (403, "http://here.example:8080.evil.example"),
        (403, "http://here.example:8080@evil.example"),
        (403, "http://evil.example@here.example:8080"),
        (403, "http://evil.example/here.example:8080"),
        (403, "http://evil.example http://here.example:8080"),
        (403, "http://evil.example://here.example:8080"),
        (403, "app://here.example:8080"),
        (403, "http://page.example"),
        (403, "https://page.example:443"),
        (403, "https://page.example.evil.example"),
        (403, "https://xpage.example"),
    ];
    for (expected, origin) in table {
        let headers = format!("Host: here.example:8080\r\nOrigin: {origin}\r\n");
        for (method, target) in
            [("PUT", "/state/a"), ("POST", "/events"), ("PATCH", "/state/b"), ("POST", "/state/a")]
        {
            assert_eq!(status(address, method, target, &headers), expected, "{method} {origin}");
        }
        // A browser asks first; what it is told names nobody who is not listed.
        let ask = format!(
            "OPTIONS /state/a HTTP/1.1\r\n{headers}Access-Control-Request-Method: PUT\r\nConnection: close\r\n\r\n"
        );
        let answer = exchange(address, ask.as_bytes());
        assert_eq!(answer.contains("Access-Control-Allow-"), origin == "https://page.example", "{answer}");
        assert!(!answer.contains("Allow-Credentials"), "{answer}");
    }
    let twice = "Host: here.example\r\nOrigin: https://page.example\r\nOrigin: http://evil.example\r\n";
    assert_eq!(status(address, "PUT", "/state/a", twice), 400);
}

#[test]
fn a_secret_reaches_no_log_no_error_and_no_list() {
    let (writer, reader) = ("s3cret-writer", "s3cret-reader");
    let server = Binary::start(&["--publish-token", writer, "--subscribe-token", reader, "--verbose"]);
    let address = server.address;
    let bearer = format!("Bearer {writer}");
    let bearer = [("Authorization", bearer.as_str())];
    let mut stream = Stream::open(address, &format!("/events?token={reader}"));
    stream.next_named("init");
    let mut told = vec![server.greeting.clone(), stream.head.clone()];
    for (method, path) in [("PUT", "/state/a"), ("GET", "/clients"), ("GET", "/state"), ("GET", "/metrics")] {
        let answer = request(address, method, path, &bearer, if method == "PUT" { "1" } else { "" });
        assert_eq!(answer.status, 200);
        told.push(format!("{answer:?}"));
    }
    // Refusals of what is nearly right.
    for path in [
        format!("/events?token=x{reader}"),
        format!("/state/{writer}/x?token={reader}"),
        format!("/{reader}"),
    ] {
        let refused = get(address, &path);
        assert!(refused.status >= 400);
        told.push(format!("{refused:?}"));
    }
    let refused = request(address, "PUT", &format!("/state/a?token={writer}"), &[], "1");
    assert_eq!(refused.status, 401);
    told.push(format!("{refused:?}"));
    server.signal("TERM");
    told.push(server.wait().1);
    assert!(told.iter().all(|text| !text.contains("s3cret")), "{told:?}");
}

#[test]
fn the_page_is_careful() {
    let server = start();
    let page = get(server.address(), "/");
    let policy = page.header("Content-Security-Policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(page.header("Referrer-Policy"), Some("no-referrer"));
    assert!(!page.body.contains("style=") && !page.body.contains("onclick="));
    for part in page.body.split("<script").skip(1) {
        assert!(part.starts_with(" src=") || part.starts_with(" defer src="), "no inline script: {part:.60}");
    }
}
