//! The server: what each request does and who may do it.
//!
//! `Server::start` puts hub, listener and pages together; the rest answers requests that came through the `door`.
//! The one rule: a refusal says in JSON what was wrong and what would be right, and echoes nothing.

pub mod access;
mod answers;
pub mod capacity;
pub mod handle;
#[cfg_attr(not(unix), path = "kept_file/none.rs")]
mod kept_file;
mod lab;
mod pages;
mod route;
mod routes;
mod saver;

use crossbeam_channel::bounded;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::config::{Config, UNACKNOWLEDGED};
use crate::http::{self, Exchange, Limits, Listener};
use crate::hub::{Hub, Threads};
use crate::log::Log;
use crate::server::capacity::Capacity;
use crate::server::kept_file::KeptFile;
use crate::server::pages::Pages;
use crate::server::routes::Site;
use crate::server::saver::Saver;

/// Kept-alive connections with no request under way.
const IDLE: Duration = Duration::from_secs(75);

/// A running server. It stops when dropped, as `stop` does. Several in one process share nothing, and threads can share
/// one of them.
///
/// In a test of a program that listens: start one, [`wait_for_clients`](Server::wait_for_clients), `patch` or `publish`,
/// and see what the program does; [`restart`](Server::restart) it to see the program come back. Of a program that
/// publishes: [`wait_for_state`](Server::wait_for_state).
///
/// ```
/// let server = statecast::Server::start(statecast::Config::default())?;
/// let url = format!("http://{}/state", server.address());
/// ureq::patch(&url).send(r#"{"temp":21.5}"#).unwrap();
/// assert_eq!(server.state(), serde_json::json!({"temp": 21.5}));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Server {
    address: SocketAddr,
    capacity: Capacity,
    pub(crate) grace: Duration,
    pub(crate) hub: Arc<Hub>,
    /// Listens at one of these addresses, at the start and after a restart.
    pub(crate) listen: Box<Listen>,
    /// `None` while it is down.
    pub(crate) listener: Mutex<Option<Listener>>,
    /// Taken when it stops.
    running: Option<Threads>,
    saver: Option<Saver>,
    log: Log,
    /// Where the document is kept, in words.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the command says it"))]
    kept: String,
}

pub(crate) type Listen = dyn Fn(&[SocketAddr]) -> io::Result<Listener> + Send + Sync;

/// A server that has read what it needs, and does not listen yet.
pub(crate) struct Prepared {
    config: Config,
    log: Log,
    pages: Pages,
    document: Value,
    /// What an earlier server wrote out.
    handed: Option<Vec<u8>>,
    file: Option<KeptFile>,
}

impl Server {
    /// Starts a server; it serves from the moment this returns.
    ///
    /// # Errors
    /// The address cannot be listened on, the document's file cannot be read and saved or has a server already, or the
    /// public folder cannot be read: the text says which. Or there is no thread to be had.
    pub fn start(config: Config) -> io::Result<Server> {
        Server::prepare(config)?.listen()
    }

    /// Does what a start has to do with disks, which may take any time: nobody has been promised anything yet.
    pub(crate) fn prepare(config: Config) -> io::Result<Prepared> {
        let log = if config.log { Log::to_stderr()? } else { Log::silent() };
        let pages = Pages::new(config.public.as_deref())?;
        let opened = config.document.as_deref().map(|path| KeptFile::open(path, config.max_document_bytes));
        let (mut file, document) = match opened.transpose()? {
            Some((file, document)) => (Some(file), document),
            None => (None, Value::Object(Map::new())),
        };
        let read = file.as_mut().map_or(Ok(None), |file| file.read_history(most_history(&config)));
        let handed = read.unwrap_or_else(|error| {
            log.line(|| error.to_string());
            None
        });
        Ok(Prepared { config, log, pages, document, handed, file })
    }
}

/// Makes this process one that does nothing but serve. To be called first, while there is only one thread.
#[cfg(feature = "cli")]
pub(crate) fn own_process() {
    http::own_process();
}

impl Prepared {
    pub fn listen(self) -> io::Result<Server> {
        let Prepared { mut config, log, pages, document, handed, file } = self;
        let capacity = Capacity::find(config.max_clients);
        config.max_clients = capacity.clients;
        let (ring_changed, changed) = bounded(1);
        let started = Hub::start(config.clone(), document, handed, log.clone(), ring_changed.clone());
        let (hub, threads) = started.map_err(|error| match &config.document {
            Some(path) if error.kind() == io::ErrorKind::InvalidData => {
                kept_file::about(path, error.kind(), &error.to_string())
            }
            _ => error,
        })?;
        let kept = file.as_ref().map_or_else(
            || "empty, and forgotten at the end; --document FILE keeps it".to_owned(),
            KeptFile::describe,
        );
        let (addresses, grace, save_every) = (config.listen.clone(), config.grace, config.save_every);
        let limits = limits(&config, capacity);
        let is_failing = Arc::default();
        let site = Site::new(Arc::clone(&hub), pages, Arc::clone(&is_failing), config);
        let listen = listener(site, limits, log.clone());
        // From here on an error drops the server, which stops what has been started.
        let mut server = Server {
            address: SocketAddr::from(([0; 4], 0)),
            capacity,
            grace,
            hub: Arc::clone(&hub),
            listen,
            listener: Mutex::default(),
            running: Some(threads),
            saver: None,
            log: log.clone(),
            kept,
        };
        if let Some(file) = file {
            server.saver =
                Some(Saver::start(file, hub, (ring_changed, changed), save_every, is_failing, log)?);
        }
        let listener = (server.listen)(&addresses)?;
        server.address = listener.address();
        server.listener = Mutex::new(Some(listener));
        Ok(server)
    }
}

/// What a history beside the document may have in bytes. One of a server with larger limits is cut to these when it is
/// read, unless it is absurd.
fn most_history(config: &Config) -> usize {
    const OTHER_LIMITS: usize = 64 << 20;
    OTHER_LIMITS
        .saturating_add(config.history_bytes.saturating_mul(2))
        .saturating_add(config.max_document_bytes)
}

fn limits(config: &Config, capacity: Capacity) -> Limits {
    Limits {
        head: config.request_timeout,
        idle: IDLE,
        write: config.stall,
        unacknowledged: UNACKNOWLEDGED,
        send_buffer: config.client_buffer_bytes,
        requests: capacity.requests,
    }
}

/// Listens for the site, as often as it is asked to.
fn listener(site: Site, limits: Limits, log: Log) -> Box<Listen> {
    let site = Arc::new(site);
    Box::new(move |addresses: &[SocketAddr]| {
        let (metrics, site) = (Arc::clone(&site.hub.metrics), Arc::clone(&site));
        let handle = move |exchange: Exchange| site.handle(exchange);
        http::listen(addresses, &limits, log.clone(), metrics, handle).map_err(|error| {
            let hint = free_port_near(addresses, &error);
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            io::Error::new(error.kind(), format!("--listen {}: {error}{hint}", addresses.join(", ")))
        })
    })
}

/// For whoever wants a port that somebody has: the next one that is free.
fn free_port_near(addresses: &[SocketAddr], error: &io::Error) -> String {
    let taken = addresses.first().filter(|_| error.kind() == io::ErrorKind::AddrInUse);
    let free = taken.and_then(|taken| {
        let mut ports = (taken.port()..u16::MAX).map(|port| SocketAddr::new(taken.ip(), port + 1)).take(100);
        ports.find(|address| TcpListener::bind(address).is_ok())
    });
    free.map_or(String::new(), |address| format!("; try --listen {address}"))
}

impl Server {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it is, as a URL without a slash at its end: `http://127.0.0.1:40123`. Of a server that listens at every address
    /// of this machine it is the one that this machine calls its own.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", http::own_address(self.address))
    }

    /// How many clients it takes at once, and why no more.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Where the document is kept, and what is to be known about that.
    #[cfg(feature = "cli")]
    pub(crate) fn kept(&self) -> &str {
        &self.kept
    }

    /// What the document is saved by, if by anything.
    #[cfg(feature = "cli")]
    pub(crate) fn saver(&self) -> Option<Saver> {
        self.saver.clone()
    }

    /// Ends every stream with a time to come back, answers what was asked, saves the document. Blocks for as long as
    /// that takes, the configured grace at most, whatever the disk does.
    ///
    /// # Errors
    /// The document is not saved: what its file has instead, and why. If the disk is to blame that took longer than the
    /// grace, it may get there yet, and until then no other server can have the file.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(threads) = self.running.take() else { return Ok(()) };
        let now = Instant::now();
        // What is refused from here on need not be saved; all else is, while streams and requests are ended.
        self.hub.begin_stop();
        if let Some(saver) = &self.saver {
            saver.begin_stop(now + self.grace * 15 / 16);
        }
        threads.stop(&self.hub, now + self.grace * 3 / 4);
        if let Some(listener) = self.listener.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            listener.stop(now + self.grace * 7 / 8);
        }
        let saved = self.saver.take().map_or(Ok(()), |saver| saver.wait());
        self.log.flush(self.grace / 16);
        saved
    }
}

impl Drop for Server {
    /// What was not saved, the saver has logged.
    fn drop(&mut self) {
        self.end().ok();
    }
}
