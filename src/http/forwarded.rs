//! Who the client is, and what back ends are told about it.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::base::host::Authority;
use crate::http::forwarded_field;
use crate::http::hop::drop_all;
use crate::http::request::{Arrival, Client, Scheme, Trust, effective_port};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// Written by Cloudflare alone, which replaces what its client wrote there.
const CLOUDFLARE_IP: HeaderName = HeaderName::from_static("cf-connecting-ip");

/// Decides who the client is: the peer itself, unless it is a trusted proxy; then whom it names.
///
/// The field that `trust` names is read from its right end, over all its lines: each hop that is a trusted proxy itself
/// vouches for the one to its left, and the first that is not is the client. A hop that cannot be read ends the walk at
/// the proxy that named it: what stands left of it was said by nobody we know.
///
/// `CF-Connecting-IP` is one address, and is Cloudflare's word: from any other trusted proxy `X-Forwarded-For` is read
/// in its place, to which Cloudflare has appended the same address.
pub fn client(arrival: Arrival, headers: &HeaderMap, trust: &Trust) -> Client {
    let peer = arrival.peer.ip().to_canonical();
    let plain = Client { address: peer, arrival, scheme: arrival.scheme, trusted: false };
    if arrival.unnamed || !trust.proxies.contains(peer) {
        return plain;
    }
    let plain = Client { trusted: true, ..plain };
    if trust.header == header::FORWARDED {
        let hops = forwarded_field::hops(headers);
        let walked = walk(peer, hops.iter().rev().map(|hop| hop.address), trust);
        // The client's own hop says how the client came. X-Forwarded-Proto is not what such a proxy writes.
        let own = walked.passed.checked_sub(1).and_then(|passed| hops.iter().rev().nth(passed));
        let scheme = own.and_then(|hop| hop.scheme).unwrap_or(arrival.scheme);
        return Client { address: walked.address, scheme, ..plain };
    }
    let walked = if trust.header == CLOUDFLARE_IP && trust.cloudflare.contains(peer) {
        Walked { address: only_address(headers, &CLOUDFLARE_IP).unwrap_or(peer), passed: 1 }
    } else {
        let field = if trust.header == CLOUDFLARE_IP { &FOR } else { &trust.header };
        let named: Vec<&[u8]> = list(headers, field).collect();
        walk(peer, named.iter().rev().map(|text| parse_address(text)), trust)
    };
    Client { address: walked.address, scheme: scheme(headers, walked.passed).unwrap_or(arrival.scheme), ..plain }
}

/// Sets X-Forwarded-For, -Proto, -Host, -Port and X-Real-IP. An untrusted client's own copies are gone by now. A trusted
/// proxy's -Host and -Port stay; its chain in X-Forwarded-For stays, with its address appended, where that is the field
/// that the client was read from.
pub fn set(headers: &mut HeaderMap, authority: &Authority, client: &Client) {
    // These five, Host and a framing field: at once, not one growth of the map after the other.
    headers.reserve(8);
    let address = text_of(client.address);
    if headers.contains_key(FOR) {
        append(headers, FOR, text_of(client.arrival.peer.ip().to_canonical()).as_bytes());
    } else {
        headers.insert(FOR, address.clone());
    }
    headers.insert(PROTO, HeaderValue::from_static(client.scheme.as_str()));
    headers.insert(REAL_IP, address);
    if !(client.trusted && headers.contains_key(HOST))
        && let Ok(value) = HeaderValue::from_str(&authority.text())
    {
        headers.insert(HOST, value);
    }
    if !(client.trusted && headers.contains_key(PORT)) {
        headers.insert(PORT, HeaderValue::from(effective_port(authority, client.scheme)));
    }
}

/// Adds this hop to `Forwarded` (RFC 7239): behind a trusted chain the peer, else the client.
pub fn set_forwarded(headers: &mut HeaderMap, authority: &Authority, client: &Client) {
    let (node, scheme) = match headers.contains_key(header::FORWARDED) {
        true => (client.arrival.peer.ip().to_canonical(), client.arrival.scheme),
        false => (client.address, client.scheme),
    };
    append(headers, header::FORWARDED, forwarded_field::element(node, authority, scheme).as_bytes());
}

/// Removes what a trusted proxy may have passed on without a look. Of the fields in `names`, each of which tells a
/// client's address, those stay that the address was read from, and those that say the same. Cloudflare's own stay as
/// well; but it writes no X-Forwarded-* other than -For and -Proto.
pub(super) fn drop_doubtful(headers: &mut HeaderMap, names: &[&'static str], client: &Client, trust: &Trust) {
    let is_cloudflare = trust.cloudflare.contains(client.arrival.peer.ip());
    let counts_for = trust.header == FOR || (trust.header == CLOUDFLARE_IP && !is_cloudflare);
    for name in names {
        let field = HeaderName::from_static(name);
        let is_true = || only_address(headers, &field) == Some(client.address);
        let stays = match *name {
            "x-forwarded-for" => counts_for,
            "forwarded" => trust.header == field,
            "cf-connecting-ip" => is_cloudflare || is_true(),
            _ if is_cloudflare && name.starts_with("cf-") => true,
            _ => trust.header == field || is_true(),
        };
        if !stays {
            headers.remove(field);
        }
    }
    if is_cloudflare {
        drop_all(headers, |name| name.as_str().starts_with("x-forwarded-") && *name != FOR && *name != PROTO);
    }
}

/// Where a walk ended, and how many hops it took.
struct Walked {
    address: IpAddr,
    passed: usize,
}

/// From the peer on along `hops`, the nearest first.
fn walk(peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>, trust: &Trust) -> Walked {
    let mut walked = Walked { address: peer, passed: 0 };
    for hop in hops {
        let Some(hop) = hop else { break };
        walked = Walked { address: hop.to_canonical(), passed: walked.passed + 1 };
        if !trust.proxies.contains(walked.address) {
            break;
        }
    }
    walked
}

/// The elements of a list field, over all its lines. Bytes: a line that is no text must not hide the others of its list.
fn list<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// The address of a field that has one line with one address.
fn only_address(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let mut elements = list(headers, name);
    match (elements.next(), elements.next()) {
        (Some(only), None) => parse_address(only).map(|address| address.to_canonical()),
        _ => None,
    }
}

/// The scheme that the client used, by X-Forwarded-Proto. A proxy may append to it as to the chain of addresses: what
/// belongs to the hop at `passed` counts, and where fewer are named, the left-most.
fn scheme(headers: &HeaderMap, passed: usize) -> Option<Scheme> {
    let named: Vec<&[u8]> = list(headers, &PROTO).collect();
    let from_the_right = passed.saturating_sub(1).min(named.len().checked_sub(1)?);
    parse_scheme(named.iter().rev().nth(from_the_right)?)
}

/// RFC 3986, section 3.1: "schemes are case-insensitive".
pub(super) fn parse_scheme(text: &[u8]) -> Option<Scheme> {
    let is = |name: &[u8]| text.eq_ignore_ascii_case(name);
    if is(b"https") || is(b"wss") {
        return Some(Scheme::Https);
    }
    (is(b"http") || is(b"ws")).then_some(Scheme::Http)
}

/// An address as proxies write it: bare, in brackets, with or without a port.
pub(super) fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        // A zone, as in [fe80::1%2]:80, is of another machine.
        return (!text.contains('%')).then_some(address.ip());
    }
    text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::V6)
}

/// `address` as text.
fn text_of(address: IpAddr) -> HeaderValue {
    let text = match address {
        // Every request has one, and the standard library takes as long for it as for all that is set here.
        IpAddr::V4(address) => {
            let mut text = Vec::with_capacity("255.255.255.255".len());
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    text.push(b'.');
                }
                let digits = [octet / 100, octet / 10 % 10, octet % 10].map(|digit| b'0' + digit);
                let leading_zeroes = usize::from(octet < 100) + usize::from(octet < 10);
                text.extend_from_slice(digits.get(leading_zeroes..).unwrap_or_default());
            }
            text
        }
        IpAddr::V6(address) => address.to_string().into_bytes(),
    };
    // Digits, dots, colons and letters: never refused.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("unknown"))
}

/// Makes one line of all lines of a list field and `last`.
fn append(headers: &mut HeaderMap, name: HeaderName, last: &[u8]) {
    let elements: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).chain([last]).collect();
    if let Ok(value) = HeaderValue::from_bytes(&elements.join(&b", "[..])) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::network::{Networks, parse_network};
    use crate::http::hop;

    fn trust(header: &str) -> Trust {
        let networks = |list: &[&str]| Networks(list.iter().filter_map(|text| parse_network(text)).collect());
        Trust {
            proxies: networks(&["10.0.0.0/8", "2001:db8:ffff::/48", "198.41.128.0/17"]),
            header: HeaderName::try_from(header).unwrap(),
            cloudflare: networks(&["198.41.128.0/17"]),
        }
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn arrival(peer: &str) -> Arrival {
        let peer = std::net::SocketAddr::new(peer.parse().unwrap(), 5000);
        Arrival { peer, local: "10.9.9.9:80".parse().unwrap(), scheme: Scheme::Http, unnamed: false }
    }

    fn read(header: &str, peer: &str, fields: &[(&str, &str)]) -> Client {
        client(arrival(peer), &map(fields), &trust(header))
    }

    fn address(peer: &str, field: &str) -> String {
        read("x-forwarded-for", peer, &[("x-forwarded-for", field)]).address.to_string()
    }

    #[test]
    fn addresses_are_written_as_the_standard_library_writes_them() {
        for octet in 0..=255 {
            let address = std::net::Ipv4Addr::new(octet, 255 - octet, 0, 10);
            assert_eq!(text_of(address.into()), address.to_string());
        }
        assert_eq!(text_of("2001:db8::1".parse().unwrap()), "2001:db8::1");
    }

    #[test]
    fn the_right_most_untrusted_address_is_the_client() {
        assert_eq!(address("192.0.2.1", "6.6.6.6"), "192.0.2.1");
        assert_eq!(address("10.0.0.1", "6.6.6.6, 192.0.2.9, 10.0.0.2"), "192.0.2.9");
        assert_eq!(address("10.0.0.1", "10.0.0.3"), "10.0.0.3", "all of them are trusted");
        assert_eq!(address("::ffff:10.0.0.1", "[2001:db8::1]:80"), "2001:db8::1");
        assert_eq!(address("10.0.0.1", "6.6.6.6, 192.0.2.9:4711,10.0.0.2:80"), "192.0.2.9");
        assert_eq!(address("10.0.0.1", "6.6.6.6, ::ffff:192.0.2.9, ::ffff:10.0.0.2"), "192.0.2.9");
        assert_eq!(address("10.0.0.1", "6.6.6.6, [2001:db8::9], 2001:db8:ffff::1"), "2001:db8::9");
    }

    #[test]
    fn several_lines_are_one_list() {
        let lines = [("x-forwarded-for", "6.6.6.6, 192.0.2.9"), ("x-forwarded-for", "10.0.0.2")];
        assert_eq!(read("x-forwarded-for", "10.0.0.1", &lines).address.to_string(), "192.0.2.9");
        let lines = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "192.0.2.9")];
        assert_eq!(read("x-forwarded-for", "10.0.0.1", &lines).address.to_string(), "192.0.2.9");
    }

    #[test]
    fn what_cannot_be_read_ends_the_walk_at_the_last_proxy() {
        for garbage in ["garbage", "", "unknown", "1.2.3", "6.6.6.6 6.6.6.6", "fe80::1%eth0", "6.6.6.6:99999", "[::1"] {
            assert_eq!(address("10.0.0.1", &format!("6.6.6.6, {garbage}")), "10.0.0.1", "{garbage}");
            assert_eq!(address("10.0.0.1", &format!("6.6.6.6, {garbage}, 10.0.0.2")), "10.0.0.2", "{garbage}");
            assert_eq!(address("10.0.0.1", &format!("{garbage}, 192.0.2.9")), "192.0.2.9", "{garbage}");
        }
    }

    #[test]
    fn a_line_that_is_no_text_hides_nothing() {
        // A proxy appends to the last line: its word must not go with the bytes in front of it.
        let lines = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "\u{e9}, 192.0.2.9")];
        assert_eq!(read("x-forwarded-for", "10.0.0.1", &lines).address.to_string(), "192.0.2.9");
        let mut headers = map(&lines);
        set(&mut headers, &Authority::parse("a.test").unwrap(), &read("x-forwarded-for", "10.0.0.1", &lines));
        assert_eq!(headers["x-forwarded-for"], "6.6.6.6, \u{e9}, 192.0.2.9, 10.0.0.1".as_bytes());
    }

    #[test]
    fn cloudflares_field_is_believed_of_cloudflare_alone() {
        let cloudflare =
            |peer: &str, fields: &[(&str, &str)]| read("cf-connecting-ip", peer, fields).address.to_string();
        let both = [("cf-connecting-ip", "192.0.2.9"), ("x-forwarded-for", "6.6.6.6")];
        assert_eq!(cloudflare("198.41.128.1", &both), "192.0.2.9");
        assert_eq!(cloudflare("192.0.2.1", &both), "192.0.2.1");
        // A balancer between Cloudflare and us, asked by Cloudflare and by somebody who goes around it.
        let via = [("cf-connecting-ip", "6.6.6.6"), ("x-forwarded-for", "6.6.6.6, 192.0.2.9, 198.41.128.1")];
        assert_eq!(cloudflare("10.0.0.1", &via), "192.0.2.9");
        let around = [("cf-connecting-ip", "6.6.6.6"), ("x-forwarded-for", "6.6.6.6, 192.0.2.13")];
        assert_eq!(cloudflare("10.0.0.1", &around), "192.0.2.13");
        assert_eq!(cloudflare("10.0.0.1", &around[..1]), "10.0.0.1");
    }

    #[test]
    fn cloudflares_field_is_one_address_or_none() {
        let cloudflare = |fields: &[(&str, &str)]| read("cf-connecting-ip", "198.41.128.1", fields).address.to_string();
        let twice = [("cf-connecting-ip", "6.6.6.6"), ("cf-connecting-ip", "192.0.2.9")];
        assert_eq!(cloudflare(&twice), "198.41.128.1");
        assert_eq!(cloudflare(&[("cf-connecting-ip", "6.6.6.6, 192.0.2.9")]), "198.41.128.1");
        assert_eq!(cloudflare(&[("cf-connecting-ip", "x")]), "198.41.128.1");
        assert_eq!(cloudflare(&[("x-forwarded-for", "6.6.6.6")]), "198.41.128.1", "another field is not asked");
        assert_eq!(cloudflare(&[("cf-connecting-ip", "2001:db8::9")]), "2001:db8::9");
    }

    #[test]
    fn forwarded_is_walked_like_any_chain_and_tells_the_scheme_of_its_hop() {
        let forwarded = |lines: &[&str]| {
            let fields: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
            let client = read("forwarded", "10.0.0.1", &fields);
            (client.address.to_string(), client.scheme.as_str())
        };
        let own = |address: &str, scheme| (address.to_owned(), scheme);
        assert_eq!(
            forwarded(&[
                "for=6.6.6.6;proto=http, for=\"[2001:db8::9]:4711\";proto=https;by=x",
                "for=10.0.0.2;proto=http"
            ]),
            own("2001:db8::9", "https")
        );
        assert_eq!(forwarded(&["for=6.6.6.6;proto=https, for=192.0.2.9"]), own("192.0.2.9", "http"));
        for hidden in ["unknown", "_hidden", "\"_hidden:80\"", "\"unknown:_x\""] {
            assert_eq!(forwarded(&[&format!("for=6.6.6.6;proto=https, for={hidden}")]), own("10.0.0.1", "http"));
        }
        assert_eq!(forwarded(&["for=6.6.6.6;proto=https, proto=https"]), own("10.0.0.1", "http"), "no `for`");
        assert_eq!(forwarded(&["for=\"6.6.6.6", "for=192.0.2.9;proto=https"]), own("192.0.2.9", "https"));
        assert_eq!(forwarded(&["for=6.6.6.6, for=\"192.0.2.9"]), own("10.0.0.1", "http"));
        let fields = [("forwarded", "for=192.0.2.9"), ("x-forwarded-proto", "https"), ("x-forwarded-for", "6.6.6.6")];
        assert_eq!(read("forwarded", "10.0.0.1", &fields).scheme, Scheme::Http, "not what such a proxy writes");
        assert_eq!(read("forwarded", "192.0.2.1", &fields).address.to_string(), "192.0.2.1");
    }

    #[test]
    fn the_scheme_is_that_of_the_clients_own_hop() {
        let scheme = |chain: &str, proto: &str| {
            read("x-forwarded-for", "10.0.0.1", &[("x-forwarded-for", chain), ("x-forwarded-proto", proto)]).scheme
        };
        assert_eq!(scheme("192.0.2.9", "https"), Scheme::Https);
        assert_eq!(scheme("192.0.2.9", "HTTPS"), Scheme::Https);
        assert_eq!(scheme("192.0.2.9", "https, http"), Scheme::Http, "the left one is the client's own word");
        assert_eq!(scheme("192.0.2.9, 10.0.0.2", "https, http"), Scheme::Https);
        assert_eq!(scheme("192.0.2.9, 10.0.0.2", "https"), Scheme::Https, "replaced, not appended");
        assert_eq!(scheme("192.0.2.9", "ftp"), Scheme::Http);
        assert_eq!(read("x-forwarded-for", "192.0.2.1", &[("x-forwarded-proto", "https")]).scheme, Scheme::Http);
    }

    #[test]
    fn what_a_proxy_did_not_write_itself_is_dropped_unless_it_is_true() {
        let kept = |header: &str, peer: &str, fields: &[(&str, &str)]| {
            let client = read(header, peer, fields);
            let headers = hop::clean(map(fields), &client, &trust(header), false);
            let mut names: Vec<String> = headers.keys().map(|name| name.as_str().to_owned()).collect();
            names.sort();
            names
        };
        let lies = [
            ("cf-connecting-ip", "192.0.2.9"),
            ("forwarded", "for=6.6.6.6"),
            ("true-client-ip", "6.6.6.6"),
            ("x-client-ip", "192.0.2.9"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
        ];
        assert_eq!(
            kept("cf-connecting-ip", "198.41.128.1", &lies),
            ["cf-connecting-ip", "x-client-ip", "x-forwarded-proto"]
        );
        let via = [("cf-connecting-ip", "6.6.6.6"), ("x-forwarded-for", "192.0.2.9, 198.41.128.1")];
        assert_eq!(kept("cf-connecting-ip", "10.0.0.1", &via), ["x-forwarded-for"]);
        let chain = [("forwarded", "for=192.0.2.9, for=10.0.0.2"), ("x-forwarded-for", "6.6.6.6")];
        assert_eq!(kept("forwarded", "10.0.0.1", &chain), ["forwarded"]);
        assert!(kept("cf-connecting-ip", "192.0.2.1", &lies).is_empty());
    }

    #[test]
    fn back_ends_get_a_chain_or_the_client() {
        let authority = Authority::parse("app.test:8443").unwrap();
        let told = |header: &str, fields: &[(&str, &str)]| {
            let client = read(header, "10.0.0.1", fields);
            let mut headers = hop::clean(map(fields), &client, &trust(header), false);
            set(&mut headers, &authority, &client);
            set_forwarded(&mut headers, &authority, &client);
            let text = |name: &str| headers[name].to_str().unwrap().to_owned();
            (text("x-forwarded-for"), text("forwarded"))
        };
        let (chain, forwarded) =
            told("x-forwarded-for", &[("x-forwarded-for", "192.0.2.9"), ("x-forwarded-proto", "https")]);
        assert_eq!(chain, "192.0.2.9, 10.0.0.1");
        assert_eq!(forwarded, "for=192.0.2.9;host=\"app.test:8443\";proto=https");
        let (chain, forwarded) = told("forwarded", &[("forwarded", "for=\"[2001:db8::9]\";proto=https")]);
        assert_eq!(chain, "2001:db8::9");
        assert_eq!(forwarded, "for=\"[2001:db8::9]\";proto=https, for=10.0.0.1;host=\"app.test:8443\";proto=http");
    }

    proptest! {
        #[test]
        fn a_stranger_is_itself_whatever_it_says(
            header in prop_oneof![Just("x-forwarded-for"), Just("forwarded"), Just("cf-connecting-ip"), Just("x-real-ip")],
            lines in prop::collection::vec("[ -~]{0,60}", 0..4),
        ) {
            let fields: Vec<_> = lines.iter().map(|line| (header, line.as_str())).collect();
            prop_assert_eq!(read(header, "192.0.2.1", &fields).address.to_string(), "192.0.2.1");
        }

        #[test]
        fn what_stands_left_of_a_proxys_own_word_changes_nothing(
            header in prop_oneof![Just("x-forwarded-for"), Just("forwarded")],
            lines in prop::collection::vec(prop::collection::vec(0x20_u8..=0xff, 0..40), 0..4),
        ) {
            let mut headers = HeaderMap::new();
            for line in lines {
                if let Ok(value) = HeaderValue::from_bytes(&line) {
                    headers.append(header, value);
                }
            }
            let own = if header == "forwarded" { "for=192.0.2.9" } else { "192.0.2.9" };
            headers.append(header, HeaderValue::from_static(own));
            prop_assert_eq!(client(arrival("10.0.0.1"), &headers, &trust(header)).address.to_string(), "192.0.2.9");
        }
    }
}
