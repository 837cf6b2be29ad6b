//! Certificates that change under live connections.

use std::path::Path;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::backend;
use crate::harness::{BackEnd, Pair, Proxy, Raw, Socket, World, doorward, finish, wait_until};

/// A changed certificate must be in use this soon.
const SWAP: Duration = Duration::from_secs(2);

fn start(world: &World, tls: &str) -> (BackEnd, Proxy) {
    let backend = BackEnd::start();
    let proxy = world.proxy(&format!(
        "[site.app]\nhosts = [\"app.test\"]\nupstream = {:?}\n{tls}\n[site.app.websocket]\npreset = \"any\"\nto = {:?}\n",
        backend.url(),
        backend.url()
    ));
    (backend, proxy)
}

fn shown(world: &World, proxy: &Proxy) -> CertificateDer<'static> {
    proxy.raw(world, "app.test").leaf()
}

fn leaf(path: &Path) -> CertificateDer<'static> {
    use rustls_pki_types::pem::PemObject;
    CertificateDer::from_pem_file(path).unwrap()
}

/// Waits until new connections get the certificate at `path`.
fn swapped(world: &World, proxy: &Proxy, path: &Path, how: &str) {
    let wanted = leaf(path);
    wait_until(&format!("the new certificate after {how}"), SWAP, || shown(world, proxy) == wanted);
}

#[test]
fn a_certificate_written_in_place_is_swapped_under_a_live_websocket() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    socket.echoes("before");
    let old = shown(&world, &proxy);
    for round in 0..3 {
        world.certificate("site", &["app.test"]);
        swapped(&world, &proxy, &world.path("site.pem"), "an edit in place");
        socket.echoes(&format!("after swap {round}"));
    }
    assert_ne!(shown(&world, &proxy), old);
    proxy.curl("app.test").get("/").expect(200);
}

#[test]
fn a_certificate_renamed_into_place_is_swapped() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    let Pair { cert, key } = world.certificate("new", &["app.test"]);
    let wanted = leaf(&cert);
    std::fs::rename(key, world.path("site.key")).unwrap();
    std::fs::rename(cert, world.path("site.pem")).unwrap();
    wait_until("the renamed certificate", SWAP, || shown(&world, &proxy) == wanted);
}

#[test]
fn certbots_folder_of_symlinks_is_followed() {
    let world = World::new();
    let live = world.path("live/app.test");
    std::fs::create_dir_all(&live).unwrap();
    let version = |number: u32| {
        let pair = world.certificate(&format!("archive/app.test/{number}"), &["app.test"]);
        for (name, target) in [("privkey.pem", &pair.key), ("fullchain.pem", &pair.cert)] {
            let relative = Path::new("../../archive/app.test").join(target.file_name().unwrap());
            let _ = std::fs::remove_file(live.join(name));
            std::os::unix::fs::symlink(relative, live.join(name)).unwrap();
        }
        pair.cert
    };
    let first = version(1);
    let (_backend, proxy) = start(&world, &format!("tls = {live:?}"));
    assert_eq!(shown(&world, &proxy), leaf(&first));
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    for number in 2..5 {
        let cert = version(number);
        swapped(&world, &proxy, &cert, "certbot's swap of links");
        socket.echoes("still here");
    }
}

#[test]
fn a_broken_pair_keeps_the_old_one_and_says_why() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    let old = shown(&world, &proxy);
    let said = || proxy.running.stderr().len();
    let breaks: [(&str, &dyn Fn()); 3] = [
        ("no certificate at all", &|| std::fs::write(world.path("site.pem"), "nonsense").unwrap()),
        ("a certificate cut short", &|| {
            let text = std::fs::read_to_string(world.certificate("cut", &["app.test"]).cert).unwrap();
            std::fs::write(world.path("site.pem"), &text[..text.len() / 4]).unwrap();
        }),
        ("another key's certificate", &|| {
            let other = world.certificate("other", &["app.test"]);
            std::fs::copy(other.cert, world.path("site.pem")).unwrap();
        }),
    ];
    for (what, spoil) in breaks {
        let before = said();
        spoil();
        wait_until(&format!("a word about {what}"), Duration::from_secs(5), || {
            proxy.running.stderr()[before..].iter().any(|line| {
                let line = line.to_lowercase();
                line.contains("site.pem") && (line.contains("warn") || line.contains("error"))
            })
        });
        assert_eq!(shown(&world, &proxy), old, "{what}");
        proxy.curl("app.test").get("/").expect(200);
    }
    world.certificate("site", &["app.test"]);
    swapped(&world, &proxy, &world.path("site.pem"), "a repair");
}

#[test]
fn every_kind_of_key_is_served() {
    let world = World::new();
    for kind in ["rsa:2048", "ec", "ed25519"] {
        let (cert, key) = (world.path("own.pem"), world.path("own.key"));
        let mut command = std::process::Command::new("openssl");
        command.args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=app.test"]);
        command.args(["-addext", "subjectAltName=DNS:app.test", "-addext", "basicConstraints=critical,CA:FALSE"]);
        command.args(["-newkey", kind]);
        if kind == "ec" {
            command.args(["-pkeyopt", "ec_paramgen_curve:P-256"]);
        }
        command.arg("-out").arg(&cert).arg("-keyout").arg(&key);
        let made = finish("openssl", &mut command);
        assert_eq!(made.code, 0, "{}", made.said());
        let (_backend, proxy) = start(&world, &format!("tls = {{ cert = {cert:?}, key = {key:?} }}"));
        for version in ["--tlsv1.2", "--tlsv1.3"] {
            let max = version.replace("--tlsv", "");
            let curl = proxy.curl("app.test").arg("--cacert").arg(cert.display().to_string());
            let curl = curl.arg(version).arg("--tls-max").arg(max);
            assert_eq!(curl.get("/").status, 200, "{kind} {version}");
        }
    }
}

#[test]
fn old_versions_of_tls_are_refused() {
    let world = World::new();
    let backend = BackEnd::start();
    let head = world.head().replace("[tls]\n", "[tls]\nmin_version = \"1.3\"\n");
    let proxy = Proxy::start(&world, &format!("{head}{}", backend::site(&backend.url(), "")));
    let error = proxy.curl("app.test").arg("--tlsv1.2").arg("--tls-max").arg("1.2").send("/");
    assert!(error.is_err(), "TLS 1.2 passed");
    proxy.curl("app.test").arg("--tlsv1.3").get("/").expect(200);
}

#[test]
fn a_local_authority_that_cannot_be_made_refuses_its_own_sites_alone() {
    let world = World::new();
    let backend = BackEnd::start();
    let local = |name: &str| {
        format!("[site.{name}]\nhosts = [\"{name}.test\"]\ntls = \"self-signed\"\nupstream = {:?}\n", backend.url())
    };
    let file = format!("{}[site.app]\nhosts = [\"app.test\"]\nupstream = {:?}\n", world.head(), backend.url());
    let folder = world.write("certs-dev", "no folder");
    let mut proxy = Proxy::start(&world, &(file.clone() + &local("local")));
    proxy.curl("app.test").get("/").expect(200);
    assert!(Raw::try_tls(&world, proxy.https(), "local.test", &[]).is_err(), "another site's certificate leaked");
    let line = proxy.running.wait_line("a word about the local CA", |line| line.contains("no local certificate"));
    assert!(line.contains("site local") && line.contains("certs-dev"), "{line}");
    // What was so before keeps nobody from changing the file; what is new is a mistake in it.
    proxy.rewrite(&(file.replace("\"app.test\"", "\"app.test\", \"more.test\"") + &local("local")));
    let reloaded = proxy.reload();
    assert_eq!(reloaded.code, 0, "{}", reloaded.said());
    proxy.rewrite(&(file.clone() + &local("local") + &local("other")));
    let reloaded = proxy.reload();
    assert_ne!(reloaded.code, 0, "{}", reloaded.said());
    assert!(reloaded.said().contains("site other"), "{}", reloaded.said());
    // Mended.
    std::fs::remove_file(folder).unwrap();
    assert_eq!(proxy.reload().code, 0);
    for host in ["local.test", "other.test"] {
        let ca = world.path("certs-dev/ca.pem");
        proxy.curl(host).arg("--cacert").arg(ca.display().to_string()).get("/").expect(200);
    }
}

#[test]
fn a_list_without_a_server_writes_nothing() {
    let world = World::new();
    let storage = world.path("acme");
    let file = world.write(
        "proxy.toml",
        format!(
            "[acme]\nstorage = {storage:?}\ndirectory = \"https://127.0.0.1:9/\"\n\
             [site.local]\nhosts = [\"local.test\"]\ntls = \"self-signed\"\nupstream = \"http://127.0.0.1:9\"\n\
             [site.auto]\nhosts = [\"a.example.com\"]\nupstream = \"http://127.0.0.1:9\"\n"
        ),
    );
    let listed = finish("doorward", doorward().args(["cert", "list", "-c"]).arg(&file));
    assert_eq!(listed.code, 0, "{}", listed.said());
    assert!(listed.stdout.contains("sites    local") && listed.stdout.contains("sites    auto"), "{}", listed.stdout);
    for path in [storage, world.path("acme.ledger"), world.path("certs-dev")] {
        assert!(!path.exists(), "{}", path.display());
    }
}

#[test]
fn a_self_signed_site_makes_its_own_authority_and_keeps_the_keys_to_itself() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let backend = BackEnd::start();
    let toml = format!(
        "[server]\nhttp = []\nhttps = [\"127.0.0.1:0\"]\n[site.app]\nhosts = [\"app.test\"]\ntls = \"self-signed\"\nupstream = {:?}\n",
        backend.url()
    );
    let proxy = Proxy::start(&world, &toml);
    let folder = world.path("certs-dev");
    let mut authorities = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.contains("PRIVATE KEY") {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        } else if text.contains("BEGIN CERTIFICATE") {
            authorities.push(path);
        }
    }
    let verified = authorities.iter().any(|ca| {
        let curl = proxy.curl("app.test").arg("--cacert").arg(ca.display().to_string());
        curl.send("/").is_ok_and(|answer| answer.status == 200)
    });
    assert!(verified, "no authority in {authorities:?} verifies the site");
    // The next start uses the same authority.
    let first = proxy.https();
    drop(proxy);
    let before: Vec<_> = authorities.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let proxy = Proxy::start(&world, &toml);
    assert_ne!(first, 0);
    let after: Vec<_> = authorities.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let kept = before.iter().zip(&after).filter(|(a, b)| a == b).count();
    assert!(kept >= 1, "a new authority at every start would have to be trusted anew");
    drop(proxy);
}

#[test]
fn a_session_is_resumed_after_a_reload() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    let session = world.path("session.pem");
    let connect = |flag: &str| {
        let mut command = std::process::Command::new("openssl");
        command.args(["s_client", "-connect", &format!("127.0.0.1:{}", proxy.https()), "-servername", "app.test"]);
        command.arg("-CAfile").arg(world.ca()).args(["-tls1_2", flag]).arg(&session);
        finish("openssl", &mut command).said()
    };
    let first = connect("-sess_out");
    assert!(first.contains("New, TLSv1.2"), "{first}");
    assert_eq!(proxy.reload().code, 0);
    let second = connect("-sess_in");
    assert!(second.contains("Reused, TLSv1.2"), "{second}");
    let _ = Raw::plain(proxy.https());
}
