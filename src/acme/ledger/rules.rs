//! The rules, as functions of the book and the time. Times are milliseconds since 1970.

use super::book::{Book, EndResult, Entry};
use super::{Wait, moment};

const MINUTE: u64 = 60_000;
/// One hour.
pub const HOUR: u64 = 60 * MINUTE;
/// One day.
pub const DAY: u64 = 24 * HOUR;

/// How long to wait after so many attempts without a certificate. The last one is for all that come after.
const BACK_OFF: [u64; 8] = [MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, 24 * HOUR];
/// Let's Encrypt: 5 failed validations for a name, an account and an hour.
const FAILURES_OF_A_NAME: usize = 4;
/// Let's Encrypt: 5 certificates for the same names in 7 days.
const CERTIFICATES_OF_A_SET: usize = 4;
/// Let's Encrypt: 300 orders of an account in 3 hours.
const ORDERS: usize = 250;
/// Let's Encrypt: 10 accounts of an address in 3 hours.
const ACCOUNTS: usize = 5;
/// How long an order that has not ended may still bring a certificate. One takes ten minutes at most.
const OPEN: u64 = HOUR;

/// How many milliseconds are waited after one more attempt without a certificate than `before`.
pub fn wait_after(before: usize) -> u64 {
    BACK_OFF.get(before).or(BACK_OFF.last()).copied().unwrap_or(DAY)
}

/// Whether an order for `names`, sorted, may be placed.
pub fn may_order(book: &Book, authority: &str, names: &[String], by_hand: bool, now: u64) -> Result<(), Wait> {
    let entries: Vec<&Entry> = book.orders.values().filter(|entry| entry.authority == authority).collect();
    let of_set: Vec<&Entry> = entries.iter().copied().filter(|entry| entry.names == names).collect();
    let back_off = if by_hand { None } else { back_off(book, &of_set, names, now) };
    let refusals = [
        back_off,
        failures_of_a_name(&entries, names, now),
        certificates_of_the_set(&of_set, now),
        orders(&entries, now),
        retry_after(&entries, names, now),
    ];
    strictest(refusals, now)
}

/// Whether a new account may be made.
pub fn may_register(book: &Book, authority: &str, now: u64) -> Result<(), Wait> {
    let accounts = book.accounts.values().filter(|account| account.authority == authority);
    let ends = accounts.map(|account| account.begun.seen(now).saturating_add(3 * HOUR));
    let many = room_at(ACCOUNTS, ends, now)
        .map(|until| (until, format!("{ACCOUNTS} accounts were made at this authority within three hours")));
    let lost = book.lost.as_ref().map(|lost| (lost.at.seen(now).saturating_add(MINUTE), LOST.to_owned()));
    strictest([many, lost], now)
}

/// When and why the last attempt for `names`, sorted, failed, if no certificate came after it.
pub fn last_failure<'b>(book: &'b Book, authority: Option<&str>, names: &[String]) -> Option<(u64, &'b str)> {
    let of_set = book.orders.values().filter(|entry| entry.names == names);
    let here = of_set.filter(|entry| authority.is_none_or(|authority| entry.authority == authority));
    let last = here.filter(|entry| entry.end.is_some()).max_by_key(|entry| entry.place())?;
    match &last.end.as_ref()?.result {
        EndResult::Failed { why, .. } => Some((last.last(u64::MAX), why)),
        EndResult::Issued { .. } => None,
    }
}

const LOST: &str = "the ledger of orders was lost, and what was ordered before is not known";

type Refusal = Option<(u64, String)>;

/// The refusal that lasts longest, if one lasts beyond now.
fn strictest<const N: usize>(refusals: [Refusal; N], now: u64) -> Result<(), Wait> {
    let lasting = refusals.into_iter().flatten().filter(|(until, _)| *until > now);
    match lasting.max_by_key(|(until, _)| *until) {
        Some((until, why)) => Err(Wait { until: moment(until), why }),
        None => Ok(()),
    }
}

fn back_off(book: &Book, of_set: &[&Entry], names: &[String], now: u64) -> Refusal {
    let failures = of_set.iter().filter(|entry| entry.due().is_none());
    let failures = failures.map(|entry| (entry.place(), entry.last(now), reason(entry)));
    // The loss of the ledger is a failure of everything.
    let lost = book.lost.iter().map(|lost| (lost.nth, lost.at.seen(now), LOST));
    let success = last_success(of_set);
    let since: Vec<_> = failures.chain(lost).filter(|(place, ..)| success.is_none_or(|last| *place > last)).collect();
    let last = since.iter().map(|(_, at, _)| *at).max()?;
    let (.., why) = since.iter().max_by_key(|(place, ..)| *place)?;
    let wait = wait_after(since.len().saturating_sub(1));
    let why = match since.len() {
        1 => format!("the last attempt brought no certificate: {why}"),
        count => format!("the last {count} attempts brought no certificate: {why}"),
    };
    Some((last.saturating_add(with_jitter(wait, names)), why))
}

fn failures_of_a_name(entries: &[&Entry], names: &[String], now: u64) -> Refusal {
    let of_name = |name: &String| {
        let failed = entries.iter().filter(|entry| entry.due().is_none() && entry.names.contains(name));
        let ends = failed.map(|entry| entry.last(now).saturating_add(HOUR));
        let until = room_at(FAILURES_OF_A_NAME, ends, now)?;
        Some((until, format!("{FAILURES_OF_A_NAME} attempts for {name} brought no certificate within an hour")))
    };
    names.iter().filter_map(of_name).max_by_key(|(until, _)| *until)
}

fn certificates_of_the_set(of_set: &[&Entry], now: u64) -> Refusal {
    let ends = of_set.iter().map(|entry| match entry.due() {
        Some(due) => due.min(entry.last(now).saturating_add(7 * DAY)),
        None if entry.is_unused() => entry.last(now).saturating_add(7 * DAY),
        None if entry.end.is_none() => entry.begun.seen(now).saturating_add(OPEN),
        None => 0,
    });
    let until = room_at(CERTIFICATES_OF_A_SET, ends, now)?;
    Some((
        until,
        format!(
            "{CERTIFICATES_OF_A_SET} certificates for exactly these names were ordered within 7 days, and none of them \
             is due for renewal: use those, or find out what loses them or keeps them from use"
        ),
    ))
}

fn orders(entries: &[&Entry], now: u64) -> Refusal {
    let ends = entries.iter().map(|entry| entry.begun.seen(now).saturating_add(3 * HOUR));
    let until = room_at(ORDERS, ends, now)?;
    Some((until, format!("{ORDERS} orders were placed with this authority within three hours")))
}

/// An authority that refused some names refuses them together with others as well. A set that lacks one of them may be
/// let through.
fn retry_after(entries: &[&Entry], names: &[String], now: u64) -> Refusal {
    let mut strictest: Refusal = None;
    for entry in entries.iter().filter(|entry| entry.names.iter().all(|name| names.contains(name))) {
        let Some(EndResult::Failed { why, retry_after: Some(wait), .. }) = entry.end.as_ref().map(|end| &end.result)
        else {
            continue;
        };
        let until = entry.last(now).saturating_add(*wait);
        let of_same_set: Vec<&Entry> = entries.iter().copied().filter(|other| other.names == entry.names).collect();
        let is_settled = last_success(&of_same_set).is_some_and(|success| success > entry.place());
        if !is_settled && strictest.as_ref().is_none_or(|(longest, _)| until > *longest) {
            strictest = Some((until, format!("the authority asked to be left alone: {why}")));
        }
    }
    strictest
}

/// The place of the last certificate.
fn last_success(of_set: &[&Entry]) -> Option<u64> {
    of_set.iter().filter(|entry| entry.due().is_some()).map(|entry| entry.place()).max()
}

/// When fewer than `limit` of what counts until `ends` are left; `None` when that is so now.
fn room_at(limit: usize, ends: impl Iterator<Item = u64>, now: u64) -> Option<u64> {
    let mut ends: Vec<u64> = ends.filter(|end| *end > now).collect();
    ends.sort_unstable();
    ends.len().checked_sub(limit).and_then(|over| ends.get(over).copied())
}

fn reason(entry: &Entry) -> &str {
    match entry.end.as_ref().map(|end| &end.result) {
        Some(EndResult::Failed { why, .. }) => why,
        _ => "it has not ended, or its process was killed",
    }
}

/// `wait` ±10 %, always the same for the same names. FNV-1a: nobody gains anything by choosing names.
fn with_jitter(wait: u64, names: &[String]) -> u64 {
    let bytes = names.iter().flat_map(|name| name.bytes().chain([0]));
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let tenth = wait / 10;
    // The high bits are the well mixed ones.
    (wait - tenth) + (hash >> 32) % (2 * tenth + 1)
}

#[cfg(test)]
mod tests {
    use super::super::{Attempt, millis};
    use super::*;

    const CA: &str = "https://ca.example/directory";
    const START: u64 = 1_800_000_000_000;

    /// A book that is written by hand.
    struct Story(Book);

    impl Story {
        fn new() -> Story {
            Story(Book::new())
        }

        fn begin(&mut self, names: &str, now: u64) -> Attempt {
            let names = split(names);
            let id = self.0.begin(CA, &names, now);
            Attempt { id, authority: CA.to_owned(), names, at: now }
        }

        fn failed(&mut self, names: &str, now: u64) {
            self.refused(names, None, now);
        }

        fn refused(&mut self, names: &str, retry_after: Option<u64>, now: u64) {
            let attempt = self.begin(names, now);
            let retry_after = retry_after.map(std::time::Duration::from_millis);
            self.0.end(&attempt, EndResult::failed("no such host", retry_after), now);
        }

        fn issued(&mut self, names: &str, now: u64, due: u64) {
            let attempt = self.begin(names, now);
            self.0.end(&attempt, EndResult::Issued { due }, now);
        }

        /// How long an order has to wait; nothing when it need not.
        fn wait(&self, names: &str, by_hand: bool, now: u64) -> u64 {
            self.wait_at(CA, names, by_hand, now)
        }

        fn wait_at(&self, authority: &str, names: &str, by_hand: bool, now: u64) -> u64 {
            let names = split(names);
            let Err(wait) = may_order(&self.0, authority, &names, by_hand, now) else { return 0 };
            let until = millis(wait.until);
            assert!(until > now, "{wait:?}");
            // What is told is exactly when it is over.
            let again = |now| may_order(&self.0, authority, &names, by_hand, now);
            assert!(again(until - 1).is_err() && again(until).is_ok(), "{wait:?}");
            until - now
        }
    }

    fn split(names: &str) -> Vec<String> {
        names.split(' ').map(str::to_owned).collect()
    }

    #[track_caller]
    fn nearly(wait: u64, expected: u64) {
        assert!(wait >= expected - expected / 10 && wait <= expected + expected / 10, "{wait} is not about {expected}");
    }

    #[test]
    fn the_wait_grows_with_every_attempt_that_brought_no_certificate() {
        const MINUTES: [u64; 10] = [1, 5, 15, 60, 180, 360, 720, 1440, 1440, 1440];
        for ends in [true, false] {
            let mut story = Story::new();
            for (already, minutes) in MINUTES.into_iter().enumerate() {
                // Two hours apart, so that no other rule speaks.
                let now = START + already as u64 * 2 * HOUR;
                if ends {
                    story.failed("a b", now)
                } else {
                    drop(story.begin("a b", now))
                }
                nearly(story.wait("a b", false, now), minutes * MINUTE);
                assert_eq!(story.wait("a b", true, now), 0, "a person does not wait");
                assert_eq!(story.wait("a", false, now) + story.wait("a b c", false, now), 0, "other sets");
                assert_eq!(story.wait_at("https://other.example", "a b", false, now), 0);
            }
            let now = START + 21 * HOUR;
            story.issued("a b", now, now + DAY);
            assert_eq!(story.wait("a b", false, now), 0, "a certificate ends it");
            story.failed("a b", now + HOUR);
            nearly(story.wait("a b", false, now + HOUR), MINUTE);
        }
    }

    #[test]
    fn sites_that_failed_together_come_back_apart_and_always_the_same() {
        let waits = |count: u64| -> Vec<u64> {
            let names = (0..count).map(|n| format!("site{n}.example"));
            let wait = |name: String| {
                let mut story = Story::new();
                story.failed(&name, START);
                story.wait(&name, false, START)
            };
            names.map(wait).collect()
        };
        let (waits, again) = (waits(200), waits(200));
        assert_eq!(waits, again);
        let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(*least < 55_500 && *most > 64_500, "{least} to {most}");
        waits.iter().for_each(|wait| nearly(*wait, MINUTE));
    }

    #[test]
    fn a_name_fails_four_times_an_hour_in_whatever_company() {
        let mut story = Story::new();
        for (minute, names) in [(0, "a"), (10, "a b"), (20, "a c"), (30, "a d")] {
            assert_eq!(story.wait("a e", false, START + minute * MINUTE), 0);
            story.failed(names, START + minute * MINUTE);
        }
        let now = START + 31 * MINUTE;
        for by_hand in [false, true] {
            assert_eq!(story.wait("a e", by_hand, now), 29 * MINUTE);
            assert_eq!(story.wait("e", by_hand, now), 0);
            assert_eq!(story.wait_at("https://other.example", "a e", by_hand, now), 0);
        }
        story.issued("a f", now, now + DAY);
        assert_eq!(story.wait("a e", false, now), 29 * MINUTE, "a certificate takes no failure back");
    }

    #[test]
    fn a_certificate_that_was_issued_and_not_used_counts_as_one() {
        let mut story = Story::new();
        for minute in [0, 1, 6, 21] {
            let now = START + minute * MINUTE;
            let attempt = story.begin("a b", now);
            story.0.end(&attempt, EndResult::unused("not valid yet", None), now);
            // What fails when it is fetched again does not take it back.
            story.0.end(&attempt, EndResult::failed("no answer", None), now);
        }
        for by_hand in [false, true] {
            assert_eq!(story.wait("a b", by_hand, START + 2 * DAY), 5 * DAY);
        }
        story.0.prune(START + 2 * DAY);
        assert_eq!(story.wait("a b", true, START + 2 * DAY), 5 * DAY);
        assert_eq!(story.wait("a", true, START + 2 * DAY), 0);
    }

    #[test]
    fn the_same_certificate_is_not_ordered_again_and_again() {
        let mut story = Story::new();
        for hour in [0, 5, 10, 15] {
            assert_eq!(story.wait("a b", false, START + hour * HOUR), 0);
            story.issued("a b", START + hour * HOUR, START + 60 * DAY);
            story.0.prune(START + hour * HOUR);
        }
        let now = START + 16 * HOUR;
        for by_hand in [false, true] {
            assert_eq!(story.wait("a b", by_hand, now), 7 * DAY - 16 * HOUR);
            assert_eq!(story.wait("a b c", by_hand, now) + story.wait("a", by_hand, now), 0, "other sets");
        }
        let mut story = Story::new();
        for due in [2, 5, 3, 4] {
            story.issued("a b", START, START + due * DAY);
        }
        assert_eq!(story.wait("a b", false, START), 2 * DAY, "what is due does not count");
        let mut story = Story::new();
        (0..3).for_each(|_| story.issued("a b", START, START + 60 * DAY));
        let open = story.begin("a b", START);
        assert_eq!(story.wait("a b", true, START), HOUR, "an open attempt may become the fourth");
        story.0.end(&open, EndResult::failed("", None), START);
        assert_eq!(story.wait("a b", true, START), 0);
    }

    #[test]
    fn renewals_in_time_never_meet_a_limit() {
        let mut story = Story::new();
        for n in 0..5000 {
            let now = START + n * MINUTE;
            assert_eq!(story.wait("a", false, now), 0, "after {n}");
            story.issued("a", now, now + MINUTE);
            story.0.prune(now);
        }
        assert!(story.0.orders.len() < 200, "{} are kept", story.0.orders.len());
    }

    #[test]
    fn an_authority_is_asked_for_250_orders_and_5_accounts_in_three_hours() {
        let mut story = Story::new();
        for n in 0..250 {
            assert_eq!(story.wait("a", false, START + n), 0);
            story.issued(&format!("site{n}"), START + n, START + DAY);
        }
        assert_eq!(story.wait("a", true, START + 249), 3 * HOUR - 249);
        assert_eq!(story.wait_at("https://other.example", "a", false, START + 249), 0);
        for n in 0..5 {
            assert!(may_register(&story.0, CA, START + n).is_ok());
            story.0.register(CA, START + n);
        }
        let wait = may_register(&story.0, CA, START + 5).unwrap_err();
        assert_eq!(millis(wait.until), START + 3 * HOUR);
        assert!(may_register(&story.0, CA, START + 3 * HOUR).is_ok());
        assert!(may_register(&story.0, "https://other.example", START + 5).is_ok());
    }

    #[test]
    fn what_an_authority_asked_for_is_kept_to() {
        let mut story = Story::new();
        story.refused("a b", Some(2 * HOUR), START);
        for by_hand in [false, true] {
            assert_eq!(story.wait("a b", by_hand, START), 2 * HOUR);
            assert_eq!(story.wait("a b c", by_hand, START), 2 * HOUR);
            assert_eq!(story.wait("a c", by_hand, START), 0, "b may be the one that is refused");
            assert_eq!(story.wait_at("https://other.example", "a b", by_hand, START), 0);
        }
        story.refused("x", Some(u64::MAX), START);
        assert_eq!(story.wait("x", true, START), 7 * DAY, "nobody is believed for longer");
        let attempt = story.begin("a b", START + HOUR);
        story.0.end(&attempt, EndResult::Issued { due: START + DAY }, START + HOUR);
        assert_eq!(story.wait("a b c", false, START + HOUR), 0, "a certificate settles it");
    }

    #[test]
    fn the_loss_of_the_ledger_is_one_failure_of_everything() {
        let mut story = Story::new();
        story.0.lose(START);
        for names in ["a", "a b", "c"] {
            nearly(story.wait(names, false, START), MINUTE);
            nearly(story.wait_at("https://other.example", names, false, START), MINUTE);
            assert_eq!(story.wait(names, true, START), 0);
        }
        assert_eq!(millis(may_register(&story.0, CA, START).unwrap_err().until), START + MINUTE);
        assert!(may_register(&story.0, CA, START + MINUTE).is_ok());
        story.failed("a", START + 2 * MINUTE);
        nearly(story.wait("a", false, START + 2 * MINUTE), 5 * MINUTE);
        story.issued("a", START + HOUR, START + DAY);
        assert_eq!(story.wait("a", false, START + HOUR), 0);
        story.0.prune(START + 9 * DAY);
        assert_eq!(story.0, Book::new());
    }

    #[test]
    fn a_clock_that_was_ahead_does_not_stop_orders_for_years() {
        let mut story = Story::new();
        let ahead = START + 3650 * DAY;
        story.failed("a", ahead);
        (0..4).for_each(|_| story.issued("b", ahead, ahead + 60 * DAY));
        assert!(may_order(&story.0, CA, &split("a"), false, START).is_err());
        assert!(story.0.notice(START) && !story.0.notice(START + 1));
        nearly(story.wait("a", false, START), MINUTE);
        assert_eq!(story.wait("a", false, START + 2 * MINUTE), 0);
        assert_eq!(story.wait("b", false, START + MINUTE), 7 * DAY - MINUTE);
        story.0.prune(START + 8 * DAY);
        assert!(story.0.orders.is_empty());
    }

    #[test]
    fn a_clock_that_was_behind_for_a_moment_forgets_nothing() {
        let mut story = Story::new();
        (0..4).for_each(|_| story.issued("a", START, START + 60 * DAY));
        let boot = 1000;
        story.0.notice(boot);
        story.0.prune(boot);
        assert_eq!(story.wait("a", false, boot), 7 * DAY);
        let corrected = START + HOUR;
        assert!(story.0.notice(corrected));
        story.0.prune(corrected);
        assert_eq!(story.wait("a", false, corrected), 7 * DAY - HOUR);
        // Behind once more: what was seen the first time no longer counts.
        story.0.notice(boot + DAY);
        assert_eq!(story.wait("a", false, boot + DAY), 7 * DAY);
    }

    #[test]
    fn the_last_failure_is_told_until_there_is_a_certificate() {
        let mut story = Story::new();
        let names = split("a b");
        assert_eq!(last_failure(&story.0, None, &names), None);
        story.failed("a b", START);
        drop(story.begin("a b", START + 1));
        assert_eq!(last_failure(&story.0, None, &names), Some((START, "no such host")));
        assert_eq!(last_failure(&story.0, Some(CA), &names), Some((START, "no such host")));
        assert_eq!(last_failure(&story.0, Some("https://other.example"), &names), None);
        story.issued("a b", START + 2, START + DAY);
        assert_eq!(last_failure(&story.0, None, &names), None);
    }
}
