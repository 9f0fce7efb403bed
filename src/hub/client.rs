//! One client: what it has, what is on its way to it, and the writer that tiny_http gave us.
//!
//! A client is *live* while the fan-out thread writes to it, or *catching up* while somebody brings it to the end of
//! history: the thread that took its request when it is new, the catch-up thread when a write did not complete.
//! Both do the same thing, so joining is no special case. The one rule: whoever changes a client's place holds the
//! client's lock from before the look at history until after. So whoever comes next finds a place that is exact, and nothing
//! is left out or sent twice.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::clock::now_ms;
use crate::hub::chunk::Chunk;
use crate::hub::history::Audience;
use crate::lock::lock;
use crate::seats::Seat;
use crate::sse::event::{EventId, Topic};
use crate::wire::Wire;

/// How many rounds of catching up somebody else's thread spends on a new client before the catch-up thread takes it.
const ROUNDS: usize = 16;

/// What waits below this is not worth a write of its own: the head goes out with the first events.
const SMALL: usize = 1_024;

/// The state of one connection.
pub(crate) struct Client {
    /// Set by whoever catches it up, before a last look at history. Cleared under the lock below.
    is_live: AtomicBool,
    stream: Mutex<Stream>,
    /// How it came. Apart from the rest, because a delivery does not touch it.
    pub about: Box<ClientStatus>,
}

struct Stream {
    /// `None` once closed.
    wire: Option<Box<dyn Wire>>,
    /// An HTTP/1.0 client gets the same bytes without chunks.
    chunked: bool,
    /// Nothing follows what is pending.
    is_ending: bool,
    place: Place,
    pending: Pending,
    /// Everything up to here was written. Behind `place` while something is pending.
    written: Option<EventId>,
    /// What `GET /clients` counts.
    last_event_id: Option<EventId>,
    events: u64,
    bytes: u64,
    /// After so many more events with an id the stream ends.
    quota: u64,
    /// After so long without one it ends, too; and when the last one came.
    idle: Option<(Duration, Instant)>,
    /// How many bytes the peer has acknowledged, and since when no more.
    acknowledged: (u64, Instant),
    seat: Option<Seat>,
}

/// Where a client stands in history, counting what is pending for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It has everything up to this id.
    After(EventId),
    /// It needs the document, for this reason: its `hello` says it.
    Nowhere(&'static str),
}

/// How an attempt to write ended.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Everything was written, or somebody else sees to it.
    Done,
    /// The socket takes no more for now. The client is not live any more.
    Blocked,
    /// The connection is over.
    Gone(End),
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The server ended the stream, and everything was written.
    Clean,
    /// A write failed, the peer took nothing for too long, or the server cut it.
    Fault(String),
}

/// What a new client brings.
pub(crate) struct Arrival {
    pub wire: Box<dyn Wire>,
    pub chunked: bool,
    /// The HTTP head, not yet written.
    pub head: Vec<u8>,
    pub address: SocketAddr,
    pub user_agent: Option<String>,
    pub forwarded_for: Option<String>,
    pub until: Until,
    pub seat: Seat,
}

/// When a stream ends by itself, as `?max_events` and `?idle` ask. Events are those with an id.
#[derive(Clone, Copy)]
pub(crate) struct Until {
    /// After so many events, at least one.
    pub events: Option<usize>,
    /// After so long without an event.
    pub idle: Option<Duration>,
}

impl Client {
    /// A client that is catching up from `place`. Its stream begins with its HTTP head and, where it resumes, `hello`.
    pub fn new(id: u64, topic: Audience, place: Place, arrival: Arrival, hello: Option<&Chunk>) -> Client {
        let Arrival { wire, chunked, head, address, user_agent, forwarded_for, until, seat } = arrival;
        let now = Instant::now();
        let mut stream = Stream {
            wire: Some(wire),
            chunked,
            is_ending: false,
            place,
            pending: Pending::default(),
            written: None,
            last_event_id: if let Place::After(id) = place { Some(id) } else { None },
            events: 0,
            bytes: 0,
            quota: until.events.map_or(u64::MAX, |count| count as u64),
            idle: until.idle.map(|idle| (idle, now)),
            acknowledged: (0, now),
            seat: Some(seat),
        };
        let range = 0..head.len();
        stream.pending.append(Arc::new(head), range);
        if let Some(hello) = hello {
            stream.append(hello);
        }
        let about = ClientStatus {
            id,
            address,
            topic,
            is_live: false,
            connected_at_ms: now_ms(),
            last_event_id: None,
            events: 0,
            bytes: 0,
            user_agent,
            forwarded_for,
        };
        let (is_live, stream, about) = (AtomicBool::new(false), Mutex::new(stream), Box::new(about));
        Client { is_live, stream, about }
    }

    /// What `GET /clients` tells.
    pub fn describe(&self) -> ClientStatus {
        let Stream { last_event_id, events, bytes, .. } = *self.lock();
        ClientStatus { is_live: self.is_live(), last_event_id, events, bytes, ..(*self.about).clone() }
    }

    /// Events and bytes that it was sent.
    pub fn sent(&self) -> (u64, u64) {
        let stream = self.lock();
        (stream.events, stream.bytes)
    }

    /// Whether its stream gets nothing more but its end.
    pub fn is_ending(&self) -> bool {
        self.lock().is_ending
    }

    /// Whether everything up to an id was written to it. A live client has what its fan-out thread has read.
    pub fn has(&self, id: EventId, read: EventId) -> bool {
        let stream = self.lock();
        stream.written >= Some(id) || self.is_live() && read >= id
    }

    /// When its stream ends if no event comes before; `None` if it waits for as long as it takes.
    pub fn idle_until(&self) -> Option<Instant> {
        self.lock().idle.map(|(idle, since)| since + idle)
    }

    /// Writes what follows the client's place in `chunk`, if it is live; `to` is the fan-out thread's place after it.
    /// `None` if somebody else is catching it up, who may hold its lock for long: that is not waited for.
    pub fn deliver(&self, chunk: &Chunk, to: EventId) -> Option<Progress> {
        if !self.is_live() {
            return None;
        }
        let mut stream = self.lock();
        let (true, Place::After(place)) = (self.is_live(), stream.place) else { return None };
        match chunk.known_at(place) {
            0 => stream.append(chunk),
            known if known < chunk.ids.len() => stream.append(&chunk.part(known..chunk.ids.len())),
            _ => {}
        }
        stream.place = Place::After(place.max(to));
        Some(self.push(&mut stream))
    }

    /// Writes until the client is live, its socket takes no more, or it has had enough rounds. `following` answers
    /// with what comes after a place and the place then, or `None` at the end of history. A live client has nothing to be
    /// caught up with: its place is the fan-out thread's, whatever its audience has seen.
    pub fn catch_up(&self, following: impl Fn(Place) -> Option<(Vec<Arc<Chunk>>, EventId)>) -> Progress {
        for _ in 0..ROUNDS {
            let mut stream = self.lock();
            if self.is_live() {
                return Progress::Done;
            }
            if stream.pending.len() < SMALL && !stream.is_ending {
                let mut next = following(stream.place);
                if next.is_none() && stream.pending.is_flushed() {
                    // Live first, and then a look at what came meanwhile: the fan-out thread passes over whoever is not
                    // live, and must not pass over this one for something that nobody else sees.
                    self.is_live.store(true, Ordering::SeqCst);
                    next = following(stream.place);
                    if next.is_none() {
                        return Progress::Done;
                    }
                    self.is_live.store(false, Ordering::SeqCst);
                }
                if let Some((chunks, place)) = next {
                    stream.place = Place::After(place);
                    for chunk in &chunks {
                        stream.append(chunk);
                    }
                }
            }
            match self.push(&mut stream) {
                Progress::Done => {}
                other => return other,
            }
        }
        Progress::Blocked
    }

    /// Ends the stream cleanly: a last event, if given, and the last chunk. Whoever is catching it up sees it through.
    pub fn end(&self, last: Option<&Chunk>) -> Progress {
        let mut stream = self.lock();
        if stream.is_ending || stream.wire.is_none() {
            return Progress::Done;
        }
        if let Some(last) = last {
            stream.append(last);
        }
        stream.finish();
        if self.is_live.swap(false, Ordering::SeqCst) { self.push(&mut stream) } else { Progress::Done }
    }

    /// Closes the connection as it is, and gives its seat back.
    pub fn close(&self) {
        let mut stream = self.lock();
        self.is_live.store(false, Ordering::SeqCst);
        let closed = (stream.wire.take(), stream.seat.take());
        stream.pending = Pending::default();
        drop(stream);
        drop(closed);
    }

    /// Sets it back to a place that history knows, or to none, after what is published has become another. A live client
    /// has what its fan-out thread had read. Says whether it was live, and whether it begins anew.
    #[cfg(feature = "redis")]
    pub fn set_back(&self, read: EventId, is_known: impl Fn(EventId) -> bool) -> (bool, bool) {
        let mut stream = self.lock();
        let was_live = self.is_live.swap(false, Ordering::SeqCst);
        let Place::After(place) = stream.place else { return (was_live, false) };
        let has = if was_live { place.max(read) } else { place };
        let known = [has, place].into_iter().find(|place| is_known(*place));
        stream.place = known.map_or(Place::Nowhere("restart"), Place::After);
        if known.is_none() {
            stream.written = None;
        }
        stream.acknowledged.1 = Instant::now();
        (was_live, known.is_none())
    }

    /// For how long the peer has acknowledged nothing, though something waits for it: the one rule of progress, whatever
    /// the limit. Zero for a wire that takes nothing on purpose.
    pub fn stuck_for(&self, now: Instant) -> Duration {
        let mut stream = self.lock();
        let Some(wire) = &stream.wire else { return Duration::ZERO };
        let unacknowledged = wire.unacknowledged().unwrap_or(0);
        let acknowledged = stream.bytes.saturating_sub(unacknowledged);
        let is_waiting = unacknowledged > 0 || !stream.pending.is_flushed();
        if acknowledged > stream.acknowledged.0 || !is_waiting || wire.is_held() {
            stream.acknowledged = (acknowledged, now);
        }
        now.saturating_duration_since(stream.acknowledged.1)
    }

    pub fn is_live(&self) -> bool {
        self.is_live.load(Ordering::SeqCst)
    }

    /// Writes what is pending. A client that does not take all of it is not live any more.
    fn push(&self, stream: &mut Stream) -> Progress {
        let progress = stream.push();
        let is_live = matches!(progress, Progress::Done);
        if !is_live && self.is_live.swap(false, Ordering::SeqCst) {
            // From now on it is timed.
            stream.acknowledged.1 = Instant::now();
        }
        progress
    }

    fn lock(&self) -> MutexGuard<'_, Stream> {
        // A panic while writing to a client leaves that client to be removed; it must not take the others along.
        lock(&self.stream)
    }
}

impl Stream {
    /// Appends events. The stream ends with the last of those that it was asked for.
    fn append(&mut self, chunk: &Chunk) {
        let count = chunk.ids.len() as u64;
        if count < self.quota {
            self.quota -= count;
            self.append_whole(chunk);
        } else {
            self.append_whole(&chunk.part(0..self.quota as usize));
            self.finish();
        }
    }

    fn append_whole(&mut self, chunk: &Chunk) {
        let mut rest = chunk.range(self.chunked);
        if self.pending.pieces.is_empty()
            && let Some(wire) = &mut self.wire
            && let Ok(count) = wire.write(&chunk.bytes[rest.clone()])
        {
            // Most take it at once, and nothing needs to be kept for them. What went wrong, `push` will see.
            rest.start += count;
            self.bytes += count as u64;
            self.pending.unflushed = true;
        }
        if rest.start < rest.end {
            self.pending.append(Arc::clone(&chunk.bytes), rest);
        }
        self.events += chunk.count() as u64;
        if let Some((id, _)) = chunk.ids.last() {
            self.last_event_id = Some(*id);
            self.idle = self.idle.map(|(idle, _)| (idle, Instant::now()));
        }
    }

    /// Nothing follows but the last chunk.
    fn finish(&mut self) {
        self.is_ending = true;
        if self.chunked {
            self.pending.append(Arc::new(b"0\r\n\r\n".to_vec()), 0..5);
        }
    }

    /// Writes what is pending, as far as the socket takes it without waiting.
    fn push(&mut self) -> Progress {
        use ErrorKind::{Interrupted, TimedOut, WouldBlock};
        let Some(wire) = &mut self.wire else { return Progress::Gone(End::Clean) };
        // A send timeout that a socket inherited says TimedOut on some systems.
        match self.pending.write_to(wire, &mut self.bytes) {
            Ok(()) if self.is_ending => Progress::Gone(End::Clean),
            Ok(()) => {
                if let Place::After(place) = self.place {
                    self.written = Some(place);
                }
                Progress::Done
            }
            Err(error) if matches!(error.kind(), WouldBlock | TimedOut | Interrupted) => Progress::Blocked,
            Err(error) => Progress::Gone(End::Fault(error.to_string())),
        }
    }
}

/// Bytes that are to be written, most of them shared with other clients.
#[derive(Default)]
struct Pending {
    pieces: VecDeque<(Arc<Vec<u8>>, Range<usize>)>,
    /// tiny_http's own buffer may hold the end of what was written (1 KiB, client.rs:78).
    unflushed: bool,
}

impl Pending {
    fn append(&mut self, bytes: Arc<Vec<u8>>, range: Range<usize>) {
        // Two small pieces become one, so that a head and the first events are one write and one packet.
        if let Some((last, rest)) = self.pieces.back_mut()
            && rest.end == last.len()
            && range.len() < 16 * SMALL
            && let Some(last) = Arc::get_mut(last)
        {
            last.extend_from_slice(&bytes[range]);
            rest.end = last.len();
        } else {
            self.pieces.push_back((bytes, range));
        }
    }

    fn len(&self) -> usize {
        self.pieces.iter().map(|(_, rest)| rest.len()).sum()
    }

    fn is_flushed(&self) -> bool {
        self.pieces.is_empty() && !self.unflushed
    }

    fn write_to(&mut self, wire: &mut impl Write, written: &mut u64) -> io::Result<()> {
        while let Some((bytes, rest)) = self.pieces.front_mut() {
            let count = wire.write(&bytes[rest.clone()])?;
            if count == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            rest.start += count;
            *written += count as u64;
            self.unflushed = true;
            if rest.start == rest.end {
                self.pieces.pop_front();
            }
        }
        if self.unflushed {
            // A flush that would block is to be repeated; the bytes are taken (tiny_http's BufWriter keeps them).
            wire.flush()?;
            self.unflushed = false;
        }
        Ok(())
    }
}

/// A client as the server knows it: what `GET /clients` tells, in the same words.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientStatus {
    /// Its number, as its `hello` said it. Each connection has one of its own, also across restarts of a [`Server`].
    ///
    /// [`Server`]: crate::Server
    pub id: u64,
    /// The other end of its connection.
    pub address: SocketAddr,
    /// What it listens to; `None` is the whole document, `/events`.
    pub topic: Option<Topic>,
    /// It has what was published. If not, it is being caught up: it is new, or its connection takes no more.
    pub is_live: bool,
    /// When it came, in Unix milliseconds.
    pub connected_at_ms: u64,
    /// The last id that it was sent, or that it said it had. None before `init`.
    pub last_event_id: Option<EventId>,
    /// Events it was sent; `hello` and `heartbeat` are events, too.
    pub events: u64,
    /// Bytes that were written to it.
    pub bytes: u64,
    /// What it calls itself, 256 letters of it at most.
    pub user_agent: Option<String>,
    /// Whom a proxy on this machine says it asks for: its `X-Forwarded-For`, 256 letters of it at most. It is a claim, and is
    /// shown only.
    pub forwarded_for: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::seats::Seats;
    use crate::sse::event::EventName;

    /// Takes what is written as tiny_http's buffer does, and can pass it on at the second attempt.
    #[derive(Default)]
    struct Reluctant {
        taken: Vec<u8>,
        is_asked_again: bool,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.taken.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            if std::mem::replace(&mut self.is_asked_again, true) {
                Ok(())
            } else {
                Err(ErrorKind::WouldBlock.into())
            }
        }
    }

    #[test]
    fn what_cannot_be_flushed_is_flushed_again_and_not_written_again() {
        let (mut pending, mut wire, mut written) = (Pending::default(), Reluctant::default(), 0);
        pending.append(Arc::new(b"frame".to_vec()), 0..5);
        let blocked = pending.write_to(&mut wire, &mut written);
        assert_eq!(blocked.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
        assert!(!pending.is_flushed(), "it is not on its way yet");
        pending.write_to(&mut wire, &mut written).unwrap();
        assert!(pending.is_flushed());
        assert_eq!((&*wire.taken, written), (&b"frame"[..], 5));
    }

    impl Wire for Reluctant {
        fn unacknowledged(&self) -> Option<u64> {
            None
        }
    }

    /// A client that has connected, and got nothing yet.
    fn new_client() -> Arc<Client> {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let arrival = Arrival {
            wire: Box::new(Reluctant::default()),
            chunked: true,
            head: b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
            address,
            user_agent: None,
            forwarded_for: None,
            until: Until { events: None, idle: None },
            seat: Seats::new(1, 0).take(address.ip()).expect("the only one"),
        };
        Arc::new(Client::new(1, None, Place::Nowhere("first"), arrival, None))
    }

    #[test]
    fn fan_out_does_not_wait_for_a_client_that_is_being_caught_up() {
        let (client, id) = (new_client(), EventId::first(1, 0));
        client.catch_up(|_| {
            // Here its lock is held, for as long as a large document takes.
            let (fan_out, (done, is_done)) = (Arc::clone(&client), bounded(1));
            thread::spawn(move || {
                let chunk = Chunk::of_event(Some(id), &EventName::UPDATE, "1");
                done.send(fan_out.deliver(&chunk, id).is_none())
            });
            assert_eq!(is_done.recv_timeout(Duration::from_secs(30)), Ok(true), "it waits");
            None
        });
    }
}
