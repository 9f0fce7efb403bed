//! What each request does.
//!
//! The one rule: a refusal says in JSON what was wrong and what would be right, and echoes nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::config::Config;
use crate::document::{self, Change};
use crate::http::{Answer, Call, Exchange, MERGE_PATCH, Method};
use crate::hub::Hub;
use crate::hub::client::{Arrival, Until};
use crate::hub::draft::{Draft, tag};
use crate::hub::history::{Audience, EventData};
use crate::lock::lock;
use crate::seats::Seat;
use crate::server::answers;
use crate::server::lab::Lab;
use crate::server::pages::{Found, Pages, with_slash};
use crate::server::route::Route;
use crate::sse::event::{EventId, EventName, Topic};
use crate::units::duration;

/// What requests are answered with and by.
pub(super) struct Site {
    pub hub: Arc<Hub>,
    pages: Pages,
    config: Config,
    /// Set while the document cannot be saved.
    is_failing: Arc<AtomicBool>,
    /// Held by whoever makes a document of a large body: it takes many times the body's memory, for a moment.
    large_bodies: Mutex<()>,
    /// With `--lab` only.
    lab: Option<Arc<Lab>>,
}

/// What a call comes to.
enum Reply {
    Answer(Answer),
    Stream(Audience, Until, Seat),
}

impl Site {
    pub fn new(hub: Arc<Hub>, pages: Pages, is_failing: Arc<AtomicBool>, config: Config) -> Site {
        let lab = config.lab.then(Arc::default);
        Site { hub, pages, config, is_failing, large_bodies: Mutex::new(()), lab }
    }

    /// Answers one request, or begins a stream.
    pub fn handle(&self, mut exchange: Exchange) {
        let call = exchange.call();
        let route = Route::of(&call.path).and_then(|route| {
            self.config.check(call, &route)?;
            check_kind_of_body(call, &route)?;
            Ok(route)
        });
        let cors = self.config.cors_headers(call, (call.method == Method::Options).then_some(&route));
        let reply = route.and_then(|route| {
            let body = exchange.body(self.config.max_body_bytes)?;
            self.respond(exchange.call(), route, &body)
        });
        match reply {
            Ok(Reply::Stream(audience, until, seat)) => {
                self.open_stream(exchange, audience, (until, seat), cors);
            }
            Ok(Reply::Answer(answer)) | Err(answer) => exchange.answer(answer.with_all(cors)),
        }
    }

    /// The reply to a call that may be made. `body` is empty where none was sent.
    fn respond(&self, call: &Call, route: Route, body: &[u8]) -> Result<Reply, Answer> {
        use Method::{Delete, Get, Head, Options, Patch, Post, Put};
        let hub = &self.hub;
        if matches!(route, Route::Events(_)) {
            check_parameters(call)?;
        }
        let answer = match (route, &call.method) {
            (route, Options) => self.options(call, &route),
            (Route::Events(audience), Get) => return self.admit(call, audience),
            (Route::Events(_), Head) => answers::stream_head(),
            (Route::Events(audience), Post) => self.send(audience, call, body)?,
            (Route::State(topic), Get | Head) => self.state(topic.as_ref(), call)?,
            (Route::State(topic), Post | Patch | Put | Delete) => self.change(topic.as_ref(), call, body)?,
            (Route::Clients, Get | Head) => {
                let clients: Vec<String> =
                    hub.clients().iter().map(|client| answers::client_json(&client.describe())).collect();
                Answer::json(format!("[{}]", clients.join(",\n ")))
            }
            (Route::Client(id), Delete) if hub.disconnect(id) => Answer::json(format!("{{\"id\":{id}}}")),
            (Route::Client(_), Delete) => {
                return Err(Answer::refusal(404, "no such client; GET /clients lists them"));
            }
            (Route::Lab, Get | Head) => self.lab().map(|_| Lab::list())?,
            (Route::Fault(client, name), Post) => self.lab()?.switch_on(hub, client, &name, call)?,
            (Route::Health, Get | Head) if self.is_failing.load(Ordering::Relaxed) => {
                return Err(Answer::refusal(503, "the document cannot be saved; the log says why"));
            }
            (Route::Health, Get | Head) => Answer::text("text/plain", "ok\n".into()),
            (Route::Metrics, Get | Head) => {
                let (clients, history) = hub.size();
                Answer::text("text/plain; version=0.0.4", hub.metrics.text(clients, history))
            }
            (Route::Page, Get | Head) => match self.pages.find(&call.path) {
                Some(Found::Page(page)) => answers::given(answers::page(page), &call.conditions),
                Some(Found::Folder) => answers::moved(with_slash(&call.target)),
                None => return Err(Answer::refusal(404, "nothing here; the page is at /")),
            },
            (route, _) => return Err(answers::not_allowed(route.methods())),
        };
        Ok(Reply::Answer(answer))
    }

    /// What a path knows. A page asks so what it may do, because a 401 or a 404 would be an error in the browser's console.
    fn options(&self, call: &Call, route: &Route) -> Answer {
        let refusal = match route {
            Route::Lab | Route::Fault(..) => self.lab().err(),
            Route::Clients => self.config.check_writer(call).err(),
            Route::Events(_) => self.config.check_reader(call).err(),
            _ => None,
        };
        let methods = match (route, &refusal) {
            (Route::Events(_), Some(_)) => "POST, OPTIONS",
            (_, Some(_)) => "OPTIONS",
            (route, None) => route.methods(),
        };
        let answer = Answer::empty(204).with("Allow", methods);
        match (route, refusal) {
            (Route::State(_), _) => answer.with("Accept-Patch", MERGE_PATCH),
            (_, Some(Answer { status: 401, .. })) => answer.with("WWW-Authenticate", "Bearer"),
            _ => answer,
        }
    }

    /// Keeps a place for a stream.
    fn admit(&self, call: &Call, audience: Audience) -> Result<Reply, Answer> {
        if let Some(refusal) = self.lab.as_ref().and_then(|lab| lab.refusal(call)) {
            return Err(refusal);
        }
        let until = until(call)?;
        let seat = self.hub.admit(call.peer.ip()).map_err(answers::full)?;
        Ok(Reply::Stream(audience, until, seat))
    }

    fn lab(&self) -> Result<&Arc<Lab>, Answer> {
        self.lab.as_ref().ok_or_else(|| Answer::refusal(404, "no lab here; statecast --lab has one"))
    }

    /// The document, or one topic, as it is.
    fn state(&self, topic: Option<&Topic>, call: &Call) -> Result<Answer, Answer> {
        // Asked first: a document that the client has need not be written out.
        let changed = self.hub.read(|document| document.changed(topic)).ok_or_else(document::absent)?;
        let known = answers::given(Answer::empty(200).with("ETag", tag(changed)), &call.conditions);
        if known.status != 200 {
            return Ok(known);
        }
        let (json, id) = self.hub.read(|document| document.get(topic)).ok_or_else(document::absent)?;
        Ok(Answer::json(json).with("ETag", tag(id)))
    }

    /// Changes the document, or one topic, if the request's conditions hold. They are judged under the lock of the
    /// write: of two writers that name one tag, one wins.
    fn change(&self, topic: Option<&Topic>, call: &Call, body: &[u8]) -> Result<Answer, Answer> {
        /// At which 64 bodies at once are no great matter.
        const LARGE_BODY: usize = 16 << 10;
        let _one_at_a_time = (body.len() > LARGE_BODY).then(|| lock(&self.large_bodies));
        let parse = || document::parse(body, self.config.max_document_bytes);
        let change = match call.method {
            Method::Delete => Change::Delete,
            Method::Put => Change::Put(parse()?),
            _ => Change::Patch(parse()?),
        };
        let draft = Draft::Change(topic.cloned(), change, call.conditions.clone());
        Ok(answers::published(self.hub.publish(draft)?))
    }

    /// Publishes a one-off event: JSON if the request says so, else text.
    fn send(&self, audience: Audience, call: &Call, body: &[u8]) -> Result<Answer, Answer> {
        let name = match call.parameter("event") {
            Some(name) => EventName::parse(name).map_err(|rule| Answer::refusal(400, rule))?,
            None => EventName::MESSAGE,
        };
        // An event has no tag that one could name.
        call.conditions.judge_write(Some("")).map_err(answers::failed)?;
        if call.is_json {
            document::parse(body, self.config.max_document_bytes)?;
        }
        let text = String::from_utf8(document::without_mark(body).to_vec()).map_err(|_| {
            let text = "the body is not UTF-8; an event's data is, and compression is not spoken";
            Answer::refusal(400, text)
        })?;
        let data = EventData { text, is_json: call.is_json };
        Ok(answers::published(self.hub.publish(Draft::OneOff(audience, name, data))?))
    }

    fn open_stream(
        &self,
        exchange: Exchange,
        audience: Audience,
        (until, seat): (Until, Seat),
        cors: Vec<(&'static str, String)>,
    ) {
        /// Of what a client says of itself. It is kept for as long as the client is there.
        const MAX_SAID: usize = 256;
        let call = exchange.call();
        let header = call.last_event_id.as_deref().filter(|id| !id.is_empty());
        // A browser's own reconnect sends the header, and it is newer than the query its page was made with.
        let last_event_id = header
            .or_else(|| call.parameter("lastEventId"))
            .or_else(|| call.parameter("last_event_id"))
            .and_then(|id| id.parse::<EventId>().ok());
        // Headers are ASCII: any place is one between letters.
        let said =
            |text: &Option<String>| text.as_deref().map(|text| text[..text.len().min(MAX_SAID)].to_owned());
        let (user_agent, forwarded_for) = (said(&call.user_agent), said(&call.forwarded_for));
        let (chunked, address) = (!call.is_http_1_0, call.peer);
        let (wire, head) = exchange.stream(&answers::stream_head().with_all(cors));
        let arrival = Arrival { wire, chunked, head, address, user_agent, forwarded_for, until, seat };
        let arrival = match &self.lab {
            Some(lab) => lab.wrap(arrival),
            None => arrival,
        };
        self.hub.join(audience, last_event_id, arrival);
    }
}

/// Refuses a body that would be taken for something else.
fn check_kind_of_body(call: &Call, route: &Route) -> Result<(), Answer> {
    use Method::{Delete, Patch, Post, Put};
    if call.is_encoded && matches!(call.method, Post | Patch | Put | Delete) {
        let text = "compression is not spoken; send the body as it is, without Content-Encoding";
        return Err(Answer::refusal(415, text).with("Accept-Encoding", "identity"));
    }
    let is_change = matches!(route, Route::State(_)) && matches!(call.method, Post | Patch | Put);
    if is_change && call.is_foreign_patch {
        let text = format!("the one patch format that is spoken is {MERGE_PATCH}, RFC 7396");
        return Err(Answer::refusal(415, text).with("Accept-Patch", MERGE_PATCH));
    }
    Ok(())
}

/// Refuses a parameter that is none: a mistyped one would be ignored, and nobody would know why.
fn check_parameters(call: &Call) -> Result<(), Answer> {
    let (known, text): (&[&str], _) = match call.method {
        Method::Get | Method::Head => (
            // The lab's redirects lead to the last one.
            &["max_events", "idle", "lastEventId", "last_event_id", "token", "redirected"],
            "a stream has the parameters max_events, idle, lastEventId and token",
        ),
        Method::Post => (&["event"], "an event has the parameter event, its name"),
        _ => return Ok(()),
    };
    let is_known = |(name, _): &(String, String)| known.contains(&name.as_str());
    if call.query.iter().all(is_known) { Ok(()) } else { Err(Answer::refusal(400, text)) }
}

/// When the stream is to end by itself.
fn until(call: &Call) -> Result<Until, Answer> {
    let refused = |text: String| Answer::refusal(400, text);
    let events = call.parameter("max_events").map(|text| {
        let count = text.parse().ok().filter(|count| *count > 0);
        count.ok_or_else(|| refused("max_events must be a number from 1".into()))
    });
    let idle = call
        .parameter("idle")
        .map(|text| duration(text).map_err(|right| refused(format!("idle must be {right}"))));
    Ok(Until { events: events.transpose()?, idle: idle.transpose()? })
}
