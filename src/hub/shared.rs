//! Sharing: one document and one history for several servers, in the order of a journal.
//!
//! Whoever publishes appends to the journal what all who wait have drafted, and one thread follows it. What is in it comes
//! to the document and the history through one function, `take_in`. The one rule: nothing is published that the journal
//! does not have, and a server that cannot go on from what it has takes what the journal has.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use serde_json::Value;

use crate::clock::{now_ms, random_between};
use crate::config::Config;
use crate::document::{Document, Refusal, parse_as, patch_of, to_json};
use crate::hub::draft::{Draft, Judged};
use crate::hub::history::{Entry, EventData, History};
use crate::hub::state::State;
use crate::hub::{Hub, UNREAD_BYTES, spawn};
use crate::journal::{Appended, Connection, DEADLINE, Fault, Journal, PAGE, Record};
use crate::lock::lock;
use crate::sse::event::{EventId, EventName, Topic};

/// Between two attempts to connect: at first, and at most. The times are jittered.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Bytes of drafts in one call, about.
const BATCH_BYTES: usize = 1 << 20;

/// Records of history that an empty journal gets, at most: they go into one call.
const MOST_RESTORED: usize = 100_000;

/// What the hub has where it shares.
pub(crate) struct Shared {
    journal: Journal,
    /// Drafts that wait for whoever commits next.
    queue: Mutex<Vec<Arc<Waiting>>>,
    /// Whoever holds it appends. Locked before the hub's.
    writer: Mutex<Option<Connection>>,
    /// For reading up to an id that another server has told. Whoever holds it reads, one at a time.
    reader: Mutex<Option<Connection>>,
    link: Mutex<Link>,
    /// The journal was, at the start.
    was_empty: AtomicBool,
    /// Held by each pass of a fan-out thread. Whoever takes another branch waits for their end, or the rest of a pass would
    /// come behind the new document.
    passes: RwLock<()>,
}

/// Whether the journal can be used.
#[derive(Default)]
struct Link {
    is_up: bool,
    /// Since when it cannot, and what was logged of it.
    lost: Option<(Instant, Fault)>,
}

/// A draft, and what has become of it.
struct Waiting {
    draft: Draft,
    answer: Mutex<Option<Result<EventId, Refusal>>>,
}

/// A record that was understood.
struct Happening {
    id: EventId,
    before: EventId,
    what: What,
    entry: Entry,
}

enum What {
    Judged(Judged),
    /// The document as it is then, for whoever has none. Without it the record is a place.
    Document(Option<Box<Document>>),
}

/// How a record fits.
#[derive(PartialEq)]
enum Fit {
    Follows,
    Known,
    /// It is of another branch.
    Astray,
    /// It has another document than there is here.
    Diverged,
}

/// Drafts as they were judged: those that may be published, and the others.
struct Batch {
    expected: EventId,
    keep_from: EventId,
    accepted: Vec<(usize, EventId, Judged)>,
    refused: Vec<(usize, Refusal)>,
}

/// What a journal holds, put together record by record.
pub(super) struct Loading {
    pub history: History,
    pub document: Option<Document>,
    pub document_at: EventId,
    pub since_document: u64,
    broken_at: Option<EventId>,
    history_bytes: usize,
}

impl Shared {
    /// What is to be shared by, if anything.
    pub fn of(config: &Config) -> Option<Shared> {
        let journal = Journal { url: config.redis.clone()?, key: config.redis_key.clone() };
        Some(Shared {
            journal,
            queue: Mutex::default(),
            writer: Mutex::default(),
            reader: Mutex::default(),
            link: Mutex::default(),
            passes: RwLock::new(()),
            was_empty: AtomicBool::new(false),
        })
    }

    /// For a person who has just started a server.
    pub fn describe(&self, last: EventId) -> String {
        let Journal { url, key } = &self.journal;
        let how = if self.was_empty.load(Ordering::Relaxed) { "empty before, seeded" } else { "found" };
        format!("{url}, key {key}, {how}; last id {last}")
    }

    fn is_up(&self) -> bool {
        lock(&self.link).is_up
    }

    /// For how long the journal could not be used.
    pub fn lost_for(&self) -> Duration {
        lock(&self.link).lost.as_ref().map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }
}

/// Publishing.
impl Hub {
    /// Publishes a draft through the journal. Whoever comes to the writer first does it for all that wait.
    pub(super) fn share(&self, shared: &Shared, draft: Draft) -> Result<EventId, Refusal> {
        let waiting = Arc::new(Waiting { draft, answer: Mutex::default() });
        lock(&shared.queue).push(Arc::clone(&waiting));
        let mut writer = lock(&shared.writer);
        // What is in the way is less than the batches of all others.
        loop {
            if let Some(answer) = lock(&waiting.answer).take() {
                return answer;
            }
            let batch = next_batch(&mut lock(&shared.queue));
            self.commit(shared, &mut writer, &batch);
        }
    }

    fn commit(&self, shared: &Shared, writer: &mut Option<Connection>, batch: &[Arc<Waiting>]) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let judged = self.judge(batch);
            if judged.accepted.is_empty() {
                return judged.answer(batch, None);
            }
            let Some(connection) = writer.as_mut().filter(|_| shared.is_up()) else {
                return judged.answer(batch, Some(&Refusal::NotPublished));
            };
            let records = judged.records();
            let tried = match connection.append(judged.expected, Some(judged.keep_from), &records) {
                Ok(Appended::Done) => {
                    self.metrics.journal.batches.add(1);
                    // Nobody is answered before the writer is free.
                    judged.answer(batch, None);
                    return self.take_in_own(shared, writer, judged);
                }
                Ok(Appended::Conflict(came)) => {
                    self.metrics.journal.conflicts.add(1);
                    self.make_up(shared, connection, came)
                }
                Err(fault) => Err(fault),
            };
            let refusal = match tried {
                Ok(()) if Instant::now() < deadline => continue,
                Ok(()) => Refusal::NotPublished,
                Err(fault) => {
                    let refusal = if matches!(fault, Fault::Lost(_)) {
                        Refusal::NotKnown
                    } else {
                        Refusal::NotPublished
                    };
                    *writer = None;
                    self.lost(shared, fault);
                    refusal
                }
            };
            return judged.answer(batch, Some(&refusal));
        }
    }

    /// Judges drafts in their order, each on top of those before it.
    fn judge(&self, batch: &[Arc<Waiting>]) -> Batch {
        let mut state = self.lock();
        let expected = state.history.last_id();
        let keep_from = state.history.before().min(state.document_at);
        let mut judged = Batch { expected, keep_from, accepted: Vec::new(), refused: Vec::new() };
        let mut undo = Vec::new();
        let mut last = expected;
        for (index, waiting) in batch.iter().enumerate() {
            match waiting.draft.clone().judge(&state.document) {
                Ok(event) => {
                    last = last.next_of_many(now_ms());
                    if let Judged::Update(patch) = &event
                        && index + 1 < batch.len()
                    {
                        undo.push(state.document.before(patch));
                        state.document.apply(patch.clone(), last);
                    }
                    judged.accepted.push((index, last, event));
                }
                Err(refusal) => judged.refused.push((index, refusal)),
            }
        }
        for before in undo.into_iter().rev() {
            state.document.undo(before);
        }
        judged
    }

    /// Takes in what this server has just appended. Whoever follows may have done it already.
    fn take_in_own(&self, shared: &Shared, writer: &mut Option<Connection>, batch: Batch) {
        let mut before = batch.expected;
        for (_, id, judged) in batch.accepted {
            let is_change = matches!(judged, Judged::Update(_));
            let entry = Entry::new(id, &judged);
            self.take_in(Happening { id, before, what: What::Judged(judged), entry });
            self.count(id, is_change);
            before = id;
        }
        self.ring();
        let (is_due, last) = {
            let state = self.lock();
            let bytes = state.published_bytes - state.document_bytes;
            (bytes > self.config.history_bytes as u64, state.history.last_id())
        };
        if is_due
            && let Some(connection) = writer
            && let Err(fault) = self.record_document(connection, last)
        {
            *writer = None;
            self.lost(shared, fault);
        }
    }

    /// Puts the document into the journal, and before it what the journal lacks behind its last record, `end`. Says how
    /// many records that were; `None` if it was not the last one any more.
    fn record_document(&self, connection: &mut Connection, end: EventId) -> Result<Option<usize>, Fault> {
        let records = {
            let state = self.lock();
            let place = if end == EventId::NONE { state.history.before() } else { end };
            let Some(entries) = state.history.after(place) else { return Ok(None) };
            let mut records = Vec::new();
            let mut before = place;
            for entry in entries {
                records.push(entry.record(before));
                before = entry.id;
            }
            let id = before.next_of_many(now_ms());
            let (data, name) = state.document.record();
            records.push(Record { id, before, kind: "document".into(), topic: String::new(), name, data });
            records
        };
        let skipped = if end == EventId::NONE { records.len().saturating_sub(MOST_RESTORED) } else { 0 };
        match connection.append(end, None, &records[skipped..])? {
            Appended::Done => {
                let Some(Record { id, before, .. }) = records.last() else { return Ok(None) };
                let (what, entry) = (What::Document(None), Entry::place(*id));
                self.take_in(Happening { id: *id, before: *before, what, entry });
                let mut state = self.lock();
                state.document_at = *id;
                state.document_bytes = state.published_bytes;
                Ok(Some(records.len() - skipped - 1))
            }
            Appended::Conflict(_) => Ok(None),
        }
    }
}

/// Following.
impl Hub {
    /// Connects for the first time, if anything is shared, and begins with what the journal has.
    pub(super) fn begin_sharing(&self) -> io::Result<()> {
        let Some(shared) = &self.shared else { return Ok(()) };
        self.lock().last_client = random_between(1, 999_999_999) * 1_000_000;
        self.begin(shared).map_err(|fault| io::Error::other(fault.text_of_start(&shared.journal)))
    }

    /// An empty journal gets the document that there is.
    fn begin(&self, shared: &Shared) -> Result<(), Fault> {
        let mut connection = shared.journal.connect()?;
        let was_empty = connection.last_id()?.is_none()
            && self.record_document(&mut connection, EventId::NONE)?.is_some();
        if !was_empty {
            let loaded = self.load(&mut connection)?;
            let own = self.read(Document::json);
            self.take_branch(shared, loaded);
            if own != "{}" && own != self.read(Document::json) {
                let url = &shared.journal.url;
                self.log.line(|| format!("the document is the one of Redis at {url}, and not the file's"));
            }
        }
        *lock(&shared.reader) = Some(shared.journal.connect()?);
        *lock(&shared.writer) = Some(connection);
        lock(&shared.link).is_up = true;
        self.metrics.journal.connected.set(1);
        shared.was_empty.store(was_empty, Ordering::Relaxed);
        Ok(())
    }

    /// Starts the thread that follows the journal, if there is one: what ends it, and what it ends with.
    pub(super) fn start_following(self: Arc<Self>) -> io::Result<Option<(Sender<()>, Receiver<()>)>> {
        if self.shared.is_none() {
            return Ok(None);
        }
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
        let mut connection = None;
        let mut pause = PAUSES.0;
        let mut wait = Duration::ZERO;
        while stop.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            match self.follow(shared, &mut connection) {
                Ok(()) => {
                    pause = PAUSES.0;
                    wait = Duration::ZERO;
                }
                Err(fault) => {
                    connection = None;
                    self.lost(shared, fault);
                    let ms = pause.as_millis() as u64;
                    wait = Duration::from_millis(random_between(ms / 2, ms));
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    fn follow(&self, shared: &Shared, connection: &mut Option<Connection>) -> Result<(), Fault> {
        if !shared.is_up() {
            *connection = None;
            let mut writer = shared.journal.connect()?;
            self.reconcile(shared, &mut writer, false)?;
            *lock(&shared.reader) = Some(shared.journal.connect()?);
            *lock(&shared.writer) = Some(writer);
            self.found(shared);
        }
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(shared.journal.connect()?),
        };
        let came = connection.wait_after(self.last_id())?;
        let fit = if came.is_empty() {
            if connection.last_id()? == Some(self.last_id()) { Fit::Known } else { Fit::Astray }
        } else {
            self.take_in_all(came)?
        };
        match &mut *lock(&shared.writer) {
            Some(writer) if matches!(fit, Fit::Astray | Fit::Diverged) => {
                self.reconcile(shared, writer, fit == Fit::Diverged)
            }
            _ => Ok(()),
        }
    }

    /// Makes one of the journal and what is here, unless what is here `is_wrong`.
    fn reconcile(&self, shared: &Shared, connection: &mut Connection, is_wrong: bool) -> Result<(), Fault> {
        if !is_wrong && self.agree(connection)? {
            return Ok(());
        }
        let loaded = self.load(connection)?;
        let count = self.take_branch(shared, loaded);
        self.metrics.journal.branches.add(1);
        self.log.line(|| format!("took what Redis has, which did not follow; {count} streams get it anew"));
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
            if next.as_ref().is_some_and(|next| next.before == last) {
                return Ok(true);
            }
            let lacks_the_end = end < last && (end == EventId::NONE || self.knows(end));
            if !lacks_the_end {
                return Ok(false);
            }
            if self.restore(connection, end)? {
                return Ok(true);
            }
        }
    }

    /// Gives the journal what it lacks. Says whether that was still to be done.
    fn restore(&self, connection: &mut Connection, end: EventId) -> Result<bool, Fault> {
        let Some(count) = self.record_document(connection, end)? else { return Ok(false) };
        self.metrics.journal.restored.add(1);
        let what = if end == EventId::NONE { "was empty" } else { "had lost its end" };
        self.log.line(|| format!("Redis {what}: it got {count} events and the document back"));
        Ok(true)
    }

    /// Takes in what came of others, and makes up for what did not follow.
    fn make_up(
        &self,
        shared: &Shared,
        connection: &mut Connection,
        came: Vec<Result<Record, Fault>>,
    ) -> Result<(), Fault> {
        let fit = if came.is_empty() { Fit::Astray } else { self.take_in_all(came)? };
        if matches!(fit, Fit::Astray | Fit::Diverged) {
            self.reconcile(shared, connection, fit == Fit::Diverged)?;
        }
        Ok(())
    }

    fn take_in_all(&self, came: Vec<Result<Record, Fault>>) -> Result<Fit, Fault> {
        for record in came {
            let happening = Happening::of(record?, self.config.max_document_bytes)?;
            let fit = self.take_in(happening);
            if matches!(fit, Fit::Astray | Fit::Diverged) {
                return Ok(fit);
            }
            self.ring();
        }
        Ok(Fit::Follows)
    }

    /// The one way into the document and the history. Waits while delivery is far behind.
    fn take_in(&self, happening: Happening) -> Fit {
        let Happening { id, before, what, entry } = happening;
        let far_behind = |state: &mut State| state.unread_bytes() > UNREAD_BYTES && !state.stopping;
        let state = self.has_read.wait_while(self.lock(), far_behind);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        let last = state.history.last_id();
        if id <= last {
            let is_known = id <= state.history.before() || state.history.after(id).is_some();
            return if is_known { Fit::Known } else { Fit::Astray };
        }
        if before != last {
            return Fit::Astray;
        }
        if state.stopping {
            // Clients and the file have got their last. The journal has it.
            return Fit::Follows;
        }
        let is_change = match what {
            What::Judged(Judged::Update(patch)) => {
                state.document.apply(patch, id);
                true
            }
            What::Judged(_) | What::Document(None) => false,
            What::Document(Some(document)) => {
                if !document.is_same(&state.document) {
                    drop(state);
                    self.metrics.journal.divergences.add(1);
                    self.log.line(|| format!("the document is not what Redis has at {id}"));
                    return Fit::Diverged;
                }
                state.document_at = id;
                state.document_bytes = state.published_bytes;
                false
            }
        };
        state.publish(entry);
        drop(state);
        if is_change {
            self.changed.try_send(()).ok();
        }
        Fit::Follows
    }

    fn load(&self, connection: &mut Connection) -> Result<Loading, Fault> {
        let mut loading = Loading::new(self.config.history_bytes);
        let mut place = EventId::NONE;
        loop {
            let page = connection.after(place, PAGE)?;
            if page.is_empty() {
                return loading.finish();
            }
            for record in page {
                let happening = Happening::of(record?, self.config.max_document_bytes)?;
                place = happening.id;
                loading.add(happening);
            }
        }
    }

    /// Puts what the journal has in the place of what is here, and says how many streams begin anew.
    fn take_branch(&self, shared: &Shared, loaded: Loading) -> usize {
        let passes = shared.passes.write().unwrap_or_else(PoisonError::into_inner);
        let lists = self.lock().replace(loaded);
        let mut count = 0;
        for (read, client) in lists {
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

    /// The line of the start that says what is shared, if anything is.
    #[cfg(feature = "cli")]
    pub fn shares(&self) -> String {
        let line = |shared: &Shared| format!("  redis:    {}\n", shared.describe(self.last_id()));
        self.shared.as_ref().map_or(String::new(), line)
    }

    /// Whether what is served here is fresh enough, for whoever chooses between servers.
    pub fn is_ready(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.lost_for() < self.config.heartbeat * 2)
    }

    /// Reads up to an id that another server has told, if the journal has come so far.
    pub fn reach(&self, id: EventId) {
        let Some(shared) = self.shared.as_ref().filter(|_| self.last_id() < id) else { return };
        let mut reader = lock(&shared.reader);
        // Somebody may have read it while this one waited.
        let last = self.last_id();
        let Some(connection) = reader.as_mut().filter(|_| last < id) else { return };
        match connection.after(last, PAGE) {
            // What does not follow, whoever follows the journal sees to.
            Ok(came) => drop(self.take_in_all(came)),
            Err(_) => *reader = None,
        }
    }

    /// The thread's hold on the branch that there is, where it can change.
    pub(super) fn hold_branch(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let passes = &self.shared.as_ref()?.passes;
        Some(passes.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn knows(&self, place: EventId) -> bool {
        self.lock().history.after(place).is_some()
    }

    fn last_id(&self) -> EventId {
        self.lock().history.last_id()
    }

    /// Says once that the journal cannot be used, and why.
    fn lost(&self, shared: &Shared, fault: Fault) {
        let mut link = lock(&shared.link);
        let is_new = match &link.lost {
            None => true,
            Some((_, before)) => matches!(fault, Fault::Foreign(..)) && *before != fault,
        };
        link.is_up = false;
        self.metrics.journal.connected.set(0);
        if is_new {
            let journal = &shared.journal;
            self.log.line(|| fault.text(journal));
            let since = link.lost.as_ref().map_or_else(Instant::now, |(since, _)| *since);
            link.lost = Some((since, fault));
        }
    }

    fn found(&self, shared: &Shared) {
        let mut link = lock(&shared.link);
        link.is_up = true;
        self.metrics.journal.connected.set(1);
        self.metrics.journal.reconnects.add(1);
        if link.lost.take().is_some() {
            self.log.line(|| format!("Redis at {} is back", shared.journal.url));
        }
    }
}

fn next_batch(queue: &mut Vec<Arc<Waiting>>) -> Vec<Arc<Waiting>> {
    let mut bytes = 0;
    let fits = |waiting: &&Arc<Waiting>| {
        let is_first = bytes == 0;
        bytes += waiting.draft.size().max(1);
        is_first || bytes <= BATCH_BYTES
    };
    let count = queue.iter().take_while(fits).count();
    queue.drain(..count).collect()
}

impl Batch {
    /// Tells those who wait: what was refused is refused, and all else has gone well unless there is a refusal for it.
    fn answer(&self, batch: &[Arc<Waiting>], refusal: Option<&Refusal>) {
        for (index, id, _) in &self.accepted {
            *lock(&batch[*index].answer) = Some(refusal.map_or(Ok(*id), |refusal| Err(refusal.clone())));
        }
        for (index, refusal) in &self.refused {
            *lock(&batch[*index].answer) = Some(Err(refusal.clone()));
        }
    }

    fn records(&self) -> Vec<Record> {
        let mut before = self.expected;
        let record = |(_, id, judged): &(usize, EventId, Judged)| {
            let record = judged.record(*id, before);
            before = *id;
            record
        };
        self.accepted.iter().map(record).collect()
    }
}

impl Happening {
    fn of(record: Record, max_bytes: usize) -> Result<Happening, Fault> {
        let Record { id, before, kind, topic, name, data } = record;
        let foreign = |why: String| Fault::Foreign(id.to_string(), why);
        let what = match &*kind {
            "update" => What::Judged(Judged::Update(patch_of(&data).map_err(foreign)?)),
            "document" if data.is_empty() => What::Document(None),
            "document" => {
                let document = Document::recorded(&data, &name, max_bytes).map_err(foreign)?;
                What::Document(Some(Box::new(document)))
            }
            "json" | "text" => {
                let topic =
                    if topic.is_empty() { None } else { Some(Topic::parse(&topic).map_err(foreign)?) };
                let name = EventName::parse(&name).map_err(foreign)?;
                let is_json = kind == "json";
                if is_json {
                    parse_as("its JSON", data.as_bytes(), usize::MAX)
                        .map_err(|refusal| foreign(refusal.to_string()))?;
                }
                What::Judged(Judged::OneOff(topic, name, EventData { text: data, is_json }))
            }
            _ => return Err(foreign("its k is none that is known".to_owned())),
        };
        let entry = match &what {
            What::Judged(judged) => Entry::new(id, judged),
            What::Document(_) => Entry::place(id),
        };
        Ok(Happening { id, before, what, entry })
    }
}

impl Loading {
    fn new(history_bytes: usize) -> Loading {
        let history = History::new(EventId::NONE, history_bytes);
        let document_at = EventId::NONE;
        Loading { history, document: None, document_at, since_document: 0, broken_at: None, history_bytes }
    }

    /// What comes behind a hole begins anew: with a document, or it is of no use.
    fn add(&mut self, happening: Happening) {
        let Happening { id, before, what, entry } = happening;
        let last = self.history.last_id();
        if before != last {
            if last != EventId::NONE {
                self.broken_at = Some(id);
            }
            self.document = None;
            self.history = History::new(before, self.history_bytes);
        }
        self.since_document += entry.size() as u64;
        self.history.push(entry, id);
        match what {
            What::Judged(Judged::Update(patch)) => {
                if let Some(document) = &mut self.document {
                    document.apply(patch, id);
                }
            }
            What::Document(Some(document)) => {
                self.document = Some(*document);
                self.document_at = id;
                self.since_document = 0;
            }
            What::Document(None) | What::Judged(_) => {}
        }
    }

    fn finish(self) -> Result<Loading, Fault> {
        if self.document.is_some() {
            return Ok(self);
        }
        let (id, why) = match self.broken_at {
            Some(id) => (id, "it does not name the record before it, and no document comes behind it"),
            None => (self.history.last_id(), "there is no document before it"),
        };
        Err(Fault::Foreign(id.to_string(), why.to_owned()))
    }
}

impl Judged {
    fn record(&self, id: EventId, before: EventId) -> Record {
        let (kind, topic, name, data) = match self {
            Judged::Update(patch) => ("update", None, "", to_json(&Value::Object(patch.clone()))),
            Judged::OneOff(audience, name, data) => {
                let kind = if data.is_json { "json" } else { "text" };
                (kind, audience.as_ref(), name.as_str(), data.text.clone())
            }
        };
        let topic = topic.map_or("", Topic::as_str).to_owned();
        Record { id, before, kind: kind.to_owned(), topic, name: name.to_owned(), data }
    }
}

impl Fault {
    /// Why a server does not start.
    fn text_of_start(&self, Journal { url, key }: &Journal) -> String {
        match self {
            Fault::Lost(why) | Fault::Refused(why) => format!("--redis {url}, key {key}: {why}"),
            Fault::Foreign(id, why) => format!("--redis {url}, key {key}: record {id} is not ours: {why}"),
        }
    }

    /// What the log says of it.
    fn text(&self, journal: &Journal) -> String {
        let Journal { url, key } = journal;
        match self {
            Fault::Lost(why) | Fault::Refused(why) => {
                format!("Redis at {url} is lost: {why}; nothing is published until it is back")
            }
            Fault::Foreign(id, why) => {
                format!(
                    "record {id} of {key} in Redis at {url} is not ours: {why}; nothing is published until it is gone"
                )
            }
        }
    }
}
