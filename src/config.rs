//! How a server is to run.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

#[cfg(feature = "redis")]
use crate::redis_url::RedisUrl;
use crate::token::Token;

/// Data that is not acknowledged for so long: a power cut, a pulled cable.
pub(crate) const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// How a server is to run. `Config::default()` is what the command does without options, but for the port.
///
/// ```
/// let config = statecast::Config { heartbeat: std::time::Duration::from_secs(1), ..Default::default() };
/// assert_eq!(config.history_bytes, 4 << 20);
/// ```
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Config {
    /// Where to listen, tried in order. Default: 127.0.0.1, on a port that is free; the command's is 8080.
    pub listen: Vec<SocketAddr>,
    /// The file that keeps the document, for one server at a time. Default: none; the document is gone when the server
    /// stops.
    pub document: Option<PathBuf>,
    /// The Redis in which several servers share one document and one history. Default: none; the server is alone.
    #[cfg(feature = "redis")]
    pub redis: Option<RedisUrl>,
    /// The key that they share in it. Default: `statecast`.
    #[cfg(feature = "redis")]
    pub redis_key: String,
    /// Between two saves of the document to its file, at least. Default: 1 s.
    pub save_every: Duration,
    /// Time between `heartbeat` events. Default: 15 s.
    pub heartbeat: Duration,
    /// What clients are told to wait before they reconnect, each a third more or less. Default: 3 s.
    pub retry: Duration,
    /// Threads that write to clients, 64 at most; 0 for as many as there are cores, up to 4. Default: 0.
    pub threads: usize,
    /// What is kept for clients that were away, in bytes. Default: 4 MiB.
    pub history_bytes: usize,
    /// Clients at once. Default: 10,000, or as many as descriptors and memory carry.
    pub max_clients: usize,
    /// Clients of one address, but for this machine's own; 0 for no limit. Default: 100.
    pub max_clients_per_address: usize,
    /// The largest request body in bytes. Default: 1 MiB.
    pub max_body_bytes: usize,
    /// The largest document in bytes of JSON. Default: 4 MiB.
    pub max_document_bytes: usize,
    /// The send buffer of a client in bytes; the kernel takes about twice as much. Default: 64 KiB.
    pub client_buffer_bytes: usize,
    /// How long stopping may take. Default: 5 s.
    pub grace: Duration,
    /// A folder to serve instead of the built-in page. Default: none.
    pub public: Option<PathBuf>,
    /// Who has it may write and see `/clients`, from wherever. Default: none; writes are for this machine alone.
    pub publish_token: Option<Token>,
    /// Who has it, or the publish token, may read the document and its streams. Default: none; anybody may.
    pub subscribe_token: Option<Token>,
    /// Origins whose pages may read and, as far as everybody may, write. Default: none but the server's own.
    pub allow_origin: Vec<Origin>,
    /// Let anybody write, not this machine alone. Default: no.
    pub open: bool,
    /// Offer faults on demand, `/lab`, to whoever may write: for testing clients. Default: no.
    pub lab: bool,
    /// Log publishes, too. Default: no.
    pub verbose: bool,
    /// Log to stderr. Default: no; the command does.
    pub log: bool,
    /// A client whose connection takes nothing for so long is removed. No flag. Default: 10 s.
    pub stall: Duration,
    /// Until the first request of a connection has arrived; bodies get more. No flag. Default: 10 s.
    pub request_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            document: None,
            #[cfg(feature = "redis")]
            redis: None,
            #[cfg(feature = "redis")]
            redis_key: "statecast".to_owned(),
            save_every: Duration::from_secs(1),
            heartbeat: Duration::from_secs(15),
            retry: Duration::from_secs(3),
            threads: 0,
            history_bytes: 4 << 20,
            max_clients: 10_000,
            max_clients_per_address: 100,
            max_body_bytes: 1 << 20,
            max_document_bytes: 4 << 20,
            client_buffer_bytes: 64 << 10,
            grace: Duration::from_secs(5),
            public: None,
            publish_token: None,
            subscribe_token: None,
            allow_origin: Vec::new(),
            open: false,
            lab: false,
            verbose: false,
            log: false,
            stall: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// The most that `threads` can be.
    pub(crate) const MAX_THREADS: usize = 64;

    /// How many threads write to clients.
    pub(crate) fn fan_out_threads(&self) -> usize {
        match self.threads {
            // A machine that has more has something else to do, too.
            0 => available_parallelism().map_or(1, NonZero::get).min(4),
            threads => threads.min(Config::MAX_THREADS),
        }
    }
}

/// The origin of a page: scheme, host and port, as browsers write them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// An origin, such as `https://example.org` or `http://localhost:3000`.
    ///
    /// # Errors
    /// What an origin is, where the text is something else.
    pub fn new(text: &str) -> Result<Origin, String> {
        let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_host = |letter: char| letter.is_ascii_alphanumeric() || "-._:[]".contains(letter);
        match authority {
            Some(authority) if !authority.is_empty() && authority.chars().all(is_host) => {
                let text = text.to_ascii_lowercase();
                // Browsers leave the default port out.
                let default = if text.starts_with("https:") { ":443" } else { ":80" };
                Ok(Origin(text.strip_suffix(default).unwrap_or(&text).to_owned()))
            }
            _ => Err("an origin, such as https://example.org, without a path".to_owned()),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}
