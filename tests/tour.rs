//! The guided tour: the page and the README tell the same, and each experiment shows what it says, in a real browser.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/page.rs"]
mod page;
mod support;
#[path = "support/webdriver.rs"]
mod webdriver;

use std::net::SocketAddr;
use std::process::Command;

use page::*;
use serde_json::{Value, json};
use support::*;
use webdriver::Browser;

const README: &str = include_str!("../README.md");
const PAGE: &str = include_str!("../public/index.html");

/// One experiment: its title, and what to do, what to see, and why, as plain text in one line each.
type Experiment = (String, [String; 3]);

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("no {start:?} in {text}"));
    rest.split_once(end).map_or(rest, |(inside, _)| inside)
}

fn of_readme() -> Vec<Experiment> {
    let tour = between(README, "\n## A tour\n", "\n## ");
    let parts = tour.split("\n### ").skip(1).map(|part| {
        let (title, text) = part.split_once('\n').unwrap();
        let told = ["Do", "See", "Because"]
            .map(|word| one_line(&between(text, &format!("- *{word}:* "), "\n- *").replace('`', "")));
        (title.to_owned(), told)
    });
    parts.collect()
}

fn of_page() -> Vec<Experiment> {
    let tour = between(PAGE, "id=\"tour\"", "<section");
    let parts = tour.split("<details name=\"experiment\">").skip(1).map(|part| {
        let told = ["Do", "See", "Because"].map(|word| {
            let text = between(part, &format!("<dt>{word}<dd>"), "\n");
            one_line(&text.replace("<code>", "").replace("</code>", ""))
        });
        (between(part, "<h3>", "</h3>").to_owned(), told)
    });
    parts.collect()
}

/// The commands of an experiment, for the server at `address`.
fn commands(title: &str, address: SocketAddr) -> Vec<String> {
    let tour = between(README, "\n## A tour\n", "\n## ");
    let part = between(between(tour, &format!(" {title}\n"), "\n### "), "- *Do:* ", "\n- *");
    let code = part.split('`').skip(1).step_by(2).filter(|code| code.contains(' '));
    code.map(|code| code.replace("localhost:8080", &address.to_string())).collect()
}

fn run(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The `hello` of each connection, as the page heard them.
fn hellos(browser: &Browser) -> Vec<Value> {
    events(browser, "hello").iter().map(|data| serde_json::from_str(data).unwrap()).collect()
}

fn wait_for_reason(browser: &Browser, reason: &str) {
    wait_until(|| browser.text("#reason"), |shown| shown == reason);
}

#[test]
fn the_page_and_the_readme_tell_the_same_seven_experiments() {
    let titles = [
        "1. Connect",
        "2. Publish",
        "3. Two tabs",
        "4. Kill the connection",
        "5. Sleep",
        "6. Slow reader",
        "7. Restart",
    ];
    let tour = of_readme();
    assert_eq!(tour.iter().map(|(title, _)| title.as_str()).collect::<Vec<_>>(), titles);
    for (of_readme, of_page) in tour.iter().zip(of_page()) {
        assert_eq!(*of_readme, of_page);
    }
    assert_eq!(tour.len(), of_page().len());
}

#[test]
#[ignore = "needs Chromium and chromedriver: tests/all installs them"]
fn connect_one_answer_brings_retry_hello_and_the_document_and_stays_open() {
    let server = start();
    let address = server.address();
    let id = put(address, "/state/kitchen", "1");
    let browser = Browser::start();
    open(&browser, address, "");

    browser.click("#tour > summary");
    browser.click("#tour details summary");
    let address_shown = browser.text("#tour details code");
    assert_eq!(address_shown, format!("http://{address}/"));
    show_wire(&browser);

    for line in ["HTTP/1.1 200 OK", "event: init", &format!("id: {id}"), r#"data: {"kitchen":1}"#] {
        wait_for_line(&browser, line);
    }
    assert!(wire(&browser).iter().any(|line| line.starts_with("retry: ")), "{:?}", wire(&browser));
    wait_for_state(&browser, &["open"]);
    // The pointer rests on a line, and the line is explained.
    let rest_on = "document.querySelector(arguments[0]).dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))";
    browser.run(rest_on, &["#wire .retry"]);
    assert!(browser.text("#wire-explains").contains("before it asks again"));
    browser.run(rest_on, &["#wire .id"]);
    assert!(browser.text("#wire-explains").contains("Last-Event-ID"));
    // Hidden, it is no client any more.
    assert_eq!(wait_for_clients(address, 2).len(), 2);
    browser.click("#wire-show");
    patch(address, "/state/kitchen", "2");
    wait_for_clients(address, 1);
    assert_no_complaint(&browser);
}

#[test]
#[ignore = "needs Chromium, chromedriver and curl: tests/all installs them"]
fn publish_the_change_alone_comes_with_an_id_and_its_topic_lights_up() {
    let server = start();
    let address = server.address();
    put(address, "/state", r#"{"hall":1,"kitchen":{"temp":20}}"#);
    let browser = Browser::start();
    open(&browser, address, "");
    show_wire(&browser);
    let watch = "globalThis.lit = [];
        const { animate } = Element.prototype;
        Element.prototype.animate = function (...how) {
            if (this.matches('.row')) lit.push(this.querySelector('b').textContent);
            return animate.apply(this, how);
        }";
    browser.run(watch, &[]);

    run(&commands("2. Publish", address)[0]);

    wait_for_document(&browser, &json!({"hall": 1, "kitchen": {"temp": 21.5}}));
    wait_for_line(&browser, r#"data: {"kitchen":{"temp":21.5}}"#);
    wait_for_line(&browser, &format!("id: {}", browser.text("#last-event-id")));
    assert_eq!(events(&browser, "update"), [r#"{"kitchen":{"temp":21.5}}"#]);
    assert_eq!(browser.run("return lit", &[]), json!(["\"kitchen\""]));
    // And the button does what the command did.
    browser.click("#publish-send");
    wait_until(|| events(&browser, "update"), |updates| updates.len() == 2);
    assert_eq!(events(&browser, "update")[1], events(&browser, "update")[0]);
}

#[test]
#[ignore = "needs Chromium and chromedriver: tests/all installs them"]
fn two_tabs_are_one_client_and_the_one_that_is_left_misses_nothing() {
    let server = start();
    let address = server.address();
    let browser = Browser::start();
    open(&browser, address, "");
    let first = browser.tab();
    let second = browser.new_tab();
    open(&browser, address, "");
    wait_until(|| browser.text("#tabs"), |shown| shown == "2: another has it");
    assert_eq!(clients(address).len(), 1);
    put(address, "/state/before", "1");
    wait_for_document(&browser, &json!({"before": 1}));

    browser.look_at(&first);
    browser.close_tab();
    put(address, "/state/between", "2");
    browser.look_at(&second);

    wait_for_document(&browser, &json!({"before": 1, "between": 2}));
    wait_until(|| browser.text("#tabs"), |shown| shown == "this one");
    wait_for_clients(address, 1);
    assert_eq!(events(&browser, "update"), [r#"{"before":1}"#, r#"{"between":2}"#]);
    assert_no_complaint(&browser);
}

#[test]
#[ignore = "needs Chromium and chromedriver: tests/all installs them"]
fn kill_what_was_published_meanwhile_comes_once_and_the_document_not_again() {
    let server = start();
    let address = server.address();
    put(address, "/state/kitchen", "1");
    let browser = Browser::start();
    open(&browser, address, "");
    wait_for_document(&browser, &json!({"kitchen": 1}));
    wait_until(|| browser.text("#clients tr.own"), |row| row.contains("this page"));

    browser.click("#clients tr.own button");
    wait_for_state(&browser, &["lost"]);
    put(address, "/state/kitchen", "2");

    wait_for_document(&browser, &json!({"kitchen": 2}));
    wait_for_reason(&browser, "the server sent what was missed");
    assert_eq!(hellos(&browser)[1]["resume"], "replay");
    assert_eq!(events(&browser, "update"), [r#"{"kitchen":2}"#]);
    assert_eq!(events(&browser, "init").len(), 1);
    assert!(browser.text("#happening").contains("last id"), "{}", browser.text("#happening"));
    assert_no_complaint(&browser);
}

#[test]
#[ignore = "needs Chromium and chromedriver: tests/all installs them"]
fn sleep_a_frozen_server_is_noticed_after_two_heartbeats_and_heals() {
    let server = Binary::start(&["--heartbeat", "1s"]);
    let address = server.address;
    put(address, "/state/kitchen", "1");
    let browser = Browser::start();
    open(&browser, address, "");
    wait_for_document(&browser, &json!({"kitchen": 1}));

    server.signal("STOP");
    wait_until(|| browser.text("#reason"), |reason| reason.starts_with("nothing was heard for "));
    assert!(browser.text("#happening").contains("two heartbeats"), "{}", browser.text("#happening"));
    server.signal("CONT");

    wait_for_state(&browser, &["open"]);
    put(address, "/state/kitchen", "2");
    wait_for_document(&browser, &json!({"kitchen": 2}));
    // What the page left behind goes when a heartbeat is written to it.
    wait_for_clients(address, 1);
    assert_eq!(events(&browser, "update"), [r#"{"kitchen":2}"#]);
}

#[test]
#[ignore = "needs Chromium, chromedriver and curl: tests/all installs them"]
fn slow_reader_delays_nobody_and_gets_the_document_when_it_reads_again() {
    // On a busy machine it may take longer than ten seconds to read on.
    let server = start_with(|config| config.stall = DEADLINE);
    let address = server.address();
    put(address, "/state/kitchen", "1");
    let browser = Browser::start();
    open(&browser, address, "");
    show_wire(&browser);
    wait_until(|| browser.text("#clients"), |rows| rows.contains("the wire"));
    browser.click("#wire-pause");

    run(&commands("6. Slow reader", address)[0]);

    wait_until(
        || browser.texts("#clients tr.catching_up td:first-child").concat(),
        |row| row.contains("the wire"),
    );
    // The hundred, a `hello` and an `init`.
    wait_until(|| browser.text("#count"), |count| count.starts_with("102"));
    wait_for_state(&browser, &["open"]);
    browser.click("#wire-pause");
    wait_until(|| wire(&browser).concat(), |lines| lines.contains(r#""resume":"init","reason":"lagged""#));
    wait_for_line(&browser, r#"data: {"kitchen":1}"#);
    wait_until(|| browser.texts("#clients tr.catching_up"), Vec::is_empty);
    assert_eq!(browser.text("#reconnects"), "not yet");
}

#[test]
#[ignore = "needs Chromium and chromedriver: tests/all installs them"]
fn restart_the_new_server_sends_everything_because_it_cannot_know_what_was_missed() {
    let server = Binary::start(&["--retry", "300ms"]);
    let address = server.address;
    put(address, "/state/kitchen", "1");
    let browser = Browser::start();
    open(&browser, address, "");
    wait_for_document(&browser, &json!({"kitchen": 1}));

    server.signal("INT");
    assert_eq!(server.wait().0, Some(0));
    wait_for_state(&browser, &["lost", "waiting"]);
    let _server = Binary::start(&["--listen", &address.to_string()]);

    wait_for_document(&browser, &json!({}));
    wait_for_state(&browser, &["open"]);
    assert_eq!(browser.text("#reason"), "the server was restarted and sent the whole document");
    let hellos = hellos(&browser);
    assert_eq!([&hellos[1]["resume"], &hellos[1]["reason"]], ["init", "restart"]);
    put(address, "/state/kitchen", "2");
    wait_for_document(&browser, &json!({"kitchen": 2}));
}
