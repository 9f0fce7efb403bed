//! What the hub's lock guards: the document, the history and the client list; and the seats, which have a lock of their own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::clock::now_ms;
use crate::document::Document;
use crate::hub::chunk::Chunk;
use crate::hub::client::{Client, InitReason, Place};
use crate::hub::history::{Audience, Entry, History};
use crate::lock::lock;
use crate::sse::event::{EventId, EventName};

pub(super) struct State {
    pub document: Document,
    pub history: History,
    /// Older ids are not known: those of an earlier process, and those from before history was forgotten.
    pub start: EventId,
    /// What the sequence of an id begins with.
    random_part: u32,
    /// The fan-out thread's place in history: every live client has what came before it.
    pub read: EventId,
    /// What came since, and waits for it.
    pub unread_bytes: usize,
    pub audiences: HashMap<Audience, Subscribers>,
    pub last_client: u64,
    pub stopping: bool,
}

/// The clients of one audience, live or catching up.
#[derive(Default)]
pub(super) struct Subscribers {
    pub clients: Vec<Arc<Client>>,
    /// `init` as of an id, for everybody who needs it before the next event.
    pub init: Option<(EventId, Arc<Chunk>)>,
}

impl State {
    /// A state that begins at `start`, with the document as of then.
    pub fn new(document: Document, start: EventId, random_part: u32, history_bytes: usize) -> State {
        State {
            document,
            history: History::new(start, history_bytes),
            start,
            random_part,
            read: start,
            unread_bytes: 0,
            audiences: HashMap::new(),
            last_client: 0,
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
        for audience in entry.audiences() {
            if let Some(subscribers) = self.audiences.get_mut(audience) {
                subscribers.init = None;
            }
        }
        self.unread_bytes += entry.size();
        self.history.push(entry, self.read);
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
            None => Place::Nowhere(InitReason::First),
            Some(id) if id < self.start => Place::Nowhere(InitReason::Restart),
            Some(id) if self.history.after(id).is_some() => Place::After(id),
            Some(_) => Place::Nowhere(InitReason::Gap),
        }
    }

    /// The audience's `init` and the id it is current as of, encoded once until the next event.
    pub fn init(&mut self, audience: &Audience) -> (EventId, Arc<Chunk>) {
        let id = self.history.last_id();
        let subscribers = self.audiences.get_mut(audience);
        if let Some(Subscribers { init: Some((as_of, init)), .. }) = &subscribers
            && *as_of == id
        {
            return (id, Arc::clone(init));
        }
        let data = self.document.get(audience.as_ref()).map_or_else(|| "null".into(), |(json, _)| json);
        let init = Arc::new(Chunk::of_event(Some(id), &EventName::INIT, &data));
        if let Some(subscribers) = subscribers {
            subscribers.init = Some((id, Arc::clone(&init)));
        }
        (id, init)
    }

    /// Puts a client on the list.
    pub fn add(&mut self, client: Arc<Client>) {
        self.audiences.entry(client.audience.clone()).or_default().clients.push(client);
    }

    /// The list, in no order.
    pub fn clients(&self) -> Vec<Arc<Client>> {
        self.audiences.values().flat_map(|subscribers| subscribers.clients.iter().cloned()).collect()
    }

    /// Says whether the client was on the list.
    pub fn remove(&mut self, client: &Arc<Client>) -> bool {
        let Some(subscribers) = self.audiences.get_mut(&client.audience) else { return false };
        let Some(index) = subscribers.clients.iter().position(|other| Arc::ptr_eq(other, client)) else {
            return false;
        };
        subscribers.clients.swap_remove(index);
        if subscribers.clients.is_empty() {
            self.audiences.remove(&client.audience);
        }
        true
    }
}

/// Why there is no seat for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Server,
    Address,
    Stopping,
}

/// The seats of all clients.
pub(super) struct Seats {
    most: usize,
    /// 0 for no limit.
    most_of_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    count: usize,
    /// Loopback is not counted.
    of_address: HashMap<IpAddr, usize>,
}

/// A client's seat. Dropping it gives it back.
pub(crate) struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

impl Seats {
    pub fn new(most: usize, most_of_address: usize) -> Arc<Seats> {
        Arc::new(Seats { most, most_of_address, taken: Mutex::default() })
    }

    /// A seat for a client from this address.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Result<Seat, Full> {
        let mut taken = lock(&self.taken);
        if taken.count >= self.most {
            return Err(Full::Server);
        }
        if !address.to_canonical().is_loopback() {
            let of_address = taken.of_address.entry(address).or_default();
            if self.most_of_address > 0 && *of_address >= self.most_of_address {
                return Err(Full::Address);
            }
            *of_address += 1;
        }
        taken.count += 1;
        Ok(Seat { seats: Arc::clone(self), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = lock(&self.seats.taken);
        taken.count -= 1;
        if let Some(count) = taken.of_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.of_address.remove(&self.address);
            }
        }
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
        assert_eq!(state.resume(Some(before)), Place::Nowhere(InitReason::Restart));
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

    #[test]
    fn a_seat_that_is_dropped_is_free_for_the_next() {
        let (near, far) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([192, 0, 2, 1]));
        let seats = Seats::new(3, 1);
        let first = seats.take(far).ok();
        assert_eq!(seats.take(far).err(), Some(Full::Address));
        let _near = [seats.take(near).ok(), seats.take(near).ok()];
        assert_eq!(seats.take(near).err(), Some(Full::Server));
        drop(first);
        assert!(seats.take(far).is_ok());
    }
}
