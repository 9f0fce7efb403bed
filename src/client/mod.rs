//! The other end of the wire: an `EventSource` that blocks, and a live copy of the document.

pub mod event_source;
pub mod http;
pub mod proxy;
pub mod replica;
pub mod url;
