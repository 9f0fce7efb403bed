//! The answers of this server, and what it says of each refusal.

use serde_json::Value;

use crate::clock::random_between;
use crate::document::{Refusal, to_json};
use crate::http::{Answer, Conditions, Content, Failed};
use crate::hub::Full;
use crate::hub::client::ClientStatus;
use crate::server::pages::Page;
use crate::sse::event::{EventId, Topic};

/// All of it from here: no inline script, nothing from elsewhere, in nobody's frame.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What a publisher gets: the event's id.
pub(super) fn published(id: EventId) -> Answer {
    Answer::json(format!("{{\"id\":\"{id}\"}}"))
}

/// A condition of the request does not hold.
pub(super) fn failed(condition: Failed) -> Answer {
    let text = match condition {
        Failed::IfMatch => {
            "what is there is not what If-Match names; GET it anew, and send its ETag, quotes included"
        }
        Failed::IfNoneMatch => "what is there is what If-None-Match rules out; nothing was changed",
    };
    Answer::refusal(412, text)
}

/// Who asks is not known.
pub(super) fn unauthorized(text: &str) -> Answer {
    Answer::refusal(401, text).with("WWW-Authenticate", "Bearer")
}

/// No room for another client now.
pub(super) fn full(full: Full) -> Answer {
    let (status, text) = match full {
        Full::Server => (503, "the server has all the clients it can carry; try again later"),
        Full::Address => (429, "this address has all the clients it may have; close one"),
        Full::Stopping => (503, "the server is stopping; try again later"),
    };
    // At random, or all would come back together.
    Answer::refusal(status, text).with("Retry-After", random_between(5, 15).to_string())
}

/// The path is there, the method is not.
pub(super) fn not_allowed(methods: &str) -> Answer {
    Answer::refusal(405, format!("this path knows {methods}")).with("Allow", methods)
}

/// The head of a stream.
pub(super) fn stream_head() -> Answer {
    Answer { content: Content::Stream, ..Answer::empty(200) }
        // Without the charset some clients read text as Latin-1 (Python's requests).
        .with("Content-Type", "text/event-stream; charset=utf-8")
        .with("Cache-Control", "no-store, no-transform")
        // nginx would keep events back until it has a buffer full of them.
        .with("X-Accel-Buffering", "no")
}

/// A page, which the browser keeps but asks about each time.
pub(super) fn page(page: Page) -> Answer {
    Answer { content: page.content, ..Answer::empty(200) }
        .with("Content-Type", page.content_type)
        .with("Cache-Control", "no-cache")
        .with("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        .with("X-Content-Type-Options", "nosniff")
        .with("Referrer-Policy", "no-referrer")
        .with("ETag", page.tag)
}

/// The same is elsewhere. The browser asks again each time, because a folder can become a file.
pub(super) fn moved(location: String) -> Answer {
    Answer::empty(301).with("Location", location).with("Cache-Control", "no-cache")
}

/// This answer, or 304 if the client has it already, or 412 if it wants another one.
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
    let user_agent = to_json(&Value::from(client.user_agent.as_deref()));
    format!(
        r#"{{"id":{id},"address":{address},"topic":{topic},"state":"{state}","connected_at":{connected_at_ms},"last_event_id":{last_event_id},"events":{events},"bytes":{bytes},"user_agent":{user_agent}}}"#
    )
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Answer {
        let status = match &refusal {
            Refusal::Invalid(_) => 400,
            Refusal::Absent(_) => 404,
            Refusal::TooLarge(_) => 413,
            Refusal::Stopping => return full(Full::Stopping),
        };
        Answer::refusal(status, refusal.to_string())
    }
}
