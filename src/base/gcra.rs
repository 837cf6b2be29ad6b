//! The generic cell rate algorithm (ITU-T I.371): a rate and a burst, kept in one number for each client. The number is
//! the *theoretical arrival time*: when a client that had come evenly would be due. A client is late (idle) where it
//! lies behind now, and in debt as far as it lies ahead.

use std::time::Duration;

use crate::base::rate::Rate;

/// A rate and a burst. Times are nanoseconds since a moment of the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gcra {
    /// The time that one takes.
    interval: u64,
    /// The debt up to which one more is admitted.
    tolerance: u64,
}

impl Gcra {
    /// `rate` in the long run, and `burst` at once beyond it: of an idle client `burst + 1` pass at once.
    pub fn new(rate: Rate, burst: u32) -> Gcra {
        // Rounded up: the rate is not exceeded by what a division leaves.
        let per = u64::try_from(rate.per.as_nanos()).unwrap_or(u64::MAX);
        let interval = per.div_ceil(u64::from(rate.count.max(1))).max(1);
        Gcra { interval, tolerance: interval.saturating_mul(u64::from(burst)) }
    }

    /// What is left at `now` of a client's `due` that was made with other numbers, before a reload: the most that these
    /// numbers could have made of it. Of their own it leaves everything as it is. It has to be kept in the place of
    /// `due`: as time goes on, it would give less and less time back.
    pub fn adopt(&self, due: u64, now: u64) -> u64 {
        due.min(now.saturating_add(self.tolerance).saturating_add(self.interval))
    }

    /// Whether one more may pass at `now` of a client that is due at `due`: when it is due then, or how long it has to
    /// wait. After exactly that time it passes, if nothing else of it does. A refusal costs nothing.
    pub fn admit(&self, due: u64, now: u64) -> Result<u64, Duration> {
        let due = due.max(now);
        let debt = due - now;
        if debt > self.tolerance {
            return Err(Duration::from_nanos(debt - self.tolerance));
        }
        Ok(due.saturating_add(self.interval))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn gcra(rate: &str, burst: u32) -> Gcra {
        Gcra::new(Rate::parse(rate).unwrap(), burst)
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let limit = gcra("10/s", 3);
        let now = 50 * SECOND;
        let mut due = 0;
        for _ in 0..4 {
            due = limit.admit(due, now).unwrap();
        }
        assert_eq!(limit.admit(due, now), Err(Duration::from_millis(100)));
        assert_eq!(limit.admit(due, now + SECOND / 10 - 1), Err(Duration::from_nanos(1)));
        due = limit.admit(due, now + SECOND / 10).unwrap();
        assert!(limit.admit(due, now + SECOND / 10).is_err());
        // A second later the whole burst is there again.
        let now = now + SECOND;
        for _ in 0..4 {
            due = limit.admit(due, now).unwrap();
        }
        assert!(limit.admit(due, now).is_err());
    }

    #[test]
    fn without_a_burst_one_passes_in_each_interval() {
        let limit = gcra("1/m", 0);
        let due = limit.admit(0, SECOND).unwrap();
        assert_eq!(limit.admit(due, SECOND), Err(Duration::from_secs(60)));
        assert!(limit.admit(due, 61 * SECOND).is_ok());
    }

    #[test]
    fn a_debt_of_other_numbers_costs_one_interval_at_most() {
        let (slow, fast) = (gcra("1/m", 100), gcra("100/s", 0));
        let now = 1000 * SECOND;
        let mut due = 0;
        for _ in 0..101 {
            due = slow.admit(due, now).unwrap();
        }
        assert_eq!(slow.adopt(due, now), due, "its own numbers");
        let adopted = fast.adopt(due, now);
        assert_eq!(fast.admit(adopted, now), Err(Duration::from_millis(10)));
        let now = now + SECOND / 100;
        assert_eq!(fast.adopt(adopted, now), adopted);
        assert!(fast.admit(adopted, now).is_ok(), "the wait that was told is enough");
        // The same numbers with a smaller burst: what was used is used.
        let small = gcra("1/m", 50);
        assert_eq!(small.admit(small.adopt(due, now), now), Err(Duration::from_secs(60)));
    }

    #[test]
    fn the_ends_of_the_scale_are_no_special_case() {
        for burst in [0, 1, 1_000_000, u32::MAX] {
            for rate in ["1/m", "1000000/s"] {
                let limit = gcra(rate, burst);
                for (due, now) in [(0, 0), (0, u64::MAX), (u64::MAX, 0), (u64::MAX, u64::MAX)] {
                    let _ = limit.admit(limit.adopt(due, now), now);
                }
            }
        }
    }

    proptest! {
        /// Against the plain meaning: of any two admitted moments with n others between them, n + 2 passed in that time,
        /// and no more than burst + 1 + rate × time may.
        #[test]
        fn no_window_admits_more_than_burst_and_rate(
            count in 1_u32..50,
            burst in 0_u32..20,
            steps in prop::collection::vec(0_u64..300_000_000, 1..300),
        ) {
            let limit = Gcra::new(Rate { count, per: Duration::from_secs(1) }, burst);
            let (mut now, mut due) = (SECOND, 0);
            let mut admitted = Vec::new();
            for step in steps {
                now += step;
                match limit.admit(due, now) {
                    Ok(next) => {
                        due = next;
                        admitted.push(now);
                    }
                    Err(wait) => {
                        let wait = u64::try_from(wait.as_nanos()).unwrap();
                        prop_assert!(wait > 0);
                        prop_assert!(limit.admit(due, now + wait).is_ok(), "the wait that was told is enough");
                        prop_assert!(limit.admit(due, now + wait - 1).is_err(), "and not more than that");
                    }
                }
            }
            for (first, from) in admitted.iter().enumerate() {
                for (last, to) in admitted.iter().enumerate().skip(first) {
                    let passed = (last - first + 1) as u128;
                    let most = u128::from(burst) + 1 + u128::from(to - from) * u128::from(count) / u128::from(SECOND);
                    prop_assert!(passed <= most, "{passed} in {} ns", to - from);
                }
            }
        }

        /// Against a bucket of tokens that is filled evenly: both admit the same.
        #[test]
        fn it_is_a_bucket_of_tokens(burst in 0_u32..10, steps in prop::collection::vec(0_u64..400, 1..200)) {
            // 10/s, and times in whole milliseconds: the bucket holds hundredths of a token.
            let limit = Gcra::new(Rate { count: 10, per: Duration::from_secs(1) }, burst);
            let full = 100 * (u64::from(burst) + 1);
            let (mut now, mut due, mut bucket) = (1_u64, 0, full);
            for step in steps {
                now += step;
                bucket = (bucket + step).min(full);
                let passes = limit.admit(due, now * 1_000_000);
                prop_assert_eq!(passes.is_ok(), bucket >= 100);
                if let Ok(next) = passes {
                    due = next;
                    bucket -= 100;
                }
            }
        }
    }
}
