//! Waiting for clients: to come, to leave, to have what was published.
//!
//! The hub and its threads tell; whoever holds the server waits. The one rule: whoever changes something tells
//! afterwards, and telling takes the lock under which a waiting thread looks, so nobody waits for what has happened.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::event::EventId;
use crate::stream::ClientStatus;

pub(crate) struct Watch {
    seen: Mutex<Seen>,
    told: Condvar,
}

struct Seen {
    /// What the hub thread has written to every live client.
    delivered: EventId,
    /// Mostly none, and then nobody needs to be woken.
    waiting: usize,
}

impl Watch {
    /// A watch over a hub that starts at this place.
    pub fn new(start: EventId) -> Watch {
        Watch { seen: Mutex::new(Seen { delivered: start, waiting: 0 }), told: Condvar::new() }
    }

    /// Says that some client is not as it was.
    pub fn tell(&self) {
        self.wake(&self.lock());
    }

    /// Says that the hub thread is done with everything up to this id.
    pub fn tell_delivered(&self, to: EventId) {
        let mut seen = self.lock();
        seen.delivered = to;
        self.wake(&seen);
    }

    /// What `look` finds, which is asked at once and whenever something was told; `None` if it finds nothing until
    /// the deadline. It is given the place up to which the hub thread is done.
    pub fn wait<T>(&self, deadline: Instant, mut look: impl FnMut(EventId) -> Option<T>) -> Option<T> {
        let mut seen = self.lock();
        seen.waiting += 1;
        let found = loop {
            let found = look(seen.delivered);
            let left = deadline.saturating_duration_since(Instant::now());
            if found.is_some() || left.is_zero() {
                break found;
            }
            seen = self.told.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        seen.waiting -= 1;
        found
    }

    fn wake(&self, seen: &Seen) {
        if seen.waiting > 0 {
            self.told.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Two numbers are never left half-changed.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was waited for has not come about in time; and what there was instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimedOut {
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
