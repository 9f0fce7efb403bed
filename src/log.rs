//! The log: one line to stderr for each connect, disconnect and fault.
//!
//! Any thread may call it, because a thread of its own writes the lines: a terminal that stands still stops nobody. Lines
//! that do not fit meanwhile are dropped and counted.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::thread;

use crossbeam_channel::{Sender, bounded};

use crate::lock::lock;

/// Lines that may wait. 1,000 clients that come at once are all to be seen.
const WAITING_LINES: usize = 4_096;

/// Where lines go; a clone goes to the same place.
#[derive(Clone)]
pub(crate) struct Log {
    /// The lines that wait, and the bell of the thread that writes them.
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
                // Errors are ignored, because a server goes on without its stderr.
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
        // A full bell rings already.
        bell.try_send(()).ok();
    }
}
