//! What a record of the journal says, once it is understood; and all records together.
//!
//! The one rule: a record is believed nothing. What no server would have put there is a fault with the record's id.

use serde_json::Value;

use crate::config::Config;
use crate::document::{Document, parse_as, patch_of, to_json};
use crate::hub::draft::Judged;
use crate::hub::history::{Entry, EventData, History};
use crate::journal::{Connection, Fault, PAGE, Record};
use crate::sse::event::{EventId, EventName, Topic};

/// A record that was understood.
pub(super) struct Happening {
    pub id: EventId,
    /// The id of the record before it.
    pub before: EventId,
    pub what: What,
    pub entry: Entry,
}

pub(super) enum What {
    Judged(Judged),
    /// The document as it is then. To streams it is a place, and without the document it is nothing else.
    Document(Option<Box<Document>>),
}

/// How a record fits what is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Follows,
    Known,
    /// It is of another history.
    Astray,
    /// It has another document.
    Diverged,
}

impl Fit {
    pub fn is_right(self) -> bool {
        matches!(self, Fit::Follows | Fit::Known)
    }
}

impl Happening {
    /// What a record says.
    pub fn of(record: Record, max_document_bytes: usize) -> Result<Happening, Fault> {
        let (id, before) = (record.id, record.before);
        let what = what(record, max_document_bytes).map_err(|why| Fault::Foreign(id.to_string(), why))?;
        let entry = match &what {
            What::Judged(judged) => Entry::new(id, judged),
            What::Document(_) => Entry::place(id),
        };
        Ok(Happening { id, before, what, entry })
    }
}

fn what(record: Record, max_document_bytes: usize) -> Result<What, String> {
    let Record { kind, topic, name, data, .. } = record;
    let is_json = kind == "json";
    match &*kind {
        "update" => Ok(What::Judged(Judged::Update(patch_of(&data)?))),
        "document" if data.is_empty() => Ok(What::Document(None)),
        "document" => {
            let document = Document::recorded(&data, &name, max_document_bytes)?;
            Ok(What::Document(Some(Box::new(document))))
        }
        "json" | "text" => {
            if is_json {
                parse_as("its JSON", data.as_bytes(), usize::MAX).map_err(|refusal| refusal.to_string())?;
            }
            let topic = if topic.is_empty() { None } else { Some(Topic::parse(&topic)?) };
            let data = EventData { text: data, is_json };
            Ok(What::Judged(Judged::OneOff(topic, EventName::parse(&name)?, data)))
        }
        _ => Err("its k is none of update, json, text and document".to_owned()),
    }
}

impl Judged {
    /// What a draft has come to, as a record.
    pub(super) fn record(&self, id: EventId, before: EventId) -> Record {
        let (kind, topic, name, data) = match self {
            Judged::Update(patch) => ("update", None, "", to_json(&Value::Object(patch.clone()))),
            Judged::OneOff(audience, name, data) => {
                let kind = if data.is_json { "json" } else { "text" };
                (kind, audience.as_ref(), name.as_str(), data.text.clone())
            }
        };
        let topic = topic.map_or("", Topic::as_str).to_owned();
        Record { id, before, kind: kind.to_owned(), topic, name: name.to_owned(), data }
    }
}

/// The document as a record.
pub(super) fn document_record(id: EventId, before: EventId, document: &Document) -> Record {
    let (data, name) = document.record();
    Record { id, before, kind: "document".to_owned(), topic: String::new(), name, data }
}

/// What a journal holds.
pub(crate) struct Loaded {
    pub document: Document,
    pub history: History,
    /// The last record of the document, and what came after it.
    pub document_at: EventId,
    pub bytes_after: u64,
}

impl Loaded {
    /// Reads the journal from its beginning to its end.
    pub(super) fn read(connection: &mut Connection, config: &Config) -> Result<Loaded, Fault> {
        let mut loading = Loading::new(config.history_bytes);
        loop {
            let page = connection.after(loading.history.last_id(), PAGE)?;
            if page.is_empty() {
                return loading.finish();
            }
            for record in page {
                loading.add(Happening::of(record?, config.max_document_bytes)?);
            }
        }
    }
}

/// A journal that is put together record by record.
struct Loading {
    document: Option<Document>,
    history: History,
    document_at: EventId,
    bytes_after: u64,
    /// A record that does not name the one before it.
    broken_at: Option<EventId>,
    history_bytes: usize,
}

impl Loading {
    fn new(history_bytes: usize) -> Loading {
        Loading {
            document: None,
            history: History::new(EventId::NONE, history_bytes),
            document_at: EventId::NONE,
            bytes_after: 0,
            broken_at: None,
            history_bytes,
        }
    }

    /// What comes behind a hole begins anew: with a document, or it is of no use.
    fn add(&mut self, happening: Happening) {
        let Happening { id, before, what, entry } = happening;
        let last = self.history.last_id();
        if before != last {
            self.broken_at = (last != EventId::NONE).then_some(id);
            self.document = None;
            self.history = History::new(before, self.history_bytes);
        }
        self.bytes_after += entry.size() as u64;
        self.history.push(entry, id);
        match (what, &mut self.document) {
            (What::Judged(Judged::Update(patch)), Some(document)) => document.apply(patch, id),
            (What::Document(Some(document)), _) => {
                self.document = Some(*document);
                self.document_at = id;
                self.bytes_after = 0;
            }
            _ => {}
        }
    }

    fn finish(self) -> Result<Loaded, Fault> {
        let Loading { document, history, document_at, bytes_after, broken_at, .. } = self;
        let (id, why) = match (document, broken_at) {
            (Some(document), _) => return Ok(Loaded { document, history, document_at, bytes_after }),
            (None, Some(id)) => (id, "it does not name the record before it"),
            (None, None) => (history.last_id(), "there is no document before it"),
        };
        Err(Fault::Foreign(id.to_string(), why.to_owned()))
    }
}
