//! Options as a table: name, environment variable, default and help stand in one row.
//!
//! `options` has the table of the server, `commands` has those of the clients. The one rule: an error is one line that
//! says what would be right, and it never shows a secret.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::token::Token;
use crate::units::{duration, size};

/// One option of a command that fills a `T`.
pub(crate) struct Setting<T: 'static> {
    /// The flag without its dashes. In capitals, with underscores, behind `STATECAST_` it is the variable.
    pub name: &'static str,
    /// The word for the value in the help. Empty for a switch.
    pub value: &'static str,
    /// The default in the help. Empty for none.
    pub default: &'static str,
    help: &'static str,
    set: Set<T>,
}

/// The kind of a value, and its place in a `T`. A value of another kind is an error, and nothing is set.
pub(crate) enum Set<T: 'static> {
    Switch(fn(&mut T) -> &mut bool),
    Time(fn(&mut T) -> &mut Duration),
    Size(fn(&mut T) -> &mut usize),
    Token(fn(&mut T) -> &mut Option<Token>),
    TokenFile(fn(&mut T) -> &mut Option<Token>),
    /// A path has any bytes.
    Path(fn(&mut T) -> &mut Option<PathBuf>),
    /// UTF-8 that a function reads. An error is what would be right.
    Text(fn(&mut T, &str) -> Result<(), String>),
    /// The same, and the option may be given several times.
    List(fn(&mut T, &str) -> Result<(), String>),
}

/// What the help says of an option.
pub(crate) struct Row(&'static str, &'static str, &'static str);

/// Begins a row of a table: the name, the default and the help.
pub(crate) const fn option(name: &'static str, default: &'static str, help: &'static str) -> Row {
    Row(name, default, help)
}

impl Row {
    /// Ends the row.
    pub const fn sets<T>(self, set: Set<T>) -> Setting<T> {
        let value = match &set {
            Set::Switch(_) => "",
            Set::Time(_) => "TIME",
            Set::Size(_) => "SIZE",
            Set::Token(_) => "TOKEN",
            Set::TokenFile(_) | Set::Path(_) | Set::Text(_) | Set::List(_) => "FILE",
        };
        self.takes(value, set)
    }

    /// Ends the row, where the help has another word for the value.
    pub const fn takes<T>(self, value: &'static str, set: Set<T>) -> Setting<T> {
        let Row(name, default, help) = self;
        Setting { name, value, default, help, set }
    }

    /// Ends the row with a text that the function reads. `value` is the word for it in the help.
    pub const fn reads<T>(
        self,
        value: &'static str,
        set: fn(&mut T, &str) -> Result<(), String>,
    ) -> Setting<T> {
        self.takes(value, Set::Text(set))
    }

    /// The same, for an option that may be given several times.
    pub const fn lists<T>(
        self,
        value: &'static str,
        set: fn(&mut T, &str) -> Result<(), String>,
    ) -> Setting<T> {
        self.takes(value, Set::List(set))
    }
}

/// The arguments of a command.
#[derive(Debug)]
pub(crate) enum Read<T> {
    /// The options, and the words beside them.
    All(T, Vec<OsString>),
    Help,
    Version,
}

impl<T> Setting<T> {
    fn is_secret(&self) -> bool {
        matches!(self.value, "TOKEN" | "HEADER" | "PROXY" | "URL")
    }

    /// The name of its environment variable.
    pub fn variable(&self) -> String {
        format!("STATECAST_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }

    /// Sets the value that `source` has: the flag or the variable.
    pub fn set_to(&self, target: &mut T, value: &OsStr, source: &str) -> Result<(), String> {
        let text = || value.to_str().ok_or_else(|| "UTF-8".to_owned());
        let result = match self.set {
            Set::Switch(place) => text().and_then(switch).map(|on| *place(target) = on),
            Set::Time(place) => text().and_then(duration).map(|time| *place(target) = time),
            Set::Size(place) => text().and_then(size).map(|bytes| *place(target) = bytes),
            Set::Token(place) => text().and_then(Token::new).map(|token| *place(target) = Some(token)),
            Set::TokenFile(place) => token_in(value).map(|token| *place(target) = Some(token)),
            Set::Path(place) => path(value).map(|path| *place(target) = Some(path)),
            Set::Text(set) | Set::List(set) => text().and_then(|text| set(target, text)),
        };
        result.map_err(|right| {
            let shown = if self.is_secret() { String::new() } else { format!(" {}", quoted(value)) };
            format!("{source}{shown}: must be {right}")
        })
    }

    /// Sets what the environment says, if it says something.
    pub fn set_from(
        &self,
        target: &mut T,
        variable: &impl Fn(&str) -> Option<OsString>,
    ) -> Result<(), String> {
        let name = self.variable();
        variable(&name).map_or(Ok(()), |value| self.set_to(target, &value, &name))
    }
}

/// Reads arguments over what the environment has set in `target`.
pub(crate) fn read<T>(
    command: &str,
    tables: &[&[Setting<T>]],
    mut target: T,
    mut arguments: lexopt::Parser,
) -> Result<Read<T>, String> {
    let (mut words, mut given) = (Vec::new(), Vec::new());
    while let Some(argument) = arguments.next().map_err(|error| error.to_string())? {
        match argument {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => return Ok(Read::Help),
            lexopt::Arg::Short('V') | lexopt::Arg::Long("version") => return Ok(Read::Version),
            lexopt::Arg::Long(name) => {
                let mut settings = tables.iter().copied().flatten();
                let setting = settings.find(|setting| setting.name == name).ok_or_else(|| {
                    let names = tables.iter().copied().flatten().map(|setting| setting.name);
                    let guess = did_you_mean("--", name, names.chain(["help", "version"]));
                    format!("no option --{}; {guess}{command} --help lists them", name.escape_debug())
                })?;
                let flag = format!("--{}", setting.name);
                let value = match setting.value {
                    "" => "true".into(),
                    word => arguments.value().map_err(|_| format!("{flag} needs a {word}"))?,
                };
                setting.set_to(&mut target, &value, &flag)?;
                // A file is another way to give the same.
                let what = setting.name.trim_end_matches("-file");
                if given.contains(&what) && !matches!(setting.set, Set::List(..)) {
                    return Err(format!("--{what} is given twice: which one counts?"));
                }
                given.push(what);
            }
            lexopt::Arg::Value(word) => words.push(word),
            lexopt::Arg::Short(letter) => {
                let letter = letter.escape_debug();
                return Err(format!("no option -{letter}; {command} --help lists what there is"));
            }
        }
    }
    Ok(Read::All(target, words))
}

/// The lines of the help for a table.
pub(crate) fn list<T>(table: &[Setting<T>]) -> String {
    let rows = table.iter().map(|Setting { name, value, default, help, .. }| {
        let default = if default.is_empty() { String::new() } else { format!(" [{default}]") };
        row(format!("--{name} {value}").trim_end(), &format!("{help}{default}"))
    });
    rows.collect()
}

/// A name and its help beside it, in lines of 80 letters.
pub(crate) fn row(name: &str, help: &str) -> String {
    const INDENT: usize = 30;
    let mut line = format!("  {name:<28}");
    let mut lines = String::new();
    if line.len() > INDENT {
        writeln!(lines, "{line}").expect("a String takes all");
        line = " ".repeat(INDENT);
    }
    for word in help.split(' ') {
        if line.len() + word.len() > 80 {
            writeln!(lines, "{}", line.trim_end()).expect("a String takes all");
            line = " ".repeat(INDENT);
        }
        line.extend([word, " "]);
    }
    lines + line.trim_end() + "\n"
}

/// A question for whoever mistyped one of the names; empty where none is near.
pub(crate) fn did_you_mean(dashes: &str, word: &str, names: impl Iterator<Item = &'static str>) -> String {
    // A name of which the word is a part comes before one that is merely alike.
    let far = |name: &&str| if word.len() > 2 && name.contains(word) { 0 } else { distance(word, name) };
    let nearest = names.filter(|name| far(name) <= 1 + word.len() / 4).min_by_key(far);
    nearest.map_or(String::new(), |name| format!("did you mean {dashes}{name}? "))
}

/// The letters to put in, take out or replace until one word is the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for letter in from.chars() {
        let mut before = row[0];
        row[0] += 1;
        for (column, other) in to.iter().enumerate() {
            let replaced = before + usize::from(letter != *other);
            before = row[column + 1];
            row[column + 1] = replaced.min(before + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

pub(crate) fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "a number".to_owned())
}

pub(crate) fn count_from_1(text: &str) -> Result<usize, String> {
    count(text).ok().filter(|count| *count > 0).ok_or_else(|| "a number from 1".to_owned())
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

/// A value in one line, whatever its bytes are.
#[allow(clippy::unnecessary_debug_formatting, reason = "line ends and bytes that are no text are to be seen")]
pub(crate) fn quoted(value: &OsStr) -> String {
    format!("{value:?}")
}

fn path(value: &OsStr) -> Result<PathBuf, String> {
    if value.is_empty() { Err("a path".to_owned()) } else { Ok(value.into()) }
}

/// The token in a file.
fn token_in(file: &OsStr) -> Result<Token, String> {
    line_in(file, Token::new)
}

/// What is in a file, without a byte order mark before it and one line end behind it.
pub(crate) fn line_in<T>(
    file: impl AsRef<std::path::Path>,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("a file that can be read: {error}"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let line = text.strip_suffix('\n').unwrap_or(text);
    read(line.strip_suffix('\r').unwrap_or(line)).map_err(|right| format!("a file that holds {right}"))
}
