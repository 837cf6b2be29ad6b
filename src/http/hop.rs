//! Fields that end at this hop, in both directions, and field names that two readers may read differently.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::http::forwarded;
use crate::http::request::{Client, Trust};

// RFC 9110, section 7.6.1, and what older software treats alike.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Names under which somebody reads a client's address: proxies' own, and those that applications look for.
const ADDRESSES: [&str; 32] = [
    "forwarded",
    "x-forwarded-for",
    "x-real-ip",
    "x-client-ip",
    "client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "x-cluster-client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "do-connecting-ip",
    "x-nf-client-connection-ip",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-envoy-external-address",
    "x-original-for",
    "x-original-forwarded-for",
    "x-originating-ip",
    "x-remote-ip",
    "x-remote-addr",
    "forwarded-for",
    "proxy-client-ip",
    "wl-proxy-client-ip",
    "x-sucuri-clientip",
    "incap-client-ip",
    "ali-cdn-real-ip",
    "cdn-src-ip",
    "x-coming-from",
    "x-proxyuser-ip",
];

/// What makes a WebSocket handshake.
const HANDSHAKE: [&str; 4] =
    ["sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol"];

/// What else only a trusted proxy may claim, beside all of X-Forwarded-* and CF-*.
const CLAIMS: [&str; 6] =
    ["x-forwarded", "x-original-host", "x-original-proto", "x-url-scheme", "front-end-https", "x-host"];

/// Never forwarded, whoever sends them: `Proxy` becomes HTTP_PROXY in CGI (httpoxy), the URL overrides let a client
/// name a path that was not routed, Expect is answered here.
const NEVER: [&str; 4] = ["proxy", "x-original-url", "x-rewrite-url", "expect"];

/// What tells nearly every name that stands in none of the lists above from those that do, without a comparison: a bit for
/// each first letter and length.
#[allow(clippy::indexing_slicing, reason = "what is out of bounds here does not compile")]
static SUSPECTS: [u32; 256] = {
    let mut suspects = [0; 256];
    let lists: [&[&str]; 5] = [&HOP_BY_HOP, &ADDRESSES, &HANDSHAKE, &CLAIMS, &NEVER];
    let mut list = 0;
    while list < lists.len() {
        let mut at = 0;
        while at < lists[list].len() {
            let name = lists[list][at].as_bytes();
            suspects[name[0] as usize] |= length_bit(name.len());
            at += 1;
        }
        list += 1;
    }
    suspects
};

const fn length_bit(length: usize) -> u32 {
    1 << (if length < 31 { length } else { 31 })
}

/// Whether `name` may stand in one of the lists.
fn is_suspect(name: &str) -> bool {
    let first = name.as_bytes().first().and_then(|first| SUSPECTS.get(usize::from(*first)));
    first.is_some_and(|lengths| lengths & length_bit(name.len()) != 0)
}

/// The names that the `Connection` fields list.
pub fn connection_names(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    // Bytes: what is no text must not hide the others.
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.is_empty())
}

/// A client's fields without those that end here, those that `Connection` names, untrusted claims and doubtful
/// names; several Cookie fields become one. A handshake's own fields stay.
pub fn clean(mut headers: HeaderMap, client: &Client, trust: &Trust, websocket: bool) -> HeaderMap {
    // RFC 9110, section 7.6.1: "Intermediaries MUST parse a received Connection header field before a message is
    // forwarded and, for each connection-option in this field, remove any header or trailer field(s) from the message
    // with the same name as the connection-option".
    let named: Vec<HeaderName> = connection_names(&headers)
        .filter(|name| !name.eq_ignore_ascii_case(b"host") && !name.eq_ignore_ascii_case(b"content-length"))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect();
    drop_all(&mut headers, |field| {
        let name = field.as_str();
        let listed = |list: &[&str]| list.contains(&name);
        (is_suspect(name)
            && (listed(&HOP_BY_HOP)
                || listed(&NEVER)
                || (!client.trusted && (listed(&ADDRESSES) || listed(&CLAIMS)))
                || (!websocket && listed(&HANDSHAKE))))
            || named.contains(field)
            // The operator's own field for the client's address is a claim as well.
            || (!client.trusted && (*field == trust.header || is_claim(name)))
            // CGI turns '-' and '_' into the same variable: X_Forwarded_For would stand for X-Forwarded-For.
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    if client.trusted {
        forwarded::drop_doubtful(&mut headers, &ADDRESSES, client, trust);
    }
    join_cookies(&mut headers);
    headers
}

/// Removes the fields that `unwanted` knows.
pub fn drop_all(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    // Looked up one after the other, names that are hardly ever there would cost more than all the rest of a request.
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn is_claim(name: &str) -> bool {
    name.starts_with("x-forwarded-") || name.starts_with("cf-")
}

/// A back end's fields without those that end here and those that `Connection` names.
pub fn clean_response(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        connection_names(headers).filter_map(|name| HeaderName::from_bytes(name).ok()).collect();
    drop_all(headers, |field| {
        let name = field.as_str();
        (is_suspect(name) && HOP_BY_HOP.contains(&name)) || (named.contains(field) && *field != header::CONTENT_LENGTH)
    });
}

/// Removes what makes a WebSocket handshake.
pub fn strip_websocket(headers: &mut HeaderMap) {
    drop_all(headers, |field| HANDSHAKE.contains(&field.as_str()));
}

/// RFC 9113, section 8.2.3: "these MUST be concatenated into a single octet string using the two-octet delimiter of
/// 0x3b, 0x20 before being passed into a non-HTTP/2 context".
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().count() < 2 {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = crumbs.join(&b"; "[..]);
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::network::Networks;
    use crate::http::request::{Arrival, Scheme};

    /// What is left of the fields of somebody whom nobody trusts.
    fn cleaned<V: AsRef<[u8]>>(fields: &[(&str, V)]) -> HeaderMap {
        let client = Client {
            address: "192.0.2.7".parse().unwrap(),
            arrival: Arrival {
                peer: "192.0.2.7:5000".parse().unwrap(),
                local: "192.0.2.1:443".parse().unwrap(),
                scheme: Scheme::Https,
                unnamed: false,
            },
            scheme: Scheme::Https,
            trusted: false,
        };
        let trust = Trust {
            proxies: Networks::default(),
            header: HeaderName::from_static("fly-region"),
            cloudflare: Networks::default(),
        };
        clean(map(fields), &client, &trust, false)
    }

    fn map<V: AsRef<[u8]>>(fields: &[(&str, V)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_ref()).unwrap());
        }
        headers
    }

    #[test]
    fn every_name_of_a_list_is_a_suspect_and_everyday_names_are_not() {
        for name in HOP_BY_HOP.iter().chain(&ADDRESSES).chain(&HANDSHAKE).chain(&CLAIMS).chain(&NEVER) {
            assert!(is_suspect(name), "{name}");
        }
        for name in ["host", "user-agent", "accept", "cookie", "referer", "sec-fetch-mode"] {
            assert!(!is_suspect(name), "{name}");
        }
        assert!(!is_suspect(""));
    }

    #[test]
    fn what_connection_names_is_removed_but_never_the_host_or_the_length() {
        let headers = cleaned(&[
            ("connection", "X-Secret, host, content-length"),
            ("x-secret", "1"),
            ("host", "a"),
            ("content-length", "3"),
        ]);
        assert_eq!(headers.len(), 2);
        assert!(headers.contains_key("host") && headers.contains_key("content-length"));
    }

    #[test]
    fn what_is_no_text_in_connection_does_not_hide_the_names_beside_it() {
        let named: &[u8] = b"\xe9, X-Secret ,\xff";
        assert!(cleaned(&[("connection", named), ("x-secret", b"1")]).is_empty());
    }

    #[test]
    fn doubtful_names_the_proxy_field_and_hop_by_hop_fields_are_dropped() {
        let headers = cleaned(&[
            ("x_forwarded_for", "6"),
            ("proxy", "http://evil"),
            ("te", "trailers"),
            ("keep-alive", "1"),
            ("x.a", "1"),
            ("accept", "*/*"),
        ]);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn cookie_crumbs_become_one_field() {
        let headers = cleaned(&[("cookie", "a=1"), ("cookie", "b=2")]);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn an_untrusted_client_claims_nothing() {
        let other = ["x-forwarded-proto", "x-forwarded-tls-client-cert", "cf-visitor", "cf-ray", "fly-region"];
        let fields: Vec<_> = ADDRESSES.into_iter().chain(CLAIMS).chain(other).map(|name| (name, "6.6.6.6")).collect();
        assert!(cleaned(&fields).is_empty(), "{:?}", cleaned(&fields));
        let own = [("x-original-filename", "a.pdf"), ("x-requested-with", "XMLHttpRequest"), ("cdn-loop", "x")];
        assert_eq!(cleaned(&own).len(), own.len());
    }
}
