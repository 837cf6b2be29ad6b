//! The stream to a back end, and how it comes to be: names resolved, addresses tried in turn, TLS shaken, all of it
//! under one deadline.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::RecvFlags;
use rustls_pki_types::ServerName;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::base::address::Endpoint;
use crate::base::fault::{Fault, Kind};
use crate::upstream::source::{self, Source};

/// A raw stream to a back end.
#[derive(Debug)]
pub enum BackEndStream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A unix stream socket.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

/// How TLS is spoken to one back end.
#[derive(Clone)]
pub struct TlsTarget {
    /// Authorities, client certificate, ALPN; shared by the back ends of an upstream, and with it the sessions.
    pub config: Arc<rustls::ClientConfig>,
    /// The name for SNI and verification.
    pub name: ServerName<'static>,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The deadline passed: while resolving, connecting or shaking hands.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The name could not be resolved.
    #[error("cannot resolve \"{host}\"")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// The name has no address.
    #[error("\"{0}\" has no address")]
    NoAddress(String),
    /// All ports that connections to there could have are taken.
    #[error("no free port towards {peer}: use a unix socket, several back ends, or widen net.ipv4.ip_local_port_range")]
    NoPort {
        /// The back end's address.
        peer: SocketAddr,
        /// What connect(2) said.
        #[source]
        source: io::Error,
    },
    /// The socket could not be connected.
    #[error("the connection failed")]
    Socket(#[source] io::Error),
    /// The handshake failed: no TLS there, or a certificate that is not trusted.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
}

impl ConnectError {
    /// The system's error, where there is one.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            ConnectError::Timeout(_) | ConnectError::NoAddress(_) => None,
            ConnectError::Resolve { source, .. }
            | ConnectError::NoPort { source, .. }
            | ConnectError::Socket(source)
            | ConnectError::Tls(source) => Some(source),
        }
    }
}

/// Connects to `endpoint`, with TLS when `tls` says so. Resolving, every address and the handshake share `within`.
/// TLS over a unix socket does not exist here: `tls` is ignored for one. `source` is the back end's own.
pub async fn connect(
    endpoint: &Endpoint,
    tls: Option<&TlsTarget>,
    within: Duration,
    source: &Source,
) -> Result<BackEndStream, ConnectError> {
    connect_with_head(endpoint, tls, within, source, &[]).await
}

/// The same; `head` goes before everything else, TLS included: a PROXY head, see [`proxy_head`](crate::base::proxy_head).
pub async fn connect_with_head(
    endpoint: &Endpoint,
    tls: Option<&TlsTarget>,
    within: Duration,
    source: &Source,
    head: &[u8],
) -> Result<BackEndStream, ConnectError> {
    let deadline = Instant::now() + within;
    let connected = tokio::time::timeout_at(deadline, async {
        let (host, port) = match endpoint {
            Endpoint::Unix(path) => {
                let mut stream = connect_unix(path).map_err(ConnectError::Socket)?;
                stream.write_all(head).await.map_err(ConnectError::Socket)?;
                return Ok(BackEndStream::Unix(stream));
            }
            Endpoint::Tcp(host, port) => (host, *port),
        };
        let mut stream = connect_tcp(host, port, deadline, within, source).await?;
        stream.write_all(head).await.map_err(ConnectError::Socket)?;
        let Some(tls) = tls else { return Ok(BackEndStream::Tcp(stream)) };
        let connector = TlsConnector::from(Arc::clone(&tls.config));
        let stream = connector.connect(tls.name.clone(), stream).await.map_err(ConnectError::Tls)?;
        Ok(BackEndStream::Tls(Box::new(stream)))
    });
    connected.await.unwrap_or(Err(ConnectError::Timeout(within)))
}

/// unix(7): connected at once, or `WouldBlock` where the listener's queue is full. The runtime has not heard of the socket
/// yet: what is written through it waits until it has.
fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    UnixStream::from_std(socket.into())
}

/// Whether the process, or the machine, has all files open that it may.
pub(super) fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::MFILE | Errno::NFILE))
}

/// The fault that no descriptor is left for a back end: a matter of load, and of one number.
pub(super) fn no_descriptor(told: String, error: ConnectError) -> Fault {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    Fault::new(Kind::Busy, format!("{told}: the open-file limit of {limit} is reached (LimitNOFILE)")).because(error)
}

async fn connect_tcp(
    host: &str,
    port: u16,
    deadline: Instant,
    within: Duration,
    source: &Source,
) -> Result<TcpStream, ConnectError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        let address = SocketAddr::new(ip, port);
        return one_of(host, [address].into_iter(), deadline, within, source, |_, _| ()).await;
    }
    let unresolved = |source: io::Error| ConnectError::Resolve { host: host.to_owned(), source };
    match source.name() {
        Some(name) => {
            let addresses = name.addresses().await.map_err(|told| unresolved(io::Error::other(&*told)))?;
            let all = addresses.iter().map(|ip| SocketAddr::new(ip, port));
            one_of(host, all, deadline, within, source, |address, ok| addresses.note(address.ip(), ok)).await
        }
        None => {
            let all: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(unresolved)?.collect();
            one_of(host, all.into_iter(), deadline, within, source, |_, _| ()).await
        }
    }
}

/// Every address in turn; what becomes of each is told to `note`. Each gets an equal share of the time that is left, so
/// that one which swallows packets leaves some for the next.
async fn one_of(
    host: &str,
    addresses: impl ExactSizeIterator<Item = SocketAddr>,
    deadline: Instant,
    within: Duration,
    source: &Source,
    note: impl Fn(SocketAddr, bool),
) -> Result<TcpStream, ConnectError> {
    let mut failure = None;
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let share = deadline.saturating_duration_since(Instant::now()) / left.max(1);
        left = left.saturating_sub(1);
        let error = match tokio::time::timeout(share, source.connect(address)).await {
            Ok(Ok(stream)) => {
                note(address, true);
                tune(&stream);
                return Ok(stream);
            }
            // Ours, and no word about the address; nor is what another says about it.
            Ok(Err(source)) if source::is_used_up(&source) => {
                // Without IPv6 the system has no address for ::1, and says the same: what 127.0.0.1 said counts.
                failure.get_or_insert(ConnectError::NoPort { peer: address, source });
                continue;
            }
            Ok(Err(error)) => ConnectError::Socket(error),
            Err(_) => ConnectError::Timeout(within),
        };
        note(address, false);
        if !matches!(failure, Some(ConnectError::NoPort { .. })) {
            failure = Some(error);
        }
    }
    Err(failure.unwrap_or_else(|| ConnectError::NoAddress(host.to_owned())))
}

/// Small writes go out at once, and a peer that vanished without a word is noticed within about a minute and a half.
/// A socket that refuses an option still works.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

impl BackEndStream {
    /// Whether the back end has neither closed nor said anything since the last read. One system call: the runtime
    /// may not have heard of the FIN yet.
    pub fn is_quiet(&self) -> bool {
        let mut byte = [0_u8; 1];
        let peeked = rustix::net::recv(self.fd(), &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }

    /// Whether the runtime knows of something to read, or of an end. Costs no system call; of what came since the worker
    /// last asked the system it knows nothing. Of TLS it says nothing: always true.
    pub(super) fn has_news(&self, cx: &mut Context<'_>) -> bool {
        match self {
            BackEndStream::Tcp(stream) => stream.poll_read_ready(cx).is_ready(),
            BackEndStream::Unix(stream) => stream.poll_read_ready(cx).is_ready(),
            BackEndStream::Tls(_) => true,
        }
    }

    /// The address at the other end; a unix socket has none.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        let stream = match self {
            BackEndStream::Tcp(stream) => stream,
            BackEndStream::Tls(stream) => stream.get_ref().0,
            BackEndStream::Unix(_) => return None,
        };
        stream.peer_addr().ok().map(|address| address.ip())
    }

    /// Whether the back end has closed, or the connection has failed, and nothing is left to read. One system call.
    pub fn has_ended(&self) -> bool {
        let mut byte = [0_u8; 1];
        match rustix::net::recv(self.fd(), &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, count)) => count == 0,
            Err(rustix::io::Errno::AGAIN) => false,
            Err(_) => true,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            BackEndStream::Tcp(stream) => stream.as_fd(),
            BackEndStream::Unix(stream) => stream.as_fd(),
            BackEndStream::Tls(stream) => stream.get_ref().0.as_fd(),
        }
    }
}

impl AsyncRead for BackEndStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            BackEndStream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            BackEndStream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            BackEndStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for BackEndStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            BackEndStream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            BackEndStream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            BackEndStream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            BackEndStream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            BackEndStream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            BackEndStream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            BackEndStream::Tcp(stream) => stream.is_write_vectored(),
            BackEndStream::Unix(stream) => stream.is_write_vectored(),
            BackEndStream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            BackEndStream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            BackEndStream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            BackEndStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            BackEndStream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            BackEndStream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            BackEndStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, UnixListener};

    const SOON: Duration = Duration::from_secs(5);

    async fn echo_once(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut buf = [0_u8; 4];
        stream.read_exact(&mut buf).await.unwrap();
        stream.write_all(&buf).await.unwrap();
    }

    #[tokio::test]
    async fn a_name_an_address_and_a_unix_socket_are_reached() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = tcp.local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let served = async {
            echo_once(tcp.accept().await.unwrap().0).await;
            echo_once(tcp.accept().await.unwrap().0).await;
            echo_once(unix.accept().await.unwrap().0).await;
        };
        let asked = async {
            // localhost may resolve to ::1 first, where nobody listens.
            for endpoint in
                [Endpoint::Tcp("localhost".into(), port), Endpoint::Tcp("127.0.0.1".into(), port), Endpoint::Unix(path)]
            {
                let mut stream = connect(&endpoint, None, SOON, &Source::default()).await.unwrap();
                stream.write_all(b"ping").await.unwrap();
                let mut buf = [0_u8; 4];
                stream.read_exact(&mut buf).await.unwrap();
                assert_eq!(&buf, b"ping");
            }
        };
        tokio::time::timeout(SOON, async { tokio::join!(served, asked) }).await.unwrap();
    }

    #[tokio::test]
    async fn a_handshake_that_never_answers_ends_at_the_deadline() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp("127.0.0.1".into(), tcp.local_addr().unwrap().port());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let tls = TlsTarget { config: Arc::new(config), name: ServerName::try_from("localhost").unwrap() };
        let started = Instant::now();
        let refused =
            connect(&endpoint, Some(&tls), Duration::from_millis(50), &Source::default()).await.err().unwrap();
        assert!(matches!(refused, ConnectError::Timeout(_)));
        assert!(started.elapsed() < SOON);
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_of_the_socket() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = gone.local_addr().unwrap().port();
        drop(gone);
        let refused =
            connect(&Endpoint::Tcp("127.0.0.1".into(), port), None, SOON, &Source::default()).await.err().unwrap();
        assert_eq!(refused.io().unwrap().kind(), io::ErrorKind::ConnectionRefused);
        let missing =
            connect(&Endpoint::Unix("/nonexistent/x.sock".into()), None, SOON, &Source::default()).await.err().unwrap();
        assert_eq!(missing.io().unwrap().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_stream_is_quiet_until_the_other_end_speaks_or_closes() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp("127.0.0.1".into(), tcp.local_addr().unwrap().port());
        let stream = connect(&endpoint, None, SOON, &Source::default()).await.unwrap();
        let (other, _) = tcp.accept().await.unwrap();
        assert!(stream.is_quiet());
        drop(other);
        let BackEndStream::Tcp(tcp) = &stream else { panic!("not TCP") };
        tokio::time::timeout(SOON, tcp.readable()).await.unwrap().unwrap();
        assert!(!stream.is_quiet());
    }
}
