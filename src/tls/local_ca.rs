//! `tls = "self-signed"`: a certificate authority for this machine alone, and a certificate of its own for each site.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::CertificateDer;

use super::pair::{CertificateFiles, CertifiedName, Pair, PairError, with_causes};
use crate::base::host::{Host, HostPattern};
use crate::keys::{LocalKeys, file};

/// The authority's certificate within the folder: what a browser is told to trust.
pub const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
const CA_NAME: &str = "Doorward local CA";

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
/// # Errors
/// See [`LocalCaError`].
pub fn issue(folder: &Path, site: &str, hosts: &[HostPattern]) -> Result<CertificateFiles, LocalCaError> {
    let stem_is_plain = site.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if site.is_empty() || site.starts_with('.') || !stem_is_plain || site == "ca" {
        return Err(LocalCaError::SiteName { site: site.to_owned() });
    }
    make_folder(folder)?;
    let _lock = lock(folder)?;
    let now = SystemTime::now();
    let authority = Authority::load_or_create(folder, now)?;
    let names = names_of(site, hosts)?;
    let files = CertificateFiles { cert: folder.join(format!("{site}.pem")), key: folder.join(format!("{site}.key")) };
    if !is_good(&files, &names, &authority, now) {
        authority.certify(&files, site, names, now)?;
    }
    Ok(files)
}

/// Why there is no local certificate.
#[derive(Debug, thiserror::Error)]
pub enum LocalCaError {
    /// The site's name makes no file name.
    #[error("the site name {site:?} makes no file name: letters, digits, '-', '_' and '.' do, and \"ca\" is taken")]
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
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

struct Authority {
    folder: PathBuf,
    pem: String,
    der: CertificateDer<'static>,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn load_or_create(folder: &Path, now: SystemTime) -> Result<Authority, LocalCaError> {
        let files = CertificateFiles { cert: folder.join(CA_FILE), key: folder.join(CA_KEY_FILE) };
        if !files.cert.exists() {
            Authority::create(&files, now)?;
            tracing::info!(ca = %files.cert.display(), "made a local certificate authority: browsers believe it once it is trusted");
        }
        let damaged = |source| LocalCaError::Authority { folder: folder.to_owned(), source };
        let mut pair = Pair::load(&LocalKeys::new(), &files).map_err(damaged)?;
        if let Err(reason) = pair.validity(now) {
            // Nobody can trust it any more: a new one takes nothing from anybody.
            tracing::warn!(ca = %files.cert.display(), %reason, "the local certificate authority is replaced");
            Authority::create(&files, now)?;
            pair = Pair::load(&LocalKeys::new(), &files).map_err(damaged)?;
        }
        let text = |path: &Path| -> Result<String, LocalCaError> {
            let contents = file::read(path).map_err(at(path))?;
            String::from_utf8(contents.bytes)
                .map_err(|error| at(path)(io::Error::new(io::ErrorKind::InvalidData, error)))
        };
        let pem = text(&files.cert)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&text(&files.key)?)?)?;
        let der = pair
            .certified
            .end_entity_cert()
            .cloned()
            .map_err(|source| damaged(PairError::Unusable { path: files.cert.clone(), source }))?;
        Ok(Authority { folder: folder.to_owned(), pem, der: der.into_owned(), not_after: pair.not_after, issuer })
    }

    fn create(files: &CertificateFiles, now: SystemTime) -> Result<(), LocalCaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, CA_NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + CA_LIFE).into();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?;
        // The key first: an authority without its key is damaged, a key without its authority is nothing yet.
        write(&files.key, &key.serialize_pem(), 0o600)?;
        write(&files.cert, &certificate.pem(), 0o644)
    }

    fn certify(
        &self,
        files: &CertificateFiles,
        site: &str,
        names: BTreeSet<CertifiedName>,
        now: SystemTime,
    ) -> Result<(), LocalCaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, site);
        params.subject_alt_names = names.into_iter().map(san).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + LEAF_LIFE).min(self.not_after).into();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(&files.key, &key.serialize_pem(), 0o600)?;
        write(&files.cert, &format!("{}{}", certificate.pem(), self.pem), 0o644)?;
        tracing::info!(%site, folder = %self.folder.display(), "made a local certificate");
        Ok(())
    }
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
    pair.certified.cert.get(1) == Some(&authority.der)
        && pair.names.iter().cloned().collect::<BTreeSet<_>>() == *names
        && pair.validity(now).is_ok()
        && pair.validity(now + RENEW_BEFORE).is_ok()
}

fn names_of(site: &str, hosts: &[HostPattern]) -> Result<BTreeSet<CertifiedName>, LocalCaError> {
    let below = |host: &Host| CertifiedName::Dns(format!("*.{host}"));
    let mut names = BTreeSet::new();
    for pattern in hosts {
        match pattern {
            HostPattern::Exact(host) => {
                names.insert(name(host.as_str()));
            }
            HostPattern::Below(host) => {
                names.insert(below(host));
            }
            HostPattern::AtOrBelow(host) => {
                names.extend([name(host.as_str()), below(host)]);
            }
            HostPattern::StartsWith(_) => {
                tracing::warn!(%site, host = %pattern, "no certificate can be for this host");
            }
        }
    }
    match (names.is_empty(), hosts.is_empty()) {
        (true, true) => Ok(["localhost", "127.0.0.1", "::1"].map(name).into()),
        (true, false) => Err(LocalCaError::NoNames { site: site.to_owned() }),
        (false, _) => Ok(names),
    }
}

fn name(host: &str) -> CertifiedName {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().map_or_else(|_| CertifiedName::Dns(host.to_owned()), CertifiedName::Address)
}

fn san(name: CertifiedName) -> Result<SanType, rcgen::Error> {
    Ok(match name {
        CertifiedName::Dns(name) => SanType::DnsName(name.try_into()?),
        CertifiedName::Address(address) => SanType::IpAddress(address),
    })
}

fn make_folder(folder: &Path) -> Result<(), LocalCaError> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at(folder))?;
    // Keys that are in nobody's repository cannot be published by accident.
    write(&folder.join(".gitignore"), "*\n", 0o644)
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
mod tests {
    use super::*;

    fn hosts(texts: &[&str]) -> Vec<HostPattern> {
        texts.iter().map(|text| HostPattern::parse(text).unwrap()).collect()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn load(files: &CertificateFiles) -> Pair {
        Pair::load(&LocalKeys::new(), files).unwrap()
    }

    #[test]
    fn a_site_gets_a_certificate_of_the_local_authority() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("certs-dev");
        let files = issue(&folder, "app", &hosts(&["app.localhost", ".Test.localhost", "127.0.0.1", "[::1]"])).unwrap();
        let pair = load(&files);
        for host in ["app.localhost", "test.localhost", "x.test.localhost", "127.0.0.1", "::1"] {
            assert!(pair.covers(host), "{host}");
        }
        assert!(!pair.covers("localhost"));
        assert_eq!(pair.certified.cert.len(), 2);
        assert_eq!((mode(&files.key), mode(&folder.join(CA_KEY_FILE)), mode(&folder)), (0o600, 0o600, 0o700));
        let days = pair.not_after.duration_since(SystemTime::now()).unwrap().as_secs() / 86_400;
        assert!((90..398).contains(&days), "{days}");
        let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".gitignore", "app.key", "app.pem", "ca.key", "ca.pem"]);
    }

    #[test]
    fn openssl_believes_the_chain() {
        let folder = tempfile::tempdir().unwrap();
        let files = issue(folder.path(), "app", &hosts(&["*.app.localhost"])).unwrap();
        let output = std::process::Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "a.app.localhost", "-CAfile"])
            .args([&folder.path().join(CA_FILE), &files.cert])
            .output()
            .expect("openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn a_certificate_is_made_anew_only_when_it_must_be() {
        let folder = tempfile::tempdir().unwrap();
        let issue = |texts: &[&str]| {
            let files = issue(folder.path(), "app", &hosts(texts)).unwrap();
            load(&files).certified.cert.clone()
        };
        let first = issue(&["a.localhost", "b.localhost"]);
        assert_eq!(issue(&["b.localhost", "a.localhost"]), first);
        let second = issue(&["a.localhost"]);
        assert_ne!(second[0], first[0]);
        assert_eq!(second[1], first[1], "the authority was replaced");

        fs::write(folder.path().join("app.key"), "half").unwrap();
        let third = issue(&["a.localhost"]);
        assert_ne!(third[0], second[0]);

        let now = SystemTime::now();
        let authority = Authority::load_or_create(folder.path(), now).unwrap();
        let files = CertificateFiles { cert: folder.path().join("app.pem"), key: folder.path().join("app.key") };
        let names = names_of("app", &hosts(&["a.localhost"])).unwrap();
        assert!(is_good(&files, &names, &authority, now));
        assert!(is_good(&files, &names, &authority, now + LEAF_LIFE - RENEW_BEFORE - DAY));
        assert!(!is_good(&files, &names, &authority, now + LEAF_LIFE - RENEW_BEFORE + DAY));

        fs::remove_file(folder.path().join(CA_FILE)).unwrap();
        let fourth = issue(&["a.localhost"]);
        assert_ne!(fourth[1], third[1]);
    }

    #[test]
    fn a_damaged_authority_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        issue(folder.path(), "app", &hosts(&["localhost"])).unwrap();
        fs::remove_file(folder.path().join(CA_KEY_FILE)).unwrap();
        let error = issue(folder.path(), "app", &hosts(&["localhost"])).unwrap_err();
        assert!(matches!(error, LocalCaError::Authority { .. }), "{error}");
        assert!(!folder.path().join(CA_KEY_FILE).exists());
    }

    #[test]
    fn names_that_make_no_certificate_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for site in ["", "ca", "../x", "a/b", ".x"] {
            let error = issue(folder.path(), site, &hosts(&["localhost"])).unwrap_err();
            assert!(matches!(error, LocalCaError::SiteName { .. }), "{site}: {error}");
        }
        let error = issue(folder.path(), "x", &hosts(&["www.example.*"])).unwrap_err();
        assert!(matches!(error, LocalCaError::NoNames { .. }), "{error}");
        let files = issue(folder.path(), "x", &[]).unwrap();
        assert!(["localhost", "127.0.0.1", "::1"].iter().all(|host| load(&files).covers(host)));
    }

    #[test]
    fn two_at_once_share_one_authority() {
        let folder = tempfile::tempdir().unwrap();
        let chains: Vec<_> = thread::scope(|scope| {
            let threads = ["a", "b", "c"].map(|site| {
                let folder = folder.path();
                scope.spawn(move || load(&issue(folder, site, &hosts(&["localhost"])).unwrap()).certified.cert.clone())
            });
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(chains.iter().all(|chain| chain[1] == chains[0][1]));
    }
}
