//! The folder of one certificate: its generations, and the one that is live.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::{Lock, Storage, StorageError};
use super::{disk, lock};

const KEY: &str = "privkey.pem";
const CHAIN: &str = "fullchain.pem";
const NOTE: &str = "order.json";
const STATE: &str = "state.json";
const LIVE: &str = "live";

/// The folder of one certificate, there or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFolder {
    storage: Storage,
    label: String,
    path: PathBuf,
}

/// A generation that is not live yet: an order that is being worked on. It stays on the disk when this is dropped, and
/// [`CertificateFolder::draft`] finds it again once it has a note.
#[derive(Debug)]
pub struct Draft {
    folder: CertificateFolder,
    number: u64,
    path: PathBuf,
}

/// What is known of a generation from its files' names.
struct Generation {
    number: u64,
    path: PathBuf,
    has_note: bool,
    is_complete: bool,
}

/// The chain and the key that are to be served from the storage at `root`, there or not, whether the storage is or not.
pub fn live_files(root: &Path, label: &str) -> (PathBuf, PathBuf) {
    live_in(&root.join(super::CERTIFICATES).join(label))
}

fn live_in(folder: &Path) -> (PathBuf, PathBuf) {
    let live = folder.join(LIVE);
    (live.join(CHAIN), live.join(KEY))
}

impl CertificateFolder {
    pub(super) fn new(storage: Storage, label: String) -> CertificateFolder {
        let path = storage.certificates().join(&label);
        CertificateFolder { storage, label, path }
    }

    /// The label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Where it is: absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The chain and the key that are to be served, there or not. Both go through the link `live`, so that a commit
    /// changes them at the same moment.
    pub fn live(&self) -> (PathBuf, PathBuf) {
        live_in(&self.path)
    }

    /// The chain and the key of every generation that has both, live or not, the oldest first. What cannot be read has
    /// none.
    pub fn pairs(&self) -> Vec<(PathBuf, PathBuf)> {
        let whole = self.generations().unwrap_or_default().into_iter().filter(|generation| generation.is_complete);
        whole.map(|generation| (generation.path.join(CHAIN), generation.path.join(KEY))).collect()
    }

    /// The lock that is held for as long as an order for this certificate is worked on; `None` when another process,
    /// or another task of this one, has it. Released by the system when the process dies.
    ///
    /// # Errors
    /// The disk refuses to make the folder or the lock.
    pub fn try_lock(&self) -> Result<Option<Lock>, StorageError> {
        self.storage.make_folders(&self.path)?;
        lock::attempt(&self.path.join("lock"), lock::Kind::Exclusive)
    }

    /// The newest order that was begun and not finished, to be resumed: a generation after the live one that has a
    /// note. It may have its chain already, when the process died right before it went live. Older ones stay until they
    /// are discarded, or this one or a later one goes live; everything else that is unfinished is removed. Hold
    /// [`CertificateFolder::try_lock`].
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn draft(&self) -> Result<Option<Draft>, StorageError> {
        Ok(self.drafts()?.into_iter().next())
    }

    /// All orders that were begun and not finished, the newest first: as [`CertificateFolder::draft`], where several
    /// authorities were asked. Everything else that is unfinished is removed. Hold [`CertificateFolder::try_lock`].
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn drafts(&self) -> Result<Vec<Draft>, StorageError> {
        let generations = self.generations()?;
        let live = self.sweep(&generations);
        let drafts = generations.iter().rev().filter(|generation| generation.is_draft(live));
        Ok(drafts.map(|generation| self.draft_at(generation.number)).collect())
    }

    /// A new, empty generation. It can be resumed once it has a note. Hold [`CertificateFolder::try_lock`].
    ///
    /// # Errors
    /// The disk refuses.
    pub fn begin(&self) -> Result<Draft, StorageError> {
        self.storage.make_folders(&self.path)?;
        // Also not the number of a lost one that is still linked to: what is begun must not be live.
        let last = self.generations()?.iter().map(|generation| generation.number).chain(self.live_number()).max();
        let mut number = last.unwrap_or(0);
        loop {
            number = number.saturating_add(1);
            let draft = self.draft_at(number);
            match disk::create_folder(&draft.path) {
                Err(StorageError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| draft),
            }
        }
    }

    /// What was last kept by [`CertificateFolder::write_state`].
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_state(&self) -> Result<Option<Vec<u8>>, StorageError> {
        disk::read(&self.path.join(STATE))
    }

    /// Keeps what is known about this certificate: `state.json`, as one step.
    ///
    /// # Errors
    /// The disk refuses: the old state is still there.
    pub fn write_state(&self, state: &[u8]) -> Result<(), StorageError> {
        self.write(&self.path.join(STATE), state)
    }

    /// Removes what killed processes left, unless an order is being worked on.
    pub(super) fn clean(&self) {
        if let Ok(Some(_alone)) = lock::attempt(&self.path.join("lock"), lock::Kind::Exclusive) {
            disk::remove_temporaries(&self.path);
            if let Ok(generations) = self.generations() {
                self.sweep(&generations);
                for generation in &generations {
                    disk::remove_temporaries(&generation.path);
                }
            }
        }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
        let _writing = self.storage.writing()?;
        self.storage.make_folders(&self.path)?;
        disk::write(path, bytes)
    }

    fn draft_at(&self, number: u64) -> Draft {
        Draft { folder: self.clone(), number, path: self.path.join(name_of(number)) }
    }

    /// The generation that `live` names. A link that leads elsewhere was made by a person: it names none of ours.
    fn live_number(&self) -> Option<u64> {
        let target = fs::read_link(self.path.join(LIVE)).ok()?;
        let mut parts = target.components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(name)), None) => number_of(name.to_str()?),
            _ => None,
        }
    }

    /// All generations, the oldest first.
    fn generations(&self) -> Result<Vec<Generation>, StorageError> {
        let mut generations: Vec<Generation> = disk::entries(&self.path)?
            .into_iter()
            .filter(|entry| entry.is_folder)
            .filter_map(|entry| {
                let number = number_of(entry.name.to_str()?)?;
                let path = self.path.join(entry.name);
                let has = |name: &str| fs::symlink_metadata(path.join(name)).is_ok_and(|metadata| metadata.is_file());
                let (has_note, is_complete) = (has(NOTE), has(KEY) && has(CHAIN));
                Some(Generation { number, path, has_note, is_complete })
            })
            .collect();
        generations.sort_by_key(|generation| generation.number);
        Ok(generations)
    }

    /// Removes the generations that nobody needs: all but the live one, the one before it, and the drafts. Says which
    /// one is live.
    fn sweep(&self, generations: &[Generation]) -> Option<u64> {
        let live = self.live_number().filter(|live| generations.iter().any(|generation| generation.number == *live));
        let is_older = |generation: &&Generation| live.is_some_and(|live| generation.number < live);
        let previous = generations.iter().filter(is_older).rfind(|generation| generation.is_complete);
        let previous = previous.map(|generation| generation.number);
        for generation in generations {
            // Without a live one a person has to look: whole pairs are not removed then.
            let is_orphan = live.is_none() && generation.is_complete;
            let is_kept = [live, previous].contains(&Some(generation.number)) || generation.is_draft(live);
            if !is_kept && !is_orphan {
                // What cannot be removed now can be the next time.
                let _ = disk::remove_folder(&generation.path);
            }
        }
        live
    }
}

impl Draft {
    /// Where the private key has to be made: absolute.
    pub fn key_file(&self) -> PathBuf {
        self.path.join(KEY)
    }

    /// What was last kept by [`Draft::set_note`]; `None` also when it cannot be read.
    pub fn note(&self) -> Option<Vec<u8>> {
        disk::read(&self.path.join(NOTE)).ok().flatten()
    }

    /// Keeps what is needed to resume the order: `order.json`, as one step.
    ///
    /// # Errors
    /// The disk refuses: the old note is still there.
    pub fn set_note(&self, note: &[u8]) -> Result<(), StorageError> {
        self.folder.write(&self.path.join(NOTE), note)
    }

    /// Makes this the live pair: writes `chain_pem`, then swaps `live`, then removes all generations but this and the
    /// one before it. May be called again after an error, and the old pair is live until it succeeds.
    ///
    /// # Errors
    /// There is no key, or the disk refuses.
    pub fn commit(&self, chain_pem: &str) -> Result<(), StorageError> {
        if !fs::symlink_metadata(self.key_file()).is_ok_and(|metadata| metadata.is_file()) {
            return Err(StorageError::Incomplete { path: self.key_file() });
        }
        self.folder.write(&self.path.join(CHAIN), chain_pem.as_bytes())?;
        {
            let _writing = self.folder.storage.writing()?;
            disk::swap_link(&self.folder.path.join(LIVE), &OsString::from(name_of(self.number)))?;
        }
        // Done: what is left over does no harm.
        if let Ok(generations) = self.folder.generations() {
            self.folder.sweep(&generations);
        }
        Ok(())
    }

    /// Removes it: the order has failed.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn discard(self) -> Result<(), StorageError> {
        disk::remove_folder(&self.path)
    }
}

impl Generation {
    fn is_draft(&self, live: Option<u64>) -> bool {
        self.has_note && live.is_none_or(|live| self.number > live)
    }
}

fn name_of(number: u64) -> String {
    format!("{number:08}")
}

fn number_of(name: &str) -> Option<u64> {
    let number = name.parse().ok()?;
    // "+1" and "1" are numbers too, but not names that we give.
    (name_of(number) == name).then_some(number)
}
