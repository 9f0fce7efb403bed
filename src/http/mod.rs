//! tiny_http, kept alive behind one door.
//!
//! [`listen`] gives each request to a handler as an [`Exchange`]: a call that was judged, a body to be read, and a place to
//! answer or to stream. What tiny_http 0.12 does to a server like ours is cured in this house, and nobody outside names it.

pub mod allocator;
mod answer;
mod body;
mod call;
mod keeper;
mod listener;
#[cfg_attr(not(unix), path = "socket/none.rs")]
mod socket;
mod turn;
mod writer;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tiny_http::Request;

pub(crate) use answer::{Answer, Content};
pub(crate) use call::{Call, MERGE_PATCH};
pub(crate) use listener::{Limits, Listener, Place, hold};
pub(crate) use tiny_http::Method;

use crate::log::Log;
use crate::metrics::Metrics;
use crate::wire::Wire;

use answer::Framing;
use body::{has_body_to_come, read_body};
use turn::Turn;
use writer::Patient;

/// Accepts at one of these addresses, or where somebody listens already, and hands each request to `handler`: one at a time and in order for each
/// connection, many at a time over all.
///
/// # Errors
/// None of the addresses can be had, or there is no thread. Nothing is left behind then.
pub(crate) fn listen(
    place: Place,
    limits: &Limits,
    log: Log,
    metrics: Arc<Metrics>,
    handler: impl Fn(Exchange) + Send + Sync + 'static,
) -> io::Result<Listener> {
    Listener::start(place, limits, log, metrics, Box::new(handler))
}

/// Where this machine finds what listens at `address`: a listener at every address is at the one that the machine calls
/// its own, too.
pub(crate) fn own_address(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Keeps memory in one place, and counts tiny_http's panics instead of printing them, in the whole process.
#[cfg(feature = "cli")]
pub(crate) fn own_process() {
    allocator::use_one_arena();
    allocator::count_tiny_http_panics();
}

/// A request, and the one place to answer it. Dropping it closes the connection.
pub(crate) struct Exchange<'a> {
    call: Call,
    /// Before the turn: what it waits for ends when the turn is dropped.
    request: Request,
    turn: Turn,
    has_body: bool,
    metrics: &'a Metrics,
    log: &'a Log,
    /// Takes the turn when the connection goes on.
    next: &'a mut Option<Turn>,
}

impl<'a> Exchange<'a> {
    /// Judges a request; one that is none is refused.
    fn begin(
        request: Request,
        turn: Turn,
        (metrics, log): (&'a Metrics, &'a Log),
        next: &'a mut Option<Turn>,
    ) -> Option<Exchange<'a>> {
        match call::judge(&request, turn.peer()) {
            Ok(call) => {
                let has_body = has_body_to_come(&request);
                Some(Exchange { call, request, turn, has_body, metrics, log, next })
            }
            Err(refusal) => {
                let path = request.url().split('?').next().unwrap_or_default();
                tell_refusal((metrics, log), (request.method(), path), (turn.peer(), None), &refusal);
                turn.refuse(request, &refusal.last_bytes());
                None
            }
        }
    }

    /// What is asked for.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The body, of at most `max` bytes. Blocks until it has come, or its time is over.
    ///
    /// # Errors
    /// The answer to give instead.
    pub fn body(&mut self, max: usize) -> Result<Vec<u8>, Answer> {
        let body = read_body(&mut self.request, &self.turn, max);
        // Of a body that was refused nobody knows where it ends.
        self.has_body = body.is_err();
        body
    }

    /// Answers. Blocks for as long as the peer takes the answer, within the limits. A body that was not read ends the
    /// connection: whoever may not write cannot keep a thread waiting for what he sends.
    pub fn answer(self, answer: Answer) {
        if answer.status >= 400 {
            let Call { method, path, peer, forwarded_for, .. } = &self.call;
            let from = (*peer, forwarded_for.as_deref());
            tell_refusal((self.metrics, self.log), (method, path), from, &answer);
        }
        if self.has_body {
            return self.turn.refuse(self.request, &answer.last_bytes());
        }
        let framing = self.framing();
        let turn = self.turn;
        let mut writer = Patient::new(self.request.into_writer(), turn.write_patience(), turn.slow_place());
        let written = answer.write_to(&mut writer, framing);
        // An answer that was given up half-way leaves a connection that nobody can make sense of. An answer that could
        // not be written leaves no connection, and the turn may by now look like that of a later one from the same address.
        let gave_up = written
            .is_err_and(|error| matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::UnexpectedEof));
        if framing.is_last || gave_up {
            // Before the writer is free: tiny_http may have an answer of its own to what follows.
            turn.close();
        } else {
            *self.next = Some(turn);
        }
    }

    /// Begins a stream: where its bytes go, and the head that they begin with. Writing to it returns at once.
    pub fn stream(self, head: &Answer) -> (Box<dyn Wire>, Vec<u8>) {
        // Its connection ends with it; the last chunk says so. Where we cannot end it, the peer is told to.
        let framing = Framing { is_last: self.call.is_http_1_0 || !socket::ARE_FOUND, ..self.framing() };
        (Box::new(self.turn.into_stream(self.request)), head.head(framing))
    }

    fn framing(&self) -> Framing {
        let Call { is_http_1_0, is_last, .. } = self.call;
        let is_last = is_last || self.turn.is_last();
        Framing { is_http_1_0, is_head: self.call.method == Method::Head, is_last }
    }
}

/// Counts a refusal, and logs that of a write: whoever has a sensor that is not heard looks there. The query is left out,
/// because it may hold a token.
fn tell_refusal(
    (metrics, log): (&Metrics, &Log),
    (method, path): (&Method, &str),
    (peer, claim): (SocketAddr, Option<&str>),
    answer: &Answer,
) {
    /// Of what the peer says. A line is one line, and not long.
    const MOST: usize = 80;
    metrics.refusals.add(1);
    if !matches!(method, Method::Get | Method::Head | Method::Options) {
        log.refusal(|| {
            let short = |text: &str| text.escape_debug().take(MOST).collect::<String>();
            let asked = short(&format!("{method} {path}"));
            let claim =
                claim.map(|claim| format!(" (forwarded_for \"{}\")", short(claim))).unwrap_or_default();
            format!("{asked} from {peer}{claim} was refused: {} {}", answer.status, answer.reason())
        });
    }
}
