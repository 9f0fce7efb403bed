//! The wire: where `http` and `hub` meet, without knowing each other.

use std::io::Write;

/// Where a stream's bytes go. Writing to it never waits; dropping it closes the connection.
pub(crate) trait Wire: Write + Send {
    /// Bytes that the kernel took and the peer has not acknowledged; `None` where nobody knows.
    fn unacknowledged(&self) -> Option<u64>;

    /// Whether it takes nothing for a reason of its own, so that the peer is not to blame.
    fn is_held(&self) -> bool {
        false
    }
}
