//! What is spoken: versions, cipher suites, ALPN, client certificates, tickets.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, ServerConfig, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject};

use super::resolver::CertResolver;
use super::store::CertStore;
use super::tickets::Tickets;
use crate::base::ciphers;
use crate::keys::file;

/// The ALPN name of HTTP/1.1 (RFC 7301, section 6).
pub const ALPN_H1: &[u8] = b"http/1.1";
/// The ALPN name of HTTP/2 (RFC 9113, section 3.1).
pub const ALPN_H2: &[u8] = b"h2";

/// The oldest version that is spoken. TLS 1.1 and older are not (RFC 8996), nor does rustls know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum MinVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

/// What a listener speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Whether HTTP/1.1 is offered.
    pub h1: bool,
    /// Whether HTTP/2 is offered, and preferred.
    pub h2: bool,
    /// The oldest TLS version.
    pub min_version: MinVersion,
    /// Authorities (PEM) one of which every client's certificate must come from.
    pub client_ca: Option<PathBuf>,
}

/// Why a policy cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Neither HTTP/1.1 nor HTTP/2.
    #[error("a TLS listener needs HTTP/1.1 or HTTP/2")]
    NoProtocol,
    /// The client authorities' file cannot be read.
    #[error("cannot read client_ca {}", path.display())]
    ReadClientCa {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The client authorities' file is no PEM.
    #[error("client_ca {} is not well-formed PEM", path.display())]
    PemClientCa {
        /// The file.
        path: PathBuf,
        /// Where it stops being PEM.
        #[source]
        source: pem::Error,
    },
    /// A certificate in the file is damaged.
    #[error("certificate {number} in client_ca {} cannot be used", path.display())]
    DamagedClientCa {
        /// The file.
        path: PathBuf,
        /// Which one of the file, counted from 1.
        number: usize,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// There is no authority in the file.
    #[error("there is no certificate in client_ca {}", path.display())]
    NoClientCa {
        /// The file.
        path: PathBuf,
        /// What rustls said.
        #[source]
        source: VerifierBuilderError,
    },
    /// rustls refuses, or the system has no randomness.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// Makes the configuration of a listener. Reads `client_ca` from disk; certificates are looked up in `store` at each
/// handshake, and sessions resume across all configurations made with the same `tickets`.
///
/// # Errors
/// See [`PolicyError`].
pub fn server_config(
    policy: &Policy,
    store: Arc<CertStore>,
    tickets: &Tickets,
) -> Result<Arc<ServerConfig>, PolicyError> {
    let provider = Arc::new(provider());
    let client_ca = policy.client_ca.as_deref().map(read_client_ca).transpose()?;
    let clients: Arc<dyn ClientCertVerifier> = match (&client_ca, &policy.client_ca) {
        (Some(pem), Some(path)) => client_verifier(path, pem, Arc::clone(&provider))?,
        _ => Arc::new(NoClientAuth),
    };
    let versions = match policy.min_version {
        MinVersion::Tls12 => &[&TLS13, &TLS12][..],
        MinVersion::Tls13 => &[&TLS13][..],
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(CertResolver::new(store)));
    config.alpn_protocols = [(policy.h2, ALPN_H2), (policy.h1, ALPN_H1)]
        .into_iter()
        .filter(|(offered, _)| *offered)
        .map(|(_, name)| name.to_vec())
        .collect();
    if config.alpn_protocols.is_empty() {
        return Err(PolicyError::NoProtocol);
    }
    config.ignore_client_order = true;
    config.ticketer = tickets.for_clients_of(client_ca.as_deref())?;
    // Tickets carry the session: a store would be a second way to resume that a reload forgets.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // One is enough to resume, and the resumed connection brings the next; each costs a derivation and an encryption.
    config.send_tls13_tickets = 1;
    // RFC 8446, section 8: 0-RTT data can be replayed.
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// AES-128 first: as safe as AES-256 for all that is known, and its SHA-256 is cheaper than SHA-384. With one ticket
/// instead of two it takes a full handshake from 133 µs of CPU time to 93.
pub(super) fn provider() -> CryptoProvider {
    let mut provider = ciphers::provider();
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 0,
        _ => 1,
    });
    provider
}

fn read_client_ca(path: &Path) -> Result<Vec<u8>, PolicyError> {
    match file::read(path) {
        Ok(contents) => Ok(contents.bytes),
        Err(source) => Err(PolicyError::ReadClientCa { path: path.to_owned(), source }),
    }
}

fn client_verifier(
    path: &Path,
    pem: &[u8],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, PolicyError> {
    let path = || path.to_owned();
    let mut roots = RootCertStore::empty();
    for (number, certificate) in (1..).zip(CertificateDer::pem_slice_iter(pem)) {
        let certificate = certificate.map_err(|source| PolicyError::PemClientCa { path: path(), source })?;
        roots.add(certificate).map_err(|source| PolicyError::DamagedClientCa { path: path(), number, source })?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|source| PolicyError::NoClientCa { path: path(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::LocalKeys;

    fn policy() -> Policy {
        Policy { h1: true, h2: true, min_version: MinVersion::Tls12, client_ca: None }
    }

    fn build(policy: &Policy) -> Result<Arc<ServerConfig>, PolicyError> {
        server_config(policy, Arc::new(CertStore::new(Arc::new(LocalKeys::new()))), &Tickets::new())
    }

    #[test]
    fn the_defaults_of_rustls_that_matter_are_changed() {
        let config = build(&policy()).unwrap();
        assert_eq!(config.alpn_protocols, [ALPN_H2, ALPN_H1]);
        assert!(config.ignore_client_order);
        assert_eq!(config.crypto_provider().cipher_suites[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!((config.send_tls13_tickets, config.max_early_data_size), (1, 0));
        assert!(!config.session_storage.can_cache() && config.ticketer.enabled());
        let h1 = build(&Policy { h2: false, ..policy() }).unwrap();
        assert_eq!(h1.alpn_protocols, [ALPN_H1]);
    }

    #[test]
    fn policies_that_cannot_work_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let with_ca = || build(&Policy { client_ca: Some(file.clone()), ..policy() });
        assert!(matches!(build(&Policy { h1: false, h2: false, ..policy() }), Err(PolicyError::NoProtocol)));
        assert!(matches!(with_ca(), Err(PolicyError::ReadClientCa { .. })));
        std::fs::write(&file, "").unwrap();
        assert!(matches!(with_ca(), Err(PolicyError::NoClientCa { .. })));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(matches!(with_ca(), Err(PolicyError::DamagedClientCa { number: 1, .. })));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA").unwrap();
        assert!(matches!(with_ca(), Err(PolicyError::PemClientCa { .. })));
    }
}
