//! The commands: arguments become calls of the library, and nothing here is for a library user.

mod commands;
mod options;
mod publish;
mod serve;
mod settings;
#[cfg(unix)]
mod signals;
mod tail;
#[cfg_attr(not(target_os = "linux"), path = "no_takeover.rs")]
mod takeover;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::server;

use commands::{Action, Command};

/// Elsewhere Ctrl-C ends the process at once.
#[cfg(not(unix))]
mod signals {
    pub fn outlive_file_limits() {}

    /// A number that no signal has.
    pub const TAKE_OVER: libc::c_int = 0;

    pub struct Watch;

    impl Watch {
        pub fn end(self) {}
    }

    pub fn watch(_tell: impl FnMut(libc::c_int)) -> std::io::Result<Watch> {
        Ok(Watch)
    }
}

/// Does what the arguments of this process say, and returns what it is to end with: 0 done, 1 failed, 2 wrong usage. To be
/// called first, while there is only one thread: it takes the signals that end a process.
#[must_use]
pub fn run_command() -> ExitCode {
    server::own_process();
    signals::outlive_file_limits();
    match Command::parse(std::env::args_os().skip(1), |name| std::env::var_os(name)) {
        Ok(Command::Print(text)) => {
            // A closed pipe is a quiet end.
            io::stdout().write_all(text.as_bytes()).ok();
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(config)) => serve::serve(&config),
        Ok(Command::Ask(task)) if task.action == Action::Tail => done(tail::tail(&task)),
        Ok(Command::Ask(task)) => done(publish::ask(&task)),
        Err(line) => failed(&line, 2),
    }
}

fn done(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.to_string(), 1),
    }
}

fn failed(line: &str, code: u8) -> ExitCode {
    writeln!(io::stderr(), "statecast: {line}").ok();
    ExitCode::from(code)
}
