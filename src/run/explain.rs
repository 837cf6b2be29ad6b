//! `doorward explain`: which site, rule and back end a request meets, and why. It asks the very tables that requests
//! are routed with.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, Request, Uri, Version, header};

use crate::base::address::ListenAddress;
use crate::base::fault::Fault;
use crate::base::network::Networks;
use crate::base::units::format_duration;
use crate::config::{AccessFormat, Config};
use crate::edge::access::format::{InvalidTemplate, Template};
use crate::edge::gate::Gate;
use crate::edge::generation::Generation;
use crate::edge::site::{Action, Route, Site};
use crate::edge::snapshot::{Snapshot, Surroundings};
use crate::http::reply;
use crate::http::request::{Arrival, ClientRequest, Scheme};
use crate::keys::LocalKeys;
use crate::tls::pair::with_causes;
use crate::tls::policy::{self, MinVersion, Policy, PolicyError};
use crate::tls::store::CertStore;
use crate::tls::tickets::Tickets;
use crate::upstream::files::try_files::Found;
use crate::upstream::http::{BackEndRegister, HttpUpstream};
use crate::upstream::php::PhpUpstream;

/// `-H ':protocol: websocket'` makes a CONNECT one of RFC 8441: a socket over HTTP/2.
const PROTOCOL: &str = ":protocol";

/// Why a request cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The method.
    #[error("{0:?} is not a method: write GET, POST …")]
    Method(String),
    /// The URL.
    #[error("{0:?} is not a URL: write https://host/path")]
    Url(String),
    /// A field.
    #[error("{0:?} is not a header field: write 'Name: value'")]
    Field(String),
    /// The template of the access log.
    #[error("log.format: {0}")]
    Template(#[from] InvalidTemplate),
    /// The file cannot be put in force.
    #[error(transparent)]
    Build(#[from] crate::edge::snapshot::BuildError),
    /// The TLS settings cannot be put in force.
    #[error("[tls]: {}", with_causes(.0))]
    Tls(#[from] PolicyError),
}

/// Builds what the file means without putting it in force or opening a log, for what only the building finds.
pub fn rehearse(config: &Config) -> Result<(), ExplainError> {
    if let AccessFormat::Template(text) = &config.log.format {
        Template::parse(text)?;
    }
    build(config).map(drop)
}

/// Explains one request; the text ends in a line feed.
pub fn explain(config: &Config, method: &str, url: &str, fields: &[(String, String)]) -> Result<String, ExplainError> {
    let (request, scheme, port) = request(method, url, fields)?;
    let snapshot = build(config)?;
    let mut text = format!("{method} {url}\n");
    let listeners = if scheme == Scheme::Https { &config.server.https } else { &config.server.http };
    let Some(listener) = listeners.iter().find(|listener| listener.port == port) else {
        line(&mut text, "answer", "none", &format!("no {} listener of [server] has port {port}", scheme.as_str()));
        return Ok(text);
    };
    line(&mut text, "listener", &listener.to_string(), &format!("server.{}", scheme.as_str()));
    let local = SocketAddr::new(listener.ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), port);
    let peer = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let arrival = Arrival { peer, local, scheme, unnamed: false };
    let protocol = fields.iter().find(|(name, _)| name == PROTOCOL).map(|(_, value)| value.as_str());
    if protocol.is_some() && !(scheme == Scheme::Https && config.server.h2) {
        line(&mut text, "answer", "none", "no HTTP/2 here: it takes https and \"h2\" in server.protocols");
        return Ok(text);
    }
    match ClientRequest::read(request.into_parts().0, protocol, arrival, &snapshot.trust, snapshot.terms.limits) {
        Ok(request) => journey(&mut text, &snapshot, *listener, request),
        Err(fault) => answer(&mut text, &fault),
    }
    Ok(text)
}

fn build(config: &Config) -> Result<Snapshot, ExplainError> {
    let certificates = Arc::new(CertStore::new(Arc::new(LocalKeys::new())));
    let policy = Policy { h1: true, h2: true, min_version: MinVersion::Tls12, client_ca: None };
    let surroundings = Surroundings {
        ports: &HashMap::new(),
        back_ends: &BackEndRegister::new(),
        gate: &Gate::new(),
        tls: policy::server_config(&policy, certificates, &Tickets::new())?,
        access: None,
        generation: Generation::new(0),
    };
    Ok(Snapshot::build(config, surroundings)?)
}

fn journey(text: &mut String, snapshot: &Snapshot, listener: ListenAddress, request: ClientRequest) {
    let host = request.authority.host.clone();
    let Some(site) = snapshot.site(listener, &host) else {
        let why = format!("no site on this listener has host {host}, and none is the default");
        return line(text, "answer", if request.client.scheme == Scheme::Https { "421" } else { "404" }, &why);
    };
    line(text, "site", &site.name, &format!("host {host}"));
    if site.is_alias(&host) {
        let canonical = site.canonical.as_ref().map(ToString::to_string).unwrap_or_default();
        return line(text, "answer", "301", &format!("an alias of {canonical}"));
    }
    if site.redirects_plain && request.client.scheme == Scheme::Http {
        let status = if request.method == Method::GET || request.method == Method::HEAD { "301" } else { "308" };
        return line(text, "answer", status, "plain HTTP is redirected to https (site.http = \"redirect\")");
    }
    let upgrade = match (request.websocket, request.is_extended_connect()) {
        (false, _) => "no WebSocket handshake",
        (true, false) => "a WebSocket handshake",
        (true, true) => "a WebSocket handshake over HTTP/2",
    };
    line(text, "path", &String::from_utf8_lossy(request.path.decoded()), &format!("canonical; {upgrade}"));
    let taken = site.route(&request).and_then(|route| site.check_socket(route, &request).map(|()| route));
    match taken {
        Ok(route) => destination(text, site, route, request),
        Err(fault) => answer(text, &fault),
    }
}

fn destination(text: &mut String, site: &Site, route: &Route, request: ClientRequest) {
    line(text, "rule", &route.label, "the first that takes it");
    asked_for(text, site, route, &request);
    let rewritten = route.rewrite(&request.path);
    if let Some(path) = &rewritten {
        line(text, "becomes", path.encoded(), "strip_prefix, replace_prefix or alias");
    }
    if let Some(idle) = route.socket.as_ref().map(|socket| socket.idle_timeout).filter(|_| request.websocket) {
        line(text, "tunnel", "after the back end's 101", &format!("idle_timeout {}", format_duration(idle)));
    }
    let request = request.forward(rewritten, route.takes_sockets());
    match &route.action {
        Action::Http(upstream) => line(text, "goes to", &names(upstream), "HTTP"),
        Action::Redirect { to, status, .. } => line(text, "answer", &status.to_string(), &format!("redirect to {to}")),
        Action::Respond { status, .. } => line(text, "answer", &status.to_string(), "written in the file"),
        Action::Files { files, php, http } => match files.find(&request.path, &request.method) {
            Ok(Found::File(_)) => line(text, "goes to", "a file", "it exists under the root"),
            Ok(Found::Redirect(status)) => line(text, "answer", &status.as_u16().to_string(), "a folder: with a slash"),
            Ok(Found::Status(status)) => line(text, "answer", &status.to_string(), "try_files"),
            Ok(Found::Script(script)) => {
                let pools = php.as_ref().map(PhpUpstream::names).unwrap_or_default();
                line(text, "script", &script.file.display().to_string(), "SCRIPT_FILENAME");
                line(text, "goes to", &pools, "PHP-FPM");
            }
            Ok(Found::Upstream) => {
                let names = http.as_ref().map(names).unwrap_or_default();
                line(text, "goes to", &names, "HTTP; no such file");
            }
            Err(fault) => answer(text, &fault),
        },
    }
    if let Some(max) = site.max_body {
        line(text, "max_body", &crate::base::units::format_size(max), "");
    }
}

/// What a client is asked for before it comes that far.
fn asked_for(text: &mut String, site: &Site, route: &Route, request: &ClientRequest) {
    for (addresses, status) in [(&site.addresses, 403), (&route.addresses, route.deny_status)] {
        let others = format!("others get {status}");
        if let Some(allow) = &addresses.allow {
            line(text, "only for", &list(allow), &others);
        }
        if !addresses.deny.is_empty() {
            line(text, "not for", &list(&addresses.deny), &format!("these get {status}"));
        }
    }
    for limit in site.limit.iter().chain(route.limit(request)) {
        line(text, "limit", &limit.name, &format!("more get {}", limit.status));
    }
    if let Some(passwords) = &route.passwords {
        line(text, "password", &passwords.path().display().to_string(), "basic_auth; others get 401");
    }
}

fn list(networks: &Networks) -> String {
    let list: Vec<String> = networks.0.iter().map(ToString::to_string).collect();
    list.join(", ")
}

fn names(upstream: &HttpUpstream) -> String {
    let names: Vec<&str> = upstream.back_ends().map(|back_end| &**back_end.name()).collect();
    names.join(", ")
}

fn answer(text: &mut String, fault: &Fault) {
    line(text, "answer", reply::status(fault).as_str(), &fault.to_string());
}

fn line(text: &mut String, what: &str, value: &str, why: &str) {
    let why = if why.is_empty() { String::new() } else { format!("  ({why})") };
    let _ = writeln!(text, "  {what:<9} {value}{why}");
}

fn request(method: &str, url: &str, fields: &[(String, String)]) -> Result<(Request<()>, Scheme, u16), ExplainError> {
    let invalid = || ExplainError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| invalid())?;
    let scheme = match uri.scheme_str() {
        Some("https" | "wss") => Scheme::Https,
        Some("http" | "ws") => Scheme::Http,
        _ => return Err(invalid()),
    };
    let authority = uri.authority().ok_or_else(invalid)?;
    let port = authority.port_u16().unwrap_or(scheme.default_port());
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).map_err(|_| ExplainError::Method(method.to_owned()))?)
        .uri(target)
        .body(())
        .map_err(|_| invalid())?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| invalid())?;
    request.headers_mut().insert(header::HOST, host);
    if fields.iter().any(|(name, _)| name == PROTOCOL) {
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::builder()
            .scheme(scheme.as_str())
            .authority(authority.as_str())
            .path_and_query(target)
            .build()
            .map_err(|_| invalid())?;
    }
    for (name, value) in fields.iter().filter(|(name, _)| name != PROTOCOL) {
        let invalid = || ExplainError::Field(format!("{name}: {value}"));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
        request.headers_mut().append(name, HeaderValue::from_str(value).map_err(|_| invalid())?);
    }
    complete_handshake(&mut request);
    Ok((request, scheme, port))
}

/// `-H 'Upgrade: websocket'` is enough to mean a handshake.
fn complete_handshake(request: &mut Request<()>) {
    if !request.headers().get(header::UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return;
    }
    for (name, value) in [
        (header::CONNECTION, "Upgrade"),
        (header::SEC_WEBSOCKET_VERSION, "13"),
        (header::SEC_WEBSOCKET_KEY, "AAAAAAAAAAAAAAAAAAAAAA=="),
    ] {
        request.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
}
