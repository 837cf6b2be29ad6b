//! Certificates.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::book::{Certificate, Identifier};
use super::jose::{self, Wrong};
use super::{Issues, Rules};

/// The root, which issues everything itself.
pub struct Issuer(CertifiedIssuer<'static, KeyPair>);

impl Issuer {
    pub fn new() -> Issuer {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, format!("Authority of the tests {}", jose::random()));
        Issuer(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// What the authority itself serves on 127.0.0.1.
    pub fn server_config(&self) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }

    /// Issues for a request, whose names have to be exactly those of the order.
    pub fn issue(&self, csr: &[u8], names: &[Identifier], account: &str, rules: &Rules) -> Result<Certificate, Wrong> {
        let bad = |detail: &str| ("badCSR", detail.to_owned());
        let csr = CertificateSigningRequestDer::from(csr);
        let mut request = CertificateSigningRequestParams::from_der(&csr).map_err(|error| bad(&error.to_string()))?;
        let mut asked: Vec<Identifier> = request.params.subject_alt_names.iter().map(identifier).collect();
        let mut ordered = names.to_vec();
        asked.sort();
        ordered.sort();
        if asked != ordered {
            return Err(bad("the names are not those of the order"));
        }
        let now = SystemTime::now();
        let (not_before, not_after) = match rules.issues {
            Issues::Expired => (now - Duration::from_secs(7200), now - Duration::from_secs(3600)),
            Issues::ValidIn(seconds) => (now + Duration::from_secs(seconds), now + rules.lifetime),
            _ => (now - Duration::from_secs(2), now + rules.lifetime),
        };
        let mut serial = jose::sha256(jose::random().as_bytes());
        serial.truncate(16);
        serial[0] = serial[0] & 0x7f | 0x40;
        let params = &mut request.params;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        (params.not_before, params.not_after) = (not_before.into(), not_after.into());
        // RFC 9773, section 4.1: a certificate is known by the key identifier of its issuer, and its serial number.
        params.use_authority_key_identifier_extension = true;
        let leaf = match rules.issues {
            Issues::WrongKey => request.params.signed_by(&KeyPair::generate().unwrap(), &self.0).unwrap().pem(),
            Issues::Garbage => "-----BEGIN CERTIFICATE-----\nnot today\n".to_owned(),
            Issues::OtherNames => {
                request.params.subject_alt_names = vec![SanType::DnsName("other.example".try_into().unwrap())];
                request.signed_by(&self.0).unwrap().pem()
            }
            _ => request.signed_by(&self.0).unwrap().pem(),
        };
        let (pem, serial) = (leaf + &self.pem(), jose::encode(&serial));
        Ok(Certificate { account: account.to_owned(), serial, pem, not_before, not_after })
    }
}

fn identifier(name: &SanType) -> Identifier {
    let (kind, value) = match name {
        SanType::DnsName(name) => ("dns", name.as_str().to_owned()),
        SanType::IpAddress(address) => ("ip", IpAddr::to_string(address)),
        other => ("other", format!("{other:?}")),
    };
    Identifier { kind: kind.to_owned(), value }
}
