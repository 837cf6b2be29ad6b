//! Why the storage cannot do what was asked, and what a person can do about it.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, where, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No room, or the user's quota is used up.
    #[error("cannot {action} {}: its disk is full: make room on it", path.display())]
    Full {
        /// What was to be done: a verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file system cannot be written to.
    #[error(
        "cannot {action} {}: its file system is read-only: mount it for writing (under systemd: allow it with ReadWritePaths=), or set [acme] storage to another directory",
        path.display()
    )]
    ReadOnly {
        /// What was to be done: a verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system does not let this user do it.
    #[error("user {user} may not {action} {}: give the storage to that user (chown -R {user} …), or run as its owner", path.display())]
    Denied {
        /// What was to be done: a verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The number of the user that this process runs as.
        user: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Anything else that the system said.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was to be done: a verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It belongs to another user, who could change it at any time.
    #[error(
        "{} belongs to user {owner}, and this process runs as user {user}: run as user {owner}, or give the storage away (chown -R {user} …)",
        path.display()
    )]
    Foreign {
        /// What belongs to another.
        path: PathBuf,
        /// The number of the user that owns it.
        owner: u32,
        /// The number of the user that this process runs as.
        user: u32,
    },
    /// Others may write into it.
    #[error("others may write into {} (mode {mode:04o}), and private keys are to be kept there: look at what is in it, then chmod 700 {}", path.display(), path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is something else where a directory has to be.
    #[error("{} is no directory: move it away, or set [acme] storage to another directory", path.display())]
    NoFolder {
        /// What is no directory.
        path: PathBuf,
    },
    /// There is something else where a file has to be.
    #[error("{} is no regular file: move it away", path.display())]
    NoFile {
        /// What is no file.
        path: PathBuf,
    },
    /// The file is longer than anything that is written here.
    #[error("{} is longer than {limit} bytes: it was not written by doorward; move it away", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The longest that is read, in bytes.
        limit: u64,
    },
    /// Another process holds a lock for longer than any work under it takes.
    #[error("another process keeps {} locked: see who with `fuser -v {}`, and try again", path.display(), path.display())]
    Busy {
        /// The lock's file.
        path: PathBuf,
    },
    /// A name that does not stay inside the directory.
    #[error("{} is no file inside the storage", path.display())]
    Outside {
        /// The name.
        path: PathBuf,
    },
    /// A draft without its key or its chain cannot become the live pair.
    #[error("{} is missing: this certificate cannot be used without it", path.display())]
    Incomplete {
        /// What is missing.
        path: PathBuf,
    },
}

impl StorageError {
    /// What `source` means for whoever wanted to `action` `path`.
    pub(super) fn of(action: &'static str, path: &Path, source: io::Error) -> StorageError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageError::Full { action, path, source },
            io::ErrorKind::ReadOnlyFilesystem => StorageError::ReadOnly { action, path, source },
            io::ErrorKind::PermissionDenied => {
                StorageError::Denied { action, path, user: rustix::process::geteuid().as_raw(), source }
            }
            io::ErrorKind::NotADirectory => StorageError::NoFolder { path },
            _ => StorageError::Io { action, path, source },
        }
    }
}
