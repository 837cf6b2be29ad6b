//! Host names and authorities, by a grammar of our own that is stricter than RFC 3986: a DNS name, an IPv4
//! address, or an IPv6 address in brackets; nothing else is a host.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A lower-case DNS name without a trailing dot, an IPv4 address, or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

/// Why a text is not a host or an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHost {
    /// There is nothing.
    #[error("the host is empty")]
    Empty,
    /// A byte that no host name has.
    #[error("a host may have letters, digits, '-', '_' and '.' only")]
    Character,
    /// A label is empty or over 63 bytes, or the name is over 253 (RFC 1035, section 2.3.4).
    #[error("a label is empty or the name is too long")]
    Length,
    /// The brackets do not hold an IPv6 address.
    #[error("not an IPv6 address in brackets")]
    Ipv6,
    /// All labels are digits, but it is no IPv4 address.
    #[error("not an IPv4 address")]
    Ipv4,
    /// The port is not a number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

impl Host {
    /// Reads a host; upper case is folded and one trailing dot dropped.
    pub fn parse(text: &str) -> Result<Host, InvalidHost> {
        if text.is_empty() {
            return Err(InvalidHost::Empty);
        }
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(InvalidHost::Ipv6)?;
            let address: Ipv6Addr = inner.parse().map_err(|_| InvalidHost::Ipv6)?;
            return Ok(Host(format!("[{address}]")));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        // In one pass: every request comes here.
        let (mut label, mut digits, mut upper, mut fits) = (0_usize, true, false, name.len() <= 253);
        for byte in name.bytes() {
            match byte {
                b'.' => {
                    fits &= (1..=63).contains(&label);
                    (label, digits) = (0, true);
                    continue;
                }
                b'0'..=b'9' => {}
                b'a'..=b'z' | b'-' | b'_' => digits = false,
                b'A'..=b'Z' => (digits, upper) = (false, true),
                _ => return Err(InvalidHost::Character),
            }
            label += 1;
        }
        if !fits || !(1..=63).contains(&label) {
            return Err(InvalidHost::Length);
        }
        if digits && name.parse::<Ipv4Addr>().is_err() {
            return Err(InvalidHost::Ipv4);
        }
        Ok(Host(if upper { name.to_ascii_lowercase() } else { name.to_owned() }))
    }

    /// The host as it stands in a URL; an IPv6 address keeps its brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is an address and not a name. Certificates for addresses are not chosen by SNI.
    pub fn is_address(&self) -> bool {
        // The last label of a name has something other than digits.
        self.0.starts_with('[')
            || (self.0.ends_with(|c: char| c.is_ascii_digit()) && self.0.parse::<Ipv4Addr>().is_ok())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host with the port that was written beside it, as in a `Host` field or `:authority`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authority {
    /// The name or address.
    pub host: Host,
    /// The port, where one was written.
    pub port: Option<u16>,
}

impl Authority {
    /// Reads `host` or `host:port`. User information, paths and empty ports are refused.
    pub fn parse(text: &str) -> Result<Authority, InvalidHost> {
        let (host, port) = match text.rfind(':') {
            Some(at) if !text.ends_with(']') => (&text[..at], Some(&text[at + 1..])),
            _ => (text, None),
        };
        let port = match port {
            None => None,
            Some(digits) if !digits.is_empty() && digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse::<u16>().ok().filter(|p| *p != 0).ok_or(InvalidHost::Port)?)
            }
            Some(_) => return Err(InvalidHost::Port),
        };
        Ok(Authority { host: Host::parse(host)?, port })
    }

    /// As it stands in a `Host` field.
    pub fn text(&self) -> Cow<'_, str> {
        match self.port {
            // Not by way of a formatter, which takes ten times as long: this is done for every request.
            Some(port) => Cow::Owned([self.host.as_str(), ":", &port.to_string()].concat()),
            None => Cow::Borrowed(self.host.as_str()),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => self.host.fmt(f),
        }
    }
}

/// A host pattern of the file: `x`, `*.x` (everything below x), `.x` (x and everything below), `x.*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// Exactly this host.
    Exact(Host),
    /// Any name below, at any depth, as nginx has it.
    Below(Host),
    /// The name itself and any below.
    AtOrBelow(Host),
    /// Any name that starts with these labels: `www.example.*`.
    StartsWith(Host),
}

impl HostPattern {
    /// Reads a pattern as it is written in `hosts`.
    pub fn parse(text: &str) -> Result<HostPattern, InvalidHost> {
        if let Some(rest) = text.strip_prefix("*.") {
            return Host::parse(rest).map(HostPattern::Below);
        }
        if let Some(rest) = text.strip_prefix('.') {
            return Host::parse(rest).map(HostPattern::AtOrBelow);
        }
        if let Some(rest) = text.strip_suffix(".*") {
            return Host::parse(rest).map(HostPattern::StartsWith);
        }
        Host::parse(text).map(HostPattern::Exact)
    }

    /// Whether `host` is one of those meant.
    pub fn matches(&self, host: &Host) -> bool {
        let below = |parent: &Host| {
            let rest = host.as_str().strip_suffix(parent.as_str());
            rest.is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        };
        match self {
            HostPattern::Exact(exact) => host == exact,
            HostPattern::Below(parent) => below(parent),
            HostPattern::AtOrBelow(parent) => host == parent || below(parent),
            HostPattern::StartsWith(start) => {
                let rest = host.as_str().strip_prefix(start.as_str());
                rest.is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
            }
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(h) => write!(f, "{h}"),
            HostPattern::Below(h) => write!(f, "*.{h}"),
            HostPattern::AtOrBelow(h) => write!(f, ".{h}"),
            HostPattern::StartsWith(h) => write!(f, "{h}.*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_folded_and_a_trailing_dot_is_dropped() {
        assert_eq!(Authority::parse("App.Example.COM.:8443").unwrap().to_string(), "app.example.com:8443");
        assert_eq!(Authority::parse("[::1]:443").unwrap().to_string(), "[::1]:443");
        assert_eq!(Authority::parse("[2001:DB8::1]").unwrap().to_string(), "[2001:db8::1]");
        assert_eq!(Authority::parse("127.0.0.1").unwrap().port, None);
    }

    #[test]
    fn what_is_not_a_host_is_refused() {
        for text in [
            "",
            ":80",
            "a:",
            "a:0",
            "a:99999",
            "a:+80",
            "a b",
            "a/b",
            "u@a",
            "a,b",
            "a..b",
            ".a",
            "..",
            "[::1",
            "::1",
            "[::1]x",
            "a:80:80",
            "<a>",
            "a%20",
            "1.2.3",
            "256.1.1.1",
            "\"a\"",
            "a\t",
            "[]",
            "-:",
            "a:80x",
        ] {
            assert!(Authority::parse(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn labels_and_names_have_their_longest_length() {
        let label = "a".repeat(63);
        let longest = [label.as_str(); 3].join(".") + "." + &"b".repeat(61);
        assert_eq!(Host::parse(&longest).unwrap().as_str().len(), 253);
        assert!(Host::parse(&format!("{longest}.")).is_ok());
        for text in [format!("{longest}b"), format!("{label}a.b"), format!("b.{label}a")] {
            assert_eq!(Host::parse(&text), Err(InvalidHost::Length), "{text}");
        }
        for (text, address) in [("app1", false), ("1.2.3.4", true), ("4.example", false), ("[::1]", true)] {
            assert_eq!(Host::parse(text).unwrap().is_address(), address, "{text}");
        }
    }

    #[test]
    fn patterns_read_back_as_written() {
        for text in ["a.example", "*.example.com", ".example.com", "www.example.*"] {
            assert_eq!(HostPattern::parse(text).unwrap().to_string(), text);
        }
        assert!(HostPattern::parse("*").is_err());
        assert!(HostPattern::parse("a.*.b").is_err());
    }
}
