//! The hub: publish, join, fan out, catch up.
//!
//! `server` publishes and joins clients; neither ever touches another client's socket. Publishing appends to history
//! and rings a bell; the fan-out thread reads history and writes to every live client. The one rule: nothing blocks, logs
//! or writes to a socket while it holds the lock.

mod catch_up;
mod chunk;
pub mod client;
mod fan_out;
pub mod history;
mod state;
pub mod watch;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use serde_json::Value;

use crate::clock::{now_ms, random_between};
use crate::document::{Document, Patch, Refusal};
use crate::hub::chunk::Chunk;
use crate::hub::client::{Arrival, Client, End, Place, Progress};
use crate::hub::history::{Audience, Entry, EventData};
use crate::hub::state::{Seats, State};
use crate::hub::watch::Watch;
use crate::lock::lock;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::sse::event::{EventId, EventName};

pub(crate) use state::{Full, Seat};

/// What may wait for the fan-out thread before publishers wait, too.
const UNREAD_BYTES: usize = 1 << 20;

/// How the hub treats its clients.
#[derive(Clone)]
pub(crate) struct Settings {
    pub heartbeat: Duration,
    pub retry: Duration,
    pub history_bytes: usize,
    pub max_document_bytes: usize,
    pub max_clients: usize,
    pub max_clients_per_address: usize,
    /// Without any progress for so long a client is removed.
    pub stall: Duration,
    /// Without any acknowledgement of what was sent for so long, too.
    pub unacknowledged: Duration,
    pub verbose: bool,
}

/// The document, the history and the client list, and whoever writes to clients.
pub(crate) struct Hub {
    settings: Settings,
    pub metrics: Arc<Metrics>,
    log: Log,
    state: Mutex<State>,
    seats: Arc<Seats>,
    /// Publishers wait here for the fan-out thread to read what waits for it.
    has_read: Condvar,
    /// Wakes those who wait for a condition of the clients.
    pub watch: Watch,
    /// One place: a bell that rings already need not be rung again.
    doorbell: Sender<()>,
    changed: Sender<()>,
    /// The clients that wait for the catch-up thread. `late` wakes it, and `None` ends it.
    behind: Mutex<Option<Vec<Arc<Client>>>>,
    late: Sender<()>,
}

/// The hub's threads.
pub(crate) struct Threads {
    fan_out: Option<JoinHandle<()>>,
    catch_up: Option<JoinHandle<()>>,
}

impl Hub {
    /// Starts the fan-out thread and the catch-up thread, with the document as it was saved. `changed` is rung after
    /// every change of the document.
    pub fn start(
        settings: Settings,
        saved: Value,
        log: Log,
        changed: Sender<()>,
    ) -> Result<(Arc<Hub>, Threads), StartError> {
        let random_part = EventId::random_part();
        let start = EventId::first(now_ms(), random_part);
        let mut document = Document::new(start, settings.max_document_bytes);
        let patch = document.patch(None, saved).map_err(StartError::Document)?;
        document.apply(patch, start);
        let (doorbell, bell) = bounded(1);
        let (late, for_late) = bounded(1);
        let state = State::new(document, start, random_part, settings.history_bytes);
        let hub = Arc::new(Hub {
            seats: Seats::new(settings.max_clients, settings.max_clients_per_address),
            settings,
            metrics: Arc::default(),
            log,
            state: Mutex::new(state),
            has_read: Condvar::new(),
            watch: Watch::new(start),
            doorbell,
            changed,
            behind: Mutex::new(Some(Vec::new())),
            late,
        });
        let mut threads = Threads { fan_out: None, catch_up: None };
        let (for_fan_out, for_catch_up) = (Arc::clone(&hub), Arc::clone(&hub));
        let started = spawn("fan-out", move || for_fan_out.run_fan_out(&bell))
            .map(|thread| threads.fan_out = Some(thread))
            .and_then(|()| spawn("catch-up", move || for_catch_up.run_catch_up(&for_late)))
            .map(|thread| threads.catch_up = Some(thread));
        match started {
            Ok(()) => Ok((hub, threads)),
            Err(error) => {
                threads.stop(&hub, Instant::now());
                Err(StartError::Thread(error))
            }
        }
    }

    /// Changes the document by the patch that `make_patch` makes for it, and tells everybody. Returns before anybody
    /// has been told. Waits while delivery is far behind.
    pub fn write<E: From<Refusal>>(
        &self,
        make_patch: impl FnOnce(&Document) -> Result<Patch, E>,
    ) -> Result<EventId, E> {
        let mut state = self.lock_to_publish()?;
        let patch = make_patch(&state.document)?;
        let id = state.next_id();
        state.publish(Entry::update(id, &patch));
        state.document.apply(patch, id);
        drop(state);
        self.changed.try_send(()).ok();
        self.metrics.writes.add(1);
        self.ring_for("update", id);
        Ok(id)
    }

    /// Publishes an event that changes nothing. Returns and waits as `write` does.
    pub fn send(&self, audience: Audience, name: &EventName, data: &EventData) -> Result<EventId, Refusal> {
        let mut state = self.lock_to_publish()?;
        let id = state.next_id();
        state.publish(Entry::one_off(id, audience, name, data));
        drop(state);
        self.metrics.one_off_events.add(1);
        self.ring_for("one-off event", id);
        Ok(id)
    }

    fn ring_for(&self, what: &str, id: EventId) {
        self.ring();
        if self.settings.verbose {
            self.log.line(|| format!("{what} {id}"));
        }
    }

    /// Knows no id any more that was issued before, as after a restart: whoever resumes with one gets the document,
    /// `reason` `restart`. Clients that are connected notice nothing.
    pub fn forget_history(&self) {
        self.lock().forget();
        self.ring();
    }

    /// Looks at the document, under the lock.
    pub fn read<T>(&self, look: impl FnOnce(&Document) -> T) -> T {
        look(&self.lock().document)
    }

    /// A seat for a client from this address, which it brings to `join`.
    pub fn admit(&self, address: IpAddr) -> Result<Seat, Full> {
        if self.lock().stopping {
            return Err(Full::Stopping);
        }
        self.seats.take(address)
    }

    /// Puts a client on the list and brings it up to date; `last_event_id` is what it said it has. Blocks for as long as
    /// a few writes to a socket that does not block.
    pub fn join(&self, audience: Audience, last_event_id: Option<EventId>, arrival: Arrival) {
        let (client, stopping) = {
            // One lock for the place in history and the list: no gap, no double.
            let mut state = self.lock();
            state.last_client += 1;
            let id = state.last_client;
            let place = state.resume(last_event_id);
            let is_known = matches!(place, Place::After(_));
            let hello = is_known.then(|| self.hello(id, "replay", "known"));
            let client = Arc::new(Client::new(id, audience, place, arrival, hello.as_ref()));
            state.add(Arc::clone(&client));
            (client, state.stopping)
        };
        self.metrics.streams.add(1);
        self.log.line(|| {
            let topic = client.audience.as_ref().map(|topic| format!("/{}", topic.as_str()));
            let path = topic.unwrap_or_default();
            let claim = client.forwarded_for.as_ref().map(|claim| format!(" (forwarded_for {claim:?})"));
            let claim = claim.unwrap_or_default();
            format!("client {} at {}{claim} connected to /events{path}", client.id, client.address)
        });
        match self.catch_up(&client) {
            // The catch-up thread ends it when it has been idle.
            Progress::Done if client.until.idle.is_some() => self.hand_over(Arc::clone(&client)),
            Progress::Done => {}
            Progress::Blocked => self.hand_over(Arc::clone(&client)),
            Progress::Gone(end) => self.remove(&client, &end),
        }
        self.watch.tell();
        if stopping {
            self.end(client, None);
        }
    }

    /// Every client whose stream goes on, in the order of their ids. Not those that are being ended: whoever has read
    /// the last chunk of one must not find it here.
    pub fn clients(&self) -> Vec<Arc<Client>> {
        let mut clients = self.lock().clients();
        clients.retain(|client| !client.is_ending());
        clients.sort_unstable_by_key(|client| client.id);
        clients
    }

    /// The client of that id, if it is there.
    pub fn client(&self, id: u64) -> Option<Arc<Client>> {
        let of_this_id = |client: &Arc<Client>| client.id == id && !client.is_ending();
        self.lock().clients().into_iter().find(of_this_id)
    }

    /// Ends a client's stream; it may come back. Says whether there was one.
    pub fn disconnect(&self, id: u64) -> bool {
        self.client(id).is_some_and(|client| {
            self.end(client, None);
            true
        })
    }

    /// Cuts every connection as it is; no last chunk tells a client that its stream has ended.
    pub fn cut_all(&self, why: &'static str) {
        let clients = self.lock().clients();
        for client in clients {
            self.remove(&client, &End::Cut(why));
        }
    }

    /// Ends every stream; they may come back.
    pub fn disconnect_all(&self) {
        for client in self.clients() {
            self.end(client, None);
        }
    }

    /// The number of clients, and what history holds in bytes.
    pub fn size(&self) -> (usize, usize) {
        let state = self.lock();
        (state.clients().len(), state.history.size())
    }

    /// Takes no client and delays no publisher from now on.
    pub fn begin_stop(&self) {
        self.lock().stopping = true;
        self.has_read.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is done under the lock does not panic half-way: patches are judged before they are applied.
        lock(&self.state)
    }

    /// Waits while the hub is far behind. A hub that stops takes nothing more, or it would never be done.
    fn lock_to_publish(&self) -> Result<MutexGuard<'_, State>, Refusal> {
        let far_behind = |state: &mut State| state.unread_bytes > UNREAD_BYTES && !state.stopping;
        let state = self.has_read.wait_while(self.lock(), far_behind).unwrap_or_else(PoisonError::into_inner);
        if state.stopping { Err(Refusal::Stopping) } else { Ok(state) }
    }

    fn ring(&self) {
        // Full: it rings already. Disconnected: the hub has stopped, and everybody was told to come back.
        self.doorbell.try_send(()).ok();
    }

    /// 2 to 4 s for the default of 3: a restart must not bring everyone back at once.
    fn jittered_retry(&self) -> u64 {
        let retry = self.settings.retry.as_millis() as u64;
        random_between(retry * 2 / 3, retry * 4 / 3)
    }

    /// Says how the stream goes on, and when to come back.
    fn hello(&self, client: u64, resume: &str, reason: &str) -> Chunk {
        let heartbeat_ms = self.settings.heartbeat.as_millis() as u64;
        let data = format!(
            r#"{{"client":{client},"heartbeat_ms":{heartbeat_ms},"resume":"{resume}","reason":"{reason}"}}"#
        );
        Chunk::with_retry(self.jittered_retry(), &EventName::HELLO, &data)
    }

    fn end(&self, client: Arc<Client>, last: Option<&Chunk>) {
        match client.end(last) {
            Some(Progress::Blocked) => self.hand_over(client),
            Some(Progress::Gone(end)) => self.remove(&client, &end),
            Some(Progress::Done) | None => {}
        }
    }

    /// Takes a client off the list and closes its connection. The first caller's reason is logged.
    fn remove(&self, client: &Arc<Client>, end: &End) {
        let events = client.status().events;
        if self.lock().remove(client) {
            if !matches!(end, End::Clean) {
                self.metrics.gone.add(1);
            }
            self.log.line(|| format!("client {} gone after {events} events: {end}", client.id));
        }
        client.close();
        self.watch.tell();
    }
}

impl Threads {
    /// Delivers what was published, ends every stream with a time to come back, and waits for that until `deadline`.
    pub fn stop(self, hub: &Hub, deadline: Instant) {
        hub.begin_stop();
        hub.ring();
        self.fan_out.map(JoinHandle::join);
        let clients = hub.clients();
        // 300 a second: what a small machine answers with ease.
        let window = (clients.len() as u64 * 1_000 / 300).clamp(1_000, 30_000);
        for client in clients {
            let retry = random_between(100, window);
            let last = Chunk::with_retry(retry, &EventName::HEARTBEAT, &now_ms().to_string());
            hub.end(client, Some(&last));
        }
        hub.watch.wait(deadline, |_| (hub.size().0 == 0).then_some(()));
        hub.cut_all("the server stopped");
        *lock(&hub.behind) = None;
        hub.late.try_send(()).ok();
        self.catch_up.map(JoinHandle::join);
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(run)
}

/// Why a hub does not start.
#[derive(Debug)]
pub(crate) enum StartError {
    Document(Refusal),
    Thread(io::Error),
}
