//! Caddy's.

use std::ffi::OsString;

use super::{Ports, save};
use crate::fpm;
use crate::growth::is_exact;
use crate::server::Place;

pub fn write(place: &Place, Ports { http, https, admin }: Ports) -> Vec<OsString> {
    let tls =
        format!("tls {0}/cert.pem {0}/key.pem {{\n curves x25519\n protocols tls1.3\n }}", place.folder.display());
    let admin = if place.sites > 0 { admin.to_string() } else { "off".into() };
    let text = format!(
        "{{\n admin {admin}\n auto_https off\n storage file_system {folder}/caddy\n grace_period 1s\n \
         log {{\n  output discard\n }}\n}}\n\
         (job) {{\n bind 127.0.0.1\n handle_path /files/* {{\n  root * {files}\n  file_server\n }}\n \
         handle {{\n  reverse_proxy {back_end} {{\n   transport http {{\n    keepalive_idle_conns_per_host 64\n   }}\n  }}\n \
         }}\n{routes}}}\n\
         http://:{http_port} {{\n import job\n}}\n\
         https://:{https_port}, https://a.test:{https_port} {{\n {tls}\n import job\n}}\n\
         https://php.test:{https_port} {{\n bind 127.0.0.1\n {tls}\n root * {root}\n php_fastcgi unix/{socket}\n}}\n{sites}",
        routes = routes(place),
        sites = sites(place, http.port(), https.port()),
        folder = place.folder.display(),
        files = crate::files(place.folder).display(),
        back_end = place.back_end,
        http_port = http.port(),
        https_port = https.port(),
        root = fpm::root(place.folder).display(),
        socket = fpm::socket(place.folder).display(),
    );
    let configuration = save(place, "Caddyfile", &text);
    vec!["caddy".into(), "run".into(), "--adapter".into(), "caddyfile".into(), "--config".into(), configuration]
}

fn routes(place: &Place) -> String {
    let route = |route: usize| {
        let below = if is_exact(route) { "" } else { "/*" };
        format!(" handle /r/{route}{below} {{\n  reverse_proxy {}\n }}\n", place.back_end)
    };
    (0..place.routes).map(route).collect()
}

fn sites(place: &Place, http: u16, https: u16) -> String {
    let folder = place.folder.join("sites");
    let site = |site: usize| {
        format!(
            "https://s{site}.test:{https} {{\n bind 127.0.0.1\n tls {0}/{site}.pem {0}/{site}.key\n \
             reverse_proxy {1}\n}}\n",
            folder.display(),
            place.back_end
        )
    };
    let mark = format!("http://mark.test:{http} {{\n bind 127.0.0.1\n respond {}\n}}\n", place.revision);
    (0..place.sites).map(site).chain((place.sites > 0).then_some(mark)).collect()
}
