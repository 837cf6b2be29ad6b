//! A certificate chain and its key, read from two files and found to belong together.

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::base::certified_name::CertifiedName;
use crate::base::fault::Causes;
use crate::base::host::{Host, HostPattern};
use crate::keys::{KeyError, Keys, file};

/// The two files of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertificateFiles {
    /// The chain in PEM, the site's own certificate first.
    pub cert: PathBuf,
    /// The private key in PEM.
    pub key: PathBuf,
}

/// A chain and its key, fit for handshakes.
#[derive(Debug)]
pub struct Pair {
    /// What rustls signs handshakes with.
    pub certified: Arc<CertifiedKey>,
    /// The names of the leaf.
    pub names: Vec<CertifiedName>,
    /// Who issued the leaf, as `CN=…, O=…`.
    pub issuer: String,
    /// The leaf is not valid before this.
    pub not_before: SystemTime,
    /// The leaf is not valid after this.
    pub not_after: SystemTime,
    /// The first certificate of the chain, counted from 1, that did not issue the one before it.
    pub stray: Option<usize>,
}

impl Pair {
    /// Reads a pair and checks that every certificate of the chain parses and that the key is the leaf's.
    /// Does not look at the clock: see [`Pair::validity`].
    ///
    /// # Errors
    /// See [`PairError`].
    pub fn load(keys: &dyn Keys, files: &CertificateFiles) -> Result<Pair, PairError> {
        let chain = read_chain(&files.cert)?;
        let leaf = Leaf::read(&files.cert, &chain)?;
        let key = keys.load(&files.key).map_err(PairError::Key)?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(mismatch(files, &certified)),
            Err(source) => return Err(PairError::Unusable { path: files.cert.clone(), source }),
        }
        let Leaf { names, issuer, not_before, not_after, stray } = leaf;
        Ok(Pair { certified: Arc::new(certified), names, issuer, not_before, not_after, stray })
    }

    /// Whether the leaf is within its period at `now`.
    ///
    /// # Errors
    /// [`PairError::Expired`] or [`PairError::NotYetValid`].
    pub fn validity(&self, now: SystemTime) -> Result<(), PairError> {
        if now > self.not_after {
            return Err(PairError::Expired { since: self.not_after });
        }
        if now < self.not_before {
            return Err(PairError::NotYetValid { until: self.not_before });
        }
        Ok(())
    }

    /// Whether the leaf names `host`: a lower-case DNS name, or an address (IPv6 with or without brackets).
    pub fn covers(&self, host: &str) -> bool {
        self.names.iter().any(|name| name.covers(host))
    }

    /// Whether the leaf names `pattern`, or something that it matches.
    pub fn is_for(&self, pattern: &HostPattern) -> bool {
        let names = |is: &dyn Fn(&str) -> bool| {
            self.names.iter().any(|name| matches!(name, CertifiedName::Dns(name) if is(name)))
        };
        let below =
            |host: &Host| names(&|name| name.strip_suffix(host.as_str()).is_some_and(|rest| rest.ends_with('.')));
        match pattern {
            HostPattern::Exact(host) => self.covers(host.as_str()),
            HostPattern::Below(host) => below(host),
            HostPattern::AtOrBelow(host) => self.covers(host.as_str()) || below(host),
            HostPattern::StartsWith(host) => {
                names(&|name| name.strip_prefix(host.as_str()).is_some_and(|rest| rest.starts_with('.')))
            }
        }
    }

    /// Whether the leaf is good for all that `pattern` matches, as far as a certificate can be.
    pub fn covers_all_of(&self, pattern: &HostPattern) -> bool {
        let names = |wanted: &CertifiedName| {
            self.names.contains(wanted) || !wanted.is_wildcard() && self.covers(&wanted.to_string())
        };
        CertifiedName::of_pattern(pattern).iter().all(names)
    }

    /// Whether nothing is wrong with it at `now`, whomever it is for.
    pub fn is_good(&self, now: SystemTime) -> bool {
        self.stray.is_none() && self.validity(now).is_ok()
    }

    /// Whether `other` is this very chain (and so the same key).
    pub fn is_same(&self, other: &Pair) -> bool {
        self.certified.cert == other.certified.cert
    }
}

/// Why a pair is not served, or served with regret.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The chain's file cannot be read.
    #[error("cannot read the certificate {}", path.display())]
    Read {
        /// The chain's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The chain's file is PEM no more: half-written or damaged.
    #[error("the certificate {} is not well-formed PEM", path.display())]
    Pem {
        /// The chain's file.
        path: PathBuf,
        /// Where it stops being PEM.
        #[source]
        source: pem::Error,
    },
    /// There is no certificate in the file.
    #[error("there is no certificate in {}", path.display())]
    NoCertificate {
        /// The chain's file.
        path: PathBuf,
    },
    /// The chain's file is binary.
    #[error("the certificate {} is DER, not PEM: convert it (openssl x509 -inform DER -in … -out …)", path.display())]
    Der {
        /// The chain's file.
        path: PathBuf,
    },
    /// A certificate of the chain is not X.509.
    #[error("certificate {number} in {} is damaged", path.display())]
    Damaged {
        /// The chain's file.
        path: PathBuf,
        /// Which one of the file, counted from 1.
        number: usize,
    },
    /// The leaf is X.509, but TLS cannot use it.
    #[error("the certificate {} cannot be used", path.display())]
    Unusable {
        /// The chain's file.
        path: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// The key.
    #[error("the private key cannot be used")]
    Key(#[source] KeyError),
    /// The key is not the first certificate's.
    #[error("the key {} does not belong to the first certificate in {}", key.display(), cert.display())]
    Mismatch {
        /// The chain's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The key is that of a later certificate in the file.
    #[error("the key {} belongs to certificate {number} in {}, which has to be the first", key.display(), cert.display())]
    LeafNotFirst {
        /// The chain's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Which one of the file, counted from 1.
        number: usize,
    },
    /// The leaf comes first, and the rest is in disorder. Many clients sort it, some give up.
    #[error(
        "certificate {number} is not the issuer of the one before it: the order is the site's own certificate, its issuer, that one's issuer"
    )]
    Disordered {
        /// Which one of the file, counted from 1.
        number: usize,
    },
    /// The leaf's time is over.
    #[error("the certificate expired at {}", httpdate::fmt_http_date(*since))]
    Expired {
        /// When it ended.
        since: SystemTime,
    },
    /// The leaf's time has not come, or this machine's clock is behind.
    #[error("the certificate is not valid before {}", httpdate::fmt_http_date(*until))]
    NotYetValid {
        /// When it begins.
        until: SystemTime,
    },
    /// The leaf names none of the site's hosts.
    #[error("the certificate is for other names: {host} is not among them")]
    OtherNames {
        /// A host of the site that it should name.
        host: String,
    },
    /// Neither the chain's nor the key's fault: the pair in service is for more of the site.
    #[error("the certificate is not for {host}, as the one in service is")]
    LostName {
        /// A host of the site that would be without a certificate.
        host: String,
    },
}

impl PairError {
    /// Whether the message says which file is meant.
    pub fn names_a_file(&self) -> bool {
        use PairError::{Disordered, Expired, LostName, NotYetValid, OtherNames};
        !matches!(self, Disordered { .. } | Expired { .. } | NotYetValid { .. } | OtherNames { .. } | LostName { .. })
    }
}

/// An error with its causes, in one line.
pub fn with_causes(error: &dyn Error) -> String {
    format!("{error}{}", Causes(error))
}

/// Reads the certificates of a PEM file, in their order.
///
/// # Errors
/// The file cannot be read, is no PEM, or has no certificate.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, PairError> {
    let path = path.to_owned();
    let contents = match file::read(&path) {
        Ok(contents) => contents,
        Err(source) => return Err(PairError::Read { path, source }),
    };
    match CertificateDer::pem_slice_iter(&contents.bytes).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if chain.is_empty() && file::is_der(&contents.bytes) => Err(PairError::Der { path }),
        Ok(chain) if chain.is_empty() => Err(PairError::NoCertificate { path }),
        Ok(chain) => Ok(chain),
        Err(source) => Err(PairError::Pem { path, source }),
    }
}

/// What is wrong where the key is not the first certificate's: often it is another one's of the same file.
fn mismatch(files: &CertificateFiles, certified: &CertifiedKey) -> PairError {
    let (cert, key) = (files.cert.clone(), files.key.clone());
    let is_its = |der: &CertificateDer<'static>| {
        CertifiedKey::new(vec![der.clone()], Arc::clone(&certified.key)).keys_match().is_ok()
    };
    match certified.cert.iter().position(is_its) {
        Some(index) => PairError::LeafNotFirst { cert, key, number: index + 1 },
        None => PairError::Mismatch { cert, key },
    }
}

struct Leaf {
    names: Vec<CertifiedName>,
    issuer: String,
    not_before: SystemTime,
    not_after: SystemTime,
    stray: Option<usize>,
}

impl Leaf {
    /// Parses every certificate, keeps what matters of the first.
    fn read(path: &Path, chain: &[CertificateDer<'_>]) -> Result<Leaf, PairError> {
        let mut leaf: Option<Leaf> = None;
        let mut issuer = None;
        for (number, der) in (1..).zip(chain) {
            let damaged = || PairError::Damaged { path: path.to_owned(), number };
            let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| damaged())?;
            if !rest.is_empty() {
                return Err(damaged());
            }
            if let Some(leaf) = &mut leaf {
                // RFC 5246, section 7.4.2: "The sender's certificate MUST come first in the list. Each following
                // certificate MUST directly certify the one preceding it."
                if issuer.is_some_and(|issuer| issuer != certificate.subject().as_raw()) {
                    leaf.stray = leaf.stray.or(Some(number));
                }
            } else {
                let names = certificate.subject_alternative_name().map_err(|_| damaged())?;
                let names = names.map(|extension| extension.value.general_names.iter().filter_map(certified_name));
                leaf = Some(Leaf {
                    names: names.into_iter().flatten().collect(),
                    issuer: certificate.issuer().to_string(),
                    not_before: from_timestamp(certificate.validity().not_before.timestamp()),
                    not_after: from_timestamp(certificate.validity().not_after.timestamp()),
                    stray: None,
                });
            }
            issuer = Some(certificate.tbs_certificate.issuer.as_raw());
        }
        leaf.ok_or_else(|| PairError::NoCertificate { path: path.to_owned() })
    }
}

fn certified_name(name: &GeneralName<'_>) -> Option<CertifiedName> {
    match name {
        GeneralName::DNSName(name) => {
            Some(CertifiedName::Dns(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()))
        }
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| CertifiedName::Address(Ipv4Addr::from(b).into())),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| CertifiedName::Address(Ipv6Addr::from(b).into())),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn from_timestamp(seconds: i64) -> SystemTime {
    // Before 1970 is as good as 1970: both are long over.
    let after_epoch = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    UNIX_EPOCH.checked_add(after_epoch).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::keys::LocalKeys;
    use crate::tls::testing::{Issued, day};

    #[test]
    fn a_wildcard_covers_one_label() {
        let folder = tempfile::tempdir().unwrap();
        let files = Issued::for_names(&["*.Example.com", "example.com", "127.0.0.1", "::1"]).write(folder.path(), "x");
        let pair = Pair::load(&LocalKeys::new(), &files).unwrap();
        for host in ["a.example.com", "example.com", "127.0.0.1", "[::1]", "::1"] {
            assert!(pair.covers(host), "{host}");
        }
        for host in ["a.b.example.com", "xexample.com", ".example.com", "127.0.0.2", "[::2]", "com", "example.org"] {
            assert!(!pair.covers(host), "{host}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_pair_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let a = Issued::for_names(&["a.example"]).write(folder.path(), "a");
        let b = Issued::for_names(&["b.example"]).write(folder.path(), "b");
        let load = |cert: &Path, key: &Path| {
            Pair::load(&LocalKeys::new(), &CertificateFiles { cert: cert.to_owned(), key: key.to_owned() }).map(drop)
        };
        load(&a.cert, &a.key).unwrap();
        assert!(matches!(load(&a.cert, &b.key), Err(PairError::Mismatch { .. })));
        assert!(matches!(load(&a.key, &a.key), Err(PairError::NoCertificate { .. })));
        assert!(matches!(load(&a.cert, &a.cert), Err(PairError::Key(KeyError::NoKey { .. }))));
        assert!(matches!(load(folder.path(), &a.key), Err(PairError::Read { .. })));
        let der = folder.path().join("a.der");
        fs::write(&der, CertificateDer::from_pem_file(&a.cert).unwrap()).unwrap();
        assert!(matches!(load(&der, &a.key), Err(PairError::Der { .. })));
        assert!(matches!(load(&a.cert, &der), Err(PairError::Key(KeyError::Der { .. }))));
        let text = fs::read_to_string(&a.cert).unwrap();
        fs::write(&a.cert, &text[..text.len() / 2]).unwrap();
        assert!(matches!(load(&a.cert, &a.key), Err(PairError::Pem { .. })));
        fs::write(&a.cert, format!("{text}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")).unwrap();
        assert!(matches!(load(&a.cert, &a.key), Err(PairError::Damaged { number: 2, .. })));
    }

    #[test]
    fn the_order_of_a_chain_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let authority = |name: &str| {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params
        };
        let key = || rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertifiedIssuer::self_signed(authority("root"), key()).unwrap();
        let between = rcgen::CertifiedIssuer::signed_by(authority("between"), key(), &root).unwrap();
        let own = key();
        let leaf = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap().signed_by(&own, &between).unwrap();
        let files = CertificateFiles { cert: folder.path().join("x.pem"), key: folder.path().join("x.key") };
        fs::write(&files.key, own.serialize_pem()).unwrap();
        let load = |chain: &[&str]| {
            fs::write(&files.cert, chain.concat()).unwrap();
            Pair::load(&LocalKeys::new(), &files)
        };
        let (leaf, between, root) = (leaf.pem(), between.pem(), root.pem());
        for (chain, stray) in [
            (&[&*leaf][..], None),
            (&[&leaf, &between], None),
            (&[&leaf, &between, &root], None),
            (&[&leaf, &root], Some(2)),
            (&[&leaf, &root, &between], Some(2)),
            (&[&leaf, &between, &between], Some(3)),
        ] {
            assert_eq!(load(chain).unwrap().stray, stray);
        }
        assert!(matches!(load(&[&root, &between, &leaf]), Err(PairError::LeafNotFirst { number: 3, .. })));
        assert!(matches!(load(&[&root, &between]), Err(PairError::Mismatch { .. })));
    }

    #[test]
    fn a_certificate_is_for_whatever_it_shares_a_name_with() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["a.example", "*.b.example", "x.c.example", "www.d.org"];
        let pair = Pair::load(&LocalKeys::new(), &Issued::for_names(&names).write(folder.path(), "x")).unwrap();
        let is_for = |pattern| pair.is_for(&HostPattern::parse(pattern).unwrap());
        for pattern in [".a.example", "y.b.example", "*.b.example", "*.c.example", ".c.example", "www.d.*", "*.example"]
        {
            assert!(is_for(pattern), "{pattern}");
        }
        for pattern in ["*.a.example", "b.example", "c.example", "d.*", "www.d.or.*", "*.xample", "*.y.c.example"] {
            assert!(!is_for(pattern), "{pattern}");
        }
    }

    #[test]
    fn the_period_is_inclusive() {
        let folder = tempfile::tempdir().unwrap();
        let pair = Pair::load(&LocalKeys::new(), &Issued::for_names(&["a.example"]).write(folder.path(), "a")).unwrap();
        assert!(pair.validity(pair.not_before).is_ok() && pair.validity(pair.not_after).is_ok());
        assert!(matches!(pair.validity(pair.not_after + day()), Err(PairError::Expired { .. })));
        assert!(matches!(pair.validity(pair.not_before - day()), Err(PairError::NotYetValid { .. })));
    }
}
