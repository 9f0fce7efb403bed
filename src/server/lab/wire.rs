//! The faulty wire: takes the hub's events, does to them what is switched on, and chunks them anew.
//!
//! The hub writes to it as to any other wire, so it never waits. The one rule: it takes whole writes, and passes on
//! what became of one before it takes the next.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::hub::client::Arrival;
use crate::server::lab::{Fault, Lab};
use crate::wire::Wire;

/// Bytes that drip in one go. The rest waits for the next visit of the catch-up thread.
const DRIPS: usize = 256;

/// The last chunk of HTTP.
const LAST_CHUNK: &str = "0\r\n\r\n";

/// The half of an event that a cut leaves behind. Its id was never issued: a client that resumes with it took it too
/// early.
const HALF_AN_EVENT: &str = "id: 0-0\nevent: update\ndata: {\"this event\":\"was c";

pub(super) struct FaultyWire {
    wire: Box<dyn Wire>,
    lab: Arc<Lab>,
    address: SocketAddr,
    chunked: bool,
    /// The length of the HTTP head, which comes first; 0 once it was taken.
    head: usize,
    /// The first event gets a byte order mark.
    begins_with_mark: bool,
    /// How many events were taken.
    count: usize,
    /// Whole events that are not in chunks yet.
    events: VecDeque<u8>,
    /// The last chunk follows the events.
    has_ended: bool,
    /// Bytes that are on their way: the head, and chunks.
    bytes: VecDeque<u8>,
}

impl FaultyWire {
    /// The new client, with this wire before its own.
    pub fn wrap(arrival: Arrival, lab: Arc<Lab>, begins_with_mark: bool) -> Arrival {
        let wire = FaultyWire {
            wire: arrival.wire,
            lab,
            address: arrival.address,
            chunked: arrival.chunked,
            head: arrival.head.len(),
            begins_with_mark,
            count: 0,
            events: VecDeque::new(),
            has_ended: false,
            bytes: VecDeque::new(),
        };
        Arrival { wire: Box::new(wire), ..arrival }
    }

    fn fault(&self) -> Option<Fault> {
        self.lab.fault_of(self.address)
    }

    /// Takes what the hub wrote: the head, and whole events.
    fn take(&mut self, written: &[u8]) {
        let (head, rest) = written.split_at(mem::take(&mut self.head));
        self.bytes.extend(head);
        let rest = std::str::from_utf8(rest).expect("whole events are text");
        let fault = self.fault();
        // CRLF is HTTP's, because no event of the hub has a CR. What is left between are events, and lengths of chunks.
        for events in rest.split("\r\n").filter(|part| part.ends_with("\n\n")) {
            events.split_inclusive("\n\n").for_each(|event| self.take_event(event, fault));
        }
        // A client that is cut off never sees the last chunk.
        self.has_ended |= rest.ends_with(LAST_CHUNK) && fault != Some(Fault::Cut);
    }

    fn take_event(&mut self, mut event: &str, fault: Option<Fault>) {
        self.count += 1;
        if mem::take(&mut self.begins_with_mark) {
            self.events.extend("\u{feff}".as_bytes());
            // A client that does not know the mark loses the line behind it, and would not miss this one.
            if event.starts_with("retry: ") {
                event = event.split_once('\n').map_or(event, |(_, rest)| rest);
            }
        }
        let became = match fault {
            // Not the last heartbeat, which begins with the time to come back.
            Some(Fault::SwallowHeartbeats) if event.starts_with("event: heartbeat\n") => return,
            Some(Fault::Comments) => with_comments(event),
            Some(Fault::OddFraming) => odd(event, self.count),
            _ => event.to_owned(),
        };
        self.events.extend(became.as_bytes());
    }

    /// Sends what was taken, as far as the fault and the socket let it.
    fn push(&mut self) -> io::Result<()> {
        for _ in 0..DRIPS {
            if self.is_held() {
                break;
            }
            while !self.bytes.is_empty() {
                match self.wire.write(self.bytes.as_slices().0)? {
                    0 => return Err(ErrorKind::WriteZero.into()),
                    sent => drop(self.bytes.drain(..sent)),
                }
            }
            let mut size = self.events.len();
            if self.fault() == Some(Fault::Drip) {
                // A packet of its own.
                self.wire.flush()?;
                size = size.min(1);
            }
            match size {
                0 if mem::take(&mut self.has_ended) => self.bytes.extend(LAST_CHUNK.as_bytes()),
                0 => return Ok(()),
                size => self.chunk(size),
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// Puts so many bytes of the events into a chunk.
    fn chunk(&mut self, size: usize) {
        self.announce(size);
        self.bytes.extend(self.events.drain(..size));
        if self.chunked {
            self.bytes.extend(b"\r\n");
        }
    }

    fn announce(&mut self, size: usize) {
        if self.chunked {
            self.bytes.extend(format!("{size:x}\r\n").as_bytes());
        }
    }

    /// Sends the beginning of an event, in a chunk that announces more than that.
    fn cut(&mut self) -> io::Result<()> {
        self.push()?;
        self.announce(2 * HALF_AN_EVENT.len());
        self.bytes.extend(HALF_AN_EVENT.as_bytes());
        self.push()?;
        self.wire.flush()
    }
}

impl Write for FaultyWire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push()?;
        self.take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()?;
        self.wire.flush()
    }
}

impl Wire for FaultyWire {
    fn unacknowledged(&self) -> Option<u64> {
        let here = if self.is_held() { 0 } else { self.bytes.len() + self.events.len() };
        Some(self.wire.unacknowledged()? + here as u64)
    }

    fn is_held(&self) -> bool {
        self.fault() == Some(Fault::Stall)
    }
}

impl Drop for FaultyWire {
    fn drop(&mut self) {
        if self.fault() == Some(Fault::Cut) {
            // A client whose socket takes no more is cut without it.
            self.cut().ok();
        }
    }
}

/// The event with a comment before each of its lines. No client may take a comment for a field.
fn with_comments(event: &str) -> String {
    let comments = [": a comment\n", ":\n", ":data: a comment, too\n", "::event: x\n"];
    let lines = lines(event).zip(comments.iter().cycle());
    let mut text: String = lines.flat_map(|(line, comment)| [comment, line, "\n"]).collect();
    text.push('\n');
    text
}

/// The event as no server writes it and every client has to read it.
fn odd(event: &str, number: usize) -> String {
    // One for the whole event: a CR before an LF would be one end of a line, and not two.
    let end = ["\r", "\r\n", "\n"][number % 3];
    let unknown = [
        "unknown: field",
        "unknown",
        "Data: names are written small",
        " data: and begin with a letter",
        // The mark is skipped at the beginning of a stream, and part of a name everywhere else.
        "\u{feff}data: no mark here",
        "retry: soon",
        "id: an id has no \0",
        "event: of-two-the-last",
    ];
    let mut written = Vec::from(unknown.map(str::to_owned));
    let (data, others): (Vec<&str>, Vec<&str>) = lines(event).partition(|line| line.starts_with("data:"));
    let is_json = ["event: hello", "event: init", "event: update"].iter().any(|name| others.contains(name));
    for line in data {
        let value = line["data:".len()..].strip_prefix(' ').unwrap_or_default();
        match value.as_bytes() {
            [] => written.push("data".to_owned()),
            // Without its space the line would lose one that is the value's.
            [b' ', ..] => written.push(line.to_owned()),
            [b'{' | b'[', _, ..] if is_json => {
                written.extend([&value[..1], &value[1..]].map(|part| format!("data:{part}")));
            }
            _ => written.push(format!("data:{value}")),
        }
    }
    written.extend(others.iter().map(|line| line.replacen(": ", ":", 1)));
    written.push(String::new());
    written.iter().flat_map(|line| [line.as_str(), end]).collect()
}

/// The lines of an event, without the empty one at its end.
fn lines(event: &str) -> impl Iterator<Item = &str> {
    event.strip_suffix("\n\n").unwrap_or(event).split('\n')
}
