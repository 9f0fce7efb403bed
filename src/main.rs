//! The command: arguments to calls.

use std::io::{self, Write};
use std::process::ExitCode;

use statecast::{Command, PatientAllocator};

#[global_allocator]
static ALLOCATOR: PatientAllocator = PatientAllocator;

fn main() -> ExitCode {
    statecast::use_one_arena();
    statecast::count_tiny_http_panics();
    statecast::outlive_file_limits();
    match Command::parse(std::env::args_os().skip(1), |name| std::env::var_os(name)) {
        Ok(Command::Print(text)) => {
            // A closed pipe is a quiet end.
            io::stdout().write_all(text.as_bytes()).ok();
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(config)) => statecast::serve(*config),
        Ok(Command::Tail(client)) => done(statecast::tail(&client)),
        Ok(Command::Set(client)) => done(statecast::set(&client)),
        Ok(Command::Send(client)) => done(statecast::send(&client)),
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
