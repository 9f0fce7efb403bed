//! The wall clock and chance: what the rest takes as a parameter where a test wants to choose it.

use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, 0 on a machine whose clock is before that.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A number from `low` to `high`, both included, good enough to spread clients in time and for nothing else.
pub fn random_between(low: u64, high: u64) -> u64 {
    // Each RandomState has keys of its own, so hashing nothing at all gives another number each time.
    let number = RandomState::new().hash_one(());
    low + number % (high - low + 1)
}
