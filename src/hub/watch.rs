//! Waiting for clients: to come, to leave, to have what was published.
//!
//! The hub and its threads tell; whoever holds the server waits. The one rule: whoever changes something tells
//! afterwards, and whoever waits looks again if something was told since the last look began. Nobody looks with the
//! lock held, so the hub never waits for a look.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;

use crate::document::to_json;
use crate::hub::client::ClientStatus;
use crate::lock::lock;
use crate::sse::event::EventId;

pub(crate) struct Watch {
    told: Mutex<Told>,
    more: Condvar,
}

#[derive(Clone, Copy)]
struct Told {
    count: u64,
    /// What the fan-out thread has written to every live client.
    delivered: EventId,
    /// Mostly none, and then nobody needs to be woken.
    waiting: usize,
}

impl Watch {
    /// A watch over a hub that starts at this place.
    pub fn new(start: EventId) -> Watch {
        Watch { told: Mutex::new(Told { count: 0, delivered: start, waiting: 0 }), more: Condvar::new() }
    }

    /// Says that some client is not as it was.
    pub fn tell(&self) {
        self.tell_more(self.lock());
    }

    /// Says that the fan-out thread is done with everything up to this id.
    pub fn tell_delivered(&self, to: EventId) {
        let mut told = self.lock();
        told.delivered = to;
        self.tell_more(told);
    }

    /// What `look` finds, which is asked at once and whenever something was told; `None` if it finds nothing until
    /// the deadline. It is given the place up to which the fan-out thread is done.
    pub fn wait<T>(&self, deadline: Instant, mut look: impl FnMut(EventId) -> Option<T>) -> Option<T> {
        loop {
            // The last look comes after the deadline: what came just before it counts, and what keeps coming ends.
            let left = deadline.saturating_duration_since(Instant::now());
            let Told { count, delivered, .. } = *self.lock();
            let found = look(delivered);
            if found.is_some() || left.is_zero() {
                return found;
            }
            let mut told = self.lock();
            told.waiting += 1;
            let is_as_it_was = |told: &mut Told| told.count == count;
            let waited = self.more.wait_timeout_while(told, left, is_as_it_was);
            waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
        }
    }

    fn tell_more(&self, mut told: MutexGuard<'_, Told>) {
        told.count += 1;
        if told.waiting > 0 {
            self.more.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        // Three numbers are never left half-changed.
        lock(&self.told)
    }
}

/// What was waited for has not come about in time; and what there was instead.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TimedOut {
    /// Of [`wait_for_state`](crate::Server::wait_for_state).
    State(Value),
    /// Of [`wait_for_clients`](crate::Server::wait_for_clients).
    Clients {
        /// So many were waited for.
        expected: usize,
        /// There were these.
        clients: Vec<ClientStatus>,
    },
    /// Of [`wait_delivered`](crate::Server::wait_delivered).
    Delivery {
        /// The event that was waited for.
        id: EventId,
        /// Those that do not have it: their connections take nothing, they are only just being caught up, or the
        /// server has published no such event yet.
        lacking: Vec<ClientStatus>,
    },
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clients = match self {
            TimedOut::State(document) => return write!(f, "the document is still {}", to_json(document)),
            TimedOut::Clients { expected, clients } => {
                write!(f, "expected {expected} clients, there are {}", clients.len())?;
                clients
            }
            TimedOut::Delivery { id, lacking } => {
                write!(f, "event {id} is not delivered, {} clients lack it", lacking.len())?;
                lacking
            }
        };
        for (index, client) in clients.iter().enumerate() {
            write!(f, "{} {client}", if index == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

impl std::error::Error for TimedOut {}
