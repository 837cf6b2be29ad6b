//! Certificates for the tests of this room.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::pair::CertificateFiles;
use super::store::SiteCertificate;
use crate::base::host::HostPattern;

/// A self-signed certificate and its key.
pub(super) struct Issued {
    pub(super) cert: String,
    pub(super) key: String,
    pub(super) der: CertificateDer<'static>,
}

impl Issued {
    /// ECDSA P-256, valid from yesterday for ninety days.
    pub(super) fn for_names(names: &[&str]) -> Issued {
        Issued::between(names, days_from_now(-1), days_from_now(90))
    }

    pub(super) fn between(names: &[&str], from: SystemTime, until: SystemTime) -> Issued {
        Issued::with(&rcgen::PKCS_ECDSA_P256_SHA256, names, from, until)
    }

    pub(super) fn with(
        algorithm: &'static SignatureAlgorithm,
        names: &[&str],
        from: SystemTime,
        until: SystemTime,
    ) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = from.into();
        params.not_after = until.into();
        let key = KeyPair::generate_for(algorithm).unwrap();
        let cert = params.self_signed(&key).unwrap();
        Issued { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().clone() }
    }

    /// Writes `name.pem` and `name.key`.
    pub(super) fn write(&self, folder: &Path, name: &str) -> CertificateFiles {
        let files =
            CertificateFiles { cert: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
        fs::write(&files.cert, &self.cert).unwrap();
        fs::write(&files.key, &self.key).unwrap();
        files
    }

    /// As rustls serves it.
    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        Arc::new(CertifiedKey::new(vec![self.der.clone()], any_supported_type(&key).unwrap()))
    }

    pub(super) fn is(&self, key: &CertifiedKey) -> bool {
        key.cert.first() == Some(&self.der)
    }
}

pub(super) fn site(name: &str, hosts: &[&str], files: CertificateFiles) -> SiteCertificate {
    SiteCertificate {
        site: name.to_owned(),
        names: hosts.iter().map(|host| HostPattern::parse(host).unwrap()).collect(),
        default: false,
        files,
        awaited: false,
    }
}

pub(super) fn day() -> Duration {
    Duration::from_secs(86_400)
}

pub(super) fn days_from_now(days: i32) -> SystemTime {
    let span = day() * days.unsigned_abs();
    if days < 0 { SystemTime::now() - span } else { SystemTime::now() + span }
}
