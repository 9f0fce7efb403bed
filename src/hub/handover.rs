//! The handover: history, document and ids as one event stream, from a server that ends to the next one.
//!
//! A clean stop has it written beside the document, and `cat` shows it. The one rule: it is taken whole or not at all. A
//! checksum ends it, and its `init` has to be the document that the next server begins with.

use crate::clock::now_ms;
use crate::hub::chunk::Chunk;
use crate::hub::history::{Audience, Entry, History};
use crate::hub::state::State;
use crate::sse::event::{EventId, EventName, Topic, write_event};

/// How the stream begins; the number of clients that there were follows.
pub(crate) const BEGIN: &str = ": statecast history, clients so far: ";

/// How its last line begins; the checksum of all before it follows.
const END: &str = ": checksum ";

/// A comment before an event says whom it is for; a comment before the document says what changed when.
const EVENTS: &str = ": /events";
const STATE: &str = ": /state";

const NOT_WHOLE: &str = "it is cut off, edited, or of another version";

impl State {
    /// The stream for the next server; `None` where no client can have an id of this one.
    pub fn write_out(&self) -> Option<Vec<u8>> {
        if self.last_client == 0 {
            return None;
        }
        let before = self.start.max(self.history.first_place());
        let mut out = format!("{BEGIN}{}\nid: {before}\n\n", self.last_client).into_bytes();
        for entry in self.history.after(before).into_iter().flatten() {
            if entry.frames.is_empty() {
                out.extend(format!("{EVENTS}\nid: {}\n\n", entry.id).bytes());
            }
            for (audience, chunk) in &entry.frames {
                out.extend(format!("{EVENTS}{}\n", path(audience.as_ref().map(Topic::as_str))).bytes());
                out.extend(chunk.bytes(false));
            }
        }
        for (topic, id) in self.document.changes() {
            out.extend(format!("{STATE}{} {id}\n", path(topic)).bytes());
        }
        write_event(&mut out, Some(self.history.last_id()), &EventName::INIT, &self.document.json());
        out.extend(format!("{END}{:016x}\n", checksum(&out)).bytes());
        Some(out)
    }

    /// Goes on where an earlier server wrote this; or as without it, where it says why.
    pub fn restore(&mut self, stream: &[u8]) -> Result<(), String> {
        let handed = Handed::read(stream).ok_or(NOT_WHOLE)?;
        if handed.document != self.document.json() {
            return Err("it belongs to another document".into());
        }
        // A clock that was set back, or starts in 1970 at each boot, is no reason: ids go on rising from there.
        let start = handed.last_id.first_of_next(now_ms(), self.random_part);
        let Some(start) = start else { return Err("its ids are of a time that no clock shows".into()) };
        let mut history = History::new(handed.before, self.history.max_size);
        for entry in handed.entries {
            let id = entry.id;
            if id <= history.last_id() {
                return Err(NOT_WHOLE.into());
            }
            history.push(entry, id);
        }
        if history.last_id() != handed.last_id {
            return Err(NOT_WHOLE.into());
        }
        // What this server publishes has ids of its own, also if that one lived on after it wrote this.
        history.push(Entry::place(start), handed.last_id);
        self.document.take_changes(handed.changes.into_iter());
        (self.history, self.start, self.last_client) = (history, handed.before, handed.clients);
        self.parts.iter_mut().for_each(|part| part.read = start);
        Ok(())
    }
}

/// What a stream has.
struct Handed<'a> {
    clients: u64,
    before: EventId,
    entries: Vec<Entry>,
    /// When the document and each topic changed last.
    changes: Vec<(Option<&'a str>, EventId)>,
    last_id: EventId,
    document: &'a str,
}

impl Handed<'_> {
    /// Reads a stream; `None` if it is not as somebody wrote it.
    fn read(stream: &[u8]) -> Option<Handed<'_>> {
        let text = str::from_utf8(stream).ok()?;
        let events = &text[..text.rfind(END)?];
        if text[events.len()..] != format!("{END}{:016x}\n", checksum(events.as_bytes())) {
            return None;
        }
        let (begin, rest) = events.strip_suffix("\n\n")?.split_once("\n\n")?;
        let (clients, before) = begin.strip_prefix(BEGIN)?.split_once("\nid: ")?;
        let (past, end) = rest.rsplit_once("\n\n").unwrap_or(("", rest));
        let (changes, init) = end.split_once("\nid: ")?;
        let (last_id, document) = init.split_once("\nevent: init\ndata: ")?;
        let changes = changes.lines().map(|line| {
            let (path, id) = line.strip_prefix(STATE)?.split_once(' ')?;
            Some((path.strip_prefix('/'), id.parse().ok()?))
        });
        Some(Handed {
            clients: clients.parse().ok()?,
            before: before.parse().ok()?,
            entries: entries(past)?,
            changes: changes.collect::<Option<_>>()?,
            last_id: last_id.parse().ok()?,
            document,
        })
    }
}

/// The entries of a stream: blocks with one id are one.
fn entries(past: &str) -> Option<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    for block in past.split("\n\n").filter(|block| !block.is_empty()) {
        let (whom, frame) = block.split_once('\n')?;
        let audience: Audience = match whom.strip_prefix(EVENTS)? {
            "" => None,
            path => Some(Topic::parse(path.strip_prefix('/')?).ok()?),
        };
        let id: EventId = frame.lines().next()?.strip_prefix("id: ")?.parse().ok()?;
        if entries.last().is_none_or(|entry| entry.id != id) {
            entries.push(Entry::place(id));
        }
        if frame.contains('\n') {
            let frames = &mut entries.last_mut()?.frames;
            if frames.last().is_some_and(|(last, _)| *last >= audience) {
                return None;
            }
            frames.push((audience, Chunk::of_frame(id, &format!("{frame}\n\n")).into()));
        }
    }
    Some(entries)
}

fn path(topic: Option<&str>) -> String {
    topic.map_or(String::new(), |topic| format!("/{topic}"))
}

/// FNV-1a in 64 bits: no accident and no editor leaves it as it is.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::document::Document;

    fn state_at(start: EventId) -> State {
        State::new(Document::new(start, 10_000), 7, &Config::default())
    }

    /// A stream with an event of each of these ids, that says these are the first and the last.
    fn stream(first: &str, ids: &[&str], last: &str) -> Vec<u8> {
        let event = |id| format!("{EVENTS}\nid: {id}\nevent: message\ndata: hi\n\n");
        let events: String = ids.iter().map(event).collect();
        let mut stream = format!(
            "{BEGIN}3\nid: {first}\n\n{events}{STATE} {first}\nid: {last}\nevent: init\ndata: {{}}\n\n"
        )
        .into_bytes();
        stream.extend(format!("{END}{:016x}\n", checksum(&stream)).bytes());
        stream
    }

    #[test]
    fn ids_that_do_not_rise_or_are_of_no_clock_are_not_taken_over() {
        let table: [(&str, &[&str], &str, bool); 8] = [
            ("5-0", &["5-1", "6-0"], "6-0", true),
            ("5-0", &[], "5-0", true),
            ("253402300799998-18446744073709551615", &[], "253402300799998-18446744073709551615", true),
            ("5-0", &["5-0"], "5-0", false),
            ("5-0", &["6-0", "5-1"], "6-0", false),
            ("5-0", &["6-0"], "5-1", false),
            ("5-0", &[], "253402300799999-0", false),
            (
                "5-0",
                &["18446744073709551615-18446744073709551615"],
                "18446744073709551615-18446744073709551615",
                false,
            ),
        ];
        for (first, ids, last, is_taken) in table {
            let mut state = state_at(EventId::first(1_000, 7));
            let restored = state.restore(&stream(first, ids, last));
            assert_eq!(restored.is_ok(), is_taken, "{first}, {ids:?}, {last}: {restored:?}");
            let next = state.next_id();
            assert!(next > state.history.last_id());
            let last_id: EventId = last.parse().unwrap();
            assert_eq!(
                state.history.after(last_id).is_some() && next > last_id,
                is_taken,
                "{first}, {ids:?}, {last}"
            );
        }
    }

    #[test]
    fn what_was_written_out_is_written_out_again_with_one_place_more() {
        let first = stream("5-0", &["5-1", "6-0"], "6-0");
        let mut state = state_at(EventId::first(1_000, 7));
        state.restore(&first).unwrap();
        let second = String::from_utf8(state.write_out().unwrap()).unwrap();
        let (events, _) = str::from_utf8(&first).unwrap().split_once(STATE).unwrap();
        let place = state.history.last_id();
        let (again, document) = second.split_once(STATE).unwrap();
        assert_eq!(again, format!("{events}{EVENTS}\nid: {place}\n\n"));
        assert!(document.starts_with(&format!(" 5-0\nid: {place}\n")), "{document}");
    }
}
