//! What this machine carries, asked once at the start: clients by descriptors and by memory, requests by threads.
//!
//! `server` takes the least of it and of what was configured, so that clients are refused in good order before the
//! kernel would refuse whatever comes next. Where nobody knows, nothing is limited.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Descriptors that are not for clients: the process's own, and two for each request under way.
const RESERVED_DESCRIPTORS: usize = 40;

/// Memory that is not for clients: the process with an ordinary document and its history.
const RESERVED_MEMORY: usize = 16 << 20;

/// What a client is counted with. One that reads takes about 10 KiB, in the process and the kernel; one that does not
/// takes 140 KiB of kernel buffers and 64 KiB more. This is room for one in four that does not.
const CLIENT_MEMORY: usize = 56 << 10;

/// More request threads than this are never needed: they wait for disks and slow peers, not for clients.
const MOST_REQUESTS: usize = 64;

/// Fewer cannot be told apart from none: tiny_http has as many of its own.
const FEWEST_REQUESTS: usize = 8;

/// How many clients and requests fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capacity {
    /// Clients at once: the least of what was configured and the next two.
    pub clients: usize,
    /// Clients that the limit on descriptors carries, raised as far as it goes.
    pub by_descriptors: usize,
    /// Clients that free memory carries, or what the control group leaves of it; `None` where nobody knows.
    pub by_memory: Option<usize>,
    /// Requests that are answered at once: the others wait.
    pub requests: usize,
}

/// ```text
/// 984 at most (descriptors carry 984, memory 61000); 64 requests at once
/// ```
impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at most (descriptors carry {}", self.clients, self.by_descriptors)?;
        if let Some(clients) = self.by_memory {
            write!(f, ", memory {clients}")?;
        }
        write!(f, "); {} requests at once", self.requests)
    }
}

impl Capacity {
    /// Raises the limit on descriptors as far as this process may, and sees what fits; at most `max_clients`.
    pub(crate) fn find(max_clients: usize) -> Capacity {
        let descriptors = raise_descriptor_limit();
        // A limit too low for the reserve still serves somebody.
        let by_descriptors = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(descriptors / 4);
        let by_memory = free_memory().map(clients_in);
        let clients = max_clients.min(by_descriptors).min(by_memory.unwrap_or(usize::MAX));
        // As many again are tiny_http's.
        let requests = free_threads().map_or(MOST_REQUESTS, |threads| threads / 2);
        let requests = requests.clamp(FEWEST_REQUESTS, MOST_REQUESTS);
        Capacity { clients, by_descriptors, by_memory, requests }
    }
}

fn clients_in(bytes: usize) -> usize {
    (bytes.saturating_sub(RESERVED_MEMORY) / CLIENT_MEMORY).max(1)
}

/// Raises the limit on descriptors as far as this process may, and returns it.
#[allow(unsafe_code)]
fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one rlimit, which is there.
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

/// Bytes that can be had without swapping, and within the control groups that this process is in.
fn free_memory() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? << 10;
    let limits = control_groups("memory").into_iter().flat_map(|group| {
        // Version 2, then version 1 of control groups.
        ["memory.max", "memory.limit_in_bytes"]
            .into_iter()
            .filter_map(move |file| number_in(&group.join(file)))
    });
    Some(limits.fold(available, usize::min))
}

/// Threads that can be started; `None` where there is no limit.
#[allow(unsafe_code)]
fn free_threads() -> Option<usize> {
    let groups = control_groups("pids").into_iter();
    let in_groups = groups.filter_map(|group| {
        Some(number_in(&group.join("pids.max"))?.saturating_sub(number_in(&group.join("pids.current"))?))
    });
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit, which is there; geteuid takes and breaks nothing.
    let is_limited = unsafe {
        libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit) == 0
            && limit.rlim_cur != libc::RLIM_INFINITY
            && libc::geteuid() != 0
    };
    // Those of all users: nobody counts one user's.
    let running = || {
        let text = fs::read_to_string("/proc/loadavg").ok()?;
        text.split('/').nth(1)?.split(' ').next()?.parse::<usize>().ok()
    };
    let of_user = is_limited.then(|| (limit.rlim_cur as usize).saturating_sub(running().unwrap_or(0)));
    in_groups.chain(of_user).min()
}

/// The folders of the control groups that bound this process, from its own up to the root.
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
        // A container may see its own group as the root.
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
            ..Capacity { clients: 3, by_descriptors: 9, by_memory: None, requests: 64 }
        };
        assert_eq!(text.to_string(), "3 at most (descriptors carry 9, memory 70); 64 requests at once");
    }
}
