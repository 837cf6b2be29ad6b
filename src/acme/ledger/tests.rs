//! Tests of the ledger on the disk, and of whatever may happen to it.

use std::path::Path;
use std::thread;

use proptest::prelude::*;
use tempfile::TempDir;

use super::rules::{DAY, HOUR};
use super::*;
use crate::store::fate::{Blow, during};

const CA: &str = "https://ca.example/directory";

fn storage() -> (TempDir, Storage) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let storage = Storage::open(&folder.path().join("acme")).unwrap();
    (folder, storage)
}

fn names(names: &[&str]) -> Vec<CertifiedName> {
    names.iter().map(|name| CertifiedName::Dns((*name).to_owned())).collect()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn failed(why: &str) -> Outcome {
    Outcome::Failed { why: why.to_owned(), retry_after: None }
}

fn may_order(storage: &Storage, site: &[CertifiedName], now: SystemTime) -> bool {
    Ledger::open(storage).unwrap().may_order(CA, site, false, now).is_ok()
}

fn inside(storage: &Storage) -> PathBuf {
    storage.root().join("ledger.json")
}

fn beside(storage: &Storage) -> PathBuf {
    storage.beside("ledger").path().to_owned()
}

fn lines(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn an_attempt_outlives_its_process_and_is_ended_by_the_next() {
    let (_guard, storage) = storage();
    let site = names(&["b.example", "a.example", "b.example"]);
    let attempt = Ledger::open(&storage).unwrap().begin(CA, &site, false, at(0)).unwrap();
    let kept = serde_json::to_string(&attempt).unwrap();

    let ledger = Ledger::open(&storage).unwrap();
    let wait = ledger.may_order(CA, &names(&["a.example", "b.example"]), false, at(1)).unwrap_err();
    assert!(wait.until > at(53) && wait.until < at(67), "{wait:?}");
    assert!(matches!(ledger.begin(CA, &site, false, at(1)), Err(Refusal::Wait(_))));
    assert!(ledger.may_order(CA, &site, true, at(1)).is_ok(), "a person does not wait");
    assert!(ledger.may_order("https://other.example", &site, false, at(1)).is_ok());
    let attempt: Attempt = serde_json::from_str(&kept).unwrap();
    ledger.end(&attempt, failed("no such host"), at(30)).unwrap();
    assert_eq!(ledger.last_failure(None, &site), Some((at(30), "no such host".to_owned())));
    assert!(ledger.may_order(CA, &site, false, at(61)).is_err(), "the wait begins with the end");
    ledger.end(&attempt, Outcome::Issued { due: at(5_000_000) }, at(70)).unwrap();
    ledger.end(&attempt, failed("a certificate outweighs it"), at(71)).unwrap();
    assert_eq!(Ledger::open(&storage).unwrap().last_failure(Some(CA), &site), None);
    assert!(ledger.may_order(CA, &site, false, at(72)).is_ok());
}

#[test]
fn what_is_written_can_be_read_by_a_person_and_by_the_next_version() {
    let (_guard, storage) = storage();
    let ledger = Ledger::open(&storage).unwrap();
    let site = [names(&["a.example"]), vec![CertifiedName::Address("::1".parse().unwrap())]].concat();
    let attempt = ledger.begin(CA, &site, false, at(0)).unwrap();
    let why = "ü".repeat(2000);
    let outcome = Outcome::Failed { why, retry_after: Some(Duration::from_secs(7)) };
    ledger.end(&attempt, outcome, at(1)).unwrap();
    ledger.begin_registration(CA, at(2)).unwrap();
    let written: serde_json::Value = serde_json::from_str(&lines(&inside(&storage))).unwrap();
    assert_eq!(lines(&inside(&storage)), lines(&beside(&storage)));
    assert_eq!(written["version"], "1");
    let order = &written["orders"][&attempt.id];
    assert_eq!(order["names"], serde_json::json!(["::1", "a.example"]));
    assert_eq!(order["begun"]["at"], 1_800_000_000_000_u64);
    assert_eq!(order["end"]["failed"]["retry_after"], 7000);
    assert_eq!(order["end"]["failed"]["why"].as_str().unwrap().chars().count(), 500);
    let mut newer = written.clone();
    newer["something"] = serde_json::json!({ "new": 1 });
    assert!(Book::read(newer.to_string().as_bytes()).is_ok());
    newer["version"] = "2".into();
    assert!(Book::read(newer.to_string().as_bytes()).is_err());
}

#[test]
fn one_copy_is_enough_and_the_other_is_made_again() {
    let (_guard, storage) = storage();
    let site = names(&["a.example"]);
    drop(Ledger::open(&storage).unwrap().begin(CA, &site, false, at(0)).unwrap());
    type Harm = fn(&Path);
    let harms: [Harm; 5] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, "").unwrap(),
        |path| fs::write(path, &lines(path)[..40]).unwrap(),
        |path| fs::write(path, [0xff; 4096]).unwrap(),
        |path| {
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
        },
    ];
    for harm in harms {
        for path in [inside(&storage), beside(&storage)] {
            harm(&path);
            assert!(!may_order(&storage, &site, at(1)));
            assert!(may_order(&storage, &names(&["b.example"]), at(1)), "it was not lost");
            drop(Ledger::open(&storage).unwrap().begin(CA, &names(&["c.example"]), true, at(7200)).unwrap());
            assert_eq!(lines(&inside(&storage)), lines(&beside(&storage)), "mended");
            let attempts = Book::read(lines(&path).as_bytes()).unwrap().orders.len();
            assert!(attempts > 1, "{attempts}");
            // Back to one attempt.
            for path in [inside(&storage), beside(&storage)] {
                fs::remove_file(path).unwrap();
            }
            drop(Ledger::open(&storage).unwrap().begin(CA, &site, false, at(0)).unwrap());
        }
    }
}

#[test]
fn a_lost_ledger_is_a_wait_of_a_minute_and_not_more() {
    for has_beside in [true, false] {
        let (_guard, storage) = storage();
        let site = names(&["a.example"]);
        drop(Ledger::open(&storage).unwrap().begin(CA, &site, false, at(0)).unwrap());
        fs::write(inside(&storage), "garbage").unwrap();
        if has_beside {
            fs::write(beside(&storage), "{").unwrap()
        } else {
            fs::remove_file(beside(&storage)).unwrap()
        }

        let ledger = Ledger::open(&storage).unwrap();
        let Err(Refusal::Wait(wait)) = ledger.begin(CA, &site, false, at(1000)) else { panic!("a flood") };
        assert!(wait.why.contains("lost") && wait.until <= at(1067), "{wait:?}");
        assert_eq!(lines(&inside(&storage).with_extension("json.broken")), "garbage", "for a person to look at");
        drop(ledger);
        assert!(!may_order(&storage, &names(&["b.example"]), at(1001)), "everything, and by the next process too");
        assert!(Ledger::open(&storage).unwrap().may_register(CA, at(1001)).is_err());
        assert!(may_order(&storage, &site, at(1067)), "but not for ever");
        let refusal = Ledger::open(&storage).unwrap().begin(CA, &site, false, at(1067));
        assert!(refusal.is_ok(), "{refusal:?}");
    }
}

#[test]
fn a_new_storage_orders_at_once_and_one_with_certificates_but_no_ledger_waits() {
    let (_guard, storage) = storage();
    assert!(may_order(&storage, &names(&["a.example"]), at(0)));
    assert!(inside(&storage).exists() && beside(&storage).exists());
    storage.write("accounts/ca.json", b"{}").unwrap();
    assert!(may_order(&storage, &names(&["a.example"]), at(0)));
    for path in [inside(&storage), beside(&storage)] {
        fs::remove_file(path).unwrap();
    }
    assert!(!may_order(&storage, &names(&["a.example"]), at(0)));
    assert!(may_order(&storage, &names(&["a.example"]), at(67)));
}

#[test]
fn a_clock_that_was_set_back_is_noticed_once_for_all_processes() {
    let (_guard, storage) = storage();
    let site = names(&["a.example"]);
    drop(Ledger::open(&storage).unwrap().begin(CA, &site, false, at(100_000_000)).unwrap());
    assert!(!may_order(&storage, &site, at(0)));
    assert!(may_order(&storage, &site, at(67)));
}

#[test]
fn a_running_process_remembers_what_the_disk_lost() {
    let (_guard, storage) = storage();
    let site = names(&["a.example"]);
    let ledger = Ledger::open(&storage).unwrap();
    drop(ledger.begin(CA, &site, false, at(0)).unwrap());
    fs::remove_dir_all(storage.root()).unwrap();
    fs::remove_file(beside(&storage)).unwrap();
    assert!(ledger.may_order(CA, &site, false, at(1)).is_err());
    assert!(ledger.may_order(CA, &names(&["b.example"]), false, at(1)).is_ok(), "nothing was lost");
    assert!(!may_order(&storage, &site, at(1)), "it is on the disk again");
}

#[test]
fn a_restart_loop_orders_no_more_than_the_rules_allow_though_it_loses_its_directory() {
    for loses_directory in [false, true] {
        let (_guard, storage) = storage();
        let site = names(&["a.example", "b.example"]);
        let mut orders = Vec::new();
        for start in 0..100 {
            if loses_directory {
                let _ = fs::remove_dir_all(storage.root());
            }
            let now = at(start * 3);
            let ledger = Ledger::open(&Storage::open(storage.root()).unwrap()).unwrap();
            if ledger.begin(CA, &site, false, now).is_ok() {
                orders.push(start * 3);
            }
        }
        // At once, after a minute, and not yet again after five more.
        assert!(orders.len() == 2 && orders[1] >= 54, "{orders:?}");
    }
}

#[test]
fn of_all_who_ask_at_the_same_time_one_may_order() {
    let (_guard, storage) = storage();
    let site = names(&["a.example"]);
    let began: Vec<bool> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let (storage, site) = (&storage, &site);
                // A ledger of its own each, as of other processes.
                scope.spawn(move || {
                    let ledger = Ledger::open(storage).unwrap();
                    for own in 0..10 {
                        let other = names(&[&format!("site{n}-{own}.example")]);
                        drop(ledger.begin(CA, &other, false, at(0)).unwrap());
                    }
                    ledger.begin(CA, site, false, at(0)).is_ok()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(began.iter().filter(|began| **began).count(), 1);
    assert_eq!(Book::read(lines(&inside(&storage)).as_bytes()).unwrap().orders.len(), 81, "nobody's was overwritten");
}

#[test]
fn a_kill_at_any_step_forgets_no_order_that_may_have_been_placed() {
    for with_history in [false, true] {
        for step in 0.. {
            let (_guard, storage) = storage();
            let (site, other) = (names(&["a.example"]), names(&["b.example"]));
            if with_history {
                drop(Ledger::open(&storage).unwrap().begin(CA, &other, false, at(0)).unwrap());
            }
            let begin = || Ledger::open(&storage).unwrap().begin(CA, &site, false, at(1));
            let (began, was_killed) = during(step, Blow::Kill, begin);
            let storage = Storage::open(storage.root()).unwrap();
            assert!(began.is_err() || !may_order(&storage, &site, at(2)), "killed at {step}");
            assert_eq!(may_order(&storage, &other, at(2)), !with_history, "killed at {step}");
            assert!(may_order(&storage, &names(&["c.example"]), at(2)), "killed at {step}: the ledger was lost");
            if !was_killed {
                assert!(step > 8, "{step} steps only");
                break;
            }
        }
    }
}

#[test]
fn what_cannot_be_written_down_is_not_placed_and_a_closed_folder_above_is_no_hindrance() {
    let (_guard, storage) = storage();
    let site = names(&["a.example"]);
    let ledger = Ledger::open(&storage).unwrap();
    let attempt = ledger.begin(CA, &names(&["b.example"]), false, at(0)).unwrap();
    // A folder cannot be replaced by a file.
    fs::remove_file(inside(&storage)).unwrap();
    fs::create_dir(inside(&storage)).unwrap();
    assert!(matches!(ledger.begin(CA, &site, false, at(0)), Err(Refusal::Storage(_))));
    assert!(ledger.may_order(CA, &site, false, at(0)).is_ok(), "nothing was placed");
    assert!(ledger.end(&attempt, failed("no such host"), at(1)).is_err());
    fs::remove_dir(inside(&storage)).unwrap();
    assert!(ledger.may_order(CA, &site, false, at(2)).is_ok());
    let again = Ledger::open(&storage).unwrap();
    assert!(again.last_failure(None, &names(&["b.example"])).is_some(), "kept in mind, and written with the next");

    fs::remove_file(beside(&storage)).unwrap();
    fs::create_dir(beside(&storage)).unwrap();
    drop(ledger.begin(CA, &site, false, at(3)).unwrap());
    assert!(!may_order(&storage, &site, at(4)));
}

/// What may happen.
#[derive(Debug, Clone)]
enum Event {
    /// An order is asked for, and begun if it may be.
    Order { set: usize, by_hand: bool },
    /// The attempt that was begun so many attempts ago ends.
    End { ago: usize, with: Option<u64>, retry_after: Option<u64> },
    /// Time passes.
    Pass(u64),
    /// The clock is set back.
    Back(u64),
    /// A copy is lost, or cannot be read any more.
    Lose { copy: usize, is_garbage: bool },
}

const SETS: [&[&str]; 4] = [&["a"], &["a", "b"], &["b"], &["a", "b", "c"]];

fn event() -> impl Strategy<Value = Event> {
    let span = prop::sample::select(vec![1, 1000, 60_000, 400_000, HOUR / 4, HOUR, 6 * HOUR, DAY, 3 * DAY]);
    let back = prop::sample::select(vec![1, 1000, 60_000, HOUR, DAY, 30 * DAY]);
    let due = prop::option::of(prop::sample::select(vec![1000, HOUR, DAY, 60 * DAY, 60 * DAY]));
    let retry = prop::option::weighted(0.2, prop::sample::select(vec![60_000, HOUR, DAY]));
    prop_oneof![
        8 => (0..SETS.len(), any::<bool>()).prop_map(|(set, by_hand)| Event::Order { set, by_hand }),
        6 => (0..3_usize, due, retry).prop_map(|(ago, with, retry_after)| Event::End { ago, with, retry_after }),
        6 => span.prop_map(Event::Pass),
        1 => back.prop_map(Event::Back),
        1 => (0..2_usize, any::<bool>()).prop_map(|(copy, is_garbage)| Event::Lose { copy, is_garbage }),
    ]
}

/// One that was placed, as whoever watches from outside, with a clock that is right, sees it.
struct Placed {
    set: usize,
    attempt: Attempt,
    at: u64,
    /// When, in which order of events, and when it is due.
    issued: Option<(u64, usize, u64)>,
    failed: Option<(u64, usize, Option<u64>)>,
    begun: usize,
}

impl Placed {
    fn last(&self) -> (u64, usize) {
        let failed = self.failed.map(|(at, nth, _)| (at, nth));
        let issued = self.issued.map(|(at, nth, _)| (at, nth));
        failed.max(issued).unwrap_or((self.at, self.begun))
    }
}

/// Every event happens to a new process, which was killed before it could do more.
fn watch(events: Vec<Event>) -> Result<(), TestCaseError> {
    let (_guard, storage) = storage();
    let (mut time, mut behind) = (1_800_000_000_000_u64, 0);
    let mut placed: Vec<Placed> = Vec::new();
    for (nth, event) in events.into_iter().enumerate() {
        let clock = moment(time - behind);
        match event {
            Event::Pass(span) => time += span,
            Event::Back(span) => behind += span,
            Event::Lose { copy, is_garbage } => {
                let [lost, kept] = if copy == 0 { [inside, beside] } else { [beside, inside] };
                if kept(&storage).exists() && !lines(&kept(&storage)).is_empty() {
                    fs::write(lost(&storage), "").unwrap();
                    if !is_garbage {
                        fs::remove_file(lost(&storage)).unwrap();
                    }
                    // The next process mends it.
                    let _ = Ledger::open(&storage).unwrap().may_order(CA, &[], false, clock);
                }
            }
            Event::End { ago, with, retry_after } => {
                let Some(at) = placed.len().checked_sub(ago + 1) else { continue };
                let Some(order) = placed.get_mut(at).filter(|order| order.failed.is_none() && order.issued.is_none())
                else {
                    continue;
                };
                // Later than that nothing comes of an order: see OPEN.
                let with = with.filter(|_| time - order.at < HOUR);
                let outcome = match with {
                    Some(due) => {
                        order.issued = Some((time, nth, time + due));
                        Outcome::Issued { due: moment(time - behind + due) }
                    }
                    None => {
                        order.failed = Some((time, nth, retry_after));
                        let retry_after = retry_after.map(Duration::from_millis);
                        Outcome::Failed { why: "it failed".to_owned(), retry_after }
                    }
                };
                Ledger::open(&storage).unwrap().end(&order.attempt, outcome, clock).unwrap();
            }
            Event::Order { set, by_hand } => {
                let ledger = Ledger::open(&storage).unwrap();
                let site = names(SETS[set]);
                let allowed = ledger.may_order(CA, &site, by_hand, clock).is_ok();
                let began = ledger.begin(CA, &site, by_hand, clock);
                prop_assert_eq!(allowed, began.is_ok());
                if let Ok(attempt) = began {
                    check(&placed, set, by_hand, time)?;
                    placed.push(Placed { set, attempt, at: time, issued: None, failed: None, begun: nth });
                }
            }
        }
    }
    Ok(())
}

/// Whether the rules let an order for `set` be placed, by what was seen from outside.
fn check(placed: &[Placed], set: usize, by_hand: bool, time: u64) -> Result<(), TestCaseError> {
    const MINUTES: [u64; 8] = [1, 5, 15, 60, 180, 360, 720, 1440];
    for name in SETS[set] {
        let without = placed.iter().filter(|order| SETS[order.set].contains(name) && order.issued.is_none());
        let recent = without.filter(|order| time - order.last().0 < HOUR).count();
        prop_assert!(recent < 4, "{} without a certificate within an hour for {}", recent + 1, name);
    }
    let of_set = || placed.iter().filter(|order| order.set == set);
    let wasted = of_set().filter(|order| match order.issued {
        Some((at, _, due)) => time - at < 7 * DAY && due > time,
        None => order.failed.is_none() && time - order.at < HOUR,
    });
    prop_assert!(wasted.count() < 4, "a fifth certificate for the same names");
    if !by_hand {
        let success = of_set().filter_map(|order| order.issued).map(|(_, nth, _)| nth).max();
        let since = of_set().filter(|order| order.issued.is_none() && Some(order.last().1) > success);
        // What is eight days old is forgotten.
        let since: Vec<u64> = since.map(|order| order.last().0).filter(|at| time - at < 8 * DAY).collect();
        if let Some(last) = since.iter().max() {
            let wait = MINUTES[(since.len() - 1).min(7)] * 60_000;
            prop_assert!(time - last >= wait - wait / 10, "after {} attempts and {} ms", since.len(), time - last);
        }
    }
    for order in placed.iter().filter(|order| SETS[order.set].iter().all(|name| SETS[set].contains(name))) {
        let Some((at, nth, Some(wait))) = order.failed else { continue };
        let settled = placed.iter().any(|other| other.set == order.set && other.issued.is_some_and(|i| i.1 > nth));
        prop_assert!(settled || time - at >= wait, "before Retry-After was over");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_orders_kills_losses_and_clocks_gets_round_the_rules(events in prop::collection::vec(event(), 1..80)) {
        watch(events)?;
    }
}

#[test]
fn the_watchman_of_these_tests_sees_a_broken_rule() {
    let attempt = || Attempt { id: String::new(), authority: String::new(), names: Vec::new(), at: 0 };
    let order = |at| Placed { set: 0, attempt: attempt(), at, issued: None, failed: None, begun: 0 };
    let issued = |at| Placed { issued: Some((at, 1, u64::MAX)), ..order(at) };
    let refused = |at| Placed { failed: Some((at, 1, Some(DAY))), ..order(at) };
    let now = 100 * DAY;
    assert!(check(&[], 0, false, now).is_ok());
    assert!(check(&[order(now - 1)], 0, false, now).is_err());
    assert!(check(&[order(now - 1)], 0, true, now).is_ok());
    assert!(check(&[order(now - 1), order(now - 1), order(now - 1), order(now - 1)], 3, true, now).is_err());
    assert!(check(&[issued(now - DAY), issued(now), issued(now), issued(now)], 0, true, now).is_err());
    assert!(check(&[refused(now - HOUR)], 3, true, now).is_err());
}
