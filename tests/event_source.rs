//! The `EventSource` against a server that says whatever a test wants, byte by byte.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use statecast::{Event, EventSource, EventSourceHandle, EventSourceInit, ReadyState, Reason, Token};
use support::{DEADLINE, read_head, wait_until};

/// A socket that is accepted by hand.
struct Script {
    listener: TcpListener,
    address: SocketAddr,
}

/// A request that came, and the connection to answer on.
struct Asked {
    head: String,
    connection: TcpStream,
}

const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";

impl Script {
    fn new() -> Script {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        Script { listener, address }
    }

    fn url(&self) -> String {
        format!("http://{}/events", self.address)
    }

    /// The next request, which is expected.
    fn asked(&self) -> Asked {
        self.asked_before(Instant::now() + DEADLINE).expect("the client asks")
    }

    /// The next request if one comes before then.
    fn asked_before(&self, end: Instant) -> Option<Asked> {
        self.listener.set_nonblocking(true).unwrap();
        let mut connection = loop {
            match self.listener.accept() {
                Ok((connection, _)) => break connection,
                Err(_) if Instant::now() > end => return None,
                // A pause between two looks.
                Err(_) => thread::sleep(Duration::from_millis(2)),
            }
        };
        connection.set_nonblocking(false).unwrap();
        Some(Asked { head: read_head(&mut connection), connection })
    }

    /// Whether somebody connects who was not expected. Only to be asked when the client has nothing left to do.
    fn is_asked_again(&self) -> bool {
        self.asked_before(Instant::now()).is_some()
    }
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Sends bytes and leaves the connection open.
    fn say(&mut self, bytes: &str) {
        self.connection.write_all(bytes.as_bytes()).unwrap();
    }

    /// Sends an answer and closes.
    fn answer(mut self, bytes: &str) {
        self.say(bytes);
    }
}

/// An init that makes no test wait for long.
fn init() -> EventSourceInit {
    EventSourceInit { reconnection_time: Duration::from_millis(100), ..EventSourceInit::default() }
}

fn message(data: &str, id: &str) -> Event {
    Event { name: "message".into(), data: data.into(), id: id.into() }
}

/// A source that is read in a thread of its own: what it gives, and the end.
struct Reading {
    events: Receiver<Event>,
    handle: EventSourceHandle,
    thread: JoinHandle<EventSource>,
}

impl Reading {
    fn start(mut source: EventSource) -> Reading {
        let handle = source.handle();
        let (sender, events) = channel();
        let thread = thread::spawn(move || {
            for event in source.by_ref() {
                sender.send(event).unwrap();
            }
            source
        });
        Reading { events, handle, thread }
    }

    fn of(script: &Script) -> Reading {
        Reading::start(EventSource::with(&script.url(), init()).unwrap())
    }

    fn next(&self) -> Event {
        self.events
            .recv_timeout(DEADLINE)
            .unwrap_or_else(|error| panic!("{error}; {:?}", self.handle.reason()))
    }

    /// Waits until the source gives no more, and returns why.
    fn end(self) -> Reason {
        if let Ok(event) = self.events.recv_timeout(DEADLINE) {
            panic!("{event:?} came");
        }
        assert_eq!(self.handle.ready_state(), ReadyState::Closed, "it has ended");
        self.thread.join().unwrap();
        self.handle.reason().unwrap()
    }
}

#[test]
fn a_request_says_what_the_standard_asks_for_and_what_was_configured() {
    let script = Script::new();
    let init = EventSourceInit {
        token: Some(Token::new("s3cret").unwrap()),
        headers: vec![("X-Sensor".into(), "7".into()), ("x-sensor".into(), "8".into())],
        last_event_id: "ä-1".into(),
        ..init()
    };
    let reading = Reading::start(EventSource::with(&script.url(), init).unwrap());
    let asked = script.asked();
    assert!(asked.head.starts_with("GET /events HTTP/1.1\r\n"), "{}", asked.head);
    assert_eq!(asked.header("Accept"), Some("text/event-stream"));
    assert_eq!(asked.header("Cache-Control"), Some("no-store"));
    assert_eq!(asked.header("Authorization"), Some("Bearer s3cret"));
    assert_eq!(asked.header("Last-Event-ID"), Some("ä-1"));
    let sensors = asked.head.to_ascii_lowercase().matches("x-sensor: ").count();
    assert_eq!(sensors, 2, "{}", asked.head);
    assert_eq!(reading.handle.reason(), None);
    assert_eq!(reading.handle.ready_state(), ReadyState::Connecting);
    asked.answer("HTTP/1.1 204 No Content\r\n\r\n");
    reading.end();
}

#[test]
fn every_answer_but_a_stream_closes_for_good() {
    let table = [
        ("204 No Content\r\n\r\n", Reason::NoContent),
        ("204 No Content\r\nRetry-After: 0\r\n\r\n", Reason::NoContent),
        (
            "200 OK\r\nContent-Type: text/html\r\nContent-Length: 1\r\n\r\nx",
            Reason::NoStream("text/html".into()),
        ),
        ("200 OK\r\nContent-Length: 0\r\n\r\n", Reason::NoStream(String::new())),
        ("200 OK\r\nContent-Type: text/event-streams\r\n\r\n", Reason::NoStream("text/event-streams".into())),
        ("201 Created\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n", refused(201, "")),
        (
            "206 Partial Content\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n",
            refused(206, ""),
        ),
        ("400 Bad Request\r\nContent-Length: 3\r\n\r\nno\n", refused(400, "no")),
        (
            "401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n{\"error\":\"a token,\\nplease\"}",
            refused(401, "a token, please"),
        ),
        ("404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p>x", refused(404, "")),
        ("410 Gone\r\nContent-Length: 0\r\n\r\n", refused(410, "")),
        ("500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", refused(500, "")),
        ("502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", refused(502, "")),
        ("503 Service Unavailable\r\nRetry-After: soon\r\nContent-Length: 0\r\n\r\n", refused(503, "")),
    ];
    for (answer, reason) in table {
        let script = Script::new();
        let reading = Reading::of(&script);
        script.asked().answer(&format!("HTTP/1.1 {answer}"));
        assert_eq!(reading.end(), reason, "{answer}");
        assert!(!script.is_asked_again(), "{answer}");
    }
}

fn refused(status: u16, text: &str) -> Reason {
    Reason::Refused { status, text: text.into() }
}

#[test]
fn an_answer_with_retry_after_is_tried_again_then() {
    let script = Script::new();
    // Longer than the test: what comes back earlier was told to.
    let init = EventSourceInit { reconnection_time: DEADLINE * 10, ..init() };
    let reading = Reading::start(EventSource::with(&script.url(), init).unwrap());
    let table = [
        ("503 Service Unavailable", "1"),
        ("429 Too Many Requests", "0"),
        ("404 Not Found", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ];
    for (status, retry_after) in table {
        let asked = script.asked();
        let start = Instant::now();
        asked
            .answer(&format!("HTTP/1.1 {status}\r\nRetry-After: {retry_after}\r\nContent-Length: 0\r\n\r\n"));
        let next = script.asked();
        if retry_after == "1" {
            assert!(start.elapsed() >= Duration::from_secs(1), "it came early");
        }
        next.answer(&format!("{STREAM}\r\nretry: 100\ndata: 1\n\n"));
        assert_eq!(reading.next(), message("1", ""));
    }
    script.asked();
    reading.handle.close();
    assert_eq!(reading.end(), Reason::Closed);
}

#[test]
fn a_date_to_come_back_counts_by_the_clock_of_the_server() {
    let script = Script::new();
    // Longer than the test: what comes back earlier was told to.
    let init = EventSourceInit { reconnection_time: DEADLINE * 10, ..init() };
    let reading = Reading::start(EventSource::with(&script.url(), init).unwrap());
    // A clock that is far ahead of ours: by our own, this is a day at least.
    let head = "HTTP/1.1 503 x\r\nDate: Tue, 01 Jan 2999 00:00:00 GMT\r\nContent-Length: 0\r\n";
    script.asked().answer(&format!("{head}Retry-After: Tue, 01 Jan 2999 00:00:01 GMT\r\n\r\n"));
    script.asked().answer("HTTP/1.1 429 x\r\nRetry-After: 99999999999999999999\r\nContent-Length: 0\r\n\r\n");
    let refused = Some(refused(429, ""));
    wait_until(|| reading.handle.reason(), |reason| *reason == refused);
    assert_eq!(reading.handle.ready_state(), ReadyState::Connecting, "it comes back, in a day");
    reading.handle.close();
    assert_eq!(reading.end(), Reason::Closed);
}

#[test]
fn a_redirect_to_what_is_no_url_is_not_followed() {
    let script = Script::new();
    let init = EventSourceInit { token: Some(Token::new("s3cret").unwrap()), ..init() };
    let reading = Reading::start(EventSource::with(&script.url(), init).unwrap());
    let locations = [
        "http://127.0.0.1:80800/",
        "http://127.0.0.1:/",
        "//127.0.0.1:+80/",
        "http://127.0.0.1:80@127.0.0.1/",
        "ftp://127.0.0.1/",
        "http://",
        "\u{e4}",
    ];
    for location in locations {
        script
            .asked()
            .answer(&format!("HTTP/1.1 302 x\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"));
        // Again at the first address.
        let asked = script.asked();
        let reason = reading.handle.reason();
        assert!(matches!(&reason, Some(Reason::Cut(text)) if text.starts_with("a redirect: ")), "{reason:?}");
        asked.answer(&format!("{STREAM}\r\ndata: 1\n\n"));
        reading.next();
    }
}

#[test]
fn a_source_goes_through_the_proxy_it_was_given_and_says_that_a_failure_is_its() {
    let proxy = Script::new();
    let init = EventSourceInit { proxy: Some(format!("http://user:s3cret@{}", proxy.address)), ..init() };
    let reading = Reading::start(EventSource::with("http://localhost:8080/events", init).unwrap());
    let mut asked = proxy.asked();
    assert!(asked.head.starts_with("CONNECT localhost:8080 HTTP/1.1\r\n"), "{}", asked.head);
    asked.say("HTTP/1.1 200 x\r\n\r\n");
    assert!(read_head(&mut asked.connection).starts_with("GET /events HTTP/1.1\r\n"));
    asked.say(&format!("{STREAM}\r\ndata: 1\n\n"));
    assert_eq!(reading.next(), message("1", ""));
    drop(asked);
    proxy.asked().answer("HTTP/1.1 403 x\r\n\r\n");
    let _again = proxy.asked();
    let name = format!("the proxy {}: ", proxy.address);
    let reason = reading.handle.reason();
    assert!(matches!(&reason, Some(Reason::Cut(text)) if text.starts_with(&name)), "{reason:?}");

    let init = EventSourceInit { proxy: Some("socks5://s3cret@127.0.0.1:1".into()), ..self::init() };
    let error = EventSource::with("http://localhost/", init).err().unwrap().to_string();
    assert!(error.starts_with("the proxy: must be") && !error.contains("s3cret"), "{error}");
}

#[test]
fn what_may_pass_is_tried_again_if_one_asks_for_it_and_204_never() {
    let script = Script::new();
    let init = EventSourceInit {
        tries_again: |status| matches!(status, 200 | 408 | 425 | 429 | 500..=599),
        ..init()
    };
    let reading = Reading::start(EventSource::with(&script.url(), init).unwrap());
    script.asked().answer("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    script.asked().answer("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n");
    script.asked().answer(&format!("{STREAM}\r\ndata: 1\n\n"));
    assert_eq!(reading.next(), message("1", ""));
    script.asked().answer("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(reading.end(), refused(404, ""));

    let script = Script::new();
    let init = EventSourceInit { tries_again: |_| true, ..self::init() };
    let reading = Reading::start(EventSource::with(&script.url(), init).unwrap());
    script.asked().answer("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    script.asked().answer("HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(reading.end(), Reason::NoContent);
}

#[test]
fn redirects_are_followed_and_the_token_stays_with_its_host() {
    let (first, second) = (Script::new(), Script::new());
    let init =
        EventSourceInit { token: Some(Token::new("s3cret").unwrap()), last_event_id: "7".into(), ..init() };
    let reading = Reading::start(EventSource::with(&first.url(), init).unwrap());
    for (number, status) in ["301 x", "302 x", "303 x", "307 x", "308 x"].into_iter().enumerate() {
        let asked = first.asked();
        assert!(asked.head.starts_with("GET /events HTTP/1.1\r\n"), "the first address: {}", asked.head);
        asked.answer(&format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"
        ));
        let asked = first.asked();
        assert!(asked.head.starts_with("GET /there HTTP/1.1\r\n"), "{}", asked.head);
        let elsewhere = second.url().replace("127.0.0.1", "localhost");
        asked.answer(&format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n"
        ));
        let mut asked = second.asked();
        assert_eq!(asked.header("Authorization"), None, "not to another host");
        let last = if number == 0 { "7".to_owned() } else { (number - 1).to_string() };
        assert_eq!(asked.header("Last-Event-ID"), Some(&*last));
        asked.say(&format!("{STREAM}\r\nid: {number}\ndata: {status}\n\n"));
        assert_eq!(reading.next(), message(status, &number.to_string()));
    }
}

#[test]
fn a_redirect_without_end_is_a_failure_like_no_connection() {
    let script = Script::new();
    let reading = Reading::of(&script);
    for _ in 0..=20 {
        script
            .asked()
            .answer("HTTP/1.1 302 x\r\nConnection: close\r\nLocation: /events\r\nContent-Length: 0\r\n\r\n");
    }
    script.asked().answer(&format!("{STREAM}\r\ndata: 1\n\n"));
    assert_eq!(reading.next(), message("1", ""));
}

#[test]
fn a_stream_that_ends_or_is_cut_goes_on_after_the_last_whole_event() {
    let script = Script::new();
    let reading = Reading::of(&script);
    let mut asked = script.asked();
    assert_eq!(asked.header("Last-Event-ID"), None);
    // Ended, in chunks.
    asked.say(&format!("{STREAM}Transfer-Encoding: chunked\r\n\r\n"));
    let half = "id: 1\ndata: a\n\nid: 2\ndata: lost\n";
    asked.answer(&format!("{:x}\r\n{half}\r\n0\r\n\r\n", half.len()));
    assert_eq!(reading.next(), message("a", "1"));
    let asked = script.asked();
    assert_eq!(asked.header("Last-Event-ID"), Some("1"));
    assert_eq!(reading.handle.reason(), Some(Reason::Ended));
    // Cut within a chunk.
    asked.answer(&format!("{STREAM}Transfer-Encoding: chunked\r\n\r\nff\r\nid: 3\ndata: b\n\ndata: lost"));
    assert_eq!(reading.next(), message("b", "3"));
    let asked = script.asked();
    assert_eq!(asked.header("Last-Event-ID"), Some("3"));
    assert!(matches!(reading.handle.reason(), Some(Reason::Cut(_))), "{:?}", reading.handle.reason());
    // Ended by closing; an event without an id has the last one, an id without an event counts.
    asked.answer(&format!("{STREAM}\r\ndata: c\n\nid: 4\n\n"));
    assert_eq!(reading.next(), message("c", "3"));
    let asked = script.asked();
    assert_eq!(asked.header("Last-Event-ID"), Some("4"));
    // Cut within the head.
    asked.answer("HTTP/1.1 200 OK\r\nContent-");
    let asked = script.asked();
    assert_eq!(asked.header("Last-Event-ID"), Some("4"));
    assert!(matches!(reading.handle.reason(), Some(Reason::Cut(_))), "{:?}", reading.handle.reason());
    // No HTTP at all.
    asked.answer("SSH-2.0-OpenSSH\r\n");
    let asked = script.asked();
    asked.answer(&format!("{STREAM}\r\nid\ndata: d\n\n"));
    assert_eq!(reading.next(), message("d", ""));
    assert_eq!(script.asked().header("Last-Event-ID"), None, "an empty id is none");
}

#[test]
fn events_come_one_by_one_however_the_bytes_are_split() {
    let script = Script::new();
    let reading = Reading::of(&script);
    let mut asked = script.asked();
    asked.connection.set_nodelay(true).unwrap();
    asked.say(&format!("{STREAM}Transfer-Encoding: chunked\r\n\r\n"));
    for byte in "\u{feff}id: 1\r\ndata: ä\r\rdata: b\n\n".bytes() {
        asked.connection.write_all(&[b"1\r\n", &[byte][..], b"\r\n"].concat()).unwrap();
    }
    assert_eq!(reading.next(), message("ä", "1"));
    assert_eq!(reading.next(), message("b", "1"));
    // At once, though the connection stays open and says nothing more.
    assert_eq!(reading.handle.ready_state(), ReadyState::Open);
}

#[test]
fn retry_says_when_to_come_back_also_without_an_event() {
    let script = Script::new();
    let init = EventSourceInit { reconnection_time: DEADLINE * 10, ..init() };
    let reading = Reading::start(EventSource::with(&script.url(), init).unwrap());
    let start = Instant::now();
    script.asked().answer(&format!("{STREAM}\r\nretry: 600\n\ndata: 1\n\n"));
    reading.next();
    script.asked().answer(&format!("{STREAM}\r\nretry: 1"));
    assert!(start.elapsed() >= Duration::from_millis(600), "it came early");
    let start = Instant::now();
    script.asked();
    assert!(start.elapsed() >= Duration::from_millis(600), "the time of the last whole retry line");
}

#[test]
fn silence_beyond_what_hello_announced_is_a_lost_connection() {
    let script = Script::new();
    let reading = Reading::of(&script);
    let mut silent = script.asked();
    silent.say(&format!("{STREAM}\r\nevent: hello\ndata: {{\"heartbeat_ms\":1}}\nid: 7\n\n"));
    assert_eq!(reading.next().name, "hello");
    let asked = script.asked();
    assert_eq!(asked.header("Last-Event-ID"), Some("7"));
    assert_eq!(reading.handle.reason(), Some(Reason::Silent(Duration::from_millis(2_002))));
    // The client has let go of the connection.
    let mut rest = Vec::new();
    silent.connection.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn a_limit_that_is_set_counts_instead_and_comments_are_no_silence() {
    let script = Script::new();
    let init = EventSourceInit { silence: Some(Duration::from_secs(2)), ..init() };
    let reading = Reading::start(EventSource::with(&script.url(), init).unwrap());
    let mut asked = script.asked();
    asked.say(&format!("{STREAM}\r\nevent: hello\ndata: {{\"heartbeat_ms\":100000}}\n\n"));
    assert_eq!(reading.next().name, "hello");
    for _ in 0..10 {
        // Not a wait for something to have happened: signs of life, apart.
        thread::sleep(Duration::from_millis(250));
        asked.say(":\n");
    }
    asked.say("data: 1\n\n");
    let event = reading.next();
    assert_eq!((event.data.as_str(), reading.handle.reason()), ("1", None));
    let _again = script.asked();
    assert_eq!(reading.handle.reason(), Some(Reason::Silent(Duration::from_secs(2))));
}

#[test]
fn a_caller_who_is_slow_is_no_silent_server() {
    let script = Script::new();
    let init = EventSourceInit { silence: Some(Duration::from_millis(200)), ..init() };
    let mut source = EventSource::with(&script.url(), init).unwrap();
    let server = thread::spawn(move || {
        let mut asked = script.asked();
        asked.say(&format!("{STREAM}\r\ndata: 1\n\n"));
        (script, asked)
    });
    assert_eq!(source.next(), Some(message("1", "")));
    let (_script, mut asked) = server.join().unwrap();
    // The caller's work, longer than the silence that is allowed.
    thread::sleep(Duration::from_millis(600));
    asked.say("data: 2\n\n");
    assert_eq!(source.next(), Some(message("2", "")));
    assert_eq!(source.handle().reason(), None);
}

#[test]
fn a_server_that_fails_at_once_again_and_again_is_asked_ever_less_often() {
    let script = Script::new();
    let reading = Reading::of(&script);
    let end = Instant::now() + Duration::from_secs(3);
    let mut tries = 0;
    while let Some(asked) = script.asked_before(end) {
        // Every kind of failure by turns; a server that says 0 is not believed.
        match tries % 3 {
            0 => drop(asked),
            1 => asked.answer(&format!("{STREAM}\r\nretry: 0\n\n:\n")),
            _ => asked.answer("HTTP/1.1 503 x\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"),
        }
        tries += 1;
    }
    // 100 ms apart at the least: about 30 without growth, and about 5 with it.
    assert!(tries < 20, "{tries} tries");
    reading.handle.close();
    assert_eq!(reading.end(), Reason::Closed);
}

#[test]
fn close_ends_a_read_a_wait_and_a_request_without_an_answer() {
    // A read.
    let script = Script::new();
    let reading = Reading::of(&script);
    let mut asked = script.asked();
    asked.say(&format!("{STREAM}\r\ndata: 1\n\n"));
    reading.next();
    reading.handle.close();
    assert_eq!(reading.end(), Reason::Closed);
    let mut rest = Vec::new();
    asked.connection.read_to_end(&mut rest).unwrap();

    // A wait between two tries.
    let script = Script::new();
    let init = EventSourceInit { reconnection_time: DEADLINE * 10, ..init() };
    let reading = Reading::start(EventSource::with(&script.url(), init).unwrap());
    script.asked().answer(&format!("{STREAM}\r\n"));
    wait_until(|| reading.handle.reason(), |reason| *reason == Some(Reason::Ended));
    reading.handle.close();
    assert_eq!(reading.end(), Reason::Closed);

    // A server that takes the request and says nothing.
    let script = Script::new();
    let reading = Reading::of(&script);
    let asked = script.asked();
    reading.handle.close();
    assert_eq!(reading.end(), Reason::Closed);
    drop(asked);

    // Before anything.
    let mut source = EventSource::with(&script.url(), self::init()).unwrap();
    source.handle().close();
    assert_eq!(source.next(), None);
    assert!(!script.is_asked_again());
}

#[test]
fn a_source_that_is_dropped_leaves_its_connection() {
    let script = Script::new();
    let mut source = EventSource::with(&script.url(), init()).unwrap();
    let server = thread::spawn(move || {
        let mut asked = script.asked();
        asked.say(&format!("{STREAM}\r\ndata: 1\n\n"));
        let mut rest = Vec::new();
        asked.connection.read_to_end(&mut rest).unwrap()
    });
    source.next().unwrap();
    drop(source);
    assert_eq!(server.join().unwrap(), 0);
}

#[test]
fn an_event_without_end_is_given_up_and_the_rest_comes_anew() {
    let script = Script::new();
    let init = EventSourceInit { max_event_bytes: 1_000, ..init() };
    let reading = Reading::start(EventSource::with(&script.url(), init).unwrap());
    let mut asked = script.asked();
    asked.say(&format!("{STREAM}\r\nid: 1\ndata: 1\n\n"));
    assert_eq!(reading.next(), message("1", "1"));
    asked.say(&format!("data: {}", "x".repeat(1_000)));
    let again = script.asked();
    assert_eq!(again.header("Last-Event-ID"), Some("1"));
    assert!(matches!(reading.handle.reason(), Some(Reason::TooLarge(_))), "{:?}", reading.handle.reason());
}

#[test]
fn starting_over_forgets_the_last_id() {
    let script = Script::new();
    let mut source = EventSource::with(&script.url(), init()).unwrap();
    let server = thread::spawn(move || {
        let mut first = script.asked();
        first.say(&format!("{STREAM}\r\nid: 1\ndata: 1\n\n"));
        let mut second = script.asked();
        second.say(&format!("{STREAM}\r\ndata: 2\n\n"));
        (second.header("Last-Event-ID").map(str::to_owned), second)
    });
    source.next().unwrap();
    assert_eq!(source.last_event_id(), "1");
    source.start_over("it makes no sense");
    assert_eq!(source.last_event_id(), "");
    assert_eq!(source.next(), Some(message("2", "")));
    assert_eq!(source.handle().reason(), Some(Reason::StartedOver("it makes no sense".into())));
    assert_eq!(server.join().unwrap().0, None);
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    // Taken, and given back: nobody listens on this port now.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let source = EventSource::with(&format!("http://{address}/events"), init()).unwrap();
    let reading = Reading::start(source);
    let reason = wait_until(|| reading.handle.reason(), Option::is_some);
    assert!(matches!(&reason, Some(Reason::Cut(text)) if text.contains("refused")), "{reason:?}");
    let server = support::start_with(|config| config.listen = vec![address]);
    assert_eq!(reading.next().name, "hello");
    assert_eq!(reading.next().name, "init");
    drop(server);
}

#[test]
fn a_stream_of_statecast_is_resumed_without_a_gap_or_a_double() {
    let server = support::start_with(|config| config.retry = Duration::from_millis(100));
    let address = server.address();
    let url = format!("http://{address}/events/a");
    let reading = Reading::start(EventSource::with(&url, init()).unwrap());
    assert_eq!(reading.next().name, "hello");
    assert_eq!(reading.next().data, "null");
    for number in 0..3 {
        support::put(address, "/state/a", &number.to_string());
        assert_eq!(reading.next().data, number.to_string());
        let clients = support::get(address, "/clients").json();
        support::request(address, "DELETE", &format!("/clients/{}", clients[0]["id"]), &[], "");
        support::put(address, "/state/a", &format!("\"while away {number}\""));
        let hello = reading.next();
        assert!(hello.data.contains(r#""resume":"replay""#), "{hello:?}");
        assert_eq!(reading.next().data, format!("\"while away {number}\""));
    }
}
