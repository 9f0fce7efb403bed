//! The server: what each request does and who may do it.
//!
//! `Server::start` puts hub, listener and pages together; the rest answers requests that came through the `door`.
//! The one rule: a refusal says in JSON what was wrong and what would be right, and echoes nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use serde_json::{Map, Value};
use tiny_http::{Method, Request};

use crate::answer::{Answer, Patient, STREAM_HEADERS};
use crate::config::Config;
use crate::document;
use crate::door::{Call, judge};
use crate::event::{EventId, EventName, Topic};
use crate::history::{Audience, OneOff};
use crate::hub::{Hub, Settings, StartError, Threads, description};
use crate::listener::{Listener, Patience, Turn};
use crate::log::Log;
use crate::pages::Pages;
use crate::saver::{self, Saver};
use crate::socket::raise_descriptor_limit;
use crate::stream::Connection;

/// Descriptors that are not for clients: the process's own, and two for each request under way.
const RESERVED_DESCRIPTORS: usize = 40;

/// Kept-alive connections with no request under way.
const IDLE: Duration = Duration::from_secs(75);

/// Data that is not acknowledged for so long: a power cut, a pulled cable.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// A running server. It stops when dropped, as `stop` does.
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
    max_clients: usize,
    grace: Duration,
    hub: Arc<Hub>,
    /// Taken when it stops.
    running: Option<(Listener, Threads, Option<Saver>)>,
}

impl Server {
    /// Starts a server; it serves from the moment this returns.
    ///
    /// # Errors
    /// The address cannot be listened on, or the document's file or the public folder cannot be read: the text says
    /// which. Or there is no thread to be had.
    pub fn start(config: Config) -> io::Result<Server> {
        let log = if config.log { Log::to_stderr()? } else { Log::silent() };
        let document = match &config.document {
            Some(path) => saver::read(path)?,
            None => Value::Object(Map::new()),
        };
        let pages = Pages::new(config.public.as_deref())?;
        // A limit too low for the reserve still serves somebody.
        let descriptors = raise_descriptor_limit();
        let room = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(descriptors / 4);
        let max_clients = config.max_clients.min(room);
        let settings = Settings {
            heartbeat: config.heartbeat,
            retry: config.retry,
            history_bytes: config.history_bytes,
            max_document_bytes: config.max_document_bytes,
            max_clients,
            max_clients_per_address: config.max_clients_per_address,
            stall: config.stall,
            verbose: config.verbose,
        };
        let (ring_changed, changed) = bounded(1);
        let (hub, threads) =
            Hub::start(settings, document, log.clone(), ring_changed).map_err(|error| match error {
                StartError::Thread(error) => error,
                StartError::Document(refusal) => {
                    saver::unfit(config.document.as_deref().unwrap_or(Path::new("")), &refusal)
                }
            })?;
        let patience = Patience {
            head: config.request_timeout,
            idle: IDLE,
            send_buffer: config.client_buffer_bytes,
            unacknowledged: UNACKNOWLEDGED,
        };
        let site = Site {
            hub: Arc::clone(&hub),
            pages,
            is_open: config.open,
            max_body: config.max_body_bytes,
            write_patience: config.stall,
        };
        let handler = Box::new(move |request, turn| site.answer(request, turn));
        let metrics = Arc::clone(&hub.metrics);
        let listener =
            Listener::start(&config.listen, patience, log.clone(), metrics, handler).map_err(|error| {
                let addresses: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
                io::Error::new(error.kind(), format!("--listen {}: {error}", addresses.join(", ")))
            })?;
        let saver = match config.document {
            Some(path) => Some(Saver::start(path, Arc::clone(&hub), changed, log)?),
            None => None,
        };
        let address = listener.address();
        let running = Some((listener, threads, saver));
        Ok(Server { address, max_clients, grace: config.grace, hub, running })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many clients it takes at once: what was configured, or what the limit on descriptors carries.
    #[must_use]
    pub fn max_clients(&self) -> usize {
        self.max_clients
    }

    /// Ends every stream with a time to come back, answers what was asked, saves the document. Blocks for as long as
    /// that takes, the configured grace at most.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some((listener, threads, saver)) = self.running.take() else { return };
        let now = Instant::now();
        // The rest is for requests under way, and for the disk.
        threads.stop(&self.hub, now + self.grace * 3 / 4);
        listener.stop(now + self.grace * 7 / 8);
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

/// What requests are answered with and by.
struct Site {
    hub: Arc<Hub>,
    pages: Pages,
    is_open: bool,
    max_body: usize,
    /// Without progress for so long an answer is given up.
    write_patience: Duration,
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Events(Audience),
    State(Option<Topic>),
    Clients,
    Client(u64),
    Health,
    Metrics,
    Page,
}

impl Route {
    fn of(path: &str) -> Result<Route, Answer> {
        let topic = |text: &str| Topic::parse(text).map_err(|rule| Answer::refusal(400, rule));
        let mut segments = path.split('/').skip(1);
        let route = match (segments.next(), segments.next(), segments.next()) {
            (Some("events"), None, _) => Route::Events(None),
            (Some("events"), Some(text), None) => Route::Events(Some(topic(text)?)),
            (Some("state"), None, _) => Route::State(None),
            (Some("state"), Some(text), None) => Route::State(Some(topic(text)?)),
            (Some("clients"), None, _) => Route::Clients,
            (Some("clients"), Some(id), None) => match id.parse() {
                Ok(id) => Route::Client(id),
                Err(_) => return Err(Answer::refusal(404, "a client is a number; GET /clients lists them")),
            },
            (Some("healthz"), None, _) => Route::Health,
            (Some("metrics"), None, _) => Route::Metrics,
            _ => Route::Page,
        };
        Ok(route)
    }

    fn methods(&self) -> &'static str {
        match self {
            Route::Events(_) => "GET, HEAD, POST, OPTIONS",
            Route::State(_) => "GET, HEAD, POST, PATCH, PUT, DELETE, OPTIONS",
            Route::Client(_) => "DELETE, OPTIONS",
            Route::Clients | Route::Health | Route::Metrics | Route::Page => "GET, HEAD, OPTIONS",
        }
    }
}

/// What is to be done with a request that is in order.
enum Routed {
    Answer(Answer),
    Stream(Audience),
}

impl Site {
    /// Answers one request; the turn comes back when the connection goes on.
    fn answer(&self, mut request: Request, turn: Turn) -> Option<Turn> {
        let call = match judge(&mut request, &turn, self.max_body) {
            Ok(call) => call,
            Err(unfit) => {
                self.hub.metrics.refusals.add(1);
                turn.refuse(request, Answer::refusal(unfit.status, unfit.text).into_response());
                return None;
            }
        };
        let answer = match self.route(&call) {
            Ok(Routed::Stream(audience)) => match self.hub.admit(call.peer.ip()) {
                Ok(()) => {
                    self.open_stream(call, audience, request, turn);
                    return None;
                }
                Err(full) => Answer::full(full),
            },
            Ok(Routed::Answer(answer)) | Err(answer) => answer,
        };
        if answer.status >= 400 {
            self.hub.metrics.refusals.add(1);
        }
        let version = request.http_version().clone();
        let writer = Patient::new(request.into_writer(), self.write_patience);
        // An answer that was cut short leaves a connection that nobody can make sense of.
        answer.write_to(writer, version, call.method == Method::Head).is_ok().then_some(turn)
    }

    fn route(&self, call: &Call) -> Result<Routed, Answer> {
        use Method::{Delete, Get, Head, Options, Patch, Post, Put};
        let route = Route::of(&call.path)?;
        if call.method == Options {
            return Ok(Routed::Answer(Answer::empty(204).with("Allow", route.methods())));
        }
        if !matches!(call.method, Get | Head) || route == Route::Clients {
            self.check_may_write(call)?;
        }
        let hub = &self.hub;
        let answer = match (route, &call.method) {
            (Route::Events(audience), Get) => return Ok(Routed::Stream(audience)),
            (Route::Events(_), Head) => Answer::stream_head(),
            (Route::Events(audience), Post) => Self::send(hub, audience, call)?,
            (Route::State(topic), Get | Head) => {
                let absent = || {
                    topic.as_ref().map_or_else(|| Answer::empty(404), |topic| document::absent(topic).into())
                };
                let (json, id) = hub.get(topic.as_ref()).ok_or_else(absent)?;
                Answer::json(json).with("ETag", format!("\"{id}\"")).unless(call.if_none_match.as_deref())
            }
            (Route::State(topic), Post | Patch) => {
                let body = document::parse(&call.body)?;
                Answer::published(hub.write(|document| document.patch(topic.as_ref(), body))?)
            }
            (Route::State(topic), Put) => {
                let body = document::parse(&call.body)?;
                Answer::published(hub.write(|document| document.put(topic.as_ref(), body))?)
            }
            (Route::State(topic), Delete) => {
                Answer::published(hub.write(|document| document.delete(topic.as_ref()))?)
            }
            (Route::Clients, Get | Head) => {
                let clients: Vec<String> = hub.clients().iter().map(|client| description(client)).collect();
                Answer::json(format!("[{}]", clients.join(",\n ")))
            }
            (Route::Client(id), Delete) if hub.disconnect(id) => Answer::json(format!("{{\"id\":{id}}}")),
            (Route::Client(id), Delete) => {
                return Err(Answer::refusal(404, format!("no client {id}; GET /clients lists them")));
            }
            (Route::Health, Get | Head) => Answer::text("text/plain", "ok\n".into()),
            (Route::Metrics, Get | Head) => {
                let (clients, history) = hub.size();
                Answer::text("text/plain; version=0.0.4", hub.metrics.text(clients, history))
            }
            (Route::Page, Get | Head) => {
                let page = self.pages.find(&call.path);
                let page = page.ok_or_else(|| Answer::refusal(404, "nothing here; the page is at /"))?;
                Answer::page(page).unless(call.if_none_match.as_deref())
            }
            (route, _) => return Err(Answer::not_allowed(route.methods())),
        };
        Ok(Routed::Answer(answer))
    }

    /// Publishes a one-off event: JSON if the request says so, else text.
    fn send(hub: &Hub, audience: Audience, call: &Call) -> Result<Answer, Answer> {
        let name = match call.parameter("event") {
            Some(name) => EventName::parse(name).map_err(|rule| Answer::refusal(400, rule))?,
            None => EventName::MESSAGE,
        };
        if call.is_json {
            document::parse(&call.body)?;
        }
        let text = String::from_utf8(call.body.clone())
            .map_err(|_| Answer::refusal(400, "the body is not UTF-8; an event's data is"))?;
        let data = if call.is_json { OneOff::Json(text) } else { OneOff::Text(text) };
        Ok(Answer::published(hub.send(audience, name, data)))
    }

    fn open_stream(&self, call: Call, audience: Audience, request: Request, turn: Turn) {
        let header = call.last_event_id.as_deref().filter(|id| !id.is_empty());
        // A browser's own reconnect sends the header, and it is newer than the query its page was made with.
        let last_event_id = header
            .or_else(|| call.parameter("lastEventId"))
            .or_else(|| call.parameter("last_event_id"))
            .and_then(|id| id.parse::<EventId>().ok());
        let chunked = !call.is_http_1_0;
        let headers = STREAM_HEADERS.map(|(name, value)| format!("{name}: {value}\r\n")).concat();
        let framing = if chunked { "Transfer-Encoding: chunked" } else { "Connection: close" };
        let head = format!("HTTP/1.{} 200 OK\r\n{headers}{framing}\r\n\r\n", u8::from(chunked));
        let connection = Connection {
            wire: Box::new(turn.into_stream(request)),
            chunked,
            head: head.into_bytes(),
            address: call.peer,
            user_agent: call.user_agent,
        };
        self.hub.join(audience, last_event_id, connection);
    }

    /// Without a token, writes are for this machine alone, and never for a foreign page in somebody's browser.
    fn check_may_write(&self, call: &Call) -> Result<(), Answer> {
        let refused = |text: &str| Err(Answer::refusal(403, text));
        let host = call.host.as_deref().unwrap_or_default();
        if call.origin.as_deref().is_some_and(|origin| !is_same_origin(origin, host)) {
            return refused("writes from pages of another origin are refused; serve the page from here");
        }
        if self.is_open {
            return Ok(());
        }
        if !call.peer.ip().to_canonical().is_loopback() {
            return refused("writes are for the server's own machine alone; --open lets anybody write");
        }
        if call.is_forwarded || call.is_http_1_0 {
            return refused(
                "this came through a proxy, and writes are for the server's own machine alone; see --open",
            );
        }
        if !is_loopback_host(host) {
            return refused("writes are for this machine alone, under its own name: localhost or 127.0.0.1");
        }
        Ok(())
    }
}

/// Whether a page's origin is the host and port that it sent its request to. The scheme may differ: TLS can end at a
/// proxy.
fn is_same_origin(origin: &str, host: &str) -> bool {
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    authority.is_some_and(|authority| !host.is_empty() && authority.eq_ignore_ascii_case(host))
}

/// Whether a `Host` names this machine to itself. A foreign name can be made to point here, and a browser would not
/// know the difference.
fn is_loopback_host(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if port.is_empty() || port.starts_with(':') => address,
        Some(_) => return false,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_host_is_one_by_name_or_address() {
        let ours = [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]",
            "[::1]:80",
            "a.localhost",
        ];
        for host in ours {
            assert!(is_loopback_host(host), "{host}");
        }
        let foreign = [
            "",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "192.168.0.1",
            "[::2]",
            "[::1]x",
            "0.0.0.0",
            "10.0.0.1:80",
        ];
        for host in foreign {
            assert!(!is_loopback_host(host), "{host}");
        }
    }

    #[test]
    fn an_origin_is_the_same_if_host_and_port_are() {
        assert!(is_same_origin("http://localhost:8080", "localhost:8080"));
        assert!(is_same_origin("https://example.org", "Example.org"));
        for origin in
            ["null", "", "http://localhost", "http://localhost:8081", "http://evil/localhost:8080", "http://"]
        {
            assert!(!is_same_origin(origin, "localhost:8080"), "{origin}");
        }
        assert!(!is_same_origin("http://", ""));
    }

    #[test]
    fn a_path_names_what_it_looks_like() {
        let route = |path: &str| Route::of(path).map_err(|answer| answer.status);
        let kitchen = || Topic::parse("kitchen").ok();
        assert_eq!(route("/events"), Ok(Route::Events(None)));
        assert_eq!(route("/events/kitchen"), Ok(Route::Events(kitchen())));
        assert_eq!(route("/state/kitchen"), Ok(Route::State(kitchen())));
        assert_eq!(route("/state/"), Err(400));
        assert_eq!(route("/state/a b"), Err(400));
        assert_eq!(route("/clients/7"), Ok(Route::Client(7)));
        assert_eq!(route("/clients/x"), Err(404));
        assert_eq!(route("/"), Ok(Route::Page));
        assert_eq!(route("/events/a/b"), Ok(Route::Page));
    }
}
