//! What comes of an order that failed, at one authority or at several: what is told, and how long is waited.

use std::time::Duration;

use super::failure::{Failure, FailureKind};
use super::ledger::wait_after;

/// How soon is looked again at what only this machine is to blame for.
const OWN_FAULT: Duration = Duration::from_secs(60);
/// How soon a certificate that is not valid yet is looked at again.
const CLOCK: Duration = Duration::from_secs(300);

/// What all authorities together came to.
pub(super) struct Setback {
    /// The last failure that is worth telling.
    pub failure: Failure,
    /// When the first of them may be asked again.
    pub wait: Duration,
    /// How often in a row they were asked in vain.
    pub times: u32,
}

impl Setback {
    /// After `times` others in a row.
    pub fn of(failure: Failure, times: u32) -> Setback {
        use FailureKind::{Clock, Key, NotYetValid, Storage, Wait};
        let (times, back_off) = match failure.kind {
            // Nobody was asked: looking again costs nobody anything, and says nothing of the authority.
            Storage | Key | Clock => (times, OWN_FAULT),
            Wait => (times, Duration::ZERO),
            // The certificate is there: it is the clock that is waited for.
            NotYetValid => (times, CLOCK),
            _ => (times.saturating_add(1), Duration::from_millis(wait_after(times as usize))),
        };
        let wait = back_off.max(failure.retry_after.unwrap_or_default());
        Setback { failure, wait, times }
    }

    /// This one, after that of another authority.
    pub fn after(self, before: Option<Setback>) -> Setback {
        let Some(before) = before else { return self };
        let (wait, times) = (self.wait.min(before.wait), self.times.max(before.times));
        // A wait is not news.
        let failure = if self.failure.kind == FailureKind::Wait { before.failure } else { self.failure };
        Setback { failure, wait, times }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setback(kind: FailureKind, retry_after: Option<u64>, times: u32) -> Setback {
        let mut failure = Failure::new(kind, format!("{kind:?}"));
        failure.retry_after = retry_after.map(Duration::from_secs);
        Setback::of(failure, times)
    }

    #[test]
    fn the_wait_grows_while_authorities_are_asked_in_vain() {
        use FailureKind::{Clock, NotYetValid, Storage, Unreachable, Wait};
        for (kind, retry_after, before, wait, times) in [
            (Unreachable, None, 0, 60, 1),
            (Unreachable, None, 1, 300, 2),
            (Unreachable, None, 100, 24 * 3600, 101),
            (Unreachable, Some(7200), 1, 7200, 2),
            // Nobody was asked.
            (Storage, None, 9, 60, 9),
            (Clock, None, 9, 60, 9),
            (NotYetValid, None, 9, 300, 9),
            (Wait, Some(90), 9, 90, 9),
        ] {
            let setback = setback(kind, retry_after, before);
            assert_eq!((setback.wait.as_secs(), setback.times), (wait, times), "{kind:?} after {before}");
        }
    }

    #[test]
    fn of_several_authorities_the_one_that_may_be_asked_first_counts() {
        use FailureKind::{RateLimited, Unreachable, Wait};
        let both = setback(RateLimited, Some(72_000), 0).after(Some(setback(Unreachable, None, 0)));
        assert_eq!((both.wait.as_secs(), both.failure.kind), (60, RateLimited));
        let both = setback(Wait, Some(3600), 3).after(Some(setback(Unreachable, None, 3)));
        assert_eq!((both.wait.as_secs(), both.failure.kind, both.times), (3600, Unreachable, 4));
    }
}
