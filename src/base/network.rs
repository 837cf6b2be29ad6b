//! Ranges of addresses: CIDRs and the built-in names for them.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// A set of address ranges, such as `trusted_proxies` or a route's `allow`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(pub Vec<IpNet>);

impl Networks {
    /// Whether `address` is in one of the ranges. An IPv4 address mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|range| range.contains(&address))
    }

    /// Whether there is no range at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads a CIDR (`10.0.0.0/8`) or a single address (`::1`).
pub fn parse_network(text: &str) -> Option<IpNet> {
    let range =
        text.parse::<IpNet>().ok().map(|n| n.trunc()).or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
    // Addresses are asked for as IPv4 where they are: so are ranges, or they would never match.
    match (range.addr().to_canonical(), range.prefix_len().checked_sub(96)) {
        (address @ IpAddr::V4(_), Some(prefix)) if range.addr().is_ipv6() => IpNet::new(address, prefix).ok(),
        _ => Some(range),
    }
}

/// What of an address tells one client from another: one customer has at least a /64 of IPv6 (RFC 6177), and all of its
/// addresses. An IPv4 address mapped into IPv6 counts as IPv4.
pub fn client_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        address => address,
    }
}

/// The ranges behind the name `private`: loopback, RFC 1918, RFC 4193, link-local.
pub fn private_networks() -> impl Iterator<Item = IpNet> {
    const RANGES: [&str; 8] = [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    ];
    RANGES.iter().filter_map(|text| parse_network(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_count_as_ipv4() {
        let private = Networks(private_networks().collect());
        assert_eq!(private.0.len(), 8);
        assert!(private.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!private.contains("192.0.2.1".parse().unwrap()));
        assert!(Networks(vec![parse_network("::1").unwrap()]).contains("::1".parse().unwrap()));
        assert_eq!(parse_network("10.0.0.0/33"), None);
        assert_eq!(parse_network("::ffff:192.0.2.0/120"), parse_network("192.0.2.0/24"));
        assert_eq!(parse_network("::ffff:192.0.2.7"), parse_network("192.0.2.7"));
        assert!(parse_network("::/0").is_some_and(|all| all.addr().is_ipv6()));
    }
}
