//! Which live sockets a new file has no place for.

use crate::config::{Config, UpgradeRule, WebSocket};
use crate::http::path::CanonicalPath;
use crate::tunnel::register::TunnelInfo;

/// Whether the file still leads the socket `info` where it is: its site is there, and a websocket block of it takes its
/// path and has its back end. Whatever else changed is not the socket's business.
pub fn has_place(config: &Config, info: &TunnelInfo) -> bool {
    let path = CanonicalPath::parse(&info.path);
    let takes = |socket: &WebSocket| {
        let on_path = path.as_ref().is_ok_and(|path| socket.paths.iter().any(|own| own.matches(path.decoded())));
        (on_path || socket.upgrade == UpgradeRule::Any)
            && socket.upstream.to.iter().any(|back_end| back_end.to.to_string() == *info.back_end)
    };
    config.sites.iter().any(|site| site.name == *info.site && site.websockets.iter().any(takes))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const FILE: &str = r#"
        [site.app]
        hosts = ["app.example.com"]
        [[site.app.websocket]]
        preset = "socket.io"
        to = ["http://127.0.0.1:3444", "http://127.0.0.1:3445"]
        [[site.app.websocket]]
        preset = "any"
        to = "unix:/run/any.sock"
    "#;

    fn has_place(file: &str, site: &str, back_end: &str, path: &str) -> bool {
        let config = crate::config::parse(Path::new("/etc/doorward"), &[("proxy.toml", file)], &|_| None).unwrap();
        let client = "192.0.2.1".parse().unwrap();
        super::has_place(
            &config,
            &TunnelInfo { site: site.into(), back_end: back_end.into(), client, path: path.into(), http2: false },
        )
    }

    #[test]
    fn a_socket_stays_while_its_site_route_and_back_end_are_in_the_file() {
        let stays = |site, back_end, path| has_place(FILE, site, back_end, path);
        assert!(stays("app", "http://127.0.0.1:3444", "/socket.io/"));
        assert!(stays("app", "http://127.0.0.1:3445", "/socket.io/"));
        assert!(stays("app", "unix:/run/any.sock", "/whatever"));
        assert!(!stays("other", "http://127.0.0.1:3444", "/socket.io/"), "its site is gone");
        assert!(!stays("app", "http://127.0.0.1:3446", "/socket.io/"), "its back end is gone");
        assert!(!stays("app", "http://127.0.0.1:3444", "/ws"), "its route is gone, its back end serves another");
    }
}
