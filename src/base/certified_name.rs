//! A name that a certificate is for.

use std::fmt;
use std::net::IpAddr;

use super::host::{Host, HostPattern};
use super::network::{Networks, private_networks};

/// The ends of names that mean nothing outside a machine or a private network: RFC 2606, 6761, 6762, 7686, 8375, and
/// the words that routers use.
const PRIVATE: [&str; 9] =
    ["localhost", "test", "example", "invalid", "local", "internal", "lan", "home.arpa", "onion"];

/// A name in a certificate (`subjectAltName`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CertifiedName {
    /// A DNS name in lower case; its first label may be `*`.
    Dns(String),
    /// An address.
    Address(IpAddr),
}

impl CertifiedName {
    /// The name of `host` itself.
    pub fn of(host: &Host) -> CertifiedName {
        let bare = host.as_str().trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().map_or_else(|_| CertifiedName::Dns(host.as_str().to_owned()), CertifiedName::Address)
    }

    /// What a certificate has to name for all hosts of `pattern`: `*.x` is that wildcard, `.x` both `x` and `*.x`.
    /// Nothing for `x.*`, which no certificate can be for.
    pub fn of_pattern(pattern: &HostPattern) -> Vec<CertifiedName> {
        let below = |host: &Host| CertifiedName::Dns(format!("*.{host}"));
        match pattern {
            HostPattern::Exact(host) => vec![CertifiedName::of(host)],
            HostPattern::Below(host) => vec![below(host)],
            HostPattern::AtOrBelow(host) => vec![CertifiedName::of(host), below(host)],
            HostPattern::StartsWith(_) => Vec::new(),
        }
    }

    /// Whether this is `*.x`.
    pub fn is_wildcard(&self) -> bool {
        matches!(self, CertifiedName::Dns(name) if name.starts_with("*."))
    }

    /// Whether this name means the same to everybody on the Internet, so that a public authority can find who has it.
    /// Not so are names of one label, those of this machine or of a private network, and such addresses.
    pub fn is_public(&self) -> bool {
        match self {
            CertifiedName::Dns(name) => {
                let name = name.strip_prefix("*.").unwrap_or(name);
                let within =
                    |end: &str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                name.contains('.') && !PRIVATE.iter().any(|end| within(end))
            }
            CertifiedName::Address(address) => {
                let address = address.to_canonical();
                // RFC 6598: shared by the networks behind a carrier, and what overlays such as Tailscale give out.
                let shared = matches!(address, IpAddr::V4(v4) if matches!(v4.octets(), [100, 64..=127, ..]));
                let nobody = address.is_unspecified() || address.is_multicast() || shared;
                !nobody && !Networks(private_networks().collect()).contains(address)
            }
        }
    }

    /// Whether a certificate for this name is good for `host` too: a lower-case DNS name, or an address (IPv6 with or
    /// without brackets).
    pub fn covers(&self, host: &str) -> bool {
        match self {
            CertifiedName::Dns(pattern) => match pattern.strip_prefix("*.") {
                // RFC 9525, section 6.3: a wildcard is the whole left-most label, and matches one label.
                Some(parent) => host
                    .split_once('.')
                    .is_some_and(|(label, rest)| !label.is_empty() && label != "*" && rest == parent),
                None => pattern == host,
            },
            CertifiedName::Address(address) => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                bare.parse::<IpAddr>().is_ok_and(|host| host == *address)
            }
        }
    }
}

impl fmt::Display for CertifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertifiedName::Dns(name) => f.write_str(name),
            CertifiedName::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pattern: &str) -> Vec<String> {
        let names = CertifiedName::of_pattern(&HostPattern::parse(pattern).unwrap());
        names.iter().map(CertifiedName::to_string).collect()
    }

    #[test]
    fn a_pattern_becomes_the_names_that_are_certified() {
        assert_eq!(names("a.example"), ["a.example"]);
        assert_eq!(names("*.a.example"), ["*.a.example"]);
        assert_eq!(names(".a.example"), ["a.example", "*.a.example"]);
        assert_eq!(names("[2001:DB8::1]"), ["2001:db8::1"]);
        assert!(names("www.*").is_empty());
    }

    #[test]
    fn names_of_this_machine_and_of_private_networks_are_not_public() {
        let is_public = |name: &str| CertifiedName::of_pattern(&HostPattern::parse(name).unwrap())[0].is_public();
        for name in
            ["example.com", "*.example.com", "test.example.com", "mylocal.se", "a.lan.se", "8.8.8.8", "[2606:4700::1]"]
        {
            assert!(is_public(name), "{name}");
        }
        for name in [
            "localhost",
            "app.localhost",
            "intranet",
            "app.test",
            "test",
            "a.example",
            "*.example",
            "a.invalid",
            "a.local",
            "a.internal",
            "nas.lan",
            "a.home.arpa",
            "home.arpa",
            "a.onion",
            "127.0.0.1",
            "[::1]",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.0.1",
            "[fe80::1]",
            "[fd00::1]",
            "[::ffff:10.0.0.1]",
            "100.100.1.1",
            "0.0.0.0",
            "[::]",
        ] {
            assert!(!is_public(name), "{name}");
        }
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        let wildcard = CertifiedName::Dns("*.a.example".to_owned());
        assert!(wildcard.is_wildcard() && wildcard.covers("x.a.example"));
        for host in ["a.example", "x.y.a.example", ".a.example", "xa.example", "*.a.example"] {
            assert!(!wildcard.covers(host), "{host}");
        }
        let address = CertifiedName::Address("::1".parse().unwrap());
        assert!(address.covers("[::1]") && address.covers("::1") && !address.covers("[::2]"));
    }
}
