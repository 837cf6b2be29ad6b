//! What was counted, by everybody who has a part in the hour.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What became of the connections of an attack.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub runs: u64,
    /// Connections, or frames over HTTP/2.
    pub sent: u64,
    /// Answered with a status from 400 on, or with GOAWAY.
    pub refused: u64,
    /// Answered otherwise.
    pub answered: u64,
    /// Closed by the server without an answer.
    pub closed: u64,
    /// Still open when the attacker gave up, or left first, which is what some attacks are about.
    pub left: u64,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.runs += other.runs;
        self.sent += other.sent;
        self.refused += other.refused;
        self.answered += other.answered;
        self.closed += other.closed;
        self.left += other.left;
    }
}

/// What honest clients saw between two looks.
#[derive(Debug, Default)]
pub struct Honest {
    pub latencies: Vec<Duration>,
    pub failures: u64,
    pub retried: u64,
    pub attacks: u64,
}

impl Honest {
    /// The value below which `share` of all latencies lie.
    pub fn quantile(&mut self, share: f64) -> Duration {
        self.latencies.sort_unstable();
        let at = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(at.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

#[derive(Default)]
struct Inner {
    honest: Honest,
    kinds: BTreeMap<&'static str, u64>,
    failures: Vec<String>,
    attacks: BTreeMap<&'static str, Tally>,
    /// Attackers that met what they did not expect.
    errors: BTreeMap<&'static str, u64>,
}

pub struct Ledger {
    start: Instant,
    inner: Mutex<Inner>,
    pub hostile_ends: AtomicBool,
    pub honest_ends: AtomicBool,
    pub resumed: AtomicU64,
    pub requests: AtomicU64,
    pub failed: AtomicU64,
}

impl Ledger {
    pub fn new() -> Ledger {
        Ledger {
            start: Instant::now(),
            inner: Mutex::default(),
            hostile_ends: AtomicBool::new(false),
            honest_ends: AtomicBool::new(false),
            resumed: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub fn succeeded(&self, kind: &'static str, took: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.inner.lock().unwrap();
        inner.honest.latencies.push(took);
        *inner.kinds.entry(kind).or_default() += 1;
    }

    pub fn failed(&self, kind: &'static str, why: &str) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(1, Ordering::Relaxed);
        let at = self.start.elapsed().as_secs_f32();
        eprintln!("honest failure at {at:.1} s: {kind}: {why}");
        let mut inner = self.inner.lock().unwrap();
        inner.honest.failures += 1;
        inner.failures.push(format!("{at:.1} s: {kind}: {why}"));
    }

    /// A request on a connection that the server had closed was sent once more on a new one.
    pub fn retried(&self) {
        self.inner.lock().unwrap().honest.retried += 1;
    }

    pub fn attacked(&self, name: &'static str, tally: Tally) {
        let mut inner = self.inner.lock().unwrap();
        inner.honest.attacks += 1;
        inner.attacks.entry(name).or_default().add(Tally { runs: 1, ..tally });
    }

    pub fn attack_failed(&self, name: &'static str) {
        *self.inner.lock().unwrap().errors.entry(name).or_default() += 1;
    }

    pub fn errors(&self) -> BTreeMap<&'static str, u64> {
        self.inner.lock().unwrap().errors.clone()
    }

    /// What came since this was asked last.
    pub fn take(&self) -> Honest {
        std::mem::take(&mut self.inner.lock().unwrap().honest)
    }

    pub fn attacks(&self) -> BTreeMap<&'static str, Tally> {
        self.inner.lock().unwrap().attacks.clone()
    }

    pub fn kinds(&self) -> BTreeMap<&'static str, u64> {
        self.inner.lock().unwrap().kinds.clone()
    }

    pub fn failures(&self) -> Vec<String> {
        self.inner.lock().unwrap().failures.clone()
    }

    pub fn hostile_ends(&self) -> bool {
        self.hostile_ends.load(Ordering::Relaxed)
    }

    pub fn honest_ends(&self) -> bool {
        self.honest_ends.load(Ordering::Relaxed)
    }
}

/// Xorshift64*: the same seed gives the same attacks in the same order.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// From 0 to `end`, without it.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end.max(1)
    }

    pub fn between(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + (self.next() >> 33) % (to - from).max(1))
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 40) as u8).collect()
    }

    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, self.below(at + 1));
        }
    }
}
