//! HTTP/2 over TLS, in frames made by hand: what a well-behaved library would never send.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::back_end::BackEnd;
use crate::edge::{Edge, connect, eventually, send};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

type Fields<'a> = Vec<(&'a str, &'a str)>;

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// A whole answer: its status, and the bytes of its content.
    Answer(u16, usize),
    /// The stream was reset, with so many bytes of content before.
    Reset(usize),
    /// The connection ended.
    Gone,
}

struct Client(StreamOwned<ClientConnection, TcpStream>);

impl Client {
    fn connect(edge: &Edge) -> Client {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("a.test").expect("a name");
        let session = ClientConnection::new(Arc::new(config), name).expect("a session");
        let mut client = Client(StreamOwned::new(session, connect(edge.https)));
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        client.send(&frame(SETTINGS, 0, 0, &[]));
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        send(&mut self.0, bytes);
    }

    fn ask(&mut self, stream: u32, fields: &Fields<'_>, body: Option<&[u8]>) {
        let end = if body.is_some() { 0 } else { END_STREAM };
        let mut bytes = frame(HEADERS, END_HEADERS | end, stream, &block(fields));
        if let Some(body) = body {
            bytes.extend(frame(DATA, END_STREAM, stream, body));
        }
        self.send(&bytes);
    }

    /// Asks, leaves its own side open, and waits for the 200.
    fn open(&mut self, stream: u32, fields: &Fields<'_>) {
        self.send(&frame(HEADERS, END_HEADERS, stream, &block(fields)));
        while let Some((kind, flags, id, payload)) = self.frame() {
            if kind == HEADERS && id == stream {
                assert_eq!((read_status(&payload), flags & END_STREAM), (200, 0));
                return;
            }
        }
        panic!("the connection ended");
    }

    /// Reads until `stream` or the connection has ended.
    fn end(&mut self, stream: u32) -> End {
        let (mut status, mut content) = (0, 0);
        while let Some((kind, flags, id, payload)) = self.frame() {
            match kind {
                GOAWAY => return End::Gone,
                RESET if id == stream => return End::Reset(content),
                HEADERS if id == stream => status = read_status(&payload),
                DATA if id == stream => content += payload.len(),
                _ => {}
            }
            if id == stream && flags & END_STREAM != 0 && (kind == HEADERS || kind == DATA) {
                return End::Answer(status, content);
            }
        }
        End::Gone
    }

    fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// RFC 7541, section 6.2.2: literal fields with new names, nothing compressed, so that any byte can stand anywhere.
fn block(fields: &Fields<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            let mut rest = text.len();
            if rest < 127 {
                bytes.push(u8::try_from(rest).expect("short"));
            } else {
                bytes.push(127);
                rest -= 127;
                while rest >= 128 {
                    bytes.push(u8::try_from(rest % 128 + 128).expect("a byte"));
                    rest /= 128;
                }
                bytes.push(u8::try_from(rest).expect("a byte"));
            }
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// The status, which comes first: an entry of the static table, or a literal of Huffman-coded digits.
fn read_status(block: &[u8]) -> u16 {
    let fixed = [200, 204, 206, 304, 400, 404, 500];
    if let Some(status) = block[0].checked_sub(0x88).and_then(|index| fixed.get(usize::from(index))) {
        return *status;
    }
    assert_eq!(block[0], 0x48, "a literal :status in {block:?}");
    let length = usize::from(block[1] & 0x7f);
    let bits: Vec<u8> = block[2..2 + length].iter().flat_map(|b| (0..8).rev().map(move |n| b >> n & 1)).collect();
    let (mut at, mut status) = (0, 0);
    let take = |at: usize, n: usize| bits[at..at + n].iter().fold(0u16, |value, bit| value << 1 | u16::from(*bit));
    // RFC 7541, appendix B: '0' to '2' have five bits, '3' to '9' six from 011001 on.
    for _ in 0..3 {
        let short = take(at, 5);
        let digit = if short <= 2 { short } else { take(at, 6) - 0b01_1001 + 3 };
        at += if short <= 2 { 5 } else { 6 };
        status = status * 10 + digit;
    }
    status
}

/// The fields of a request to `path` with `more` behind them.
fn request<'a>(method: &'a str, path: &'a str, more: &[(&'a str, &'a str)]) -> Fields<'a> {
    let mut fields = vec![(":method", method), (":scheme", "https"), (":authority", "a.test"), (":path", path)];
    fields.extend(more);
    fields
}

/// An extended CONNECT (RFC 8441, section 4).
fn extended<'a>(path: &'a str, protocol: &'a str) -> Fields<'a> {
    let mut fields = request("CONNECT", path, &[]);
    fields.insert(1, (":protocol", protocol));
    fields
}

fn with<'a>(name: &str, value: Option<&'a str>) -> Fields<'a> {
    let mut fields = request("GET", "/x", &[]);
    match value {
        Some(value) => fields.iter_mut().filter(|field| field.0 == name).for_each(|field| field.1 = value),
        None => fields.retain(|field| field.0 != name),
    }
    fields
}

#[test]
fn malformed_requests_are_never_passed_on() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut cases: Vec<(Fields<'_>, Option<&[u8]>)> = Vec::new();
    for length in ["0", "3", "9", "+5", "5, 5", "-1", ""] {
        cases.push((request("POST", "/x", &[("content-length", length)]), Some(b"hello")));
    }
    cases.push((request("POST", "/x", &[("content-length", "5"), ("content-length", "6")]), Some(b"hello")));
    cases.push((request("POST", "/x", &[("content-length", "5")]), None));
    cases.push((request("POST", "/x", &[("transfer-encoding", "chunked")]), Some(b"0\r\n\r\n")));
    for field in [
        ("te", "gzip"),
        ("connection", "x"),
        ("keep-alive", "x"),
        ("proxy-connection", "x"),
        ("upgrade", "x"),
        ("x", "a\r\nb: c"),
        ("x", "a\nb"),
        ("x", "a\0b"),
        ("a:", "v"),
        ("a\r\nb", "v"),
        ("a b", "v"),
        ("Abc", "v"),
        ("", "v"),
        ("host", "b.test"),
        (":path", "/y"),
        (":unknown", "v"),
        (":status", "200"),
        ("expect", "y"),
    ] {
        cases.push((request("GET", "/x", &[field]), None));
    }
    cases.push((request("GET", "/x", &[("host", "a.test"), ("host", "a.test")]), None));
    for (name, value) in [
        (":method", "GET /evil HTTP/1.1\r\nHost: x"),
        (":method", ""),
        (":method", "TRACE"),
        (":method", "GE T"),
        (":path", "/x HTTP/1.1\r\nX: y"),
        (":path", ""),
        (":path", "x"),
        (":path", "/a b"),
        (":path", "*"),
        (":path", "/a\0"),
        (":path", "/.."),
        (":path", "/%2e%2e/"),
        (":path", "/a\\b"),
        (":path", "/a%2fb"),
        (":path", "http://b.test/"),
        (":scheme", "ftp"),
        (":scheme", "h ttp"),
        (":scheme", "https://a.test/x?"),
        (":authority", "a.test\r\nX: y"),
        (":authority", "evil@a.test"),
        (":authority", "a.test/x"),
        (":authority", ""),
        (":authority", "a.test:99999"),
        (":authority", "a.test,b.test"),
        (":authority", "other.test"),
    ] {
        cases.push((with(name, Some(value)), None));
    }
    for name in [":method", ":scheme", ":authority", ":path"] {
        cases.push((with(name, None), None));
    }
    cases.push((vec![(":method", "CONNECT"), (":authority", "a.test:443")], None));
    for protocol in ["unknown", "connect-udp", "websocket2", " websocket", "websocket, h2c", "", "h2c", "web socket"] {
        cases.push((extended("/no-socket", protocol), None));
    }
    for missing in [":path", ":scheme", ":authority"] {
        let mut fields = extended("/no-socket", "websocket");
        fields.retain(|field| field.0 != missing);
        cases.push((fields, None));
    }
    for (name, value) in [
        (":path", "no-socket"),
        (":path", "*"),
        (":path", ""),
        (":path", "/no-socket/.."),
        (":scheme", "wss"),
        (":scheme", "ftp"),
        (":authority", "evil@a.test"),
        (":authority", "other.test"),
        (":method", "GET"),
        (":method", "POST"),
    ] {
        let mut fields = extended("/no-socket", "websocket");
        fields.iter_mut().filter(|field| field.0 == name).for_each(|field| field.1 = value);
        cases.push((fields, None));
    }
    for field in [
        (":protocol", "websocket"),
        ("sec-websocket-version", "8"),
        ("content-length", "5"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("host", "b.test"),
    ] {
        let mut fields = extended("/no-socket", "websocket");
        fields.push(field);
        cases.push((fields, Some(b"hello")));
    }
    let mut late = request("CONNECT", "/no-socket", &[("x", "y")]);
    late.push((":protocol", "websocket"));
    cases.push((late, None));
    // Where no sockets go there is nothing to fall back to.
    cases.push((extended("/x", "websocket"), None));
    cases.push((extended("/files/a.txt", "websocket"), None));
    cases.push((extended("/moved/x", "unknown"), None));
    for (fields, body) in cases {
        let mut client = Client::connect(&edge);
        client.ask(1, &fields, body);
        let end = client.end(1);
        let refused = matches!(end, End::Reset(0) | End::Gone | End::Answer(400..=499 | 501, _));
        assert!(refused, "{fields:?}: {end:?}");
        if end != End::Gone {
            client.ask(3, &request("GET", "/canary", &[]), None);
            assert_eq!(client.end(3), End::Answer(200, 2), "behind {fields:?}");
        }
        let seen = back_end.take();
        assert!(seen.iter().all(|seen| seen.head.starts_with("GET /canary ")), "{fields:?}: {seen:?}");
    }
}

#[test]
fn a_body_is_framed_once_and_cookie_crumbs_are_joined() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut client = Client::connect(&edge);
    client.ask(1, &request("POST", "/x", &[("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")]), Some(b"hello"));
    assert_eq!(client.end(1), End::Answer(200, 2));
    client.ask(3, &request("POST", "/x", &[("content-length", "5")]), Some(b"hello"));
    assert_eq!(client.end(3), End::Answer(200, 2));
    let seen = back_end.take();
    assert!(seen[0].head.contains("cookie: a=1; b=2\r\n") && !seen[0].head.contains("te: "), "{seen:?}");
    assert_eq!((seen[0].body.as_str(), seen[1].body.as_str()), ("5\r\nhello\r\n0\r\n\r\n", "hello"));
    assert!(!seen[1].head.contains("transfer-encoding"), "{seen:?}");
}

#[test]
fn answers_to_head_and_without_content_have_no_data() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut client = Client::connect(&edge);
    for (stream, method, path, status) in [
        (1, "HEAD", "/files/none", 404),
        (3, "HEAD", "/a%2fb", 400),
        (5, "HEAD", "/files/a.txt", 200),
        (7, "HEAD", "/x", 200),
        (9, "GET", "/no-content", 204),
        (11, "GET", "/moved/x", 301),
    ] {
        // Literal statuses go into a table that this client does not keep: a new connection each.
        if status != 200 {
            client = Client::connect(&edge);
        }
        client.ask(stream, &request(method, path, &[]), None);
        assert_eq!(client.end(stream), End::Answer(status, 0), "{method} {path}");
    }
}

#[test]
fn a_cut_answer_is_reset_and_a_reset_frees_the_back_end() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut client = Client::connect(&edge);
    client.ask(1, &request("GET", "/cut-length", &[]), None);
    assert_eq!(client.end(1), End::Reset(5));
    client.ask(3, &request("GET", "/endless", &[]), None);
    client.ask(5, &request("GET", "/silent", &[]), None);
    eventually("both are asked", || back_end.open() >= 2);
    for stream in [3, 5] {
        client.send(&frame(RESET, 0, stream, &8u32.to_be_bytes()));
    }
    eventually("both back ends are let go", || back_end.open() == 0);
    // What was under way has used the connection's window up.
    client.send(&frame(WINDOW_UPDATE, 0, 0, &0x10_0000u32.to_be_bytes()));
    client.ask(7, &request("GET", "/x", &[]), None);
    assert_eq!(client.end(7), End::Answer(200, 2));
}

#[test]
fn a_client_that_grants_no_window_lets_go_of_the_back_end() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[timeouts]\nwrite = \"1s\"");
    let mut client = Client::connect(&edge);
    // SETTINGS_INITIAL_WINDOW_SIZE = 0.
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    client.ask(1, &request("GET", "/endless", &[]), None);
    eventually("the back end is asked", || back_end.open() >= 1);
    eventually("the back end is let go", || back_end.open() == 0);
    assert_eq!(client.end(1), End::Reset(0));
}

#[test]
fn a_back_ends_no_to_a_socket_is_passed_on() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    // The client need not have seen SETTINGS: nobody can tell (RFC 8441, section 3).
    for protocol in ["websocket", "WebSocket"] {
        let mut client = Client::connect(&edge);
        client.ask(1, &extended("/no-socket", protocol), None);
        assert_eq!(client.end(1), End::Answer(403, 2), "{protocol}");
        client.ask(3, &request("GET", "/canary", &[]), None);
        assert_eq!(client.end(3), End::Answer(200, 2));
        let seen = back_end.take();
        assert!(seen[0].head.starts_with("GET /no-socket HTTP/1.1\r\n"), "{seen:?}");
        assert!(seen[0].head.contains("\r\nupgrade: websocket\r\n"), "{seen:?}");
        assert!(!seen[0].head.contains("protocol"), "{seen:?}");
    }
}

#[test]
fn a_reset_ends_a_tunnel_at_once_whatever_its_back_end_does() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[log]\naccess = \"stderr\"");
    for code in [8u32, 0, 1] {
        let mut client = Client::connect(&edge);
        client.open(1, &extended("/socket/stubborn", "websocket"));
        client.open(3, &extended("/socket/stubborn", "websocket"));
        client.send(&frame(RESET, 0, 1, &code.to_be_bytes()));
        let begun = Instant::now();
        edge.wait_for("ws=close");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?} after code {code}", begun.elapsed());
        // The end of the connection is the end of the other.
        drop(client);
        edge.wait_for("ws=close");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?} after the connection", begun.elapsed());
    }
}

#[test]
fn a_tunnel_whose_client_grants_no_window_is_given_up_and_reset() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[timeouts]\nwrite = \"1s\"\n[log]\naccess = \"stderr\"");
    let mut client = Client::connect(&edge);
    // SETTINGS_INITIAL_WINDOW_SIZE = 0.
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    client.open(1, &extended("/socket/flood", "websocket"));
    edge.wait_for("ws=close");
    eventually("the back end is let go", || back_end.open() == 0);
    assert_eq!(client.end(1), End::Reset(0));
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]));
    client.ask(3, &request("GET", "/x", &[]), None);
    assert_eq!(client.end(3), End::Answer(200, 2));
}

/// The head of a client's binary frame of `length` bytes; its mask is zeros.
fn socket_frame(length: u16) -> Vec<u8> {
    [&[0x82, 0xfe][..], &length.to_be_bytes(), &[0; 4]].concat()
}

#[test]
fn a_burst_of_tiny_data_frames_goes_through_and_the_connection_lives() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut client = Client::connect(&edge);
    for stream in [1, 3] {
        client.open(stream, &extended("/socket/echo", "websocket"));
    }
    // 2 × 20,000 frames of one byte: at a time, and each behind one of the other stream.
    let said = [socket_frame(19_992), vec![7; 19_992]].concat();
    let frames = said.iter().flat_map(|byte| [frame(DATA, 0, 1, &[*byte]), frame(DATA, 0, 3, &[*byte])]);
    client.send(&frames.flatten().collect::<Vec<u8>>());
    let mut heard = [Vec::new(), Vec::new()];
    while heard.iter().any(|heard| heard.len() < said.len()) {
        let (kind, _, stream, payload) = client.frame().expect("the connection lives");
        if kind == DATA {
            heard[usize::from(stream == 3)].extend(payload);
        }
    }
    assert!(heard.iter().all(|heard| *heard == said));
    client.ask(5, &request("GET", "/x", &[]), None);
    assert_eq!(client.end(5), End::Answer(200, 2));
}

#[test]
fn frames_that_ask_for_nothing_end_the_connection_of_a_socket() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[log]\nlevel = \"debug\"");
    for (flood, most, why) in [
        (frame(PING, 0, 0, &[0; 8]), 10_000, "control frames"),
        (frame(PING, ACK, 0, &[0; 8]), 10_000, "control frames"),
        (frame(SETTINGS, 0, 0, &[]), 10_000, "control frames"),
        (frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()), 10_000, "control frames"),
        (frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()), 10_000, "control frames"),
        (frame(PRIORITY, 0, 1, &[0; 5]), 10_000, "control frames"),
        (frame(DATA, 0, 1, b""), 100, "excessive load"),
    ] {
        let mut client = Client::connect(&edge);
        client.open(1, &extended("/socket/echo", "websocket"));
        client.send(&flood.repeat(most + 1));
        assert_eq!(client.end(1), End::Gone, "{flood:?}");
        let line = edge.wait_for("connection ended");
        assert!(line.contains(why), "{flood:?}: {line}");
    }
}

#[test]
fn a_client_may_grant_window_for_each_tiny_frame_that_it_gets() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut client = Client::connect(&edge);
    client.open(1, &extended("/socket/echo", "websocket"));
    client.send(&frame(DATA, 0, 1, &socket_frame(8000)));
    let mut heard = 0;
    // One byte is under way at a time, so that each comes back in a frame of its own.
    let grants = [0, 1].map(|stream| frame(WINDOW_UPDATE, 0, stream, &1u32.to_be_bytes())).concat();
    while heard < 8000 {
        let (kind, _, _, payload) = client.frame().expect("the connection lives");
        if kind == DATA {
            heard += payload.len();
            client.send(&[grants.clone(), frame(DATA, 0, 1, b"x")].concat());
        }
    }
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
