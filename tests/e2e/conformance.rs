//! The cases of the Autobahn test suite, played against ws for Node twice: directly, and through the proxy. Every byte
//! that the client gets, and how it ends, must be the same: who sits between changes nothing.
//!
//! The suite itself is Python 2; the cases are written anew in `cases.rs`, under its numbers.
//! `DOORWARD_FULL=1` plays the large messages in their full size.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::harness::{Node, Proxy, World, client_config};

mod cases;

use cases::Case;

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// An open socket, and the extensions that were agreed on.
struct Open {
    stream: Box<dyn Stream>,
    extensions: Option<String>,
}

/// How a socket is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Http1,
    /// RFC 8441.
    Http2,
}

struct Stack {
    world: World,
    node: Node,
    proxy: Proxy,
}

impl Stack {
    /// The echo server with the proxy in front, which has to watch frames, with rules that nobody breaks, if asked to.
    fn start(rules: &str) -> Stack {
        let world = World::new();
        let node = Node::serve(&world, "ws-echo.js", &[]);
        let to = node.url();
        // One thread plays eight cases at a time, and may be late with any of them where others keep the machine busy.
        let proxy = world.proxy(&format!(
            "[timeouts]\nheader = \"1m\"\n[site.app]\nhosts = [\"app.test\"]\nupstream = {to:?}\n[site.app.websocket]\npreset = \"any\"\nto = {to:?}\n{rules}\n"
        ));
        Stack { world, node, proxy }
    }

    async fn open(&self, way: Way, offer: &str) -> Open {
        match way {
            Way::Direct => handshake(TcpStream::connect(("127.0.0.1", self.node.port)).await.unwrap(), offer).await,
            Way::Http1 => handshake(self.tls(&[]).await, offer).await,
            Way::Http2 => connect(self.tls(&["h2"]).await, offer).await,
        }
    }

    async fn tls(&self, alpn: &[&str]) -> TlsStream<TcpStream> {
        let mut config = client_config(&self.world);
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let tcp = TcpStream::connect(("127.0.0.1", self.proxy.https())).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let name = ServerName::try_from("app.test").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }
}

/// RFC 6455, section 4.1.
async fn handshake<S: Stream + 'static>(mut stream: S, offer: &str) -> Open {
    let offer = if offer.is_empty() { String::new() } else { format!("Sec-WebSocket-Extensions: {offer}\r\n") };
    let request = format!(
        "GET /echo HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offer}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    if !head.starts_with("HTTP/1.1 101 ") {
        // A refused handshake has nothing to say; its status line takes the place of the extensions.
        return Open { stream: Box::new(tokio::io::empty()), extensions: head.lines().next().map(str::to_owned) };
    }
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-extensions").then(|| value.trim().to_owned())
    };
    Open { stream: Box::new(stream), extensions: head.lines().find_map(field) }
}

/// RFC 8441, section 4.
async fn connect(tls: TlsStream<TcpStream>, offer: &str) -> Open {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    // Behind an answer the server's SETTINGS are known.
    let plain = Request::get("https://app.test/plain").body(Empty::<Bytes>::new()).unwrap();
    sender.send_request(plain).await.unwrap();
    let mut request = Request::builder().method(Method::CONNECT).uri("https://app.test/echo").version(Version::HTTP_2);
    request = request.extension(Protocol::from_static("websocket")).header("sec-websocket-version", "13");
    if !offer.is_empty() {
        request = request.header("sec-websocket-extensions", offer);
    }
    let mut response = sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
    if response.status() != StatusCode::OK {
        let line = format!("HTTP/1.1 {}", response.status());
        return Open { stream: Box::new(tokio::io::empty()), extensions: Some(line) };
    }
    let extensions = response.headers().get("sec-websocket-extensions").map(|value| value.to_str().unwrap().to_owned());
    let stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    Open { stream: Box::new(Kept { stream, _sender: sender }), extensions }
}

/// A stream of a connection that lives as long.
struct Kept<S> {
    stream: S,
    _sender: http2::SendRequest<Empty<Bytes>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Kept<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Kept<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What a client got: every byte, and whether the other side ended.
#[derive(PartialEq, Eq)]
struct Got {
    extensions: Option<String>,
    bytes: Vec<u8>,
    ended: bool,
}

impl std::fmt::Debug for Got {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = &self.bytes[..self.bytes.len().min(200)];
        write!(f, "{} bytes {bytes:02x?}, ended {}, {:?}", self.bytes.len(), self.ended, self.extensions)
    }
}

/// How long a whole case may take. A case in which nobody closes takes as long as `QUIET`.
const PATIENCE: Duration = Duration::from_secs(60);

/// After which silence a side that has not ended is taken for one that does not.
const QUIET: Duration = Duration::from_secs(10);

/// Writes what the case says, reads until the other side ends. Whoever gets a Close frame ends its own side, as an
/// endpoint that has closed does.
async fn play(case: &Case, open: Open) -> Got {
    let Open { stream, extensions } = open;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (closed, hear_closed) = oneshot::channel::<()>();
    let write = async {
        for bytes in &case.script {
            for piece in bytes.chunks(case.chop) {
                if writer.write_all(piece).await.is_err() || writer.flush().await.is_err() {
                    return;
                }
                if case.chop < 100 {
                    tokio::task::yield_now().await;
                }
            }
        }
        let _ = timeout(QUIET, hear_closed).await;
        let _ = writer.shutdown().await;
    };
    let read = async {
        let mut closed = Some(closed);
        let (mut bytes, mut walked) = (Vec::new(), 0);
        let mut piece = vec![0; 64 * 1024];
        loop {
            match timeout(QUIET * 2, reader.read(&mut piece)).await {
                Err(_) => return (bytes, false),
                Ok(Ok(0) | Err(_)) => return (bytes, true),
                Ok(Ok(count)) => bytes.extend(&piece[..count]),
            }
            while let Some((first, length)) = next_frame(&bytes[walked..]) {
                walked += length;
                if first & 0x0F == 8 {
                    closed.take().map(|closed| closed.send(()));
                }
            }
        }
    };
    let ((), (bytes, ended)) = timeout(PATIENCE, async { tokio::join!(write, read) }).await.expect("a case ends");
    Got { extensions, bytes, ended }
}

/// The first byte and the whole length of a server's frame at the front of `bytes`, if all of it is there.
fn next_frame(bytes: &[u8]) -> Option<(u8, usize)> {
    let (first, length) = (*bytes.first()?, *bytes.get(1)?);
    let (head, length) = match length {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap())).unwrap()),
        length => (2, usize::from(length)),
    };
    (bytes.len() >= head + length).then_some((first, head + length))
}

/// Plays all cases of some sections, a few at a time, and says which differ.
fn compare(rules: &str, way: Way, cases: Vec<Case>) {
    let stack = Stack::start(rules);
    let count = cases.len();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut different = Vec::new();
    runtime.block_on(async {
        for some in cases.chunks(8) {
            let stack = &stack;
            let played = some.iter().map(|case| async move {
                let direct = play(case, stack.open(Way::Direct, case.offer).await).await;
                let through = play(case, stack.open(way, case.offer).await).await;
                (case, direct, through)
            });
            for (case, direct, through) in futures_util::future::join_all(played).await {
                assert!(direct.ended, "{}: ws itself does not end: {direct:?}", case.name);
                if direct != through {
                    different.push(format!("{}:\n  directly {direct:?}\n  {way:?}  {through:?}", case.name));
                }
                case.check(&direct.bytes);
            }
        }
    });
    assert!(different.is_empty(), "{} of {count} cases differ:\n{}", different.len(), different.join("\n"));
}

/// Rules that watch every frame and that no case breaks.
const WATCHED: &str = "max_message = \"64MiB\"\nmessage_rate = \"1000000/s\"\nping_interval = \"30s\"\n";

#[test]
fn framing_pings_reserved_bits_opcodes_and_fragments_are_as_without_a_proxy() {
    compare("", Way::Http1, cases::framing());
}

#[test]
fn framing_pings_reserved_bits_opcodes_and_fragments_are_as_without_a_proxy_over_http2() {
    compare("", Way::Http2, cases::framing());
}

#[test]
fn text_that_is_utf8_and_text_that_is_not_are_as_without_a_proxy() {
    compare("", Way::Http1, cases::utf8());
}

#[test]
fn text_that_is_utf8_and_text_that_is_not_are_as_without_a_proxy_over_http2() {
    compare("", Way::Http2, cases::utf8());
}

#[test]
fn closing_is_as_without_a_proxy() {
    compare("", Way::Http1, cases::closing());
}

#[test]
fn closing_is_as_without_a_proxy_over_http2() {
    compare("", Way::Http2, cases::closing());
}

#[test]
fn large_messages_are_as_without_a_proxy() {
    compare("", Way::Http1, cases::limits());
}

#[test]
fn large_messages_are_as_without_a_proxy_over_http2() {
    compare("", Way::Http2, cases::limits());
}

#[test]
fn compressed_messages_are_as_without_a_proxy() {
    compare("", Way::Http1, cases::compression(7));
}

#[test]
fn compressed_messages_are_as_without_a_proxy_over_http2() {
    compare("", Way::Http2, cases::compression(7));
}

#[test]
fn rules_that_nobody_breaks_change_nothing() {
    // What is not WebSocket is closed by the rules themselves, as it is by ws; only the rest can be the same.
    let all = [cases::framing(), cases::utf8(), cases::closing(), cases::compression(97)].concat();
    compare("ping_interval = \"30s\"\n", Way::Http1, all);
    let valid = [cases::utf8(), cases::limits(), cases::compression(97)].concat();
    compare(WATCHED, Way::Http1, valid);
}
