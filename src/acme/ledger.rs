//! The ledger of attempts: every order is written down, on the disk, before it is placed, so that no restart loop, lost
//! directory or stuck clock burns the limits of a certificate authority.
//!
//! It is kept twice, in the storage and beside it, and the union of both is read: losing one loses nothing. A copy that
//! cannot be read is set aside, and a running process writes again what it knows. When nothing is left although
//! certificates or accounts are, everything counts as failed once just now: a minute's wait, no flood and not the end.
//!
//! # The rules
//!
//! An *attempt* is an order that was begun. Until it ends with a certificate it counts as one without: its process may
//! have died. What is said of an authority is said of the URL of its directory.
//!
//! * After an attempt for the same set of names at the same authority that brought no certificate: 1 min, 5 min, 15 min,
//!   1 h, 3 h, 6 h, 12 h, 24 h of waiting, by the number of such attempts since the last certificate, ±10 % by the names,
//!   so that sites which failed together do not all come back together.
//! * At most 4 attempts without a certificate for a name at an authority in an hour (Let's Encrypt: 5).
//! * At most 4 certificates for the same set of names from an authority in 7 days that were not due for renewal yet when
//!   the next was ordered (Let's Encrypt: 5). Renewals in time, even of certificates that live for a minute, never meet
//!   it; a loop that loses its files does. One that was issued and cannot be used counts for all of the 7 days. An
//!   attempt of the last hour that has not ended may still become one.
//! * At most 250 attempts at an authority in 3 hours (Let's Encrypt: 300 for an account).
//! * At most 5 new accounts at an authority in 3 hours (Let's Encrypt: 10 for an address).
//! * When an authority said `Retry-After`, orders for those names, alone or with others, wait for it, 7 days at most.
//!
//! A person who asks (`by_hand`) does not wait after failures; every other rule stands.
//!
//! Times are the wall clock's, which jumps. What lies in the future is taken as of the moment when that was noticed,
//! until the clock has caught up with it. What is older than 8 days is dropped.

mod book;
mod rules;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub(super) use self::rules::wait_after;

use self::book::{Book, EndResult};
use crate::base::certified_name::CertifiedName;
use crate::base::fault::Causes;
use crate::store::{Storage, StorageError, StoredFile};

const NAME: &str = "ledger";
const LOCK: &str = "ledger.lock";
/// Whoever asks to be left alone for longer is not believed.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// The ledger of one storage. Shared by whoever orders; other processes may use the same storage. Calls read and write
/// a few kilobytes, and wait for the disk.
#[derive(Debug)]
pub struct Ledger {
    storage: Storage,
    /// Inside and beside.
    copies: [StoredFile; 2],
    seen: Mutex<Seen>,
}

/// An order that was begun, and is to be ended with [`Ledger::end`]. Keep it with the order: a process that resumes the
/// order ends the same attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "an attempt that never ends counts as one without a certificate"]
pub struct Attempt {
    id: String,
    authority: String,
    names: Vec<String>,
    /// Milliseconds since 1970.
    at: u64,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With a certificate.
    Issued {
        /// From when on it is to be renewed.
        due: SystemTime,
    },
    /// Without one.
    Failed {
        /// Why: a sentence for the operator. Cut at 500 characters.
        why: String,
        /// How long the authority asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// As [`Outcome::Failed`], but the authority has issued a certificate, and counts it.
    Unused {
        /// Why it is not used, as above.
        why: String,
        /// As above.
        retry_after: Option<Duration>,
    },
}

/// Not now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Wait {
    /// The earliest moment at which the same question may be answered otherwise.
    pub until: SystemTime,
    /// Which rule: a sentence for the operator, without the time.
    pub why: String,
}

/// Why an attempt was not begun. Nothing may be placed then.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A rule stands against it.
    #[error(transparent)]
    Wait(#[from] Wait),
    /// It cannot be written down.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What this process knows, whatever becomes of the files.
#[derive(Debug)]
struct Seen {
    /// The union of all that was read and done.
    book: Book,
    /// The history was found lost, and is from the next look at the clock on.
    is_lost: bool,
    /// The book has what the files lack.
    is_ahead: bool,
    /// What the log was told of, and that has not got better since.
    told: BTreeSet<PathBuf>,
}

/// What was found on the disk.
#[derive(Default)]
struct Found<'l> {
    good: usize,
    absent: usize,
    /// Not what was written.
    broken: Vec<&'l StoredFile>,
}

impl Ledger {
    /// The ledger of `storage`. Reads both copies; what is wrong with them is told to the log, and mended with the first
    /// question.
    ///
    /// # Errors
    /// The storage cannot hold a ledger. One that cannot be read, or written now, is no error.
    pub fn open(storage: &Storage) -> Result<Ledger, StorageError> {
        let copies = [storage.file(format!("{NAME}.json"))?, storage.beside(NAME)];
        let seen = Seen { book: Book::new(), is_lost: false, is_ahead: false, told: BTreeSet::new() };
        let ledger = Ledger { storage: storage.clone(), copies, seen: Mutex::new(seen) };
        ledger.look_back();
        Ok(ledger)
    }

    /// Whether an order for exactly `names` may be placed with `authority`, the URL of its directory. [`Ledger::begin`]
    /// asks the same again.
    ///
    /// # Errors
    /// Not now.
    pub fn may_order(
        &self,
        authority: &str,
        names: &[CertifiedName],
        by_hand: bool,
        now: SystemTime,
    ) -> Result<(), Wait> {
        let now = millis(now);
        rules::may_order(&self.current(now).book, authority, &sorted(names), by_hand, now)
    }

    /// Writes down that an order is about to be placed, if it may be: asked and written under one lock, and on the disk
    /// when this returns.
    ///
    /// # Errors
    /// Not now, or it cannot be written down. The order must not be placed.
    pub fn begin(
        &self,
        authority: &str,
        names: &[CertifiedName],
        by_hand: bool,
        now: SystemTime,
    ) -> Result<Attempt, Refusal> {
        let (names, now) = (sorted(names), millis(now));
        let may = |book: &Book| rules::may_order(book, authority, &names, by_hand, now);
        let id = self.add(now, may, |book| book.begin(authority, &names, now))?;
        Ok(Attempt { id, authority: authority.to_owned(), names, at: now })
    }

    /// Writes down how an attempt ended. A certificate outweighs a failure that was written down before it.
    ///
    /// # Errors
    /// It cannot be written down. This process keeps it in mind, and writes it with the next change.
    pub fn end(&self, attempt: &Attempt, outcome: Outcome, now: SystemTime) -> Result<(), StorageError> {
        let now = millis(now);
        let result = match outcome {
            Outcome::Issued { due } => EndResult::Issued { due: millis(due) },
            Outcome::Failed { why, retry_after } => EndResult::failed(&why, retry_after),
            Outcome::Unused { why, retry_after } => EndResult::unused(&why, retry_after),
        };
        let mut seen = self.seen();
        seen.book.end(attempt, result, now);
        seen.is_ahead = true;
        self.mend(&mut seen, now)
    }

    /// Whether a new account may be made at `authority`.
    ///
    /// # Errors
    /// Not now.
    pub fn may_register(&self, authority: &str, now: SystemTime) -> Result<(), Wait> {
        let now = millis(now);
        rules::may_register(&self.current(now).book, authority, now)
    }

    /// Writes down that an account is about to be made, if it may be, as [`Ledger::begin`] does.
    ///
    /// # Errors
    /// Not now, or it cannot be written down. The account must not be made.
    pub fn begin_registration(&self, authority: &str, now: SystemTime) -> Result<(), Refusal> {
        let now = millis(now);
        self.add(now, |book| rules::may_register(book, authority, now), |book| book.register(authority, now))
    }

    /// When and why the last attempt for exactly `names` failed, at `authority` or anywhere, if no certificate came
    /// after it.
    pub fn last_failure(&self, authority: Option<&str>, names: &[CertifiedName]) -> Option<(SystemTime, String)> {
        let mut seen = self.seen();
        self.read(&mut seen);
        let (at, why) = rules::last_failure(&seen.book, authority, &sorted(names))?;
        Some((moment(at), why.to_owned()))
    }
}

/// The way to the disk.
impl Ledger {
    /// What is known at `now`. What had to be mended is.
    fn current(&self, now: u64) -> MutexGuard<'_, Seen> {
        let mut seen = self.seen();
        self.refresh(&mut seen, now);
        if seen.is_ahead {
            self.try_mend(&mut seen, now);
        }
        seen
    }

    /// Has `add` change the book, if it `may` be, under the lock of all processes.
    fn add<T>(
        &self,
        now: u64,
        may: impl Fn(&Book) -> Result<(), Wait>,
        add: impl FnOnce(&mut Book) -> T,
    ) -> Result<T, Refusal> {
        let mut seen = self.seen();
        let lock = self.storage.lock(LOCK)?;
        let broken = self.refresh(&mut seen, now);
        if let Err(wait) = may(&seen.book) {
            drop(lock);
            if seen.is_ahead {
                self.try_mend(&mut seen, now);
            }
            return Err(wait.into());
        }
        let mut book = seen.book.clone();
        let added = add(&mut book);
        book.prune(now);
        self.write(&mut seen, book, &broken)?;
        Ok(added)
    }

    fn try_mend(&self, seen: &mut Seen, now: u64) {
        if let Err(error) = self.mend(seen, now) {
            let [inside, _] = &self.copies;
            tell(seen, inside, &format!("{error}{}", Causes(&error)));
        }
    }

    /// Writes what is known under the lock of all processes.
    fn mend(&self, seen: &mut Seen, now: u64) -> Result<(), StorageError> {
        let _lock = self.storage.lock(LOCK)?;
        let broken = self.refresh(seen, now);
        let mut book = seen.book.clone();
        book.prune(now);
        self.write(seen, book, &broken)
    }

    /// Brings what is known up to date, and says which copies are broken.
    fn refresh(&self, seen: &mut Seen, now: u64) -> Vec<&StoredFile> {
        let found = self.read(seen);
        if std::mem::take(&mut seen.is_lost) {
            seen.book.lose(now);
            seen.is_ahead = true;
        }
        seen.is_ahead |= seen.book.notice(now);
        found.broken
    }

    /// Joins both copies into what is known.
    fn read(&self, seen: &mut Seen) -> Found<'_> {
        let mut found = Found::default();
        for copy in &self.copies {
            match copy.read().map(|bytes| bytes.map(|bytes| Book::read(&bytes))) {
                Ok(Some(Ok(book))) => {
                    found.good += 1;
                    seen.book.join(book);
                    continue;
                }
                Ok(Some(Err(error))) => {
                    found.broken.push(copy);
                    tell(seen, copy, &format!("not what was written: {error}; it is set aside"));
                }
                Ok(None) => found.absent += 1,
                Err(error) => tell(seen, copy, &format!("{error}{}", Causes(&error))),
            }
            // One that could not be written the last time is not tried at every question.
            seen.is_ahead |= !seen.told.contains(copy.path()) || !found.broken.is_empty();
        }
        found
    }

    /// Writes both copies. The one in the storage has to succeed; the directory above it may well be closed to us.
    fn write(&self, seen: &mut Seen, book: Book, broken: &[&StoredFile]) -> Result<(), StorageError> {
        let [inside, beside] = &self.copies;
        for copy in broken {
            // It is replaced in any case.
            let _ = copy.set_aside();
        }
        let json = book.write().map_err(|error| StorageError::Io {
            action: "write",
            path: inside.path().to_owned(),
            source: error.into(),
        })?;
        inside.write(&json)?;
        seen.told.remove(inside.path());
        match beside.write(&json) {
            Ok(()) => drop(seen.told.remove(beside.path())),
            Err(error) => tell(seen, beside, &format!("there is no second copy: {error}{}", Causes(&error))),
        }
        seen.book = book;
        seen.is_ahead = false;
        Ok(())
    }

    /// The first look at the disk: is there a history, should there be one?
    fn look_back(&self) {
        let mut seen = self.seen();
        let [inside, _] = &self.copies;
        // Two processes may look at a new storage at once.
        let lock = self.storage.lock(LOCK);
        let found = self.read(&mut seen);
        if found.good > 0 {
            return;
        }
        if found.absent < self.copies.len() || has_a_past(&self.storage) {
            seen.is_lost = true;
            tracing::warn!(
                ledger = %inside.path().display(),
                "the ledger of certificate orders is lost: everything waits for a minute before it is ordered"
            );
            return;
        }
        // A new storage. From now on a ledger that is not there has been lost.
        if let Err(error) = lock.and_then(|_lock| self.write(&mut seen, Book::new(), &[])) {
            tell(&mut seen, inside, &format!("{error}{}", Causes(&error)));
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // What is behind the lock is whole at any moment.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn has_a_past(storage: &Storage) -> bool {
    let has_accounts = || fs::read_dir(storage.root().join("accounts")).is_ok_and(|mut all| all.next().is_some());
    storage.labels().is_ok_and(|labels| !labels.is_empty()) || has_accounts()
}

/// Warns, unless it has been told of this copy since it was last written.
fn tell(seen: &mut Seen, copy: &StoredFile, what: &str) {
    if seen.told.insert(copy.path().to_owned()) {
        tracing::warn!(ledger = %copy.path().display(), "ledger of certificate orders: {what}");
    }
}

fn sorted(names: &[CertifiedName]) -> Vec<String> {
    let names: BTreeSet<String> = names.iter().map(CertifiedName::to_string).collect();
    names.into_iter().collect()
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn moment(millis: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
