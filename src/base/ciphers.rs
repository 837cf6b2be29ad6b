//! Which library does the cryptography of TLS.

use rustls::SupportedCipherSuite;
use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};

/// aws-lc's cryptography, but for the AES-GCM suites where `ring` is the faster one: on processors that do AES on 256
/// bits at once (VAES) and not on 512. There aws-lc falls back to 128, and 16 KiB take it 4.4 µs instead of 2.3 (AMD
/// EPYC, aws-lc-rs 1.19, ring 0.17.14). Key exchange, signatures and random numbers are aws-lc's everywhere.
pub fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if processor_favours_ring() {
        provider.cipher_suites.iter_mut().for_each(prefer_ring);
    }
    provider
}

#[cfg(target_arch = "x86_64")]
fn processor_favours_ring() -> bool {
    let wide =
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("vaes") && is_x86_feature_detected!("vpclmulqdq");
    let wider = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw");
    wide && !wider
}

#[cfg(not(target_arch = "x86_64"))]
fn processor_favours_ring() -> bool {
    false
}

fn prefer_ring(suite: &mut SupportedCipherSuite) {
    if let Some(of_ring) = AES_GCM_OF_RING.iter().find(|of_ring| of_ring.suite() == suite.suite()) {
        *suite = *of_ring;
    }
}

static AES_GCM_OF_RING: [SupportedCipherSuite; 6] = [
    ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
    ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
    ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ring::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ring::cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
];

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
    use rustls::{CipherSuite, ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
    use rustls_pki_types::{PrivateKeyDer, ServerName};

    use super::*;

    #[test]
    fn the_suites_are_those_of_aws_lc_in_their_order_wherever_they_come_from() {
        let names = |provider: &CryptoProvider| -> Vec<CipherSuite> {
            provider.cipher_suites.iter().map(SupportedCipherSuite::suite).collect()
        };
        assert_eq!(names(&provider()), names(&aws_lc_rs::default_provider()));
        let mut all_of_ring = aws_lc_rs::default_provider();
        all_of_ring.cipher_suites.iter_mut().for_each(prefer_ring);
        assert_eq!(names(&all_of_ring), names(&aws_lc_rs::default_provider()));
        let changed = all_of_ring.cipher_suites.iter().filter(|suite| AES_GCM_OF_RING.contains(suite)).count();
        assert_eq!(changed, AES_GCM_OF_RING.len());
    }

    #[test]
    fn each_suite_of_ring_is_understood_by_aws_lc() {
        for of_ring in AES_GCM_OF_RING {
            let of_aws = aws_lc_rs::ALL_CIPHER_SUITES.iter().find(|suite| suite.suite() == of_ring.suite()).unwrap();
            let (mut server, mut client) = connect(of_ring, *of_aws);
            for length in [1, 300, 16 * 1024] {
                let said: Vec<u8> = (0..length).map(|at: u32| u8::try_from(at % 251).unwrap()).collect();
                server.writer().write_all(&said).unwrap();
                client.writer().write_all(&said).unwrap();
                let mut heard = [vec![0; said.len()], vec![0; said.len()]];
                carry(&mut server, &mut client);
                server.reader().read_exact(&mut heard[0]).unwrap();
                client.reader().read_exact(&mut heard[1]).unwrap();
                assert!(heard == [said.clone(), said], "{of_ring:?}, {length} bytes");
            }
        }
    }

    /// Both ends of a connection whose handshake is done: each with one suite.
    fn connect(server: SupportedCipherSuite, client: SupportedCipherSuite) -> (ServerConnection, ClientConnection) {
        let is_rsa =
            format!("{:?}", server.suite()).contains("RSA_WITH") && !format!("{:?}", server.suite()).contains("ECDSA");
        let algorithm = if is_rsa { &PKCS_RSA_SHA256 } else { &PKCS_ECDSA_P256_SHA256 };
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let root = authority.self_signed(&authority_key).unwrap();
        let key = KeyPair::generate_for(algorithm).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let leaf = CertificateParams::new(["a.test".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let with = |suite| Arc::new(CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() });
        let versions = [server.version()];
        let server = ServerConfig::builder_with_provider(with(server))
            .with_protocol_versions(&versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let client = ClientConfig::builder_with_provider(with(client))
            .with_protocol_versions(&versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from("a.test").unwrap()).unwrap();
        carry(&mut server, &mut client);
        assert!(!server.is_handshaking() && !client.is_handshaking());
        (server, client)
    }

    /// Carries what either has to say to the other until both are silent.
    fn carry(server: &mut ServerConnection, client: &mut ClientConnection) {
        while server.wants_write() || client.wants_write() {
            let (mut from_server, mut from_client) = (Vec::new(), Vec::new());
            while server.wants_write() {
                server.write_tls(&mut from_server).unwrap();
            }
            while client.wants_write() {
                client.write_tls(&mut from_client).unwrap();
            }
            let (mut from_server, mut from_client) = (&from_server[..], &from_client[..]);
            while !from_server.is_empty() {
                client.read_tls(&mut from_server).unwrap();
                client.process_new_packets().unwrap();
            }
            while !from_client.is_empty() {
                server.read_tls(&mut from_client).unwrap();
                server.process_new_packets().unwrap();
            }
        }
    }
}
