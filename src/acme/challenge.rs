//! Which question of the authority is answered, and the answers.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use instant_acme::ChallengeType;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::failure::{Failure, FailureKind};
use super::settings::ChallengeKind;
use crate::base::certified_name::CertifiedName;
use crate::keys::subject_alt_name;
use crate::tls::challenges::Challenge;

/// What the authority asks for one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) name: CertifiedName,
    pub(super) kind: ChallengeKind,
    /// RFC 8555, section 8.1: the token, a dot, and the thumbprint of the account key.
    pub(super) key_authorization: String,
    pub(super) token: String,
    /// The SHA-256 digest of the key authorization.
    pub(super) digest: Vec<u8>,
    /// The same in base64url: the content of the TXT record.
    pub(super) dns_value: String,
}

/// Chooses among what the authority `offers`: the first of `allowed`, but of several the one that failed least often
/// for this name (`failures`), so that the next attempt goes another way.
pub(super) fn choose(
    name: &CertifiedName,
    offers: &[ChallengeType],
    allowed: &[ChallengeKind],
    failures: impl Fn(ChallengeKind) -> u32,
) -> Option<ChallengeKind> {
    // RFC 8555, section 7.1.3: only DNS-01 shows control over a wildcard. RFC 8738, section 7: DNS-01 "MUST NOT be
    // used" for an address.
    let fits = |kind: ChallengeKind| match name {
        CertifiedName::Address(_) => kind != ChallengeKind::Dns,
        CertifiedName::Dns(_) => kind == ChallengeKind::Dns || !name.is_wildcard(),
    };
    let offered = allowed.iter().filter(|kind| fits(**kind) && offers.contains(&protocol_name(**kind)));
    offered.copied().min_by_key(|kind| failures(*kind))
}

/// As the authority calls it.
pub(super) fn protocol_name(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::Http => ChallengeType::Http01,
        ChallengeKind::TlsAlpn => ChallengeType::TlsAlpn01,
        ChallengeKind::Dns => ChallengeType::Dns01,
    }
}

/// As it is told to people.
pub(super) fn title(kind: ChallengeKind) -> &'static str {
    match kind {
        ChallengeKind::Http => "HTTP-01",
        ChallengeKind::TlsAlpn => "TLS-ALPN-01",
        ChallengeKind::Dns => "DNS-01",
    }
}

impl Question {
    /// What the listeners have to know to answer; `None` where the answer is a DNS record.
    ///
    /// # Errors
    /// The certificate of a TLS-ALPN-01 answer cannot be made.
    pub(super) fn for_listeners(&self) -> Result<Option<Challenge>, Failure> {
        match self.kind {
            ChallengeKind::Dns => Ok(None),
            ChallengeKind::Http => {
                Ok(Some(Challenge::Http { token: self.token.clone(), answer: self.key_authorization.clone() }))
            }
            ChallengeKind::TlsAlpn => {
                let certified = answer_certificate(&self.name, &self.digest).map_err(|source| {
                    let what = format!("cannot make the TLS-ALPN-01 certificate for {}", self.name);
                    Failure::new(FailureKind::Key, what).because(source)
                })?;
                Ok(Some(Challenge::TlsAlpn { name: server_name(&self.name), certified: Arc::new(certified) }))
            }
        }
    }

    /// The domain whose `_acme-challenge` is set, where the answer is a DNS record.
    pub(super) fn domain(&self) -> Option<&str> {
        match (&self.name, self.kind) {
            (CertifiedName::Dns(name), ChallengeKind::Dns) => Some(name.strip_prefix("*.").unwrap_or(name)),
            _ => None,
        }
    }
}

/// RFC 8737, section 3: self-signed, with this name alone, and the digest in a critical acmeIdentifier. Its key is
/// thrown away with it: it is good for nothing else, so it does not go through [`Keys`](crate::keys::Keys).
fn answer_certificate(
    name: &CertifiedName,
    digest: &[u8],
) -> Result<CertifiedKey, Box<dyn std::error::Error + Send + Sync>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![subject_alt_name(name)?];
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(CertifiedKey::new(vec![certificate.der().clone()], any_supported_type(&key)?))
}

/// The server name that the authority connects with. An address has none (RFC 6066, section 3), so RFC 8738, section
/// 6, takes its name in the reverse tree of the DNS.
fn server_name(name: &CertifiedName) -> String {
    match name {
        CertifiedName::Dns(name) => name.clone(),
        CertifiedName::Address(IpAddr::V4(address)) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        CertifiedName::Address(IpAddr::V6(address)) => {
            let mut name = String::with_capacity(72);
            for byte in address.octets().iter().rev() {
                let _ = write!(name, "{:x}.{:x}.", byte & 0xf, byte >> 4);
            }
            name + "ip6.arpa"
        }
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    fn dns(name: &str) -> CertifiedName {
        CertifiedName::Dns(name.to_owned())
    }

    #[test]
    fn the_first_kind_that_is_offered_and_fits_is_taken() {
        use ChallengeKind::{Dns, Http, TlsAlpn};
        let all = [ChallengeType::Http01, ChallengeType::Dns01, ChallengeType::TlsAlpn01];
        let never = |_| 0;
        assert_eq!(choose(&dns("a.example"), &all, &[TlsAlpn, Http, Dns], never), Some(TlsAlpn));
        assert_eq!(choose(&dns("a.example"), &all[..2], &[TlsAlpn, Http], never), Some(Http));
        assert_eq!(choose(&dns("*.a.example"), &all, &[Http, TlsAlpn, Dns], never), Some(Dns));
        assert_eq!(choose(&dns("*.a.example"), &all, &[Http, TlsAlpn], never), None);
        let address = CertifiedName::Address("192.0.2.7".parse().unwrap());
        assert_eq!(choose(&address, &all, &[Dns, TlsAlpn], never), Some(TlsAlpn));
        assert_eq!(choose(&address, &all, &[Dns], never), None);
    }

    #[test]
    fn what_failed_is_tried_after_what_did_not() {
        use ChallengeKind::{Http, TlsAlpn};
        let all = [ChallengeType::Http01, ChallengeType::TlsAlpn01];
        let choose = |http, alpn| {
            let failures = move |kind| if kind == Http { http } else { alpn };
            choose(&dns("a.example"), &all, &[Http, TlsAlpn], failures)
        };
        assert_eq!(choose(0, 0), Some(Http));
        assert_eq!(choose(1, 0), Some(TlsAlpn));
        assert_eq!(choose(1, 1), Some(Http));
        assert_eq!(choose(2, 1), Some(TlsAlpn));
    }

    #[test]
    fn an_address_is_asked_for_by_its_reverse_name() {
        let name = |address: &str| server_name(&CertifiedName::Address(address.parse().unwrap()));
        assert_eq!(name("192.0.2.7"), "7.2.0.192.in-addr.arpa");
        assert_eq!(
            name("2001:db8::567:89ab"),
            "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
        );
        assert_eq!(server_name(&dns("a.example")), "a.example");
    }

    #[test]
    fn the_tls_alpn_certificate_is_as_the_rfc_wants_it() {
        for name in [dns("a.example"), CertifiedName::Address("::1".parse().unwrap())] {
            let certified = answer_certificate(&name, &[7; 32]).unwrap();
            let (_, parsed) = X509Certificate::from_der(&certified.cert[0]).unwrap();
            // `keys_match` asks webpki, which takes no critical extension that it does not know.
            let key = certified.key.public_key().unwrap();
            assert_eq!(parsed.public_key().raw, key.as_ref());
            let names = parsed.subject_alternative_name().unwrap().unwrap();
            assert_eq!(names.value.general_names.len(), 1);
            // id-pe-acmeIdentifier, RFC 8737, section 6.1: an OCTET STRING of 32 bytes, critical.
            let identifier = parsed.extensions().iter().find(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.31").unwrap();
            assert!(identifier.critical);
            assert_eq!(identifier.value, [&[0x04, 32][..], &[7; 32]].concat());
        }
    }
}
