//! HAProxy's.

use std::ffi::OsString;

use super::{Ports, save};
use crate::fpm;
use crate::growth::is_exact;
use crate::server::Place;

pub fn write(place: &Place, Ports { http, https, .. }: Ports) -> Vec<OsString> {
    let (rules, back_ends, pairs) = growth(place);
    let text = format!(
        "global\n nbthread 1\n maxconn 9500\n ssl-default-bind-options ssl-min-ver TLSv1.3\n \
         ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256\n\
         defaults\n mode http\n timeout connect 5s\n timeout client 75s\n timeout server 75s\n \
         timeout http-keep-alive 75s\n timeout tunnel 1h\n option forwardfor\n http-reuse always\n\
         frontend front\n bind {http}\n bind {https} ssl crt both.pem {pairs}alpn h2,http/1.1 curves X25519\n \
         http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}\n \
         use_backend php if {{ req.hdr(host) php.test }}\n use_backend kept if {{ req.hdr(host) kept.test }}\n \
         {rules}default_backend back\nbackend back\n server one {back_end}\n{php}{kept}{back_ends}",
        back_end = place.back_end,
        php = php(place, "php", "no "),
        kept = php(place, "kept", "")
    );
    // Only a master can reload.
    let mode = if place.sites > 0 { "-Wdb" } else { "-db" };
    vec!["haproxy".into(), mode.into(), "-f".into(), save(place, "haproxy.cfg", &text)]
}

/// Rules of the front end, back ends, and where more certificates are. All routes are in one map of prefixes.
fn growth(place: &Place) -> (String, String, &'static str) {
    let (mut rules, mut back_ends) = (String::new(), String::new());
    if place.routes > 0 {
        let route = |route: usize| format!("/r/{route}{} back\n", if is_exact(route) { "" } else { "/" });
        save(place, "routes.map", &(0..place.routes).map(route).collect::<String>());
        rules += "use_backend %[path,map_beg(routes.map,back)] if { path_beg /r/ }\n ";
    }
    if place.sites > 0 {
        let hosts: String = (0..place.sites).map(|site| format!("s{site}.test s{site}\n")).collect();
        save(place, "hosts.map", &hosts);
        rules += &format!(
            "http-request return status 200 content-type text/plain string {} if {{ req.hdr(host) mark.test }}\n \
             use_backend %[req.hdr(host),lower,map_str(hosts.map,back)]\n ",
            place.revision
        );
        let site = |site: usize| format!("backend s{site}\n server one {}\n", place.back_end);
        back_ends.extend((0..place.sites).map(site));
    }
    (rules, back_ends, if place.sites > 0 { "crt pairs " } else { "" })
}

fn php(place: &Place, name: &str, keeps: &str) -> String {
    format!(
        "fcgi-app {name}\n docroot {}\n index index.php\n {keeps}option keep-conn\n\
         backend {name}\n use-fcgi-app {name}\n server fpm unix@{} proto fcgi\n",
        fpm::root(place.folder).display(),
        fpm::socket(place.folder).display()
    )
}
