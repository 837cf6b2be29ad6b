//! What the server's process holds, seen from outside.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub at: Duration,
    /// Its share of the pages that it has mapped (proc_pid_smaps(5)), in KiB.
    pub pss: u64,
    pub rss: u64,
    pub descriptors: usize,
    pub threads: u64,
    pub tunnels: u64,
    /// Time on the processors so far.
    pub processor: Duration,
}

impl Sample {
    pub fn take(id: u32, at: Duration, tunnels: u64) -> Sample {
        let status = format!("/proc/{id}/status");
        let rss = field(&status, "VmRSS");
        let pss = field(&format!("/proc/{id}/smaps_rollup"), "Pss");
        Sample {
            at,
            // Only who may trace a process is told its share.
            pss: if pss == 0 { rss } else { pss },
            rss,
            descriptors: descriptors(id).values().sum(),
            threads: field(&status, "Threads"),
            tunnels,
            processor: processor(id),
        }
    }

    pub const COLUMNS: &str = "seconds,pss_kib,rss_kib,descriptors,threads,tunnels,processor_ms";

    pub fn line(&self) -> String {
        let Sample { at, pss, rss, descriptors, threads, tunnels, processor } = self;
        let (at, processor) = (at.as_secs(), processor.as_millis());
        format!("{at},{pss},{rss},{descriptors},{threads},{tunnels},{processor}")
    }
}

fn field(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// How many there are of each kind: sockets, files by their path, and what the kernel calls anonymous.
pub fn descriptors(id: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for link in std::fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten() {
        let Ok(to) = std::fs::read_link(link.path()) else { continue };
        let to = to.to_string_lossy();
        let kind = if Path::new(to.as_ref()).is_absolute() { &to } else { to.split(":[").next().unwrap_or_default() };
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

/// User and system time of proc_pid_stat(5), whose ticks are hundredths of a second on every Linux that matters here.
pub fn processor(id: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let rest = text.rsplit(") ").next().unwrap_or_default();
    let ticks = |number: usize| rest.split(' ').nth(number).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
