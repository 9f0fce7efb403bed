//! Fan-out: the thread that writes what is published to every live client.
//!
//! It takes everything that came since its last pass as one chunk for each audience, and gives it to each client in one
//! write: under load there are fewer writes, not longer queues. The one rule: it never waits for a client. One whose write
//! does not complete goes to the catch-up thread, and is live again when it has what it missed.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use crate::clock::now_ms;
use crate::hub::Hub;
use crate::hub::chunk::Chunk;
use crate::hub::client::{Client, Progress};
use crate::hub::history::chunk_of;
use crate::sse::event::{EventId, EventName};

impl Hub {
    /// The fan-out thread: one loop, woken by the bell, the heartbeat, or the end.
    pub(super) fn run_fan_out(&self, bell: &Receiver<()>) {
        let mut beaten = Instant::now();
        loop {
            if bell.recv_timeout(self.config.heartbeat.saturating_sub(beaten.elapsed())).is_ok() {
                // Nothing is published any more once this is set.
                if self.lock().stopping {
                    while self.pass() {}
                    return;
                }
                if self.pass() {
                    // The rest waits for its turn behind a heartbeat that is due.
                    self.ring();
                }
            }
            if beaten.elapsed() >= self.config.heartbeat {
                beaten = Instant::now();
                self.beat();
            }
        }
    }

    /// Writes what was published since the last pass to everybody it is for; says whether there is more.
    fn pass(&self) -> bool {
        let Some(pass) = self.lock().next_pass() else { return false };
        self.metrics.passes.add(1);
        for (audience, clients) in &pass.audiences {
            if let Some(chunk) = chunk_of(&pass.entries, audience) {
                self.deliver(clients, &chunk, pass.to);
            }
        }
        let is_partial = self.lock().has_read(&pass);
        self.has_read.notify_all();
        self.watch.tell();
        is_partial
    }

    /// Sends a heartbeat to everybody. A client that blocks on it has everything up to the thread's place.
    fn beat(&self) {
        let chunk = Chunk::of_event(None, &EventName::HEARTBEAT, &now_ms().to_string());
        let (lists, read) = {
            let state = self.lock();
            (state.lists(), state.read)
        };
        for clients in lists {
            self.deliver(&clients, &chunk, read);
        }
    }

    fn deliver(&self, clients: &[Arc<Client>], chunk: &Chunk, to: EventId) {
        let mut delivered = 0;
        for client in clients {
            match client.deliver(chunk, to) {
                Some(Progress::Done) => delivered += 1,
                Some(Progress::Blocked) => {
                    self.metrics.behind.add(1);
                    self.hand_over(Arc::clone(client));
                }
                Some(Progress::Gone(end)) => self.remove(client, end),
                None => {}
            }
        }
        self.metrics.deliveries.add(delivered * chunk.count() as u64);
    }
}
