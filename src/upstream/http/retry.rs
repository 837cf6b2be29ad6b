//! How many requests of one upstream may be sent a second time: where back ends die under load, they do not get twice
//! as much of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::base::cached_time;

/// What is counted together.
const WINDOW: Duration = Duration::from_secs(10);
/// One retry for so many requests of this window and the one before.
const REQUESTS: u64 = 5;
/// And so many in any case: ten for each second of a window.
const ANYWAY: u64 = 100;

/// Counts of one upstream. Shared by the workers, without a lock: at the turn of a window a few may go uncounted.
pub(super) struct RetryBudget {
    made: Instant,
    window: AtomicU64,
    now: Counts,
    before: Counts,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    retries: AtomicU64,
}

impl RetryBudget {
    pub(super) fn new() -> RetryBudget {
        let (now, before) = (Counts::default(), Counts::default());
        RetryBudget { made: Instant::now(), window: AtomicU64::new(0), now, before }
    }

    /// A request has come.
    pub(super) fn request(&self) {
        self.request_at(cached_time::since(self.made));
    }

    /// Whether one more may be sent a second time; counts it.
    pub(super) fn claim(&self) -> bool {
        self.claim_at(cached_time::since(self.made))
    }

    fn request_at(&self, now: Duration) {
        self.turn(now);
        self.now.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn claim_at(&self, now: Duration) -> bool {
        self.turn(now);
        let sum = |of: fn(&Counts) -> &AtomicU64| {
            of(&self.now).load(Ordering::Relaxed).saturating_add(of(&self.before).load(Ordering::Relaxed))
        };
        let allowed = sum(|counts| &counts.requests) / REQUESTS + ANYWAY;
        let spare = sum(|counts| &counts.retries) < allowed;
        if spare {
            self.now.retries.fetch_add(1, Ordering::Relaxed);
        }
        spare
    }

    /// Begins the window of `now`, if nobody has.
    fn turn(&self, now: Duration) {
        let current = now.as_secs() / WINDOW.as_secs();
        let window = self.window.load(Ordering::Relaxed);
        if window >= current
            || self.window.compare_exchange(window, current, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let shift = |now: &AtomicU64, before: &AtomicU64| {
            let counted = now.swap(0, Ordering::Relaxed);
            before.store(if current == window + 1 { counted } else { 0 }, Ordering::Relaxed);
        };
        shift(&self.now.requests, &self.before.requests);
        shift(&self.now.retries, &self.before.retries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_fifth_of_the_requests_and_a_hundred() {
        let budget = RetryBudget::new();
        let at = Duration::from_secs;
        (0..1000).for_each(|_| budget.request_at(at(1)));
        assert_eq!((0..1000).filter(|_| budget.claim_at(at(2))).count(), 300);
        assert!(!budget.claim_at(at(12)), "the window before counts as well");
        (0..50).for_each(|_| budget.request_at(at(13)));
        assert_eq!((0..1000).filter(|_| budget.claim_at(at(13))).count(), 10);
        assert_eq!((0..1000).filter(|_| budget.claim_at(at(40))).count(), 100, "what is long ago does not");
    }
}
