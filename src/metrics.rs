//! Counters, for `GET /metrics` in the Prometheus text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only rises.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds, and returns the sum.
    pub fn add(&self, count: u64) -> u64 {
        self.0.fetch_add(count, Ordering::Relaxed) + count
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// Panics in tiny_http's threads, and heads that it refuses without a word. They are counted for the whole process, because
/// a thread of tiny_http does not know its server.
pub(crate) static TINY_HTTP_PANICS: Counter = Counter(AtomicU64::new(0));
pub(crate) static NOT_ASCII_HEADS: Counter = Counter(AtomicU64::new(0));

/// What a server has done since it started.
#[derive(Default)]
pub(crate) struct Metrics {
    pub requests: Counter,
    pub refusals: Counter,
    pub writes: Counter,
    pub one_off_events: Counter,
    pub streams: Counter,
    pub deliveries: Counter,
    pub passes: Counter,
    pub pass_micros: Counter,
    pub behind: Counter,
    pub lagged: Counter,
    pub gone: Counter,
    pub save_faults: Counter,
    pub rebuilt_listeners: Counter,
    pub unfound_sockets: Counter,
    pub cut_connections: Counter,
    pub abandoned_requests: Counter,
    pub stuck_connections: Gauge,
    #[cfg(feature = "redis")]
    pub journal: JournalMetrics,
}

/// What a server has done that shares with others.
#[cfg(feature = "redis")]
#[derive(Default)]
pub(crate) struct JournalMetrics {
    pub connected: Gauge,
    pub batches: Counter,
    pub conflicts: Counter,
    pub reconnects: Counter,
    pub restored: Counter,
    pub branches: Counter,
    pub divergences: Counter,
}

impl Metrics {
    /// The text for `GET /metrics`: the counters, and the hub's numbers of clients and of bytes in its history.
    pub fn text(&self, clients: usize, history_bytes: usize) -> String {
        let counters = [
            ("requests", "Requests taken", &self.requests),
            ("refusals", "Requests answered with 4xx or 5xx", &self.refusals),
            ("writes", "Changes of the document accepted", &self.writes),
            ("one_off_events", "One-off events accepted", &self.one_off_events),
            ("streams", "Event streams opened", &self.streams),
            ("deliveries", "Events written to live clients", &self.deliveries),
            ("behind", "Writes that did not complete; the client was caught up", &self.behind),
            ("lagged", "Clients that history could not catch up; they got the document", &self.lagged),
            ("gone", "Clients removed because a write failed or made no progress", &self.gone),
            ("save_faults", "Times the document could not be saved", &self.save_faults),
            ("rebuilt_listeners", "Times a dead tiny_http was replaced", &self.rebuilt_listeners),
            ("unfound_sockets", "Streams whose socket was not found", &self.unfound_sockets),
            ("cut_connections", "Connections cut for being too slow or idle", &self.cut_connections),
            ("abandoned_requests", "Requests stuck, each a thread lost for good", &self.abandoned_requests),
            ("not_ascii_heads", "Heads refused for not being ASCII, in this process", &NOT_ASCII_HEADS),
            ("tiny_http_panics", "Threads of tiny_http that panicked, in this process", &TINY_HTTP_PANICS),
        ];
        let mut text = String::new();
        let mut put = |name: &str, help: &str, kind: &str, value: u64| {
            writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n{name} {value}")
                .expect("writing to a String cannot fail");
        };
        for (name, help, counter) in counters {
            put(&format!("statecast_{name}_total"), help, "counter", counter.value());
        }
        #[cfg(feature = "redis")]
        {
            let journal = &self.journal;
            let connected = journal.connected.0.load(Ordering::Relaxed);
            put("statecast_redis_connected", "Whether Redis can be used", "gauge", connected);
            for (name, help, counter) in [
                ("batches", "Batches appended to Redis", &journal.batches),
                ("conflicts", "Batches that came too late, and were judged again", &journal.conflicts),
                ("reconnects", "Times Redis was back", &journal.reconnects),
                ("restored", "Times Redis got back what it had lost", &journal.restored),
                ("branches_taken", "Times Redis had something else, and that was taken", &journal.branches),
                ("divergences", "Documents that were not those of Redis; must be 0", &journal.divergences),
            ] {
                put(&format!("statecast_redis_{name}_total"), help, "counter", counter.value());
            }
        }
        put("statecast_clients", "Open event streams", "gauge", clients as u64);
        let stuck = self.stuck_connections.0.load(Ordering::Relaxed);
        put(
            "statecast_stuck_connections",
            "Cut connections that tiny_http keeps, each a thread lost",
            "gauge",
            stuck,
        );
        put("statecast_history_bytes", "What history holds", "gauge", history_bytes as u64);
        let (count, micros) = (self.passes.value(), self.pass_micros.value());
        let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
        text + &format!(
            "# HELP statecast_pass_seconds Passes of a fan-out thread over its clients.\n\
             # TYPE statecast_pass_seconds summary\n\
             statecast_pass_seconds_sum {seconds}.{micros:06}\nstatecast_pass_seconds_count {count}\n"
        )
    }
}
