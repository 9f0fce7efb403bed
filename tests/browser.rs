//! What the page shows, in real browsers.
//!
//! `cargo test --test browser chromium -- --include-ignored`, or `firefox`, or `webkit`; `tests/all` installs them first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/page.rs"]
mod page;
mod support;
#[path = "support/webdriver.rs"]
mod webdriver;

use std::fs;
use std::path::Path;
use std::time::Duration;

use page::*;
use serde_json::{Value, json};
use support::*;
use webdriver::{Browser, Kind, tests_in_browsers};

tests_in_browsers! {
    a_patch_is_shown_and_the_console_has_no_complaint: chromium, firefox, webkit;
    a_script_that_got_into_the_page_does_not_run_and_the_console_says_so: chromium, firefox;
    pages_whose_server_was_killed_say_so_and_show_its_new_document_when_it_is_back: chromium, firefox, webkit;
    a_page_that_was_cut_off_shows_what_it_missed_and_nothing_twice: chromium, firefox, webkit;
    a_page_that_found_the_server_full_gets_in_when_there_is_room: chromium, firefox, webkit;
    the_form_merges_what_was_typed_into_the_document: chromium, firefox, webkit;
    what_cannot_be_published_is_said_in_words_and_not_sent: chromium, firefox;
    a_key_is_shown_whatever_it_is_called_and_a_value_whatever_it_says: chromium, firefox, webkit;
    a_page_that_was_left_and_came_back_is_one_client: chromium, firefox, webkit;
    a_one_off_event_is_shown_if_it_is_a_message_or_was_asked_for: chromium, firefox;
    axe_finds_nothing_serious_in_light_and_in_dark_with_the_tour_closed_and_open: chromium, firefox, webkit;
    no_panel_overlaps_another_or_is_cut_off_however_wide_the_window_is: chromium, firefox, webkit;
    the_first_paint_does_not_wait_for_the_stream: chromium, firefox, webkit;
    ten_thousand_keys_and_thousands_of_events_keep_the_lists_bounded_and_the_document_right: chromium, firefox;
    the_page_fits_a_desk_and_a_telephone_in_light_and_in_dark: chromium, firefox, webkit;
}

fn a_patch_is_shown_and_the_console_has_no_complaint(browser: &str) {
    let server = start();
    let address = server.address();
    patch(address, "/state", r#"{"kitchen":{"temp":21.5,"lamp":"on"},"hall":1}"#);
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    wait_for_document(&browser, &json!({"kitchen": {"temp": 21.5, "lamp": "on"}, "hall": 1}));

    let id = patch(address, "/state", r#"{"kitchen":{"temp":21.7,"lamp":null},"hall":null}"#);

    wait_for_document(&browser, &json!({"kitchen": {"temp": 21.7}}));
    wait_for_event(&browser, id);
    let updates: Vec<Value> =
        events(&browser, "update").iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    assert_eq!(updates, [json!({"kitchen": {"temp": 21.7, "lamp": null}, "hall": null})]);
    assert_eq!(browser.text("#last-event-id"), id.to_string());
    assert_no_complaint(&browser);
}

fn a_script_that_got_into_the_page_does_not_run_and_the_console_says_so(browser: &str) {
    let server = start();
    let browser = Browser::start_named(browser);
    open(&browser, server.address(), "");
    let script = "const script = document.createElement('script');
                  script.textContent = 'globalThis.ran = true';
                  document.body.append(script);
                  return globalThis.ran === undefined";
    assert_eq!(browser.run(script, &[]), true);
    let console = browser.console();
    assert!(console.iter().any(is_complaint), "{console:?}");
}

fn pages_whose_server_was_killed_say_so_and_show_its_new_document_when_it_is_back(browser: &str) {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("killed-{browser}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("document.json");
    fs::write(&file, r#"{"kitchen":{"temp":21.5},"hall":1}"#).unwrap();
    let document = file.to_str().unwrap();
    let server = Binary::start(&["--document", document, "--retry", "300ms"]);
    let address = server.address;
    let browsers = std::thread::scope(|scope| {
        [(); 2].map(|()| scope.spawn(|| Browser::start_named(browser))).map(|thread| thread.join().unwrap())
    });
    for browser in &browsers {
        open(browser, address, "");
        wait_for_document(browser, &json!({"kitchen": {"temp": 21.5}, "hall": 1}));
    }
    // It survives in the pages alone.
    let id = patch(address, "/state/kitchen", r#"{"temp":22}"#);
    for browser in &browsers {
        wait_for_event(browser, id);
    }

    server.signal("KILL");
    server.wait();

    for browser in &browsers {
        let state = wait_for_state(browser, &["lost", "waiting"]);
        let word = if state == "lost" { "lost" } else { "reconnecting" };
        assert!(browser.text("#state").starts_with(word), "{}", browser.text("#state"));
        assert_eq!(browser.text("title"), format!("{word} – statecast"));
        wait_for_document(browser, &json!({"kitchen": {"temp": 22}, "hall": 1}));
    }
    fs::write(&file, r#"{"kitchen":{"temp":19},"garden":{"soil":0.31}}"#).unwrap();
    let _server =
        Binary::start(&["--document", document, "--retry", "300ms", "--listen", &address.to_string()]);
    for browser in &browsers {
        wait_for_document(browser, &json!({"kitchen": {"temp": 19}, "garden": {"soil": 0.31}}));
        wait_for_state(browser, &["open"]);
        assert_eq!(browser.text("#reason"), "the server was restarted and sent the whole document");
        assert_eq!(browser.text("title"), "statecast");
    }
    fs::remove_dir_all(&folder).unwrap();
}

fn a_page_that_was_cut_off_shows_what_it_missed_and_nothing_twice(browser: &str) {
    let server = start_with(|config| config.retry = Duration::from_millis(100));
    let address = server.address();
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    let mut expected = Vec::new();
    for round in 0..5 {
        expected.push(format!(r#"{{"before":{round}}}"#));
        let id = patch(address, "/state", &expected[2 * round]);
        wait_for_event(&browser, id);
        let client = clients(address)[0]["id"].clone();
        assert_eq!(request(address, "DELETE", &format!("/clients/{client}"), &[], "").status, 200);
        expected.push(format!(r#"{{"after":{round}}}"#));
        patch(address, "/state", &expected[2 * round + 1]);
        let known = "the server sent what was missed";
        wait_until(|| events(&browser, "open"), |reasons| reasons[1..] == vec![known; round + 1]);
        wait_for_document(&browser, &json!({"before": round, "after": round}));
    }
    assert_eq!(events(&browser, "update"), expected);
    assert_eq!(events(&browser, "init"), ["{}"]);
}

fn a_page_that_found_the_server_full_gets_in_when_there_is_room(browser: &str) {
    let server = start_with(|config| {
        config.max_clients = 1;
        config.heartbeat = Duration::from_millis(50);
    });
    let address = server.address();
    put(address, "/state/kitchen", "1");
    let mut only = Stream::open(address, "/events");
    only.next_named("init");
    let browser = Browser::start_named(browser);
    browser.open(&format!("http://{address}/"));
    wait_for_state(&browser, &["waiting"]);
    assert!(browser.text("#state").starts_with("reconnecting"), "{}", browser.text("#state"));
    drop(only);
    wait_for_document(&browser, &json!({"kitchen": 1}));
    wait_for_state(&browser, &["open"]);
}

fn the_form_merges_what_was_typed_into_the_document(browser: &str) {
    let server = start();
    let address = server.address();
    put(address, "/state/garden", r#"{"soil":0.4,"sun":"cloudy"}"#);
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    browser.fill("#publish-topic", "garden");
    browser.fill("#publish-json", r#"{"soil": 0.31, "name": "O'Hara – 庭"}"#);
    browser.click("#publish-send");
    let merged = json!({"soil": 0.31, "sun": "cloudy", "name": "O'Hara – 庭"});
    wait_for_document(&browser, &json!({ "garden": merged }));
    assert_eq!(get(address, "/state/garden").json(), merged);
    let id = browser.text("#last-event-id");
    wait_until(|| browser.text("#publish-result"), |said| *said == format!("published as {id}"));
    let same = format!(r#"curl -d '{{"soil": 0.31, "name": "O'\''Hara – 庭"}}' {address}/state/garden"#);
    assert_eq!(browser.text("#publish-curl"), same);
    // Without a topic it is the whole document's.
    browser.fill("#publish-topic", "");
    browser.fill("#publish-json", r#"{"garden":{"sun":null},"hall":[1,null]}"#);
    browser.click("#publish-send");
    let merged = json!({"garden": {"soil": 0.31, "name": "O'Hara – 庭"}, "hall": [1, null]});
    wait_for_document(&browser, &merged);
}

fn what_cannot_be_published_is_said_in_words_and_not_sent(browser: &str) {
    let server = start();
    let browser = Browser::start_named(browser);
    open(&browser, server.address(), "");
    let said = |browser: &Browser| browser.text("#publish-result.refused");
    browser.fill("#publish-json", r#"{"temp":}"#);
    browser.click("#publish-send");
    wait_until(|| said(&browser), |said| said.starts_with("this is not JSON: "));
    browser.fill("#publish-topic", "..");
    browser.fill("#publish-json", "1");
    browser.click("#publish-send");
    wait_until(|| said(&browser), |said| said.starts_with("a topic is 1 to 64 of "));
    // The server's own refusal is shown as it stands.
    browser.fill("#publish-topic", "");
    browser.click("#publish-send");
    let refusal = request(server.address(), "PATCH", "/state", &[], "1").error();
    wait_until(|| said(&browser), |said| *said == refusal);
    // Had one of the first two been sent, it would be in this list before the third.
    let sent = browser.run(
        "return performance.getEntriesByType('resource')
            .map(({ name }) => new URL(name).pathname)
            .filter((path) => path.startsWith('/state') && !path.endsWith('.js'))",
        &[],
    );
    assert_eq!(sent, json!(["/state"]));
    assert_eq!(events(&browser, "update"), [""; 0]);
}

fn a_key_is_shown_whatever_it_is_called_and_a_value_whatever_it_says(browser: &str) {
    let server = start();
    let address = server.address();
    let awkward = r#"{
        "__proto__": {"a": 1, "__proto__": {"b": 2}},
        "constructor": {"prototype": {"polluted": true}},
        "kitchen": {"__proto__": {"polluted": true}, "toString": null, "": {"</pre><script>": "<img src=x>"}},
        "toString": "line\u2028break\r\n\u0000"
    }"#;
    put(address, "/state", awkward);
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    // The server's document, not the literal: it keeps no null.
    let document = |address| get(address, "/state").json();
    wait_for_document(&browser, &document(address));
    let change = r#"{
        "__proto__": {"__proto__": {"b": 3, "__proto__": "deep"}, "polluted": true},
        "constructor": {"prototype": {"polluted": "yes"}},
        "kitchen": {"__proto__": {"polluted": null, "c": []}, "hasOwnProperty": 1},
        "hasOwnProperty": {"__proto__": 1}
    }"#;
    patch(address, "/state", change);
    let after = document(address);
    let proto = json!({"a": 1, "__proto__": {"b": 3, "__proto__": "deep"}, "polluted": true});
    assert_eq!(after["__proto__"], proto);
    wait_for_document(&browser, &after);
    assert_eq!(browser.run("return ({}).polluted === undefined && ({}).a === undefined", &[]), true);
    delete(address, "/state/__proto__");
    let rest = document(address);
    assert_eq!(rest.get("__proto__"), None);
    wait_for_document(&browser, &rest);
    // Opened anew, from `init` alone, and its topic by itself.
    put(address, "/state/__proto__", r#"{"__proto__":{"b":4}}"#);
    open(&browser, address, "?topic=__proto__");
    wait_for_document(&browser, &json!({"__proto__": {"b": 4}}));
    assert_no_complaint(&browser);
}

fn a_page_that_was_left_and_came_back_is_one_client(browser: &str) {
    // A server notices that a client is gone when it writes to it.
    let server = start_with(|config| config.heartbeat = Duration::from_millis(50));
    let address = server.address();
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    for round in 0..4 {
        browser.run("globalThis.isKept = true", &[]);
        browser.open("about:blank");
        wait_until(|| clients(address), Vec::is_empty);
        patch(address, "/state", &format!(r#"{{"away":{round}}}"#));
        if round < 2 {
            browser.go_back();
            wait_for_state(&browser, &["open"]);
            // A page that was kept, with its document, or one that was loaded anew: that is the browser's choice.
            let is_kept = browser.run("return globalThis.isKept === true", &[]) == true;
            assert!(is_kept || browser.kind != Kind::Chromium);
            let sent = if is_kept { "what was missed" } else { "the whole document" };
            wait_until(|| browser.text("#reason"), |reason| *reason == format!("the server sent {sent}"));
        } else {
            open(&browser, address, "");
        }
        patch(address, "/state", &format!(r#"{{"back":{round}}}"#));
        wait_for_document(&browser, &json!({"away": round, "back": round}));
        wait_for_clients(address, 1);
    }
}

fn a_one_off_event_is_shown_if_it_is_a_message_or_was_asked_for(browser: &str) {
    let server = start();
    let address = server.address();
    let browser = Browser::start_named(browser);
    open(&browser, address, "?event=alert&event=tide");
    let publish = |path: &str, kind: &str, body: &str| {
        request(address, "POST", path, &[("Content-Type", kind)], body).id()
    };
    publish("/events?event=alert", "text/plain", "the <b>door</b> is open\nsince 7:00");
    publish("/events?event=chat", "text/plain", "nobody asked");
    publish("/events/kitchen?event=alert", "text/plain", "too hot");
    let last = publish("/events", "application/json", r#"{"from":"anna","text":"hello"}"#);
    wait_for_event(&browser, last);
    let alerts = ["the <b>door</b> is open\nsince 7:00", r#"{"kitchen":"too hot"}"#];
    assert_eq!(events(&browser, "alert"), alerts);
    assert_eq!(events(&browser, "message"), [r#"{"from":"anna","text":"hello"}"#]);
    assert_eq!(events(&browser, "chat"), [""; 0]);
    wait_for_document(&browser, &json!({}));
}

/// Everything that the page loads.
const PAGE: [&str; 5] = [
    include_str!("../public/index.html"),
    include_str!("../public/style.css"),
    include_str!("../public/page.js"),
    include_str!("../public/statecast.js"),
    include_str!("../public/statecast.mjs"),
];

#[test]
fn the_page_is_plain_and_small() {
    let size: usize = PAGE.iter().map(|file| file.len()).sum();
    assert!(size <= 90 << 10, "{size} bytes");
}

fn axe_finds_nothing_serious_in_light_and_in_dark_with_the_tour_closed_and_open(browser: &str) {
    let axe = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/node_modules/axe-core/axe.min.js");
    let axe = fs::read_to_string(&axe)
        .unwrap_or_else(|error| panic!("{}: {error}; tests/all installs it", axe.display()));
    let server = start();
    let address = server.address();
    put(address, "/state", HOUSE);
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    show_wire(&browser);
    wait_for_event(&browser, patch(address, "/state/kitchen", r#"{"temp":21.5}"#));
    wait_until(|| browser.text("#clients"), |rows| rows.contains("the wire"));
    let mut looks = Vec::new();
    for has_tour in [false, true] {
        looks.extend(browser.schemes().iter().map(|scheme| (scheme, has_tour)));
    }
    for (scheme, has_tour) in looks {
        if has_tour && browser.attribute("body", "class").is_empty() {
            open_tour(&browser);
        }
        browser.prefer(scheme);
        wait_until_still(&browser);
        let script = format!(
            "{axe};
            return axe.run().then(({{ violations, passes }}) => [passes.length, violations
                .filter(({{ impact }}) => impact === 'serious' || impact === 'critical')
                .map(({{ id, nodes }}) => [id, ...nodes.map(({{ html, failureSummary }}) => html + failureSummary)])])"
        );
        let found = browser.run(&script, &[]);
        assert_eq!(found[1], json!([]), "{scheme}, tour: {has_tour}");
        assert!(found[0].as_u64() > Some(20), "{found}");
    }
}

fn no_panel_overlaps_another_or_is_cut_off_however_wide_the_window_is(browser: &str) {
    let server = start();
    let address = server.address();
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    let assert_apart = |at_least: u64, what: &str| {
        wait_until_still(&browser);
        for width in [320, 390, 768, 1_280, 1_920] {
            browser.resize(width, 900);
            let overlaps = browser.run(OVERLAPS, &[]);
            assert_eq!(overlaps[1], json!([]), "{width} px wide, {what}");
            assert!(overlaps[0].as_u64() >= Some(at_least), "{overlaps} panels, {width} px wide, {what}");
        }
    };
    assert_apart(5, "an empty document");
    browser.resize(1_280, 900);
    wait_for_event(&browser, put(address, "/state", HOUSE));
    show_wire(&browser);
    wait_until(|| browser.text("#clients"), |rows| rows.contains("the wire"));
    assert_apart(5, "a document, and the wire");
    browser.resize(1_280, 900);
    open_tour(&browser);
    // A narrow window shows the panels of the step alone.
    assert_apart(1, "the tour");
}

/// How many panels are in the page, and which lie over one another or are cut off by a pixel or more, and how much.
const OVERLAPS: &str = "scrollTo(0, 0);
    const panels = Array.from(document.querySelectorAll('main > *'))
        .filter((panel) => panel.getClientRects().length > 0)
        .map((panel) => [panel.id || panel.className, panel.getBoundingClientRect()]);
    const overlaps = panels.flatMap(([name, one], index) => panels.slice(index + 1).flatMap(([other, two]) => {
        const width = Math.min(one.right, two.right) - Math.max(one.left, two.left);
        const height = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
        return width >= 1 && height >= 1 ? [`${name} and ${other}: ${Math.round(width)} x ${Math.round(height)}`] : [];
    }));
    const cut = Array.from(document.querySelectorAll('main > *'))
        .filter(({ scrollHeight, clientHeight }) => scrollHeight > clientHeight + 1)
        .map(({ className, scrollHeight, clientHeight }) => `${className}: ${clientHeight} of ${scrollHeight}`);
    return [panels.length, [...overlaps, ...cut]]";

fn the_first_paint_does_not_wait_for_the_stream(browser: &str) {
    let server = start_with(|config| config.lab = true);
    let address = server.address();
    let silence = request(address, "POST", "/lab/server/delay?for=5m&by=5m", &[], "");
    assert_eq!(silence.status, 200, "{}", silence.body);
    let browser = Browser::start_named(browser);
    browser.open(&format!("http://{address}/"));
    let painted = "return performance.getEntriesByName('first-contentful-paint').length";
    wait_until(|| browser.run(painted, &[]), |painted| *painted == 1);
    let panels = ["connection", "document", "publish", "wire", "events", "clients"];
    let seen = "return document.querySelector(`main > .${arguments[0]}`).getBoundingClientRect().height > 0";
    for panel in panels {
        assert_eq!(browser.run(seen, &[panel]), true, "{panel}");
    }
    assert_eq!(browser.attribute("#state", "data-state"), "connecting");
    assert_eq!(browser.text("#count"), "0");
}

fn ten_thousand_keys_and_thousands_of_events_keep_the_lists_bounded_and_the_document_right(browser: &str) {
    let server = start();
    let address = server.address();
    let keys: serde_json::Map<String, Value> = (0..10_000).map(|n| (format!("key{n}"), json!(n))).collect();
    put(address, "/state/big", &Value::Object(keys.clone()).to_string());
    let browser = Browser::start_named(browser);
    open(&browser, address, "?topic=big");
    show_wire(&browser);
    // Pipelined, as fast as the server takes them.
    for batch in 0..15 {
        let one = |n: i32| {
            let body = format!(r#"{{"key{n}":"{batch}"}}"#);
            let close = if n == 99 { "Connection: close\r\n" } else { "" };
            let length = body.len();
            format!(
                "PATCH /state/big HTTP/1.1\r\nHost: {address}\r\n{close}Content-Length: {length}\r\n\r\n{body}"
            )
        };
        let answers = exchange(address, (0..100).map(one).collect::<String>().as_bytes());
        assert_eq!(answers.matches("200 OK").count(), 100, "{answers}");
    }
    wait_until(|| browser.text("#count"), |count| count.starts_with("1,502"));
    wait_for_document(&browser, &get(address, "/state/big").json());
    assert_eq!(browser.texts("#events li").len(), 50);
    assert!(wire(&browser).len() <= 200);
    assert_eq!(events(&browser, "waiting"), [""; 0]);
    // Nothing came twice, or it would have been counted.
    assert_eq!(browser.text("#reconnects"), "not yet");
}

/// A morning in a house, for pictures: what is, and what happens.
const HOUSE: &str = r#"{
    "garden": {"soil": 0.31, "sun": "partly cloudy", "watering": {"next": "19:30", "minutes": 12}},
    "kitchen": {"temp": 20.9, "humidity": 46, "window": "closed"},
    "machine": {"host": "pi-attic", "load": [0.42, 0.38, 0.31], "memory_mb": 412, "uptime_days": 93},
    "solar": {"watts": 1840, "today_kwh": 6.2},
    "washing": {"program": "cotton 40", "minutes_left": 41}
}"#;
const MORNING: [(&str, &str); 12] = [
    ("kitchen", r#"{"temp":21.2}"#),
    ("machine", r#"{"load":[0.57,0.41,0.32]}"#),
    ("solar", r#"{"watts":1912}"#),
    ("washing", r#"{"minutes_left":40}"#),
    ("kitchen", r#"{"window":"open","humidity":44}"#),
    ("garden", r#"{"sun":"sunny"}"#),
    ("solar", r#"{"watts":2306,"today_kwh":6.3}"#),
    ("machine", r#"{"load":[0.48,0.40,0.32],"memory_mb":415}"#),
    ("washing", r#"{"minutes_left":39}"#),
    ("garden", r#"{"soil":0.3,"watering":{"minutes":14}}"#),
    ("solar", r#"{"watts":2341}"#),
    ("kitchen", r#"{"temp":21.5}"#),
];

fn the_page_fits_a_desk_and_a_telephone_in_light_and_in_dark(browser: &str) {
    let server = start();
    let address = server.address();
    put(address, "/state", HOUSE);
    let browser = Browser::start_named(browser);
    browser.resize(1_200, 900);
    open(&browser, address, "?event=alert");
    for (topic, change) in MORNING {
        wait_for_event(&browser, patch(address, &format!("/state/{topic}"), change));
    }
    let id = post(address, "/events?event=alert", "The kitchen window is open and it will rain.");
    wait_for_event(&browser, id);
    let long = "a".repeat(64);
    for (width, height) in [(1_200, 900), (390, 844), (320, 568)] {
        browser.resize(width, height);
        for scheme in browser.schemes() {
            browser.prefer(scheme);
            wait_until_still(&browser);
            assert_fits(&browser, width);
            let [r, g, b] = background(&browser);
            assert_eq!(r + g + b > 3 * 128, *scheme == "light", "{scheme}: {r} {g} {b}");
            let picture = browser.screenshot();
            assert_eq!(picture[..8], *b"\x89PNG\r\n\x1a\n");
            assert_eq!(u32::from_be_bytes(picture[16..20].try_into().unwrap()), width);
            keep_picture(&browser, "page", scheme);
        }
        // Nor does anything break out that has no place to break.
        let id = put(address, &format!("/state/{long}"), &format!("\"{}\"", long.repeat(20)));
        wait_for_event(&browser, id);
        assert_fits(&browser, width);
        wait_for_event(&browser, delete(address, &format!("/state/{long}")));
    }
}

/// Rows that changed glow for a while.
fn wait_until_still(browser: &Browser) {
    wait_until(|| browser.run("return document.getAnimations().length", &[]), |moving| *moving == 0);
}

fn assert_fits(browser: &Browser, width: u32) {
    let script = "return Array.from(document.querySelectorAll('html, body, section, #document, #events'))
        .filter((element) => element.scrollWidth > element.clientWidth)
        .map((element) => `${element.localName}#${element.id} is ${element.scrollWidth} wide`)";
    assert_eq!(browser.run(script, &[]), json!([]), "at {width}");
    let is_whole = browser.run("return document.documentElement.scrollWidth <= innerWidth", &[]);
    assert_eq!(is_whole, true, "at {width}");
}

/// Red, green and blue of the paper.
fn background(browser: &Browser) -> [u32; 3] {
    let color = browser.run("return getComputedStyle(document.body).backgroundColor", &[]);
    let numbers = color.as_str().expect("a colour").trim_start_matches("rgb(").trim_end_matches(')');
    let numbers: Vec<u32> = numbers.split(", ").map(|number| number.parse().expect("a number")).collect();
    numbers.try_into().expect("three numbers")
}
