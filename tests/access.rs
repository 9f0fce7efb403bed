//! Who may do what: tokens, and pages of other origins.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

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
