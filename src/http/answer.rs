//! Answers: status, headers and content. `server` makes them; nobody else writes a head.
//!
//! The one rule: nothing of a request is echoed into a header.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};

use serde_json::Value;
use tiny_http::StatusCode;

use crate::clock::http_date;
use crate::document::to_json;

/// One answer.
pub(crate) struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub content: Content,
}

/// What an answer consists of.
pub(crate) enum Content {
    Bytes(Vec<u8>),
    BuiltIn(&'static [u8]),
    /// A file, as long as it was when it was opened.
    File {
        file: File,
        length: u64,
    },
    /// An event stream, which has no length.
    Stream,
}

/// The framing of an answer, and what becomes of its connection.
#[derive(Clone, Copy)]
pub(super) struct Framing {
    pub is_http_1_0: bool,
    /// The head alone is asked for.
    pub is_head: bool,
    /// The connection ends with the answer.
    pub is_last: bool,
}

impl Answer {
    pub fn text(content_type: &str, text: String) -> Answer {
        Answer { status: 200, headers: Vec::new(), content: Content::Bytes(text.into_bytes()) }
            .with("Content-Type", content_type)
            .with("Cache-Control", "no-store")
    }

    /// JSON, and the line end that a terminal needs.
    pub fn json(mut text: String) -> Answer {
        text.reserve_exact(1);
        text.push('\n');
        Answer::text("application/json", text)
    }

    /// Says in JSON what was wrong, and what would be right.
    pub fn refusal(status: u16, text: impl Into<String>) -> Answer {
        let text = to_json(&Value::from(text.into()));
        Answer { status, ..Answer::json(format!("{{\"error\":{text}}}")) }
    }

    /// What a refusal says.
    pub fn reason(&self) -> String {
        let Content::Bytes(bytes) = &self.content else { return String::new() };
        let json: Value = serde_json::from_slice(bytes).unwrap_or_default();
        json["error"].as_str().unwrap_or_default().to_owned()
    }

    pub fn empty(status: u16) -> Answer {
        Answer { status, headers: Vec::new(), content: Content::Bytes(Vec::new()) }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }

    pub fn with_all(mut self, headers: Vec<(&'static str, String)>) -> Answer {
        self.headers.extend(headers);
        self
    }

    /// The head as it goes over the wire.
    pub(super) fn head(&self, framing: Framing) -> Vec<u8> {
        let mut head = Vec::with_capacity(512);
        let mut put = |parts: &[&str]| parts.iter().for_each(|part| head.extend_from_slice(part.as_bytes()));
        let version = if framing.is_http_1_0 { "HTTP/1.0 " } else { "HTTP/1.1 " };
        let reason = StatusCode(self.status).default_reason_phrase();
        put(&[version, &self.status.to_string(), " ", reason, "\r\n"]);
        if !matches!(self.content, Content::Stream) {
            put(&["Server: statecast\r\nDate: ", &http_date(), "\r\n"]);
        }
        for (name, value) in &self.headers {
            put(&[name, ": ", value, "\r\n"]);
        }
        match self.length() {
            // They have none, and a length would be that of another answer (RFC 9110, 8.6).
            _ if matches!(self.status, 204 | 304) => {}
            Some(length) => put(&["Content-Length: ", &length.to_string(), "\r\n"]),
            None if framing.is_http_1_0 => {}
            None => put(&["Transfer-Encoding: chunked\r\n"]),
        }
        if framing.is_last {
            put(&["Connection: close\r\n"]);
        }
        put(&["\r\n"]);
        head
    }

    /// Writes it whole, or fails.
    pub(super) fn write_to(self, writer: &mut impl Write, framing: Framing) -> io::Result<()> {
        /// What is not worth a write of its own.
        const SMALL: usize = 16 << 10;
        let mut head = self.head(framing);
        let in_memory: &[u8] = match &self.content {
            Content::Bytes(bytes) if !framing.is_head => bytes,
            Content::BuiltIn(bytes) if !framing.is_head => bytes,
            _ => &[],
        };
        if in_memory.len() <= SMALL {
            head.extend_from_slice(in_memory);
            writer.write_all(&head)?;
        } else {
            writer.write_all(&head)?;
            writer.write_all(in_memory)?;
        }
        if let Content::File { file, length } = self.content
            && !framing.is_head
        {
            io::copy(&mut Announced { file, left: length }, writer)?;
        }
        writer.flush()
    }

    /// The whole of the last answer of a connection, for content that is in memory.
    pub(super) fn last_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let framing = Framing { is_http_1_0: false, is_head: false, is_last: true };
        self.write_to(&mut bytes, framing).expect("writing to a Vec cannot fail");
        bytes
    }

    fn length(&self) -> Option<u64> {
        match &self.content {
            Content::Bytes(bytes) => Some(bytes.len() as u64),
            Content::BuiltIn(bytes) => Some(bytes.len() as u64),
            Content::File { length, .. } => Some(*length),
            Content::Stream => None,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn head(answer: &Answer, is_http_1_0: bool, is_last: bool) -> String {
        let framing = Framing { is_http_1_0, is_head: false, is_last };
        let head = String::from_utf8(answer.head(framing)).expect("a head is text");
        head.lines().filter(|line| !line.starts_with("Date: ")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_head_says_how_long_its_content_is_and_whether_more_may_follow() {
        let json = || Answer { headers: Vec::new(), ..Answer::json("{}".into()) };
        assert_eq!(head(&json(), false, false), "HTTP/1.1 200 OK\nServer: statecast\nContent-Length: 3\n");
        let closing = "HTTP/1.0 200 OK\nServer: statecast\nContent-Length: 3\nConnection: close\n";
        assert_eq!(head(&json(), true, true), closing);
        let stream = Answer { content: Content::Stream, ..json() };
        let chunked = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n";
        assert_eq!(head(&stream, false, false), chunked);
        assert_eq!(head(&stream, true, true), "HTTP/1.0 200 OK\nConnection: close\n");
        for status in [204, 304] {
            assert!(!head(&Answer::empty(status), false, false).contains("Length"), "{status}");
        }
    }
}
