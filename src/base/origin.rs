//! Web origins (RFC 6454): what browsers say in `Origin`, and which of them a file allows.

use std::fmt;

use crate::base::host::{Authority, Host, HostPattern, InvalidHost};

/// An origin: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `https`, or else `http`.
    pub secure: bool,
    /// The host.
    pub host: Host,
    /// The port, the scheme's own filled in.
    pub port: u16,
}

/// One entry of `origins`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    /// `self`: the origin that the request was sent to.
    Itself,
    /// `null`: pages without an origin, such as local files and sandboxed frames.
    Null,
    /// `https://x.example`, `https://*.x.example`, with a port where it is not the scheme's own.
    Like {
        /// `https`, or else `http`.
        secure: bool,
        /// The host or hosts.
        host: HostPattern,
        /// The port.
        port: u16,
    },
}

/// Why a text is not an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOrigin {
    /// Neither `http://` nor `https://`.
    #[error("an origin begins with http:// or https://")]
    Scheme,
    /// Something behind the host and port.
    #[error("an origin ends with the host or the port: no path and no slash")]
    Path,
    /// A name with an open end, which anybody may register a host for.
    #[error("anybody may have a host that begins so: an origin ends with a whole name")]
    OpenEnd,
    /// The host or port.
    #[error(transparent)]
    Host(#[from] InvalidHost),
}

impl Origin {
    /// Reads the value of an `Origin` field; `None` for `null` and whatever is no web origin.
    pub fn parse(text: &str) -> Option<Origin> {
        let (secure, rest) = split(text).ok()?;
        let Authority { host, port } = Authority::parse(rest).ok()?;
        Some(Origin { secure, host, port: port.unwrap_or(default_port(secure)) })
    }
}

impl OriginPattern {
    /// Reads an entry of `origins`.
    pub fn parse(text: &str) -> Result<OriginPattern, InvalidOrigin> {
        match text {
            "self" => return Ok(OriginPattern::Itself),
            "null" => return Ok(OriginPattern::Null),
            _ => {}
        }
        let (secure, rest) = split(text)?;
        if rest.contains('/') {
            return Err(InvalidOrigin::Path);
        }
        let (pattern, port) = match rest.rsplit_once(':') {
            // The host in front of the port is read below; the port is held to the grammar of an authority.
            Some((pattern, port)) if !rest.ends_with(']') => {
                (pattern, Authority::parse(&format!("x:{port}"))?.port.unwrap_or(default_port(secure)))
            }
            _ => (rest, default_port(secure)),
        };
        match HostPattern::parse(pattern)? {
            HostPattern::StartsWith(_) => Err(InvalidOrigin::OpenEnd),
            host => Ok(OriginPattern::Like { secure, host, port }),
        }
    }

    /// Whether `origin` is allowed by this entry. `None` is an origin that is none (`null`); `target` is the origin
    /// that the request was sent to.
    pub fn allows(&self, origin: Option<&Origin>, target: &Origin) -> bool {
        match (self, origin) {
            (OriginPattern::Null, origin) => origin.is_none(),
            (OriginPattern::Itself, Some(origin)) => origin == target,
            (OriginPattern::Like { secure, host, port }, Some(origin)) => {
                *secure == origin.secure && *port == origin.port && host.matches(&origin.host)
            }
            (_, None) => false,
        }
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OriginPattern::Itself => f.write_str("self"),
            OriginPattern::Null => f.write_str("null"),
            OriginPattern::Like { secure, host, port } => {
                write!(f, "{}://{host}", if *secure { "https" } else { "http" })?;
                if *port == default_port(*secure) { Ok(()) } else { write!(f, ":{port}") }
            }
        }
    }
}

/// RFC 3986, section 3.1: schemes are compared without regard to case.
fn split(text: &str) -> Result<(bool, &str), InvalidOrigin> {
    let (scheme, rest) = text.split_once("://").ok_or(InvalidOrigin::Scheme)?;
    match scheme {
        _ if scheme.eq_ignore_ascii_case("https") => Ok((true, rest)),
        _ if scheme.eq_ignore_ascii_case("http") => Ok((false, rest)),
        _ => Err(InvalidOrigin::Scheme),
    }
}

fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::parse(text).unwrap()
    }

    #[test]
    fn an_entry_reads_back_as_it_is_written() {
        for text in
            ["self", "null", "https://x.example", "http://x.example:8080", "https://*.x.example", "http://[::1]:3000"]
        {
            assert_eq!(OriginPattern::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(OriginPattern::parse("x.example"), Err(InvalidOrigin::Scheme));
        assert_eq!(OriginPattern::parse("wss://x.example"), Err(InvalidOrigin::Scheme));
        assert_eq!(OriginPattern::parse("https://x.example/"), Err(InvalidOrigin::Path));
        assert_eq!(OriginPattern::parse("https://x.*"), Err(InvalidOrigin::OpenEnd));
        assert!(matches!(OriginPattern::parse("https://x.example:0"), Err(InvalidOrigin::Host(_))));
        assert!(matches!(OriginPattern::parse("https://"), Err(InvalidOrigin::Host(_))));
    }

    #[test]
    fn scheme_host_and_port_must_all_be_the_same() {
        let target = origin("https://app.example:8443");
        let allows = |entry: &str, text: &str| {
            OriginPattern::parse(entry).unwrap().allows(Origin::parse(text).as_ref(), &target)
        };
        assert!(allows("self", "https://app.example:8443"));
        assert!(allows("self", "HTTPS://APP.example:8443"));
        for other in ["https://app.example", "http://app.example:8443", "https://www.app.example:8443", "null", ""] {
            assert!(!allows("self", other), "{other}");
        }
        assert!(allows("https://x.example", "https://x.example:443"));
        assert!(!allows("https://x.example", "https://x.example.evil.test"));
        assert!(!allows("https://x.example", "https://user@x.example"));
        assert!(!allows("https://x.example", "https://x.example/path"));
        assert!(allows("https://*.x.example", "https://a.b.x.example"));
        assert!(!allows("https://*.x.example", "https://x.example"));
        assert!(!allows("https://*.x.example", "https://evilx.example"));
        assert!(allows("null", "null") && allows("null", "file://") && !allows("null", "https://x.example"));
    }
}
