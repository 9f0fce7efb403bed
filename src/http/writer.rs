//! A patient writer: an answer is written by whoever took the request, for as long as its reader takes it, within bounds.

use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

use crate::http::turn::SlowPlace;

/// Who takes nothing for so long is slow; a large answer alone does not make anybody so.
const SLOW: Duration = Duration::from_millis(250);

/// A slow peer takes at least so many bytes a second.
const SLOWEST: u64 = 8 << 10;

/// A writer that goes on where tiny_http's own answers would stop: at a write that takes part or would block.
pub(super) struct Patient {
    writer: Box<dyn Write + Send>,
    /// Without progress for so long it gives up.
    patience: Duration,
    /// Taken when the peer turns out slow: a few slow peers must not take all threads.
    slow: SlowPlace,
    /// What is left of the time for a slow peer: it grows with what the peer takes.
    until: Option<Instant>,
}

impl Patient {
    pub fn new(writer: Box<dyn Write + Send>, patience: Duration, slow: SlowPlace) -> Patient {
        Patient { writer, patience, slow, until: None }
    }

    fn persist<T>(&mut self, mut attempt: impl FnMut(&mut dyn Write) -> io::Result<T>) -> io::Result<T> {
        let mut blocked_since = None;
        loop {
            match attempt(&mut self.writer) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    // The socket's own send timeout makes this loop wait.
                    let now = Instant::now();
                    let blocked_since = *blocked_since.get_or_insert(now);
                    let until = *self.until.get_or_insert(now + self.patience);
                    let is_slow = now - blocked_since > SLOW;
                    if is_slow && !self.slow.take() || now >= until.min(blocked_since + self.patience) {
                        return Err(ErrorKind::TimedOut.into());
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.persist(|writer| writer.write(bytes))?;
        if let Some(until) = &mut self.until {
            *until += Duration::from_millis(count as u64 * 1_000 / SLOWEST);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.persist(|writer| writer.flush())
    }
}
