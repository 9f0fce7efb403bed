//! What the hub's lock guards: the document, the history and the client list.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::clock::now_ms;
use crate::document::Document;
use crate::hub::chunk::Chunk;
use crate::hub::client::{Client, Place};
use crate::hub::history::{Audience, Entry, History, up_to_a_pass};
use crate::sse::event::{EventId, EventName};

pub(super) struct State {
    pub document: Document,
    pub history: History,
    /// Older ids are not known: those of an earlier process, and those from before history was forgotten.
    start: EventId,
    /// What the sequence of an id begins with.
    random_part: u32,
    /// The document as `init` of each audience that asked since the last event.
    inits: HashMap<Audience, Arc<Chunk>>,
    /// The clients of each audience, live or catching up.
    lists: HashMap<Audience, List>,
    pub last_client: u64,
    /// The fan-out thread's place in history: every live client has what came before it.
    pub read: EventId,
    /// What came since, and waits for it.
    pub unread_bytes: usize,
    pub stopping: bool,
}

/// Clients as they were at one moment. Whoever reads it shares it, so that the lock is not held for long.
pub(super) type List = Arc<Vec<Arc<Client>>>;

/// What the fan-out thread has to do.
pub(super) struct Pass {
    pub entries: Vec<Arc<Entry>>,
    /// The place after it.
    pub to: EventId,
    /// Those that see something of it, each with its clients.
    pub audiences: Vec<(Audience, List)>,
}

impl State {
    /// A state that begins at `start`, with the document as of then.
    pub fn new(document: Document, start: EventId, random_part: u32, history_bytes: usize) -> State {
        State {
            document,
            history: History::new(start, history_bytes),
            start,
            random_part,
            inits: HashMap::new(),
            lists: HashMap::new(),
            last_client: 0,
            read: start,
            unread_bytes: 0,
            stopping: false,
        }
    }

    /// The id of what is published next.
    pub fn next_id(&self) -> EventId {
        self.history.last_id().next(now_ms(), self.random_part)
    }

    /// Appends to history. The fan-out thread is to be told.
    pub fn publish(&mut self, entry: Entry) {
        // An `init` that is not current serves nobody, and may be large.
        self.inits.clear();
        self.unread_bytes += entry.size();
        self.history.push(entry, self.read);
    }

    /// What the fan-out thread has not read, up to a pass's worth.
    pub fn next_pass(&self) -> Option<Pass> {
        let entries = up_to_a_pass(self.history.after(self.read).expect("history keeps what was not read"));
        let to = entries.last()?.id;
        let touched: HashSet<&Audience> = entries.iter().flat_map(|entry| entry.audiences()).collect();
        let with_list = |audience: &Audience| Some((audience.clone(), Arc::clone(self.lists.get(audience)?)));
        let audiences = touched.into_iter().filter_map(with_list).collect();
        Some(Pass { entries, to, audiences })
    }

    /// Notes that the fan-out thread is done with a pass; says whether more waits for it.
    pub fn has_read(&mut self, pass: &Pass) -> bool {
        self.read = pass.to;
        self.unread_bytes -= pass.entries.iter().map(|entry| entry.size()).sum::<usize>();
        self.read != self.history.last_id()
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

    /// Puts a client on the list.
    pub fn add(&mut self, client: Arc<Client>) {
        Arc::make_mut(self.lists.entry(client.about.topic.clone()).or_default()).push(client);
    }

    /// Says whether the client was on the list.
    pub fn remove(&mut self, client: &Arc<Client>) -> bool {
        let topic = &client.about.topic;
        let Some(list) = self.lists.get_mut(topic) else { return false };
        let Some(index) = list.iter().position(|other| Arc::ptr_eq(other, client)) else { return false };
        Arc::make_mut(list).swap_remove(index);
        if list.is_empty() {
            self.lists.remove(topic);
        }
        true
    }

    /// All clients, in no order.
    pub fn lists(&self) -> Vec<List> {
        self.lists.values().cloned().collect()
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
            let mut state = State::new(Document::new(start, 10_000), start, random_part, 1_000_000);
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
        let mut state = State::new(Document::new(start, 1_000), start, 7, 1_000);
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
