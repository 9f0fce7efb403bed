//! The command: arguments to calls.

use crossbeam_channel::bounded;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use statecast::{Command, Config, PatientAllocator, Server};

#[global_allocator]
static ALLOCATOR: PatientAllocator = PatientAllocator;

fn main() -> ExitCode {
    statecast::use_one_arena();
    statecast::count_tiny_http_panics();
    match Command::parse(std::env::args_os().skip(1), |name| std::env::var_os(name)) {
        Ok(Command::Print(text)) => {
            // A closed pipe is a quiet end.
            io::stdout().write_all(text.as_bytes()).ok();
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(config)) => done(serve(*config)),
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

/// Serves until SIGTERM or SIGINT; the second one ends the process at once.
fn serve(config: Config) -> io::Result<()> {
    let (interrupted, interrupt) = bounded(1);
    let mut seen = false;
    ctrlc::set_handler(move || {
        if std::mem::replace(&mut seen, true) {
            std::process::exit(130);
        }
        interrupted.send(()).ok();
    })
    .map_err(io::Error::other)?;
    let kept = match &config.document {
        Some(path) => format!("kept in {}", path.display()),
        None => "empty, and forgotten at the end; --document FILE keeps it".to_owned(),
    };
    let writes = match (config.open, &config.publish_token) {
        (_, Some(_)) => "whoever has the publish token",
        (true, None) => "anybody who can connect (--open)",
        (false, None) => "this machine alone; behind a proxy set --publish-token",
    };
    let server = Server::start(config)?;
    let address = server.address();
    let text = format!(
        "statecast listens on http://{address}/\n  document: {kept}\n  writes:   {writes}\n  clients:  {}\n",
        server.capacity()
    );
    // Started without a terminal or with a closed pipe, it serves all the same.
    io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).ok();
    interrupt.recv().ok();
    if io::stderr().is_terminal() {
        writeln!(io::stderr(), "statecast: stopping; once more ends it at once").ok();
    }
    server.stop();
    Ok(())
}
