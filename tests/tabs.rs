//! One connection for all tabs of an origin: who has it, who takes it over, and that nothing is lost or shown twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/page.rs"]
mod page;
mod support;
#[path = "support/webdriver.rs"]
mod webdriver;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use page::*;
use serde_json::{Value, json};
use statecast::{Config, Server};
use support::*;
use webdriver::{Browser, Kind, OTHER_NAME, tests_in_browsers};

tests_in_browsers! {
    eight_tabs_are_one_client_and_when_the_leader_dies_nothing_is_lost_or_shown_twice: chromium, firefox;
    eight_tabs_without_a_secure_context_are_one_client_too_and_nothing_is_lost_or_shown_twice: chromium, firefox;
    a_leader_that_is_stuck_loses_the_connection_and_follows_when_it_wakes: chromium;
    a_leader_without_a_secure_context_that_is_stuck_follows_when_it_wakes_too: chromium;
    two_leaders_at_once_without_a_secure_context_show_each_event_once_and_become_one: chromium, firefox;
    many_that_begin_or_lose_their_leader_at_once_without_a_secure_context_agree_on_one: chromium, firefox;
    a_frozen_leader_is_succeeded_and_follows_when_it_thaws: chromium, firefox;
    a_tab_that_joins_late_has_the_document_and_the_events_it_asks_for_without_a_connection_of_its_own: chromium, firefox, webkit;
    a_tab_that_follows_can_ask_for_another_connection_and_tabs_of_a_topic_have_their_own: chromium, firefox, webkit;
    a_connection_ends_with_close_and_so_does_its_lock: chromium, firefox, webkit;
}

/// Between heartbeats: it is when it writes that a server notices that a client is gone.
const OFTEN: Duration = Duration::from_millis(200);

/// A browser, a server, and the URL of its page there: of a secure context or of none.
struct Place {
    browser: Browser,
    _server: Server,
    /// For requests of this test.
    address: SocketAddr,
    url: String,
}

impl Place {
    /// On a loopback address, where there are Web Locks.
    fn secure(browser: &str, configure: impl FnOnce(&mut Config)) -> Place {
        let server = start_with(configure);
        let address = server.address();
        Place {
            browser: Browser::start_named(browser),
            _server: server,
            address,
            url: format!("http://{address}/"),
        }
    }

    /// On plain http under a name, as a board in the house has it: a page has no Web Locks there.
    fn insecure(browser: &str, configure: impl FnOnce(&mut Config)) -> Place {
        let server = start_with(|config| {
            config.listen = vec![(Ipv4Addr::UNSPECIFIED, 0).into()];
            // The browser comes from this machine, where a name that is not this machine's reads nothing.
            config.open = true;
            configure(config);
        });
        let port = server.address().port();
        let browser = Browser::start_named(browser);
        let address = (Ipv4Addr::LOCALHOST, port).into();
        Place { browser, _server: server, address, url: format!("http://{OTHER_NAME}:{port}/") }
    }

    /// Both. Nobody can tell `WebKit` where a name leads to, so that it has the first alone.
    fn each(browser: &str, configure: impl Fn(&mut Config) + Copy) -> Vec<Place> {
        let mut places = vec![Place::secure(browser, configure)];
        if places[0].browser.kind != Kind::WebKit {
            places.push(Place::insecure(browser, configure));
        }
        places
    }

    /// Opens the page in so many tabs, and gives them in the order of their opening.
    fn open_tabs(&self, count: usize) -> Vec<String> {
        let mut tabs = Vec::new();
        for number in 0..count {
            tabs.push(if number == 0 { self.browser.tab() } else { self.browser.new_tab() });
            self.browser.open(&self.url);
            wait_for_state(&self.browser, &["open"]);
        }
        tabs
    }
}

/// The numbers that were published under `n`, as the tab that is looked at was told of them.
fn numbers(browser: &Browser) -> Vec<u64> {
    let number = |data: &String| serde_json::from_str::<Value>(data).unwrap()["n"].as_u64().unwrap();
    events(browser, "update").iter().map(number).collect()
}

fn leads(browser: &Browser) -> bool {
    browser.run("return statecast.leads", &[]) == true
}

fn eight_tabs_are_one_client_and_when_the_leader_dies_nothing_is_lost_or_shown_twice(browser: &str) {
    let place = Place::secure(browser, |config| config.heartbeat = OFTEN);
    let tabs = place.open_tabs(8);
    assert_eq!(place.browser.run("return isSecureContext", &[]), true);
    the_leader_dies_and_nothing_is_lost_or_shown_twice(&place, tabs);
}

fn eight_tabs_without_a_secure_context_are_one_client_too_and_nothing_is_lost_or_shown_twice(browser: &str) {
    let place = Place::insecure(browser, |config| config.heartbeat = OFTEN);
    let tabs = place.open_tabs(8);
    assert_eq!(
        place.browser.run("return [isSecureContext, navigator.locks ?? null]", &[]),
        json!([false, null])
    );
    the_leader_dies_and_nothing_is_lost_or_shown_twice(&place, tabs);
}

fn the_leader_dies_and_nothing_is_lost_or_shown_twice(place: &Place, mut tabs: Vec<String>) {
    let Place { browser, address, .. } = place;
    assert_eq!(clients(*address).len(), 1);
    let mut published = 0;
    let mut publish = |count: u64| {
        for _ in 0..count {
            patch(*address, "/state", &format!(r#"{{"n":{published}}}"#));
            published += 1;
        }
        published
    };
    publish(5);
    for round in 0..3 {
        // Whoever it is: without locks, a tab is the first by chance.
        let leader = tabs.iter().position(|tab| {
            browser.look_at(tab);
            leads(browser)
        });
        tabs.remove(leader.expect("a tab leads"));
        // Closed by somebody, and ended by the system.
        if round == 1 {
            browser.crash_tab();
        } else {
            browser.close_tab();
        }
        let published = publish(5);
        for tab in &tabs {
            browser.look_at(tab);
            wait_for_document(browser, &json!({ "n": published - 1 }));
            assert_eq!(numbers(browser), (0..published).collect::<Vec<_>>());
        }
        wait_for_clients(*address, 1);
    }
}

fn a_leader_that_is_stuck_loses_the_connection_and_follows_when_it_wakes(browser: &str) {
    a_stuck_leader_follows_when_it_wakes(&Place::secure(browser, |config| {
        config.heartbeat = OFTEN;
    }));
}

fn a_leader_without_a_secure_context_that_is_stuck_follows_when_it_wakes_too(browser: &str) {
    a_stuck_leader_follows_when_it_wakes(&Place::insecure(browser, |config| {
        config.heartbeat = OFTEN;
    }));
}

fn a_stuck_leader_follows_when_it_wakes(place: &Place) {
    let Place { browser, address, .. } = place;
    let tabs = place.open_tabs(2);
    patch(*address, "/state", r#"{"n":0}"#);
    browser.look_at(&tabs[0]);
    wait_for_document(browser, &json!({"n": 0}));
    assert!(leads(browser));
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
    wait_until(|| leads(browser), |leads| *leads);
    patch(*address, "/state", r#"{"n":1}"#);
    wait_for_document(browser, &json!({"n": 1}));
    let reasons = events(browser, "open");
    assert!(reasons.last().is_some_and(|reason| reason == "the server sent what was missed"), "{reasons:?}");
    put(*address, "/state/wake", "true");

    browser.look_at(&tabs[0]);
    let document = json!({"n": 2, "wake": true});
    wait_until(|| leads(browser), |leads| !leads);
    patch(*address, "/state", r#"{"n":2}"#);
    for tab in &tabs {
        browser.look_at(tab);
        wait_for_document(browser, &document);
        let changes = [r#"{"n":0}"#, r#"{"n":1}"#, r#"{"wake":true}"#, r#"{"n":2}"#];
        assert_eq!(events(browser, "update"), changes);
    }
    wait_for_clients(*address, 1);
}

fn two_leaders_at_once_without_a_secure_context_show_each_event_once_and_become_one(browser: &str) {
    let place = Place::insecure(browser, |config| config.heartbeat = OFTEN);
    let Place { browser, address, .. } = &place;
    let tabs = place.open_tabs(2);
    // A third that is heard by nobody, so that it takes itself for the first.
    let third = browser.new_tab();
    browser.open(&format!("{}healthz", place.url));
    let mute = "const { postMessage } = BroadcastChannel.prototype;
        BroadcastChannel.prototype.postMessage = () => {};
        globalThis.unmute = () => { BroadcastChannel.prototype.postMessage = postMessage; };
        return import('/statecast.js').then(() => {
            globalThis.seen = [];
            globalThis.statecast = new Statecast('/events');
            statecast.on('update', ({ data }) => seen.push(JSON.parse(data).n));
        })";
    browser.run(mute, &[]);
    wait_for_clients(*address, 2);
    wait_until(
        || browser.run("return [statecast.leads, statecast.state]", &[]),
        |now| *now == json!([true, "open"]),
    );
    patch(*address, "/state", r#"{"n":0}"#);
    wait_until(|| browser.run("return seen", &[]), |seen| *seen == json!([0]));

    browser.run("unmute()", &[]);

    wait_for_clients(*address, 1);
    patch(*address, "/state", r#"{"n":1}"#);
    wait_until(|| browser.run("return seen", &[]), |seen| *seen == json!([0, 1]));
    let mut leaders = u64::from(leads(browser));
    for tab in &tabs {
        browser.look_at(tab);
        wait_for_document(browser, &json!({"n": 1}));
        assert_eq!(numbers(browser), [0, 1]);
        leaders += u64::from(leads(browser));
    }
    assert_eq!(leaders, 1);
    browser.look_at(&third);
    assert_eq!(browser.run("return seen", &[]), json!([0, 1]));
}

fn many_that_begin_or_lose_their_leader_at_once_without_a_secure_context_agree_on_one(browser: &str) {
    let place = Place::insecure(browser, |config| config.heartbeat = OFTEN);
    let Place { browser, address, .. } = &place;
    browser.open(&format!("{}healthz", place.url));
    let begin = "return import('/statecast.js').then(() => {
        globalThis.all = Array.from({ length: 12 }, () => new Statecast('/events'));
        globalThis.leaders = () => all.filter(({ leads }) => leads).length;
        globalThis.documents = () => all.map(({ document }) => document?.n ?? null);
    })";
    browser.run(begin, &[]);
    let is_agreed = |left: usize, n: u64| {
        let expected = json!([1, vec![n; left]]);
        wait_until(|| browser.run("return [leaders(), documents()]", &[]), |seen| *seen == expected);
        wait_for_clients(*address, 1);
    };
    patch(*address, "/state", r#"{"n":0}"#);
    is_agreed(12, 0);
    for n in 1..=4 {
        browser.run("all.splice(all.findIndex(({ leads }) => leads), 1)[0].close()", &[]);
        patch(*address, "/state", &format!(r#"{{"n":{n}}}"#));
        is_agreed(12 - n as usize, n);
    }
}

fn a_frozen_leader_is_succeeded_and_follows_when_it_thaws(browser: &str) {
    let often = |config: &mut Config| config.heartbeat = OFTEN;
    for place in [Place::secure(browser, often), Place::insecure(browser, often)] {
        let Place { browser, address, .. } = &place;
        let tabs = place.open_tabs(2);
        browser.look_at(&tabs[0]);
        assert!(leads(browser));
        let frozen = browser.freeze_tab();
        browser.look_at(&tabs[1]);
        wait_until(|| leads(browser), |leads| *leads);
        patch(*address, "/state", r#"{"n":1}"#);
        wait_for_document(browser, &json!({"n": 1}));
        browser.thaw_tab(&frozen);
        wait_until(|| leads(browser), |leads| !leads);
        wait_for_document(browser, &json!({"n": 1}));
        wait_for_clients(*address, 1);
    }
}

fn a_tab_that_joins_late_has_the_document_and_the_events_it_asks_for_without_a_connection_of_its_own(
    browser: &str,
) {
    for place in Place::each(browser, |_| {}) {
        let Place { browser, address, url, .. } = &place;
        let address = *address;
        put(address, "/state/kitchen", "1");
        let first = place.open_tabs(1).remove(0);
        let second = browser.new_tab();
        browser.open(&format!("{url}?event=chat"));
        wait_for_document(browser, &json!({"kitchen": 1}));
        assert_eq!(events(browser, "init"), [""; 0]);
        assert_eq!(clients(address).len(), 1);

        let chat = post(address, "/events?event=chat", "hello");
        wait_for_event(browser, chat);
        let id = put(address, "/state/kitchen", "2");
        browser.look_at(&first);
        wait_for_event(browser, id);
        // It did not ask for chat.
        assert_eq!(events(browser, "chat"), [""; 0]);
        browser.close_tab();

        // Whoever leads next listens to what the others did.
        browser.look_at(&second);
        let chat = post(address, "/events?event=chat", "are you there");
        wait_for_event(browser, chat);
        assert_eq!(events(browser, "chat"), ["hello", "are you there"]);
        wait_for_document(browser, &json!({"kitchen": 2}));
    }
}

fn a_tab_that_follows_can_ask_for_another_connection_and_tabs_of_a_topic_have_their_own(browser: &str) {
    let often = |config: &mut Config| config.heartbeat = OFTEN;
    for place in Place::each(browser, often) {
        let Place { browser, address, url, .. } = &place;
        let address = *address;
        let tabs = place.open_tabs(2);
        let before = clients(address)[0]["id"].clone();
        assert!(!leads(browser));
        browser.run("statecast.reconnect('asked for by a test')", &[]);
        wait_until(|| events(browser, "waiting"), |reasons| reasons == &["asked for by a test"]);
        wait_for_state(browser, &["open"]);
        assert_ne!(wait_for_clients(address, 1)[0]["id"], before);

        browser.look_at(&tabs[0]);
        browser.open(&format!("{url}?topic=kitchen"));
        wait_for_state(browser, &["open"]);
        put(address, "/state/kitchen", "1");
        wait_until(|| browser.text("#document"), |text| text == "1");
        let streams: Vec<Value> =
            wait_for_clients(address, 2).iter().map(|client| client["topic"].clone()).collect();
        assert!(streams.contains(&json!("kitchen")) && streams.contains(&Value::Null), "{streams:?}");
    }
}

fn a_connection_ends_with_close_and_so_does_its_lock(browser: &str) {
    let server = start();
    let address = server.address();
    put(address, "/state/kitchen", "1");
    let browser = Browser::start_named(browser);
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
