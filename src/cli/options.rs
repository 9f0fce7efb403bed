//! The options of `serve`, in one table: flag, environment variable, default and help.

use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};

use crate::cli::commands;
use crate::cli::settings::Set::{Path, Size, Switch, Time, Token, TokenFile};
use crate::cli::settings::{self, Read, Setting, count, count_from_1, did_you_mean, option, quoted};
use crate::config::{Config, Origin};
#[cfg(feature = "redis")]
use crate::{cli::settings::line_in, redis_url::RedisUrl};

/// The options of `statecast serve`.
pub(crate) const SETTINGS: &[Setting<Config>] = &[
    option(
        "listen",
        "127.0.0.1:8080",
        "where to listen; a port alone is for this machine, 0.0.0.0:8080 for the whole network",
    )
    .reads("HOST:PORT", |config, text| {
        let port = text.strip_prefix(':').unwrap_or(text);
        let addresses = match port.parse() {
            Ok(port) => Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]),
            Err(_) => text.to_socket_addrs().map(Iterator::collect),
        };
        config.listen = addresses.map_err(|_| "an address or a port, such as 127.0.0.1:8080 or 8080")?;
        Ok(())
    }),
    option("document", "", "keep the document in this file; without it a restart forgets it")
        .sets(Path(|config| &mut config.document)),
    option("redis", "", "share document and history with other servers: redis://HOST:PORT")
        .reads("URL", redis),
    option("redis-file", "", "the same, read from a file").reads("FILE", redis_file),
    option("redis-key", "statecast", "the key that they share in it").reads("NAME", redis_key),
    option("save-every", "1s", "how often the document is saved at most; longer spares an SD card")
        .sets(Time(|config| &mut config.save_every)),
    option("heartbeat", "15s", "time between heartbeat events").sets(Time(|config| &mut config.heartbeat)),
    option("retry", "3s", "how long clients wait before they reconnect, a third more or less")
        .sets(Time(|config| &mut config.retry)),
    option("history", "4M", "what is kept for clients that were away")
        .sets(Size(|config| &mut config.history_bytes)),
    option("threads", "0", "threads that write to clients; 0 for as many as there are cores, up to 4").reads(
        "COUNT",
        |config, text| {
            let most = Config::MAX_THREADS;
            let fits = count(text).ok().filter(|count| *count <= most);
            config.threads = fits.ok_or_else(|| format!("a number up to {most}"))?;
            Ok(())
        },
    ),
    option("max-clients", "10000", "clients at once; fewer if descriptors or memory do not suffice")
        .reads("COUNT", |config, text| count_from_1(text).map(|count| config.max_clients = count)),
    option("max-clients-per-address", "100", "clients of one remote address; 0 for no limit, behind a proxy")
        .reads("COUNT", |config, text| count(text).map(|count| config.max_clients_per_address = count)),
    option("max-body", "1M", "the largest request body").sets(Size(|config| &mut config.max_body_bytes)),
    option("max-document", "4M", "the largest document").sets(Size(|config| &mut config.max_document_bytes)),
    option("client-buffer", "64K", "a client's send buffer; the kernel takes about twice as much")
        .sets(Size(|config| &mut config.client_buffer_bytes)),
    option("grace", "5s", "how long stopping may take").sets(Time(|config| &mut config.grace)),
    option("public", "", "serve this folder instead of the built-in page")
        .takes("DIR", Path(|config| &mut config.public)),
    option("publish-token", "", "who has it may write, from wherever; needed behind a proxy")
        .sets(Token(|config| &mut config.publish_token)),
    option("publish-token-file", "", "the same, read from a file")
        .sets(TokenFile(|config| &mut config.publish_token)),
    option("subscribe-token", "", "who has it, or the publish token, may read; without one anybody may")
        .sets(Token(|config| &mut config.subscribe_token)),
    option("subscribe-token-file", "", "the same, read from a file")
        .sets(TokenFile(|config| &mut config.subscribe_token)),
    option("allow-origin", "", "let pages of this origin in; once for each, or several with commas between")
        .lists("ORIGIN", |config, text| {
            for origin in text.split(',') {
                config.allow_origin.push(Origin::new(origin.trim())?);
            }
            Ok(())
        }),
    option("open", "", "let anybody who can connect write, not this machine alone")
        .sets(Switch(|config| &mut config.open)),
    option("lab", "", "let whoever may write break connections, to see clients heal: GET /lab")
        .sets(Switch(|config| &mut config.lab)),
    option("verbose", "", "log publishes, too").sets(Switch(|config| &mut config.verbose)),
];

#[cfg(feature = "redis")]
fn redis(config: &mut Config, url: &str) -> Result<(), String> {
    RedisUrl::new(url).map(|url| config.redis = Some(url))
}

#[cfg(feature = "redis")]
fn redis_file(config: &mut Config, path: &str) -> Result<(), String> {
    line_in(path, RedisUrl::new).map(|url| config.redis = Some(url))
}

#[cfg(feature = "redis")]
fn redis_key(config: &mut Config, name: &str) -> Result<(), String> {
    name.clone_into(&mut config.redis_key);
    if name.is_empty() { Err("a name".to_owned()) } else { Ok(()) }
}

#[cfg(not(feature = "redis"))]
fn no_redis(_: &mut Config, _: &str) -> Result<(), String> {
    Err("left out: this program was built without the feature `redis`".to_owned())
}

#[cfg(not(feature = "redis"))]
use no_redis as redis;
#[cfg(not(feature = "redis"))]
use no_redis as redis_file;

#[cfg(not(feature = "redis"))]
fn redis_key(config: &mut Config, name: &str) -> Result<(), String> {
    if name == "statecast" { Ok(()) } else { no_redis(config, name) }
}

/// Reads the arguments of `statecast serve`, and the environment for what they do not set.
pub(super) fn read(
    arguments: lexopt::Parser,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Read<Config>, String> {
    // The library's default is a free port. The page and the README say 8080.
    let listen = vec![SocketAddr::from(([127, 0, 0, 1], 8080))];
    let mut config = Config { listen, log: true, ..Config::default() };
    for setting in SETTINGS {
        setting.set_from(&mut config, &variable)?;
    }
    let (config, words) = match settings::read("statecast", &[SETTINGS], config, arguments)? {
        Read::All(config, words) => (config, words),
        other => return Ok(other),
    };
    if let Some(word) = words.first().map(|word| quoted(word)) {
        let guess = did_you_mean("", word.trim_matches('"'), commands::names());
        return Err(format!("unexpected argument {word}; {guess}statecast --help lists what there is"));
    }
    if config.open && config.publish_token.is_some() {
        return Err("--open and --publish-token contradict each other: who may write?".to_owned());
    }
    Ok(Read::All(config, words))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::time::Duration;

    use super::*;

    fn parse(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        match read(lexopt::Parser::from_args(arguments), variable)? {
            Read::All(config, _) => Ok(config),
            Read::Help | Read::Version => panic!("no configuration"),
        }
    }

    #[test]
    fn the_help_states_the_defaults_that_are_used() {
        let mut config = Config::default();
        for setting in SETTINGS.iter().filter(|setting| !setting.default.is_empty()) {
            setting.set_to(&mut config, setting.default.as_ref(), setting.name).unwrap();
        }
        let default = Config { listen: config.listen.clone(), ..Config::default() };
        assert_eq!(format!("{config:?}"), format!("{default:?}"));
        assert_eq!(config.listen, [SocketAddr::from(([127, 0, 0, 1], 8080))]);
    }

    #[test]
    fn a_port_alone_is_one_of_this_machine() {
        for (text, address) in [
            ("8080", "127.0.0.1:8080"),
            (":8080", "127.0.0.1:8080"),
            (":0", "127.0.0.1:0"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(parse(&["--listen", text], &[]).unwrap().listen, [address.parse().unwrap()], "{text}");
        }
        for text in ["", ":", "::1", "80 ", "-1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536"] {
            assert!(parse(&["--listen", text], &[]).is_err(), "{text:?}");
        }
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
        let table: [(&[&str], &str); 20] = [
            (&["--heartbeat", "15"], "--heartbeat \"15\": must be a time, such as 500ms, 15s or 2m"),
            (&["--heartbeat", "0s"], "--heartbeat \"0s\": must be a time from 1ms to 24h"),
            (
                &["--heartbeat", "99999999999999999999s"],
                "--heartbeat \"99999999999999999999s\": must be a time, such as 500ms, 15s or 2m",
            ),
            (&["--threads", "65"], "--threads \"65\": must be a number up to 64"),
            (&["--threads", "-1"], "--threads \"-1\": must be a number up to 64"),
            (&["--history", "4X"], "--history \"4X\": must be a size, such as 65536, 64K or 4M"),
            (&["--history", "-1"], "--history \"-1\": must be a size, such as 65536, 64K or 4M"),
            (&["--max-clients", "0"], "--max-clients \"0\": must be a number from 1"),
            (
                &["--listen", "here"],
                "--listen \"here\": must be an address or a port, such as 127.0.0.1:8080 or 8080",
            ),
            (&["--history"], "--history needs a SIZE"),
            (
                &["--hystory", "4M"],
                "no option --hystory; did you mean --history? statecast --help lists them",
            ),
            (&["--doc", "a"], "no option --doc; did you mean --document? statecast --help lists them"),
            (
                &["--token", "a"],
                "no option --token; did you mean --publish-token? statecast --help lists them",
            ),
            (&["--quiet"], "no option --quiet; statecast --help lists them"),
            (
                &["sevre"],
                "unexpected argument \"sevre\"; did you mean serve? statecast --help lists what there is",
            ),
            (&["kitchen"], "unexpected argument \"kitchen\"; statecast --help lists what there is"),
            (&["--retry", "1s", "--retry=2s"], "--retry is given twice: which one counts?"),
            (&["--open", "--open"], "--open is given twice: which one counts?"),
            (
                &["--publish-token", "x", "--publish-token", "x"],
                "--publish-token is given twice: which one counts?",
            ),
            (
                &["--listen", "80800"],
                "--listen \"80800\": must be an address or a port, such as 127.0.0.1:8080 or 8080",
            ),
        ];
        for (arguments, line) in table {
            assert_eq!(parse(arguments, &[]).map(|_| ()), Err(line.to_owned()), "{arguments:?}");
        }
        let line = parse(&[], &[("STATECAST_OPEN", "maybe")]).unwrap_err();
        assert_eq!(line, "STATECAST_OPEN \"maybe\": must be true or false");
    }

    #[test]
    fn what_is_no_text_is_refused_by_name_and_never_taken_for_not_set() {
        let value = OsStr::from_bytes(b"s3cr\xfct");
        let read = |arguments: Vec<OsString>, name: &str| {
            let variable = |other: &str| (other == name).then(|| value.to_owned());
            read(lexopt::Parser::from_args(arguments), variable)
        };
        for setting in SETTINGS {
            let (flag, variable) = (format!("--{}", setting.name), setting.variable());
            let flagged =
                (!setting.value.is_empty()).then(|| read(vec![flag.clone().into(), value.into()], ""));
            let joined = [OsStr::new(&flag), OsStr::new("="), value].join(OsStr::new(""));
            let said = [
                (&*flag, flagged),
                (&*flag, Some(read(vec![joined], ""))),
                (&*variable, Some(read(Vec::new(), &variable))),
            ];
            for (name, result) in said {
                let is_path = matches!(setting.name, "document" | "public");
                match result {
                    Some(Ok(Read::All(config, _))) if is_path => {
                        assert_eq!(config.document.or(config.public).unwrap(), value, "{name}");
                    }
                    Some(Err(line)) if !is_path => {
                        assert!(line.contains(name), "{line}");
                        assert_eq!(line.lines().count(), 1, "{line}");
                        assert!(!line.contains("s3cr") || setting.value != "TOKEN", "{line}");
                    }
                    None => {}
                    other => panic!("{name}: {other:?}"),
                }
            }
        }
        let word = read(vec![value.into()], "").unwrap_err();
        assert_eq!(word, r#"unexpected argument "s3cr\xFCt"; statecast --help lists what there is"#);
        assert!(read(vec![OsStr::from_bytes(b"--op\xfcen").into()], "").is_err());
        let option = read(vec!["--op\nen".into()], "").unwrap_err();
        assert_eq!(option, r"no option --op\nen; did you mean --open? statecast --help lists them");
    }

    #[test]
    fn a_variable_that_is_empty_is_not_one_that_is_not_set() {
        for setting in SETTINGS {
            // To a switch an empty text says no, which is what it is without.
            let result = parse(&[], &[(&setting.variable(), "")]);
            assert_eq!(result.is_ok(), setting.value.is_empty(), "{}: {result:?}", setting.name);
            assert!(!result.is_ok_and(|config| config.open || config.lab));
        }
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
        for same in ["\u{feff}s3cret\r\n", "s3cret"] {
            std::fs::write(&path, same).unwrap();
            let config = parse(&[], &[("STATECAST_SUBSCRIBE_TOKEN_FILE", file)]).unwrap();
            assert!(config.subscribe_token.unwrap().is("s3cret"), "{same:?}");
        }
        for wrong in
            [&b""[..], b"\n", b"\xef\xbb\xbf", b"s3cret\n\n", b"s3cret ", b"s3cr\xfct\n", b"\xff\xfes\0"]
        {
            std::fs::write(&path, wrong).unwrap();
            let line = parse(&["--publish-token-file", file], &[]).unwrap_err();
            assert!(line.starts_with("--publish-token-file ") && !line.contains("s3cr"), "{line}");
            assert!(line.contains("must be a file that "), "{line}");
        }
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
        for (given, sent_by_browsers) in [
            ("https://a.example:443", "https://a.example"),
            ("http://A.example:80", "http://a.example"),
            ("http://a.example:443", "http://a.example:443"),
            ("https://a.example:8443", "https://a.example:8443"),
            ("http://[::1]:80", "http://[::1]"),
        ] {
            assert_eq!(Origin::new(given).unwrap().as_str(), sent_by_browsers);
        }
        let variable = [("STATECAST_ALLOW_ORIGIN", "https://a.example, https://b.example")];
        assert_eq!(parse(&[], &variable).unwrap().allow_origin.len(), 2);
        for wrong in
            ["*", "null", "example.org", "https://", "https://a/b", "https://a b", "https://a\r\nX: y"]
        {
            assert!(parse(&["--allow-origin", wrong], &[]).is_err(), "{wrong:?}");
        }
    }
}
