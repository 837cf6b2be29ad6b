//! Small files that one worker has read lately. Each request still asks the disk, by one `stat` of the whole name,
//! whether the file is the one that was read: what is replaced, changed, forbidden or swapped away is never served from
//! here. Only how the name was walked beneath its root is believed for a moment.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::base::cached_time;
use crate::upstream::files::root::{Content, Identity, InMemory, OpenFile};
use crate::upstream::files::validator::Validators;
use crate::upstream::files::{media, stream};

/// How long a walk beneath a root is believed, and what is in memory of files that were changed through a mapping,
/// which the file system need not tell at once.
const BELIEVED_FOR: Duration = Duration::from_secs(1);

/// A file whose last change is younger is not kept: another one could bear the same time where the file system's clock
/// is coarse (two seconds on FAT, the coarsest).
const SETTLED: Duration = Duration::from_secs(3);

/// Bytes of one worker. One more file, and all are forgotten: those that are asked for are soon back.
const MOST: usize = 1024 * 1024;

/// What a file costs beside its content and its names.
const OVERHEAD: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub struct Lately(RefCell<Kept>);

#[derive(Debug, Default)]
struct Kept {
    files: HashMap<Box<[u8]>, Read>,
    bytes: usize,
    /// Room for the key of a look.
    key: Vec<u8>,
}

#[derive(Debug)]
struct Read {
    /// Name and content.
    file: OpenFile,
    path: CString,
    since: Instant,
}

impl Lately {
    /// The file `name` beneath `root`, if it was read lately and is still the same.
    pub fn recall(&self, root: &Path, name: &[u8]) -> Option<OpenFile> {
        let mut kept = self.0.borrow_mut();
        let Kept { files, key, .. } = &mut *kept;
        write_key(key, root, name);
        let read = files.get(key.as_slice())?;
        let is_same = || rustix::fs::stat(&read.path).is_ok_and(|stat| Identity::of(&stat) == read.file.identity);
        if cached_time::since(read.since) < BELIEVED_FOR && is_same() {
            return Some(read.file.clone());
        }
        kept.forget();
        None
    }

    /// Keeps `file` of `root` for the next ones who ask, if it is small and in the page cache, and gives it back.
    pub fn keep(&self, root: &Path, mut file: OpenFile) -> OpenFile {
        let Content::Disk(fd) = &file.content else { return file };
        if !is_settled(&file) {
            return file;
        }
        let Some(bytes) = stream::read_small(fd, 0, file.size) else { return file };
        let Ok(path) = CString::new([root.as_os_str().as_bytes(), b"/", &file.name].concat()) else { return file };
        let validators = Validators::of(file.size, file.modified, None, SystemTime::now());
        let media = media::content_type(&file.name);
        file.content = Content::Memory(Arc::new(InMemory { bytes, media, validators }));
        let mut kept = self.0.borrow_mut();
        let mut key = Vec::new();
        write_key(&mut key, root, &file.name);
        let cost = cost(&file, &path);
        if kept.bytes + cost > MOST {
            *kept = Kept::default();
        }
        let read = Read { file: file.clone(), path, since: Instant::now() };
        let before = kept.files.insert(key.into(), read).map_or(0, |read| self::cost(&read.file, &read.path));
        kept.bytes = (kept.bytes + cost).saturating_sub(before);
        file
    }

    /// Forgets what would be opened anew anyway: nothing here holds memory, or a folder that was swapped away, for longer.
    pub fn sweep(&self) {
        let mut kept = self.0.borrow_mut();
        let Kept { files, bytes, .. } = &mut *kept;
        if files.is_empty() {
            return;
        }
        files.retain(|_, read| cached_time::since(read.since) < BELIEVED_FOR);
        *bytes = files.values().map(|read| cost(&read.file, &read.path)).sum();
    }
}

impl Kept {
    /// Forgets what `key` names.
    fn forget(&mut self) {
        if let Some(read) = self.files.remove(self.key.as_slice()) {
            self.bytes = self.bytes.saturating_sub(cost(&read.file, &read.path));
        }
    }
}

/// What lies beneath one root may lie outside another that leads to the same name: the root is a part of the key.
fn write_key(key: &mut Vec<u8>, root: &Path, name: &[u8]) {
    key.clear();
    key.extend_from_slice(root.as_os_str().as_bytes());
    key.push(0);
    key.extend_from_slice(name);
}

fn cost(file: &OpenFile, path: &CString) -> usize {
    usize::try_from(file.size).unwrap_or(MOST) + file.name.len() + 2 * path.as_bytes().len() + OVERHEAD
}

fn is_settled(file: &OpenFile) -> bool {
    let changed = u64::try_from(file.identity.changed.seconds).map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s));
    changed.is_ok_and(|changed| SystemTime::now().duration_since(changed).is_ok_and(|age| age >= SETTLED))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::upstream::files::root::Root;

    /// A site whose files were made long ago, as far as this machine's clock can tell.
    struct Site {
        dir: tempfile::TempDir,
        lately: Lately,
    }

    impl Site {
        fn new() -> Site {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("public")).unwrap();
            Site { dir, lately: Lately::default() }
        }

        fn root(&self) -> Root {
            Root::new(self.dir.path().join("public"))
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.dir.path().join("public").join(name), text).unwrap();
        }

        /// Opens the file and keeps it, whatever its age.
        fn keep(&self, name: &str) -> OpenFile {
            let mut file = self.root().open(name.as_bytes()).unwrap();
            let changed = file.identity.changed;
            file.identity.changed.seconds = 0;
            let file = self.lately.keep(self.root().path(), file);
            for read in self.lately.0.borrow_mut().files.values_mut() {
                if read.file.name == name.as_bytes() {
                    read.file.identity.changed = changed;
                }
            }
            file
        }

        /// Waits until the file system's clock has gone on since the file was changed.
        fn tick(&self, name: &str) {
            let changed = |path: &Path| Identity::of(&rustix::fs::stat(path).unwrap()).changed;
            let (before, probe) = (self.dir.path().join("public").join(name), self.dir.path().join("probe"));
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                fs::write(&probe, "").unwrap();
                if changed(&probe) > changed(&before) {
                    return;
                }
                assert!(Instant::now() < deadline, "the file system's clock stands still");
                std::thread::yield_now();
            }
        }

        fn recall(&self, name: &str) -> Option<String> {
            let file = self.lately.recall(self.root().path(), name.as_bytes())?;
            Some(String::from_utf8(file.read(1 << 20).unwrap()).unwrap())
        }
    }

    #[test]
    fn what_was_read_is_recalled_without_being_opened() {
        let site = Site::new();
        site.write("a.txt", "one");
        assert_eq!(site.recall("a.txt"), None);
        assert!(matches!(site.keep("a.txt").content, Content::Memory(_)));
        assert_eq!(site.recall("a.txt").as_deref(), Some("one"));
        assert_eq!(site.recall("b.txt"), None);
    }

    #[test]
    fn what_is_no_longer_the_same_is_not_recalled() {
        let public = |site: &Site, name: &str| site.dir.path().join("public").join(name);
        type Change = fn(&dyn Fn(&str) -> std::path::PathBuf);
        let changes: [(&str, Change); 5] = [
            ("written", |at| fs::write(at("a.txt"), "two").unwrap()),
            ("replaced", |at| {
                fs::write(at("b.txt"), "two").unwrap();
                fs::rename(at("b.txt"), at("a.txt")).unwrap();
            }),
            ("removed", |at| fs::remove_file(at("a.txt")).unwrap()),
            ("forbidden", |at| fs::set_permissions(at("a.txt"), fs::Permissions::from_mode(0o000)).unwrap()),
            ("another root", |at| {
                fs::rename(at(""), at("../old")).unwrap();
                fs::create_dir(at("")).unwrap();
                fs::write(at("a.txt"), "one").unwrap();
            }),
        ];
        for (what, change) in changes {
            let site = Site::new();
            site.write("a.txt", "one");
            site.keep("a.txt");
            assert!(site.recall("a.txt").is_some(), "{what}");
            site.tick("a.txt");
            change(&|name| public(&site, name));
            assert_eq!(site.recall("a.txt"), None, "{what}");
            assert_eq!(site.lately.0.borrow().bytes, 0, "{what}");
        }
    }

    #[test]
    fn what_was_not_read_for_a_second_is_forgotten() {
        let site = Site::new();
        for name in ["a.txt", "b.txt"] {
            site.write(name, name);
            site.keep(name);
        }
        site.lately.sweep();
        assert_eq!(site.recall("a.txt").as_deref(), Some("a.txt"));
        for read in site.lately.0.borrow_mut().files.values_mut() {
            read.since = Instant::now().checked_sub(BELIEVED_FOR).unwrap();
        }
        assert_eq!(site.recall("a.txt"), None, "it is opened anew");
        site.lately.sweep();
        let kept = site.lately.0.borrow();
        assert_eq!((kept.files.len(), kept.bytes), (0, 0));
    }

    #[test]
    fn a_file_that_was_just_changed_is_not_kept() {
        let site = Site::new();
        site.write("a.txt", "one");
        let file = site.root().open(b"a.txt").unwrap();
        let file = site.lately.keep(site.root().path(), file);
        assert!(matches!(file.content, Content::Disk(_)));
        assert_eq!(site.recall("a.txt"), None);
    }

    #[test]
    fn one_root_does_not_answer_for_another() {
        let site = Site::new();
        fs::create_dir(site.dir.path().join("public/sub")).unwrap();
        site.write("a.txt", "one");
        symlink("../a.txt", site.dir.path().join("public/sub/link")).unwrap();
        site.keep("sub/link");
        assert_eq!(site.recall("sub/link").as_deref(), Some("one"));
        let inner = Root::new(site.dir.path().join("public/sub"));
        assert!(site.lately.recall(inner.path(), b"link").is_none(), "it leads out of that root");
    }

    #[test]
    fn memory_is_bounded_and_large_files_are_not_kept() {
        let site = Site::new();
        site.write("large", &"x".repeat(16 * 1024 + 1));
        assert!(matches!(site.keep("large").content, Content::Disk(_)));
        site.write("empty", "");
        site.keep("empty");
        assert_eq!(site.recall("empty").as_deref(), Some(""));
        for number in 0..200 {
            let name = format!("{number}.txt");
            site.write(&name, &"x".repeat(16 * 1024));
            site.keep(&name);
            let kept = site.lately.0.borrow();
            let sum: usize = kept.files.values().map(|read| cost(&read.file, &read.path)).sum();
            assert!(kept.bytes == sum && sum <= MOST, "{sum}");
        }
        assert!(site.recall("199.txt").is_some() && site.recall("0.txt").is_none());
    }
}
