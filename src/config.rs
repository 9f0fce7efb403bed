//! How a server is to run: what can be set, in one table.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use subtle::ConstantTimeEq;

use crate::settings::{self, Read, Setting, count, duration, path, size, switch, token_in};

/// How a server is to run. `Config::default()` is what the command does without options, but for the port.
///
/// ```
/// let config = statecast::Config { heartbeat: std::time::Duration::from_secs(1), ..Default::default() };
/// assert_eq!(config.history_bytes, 4 << 20);
/// ```
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Config {
    /// Where to listen, tried in order. Default: 127.0.0.1, on a port that is free; the command's is 8080.
    pub listen: Vec<SocketAddr>,
    /// The file that keeps the document, for one server at a time. Default: none; the document is gone when the server
    /// stops.
    pub document: Option<PathBuf>,
    /// Time between `heartbeat` events. Default: 15 s.
    pub heartbeat: Duration,
    /// What clients are told to wait before they reconnect, each a third more or less. Default: 3 s.
    pub retry: Duration,
    /// What is kept for clients that were away, in bytes. Default: 4 MiB.
    pub history_bytes: usize,
    /// Clients at once. Default: 10,000, or as many as descriptors and memory carry.
    pub max_clients: usize,
    /// Clients of one address, but for this machine's own; 0 for no limit. Default: 100.
    pub max_clients_per_address: usize,
    /// The largest request body in bytes. Default: 1 MiB.
    pub max_body_bytes: usize,
    /// The largest document in bytes of JSON. Default: 4 MiB.
    pub max_document_bytes: usize,
    /// The send buffer of a client in bytes; the kernel takes about twice as much. Default: 64 KiB.
    pub client_buffer_bytes: usize,
    /// How long stopping may take. Default: 5 s.
    pub grace: Duration,
    /// A folder to serve instead of the built-in page. Default: none.
    pub public: Option<PathBuf>,
    /// Who has it may write and see `/clients`, from wherever. Default: none; writes are for this machine alone.
    pub publish_token: Option<Token>,
    /// Who has it, or the publish token, may read the document and its streams. Default: none; anybody may.
    pub subscribe_token: Option<Token>,
    /// Origins whose pages may read and, as far as everybody may, write. Default: none but the server's own.
    pub allow_origin: Vec<Origin>,
    /// Let anybody write, not this machine alone. Default: no.
    pub open: bool,
    /// Offer faults on demand, `/lab`, to whoever may write: for testing clients. Default: no.
    pub lab: bool,
    /// Log publishes, too. Default: no.
    pub verbose: bool,
    /// Log to stderr. Default: no; the command does.
    pub log: bool,
    /// A client whose connection takes nothing for so long is removed. No flag. Default: 10 s.
    pub stall: Duration,
    /// Until the first request of a connection has arrived; bodies get more. No flag. Default: 10 s.
    pub request_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            document: None,
            heartbeat: Duration::from_secs(15),
            retry: Duration::from_secs(3),
            history_bytes: 4 << 20,
            max_clients: 10_000,
            max_clients_per_address: 100,
            max_body_bytes: 1 << 20,
            max_document_bytes: 4 << 20,
            client_buffer_bytes: 64 << 10,
            grace: Duration::from_secs(5),
            public: None,
            publish_token: None,
            subscribe_token: None,
            allow_origin: Vec::new(),
            open: false,
            lab: false,
            verbose: false,
            log: false,
            stall: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
        }
    }
}

/// The options of `statecast serve`.
pub(crate) const SETTINGS: &[Setting<Config>] = &[
    Setting {
        name: "listen",
        value: "HOST:PORT",
        default: "127.0.0.1:8080",
        help: "where to listen; 0.0.0.0:8080 for the whole network",
        set: |config, text| {
            let addresses = std::net::ToSocketAddrs::to_socket_addrs(text);
            config.listen = addresses.map_err(|_| "an address, such as 127.0.0.1:8080".to_owned())?.collect();
            Ok(())
        },
    },
    Setting {
        name: "document",
        value: "FILE",
        default: "",
        help: "keep the document in this file; without it a restart forgets it",
        set: |config, text| path(text).map(|path| config.document = Some(path)),
    },
    Setting {
        name: "heartbeat",
        value: "TIME",
        default: "15s",
        help: "time between heartbeat events",
        set: |config, text| duration(text).map(|time| config.heartbeat = time),
    },
    Setting {
        name: "retry",
        value: "TIME",
        default: "3s",
        help: "how long clients wait before they reconnect, a third more or less",
        set: |config, text| duration(text).map(|time| config.retry = time),
    },
    Setting {
        name: "history",
        value: "SIZE",
        default: "4M",
        help: "what is kept for clients that were away",
        set: |config, text| size(text).map(|bytes| config.history_bytes = bytes),
    },
    Setting {
        name: "max-clients",
        value: "COUNT",
        default: "10000",
        help: "clients at once; fewer if descriptors or memory do not suffice",
        set: |config, text| {
            config.max_clients = count(text).ok().filter(|count| *count > 0).ok_or("a number from 1")?;
            Ok(())
        },
    },
    Setting {
        name: "max-clients-per-address",
        value: "COUNT",
        default: "100",
        help: "clients of one address, but for this machine's; 0 for no limit, behind a proxy",
        set: |config, text| count(text).map(|count| config.max_clients_per_address = count),
    },
    Setting {
        name: "max-body",
        value: "SIZE",
        default: "1M",
        help: "the largest request body",
        set: |config, text| size(text).map(|bytes| config.max_body_bytes = bytes),
    },
    Setting {
        name: "max-document",
        value: "SIZE",
        default: "4M",
        help: "the largest document",
        set: |config, text| size(text).map(|bytes| config.max_document_bytes = bytes),
    },
    Setting {
        name: "client-buffer",
        value: "SIZE",
        default: "64K",
        help: "a client's send buffer; the kernel takes about twice as much",
        set: |config, text| size(text).map(|bytes| config.client_buffer_bytes = bytes),
    },
    Setting {
        name: "grace",
        value: "TIME",
        default: "5s",
        help: "how long stopping may take",
        set: |config, text| duration(text).map(|time| config.grace = time),
    },
    Setting {
        name: "public",
        value: "DIR",
        default: "",
        help: "serve this folder instead of the built-in page",
        set: |config, text| path(text).map(|path| config.public = Some(path)),
    },
    Setting {
        name: "publish-token",
        value: "TOKEN",
        default: "",
        help: "who has it may write, from wherever; needed behind a proxy",
        set: |config, text| Token::new(text).map(|token| config.publish_token = Some(token)),
    },
    Setting {
        name: "publish-token-file",
        value: "FILE",
        default: "",
        help: "the same, read from a file",
        set: |config, text| token_in(text).map(|token| config.publish_token = Some(token)),
    },
    Setting {
        name: "subscribe-token",
        value: "TOKEN",
        default: "",
        help: "who has it, or the publish token, may read; without one anybody may",
        set: |config, text| Token::new(text).map(|token| config.subscribe_token = Some(token)),
    },
    Setting {
        name: "subscribe-token-file",
        value: "FILE",
        default: "",
        help: "the same, read from a file",
        set: |config, text| token_in(text).map(|token| config.subscribe_token = Some(token)),
    },
    Setting {
        name: "allow-origin",
        value: "ORIGIN",
        default: "",
        help: "let pages of this origin in; once for each, or several with commas between",
        set: |config, text| {
            for origin in text.split(',') {
                config.allow_origin.push(Origin::new(origin.trim())?);
            }
            Ok(())
        },
    },
    Setting {
        name: "open",
        value: "",
        default: "",
        help: "let anybody who can connect write, not this machine alone",
        set: |config, text| switch(text).map(|on| config.open = on),
    },
    Setting {
        name: "lab",
        value: "",
        default: "",
        help: "let whoever may write break connections, to see clients heal: GET /lab",
        set: |config, text| switch(text).map(|on| config.lab = on),
    },
    Setting {
        name: "verbose",
        value: "",
        default: "",
        help: "log publishes, too",
        set: |config, text| switch(text).map(|on| config.verbose = on),
    },
];

/// A secret of one line. It shows itself to nobody: neither `Debug` nor an error has it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token of that text: visible ASCII, so that it fits a header.
    ///
    /// # Errors
    /// What a token must be, where it is something else.
    pub fn new(text: &str) -> Result<Token, String> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Token(text.to_owned()))
        } else {
            Err("at least one letter, and no spaces or letters beyond ASCII".to_owned())
        }
    }

    /// What the header that shows it says.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether somebody who says this has the token. Takes as long for any text of the same length.
    pub(crate) fn is(&self, text: &str) -> bool {
        self.0.as_bytes().ct_eq(text.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The origin of a page: scheme, host and port, as browsers write them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// An origin, such as `https://example.org` or `http://localhost:3000`.
    ///
    /// # Errors
    /// What an origin is, where the text is something else.
    pub fn new(text: &str) -> Result<Origin, String> {
        let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_host = |letter: char| letter.is_ascii_alphanumeric() || "-._:[]".contains(letter);
        match authority {
            Some(authority) if !authority.is_empty() && authority.chars().all(is_host) => {
                Ok(Origin(text.to_ascii_lowercase()))
            }
            _ => Err("an origin, such as https://example.org, without a path".to_owned()),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Config {
    /// What the arguments of `statecast serve` say, and the environment where they do not.
    pub(crate) fn read(
        arguments: lexopt::Parser,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Read<Config>, String> {
        let mut config = Config { log: true, ..Config::default() };
        for setting in SETTINGS {
            // The first is the command's own default; the page and the README say 8080.
            let default = Some(setting.default).filter(|_| setting.name == "listen").map(str::to_owned);
            let variable_name = setting.variable();
            if let Some(text) = variable(&variable_name).or(default) {
                setting.set_to(&mut config, &text, &variable_name)?;
            }
        }
        let (config, words) = match settings::read("statecast", &[SETTINGS], config, arguments)? {
            Read::All(config, words) => (config, words),
            other => return Ok(other),
        };
        if let Some(word) = words.first() {
            return Err(format!("unexpected argument {word:?}; statecast --help lists what there is"));
        }
        if config.open && config.publish_token.is_some() {
            return Err("--open and --publish-token contradict each other: who may write?".to_owned());
        }
        Ok(Read::All(config, words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        match Config::read(lexopt::Parser::from_args(arguments), variable)? {
            Read::All(config, _) => Ok(config),
            Read::Help | Read::Version => panic!("no configuration"),
        }
    }

    #[test]
    fn the_help_states_the_defaults_that_are_used() {
        let mut config = Config::default();
        for setting in SETTINGS.iter().filter(|setting| !setting.default.is_empty()) {
            (setting.set)(&mut config, setting.default).unwrap();
        }
        let default = Config { listen: config.listen.clone(), ..Config::default() };
        assert_eq!(format!("{config:?}"), format!("{default:?}"));
        assert_eq!(config.listen, [SocketAddr::from(([127, 0, 0, 1], 8080))]);
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_default() {
        let variables =
            [("STATECAST_HEARTBEAT", "200ms"), ("STATECAST_MAX_BODY", "2M"), ("STATECAST_OPEN", "1")];
        let config = parse(&["--max-body", "3K", "--retry=2m"], &variables).unwrap();
        assert_eq!(config.heartbeat, Duration::from_millis(200));
        assert_eq!(config.max_body_bytes, 3 << 10);
        assert_eq!(config.retry, Duration::from_secs(120));
        assert!(config.open);
        assert_eq!(config.listen, [SocketAddr::from(([127, 0, 0, 1], 8080))]);
    }

    #[test]
    fn a_wrong_option_is_one_line_that_says_what_would_be_right() {
        let table: [(&[&str], &str); 10] = [
            (&["--heartbeat", "15"], "--heartbeat \"15\": must be a time, such as 500ms, 15s or 2m"),
            (&["--heartbeat", "0s"], "--heartbeat \"0s\": must be a time from 1ms to 24h"),
            (
                &["--heartbeat", "99999999999999999999s"],
                "--heartbeat \"99999999999999999999s\": must be a time, such as 500ms, 15s or 2m",
            ),
            (&["--history", "4X"], "--history \"4X\": must be a size, such as 65536, 64K or 4M"),
            (&["--history", "-1"], "--history \"-1\": must be a size, such as 65536, 64K or 4M"),
            (&["--max-clients", "0"], "--max-clients \"0\": must be a number from 1"),
            (&["--listen", "here"], "--listen \"here\": must be an address, such as 127.0.0.1:8080"),
            (&["--history"], "--history needs a SIZE"),
            (&["--hystory", "4M"], "no option --hystory; statecast --help lists them"),
            (&["sevre"], "unexpected argument \"sevre\"; statecast --help lists what there is"),
        ];
        for (arguments, line) in table {
            assert_eq!(parse(arguments, &[]).map(|_| ()), Err(line.to_owned()), "{arguments:?}");
        }
        let line = parse(&[], &[("STATECAST_OPEN", "maybe")]).unwrap_err();
        assert_eq!(line, "STATECAST_OPEN \"maybe\": must be true or false");
    }

    #[test]
    fn a_token_never_reaches_an_error_or_debug() {
        let config = parse(&["--publish-token", "s3cret", "--subscribe-token=other"], &[]).unwrap();
        assert!(config.publish_token.as_ref().unwrap().is("s3cret"));
        assert!(!config.publish_token.as_ref().unwrap().is("s3creT"));
        assert!(!format!("{config:?}").contains("s3cret"));
        let right = "must be at least one letter, and no spaces or letters beyond ASCII";
        assert_eq!(parse(&["--publish-token", ""], &[]).unwrap_err(), format!("--publish-token: {right}"));
        assert_eq!(
            parse(&["--subscribe-token", "s3 cret"], &[]).unwrap_err(),
            format!("--subscribe-token: {right}")
        );
        let variable = [("STATECAST_PUBLISH_TOKEN", "s3\ncret")];
        assert_eq!(parse(&[], &variable).unwrap_err(), format!("STATECAST_PUBLISH_TOKEN: {right}"));
        assert!(parse(&["--open", "--publish-token", "x"], &[]).unwrap_err().starts_with("--open and"));
    }

    #[test]
    fn a_token_may_come_from_a_file() {
        let path = std::env::temp_dir().join(format!("statecast-token-{}", std::process::id()));
        let file = path.to_str().unwrap();
        std::fs::write(&path, "s3cret\n").unwrap();
        let config = parse(&["--publish-token-file", file], &[]).unwrap();
        assert!(config.publish_token.unwrap().is("s3cret"));
        std::fs::write(&path, "\n").unwrap();
        assert!(
            parse(&["--publish-token-file", file], &[]).unwrap_err().contains("must be a file that holds")
        );
        std::fs::remove_file(&path).unwrap();
        assert!(parse(&["--publish-token-file", file], &[]).unwrap_err().contains("a file that can be read"));
    }

    #[test]
    fn origins_are_a_list() {
        let config =
            parse(&["--allow-origin", "https://A.example", "--allow-origin", "http://localhost:3000"], &[]);
        let origins: Vec<_> =
            config.unwrap().allow_origin.iter().map(|origin| origin.as_str().to_owned()).collect();
        assert_eq!(origins, ["https://a.example", "http://localhost:3000"]);
        let variable = [("STATECAST_ALLOW_ORIGIN", "https://a.example, https://b.example")];
        assert_eq!(parse(&[], &variable).unwrap().allow_origin.len(), 2);
        for wrong in
            ["*", "null", "example.org", "https://", "https://a/b", "https://a b", "https://a\r\nX: y"]
        {
            assert!(parse(&["--allow-origin", wrong], &[]).is_err(), "{wrong:?}");
        }
    }
}
