//! Options as a table: flag, environment variable, default and help are said once, in one row.
//!
//! `config` has the table of the server, `commands` those of the clients. The one rule: what is wrong is said in one
//! line, with what would be right, and never with a secret.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::PathBuf;

use crate::token::Token;

/// One option of a command that fills a `T`.
pub(crate) struct Setting<T: 'static> {
    /// Without the dashes; upper case with underscores behind `STATECAST_` in the environment.
    pub name: &'static str,
    /// What stands for the value in the help; empty for a switch.
    pub value: &'static str,
    pub default: &'static str,
    pub help: &'static str,
    pub set: Set<T>,
}

/// How a value gets to where it belongs; else what would be right. Nothing is changed on the way there: what is no text is
/// refused, and never taken for a setting that is not there.
pub(crate) enum Set<T: 'static> {
    /// Text is UTF-8.
    Text(fn(&mut T, &str) -> Result<(), String>),
    /// The path of a file or folder has any bytes.
    Path(fn(&mut T, &OsStr) -> Result<(), String>),
}

/// What the arguments of a command come to.
#[derive(Debug)]
pub(crate) enum Read<T> {
    /// All options, and the words beside them.
    All(T, Vec<OsString>),
    Help,
    Version,
}

impl<T> Setting<T> {
    fn is_secret(&self) -> bool {
        matches!(self.value, "TOKEN" | "HEADER" | "PROXY")
    }

    fn flag(&self) -> String {
        format!("--{}", self.name)
    }

    pub fn variable(&self) -> String {
        format!("STATECAST_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }

    pub fn set_to(&self, target: &mut T, value: &OsStr, said_by: &str) -> Result<(), String> {
        let result = match self.set {
            Set::Text(set) => {
                value.to_str().ok_or_else(|| "UTF-8".to_owned()).and_then(|text| set(target, text))
            }
            Set::Path(set) => set(target, value),
        };
        result.map_err(|right| {
            let shown = if self.is_secret() { String::new() } else { format!(" {}", quoted(value)) };
            format!("{said_by}{shown}: must be {right}")
        })
    }
}

/// Reads arguments into `target`, which has what the environment says.
pub(crate) fn read<T>(
    command: &str,
    tables: &[&[Setting<T>]],
    mut target: T,
    mut arguments: lexopt::Parser,
) -> Result<Read<T>, String> {
    let mut words = Vec::new();
    while let Some(argument) = arguments.next().map_err(|error| error.to_string())? {
        match argument {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => return Ok(Read::Help),
            lexopt::Arg::Short('V') | lexopt::Arg::Long("version") => return Ok(Read::Version),
            lexopt::Arg::Long(name) => {
                let setting = tables.iter().copied().flatten().find(|setting| setting.name == name);
                let setting = setting.ok_or_else(|| {
                    format!("no option --{}; {command} --help lists them", name.escape_debug())
                })?;
                let value = if setting.value.is_empty() {
                    "true".into()
                } else {
                    let value = arguments.value();
                    value.map_err(|_| format!("--{} needs a {}", setting.name, setting.value))?
                };
                setting.set_to(&mut target, &value, &setting.flag())?;
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
    let mut text = String::new();
    for setting in table {
        let flag = format!("{} {}", setting.flag(), setting.value);
        let default = match setting.default {
            "" => String::new(),
            default => format!(" [{default}]"),
        };
        writeln!(text, "  {flag:<34}{}{default}", setting.help).expect("writing to a String cannot fail");
    }
    text
}

pub(crate) fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "a number".to_owned())
}

pub(crate) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

/// A value in one line, whatever its bytes are.
#[allow(clippy::unnecessary_debug_formatting, reason = "line ends and what is no text are to be seen")]
pub(crate) fn quoted(value: &OsStr) -> String {
    format!("{value:?}")
}

pub(crate) fn path(path: &OsStr) -> Result<PathBuf, String> {
    if path.is_empty() { Err("a path".to_owned()) } else { Ok(path.into()) }
}

/// The token that a file holds; a byte order mark before it and one line end behind it are not part of it.
pub(crate) fn token_in(file: &OsStr) -> Result<Token, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("a file that can be read: {error}"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let line = text.strip_suffix('\n').unwrap_or(text);
    Token::new(line.strip_suffix('\r').unwrap_or(line)).map_err(|right| format!("a file that holds {right}"))
}
