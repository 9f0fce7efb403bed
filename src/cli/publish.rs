//! `statecast set` and `statecast send`: data on its way to the server, over one kept-alive connection.
//!
//! The one rule: no line of standard input is lost. A line is sent again until it has an answer, and the next line waits
//! for that.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::thread;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use ureq::Agent;
use ureq::http::header::{CONTENT_TYPE, LOCATION};
use ureq::http::{HeaderValue, Method};

use crate::cli::commands::Task;
use crate::client::http::{Endpoint, agent_config, header, may_pass, refusal_text, retry_after, wait_after};
use crate::document::without_mark;

/// The longest line that is sent. The server would refuse more.
const MAX_LINE_BYTES: usize = 64 << 20;

/// The limit for each read and write.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection is used again: more than a minute, and less than the 75 s that the server keeps it.
const MAX_IDLE: Duration = Duration::from_secs(70);

/// The first wait, after the second try of a line has failed.
const RETRY: Duration = Duration::from_millis(500);

/// Merges into the document, and prints the id of the change, but not the ids of lines. Blocks.
///
/// # Errors
/// Why the data were refused, or could not be sent. For lines, an answer that no other line would change.
pub fn set(task: &Task) -> io::Result<()> {
    publish(task, &Publisher::new(task, task.target.state(), "application/merge-patch+json", true)?)
}

/// Publishes one-off events, and prints the id as `set` does. Blocks.
///
/// # Errors
/// As for `set`.
pub fn send(task: &Task) -> io::Result<()> {
    let name = task.events.first().map_or("message", String::as_str);
    let url = format!("{}?event={}", task.target.events(), utf8_percent_encode(name, NON_ALPHANUMERIC));
    let content_type = if task.json { "application/json" } else { "text/plain; charset=utf-8" };
    publish(task, &Publisher::new(task, url, content_type, false)?)
}

fn publish(task: &Task, publisher: &Publisher) -> io::Result<()> {
    if task.data == "-" {
        return publish_lines(publisher, BufReader::with_capacity(64 << 10, io::stdin().lock()));
    }
    match publisher.try_once(task.data.as_bytes()) {
        Ok(id) => match writeln!(io::stdout(), "{id}") {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        },
        Err(Failure { text, .. }) => Err(publisher.error(&text)),
    }
}

/// Sends each line until it has been answered.
fn publish_lines(publisher: &Publisher, mut input: BufReader<impl Read>) -> io::Result<()> {
    let mut refused: u64 = 0;
    let mut line = Vec::new();
    let mut number: u64 = 0;
    while read_line(&mut input, &mut line)? {
        number += 1;
        // Before JSON a byte order mark means nothing, wherever it came from; a text begins with one at most.
        let may_be_marked = number == 1 || publisher.is_change;
        let data = if may_be_marked { without_mark(&line) } else { &line };
        if data.trim_ascii().is_empty() && publisher.is_change {
            continue;
        }
        let refusal = if line.len() > MAX_LINE_BYTES {
            Some(format!("it has more than {MAX_LINE_BYTES} bytes"))
        } else if std::str::from_utf8(data).is_err() {
            Some("it is not UTF-8".to_owned())
        } else {
            publisher.persist(data, |text| tell(&format!("line {number}: {text}; trying again")))?
        };
        if let Some(text) = refusal {
            refused += 1;
            tell(&format!("line {number} is left out: {text}"));
        }
    }
    match refused {
        0 => Ok(()),
        refused => Err(io::Error::other(format!("{refused} of {number} lines were left out"))),
    }
}

fn tell(text: &str) {
    writeln!(io::stderr(), "statecast: {text}").ok();
}

/// Reads a line without its end, and says whether there was one. Of a line that is too long it keeps one byte more than the
/// limit.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    if input.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.pop_if(|last| *last == b'\n').is_some() {
        line.pop_if(|last| *last == b'\r');
    } else if line.len() > MAX_LINE_BYTES {
        input.skip_until(b'\n')?;
    }
    Ok(true)
}

struct Publisher {
    agent: Agent,
    endpoint: Endpoint,
    url: String,
    /// It sends merge patches of the document, and not events.
    is_change: bool,
}

/// Why data was not published.
struct Failure {
    text: String,
    cause: Cause,
}

enum Cause {
    /// The server does not take these data. It may take others.
    Data,
    /// The server takes no data so.
    Request,
    /// The server is busy or away. It may say how long.
    Moment(Option<Duration>),
}

impl Publisher {
    fn new(task: &Task, url: String, content_type: &'static str, is_change: bool) -> io::Result<Publisher> {
        let init = &task.init;
        let mut endpoint = Endpoint::new(&url, init.token.as_ref(), &init.headers, init.proxy.as_deref())?;
        endpoint.headers.append(CONTENT_TYPE, HeaderValue::from_static(content_type));
        // No limit for resolving a name: ureq would start a thread for each request to keep it.
        let config = agent_config()
            .timeout_per_read(Some(PATIENCE))
            .timeout_per_write(Some(PATIENCE))
            .max_idle_age(MAX_IDLE);
        Ok(Publisher { agent: config.build().into(), endpoint, url, is_change })
    }

    /// Sends data once, and returns the id of the change or event.
    fn try_once(&self, data: &[u8]) -> Result<String, Failure> {
        let method = if self.is_change { Method::PATCH } else { Method::POST };
        let answer = self.endpoint.ask(&self.agent, method, data);
        let mut answer = answer.map_err(|text| Failure { text, cause: Cause::Moment(None) })?;
        let status = answer.status().as_u16();
        if status == 200 {
            // The body must be read for the connection to be kept. Cut, it was still an answer.
            let body = answer.body_mut().read_to_string().unwrap_or_default();
            let json = serde_json::from_str::<Value>(&body).unwrap_or_default();
            return Ok(json["id"].as_str().unwrap_or_default().to_owned());
        }
        let cause = match (retry_after(answer.headers()), status) {
            (None, 400 | 413 | 422) => Cause::Data,
            (None, status) if !may_pass(status) => Cause::Request,
            (time, _) => Cause::Moment(time),
        };
        let why = match header(&answer, LOCATION) {
            Some(location) => format!("the address is {location}"),
            None => refusal_text(&mut answer),
        };
        Err(Failure { text: format!("the answer was {status}: {why}"), cause })
    }

    /// Sends data until there is an answer, and returns why these data were refused, if they were. Tells of each new
    /// kind of failure.
    ///
    /// # Errors
    /// The answer to a request that no other data would make right.
    fn persist(&self, data: &[u8], tell: impl Fn(&str)) -> io::Result<Option<String>> {
        let mut told = String::new();
        let mut failures: u32 = 0;
        loop {
            let (text, retry_after) = match self.try_once(data) {
                Ok(_) => return Ok(None),
                Err(Failure { text, cause: Cause::Data }) => return Ok(Some(text)),
                Err(Failure { text, cause: Cause::Request }) => return Err(self.error(&text)),
                Err(Failure { text, cause: Cause::Moment(time) }) => (text, time),
            };
            // The first try may have met a connection that the server was about to close: the second comes at once.
            if failures > 0 && text != told {
                tell(&text);
                told = text;
            }
            if failures > 0 || retry_after.is_some() {
                thread::sleep(wait_after(failures.saturating_sub(1), retry_after.unwrap_or(RETRY)));
            }
            failures = failures.saturating_add(1);
        }
    }

    fn error(&self, text: &str) -> io::Error {
        io::Error::other(format!("{}: {text}", self.url))
    }
}
