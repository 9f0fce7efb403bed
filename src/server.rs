//! The server: what each request does and who may do it.
//!
//! `Server::start` puts hub, listener and pages together; the rest answers requests that came through the `door`.
//! The one rule: a refusal says in JSON what was wrong and what would be right, and echoes nothing.

use crossbeam_channel::bounded;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tiny_http::{Method, Request};

use crate::access::Rules;
use crate::answer::{Answer, Patient, STREAM_HEADERS};
use crate::capacity::Capacity;
use crate::config::Config;
use crate::connection::{Patience, Turn};
use crate::document;
use crate::door::{Call, Unfit, has_body_to_come, judge, read_body};
use crate::event::{EventId, EventName, Topic};
use crate::history::{Audience, EventData};
use crate::hub::{Hub, Settings, StartError, Threads};
use crate::lab::Lab;
use crate::listener::{Listener, SocketOptions};
use crate::lock::lock;
use crate::log::Log;
use crate::pages::{Found, Pages, with_slash};
use crate::saver::{self, Saver};
use crate::settings::duration;
use crate::stream::{Arrival, Limits};

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
        let options =
            SocketOptions { send_buffer: config.client_buffer_bytes, unacknowledged: UNACKNOWLEDGED };
        // Those who wait for slow peers leave half of the threads to the others.
        let patience = Patience { head: config.request_timeout, idle: IDLE, slow: capacity.requests / 2 };
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
            write_patience: config.stall,
            lab: config.lab.then(Arc::default),
        });
        let (requests, listener_log) = (capacity.requests, log.clone());
        let listen = Box::new(move |addresses: &[SocketAddr]| {
            let (log, metrics) = (listener_log.clone(), Arc::clone(&site.hub.metrics));
            let site = Arc::clone(&site);
            let handler = Box::new(move |turn, request| site.answer(turn, request));
            let started =
                Listener::start(addresses, &options, patience.clone(), requests, log, metrics, handler);
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

/// What requests are answered with and by.
struct Site {
    hub: Arc<Hub>,
    pages: Pages,
    rules: Rules,
    max_body: usize,
    max_document: usize,
    /// Held by whoever makes a document of a large body: it takes many times the body's memory, for a moment.
    large_bodies: Mutex<()>,
    /// Without progress for so long an answer is given up.
    write_patience: Duration,
    /// With `--lab` only.
    lab: Option<Arc<Lab>>,
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Events(Audience),
    State(Option<Topic>),
    Clients,
    Client(u64),
    Health,
    Metrics,
    Lab,
    /// Of a client or, without one, of the server.
    Fault(Option<u64>, String),
    Page,
}

impl Route {
    fn of(path: &str) -> Result<Route, Answer> {
        let topic = |text: &str| Topic::parse(text).map_err(|rule| Answer::refusal(400, rule));
        let client = |text: &str| {
            let id = text.parse();
            id.map_err(|_| Answer::refusal(404, "a client is a number; GET /clients lists them"))
        };
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let route = match segments[..] {
            ["events"] => Route::Events(None),
            ["events", text] => Route::Events(Some(topic(text)?)),
            ["state"] => Route::State(None),
            ["state", text] => Route::State(Some(topic(text)?)),
            ["clients"] => Route::Clients,
            ["clients", id] => Route::Client(client(id)?),
            ["lab"] => Route::Lab,
            ["lab", "clients", id, fault] => Route::Fault(Some(client(id)?), fault.to_owned()),
            ["lab", "server", fault] => Route::Fault(None, fault.to_owned()),
            ["healthz"] => Route::Health,
            ["metrics"] => Route::Metrics,
            _ => Route::Page,
        };
        Ok(route)
    }

    /// The methods it knows, as `Allow` says them.
    pub fn methods(&self) -> &'static str {
        match self {
            Route::Events(_) => "GET, HEAD, POST, OPTIONS",
            Route::State(_) => "GET, HEAD, POST, PATCH, PUT, DELETE, OPTIONS",
            Route::Client(_) => "DELETE, OPTIONS",
            Route::Fault(..) => "POST, OPTIONS",
            Route::Clients | Route::Health | Route::Metrics | Route::Lab | Route::Page => {
                "GET, HEAD, OPTIONS"
            }
        }
    }
}

impl Site {
    /// Answers one request; the turn comes back when the connection goes on.
    fn answer(&self, turn: Turn, mut request: Request) -> Option<Turn> {
        let unfit = |unfit: Unfit| Answer::refusal(unfit.status, unfit.text);
        let call = match judge(&request, turn.peer()) {
            Ok(call) => call,
            Err(error) => return self.refuse(turn, request, unfit(error)),
        };
        let route = Route::of(&call.path).and_then(|route| self.rules.check(&call, &route).map(|()| route));
        let cors = self.rules.cors_headers(&call, (call.method == Method::Options).then_some(&route));
        let answer = match route {
            // Whoever may not write sends no body here, and cannot keep a thread waiting for it.
            Err(refusal) if has_body_to_come(&request) => {
                return self.refuse(turn, request, refusal.with_all(cors));
            }
            Err(refusal) => refusal,
            Ok(route) => {
                let body = match read_body(&mut request, &turn, self.max_body) {
                    Ok(body) => body,
                    Err(error) => return self.refuse(turn, request, unfit(error).with_all(cors)),
                };
                match route {
                    Route::Events(audience) if call.method == Method::Get => {
                        let refusal = self.lab.as_ref().and_then(|lab| lab.refusal(&call));
                        let admitted = refusal.map_or_else(|| limits(&call), Err).and_then(|limits| {
                            self.hub.admit(call.peer.ip()).map_err(Answer::full).map(|()| limits)
                        });
                        match admitted {
                            Ok(limits) => {
                                self.open_stream(call, audience, limits, &cors, request, turn);
                                return None;
                            }
                            Err(refusal) => refusal,
                        }
                    }
                    route => self.respond(&call, route, &body).unwrap_or_else(|refusal| refusal),
                }
            }
        };
        if answer.status >= 400 {
            self.hub.metrics.refusals.add(1);
        }
        let version = request.http_version().clone();
        let writer = Patient::new(request.into_writer(), self.write_patience, turn.slow_place());
        let answered = answer.with_all(cors).write_to(writer, version, call.method == Method::Head);
        // An answer that was given up half-way leaves a connection that nobody can make sense of. One that could not be
        // written leaves none, and the turn may by now look like that of a later one from the same address.
        let gave_up = answered.is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::UnexpectedEof)
        });
        (!gave_up && !call.is_last).then_some(turn)
    }

    /// Answers and closes: something of the request was not read.
    fn refuse(&self, turn: Turn, request: Request, answer: Answer) -> Option<Turn> {
        self.hub.metrics.refusals.add(1);
        turn.refuse(request, answer.into_response());
        None
    }

    fn respond(&self, call: &Call, route: Route, body: &[u8]) -> Result<Answer, Answer> {
        use Method::{Delete, Get, Head, Options, Patch, Post, Put};
        /// At which 64 bodies at once are no great matter.
        const LARGE_BODY: usize = 16 << 10;
        let hub = &self.hub;
        let _one_at_a_time = (body.len() > LARGE_BODY).then(|| lock(&self.large_bodies));
        let answer = match (route, &call.method) {
            // A page asks so whether there is a lab: a 404 would be an error in the browser's console.
            (Route::Lab | Route::Fault(..), Options) if self.lab.is_none() => {
                Answer::empty(204).with("Allow", "OPTIONS")
            }
            (route, Options) => Answer::empty(204).with("Allow", route.methods()),
            (Route::Events(_), Head) => Answer::stream_head(),
            (Route::Events(audience), Post) => self.send(audience, call, body)?,
            (Route::State(topic), Get | Head) => {
                let tag = |id: EventId| format!("\"{id}\"");
                // Asked first: a document that the client has need not be written out.
                let known = Answer::empty(200)
                    .with("ETag", tag(hub.changed(topic.as_ref()).ok_or_else(document::absent)?));
                let known = known.unless(call.if_none_match.as_deref());
                if known.status == 304 {
                    return Ok(known);
                }
                let (json, id) = hub.get(topic.as_ref()).ok_or_else(document::absent)?;
                Answer::json(json).with("ETag", tag(id))
            }
            (Route::State(topic), Post | Patch) => {
                let body = document::parse(body, self.max_document)?;
                Answer::published(hub.write(|document| document.patch(topic.as_ref(), body))?)
            }
            (Route::State(topic), Put) => {
                let body = document::parse(body, self.max_document)?;
                Answer::published(hub.write(|document| document.put(topic.as_ref(), body))?)
            }
            (Route::State(topic), Delete) => {
                Answer::published(hub.write(|document| document.delete(topic.as_ref()))?)
            }
            (Route::Clients, Get | Head) => {
                let clients: Vec<String> =
                    hub.clients().iter().map(|client| client.describe().to_json()).collect();
                Answer::json(format!("[{}]", clients.join(",\n ")))
            }
            (Route::Client(id), Delete) if hub.disconnect(id) => Answer::json(format!("{{\"id\":{id}}}")),
            (Route::Client(_), Delete) => {
                return Err(Answer::refusal(404, "no such client; GET /clients lists them"));
            }
            (Route::Lab, Get | Head) => self.lab().map(|_| Lab::list())?,
            (Route::Fault(client, name), Post) => self.lab()?.switch_on(hub, client, &name, call)?,
            (Route::Health, Get | Head) => Answer::text("text/plain", "ok\n".into()),
            (Route::Metrics, Get | Head) => {
                let (clients, history) = hub.size();
                Answer::text("text/plain; version=0.0.4", hub.metrics.text(clients, history))
            }
            (Route::Page, Get | Head) => {
                let found = self.pages.find(&call.path);
                match found.ok_or_else(|| Answer::refusal(404, "nothing here; the page is at /"))? {
                    Found::Page(page) => Answer::page(page).unless(call.if_none_match.as_deref()),
                    Found::Folder => Answer::moved(with_slash(&call.target)),
                }
            }
            (route, _) => return Err(Answer::not_allowed(route.methods())),
        };
        Ok(answer)
    }

    fn lab(&self) -> Result<&Arc<Lab>, Answer> {
        self.lab.as_ref().ok_or_else(|| Answer::refusal(404, "no lab here; statecast --lab has one"))
    }

    /// Publishes a one-off event: JSON if the request says so, else text.
    fn send(&self, audience: Audience, call: &Call, body: &[u8]) -> Result<Answer, Answer> {
        let name = match call.parameter("event") {
            Some(name) => EventName::parse(name).map_err(|rule| Answer::refusal(400, rule))?,
            None => EventName::MESSAGE,
        };
        if call.is_json {
            document::parse(body, self.max_document)?;
        }
        let text = String::from_utf8(body.to_vec())
            .map_err(|_| Answer::refusal(400, "the body is not UTF-8; an event's data is"))?;
        let data = if call.is_json { EventData::json(text) } else { text.into() };
        Ok(Answer::published(self.hub.send(audience, name, data)?))
    }

    fn open_stream(
        &self,
        call: Call,
        audience: Audience,
        limits: Limits,
        cors: &[(&'static str, String)],
        request: Request,
        turn: Turn,
    ) {
        /// Of a client's name. It is kept for as long as the client is there.
        const MAX_USER_AGENT: usize = 256;
        let header = call.last_event_id.as_deref().filter(|id| !id.is_empty());
        // A browser's own reconnect sends the header, and it is newer than the query its page was made with.
        let last_event_id = header
            .or_else(|| call.parameter("lastEventId"))
            .or_else(|| call.parameter("last_event_id"))
            .and_then(|id| id.parse::<EventId>().ok());
        let chunked = !call.is_http_1_0;
        let cors = cors.iter().map(|(name, value)| (*name, value.as_str()));
        let headers =
            STREAM_HEADERS.into_iter().chain(cors).map(|(name, value)| format!("{name}: {value}\r\n"));
        let headers: String = headers.collect();
        let framing = if chunked { "Transfer-Encoding: chunked" } else { "Connection: close" };
        let head = format!("HTTP/1.{} 200 OK\r\n{headers}{framing}\r\n\r\n", u8::from(chunked));
        let user_agent = call.user_agent.map(|mut name| {
            // Headers are ASCII: any place is one between letters.
            name.truncate(MAX_USER_AGENT);
            name
        });
        let arrival = Arrival {
            wire: Box::new(turn.into_stream(request)),
            chunked,
            head: head.into_bytes(),
            address: call.peer,
            user_agent,
            limits,
        };
        let arrival = match &self.lab {
            Some(lab) => lab.wrap(arrival),
            None => arrival,
        };
        self.hub.join(audience, last_event_id, arrival);
    }
}

/// When the stream is to end by itself.
fn limits(call: &Call) -> Result<Limits, Answer> {
    let refused = |text: String| Answer::refusal(400, text);
    let events = call.parameter("max_events").map(|text| {
        let count = text.parse().ok().filter(|count| *count > 0);
        count.ok_or_else(|| refused("max_events must be a number from 1".into()))
    });
    let idle = call
        .parameter("idle")
        .map(|text| duration(text).map_err(|right| refused(format!("idle must be {right}"))));
    Ok(Limits { events: events.transpose()?, idle: idle.transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(route("/lab/clients/7/cut"), Ok(Route::Fault(Some(7), "cut".into())));
        assert_eq!(route("/lab/server/refuse"), Ok(Route::Fault(None, "refuse".into())));
        assert_eq!(route("/"), Ok(Route::Page));
        assert_eq!(route("/events/a/b"), Ok(Route::Page));
    }
}
