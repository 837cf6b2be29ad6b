//! A request that is believed can be said to a back end in one way only: one method, one target, one host, no framing
//! and nothing that ends here; and what a back end is told reads as the same request again.

use std::net::SocketAddr;

use doorward::base::host::Authority;
use doorward::base::network::Networks;
use doorward::http::guard::{Guard, Place};
use doorward::http::path::CanonicalPath;
use doorward::http::request::{Arrival, ClientRequest, HeadLimits, Scheme, Trust, UpstreamRequest};
use http::{HeaderName, Method, Request, Version, header};

const LIMITS: HeadLimits = HeadLimits { max_uri: 8192, max_headers: 40, max_header_size: 32_768 };

pub fn check(input: &[u8]) {
    let Some(read) = read(input) else { return };
    let (method, target, authority) = (read.method.clone(), read.target(), read.authority.clone());
    assert!(![Method::CONNECT, Method::TRACE].contains(&method) && method.as_str() != "TRACK");
    assert!(read.client.trusted || read.client.address == read.client.arrival.peer.ip());
    let is_socket = read.websocket;
    if is_socket && read.version == Version::HTTP_11 {
        check_guard(input, &read);
    }
    let sent = read.forward(None, input.first().is_some_and(|flags| flags & 8 > 0));
    assert_eq!((sent.target(), &sent.method), (target.clone(), &method));
    assert!(target.starts_with('/') && target.bytes().all(|byte| byte > b' ' && byte != 0x7f), "{target:?}");
    assert_eq!(CanonicalPath::parse(sent.path.encoded()).as_ref(), Ok(&sent.path));
    assert_eq!(Authority::parse(&authority.to_string()).as_ref(), Ok(&authority));
    check_fields(&sent);
    assert!(is_socket || !sent.websocket);
    if !sent.websocket {
        assert!(!sent.headers.keys().any(|name| name.as_str() == "sec-websocket-key"));
        read_again(&sent, &target, &authority);
    }
}

fn check_fields(sent: &UpstreamRequest) {
    const ENDS_HERE: [&str; 13] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "expect",
        "proxy",
        "x-original-url",
        "x-rewrite-url",
        "proxy-authorization",
    ];
    for name in sent.headers.keys().map(HeaderName::as_str) {
        assert!(!ENDS_HERE.contains(&name), "{name} went on");
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{name}");
    }
    for name in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "cookie"] {
        let values = sent.headers.get_all(name).iter().count();
        let is_ours = name != "cookie";
        assert!(values <= 1 && (values == 1 || !is_ours) || sent.client.trusted, "{name}: {values}");
    }
    if !sent.client.trusted {
        let claimed = sent.headers["x-forwarded-for"].to_str().expect("our own");
        assert_eq!(claimed, sent.client.arrival.peer.ip().to_string());
    }
}

/// What follows a handshake is held back, so that it can still be a request when the handshake is refused.
fn check_guard(input: &[u8], read: &ClientRequest) {
    let mut head = format!("GET {} HTTP/1.1\r\n", read.target()).into_bytes();
    let fields = super::fields(&input[input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len())..]);
    for (name, value) in &fields {
        head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    let mut guard = Guard::new(LIMITS);
    if guard.inspect(&head).refusal.is_none() {
        assert_eq!(guard.place(), Place::Handshake);
    }
}

/// The back end, if it is one of us, reads what was meant.
fn read_again(sent: &UpstreamRequest, target: &str, authority: &Authority) {
    let mut builder = Request::builder().method(sent.method.clone()).uri(target);
    let headers = builder.headers_mut().expect("a target that was read is a target");
    headers.extend(sent.headers.clone());
    headers.insert(header::HOST, authority.to_string().parse().expect("a host that was read is a value"));
    let head = builder.body(()).expect("a request").into_parts().0;
    let limits = HeadLimits { max_headers: 60, max_header_size: 65_536, ..LIMITS };
    let again = ClientRequest::read(head, None, arrival(sent.client.arrival.peer), &trust(), limits)
        .unwrap_or_else(|fault| panic!("{fault:?}"));
    assert_eq!((again.target().as_str(), &again.authority, again.websocket), (target, authority, false));
}

fn trust() -> Trust {
    let proxies = Networks(vec!["10.0.0.0/8".parse().expect("a network")]);
    let cloudflare = Networks(vec!["10.1.0.0/16".parse().expect("a network")]);
    Trust { proxies, header: HeaderName::from_static("x-forwarded-for"), cloudflare }
}

fn arrival(peer: SocketAddr) -> Arrival {
    Arrival { peer, local: "192.0.2.1:443".parse().expect("an address"), scheme: Scheme::Https, unnamed: false }
}

/// A byte of flags; then a method and a target in a line, and the fields, a line each.
pub fn read(input: &[u8]) -> Option<ClientRequest> {
    let (flags, rest) = input.split_first()?;
    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    let (line, fields) = rest.split_at(end);
    let (method, target) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let version = [Version::HTTP_11, Version::HTTP_2, Version::HTTP_10, Version::HTTP_11][usize::from(flags & 3)];
    let mut builder = Request::builder().method(method).uri(target).version(version);
    *builder.headers_mut()? = super::fields(fields);
    let head = builder.body(()).ok()?.into_parts().0;
    let peer = if flags & 4 > 0 { "10.0.0.1:5000" } else { "192.0.2.7:5000" };
    let protocol = [None, Some("websocket"), Some("connect-udp"), None][usize::from(flags >> 6)];
    ClientRequest::read(head, protocol, arrival(peer.parse().expect("an address")), &trust(), LIMITS).ok()
}
