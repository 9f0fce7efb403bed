//! The hub: the document, the history and the client list under one lock, and the one thread that writes to live
//! clients.
//!
//! `server` publishes and joins clients; neither ever touches another client's socket. Publishing appends to history
//! and rings a bell. The hub thread takes everything that came since its last pass as one chunk for each audience
//! and gives it to each client in one write, so under load there are fewer writes, not longer queues. It never waits
//! for a client: one whose write does not complete goes to the catch-up thread, and is live again when it has what
//! it missed. The one rule: nothing blocks, logs or writes to a socket while it holds the lock.

pub mod client;
pub mod history;
pub mod watch;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::Value;

use crate::clock::{now_ms, random_between};
use crate::document::{Document, Patch, Refusal};
use crate::hub::client::{Arrival, Chunk, Client, Following, Place, Progress, Reason};
use crate::hub::history::{Audience, Entry, EventData, History};
use crate::hub::watch::Watch;
use crate::lock::lock;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::sse::event::{EventId, EventName, Topic, write_event};

/// What a pass of the hub takes from history at most: more would not fit a socket's send buffer in one write.
const PASS_BYTES: usize = 64 << 10;

/// What may wait for the hub before publishers wait too.
const UNREAD_BYTES: usize = 1 << 20;

/// The catch-up thread comes back to a blocked client after the first delay, then ever later, up to the second.
const VISIT_DELAYS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// How often it is looked whether clients acknowledge what they are sent.
const SURVEY: Duration = Duration::from_secs(5);

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

/// Why a client cannot join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Server,
    Address,
    Stopping,
}

pub(crate) struct Hub {
    settings: Settings,
    pub metrics: Arc<Metrics>,
    log: Log,
    state: Mutex<State>,
    /// Chunks of one event that clients who are catching up hold now: a hundred of them need one large event once.
    large_chunks: Mutex<Vec<(EventId, Audience, Weak<Chunk>)>>,
    /// Publishers wait here for the hub to read what waits for it.
    has_read: Condvar,
    /// Whoever waits for clients waits here.
    pub watch: Watch,
    /// One place: a bell that rings already need not be rung again.
    doorbell: Sender<()>,
    changed: Sender<()>,
    /// For the catch-up thread, whom `late` wakes. `None` ends it.
    behind: Mutex<Option<Vec<Arc<Client>>>>,
    late: Sender<()>,
}

struct State {
    document: Document,
    history: History,
    /// Older ids are not known: those of an earlier process, and those from before history was forgotten.
    start: EventId,
    /// What the sequence of an id begins with.
    random_part: u32,
    /// The hub thread's place in history.
    read: EventId,
    unread_bytes: usize,
    audiences: HashMap<Audience, Subscribers>,
    clients: usize,
    /// Loopback is not counted.
    clients_of_address: HashMap<IpAddr, usize>,
    last_client: u64,
    stopping: bool,
}

/// The clients of one audience, live or catching up.
#[derive(Default)]
struct Subscribers {
    clients: Vec<Arc<Client>>,
    /// `init` as of an id, for everybody who needs it before the next event.
    init: Option<(EventId, Arc<Chunk>)>,
}

/// The hub's threads.
pub(crate) struct Threads {
    hub: JoinHandle<()>,
    catch_up: JoinHandle<()>,
}

impl Hub {
    /// Starts the hub thread and the catch-up thread, with the document as it was saved. `changed` is rung after
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
            settings,
            metrics: Arc::default(),
            log,
            state: Mutex::new(state),
            large_chunks: Mutex::default(),
            has_read: Condvar::new(),
            watch: Watch::new(start),
            doorbell,
            changed,
            behind: Mutex::new(Some(Vec::new())),
            late,
        });
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).spawn(run).map_err(StartError::Thread)
        };
        let (for_hub, for_catch_up) = (Arc::clone(&hub), Arc::clone(&hub));
        let threads = Threads {
            hub: spawn("hub", Box::new(move || for_hub.run(&bell)))?,
            catch_up: spawn("catch-up", Box::new(move || for_catch_up.run_catch_up(&for_late)))?,
        };
        Ok((hub, threads))
    }

    /// Changes the document by the patch that `make_patch` makes for it, and tells everybody. Returns before anybody
    /// has been told. Waits while the hub is far behind.
    pub fn write<E: From<Refusal>>(
        &self,
        make_patch: impl FnOnce(&Document) -> Result<Patch, E>,
    ) -> Result<EventId, E> {
        let mut state = self.lock_to_publish()?;
        let patch = make_patch(&state.document)?;
        let id = state.next_id();
        let entry = Entry::update(id, &patch);
        state.document.apply(patch, id);
        state.publish(entry);
        drop(state);
        self.ring();
        self.changed.try_send(()).ok();
        self.metrics.writes.add(1);
        if self.settings.verbose {
            self.log.line(|| format!("update {id}"));
        }
        Ok(id)
    }

    /// Publishes an event that changes nothing. Returns and waits as `write` does.
    pub fn send(&self, audience: Audience, name: EventName, data: EventData) -> Result<EventId, Refusal> {
        let mut state = self.lock_to_publish()?;
        let id = state.next_id();
        state.publish(Entry::one_off(id, audience, name, data));
        drop(state);
        self.ring();
        self.metrics.one_off_events.add(1);
        if self.settings.verbose {
            self.log.line(|| format!("one-off event {id}"));
        }
        Ok(id)
    }

    /// Knows no id any more that was issued before, as after a restart: whoever resumes with one gets the document,
    /// `reason` `restart`. Clients that are connected notice nothing.
    pub fn forget_history(&self) {
        self.lock().forget();
        self.ring();
    }

    /// The whole document as JSON, and the id of its last change.
    pub fn document(&self) -> (String, EventId) {
        let state = self.lock();
        (state.document.json(), state.document.last_change())
    }

    /// The document or one topic; `None` for an absent topic.
    pub fn value(&self, topic: Option<&Topic>) -> Option<Value> {
        self.lock().document.value(topic)
    }

    /// The id of the document's last change.
    pub fn last_change(&self) -> EventId {
        self.lock().document.last_change()
    }

    /// The id of the last change of the document or one topic; `None` for an absent topic.
    pub fn changed(&self, topic: Option<&Topic>) -> Option<EventId> {
        self.lock().document.changed(topic)
    }

    /// The document or one topic as JSON, and the id of its last change; `None` for an absent topic.
    pub fn get(&self, topic: Option<&Topic>) -> Option<(String, EventId)> {
        self.lock().document.get(topic)
    }

    /// Keeps a place for a client from this address; `join` takes it.
    pub fn admit(&self, address: IpAddr) -> Result<(), Full> {
        self.lock().admit(address, &self.settings)
    }

    /// Puts a client that was admitted on the list and brings it up to date; `last_event_id` is what it said it
    /// has. Blocks for as long as a few writes to a socket that does not block.
    pub fn join(&self, audience: Audience, last_event_id: Option<EventId>, arrival: Arrival) {
        let (client, stopping) = {
            let mut state = self.lock();
            state.last_client += 1;
            let id = state.last_client;
            let place = state.resume(last_event_id);
            // Whoever gets the document gets its hello with it, in `following`.
            let first = matches!(place, Place::After(_)).then(|| self.hello(id, "replay", "known"));
            let client = Arc::new(Client::new(id, audience.clone(), place, arrival, first.as_ref()));
            state.audiences.entry(audience).or_default().clients.push(Arc::clone(&client));
            (client, state.stopping)
        };
        self.metrics.streams.add(1);
        self.log.line(|| {
            let topic = client.audience.as_ref().map(|topic| format!("/{}", topic.as_str()));
            let path = topic.unwrap_or_default();
            format!("client {} at {} connected to /events{path}", client.id, client.address)
        });
        match client.catch_up(|client, place| self.following(client, place)) {
            // The catch-up thread ends it when it has been idle.
            Progress::Done if client.until.idle.is_some() => self.hand_over(Arc::clone(&client)),
            Progress::Done => {}
            Progress::Blocked => self.hand_over(Arc::clone(&client)),
            Progress::Gone(error) => self.remove(&client, &error),
        }
        self.watch.tell();
        if stopping {
            self.end(client, None);
        }
    }

    /// Every client whose stream goes on, in the order of their ids. Not those that are being ended: whoever has read
    /// the last chunk of one must not find it here.
    pub fn clients(&self) -> Vec<Arc<Client>> {
        let mut clients = self.lock().all_clients();
        clients.retain(|client| !client.is_ending());
        clients.sort_unstable_by_key(|client| client.id);
        clients
    }

    /// The client of that id, if it is there.
    pub fn client(&self, id: u64) -> Option<Arc<Client>> {
        self.clients().into_iter().find(|client| client.id == id)
    }

    /// Ends a client's stream; it may come back. Says whether there was one.
    pub fn disconnect(&self, id: u64) -> bool {
        self.client(id).is_some_and(|client| {
            self.end(client, None);
            true
        })
    }

    /// Cuts every connection as it is; no last chunk tells a client that its stream has ended.
    pub fn cut_all(&self, why: &str) {
        let clients = self.lock().all_clients();
        for client in clients {
            self.remove(&client, &io::Error::other(why));
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
        (state.clients, state.history.size())
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
        event_with_retry(self.jittered_retry(), &EventName::HELLO, &data)
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
                        let chunk = self.shared_chunk_of(&entries, &client.audience);
                        return Some(Following { chunks: chunk.into_iter().collect(), place });
                    }
                    None => Reason::Lagged,
                }
            }
        };
        if reason == Reason::Lagged {
            self.metrics.lagged.add(1);
        }
        let (place, init) = self.lock().init(&client.audience);
        let hello = self.hello(client.id, "init", &reason.to_string());
        Some(Following { chunks: vec![Arc::new(hello), init], place })
    }

    /// A chunk that is shared with others who are at the same place, if it is a large one.
    fn shared_chunk_of(&self, entries: &[Arc<Entry>], audience: &Audience) -> Option<Arc<Chunk>> {
        let large = match entries {
            [only] if only.size() > PASS_BYTES => only,
            _ => return chunk_of(entries, audience).map(Arc::new),
        };
        let mut shared = lock(&self.large_chunks);
        shared.retain(|(_, _, chunk)| chunk.strong_count() > 0);
        let known = shared.iter().find(|(id, of, _)| *id == large.id && of == audience);
        if let Some(chunk) = known.and_then(|(_, _, chunk)| chunk.upgrade()) {
            return Some(chunk);
        }
        let chunk = chunk_of(entries, audience).map(Arc::new)?;
        shared.push((large.id, audience.clone(), Arc::downgrade(&chunk)));
        Some(chunk)
    }

    /// The hub thread: one loop, woken by the bell, the heartbeat, or the end.
    fn run(&self, bell: &Receiver<()>) {
        let mut beaten = Instant::now();
        loop {
            if bell.recv_timeout(self.settings.heartbeat.saturating_sub(beaten.elapsed())).is_ok() {
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
            if beaten.elapsed() >= self.settings.heartbeat {
                beaten = Instant::now();
                self.beat();
            }
        }
    }

    /// Writes what was published since the last pass to everybody it is for; says whether there is more.
    fn pass(&self) -> bool {
        let (entries, more, to, audiences) = {
            let mut state = self.lock();
            let unread = state.history.after(state.read).expect("history keeps what the hub has not read");
            let entries = up_to_a_pass(unread);
            let Some(last) = entries.last() else { return false };
            let to = last.id;
            state.read = to;
            state.unread_bytes -= entries.iter().map(|entry| entry.size()).sum::<usize>();
            let topics = entries.iter().flat_map(|entry| entry.topics().cloned().map(Some));
            let touched: HashSet<Audience> = std::iter::once(None).chain(topics).collect();
            let clients = |audience: Audience| {
                let clients = state.audiences.get(&audience)?.clients.clone();
                Some((audience, clients))
            };
            let audiences: Vec<_> = touched.into_iter().filter_map(clients).collect();
            (entries, to != state.history.last_id(), to, audiences)
        };
        self.has_read.notify_all();
        self.metrics.passes.add(1);
        for (audience, clients) in audiences {
            if let Some(chunk) = chunk_of(&entries, &audience) {
                self.deliver(&clients, &chunk, Some(to));
            }
        }
        self.watch.tell_delivered(to);
        more
    }

    fn beat(&self) {
        let mut frame = Vec::new();
        write_event(&mut frame, None, &EventName::HEARTBEAT, &now_ms().to_string());
        let end = frame.len();
        let chunk = Chunk::new(&frame, vec![(None, end)]);
        let clients = self.lock().all_clients();
        self.deliver(&clients, &chunk, None);
    }

    fn deliver(&self, clients: &[Arc<Client>], chunk: &Chunk, to: Option<EventId>) {
        let mut delivered = 0;
        for client in clients {
            match client.deliver(chunk, to) {
                Some(Progress::Done) => delivered += 1,
                Some(Progress::Blocked) => {
                    self.metrics.behind.add(1);
                    self.hand_over(Arc::clone(client));
                }
                Some(Progress::Gone(error)) => self.remove(client, &error),
                None => {}
            }
        }
        self.metrics.deliveries.add(delivered * chunk.count() as u64);
    }

    fn hand_over(&self, client: Arc<Client>) {
        if let Some(behind) = &mut *lock(&self.behind) {
            behind.push(client);
        }
        // Full: it rings already.
        self.late.try_send(()).ok();
    }

    /// The catch-up thread: visits each client that is behind until it is live again or gone.
    fn run_catch_up(&self, late: &Receiver<()>) {
        let mut visits: Vec<Visit> = Vec::new();
        let mut silent = HashMap::new();
        let mut survey_at = Instant::now() + SURVEY;
        loop {
            if Instant::now() >= survey_at {
                survey_at = Instant::now() + SURVEY;
                self.survey(&mut silent);
            }
            let due = visits.iter().map(|visit| visit.due).min();
            late.recv_deadline(due.unwrap_or(survey_at).min(survey_at)).ok();
            let Some(behind) = lock(&self.behind).as_mut().map(std::mem::take) else { return };
            for client in behind {
                if client.until.idle.is_some() {
                    // It is here already, to be ended when it is idle.
                    visits.retain(|visit| !Arc::ptr_eq(&visit.client, &client));
                }
                visits.push(Visit::new(client, self.settings.stall));
            }
            visits.retain_mut(|visit| visit.due > Instant::now() || self.visit(visit));
        }
    }

    /// Removes clients whose machine acknowledges nothing of what was sent to it: a power cut, a pulled cable. Their
    /// writes succeed for as long as there is room in the kernel.
    fn survey(&self, silent: &mut HashMap<u64, (Instant, u64)>) {
        let now = Instant::now();
        let before = std::mem::take(silent);
        // Not in the loop's head, where the lock would be held until its end.
        let clients = self.lock().all_clients();
        for client in clients {
            let (acknowledged, is_waiting) = client.acknowledged();
            if !is_waiting {
                continue;
            }
            let last = before.get(&client.id).filter(|(_, then)| *then == acknowledged);
            let since = last.map_or(now, |(since, _)| *since);
            if now - since >= self.settings.unacknowledged {
                let text = format!("nothing was acknowledged for {} s", (now - since).as_secs());
                self.remove(&client, &io::Error::new(io::ErrorKind::TimedOut, text));
            } else {
                silent.insert(client.id, (since, acknowledged));
            }
        }
    }

    /// Says whether another visit is needed.
    fn visit(&self, visit: &mut Visit) -> bool {
        let client = &visit.client;
        let mut progress = client.catch_up(|client, place| self.following(client, place));
        self.watch.tell();
        if let (Progress::Done, Some(idle_until)) = (&progress, client.idle_until()) {
            let now = Instant::now();
            if now < idle_until {
                // Not later than this: by then it may be gone, and its memory with it.
                visit.due = idle_until.min(now + SURVEY);
                // It has all there is: it does not stand still.
                visit.progress.0 = now;
                return true;
            }
            // If somebody else is catching it up by now, they see it through.
            progress = client.end(None).unwrap_or(Progress::Done);
        }
        match progress {
            Progress::Done => return false,
            Progress::Gone(error) => {
                self.remove(client, &error);
                return false;
            }
            Progress::Blocked => {}
        }
        if visit.is_stalled() {
            let text = format!("nothing was read for {:?}", self.settings.stall);
            self.remove(&visit.client, &io::Error::new(io::ErrorKind::TimedOut, text));
            return false;
        }
        true
    }

    fn end(&self, client: Arc<Client>, last: Option<Chunk>) {
        match client.end(last) {
            Some(Progress::Blocked) => self.hand_over(client),
            Some(Progress::Gone(error)) => self.remove(&client, &error),
            Some(Progress::Done) | None => {}
        }
    }

    /// Takes a client off the list and closes its connection. The first caller's reason is logged.
    fn remove(&self, client: &Arc<Client>, error: &io::Error) {
        let status = client.status();
        if self.lock().remove(client) {
            self.metrics.gone.add(1);
            self.log.line(|| format!("client {} gone after {} events: {error}", client.id, status.events));
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
        self.hub.join().ok();
        let clients = hub.clients();
        // 300 a second: what a small machine answers with ease.
        let window = (clients.len() as u64 * 1_000 / 300).clamp(1_000, 30_000);
        for client in clients {
            let retry = random_between(100, window);
            let last = event_with_retry(retry, &EventName::HEARTBEAT, &now_ms().to_string());
            hub.end(client, Some(last));
        }
        hub.watch.wait(deadline, |_| (hub.size().0 == 0).then_some(()));
        hub.cut_all("the server stopped");
        *lock(&hub.behind) = None;
        hub.late.try_send(()).ok();
        self.catch_up.join().ok();
    }
}

impl State {
    fn new(document: Document, start: EventId, random_part: u32, history_bytes: usize) -> State {
        State {
            document,
            history: History::new(start, history_bytes),
            start,
            random_part,
            read: start,
            unread_bytes: 0,
            audiences: HashMap::new(),
            clients: 0,
            clients_of_address: HashMap::new(),
            last_client: 0,
            stopping: false,
        }
    }

    fn next_id(&self) -> EventId {
        self.history.last_id().next(now_ms(), self.random_part)
    }

    fn publish(&mut self, entry: Entry) {
        // An `init` that is not current serves nobody, and may be large.
        for audience in std::iter::once(None).chain(entry.topics().cloned().map(Some)) {
            if let Some(subscribers) = self.audiences.get_mut(&audience) {
                subscribers.init = None;
            }
        }
        self.unread_bytes += entry.size();
        self.history.push(entry, self.read);
    }

    fn forget(&mut self) {
        // A place of its own: the id of the last event is one of those that are not known any more.
        self.start = self.next_id();
        self.publish(Entry::place(self.start));
    }

    fn room(&self, address: IpAddr, settings: &Settings) -> Result<(), Full> {
        let of_address = self.clients_of_address.get(&address).copied().unwrap_or(0);
        if self.stopping {
            Err(Full::Stopping)
        } else if self.clients >= settings.max_clients {
            Err(Full::Server)
        } else if settings.max_clients_per_address > 0 && of_address >= settings.max_clients_per_address {
            Err(Full::Address)
        } else {
            Ok(())
        }
    }

    fn admit(&mut self, address: IpAddr, settings: &Settings) -> Result<(), Full> {
        self.room(address, settings)?;
        self.clients += 1;
        if !address.to_canonical().is_loopback() {
            *self.clients_of_address.entry(address).or_default() += 1;
        }
        Ok(())
    }

    /// Where a client starts that says it has everything up to an id.
    fn resume(&self, last_event_id: Option<EventId>) -> Place {
        match last_event_id {
            None => Place::Nowhere(Reason::First),
            Some(id) if id < self.start => Place::Nowhere(Reason::Restart),
            Some(id) if self.history.after(id).is_some() => Place::After(id),
            Some(_) => Place::Nowhere(Reason::Gap),
        }
    }

    /// The audience's `init` and the id it is current as of, encoded once until the next event.
    fn init(&mut self, audience: &Audience) -> (EventId, Arc<Chunk>) {
        let id = self.history.last_id();
        let subscribers = self.audiences.get_mut(audience);
        if let Some(Subscribers { init: Some((as_of, init)), .. }) = &subscribers
            && *as_of == id
        {
            return (id, Arc::clone(init));
        }
        let data = self.document.get(audience.as_ref()).map_or_else(|| "null".into(), |(json, _)| json);
        let mut frame = Vec::with_capacity(data.len() + 64);
        write_event(&mut frame, Some(id), &EventName::INIT, &data);
        let end = frame.len();
        let init = Arc::new(Chunk::new(&frame, vec![(Some(id), end)]));
        if let Some(subscribers) = subscribers {
            subscribers.init = Some((id, Arc::clone(&init)));
        }
        (id, init)
    }

    fn all_clients(&self) -> Vec<Arc<Client>> {
        self.audiences.values().flat_map(|subscribers| subscribers.clients.iter().cloned()).collect()
    }

    /// Says whether the client was on the list.
    fn remove(&mut self, client: &Arc<Client>) -> bool {
        let Some(subscribers) = self.audiences.get_mut(&client.audience) else { return false };
        let Some(index) = subscribers.clients.iter().position(|other| Arc::ptr_eq(other, client)) else {
            return false;
        };
        subscribers.clients.swap_remove(index);
        if subscribers.clients.is_empty() {
            self.audiences.remove(&client.audience);
        }
        self.clients -= 1;
        let address = client.address.ip();
        if let Some(count) = self.clients_of_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.clients_of_address.remove(&address);
            }
        }
        true
    }
}

/// A client that is behind, and when to look at it again.
struct Visit {
    client: Arc<Client>,
    due: Instant,
    delay: Duration,
    written: u64,
    stall: Duration,
    /// When the peer was last seen to have read something, and how much it had read then.
    progress: (Instant, u64),
}

impl Visit {
    fn new(client: Arc<Client>, stall: Duration) -> Visit {
        let now = Instant::now();
        Visit { client, due: now, delay: VISIT_DELAYS.0, written: 0, stall, progress: (now, 0) }
    }

    /// Plans the next visit; says whether it is too late for one.
    fn is_stalled(&mut self) -> bool {
        let now = Instant::now();
        let written = self.client.status().bytes;
        // Whoever takes something gets the next piece soon.
        self.delay =
            if written > self.written { VISIT_DELAYS.0 } else { (self.delay * 2).min(VISIT_DELAYS.1) };
        self.written = written;
        self.due = now + self.delay;
        // Asked now and then only: it takes a look at the kernel's queue.
        if now - self.progress.0 < self.stall / 8 {
            return false;
        }
        let (acknowledged, _) = self.client.acknowledged();
        if acknowledged > self.progress.1 || self.client.is_held() {
            self.progress = (now, acknowledged);
        }
        now - self.progress.0 >= self.stall
    }
}

/// The first entries, as many as one pass takes, at least one if there is one.
fn up_to_a_pass<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>) -> Vec<Arc<Entry>> {
    let mut size = 0;
    let fits = |entry: &&Arc<Entry>| {
        let first = size == 0;
        size += entry.size();
        first || size <= PASS_BYTES
    };
    entries.take_while(fits).cloned().collect()
}

/// The entries as the audience sees them, `None` if it sees none of them.
fn chunk_of(entries: &[Arc<Entry>], audience: &Audience) -> Option<Chunk> {
    let mut frames = Vec::new();
    let mut ends = Vec::new();
    for entry in entries {
        if entry.write_frame(audience, &mut frames) {
            ends.push((Some(entry.id), frames.len()));
        }
    }
    (!ends.is_empty()).then(|| Chunk::new(&frames, ends))
}

/// An event without an id whose block also says when to come back, in milliseconds. Not in a block of its own: a block
/// without data is an empty event to many clients (httpx-sse, sseclient, fetch-event-source).
fn event_with_retry(retry: u64, name: &EventName, data: &str) -> Chunk {
    let mut frame = format!("retry: {retry}\n").into_bytes();
    write_event(&mut frame, None, name, data);
    let end = frame.len();
    Chunk::new(&frame, vec![(None, end)])
}

/// Why a hub does not start.
#[derive(Debug)]
pub(crate) enum StartError {
    Document(Refusal),
    Thread(io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_another_process_in_the_same_milliseconds_is_not_known() {
        let mut states = [7, 8_000].map(|random_part| {
            let start = EventId::first(1_000, random_part);
            let mut state = State::new(Document::new(start, 10_000), start, random_part, 1_000_000);
            // A clock that stands still, was set, was set back and goes on.
            for now in [1_000, 1_000, 1_001, 9_000_000, 9_000_000, 1_002, 9_000_001] {
                let id = state.history.last_id().next(now, state.random_part);
                state.publish(Entry::update(id, &Patch::new()));
            }
            state
        });
        for _ in 0..2 {
            let [state, other] = &states;
            let issued: Vec<EventId> =
                state.history.after(state.start).unwrap().map(|entry| entry.id).collect();
            assert_eq!(issued.len(), 7);
            assert!(issued.is_sorted());
            for id in issued {
                assert_eq!(state.resume(Some(id)), Place::After(id));
                assert!(matches!(other.resume(Some(id)), Place::Nowhere(_)), "{id}");
            }
            states.reverse();
        }
    }

    #[test]
    fn a_forgotten_id_is_a_restart_and_the_place_of_the_next_init_is_known() {
        let start = EventId::first(1_000, 7);
        let mut state = State::new(Document::new(start, 1_000), start, 7, 1_000);
        let before = state.history.last_id();
        assert_eq!(state.resume(Some(before)), Place::After(before));
        state.forget();
        assert_eq!(state.resume(Some(before)), Place::Nowhere(Reason::Restart));
        let (place, _) = state.init(&None);
        assert!(place > before);
        let id = state.next_id();
        state.publish(Entry::update(id, &Patch::new()));
        assert_eq!(state.resume(Some(place)), Place::After(place));
        let after: Vec<EventId> = state.history.after(place).unwrap().map(|entry| entry.id).collect();
        assert_eq!(after, [id]);
        // Who is connected goes on from where it is.
        assert!(state.history.after(before).is_some());
    }
}
