//! Keeps the certificate store true to the disk: inotify for speed, a slow poll as the floor.
//!
//! Files are replaced in many ways, and a watch on the file itself misses most of them. So the *directories* are
//! watched in which a step of the way is looked up: of the configured path and all that lie above it (a folder higher
//! up may be renamed), of each symbolic link on the way (certbot's `live/`, Kubernetes' `..data`), and of the file it
//! ends at (certbot's `archive/`). Some of these are busy (`/etc`, `/tmp`), so what happens to other names in them is
//! not listened to, and of directories that only lead on nothing is heard but names that come, go or change their mode.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::future::{Future, pending};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout_at};

use super::pair::CertificateFiles;
use super::store::CertStore;

/// A change is looked at when nothing more has happened for this long: a pair is two files, certbot writes four.
const QUIET: Duration = Duration::from_millis(200);
/// A directory where something always happens is looked at this long after the first event.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// How often the files are looked at although nothing was heard: network file systems tell nothing.
const FLOOR: Duration = Duration::from_secs(30);
/// How often, where the system cannot watch, or while something is wrong with a certificate: its repair may be one
/// that no event tells of, such as a free descriptor.
const CLOSELY: Duration = Duration::from_secs(1);
/// More symbolic links than this are a loop, as Linux has it.
const MOST_LINKS: usize = 40;
/// The way may change while it is walked; it is not followed for ever.
const MOST_WALKS: usize = 5;

/// Refreshes `store` within 2 s of a change to its files, until `shutdown` completes. Follows what is committed to the
/// store; reads on the blocking pool. Never fails: where directories cannot be watched, files are polled, and the log
/// says so. For the control thread; one per store.
pub async fn watch(store: Arc<CertStore>, shutdown: impl Future<Output = ()>) {
    watch_with(store, shutdown, open).await;
}

async fn watch_with(store: Arc<CertStore>, shutdown: impl Future<Output = ()>, open: Open) {
    let mut eyes = Eyes::new(open);
    let mut shutdown = pin!(shutdown);
    loop {
        let store_for_look = Arc::clone(&store);
        let look = tokio::task::spawn_blocking(move || {
            // Watch first, read then: what changes in between is either read or heard.
            eyes.follow(&store_for_look.files());
            store_for_look.refresh();
            eyes
        });
        let looked = tokio::select! {
            () = &mut shutdown => return,
            looked = look => looked,
        };
        eyes = looked.unwrap_or_else(|error| {
            tracing::error!(%error, "looking at the certificate files failed");
            Eyes::new(open)
        });
        let pause = if eyes.sees() && !store.is_troubled() { FLOOR } else { CLOSELY };
        tokio::select! {
            () = &mut shutdown => return,
            () = store.committed() => {}
            () = eyes.change() => settle(&mut eyes).await,
            () = sleep(pause) => {}
        }
    }
}

/// Waits until the changes stop coming.
async fn settle(eyes: &mut Eyes) {
    let latest = Instant::now() + IMPATIENCE;
    while timeout_at(latest.min(Instant::now() + QUIET), eyes.change()).await.is_ok() {
        if Instant::now() >= latest {
            break;
        }
    }
}

type Open = fn() -> io::Result<OwnedFd>;

fn open() -> io::Result<OwnedFd> {
    Ok(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)
}

fn registered(inotify: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is open, and `AsyncFd` owns it: nothing else closes or replaces it.
    #[allow(unsafe_code, reason = "tokio has no other way in that is not deprecated")]
    let registered = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) };
    Ok(registered?)
}

/// An inotify instance and what it watches.
struct Eyes {
    open: Open,
    inotify: Option<AsyncFd<OwnedFd>>,
    /// The descriptors of the watches.
    watches: BTreeSet<i32>,
    /// The names that matter in them.
    names: BTreeSet<OsString>,
    /// Whether something that should be watched is not, as the log has been told.
    blind: bool,
}

/// What cannot be watched.
struct Unwatchable {
    what: String,
    error: io::Error,
}

impl Eyes {
    fn new(open: Open) -> Eyes {
        Eyes { open, inotify: None, watches: BTreeSet::new(), names: BTreeSet::new(), blind: false }
    }

    fn sees(&self) -> bool {
        !self.blind
    }

    /// Watches the ways to `files`, and nothing else. What could not be watched is tried again each time.
    fn follow(&mut self, files: &[CertificateFiles]) {
        match (self.try_follow(files), self.blind) {
            (Ok(()), true) => tracing::info!("the certificate files are watched again"),
            (Err(Unwatchable { what, error }), false) => {
                let every = CLOSELY.as_secs();
                tracing::warn!(%error, "cannot watch {what}: the certificate files are read every {every} s instead");
            }
            (Err(_), true) => return,
            (Ok(()), false) => return,
        }
        self.blind = !self.blind;
    }

    fn try_follow(&mut self, files: &[CertificateFiles]) -> Result<(), Unwatchable> {
        if files.is_empty() {
            return Ok(());
        }
        let inotify = match &mut self.inotify {
            Some(inotify) => inotify,
            none => {
                let opened = (self.open)().and_then(registered);
                none.insert(opened.map_err(|error| Unwatchable { what: "anything".to_owned(), error })?)
            }
        };
        let mut ways = Ways::to(files);
        let (mut watches, mut outcome) = ways.watch(inotify.as_fd());
        for _ in 0..MOST_WALKS {
            // What changed between the walk and the watch was not heard.
            let again = Ways::to(files);
            if again == ways {
                break;
            }
            ways = again;
            (watches, outcome) = ways.watch(inotify.as_fd());
        }
        for gone in self.watches.difference(&watches) {
            // It fails when the directory is gone, and the watch with it.
            let _ = inotify::remove_watch(inotify.as_fd(), *gone);
        }
        self.watches = watches;
        self.names = ways.names;
        outcome
    }

    /// Waits for a change that matters. Cancelling it loses none.
    async fn change(&mut self) {
        let Some(inotify) = &self.inotify else { return pending().await };
        loop {
            let heard = match inotify.readable().await {
                Ok(mut ready) => ready.try_io(|inotify| hear(inotify.as_fd(), &self.names)),
                // The runtime ends.
                Err(_) => return pending().await,
            };
            match heard {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "inotify failed and is opened anew");
                    (self.inotify, self.watches) = (None, BTreeSet::new());
                    return;
                }
            }
        }
    }
}

/// Reads the events that have come; whether one matters. [`io::ErrorKind::WouldBlock`] when there are none.
fn hear(inotify: BorrowedFd<'_>, names: &BTreeSet<OsString>) -> io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(inotify, &mut buffer);
    let mut matters = false;
    loop {
        let event = match events.next() {
            Ok(event) => event,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        matters |= match event.file_name() {
            Some(name) => names.contains(OsStr::from_bytes(name.to_bytes())),
            // The directory itself, or a queue that ran over. The end of a watch alone is what we did ourselves.
            None => event.events() != ReadFlags::IGNORED,
        };
        if matters && events.is_buffer_empty() {
            return Ok(true);
        }
    }
}

/// Where a change can make the path of a file lead elsewhere.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ways {
    /// The directories in which a step is looked up, and whether the last one is.
    directories: BTreeMap<PathBuf, bool>,
    /// The names that are looked up in them.
    names: BTreeSet<OsString>,
}

impl Ways {
    fn to(files: &[CertificateFiles]) -> Ways {
        let mut ways = Ways::default();
        for path in files.iter().flat_map(|files| [&files.cert, &files.key]) {
            // Fails only for an empty path, and where there is no working directory: no file can be read there.
            if let Ok(path) = std::path::absolute(path) {
                ways.walk(&path);
            }
        }
        ways
    }

    /// Goes along a path and each symbolic link on it, to its end or as far as there is something.
    fn walk(&mut self, path: &Path) {
        // The components that are still to go, the next one last.
        let mut ahead: Vec<PathBuf> = reversed(path);
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
                    self.names.insert(name.to_owned());
                    if let Ok(target) = fs::read_link(&next) {
                        self.directories.entry(here.clone()).or_insert(false);
                        links += 1;
                        if links > MOST_LINKS {
                            return;
                        }
                        ahead.extend(reversed(&target));
                    } else if !ahead.is_empty() && next.is_dir() {
                        self.directories.entry(here.clone()).or_insert(false);
                        here = next;
                    } else {
                        // The file, or the first step that is not there.
                        self.directories.insert(here, true);
                        return;
                    }
                }
                _ => {}
            }
        }
    }

    /// Watches all of it that can be watched: the watches, and what should be one and is not.
    fn watch(&self, inotify: BorrowedFd<'_>) -> (BTreeSet<i32>, Result<(), Unwatchable>) {
        let (mut watches, mut outcome) = (BTreeSet::new(), Ok(()));
        let leads_on = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::ATTRIB;
        let leads_on = leads_on | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        // One directory may have two paths: MASK_ADD joins what is wanted of it.
        let leads_on = leads_on | WatchFlags::ONLYDIR | WatchFlags::MASK_ADD;
        for (directory, is_last) in &self.directories {
            let written = if *is_last { WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE } else { WatchFlags::empty() };
            match inotify::add_watch(inotify, directory, leads_on | written) {
                Ok(watch) => {
                    watches.insert(watch);
                }
                // Gone since it was walked: the next walk does not find it.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                // It may be passed and not listed, as others' home directories: a rename in it is seen by the floor.
                Err(Errno::ACCESS) if !is_last => {}
                Err(error) if outcome.is_ok() => {
                    outcome = Err(Unwatchable { what: directory.display().to_string(), error: error.into() });
                }
                Err(_) => {}
            }
        }
        (watches, outcome)
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
    const REPLACEMENTS: [(&str, Change); 9] = [
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
        ("a directory higher up renamed, and another put in its place", |world, new| {
            let root = world.folder.path();
            fs::rename(root, root.with_extension("away")).unwrap();
            fs::create_dir_all(root.join("live")).unwrap();
            fs::remove_dir_all(root.with_extension("away")).unwrap();
            new.write(&root.join("live"), "x");
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
    const BREAKAGES: [(&str, Change); 10] = [
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
        ("renamed, higher up", |world, _| {
            let (live, old) = (world.folder.path().join("live"), world.folder.path().join("old"));
            fs::rename(&live, &old).unwrap();
        }),
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
                let old = world.folder.path().join("old");
                if old.is_dir() {
                    fs::rename(old, world.live.key.parent().unwrap()).unwrap();
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

    #[tokio::test]
    async fn a_watch_that_cannot_be_opened_is_tried_again() {
        let world = World::new(&Issued::for_names(&["x.example"]));
        let mut eyes = Eyes::new(|| Err(Errno::MFILE.into()));
        eyes.follow(&world.store.files());
        assert!(!eyes.sees() && eyes.inotify.is_none());
        eyes.open = open;
        eyes.follow(&world.store.files());
        assert!(eyes.sees() && !eyes.watches.is_empty());
    }

    #[tokio::test]
    async fn watches_follow_the_way_and_are_given_back() {
        let world = World::new(&Issued::for_names(&["x.example"]));
        let mut eyes = Eyes::new(open);
        eyes.follow(&world.store.files());
        let (before, names) = (eyes.watches.clone(), eyes.names.clone());
        eyes.follow(&world.store.files());
        assert_eq!((&eyes.watches, &eyes.names), (&before, &names));
        relink("../nowhere/x1.key", &world.live.key);
        relink("../nowhere/x1.pem", &world.live.cert);
        eyes.follow(&world.store.files());
        assert_eq!(eyes.watches.len(), before.len() - 1, "archive/ is not on the way any more");
        assert!(eyes.names.contains(OsStr::new("nowhere")) && !eyes.names.contains(OsStr::new("archive")));
    }

    /// Whether there was a change that matters. The kernel queues events before the change itself returns.
    fn heard(eyes: &Eyes) -> bool {
        let result = hear(eyes.inotify.as_ref().unwrap().as_fd(), &eyes.names);
        result.unwrap_or_else(|error| {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            false
        })
    }

    #[tokio::test]
    async fn what_happens_to_other_names_is_not_listened_to() {
        let world = World::new(&Issued::for_names(&["x.example"]));
        let mut eyes = Eyes::new(open);
        eyes.follow(&world.store.files());
        let live = world.folder.path().join("live");
        fs::write(live.join("README"), "written").unwrap();
        fs::write(world.folder.path().join("x.pem.txt"), "written").unwrap();
        fs::read(&world.live.cert).unwrap();
        fs::read_dir(&live).unwrap().for_each(drop);
        assert!(!heard(&eyes));
        fs::OpenOptions::new().append(true).open(&world.live.cert).unwrap().write_all(b"\n").unwrap();
        assert!(heard(&eyes) && !heard(&eyes));
        fs::rename(&live, world.folder.path().join("old")).unwrap();
        assert!(heard(&eyes));
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
        beside_watch(&world, || Err(Errno::MFILE.into()), async {
            second.write(&world.archive(), "x1");
            world.wait_for("polled", IN_TIME, |world| second.is(&world.served())).await;
        })
        .await;
    }

    #[test]
    fn the_directories_of_every_step_are_watched() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let of = |path: &str| {
            let (cert, key) = (root.join(path), root.join(path));
            let ways = Ways::to(&[CertificateFiles { cert, key }]);
            assert_eq!(ways.directories.get(Path::new("/")), Some(&false));
            let below = ways.directories.iter().filter_map(|(p, last)| Some((p.strip_prefix(&root).ok()?, *last)));
            below.map(|(p, last)| (p.display().to_string(), last)).collect::<Vec<_>>()
        };
        let on = |path: &str| (path.to_owned(), false);
        let last = |path: &str| (path.to_owned(), true);
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join("c/d")).unwrap();
        fs::write(root.join("c/d/file"), "").unwrap();
        symlink("../../link/file", root.join("a/b/x")).unwrap();
        symlink("c/d", root.join("link")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(of("a/b/x"), [on(""), on("a"), on("a/b"), on("c"), last("c/d")]);
        assert_eq!(of("c/d/file"), [on(""), on("c"), last("c/d")]);
        assert_eq!(of("c/absent/deeper/file"), [on(""), last("c")]);
        assert_eq!(of("loop"), [on("")]);
    }
}
