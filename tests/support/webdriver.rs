//! A browser under a test's hands: a driver, one session of a browser that nobody sees, and the few commands needed.
//!
//! Chromium, Firefox and `WebKit` are driven by the same protocol; `drivers` knows how each is started. Each `Browser` is a
//! process of its own, with a folder of its own for everything that it writes. Its end ends the driver and the browser
//! and removes the folder, also when the test panics. A command that fails panics with the driver's words.
//! <https://www.w3.org/TR/webdriver2/>

#![allow(dead_code, unused_imports, unused_macros, reason = "every test file uses its own part")]

#[path = "drivers.rs"]
mod drivers;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{DEADLINE, wait_until};
use drivers::Driver;
pub use drivers::{Kind, OTHER_NAME};

/// What a driver calls the key of an element's id. <https://www.w3.org/TR/webdriver2/#elements>
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys, as the protocol writes them. <https://www.w3.org/TR/webdriver2/#keyboard-actions>
pub const TAB: &str = "\u{E004}";
pub const ENTER: &str = "\u{E007}";

/// How long the start of a browser may take, on a busy machine too.
const START: Duration = Duration::from_secs(120);

/// How long the end of a browser may take before its driver is killed all the same.
const FAREWELL: Duration = Duration::from_secs(10);

/// Finds the tab of Firefox that the driver looks at. Firefox may show another one, which a page has opened.
const FIND_TAB: &str = "
    const url = 'chrome://remote/content/shared/NavigableManager.sys.mjs';
    const tab = ChromeUtils.importESModule(url).NavigableManager.getBrowserById(arguments[0]);";

/// Runs a script in that tab's page, for what a driver runs there sees no `const` and no `let` of the page.
const RUN_IN_PAGE: &str = "
    const inPage = ([, body, given, name]) => {
        const url = 'resource://gre/modules/jsdebugger.sys.mjs';
        const { addDebuggerToGlobal } = ChromeUtils.importESModule(url);
        const system = Services.scriptSecurityManager.getSystemPrincipal();
        const apart = Cu.Sandbox(system, { freshCompartment: true });
        addDebuggerToGlobal(apart);
        const page = new apart.Debugger().makeGlobalObjectReference(content);
        const say = (how) => (what) => sendAsyncMessage(name, [how, String(what)]);
        const script = `(async () => JSON.stringify([await (function () { ${body} }).apply(null, ${given})]))()`;
        const { return: promise, throw: thrown } = page.executeInGlobal(script);
        if (thrown) say('thrown')(thrown.unsafeDereference());
        else promise.unsafeDereference().then(say('returned'), say('thrown'));
    };
    const name = `ran ${Math.random()}`;
    const { messageManager } = tab;
    return new Promise((resolve) => {
        messageManager.addMessageListener(name, function hear({ data }) {
            messageManager.removeMessageListener(name, hear);
            resolve(data);
        });
        const call = `(${inPage})(${JSON.stringify([...arguments, name])})`;
        messageManager.loadFrameScript(`data:;charset=utf-8,${encodeURIComponent(call)}`, false);
    })";

/// Makes tests of functions that take a browser's name, one for each browser named: `the_name_of_the_function::firefox`.
macro_rules! tests_in_browsers {
    ($($test:ident: $($browser:ident),+;)+) => {
        $(mod $test { $(
            #[test]
            #[ignore = "needs this browser and its driver: tests/all installs them"]
            fn $browser() {
                super::$test(stringify!($browser));
            }
        )+ })+
    };
}
pub(crate) use tests_in_browsers;

/// A line of the browser's console.
#[derive(Debug)]
pub struct ConsoleLine {
    /// `SEVERE`, or another word.
    pub level: String,
    pub message: String,
}

/// A tab that runs nothing until it is thawed.
pub struct FrozenTab {
    tab: String,
    process: Option<u64>,
}

pub struct Browser {
    pub kind: Kind,
    agent: ureq::Agent,
    driver: Driver,
    /// Empty until the browser has started.
    session_url: String,
    folder: PathBuf,
}

impl Browser {
    /// Chromium, for tests that use what it alone has.
    pub fn start() -> Browser {
        Browser::start_named("chromium")
    }

    /// Starts `chromium`, `firefox` or `webkit`.
    pub fn start_named(name: &str) -> Browser {
        Browser::start_with(name, true)
    }

    /// Starts it so that it runs no script of a page; a test runs none there either.
    pub fn start_without_javascript(name: &str) -> Browser {
        let browser = Browser::start_with(name, false);
        if browser.kind == Kind::Chromium {
            browser.devtools("Emulation.setScriptExecutionDisabled", &json!({ "value": true }));
        }
        browser
    }

    fn start_with(name: &str, runs_scripts: bool) -> Browser {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let kind = Kind::named(name);
        let folder = std::env::temp_dir().join(format!("statecast-browser-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the browser");
        let driver = kind.start_driver(&folder);
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(DEADLINE))
            // Its connections would be cut at its end, in the midst of the farewell.
            .max_idle_connections(0)
            .build()
            .into();
        // From here on, whatever panics ends the driver.
        let mut browser = Browser { kind, agent, driver, session_url: String::new(), folder };
        browser.open_session(runs_scripts);
        browser
    }

    fn open_session(&mut self, runs_scripts: bool) {
        let wanted = self.kind.capabilities(&self.folder, runs_scripts);
        let url = format!("{}/session", self.driver.url);
        let session = self.ask("POST", &url, &json!({ "capabilities": { "alwaysMatch": wanted } }));
        let (kind, needs) = (self.kind, self.kind.needs());
        let session =
            session.unwrap_or_else(|error| panic!("{kind:?} does not start: {error}; it needs {needs}"));
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
        // Of the tabs in a window of WebKit, its driver shows the first alone.
        let kind = if self.kind == Kind::WebKit { "window" } else { "tab" };
        let opened = self.post("window/new", &json!({ "type": kind }));
        let tab = opened["handle"].as_str().expect("a handle").to_owned();
        self.look_at(&tab);
        tab
    }

    /// The tab that is looked at.
    pub fn tab(&self) -> String {
        self.get("window").as_str().expect("a handle").to_owned()
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
        match self.kind {
            Kind::Chromium => {
                let url = format!("{}/goog/cdp/execute", self.session_url);
                // The answer is the driver's complaint that the tab is gone.
                let answer = self.ask("POST", &url, &json!({ "cmd": "Page.crash", "params": {} }));
                let complaint = answer.expect_err("a tab that crashed answers nothing");
                assert!(complaint.contains("tab crashed"), "{complaint}");
            }
            Kind::Firefox => {
                // With this, which geckodriver sets, all of Firefox would end.
                self.run_in_firefox("Services.env.set('MOZ_CRASHREPORTER_SHUTDOWN', '')", &[]);
                signal("KILL", self.process_of_tab());
            }
            Kind::WebKit => panic!("nobody can tell which process is a tab's"),
        }
    }

    /// Freezes the tab that is looked at. Another is to be looked at next.
    pub fn freeze_tab(&self) -> FrozenTab {
        let process = match self.kind {
            Kind::Chromium => {
                self.devtools("Page.setWebLifecycleState", &json!({ "state": "frozen" }));
                None
            }
            Kind::Firefox => Some(self.process_of_tab()),
            Kind::WebKit => panic!("nobody can tell which process is a tab's"),
        };
        let tab = self.tab();
        if let Some(process) = process {
            signal("STOP", process);
        }
        FrozenTab { tab, process }
    }

    /// Wakes the tab and looks at it.
    pub fn thaw_tab(&self, frozen: &FrozenTab) {
        if let Some(process) = frozen.process {
            signal("CONT", process);
        }
        self.look_at(&frozen.tab);
        if self.kind == Kind::Chromium {
            self.devtools("Page.setWebLifecycleState", &json!({ "state": "active" }));
        }
    }

    /// The process of the tab of Firefox that is looked at.
    fn process_of_tab(&self) -> u64 {
        let process = "return tab.browsingContext.currentWindowGlobal.osPid";
        self.run_about_tab(process, &[]).as_u64().expect("a process")
    }

    /// Runs the body of a function in the page and gives what it returns, or what its promise comes to.
    pub fn run(&self, script: &str, arguments: &[&str]) -> Value {
        if self.kind != Kind::Firefox {
            return self.execute(script, arguments);
        }
        let arguments = json!(arguments).to_string();
        let ran = self.run_about_tab(RUN_IN_PAGE, &[script, &arguments]);
        let returned = ran[1].as_str().expect("text");
        assert!(ran[0] == "returned", "{script}: {returned}");
        serde_json::from_str::<Value>(returned).expect("JSON")[0].clone()
    }

    /// The same, without the names of the page's scripts in Firefox; cheap.
    fn execute(&self, script: &str, arguments: &[&str]) -> Value {
        self.post("execute/sync", &json!({ "script": script, "args": arguments }))
    }

    /// The text of the first element that fits, also where it is out of sight; empty if there is none.
    pub fn text(&self, selector: &str) -> String {
        let script = "return document.querySelector(arguments[0])?.textContent ?? ''";
        let text = self.execute(script, &[selector]);
        text.as_str().expect("a text").to_owned()
    }

    /// The texts of all elements that fit.
    pub fn texts(&self, selector: &str) -> Vec<String> {
        let script = "return Array.from(document.querySelectorAll(arguments[0]), (one) => one.textContent)";
        serde_json::from_value(self.execute(script, &[selector])).expect("texts")
    }

    /// An attribute of the first element that fits; empty if there is none.
    pub fn attribute(&self, selector: &str, name: &str) -> String {
        let script = "return document.querySelector(arguments[0])?.getAttribute(arguments[1]) ?? ''";
        self.execute(script, &[selector, name]).as_str().expect("a text").to_owned()
    }

    /// The text of the first element that fits as far as it is in sight, also where no script runs.
    pub fn visible_text(&self, selector: &str) -> String {
        let text = self.get(&format!("element/{}/text", self.find(selector)));
        text.as_str().expect("a text").to_owned()
    }

    /// How far below the top of the page an element is, in pixels, also where no script runs.
    pub fn top(&self, selector: &str) -> f64 {
        let place = self.get(&format!("element/{}/rect", self.find(selector)));
        place["y"].as_f64().expect("a number")
    }

    /// Empties a field and types into it, key by key.
    pub fn fill(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.post(&format!("element/{element}/clear"), &json!({}));
        if !text.is_empty() {
            self.post(&format!("element/{element}/value"), &json!({ "text": text }));
        }
    }

    /// Presses a key and lets it go.
    pub fn press(&self, key: &str) {
        let actions = ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key }));
        self.post(
            "actions",
            &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }),
        );
    }

    /// Clicks into the middle of an element, which must be in sight there.
    pub fn click(&self, selector: &str) {
        let click = || self.post(&format!("element/{}/click", self.find(selector)), &json!({}));
        if self.kind != Kind::WebKit {
            click();
            return;
        }
        // Its driver clicks where the element was a moment ago, and the page may have moved it since.
        let listen = "window.wasClicked = false;
            document.querySelector(arguments[0]).addEventListener('click', () => {
                window.wasClicked = true;
            }, { once: true, capture: true })";
        let was_clicked = "return new Promise((resolve) => {
            requestAnimationFrame(() => requestAnimationFrame(() => resolve(window.wasClicked)));
        })";
        let try_it = || {
            self.run(listen, &[selector]);
            click();
            self.run(was_clicked, &[])
        };
        // A page that it has left knows nothing of it.
        wait_until(try_it, |was_clicked| *was_clicked != json!(false));
    }

    fn find(&self, selector: &str) -> String {
        let found = self.post("element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    /// What the console has said since it was last asked.
    pub fn console(&self) -> Vec<ConsoleLine> {
        let line = |level: &Value, message: &Value| ConsoleLine {
            level: level.as_str().expect("a level").to_owned(),
            message: message.as_str().expect("a text").to_owned(),
        };
        match self.kind {
            Kind::Chromium => {
                let lines = self.post("se/log", &json!({ "type": "browser" }));
                let lines = lines.as_array().expect("a list").iter();
                lines.map(|said| line(&said["level"], &said["message"])).collect()
            }
            Kind::Firefox => {
                // What concerns a page has a window, or is about its policy.
                let lines = self.run_in_firefox(
                    "const said = Services.console.getMessageArray()
                        .filter((message) => message instanceof Ci.nsIScriptError)
                        .filter(({ innerWindowID, category }) => innerWindowID || category.startsWith('CSP'))
                        .map(({ flags, errorMessage }) => [flags & 1 ? 'WARNING' : 'SEVERE', errorMessage]);
                    Services.console.reset();
                    return said",
                    &[],
                );
                lines.as_array().expect("a list").iter().map(|said| line(&said[0], &said[1])).collect()
            }
            Kind::WebKit => panic!("nobody can read its console"),
        }
    }

    /// Gives the page a window of that size, in CSS pixels that are pixels.
    pub fn resize(&self, width: u32, height: u32) {
        match self.kind {
            Kind::Chromium => {
                let mobile = width < 600;
                let size =
                    json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile });
                self.devtools("Emulation.setDeviceMetricsOverride", &size);
            }
            Kind::Firefox => {
                // Its windows are 450 wide at least.
                let script = "const { style } = tab;
                    [style.width, style.height] = Array.from(arguments, (size) => `${size}px`).slice(1);
                    style.flex = 'none';
                    window.resizeTo(1960, 1300)";
                self.run_about_tab(script, &[&width.to_string(), &height.to_string()]);
            }
            Kind::WebKit => {
                let bar = self.run("return outerHeight - innerHeight", &[]).as_u64().expect("a height");
                let height = u64::from(height) + bar;
                self.post("window/rect", &json!({ "x": 0, "y": 0, "width": width, "height": height }));
            }
        }
        let size = json!([width, height]);
        wait_until(|| self.run("return [innerWidth, innerHeight]", &[]), |seen| *seen == size);
    }

    /// Has the page drawn in `light` or in `dark`.
    pub fn prefer(&self, scheme: &str) {
        match self.kind {
            Kind::Chromium => {
                let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
                self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
            }
            Kind::Firefox => {
                let script = "const isLight = Number(arguments[0] === 'light');
                    Services.prefs.setIntPref('layout.css.prefers-color-scheme.content-override', isLight)";
                self.run_in_firefox(script, &[scheme]);
            }
            Kind::WebKit => assert_eq!(scheme, "light", "WebKit draws in light alone here"),
        }
        let is_so = format!("return matchMedia('(prefers-color-scheme: {scheme})').matches");
        wait_until(|| self.run(&is_so, &[]), |is_so| *is_so == true);
    }

    /// The schemes that `prefer` can give to this browser.
    pub fn schemes(&self) -> &'static [&'static str] {
        if self.kind == Kind::WebKit { &["light"] } else { &["light", "dark"] }
    }

    /// A command of the `DevTools` protocol. <https://chromedevtools.github.io/devtools-protocol/>
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post("goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Runs the body of a function in Firefox itself, which sees its tabs, its settings and its console.
    fn run_in_firefox(&self, script: &str, arguments: &[&str]) -> Value {
        self.post("moz/context", &json!({ "context": "chrome" }));
        let returned = self.execute(script, arguments);
        self.post("moz/context", &json!({ "context": "content" }));
        returned
    }

    /// Runs the body of a function in Firefox itself: `tab` is the one that is looked at, and its handle the first argument.
    fn run_about_tab(&self, script: &str, arguments: &[&str]) -> Value {
        let tab = self.tab();
        self.run_in_firefox(&format!("{FIND_TAB}{script}"), &[&[&tab[..]], arguments].concat())
    }

    /// What is in sight, as PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        let picture = match self.kind {
            Kind::Chromium => {
                self.devtools("Page.captureScreenshot", &json!({ "format": "png" }))["data"].clone()
            }
            Kind::Firefox => self.get("screenshot"),
            Kind::WebKit => {
                // Its picture is of the last frame, which may be old.
                let drawn = "return new Promise((resolve) => {
                    requestAnimationFrame(() => requestAnimationFrame(() => resolve(0)));
                })";
                self.run(drawn, &[]);
                self.get("screenshot")
            }
        };
        decode_base64(picture.as_str().expect("a picture"))
    }

    fn get(&self, command: &str) -> Value {
        let answer = self.ask("GET", &format!("{}/{command}", self.session_url), &Value::Null);
        answer.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    fn post(&self, command: &str, body: &Value) -> Value {
        let answer = self.ask("POST", &format!("{}/{command}", self.session_url), body);
        answer.unwrap_or_else(|error| panic!("{command} {body}: {error}"))
    }

    /// The value of the driver's answer, or its words.
    fn ask(&self, method: &str, url: &str, body: &Value) -> Result<Value, String> {
        let limit = if self.session_url.is_empty() { START } else { DEADLINE };
        let request = ureq::http::Request::builder().method(method).uri(url);
        let answer = if body.is_null() {
            self.agent.run(request.body(()).expect("a request"))
        } else {
            let request = request.header("Content-Type", "application/json").body(body.to_string());
            let request = self.agent.configure_request(request.expect("a request"));
            self.agent.run(request.timeout_global(Some(limit)).build())
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
            // A browser ends with its session, and not with the driver.
            let farewell =
                self.agent.delete(&self.session_url).config().timeout_global(Some(FAREWELL)).build();
            farewell.call().ok();
        }
        for process in [Some(&mut self.driver.child), self.driver.screen.as_mut()].into_iter().flatten() {
            process.kill().ok();
            process.wait().ok();
        }
        // The browser's last process may still be writing.
        let start = Instant::now();
        let is_left = || fs::remove_dir_all(&self.folder).is_err() && self.folder.exists();
        while is_left() && start.elapsed() < FAREWELL {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn signal(name: &str, process: u64) {
    let kill = Command::new("sh").args(["-c", &format!("kill -s {name} {process}")]).status();
    assert!(kill.expect("a shell").success());
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
