//! A real browser: a page of PHP that opens a socket and shows what PHP publishes.

use std::path::Path;

use base64::Engine;
use rustls_pki_types::pem::PemObject;

use crate::harness::{Fpm, Node, Proxy, Redis, Waiting, World, program};
use crate::{php, socketio};

#[test]
fn chromium_shows_what_php_published_through_the_socket() {
    let world = World::new();
    let redis = Redis::start(&world);
    let fpm = Fpm::unix(&world);
    let node = Node::serve(&world, "socketio-server.js", &["--redis", redis.socket.to_str().unwrap()]);
    let proxy = world.proxy(&php::site(&world, &fpm, &socketio::websocket(&node.url())));
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node_modules/socket.io-client/dist/socket.io.min.js");
    std::fs::copy(script, world.path("php/public/assets/socket.io.min.js")).unwrap();
    see(&world, &proxy, &world.path("site.pem"), "chromium.png");
}

/// Opens /page in Chromium, publishes through PHP, and waits until the page shows it.
pub fn see(world: &World, proxy: &Proxy, cert: &Path, picture: &str) {
    let artifacts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/artifacts");
    std::fs::create_dir_all(&artifacts).unwrap();
    let shot = artifacts.join(picture);
    let _ = std::fs::remove_file(&shot);
    let url = format!("{}/page", proxy.url("app.test"));
    let arguments = [
        "--chromium",
        program(&["chromium", "chromium-browser"]).to_str().unwrap(),
        "--url",
        &url,
        "--profile",
        world.path("profile").to_str().unwrap(),
        "--spki",
        &spki(cert),
        "--shot",
        shot.to_str().unwrap(),
        "--text",
        "from PHP ✓",
    ]
    .map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (browser, _) = Waiting::start(world, "browser.js", &arguments);
    proxy.curl("app.test").get("/publish?msg=from%20PHP%20%E2%9C%93").expect(200);
    let result = browser.result();
    assert_eq!(result["status"], 200);
    assert_eq!(result["protocol"], "h2", "{result}");
    assert_eq!(result["secure"], true);
    assert_eq!(result["transport"], "websocket");
    assert_eq!(result["events"], serde_json::json!(["from PHP ✓"]));
    assert_eq!(result["failures"], serde_json::json!([]));
    assert!(std::fs::metadata(&shot).unwrap().len() > 1000);
}

/// What `--ignore-certificate-errors-spki-list` wants: the one key that Chromium is to take as it is.
pub fn spki(cert: &Path) -> String {
    let der = rustls_pki_types::CertificateDer::from_pem_file(cert).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, parsed.public_key().raw);
    base64::engine::general_purpose::STANDARD.encode(digest)
}
