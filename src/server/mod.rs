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
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::config::{Config, UNACKNOWLEDGED};
use crate::http::{self, Exchange, Limits, Listener, Place};
#[cfg(feature = "redis")]
use crate::hub::shared::{Opened, open};
use crate::hub::{Hub, Threads, handover};
use crate::lock::lock;
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

pub(crate) type Listen = dyn Fn(Place) -> io::Result<Listener> + Send + Sync;

/// What a server begins with that another process had before.
#[derive(Default)]
pub(crate) struct Inherited {
    /// It listens already: the process before did, or a service manager.
    pub listening: Option<TcpListener>,
    /// Document, history and ids of the server before.
    pub handed: Option<Vec<u8>>,
    /// The file of the document, with its lock.
    pub locked: Option<File>,
}

/// A server that has read what it needs, and does not listen yet.
pub(crate) struct Prepared {
    config: Config,
    log: Log,
    pages: Pages,
    document: Value,
    inherited: Inherited,
    file: Option<KeptFile>,
    /// The file has this document.
    is_saved: bool,
    #[cfg(feature = "redis")]
    opened: Option<Opened>,
}

/// Between two tries to reach a Redis that is lost while a server takes itself over.
#[cfg(feature = "redis")]
const REOPEN: Duration = Duration::from_secs(1);

impl Server {
    /// Starts a server; it serves from the moment this returns.
    ///
    /// # Errors
    /// The address cannot be listened on, the document's file cannot be read and saved or has a server already, or the
    /// public folder cannot be read, or Redis cannot be used: the text says which. Or there is no thread to be had.
    pub fn start(config: Config) -> io::Result<Server> {
        Server::prepare(config, Inherited::default())?.listen()
    }

    /// Does what a start has to do with disks, which may take any time: nobody has been promised anything yet.
    pub(crate) fn prepare(mut config: Config, mut inherited: Inherited) -> io::Result<Prepared> {
        let log = if config.log { Log::to_stderr()? } else { Log::silent() };
        let pages = Pages::new(config.public.as_deref())?;
        let handed = inherited.handed.as_deref().and_then(handover::document);
        let is_saved = handed.is_none();
        let (mut file, document) = match (config.document.as_deref(), handed) {
            (Some(path), None) => KeptFile::open(path, config.max_document_bytes)
                .map(|(file, document)| (Some(file), document))?,
            (Some(path), Some(document)) => {
                (Some(KeptFile::reopen(path, inherited.locked.take())?), document)
            }
            (None, document) => (None, document.unwrap_or_else(|| Value::Object(Map::new()))),
        };
        let history = file.as_mut().map_or(Ok(None), |file| file.read_history(most_history(&config)));
        let history = history.unwrap_or_else(|error| {
            log.line(|| error.to_string());
            None
        });
        // What was handed over is that of a moment ago, and beside the document is no more than that.
        inherited.handed = inherited.handed.or(history);
        #[cfg(feature = "redis")]
        let opened = loop {
            match open(&config, &document, &log) {
                // There was a server a moment ago, and those who listened to it come back.
                Err(error) if !is_saved => {
                    log.line(|| error.to_string());
                    std::thread::sleep(REOPEN);
                }
                opened => break opened.map_err(|error| of_document(&config, error))?,
            }
        };
        #[cfg(feature = "redis")]
        let is_saved = is_saved && opened.is_none();
        #[cfg(feature = "redis")]
        if opened.is_some() {
            // Redis has a newer one.
            inherited.handed = None;
        }
        if let Some(listening) = &inherited.listening {
            config.listen = vec![listening.local_addr()?];
        }
        Ok(Prepared {
            config,
            log,
            pages,
            document,
            inherited,
            file,
            is_saved,
            #[cfg(feature = "redis")]
            opened,
        })
    }
}

/// Makes this process one that does nothing but serve. To be called first, while there is only one thread.
#[cfg(feature = "cli")]
pub(crate) fn own_process() {
    http::own_process();
}

impl Prepared {
    pub fn listen(self) -> io::Result<Server> {
        let Prepared { mut config, log, pages, document, inherited, file, is_saved, .. } = self;
        let Inherited { listening, handed, .. } = inherited;
        let capacity = Capacity::find(config.max_clients);
        config.max_clients = capacity.clients;
        let (ring_changed, changed) = bounded(1);
        let started = Hub::start(
            config.clone(),
            document,
            handed,
            #[cfg(feature = "redis")]
            self.opened,
            log.clone(),
            ring_changed.clone(),
        );
        let (hub, threads) = started.map_err(|error| of_document(&config, error))?;
        let kept = file.as_ref().map_or_else(
            || "empty, and forgotten at the end; --document FILE keeps it".to_owned(),
            KeptFile::describe,
        );
        #[cfg(feature = "redis")]
        let kept = kept + &hub.shares();
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
            server.saver = Some(Saver::start(
                file,
                hub,
                (ring_changed, changed),
                save_every,
                is_failing,
                log,
                is_saved,
            )?);
        }
        let listener = (server.listen)(listening.map_or(Place::At(&addresses), Place::On))?;
        server.address = listener.address();
        server.listener = Mutex::new(Some(listener));
        Ok(server)
    }
}

/// The error, with the file's name if it is about what the file holds.
fn of_document(config: &Config, error: io::Error) -> io::Error {
    match &config.document {
        Some(path) if error.kind() == io::ErrorKind::InvalidData => {
            kept_file::about(path, error.kind(), &error.to_string())
        }
        _ => error,
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
    Box::new(move |place: Place| {
        let addresses = if let Place::At(addresses) = place { addresses } else { &[] };
        let (metrics, site) = (Arc::clone(&site.hub.metrics), Arc::clone(&site));
        let handle = move |exchange: Exchange| site.handle(exchange);
        http::listen(place, &limits, log.clone(), metrics, handle).map_err(|error| {
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

    /// Where it says what happens.
    #[cfg(feature = "cli")]
    pub(crate) fn log(&self) -> &Log {
        &self.log
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
        self.end(Instant::now())
    }

    /// What listens, for [`hand_over`](Server::hand_over).
    ///
    /// # Errors
    /// It does not listen, or cannot do without what the next process needs to start.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the command takes itself over"))]
    pub(crate) fn listening(&self) -> io::Result<TcpListener> {
        #[cfg(feature = "redis")]
        if !self.hub.is_connected() {
            return Err(io::Error::other("Redis is lost"));
        }
        let listener = lock(&self.listener);
        listener.as_ref().ok_or(io::ErrorKind::NotConnected)?.listening()
    }

    /// Stops as `stop` does, but for `listening`: whoever connects meanwhile waits for the next process. Whoever is connected
    /// is answered first. Returns what that process goes on with, and whether the document is saved; blocks for the configured
    /// grace at most.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the command takes itself over"))]
    pub(crate) fn hand_over(mut self, listening: TcpListener) -> (Inherited, io::Result<()>) {
        let now = Instant::now();
        if let Some(listener) = &*lock(&self.listener) {
            listener.pause(now + self.grace / 2);
        }
        let keeper = self.saver.clone();
        keeper.iter().for_each(Saver::keep_lock);
        let saved = self.end(now);
        let (listening, handed) = (Some(listening), Some(self.hub.write_out()));
        (Inherited { listening, handed, locked: keeper.and_then(|keeper| keeper.take_lock()) }, saved)
    }

    /// Whether tiny_http keeps so much for good that a new process is better.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the command takes itself over"))]
    pub(crate) fn is_worn(&self) -> bool {
        let listener = lock(&self.listener);
        listener.as_ref().is_some_and(|listener| listener.leftovers() >= self.capacity.leftovers)
    }

    fn end(&mut self, now: Instant) -> io::Result<()> {
        let Some(threads) = self.running.take() else { return Ok(()) };
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
        self.end(Instant::now()).ok();
    }
}
