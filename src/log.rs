//! The log: one line to stderr for each connect, disconnect and fault.
//!
//! Anybody may call it, the hub thread too: a line is handed over and written elsewhere, so a terminal that stands
//! still stops nobody. What does not fit meanwhile is dropped and counted.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crossbeam_channel::{Sender, unbounded};

/// Lines that may wait, or a few more. A crowd of 1,000 that comes at once should be seen whole.
const WAITING_LINES: usize = 4_096;

/// Where lines go; a clone goes to the same place.
#[derive(Clone)]
pub(crate) struct Log {
    lines: Option<Sender<String>>,
    dropped: Arc<AtomicU64>,
}

impl Log {
    /// A log that keeps silent.
    pub fn silent() -> Log {
        Log { lines: None, dropped: Arc::default() }
    }

    /// A log to stderr. Its thread ends with the last clone of the log.
    pub fn to_stderr() -> std::io::Result<Log> {
        // A channel with a bound would take the memory for all of them at the start.
        let (sender, receiver) = unbounded::<String>();
        let dropped = Arc::new(AtomicU64::new(0));
        let missed = Arc::clone(&dropped);
        thread::Builder::new().name("log".into()).spawn(move || {
            for line in receiver {
                let missed = missed.swap(0, Ordering::Relaxed);
                // A closed stderr is no reason to stop serving.
                if missed > 0 {
                    writeln!(std::io::stderr(), "statecast: {missed} lines were not written").ok();
                }
                writeln!(std::io::stderr(), "statecast: {line}").ok();
            }
        })?;
        Ok(Log { lines: Some(sender), dropped })
    }

    /// Hands a line over; never waits.
    pub fn line(&self, line: impl FnOnce() -> String) {
        let Some(lines) = &self.lines else { return };
        if lines.len() < WAITING_LINES {
            lines.send(line()).ok();
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
