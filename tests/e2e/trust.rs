//! `doorward trust` and `untrust`, in the store of this system and in a home of the test's own.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};

use crate::harness::{BackEnd, Finished, Proxy, World, doorward, finish, program, run_node};

const ANCHORS: &str = "/usr/local/share/ca-certificates";
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const LINKS: &str = "/etc/ssl/certs";
/// The store of Java, which Debian fills from the anchors where there is a Java.
const JAVA: &str = "/etc/ssl/certs/java/cacerts";
const HOUR: Duration = Duration::from_secs(3600);

/// Somebody at this machine: their project, and their home.
struct Person {
    world: World,
    backend: BackEnd,
}

impl Person {
    /// With a browser that was started before, or not.
    fn new(has_database: bool) -> Person {
        let person = Person { world: World::new(), backend: BackEnd::start() };
        fs::create_dir(person.home()).unwrap();
        if has_database {
            fs::create_dir_all(person.database()).unwrap();
            person.certutil(&["-N", "--empty-password"]);
        }
        // Whoever is not root finds no sudo: these tests ask nobody for a password.
        fs::create_dir(person.world.path("bin")).unwrap();
        for name in ["certutil", "chromium", "mkdir"] {
            std::os::unix::fs::symlink(program(&[name]), person.world.path("bin").join(name)).unwrap();
        }
        person
    }

    fn home(&self) -> PathBuf {
        self.world.path("home")
    }

    fn path(&self) -> OsString {
        if is_root() { std::env::var_os("PATH").unwrap() } else { self.world.path("bin").into() }
    }

    fn database(&self) -> PathBuf {
        self.world.path("home/.pki/nssdb")
    }

    fn ca(&self) -> PathBuf {
        self.world.path("certs-dev/ca.pem")
    }

    /// A file with a self-signed site for each of `hosts`.
    fn toml(&self, hosts: &[&str]) -> String {
        let site = |(number, host): (usize, &&str)| {
            let url = self.backend.url();
            format!("[site.s{number}]\nhosts = [{host:?}]\ntls = \"self-signed\"\nupstream = {url:?}\n")
        };
        let sites: String = hosts.iter().enumerate().map(site).collect();
        format!("[server]\nhttp = []\nhttps = [\"127.0.0.1:0\"]\nworkers = 1\n{sites}")
    }

    fn proxy(&self, hosts: &[&str]) -> Proxy {
        Proxy::start(&self.world, &self.toml(hosts))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = doorward();
        command.args(arguments).arg("-c").arg(self.world.path("proxy.toml")).env("HOME", self.home());
        command.env("PATH", self.path()).env_remove("SUDO_USER");
        command
    }

    /// `doorward ARGUMENTS -c FILE`, without a terminal.
    fn doorward(&self, arguments: &[&str]) -> Finished {
        finish(&format!("doorward {arguments:?}"), &mut self.command(arguments))
    }

    /// The same at a terminal, where `answer` is typed.
    fn doorward_at_terminal(&self, arguments: &[&str], answer: &str) -> Finished {
        let inner = self.command(arguments);
        let words = std::iter::once(inner.get_program()).chain(inner.get_args());
        let line: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let line = format!("PATH='{}' exec {}", self.path().to_str().unwrap(), line.join(" "));
        let mut command = Command::new("sh");
        command.args(["-c", "printf '%s\\n' \"$1\" | exec script -qec \"$2\" /dev/null", "sh", answer, &line]);
        command.env("HOME", self.home()).env_remove("SUDO_USER");
        finish("doorward at a terminal", &mut command)
    }

    fn certutil(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(program(&["certutil"]));
        command.args(arguments).arg("-d").arg(format!("sql:{}", self.database().display()));
        finish("certutil", &mut command)
    }

    /// Opens `url` in Chromium, in this home.
    fn browse(&self, url: &str) -> serde_json::Value {
        let chromium = program(&["chromium", "chromium-browser"]);
        let (profile, home) = (self.world.path("profile"), self.home());
        let paths = [&chromium, &profile, &home].map(|path| path.to_str().unwrap());
        let [chromium, profile, home] = paths;
        let arguments = ["--chromium", chromium, "--profile", profile, "--home", home, "--url", url];
        run_node(&self.world, "visit.js", &arguments)
    }
}

/// curl with what this system trusts: the status, or curl's exit code.
fn curl(proxy: &Proxy, host: &str, more: &[&str]) -> Result<u16, i32> {
    let mut command = Command::new("curl");
    command.args(["-q", "-sS", "--noproxy", "*", "--connect-to", "::127.0.0.1:", "--max-time", "20"]);
    command.args(["-o", "/dev/null", "-w", "%{http_code}"]).args(more).arg(proxy.url(host));
    for name in ["CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
        command.env_remove(name);
    }
    let end = finish("curl", &mut command);
    if end.code == 0 { Ok(end.stdout.parse().unwrap()) } else { Err(end.code) }
}

/// Whether openssl, which looks into the folder of links, believes the site.
fn openssl_believes(proxy: &Proxy, host: &str) -> bool {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-verify_return_error", "-verify_hostname", host, "-servername", host]);
    command.args(["-CApath", LINKS, "-no-CAfile", "-connect", &format!("127.0.0.1:{}", proxy.https())]);
    finish("openssl", &mut command).code == 0
}

type State = (Vec<u8>, BTreeSet<OsString>);

/// The system's store. One test at a time has it; when that ends, however it ends, the store is as it was.
struct SystemStore {
    authority: PathBuf,
    before: State,
    java: Vec<u8>,
    _alone: File,
}

impl SystemStore {
    fn borrow(person: &Person) -> SystemStore {
        let alone = File::open(ANCHORS).unwrap();
        alone.lock().unwrap();
        SystemStore { authority: person.ca(), before: SystemStore::state(), java: java(), _alone: alone }
    }

    /// What programs read: the bundle, and the links.
    fn state() -> State {
        let links = fs::read_dir(LINKS).into_iter().flatten().flatten().map(|entry| entry.file_name());
        (fs::read(BUNDLE).unwrap_or_default(), links.collect())
    }

    fn is_in_java(&self) -> bool {
        let name = format!("doorward-{}.pem", label(&self.authority));
        java().windows(name.len()).any(|window| window == name.as_bytes())
    }

    #[track_caller]
    fn assert_unchanged(&self) {
        let (bundle, links) = SystemStore::state();
        assert!(bundle == self.before.0, "the bundle is another");
        let others: Vec<_> = links.symmetric_difference(&self.before.1).collect();
        assert!(others.is_empty(), "{others:?}");
        assert!(!self.is_in_java(), "Java still trusts it");
    }
}

impl Drop for SystemStore {
    fn drop(&mut self) {
        let Ok(authority) = fs::read(&self.authority) else { return };
        let ours = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes == authority);
        let left: Vec<PathBuf> =
            fs::read_dir(ANCHORS).into_iter().flatten().flatten().map(|e| e.path()).filter(ours).collect();
        if left.is_empty() && !self.is_in_java() && SystemStore::state() == self.before {
            return;
        }
        for path in left {
            let _ = fs::remove_file(path);
        }
        let _ = Command::new(program(&["update-ca-certificates"])).arg("--fresh").output();
        if self.is_in_java() {
            let _ = fs::write(JAVA, &self.java);
        }
    }
}

fn java() -> Vec<u8> {
    fs::read(JAVA).unwrap_or_default()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn curl_and_chromium_believe_a_trusted_authority_until_it_is_taken_back() {
    let person = Person::new(true);
    let proxy = person.proxy(&["app.test"]);
    let url = proxy.url("app.test");
    let store = is_root().then(|| SystemStore::borrow(&person));
    assert_eq!(curl(&proxy, "app.test", &[]), Err(60));

    let trusted = person.doorward(&["trust", "--yes"]);
    assert!(trusted.stdout.contains("certutil -d sql:"), "{}", trusted.said());
    assert_eq!(person.browse(&url)["status"], 200);
    if store.is_some() {
        assert_eq!(trusted.code, 0, "{}", trusted.said());
        assert_eq!(curl(&proxy, "app.test", &[]), Ok(200));
        assert!(openssl_believes(&proxy, "app.test"));
        let again = person.doorward(&["trust"]);
        assert_eq!(again.code, 0, "{}", again.said());
        assert!(again.stdout.contains("trusted already"), "{}", again.said());
        assert!(!again.stdout.contains("install"), "{}", again.said());
    } else {
        // What takes root is told, and the rest is done.
        assert_eq!(trusted.code, 1, "{}", trusted.said());
        assert!(trusted.stderr.contains("As root:\n  install -m 644 "), "{}", trusted.said());
        assert_eq!(curl(&proxy, "app.test", &[]), Err(60));
    }

    let taken = person.doorward_at_terminal(&["untrust"], "y");
    assert_eq!(taken.code, 0, "{}", taken.said());
    assert!(taken.stdout.contains("Go on? [y/N]") && taken.stdout.contains("Done."), "{}", taken.said());
    assert_eq!(curl(&proxy, "app.test", &[]), Err(60));
    assert!(!openssl_believes(&proxy, "app.test"));
    let seen = person.browse(&url);
    assert!(seen["error"].as_str().is_some_and(|error| error.contains("ERR_CERT_AUTHORITY_INVALID")), "{seen}");
    let again = person.doorward(&["untrust"]);
    assert_eq!(again.code, 0, "{}", again.said());
    assert!(again.stdout.contains("nothing to take back"), "{}", again.said());
    if let Some(store) = store {
        store.assert_unchanged();
    }
}

#[test]
fn nothing_is_done_without_a_yes() {
    let person = Person::new(false);
    let _proxy = person.proxy(&["app.test"]);
    let silent = person.doorward(&["trust"]);
    assert_eq!(silent.code, 1, "{}", silent.said());
    assert!(silent.stderr.contains("no terminal") && silent.stderr.contains("--yes"), "{}", silent.said());
    // It says what it would do, also for a Chromium that was never started.
    assert!(silent.stdout.contains("-N --empty-password"), "{}", silent.said());
    for answer in ["n", "", "what?"] {
        let refused = person.doorward_at_terminal(&["trust"], answer);
        assert_eq!(refused.code, 1, "{answer:?}: {}", refused.said());
        assert!(refused.stdout.contains("nothing was changed"), "{answer:?}: {}", refused.said());
    }
    assert_eq!(fs::read_dir(person.home()).unwrap().count(), 0);
    let authority = fs::read(person.ca()).unwrap();
    let anchors = fs::read_dir(ANCHORS).into_iter().flatten().flatten();
    assert!(anchors.map(|entry| entry.path()).all(|path| fs::read(path).is_ok_and(|bytes| bytes != authority)));
}

#[test]
fn trust_says_what_is_missing() {
    let person = Person::new(true);
    let missing = person.doorward(&["trust", "--yes"]);
    assert_eq!(missing.code, 1, "{}", missing.said());
    assert!(missing.stderr.contains("there is no file"), "{}", missing.said());
    person.world.write("proxy.toml", person.toml(&["app.test"]));
    let missing = person.doorward(&["trust", "--yes"]);
    assert_eq!(missing.code, 1, "{}", missing.said());
    assert!(missing.stderr.contains("`doorward run` makes it"), "{}", missing.said());

    // The authority of the version before could vouch for anybody.
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, "Doorward local CA");
    let old = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    person.world.write("certs-dev/ca.pem", old.pem());
    let refused = person.doorward(&["trust", "--yes"]);
    assert_eq!(refused.code, 1, "{}", refused.said());
    assert!(refused.stderr.contains("could vouch for any name"), "{}", refused.said());
    assert!(!person.certutil(&["-L"]).stdout.contains("Doorward"));
}

#[test]
fn a_new_host_brings_a_new_authority_which_says_so_and_takes_the_place_of_the_old_one() {
    let person = Person::new(true);
    let proxy = person.proxy(&["app.test"]);
    let before = label(&person.ca());
    let nickname = format!("Doorward local CA {before}");
    let ca = person.ca();
    let added = person.certutil(&["-A", "-t", "C,,", "-n", &nickname, "-i", ca.to_str().unwrap()]);
    assert_eq!(added.code, 0, "{}", added.said());

    proxy.rewrite(&person.toml(&["app.test", "shop.example.com"]));
    let reloaded = proxy.reload();
    assert_eq!(reloaded.code, 0, "{}", reloaded.said());
    let said = proxy.running.stderr().join("\n");
    assert!(
        said.contains("may not vouch for shop.example.com") && said.contains("run `doorward trust` again"),
        "{said}"
    );
    for host in ["app.test", "shop.example.com"] {
        assert_eq!(curl(&proxy, host, &["--cacert", ca.to_str().unwrap()]), Ok(200), "{host}");
    }
    let shown = person.doorward(&["trust"]);
    let after = label(&ca);
    for part in
        ["shop.example.com", &format!("-A -t C,, -n 'Doorward local CA {after}'"), &format!("-D -n '{nickname}'")]
    {
        assert!(shown.stdout.contains(part), "{part} is missing: {}", shown.said());
    }

    // And when the folder has gone, what it left behind is still found, by its name.
    fs::remove_dir_all(person.world.path("certs-dev")).unwrap();
    let gone = person.doorward(&["untrust", "--yes"]);
    assert_eq!(gone.code, 1, "{}", gone.said());
    assert!(gone.stdout.contains(&nickname) && gone.stderr.contains("--all"), "{}", gone.said());
    let all = person.doorward(&["untrust", "--all"]);
    assert!(all.stdout.contains(&format!("-D -n '{nickname}'")), "{}", all.said());
    assert!(all.stderr.contains("no terminal"), "{}", all.said());
}

/// The eight digits at the end of an authority's name.
fn label(ca: &Path) -> String {
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-subject", "-in"]).arg(ca);
    let subject = finish("openssl", &mut command).stdout;
    subject.trim().rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn what_a_thief_of_the_key_makes_is_believed_by_nobody() {
    let person = Person::new(true);
    drop(person.proxy(&["app.test"]));
    let ca = person.ca();
    let key = KeyPair::from_pem(&fs::read_to_string(person.world.path("certs-dev/ca.key")).unwrap()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&fs::read_to_string(&ca).unwrap(), key).unwrap();
    let mut sites = person.toml(&["app.test"]);
    for (name, host) in [("inside", "other.test"), ("outside", "bank.example.com")] {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let now = SystemTime::now();
        (params.not_before, params.not_after) = ((now - HOUR).into(), (now + 24 * HOUR).into());
        let key = KeyPair::generate().unwrap();
        let cert = person.world.write(&format!("{name}.pem"), params.signed_by(&key, &issuer).unwrap().pem());
        let key = person.world.write(&format!("{name}.key"), key.serialize_pem());
        let url = person.backend.url();
        sites += &format!(
            "[site.{name}]\nhosts = [{host:?}]\ntls = {{ cert = {cert:?}, key = {key:?} }}\nupstream = {url:?}\n"
        );
    }
    let proxy = Proxy::start(&person.world, &sites);
    let added = person.certutil(&["-A", "-t", "C,,", "-n", "thief", "-i", ca.to_str().unwrap()]);
    assert_eq!(added.code, 0, "{}", added.said());

    let with_ca = ["--cacert", ca.to_str().unwrap()];
    let nss = |name: &str| {
        let file = person.world.path(format!("{name}.pem"));
        person.certutil(&["-A", "-t", ",,", "-n", name, "-i", file.to_str().unwrap()]);
        person.certutil(&["-V", "-u", "V", "-n", name])
    };
    // The constraints let this one pass, so it is they that stop the other.
    assert_eq!(curl(&proxy, "other.test", &with_ca), Ok(200));
    assert_eq!(person.browse(&proxy.url("other.test"))["status"], 200);
    assert_eq!(nss("inside").code, 0);

    assert_eq!(curl(&proxy, "bank.example.com", &with_ca), Err(60));
    let seen = person.browse(&proxy.url("bank.example.com"));
    assert!(seen["error"].as_str().is_some_and(|error| error.contains("ERR_CERT_INVALID")), "{seen}");
    let refused = nss("outside");
    assert_ne!(refused.code, 0);
    assert!(refused.said().contains("not permitted to issue"), "{}", refused.said());
}
