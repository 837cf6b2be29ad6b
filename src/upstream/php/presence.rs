//! Whether a pool is there. A restart is a pool that is missing for a moment: requests wait for it. One that is missing
//! for longer is down: requests are refused, and one now and then finds out whether it is back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Between two requests that find out whether a pool is back.
pub(super) const TRIAL: Duration = Duration::from_millis(250);

/// What was found out so long ago may be otherwise by now.
const OLD: Duration = Duration::from_secs(1);

/// What is known of a pool's being there.
#[derive(Debug)]
pub(super) struct Presence {
    /// It was asked, and is not missing: what most requests want to know, without the lock.
    here: AtomicBool,
    state: Mutex<State>,
    returned: Notify,
}

#[derive(Debug)]
struct State {
    /// Since when it may be missing: it was not asked before.
    made: Instant,
    /// Whether it ever worked.
    seen: bool,
    missing: Option<Missing>,
    trial: Option<Instant>,
}

/// A pool that is not there.
#[derive(Debug, Clone)]
pub(super) struct Missing {
    /// Since when.
    pub since: Instant,
    /// What the system said.
    pub why: String,
    /// Whether it ever worked since this process began.
    pub seen: bool,
    /// When it was missed last.
    last: Instant,
}

impl Presence {
    /// A pool that nobody has asked yet.
    pub fn new() -> Presence {
        let state = State { made: Instant::now(), seen: false, missing: None, trial: None };
        Presence { here: AtomicBool::new(false), state: Mutex::new(state), returned: Notify::new() }
    }

    /// Where it is missing: since when and why.
    pub fn missing(&self) -> Option<Missing> {
        if self.here.load(Ordering::Acquire) {
            return None;
        }
        self.lock().missing.clone()
    }

    /// It could not be reached; true is said to the first who finds that out. One that never worked has been missing from
    /// the start.
    pub fn miss(&self, why: impl FnOnce() -> String) -> (Missing, bool) {
        let mut state = self.lock();
        self.here.store(false, Ordering::Release);
        let since = if state.seen { Instant::now() } else { state.made };
        let seen = state.seen;
        let first = state.missing.is_none();
        let now = Instant::now();
        let missing = state.missing.get_or_insert_with(|| Missing { since, why: why(), seen, last: now });
        missing.last = now;
        (missing.clone(), first)
    }

    /// It works. Gives how long it was missing, if it was.
    pub fn meet(&self) -> Option<Duration> {
        if self.here.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.lock();
        let missing = state.missing.take();
        state.seen = true;
        self.here.store(true, Ordering::Release);
        drop(state);
        self.returned.notify_waiters();
        missing.map(|missing| missing.since.elapsed())
    }

    /// It takes connections again: who waits may try at once. Whether it works is not known yet.
    pub fn stir(&self) {
        self.returned.notify_waiters();
    }

    /// Whether the caller is to find out if it is back. Where nobody has found out for a while, all who come are.
    pub fn claim_trial(&self) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        let is_old = state.missing.as_ref().is_some_and(|missing| now.duration_since(missing.last) >= OLD);
        let due = is_old || state.trial.is_none_or(|last| now.duration_since(last) >= TRIAL);
        if due {
            state.trial = Some(now);
        }
        due
    }

    /// Ready when it may be back, at the latest after `pause`.
    pub async fn wait(&self, pause: Duration) {
        tokio::select! {
            () = self.returned.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_worked_is_missing_from_its_first_failure_and_one_that_never_did_from_the_start() {
        let presence = Presence::new();
        let start = Instant::now();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(presence.missing().is_none(), "nobody has asked");
        let (missing, first) = presence.miss(|| "refused".to_owned());
        assert_eq!((missing.since, missing.seen, first), (start, false, true));
        assert_eq!(presence.meet(), Some(Duration::from_secs(60)));
        assert_eq!(presence.meet(), None);

        tokio::time::advance(Duration::from_secs(60)).await;
        let missed = Instant::now();
        assert_eq!(presence.miss(|| "refused".to_owned()).0.since, missed);
        tokio::time::advance(Duration::from_secs(1)).await;
        let (again, first) = presence.miss(|| "not found".to_owned());
        assert!(!first);
        assert_eq!((again.since, again.seen, again.why.as_str()), (missed, true, "refused"));
    }

    #[tokio::test(start_paused = true)]
    async fn trials_are_few_and_a_return_wakes_who_waits() {
        let presence = Presence::new();
        assert!(presence.claim_trial());
        assert!(!presence.claim_trial());
        tokio::time::advance(TRIAL).await;
        assert!(presence.claim_trial());
        // What nobody has looked at for a while keeps nobody out.
        presence.miss(|| "refused".to_owned());
        assert!(!presence.claim_trial());
        tokio::time::advance(OLD).await;
        assert!(presence.claim_trial() && presence.claim_trial());
        presence.miss(|| "refused".to_owned());
        assert!(!presence.claim_trial());

        let start = Instant::now();
        presence.wait(Duration::from_secs(9)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(9));
        let back = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            presence.meet();
        };
        tokio::join!(presence.wait(Duration::from_secs(9)), back);
        assert_eq!(start.elapsed(), Duration::from_secs(10));
    }
}
