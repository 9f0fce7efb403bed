//! The browsers that the tests know: how each is started, and what each needs to be told.
//!
//! `webdriver` starts them by name and speaks one protocol with all of them. What the standard leaves to each browser
//! is here. Each driver is given a folder for everything that it and its browser write.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::support::wait_until;

/// A name that stands for this machine in Chromium and Firefox, and that is no secure context.
pub const OTHER_NAME: &str = "pi.local";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Chromium,
    Firefox,
    WebKit,
}

/// A driver that listens.
pub struct Driver {
    pub child: Child,
    pub url: String,
    /// Held open: the driver would end at its next line.
    stdout: BufReader<ChildStdout>,
    /// The screen of a browser that needs one.
    pub screen: Option<Child>,
}

impl Kind {
    pub fn named(name: &str) -> Kind {
        match name {
            "chromium" => Kind::Chromium,
            "firefox" => Kind::Firefox,
            "webkit" => Kind::WebKit,
            _ => panic!("{name:?} is no browser of these tests"),
        }
    }

    /// What is missing where it does not start, by the names of Debian and Ubuntu.
    pub fn needs(self) -> &'static str {
        match self {
            Kind::Chromium => "the packages chromium and chromium-driver; tests/all installs them",
            Kind::Firefox => {
                "the package firefox-esr, and geckodriver on the path or in target/geckodriver/bin; \
                 tests/all installs both"
            }
            Kind::WebKit => "the packages webkit2gtk-driver and xvfb; tests/all installs them",
        }
    }

    /// Starts the driver on a port that is free.
    pub fn start_driver(self, folder: &Path) -> Driver {
        match self {
            Kind::Chromium => {
                let mut command = Command::new("chromedriver");
                // Chromium and its driver leave sockets and files in it that they forget.
                self.start(command.arg("--port=0").env("TMPDIR", folder), "started successfully on port ")
            }
            Kind::Firefox => {
                let mut command = Command::new(geckodriver());
                command
                    .args(["--port=0", "--websocket-port=0", "--allow-system-access", "--profile-root"])
                    .arg(folder);
                command.env("TMPDIR", folder).env("HOME", folder);
                self.start(&mut command, "Listening on 127.0.0.1:")
            }
            Kind::WebKit => start_webkit(folder),
        }
    }

    /// Starts a driver that says which port it took. Starts it again where it says that the port is not available: it
    /// was free in one version of IP alone.
    fn start(self, command: &mut Command, before_port: &str) -> Driver {
        const TRIES: usize = 5;
        let mut said = String::new();
        for _ in 0..TRIES {
            let mut child = self.spawn(command);
            let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
            while stdout.read_line(&mut said).expect("text") > 0 {
                let port = said.split_once(before_port).filter(|(_, rest)| rest.contains('\n'));
                if let Some((_, rest)) = port {
                    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                    let url = format!("http://127.0.0.1:{port}");
                    return Driver { child, url, stdout, screen: None };
                }
            }
            child.wait().ok();
            if !said.contains("port not available") {
                break;
            }
        }
        panic!("the driver of {self:?} ended: {said}");
    }

    fn spawn(self, command: &mut Command) -> Child {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let program = command.get_program().to_string_lossy();
        child.unwrap_or_else(|error| match error.kind() {
            ErrorKind::NotFound => panic!("{program} is missing: {self:?} needs {}", self.needs()),
            _ => panic!("{program} does not start: {error}; {self:?} needs {}", self.needs()),
        })
    }

    /// What a session of this browser is asked for.
    pub fn capabilities(self, folder: &Path, runs_scripts: bool) -> Value {
        match self {
            Kind::Chromium => json!({
                "browserName": "chrome",
                "goog:chromeOptions": { "args": [
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-quic",
                    "--no-first-run",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                    "--disable-dev-shm-usage",
                    format!("--host-resolver-rules=MAP {OTHER_NAME} 127.0.0.1"),
                    format!("--user-data-dir={}", folder.join("profile").display()),
                ]},
                "goog:loggingPrefs": { "browser": "ALL" },
            }),
            Kind::Firefox => json!({
                "browserName": "firefox",
                "moz:firefoxOptions": {
                    "binary": on_path("firefox-esr").or_else(|| on_path("firefox")),
                    "args": ["-headless"],
                    "prefs": {
                        "network.dns.localDomains": OTHER_NAME,
                        // Each tab has a process of its own, so that one can end alone.
                        "dom.ipc.processCount.webIsolated": 32,
                        // JSON is shown as text, in a page that does nothing by itself.
                        "devtools.jsonview.enabled": false,
                        "javascript.enabled": runs_scripts,
                    },
                },
            }),
            Kind::WebKit => json!({
                "browserName": "MiniBrowser",
                "webkitgtk:browserOptions": {
                    "binary": mini_browser(),
                    "args": ["--automation", format!("--enable-javascript={runs_scripts}")],
                },
            }),
        }
    }
}

/// The file of a program that can be started by this name.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The driver of Firefox. Debian has none; tests/all builds it there.
fn geckodriver() -> PathBuf {
    on_path("geckodriver")
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/geckodriver/bin/geckodriver"))
}

/// `MiniBrowser`, which is on no path: `/usr/lib/x86_64-linux-gnu/webkit2gtk-4.1/MiniBrowser`.
fn mini_browser() -> PathBuf {
    let inside =
        |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let libraries = ["/usr/lib", "/usr/libexec", "/usr/lib64"].map(Path::new);
    let folders = libraries.into_iter().flat_map(|folder| inside(folder).chain([folder.to_owned()]));
    let browsers = folders.flat_map(|folder| inside(&folder).collect::<Vec<_>>());
    let browsers = browsers.filter(|folder| folder.to_string_lossy().contains("webkit2gtk-4"));
    let found = browsers.map(|folder| folder.join("MiniBrowser")).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("MiniBrowser is missing: WebKit needs {}", Kind::WebKit.needs()))
}

/// Where the driver of `WebKit` listens: nobody else does there, so that a port that is free stays free.
const HOST: &str = "127.0.0.2";

/// Starts a screen, and the driver of `WebKit` on it.
fn start_webkit(folder: &Path) -> Driver {
    // Its window would not become as narrow as a telephone, because of the buttons in its bar.
    let style = folder.join(".config/gtk-3.0");
    fs::create_dir_all(&style).expect("a folder");
    let small = "* { font-size: 1px; padding: 0; margin: 0; border-width: 0; min-width: 0; min-height: 0; }";
    fs::write(style.join("gtk.css"), small).expect("a file");

    let mut screen = Command::new("Xvfb");
    screen.args(["-displayfd", "1", "-screen", "0", "2048x1536x24", "-nolisten", "tcp"]);
    let mut screen = Kind::WebKit.spawn(&mut screen);
    let mut display = String::new();
    // It says so when it is ready.
    BufReader::new(screen.stdout.as_mut().expect("a pipe")).read_line(&mut display).expect("text");

    // It does not say which port it took, so it is told one.
    let free = TcpListener::bind((HOST, 0)).expect("a free port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let mut command = Command::new("WebKitWebDriver");
    command.arg(format!("--host={HOST}")).arg(format!("--port={}", address.port()));
    command.env("DISPLAY", format!(":{}", display.trim()));
    command.env("TMPDIR", folder).env("HOME", folder).env("XDG_RUNTIME_DIR", folder);
    let mut child = Kind::WebKit.spawn(&mut command);
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    wait_until(|| TcpStream::connect(address).is_ok(), |listens| *listens);
    Driver { child, url: format!("http://{address}"), stdout, screen: Some(screen) }
}
