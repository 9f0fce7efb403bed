//! The thread that saves the document to its file.
//!
//! It saves at most once a second, or as `--save-every` says, and when the server stops, so that an SD card lives long; at a
//! stop it puts the history beside it.
//! The one rule: nobody waits for the disk longer than he said he would; the thread may stand still in it for as long as
//! it likes.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::document::Document;
use crate::hub::Hub;
use crate::lock::lock;
use crate::log::Log;
use crate::server::kept_file::{KeptFile, about};
use crate::sse::event::EventId;

/// The saver; a clone is the same one.
#[derive(Clone)]
pub(crate) struct Saver(Arc<Saving>);

struct Saving {
    /// The file's name, for messages.
    named: PathBuf,
    hub: Arc<Hub>,
    log: Log,
    /// Between two saves.
    pause: Duration,
    /// Set while saving fails.
    is_failing: Arc<AtomicBool>,
    /// Rung by the hub, too.
    bell: Sender<()>,
    state: Mutex<Save>,
    /// A stop has begun, or the thread has ended.
    told: Condvar,
}

struct Save {
    /// The change that the file is as of.
    saved: EventId,
    /// Why the last save failed, if it did.
    fault: Option<(ErrorKind, String)>,
    /// The end of the wait for a stop that has begun.
    stop_by: Option<Instant>,
    has_ended: bool,
}

impl Saver {
    /// Saves the hub's document whenever the bell rings, until it is told to stop.
    pub fn start(
        file: KeptFile,
        hub: Arc<Hub>,
        (bell, rung): (Sender<()>, Receiver<()>),
        pause: Duration,
        is_failing: Arc<AtomicBool>,
        log: Log,
    ) -> io::Result<Saver> {
        // What was read at the start need not be saved.
        let saved = hub.read(Document::last_change);
        let state = Mutex::new(Save { saved, fault: None, stop_by: None, has_ended: false });
        let named = file.named().to_owned();
        let shared =
            Arc::new(Saving { named, hub, log, pause, is_failing, bell, state, told: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        thread::Builder::new().name("saver".into()).spawn(move || {
            of_thread.run(file, &rung);
        })?;
        Ok(Saver(shared))
    }

    /// Saves what has changed, now and not later, and ends. Returns at once; the document may not change any more.
    /// Nobody waits for it beyond `deadline`.
    pub fn begin_stop(&self, deadline: Instant) {
        lock(&self.0.state).stop_by = Some(deadline);
        self.0.told.notify_all();
        // Full: it rings already.
        self.0.bell.try_send(()).ok();
    }

    /// Waits for the end of the stop, until its deadline.
    ///
    /// # Errors
    /// What the file lacks then, and why. The thread goes on if it is the disk that takes its time.
    pub fn wait(&self) -> io::Result<()> {
        let has_begun = self.0.told.wait_while(lock(&self.0.state), |state| state.stop_by.is_none());
        let state = has_begun.unwrap_or_else(PoisonError::into_inner);
        let left = state.stop_by.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()));
        let waited = self.0.told.wait_timeout_while(state, left, |state| !state.has_ended);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let (saved, last) = (state.saved, self.0.hub.read(Document::last_change));
        if saved == last {
            return Ok(());
        }
        let (kind, why) = match &state.fault {
            Some((kind, text)) if state.has_ended => (*kind, text.as_str()),
            _ => (ErrorKind::TimedOut, "the disk has not done it within --grace"),
        };
        let text = format!("the document is not saved: {why}; the file has it as of {saved}, and not {last}");
        Err(about(&self.0.named, kind, &text))
    }
}

impl Saving {
    fn run(&self, mut file: KeptFile, rung: &Receiver<()>) {
        if let Err(error) = file.remove_history() {
            self.log.line(|| error.to_string());
            self.hub.forget_history();
        }
        loop {
            let is_faulty = lock(&self.state).fault.is_some();
            rung.recv_timeout(if is_faulty { self.pause } else { Duration::MAX }).ok();
            self.save(&mut file);
            if self.stops_within(self.pause) {
                break;
            }
        }
        self.save(&mut file);
        self.save_history(&mut file);
        // Whoever has waited may open it again.
        drop(file);
        lock(&self.state).has_ended = true;
        self.told.notify_all();
    }

    fn stops_within(&self, pause: Duration) -> bool {
        let waited = self.told.wait_timeout_while(lock(&self.state), pause, |state| state.stop_by.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.stop_by.is_some()
    }

    /// Puts beside the saved document what the next server goes on with.
    fn save_history(&self, file: &mut KeptFile) {
        if lock(&self.state).fault.is_none()
            && let Some(stream) = self.hub.write_out()
            && let Err(error) = file.save_history(&stream)
        {
            self.log.line(|| error.to_string());
        }
    }

    fn save(&self, file: &mut KeptFile) {
        if self.hub.read(Document::last_change) == lock(&self.state).saved {
            return;
        }
        let (json, id) = self.hub.read(|document| (document.json(), document.last_change()));
        let before = file.describe();
        let saved = file.save(&json);
        if file.describe() != before {
            self.log.line(|| format!("the document is {}", file.describe()));
        }
        let path = self.named.display();
        let mut state = lock(&self.state);
        self.is_failing.store(saved.is_err(), Ordering::Relaxed);
        match saved {
            Ok(()) => {
                state.saved = id;
                if state.fault.take().is_some() {
                    self.log.line(|| format!("the document is saved again to {path}"));
                }
            }
            Err(error) => {
                self.hub.metrics.save_faults.add(1);
                // Said once: it is tried again and again.
                if state.fault.is_none() {
                    self.log.line(|| format!("the document cannot be saved to {path}: {error}"));
                }
                state.fault = Some((error.kind(), error.to_string()));
            }
        }
    }
}
