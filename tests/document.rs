//! The document: what a stream's reader holds is what the server holds, and `--document` keeps it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::{Value, json};
use support::*;

#[derive(Clone, Debug)]
enum Write {
    Patch(Option<usize>, Value),
    Put(Option<usize>, Value),
    Delete(Option<usize>),
    Send(Option<usize>, String),
}

const TOPICS: [&str; 3] = ["a", "b", "__proto__"];

fn path(root: &str, topic: Option<usize>) -> String {
    topic.map_or_else(|| format!("/{root}"), |topic| format!("/{root}/{}", TOPICS[topic]))
}

impl Write {
    fn publish(&self, address: SocketAddr) -> u16 {
        let (method, path, body) = match self {
            Write::Patch(topic, value) => ("PATCH", path("state", *topic), value.to_string()),
            Write::Put(topic, value) => ("PUT", path("state", *topic), value.to_string()),
            Write::Delete(topic) => ("DELETE", path("state", *topic), String::new()),
            Write::Send(topic, text) => ("POST", path("events", *topic), text.clone()),
        };
        request(address, method, &path, &[], &body).status
    }
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<i32>().prop_map(Value::from),
        "[a-z\n\r\"é]{0,5}".prop_map(Value::from)
    ];
    let value = leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[x-z]", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    let topic = prop::option::weighted(0.7, 0..TOPICS.len());
    let document = prop::collection::btree_map(prop::sample::select(&TOPICS[..]), value.clone(), 0..3);
    let document = document
        .prop_map(|map| Value::Object(map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()));
    let body = move |topic: Option<usize>| {
        if topic.is_some() { value.clone().boxed() } else { document.clone().boxed() }
    };
    let other_body = body.clone();
    let write = prop_oneof![
        4 => topic.clone().prop_flat_map(move |topic| body(topic).prop_map(move |value| Write::Patch(topic, value))),
        4 => topic.clone().prop_flat_map(move |topic| other_body(topic).prop_map(move |value| Write::Put(topic, value))),
        1 => topic.clone().prop_map(Write::Delete),
        1 => (topic, "[a-z\n\r]{0,4}").prop_map(|(topic, text)| Write::Send(topic, text)),
    ];
    prop::collection::vec(write, 1..12)
}

#[test]
fn whoever_applies_init_and_every_update_holds_the_servers_document() {
    let server = start();
    let address = server.address();
    let mut runner = TestRunner::new(Cases { cases: 60, failure_persistence: None, ..Cases::default() });
    let run = |(before, after): (Vec<Write>, Vec<Write>)| {
        request(address, "DELETE", "/state", &[], "");
        for write in &before {
            write.publish(address);
        }
        let paths =
            std::iter::once("/events".to_owned()).chain(TOPICS.map(|topic| format!("/events/{topic}")));
        let mut streams: Vec<(Stream, Replica)> =
            paths.map(|path| (Stream::open(address, &path), Replica::default())).collect();
        for (stream, replica) in &mut streams {
            replica.apply(&stream.next_named("init"));
        }
        for write in &after {
            let status = write.publish(address);
            prop_assert!(status == 200 || status == 404, "{write:?}");
        }
        // Names every topic, so that every stream sees it and nothing after it.
        let fence: Value = TOPICS.iter().map(|topic| ((*topic).to_owned(), json!({"fence": 1}))).collect();
        let id = post(address, "/state", &fence.to_string());
        let document = get(address, "/state").json();
        let of_topics = TOPICS.iter().map(|topic| document[*topic].clone());
        let expected = std::iter::once(document.clone()).chain(of_topics);
        for ((mut stream, mut replica), expected) in streams.into_iter().zip(expected) {
            while replica.last_id != Some(id) {
                replica.apply(&stream.next());
            }
            prop_assert_eq!(replica.document.unwrap(), expected);
        }
        Ok(())
    };
    runner.run(&(writes(), writes()), run).unwrap();
}

/// A folder of the test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("statecast-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn the_document_survives_a_restart_and_a_kill() {
    let folder = Folder::new("restart");
    let file = folder.file("document.json");
    let server = Binary::start(&["--document", &file]);
    put(server.address, "/state/a", r#"{"x":1.10,"y":[null,"é"]}"#);
    wait_until(|| fs::read_to_string(&file).unwrap_or_default(), |text| text.contains("é"));
    // Written at most a second after the write: the kill takes nothing along that was there longer.
    put(server.address, "/state/b", "2");
    wait_until(|| fs::read_to_string(&file).unwrap(), |text| text.contains("\"b\":2"));
    server.signal("KILL");
    drop(server);
    let server = Binary::start(&["--document", &file]);
    assert!(server.greeting.contains(&format!("kept in {file}")), "{}", server.greeting);
    assert_eq!(get(server.address, "/state").body, r#"{"a":{"x":1.1,"y":[null,"é"]},"b":2}"#);
    assert!(get(server.address, "/state/a").header("ETag").is_some());
    put(server.address, "/state/c", "3");
    server.signal("TERM");
    assert_eq!(server.wait().0, Some(0));
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        "{\"a\":{\"x\":1.1,\"y\":[null,\"é\"]},\"b\":2,\"c\":3}\n"
    );
    assert!(!fs::exists(folder.file("document.json.new")).unwrap());
}

#[test]
fn a_document_that_cannot_be_read_is_an_error_and_stays_as_it_is() {
    let folder = Folder::new("unreadable");
    let table = [
        ("{\"a\":", "the body is not JSON: EOF while parsing a value at line 1 column 5"),
        ("[1]", "the document is a JSON object; send one, or name a topic: /state/TOPIC"),
        ("{\"a b\":1}", "a key is no topic: a topic is 1 to 64 of A-Z a-z 0-9 . _ - and not . or .."),
    ];
    for (number, (text, reason)) in table.into_iter().enumerate() {
        let file = folder.file(&number.to_string());
        fs::write(&file, text).unwrap();
        let command = std::process::Command::new(env!("CARGO_BIN_EXE_statecast"))
            .args(["--listen", "127.0.0.1:0", "--document", &file])
            .output()
            .unwrap();
        assert_eq!(command.status.code(), Some(1));
        assert_eq!(
            String::from_utf8_lossy(&command.stderr),
            format!("statecast: --document {file}: {reason}\n")
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }
}

#[test]
fn a_disk_that_refuses_is_a_fault_and_not_the_end() {
    let folder = Folder::new("full");
    let inner = folder.0.join("inner");
    fs::create_dir(&inner).unwrap();
    let file = inner.join("document.json");
    fs::write(&file, "{\"old\":1}").unwrap();
    let server = start_with(|config| config.document = Some(file.clone()));
    let address = server.address();
    // A folder in the way of the temporary file: refused for root, too.
    let in_the_way = inner.join("document.json.new");
    fs::create_dir(&in_the_way).unwrap();
    put(address, "/state/new", "1");
    wait_until(|| get(address, "/metrics").body, |text| !text.contains("statecast_save_faults_total 0\n"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"old\":1}");
    assert_eq!(get(address, "/state").body, r#"{"new":1,"old":1}"#);
    fs::remove_dir(&in_the_way).unwrap();
    wait_until(|| fs::read_to_string(&file).unwrap(), |text| text == "{\"new\":1,\"old\":1}\n");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o600, 0o600);
}

#[test]
fn a_linked_document_stays_a_link() {
    let folder = Folder::new("link");
    let (file, link) = (folder.0.join("real.json"), folder.0.join("link.json"));
    fs::write(&file, "{}").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let server = start_with(|config| config.document = Some(link.clone()));
    put(server.address(), "/state/a", "1");
    server.stop();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"a\":1}\n");
}
