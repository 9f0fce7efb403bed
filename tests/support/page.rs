//! The page as a test sees it, in a `Browser`.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use statecast::EventId;

use crate::support::{get, wait_until};
use crate::webdriver::{Browser, ConsoleLine, Kind};

/// Opens the page and waits until its stream is open.
pub fn open(browser: &Browser, address: SocketAddr, query: &str) {
    browser.open(&format!("http://{address}/{query}"));
    wait_for_state(browser, &["open"]);
}

pub fn wait_for_state(browser: &Browser, states: &[&str]) -> String {
    wait_until(|| browser.attribute("#state", "data-state"), |state| states.contains(&state.as_str()))
}

/// Waits until the page shows this document and nothing else.
pub fn wait_for_document(browser: &Browser, document: &Value) {
    let is_shown = |text: &String| serde_json::from_str(text).is_ok_and(|shown: Value| shown == *document);
    wait_until(|| browser.text("#document"), is_shown);
}

/// Waits until the newest line in the list of events is this event's.
pub fn wait_for_event(browser: &Browser, id: EventId) {
    wait_until(|| browser.attribute("#events li:last-child", "data-id"), |newest| *newest == id.to_string());
}

/// The data of the events of that name in the list, oldest first.
pub fn events(browser: &Browser, name: &str) -> Vec<String> {
    browser.texts(&format!("#events [data-event='{name}'] .data"))
}

pub fn clients(address: SocketAddr) -> Vec<Value> {
    get(address, "/clients").json().as_array().expect("a list").clone()
}

/// The clients of the server, when they are so many.
pub fn wait_for_clients(address: SocketAddr, count: usize) -> Vec<Value> {
    wait_until(|| clients(address), |clients| clients.len() == count)
}

/// The console has no error in it and no report about the Content Security Policy; `WebKit`'s cannot be read.
pub fn assert_no_complaint(browser: &Browser) {
    if browser.kind == Kind::WebKit {
        return;
    }
    let console = browser.console();
    assert!(!console.iter().any(is_complaint), "{console:?}");
}

/// Opens the tour at its first step.
pub fn open_tour(browser: &Browser) {
    browser.run("scrollTo(0, 0)", &[]);
    browser.click("#tour-open");
}

/// Shows the wire and waits for its first event.
pub fn show_wire(browser: &Browser) {
    browser.click("#wire-show");
    wait_for_line(browser, "event: hello");
}

/// Waits until the wire has shown this line.
pub fn wait_for_line(browser: &Browser, line: &str) {
    wait_until(|| wire(browser), |lines| lines.iter().any(|shown| shown.trim_end_matches("\\n") == line));
}

pub fn wire(browser: &Browser) -> Vec<String> {
    browser.texts("#wire li")
}

pub fn is_complaint(line: &ConsoleLine) -> bool {
    line.level == "SEVERE" || line.message.replace('-', " ").contains("Content Security Policy")
}

/// Keeps a picture of what is in sight in the folder that `STATECAST_SCREENSHOTS` names, for whoever wants to look.
pub fn keep_picture(browser: &Browser, name: &str, scheme: &str) {
    let Some(folder) = std::env::var_os("STATECAST_SCREENSHOTS") else { return };
    browser.prefer(scheme);
    let size = browser.run("return `${innerWidth}x${innerHeight}`", &[]);
    let name = format!("{:?}-{}-{name}-{scheme}.png", browser.kind, size.as_str().expect("a size"));
    fs::create_dir_all(&folder).expect("a folder for pictures");
    fs::write(Path::new(&folder).join(name), browser.screenshot()).expect("a picture is written");
}
