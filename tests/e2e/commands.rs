//! The command line.

use std::os::unix::fs::PermissionsExt;

use crate::backend;
use crate::harness::{BackEnd, Finished, World, doorward, finish};

fn run(world: &World, arguments: &[&str]) -> Finished {
    let mut command = doorward();
    command.args(arguments).current_dir(world.path(""));
    finish(&format!("doorward {}", arguments.join(" ")), &mut command)
}

fn write(world: &World, sites: &str) {
    world.write("proxy.toml", format!("{}{sites}", world.head()));
}

#[test]
fn check_passes_a_good_file() {
    let world = World::new();
    write(&world, &backend::site("http://127.0.0.1:8000", ""));
    for arguments in
        [&["check", "-c", "proxy.toml"][..], &["-t", "-c", "proxy.toml"], &["check", "--offline", "-c", "proxy.toml"]]
    {
        let end = run(&world, arguments);
        assert_eq!(end.code, 0, "{arguments:?}: {}", end.said());
    }
}

#[test]
fn check_names_every_problem_with_its_place_in_one_run() {
    let world = World::new();
    let text = "[server]\nhtps = [\":443\"]\n[timeouts]\nheader = 10\n[site.app]\nhosts = [\"app.test\"]\n\
                upstream = \"http://127.0.0.1:8000\"\nmax_body = \"20MB2\"\n";
    world.write("proxy.toml", text);
    let end = run(&world, &["check", "--offline", "-c", "proxy.toml"]);
    assert_eq!(end.code, 1, "{}", end.said());
    let said = end.said();
    for part in ["proxy.toml:2:1", "https", "proxy.toml:4:10", "10s", "proxy.toml:8:12"] {
        assert!(said.contains(part), "{part} is missing:\n{said}");
    }
}

#[test]
fn check_looks_at_the_world_unless_told_not_to() {
    let world = World::new();
    let other = world.certificate("other", &["app.test"]);
    let sites = format!(
        "[site.app]\nhosts = [\"app.test\"]\nroot = \"/nowhere/public\"\nphp = \"unix:/nowhere/fpm.sock\"\n\
         tls = {{ cert = {:?}, key = {:?} }}\n",
        world.path("site.pem"),
        other.key
    );
    write(&world, &sites);
    let end = run(&world, &["check", "-c", "proxy.toml"]);
    assert_eq!(end.code, 1, "{}", end.said());
    for part in ["/nowhere/public", "/nowhere/fpm.sock", "key"] {
        assert!(end.said().contains(part), "{part} is missing:\n{}", end.said());
    }
    assert_eq!(run(&world, &["check", "--offline", "-c", "proxy.toml"]).code, 0);
}

#[test]
fn check_notices_a_port_that_is_taken() {
    let world = World::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = world.head().replace("https = [\"127.0.0.1:0\"]", &format!("https = [{address:?}]"));
    world.write("proxy.toml", format!("{text}{}", backend::site("http://127.0.0.1:8000", "")));
    let end = run(&world, &["check", "-c", "proxy.toml"]);
    assert_eq!(end.code, 1, "{}", end.said());
    assert!(end.said().contains(&address), "{}", end.said());
    // And so does the start itself.
    let end = run(&world, &["run", "-c", "proxy.toml"]);
    assert_ne!(end.code, 0);
    assert!(end.said().contains(&address), "{}", end.said());
}

#[test]
fn check_looks_at_what_automatic_certificates_need() {
    let world = World::new();
    let text = "[server]\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\n\
                [acme]\nstorage = \"state/acme\"\ndns_hook = \"hooks/dns\"\n\
                [site.app]\nhosts = [\"*.no-such-name.example.com\"]\nredirect = [{ from = \"/*\", to = \"/x\" }]\n";
    world.write("proxy.toml", text);
    assert_eq!(run(&world, &["check", "--offline", "-c", "proxy.toml"]).code, 0);
    let end = run(&world, &["check", "-c", "proxy.toml"]);
    assert_eq!(end.code, 1, "{}", end.said());
    assert!(end.said().contains("`dns_hook`") && end.said().contains("hooks/dns"), "{}", end.said());

    // A name that nobody finds is no reason to refuse: its record may come later.
    let unknown = text.replace("*.no-such-name", "no-such-name").replace("dns_hook", "# dns_hook");
    world.write("proxy.toml", &unknown);
    let end = run(&world, &["check", "-c", "proxy.toml"]);
    assert_eq!(end.code, 0, "{}", end.said());
    assert!(end.said().contains("no-such-name.example.com has no address"), "{}", end.said());
    assert!(!world.path("state").exists(), "a check makes nothing");

    let storage = world.path("state/acme");
    std::fs::create_dir_all(&storage).unwrap();
    std::fs::set_permissions(&storage, std::fs::Permissions::from_mode(0o777)).unwrap();
    let end = run(&world, &["check", "-c", "proxy.toml"]);
    assert_eq!(end.code, 1, "{}", end.said());
    assert!(end.said().contains("others may write to"), "{}", end.said());
}

#[test]
fn explain_says_which_site_rule_and_back_end() {
    let world = World::new();
    let more = "[site.app.websocket]\npreset = \"pusher\"\nupgrade = \"any\"\nto = \"http://127.0.0.1:6001\"\n";
    let head = world.head().replacen("127.0.0.1:0", ":80", 1).replacen("127.0.0.1:0", ":443", 1);
    world.write("proxy.toml", head + &backend::site("http://127.0.0.1:8000", more));
    let ask = |arguments: &[&str]| {
        let end = run(&world, &[&["explain", "-c", "proxy.toml"], arguments].concat());
        assert_eq!(end.code, 0, "{}", end.said());
        end.stdout
    };
    let page = ask(&["GET", "https://app.test/x"]);
    assert!(page.contains("app") && page.contains("127.0.0.1:8000"), "{page}");
    let socket = ask(&["GET", "https://app.test/x", "-H", "Upgrade: websocket"]);
    assert!(socket.contains("127.0.0.1:6001"), "{socket}");
    let over_http2 = ask(&["CONNECT", "wss://app.test/x", "-H", ":protocol: websocket"]);
    assert!(over_http2.contains("over HTTP/2") && over_http2.contains("127.0.0.1:6001"), "{over_http2}");
    assert!(ask(&["CONNECT", "https://app.test/x", "-H", ":protocol: connect-udp"]).contains("501"));
    assert!(ask(&["CONNECT", "http://app.test/x", "-H", ":protocol: websocket"]).contains("no HTTP/2 here"));
    assert!(ask(&["CONNECT", "https://app.test/apps/1/events", "-H", ":protocol: websocket"]).contains("404"));
    assert!(ask(&["GET", "https://app.test/app/key"]).contains("127.0.0.1:6001"));
    assert!(ask(&["POST", "https://app.test/apps/1/events"]).contains("404"));
    assert!(ask(&["GET", "http://app.test/x"]).contains("301"));
}

#[test]
fn config_shows_what_is_in_force_without_secrets() {
    let world = World::new();
    let more = "request_headers = { set = { Authorization = \"Bearer HUSH\" } }\n";
    write(&world, &backend::site("http://127.0.0.1:8000", more));
    let end = run(&world, &["config", "-c", "proxy.toml"]);
    assert_eq!(end.code, 0, "{}", end.said());
    assert!(end.stdout.contains("127.0.0.1:8000"), "{}", end.stdout);
    assert!(end.stdout.contains("20MiB"), "defaults are filled: {}", end.stdout);
    assert!(!end.stdout.contains("HUSH"), "{}", end.stdout);
    // What it shows is a file that means the same.
    world.write("shown.toml", &end.stdout);
    let again = run(&world, &["check", "--offline", "-c", "shown.toml"]);
    assert_eq!(again.code, 0, "{}", again.said());
}

#[test]
fn a_feature_that_does_not_exist_yet_is_refused() {
    let world = World::new();
    write(&world, &format!("[metrics]\n{}", backend::site("http://127.0.0.1:8000", "")));
    let end = run(&world, &["check", "--offline", "-c", "proxy.toml"]);
    assert_eq!(end.code, 1, "{}", end.said());
    assert!(end.stderr.contains("not built yet"), "{}", end.said());
}

#[test]
fn the_environment_and_included_files_are_read() {
    let world = World::new();
    let backend = BackEnd::start();
    let port = backend.url().rsplit(':').next().unwrap().to_owned();
    world.write(
        "sites/app.toml",
        "[site.app]\nhosts = [\"${E2E_HOST:-app.test}\"]\nupstream = \"http://127.0.0.1:${E2E_PORT}\"\n",
    );
    let toml = format!("include = [\"sites/*.toml\"]\n{}", world.head());
    let proxy = crate::harness::Proxy::start_with(&world, &toml, |command| {
        command.env("E2E_PORT", &port);
    });
    proxy.curl("app.test").get("/").expect(200);
}

#[test]
fn version_and_help_are_there_and_nonsense_is_an_error() {
    let world = World::new();
    let version = run(&world, &["--version"]);
    assert_eq!(version.code, 0);
    assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{}", version.stdout);
    for command in ["run", "check", "reload", "config", "explain", "demo"] {
        let end = run(&world, &[command, "--help"]);
        assert_eq!(end.code, 0, "{command}: {}", end.said());
    }
    assert_ne!(run(&world, &["nonsense"]).code, 0);
    let missing = run(&world, &["run", "-c", "missing.toml"]);
    assert_ne!(missing.code, 0);
    assert!(missing.said().contains("missing.toml"), "{}", missing.said());
}
