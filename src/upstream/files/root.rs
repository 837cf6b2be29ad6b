//! A document root, and the only way to open anything below one. The kernel resolves every name (`openat2` with
//! `RESOLVE_BENEATH`), so that neither `..` nor a symlink leads out of it, whatever happens on the disk meanwhile.

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::http::HeaderValue;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::base::cached_time;
use crate::base::fault::{Fault, Kind};
use crate::upstream::files::validator::{Modified, Validators};

/// How long the resolved name of a root is believed while the folder behind it stays the same one.
const RESOLVED_FOR: Duration = Duration::from_secs(1);

/// Names of scripts that are believed at a time.
const MOST_SCRIPTS: usize = 64;

/// Renames during the walk make the kernel give up with EAGAIN (openat2(2)); it wants to be asked again.
const WALKS: usize = 16;

/// A folder that files are served from, by its configured name. Shared by all workers.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    opened: ArcSwapOption<Folder>,
}

/// A root as it was at one moment. All that one request looks at comes from one `Folder`: a release that is swapped in
/// the middle cannot mix two versions.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    resolved: PathBuf,
    device: u64,
    inode: u64,
    since: Instant,
    /// Names that were seen to be regular files.
    scripts: Mutex<HashSet<Box<[u8]>>>,
}

/// A regular file, open for reading.
#[derive(Debug, Clone)]
pub struct OpenFile {
    pub(super) content: Content,
    pub(super) folder: Arc<Folder>,
    pub(super) identity: Identity,
    /// The name below the root, no leading slash.
    pub name: Vec<u8>,
    /// Bytes, when it was opened.
    pub size: u64,
    /// Its last change, when it was opened.
    pub modified: Modified,
}

/// Where the bytes of a file are.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Disk(Arc<OwnedFd>),
    Memory(Arc<InMemory>),
}

/// A small file, and what every answer with it says.
#[derive(Debug)]
pub(super) struct InMemory {
    pub(super) bytes: Bytes,
    pub(super) media: HeaderValue,
    pub(super) validators: Validators,
}

/// What tells one state of one file from all others: no write, rename or change of rights leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: i64,
    /// Of the content.
    pub(super) modified: Modified,
    /// Of the content, the name or the rights; nobody can set it.
    pub(super) changed: Modified,
}

impl Identity {
    pub(super) fn of(stat: &Stat) -> Identity {
        let (device, inode) = identity(stat);
        let time = |seconds, nanoseconds| Modified { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) };
        Identity {
            device,
            inode,
            size: stat.st_size,
            modified: time(stat.st_mtime, stat.st_mtime_nsec),
            changed: time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// Why there is nothing to open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file, or it lies outside the root, or its name can be nobody's (too long, too many links).
    #[error("no such file")]
    NotFound(#[source] io::Error),
    /// It exists and is a folder.
    #[error("it is a folder")]
    IsFolder,
    /// It exists and is a pipe, a socket or a device.
    #[error("it is neither a file nor a folder")]
    Special,
    /// Doorward's user may not read it.
    #[error("it may not be read")]
    Forbidden(#[source] io::Error),
    /// The machine failed: too many open files, a broken disk, a kernel before Linux 5.6.
    #[error("it cannot be opened")]
    Failed(#[source] io::Error),
}

impl OpenError {
    /// The fault that a request ends in when `what` (a path, for the log) could not be opened.
    pub fn into_fault(self, what: &[u8]) -> Fault {
        let kind = match &self {
            OpenError::NotFound(_) | OpenError::IsFolder | OpenError::Special => Kind::NotFound,
            OpenError::Forbidden(_) => Kind::Forbidden,
            OpenError::Failed(_) => Kind::Internal,
        };
        Fault::new(kind, format!("cannot open {}", what.escape_ascii())).because(self)
    }
}

impl Root {
    /// The root at `path`. It is opened on use: it may not exist yet, and may be a symlink that is swapped later.
    pub fn new(path: impl Into<PathBuf>) -> Root {
        Root { path: path.into(), opened: ArcSwapOption::empty() }
    }

    /// The configured name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root as it is now. Costs one `stat` as long as the name leads to the same folder; a swapped symlink is
    /// followed by the very next request.
    pub fn enter(&self) -> Result<Arc<Folder>, OpenError> {
        let stat = rustix::fs::stat(&self.path).map_err(sort)?;
        let (device, inode) = identity(&stat);
        if let Some(known) = &*self.opened.load()
            && (known.device, known.inode) == (device, inode)
            && cached_time::since(known.since) < RESOLVED_FOR
        {
            return Ok(Arc::clone(known));
        }
        let fresh = Arc::new(Folder::open(&self.path)?);
        self.opened.store(Some(Arc::clone(&fresh)));
        Ok(fresh)
    }

    /// Opens the file `name` below the root as it is now: [`Folder::open_file`].
    pub fn open(&self, name: &[u8]) -> Result<OpenFile, OpenError> {
        self.enter()?.open_file(name)
    }
}

impl Folder {
    fn open(path: &Path) -> Result<Folder, OpenError> {
        let since = Instant::now();
        // Resolved first and opened by that name: descriptor and name cannot be of two releases.
        let resolved = std::fs::canonicalize(path).map_err(|e| sort(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&resolved, flags, Mode::empty()).map_err(sort)?;
        let (device, inode) = identity(&rustix::fs::fstat(&fd).map_err(sort)?);
        Ok(Folder { fd, resolved, device, inode, since, scripts: Mutex::default() })
    }

    /// The absolute name of the root without symlinks, as `realpath` gives it.
    pub fn realpath(&self) -> &Path {
        &self.resolved
    }

    /// Opens the regular file `name` (slashes at its front do not count) for reading. Symlinks are followed as long as
    /// they stay beneath the root. Never waits for a pipe's other end.
    pub fn open_file(self: &Arc<Folder>, name: &[u8]) -> Result<OpenFile, OpenError> {
        let name = relative(name);
        let fd = self.walk(name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = rustix::fs::fstat(&fd).map_err(sort)?;
        check_regular(&stat)?;
        let identity = Identity::of(&stat);
        Ok(OpenFile {
            content: Content::Disk(Arc::new(fd)),
            folder: Arc::clone(self),
            identity,
            name: name.to_vec(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: identity.modified,
        })
    }

    /// Whether `name` is a regular file beneath the root. It need not be readable for us: PHP-FPM runs as another user.
    pub fn check_file(&self, name: &[u8]) -> Result<(), OpenError> {
        let fd = self.walk(relative(name), OFlags::PATH)?;
        check_regular(&rustix::fs::fstat(&fd).map_err(sort)?)
    }

    /// As [`Folder::check_file`], but what was seen once is believed for as long as this is the root, a second at most.
    /// Good enough for a script: PHP opens it itself, and finds that it is gone.
    pub fn check_script(&self, name: &[u8]) -> Result<(), OpenError> {
        let scripts = || self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        if scripts().contains(name) {
            return Ok(());
        }
        self.check_file(name)?;
        let mut scripts = scripts();
        if scripts.len() < MOST_SCRIPTS {
            scripts.insert(name.into());
        }
        Ok(())
    }

    fn walk(&self, name: &[u8], flags: OFlags) -> Result<OwnedFd, OpenError> {
        match self.beneath(name, flags) {
            // It left the root, or it is an absolute link that leads back into it: Laravel and Composer write those.
            Err(Errno::XDEV) => {
                let inside = self.resolve_inside(name).ok_or_else(|| sort(Errno::XDEV))?;
                self.beneath(&inside, flags).map_err(sort)
            }
            other => other.map_err(sort),
        }
    }

    fn beneath(&self, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mut walks = 0;
        loop {
            match rustix::fs::openat2(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if walks < WALKS => walks += 1,
                other => return other,
            }
        }
    }

    /// What `name` resolves to, as a name below this root, if it is below it. Only a suggestion: whatever it says is
    /// walked beneath the root again.
    fn resolve_inside(&self, name: &[u8]) -> Option<Vec<u8>> {
        let full = self.resolved.join(std::ffi::OsStr::from_bytes(name));
        let target = std::fs::canonicalize(full).ok()?;
        let inside = target.strip_prefix(&self.resolved).ok()?;
        Some(inside.as_os_str().to_owned().into_vec())
    }
}

impl OpenFile {
    /// Opens the file whose name is this one's with `suffix` behind it, from the same root at the same moment.
    pub fn sibling(&self, suffix: &str) -> Result<OpenFile, OpenError> {
        self.folder.open_file(&[self.name.as_slice(), suffix.as_bytes()].concat())
    }

    /// All of it, for what is kept in memory. Waits for the disk. Fails where it is longer than `most` bytes.
    pub fn read(&self, most: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        match &self.content {
            Content::Disk(fd) => std::fs::File::from(fd.try_clone()?).take(most + 1).read_to_end(&mut content)?,
            Content::Memory(file) => file.bytes.as_ref().take(most + 1).read_to_end(&mut content)?,
        };
        if content.len() as u64 > most {
            return Err(io::Error::other(format!("it is larger than {most} bytes")));
        }
        Ok(content)
    }
}

/// Whether a path exists and may be entered as a root, for checks before the start.
pub fn check_root(path: &Path) -> Result<(), OpenError> {
    Folder::open(path).and_then(|folder| folder.beneath(b".", OFlags::PATH).map(drop).map_err(sort))
}

fn relative(name: &[u8]) -> &[u8] {
    let start = name.iter().position(|b| *b != b'/').unwrap_or(name.len());
    match name.get(start..) {
        None | Some([]) => b".",
        Some(rest) => rest,
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn check_regular(stat: &Stat) -> Result<(), OpenError> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(OpenError::IsFolder),
        _ => Err(OpenError::Special),
    }
}

fn sort(errno: Errno) -> OpenError {
    let cause = io::Error::from(errno);
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP | Errno::XDEV | Errno::INVAL => {
            OpenError::NotFound(cause)
        }
        // A socket, or a device without a driver.
        Errno::NXIO | Errno::NODEV => OpenError::Special,
        Errno::ACCESS | Errno::PERM => OpenError::Forbidden(cause),
        _ => OpenError::Failed(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn folder() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let public = dir.path().join("public");
        fs::create_dir(&public).unwrap();
        fs::write(public.join("a.txt"), "inside").unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        (dir, Root::new(public))
    }

    #[test]
    fn a_file_is_opened_with_its_size_and_time() {
        let (_dir, root) = folder();
        let file = root.open(b"/a.txt").unwrap();
        assert_eq!((file.size, file.name.as_slice()), (6, &b"a.txt"[..]));
        assert!(file.modified.seconds > 0);
        assert!(matches!(root.open(b"/b.txt"), Err(OpenError::NotFound(_))));
        assert!(matches!(root.open(b"/a.txt/"), Err(OpenError::NotFound(_))));
        assert!(matches!(root.open(b"/a.txt/b"), Err(OpenError::NotFound(_))));
        assert!(matches!(root.open(b"/"), Err(OpenError::IsFolder)));
    }

    #[test]
    fn a_script_is_believed_to_be_there_until_the_root_is_looked_at_again() {
        let (dir, root) = folder();
        let public = dir.path().join("public");
        let folder = root.enter().unwrap();
        assert!(
            matches!(folder.check_script(b"/b.php"), Err(OpenError::NotFound(_))),
            "what is not there is not believed"
        );
        fs::write(public.join("b.php"), "").unwrap();
        folder.check_script(b"/b.php").unwrap();
        fs::remove_file(public.join("b.php")).unwrap();
        folder.check_script(b"/b.php").unwrap();
        assert!(matches!(folder.check_file(b"/b.php"), Err(OpenError::NotFound(_))));
        fs::rename(&public, dir.path().join("old")).unwrap();
        fs::create_dir(&public).unwrap();
        assert!(matches!(root.enter().unwrap().check_script(b"/b.php"), Err(OpenError::NotFound(_))));
    }

    #[test]
    fn links_that_stay_inside_are_followed_and_those_that_leave_are_not() {
        let (dir, root) = folder();
        let public = dir.path().join("public");
        fs::create_dir(public.join("sub")).unwrap();
        symlink("a.txt", public.join("in")).unwrap();
        symlink("../a.txt", public.join("sub/up")).unwrap();
        symlink(public.join("a.txt"), public.join("absolute")).unwrap();
        symlink("../secret", public.join("out")).unwrap();
        symlink(dir.path().join("secret"), public.join("absolute-out")).unwrap();
        symlink("/etc", public.join("etc")).unwrap();
        symlink("..", public.join("parent")).unwrap();
        symlink("loop", public.join("loop")).unwrap();
        symlink("/proc/self/root", public.join("magic")).unwrap();
        for name in ["in", "sub/up", "absolute"] {
            assert_eq!(root.open(name.as_bytes()).unwrap().size, 6, "{name}");
        }
        for name in [
            "out",
            "absolute-out",
            "etc/passwd",
            "parent/secret",
            "loop",
            "magic/etc/passwd",
            "../secret",
            "/../secret",
        ] {
            assert!(matches!(root.open(name.as_bytes()), Err(OpenError::NotFound(_))), "{name}");
            assert!(root.enter().unwrap().check_file(name.as_bytes()).is_err(), "{name}");
        }
    }

    #[test]
    fn pipes_sockets_and_devices_are_refused_without_waiting() {
        let (dir, root) = folder();
        let public = dir.path().join("public");
        rustix::fs::mknodat(CWD, public.join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(public.join("socket")).unwrap();
        for name in ["pipe", "socket"] {
            assert!(matches!(root.open(name.as_bytes()), Err(OpenError::Special)), "{name}");
            assert!(matches!(root.enter().unwrap().check_file(name.as_bytes()), Err(OpenError::Special)), "{name}");
        }
    }

    #[test]
    fn names_that_can_be_nobody_s_are_not_found() {
        let (_dir, root) = folder();
        assert!(matches!(root.open(&[b'a'; 300]), Err(OpenError::NotFound(_))));
        assert!(matches!(root.open("a/".repeat(4000).as_bytes()), Err(OpenError::NotFound(_))));
        assert!(matches!(root.open(b"a\0b"), Err(OpenError::NotFound(_))));
    }

    #[test]
    fn errors_keep_their_meaning() {
        let kind = |errno| sort(errno).into_fault(b"/x").kind;
        assert_eq!(kind(Errno::ACCESS), Kind::Forbidden);
        assert_eq!(kind(Errno::LOOP), Kind::NotFound);
        assert_eq!(kind(Errno::NAMETOOLONG), Kind::NotFound);
        assert_eq!(kind(Errno::MFILE), Kind::Internal);
        assert_eq!(kind(Errno::IO), Kind::Internal);
        let fault = sort(Errno::ACCESS).into_fault(b"/a\xff");
        assert!(fault.to_string().starts_with("cannot open /a\\xff: it may not be read: "), "{fault}");
    }

    #[test]
    fn what_may_not_be_read_is_forbidden() {
        let (dir, root) = folder();
        let path = dir.path().join("public/a.txt");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
        let may_read_anything = fs::File::open(&path).is_ok();
        match root.open(b"a.txt") {
            Err(OpenError::Forbidden(_)) => assert!(!may_read_anything),
            Ok(_) => assert!(may_read_anything),
            Err(other) => panic!("{other}"),
        }
        // A script is run by another user: that it exists is enough.
        root.enter().unwrap().check_file(b"a.txt").unwrap();
    }

    #[test]
    fn a_swapped_release_is_followed_at_once_and_never_mixed() {
        let dir = tempfile::tempdir().unwrap();
        for release in ["1", "2"] {
            fs::create_dir_all(dir.path().join(release).join("public")).unwrap();
            fs::write(dir.path().join(release).join("public/v"), release.repeat(release.parse().unwrap())).unwrap();
        }
        symlink("1", dir.path().join("current")).unwrap();
        let root = Root::new(dir.path().join("current/public"));
        let before = root.enter().unwrap();
        assert_eq!(root.open(b"v").unwrap().size, 1);
        assert!(Arc::ptr_eq(&before, &root.enter().unwrap()), "an unchanged root is not opened again");
        symlink("2", dir.path().join("next")).unwrap();
        fs::rename(dir.path().join("next"), dir.path().join("current")).unwrap();
        assert_eq!(root.open(b"v").unwrap().size, 2);
        let real = dir.path().canonicalize().unwrap();
        assert_eq!(root.enter().unwrap().realpath(), real.join("2/public"));
        assert_eq!(before.open_file(b"v").unwrap().size, 1, "a request that has begun stays in its release");
        assert_eq!(before.realpath(), real.join("1/public"));
    }

    #[test]
    fn a_root_may_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path().join("later"));
        assert!(matches!(root.open(b"a"), Err(OpenError::NotFound(_))));
        assert!(check_root(root.path()).is_err());
        fs::create_dir(root.path()).unwrap();
        fs::write(root.path().join("a"), "1").unwrap();
        assert_eq!(root.open(b"a").unwrap().size, 1);
        assert!(check_root(root.path()).is_ok());
        fs::remove_dir_all(root.path()).unwrap();
        assert!(matches!(root.open(b"a"), Err(OpenError::NotFound(_))));
    }
}
