//! A word to the operator about what is counted, at most once a minute: whoever can cause it must not fill the disk.

use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(60);

/// What was told last.
#[derive(Debug, Default)]
pub struct Told {
    at: Option<Instant>,
    count: u64,
}

impl Told {
    /// How many of `count` are still to be told, if it is time.
    pub fn fresh(&mut self, count: u64, now: Instant) -> Option<u64> {
        let fresh = count.saturating_sub(self.count);
        if fresh == 0 || self.at.is_some_and(|at| now.saturating_duration_since(at) < EVERY) {
            return None;
        }
        *self = Told { at: Some(now), count };
        Some(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_told_once_a_minute() {
        let (mut told, start) = (Told::default(), Instant::now());
        assert_eq!(told.fresh(0, start), None);
        assert_eq!(told.fresh(3, start), Some(3));
        assert_eq!(told.fresh(7, start + EVERY / 2), None);
        assert_eq!(told.fresh(7, start + EVERY), Some(4));
        assert_eq!(told.fresh(7, start + 3 * EVERY), None);
    }
}
