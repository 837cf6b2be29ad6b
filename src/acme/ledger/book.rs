//! What is written down, as JSON. Times are milliseconds since 1970.

use std::collections::BTreeMap;
use std::process;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::rules::{DAY, HOUR};
use super::{Attempt, LONGEST_RETRY_AFTER};

/// The longest account of a failure that is kept, in characters.
const LONGEST_WHY: usize = 500;
/// Nothing older is of use to any rule.
const OLDEST: u64 = 8 * DAY;
/// What is older, and was followed by a certificate, is of no use to those that look back for hours.
const RECENT: u64 = 3 * HOUR;

/// The ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    version: Version,
    /// When all that was written before was found lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Loss>,
    /// The attempts by their ids.
    pub orders: BTreeMap<String, Entry>,
    /// The accounts that were made, or tried to be.
    pub accounts: BTreeMap<String, Registration>,
}

/// What other versions write is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    #[serde(rename = "1")]
    One,
}

/// What happened before is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Its place among all that happened.
    pub nth: u64,
    /// When it was found.
    pub at: Stamp,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The place of its beginning among all that happened: clocks are set, this is not.
    nth: u64,
    /// The URL of the authority's directory.
    pub authority: String,
    /// In order, none twice.
    pub names: Vec<String>,
    /// When it was written down.
    pub begun: Stamp,
    /// How it ended, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its place among all that happened.
    nth: u64,
    /// When.
    at: Stamp,
    /// With what.
    #[serde(flatten)]
    pub result: EndResult,
}

/// With what an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndResult {
    /// With a certificate that is to be renewed from then on.
    Issued {
        /// From when on.
        due: u64,
    },
    /// Without one.
    Failed {
        /// Why.
        why: String,
        /// How many milliseconds the authority asked to be left alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
        /// Whether there is one, that is not used.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        issued: bool,
    },
}

/// One account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The URL of the authority's directory.
    pub authority: String,
    /// When it was written down.
    pub begun: Stamp,
}

/// A moment by a clock that may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// What the clock said.
    at: u64,
    /// What it said when `at` was found to lie in the future.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    taken: Option<u64>,
}

impl Book {
    /// A book without a history.
    pub fn new() -> Book {
        Book { version: Version::One, lost: None, orders: BTreeMap::new(), accounts: BTreeMap::new() }
    }

    /// What was written by [`Book::write`].
    pub fn read(json: &[u8]) -> Result<Book, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// JSON for people to read, too.
    pub fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// Adds an attempt, and says under which id.
    pub fn begin(&mut self, authority: &str, names: &[String], now: u64) -> String {
        let nth = self.next();
        let id = id(now, nth);
        let (authority, names) = (authority.to_owned(), names.to_vec());
        self.orders.insert(id.clone(), Entry { nth, authority, names, begun: Stamp::new(now), end: None });
        id
    }

    /// Ends an attempt, also one that is no longer here.
    pub fn end(&mut self, attempt: &Attempt, result: EndResult, now: u64) {
        let nth = self.next();
        let entry = self.orders.entry(attempt.id.clone()).or_insert_with(|| Entry {
            nth,
            authority: attempt.authority.clone(),
            names: attempt.names.clone(),
            begun: Stamp::new(attempt.at),
            end: None,
        });
        entry.end = better(entry.end.take(), Some(End { nth, at: Stamp::new(now), result }));
    }

    /// Begins anew after everything was lost.
    pub fn lose(&mut self, now: u64) {
        self.lost = Some(Loss { nth: self.next(), at: Stamp::new(now) });
    }

    /// Adds an account.
    pub fn register(&mut self, authority: &str, now: u64) {
        let nth = self.accounts.len() as u64;
        let id = (nth..).map(|nth| id(now, nth)).find(|id| !self.accounts.contains_key(id)).unwrap_or_default();
        self.accounts.insert(id, Registration { authority: authority.to_owned(), begun: Stamp::new(now) });
    }

    /// Adds what another copy has more.
    pub fn join(&mut self, other: Book) {
        for (id, theirs) in other.orders {
            match self.orders.get_mut(&id) {
                Some(ours) => {
                    ours.begun.join(theirs.begun);
                    ours.end = better(ours.end.take(), theirs.end);
                }
                None => drop(self.orders.insert(id, theirs)),
            }
        }
        for (id, theirs) in other.accounts {
            self.accounts.entry(id).and_modify(|ours| ours.begun.join(theirs.begun)).or_insert(theirs);
        }
        self.lost = match (self.lost.take(), other.lost) {
            (Some(ours), Some(theirs)) => Some(if theirs.nth > ours.nth { theirs } else { ours }),
            (ours, theirs) => ours.or(theirs),
        };
    }

    /// Takes what lies in the future as of now. Whether that changed anything.
    pub fn notice(&mut self, now: u64) -> bool {
        let orders = self.orders.values_mut().flat_map(|entry| {
            let end = entry.end.as_mut().map(|end| &mut end.at);
            [Some(&mut entry.begun), end].into_iter().flatten()
        });
        let accounts = self.accounts.values_mut().map(|account| &mut account.begun);
        let lost = self.lost.iter_mut().map(|lost| &mut lost.at);
        orders.chain(accounts).chain(lost).fold(false, |changed, stamp| stamp.notice(now) | changed)
    }

    /// Drops what no rule needs any more.
    pub fn prune(&mut self, now: u64) {
        let is_old = |at: u64, age: u64| at.saturating_add(age) <= now;
        if self.lost.as_ref().is_some_and(|lost| is_old(lost.at.seen(now), OLDEST)) {
            self.lost = None;
        }
        self.accounts.retain(|_, account| !is_old(account.begun.seen(now), OLDEST));
        self.orders.retain(|_, entry| !is_old(entry.last(now), OLDEST));
        // A certificate that is renewed every minute would fill the ledger with what its successors have outdated.
        let mut certificates: BTreeMap<(String, Vec<String>), u64> = BTreeMap::new();
        for entry in self.orders.values().filter(|entry| entry.due().is_some()) {
            let last = certificates.entry((entry.authority.clone(), entry.names.clone())).or_default();
            *last = (*last).max(entry.place());
        }
        self.orders.retain(|_, entry| {
            let last = certificates.get(&(entry.authority.clone(), entry.names.clone()));
            let is_outdated =
                last.is_some_and(|last| *last > entry.place()) && entry.due().is_none_or(|due| due <= now);
            !is_outdated || entry.is_unused() || !is_old(entry.last(now), RECENT)
        });
    }

    fn next(&self) -> u64 {
        let lost = self.lost.as_ref().map(|lost| lost.nth);
        self.orders.values().map(Entry::place).chain(lost).max().unwrap_or(0).saturating_add(1)
    }
}

impl Entry {
    /// The last moment that is known of it.
    pub fn last(&self, now: u64) -> u64 {
        let begun = self.begun.seen(now);
        self.end.as_ref().map_or(begun, |end| end.at.seen(now).max(begun))
    }

    /// The place of that moment among all that happened.
    pub fn place(&self) -> u64 {
        self.end.as_ref().map_or(self.nth, |end| end.nth.max(self.nth))
    }

    /// From when on its certificate is to be renewed; `None` when it brought none.
    pub fn due(&self) -> Option<u64> {
        match self.end.as_ref()?.result {
            EndResult::Issued { due } => Some(due),
            EndResult::Failed { .. } => None,
        }
    }

    /// Whether the authority counts a certificate that is not used.
    pub fn is_unused(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.result.is_unused())
    }
}

impl EndResult {
    /// Without a certificate.
    pub fn failed(why: &str, retry_after: Option<Duration>) -> EndResult {
        let why = why.chars().take(LONGEST_WHY).collect();
        let retry_after =
            retry_after.map(|wait| u64::try_from(wait.min(LONGEST_RETRY_AFTER).as_millis()).unwrap_or(u64::MAX));
        EndResult::Failed { why, retry_after, issued: false }
    }

    /// With one that is not used.
    pub fn unused(why: &str, retry_after: Option<Duration>) -> EndResult {
        let mut result = EndResult::failed(why, retry_after);
        result.keep_in_mind(true);
        result
    }

    fn is_unused(&self) -> bool {
        matches!(self, EndResult::Failed { issued: true, .. })
    }

    /// A certificate stays issued, whatever fails after it.
    fn keep_in_mind(&mut self, unused: bool) {
        if let EndResult::Failed { issued, .. } = self {
            *issued |= unused;
        }
    }
}

impl Stamp {
    /// The moment `at`.
    pub fn new(at: u64) -> Stamp {
        Stamp { at, taken: None }
    }

    /// The moment that is meant, as the clock goes now; never in the future.
    pub fn seen(self, now: u64) -> u64 {
        if self.at <= now { self.at } else { self.taken.map_or(now, |taken| taken.min(now)) }
    }

    /// A clock that was set back makes waiting for `at` senseless: its wait begins now. `at` is kept all the same, for
    /// the clock of a machine that has just booted may be years behind, and is set right a moment later.
    fn notice(&mut self, now: u64) -> bool {
        let taken = if self.at <= now { None } else { Some(self.seen(now)) };
        std::mem::replace(&mut self.taken, taken) != taken
    }

    fn join(&mut self, other: Stamp) {
        self.taken = match (self.taken, other.taken) {
            (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
            (ours, theirs) => ours.or(theirs),
        };
    }
}

/// A certificate outweighs a failure: an order that was given up may have been resumed. Else what came later counts.
fn better(ours: Option<End>, theirs: Option<End>) -> Option<End> {
    let weight = |end: &End| (matches!(end.result, EndResult::Issued { .. }), end.nth);
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => {
            let unused = ours.result.is_unused() || theirs.result.is_unused();
            let mut better = if weight(&theirs) >= weight(&ours) { theirs } else { ours };
            better.result.keep_in_mind(unused);
            Some(better)
        }
        (ours, theirs) => ours.or(theirs),
    }
}

/// Unlike any other of this ledger, and of one that was lost.
fn id(now: u64, nth: u64) -> String {
    format!("{now:012x}-{:x}-{nth:x}", process::id())
}
