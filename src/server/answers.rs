//! The answers of this server, and the words of its refusals.

use serde_json::Value;

use crate::clock::random_between;
use crate::conditions::{Conditions, Failed};
use crate::document::{Refusal, to_json};
use crate::http::{Answer, Content};
use crate::hub::client::ClientStatus;
use crate::seats::Full;
use crate::server::pages::Page;
use crate::sse::event::{EventId, Topic};

/// The built-in page's: everything comes from this server, no inline script, nothing from elsewhere. No page may frame it.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The policy of a folder's pages: they are their owner's, so the scripts and styles in them run. Nothing comes from
/// elsewhere. No handler in an attribute runs, because a value that was published can bring one into a page.
const POLICY_OF_A_FOLDER: &str = "default-src 'self'; script-src 'self' 'unsafe-inline'; script-src-attr 'none'; \
     style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'self'";

/// The answer to a publisher: the event's id.
pub(super) fn published(id: EventId) -> Answer {
    Answer::json(format!("{{\"id\":\"{id}\"}}"))
}

/// The refusal where a condition of the request does not hold.
pub(super) fn failed(condition: Failed) -> Answer {
    Answer::refusal(412, condition.text())
}

/// The refusal where the right token is missing.
pub(super) fn unauthorized(text: &str) -> Answer {
    Answer::refusal(401, text).with("WWW-Authenticate", "Bearer")
}

/// The refusal where there is no seat for another client.
pub(super) fn full(full: Full) -> Answer {
    let (status, text) = match full {
        Full::Server => (503, "the server has all the clients it can carry; try again later"),
        Full::Address => (429, "this address has all the clients it may have; close one"),
        Full::Stopping => (503, "the server is stopping; try again later"),
    };
    // At random, so that they do not all come back together.
    Answer::refusal(status, text).with("Retry-After", random_between(5, 15).to_string())
}

/// The refusal where the path does not know the method.
pub(super) fn not_allowed(methods: &str) -> Answer {
    Answer::refusal(405, format!("this path knows {methods}")).with("Allow", methods)
}

/// The head of a stream.
pub(super) fn stream_head() -> Answer {
    Answer { content: Content::Stream, ..Answer::empty(200) }
        // Without the charset some clients, such as Python's requests, read text as Latin-1.
        .with("Content-Type", "text/event-stream; charset=utf-8")
        .with("Cache-Control", "no-store, no-transform")
        // Without this nginx keeps events back until they fill a buffer.
        .with("X-Accel-Buffering", "no")
}

/// A page. The browser keeps it, and asks each time whether it has changed.
pub(super) fn page(page: Page) -> Answer {
    let policy = match page.content {
        Content::File { .. } => POLICY_OF_A_FOLDER,
        _ => CONTENT_SECURITY_POLICY,
    };
    Answer { content: page.content, ..Answer::empty(200) }
        .with("Content-Type", page.content_type)
        .with("Cache-Control", "no-cache")
        .with("Content-Security-Policy", policy)
        .with("X-Content-Type-Options", "nosniff")
        .with("Referrer-Policy", "no-referrer")
        .with("ETag", page.tag)
}

/// The same is elsewhere. The browser asks again each time, because a folder can become a file.
pub(super) fn moved(location: String) -> Answer {
    Answer::empty(301).with("Location", location).with("Cache-Control", "no-cache")
}

/// The answer, or 304 if the client has it already, or 412 if the client wants another one.
pub(super) fn given(answer: Answer, conditions: &Conditions) -> Answer {
    let tag = answer.headers.iter().find(|(name, _)| *name == "ETag").map_or("", |(_, tag)| tag);
    match conditions.judge_read(tag) {
        Ok(()) => answer,
        Err(Failed::IfNoneMatch) => Answer { status: 304, content: Content::Bytes(Vec::new()), ..answer },
        Err(condition) => failed(condition),
    }
}

/// A client as `GET /clients` lists it.
pub(super) fn client_json(client: &ClientStatus) -> String {
    let ClientStatus { id, connected_at_ms, events, bytes, .. } = client;
    let address = to_json(&Value::from(client.address.to_string()));
    let topic = to_json(&Value::from(client.topic.as_ref().map(Topic::as_str)));
    let state = client.state();
    let last_event_id = to_json(&Value::from(client.last_event_id.map(|id| id.to_string())));
    let [user_agent, forwarded_for] =
        [&client.user_agent, &client.forwarded_for].map(|text| to_json(&Value::from(text.as_deref())));
    format!(
        r#"{{"id":{id},"address":{address},"topic":{topic},"state":"{state}","connected_at":{connected_at_ms},"last_event_id":{last_event_id},"events":{events},"bytes":{bytes},"user_agent":{user_agent},"forwarded_for":{forwarded_for}}}"#
    )
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Answer {
        let status = match &refusal {
            Refusal::Invalid(_) => 400,
            Refusal::Absent(_) => 404,
            Refusal::Unmet(_) => 412,
            Refusal::TooLarge(_) => 413,
            Refusal::Stopping => return full(Full::Stopping),
        };
        Answer::refusal(status, refusal.to_string())
    }
}
