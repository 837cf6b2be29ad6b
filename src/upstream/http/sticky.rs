//! The cookie that keeps a client with its back end: a name for the back end that says nothing else. It follows from
//! the back end's address alone, so that several instances agree without asking one another, and neither a reload nor
//! another order of the list moves anybody.

use aws_lc_rs::{digest, hmac};
use http::{HeaderMap, HeaderValue, header};

use crate::http::request::Scheme;
use crate::upstream::http::balance::{Balancer, Candidate};
use crate::upstream::http::settings::Sticky;
use crate::upstream::http::tls;

/// Of the digest, in bytes; the cookie has twice as many hexadecimal digits.
const TAG: usize = 8;

impl Balancer {
    /// The back end that the client's cookie names. A value that names none of `candidates` is as good as none: it is
    /// compared, never read, and cannot lead anywhere else.
    ///
    /// Not in constant time: a tag lets nobody in. Who found another's by the clock could choose a back end of the list,
    /// which dropping the cookie does as well.
    pub(super) fn own(&self, candidates: &[Candidate], headers: &HeaderMap) -> Option<usize> {
        let Sticky::Cookie { name, .. } = &self.sticky else { return None };
        let value = cookie(headers, name)?;
        candidates.iter().position(|candidate| candidate.tag.as_bytes() == value)
    }

    /// The cookie that keeps a client with `chosen`, unless it has it already.
    pub(super) fn cookie(&self, chosen: &Candidate, headers: &HeaderMap, scheme: Scheme) -> Option<HeaderValue> {
        let Sticky::Cookie { name, .. } = &self.sticky else { return None };
        if cookie(headers, name) == Some(chosen.tag.as_bytes()) {
            return None;
        }
        let secure = if scheme == Scheme::Https { "; Secure" } else { "" };
        HeaderValue::try_from(format!("{name}={}; Path=/; HttpOnly; SameSite=Lax{secure}", chosen.tag)).ok()
    }

    /// Whether [`Balancer::cookie`] will ask for the client's fields.
    pub(super) fn needs_cookie(&self) -> bool {
        matches!(self.sticky, Sticky::Cookie { .. })
    }
}

/// Sixteen hexadecimal digits that name a back end to its clients without saying where it is. Without a secret whoever
/// guesses an address can confirm the guess.
pub(super) fn tag(back_end: &str, cookie: &str, secret: Option<&str>) -> String {
    let Some(secret) = secret else {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(back_end.as_bytes());
        context.update(cookie.as_bytes());
        return tls::hex(context.finish().as_ref(), TAG);
    };
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()));
    context.update(cookie.as_bytes());
    // No name of a cookie has one: what is before and what is behind it cannot be shifted.
    context.update(b"\0");
    context.update(back_end.as_bytes());
    tls::hex(context.sign().as_ref(), TAG)
}

/// The first value of the cookie `name`.
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    headers.get_all(header::COOKIE).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b';')).find_map(
        |pair| {
            let at = memchr::memchr(b'=', pair)?;
            let (key, value) = pair.split_at(at);
            (key.trim_ascii() == name.as_bytes()).then(|| value.get(1..).unwrap_or_default().trim_ascii())
        },
    )
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};
    use std::sync::Arc;

    use super::*;
    use crate::upstream::http::back_end::BackEndRegister;
    use crate::upstream::http::settings::Balance;
    use proptest::prelude::*;

    const NOBODY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

    fn by_cookie(secret: Option<&str>) -> Sticky {
        Sticky::Cookie { name: "node".into(), secret: secret.map(str::to_owned) }
    }

    fn list(register: &BackEndRegister, numbers: &[usize], sticky: &Sticky) -> Vec<Candidate> {
        numbers
            .iter()
            .map(|i| Candidate::new(register.state(&format!("http://10.0.0.{i}:80")), 1, false, sticky))
            .collect()
    }

    fn with_cookie(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::try_from(value).unwrap());
        headers
    }

    fn name(balancer: &Balancer, list: &[Candidate], address: IpAddr, headers: &HeaderMap) -> Arc<str> {
        list[balancer.order(list, address, headers)[0]].state.name().clone()
    }

    #[test]
    fn a_sticky_cookie_leads_back_and_an_unknown_one_is_replaced() {
        for secret in [None, Some("of the house")] {
            let sticky = by_cookie(secret);
            let list = list(&BackEndRegister::new(), &[0, 1, 2, 3], &sticky);
            let balancer = Balancer::new(Balance::RoundRobin, sticky, std::time::Duration::ZERO);
            for chosen in &list {
                let set = balancer.cookie(chosen, &HeaderMap::new(), Scheme::Https).unwrap();
                let (pair, rest) = set.to_str().unwrap().split_once(';').unwrap();
                assert_eq!(rest, " Path=/; HttpOnly; SameSite=Lax; Secure");
                assert_eq!(pair.len(), "node=".len() + 16);
                let headers = with_cookie(&format!("a=1; {pair};b=2"));
                assert_eq!(name(&balancer, &list, NOBODY, &headers), *chosen.state.name());
                assert!(balancer.cookie(chosen, &headers, Scheme::Https).is_none());
            }
            let headers = with_cookie("node=10.0.0.1:80; xnode=1; node");
            assert_eq!(balancer.own(&list, &headers), None);
            let set = balancer.cookie(&list[0], &headers, Scheme::Http).unwrap();
            assert!(!set.to_str().unwrap().contains("Secure"));
        }
    }

    #[test]
    fn the_cookie_of_one_that_is_out_leads_elsewhere_and_is_replaced() {
        let sticky = by_cookie(None);
        let list = list(&BackEndRegister::new(), &[0, 1], &sticky);
        let balancer = Balancer::new(Balance::LeastConn, sticky, std::time::Duration::ZERO);
        let headers = with_cookie(&format!("node={}", list[0].tag));
        assert_eq!(balancer.order(&list, NOBODY, &headers), [0, 1]);
        list[0].state.missed();
        assert_eq!(balancer.order(&list, NOBODY, &headers), [1]);
        let set = balancer.cookie(&list[1], &headers, Scheme::Https).unwrap();
        assert!(set.to_str().unwrap().starts_with(&format!("node={};", list[1].tag)));
    }

    #[test]
    fn a_secret_makes_tags_that_nobody_else_can_make() {
        let open = tag("http://10.0.0.1:80", "node", None);
        let ours = tag("http://10.0.0.1:80", "node", Some("ours"));
        assert_ne!(open, ours);
        assert_ne!(ours, tag("http://10.0.0.1:80", "node", Some("theirs")));
        assert_ne!(ours, tag("http://10.0.0.1:80", "other", Some("ours")), "another cookie says nothing of this one");
        assert_ne!(ours, tag("http://10.0.0.2:80", "node", Some("ours")));
        // Every instance with the same file makes the same; these are written down, so that the next version does too.
        assert_eq!(open, "f88abd628722658b");
        assert_eq!(ours, "8936b3fdc55a231e");
    }

    #[test]
    fn an_ipv4_client_is_the_same_over_a_socket_of_ipv6() {
        let list = list(&BackEndRegister::new(), &[0, 1, 2, 3, 4, 5, 6, 7], &Sticky::Ip);
        let balancer = Balancer::new(Balance::LeastConn, Sticky::Ip, std::time::Duration::ZERO);
        for i in 0..200 {
            let v4 = std::net::Ipv4Addr::new(192, 0, 2, i);
            let [plain, mapped] = [IpAddr::V4(v4), IpAddr::V6(v4.to_ipv6_mapped())];
            let none = HeaderMap::new();
            assert_eq!(name(&balancer, &list, plain, &none), name(&balancer, &list, mapped, &none));
        }
    }

    /// Numbers of back ends without repetition, in any order.
    fn numbers() -> impl Strategy<Value = Vec<usize>> {
        proptest::collection::hash_set(0_usize..200, 2..9).prop_map(|set| set.into_iter().collect::<Vec<_>>())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_cookie_outlasts_every_change_of_the_list_that_leaves_its_back_end(
            before in numbers(), after in numbers(), secret in proptest::option::of("[a-z]{1,40}"), loads in any::<u64>()
        ) {
            let sticky = by_cookie(secret.as_deref());
            let register = BackEndRegister::new();
            // Two lists as of two configurations, or of two instances.
            let (old, new) = (list(&register, &before, &sticky), list(&register, &after, &sticky));
            let [first, second] = [Balance::LeastConn, Balance::Random].map(|b| Balancer::new(b, sticky.clone(), std::time::Duration::ZERO));
            let _busy: Vec<_> = (0..before.len()).filter(|i| loads >> i & 1 > 0).map(|i| old[i].state.enter()).collect();
            for candidate in &old {
                let set = first.cookie(candidate, &HeaderMap::new(), Scheme::Https).unwrap();
                let headers = with_cookie(set.to_str().unwrap().split(';').next().unwrap());
                prop_assert_eq!(&name(&first, &old, NOBODY, &headers), candidate.state.name());
                let stayed = new.iter().any(|other| other.state.name() == candidate.state.name());
                if stayed {
                    prop_assert_eq!(&name(&second, &new, NOBODY, &headers), candidate.state.name());
                } else {
                    prop_assert_eq!(second.own(&new, &headers), None);
                }
            }
        }

        #[test]
        fn an_address_keeps_its_back_end_when_others_come_go_or_change_places(
            before in numbers(), other in 200_usize..300, turn in any::<usize>(), clients in any::<u32>()
        ) {
            let register = BackEndRegister::new();
            let balancer = Balancer::new(Balance::RoundRobin, Sticky::Ip, std::time::Duration::ZERO);
            let none = HeaderMap::new();
            let old = list(&register, &before, &Sticky::Ip);
            let mut turned = before.clone();
            turned.rotate_left(turn % before.len());
            turned.push(other);
            let more = list(&register, &turned, &Sticky::Ip);
            let fewer = list(&register, &before[1..], &Sticky::Ip);
            let added = format!("http://10.0.0.{other}:80");
            for i in 0..200_u32 {
                let address = IpAddr::V4(clients.wrapping_add(i.wrapping_mul(7919)).into());
                let own = name(&balancer, &old, address, &none);
                let now = name(&balancer, &more, address, &none);
                prop_assert!(now == own || *now == *added, "{} moved to {}", own, now);
                if own != *old[0].state.name() {
                    prop_assert_eq!(name(&balancer, &fewer, address, &none), own);
                }
            }
        }

        #[test]
        fn ipv6_clients_are_told_apart_by_the_upper_half_of_their_address(net in any::<u64>(), hosts in any::<[u64; 2]>()) {
            // Those of ::/64 are mapped or local.
            prop_assume!(net != 0);
            let list = list(&BackEndRegister::new(), &[0, 1, 2, 3], &Sticky::Ip);
            let balancer = Balancer::new(Balance::LeastConn, Sticky::Ip, std::time::Duration::ZERO);
            let none = HeaderMap::new();
            let at = |net: u64, host: u64| IpAddr::V6(Ipv6Addr::from(u128::from(net) << 64 | u128::from(host)));
            prop_assert_eq!(name(&balancer, &list, at(net, hosts[0]), &none), name(&balancer, &list, at(net, hosts[1]), &none));
            let mut seen = std::collections::HashSet::new();
            for i in 0..64 {
                seen.insert(name(&balancer, &list, at(net.wrapping_add(i), hosts[0]), &none));
            }
            prop_assert!(seen.len() > 1, "all neighbours share one back end");
        }

        #[test]
        fn no_value_of_a_cookie_leads_out_of_the_list(value in "[ -~]{0,80}") {
            let sticky = by_cookie(Some("secret"));
            let list = list(&BackEndRegister::new(), &[0, 1, 2], &sticky);
            let balancer = Balancer::new(Balance::RoundRobin, sticky, std::time::Duration::ZERO);
            let mut order = balancer.order(&list, NOBODY, &with_cookie(&format!("node={value}")));
            order.sort_unstable();
            prop_assert_eq!(order, [0, 1, 2]);
        }
    }
}
