//! `tls = "self-signed"`: a certificate authority for this machine alone, and a certificate of its own for each site.

mod authority;
mod certificate;
mod constraints;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::pair::{CertificateFiles, Pair, PairError, with_causes};
use crate::base::certified_name::CertifiedName;
use crate::base::host::HostPattern;
use crate::keys::LocalKeys;

use authority::Authority;
pub use certificate::{CaCertificate, is_label, label_of, name};
pub use constraints::Constraints;

/// The folder of the local authority, beside the configuration file.
pub const FOLDER: &str = "certs-dev";
/// The authority's certificate within the folder: what a browser is told to trust.
pub const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
/// The certificates of authorities that were replaced, the last one first.
const FORMER_FILE: &str = "ca-former.pem";
/// Names whose files are the authority's.
const RESERVED: [&str; 2] = ["ca", "ca-former"];

const DAY: Duration = Duration::from_secs(86_400);
const CA_LIFE: Duration = DAY.saturating_mul(3650);
/// Browsers refuse certificates of more than 398 days.
const LEAF_LIFE: Duration = DAY.saturating_mul(397);
const RENEW_BEFORE: Duration = DAY.saturating_mul(30);
/// Clocks of other machines may be behind.
const BACKDATED: Duration = Duration::from_secs(3600);
/// How long to wait for another process that works in the folder.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes sure that `folder` has a certificate for `hosts`, named after `site`, and says where. The authority and the
/// folder (0700) are made on first use; a good certificate stays as it is. It is made anew when the hosts changed, when
/// it has less than 30 days left, or when the authority is another. Keys are 0600 from their first byte.
///
/// `*.x` becomes that wildcard, `.x` both `x` and `*.x`; `x.*` cannot be certified and is left out. Without any host the
/// certificate is for `localhost`, 127.0.0.1 and ::1. Blocks on the disk.
///
/// `all` are the hosts of all self-signed sites of the file. The authority may vouch for local names, for private
/// addresses and for these, and for nobody else; one that may not vouch for one of them is replaced by another, which
/// has to be trusted anew. So give the same `all` for each site, or each call replaces it.
///
/// # Errors
/// See [`LocalCaError`].
pub fn issue(
    folder: &Path,
    site: &str,
    hosts: &[HostPattern],
    all: &[HostPattern],
) -> Result<CertificateFiles, LocalCaError> {
    let files = files(folder, site)?;
    make_folder(folder)?;
    let _lock = lock(folder)?;
    let now = SystemTime::now();
    let names = names_of(site, hosts)?;
    let mut permitted: BTreeSet<CertifiedName> = all.iter().flat_map(CertifiedName::of_pattern).collect();
    permitted.extend(names.iter().cloned());
    let authority = Authority::open(folder, &permitted, now)?;
    if !is_good(&files, &names, &authority, now) {
        authority.certify(&files, site, &names, now)?;
    }
    Ok(files)
}

/// Where [`issue`] puts the certificate of `site`. Makes nothing.
///
/// # Errors
/// [`LocalCaError::SiteName`].
pub fn files(folder: &Path, site: &str) -> Result<CertificateFiles, LocalCaError> {
    let stem_is_plain = site.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if site.is_empty() || site.starts_with('.') || !stem_is_plain || RESERVED.contains(&site) {
        return Err(LocalCaError::SiteName { site: site.to_owned() });
    }
    Ok(CertificateFiles { cert: folder.join(format!("{site}.pem")), key: folder.join(format!("{site}.key")) })
}

/// Why there is no local certificate.
#[derive(Debug, thiserror::Error)]
pub enum LocalCaError {
    /// The site's name makes no file name.
    #[error(
        "the site name {site:?} makes no file name: letters, digits, '-', '_' and '.' do; \"ca\" and \"ca-former\" are taken"
    )]
    SiteName {
        /// The name.
        site: String,
    },
    /// A `x.*` alone.
    #[error("site {site} has only hosts like \"x.*\", and no certificate can be for those")]
    NoNames {
        /// The site.
        site: String,
    },
    /// The disk.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process works in the folder and does not come to an end.
    #[error("another process is at work in {}", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The authority's files are damaged. They are not replaced: somebody may trust them.
    #[error("the local CA in {} is damaged: remove {CA_FILE} and {CA_KEY_FILE} to have a new one", folder.display())]
    Authority {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with them.
        #[source]
        source: PairError,
    },
    /// The authority's certificate cannot be read.
    #[error("cannot use the certificate of the local CA")]
    Certificate(#[source] PairError),
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

/// Whether the files hold a pair of this authority for exactly these names that lasts a while yet.
fn is_good(files: &CertificateFiles, names: &BTreeSet<CertifiedName>, authority: &Authority, now: SystemTime) -> bool {
    let pair = match Pair::load(&LocalKeys::new(), files) {
        Ok(pair) => pair,
        Err(PairError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return false,
        Err(error) => {
            tracing::warn!(cert = %files.cert.display(), reason = with_causes(&error), "the local certificate is made anew");
            return false;
        }
    };
    // The chain is leaf, authority: what was made by another authority has another one there.
    pair.certified.cert.get(1) == Some(&authority.certificate.der)
        && pair.names.iter().cloned().collect::<BTreeSet<_>>() == *names
        && pair.validity(now).is_ok()
        && pair.validity(now + RENEW_BEFORE).is_ok()
}

fn names_of(site: &str, hosts: &[HostPattern]) -> Result<BTreeSet<CertifiedName>, LocalCaError> {
    let mut names = BTreeSet::new();
    for pattern in hosts {
        let certified = CertifiedName::of_pattern(pattern);
        if certified.is_empty() {
            tracing::warn!(%site, host = %pattern, "no certificate can be for this host");
        }
        names.extend(certified);
    }
    match (names.is_empty(), hosts.is_empty()) {
        (true, true) => Ok(BTreeSet::from([
            CertifiedName::Dns("localhost".to_owned()),
            CertifiedName::Address(Ipv4Addr::LOCALHOST.into()),
            CertifiedName::Address(Ipv6Addr::LOCALHOST.into()),
        ])),
        (true, false) => Err(LocalCaError::NoNames { site: site.to_owned() }),
        (false, _) => Ok(names),
    }
}

fn make_folder(folder: &Path) -> Result<(), LocalCaError> {
    if !folder.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at(folder))?;
    }
    // Keys that are in nobody's repository cannot be published by accident. The folder may have been made empty.
    let ignore = folder.join(".gitignore");
    if ignore.exists() || files_in(folder) { Ok(()) } else { write(&ignore, "*\n", 0o644) }
}

/// Whether there is anything in it: who has removed the file that keeps it from others meant to.
fn files_in(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

/// Two processes that start at once must not make two authorities. The lock ends with the file.
fn lock(folder: &Path) -> Result<File, LocalCaError> {
    let file = File::open(folder).map_err(at(folder))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => return Err(LocalCaError::Busy { path: folder.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(at(folder)(source)),
        }
    }
}

/// Writes a file whole or not at all; nobody but `mode` ever reads it.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), LocalCaError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let replace = || -> io::Result<()> {
        // 0600 and O_EXCL under a name nobody knows, then renamed.
        let mut file = tempfile::Builder::new().permissions(fs::Permissions::from_mode(mode)).tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    replace().map_err(at(path))
}

fn at(path: &Path) -> impl Fn(io::Error) -> LocalCaError {
    move |source| LocalCaError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
