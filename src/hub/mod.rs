//! The hub: publish, join, fan out, catch up.
//!
//! `server` publishes and joins clients; neither ever touches another client's socket. Publishing appends to history
//! and rings the bells; each fan-out thread reads history and writes to the live clients of its part. The one rule:
//! nothing blocks, logs or writes to a socket while it holds the lock.

mod catch_up;
mod chunk;
pub mod client;
pub mod draft;
mod fan_out;
pub mod handover;
pub mod history;
#[cfg(feature = "redis")]
pub mod shared;
mod state;
pub mod watch;

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

#[cfg(feature = "redis")]
use crossbeam_channel::Receiver;
use crossbeam_channel::{Sender, bounded};
use serde_json::Value;

use crate::clock::{now_ms, random_between};
use crate::conditions::Conditions;
use crate::config::Config;
use crate::document::{Document, Refusal};
use crate::hub::chunk::Chunk;
use crate::hub::client::{Arrival, Client, End, Place, Progress};
use crate::hub::draft::{Draft, Judged};
use crate::hub::history::Audience;
#[cfg(feature = "redis")]
use crate::hub::shared::{Opened, Shared};
use crate::hub::state::State;
use crate::hub::watch::Watch;
use crate::lock::lock;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::seats::{Full, Seat, Seats};
use crate::sse::event::{EventId, EventName};

/// What may wait for the slowest fan-out thread before publishers wait, too.
const UNREAD_BYTES: u64 = 1 << 20;

/// The document, the history and the client list, and whoever writes to clients.
pub(crate) struct Hub {
    config: Config,
    pub metrics: Arc<Metrics>,
    log: Log,
    state: Mutex<State>,
    seats: Arc<Seats>,
    /// Publishers wait here for the fan-out threads to read what waits for them.
    has_read: Condvar,
    /// Wakes those who wait for a condition of the clients.
    pub watch: Watch,
    /// Each fan-out thread has one. It has one place: a bell that rings already need not be rung again.
    bells: Vec<Sender<()>>,
    changed: Sender<()>,
    /// Clients for the catch-up thread. Unbounded, because each is in it once.
    behind: Mutex<Vec<Option<Arc<Client>>>>,
    late: Sender<()>,
    /// Where several servers share what is published.
    #[cfg(feature = "redis")]
    pub shared: Option<Shared>,
}

/// The hub's threads.
#[derive(Default)]
pub(crate) struct Threads {
    fan_out: Vec<JoinHandle<()>>,
    catch_up: Option<JoinHandle<()>>,
    /// Ends the thread that follows the journal when it is dropped; and is told of its end.
    #[cfg(feature = "redis")]
    follow: Option<(Sender<()>, Receiver<()>)>,
}

impl Hub {
    /// Starts the fan-out threads and the catch-up thread, with the document as it was saved and what an earlier
    /// server wrote out. `changed` is rung after every change of the document.
    ///
    /// # Errors
    /// There is no thread to be had; or `InvalidData`: the document is none that this hub takes.
    pub fn start(
        config: Config,
        saved: Value,
        handed: Option<Vec<u8>>,
        #[cfg(feature = "redis")] opened: Option<Opened>,
        log: Log,
        changed: Sender<()>,
    ) -> io::Result<(Arc<Hub>, Threads)> {
        let random_part = EventId::random_part();
        let start = EventId::first(now_ms(), random_part);
        let document = Document::saved(start, config.max_document_bytes, saved)
            .map_err(|refusal| io::Error::new(ErrorKind::InvalidData, refusal))?;
        let mut state = State::new(document, random_part, &config);
        if let Some(Err(why)) = handed.map(|stream| state.restore(&stream)) {
            log.line(|| format!("the history of the server before is not used: {why}"));
        }
        #[cfg(feature = "redis")]
        let shared = opened.map(|opened| state.begin_with(opened));
        let (bells, for_fan_out): (Vec<_>, Vec<_>) = state.parts.iter().map(|_| bounded(1)).unzip();
        let (late, for_catch_up) = bounded(1);
        let hub = Arc::new(Hub {
            seats: Seats::new(config.max_clients, config.max_clients_per_address),
            state: Mutex::new(state),
            config,
            metrics: Arc::default(),
            log,
            has_read: Condvar::new(),
            watch: Watch::default(),
            bells,
            changed,
            behind: Mutex::default(),
            late,
            #[cfg(feature = "redis")]
            shared,
        });
        let mut threads = Threads::default();
        let start = || -> io::Result<()> {
            for (number, bell) in for_fan_out.into_iter().enumerate() {
                let hub = Arc::clone(&hub);
                threads.fan_out.push(spawn("fan-out", move || hub.run_fan_out(number, &bell))?);
            }
            let hub = Arc::clone(&hub);
            #[cfg(feature = "redis")]
            let follower = Arc::clone(&hub);
            threads.catch_up = Some(spawn("catch-up", move || hub.run_catch_up(&for_catch_up))?);
            #[cfg(feature = "redis")]
            {
                threads.follow = follower.start_following()?;
            }
            Ok(())
        };
        if let Err(error) = start() {
            threads.stop(&hub, Instant::now());
            return Err(error);
        }
        Ok((hub, threads))
    }

    /// Publishes what a draft comes to, and tells everybody. Returns before anybody has been told. Waits while delivery is
    /// far behind. A hub that stops takes nothing more, or it would never be done.
    pub fn publish(&self, draft: Draft, conditions: &Conditions) -> Result<EventId, Refusal> {
        let mut state = self.lock_to_publish();
        if state.stopping {
            return Err(Refusal::Stopping);
        }
        #[cfg(feature = "redis")]
        if let Some(shared) = &self.shared {
            drop(state);
            return self.share(shared, draft, conditions.clone());
        }
        let id = state.next_id();
        let judged = draft.judge(conditions, &state.document)?;
        let is_change = matches!(judged, Judged::Update(_));
        state.apply(id, judged);
        drop(state);
        self.ring();
        if is_change {
            self.changed.try_send(()).ok();
        }
        self.count(id, is_change);
        Ok(id)
    }

    /// The lock, once delivery is not far behind any more, or the hub stops.
    fn lock_to_publish(&self) -> MutexGuard<'_, State> {
        let far_behind = |state: &mut State| state.unread_bytes() > UNREAD_BYTES && !state.stopping;
        let state = self.has_read.wait_while(self.lock(), far_behind);
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, id: EventId, is_change: bool) {
        let metrics = &self.metrics;
        let (counter, what) =
            if is_change { (&metrics.writes, "update") } else { (&metrics.one_off_events, "one-off event") };
        counter.add(1);
        if self.config.verbose {
            self.log.line(|| format!("{what} {id}"));
        }
    }

    /// Knows no id any more that was issued before, as after a restart: whoever resumes with one gets the document,
    /// `reason` `restart`. Clients that are connected notice nothing.
    pub fn forget_history(&self) {
        #[cfg(feature = "redis")]
        if self.shared.is_some() {
            return self.lock().forget_alone();
        }
        self.lock().forget();
        self.ring();
    }

    /// What the next server with this document can go on with.
    pub fn write_out(&self) -> Vec<u8> {
        self.lock().write_out()
    }

    /// Whether some client may come back with an id that was issued here or before.
    pub fn has_had_clients(&self) -> bool {
        self.lock().last_client > 0
    }

    /// Looks at the document, under the lock.
    pub fn read<T>(&self, look: impl FnOnce(&Document) -> T) -> T {
        look(&self.lock().document)
    }

    /// A seat for a client from this address, which it brings to `join`.
    pub fn admit(&self, address: IpAddr) -> Result<Seat, Full> {
        if self.lock().stopping { Err(Full::Stopping) } else { self.seats.take(address) }
    }

    /// Puts a client on the list and brings it up to date; `last_event_id` is what it said it has. Blocks for as long as
    /// a few writes to a socket that does not block.
    pub fn join(&self, audience: Audience, last_event_id: Option<EventId>, arrival: Arrival) {
        #[cfg(feature = "redis")]
        last_event_id.inspect(|id| self.reach(*id));
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
            let topic = client.about.topic.as_ref().map(|topic| format!("/{}", topic.as_str()));
            let path = topic.unwrap_or_default();
            let claim =
                client.about.forwarded_for.as_ref().map(|claim| format!(" (forwarded_for {claim:?})"));
            let claim = claim.unwrap_or_default();
            format!(
                "client {} at {}{claim} connected to /events{path}",
                client.about.id, client.about.address
            )
        });
        match self.catch_up(&client) {
            Progress::Gone(end) => self.remove(&client, end),
            Progress::Done if client.idle_until().is_none() => {}
            // The catch-up thread sees to the rest, and ends it when it has been idle.
            Progress::Done | Progress::Blocked => self.hand_over(Some(Arc::clone(&client))),
        }
        self.watch.tell();
        if stopping {
            self.end(&client, None);
        }
    }

    /// Every client whose stream goes on, in the order of their ids. Not those that are being ended: whoever has read
    /// the last chunk of one must not find it here.
    pub fn clients(&self) -> Vec<Arc<Client>> {
        let mut clients: Vec<_> = self.everybody().filter(|client| !client.is_ending()).collect();
        clients.sort_unstable_by_key(|client| client.about.id);
        clients
    }

    /// Those of them that an event was not written to.
    pub fn lacking(&self, id: EventId) -> Vec<Arc<Client>> {
        let read = self.lock().slowest().read;
        let mut clients = self.clients();
        clients.retain(|client| !client.has(id, read));
        clients
    }

    /// The client of that id, if it is there.
    pub fn client(&self, id: u64) -> Option<Arc<Client>> {
        self.everybody().find(|client| client.about.id == id && !client.is_ending())
    }

    fn everybody(&self) -> impl Iterator<Item = Arc<Client>> {
        let lists = self.lock().lists();
        lists.into_iter().flat_map(|list| list.to_vec())
    }

    /// Ends a client's stream; it may come back. Says whether there was one.
    pub fn disconnect(&self, id: u64) -> bool {
        self.client(id).map(|client| self.end(&client, None)).is_some()
    }

    /// Ends every stream; they may come back.
    pub fn disconnect_all(&self) {
        self.everybody().for_each(|client| self.end(&client, None));
    }

    /// Cuts every connection as it is; no last chunk tells a client that its stream has ended.
    pub fn cut_all(&self, why: &str) {
        self.everybody().for_each(|client| self.remove(&client, End::Fault(why.to_owned())));
    }

    /// The number of clients, and what history holds in bytes.
    pub fn size(&self) -> (usize, usize) {
        let state = self.lock();
        (state.parts.iter().map(|part| part.count).sum(), state.history.size())
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

    fn ring(&self) {
        for bell in &self.bells {
            // Full: it rings already. Disconnected: the hub has stopped, and everybody was told to come back.
            bell.try_send(()).ok();
        }
    }

    /// Says how the stream goes on, and when to come back.
    fn hello(&self, client: u64, resume: &str, reason: &str) -> Chunk {
        let [heartbeat_ms, retry] =
            [self.config.heartbeat, self.config.retry].map(|time| time.as_millis() as u64);
        // 2 to 4 s for the default of 3: a restart must not bring everyone back at once.
        let jittered_retry = random_between(retry * 2 / 3, retry * 4 / 3);
        let data = format!(
            r#"{{"client":{client},"heartbeat_ms":{heartbeat_ms},"resume":"{resume}","reason":"{reason}"}}"#
        );
        Chunk::with_retry(jittered_retry, &EventName::HELLO, &data)
    }

    fn end(&self, client: &Arc<Client>, last: Option<&Chunk>) {
        match client.end(last) {
            Progress::Blocked => self.hand_over(Some(Arc::clone(client))),
            Progress::Gone(end) => self.remove(client, end),
            Progress::Done => {}
        }
    }

    /// Takes a client off the list and closes its connection. The first caller's reason is logged.
    fn remove(&self, client: &Arc<Client>, end: End) {
        let (events, _) = client.sent();
        if self.lock().remove(client) {
            let why = match end {
                End::Clean => "ended by the server".to_owned(),
                End::Fault(text) => {
                    self.metrics.gone.add(1);
                    text
                }
            };
            self.log.line(|| format!("client {} gone after {events} events: {why}", client.about.id));
        }
        client.close();
        self.watch.tell();
    }
}

impl Threads {
    /// Delivers what was published, ends every stream with a time to come back, and waits for that until `deadline`.
    pub fn stop(self, hub: &Hub, deadline: Instant) {
        hub.begin_stop();
        #[cfg(feature = "redis")]
        let follow = self.follow.map(|(stop, ended)| (drop(stop), ended).1);
        hub.ring();
        for thread in self.fan_out {
            thread.join().ok();
        }
        let clients = hub.clients();
        // 300 a second: what a small machine answers with ease.
        let window = (clients.len() as u64 * 1_000 / 300).clamp(1_000, 30_000);
        for client in clients {
            let retry = random_between(100, window);
            let last = Chunk::with_retry(retry, &EventName::HEARTBEAT, &now_ms().to_string());
            hub.end(&client, Some(&last));
        }
        hub.watch.wait(deadline, || (hub.size().0 == 0).then_some(()));
        hub.cut_all("the server stopped");
        hub.hand_over(None);
        self.catch_up.map(JoinHandle::join);
        #[cfg(feature = "redis")]
        follow.map(|ended| ended.recv_deadline(deadline));
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(run)
}
