//! The other end of the wire: an `EventSource` (WHATWG HTML, section 9.2) that blocks.
//!
//! `replica` and the commands are made of it. The one rule: however a connection ends, the next one asks for the events
//! after the last one that the caller was given.

use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use ureq::http::{HeaderValue, StatusCode};
use ureq::{Agent, BodyReader};

use crate::client::http::{
    A_DAY, CONNECT, Endpoint, agent_config, header, refusal_text, retry_after, wait_after,
};
use crate::clock::random_between;
use crate::lock::lock;
use crate::sse::parser::{Event, MAX_EVENT_BYTES, Parser, TooLarge};
use crate::token::Token;

/// The most that is read at once.
const READ_BYTES: usize = 32 << 10;

/// The limit from the first try to connect to the head of the answer, over all redirects.
const ANSWER: Duration = Duration::from_secs(40);

/// The limit for the text of a refusal.
const REFUSAL: Duration = Duration::from_secs(5);

/// The time beyond two heartbeats that a slow network may take.
const SLACK: Duration = Duration::from_secs(2);

/// How to listen. A browser's `EventSourceInit` has less.
#[derive(Clone)]
pub struct EventSourceInit {
    /// The token, sent as `Authorization: Bearer`, but not to another host after a redirect. Default: none.
    pub token: Option<Token>,
    /// Further headers of each request, to any host. Default: none.
    pub headers: Vec<(String, String)>,
    /// The proxy, `http://[USER:PASSWORD@]HOST[:PORT]`. Empty for none. Default: as curl, `http_proxy` or `https_proxy`,
    /// else `all_proxy`. Hosts in `no_proxy` and this machine need none.
    pub proxy: Option<String>,
    /// The event to begin after, from an earlier [`EventSource::last_event_id`]. Default: empty, which is the present.
    pub last_event_id: String,
    /// The wait before a new connection, until the stream has a `retry:`. Default: 2 to 4 s, at random.
    pub reconnection_time: Duration,
    /// Says of the status of an answer that is no stream whether to try again. A stream of a wrong content type has 200.
    /// An answer with `Retry-After` is always tried again, and 204 never. Default: none is, as the standard says.
    ///
    /// `|_| true` never gives up. `|status| matches!(status, 408 | 425 | 429 | 500..=599)`, which the commands have, tries
    /// again where the server is busy or away.
    pub tries_again: fn(u16) -> bool,
    /// The longest time without a byte, a day at most. Then the connection is given up. Default: two heartbeats and 2 s,
    /// by the `heartbeat_ms` of `hello`. A server without `hello` may be silent for ever.
    pub silence: Option<Duration>,
    /// The largest event in bytes. A larger one ends the connection. Default: [`MAX_EVENT_BYTES`].
    pub max_event_bytes: usize,
}

impl Default for EventSourceInit {
    fn default() -> EventSourceInit {
        EventSourceInit {
            token: None,
            headers: Vec::new(),
            proxy: None,
            last_event_id: String::new(),
            reconnection_time: Duration::from_millis(random_between(2_000, 4_000)),
            tries_again: |_| false,
            silence: None,
            max_event_bytes: MAX_EVENT_BYTES,
        }
    }
}

/// Whether there is a connection: the browser's `readyState`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadyState {
    /// There is none now. The source connects, or waits for the next try.
    #[default]
    Connecting,
    /// The server has answered with a stream.
    Open,
    /// There will be no other.
    Closed,
}

/// Why a connection ended or could not be made. Its text is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The server ended the stream.
    Ended,
    /// The connection failed or broke, or it was not HTTP. The text is the system's.
    Cut(String),
    /// No byte came for this time.
    Silent(Duration),
    /// The answer was no stream.
    Refused {
        /// The status, but 200 and 204.
        status: u16,
        /// The `error` of a JSON body, or the beginning of a plain one. May be empty.
        text: String,
    },
    /// The answer was 200, but not `text/event-stream`. The text is its content type.
    NoStream(String),
    /// 204: the server asks its clients not to come back.
    NoContent,
    /// An event was larger than allowed.
    TooLarge(TooLarge),
    /// [`EventSource::start_over`], and why.
    StartedOver(String),
    /// [`EventSourceHandle::close`], or the source was dropped.
    Closed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Ended => f.write_str("the server ended the stream"),
            Reason::Cut(text) | Reason::StartedOver(text) => f.write_str(text),
            Reason::Silent(time) => write!(f, "nothing came for {} ms", time.as_millis() as u64),
            Reason::Refused { status, text } if text.is_empty() => write!(f, "the answer was {status}"),
            Reason::Refused { status, text } => write!(f, "the answer was {status}: {text}"),
            Reason::NoStream(content_type) => {
                write!(f, "the answer was {content_type:?}, not an event stream")
            }
            Reason::NoContent => f.write_str("the server has nothing more to say (204)"),
            Reason::TooLarge(error) => error.fmt(f),
            Reason::Closed => f.write_str("closed"),
        }
    }
}

/// An iterator over the events of a stream that connects when it is asked for the first one, and again whenever the
/// connection ends. `next` blocks until there is an event; `None` is the end for good, and the handle says why.
///
/// As the standard says, it sends `Last-Event-ID`, waits as `retry:` says (and ever longer, at random, while nothing
/// comes), follows redirects, and closes on 204 and on any other answer that is no stream, unless
/// [`EventSourceInit`] says otherwise. Events without an `id:` have the last one, across connections, too.
///
/// ```
/// use statecast::{Config, EventSource, Server};
///
/// let server = Server::start(Config::default())?;
/// let url = format!("http://{}", server.address());
/// let mut source = EventSource::new(&format!("{url}/events/kitchen"))?;
/// let init = source.find(|event| event.name == "init").unwrap();
/// assert_eq!(init.data, "null");
///
/// ureq::put(format!("{url}/state/kitchen")).send(r#"{"temp":21.5}"#).unwrap();
/// let update = source.find(|event| event.name == "update").unwrap();
/// assert_eq!(update.data, r#"{"temp":21.5}"#);
/// assert_eq!(source.last_event_id(), update.id);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// With the feature `tls` it speaks HTTPS.
pub struct EventSource {
    endpoint: Endpoint,
    init: EventSourceInit,
    monitor: Arc<Monitor>,
    /// The stream of the connection. `None` between two.
    body: Option<BufReader<BodyReader<'static>>>,
    /// The last event id and the reconnection time stay in it from one connection to the next.
    parser: Parser,
    silence: Option<Duration>,
    /// Connections in a row that brought no event.
    failures: u32,
    next_try: Instant,
    watch: Option<JoinHandle<()>>,
}

/// A handle that tells the state of an [`EventSource`] and closes it, from any thread.
///
/// ```
/// # use statecast::{Config, EventSource, ReadyState, Reason, Server};
/// # let server = Server::start(Config::default())?;
/// let mut source = EventSource::new(&format!("http://{}/events", server.address()))?;
/// let handle = source.handle();
/// assert_eq!(handle.ready_state(), ReadyState::Connecting);
/// let reader = std::thread::spawn(move || source.by_ref().count());
/// handle.close();
/// reader.join().unwrap();
/// assert_eq!(handle.ready_state(), ReadyState::Closed);
/// assert_eq!(handle.reason(), Some(Reason::Closed));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct EventSourceHandle(Arc<Monitor>);

/// The result of a step: an event, or the end of a connection and the time until the next.
pub(crate) enum Step {
    Event(Event),
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "tail says it"))]
    Lost(Reason, Duration),
}

/// What a source, its handles and its watch share.
#[derive(Default)]
struct Monitor {
    watched: Mutex<Watched>,
    changed: Condvar,
}

#[derive(Default)]
struct Watched {
    ready_state: ReadyState,
    reason: Option<Reason>,
    /// The agent of the connection. Its shutdown ends a read, or a try to connect.
    agent: Option<Agent>,
    /// When the watch shuts the agent down.
    deadline: Option<Instant>,
    /// The watch has shut the agent down.
    is_overdue: bool,
    /// When the watch wakes by itself.
    next_look: Option<Instant>,
}

impl EventSource {
    /// A source as browsers have it, that begins with the present. Does not connect yet.
    ///
    /// # Errors
    /// As [`EventSource::with`].
    pub fn new(url: &str) -> io::Result<EventSource> {
        EventSource::with(url, EventSourceInit::default())
    }

    /// A source that listens as `init` says. Does not connect yet.
    ///
    /// # Errors
    /// The URL, a header or the proxy is wrong. The error shows it, but no part that may be a secret. A URL of HTTP has no user
    /// in it, and `https://` needs the feature `tls`. Or the system starts no thread.
    pub fn with(url: &str, init: EventSourceInit) -> io::Result<EventSource> {
        let mut endpoint = Endpoint::new(url, init.token.as_ref(), &init.headers, init.proxy.as_deref())?;
        endpoint.headers.append(ACCEPT, HeaderValue::from_static("text/event-stream"));
        endpoint.headers.append(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let monitor = Arc::<Monitor>::default();
        let watched = Arc::clone(&monitor);
        let watch = thread::Builder::new().name("event-source".into()).spawn(move || watched.watch())?;
        Ok(EventSource {
            endpoint,
            monitor,
            body: None,
            parser: Parser::resume(init.last_event_id.clone(), init.max_event_bytes),
            silence: init.silence,
            failures: 0,
            next_try: Instant::now(),
            watch: Some(watch),
            init,
        })
    }

    /// A handle on this source for other threads.
    #[must_use]
    pub fn handle(&self) -> EventSourceHandle {
        EventSourceHandle(Arc::clone(&self.monitor))
    }

    /// The id of the last event, which the next connection will name. Empty for none.
    #[must_use]
    pub fn last_event_id(&self) -> &str {
        self.parser.last_event_id()
    }

    /// Ends the connection and forgets the last event id, so that the next connection begins with the present, after
    /// the usual wait. For a caller who can make no sense of the events. Does nothing to a closed source.
    pub fn start_over(&mut self, why: impl Into<String>) {
        self.lose(Reason::StartedOver(why.into()), Some(self.reconnection_time()));
        self.parser.restart(String::new());
    }

    /// Goes on to the next event or the next loss. `None` when closed. `tap` is shown all bytes of the stream, each
    /// once, before the events they complete.
    pub(crate) fn step(&mut self, tap: &mut dyn FnMut(&[u8])) -> Option<Step> {
        loop {
            let Some(body) = &mut self.body else {
                if !self.monitor.wait_until(self.next_try) {
                    return None;
                }
                match self.connect() {
                    Ok(body) => self.body = self.monitor.enter(ReadyState::Open, None).then_some(body),
                    Err((reason, time)) => return self.lose(reason, time),
                }
                continue;
            };
            match self.monitor.read_event(body, &mut self.parser, self.silence, tap) {
                Ok(_) if self.monitor.lock().ready_state == ReadyState::Closed => return None,
                Ok(event) => {
                    self.failures = 0;
                    if event.name == "hello" && self.init.silence.is_none() {
                        self.silence = silence_of(&event.data).or(self.silence);
                    }
                    return Some(Step::Event(event));
                }
                Err(reason) => return self.lose(reason, Some(self.reconnection_time())),
            }
        }
    }

    fn reconnection_time(&self) -> Duration {
        let time = self.parser.reconnection_time_ms();
        time.map_or(self.init.reconnection_time, Duration::from_millis)
    }

    /// Tries once. Blocks until the head of the answer is there. An error has the reconnection time for the next try,
    /// `None` for no other.
    fn connect(&mut self) -> Result<BufReader<BodyReader<'static>>, (Reason, Option<Duration>)> {
        let usual = Some(self.reconnection_time());
        let agent: Agent = agent_config().timeout_resolve(Some(CONNECT)).build().into();
        self.monitor.use_agent(&agent);
        let mut endpoint = self.endpoint.clone();
        // An id that no header can carry is not sent.
        if let Ok(id) = HeaderValue::from_bytes(self.last_event_id().as_bytes())
            && !id.is_empty()
        {
            endpoint.headers.insert("Last-Event-ID", id);
        }
        let answer = self.monitor.within(Some(ANSWER), || endpoint.get(&agent).map_err(Reason::Cut));
        let mut answer = answer.map_err(|reason| (reason, usual))?;
        let status = answer.status();
        let content_type = header(&answer, CONTENT_TYPE).unwrap_or_default().to_owned();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if status == StatusCode::OK && essence.eq_ignore_ascii_case("text/event-stream") {
            self.parser.restart(self.parser.last_event_id().to_owned());
            return Ok(BufReader::with_capacity(READ_BYTES, answer.into_body().into_reader()));
        }
        let asked = retry_after(answer.headers());
        let time = asked.or(usual.filter(|_| (self.init.tries_again)(status.as_u16())));
        let reason = match status {
            StatusCode::NO_CONTENT => return Err((Reason::NoContent, None)),
            StatusCode::OK => Reason::NoStream(content_type),
            _ => {
                let text = self.monitor.within(Some(REFUSAL), || Ok(refusal_text(&mut answer)));
                Reason::Refused { status: status.as_u16(), text: text.unwrap_or_default() }
            }
        };
        Err((reason, time))
    }

    /// Ends the connection until the next one, after the reconnection time or longer. `None`: there is no next one.
    fn lose(&mut self, reason: Reason, reconnection_time: Option<Duration>) -> Option<Step> {
        self.body = None;
        let Some(time) = reconnection_time else {
            self.monitor.enter(ReadyState::Closed, Some(reason));
            return None;
        };
        let wait = wait_after(self.failures, time);
        self.failures += 1;
        self.next_try = Instant::now() + wait;
        let goes_on = self.monitor.enter(ReadyState::Connecting, Some(reason.clone()));
        goes_on.then_some(Step::Lost(reason, wait))
    }
}

impl Iterator for EventSource {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        loop {
            if let Step::Event(event) = self.step(&mut |_| {})? {
                return Some(event);
            }
        }
    }
}

impl Drop for EventSource {
    fn drop(&mut self) {
        self.handle().close();
        if let Some(watch) = self.watch.take() {
            watch.join().ok();
        }
    }
}

impl EventSourceHandle {
    /// Closes the source for good, and does not wait. A call of `next` that waits returns `None` at once. While it
    /// connects, it returns when the system has connected or has given up, after 20 s at most.
    pub fn close(&self) {
        self.0.enter(ReadyState::Closed, Some(Reason::Closed));
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn ready_state(&self) -> ReadyState {
        self.0.lock().ready_state
    }

    /// Why the last connection ended or could not be made, or why the source is closed. `None` while the first connection
    /// lasts.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.0.lock().reason.clone()
    }
}

impl Watched {
    /// Ends the connection, or the try to make one.
    fn shut_down(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.shutdown();
        }
    }
}

impl Monitor {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        lock(&self.watched)
    }

    /// Puts an agent where `close` and the watch find it. A source that was closed before has no use for it.
    fn use_agent(&self, agent: &Agent) {
        let mut watched = self.lock();
        watched.is_overdue = false;
        watched.agent = Some(agent.clone());
        if watched.ready_state == ReadyState::Closed {
            watched.shut_down();
        }
    }

    /// Enters a state, and says whether it could: a closed source stays closed.
    fn enter(&self, ready_state: ReadyState, reason: Option<Reason>) -> bool {
        let mut watched = self.lock();
        if watched.ready_state == ReadyState::Closed {
            return false;
        }
        watched.ready_state = ready_state;
        watched.reason = reason.or(watched.reason.take());
        if ready_state == ReadyState::Closed {
            watched.shut_down();
            self.changed.notify_all();
        }
        true
    }

    /// Waits for a time to come, and says whether it came before the source was closed.
    fn wait_until(&self, time: Instant) -> bool {
        let left = time.saturating_duration_since(Instant::now());
        let goes_on = |watched: &mut Watched| watched.ready_state != ReadyState::Closed;
        let waited = self.changed.wait_timeout_while(self.lock(), left, goes_on);
        waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Reads on to the next event.
    fn read_event(
        &self,
        body: &mut BufReader<BodyReader>,
        parser: &mut Parser,
        silence: Option<Duration>,
        tap: &mut dyn FnMut(&[u8]),
    ) -> Result<Event, Reason> {
        loop {
            let mut rest = body.buffer();
            let event = parser.next(&mut rest).map_err(Reason::TooLarge)?;
            let parsed = body.buffer().len() - rest.len();
            if parsed > 0 {
                tap(&body.buffer()[..parsed]);
                body.consume(parsed);
            }
            if let Some(event) = event {
                return Ok(event);
            }
            self.within(silence, || match body.fill_buf() {
                Ok([]) => Err(Reason::Ended),
                Ok(_) => Ok(()),
                Err(error) => Err(Reason::Cut(format!("the connection was cut: {error}"))),
            })?;
        }
    }

    /// Waits for the network. After the limit the watch ends the wait, and the error is [`Reason::Silent`].
    fn within<T>(
        &self,
        limit: Option<Duration>,
        wait: impl FnOnce() -> Result<T, Reason>,
    ) -> Result<T, Reason> {
        let mut watched = self.lock();
        watched.deadline = limit.map(|limit| Instant::now() + limit.min(A_DAY));
        // The watch wakes at the time it knows. Most of the time that is earlier, and it looks again.
        if watched.deadline.is_some_and(|deadline| watched.next_look.is_none_or(|look| deadline < look)) {
            self.changed.notify_all();
        }
        drop(watched);
        let result = wait();
        let mut watched = self.lock();
        watched.deadline = None;
        result.map_err(
            |reason| if watched.is_overdue { Reason::Silent(limit.unwrap_or_default()) } else { reason },
        )
    }

    /// Shuts the agent down at each deadline, until the source is closed. A read of ureq's has no limit that could be
    /// set while it waits, and the server says later than that how long a silence may be.
    fn watch(&self) {
        let mut watched = self.lock();
        while watched.ready_state != ReadyState::Closed {
            let now = Instant::now();
            if watched.deadline.is_some_and(|deadline| deadline <= now) {
                watched.deadline = None;
                watched.is_overdue = true;
                watched.shut_down();
            }
            watched.next_look = watched.deadline;
            let pause = watched.deadline.map_or(A_DAY, |deadline| deadline - now);
            watched = self.changed.wait_timeout(watched, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The longest silence of a server with the `heartbeat_ms` of this `hello`.
fn silence_of(hello: &str) -> Option<Duration> {
    let hello: Value = serde_json::from_str(hello).ok()?;
    let heartbeat = hello["heartbeat_ms"].as_u64().filter(|ms| *ms > 0)?;
    Some(Duration::from_millis(heartbeat).min(A_DAY) * 2 + SLACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_says_how_long_silence_may_last() {
        let table = [
            (r#"{"client":7,"heartbeat_ms":15000,"resume":"init"}"#, Some(32_000)),
            (r#"{"heartbeat_ms":18446744073709551615}"#, Some(2 * 86_400_000 + 2_000)),
            (r#"{"heartbeat_ms":0}"#, None),
            (r#"{"heartbeat_ms":"15"}"#, None),
            ("world", None),
        ];
        for (hello, silence) in table {
            assert_eq!(silence_of(hello), silence.map(Duration::from_millis), "{hello}");
        }
    }

    #[test]
    fn what_is_no_url_or_header_is_refused_with_its_text_but_not_a_value() {
        let refusal =
            |url: &str, init: EventSourceInit| EventSource::with(url, init).err().unwrap().to_string();
        let none = EventSourceInit::default;
        assert!(refusal("localhost:8080", none()).contains("\"localhost:8080\" is no URL"));
        assert!(refusal("ftp://a/b", none()).contains("it begins with http://"));
        assert!(refusal("http://a b/", none()).contains("\"http://a b/\" is no URL"));
        if cfg!(not(feature = "tls")) {
            assert!(refusal("https://a/", none()).contains("the feature tls"));
        }
        let with = |name: &str, value: &str| EventSourceInit {
            headers: vec![(name.into(), value.into())],
            ..EventSourceInit::default()
        };
        assert_eq!(refusal("http://a/", with("a b", "c")), "\"a b\" is no name of a header");
        let text = refusal("http://a/", with("X-Key", "s3cret\r\nX: y"));
        assert_eq!(text, "the value of header x-key holds a control character");
    }
}
