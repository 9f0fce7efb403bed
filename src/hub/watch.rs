//! Waiting for clients: to come, to leave, to have what was published.
//!
//! The hub and its threads tell; whoever holds the server waits. The one rule: whoever changes something tells
//! afterwards, and whoever waits looks again if something was told since the last look began. Nobody looks with the
//! lock held, so the hub never waits for a look.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::lock::lock;

#[derive(Default)]
pub(crate) struct Watch {
    told: Mutex<Told>,
    more: Condvar,
}

#[derive(Default)]
struct Told {
    count: u64,
    /// Mostly none, and then nobody needs to be woken.
    waiting: usize,
}

impl Watch {
    /// Says that something is not as it was.
    pub fn tell(&self) {
        let mut told = lock(&self.told);
        told.count += 1;
        if told.waiting > 0 {
            self.more.notify_all();
        }
    }

    /// What `look` finds, which is asked at once and whenever something was told; `None` if it finds nothing until
    /// the deadline.
    pub fn wait<T>(&self, deadline: Instant, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            // The last look comes after the deadline: what came just before it counts, and what keeps coming ends.
            let left = deadline.saturating_duration_since(Instant::now());
            let count = lock(&self.told).count;
            let found = look();
            if found.is_some() || left.is_zero() {
                return found;
            }
            let mut told = lock(&self.told);
            told.waiting += 1;
            let waited = self.more.wait_timeout_while(told, left, |told| told.count == count);
            waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
        }
    }
}
