//! Options as a table: flag, environment variable, default and help are said once, in one row.
//!
//! `config` has the table of the server, `commands` those of the clients. The one rule: what is wrong is said in one
//! line, with what would be right, and never with a secret.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::server::config::Token;

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

/// `500ms`, `15s`, `2m`, `1h`; not zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a time, such as 500ms, 15s or 2m".to_owned();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit_ms = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    // A day is more than anything here needs, and keeps sums of times in range.
    let ms = number.checked_mul(unit_ms).filter(|ms| (1..=86_400_000).contains(ms));
    ms.map(Duration::from_millis).ok_or_else(|| "a time from 1ms to 24h".to_owned())
}

/// `4096`, `64K`, `4M`, `1G`; not zero.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let wrong = || "a size, such as 65536, 64K or 4M".to_owned();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: usize = digits.parse().map_err(|_| wrong())?;
    let unit: usize = match &text[digits.len()..] {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        _ => return Err(wrong()),
    };
    let bytes = number.checked_mul(unit).filter(|bytes| (1..=1 << 30).contains(bytes));
    bytes.ok_or_else(|| "a size from 1 to 1G".to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(size("4096"), Ok(4_096));
        assert_eq!(size("64K"), Ok(65_536));
        assert_eq!(size("1G"), Ok(1 << 30));
        assert!(size("2G").is_err());
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3_600)));
        assert!(duration("25h").is_err());
    }
}
