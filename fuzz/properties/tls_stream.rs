//! However a client's first bytes on a TLS port are cut, they come to the same: a ClientHello, nothing yet, or an end
//! that says why. What follows a ClientHello ends the handshake or is none, and no bytes make either panic.

use std::io::{self, Cursor, Read};
use std::sync::{Arc, OnceLock};

use doorward::tls::hello::{AcceptError, HelloReader, Refusal, judge};
use rustls::server::{ResolvesServerCertUsingSni, ServerConfig};
use rustls::sign::CertifiedKey;

/// A byte for the size of the pieces, and what the client sends.
pub fn check(input: &[u8]) {
    let Some((size, stream)) = input.split_first() else { return };
    let whole = read(stream, stream.len().max(1));
    for size in [1, usize::from(*size).max(1)] {
        assert_eq!(read(stream, size), whole, "in pieces of {size}");
    }
}

/// What came of it.
#[derive(Debug, PartialEq)]
enum Verdict {
    Partial,
    Refused(&'static str, Vec<u8>),
    Hello { name: Option<String>, refused: Option<(&'static str, Vec<u8>)> },
}

fn read(stream: &[u8], size: usize) -> Verdict {
    let mut pieces = Pieces { stream, size, left: 0 };
    let mut reader = HelloReader::default();
    loop {
        if pieces.stream.is_empty() {
            return Verdict::Partial;
        }
        pieces.left = size;
        match reader.read(&mut pieces) {
            Ok(None) => {}
            Ok(Some(hello)) => return greet(hello, pieces.stream),
            Err(refusal) => {
                let (kind, answer) = told(refusal);
                return Verdict::Refused(kind, answer);
            }
        }
    }
}

/// What comes of a ClientHello with `rest` behind it.
fn greet(hello: rustls::server::Accepted, rest: &[u8]) -> Verdict {
    let name = hello.client_hello().server_name().map(str::to_owned);
    if let Some(name) = &name {
        assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase() || byte <= b' '), "{name:?}");
    }
    let refused = judge(&hello, config()).err().map(told);
    if refused.is_none() {
        assert_eq!(name.as_deref(), Some("a.test"), "no certificate for another name");
        if let Ok(connection) = hello.into_connection(Arc::clone(config())) {
            go_on(connection, rest);
        }
    }
    Verdict::Hello { name, refused }
}

fn go_on(mut connection: rustls::ServerConnection, rest: &[u8]) {
    let mut rest = Cursor::new(rest);
    while connection.read_tls(&mut rest).is_ok_and(|read| read > 0) {
        if connection.process_new_packets().is_err() {
            return;
        }
        let _ = connection.reader().read(&mut [0; 64]);
    }
    assert!(connection.is_handshaking(), "nobody could have known our key");
}

fn told(Refusal { error, answer }: Refusal) -> (&'static str, Vec<u8>) {
    let kind = match error {
        AcceptError::PlainHttp => "plain HTTP",
        AcceptError::NotTls => "not TLS",
        AcceptError::UnknownName { .. } => "unknown name",
        AcceptError::NoCommonProtocol => "no common protocol",
        AcceptError::Tls(_) => "TLS",
        other => panic!("{other}"),
    };
    let is_alert = matches!(answer[..], [21, 3, 1..=3, 0, 2, 1 | 2, _]);
    assert!(answer.is_empty() || is_alert || answer.starts_with(b"HTTP/1.1 400 "), "{answer:x?}");
    (kind, answer)
}

/// A socket on which so many bytes have arrived at a time.
struct Pieces<'a> {
    stream: &'a [u8],
    size: usize,
    left: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = self.left.min(self.size).min(buffer.len()).min(self.stream.len());
        buffer[..length].copy_from_slice(&self.stream[..length]);
        (self.stream, self.left) = (&self.stream[length..], self.left - length);
        Ok(length)
    }
}

/// One certificate, for `a.test`.
fn config() -> &'static Arc<ServerConfig> {
    static CONFIG: OnceLock<Arc<ServerConfig>> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let issued = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate");
        let key = issued.signing_key.serialize_der();
        let key = provider.key_provider.load_private_key(key.try_into().expect("a key")).expect("a key");
        let mut names = ResolvesServerCertUsingSni::new();
        names.add("a.test", CertifiedKey::new(vec![issued.cert.der().clone()], key)).expect("a name");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(names));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    })
}
