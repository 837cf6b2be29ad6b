//! Memory that is used up: requests are refused before connections are, and both before the kernel kills the process.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::fault::{Fault, Kind};
use crate::base::units::format_size;
use crate::edge::told::Told;

/// How often the memory is looked at. A little less than the second after which workers ask again: by the clock's
/// whims, every other look would else be too early.
const LOOK: Duration = Duration::from_millis(900);

/// When a refused request may come again.
const RETRY: Duration = Duration::from_secs(5);

/// Where limits of memory stand (cgroups(7), proc(5)).
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// How much memory there is, how much of it is in use, and what was refused for want of it. It outlives every reload.
#[derive(Debug)]
pub struct Overload {
    /// Open from the start on: later, `/proc` may be out of reach.
    status: Option<File>,
    /// What the machine lets us have.
    machine: u64,
    most: AtomicU64,
    used: AtomicU64,
    requests: AtomicU64,
    connections: AtomicU64,
    looked: Mutex<Looked>,
}

#[derive(Debug, Default)]
struct Looked {
    at: Option<Instant>,
    told: Told,
}

impl Overload {
    /// With `max_memory` bytes; 0 is three quarters of what there is.
    pub fn new(max_memory: u64) -> Overload {
        let overload = Overload {
            status: File::open("/proc/self/status").ok(),
            machine: machine_memory(),
            most: AtomicU64::new(0),
            used: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            looked: Mutex::default(),
        };
        overload.change(max_memory);
        overload
    }

    /// A new configuration is in force.
    pub fn change(&self, max_memory: u64) {
        let most = if max_memory == 0 { self.machine / 4 * 3 } else { max_memory };
        self.most.store(most.max(1), Relaxed);
    }

    /// Refuses a request where nine tenths are in use.
    pub fn check(&self) -> Result<(), Fault> {
        if !self.is_over(90) {
            return Ok(());
        }
        self.requests.fetch_add(1, Relaxed);
        Err(Fault::new(Kind::Crowded, "90 % of server.max_memory are in use").retry_after(RETRY))
    }

    /// Whether memory is so short that what is idle should go.
    pub fn is_tight(&self) -> bool {
        self.is_over(90)
    }

    /// Whether there is room for one more connection. Counts it where there is none.
    pub fn has_room(&self) -> bool {
        let room = !self.is_over(95);
        if !room {
            self.connections.fetch_add(1, Relaxed);
        }
        room
    }

    /// Looks at the memory, at most once a second; gives what is to be told, at most once a minute. Any worker may ask.
    pub fn look(&self, now: Instant) -> Vec<String> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.at.is_some_and(|at| now.saturating_duration_since(at) < LOOK) {
            return Vec::new();
        }
        looked.at = Some(now);
        if let Some(used) = self.status.as_ref().and_then(own_memory) {
            self.used.store(used, Relaxed);
        }
        let (requests, connections) = (self.requests.load(Relaxed), self.connections.load(Relaxed));
        let Some(fresh) = looked.told.fresh(requests + connections, now) else { return Vec::new() };
        let (used, most) = (mebibytes(self.used.load(Relaxed)), mebibytes(self.most.load(Relaxed)));
        vec![format!(
            "refused {fresh} requests and connections: {used} of memory are in use, server.max_memory is {most}"
        )]
    }

    /// What was refused since the start.
    pub fn refused(&self) -> [(&'static str, u64); 2] {
        [
            ("requests refused by server.max_memory", self.requests.load(Relaxed)),
            ("clients refused by server.max_memory", self.connections.load(Relaxed)),
        ]
    }

    fn is_over(&self, percent: u64) -> bool {
        self.used.load(Relaxed) / 100 >= self.most.load(Relaxed) / 10_000 * percent
    }
}

fn mebibytes(bytes: u64) -> String {
    format_size(bytes.next_multiple_of(1 << 20))
}

/// Bytes of this process that no file stands behind (proc_pid_status(5)).
fn own_memory(status: &File) -> Option<u64> {
    let mut bytes = [0; 4096];
    let length = status.read_at(&mut bytes, 0).ok()?;
    kibibytes(std::str::from_utf8(bytes.get(..length)?).ok()?, "RssAnon:")
}

/// The value of a line, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What the machine has, or the control group where that is less.
fn machine_memory() -> u64 {
    // Not from /proc/meminfo, which a service may not see (ProcSubset=pid).
    let machine = rustix::system::sysinfo();
    let total = machine.totalram.checked_mul(machine.mem_unit.into()).filter(|total| *total > 0);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    // Each group above may have a limit of its own.
    let above = group.map(|group| Path::new(CONTROL_GROUPS).join(group));
    let folders = above.iter().flat_map(|path| path.ancestors()).take_while(|path| path.starts_with(CONTROL_GROUPS));
    let limits =
        folders.filter_map(|folder| std::fs::read_to_string(folder.join("memory.max")).ok()?.trim().parse().ok());
    limits.chain(total).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_refused_at_nine_tenths_and_connections_later() {
        let overload = Overload::new(1000 << 20);
        for (used, requests, connections) in
            [(0, true, true), (899, true, true), (900, false, true), (950, false, false)]
        {
            overload.used.store(used << 20, Relaxed);
            assert_eq!((overload.check().is_ok(), overload.has_room()), (requests, connections), "{used}");
        }
        assert_eq!(overload.refused().map(|(_, count)| count), [2, 1]);
        let now = Instant::now();
        let told = overload.look(now);
        assert!(told.len() == 1 && told[0].starts_with("refused 3 ") && told[0].ends_with("is 1000MiB"), "{told:?}");
        assert!(overload.check().is_ok(), "it has looked");
        assert!(overload.look(now + LOOK * 2).is_empty());
    }

    #[test]
    fn the_memory_of_the_process_and_of_the_machine_are_known() {
        let overload = Overload::new(0);
        assert!(overload.machine > 64 << 20 && overload.machine < u64::MAX, "{}", overload.machine);
        overload.look(Instant::now());
        let used = overload.used.load(Relaxed);
        assert!(used > 100 << 10 && used < overload.machine, "{used}");
    }
}
