//! Who may do what: tokens, and pages of other origins.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;

use statecast::{Config, Origin, Token};
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
    let credentials = "Access-Control-Allow-Credentials";
    let foreign = [("Origin", "https://evil.example")];
    let allowed = "Access-Control-Allow-Origin";
    let read = request(address, "GET", "/state", &listed, "");
    assert_eq!((read.header(allowed), read.header("Vary")), (Some("https://page.example"), Some("Origin")));
    let read = request(address, "GET", "/state", &foreign, "");
    assert_eq!((read.status, read.header(allowed), read.header("Vary")), (200, None, Some("Origin")));
    assert_eq!(read.header(credentials), None);
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
    for name in ["Authorization", "Content-Type", "If-Match", "If-None-Match", "Last-Event-ID"] {
        assert!(preflight.header("Access-Control-Allow-Headers").unwrap().contains(name));
    }
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
        (200, "/state/a", "Host: localhost.\r\n"),
        (200, "/state/a", "Host: LOCALHOST.:8080\r\n"),
        (200, "/state/a", "Host: a.localhost.\r\n"),
        (200, "/state/a", "Host: 127.0.0.1.\r\n"),
        (403, "/state/a", "Host: localhost..\r\n"),
        (403, "/state/a", "Host: .\r\n"),
        (403, "/state/a", "Host: localhost.evil.example.\r\n"),
        (403, "/state/a", "Host: localhost:80:80\r\n"),
        (403, "/state/a", "Host: [localhost]\r\n"),
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
    }
    let twice = "Host: here.example\r\nOrigin: https://page.example\r\nOrigin: http://evil.example\r\n";
    assert_eq!(status(address, "PUT", "/state/a", twice), 400);
}

#[test]
fn a_default_port_is_the_same_port() {
    let server = start_with(|config| {
        config.open = true;
        config.allow_origin = vec![Origin::new("https://page.example:443").unwrap()];
    });
    let address = server.address();
    let table = [
        (200, "example.org:443", "https://example.org"),
        (200, "example.org:80", "http://example.org"),
        (200, "Example.ORG:443", "https://example.org"),
        (200, "example.org.:443", "https://example.org"),
        (200, "example.org", "https://example.org."),
        (200, "[2001:db8::1]:443", "https://[2001:db8::1]"),
        (200, "192.0.2.1:80", "http://192.0.2.1"),
        (200, "example.org", "https://page.example"),
        (403, "example.org:443", "http://example.org"),
        (403, "example.org:80", "https://example.org"),
        (403, "example.org:444", "https://example.org"),
        (403, "example.org:8080", "http://example.org"),
        (403, "example.org", "https://example.org:80"),
        (403, "[2001:db8::1]:80", "https://[2001:db8::1]"),
        (403, "[2001:db8::2]:443", "https://[2001:db8::1]"),
        (403, "evil.example:443", "https://example.org"),
        (403, "example.org:443", "https://evil.example"),
        (403, "example.org", "http://page.example"),
    ];
    for (expected, host, origin) in table {
        let headers = format!("Host: {host}\r\nOrigin: {origin}\r\n");
        for (method, target) in [("PUT", "/state/a"), ("POST", "/events"), ("DELETE", "/state")] {
            assert_eq!(status(address, method, target, &headers), expected, "{method} {host} {origin}");
        }
    }
}

#[test]
fn a_page_of_a_listed_origin_may_use_credentials_and_no_other() {
    let server =
        start_with(|config| config.allow_origin = vec![Origin::new("https://page.example").unwrap()]);
    let address = server.address();
    let allowed = |method: &str, path: &str, origin: &str| {
        let bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\n\r\n");
        let mut connection = connect(address);
        connection.write_all(bytes.as_bytes()).unwrap();
        let head = read_head(&mut connection);
        assert!(head.contains("\r\nVary: Origin\r\n"), "{head}");
        // Both or none: with credentials a browser wants the origin by its name.
        let is_named = head.contains("\r\nAccess-Control-Allow-Origin: https://page.example\r\n");
        assert_eq!(head.contains("\r\nAccess-Control-Allow-"), is_named, "{head}");
        assert_eq!(head.contains("\r\nAccess-Control-Allow-Credentials: true\r\n"), is_named, "{head}");
        is_named
    };
    for path in ["/events", "/events/a", "/state", "/state/absent", "/clients", "/healthz", "/", "/nothing"] {
        for method in ["GET", "HEAD", "OPTIONS", "DELETE"] {
            assert!(allowed(method, path, "https://page.example"), "{method} {path}");
            for foreign in ["https://evil.example", "null", "http://page.example", "http://localhost"] {
                assert!(!allowed(method, path, foreign), "{method} {path} {foreign}");
            }
        }
    }
}

/// The status of a request without a body, and for a refusal its reason.
fn read(address: SocketAddr, method: &str, path: &str, headers: &str) -> (u16, String) {
    let mut connection = connect(address);
    let bytes = format!("{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    connection.write_all(bytes.as_bytes()).unwrap();
    let status = read_head(&mut connection).split(' ').nth(1).unwrap().parse().unwrap();
    let mut reason = String::new();
    if status >= 400 {
        connection.read_to_string(&mut reason).unwrap();
    }
    (status, reason)
}

#[test]
fn a_website_whose_name_was_pointed_to_this_machine_reads_nothing() {
    let server = start_with(|config| config.lab = true);
    let address = server.address();
    put(address, "/state/a", "1");
    let foreign = [
        "Host: evil.example\r\n",
        "Host: evil.example:8080\r\nOrigin: http://evil.example:8080\r\n",
        "Host: evil.example\r\nX-Forwarded-For: 10.0.0.1\r\n",
        "Host: localhost.evil.example\r\n",
        "Host: 127.0.0.1.evil.example\r\n",
        "Host: localhost@evil.example\r\n",
        "Host: evil.example.\r\n",
        "Host: 192.0.2.1\r\n",
        "Host: [2001:db8::1]\r\n",
        "Host: 0.0.0.0\r\n",
        "Host:\r\n",
    ];
    for headers in foreign {
        for path in
            ["/state", "/state/a", "/state/absent", "/events", "/events/a", "/events?token=x&max_events=1"]
        {
            let (status, reason) = read(address, "GET", path, headers);
            assert_eq!(status, 403, "{path} {headers}");
            assert!(reason.contains("--subscribe-token") && reason.contains("behind a proxy"), "{reason}");
            assert_eq!(read(address, "HEAD", path, headers).0, 403, "{path} {headers}");
        }
        for path in ["/clients", "/lab/server/refuse"] {
            assert!(read(address, "GET", path, headers).0 >= 400, "{path} {headers}");
        }
        for path in ["/", "/statecast.js", "/healthz", "/metrics", "/lab"] {
            assert_eq!(read(address, "GET", path, headers).0, 200, "{path} {headers}");
        }
    }
    assert_eq!(read(address, "GET", "http://evil.example/state", "Host: localhost\r\n").0, 403);
    for host in ["localhost", "LOCALHOST.:1", "a.localhost", "127.0.0.1", "127.9.9.9:80", "[::1]:8080"] {
        for path in ["/state", "/events"] {
            assert_eq!(read(address, "GET", path, &format!("Host: {host}\r\n")).0, 200, "{path} {host}");
        }
    }
    // What says no name is no browser.
    assert!(exchange(address, b"GET /state HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200"));
}

#[test]
fn where_writing_needs_no_name_of_this_machine_reading_needs_none() {
    let reads = |configure: fn(&mut Config), path: &str| {
        let server = start_with(configure);
        read(server.address(), "GET", path, "Host: statecast.example\r\n").0
    };
    for path in ["/state", "/events"] {
        assert_eq!(reads(|config| config.open = true, path), 200);
        assert_eq!(reads(|config| config.publish_token = Token::new("writer").ok(), path), 200);
        assert_eq!(reads(|config| config.subscribe_token = Token::new("reader").ok(), path), 401);
        let with_token = format!("{path}?token=reader");
        assert_eq!(reads(|config| config.subscribe_token = Token::new("reader").ok(), &with_token), 200);
    }
}

#[test]
fn whoever_connects_from_another_machine_may_read_by_any_name() {
    let server = start_with(|config| config.listen = vec![SocketAddr::from(([0, 0, 0, 0], 0))]);
    let port = server.address().port();
    let loopback = SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(read(loopback, "GET", "/state", "Host: pi.local\r\n").0, 403, "from this machine");
    // The address that this machine has in a network, if it is in one: nothing is sent.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr());
    let Some(own) = own.ok().filter(|own| !own.ip().is_loopback()) else { return };
    let address = SocketAddr::new(own.ip(), port);
    for host in ["pi.local", &address.to_string()] {
        let headers = format!("Host: {host}\r\n");
        assert_eq!(read(address, "GET", "/state", &headers).0, 200, "{host}");
        assert_eq!(status(address, "PUT", "/state/a", &headers), 403, "{host}");
    }
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

#[test]
fn a_page_learns_what_it_may_do_and_whether_a_token_would_help_without_being_refused() {
    let asked = |configure: fn(&mut Config), path: &str, headers: &[(&str, &str)]| {
        let server = start_with(configure);
        let answer = request(server.address(), "OPTIONS", path, headers, "");
        assert_eq!(answer.status, 204);
        (answer.header("Allow").unwrap().to_owned(), answer.header("WWW-Authenticate").map(str::to_owned))
    };
    let with_tokens = |config: &mut Config| {
        config.publish_token = Token::new("writer").ok();
        config.subscribe_token = Token::new("reader").ok();
    };
    let none = |_: &mut Config| ();
    let allowed = |methods: &str| (methods.to_owned(), None);
    let with_token = |methods: &str| (methods.to_owned(), Some("Bearer".to_owned()));
    let reader = [("Authorization", "Bearer reader")];
    let writer = [("Authorization", "Bearer writer")];
    assert_eq!(asked(none, "/clients", &[]), allowed("GET, HEAD, OPTIONS"));
    assert_eq!(asked(none, "/events/a", &[]), allowed("GET, HEAD, POST, OPTIONS"));
    // No token would help.
    assert_eq!(asked(none, "/clients", &[("Host", "evil.example")]), allowed("OPTIONS"));
    assert_eq!(asked(with_tokens, "/clients", &[]), with_token("OPTIONS"));
    assert_eq!(asked(with_tokens, "/clients", &reader), with_token("OPTIONS"));
    assert_eq!(asked(with_tokens, "/clients", &writer), allowed("GET, HEAD, OPTIONS"));
    assert_eq!(asked(with_tokens, "/events", &[]), with_token("POST, OPTIONS"));
    assert_eq!(asked(with_tokens, "/events", &reader), allowed("GET, HEAD, POST, OPTIONS"));
}
