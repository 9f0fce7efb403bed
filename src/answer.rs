//! Answers: status, headers and content, written by whoever took the request, patiently but not for ever.

use std::fs::File;
use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use serde_json::Value;
use tiny_http::{HTTPVersion, Header, Response, StatusCode};

use crate::clock::random_between;
use crate::connection::SlowPlace;
use crate::document::{Refusal, to_json};
use crate::event::EventId;
use crate::hub::Full;
use crate::pages::{Content, Page};

/// One answer.
pub(crate) struct Answer {
    pub status: u16,
    headers: Vec<(&'static str, String)>,
    /// `None` for the head of a stream, which has no length.
    content: Option<Content>,
}

/// All of it from here: no inline script, nothing from elsewhere, in nobody's frame.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What a stream's answer says, but for how its bytes are framed.
pub(crate) const STREAM_HEADERS: [(&str, &str); 3] = [
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-store, no-transform"),
    // nginx would keep events back until it has a buffer full of them.
    ("X-Accel-Buffering", "no"),
];

impl Answer {
    pub fn text(content_type: &str, text: String) -> Answer {
        Answer { status: 200, headers: Vec::new(), content: Some(Content::Bytes(text.into_bytes())) }
            .with("Content-Type", content_type)
            .with("Cache-Control", "no-store")
    }

    pub fn json(text: String) -> Answer {
        Answer::text("application/json", text)
    }

    /// What a publisher gets: the event's id.
    pub fn published(id: EventId) -> Answer {
        Answer::json(format!("{{\"id\":\"{id}\"}}"))
    }

    pub fn refusal(status: u16, text: impl Into<String>) -> Answer {
        let text = to_json(&Value::from(text.into()));
        Answer { status, ..Answer::json(format!("{{\"error\":{text}}}")) }
    }

    pub fn unauthorized(text: &str) -> Answer {
        Answer::refusal(401, text).with("WWW-Authenticate", "Bearer")
    }

    /// No room for another client now.
    pub fn full(full: Full) -> Answer {
        let (status, text) = match full {
            Full::Server => (503, "the server has all the clients it can carry; try again later"),
            Full::Address => (429, "this address has all the clients it may have; close one"),
            Full::Stopping => (503, "the server is stopping; try again later"),
        };
        // At random, or all would come back together.
        Answer::refusal(status, text).with("Retry-After", random_between(5, 15).to_string())
    }

    pub fn not_allowed(methods: &str) -> Answer {
        Answer::refusal(405, format!("this path knows {methods}")).with("Allow", methods)
    }

    pub fn empty(status: u16) -> Answer {
        Answer { status, headers: Vec::new(), content: Some(Content::Bytes(Vec::new())) }
    }

    /// What `HEAD` of a stream gets.
    pub fn stream_head() -> Answer {
        let headers = STREAM_HEADERS.map(|(name, value)| (name, value.to_owned())).to_vec();
        Answer { status: 200, headers, content: None }
    }

    /// A page, which the browser keeps but asks about each time.
    pub fn page(page: Page) -> Answer {
        Answer { status: 200, headers: Vec::new(), content: Some(page.content) }
            .with("Content-Type", page.content_type)
            .with("Cache-Control", "no-cache")
            .with("Content-Security-Policy", CONTENT_SECURITY_POLICY)
            .with("X-Content-Type-Options", "nosniff")
            .with("Referrer-Policy", "no-referrer")
            .with("ETag", page.tag)
    }

    /// The same is elsewhere. The browser asks again each time, because a folder can become a file.
    pub fn moved(location: String) -> Answer {
        Answer::empty(301).with("Location", location).with("Cache-Control", "no-cache")
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }

    pub fn with_all(mut self, headers: Vec<(&'static str, String)>) -> Answer {
        self.headers.extend(headers);
        self
    }

    /// This answer, or 304 if the client has it: its tag is in `If-None-Match`.
    pub fn unless(self, if_none_match: Option<&str>) -> Answer {
        let tag = self.headers.iter().find(|(name, _)| *name == "ETag").map(|(_, tag)| tag.clone());
        let is_same = |known: &str| {
            let known = known.trim();
            known == "*" || tag.as_deref() == Some(known.strip_prefix("W/").unwrap_or(known))
        };
        if if_none_match.is_some_and(|known| known.split(',').any(is_same)) {
            Answer { status: 304, content: Some(Content::Bytes(Vec::new())), ..self }
        } else {
            self
        }
    }

    /// Itself for tiny_http.
    pub fn into_response(self) -> Response<Box<dyn Read + Send>> {
        let (content, length): (Box<dyn Read + Send>, _) = match self.content {
            None => (Box::new(io::empty()), None),
            Some(Content::BuiltIn(bytes)) => (Box::new(bytes), Some(bytes.len())),
            Some(Content::Bytes(bytes)) => {
                let length = bytes.len();
                (Box::new(Cursor::new(bytes)), Some(length))
            }
            Some(Content::File { file, length }) => {
                (Box::new(Announced { file, left: length }), usize::try_from(length).ok())
            }
        };
        let server = ("Server", "statecast".to_owned());
        let headers = self.headers.into_iter().chain([server]).map(|(name, value)| {
            Header::from_bytes(name, value).expect("our headers are ASCII: nothing is echoed into them")
        });
        let status = StatusCode(self.status);
        // Chunks only where the length is not known; tiny_http would use them from 32 KiB on.
        Response::new(status, headers.collect(), content, length, None).with_chunked_threshold(usize::MAX)
    }

    /// Writes it whole, or fails.
    pub fn write_to(self, mut writer: Patient, version: HTTPVersion, is_head: bool) -> io::Result<()> {
        // The request's headers are not shown to it: a TE header would choose the encoding (response.rs:121).
        self.into_response().raw_print(&mut writer, version, &[], is_head, None)?;
        writer.flush()
    }
}

/// A file whose length is in the head. If it ends before, or cannot be read, the answer has failed: what comes next on
/// the connection would be taken for the rest of it.
struct Announced {
    file: File,
    left: u64,
}

impl Read for Announced {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&self.file).take(self.left).read(buffer).unwrap_or(0);
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Answer {
        let status = match &refusal {
            Refusal::Invalid(_) => 400,
            Refusal::Absent(_) => 404,
            Refusal::TooLarge(_) => 413,
            Refusal::Stopping => return Answer::full(Full::Stopping),
        };
        Answer::refusal(status, refusal.to_string())
    }
}

/// A writer that goes on where tiny_http's own answers would stop: at a write that takes part or would block.
pub(crate) struct Patient {
    writer: Box<dyn Write + Send>,
    /// Without progress for so long it gives up.
    patience: Duration,
    /// Taken when the peer turns out slow: a few slow peers must not take all threads.
    slow: SlowPlace,
    /// What is left of the time for a slow peer: it grows with what the peer takes.
    until: Option<Instant>,
}

/// Who takes nothing for so long is slow; a large answer alone does not make anybody so.
const SLOW: Duration = Duration::from_millis(250);

/// A slow peer takes at least so many bytes a second.
const SLOWEST: u64 = 8 << 10;

impl Patient {
    pub fn new(writer: Box<dyn Write + Send>, patience: Duration, slow: SlowPlace) -> Patient {
        Patient { writer, patience, slow, until: None }
    }

    fn persist<T>(&mut self, mut attempt: impl FnMut(&mut dyn Write) -> io::Result<T>) -> io::Result<T> {
        let mut blocked_since = None;
        loop {
            match attempt(&mut self.writer) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    // The socket's own send timeout makes this loop wait.
                    let now = Instant::now();
                    let blocked_since = *blocked_since.get_or_insert(now);
                    let until = *self.until.get_or_insert(now + self.patience);
                    let is_slow = now - blocked_since > SLOW;
                    if is_slow && !self.slow.take() || now >= until.min(blocked_since + self.patience) {
                        return Err(ErrorKind::TimedOut.into());
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.persist(|writer| writer.write(bytes))?;
        if let Some(until) = &mut self.until {
            *until += Duration::from_millis(count as u64 * 1_000 / SLOWEST);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.persist(|writer| writer.flush())
    }
}
