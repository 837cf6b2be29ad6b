//! A request that may be believed, and one that a back end may get. `read` is the only way to the first, `forward`
//! the only way from it to the second: no check and no stripping can be forgotten.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header, request};

use crate::base::fault::{Fault, Kind};
use crate::base::host::{Authority, Host};
use crate::base::network::Networks;
use crate::http::fields::{check_fields, check_size, trim};
use crate::http::path::CanonicalPath;
use crate::http::{forwarded, forwarded_field, hop};

/// How the client reached us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// A plain listener.
    Http,
    /// A TLS listener.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// 80 or 443.
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// What the connection itself says about a request.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The other end of the TCP connection.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// TLS or not.
    pub scheme: Scheme,
    /// Whether the other end relays somebody whom it cannot name: what it is trusted to say, it has not said.
    pub unnamed: bool,
}

/// Whose word about the client counts, and in which field it stands.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Peers that are believed.
    pub proxies: Networks,
    /// The field with the client's address, lower case.
    pub header: HeaderName,
    /// Of whom `CF-Connecting-IP` is believed, as far as they are among `proxies`.
    pub cloudflare: Networks,
}

/// The limits that a head is held to. The HTTP/1.1 guard holds the same ones before hyper reads.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Bytes of the target.
    pub max_uri: usize,
    /// Fields.
    pub max_headers: usize,
    /// Bytes of the whole head.
    pub max_header_size: usize,
}

/// Who asks, and how: known once [`ClientRequest::read`] has decided whom to believe.
#[derive(Debug, Clone)]
pub struct Client {
    /// The client's address: the peer's, unless a trusted proxy names another.
    pub address: IpAddr,
    /// The connection's own facts.
    pub arrival: Arrival,
    /// The scheme that the client used: the connection's, unless a trusted proxy names another.
    pub scheme: Scheme,
    /// Whether the peer is a trusted proxy.
    pub trusted: bool,
}

/// A request that has passed every check on framing, target, host and fields.
#[derive(Debug)]
pub struct ClientRequest {
    /// The method; never CONNECT, TRACE or TRACK. A WebSocket over HTTP/2 is a GET, as it is on HTTP/1.1.
    pub method: Method,
    /// The version that the client spoke.
    pub version: Version,
    /// The host and port that were asked for.
    pub authority: Authority,
    /// The path, canonical.
    pub path: CanonicalPath,
    /// The query as it came, without `?`.
    pub query: Option<String>,
    /// The fields, hop-by-hop ones, doubtful names and untrusted claims removed.
    pub headers: HeaderMap,
    /// Whether this is a WebSocket handshake: of RFC 6455 on HTTP/1.1, of RFC 8441 on HTTP/2.
    pub websocket: bool,
    /// Who asks.
    pub client: Client,
}

/// What a back end gets: a method, a target and fields that are safe to write out. The body travels beside it.
#[derive(Debug)]
pub struct UpstreamRequest {
    /// The method.
    pub method: Method,
    /// The path that the back end sees.
    pub path: CanonicalPath,
    /// The path before a prefix was stripped.
    pub original: CanonicalPath,
    /// The query, without `?`.
    pub query: Option<String>,
    /// The fields, forwarding fields set, no framing field.
    pub headers: HeaderMap,
    /// The host and port that the client asked for.
    pub authority: Authority,
    /// The version that the client spoke.
    pub version: Version,
    /// Whether a WebSocket handshake is passed on.
    pub websocket: bool,
    /// Who asks.
    pub client: Client,
    /// The user who has signed in with a password, as the password file has the name.
    pub user: Option<Arc<[u8]>>,
    /// What a CGI program takes for the server's name, where that is not the host that the client asked for.
    pub server_name: Option<Host>,
}

impl ClientRequest {
    /// Reads what hyper parsed. Everything that is ambiguous ends here. `protocol` is the value of `:protocol`, which
    /// stands in no field (RFC 8441, section 4).
    pub fn read(
        head: request::Parts,
        protocol: Option<&str>,
        arrival: Arrival,
        trust: &Trust,
        limits: HeadLimits,
    ) -> Result<ClientRequest, Fault> {
        let request::Parts { mut method, uri, version, mut headers, .. } = head;
        check_method(&method, &uri, protocol)?;
        if version == Version::HTTP_2 {
            trim(&mut headers);
        }
        check_size(&uri, &headers, limits)?;
        check_fields(&headers)?;
        let authority = read_authority(&uri, &headers, version)?;
        check_expectation(&headers)?;
        let path = CanonicalPath::parse(if uri.path().is_empty() { "/" } else { uri.path() })
            .map_err(|e| malformed("the path is refused").because(e))?;
        if uri.path() == "*" || uri.query().is_some_and(|q| q.bytes().any(|b| b <= b' ' || b == 0x7f)) {
            return Err(malformed("the target is malformed"));
        }
        let websocket = is_websocket(&method, version, protocol, &headers)?;
        if websocket && version == Version::HTTP_2 {
            method = Method::GET;
            complete_handshake(&mut headers);
        }
        if trust.header == header::FORWARDED
            && trust.proxies.contains(arrival.peer.ip())
            && forwarded_field::is_hidden(&headers)
        {
            return Err(malformed("the Forwarded field of a trusted proxy cannot be read"));
        }
        let client = forwarded::client(arrival, &headers, trust);
        let headers = hop::clean(headers, &client, trust, websocket);
        let query = uri.query().map(str::to_owned);
        Ok(ClientRequest { method, version, authority, path, query, headers, websocket, client })
    }

    /// The path and query as they are logged and sent on.
    pub fn target(&self) -> String {
        join(&self.path, self.query.as_deref())
    }

    /// Whether this is an extended CONNECT: a socket or nothing. It cannot go on as a plain request, and 2xx would
    /// open it.
    pub fn is_extended_connect(&self) -> bool {
        self.websocket && self.version == Version::HTTP_2
    }

    /// What a back end may get of this. `path` is the request's own, or what a route made of it; `websocket` says
    /// whether the route takes upgrades: elsewhere the handshake's fields are removed and it is a plain request.
    pub fn forward(self, path: Option<CanonicalPath>, websocket: bool) -> UpstreamRequest {
        let ClientRequest {
            method,
            version,
            authority,
            path: original,
            query,
            mut headers,
            websocket: handshake,
            client,
        } = self;
        let websocket = websocket && handshake;
        if handshake && !websocket {
            hop::strip_websocket(&mut headers);
        }
        forwarded::set(&mut headers, &authority, &client);
        let path = path.unwrap_or_else(|| original.clone());
        UpstreamRequest {
            method,
            path,
            original,
            query,
            headers,
            authority,
            version,
            websocket,
            client,
            user: None,
            server_name: None,
        }
    }
}

impl UpstreamRequest {
    /// Adds this hop to the field `Forwarded` (RFC 7239).
    pub fn add_forwarded(&mut self) {
        forwarded::set_forwarded(&mut self.headers, &self.authority, &self.client);
    }

    /// The origin-form target (RFC 9112, section 3.2.1).
    pub fn target(&self) -> String {
        join(&self.path, self.query.as_deref())
    }
}

/// The port that a client which wrote `authority` with `scheme` meant.
pub fn effective_port(authority: &Authority, scheme: Scheme) -> u16 {
    authority.port.unwrap_or(scheme.default_port())
}

fn join(path: &CanonicalPath, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{}?{query}", path.encoded()),
        None => path.encoded().to_owned(),
    }
}

pub(super) fn malformed(detail: &'static str) -> Fault {
    Fault::new(Kind::Malformed, detail)
}

fn check_method(method: &Method, uri: &http::Uri, protocol: Option<&str>) -> Result<(), Fault> {
    let connect = method == Method::CONNECT;
    match protocol {
        // RFC 9220, section 3: such a request "SHOULD" be answered with 501; RFC 8441 leaves it open.
        Some(protocol) if connect && !names_websocket(protocol.as_bytes()) => {
            return Err(Fault::new(Kind::UnknownProtocol, "an extended CONNECT for something other than WebSocket"));
        }
        Some(_) if connect => {}
        // RFC 8441, section 4: ":protocol" is for requests "with the CONNECT method".
        Some(_) => return Err(malformed(":protocol on a request other than CONNECT")),
        None if connect => return Err(Fault::new(Kind::Method, "the method is never forwarded")),
        None => {}
    }
    if method == Method::TRACE || method.as_str() == "TRACK" {
        return Err(Fault::new(Kind::Method, "the method is never forwarded"));
    }
    if method.as_str().len() > 32 {
        return Err(malformed("the method is over 32 bytes"));
    }
    // RFC 9112, section 3.2.2: a server MUST accept the absolute-form; only http and https are ours.
    if uri.scheme_str().is_some_and(|s| s != "http" && s != "https") {
        return Err(malformed("the target's scheme is neither http nor https"));
    }
    // RFC 9112, section 3.2.3: the authority-form is CONNECT's alone; `GET a.test:443` names no path.
    if uri.scheme().is_none() && uri.authority().is_some() {
        return Err(malformed("an authority in the place of a target"));
    }
    Ok(())
}

fn read_authority(uri: &http::Uri, headers: &HeaderMap, version: Version) -> Result<Authority, Fault> {
    let mut fields = headers.get_all(header::HOST).iter();
    let field = fields.next();
    // RFC 9112, section 3.2: a server MUST respond with a 400 to any request that lacks a Host field or has two.
    if fields.next().is_some() {
        return Err(malformed("two Host fields"));
    }
    let field = match field {
        Some(value) => Some(
            value
                .to_str()
                .ok()
                .and_then(|text| Authority::parse(text).ok())
                .ok_or_else(|| malformed("the Host field is malformed"))?,
        ),
        None => None,
    };
    let target = match uri.authority() {
        Some(authority) => {
            let parsed = Authority::parse(authority.as_str());
            Some(parsed.map_err(|e| malformed("the target's authority is malformed").because(e))?)
        }
        None => None,
    };
    match (target, field) {
        // RFC 9113, section 8.3.1: :authority and Host that differ are malformed.
        (Some(target), Some(field)) if version == Version::HTTP_2 && target != field => {
            Err(malformed(":authority and Host differ"))
        }
        // RFC 9112, section 3.2.2: the absolute-form's host wins over the field.
        (Some(target), _) => Ok(target),
        (None, Some(field)) => Ok(field),
        (None, None) => Err(malformed("no Host")),
    }
}

fn check_expectation(headers: &HeaderMap) -> Result<(), Fault> {
    let mut values = headers.get_all(header::EXPECT).iter();
    if values.all(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Ok(());
    }
    Err(Fault::new(Kind::Expectation, "an Expect other than 100-continue"))
}

/// The one place that knows a WebSocket handshake, in both its forms.
///
/// On HTTP/1.1 what lacks a part is a plain request, whose Upgrade field is ignored (RFC 9110, section 7.8). On HTTP/2
/// there is no plain request to fall back to.
fn is_websocket(method: &Method, version: Version, protocol: Option<&str>, headers: &HeaderMap) -> Result<bool, Fault> {
    if protocol.is_none() && (version != Version::HTTP_11 || !headers.contains_key(header::UPGRADE)) {
        return Ok(false);
    }
    let field = |name| headers.get(name).map(HeaderValue::as_bytes);
    let bodiless =
        !headers.contains_key(header::TRANSFER_ENCODING) && field(header::CONTENT_LENGTH).is_none_or(|v| v == b"0");
    let mut versions = headers.get_all(header::SEC_WEBSOCKET_VERSION).iter().map(HeaderValue::as_bytes);
    let versions = (versions.next(), versions.next());
    match (version, protocol) {
        // RFC 6455, section 4.1.
        (Version::HTTP_11, None) => Ok(method == Method::GET
            && headers.get_all(header::UPGRADE).iter().count() == 1
            && field(header::UPGRADE).is_some_and(names_websocket)
            && hop::connection_names(headers).any(|name| name.eq_ignore_ascii_case(b"upgrade"))
            && matches!(versions, (Some(b"13"), None))
            // Two keys have two answers, and who takes which is not known.
            && headers.get_all(header::SEC_WEBSOCKET_KEY).iter().count() == 1
            && bodiless),
        // RFC 8441, section 5. Firefox behind other proxies leaves the version out, and then means 13.
        (Version::HTTP_2, Some(_)) if !matches!(versions, (None | Some(b"13"), None)) => {
            Err(malformed("a WebSocket version other than 13"))
        }
        (Version::HTTP_2, Some(_)) if !bodiless => Err(malformed("a WebSocket handshake with a body")),
        (Version::HTTP_2, Some(protocol)) => Ok(names_websocket(protocol.as_bytes())),
        (_, Some(_)) => Err(malformed(":protocol on HTTP/1")),
        _ => Ok(false),
    }
}

/// RFC 9110, section 7.8: "Recipients SHOULD use case-insensitive comparison when matching each protocol-name".
fn names_websocket(protocol: &[u8]) -> bool {
    protocol.eq_ignore_ascii_case(b"websocket")
}

/// RFC 8441, section 5: "Implementations using this extended CONNECT to bootstrap WebSockets do not do the processing
/// of the Sec-WebSocket-Key and Sec-WebSocket-Accept header fields". The back end gets a key of our own.
fn complete_handshake(headers: &mut HeaderMap) {
    headers.remove(header::SEC_WEBSOCKET_KEY);
    headers.remove(header::SEC_WEBSOCKET_ACCEPT);
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival() -> Arrival {
        Arrival {
            peer: "192.0.2.7:5000".parse().unwrap(),
            local: "192.0.2.1:443".parse().unwrap(),
            scheme: Scheme::Https,
            unnamed: false,
        }
    }

    fn trust(proxies: &[&str]) -> Trust {
        Trust {
            proxies: Networks(proxies.iter().filter_map(|p| crate::base::network::parse_network(p)).collect()),
            header: HeaderName::from_static("x-forwarded-for"),
            cloudflare: Networks::default(),
        }
    }

    const LIMITS: HeadLimits = HeadLimits { max_uri: 8192, max_headers: 100, max_header_size: 32768 };

    fn read(uri: &str, fields: &[(&str, &str)]) -> Result<ClientRequest, Fault> {
        read_as(http::Request::builder().uri(uri), None, fields)
    }

    fn read_as(
        mut builder: request::Builder,
        protocol: Option<&str>,
        fields: &[(&str, &str)],
    ) -> Result<ClientRequest, Fault> {
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let head = builder.body(()).unwrap().into_parts().0;
        ClientRequest::read(head, protocol, arrival(), &trust(&[]), LIMITS)
    }

    fn connect(protocol: Option<&str>, fields: &[(&str, &str)]) -> Result<ClientRequest, Fault> {
        let builder = http::Request::builder().method("CONNECT").version(Version::HTTP_2).uri("https://a/ws?x=1");
        read_as(builder, protocol, fields)
    }

    #[test]
    fn a_request_without_exactly_one_host_is_refused() {
        assert_eq!(read("/", &[]).unwrap_err().kind, Kind::Malformed);
        assert_eq!(read("/", &[("host", "a"), ("host", "a")]).unwrap_err().kind, Kind::Malformed);
        assert_eq!(read("/", &[("host", "u@a")]).unwrap_err().kind, Kind::Malformed);
        assert!(read("/", &[("host", "a:8443")]).is_ok());
    }

    #[test]
    fn fields_of_http2_are_held_to_what_the_guard_asks_of_http1() {
        let read = |fields: &[(&str, &str)]| {
            let fields: Vec<_> = [("host", "a")].iter().chain(fields).copied().collect();
            read_as(http::Request::builder().version(Version::HTTP_2).uri("/"), None, &fields).map_err(|e| e.kind)
        };
        let padded = read(&[("x", " a \t"), ("y", " ")]).unwrap();
        assert_eq!((&padded.headers["x"], &padded.headers["y"]), (&"a".parse().unwrap(), &"".parse().unwrap()));
        assert_eq!(read(&[("content-length", "5"), ("content-length", "5")]).unwrap_err(), Kind::Malformed);
        assert!(read(&[("x", "a b"), ("y", ""), ("content-length", "5")]).is_ok());
    }

    #[test]
    fn the_absolute_form_names_the_host() {
        let request = read("http://b.test/x", &[("host", "a")]).unwrap();
        assert_eq!(request.authority.to_string(), "b.test");
        assert_eq!(request.target(), "/x");
    }

    #[test]
    fn a_handshake_is_one_only_when_every_part_is_there() {
        let all = [
            ("host", "a"),
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
        ];
        assert!(read("/ws", &all).unwrap().websocket);
        for missing in 1..all.len() {
            let fields: Vec<_> = all.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, f)| *f).collect();
            assert!(!read("/ws", &fields).unwrap().websocket, "without {}", all[missing].0);
        }
        let mut h2c = all;
        h2c[1].1 = "h2c";
        assert!(!read("/ws", &h2c).unwrap().websocket);
        let mut old = all;
        old[4].1 = "8";
        assert!(!read("/ws", &old).unwrap().websocket);
        for twice in 1..all.len() {
            let fields: Vec<_> = all.iter().chain(all.get(twice)).copied().collect();
            assert_eq!(read("/ws", &fields).unwrap().websocket, twice == 2, "two of {}", all[twice].0);
        }
    }

    #[test]
    fn an_extended_connect_for_websocket_is_a_handshake_like_any_other() {
        for protocol in ["websocket", "WebSocket"] {
            let request =
                connect(Some(protocol), &[("origin", "https://a"), ("sec-websocket-protocol", "chat")]).unwrap();
            assert!(request.websocket && request.is_extended_connect());
            assert_eq!((request.method.as_str(), request.target().as_str()), ("GET", "/ws?x=1"));
            let sent = request.forward(None, true);
            assert!(sent.websocket);
            assert_eq!(sent.headers["sec-websocket-version"], "13", "Firefox may leave it out");
            assert_eq!(sent.headers["sec-websocket-protocol"], "chat");
        }
    }

    #[test]
    fn an_extended_connect_has_no_key_of_its_own() {
        let fields = [("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="), ("sec-websocket-accept", "x")];
        let request = connect(Some("websocket"), &fields).unwrap();
        assert!(!request.headers.contains_key("sec-websocket-key"));
        assert!(!request.headers.contains_key("sec-websocket-accept"));
    }

    #[test]
    fn any_other_connect_is_refused() {
        let kind = |protocol, fields: &[(&str, &str)]| connect(protocol, fields).unwrap_err().kind;
        assert_eq!(kind(None, &[]), Kind::Method);
        assert_eq!(kind(Some("connect-udp"), &[]), Kind::UnknownProtocol);
        assert_eq!(kind(Some(""), &[]), Kind::UnknownProtocol);
        assert_eq!(kind(Some("websocket"), &[("sec-websocket-version", "8")]), Kind::Malformed);
        let twice = [("sec-websocket-version", "13"), ("sec-websocket-version", "13")];
        assert_eq!(kind(Some("websocket"), &twice), Kind::Malformed);
        assert_eq!(kind(Some("websocket"), &[("content-length", "5")]), Kind::Malformed);
        let get = http::Request::builder().version(Version::HTTP_2).uri("https://a/ws");
        assert_eq!(read_as(get, Some("websocket"), &[]).unwrap_err().kind, Kind::Malformed);
        let old = http::Request::builder().method("CONNECT").uri("https://a/ws");
        assert_eq!(read_as(old, Some("websocket"), &[]).unwrap_err().kind, Kind::Malformed);
    }

    #[test]
    fn a_handshake_on_another_route_is_a_plain_request() {
        let fields = [
            ("host", "a"),
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-key", "x"),
            ("sec-websocket-version", "13"),
        ];
        let plain = read("/", &fields).unwrap().forward(None, false);
        assert!(!plain.websocket);
        assert!(plain.headers.keys().all(|n| !n.as_str().starts_with("sec-websocket") && n != "upgrade"));
    }

    #[test]
    fn an_untrusted_peers_copy_of_the_configured_field_is_dropped() {
        let head =
            http::Request::builder().uri("/").header("host", "a").header("fly-client-ip", "6.6.6.6").body(()).unwrap();
        let trust = Trust { header: HeaderName::from_static("fly-client-ip"), ..trust(&["10.0.0.0/8"]) };
        let request = ClientRequest::read(head.into_parts().0, None, arrival(), &trust, LIMITS).unwrap();
        assert!(!request.headers.contains_key("fly-client-ip"));
        assert_eq!(request.client.address.to_string(), "192.0.2.7");
    }

    #[test]
    fn an_untrusted_peer_says_nothing_about_the_client() {
        let fields =
            [("host", "a"), ("x-forwarded-for", "6.6.6.6"), ("x-forwarded-proto", "http"), ("forwarded", "for=1")];
        let request = read("/", &fields).unwrap().forward(None, false);
        assert_eq!(request.headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(request.headers["x-forwarded-proto"], "https");
        assert!(!request.headers.contains_key("forwarded"));
        assert_eq!(request.client.address.to_string(), "192.0.2.7");
    }
}
