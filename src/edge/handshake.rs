//! Whether a socket may be opened at all: asked of every WebSocket handshake before its back end is dialled.

use std::sync::Arc;
use std::time::Duration;

use http::header;

use crate::base::fault::{Fault, Kind};
use crate::base::origin::{Origin, OriginPattern};
use crate::edge::places::{Full, Place, PlaceLimits};
use crate::edge::process::Process;
use crate::edge::refusals::Refused;
use crate::http::request::{ClientRequest, Scheme, effective_port};
use crate::tunnel::Policy;
use crate::tunnel::rules::Rules;

/// What a route says about its sockets.
pub struct SocketRules {
    /// The name of its block in the register of places: the same after a reload.
    pub block: Arc<str>,
    /// How many sockets at once.
    pub places: PlaceLimits,
    /// The pages that may open them; empty is all.
    pub origins: Vec<OriginPattern>,
    /// How long one may be silent.
    pub idle_timeout: Duration,
    /// What its client is held to.
    pub client: Rules,
}

/// A socket that may be opened: what its tunnel is held to, and its place, which it has until this is dropped.
pub struct Admitted {
    /// The tunnel's deadlines and rules.
    pub policy: Policy,
    /// The place.
    pub place: Place,
}

impl SocketRules {
    /// Takes a place for the handshake `request`, or says why there is none.
    pub fn admit(&self, request: &ClientRequest, process: &Process, write: Duration) -> Result<Admitted, Fault> {
        if !self.is_allowed_origin(request) {
            process.refused.count(Refused::Origin);
            return Err(Fault::new(Kind::Forbidden, "the Origin of a handshake is not in origins"));
        }
        let place = process.places.take(&self.block, request.client.address, self.places).map_err(|full| {
            let (why, detail) = match full {
                Full::Block => (Refused::Sockets, "the sockets of the block are at max_connections"),
                Full::Address => (Refused::SocketsOfAddress, "the address has max_connections_per_ip sockets"),
            };
            process.refused.count(why);
            Fault::new(Kind::Crowded, detail)
        })?;
        let rules = (!self.client.is_empty()).then(|| Box::new(self.client));
        let policy = Policy { idle_timeout: self.idle_timeout, write, rules, ..Policy::default() };
        Ok(Admitted { policy, place })
    }

    /// RFC 6455, section 10.2: "Servers that are not intended to process input from any web page but only for certain
    /// sites SHOULD verify the |Origin| field is an origin they expect." Browsers always send it; whoever sends none is
    /// no page, and could send any.
    fn is_allowed_origin(&self, request: &ClientRequest) -> bool {
        if self.origins.is_empty() {
            return true;
        }
        let mut fields = request.headers.get_all(header::ORIGIN).iter();
        let origin = match (fields.next(), fields.next()) {
            (None, _) => return true,
            (Some(_), Some(_)) => return false,
            (Some(value), None) => match value.to_str() {
                Ok(text) => Origin::parse(text),
                Err(_) => return false,
            },
        };
        let scheme = request.client.scheme;
        let target = Origin {
            secure: scheme == Scheme::Https,
            host: request.authority.host.clone(),
            port: effective_port(&request.authority, scheme),
        };
        self.origins.iter().any(|allowed| allowed.allows(origin.as_ref(), &target))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::base::network::{Networks, parse_network};
    use crate::http::request::{Arrival, HeadLimits, Trust};

    fn allows(origins: &[&str], scheme: Scheme, host: &str, fields: &[(&str, &str)]) -> bool {
        let rules = SocketRules {
            block: "app".into(),
            places: PlaceLimits::default(),
            origins: origins.iter().map(|text| OriginPattern::parse(text).unwrap()).collect(),
            idle_timeout: Duration::ZERO,
            client: Rules::default(),
        };
        let mut builder = http::Request::builder().uri("/ws").header("host", host);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let arrival = Arrival {
            peer: "192.0.2.7:5000".parse().unwrap(),
            local: "192.0.2.1:443".parse().unwrap(),
            scheme,
            unnamed: false,
        };
        let trust = Trust {
            proxies: Networks(parse_network("192.0.2.7").into_iter().collect()),
            header: HeaderName::from_static("x-forwarded-for"),
            cloudflare: Networks(vec![]),
        };
        let limits = HeadLimits { max_uri: 8192, max_headers: 100, max_header_size: 32768 };
        let head = builder.body(()).unwrap().into_parts().0;
        rules.is_allowed_origin(&ClientRequest::read(head, None, arrival, &trust, limits).unwrap())
    }

    #[test]
    fn a_page_of_the_site_itself_is_told_by_scheme_host_and_port() {
        let itself = |scheme, host, origin| allows(&["self"], scheme, host, &[("origin", origin)]);
        assert!(itself(Scheme::Https, "app.example", "https://app.example"));
        assert!(itself(Scheme::Https, "APP.example:443", "https://App.Example"));
        assert!(itself(Scheme::Http, "app.example:8080", "http://app.example:8080"));
        assert!(!itself(Scheme::Https, "app.example", "http://app.example"));
        assert!(!itself(Scheme::Https, "app.example", "https://app.example:8443"));
        assert!(!itself(Scheme::Https, "app.example", "https://evil.example"));
        assert!(!itself(Scheme::Https, "app.example", "https://app.example.evil.test"));
    }

    #[test]
    fn behind_a_trusted_proxy_the_scheme_is_the_clients() {
        let fields = [("origin", "https://app.example"), ("x-forwarded-proto", "https")];
        assert!(allows(&["self"], Scheme::Http, "app.example", &fields));
        assert!(!allows(&["self"], Scheme::Http, "app.example", &fields[..1]));
    }

    #[test]
    fn what_is_no_page_passes_and_what_is_doubtful_does_not() {
        let asked = |origins: &[&str], fields: &[(&str, &str)]| allows(origins, Scheme::Https, "app.example", fields);
        assert!(asked(&["self"], &[]), "no browser");
        assert!(asked(&[], &[("origin", "https://evil.example")]), "not checked");
        assert!(!asked(&["self"], &[("origin", "null")]));
        assert!(asked(&["self", "null"], &[("origin", "null")]));
        assert!(!asked(&["self"], &[("origin", "")]));
        assert!(!asked(&["self"], &[("origin", "https://app.example"), ("origin", "https://app.example")]));
        assert!(!asked(&["self"], &[("origin", "https://app.example, https://evil.example")]));
        assert!(!asked(&["self", "null"], &[("origin", "https://app.example\u{e4}")]));
        assert!(asked(&["https://*.x.example"], &[("origin", "https://a.b.X.example")]));
        assert!(!asked(&["https://*.x.example"], &[("origin", "https://x.example")]));
    }
}
