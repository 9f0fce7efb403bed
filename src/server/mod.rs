//! The server: what each request does and who may do it.
//!
//! `Server::start` puts hub, listener and pages together; the rest answers requests that came through the `door`.
//! The one rule: a refusal says in JSON what was wrong and what would be right, and echoes nothing.

pub mod access;
mod answers;
pub mod capacity;
pub mod config;
pub mod handle;
mod lab;
mod pages;
mod route;
mod routes;
mod saver;

use crossbeam_channel::bounded;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::http::{self, Limits, Listener};
use crate::hub::{Hub, Settings, StartError, Threads};
use crate::log::Log;
use crate::server::access::Rules;
use crate::server::capacity::Capacity;
use crate::server::config::Config;
use crate::server::pages::Pages;
use crate::server::routes::Site;
use crate::server::saver::Saver;

/// Kept-alive connections with no request under way.
const IDLE: Duration = Duration::from_secs(75);

/// Data that is not acknowledged for so long: a power cut, a pulled cable.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

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
/// assert_eq!(ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap(), r#"{"temp":21.5}"#);
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
    running: Option<(Threads, Option<Saver>)>,
}

pub(crate) type Listen = dyn Fn(&[SocketAddr]) -> io::Result<Listener> + Send + Sync;

impl Server {
    /// Starts a server; it serves from the moment this returns.
    ///
    /// # Errors
    /// The address cannot be listened on, or the document's file or the public folder cannot be read: the text says
    /// which. Or there is no thread to be had.
    pub fn start(config: Config) -> io::Result<Server> {
        let log = if config.log { Log::to_stderr()? } else { Log::silent() };
        let document = match &config.document {
            Some(path) => saver::read(path, config.max_document_bytes)?,
            None => Value::Object(Map::new()),
        };
        let pages = Pages::new(config.public.as_deref())?;
        let capacity = Capacity::find(config.max_clients);
        let settings = Settings {
            heartbeat: config.heartbeat,
            retry: config.retry,
            history_bytes: config.history_bytes,
            max_document_bytes: config.max_document_bytes,
            max_clients: capacity.clients,
            max_clients_per_address: config.max_clients_per_address,
            stall: config.stall,
            unacknowledged: UNACKNOWLEDGED,
            verbose: config.verbose,
        };
        let (ring_changed, changed) = bounded(1);
        let (hub, threads) = Hub::start(settings, document, log.clone(), ring_changed.clone()).map_err(
            |error| match error {
                StartError::Thread(error) => error,
                StartError::Document(refusal) => {
                    saver::unfit(config.document.as_deref().unwrap_or(Path::new("")), &refusal)
                }
            },
        )?;
        let limits = Limits {
            head: config.request_timeout,
            idle: IDLE,
            write: config.stall,
            unacknowledged: UNACKNOWLEDGED,
            send_buffer: config.client_buffer_bytes,
            requests: capacity.requests,
        };
        let site = Arc::new(Site {
            hub: Arc::clone(&hub),
            pages,
            rules: Rules {
                is_open: config.open,
                publish_token: config.publish_token,
                subscribe_token: config.subscribe_token,
                origins: config.allow_origin,
            },
            max_body: config.max_body_bytes,
            max_document: config.max_document_bytes,
            large_bodies: Mutex::new(()),
            lab: config.lab.then(Arc::default),
        });
        let listener_log = log.clone();
        let listen = Box::new(move |addresses: &[SocketAddr]| {
            let (log, metrics) = (listener_log.clone(), Arc::clone(&site.hub.metrics));
            let site = Arc::clone(&site);
            let started =
                http::listen(addresses, &limits, log, metrics, move |exchange| site.handle(exchange));
            started.map_err(|error| {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                io::Error::new(error.kind(), format!("--listen {}: {error}", addresses.join(", ")))
            })
        });
        let listener = match listen(&config.listen) {
            Ok(listener) => listener,
            Err(error) => {
                threads.stop(&hub, Instant::now());
                return Err(error);
            }
        };
        let saver = match config.document {
            Some(path) => Some(Saver::start(path, Arc::clone(&hub), (ring_changed, changed), log)?),
            None => None,
        };
        let address = listener.address();
        let listener = Mutex::new(Some(listener));
        let running = Some((threads, saver));
        Ok(Server { address, capacity, grace: config.grace, hub, listen, listener, running })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many clients it takes at once, and why no more.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Ends every stream with a time to come back, answers what was asked, saves the document. Blocks for as long as
    /// that takes, the configured grace at most.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some((threads, saver)) = self.running.take() else { return };
        let now = Instant::now();
        // The rest is for requests under way, and for the disk.
        threads.stop(&self.hub, now + self.grace * 3 / 4);
        if let Some(listener) = self.listener.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            listener.stop(now + self.grace * 7 / 8);
        }
        if let Some(saver) = saver {
            saver.stop();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
