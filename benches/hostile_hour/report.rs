//! What is printed: a line for each minute, the attacks, and the verdicts.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::ledger::{Honest, Ledger, Tally};
use crate::sample::Sample;

/// An honest request takes less than this, but for one in a hundred.
const SLOW: Duration = Duration::from_secs(1);

/// Every attack has its turn in so long a run.
const LONG: Duration = Duration::from_secs(600);

pub fn print_head() {
    println!(
        "| minute | memory, MiB | descriptors | threads | sockets | processor | honest requests | failures | sent again | \
         p50, ms | p99, ms | longest, ms | attacks |"
    );
    println!("|{}", "---:|".repeat(13));
}

/// Names behind a colon, if there are any.
fn listed<T: std::fmt::Display>(names: impl Iterator<Item = T>) -> String {
    let names: Vec<String> = names.map(|name| name.to_string()).collect();
    if names.is_empty() { names.concat() } else { format!(": {}", names.join(", ")) }
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The figures of the minute that is over.
fn print_minute(samples: &[Sample], honest: &Honest, [p50, p99, longest]: [Duration; 3]) {
    let Some(last) = samples.last() else { return };
    let before = samples.iter().rev().find(|sample| last.at - sample.at >= Duration::from_secs(50)).unwrap_or(last);
    let span = (last.at - before.at).as_secs_f64().max(1.0);
    let busy = (last.processor - before.processor).as_secs_f64() / span;
    println!(
        "| {} | {:.1} | {} | {} | {} | {:.0} % | {} | {} | {} | {:.1} | {:.1} | {:.0} | {} |",
        (last.at.as_secs_f64() / 60.0).round(),
        mib(last.pss),
        last.descriptors,
        last.threads,
        last.tunnels,
        busy * 100.0,
        honest.latencies.len() as u64 + honest.failures,
        honest.failures,
        honest.retried,
        milliseconds(p50),
        milliseconds(p99),
        milliseconds(longest),
        honest.attacks,
    );
}

/// What has to be true in the end.
#[derive(Default)]
pub struct Verdicts {
    pub before: BTreeMap<String, usize>,
    pub after: BTreeMap<String, usize>,
    pub samples: Vec<Sample>,
    pub last: Option<Sample>,
    pub reloads: u64,
    pub renewals: u64,
    pub rotations: u64,
    pub logs_missing: u64,
    pub smuggled: u64,
    pub panics: u64,
    /// It was still there when the load had ended.
    pub runs: bool,
    /// It ended in order when it was asked to.
    pub ends: bool,
    /// How often its log said what.
    pub said: BTreeMap<String, u64>,
    /// Time on the processors of this process: back end, honest clients and attackers together.
    pub own: Duration,
    length: Duration,
    attacks: BTreeMap<&'static str, Tally>,
    kinds: BTreeMap<&'static str, u64>,
    failures: Vec<String>,
    requests: u64,
    resumed: u64,
    /// The longest p99 of a minute.
    worst: Duration,
    /// Every kind of attack that there is.
    all: Vec<&'static str>,
    /// How often an attacker broke down.
    errors: BTreeMap<&'static str, u64>,
}

impl Verdicts {
    pub fn new(before: BTreeMap<String, usize>, length: Duration, all: Vec<&'static str>) -> Verdicts {
        Verdicts { before, length, all, ..Verdicts::default() }
    }

    /// A minute is over, and this is what it was like.
    pub fn end_minute(&mut self, honest: &mut Honest) {
        if honest.latencies.is_empty() && honest.failures == 0 {
            return;
        }
        let quantiles = [0.5, 0.99, 1.0].map(|share| honest.quantile(share));
        self.worst = self.worst.max(quantiles[1]);
        print_minute(&self.samples, honest, quantiles);
    }

    pub fn close(&mut self, ledger: &Ledger) {
        self.attacks = ledger.attacks();
        self.kinds = ledger.kinds();
        self.failures = ledger.failures();
        self.errors = ledger.errors();
        self.requests = ledger.requests.load(Ordering::Relaxed);
        self.resumed = ledger.resumed.load(Ordering::Relaxed);
    }

    /// Prints everything; true where all is well.
    pub fn print(&self) -> bool {
        println!("\n| attack | runs | connections or frames | refused | answered | closed | left open or first |");
        println!("|---|---:|---:|---:|---:|---:|---:|");
        for (name, tally) in &self.attacks {
            let Tally { runs, sent, refused, answered, closed, left } = tally;
            println!("| {name} | {runs} | {sent} | {refused} | {answered} | {closed} | {left} |");
        }
        println!("\n| honest | |\n|---|---:|");
        for (name, count) in &self.kinds {
            println!("| {name} | {count} |");
        }
        println!("| handshakes resumed | {} |", self.resumed);
        println!(
            "\n{} reloads, {} renewals of the certificate, {} times a new log.\n",
            self.reloads, self.renewals, self.rotations
        );
        let mut said: Vec<(&String, &u64)> = self.said.iter().collect();
        said.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        println!("{} lines in the log, most of them:", self.said.values().sum::<u64>());
        for (shape, count) in said.iter().take(8) {
            println!("  {count} × {shape}");
        }
        let server = self.last.map_or(Duration::ZERO, |last| last.processor);
        let share = |time: Duration| 100.0 * time.as_secs_f64() / self.length.as_secs_f64();
        println!(
            "\nOf one processor: the server {:.0} %; its clients, attackers and back end together {:.0} %.\n",
            share(server),
            share(self.own)
        );
        for failure in self.failures.iter().take(50) {
            println!("honest failure at {failure}");
        }
        let verdicts = [
            self.memory(),
            self.descriptors(),
            (
                self.failures.is_empty() && self.requests > 0,
                format!("{} of {} honest requests failed", self.failures.len(), self.requests),
            ),
            (self.worst < SLOW, format!("p99 of the worst minute: {:.1} ms", milliseconds(self.worst))),
            self.ran(),
            (
                self.errors.is_empty(),
                format!("{} attackers broke down{}", self.errors.values().sum::<u64>(), listed(self.errors.keys())),
            ),
            (self.smuggled == 0, format!("{} requests smuggled to the back end", self.smuggled)),
            (self.panics == 0, format!("{} panics in the log", self.panics)),
            (self.logs_missing == 0, format!("{} logs not opened again", self.logs_missing)),
            (self.runs && self.ends, format!("the server {}", if self.runs { "ran to the end" } else { "died" })),
        ];
        for (well, text) in &verdicts {
            println!("{} {text}", if *well { "ok  " } else { "FAIL" });
        }
        verdicts.iter().all(|(well, _)| *well)
    }

    /// Whether each attack ran. A short run need not come to all of them.
    fn ran(&self) -> (bool, String) {
        let missed: Vec<_> = self.all.iter().filter(|name| !self.attacks.contains_key(*name)).collect();
        let text = format!("{} of {} kinds of attack ran{}", self.attacks.len(), self.all.len(), listed(missed.iter()));
        (self.attacks.len() == self.all.len() || self.length < LONG && !self.attacks.is_empty(), text)
    }

    /// The last sixth of the time against the second: of an hour, the last ten minutes against the second ten.
    fn memory(&self) -> (bool, String) {
        let sixth = self.length / 6;
        let median = |from: Duration, to: Duration| {
            let within = self.samples.iter().filter(|sample| sample.at >= from && sample.at < to);
            let mut sizes: Vec<u64> = within.map(|sample| sample.pss).collect();
            sizes.sort_unstable();
            sizes.get(sizes.len() / 2).copied().unwrap_or(0)
        };
        let (early, late) = (median(sixth, sixth * 2), median(sixth * 5, self.length));
        // In a short run a median is that of a few samples, and the attacks of the moment weigh.
        let room = if self.length < Duration::from_secs(1800) { 16 * 1024 } else { 2048 };
        let bound = early + early / 20 + room;
        let peak = self.samples.iter().map(|sample| sample.pss).max().unwrap_or(0);
        let left = self.last.map_or(0, |last| last.pss);
        let text = format!(
            "memory: {:.1} MiB in the second sixth of the time, {:.1} in the last (at most {:.1}); peak {:.1}, {:.1} after \
             the load",
            mib(early),
            mib(late),
            mib(bound),
            mib(peak),
            mib(left)
        );
        (early > 0 && late <= bound, text)
    }

    fn descriptors(&self) -> (bool, String) {
        let sum = |held: &BTreeMap<String, usize>| held.values().sum::<usize>();
        let mut text = format!("descriptors: {} before, {} after", sum(&self.before), sum(&self.after));
        let kinds: std::collections::BTreeSet<&String> = self.before.keys().chain(self.after.keys()).collect();
        for kind in kinds {
            let (before, after) = (self.before.get(kind).unwrap_or(&0), self.after.get(kind).unwrap_or(&0));
            if before != after {
                text += &format!("; {kind}: {before} before, {after} after");
            }
        }
        let tunnels = self.last.map_or(0, |last| last.tunnels);
        text += &format!("; {tunnels} sockets left");
        (self.before == self.after && tunnels == 0, text)
    }
}
