//! Events as bytes: names, ids, and the `text/event-stream` encoding (WHATWG HTML, section 9.2).
//!
//! The one rule: no name and no id can break a line of the stream, because their types cannot be built so. Data can be any
//! text. Each of its lines becomes a line of the field.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::clock::random_between;

/// The id of an event, `<unix ms>-<sequence>`: the wire's `id:` field and the browser's `lastEventId`.
///
/// The ids of one server rise strictly, whatever its clock does. They look like ids of Redis Streams. In each millisecond the
/// sequence begins with a random number of the server's own, so that servers with the same time have different ids.
///
/// ```
/// let id: statecast::EventId = "1763797512345-482913".parse().unwrap();
/// assert!(id < "1763797512345-482914".parse().unwrap());
/// assert!("1763797512345".parse::<statecast::EventId>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    ms: u64,
    sequence: u64,
}

/// Where no clock's milliseconds come.
const YEAR_10000: u64 = 253_402_300_800_000;

impl EventId {
    /// A random number for `first` and `next`, one for each server. A board without a clock boots at the same time again and
    /// again, and its clients come back with ids of an earlier boot.
    ///
    /// It has 32 bits. While a clock stands still, all events of a server share one millisecond, and history holds some 30,000.
    /// With 20 bits one in 35 old ids would be the id of another event by chance, with 32 bits one in 140,000. More bits
    /// would make every id longer.
    pub(crate) fn random_part() -> u32 {
        random_between(0, u64::from(u32::MAX)) as u32
    }

    /// The first id in a millisecond of the server that has this random part.
    pub(crate) fn first(now_ms: u64, random_part: u32) -> EventId {
        EventId { ms: now_ms, sequence: random_part.into() }
    }

    /// The id after this one: the clock's, unless the clock stands still or went back.
    pub(crate) fn next(self, now_ms: u64, random_part: u32) -> EventId {
        if now_ms > self.ms {
            EventId::first(now_ms, random_part)
        } else {
            EventId { ms: self.ms, sequence: self.sequence + 1 }
        }
    }

    /// The first id of another process that goes on after this one; `None` after an id that no clock can have made.
    pub(crate) fn first_of_next(self, now_ms: u64, random_part: u32) -> Option<EventId> {
        (self.ms < YEAR_10000 - 1).then(|| EventId::first(now_ms.max(self.ms + 1), random_part))
    }
}

#[cfg(feature = "redis")]
impl EventId {
    /// Before every other.
    pub(crate) const NONE: EventId = EventId { ms: 0, sequence: 0 };

    /// The id after this one, where several servers issue ids: two that do so at once issue different ones.
    ///
    /// A random part of a server's own would not do: where a clock is ahead, all of them count on from one id.
    pub(crate) fn next_of_many(self, now_ms: u64) -> EventId {
        let part = random_between(0, 999_999);
        if now_ms > self.ms {
            EventId { ms: now_ms, sequence: part }
        } else {
            EventId { ms: self.ms, sequence: self.sequence + 1 + part }
        }
    }

    /// Whether other ids can follow for as long as anybody cares.
    pub(crate) fn leaves_room(self) -> bool {
        self.ms < YEAR_10000 && self.sequence < 1 << 62
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.sequence)
    }
}

/// The text is not an id that a server could have issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedId;

impl fmt::Display for MalformedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event id looks like 1763797512345-482913")
    }
}

impl std::error::Error for MalformedId {}

impl FromStr for EventId {
    type Err = MalformedId;

    fn from_str(text: &str) -> Result<EventId, MalformedId> {
        let parse = || {
            let (ms, sequence) = text.split_once('-')?;
            Some(EventId { ms: ms.parse().ok()?, sequence: sequence.parse().ok()? })
        };
        // `+1-00` parses as numbers, but was never issued.
        parse().filter(|id| id.to_string() == text).ok_or(MalformedId)
    }
}

/// The rule for the names of topics and events.
const NAME_RULE: &str = "1 to 64 of A-Z a-z 0-9 . _ - and not . or ..";

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && text != "."
        && text != ".."
}

/// A top-level key of the document, and the path segment of its stream.
///
/// ```
/// let kitchen = statecast::Topic::parse("kitchen").unwrap();
/// assert_eq!(kitchen.as_str(), "kitchen");
/// assert!(statecast::Topic::parse("the kitchen").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// The topic of that name.
    ///
    /// # Errors
    /// The text is no name. The error is for the publisher.
    pub fn parse(text: &str) -> Result<Topic, String> {
        if is_name(text) { Ok(Topic(text.into())) } else { Err(format!("a topic is {NAME_RULE}")) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a one-off event: the wire's `event:` field, the browser's `type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventName(Cow<'static, str>);

impl EventName {
    /// Opens a connection, and every new `init` within one.
    pub(crate) const HELLO: EventName = EventName(Cow::Borrowed("hello"));
    /// The document as it is.
    pub(crate) const INIT: EventName = EventName(Cow::Borrowed("init"));
    /// A merge patch.
    pub(crate) const UPDATE: EventName = EventName(Cow::Borrowed("update"));
    /// Says that the connection lives.
    pub(crate) const HEARTBEAT: EventName = EventName(Cow::Borrowed("heartbeat"));
    /// The name of an event that was published without a name.
    pub const MESSAGE: EventName = EventName(Cow::Borrowed("message"));

    /// The server's own names, and the two that an `EventSource` dispatches by itself.
    const RESERVED: [&str; 6] = ["hello", "init", "update", "heartbeat", "open", "error"];

    /// The name.
    #[cfg(feature = "redis")]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of an event that somebody publishes.
    ///
    /// # Errors
    /// The text is no name, or a name of the server's own. The error is for the publisher.
    pub fn parse(text: &str) -> Result<EventName, String> {
        if Self::RESERVED.contains(&text) {
            let reserved = Self::RESERVED.join(", ");
            Err(format!("an event cannot be called {reserved}"))
        } else if is_name(text) {
            Ok(EventName(text.to_owned().into()))
        } else {
            Err(format!("an event's name is {NAME_RULE}"))
        }
    }
}

/// Appends the frame of one event to `out`.
///
/// CR, LF and CRLF in `data` each end one line, and come back as LF; empty data is one empty `data:` line.
pub fn write_event(out: &mut Vec<u8>, id: Option<EventId>, name: &EventName, data: &str) {
    if let Some(id) = id {
        out.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.0.as_bytes());
    out.push(b'\n');
    let data = if data.contains('\r') { data.replace("\r\n", "\n").into() } else { Cow::Borrowed(data) };
    for line in data.split(['\n', '\r']) {
        // The space is for people, and makes a first space in the data survive.
        out.extend_from_slice(if line.is_empty() { b"data:" } else { b"data: " });
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(data: &str) -> String {
        let mut out = Vec::new();
        write_event(&mut out, None, &EventName::MESSAGE, data);
        String::from_utf8(out).expect("frames of text are text")
    }

    #[test]
    fn an_update_is_these_bytes() {
        let mut out = Vec::new();
        let id = Some(EventId::first(1_763_797_512_345, 482_913));
        write_event(&mut out, id, &EventName::UPDATE, r#"{"temp":21.7}"#);
        let expected = "id: 1763797512345-482913\nevent: update\ndata: {\"temp\":21.7}\n\n";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn every_kind_of_line_end_starts_a_data_line() {
        let table = [
            ("", "data:\n"),
            ("a", "data: a\n"),
            (" a", "data:  a\n"),
            ("a\nb", "data: a\ndata: b\n"),
            ("a\rb", "data: a\ndata: b\n"),
            ("a\r\nb", "data: a\ndata: b\n"),
            ("a\n\rb", "data: a\ndata:\ndata: b\n"),
            ("a\r\r\nb", "data: a\ndata:\ndata: b\n"),
            ("a\n", "data: a\ndata:\n"),
            ("\n", "data:\ndata:\n"),
            ("ä\u{2028}b\0", "data: ä\u{2028}b\0\n"),
        ];
        for (data, lines) in table {
            assert_eq!(frame(data), format!("event: message\n{lines}\n"), "{data:?}");
        }
    }

    #[test]
    fn ids_rise_while_the_clock_stands_or_jumps_back() {
        let clock = [5, 5, 3, 6, 1, 1, 7];
        let mut id = EventId::first(5, 40);
        let mut seen = Vec::new();
        for now in clock {
            let next = id.next(now, 40);
            assert!(next > id);
            id = next;
            seen.push(id.to_string());
        }
        assert_eq!(seen, ["5-41", "5-42", "5-43", "6-40", "6-41", "6-42", "7-40"]);
    }

    #[cfg(feature = "redis")]
    #[test]
    fn two_servers_that_go_on_from_one_id_issue_different_ones_whatever_their_clocks_say() {
        let last = EventId::first(1_000, 7);
        for now in [0, 1_000, 2_000] {
            let ids: std::collections::HashSet<EventId> = (0..20).map(|_| last.next_of_many(now)).collect();
            assert!(ids.len() > 15 && ids.iter().all(|id| *id > last), "{ids:?}");
        }
    }

    #[test]
    fn ids_rise_across_a_restart() {
        let before = EventId::first(1_000, u32::MAX).next(1_000, u32::MAX).next(900, u32::MAX);
        assert!(EventId::first(1_001, 0) > before);
    }

    #[test]
    fn only_ids_that_could_have_been_issued_parse() {
        for text in ["0-0", "1763797512345-0", "18446744073709551615-3"] {
            assert_eq!(text.parse::<EventId>().map(|id| id.to_string()), Ok(text.into()));
        }
        let bad = [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "1-2-3",
            "01-0",
            "+1-0",
            "1-00",
            "1- 0",
            "1-0\n",
            "a-0",
            "18446744073709551616-0",
        ];
        for text in bad {
            assert_eq!(text.parse::<EventId>(), Err(MalformedId), "{text:?}");
        }
    }

    #[test]
    fn a_name_cannot_hold_what_would_break_a_line_or_a_path() {
        let long = "a".repeat(65);
        for text in ["", ".", "..", "a b", "a\nb", "a\r", "a\0", "a/b", "ä", &long] {
            assert!(Topic::parse(text).is_err(), "{text:?}");
            assert!(EventName::parse(text).is_err(), "{text:?}");
        }
        for text in ["a", "...", "A-Z_0.9", &long[..64]] {
            assert_eq!(Topic::parse(text).expect("a name").as_str(), text);
            assert!(EventName::parse(text).is_ok(), "{text:?}");
        }
        for text in ["hello", "init", "update", "heartbeat", "open", "error"] {
            assert!(Topic::parse(text).is_ok(), "{text:?}");
            assert!(EventName::parse(text).is_err(), "{text:?}");
        }
    }
}
