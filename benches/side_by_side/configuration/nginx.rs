//! nginx's: as Debian has it (sendfile, tcp_nopush), but for what has to be the same, and what would cost it much: see
//! the main file.

use std::ffi::OsString;

use super::{Ports, save};
use crate::fpm;
use crate::growth::is_exact;
use crate::server::Place;

pub fn write(place: &Place, ports: Ports) -> Vec<OsString> {
    let Ports { http, https, .. } = ports;
    let user = if rustix::process::getuid().is_root() { "user root;\n" } else { "" };
    let (folder, back_end, files) = (place.folder.display(), place.back_end, crate::files(place.folder));
    let access_log = match place.logs {
        true => format!("access_log {folder}/load/nginx.log combined buffer=64k;"),
        false => "access_log off;".into(),
    };
    let socket = fpm::socket(place.folder);
    let text = format!(
        "{user}worker_processes 1;\ndaemon off;\npid {folder}/nginx.pid;\n\
         error_log stderr crit;\nevents {{ worker_connections 20000; }}\n\
         http {{\n {access_log}\n sendfile on;\n tcp_nopush on;\n types_hash_max_size 2048;\n \
         server_names_hash_max_size 8192;\n \
         client_body_temp_path {folder}/body;\n proxy_temp_path {folder}/proxy;\n fastcgi_temp_path {folder}/fastcgi;\n \
         uwsgi_temp_path {folder}/uwsgi;\n scgi_temp_path {folder}/scgi;\n \
         keepalive_requests 1000000000;\n client_max_body_size 0;\n \
         map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n \
         upstream back {{ server {back_end}; keepalive 64; keepalive_requests 1000000000; }}\n \
         upstream fpm {{ server unix:{socket}; keepalive {kept}; keepalive_requests 1000000000; }}\n \
         ssl_certificate cert.pem;\n ssl_certificate_key key.pem;\n ssl_protocols TLSv1.3;\n \
         ssl_ecdh_curve X25519;\n ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;\n \
         proxy_http_version 1.1;\n proxy_request_buffering off;\n proxy_max_temp_file_size 0;\n \
         proxy_read_timeout 1h;\n proxy_send_timeout 1h;\n proxy_set_header Host $http_host;\n \
         proxy_set_header Upgrade $http_upgrade;\n proxy_set_header Connection $connection_upgrade;\n \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n proxy_set_header X-Forwarded-Proto $scheme;\n \
         server {{\n  listen {http} default_server;\n  listen {https} ssl http2 default_server;\n  \
         server_name a.test 127.0.0.1;\n  \
         location /files/ {{ alias {files}/; }}\n  \
         location / {{ proxy_pass http://back; }}\n{routes} }}\n\
         {php}{kept_php}{sites}}}\n",
        files = files.display(),
        socket = socket.display(),
        kept = fpm::CLIENTS,
        routes = routes(place),
        sites = sites(place, ports),
        php = php(place, ports, "php", &format!("fastcgi_pass unix:{};", socket.display())),
        kept_php = php(place, ports, "kept", "fastcgi_keep_conn on; fastcgi_pass fpm;"),
    );
    vec!["nginx".into(), "-p".into(), place.folder.into(), "-c".into(), save(place, "nginx.conf", &text)]
}

fn routes(place: &Place) -> String {
    let route = |route: usize| match is_exact(route) {
        true => format!("  location = /r/{route} {{ proxy_pass http://back; }}\n"),
        false => format!("  location /r/{route}/ {{ proxy_pass http://back; }}\n"),
    };
    (0..place.routes).map(route).collect()
}

fn sites(place: &Place, Ports { http, https, .. }: Ports) -> String {
    let site = |site: usize| {
        format!(
            " server {{\n  listen {http};\n  listen {https} ssl http2;\n  server_name s{site}.test;\n  \
             ssl_certificate sites/{site}.pem;\n  ssl_certificate_key sites/{site}.key;\n  \
             location / {{ proxy_pass http://back; }}\n }}\n"
        )
    };
    let mark = place.revision;
    let mark = format!(" server {{\n  listen {http};\n  server_name mark.test;\n  return 200 \"{mark}\";\n }}\n");
    (0..place.sites).map(site).chain((place.sites > 0).then_some(mark)).collect()
}

fn php(place: &Place, Ports { http, https, .. }: Ports, name: &str, pass: &str) -> String {
    format!(
        " server {{\n  listen {http};\n  listen {https} ssl http2;\n  server_name {name}.test;\n  root {};\n  \
         index index.php;\n  location / {{ try_files $uri $uri/ /index.php?$query_string; }}\n  \
         location ~ \\.php$ {{ include /etc/nginx/fastcgi.conf; {pass} }}\n }}\n",
        fpm::root(place.folder).display()
    )
}
