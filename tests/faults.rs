//! Each fault of the lab, done to the page: it heals, and shows the right document.

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
use statecast::Server;
use support::*;
use webdriver::{Browser, tests_in_browsers};

fn start_lab() -> Server {
    start_with(|config| {
        config.lab = true;
        config.retry = Duration::from_millis(100);
        config.heartbeat = Duration::from_millis(300);
    })
}

/// The faults that `GET /lab` lists: scope, name, and the parameters each is to be tried with.
fn faults(address: SocketAddr) -> Vec<(String, String, String)> {
    let list = get(address, "/lab").json();
    let mut faults = Vec::new();
    for fault in list["faults"].as_array().unwrap() {
        let text = |key: &str| fault[key].as_str().unwrap().to_owned();
        let parameters = fault["parameters"].as_object().unwrap();
        let time = match &text("name")[..] {
            // Long enough to be told of; the page waits as long as the rest, as Retry-After says.
            "refuse" | "wrong-type" => "for=3s",
            _ if parameters.contains_key("for") => "for=1s",
            _ => "",
        };
        let mut add = |more: &str| {
            let given = [time, more].into_iter().filter(|one| !one.is_empty()).collect::<Vec<_>>().join("&");
            faults.push((text("scope"), text("name"), given));
        };
        match &text("name")[..] {
            "refuse" => [503, 429, 204, 404, 500].map(|status| add(&format!("status={status}"))),
            "delay" => {
                add("by=300ms");
                continue;
            }
            _ => {
                add("");
                continue;
            }
        };
    }
    faults
}

/// What the page says of a refusal.
fn told_of(fault: &str, parameters: &str) -> Option<String> {
    let (_, status) = parameters.split_once("status=").unwrap_or_default();
    match (fault, status) {
        ("wrong-type", _) => Some("what answered is text/html, and no event stream".to_owned()),
        ("refuse", "204") => Some("the server said 204".to_owned()),
        ("refuse", status) => Some(format!("the server said {status}: the lab opens no stream now")),
        _ => None,
    }
}

tests_in_browsers! {
    the_page_heals_from_every_fault_and_shows_the_right_document: chromium, firefox, webkit;
    the_page_has_a_button_for_each_fault_and_none_where_there_is_no_lab: chromium, firefox, webkit;
    the_wire_shows_what_drips_and_what_is_odd_as_it_came: chromium, firefox, webkit;
    the_wire_marks_the_edges_of_what_came_in_pieces: chromium, firefox, webkit;
}

fn the_page_heals_from_every_fault_and_shows_the_right_document(browser: &str) {
    let server = start_lab();
    let address = server.address();
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    browser
        .run("globalThis.reasons = []; statecast.on('state', ({ reason }) => { reasons.push(reason) })", &[]);
    let faults = faults(address);
    assert!(faults.len() > 10, "{faults:?}");
    for (number, (scope, name, parameters)) in faults.iter().enumerate() {
        let client = wait_for_clients(address, 1)[0]["id"].clone();
        let whose = if scope == "client" { format!("clients/{client}") } else { scope.clone() };
        let fault = format!("/lab/{whose}/{name}?{parameters}");
        put(address, "/state/before", &number.to_string());
        assert_eq!(request(address, "POST", &fault, &[], "").status, 200, "{fault}");
        // What is done to new streams needs one.
        if scope == "server" && name != "restart" {
            request(address, "DELETE", &format!("/clients/{client}"), &[], "");
        }
        let told = told_of(name, parameters);
        if let Some(told) = &told {
            wait_until(
                || browser.run("return reasons", &[]),
                |reasons: &Value| reasons.to_string().contains(told),
            );
            // A fault takes the place of the one before.
            assert_eq!(request(address, "POST", "/lab/server/delay?for=1ms&by=1ms", &[], "").status, 200);
        }
        put(address, "/state/after", &format!(r#"["ä",{number}]"#));
        wait_for_document(&browser, &json!({"before": number, "after": ["ä", number]}));
        wait_for_state(&browser, &["open"]);
    }
}

fn the_page_has_a_button_for_each_fault_and_none_where_there_is_no_lab(browser: &str) {
    let server = start_lab();
    let address = server.address();
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    let listed: Vec<String> = get(address, "/lab").json()["faults"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| fault["name"].as_str().unwrap().to_owned())
        .collect();
    wait_until(|| browser.texts("#faults button"), |buttons| *buttons == listed);
    assert_eq!(browser.run("return document.querySelector('#lab').hidden", &[]), false);
    browser.click("#faults .fault button");
    wait_until(|| browser.text("#lab-result"), |said| *said == format!("{}: done", listed[0]));
    wait_until(|| browser.text("#reason"), |reason| reason == "the server sent what was missed");
    let curl = browser.text("#lab-curl");
    assert!(curl.starts_with("curl -X POST ") && curl.ends_with(&listed[0]), "{curl}");
    assert_no_complaint(&browser);

    let plain = start();
    open(&browser, plain.address(), "");
    wait_until(|| browser.text("#clients"), |rows| rows.contains("this page"));
    assert_eq!(browser.texts("#faults button"), [""; 0]);
    assert_eq!(get(plain.address(), "/lab").json()["error"], get(plain.address(), "/lab").error());
    assert_no_complaint(&browser);
}

fn the_wire_shows_what_drips_and_what_is_odd_as_it_came(browser: &str) {
    let server = start_lab();
    let address = server.address();
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    show_wire(&browser);
    let ours = browser.run("return String(statecast.hello.client)", &[]);
    let wire_client =
        clients(address).iter().map(|client| client["id"].to_string()).find(|id| ours != json!(id));
    let switch_on = |fault: &str| {
        let path = format!("/lab/clients/{}/{fault}", wire_client.as_ref().unwrap());
        assert_eq!(request(address, "POST", &path, &[], "").status, 200, "{path}");
    };
    let explain = |browser: &Browser, kind: &str| {
        let script = "document.querySelector(`#wire .${arguments[0]}`)
            .dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
            return document.querySelector('#wire-explains').textContent";
        browser.run(script, &[kind]).as_str().unwrap().to_owned()
    };

    switch_on("comments?for=1m");
    put(address, "/state/kitchen", "\"ä\"");
    wait_until(|| browser.texts("#wire .comment"), |lines| !lines.is_empty());
    assert!(explain(&browser, "comment").contains("comment"));

    switch_on("drip?for=1m");
    put(address, "/state/kitchen", "\"ö\"");
    wait_until(|| wire(&browser).concat().replace('¦', ""), |text| text.contains(r#"data: {"kitchen":"ö"}"#));
    switch_on("end");
    wait_until(|| browser.texts("#wire .end"), |lines| lines.len() == 1);
    assert!(explain(&browser, "end").contains("comes back by itself"));
    assert_eq!(wait_for_clients(address, 1)[0]["id"].to_string(), ours.as_str().unwrap());
    wait_for_document(&browser, &json!({"kitchen": "ö"}));
}

fn the_wire_marks_the_edges_of_what_came_in_pieces(browser: &str) {
    let server = start();
    let browser = Browser::start_named(browser);
    open(&browser, server.address(), "");
    // A byte each, through letters and line ends: how much comes at once is the browser's choice.
    let script = r"byId('wire').hidden = false;
        const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
        const text = '\ufeffdata:ä\r\n\r\n:x\r:\n';
        for (const byte of new TextEncoder().encode(text)) feed(Uint8Array.of(byte), decoder)";
    browser.run(script, &[]);
    wait_for_line(&browser, ":¦");
    let lines = browser.texts("#wire li:not(.edge)");
    assert_eq!(lines, [r"[BOM]¦d¦a¦t¦a¦:¦¦ä¦\r¦\n", r"\r¦\n", r":¦x¦\r", r":¦\n"]);
    let kinds = browser.run(
        "return Array.from(document.querySelectorAll('#wire li:not(.edge)'), (li) => li.dataset.kind)",
        &[],
    );
    assert_eq!(kinds, json!(["data", "blank", "comment", "comment"]));
    // An edge between lines has a line of its own: when, and how many bytes.
    assert!(browser.text("#wire .edge").ends_with("  1 bytes"), "{}", browser.text("#wire .edge"));
}
