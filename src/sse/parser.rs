//! Bytes as events: the `text/event-stream` of WHATWG HTML, section 9.2.6, read in any pieces.
//!
//! `event_source` feeds it the bytes of a connection. The one rule: it never holds more than it was told. A line without
//! an end is an error, and takes no more memory.

use std::fmt;

/// The default bound of an [`Event`] in bytes, with name, id and data: 16 MiB.
pub const MAX_EVENT_BYTES: usize = 16 << 20;

/// An event as an `EventSource` dispatches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The wire's `event:` field, the browser's `type`; `message` where the stream names none.
    pub name: String,
    /// The lines of `data:`, with LF between them.
    pub data: String,
    /// The browser's `lastEventId`: the `id:` of this event, else that of the last one before it; empty for none.
    pub id: String,
}

/// An event or a line is larger than the parser may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// The bound in bytes.
    pub max_event_bytes: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an event has more than {} bytes", self.max_event_bytes)
    }
}

impl std::error::Error for TooLarge {}

/// A reader of one event stream.
///
/// ```
/// let mut parser = statecast::Parser::new();
/// let mut bytes = &b": a comment\nid: 7\r\ndata: a\rdata: b\n\ndata: half"[..];
/// let event = parser.next(&mut bytes)?.unwrap();
/// assert_eq!((event.name.as_str(), event.data.as_str(), event.id.as_str()), ("message", "a\nb", "7"));
/// assert_eq!(parser.next(&mut bytes)?, None);
/// assert_eq!(parser.next(&mut &b" a line\n\n"[..])?.unwrap().data, "half a line");
/// # Ok::<(), statecast::TooLarge>(())
/// ```
#[derive(Clone, Debug)]
pub struct Parser {
    /// The line that has no end yet.
    line: Vec<u8>,
    name: String,
    /// Each line with an LF behind it; the last one goes when the event is dispatched.
    data: String,
    id: String,
    last_event_id: String,
    reconnection_time_ms: Option<u64>,
    /// A byte order mark may come before the first line.
    is_first_line: bool,
    /// The last line ended in CR: an LF that comes now belongs to it.
    after_cr: bool,
    max_event_bytes: usize,
}

impl Default for Parser {
    fn default() -> Parser {
        Parser::new()
    }
}

impl Parser {
    /// A parser for a new stream, with [`MAX_EVENT_BYTES`].
    #[must_use]
    pub fn new() -> Parser {
        Parser::resume(String::new(), MAX_EVENT_BYTES)
    }

    /// A parser for a stream that goes on after an event. Events without an `id:` have `last_event_id`, as in browsers. It
    /// holds at most `max_event_bytes` of an event and the line that is being read.
    #[must_use]
    pub fn resume(last_event_id: String, max_event_bytes: usize) -> Parser {
        Parser {
            line: Vec::new(),
            name: String::new(),
            data: String::new(),
            id: last_event_id.clone(),
            last_event_id,
            reconnection_time_ms: None,
            is_first_line: true,
            after_cr: false,
            max_event_bytes,
        }
    }

    /// Begins a new stream that goes on after an event. The reconnection time stays.
    pub(crate) fn restart(&mut self, last_event_id: String) {
        let reconnection_time_ms = self.reconnection_time_ms;
        *self = Parser { reconnection_time_ms, ..Parser::resume(last_event_id, self.max_event_bytes) };
    }

    /// Takes bytes from the front, up to the end of the next event. `None` when all are taken and more are needed. An event
    /// is complete with its empty line. A stream that ends before that has no such event.
    ///
    /// # Errors
    /// An event is larger than the bound. The stream cannot go on.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Event>, TooLarge> {
        loop {
            if self.after_cr && !bytes.is_empty() {
                self.after_cr = false;
                *bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            let held = self.line.len() + self.name.len() + self.data.len() + self.id.len();
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if held + part.len() > self.max_event_bytes {
                return Err(TooLarge { max_event_bytes: self.max_event_bytes });
            }
            let Some((line_end, rest)) = rest.split_first() else {
                self.line.extend_from_slice(part);
                *bytes = rest;
                return Ok(None);
            };
            self.after_cr = *line_end == b'\r';
            *bytes = rest;
            let event = if self.line.is_empty() {
                self.end_line(part)
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(part);
                self.end_line(&line)
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// The id of the last complete event, with or without data. Empty for none.
    #[must_use]
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// The last `retry:`, in milliseconds. It counts before its event is complete.
    #[must_use]
    pub fn reconnection_time_ms(&self) -> Option<u64> {
        self.reconnection_time_ms
    }

    fn end_line(&mut self, line: &[u8]) -> Option<Event> {
        let line = if std::mem::take(&mut self.is_first_line) {
            line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line)
        } else {
            line
        };
        if line.is_empty() {
            return self.dispatch();
        }
        // No letter of UTF-8 reaches across a line end, so the stream can be decoded by lines.
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                // More digits than fit are a long time all the same.
                self.reconnection_time_ms = Some(value.parse().unwrap_or(u64::MAX));
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Event> {
        self.last_event_id.clone_from(&self.id);
        let name = std::mem::take(&mut self.name);
        let mut data = std::mem::take(&mut self.data);
        // Without any data line there is no event; one that is empty makes one.
        data.pop()?;
        let name = if name.is_empty() { "message".to_owned() } else { name };
        Some(Event { name, data, id: self.id.clone() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sse::event::{EventId, EventName, write_event};

    fn event(name: &str, data: &str, id: &str) -> Event {
        Event { name: name.into(), data: data.into(), id: id.into() }
    }

    /// Feeds the pieces, one after the other.
    fn parse<'a>(parser: &mut Parser, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
        let mut events = Vec::new();
        for mut piece in pieces {
            while let Some(event) = parser.next(&mut piece).unwrap() {
                events.push(event);
            }
            assert_eq!(piece, b"", "all was taken");
        }
        events
    }

    fn parse_text(text: &[u8]) -> Vec<Event> {
        parse(&mut Parser::new(), [text])
    }

    #[test]
    fn a_stream_is_interpreted_as_the_standard_says() {
        let message = |data: &str| event("message", data, "");
        let table: &[(&[u8], Vec<Event>)] = &[
            // The examples of the standard.
            (
                b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
                vec![
                    event("message", "first event", "1"),
                    message("second event"),
                    message(" third event"),
                ],
            ),
            (b"data\n\ndata\ndata\n\ndata:", vec![message(""), message("\n")]),
            (b"data:test\n\ndata: test\n\n", vec![message("test"), message("test")]),
            (b"data: YHOO\ndata: +2\ndata: 10\n\n", vec![message("YHOO\n+2\n10")]),
            // Line ends.
            (b"data: a\rdata: b\r\rdata: c\r\n\r\n", vec![message("a\nb"), message("c")]),
            (b"data: a\n\r\n\rdata: b\r\n\n", vec![message("a"), message("b")]),
            (b"\r\n\r\n\n\rdata: a\n\n", vec![message("a")]),
            // A byte order mark, once and at the start alone.
            (b"\xef\xbb\xbfdata: a\n\n", vec![message("a")]),
            (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", vec![]),
            (b"\n\xef\xbb\xbfdata: a\n\n", vec![]),
            (b"\xef\xbb\xbf\ndata: a\n\n", vec![message("a")]),
            // Comments, unknown fields, fields with a space, an upper case letter or none at all.
            (b":\n:data: a\nfoo: b\nfoo\ndata : c\nData: d\n data: e\n\n", vec![]),
            (b"data: a:b\n\n", vec![message("a:b")]),
            (b"data:\ta\n\n", vec![message("\ta")]),
            // Names.
            (b"event: a\ndata: 1\n\ndata: 2\n\n", vec![event("a", "1", ""), message("2")]),
            (b"event: a\nevent: b\ndata\n\n", vec![event("b", "", "")]),
            (b"event: a\nevent\ndata\n\n", vec![message("")]),
            (b"event: a\n\ndata\n\n", vec![message("")]),
            // Ids: kept until the next, emptied by an empty one, not changed by one with NUL.
            (
                b"id: 1\ndata\n\ndata\n\nid\ndata\n\n",
                vec![event("message", "", "1"), event("message", "", "1"), message("")],
            ),
            (b"id: 1\ndata\n\nid: 2\0\ndata\n\n", vec![event("message", "", "1"), event("message", "", "1")]),
            (b"id: 1\n\ndata\n\n", vec![event("message", "", "1")]),
            // What has no empty line behind it is no event.
            (b"data: a", vec![]),
            (b"data: a\n", vec![]),
            (b"data: a\n\ndata: b\n", vec![message("a")]),
            // Not UTF-8.
            (b"data: \xff\xc3\n\ndata: \xe2\x82\n\n", vec![message("\u{fffd}\u{fffd}"), message("\u{fffd}")]),
            (b"event: \xff\nid: \xfe\ndata\n\n", vec![event("\u{fffd}", "", "\u{fffd}")]),
            (b"data: \0\n\n", vec![message("\0")]),
        ];
        for (text, events) in table {
            assert_eq!(parse_text(text), *events, "{:?}", text.escape_ascii().to_string());
            for split in 0..=text.len() {
                let (one, other) = text.split_at(split);
                let parts = parse(&mut Parser::new(), [one, other]);
                assert_eq!(parts, *events, "{:?}, {:?}", one.escape_ascii(), other.escape_ascii());
            }
            assert_eq!(parse(&mut Parser::new(), text.chunks(1)), *events, "byte by byte");
        }
    }

    #[test]
    fn retry_is_digits_only() {
        let table = [
            ("retry: 2417\n", Some(2_417)),
            ("retry:0\n", Some(0)),
            ("retry: 007\r", Some(7)),
            ("retry: 99999999999999999999\n", Some(u64::MAX)),
            ("retry: 5\nretry: x\n", Some(5)),
            ("retry\n", None),
            ("retry: \n", None),
            ("retry: -1\n", None),
            ("retry: +1\n", None),
            ("retry: 1.5\n", None),
            ("retry:  1\n", None),
            ("retry: 1 \n", None),
            ("retry: \u{661}\n", None),
            ("retry: 1", None),
        ];
        for (text, time) in table {
            let mut parser = Parser::new();
            assert_eq!(parse(&mut parser, [text.as_bytes()]), []);
            assert_eq!(parser.reconnection_time_ms(), time, "{text:?}");
        }
    }

    #[test]
    fn an_id_counts_when_its_event_is_complete() {
        let mut parser = Parser::resume("1".into(), MAX_EVENT_BYTES);
        assert_eq!(parse(&mut parser, [&b"data\n\nid: 2\n"[..]]), [event("message", "", "1")]);
        assert_eq!(parser.last_event_id(), "1");
        parse(&mut parser, [&b"\n"[..]]);
        assert_eq!(parser.last_event_id(), "2");
    }

    #[test]
    fn what_does_not_end_is_an_error_at_the_bound_and_not_later() {
        let table: [(&[u8], &[u8]); 5] = [
            (b"", b"x"),
            (b"", b":"),
            (b"data: ", b"x"),
            (b"", b"data: xxxxxxxxx\n"),
            (b"event: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n", b"data: x\r\n"),
        ];
        for (start, endless) in table {
            let mut parser = Parser::resume(String::new(), 100);
            parse(&mut parser, [start]);
            let mut fed = start.len();
            while parser.next(&mut &endless[..]) == Ok(None) {
                fed += endless.len();
                let held = parser.line.len() + parser.name.len() + parser.data.len() + parser.id.len();
                assert!(held <= 100 && fed < 1_000, "{held} held of {fed}");
            }
            assert!(fed >= 90, "refused at {fed}");
            let mut parser = Parser::resume(String::new(), 100);
            let whole = [start, &endless.repeat(1_000)].concat();
            assert_eq!(parser.next(&mut &whole[..]), Err(TooLarge { max_event_bytes: 100 }));
        }
        let mut parser = Parser::resume(String::new(), 100);
        let small = b"event: a\nid: 1\ndata: 1234567890\n\n".repeat(1_000);
        assert_eq!(parse(&mut parser, [&small[..]]).len(), 1_000, "the bound is an event's, not a stream's");
    }

    /// The standard's own words, over a whole stream at once.
    fn model(stream: &[u8]) -> Vec<Event> {
        let text = String::from_utf8_lossy(stream).into_owned();
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text).replace("\r\n", "\n").replace('\r', "\n");
        let mut events = Vec::new();
        let (mut name, mut data, mut id) = (String::new(), String::new(), String::new());
        // What is behind the last line end is no line.
        let lines: Vec<&str> = text.split('\n').collect();
        for line in &lines[..lines.len() - 1] {
            if line.is_empty() {
                if let Some(data) = data.strip_suffix('\n') {
                    let name = if name.is_empty() { "message" } else { &name };
                    events.push(event(name, data, &id));
                }
                (name, data) = (String::new(), String::new());
                continue;
            }
            let (field, value) = match line.find(':') {
                Some(colon) => (&line[..colon], &line[colon + 1..]),
                None => (*line, ""),
            };
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => name = value.to_owned(),
                "data" => data = data + value + "\n",
                "id" if !value.contains('\0') => id = value.to_owned(),
                _ => {}
            }
        }
        events
    }

    /// Cuts a stream where the numbers say.
    fn pieces<'a>(mut stream: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        for length in lengths {
            let (piece, rest) = stream.split_at((*length).min(stream.len()));
            pieces.push(piece);
            stream = rest;
        }
        pieces.push(stream);
        pieces
    }

    /// Streams of what matters to a parser, more often than chance would have it.
    fn streams() -> impl Strategy<Value = Vec<u8>> {
        let words: Vec<&[u8]> = vec![
            b"data",
            b"data: ",
            b"event: ",
            b"id: ",
            b"retry: 5",
            b":",
            b" ",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"\0",
            b"\xef\xbb\xbf",
            b"\xff",
            b"\xe2\x82",
            "ä€𝄞".as_bytes(),
            b"x",
        ];
        prop::collection::vec(prop::sample::select(words), 0..40).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn any_stream_is_what_the_model_makes_of_it(
            stream in streams(),
            lengths in prop::collection::vec(0..9_usize, 0..40),
        ) {
            prop_assert_eq!(parse(&mut Parser::new(), pieces(&stream, &lengths)), model(&stream));
        }

        #[test]
        fn what_was_encoded_is_what_is_parsed_at_every_split(
            events in prop::collection::vec(("[A-Za-z0-9_-]{1,9}", "(?s)[\\x00\r\n :a-cä€]{0,20}"), 1..4),
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (number, (name, data)) in (0_u64..).zip(&events) {
                // No name of the server's own begins so.
                let (id, name) = (EventId::first(number, 0), format!("x{name}"));
                write_event(&mut stream, Some(id), &EventName::parse(&name).unwrap(), data);
                // Every kind of line end is one LF when it comes back.
                let data = data.replace("\r\n", "\n").replace('\r', "\n");
                expected.push(event(&name, &data, &id.to_string()));
            }
            for split in 0..=stream.len() {
                let (one, other) = stream.split_at(split);
                prop_assert_eq!(&parse(&mut Parser::new(), [one, other]), &expected);
            }
        }
    }
}
