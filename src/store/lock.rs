//! Locks between processes: flock(2). They are released by the system when their holder dies, however it dies.

use std::fs::File;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::StorageError;
use super::disk;

/// How often a lock that is held is tried again.
const PAUSE: Duration = Duration::from_millis(5);

/// Held until this is dropped.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing it is not enough: a child that is just being started still has it open, until it becomes its program.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Who else may hold it.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Others that share it too.
    Shared,
    /// Nobody.
    Exclusive,
}

/// The lock of the file at `path`, which is made when it is not there; `None` when another holds it.
pub fn attempt(path: &Path, kind: Kind) -> Result<Option<Lock>, StorageError> {
    let file = disk::open_lock(path)?;
    let operation = match kind {
        Kind::Shared => FlockOperation::NonBlockingLockShared,
        Kind::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    loop {
        return match flock(&file, operation) {
            Ok(()) => Ok(Some(Lock { file })),
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(StorageError::of("lock", path, error.into())),
        };
    }
}

/// The same after `longest` at the latest. Blocks.
pub fn wait(path: &Path, kind: Kind, longest: Duration) -> Result<Lock, StorageError> {
    let deadline = Instant::now() + longest;
    loop {
        if let Some(lock) = attempt(path, kind)? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(StorageError::Busy { path: path.to_owned() });
        }
        sleep(PAUSE);
    }
}
