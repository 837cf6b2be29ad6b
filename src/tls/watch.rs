//! Keeps the certificate store true to the disk: inotify for speed, a slow poll as the floor.
//!
//! Files are replaced in many ways, and a watch on the file itself misses most of them. So the *directories* are
//! watched: of the configured path, of each symbolic link on the way (certbot's `live/`, Kubernetes' `..data`), and of
//! the file it ends at (certbot's `archive/`).

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::store::CertStore;

/// A change is looked at when nothing more has happened for this long: a pair is two files, certbot writes four.
const QUIET: Duration = Duration::from_millis(200);
/// A directory where something always happens is looked at this long after the first event.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// How often the files are looked at although nothing was heard: network file systems tell nothing.
const FLOOR: Duration = Duration::from_secs(30);
/// How often, where the system cannot watch.
const BLIND: Duration = Duration::from_secs(2);
/// More symbolic links than this are a loop, as Linux has it.
const MOST_LINKS: usize = 40;

/// Refreshes `store` within 2 s of a change to its files, until `shutdown` completes. Follows what is committed to the
/// store; reads on the blocking pool. Never fails: where directories cannot be watched, files are polled, and the log
/// says so. For the control thread; one per store.
pub async fn watch(store: Arc<CertStore>, shutdown: impl Future<Output = ()>) {
    watch_with(store, shutdown, open).await;
}

async fn watch_with(store: Arc<CertStore>, shutdown: impl Future<Output = ()>, open: Open) {
    let signal = Arc::new(Signal::default());
    let mut eyes = Eyes::new(open, Arc::clone(&signal));
    let mut shutdown = pin!(shutdown);
    loop {
        let store_for_look = Arc::clone(&store);
        let look = tokio::task::spawn_blocking(move || {
            // Watch first, read then: what changes in between is either read or heard.
            eyes.follow(&store_for_look);
            store_for_look.refresh();
            eyes
        });
        let looked = tokio::select! {
            () = &mut shutdown => return,
            looked = look => looked,
        };
        eyes = looked.unwrap_or_else(|error| {
            tracing::error!(%error, "looking at the certificate files failed");
            Eyes::new(open, Arc::clone(&signal))
        });
        let pause = if eyes.sees() { FLOOR } else { BLIND };
        tokio::select! {
            () = &mut shutdown => return,
            () = store.committed() => {}
            () = signal.changed.notified() => settle(&signal).await,
            () = sleep(pause) => {}
        }
    }
}

/// Waits until the events stop coming.
async fn settle(signal: &Signal) {
    let latest = Instant::now() + IMPATIENCE;
    while timeout_at(latest.min(Instant::now() + QUIET), signal.changed.notified()).await.is_ok() {
        if Instant::now() >= latest {
            break;
        }
    }
}

/// What the watcher's thread tells the loop.
#[derive(Default)]
struct Signal {
    changed: Notify,
    failure: Mutex<Option<notify::Error>>,
}

impl Signal {
    fn hear(&self, event: notify::Result<Event>) {
        match event {
            // Our own reading raises these: listening to them would never end.
            Ok(event) if event.kind.is_access() => return,
            Ok(_) => {}
            Err(error) => *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
        }
        self.changed.notify_one();
    }

    fn take_failure(&self) -> Option<notify::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

type Open = fn(Arc<Signal>) -> notify::Result<Box<dyn Watcher + Send>>;

fn open(signal: Arc<Signal>) -> notify::Result<Box<dyn Watcher + Send>> {
    Ok(Box::new(RecommendedWatcher::new(move |event| signal.hear(event), notify::Config::default())?))
}

/// The watcher and what it watches.
struct Eyes {
    open: Open,
    signal: Arc<Signal>,
    watcher: Option<Box<dyn Watcher + Send>>,
    watched: Directories,
    /// While blind: when to try again.
    retry: Option<Instant>,
    /// Whether a directory went away while it was being watched: look again soon.
    unsure: bool,
}

/// Directories by path, with the device and inode that the path led to.
type Directories = BTreeMap<PathBuf, (u64, u64)>;

impl Eyes {
    fn new(open: Open, signal: Arc<Signal>) -> Eyes {
        Eyes { open, signal, watcher: None, watched: Directories::new(), retry: None, unsure: false }
    }

    fn sees(&self) -> bool {
        self.retry.is_none() && !self.unsure
    }

    /// Watches the directories of the store's files, and no others.
    fn follow(&mut self, store: &CertStore) {
        if self.retry.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let outcome = match self.signal.take_failure() {
            Some(error) => Err(error),
            None => self.try_follow(directories(store)),
        };
        match (outcome, self.retry) {
            (Ok(()), Some(_)) => {
                self.retry = None;
                tracing::info!("the certificate files are watched again");
            }
            (Ok(()), None) => {}
            (Err(error), before) => {
                self.watcher = None;
                self.watched.clear();
                self.retry = Some(Instant::now() + FLOOR);
                if before.is_none() {
                    let every = BLIND.as_secs();
                    tracing::warn!(%error, "cannot watch the certificate files: they are read every {every} s instead");
                }
            }
        }
    }

    fn try_follow(&mut self, wanted: Directories) -> notify::Result<()> {
        if self.watcher.is_none() && !wanted.is_empty() {
            self.watcher = Some((self.open)(Arc::clone(&self.signal))?);
        }
        self.unsure = false;
        let Some(watcher) = &mut self.watcher else { return Ok(()) };
        for (path, identity) in &self.watched {
            if wanted.get(path) != Some(identity) {
                // It fails when the directory is gone, and the watch with it.
                let _ = watcher.unwatch(path);
            }
        }
        for path in wanted.keys() {
            // Every time anew: a directory that was deleted and made again may have the same inode, but has no watch.
            match watcher.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {}
                // Gone since it was looked at: its parent is watched next time.
                Err(error) if is_absent(&error) => self.unsure = true,
                Err(error) => return Err(error),
            }
        }
        self.watched = wanted;
        Ok(())
    }
}

fn is_absent(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => {
            matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
        }
        _ => false,
    }
}

fn directories(store: &CertStore) -> Directories {
    let mut found = Directories::new();
    for files in store.files() {
        directories_of(&files.cert, &mut found);
        directories_of(&files.key, &mut found);
    }
    found
}

/// Adds each directory where a change can make `path` lead elsewhere: that of each symbolic link on the way, that of
/// the file, or the last one that exists.
fn directories_of(path: &Path, found: &mut Directories) {
    let Ok(path) = std::path::absolute(path) else { return };
    let mut add = |directory: &Path| {
        if let Ok(metadata) = fs::metadata(directory) {
            found.insert(directory.to_owned(), (metadata.dev(), metadata.ino()));
        }
    };
    // The components that are still to go, the next one last.
    let mut ahead: Vec<PathBuf> = reversed(&path);
    let mut here = PathBuf::from("/");
    let mut links = 0;
    while let Some(step) = ahead.pop() {
        match step.components().next() {
            Some(Component::RootDir) => here = PathBuf::from("/"),
            Some(Component::ParentDir) => {
                here.pop();
            }
            Some(Component::Normal(name)) => {
                let next = here.join(name);
                match fs::read_link(&next) {
                    Ok(target) => {
                        add(&here);
                        links += 1;
                        if links > MOST_LINKS {
                            return;
                        }
                        ahead.extend(reversed(&target));
                    }
                    // Not a symbolic link, or not there.
                    Err(_) if !ahead.is_empty() && next.is_dir() => here = next,
                    Err(_) => {
                        add(&here);
                        return;
                    }
                }
            }
            _ => {}
        }
    }
}

fn reversed(path: &Path) -> Vec<PathBuf> {
    path.components().rev().map(|component| PathBuf::from(component.as_os_str())).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rustls::sign::CertifiedKey;
    use tokio::sync::oneshot;

    use super::*;
    use crate::keys::LocalKeys;
    use crate::tls::pair::{CertificateFiles, PairError};
    use crate::tls::store::Serving;
    use crate::tls::testing::{Issued, days_from_now, site};

    const IN_TIME: Duration = Duration::from_secs(2);

    /// A site whose certificate lies as certbot has it: `live/x.pem` → `archive/x1.pem`.
    struct World {
        folder: tempfile::TempDir,
        store: Arc<CertStore>,
        live: CertificateFiles,
    }

    fn relink(target: &str, link: &Path) {
        let aside = link.parent().unwrap().join("link-aside");
        symlink(target, &aside).unwrap();
        fs::rename(&aside, link).unwrap();
    }

    impl World {
        fn new(first: &Issued) -> World {
            let folder = tempfile::tempdir().unwrap();
            for name in ["live", "archive"] {
                fs::create_dir(folder.path().join(name)).unwrap();
            }
            first.write(&folder.path().join("archive"), "x1");
            let live =
                CertificateFiles { cert: folder.path().join("live/x.pem"), key: folder.path().join("live/x.key") };
            relink("../archive/x1.pem", &live.cert);
            relink("../archive/x1.key", &live.key);
            let store = Arc::new(CertStore::new(Arc::new(LocalKeys::new())));
            let problems = store.apply(vec![site("x", &["x.example"], live.clone())]);
            assert!(problems.is_empty(), "{problems:?}");
            World { folder, store, live }
        }

        fn archive(&self) -> PathBuf {
            self.folder.path().join("archive")
        }

        fn served(&self) -> Arc<CertifiedKey> {
            self.store.find(Some("x.example")).expect("a certificate is always served")
        }

        async fn wait_for(&self, what: &str, within: Duration, condition: impl Fn(&World) -> bool) {
            let deadline = Instant::now() + within;
            while !condition(self) {
                assert!(Instant::now() < deadline, "{what}: not within {within:?}");
                sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Runs `steps` beside a watch, and the watch to its end.
    async fn beside_watch(world: &World, open: Open, steps: impl Future<Output = ()>) {
        let (stop, stopped) = oneshot::channel::<()>();
        let watching = watch_with(
            Arc::clone(&world.store),
            async {
                let _ = stopped.await;
            },
            open,
        );
        tokio::join!(watching, async {
            steps.await;
            stop.send(()).expect("the watch ended early");
        });
    }

    type Change = fn(&World, &Issued);

    /// Each of these brings a good pair.
    const REPLACEMENTS: [(&str, Change); 8] = [
        ("certbot's symlink swap", |world, new| {
            new.write(&world.archive(), "x2");
            for link in [&world.live.cert, &world.live.key] {
                fs::remove_file(link).unwrap();
            }
            symlink("../archive/x2.pem", &world.live.cert).unwrap();
            symlink("../archive/x2.key", &world.live.key).unwrap();
        }),
        ("symlinks renamed over", |world, new| {
            new.write(&world.archive(), "x2");
            relink("../archive/x2.pem", &world.live.cert);
            relink("../archive/x2.key", &world.live.key);
        }),
        ("written in place in the archive", |world, new| {
            new.write(&world.archive(), "x1");
        }),
        ("renamed over in the archive", |world, new| {
            let aside = new.write(&world.archive(), "aside");
            fs::rename(&aside.cert, world.archive().join("x1.pem")).unwrap();
            fs::rename(&aside.key, world.archive().join("x1.key")).unwrap();
        }),
        ("links replaced by files", |world, new| {
            let aside = new.write(world.folder.path(), "aside");
            fs::rename(&aside.cert, &world.live.cert).unwrap();
            fs::rename(&aside.key, &world.live.key).unwrap();
        }),
        ("deleted and made again", |world, new| {
            fs::remove_file(world.archive().join("x1.pem")).unwrap();
            fs::remove_file(world.archive().join("x1.key")).unwrap();
            new.write(&world.archive(), "x1");
        }),
        ("the directory swapped", |world, new| {
            let aside = world.folder.path().join("aside");
            fs::create_dir(&aside).unwrap();
            new.write(&aside, "x");
            fs::rename(world.folder.path().join("live"), world.folder.path().join("old")).unwrap();
            fs::rename(&aside, world.folder.path().join("live")).unwrap();
        }),
        ("the directory deleted and made again", |world, new| {
            let live = world.folder.path().join("live");
            fs::remove_dir_all(&live).unwrap();
            fs::create_dir(&live).unwrap();
            new.write(&live, "x");
        }),
    ];

    #[tokio::test]
    async fn every_way_to_replace_a_pair_is_seen_in_time_and_seen_again() {
        for (what, replace) in REPLACEMENTS {
            let (first, second, third) = (
                Issued::for_names(&["x.example"]),
                Issued::for_names(&["x.example"]),
                Issued::for_names(&["x.example"]),
            );
            let world = World::new(&first);
            beside_watch(&world, open, async {
                replace(&world, &second);
                world.wait_for(what, IN_TIME, |world| second.is(&world.served())).await;
                // And once more where it lies now: the watch has followed.
                third.write(world.live.cert.parent().unwrap(), "x");
                world.wait_for(what, IN_TIME, |world| third.is(&world.served())).await;
            })
            .await;
        }
    }

    /// Each of these breaks a pair.
    const BREAKAGES: [(&str, Change); 9] = [
        ("half-written certificate", |world, new| {
            fs::write(&world.live.key, &new.key).unwrap();
            fs::write(&world.live.cert, &new.cert[..new.cert.len() / 2]).unwrap();
        }),
        ("half-written key", |world, new| {
            fs::write(&world.live.cert, &new.cert).unwrap();
            fs::write(&world.live.key, &new.key[..new.key.len() / 2]).unwrap();
        }),
        ("empty", |world, _| fs::write(&world.live.cert, "").unwrap()),
        ("mismatched", |world, new| fs::write(&world.live.cert, &new.cert).unwrap()),
        ("expired", |world, _| {
            Issued::between(&["x.example"], days_from_now(-90), days_from_now(-1)).write(&world.archive(), "x1");
        }),
        ("not yet valid", |world, _| {
            Issued::between(&["x.example"], days_from_now(1), days_from_now(90)).write(&world.archive(), "x1");
        }),
        ("deleted", |world, _| fs::remove_file(&world.live.cert).unwrap()),
        ("dangling", |world, _| fs::remove_file(world.archive().join("x1.key")).unwrap()),
        ("unreadable", |world, _| {
            fs::remove_file(&world.live.key).unwrap();
            fs::create_dir(&world.live.key).unwrap();
        }),
    ];

    #[tokio::test]
    async fn a_broken_pair_keeps_the_old_one_and_its_repair_is_seen_in_time() {
        for (what, break_it) in BREAKAGES {
            let (first, second) = (Issued::for_names(&["x.example"]), Issued::for_names(&["x.example"]));
            let world = World::new(&first);
            beside_watch(&world, open, async {
                break_it(&world, &second);
                world
                    .wait_for(what, IN_TIME, |world| {
                        assert!(first.is(&world.served()), "{what}: the old pair was dropped");
                        let problem = world.store.certificates()[0].problem.clone();
                        problem.is_some_and(|problem| problem.serving == Serving::Previous)
                    })
                    .await;
                if world.live.key.is_dir() {
                    fs::remove_dir(&world.live.key).unwrap();
                }
                second.write(&world.archive(), "x3");
                relink("../archive/x3.pem", &world.live.cert);
                relink("../archive/x3.key", &world.live.key);
                world.wait_for(what, IN_TIME, |world| second.is(&world.served())).await;
                assert!(world.store.certificates()[0].problem.is_none(), "{what}: the problem was not forgotten");
            })
            .await;
        }
    }

    #[tokio::test]
    async fn a_slow_writer_is_waited_for() {
        let (first, second) = (Issued::for_names(&["x.example"]), Issued::for_names(&["x.example"]));
        let world = World::new(&first);
        beside_watch(&world, open, async {
            let half = second.cert.len() / 2;
            let mut cert = fs::File::create(&world.live.cert).unwrap();
            cert.write_all(&second.cert.as_bytes()[..half]).unwrap();
            let is_broken = |world: &World| world.store.certificates()[0].problem.is_some();
            world.wait_for("half a certificate", IN_TIME, is_broken).await;
            cert.write_all(&second.cert.as_bytes()[half..]).unwrap();
            let is_mismatch = |world: &World| {
                let problem = world.store.certificates()[0].problem.clone();
                problem.is_some_and(|problem| matches!(*problem.error, PairError::Mismatch { .. }))
            };
            world.wait_for("a certificate without its key", IN_TIME, is_mismatch).await;
            assert!(first.is(&world.served()));
            fs::write(&world.live.key, &second.key).unwrap();
            world.wait_for("both", IN_TIME, |world| second.is(&world.served())).await;
        })
        .await;
    }

    #[test]
    fn a_watcher_that_fails_later_is_given_up_for_a_while() {
        let world = World::new(&Issued::for_names(&["x.example"]));
        let signal = Arc::new(Signal::default());
        let mut eyes = Eyes::new(open, Arc::clone(&signal));
        eyes.follow(&world.store);
        assert!(eyes.sees() && eyes.watched.len() == 2);
        signal.hear(Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch)));
        eyes.follow(&world.store);
        assert!(!eyes.sees() && eyes.watcher.is_none());
        eyes.retry = Some(Instant::now());
        eyes.follow(&world.store);
        assert!(eyes.sees() && eyes.watched.len() == 2);
    }

    #[tokio::test]
    async fn a_kubernetes_volume_is_followed() {
        let (first, second) = (Issued::for_names(&["x.example"]), Issued::for_names(&["x.example"]));
        let folder = tempfile::tempdir().unwrap();
        for (name, issued) in [("..1", &first), ("..2", &second)] {
            let version = folder.path().join(name);
            fs::create_dir(&version).unwrap();
            issued.write(&version, "tls");
        }
        relink("..1", &folder.path().join("..data"));
        relink("..data/tls.pem", &folder.path().join("tls.pem"));
        relink("..data/tls.key", &folder.path().join("tls.key"));
        let world = World::new(&first);
        let files = CertificateFiles { cert: folder.path().join("tls.pem"), key: folder.path().join("tls.key") };
        beside_watch(&world, open, async {
            // A commit while the watch runs: it follows.
            assert!(world.store.apply(vec![site("x", &["x.example"], files)]).is_empty());
            relink("..2", &folder.path().join("..data"));
            world.wait_for("..data", IN_TIME, |world| second.is(&world.served())).await;
        })
        .await;
    }

    #[tokio::test]
    async fn where_nothing_can_be_watched_files_are_polled() {
        let (first, second) = (Issued::for_names(&["x.example"]), Issued::for_names(&["x.example"]));
        let world = World::new(&first);
        let no_space: Open = |_| Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch));
        beside_watch(&world, no_space, async {
            second.write(&world.archive(), "x1");
            world.wait_for("polled", IN_TIME * 2, |world| second.is(&world.served())).await;
        })
        .await;
    }

    #[test]
    fn the_directories_of_every_link_on_the_way_are_watched() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let mut found = Directories::new();
        let mut of = |path: &str| {
            found.clear();
            directories_of(&root.join(path), &mut found);
            found.keys().filter_map(|p| p.strip_prefix(&root).ok()).map(|p| p.display().to_string()).collect::<Vec<_>>()
        };
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join("c/d")).unwrap();
        fs::write(root.join("c/d/file"), "").unwrap();
        symlink("../../link/file", root.join("a/b/x")).unwrap();
        symlink("c/d", root.join("link")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(of("a/b/x"), ["", "a/b", "c/d"]);
        assert_eq!(of("c/d/file"), ["c/d"]);
        assert_eq!(of("c/absent/deeper/file"), ["c"]);
        assert_eq!(of("loop"), [""]);
    }
}
