//! statecast: a small, blocking Server-Sent Events server.
mod answer;
mod clock;
mod config;
mod document;
mod door;
mod event;
mod history;
mod hub;
mod listener;
mod log;
mod metrics;
mod pages;
mod saver;
mod server;
mod socket;
mod stream;

pub use config::{Command, Config, help};
pub use document::{Refusal, diff, merge};
pub use event::{EventId, MalformedId};
pub use server::Server;
