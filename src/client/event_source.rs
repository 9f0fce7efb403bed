//! The other end of the wire: an `EventSource` (WHATWG HTML, section 9.2), blocking, on ureq.
//!
//! `replica` and the commands are made of it. The one rule: whatever ends a connection, the next one asks for what
//! comes after the last event that the caller was given.

use std::fmt;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use ureq::config::ConfigBuilder;
use ureq::http::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, DATE, LOCATION, RETRY_AFTER,
};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body, BodyReader};

use crate::client::proxy::{failure, proxy_for};
use crate::client::url::{check_url, invalid, redirected};
use crate::clock::random_between;
use crate::lock::lock;
use crate::sse::parser::{Event, MAX_EVENT_BYTES, Parser, TooLarge};
use crate::token::Token;

/// What is read at once.
const READ_BYTES: usize = 32 << 10;

/// For a name to be resolved, and again for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// From the first try to connect to the head of the answer, over all redirects.
const ANSWER: Duration = Duration::from_secs(40);

/// For the text of a refusal, and how much of it.
const REFUSAL: (Duration, u64) = (Duration::from_secs(5), 4_096);

/// As many as a browser follows.
const MAX_REDIRECTS: u32 = 20;

/// A server that says `retry: 0` and ends each stream gets no more than ten tries a second.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// What failures add to the reconnection time at most, and a failure does at least.
const EXTRA_WAIT_MS: (u64, u64) = (500, 30_000);

/// Beyond two heartbeats, for a slow network.
const SLACK: Duration = Duration::from_secs(2);

/// Longer than any wait, and small enough to be added to a time.
const A_DAY: Duration = Duration::from_secs(86_400);

const USER_AGENT: &str = concat!("statecast/", env!("CARGO_PKG_VERSION"));

/// How to listen: what a browser's `EventSourceInit` would be, could it do as much.
#[derive(Clone)]
pub struct EventSourceInit {
    /// Sent as `Authorization: Bearer`; not to another host that the server redirects to. Default: none.
    pub token: Option<Token>,
    /// Further headers of each request, to whatever host. Default: none.
    pub headers: Vec<(String, String)>,
    /// Asked through this proxy, `http://[USER:PASSWORD@]HOST[:PORT]`; empty: through none. Default: as curl, `http_proxy` or
    /// `https_proxy`, else `all_proxy`, but for what `no_proxy` lists, and for this machine.
    pub proxy: Option<String>,
    /// Where to begin, as from an earlier [`EventSource::last_event_id`]. Default: empty, the present.
    pub last_event_id: String,
    /// How long to wait before a new connection until the stream's `retry:` says so. Default: 2 to 4 s, at random.
    pub reconnection_time: Duration,
    /// Which answers other than a stream are tried again, by their status; a wrong content type is asked about as 200.
    /// One with `Retry-After` always is, and 204 never. Default: none, as the standard says.
    ///
    /// `|_| true` goes on whatever comes; `|status| matches!(status, 408 | 425 | 429 | 500..=599)`, which the commands have,
    /// where an answer speaks of the moment and not of the request.
    pub tries_again: fn(u16) -> bool,
    /// Without a byte for so long (a day at most) a connection is given up. Default: what the `heartbeat_ms` of `hello` makes of it, two
    /// heartbeats and 2 s; for ever with a server that says no `hello`.
    pub silence: Option<Duration>,
    /// What an event may have in bytes; one with more ends the connection. Default: [`MAX_EVENT_BYTES`].
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

/// Whether an answer speaks of the moment: a server that is busy, or a proxy whose server is away.
#[must_use]
#[cfg(feature = "cli")]
pub(crate) fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

/// Whether there is a connection: the browser's `readyState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyState {
    /// Not yet or not now; waiting for the next try, too.
    Connecting,
    /// The server has answered with a stream.
    Open,
    /// For good.
    Closed,
}

/// Why a connection ended or did not come about. What it displays is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The server ended the stream.
    Ended,
    /// No connection, none any longer, or no HTTP on it: what the system said.
    Cut(String),
    /// Nothing came for so long.
    Silent(Duration),
    /// An answer that is no stream: its status, and what it says.
    Refused {
        /// Any but 200 and 204.
        status: u16,
        /// The `error` of a JSON body, the beginning of a plain one; may be empty.
        text: String,
    },
    /// The answer was 200, but not of `text/event-stream`: its content type.
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
    url: Uri,
    headers: HeaderMap,
    init: EventSourceInit,
    shared: Arc<Shared>,
    connection: Option<Connection>,
    /// As of the last connection; while there is one, its parser knows better.
    last_event_id: String,
    reconnection_time: Duration,
    silence: Option<Duration>,
    /// Connections in a row that brought no event.
    failures: u32,
    next_try: Instant,
    watch: Option<JoinHandle<()>>,
}

/// Says how an [`EventSource`] is, and closes it, from any thread.
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
pub struct EventSourceHandle(Arc<Shared>);

/// What a step of a source comes to: an event, or the end of a connection and the time until the next.
pub(crate) enum Step {
    Event(Event),
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "tail says it"))]
    Lost(Reason, Duration),
}

/// Whether a connection that failed is tried again.
enum Again {
    Never,
    /// After the reconnection time, or what the answer said instead.
    After(Option<Duration>),
}

struct Connection {
    body: BodyReader<'static>,
    parser: Parser,
    buffer: Box<[u8]>,
    /// What of the buffer is not parsed yet.
    unread: std::ops::Range<usize>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[allow(clippy::struct_field_names, reason = "the standard's name")]
struct State {
    ready_state: ReadyState,
    reason: Option<Reason>,
    /// Of the connection there is. Shut down, it wakes whoever reads.
    agent: Option<Agent>,
    /// When whoever reads or connects will have waited too long.
    until: Option<Instant>,
    /// It had, and the connection was shut down.
    is_overdue: bool,
    /// When the watch wakes next by itself.
    next_look: Instant,
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
    /// What is not a URL of HTTP (one with a user or a port that is none, too), not a header or not a proxy, with the text in
    /// question unless it may be secret; `https://` without the feature `tls`; and the system's, if there can be no thread.
    pub fn with(url: &str, init: EventSourceInit) -> io::Result<EventSource> {
        let url = check_url(url)?;
        proxy_for(&url, init.proxy.as_deref()).map_err(invalid)?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for (name, value) in &init.headers {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| invalid(format!("{name:?} is no name of a header")))?;
            // The value may be a secret.
            let value = HeaderValue::from_str(value)
                .map_err(|_| invalid(format!("the value of header {name} holds a control character")))?;
            headers.append(name, value);
        }
        if let Some(token) = &init.token {
            let value = HeaderValue::from_str(&token.bearer()).expect("a token is visible ASCII");
            headers.insert(AUTHORIZATION, value);
        }
        let now = Instant::now();
        let state = State {
            ready_state: ReadyState::Connecting,
            reason: None,
            agent: None,
            until: None,
            is_overdue: false,
            next_look: now,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let watched = Arc::clone(&shared);
        let watch = thread::Builder::new().name("event-source".into()).spawn(move || watched.watch())?;
        Ok(EventSource {
            url,
            headers,
            shared,
            connection: None,
            last_event_id: init.last_event_id.clone(),
            reconnection_time: init.reconnection_time,
            silence: init.silence,
            failures: 0,
            next_try: now,
            watch: Some(watch),
            init,
        })
    }

    /// A handle on this source for other threads.
    #[must_use]
    pub fn handle(&self) -> EventSourceHandle {
        EventSourceHandle(Arc::clone(&self.shared))
    }

    /// What the next connection will say it has: the id of the last event, empty for none.
    #[must_use]
    pub fn last_event_id(&self) -> &str {
        self.connection.as_ref().map_or(&self.last_event_id, |connection| connection.parser.last_event_id())
    }

    /// Ends the connection and forgets the last event id, so that the next one, after the usual wait, begins with the
    /// present: for a caller to whom the events make no sense. Does nothing to a closed source.
    pub fn start_over(&mut self, why: impl Into<String>) {
        self.lose(Reason::StartedOver(why.into()), &Again::After(None));
        self.last_event_id.clear();
    }

    /// Goes on to the next event or the next loss; `None` when closed. `tap` is shown all bytes of the stream, each
    /// once, before the events they complete.
    pub(crate) fn step(&mut self, tap: &mut dyn FnMut(&[u8])) -> Option<Step> {
        loop {
            let Some(connection) = &mut self.connection else {
                if !self.shared.wait_until(self.next_try) {
                    return None;
                }
                match self.connect() {
                    Ok(connection) => self.connection = self.shared.open().then_some(connection),
                    Err((reason, again)) => return self.lose(reason, &again),
                }
                continue;
            };
            match connection.next(&self.shared, self.silence, tap) {
                Ok(_) if self.shared.is_closed() => return None,
                Ok(event) => {
                    self.failures = 0;
                    if event.name == "hello" && self.init.silence.is_none() {
                        self.silence = silence_of(&event.data).or(self.silence);
                    }
                    return Some(Step::Event(event));
                }
                Err(reason) => return self.lose(reason, &Again::After(None)),
            }
        }
    }

    /// One try. Blocks until the head of the answer is there.
    fn connect(&self) -> Result<Connection, (Reason, Again)> {
        let agent: Agent = agent_config().timeout_resolve(Some(CONNECT)).build().into();
        self.shared.use_agent(&agent);
        self.shared.expect_within(Some(ANSWER));
        let answer = self.ask(&agent);
        self.shared.expect_within(None);
        let mut answer =
            answer.map_err(|why| (self.shared.why(Reason::Cut(why), ANSWER), Again::After(None)))?;
        let status = answer.status();
        let content_type = header(&answer, &CONTENT_TYPE).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if status == StatusCode::OK && essence.eq_ignore_ascii_case("text/event-stream") {
            return Ok(Connection {
                body: answer.into_body().into_reader(),
                parser: Parser::resume(self.last_event_id.clone(), self.init.max_event_bytes),
                buffer: vec![0; READ_BYTES].into_boxed_slice(),
                unread: 0..0,
            });
        }
        let again = match retry_after(answer.headers()) {
            _ if status == StatusCode::NO_CONTENT => Again::Never,
            None if (self.init.tries_again)(status.as_u16()) => Again::After(None),
            None => Again::Never,
            time => Again::After(time),
        };
        let reason = match status {
            StatusCode::NO_CONTENT => Reason::NoContent,
            StatusCode::OK => Reason::NoStream(content_type.to_owned()),
            _ => {
                self.shared.expect_within(Some(REFUSAL.0));
                let text = refusal_text(&mut answer);
                self.shared.expect_within(None);
                Reason::Refused { status: status.as_u16(), text }
            }
        };
        Err((reason, again))
    }

    /// Asks, and goes where redirects lead. Not left to ureq: it would not judge the URLs, and keep to one proxy.
    fn ask(&self, agent: &Agent) -> Result<Response<Body>, String> {
        let mut url = self.url.clone();
        let mut headers = self.headers.clone();
        // An id that no header can carry is as good as none.
        if !self.last_event_id.is_empty()
            && let Ok(id) = HeaderValue::from_bytes(self.last_event_id.as_bytes())
        {
            headers.insert("Last-Event-ID", id);
        }
        for _ in 0..=MAX_REDIRECTS {
            let proxy = proxy_for(&url, self.init.proxy.as_deref())?;
            let mut request = agent.get(&url).config().proxy(proxy.clone()).build();
            if let Some(empty) = request.headers_mut() {
                empty.clone_from(&headers);
            }
            let answer = request.call().map_err(|error| failure(error, proxy.as_ref()))?;
            let Some(location) = location(&answer) else {
                return Ok(answer);
            };
            let next = redirected(&url, location).map_err(|error| format!("a redirect: {error}"))?;
            if !is_as_trusted(&next, &url) {
                headers.remove(AUTHORIZATION);
                headers.remove(COOKIE);
            }
            url = next;
        }
        Err(format!("more than {MAX_REDIRECTS} redirects"))
    }

    /// Ends the connection, for good or until the next.
    fn lose(&mut self, reason: Reason, again: &Again) -> Option<Step> {
        if let Some(connection) = self.connection.take() {
            connection.parser.last_event_id().clone_into(&mut self.last_event_id);
            let time = connection.parser.reconnection_time_ms().map(Duration::from_millis);
            self.reconnection_time = time.unwrap_or(self.reconnection_time);
        }
        let wait = match again {
            Again::Never => {
                self.shared.close(reason);
                return None;
            }
            Again::After(time) => wait_after(self.failures, time.unwrap_or(self.reconnection_time)),
        };
        self.failures += 1;
        self.next_try = Instant::now() + wait;
        self.shared.lose(&reason).then_some(Step::Lost(reason, wait))
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
        self.shared.close(Reason::Closed);
        if let Some(watch) = self.watch.take() {
            watch.join().ok();
        }
    }
}

impl EventSourceHandle {
    /// Closes the source for good. Whoever waits in `next` gets `None` at once; while a connection is being made, when
    /// the system has made it or has given up, 20 s at most. Returns without waiting.
    pub fn close(&self) {
        self.0.close(Reason::Closed);
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn ready_state(&self) -> ReadyState {
        self.0.lock().ready_state
    }

    /// Why the last connection ended or did not come about; `None` while the first one lasts. Of a closed source: why
    /// it is.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.0.lock().reason.clone()
    }
}

impl Connection {
    /// Reads on to the next event.
    fn next(
        &mut self,
        shared: &Shared,
        silence: Option<Duration>,
        tap: &mut dyn FnMut(&[u8]),
    ) -> Result<Event, Reason> {
        loop {
            let unread = &self.buffer[self.unread.clone()];
            let mut rest = unread;
            let event = self.parser.next(&mut rest).map_err(Reason::TooLarge)?;
            let parsed = unread.len() - rest.len();
            if parsed > 0 {
                tap(&unread[..parsed]);
            }
            self.unread.start += parsed;
            if let Some(event) = event {
                return Ok(event);
            }
            shared.expect_within(silence);
            let read = self.body.read(&mut self.buffer);
            shared.expect_within(None);
            self.unread = match read {
                Ok(0) => return Err(shared.why(Reason::Ended, silence.unwrap_or_default())),
                Ok(count) => 0..count,
                Err(error) => {
                    let cut = Reason::Cut(format!("the connection was cut: {error}"));
                    return Err(shared.why(cut, silence.unwrap_or_default()));
                }
            };
        }
    }
}

impl State {
    /// Ends the connection there is, or the try to make one.
    fn shut_down(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.shutdown();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn is_closed(&self) -> bool {
        self.lock().ready_state == ReadyState::Closed
    }

    /// Puts an agent where `close` and the watch find it.
    fn use_agent(&self, agent: &Agent) {
        let mut state = self.lock();
        state.is_overdue = false;
        if state.ready_state == ReadyState::Closed {
            // What closed came too early to see it.
            agent.clone().shutdown();
        } else {
            state.agent = Some(agent.clone());
        }
    }

    /// Says whether it is open now: it may have been closed meanwhile.
    fn open(&self) -> bool {
        self.become_unless_closed(ReadyState::Open, None)
    }

    /// Says whether there will be another connection.
    fn lose(&self, reason: &Reason) -> bool {
        self.become_unless_closed(ReadyState::Connecting, Some(reason.clone()))
    }

    fn become_unless_closed(&self, ready_state: ReadyState, reason: Option<Reason>) -> bool {
        let mut state = self.lock();
        let is_closed = state.ready_state == ReadyState::Closed;
        if !is_closed {
            state.ready_state = ready_state;
            state.reason = reason.or(state.reason.take());
        }
        !is_closed
    }

    fn close(&self, reason: Reason) {
        let mut state = self.lock();
        if state.ready_state != ReadyState::Closed {
            state.ready_state = ReadyState::Closed;
            state.reason = Some(reason);
            state.shut_down();
            self.changed.notify_all();
        }
    }

    /// Waits for a time to come, and says whether it came before the end.
    fn wait_until(&self, time: Instant) -> bool {
        let mut state = self.lock();
        loop {
            let left = time.saturating_duration_since(Instant::now());
            if state.ready_state == ReadyState::Closed || left.is_zero() {
                return state.ready_state != ReadyState::Closed;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sets when the watch shuts the connection down; `None`: not at all.
    fn expect_within(&self, limit: Option<Duration>) {
        let mut state = self.lock();
        state.until = limit.map(|limit| Instant::now() + limit.min(A_DAY));
        // It sleeps to the time it knows; most of the time that is earlier, and it finds out when it wakes.
        if state.until.is_some_and(|until| until < state.next_look) {
            self.changed.notify_all();
        }
    }

    /// What a read that failed means: the watch may have shut the connection down.
    fn why(&self, reason: Reason, limit: Duration) -> Reason {
        if self.lock().is_overdue { Reason::Silent(limit) } else { reason }
    }

    /// Runs until the source is closed. A read of ureq's has no time-out that could be set once it waits, and what a
    /// silence is the server says later than that.
    fn watch(&self) {
        let mut state = self.lock();
        while state.ready_state != ReadyState::Closed {
            let now = Instant::now();
            if state.until.is_some_and(|until| until <= now) {
                state.until = None;
                state.is_overdue = true;
                state.shut_down();
            }
            state.next_look = state.until.unwrap_or(now + A_DAY);
            let pause = state.next_look - now;
            state = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// How all of our clients talk.
pub(crate) fn agent_config() -> ConfigBuilder<AgentScope> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .user_agent(USER_AGENT)
        // Where there is one, `proxy` says so for the URL in question.
        .proxy(None)
        // ureq would not judge where they lead, and turn PATCH and POST into GET.
        .max_redirects(0)
        .timeout_connect(Some(CONNECT));
    #[cfg(feature = "tls")]
    let config = {
        use ureq::tls::{RootCerts, TlsConfig};
        config.tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
    };
    config
}

fn header<'a>(answer: &'a Response<Body>, name: &HeaderName) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// Where an answer leads on. One that is no text is none that anybody could go to.
fn location(answer: &Response<Body>) -> Option<&str> {
    let is_redirect = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = answer.headers().get(LOCATION).filter(|_| is_redirect)?;
    Some(location.to_str().unwrap_or("://"))
}

/// Whether what is for `from` alone may go to `to`, too: the same host, and not in clear where it was not.
fn is_as_trusted(to: &Uri, from: &Uri) -> bool {
    let host = |url: &Uri| url.host().unwrap_or_default().to_ascii_lowercase();
    let is_https = |url: &Uri| url.scheme_str() == Some("https");
    host(to) == host(from) && (is_https(to) || !is_https(from))
}

/// When an answer asks to be tried again: seconds from now, or a date by the clock of the server.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let date = |text| httpdate::parse_http_date(text).ok();
    let after: &str = text(RETRY_AFTER)?;
    let time = if !after.is_empty() && after.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a long time all the same.
        after.parse().map_or(A_DAY, Duration::from_secs)
    } else {
        // Our own clock may be wrong: a Pi has none while it is off. A date that is over is now.
        let now = text(DATE).and_then(date).unwrap_or_else(SystemTime::now);
        date(after)?.duration_since(now).unwrap_or_default()
    };
    Some(time.clamp(SHORTEST_WAIT, A_DAY))
}

/// What an answer says went wrong, in one line.
pub(crate) fn refusal_text(answer: &mut Response<Body>) -> String {
    let mut body = Vec::new();
    // What came before a failure says something, too.
    answer.body_mut().as_reader().take(REFUSAL.1).read_to_end(&mut body).ok();
    let body = String::from_utf8_lossy(&body);
    let error =
        serde_json::from_str::<Value>(&body).ok().and_then(|json| json["error"].as_str().map(str::to_owned));
    let is_page =
        header(answer, &CONTENT_TYPE).is_some_and(|content_type| content_type.starts_with("text/html"));
    let text = error.unwrap_or_else(|| if is_page { String::new() } else { body.into() });
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The reconnection time, and after failures a random while more, which may be twice as long after each.
pub(crate) fn wait_after(failures: u32, reconnection_time: Duration) -> Duration {
    let least = reconnection_time.clamp(SHORTEST_WAIT, A_DAY);
    let (smallest, largest) = EXTRA_WAIT_MS;
    let doubled = (1 << failures.min(16)) - 1;
    let extra = (least.as_millis() as u64).max(smallest) * doubled;
    least + Duration::from_millis(random_between(0, extra.min(largest)))
}

/// How long a server that beats so may be silent; what its `hello` says.
fn silence_of(hello: &str) -> Option<Duration> {
    let hello: Value = serde_json::from_str(hello).ok()?;
    let heartbeat = hello["heartbeat_ms"].as_u64().filter(|ms| *ms > 0)?;
    Some(Duration::from_millis(heartbeat).min(A_DAY) * 2 + SLACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_with_failures_and_never_fall_below_the_reconnection_time() {
        let table = [
            (0, 3_000, 3_000..=3_000),
            (1, 3_000, 3_000..=6_000),
            (2, 3_000, 3_000..=12_000),
            (9, 3_000, 3_000..=33_000),
            (u32::MAX, 3_000, 3_000..=33_000),
            (0, 0, 100..=100),
            (1, 0, 100..=600),
            (3, u64::MAX, 86_400_000..=86_430_000),
        ];
        for (failures, time, range) in table {
            let waits: Vec<_> = (0..200)
                .map(|_| wait_after(failures, Duration::from_millis(time)).as_millis() as u64)
                .collect();
            assert!(waits.iter().all(|wait| range.contains(wait)), "{failures}, {time}: {waits:?}");
            let is_random = waits.iter().any(|wait| *wait != waits[0]);
            assert_eq!(is_random, range.start() != range.end(), "{failures}, {time}: {waits:?}");
        }
    }

    #[test]
    fn retry_after_is_a_day_at_most_and_a_date_counts_by_the_clock_of_the_server() {
        const NOW: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        let day = Some(86_400_000);
        let table = [
            ("7", "", Some(7_000)),
            (" 7 ", NOW, Some(7_000)),
            ("0", "", Some(100)),
            ("000000000000000000000000000001", "", Some(1_000)),
            ("86401", "", day),
            ("2147484", "", day),
            ("18446744073709551615", "", day),
            ("99999999999999999999999999", "", day),
            ("-1", "", None),
            ("+1", "", None),
            ("1.5", "", None),
            ("1e3", "", None),
            ("NaN", "", None),
            ("Infinity", "", None),
            ("1, 2", "", None),
            ("", "", None),
            ("soon", NOW, None),
            ("Sun, 06 Nov 1994 08:49:47 GMT", NOW, Some(10_000)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", NOW, Some(10_000)),
            ("Sun Nov  6 08:49:47 1994", NOW, Some(10_000)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", NOW, Some(100)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", NOW, day),
            // Without a clock of the server's there is our own.
            ("Sun, 06 Nov 1994 08:49:47 GMT", "", Some(100)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", "yesterday", Some(100)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", "", day),
            ("Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", Some(100)),
            ("Sun, 06 Nov 1994 08:49:47", NOW, None),
            ("Sun, 36 Nov 1994 08:49:47 GMT", NOW, None),
        ];
        for (after, date, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(after));
            if !date.is_empty() {
                headers.insert(DATE, HeaderValue::from_static(date));
            }
            let time = retry_after(&headers).map(|time| time.as_millis());
            assert_eq!(time, expected, "{after:?} at {date:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(retry_after(&headers), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

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
