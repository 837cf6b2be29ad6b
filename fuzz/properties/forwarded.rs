//! Nobody but a trusted proxy has a say in who the client is, and what stands left of its word has none.

use std::net::SocketAddr;

use doorward::base::network::Networks;
use doorward::http::forwarded;
use doorward::http::forwarded_field;
use doorward::http::hop;
use doorward::http::request::{Arrival, Scheme, Trust};
use http::{HeaderName, HeaderValue};

/// The fields of a request, a line each.
pub fn check(input: &[u8]) {
    let headers = super::fields(input);
    let arrival = |peer: &str| {
        let peer: SocketAddr = peer.parse().expect("an address");
        Arrival { peer, local: peer, scheme: Scheme::Http, unnamed: false }
    };
    for field in ["x-forwarded-for", "forwarded", "cf-connecting-ip", "x-real-ip"] {
        let networks = |text: &str| Networks(vec![text.parse().expect("a network")]);
        let header = HeaderName::from_static(field);
        let trust = Trust { proxies: networks("10.0.0.0/8"), header, cloudflare: networks("10.1.0.0/16") };

        let stranger = forwarded::client(arrival("192.0.2.1:80"), &headers, &trust);
        assert_eq!(stranger.address, stranger.arrival.peer.ip());
        assert!(!stranger.trusted);
        for websocket in [false, true] {
            let cleaned = hop::clean(headers.clone(), &stranger, &trust, websocket);
            for name in cleaned.keys().map(HeaderName::as_str) {
                assert!(!["connection", "transfer-encoding", "upgrade", "proxy", "x-real-ip", field].contains(&name));
                assert!(name != "x-forwarded" && !name.starts_with("x-forwarded-"), "{name}");
                assert!(!name.starts_with("cf-") && !name.contains('_'), "{name}");
            }
        }

        let known = forwarded::client(arrival("10.0.0.1:80"), &headers, &trust);
        hop::clean(headers.clone(), &known, &trust, false);
        let mut appended = headers.clone();
        appended.append("x-forwarded-for", HeaderValue::from_static("192.0.2.9"));
        appended.append("forwarded", HeaderValue::from_static("for=192.0.2.9"));
        if field != "x-real-ip" {
            let named = forwarded::client(arrival("10.0.0.1:80"), &appended, &trust);
            assert_eq!(named.address.to_string(), "192.0.2.9");
        }
    }
    forwarded_field::hops(&headers);
}
