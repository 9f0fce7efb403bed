//! The lab: what goes wrong with connections in life, done on purpose, so that people can see how clients heal.
//!
//! It exists with `--lab` only. `server` asks it before a stream is opened and hands it the new client's wire; hub and
//! stream do not know that the wire in between is ours. The one rule: a fault never changes what happened. A client
//! that keeps to the standard and comes back holds the server's document, and when a fault is over nothing of it is left.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Map;

use crate::document::to_json;
use crate::http::{Answer, Call};
use crate::hub::Hub;
use crate::hub::client::Arrival;
use crate::lock::lock;
use crate::units::duration;
use crate::wire::Wire;

/// No fault stays on for longer: it would be forgotten, and found again as a bug.
const LONGEST: Duration = Duration::from_secs(300);

/// How long the first byte is delayed unless the call says.
const DELAY: Duration = Duration::from_secs(2);

/// Bytes that drip in one go; the rest waits for the next visit of the catch-up thread.
const DRIPS: usize = 256;

/// The half of an event that a cut leaves behind. Its id was never issued: who resumes with it took it too early.
const HALF_AN_EVENT: &str = "id: 0-0\nevent: update\ndata: {\"this event\":\"was c";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    End,
    Cut,
    Stall,
    SwallowHeartbeats,
    Drip,
    Bom,
    Comments,
    OddFraming,
    Refuse,
    Redirect,
    WrongType,
    Delay,
    ForgetHistory,
    Restart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Client,
    Server,
}

/// One fault as `GET /lab` lists it.
struct Row {
    fault: Fault,
    name: &'static str,
    scope: Scope,
    /// How long it is on unless the call says, in seconds; 0 for what happens at once.
    seconds: u64,
    /// A parameter beside `for`, and what it can be.
    parameter: Option<(&'static str, &'static str)>,
    does: &'static str,
}

const fn of_client(fault: Fault, name: &'static str, seconds: u64, does: &'static str) -> Row {
    Row { fault, name, scope: Scope::Client, seconds, parameter: None, does }
}

const fn of_server(fault: Fault, name: &'static str, seconds: u64, does: &'static str) -> Row {
    Row { fault, name, scope: Scope::Server, seconds, parameter: None, does }
}

const FAULTS: &[Row] = &[
    of_client(Fault::End, "end", 0, "ends the stream cleanly, with the last chunk of HTTP"),
    of_client(
        Fault::Cut,
        "cut",
        0,
        "sends half an event, with an id that was never issued, and closes without the last chunk",
    ),
    of_client(
        Fault::Stall,
        "stall",
        5,
        "sends nothing; the client is shown as catching up, and gets what it missed when the time is over",
    ),
    of_client(Fault::SwallowHeartbeats, "swallow-heartbeats", 5, "leaves out the heartbeats"),
    of_client(
        Fault::Drip,
        "drip",
        5,
        "sends each byte in a chunk of its own, so that letters and line ends arrive in pieces",
    ),
    of_client(
        Fault::Bom,
        "bom",
        30,
        "ends the stream; the next one from that address and user agent begins with a byte order mark, and has no retry",
    ),
    of_client(Fault::Comments, "comments", 5, "puts a comment before every line; some look like fields"),
    of_client(
        Fault::OddFraming,
        "odd-framing",
        5,
        "writes events in odd but legal ways: lines that end with CR or CRLF, no space after the colon, data before \
         the id, the JSON of hello, init and update broken into two lines, and fields that nobody knows",
    ),
    Row {
        parameter: Some(("status", "503, 429, 204, 404 or 500; 503 and 429 say when to come back")),
        ..of_server(Fault::Refuse, "refuse", 5, "answers whoever wants a stream with a status other than 200")
    },
    of_server(
        Fault::Redirect,
        "redirect",
        5,
        "redirects whoever wants a stream with 307, to the same stream with redirected=1 in the query, which opens",
    ),
    of_server(
        Fault::WrongType,
        "wrong-type",
        5,
        "answers whoever wants a stream with text/html, as a hotel does",
    ),
    Row {
        parameter: Some(("by", "a time, such as 2s")),
        ..of_server(Fault::Delay, "delay", 5, "holds the first byte of new streams back, the head's too")
    },
    of_server(
        Fault::ForgetHistory,
        "forget-history",
        0,
        "forgets what was published; who comes back later gets the document, reason restart, and open streams go on",
    ),
    of_server(
        Fault::Restart,
        "restart",
        0,
        "does what a restart does: history is forgotten and every stream ended; ids go on rising",
    ),
];

/// A fault that is on.
#[derive(Clone, Copy)]
struct On {
    fault: Fault,
    until: Instant,
    /// Of `refuse`.
    status: u16,
    /// Of `delay`.
    by: Duration,
}

/// The one fault of a client, shared by the lab and the client's wire.
type Switch = Arc<Mutex<Option<On>>>;

/// The switchboard.
#[derive(Default)]
pub(crate) struct Lab {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of each open stream, by its peer: the wire is there before the client has an id.
    clients: HashMap<SocketAddr, Switch>,
    server: Option<On>,
    /// Whose next stream begins with a byte order mark, and until when.
    boms: Vec<(IpAddr, Option<String>, Instant)>,
}

impl Lab {
    /// The faults as `GET /lab` lists them.
    pub fn list() -> Answer {
        let faults = FAULTS.iter().map(|row| {
            let mut parameters = Map::new();
            if row.seconds > 0 {
                let text = format!("a time, such as 5s, up to 5m; {}s unless given", row.seconds);
                parameters.insert("for".into(), text.into());
            }
            if let Some((name, text)) = row.parameter {
                parameters.insert(name.into(), text.into());
            }
            let scope = if row.scope == Scope::Client { "client" } else { "server" };
            let (name, does, parameters) = (row.name, to_json(&row.does.into()), to_json(&parameters.into()));
            format!(r#"{{"does":{does},"name":"{name}","parameters":{parameters},"scope":"{scope}"}}"#)
        });
        let faults: Vec<String> = faults.collect();
        Answer::json(format!(r#"{{"faults":[{}]}}"#, faults.join(",")))
    }

    /// Switches a fault on, of one client or, without one, of the server. It replaces the one before it.
    pub fn switch_on(
        &self,
        hub: &Hub,
        client: Option<u64>,
        name: &str,
        call: &Call,
    ) -> Result<Answer, Answer> {
        let scope = if client.is_some() { Scope::Client } else { Scope::Server };
        let row = FAULTS.iter().find(|row| row.scope == scope && row.name == name);
        let row = row.ok_or_else(|| Answer::refusal(404, "no such fault; GET /lab lists them"))?;
        let now = Instant::now();
        let on = row.on(call, now).map_err(|text| Answer::refusal(400, text))?;
        match (client, row.fault) {
            (Some(id), fault) => {
                let absent = || Answer::refusal(404, "no such client; GET /clients lists them");
                let client = hub.client(id).ok_or_else(absent)?;
                let switch = self.lock().clients.get(&client.address).cloned().ok_or_else(absent)?;
                *lock(&switch) = Some(on);
                if fault == Fault::Bom {
                    let bom = (client.address.ip(), client.user_agent.clone(), on.until);
                    self.lock().boms.push(bom);
                }
                if matches!(fault, Fault::End | Fault::Cut | Fault::Bom) {
                    hub.disconnect(id);
                }
            }
            (None, Fault::ForgetHistory) => hub.forget_history(),
            (None, Fault::Restart) => {
                hub.forget_history();
                hub.disconnect_all();
            }
            (None, _) => self.lock().server = Some(on),
        }
        let ms = (row.seconds > 0).then(|| (on.until - now).as_millis() as u64);
        let (fault, client, ms) = (row.name, to_json(&client.into()), to_json(&ms.into()));
        Ok(Answer::json(format!(r#"{{"client":{client},"fault":"{fault}","for_ms":{ms}}}"#)))
    }

    /// What somebody gets instead of the stream.
    pub fn refusal(&self, call: &Call) -> Option<Answer> {
        let on = self.lock().server.filter(On::is_on)?;
        let answer = match on.fault {
            Fault::Refuse if on.status == 204 => Answer::empty(204),
            Fault::Refuse => {
                let answer = Answer::refusal(on.status, "the lab opens no stream now");
                let seconds = on.until.saturating_duration_since(Instant::now()).as_secs() + 1;
                match on.status {
                    429 | 503 => answer.with("Retry-After", seconds.to_string()),
                    _ => answer,
                }
            }
            Fault::Redirect if call.parameter("redirected").is_none() => {
                // The path is that of a stream. Encoded anew, the rest holds letters, digits and percent signs only.
                let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
                let pairs =
                    call.query.iter().map(|(name, value)| format!("&{}={}", encoded(name), encoded(value)));
                let location = format!("{}?redirected=1{}", call.path, pairs.collect::<String>());
                Answer::empty(307).with("Location", location).with("Cache-Control", "no-store")
            }
            Fault::WrongType => Answer::text("text/html", "<p>Welcome! Please log in.</p>\n".into()),
            _ => return None,
        };
        Some(answer)
    }

    /// Puts our wire round that of a new client.
    pub fn wrap(self: &Arc<Lab>, arrival: Arrival) -> Arrival {
        let address = arrival.address;
        let mut state = self.lock();
        let delayed = state.server.filter(|on| on.fault == Fault::Delay && on.is_on());
        let stall = delayed.map(|on| On { fault: Fault::Stall, until: Instant::now() + on.by, ..on });
        let switch = Arc::new(Mutex::new(stall));
        state.clients.insert(address, Arc::clone(&switch));
        state.boms.retain(|(_, _, until)| *until > Instant::now());
        let is_here = |(ip, agent, _): &(IpAddr, Option<String>, _)| {
            *ip == address.ip() && *agent == arrival.user_agent
        };
        let bom = state.boms.iter().position(is_here);
        if let Some(index) = bom {
            state.boms.swap_remove(index);
        }
        drop(state);
        let wire = FaultyWire {
            wire: arrival.wire,
            lab: Arc::clone(self),
            address,
            switch,
            chunked: arrival.chunked,
            taken: Vec::new(),
            is_past_head: false,
            opening: if bom.is_some() { "\u{feff}" } else { "" },
            events: VecDeque::new(),
            count: 0,
            has_ended: false,
            bytes: VecDeque::new(),
        };
        Arrival { wire: Box::new(wire), ..arrival }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Row {
    /// The fault as a call wants it, or what is wrong with its parameters.
    fn on(&self, call: &Call, now: Instant) -> Result<On, String> {
        let known: Vec<&str> = (self.seconds > 0)
            .then_some("for")
            .into_iter()
            .chain(self.parameter.map(|(name, _)| name))
            .collect();
        if call.query.iter().any(|(name, _)| !known.contains(&name.as_str())) {
            return Err(match &known[..] {
                [] => format!("{} has no parameters", self.name),
                known => format!("{} knows {}", self.name, known.join(" and ")),
            });
        }
        let time = |name: &str, default: Duration| {
            let time = call.parameter(name).map_or(Ok(default), duration);
            let fits = time.ok().filter(|time| *time <= LONGEST);
            fits.ok_or_else(|| format!("{name} is a time, such as 500ms or 5s, up to 5m"))
        };
        let default = if self.seconds > 0 { Duration::from_secs(self.seconds) } else { LONGEST };
        let until = now + time("for", default)?;
        let by = time("by", DELAY)?;
        let status = match call.parameter("status").unwrap_or("503") {
            "503" => 503,
            "429" => 429,
            "204" => 204,
            "404" => 404,
            "500" => 500,
            _ => return Err("status is 503, 429, 204, 404 or 500".into()),
        };
        Ok(On { fault: self.fault, until, status, by })
    }
}

impl On {
    fn is_on(&self) -> bool {
        Instant::now() < self.until
    }
}

/// A wire that takes a stream apart, does to its events what is switched on, and puts them together again.
struct FaultyWire {
    wire: Box<dyn Wire>,
    lab: Arc<Lab>,
    address: SocketAddr,
    switch: Switch,
    chunked: bool,
    /// What the stream wrote and is not whole yet: the HTTP head, a chunk, or an event without one.
    taken: Vec<u8>,
    is_past_head: bool,
    /// What goes before the first event; empty when it has gone.
    opening: &'static str,
    /// Whole events that are to be put into chunks.
    events: VecDeque<u8>,
    /// How many events there were.
    count: usize,
    has_ended: bool,
    /// Put into chunks, and on its way.
    bytes: VecDeque<u8>,
}

impl FaultyWire {
    fn fault(&self) -> Option<Fault> {
        lock(&self.switch).filter(On::is_on).map(|on| on.fault)
    }

    /// Takes apart what is whole.
    fn take(&mut self, bytes: &[u8]) {
        self.taken.extend_from_slice(bytes);
        if !self.is_past_head {
            let Some(end) = position(&self.taken, b"\r\n\r\n") else { return };
            self.is_past_head = true;
            self.bytes.extend(self.taken.drain(..end + 4));
        }
        if !self.chunked {
            let end = self.taken.windows(2).rposition(|pair| pair == b"\n\n").map_or(0, |start| start + 2);
            let events: Vec<u8> = self.taken.drain(..end).collect();
            self.treat(&events);
            return;
        }
        while let Some(end) = position(&self.taken, b"\r\n") {
            let size = std::str::from_utf8(&self.taken[..end]).ok();
            let size =
                size.and_then(|size| usize::from_str_radix(size, 16).ok()).expect("our chunks have a size");
            let start = end + 2;
            if self.taken.len() < start + size + 2 {
                return;
            }
            let chunk: Vec<u8> = self.taken.drain(..start + size + 2).collect();
            self.treat(&chunk[start..start + size]);
            // Who is cut off never sees the last chunk.
            self.has_ended |= size == 0 && self.fault() != Some(Fault::Cut);
        }
    }

    fn treat(&mut self, events: &[u8]) {
        let fault = self.fault();
        let text = std::str::from_utf8(events).expect("whole events are text");
        for mut frame in text.split_inclusive("\n\n") {
            self.count += 1;
            if !self.opening.is_empty() {
                // Who does not know the mark loses its line, and would not notice the loss of this one.
                let (first, rest) = frame.split_once('\n').unwrap_or((frame, ""));
                if first.starts_with("retry: ") {
                    frame = rest;
                }
                self.events.extend(std::mem::take(&mut self.opening).as_bytes());
            }
            match fault {
                // A last one goes on: it begins with the time to come back.
                Some(Fault::SwallowHeartbeats) if frame.starts_with("event: heartbeat\n") => {}
                Some(Fault::Comments) => self.events.extend(with_comments(frame).as_bytes()),
                Some(Fault::OddFraming) => self.events.extend(odd(frame, self.count).as_bytes()),
                _ => self.events.extend(frame.as_bytes()),
            }
        }
    }

    /// Sends what it has, as far as the fault and the socket let it.
    fn push(&mut self) -> io::Result<()> {
        let mut drips = DRIPS;
        loop {
            if self.is_held() {
                return Err(ErrorKind::WouldBlock.into());
            }
            while !self.bytes.is_empty() {
                match self.wire.write(self.bytes.as_slices().0)? {
                    0 => return Err(ErrorKind::WriteZero.into()),
                    sent => drop(self.bytes.drain(..sent)),
                }
            }
            let is_dripping = self.fault() == Some(Fault::Drip);
            if is_dripping {
                // A packet of its own.
                self.wire.flush()?;
            }
            match self.events.len() {
                0 if !self.has_ended => return Ok(()),
                0 => {
                    self.has_ended = false;
                    self.bytes.extend(b"0\r\n\r\n");
                }
                _ if is_dripping && drips == 0 => return Err(ErrorKind::WouldBlock.into()),
                _ if is_dripping => {
                    drips -= 1;
                    self.send_chunk(1);
                }
                all => self.send_chunk(all),
            }
        }
    }

    fn send_chunk(&mut self, size: usize) {
        if self.chunked {
            self.bytes.extend(format!("{size:x}\r\n").as_bytes());
        }
        self.bytes.extend(self.events.drain(..size));
        if self.chunked {
            self.bytes.extend(b"\r\n");
        }
    }

    /// The beginning of an event, in a chunk that announces all of it.
    fn cut(&mut self) -> io::Result<()> {
        self.push()?;
        if self.chunked {
            self.bytes.extend(format!("{:x}\r\n", 2 * HALF_AN_EVENT.len()).as_bytes());
        }
        self.bytes.extend(HALF_AN_EVENT.as_bytes());
        self.push()?;
        self.wire.flush()
    }
}

impl Write for FaultyWire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // One write at a time: what it becomes is gone before the next is taken.
        self.push()?;
        self.take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()?;
        self.wire.flush()
    }
}

impl Wire for FaultyWire {
    fn unacknowledged(&self) -> Option<u64> {
        let here = if self.is_held() { 0 } else { self.bytes.len() + self.events.len() };
        Some(self.wire.unacknowledged()? + here as u64)
    }

    fn is_held(&self) -> bool {
        self.fault() == Some(Fault::Stall)
    }
}

impl Drop for FaultyWire {
    fn drop(&mut self) {
        if self.fault() == Some(Fault::Cut) {
            // A client that takes no more is cut all the same.
            self.cut().ok();
        }
        let mut state = self.lab.lock();
        // A new stream may have come from the same port.
        if state.clients.get(&self.address).is_some_and(|switch| Arc::ptr_eq(switch, &self.switch)) {
            state.clients.remove(&self.address);
        }
    }
}

/// The event with a comment before each of its lines; nobody may take one for a field.
fn with_comments(frame: &str) -> String {
    let comments = [": a comment\n", ":\n", ":data: a comment, too\n", "::event: x\n"];
    let lines = lines(frame).zip(comments.iter().cycle());
    let mut text: String = lines.flat_map(|(line, comment)| [comment, line, "\n"]).collect();
    text.push('\n');
    text
}

/// The event as nobody writes it and everybody has to read it.
fn odd(frame: &str, number: usize) -> String {
    // Of the whole event: a CR before an LF would be one end of a line, and not two.
    let end = ["\r", "\r\n", "\n"][number % 3];
    let mut written = vec![
        "unknown: field".to_owned(),
        "unknown".to_owned(),
        "Data: names are written small".to_owned(),
        " data: and begin with a letter".to_owned(),
        // The mark is skipped at the beginning of a stream, and part of a name everywhere else.
        "\u{feff}data: no mark here".to_owned(),
        "retry: soon".to_owned(),
        "id: an id has no \0".to_owned(),
        "event: of-two-the-last".to_owned(),
    ];
    let (data, others): (Vec<&str>, Vec<&str>) = lines(frame).partition(|line| line.starts_with("data:"));
    let is_json = ["event: hello", "event: init", "event: update"].iter().any(|name| others.contains(name));
    for line in data {
        let value = line["data:".len()..].strip_prefix(' ').unwrap_or_default();
        if is_json && value.len() > 1 && value.starts_with(['{', '[']) {
            let (bracket, rest) = value.split_at(1);
            written.extend([format!("data:{bracket}"), format!("data:{rest}")]);
        } else if value.starts_with(' ') {
            written.push(line.to_owned());
        } else if value.is_empty() {
            written.push("data".to_owned());
        } else {
            written.push(format!("data:{value}"));
        }
    }
    written.extend(others.iter().map(|line| line.replacen(": ", ":", 1)));
    written.push(String::new());
    written.iter().flat_map(|line| [line.as_str(), end]).collect()
}

/// The lines of an event, without the empty one at its end.
fn lines(frame: &str) -> impl Iterator<Item = &str> {
    frame.strip_suffix("\n\n").unwrap_or(frame).split('\n')
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
