//! Catching up: a client that is new or was too slow is brought to the end of history, beside the list.
//!
//! The thread that took its request begins with a new one; the catch-up thread visits those that take longer. The one rule:
//! it waits for nobody. A client that takes no more is visited again, a little later each time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::hub::Hub;
use crate::hub::client::{Client, End, Following, InitReason, Place, Progress};
use crate::hub::history::{chunk_of, up_to_a_pass};
use crate::lock::lock;

/// The catch-up thread comes back to a blocked client after the first delay, then ever later, up to the second.
const VISIT_DELAYS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// How often it is looked whether clients acknowledge what they are sent.
const SURVEY: Duration = Duration::from_secs(5);

/// A client that is behind, and when to look at it again.
struct Visit {
    client: Arc<Client>,
    due: Instant,
    delay: Duration,
    written: u64,
    /// When to ask the kernel whether the peer has read anything: not each time.
    ask_at: Instant,
}

impl Hub {
    /// The catch-up thread: visits each client that is behind until it is live again or gone.
    pub(super) fn run_catch_up(&self, late: &Receiver<()>) {
        let mut visits: Vec<Visit> = Vec::new();
        let mut survey_at = Instant::now() + SURVEY;
        loop {
            if Instant::now() >= survey_at {
                survey_at = Instant::now() + SURVEY;
                self.survey();
            }
            let due = visits.iter().map(|visit| visit.due).min();
            late.recv_deadline(due.unwrap_or(survey_at).min(survey_at)).ok();
            let Some(behind) = lock(&self.behind).as_mut().map(std::mem::take) else { return };
            for client in behind {
                if client.until.idle.is_some() {
                    // It is here already, to be ended when it is idle.
                    visits.retain(|visit| !Arc::ptr_eq(&visit.client, &client));
                }
                visits.push(Visit::new(client));
            }
            visits.retain_mut(|visit| visit.due > Instant::now() || self.visit(visit));
        }
    }

    /// Hands a client to the catch-up thread.
    pub(super) fn hand_over(&self, client: Arc<Client>) {
        if let Some(behind) = &mut *lock(&self.behind) {
            behind.push(client);
        }
        // Full: it rings already.
        self.late.try_send(()).ok();
    }

    /// Brings a client as far as a few writes go.
    pub(super) fn catch_up(&self, client: &Client) -> Progress {
        client.catch_up(|place| self.following(client, place))
    }

    /// What comes after a client's place, up to a pass's worth; `None` at the end of history.
    fn following(&self, client: &Client, place: Place) -> Option<Following> {
        let reason = match place {
            Place::Nowhere(reason) => reason,
            Place::After(place) => {
                let entries = self.lock().history.after(place).map(up_to_a_pass);
                match entries {
                    Some(entries) => {
                        let place = entries.last()?.id;
                        let chunk = chunk_of(&entries, &client.audience);
                        return Some(Following { chunks: chunk.into_iter().collect(), place });
                    }
                    None => InitReason::Lagged,
                }
            }
        };
        if reason == InitReason::Lagged {
            self.metrics.lagged.add(1);
        }
        let (place, init) = self.lock().init(&client.audience);
        let hello = Arc::new(self.hello(client.id, "init", &reason.to_string()));
        Some(Following { chunks: vec![hello, init], place })
    }

    /// Removes clients whose machine acknowledges nothing of what was sent to it: a power cut, a pulled cable. Their
    /// writes succeed for as long as there is room in the kernel.
    fn survey(&self) {
        // Not in the loop's head, where the lock would be held until its end.
        let clients = self.lock().clients();
        for client in clients {
            let stuck = client.stuck_for(Instant::now());
            if stuck >= self.settings.unacknowledged {
                let text = format!("nothing was acknowledged for {} s", stuck.as_secs());
                self.remove(&client, &End::Silent(text));
            }
        }
    }

    /// Says whether another visit is needed.
    fn visit(&self, visit: &mut Visit) -> bool {
        let client = Arc::clone(&visit.client);
        let mut progress = self.catch_up(&client);
        self.watch.tell();
        if let (Progress::Done, Some(idle_until)) = (&progress, client.idle_until()) {
            let now = Instant::now();
            if now < idle_until {
                // Not later than this: by then it may be gone, and its memory with it.
                visit.due = idle_until.min(now + SURVEY);
                return true;
            }
            // If somebody else is catching it up by now, they see it through.
            progress = client.end(None).unwrap_or(Progress::Done);
        }
        match progress {
            Progress::Done => false,
            Progress::Gone(end) => {
                self.remove(&client, &end);
                false
            }
            Progress::Blocked if visit.plan_next(self.settings.stall) => true,
            Progress::Blocked => {
                let text = format!("nothing was read for {:?}", self.settings.stall);
                self.remove(&client, &End::Silent(text));
                false
            }
        }
    }
}

impl Visit {
    fn new(client: Arc<Client>) -> Visit {
        let now = Instant::now();
        Visit { client, due: now, delay: VISIT_DELAYS.0, written: 0, ask_at: now }
    }

    /// Plans the next visit; says whether the client has made progress within the time.
    fn plan_next(&mut self, stall: Duration) -> bool {
        let now = Instant::now();
        let written = self.client.status().bytes;
        // A client that takes something gets the next piece soon.
        self.delay =
            if written > self.written { VISIT_DELAYS.0 } else { (self.delay * 2).min(VISIT_DELAYS.1) };
        self.written = written;
        self.due = now + self.delay;
        if now < self.ask_at {
            return true;
        }
        self.ask_at = now + stall / 8;
        self.client.stuck_for(now) < stall
    }
}
