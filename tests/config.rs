//! The configuration file: what each mistake is told, what the file's example says, what `show` prints.
//!
//! `DOORWARD_BLESS=1 cargo test --test config` writes the `.out` files anew; read the difference aloud.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use doorward::config::{self, Certificate, Config, Problems};

const FOLDER: &str = "/etc/doorward";

fn parse(text: &str) -> Result<Config, Problems> {
    config::parse(Path::new(FOLDER), &[("proxy.toml", text)], &|_| None)
}

fn files(folder: &Path, ending: &str) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn each_mistake_is_told_as_in_its_golden_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let included = files(&folder.join("included"), "toml");
    let mut failures = Vec::new();
    let cases = files(&folder, "toml");
    assert!(cases.len() > 10);
    for (name, text) in cases {
        let mut pairs = vec![(name.clone(), text)];
        pairs.extend(included.iter().map(|(name, text)| (format!("included/{name}"), text.clone())));
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let told = match config::parse(Path::new(FOLDER), &pairs, &|_| None) {
            Ok(_) => "no problem\n".to_owned(),
            Err(problems) => format!("{problems}\n"),
        };
        let golden = folder.join(&name).with_extension("out");
        if std::env::var_os("DOORWARD_BLESS").is_some() {
            std::fs::write(&golden, &told).unwrap();
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != told {
            failures.push(format!("{}: got\n{told}", golden.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

const EXAMPLE: &str = include_str!("../proxy.example.toml");

/// The line's key, where it has one.
fn key(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim_end();
    (!key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')).then_some(key)
}

#[test]
fn each_default_that_the_example_states_is_the_one_in_force() {
    let config = parse(EXAMPLE).unwrap_or_else(|problems| panic!("{problems}"));
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    let stated: Vec<usize> =
        (0..lines.len()).filter(|at| key(lines[*at]).is_some() && !lines[*at].contains("# example")).collect();
    assert!(stated.len() > 70, "{}", stated.len());
    let without = |removed: &dyn Fn(usize) -> bool| {
        let left = lines.iter().enumerate().filter(|(at, _)| !removed(*at)).map(|(_, line)| *line);
        parse(&left.collect::<Vec<_>>().join("\n"))
    };
    for at in &stated {
        let shorter = without(&|other| other == *at);
        assert!(shorter.as_ref() == Ok(&config), "line {} is not the default: {}", at + 1, lines[*at]);
    }
    assert!(without(&|at| stated.contains(&at)).as_ref() == Ok(&config), "the defaults together");
    for at in (0..lines.len()).filter(|at| key(lines[*at]).is_some() && lines[*at].contains("# example")) {
        let shorter = without(&|other| other == at);
        assert!(shorter.as_ref() != Ok(&config), "line {} is the default, not an example: {}", at + 1, lines[at]);
    }
}

#[test]
fn the_example_has_every_key() {
    // A key that nobody can mean makes each block tell what it knows.
    let mut text = String::new();
    for line in EXAMPLE.lines() {
        text.push_str(line);
        text.push('\n');
        if line.starts_with('[') {
            text.push_str("qqqqqqqqqqqq = 1\n");
        }
    }
    let problems = parse(&text).unwrap_err();
    let mut keys = 0;
    for problem in &problems.0 {
        let list = problem.help.replace('\n', " ");
        let list = list.strip_prefix("its keys are ").unwrap_or_else(|| panic!("{problem}"));
        for known in list.split(", ") {
            let written = EXAMPLE.lines().any(|line| {
                key(line) == Some(known)
                    || line.starts_with('[') && line.contains(&format!(".{known}]"))
                    || line.contains(&format!(" {known} = "))
                    || line.trim_start_matches([' ', '#']).split_whitespace().next() == Some(known)
            });
            assert!(written, "the example lacks `{known}` ({})", problem.message);
            keys += 1;
        }
    }
    assert!(keys > 90, "{keys}");
}

#[test]
fn what_is_shown_reads_back_as_the_same_configuration() {
    for text in [EXAMPLE, EVERYTHING, AUTHORITY] {
        let config = parse(text).unwrap_or_else(|problems| panic!("{problems}"));
        let shown = config::show(&config);
        let again = parse(&shown).unwrap_or_else(|problems| panic!("{problems}\n{shown}"));
        assert!(again == config, "{shown}\n{config:#?}\n{again:#?}");
        assert_eq!(config::show(&again), shown);
    }
}

#[test]
fn secrets_are_not_shown() {
    let text = r#"
        [site.app]
        hosts = ["a.example"]
        tls = "off"
        root = "/srv"
        php = { to = "127.0.0.1:9000", params = { DB_PASSWORD = "hunter2", APP_ENV = "production" } }
        request_headers = { set = { Authorization = "Basic hunter2", X-Api-Key = "hunter2", X-Env = "production" } }
    "#;
    let shown = config::show(&parse(text).unwrap());
    assert!(!shown.contains("hunter2"), "{shown}");
    assert_eq!(shown.matches("********").count(), 3);
    assert_eq!(shown.matches("production").count(), 2);
}

#[test]
fn the_key_of_an_external_account_is_decoded_and_never_shown() {
    let secret = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let env = |name: &str| (name == "EAB_HMAC_KEY").then(|| secret.to_owned());
    let site = "[site.app]\nhosts = [\"app.example.com\"]\nroot = \"/srv\"\n";
    let eab = "eab = { kid = \"kid-1\", hmac_key = \"${EAB_HMAC_KEY}\" }";
    for acme in [
        format!("directory = \"zerossl\"\n{eab}"),
        format!("directory = [\"letsencrypt\", {{ url = \"google\", {eab} }}]"),
    ] {
        let text = format!("[acme]\n{acme}\n{site}");
        let config = config::parse(Path::new(FOLDER), &[("proxy.toml", &text)], &env).unwrap_or_else(|p| panic!("{p}"));
        let account = config.acme.directories.last().unwrap().eab.as_ref().unwrap();
        assert_eq!((account.kid.as_str(), account.hmac_key.len()), ("kid-1", 48));
        let shown = config::show(&config);
        assert!(shown.contains("eab = { kid = \"kid-1\", hmac_key = \"********\" }"), "{shown}");
        assert!(!shown.contains(secret) && !format!("{config:?}").contains("205, 99, 67"), "{shown}");

        // What the environment lacks is told as that alone.
        let problems = parse(&text).unwrap_err();
        assert_eq!(problems.0.len(), 1, "{problems}");
        assert!(problems.0[0].message.contains("EAB_HMAC_KEY is not set"), "{problems}");
    }
}

#[test]
fn a_site_that_says_nothing_of_tls_is_certified_by_its_names() {
    let certificate = |keys: &str| {
        let text = format!("[site.app]\nroot = \"/srv\"\n{keys}");
        parse(&text).unwrap_or_else(|problems| panic!("{problems}")).sites[0].certificate.clone()
    };
    assert_eq!(
        certificate("hosts = [\"example.com\", \"8.8.8.8\"]\naliases = [\"www.example.com\"]"),
        Certificate::Acme
    );
    assert_eq!(certificate("hosts = [\"localhost\", \"*.app.test\", \"10.0.0.1\", \"nas\"]"), Certificate::SelfSigned);
    // An ending that is open belongs to either kind.
    assert_eq!(certificate("hosts = [\"localhost\", \"app.*\"]"), Certificate::SelfSigned);
    assert_eq!(certificate("hosts = [\"example.com\"]\n[server]\nhttps = []"), Certificate::Off);
    let files = "hosts = [\"example.com\"]\n[tls]\ncert = \"/c\"\nkey = \"/k\"";
    assert!(matches!(certificate(files), Certificate::Files(_)));
}

#[test]
fn values_of_the_environment_never_become_syntax() {
    let env = |name: &str| (name == "ROOT").then(|| "/srv\"\nphp = \"evil:1".to_owned());
    let text = "[site.app]\nhosts = [\"a.example\"]\ntls = \"off\"\nroot = \"${ROOT}\"\n";
    let config = config::parse(Path::new(FOLDER), &[("proxy.toml", text)], &env).unwrap();
    assert!(config.sites[0].application.is_none());
    assert_eq!(config.sites[0].root.as_deref(), Some(Path::new("/srv\"\nphp = \"evil:1")));
    let again = parse(&config::show(&config)).unwrap();
    assert_eq!(again, config);
}

#[test]
fn included_files_are_one_configuration_with_the_main_one() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("sites")).unwrap();
    write("proxy.toml", "include = [\"sites/*.toml\"]\n[log]\nlevel = \"warn\"\n");
    write("sites/b.toml", "[site.b]\nhosts = [\"b.example\"]\ntls = \"off\"\nroot = \"b\"\n");
    write("sites/a.toml", "[site.a]\nhosts = [\"a.example\"]\ntls = \"off\"\nroot = \"/srv/a\"\n");
    write("sites/.hidden.toml", "nonsense");
    write("sites/a.toml.bak", "nonsense");
    let main = folder.path().join("proxy.toml");
    let config = config::load(&main, &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.sites.iter().map(|site| site.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(config.sites[1].root.as_deref(), Some(folder.path().join("b").as_path()));
    assert_eq!(config.files.len(), 3);

    write("sites/b.toml", "[site.b]\nhosts = [\"a.example\"]\ntls = \"off\"\nrot = \"b\"\n");
    let problems = config::load(&main, &|_| None).unwrap_err().to_string();
    assert!(problems.contains("sites/b.toml:2:10: `a.example` belongs to [site.a] and to [site.b]"), "{problems}");
    assert!(problems.contains("did you mean `root`?"), "{problems}");

    write("sites/b.toml", "x = \"\u{e4}\"");
    std::fs::write(folder.path().join("sites/b.toml"), b"\xff").unwrap();
    let problems = config::load(&main, &|_| None).unwrap_err().to_string();
    assert!(problems.contains("is not UTF-8"), "{problems}");
    let problems = config::load(&folder.path().join("none.toml"), &|_| None).unwrap_err().to_string();
    assert!(problems.contains("cannot be read: no such file or directory"), "{problems}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC*", cut in 0usize..4000, more in "[\\[\\]{}=\"'$\\n a-z0-9.]{0,12}") {
        let _ = parse(&text);
        // A cut through the example meets every reader with something unfinished.
        let at = (0..=cut.min(EXAMPLE.len())).rev().find(|at| EXAMPLE.is_char_boundary(*at)).unwrap();
        let _ = parse(&format!("{}{more}{}", &EXAMPLE[..at], &EXAMPLE[at..])).map_err(|problems| problems.to_string());
    }
}

/// Each kind of value that the example has no place for.
const EVERYTHING: &str = r#"
[server]
http = ["127.0.0.1:80"]
https = [":443", "[::1]:2096"]
protocols = ["h1"]
trusted_proxies = ["cloudflare"]
workers = 2
user = "www-data:tls-keys"
confine = true
pid_file = "run/doorward.pid"
shutdown_grace = "1m"

[limits]
max_body = 0
max_uri = "1500B"

[tls]
cert = "cert.pem"
key = "key.pem"
min_version = "1.3"
watch = false
client_ca = "ca.pem"

[acme]
email = "ops@example.com"
directory = ["staging", { url = "https://ca.internal:9000/acme?x=y", profile = "shortlived", ca = "own-ca.pem" }]
challenges = ["dns-01", "http-01"]
dns_hook = ["hooks/dns", "--zone", "$${x}"]
dns_wait = "0"
storage = "acme"
key_type = "rsa-4096"
renew_before = "20d"
webroot = "/var/www/letsencrypt"

[log]
level = "debug"
output = "syslog"
access = "off"
format = "{client} \"{path}\" $${x}"
skip_paths = []
mask_query = []

[site."www.example.com"]
hosts = [".example.com", "www.example.*", "[::1]"]
default = true
listen = [":443"]
root = "public"
spa = true
compress = false
max_body = "1GiB"
dotfiles = "allow"
sources = "allow"
assets = "30d"
security_headers = true
hsts = "1y"
request_headers = { set = { X-Env = "a \"quoted\" \\ thing" }, remove = ["X-B"] }
response_headers = { add = { Link = "</a>" } }
log = { access = "off", skip_paths = ["/health*"] }
accel = { "/a/" = "x", "/a/longer/" = "y" }

[[site."www.example.com".route]]
path_regex = '^/v(\d+)/'
methods = ["get"]
respond = 410

[[site."www.example.com".route]]
path = "/a*"
allow = ["cloudflare", "::1"]
deny_status = 404
redirect = { to = "https://b.example/{rest}", status = 302 }

[[site."www.example.com".route]]
path = "/b/*"
alias = "docs"
cache_control = "no-store"

[[site."www.example.com".route]]
path = "/c/*"
root = "docs"
strip_prefix = "/c/"
replace_prefix = "/d"

[[site."www.example.com".route]]
path = "/d/*"
php = { to = ["127.0.0.1:9000", "unix:/run/x"], scripts = ["a.php"], params = { A = "b" }, keep_alive = 2 }
read_timeout = "5m"

[[site."www.example.com".route]]
path = "/e"
respond = { status = 200, body = "{\n\t\"a\": 1 }", type = "application/json" }

[site.api]
hosts = ["api.example.com"]
http = "serve"
tls = "off"
upstream = "unix:/run/app.sock"
host = "internal:8080"
upstream_balance = "random"
upstream_sticky = "ip"
try_files = ["@upstream"]

[[site.api.websocket]]
preset = "pusher"
to = "https://[::1]:6001"
api = ["10.0.0.0/8"]
balance = "ip_hash"
sticky = "cookie"
cookie = "node"

[[site.api.websocket]]
preset = "any"
to = "http://node.local:6002"
idle_timeout = "90s"

[[site.api.websocket]]
paths = ["/ws", "/live/*"]
upgrade = "required"
to = "http://127.0.0.1:6003"
balance = "round_robin"

[site.wild]
hosts = [".wild.example.com", "wild_one.internal", "10.0.0.1"]
tls = "acme"
root = "public"

[site.dev]
hosts = ["app.test"]
http = "off"
tls = "self-signed"
root = "public"
php = "127.0.0.1:9000"
upstream_tls = { verify = false, server_name = "x.internal", cert = "c.pem", key = "k.pem" }

[[site.dev.route]]
path = "/x"
upstream = ["https://10.0.0.1", "https://10.0.0.2"]
"#;

/// What an authority alone has beside it.
const AUTHORITY: &str = r#"
[acme]
directory = "https://ca.internal"
profile = "server"
directory_ca = "own-ca.pem"
dns_hook = "hooks/dns"

[site.app]
hosts = ["*.app.internal"]
tls = "acme"
root = "public"
"#;
