//! What automatic certificates need of the world: a clock, a folder that is ours, names that somebody can find.

use std::collections::BTreeMap;
use std::io;
use std::net::ToSocketAddrs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::Access;

use super::Finding;
use super::certificates::authorities;
use super::files::{account, folder, owner, why_not};
use crate::base::certified_name::CertifiedName;
use crate::base::host::HostPattern;
use crate::config::{Acme, Certificate, Config, Site};

/// How long the lookup of a name may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Names that are looked up at once.
const AT_ONCE: usize = 64;
/// 2026-01-01: what says less is not a clock that has been set.
const YOUNGEST: Duration = Duration::from_secs(1_767_225_600);
/// Bytes that keys, chains and notes need, several times over.
const ROOM: u64 = 1 << 20;
/// Files that one order makes, several times over.
const FILES: u64 = 64;

pub(super) fn check(config: &Config, now: SystemTime, findings: &mut Vec<Finding>) {
    let acme = &config.acme;
    if let Some(webroot) = &acme.webroot {
        folder(webroot, None, "webroot", findings);
    }
    let sites: Vec<&Site> = config.sites.iter().filter(|site| site.certificate == Certificate::Acme).collect();
    if sites.is_empty() {
        return;
    }
    findings.extend(clock(now));
    storage(&acme.storage, rustix::process::geteuid().as_raw(), findings);
    findings.extend(hook(acme));
    for ca in acme.directories.iter().filter_map(|directory| directory.ca.as_deref()) {
        authorities(ca, None, "directory_ca", findings);
    }
    let lookup = |name: &str| (name, 443).to_socket_addrs().map(drop).map_err(|why| plain(&why));
    findings.extend(unresolved(&sites, lookup, PATIENCE));
}

/// Certificates are valid by the clock, and signed requests are not taken from another age.
fn clock(now: SystemTime) -> Option<Finding> {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (since < YOUNGEST).then(|| {
        let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + since);
        let help = "set it, for example with `timedatectl set-ntp true`: no certificate would seem valid";
        Finding::error(None, format!("this machine's clock says {date}"), help)
    })
}

/// The rules of `store::Storage`, without making anything. `user` is who asks.
fn storage(path: &Path, user: u32, findings: &mut Vec<Finding>) {
    let refuse = |why: String, help: &str| Finding::error(None, format!("`storage`: {} {why}", path.display()), help);
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(path);
    if !there.is_dir() || path.is_symlink() && there != path {
        let why = match (there == path, path.is_symlink()) {
            (true, _) => "is not a folder".to_owned(),
            (false, true) => "is a symbolic link that leads nowhere".to_owned(),
            (false, false) => format!("cannot be made: {} is not a folder", there.display()),
        };
        findings.push(refuse(why, "name a folder; it is made where it is missing"));
        return;
    }
    if there == path
        && let Ok(metadata) = std::fs::metadata(path)
    {
        findings.extend(ownership(path, metadata.uid(), metadata.mode(), user));
    }
    if let Err(errno) = rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK) {
        let why = match errno {
            rustix::io::Errno::ROFS => {
                format!("cannot be written: the file system of {} is read-only", there.display())
            }
            _ if there == path => why_not(path, &errno.into()),
            _ => format!("cannot be made: {} {}", there.display(), why_not(there, &errno.into())),
        };
        let help = "make it, mode 0700, for the account of the server; the systemd unit has /var/lib/doorward for it";
        findings.push(refuse(why, help));
        return;
    }
    // The ledger of orders has a second copy there, which outlives the folder.
    let above = path.parent().filter(|_| there == path);
    if let Some(above) = above
        && let Err(errno) = rustix::fs::access(above, Access::WRITE_OK | Access::EXEC_OK)
    {
        let message = format!(
            "`storage`: the second copy of the ledger, {}.ledger, cannot be written: {} {}",
            path.display(),
            above.display(),
            why_not(above, &errno.into())
        );
        let help =
            "name a folder within one that belongs to the server's account: what was ordered should outlive the folder";
        findings.push(Finding::warning(None, message, help));
    }
    if let Ok(disk) = rustix::fs::statvfs(there) {
        // A file system that does not count says 0 of 0.
        let bytes = if disk.f_blocks == 0 { ROOM } else { disk.f_bavail.saturating_mul(disk.f_frsize) };
        let files = if disk.f_files == 0 { FILES } else { disk.f_favail };
        findings.extend(room(path, bytes, files));
    }
}

/// A folder of keys that another could write to is refused, and one of another's as well.
fn ownership(path: &Path, uid: u32, mode: u32, user: u32) -> Option<Finding> {
    let path = path.display();
    if uid != user {
        let (theirs, ours) = (account("/etc/passwd", uid), account("/etc/passwd", user));
        let message = format!("`storage`: {path} belongs to {theirs}, and this is {ours}");
        // Whoever looks as root looks for a server that runs as somebody else.
        return Some(match user {
            0 => Finding::warning(None, message, format!("all is well if the server runs as {theirs}")),
            _ => Finding::error(None, message, format!("chown -R {ours} {path}, or run this as {theirs}")),
        });
    }
    (mode & 0o022 != 0).then(|| {
        let message = format!("`storage`: others may write to {path}: its mode is {:04o}", mode & 0o7777);
        Finding::error(None, message, format!("look who has been there, then: chmod 700 {path}"))
    })
}

fn room(path: &Path, bytes: u64, files: u64) -> Option<Finding> {
    let lacks = match (bytes < ROOM, files < FILES) {
        (false, false) => return None,
        (true, _) => format!("the disk is full ({bytes} bytes are free)"),
        (false, true) => format!("the file system is full ({files} inodes are free)"),
    };
    let message = format!("`storage`: {} has no room: {lacks}", path.display());
    Some(Finding::error(None, message, "make room, or put `storage` on another disk; nothing is ordered until then"))
}

fn hook(acme: &Acme) -> Option<Finding> {
    let program = &acme.dns_hook.as_ref()?.program;
    let refuse =
        |why: String, help: &str| Some(Finding::error(None, format!("`dns_hook`: {} {why}", program.display()), help));
    match std::fs::metadata(program) {
        Err(why) => refuse(why_not(program, &why), "write the path of the program"),
        Ok(metadata) if !metadata.is_file() => refuse("is not a file".to_owned(), "write the path of the program"),
        Ok(_) => match rustix::fs::access(program, Access::EXEC_OK) {
            Ok(()) => None,
            Err(_) => refuse(
                format!("may not be run: it is {}", owner(program)),
                "chmod +x it, for the account of the server",
            ),
        },
    }
}

/// Warns of names that `lookup` does not find, which are all asked for at once.
fn unresolved<L>(sites: &[&Site], lookup: L, patience: Duration) -> Vec<Finding>
where
    L: Fn(&str) -> Result<(), String> + Clone + Send + 'static,
{
    // A name of two sites is asked for once; a wildcard is no name that could be found.
    let mut names: Vec<(String, &str)> = Vec::new();
    for site in sites {
        let aliases = site.aliases.iter().cloned().map(HostPattern::Exact);
        for name in site.hosts.iter().cloned().chain(aliases).flat_map(|pattern| CertifiedName::of_pattern(&pattern)) {
            match name {
                CertifiedName::Dns(dns) if !dns.starts_with("*.") && names.iter().all(|(known, _)| *known != dns) => {
                    names.push((dns, &site.name));
                }
                _ => {}
            }
        }
    }
    let mut findings = Vec::new();
    for some in names.chunks(AT_ONCE) {
        let (answers, answered) = mpsc::channel();
        for (name, _) in some {
            let (name, lookup, answers) = (name.clone(), lookup.clone(), answers.clone());
            // A thread that outlives our patience ends with its lookup; one that cannot be started says nothing.
            let _ = std::thread::Builder::new().spawn(move || {
                let found = lookup(&name);
                answers.send((name, found))
            });
        }
        drop(answers);
        let deadline = Instant::now() + patience;
        let mut found = BTreeMap::new();
        while found.len() < some.len() {
            match answered.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((name, answer)) => drop(found.insert(name, answer)),
                Err(_) => break,
            }
        }
        for (name, site) in some {
            let why = match found.remove(name) {
                Some(Ok(())) => continue,
                Some(Err(why)) => why,
                None => format!("no answer within {} s", patience.as_secs()),
            };
            let help = "let an A or AAAA record lead to this machine: the authority has to find it before it certifies";
            findings.push(Finding::warning(Some(site), format!("{name} has no address ({why})"), help));
        }
    }
    findings
}

/// The error without what every lookup says first.
fn plain(why: &io::Error) -> String {
    let text = why.to_string();
    text.rsplit("failed to lookup address information: ").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;
    use std::os::unix::fs::PermissionsExt;

    fn config(folder: &Path, acme: &str, sites: &str) -> Config {
        let text = format!("[acme]\nstorage = \"state/acme\"\n{acme}\n{sites}");
        crate::config::parse(folder, &[("proxy.toml", &text)], &|_| None).unwrap_or_else(|p| panic!("{p}"))
    }

    const SITE: &str = "[site.app]\nhosts = [\"app.example.com\"]\nroot = \"/srv\"\ntls = \"acme\"\n";

    fn told(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(Finding::to_string).collect()
    }

    fn about_storage(path: &Path) -> Vec<Finding> {
        let mut findings = Vec::new();
        storage(path, rustix::process::geteuid().as_raw(), &mut findings);
        findings
    }

    #[test]
    fn a_clock_that_was_never_set_is_an_error() {
        assert_eq!(clock(SystemTime::UNIX_EPOCH + YOUNGEST), None);
        for wrong in [SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH - Duration::from_secs(1)] {
            let finding = clock(wrong).unwrap();
            assert_eq!(finding.severity, Severity::Error);
            assert!(finding.message.ends_with("Thu, 01 Jan 1970 00:00:00 GMT"), "{finding}");
        }
    }

    #[test]
    fn a_storage_that_can_be_made_or_is_ours_has_no_findings_and_nothing_is_made() {
        let world = tempfile::tempdir().unwrap();
        let path = world.path().join("state/acme");
        assert_eq!(about_storage(&path), []);
        assert!(!world.path().join("state").exists());
        std::fs::create_dir_all(&path).unwrap();
        assert_eq!(about_storage(&path), []);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn a_storage_that_others_may_write_to_and_one_that_is_no_folder_are_errors() {
        let world = tempfile::tempdir().unwrap();
        let path = world.path().join("acme");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o775)).unwrap();
        let open = about_storage(&path);
        assert!(matches!(&open[..], [one] if one.severity == Severity::Error), "{open:?}");
        assert!(open[0].message.ends_with("its mode is 0775"), "{}", open[0]);
        // What others may only read is closed when it is opened.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(about_storage(&path), []);

        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(about_storage(&path)[0].message.ends_with("is not a folder"), "{:?}", about_storage(&path));
        let below = path.join("state");
        assert!(about_storage(&below)[0].message.contains("cannot be made: "), "{:?}", about_storage(&below));
        let link = world.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert!(about_storage(&link)[0].message.ends_with("leads nowhere"), "{:?}", about_storage(&link));
    }

    #[test]
    fn a_storage_of_another_account_is_an_error_unless_root_looks() {
        let of = |uid, user| ownership(Path::new("/s"), uid, 0o700, user).map(|finding| finding.severity);
        assert_eq!(of(4_000_001, 4_000_001), None);
        assert_eq!(of(4_000_001, 4_000_002), Some(Severity::Error));
        assert_eq!(of(4_000_001, 0), Some(Severity::Warning));
        assert_eq!(of(0, 4_000_001), Some(Severity::Error));
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let full = |bytes, files| room(Path::new("/s"), bytes, files).map(|finding| finding.message);
        assert_eq!(full(ROOM, FILES), None);
        assert!(full(4096, FILES).unwrap().contains("4096 bytes"));
        assert!(full(ROOM, 0).unwrap().contains("0 inodes"));
    }

    #[test]
    fn a_hook_must_be_a_program() {
        let world = tempfile::tempdir().unwrap();
        let config = config(world.path(), "dns_hook = [\"hook\", \"x\"]", SITE);
        let program = world.path().join("hook");
        let told = || hook(&config.acme).map(|finding| finding.message).unwrap_or_default();
        assert!(told().ends_with("does not exist"), "{}", told());
        std::fs::create_dir(&program).unwrap();
        assert!(told().ends_with("is not a file"), "{}", told());
        std::fs::remove_dir(&program).unwrap();
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(told().contains("may not be run: it is ") && told().ends_with("mode 0644"), "{}", told());
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(told(), "");
    }

    #[test]
    fn each_name_that_is_not_found_is_a_warning_and_a_slow_one_delays_no_other() {
        let world = tempfile::tempdir().unwrap();
        let sites = "[site.a]\nhosts = [\".a.example.com\", \"8.8.8.8\", \"none.example.com\"]\nroot = \"/srv\"\n\
                     [site.b]\nhosts = [\"b.example.com\"]\naliases = [\"slow.example.com\"]\nroot = \"/srv\"\n";
        let config = config(world.path(), "dns_hook = \"x\"", sites);
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = std::sync::Arc::new(std::sync::Mutex::new(blocked));
        let lookup = move |name: &str| match name {
            "none.example.com" => Err("name or service not known".to_owned()),
            "slow.example.com" => blocked.lock().unwrap().recv().map_err(|_| "ended".to_owned()),
            name if name.starts_with('*') || name == "8.8.8.8" => panic!("{name} was asked for"),
            _ => Ok(()),
        };
        let sites: Vec<&Site> = config.sites.iter().collect();
        let findings = unresolved(&sites, lookup, PATIENCE);
        assert!(findings.iter().all(|finding| finding.severity == Severity::Warning));
        let told = told(&findings);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("warning: [site.a] none.example.com has no address (name or service not known)"));
        assert!(told[1].starts_with("warning: [site.b] slow.example.com has no address (no answer within 2 s)"));
        drop(release);
    }

    #[test]
    fn without_a_site_that_needs_it_only_the_webroot_is_looked_at() {
        let world = tempfile::tempdir().unwrap();
        let site = SITE.replace("\"acme\"", "\"self-signed\"");
        let acme = "webroot = \"challenges\"\ndns_hook = \"/none/hook\"\ndirectory_ca = \"/none/ca.pem\"";
        let config = config(world.path(), acme, &site);
        let mut findings = Vec::new();
        check(&config, SystemTime::UNIX_EPOCH, &mut findings);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].message.starts_with("`webroot`: "), "{}", findings[0]);
        std::fs::create_dir(world.path().join("challenges")).unwrap();
        findings.clear();
        check(&config, SystemTime::UNIX_EPOCH, &mut findings);
        assert_eq!(findings, []);
    }
}
