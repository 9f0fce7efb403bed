//! Catching up: a client that is new or was too slow is brought to the end of history, beside the list.
//!
//! The thread that took its request begins with a new one; the catch-up thread visits those that take longer. The one rule:
//! it waits for nobody. A client that takes no more is visited again, a little later each time.

use std::collections::HashMap;
use std::mem::take;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::config::UNACKNOWLEDGED;
use crate::hub::Hub;
use crate::hub::chunk::Chunk;
use crate::hub::client::{Client, End, Place, Progress};
use crate::hub::history::{chunk_of, up_to_a_pass};
use crate::lock::lock;
use crate::sse::event::EventId;

/// The catch-up thread comes back to a blocked client after the first delay, then ever later, up to the second.
const VISIT_DELAYS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// How often it is looked whether clients acknowledge what they are sent; more often where the stall is short.
const SURVEY: Duration = Duration::from_secs(2);

/// When to look at a client again that is behind, or ends when it is idle.
struct Visit {
    client: Arc<Client>,
    due: Instant,
    delay: Duration,
    /// Bytes that it had taken before.
    bytes: u64,
}

impl Hub {
    /// The catch-up thread: visits each client that is behind until it is live again or gone.
    pub(super) fn run_catch_up(&self, bell: &Receiver<()>) {
        let mut visits: HashMap<u64, Visit> = HashMap::new();
        let survey = SURVEY.min(self.config.stall / 4);
        let mut survey_at = Instant::now() + survey;
        loop {
            let due = visits.values().map(|visit| visit.due).min();
            bell.recv_deadline(due.unwrap_or(survey_at).min(survey_at)).ok();
            let behind = take(&mut *lock(&self.behind));
            for client in behind {
                let Some(client) = client else { return };
                visits.insert(client.about.id, Visit::now(client));
            }
            let now = Instant::now();
            visits.retain(|_, visit| visit.due > now || self.visit(visit));
            if now >= survey_at {
                survey_at = now + survey;
                self.survey(now);
            }
        }
    }

    /// Hands a client to the catch-up thread; `None` ends it.
    pub(super) fn hand_over(&self, client: Option<Arc<Client>>) {
        lock(&self.behind).push(client);
        // Full: it rings already.
        self.late.try_send(()).ok();
    }

    /// Brings a client as far as a few writes go.
    pub(super) fn catch_up(&self, client: &Client) -> Progress {
        client.catch_up(|place| self.following(client, place))
    }

    /// What comes after a client's place, up to a pass's worth, and the place then; `None` at the end of history.
    fn following(&self, client: &Client, place: Place) -> Option<(Vec<Arc<Chunk>>, EventId)> {
        let reason = match place {
            Place::Nowhere(reason) => reason,
            Place::After(place) => {
                let entries = self.lock().history.after(place).map(up_to_a_pass);
                if let Some(entries) = entries {
                    let chunk = chunk_of(&entries, &client.about.topic);
                    return Some((chunk.into_iter().collect(), entries.last()?.id));
                }
                self.metrics.lagged.add(1);
                "lagged"
            }
        };
        let (place, init) = self.lock().init(&client.about.topic);
        Some((vec![Arc::new(self.hello(client.about.id, "init", reason)), init], place))
    }

    /// Says whether another visit is needed.
    fn visit(&self, visit: &mut Visit) -> bool {
        let client = &visit.client;
        let mut progress = self.catch_up(client);
        self.watch.tell();
        if let (Progress::Done, Some(idle_until)) = (&progress, client.idle_until()) {
            let now = Instant::now();
            if now < idle_until {
                // Not later than this: by then it may be gone, and its memory with it.
                visit.due = idle_until.min(now + SURVEY);
                return true;
            }
            progress = client.end(None);
        }
        match progress {
            Progress::Done => false,
            Progress::Gone(end) => {
                self.remove(client, end);
                false
            }
            Progress::Blocked => {
                visit.plan_next();
                true
            }
        }
    }

    /// Removes clients that make no progress: those that are behind, and those whose machine acknowledges nothing of what
    /// was sent to it, as after a power cut. Their writes succeed for as long as there is room in the kernel.
    fn survey(&self, now: Instant) {
        for client in self.everybody() {
            let limit = if client.is_live() { UNACKNOWLEDGED } else { self.config.stall };
            if client.stuck_for(now) >= limit {
                self.remove(&client, End::Fault(format!("nothing was acknowledged for {limit:?}")));
            }
        }
    }
}

impl Visit {
    fn now(client: Arc<Client>) -> Visit {
        Visit { client, due: Instant::now(), delay: VISIT_DELAYS.0, bytes: 0 }
    }

    /// A client that takes something gets the next piece soon.
    fn plan_next(&mut self) {
        let (_, bytes) = self.client.sent();
        self.delay = if bytes > self.bytes { VISIT_DELAYS.0 } else { (self.delay * 2).min(VISIT_DELAYS.1) };
        self.bytes = bytes;
        self.due = Instant::now() + self.delay;
    }
}
