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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MAX: usize = 10_000;

    fn id(ms: u64) -> EventId {
        EventId::first(ms, 0)
    }

    fn update(ms: u64, before: u64, json: &str) -> Happening {
        let record = Record {
            id: id(ms),
            before: id(before),
            kind: "update".into(),
            topic: String::new(),
            name: String::new(),
            data: json.into(),
        };
        Happening::of(record, MAX).expect("a record of ours")
    }

    fn document(ms: u64, before: u64, value: Value) -> Happening {
        let document = Document::saved(id(before), MAX, value).expect("a document");
        Happening::of(document_record(id(ms), id(before), &document), MAX).expect("a record of ours")
    }

    fn loaded(happenings: Vec<Happening>) -> Result<(String, String), Fault> {
        let mut loading = Loading::new(1 << 20);
        for happening in happenings {
            loading.add(happening);
        }
        let Loaded { document, history, .. } = loading.finish()?;
        Ok((document.json(), history.first_place().to_string()))
    }

    #[test]
    fn a_journal_is_its_last_document_and_what_came_after_it() {
        let all = vec![
            update(3, 2, r#"{"gone":1}"#),
            document(4, 3, json!({"a":1,"b":1})),
            update(5, 4, r#"{"b":null}"#),
            update(6, 5, r#"{"c":[]}"#),
        ];
        assert_eq!(loaded(all), Ok((r#"{"a":1,"c":[]}"#.into(), "2-0".into())));
    }

    #[test]
    fn what_comes_behind_a_hole_counts_only_with_a_document_behind_it() {
        let broken = || vec![document(4, 3, json!({"a":1})), update(6, 5, r#"{"b":1}"#)];
        let fault = loaded(broken()).expect_err("a hole");
        assert!(matches!(fault, Fault::Foreign(at, _) if at == "6-0"));
        let mut whole = broken();
        whole.push(document(7, 6, json!({"c":1})));
        assert_eq!(loaded(whole), Ok((r#"{"c":1}"#.into(), "5-0".into())));
        assert!(matches!(loaded(vec![update(6, 5, "{}")]), Err(Fault::Foreign(at, _)) if at == "6-0"));
    }

    #[test]
    fn an_entry_that_is_put_back_is_the_record_that_it_was_made_of() {
        let one_off = |topic: Option<&str>, text: &str, is_json| {
            let topic = topic.map(|topic| Topic::parse(topic).expect("a topic"));
            Judged::OneOff(
                topic,
                EventName::parse("x").expect("a name"),
                EventData { text: text.into(), is_json },
            )
        };
        let Value::Object(patch) = json!({"a":{"b":null,"c":"\r\n"},"d":null}) else { panic!("an object") };
        let all = [
            Judged::Update(patch),
            Judged::Update(serde_json::Map::new()),
            one_off(None, "hi", false),
            one_off(None, "", false),
            one_off(Some("a"), "", false),
            one_off(Some("a"), "\"1\"", false),
            one_off(Some("a"), "1", false),
            one_off(Some("a"), "x\r\ny\rz\n", false),
            one_off(Some("a"), "{\"b\": 1}", true),
            one_off(Some("a"), "\"1\"", true),
        ];
        for judged in all {
            let record = judged.record(id(2), id(1));
            let entry = Entry::new(id(2), &judged);
            assert_eq!(entry.record(id(1)), record);
        }
        // Nobody sees whether these were JSON, or how their lines ended.
        for judged in
            [one_off(None, "{}", true), one_off(None, "x\r\ny", false), one_off(Some("a"), "[1,\r\n2]", true)]
        {
            let entry = Entry::new(id(2), &judged);
            let again = Happening::of(entry.record(id(1)), MAX).expect("a record of ours").entry;
            let frames = |entry: &Entry| -> Vec<_> {
                entry.frames.iter().map(|(_, chunk)| chunk.bytes(true).to_vec()).collect()
            };
            assert_eq!(frames(&again), frames(&entry));
        }
    }

    #[test]
    fn what_is_in_a_record_is_judged_as_what_anybody_sends() {
        let deep = "[".repeat(101) + &"]".repeat(101);
        let deep_topic = format!("{{\"a\":{deep}}}");
        let cases = [
            ("nonsense", "", "", "{}"),
            ("update", "", "", "["),
            ("update", "", "", "[]"),
            ("update", "", "", r#"{"a b":1}"#),
            ("update", "", "", &deep_topic),
            ("json", "", "x", "{"),
            ("json", "a b", "x", "{}"),
            ("text", "", "init", ""),
            ("text", "", "", ""),
            ("document", "", "", "{}"),
            ("document", "", "{}", "{}"),
            ("document", "", r#"{"":"1-1"}"#, "[]"),
            ("document", "", r#"{"":"1-1"}"#, r#"{"a":1}"#),
            ("document", "", r#"{"":"1-1","a":"1-1"}"#, "{}"),
            ("document", "", r#"{"":"1-1","a":1}"#, r#"{"a":1}"#),
            ("document", "", r#"{"":"1-1","a":"x"}"#, r#"{"a":1}"#),
        ];
        for (kind, topic, name, data) in cases {
            let [kind, topic, name, data] = [kind, topic, name, data].map(str::to_owned);
            let record = Record { id: id(2), before: id(1), kind, topic, name, data };
            let fault = Happening::of(record.clone(), MAX).err();
            assert!(matches!(&fault, Some(Fault::Foreign(at, _)) if at == "2-0"), "{record:?}");
        }
    }
}
