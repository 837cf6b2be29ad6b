//! Layer 2: where certificates and the state of ACME live: one directory. No tokio, and no format of what is kept.
//!
//! ```text
//! acme/                                 0700, every folder below too; every file 0600
//! ├── lock                              shared while a file is written, exclusive while leftovers are cleaned
//! ├── ledger.json                       and its second copy, acme.ledger, beside the directory
//! ├── accounts/
//! └── certificates/
//!     └── a.example/                    one label
//!         ├── lock                      held while an order for it is open
//!         ├── state.json
//!         ├── live -> 00000002          swapped by rename: key and chain change as one
//!         ├── 00000001/                 the pair before, for who is reading it
//!         ├── 00000002/                 privkey.pem, order.json, fullchain.pem
//!         └── 00000003/                 a draft: an order that is not finished
//! ```
//!
//! Files are written under a temporary name, synced, renamed, and their folder is synced: a kill between any two steps
//! leaves the old state or the new one, and leftovers that the next [`Storage::open`] cleans. Nothing here is slow but
//! the disk: calls block for as long as it takes to sync a few kilobytes.

mod folder;
mod label;

mod disk;
mod error;
#[cfg(test)]
pub mod fate;
mod lock;

pub use error::StorageError;
pub use folder::{CertificateFolder, Draft, live_files};
pub use label::label;
pub use lock::Lock;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

const CERTIFICATES: &str = "certificates";
/// What is kept beside the directory has this extension: see [`Storage::beside`].
const COPY: &str = "ledger";
/// The longest wait for another process that holds a lock, which it does for a few writes only.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// What has to fit before an order is worth placing: a key, a chain and the notes about them, several times over.
const ROOM: usize = 64 * 1024;

/// The directory. Cheap to clone; several processes of one user may have it open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Absolute, without symbolic links.
    root: PathBuf,
    /// The name of the directory as it was asked for, absolute: what lies beside it outlives a directory elsewhere.
    name: PathBuf,
}

/// One file of the storage, there or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    storage: Storage,
    path: PathBuf,
}

impl Storage {
    /// Opens the directory `root`, and makes it, and what is missing above it, when it is not there. Leftovers of
    /// killed processes are cleaned unless another process is writing. A read-only file system does not fail here:
    /// see [`Storage::check_room`].
    ///
    /// # Errors
    /// The directory belongs to another user, may be written by others, is no directory, or cannot be made.
    pub fn open(root: &Path) -> Result<Storage, StorageError> {
        let name = absolute(root)?;
        make_missing(&name)?;
        let root = fs::canonicalize(&name).map_err(|source| StorageError::of("find", &name, source))?;
        let storage = Storage { root, name };
        storage.check_root()?;
        storage.clean();
        Ok(storage)
    }

    /// Opens the directory `root` for reading, if it is there: nothing is made and nothing is cleaned.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn open_if_there(root: &Path) -> Result<Option<Storage>, StorageError> {
        let name = absolute(root)?;
        match fs::canonicalize(&name) {
            Ok(root) => Ok(Some(Storage { root, name })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StorageError::of("find", &name, source)),
        }
    }

    /// The directory: absolute, without symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Proves that 64 KiB can be written and synced. A full or read-only disk is to be told before an order is placed,
    /// not after.
    ///
    /// # Errors
    /// They cannot.
    pub fn check_room(&self) -> Result<(), StorageError> {
        let _writing = self.writing()?;
        disk::try_room(&self.root, ROOM)
    }

    /// The folder of a certificate. What is no label already (see [`label`]) is made one. Nothing is created yet.
    pub fn certificate(&self, label: &str) -> CertificateFolder {
        CertificateFolder::new(self.clone(), label::safe(label))
    }

    /// The labels that have a folder, in order.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn labels(&self) -> Result<Vec<String>, StorageError> {
        let mut labels: Vec<String> = disk::entries(&self.certificates())?
            .into_iter()
            .filter(|entry| entry.is_folder)
            .filter_map(|entry| entry.name.into_string().ok())
            .filter(|name| label::is_label(name))
            .collect();
        labels.sort();
        Ok(labels)
    }

    /// What the file `relative` holds; `None` when it is not there.
    ///
    /// # Errors
    /// `relative` leads out of the directory, or the file cannot be read, is not ours, no regular file, or too long.
    pub fn read(&self, relative: impl AsRef<Path>) -> Result<Option<Vec<u8>>, StorageError> {
        self.file(relative)?.read()
    }

    /// Writes the file `relative`, and its folders, as one step that is done or not done.
    ///
    /// # Errors
    /// `relative` leads out of the directory, or the disk refuses: the old file is still there.
    pub fn write(&self, relative: impl AsRef<Path>, bytes: &[u8]) -> Result<(), StorageError> {
        self.file(relative)?.write(bytes)
    }

    /// The file `relative`.
    ///
    /// # Errors
    /// `relative` leads out of the directory.
    pub fn file(&self, relative: impl AsRef<Path>) -> Result<StoredFile, StorageError> {
        let relative = relative.as_ref();
        let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || relative.as_os_str().is_empty() {
            return Err(StorageError::Outside { path: relative.to_owned() });
        }
        Ok(StoredFile { storage: self.clone(), path: self.root.join(relative) })
    }

    /// The file of the directory's own name with `.extension` behind it: beside the directory, so that it outlives it.
    pub fn beside(&self, extension: &str) -> StoredFile {
        StoredFile { storage: self.clone(), path: beside(&self.name, extension) }
    }

    /// Waits, for at most ten seconds, until no other process and no other thread holds the lock `relative`.
    ///
    /// # Errors
    /// It is still held after that, or cannot be made.
    pub fn lock(&self, relative: impl AsRef<Path>) -> Result<Lock, StorageError> {
        let path = self.file(relative)?.path;
        self.make_root()?;
        lock::wait(&path, lock::Kind::Exclusive, LONGEST_WAIT)
    }

    fn certificates(&self) -> PathBuf {
        self.root.join(CERTIFICATES)
    }

    /// Held while something has a temporary name, so that nobody cleans it away.
    fn writing(&self) -> Result<Lock, StorageError> {
        self.make_root()?;
        lock::wait(&self.root.join("lock"), lock::Kind::Shared, LONGEST_WAIT)
    }

    /// The directory may have been removed while we run.
    fn make_root(&self) -> Result<(), StorageError> {
        if self.root.exists() { Ok(()) } else { make_missing(&self.root) }
    }

    /// Makes the folders from the root down to `folder`, which lies below it.
    fn make_folders(&self, folder: &Path) -> Result<(), StorageError> {
        self.make_root()?;
        let mut path = self.root.clone();
        for part in folder.strip_prefix(&self.root).unwrap_or(Path::new("")).components() {
            path.push(part);
            disk::make_folder(&path)?;
        }
        Ok(())
    }

    fn check_root(&self) -> Result<(), StorageError> {
        let path = || self.root.clone();
        let metadata = fs::metadata(&self.root).map_err(|source| StorageError::of("read", &self.root, source))?;
        if !metadata.is_dir() {
            return Err(StorageError::NoFolder { path: path() });
        }
        let user = rustix::process::geteuid().as_raw();
        if metadata.uid() != user {
            return Err(StorageError::Foreign { path: path(), owner: metadata.uid(), user });
        }
        let mode = metadata.mode() & 0o777;
        // Whoever could write here may have planted what we would follow.
        if mode & 0o022 != 0 {
            return Err(StorageError::Exposed { path: path(), mode });
        }
        if mode & 0o077 != 0 {
            // On a read-only disk it stays as it is, and nothing more will be put into it.
            let _ = fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700));
        }
        Ok(())
    }

    /// Removes what killed processes left. What cannot be removed now can be the next time.
    fn clean(&self) {
        let Ok(Some(_alone)) = lock::attempt(&self.root.join("lock"), lock::Kind::Exclusive) else { return };
        disk::remove_temporaries(&self.root);
        disk::remove_temporaries(&self.root.join("accounts"));
        disk::remove_temporaries(&self.certificates());
        disk::remove_temporaries_of(&beside(&self.name, COPY));
        for label in self.labels().unwrap_or_default() {
            self.certificate(&label).clean();
        }
    }
}

impl StoredFile {
    /// Where it is: absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds; `None` when it is not there. Never follows a symbolic link.
    ///
    /// # Errors
    /// It cannot be read, belongs to another user, is no regular file, or is longer than 32 MiB.
    pub fn read(&self) -> Result<Option<Vec<u8>>, StorageError> {
        disk::read(&self.path)
    }

    /// Writes it, 0600, as one step that is done or not done. A symbolic link in its place is replaced, not followed.
    ///
    /// # Errors
    /// The disk refuses: the old file is still there.
    pub fn write(&self, bytes: &[u8]) -> Result<(), StorageError> {
        let _writing = self.storage.writing()?;
        if let Some(folder) = self.path.parent().filter(|folder| folder.starts_with(&self.storage.root)) {
            self.storage.make_folders(folder)?;
        }
        disk::write(&self.path, bytes)
    }

    /// Renames it to its name with `.broken` behind it, for a person to look at. One that was there before is replaced.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn set_aside(&self) -> Result<PathBuf, StorageError> {
        let aside = beside(&self.path, "broken");
        disk::rename(&self.path, &aside)?;
        Ok(aside)
    }
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".");
    name.push(extension);
    PathBuf::from(name)
}

/// `root` without a relative beginning or a trailing slash; its last part stays a symbolic link if it is one.
fn absolute(root: &Path) -> Result<PathBuf, StorageError> {
    let no_name = || StorageError::NoFolder { path: root.to_owned() };
    let root = std::path::absolute(root).map_err(|source| StorageError::of("find", root, source))?;
    let name = root.file_name().ok_or_else(no_name)?;
    Ok(root.parent().ok_or_else(no_name)?.join(name))
}

/// Makes `path` and the folders above it that are not there, each 0700 and synced into the one above.
fn make_missing(path: &Path) -> Result<(), StorageError> {
    match fs::metadata(path) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(StorageError::of("find", path, source)),
    }
    if let Some(above) = path.parent() {
        make_missing(above)?;
    }
    disk::make_folder(path)
}

#[cfg(test)]
mod tests;
