//! The document: what a stream's reader holds is what the server holds.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::net::SocketAddr;

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
