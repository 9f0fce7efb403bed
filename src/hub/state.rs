//! What the hub's lock guards: the document, the history and the client list, in parts.

use std::collections::HashMap;
use std::sync::Arc;

use crate::clock::now_ms;
use crate::config::Config;
use crate::document::Document;
use crate::hub::chunk::Chunk;
use crate::hub::client::{Client, Place};
use crate::hub::draft::Judged;
use crate::hub::fan_out::{List, Part};
use crate::hub::history::{Audience, Entry, History};
use crate::sse::event::{EventId, EventName};

pub(super) struct State {
    pub document: Document,
    pub history: History,
    /// Older ids are not known: those of an earlier process, and those from before history was forgotten.
    pub(super) start: EventId,
    /// What the sequence of an id begins with.
    pub(super) random_part: u32,
    /// The document as `init` of each audience that asked since the last event.
    inits: HashMap<Audience, Arc<Chunk>>,
    /// One for each fan-out thread. A client is in one of them for as long as it is there.
    pub parts: Vec<Part>,
    /// What was published, in all.
    published_bytes: u64,
    pub last_client: u64,
    pub stopping: bool,
}

impl State {
    /// A state that begins with the document as it is, and an empty history behind its last change.
    pub fn new(document: Document, random_part: u32, config: &Config) -> State {
        let start = document.last_change();
        State {
            document,
            history: History::new(start, config.history_bytes),
            start,
            random_part,
            inits: HashMap::new(),
            parts: (0..config.fan_out_threads()).map(|_| Part::new(start)).collect(),
            published_bytes: 0,
            last_client: 0,
            stopping: false,
        }
    }

    /// The id of what is published next.
    pub fn next_id(&self) -> EventId {
        self.history.last_id().next(now_ms(), self.random_part)
    }

    /// Makes an event of what a draft has come to.
    pub fn apply(&mut self, id: EventId, judged: Judged) {
        let entry = Entry::new(id, &judged);
        if let Judged::Update(patch) = judged {
            self.document.apply(patch, id);
        }
        self.publish(entry);
    }

    /// Appends to history. The fan-out threads are to be told.
    pub fn publish(&mut self, entry: Entry) {
        // An `init` that is not current serves nobody, and may be large.
        self.inits.clear();
        self.published_bytes += entry.size() as u64;
        let read = self.slowest().read;
        self.history.push(entry, read);
    }

    /// The part of the fan-out thread that is behind the others.
    pub fn slowest(&self) -> &Part {
        self.parts.iter().min_by_key(|part| part.read).expect("there is a thread")
    }

    /// What waits for that thread.
    pub fn unread_bytes(&self) -> u64 {
        self.published_bytes - self.slowest().read_bytes
    }

    /// Knows no id any more that was issued before.
    pub fn forget(&mut self) {
        // A place of its own: the id of the last event is one of those that are not known any more.
        self.start = self.next_id();
        self.publish(Entry::place(self.start));
    }

    /// Where a client starts that says it has everything up to an id.
    pub fn resume(&self, last_event_id: Option<EventId>) -> Place {
        match last_event_id {
            None => Place::Nowhere("first"),
            Some(id) if id < self.start => Place::Nowhere("restart"),
            Some(id) if self.history.after(id).is_some() => Place::After(id),
            Some(_) => Place::Nowhere("gap"),
        }
    }

    /// The id of the last event, and the audience's `init` as of it, encoded once until the next event.
    pub fn init(&mut self, audience: &Audience) -> (EventId, Arc<Chunk>) {
        let id = self.history.last_id();
        if let Some(init) = self.inits.get(audience) {
            return (id, Arc::clone(init));
        }
        let json = self.document.get(audience.as_ref()).map(|(json, _)| json);
        let data = json.as_deref().unwrap_or("null");
        let init = Arc::new(Chunk::of_event(Some(id), &EventName::INIT, data));
        // Not kept for a topic that is not there: anybody can ask for any number of those.
        if json.is_some() {
            self.inits.insert(audience.clone(), Arc::clone(&init));
        }
        (id, init)
    }

    /// Gives a client to the fan-out thread that has fewest.
    pub fn add(&mut self, client: Arc<Client>) {
        self.parts.iter_mut().min_by_key(|part| part.count).expect("there is a thread").add(client);
    }

    /// Says whether the client was on a list.
    pub fn remove(&mut self, client: &Arc<Client>) -> bool {
        self.parts.iter_mut().any(|part| part.remove(client))
    }

    /// All clients, in no order.
    pub fn lists(&self) -> Vec<List> {
        self.parts.iter().flat_map(Part::lists).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Patch;

    #[test]
    fn an_id_of_another_process_in_the_same_milliseconds_is_not_known() {
        let mut states = [7, 8_000].map(|random_part| {
            let start = EventId::first(1_000, random_part);
            let mut state = State::new(Document::new(start, 10_000), random_part, &Config::default());
            // A clock that stands still, was set, was set back and goes on.
            for now in [1_000, 1_000, 1_001, 9_000_000, 9_000_000, 1_002, 9_000_001] {
                let id = state.history.last_id().next(now, state.random_part);
                state.publish(Entry::update(id, &Patch::new()));
            }
            state
        });
        for _ in 0..2 {
            let [state, other] = &states;
            let issued: Vec<EventId> =
                state.history.after(state.start).unwrap().map(|entry| entry.id).collect();
            assert_eq!(issued.len(), 7);
            assert!(issued.is_sorted());
            for id in issued {
                assert_eq!(state.resume(Some(id)), Place::After(id));
                assert!(matches!(other.resume(Some(id)), Place::Nowhere(_)), "{id}");
            }
            states.reverse();
        }
    }

    #[test]
    fn a_forgotten_id_is_a_restart_and_the_place_of_the_next_init_is_known() {
        let start = EventId::first(1_000, 7);
        let mut state = State::new(Document::new(start, 1_000), 7, &Config::default());
        let before = state.history.last_id();
        assert_eq!(state.resume(Some(before)), Place::After(before));
        state.forget();
        assert_eq!(state.resume(Some(before)), Place::Nowhere("restart"));
        let (place, _) = state.init(&None);
        assert!(place > before);
        let id = state.next_id();
        state.publish(Entry::update(id, &Patch::new()));
        assert_eq!(state.resume(Some(place)), Place::After(place));
        let after: Vec<EventId> = state.history.after(place).unwrap().map(|entry| entry.id).collect();
        assert_eq!(after, [id]);
        // Who is connected goes on from where it is.
        assert!(state.history.after(before).is_some());
    }
}
