//! `statecast.js` in a page of its own, in a real browser, before servers that say what no good one says.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;
#[path = "support/webdriver.rs"]
mod webdriver;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::thread;

use serde_json::{Value, json};
use support::*;
use webdriver::{Browser, Kind, tests_in_browsers};

tests_in_browsers! {
    whatever_retry_after_says_the_script_waits_a_day_at_most_and_its_own_while_at_least: chromium, firefox, webkit;
    whatever_hello_says_of_heartbeats_the_script_looks_after_two_of_them_or_else_not_at_all: chromium, firefox, webkit;
    a_hello_that_is_none_is_one_more_try_after_a_while_and_not_a_storm: chromium, firefox, webkit;
    where_the_browser_hides_why_another_origin_gave_nothing_the_script_says_both_reasons: chromium, firefox, webkit;
    a_retry_of_centuries_is_not_waited_for_and_the_script_asks_by_itself: chromium, firefox, webkit;
    a_clock_that_is_set_costs_one_connection_and_every_timer_stays_one: chromium, firefox, webkit;
    the_seventh_stream_of_a_browser_says_what_it_waits_for: chromium, firefox, webkit;
    the_script_is_a_classic_one_and_a_module_and_each_gives_the_same: chromium, firefox, webkit;
    the_types_in_the_scripts_comment_name_what_a_statecast_has: chromium, firefox, webkit;
}

const SCRIPT: &str = include_str!("../public/statecast.js");
const MODULE: &str = include_str!("../public/statecast.mjs");

/// Notes what every timer of the page is to wait, and gives it a clock that can be set.
const PAGE: &str = "<!doctype html><script>
    const wait = setTimeout;
    const timers = [];
    const lasts = (ms) => typeof ms === 'number' && ms >= 0 && ms <= 86400000;
    setTimeout = (action, ms) => {
        timers.push(ms);
        return wait(action, ms);
    };
    const now = Date.now;
    let clockIsWrongBy = 0;
    Date.now = () => now() + clockIsWrongBy;
    // What the last timer waits for, once a stream is in that state.
    const timerIn = (state, stream) => new Promise((resolve) => {
        const statecast = new Statecast(stream, { share: false });
        statecast.on('state', (now) => {
            if (now.state !== state) return;
            statecast.close();
            resolve([timers.at(-1), timers.every(lasts)]);
        });
    });
</script><script src='/statecast.js'></script>";

/// Serves the page and the script, and answers everything else with what it is told to, bytes as they are.
/// A stream stays open.
fn serve(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = std::sync::Arc::new(answer);
    thread::spawn(move || {
        for connection in listener.incoming() {
            let (mut connection, answer) = (connection.unwrap(), answer.clone());
            thread::spawn(move || {
                let head = read_head(&mut connection);
                let target = head.split(' ').nth(1).unwrap();
                let text = match target {
                    "/" => content("text/html", PAGE),
                    "/statecast.js" => content("text/javascript", SCRIPT),
                    "/favicon.ico" => content("image/x-icon", ""),
                    target => answer(target),
                };
                connection.write_all(text.as_bytes()).ok();
                if text.contains("event-stream") && !text.ends_with("\n\n\n") {
                    // Held until the browser leaves.
                    std::io::copy(&mut connection, &mut std::io::sink()).ok();
                }
            });
        }
    });
    address
}

fn content(content_type: &str, text: &str) -> String {
    let length = text.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    )
}

/// The number behind the last `/` of a target.
fn index(target: &str) -> usize {
    let path = target.split('?').next().unwrap();
    path.rsplit('/').next().unwrap().parse().unwrap_or_else(|_| panic!("{target}"))
}

fn open(browser: &str, address: SocketAddr) -> Browser {
    let browser = Browser::start_named(browser);
    browser.open(&format!("http://{address}/"));
    browser
}

/// What the last timer is to wait when a stream is in a state, in ms. All were numbers that a timer can wait.
fn timer_in(browser: &Browser, state: &str, stream: &str) -> f64 {
    let seen = browser.run("return timerIn(...arguments)", &[state, stream]);
    assert_eq!(seen[1], true, "{stream}: {}", browser.run("return timers.map(String)", &[]));
    seen[0].as_f64().unwrap()
}

const DAY: f64 = 86_400_000.0;
/// Its own first wait is at random, and not longer.
const OWN: f64 = 1_000.0;

fn whatever_retry_after_says_the_script_waits_a_day_at_most_and_its_own_while_at_least(browser: &str) {
    const NOW: &str = "Thu, 01 Jan 1970 00:01:00 GMT";
    let digits: &str = Box::leak("9".repeat(400).into_boxed_str());
    let cases: Vec<(&str, &str, f64)> = vec![
        ("2592000", NOW, DAY),
        ("2147483", NOW, DAY),
        ("2147484", NOW, DAY),
        ("4294968", NOW, DAY),
        ("86400", NOW, DAY),
        (digits, NOW, DAY),
        ("120", NOW, 120_000.0),
        ("0120", NOW, 120_000.0),
        ("0", NOW, OWN),
        ("", NOW, OWN),
        ("-1", NOW, OWN),
        ("-2592000", NOW, OWN),
        ("Infinity", NOW, OWN),
        ("-Infinity", NOW, OWN),
        ("NaN", NOW, OWN),
        ("1e400", NOW, OWN),
        ("1e9", NOW, OWN),
        ("0x7fffffff", NOW, OWN),
        ("12.5", NOW, OWN),
        ("120, 120", NOW, OWN),
        ("soon", NOW, OWN),
        ("Soon", NOW, OWN),
        ("2038-01-19", NOW, OWN),
        // By the clock of the server, which has begun at its own time.
        ("Thu, 01 Jan 1970 00:03:00 GMT", NOW, 120_000.0),
        ("Thursday, 01-Jan-70 00:03:00 GMT", NOW, 120_000.0),
        ("Thu Jan  1 00:03:00 1970", NOW, 120_000.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", NOW, OWN),
        ("Fri, 31 Dec 9999 23:59:59 GMT", NOW, DAY),
        ("Thu, 99 Jan 1970 00:03:00 GMT", NOW, OWN),
        ("Thu, 01 Jan 1970 00:03:00 GMT", "yesterday", OWN),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "", DAY),
    ];
    let answers: Vec<(&str, &str)> = cases.iter().map(|(after, date, _)| (*after, *date)).collect();
    let address = serve(move |target| {
        let (after, date) = answers[index(target)];
        format!(
            "HTTP/1.1 503 Busy\r\nRetry-After: {after}\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    });
    let browser = open(browser, address);
    for (number, (after, date, expected)) in cases.iter().enumerate() {
        let wait = timer_in(&browser, "waiting", &format!("/events/{number}"));
        let is_so =
            if *expected == OWN { (500.0..=OWN).contains(&wait) } else { (wait - expected).abs() < 1.0 };
        assert!(is_so, "{after:?} on {date:?}: {wait} ms, not {expected}");
    }
    // Nor does the clock of this machine matter.
    browser.run("clockIsWrongBy = 31536000000", &[]);
    let number = cases.iter().position(|(after, ..)| after.contains("00:03:00 GMT")).unwrap();
    assert!((timer_in(&browser, "waiting", &format!("/events/{number}")) - 120_000.0).abs() < 1.0);
}

/// The head of a stream, and its `hello`.
fn hello(hello: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n\
         event: hello\ndata: {hello}\n\nid: 1-1\nevent: init\ndata: {{}}\n\n"
    )
}

fn whatever_hello_says_of_heartbeats_the_script_looks_after_two_of_them_or_else_not_at_all(browser: &str) {
    const NOT_AT_ALL: f64 = 40_000.0;
    let cases = [
        ("15000", 30_001.0),
        ("\"15000\"", 30_001.0),
        ("1", 2_001.0),
        ("0.001", 2_001.0),
        ("1e300", NOT_AT_ALL),
        ("1e999", NOT_AT_ALL),
        ("2147483648", NOT_AT_ALL),
        ("-1e999", NOT_AT_ALL),
        ("-1", NOT_AT_ALL),
        ("0", NOT_AT_ALL),
        ("-0", NOT_AT_ALL),
        ("null", NOT_AT_ALL),
        ("\"NaN\"", NOT_AT_ALL),
        ("\"soon\"", NOT_AT_ALL),
        ("\"\"", NOT_AT_ALL),
        ("\"-5\"", NOT_AT_ALL),
        ("{}", NOT_AT_ALL),
        ("[]", NOT_AT_ALL),
        ("[1,2]", NOT_AT_ALL),
        ("false", NOT_AT_ALL),
    ];
    let address = serve(move |target| {
        let (heartbeat, _) = cases[index(target)];
        hello(&format!(r#"{{"client":1,"heartbeat_ms":{heartbeat},"resume":"init","reason":"first"}}"#))
    });
    let browser = open(browser, address);
    for (number, (heartbeat, expected)) in cases.iter().enumerate() {
        let wait = timer_in(&browser, "open", &format!("/events/{number}"));
        // Less what has passed since the event came.
        assert!(wait <= *expected && wait > expected * 0.9, "{heartbeat}: {wait} ms, not {expected}");
    }
}

fn a_hello_that_is_none_is_one_more_try_after_a_while_and_not_a_storm(browser: &str) {
    let hellos = ["null", "{", "", "7", r#""text""#, r#"{"resume":5,"reason":"constructor"}"#, "[]"];
    let states = ["waiting", "waiting", "waiting", "open", "open", "open", "open"];
    let address = serve(move |target| hello(hellos[index(target)]));
    let browser = open(browser, address);
    for (number, state) in states.iter().enumerate() {
        let wait = timer_in(&browser, state, &format!("/events/{number}"));
        assert!((500.0..=40_001.0).contains(&wait), "{:?}: {wait} ms", hellos[number]);
    }
}

fn where_the_browser_hides_why_another_origin_gave_nothing_the_script_says_both_reasons(browser: &str) {
    const HIDDEN: &str = "nobody answers, or --allow-origin does not list this page";
    let unlisted = start();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = serve(|_| String::new());
    let browser = open(browser, address);
    // Firefox gives up where nobody listens, so that the script tries instead.
    let keeps_trying = if browser.kind == Kind::Firefox { "" } else { "; the browser keeps trying" };
    let ask = "const [stream] = arguments;
        return new Promise((resolve) => {
            const statecast = new Statecast(stream, { share: false });
            statecast.on('state', ({ state, reason }) => {
                if (state === 'waiting' || /^nobody/.test(reason)) resolve(reason);
            });
        })";
    assert_eq!(browser.run(ask, &[&format!("http://{}/events", unlisted.address())]), HIDDEN);
    let reason = browser.run(ask, &[&format!("http://{gone}/events")]);
    assert_eq!(reason, format!("{HIDDEN}{keeps_trying}"));
    // Of its own origin it can be sure.
    assert_eq!(browser.run(ask, &["/events"]), "nobody answers; the browser keeps trying");
}

fn a_retry_of_centuries_is_not_waited_for_and_the_script_asks_by_itself(browser: &str) {
    // Three line ends: it closes then.
    let stream = |retry: &str| format!("{}retry: {retry}\n\n\n", hello(r#"{"heartbeat_ms":15000}"#));
    let retries = ["99999999999", "99999999999999999999999999", "2147483648"];
    let address = serve(move |target| stream(retries[index(target)]));
    let browser = open(browser, address);
    for (number, retry) in retries.iter().enumerate() {
        let wait = timer_in(&browser, "lost", &format!("/events/{number}"));
        assert!(wait <= 40_001.0, "{retry}: {wait} ms");
    }
}

fn a_clock_that_is_set_costs_one_connection_and_every_timer_stays_one(browser: &str) {
    let address = serve(|_| hello(r#"{"client":1,"heartbeat_ms":15000,"resume":"init","reason":"first"}"#));
    let browser = open(browser, address);
    let set_clock = "const [by] = arguments;
        return new Promise((resolve) => {
            const seen = [];
            const statecast = new Statecast('/events', { share: false });
            statecast.on('state', ({ state, retryAt }) => {
                seen.push(state);
                if (state === 'waiting' && !lasts(retryAt - Date.now())) seen.push(retryAt);
                if (state !== 'open') return;
                if (seen.filter((state) => state === 'open').length === 2) {
                    statecast.close();
                    resolve([seen.slice(0, -1), timers.every(lasts)]);
                } else {
                    clockIsWrongBy = Number(by);
                    dispatchEvent(new Event('online'));
                }
            });
        })";
    for by in ["31536000000", "-31536000000", "1e14", "-1e14", "86400000", "-3600000"] {
        let seen = browser.run(set_clock, &[by]);
        // Closing is told, too, before the list is taken.
        assert_eq!(seen, json!([["open", "waiting", "connecting", "open"], true]), "{by}");
        browser.run("clockIsWrongBy = 0", &[]);
    }
}

fn the_seventh_stream_of_a_browser_says_what_it_waits_for(browser: &str) {
    let server = start();
    let browser = Browser::start_named(browser);
    browser.open(&format!("http://{}/healthz", server.address()));
    let script = "return import('/statecast.mjs').then(({ Statecast }) => new Promise((resolve) => {
        const open = new Set();
        for (let number = 0; number < 7; number += 1) {
            const statecast = new Statecast(`/events/topic${number}`);
            statecast.on('state', ({ state, reason }) => {
                if (state === 'open') open.add(number);
                if (reason.startsWith('no answer yet')) resolve([state, reason, open.size]);
            });
        }
    }))";
    let reason =
        "no answer yet; perhaps other tabs have all six connections that a browser opens to a server";
    assert_eq!(browser.run(script, &[]), json!(["connecting", reason, 6]));
}

fn the_script_is_a_classic_one_and_a_module_and_each_gives_the_same(browser: &str) {
    let server = start();
    let address = server.address();
    put(address, "/state/kitchen", "1");
    let browser = Browser::start_named(browser);
    let first_change = |import: &str| {
        // A page with nothing in it.
        browser.open(&format!("http://{address}/healthz"));
        let script = format!(
            "const first = (Statecast) => new Promise((resolve) => {{
                const statecast = new Statecast('/events');
                statecast.on('change', ({{ document }}) => {{
                    statecast.close();
                    resolve([document, Statecast === globalThis.Statecast]);
                }});
            }});
            return {import}"
        );
        browser.run(&script, &[])
    };
    let imports = [
        "import('/statecast.mjs').then(({ Statecast }) => first(Statecast))",
        "import('/statecast.js').then(() => first(globalThis.Statecast))",
        "new Promise((resolve) => {
            const script = document.createElement('script');
            script.src = '/statecast.js';
            script.onload = () => resolve(first(Statecast));
            document.head.append(script);
        })",
    ];
    for import in imports {
        assert_eq!(first_change(import), json!([{"kitchen": 1}, true]), "{import}");
    }
    assert_eq!(get(address, "/statecast.mjs").header("Content-Type"), Some("text/javascript; charset=utf-8"));
}

#[test]
fn the_script_that_people_copy_is_short_and_none_of_its_lines_is_long() {
    let long: Vec<&str> = SCRIPT.lines().filter(|line| line.chars().count() > 110).collect();
    assert!(long.is_empty(), "{long:#?}");
    assert!(!SCRIPT.contains('\t'), "a tab is as wide as its reader likes");
    assert!(SCRIPT.lines().count() <= 400, "{} lines", SCRIPT.lines().count());
    assert_eq!(MODULE.lines().count(), 1);
}

fn the_types_in_the_scripts_comment_name_what_a_statecast_has(browser: &str) {
    let (_, types) = SCRIPT.split_once("declare class Statecast {\n").unwrap();
    let (types, _) = types.split_once("\n}\n").unwrap();
    let members =
        types.lines().filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let names = members.filter_map(|line| {
        let line = line.trim_start_matches("readonly ").trim_start_matches("static ");
        let name = line.split(['(', ':']).next().unwrap();
        name.bytes().all(|byte| byte.is_ascii_alphabetic()).then_some(name)
    });
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    let server = start();
    let browser = Browser::start_named(browser);
    browser.open(&format!("http://{}/healthz", server.address()));
    let script = "return import('/statecast.js').then(() => {
        const statecast = new Statecast('/events');
        const names = [statecast, Statecast.prototype, Statecast].flatMap((has) => Object.getOwnPropertyNames(has));
        statecast.close();
        return names.filter((name) => !['length', 'name', 'prototype'].includes(name)).sort();
    })";
    let mut has: Vec<Value> = browser.run(script, &[]).as_array().unwrap().clone();
    has.dedup();
    assert_eq!(json!(names), json!(has));
}
