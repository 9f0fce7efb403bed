//! The lab: what goes wrong with connections in life, done on purpose, so that people see how clients heal.
//!
//! It exists with `--lab` only. `routes` asks it before it opens a stream, and then lets it put a faulty wire before the
//! client's own; the hub does not notice. The one rule: a fault never changes what happened. A client that keeps to the
//! standard and comes back holds the server's document, and nothing is left of a fault that is over.

mod wire;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use crate::document::to_json;
use crate::http::{Answer, Call};
use crate::hub::Hub;
use crate::hub::client::Arrival;
use crate::lock::lock;
use crate::server::lab::wire::FaultyWire;
use crate::units::duration;

/// How long a fault stays on at most. A longer one would be forgotten, and found again as a bug.
const LONGEST: Duration = Duration::from_secs(300);

/// The statuses that `refuse` answers with.
const STATUSES: [u16; 5] = [503, 429, 204, 404, 500];

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
    /// The status of the answer.
    Refuse(u16),
    Redirect,
    WrongType,
    /// How late the first byte comes.
    Delay(Duration),
    ForgetHistory,
    Restart,
}

/// A fault as `GET /lab` lists it.
struct Row {
    /// The fault, with what a call need not say.
    fault: Fault,
    name: &'static str,
    /// How long it is on where the call does not say; 0 for a fault that happens at once.
    seconds: u64,
    does: &'static str,
}

const fn row(fault: Fault, name: &'static str, seconds: u64, does: &'static str) -> Row {
    Row { fault, name, seconds, does }
}

const OF_CLIENT: [Row; 8] = [
    row(Fault::End, "end", 0, "ends the stream cleanly, with the last chunk of HTTP"),
    row(Fault::Cut, "cut", 0, "sends half an event, with an id, and closes without the last chunk"),
    row(Fault::Stall, "stall", 5, "sends nothing; what was missed follows when the time is over"),
    row(Fault::SwallowHeartbeats, "swallow-heartbeats", 5, "leaves out the heartbeats"),
    row(Fault::Drip, "drip", 5, "sends each byte in a chunk of its own, so that letters arrive in pieces"),
    row(Fault::Bom, "bom", 30, "ends the stream; the client's next one begins with a byte order mark"),
    row(Fault::Comments, "comments", 5, "puts a comment before every line; some look like fields"),
    row(Fault::OddFraming, "odd-framing", 5, "writes events with odd but legal lines, fields and line ends"),
];

const OF_SERVER: [Row; 6] = [
    row(Fault::Refuse(503), "refuse", 5, "answers new streams with a status other than 200"),
    row(Fault::Redirect, "redirect", 5, "answers new streams with 307, to themselves with redirected=1"),
    row(Fault::WrongType, "wrong-type", 5, "answers new streams with text/html, as a hotel does"),
    row(Fault::Delay(Duration::from_secs(2)), "delay", 5, "holds back the first byte of new streams"),
    row(Fault::ForgetHistory, "forget-history", 0, "forgets what was published; open streams go on"),
    row(Fault::Restart, "restart", 0, "forgets what was published, and ends every stream"),
];

/// A fault that was switched on.
#[derive(Clone, Copy)]
struct Active {
    fault: Fault,
    until: Instant,
}

/// The switchboard.
#[derive(Default)]
pub(crate) struct Lab {
    switches: Mutex<Switches>,
}

#[derive(Default)]
struct Switches {
    server: Option<Active>,
    /// The fault of each client that has one, by the client's peer: a wire is there before its client has an id.
    clients: HashMap<SocketAddr, Active>,
    /// The clients whose next stream begins with a byte order mark, and until when it would.
    marks: Vec<(IpAddr, Option<String>, Instant)>,
}

impl Lab {
    /// The faults as `GET /lab` lists them.
    pub fn list() -> Answer {
        let of_client = OF_CLIENT.iter().map(|row| row.json("client"));
        let rows: Vec<String> = of_client.chain(OF_SERVER.iter().map(|row| row.json("server"))).collect();
        Answer::json(format!(r#"{{"faults":[{}]}}"#, rows.join(",")))
    }

    /// Switches on a fault of the client of that id or, without one, of the server. It replaces the fault before it.
    pub fn switch_on(&self, hub: &Hub, id: Option<u64>, name: &str, call: &Call) -> Result<Answer, Answer> {
        let rows = if id.is_some() { &OF_CLIENT[..] } else { &OF_SERVER };
        let row = rows.iter().find(|row| row.name == name);
        let row = row.ok_or_else(|| Answer::refusal(404, "no such fault; GET /lab lists them"))?;
        let now = Instant::now();
        let active = row.activate(call, now).map_err(|text| Answer::refusal(400, text))?;
        match (id, active.fault) {
            (Some(id), _) => self.switch_on_client(hub, id, active)?,
            (None, Fault::ForgetHistory) => hub.forget_history(),
            (None, Fault::Restart) => {
                hub.forget_history();
                hub.disconnect_all();
            }
            (None, _) => lock(&self.switches).server = Some(active),
        }
        let ms = (row.seconds > 0).then(|| (active.until - now).as_millis() as u64);
        let (client, ms) = (to_json(&id.into()), to_json(&ms.into()));
        Ok(Answer::json(format!(r#"{{"client":{client},"fault":"{name}","for_ms":{ms}}}"#)))
    }

    fn switch_on_client(&self, hub: &Hub, id: u64, active: Active) -> Result<(), Answer> {
        let client = hub.client(id);
        let client = client.ok_or_else(|| Answer::refusal(404, "no such client; GET /clients lists them"))?;
        let (address, user_agent) = (client.about.address, &client.about.user_agent);
        let mut switches = lock(&self.switches);
        switches.clients.insert(address, active);
        if active.fault == Fault::Bom {
            switches.marks.push((address.ip(), user_agent.clone(), active.until));
        }
        drop(switches);
        if matches!(active.fault, Fault::End | Fault::Cut | Fault::Bom) {
            hub.disconnect(id);
        }
        Ok(())
    }

    /// The answer instead of a stream, where a fault asks for one.
    pub fn refusal(&self, call: &Call) -> Option<Answer> {
        let active = lock(&self.switches).server?;
        let refused = |status| Answer::refusal(status, "the lab opens no stream now");
        let answer = match active.fault()? {
            Fault::Refuse(204) => Answer::empty(204),
            Fault::Refuse(status @ (429 | 503)) => {
                let seconds = active.until.saturating_duration_since(Instant::now()).as_secs() + 1;
                refused(status).with("Retry-After", seconds.to_string())
            }
            Fault::Refuse(status) => refused(status),
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

    /// Puts a faulty wire before that of a new client.
    pub fn wrap(self: &Arc<Lab>, arrival: Arrival) -> Arrival {
        let (address, now) = (arrival.address, Instant::now());
        let mut switches = lock(&self.switches);
        // An earlier stream may have come from the same port.
        switches.clients.retain(|other, active| *other != address && active.until > now);
        if let Some(Fault::Delay(by)) = switches.server.and_then(|active| active.fault()) {
            switches.clients.insert(address, Active { fault: Fault::Stall, until: now + by });
        }
        switches.marks.retain(|(.., until)| *until > now);
        let is_for_it = |(ip, agent, _): &mut _| (*ip, &*agent) == (address.ip(), &arrival.user_agent);
        let begins_with_mark = switches.marks.extract_if(.., is_for_it).next().is_some();
        drop(switches);
        FaultyWire::wrap(arrival, Arc::clone(self), begins_with_mark)
    }

    /// The fault of the client at an address.
    fn fault_of(&self, address: SocketAddr) -> Option<Fault> {
        lock(&self.switches).clients.get(&address)?.fault()
    }
}

impl Active {
    /// The fault, for as long as it is on.
    fn fault(&self) -> Option<Fault> {
        (Instant::now() < self.until).then_some(self.fault)
    }
}

impl Row {
    fn json(&self, scope: &str) -> String {
        let (does, parameters) = (to_json(&self.does.into()), to_json(&self.parameters().into()));
        format!(r#"{{"does":{does},"name":"{}","parameters":{parameters},"scope":"{scope}"}}"#, self.name)
    }

    /// The parameters, and what each can be.
    fn parameters(&self) -> Map<String, Value> {
        let time = format!("a time, such as 5s, up to 5m; {}s unless given", self.seconds);
        let time = (self.seconds > 0).then(|| ("for".to_owned(), time.into()));
        let other = match self.fault {
            Fault::Refuse(_) => {
                Some(("status", "503, 429, 204, 404 or 500; 503 and 429 say when to come back"))
            }
            Fault::Delay(_) => Some(("by", "a time, such as 2s")),
            _ => None,
        };
        time.into_iter().chain(other.map(|(name, text)| (name.to_owned(), text.into()))).collect()
    }

    /// The fault as a call asks for it, or what is wrong with the call's parameters.
    fn activate(&self, call: &Call, now: Instant) -> Result<Active, String> {
        let known = self.parameters();
        if call.query.iter().any(|(name, _)| !known.contains_key(name)) {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            let names = if names.is_empty() { "no parameters".to_owned() } else { names.join(" and ") };
            return Err(format!("{} takes {names}", self.name));
        }
        let time = |name: &str, default: Duration| {
            let time = call.parameter(name).map_or(Ok(default), duration);
            let fits = time.ok().filter(|time| *time <= LONGEST);
            fits.ok_or_else(|| format!("{name} is a time, such as 500ms or 5s, up to 5m"))
        };
        let status = |text: &str| STATUSES.into_iter().find(|status| status.to_string() == text);
        let fault = match self.fault {
            Fault::Refuse(default) => {
                let status = call.parameter("status").map_or(Some(default), status);
                Fault::Refuse(status.ok_or("status is 503, 429, 204, 404 or 500")?)
            }
            Fault::Delay(default) => Fault::Delay(time("by", default)?),
            fault => fault,
        };
        let default = if self.seconds > 0 { Duration::from_secs(self.seconds) } else { LONGEST };
        Ok(Active { fault, until: now + time("for", default)? })
    }
}
