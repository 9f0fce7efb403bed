//! Publishing through the journal: whoever comes first does it for all that wait.
//!
//! Drafts are judged in their order, each on top of those before it, and are appended in one call behind the event that they
//! were judged on top of. If that was not the last one any more, what came is taken in, and they are judged again.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::clock::now_ms;
use crate::conditions::Conditions;
use crate::document::Refusal;
use crate::hub::Hub;
use crate::hub::draft::{Draft, Judged};
use crate::hub::history::Entry;
use crate::hub::shared::Shared;
use crate::hub::shared::happening::{Happening, What, document_record};
use crate::journal::{Appended, Connection, DEADLINE, Fault, Record};
use crate::lock::lock;
use crate::sse::event::EventId;

/// Bytes of drafts in one call, about.
const BATCH_BYTES: usize = 1 << 20;

/// Records that an empty journal gets of history, at most: they go into one call.
const MOST_RESTORED: usize = 100_000;

/// A draft, and what has become of it.
pub(super) struct Waiting {
    draft: Draft,
    conditions: Conditions,
    answer: Mutex<Option<Result<EventId, Refusal>>>,
}

/// Drafts as they were judged: those that may be published, and the others.
struct Batch {
    expected: EventId,
    /// Nobody needs what came before it.
    keep_from: EventId,
    accepted: Vec<(usize, EventId, Judged)>,
    refused: Vec<(usize, Refusal)>,
}

impl Hub {
    /// Publishes a draft through the journal.
    pub(in crate::hub) fn share(
        &self,
        shared: &Shared,
        draft: Draft,
        conditions: Conditions,
    ) -> Result<EventId, Refusal> {
        let waiting = Arc::new(Waiting { draft, conditions, answer: Mutex::default() });
        lock(&shared.queue).push(Arc::clone(&waiting));
        let mut writer = lock(&shared.writer);
        loop {
            if let Some(answer) = lock(&waiting.answer).take() {
                return answer;
            }
            let batch = next_batch(&mut lock(&shared.queue));
            self.commit(shared, &mut writer, &batch);
        }
    }

    fn commit(&self, shared: &Shared, writer: &mut Option<Connection>, waiting: &[Arc<Waiting>]) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let batch = self.judge(waiting);
            if batch.accepted.is_empty() {
                return batch.answer(waiting, None);
            }
            if !shared.is_up() {
                return batch.answer(waiting, Some(&Refusal::NotPublished));
            }
            match self.try_to_append(shared, writer, &batch) {
                Ok(true) => {
                    // Nobody looks for an answer before the writer is free.
                    batch.answer(waiting, None);
                    return self.take_in_own(shared, writer, batch);
                }
                Ok(false) if Instant::now() < deadline => {}
                Ok(false) => return batch.answer(waiting, Some(&Refusal::NotPublished)),
                Err((fault, refusal)) => {
                    *writer = None;
                    self.lose(shared, fault);
                    return batch.answer(waiting, Some(&refusal));
                }
            }
        }
    }

    /// Judges drafts.
    fn judge(&self, waiting: &[Arc<Waiting>]) -> Batch {
        let mut state = self.lock();
        let expected = state.history.last_id();
        let keep_from = state.history.first_place().min(state.document_at);
        let mut batch = Batch { expected, keep_from, accepted: Vec::new(), refused: Vec::new() };
        let mut undo = Vec::new();
        let mut last = expected;
        for (index, waiting) in waiting.iter().enumerate() {
            match waiting.draft.clone().judge(&waiting.conditions, &state.document) {
                Ok(judged) => {
                    last = last.next_of_many(now_ms());
                    if let Judged::Update(patch) = &judged {
                        undo.push(state.document.before(patch));
                        state.document.apply(patch.clone(), last);
                    }
                    batch.accepted.push((index, last, judged));
                }
                Err(refusal) => batch.refused.push((index, refusal)),
            }
        }
        for before in undo.into_iter().rev() {
            state.document.undo(before);
        }
        batch
    }

    /// Says whether the batch was appended. If not, what came before it is taken in. An error comes with what is to be said
    /// to those who wait.
    fn try_to_append(
        &self,
        shared: &Shared,
        writer: &mut Option<Connection>,
        batch: &Batch,
    ) -> Result<bool, (Fault, Refusal)> {
        let records = batch.records();
        let first = records[0].id;
        let mut append = |anew: bool| {
            if anew {
                *writer = None;
            }
            shared.journal.connected(writer)?.append(batch.expected, Some(batch.keep_from), &records)
        };
        let mut appended = append(false);
        if let Err(Fault::Lost(_)) = appended {
            // Redis ends what is idle for long. It can append these but once, however often it is asked.
            appended = append(true).or(appended);
        }
        let came = match appended {
            Ok(Appended::Done) => return Ok(true),
            Ok(Appended::Conflict(came)) => came,
            Err(fault @ Fault::Refused(_)) => return Err((fault, Refusal::NotPublished)),
            Err(fault) => return Err((fault, Refusal::NotKnown)),
        };
        if came.first().is_some_and(|came| came.as_ref().is_ok_and(|came| came.id == first)) {
            return Ok(true);
        }
        self.metrics.journal.conflicts.add(1);
        let Some(connection) = writer else { return Ok(false) };
        self.make_up(shared, connection, came).map_err(|fault| (fault, Refusal::NotPublished))?;
        Ok(false)
    }

    /// Takes in what this server has just appended. Whoever follows may have done it already.
    fn take_in_own(&self, shared: &Shared, writer: &mut Option<Connection>, batch: Batch) {
        self.metrics.journal.batches.add(1);
        self.say_that_it_is_back(shared, &mut lock(&shared.link));
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
            && let Err(fault) = self.append_document(connection, last)
        {
            *writer = None;
            self.lose(shared, fault);
        }
    }

    /// Appends the document, and before it what the journal lacks behind its last record, `end`. Says how many records those
    /// were; `None` if that was not the last one any more.
    pub(super) fn append_document(
        &self,
        connection: &mut Connection,
        end: EventId,
    ) -> Result<Option<usize>, Fault> {
        let (mut before, entries, document) = {
            let state = self.lock();
            let place = if end == EventId::NONE { state.history.first_place() } else { end };
            let Some(entries) = state.history.after(place) else { return Ok(None) };
            let entries: Vec<Arc<Entry>> = entries.cloned().collect();
            let last = state.history.last_id();
            (place, entries, document_record(last.next_of_many(now_ms()), last, &state.document))
        };
        let (id, last) = (document.id, document.before);
        let mut records = Vec::with_capacity(entries.len() + 1);
        for entry in entries {
            records.push(entry.record(before));
            before = entry.id;
        }
        records.push(document);
        let skipped = if end == EventId::NONE { records.len().saturating_sub(MOST_RESTORED) } else { 0 };
        if let Appended::Conflict(_) = connection.append(end, None, &records[skipped..])? {
            return Ok(None);
        }
        self.take_in(Happening { id, before: last, what: What::Document(None), entry: Entry::place(id) });
        let mut state = self.lock();
        state.document_at = id;
        state.document_bytes = state.published_bytes;
        Ok(Some(records.len() - skipped - 1))
    }
}

/// The drafts that have waited longest, at least one if there is one.
fn next_batch(queue: &mut Vec<Arc<Waiting>>) -> Vec<Arc<Waiting>> {
    let mut bytes = 0;
    let fits = |waiting: &&Arc<Waiting>| {
        let is_first = bytes == 0;
        bytes += waiting.draft.size() + 1;
        is_first || bytes <= BATCH_BYTES
    };
    let count = queue.iter().take_while(fits).count();
    queue.drain(..count).collect()
}

impl Batch {
    /// Tells those who wait. What was accepted is published, unless there is a refusal for it.
    fn answer(&self, waiting: &[Arc<Waiting>], refusal: Option<&Refusal>) {
        for (index, id, _) in &self.accepted {
            *lock(&waiting[*index].answer) = Some(refusal.map_or(Ok(*id), |refusal| Err(refusal.clone())));
        }
        for (index, refusal) in &self.refused {
            *lock(&waiting[*index].answer) = Some(Err(refusal.clone()));
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
