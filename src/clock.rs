//! The wall clock and chance: what the rest takes as a parameter where a test wants to choose it.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use httpdate::HttpDate;

/// The last second that a `Date` can name, of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// Time since 1970, nothing on a machine whose clock is before that.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Milliseconds since 1970, 0 on a machine whose clock is before that.
pub fn now_ms() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

/// Now as HTTP writes it. A clock outside of 1970 to 9999 gives the nearest second in it, because `httpdate` panics
/// there (date.rs:51), and so does tiny_http where an answer brings no `Date` of its own (response.rs:75).
pub fn http_date() -> String {
    let second = Duration::from_secs(since_1970().as_secs().min(LAST_SECOND));
    HttpDate::from(UNIX_EPOCH + second).to_string()
}

/// Whether HTTP can write what the clock says.
pub fn is_http_date() -> bool {
    SystemTime::now().duration_since(UNIX_EPOCH).is_ok_and(|since| since.as_secs() <= LAST_SECOND)
}

/// A number from `low` to `high`, both included. It spreads clients in time and tells servers apart, and is no secret.
/// The system's own source of chance is behind it.
pub fn random_between(low: u64, high: u64) -> u64 {
    // Each RandomState has keys of its own, so hashing nothing at all gives another number each time.
    let number = RandomState::new().hash_one(());
    low + number % (high - low + 1)
}
