//! Bytes as they are, over TLS or not.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName};
use socket2::{Domain, Socket, Type};

use super::world::World;

/// One connection whose every byte the test chooses.
pub struct Raw {
    stream: Stream,
    buffer: Vec<u8>,
}

enum Stream {
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Plain(TcpStream),
}

/// How long a read may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(10);

impl Raw {
    /// A TLS connection with `host` as SNI, without ALPN.
    pub fn tls(world: &World, port: u16, host: &str) -> Raw {
        Raw::try_tls(world, port, host, &[]).unwrap_or_else(|e| panic!("TLS with {host}: {e}"))
    }

    /// A TLS connection that offers `alpn`; the handshake is complete when this returns.
    pub fn try_tls(world: &World, port: u16, host: &str, alpn: &[&str]) -> std::io::Result<Raw> {
        let mut config = client_config(world);
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Raw::with_config(Arc::new(config), port, host)
    }

    /// A TLS connection of a client that is set up already.
    pub fn with_config(config: Arc<ClientConfig>, port: u16, host: &str) -> std::io::Result<Raw> {
        Raw::over(config, connect(port)?, host)
    }

    fn over(config: Arc<ClientConfig>, mut socket: TcpStream, host: &str) -> std::io::Result<Raw> {
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let mut connection = ClientConnection::new(config, name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Raw { stream: Stream::Tls(Box::new(StreamOwned::new(connection, socket))), buffer: Vec::new() })
    }

    /// A TLS connection from an address of this machine's own, such as 127.0.0.2, whose first bytes are `head`.
    pub fn tls_behind(world: &World, source: &str, port: u16, host: &str, head: &[u8]) -> std::io::Result<Raw> {
        let mut socket = connect_from(source, port)?;
        socket.write_all(head)?;
        Raw::over(Arc::new(client_config(world)), socket, host)
    }

    /// A connection without TLS from an address of this machine's own.
    pub fn plain_from(source: &str, port: u16) -> Raw {
        Raw { stream: Stream::Plain(connect_from(source, port).unwrap()), buffer: Vec::new() }
    }

    /// A connection without TLS.
    pub fn plain(port: u16) -> Raw {
        Raw { stream: Stream::Plain(connect(port).unwrap()), buffer: Vec::new() }
    }

    /// The leaf that the server showed.
    pub fn leaf(&self) -> CertificateDer<'static> {
        let Stream::Tls(stream) = &self.stream else { panic!("no TLS here") };
        stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// The protocol that ALPN chose.
    pub fn alpn(&self) -> Option<String> {
        let Stream::Tls(stream) = &self.stream else { panic!("no TLS here") };
        stream.conn.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned())
    }

    /// Sends bytes. A peer that is gone already is not a failure: its answer says why.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Raw {
        let _ = self.write_all(bytes.as_ref());
        let _ = self.flush();
        self
    }

    /// Reads until `end` has come, and gives all up to and with it.
    pub fn until(&mut self, end: &[u8]) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                let rest = self.buffer.split_off(at + end.len());
                return std::mem::replace(&mut self.buffer, rest);
            }
            assert!(Instant::now() < deadline, "no {end:?} within {PATIENCE:?}: {}", self.heard());
            assert!(self.fill().unwrap() > 0, "closed before {end:?}: {}", self.heard());
        }
    }

    /// Reads exactly so many bytes.
    pub fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert!(self.fill().unwrap() > 0, "closed after {} of {count} bytes", self.buffer.len());
        }
        let rest = self.buffer.split_off(count);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Reads the head of an answer: status and text.
    pub fn head(&mut self) -> (u16, String) {
        let head = String::from_utf8_lossy(&self.until(b"\r\n\r\n")).into_owned();
        (status(&head), head)
    }

    /// Reads until the server closes, and gives all of it. A server that does not close is a failure.
    pub fn rest(&mut self) -> String {
        self.ended().unwrap_or_else(|open| panic!("the server keeps the connection open after {open:?}"))
    }

    /// Reads until the server closes; an error is what came from one that does not.
    pub fn ended(&mut self) -> Result<String, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.fill() {
                Ok(0) => return Ok(self.heard()),
                Ok(_) if Instant::now() < deadline => {}
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return Ok(self.heard());
                }
                _ => return Err(self.heard()),
            }
        }
    }

    fn heard(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    fn fill(&mut self) -> std::io::Result<usize> {
        let mut piece = [0; 16384];
        let count = loop {
            // A child of another test may end meanwhile.
            match self.read(&mut piece) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.buffer.extend_from_slice(&piece[..count]);
        Ok(count)
    }
}

impl Read for Raw {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = match &mut self.stream {
            Stream::Tls(stream) => stream.read(into),
            Stream::Plain(stream) => stream.read(into),
        };
        match count {
            // A close without close_notify is a close all the same.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(0),
            other => other,
        }
    }
}

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut self.stream {
            Stream::Tls(stream) => stream.write(bytes),
            Stream::Plain(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match &mut self.stream {
            Stream::Tls(stream) => stream.flush(),
            Stream::Plain(stream) => stream.flush(),
        }
    }
}

/// The status of an answer's first line; 0 when there is none.
pub fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    connect_from("127.0.0.1", port)
}

fn connect_from(source: &str, port: u16) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into())?;
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    let socket = TcpStream::from(socket);
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// A client that trusts the test's authority.
pub fn client_config(world: &World) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for root in world.roots() {
        roots.add(root).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}
