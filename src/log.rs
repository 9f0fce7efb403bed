//! The log: one line to stderr for each connect, disconnect, refused write and fault.
//!
//! Any thread may call it, because a thread of its own writes the lines: a terminal that stands still stops nobody. Lines
//! that do not fit meanwhile are dropped and counted.

use std::io::{IsTerminal, Write, stderr};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use crate::clock::timestamp;
use crate::lock::lock;

/// Lines that may wait. 1,000 clients that come at once are all to be seen.
const WAITING_LINES: usize = 4_096;

/// Refusals that get a line in a second. Whoever sends nonsense on purpose must not fill the disk.
const REFUSALS: usize = 5;

/// Where lines go; a clone goes to the same place.
#[derive(Clone)]
pub(crate) struct Log {
    /// The lines that wait, and the bell of the thread that writes them.
    thread: Option<(Arc<Lines>, Sender<()>)>,
}

#[derive(Default)]
struct Lines {
    /// A journal has the time of each line itself.
    have_time: bool,
    waiting: Mutex<Waiting>,
    refusals: Mutex<Refusals>,
    /// Nothing waits any more.
    written: Condvar,
}

#[derive(Default)]
struct Waiting {
    text: String,
    lines: usize,
    /// Some are on their way to the terminal.
    are_written: bool,
    dropped: usize,
}

/// The refusals of the second that began at `since`, and those of earlier ones that got no line.
#[derive(Default)]
struct Refusals {
    since: Option<Instant>,
    count: usize,
    left_out: usize,
}

impl Log {
    /// A log that keeps silent.
    pub fn silent() -> Log {
        Log { thread: None }
    }

    /// A log to stderr. Its thread ends with the last clone of the log.
    pub fn to_stderr() -> std::io::Result<Log> {
        // The variable is handed down to a terminal that the journal's service started.
        let have_time = std::env::var_os("JOURNAL_STREAM").is_none() || stderr().is_terminal();
        let lines = Arc::new(Lines { have_time, ..Lines::default() });
        let (bell, rung) = bounded(1);
        let log = Log { thread: Some((Arc::clone(&lines), bell)) };
        thread::Builder::new().name("log".into()).spawn(move || {
            for () in rung {
                let written = Waiting { are_written: true, ..Waiting::default() };
                let Waiting { text, dropped, .. } = std::mem::replace(&mut *lock(&lines.waiting), written);
                // Errors are ignored, because a server goes on without its stderr.
                stderr().write_all(text.as_bytes()).ok();
                if dropped > 0 {
                    writeln!(stderr(), "statecast: {dropped} lines were not written").ok();
                }
                lock(&lines.waiting).are_written = false;
                lines.written.notify_all();
            }
        })?;
        Ok(log)
    }

    /// Hands a line over; never waits.
    pub fn line(&self, line: impl FnOnce() -> String) {
        let Some((lines, bell)) = &self.thread else { return };
        let time = if lines.have_time { timestamp() + " " } else { String::new() };
        let line = line();
        let mut waiting = lock(&lines.waiting);
        if waiting.lines < WAITING_LINES {
            waiting.lines += 1;
            waiting.text.extend([&*time, "statecast: ", &line, "\n"]);
        } else {
            waiting.dropped += 1;
        }
        drop(waiting);
        // A full bell rings already.
        bell.try_send(()).ok();
    }

    /// Waits until every line is written, so long at most.
    pub fn flush(&self, patience: Duration) {
        let Some((lines, _)) = &self.thread else { return };
        let waits = |waiting: &mut Waiting| waiting.lines > 0 || waiting.are_written;
        let waited = lines.written.wait_timeout_while(lock(&lines.waiting), patience, waits);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Hands over the line of a refusal, unless there were many in this second; those are counted.
    pub fn refusal(&self, line: impl FnOnce() -> String) {
        let Some((lines, _)) = &self.thread else { return };
        let mut refusals = lock(&lines.refusals);
        if refusals.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            refusals.since = Some(Instant::now());
            refusals.count = 0;
        }
        refusals.count += 1;
        if refusals.count > REFUSALS {
            refusals.left_out += 1;
            return;
        }
        let left_out = std::mem::take(&mut refusals.left_out);
        drop(refusals);
        if left_out > 0 {
            self.line(|| format!("{left_out} more were refused"));
        }
        self.line(line);
    }
}
