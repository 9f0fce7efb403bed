//! The other end of the wire: a blocking `EventSource`, and a live copy of the document.

pub mod event_source;
pub mod http;
pub mod proxy;
pub mod replica;
pub mod url;
