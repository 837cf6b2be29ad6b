//! Port 80, names that nobody serves, and names that this connection is not for.

use crate::backend;
use crate::harness::{BackEnd, Proxy, Raw, World};

#[test]
fn port_80_redirects_with_301_for_get_and_308_for_the_rest() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    let target = format!("{}/a%20b?x=1&y=%2F", proxy.url("app.test"));
    for (method, status) in [("GET", 301), ("POST", 308), ("PUT", 308), ("DELETE", 308)] {
        let answer = proxy.plain("app.test").arg("-X").arg(method).get("/a%20b?x=1&y=%2F").expect(status);
        assert_eq!(answer.field("location"), Some(target.as_str()), "{method}");
    }
    proxy.plain("app.test").head("/").expect(301);
    assert!(backend.seen().is_empty(), "nothing went to the application in the clear");
}

#[test]
fn a_redirect_never_leaves_the_site() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    for path in ["//evil.test/", "/\\evil.test/", "/%0d%0aSet-Cookie:%20x=1", "/.evil.test"] {
        let answer = proxy.plain("app.test").get(path);
        assert_eq!(answer.field("set-cookie"), None);
        if let Some(location) = answer.field("location") {
            assert!(location.starts_with(&format!("{}/", proxy.url("app.test"))), "{path} leads to {location}");
        }
    }
}

#[test]
fn aliases_lead_to_the_first_name() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), "aliases = [\"www.app.test\"]"));
    let answer = proxy.curl("www.app.test").get("/x?y=1").expect(301);
    assert_eq!(answer.field("location"), Some(format!("{}/x?y=1", proxy.url("app.test")).as_str()));
}

#[test]
fn a_name_that_nobody_serves_gets_no_site() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    // The certificate covers *.app.test; the site does not. RFC 6066, section 3: unrecognized_name.
    let error = proxy.curl("no.app.test").send("/").expect_err("a handshake for a name that nobody serves");
    assert!(error.contains("unrecognized name"), "{error}");
    let mut raw = proxy.raw(&world, "app.test");
    let (status, head) = raw.send("GET / HTTP/1.1\r\nHost: no.app.test\r\n\r\n").head();
    assert!([404, 421].contains(&status), "{head}");
    assert_eq!(proxy.plain("elsewhere.test").get("/").status, 404);
    assert!(backend.seen().is_empty());
}

#[test]
fn an_unknown_sni_gets_no_certificate_of_another_site() {
    let world = World::new();
    let backend = BackEnd::start();
    let pair = world.certificate("app", &["app.test"]);
    let proxy = Proxy::start(
        &world,
        &format!(
            "[server]\nhttp = []\nhttps = [\"127.0.0.1:0\"]\n[site.app]\nhosts = [\"app.test\"]\n\
             tls = {{ cert = {:?}, key = {:?} }}\nupstream = {:?}\n",
            pair.cert,
            pair.key,
            backend.url()
        ),
    );
    assert!(Raw::try_tls(&world, proxy.https(), "elsewhere.test", &[]).is_err());
    proxy.curl("app.test").get("/").expect(200);
}

#[test]
fn a_host_that_the_connections_certificate_is_not_for_is_421() {
    let world = World::new();
    let backend = BackEnd::start();
    let one = world.certificate("one", &["one.test"]);
    let two = world.certificate("two", &["two.test"]);
    let mut toml = "[server]\nhttp = []\nhttps = [\"127.0.0.1:0\"]\n".to_owned();
    for (name, pair) in [("one", &one), ("two", &two)] {
        toml += &format!(
            "[site.{name}]\nhosts = [\"{name}.test\"]\ntls = {{ cert = {:?}, key = {:?} }}\nupstream = {:?}\n",
            pair.cert,
            pair.key,
            backend.url()
        );
    }
    let proxy = Proxy::start(&world, &toml);
    let port = proxy.https();
    let mut raw = proxy.raw(&world, "one.test");
    raw.send(format!("GET / HTTP/1.1\r\nHost: two.test:{port}\r\n\r\n"));
    assert_eq!(raw.head().0, 421);
    assert!(backend.seen().is_empty());
    for name in ["one.test", "two.test"] {
        proxy.curl(name).get("/").expect(200);
        assert_eq!(backend.last().field("host"), Some(format!("{name}:{port}").as_str()));
    }
}

#[test]
fn one_connection_may_serve_every_name_of_its_certificate() {
    let world = World::new();
    let backend = BackEnd::start();
    let sites = backend::site(&backend.url(), "")
        + &format!("[site.sub]\nhosts = [\"sub.app.test\"]\nupstream = {:?}\n", backend.url());
    let proxy = world.proxy(&sites);
    let mut raw = proxy.raw(&world, "app.test");
    raw.send(format!("GET / HTTP/1.1\r\nHost: sub.app.test:{}\r\n\r\n", proxy.https()));
    assert_eq!(raw.head().0, 200, "RFC 9113, section 9.1.1: browsers reuse connections so");
}

#[test]
fn alpn_offers_both_versions() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    let chosen = |offer: &[&str]| Raw::try_tls(&world, proxy.https(), "app.test", offer).unwrap().alpn();
    assert_eq!(chosen(&["h2", "http/1.1"]).as_deref(), Some("h2"));
    assert_eq!(chosen(&["http/1.1"]).as_deref(), Some("http/1.1"));
    assert_eq!(chosen(&[]), None);
}
