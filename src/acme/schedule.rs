//! When a certificate is renewed, and why. Pure; the time is an argument.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::base::certified_name::CertifiedName;

/// The period of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Its begin.
    pub not_before: SystemTime,
    /// Its end.
    pub not_after: SystemTime,
}

/// When an authority would have a certificate renewed (RFC 9773).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its begin.
    pub start: SystemTime,
    /// Its end.
    pub end: SystemTime,
}

/// Why a certificate is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// There is none.
    Missing,
    /// The one there is cannot be served; the text says why.
    Unusable(String),
    /// The file has names that are not in it.
    Names(Vec<CertifiedName>),
    /// The file names other authorities than the one that it is from.
    OtherAuthority,
    /// The authority suggests it.
    Window,
    /// Two thirds of its life, or `renew_before`, have come.
    Age,
    /// A person asked for it.
    ByHand,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Missing => f.write_str("there is none yet"),
            Reason::Unusable(why) => write!(f, "the one there is cannot be served: {why}"),
            Reason::Names(names) => {
                let names: Vec<String> = names.iter().map(CertifiedName::to_string).collect();
                write!(f, "it does not name {}", names.join(", "))
            }
            Reason::OtherAuthority => f.write_str("it is from another authority than [acme] names"),
            Reason::Window => f.write_str("the authority suggests this time"),
            Reason::Age => f.write_str("its time is running out"),
            Reason::ByHand => f.write_str("asked for by hand"),
        }
    }
}

/// When a certificate is renewed of itself: after two thirds of its life, or `renew_before` its end, but never in its
/// first third. Up to a fiftieth of its life earlier by `seed`, so that certificates that came at once do not go at
/// once.
pub fn by_age(life: Life, renew_before: Option<Duration>, seed: u64) -> SystemTime {
    let length = life.not_after.duration_since(life.not_before).unwrap_or_default();
    let before = renew_before.unwrap_or(length / 3).min(length / 3 * 2);
    let jitter = share(length / 50, seed);
    life.not_after - before - jitter
}

/// The moment within the window that `seed` chooses: RFC 9773, section 4.2: "Select a uniform random time within the
/// suggested window." The same one after a restart. `None` where the window is no help: it ends before it begins, or so
/// late that nothing could go wrong any more before the certificate ends.
pub fn within(window: Window, life: Life, seed: u64) -> Option<SystemTime> {
    let length = window.end.duration_since(window.start).ok()?;
    let chosen = window.start + share(length, seed);
    let life_length = life.not_after.duration_since(life.not_before).unwrap_or_default();
    (chosen <= life.not_after - life_length / 50).then_some(chosen)
}

/// A part of `length` that `seed` chooses.
fn share(length: Duration, seed: u64) -> Duration {
    const PARTS: u64 = 1 << 20;
    // Spread, so that neighbouring seeds differ much.
    let part = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % PARTS;
    length.mul_f64(part as f64 / PARTS as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn life(days: u32) -> Life {
        let not_before = SystemTime::UNIX_EPOCH + DAY * 20_000;
        Life { not_before, not_after: not_before + DAY * days }
    }

    fn day_of(life: Life, time: SystemTime) -> f64 {
        time.duration_since(life.not_before).unwrap().as_secs_f64() / DAY.as_secs_f64()
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life() {
        for (days, least, most) in [(90, 58.2, 60.0), (6, 3.87, 4.0), (47, 30.3, 31.4), (1825, 1180.0, 1216.7)] {
            let life = life(days);
            for seed in [0, 1, u64::MAX, 0x1234_5678] {
                let day = day_of(life, by_age(life, None, seed));
                assert!((least..=most).contains(&day), "{days} days: day {day}");
            }
        }
    }

    #[test]
    fn renew_before_is_kept_to_but_never_makes_a_loop() {
        let day = |days: u32, before: u32| day_of(life(days), by_age(life(days), Some(DAY * before), 0));
        assert_eq!(day(90, 30), 60.0);
        assert_eq!(day(90, 7), 83.0);
        // 30 days before the end of a certificate of six days would be for ever due.
        assert_eq!(day(6, 30), 2.0);
    }

    #[test]
    fn a_window_that_is_no_help_is_not_used() {
        let life = life(90);
        let at = |day: u32| life.not_before + DAY * day;
        assert_eq!(within(Window { start: at(70), end: at(60) }, life, 1), None);
        assert_eq!(within(Window { start: at(90), end: at(95) }, life, 1), None);
        // One in the past (the certificate is to be revoked) is now.
        let past = Window { start: at(0) - DAY * 9, end: at(0) - DAY * 8 };
        assert!(within(past, life, 1).unwrap() < at(0));
    }

    proptest! {
        #[test]
        fn the_chosen_moment_is_in_the_window_and_always_the_same(seed: u64, start in 0u32..80, length in 0u32..8) {
            let life = life(90);
            let start = life.not_before + DAY * start;
            let window = Window { start, end: start + DAY * length };
            let chosen = within(window, life, seed).unwrap();
            prop_assert!(window.start <= chosen && chosen <= window.end);
            prop_assert_eq!(within(window, life, seed), Some(chosen));
        }
    }
}
