//! A small, blocking Server-Sent Events server that keeps one JSON document and the state of every connection.
//!
//! A client that connects gets the document (`init`), every change reaches it as an `update`, and one that was away
//! gets exactly what it missed. Whoever applies `init` and then every `update` with RFC 7396 holds the server's
//! document. The program is in `main.rs`; as a library it is a server inside your own program or test, and the other end
//! of the wire, an [`EventSource`] and a [`Replica`] of the document:
//!
//! ```
//! use statecast::{Config, EventSource, Server};
//!
//! let server = Server::start(Config::default())?;
//! let url = format!("http://{}", server.address());
//! let mut events = EventSource::new(&format!("{url}/events"))?;
//! assert_eq!(events.next().unwrap().name, "hello");
//! assert_eq!(events.next().unwrap().data, "{}");
//! ureq::put(format!("{url}/state/kitchen")).send(r#"{"temp":21.5}"#).unwrap();
//! assert_eq!(events.next().unwrap().data, r#"{"kitchen":{"temp":21.5}}"#);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! [`Server`] says what there is for tests: waiting without sleeping, restarts, clients one by one.
//!
//! # The houses
//! Arrows go down only; `tests/house.rs` holds the tree to that.
//!
//! ```text
//! main -> cli -> { server, client };  server -> { http, hub };  { http, hub, client } -> { document, sse, ground }
//! ```
//!
//! | house | what it is |
//! |---|---|
//! | `cli/` | the commands: arguments become calls |
//! | `server/` | what each request does and who may do it; the handle, the saved file, the lab |
//! | `hub/` | **the lesson**: publish, join, fan out, catch up |
//! | `http/` | tiny_http, kept alive behind one door |
//! | `client/` | the other end: [`EventSource`], [`Replica`] |
//! | `sse/` | the event stream format, both ways: ids and frames, [`Parser`] |
//! | the ground | `document` ([`merge`], [`diff`]), `config`, `conditions`, `seats`, `token`, `units`, `wire`, `log`, `metrics`, `clock`, `lock` |
//!
//! Whoever wants to learn SSE reads `sse/event`, then `hub/` (`mod`, `draft`, `state`, `history`, `chunk`, `fan_out`, `client`,
//! `catch_up`, `watch`), then `server/routes`.
//!
//! # Threads
//! tiny_http reads requests in threads of its own. A few *request* threads of ours take them, publish, and are done.
//! The *fan-out* threads, one a core and four at most, write to every live client, each to its own; the *catch-up* thread
//! writes to those that fell behind. The *keeper* looks after tiny_http. The *saver* and the *log* wait for disk and terminal, so that nobody else does. An [`EventSource`] reads
//! in its caller's thread, with one beside it that watches for silence; a [`Replica`] has a thread of its own.
//!
//! # Locks
//! A client's lock comes before the hub's; the seats' and the watch's come last. In `http`: the table's, a connection's, then
//! the sockets'. Nobody writes to a socket, a file or the log with the hub's lock.
//!
//! It is made for Linux; there is no async runtime. On another Unix it finds no sockets, and falls back on time-outs.

#[cfg(feature = "cli")]
mod cli;
mod client;
mod clock;
mod conditions;
mod config;
mod document;
mod http;
mod hub;
mod lock;
mod log;
mod metrics;
mod seats;
mod server;
mod sse;
mod token;
mod units;
mod wire;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub use cli::run_command;
pub use client::event_source::{EventSource, EventSourceHandle, EventSourceInit, ReadyState, Reason};
pub use client::replica::{NotSo, Replica};
pub use config::{Config, Origin};
pub use document::{Refusal, diff, merge};
pub use http::allocator::PatientAllocator;
pub use hub::client::ClientStatus;
pub use hub::history::EventData;
pub use server::Server;
pub use server::capacity::Capacity;
pub use server::handle::{ForTopic, Restart, TimedOut};
pub use sse::event::{EventId, EventName, MalformedId, Topic};
pub use sse::parser::{Event, MAX_EVENT_BYTES, Parser, TooLarge};
pub use token::Token;

/// The README's examples are tests, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
