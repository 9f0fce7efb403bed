//! Clients that others wrote, in Python and JavaScript: each reads a stream from `hello` to a server's stop, and dispatches
//! what was published and no more.
//!
//! `cargo test --test clients -- --include-ignored`; `tests/all` installs them first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::{BufRead, BufReader, Lines, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::json;
use support::*;

/// A client that reads `/events`, in a process of its own.
struct Reader {
    name: &'static str,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Reader {
    fn start(name: &'static str, mut command: Command, address: SocketAddr) -> Reader {
        command.args([name, &format!("http://{address}/events")]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{name}: {error}; tests/all installs it"));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Reader { name, child, lines }
    }

    /// The next event: its name, its data and the id that the client has after it.
    fn next(&mut self) -> (String, String, String) {
        let Some(line) = self.lines.next() else {
            let mut text = String::new();
            self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            panic!("{} ended or was silent for too long (tests/all installs it): {text}", self.name);
        };
        let line = line.unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {error} in {line}", self.name))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        signal(&self.child, "TERM");
        self.child.wait().ok();
    }
}

/// Runs a program that ends when it takes too long.
fn bounded(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args([&DEADLINE.as_secs().to_string(), program]);
    command
}

/// `folder` is where the package is, below `target`: two of them have the same name.
fn python(folder: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = bounded("python3");
    command.env("PYTHONPATH", root.join("target").join(folder)).arg(root.join("tests/clients/read.py"));
    command
}

fn node() -> Command {
    let mut command = bounded("node");
    // What is imported by a script that is no file is looked for from here.
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("target"));
    command.args(["--input-type=module", "--eval", include_str!("clients/read.mjs"), "--"]);
    command
}

/// What each client has to dispatch: text beyond ASCII and all, and nothing that is empty.
fn reads_the_stream(name: &'static str, command: Command) {
    let document = json!({"size": "21,5 °C – größer 日本語 😀"});
    let server = start_with(|config| config.heartbeat = 100 * DEADLINE);
    let address = server.address();
    let first = put(address, "/state", &document.to_string());
    let mut reader = Reader::start(name, command, address);
    let (event, data, _) = reader.next();
    assert!(event == "hello" && data.starts_with(r#"{"client":1,"#), "{name}: {event} {data}");
    let of = |event: &str, data: &str, id: String| (event.to_owned(), data.to_owned(), id);
    assert_eq!(reader.next(), of("init", &document.to_string(), first.to_string()), "{name}");
    let id = put(address, "/state/ort", r#""Zürich""#);
    assert_eq!(reader.next(), of("update", r#"{"ort":"Zürich"}"#, id.to_string()), "{name}");
    let id = post(address, "/events?event=alert", "der Kessel\npfeift ♨");
    assert_eq!(reader.next(), of("alert", "der Kessel\npfeift ♨", id.to_string()), "{name}");
    server.stop().unwrap();
    let (event, data, _) = reader.next();
    assert!(event == "heartbeat" && data.parse::<u64>().is_ok(), "{name}: {event} {data}");
}

macro_rules! clients {
    ($($test:ident: $name:literal, $command:expr;)*) => {$(
        #[test]
        #[ignore = "needs Python, Node.js and clients: tests/all installs them"]
        fn $test() {
            reads_the_stream($name, $command);
        }
    )*};
}

clients! {
    urllib_reads_a_stream: "urllib", python("python");
    requests_reads_a_stream: "requests", python("python");
    httpx_reads_a_stream: "httpx", python("python");
    httpx_sse_reads_a_stream: "httpx-sse", python("python");
    sseclient_reads_a_stream: "sseclient", python("python-sseclient");
    sseclient_py_reads_a_stream: "sseclient-py", python("python");
    requests_sse_reads_a_stream: "requests-sse", python("python");
    aiohttp_sse_client_reads_a_stream: "aiohttp-sse-client", python("python");
    launchdarklys_python_client_reads_a_stream: "launchdarkly-eventsource", python("python");
    nodes_fetch_reads_a_stream: "fetch", node();
    eventsource_2_reads_a_stream: "eventsource-2", node();
    eventsource_reads_a_stream: "eventsource", node();
    eventsource_parser_reads_a_stream: "eventsource-parser", node();
    eventsource_client_reads_a_stream: "eventsource-client", node();
    launchdarklys_javascript_client_reads_a_stream: "launchdarkly-eventsource", node();
    fetch_event_source_reads_a_stream: "fetch-event-source", node();
}
