//! Every path of `requests`, over HTTP/1.1 and HTTP/2, at each kind of site.

use std::os::unix::ffi::OsStrExt;
use std::time::Instant;

use super::bait::{Bait, PICTURES, RAN, SECRET, SOURCES};
use super::fastcgi::{Tap, ask};
use super::requests::{Case, DOTFILES, LEFTOVERS, NODES, SCRIPTS, TRAVERSAL};
use super::{Answer, DEADLINE, exchange};
use crate::h2_client::{self, Client};
use crate::harness::{Fpm, Proxy, World, doorward_bound_by_modes, promised};

/// A site that is asked, what is behind it, and what must not happen.
struct House {
    world: World,
    proxy: Proxy,
    tap: Tap,
    bait: Bait,
    _fpm: Fpm,
}

impl House {
    /// `site` gives the keys of the site, from the root and the address of FPM.
    fn start(site: impl Fn(&str, &str) -> String) -> House {
        let world = World::new();
        world.certificate("site", &["app.test", "a.test"]);
        let bait = Bait::lay(&world);
        let fpm = Fpm::careless(&world);
        let tap = Tap::start(world.path("tap.sock"), world.path("fpm.sock"));
        let site = site(&format!("{:?}", bait.root), &format!("{:?}", tap.address()));
        let toml = format!("{}[site.app]\nhosts = [\"app.test\", \"a.test\"]\n{site}\n", world.head());
        // As a service that is not root: what it may not read, it cannot show.
        let proxy = Proxy::start_command(&world, &toml, doorward_bound_by_modes());
        House { world, proxy, tap, bait, _fpm: fpm }
    }

    fn get(&self, target: &[u8]) -> Answer {
        let head = [b"GET ", target, b" HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n"].concat();
        exchange(&self.world, &self.proxy, &shown(target), &head)
    }

    /// The verdict on an answer, once it is sure that nothing ran and nothing showed that must not.
    fn judge(&self, target: &[u8], status: u16, content: &str) -> String {
        let what = shown(target);
        for never in [SECRET, RAN, "root:x:"] {
            assert!(!content.contains(never), "{what}: {content}");
        }
        self.bait.assert_untouched(&what);
        let decoded = |hex: &str| {
            let bytes: Vec<u8> =
                (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (verdict, script) = match (status, content.split_once(' ')) {
            (200, Some(("FRONT", info))) => (format!("front {}", decoded(info)), Some("/index.php".to_owned())),
            (200, Some(("SCRIPT", name))) => (format!("script {}", decoded(name)), Some(decoded(name))),
            (200, _) => (format!("file {content}"), None),
            (status, _) => (status.to_string(), None),
        };
        // What FPM was told, byte for byte: the script that answered, or nothing at all.
        let told: Vec<Vec<u8>> = self.tap.take().iter().map(|params| variable(params, b"SCRIPT_FILENAME")).collect();
        let meant: Vec<Vec<u8>> = script
            .iter()
            .map(|name| self.bait.path(name.trim_start_matches('/').as_bytes()).as_os_str().as_bytes().to_vec())
            .collect();
        assert_eq!(told, meant, "{what}: SCRIPT_FILENAME");
        verdict
    }
}

fn variable(params: &super::fastcgi::Params, name: &[u8]) -> Vec<u8> {
    let mut values = params.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone());
    let value = values.next().unwrap_or_default();
    assert_eq!(values.next(), None, "a variable was sent twice");
    value
}

fn shown(target: &[u8]) -> String {
    target.escape_ascii().take(200).map(char::from).collect()
}

fn written(case: &Case) -> Vec<u8> {
    match case.target {
        [b'/', b'N', rest @ ..] => [b"/", "n".repeat(255).as_bytes(), rest].concat(),
        b"/D" => format!("/{}x", "d/".repeat(2050)).into_bytes(),
        other => other.to_vec(),
    }
}

fn cases() -> impl Iterator<Item = &'static Case> {
    [SCRIPTS, TRAVERSAL, DOTFILES, LEFTOVERS, NODES].into_iter().flatten()
}

/// Asks for every path and compares; `wanted` says what is expected. All that differ are told together.
fn run(house: &House, wanted: impl Fn(&Case) -> String) {
    let mut wrong = Vec::new();
    for case in cases() {
        let target = written(case);
        let Answer { status, content, .. } = house.get(&target);
        let verdict = house.judge(&target, status, &content);
        if !fits(&verdict, &wanted(case)) {
            wrong.push(format!("{}: {verdict} instead of {}", shown(&target), wanted(case)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    house.bait.assert_untouched("in the end");
}

fn fits(verdict: &str, wanted: &str) -> bool {
    if wanted.starts_with("file ") { verdict.starts_with(wanted) } else { verdict == wanted }
}

/// The same over HTTP/2, as far as a path can be written there. What is 400 may be a reset stream.
fn run_h2(house: &House, wanted: impl Fn(&Case) -> String) {
    let address = ([127, 0, 0, 1], house.proxy.https()).into();
    let mut wrong = Vec::new();
    for case in cases() {
        let target = written(case);
        // What is behind '#' is dropped on HTTP/2 before anybody here sees it: it can mean nothing else.
        let written = std::str::from_utf8(&target).ok();
        let Some(path) = written.filter(|path| path.starts_with('/') && !path.contains('#')) else { continue };
        let asked = Instant::now();
        let authority = format!("app.test:{}", house.proxy.https());
        let fields = vec![(":method", "GET"), (":scheme", "https"), (":authority", &authority), (":path", path)];
        // A connection for each: the client's compression of fields remembers nothing.
        let mut client = Client::connect(address);
        client.ask(1, &fields, None);
        let (status, content) = answer(&mut client, 1).unwrap_or((400, String::new()));
        assert!(asked.elapsed() < promised(DEADLINE), "{path}: {:?}", asked.elapsed());
        let verdict = house.judge(&target, status, &content);
        if !fits(&verdict, &wanted(case)) {
            wrong.push(format!("{}: {verdict} instead of {}", shown(&target), wanted(case)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    house.bait.assert_untouched("in the end");
}

/// Status and content of a stream; 400 for one that was reset, `None` where the connection has ended.
fn answer(client: &mut Client, stream: u32) -> Option<(u16, String)> {
    let (mut status, mut content) = (0, Vec::new());
    loop {
        let (kind, flags, id, payload) = client.frame()?;
        match kind {
            h2_client::GOAWAY => return None,
            h2_client::RESET if id == stream => return Some((400, String::new())),
            h2_client::HEADERS if id == stream => status = h2_client::read_status(&payload),
            h2_client::DATA if id == stream => content.extend(payload),
            _ => {}
        }
        if id == stream && matches!(kind, h2_client::HEADERS | h2_client::DATA) && flags & h2_client::END_STREAM != 0 {
            return Some((status, String::from_utf8_lossy(&content).into_owned()));
        }
    }
}

fn index(root: &str, fpm: &str) -> String {
    format!("root = {root}\nphp = {fpm}")
}

fn all(root: &str, fpm: &str) -> String {
    format!("root = {root}\nphp = {{ to = {fpm}, scripts = \"all\" }}")
}

#[test]
fn the_corpus_is_large_and_says_nothing_twice() {
    let mut targets: Vec<&[u8]> = cases().map(|case| case.target).collect();
    for (least, group) in [(20, SCRIPTS), (21, TRAVERSAL), (26, DOTFILES)] {
        assert!(group.len() >= least, "{}", group.len());
    }
    let count = targets.len();
    targets.sort_unstable();
    targets.dedup();
    assert!(count >= 200 && targets.len() >= count - 1, "{count} cases, {} of them different", targets.len());
}

#[test]
fn the_baits_are_live() {
    let world = World::new();
    let bait = Bait::lay(&world);
    let _fpm = Fpm::careless(&world);
    let fpm = world.path("fpm.sock");
    // FPM itself would run anything, and walk up a path until it finds a file.
    for name in SOURCES.iter().chain(&PICTURES) {
        assert!(ask(&fpm, &bait.root.join(name)).contains(RAN), "{name:?} does not run");
    }
    for name in ["uploads/evil.jpg/x.php", "uploads/evil.jpg/.php", "dir/x.php/evil.jpg/a/b.php", "out.php"] {
        assert!(ask(&fpm, &bait.root.join(name)).contains(RAN), "{name:?} does not run");
    }
    assert!(bait.ran.exists());
}

#[test]
fn nothing_but_the_front_controller_runs_and_nothing_leaks() {
    let house = House::start(index);
    run(&house, |case| case.index.to_owned());
    run_h2(&house, |case| case.index.to_owned());
}

#[test]
fn nothing_but_scripts_runs_where_all_scripts_may_and_nothing_leaks() {
    let house = House::start(all);
    run(&house, |case| case.all.to_owned());
    run_h2(&house, |case| case.all.to_owned());
}

#[test]
fn nothing_leaks_from_a_site_of_files() {
    let house = House::start(|root, _| format!("root = {root}"));
    // What would be the front controller's is nobody's here.
    let wanted = |case: &Case| if case.index.starts_with("front") { "404".to_owned() } else { case.index.to_owned() };
    run(&house, wanted);
    run_h2(&house, wanted);
}

#[test]
fn an_alias_shows_its_folder_and_nothing_beside_it() {
    let house = House::start(|root, fpm| {
        let docs = root.trim_matches('"').replace("/public", "/docs");
        format!(
            "root = {root}\nphp = {fpm}\n[[site.app.route]]\npath = \"/docs/*\"\nalias = {docs:?}\n\
             [[site.app.route]]\npath = \"/raw*\"\nalias = {docs:?}\n"
        )
    });
    let verdicts: [(&[u8], &str); 25] = [
        (b"/docs/guide.txt", "file guide"),
        (b"/docs//guide.txt", "file guide"),
        (b"/docs/./guide.txt", "file guide"),
        (b"/docs/x/../guide.txt", "file guide"),
        (b"/%64ocs/guide.txt", "file guide"),
        (b"/raw/guide.txt", "file guide"),
        (b"/docs/", "404"),
        (b"/docs", "404"),
        (b"/docs/.env", "404"),
        (b"/docs/other.php", "404"),
        (b"/docs/other.php/x", "404"),
        (b"/docs/GUIDE.TXT", "404"),
        (b"/docs-secret.txt", "front "),
        // nginx' off-by-slash: what is before `*` is a whole segment.
        (b"/docs../docs-secret.txt", "front "),
        (b"/docs../secret.txt", "front "),
        (b"/docs%2e%2e/secret.txt", "front "),
        (b"/docs..;/secret.txt", "front "),
        (b"/docs/../secret.txt", "front "),
        (b"/docs/../../secret.txt", "400"),
        (b"/docs/%2e%2e/%2e%2e/secret.txt", "400"),
        (b"/docs/..%2fsecret.txt", "400"),
        (b"/docs/..%5csecret.txt", "400"),
        (b"/raw../secret.txt", "404"),
        (b"/raw../docs-secret.txt", "404"),
        (b"/raw-secret.txt", "404"),
    ];
    for (target, wanted) in verdicts {
        let Answer { status, content, .. } = house.get(target);
        assert_eq!(house.judge(target, status, &content), wanted, "{}", shown(target));
    }
}

#[test]
fn a_route_is_found_by_the_one_canonical_path() {
    let house = House::start(|root, fpm| {
        format!("root = {root}\nphp = {fpm}\n[[site.app.route]]\npath = \"/admin/*\"\nrespond = 410\n")
    });
    let verdicts: [(&[u8], &str, &str); 18] = [
        (b"/admin", "410", ""),
        (b"/admin/x", "410", ""),
        (b"//admin/x", "410", ""),
        (b"///admin///x", "410", ""),
        (b"/%61dmin/x", "410", ""),
        (b"/%61%64%6d%69%6E/x", "410", ""),
        (b"/./admin/x", "410", ""),
        (b"/x/../admin/x", "410", ""),
        (b"/x/%2e%2e/admin/x", "410", ""),
        (b"/index.php/../admin/x", "410", ""),
        (b"https://app.test/x/../%61dmin/", "410", ""),
        (b"/admin%2fx", "400", ""),
        (b"/x/..%2fadmin/x", "400", ""),
        (b"/admin/..%2fx", "400", ""),
        (b"/ADMIN/x", "front ", "/ADMIN/x"),
        (b"/adminx?a=%2f..", "front ", "/adminx?a=%2f.."),
        (b"/admin/../%77s?x", "front ", "/ws?x"),
        (b"//evil.test/%7euser", "front ", "/evil.test/~user"),
    ];
    for (target, wanted, uri) in verdicts {
        let Answer { status, content, .. } = house.get(target);
        // What routes is what PHP is told.
        let told = house.tap.peek().pop().map(|params| variable(&params, b"REQUEST_URI")).unwrap_or_default();
        assert_eq!(house.judge(target, status, &content), wanted, "{}", shown(target));
        assert_eq!(told, uri.as_bytes(), "{}", shown(target));
    }
}

#[test]
fn a_folder_is_never_listed() {
    let house = House::start(|root, _| format!("root = {root}"));
    for target in [&b"/"[..], b"/uploads/", b"/sub/", b"/uploads/?C=M;O=D", b"/%2e/", b"/dir/x.php/"] {
        let Answer { status, content, .. } = house.get(target);
        assert_eq!(house.judge(target, status, &content), "404", "{}", shown(target));
        assert!(!content.contains("evil") && !content.contains("hello.txt"), "{content}");
    }
}

#[test]
fn a_compressed_copy_out_of_the_root_is_not_sent() {
    let house = House::start(|root, _| format!("root = {root}"));
    let head = b"GET /out.css HTTP/1.1\r\nHost: app.test\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n";
    let Answer { status, content, .. } = exchange(&house.world, &house.proxy, "out.css", head);
    assert_eq!(house.judge(b"/out.css", status, &content), "file sheet");
}
