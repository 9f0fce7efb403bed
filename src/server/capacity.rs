//! What this machine carries: clients by descriptors and by memory, requests by threads.
//!
//! `server` asks once, at the start, and takes the least of this and of what was configured. So it refuses a client in
//! good order before the kernel refuses a descriptor or memory. What cannot be found out limits nothing.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Descriptors that are not for clients: those of the process, and those of requests under way.
const RESERVED_DESCRIPTORS: usize = 40;

/// Memory that is not for clients: the process with an ordinary document and its history.
const RESERVED_MEMORY: usize = 16 << 20;

/// Memory that a client is counted with. A client that reads takes about 10 KiB in the process and the kernel. A client
/// that does not read takes 140 KiB of kernel buffers and 64 KiB more. There is room for one such client in four.
const CLIENT_MEMORY: usize = 56 << 10;

/// Request threads at most. They wait for disks and slow peers, not for clients, so more would not help.
const MOST_REQUESTS: usize = 64;

/// Request threads at least, also where no thread seems to be free.
const FEWEST_REQUESTS: usize = 8;

/// Connections that tiny_http may keep for good, however much this machine carries: 20 MB or so.
const MOST_LEFTOVERS: usize = 512;

/// How many clients and requests fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capacity {
    /// Clients at once: the least of the configured number and the next two.
    pub clients: usize,
    /// Clients that the limit on descriptors carries, once raised as far as it goes.
    pub by_descriptors: usize,
    /// Clients that free memory carries, within what the control groups leave of it; `None` where that is not known.
    pub by_memory: Option<usize>,
    /// Requests that are answered at once; further ones wait.
    pub requests: usize,
    /// Connections that tiny_http may keep for good before the command takes itself over.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the command asks"))]
    pub(crate) leftovers: usize,
}

/// ```text
/// 984 at most, for more files cannot be open (ulimit -n); 64 requests at once
/// ```
impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.clients {
            clients if self.by_memory == Some(clients) => "for there is no free memory for more",
            clients if self.by_descriptors == clients => "for more files cannot be open (ulimit -n)",
            _ => "as --max-clients says",
        };
        write!(f, "{} at most, {reason}; {} requests at once", self.clients, self.requests)
    }
}

impl Capacity {
    /// Raises the limit on descriptors as far as this process may, and finds what fits, at most `max_clients`.
    pub(crate) fn find(max_clients: usize) -> Capacity {
        let descriptors = raise_descriptor_limit();
        // A limit below the reserve still leaves a few clients.
        let by_descriptors = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(descriptors / 4);
        let by_memory = free_memory().map(clients_in);
        let clients = max_clients.min(by_descriptors).min(by_memory.unwrap_or(usize::MAX));
        // Half of them, because tiny_http needs as many again.
        let threads = free_threads();
        let requests = threads.map_or(MOST_REQUESTS, |threads| threads / 2);
        let requests = requests.clamp(FEWEST_REQUESTS, MOST_REQUESTS);
        // Each keeps a thread and two descriptors.
        let leftovers = (descriptors / 2).min(threads.unwrap_or(usize::MAX)) / 8;
        let leftovers = leftovers.clamp(1, MOST_LEFTOVERS);
        Capacity { clients, by_descriptors, by_memory, requests, leftovers }
    }
}

fn clients_in(bytes: usize) -> usize {
    (bytes.saturating_sub(RESERVED_MEMORY) / CLIENT_MEMORY).max(1)
}

/// Raises the limit on descriptors as far as this process may, and returns it.
#[cfg(unix)]
#[allow(unsafe_code)]
fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a pointer to a live rlimit, and keep it no longer than the call.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return 256;
        }
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
            limit = raised;
        }
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

#[cfg(not(unix))]
fn raise_descriptor_limit() -> usize {
    usize::MAX
}

/// Bytes that can be had without swapping, within the control groups that this process is in.
fn free_memory() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let available = field(&text, "MemAvailable:")?.strip_suffix(" kB")?.parse::<usize>().ok()? << 10;
    let in_groups = control_groups("memory").into_iter().filter_map(|group| memory_left_in(&group));
    in_groups.chain([available]).min()
}

/// Bytes that a control group leaves of its limit; `None` where it has no limit. File cache that is not in use counts as
/// free, because the kernel drops it first.
fn memory_left_in(group: &Path) -> Option<usize> {
    /// The limit, the usage, and the field of `memory.stat` that has the unused file cache. Version 2 of control groups
    /// slows a process down above `high`, and kills it above `max`. In version 1 only `total_` counts inner groups, as
    /// the usage does.
    const FILES: [(&str, &str, &str); 3] = [
        ("memory.max", "memory.current", "inactive_file "),
        ("memory.high", "memory.current", "inactive_file "),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    ];
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let left = FILES.into_iter().filter_map(|(limit, usage, cache)| {
        let usage = number_in(&group.join(usage)).unwrap_or(0);
        let cache = field(&stat, cache).and_then(|number| number.parse().ok()).unwrap_or(0);
        Some(number_in(&group.join(limit))?.saturating_sub(usage.saturating_sub(cache)))
    });
    left.min()
}

/// What follows the name on the line that begins with it.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Threads that can be started; `None` where there is no limit.
fn free_threads() -> Option<usize> {
    let groups = control_groups("pids").into_iter();
    let in_groups = groups.filter_map(|group| {
        Some(number_in(&group.join("pids.max"))?.saturating_sub(number_in(&group.join("pids.current"))?))
    });
    in_groups.chain(free_threads_of_user()).min()
}

#[cfg(not(unix))]
fn free_threads_of_user() -> Option<usize> {
    None
}

#[cfg(unix)]
#[allow(unsafe_code)]
fn free_threads_of_user() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes to a live rlimit and keeps no pointer to it; geteuid takes no argument and cannot fail.
    let is_limited = unsafe {
        libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit) == 0
            && limit.rlim_cur != libc::RLIM_INFINITY
            && libc::geteuid() != 0
    };
    // The threads of all users: the kernel shows no count for one user.
    let running = || {
        let text = fs::read_to_string("/proc/loadavg").ok()?;
        text.split('/').nth(1)?.split(' ').next()?.parse::<usize>().ok()
    };
    is_limited.then(|| (limit.rlim_cur as usize).saturating_sub(running().unwrap_or(0)))
}

/// The folders of the control groups that this process is in, from its own up to the root.
fn control_groups(controller: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut folders = Vec::new();
    for line in text.lines() {
        // `0::/path` in version 2, `4:memory:/path` in version 1.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup").to_owned(),
            list if list.split(',').any(|one| one == controller) => {
                Path::new("/sys/fs/cgroup").join(controller)
            }
            _ => continue,
        };
        // All up to the root: a container may see its own group there.
        folders.extend(Path::new(path.trim_start_matches('/')).ancestors().map(|path| root.join(path)));
    }
    folders
}

/// The number in a file; `None` for no file, and for `max`.
fn number_in(file: &Path) -> Option<usize> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_hundred_clients_fit_into_64_mib() {
        assert!((500..1_000).contains(&clients_in(64 << 20)), "{}", clients_in(64 << 20));
        assert_eq!(clients_in(0), 1);
    }

    #[test]
    fn what_was_configured_is_a_bound() {
        let capacity = Capacity::find(3);
        assert_eq!(capacity.clients, 3.min(capacity.by_descriptors));
        let text = Capacity {
            by_memory: Some(70),
            ..Capacity { clients: 3, by_descriptors: 9, by_memory: None, requests: 64, leftovers: 1 }
        };
        assert_eq!(text.to_string(), "3 at most, as --max-clients says; 64 requests at once");
        let text = Capacity { clients: 9, ..text };
        assert_eq!(
            text.to_string(),
            "9 at most, for more files cannot be open (ulimit -n); 64 requests at once"
        );
        let text = Capacity { by_descriptors: 99, clients: 70, ..text };
        assert_eq!(text.to_string(), "70 at most, for there is no free memory for more; 64 requests at once");
    }

    #[test]
    fn a_memory_limit_counts_with_what_is_left_of_it() {
        type Files<'a> = &'a [(&'a str, &'a str)];
        let root = std::env::temp_dir().join(format!("statecast-groups-{}", std::process::id()));
        let left = |name: &str, files: Files| {
            let group = root.join(name);
            fs::create_dir_all(&group).unwrap();
            for (file, text) in files {
                fs::write(group.join(file), text).unwrap();
            }
            memory_left_in(&group)
        };
        let stat_2 = "anon 5\ninactive_anon 6\ninactive_file 300\nactive_file 7\n";
        let stat_1 = "inactive_file 50\ntotal_inactive_anon 6\ntotal_inactive_file 300\n";
        let (max, current, stat) = ("memory.max", "memory.current", "memory.stat");
        let (limit, usage) = ("memory.limit_in_bytes", "memory.usage_in_bytes");
        let table: [(&str, Files, Option<usize>); 11] = [
            ("no group", &[], None),
            ("no limit", &[(max, "max\n"), ("memory.high", "max\n"), (current, "900\n")], None),
            ("no usage", &[(max, "1000\n")], Some(1_000)),
            ("used", &[(max, "1000\n"), (current, "900\n")], Some(100)),
            ("cached", &[(max, "1000\n"), (current, "900\n"), (stat, stat_2)], Some(400)),
            ("cached more than used", &[(max, "1000\n"), (current, "200\n"), (stat, stat_2)], Some(1_000)),
            ("used up", &[(max, "1000\n"), (current, "1001\n")], Some(0)),
            ("high", &[(max, "1000\n"), ("memory.high", "950\n"), (current, "900\n")], Some(50)),
            ("high alone", &[(max, "max\n"), ("memory.high", "950\n"), (current, "900\n")], Some(50)),
            ("version 1", &[(limit, "1000\n"), (usage, "900\n"), (stat, stat_1)], Some(400)),
            ("version 1 used up", &[(limit, "1000\n"), (usage, "2000\n"), (stat, stat_1)], Some(0)),
        ];
        for (name, files, expected) in table {
            assert_eq!(left(name, files), expected, "{name}");
        }
        fs::remove_dir_all(root).unwrap();
    }
}
