//! A live copy of the document: `init` replaces it, every `update` is merged into it.
//!
//! `tail` prints the document of a [`Follower`]. A [`Replica`] keeps a follower current in a thread of its own. The one rule:
//! a copy is never silently wrong. An event that does not fit the document makes the source start over.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::event_source::{EventSource, EventSourceHandle, Reason};
use crate::document::{merge, to_json};
use crate::lock::lock;
use crate::sse::event::EventId;
use crate::sse::parser::Event;

/// The document of a server, or one topic of it, as of the last event that came.
///
/// ```
/// use statecast::{Config, EventSource, Replica, Server};
/// use std::time::Duration;
///
/// let server = Server::start(Config::default())?;
/// let url = format!("http://{}", server.address());
/// let replica = Replica::follow(EventSource::new(&format!("{url}/events"))?)?;
/// ureq::put(format!("{url}/state/kitchen")).send(r#"{"temp":21.5}"#).unwrap();
/// let is_warm = |document: &serde_json::Value| document["kitchen"]["temp"].as_f64() > Some(20.0);
/// let document = replica.wait_until(is_warm, Duration::from_secs(10))?;
/// assert_eq!(*document, serde_json::json!({"kitchen": {"temp": 21.5}}));
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// It follows the source until it is dropped, or the source has closed.
pub struct Replica {
    copy: Arc<LiveCopy>,
    source: EventSourceHandle,
    thread: Option<JoinHandle<()>>,
}

/// What a replica and its thread share.
#[derive(Default)]
struct LiveCopy {
    follower: Mutex<Follower>,
    changed: Condvar,
}

/// The error of [`Replica::wait_until`]: the document was not so in time, or the source has closed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NotSo {
    /// The document at last. `None` if none has come.
    pub document: Option<Arc<Value>>,
    /// Why the source last connected anew, or has closed.
    pub reason: Option<Reason>,
    /// The source has closed, so that there was no use in waiting longer.
    pub has_ended: bool,
}

impl fmt::Display for NotSo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.has_ended { "the stream has ended" } else { "it was not so in time" })?;
        match &self.document {
            Some(document) => write!(f, "; the document is {}", to_json(document))?,
            None => f.write_str("; no document has come")?,
        }
        match &self.reason {
            Some(reason) => write!(f, "; of the last connection: {reason}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for NotSo {}

impl From<NotSo> for io::Error {
    fn from(not_so: NotSo) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, not_so)
    }
}

impl Replica {
    /// Keeps a copy of the document or topic that a source streams, from the present on.
    ///
    /// # Errors
    /// The system starts no thread.
    pub fn follow(mut source: EventSource) -> io::Result<Replica> {
        let copy = Arc::<LiveCopy>::default();
        let handle = source.handle();
        let for_thread = Arc::clone(&copy);
        let run = move || {
            while let Some(event) = source.next() {
                let followed = lock(&for_thread.follower).follow(&event);
                match followed {
                    Ok(false) => {}
                    Ok(true) => for_thread.changed.notify_all(),
                    Err(why) => source.start_over(why),
                }
            }
            lock(&for_thread.follower).has_ended = true;
            for_thread.changed.notify_all();
        };
        let thread = thread::Builder::new().name("replica".into()).spawn(run)?;
        Ok(Replica { copy, source: handle, thread: Some(thread) })
    }

    /// The document now. `None` until the first has come. An absent topic is `null`.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Value>> {
        lock(&self.copy.follower).document.clone()
    }

    /// The id of the last change of the document.
    #[must_use]
    pub fn last_event_id(&self) -> Option<EventId> {
        lock(&self.copy.follower).last_event_id
    }

    /// A handle on the source: its state, and why its last connection ended.
    #[must_use]
    pub fn source(&self) -> &EventSourceHandle {
        &self.source
    }

    /// Waits until the predicate is true of the document, and returns that document. The predicate sees the present
    /// document, and then later ones. It may miss some, if they come faster than it looks.
    ///
    /// # Errors
    /// The document was not so in time, or the source has closed.
    pub fn wait_until(
        &self,
        mut predicate: impl FnMut(&Value) -> bool,
        timeout: Duration,
    ) -> Result<Arc<Value>, NotSo> {
        let start = Instant::now();
        let mut seen = 0;
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            let is_old = |follower: &mut Follower| follower.changes == seen && !follower.has_ended;
            let waited = self.copy.changed.wait_timeout_while(lock(&self.copy.follower), left, is_old);
            let follower = waited.unwrap_or_else(PoisonError::into_inner).0;
            let (document, has_ended) = (follower.document.clone(), follower.has_ended);
            if follower.changes == seen {
                return Err(NotSo { document, reason: self.source.reason(), has_ended });
            }
            seen = follower.changes;
            drop(follower);
            if let Some(document) = document.filter(|document| predicate(document)) {
                return Ok(document);
            }
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.source.close();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// A document, event by event.
#[derive(Default)]
pub(crate) struct Follower {
    /// The document, changed in place unless somebody holds it.
    pub document: Option<Arc<Value>>,
    last_event_id: Option<EventId>,
    changes: u64,
    /// An update may come next: there was an `init`, and neither a `hello` nor a failure after it.
    is_followed: bool,
    /// No event will come.
    has_ended: bool,
}

impl Follower {
    /// Applies an event, and says whether the document has changed.
    ///
    /// # Errors
    /// Why the event does not follow. The document stays as it was, and takes no update before the next `init`.
    pub fn follow(&mut self, event: &Event) -> Result<bool, String> {
        let result = self.apply(event);
        self.is_followed &= result.is_ok();
        result
    }

    fn apply(&mut self, event: &Event) -> Result<bool, String> {
        let Event { name, data, id } = event;
        let parse = || {
            serde_json::from_str::<Value>(data).map_err(|error| format!("{name} {id} is no JSON: {error}"))
        };
        let is_init = match name.as_str() {
            "hello" => {
                let is_replay = parse()?["resume"] == "replay";
                if is_replay && !self.is_followed {
                    return Err("the server goes on from a document that is not here".to_owned());
                }
                self.is_followed = is_replay;
                return Ok(false);
            }
            "init" => true,
            "update" => false,
            _ => return Ok(false),
        };
        let (value, id) = (parse()?, id.parse().map_err(|error| format!("{name}: {error}"))?);
        match (&mut self.document, self.last_event_id) {
            (document, _) if is_init => *document = Some(Arc::new(value)),
            (Some(_), Some(last)) if self.is_followed && id <= last => {
                return Err(format!("update {id} came after {last}"));
            }
            (Some(document), _) if self.is_followed => merge(Arc::make_mut(document), value),
            _ => return Err(format!("update {id} came before init")),
        }
        self.last_event_id = Some(id);
        self.is_followed = true;
        self.changes += 1;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: &str, id: &str) -> Event {
        Event { name: name.into(), data: data.into(), id: id.into() }
    }

    fn hello(resume: &str) -> Event {
        event("hello", &json!({"client": 1, "resume": resume}).to_string(), "")
    }

    #[test]
    fn init_replaces_and_update_merges() {
        let mut follower = Follower::default();
        let steps = [
            (hello("init"), false, None),
            (event("init", r#"{"a":1}"#, "5-0"), true, Some(json!({"a": 1}))),
            (event("update", r#"{"b":{"c":2}}"#, "6-0"), true, Some(json!({"a": 1, "b": {"c": 2}}))),
            (event("heartbeat", "7", "6-0"), false, Some(json!({"a": 1, "b": {"c": 2}}))),
            (hello("replay"), false, Some(json!({"a": 1, "b": {"c": 2}}))),
            (event("update", r#"{"a":null}"#, "6-1"), true, Some(json!({"b": {"c": 2}}))),
            (hello("init"), false, Some(json!({"b": {"c": 2}}))),
            // A server whose clock was set back.
            (event("init", "null", "2-0"), true, Some(json!(null))),
            (event("update", "3", "2-1"), true, Some(json!(3))),
        ];
        for (event, is_new, document) in steps {
            assert_eq!(follower.follow(&event), Ok(is_new), "{event:?}");
            assert_eq!(follower.document.as_deref(), document.as_ref(), "{event:?}");
        }
    }

    #[test]
    fn what_cannot_follow_is_refused_and_changes_nothing() {
        let init = event("init", r#"{"a":1}"#, "5-0");
        let table = [
            (vec![], event("update", "{}", "6-0"), "update 6-0 came before init"),
            (vec![], hello("replay"), "the server goes on from a document that is not here"),
            (vec![&init], event("update", "{\"a\":2}", "5-0"), "update 5-0 came after 5-0"),
            (vec![&init], event("update", "{\"a\":2}", "4-9"), "update 4-9 came after 5-0"),
            (
                vec![&init],
                event("update", "{\"a\":2}", ""),
                "update: an event id looks like 1763797512345-482913",
            ),
            (
                vec![&init],
                event("update", "{\"a\":", "6-0"),
                "update 6-0 is no JSON: EOF while parsing a value at line 1 column 5",
            ),
            (vec![&init], event("init", "{}", "x"), "init: an event id looks like 1763797512345-482913"),
        ];
        for (before, event, why) in table {
            let mut follower = Follower::default();
            for event in &before {
                follower.follow(event).unwrap();
            }
            assert_eq!(follower.follow(&event), Err(why.to_owned()));
            let document = (!before.is_empty()).then(|| json!({"a": 1}));
            assert_eq!(follower.document.as_deref(), document.as_ref());
        }
        let update = event("update", "{}", "6-0");
        let mut follower = Follower::default();
        follower.follow(&init).unwrap();
        follower.follow(&hello("init")).unwrap();
        assert!(follower.follow(&update).is_err(), "init was announced");
        follower.follow(&init).unwrap();
        follower.follow(&event("update", "{", "6-0")).unwrap_err();
        assert!(
            follower.follow(&hello("replay")).is_err(),
            "what was before the failure is not the document"
        );
        assert!(follower.follow(&update).is_err());
    }
}
