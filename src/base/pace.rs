//! Whether somebody whom we wait for is fast enough, on average.

use std::time::Duration;

/// Forgiven at the beginning, beside a pause.
const GRACE: Duration = Duration::from_secs(5);

/// The time that somebody may still keep us waiting. Waiting uses it up, bytes earn it; there is never more of it than
/// one pause and a grace. So a pause costs nobody a connection that is faster than the rate between its pauses, and a
/// byte now and then keeps none.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Bytes a second; 0 is no limit.
    rate: u64,
    most: Duration,
    left: Duration,
}

impl Pace {
    /// `rate` is in bytes a second, and a `pause` is forgiven. No rate is no limit.
    pub fn new(rate: Option<u64>, pause: Duration) -> Pace {
        let most = pause.saturating_add(GRACE);
        Pace { rate: rate.unwrap_or(0), most, left: most }
    }

    /// How long may be waited from now on; `None` is for ever.
    pub fn left(&self) -> Option<Duration> {
        (self.rate > 0).then_some(self.left)
    }

    /// We have waited for so long.
    pub fn spend(&mut self, waited: Duration) {
        self.left = self.left.saturating_sub(waited);
    }

    /// So many bytes have come or gone.
    pub fn earn(&mut self, bytes: usize) {
        if self.rate > 0 && self.left < self.most {
            let earned = (bytes as u64).saturating_mul(1_000_000) / self.rate;
            self.left = self.left.saturating_add(Duration::from_micros(earned)).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(60);

    /// Seconds that pass until a client has used up its time that sends `bytes` after each `wait` seconds.
    fn lasts(bytes: usize, wait: u64) -> Option<u64> {
        let mut pace = Pace::new(Some(240), PAUSE);
        (1..100_000).find_map(|round| {
            let wait = Duration::from_secs(wait);
            if pace.left().unwrap() <= wait {
                return Some(round * wait.as_secs());
            }
            pace.spend(wait);
            pace.earn(bytes);
            None
        })
    }

    #[test]
    fn a_trickle_ends_and_a_slow_link_does_not() {
        assert_eq!(lasts(240, 1), None, "a modem");
        assert_eq!(lasts(2400, 10), None, "in bursts");
        assert_eq!(lasts(20_000, 60), None, "with pauses as long as they may be");
        assert_eq!(lasts(1, 10), Some(70), "a byte now and then");
        assert_eq!(lasts(1, 1), Some(66));
        assert_eq!(lasts(120, 1), Some(129), "half as fast as it has to be");
        assert_eq!(lasts(0, 66), Some(66));
    }

    #[test]
    fn what_was_sent_in_a_rush_buys_no_more_than_one_pause() {
        let mut pace = Pace::new(Some(240), PAUSE);
        pace.earn(1 << 40);
        assert_eq!(pace.left(), Some(PAUSE + GRACE));
        pace.spend(Duration::from_secs(1000));
        assert_eq!(pace.left(), Some(Duration::ZERO));
        pace.earn(usize::MAX);
        assert_eq!(pace.left(), Some(PAUSE + GRACE));
        assert_eq!(Pace::new(None, PAUSE).left(), None);
    }
}
