//! The README's recipes for one's own page: each runs in a browser as it stands there, but for ports and the folder.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/page.rs"]
mod page;
mod support;
#[path = "support/webdriver.rs"]
mod webdriver;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use page::assert_no_complaint;
use serde_json::{Value, json};
use support::*;
use webdriver::{Browser, tests_in_browsers};

tests_in_browsers! {
    a_page_of_ones_own_from_the_same_origin_shows_the_document_and_publishes: chromium, firefox, webkit;
    a_page_of_ones_own_from_another_origin_shows_the_document_if_its_origin_is_listed: chromium, firefox, webkit;
    what_a_value_brings_into_a_page_of_ones_own_does_not_run: chromium, firefox;
}

/// The page of a recipe: the first is of the same origin, the second of another one.
fn recipe(number: usize) -> &'static str {
    blocks("html")[number]
}

/// The words of the README's command that has `part` in it, without the comment behind it.
fn command(part: &str) -> Vec<&'static str> {
    let blocks = blocks("sh");
    let mut lines = blocks.iter().flat_map(|block| block.lines());
    let line = lines.find(|line| line.contains(part)).unwrap();
    line.split(" #").next().unwrap().split_whitespace().collect()
}

/// Runs the README's statecast with `part` among its options, with something else in place of one word.
fn run_statecast(part: &str, word: &str, instead: &str) -> Binary {
    let command = command(part);
    assert_eq!(command[0], "statecast");
    assert!(command.contains(&word), "{command:?}");
    let arguments = command[1..].iter().map(|&argument| if argument == word { instead } else { argument });
    Binary::start(&arguments.collect::<Vec<_>>())
}

/// The web server of the second recipe, on a port that is free.
struct OtherServer {
    child: Child,
    port: String,
}

impl OtherServer {
    fn start(folder: &str) -> OtherServer {
        let command = command("http.server");
        assert!(command.contains(&"8000") && command.contains(&"my-page"), "{command:?}");
        let arguments = command[1..].iter().map(|&argument| match argument {
            "8000" => "0",
            "my-page" => folder,
            other => other,
        });
        let child = Command::new(command[0])
            .args(arguments)
            .env("PYTHONUNBUFFERED", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.expect("python3 is missing: tests/all installs it");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (_, rest) = line.split_once(" port ").unwrap_or_else(|| panic!("{line:?} names no port"));
        let port = rest.split(' ').next().unwrap().to_owned();
        OtherServer { child, port }
    }
}

impl Drop for OtherServer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn wait_for_shown(browser: &Browser, document: &Value) {
    wait_until(|| browser.text("#state"), |state| state.starts_with("open: the server sent "));
    let is_shown = |text: &String| serde_json::from_str(text).is_ok_and(|shown: Value| shown == *document);
    wait_until(|| browser.text("#shown"), is_shown);
}

fn published(address: SocketAddr) -> Value {
    get(address, "/state").json()
}

fn a_page_of_ones_own_from_the_same_origin_shows_the_document_and_publishes(browser: &str) {
    let folder = Folder::new(&format!("same-origin-{browser}"));
    fs::write(folder.file("index.html"), recipe(0)).unwrap();
    // A browser asks for it, and complains where there is none.
    fs::write(folder.file("favicon.ico"), "").unwrap();
    let server = run_statecast("--public", "my-page", folder.0.to_str().unwrap());
    put(server.address, "/state/kitchen", "1");
    let browser = Browser::start_named(browser);
    browser.open(&format!("http://localhost:{}/", server.address.port()));
    wait_for_shown(&browser, &json!({"kitchen": 1}));
    put(server.address, "/state/kitchen", "2");
    wait_for_shown(&browser, &json!({"kitchen": 2}));
    let weight = "return getComputedStyle(document.getElementById('state')).fontWeight";
    assert_eq!(browser.run(weight, &[]), "700");
    browser.click("#on");
    let document = json!({"hall": {"lamp": "on"}, "kitchen": 2});
    wait_for_shown(&browser, &document);
    assert_eq!(published(server.address), document);
    assert_no_complaint(&browser);
}

fn a_page_of_ones_own_from_another_origin_shows_the_document_if_its_origin_is_listed(browser: &str) {
    let folder = Folder::new(&format!("other-origin-{browser}"));
    let other = OtherServer::start(folder.0.to_str().unwrap());
    let origin = format!("http://localhost:{}", other.port);
    let server = run_statecast("--allow-origin", "http://localhost:8000", &origin);
    let here = format!("localhost:{}", server.address.port());
    assert_eq!(recipe(1).matches("localhost:8080").count(), 2);
    fs::write(folder.file("index.html"), recipe(1).replace("localhost:8080", &here)).unwrap();
    put(server.address, "/state/kitchen", "1");
    let browser = Browser::start_named(browser);
    browser.open(&format!("{origin}/"));
    wait_for_shown(&browser, &json!({"kitchen": 1}));
    put(server.address, "/state/kitchen", "2");
    wait_for_shown(&browser, &json!({"kitchen": 2}));
    // The same page by another name is of another origin.
    browser.open(&format!("http://127.0.0.1:{}/", other.port));
    wait_until(|| browser.text("#state"), |state| state.starts_with("waiting: nobody answers"));
    assert_eq!(browser.text("#shown"), "");
}

fn what_a_value_brings_into_a_page_of_ones_own_does_not_run(browser: &str) {
    let folder = Folder::new(&format!("careless-{browser}"));
    let careless = recipe(0).replace("textContent = text", "innerHTML = text");
    assert_ne!(careless, recipe(0));
    fs::write(folder.file("index.html"), careless).unwrap();
    let server = run_statecast("--public", "my-page", folder.0.to_str().unwrap());
    let value = "<script>globalThis.ran = 1</script><img src=x onerror='globalThis.ran = 2'><i id=fence></i>";
    put(server.address, "/state", &json!({ "kitchen": value }).to_string());
    let browser = Browser::start_named(browser);
    browser.open(&format!("http://localhost:{}/", server.address.port()));
    wait_until(
        || browser.run("return document.querySelector('#shown img')?.complete", &[]),
        |done| *done == true,
    );
    assert_eq!(browser.run("return globalThis.ran ?? null", &[]), Value::Null);
}
