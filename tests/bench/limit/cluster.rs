//! Several servers on one Redis, measured by a single server in the same round.
//!
//! `main` runs it as the part `cluster`. Servers, Redis and the load share two cores, the single server too. Beside it,
//! where they are to be had, two nginx with nchan on the same Redis: whatever is published at one is heard at the other.

use std::io;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use crate::load::{Crowd, Plan, ask};
use crate::process::{Kind, Process, free_both_cores, has_nchan};
use crate::redis::Redis;
use crate::{BURST, Bench, Done};

const PART: &str = "cluster";

/// How often each is measured in one round, in turns.
const TURNS: usize = 2;

/// Servers of one kind, and what they share.
struct Servers {
    kind: Kind,
    all: Vec<Process>,
    redis: Option<Redis>,
}

impl Servers {
    fn start(kind: Kind) -> io::Result<Servers> {
        let redis = (kind != Kind::Statecast).then(Redis::start);
        if let Some(redis) = &redis {
            free_both_cores(redis.process())?;
        }
        let url = redis.as_ref().map(Redis::url);
        let count = match kind {
            Kind::Statecast => 1,
            Kind::Cluster => 3,
            _ => 2,
        };
        let all = (0..count).map(|_| Process::start_beside(kind, url.as_deref()));
        let all = all.collect::<io::Result<Vec<_>>>()?;
        if kind == Kind::NchanRedis {
            // Its subscribers start at the newest message.
            ask(all[0].address, "POST", "/pub", "@00.00000000@")?;
        }
        Ok(Servers { kind, all, redis })
    }

    /// Subscribers of the last server, to whom is published at so many of the first ones.
    fn crowd(&self, count: usize, publish_at: usize) -> io::Result<Crowd> {
        let last = self.all.last().expect("a server").address;
        let mut crowd = Crowd::new(last, self.kind.dialect(), 1)?;
        crowd.publish_at =
            self.all.iter().take(publish_at).map(|server| server.address).collect::<Vec<SocketAddr>>();
        crowd.connect(count, BURST)?;
        sleep(Duration::from_millis(300));
        Ok(crowd)
    }
}

impl Bench {
    /// One round of what Redis costs.
    pub fn cluster(&mut self) -> Done {
        let mut kinds = vec![Kind::Statecast, Kind::Cluster];
        if has_nchan() {
            kinds.push(Kind::NchanRedis);
        }
        let base = Some(Kind::Statecast);
        let steady =
            Plan { publishers: 1, size: 200, per_second: Some(100.0), time: self.seconds(3.0), topics: 1 };
        let flat_out = Plan { publishers: 16, per_second: None, time: self.seconds(2.0), ..steady };
        let at_work = kinds.iter().map(|kind| Servers::start(*kind)).collect::<io::Result<Vec<_>>>()?;
        for servers in &at_work {
            let mut done = crate::load::Outcome::default();
            for _ in 0..TURNS {
                done.add(servers.crowd(10, 1)?.run(&steady)?);
            }
            let mut note = |name: &str, time: Duration| {
                self.report.note(PART, name, "ms", base, servers.kind, time.as_secs_f64() * 1e3);
            };
            note("delivery on another server, p50, 100 events/s", done.latency(0.5));
            note("delivery on another server, p99, 100 events/s", done.latency(0.99));
            note("answer, p50, 100 writes/s", done.answer(0.5));
            note("answer, p99, 100 writes/s", done.answer(0.99));
        }
        let mut single = 0.0;
        for servers in &at_work {
            for (publishers, at) in [(1, 1), (16, 1), (48, 3)] {
                let plan = Plan { publishers, ..flat_out };
                // One server has no others: 16 writers are as many as it takes.
                if servers.kind == Kind::Statecast && at > 1 {
                    continue;
                }
                let done = servers.crowd(1, at)?.run(&plan)?;
                let rate = done.deliveries as f64 / done.time.as_secs_f64();
                let name = match (publishers, at) {
                    (1, _) => "publishes a second, 1 writer",
                    (_, 1) => "publishes a second, 16 writers on one server",
                    _ => "publishes a second, 48 writers over all, to 16 on a single one",
                };
                if at > 1 && servers.kind == Kind::Cluster {
                    self.report.note(PART, name, "publishes/s", base, Kind::Statecast, single);
                }
                if (servers.kind, publishers) == (Kind::Statecast, 16) {
                    single = rate;
                }
                self.report.note(PART, name, "publishes/s", base, servers.kind, rate);
            }
        }
        let clients = self.clients(1_000);
        for servers in at_work.iter().filter(|servers| servers.kind != Kind::NchanRedis) {
            // So many that delivering is what limits it.
            let done = servers.crowd(clients, 1)?.run(&flat_out)?;
            let rate = done.deliveries as f64 / done.time.as_secs_f64();
            let name = "deliveries a second, 1,000 subscribers of one server, 16 writers";
            self.report.note(PART, name, "deliveries/s", base, servers.kind, rate);
        }
        let cluster = &at_work[1];
        let redis = cluster.redis.as_ref().expect("it has one");
        let commands = || redis.info("stats", "total_commands_processed").parse::<f64>();
        let (before, time) = (commands()?, self.seconds(5.0));
        sleep(time);
        // The question itself is one.
        let idle = (commands()? - before - 1.0) / time.as_secs_f64() / cluster.all.len() as f64;
        self.report.note(PART, "commands a second of an idle server", "", None, Kind::Cluster, idle);
        Ok(())
    }
}
