//! The account that a process started as root becomes (`server.user`): who it is, how to become it, and what it may
//! not do that the file needs.

use std::ffi::CString;
use std::io;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User as Entry, getgrouplist, setgroups, setresgid, setresuid};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use crate::config::User;
use crate::config::needs::{Need, Use};

/// Why the account cannot be had. Printed as it is.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// There is no such account or group.
    #[error(
        "server.user = \"{user}\": this machine has no {kind} {name:?}; make it ({} {name}), or name another",
        if *.kind == "group" { "groupadd --system" } else { "useradd --system --no-create-home" }
    )]
    Unknown {
        /// As the file has it.
        user: User,
        /// `account` or `group`.
        kind: &'static str,
        /// Which.
        name: String,
    },
    /// Only root becomes somebody else.
    #[error(
        "server.user = \"{user}\": only root can become another account, and this process is of {own}; start it as \
         root, or as {} itself without `user`", user.name
    )]
    NotRoot {
        /// As the file has it.
        user: User,
        /// Who this process is.
        own: String,
    },
    /// The system refuses.
    #[error("server.user = \"{user}\": {what}: {source}")]
    System {
        /// As the file has it.
        user: User,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// An account of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    user: User,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Account {
    /// Looks `user` up.
    ///
    /// # Errors
    /// The account or its group does not exist, or the system cannot tell.
    pub fn find(user: &User) -> Result<Account, AccountError> {
        let unknown = |kind, name: &str| AccountError::Unknown { user: user.clone(), kind, name: name.to_owned() };
        let system =
            |what| move |errno: nix::Error| AccountError::System { user: user.clone(), what, source: errno.into() };
        let entry = Entry::from_name(&user.name).map_err(system("looking it up"))?;
        let entry = entry.ok_or_else(|| unknown("account", &user.name))?;
        let gid = match &user.group {
            Some(group) => {
                let found = Group::from_name(group).map_err(system("looking its group up"))?;
                found.ok_or_else(|| unknown("group", group))?.gid
            }
            None => entry.gid,
        };
        let name = CString::new(user.name.as_str()).map_err(|_| unknown("account", &user.name))?;
        let groups = getgrouplist(&name, gid).map_err(system("looking its groups up"))?;
        Ok(Account { user: user.clone(), uid: entry.uid, gid, groups })
    }

    /// Whether this process has to become it: it is root, and the account is not. `false` where it is the account.
    ///
    /// # Errors
    /// It is another, and not root.
    pub fn is_ahead(&self) -> Result<bool, AccountError> {
        let own = rustix::process::geteuid().as_raw();
        if own == self.uid.as_raw() {
            return Ok(false);
        }
        if own == 0 {
            return Ok(true);
        }
        let name = Entry::from_uid(Uid::from_raw(own)).ok().flatten().map_or_else(|| own.to_string(), |it| it.name);
        Err(AccountError::NotRoot { user: self.user.clone(), own: name })
    }

    /// As the file has it.
    pub fn user(&self) -> &User {
        &self.user
    }

    /// Its number, and that of its group.
    pub fn ids(&self) -> (u32, u32) {
        (self.uid.as_raw(), self.gid.as_raw())
    }

    /// The whole process becomes it, for ever: see also [`forgo_all_but_low_ports`]. Of root's rights the calling thread,
    /// and those that it will start, keep one: ports below 1024, which a reload may name. Other threads keep none.
    ///
    /// # Errors
    /// The system refuses: the process may be half of both, and has to end.
    pub fn assume(&self) -> Result<(), AccountError> {
        let failed = |what, source| AccountError::System { user: self.user.clone(), what, source };
        let io = |what| move |errno: rustix::io::Errno| failed(what, errno.into());
        let nix = |what| move |errno: nix::Error| failed(what, errno.into());
        let held = thread::capabilities(None).map_err(io("reading capabilities"))?.permitted;
        let kept = held & CapabilitySet::NET_BIND_SERVICE;
        thread::set_keep_capabilities(true).map_err(io("keeping a capability"))?;
        // glibc makes these calls for every thread of the process (nptl(7)).
        setgroups(&self.groups).map_err(nix("setgroups"))?;
        setresgid(self.gid, self.gid, self.gid).map_err(nix("setresgid"))?;
        setresuid(self.uid, self.uid, self.uid).map_err(nix("setresuid"))?;
        thread::set_keep_capabilities(false).map_err(io("keeping no more capabilities"))?;
        keep(kept).map_err(|error| failed("giving capabilities up", error))?;
        // The change of the account has set it anew.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io("PR_SET_DUMPABLE"))
    }

    /// Runs `task` in a thread of its own that is this account, while the process stays what it is.
    ///
    /// # Errors
    /// The system refuses to start the thread, or to change it.
    pub fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> Result<T, AccountError> {
        let failed = |source| AccountError::System { user: self.user.clone(), what: "looking with its rights", source };
        let outcome = std::thread::scope(|scope| {
            let become_it = || -> io::Result<T> {
                let ids = |gid: &Gid| thread::Gid::from_raw(gid.as_raw());
                let groups: Vec<thread::Gid> = self.groups.iter().map(ids).collect();
                let (uid, gid) = (thread::Uid::from_raw(self.uid.as_raw()), ids(&self.gid));
                let kept = thread::capabilities(None)?.permitted & CapabilitySet::NET_BIND_SERVICE;
                thread::set_keep_capabilities(true)?;
                thread::set_thread_groups(&groups)?;
                thread::set_thread_res_gid(gid, gid, gid)?;
                thread::set_thread_res_uid(uid, uid, uid)?;
                keep(kept)?;
                Ok(task())
            };
            std::thread::Builder::new()
                .name("account".to_owned())
                .spawn_scoped(scope, become_it)?
                .join()
                .map_err(|_| io::Error::other("the thread panicked"))?
        });
        outcome.map_err(failed)
    }
}

/// What a program that is started later could get of root's rights is given up. Without CAP_SETPCAP that is not possible,
/// and is no more than no_new_privs forbids already.
pub fn forgo_all_but_low_ports() {
    for capability in (0..63).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        if capability != CapabilitySet::NET_BIND_SERVICE
            && thread::remove_capability_from_bounding_set(capability).is_err()
        {
            break;
        }
    }
}

/// Nothing but `kept`, through an exec as well.
fn keep(kept: CapabilitySet) -> io::Result<()> {
    thread::set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })?;
    if !kept.is_empty() {
        thread::configure_capability_in_ambient_set(kept, true)?;
    }
    Ok(())
}

/// What of `needs` this thread may not do, and why it matters; one line each. What is not there at all is not told: it
/// may come.
pub fn denied(needs: &[Need], account: &str) -> Vec<String> {
    let denied = needs.iter().filter(|need| !may(&need.path, need.how));
    denied.map(|need| format!("{need} {}", mend(need, account))).collect()
}

fn mend(need: &Need, account: &str) -> String {
    let path = need.path.display();
    match need.how {
        Use::Read if need.what == "key" => format!(
            "cannot be read by {account}: a renewed one will not be taken over; let a group read it (server.user = \
             \"{account}:tls-keys\", chgrp tls-keys and chmod g+r, and g+x for the folders above)"
        ),
        Use::Read => format!("cannot be read by {account}: its changes will not be seen; let {account} read it"),
        Use::Enter => format!("cannot be read by {account}: its files will not be found; let {account} read it"),
        Use::Append => format!(
            "cannot be written by {account}: it is not logged there; chown {account} {path}, and its folder, so that it \
             can be opened again after it was moved"
        ),
        Use::Keep => format!("cannot be written by {account}: nothing can be kept there; chown -R {account} {path}"),
    }
}

fn may(path: &Path, how: Use) -> bool {
    let allowed = |path: &Path, access| {
        let outcome = accessat(CWD, path, access, AtFlags::EACCESS);
        !matches!(outcome, Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM | rustix::io::Errno::ROFS))
    };
    match how {
        Use::Read => allowed(path, Access::READ_OK),
        Use::Enter => allowed(path, Access::READ_OK | Access::EXEC_OK),
        Use::Keep => allowed(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK),
        Use::Append if path.exists() => allowed(path, Access::WRITE_OK),
        Use::Append => path.parent().is_none_or(|folder| allowed(folder, Access::WRITE_OK | Access::EXEC_OK)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, group: Option<&str>) -> User {
        User { name: name.to_owned(), group: group.map(str::to_owned) }
    }

    #[test]
    fn an_account_is_found_with_its_groups_or_told_with_a_mend() {
        let nobody = Account::find(&user("nobody", None)).unwrap();
        assert_ne!(nobody.ids().0, 0);
        assert_eq!(nobody.groups, [nobody.gid]);
        let other = Account::find(&user("nobody", Some("daemon"))).unwrap();
        assert_eq!((other.uid, other.groups.as_slice()), (nobody.uid, [other.gid].as_slice()));
        assert_ne!(other.gid, nobody.gid);
        for (name, group, told) in [
            ("no-such-one", None, "no account \"no-such-one\""),
            ("nobody", Some("none-such"), "no group \"none-such\""),
        ] {
            let error = Account::find(&user(name, group)).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn only_root_becomes_another() {
        let (root, nobody) =
            (Account::find(&user("root", None)).unwrap(), Account::find(&user("nobody", None)).unwrap());
        if rustix::process::geteuid().is_root() {
            assert!(!root.is_ahead().unwrap() && nobody.is_ahead().unwrap());
        } else {
            assert!(matches!(root.is_ahead(), Err(AccountError::NotRoot { .. })));
        }
    }

    #[test]
    fn what_the_account_may_not_do_is_told_with_a_mend() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for (name, mode) in [("closed", 0o600), ("open", 0o644), ("log", 0o600)] {
            std::fs::write(path(name), "").unwrap();
            std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let need = |what, name: &str, how| Need { site: None, what, path: path(name), how };
        let needs = [
            need("key", "closed", Use::Read),
            need("certificate", "open", Use::Read),
            need("log file", "log", Use::Append),
            need("log file", "new", Use::Append),
            need("folder", "", Use::Enter),
            need("storage", "", Use::Keep),
            need("key", "missing", Use::Read),
        ];
        let nobody = Account::find(&user("nobody", None)).unwrap();
        let told = nobody.run(|| denied(&needs, "nobody")).unwrap();
        let start: Vec<String> = told
            .iter()
            .map(|line| line.split(" cannot be ").next().unwrap().replace(folder.path().to_str().unwrap(), ""))
            .collect();
        assert_eq!(start, ["the key /closed", "the log file /log", "the log file /new", "the storage /"]);
        assert!(told[0].contains("chgrp"), "{told:?}");
        assert!(rustix::process::geteuid().is_root(), "the process has changed");
        assert_eq!(denied(&needs, "root"), [""; 0]);
    }
}
