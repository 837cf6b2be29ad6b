//! How TLS is spoken to back ends: whom to trust, which name to ask for, which certificate to show.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::base::ciphers;
use crate::upstream::connect::TlsTarget;
use crate::upstream::http::settings::TlsSettings;

/// Why TLS towards back ends cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamTlsError {
    /// A PEM file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A PEM file has no certificate.
    #[error("no certificate in {}", .0.display())]
    Empty(PathBuf),
    /// A certificate of `ca` cannot be an authority.
    #[error("a certificate in {} is not usable", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The system has no certificate authorities.
    #[error("the system has no certificate authorities: install ca-certificates or set upstream_tls.ca")]
    NoRoots,
    /// The name is not one that a certificate could have.
    #[error("\"{0}\" is not a name that a certificate can have: set upstream_tls.server_name")]
    ServerName(String),
    /// The client certificate or its key is not usable.
    #[error("the client certificate {} is not usable", path.display())]
    Client {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// rustls refuses the settings.
    #[error("TLS cannot be set up")]
    Config(#[source] rustls::Error),
}

/// TLS as one upstream speaks it.
pub(super) struct UpstreamTls {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
    identity: String,
}

impl UpstreamTls {
    /// Reads the files that `settings` name. `roots` gives the system's authorities and is asked only when needed.
    pub(super) fn new(
        settings: &TlsSettings,
        roots: impl FnOnce() -> Arc<RootCertStore>,
    ) -> Result<UpstreamTls, UpstreamTlsError> {
        let provider = Arc::new(ciphers::provider());
        let mut identity = digest::Context::new(&digest::SHA256);
        identity.update(&[u8::from(settings.insecure)]);
        let verifier: Arc<dyn ServerCertVerifier> = match &settings.ca {
            _ if settings.insecure => Arc::new(Anyone(Arc::clone(&provider))),
            None => system_verifier(roots(), &provider)?,
            Some(path) => {
                let certificates = read_certificates(path)?;
                for certificate in &certificates {
                    identity.update(certificate);
                }
                own_verifier(path, certificates, &provider)?
            }
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(UpstreamTlsError::Config)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &settings.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = read_certificates(certificate)?;
                for link in &chain {
                    identity.update(link);
                }
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|source| UpstreamTlsError::Read { path: key.clone(), source })?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|source| UpstreamTlsError::Client { path: certificate.clone(), source })?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let server_name = settings.server_name.as_deref().map(server_name).transpose()?;
        identity.update(settings.server_name.as_deref().unwrap_or_default().as_bytes());
        Ok(UpstreamTls { config: Arc::new(config), server_name, identity: hex(identity.finish().as_ref(), 8) })
    }

    /// What is spoken to the back end at `host`.
    pub(super) fn target(&self, host: &str) -> Result<TlsTarget, UpstreamTlsError> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => server_name(host)?,
        };
        Ok(TlsTarget { config: Arc::clone(&self.config), name })
    }

    /// Differs when anything differs that a connection was verified with: such connections are not shared.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }
}

/// The system's authorities. Slow (files are read): once a process, never per request.
pub(super) fn system_roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a system certificate could not be read");
    }
    roots.add_parsable_certificates(found.certs);
    Arc::new(roots)
}

/// The first `bytes` of a digest, in hexadecimal.
pub(super) fn hex(digest: &[u8], bytes: usize) -> String {
    digest.iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

fn server_name(text: &str) -> Result<ServerName<'static>, UpstreamTlsError> {
    ServerName::try_from(text.to_owned()).map_err(|_| UpstreamTlsError::ServerName(text.to_owned()))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, UpstreamTlsError> {
    let unreadable = |source| UpstreamTlsError::Read { path: path.to_owned(), source };
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    if certificates.is_empty() { Err(UpstreamTlsError::Empty(path.to_owned())) } else { Ok(certificates) }
}

fn system_verifier(
    roots: Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, UpstreamTlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider)).build();
    Ok(verifier.map_err(|_| UpstreamTlsError::NoRoots)?)
}

fn own_verifier(
    path: &Path,
    certificates: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, UpstreamTlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        let added = roots.add(certificate.clone());
        added.map_err(|source| UpstreamTlsError::Authority { path: path.to_owned(), source })?;
    }
    let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    let authorities = authorities.map_err(|_| UpstreamTlsError::Empty(path.to_owned()))?;
    Ok(Arc::new(Own { authorities, certificates }))
}

/// Trusts the certificates of a `ca` file: as authorities, and each as a back end's own. `openssl req -x509` makes
/// self-signed certificates that say they are authorities, which webpki never takes for a server; OpenSSL, and with
/// it nginx, does.
#[derive(Debug)]
struct Own {
    authorities: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Own {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificates.iter().any(|own| own == end_entity) {
            check_validity(end_entity, now)?;
            rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// `verify = false`: any certificate, of which the other end must still hold the key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
