//! The same job in the words of each proxy.

use std::ffi::OsString;
use std::net::SocketAddr;

use crate::server::Place;

/// Of OpenSSL: one version, group and suite.
pub const OPENSSL: &str = "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\n\
    MinProtocol = TLSv1.3\nGroups = X25519\nCiphersuites = TLS_AES_128_GCM_SHA256\n";

fn write(place: &Place, name: &str, text: &str) -> OsString {
    let path = place.folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.into()
}

pub fn doorward(place: &Place, http: SocketAddr, https: SocketAddr) -> Vec<OsString> {
    let (back_end, files) = (place.back_end, crate::files(place.folder));
    let access = if place.logs { place.folder.join("load/doorward.log").display().to_string() } else { "off".into() };
    let text = format!(
        "[server]\nhttp = [\"{http}\"]\nhttps = [\"{https}\"]\nworkers = 1\nshutdown_grace = \"1s\"\n\
         [log]\naccess = \"{access}\"\n\
         [site.a]\nhosts = [\"a.test\", \"127.0.0.1\"]\ndefault = true\nhttp = \"serve\"\nmax_body = \"0\"\n\
         tls = {{ cert = \"cert.pem\", key = \"key.pem\" }}\nupstream = \"http://{back_end}\"\n\
         [site.a.websocket]\npreset = \"any\"\nto = \"http://{back_end}\"\n\
         [[site.a.route]]\npath = \"/files/*\"\nalias = \"{}\"\n",
        files.display()
    );
    let binary = std::env::var_os("DOORWARD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_doorward").into());
    vec![binary, "run".into(), "-c".into(), write(place, "proxy.toml", &text)]
}

/// As Debian has it (sendfile, tcp_nopush), but for what has to be the same, and what would cost it much: see the main
/// file.
pub fn nginx(place: &Place, http: SocketAddr, https: SocketAddr) -> Vec<OsString> {
    let user = if rustix::process::getuid().is_root() { "user root;\n" } else { "" };
    let (folder, back_end, files) = (place.folder.display(), place.back_end, crate::files(place.folder));
    let access_log = match place.logs {
        true => format!("access_log {folder}/load/nginx.log combined buffer=64k;"),
        false => "access_log off;".into(),
    };
    let text = format!(
        "{user}worker_processes 1;\ndaemon off;\npid {folder}/nginx.pid;\n\
         error_log stderr crit;\nevents {{ worker_connections 20000; }}\n\
         http {{\n {access_log}\n sendfile on;\n tcp_nopush on;\n types_hash_max_size 2048;\n \
         client_body_temp_path {folder}/body;\n proxy_temp_path {folder}/proxy;\n fastcgi_temp_path {folder}/fastcgi;\n \
         uwsgi_temp_path {folder}/uwsgi;\n scgi_temp_path {folder}/scgi;\n \
         keepalive_requests 1000000000;\n client_max_body_size 0;\n \
         map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n \
         upstream back {{ server {back_end}; keepalive 64; keepalive_requests 1000000000; }}\n \
         server {{\n  listen {http};\n  listen {https} ssl http2;\n  server_name a.test 127.0.0.1;\n  \
         ssl_certificate cert.pem;\n  ssl_certificate_key key.pem;\n  ssl_protocols TLSv1.3;\n  \
         ssl_ecdh_curve X25519;\n  ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;\n  \
         location /files/ {{ alias {files}/; }}\n  \
         location / {{\n   proxy_pass http://back;\n   proxy_http_version 1.1;\n   proxy_request_buffering off;\n   \
         proxy_max_temp_file_size 0;\n   proxy_read_timeout 1h;\n   proxy_send_timeout 1h;\n   \
         proxy_set_header Host $http_host;\n   proxy_set_header Upgrade $http_upgrade;\n   \
         proxy_set_header Connection $connection_upgrade;\n   \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n   \
         proxy_set_header X-Forwarded-Proto $scheme;\n  }}\n }}\n}}\n",
        files = files.display()
    );
    vec!["nginx".into(), "-p".into(), place.folder.into(), "-c".into(), write(place, "nginx.conf", &text)]
}

pub fn haproxy(place: &Place, http: SocketAddr, https: SocketAddr) -> Vec<OsString> {
    let back_end = place.back_end;
    let text = format!(
        "global\n nbthread 1\n maxconn 9500\n ssl-default-bind-options ssl-min-ver TLSv1.3\n \
         ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256\n\
         defaults\n mode http\n timeout connect 5s\n timeout client 75s\n timeout server 75s\n \
         timeout http-keep-alive 75s\n timeout tunnel 1h\n option forwardfor\n http-reuse always\n\
         frontend front\n bind {http}\n bind {https} ssl crt both.pem alpn h2,http/1.1 curves X25519\n \
         http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}\n default_backend back\n\
         backend back\n server one {back_end}\n"
    );
    vec!["haproxy".into(), "-db".into(), "-f".into(), write(place, "haproxy.cfg", &text)]
}
