//! The servers that are measured, each a process of its own on a core of its own.
//!
//! `main` starts them; they end when dropped. What they use is read from `/proc`.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::load::{Dialect, ask};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The bare limit, one send for each event and subscriber.
    PerEvent,
    /// The bare limit, one send for each subscriber of all that is pending.
    AllPending,
    Statecast,
    /// nginx with its module nchan, where it is installed.
    Nchan,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::PerEvent => "bare, a send an event",
            Kind::AllPending => "bare, all pending",
            Kind::Statecast => "statecast",
            Kind::Nchan => "nginx + nchan",
        }
    }

    pub fn dialect(self) -> Dialect {
        match self {
            Kind::PerEvent | Kind::AllPending => Dialect::Bare,
            Kind::Statecast => Dialect::Statecast,
            Kind::Nchan => Dialect::Nchan,
        }
    }
}

/// The program as it is shipped.
pub const STATECAST: &str = env!("CARGO_BIN_EXE_statecast");

/// Where the module is on Debian.
const NCHAN: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

pub fn has_nchan() -> bool {
    fs::exists(NCHAN).unwrap_or(false)
}

/// A server at work.
pub struct Process {
    child: Child,
    pub kind: Kind,
    pub address: SocketAddr,
    /// From the command to its first answer.
    pub start: Duration,
    folder: Option<PathBuf>,
}

/// What a process uses.
#[derive(Clone, Copy)]
pub struct Usage {
    pub resident_kib: f64,
    pub descriptors: usize,
    pub threads: usize,
}

impl Process {
    pub fn start(kind: Kind) -> io::Result<Process> {
        Process::start_with_init(kind, 2)
    }

    /// Starts a bare server whose `init` is as large as asked; the others are told their document.
    pub fn start_with_init(kind: Kind, init_bytes: usize) -> io::Result<Process> {
        Process::start_on(kind, init_bytes, "0", 1)
    }

    /// Starts statecast with so many fan-out threads, or nginx with so many workers, on so many of the first cores.
    pub fn start_with_threads(kind: Kind, threads: usize, cores: usize) -> io::Result<Process> {
        Process::start_on(kind, 2, &format!("0-{}", cores - 1), threads)
    }

    fn start_on(kind: Kind, init_bytes: usize, cores: &str, threads: usize) -> io::Result<Process> {
        let mut command = on_cores(cores);
        let mut folder = None;
        let mut port = 0;
        match kind {
            Kind::PerEvent | Kind::AllPending => {
                command.arg(std::env::current_exe()?);
                command.args(["serve", if kind == Kind::PerEvent { "per-event" } else { "all-pending" }]);
                command.arg(init_bytes.to_string());
            }
            Kind::Statecast => {
                // Heartbeats come when they come, and every subscriber is to get the same bytes.
                command.args([STATECAST, "--listen", "127.0.0.1:0", "--heartbeat", "1h"]);
                command.args(["--threads", &threads.to_string()]);
            }
            Kind::Nchan => {
                let place = std::env::temp_dir().join(format!("statecast-bench-{}", std::process::id()));
                fs::create_dir_all(&place)?;
                port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
                fs::write(place.join("nginx.conf"), nchan_configuration(port, threads))?;
                command.arg("nginx").arg("-p").arg(&place).args(["-c", "nginx.conf", "-e", "error.log"]);
                folder = Some(place);
            }
        }
        let begin = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = BufReader::new(child.stdout.take().expect("a pipe was asked for"));
        let mut process =
            Process { child, kind, address: ([127, 0, 0, 1], port).into(), start: Duration::ZERO, folder };
        if kind == Kind::Nchan {
            while ask(process.address, "GET", "/", "").is_err() {
                thread::sleep(Duration::from_millis(1));
            }
        } else {
            let line = stdout.lines().next().ok_or_else(|| io::Error::other("it did not start"))??;
            let address = line.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            process.address = address.parse().map_err(io::Error::other)?;
            if kind == Kind::Statecast {
                ask(process.address, "GET", "/healthz", "")?;
            }
        }
        process.start = begin.elapsed();
        Ok(process)
    }

    /// The processor time it has used so far, threads that have ended included.
    #[allow(unsafe_code)]
    pub fn cpu(&self) -> Duration {
        let mut clock = 0;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: both write to one place, which is there; what is no process is an error.
        let done = unsafe {
            libc::clock_getcpuclockid(self.child.id().cast_signed(), &raw mut clock) == 0
                && libc::clock_gettime(clock, &raw mut time) == 0
        };
        assert!(done, "a child that was not waited for has a clock");
        Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
    }

    pub fn usage(&self) -> Usage {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        Usage {
            resident_kib: field("VmRSS:") as f64,
            descriptors: self.descriptors(),
            threads: field("Threads:"),
        }
    }

    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.kind == Kind::Nchan {
            // Its workers end with it only if it is asked.
            Command::new("kill").arg(self.child.id().to_string()).status().ok();
        } else {
            self.child.kill().ok();
        }
        self.child.wait().ok();
        if let Some(folder) = &self.folder {
            fs::remove_dir_all(folder).ok();
        }
    }
}

/// Whether there is a core for the server and another for the load.
pub fn has_two_cores() -> bool {
    // As it was at the start: a load that stays on one core sees no other.
    static HAS_TWO: LazyLock<bool> =
        LazyLock::new(|| thread::available_parallelism().is_ok_and(|count| count.get() > 1));
    *HAS_TWO
}

/// A command that is kept on some cores, where there are two.
fn on_cores(cores: &str) -> Command {
    if !has_two_cores() {
        return Command::new("env");
    }
    let mut command = Command::new("taskset");
    command.args(["-c", cores]);
    command
}

/// Keeps this process on another core than the servers.
pub fn stay_on_the_other_core() -> io::Result<()> {
    if has_two_cores() {
        let process = std::process::id().to_string();
        let done =
            Command::new("taskset").args(["-a", "-c", "-p", "1", &process]).stdout(Stdio::null()).status()?;
        if !done.success() {
            return Err(io::Error::other("taskset could not pin the load"));
        }
    }
    Ok(())
}

fn nchan_configuration(port: u16, workers: usize) -> String {
    let master = if workers > 1 { "on" } else { "off" };
    format!(
        "load_module {NCHAN};
daemon off; master_process {master}; worker_processes {workers}; pid nginx.pid; worker_rlimit_nofile 20000;
events {{ worker_connections 15000; }}
http {{
    access_log off; tcp_nodelay on; nchan_shared_memory_size 256M; keepalive_requests 1000000000;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = / {{ return 200 ok; }}
        location = /pub {{ nchan_publisher; nchan_channel_id bench; nchan_message_buffer_length 10000; }}
        location = /sub {{ nchan_subscriber eventsource; nchan_channel_id bench; nchan_subscriber_first_message newest; }}
    }}
}}
"
    )
}
