//! The PROXY head that connections to back ends begin with, where the file asks for it.

use std::net::SocketAddr;

use crate::base::proxy_head::{self, Version};
use crate::http::request::Client;

/// The head of a connection that carries what `client` asks, and nothing of anybody else's. Its destination is the
/// address that the client's connection reached us at.
pub(super) fn head_of(version: Version, client: &Client) -> Vec<u8> {
    let peer = client.arrival.peer;
    // Of a client behind a proxy that told its address only, the port is not known.
    let port = if client.address == peer.ip().to_canonical() { peer.port() } else { 0 };
    proxy_head::write(version, SocketAddr::new(client.address, port), client.arrival.local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::{Arrival, Scheme};

    #[test]
    fn the_port_is_told_where_it_is_the_clients_own() {
        let arrival = Arrival {
            peer: "192.0.2.7:4711".parse().unwrap(),
            local: "10.0.0.1:443".parse().unwrap(),
            scheme: Scheme::Https,
            unnamed: false,
        };
        let head = |address: &str| {
            let client = Client { address: address.parse().unwrap(), arrival, scheme: Scheme::Https, trusted: true };
            String::from_utf8(head_of(Version::V1, &client)).unwrap()
        };
        assert_eq!(head("192.0.2.7"), "PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n");
        assert_eq!(head("192.0.2.9"), "PROXY TCP4 192.0.2.9 10.0.0.1 0 443\r\n");
        assert_eq!(head("2001:db8::9"), "PROXY TCP6 2001:db8::9 ::ffff:10.0.0.1 0 443\r\n");
    }
}
