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
//! # The map
//! Each file is one noun. Read in this order, they follow an event from the publisher to the browser:
//!
//! | file | what it is |
//! |---|---|
//! | `main`, [`Command`] | the commands, and what each is to do |
//! | `settings`, [`Config`] | options as tables; that of the server |
//! | `listener`, `connection` | tiny_http kept alive; whose turn it is, and who takes too long |
//! | `socket`, `allocator` | the sockets that tiny_http hides, and the memory it would give away |
//! | `door` | a request becomes one of ours, or a refusal |
//! | [`Server`], `access` | what each request does; who may do it |
//! | [`Capacity`] | how many clients and requests this machine carries |
//! | `handle` | what a program does with a server of its own |
//! | `answer`, `pages` | what goes back; the built-in page |
//! | `document` | the document: [`merge`], [`diff`], and what is refused |
//! | `event`, `history` | names, ids and frames; what was published last, kept once for everybody |
//! | `hub` | the lock, the client list, and the one thread that writes to live clients |
//! | `watch` | waiting for clients: to come, to leave, to have what was published |
//! | `stream` | one client: its place in history, what is pending, and how it catches up |
//! | `saver` | the file that keeps the document |
//! | `lab` | with `--lab` only: what goes wrong in life, done to clients on purpose |
//! | `log`, `metrics`, `clock`, `lock` | a line a fault, a number a kind, the time, a lock that outlives a panic |
//!
//! The other end takes the event from there:
//!
//! | file | what it is |
//! |---|---|
//! | [`Parser`] | bytes as events, in whatever pieces they come |
//! | [`EventSource`] | the browser's, blocking: connects, resumes, waits, notices silence |
//! | [`Replica`] | a copy of the document, current or made anew |
//! | `tail`, `publish` | the client commands: a stream on standard output; data on its way to the server |
//!
//! # Threads
//! tiny_http reads requests in threads of its own. A few *request* threads of ours take them, publish, and are done.
//! The *hub* thread writes to every live client, the *catch-up* thread to those that fell behind; the *keeper* looks
//! after tiny_http; the *saver* and the *log* wait for disk and terminal, so that nobody else does. An [`EventSource`] reads
//! in its caller's thread, with one beside it that watches for silence; a [`Replica`] has a thread of its own.
//!
//! It is made for Linux; there is no async runtime. On another Unix it finds no sockets, and falls back on time-outs.

mod cli;
mod client;
mod clock;
mod document;
mod http;
mod hub;
mod lock;
mod log;
mod metrics;
mod server;
mod sse;
mod token;
mod units;
mod wire;

pub use cli::commands::{Client, Command, help};
pub use cli::publish::{send, set};
pub use cli::serve::serve;
pub use cli::signals::outlive_file_limits;
pub use cli::tail::tail;
pub use client::event_source::{
    EventSource, EventSourceHandle, EventSourceInit, ReadyState, Reason, may_pass,
};
pub use client::replica::{NotSo, Replica};
pub use document::{Refusal, diff, merge};
pub use http::allocator::{PatientAllocator, count_tiny_http_panics, use_one_arena};
pub use hub::client::ClientStatus;
pub use hub::history::EventData;
pub use hub::watch::TimedOut;
pub use server::Server;
pub use server::capacity::Capacity;
pub use server::config::{Config, Origin};
pub use server::handle::Restart;
pub use sse::event::{EventId, EventName, MalformedId, Topic};
pub use sse::parser::{Event, MAX_EVENT_BYTES, Parser, TooLarge};
pub use token::Token;

/// The README's examples are tests, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
