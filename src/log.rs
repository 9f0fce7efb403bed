//! The log: one line to stderr for each connect, disconnect and fault.
//!
//! Anybody may call it, the fan-out thread too: a line is handed over and written elsewhere, so a terminal that stands
//! still stops nobody. What does not fit meanwhile is dropped and counted.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::thread;

use crossbeam_channel::{Sender, bounded};

use crate::lock::lock;

/// Lines that may wait. A crowd of 1,000 that comes at once should be seen whole.
const WAITING_LINES: usize = 4_096;

/// Where lines go; a clone goes to the same place.
#[derive(Clone)]
pub(crate) struct Log {
    /// What waits, and the bell of the thread that writes it.
    thread: Option<(Arc<Mutex<Waiting>>, Sender<()>)>,
}

#[derive(Default)]
struct Waiting {
    text: String,
    lines: usize,
    dropped: usize,
}

impl Log {
    /// A log that keeps silent.
    pub fn silent() -> Log {
        Log { thread: None }
    }

    /// A log to stderr. Its thread ends with the last clone of the log.
    pub fn to_stderr() -> std::io::Result<Log> {
        let waiting = Arc::<Mutex<Waiting>>::default();
        let (bell, rung) = bounded(1);
        let log = Log { thread: Some((Arc::clone(&waiting), bell)) };
        thread::Builder::new().name("log".into()).spawn(move || {
            for () in rung {
                let Waiting { text, dropped, .. } = std::mem::take(&mut *lock(&waiting));
                // A closed stderr is no reason to stop serving.
                std::io::stderr().write_all(text.as_bytes()).ok();
                if dropped > 0 {
                    writeln!(std::io::stderr(), "statecast: {dropped} lines were not written").ok();
                }
            }
        })?;
        Ok(log)
    }

    /// Hands a line over; never waits.
    pub fn line(&self, line: impl FnOnce() -> String) {
        let Some((waiting, bell)) = &self.thread else { return };
        let line = line();
        let mut waiting = lock(waiting);
        if waiting.lines < WAITING_LINES {
            waiting.lines += 1;
            waiting.text.extend(["statecast: ", &line, "\n"]);
        } else {
            waiting.dropped += 1;
        }
        drop(waiting);
        // Full: it rings already.
        bell.try_send(()).ok();
    }
}
