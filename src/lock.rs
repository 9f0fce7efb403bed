//! One way to lock what is never left half-changed, whoever panics meanwhile.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks it, also after a panic in a thread that held it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
