//! A client of a few lines: TLS, requests of HTTP/1.1, and WebSocket handshakes.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::server::Server;

pub trait Transport: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Transport for T {}

/// A client that offers one group and one suite, and keeps tickets of its own or none.
pub fn client(server: &Server, protocol: &str, resumes: bool) -> TlsConnector {
    TlsConnector::from(config(server, protocol, resumes))
}

pub fn config(server: &Server, protocol: &str, resumes: bool) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(server.folder.join("ca.pem")).unwrap()).unwrap();
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![kx_group::X25519];
    let config = ClientConfig::builder_with_provider(Arc::new(provider));
    let config = config.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.into()];
    config.resumption = if resumes { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
    Arc::new(config)
}

pub async fn plain(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
    socket.set_nodelay(true).unwrap();
    socket
}

pub async fn secure(client: &TlsConnector, address: SocketAddr) -> TlsStream<TcpStream> {
    secure_as(client, address, "a.test").await
}

pub async fn secure_as(client: &TlsConnector, address: SocketAddr, name: &str) -> TlsStream<TcpStream> {
    let socket = plain(address).await;
    let stream = client.connect(ServerName::try_from(name.to_owned()).unwrap(), socket).await;
    stream.unwrap_or_else(|error| panic!("{address}: {error}"))
}

pub async fn ask(stream: &mut impl Transport, path: &str) {
    ask_host(stream, "a.test", path).await;
}

pub async fn ask_host(stream: &mut impl Transport, host: &str, path: &str) {
    stream.write_all(request(host, path).as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
}

/// As a browser asks, but for what depends on its version.
pub fn request(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\n\r\n")
}

/// Reads an answer whole, which has to be of this length, and gives the beginning of its body.
pub async fn answer(stream: &mut impl Transport, scratch: &mut Vec<u8>, length: Option<usize>) -> Vec<u8> {
    let mut held = Vec::with_capacity(4096);
    let end = loop {
        if let Some(at) = memchr::memmem::find(&held, b"\r\n\r\n") {
            break at + 4;
        }
        assert!(stream.read_buf(&mut held).await.unwrap() > 0, "no answer: {:?}", String::from_utf8_lossy(&held));
    };
    let head = String::from_utf8_lossy(&held[..end]).to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    let said = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let said = said.unwrap_or_else(|| panic!("no length: {head}"));
    assert!(length.is_none_or(|length| length == said), "{length:?}: {head}");
    scratch.resize(256 << 10, 0);
    let mut left = said.checked_sub(held.len() - end).expect("no more than the answer");
    while left > 0 {
        let most = scratch.len().min(left);
        let read = stream.read(&mut scratch[..most]).await.unwrap();
        assert!(read > 0, "{left} of {said} bytes are missing");
        if held.len() - end < 32 {
            held.extend_from_slice(&scratch[..read.min(32)]);
        }
        left -= read;
    }
    held.split_off(end)
}

/// Turns the connection into a tunnel.
pub async fn upgrade(stream: &mut impl Transport, path: &str) {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// What a client of HTTP/2 begins with. The connection's window is as large as it may be.
pub fn h2_preface() -> Vec<u8> {
    let window = frame(8, 0, 0, &(i32::MAX - 65535).to_be_bytes());
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), window].concat()
}

/// Asks for `/`.
pub fn h2_request(stream: u32) -> Vec<u8> {
    // HPACK: method, scheme and path by their numbers in the static table, the authority in plain.
    frame(1, 5, stream, &[&[0x82, 0x87, 0x84, 0x01, 6], &b"a.test"[..]].concat())
}

/// Whether HPACK says so: number 8 of the static table; a size update of the table may stand before it.
pub fn is_200(head: &[u8]) -> bool {
    head.iter().take(4).any(|byte| *byte == 0x88)
}

/// Asks over HTTP/2 for `/`, and reads until the answer is whole.
pub async fn ask_h2(stream: &mut impl Transport) {
    const END_STREAM: u8 = 1;
    stream.write_all(&[h2_preface(), h2_request(1)].concat()).await.unwrap();
    stream.flush().await.unwrap();
    let mut body = 0;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await.unwrap();
        let (kind, flags, on) = (head[3], head[4], head[8]);
        match kind {
            0 => body += payload.len(),
            1 => assert!(is_200(&payload), "{payload:?}"),
            4 if flags & 1 == 0 => {
                stream.write_all(&frame(4, 1, 0, &[])).await.unwrap();
                stream.flush().await.unwrap();
            }
            3 | 7 => panic!("frame {kind}: {payload:?}"),
            _ => {}
        }
        if kind <= 1 && on == 1 && flags & END_STREAM != 0 {
            assert_eq!(body, 2, "length of the answer");
            return;
        }
    }
}
