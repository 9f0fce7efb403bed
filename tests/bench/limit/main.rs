//! How near statecast comes to what the kernel allows.
//!
//! `cargo bench` measures everything in about fifteen minutes; `cargo bench -- fan-out` one part of it, `--quick` in
//! seconds. Beside statecast, as it is shipped, runs a server that only sends bytes to sockets (`bare`), in turns and
//! in the same run; what comes out are ratios between the two. Each has one core, and the load another.
//!
//! This file says what is measured; `load` does it, `process` runs the servers, `report` shows what came out.

mod bare;
mod door;
mod load;
mod process;
mod report;

use std::error::Error;
use std::io::{self, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use load::{Crowd, Dialect, Outcome, Plan, ask, passes};
use process::{Kind, Process, STATECAST, has_nchan, has_two_cores, stay_on_the_other_core};
use report::{Report, draw};

const USAGE: &str = "usage: cargo bench -- [--quick] [fan-out] [cores] [door] [memory] [growth]";

/// As many connections as one likes, as fast as they go.
const BURST: f64 = f64::INFINITY;

type Done = Result<(), Box<dyn Error>>;

fn main() -> Done {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["serve", mode, init_bytes] = words[..] {
        return Ok(bare::serve(mode == "all-pending", init_bytes.parse()?)?);
    }
    // `cargo test --all-targets` runs benchmarks, too, and without this word.
    if !words.contains(&"--bench") {
        println!("{USAGE}");
        return Ok(());
    }
    let all = ["fan-out", "cores", "door", "memory", "growth"];
    let mut parts = Vec::new();
    let mut quick = false;
    for word in words {
        match word {
            "--bench" => {}
            "--quick" => quick = true,
            part if all.contains(&part) => parts.push(part),
            _ => return Err(USAGE.into()),
        }
    }
    let parts = if parts.is_empty() { all.to_vec() } else { parts };
    if !has_two_cores() {
        println!("one core: the load takes time from the server, and ratios are lower than they would be");
    }
    stay_on_the_other_core()?;
    let mut bench = Bench { report: Report::default(), quick };
    let begin = Instant::now();
    for round in 1..=if quick { 1 } else { 3 } {
        for part in &parts {
            println!("round {round}: {part}, after {} s", begin.elapsed().as_secs());
            match *part {
                "fan-out" => bench.fan_out()?,
                "cores" => bench.cores()?,
                "door" => bench.door()?,
                "memory" => bench.memory()?,
                _ => bench.growth()?,
            }
        }
    }
    println!("\n{}", bench.report.table());
    if !quick {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench");
        let (json, picture) = (folder.join("limit.json"), folder.join("limit.svg"));
        bench.report.write_json(&json)?;
        draw(&json, &picture)?;
        println!("written to {} and {}", json.display(), picture.display());
    }
    Ok(())
}

struct Bench {
    report: Report,
    quick: bool,
}

impl Bench {
    fn seconds(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64(if self.quick { seconds / 4.0 } else { seconds })
    }

    fn clients(&self, count: usize) -> usize {
        if self.quick { count.div_ceil(5) } else { count }
    }

    /// One round of everything that has to do with events that go to many.
    fn fan_out(&mut self) -> Done {
        const PART: &str = "fan-out";
        let base = Some(Kind::PerEvent);
        let clients = self.clients(1_000);
        let mut kinds = vec![Kind::PerEvent, Kind::AllPending, Kind::Statecast];
        if has_nchan() {
            kinds.push(Kind::Nchan);
        }
        let flat_out =
            Plan { publishers: 1, size: 200, per_second: None, time: self.seconds(1.0), topics: 1 };
        let steady = Plan { per_second: Some(20.0), ..flat_out };
        // Each anew: a connection that has just carried all it can is paced by the kernel afterwards.
        let begin_all =
            || -> io::Result<Vec<_>> { kinds.iter().map(|kind| begin(*kind, clients, 1)).collect() };
        for publishers in [1, 16] {
            let name = format!("flat out, {publishers} publisher{}", if publishers > 1 { "s" } else { "" });
            for (kind, done) in in_turns(&mut begin_all()?, 2, &Plan { publishers, ..flat_out })? {
                let rate = done.deliveries as f64 / done.time.as_secs_f64();
                self.report.note(PART, &name, "deliveries/s", base, kind, rate);
                if matches!(kind, Kind::AllPending | Kind::Statecast) {
                    let name = format!("{name}, to all pending");
                    self.report.note(PART, &name, "deliveries/s", Some(Kind::AllPending), kind, rate);
                }
            }
        }
        let mut at_work = begin_all()?;
        let mut undisturbed = Duration::ZERO;
        for (kind, done) in in_turns(&mut at_work, 6, &steady)? {
            self.report.note(PART, "CPU per delivery", "µs", base, kind, done.cpu_per_delivery());
            for (name, quantile) in [("latency p50", 0.5), ("latency p99", 0.99), ("latency max", 1.0)] {
                let ms = done.latency(quantile).as_secs_f64() * 1e3;
                self.report.note(PART, name, "ms", base, kind, ms);
            }
            if kind == Kind::Statecast {
                undisturbed = done.latency(0.99);
            }
        }
        for (server, mut crowd) in at_work {
            let kind = server.kind;
            if kind == Kind::Statecast {
                let stalled = stall(&server, &mut crowd, 10)?;
                let disturbed = crowd.run(&Plan { time: self.seconds(4.0), ..steady })?.latency(0.99);
                drop(stalled);
                let ratio = disturbed.as_secs_f64() / undisturbed.as_secs_f64();
                self.report.note(PART, "p99 with 10 stalled clients, to p99 without", "x", None, kind, ratio);
            }
        }
        for kind in kinds {
            let server = Process::start(kind)?;
            self.report.note(PART, "cold start", "ms", None, kind, server.start.as_secs_f64() * 1e3);
        }
        Ok(())
    }

    /// One round of more threads on more cores, each measured by statecast with one thread on one core.
    fn cores(&mut self) -> Done {
        const PART: &str = "cores";
        let clients = self.clients(4_000);
        let steady =
            Plan { publishers: 1, size: 200, per_second: Some(10.0), time: self.seconds(2.0), topics: 1 };
        let most = if has_two_cores() { 2 } else { 1 };
        let mut cases: Vec<_> = [(1, 1), (2, 1), (2, most), (4, most)]
            .map(|(threads, cores)| (Kind::Statecast, threads, cores))
            .into();
        if has_nchan() {
            cases.extend([(Kind::Nchan, 1, 1), (Kind::Nchan, most, most)]);
        }
        let mut passing = vec![Vec::new(); cases.len()];
        let mut latencies = vec![Vec::new(); cases.len()];
        for _ in 0..3 {
            for (case, (kind, threads, cores)) in cases.iter().enumerate() {
                let server = Process::start_with_threads(*kind, *threads, *cores)?;
                let mut crowd = listen(&server, clients, 1)?;
                let done = crowd.run(&steady)?;
                latencies[case].push([0.5, 0.99].map(|quantile| done.latency(quantile).as_secs_f64()));
                if *kind == Kind::Statecast {
                    passing[case].push(pass_seconds(&server, *threads)?);
                }
            }
        }
        for (case, (kind, threads, cores)) in cases.into_iter().enumerate() {
            let mut note = |what: &str, all: &[Vec<[f64; 2]>], index: usize| {
                let of = |case: usize| median(all[case].iter().map(|both| both[index]));
                let name = format!("{what}, {threads} on {cores} of the cores, to 1 on 1");
                self.report.note(PART, &name, "x", None, kind, of(case) / of(0));
            };
            if kind == Kind::Statecast {
                // Threads that share a core pass one after the other, and then a pass of one says little.
                if threads <= cores {
                    note("a pass over 4,000 subscribers that sleep", &passing, 0);
                }
                note("processor time of an event to 4,000 that sleep", &passing, 1);
            }
            note("latency p50 of 4,000 subscribers that read", &latencies, 0);
            note("latency p99 of 4,000 subscribers that read", &latencies, 1);
        }
        let ms = median(passing[0].iter().map(|both| both[0])) * 1e3;
        self.report.note(PART, "a pass over 4,000 subscribers, 1 thread", "ms", None, Kind::Statecast, ms);
        Ok(())
    }

    /// One round of what idle streams cost.
    fn memory(&mut self) -> Done {
        const PART: &str = "memory";
        let kind = Kind::Statecast;
        let mut note = |name: &str, unit, value| self.report.note(PART, name, unit, None, kind, value);
        for (name, count, per_second) in [
            ("1,000 a second", 2_000, 1_000.0),
            ("a burst of 5,000", 5_000, BURST),
            ("10,000", 10_000, 2_000.0),
        ] {
            let count = if self.quick { count / 10 } else { count };
            let server = Process::start(kind)?;
            sleep(Duration::from_millis(500));
            let start = server.usage();
            if name == "1,000 a second" {
                note("resident with nothing connected", "KiB", start.resident_kib);
                note("the program's file", "KiB", std::fs::metadata(STATECAST)?.len() as f64 / 1_024.0);
            }
            let mut crowd = Crowd::new(server.address, kind.dialect(), 1)?;
            crowd.connect(count, per_second)?;
            // The request threads of a burst end within seconds, tiny_http's five seconds after their last connection.
            let most = start.threads + 8;
            let deadline = Instant::now() + Duration::from_secs(15);
            while server.usage().threads > most && Instant::now() < deadline {
                sleep(Duration::from_millis(100));
            }
            let full = server.usage();
            let each = (full.resident_kib - start.resident_kib) / count as f64;
            note(&format!("an idle stream, {name}"), "KiB", each);
            let descriptors = (full.descriptors - start.descriptors) as f64 / count as f64;
            note(&format!("its descriptors, {name}"), "", descriptors);
            note(&format!("threads more, {name}"), "", full.threads as f64 - start.threads as f64);
            until_gone(&server, crowd)?;
            let deadline = Instant::now() + Duration::from_secs(15);
            let mut left = f64::INFINITY;
            while left > 1_024.0 && Instant::now() < deadline {
                sleep(Duration::from_millis(200));
                left = left.min(server.usage().resident_kib - start.resident_kib);
            }
            note(&format!("left when they are gone, {name}"), "KiB", left);
        }
        Ok(())
    }

    /// One round of more clients, more topics, larger events, larger documents.
    fn growth(&mut self) -> Done {
        const PART: &str = "growth";
        let base = Some(Kind::PerEvent);
        let plan = |clients: usize, size: usize, topics: usize, quick: Duration| {
            // About 20,000 deliveries a second, and no more than 100 MB.
            let rate = (20_000.0f64.min(1e8 / size as f64) / clients as f64).min(200.0);
            (clients, Plan { publishers: 1, size, per_second: Some(rate), time: quick, topics })
        };
        let time = self.seconds(0.5);
        let mut cases = Vec::new();
        for clients in [10, 100, 1_000, 10_000] {
            cases.push((format!("CPU per delivery, {clients} clients"), plan(clients, 200, 1, time)));
        }
        for topics in [100, 1_000] {
            cases.push((
                format!("CPU per delivery, 1000 clients, {topics} topics"),
                plan(1_000, 200, topics, time),
            ));
        }
        for (size, text) in [(20, "20 B"), (4 << 10, "4 KiB"), (64 << 10, "64 KiB")] {
            cases
                .push((format!("CPU per delivery, 100 clients, events of {text}"), plan(100, size, 1, time)));
        }
        for (name, (clients, plan)) in cases {
            let clients = self.clients(clients);
            let servers = [(Kind::PerEvent, 1), (Kind::Statecast, plan.topics)];
            // Two crowds of 10,000 are more sockets than most processes may have.
            for servers in servers.chunks(if clients < 10_000 { 2 } else { 1 }) {
                let begun = servers.iter().map(|(kind, topics)| begin(*kind, clients, *topics));
                let mut at_work = begun.collect::<io::Result<Vec<_>>>()?;
                for (kind, done) in in_turns(&mut at_work, 4, &plan)? {
                    self.report.note(PART, &name, "µs", base, kind, done.cpu_per_delivery());
                }
            }
        }
        for kind in [Kind::PerEvent, Kind::Statecast] {
            let server = Process::start_with_init(kind, 1_000_000)?;
            if kind == Kind::Statecast {
                let topics: Vec<String> =
                    (0..1_000).map(|number| format!("\"d{number}\":\"{}\"", "x".repeat(980))).collect();
                ask(server.address, "PUT", "/state", &format!("{{{}}}", topics.join(",")))?;
            }
            let mut crowd = Crowd::new(server.address, kind.dialect(), 1)?;
            let count = self.clients(300);
            let before = server.cpu();
            crowd.connect(count, 200.0)?;
            let cpu = server.cpu().saturating_sub(before).as_secs_f64() * 1e3 / count as f64;
            self.report.note(PART, "CPU per connect, document of 1 MB", "ms", base, kind, cpu);
        }
        Ok(())
    }
}

/// Runs a plan on each of several servers, so many times in turns: whatever slows the machine down for a moment, or
/// another thing that runs on it, slows them all.
fn in_turns(at_work: &mut [(Process, Crowd)], turns: usize, plan: &Plan) -> io::Result<Vec<(Kind, Outcome)>> {
    let mut all: Vec<_> = at_work.iter().map(|(server, _)| (server.kind, Outcome::default())).collect();
    for _ in 0..turns {
        for ((server, crowd), (_, outcome)) in at_work.iter_mut().zip(&mut all) {
            let before = server.cpu();
            outcome.add(crowd.run(plan)?);
            outcome.cpu += server.cpu().saturating_sub(before);
        }
    }
    Ok(all)
}

/// How long a pass takes, each thread over its part, while nobody reads; and the processor time of all for an event.
fn pass_seconds(server: &Process, threads: usize) -> io::Result<[f64; 2]> {
    const EVENTS: usize = 20;
    let text = "x".repeat(200);
    let cpu = server.cpu();
    let (before, seconds_before) = passes(server.address)?;
    for event in 1..=EVENTS {
        ask(server.address, "POST", "/events", &text)?;
        // Whoever asks takes time from the server, so not often.
        while passes(server.address)?.0 < before + (event * threads) as f64 {
            sleep(Duration::from_millis(20));
        }
    }
    let (after, seconds) = passes(server.address)?;
    let cpu = server.cpu().saturating_sub(cpu).as_secs_f64();
    Ok([(seconds - seconds_before) / (after - before), cpu / EVENTS as f64])
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A server, and a crowd that listens to it.
fn begin(kind: Kind, clients: usize, topics: usize) -> io::Result<(Process, Crowd)> {
    let server = Process::start(kind)?;
    let crowd = listen(&server, clients, topics)?;
    Ok((server, crowd))
}

/// A crowd that listens to a server that was just started.
fn listen(server: &Process, clients: usize, topics: usize) -> io::Result<Crowd> {
    if server.kind == Kind::Nchan {
        // Its subscribers start at the newest message.
        ask(server.address, "POST", "/pub", "@00.00000000@")?;
    }
    let mut crowd = Crowd::new(server.address, server.kind.dialect(), topics)?;
    crowd.connect(clients, BURST)?;
    sleep(Duration::from_millis(300));
    Ok(crowd)
}

/// Subscribers that read nothing, and so much published that their sockets take no more.
fn stall(server: &Process, crowd: &mut Crowd, count: usize) -> io::Result<Vec<TcpStream>> {
    let mut stalled = Vec::new();
    for _ in 0..count {
        let mut connection = narrow(server)?;
        write!(connection, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        stalled.push(connection);
    }
    let time = Duration::from_millis(600);
    crowd.run(&Plan { publishers: 1, size: 8 << 10, per_second: Some(100.0), time, topics: 1 })?;
    Ok(stalled)
}

/// A connection that takes next to nothing before it is read.
fn narrow(server: &Process) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_recv_buffer_size(1)?;
    socket.connect(&server.address.into())?;
    Ok(socket.into())
}

/// How long it takes until a server has closed the connections of a crowd that is gone: it is told events, 20 a
/// second.
fn until_gone(server: &Process, crowd: Crowd) -> io::Result<Duration> {
    let most = server.descriptors().saturating_sub(crowd.len() * 9 / 10);
    drop(crowd);
    let begin = Instant::now();
    let mut publisher = TcpStream::connect(server.address)?;
    if server.kind.dialect() == Dialect::Bare {
        publisher.write_all(b"P")?;
    }
    let mut publish_at = begin;
    while server.descriptors() > most {
        if begin.elapsed() > Duration::from_secs(60) {
            return Err(io::Error::other("a crowd that left is still there"));
        }
        if Instant::now() >= publish_at {
            publish_at += Duration::from_millis(50);
            match server.kind {
                Kind::PerEvent | Kind::AllPending => publisher.write_all(b"\0\0\0\x061\r\nx\r\n")?,
                Kind::Statecast => ask(server.address, "POST", "/events", "@")?,
                Kind::Nchan => ask(server.address, "POST", "/pub", "@")?,
            }
        }
        sleep(Duration::from_millis(2));
    }
    Ok(begin.elapsed())
}
