//! One connection for all tabs of an origin: who has it, who takes it over, and that nothing is lost or shown twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/page.rs"]
mod page;
mod support;
#[path = "support/webdriver.rs"]
mod webdriver;

use std::net::SocketAddr;
use std::time::Duration;

use page::*;
use serde_json::{Value, json};
use support::*;
use webdriver::Browser;

/// Opens the page in so many tabs, and gives them in the order of their opening.
fn open_tabs(browser: &Browser, address: SocketAddr, count: usize) -> Vec<String> {
    let mut tabs = Vec::new();
    for number in 0..count {
        tabs.push(if number == 0 { browser.tab() } else { browser.new_tab() });
        open(browser, address, "");
    }
    tabs
}

/// The numbers that were published under `n`, as the tab that is looked at was told of them.
fn numbers(browser: &Browser) -> Vec<u64> {
    let number = |data: &String| serde_json::from_str::<Value>(data).unwrap()["n"].as_u64().unwrap();
    events(browser, "update").iter().map(number).collect()
}

fn leads(browser: &Browser) -> bool {
    browser.run("return statecast.leads", &[]) == true
}

#[test]
#[ignore = "needs Chromium and chromedriver: tests/all installs them"]
fn eight_tabs_are_one_client_and_when_the_leader_dies_nothing_is_lost_or_shown_twice() {
    let server = start();
    let address = server.address();
    let browser = Browser::start();
    let mut tabs = open_tabs(&browser, address, 8);
    assert_eq!(clients(address).len(), 1);
    let mut published = 0;
    let mut publish = |count: u64| {
        for _ in 0..count {
            patch(address, "/state", &format!(r#"{{"n":{published}}}"#));
            published += 1;
        }
        published
    };
    publish(5);
    for round in 0..3 {
        browser.look_at(&tabs[0]);
        assert!(leads(&browser));
        let mut left = tabs.split_off(1);
        // Closed by somebody, and ended by the system.
        if round == 1 {
            browser.crash_tab();
        } else {
            browser.close_tab();
        }
        std::mem::swap(&mut tabs, &mut left);
        let published = publish(5);
        for tab in &tabs {
            browser.look_at(tab);
            wait_for_document(&browser, &json!({ "n": published - 1 }));
            assert_eq!(numbers(&browser), (0..published).collect::<Vec<_>>());
        }
        wait_for_clients(address, 1);
    }
}

#[test]
#[ignore = "needs Chromium and chromedriver: tests/all installs them"]
fn a_leader_that_is_stuck_loses_the_connection_and_follows_when_it_wakes() {
    let server = start_with(|config| config.heartbeat = Duration::from_millis(200));
    let address = server.address();
    let browser = Browser::start();
    let tabs = open_tabs(&browser, address, 2);
    patch(address, "/state", r#"{"n":0}"#);
    browser.look_at(&tabs[0]);
    wait_for_document(&browser, &json!({"n": 0}));
    assert!(leads(&browser));
    // It hears nothing and runs no timer, as if it were frozen, until it is told that it may go on.
    let stuck = "new BroadcastChannel('test').onmessage = () => {
        let ask;
        do {
            ask = new XMLHttpRequest();
            ask.open('GET', 'state/wake', false);
            ask.send();
        } while (ask.status !== 200);
    }";
    browser.run(stuck, &[]);

    browser.look_at(&tabs[1]);
    browser.run("new BroadcastChannel('test').postMessage('')", &[]);
    wait_until(|| leads(&browser), |leads| *leads);
    patch(address, "/state", r#"{"n":1}"#);
    wait_for_document(&browser, &json!({"n": 1}));
    let reasons = events(&browser, "open");
    assert!(reasons.last().is_some_and(|reason| reason == "the server sent what was missed"), "{reasons:?}");
    put(address, "/state/wake", "true");

    browser.look_at(&tabs[0]);
    let document = json!({"n": 2, "wake": true});
    wait_until(|| leads(&browser), |leads| !leads);
    patch(address, "/state", r#"{"n":2}"#);
    for tab in &tabs {
        browser.look_at(tab);
        wait_for_document(&browser, &document);
        let changes = [r#"{"n":0}"#, r#"{"n":1}"#, r#"{"wake":true}"#, r#"{"n":2}"#];
        assert_eq!(events(&browser, "update"), changes);
    }
    wait_for_clients(address, 1);
}

#[test]
#[ignore = "needs Chromium and chromedriver: tests/all installs them"]
fn a_tab_that_joins_late_has_the_document_and_the_events_it_asks_for_without_a_connection_of_its_own() {
    let server = start();
    let address = server.address();
    put(address, "/state/kitchen", "1");
    let browser = Browser::start();
    let first = browser.tab();
    open(&browser, address, "");
    let second = browser.new_tab();
    open(&browser, address, "?event=chat");
    wait_for_document(&browser, &json!({"kitchen": 1}));
    assert_eq!(events(&browser, "init"), [""; 0]);
    assert_eq!(clients(address).len(), 1);

    let chat = post(address, "/events?event=chat", "hello");
    wait_for_event(&browser, chat);
    let id = put(address, "/state/kitchen", "2");
    browser.look_at(&first);
    wait_for_event(&browser, id);
    // It did not ask for chat.
    assert_eq!(events(&browser, "chat"), [""; 0]);
    browser.close_tab();

    // Whoever leads next listens to what the others did.
    browser.look_at(&second);
    let chat = post(address, "/events?event=chat", "are you there");
    wait_for_event(&browser, chat);
    assert_eq!(events(&browser, "chat"), ["hello", "are you there"]);
    wait_for_document(&browser, &json!({"kitchen": 2}));
}

#[test]
#[ignore = "needs Chromium and chromedriver: tests/all installs them"]
fn a_tab_that_follows_can_ask_for_another_connection_and_tabs_of_a_topic_have_their_own() {
    let server = start();
    let address = server.address();
    let browser = Browser::start();
    let tabs = open_tabs(&browser, address, 2);
    let before = clients(address)[0]["id"].clone();
    assert!(!leads(&browser));
    browser.run("statecast.reconnect('asked for by a test')", &[]);
    wait_until(|| events(&browser, "waiting"), |reasons| reasons == &["asked for by a test"]);
    wait_for_state(&browser, &["open"]);
    assert_ne!(wait_for_clients(address, 1)[0]["id"], before);

    browser.look_at(&tabs[0]);
    open(&browser, address, "?topic=kitchen");
    put(address, "/state/kitchen", "1");
    wait_until(|| browser.text("#document"), |text| text == "1");
    let streams: Vec<Value> =
        wait_for_clients(address, 2).iter().map(|client| client["topic"].clone()).collect();
    assert!(streams.contains(&json!("kitchen")) && streams.contains(&Value::Null), "{streams:?}");
}

#[test]
#[ignore = "needs Chromium and chromedriver: tests/all installs them"]
fn tabs_of_a_page_that_is_no_secure_context_have_a_connection_each() {
    let server = start();
    let address = server.address();
    let browser = Browser::start_with(&["--host-resolver-rules=MAP plain.example 127.0.0.1"]);
    let url = format!("http://plain.example:{}/", address.port());
    let first = browser.tab();
    for _ in 0..2 {
        browser.open(&url);
        wait_for_state(&browser, &["open"]);
        assert_eq!(browser.run("return isSecureContext", &[]), false);
        browser.new_tab();
    }
    assert_eq!(clients(address).len(), 2);
    put(address, "/state/kitchen", "1");
    browser.look_at(&first);
    wait_for_document(&browser, &json!({"kitchen": 1}));
    browser.close_tab();
    put(address, "/state/kitchen", "2");
    wait_for_clients(address, 1);
}

#[test]
#[ignore = "needs Chromium and chromedriver: tests/all installs them"]
fn the_script_is_a_module_too_and_its_connection_ends_with_close() {
    let server = start();
    let address = server.address();
    put(address, "/state/kitchen", "1");
    let browser = Browser::start();
    // A page with nothing in it.
    browser.open(&format!("http://{address}/healthz"));
    let script = "return import('/statecast.js').then(() => new Promise((resolve) => {
        globalThis.statecast = new Statecast('/events');
        statecast.on('change', ({ document }) => resolve([document, statecast.leads, statecast.lastEventId !== '']));
    }))";
    assert_eq!(browser.run(script, &[]), json!([{"kitchen": 1}, true, true]));
    wait_for_clients(address, 1);
    assert_eq!(
        browser.run("statecast.close(); return [statecast.state, statecast.leads]", &[]),
        json!(["closed", false])
    );
    put(address, "/state/kitchen", "2");
    wait_for_clients(address, 0);
    assert_eq!(browser.run("return navigator.locks.query().then(({ held }) => held)", &[]), json!([]));
}
