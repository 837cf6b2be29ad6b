//! The few ways in which the disk is changed.
//!
//! No function here follows a symbolic link in the last part of a path. The parts above it are inside a directory that
//! only this user can write to.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process;

use rustix::fs::OFlags;

use super::StorageError;

/// The longest file that is read, in bytes. The ledger of a busy edge is the longest there is, at a few MiB.
const LONGEST: u64 = 32 << 20;
/// Names that are tried for a temporary file. Others are of killed processes with the same number.
const TRIES: u32 = 1000;

/// Something in a folder.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// Whether it is a folder itself, and no link to one.
    pub is_folder: bool,
}

/// What `path` holds; `None` when there is nothing.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    let failed = |source| StorageError::of("read", path, source);
    // NONBLOCK: opening a FIFO would wait for its writer.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if is_link(&error) => return Err(StorageError::NoFile { path: path.to_owned() }),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    check_owner(path, &metadata)?;
    if !metadata.is_file() {
        return Err(StorageError::NoFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        return Err(StorageError::TooLong { path: path.to_owned(), limit: LONGEST });
    }
    Ok(Some(bytes))
}

/// Writes `path`: the old file or the new one is there at any moment, and the new one is on the disk when this returns.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let failed = |source| StorageError::of("write", path, source);
    let (mut file, temporary) = create_temporary(path).map_err(failed)?;
    let written = call(|| file.write_all(bytes))
        .and_then(|()| call(|| file.sync_all()))
        .and_then(|()| call(|| fs::rename(&temporary, path)));
    if written.is_err() {
        let _ = call(|| fs::remove_file(&temporary));
    }
    written.and_then(|()| sync_folder_of(path)).map_err(failed)
}

/// Makes `link` a symbolic link to `target`, in place of whatever link was there.
pub fn swap_link(link: &Path, target: &OsStr) -> Result<(), StorageError> {
    let failed = |source| StorageError::of("write", link, source);
    let ((), temporary) = with_temporary_name(link, |name| symlink(target, name)).map_err(failed)?;
    let swapped = call(|| fs::rename(&temporary, link));
    if swapped.is_err() {
        let _ = call(|| fs::remove_file(&temporary));
    }
    swapped.and_then(|()| sync_folder_of(link)).map_err(failed)
}

/// Makes the folder `path`, 0700 whatever the umask; one that is there has to be ours, and becomes 0700.
pub fn make_folder(path: &Path) -> Result<(), StorageError> {
    match create_folder(path) {
        Err(StorageError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => check_folder(path),
        made => made,
    }
}

/// Makes the folder `path`, 0700 whatever the umask. An [`StorageError::Io`] of `AlreadyExists` when it is there.
pub fn create_folder(path: &Path) -> Result<(), StorageError> {
    let failed = |source| StorageError::of("make the folder", path, source);
    call(|| DirBuilder::new().mode(0o700).create(path)).map_err(failed)?;
    // The umask may have taken rights away from ourselves.
    call(|| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
        .and_then(|()| sync_folder_of(path))
        .map_err(failed)
}

/// Removes the folder `path` and what is in it. It is gone as a whole, or there as a whole: killed on the way, its rest
/// has a temporary name.
pub fn remove_folder(path: &Path) -> Result<(), StorageError> {
    let failed = |source| StorageError::of("remove", path, source);
    let not_there = |name: &Path| match fs::symlink_metadata(name) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    let ((), away) =
        with_temporary_name(path, |name| not_there(name).and_then(|()| fs::rename(path, name))).map_err(failed)?;
    match call(|| fs::remove_dir_all(&away)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Renames a file. What is at `to` is replaced.
pub fn rename(from: &Path, to: &Path) -> Result<(), StorageError> {
    call(|| fs::rename(from, to))
        .and_then(|()| sync_folder_of(to))
        .map_err(|source| StorageError::of("rename", from, source))
}

/// Writes `bytes` zeros into `folder`, syncs them, and takes them away again.
pub fn try_room(folder: &Path, bytes: usize) -> Result<(), StorageError> {
    let failed = |source| StorageError::of("write into", folder, source);
    let (mut file, temporary) = create_temporary(&folder.join("room")).map_err(failed)?;
    let written = call(|| file.write_all(&vec![0; bytes])).and_then(|()| call(|| file.sync_all()));
    let removed = call(|| fs::remove_file(&temporary));
    written.and(removed).map_err(failed)
}

/// The file of a lock, made when it is not there.
pub fn open_lock(path: &Path) -> Result<File, StorageError> {
    let opened = call(|| {
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(path)
    });
    let file = match opened {
        Err(error) if is_link(&error) => return Err(StorageError::NoFile { path: path.to_owned() }),
        opened => opened.map_err(|source| StorageError::of("open", path, source))?,
    };
    if file.metadata().is_ok_and(|metadata| metadata.mode() & 0o7777 != 0o600) {
        // The umask may have taken rights away from ourselves. The lock is good all the same.
        let _ = call(|| file.set_permissions(fs::Permissions::from_mode(0o600)));
    }
    Ok(file)
}

/// What is in `folder`, in no order; nothing when it is not there, or is no folder of ours.
pub fn entries(folder: &Path) -> Result<Vec<Entry>, StorageError> {
    let failed = |source| StorageError::of("read", folder, source);
    if !fs::symlink_metadata(folder).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(Vec::new());
    }
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        entries.push(Entry { name: entry.file_name(), is_folder });
    }
    Ok(entries)
}

/// Removes what has a temporary name in `folder`, which is of the storage, and is ours. To be called while nobody writes
/// there. What cannot be removed stays.
pub fn remove_temporaries(folder: &Path) {
    for entry in entries(folder).unwrap_or_default() {
        let path = folder.join(&entry.name);
        if is_temporary(&entry.name) && is_ours(&path) {
            let _ = if entry.is_folder { call(|| fs::remove_dir_all(&path)) } else { call(|| fs::remove_file(&path)) };
        }
    }
}

/// Removes the files with a temporary name for `path`, which lies among things of others: nothing else, and no folder.
pub fn remove_temporaries_of(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return };
    for entry in entries(folder).unwrap_or_default() {
        let path = folder.join(&entry.name);
        if !entry.is_folder && is_temporary_of(&entry.name, name) && is_ours(&path) {
            let _ = call(|| fs::remove_file(&path));
        }
    }
}

fn is_ours(path: &Path) -> bool {
    let user = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.uid() == user)
}

/// A new file of mode 0600 with a temporary name beside `path`.
fn create_temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    let (file, temporary) =
        with_temporary_name(path, |name| OpenOptions::new().write(true).create_new(true).mode(0o600).open(name))?;
    // The umask may have taken rights away from ourselves.
    match call(|| file.set_permissions(fs::Permissions::from_mode(0o600))) {
        Ok(()) => Ok((file, temporary)),
        Err(error) => {
            let _ = call(|| fs::remove_file(&temporary));
            Err(error)
        }
    }
}

/// Has `make` make something with a temporary name beside `path` that nothing has yet.
fn with_temporary_name<T>(path: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(T, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    for number in 0..TRIES {
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{number}.tmp", process::id()));
        let temporary = path.with_file_name(temporary);
        match call(|| make(&temporary)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|made| (made, temporary)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") && name.ends_with(b".tmp")
}

/// Whether [`with_temporary_name`] could have made `name` for `of`.
fn is_temporary_of(name: &OsStr, of: &OsStr) -> bool {
    let numbers = |name: &[u8]| -> Option<bool> {
        let rest = name.strip_prefix(b".")?.strip_prefix(of.as_encoded_bytes())?.strip_prefix(b".")?;
        let (process, number) = std::str::from_utf8(rest.strip_suffix(b".tmp")?).ok()?.split_once('-')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        Some(is_number(process) && is_number(number))
    };
    numbers(name.as_encoded_bytes()).unwrap_or(false)
}

fn check_folder(path: &Path) -> Result<(), StorageError> {
    let metadata = fs::symlink_metadata(path).map_err(|source| StorageError::of("read", path, source))?;
    if !metadata.is_dir() {
        return Err(StorageError::NoFolder { path: path.to_owned() });
    }
    check_owner(path, &metadata)?;
    if metadata.mode() & 0o7777 != 0o700 {
        call(|| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
            .map_err(|source| StorageError::of("chmod 700", path, source))?;
    }
    Ok(())
}

fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), StorageError> {
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner == user { Ok(()) } else { Err(StorageError::Foreign { path: path.to_owned(), owner, user }) }
}

/// What O_NOFOLLOW says of a symbolic link.
fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    match call(|| File::open(folder)?.sync_all()) {
        // Some network and FUSE file systems cannot sync a folder; there is nothing better to do there.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// One system call that changes the disk. The tests end the world between any two of them.
fn call<T>(act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    #[cfg(test)]
    super::fate::step()?;
    act()
}
