//! Following the journal, and making one of what it has and what is here.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::clock::random_between;
use crate::hub::draft::Judged;
use crate::hub::shared::Shared;
use crate::hub::shared::happening::{Fit, Happening, Loaded, What};
use crate::hub::{Hub, spawn};
use crate::journal::{Connection, Fault, PAGE, Record};
use crate::lock::lock;
use crate::sse::event::EventId;

/// Between two attempts to connect: at first, and at most. The times are jittered.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Records, those that are somebody else's among them.
type Came = Vec<Result<Record, Fault>>;

impl Hub {
    /// Starts the thread that follows the journal, if there is one: what ends it, and what it ends with.
    pub(in crate::hub) fn start_following(self: Arc<Self>) -> io::Result<Option<(Sender<()>, Receiver<()>)>> {
        if self.shared.is_none() {
            return Ok(None);
        }
        self.metrics.journal.connected.set(1);
        let ((stop, stopped), (end, ended)) = (bounded(0), bounded(0));
        spawn("follow", move || {
            let _end: Sender<()> = end;
            if let Some(shared) = &self.shared {
                self.run_follow(shared, &stopped);
            }
        })?;
        Ok(Some((stop, ended)))
    }

    /// The thread that follows the journal, until `stop` has no sender any more.
    fn run_follow(&self, shared: &Shared, stop: &Receiver<()>) {
        let (mut connection, mut pause, mut wait) = (None, PAUSES.0, Duration::ZERO);
        while stop.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            wait = Duration::ZERO;
            match self.follow(shared, &mut connection) {
                Ok(()) => pause = PAUSES.0,
                Err(fault) => {
                    connection = None;
                    self.lose(shared, fault);
                    let ms = pause.as_millis() as u64;
                    wait = Duration::from_millis(random_between(ms / 2, ms));
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    /// Takes in what comes next, or finds after a while that nothing came.
    fn follow(&self, shared: &Shared, connection: &mut Option<Connection>) -> Result<(), Fault> {
        if !shared.is_up() {
            *connection = None;
            let mut writer = shared.journal.connect()?;
            self.reconcile(shared, &mut writer, false)?;
            *lock(&shared.writer) = Some(writer);
            self.find(shared);
        }
        let connection = shared.journal.connected(connection)?;
        let came = connection.wait_after(self.last_id())?;
        let fit = if came.is_empty() {
            if connection.last_id()? == Some(self.last_id()) { Fit::Known } else { Fit::Astray }
        } else {
            self.take_in_all(came)?
        };
        if fit.is_right() {
            return Ok(());
        }
        // Nobody here appends meanwhile.
        let _writer = lock(&shared.writer);
        self.reconcile(shared, connection, fit == Fit::Diverged)
    }

    /// Makes one of the journal and what is here, unless what is here `is_wrong`.
    fn reconcile(&self, shared: &Shared, connection: &mut Connection, is_wrong: bool) -> Result<(), Fault> {
        if !is_wrong && self.agree(connection)? {
            return Ok(());
        }
        let loaded = Loaded::read(connection, &self.config)?;
        let count = self.take_branch(shared, loaded);
        self.metrics.journal.branches.add(1);
        self.log.line(|| {
            format!("took what Redis has, for it does not go on from here; {count} streams begin anew")
        });
        Ok(())
    }

    /// Whether the journal goes on from here, once it has what it lacks. Where several give it that, one of them does.
    fn agree(&self, connection: &mut Connection) -> Result<bool, Fault> {
        loop {
            let last = self.last_id();
            let end = connection.last_id()?.unwrap_or(EventId::NONE);
            if end == last {
                return Ok(true);
            }
            let next = connection.after(last, 1)?.pop().transpose()?;
            let next = next.map(|next| Happening::of(next, self.config.max_document_bytes)).transpose()?;
            if next.is_some_and(|next| next.before == last) {
                return Ok(true);
            }
            let lacks_the_end = end < last && (end == EventId::NONE || self.knows(end));
            if !lacks_the_end {
                return Ok(false);
            }
            if let Some(count) = self.append_document(connection, end)? {
                self.metrics.journal.restored.add(1);
                let what = if end == EventId::NONE { "was empty" } else { "had lost its end" };
                self.log.line(|| format!("Redis {what}: it has {count} events and the document from here"));
                return Ok(true);
            }
        }
    }

    /// Takes in what came of others, and makes up for what did not follow.
    pub(super) fn make_up(
        &self,
        shared: &Shared,
        connection: &mut Connection,
        came: Came,
    ) -> Result<(), Fault> {
        let fit = if came.is_empty() { Fit::Astray } else { self.take_in_all(came)? };
        if fit.is_right() {
            return Ok(());
        }
        self.reconcile(shared, connection, fit == Fit::Diverged)
    }

    fn take_in_all(&self, came: Came) -> Result<Fit, Fault> {
        for record in came {
            let fit = self.take_in(Happening::of(record?, self.config.max_document_bytes)?);
            self.ring();
            if !fit.is_right() {
                return Ok(fit);
            }
        }
        Ok(Fit::Known)
    }

    /// The one way into the document and the history. Waits while delivery is far behind.
    pub(super) fn take_in(&self, happening: Happening) -> Fit {
        let Happening { id, before, what, entry } = happening;
        let mut state = self.lock_to_publish();
        let last = state.history.last_id();
        if id <= last {
            let is_known = id <= state.history.first_place() || state.history.after(id).is_some();
            return if is_known { Fit::Known } else { Fit::Astray };
        }
        if before != last {
            return Fit::Astray;
        }
        if state.stopping {
            // Clients and the file have got their last. The journal has it.
            return Fit::Known;
        }
        let is_change = matches!(what, What::Judged(Judged::Update(_)));
        match what {
            What::Judged(Judged::Update(patch)) => state.document.apply(patch, id),
            What::Judged(Judged::OneOff(..)) | What::Document(None) => {}
            What::Document(Some(document)) if document.is_same(&state.document) => {
                state.document_at = id;
                state.document_bytes = state.published_bytes;
            }
            What::Document(Some(_)) => {
                drop(state);
                self.metrics.journal.divergences.add(1);
                self.log.line(|| format!("the document is not what Redis has at {id}"));
                return Fit::Diverged;
            }
        }
        state.publish(entry);
        drop(state);
        if is_change {
            self.changed.try_send(()).ok();
        }
        Fit::Follows
    }

    /// Puts what the journal has in the place of what is here, and says how many streams begin anew.
    fn take_branch(&self, shared: &Shared, loaded: Loaded) -> usize {
        let passes = shared.passes.write().unwrap_or_else(PoisonError::into_inner);
        let clients = self.lock().replace(loaded);
        let mut count = 0;
        for (read, client) in clients {
            let (was_live, is_anew) = client.set_back(read, |place| self.knows(place));
            count += usize::from(is_anew);
            if was_live {
                self.hand_over(Some(client));
            }
        }
        drop(passes);
        self.has_read.notify_all();
        self.changed.try_send(()).ok();
        self.watch.tell();
        count
    }

    /// Reads the journal up to its end, if an id that another server has told is ahead of what is here.
    pub fn reach(&self, id: EventId) {
        let Some(shared) = &self.shared else { return };
        let is_ahead = || self.last_id() < id && shared.is_up();
        if !is_ahead() {
            return;
        }
        let mut reader = lock(&shared.reader);
        // Somebody may have read it while this one waited.
        for _ in 0..2 {
            let read = if is_ahead() { self.read_on(shared, &mut reader) } else { Ok(()) };
            match read {
                // Redis ends what is idle for long.
                Err(Fault::Lost(_)) => *reader = None,
                Err(fault @ Fault::Silent) => {
                    *reader = None;
                    return self.lose(shared, fault);
                }
                // What is not right, whoever follows the journal sees to.
                Ok(()) | Err(Fault::Refused(_) | Fault::Foreign(..)) => return,
            }
        }
    }

    fn read_on(&self, shared: &Shared, reader: &mut Option<Connection>) -> Result<(), Fault> {
        let connection = shared.journal.connected(reader)?;
        loop {
            let came = connection.after(self.last_id(), PAGE)?;
            let is_end = came.len() < PAGE;
            if !self.take_in_all(came)?.is_right() || is_end {
                return Ok(());
            }
        }
    }
}
