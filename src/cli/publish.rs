//! `get`, `set`, `put`, `rm` and `send`: requests of the command line. Lines go over one kept-alive connection.
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

use crate::cli::commands::{Action, Task};
use crate::client::http::{Endpoint, agent_config, header, may_pass, refusal_text, retry_after, wait_after};
use crate::document::without_mark;

/// The longest line that is sent. The server would refuse more.
const MAX_LINE_BYTES: usize = 64 << 20;

/// How long an answer may take without `--timeout`; of lines, each read and write.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection is used again: more than a minute, and less than the 75 s that the server keeps it.
const MAX_IDLE: Duration = Duration::from_secs(70);

/// The first wait, after the second try of a line has failed.
const RETRY: Duration = Duration::from_millis(500);

/// Reads or changes the document, or publishes events. Prints the document, or the id of the change or event; not the
/// ids of lines. Blocks.
///
/// # Errors
/// Why the server refused, or could not be asked. For lines, an answer that no other line would change.
pub fn ask(task: &Task) -> io::Result<()> {
    let publisher = Publisher::new(task)?;
    if task.data == "-" {
        return publish_lines(&publisher, BufReader::with_capacity(64 << 10, io::stdin().lock()));
    }
    match publisher.try_once(task.data.as_bytes()) {
        Ok(text) => match writeln!(io::stdout(), "{text}") {
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
        let may_be_marked = number == 1 || publisher.is_change();
        let data = if may_be_marked { without_mark(&line) } else { &line };
        if data.trim_ascii().is_empty() && publisher.is_change() {
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
    method: Method,
    limit: Duration,
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
    fn new(task: &Task) -> io::Result<Publisher> {
        let state = || task.target.state();
        let (method, url, content_type) = match task.action {
            Action::Get | Action::Tail => (Method::GET, state(), ""),
            Action::Remove => (Method::DELETE, state(), ""),
            Action::Set => (Method::PATCH, state(), "application/merge-patch+json"),
            Action::Put => (Method::PUT, state(), "application/json"),
            Action::Send => {
                let name = task.events.first().map_or("message", String::as_str);
                let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
                let kind = if task.json { "application/json" } else { "text/plain; charset=utf-8" };
                (Method::POST, format!("{}?event={name}", task.target.events()), kind)
            }
        };
        let init = &task.init;
        let mut endpoint = Endpoint::new(&url, init.token.as_ref(), &init.headers, init.proxy.as_deref())?;
        if !content_type.is_empty() {
            endpoint.headers.append(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        let limit = task.timeout.unwrap_or(PATIENCE);
        let config = agent_config().timeout_connect(Some(limit));
        let config = if task.data == "-" {
            // No limit for resolving a name: ureq would start a thread for each request to keep it.
            config.timeout_per_read(Some(limit)).timeout_per_write(Some(limit)).max_idle_age(MAX_IDLE)
        } else {
            config.timeout_global(Some(limit))
        };
        Ok(Publisher { agent: config.build().into(), endpoint, url, method, limit })
    }

    fn is_change(&self) -> bool {
        self.method != Method::POST
    }

    /// Asks once, and returns the document or the id of the change or event.
    fn try_once(&self, data: &[u8]) -> Result<String, Failure> {
        let failure = |text: String| {
            let is_late = text.starts_with("timeout");
            let late = || format!("no answer within {:?}; --timeout allows more", self.limit);
            Failure { text: if is_late { late() } else { text }, cause: Cause::Moment(None) }
        };
        let is_read = self.method == Method::GET;
        let answer = if is_read {
            self.endpoint.clone().get(&self.agent)
        } else {
            self.endpoint.ask(&self.agent, self.method.clone(), data)
        };
        let mut answer = answer.map_err(failure)?;
        let status = answer.status().as_u16();
        if status == 200 {
            // The body must be read for the connection to be kept.
            let mut body = String::new();
            let read = answer.body_mut().as_reader().read_to_string(&mut body);
            if is_read {
                return read.map(|_| body.trim_end().to_owned()).map_err(|error| failure(error.to_string()));
            }
            // An answer that is cut was still an answer.
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
