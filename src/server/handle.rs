//! The server's handle: what a program does with a server that it started itself.
//!
//! Its methods need no token, and do what the requests of the same name do. The one rule: a method that waits has a time
//! limit, and its error says what there was instead.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::conditions::Conditions;
use crate::document::{Change, Refusal, to_json};
use crate::hub::client::ClientStatus;
use crate::hub::draft::Draft;
use crate::hub::history::EventData;
use crate::lock::lock;
use crate::server::Server;
use crate::sse::event::{EventId, EventName, Topic};

/// What a server remembers when it restarts. The document stays in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// The history. A client that comes back with its last id gets what it missed: `"resume":"replay"`, `reason` `known`.
    KeepHistory,
    /// No history, as a new process. A client that comes back gets the document: `"resume":"init"`, `reason` `restart`.
    ForgetHistory,
}

/// What a call on a server's handle is for: a topic, as a name or a [`Topic`], or with `None` the whole document.
pub trait ForTopic {
    /// The topic; `None` for the whole document.
    ///
    /// # Errors
    /// The name is none that a topic can have.
    fn topic(self) -> Result<Option<Topic>, Refusal>;
}

impl ForTopic for Option<&Topic> {
    fn topic(self) -> Result<Option<Topic>, Refusal> {
        Ok(self.cloned())
    }
}

impl ForTopic for &Topic {
    fn topic(self) -> Result<Option<Topic>, Refusal> {
        Ok(Some(self.clone()))
    }
}

impl ForTopic for &str {
    fn topic(self) -> Result<Option<Topic>, Refusal> {
        Topic::parse(self).map(Some).map_err(Refusal::Invalid)
    }
}

impl From<String> for EventData {
    fn from(text: String) -> EventData {
        EventData { text, is_json: false }
    }
}

impl From<&str> for EventData {
    fn from(text: &str) -> EventData {
        text.to_owned().into()
    }
}

impl From<Value> for EventData {
    fn from(json: Value) -> EventData {
        EventData { text: to_json(&json), is_json: true }
    }
}

impl Server {
    /// Merges a patch into the document, or into one topic (RFC 7396), and returns the id of the `update`. It returns before
    /// delivery; see [`wait_delivered`](Server::wait_delivered). It waits only while delivery is far behind.
    ///
    /// ```
    /// use serde_json::json;
    /// use statecast::{Config, Server};
    ///
    /// let server = Server::start(Config::default())?;
    /// server.patch(None, json!({"kitchen": {"temp": 21.5}, "door": "open"}))?;
    /// server.patch("kitchen", json!({"lamp": "on"}))?;
    /// assert_eq!(server.state(), json!({"kitchen": {"temp": 21.5, "lamp": "on"}, "door": "open"}));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The patch of the document is no object, a key in it is no topic, or the document would exceed a limit.
    pub fn patch(&self, topic: impl ForTopic, patch: Value) -> Result<EventId, Refusal> {
        let topic = topic.topic()?;
        self.hub.publish(Draft::Change(topic, Change::Patch(patch), Conditions::default()))
    }

    /// Replaces the document, or one topic. Clients get the smallest patch from the old value to the new.
    ///
    /// # Errors
    /// As [`patch`](Server::patch).
    pub fn put(&self, topic: impl ForTopic, value: Value) -> Result<EventId, Refusal> {
        let topic = topic.topic()?;
        self.hub.publish(Draft::Change(topic, Change::Put(value), Conditions::default()))
    }

    /// Removes all topics, or one.
    ///
    /// # Errors
    /// There is no such topic.
    pub fn delete(&self, topic: impl ForTopic) -> Result<EventId, Refusal> {
        let topic = topic.topic()?;
        self.hub.publish(Draft::Change(topic, Change::Delete, Conditions::default()))
    }

    /// Publishes a one-off event, such as chat or an alert, which does not change the document. With a topic it reaches the
    /// topic's stream, and `/events` as `{"topic":data}`. Without a topic it reaches `/events` alone. It waits as
    /// [`patch`](Server::patch) does.
    ///
    /// ```
    /// use serde_json::json;
    /// use statecast::{Config, EventName, Server};
    ///
    /// let server = Server::start(Config::default())?;
    /// server.publish(None, EventName::MESSAGE, "the kettle boils")?;
    /// server.publish(None, EventName::parse("alert")?, json!({"kettle": "boils"}))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The server has been stopped.
    pub fn publish(
        &self,
        topic: impl ForTopic,
        name: EventName,
        data: impl Into<EventData>,
    ) -> Result<EventId, Refusal> {
        self.hub.publish(Draft::OneOff(topic.topic()?, name, data.into()))
    }

    /// The document as it is.
    #[must_use]
    pub fn state(&self) -> Value {
        self.hub.read(|document| document.value(None)).expect("the document is never absent")
    }

    /// One topic as it is; `None` if it is absent.
    #[must_use]
    pub fn state_of(&self, topic: impl ForTopic) -> Option<Value> {
        let topic = topic.topic().ok()?;
        self.hub.read(|document| document.value(topic.as_ref()))
    }

    /// Waits until `is_so` holds for the document, and returns the document: a test waits so for what a program publishes.
    /// `is_so` may miss changes that others follow at once.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = statecast::Server::start(statecast::Config::default())?;
    /// let url = format!("http://{}/state/door", server.address());
    /// std::thread::spawn(move || ureq::put(&url).send(r#""open""#));
    /// server.wait_for_state(|document| document["door"] == "open", Duration::from_secs(5))?;
    /// let late = server.wait_for_state(|document| document["door"] == "closed", Duration::from_millis(1));
    /// assert_eq!(late.unwrap_err().to_string(), r#"the document is still {"door":"open"}"#);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// It did not hold when the time was over. The error has the document.
    pub fn wait_for_state(
        &self,
        is_so: impl Fn(&Value) -> bool,
        timeout: Duration,
    ) -> Result<Value, TimedOut> {
        let mut document = Value::Null;
        let found = self.hub.watch.wait(deadline(timeout), || {
            document = self.state();
            is_so(&document).then_some(())
        });
        if found.is_some() { Ok(document) } else { Err(TimedOut::State(document)) }
    }

    /// The connected clients in the order of their ids, as `GET /clients` shows them. A client that has left stays in the
    /// list until the second write to it. A short [`heartbeat`](crate::Config::heartbeat) makes that soon.
    #[must_use]
    pub fn clients(&self) -> Vec<ClientStatus> {
        self.hub.clients().iter().map(|client| client.describe()).collect()
    }

    /// Ends a client's stream cleanly, with the last chunk, and says whether there was such a client. The client may come
    /// back.
    #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn disconnect(&self, id: u64) -> bool {
        self.hub.disconnect(id)
    }

    /// Waits until exactly so many clients are connected, and returns them. What is published afterwards reaches each of
    /// them.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = statecast::Server::start(statecast::Config::default())?;
    /// let stream = ureq::get(format!("http://{}/events", server.address())).call()?;
    /// let clients = server.wait_for_clients(1, Duration::from_secs(5))?;
    /// server.disconnect(clients[0].id);
    /// server.wait_for_clients(0, Duration::from_secs(5))?;
    /// let late = server.wait_for_clients(1, Duration::from_millis(1)).unwrap_err();
    /// assert_eq!(late.to_string(), "expected 1 clients, there are 0");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// There were fewer or more when the time was over. The error names them.
    pub fn wait_for_clients(&self, count: usize, timeout: Duration) -> Result<Vec<ClientStatus>, TimedOut> {
        let mut clients = Vec::new();
        let found = self.hub.watch.wait(deadline(timeout), || {
            clients = self.clients();
            (clients.len() == count).then_some(())
        });
        if found.is_some() { Ok(clients) } else { Err(TimedOut::Clients { expected: count, clients }) }
    }

    /// Waits until an event was written to every connected client whose stream has it, live or catching up. Written is not
    /// read: the kernel has it, and sends it. A client that leaves meanwhile is not waited for. Without clients this returns
    /// at once.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = statecast::Server::start(statecast::Config::default())?;
    /// let stream = ureq::get(format!("http://{}/events", server.address())).call()?;
    /// let id = server.patch(None, serde_json::json!({"door": "open"}))?;
    /// server.wait_delivered(id, Duration::from_secs(5))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// A client lacked the event when the time was over. The error names each such client.
    pub fn wait_delivered(&self, id: EventId, timeout: Duration) -> Result<(), TimedOut> {
        let mut lacking = Vec::new();
        let found = self.hub.watch.wait(deadline(timeout), || {
            lacking = self.hub.lacking(id);
            lacking.is_empty().then_some(())
        });
        found.ok_or_else(|| {
            let lacking = lacking.iter().map(|client| client.describe()).collect();
            TimedOut::Delivery { id, lacking }
        })
    }

    /// Restarts the server on its port, as [`restart_after`](Server::restart_after) does, with nothing in between.
    ///
    /// # Errors
    /// The server cannot listen on its port again.
    pub fn restart(&self, restart: Restart) -> io::Result<()> {
        self.restart_after(restart, || {})
    }

    /// Goes down as a killed process does, runs `meanwhile`, and comes up again on the same port. It tests code that
    /// reconnects.
    ///
    /// Requests under way are answered, for as long as [`grace`](crate::Config::grace) at most. Then every connection is
    /// cut, streams without their last chunk, and new connections are refused until `meanwhile` has returned. `meanwhile`
    /// must not restart the server itself. What it publishes reaches clients when they come back. The document stays; ids of
    /// events and numbers of clients go on rising.
    ///
    /// ```
    /// use serde_json::json;
    /// use statecast::{Config, Restart, Server};
    ///
    /// let server = Server::start(Config::default())?;
    /// let url = format!("http://{}/state", server.address());
    /// server.restart_after(Restart::KeepHistory, || {
    ///     assert!(ureq::get(&url).call().is_err(), "refused");
    ///     server.patch(None, json!({"door": "open"})).unwrap();
    /// })?;
    /// assert_eq!(ureq::get(&url).call()?.body_mut().read_to_string()?, "{\"door\":\"open\"}\n");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The server cannot listen on its port again, because another process does by now. It stays down; `restart` tries
    /// again.
    pub fn restart_after(&self, restart: Restart, meanwhile: impl FnOnce()) -> io::Result<()> {
        // Locked until the end, so that of two restarts at once one waits for the other.
        let mut listener = lock(&self.listener);
        if let Some(listener) = listener.take() {
            listener.stop(Instant::now() + self.grace);
        }
        let place = crate::http::hold(self.address());
        self.hub.cut_all("the server restarts");
        if restart == Restart::ForgetHistory {
            self.hub.forget_history();
        }
        meanwhile();
        *listener = Some((self.listen)(&[self.address()])?);
        drop(place);
        Ok(())
    }
}

/// The instant so far from now, at most a year: an instant beyond what the clock can count would panic.
fn deadline(timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    Instant::now() + timeout.min(YEAR)
}

impl ClientStatus {
    /// `state` in `GET /clients`.
    pub(crate) fn state(&self) -> &'static str {
        if self.is_live { "live" } else { "catching_up" }
    }
}

impl fmt::Display for ClientStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} at {} ({}, ", self.id, self.address, self.state())?;
        match self.last_event_id {
            Some(id) => write!(f, "sent {id})"),
            None => f.write_str("sent nothing)"),
        }
    }
}

/// What was waited for has not come about in time; and what there was instead.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TimedOut {
    /// Of [`wait_for_state`](Server::wait_for_state).
    State(Value),
    /// Of [`wait_for_clients`](Server::wait_for_clients).
    Clients {
        /// So many were waited for.
        expected: usize,
        /// There were these.
        clients: Vec<ClientStatus>,
    },
    /// Of [`wait_delivered`](Server::wait_delivered).
    Delivery {
        /// The event that was waited for.
        id: EventId,
        /// Those that do not have it: their connections take nothing, they are only just being caught up, or the
        /// server has published no such event yet.
        lacking: Vec<ClientStatus>,
    },
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clients = match self {
            TimedOut::State(document) => return write!(f, "the document is still {}", to_json(document)),
            TimedOut::Clients { expected, clients } => {
                write!(f, "expected {expected} clients, there are {}", clients.len())?;
                clients
            }
            TimedOut::Delivery { id, lacking } => {
                write!(f, "event {id} is not delivered, {} clients lack it", lacking.len())?;
                lacking
            }
        };
        for (index, client) in clients.iter().enumerate() {
            write!(f, "{} {client}", if index == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

impl std::error::Error for TimedOut {}
