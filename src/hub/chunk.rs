//! Chunks: frames of events, encoded once for all who get them, in HTTP's chunk.

use std::ops::Range;
use std::sync::Arc;

use crate::sse::event::{EventId, EventName, write_event};

/// One event without an id, or events that all have one.
pub(crate) struct Chunk {
    /// HTTP's chunk: a line with its size, the events, a line end.
    pub(super) bytes: Arc<Vec<u8>>,
    /// The events in `bytes`.
    events: Range<usize>,
    /// The id of each event, and where it ends in `events`.
    pub(super) ids: Vec<(EventId, usize)>,
}

impl Chunk {
    fn new(frames: &[u8], ids: Vec<(EventId, usize)>) -> Chunk {
        let mut bytes = format!("{:x}\r\n", frames.len()).into_bytes();
        let start = bytes.len();
        bytes.extend_from_slice(frames);
        bytes.extend_from_slice(b"\r\n");
        Chunk { bytes: Arc::new(bytes), events: start..start + frames.len(), ids }
    }

    /// One event.
    pub fn of_event(id: Option<EventId>, name: &EventName, data: &str) -> Chunk {
        let mut frame = Vec::with_capacity(data.len() + 64);
        write_event(&mut frame, id, name, data);
        Chunk::new(&frame, id.map(|id| (id, frame.len())).into_iter().collect())
    }

    /// One event that was encoded before.
    pub fn of_frame(id: EventId, frame: &str) -> Chunk {
        Chunk::new(frame.as_bytes(), vec![(id, frame.len())])
    }

    /// One event without an id whose block also says when to come back, in milliseconds. Not in a block of its own: a
    /// block without data is an empty event to many clients (httpx-sse, sseclient, fetch-event-source).
    pub fn with_retry(retry: u64, name: &EventName, data: &str) -> Chunk {
        let mut frame = format!("retry: {retry}\n").into_bytes();
        write_event(&mut frame, None, name, data);
        Chunk::new(&frame, Vec::new())
    }

    /// All events of several chunks, in their order.
    pub fn joined(chunks: &[&Arc<Chunk>]) -> Chunk {
        let mut frames = Vec::with_capacity(chunks.iter().map(|chunk| chunk.events.len()).sum());
        let mut ids = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let start = frames.len();
            frames.extend_from_slice(chunk.bytes(false));
            ids.extend(chunk.ids.iter().map(|(id, end)| (*id, start + end)));
        }
        Chunk::new(&frames, ids)
    }

    /// Some of the events.
    pub fn part(&self, events: Range<usize>) -> Chunk {
        let place = |index: usize| if index == 0 { 0 } else { self.ids[index - 1].1 };
        let (start, end) = (place(events.start), place(events.end));
        let ids = self.ids[events].iter().map(|(id, end)| (*id, end - start)).collect();
        Chunk::new(&self.bytes(false)[start..end], ids)
    }

    /// How many events there are.
    pub fn count(&self) -> usize {
        self.ids.len().max(1)
    }

    /// How many of its events a client at this place has already. An event without an id is new to everybody.
    pub fn known_at(&self, place: EventId) -> usize {
        self.ids.partition_point(|(id, _)| *id <= place)
    }

    /// The bytes as they go to a client.
    pub fn bytes(&self, chunked: bool) -> &[u8] {
        &self.bytes[self.range(chunked)]
    }

    /// Where they are in `bytes`.
    pub fn range(&self, chunked: bool) -> Range<usize> {
        if chunked { 0..self.bytes.len() } else { self.events.clone() }
    }
}
