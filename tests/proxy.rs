//! Behind real proxies: nginx and Caddy as the README configures them, and nginx as it is without being told.
//!
//! `cargo test --test proxy -- --include-ignored`; `tests/all` installs both first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/places.rs"]
mod places;
#[path = "support/proxy.rs"]
mod proxy;
mod support;
#[path = "support/webdriver.rs"]
mod webdriver;

use std::time::Duration;

use proxy::Proxy;
use serde_json::json;
use statecast::{EventId, Server, Token};
use support::*;
use webdriver::Browser;

const BEARER: (&str, &str) = ("Authorization", "Bearer s3cret");

fn start_with_token() -> Server {
    start_with(|config| config.publish_token = Token::new("s3cret").ok())
}

/// Publishes past the proxy.
fn publish(server: &Server, count: u64) -> EventId {
    request(server.address(), "PUT", "/state/count", &[BEARER], &count.to_string()).id()
}

/// Each event arrives before the next one is published: nobody waits for a buffer to fill.
fn events_arrive_at_once(server: &Server, proxy: &Proxy) {
    let mut stream = Stream::open(proxy.address, "/events");
    assert_eq!(stream.next().name, "hello");
    assert_eq!(stream.next().name, "init");
    for count in 0..20 {
        let id = publish(server, count);
        assert_eq!(stream.next_but_heartbeats().id(), id);
    }
}

/// A client that comes back through a proxy that was restarted gets what it missed.
fn a_restart_loses_nothing(server: &Server, proxy: &mut Proxy) {
    let mut stream = Stream::open(proxy.address, "/events").lenient();
    let seen = stream.next_named("init").id();
    proxy.stop();
    while stream.next_or_end().is_some() {}
    let missed = [publish(server, 1), publish(server, 2)];
    proxy.start();
    let mut stream = Stream::resume(proxy.address, "/events", &seen.to_string());
    assert_eq!(stream.next().json()["reason"], "known");
    assert_eq!([stream.next().id(), stream.next().id()], missed);
    let id = publish(server, 3);
    assert_eq!(stream.next_but_heartbeats().id(), id);
}

#[test]
#[ignore = "needs nginx, openssl and curl: tests/all installs them"]
fn over_https_each_sensor_has_a_key_for_its_own_topic_alone() {
    let server = start_with(|config| config.publish_token = Token::new("TOKEN").ok());
    let proxy = Proxy::nginx_of_sensors(server.address());
    let status = |key: &str, topic: &str| {
        let url = format!("https://{}/state/{topic}", proxy.address);
        let authorization = format!("Authorization: Bearer {key}");
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-d", "1", "-H", &authorization, &url]);
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    };
    let table = [
        ("key-of-kitchen", "kitchen", "200"),
        ("key-of-kitchen", "hall", "401"),
        ("key-of-hall", "hall", "200"),
        ("key-of-hall", "kitchen", "401"),
        ("nobody", "kitchen", "401"),
        ("TOKEN", "porch", "200"),
    ];
    for (key, topic, expected) in table {
        assert_eq!(status(key, topic), expected, "{key} {topic}");
    }
    assert_eq!(server.state().to_string(), r#"{"hall":1,"kitchen":1,"porch":1}"#);
}

/// The token opens the way through, for the page too, and nothing else does.
fn writes_need_the_token(proxy: &Proxy) {
    let put = |headers: &[(&str, &str)]| request(proxy.address, "PUT", "/state/a", headers, "1").status;
    assert_eq!(put(&[]), 401);
    assert_eq!(put(&[BEARER]), 200);
    assert_eq!(put(&[BEARER, ("Origin", &format!("http://{}", proxy.address))]), 200);
    assert_eq!(put(&[BEARER, ("Origin", "https://evil.example")]), 403);
    assert_eq!(get(proxy.address, "/clients").status, 401);
}

/// Without a token nobody can write through a proxy, though it runs on this machine.
fn without_a_token_writes_are_refused(start: impl Fn(&Server) -> Proxy) {
    let server = start_with(|config| config.lab = true);
    let proxy = start(&server);
    for (method, path) in [("PUT", "/state/a"), ("POST", "/events"), ("POST", "/lab/server/restart")] {
        let refused = request(proxy.address, method, path, &[], "1");
        assert_eq!(refused.status, 403, "{method} {path}");
        assert!(refused.error().contains("came through a proxy"), "{}", refused.error());
    }
    assert_eq!(get(proxy.address, "/clients").status, 403);
    assert_eq!(get(proxy.address, "/state").body, "{}");
}

/// A client that left the proxy leaves the server, too.
fn who_leaves_is_gone(start: impl Fn(&Server) -> Proxy) {
    let server = start_with(|config| config.heartbeat = Duration::from_millis(50));
    let proxy = start(&server);
    let mut stream = Stream::open(proxy.address, "/events");
    assert_eq!(stream.next().name, "hello");
    let clients = || get(server.address(), "/clients").json().as_array().unwrap().len();
    assert_eq!(clients(), 1);
    drop(stream);
    wait_until(clients, |count| *count == 0);
}

/// A cookie of another program on the host, and what Cloudflare adds, in each encoding that is met in the field.
const BEYOND_ASCII: [&[u8]; 5] = [
    "Cookie: user=Jürgen".as_bytes(),
    b"Cookie: user=J\xfcrgen",
    "Referer: http://localhost/Übersicht".as_bytes(),
    "CF-IPCity: São Paulo".as_bytes(),
    "cf-region: Île-de-France".as_bytes(),
];

/// The program itself: a head beyond ASCII is answered where its allocator sees it.
fn start_program() -> Binary {
    Binary::start(&["--publish-token", "s3cret"])
}

/// Reads and writes with one more line in the head, each over a connection of its own; returns both answers.
fn read_and_write_with(proxy: &Proxy, line: &[u8]) -> [String; 2] {
    let rest = format!("Host: {}\r\nAuthorization: Bearer s3cret\r\nConnection: close\r\n", proxy.address);
    ["GET /state HTTP/1.1\r\n", "PUT /state/a HTTP/1.1\r\nContent-Length: 1\r\n"].map(|start| {
        let body = if start.starts_with("PUT") { "1" } else { "" };
        let head = [start.as_bytes(), line, b"\r\n", rest.as_bytes(), b"\r\n", body.as_bytes()];
        exchange(proxy.address, &head.concat())
    })
}

fn letters_beyond_ascii_stay_with(start: impl Fn(&Binary) -> Proxy) {
    let server = start_program();
    let proxy = start(&server);
    for line in BEYOND_ASCII {
        for answer in read_and_write_with(&proxy, line) {
            let line = String::from_utf8_lossy(line);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{line}: {answer}");
        }
    }
    let metrics = get(server.address, "/metrics").body;
    assert!(metrics.contains("statecast_not_ascii_heads_total 0\n"), "{metrics}");
    assert_eq!(get(server.address, "/state").body, r#"{"a":1}"#);
}

/// The page behind a proxy shows what is published past it.
fn the_page_shows_a_patch(server: &Server, proxy: &Proxy) {
    let browser = Browser::start();
    browser.open(&format!("http://{}/", proxy.address));
    let text = || browser.text("body");
    for value in ["it-was-there", "it-was-patched"] {
        let body = json!({ "sign": value }).to_string();
        request(server.address(), "PATCH", "/state/kitchen", &[BEARER], &body).id();
        wait_until(text, |text| text.contains(value));
    }
}

#[test]
#[ignore = "needs nginx: tests/all installs it"]
fn nginx_as_in_the_readme_passes_events_on_at_once_and_may_restart() {
    let server = start_with_token();
    let mut proxy = Proxy::nginx(server.address());
    events_arrive_at_once(&server, &proxy);
    a_restart_loses_nothing(&server, &mut proxy);
}

#[test]
#[ignore = "needs nginx: tests/all installs it"]
fn nginx_as_in_the_readme_lets_those_write_who_have_the_token() {
    let server = start_with_token();
    writes_need_the_token(&Proxy::nginx(server.address()));
    without_a_token_writes_are_refused(|server| Proxy::nginx(server.address()));
}

#[test]
#[ignore = "needs nginx: tests/all installs it"]
fn a_client_that_leaves_nginx_leaves_the_server() {
    who_leaves_is_gone(|server| Proxy::nginx(server.address()));
}

#[test]
#[ignore = "needs Caddy: tests/all installs it"]
fn caddy_as_in_the_readme_passes_events_on_at_once_and_may_restart() {
    let server = start_with_token();
    let mut proxy = Proxy::caddy(server.address());
    events_arrive_at_once(&server, &proxy);
    a_restart_loses_nothing(&server, &mut proxy);
}

#[test]
#[ignore = "needs Caddy: tests/all installs it"]
fn caddy_as_in_the_readme_lets_those_write_who_have_the_token() {
    let server = start_with_token();
    writes_need_the_token(&Proxy::caddy(server.address()));
    without_a_token_writes_are_refused(|server| Proxy::caddy(server.address()));
}

#[test]
#[ignore = "needs Caddy: tests/all installs it"]
fn a_client_that_leaves_caddy_leaves_the_server() {
    who_leaves_is_gone(|server| Proxy::caddy(server.address()));
}

#[test]
#[ignore = "needs nginx: tests/all installs it"]
fn an_nginx_that_is_told_nothing_passes_events_on_and_nobody_writes_through_it() {
    let server = start_with_token();
    let mut proxy = Proxy::default_nginx(server.address());
    events_arrive_at_once(&server, &proxy);
    a_restart_loses_nothing(&server, &mut proxy);
    // To a client of HTTP/1.0 it passes on what it got: a stream without chunks.
    let mut old = Stream::request(proxy.address, "GET /events HTTP/1.0\r\n\r\n");
    assert!(!old.head.contains("Transfer-Encoding"), "{}", old.head);
    assert_eq!(old.next_named("init").json(), json!({"count": 3}));
    without_a_token_writes_are_refused(|server| Proxy::default_nginx(server.address()));
    who_leaves_is_gone(|server| Proxy::default_nginx(server.address()));
}

#[test]
#[ignore = "needs nginx: tests/all installs it"]
fn nginx_as_in_the_readme_keeps_letters_beyond_ascii_to_itself() {
    letters_beyond_ascii_stay_with(|server| Proxy::nginx(server.address));
}

#[test]
#[ignore = "needs Caddy: tests/all installs it"]
fn caddy_as_in_the_readme_keeps_letters_beyond_ascii_to_itself() {
    letters_beyond_ascii_stay_with(|server| Proxy::caddy(server.address));
}

#[test]
#[ignore = "needs nginx: tests/all installs it"]
fn an_nginx_that_is_told_nothing_passes_letters_beyond_ascii_on_and_gets_a_400_that_says_so() {
    assert!(README.contains("| 400 `a request's head has a letter beyond ASCII`"));
    let server = start_program();
    let proxy = Proxy::default_nginx(server.address);
    for line in BEYOND_ASCII {
        for answer in read_and_write_with(&proxy, line) {
            let line = String::from_utf8_lossy(line);
            assert!(answer.starts_with("HTTP/1.1 400 "), "{line}: {answer}");
            assert!(answer.contains("a request's head has a letter beyond ASCII"), "{line}: {answer}");
        }
    }
    let count = 2 * BEYOND_ASCII.len();
    let metrics = get(server.address, "/metrics").body;
    assert!(metrics.contains(&format!("statecast_not_ascii_heads_total {count}\n")), "{metrics}");
    assert_eq!(get(server.address, "/state").body, "{}");
}

#[test]
#[ignore = "needs nginx, Chromium and chromedriver: tests/all installs them"]
fn the_page_shows_a_patch_behind_nginx_as_in_the_readme_and_as_it_is() {
    let server = start_with_token();
    the_page_shows_a_patch(&server, &Proxy::nginx(server.address()));
    request(server.address(), "DELETE", "/state", &[BEARER], "").id();
    the_page_shows_a_patch(&server, &Proxy::default_nginx(server.address()));
}

#[test]
#[ignore = "needs Caddy, Chromium and chromedriver: tests/all installs them"]
fn the_page_shows_a_patch_behind_caddy() {
    let server = start_with_token();
    the_page_shows_a_patch(&server, &Proxy::caddy(server.address()));
}
