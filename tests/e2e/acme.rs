//! Automatic certificates from Pebble, which fetches its challenges through the proxy's own listeners.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{
    BackEnd, Finished, Pebble, Proxy, Raw, Socket, Temper, World, doorward, finish, wait_for, wait_until,
};

/// Orders take a few seconds of the authority's own; tests run beside others.
const ORDERED: Duration = Duration::from_secs(60);

struct Stage {
    world: World,
    temper: Temper,
    pebble: Pebble,
}

impl Stage {
    fn with(adapt: impl FnOnce(&mut Temper)) -> Stage {
        let world = World::new();
        let mut temper = Temper::difficult();
        adapt(&mut temper);
        let pebble = Pebble::start(&world, &temper);
        Stage { world, temper, pebble }
    }

    fn new() -> Stage {
        Stage::with(|_| ())
    }

    fn config(&self, acme: &str, sites: &str) -> String {
        format!("{}{acme}\n{sites}", self.pebble.head(&self.world, &self.temper))
    }

    fn proxy(&self, acme: &str, sites: &str) -> Proxy {
        Proxy::start(&self.world, &self.config(acme, sites))
    }

    /// Waits until `host` is served with a certificate that clients of Pebble believe.
    fn served(&self, proxy: &Proxy, host: &str) {
        let shaken = || Raw::try_tls(&self.world, proxy.https(), host, &[]).ok();
        wait_for(&format!("a certificate for {host}\n{}", proxy.running.said()), ORDERED, shaken);
    }

    fn command(&self, arguments: &[&str]) -> Finished {
        finish("doorward", doorward().args(arguments).args(["-c"]).arg(self.world.path("proxy.toml")))
    }
}

fn site(name: &str, hosts: &[&str]) -> String {
    format!("[site.{name}]\nhosts = {hosts:?}\n[[site.{name}.route]]\npath = \"/*\"\nrespond = {{ body = {name:?} }}\n")
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode() & 0o777
}

#[test]
fn http_01_is_answered_on_the_plain_listener_whatever_the_site_does_there() {
    let stage = Stage::new();
    let sites = ["redirect", "serve", "off"].map(|http| {
        let site = site(http, &[&format!("{http}.example.com")]);
        site.replacen("hosts", &format!("http = {http:?}\nhosts"), 1)
    });
    let proxy = stage.proxy("challenges = [\"http-01\"]", &sites.concat());
    for name in ["redirect", "serve", "off"] {
        let host = format!("{name}.example.com");
        stage.served(&proxy, &host);
        assert_eq!(proxy.curl(&host).get("/").expect(200).text(), name);
    }
    let fetched = proxy.running.stderr().iter().filter(|line| line.contains("HTTP-01 challenge is fetched")).count();
    assert!(fetched >= 3, "{}", proxy.running.said());
    // What is over is not answered any more.
    proxy.plain("redirect.example.com").get("/.well-known/acme-challenge/x").expect(301);
}

#[test]
fn tls_alpn_01_is_answered_on_the_tls_listener() {
    let stage = Stage::new();
    let config = stage.config("challenges = [\"tls-alpn-01\"]", &site("app", &["app.example.com"]));
    let proxy = Proxy::start(
        &stage.world,
        &config.replacen(&format!("http = [\"127.0.0.1:{}\"]", stage.temper.http), "http = []", 1),
    );
    stage.served(&proxy, "app.example.com");
    proxy.curl("app.example.com").get("/").expect(200);
}

#[test]
fn dns_01_by_a_hook_certifies_wildcards() {
    let stage = Stage::new();
    let hook = stage.pebble.dns_hook();
    let sites = [site("wild", &["*.wild.example.com"]), site("below", &[".below.example.com"])].concat();
    let proxy = stage.proxy(&hook, &sites);
    for host in ["a.wild.example.com", "below.example.com", "x.below.example.com"] {
        stage.served(&proxy, host);
        proxy.curl(host).get("/").expect(200);
    }
    assert_eq!(stage.pebble.orders(), 2, "{}", proxy.running.said());
    let cert = stage.world.path("acme/certificates/_.wild.example.com/live/fullchain.pem");
    assert!(cert.exists(), "{}", cert.display());
}

#[test]
fn twenty_sites_are_certified_although_every_second_nonce_is_refused() {
    let stage = Stage::with(|temper| temper.longest_delay = 0);
    let hosts: Vec<String> = (0..20).map(|n| format!("s{n}.example.com")).collect();
    let sites: String = hosts.iter().enumerate().map(|(n, host)| site(&format!("s{n}"), &[host])).collect();
    let proxy = stage.proxy("", &sites);
    for host in &hosts {
        stage.served(&proxy, host);
    }
    assert_eq!((stage.pebble.orders(), stage.pebble.issued(), stage.pebble.accounts()), (20, 20, 1));
}

#[test]
fn names_of_a_site_share_an_order_and_one_that_fails_holds_up_no_other() {
    let stage = Stage::with(|temper| temper.longest_delay = 0);
    stage.pebble.lose(&stage.world, "lost.example.com");
    let sites = [
        site("shop", &["shop.example.com", "lost.example.com", "www.shop.example.com"]),
        site("blog", &["blog.example.com", "www.blog.example.com"]),
        // A file's own certificate beside them.
        format!(
            "{}tls = {{ cert = {:?}, key = {:?} }}\n",
            "[site.file]\nhosts = [\"app.test\"]\nupstream = \"http://127.0.0.1:1\"\n",
            stage.world.path("site.pem"),
            stage.world.path("site.key")
        ),
    ];
    let mut proxy = stage.proxy("", &sites.concat());
    proxy.raw(&stage.world, "app.test");
    for host in ["blog.example.com", "www.blog.example.com", "shop.example.com", "www.shop.example.com"] {
        stage.served(&proxy, host);
    }
    proxy
        .running
        .wait_line("the lost name", |line| line.contains("no certificate") && line.contains("lost.example.com"));
    Raw::try_tls(&stage.world, proxy.https(), "lost.example.com", &[]).err().expect("a handshake without certificate");
    // Only the handshakes of this one host are refused; its plain port answers.
    proxy.plain("lost.example.com").get("/").expect(301);
    let listed = stage.command(&["cert", "list"]);
    assert!(listed.stdout.contains("lost.example.com\n") && listed.stdout.contains("next try"), "{}", listed.said());
    stage.pebble.find_again(&stage.world, "lost.example.com");
    let renewed = stage.command(&["cert", "renew", "lost.example.com"]);
    assert_eq!(renewed.code, 0, "{}", renewed.said());
    stage.served(&proxy, "lost.example.com");
}

#[test]
fn a_certificate_is_renewed_in_time_under_live_websockets() {
    let stage = Stage::with(|temper| (temper.lifetime, temper.longest_delay) = (24, 0));
    let backend = BackEnd::start();
    let to = backend.url();
    let proxy = stage.proxy("", &format!("[site.app]\nhosts = [\"app.example.com\"]\nupstream = {to:?}\n[site.app.websocket]\npreset = \"any\"\nto = {to:?}\n"));
    stage.served(&proxy, "app.example.com");
    let leaf = || Raw::try_tls(&stage.world, proxy.https(), "app.example.com", &[]).ok().map(|raw| raw.leaf());
    let first = leaf().unwrap();
    let mut sockets: Vec<Socket> =
        (0..5).map(|_| Socket::open(&stage.world, &proxy, "app.example.com", "/live")).collect();
    for round in 0..2 {
        let before = leaf().unwrap();
        wait_until("a renewal", Duration::from_secs(40), || leaf().is_some_and(|leaf| leaf != before));
        for socket in &mut sockets {
            socket.echoes(&format!("after renewal {round}"));
        }
    }
    assert_ne!(leaf().unwrap(), first);
    assert!(stage.pebble.issued() >= 3);
}

#[test]
fn a_restart_orders_nothing_and_makes_no_account() {
    let stage = Stage::with(|temper| temper.longest_delay = 0);
    let sites = site("app", &["app.example.com"]);
    for _ in 0..3 {
        let proxy = stage.proxy("", &sites);
        stage.served(&proxy, "app.example.com");
        proxy.running.signal(Signal::KILL);
    }
    assert_eq!((stage.pebble.orders(), stage.pebble.accounts()), (1, 1));
    let acme = stage.world.path("acme");
    let folder = acme.join("certificates/app.example.com");
    for (path, expected) in [
        (acme.clone(), 0o700),
        (acme.join("accounts"), 0o700),
        (folder.clone(), 0o700),
        (std::fs::canonicalize(folder.join("live")).unwrap(), 0o700),
        (std::fs::canonicalize(folder.join("live/privkey.pem")).unwrap(), 0o600),
        (std::fs::canonicalize(folder.join("live/fullchain.pem")).unwrap(), 0o600),
        (acme.join("ledger.json"), 0o600),
    ] {
        assert_eq!(format!("{:o}", mode(&path)), format!("{expected:o}"), "{}", path.display());
    }
    for account in std::fs::read_dir(acme.join("accounts")).unwrap() {
        assert_eq!(mode(&account.unwrap().path()), 0o600);
    }
}

#[test]
fn an_external_account_is_bound() {
    let stage = Stage::with(|temper| (temper.external_account, temper.longest_delay) = (true, 0));
    let eab = format!("eab = {{ kid = \"kid-1\", hmac_key = {:?} }}", Pebble::HMAC_KEY);
    let proxy = stage.proxy(&eab, &site("app", &["app.example.com"]));
    stage.served(&proxy, "app.example.com");
}

#[test]
fn an_address_is_certified_beside_names() {
    let stage = Stage::with(|temper| temper.longest_delay = 0);
    let proxy =
        stage.proxy("", &site("app", &["app.example.com", "127.0.0.1"]).replacen("hosts", "tls = \"acme\"\nhosts", 1));
    stage.served(&proxy, "app.example.com");
    let curl = || proxy.curl("127.0.0.1").send("/").is_ok_and(|answer| answer.status == 200);
    wait_until("a certificate for 127.0.0.1", ORDERED, curl);
}

#[test]
fn another_clients_challenges_are_served_from_its_webroot() {
    let world = World::new();
    world.write("webroot/.well-known/acme-challenge/token-of_certbot", "token-of_certbot.thumb");
    world.write("webroot/secret", "secret");
    let acme = format!("[acme]\nwebroot = {:?}\n", world.path("webroot"));
    let proxy = world.proxy(&format!("{acme}[site.app]\nhosts = [\"app.test\"]\nupstream = \"http://127.0.0.1:1\"\n"));
    let answer = proxy.plain("app.test").get("/.well-known/acme-challenge/token-of_certbot").expect(200);
    assert_eq!(answer.text(), "token-of_certbot.thumb");
    // Whatever else is asked for is the site's.
    for path in ["/.well-known/acme-challenge/absent", "/.well-known/acme-challenge/../../secret", "/secret"] {
        proxy.plain("app.test").get(path).expect(301);
    }
}

#[test]
fn certificates_are_listed_renewed_and_rehearsed() {
    let stage = Stage::with(|temper| temper.longest_delay = 0);
    let proxy = stage.proxy("", &site("app", &["app.example.com", "www.app.example.com"]));
    stage.served(&proxy, "app.example.com");
    let listed = stage.command(&["cert", "list"]);
    assert_eq!(listed.code, 0, "{}", listed.said());
    for part in
        ["app.example.com, www.app.example.com", "Pebble Intermediate CA", "89 days left", "two thirds of its life"]
    {
        assert!(listed.stdout.contains(part), "{part}: {}", listed.stdout);
    }
    let before = Raw::tls(&stage.world, proxy.https(), "app.example.com").leaf();
    for name in ["www.app.example.com", "app"] {
        let renewed = stage.command(&["cert", "renew", name]);
        assert_eq!(renewed.code, 0, "{}", renewed.said());
        assert!(renewed.stdout.contains("a new certificate is in service"), "{}", renewed.said());
    }
    assert_ne!(Raw::tls(&stage.world, proxy.https(), "app.example.com").leaf(), before);
    let tested = stage.command(&["cert", "test", "app"]);
    assert_eq!(tested.code, 0, "{}", tested.said());
    assert!(tested.stdout.contains("would certify app.example.com"), "{}", tested.said());
    let unknown = stage.command(&["cert", "renew", "other.example.com"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("there are app.example.com"), "{}", unknown.said());
    // What was renewed too often is refused, whoever asks.
    let more: Vec<Finished> = (0..4).map(|_| stage.command(&["cert", "renew", "app"])).collect();
    assert!(more.iter().any(|finished| finished.code == 1), "{}", more.last().unwrap().said());
    drop(proxy);
    let listed = stage.command(&["cert", "list"]);
    assert!(listed.stdout.contains("89 days left"), "{}", listed.said());
}
