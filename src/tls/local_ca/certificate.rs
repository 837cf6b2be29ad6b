//! The authority's certificate as the world sees it: what a store of trusted certificates is given.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::constraints::Constraints;
use super::{CA_FILE, FORMER_FILE, LocalCaError};
use crate::tls::pair::{PairError, from_timestamp, read_chain};

/// Every authority is called this and a label of its own.
const NAME: &str = "Doorward local CA ";
/// Digits of a label.
const DIGITS: usize = 8;

/// The certificate of a local authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaCertificate {
    /// The certificate itself.
    pub der: CertificateDer<'static>,
    /// What is its own in its name: eight hexadecimal digits. `None` for those that were made before there were.
    pub label: Option<String>,
    /// For which names it may vouch; `None` when for all.
    pub constraints: Option<Constraints>,
    /// It is not valid before this.
    pub not_before: SystemTime,
    /// It is not valid after this.
    pub not_after: SystemTime,
}

impl CaCertificate {
    /// Reads a certificate; `None` when it is damaged.
    pub fn of(der: &CertificateDer<'_>) -> Option<CaCertificate> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Some(CaCertificate {
            der: der.clone().into_owned(),
            label: name.and_then(label_of).map(str::to_owned),
            constraints: Constraints::of(&certificate),
            not_before: from_timestamp(certificate.validity().not_before.timestamp()),
            not_after: from_timestamp(certificate.validity().not_after.timestamp()),
        })
    }

    /// The authority of `folder` as it is now; `None` when there is none yet. Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be read, or is no certificate.
    pub fn current(folder: &Path) -> Result<Option<CaCertificate>, LocalCaError> {
        let path = folder.join(CA_FILE);
        let chain = match read_chain(&path) {
            Ok(chain) => chain,
            Err(PairError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LocalCaError::Certificate(source)),
        };
        let certificate = chain.first().and_then(CaCertificate::of);
        certificate.map(Some).ok_or(LocalCaError::Certificate(PairError::Damaged { path, number: 1 }))
    }

    /// Those that were the authority of `folder` and were replaced. Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn former(folder: &Path) -> Result<Vec<CaCertificate>, LocalCaError> {
        match read_chain(&folder.join(FORMER_FILE)) {
            Ok(chain) => Ok(chain.iter().filter_map(CaCertificate::of).collect()),
            Err(PairError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(LocalCaError::Certificate(source)),
        }
    }

    /// Whether it is within its period at `now`.
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

    /// SHA-256 over the certificate, as `openssl x509 -fingerprint -sha256` and browsers show it.
    pub fn fingerprint(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.der);
        let pairs: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        pairs.join(":")
    }
}

/// The name of the authority with this public key (its SubjectPublicKeyInfo, in DER). Each has another: stores of
/// trusted certificates such as NSS take two of one name for one.
pub(super) fn name_for(public_key: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, public_key);
    let digits: String = digest.as_ref().iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
    name(&digits)
}

/// The name of the authority with this label.
pub fn name(label: &str) -> String {
    format!("{NAME}{label}")
}

/// The label at the end of an authority's name; `None` when `name` is no such name.
pub fn label_of(name: &str) -> Option<&str> {
    name.strip_prefix(NAME).filter(|label| is_label(label))
}

/// Whether `text` is eight hexadecimal digits.
pub fn is_label(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
