//! The wall clock, and chance.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use httpdate::HttpDate;

/// The last second that a `Date` can name, of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// Time since 1970; zero while the clock is before that.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Milliseconds since 1970; 0 while the clock is before that.
pub fn now_ms() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

/// The time now, as HTTP writes it. A clock outside of 1970 to 9999 gives the nearest second within, because `httpdate`
/// panics outside (date.rs:51). So does tiny_http where an answer has no `Date` of its own (response.rs:75).
pub fn http_date() -> String {
    let second = Duration::from_secs(since_1970().as_secs().min(LAST_SECOND));
    HttpDate::from(UNIX_EPOCH + second).to_string()
}

/// The time now in UTC, as RFC 3339 writes it: `2026-11-27T08:00:00Z`.
pub fn timestamp() -> String {
    let date = http_date();
    let (day, month, year, time) = (&date[5..7], &date[8..11], &date[12..16], &date[17..25]);
    let month = "JanFebMarAprMayJunJulAugSepOctNovDec".find(month).map_or(0, |place| place / 3 + 1);
    format!("{year}-{month:02}-{day}T{time}Z")
}

/// Whether HTTP can write the clock's time.
pub fn is_http_date() -> bool {
    SystemTime::now().duration_since(UNIX_EPOCH).is_ok_and(|since| since.as_secs() <= LAST_SECOND)
}

/// A random number from `low` to `high`, both included, from the system's source of chance. It spreads clients in time and
/// tells servers apart. It is not for secrets.
pub fn random_between(low: u64, high: u64) -> u64 {
    // Each RandomState has keys of its own, so the hash of nothing is another number each time.
    let number = RandomState::new().hash_one(());
    low + number % (high - low + 1)
}
