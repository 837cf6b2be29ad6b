//! Who may pass: addresses, limits and passwords, asked in this order, before a byte of a body is read.

use std::net::IpAddr;
use std::sync::Arc;

use crate::base::fault::{Fault, Kind};
use crate::base::network::Networks;
use crate::edge::limits::RateLimits;
use crate::edge::sign_in::SignIn;

/// What of it outlives every reload.
#[derive(Debug, Default)]
pub struct Gate {
    /// Who has asked how often.
    pub limits: RateLimits,
    /// Who has signed in.
    pub sign_in: SignIn,
}

/// The addresses that may, and those that may not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Only these; `None` is everybody.
    pub allow: Option<Networks>,
    /// Not these, whatever `allow` says.
    pub deny: Networks,
}

impl Addresses {
    /// Refuses a client at `address` with `status` if it may not.
    pub fn check(&self, address: IpAddr, status: u16) -> Result<(), Fault> {
        let allowed = self.allow.as_ref().is_none_or(|allow| allow.contains(address));
        if allowed && !self.deny.contains(address) {
            return Ok(());
        }
        Err(Fault::new(Kind::Forbidden, "the address may not (allow, deny)").status(status))
    }
}

impl Gate {
    /// Nobody has been here yet.
    pub fn new() -> Arc<Gate> {
        Arc::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::network::parse_network;

    fn networks(texts: &[&str]) -> Networks {
        Networks(texts.iter().map(|text| parse_network(text).unwrap()).collect())
    }

    #[test]
    fn deny_wins_over_allow() {
        let addresses = Addresses { allow: Some(networks(&["10.0.0.0/8"])), deny: networks(&["10.1.0.0/16"]) };
        let may = |text: &str| addresses.check(text.parse().unwrap(), 403).is_ok();
        assert!(may("10.2.0.1"));
        assert!(may("::ffff:10.2.0.1"), "an IPv4 client of a socket for both");
        assert!(!may("10.1.0.1"));
        assert!(!may("::ffff:10.1.0.1"));
        assert!(!may("192.0.2.1"));
        let open = Addresses { allow: None, deny: networks(&["2001:db8::/32"]) };
        assert!(open.check("192.0.2.1".parse().unwrap(), 403).is_ok());
        let fault = open.check("2001:db8::1".parse().unwrap(), 404).unwrap_err();
        assert_eq!((fault.kind, fault.status), (Kind::Forbidden, Some(404)));
    }
}
