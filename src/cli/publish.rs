//! `statecast set` and `statecast send`: data on its way to the server, over one kept-alive connection.
//!
//! The one rule: of standard input nothing is lost. A line is sent again until it has an answer, and the next one is not
//! sent before.

use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use ureq::{Agent, Proxy};

use crate::cli::commands::Client;
use crate::client::event_source::{agent_config, may_pass, refusal_text, retry_after, wait_after};
use crate::client::proxy::{failure, proxy_for};
use crate::client::url::{check_url, invalid};
use crate::document::without_mark;

/// A line with more is refused without asking the server: there is memory for it, but no use.
const MAX_LINE_BYTES: usize = 64 << 20;

/// For each read and write.
const PATIENCE: Duration = Duration::from_secs(10);

/// Less than the server keeps an idle connection (75 s), and more than a minute.
const MAX_IDLE: Duration = Duration::from_secs(70);

/// The first wait of a line whose second try has failed, too.
const RETRY: Duration = Duration::from_millis(500);

/// Between two looks at the progress.
const PROGRESS: Duration = Duration::from_millis(100);

/// Merges into the document, and prints the id of each change but those of standard input. Blocks.
///
/// # Errors
/// Why it was refused, or could not be sent; with standard input, what the server will never take.
pub fn set(client: &Client) -> io::Result<()> {
    publish(client, &Publisher::new(client, client.target.state(), "application/merge-patch+json", true)?)
}

/// Publishes one-off events, and prints their ids as `set` does. Blocks.
///
/// # Errors
/// As for `set`.
pub fn send(client: &Client) -> io::Result<()> {
    let name = client.events.first().map_or("message", String::as_str);
    let url = format!("{}?event={}", client.target.events(), utf8_percent_encode(name, NON_ALPHANUMERIC));
    let content_type = if client.json { "application/json" } else { "text/plain; charset=utf-8" };
    publish(client, &Publisher::new(client, url, content_type, false)?)
}

fn publish(client: &Client, publisher: &Publisher) -> io::Result<()> {
    if client.data == "-" {
        return publish_lines(publisher, BufReader::with_capacity(64 << 10, io::stdin().lock()));
    }
    match publisher.try_once(client.data.as_bytes()) {
        Answer::Accepted(id) => match writeln!(io::stdout(), "{id}") {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        },
        Answer::Refused { text, .. } | Answer::Away { text, .. } => {
            Err(io::Error::other(format!("{}: {text}", publisher.url)))
        }
    }
}

/// Sends each line until it has been answered.
fn publish_lines(publisher: &Publisher, mut input: BufReader<impl Read>) -> io::Result<()> {
    let mut progress = Progress { is_shown: io::stderr().is_terminal(), sent: 0, refused: 0, shown: None };
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
            publisher.persist(data, |text| progress.tell(&format!("line {number}: {text}; trying again")))?
        };
        match refusal {
            None => progress.sent += 1,
            Some(text) => {
                progress.refused += 1;
                progress.tell(&format!("line {number} is left out: {text}"));
            }
        }
        progress.show(input.buffer().is_empty());
    }
    progress.end();
    match progress.refused {
        0 => Ok(()),
        refused => Err(io::Error::other(format!("{refused} of {number} lines were left out"))),
    }
}

/// Reads a line without its end, or one that is too long as far as one byte beyond the limit. `false`: there is none.
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
    url: String,
    /// What fails on the way there fails at this one.
    proxy: Option<Proxy>,
    content_type: &'static str,
    headers: Vec<(String, String)>,
    /// A change: `PATCH`, and a blank line is none. Else an event: `POST`, and a blank line is one.
    is_change: bool,
}

/// What became of one try.
enum Answer {
    /// The id.
    Accepted(String),
    Refused {
        status: u16,
        text: String,
    },
    /// No answer, or one that speaks of the moment; and when to try again, if it says.
    Away {
        text: String,
        retry_after: Option<Duration>,
    },
}

impl Publisher {
    fn new(
        client: &Client,
        url: String,
        content_type: &'static str,
        is_change: bool,
    ) -> io::Result<Publisher> {
        let proxy = proxy_for(&check_url(&url)?, client.proxy.0.as_deref()).map_err(invalid)?;
        // No limit for resolving a name: ureq would start a thread for each request to keep it.
        let config = agent_config()
            .proxy(proxy.clone())
            .timeout_per_read(Some(PATIENCE))
            .timeout_per_write(Some(PATIENCE))
            .max_idle_age(MAX_IDLE);
        let mut headers = client.headers.0.clone();
        headers.extend(client.token.as_ref().map(|token| ("Authorization".to_owned(), token.bearer())));
        Ok(Publisher { agent: config.build().into(), url, proxy, content_type, headers, is_change })
    }

    fn try_once(&self, body: &[u8]) -> Answer {
        let agent = &self.agent;
        let request = if self.is_change { agent.patch(&self.url) } else { agent.post(&self.url) };
        let request = request.content_type(self.content_type);
        let request = self.headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        let mut answer = match request.send(body) {
            Ok(answer) => answer,
            Err(error) => {
                return Answer::Away { text: failure(error, self.proxy.as_ref()), retry_after: None };
            }
        };
        let status = answer.status().as_u16();
        if status == 200 {
            // The body must be read for the connection to be kept. Cut, it was still an answer.
            let body = answer.body_mut().read_to_string().unwrap_or_default();
            let id = serde_json::from_str::<Value>(&body).ok();
            return Answer::Accepted(
                id.and_then(|id| id["id"].as_str().map(str::to_owned)).unwrap_or_default(),
            );
        }
        let retry_after = retry_after(answer.headers());
        let location = answer.headers().get("Location").and_then(|location| location.to_str().ok());
        let text = match location.map(str::to_owned) {
            Some(location) => format!("the answer was {status}: the address is {location}"),
            None => format!("the answer was {status}: {}", refusal_text(&mut answer)),
        };
        if retry_after.is_some() || may_pass(status) {
            Answer::Away { text, retry_after }
        } else {
            Answer::Refused { status, text }
        }
    }

    /// Sends until there is an answer; returns why the data was refused, if it was. Tells of each new kind of failure.
    ///
    /// # Errors
    /// The answer to a request that no other data would make right.
    fn persist(&self, body: &[u8], mut tell: impl FnMut(&str)) -> io::Result<Option<String>> {
        let mut told = String::new();
        for failures in 0_u32.. {
            let (text, retry_after) = match self.try_once(body) {
                Answer::Accepted(_) => return Ok(None),
                Answer::Refused { status: 400 | 413 | 422, text } => return Ok(Some(text)),
                Answer::Refused { text, .. } => {
                    return Err(io::Error::other(format!("{}: {text}", self.url)));
                }
                Answer::Away { text, retry_after } => (text, retry_after),
            };
            // The first try may have met a connection that the server was about to close: the second comes at once.
            if failures > 0 && text != told {
                tell(&text);
                told = text;
            }
            if failures > 0 || retry_after.is_some() {
                thread::sleep(wait_after(failures.saturating_sub(1), retry_after.unwrap_or(RETRY)));
            }
        }
        unreachable!("a wait of half a second and more does not end {} times", u32::MAX)
    }
}

/// Counts, for a terminal.
struct Progress {
    is_shown: bool,
    sent: u64,
    refused: u64,
    shown: Option<Instant>,
}

impl Progress {
    /// Shows the counts, if they were not just shown or if nothing more comes soon.
    fn show(&mut self, is_idle: bool) {
        if self.is_shown && (is_idle || self.shown.is_none_or(|shown| shown.elapsed() > PROGRESS)) {
            write!(io::stderr(), "\r{} sent, {} left out ", self.sent, self.refused).ok();
            self.shown = Some(Instant::now());
        }
    }

    /// A line of text, in place of the counts.
    fn tell(&self, text: &str) {
        let start = if self.is_shown { "\r\x1b[K" } else { "" };
        writeln!(io::stderr(), "{start}statecast: {text}").ok();
    }

    fn end(&mut self) {
        self.show(true);
        if self.is_shown {
            writeln!(io::stderr()).ok();
        }
    }
}
