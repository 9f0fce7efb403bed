//! `statecast tail`: a stream on standard output.
//!
//! The one rule: it shows what an `EventSource` gives, each event once, and at once. A closed pipe is a quiet end, also
//! while no event comes.

use std::io::{self, ErrorKind, StdoutLock, Write};
use std::process;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::cli::commands::Task;
use crate::cli::publish::PATIENCE;
use crate::client::event_source::{EventSource, EventSourceHandle, Reason, Step};
use crate::client::replica::Follower;
use crate::document::to_json;
use crate::sse::parser::Event;

/// Shows a stream until enough is shown, the pipe is closed, or the server has nothing more. Blocks.
///
/// # Errors
/// Why the server refused, or why output failed.
pub fn tail(task: &Task) -> io::Result<()> {
    let url = task.target.events();
    let mut source = EventSource::with(&url, task.init.clone())?;
    let handle = source.handle();
    close_with_stdout(handle.clone())?;
    if let Some(limit) = task.timeout.or(task.once.then_some(PATIENCE)) {
        give_up_after(limit, url.clone())?;
    }
    let (out, follower) = (io::stdout().lock(), Follower::default());
    let mut shown = Shown { task, out, failure: None, follower, told: None };
    let mut left = if task.once { 1 } else { task.count.unwrap_or(u64::MAX) };
    while left > 0 {
        let step = source.step(&mut |bytes| {
            if task.raw {
                shown.write(bytes);
            }
        });
        match step {
            Some(Step::Event(event)) => left -= u64::from(shown.show(&event, &mut source)),
            Some(Step::Lost(reason, wait)) => {
                shown.tell(reason, &format!("connecting again in {} ms", wait.as_millis() as u64));
            }
            None => break,
        }
        match shown.failure.take() {
            Some(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Some(error) => return Err(error),
            None => {}
        }
    }
    match handle.reason() {
        Some(reason) if left > 0 && !matches!(reason, Reason::NoContent | Reason::Closed) => {
            Err(io::Error::other(format!("{url}: {reason}")))
        }
        _ => Ok(()),
    }
}

struct Shown<'a> {
    task: &'a Task,
    out: StdoutLock<'static>,
    /// Why output has failed.
    failure: Option<io::Error>,
    follower: Follower,
    /// The last loss that was told. A server that is away is told of once.
    told: Option<Reason>,
}

impl Shown<'_> {
    /// Shows an event, and says whether it counts.
    fn show(&mut self, event: &Event, source: &mut EventSource) -> bool {
        self.told = None;
        let Task { raw, state, once, events, .. } = self.task;
        let line = if *raw {
            return true;
        } else if *state || *once {
            match self.follower.follow(event) {
                Ok(true) => to_json(self.follower.document.as_ref().expect("it has changed")),
                Ok(false) => return false,
                Err(why) => {
                    source.start_over(&*why);
                    self.tell(Reason::StartedOver(why), "asking for the document anew");
                    return false;
                }
            }
        } else if events.is_empty() || events.contains(&event.name) {
            let [name, data, id] =
                [&event.name, &event.data, &event.id].map(|text| to_json(&Value::from(text.as_str())));
            format!(r#"{{"event":{name},"data":{data},"id":{id}}}"#)
        } else {
            return false;
        };
        self.write(format!("{line}\n").as_bytes());
        true
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.failure.is_none() {
            self.failure = self.out.write_all(bytes).and_then(|()| self.out.flush()).err();
        }
    }

    fn tell(&mut self, reason: Reason, next: &str) {
        if self.told.as_ref() != Some(&reason) {
            writeln!(io::stderr(), "statecast: {reason}; {next}").ok();
            self.told = Some(reason);
        }
    }
}

/// Closes the source when nobody reads the output any longer. `tail | head -1` ends with the first line, and does not wait
/// for the second.
#[cfg(unix)]
#[allow(unsafe_code)]
fn close_with_stdout(source: EventSourceHandle) -> io::Result<()> {
    let wait = move || {
        // POLLERR and POLLHUP come unasked.
        let mut stdout = libc::pollfd { fd: libc::STDOUT_FILENO, events: 0, revents: 0 };
        // SAFETY: one valid pollfd that lives for as long as the call.
        while unsafe { libc::poll(&raw mut stdout, 1, -1) } < 0
            && io::Error::last_os_error().kind() == ErrorKind::Interrupted
        {}
        if stdout.revents & (libc::POLLERR | libc::POLLHUP) != 0 {
            source.close();
        }
    };
    // The thread waits for as long as the process lives.
    thread::Builder::new().name("stdout".into()).spawn(wait).map(drop)
}

/// Elsewhere the next line that cannot be written ends it.
#[cfg(not(unix))]
fn close_with_stdout(_source: EventSourceHandle) -> io::Result<()> {
    Ok(())
}

/// Ends the process when its time is over, whatever it waits for: a connection cannot be given up while it is made.
fn give_up_after(limit: Duration, url: String) -> io::Result<()> {
    let wait = move || {
        thread::sleep(limit);
        writeln!(
            io::stderr(),
            "statecast: {url}: not enough has come within {limit:?}; --timeout allows more"
        )
        .ok();
        process::exit(1);
    };
    thread::Builder::new().name("timeout".into()).spawn(wait).map(drop)
}
