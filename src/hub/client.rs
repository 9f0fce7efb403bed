//! One client: what it has, what is on its way to it, and the writer that tiny_http gave us.
//!
//! A client is *live* while the fan-out thread writes to it, or *catching up* while somebody brings it to the end of
//! history: the thread that took its request when it is new, the catch-up thread when a write did not complete.
//! Both do the same thing, so joining is not a special case of anything. The one rule: whatever changes a client's
//! place holds the client's lock from before it looks at history until after; so whoever comes next, the fan-out thread
//! or the one that catches up, finds a place that is exact, and nothing is left out or sent twice.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::clock::now_ms;
use crate::hub::chunk::Chunk;
use crate::hub::history::Audience;
use crate::hub::state::Seat;
use crate::lock::lock;
use crate::sse::event::{EventId, Topic};
use crate::wire::Wire;

/// How many rounds of catching up somebody else's thread spends on a new client before the catch-up thread takes it.
const ROUNDS: usize = 16;

/// What waits below this is not worth a write of its own: the head goes out with the first events.
const SMALL: usize = 1_024;

/// The state of one connection.
pub(crate) struct Client {
    pub id: u64,
    pub address: SocketAddr,
    pub audience: Audience,
    pub user_agent: Option<String>,
    pub forwarded_for: Option<String>,
    pub connected_at_ms: u64,
    pub until: Until,
    /// Set by whoever catches it up, before a last look at history; cleared under the lock below.
    is_live: AtomicBool,
    stream: Mutex<Stream>,
}

/// When a stream ends by itself, as `?max_events` and `?idle` ask. Events are those with an id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Until {
    /// After so many events, at least one.
    pub events: Option<usize>,
    /// After so long without an event.
    pub idle: Option<Duration>,
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

impl ClientStatus {
    /// `state` in `GET /clients`.
    pub(crate) fn state(&self) -> &'static str {
        if self.is_live { "live" } else { "catching_up" }
    }
}

impl fmt::Display for ClientStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} at {} ({}, ", self.id, self.address, self.state())?;
        match self.last_event_id {
            Some(id) => write!(f, "sent {id})"),
            None => f.write_str("sent nothing)"),
        }
    }
}

/// What a client has been sent, counted.
#[derive(Clone, Copy)]
pub(crate) struct Status {
    pub last_event_id: Option<EventId>,
    pub events: u64,
    pub bytes: u64,
}

struct Stream {
    /// `None` once closed.
    wire: Option<Box<dyn Wire>>,
    seat: Option<Seat>,
    /// An HTTP/1.0 client gets the same bytes without chunks.
    chunked: bool,
    place: Place,
    pending: Pending,
    /// Everything up to here was written. Behind `place` while something is pending.
    written: Option<EventId>,
    /// For a stream that ends by itself.
    quota: Option<Quota>,
    ending: bool,
    status: Status,
    reading: Reading,
}

/// How much the peer has acknowledged, and since when no more.
#[derive(Clone, Copy)]
struct Reading {
    acknowledged: u64,
    since: Instant,
}

/// What is left of a stream's until.
struct Quota {
    events: Option<usize>,
    last_event: Instant,
}

/// Where a client stands in history, counting what is pending for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It has everything up to this id.
    After(EventId),
    /// It needs the document, for this reason.
    Nowhere(InitReason),
}

/// Why a client gets `init`: the `reason` of its `hello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InitReason {
    /// It named no id, or a malformed one.
    First,
    /// It was away for longer than history reaches, or named an id that was never issued.
    Gap,
    /// Its id is older than this process.
    Restart,
    /// It was connected, and too slow for history.
    Lagged,
}

impl fmt::Display for InitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InitReason::First => "first",
            InitReason::Gap => "gap",
            InitReason::Restart => "restart",
            InitReason::Lagged => "lagged",
        })
    }
}

/// What a client is to get next, and where it stands then.
pub(crate) struct Following {
    pub chunks: Vec<Arc<Chunk>>,
    pub place: EventId,
}

/// How an attempt to write ended.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Everything was written.
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
    /// A write failed.
    Failed(io::Error),
    /// The peer took nothing for too long: the text says for how long.
    Silent(String),
    /// The server closed it as it was, for this reason.
    Cut(&'static str),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Clean => f.write_str("ended by the server"),
            End::Failed(error) => error.fmt(f),
            End::Silent(text) => f.write_str(text),
            End::Cut(why) => f.write_str(why),
        }
    }
}

impl Client {
    /// A client that is catching up from `place`. Its stream begins with its HTTP head and, where it resumes, `hello`.
    pub fn new(id: u64, audience: Audience, place: Place, arrival: Arrival, hello: Option<&Chunk>) -> Client {
        let Arrival { wire, chunked, head, address, user_agent, forwarded_for, until, seat } = arrival;
        let last_event_id = match place {
            Place::After(id) => Some(id),
            Place::Nowhere(_) => None,
        };
        let now = Instant::now();
        let is_limited = until != Until::default();
        let mut stream = Stream {
            wire: Some(wire),
            seat: Some(seat),
            chunked,
            place,
            pending: Pending::default(),
            written: None,
            quota: is_limited.then_some(Quota { events: until.events, last_event: now }),
            ending: false,
            status: Status { last_event_id, events: 0, bytes: 0 },
            reading: Reading { acknowledged: 0, since: now },
        };
        let range = 0..head.len();
        stream.pending.append(Arc::new(head), range);
        if let Some(hello) = hello {
            stream.append(hello);
        }
        let (is_live, stream) = (AtomicBool::new(false), Mutex::new(stream));
        Client {
            id,
            address,
            audience,
            user_agent,
            forwarded_for,
            connected_at_ms: now_ms(),
            until,
            is_live,
            stream,
        }
    }

    pub fn status(&self) -> Status {
        self.lock().status
    }

    /// What `GET /clients` tells.
    pub fn describe(&self) -> ClientStatus {
        let Status { last_event_id, events, bytes } = self.status();
        ClientStatus {
            id: self.id,
            address: self.address,
            topic: self.audience.clone(),
            is_live: self.is_live(),
            connected_at_ms: self.connected_at_ms,
            last_event_id,
            events,
            bytes,
            user_agent: self.user_agent.clone(),
            forwarded_for: self.forwarded_for.clone(),
        }
    }

    /// Whether its stream gets nothing more but its end.
    pub fn is_ending(&self) -> bool {
        self.lock().ending
    }

    /// Whether everything up to an id was written to it; `delivered` is where the fan-out thread is done with all that
    /// are live, also with those that do not see what came last.
    pub fn has(&self, id: EventId, delivered: EventId) -> bool {
        let stream = self.lock();
        stream.written >= Some(id) || self.is_live() && delivered >= id
    }

    /// When its stream ends if no event comes before; `None` if it waits for as long as it takes.
    pub fn idle_until(&self) -> Option<Instant> {
        let idle = self.until.idle?;
        self.lock().quota.as_ref().map(|quota| quota.last_event + idle)
    }

    /// Writes what follows the client's place in `chunk`, if it is live; `to` is the fan-out thread's place after it.
    /// `None` if somebody else is catching it up, who may hold its lock for long: that is not waited for.
    pub fn deliver(&self, chunk: &Chunk, to: EventId) -> Option<Progress> {
        if !self.is_live() {
            return None;
        }
        let mut stream = self.lock();
        let Place::After(place) = stream.place else { return None };
        if !self.is_live() {
            return None;
        }
        match chunk.known_at(place) {
            0 => stream.append(chunk),
            known if known < chunk.count() => stream.append(&chunk.without_first(known)),
            _ => {}
        }
        stream.place = Place::After(place.max(to));
        Some(self.push(&mut stream))
    }

    /// Writes until the client is live, its socket takes no more, or it has had enough rounds. `following` answers
    /// with what comes after a place, or `None` at the end of history. A live client has nothing to be caught up with:
    /// its place is the fan-out thread's, whatever its audience has seen.
    pub fn catch_up(&self, following: impl Fn(Place) -> Option<Following>) -> Progress {
        for _ in 0..ROUNDS {
            let mut stream = self.lock();
            if self.is_live() {
                return Progress::Done;
            }
            if stream.pending.len() < SMALL && !stream.ending {
                if let Some(following) = following(stream.place) {
                    stream.follow(&following);
                } else if stream.pending.is_flushed() {
                    // Live first, and then a look at what came meanwhile: the fan-out thread passes over whoever is not live,
                    // without waiting, and must not pass over this one for something that nobody else sees.
                    self.is_live.store(true, Ordering::SeqCst);
                    let Some(following) = following(stream.place) else { return Progress::Done };
                    self.is_live.store(false, Ordering::SeqCst);
                    stream.follow(&following);
                }
            }
            match self.push(&mut stream) {
                Progress::Done => {}
                other => return other,
            }
        }
        Progress::Blocked
    }

    /// Ends the stream cleanly: a last event, if given, and the last chunk. `None` if somebody else is catching it up,
    /// who will see it through.
    pub fn end(&self, last: Option<&Chunk>) -> Option<Progress> {
        let mut stream = self.lock();
        if stream.ending || stream.wire.is_none() {
            return None;
        }
        if let Some(last) = last {
            stream.append(last);
        }
        stream.finish();
        self.is_live.swap(false, Ordering::SeqCst).then(|| self.push(&mut stream))
    }

    /// Closes the connection as it is, and gives its seat back.
    pub fn close(&self) {
        let mut stream = self.lock();
        self.is_live.store(false, Ordering::SeqCst);
        let (wire, seat) = (stream.wire.take(), stream.seat.take());
        stream.pending = Pending::default();
        drop(stream);
        drop((wire, seat));
    }

    /// For how long the peer has acknowledged nothing, though something waits for it: the one rule of progress, whatever
    /// the limit. Zero for a wire that takes nothing on purpose.
    pub fn stuck_for(&self, now: Instant) -> Duration {
        let mut stream = self.lock();
        let stream = &mut *stream;
        let Some(wire) = &stream.wire else { return Duration::ZERO };
        let unacknowledged = wire.unacknowledged().unwrap_or(0);
        let acknowledged = stream.status.bytes.saturating_sub(unacknowledged);
        let is_waiting = unacknowledged > 0 || !stream.pending.is_flushed();
        if acknowledged > stream.reading.acknowledged || !is_waiting || wire.is_held() {
            stream.reading = Reading { acknowledged, since: now };
        }
        now.saturating_duration_since(stream.reading.since)
    }

    fn is_live(&self) -> bool {
        self.is_live.load(Ordering::SeqCst)
    }

    /// Writes what is pending. A client that does not take all of it is not live any more.
    fn push(&self, stream: &mut Stream) -> Progress {
        let progress = stream.push();
        let is_live = matches!(progress, Progress::Done);
        if !is_live && self.is_live.swap(false, Ordering::SeqCst) {
            // From now on it is timed.
            stream.reading.since = Instant::now();
        }
        progress
    }

    fn lock(&self) -> MutexGuard<'_, Stream> {
        // A panic while writing to a client leaves that client to be removed; it must not take the others along.
        lock(&self.stream)
    }
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

impl Stream {
    /// Appends events, or those that the stream's until leave of them, and then it ends.
    fn append(&mut self, chunk: &Chunk) {
        match &mut self.quota {
            None => self.append_whole(chunk),
            Some(_) if self.ending => {}
            Some(quota) => match quota.last_of(chunk) {
                None => self.append_whole(chunk),
                Some(last) => {
                    self.append_whole(&last);
                    self.finish();
                }
            },
        }
    }

    fn append_whole(&mut self, chunk: &Chunk) {
        self.pending.append(Arc::clone(&chunk.bytes), chunk.range(self.chunked));
        self.status.events += chunk.ends.len() as u64;
        if let Some(id) = chunk.ends.iter().rev().find_map(|(id, _)| *id) {
            self.status.last_event_id = Some(id);
        }
    }

    /// Appends what comes after its place.
    fn follow(&mut self, following: &Following) {
        self.place = Place::After(following.place);
        following.chunks.iter().for_each(|chunk| self.append(chunk));
    }

    /// Nothing follows but the last chunk.
    fn finish(&mut self) {
        self.ending = true;
        if self.chunked {
            self.pending.append(Arc::new(b"0\r\n\r\n".to_vec()), 0..5);
        }
    }

    /// Writes what is pending, as far as the socket takes it without waiting.
    fn push(&mut self) -> Progress {
        let Some(wire) = &mut self.wire else { return Progress::Gone(End::Clean) };
        match self.pending.write_to(wire, &mut self.status.bytes) {
            Ok(()) if self.ending => Progress::Gone(End::Clean),
            Ok(()) => {
                if let Place::After(place) = self.place {
                    self.written = Some(place);
                }
                Progress::Done
            }
            // A send timeout that a socket inherited says TimedOut on some systems.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Progress::Blocked
            }
            Err(error) => Progress::Gone(End::Failed(error)),
        }
    }
}

impl Quota {
    /// Counts the events; what a stream still gets of them if it ends there.
    fn last_of(&mut self, chunk: &Chunk) -> Option<Chunk> {
        let with_id = || (0..chunk.count()).filter(|index| chunk.ends[*index].0.is_some());
        let count = with_id().count();
        if count > 0 {
            self.last_event = Instant::now();
        }
        let left = self.events.as_mut()?;
        if let Some(last) = with_id().nth(*left - 1) {
            return Some(chunk.first(last + 1));
        }
        *left -= count;
        None
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
            match wire.write(&bytes[rest.clone()]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    rest.start += count;
                    *written += count as u64;
                    self.unflushed = true;
                    if rest.start == rest.end {
                        self.pieces.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // A flush that would block is to be repeated; the bytes are taken (tiny_http's BufWriter keeps them).
        while self.unflushed {
            match wire.flush() {
                Ok(()) => self.unflushed = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes what is written as tiny_http's buffer does, and can pass it on at the second attempt.
    #[derive(Default)]
    struct Full {
        taken: Vec<u8>,
        is_asked_again: bool,
    }

    impl Write for Full {
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
        let (mut pending, mut wire, mut written) = (Pending::default(), Full::default(), 0);
        pending.append(Arc::new(b"frame".to_vec()), 0..5);
        let blocked = pending.write_to(&mut wire, &mut written);
        assert_eq!(blocked.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
        assert!(!pending.is_flushed(), "it is not on its way yet");
        pending.write_to(&mut wire, &mut written).unwrap();
        assert!(pending.is_flushed());
        assert_eq!((&*wire.taken, written), (&b"frame"[..], 5));
    }
}
