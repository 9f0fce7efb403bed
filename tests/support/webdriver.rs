//! A browser under a test's hands: chromedriver, one session of a headless Chromium, and the few commands needed.
//!
//! Each `Browser` is a process of its own, with a folder of its own for everything that it writes. Its end ends the
//! driver and Chromium and removes the folder, also when the test panics. A command that fails panics with the
//! driver's words. <https://www.w3.org/TR/webdriver2/>

#![allow(dead_code, reason = "every test file uses its own part")]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::DEADLINE;

const PACKAGES: &str = "needed are the packages chromium and chromium-driver (their names in Debian and Ubuntu); \
                        tests/all installs them";

/// What Chromium calls the key of an element's id. <https://www.w3.org/TR/webdriver2/#elements>
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// How long the end of a browser may take before its driver is killed all the same.
const FAREWELL: Duration = Duration::from_secs(10);

/// A line of the browser's console.
#[derive(Debug)]
pub struct ConsoleLine {
    /// `SEVERE`, `WARNING`, `INFO` or `DEBUG`.
    pub level: String,
    pub message: String,
}

/// Starts chromedriver on a port that it chooses; returns it, its output and its address. Again where that port was free
/// in one version of IP alone, of which it tells only by ending.
fn start_driver(folder: &Path) -> (Child, BufReader<ChildStdout>, String) {
    const TRIES: usize = 5;
    let mut said = String::new();
    for _ in 0..TRIES {
        let driver = Command::new("chromedriver")
            .arg("--port=0")
            // Both leave sockets and files in it that they forget.
            .env("TMPDIR", folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut driver = driver.unwrap_or_else(|error| {
            fs::remove_dir_all(folder).ok();
            match error.kind() {
                ErrorKind::NotFound => panic!("chromedriver is missing: {PACKAGES}"),
                _ => panic!("chromedriver does not start: {error}; {PACKAGES}"),
            }
        });
        let mut stdout = BufReader::new(driver.stdout.take().expect("a pipe"));
        while stdout.read_line(&mut said).expect("text") > 0 {
            if let Some((_, port)) = said.split_once("started successfully on port ")
                && let Some((port, _)) = port.split_once('.')
            {
                return (driver, stdout, format!("http://127.0.0.1:{port}"));
            }
        }
        driver.wait().ok();
        if !said.contains("port not available") {
            break;
        }
    }
    fs::remove_dir_all(folder).ok();
    panic!("chromedriver ended: {said}");
}

pub struct Browser {
    agent: ureq::Agent,
    driver: Child,
    /// Held open: the driver would end at its next line.
    stdout: BufReader<ChildStdout>,
    driver_url: String,
    /// Empty until Chromium has started.
    session_url: String,
    folder: PathBuf,
}

impl Browser {
    pub fn start() -> Browser {
        Browser::start_with(&[])
    }

    /// Starts Chromium with more arguments.
    pub fn start_with(more: &[&str]) -> Browser {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("statecast-browser-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the browser");
        let (driver, stdout, driver_url) = start_driver(&folder);
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(DEADLINE))
            // Its connections would be cut at its end, in the midst of the farewell.
            .max_idle_connections(0)
            .build()
            .into();
        // From here on, whatever panics ends the driver.
        let mut browser = Browser { agent, driver, stdout, driver_url, session_url: String::new(), folder };
        browser.open_session(more);
        browser
    }

    fn open_session(&mut self, more: &[&str]) {
        let profile = format!("--user-data-dir={}", self.folder.join("profile").display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            &profile,
        ];
        let arguments = [&arguments[..], more].concat();
        let wanted = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let url = format!("{}/session", self.driver_url);
        let session = self.ask("POST", &url, &json!({ "capabilities": { "alwaysMatch": wanted } }));
        let session = session.unwrap_or_else(|error| panic!("Chromium does not start: {error}; {PACKAGES}"));
        self.session_url = format!("{url}/{}", session["sessionId"].as_str().expect("a session"));
    }

    /// Loads a page and waits until it is loaded.
    pub fn open(&self, url: &str) {
        self.post("url", &json!({ "url": url }));
    }

    pub fn go_back(&self) {
        self.post("back", &json!({}));
    }

    /// Opens another tab, looks at it, and gives its handle.
    pub fn new_tab(&self) -> String {
        let opened = self.post("window/new", &json!({ "type": "tab" }));
        let tab = opened["handle"].as_str().expect("a handle").to_owned();
        self.look_at(&tab);
        tab
    }

    /// The tab that is looked at.
    pub fn tab(&self) -> String {
        let url = format!("{}/window", self.session_url);
        let tab = self.ask("GET", &url, &Value::Null).unwrap_or_else(|error| panic!("window: {error}"));
        tab.as_str().expect("a handle").to_owned()
    }

    /// From now on everything concerns this tab.
    pub fn look_at(&self, tab: &str) {
        self.post("window", &json!({ "handle": tab }));
    }

    /// Closes the tab that is looked at. Another is to be looked at next.
    pub fn close_tab(&self) {
        let url = format!("{}/window", self.session_url);
        self.ask("DELETE", &url, &Value::Null).unwrap_or_else(|error| panic!("closing a tab: {error}"));
    }

    /// Ends the process of the tab that is looked at, as a lack of memory would. Another is to be looked at next.
    pub fn crash_tab(&self) {
        let url = format!("{}/goog/cdp/execute", self.session_url);
        // The answer is the driver's complaint that the tab is gone.
        let answer = self.ask("POST", &url, &json!({ "cmd": "Page.crash", "params": {} }));
        let complaint = answer.expect_err("a tab that crashed answers nothing");
        assert!(complaint.contains("tab crashed"), "{complaint}");
    }

    /// Runs the body of a function in the page and gives what it returns, or what its promise comes to.
    pub fn run(&self, script: &str, arguments: &[&str]) -> Value {
        self.post("execute/sync", &json!({ "script": script, "args": arguments }))
    }

    /// The text of the first element that fits, also where it is out of sight; empty if there is none.
    pub fn text(&self, selector: &str) -> String {
        let text = self.run("return document.querySelector(arguments[0])?.textContent ?? ''", &[selector]);
        text.as_str().expect("a text").to_owned()
    }

    /// The texts of all elements that fit.
    pub fn texts(&self, selector: &str) -> Vec<String> {
        let script = "return Array.from(document.querySelectorAll(arguments[0]), (one) => one.textContent)";
        serde_json::from_value(self.run(script, &[selector])).expect("texts")
    }

    /// An attribute of the first element that fits; empty if there is none.
    pub fn attribute(&self, selector: &str, name: &str) -> String {
        let script = "return document.querySelector(arguments[0])?.getAttribute(arguments[1]) ?? ''";
        self.run(script, &[selector, name]).as_str().expect("a text").to_owned()
    }

    /// Empties a field and types into it, key by key.
    pub fn fill(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.post(&format!("element/{element}/clear"), &json!({}));
        self.post(&format!("element/{element}/value"), &json!({ "text": text }));
    }

    /// Clicks into the middle of an element, which must be in sight there.
    pub fn click(&self, selector: &str) {
        self.post(&format!("element/{}/click", self.find(selector)), &json!({}));
    }

    fn find(&self, selector: &str) -> String {
        let found = self.post("element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    /// What the console has said since it was last asked.
    pub fn console(&self) -> Vec<ConsoleLine> {
        let lines = self.post("se/log", &json!({ "type": "browser" }));
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let lines = lines.as_array().expect("a list").iter();
        lines
            .map(|line| ConsoleLine { level: text(&line["level"]), message: text(&line["message"]) })
            .collect()
    }

    /// A command of the `DevTools` protocol. <https://chromedevtools.github.io/devtools-protocol/>
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post("goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// What is in sight, as PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        let answer = self.devtools("Page.captureScreenshot", &json!({ "format": "png" }));
        decode_base64(answer["data"].as_str().expect("a picture"))
    }

    fn post(&self, command: &str, body: &Value) -> Value {
        let answer = self.ask("POST", &format!("{}/{command}", self.session_url), body);
        answer.unwrap_or_else(|error| panic!("{command} {body}: {error}"))
    }

    /// The value of the driver's answer, or its words.
    fn ask(&self, method: &str, url: &str, body: &Value) -> Result<Value, String> {
        let request = ureq::http::Request::builder().method(method).uri(url);
        let answer = if body.is_null() {
            self.agent.run(request.body(()).expect("a request"))
        } else {
            let request = request.header("Content-Type", "application/json").body(body.to_string());
            self.agent.run(request.expect("a request"))
        };
        let answer = answer.map_err(|error| error.to_string())?;
        let is_success = answer.status().is_success();
        let mut body = answer.into_body();
        // A screenshot is larger than the limit of `read_to_string`.
        let body = body.with_config().limit(64 << 20).read_to_string().map_err(|error| error.to_string())?;
        let value: Value = serde_json::from_str(&body).map_err(|error| format!("{error} in {body}"))?;
        let value = value["value"].clone();
        if is_success { Ok(value) } else { Err(format!("{}: {}", value["error"], value["message"])) }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session_url.is_empty() {
            // Chromium ends with its session, and not with the driver.
            let farewell =
                self.agent.delete(&self.session_url).config().timeout_global(Some(FAREWELL)).build();
            farewell.call().ok();
        }
        self.driver.kill().ok();
        self.driver.wait().ok();
        // Chromium's last process may still be writing.
        let start = Instant::now();
        let is_left = || fs::remove_dir_all(&self.folder).is_err() && self.folder.exists();
        while is_left() && start.elapsed() < FAREWELL {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// RFC 4648, as far as the driver uses it: the common alphabet, padded, without line breaks.
fn decode_base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => panic!("{letter} is no letter of base64"),
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    bytes
}
