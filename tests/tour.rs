//! The guided tour: the page and the README tell the same, and each experiment shows what it says, in a real browser.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/page.rs"]
mod page;
mod support;
#[path = "support/webdriver.rs"]
mod webdriver;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use page::*;
use serde_json::{Value, json};
use statecast::{Server, Token};
use support::*;
use webdriver::{Browser, ENTER, TAB, tests_in_browsers};

const README: &str = include_str!("../README.md");
const PAGE: &str = include_str!("../public/index.html");

/// One experiment: its title, and what to do, what to expect, what to see, and why, as plain text in one line each.
type Experiment = (String, [String; 4]);

const WORDS: [&str; 4] = ["Do", "Expect", "See", "Because"];

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
        let told =
            WORDS.map(|word| one_line(&between(text, &format!("- *{word}:* "), "\n- *").replace('`', "")));
        (title.to_owned(), told)
    });
    parts.collect()
}

fn of_page() -> Vec<Experiment> {
    let tour = between(PAGE, "id=\"tour\"", "</aside>");
    let parts = tour.split("<article").skip(1).map(|part| {
        let told = WORDS.map(|word| {
            let text = between(part, &format!("<b>{word}</b> "), "\n").trim_end_matches("</summary>");
            let plain = ["<code>", "<code class=\"command\">", "</code>"];
            one_line(&plain.iter().fold(text.to_owned(), |text, tag| text.replace(tag, "")))
        });
        (between(part, "<h2>", "</h2>").to_owned(), told)
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

tests_in_browsers! {
    connect_one_answer_brings_retry_hello_and_the_document_and_stays_open: chromium, firefox, webkit;
    publish_the_change_alone_comes_with_an_id_and_its_topic_lights_up: chromium, firefox, webkit;
    two_tabs_are_one_client_and_the_one_that_is_left_misses_nothing: chromium, firefox, webkit;
    kill_what_was_published_meanwhile_comes_once_and_the_document_not_again: chromium, firefox, webkit;
    sleep_a_frozen_server_is_noticed_after_two_heartbeats_and_heals: chromium, firefox, webkit;
    // Firefox and WebKit read on by themselves.
    slow_reader_delays_nobody_and_gets_the_document_when_it_reads_again: chromium;
    restart_the_new_server_sends_everything_because_it_cannot_know_what_was_missed: chromium, firefox, webkit;
    on_a_desk_each_step_its_button_and_what_it_does_are_on_the_screen_together: chromium, firefox, webkit;
    on_a_telephone_each_step_its_button_and_what_it_does_are_on_the_screen_together: chromium, firefox, webkit;
    // No window of WebKit has the focus on a screen without a window manager, so that it shows none.
    the_keyboard_alone_gets_through_the_tour: chromium, firefox;
    a_link_leads_to_a_step_and_a_reader_is_told_what_was_seen: chromium, firefox, webkit;
    without_a_lab_the_steps_that_need_one_give_the_command_to_copy: chromium, firefox, webkit;
    every_command_has_a_button_that_copies_it: chromium, firefox, webkit;
    what_is_happening_follows_what_happens_and_each_leads_into_a_standard: chromium, firefox, webkit;
    one_token_reads_and_writes_and_the_console_knows_of_no_refusal: chromium, firefox, webkit;
    a_page_that_may_read_asks_for_a_token_before_it_publishes_and_not_before: chromium, firefox, webkit;
    without_javascript_the_page_says_so_at_the_top_and_shows_nothing_that_is_dead: chromium, firefox, webkit;
    on_a_telephone_end_is_in_sight_and_a_line_of_the_wire_is_explained_above_the_lines: chromium, firefox, webkit;
}

fn connect_one_answer_brings_retry_hello_and_the_document_and_stays_open(browser: &str) {
    let server = start();
    let address = server.address();
    let id = put(address, "/state/kitchen", "1");
    let browser = Browser::start_named(browser);
    open(&browser, address, "");

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

fn publish_the_change_alone_comes_with_an_id_and_its_topic_lights_up(browser: &str) {
    let server = start();
    let address = server.address();
    put(address, "/state", r#"{"hall":1,"kitchen":{"temp":20}}"#);
    let browser = Browser::start_named(browser);
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

fn two_tabs_are_one_client_and_the_one_that_is_left_misses_nothing(browser: &str) {
    let server = start();
    let address = server.address();
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    let first = browser.tab();
    let second = browser.new_tab();
    open(&browser, address, "");
    wait_until(|| browser.text("#tabs"), |shown| shown == "2: another has it");
    wait_until(|| browser.text("#happening"), |told| told.contains("no connection of its own"));
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

fn kill_what_was_published_meanwhile_comes_once_and_the_document_not_again(browser: &str) {
    let server = start();
    let address = server.address();
    put(address, "/state/kitchen", "1");
    let browser = Browser::start_named(browser);
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
    wait_until(|| browser.text("#happening"), |told| told.contains("asked again with its last id"));
    assert_no_complaint(&browser);
}

fn sleep_a_frozen_server_is_noticed_after_two_heartbeats_and_heals(browser: &str) {
    let server = Binary::start(&["--heartbeat", "1s"]);
    let address = server.address;
    put(address, "/state/kitchen", "1");
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    wait_for_document(&browser, &json!({"kitchen": 1}));

    server.signal("STOP");
    wait_until(|| browser.text("#reason"), |reason| reason.starts_with("nothing was heard for "));
    wait_until(|| browser.text("#happening"), |told| told.contains("two heartbeats"));
    server.signal("CONT");

    wait_for_state(&browser, &["open"]);
    put(address, "/state/kitchen", "2");
    wait_for_document(&browser, &json!({"kitchen": 2}));
    // What the page left behind goes when a heartbeat is written to it.
    wait_for_clients(address, 1);
    assert_eq!(events(&browser, "update"), [r#"{"kitchen":2}"#]);
}

fn slow_reader_delays_nobody_and_gets_the_document_when_it_reads_again(browser: &str) {
    // On a busy machine it may take longer than ten seconds to read on.
    let server = start_with(|config| config.stall = DEADLINE);
    let address = server.address();
    put(address, "/state/kitchen", "1");
    let browser = Browser::start_named(browser);
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

fn restart_the_new_server_sends_everything_because_it_cannot_know_what_was_missed(browser: &str) {
    let server = Binary::start(&["--retry", "300ms"]);
    let address = server.address;
    put(address, "/state/kitchen", "1");
    let browser = Browser::start_named(browser);
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

// --- The strip that leads through the tour ---

const DESK: (u32, u32) = (1_280, 900);
const TELEPHONE: (u32, u32) = (390, 844);

/// A server on which a tour does not take long.
fn start_for_tour() -> Server {
    start_with(|config| {
        config.lab = true;
        config.heartbeat = Duration::from_secs(1);
        config.retry = Duration::from_millis(500);
        // On a busy machine it may take longer than ten seconds to read on.
        config.stall = DEADLINE;
    })
}

/// Of each experiment, an element that shows its effect.
const EFFECTS: [&str; 7] = [
    "#wire [data-kind=blank]",
    "#document .row",
    "#clients tr.own button",
    "#events li[data-event=update]",
    "#heartbeat",
    "#clients tr.own button",
    "#events li[data-event=init]",
];

/// The last of the elements that fit is whole on the screen, and nothing lies over its middle.
fn assert_on_screen(browser: &Browser, selector: &str) {
    let script = "const seen = Array.from(document.querySelectorAll(arguments[0])).at(-1);
        if (!seen) return 'is not there';
        const { left, right, top, bottom } = seen.getBoundingClientRect();
        const isInside = left >= 0 && right <= innerWidth && top >= 0 && bottom <= innerHeight;
        if (!isInside) return `is at ${[left, top, right, bottom]} of ${[innerWidth, innerHeight]}`;
        const above = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
        const isFree = seen.contains(above) || above.contains(seen);
        return isFree ? '' : `is under ${above.outerHTML.slice(0, 200)}`";
    let fault = || browser.run(script, &[selector]).as_str().unwrap().to_owned();
    // A row that is drawn anew goes for a moment.
    wait_until(|| format!("{selector} {}", fault()), |said| said.ends_with(' '));
}

/// The number of the step that is open, as the page shows it.
fn open_step(browser: &Browser) -> String {
    browser.text(".tour nav [aria-current]")
}

fn wait_for_tick(browser: &Browser, step: usize) {
    let link = format!(".tour nav a[href='#{step}']");
    wait_until(
        || [browser.attribute(&link, "class"), browser.text("#seen")],
        |[class, seen]| class == "ticked" && seen.starts_with("✓ Seen: "),
    );
}

/// Goes through the whole tour with the buttons of the strip alone.
fn take_the_tour(browser: &Browser, address: SocketAddr) {
    open(browser, address, "");
    watch_tabs(browser);
    browser.click("#tour-open");
    for (index, effect) in EFFECTS.iter().enumerate() {
        let step = index + 1;
        wait_until(|| open_step(browser), |shown| *shown == step.to_string());
        let question = format!("#step-{step} summary");
        for shown in
            [&format!("#step-{step} h2"), &question, "#tour-do", "#tour-next", ".meant h2, .meant #state"]
        {
            assert_on_screen(browser, shown);
        }
        // What there is to see is not told before.
        assert_eq!(
            browser.run("return document.querySelector('.step:not([hidden]) details').open", &[]),
            false
        );

        browser.click("#tour-do");

        wait_for_tick(browser, step);
        for shown in [
            &format!("#step-{step} .see"),
            "#seen",
            "#tour-do",
            "#tour-next",
            ".meant h2, .meant #state",
            effect,
        ] {
            assert_on_screen(browser, shown);
        }
        for scheme in browser.schemes() {
            keep_picture(browser, &format!("step-{step}"), scheme);
        }
        close_other_tab(browser);
        browser.click("#tour-next");
    }
    wait_until(|| browser.attribute("body", "class"), String::is_empty);
    assert_no_complaint(browser);
}

/// Keeps hold of the tabs that the page opens.
fn watch_tabs(browser: &Browser) {
    browser.run("const { open } = window; window.open = (...how) => (globalThis.opened = open(...how))", &[]);
}

/// Closes the tab that the page has opened, if it has.
fn close_other_tab(browser: &Browser) {
    if browser.run("globalThis.opened?.close(); return globalThis.opened !== undefined", &[]) == true {
        wait_until(|| browser.text("#seen"), |seen| seen.contains("the other tab is closed"));
        browser.look_at(&browser.tab());
        browser.run("delete globalThis.opened", &[]);
    }
}

fn on_a_desk_each_step_its_button_and_what_it_does_are_on_the_screen_together(browser: &str) {
    let server = start_for_tour();
    let browser = Browser::start_named(browser);
    open(&browser, server.address(), "");
    browser.resize(DESK.0, DESK.1);
    take_the_tour(&browser, server.address());
}

fn on_a_telephone_each_step_its_button_and_what_it_does_are_on_the_screen_together(browser: &str) {
    let server = start_for_tour();
    let browser = Browser::start_named(browser);
    open(&browser, server.address(), "");
    browser.resize(TELEPHONE.0, TELEPHONE.1);
    take_the_tour(&browser, server.address());
}

/// Presses Tab until this element has the focus, and shows that it has.
fn tab_to(browser: &Browser, id: &str) {
    let focus = "const at = document.activeElement;
        return [at.id, at.matches(':focus-visible') && getComputedStyle(at).outlineStyle]";
    let mut passed = Vec::new();
    // It is near, and nobody has to go through the whole page.
    for _ in 0..10 {
        let [at, outline] = [0, 1].map(|part| browser.run(focus, &[])[part].clone());
        if at == id {
            assert_eq!(outline, "solid", "{id} does not show the focus");
            return;
        }
        passed.push(at);
        browser.press(TAB);
    }
    panic!("Tab does not lead to {id}, but to {passed:?}");
}

fn the_keyboard_alone_gets_through_the_tour(browser: &str) {
    let server = start_for_tour();
    let browser = Browser::start_named(browser);
    open(&browser, server.address(), "");
    watch_tabs(&browser);
    tab_to(&browser, "tour-open");
    browser.press(ENTER);
    for step in 1..=7 {
        wait_until(|| open_step(&browser), |shown| shown.starts_with(&step.to_string()));
        tab_to(&browser, "tour-do");
        browser.press(ENTER);
        wait_for_tick(&browser, step);
        close_other_tab(&browser);
        tab_to(&browser, "tour-next");
        browser.press(ENTER);
    }
    wait_until(|| browser.attribute("body", "class"), String::is_empty);
}

fn a_link_leads_to_a_step_and_a_reader_is_told_what_was_seen(browser: &str) {
    let server = start_for_tour();
    let browser = Browser::start_named(browser);
    open(&browser, server.address(), "#4");
    assert_eq!(open_step(&browser), "4");
    assert_eq!(browser.text(".step:not([hidden]) h2"), "4. Kill the connection");
    assert_eq!(browser.attribute("#seen", "role"), "status");
    // The tick is for what was seen, also where a person did it: not before, and not for less.
    wait_until(|| browser.text("#clients tr.own"), |row| row.contains("this page"));
    browser.click("#clients tr.own button");
    wait_for_reason(&browser, "the server sent what was missed");
    assert_eq!(browser.attribute(".tour nav a[href='#4']", "class"), "");
    browser.click("#tour-back");
    wait_until(|| open_step(&browser), |step| step == "3");
    assert_eq!(browser.run("return location.hash", &[]), "#3");
    // One tab alone is no tick, not even while it joins: its own row is there, so the page has looked.
    browser.open("about:blank");
    open(&browser, server.address(), "#3");
    wait_until(|| browser.text("#clients tr.own"), |row| row.contains("this page"));
    wait_until(|| browser.text("#heartbeat"), |age| age.ends_with("ago"));
    assert_eq!([browser.attribute(".tour nav a[href='#3']", "class"), browser.text("#seen")], ["", ""]);
    browser.click("#tour-leave");
    wait_until(|| browser.attribute("body", "class"), String::is_empty);
    assert_eq!(browser.run("return document.querySelector('#tour').checkVisibility()", &[]), false);
}

fn without_a_lab_the_steps_that_need_one_give_the_command_to_copy(browser: &str) {
    let server = start();
    let browser = Browser::start_named(browser);
    open(&browser, server.address(), "#5");
    note_what_is_copied(&browser);
    for (step, command) in [(5, "kill -STOP $(pidof statecast)"), (7, "kill -INT $(pidof statecast)")] {
        browser.run("location.hash = arguments[0]", &[&step.to_string()]);
        wait_until(|| browser.text("#tour-do"), |label| label == "Copy the command");
        assert!(browser.text("#seen").contains("without --lab"), "{}", browser.text("#seen"));
        browser.click("#tour-do");
        wait_until(|| browser.run("return copied.at(-1)", &[]), |copied| *copied == command);
        wait_until(|| browser.text("#tour-do"), |label| label == "Copy the command");
    }
}

/// Keeps what the page puts into the clipboard, which a browser without a screen has not.
fn note_what_is_copied(browser: &Browser) {
    let note = "globalThis.copied = [];
        Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => copied.push(text)}})";
    browser.run(note, &[]);
}

// --- The page around it ---

fn every_command_has_a_button_that_copies_it(browser: &str) {
    let server = start_for_tour();
    let browser = Browser::start_named(browser);
    open(&browser, server.address(), "");
    note_what_is_copied(&browser);
    let press_all = "const codes = Array.from(document.querySelectorAll('code.command'));
        for (const code of codes) code.nextElementSibling.click();
        return codes.map((code) => code.textContent)";
    let commands = browser.run(press_all, &[]);
    wait_until(|| browser.run("return copied", &[]), |copied| *copied == commands);
    // All that can be typed into a terminal are marked as commands.
    let unmarked =
        "return Array.from(document.querySelectorAll('code:not(.command)'), (code) => code.textContent)
        .filter((text) => /^(curl|kill|for|statecast) /.test(text))";
    assert_eq!(browser.run(unmarked, &[]), json!([]));
    assert_eq!(commands.as_array().unwrap().len(), 8, "{commands}");
}

fn what_is_happening_follows_what_happens_and_each_leads_into_a_standard(browser: &str) {
    let server = start_with(|config| {
        config.heartbeat = Duration::from_secs(2);
        config.retry = Duration::from_secs(3);
    });
    let address = server.address();
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    // Each for a moment, perhaps: a heartbeat may follow.
    let watch = "globalThis.told = [];
        const note = () => told.push(document.querySelector('#happening').textContent + ' ' + document.querySelector('#standard').href);
        new MutationObserver(note).observe(document.querySelector('#happening'), {childList: true})";
    browser.run(watch, &[]);
    let told = |part: &str, link: &str| {
        let all = || -> Vec<String> { serde_json::from_value(browser.run("return told", &[])).unwrap() };
        let is_told = |all: &Vec<String>| all.iter().any(|told| told.contains(part) && told.ends_with(link));
        wait_until(all, is_told);
    };
    told("A heartbeat came", "#authoring-notes");
    let id = patch(address, "/state/kitchen", "1");
    told(&format!("The browser keeps its id, {id}, and will send it as Last-Event-ID"), "#dispatchMessage");
    post(address, "/events", "hello");
    told("An event message came", "#event-stream-interpretation");
    let client = clients(address)[0]["id"].clone();
    assert_eq!(request(address, "DELETE", &format!("/clients/{client}"), &[], "").status, 200);
    told("as many milliseconds as the last retry: said", "#reestablish-the-connection");
    browser.click("#publish-send");
    told("and to this page when it is back", "rfc7396");
    told("asked again with its last id", "#the-last-event-id-header");
    browser.click("#publish-send");
    told("this page among them", "rfc7396");
}

fn one_token_reads_and_writes_and_the_console_knows_of_no_refusal(browser: &str) {
    let server = start_with(|config| {
        config.publish_token = Token::new("wr1te").ok();
        config.subscribe_token = Token::new("r3ad").ok();
        config.lab = true;
    });
    let address = server.address();
    let browser = Browser::start_named(browser);
    browser.open(&format!("http://{address}/"));
    wait_for_state(&browser, &["closed"]);
    wait_until(
        || browser.text("#access-result"),
        |said| said == "a token is needed for reading and publishing",
    );
    for curl in
        browser.texts("code.command").iter().filter(|text| text.contains("curl") && !text.ends_with("/lab"))
    {
        assert!(curl.contains(r#"curl -H "Authorization: Bearer $TOKEN" "#), "{curl}");
    }
    let give = |token: &str| {
        browser.fill("#token", token);
        browser.click("#access button");
    };
    give("wrong");
    wait_until(
        || browser.text("#access-result"),
        |said| said.contains("not enough for reading and publishing"),
    );
    give("r3ad");
    wait_for_state(&browser, &["open"]);
    wait_until(|| browser.text("#access-result"), |said| said.contains("not enough for publishing"));
    // Pressed again where the panels that the stream brings have moved it away from under the first click.
    let press = || {
        browser.click("#publish-send");
        browser.text("#publish-result")
    };
    wait_until(press, |said| said.contains("needs the publish token"));
    give("wr1te");
    wait_until(|| browser.text("#clients"), |rows| rows.contains("this page"));
    browser.click("#publish-send");
    wait_for_document(&browser, &json!({"kitchen": {"temp": 21.5}}));
    browser.resize(TELEPHONE.0, TELEPHONE.1);
    for part in ["#token", "#access button", "#access-result"] {
        browser.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", &[part]);
        assert_on_screen(&browser, part);
    }
    let height = browser.run("return document.querySelector('#access').offsetHeight", &[]);
    assert!(height.as_u64() < Some(120), "the words stand one below the other: {height}");
    // A reload knows it still, and the address has never had it.
    open(&browser, address, "");
    assert_eq!(browser.run("return location.search", &[]), "");
    // In an address it is taken out of it.
    open(&browser, address, "?token=r3ad&topic=kitchen#2");
    let place =
        browser.run("return location.search + location.hash + document.querySelector('#token').value", &[]);
    assert_eq!(place, "?topic=kitchen#2r3ad");
    assert_no_complaint(&browser);
}

fn a_page_that_may_read_asks_for_a_token_before_it_publishes_and_not_before(browser: &str) {
    let server = start_with(|config| config.publish_token = Token::new("wr1te").ok());
    let address = server.address();
    let browser = Browser::start_named(browser);
    open(&browser, address, "");
    wait_until(|| browser.text("#access-result"), |said| said == "a token is needed for publishing");
    browser.fill("#token", "wr1te");
    // Send is enough to have the clients asked for, too.
    browser.click("#publish-send");
    wait_until(|| browser.text("#clients"), |rows| rows.contains("this page"));
    assert_eq!(browser.text("#access-result"), "accepted");
    assert_no_complaint(&browser);
}

fn without_javascript_the_page_says_so_at_the_top_and_shows_nothing_that_is_dead(browser: &str) {
    let server = start();
    let browser = Browser::start_without_javascript(browser);
    browser.open(&format!("http://{}/", server.address()));
    assert_eq!(browser.visible_text("noscript code"), "curl -N localhost:8080/events");
    let top = browser.top("noscript p");
    assert!(top < 50.0, "the words are {top} px below the top");
    for part in ["main", "header .now", "header .stream", "#tour", "#state", "#publish"] {
        assert_eq!(browser.visible_text(part), "", "{part}");
    }
}

fn on_a_telephone_end_is_in_sight_and_a_line_of_the_wire_is_explained_above_the_lines(browser: &str) {
    let server = start_for_tour();
    let address = server.address();
    let browser = Browser::start_named(browser);
    patch(address, "/state/kitchen", "1");
    open(&browser, address, "");
    browser.resize(TELEPHONE.0, TELEPHONE.1);
    show_wire(&browser);
    assert!(browser.text("#wire-explains").contains("Tap a line"), "{}", browser.text("#wire-explains"));
    browser.click("#wire .retry");
    wait_until(|| browser.text("#wire-explains"), |said| said.contains("before it asks again"));
    assert_on_screen(&browser, "#wire-explains");
    wait_until(|| browser.text("#clients"), |rows| rows.contains("this page"));
    browser.run("document.querySelector('.clients').scrollIntoView({block: 'center'})", &[]);
    assert_on_screen(&browser, "#clients tr.own button");
    assert_eq!(browser.text("#document-note"), "1 topic");
    // The lab says what its parameters can be.
    wait_until(
        || browser.texts("#faults select option"),
        |values| *values == ["503", "429", "204", "404", "500"],
    );
    assert_eq!(browser.attribute("#faults input[name=by]", "placeholder"), "2s");
    assert_eq!(browser.text("#lab-curl"), format!("curl {address}/lab"));
}
