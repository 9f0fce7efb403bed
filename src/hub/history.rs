//! History: what was published last, so that whoever was away gets exactly what it missed.
//!
//! The hub appends to it under its lock. It is the only queue there is: the fan-out thread and every client that catches
//! up read it from their own place. The one rule: a place in it is the id of the last event before it, and it answers for a
//! place only if nothing after that place is gone.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::Value;

use crate::document::{Patch, to_json};
use crate::hub::chunk::Chunk;
use crate::hub::draft::Judged;
use crate::sse::event::{EventId, EventName, Topic};

/// Whom an event is for: `None` are the subscribers of the whole document, `/events`.
pub(crate) type Audience = Option<Topic>;

/// What is taken from history at once, at most: more would not fit a socket's send buffer in one write.
const PASS_BYTES: usize = 64 << 10;

/// One published event, kept once: as the frames that its audiences see, encoded once for all.
pub(crate) struct Entry {
    pub id: EventId,
    /// In the order of the audiences: `/events` first, if it sees the event.
    pub(super) frames: Vec<(Audience, Arc<Chunk>)>,
}

impl Entry {
    /// The event that a draft has come to.
    pub fn new(id: EventId, judged: &Judged) -> Entry {
        match judged {
            Judged::Update(patch) => Entry::update(id, patch),
            Judged::OneOff(audience, name, data) => Entry::one_off(id, audience.clone(), name, data),
        }
    }

    /// A change of the document. Each topic sees its own part of the patch.
    pub fn update(id: EventId, patch: &Patch) -> Entry {
        let frame = |data: &str| Arc::new(Chunk::of_event(Some(id), &EventName::UPDATE, data));
        let mut whole = String::from("{");
        let mut topics = Vec::with_capacity(patch.len());
        for (key, value) in patch {
            let data = to_json(value);
            let comma = if whole.len() > 1 { "," } else { "" };
            // A topic's name needs no escapes.
            whole.extend([comma, "\"", key, "\":", &data]);
            let topic = Topic::parse(key).expect("the document refuses a patch with any other key");
            topics.push((Some(topic), frame(&data)));
        }
        whole.push('}');
        Entry { id, frames: std::iter::once((None, frame(&whole))).chain(topics).collect() }
    }

    /// A one-off event for `/events` alone, or for a topic and, wrapped in its name, for `/events`.
    pub fn one_off(id: EventId, audience: Audience, name: &EventName, data: &EventData) -> Entry {
        let frame = |data: &str| Arc::new(Chunk::of_event(Some(id), name, data));
        let own = frame(&data.text);
        let Some(topic) = audience else { return Entry { id, frames: vec![(None, own)] } };
        let text = || to_json(&Value::from(&*data.text));
        let json = if data.is_json { data.text.clone() } else { text() };
        let whole = frame(&format!("{{\"{}\":{json}}}", topic.as_str()));
        Entry { id, frames: vec![(None, whole), (Some(topic), own)] }
    }

    /// A place without an event: nobody sees it, and whoever gets the document then is at it.
    pub fn place(id: EventId) -> Entry {
        Entry { id, frames: Vec::new() }
    }

    /// Those that see the event, each once.
    pub fn audiences(&self) -> impl Iterator<Item = &Audience> {
        self.frames.iter().map(|(audience, _)| audience)
    }

    /// The event as the audience sees it; `None` if it does not.
    fn frame(&self, audience: &Audience) -> Option<&Arc<Chunk>> {
        let index = self.frames.binary_search_by_key(&audience, |(audience, _)| audience).ok()?;
        Some(&self.frames[index].1)
    }

    /// What it takes of the history's bound: its frames, and what goes round them in memory.
    pub fn size(&self) -> usize {
        const AROUND: usize = 64;
        const AROUND_FRAME: usize = 128;
        let frame_size = |(_, chunk): &(Audience, Arc<Chunk>)| AROUND_FRAME + chunk.bytes.len();
        AROUND + self.frames.iter().map(frame_size).sum::<usize>()
    }
}

/// The first entries, as many as one pass takes, at least one if there is one.
pub(super) fn up_to_a_pass<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>) -> Vec<Arc<Entry>> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        bytes += entry.frames.first().map_or(0, |(_, chunk)| chunk.bytes.len());
        if bytes > PASS_BYTES && !taken.is_empty() {
            break;
        }
        taken.push(Arc::clone(entry));
    }
    taken
}

/// What `entries` are to an audience; `None` if it sees none of them.
pub(super) fn chunk_of(entries: &[Arc<Entry>], audience: &Audience) -> Option<Arc<Chunk>> {
    let frames: Vec<&Arc<Chunk>> = entries.iter().filter_map(|entry| entry.frame(audience)).collect();
    match frames[..] {
        [] => None,
        [only] => Some(Arc::clone(only)),
        _ => Some(Arc::new(Chunk::joined(&frames))),
    }
}

/// The data of a one-off event: text, or JSON. Made from a string or a `serde_json::Value` with `into`.
///
/// A topic's own stream sees both as they are; `/events` sees them in an object with the topic's name, text as a JSON
/// string.
#[derive(Clone, Debug)]
pub struct EventData {
    pub(crate) text: String,
    pub(crate) is_json: bool,
}

/// The newest entries, oldest first, up to a bound in bytes.
pub(crate) struct History {
    entries: VecDeque<Arc<Entry>>,
    /// The place before the first entry: the last one that was evicted, or the server's start.
    before: EventId,
    size: usize,
    pub(super) max_size: usize,
}

impl History {
    pub fn new(start: EventId, max_size: usize) -> History {
        History { entries: VecDeque::new(), before: start, size: 0, max_size }
    }

    /// The place behind everything.
    pub fn last_id(&self) -> EventId {
        self.entries.back().map_or(self.before, |entry| entry.id)
    }

    /// The place before everything.
    pub fn first_place(&self) -> EventId {
        self.before
    }

    /// What the entries take of the bound.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Appends an entry. The oldest go where the bound asks for it, but none that came after `keep_after`.
    pub fn push(&mut self, entry: Entry, keep_after: EventId) {
        debug_assert!(entry.id > self.last_id());
        self.size += entry.size();
        self.entries.push_back(Arc::new(entry));
        while self.size > self.max_size && self.entries.front().is_some_and(|oldest| oldest.id <= keep_after)
        {
            let oldest = self.entries.pop_front().expect("the front was just looked at");
            self.size -= oldest.size();
            self.before = oldest.id;
        }
    }

    /// What came after a place, oldest first; `None` where some of that is gone, or the id was never issued.
    pub fn after(&self, place: EventId) -> Option<impl Iterator<Item = &Arc<Entry>>> {
        let index = if place == self.before {
            0
        } else {
            1 + self.entries.binary_search_by_key(&place, |entry| entry.id).ok()?
        };
        Some(self.entries.range(index..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn id(ms: u64) -> EventId {
        EventId::first(ms, 0)
    }

    fn entry(ms: u64, patch: Value) -> Entry {
        let Value::Object(patch) = patch else { panic!("a patch is an object") };
        Entry::update(id(ms), &patch)
    }

    fn frame(entry: &Entry, audience: &Audience) -> Option<String> {
        let chunk = entry.frame(audience)?;
        Some(String::from_utf8(chunk.bytes(false).to_vec()).expect("text"))
    }

    fn ids_after(history: &History, place: EventId) -> Option<Vec<String>> {
        history.after(place).map(|entries| entries.map(|entry| entry.id.to_string()).collect())
    }

    #[test]
    fn an_update_is_seen_by_the_whole_and_by_each_topic_it_names() {
        let entry = entry(7, json!({"a":{"x":1},"b":null}));
        let whole = frame(&entry, &None).unwrap();
        assert_eq!(whole, "id: 7-0\nevent: update\ndata: {\"a\":{\"x\":1},\"b\":null}\n\n");
        let part = frame(&entry, &Topic::parse("a").ok()).unwrap();
        assert_eq!(part, "id: 7-0\nevent: update\ndata: {\"x\":1}\n\n");
        assert_eq!(frame(&entry, &Topic::parse("b").ok()).unwrap(), "id: 7-0\nevent: update\ndata: null\n\n");
        assert_eq!(frame(&entry, &Topic::parse("c").ok()), None);
    }

    #[test]
    fn a_one_off_event_of_a_topic_is_wrapped_for_the_whole() {
        let name = EventName::parse("alert").unwrap();
        let text = Entry::one_off(id(1), Topic::parse("a").ok(), &name, &"x\n\"y".into());
        assert_eq!(
            frame(&text, &Topic::parse("a").ok()).unwrap(),
            "id: 1-0\nevent: alert\ndata: x\ndata: \"y\n\n"
        );
        assert_eq!(frame(&text, &None).unwrap(), "id: 1-0\nevent: alert\ndata: {\"a\":\"x\\n\\\"y\"}\n\n");
        let json = Entry::one_off(
            id(2),
            Topic::parse("a").ok(),
            &name,
            &EventData { text: "[1, 2]".into(), is_json: true },
        );
        assert_eq!(frame(&json, &Topic::parse("a").ok()).unwrap(), "id: 2-0\nevent: alert\ndata: [1, 2]\n\n");
        assert_eq!(frame(&json, &None).unwrap(), "id: 2-0\nevent: alert\ndata: {\"a\":[1, 2]}\n\n");
        let alone = Entry::one_off(id(3), None, &name, &"hi".into());
        assert_eq!(frame(&alone, &None).unwrap(), "id: 3-0\nevent: alert\ndata: hi\n\n");
        assert_eq!(frame(&alone, &Topic::parse("a").ok()), None);
    }

    #[test]
    fn a_place_is_answered_only_while_everything_after_it_is_there() {
        let size = entry(10, json!({"a":1})).size();
        let mut history = History::new(id(1), 3 * size);
        assert_eq!(ids_after(&history, id(1)), Some(vec![]));
        assert_eq!(history.last_id(), id(1));
        for ms in 10..15 {
            history.push(entry(ms, json!({"a":1})), id(99));
        }
        assert_eq!(history.last_id(), id(14));
        assert_eq!(ids_after(&history, id(14)), Some(vec![]));
        assert_eq!(ids_after(&history, id(12)), Some(vec!["13-0".into(), "14-0".into()]));
        let all = vec!["12-0".into(), "13-0".into(), "14-0".into()];
        assert_eq!(ids_after(&history, id(11)), Some(all), "the last evicted id");
        for gone in [id(1), id(10), id(5), id(15), id(12).next(12, 0)] {
            assert_eq!(ids_after(&history, gone), None, "{gone}");
        }
    }

    #[test]
    fn what_the_hub_has_not_read_is_kept_over_the_bound() {
        let mut history = History::new(id(1), 0);
        for ms in 10..13 {
            history.push(entry(ms, json!({"a":1})), id(1));
        }
        assert_eq!(ids_after(&history, id(1)).map(|ids| ids.len()), Some(3));
        history.push(entry(13, json!({"a":1})), id(12));
        assert_eq!(ids_after(&history, id(12)), Some(vec!["13-0".into()]));
        assert_eq!(ids_after(&history, id(11)), None);
    }
}
