//! What the tests share: a server, and a client that shows every byte.
//!
//! Nobody sleeps here. A test waits for an event, a line or a closed connection, and what does not come within
//! `DEADLINE` ends in a message with what had come.

#![allow(dead_code, unused_imports, unused_macros, reason = "every test file uses its own part")]

use std::fmt::{self, Write as _};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use statecast::{Config, EventId, Server};

/// Longer than anything takes on a busy machine, and short enough to see what hangs.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub const README: &str = include_str!("../../README.md");

/// The contents of the README's fenced blocks of one kind.
pub fn blocks(kind: &str) -> Vec<&'static str> {
    let fence = format!("```{kind}\n");
    let after_fences = README.split(fence.as_str()).skip(1);
    after_fences.map(|text| text.split("```").next().expect("a block ends")).collect()
}

/// Runs a test with one fan-out thread, with two and with four.
macro_rules! with_threads {
    ($test:ident) => {
        mod $test {
            #[test]
            fn with_1_thread() {
                super::$test(1);
            }

            #[test]
            fn with_2_threads() {
                super::$test(2);
            }

            #[test]
            fn with_4_threads() {
                super::$test(4);
            }
        }
    };
}
pub(crate) use with_threads;

/// A server with one document of its own.
pub fn start() -> Server {
    start_with(|_| {})
}

/// A server that is configured differently.
pub fn start_with(configure: impl FnOnce(&mut Config)) -> Server {
    let mut config = Config::default();
    configure(&mut config);
    Server::start(config).expect("a server starts on a free port")
}

/// The answer to one request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The id of what was published; panics if it was refused.
    pub fn id(&self) -> EventId {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()["id"].as_str().expect("an id").parse().expect("an id")
    }

    /// What the refusal says.
    pub fn error(&self) -> String {
        self.json()["error"].as_str().expect("a refusal says what was wrong").to_owned()
    }
}

/// Sends a request with ureq, as a program would.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let answer = try_request(address, method, path, headers, body);
    answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

/// The same, where the server may be gone.
pub fn try_request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer, ureq::Error> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(DEADLINE))
        .allow_non_standard_methods(true)
        .build()
        .into();
    let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let sent = if body.is_empty() {
        agent.run(request.body(()).expect("a request"))
    } else {
        agent.run(request.body(body.to_owned()).expect("a request"))
    };
    let mut response = sent?;
    let headers = response.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()));
    let headers = headers.collect();
    let mut body = response.body_mut().read_to_string()?;
    let answer = Answer { status: response.status().as_u16(), headers, body: String::new() };
    // A file of the page's is sent as it is, and may be kept.
    let is_ours = answer.header("Cache-Control") == Some("no-store");
    if is_ours && !body.is_empty() && answer.header("Content-Type") == Some("application/json") {
        assert_eq!(body.pop(), Some('\n'), "every JSON answer ends with a line end");
    }
    Ok(Answer { body, ..answer })
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, "GET", path, &[], "")
}

pub fn patch(address: SocketAddr, path: &str, body: &str) -> EventId {
    request(address, "PATCH", path, &[], body).id()
}

pub fn put(address: SocketAddr, path: &str, body: &str) -> EventId {
    request(address, "PUT", path, &[], body).id()
}

pub fn post(address: SocketAddr, path: &str, body: &str) -> EventId {
    request(address, "POST", path, &[], body).id()
}

pub fn delete(address: SocketAddr, path: &str) -> EventId {
    request(address, "DELETE", path, &[], "").id()
}

/// A connection on which a test writes its own bytes.
pub fn connect(address: SocketAddr) -> TcpStream {
    let connection = TcpStream::connect_timeout(&address, DEADLINE).expect("the server accepts");
    connection.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    connection.set_write_timeout(Some(DEADLINE)).expect("a time-out");
    connection
}

/// Sends bytes and reads until the server closes.
pub fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let start = Instant::now();
    let mut connection = connect(address);
    connection.write_all(bytes).expect("the server reads");
    let mut answer = Vec::new();
    let mut piece = [0; 4_096];
    loop {
        let text = String::from_utf8_lossy(&answer);
        match connection.read(&mut piece) {
            // Heartbeats would go on for ever.
            Ok(1..) if start.elapsed() > DEADLINE => panic!("it is still open, after {text:?}"),
            Ok(count @ 1..) => answer.extend_from_slice(&piece[..count]),
            Ok(0) => return text.into_owned(),
            // A server that closes before it has read everything resets.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return text.into_owned(),
            Err(error) => panic!("{error}, after {text:?}"),
        }
    }
}

/// Reads the head of a request or of an answer, and nothing behind it.
pub fn read_head(connection: &mut TcpStream) -> String {
    connection.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}, after {head:?}"));
        head.extend(byte);
    }
    String::from_utf8(head).expect("a head of UTF-8")
}

/// One event as it was dispatched.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Event {
    pub name: String,
    pub data: String,
    pub id: Option<String>,
}

impl Event {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub fn id(&self) -> EventId {
        self.id.as_ref().expect("an event with an id").parse().expect("an id")
    }
}

/// A stream that is read byte by byte: the head, the chunks, the events. It takes what the server writes and nothing
/// else, until it is told to be `lenient`.
pub struct Stream {
    reader: BufReader<TcpStream>,
    pub head: String,
    is_chunked: bool,
    left_in_chunk: usize,
    /// Takes whatever WHATWG HTML, section 9.2.6, lets a stream be; a cut ends it as the last chunk does.
    is_lenient: bool,
    /// The last line ended in CR: an LF that comes now belongs to it.
    after_cr: bool,
    /// The last `retry:` field.
    pub retry: Option<u64>,
    /// Everything that came, for the message when something does not.
    seen: String,
    /// When something else than a heartbeat came last.
    heard: Instant,
}

impl Stream {
    /// Opens a stream and reads its head.
    pub fn open(address: SocketAddr, path: &str) -> Stream {
        Stream::request(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"))
    }

    /// Opens a stream that resumes after an id.
    pub fn resume(address: SocketAddr, path: &str, last_event_id: &str) -> Stream {
        let head =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nLast-Event-ID: {last_event_id}\r\n\r\n");
        Stream::request(address, &head)
    }

    pub fn request(address: SocketAddr, head: &str) -> Stream {
        let mut connection = connect(address);
        connection.write_all(head.as_bytes()).expect("the server reads");
        Stream::on(connection)
    }

    /// Opens a stream over a connection that takes next to nothing before it is read.
    pub fn open_narrow(address: SocketAddr, path: &str) -> Stream {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(1).expect("the smallest buffer");
        socket.connect(&address.into()).expect("the server accepts");
        let mut connection: TcpStream = socket.into();
        connection.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("the server reads");
        Stream::on(connection)
    }

    /// Reads the head of a stream that was asked for.
    pub fn on(connection: TcpStream) -> Stream {
        let mut stream = Stream {
            reader: BufReader::with_capacity(4_096, connection),
            head: String::new(),
            is_chunked: false,
            left_in_chunk: 0,
            is_lenient: false,
            after_cr: false,
            retry: None,
            seen: String::new(),
            heard: Instant::now(),
        };
        while !stream.head.ends_with("\r\n\r\n") {
            let line = stream.raw_line().expect("a head");
            stream.head.push_str(&line);
        }
        stream.is_chunked = stream.head.contains("Transfer-Encoding: chunked");
        stream
    }

    /// The same stream, read as any client has to read one that it knows nothing about.
    pub fn lenient(self) -> Stream {
        Stream { is_lenient: true, ..self }
    }

    pub fn local_address(&self) -> SocketAddr {
        self.reader.get_ref().local_addr().expect("an address")
    }

    /// The next event of any name; panics if the stream ends.
    pub fn next(&mut self) -> Event {
        self.next_or_end().unwrap_or_else(|| panic!("the stream ended after {}", self.seen))
    }

    /// The next event that is not a heartbeat.
    pub fn next_but_heartbeats(&mut self) -> Event {
        loop {
            let event = self.next();
            if event.name != "heartbeat" {
                return event;
            }
        }
    }

    /// Reads on to the next event of that name, past any other.
    pub fn next_named(&mut self, name: &str) -> Event {
        loop {
            let event = self.next();
            if event.name == name {
                return event;
            }
        }
    }

    /// The next event; `None` at the clean end of the stream.
    pub fn next_or_end(&mut self) -> Option<Event> {
        let mut event = Event { name: "message".into(), ..Event::default() };
        let mut data = None;
        loop {
            let line = self.line()?;
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() => {
                    if let Some(data) = data.take() {
                        event.data = data;
                        if event.name != "heartbeat" {
                            self.heard = Instant::now();
                        }
                        assert!(
                            self.heard.elapsed() < DEADLINE,
                            "nothing but heartbeats after {}",
                            self.seen
                        );
                        return Some(event);
                    }
                    panic!("a block without data, an empty event to many clients, after {}", self.seen);
                }
                "event" => value.clone_into(&mut event.name),
                "id" if value.contains('\0') && self.is_lenient => {}
                "id" => event.id = Some(value.to_owned()),
                "retry" if self.is_lenient => self.retry = value.parse().ok().or(self.retry),
                "retry" => self.retry = value.parse().ok(),
                "data" => match &mut data {
                    None => data = Some(value.to_owned()),
                    Some(data) => write!(data, "\n{value}").expect("a String"),
                },
                "" => {}
                _ if self.is_lenient => {}
                other => panic!("an unknown field {other:?} after {}", self.seen),
            }
        }
    }

    /// Reads to the end and says whether it was clean.
    pub fn ends_cleanly(&mut self) -> bool {
        while self.next_or_end().is_some() {}
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).is_ok() && rest.is_empty()
    }

    /// A line of the stream without its end; `None` after the last chunk.
    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        loop {
            let byte = self.byte()?;
            let is_rest = std::mem::take(&mut self.after_cr) && byte == b'\n';
            if is_rest {
                continue;
            }
            self.after_cr = self.is_lenient && byte == b'\r';
            if byte == b'\n' || self.after_cr {
                let mut line = String::from_utf8(line).expect("the stream is UTF-8");
                if self.is_lenient && self.seen.is_empty() && line.starts_with('\u{feff}') {
                    line.remove(0);
                }
                self.seen.push_str(&line);
                self.seen.push('\n');
                return Some(line);
            }
            line.push(byte);
        }
    }

    /// The rest of the current chunk, or else the next one; `None` after the last.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![self.byte()?];
        while self.left_in_chunk > 0 {
            bytes.push(self.byte()?);
        }
        Some(bytes)
    }

    /// All that comes before the connection is closed, as it is.
    pub fn raw_rest(&mut self) -> String {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).expect("the connection is closed and not reset");
        String::from_utf8(rest).expect("text")
    }

    fn byte(&mut self) -> Option<u8> {
        if self.is_chunked && self.left_in_chunk == 0 {
            let size = match self.raw_line() {
                None if self.is_lenient => return None,
                size => size.unwrap_or_else(|| panic!("the stream was cut after {}", self.seen)),
            };
            let size = size.trim_end();
            self.left_in_chunk =
                usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("{size:?} is no size"));
            if self.left_in_chunk == 0 {
                assert_eq!(self.raw_line().as_deref(), Some("\r\n"), "the last chunk has an end");
                return None;
            }
        }
        let byte = self.raw_byte();
        if !self.is_chunked || self.is_lenient && byte.is_none() {
            return byte;
        }
        let byte = byte.unwrap_or_else(|| panic!("the stream was cut after {}", self.seen));
        self.left_in_chunk -= 1;
        if self.left_in_chunk == 0 {
            assert_eq!(self.raw_line().as_deref(), Some("\r\n"), "a chunk has an end");
        }
        Some(byte)
    }

    fn raw_byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        match self.reader.read(&mut byte) {
            Ok(0) => None,
            Ok(_) => Some(byte[0]),
            Err(error) => panic!("{error}, after {}{}", self.head, self.seen),
        }
    }

    fn raw_line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line),
            Err(error) => panic!("{error}, after {}{}", self.head, self.seen),
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.head, self.seen)
    }
}

/// A replica of a stream's document: what anybody gets who applies `init` and then every `update`.
#[derive(Debug, Default)]
pub struct Replica {
    pub document: Option<Value>,
    pub last_id: Option<EventId>,
}

impl Replica {
    pub fn apply(&mut self, event: &Event) {
        match event.name.as_str() {
            "init" => self.document = Some(event.json()),
            "update" => {
                let document = self.document.as_mut().expect("an update comes after init");
                statecast::merge(document, event.json());
            }
            _ => return,
        }
        let id = event.id();
        assert!(self.last_id < Some(id) || event.name == "init", "{id} came after {:?}", self.last_id);
        self.last_id = Some(id);
    }
}

/// Asks again and again until it is so; panics with what it was at last.
pub fn wait_until<T: fmt::Debug>(mut look: impl FnMut() -> T, is_so: impl Fn(&T) -> bool) -> T {
    let start = Instant::now();
    loop {
        let seen = look();
        if is_so(&seen) {
            return seen;
        }
        assert!(start.elapsed() < DEADLINE, "still {seen:?}");
        // Not a wait for something to have happened: a pause between two looks.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder of the test's own, removed at its end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("statecast-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder of temporary files");
        Folder(path)
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path of UTF-8").to_owned()
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).expect("it is there").map(|entry| entry.expect("an entry"));
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// The program on a disk with a fault, as strace injects it; the process is the program's own, as `spawn` wants it.
pub fn strace(inject: &str, program: &str, arguments: &[&str]) -> Command {
    let strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    assert!(strace.is_ok_and(|status| status.success()), "strace is missing: tests/all installs it");
    let mut command = Command::new("strace");
    let calls = inject.split(':').next().expect("a split has a part");
    command.args(["-D", "-f", "-q", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={inject}"), program]).args(arguments);
    command
}

/// Ends the strace that follows a process, which would hold back its end for as long as it delays one of its calls.
pub fn end_strace(process: u32) {
    let tracer = status_of(process, "TracerPid:").expect("it is there");
    assert_ne!(tracer, "0", "strace follows it");
    let script = format!("kill -s KILL {tracer}");
    assert!(Command::new("sh").args(["-c", &script]).status().expect("a shell runs").success());
}

/// A line of a process's status; `None` when it is gone.
pub fn status_of(process: u32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    Some(line.expect("Linux says so").trim().to_owned())
}

/// Whether the tests run as root, which some need.
pub fn is_root() -> bool {
    status_of(std::process::id(), "Uid:").is_some_and(|ids| ids.starts_with("0\t"))
}

/// Sends a signal to a process that may have ended already.
pub fn signal(process: &Child, name: &str) {
    let script = format!("kill -s {name} {}", process.id());
    Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().expect("a shell runs");
}

/// The program as a user runs it.
pub struct Binary {
    pub child: Child,
    pub address: SocketAddr,
    /// What it printed first.
    pub greeting: String,
    _stdout: BufReader<ChildStdout>,
}

impl Binary {
    pub fn start(arguments: &[&str]) -> Binary {
        Binary::spawn(Command::new(env!("CARGO_BIN_EXE_statecast")).args(arguments))
    }

    /// Starts it where another one has been before.
    pub fn start_at(address: SocketAddr, arguments: &[&str]) -> Binary {
        // What is left of that one may hold the port for a moment.
        wait_until(|| TcpListener::bind(address).is_ok(), |is_free| *is_free);
        let listen = address.to_string();
        Binary::start(&[&["--listen", &listen], arguments].concat())
    }

    /// Starts it under a shell that sets a limit first.
    pub fn start_under(limit: &str, arguments: &[&str]) -> Binary {
        let script = format!("{limit} && exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_statecast")]).args(arguments);
        Binary::spawn(&mut command)
    }

    pub fn spawn(command: &mut Command) -> Binary {
        if !command.get_args().any(|argument| argument == "--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut greeting = String::new();
        while !greeting.contains("\n  clients: ") || !greeting.ends_with('\n') {
            if stdout.read_line(&mut greeting).expect("text") == 0 {
                let mut stderr = String::new();
                child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("text");
                panic!("it ended: {greeting}{stderr}");
            }
        }
        let url = greeting.split("http://").nth(1).expect("an address to open");
        let address = url.lines().next().expect("a line").parse().expect("an address");
        Binary { child, address, greeting, _stdout: stdout }
    }

    /// Its memory.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux says so");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    /// Its descriptors, `fd`, or its threads, `task`.
    pub fn count_in(&self, folder: &str) -> usize {
        std::fs::read_dir(format!("/proc/{}/{folder}", self.child.id())).expect("it runs").count()
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for the program to end and returns its exit code and what it logged.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let status = wait_until(|| self.child.try_wait().expect("our child"), Option::is_some);
        let mut stderr = String::new();
        self.child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("text");
        (status.and_then(|status| status.code()), stderr)
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
