//! The journal: one stream in Redis that orders what several servers publish.
//!
//! Each record names the one before it, and is appended by a script that compares: these, if the last is still that one;
//! else say what came since. So nobody locks, and no server can build on a state that it does not have. The one rule: a
//! connection that failed once is never used again.

use std::time::Duration;

use redis::{Client, Cmd, ErrorKind, RedisError, Value, cmd};

use crate::redis_url::RedisUrl;
use crate::sse::event::EventId;

/// What a call of Redis may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);

/// How long to wait for the next record in one call. An idle server makes two calls in this time.
const WAIT: Duration = Duration::from_millis(500);

/// Records in one answer, at most.
pub(crate) const PAGE: usize = 1_000;

/// Appends records behind the one that is expected to be the last, or returns what came after that one. Where a last record
/// was taken away, Redis still refuses ids up to it, and is told not to.
const APPEND: &str = "
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local id = last and last[1] or '0-0'
if id ~= ARGV[1] then
  return redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', 1000)
end
for i = 3, #ARGV, 6 do
  local record = {ARGV[i], 'p', ARGV[i + 1], 'k', ARGV[i + 2], 't', ARGV[i + 3], 'n', ARGV[i + 4], 'd', ARGV[i + 5]}
  local added = redis.pcall('XADD', KEYS[1], unpack(record))
  if type(added) == 'table' and added.err then
    if i > 3 or not string.find(added.err, ' ID') then return added end
    redis.call('XSETID', KEYS[1], id)
    redis.call('XADD', KEYS[1], unpack(record))
  end
end
if ARGV[2] ~= '' then redis.call('XTRIM', KEYS[1], 'MINID', '~', ARGV[2]) end
return 1";

/// A stream of Redis.
pub(crate) struct Journal {
    pub url: RedisUrl,
    pub key: String,
}

/// One record, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub id: EventId,
    /// The id of the record before it.
    pub before: EventId,
    pub kind: String,
    pub topic: String,
    pub name: String,
    pub data: String,
}

/// Why the journal cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection failed: what was asked for is done, or not.
    Lost(String),
    /// There was no answer in time: the same, and nobody should wait again.
    Silent,
    /// Redis did not do what it was asked for.
    Refused(String),
    /// There is a record of somebody else: its id, and what is wrong with it.
    Foreign(String, String),
}

/// What has become of records that were to be appended.
pub(crate) enum Appended {
    Done,
    /// Nothing; these came before.
    Conflict(Vec<Result<Record, Fault>>),
}

/// A connection for one call at a time.
pub(crate) struct Connection {
    connection: redis::Connection,
    key: String,
}

impl Journal {
    /// The connection that is kept there, or a new one.
    pub fn connected<'a>(&self, kept: &'a mut Option<Connection>) -> Result<&'a mut Connection, Fault> {
        match kept {
            Some(connection) => Ok(connection),
            None => Ok(kept.insert(self.connect()?)),
        }
    }

    /// Connects, within a call's time.
    pub fn connect(&self) -> Result<Connection, Fault> {
        let connect = || {
            let connection = Client::open(self.url.info())?.get_connection_with_timeout(DEADLINE)?;
            connection.set_read_timeout(Some(DEADLINE))?;
            connection.set_write_timeout(Some(DEADLINE))?;
            Ok(connection)
        };
        let connection = connect().map_err(|error| match Fault::of(&error) {
            Fault::Refused(why) => Fault::Lost(why),
            fault => fault,
        })?;
        Ok(Connection { connection, key: self.key.clone() })
    }
}

impl Connection {
    /// Appends records if the last one is still the expected one; and lets go of those before `keep_from`, about.
    pub fn append(
        &mut self,
        expected: EventId,
        keep_from: Option<EventId>,
        records: &[Record],
    ) -> Result<Appended, Fault> {
        let mut command = cmd("EVAL");
        let keep_from = keep_from.map_or(String::new(), |id| id.to_string());
        command.arg(APPEND).arg(1).arg(&self.key).arg(expected.to_string()).arg(keep_from);
        for Record { id, before, kind, topic, name, data } in records {
            command.arg(id.to_string()).arg(before.to_string()).arg(kind).arg(topic).arg(name).arg(data);
        }
        match command.query(&mut self.connection).map_err(|error| Fault::of(&error))? {
            Value::Int(_) => Ok(Appended::Done),
            came => Ok(Appended::Conflict(records_of(came)?)),
        }
    }

    /// The records after a place, oldest first, so many at most.
    pub fn after(&mut self, place: EventId, count: usize) -> Result<Vec<Result<Record, Fault>>, Fault> {
        let mut command = cmd("XRANGE");
        command.arg(&self.key).arg(format!("({place}")).arg("+").arg("COUNT").arg(count);
        records_of(self.call(&command)?)
    }

    /// The same, but waits a while for the first.
    pub fn wait_after(&mut self, place: EventId) -> Result<Vec<Result<Record, Fault>>, Fault> {
        let mut command = cmd("XREAD");
        command.arg("COUNT").arg(256).arg("BLOCK").arg(WAIT.as_millis() as u64);
        command.arg("STREAMS").arg(&self.key).arg(place.to_string());
        match self.call(&command)? {
            Value::Nil => Ok(Vec::new()),
            // One pair of a key and its records.
            Value::Array(mut streams) => match streams.pop() {
                Some(Value::Array(mut pair)) => records_of(pair.pop().unwrap_or(Value::Nil)),
                _ => Err(Fault::not_redis()),
            },
            _ => Err(Fault::not_redis()),
        }
    }

    /// The id of the last record, if there is one.
    pub fn last_id(&mut self) -> Result<Option<EventId>, Fault> {
        let mut command = cmd("XREVRANGE");
        command.arg(&self.key).arg("+").arg("-").arg("COUNT").arg(1);
        match records_of(self.call(&command)?)?.pop() {
            None => Ok(None),
            Some(record) => Ok(Some(record?.id)),
        }
    }

    /// Reads. A refusal to read is as good as no connection.
    fn call(&mut self, command: &Cmd) -> Result<Value, Fault> {
        command.query(&mut self.connection).map_err(|error| match Fault::of(&error) {
            Fault::Refused(why) => Fault::Lost(why),
            fault => fault,
        })
    }
}

/// Records as Redis answers with them: pairs of an id and fields.
fn records_of(value: Value) -> Result<Vec<Result<Record, Fault>>, Fault> {
    let Value::Array(records) = value else { return Err(Fault::not_redis()) };
    let record = |value| match value {
        Value::Array(pair) => match <[Value; 2]>::try_from(pair) {
            Ok([Value::BulkString(id), Value::Array(fields)]) => {
                Ok(record_of(&String::from_utf8_lossy(&id), fields))
            }
            _ => Err(Fault::not_redis()),
        },
        _ => Err(Fault::not_redis()),
    };
    records.into_iter().map(record).collect()
}

fn record_of(text: &str, fields: Vec<Value>) -> Result<Record, Fault> {
    let foreign = |why: &str| Fault::Foreign(text.to_owned(), why.to_owned());
    let [mut before, mut kind, mut topic, mut name, mut data] = [const { None }; 5];
    let mut fields = fields.into_iter();
    while let (Some(Value::BulkString(key)), Some(Value::BulkString(value))) = (fields.next(), fields.next())
    {
        let place = match &key[..] {
            b"p" => &mut before,
            b"k" => &mut kind,
            b"t" => &mut topic,
            b"n" => &mut name,
            b"d" => &mut data,
            _ => continue,
        };
        *place = Some(String::from_utf8(value).map_err(|_| foreign("a field is not UTF-8"))?);
    }
    let (Some(before), Some(kind), Some(topic), Some(name), Some(data)) = (before, kind, topic, name, data)
    else {
        return Err(foreign("it lacks one of the fields p, k, t, n and d"));
    };
    let id = text.parse::<EventId>().ok().filter(|id| id.leaves_room());
    let id = id.ok_or_else(|| foreign("no server would have given it this id"))?;
    let before = before.parse().map_err(|_| foreign("its p is no id"))?;
    if before >= id {
        return Err(foreign("its p is not before it"));
    }
    Ok(Record { id, before, kind, topic, name, data })
}

impl Fault {
    /// Why it is so, in words.
    pub fn text(&self) -> String {
        match self {
            Fault::Silent => "no answer within 2 s".to_owned(),
            Fault::Lost(why) | Fault::Refused(why) => why.clone(),
            Fault::Foreign(id, why) => format!("record {id} is none of ours: {why}"),
        }
    }

    fn not_redis() -> Fault {
        Fault::Lost("no Redis answers there".to_owned())
    }

    /// In our words: the crate's have the address and more in them, and say of another server that a type is incompatible.
    fn of(error: &RedisError) -> Fault {
        let said = || error.to_string();
        match error.code() {
            Some("NOAUTH" | "WRONGPASS") => {
                return Fault::Refused("Redis wants another name or password".to_owned());
            }
            Some("WRONGTYPE") => {
                return Fault::Refused("the key holds something else than a stream".to_owned());
            }
            _ => {}
        }
        match error.kind() {
            ErrorKind::Io if error.is_timeout() => Fault::Silent,
            ErrorKind::AuthenticationFailed => {
                Fault::Refused("Redis wants another name or password".to_owned())
            }
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Fault::not_redis(),
            ErrorKind::Io | ErrorKind::Client => Fault::Lost(said()),
            _ => Fault::Refused(said()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &[u8])]) -> Vec<Value> {
        let value = |text: &[u8]| Value::BulkString(text.to_vec());
        pairs.iter().flat_map(|(key, text)| [value(key.as_bytes()), value(text)]).collect()
    }

    #[test]
    fn a_record_has_five_fields_in_any_order_and_what_else_it_has_is_not_looked_at() {
        let record = record_of(
            "7-9",
            fields(&[("d", b"{}"), ("x", b"\xff"), ("n", b""), ("t", b"a"), ("k", b"update"), ("p", b"7-1")]),
        );
        let id = |text: &str| text.parse::<EventId>().expect("an id");
        let expected = Record {
            id: id("7-9"),
            before: id("7-1"),
            kind: "update".into(),
            topic: "a".into(),
            name: String::new(),
            data: "{}".into(),
        };
        assert_eq!(record, Ok(expected));
    }

    #[test]
    fn what_no_server_would_have_written_is_a_fault_with_its_id() {
        let whole: [(&str, &[u8]); 5] =
            [("p", b"5-0"), ("k", b"text"), ("t", b""), ("n", b"x"), ("d", b"hi")];
        let with = |place: usize, text: &'static [u8]| {
            let mut pairs = whole;
            pairs[place].1 = text;
            fields(&pairs)
        };
        let mut cases: Vec<(&str, Vec<Value>)> = (0..whole.len())
            .map(|gone| ("7-0", fields(&[&whole[..gone], &whole[gone + 1..]].concat())))
            .collect();
        cases.push(("7-0", with(4, b"\xff")));
        cases.extend([&b""[..], b"5", b"7-0", b"8-0", b"05-0"].map(|before| ("7-0", with(0, before))));
        let late =
            ["18446744073709551615-18446744073709551615", "253402300800000-0", "7-4611686018427387904"];
        cases.extend(late.map(|id| (id, fields(&whole))));
        assert!(record_of("7-0", fields(&whole)).is_ok());
        for (id, fields) in cases {
            let fault = record_of(id, fields);
            assert!(matches!(&fault, Err(Fault::Foreign(of, _)) if of == id), "{fault:?}");
        }
    }

    #[test]
    fn an_answer_that_is_no_list_of_records_is_not_taken_for_one_of_redis() {
        for value in [
            Value::Nil,
            Value::Okay,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![Value::Array(vec![])]),
        ] {
            assert_eq!(records_of(value).err(), Some(Fault::not_redis()));
        }
    }
}
