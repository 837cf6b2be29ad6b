//! The same job in the words of each proxy.

use std::ffi::OsString;
use std::net::SocketAddr;

use crate::server::{Kind, Place};

mod caddy;
mod doorward;
mod haproxy;
mod nginx;

/// Of OpenSSL: one version, group and suite.
pub const OPENSSL: &str = "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\n\
    MinProtocol = TLSv1.3\nGroups = X25519\nCiphersuites = TLS_AES_128_GCM_SHA256\n";

/// Where a proxy listens.
#[derive(Clone, Copy)]
pub struct Ports {
    pub http: SocketAddr,
    pub https: SocketAddr,
    /// For who takes orders over HTTP only.
    pub admin: SocketAddr,
}

/// Writes the configuration, and gives the command that starts the proxy.
pub fn write(kind: Kind, place: &Place, ports: Ports) -> Vec<OsString> {
    match kind {
        Kind::Doorward => doorward::write(place, ports),
        Kind::Nginx => nginx::write(place, ports),
        Kind::Haproxy => haproxy::write(place, ports),
        Kind::Caddy => caddy::write(place, ports),
    }
}

fn save(place: &Place, name: &str, text: &str) -> OsString {
    let path = place.folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.into()
}
