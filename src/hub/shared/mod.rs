//! Sharing: one document and one history for several servers, in the order of a journal.
//!
//! Whoever publishes appends to the journal (`commit`), and one thread follows it (`follow`). The one rule: nothing is
//! published that the journal does not have, and a server that cannot go on from what it has takes what the journal has.

mod commit;
mod follow;
mod happening;

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clock::now_ms;
use crate::config::Config;
use crate::document::Document;
use crate::hub::Hub;
use crate::hub::shared::commit::Waiting;
use crate::hub::shared::happening::document_record;
use crate::journal::{Appended, Connection, Fault, Journal};
use crate::lock::lock;
use crate::log::Log;
use crate::sse::event::EventId;

pub(crate) use happening::Loaded;

/// What the hub has where it shares.
pub(crate) struct Shared {
    journal: Journal,
    /// Drafts that wait for whoever commits next.
    queue: Mutex<Vec<Arc<Waiting>>>,
    /// Whoever holds it appends. Locked before the hub's.
    writer: Mutex<Option<Connection>>,
    /// For reading up to an id that another server has told. Whoever holds it reads, one at a time.
    reader: Mutex<Option<Connection>>,
    link: Mutex<Link>,
    /// Held by each pass of a fan-out thread. Whoever takes another branch waits for their end, or the rest of a pass would
    /// come behind the new document.
    passes: RwLock<()>,
    /// The journal was empty at the start, and got the document from here.
    is_seeded: bool,
}

/// Whether the journal can be used.
#[derive(Default)]
struct Link {
    /// Since when it cannot.
    down_since: Option<Instant>,
    /// What was logged of that, and not taken back yet.
    said: Option<Fault>,
}

/// The journal, and what it had in it at the start.
pub(crate) struct Opened {
    pub shared: Shared,
    pub loaded: Loaded,
}

/// Connects to the journal that the configuration names, if it names one. An empty one gets the document that was saved.
///
/// # Errors
/// It cannot be used: the text says where it is and why. Or `InvalidData`: the document is none that a hub takes.
pub(crate) fn open(config: &Config, saved: &Value, log: &Log) -> io::Result<Option<Opened>> {
    let Some(url) = config.redis.clone() else { return Ok(None) };
    let journal = Journal { url, key: config.redis_key.clone() };
    let start = EventId::NONE.next_of_many(now_ms());
    let document = Document::saved(start, config.max_document_bytes, saved.clone())
        .map_err(|refusal| io::Error::new(ErrorKind::InvalidData, refusal))?;
    let begin = || {
        let mut connection = journal.connect()?;
        let seed = document_record(start.next_of_many(now_ms()), start, &document);
        let is_seeded = connection.last_id()?.is_none()
            && matches!(connection.append(EventId::NONE, None, &[seed])?, Appended::Done);
        let loaded = Loaded::read(&mut connection, config)?;
        Ok((connection, is_seeded, loaded))
    };
    let (connection, is_seeded, loaded) = begin().map_err(|fault: Fault| {
        io::Error::other(format!("--redis {}, key {}: {}", journal.url, journal.key, fault.text()))
    })?;
    if config.document.is_some() && !loaded.document.has_value_of(&document) {
        log.line(|| {
            format!("the document is the one of Redis at {}, and not that of --document", journal.url)
        });
    }
    let shared = Shared {
        journal,
        queue: Mutex::default(),
        writer: Mutex::new(Some(connection)),
        reader: Mutex::default(),
        link: Mutex::default(),
        passes: RwLock::new(()),
        is_seeded,
    };
    Ok(Some(Opened { shared, loaded }))
}

impl Shared {
    fn is_up(&self) -> bool {
        lock(&self.link).down_since.is_none()
    }
}

impl Hub {
    /// The line of the start that says what is shared, if anything is.
    pub fn shares(&self) -> String {
        let Some(Shared { journal: Journal { url, key }, is_seeded, .. }) = &self.shared else {
            return String::new();
        };
        let how = if *is_seeded { "was empty, and is seeded from here" } else { "found" };
        format!("\n  redis:    {url}, key {key}, {how}; last id {}", self.last_id())
    }

    /// Whether there is nothing to connect to, or it is connected.
    pub fn is_connected(&self) -> bool {
        self.shared.as_ref().is_none_or(Shared::is_up)
    }

    /// Whether what is served here is fresh enough, for whoever chooses between servers.
    pub fn is_ready(&self) -> bool {
        let down_since = self.shared.as_ref().and_then(|shared| lock(&shared.link).down_since);
        let lost_for = down_since.map_or(Duration::ZERO, |since| since.elapsed());
        lost_for < self.config.heartbeat * 2
    }

    /// A fan-out thread's hold on the branch that there is, where it can change.
    pub(super) fn hold_branch(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let passes = &self.shared.as_ref()?.passes;
        Some(passes.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn last_id(&self) -> EventId {
        self.lock().history.last_id()
    }

    fn knows(&self, place: EventId) -> bool {
        self.lock().history.after(place).is_some()
    }

    /// The journal cannot be used. Says why, once.
    fn lose(&self, shared: &Shared, fault: Fault) {
        let mut link = lock(&shared.link);
        link.down_since.get_or_insert_with(Instant::now);
        self.metrics.journal.connected.set(0);
        let is_said = match (&link.said, &fault) {
            (None, _) => false,
            (Some(said), Fault::Foreign(..)) => *said == fault,
            (Some(_), _) => true,
        };
        if !is_said {
            let Journal { url, key } = &shared.journal;
            self.log.line(|| {
                format!("Redis at {url}, key {key}, cannot be used: {}; writes are refused", fault.text())
            });
            link.said = Some(fault);
        }
    }

    /// The journal can be read again. That it can be written to, only a write shows.
    fn find(&self, shared: &Shared) {
        let mut link = lock(&shared.link);
        link.down_since = None;
        self.metrics.journal.connected.set(1);
        self.metrics.journal.reconnects.add(1);
        if !matches!(link.said, Some(Fault::Refused(_))) {
            self.say_that_it_is_back(shared, &mut link);
        }
    }

    fn say_that_it_is_back(&self, shared: &Shared, link: &mut Link) {
        if link.said.take().is_some() {
            self.log.line(|| format!("Redis at {} is back", shared.journal.url));
        }
    }
}
