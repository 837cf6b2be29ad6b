//! What an authority issued, looked at before anything is served with it.

use std::io::Write;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::failure::{Failure, FailureKind};
use super::ledger::Attempt;
use crate::base::certified_name::CertifiedName;
use crate::keys::Keys;
use crate::store::Draft;
use crate::tls::pair::{CertificateFiles, Pair, PairError};

/// A certificate that is live.
#[derive(Debug, Clone)]
pub struct Obtained {
    /// Its names.
    pub names: Vec<CertifiedName>,
    /// It is not valid before this.
    pub not_before: SystemTime,
    /// It is not valid after this.
    pub not_after: SystemTime,
    /// The certificate itself, without its chain.
    pub leaf: CertificateDer<'static>,
    /// Whether it is of an order that was placed earlier, and resumed.
    pub resumed: bool,
    /// The order's entry in the ledger, to be ended.
    pub attempt: Option<Attempt>,
}

/// Holds `chain` (PEM) against the draft's key, the names that were ordered, and the clock.
pub(super) fn check(
    chain: &str,
    draft: &Draft,
    names: &[CertifiedName],
    keys: &dyn Keys,
    authority: &str,
) -> Result<Obtained, Failure> {
    let wrong = |what: &str| Failure::new(FailureKind::WrongCertificate, format!("{authority} issued {what}"));
    let pair = load(chain, draft, keys).map_err(|error| match error {
        Unread::Disk(source) => Failure::storage(source),
        Unread::Pair(PairError::Key(source)) => {
            Failure::new(FailureKind::Key, "the key of the order cannot be used any more").because(source)
        }
        // It was written by ourselves, a moment ago.
        Unread::Pair(PairError::Read { source, .. }) => Failure::storage(source),
        Unread::Pair(PairError::Mismatch { .. }) => wrong("a certificate for another key"),
        Unread::Pair(PairError::Pem { source, .. }) => wrong("something that is no PEM").because(source),
        Unread::Pair(PairError::Unusable { source, .. }) => wrong("a certificate that TLS cannot use").because(source),
        Unread::Pair(PairError::NoCertificate { .. }) => wrong("no certificate"),
        Unread::Pair(_) => wrong("a damaged certificate"),
    })?;
    let missing = names.iter().filter(|name| !is_covered(name, &pair)).map(CertifiedName::to_string);
    let missing: Vec<String> = missing.collect();
    if !missing.is_empty() {
        return Err(wrong(&format!("a certificate that does not name {}", missing.join(", "))));
    }
    // Last: one that has to wait is good otherwise.
    pair.validity(SystemTime::now()).map_err(|source| {
        let mut failure = wrong("a certificate that is not valid now (is the clock of this machine right?)");
        if matches!(source, PairError::NotYetValid { .. }) {
            failure.kind = FailureKind::NotYetValid;
        }
        failure.because(source)
    })?;
    let leaf = pair.certified.cert.first().cloned().ok_or_else(|| wrong("no certificate"))?;
    let Pair { names, not_before, not_after, .. } = pair;
    Ok(Obtained { names, not_before, not_after, leaf, resumed: false, attempt: None })
}

enum Unread {
    Disk(std::io::Error),
    Pair(PairError),
}

/// A pair is read from files. The chain is not in its own place before it is known to be good, so it takes a file that
/// goes when it was read; the storage cleans it away should the process die meanwhile.
fn load(chain: &str, draft: &Draft, keys: &dyn Keys) -> Result<Pair, Unread> {
    let key = draft.key_file();
    let folder = key.parent().unwrap_or(&key);
    let mut file =
        tempfile::Builder::new().prefix(".issued.").suffix(".tmp").tempfile_in(folder).map_err(Unread::Disk)?;
    file.write_all(chain.as_bytes()).map_err(Unread::Disk)?;
    let files = CertificateFiles { cert: file.path().to_owned(), key: key.clone() };
    Pair::load(keys, &files).map_err(Unread::Pair)
}

fn is_covered(name: &CertifiedName, pair: &Pair) -> bool {
    pair.names.contains(name) || (!name.is_wildcard() && pair.covers(&name.to_string()))
}
