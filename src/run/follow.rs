//! `doorward run --watch`: a reload when the file changes, or one that it includes.
//!
//! The files are few and looked at once a second: that sees every way in which a file is replaced (in place, by rename,
//! by a swapped link, deleted and written again), on every file system.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::admin::control::ReloadRequest;
use crate::config;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A change counts when nothing more has happened for this long: editors and deployments write several files.
const QUIET: Duration = Duration::from_millis(300);

/// Files that never come to rest are read after this long.
const IMPATIENCE: Duration = Duration::from_secs(3);

/// How long a reload may take before the next change is looked for.
const RELOAD: Duration = Duration::from_secs(60);

/// Asks for a reload whenever `file` or what it includes has changed. Each state of the files is read once, also one
/// that is refused.
pub(super) async fn follow(followed: Followed, reloads: mpsc::Sender<ReloadRequest>) {
    let Followed { mut watched, mut known } = followed;
    loop {
        sleep(LOOK).await;
        let changed = watched.look();
        if changed == known {
            continue;
        }
        known = settled(&mut watched, changed).await;
        tracing::info!("{} has changed on disk", watched.file.display());
        let (reply, outcome) = oneshot::channel();
        if reloads.send(ReloadRequest { reply }).await.is_err() {
            return;
        }
        // The outcome is in the log, as that of HUP is.
        let _ = timeout(RELOAD, outcome).await;
    }
}

/// The files to follow, and how they were when they were looked at first.
pub(super) struct Followed {
    watched: Watched,
    known: Seen,
}

impl Followed {
    /// Looks at them, before the file is read: what changes from then on is noticed.
    pub(super) fn look_at(file: PathBuf) -> Followed {
        let mut watched = Watched::new(file);
        let known = watched.look();
        Followed { watched, known }
    }
}

/// Waits until the changes stop coming.
async fn settled(watched: &mut Watched, mut last: Seen) -> Seen {
    let latest = Instant::now() + IMPATIENCE;
    loop {
        sleep(QUIET).await;
        let now = watched.look();
        if now == last || Instant::now() >= latest {
            return now;
        }
        last = now;
    }
}

/// Which files there are, and what tells one state of a file from the next; `None` is a file that is not there.
type Seen = BTreeMap<PathBuf, Option<Mark>>;

/// Differs between two states of a file: device, inode, size, and the times of content and inode.
type Mark = (u64, u64, u64, (i64, i64), (i64, i64));

struct Watched {
    file: PathBuf,
    /// The state of the file that `patterns` were read from.
    read: Option<Mark>,
    /// The patterns of its `include`. Those of the last state that could be read: what is mended may be an included file.
    patterns: Vec<String>,
}

impl Watched {
    fn new(file: PathBuf) -> Watched {
        Watched { file, read: None, patterns: Vec::new() }
    }

    fn look(&mut self) -> Seen {
        let main = mark(&self.file);
        if main != self.read {
            self.read = main;
            if let Some(patterns) = config::include_patterns(&self.file) {
                self.patterns = patterns;
            }
        }
        let marked = |path: PathBuf| {
            let mark = mark(&path);
            (path, mark)
        };
        config::files(&self.file, &self.patterns).into_iter().map(marked).collect()
    }
}

fn mark(path: &Path) -> Option<Mark> {
    let meta = std::fs::metadata(path).ok()?;
    let (changed, touched) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    Some((meta.dev(), meta.ino(), meta.len(), changed, touched))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Place {
        folder: tempfile::TempDir,
        watched: Watched,
    }

    impl Place {
        fn new() -> Place {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("sites")).unwrap();
            let file = folder.path().join("proxy.toml");
            fs::write(&file, "include = [\"sites/*.toml\"]").unwrap();
            Place { folder, watched: Watched::new(file) }
        }

        /// Whether `change` is seen, once.
        fn sees(&mut self, change: impl FnOnce(&Path)) -> bool {
            let before = self.watched.look();
            change(self.folder.path());
            let after = self.watched.look();
            assert_eq!(after, self.watched.look());
            before != after
        }
    }

    #[test]
    fn every_way_to_change_a_file_is_seen() {
        let mut place = Place::new();
        assert!(!place.sees(|_| ()));
        assert!(place.sees(|dir| fs::write(dir.join("sites/a.toml"), "1").unwrap()), "a new file");
        assert!(place.sees(|dir| fs::write(dir.join("sites/a.toml"), "22").unwrap()), "in place");
        assert!(
            place.sees(|dir| {
                fs::write(dir.join("sites/new"), "33").unwrap();
                fs::rename(dir.join("sites/new"), dir.join("sites/a.toml")).unwrap();
            }),
            "by rename"
        );
        assert!(place.sees(|dir| fs::remove_file(dir.join("sites/a.toml")).unwrap()), "removed");
        assert!(!place.sees(|dir| fs::write(dir.join("sites/a.toml.swp"), "").unwrap()), "not of the pattern");
        assert!(!place.sees(|dir| fs::write(dir.join("other.toml"), "").unwrap()), "not named");
        let main = |text: &'static str| move |dir: &Path| fs::write(dir.join("proxy.toml"), text).unwrap();
        assert!(place.sees(main("include = [\"other.toml\"]")));
        assert!(place.sees(|dir| fs::write(dir.join("other.toml"), "1").unwrap()), "named now");
        assert!(place.sees(main("broken [")));
        assert!(place.sees(|dir| fs::write(dir.join("other.toml"), "22").unwrap()), "still known");
        assert!(place.sees(|dir| fs::remove_file(dir.join("proxy.toml")).unwrap()));
        assert!(!place.sees(|_| ()));
    }

    #[test]
    fn a_swapped_link_is_seen() {
        let mut place = Place::new();
        // As Kubernetes has it: sites/a.toml -> ..data/a.toml, and ..data is swapped.
        let swap = |version: &'static str| {
            move |dir: &Path| {
                let sites = dir.join("sites");
                fs::create_dir(sites.join(version)).unwrap();
                fs::write(sites.join(version).join("a.toml"), "1").unwrap();
                symlink(version, sites.join("..tmp")).unwrap();
                fs::rename(sites.join("..tmp"), sites.join("..data")).unwrap();
            }
        };
        place.sees(swap("..1"));
        assert!(place.sees(|dir| symlink("..data/a.toml", dir.join("sites/a.toml")).unwrap()));
        assert!(place.sees(swap("..2")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_one_reload_however_many_writes_it_is() {
        let place = Place::new();
        let file = place.watched.file.clone();
        let (sender, mut reloads) = mpsc::channel(4);
        let following = tokio::spawn(follow(Followed::look_at(file.clone()), sender));
        sleep(Duration::from_millis(1500)).await;
        // Two files in a row, the second while the first is settling.
        fs::write(place.folder.path().join("sites/a.toml"), "1").unwrap();
        sleep(Duration::from_millis(600)).await;
        fs::write(place.folder.path().join("sites/b.toml"), "1").unwrap();
        let request = reloads.recv().await.unwrap();
        request.reply.send(Err("bad".to_owned())).unwrap();
        // A file that was refused is not tried again before it has changed.
        assert!(timeout(Duration::from_secs(60), reloads.recv()).await.is_err());
        fs::write(&file, "include = []").unwrap();
        reloads.recv().await.unwrap().reply.send(Ok(String::new())).unwrap();
        assert!(timeout(Duration::from_secs(60), reloads.recv()).await.is_err());
        following.abort();
    }
}
