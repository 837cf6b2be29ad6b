//! Nobody but a trusted proxy has a say in who the client is.
#![no_main]

use std::net::IpAddr;

use doorward::base::network::Networks;
use doorward::http::forwarded;
use doorward::http::hop;
use doorward::http::request::Trust;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|fields: Vec<(&[u8], &[u8])>| {
    let mut headers = HeaderMap::new();
    for (name, value) in fields.into_iter().take(50) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let trusted: ipnet::IpNet = "10.0.0.0/8".parse().expect("a network");
    let trust = Trust { proxies: Networks(vec![trusted]), header: HeaderName::from_static("x-forwarded-for") };

    let stranger: IpAddr = "192.0.2.1".parse().expect("an address");
    assert_eq!(forwarded::client_address(stranger, &headers, &trust), stranger);
    let _ = forwarded::client_address("10.0.0.1".parse().expect("an address"), &headers, &trust);
    let _ = forwarded::scheme(&headers);

    for websocket in [false, true] {
        let cleaned = hop::clean(headers.clone(), false, websocket);
        for name in ["connection", "transfer-encoding", "upgrade", "proxy", "x-forwarded-for", "x-real-ip", "forwarded"] {
            assert!(!cleaned.contains_key(name), "{name}");
        }
        assert!(cleaned.keys().all(|name| !name.as_str().contains('_')));
    }
});
