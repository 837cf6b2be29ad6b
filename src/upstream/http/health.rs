//! Whether a back end is left out: what requests and probes tell of it, and what follows. Pure: whoever tells something
//! tells the time as well, as the time since the back end is known.
//!
//! Requests that fail put a back end out, and the first that it serves well brings it back. One request at a time tries
//! it: for `fail_timeout` only one that nobody else could serve, then any. A probe that says that it is out holds it out
//! until the probe says otherwise. It is in when neither requests nor probes object.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A trial of which nothing was heard: the next one may begin.
const TRIAL: Duration = Duration::from_secs(1);

/// Between two trials at least: of a back end whose port refuses at once, which costs nothing.
const SHORTEST: Duration = Duration::from_millis(100);

/// How many failures of requests put a back end out, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Threshold {
    /// In a row and within `fail_timeout`; 0 never does.
    pub(super) max_fails: u32,
    pub(super) fail_timeout: Duration,
}

/// What a request failed of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection could be made.
    Connect,
    /// The connection ended before an answer, or what came was none.
    Broken,
    /// No answer came in time.
    Timeout,
    /// The answer has a status that counts as a failure.
    Status,
}

/// What a probe is judged by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) fails: u32,
    pub(super) passes: u32,
    pub(super) interval: Duration,
}

/// A change that an operator wants to read of, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// It is left out from now on.
    Out {
        /// Why.
        why: String,
    },
    /// It is in again.
    Back {
        /// How long it was out.
        after: Duration,
    },
}

/// What is known of one back end at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackEndHealth {
    /// Whether it is left out.
    pub out: bool,
    /// Whether it was out, and has yet to serve a request well.
    pub trial: bool,
    /// For how long it is out or on trial.
    pub since: Option<Duration>,
    /// Why it is out or on trial.
    pub why: Option<String>,
    /// Failures of requests and of probes since it is known.
    pub failures: u64,
    /// How long ago a probe ended last, and how: that of one which holds it out rather than of another.
    pub probe: Option<(Duration, Result<String, String>)>,
}

/// The standing of one back end.
///
/// What every request asks is in atomics; what changes with a failure alone is behind the lock.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// When it last served a request well. Times are in nanoseconds, plus one; 0 is never.
    answered: AtomicU64,
    /// Out by requests.
    out: AtomicBool,
    /// When `fail_timeout` is over.
    due: AtomicU64,
    next_trial: AtomicU64,
    /// How long a trial is waited for before the next.
    patience: AtomicU64,
    returned: AtomicU64,
    held: AtomicBool,
    /// Whether a good answer would change anything.
    troubled: AtomicBool,
    failures: AtomicU64,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// Failures in a row, within `fail_timeout`: fewer than `max_fails`.
    fails: VecDeque<Duration>,
    out: Option<Out>,
    /// When it was reported to be out.
    announced: Option<Duration>,
    probes: Vec<Watched>,
}

/// Out by requests, or on trial.
#[derive(Debug)]
struct Out {
    since: Duration,
    failure: Failure,
    why: String,
    /// A connection was made since: it is in, and the next failure puts it out again.
    trial: bool,
}

/// What one probe found.
#[derive(Debug)]
struct Watched {
    key: Arc<str>,
    /// Why it holds the back end out.
    out: Option<String>,
    /// Outcomes in a row that speak against the verdict.
    run: u32,
    /// Nothing was asked yet: the first outcome decides.
    fresh: bool,
    last: Option<(Duration, Result<String, String>)>,
    /// When it could let the back end in.
    earliest: Duration,
}

impl Standing {
    /// Whether it is left out of the choice. Behind `fail_timeout` it is not, and yet only one request gets through.
    pub(super) fn is_out(&self, now: Duration) -> bool {
        self.held.load(Relaxed) || self.out.load(Relaxed) && stamp(now) < self.due.load(Relaxed)
    }

    /// Whether nothing is held against it.
    pub(super) fn is_in(&self) -> bool {
        !self.held.load(Relaxed) && !self.out.load(Relaxed)
    }

    /// Whether a request that has chosen it may go there: where it is out, as a trial.
    pub(super) fn admits(&self, now: Duration) -> bool {
        self.is_in() || self.claim_trial(now)
    }

    /// Whether one request may try it although it is out. Never while a probe holds it out.
    pub(super) fn claim_trial(&self, now: Duration) -> bool {
        let next = self.next_trial.load(Relaxed);
        let open = !self.held.load(Relaxed) && self.out.load(Relaxed) && stamp(now) >= next;
        let after = stamp(now).saturating_add(self.patience.load(Relaxed));
        open && self.next_trial.compare_exchange(next, after, Relaxed, Relaxed).is_ok()
    }

    /// How long ago it came back from being out; `None` if it never was, or is out now.
    pub(super) fn returned(&self, now: Duration) -> Option<Duration> {
        let at = self.returned.load(Relaxed);
        (at > 0 && self.is_in()).then(|| Duration::from_nanos(stamp(now).saturating_sub(at)))
    }

    /// How long it takes until somebody may be let through to it again: the next trial, or the next probe that could end
    /// well. Zero where it is not out.
    pub(super) fn wait(&self, now: Duration) -> Duration {
        let held = self.held.load(Relaxed);
        let probes = match held {
            true => self.book().probes.iter().filter(|probe| probe.out.is_some()).map(|probe| probe.earliest).max(),
            false => None,
        };
        let trial = self.out.load(Relaxed).then(|| time(self.next_trial.load(Relaxed)));
        probes.into_iter().chain(trial).max().unwrap_or(now).saturating_sub(now)
    }

    /// A connection was made. That refutes what a connection that failed or broke has shown, until the next failure.
    pub(super) fn reached(&self, now: Duration) {
        if !self.troubled.load(Relaxed) {
            return;
        }
        let mut book = self.book();
        if let Some(out) = &mut book.out
            && !out.trial
            && matches!(out.failure, Failure::Connect | Failure::Broken)
        {
            out.trial = true;
            self.returned.store(stamp(now), Relaxed);
            self.out.store(false, Relaxed);
        }
    }

    /// A request that began at `began` was served well.
    pub(super) fn answered(&self, now: Duration, began: Duration) -> Option<News> {
        self.answered.store(stamp(now), Relaxed);
        if !self.troubled.load(Relaxed) {
            return None;
        }
        let mut book = self.book();
        // A server that is told to stop finishes what it has, and takes nothing more.
        if book.out.as_ref().is_some_and(|out| began < out.since) {
            return None;
        }
        self.acquit(&mut book, now);
        book.announce(now)
    }

    /// A request that began at `began` failed.
    pub(super) fn failed(
        &self,
        now: Duration,
        began: Duration,
        failure: Failure,
        why: String,
        threshold: Threshold,
    ) -> Option<News> {
        self.failures.fetch_add(1, Relaxed);
        // Whoever has served another well, or came back, while this request was under way is not down: the request is
        // slow, or dies of itself.
        let since = self.answered.load(Relaxed).max(self.returned.load(Relaxed));
        if threshold.max_fails == 0 || failure != Failure::Status && since > stamp(began) {
            return None;
        }
        let mut book = self.book();
        self.troubled.store(true, Relaxed);
        if book.out.is_none() {
            while book.fails.front().is_some_and(|at| now.saturating_sub(*at) > threshold.fail_timeout) {
                book.fails.pop_front();
            }
            if book.fails.len().saturating_add(1) < threshold.max_fails as usize {
                book.fails.push_back(now);
                return None;
            }
        }
        book.fails.clear();
        // A trial costs its client as long as the last failure took: the longer that was, the fewer there are.
        let took = now.saturating_sub(began);
        let pause =
            if failure == Failure::Status { TRIAL } else { took }.clamp(SHORTEST, threshold.fail_timeout.max(SHORTEST));
        let since = book.out.as_ref().filter(|out| !out.trial).map_or(now, |out| out.since);
        book.out = Some(Out { since, failure, why, trial: false });
        self.patience.store(nanos(pause.max(TRIAL)), Relaxed);
        self.next_trial.store(stamp(now + pause), Relaxed);
        self.returned.store(0, Relaxed);
        self.due.store(stamp(now + threshold.fail_timeout.max(SHORTEST)), Relaxed);
        self.out.store(true, Relaxed);
        book.announce(now)
    }

    /// The probes in force are these. A verdict outlives a change: a new probe begins with that of those before it, and
    /// its first outcome decides.
    pub(super) fn watch(&self, now: Duration, keys: &[Arc<str>]) -> Option<News> {
        let mut book = self.book();
        if book.probes.is_empty() && keys.is_empty() {
            return None;
        }
        let verdict = book.probes.iter().find_map(|probe| probe.out.clone());
        book.probes.retain(|probe| keys.contains(&probe.key));
        for key in keys {
            if !book.probes.iter().any(|probe| probe.key == *key) {
                let (key, out) = (Arc::clone(key), verdict.clone());
                book.probes.push(Watched { key, out, run: 0, fresh: true, last: None, earliest: now });
            }
        }
        self.judge(&mut book, now);
        book.announce(now)
    }

    /// The probe `key` ended, and is next due after `pause`.
    pub(super) fn probed(
        &self,
        now: Duration,
        key: &str,
        outcome: Result<String, String>,
        pace: Pace,
        pause: Duration,
    ) -> Option<News> {
        let mut book = self.book();
        let well = outcome.is_ok();
        let probe = book.probes.iter_mut().find(|probe| *probe.key == *key)?;
        probe.tell(now, outcome, pace, pause);
        if !well {
            self.failures.fetch_add(1, Relaxed);
        } else if book.out.as_ref().is_some_and(|out| out.failure != Failure::Status) {
            self.acquit(&mut book, now);
        }
        self.judge(&mut book, now);
        book.announce(now)
    }

    /// See [`BackEndHealth`].
    pub(super) fn view(&self, now: Duration) -> BackEndHealth {
        let book = self.book();
        let held = book.probes.iter().find(|probe| probe.out.is_some());
        let why = held.and_then(|probe| probe.out.as_ref()).or(book.out.as_ref().map(|out| &out.why));
        let probe = held.or(book.probes.first()).and_then(|probe| probe.last.as_ref());
        BackEndHealth {
            out: held.is_some() || self.out.load(Relaxed),
            trial: held.is_none() && book.out.is_some() && !self.out.load(Relaxed),
            since: book.announced.map(|at| now.saturating_sub(at)),
            why: why.cloned(),
            failures: self.failures.load(Relaxed),
            probe: probe.map(|(at, outcome)| (now.saturating_sub(*at), outcome.clone())),
        }
    }

    /// Requests have nothing against it any more.
    fn acquit(&self, book: &mut Book, now: Duration) {
        book.fails.clear();
        book.out = None;
        if self.out.swap(false, Relaxed) {
            self.returned.store(stamp(now), Relaxed);
        }
        self.troubled.store(false, Relaxed);
    }

    fn judge(&self, book: &mut Book, now: Duration) {
        let held = book.probes.iter().any(|probe| probe.out.is_some());
        if self.held.swap(held, Relaxed) && !held && !self.out.load(Relaxed) {
            self.returned.store(stamp(now), Relaxed);
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// What there is to report: it is out, or neither requests nor probes object any more.
    fn announce(&mut self, now: Duration) -> Option<News> {
        let why = self.probes.iter().find_map(|probe| probe.out.as_ref()).or(self.out.as_ref().map(|out| &out.why));
        match (why, self.announced) {
            (Some(why), None) => {
                let why = why.clone();
                self.announced = Some(now);
                Some(News::Out { why })
            }
            (None, Some(at)) => {
                self.announced = None;
                Some(News::Back { after: now.saturating_sub(at) })
            }
            _ => None,
        }
    }
}

impl Watched {
    fn tell(&mut self, now: Duration, outcome: Result<String, String>, pace: Pace, pause: Duration) {
        let fresh = std::mem::take(&mut self.fresh);
        match (&outcome, &mut self.out) {
            (Ok(_), None) => self.run = 0,
            (Err(why), Some(out)) => {
                why.clone_into(out);
                self.run = 0;
            }
            (Ok(_), Some(_)) => {
                self.run = self.run.saturating_add(1);
                if fresh || self.run >= pace.passes {
                    (self.out, self.run) = (None, 0);
                }
            }
            (Err(why), None) => {
                self.run = self.run.saturating_add(1);
                if fresh || self.run >= pace.fails {
                    (self.out, self.run) = (Some(why.clone()), 0);
                }
            }
        }
        let more = pace.passes.saturating_sub(self.run).saturating_sub(1);
        self.earliest = now + pause + pace.interval.saturating_mul(more);
        self.last = Some((now, outcome));
    }
}

/// A time as an atomic holds it; never 0.
fn stamp(time: Duration) -> u64 {
    nanos(time).saturating_add(1)
}

fn time(stamp: u64) -> Duration {
    Duration::from_nanos(stamp.saturating_sub(1))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONCE: Threshold = Threshold { max_fails: 1, fail_timeout: Duration::from_secs(10) };
    const PACE: Pace = Pace { fails: 2, passes: 3, interval: Duration::from_secs(10) };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Whatever the time.
    fn is_out(standing: &Standing) -> bool {
        standing.is_out(Duration::ZERO)
    }

    /// A failure that took a millisecond.
    fn fail(standing: &Standing, now: Duration, failure: Failure, threshold: Threshold) -> Option<News> {
        standing.failed(now, now.saturating_sub(at(1)), failure, "x".to_owned(), threshold)
    }

    fn answer(standing: &Standing, now: Duration) -> Option<News> {
        standing.answered(now, now)
    }

    fn probe(standing: &Standing, now: Duration, well: bool) -> Option<News> {
        let outcome = if well { Ok("200".to_owned()) } else { Err("no".to_owned()) };
        standing.probed(now, "p", outcome, PACE, PACE.interval)
    }

    fn out(why: &str) -> Option<News> {
        Some(News::Out { why: why.to_owned() })
    }

    fn back(ms: u64) -> Option<News> {
        Some(News::Back { after: at(ms) })
    }

    #[test]
    fn one_that_refuses_is_out_until_a_connection_is_made_and_back_when_it_answers() {
        let standing = Standing::default();
        assert!(!is_out(&standing) && standing.returned(at(0)).is_none() && standing.wait(at(0)).is_zero());
        assert_eq!(fail(&standing, at(1000), Failure::Connect, ONCE), out("x"));
        assert!(is_out(&standing) && standing.returned(at(1000)).is_none());
        assert_eq!(standing.wait(at(1000)), SHORTEST);
        assert!(!standing.claim_trial(at(1099)));
        assert!(standing.claim_trial(at(1100)) && !standing.claim_trial(at(1101)));
        assert_eq!(fail(&standing, at(1101), Failure::Connect, ONCE), None, "told already");
        assert!(!standing.claim_trial(at(1200)) && standing.claim_trial(at(1201)));
        standing.reached(at(1202));
        assert!(!is_out(&standing));
        assert!(standing.view(at(1202)).trial);
        assert_eq!(answer(&standing, at(1203)), back(203));
        assert_eq!(standing.returned(at(2202)), Some(at(1000)));
        assert!(!standing.view(at(1203)).trial);
    }

    #[test]
    fn one_that_accepts_and_breaks_is_reported_once() {
        let standing = Standing::default();
        assert_eq!(fail(&standing, at(1000), Failure::Broken, ONCE), out("x"));
        for n in 1..20 {
            assert!(standing.claim_trial(at(1000 + n * 200)));
            standing.reached(at(1000 + n * 200));
            assert!(!is_out(&standing));
            assert_eq!(fail(&standing, at(1002 + n * 200), Failure::Broken, ONCE), None);
            assert!(is_out(&standing));
        }
        assert_eq!(answer(&standing, at(9000)), back(8000));
    }

    #[test]
    fn a_made_connection_says_nothing_of_one_that_does_not_answer() {
        for failure in [Failure::Timeout, Failure::Status] {
            let standing = Standing::default();
            assert!(fail(&standing, at(1000), failure, ONCE).is_some());
            standing.reached(at(1500));
            assert!(is_out(&standing), "{failure:?}");
            assert_eq!(answer(&standing, at(1600)), back(600));
            assert!(!is_out(&standing));
        }
    }

    #[test]
    fn a_trial_costs_a_client_as_long_as_the_last_failure_took_so_the_next_waits_as_long() {
        let standing = Standing::default();
        let _ = standing.failed(at(5000), at(1000), Failure::Connect, "slow".to_owned(), ONCE);
        assert_eq!(standing.wait(at(5000)), at(4000));
        assert!(!standing.claim_trial(at(8999)) && standing.claim_trial(at(9000)));
        assert!(!standing.claim_trial(at(12_999)) && standing.claim_trial(at(13_000)), "nothing was heard of it");
        let _ = standing.failed(at(99_000), at(9000), Failure::Timeout, "very slow".to_owned(), ONCE);
        assert_eq!(standing.wait(at(99_000)), ONCE.fail_timeout, "at most");
    }

    #[test]
    fn behind_fail_timeout_one_request_tries_what_others_could_serve_and_failures_need_no_company() {
        let three = Threshold { max_fails: 3, ..ONCE };
        let standing = Standing::default();
        for n in 0..3 {
            assert!(!is_out(&standing));
            let _ = fail(&standing, at(1000 + n), Failure::Connect, three);
        }
        assert!(standing.is_out(at(11_001)) && !standing.is_out(at(11_002)), "others need not serve its clients");
        assert!(standing.admits(at(11_002)) && !standing.admits(at(11_003)), "one tries it");
        let _ = fail(&standing, at(11_004), Failure::Connect, three);
        assert!(standing.is_out(at(21_003)) && !standing.is_out(at(21_004)) && standing.admits(at(21_004)));
        standing.reached(at(21_005));
        assert!(!is_out(&standing) && (0..5).all(|_| standing.admits(at(21_005))));
        let _ = fail(&standing, at(30_000), Failure::Connect, three);
        assert!(is_out(&standing), "it has not answered yet");
    }

    #[test]
    fn failures_count_in_a_row_and_within_the_window() {
        let three = Threshold { max_fails: 3, ..ONCE };
        let standing = Standing::default();
        for n in 0..20 {
            assert_eq!(fail(&standing, at(n * 6000), Failure::Status, three), None, "too far apart");
        }
        for n in 0..20 {
            let start = 200_000 + n * 100;
            assert_eq!(fail(&standing, at(start), Failure::Status, three), None);
            assert_eq!(fail(&standing, at(start + 1), Failure::Status, three), None);
            assert_eq!(answer(&standing, at(start + 2)), None);
        }
        let _ = fail(&standing, at(300_000), Failure::Status, three);
        let _ = fail(&standing, at(300_001), Failure::Connect, three);
        assert!(fail(&standing, at(300_002), Failure::Broken, three).is_some());
    }

    #[test]
    fn a_request_that_others_overtook_tells_nothing_of_the_back_end() {
        let standing = Standing::default();
        let _ = standing.answered(at(5000), at(4990));
        for failure in [Failure::Timeout, Failure::Broken, Failure::Connect] {
            assert_eq!(standing.failed(at(9000), at(4000), failure, "slow".to_owned(), ONCE), None);
        }
        assert!(!is_out(&standing));
        assert!(standing.failed(at(9000), at(4000), Failure::Status, "500".to_owned(), ONCE).is_some());
    }

    #[test]
    fn what_a_stopping_server_finishes_does_not_bring_it_back() {
        let standing = Standing::default();
        let _ = fail(&standing, at(1000), Failure::Connect, ONCE);
        assert_eq!(standing.answered(at(1001), at(500)), None);
        assert!(is_out(&standing));
    }

    #[test]
    fn the_first_probe_decides_and_later_ones_need_company() {
        let standing = Standing::default();
        let key: Arc<str> = "p".into();
        assert_eq!(standing.watch(at(0), &[key]), None);
        assert!(!is_out(&standing), "in until something is known");
        assert_eq!(probe(&standing, at(1), false), out("no"));
        assert!(
            is_out(&standing)
                && !standing.claim_trial(at(1_000_000))
                && !standing.admits(at(1_000_000))
                && standing.is_out(at(1_000_000))
        );
        assert_eq!(standing.wait(at(1)), at(30_000), "three passes are missing");
        for now in [10_000, 20_000] {
            assert_eq!(probe(&standing, at(now), true), None);
        }
        assert_eq!(standing.wait(at(20_000)), at(10_000));
        assert_eq!(probe(&standing, at(30_000), true), back(29_999));
        assert_eq!(standing.returned(at(31_000)), Some(at(1000)));
        assert_eq!(probe(&standing, at(40_000), false), None);
        assert_eq!(probe(&standing, at(50_000), true), None);
        assert_eq!(probe(&standing, at(60_000), false), None);
        assert!(!is_out(&standing), "not in a row");
        assert_eq!(probe(&standing, at(70_000), false), out("no"));
    }

    #[test]
    fn a_reload_keeps_the_verdict_and_a_probe_that_goes_takes_it_along() {
        let standing = Standing::default();
        let keys: [Arc<str>; 2] = ["p".into(), "q".into()];
        standing.watch(at(0), &keys[..1]);
        probe(&standing, at(1), false);
        assert_eq!(standing.watch(at(2), &keys[..1]), None);
        assert!(is_out(&standing), "the same probe");
        assert_eq!(standing.watch(at(3), &keys[1..]), None);
        assert!(is_out(&standing), "another probe");
        assert_eq!(probe(&standing, at(4), true), None, "p is asked no more");
        assert!(is_out(&standing));
        let passed = standing.probed(at(5), "q", Ok("200".to_owned()), PACE, PACE.interval);
        assert_eq!(passed, back(4), "the first outcome of a new probe decides");
        standing.probed(at(6), "q", Err("no".to_owned()), PACE, PACE.interval);
        standing.probed(at(7), "q", Err("no".to_owned()), PACE, PACE.interval);
        assert!(is_out(&standing));
        assert_eq!(standing.watch(at(8), &[]), back(1));
        assert!(!is_out(&standing));
    }

    #[test]
    fn any_probe_in_force_may_hold_it_out() {
        let standing = Standing::default();
        let keys: [Arc<str>; 2] = ["p".into(), "q".into()];
        standing.watch(at(0), &keys);
        probe(&standing, at(1), true);
        assert!(standing.probed(at(2), "q", Err("no".to_owned()), PACE, PACE.interval).is_some());
        probe(&standing, at(3), true);
        assert!(is_out(&standing));
        assert_eq!(standing.view(at(3)).why.as_deref(), Some("no"));
    }

    #[test]
    fn a_probe_that_passes_acquits_of_all_but_bad_answers() {
        for (failure, acquitted) in [(Failure::Connect, true), (Failure::Timeout, true), (Failure::Status, false)] {
            let standing = Standing::default();
            standing.watch(at(0), &["p".into()]);
            assert!(fail(&standing, at(1000), failure, ONCE).is_some());
            assert_eq!(probe(&standing, at(1001), true).is_some(), acquitted, "{failure:?}");
            assert_eq!(is_out(&standing), !acquitted, "{failure:?}");
        }
    }

    #[test]
    fn of_many_that_ask_together_one_gets_the_trial() {
        let standing = Standing::default();
        let _ = fail(&standing, at(1000), Failure::Connect, ONCE);
        for round in 0..20 {
            let now = at(1200 + round * 1000);
            let claimed: usize = std::thread::scope(|scope| {
                let askers: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| (0..50).filter(|_| standing.claim_trial(now)).count())).collect();
                askers.into_iter().map(|asker| asker.join().unwrap()).sum()
            });
            assert_eq!(claimed, 1, "{now:?}");
        }
    }

    /// What can happen to a back end.
    #[derive(Debug, Clone)]
    enum Event {
        Fail(usize),
        Answer,
        Reached,
        Probe(bool),
        Watch(bool),
    }

    fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
        let event = prop_oneof![
            (0_usize..4).prop_map(Event::Fail),
            Just(Event::Answer),
            Just(Event::Reached),
            any::<bool>().prop_map(Event::Probe),
            any::<bool>().prop_map(Event::Watch),
        ];
        prop::collection::vec((0_u64..4000, event), 1..200)
    }

    fn play(standing: &Standing, now: Duration, event: &Event, threshold: Threshold) -> Option<News> {
        const ALL: [Failure; 4] = [Failure::Connect, Failure::Broken, Failure::Timeout, Failure::Status];
        match event {
            Event::Fail(which) => fail(standing, now, ALL[*which], threshold),
            Event::Answer => answer(standing, now),
            Event::Reached => {
                standing.reached(now);
                None
            }
            Event::Probe(well) => probe(standing, now, *well),
            Event::Watch(watched) => standing.watch(now, if *watched { &SAME[..] } else { &[] }),
        }
    }

    static SAME: std::sync::LazyLock<[Arc<str>; 1]> = std::sync::LazyLock::new(|| ["p".into()]);

    proptest! {
        #[test]
        fn requests_never_put_out_whom_max_fails_0_protects(events in events()) {
            let standing = Standing::default();
            let mut now = Duration::ZERO;
            for (pause, event) in &events {
                now += at(*pause);
                play(&standing, now, event, Threshold { max_fails: 0, ..ONCE });
                prop_assert!(!is_out(&standing) || standing.held.load(Relaxed));
            }
        }

        #[test]
        fn reports_alternate_and_what_is_out_always_has_a_way_back(events in events(), max_fails in 1_u32..4) {
            let standing = Standing::default();
            let (mut now, mut reported) = (Duration::ZERO, false);
            for (pause, event) in &events {
                now += at(*pause);
                match play(&standing, now, event, Threshold { max_fails, ..ONCE }) {
                    Some(News::Out { .. }) => prop_assert!(!std::mem::replace(&mut reported, true)),
                    Some(News::Back { .. }) => prop_assert!(std::mem::replace(&mut reported, false)),
                    None => {}
                }
                prop_assert!(!is_out(&standing) || reported, "out, and nobody was told");
                prop_assert!(is_out(&standing) || standing.wait(now).is_zero());
                prop_assert!(!is_out(&standing) || standing.returned(now).is_none());
                if is_out(&standing) && !standing.held.load(Relaxed) {
                    prop_assert!(standing.wait(now) <= ONCE.fail_timeout);
                    let then = stamp(now + standing.wait(now));
                    prop_assert!(then >= standing.next_trial.load(Relaxed));
                }
            }
            // Whatever was: probes that pass and an answer bring it back.
            for _ in 0..PACE.passes {
                now += at(1);
                probe(&standing, now, true);
            }
            standing.answered(now, now);
            prop_assert!(!is_out(&standing));
        }
    }
}
