//! `statecast tail`: a stream on standard output.
//!
//! The one rule: what is shown is what an `EventSource` gives, each event once, and at once. A closed pipe is a quiet
//! end, also while nothing comes.

use std::io::{self, ErrorKind, StdoutLock, Write};
use std::thread;

use serde_json::Value;

use crate::cli::commands::Client;
use crate::client::event_source::{EventSource, EventSourceHandle, Reason, Step};
use crate::client::replica::Follower;
use crate::document::to_json;
use crate::sse::parser::Event;

/// Shows a stream until it has shown enough, the pipe is closed, or the server will have no more of it. Blocks.
///
/// # Errors
/// Why the server refused, or output failed.
pub fn tail(client: &Client) -> io::Result<()> {
    let url = client.target.events();
    let mut source = EventSource::with(&url, client.init.clone())?;
    let handle = source.handle();
    close_with_stdout(handle.clone())?;
    let mut shown = Shown { client, out: io::stdout().lock(), follower: Follower::default(), told: None };
    let mut left = if client.once { 1 } else { client.count.unwrap_or(u64::MAX) };
    while left > 0 {
        let mut raw = Ok(());
        let step = source.step(&mut |bytes| {
            if client.raw && raw.is_ok() {
                raw = shown.write(bytes);
            }
        });
        let is_shown = match (raw, step) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(Step::Event(event))) => shown.show(&event, &mut source),
            (Ok(()), Some(Step::Lost(reason, wait))) => {
                shown.tell(reason, &format!("connecting again in {} ms", wait.as_millis() as u64));
                Ok(false)
            }
            (Ok(()), None) => break,
        };
        match is_shown {
            Ok(is_shown) => left -= u64::from(is_shown),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error),
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
    client: &'a Client,
    out: StdoutLock<'static>,
    follower: Follower,
    /// The loss that was told last; a server that is away is told of once.
    told: Option<Reason>,
}

impl Shown<'_> {
    /// Shows an event, and says whether it counts.
    fn show(&mut self, event: &Event, source: &mut EventSource) -> io::Result<bool> {
        self.told = None;
        let Client { raw, state, once, events, .. } = self.client;
        if *raw {
            return Ok(true);
        }
        let line = if *state || *once {
            match self.follower.follow(event) {
                Ok(true) => to_json(self.follower.document.as_ref().expect("it has changed")),
                Ok(false) => return Ok(false),
                Err(why) => {
                    source.start_over(&*why);
                    self.tell(Reason::StartedOver(why), "asking for the document anew");
                    return Ok(false);
                }
            }
        } else if events.is_empty() || events.contains(&event.name) {
            let [name, data, id] =
                [&event.name, &event.data, &event.id].map(|text| to_json(&Value::from(text.as_str())));
            format!(r#"{{"event":{name},"data":{data},"id":{id}}}"#)
        } else {
            return Ok(false);
        };
        self.write(format!("{line}\n").as_bytes())?;
        Ok(true)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.flush()
    }

    fn tell(&mut self, reason: Reason, next: &str) {
        if self.told.as_ref() != Some(&reason) {
            writeln!(io::stderr(), "statecast: {reason}; {next}").ok();
            self.told = Some(reason);
        }
    }
}

/// Closes the source when nobody reads our output any longer, so that `tail | head -1` ends with the first line and not
/// at the second.
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
    // It waits for as long as the process lives.
    thread::Builder::new().name("stdout".into()).spawn(wait).map(drop)
}
