//! Who the client is, and what back ends are told about it.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::base::host::Authority;
use crate::http::request::{Client, Scheme, Trust, effective_port};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The client's address: the peer's own, unless the peer is trusted; then the right-most address in the trusted
/// field that is not itself a trusted proxy.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trust: &Trust) -> IpAddr {
    let mut address = peer.to_canonical();
    if !trust.proxies.contains(address) {
        return address;
    }
    let named: Vec<&str> = headers
        .get_all(&trust.header)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .collect();
    for text in named.iter().rev() {
        // A hop that cannot be read ends the walk: what stands left of it was said by nobody we know.
        let Some(hop) = parse_address(text.trim()) else { break };
        address = hop.to_canonical();
        if !trust.proxies.contains(address) {
            break;
        }
    }
    address
}

/// The scheme that a trusted proxy says the client used.
pub fn scheme(headers: &HeaderMap) -> Option<Scheme> {
    match headers.get(PROTO)?.to_str().ok()?.split(',').next()?.trim() {
        "https" | "wss" => Some(Scheme::Https),
        "http" | "ws" => Some(Scheme::Http),
        _ => None,
    }
}

/// Sets X-Forwarded-For, -Proto, -Host, -Port and X-Real-IP. An untrusted client's own copies are gone by now; those
/// of a trusted proxy are kept, and its address is appended to the first.
pub fn set(headers: &mut HeaderMap, authority: &Authority, client: &Client) {
    let peer = client.arrival.peer.ip().to_canonical().to_string();
    let hops: Vec<&str> = headers.get_all(FOR).iter().filter_map(|v| v.to_str().ok()).collect();
    let hops = if hops.is_empty() { peer } else { format!("{}, {peer}", hops.join(", ")) };
    insert(headers, FOR, &hops);
    insert(headers, PROTO, client.scheme.as_str());
    insert(headers, REAL_IP, &client.address.to_string());
    if !(client.trusted && headers.contains_key(HOST)) {
        insert(headers, HOST, &authority.to_string());
    }
    if !(client.trusted && headers.contains_key(PORT)) {
        insert(headers, PORT, &effective_port(authority, client.scheme).to_string());
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// An address as proxies write it: bare, in brackets, with or without a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return Some(address.ip());
    }
    text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::network::{Networks, parse_network};

    fn address(peer: &str, field: &str) -> String {
        let trust = Trust { proxies: Networks(vec![parse_network("10.0.0.0/8").unwrap()]), header: FOR };
        let mut headers = HeaderMap::new();
        headers.insert(FOR, HeaderValue::from_str(field).unwrap());
        client_address(peer.parse().unwrap(), &headers, &trust).to_string()
    }

    #[test]
    fn the_right_most_untrusted_address_is_the_client() {
        assert_eq!(address("192.0.2.1", "6.6.6.6"), "192.0.2.1");
        assert_eq!(address("10.0.0.1", "6.6.6.6, 192.0.2.9, 10.0.0.2"), "192.0.2.9");
        assert_eq!(address("10.0.0.1", "10.0.0.3"), "10.0.0.3");
        assert_eq!(address("10.0.0.1", "192.0.2.9, garbage"), "10.0.0.1");
        assert_eq!(address("::ffff:10.0.0.1", "[2001:db8::1]:80"), "2001:db8::1");
        assert_eq!(address("10.0.0.1", ""), "10.0.0.1");
    }
}
