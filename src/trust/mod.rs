//! Layer 6: `doorward trust` and `untrust`: having this machine believe the local authority, and taking that back.
//!
//! ```text
//! find ─▶ Machine ─▶ plan ─▶ Plan ─▶ shown, asked ─▶ Step by Step ─▶ found again
//! (I/O)   (data)    (pure)  (data)                   (commands)
//! ```
//!
//! Nothing else in this house ever writes to a store of trusted certificates.

mod find;
mod machine;
mod plan;
mod step;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::tls::local_ca::{self, CaCertificate, LocalCaError};
use crate::tls::pair::{PairError, with_causes};

use machine::Machine;
use plan::{Plan, Wish, plan};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Trust the authority of the file.
    Trust,
    /// Trust it no more.
    Untrust {
        /// Nor any other that bears our name, whatever file it is of.
        all: bool,
    },
}

/// Shows what it would take, asks unless `yes`, and does it. The authority is the one beside `file`. Where `file` is
/// only the default (`is_default`), it may also be in the current folder, where `doorward demo` puts it.
///
/// # Errors
/// See [`TrustError`]. What could be done is done all the same.
pub fn run(file: &Path, is_default: bool, request: Request, yes: bool, out: &mut dyn Write) -> Result<(), TrustError> {
    let current = std::env::current_dir().map_err(TrustError::NoFolder)?;
    let folder = folder_of(file, is_default, &current)?;
    let file = folder.join(local_ca::CA_FILE);
    let current = CaCertificate::current(&folder)?;
    let former = CaCertificate::former(&folder)?;
    let wish = match request {
        Request::Trust => {
            let current = current.as_ref().ok_or_else(|| TrustError::NoAuthority { folder: folder.clone() })?;
            check(current, &folder)?;
            Wish { add: Some((&file, current)), remove: former, remove_all: false }
        }
        Request::Untrust { all } => {
            let remove = current.iter().cloned().chain(former).collect();
            Wish { add: None, remove, remove_all: all }
        }
    };
    let machine = look();
    let plan = plan(&machine, &wish);
    introduce(&plan, &wish, &folder, &machine, out)?;
    if let Request::Untrust { all: false } = request
        && wish.remove.is_empty()
        && !plan.others.is_empty()
    {
        return Err(TrustError::Gone { folder });
    }
    if wish.add.is_some() && plan == Plan::default() {
        return Err(TrustError::NoStore);
    }
    if !plan.changes.is_empty() {
        if !yes && !asked(out)? {
            return Err(TrustError::Declined);
        }
        carry_out(&plan, &wish, out)?;
    }
    if plan.undone.is_empty() { Ok(()) } else { Err(TrustError::Undone { what: plan.undone }) }
}

/// Why a machine does not trust an authority, or still does. Printed as it is.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The configuration file is not there.
    #[error("there is no file {}: the local authority would be in {} beside it", file.display(), local_ca::FOLDER)]
    NoFile {
        /// The file.
        file: PathBuf,
    },
    /// The current folder is not known.
    #[error("the current folder is not known: {0}")]
    NoFolder(io::Error),
    /// There is no authority yet.
    #[error(
        "there is no local authority in {} yet. `doorward run` makes it when a site has tls = \"self-signed\", and \
         `doorward demo` makes one in the folder that it is run in",
        folder.display()
    )]
    NoAuthority {
        /// Where it would be.
        folder: PathBuf,
    },
    /// The authority cannot be read.
    #[error("{}", with_causes(.0))]
    Authority(#[from] LocalCaError),
    /// The authority is out of its time.
    #[error("the local authority in {} cannot be trusted: {source}. `doorward run` replaces it", folder.display())]
    OutOfTime {
        /// Where it is.
        folder: PathBuf,
        /// Since when.
        source: PairError,
    },
    /// The authority is one from before there were constraints, or not one of ours.
    #[error(
        "the local authority in {} could vouch for any name in the world, so it is not to be trusted. \
         `doorward run` replaces it",
        folder.display()
    )]
    Unconstrained {
        /// Where it is.
        folder: PathBuf,
    },
    /// The authority has gone, and others are trusted.
    #[error(
        "there is no local authority in {} that could be taken back. `doorward untrust --all` takes back the others",
        folder.display()
    )]
    Gone {
        /// Where it was.
        folder: PathBuf,
    },
    /// There is nothing on this machine to put it into.
    #[error(
        "this machine has no store of trusted certificates that is known (Debian, Fedora, Arch and openSUSE keep one, \
         in the package ca-certificates). Tell single programs instead, as with curl --cacert"
    )]
    NoStore,
    /// There is nobody to ask.
    #[error("nothing was changed: there is no terminal to ask at. --yes answers")]
    NoTerminal,
    /// The answer was no.
    #[error("nothing was changed")]
    Declined,
    /// Not everything was done.
    #[error("not everything is done:\n{}", bullets(what))]
    Undone {
        /// What is left.
        what: Vec<String>,
    },
    /// The terminal.
    #[error("cannot talk to the terminal: {0}")]
    Terminal(#[from] io::Error),
}

/// Where the authority of `file` is, or would be. `current` is the current folder.
fn folder_of(file: &Path, is_default: bool, current: &Path) -> Result<PathBuf, TrustError> {
    let whole = current.join(file);
    let beside = whole.parent().unwrap_or(Path::new("/")).join(local_ca::FOLDER);
    let here = current.join(local_ca::FOLDER);
    if !is_default {
        return if whole.exists() { Ok(beside) } else { Err(TrustError::NoFile { file: file.to_owned() }) };
    }
    // What cannot be looked into is there, and is complained of later.
    let has_one = |folder: &Path| folder.join(local_ca::CA_FILE).try_exists().unwrap_or(true);
    let is_here = has_one(&here) || !whole.exists();
    Ok(if has_one(&beside) || !is_here { beside } else { here })
}

/// Whether the authority may be trusted at all. A folder with one may come from anywhere.
fn check(authority: &CaCertificate, folder: &Path) -> Result<(), TrustError> {
    let folder = || folder.to_owned();
    authority.validity(SystemTime::now()).map_err(|source| TrustError::OutOfTime { folder: folder(), source })?;
    match (&authority.constraints, &authority.label) {
        (Some(_), Some(_)) => Ok(()),
        _ => Err(TrustError::Unconstrained { folder: folder() }),
    }
}

fn look() -> Machine {
    find::find(&|name| std::env::var_os(name))
}

/// Says who it is about and what it takes.
fn introduce(plan: &Plan, wish: &Wish<'_>, folder: &Path, machine: &Machine, out: &mut dyn Write) -> io::Result<()> {
    if let Some((_, ca)) = wish.add {
        writeln!(out, "The local authority in {}:", folder.display())?;
        writeln!(out, "  name         {}", local_ca::name(ca.label.as_deref().unwrap_or_default()))?;
        writeln!(out, "  fingerprint  {}", ca.fingerprint())?;
        if let Some(constraints) = &ca.constraints {
            writeln!(out, "  vouches for  {constraints}")?;
        }
        writeln!(out)?;
    }
    if let (Some(user), false) = (&machine.sudo_user, plan.changes.is_empty()) {
        writeln!(
            out,
            "This runs as root: the browsers of {user} are not looked at. Run it without sudo to have them changed too;\n\
             it asks sudo where it has to.\n"
        )?;
    }
    match (plan.changes.is_empty(), wish.add.is_some()) {
        (false, true) => writeln!(out, "To have this machine trust it:\n\n{plan}")?,
        (false, false) => writeln!(out, "To have this machine trust it no more:\n\n{plan}")?,
        (true, true) if !plan.settled.is_empty() => {
            writeln!(out, "It is trusted already, in\n{}", bullets(&plan.settled))?;
        }
        (true, true) => {}
        (true, false) => writeln!(out, "There is nothing to take back.")?,
    }
    if wish.add.is_none() && !plan.others.is_empty() {
        writeln!(out, "Trusted under Doorward's name, by other folders:\n{}", bullets(&plan.others))?;
    }
    Ok(())
}

fn asked(out: &mut dyn Write) -> Result<bool, TrustError> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(TrustError::NoTerminal);
    }
    write!(out, "Go on? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Takes every step, store by store, and looks whether it helped. A store that refuses does not keep others.
fn carry_out(plan: &Plan, wish: &Wish<'_>, out: &mut dyn Write) -> Result<(), TrustError> {
    let mut failed: Vec<(String, String)> = Vec::new();
    for change in &plan.changes {
        if let Err(error) = change.steps.iter().try_for_each(step::Step::run) {
            failed.push((change.store.clone(), with_causes(&error)));
        }
    }
    for change in self::plan(&look(), wish).changes {
        if !failed.iter().any(|(store, _)| *store == change.store) {
            let why = "every command went well, and yet it is as before".to_owned();
            failed.push((change.store, why));
        }
    }
    if !failed.is_empty() {
        let what = failed.into_iter().map(|(store, why)| format!("{store}: {why}"));
        return Err(TrustError::Undone { what: what.chain(plan.undone.iter().cloned()).collect() });
    }
    writeln!(out, "Done.")?;
    if plan.changes.iter().any(|change| change.is_browser) {
        writeln!(out, "Browsers that are open notice when they are started again.")?;
    }
    Ok(())
}

fn bullets(lines: &[String]) -> String {
    let lines: Vec<String> = lines.iter().map(|line| format!("  - {line}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_authority_is_beside_the_file_or_in_the_current_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (etc, project) = (folder.path().join("etc"), folder.path().join("project"));
        let at = |folder: &Path| folder.join(local_ca::FOLDER);
        for folder in [&etc, &project] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        let default = etc.join("proxy.toml");
        let by_default = || folder_of(&default, true, &project).unwrap();
        assert_eq!(by_default(), at(&project), "nothing is anywhere");
        fs::write(&default, "").unwrap();
        assert_eq!(by_default(), at(&etc), "there is a file, and no authority yet");
        fs::write(at(&project).join(local_ca::CA_FILE), "").unwrap();
        assert_eq!(by_default(), at(&project), "the demo's, on a machine that also has a server");
        fs::write(at(&etc).join(local_ca::CA_FILE), "").unwrap();
        assert_eq!(by_default(), at(&etc));

        let given = |file: &str| folder_of(Path::new(file), false, &project);
        assert!(matches!(given("proxy.toml"), Err(TrustError::NoFile { .. })));
        fs::write(project.join("proxy.toml"), "").unwrap();
        assert_eq!(given("proxy.toml").unwrap(), at(&project));
        assert_eq!(given("../etc/proxy.toml").unwrap(), project.join("../etc/certs-dev"));
    }

    #[test]
    fn only_an_authority_that_is_bound_and_in_its_time_is_trusted() {
        let folder = tempfile::tempdir().unwrap();
        local_ca::issue(folder.path(), "app", &[], &[]).unwrap();
        let good = CaCertificate::current(folder.path()).unwrap().unwrap();
        let check = |authority: CaCertificate| check(&authority, folder.path());
        assert!(check(good.clone()).is_ok());
        let unbound = CaCertificate { constraints: None, ..good.clone() };
        assert!(matches!(check(unbound), Err(TrustError::Unconstrained { .. })));
        let stranger = CaCertificate { label: None, ..good.clone() };
        assert!(matches!(check(stranger), Err(TrustError::Unconstrained { .. })));
        let over = CaCertificate { not_after: SystemTime::UNIX_EPOCH, ..good };
        assert!(check(over).unwrap_err().to_string().contains("expired"));
    }
}
