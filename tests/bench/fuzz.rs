//! Fuzz: requests that are nearly right, and JSON that nobody would write.
//!
//! `cargo run --release --example fuzz -- --seconds 30 --seed 7`
//!
//! The cases by turns: mutated requests, of which each answer is HTTP or a closed connection and shows nothing of the
//! request, while a witness beside them goes on publishing and following; JSON texts as `PATCH` and `PUT`, of which is
//! kept what a model (`serde_json` and [`statecast::merge`]) keeps; and event streams, which are parsed to the same
//! events whole and in pieces. One thread makes all cases from the seed.

mod random;

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use random::Rng;
use serde_json::{Map, Value, json};
use statecast::{Config, EventId, Parser, Server, TooLarge};

/// Generous: what takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(20);
/// In headers and queries; no answer shows it.
const HEAD_MARK: &str = "Mh7qZ2headmark";
/// In bodies; no refusal shows it.
const BODY_MARK: &str = "Mb9xK4bodymark";
/// Small enough that some documents are too large.
const MAX_DOCUMENT: usize = 40_000;
/// Requests that cost the server a thread for good, in all.
const COSTLY: usize = 6;

/// What was found, and the bytes that did it.
struct Failure {
    kind: &'static str,
    text: String,
    bytes: Vec<u8>,
}

fn failure(kind: &'static str, text: impl Into<String>, bytes: &[u8]) -> Failure {
    Failure { kind, text: text.into(), bytes: bytes.to_vec() }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, DEADLINE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.set_write_timeout(Some(DEADLINE))?;
    Ok(socket)
}

/// A kept-alive connection of somebody who behaves.
struct Http(BufReader<TcpStream>);

impl Http {
    fn call(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<(u16, String, String)> {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        self.0.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        let length = field(&head, "Content-Length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok((status, head, String::from_utf8(body).map_err(io::Error::other)?))
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// A server, somebody who publishes to it, and somebody who follows it on a stream of HTTP/1.0.
struct Witness {
    server: Server,
    http: Http,
    followed: Arc<(Mutex<Followed>, Condvar)>,
    published: u64,
}

#[derive(Default)]
struct Followed {
    document: Value,
    last: Option<EventId>,
    /// The last number the witness saw of its own; each comes once and in order.
    number: u64,
    fault: Option<String>,
}

impl Witness {
    fn start() -> io::Result<Witness> {
        let config = Config {
            heartbeat: Duration::from_secs(1),
            request_timeout: Duration::from_secs(2),
            max_document_bytes: MAX_DOCUMENT,
            ..Config::default()
        };
        let server = Server::start(config)?;
        let mut stream = connect(server.address())?;
        stream.write_all(b"GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let http = Http(BufReader::new(connect(server.address())?));
        let followed = Arc::new((Mutex::default(), Condvar::new()));
        let shared = Arc::clone(&followed);
        thread::spawn(move || {
            let end = follow(BufReader::new(stream), &shared).expect_err("a stream ends in an error");
            shared.0.lock().expect("following does not panic").fault.get_or_insert(end.to_string());
            shared.1.notify_all();
        });
        Ok(Witness { server, http, followed, published: 0 })
    }

    /// What the stream's document is as of an event, at least.
    fn wait_for(&self, id: EventId) -> Result<(Value, Option<EventId>, u64), String> {
        let guard = self.followed.0.lock().expect("following does not panic");
        let is_missing = |followed: &mut Followed| followed.last < Some(id) && followed.fault.is_none();
        let waited = self.followed.1.wait_timeout_while(guard, DEADLINE, is_missing);
        let (followed, waited) = waited.expect("following does not panic");
        match &followed.fault {
            Some(fault) => Err(format!("the witness stream: {fault}")),
            None if waited.timed_out() => Err(format!("the stream stands at {:?}, not {id}", followed.last)),
            None => Ok((followed.document.clone(), followed.last, followed.number)),
        }
    }

    /// Publishes, and compares what the stream brought with what `GET` says.
    fn check(&mut self) -> Result<(), String> {
        self.published += 1;
        let number = self.published.to_string();
        let (status, _, body) = self.call("PUT", "/state/witness", number.as_bytes())?;
        let id = id_in(&body).ok_or_else(|| format!("the witness was answered {status} {body}"))?;
        let (_, _, seen) = self.wait_for(id)?;
        if seen != self.published {
            return Err(format!("the stream brought {seen} of {}", self.published));
        }
        // Cases that were left may still be written; a look between two of them is enough.
        for _ in 0..50 {
            let (_, head, body) = self.call("GET", "/state", b"")?;
            let as_of = field(&head, "ETag").and_then(|tag| tag.trim_matches('"').parse().ok());
            let as_of = as_of.ok_or("no ETag")?;
            let (document, _, _) = self.wait_for(as_of)?;
            let kept: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
            if document == kept {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err("the stream's document is not the server's".into())
    }

    fn call(&mut self, method: &str, path: &str, body: &[u8]) -> Result<(u16, String, String), String> {
        self.http.call(method, path, body).map_err(|error| format!("{method} {path}: {error}"))
    }
}

fn id_in(body: &str) -> Option<EventId> {
    serde_json::from_str::<Value>(body).ok()?["id"].as_str()?.parse().ok()
}

fn follow(mut stream: impl BufRead, shared: &(Mutex<Followed>, Condvar)) -> io::Result<()> {
    let (mut name, mut data, mut id, mut line) = (String::new(), Vec::new(), None, String::new());
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::Error::other("it ended"));
        }
        match line.trim_end_matches('\n').split_once(": ") {
            Some(("event", text)) => text.clone_into(&mut name),
            Some(("id", text)) => {
                id = Some(text.parse::<EventId>().map_err(|_| io::Error::other("a bad id"))?);
            }
            Some(("data", text)) => data.push(text.to_owned()),
            _ => {}
        }
        if line != "\n" {
            continue;
        }
        let data = std::mem::take(&mut data).join("\n");
        if let Some(id) = id.take() {
            let mut followed = shared.0.lock().expect("following does not panic");
            if followed.last >= Some(id) {
                return Err(io::Error::other(format!("{id} came after {:?}", followed.last)));
            }
            followed.last = Some(id);
            if matches!(name.as_str(), "init" | "update") {
                let value: Value = serde_json::from_str(&data)?;
                if let Some(number) = value["witness"].as_u64() {
                    if number != followed.number + 1 {
                        return Err(io::Error::other(format!("{number} came after {}", followed.number)));
                    }
                    followed.number = number;
                }
                if name == "init" {
                    followed.document = value;
                } else {
                    statecast::merge(&mut followed.document, value);
                }
            }
            drop(followed);
            shared.1.notify_all();
        }
    }
}

fn valid_request(rng: &mut Rng) -> Vec<u8> {
    let (method, path, body) = rng.of(&[
        ("GET", "/state", ""),
        ("GET", "/state/a", ""),
        ("GET", "/events", ""),
        ("GET", "/events/a", ""),
        ("GET", "/clients", ""),
        ("GET", "/metrics", ""),
        ("GET", "/statecast.js", ""),
        ("GET", "/no/such/page", ""),
        ("HEAD", "/events", ""),
        ("OPTIONS", "/state", ""),
        ("PATCH", "/state", "{\"a\":{\"b\":[1,2.5,\"x\"]},\"b\":null}"),
        ("PATCH", "/state", "{\"Mb9xK4bodymark no topic\":1}"),
        ("PUT", "/state", "{\"a\":{\"Mb9xK4bodymark\":true},\"c\":\"Mb9xK4bodymark\"}"),
        ("PUT", "/state/b", "[\"Mb9xK4bodymark\", 1e5, {}]"),
        ("POST", "/state/a", "{\"deep\":{\"er\":null}}"),
        ("POST", "/events", "Mb9xK4bodymark\r\nsecond line"),
        ("POST", "/events/a", "Mb9xK4bodymark"),
        ("DELETE", "/state/a", ""),
        ("DELETE", "/state", ""),
        ("DELETE", "/clients/999999", ""),
    ]);
    let query =
        rng.of(&["", "?x=Mh7qZ2headmark", "?event=alert", "?event=Mh7qZ2headmark%20", "?lastEventId=1-0"]);
    let header = rng.of(&[
        "",
        "X-Mh7qZ2headmark: Mh7qZ2headmark\r\n",
        "Origin: http://Mh7qZ2headmark\r\n",
        "Authorization: Bearer Mh7qZ2headmark\r\n",
        "Last-Event-ID: Mh7qZ2headmark\r\n",
        "If-None-Match: \"Mh7qZ2headmark\"\r\n",
        "Content-Type: application/json\r\n",
        "Expect: 100-continue\r\n",
        "Connection: close\r\n",
    ]);
    let (length, body) = match (body.len(), rng.index(4)) {
        (0, _) => (String::new(), String::new()),
        (_, 0) => {
            let (one, two) = body.split_at(rng.index(body.len()));
            let chunk = |text: &str| {
                if text.is_empty() { String::new() } else { format!("{:x}\r\n{text}\r\n", text.len()) }
            };
            ("Transfer-Encoding: chunked\r\n".into(), chunk(one) + &chunk(two) + "0\r\n\r\n")
        }
        (count, _) => (format!("Content-Length: {count}\r\n"), body.to_owned()),
    };
    format!("{method} {path}{query} HTTP/1.1\r\nHost: localhost\r\n{header}{length}\r\n{body}").into_bytes()
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let at = rng.index(bytes.len() + 1);
    let insert =
        |bytes: &mut Vec<u8>, at: usize, what: &[u8]| drop(bytes.splice(at..at, what.iter().copied()));
    let line_starts = |bytes: &[u8]| -> Vec<usize> {
        (0..bytes.len()).filter(|index| bytes[..*index].ends_with(b"\n")).collect()
    };
    match rng.index(13) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.index(8),
        1 if at < bytes.len() => bytes[at] = rng.next() as u8,
        2 => insert(bytes, at, &[rng.of(b"\r\n\0 \t:%/?&=\x7f\x80\xff")]),
        3 => drop(bytes.drain(at..(at + rng.index(12)).min(bytes.len()))),
        4 => bytes.truncate(at),
        5 => {
            let starts = line_starts(bytes);
            if let [first, second, ..] = starts[..] {
                let line = bytes[first..second].to_vec();
                insert(bytes, starts[rng.index(starts.len())], &line);
            }
        }
        6 => {
            if let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|start| at + start) {
                let count = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                let number =
                    rng.of(&["0", "1", "-1", "00", "65536", "1048577", "4294967296", "18446744073709551616"]);
                bytes.splice(start..start + count, number.bytes());
            }
        }
        7 => insert(
            bytes,
            at,
            rng.of(&["%00", "%0d%0a", "%zz", "%", "%c3%28", "%2e%2e%2f", "../", "//"]).as_bytes(),
        ),
        8 => {
            let headers = [
                "Content-Length: 3\r\n",
                "Transfer-Encoding: identity\r\n",
                "Transfer-Encoding: chunked\r\n",
                "Host: Mh7qZ2headmark\r\n",
                "Via: Mh7qZ2headmark\r\n",
                "No colon\r\n",
                ": no name\r\n",
                " folded\r\n",
            ];
            let starts = line_starts(bytes);
            if !starts.is_empty() {
                insert(bytes, starts[rng.index(starts.len())], rng.of(&headers).as_bytes());
            }
        }
        9 => {
            let end = bytes.iter().position(|byte| *byte == b' ').unwrap_or(0);
            bytes.splice(..end, rng.of(&["get", "BREW", "", "CONNECT", "TRACE", "P\0T", "PUT"]).bytes());
        }
        10 => insert(bytes, at, &[rng.of(b"a/%\r0[")].repeat(rng.index(100_000))),
        11 => bytes.extend(valid_request(rng)),
        _ => bytes.retain(|byte| *byte != b'\r'),
    }
}

/// Whether it would cost the server a thread for good, or the witness its stream.
fn is_costly(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    let is_long = |rest: &str| {
        let digits: String =
            rest.trim_start_matches([' ', '\t']).chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().is_ok_and(|length| length > 64 << 20)
    };
    text.contains("http/2.0")
        || text.contains("http/3.0")
        || text.split("content-length:").skip(1).any(is_long)
}

/// Sends one mutated request and looks at what comes back.
fn mutated_case(address: SocketAddr, rng: &mut Rng, costly: &mut usize) -> Result<(), Failure> {
    let mut bytes = valid_request(rng);
    for _ in 0..rng.index(5) {
        mutate(&mut bytes, rng);
    }
    if String::from_utf8_lossy(&bytes).contains("/clients/1") {
        return Ok(());
    }
    if is_costly(&bytes) {
        match costly.checked_sub(1) {
            Some(left) => *costly = left,
            None => return Ok(()),
        }
    }
    let mut socket =
        connect(address).map_err(|error| failure("cannot connect", error.to_string(), &bytes))?;
    // Refused while it is on its way, a request may not be taken whole.
    socket.write_all(&bytes).ok();
    let says_end = rng.index(500) > 0;
    if rng.index(10) == 0 {
        return Ok(());
    }
    if says_end {
        socket.shutdown(Shutdown::Write).ok();
    }
    let (mut received, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let text = format!("neither answered nor closed; {:?}", String::from_utf8_lossy(&received));
                return Err(failure("hang", text, &bytes));
            }
            Err(_) => break,
        }
        let is_stream = received.windows(17).any(|part| part == b"text/event-stream");
        if is_stream || !says_end {
            break;
        }
    }
    let may_lack_bodies = bytes.windows(4).any(|part| part.eq_ignore_ascii_case(b"HEAD"));
    check_answers(&received, may_lack_bodies).map_err(|(kind, text)| failure(kind, text, &bytes))
}

fn check_answers(mut rest: &[u8], may_lack_bodies: bool) -> Result<(), (&'static str, String)> {
    while !rest.is_empty() {
        let shown = || String::from_utf8_lossy(&rest[..rest.len().min(600)]).into_owned();
        let Some(end) = rest.windows(4).position(|part| part == b"\r\n\r\n") else {
            return if b"HTTP/".starts_with(&rest[..rest.len().min(5)]) {
                Ok(())
            } else {
                Err(("not HTTP", shown()))
            };
        };
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        let version = head.starts_with("HTTP/1.") || head.starts_with("HTTP/0.9 ");
        let status = head.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        let Some(status) = status.filter(|status| version && (100..600).contains(status)) else {
            return Err(("not HTTP", shown()));
        };
        rest = &rest[end + 4..];
        let is_stream = head.contains("text/event-stream");
        let has_body = !is_stream && status >= 200 && status != 204 && status != 304 && !may_lack_bodies;
        let length = field(&head, "Content-Length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let length = if has_body { rest.len().min(length) } else { 0 };
        let body = String::from_utf8_lossy(&rest[..length]);
        if head.contains(HEAD_MARK) || head.contains(BODY_MARK) || body.contains(HEAD_MARK) {
            return Err(("echo", format!("{head}\n{body}")));
        }
        if status >= 400 && body.contains(BODY_MARK) {
            return Err(("echo of the body in a refusal", format!("{head}\n{body}")));
        }
        if is_stream || may_lack_bodies {
            return Ok(());
        }
        rest = &rest[length..];
    }
    Ok(())
}

/// A JSON text, more or less.
fn json_text(rng: &mut Rng, depth: usize, out: &mut String) {
    let strings = [
        "",
        "a",
        "\\u0000",
        "\\ud83d\\ude00",
        "\\ud800",
        "\\n\\\"\\\\",
        "\u{2028}\u{e4}",
        "__proto__",
        "a\tb",
    ];
    let numbers = [
        "0",
        "-0",
        "1e5",
        "1E+2",
        "01",
        "1.",
        ".5",
        "1e999",
        "-1e-999",
        "0.1",
        "9007199254740993",
        "18446744073709551616",
        "123456789.123456789e-3",
        "5e-324",
        "+1",
        "NaN",
    ];
    match rng.index(if depth > 6 { 5 } else { 9 }) {
        0 => out.push_str(rng.of(&["null", "true", "false", "null", "nul", ""])),
        1 | 2 => {
            // Most are numbers; some only look like it.
            let most = if rng.index(4) == 0 { numbers.len() } else { 4 };
            out.push_str(numbers[rng.index(most)]);
        }
        3 | 4 => {
            let most = if rng.index(8) == 0 { strings.len() } else { 4 };
            write!(out, "\"{}\"", strings[rng.index(most)]).expect("writing to a String");
        }
        5 | 6 => {
            out.push_str(rng.of(&["[", "[ ", "[\n"]));
            let count = if rng.index(30) == 0 { rng.index(2_000) } else { rng.index(5) };
            for index in 0..count {
                out.push_str(if index > 0 { "," } else { "" });
                json_text(rng, depth + 3, out);
            }
            out.push(']');
        }
        _ => object_text(rng, depth, out, &["a", "b", "c", "c", "", "\\u0061", "x y"]),
    }
}

fn object_text(rng: &mut Rng, depth: usize, out: &mut String, keys: &[&str]) {
    out.push('{');
    for index in 0..rng.index(6) {
        write!(out, "{}\"{}\" : ", if index > 0 { "," } else { "" }, rng.of(keys))
            .expect("writing to a String");
        json_text(rng, depth + 1, out);
    }
    out.push('}');
}

fn depth_of(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth_of).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth_of).max().unwrap_or(0),
        _ => 0,
    }
}

fn count_containers(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count_containers).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(count_containers).sum::<usize>(),
        _ => 0,
    }
}

fn is_topic(key: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&key.len()) && key.bytes().all(is_letter) && key != "." && key != ".."
}

/// What the document would be; `None` where the request is refused with 400.
fn model_of(model: &Value, is_put: bool, topic: Option<&str>, body: &[u8]) -> Option<Value> {
    let value: Value = serde_json::from_str(std::str::from_utf8(body).ok()?).ok()?;
    let patch = match topic {
        Some(topic) => Map::from_iter([(topic.to_owned(), value)]),
        None => value.as_object()?.clone(),
    };
    let mut next = if is_put && topic.is_none() { json!({}) } else { model.clone() };
    for (key, value) in patch {
        // A replaced document need not name what it does not have.
        let is_needless = is_put && value.is_null();
        if !is_topic(&key) && !is_needless {
            return None;
        }
        if is_put && let Some(topics) = next.as_object_mut() {
            topics.remove(&key);
        }
        statecast::merge(&mut next, Value::Object(Map::from_iter([(key, value)])));
    }
    (depth_of(&next) <= 100).then_some(next)
}

/// Sends one JSON text and looks at what is kept.
fn json_case(witness: &mut Witness, model: &mut Value, rng: &mut Rng) -> Result<(), Failure> {
    let topic = (rng.index(3) > 0).then(|| rng.of(&["a", "b", "c", "x.y-z_0"]));
    let method = rng.of(&["PATCH", "PUT", "POST"]);
    let mut text = String::new();
    match (topic, rng.index(40)) {
        (_, 0) => {
            let levels = 90 + rng.index(50);
            let (open, close) = rng.of(&[("[", "]"), ("{\"a\":", "}")]);
            write!(text, "{}1{}", open.repeat(levels), close.repeat(levels)).expect("writing to a String");
        }
        (_, 1) => {
            write!(text, "{{\"a\":\"{}\"}}", "y".repeat(rng.index(2 * MAX_DOCUMENT))).expect("a String");
        }
        (None, _) => object_text(rng, 0, &mut text, &["a", "b", "c", "d", "d", "e.f", "no topic", "", "."]),
        _ => json_text(rng, 0, &mut text),
    }
    let mut body = text.into_bytes();
    if rng.index(12) == 0 && !body.is_empty() {
        let at = rng.index(body.len());
        body[at] = rng.next() as u8;
    }
    // A longer one is refused unread, and its connection closed: that is the other half's.
    body.truncate(1 << 20);
    let path = topic.map_or("/state".into(), |topic| format!("/state/{topic}"));
    let request = [format!("{method} {path}\n").as_bytes(), &body].concat();
    let failed = |kind, text: String| failure(kind, text, &request);
    let (status, _, answer) = witness.call(method, &path, &body).map_err(|text| failed("no answer", text))?;
    let next = model_of(model, method == "PUT", topic, &body);
    let size = next.as_ref().map_or(0, |next| next.to_string().len());
    let containers = next.as_ref().map_or(0, count_containers);
    // Those in strings, too: more than there are.
    let brackets = body.iter().filter(|byte| b"{[".contains(byte)).count();
    let is_right = match (&next, status) {
        (None, 400) => true,
        // What counts is the JSON, and for each container 40 bytes and a comma behind its last item.
        (Some(_), 200) => size + 40 * containers <= MAX_DOCUMENT,
        (_, 413) => size + 41 * containers > MAX_DOCUMENT || 40 * brackets > MAX_DOCUMENT,
        _ => false,
    };
    if !is_right {
        return Err(failed("status", format!("{status} {answer}; the model says {next:?} of {size} bytes")));
    }
    if let (Some(next), 200) = (next, status) {
        *model = next;
    }
    let (_, _, kept) = witness.call("GET", "/state", b"").map_err(|text| failed("no answer", text))?;
    let is_same = serde_json::from_str::<Value>(&kept).is_ok_and(|kept| kept == *model);
    if !is_same {
        return Err(failed("model", format!("kept {kept}, the model {model}")));
    }
    if let Some(id) = id_in(&answer) {
        let (followed, ..) = witness.wait_for(id).map_err(|text| failed("witness", text))?;
        if followed != *model {
            return Err(failed("stream", format!("the stream's {followed}, the model {model}")));
        }
    }
    Ok(())
}

/// Parses a stream that is nearly right, whole and in pieces.
fn parser_case(rng: &mut Rng) -> Result<(), Failure> {
    const WORDS: [&[u8]; 12] = [
        b"data: x",
        b"data",
        b"event: a",
        b"id: 1",
        b"id: \0",
        b"retry: 5",
        b":",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"\xef\xbb\xbf",
        b"\xe2\x82",
    ];
    let mut stream: Vec<u8> = (0..rng.index(60)).flat_map(|_| rng.of(&WORDS)).copied().collect();
    mutate(&mut stream, rng);
    let parse = |pieces: &[&[u8]]| {
        // Small enough that some lines are too long.
        let (mut parser, mut events) = (Parser::resume(String::new(), 200), Vec::new());
        for mut piece in pieces.iter().copied() {
            loop {
                match parser.next(&mut piece) {
                    Ok(Some(event)) => events.push(event),
                    Ok(None) => break,
                    Err(TooLarge { .. }) => return (events, false),
                }
            }
        }
        (events, true)
    };
    let whole = parse(&[&stream]);
    let mut pieces = Vec::new();
    let mut rest = &stream[..];
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rng.index(9).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    let split = parse(&pieces);
    if split == whole {
        Ok(())
    } else {
        Err(failure("parser", format!("{whole:?}, in pieces {split:?}"), &stream))
    }
}

fn options() -> Result<(u64, u64), lexopt::Error> {
    use lexopt::prelude::*;
    let (mut seconds, mut seed) = (30, 7);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seconds") => seconds = parser.value()?.parse()?,
            Long("seed") => seed = parser.value()?.parse()?,
            other => return Err(other.unexpected()),
        }
    }
    Ok((seconds, seed))
}

fn main() -> ExitCode {
    let (seconds, seed) = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("fuzz: {error}");
            return ExitCode::from(2);
        }
    };
    println!("fuzz --seconds {seconds} --seed {seed}");
    let mut witness = Witness::start().expect("a server starts on a free port");
    let mut modelled = Witness::start().expect("a server starts on a free port");
    let (mut model, mut costly) = (json!({}), COSTLY);
    let (mut passed, mut failed) = ([0_u64; 3], Vec::<(&str, u64)>::new());
    let until = Instant::now() + Duration::from_secs(seconds);
    for case in 0_u64.. {
        if Instant::now() > until {
            break;
        }
        let mut rng = Rng(seed ^ case.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let mut result = match case % 3 {
            0 => mutated_case(witness.server.address(), &mut rng, &mut costly),
            1 => json_case(&mut modelled, &mut model, &mut rng),
            _ => parser_case(&mut rng),
        };
        if result.is_ok() && case % 100 == 0 {
            result = witness.check().map_err(|text| failure("witness", text, b"one of the last 100 cases"));
        }
        let Err(failure) = result else {
            passed[(case % 3) as usize] += 1;
            continue;
        };
        if let Some((_, count)) = failed.iter_mut().find(|(kind, _)| *kind == failure.kind) {
            *count += 1;
        } else {
            failed.push((failure.kind, 1));
            let bytes = failure.bytes.escape_ascii().to_string();
            let text: String = failure.text.chars().take(2_000).collect();
            println!(
                "FAILED {}, seed {seed}, case {case}: {text}\n  {}",
                failure.kind,
                &bytes[..bytes.len().min(8_000)]
            );
        }
        if !failure.kind.starts_with("echo") {
            break;
        }
    }
    let [requests, texts, streams] = passed;
    println!(
        "{requests} mutated requests, {texts} JSON texts, {streams} event streams, {} costly",
        COSTLY - costly
    );
    for (kind, count) in &failed {
        println!("FAILED {kind}: {count} cases");
    }
    println!(
        "{} passed, {} failed",
        passed.iter().sum::<u64>(),
        failed.iter().map(|(_, count)| count).sum::<u64>()
    );
    ExitCode::from(u8::from(!failed.is_empty()))
}
