//! Ranges of addresses: CIDRs and the built-in names for them.

use std::net::IpAddr;

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
    text.parse::<IpNet>().ok().map(|n| n.trunc()).or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
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
    }
}
