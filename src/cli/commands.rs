//! The command line: the command, and what it is to do. `options` has the options of `serve`, this file the clients'.

use std::ffi::OsString;
use std::time::Duration;
use std::{fmt, slice};

use crate::cli::options::{self, SETTINGS};
use crate::cli::settings::Set::{Switch, Token, TokenFile};
use crate::cli::settings::{self, Read, Setting, count_from_1, did_you_mean, option, quoted};
use crate::client::event_source::EventSourceInit;
use crate::client::http::{header_map, may_pass};
use crate::client::proxy;
use crate::client::url::{check_url, shown};
use crate::config::Config;
use crate::sse::event::{EventName, Topic};
use crate::units::duration;

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Serve with this configuration.
    Serve(Box<Config>),
    /// Ask a server.
    Ask(Box<Task>),
    /// Print a text and exit.
    Print(String),
}

/// What a client command does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Action {
    #[default]
    Tail,
    Get,
    Set,
    Put,
    Remove,
    Send,
}

/// What a client command is to do. Only [`Command::parse`] makes one.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct Task {
    pub(crate) action: Action,
    pub(crate) target: Target,
    /// What is published. `-` for the lines of standard input.
    pub(crate) data: String,
    /// How it listens. Publishing has the same token, headers and proxy.
    pub(crate) init: EventSourceInit,
    /// The names to show, all if there are none. Or the one to send.
    pub(crate) events: Vec<String>,
    pub(crate) count: Option<u64>,
    /// How long an answer may take. A tail has no limit unless it is set.
    pub(crate) timeout: Option<Duration>,
    pub(crate) state: bool,
    pub(crate) once: bool,
    pub(crate) raw: bool,
    pub(crate) json: bool,
}

/// A client without what may be a secret.
impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("target", &self.target).finish_non_exhaustive()
    }
}

/// A server, and a topic of it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Target {
    base: String,
    /// The topic behind a slash. Empty for the whole document.
    topic: String,
}

/// The options of all clients. Those before the headers are variables of the environment, too.
const ACCESS: &[Setting<Task>] = &[
    option("token", "", "what the server asks for; also STATECAST_TOKEN")
        .sets(Token(|client| &mut client.init.token)),
    option("token-file", "", "the same, read from a file; also STATECAST_TOKEN_FILE")
        .sets(TokenFile(|client| &mut client.init.token)),
    option("proxy", "", "ask through http://[USER:PASSWORD@]HOST:PORT; '' for none; also STATECAST_PROXY")
        .reads("PROXY", |client, text| {
            if !text.is_empty() {
                proxy::read(text)?;
            }
            client.init.proxy = Some(text.to_owned());
            Ok(())
        }),
    option("header", "", "a further 'Name: value' of each request; once for each").lists(
        "HEADER",
        |client, text| {
            let (name, value) = text.split_once(':').ok_or("'Name: value'")?;
            let header = (name.trim().to_owned(), value.trim().to_owned());
            header_map(slice::from_ref(&header)).map_err(|_| "'Name: value' as HTTP has them")?;
            client.init.headers.push(header);
            Ok(())
        },
    ),
    option("timeout", "10s", "fail where nobody answers for so long; not for a tail that goes on")
        .reads("TIME", |client, text| duration(text).map(|time| client.timeout = Some(time))),
];

/// So many of them are variables.
const VARIABLES: usize = 3;

const TAIL: &[Setting<Task>] = &[
    option("event", "", "show events of this name only; once for each").lists("NAME", |client, text| {
        client.events.push(text.to_owned());
        Ok(())
    }),
    option("state", "", "show the document after each change instead")
        .sets(Switch(|client| &mut client.state)),
    option("once", "", "show the document, and exit").sets(Switch(|client| &mut client.once)),
    option("raw", "", "show the bytes as they come").sets(Switch(|client| &mut client.raw)),
    option("count", "", "exit after so many events, or documents with --state")
        .reads("COUNT", |client, text| count_from_1(text).map(|count| client.count = Some(count as u64))),
];

const SEND: &[Setting<Task>] = &[
    option("event", "message", "what the event is called").reads("NAME", |client, text| {
        EventName::parse(text).map_err(|rule| format!("a name: {rule}"))?;
        client.events = vec![text.to_owned()];
        Ok(())
    }),
    option("json", "", "the data is JSON, and must be").sets(Switch(|client| &mut client.json)),
];

/// A command that talks to a server.
struct ClientCommand {
    name: &'static str,
    action: Action,
    /// What it does, in one line.
    about: &'static str,
    /// What stands behind the URL: the data to publish, or nothing.
    data: &'static str,
    /// Examples, and what is to be known of them.
    help: &'static str,
    options: &'static [Setting<Task>],
}

const CLIENT_COMMANDS: [ClientCommand; 6] = [
    ClientCommand {
        name: "tail",
        action: Action::Tail,
        about: "shows the events of a stream, each as a line of JSON",
        data: "",
        help: "
  statecast tail localhost:8080                          every event
  statecast tail localhost:8080/kitchen --event update   the changes of a topic
  statecast tail localhost:8080/kitchen --state          it after each change

It goes on through restarts of the server until it is stopped.
",
        options: TAIL,
    },
    ClientCommand {
        name: "get",
        action: Action::Get,
        about: "shows the document, or a topic, as JSON",
        data: "",
        help: "
  statecast get localhost:8080 > backup.json
  statecast get localhost:8080/kitchen

A topic that is not there is an error.
",
        options: &[],
    },
    ClientCommand {
        name: "set",
        action: Action::Set,
        about: "merges JSON into the document or a topic (RFC 7396)",
        data: " JSON|-",
        help: r#"
  statecast set localhost:8080/kitchen '{"temp":21.5}'
  some-sensor | statecast set localhost:8080/kitchen -

A member that the JSON does not name stays, and null removes one; statecast put
replaces all. It prints the id of the change.
"#,
        options: &[],
    },
    ClientCommand {
        name: "put",
        action: Action::Put,
        about: "replaces the document or a topic with JSON",
        data: " JSON|-",
        help: r#"
  statecast put localhost:8080/kitchen '{"temp":21.5}'
  statecast put localhost:8080 "$(cat backup.json)"

What the JSON does not name is gone; statecast set keeps it. It prints the id of
the change.
"#,
        options: &[],
    },
    ClientCommand {
        name: "rm",
        action: Action::Remove,
        about: "removes a topic, or all topics",
        data: "",
        help: "
  statecast rm localhost:8080/kitchen

It prints the id of the change. A topic that is not there is an error.
",
        options: &[],
    },
    ClientCommand {
        name: "send",
        action: Action::Send,
        about: "publishes a one-off event, which changes nothing",
        data: " DATA|-",
        help: "
  statecast send localhost:8080/kitchen --event alert 'the kettle boils'
  tail -f some.log | statecast send localhost:8080/log -

It prints the id of the event.
",
        options: SEND,
    },
];

/// What the help says of a command that takes data.
const LINES_NOTE: &str = "
With - each line of standard input is sent, and again until it is answered: in
order, at least once, also while the server restarts. A line that the server
refuses (400, 413) is named on standard error and left out.
";

/// The end of each client's help.
const CLIENT_NOTES: &str = "
URL is HOST[:PORT], with http:// and a path if need be. The TOPIC is behind its
last slash; without it the URL means the whole document. Data that begins with a
dash goes behind --. Exit code: 0 done, 1 failed or refused, 2 wrong usage.

Without --proxy the environment counts as for curl: http_proxy for http://,
https_proxy for https://, all_proxy for both, and no_proxy for hosts that need
none; all but http_proxy in capitals, too. This machine (localhost) needs none.
";

impl Command {
    /// Reads the arguments behind the program's name, and the environment for what they do not set.
    ///
    /// # Errors
    /// One line that names the wrong argument, and says what would be right.
    pub fn parse(
        arguments: impl IntoIterator<Item = OsString>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Command, String> {
        let mut arguments = arguments.into_iter().peekable();
        let first = arguments.peek().and_then(|first| first.to_str()).unwrap_or_default().to_owned();
        let command = client_command(&first);
        arguments.next_if(|_| command.is_some() || matches!(&*first, "serve" | "help"));
        if first == "help" {
            return help_of(arguments.next()).map(Command::Print);
        }
        let arguments = lexopt::Parser::from_args(arguments);
        if let Some(command) = command {
            return command.parse(arguments, variable);
        }
        Ok(match options::read(arguments, variable)? {
            Read::All(config, _) => Command::Serve(Box::new(config)),
            Read::Help => Command::Print(help()),
            Read::Version => Command::version(),
        })
    }

    fn version() -> Command {
        Command::Print(format!("statecast {}\n", env!("CARGO_PKG_VERSION")))
    }
}

fn client_command(name: &str) -> Option<&'static ClientCommand> {
    CLIENT_COMMANDS.iter().find(|command| command.name == name)
}

/// The names of all commands.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    CLIENT_COMMANDS.iter().map(|command| command.name).chain(["serve", "help"])
}

/// The help of a command, or without a name that of `serve`.
fn help_of(name: Option<OsString>) -> Result<String, String> {
    let Some(name) = name.filter(|name| name != "serve" && name != "help") else { return Ok(help()) };
    let command = name.to_str().and_then(client_command);
    command.map(ClientCommand::help_text).ok_or_else(|| {
        let guess = did_you_mean("", &name.to_string_lossy(), names());
        format!("no command {}; {guess}statecast help lists them", quoted(&name))
    })
}

impl ClientCommand {
    fn parse(
        &self,
        arguments: lexopt::Parser,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Command, String> {
        let init = EventSourceInit { tries_again: may_pass, ..EventSourceInit::default() };
        let mut client = Task { action: self.action, init, ..Task::default() };
        // In reverse: the variable of the token wins over that of the file.
        for setting in ACCESS[..VARIABLES].iter().rev() {
            setting.set_from(&mut client, &variable)?;
        }
        let command = format!("statecast {}", self.name);
        let (mut client, words) = match settings::read(&command, &[self.options, ACCESS], client, arguments)?
        {
            Read::All(client, words) => (client, words),
            Read::Help => return Ok(Command::Print(self.help_text())),
            Read::Version => return Ok(Command::version()),
        };
        let mut words = words.into_iter();
        let usage = |missing| format!("{missing}; {command} --help shows how it is used");
        let url = words.next().ok_or_else(|| usage("a URL is missing"))?;
        client.target = Target::parse(url.to_str().ok_or("the URL: must be UTF-8")?)?;
        if !self.data.is_empty() {
            let data = words.next().ok_or_else(|| usage("the data is missing, or - for standard input"))?;
            client.data = data.into_string().map_err(|_| "the data: must be UTF-8")?;
        }
        if let Some(word) = words.next() {
            return Err(usage(&format!("unexpected argument {}", quoted(&word))));
        }
        proxy::proxy_in(&variable, &check_url(&client.target.state())?, client.init.proxy.as_deref())?;
        let shown = [client.raw, client.state, client.once, !client.events.is_empty()];
        if self.action == Action::Tail && shown.iter().filter(|is_asked| **is_asked).count() > 1 {
            return Err("of --event, --state, --once and --raw only one makes sense".to_owned());
        }
        if client.once && client.count.is_some() {
            return Err("--once and --count contradict each other: how many?".to_owned());
        }
        if self.action == Action::Tail && client.timeout.is_some() && !client.once && client.count.is_none() {
            return Err("--timeout needs --once or --count: a tail goes on".to_owned());
        }
        Ok(Command::Ask(Box::new(client)))
    }

    fn help_text(&self) -> String {
        let ClientCommand { name, about, data, help, .. } = self;
        let lines = if data.is_empty() { "" } else { LINES_NOTE };
        let options = [settings::list(self.options), settings::list(ACCESS), help_row()].concat();
        format!(
            "statecast {name} {about}.\n\nUsage: statecast {name} [OPTIONS] URL[/TOPIC]{data}\n\
             {help}{lines}\nOptions:\n{options}{CLIENT_NOTES}"
        )
    }
}

impl Target {
    fn parse(text: &str) -> Result<Target, String> {
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri = check_url(&url)?;
        if url.contains(['?', '#', '@']) {
            return Err(format!("{}: a URL without query, fragment or password", shown(text)));
        }
        let (folder, last) = uri.path().rsplit_once('/').expect("a path begins with a slash");
        // The URLs of the server itself, /state/kitchen or /events, mean the same.
        let base = folder.strip_suffix("/state").or_else(|| folder.strip_suffix("/events"));
        let is_whole = last.is_empty() || (base.is_none() && matches!(last, "state" | "events"));
        let topic = if is_whole {
            String::new()
        } else {
            let topic = Topic::parse(last).map_err(|rule| format!("{text:?}: {rule}"))?;
            format!("/{}", topic.as_str())
        };
        let server = url.strip_suffix(uri.path()).unwrap_or(&url);
        Ok(Target { base: format!("{server}{}", base.unwrap_or(folder)), topic })
    }

    /// The URL of its stream.
    pub(crate) fn events(&self) -> String {
        format!("{}/events{}", self.base, self.topic)
    }

    /// The URL of its document.
    pub(crate) fn state(&self) -> String {
        format!("{}/state{}", self.base, self.topic)
    }
}

fn help_row() -> String {
    settings::row("-h, --help", "this text")
}

/// The text of `--help`.
#[must_use]
pub fn help() -> String {
    let command = |name, about| format!("  {name:<6} {about}\n");
    let commands = CLIENT_COMMANDS.iter().map(|found| command(found.name, found.about));
    let commands: String = commands.chain([command("help", "shows the help of a command")]).collect();
    let (options, help_row) = (settings::list(SETTINGS), help_row());
    let version = settings::row("-V, --version", "the version");
    format!(
        r#"statecast keeps one JSON document, and streams every change of it to every
browser that listens.

Usage: statecast [serve] [OPTIONS]
       statecast COMMAND [OPTIONS] URL[/TOPIC] ...

Commands that ask a server:
{commands}
  curl -N localhost:8080/events                          the stream
  curl -d '{{"temp":21.5}}' localhost:8080/state/kitchen   change a topic

Options of serve. Each is an environment variable, too: STATECAST_MAX_BODY is
--max-body.
{options}{help_row}{version}
TIME is a number with ms, s, m or h: 500ms, 15s. SIZE is bytes, or with K, M or
G: 64K, 4M.
"#
    )
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn parse(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Task, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        match Command::parse(arguments.iter().map(OsString::from), variable)? {
            Command::Ask(task) => Ok(*task),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_behind_the_last_slash_is_the_topic() {
        let table = [
            ("localhost:8080/kitchen", "http://localhost:8080/events/kitchen"),
            ("http://localhost:8080/kitchen", "http://localhost:8080/events/kitchen"),
            ("http://localhost:8080/state/kitchen", "http://localhost:8080/events/kitchen"),
            ("localhost:8080/events/kitchen", "http://localhost:8080/events/kitchen"),
            ("localhost:8080", "http://localhost:8080/events"),
            ("localhost:8080/", "http://localhost:8080/events"),
            ("localhost:8080/events", "http://localhost:8080/events"),
            ("localhost:8080/state/", "http://localhost:8080/events"),
            ("localhost:8080/events/events", "http://localhost:8080/events/events"),
            ("localhost:8080/events/state", "http://localhost:8080/events/state"),
            ("example.org/live/kitchen", "http://example.org/live/events/kitchen"),
            ("example.org/live/", "http://example.org/live/events"),
            ("example.org/live/events", "http://example.org/live/events"),
            ("[::1]:8080/a", "http://[::1]:8080/events/a"),
        ];
        for (text, events) in table {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.events(), events, "{text}");
            assert_eq!(Target::parse(&target.state()), Ok(target), "{text}");
        }
        for text in ["", "a b", "ftp://a/b", "http://", "a/b?c", "a/ä", "user:word@a/b", "a/b c"] {
            assert!(Target::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_wrong_client_command_is_one_line_that_says_what_would_be_right() {
        let table: [(&[&str], &str); 20] = [
            (&["tail"], "a URL is missing; statecast tail --help shows how it is used"),
            (
                &["set", "a/b"],
                "the data is missing, or - for standard input; statecast set --help shows how it is used",
            ),
            (
                &["set", "a/b", "1", "2"],
                "unexpected argument \"2\"; statecast set --help shows how it is used",
            ),
            (&["tail", "a", "--lines"], "no option --lines; statecast tail --help lists them"),
            (
                &["tail", "a", "--cuont", "1"],
                "no option --cuont; did you mean --count? statecast tail --help lists them",
            ),
            (&["rm", "a/b", "1"], "unexpected argument \"1\"; statecast rm --help shows how it is used"),
            (
                &["put", "a/b"],
                "the data is missing, or - for standard input; statecast put --help shows how it is used",
            ),
            (
                &["send", "a", "x", "--event", "b", "--event", "c"],
                "--event is given twice: which one counts?",
            ),
            (&["get", "a", "--timeout", "10"], "--timeout \"10\": must be a time, such as 500ms, 15s or 2m"),
            (&["tail", "a", "--timeout", "10s"], "--timeout needs --once or --count: a tail goes on"),
            (&["help", "tial"], "no command \"tial\"; did you mean tail? statecast help lists them"),
            (&["tail", "a", "--count", "0"], "--count \"0\": must be a number from 1"),
            (
                &["tail", "a", "--raw", "--state"],
                "of --event, --state, --once and --raw only one makes sense",
            ),
            (&["tail", "a", "--once", "--count", "2"], "--once and --count contradict each other: how many?"),
            (
                &["send", "a", "--event", "init", "x"],
                "--event \"init\": must be a name: an event cannot be called hello, init, update, heartbeat, open, error",
            ),
            (&["set", "a/b/c d", "1"], "\"http://a/b/c d\" is no URL: invalid uri character"),
            (&["set", "a/..", "1"], "\"a/..\": a topic is 1 to 64 of A-Z a-z 0-9 . _ - and not . or .."),
            (&["set", "a/b", "-5"], "no option -5; statecast set --help lists what there is"),
            (&["tail", "a", "--header", "s3cret"], "--header: must be 'Name: value'"),
            (&["tail", "a", "--header", "a b: s3cret"], "--header: must be 'Name: value' as HTTP has them"),
        ];
        for (arguments, line) in table {
            assert_eq!(parse(arguments, &[]).map(|_| ()), Err(line.to_owned()), "{arguments:?}");
        }
        assert_eq!(parse(&["set", "a/b", "--", "-5"], &[]).unwrap().data, "-5");
    }

    #[test]
    fn what_is_no_text_is_refused_by_name_and_its_bytes_are_not_shown() {
        let wrong = OsStr::from_bytes(b"s3cr\xfct");
        let table: [(&[&OsStr], &str); 8] = [
            (&["set".as_ref(), "a/b".as_ref(), wrong], "the data: must be UTF-8"),
            (&["send".as_ref(), "a/b".as_ref(), wrong], "the data: must be UTF-8"),
            (&["tail".as_ref(), wrong], "the URL: must be UTF-8"),
            (&["tail".as_ref(), "a".as_ref(), "--token".as_ref(), wrong], "--token: must be UTF-8"),
            (&["tail".as_ref(), "a".as_ref(), "--header".as_ref(), wrong], "--header: must be UTF-8"),
            (
                &["tail".as_ref(), "a".as_ref(), "--event".as_ref(), wrong],
                r#"--event "s3cr\xFCt": must be UTF-8"#,
            ),
            (
                &["tail".as_ref(), "a".as_ref(), "--count".as_ref(), wrong],
                r#"--count "s3cr\xFCt": must be UTF-8"#,
            ),
            (
                &[wrong, "a".as_ref()],
                r#"unexpected argument "s3cr\xFCt"; statecast --help lists what there is"#,
            ),
        ];
        for (arguments, line) in table {
            let command = Command::parse(arguments.iter().map(OsString::from), |_| None);
            assert_eq!(command.map(|_| ()), Err(line.to_owned()), "{arguments:?}");
        }
        let variable = |name: &str| (name == "STATECAST_TOKEN").then(|| wrong.to_owned());
        let command = Command::parse(["tail", "a"].map(OsString::from), variable);
        assert_eq!(command.map(|_| ()), Err("STATECAST_TOKEN: must be UTF-8".to_owned()));
    }

    #[test]
    fn a_clients_token_comes_from_a_flag_or_the_environment_and_is_not_shown() {
        let variables = [("STATECAST_TOKEN", "s3cret"), ("STATECAST_EVENT", "x"), ("STATECAST_COUNT", "x")];
        let client = parse(&["tail", "a", "--header", "Cookie: s3cret"], &variables).unwrap();
        assert!(client.init.token.as_ref().unwrap().is("s3cret"));
        assert!(!format!("{client:?}").contains("s3cret"));
        let client = parse(&["tail", "a", "--token", "other"], &variables).unwrap();
        assert!(client.init.token.unwrap().is("other"));
        let error = parse(&["tail", "a"], &[("STATECAST_TOKEN", "s3\ncret")]).unwrap_err();
        assert!(error.starts_with("STATECAST_TOKEN: must be"), "{error}");
    }
}
