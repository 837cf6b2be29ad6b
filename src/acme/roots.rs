//! Whom an authority's own server is verified with.

use std::path::Path;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::transport::TransportError;

/// The certificates of `directory_ca` alone, or the system's.
pub(super) fn of(directory_ca: Option<&Path>) -> Result<RootCertStore, TransportError> {
    directory_ca.map_or_else(system_roots, own_roots)
}

fn own_roots(path: &Path) -> Result<RootCertStore, TransportError> {
    let unreadable = |source| TransportError::ReadRoots { path: path.to_owned(), source };
    let certificates = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(certificates).0 == 0 {
        return Err(TransportError::NoRoots(format!("no certificate in directory_ca {}", path.display())));
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, TransportError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a system certificate could not be read");
    }
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(found.certs).0 == 0 {
        let what = "the system has no certificate authorities: install ca-certificates or set directory_ca";
        return Err(TransportError::NoRoots(what.to_owned()));
    }
    Ok(roots)
}
