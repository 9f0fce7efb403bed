//! One client: what it has, what is on its way to it, and the writer that tiny_http gave us.
//!
//! A client is *live* while the hub thread writes to it, or *catching up* while somebody brings it to the end of
//! history: the thread that took its request when it is new, the catch-up thread when a write did not complete.
//! Both do the same thing, so joining is not a special case of anything. The one rule: whatever changes a client's
//! place holds the client's lock from before it looks at history until after; so whoever comes next, the hub thread
//! or the one that catches up, finds a place that is exact, and nothing is left out or sent twice.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::now_ms;
use crate::event::EventId;
use crate::history::Audience;

/// Where a stream's bytes go. Dropping it closes the connection.
pub(crate) trait Wire: Write + Send {
    /// Bytes that the kernel took and the peer has not acknowledged; `None` where nobody knows.
    fn unacknowledged(&self) -> Option<u64>;
}

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
    pub connected_at_ms: u64,
    stream: Mutex<Stream>,
}

/// What a client has been sent, counted.
#[derive(Clone, Copy)]
pub(crate) struct Status {
    pub live: bool,
    pub last_event_id: Option<EventId>,
    pub events: u64,
    pub bytes: u64,
}

struct Stream {
    /// `None` once closed.
    wire: Option<Box<dyn Wire>>,
    /// An HTTP/1.0 client gets the same bytes without chunks.
    chunked: bool,
    place: Place,
    pending: Pending,
    ending: bool,
    status: Status,
}

/// Where a client stands in history, counting what is pending for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It has everything up to this id.
    After(EventId),
    /// It needs the document, for this reason.
    Nowhere(Reason),
}

/// Why a client gets `init`: the `reason` of its `hello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It named no id, or a malformed one.
    First,
    /// It was away for longer than history reaches, or named an id that was never issued.
    Gap,
    /// Its id is older than this process.
    Restart,
    /// It was connected, and too slow for history.
    Lagged,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::First => "first",
            Reason::Gap => "gap",
            Reason::Restart => "restart",
            Reason::Lagged => "lagged",
        })
    }
}

/// Frames, encoded once for all who get them: HTTP's chunk around the events.
pub(crate) struct Chunk {
    bytes: Arc<Vec<u8>>,
    /// The events in `bytes`, without the chunk's size line and its end.
    events: Range<usize>,
    /// Each event: its id, if it has one, and where it ends in `events`.
    ends: Vec<(Option<EventId>, usize)>,
}

impl Chunk {
    /// A chunk of frames; `ends` says for each where it ends.
    pub fn new(frames: &[u8], ends: Vec<(Option<EventId>, usize)>) -> Chunk {
        let mut bytes = format!("{:x}\r\n", frames.len()).into_bytes();
        let start = bytes.len();
        bytes.extend_from_slice(frames);
        bytes.extend_from_slice(b"\r\n");
        Chunk { bytes: Arc::new(bytes), events: start..start + frames.len(), ends }
    }

    /// How many events there are.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// The bytes as they go to a client.
    pub fn bytes(&self, chunked: bool) -> &[u8] {
        &self.bytes[self.range(chunked)]
    }

    fn range(&self, chunked: bool) -> Range<usize> {
        if chunked { 0..self.bytes.len() } else { self.events.clone() }
    }

    /// How many of its events a client at this place has already. Events without an id are new to everybody.
    fn known_at(&self, place: EventId) -> usize {
        self.ends.partition_point(|(id, _)| id.is_some_and(|id| id <= place))
    }

    fn without_first(&self, count: usize) -> Chunk {
        let start = self.ends[count - 1].1;
        let ends = self.ends[count..].iter().map(|(id, end)| (*id, end - start)).collect();
        Chunk::new(&self.bytes(false)[start..], ends)
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
    Gone(io::Error),
}

impl Client {
    /// A client that is catching up from `place`. Its stream begins with its HTTP head and `first`.
    pub fn new(id: u64, audience: Audience, place: Place, arrival: Arrival, first: &Chunk) -> Client {
        let Arrival { wire, chunked, head, address, user_agent } = arrival;
        let last_event_id = match place {
            Place::After(id) => Some(id),
            Place::Nowhere(_) => None,
        };
        let status = Status { live: false, last_event_id, events: 0, bytes: 0 };
        let pending = Pending::default();
        let mut stream = Stream { wire: Some(wire), chunked, place, pending, ending: false, status };
        let range = 0..head.len();
        stream.pending.append(Arc::new(head), range);
        stream.append(first);
        let stream = Mutex::new(stream);
        Client { id, address, audience, user_agent, connected_at_ms: now_ms(), stream }
    }

    /// What `GET /clients` tells.
    pub fn status(&self) -> Status {
        self.lock().status
    }

    /// Writes what follows the client's place in `chunk`, if it is live; `to` is the hub's place after it.
    /// `None` if somebody else is catching it up.
    pub fn deliver(&self, chunk: &Chunk, to: Option<EventId>) -> Option<Progress> {
        let mut stream = self.lock();
        let Place::After(place) = stream.place else { return None };
        if !stream.status.live {
            return None;
        }
        match chunk.known_at(place) {
            0 => stream.append(chunk),
            known if known < chunk.count() => stream.append(&chunk.without_first(known)),
            _ => {}
        }
        if let Some(to) = to {
            stream.place = Place::After(place.max(to));
        }
        Some(stream.push())
    }

    /// Writes until the client is live, its socket takes no more, or it has had enough rounds. `following` answers
    /// with what comes after a place, or `None` at the end of history.
    pub fn catch_up(&self, following: impl Fn(&Client, Place) -> Option<Following>) -> Progress {
        let mut stream = self.lock();
        for _ in 0..ROUNDS {
            if stream.pending.len() < SMALL && !stream.ending {
                if let Some(following) = following(self, stream.place) {
                    stream.place = Place::After(following.place);
                    following.chunks.iter().for_each(|chunk| stream.append(chunk));
                } else if stream.pending.is_flushed() {
                    stream.status.live = true;
                    return Progress::Done;
                }
            }
            match stream.push() {
                Progress::Done if stream.ending => return Progress::Gone(ended()),
                Progress::Done => {}
                other => return other,
            }
        }
        Progress::Blocked
    }

    /// Ends the stream cleanly: a last `retry:`, if given, and the last chunk. `None` if somebody else is catching
    /// it up, who will see it through.
    pub fn end(&self, retry: Option<Chunk>) -> Option<Progress> {
        let mut stream = self.lock();
        let was_live = std::mem::replace(&mut stream.status.live, false);
        if stream.ending || stream.wire.is_none() {
            return None;
        }
        stream.ending = true;
        if let Some(retry) = retry {
            stream.append(&retry);
        }
        if stream.chunked {
            stream.pending.append(Arc::new(b"0\r\n\r\n".to_vec()), 0..5);
        }
        was_live.then(|| match stream.push() {
            Progress::Done => Progress::Gone(ended()),
            other => other,
        })
    }

    /// Closes the connection as it is.
    pub fn close(&self) {
        let mut stream = self.lock();
        stream.status.live = false;
        let wire = stream.wire.take();
        stream.pending = Pending::default();
        drop(stream);
        drop(wire);
    }

    /// How much has reached the peer, which rises as long as it reads at all, and whether more is on its way.
    pub fn acknowledged(&self) -> (u64, bool) {
        let stream = self.lock();
        let waiting = stream.wire.as_ref().and_then(|wire| wire.unacknowledged()).unwrap_or(0);
        (stream.status.bytes.saturating_sub(waiting), waiting > 0)
    }

    fn lock(&self) -> MutexGuard<'_, Stream> {
        // A panic while writing to a client leaves that client to be removed; it must not take the others along.
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
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
}

fn ended() -> io::Error {
    io::Error::other("ended by the server")
}

impl Stream {
    fn append(&mut self, chunk: &Chunk) {
        self.pending.append(Arc::clone(&chunk.bytes), chunk.range(self.chunked));
        self.status.events += chunk.ends.len() as u64;
        if let Some(id) = chunk.ends.iter().rev().find_map(|(id, _)| *id) {
            self.status.last_event_id = Some(id);
        }
    }

    /// Writes what is pending, as far as the socket takes it without waiting.
    fn push(&mut self) -> Progress {
        let Some(wire) = &mut self.wire else { return Progress::Gone(ended()) };
        match self.pending.write_to(wire, &mut self.status.bytes) {
            Ok(()) => Progress::Done,
            // A send timeout that a socket inherited says TimedOut on some systems.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                self.status.live = false;
                Progress::Blocked
            }
            Err(error) => {
                self.status.live = false;
                Progress::Gone(error)
            }
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
