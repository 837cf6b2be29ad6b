//! An htpasswd file on disk, read again soon after it has changed: `htpasswd FILE NAME` is all it takes.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rustix::fs::OFlags;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::base::fault::{Fault, Kind};
use crate::edge::passwords::{BadLine, Users};

/// The file is looked at this often, if it is used.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(1);

/// A file that has changed within this time may be changed once more with the same time stamp.
const SETTLED: Duration = Duration::from_secs(2);

/// What is older than this lets nobody in.
const OLDEST: Duration = Duration::from_secs(60);

/// How long a request waits for a look at it: a network file system may hang.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// Bytes of a file; 10,000 users are less.
const LARGEST: u64 = 1024 * 1024;

/// An htpasswd file. Shared by all sites that name it.
#[derive(Debug)]
pub struct PasswordFile {
    path: PathBuf,
    state: Mutex<State>,
    /// Who looks.
    turn: Arc<Semaphore>,
}

/// What stands in it.
#[derive(Debug)]
pub(super) struct Content {
    /// The users.
    pub users: Users,
    /// SHA-256 of the file.
    pub digest: [u8; 32],
}

#[derive(Debug)]
struct State {
    /// When the last look began that has ended.
    looked: Instant,
    /// What it was when it was read; `None` where it has to be read again in any case.
    stamp: Option<Stamp>,
    /// `Err` is why it cannot be read.
    content: Result<Arc<Content>, String>,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// Reads a file of passwords: its users, and the lines that give nobody access.
///
/// # Errors
/// It cannot be read, is no regular file, or is larger than 1 MiB.
pub fn read(path: &Path) -> io::Result<(Users, Vec<BadLine>)> {
    let (_, text) = load(path)?;
    Ok(Users::read(&text))
}

impl PasswordFile {
    /// The file at `path`, read once.
    pub(super) fn open(path: &Path) -> PasswordFile {
        let state = State { looked: Instant::now(), stamp: None, content: Err("it has not been read".to_owned()) };
        let file = PasswordFile { path: path.to_owned(), state: Mutex::new(state), turn: Arc::new(Semaphore::new(1)) };
        file.look();
        file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why it cannot be read, if it cannot.
    pub fn problem(&self) -> Option<String> {
        let why = self.state().content.as_ref().err().cloned()?;
        Some(unreadable(&self.path, &why))
    }

    /// Its users as of a second ago at most. Without a file there is nobody to let in, and everybody stays out.
    pub(super) async fn users(self: &Arc<PasswordFile>) -> Result<Arc<Content>, Fault> {
        if self.age() >= LOOKED_AT_EVERY {
            // What cannot be looked at in time stays what it was, for a while.
            let _ = timeout(LONGEST_LOOK, self.look_again()).await;
        }
        let content = match self.age() < OLDEST {
            true => self.state().content.clone(),
            false => Err("it cannot be looked at in time".to_owned()),
        };
        content.map_err(|why| Fault::new(Kind::Internal, unreadable(&self.path, &why)))
    }

    /// How old what is known is at most.
    fn age(&self) -> Duration {
        self.state().looked.elapsed()
    }

    /// Looks, or waits for who is looking: one at a time, so that a disk that hangs holds one thread.
    async fn look_again(self: &Arc<PasswordFile>) {
        let Ok(turn) = self.turn.clone().acquire_owned().await else { return };
        if self.age() < LOOKED_AT_EVERY {
            return;
        }
        let file = self.clone();
        let looking = tokio::task::spawn_blocking(move || {
            file.look();
            drop(turn);
        });
        let _ = looking.await;
    }

    /// Reads it if it has changed. May wait for a disk.
    pub(super) fn look(&self) {
        let began = Instant::now();
        let known = self.state().stamp;
        let stamp = std::fs::metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata));
        if known.is_none() || known != stamp {
            self.read();
        }
        self.state().looked = began;
    }

    fn read(&self) {
        match load(&self.path) {
            Ok((stamp, text)) => self.take(stamp, &text),
            Err(error) => {
                let why = error.to_string();
                let mut state = self.state();
                if state.content.as_ref().err() != Some(&why) {
                    tracing::error!("{}", unreadable(&self.path, &why));
                }
                (state.stamp, state.content) = (None, Err(why));
            }
        }
    }

    fn take(&self, stamp: Option<Stamp>, text: &[u8]) {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, text).as_ref());
        let mut state = self.state();
        state.stamp = stamp;
        if state.content.as_ref().is_ok_and(|content| content.digest == sum) {
            return;
        }
        let (users, bad) = Users::read(text);
        for BadLine { number, why } in bad {
            tracing::warn!("{}, line {number}: {why}", self.path.display());
        }
        state.content = Ok(Arc::new(Content { users, digest: sum }));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file's bytes, and its stamp if that tells every later change.
fn load(path: &Path) -> io::Result<(Option<Stamp>, Vec<u8>)> {
    // Nothing waits for the other end of a pipe.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    let settled = age.is_some_and(|age| age >= SETTLED) && text.len() as u64 == metadata.len();
    Ok((settled.then(|| Stamp::of(&metadata)), text))
}

fn unreadable(path: &Path, why: &str) -> String {
    format!(
        "basic_auth: {} cannot be read, and nobody can sign in: {why}; make it with `htpasswd -B -c`, and let the account \
         of the server read it",
        path.display()
    )
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: &str = "ann:{SHA}4uhqWjnCZZC5J60Sbkje+0XyBk8=\n";

    #[test]
    fn a_change_within_the_same_tick_and_of_the_same_size_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("htpasswd");
        std::fs::write(&path, ANN).unwrap();
        let file = PasswordFile::open(&path);
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, ANN.replace("ann", "bob")).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        file.look();
        let content = file.state().content.clone().unwrap();
        assert!(content.users.check(b"bob", b"tiger lily"));
    }

    #[test]
    fn a_file_that_has_settled_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("htpasswd");
        std::fs::write(&path, ANN).unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        let file = PasswordFile::open(&path);
        let before = file.state().content.clone().unwrap();
        assert!(file.state().stamp.is_some());
        file.look();
        assert!(Arc::ptr_eq(&before, file.state().content.as_ref().unwrap()));
    }

    #[test]
    fn what_is_no_file_is_told_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for (path, why) in [
            (pipe, "not a regular file"),
            (folder.path().to_owned(), "not a regular file"),
            (folder.path().join("none"), "No such file"),
        ] {
            let problem = PasswordFile::open(&path).problem().unwrap();
            assert!(problem.contains(why), "{problem}");
        }
        let large = folder.path().join("large");
        File::create(&large).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(PasswordFile::open(&large).problem().unwrap().contains("larger than 1 MiB"));
    }
}
