//! Where Doorward listens and where it connects to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// An address to listen on: `:443` (every address, both families), `127.0.0.1:443`, `[::1]:443`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenAddress {
    /// `None` is every address of both families.
    pub ip: Option<IpAddr>,
    /// 0 asks the system for a free port.
    pub port: u16,
}

impl ListenAddress {
    /// Reads an address as it is written in `[server]`.
    pub fn parse(text: &str) -> Result<ListenAddress, InvalidAddress> {
        if let Some(port) = text.strip_prefix(':') {
            return Ok(ListenAddress { ip: None, port: parse_port(port, true)? });
        }
        let address: SocketAddr = text.parse().map_err(|_| InvalidAddress::Listen)?;
        Ok(ListenAddress { ip: Some(address.ip()), port: address.port() })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, ":{}", self.port),
        }
    }
}

/// How a back end is reached: a host (name or address) and port, or a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// A TCP port of a host; an IPv6 address is without brackets here.
    Tcp(String, u16),
    /// A unix stream socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One HTTP back end: `http://h:p`, `https://h:p` or `unix:/run/x.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HttpBackEnd {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Where it is.
    pub endpoint: Endpoint,
}

impl HttpBackEnd {
    /// Reads a back end of `upstream` or `websocket.to`. Ports default to 80 and 443.
    pub fn parse(text: &str) -> Result<HttpBackEnd, InvalidAddress> {
        if let Some(endpoint) = parse_unix(text)? {
            return Ok(HttpBackEnd { tls: false, endpoint });
        }
        let (tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(InvalidAddress::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('/') || rest.contains('?') {
            return Err(InvalidAddress::Path);
        }
        if rest.contains('@') {
            return Err(InvalidAddress::UserInfo);
        }
        Ok(HttpBackEnd { tls, endpoint: parse_tcp(rest, Some(if tls { 443 } else { 80 }))? })
    }
}

impl fmt::Display for HttpBackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.endpoint, self.tls) {
            (Endpoint::Unix(_), _) => self.endpoint.fmt(f),
            (tcp, true) => write!(f, "https://{tcp}"),
            (tcp, false) => write!(f, "http://{tcp}"),
        }
    }
}

/// Reads a FastCGI address of `php`: `host:port` or `unix:/path`.
pub fn parse_fastcgi(text: &str) -> Result<Endpoint, InvalidAddress> {
    match parse_unix(text)? {
        Some(endpoint) => Ok(endpoint),
        None if text.contains("://") => Err(InvalidAddress::FastCgiScheme),
        None => parse_tcp(text, None),
    }
}

/// Why a text is not an address; each says what would be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Not an address to listen on.
    #[error("not an address to listen on: write \":443\", \"127.0.0.1:443\" or \"[::1]:443\"")]
    Listen,
    /// The port is missing or no number.
    #[error("the port is missing or not a number from 1 to 65535")]
    Port,
    /// The host is missing or malformed.
    #[error("the host is missing or malformed")]
    Host,
    /// The scheme is missing or unknown.
    #[error("not a back end: write \"http://host:port\", \"https://host:port\" or \"unix:/run/x.sock\"")]
    Scheme,
    /// A FastCGI address has no scheme.
    #[error("a FastCGI address has no scheme: write \"host:port\" or \"unix:/run/php/php8.2-fpm.sock\"")]
    FastCgiScheme,
    /// A back end is a host and a port only.
    #[error("a back end has no path: use strip_prefix or replace_prefix in a [[site.x.route]]")]
    Path,
    /// No user name or password in addresses.
    #[error("a back end has no user name: set an Authorization field with request_headers")]
    UserInfo,
    /// A unix socket needs an absolute path.
    #[error("a unix socket needs an absolute path: \"unix:/run/x.sock\"")]
    UnixPath,
}

fn parse_unix(text: &str) -> Result<Option<Endpoint>, InvalidAddress> {
    // RFC 3986, section 3.1: "schemes are case-insensitive". A host of that name would be written back as a scheme.
    let (Some(scheme), Some(path)) = (text.get(..5), text.get(5..)) else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case("unix:") {
        return Ok(None);
    }
    if !path.starts_with('/') {
        return Err(InvalidAddress::UnixPath);
    }
    // nginx writes unix:/run/x, some write unix:///run/x.
    Ok(Some(Endpoint::Unix(PathBuf::from(format!("/{}", path.trim_start_matches('/'))))))
}

fn parse_tcp(text: &str, default_port: Option<u16>) -> Result<Endpoint, InvalidAddress> {
    let (host, port) = match text.rfind(':') {
        Some(at) if !text.ends_with(']') => (&text[..at], Some(&text[at + 1..])),
        _ => (text, None),
    };
    let port = match (port, default_port) {
        (Some(digits), _) => parse_port(digits, false)?,
        (None, Some(port)) => port,
        (None, None) => return Err(InvalidAddress::Port),
    };
    let host = super::host::Host::parse(host).map_err(|_| InvalidAddress::Host)?;
    let bare = host.as_str().trim_start_matches('[').trim_end_matches(']');
    Ok(Endpoint::Tcp(bare.to_owned(), port))
}

fn parse_port(digits: &str, zero: bool) -> Result<u16, InvalidAddress> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidAddress::Port);
    }
    digits.parse().ok().filter(|p| zero || *p != 0).ok_or(InvalidAddress::Port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_written() {
        for text in [":443", "127.0.0.1:80", "[::1]:443"] {
            assert_eq!(ListenAddress::parse(text).unwrap().to_string(), text);
        }
        for text in ["http://127.0.0.1:3444", "https://[::1]:8443", "unix:/run/x.sock", "http://node.local:80"] {
            assert_eq!(HttpBackEnd::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(HttpBackEnd::parse("unix:////run/x.sock").unwrap().to_string(), "unix:/run/x.sock");
        assert_eq!(parse_fastcgi("127.0.0.1:9000").unwrap().to_string(), "127.0.0.1:9000");
    }

    #[test]
    fn addresses_that_cannot_be_meant_are_refused() {
        assert_eq!(HttpBackEnd::parse("127.0.0.1:80"), Err(InvalidAddress::Scheme));
        assert_eq!(HttpBackEnd::parse("http://a/b"), Err(InvalidAddress::Path));
        assert_eq!(HttpBackEnd::parse("http://u:p@a"), Err(InvalidAddress::UserInfo));
        assert_eq!(HttpBackEnd::parse("unix:x.sock"), Err(InvalidAddress::UnixPath));
        assert_eq!(parse_fastcgi("Unix:/run/x.sock").unwrap().to_string(), "unix:/run/x.sock");
        assert_eq!(parse_fastcgi("unIx:003"), Err(InvalidAddress::UnixPath));
        assert_eq!(parse_fastcgi("http://127.0.0.1:9000"), Err(InvalidAddress::FastCgiScheme));
        assert_eq!(parse_fastcgi("localhost"), Err(InvalidAddress::Port));
        assert!(ListenAddress::parse("443").is_err());
        assert!(ListenAddress::parse("localhost:443").is_err());
    }
}
