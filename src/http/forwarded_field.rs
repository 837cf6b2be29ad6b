//! The field `Forwarded` (RFC 7239), read and written.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, header};

use crate::base::host::Authority;
use crate::http::forwarded::{parse_address, parse_scheme};
use crate::http::guard::is_token;
use crate::http::request::Scheme;

/// One element: what one proxy says of who asked it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hop {
    /// Who it was; `None` where it is unknown, hidden, or cannot be read.
    pub address: Option<IpAddr>,
    /// By which scheme.
    pub scheme: Option<Scheme>,
}

/// All hops, the nearest last. A line that stops being the field's syntax ends in a hop without an address: who appends
/// a line of its own is not hidden by one that a client broke.
pub fn hops(headers: &HeaderMap) -> Vec<Hop> {
    let mut hops = Vec::new();
    for line in headers.get_all(header::FORWARDED) {
        let mut rest = line.as_bytes();
        loop {
            let Some((hop, behind)) = read_element(rest) else {
                hops.push(Hop::default());
                break;
            };
            hops.push(hop);
            match behind {
                [b',', behind @ ..] => rest = behind,
                _ => break,
            }
        }
    }
    hops
}

/// Whether the last line, in which the nearest proxy has its word, is none of the field's syntax: a client in front of a
/// proxy that appends to a line without a look could hide that word behind a quote.
pub fn is_hidden(headers: &HeaderMap) -> bool {
    let Some(line) = headers.get_all(header::FORWARDED).iter().next_back() else { return false };
    let mut rest = line.as_bytes();
    loop {
        match read_element(rest) {
            Some((_, [b',', behind @ ..])) => rest = behind,
            Some(_) => return false,
            None => return true,
        }
    }
}

/// The element for a client at `node` that asked for `authority` by `scheme`.
pub fn element(node: IpAddr, authority: &Authority, scheme: Scheme) -> String {
    // RFC 7239, section 6: "an IPv6 address is always enclosed in square brackets", and "[" and ":" stand in no token.
    let node = match node {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    let host = authority.to_string();
    let host = if host.bytes().all(is_token) { host } else { format!("\"{host}\"") };
    format!("for={node};host={host};proto={}", scheme.as_str())
}

/// `element = [ pair ] *( ";" [ pair ] )`, up to a comma or the end. `None` where it is none.
fn read_element(text: &[u8]) -> Option<(Hop, &[u8])> {
    let mut hop = Hop::default();
    let mut had: Vec<&[u8]> = Vec::new();
    let mut rest = text.trim_ascii_start();
    loop {
        if !matches!(rest, [] | [b';' | b',', ..]) {
            let Pair { name, value, behind } = read_pair(rest)?;
            // Section 4: "Each parameter MUST NOT occur more than once per field-value".
            if had.iter().any(|other| other.eq_ignore_ascii_case(name)) {
                return None;
            }
            had.push(name);
            if name.eq_ignore_ascii_case(b"for") {
                hop.address = read_node(&value);
            } else if name.eq_ignore_ascii_case(b"proto") {
                hop.scheme = parse_scheme(&value);
            }
            rest = behind.trim_ascii_start();
        }
        match rest {
            [] | [b',', ..] => return Some((hop, rest)),
            [b';', behind @ ..] => rest = behind.trim_ascii_start(),
            _ => return None,
        }
    }
}

/// One parameter, and what follows it.
struct Pair<'t> {
    name: &'t [u8],
    value: Cow<'t, [u8]>,
    behind: &'t [u8],
}

/// `token "=" ( token / quoted-string )`
fn read_pair(text: &[u8]) -> Option<Pair<'_>> {
    let (name, rest) = text.split_at_checked(text.iter().position(|byte| !is_token(*byte))?)?;
    let rest = rest.strip_prefix(b"=").filter(|_| !name.is_empty())?;
    let Some(quoted) = rest.strip_prefix(b"\"") else {
        let end = rest.iter().position(|byte| !is_token(*byte)).unwrap_or(rest.len());
        let (value, behind) = rest.split_at_checked(end).filter(|(value, _)| !value.is_empty())?;
        return Some(Pair { name, value: Cow::Borrowed(value), behind });
    };
    let mut value = Vec::new();
    let mut bytes = quoted.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(Pair { name, value: Cow::Owned(value), behind: quoted.get(at + 1..)? }),
            b'\\' => value.push(*bytes.next()?.1),
            byte => value.push(*byte),
        }
    }
    None
}

/// Section 6: `nodename [ ":" node-port ]`, of which only an address is of use: not `unknown`, not `_hidden`. A port may
/// be hidden too.
fn read_node(node: &[u8]) -> Option<IpAddr> {
    let without_port = node.windows(2).position(|pair| pair == b":_").and_then(|colon| node.get(..colon));
    parse_address(without_port.unwrap_or(node))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(line: &[u8]) -> Vec<Hop> {
        let mut headers = HeaderMap::new();
        headers.insert(header::FORWARDED, HeaderValue::from_bytes(line).unwrap());
        hops(&headers)
    }

    fn hop(address: &str, scheme: Option<Scheme>) -> Hop {
        Hop { address: address.parse().ok(), scheme }
    }

    #[test]
    fn elements_of_the_rfc_are_read() {
        assert_eq!(read(b"for=\"_gazonk\""), [Hop::default()]);
        assert_eq!(read(b"For=\"[2001:db8:cafe::17]:4711\""), [hop("2001:db8:cafe::17", None)]);
        assert_eq!(read(b"for=192.0.2.60;proto=http;by=203.0.113.43"), [hop("192.0.2.60", Some(Scheme::Http))]);
        assert_eq!(read(b"for=192.0.2.43, for=198.51.100.17"), [hop("192.0.2.43", None), hop("198.51.100.17", None)]);
        assert_eq!(
            read(b"for=192.0.2.43,for=\"[2001:db8:cafe::17]\";PROTO=HTTPS"),
            [hop("192.0.2.43", None), hop("2001:db8:cafe::17", Some(Scheme::Https))]
        );
        assert_eq!(read(b"for=\"192.0.2.43:47011\""), [hop("192.0.2.43", None)]);
        assert_eq!(read(b"for=\"192.0.2.43:_port\""), [hop("192.0.2.43", None)]);
        assert_eq!(read(b"for=\"[2001:db8::1]:_port\""), [hop("2001:db8::1", None)]);
        assert_eq!(read(b"for=\"19\\2.0.2.43\""), [hop("192.0.2.43", None)], "a quoted pair");
        assert_eq!(read(b"host=\"a, for=6.6.6.6\";for=192.0.2.43"), [hop("192.0.2.43", None)], "a comma in quotes");
        assert_eq!(read(b";for=192.0.2.43; ;proto=https;"), [hop("192.0.2.43", Some(Scheme::Https))]);
    }

    #[test]
    fn what_is_no_element_has_no_address_and_ends_its_line() {
        for line in [
            "for",
            "for=",
            "=1.2.3.4",
            "for =192.0.2.1",
            "for= 192.0.2.1",
            "for=\"192.0.2.1",
            "for=\"192.0.2.1\\",
            "for=\"\"192.0.2.1",
            "for=2001:db8::1",
            "for=[2001:db8::1]",
            "for=192.0.2.1;for=192.0.2.2",
            "for=192.0.2.1 for=192.0.2.2",
            "192.0.2.1",
            "\u{e9}",
        ] {
            assert_eq!(read(line.as_bytes()), [Hop::default()], "{line}");
            let behind = format!("for=192.0.2.7, {line}");
            assert_eq!(read(behind.as_bytes()), [hop("192.0.2.7", None), Hop::default()], "{behind}");
        }
        // An open quote cannot be closed so that what a proxy appends becomes part of a text.
        assert_eq!(read(b"for=6.6.6.6;by=\", for=\"[2001:db8::1]\"").last(), Some(&Hop::default()));
        assert_eq!(read(b""), [Hop::default()]);
    }

    #[test]
    fn an_element_is_quoted_where_it_must_be() {
        let write =
            |node: &str, host: &str| element(node.parse().unwrap(), &Authority::parse(host).unwrap(), Scheme::Https);
        assert_eq!(write("192.0.2.7", "app.test"), "for=192.0.2.7;host=app.test;proto=https");
        assert_eq!(write("2001:db8::7", "app.test:8443"), "for=\"[2001:db8::7]\";host=\"app.test:8443\";proto=https");
        assert_eq!(write("192.0.2.7", "[::1]"), "for=192.0.2.7;host=\"[::1]\";proto=https");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(node: IpAddr, port in prop::option::of(1_u16..), tls: bool) {
            let scheme = if tls { Scheme::Https } else { Scheme::Http };
            let host = crate::base::host::Host::parse("app.test").unwrap();
            let written = element(node, &Authority { host, port }, scheme);
            let twice = format!("{written}, {written}");
            let hop = Hop { address: Some(node), scheme: Some(scheme) };
            prop_assert_eq!(read(twice.as_bytes()), [hop, hop]);
        }

        #[test]
        fn nothing_panics_and_every_line_is_a_hop(line in prop::collection::vec(0x20_u8..=0xff, 0..80)) {
            if HeaderValue::from_bytes(&line).is_ok() {
                prop_assert!(!read(&line).is_empty());
            }
        }
    }
}
