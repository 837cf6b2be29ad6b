//! For which names the local authority may vouch (RFC 5280, section 4.2.1.10). Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use crate::base::certified_name::CertifiedName;
use crate::base::network::private_networks;

/// Names that nobody owns in the public DNS: those of RFC 6761 (section 6) and RFC 6762, `home.arpa` (RFC 8375),
/// `internal` (reserved by ICANN in 2024), and `lan`, which routers use.
const LOCAL_NAMES: [&str; 8] = ["localhost", "test", "example", "invalid", "local", "internal", "lan", "home.arpa"];

/// The names (each with all below it) and the addresses that an authority may certify. Whoever gets hold of its key
/// can pretend to be one of these, and nobody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraints {
    names: BTreeSet<String>,
    networks: BTreeSet<IpNet>,
}

impl Constraints {
    /// Local names and private addresses alone.
    pub fn local() -> Constraints {
        Constraints {
            names: LOCAL_NAMES.iter().map(|name| (*name).to_owned()).collect(),
            networks: private_networks().collect(),
        }
    }

    /// The constraints of a certificate. `None` when it could vouch for anybody: without permitted names, without
    /// permitted addresses, or where a client may pass over them.
    pub fn of(certificate: &X509Certificate<'_>) -> Option<Constraints> {
        let extension = certificate.name_constraints().ok().flatten().filter(|extension| extension.critical)?;
        let mut read = Constraints { names: BTreeSet::new(), networks: BTreeSet::new() };
        for subtree in extension.value.permitted_subtrees.iter().flatten() {
            match &subtree.base {
                // The empty name permits all; what a dot in front means is left open by the RFC.
                GeneralName::DNSName(name) if name.is_empty() || name.starts_with('.') => return None,
                GeneralName::DNSName(name) => {
                    read.names.insert(name.to_ascii_lowercase());
                }
                GeneralName::IPAddress(range) => {
                    read.networks.insert(network(range).filter(|network| network.prefix_len() > 0)?);
                }
                _ => {}
            }
        }
        // RFC 5280, section 4.2.1.10: "If no name of the type is in the certificate, the certificate is acceptable",
        // and a type that has no subtree here is not restricted at all.
        (!read.names.is_empty() && !read.networks.is_empty()).then_some(read)
    }

    /// The same, and `names`. A wildcard adds its parent.
    pub fn with<'n>(mut self, names: impl IntoIterator<Item = &'n CertifiedName>) -> Constraints {
        for name in names {
            if self.permit(name) {
                continue;
            }
            match name {
                CertifiedName::Dns(name) => {
                    self.names.insert(name.strip_prefix("*.").unwrap_or(name).to_owned());
                }
                CertifiedName::Address(address) => {
                    self.networks.insert(IpNet::from(*address));
                }
            }
        }
        self
    }

    /// The same, and those of `other`.
    pub fn joined(mut self, other: Constraints) -> Constraints {
        self.names.extend(other.names);
        self.networks.extend(other.networks);
        self
    }

    /// Whether a certificate may name `name`.
    pub fn permit(&self, name: &CertifiedName) -> bool {
        match name {
            CertifiedName::Dns(name) => {
                let name = name.strip_prefix("*.").unwrap_or(name);
                // "Any DNS name that can be constructed by simply adding zero or more labels to the left-hand side".
                let is_below = |tree: &str| name.strip_suffix(tree).is_some_and(|rest| rest.ends_with('.'));
                self.names.iter().any(|tree| name == tree || is_below(tree))
            }
            CertifiedName::Address(address) => self.networks.iter().any(|network| network.contains(address)),
        }
    }

    /// What is permitted and is not local: it belongs to somebody in the world.
    pub fn beyond_local(&self) -> Vec<String> {
        let local = Constraints::local();
        let names = self.names.iter().filter(|name| !local.permit(&CertifiedName::Dns((*name).clone())));
        let networks = self.networks.iter().filter(|network| !local.networks.iter().any(|n| n.contains(*network)));
        let shown = |network: &IpNet| {
            if network.prefix_len() == network.max_prefix_len() {
                network.addr().to_string()
            } else {
                network.to_string()
            }
        };
        names.cloned().chain(networks.map(shown)).collect()
    }

    /// The same for rcgen, which marks them critical.
    pub(super) fn extension(&self) -> NameConstraints {
        let names = self.names.iter().cloned().map(GeneralSubtree::DnsName);
        let subnet = |network: &IpNet| CidrSubnet::from_addr_prefix(network.network(), network.prefix_len());
        let networks = self.networks.iter().map(|network| GeneralSubtree::IpAddress(subnet(network)));
        NameConstraints { permitted_subtrees: names.chain(networks).collect(), excluded_subtrees: Vec::new() }
    }
}

/// For people: what an authority of these constraints may vouch for.
impl fmt::Display for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "names below {}, private addresses", LOCAL_NAMES.join(", "))?;
        let beyond = self.beyond_local();
        if !beyond.is_empty() {
            write!(f, "; beyond this machine and its network: {}", beyond.join(", "))?;
        }
        Ok(())
    }
}

/// An address and its mask, one behind the other.
fn network(range: &[u8]) -> Option<IpNet> {
    let (address, mask) = range.split_at_checked(range.len() / 2)?;
    let read = |bytes: &[u8]| -> Option<IpAddr> {
        <[u8; 4]>::try_from(bytes)
            .map(|v4| IpAddr::from(Ipv4Addr::from(v4)))
            .or_else(|_| <[u8; 16]>::try_from(bytes).map(|v6| IpAddr::from(Ipv6Addr::from(v6))))
            .ok()
    };
    IpNet::with_netmask(read(address)?, read(mask)?).ok().map(|network| network.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use rustls_pki_types::CertificateDer;

    fn name(text: &str) -> CertifiedName {
        text.parse().map_or_else(|_| CertifiedName::Dns(text.to_owned()), CertifiedName::Address)
    }

    fn certificate(constraints: Option<NameConstraints>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.name_constraints = constraints;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn read(der: &CertificateDer<'_>) -> Option<Constraints> {
        Constraints::of(&x509_parser::parse_x509_certificate(der).unwrap().1)
    }

    #[test]
    fn local_names_and_private_addresses_are_permitted() {
        let local = Constraints::local();
        for permitted in [
            "localhost",
            "a.localhost",
            "*.test",
            "x.y.test",
            "nas.home.arpa",
            "127.8.0.1",
            "10.0.0.1",
            "::1",
            "fd00::1",
        ] {
            assert!(local.permit(&name(permitted)), "{permitted}");
        }
        for other in [
            "example.com",
            "atest",
            "xlocalhost",
            "arpa",
            "test.com",
            "*.com",
            "*",
            "8.8.8.8",
            "172.32.0.1",
            "2001:db8::1",
        ] {
            assert!(!local.permit(&name(other)), "{other}");
        }
        assert_eq!(local.beyond_local(), Vec::<String>::new());
    }

    #[test]
    fn hosts_of_the_file_are_added_where_they_are_missing() {
        let names = ["shop.example.com", "*.cdn.example.org", "app.test", "192.0.2.7", "10.1.1.1"].map(name);
        let constraints = Constraints::local().with(&names);
        assert_eq!(constraints.beyond_local(), ["cdn.example.org", "shop.example.com", "192.0.2.7"]);
        assert!(names.iter().all(|name| constraints.permit(name)));
        for other in ["example.com", "example.org", "myshop.example.com", "192.0.2.8"] {
            assert!(!constraints.permit(&name(other)), "{other}");
        }
        assert!(constraints.to_string().contains("shop.example.com"), "{constraints}");
    }

    #[test]
    fn a_certificate_carries_them() {
        let constraints = Constraints::local().with(&[name("shop.example.com"), name("2001:db8::7")]);
        assert_eq!(read(&certificate(Some(constraints.extension()))), Some(constraints));
    }

    #[test]
    fn what_could_vouch_for_anybody_has_none() {
        assert_eq!(read(&certificate(None)), None);
        let of = |permitted_subtrees| Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        let dns = |text: &str| GeneralSubtree::DnsName(text.to_owned());
        let all = || GeneralSubtree::IpAddress("0.0.0.0/0".parse().unwrap());
        let ten = || GeneralSubtree::IpAddress("10.0.0.0/8".parse().unwrap());
        for open in
            [vec![dns("test")], vec![ten()], vec![dns(""), ten()], vec![dns("test"), all()], vec![dns(".x"), ten()]]
        {
            assert_eq!(read(&certificate(of(open.clone()))), None, "{open:?}");
        }
        assert!(read(&certificate(of(vec![dns("test"), ten()]))).is_some());
    }
}
