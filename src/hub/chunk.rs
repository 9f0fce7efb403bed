//! Chunks: frames of events, encoded once for all who get them, in HTTP's chunk.

use std::ops::Range;
use std::sync::Arc;

use crate::hub::history::{Audience, Entry};
use crate::sse::event::{EventId, EventName, write_event};

/// What is taken from history at once, at most: more would not fit a socket's send buffer in one write.
pub(super) const PASS_BYTES: usize = 64 << 10;

/// Frames, encoded once for all who get them: HTTP's chunk around the events.
pub(crate) struct Chunk {
    pub(super) bytes: Arc<Vec<u8>>,
    /// The events in `bytes`, without the chunk's size line and its end.
    events: Range<usize>,
    /// Each event: its id, if it has one, and where it ends in `events`.
    pub(super) ends: Vec<(Option<EventId>, usize)>,
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

    /// One event.
    pub fn of_event(id: Option<EventId>, name: &EventName, data: &str) -> Chunk {
        let mut frame = Vec::with_capacity(data.len() + 64);
        write_event(&mut frame, id, name, data);
        let end = frame.len();
        Chunk::new(&frame, vec![(id, end)])
    }

    /// One event without an id whose block also says when to come back, in milliseconds. Not in a block of its own: a
    /// block without data is an empty event to many clients (httpx-sse, sseclient, fetch-event-source).
    pub fn with_retry(retry: u64, name: &EventName, data: &str) -> Chunk {
        let mut frame = format!("retry: {retry}\n").into_bytes();
        write_event(&mut frame, None, name, data);
        let end = frame.len();
        Chunk::new(&frame, vec![(None, end)])
    }

    /// How many events there are.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// The bytes as they go to a client.
    pub fn bytes(&self, chunked: bool) -> &[u8] {
        &self.bytes[self.range(chunked)]
    }

    pub(super) fn range(&self, chunked: bool) -> Range<usize> {
        if chunked { 0..self.bytes.len() } else { self.events.clone() }
    }

    /// How many of its events a client at this place has already. Events without an id are new to everybody.
    pub(super) fn known_at(&self, place: EventId) -> usize {
        self.ends.partition_point(|(id, _)| id.is_some_and(|id| id <= place))
    }

    pub(super) fn first(&self, count: usize) -> Chunk {
        Chunk::new(&self.bytes(false)[..self.ends[count - 1].1], self.ends[..count].to_vec())
    }

    pub(super) fn without_first(&self, count: usize) -> Chunk {
        let start = self.ends[count - 1].1;
        let ends = self.ends[count..].iter().map(|(id, end)| (*id, end - start)).collect();
        Chunk::new(&self.bytes(false)[start..], ends)
    }
}

/// The first entries, as many as one pass takes, at least one if there is one.
pub(super) fn up_to_a_pass<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>) -> Vec<Arc<Entry>> {
    let mut size = 0;
    let fits = |entry: &&Arc<Entry>| {
        let first = size == 0;
        size += entry.size();
        first || size <= PASS_BYTES
    };
    entries.take_while(fits).cloned().collect()
}

/// What `entries` are to an audience; `None` if it sees none of them.
pub(super) fn chunk_of(entries: &[Arc<Entry>], audience: &Audience) -> Option<Chunk> {
    let mut frames = Vec::new();
    let mut ends = Vec::new();
    for entry in entries {
        if entry.write_frame(audience, &mut frames) {
            ends.push((Some(entry.id), frames.len()));
        }
    }
    (!ends.is_empty()).then(|| Chunk::new(&frames, ends))
}
