//! Looking at a machine. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::machine::{Anchor, BROWSERS, CHROMIUM, COMMANDS, Database, Entry, JAVA_ALIAS, LAYOUTS, Layout, Machine};
use super::plan::sql;
use crate::tls::local_ca::{self, CaCertificate};

/// Where else Chromium and its kin have their database, below the home folder. `*` is any one name.
const CHROMIUM_PACKAGED: [&str; 2] = ["snap/chromium/current/.pki/nssdb", ".var/app/*/.pki/nssdb"];
/// Where Firefox has its profiles, below the home folder; each has a database.
const FIREFOX: [&str; 4] = [
    ".mozilla/firefox/*",
    ".config/mozilla/firefox/*",
    "snap/firefox/common/.mozilla/firefox/*",
    ".var/app/org.mozilla.firefox/.mozilla/firefox/*",
];
/// The file by which a folder is a database of today's format.
const DATABASE: &str = "cert9.db";
/// Where commands of the system are, which not everybody has in PATH.
const SYSTEM_COMMANDS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Looks at this machine: its commands, its stores, and what bears our name in them. Blocks on the disk, and runs
/// `certutil -L`.
pub fn find(env: &dyn Fn(&str) -> Option<OsString>) -> Machine {
    let path = env("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(SYSTEM_COMMANDS.map(PathBuf::from)).collect();
    let which = |name: &'static str| {
        let mut places = folders.iter().filter(|folder| folder.is_absolute()).map(|folder| folder.join(name));
        places.find(|path| is_program(path)).map(|path| (name, path))
    };
    let user = rustix::process::geteuid();
    // In the home of another user we would leave files that are not theirs.
    let home = env("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let home = home.filter(|home| fs::metadata(home).is_ok_and(|metadata| metadata.uid() == user.as_raw()));
    let mut machine = Machine {
        is_root: user.is_root(),
        sudo_user: env("SUDO_USER").and_then(|user| user.into_string().ok()).filter(|_| user.is_root()),
        home,
        commands: COMMANDS.into_iter().chain(BROWSERS).filter_map(which).collect::<BTreeMap<_, _>>(),
        folders: LAYOUTS.iter().map(|l| l.anchors).filter(|a| Path::new(a).is_dir()).collect::<BTreeSet<_>>(),
        ..Machine::default()
    };
    if let Some(layout) = machine.layout() {
        machine.anchors = anchors(layout);
        machine.bundle = bundle(Path::new(layout.bundle));
        machine.java = layout.java.and_then(|path| fs::read(path).ok()).map(|store| java(&store)).unwrap_or_default();
    }
    let certutil = machine.commands.get("certutil").cloned();
    let entries =
        |folder: &Path| certutil.as_ref().map_or_else(|| Ok(Vec::new()), |certutil| entries(certutil, folder));
    let home = machine.home.iter();
    let places = home.flat_map(|home| {
        let chromium = CHROMIUM.iter().chain(&CHROMIUM_PACKAGED).map(|place| ("Chromium", *place));
        let all = chromium.chain(FIREFOX.iter().map(|place| ("Firefox", *place)));
        all.flat_map(|(browser, place)| expand(home, place).into_iter().map(move |folder| (browser, folder)))
    });
    let there = places.filter(|(_, folder)| folder.join(DATABASE).is_file());
    machine.databases =
        there.map(|(browser, folder)| Database { entries: entries(&folder), folder, browser }).collect();
    machine
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
}

fn anchors(layout: &Layout) -> Vec<Anchor> {
    let names = fs::read_dir(layout.anchors).into_iter().flatten().flatten();
    let ours = names.filter(|entry| entry.file_name().to_str().is_some_and(|name| layout.is_ours(name)));
    let mut found: Vec<Anchor> = ours
        .map(|entry| {
            let certificate = CertificateDer::from_pem_file(entry.path()).ok().and_then(|der| CaCertificate::of(&der));
            Anchor { path: entry.path(), certificate }
        })
        .collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Those of the bundle that bear our name.
fn bundle(path: &Path) -> Option<Vec<CaCertificate>> {
    let text = fs::read(path).ok()?;
    // Some roots of the world are not parsed by everybody; ours are.
    let certificates = CertificateDer::pem_slice_iter(&text).flatten().filter_map(|der| CaCertificate::of(&der));
    Some(certificates.filter(|certificate| certificate.label.is_some()).collect())
}

/// The labels of ours in a store of Java's, which has its aliases in plain text (JKS).
fn java(store: &[u8]) -> BTreeSet<String> {
    let label = |at: usize| {
        let rest = store.get(at + JAVA_ALIAS.len()..)?;
        let end = memchr::memmem::find(rest.get(..rest.len().min(16))?, b".pem")?;
        let label = str::from_utf8(rest.get(..end)?).ok()?;
        local_ca::is_label(label).then(|| label.to_owned())
    };
    memchr::memmem::find_iter(store, JAVA_ALIAS).filter_map(label).collect()
}

/// What stands in a database under our name.
fn entries(certutil: &Path, folder: &Path) -> Result<Vec<Entry>, String> {
    let listed = certutil_says(certutil, folder, &["-L"])?;
    let mut found = Vec::new();
    for (nickname, flags) in listed.lines().filter_map(listed_line) {
        let pem = certutil_says(certutil, folder, &["-L", "-a", "-n", nickname])?;
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).flatten();
        found.extend(certificates.filter_map(|der| CaCertificate::of(&der)).map(|certificate| Entry {
            nickname: nickname.to_owned(),
            certificate,
            is_trusted: flags.split(',').next().is_some_and(|servers| servers.contains('C')),
        }));
    }
    Ok(found)
}

/// A nickname of ours and its flags, of a line of `certutil -L`: `NICKNAME      C,,`.
fn listed_line(line: &str) -> Option<(&str, &str)> {
    let (nickname, flags) = line.trim_end().rsplit_once(char::is_whitespace)?;
    let nickname = nickname.trim_end();
    local_ca::label_of(nickname).map(|_| (nickname, flags))
}

fn certutil_says(certutil: &Path, folder: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(certutil);
    command.args(arguments).arg("-d").arg(sql(folder)).stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("{}: {error}", certutil.display()))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The folders below `home` that fit `pattern`, in which one component may be `*`.
fn expand(home: &Path, pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![home.join(pattern)] };
    let entries = fs::read_dir(home.join(before)).into_iter().flatten().flatten();
    let below = |path: PathBuf| match after.strip_prefix('/') {
        Some(after) => path.join(after),
        None => path,
    };
    let mut found: Vec<PathBuf> = entries.map(|entry| below(entry.path())).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nicknames_of_ours_are_found_in_a_listing() {
        let listing = "\nCertificate Nickname                                         Trust Attributes\n\
                       \x20                                                            SSL,S/MIME,JAR/XPI\n\n\
                       Doorward local CA 0a1b2c3d                                   C,,  \n\
                       Doorward local CA                                            C,,  \n\
                       Doorward local CA 00000000                                   ,,   \n\
                       Somebody's CA 0a1b2c3d                                       CT,C,C\n";
        let found: Vec<_> = listing.lines().filter_map(listed_line).collect();
        assert_eq!(found, [("Doorward local CA 0a1b2c3d", "C,,"), ("Doorward local CA 00000000", ",,")]);
    }

    #[test]
    fn aliases_of_ours_are_found_in_a_store_of_java_s() {
        let store = b"\xfe\xed debian:doorward-0a1b2c3d.pem\0x debian:doorward-dev.pem debian:doorward-00000000.pem..debian:doorward-";
        assert_eq!(java(store).iter().map(String::as_str).collect::<Vec<_>>(), ["00000000", "0a1b2c3d"]);
    }

    #[test]
    fn databases_of_all_browsers_are_found_below_the_home() {
        let home = tempfile::tempdir().unwrap();
        let wanted = [
            ".pki/nssdb",
            "snap/chromium/current/.pki/nssdb",
            ".var/app/com.google.Chrome/.pki/nssdb",
            ".mozilla/firefox/abc.default",
            ".config/mozilla/firefox/def.default-release",
        ];
        for folder in wanted.iter().chain(&[".mozilla/firefox/Crash Reports"]) {
            fs::create_dir_all(home.path().join(folder)).unwrap();
        }
        for folder in wanted {
            fs::write(home.path().join(folder).join(DATABASE), "").unwrap();
        }
        let env = |name: &str| match name {
            "HOME" => Some(home.path().into()),
            _ => None,
        };
        let machine = find(&env);
        let found: Vec<_> = machine.databases.iter().map(|d| d.folder.strip_prefix(home.path()).unwrap()).collect();
        assert_eq!(found, wanted.map(Path::new));
        assert_eq!(machine.databases.iter().filter(|d| d.browser == "Firefox").count(), 2);
        assert_eq!(machine.missing_database(), None);
    }
}
