//! A TLS client that takes any certificate, and offers what it is told to.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::anyone::Anyone;

/// How long an answer may take to come.
const DEADLINE: Duration = Duration::from_secs(20);

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A connection for `name` that offers `alpn`; its handshake is made with the first byte that is sent or read.
pub fn connect(address: SocketAddr, name: &str, alpn: &[&[u8]]) -> Tls {
    let stream = TcpStream::connect(address).expect("the edge listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    over(stream, name, alpn)
}

/// The same over a connection that is there.
pub fn over(stream: TcpStream, name: &str, alpn: &[&[u8]]) -> Tls {
    over_with(Arc::new(config(alpn)), stream, name)
}

/// The same by a client that is set up already, and may remember sessions.
pub fn over_with(config: Arc<ClientConfig>, stream: TcpStream, name: &str) -> Tls {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let session = ClientConnection::new(config, name).expect("a session");
    StreamOwned::new(session, stream)
}

/// A client that offers `alpn`.
pub fn config(alpn: &[&[u8]]) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config
}
