//! Fan-out: the threads that write what is published to every live client.
//!
//! Each has its part of the clients, and goes its own way through history. It takes everything that came since its last
//! pass as one chunk for each audience, and gives it to each client in one write: under load there are fewer writes, not
//! longer queues. The one rule: it never waits for a client. One whose write does not complete goes to the catch-up thread,
//! and is live again when it has what it missed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use crate::clock::now_ms;
use crate::hub::Hub;
use crate::hub::chunk::Chunk;
use crate::hub::client::{Client, Progress};
use crate::hub::history::{Audience, Entry, History, chunk_of, up_to_a_pass};
use crate::sse::event::{EventId, EventName};

/// What a fan-out thread looks after.
pub(super) struct Part {
    /// The clients of each audience, live or catching up.
    lists: HashMap<Audience, List>,
    pub count: usize,
    /// The thread's place in history: every live client of this part has what came before it.
    pub read: EventId,
    /// What came before it.
    pub read_bytes: u64,
}

/// Clients as they were at one moment. Whoever reads the list shares it, so that the lock is not held for long.
pub(super) type List = Arc<Vec<Arc<Client>>>;

/// What a fan-out thread does next.
struct Pass {
    entries: Vec<Arc<Entry>>,
    /// The place after it.
    to: EventId,
    /// Those that see something of it, each with its clients.
    audiences: Vec<(Audience, List)>,
}

impl Hub {
    /// A fan-out thread: one loop, woken by its bell, the heartbeat, or the end.
    pub(super) fn run_fan_out(&self, number: usize, bell: &Receiver<()>) {
        let mut beaten = Instant::now();
        loop {
            if bell.recv_timeout(self.config.heartbeat.saturating_sub(beaten.elapsed())).is_ok() {
                // Nothing is published any more once this is set.
                if self.lock().stopping {
                    while self.pass(number) {}
                    return;
                }
                if self.pass(number) {
                    // The rest waits for its turn behind a heartbeat that is due.
                    self.bells[number].try_send(()).ok();
                }
            }
            if beaten.elapsed() >= self.config.heartbeat {
                beaten = Instant::now();
                self.beat(number);
            }
        }
    }

    /// Writes what was published since the last pass to everybody it is for; says whether there is more.
    fn pass(&self, number: usize) -> bool {
        #[cfg(feature = "redis")]
        let _branch = self.hold_branch();
        let pass = {
            let state = self.lock();
            state.parts[number].next_pass(&state.history)
        };
        let Some(pass) = pass else { return false };
        let begin = Instant::now();
        for (audience, clients) in &pass.audiences {
            if let Some(chunk) = chunk_of(&pass.entries, audience) {
                self.deliver(clients, &chunk, pass.to);
            }
        }
        self.metrics.passes.add(1);
        self.metrics.pass_micros.add(begin.elapsed().as_micros() as u64);
        let is_partial = {
            let mut state = self.lock();
            state.parts[number].has_read(&pass);
            pass.to != state.history.last_id()
        };
        self.has_read.notify_all();
        self.watch.tell();
        is_partial
    }

    /// Sends a heartbeat to everybody. A client that blocks on it has everything up to the thread's place.
    fn beat(&self, number: usize) {
        #[cfg(feature = "redis")]
        let _branch = self.hold_branch();
        let chunk = Chunk::of_event(None, &EventName::HEARTBEAT, &now_ms().to_string());
        let (lists, read) = {
            let part = &self.lock().parts[number];
            (part.lists(), part.read)
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
                    self.hand_over(Some(Arc::clone(client)));
                }
                Some(Progress::Gone(end)) => self.remove(client, end),
                None => {}
            }
        }
        self.metrics.deliveries.add(delivered * chunk.count() as u64);
    }
}

impl Part {
    /// A part without clients, at a place in history that nothing came before.
    pub fn new(read: EventId) -> Part {
        Part { lists: HashMap::new(), count: 0, read, read_bytes: 0 }
    }

    /// Its clients, in no order.
    pub fn lists(&self) -> Vec<List> {
        self.lists.values().cloned().collect()
    }

    pub fn add(&mut self, client: Arc<Client>) {
        let list = self.lists.entry(client.about.topic.clone()).or_default();
        Arc::make_mut(list).push(client);
        self.count += 1;
    }

    /// Says whether the client was here.
    pub fn remove(&mut self, client: &Arc<Client>) -> bool {
        let topic = &client.about.topic;
        let Some(list) = self.lists.get_mut(topic) else { return false };
        let Some(index) = list.iter().position(|other| Arc::ptr_eq(other, client)) else { return false };
        Arc::make_mut(list).swap_remove(index);
        if list.is_empty() {
            self.lists.remove(topic);
        }
        self.count -= 1;
        true
    }

    /// What came since its thread has read last, up to a pass's worth.
    fn next_pass(&self, history: &History) -> Option<Pass> {
        let entries = up_to_a_pass(history.after(self.read).expect("history keeps what was not read"));
        let to = entries.last()?.id;
        let touched: HashSet<&Audience> = entries.iter().flat_map(|entry| entry.audiences()).collect();
        let with_list = |audience: &Audience| Some((audience.clone(), Arc::clone(self.lists.get(audience)?)));
        let audiences = touched.into_iter().filter_map(with_list).collect();
        Some(Pass { entries, to, audiences })
    }

    fn has_read(&mut self, pass: &Pass) {
        self.read = pass.to;
        self.read_bytes += pass.entries.iter().map(|entry| entry.size() as u64).sum::<u64>();
    }
}
