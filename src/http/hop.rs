//! Fields that end at this hop, in both directions, and field names that two readers may read differently.

use http::{HeaderMap, HeaderName, HeaderValue, header};

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

/// What only a trusted proxy may claim.
const CLAIMS: [&str; 13] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-server",
    "x-forwarded-scheme",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-forwarded-ssl",
];

/// Never forwarded, whoever sends them: `Proxy` becomes HTTP_PROXY in CGI (httpoxy), the URL overrides let a client
/// name a path that was not routed, Expect is answered here.
const NEVER: [&str; 4] = ["proxy", "x-original-url", "x-rewrite-url", "expect"];

/// The names that the `Connection` fields list.
pub fn connection_names(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

/// A client's fields without those that end here, those that `Connection` names, untrusted claims and doubtful
/// names; several Cookie fields become one. A handshake's own fields stay.
pub fn clean(mut headers: HeaderMap, trusted: bool, websocket: bool) -> HeaderMap {
    // RFC 9110, section 7.6.1: "Intermediaries MUST parse a received Connection header field before a message is
    // forwarded and, for each connection-option in this field, remove any header or trailer field(s) from the message
    // with the same name as the connection-option".
    let named: Vec<HeaderName> = connection_names(&headers)
        .filter(|name| !name.eq_ignore_ascii_case("host") && !name.eq_ignore_ascii_case("content-length"))
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP.iter().chain(&NEVER) {
        headers.remove(*name);
    }
    if !trusted {
        for name in CLAIMS {
            headers.remove(name);
        }
    }
    // CGI turns '-' and '_' into the same variable: X_Forwarded_For would stand for X-Forwarded-For.
    let doubtful: Vec<HeaderName> = headers
        .keys()
        .filter(|n| !n.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
        .cloned()
        .collect();
    for name in doubtful {
        headers.remove(name);
    }
    join_cookies(&mut headers);
    if !websocket {
        strip_websocket(&mut headers);
    }
    headers
}

/// A back end's fields without those that end here and those that `Connection` names.
pub fn clean_response(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        connection_names(headers).filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect();
    for name in named {
        if name != header::CONTENT_LENGTH {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Removes what makes a WebSocket handshake.
pub fn strip_websocket(headers: &mut HeaderMap) {
    for name in ["sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol"] {
        headers.remove(name);
    }
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

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        headers
    }

    #[test]
    fn what_connection_names_is_removed_but_never_the_host_or_the_length() {
        let headers = clean(
            map(&[
                ("connection", "X-Secret, host, content-length"),
                ("x-secret", "1"),
                ("host", "a"),
                ("content-length", "3"),
            ]),
            false,
            false,
        );
        assert_eq!(headers.len(), 2);
        assert!(headers.contains_key("host") && headers.contains_key("content-length"));
    }

    #[test]
    fn doubtful_names_the_proxy_field_and_hop_by_hop_fields_are_dropped() {
        let headers = clean(
            map(&[
                ("x_forwarded_for", "6"),
                ("proxy", "http://evil"),
                ("te", "trailers"),
                ("keep-alive", "1"),
                ("x.a", "1"),
                ("accept", "*/*"),
            ]),
            false,
            false,
        );
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn cookie_crumbs_become_one_field() {
        let headers = clean(map(&[("cookie", "a=1"), ("cookie", "b=2")]), false, false);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }
}
