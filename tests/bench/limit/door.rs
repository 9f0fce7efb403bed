//! A crowd at the door: streams that come all at once, and leave all at once.
//!
//! `main` runs it as the part `door`. Each server gets the same crowd, one after the other and several times in a round.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::load::{Crowd, ask};
use crate::process::{Kind, Process, has_nchan};
use crate::{BURST, Bench, Done, until_gone};

const PART: &str = "door";

/// How often each server gets a crowd in one round.
const TURNS: usize = 3;

impl Bench {
    /// One round of crowds that come and go.
    pub fn door(&mut self) -> Done {
        let mut kinds = vec![Kind::PerEvent, Kind::Statecast];
        if has_nchan() {
            kinds.push(Kind::Nchan);
        }
        let count = self.clients(2_000);
        let mut sums = vec![[Duration::ZERO; 3]; kinds.len()];
        for _ in 0..TURNS {
            for (kind, [come, cpu, gone]) in kinds.iter().zip(&mut sums) {
                let server = start(*kind)?;
                let before = server.cpu();
                let (crowd, time) = crowd(&server, count)?;
                *come += time;
                *cpu += server.cpu().saturating_sub(before);
                *gone += until_gone(&server, crowd)?;
            }
        }
        let all = (count * TURNS) as f64;
        for (kind, [come, cpu, gone]) in kinds.iter().zip(sums) {
            let mut note = |name: &str, unit, value| {
                self.report.note(PART, name, unit, Some(Kind::PerEvent), *kind, value);
            };
            note("new streams a second", "streams/s", all / come.as_secs_f64());
            note("CPU of a new stream", "µs", cpu.as_secs_f64() * 1e6 / all);
            note("2,000 that left are gone", "ms", gone.as_secs_f64() * 1e3 / TURNS as f64);
        }
        for kind in kinds {
            let begin = Instant::now();
            let server = start(kind)?;
            let (_crowd, _) = crowd(&server, self.clients(5_000))?;
            let live = begin.elapsed().as_secs_f64() * 1e3;
            self.report.note(PART, "5,000 are live after a restart", "ms", Some(Kind::PerEvent), kind, live);
            sleep(Duration::from_secs(2));
            let threads = server.usage().threads as f64;
            self.report.note(PART, "threads 2 s after 5,000 came", "", None, kind, threads);
        }
        Ok(())
    }
}

fn start(kind: Kind) -> std::io::Result<Process> {
    let server = Process::start(kind)?;
    if kind == Kind::Nchan {
        // Its subscribers start at the newest message.
        ask(server.address, "POST", "/pub", "@00.00000000@")?;
    }
    Ok(server)
}

/// So many that come at once, and how long it takes until each has its `init`.
fn crowd(server: &Process, count: usize) -> std::io::Result<(Crowd, Duration)> {
    let mut crowd = Crowd::new(server.address, server.kind.dialect(), 1)?;
    let begin = Instant::now();
    crowd.connect(count, BURST)?;
    Ok((crowd, begin.elapsed()))
}
