//! Landlock: the process gives up, for itself and all that it starts, to write anywhere but where the file says.
//!
//! Reading stays free: a reload may name new roots, certificates and files to include. So does running programs: what is
//! run is bound as this process is, and the next binary (USR2) may lie anywhere. Device nodes are never made.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
};

use crate::config::needs::{Need, Use};

/// Tells a process that takes over what the one before it is bound to, and it with it: nobody gets out of it again, and
/// the kernel takes no more than 16 of them upon each other.
pub const VARIABLE: &str = "DOORWARD_CONFINED";

/// The places where a process may write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places(Vec<PathBuf>);

impl Places {
    /// Where `needs` are written, and `others`, which are folders.
    pub fn of(needs: &[Need], others: impl IntoIterator<Item = PathBuf>) -> Places {
        let mut places = Places::default();
        for need in needs {
            places.0.extend(written(need));
        }
        places.0.extend(others.into_iter().map(|folder| real(&folder)));
        places.0.sort();
        places.0.dedup();
        places
    }

    /// Without those that are not there: nothing can be granted to them, and whoever needs one says that it is missing.
    pub fn there(mut self) -> Places {
        self.0.retain(|place| place.exists());
        self
    }

    /// What a process before this one has said to be bound to.
    pub fn inherited(value: Option<OsString>) -> Option<Places> {
        value.map(|value| Places(std::env::split_paths(&value).collect()))
    }

    /// For a process that takes over. `None` where a path has a colon: it binds itself once more.
    pub fn told(&self) -> Option<OsString> {
        std::env::join_paths(&self.0).ok()
    }

    /// The first of `needs` that lies elsewhere.
    pub fn lacking<'a>(&self, needs: &'a [Need]) -> Option<&'a Need> {
        let lies_here = |path: &PathBuf| self.0.iter().any(|place| path.starts_with(place));
        needs.iter().find(|need| !written(need).iter().all(lies_here))
    }

    /// Binds this thread, and those that it will start, for ever.
    ///
    /// # Errors
    /// The kernel has Landlock and refuses, or runs out of memory.
    pub fn bind(&self) -> Result<Bound, RulesetError> {
        let all = AccessFs::from_write(ABI::V5);
        let granted = all & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
        let files = AccessFs::from_file(ABI::V5) & granted;
        let mut ruleset = Ruleset::default().handle_access(all)?.create()?;
        for place in &self.0 {
            let Ok(found) = PathFd::new(place) else { continue };
            let access = if place.is_dir() { granted } else { files };
            ruleset = ruleset.add_rule(PathBeneath::new(found, access))?;
        }
        // What programs are given as their output.
        if let Ok(null) = PathFd::new("/dev/null") {
            ruleset = ruleset.add_rule(PathBeneath::new(null, AccessFs::WriteFile))?;
        }
        Ok(match ruleset.restrict_self()?.ruleset {
            RulesetStatus::NotEnforced => Bound::Not,
            RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Bound::Fully,
        })
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// As far as the kernel goes.
    Fully,
    /// The kernel has no Landlock, or somebody forbids it.
    Not,
}

/// Where a need writes: a folder, or a file that is no regular one (`/dev/stderr`, a pipe).
fn written(need: &Need) -> Vec<PathBuf> {
    let folder = |path: &Path| real(path.parent().unwrap_or(path));
    match need.how {
        Use::Read | Use::Enter => Vec::new(),
        Use::Keep => vec![real(&need.path)],
        Use::Append => match std::fs::canonicalize(&need.path) {
            Ok(found) if !found.is_file() => vec![found],
            // `/dev/stdout`: nobody makes it anew.
            Ok(found) if need.path.starts_with("/dev") => vec![found],
            // A link: its own folder is where a new file takes its name.
            Ok(found) => vec![folder(&need.path), folder(&found)],
            // A pipe without a name; the kernel binds nobody there.
            Err(_) if need.path.exists() => Vec::new(),
            Err(_) => vec![folder(&need.path)],
        },
    }
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    for there in path.ancestors() {
        if let Ok(found) = std::fs::canonicalize(there) {
            return missing.iter().rev().fold(found, |path, name| path.join(name));
        }
        missing.extend(there.file_name());
    }
    path.to_owned()
}

/// Makes a folder that only this process is to read, if there is none.
pub fn make_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(path: PathBuf, how: Use) -> Need {
        Need { site: None, what: "thing", path, how }
    }

    #[test]
    fn what_lies_elsewhere_is_found_also_behind_links() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["logs", "logs/old", "kept", "elsewhere"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::fs::write(path("elsewhere/file"), "").unwrap();
        std::os::unix::fs::symlink(path("elsewhere/file"), path("logs/link")).unwrap();
        std::os::unix::fs::symlink(path("logs"), path("same")).unwrap();
        let own = [need(path("logs/access.log"), Use::Append), need(path("kept/deep"), Use::Keep)];
        let places = Places::of(&own, [path("kept")]);
        assert_eq!(places.lacking(&own), None);
        for (name, how, fits) in [
            ("logs/other.log", Use::Append, true),
            ("logs/old/other.log", Use::Append, true),
            ("same/other.log", Use::Append, true),
            ("kept/new/deep", Use::Keep, true),
            ("elsewhere", Use::Read, true),
            ("elsewhere", Use::Enter, true),
            ("logs/link", Use::Append, false),
            ("elsewhere/new.log", Use::Append, false),
            ("kept/../elsewhere/new.log", Use::Append, false),
            ("elsewhere", Use::Keep, false),
            ("logsandmore", Use::Keep, false),
        ] {
            let asked = [need(path(name), how)];
            assert_eq!(places.lacking(&asked).is_none(), fits, "{name}");
        }
        assert!(places.lacking(&[need("/dev/null".into(), Use::Append)]).is_some());
    }

    #[test]
    fn what_a_process_is_bound_to_is_told_to_the_next() {
        let places = Places(vec!["/var/log/a b".into(), "/run/x".into()]);
        assert_eq!(Places::inherited(places.told()), Some(places));
        assert_eq!(Places(vec!["/a:b".into()]).told(), None);
        assert_eq!(Places::inherited(None), None);
    }

    #[test]
    fn a_bound_thread_writes_where_it_may_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("in")).unwrap();
        std::fs::create_dir(path("out")).unwrap();
        std::fs::write(path("out/there"), "old").unwrap();
        let places = Places::of(&[need(path("in/log"), Use::Append)], []);
        std::thread::scope(|scope| {
            let bound = scope.spawn(|| {
                rustix::thread::set_no_new_privs(true).unwrap();
                if places.bind().unwrap() == Bound::Not {
                    return;
                }
                std::fs::write(path("in/log"), "new").unwrap();
                std::fs::rename(path("in/log"), path("in/log.1")).unwrap();
                std::fs::create_dir(path("in/folder")).unwrap();
                std::fs::rename(path("in/log.1"), path("in/folder/log")).unwrap();
                std::os::unix::net::UnixListener::bind(path("in/socket")).unwrap();
                tempfile::tempfile_in(path("in")).unwrap();
                std::fs::write("/dev/null", "x").unwrap();
                assert_eq!(std::fs::read_to_string(path("out/there")).unwrap(), "old");
                let denied: [io::Result<()>; 6] = [
                    std::fs::write(path("out/there"), "new"),
                    std::fs::write(path("out/new"), "new"),
                    std::fs::remove_file(path("out/there")),
                    std::fs::create_dir(path("out/folder")),
                    std::fs::rename(path("in/folder/log"), path("out/log")),
                    std::os::unix::fs::symlink("/etc", path("out/link")),
                ];
                for outcome in denied {
                    let kind = outcome.unwrap_err().kind();
                    assert!(matches!(kind, io::ErrorKind::PermissionDenied | io::ErrorKind::CrossesDevices), "{kind}");
                }
                // Also what it starts.
                let touched = std::process::Command::new("touch").arg(path("out/x")).output().unwrap();
                assert!(!touched.status.success() && !path("out/x").exists());
            });
            bound.join().unwrap();
        });
        std::fs::write(path("out/there"), "the process is free").unwrap();
    }
}
