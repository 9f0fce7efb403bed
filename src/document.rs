//! The document: one JSON object, changed by merge patches (RFC 7396) and by nothing else.
//!
//! `hub` calls it under its lock. The one rule: a patch is judged whole before any of it is applied, so a refused
//! write changes nothing.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::sse::event::{EventId, Topic};

/// A merge patch of the whole document: for each topic its new value, a patch of its value, or null.
pub(crate) type Patch = Map<String, Value>;

/// What a write does to the document, or to one topic of it.
pub(crate) enum Change {
    /// Merges a value into it.
    Patch(Value),
    /// Puts a value in its place.
    Put(Value),
    Delete,
}

/// Levels of objects and arrays at most. The document itself is the first.
const MAX_DEPTH: usize = 100;

/// Topics at most.
const MAX_TOPICS: usize = 1_024;

/// What an object or an array weighs beside its text: `{"a":1}` is 7 bytes of JSON and 640 in memory. So a document takes
/// at most about 25 times its weight.
const CONTAINER_WEIGHT: usize = 40;

/// The weight of an empty object or array.
const EMPTY_WEIGHT: usize = CONTAINER_WEIGHT + 2;

/// Why a write was refused. The text tells the publisher what was wrong, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The body does not fit the request.
    Invalid(String),
    /// The document would exceed a limit.
    TooLarge(String),
    /// The topic to delete is not in the document.
    Absent(String),
    /// A condition of the request, such as `If-Match`, does not hold.
    Unmet(&'static str),
    /// The server is stopping.
    Stopping,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Invalid(text) | Refusal::TooLarge(text) | Refusal::Absent(text) => f.write_str(text),
            Refusal::Unmet(text) => f.write_str(text),
            Refusal::Stopping => f.write_str("the server is stopping; try again later"),
        }
    }
}

impl std::error::Error for Refusal {}

/// How compressed data begins, where it says so: gzip, zlib, Zstandard, xz, LZ4, bzip2 and zip.
const COMPRESSED: [&[u8]; 10] = [
    b"\x1f\x8b",
    b"x\x01",
    b"x\x5e",
    b"x\x9c",
    b"x\xda",
    b"\x28\xb5\x2f\xfd",
    b"\xfd7zXZ",
    b"\x04\x22\x4d\x18",
    b"BZh",
    b"PK\x03\x04",
];

/// JSON from the outside, which can hardly be part of a document of `max_bytes` where it has very many containers.
/// Of a doubled key the last wins; a byte order mark at the start is skipped.
///
/// # Errors
/// Says where the text stops being JSON.
pub(crate) fn parse(body: &[u8], max_bytes: usize) -> Result<Value, Refusal> {
    parse_as("the body", body, max_bytes)
}

/// The same of something that is called otherwise.
pub(crate) fn parse_as(what: &str, json: &[u8], max_bytes: usize) -> Result<Value, Refusal> {
    let json = without_mark(json);
    let no_json = |text: String| {
        let is_compressed = COMPRESSED.iter().any(|start| json.starts_with(start));
        let compressed =
            || format!("{what} is compressed, and compression is not spoken; send the JSON as it is");
        Refusal::Invalid(if is_compressed { compressed() } else { text })
    };
    let text = std::str::from_utf8(json)
        .map_err(|_| no_json(format!("{what} is not UTF-8; JSON is, and compression is not spoken")))?;
    // Before anything is made of it.
    if containers_in(text) * CONTAINER_WEIGHT > max_bytes {
        return Err(too_heavy(max_bytes));
    }
    serde_json::from_str(text).map_err(|error| {
        let error = error.to_string();
        // serde_json goes 127 levels deep, and has no other way of saying so.
        if error.starts_with("recursion limit exceeded") {
            return Refusal::Invalid(format!("{what} is too deep: more than {MAX_DEPTH} levels"));
        }
        no_json(format!("{what} is not JSON: {error}"))
    })
}

/// The text behind a byte order mark, which some editors and shells put before UTF-8.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// A value as JSON. `Value::to_string` would add serializers of its own to the program, for the detour through `fmt`.
pub(crate) fn to_json(value: &Value) -> String {
    serde_json::to_string(value).expect("a value becomes JSON")
}

/// Applies a merge patch to a value (RFC 7396, section 2).
///
/// ```
/// let mut document = serde_json::json!({"temp": 21, "lamp": "on"});
/// statecast::merge(&mut document, serde_json::json!({"temp": 22, "lamp": null}));
/// assert_eq!(document, serde_json::json!({"temp": 22}));
/// ```
pub fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let members = target.as_object_mut().expect("it was made an object above");
    for (key, value) in patch {
        if value.is_null() {
            members.remove(&key);
        } else {
            merge(members.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// The smallest merge patch that turns `old` into `new`. No object in `new` may have a null member, except inside an array.
///
/// Members that stay are left out. Members that go are named, with null. A value that is not an object in both is sent
/// whole.
///
/// ```
/// use serde_json::json;
/// let patch = statecast::diff(&json!({"a": 1, "b": {"c": 2, "d": 3}}), &json!({"b": {"c": 2, "d": 4}}));
/// assert_eq!(patch, json!({"a": null, "b": {"d": 4}}));
/// ```
#[must_use]
pub fn diff(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return new.clone() };
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let mut patch: Map<String, Value> = gone.map(|key| (key.clone(), Value::Null)).collect();
    for (key, value) in new {
        match old.get(key) {
            Some(was) if is_same(was, value) => None,
            Some(was) => patch.insert(key.clone(), diff(was, value)),
            None => patch.insert(key.clone(), value.clone()),
        };
    }
    Value::Object(patch)
}

/// Whether two values are the same JSON, in whatever order their members are. `-0.0` equals `0.0`, and is not the same.
fn is_same(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Number(old), Value::Number(new)) => {
            old == new && old.as_f64().map(f64::to_bits) == new.as_f64().map(f64::to_bits)
        }
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| is_same(old, new))
        }
        (Value::Object(old), Value::Object(new)) => {
            let has = |(key, old)| new.get(key).is_some_and(|new| is_same(old, new));
            old.len() == new.len() && old.iter().all(has)
        }
        _ => old == new,
    }
}

/// The document and the id of each topic's last change.
pub(crate) struct Document {
    /// An object: topics and their values.
    whole: Value,
    /// The id of each topic's last change.
    changed: HashMap<String, EventId>,
    last_change: EventId,
    /// The weight of `whole`, kept so that a small patch of a large document stays cheap.
    weight: usize,
    max_weight: usize,
}

impl Document {
    /// An empty document, last changed at `start`, that may grow to about `max_bytes` of JSON.
    pub fn new(start: EventId, max_bytes: usize) -> Document {
        Document {
            whole: Value::Object(Map::new()),
            changed: HashMap::new(),
            last_change: start,
            weight: EMPTY_WEIGHT,
            max_weight: max_bytes,
        }
    }

    /// A document as it was saved.
    ///
    /// # Errors
    /// It could not be written so.
    pub fn saved(start: EventId, max_bytes: usize, saved: Value) -> Result<Document, Refusal> {
        let mut document = Document::new(start, max_bytes);
        let patch = document.patch(None, saved)?;
        document.apply(patch, start);
        Ok(document)
    }

    /// Judges a change: the patch that it comes to.
    pub fn judge(&self, topic: Option<&Topic>, change: Change) -> Result<Patch, Refusal> {
        match change {
            Change::Patch(body) => self.patch(topic, body),
            Change::Put(body) => self.put(topic, body),
            Change::Delete => self.delete(topic),
        }
    }

    /// The patch for `PATCH`: the body, checked.
    fn patch(&self, topic: Option<&Topic>, body: Value) -> Result<Patch, Refusal> {
        self.checked(addressed(topic, body)?)
    }

    /// The patch for `PUT`: the smallest one from the old value to the new. It names the topic that was put also when
    /// nothing changed.
    fn put(&self, topic: Option<&Topic>, body: Value) -> Result<Patch, Refusal> {
        let old = self.at(topic).unwrap_or(&Value::Null);
        // As merging stores it, so that whatever is stored can be sent as a patch.
        let mut new = Value::Null;
        merge(&mut new, body);
        self.patch(topic, diff(old, &new))
    }

    /// The patch for `DELETE`.
    fn delete(&self, topic: Option<&Topic>) -> Result<Patch, Refusal> {
        match topic {
            None => self.put(None, Value::Object(Map::new())),
            Some(_) if self.at(topic).is_some() => addressed(topic, Value::Null),
            Some(_) => Err(absent()),
        }
    }

    /// Applies a patch that a change of the document came to, as it is now.
    pub fn apply(&mut self, patch: Patch, id: EventId) {
        self.weight = self.weight_after(&patch);
        self.last_change = id;
        for (key, value) in &patch {
            if value.is_null() {
                self.changed.remove(key);
            } else {
                self.changed.insert(key.clone(), id);
            }
        }
        merge(&mut self.whole, Value::Object(patch));
    }

    /// The id of the document's last change.
    pub fn last_change(&self) -> EventId {
        self.last_change
    }

    /// The id of the last change of the document or one topic; `None` for an absent topic.
    pub fn changed(&self, topic: Option<&Topic>) -> Option<EventId> {
        topic.map_or(Some(self.last_change), |topic| self.changed.get(topic.as_str()).copied())
    }

    /// The ids of the last change of the document, `None`, and of each topic.
    pub fn changes(&self) -> impl Iterator<Item = (Option<&str>, EventId)> {
        let topics = self.whole.as_object().into_iter().flat_map(Map::keys);
        let of_topic = |topic| Some((Some(String::as_str(topic)), *self.changed.get(topic)?));
        std::iter::once((None, self.last_change)).chain(topics.filter_map(of_topic))
    }

    /// Takes over those ids from an earlier server with the same document.
    pub fn take_changes<'a>(&mut self, changes: impl Iterator<Item = (Option<&'a str>, EventId)>) {
        for (topic, id) in changes {
            let known = topic.map_or(Some(&mut self.last_change), |topic| self.changed.get_mut(topic));
            if let Some(known) = known {
                *known = id;
            }
        }
    }

    /// The whole document as JSON.
    pub fn json(&self) -> String {
        to_json(&self.whole)
    }

    /// The document or one topic; `None` for an absent topic.
    pub fn value(&self, topic: Option<&Topic>) -> Option<Value> {
        self.at(topic).cloned()
    }

    /// The document or one topic as JSON, and the id of its last change; `None` for an absent topic.
    pub fn get(&self, topic: Option<&Topic>) -> Option<(String, EventId)> {
        Some((to_json(self.at(topic)?), self.changed(topic)?))
    }

    fn at(&self, topic: Option<&Topic>) -> Option<&Value> {
        topic.map_or(Some(&self.whole), |topic| self.whole.get(topic.as_str()))
    }

    fn checked(&self, patch: Patch) -> Result<Patch, Refusal> {
        for key in patch.keys() {
            Topic::parse(key).map_err(|rule| Refusal::Invalid(format!("a key is no topic: {rule}")))?;
        }
        if patch.values().any(|value| depth(value) >= MAX_DEPTH) {
            let text = format!("the document would be deeper than {MAX_DEPTH} levels");
            return Err(Refusal::Invalid(text));
        }
        let is_there = |key: &String| self.changed.contains_key(key);
        let removed = patch.iter().filter(|(key, value)| value.is_null() && is_there(key)).count();
        let added = patch.iter().filter(|(key, value)| !value.is_null() && !is_there(key)).count();
        let topics = self.changed.len() + added - removed;
        if topics > MAX_TOPICS {
            let text = format!("the document would have {topics} topics; at most {MAX_TOPICS} fit");
            return Err(Refusal::TooLarge(text));
        }
        if self.weight_after(&patch) > self.max_weight {
            return Err(too_heavy(self.max_weight));
        }
        Ok(patch)
    }

    fn weight_after(&self, patch: &Patch) -> usize {
        self.weight.saturating_add_signed(growth(&self.whole, patch))
    }
}

/// The refusal for a topic that cannot be read or deleted. It names nothing of the request.
pub(crate) fn absent() -> Refusal {
    Refusal::Absent("no such topic; PUT /state/TOPIC makes it".into())
}

fn too_heavy(max_bytes: usize) -> Refusal {
    Refusal::TooLarge(format!(
        "the document would be larger than {max_bytes} bytes (--max-document), each object and array counted with \
         {CONTAINER_WEIGHT} more"
    ))
}

/// Objects and arrays in JSON text.
fn containers_in(json: &str) -> usize {
    let (mut count, mut in_string, mut escaped) = (0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// A body for a topic as a patch of the whole document. A body for the document must be such a patch.
fn addressed(topic: Option<&Topic>, body: Value) -> Result<Patch, Refusal> {
    match (topic, body) {
        (Some(topic), body) => Ok(std::iter::once((topic.as_str().to_owned(), body)).collect()),
        (None, Value::Object(patch)) => Ok(patch),
        (None, _) => {
            let text = "the document is a JSON object; send one, or name a topic: /state/TOPIC";
            Err(Refusal::Invalid(text.into()))
        }
    }
}

/// The levels of objects and arrays in a value, or in what a patch leaves: what it deletes does not count.
fn depth(value: &Value) -> usize {
    let deepest = match value {
        Value::Object(members) => members.values().map(depth).max(),
        Value::Array(items) => items.iter().map(depth).max(),
        _ => return 0,
    };
    1 + deepest.unwrap_or(0)
}

/// The length of the value's JSON, with `CONTAINER_WEIGHT` for each object and array. Each item and member counts with a
/// comma, also the last, so that adding one and removing it are exact opposites.
fn weight(value: &Value) -> usize {
    match value {
        Value::Null => 4,
        Value::Bool(value) => 5 - usize::from(*value),
        Value::Number(number) => number.to_string().len(),
        Value::String(text) => weight_of_text(text),
        Value::Array(items) => EMPTY_WEIGHT + items.iter().map(|item| weight(item) + 1).sum::<usize>(),
        Value::Object(members) => {
            let weights = members.iter().map(|(key, value)| weight_of_key(key) + weight(value));
            EMPTY_WEIGHT + weights.sum::<usize>()
        }
    }
}

/// The weight of a key with its colon, and of the comma behind its value.
fn weight_of_key(key: &str) -> usize {
    weight_of_text(key) + 2
}

fn weight_of_text(text: &str) -> usize {
    let escaped = text.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    });
    2 + escaped.sum::<usize>()
}

/// How much heavier a target gets that is an object, or becomes an empty one first, when the patch is merged into it. Only
/// what the patch names is weighed.
fn growth(target: &Value, patch: &Patch) -> isize {
    let growth_of_member = |(key, new): (&String, &Value)| {
        let old = target.get(key);
        if let (Some(old @ Value::Object(_)), Value::Object(patch)) = (old, new) {
            return growth(old, patch);
        }
        let new_weight = match new {
            Value::Null => 0,
            Value::Object(patch) => {
                (weight_of_key(key) + EMPTY_WEIGHT) as isize + growth(&Value::Null, patch)
            }
            new => (weight_of_key(key) + weight(new)) as isize,
        };
        new_weight - old.map_or(0, |old| (weight_of_key(key) + weight(old)) as isize)
    };
    patch.iter().map(growth_of_member).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn merged(mut target: Value, patch: Value) -> Value {
        merge(&mut target, patch);
        target
    }

    #[test]
    fn the_examples_of_rfc_7396_appendix_a() {
        let table = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ];
        for (target, patch, result) in table {
            assert_eq!(merged(target.clone(), patch.clone()), result, "{target} with {patch}");
        }
    }

    #[test]
    fn a_difference_names_only_what_differs() {
        let table = [
            (json!({"a":1,"b":2}), json!({"a":1,"b":3}), json!({"b":3})),
            (json!({"a":1,"b":2}), json!({"b":2}), json!({"a":null})),
            (json!({"a":{"b":1,"c":[1]}}), json!({"a":{"b":1,"c":[1,2]}}), json!({"a":{"c":[1,2]}})),
            (json!({"a":1}), json!({"a":1}), json!({})),
            (json!({"a":1}), json!({"a":{}}), json!({"a":{}})),
            (json!({"a":{"b":1}}), json!({"a":{}}), json!({"a":{"b":null}})),
            (json!(5), json!(5), json!(5)),
            (json!([1]), json!({"a":1}), json!({"a":1})),
        ];
        for (old, new, patch) in table {
            assert_eq!(diff(&old, &new), patch, "{old} to {new}");
        }
    }

    #[test]
    fn a_number_that_is_written_differently_differs() {
        let table = [
            (r#"{"a":0.0}"#, r#"{"a":-0.0}"#, r#"{"a":-0.0}"#),
            (r#"{"a":-0.0}"#, r#"{"a":0.0}"#, r#"{"a":0.0}"#),
            (r#"{"a":0}"#, r#"{"a":-0}"#, r#"{"a":-0.0}"#),
            (r#"{"a":1}"#, r#"{"a":1.0}"#, r#"{"a":1.0}"#),
            (r#"{"a":1.0}"#, r#"{"a":1}"#, r#"{"a":1}"#),
            (r#"{"a":[1,[0.0]]}"#, r#"{"a":[1,[-0.0]]}"#, r#"{"a":[1,[-0.0]]}"#),
            (r#"{"a":{"b":0.0,"c":0.0}}"#, r#"{"a":{"b":0.0,"c":-0.0}}"#, r#"{"a":{"c":-0.0}}"#),
            (r#"{"a":[{"b":0.0}]}"#, r#"{"a":[{"b":-0.0}]}"#, r#"{"a":[{"b":-0.0}]}"#),
            (r#"{"a":[{"b":0.0,"c":1}]}"#, r#"{"a":[{"c":1,"b":0.0}]}"#, "{}"),
            (r#"{"a":1e2}"#, r#"{"a":100.0}"#, "{}"),
            (r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992}"#, r#"{"a":9007199254740992}"#),
        ];
        let parse = |text: &str| parse(text.as_bytes(), 1 << 20).expect("JSON");
        for (old, new, patch) in table {
            assert_eq!(to_json(&diff(&parse(old), &parse(new))), patch, "{old} to {new}");
        }
    }

    fn document(value: Value) -> Document {
        let mut document = Document::new(EventId::first(1, 0), 10_000);
        let patch = document.patch(None, value).expect("a document");
        document.apply(patch, EventId::first(2, 0));
        document
    }

    fn text(document: &Document) -> String {
        document.get(None).expect("the document is always there").0
    }

    #[test]
    fn a_put_topic_is_named_also_when_nothing_changed() {
        let document = document(json!({"a":5,"b":{"c":1}}));
        let (a, b) = (Topic::parse("a").ok(), Topic::parse("b").ok());
        assert_eq!(Value::Object(document.put(a.as_ref(), json!(5)).unwrap()), json!({"a":5}));
        assert_eq!(Value::Object(document.put(b.as_ref(), json!({"c":1})).unwrap()), json!({"b":{}}));
        assert_eq!(Value::Object(document.put(None, json!({"a":5,"b":{"c":1}})).unwrap()), json!({}));
    }

    #[test]
    fn a_stored_object_never_holds_a_null_member() {
        let mut document = document(json!({"a":{"b":null,"c":[null,{"d":null}]},"e":null}));
        assert_eq!(text(&document), r#"{"a":{"c":[null,{"d":null}]}}"#);
        let put = document.put(None, json!({"a":{"x":null},"f":null,"g":{"h":{"i":null}}})).unwrap();
        document.apply(put, EventId::first(3, 0));
        assert_eq!(text(&document), r#"{"a":{},"g":{"h":{}}}"#);
    }

    #[test]
    fn each_topic_knows_its_last_change() {
        let mut document = document(json!({"a":1,"b":1}));
        let a = Topic::parse("a").expect("a topic");
        let b = Topic::parse("b").expect("a topic");
        let patch = document.patch(Some(&a), json!(2)).unwrap();
        document.apply(patch, EventId::first(7, 0));
        assert_eq!(document.get(Some(&a)), Some(("2".into(), EventId::first(7, 0))));
        assert_eq!(document.get(Some(&b)), Some(("1".into(), EventId::first(2, 0))));
        assert_eq!(document.get(None), Some((r#"{"a":2,"b":1}"#.into(), EventId::first(7, 0))));
        let gone = document.delete(Some(&a)).unwrap();
        document.apply(gone, EventId::first(8, 0));
        assert_eq!(document.get(Some(&a)), None);
        assert!(matches!(document.delete(Some(&a)), Err(Refusal::Absent(_))));
    }

    #[test]
    fn a_refused_write_names_the_limit() {
        let document = document(json!({"a":1}));
        let deep = |levels: usize| (0..levels).fold(json!(1), |value, _| json!([value]));
        let a = Topic::parse("a").expect("a topic");
        assert!(document.patch(Some(&a), deep(99)).is_ok());
        assert_eq!(
            document.patch(Some(&a), deep(100)),
            Err(Refusal::Invalid("the document would be deeper than 100 levels".into()))
        );
        let large = document.patch(Some(&a), json!("x".repeat(10_000)));
        assert!(matches!(large, Err(Refusal::TooLarge(text)) if text.contains("larger than 10000 bytes")));
        let many = Value::Object((0..1_024).map(|n| (format!("t{n}"), json!(0))).collect());
        let many = Document::new(EventId::first(1, 0), usize::MAX).patch(None, many).map(|patch| patch.len());
        assert_eq!(many, Ok(1_024));
        let many = Value::Object((0..1_025).map(|n| (format!("t{n}"), json!(0))).collect());
        let many = Document::new(EventId::first(1, 0), usize::MAX).put(None, many);
        assert!(matches!(many, Err(Refusal::TooLarge(text)) if text.contains("1025 topics")));
        for body in [json!(1), json!([1]), json!(null), json!("a")] {
            assert!(matches!(document.patch(None, body), Err(Refusal::Invalid(_))));
        }
        assert!(matches!(document.patch(None, json!({"a b":1})), Err(Refusal::Invalid(_))));
    }

    #[test]
    fn a_body_is_utf_8_and_json_and_its_last_key_wins() {
        let parse = |body: &[u8]| parse(body, 4 << 20);
        assert_eq!(parse(br#"{"a":1,"a":2}"#), Ok(json!({"a":2})));
        for body in [&b"\xff"[..], b"", b"{", b"{}x", b"1e999999", b"'a'", b"nan"] {
            assert!(matches!(parse(body), Err(Refusal::Invalid(_))), "{body:?}");
        }
        assert!(matches!(parse("[".repeat(100_000).as_bytes()), Err(Refusal::Invalid(_))));
    }

    #[test]
    fn a_byte_order_mark_is_skipped_once_and_at_the_start() {
        let parse = |body: &[u8]| parse(body, 4 << 20);
        assert_eq!(parse(b"\xef\xbb\xbf{}"), Ok(json!({})));
        assert_eq!(parse(b"\xef\xbb\xbf \"\xef\xbb\xbf\""), Ok(json!("\u{feff}")));
        for body in [
            &b"\xef\xbb\xbf"[..],
            b"\xef\xbb\xbf\xef\xbb\xbf1",
            b" \xef\xbb\xbf1",
            b"1\xef\xbb\xbf",
            b"\xff\xfe1\0",
        ] {
            assert!(matches!(parse(body), Err(Refusal::Invalid(_))), "{body:?}");
        }
    }

    #[test]
    fn json_that_is_too_deep_is_said_to_be_that() {
        for levels in [128, 1_000] {
            for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
                let body = open.repeat(levels) + "1" + &close.repeat(levels);
                let refusal = parse(body.as_bytes(), 4 << 20).expect_err("too deep");
                assert_eq!(refusal.to_string(), "the body is too deep: more than 100 levels");
            }
        }
    }

    #[test]
    fn json_that_was_sent_compressed_is_said_to_be_that() {
        // `1`, as gzip, zlib at two levels, zstd, xz, bzip2 and brotli give it.
        let table: [&[u8]; 7] = [
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x33\x04\0\xb7\xef\xdc\x83\x01\0\0\0",
            b"x\x01\x33\x04\0\0\x32\0\x32",
            b"x\x9c\x33\x04\0\0\x32\0\x32",
            b"\x28\xb5\x2f\xfd\x20\x01\x09\0\0\x31",
            b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46",
            b"BZh91AY&SY",
            b"\x0b\0\x80\x31\x03",
        ];
        for body in table {
            let refusal = parse(body, 4 << 20).expect_err("no JSON").to_string();
            assert!(refusal.contains("compression is not spoken"), "{body:?}: {refusal}");
        }
    }

    #[test]
    fn a_body_of_too_many_containers_is_refused_before_anything_is_made_of_it() {
        assert_eq!(containers_in(r#"{"a{[":["\"[",{},"\\"],"b":[]}"#), 4);
        let tiny = format!("[{}]", vec![r#"{"a":1}"#; 30].join(","));
        assert!(parse(tiny.as_bytes(), 31 * CONTAINER_WEIGHT).is_ok());
        assert!(matches!(parse(tiny.as_bytes(), 31 * CONTAINER_WEIGHT - 1), Err(Refusal::TooLarge(_))));
        assert!(matches!(parse("[".repeat(1_000_000).as_bytes(), 4 << 20), Err(Refusal::TooLarge(_))));
    }

    /// Values as they can be stored: no null as an object's member.
    fn stored_value() -> impl Strategy<Value = Value> {
        value(false)
    }

    fn patch_value() -> impl Strategy<Value = Value> {
        value(true)
    }

    fn value(nulls: bool) -> impl Strategy<Value = Value> {
        let key = "[a-c_\"\\\\\u{1}é]{1,2}";
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from).prop_filter("a number", |value| !value.is_null()),
            prop::sample::select(&[0.0, -0.0][..]).prop_map(Value::from),
            "[ -~é\n\u{7}]{0,6}".prop_map(Value::from),
        ];
        let leaf = if nulls { prop_oneof![leaf, Just(Value::Null)].boxed() } else { leaf.boxed() };
        leaf.prop_recursive(4, 24, 4, move |inner| {
            let item = prop_oneof![inner.clone(), Just(Value::Null)];
            prop_oneof![
                prop::collection::vec(item, 0..4).prop_map(Value::from),
                prop::collection::btree_map(key, inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn has_null_member(value: &Value) -> bool {
        match value {
            Value::Object(members) => members.values().any(|value| value.is_null() || has_null_member(value)),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn merging_a_difference_gives_the_new_value(old in stored_value(), new in stored_value()) {
            let merged = merged(old.clone(), diff(&old, &new));
            prop_assert_eq!(merged.to_string(), new.to_string());
        }

        #[test]
        fn merging_stores_no_null_member(old in stored_value(), patch in patch_value()) {
            prop_assert!(!has_null_member(&merged(old, patch)));
        }

        #[test]
        fn growth_is_what_merging_adds(old in stored_value(), patch in patch_value()) {
            let (document, patch) = (json!({"a": old}), Map::from_iter([("a".to_owned(), patch)]));
            for old in [document, json!({})] {
                let new = merged(old.clone(), Value::Object(patch.clone()));
                prop_assert_eq!(growth(&old, &patch), weight(&new) as isize - weight(&old) as isize);
            }
        }

        #[test]
        fn weight_is_the_length_of_the_json_and_more_for_each_container(value in patch_value()) {
            fn around(value: &Value) -> usize {
                let comma = |is_empty: bool| CONTAINER_WEIGHT + usize::from(!is_empty);
                match value {
                    Value::Array(items) => comma(items.is_empty()) + items.iter().map(around).sum::<usize>(),
                    Value::Object(members) => {
                        comma(members.is_empty()) + members.values().map(around).sum::<usize>()
                    }
                    _ => 0,
                }
            }
            let json = value.to_string();
            prop_assert_eq!(weight(&value), json.len() + around(&value));
        }

        #[test]
        fn depth_is_that_of_what_is_left(patch in patch_value()) {
            fn deep(value: &Value) -> usize {
                match value {
                    Value::Array(items) => 1 + items.iter().map(deep).max().unwrap_or(0),
                    Value::Object(members) => 1 + members.values().map(deep).max().unwrap_or(0),
                    _ => 0,
                }
            }
            prop_assert_eq!(depth(&patch), deep(&merged(Value::Null, patch)));
        }
    }
}
