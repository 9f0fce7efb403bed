//! The server's handle: what a program does with a server that it started itself.
//!
//! It needs no token and no request, and does what the requests of the same name do. The one rule: whatever waits has a
//! time limit, and says what there was instead.

use std::io;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::document::Refusal;
use crate::hub::client::ClientStatus;
use crate::hub::history::EventData;
use crate::hub::watch::TimedOut;
use crate::lock::lock;
use crate::server::Server;
use crate::sse::event::{EventId, EventName, Topic};

/// What a server remembers when it starts again. The document stays in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// A client that comes back with its last id gets what it missed: `"resume":"replay"`, `reason` `known`.
    KeepHistory,
    /// As a new process would: a client that comes back gets the document, `"resume":"init"`, `reason` `restart`.
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

impl Server {
    /// Merges a patch into the document, or into one topic (RFC 7396), and returns the id of the `update`. It has not
    /// been delivered by then; see [`wait_delivered`](Server::wait_delivered). Waits while delivery is far behind.
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
        self.hub.write(|document| document.patch(topic.as_ref(), patch))
    }

    /// Replaces the document, or one topic. Subscribers get the smallest patch from the old value to the new.
    ///
    /// # Errors
    /// As [`patch`](Server::patch).
    pub fn put(&self, topic: impl ForTopic, value: Value) -> Result<EventId, Refusal> {
        let topic = topic.topic()?;
        self.hub.write(|document| document.put(topic.as_ref(), value))
    }

    /// Removes all topics, or one.
    ///
    /// # Errors
    /// There is no such topic.
    pub fn delete(&self, topic: impl ForTopic) -> Result<EventId, Refusal> {
        let topic = topic.topic()?;
        self.hub.write(|document| document.delete(topic.as_ref()))
    }

    /// Publishes a one-off event that changes no state: chat, an alert. One of a topic reaches its stream, and `/events`
    /// as `{"topic":data}`; one without reaches `/events` alone. Waits as [`patch`](Server::patch) does.
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
    #[allow(clippy::needless_pass_by_value, reason = "a name is made where it is used")]
    pub fn publish(
        &self,
        topic: impl ForTopic,
        name: EventName,
        data: impl Into<EventData>,
    ) -> Result<EventId, Refusal> {
        self.hub.send(topic.topic()?, &name, &data.into())
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

    /// Waits until the document is as `is_so` wants it, and returns it: what a program publishes, a test waits for.
    /// Of several changes in quick succession it may see the last one alone.
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
    /// It was not so when the time was over; the error has the document.
    pub fn wait_for_state(
        &self,
        is_so: impl Fn(&Value) -> bool,
        timeout: Duration,
    ) -> Result<Value, TimedOut> {
        let mut document = Value::Null;
        let found = self.hub.watch.wait(deadline(timeout), |_| {
            document = self.state();
            is_so(&document).then_some(())
        });
        match found {
            Some(()) => Ok(document),
            None => Err(TimedOut::State(document)),
        }
    }

    /// The clients in the list, in the order of their ids: what `GET /clients` shows. One that left without a word is
    /// in it until the second write after; a short [`heartbeat`](crate::Config::heartbeat) makes that soon.
    #[must_use]
    pub fn clients(&self) -> Vec<ClientStatus> {
        self.hub.clients().iter().map(|client| client.describe()).collect()
    }

    /// Ends a client's stream cleanly, with the last chunk. It may come back. Says whether there was one.
    #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn disconnect(&self, id: u64) -> bool {
        self.hub.disconnect(id)
    }

    /// Waits until so many clients are in the list, no more and no fewer, and returns them. What is published
    /// afterwards reaches each of them.
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
    /// There were fewer or more when the time was over: those that the error names.
    pub fn wait_for_clients(&self, count: usize, timeout: Duration) -> Result<Vec<ClientStatus>, TimedOut> {
        let mut clients = Vec::new();
        let found = self.hub.watch.wait(deadline(timeout), |_| {
            clients = self.clients();
            (clients.len() == count).then_some(())
        });
        match found {
            Some(()) => Ok(clients),
            None => Err(TimedOut::Clients { expected: count, clients }),
        }
    }

    /// Waits until an event has been written to every client in the list, live or catching up, that its stream is
    /// for. Written is not read: it is on its way, and the kernel has it. Whoever leaves meanwhile is not waited for;
    /// without clients this returns at once.
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
    /// Some client lacked it when the time was over: the error names all that did.
    pub fn wait_delivered(&self, id: EventId, timeout: Duration) -> Result<(), TimedOut> {
        let mut lacking = Vec::new();
        let found = self.hub.watch.wait(deadline(timeout), |delivered| {
            lacking = self.hub.clients();
            lacking.retain(|client| !client.has(id, delivered));
            lacking.is_empty().then_some(())
        });
        found.ok_or_else(|| {
            let lacking = lacking.iter().map(|client| client.describe()).collect();
            TimedOut::Delivery { id, lacking }
        })
    }

    /// Restarts the server on its port, as [`restart_after`](Server::restart_after) does with nothing in between.
    ///
    /// # Errors
    /// It cannot listen there again.
    pub fn restart(&self, restart: Restart) -> io::Result<()> {
        self.restart_after(restart, || {})
    }

    /// Goes down as a killed process would, runs `meanwhile`, and comes up again on the same port: what code that
    /// reconnects must bear.
    ///
    /// Requests under way are answered, for as long as [`grace`](crate::Config::grace) at most; then every connection is
    /// cut, streams without their last chunk, and new ones are refused until `meanwhile` has returned (it must not
    /// restart the server itself). The
    /// document stays, ids go on rising, and so do the numbers of clients. What `meanwhile` publishes, no client has.
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
    /// assert_eq!(ureq::get(&url).call()?.body_mut().read_to_string()?, r#"{"door":"open"}"#);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// It cannot listen there again: somebody else does by now. It stays down; `restart` tries again.
    pub fn restart_after(&self, restart: Restart, meanwhile: impl FnOnce()) -> io::Result<()> {
        // Locked for as long as it takes: two restarts at once are one after the other.
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

/// So far from now, or as far as a clock goes.
fn deadline(timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    Instant::now() + timeout.min(YEAR)
}
