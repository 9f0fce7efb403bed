//! Chunks: frames of events, encoded once for all who get them, in HTTP's chunk.

use std::ops::Range;
use std::sync::Arc;

use crate::sse::event::{EventId, EventName, write_event};

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

    /// All events of several chunks, in their order.
    pub fn joined(chunks: &[&Arc<Chunk>]) -> Chunk {
        let mut frames = Vec::with_capacity(chunks.iter().map(|chunk| chunk.events.len()).sum());
        let mut ends = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let start = frames.len();
            frames.extend_from_slice(chunk.bytes(false));
            ends.extend(chunk.ends.iter().map(|(id, end)| (*id, start + end)));
        }
        Chunk::new(&frames, ends)
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
