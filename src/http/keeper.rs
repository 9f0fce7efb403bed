//! The keeper: one thread that looks at every connection, and keeps tiny_http accepting.
//!
//! `listener` starts it. It compares what each connection is doing with what the kernel says of it: bytes received
//! less bytes unread is exactly what tiny_http has read. The one rule: [`verdict`] decides, from facts alone.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use socket2::{Domain, Protocol, Socket, Type};

use crate::http::allocator;
use crate::http::answer::Answer;
use crate::http::listener::{Core, Limits};
use crate::http::own_address;
use crate::http::socket::{Facts, Identity};
use crate::http::turn::{Connection, Doing, Seen, Standing};
use crate::lock::lock;
use crate::metrics::NOT_ASCII_HEADS;

/// Between two looks while there are connections to look at, and while there are none.
const TICK: Duration = Duration::from_millis(100);
const IDLE_TICK: Duration = Duration::from_millis(500);

/// Between two looks at all descriptors there are, and at what has gone.
const THOROUGH: Duration = Duration::from_secs(2);

/// Between two tries to replace a tiny_http that has stopped accepting.
const REPLACE: Duration = Duration::from_millis(500);

/// Pokes in one look: each keeps a thread of tiny_http's for 5 s (`util/task_pool.rs:103`).
const MAX_POKES: usize = 64;

/// When so many connections have gone at once, their memory goes back to the system.
const CROWD: usize = 32;

/// So many times, with `THOROUGH` between: tiny_http's threads end 5 s after their last connection, with memory of
/// their own (`util/task_pool.rs:103`).
const TRIMS: usize = 5;

/// Threads of the process that are not for requests: those of hub, log, signals, tiny_http in rest, and some more.
const OWN_THREADS: usize = 24;

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Nobody reads what it has sent: tiny_http has queued it behind busy workers (`util/task_pool.rs:69`).
    Poke,
    Cut,
}

/// One connection at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub doing: Doing,
    /// Since when it has been doing that.
    pub since: Instant,
    pub facts: Facts,
    pub seen: Seen,
    pub now: Instant,
    /// Every request thread is busy: a request may have arrived whole, and wait for one.
    pub all_busy: bool,
    /// Some thread of tiny_http's holds more of a head than any honest one has.
    pub is_anybody_sleeping: bool,
    /// For how long the kernel kept a silent connection before it was accepted.
    pub deferred: Duration,
}

/// Decides what becomes of a connection, and what to remember of it.
pub(super) fn verdict(look: &Look, limits: &Limits) -> (Verdict, Seen) {
    let Look { doing, facts, now, .. } = *look;
    let age = now.saturating_duration_since(look.since);
    let received = look.seen.received.unwrap_or(if doing == Doing::Arriving { 0 } else { facts.received });
    let is_unread = facts.received > 0 && facts.unread == facts.received;
    let has_head = match doing {
        // It is not its fault if nobody reads it.
        Doing::Arriving => !is_unread,
        Doing::Idle => facts.received > received,
        // A head without end, behind an answer that takes its time or behind a stream.
        Doing::Answering { .. } | Doing::Streaming => look.is_anybody_sleeping && facts.unread > 0,
        Doing::Closed => false,
    };
    let head_since = has_head.then(|| look.seen.head_since.filter(|_| !look.all_busy).unwrap_or(now));
    let seen = Seen { received: Some(received), head_since, ..look.seen };
    let head_age = head_since.map_or(Duration::ZERO, |since| now - since);
    let is_silent = doing == Doing::Arriving && facts.received == 0;
    let head_patience = if is_silent { limits.head.saturating_sub(look.deferred) } else { limits.head };
    let verdict = match doing {
        // To be closed for good, if it could not be the first time.
        Doing::Closed => Verdict::Cut,
        Doing::Answering { body_until: Some(until) } if now > until => Verdict::Cut,
        _ if has_head && head_age > head_patience => Verdict::Cut,
        Doing::Idle if age > limits.idle => Verdict::Cut,
        // Not at its first look: a thread may be about to read it.
        Doing::Arriving if is_unread && look.seen.received.is_some() => Verdict::Poke,
        _ => Verdict::Keep,
    };
    (verdict, seen)
}

/// What one look at all connections found.
#[derive(Default)]
struct Round {
    connections: usize,
    pokes: usize,
    /// Connections on which tiny_http has locked itself up (client.rs:234).
    stuck: usize,
}

/// The keeper's own time.
pub(super) struct Keeper {
    shared: Arc<Core>,
    thorough_at: Instant,
    replace_at: Instant,
    trims_left: usize,
    /// As the last thorough looks found them, over more than the 5 s that an idle thread of tiny_http's stays.
    leftovers: [usize; 4],
    not_ascii_heads: u64,
}

impl Keeper {
    pub fn new(shared: Arc<Core>) -> Keeper {
        let now = Instant::now();
        let not_ascii_heads = NOT_ASCII_HEADS.value();
        let (thorough_at, replace_at, leftovers) = (now + THOROUGH, now, [0; 4]);
        Keeper { shared, thorough_at, replace_at, trims_left: 0, leftovers, not_ascii_heads }
    }

    /// Looks until the listener stops. `bell` rings when a connection has sent its first request.
    pub fn run(mut self, bell: &Receiver<()>) {
        let mut tick = IDLE_TICK;
        loop {
            match bell.recv_timeout(tick) {
                Ok(()) if tick == IDLE_TICK => {}
                // A ring in between changes nothing.
                Ok(()) => std::thread::sleep(TICK),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.shared.is_stopping() {
                return;
            }
            self.see_to_accepting();
            let round = self.look();
            for _ in 0..round.pokes.min(MAX_POKES) {
                poke(self.shared.address).ok();
            }
            tick = if round.connections > 0 { TICK } else { IDLE_TICK };
        }
    }

    /// Has somebody take what was published to tiny_http, and a tiny_http that accepts.
    fn see_to_accepting(&mut self) {
        let shared = &self.shared;
        let intake = shared.current();
        if intake.is_busy() {
            // The last thread may not have been able to start another.
            shared.spawn_waiting(&intake).ok();
        }
        let now = Instant::now();
        if now >= self.replace_at && !intake.is_accepting(shared.address) {
            self.replace_at = now + REPLACE;
            if !shared.is_stopping() && !shared.table.is_pausing() && shared.has_spare() {
                shared.replace(&intake);
            }
        }
    }

    /// Looks at every connection that is no stream, and cuts those that take too long.
    fn look(&mut self) -> Round {
        let is_thorough = Instant::now() >= self.thorough_at;
        let open = self.shared.table.open_connections(is_thorough);
        let now = Instant::now();
        self.tell_not_ascii(&open);
        let mut round = Round { connections: open.len(), ..Round::default() };
        let all_busy = self.shared.current().is_busy();
        for (connection, identity) in &open {
            self.judge(connection, *identity, all_busy, &mut round);
        }
        self.shared.metrics.stuck_connections.set(round.stuck as u64);
        if is_thorough {
            self.thorough_at = now + THOROUGH;
            self.count_leftovers(round.connections - round.stuck);
            self.trim(self.shared.table.forget_gone(&open, now));
        }
        round
    }

    fn judge(&self, connection: &Connection, identity: Identity, all_busy: bool, round: &mut Round) {
        let shared = &self.shared;
        let Some(facts) = identity.facts() else { return };
        let mut state = lock(&connection.state);
        let Standing { doing, since, seen, .. } = *state;
        let now = Instant::now();
        let is_anybody_sleeping = allocator::is_anybody_sleeping();
        let look =
            Look { doing, since, facts, seen, now, all_busy, is_anybody_sleeping, deferred: shared.deferred };
        let (verdict, seen) = verdict(&look, &shared.table.limits);
        state.seen = seen;
        match verdict {
            Verdict::Keep => {}
            Verdict::Poke => round.pokes += 1,
            Verdict::Cut => {
                state.seen.is_cut = true;
                drop(state);
                shared.table.sockets.cut(identity);
                if seen.is_cut {
                    round.stuck += 1;
                } else {
                    shared.metrics.cut_connections.add(1);
                }
            }
        }
    }

    /// A head with a byte beyond ASCII is refused by tiny_http without a word (client.rs:92). Its thread waits until it
    /// was seen here. Where it is clear whose it was, its peer gets a word.
    fn tell_not_ascii(&mut self, open: &[(Arc<Connection>, Identity)]) {
        const WHAT: &str = "a request's head has a letter beyond ASCII, which cannot be read here: probably a cookie of \
             another program on this host, or a header that a proxy adds; leave it out, or have a proxy leave it out";
        let count = NOT_ASCII_HEADS.value();
        let new = count - std::mem::replace(&mut self.not_ascii_heads, count);
        if new == 0 {
            return;
        }
        let is_candidate = |(connection, identity): &&(Arc<Connection>, Identity)| {
            let is_read = |facts: Facts| facts.received > facts.unread;
            matches!(lock(&connection.state).doing, Doing::Arriving | Doing::Idle)
                && identity.facts().is_some_and(is_read)
        };
        let candidates: Vec<_> = open.iter().filter(is_candidate).collect();
        let peer = match candidates[..] {
            [(connection, identity)] if new == 1 => {
                self.shared.table.sockets.send(*identity, &Answer::refusal(400, WHAT).last_bytes());
                connection.peer.to_string()
            }
            _ => "somebody".to_owned(),
        };
        allocator::see_heads(count);
        self.shared.log.line(|| format!("{peer} was refused: {WHAT}"));
    }

    /// Counts the threads of tiny_http's that work for no connection, at least so many for a while.
    fn count_leftovers(&mut self, connections: usize) {
        let Some(threads) = threads_of_process() else { return };
        let ours = OWN_THREADS + self.shared.threads.load(Ordering::Relaxed);
        self.leftovers.rotate_right(1);
        self.leftovers[0] = threads.saturating_sub(ours + connections);
        let least = self.leftovers.into_iter().min().unwrap_or(0);
        self.shared.leftovers.store(least, Ordering::Relaxed);
    }

    /// Gives memory back to the system when a crowd has gone.
    fn trim(&mut self, gone: usize) {
        if gone > CROWD {
            self.trims_left = TRIMS;
        }
        if self.trims_left > 0 {
            self.trims_left -= 1;
            allocator::return_memory();
        }
    }
}

fn threads_of_process() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Threads:"))?.trim().parse().ok()
}

/// A connection that ends at once: the worker of tiny_http's that takes it goes on to one that waits behind busy ones.
/// Waits for nothing.
pub(super) fn poke(address: SocketAddr) -> io::Result<()> {
    let address = own_address(address);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // On the way when this returns, and so is its end.
    socket.connect(&address.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);

    fn limits() -> Limits {
        Limits { idle: IDLE, ..Limits::all(HEAD) }
    }

    fn facts(received: u64, unread: u64) -> Facts {
        Facts { received, unread, is_open: true }
    }

    #[test]
    fn a_poke_is_on_its_way_before_anybody_has_taken_it() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        // Nobody accepts, and after the first of them there is no more room.
        for _ in 0..MAX_POKES {
            let error = poke(address).expect_err("it does not wait to be connected");
            assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
        }
    }

    /// The verdict on a connection that has been doing something for so many seconds, and has had a head on its way for
    /// so many; `received` is what the keeper remembers.
    fn judged(doing: Doing, age: u64, facts: Facts, received: Option<u64>, head: Option<u64>) -> Verdict {
        let start = Instant::now();
        let now = start + Duration::from_secs(1_000);
        let ago = |seconds: u64| start + Duration::from_secs(1_000 - seconds);
        let seen = Seen { received, head_since: head.map(ago), is_cut: false };
        let (all_busy, is_anybody_sleeping, deferred) = (false, false, Duration::from_secs(7));
        let look = Look { doing, since: ago(age), facts, seen, now, all_busy, is_anybody_sleeping, deferred };
        verdict(&look, &limits()).0
    }

    #[test]
    fn each_kind_of_connection_has_its_time() {
        use Verdict::{Cut, Keep, Poke};
        let answering = Doing::Answering { body_until: None };
        let table = [
            ("new and silent", Doing::Arriving, 2, facts(0, 0), Some(0), Some(2), Keep),
            ("silent since before it was accepted", Doing::Arriving, 4, facts(0, 0), Some(0), Some(4), Cut),
            ("unread at the first look", Doing::Arriving, 0, facts(9, 9), None, None, Keep),
            ("unread at the second", Doing::Arriving, 1, facts(9, 9), Some(0), None, Poke),
            ("unread for long, which is ours", Doing::Arriving, 99, facts(9, 9), Some(0), None, Poke),
            ("half a head", Doing::Arriving, 9, facts(9, 0), Some(0), Some(9), Keep),
            ("half a head for too long", Doing::Arriving, 11, facts(9, 0), Some(0), Some(11), Cut),
            ("idle", Doing::Idle, 70, facts(50, 0), Some(50), None, Keep),
            ("idle for too long", Doing::Idle, 76, facts(50, 0), Some(50), None, Cut),
            ("a second head begins", Doing::Idle, 30, facts(51, 0), Some(50), None, Keep),
            ("a second head drips", Doing::Idle, 30, facts(57, 0), Some(50), Some(11), Cut),
            ("answered for long", answering, 500, facts(50, 0), Some(50), None, Keep),
            ("answered, and more came", answering, 500, facts(900, 50), Some(50), None, Keep),
            ("a stream", Doing::Streaming, 500, facts(50, 0), Some(50), None, Keep),
            ("closed, and still there", Doing::Closed, 0, facts(50, 0), None, None, Cut),
        ];
        for (what, doing, age, facts, received, head, expected) in table {
            assert_eq!(judged(doing, age, facts, received, head), expected, "{what}");
        }
    }

    #[test]
    fn a_body_has_until_its_deadline() {
        let start = Instant::now();
        let now = start + 2 * HEAD;
        let seen = Seen::default();
        let look = |until: Instant| Look {
            doing: Doing::Answering { body_until: Some(until) },
            since: now,
            facts: facts(50, 0),
            seen,
            now,
            all_busy: true,
            is_anybody_sleeping: false,
            deferred: Duration::ZERO,
        };
        let limits = limits();
        assert_eq!(verdict(&look(now + HEAD), &limits).0, Verdict::Keep);
        assert_eq!(verdict(&look(start + HEAD), &limits).0, Verdict::Cut);
    }

    #[test]
    fn a_head_behind_an_answer_is_timed_while_somebody_sleeps_and_not_while_all_are_busy() {
        let start = Instant::now();
        let now = start + 2 * HEAD;
        let limits = limits();
        let judge = |doing: Doing, is_anybody_sleeping: bool, all_busy: bool| {
            let seen = Seen { received: Some(50), head_since: Some(start), is_cut: false };
            let (facts, deferred) = (facts(900, 100), Duration::ZERO);
            let look = Look { doing, since: now, facts, seen, now, all_busy, is_anybody_sleeping, deferred };
            verdict(&look, &limits)
        };
        for doing in [Doing::Streaming, Doing::Answering { body_until: None }] {
            assert_eq!(judge(doing, true, false).0, Verdict::Cut, "{doing:?}");
            assert_eq!(judge(doing, false, false).0, Verdict::Keep, "{doing:?}");
            // It begins anew: its request may be in the queue by now.
            let (verdict, seen) = judge(doing, true, true);
            assert_eq!((verdict, seen.head_since), (Verdict::Keep, Some(now)), "{doing:?}");
        }
    }
}
