//! Asking for the answers to challenges, as a real authority does, only that every name is 127.0.0.1.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Validation;
use super::book::Identifier;
use super::jose;
use crate::anyone::Anyone;

/// Type and detail of the problem.
pub type Refused = (String, String);

/// One challenge.
pub struct Question {
    pub name: Identifier,
    pub kind: &'static str,
    pub token: String,
    pub key_authorization: String,
}

impl Question {
    pub async fn ask(&self, validation: &Validation) -> Result<(), Refused> {
        let asking = async {
            match (validation, self.kind) {
                (Validation::Automatic, _) => Ok(()),
                (Validation::Real { http: Some(port), .. }, "http-01") => self.http(*port).await,
                (Validation::Real { tls_alpn: Some(port), .. }, "tls-alpn-01") => self.tls_alpn(*port).await,
                (Validation::Real { dns: Some(folder), .. }, "dns-01") => self.dns(folder),
                _ => Err(("connection".to_owned(), "nobody is there".to_owned())),
            }
        };
        let asked = tokio::time::timeout(Duration::from_secs(10), asking).await;
        asked.unwrap_or_else(|_| Err(("connection".to_owned(), "no answer".to_owned())))
    }

    async fn http(&self, port: u16) -> Result<(), Refused> {
        let connection = |error: std::io::Error| ("connection".to_owned(), error.to_string());
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(connection)?;
        let request = format!(
            "GET /.well-known/acme-challenge/{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.token, self.name.value
        );
        stream.write_all(request.as_bytes()).await.map_err(connection)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map_err(connection)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.lines().next().unwrap_or_default().to_owned();
        if !status.contains(" 200") {
            return Err(("unauthorized".to_owned(), format!("Invalid response: {status}")));
        }
        if body.trim_end() != self.key_authorization {
            return Err(("unauthorized".to_owned(), format!("The key authorization was {body:?}")));
        }
        Ok(())
    }

    async fn tls_alpn(&self, port: u16) -> Result<(), Refused> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
        let name = match self.name.value.parse::<IpAddr>() {
            Ok(address) => reverse(address),
            Err(_) => self.name.value.clone(),
        };
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        let stream = stream.map_err(|error| ("connection".to_owned(), error.to_string()))?;
        let connector = TlsConnector::from(Arc::new(config));
        let tls = connector.connect(ServerName::try_from(name).unwrap(), stream).await;
        let tls = tls.map_err(|error| ("tls".to_owned(), error.to_string()))?;
        let session = tls.get_ref().1;
        let wrong = |detail: &str| ("unauthorized".to_owned(), detail.to_owned());
        if session.alpn_protocol() != Some(b"acme-tls/1") {
            return Err(wrong("acme-tls/1 was not negotiated"));
        }
        let leaf = session.peer_certificates().and_then(|chain| chain.first()).unwrap();
        let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
        let names = leaf.subject_alternative_name().unwrap().map(|names| names.value.general_names.clone());
        let is_name = match names.as_deref() {
            Some([GeneralName::DNSName(name)]) => *name == self.name.value,
            Some([GeneralName::IPAddress(bytes)]) => match self.name.value.parse::<IpAddr>() {
                Ok(IpAddr::V4(address)) => *bytes == address.octets(),
                Ok(IpAddr::V6(address)) => *bytes == address.octets(),
                Err(_) => false,
            },
            _ => false,
        };
        let wanted = [vec![4, 32], jose::sha256(self.key_authorization.as_bytes())].concat();
        let identifier = leaf.extensions().iter().find(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
        match identifier {
            Some(identifier) if is_name && identifier.critical && identifier.value == wanted => Ok(()),
            _ => Err(wrong("the certificate is not the answer")),
        }
    }

    fn dns(&self, folder: &Path) -> Result<(), Refused> {
        let name = format!("_acme-challenge.{}", self.name.value);
        let records = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
        let wanted = jose::encode(&jose::sha256(self.key_authorization.as_bytes()));
        match records.lines().any(|record| record == wanted) {
            true => Ok(()),
            false => Err(("dns".to_owned(), format!("no such TXT record at {name}"))),
        }
    }
}

/// RFC 8738, section 6.
fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let parts: Vec<String> = address.octets().iter().rev().map(u8::to_string).collect();
            format!("{}.in-addr.arpa", parts.join("."))
        }
        IpAddr::V6(address) => {
            let digits: String = address.octets().iter().map(|byte| format!("{byte:02x}")).collect();
            let parts: Vec<String> = digits.chars().rev().map(String::from).collect();
            format!("{}.ip6.arpa", parts.join("."))
        }
    }
}
