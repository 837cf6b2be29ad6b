//! Who may see a site: addresses and passwords. What is shown to the others: the site's own error pages.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::{BackEnd, Fpm, Proxy, SOON, Socket, World, doorward, finish, program, wait_for, wait_until};
use crate::{backend, php};

/// The kinds of hashes that Apache's htpasswd makes and Doorward takes.
const KINDS: [&str; 5] = ["-B", "-2", "-5", "-m", "-s"];

/// `htpasswd KIND FILE NAME PASSWORD`; makes the file.
fn htpasswd(world: &World, file: &str, kind: &str, name: &str, password: &str) -> PathBuf {
    let path = world.path(file);
    let mut command = Command::new(program(&["htpasswd"]));
    command.arg(if path.exists() { "-b" } else { "-cb" }).arg(kind).arg(&path).args([name, password]);
    let end = finish("htpasswd", &mut command);
    assert_eq!(end.code, 0, "{}", end.said());
    path
}

fn check(world: &World, toml: &str) -> (i32, String) {
    world.write("checked.toml", toml);
    let mut command = doorward();
    let end = finish("doorward check", command.args(["check", "-c", "checked.toml"]).current_dir(world.path("")));
    (end.code, end.said())
}

fn line_with(path: &Path, part: &str) -> String {
    wait_for(&format!("a line with {part:?}"), SOON, || {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().find(|line| line.contains(part)).map(str::to_owned)
    })
}

#[test]
fn who_is_in_the_file_and_knows_the_password_passes() {
    let world = World::new();
    let backend = BackEnd::start();
    for kind in KINDS {
        htpasswd(&world, "users", kind, &format!("ann{kind}"), "päss word:x");
    }
    let log = format!("[log]\naccess = {:?}\n", world.path("access.log"));
    let site = backend::site(&backend.url(), "basic_auth = \"users\"");
    let proxy = world.proxy(&format!("{log}{site}"));
    for kind in KINDS {
        let right = format!("ann{kind}:päss word:x");
        for http1 in [true, false] {
            let curl = || if http1 { proxy.curl("app.test").http1() } else { proxy.curl("app.test") };
            curl().arg("-u").arg(&right).get(&format!("/right{kind}")).expect(200);
            assert!(backend.last().field("authorization").is_some(), "the application may look at it, too");
            let before = backend.seen().len();
            for wrong in [format!("ann{kind}:päss word"), format!("eve{kind}:päss word:x"), format!("ann{kind}:")] {
                let answer = curl().arg("-u").arg(&wrong).get("/wrong").expect(401);
                assert_eq!(answer.field("www-authenticate"), Some("Basic realm=\"app\", charset=\"UTF-8\""));
                assert_eq!(answer.field("cache-control"), Some("no-store"));
            }
            curl().get("/none").expect(401);
            curl().header("Authorization: Bearer abc").get("/none").expect(401);
            curl().header("Authorization: Basic !!!").get("/none").expect(401);
            curl().arg("-X").arg("OPTIONS").get("/none").expect(401);
            assert_eq!(backend.seen().len(), before, "nothing of it reaches the application");
        }
        let line = line_with(&world.path("access.log"), &format!("/right{kind} "));
        assert!(line.starts_with(&format!("127.0.0.1 - ann{kind} [")), "{line}");
    }
    assert!(line_with(&world.path("access.log"), "/wrong ").starts_with("127.0.0.1 - - ["));
}

#[test]
fn a_user_who_is_added_comes_in_and_one_who_is_removed_stays_out_without_a_reload() {
    let world = World::new();
    let backend = BackEnd::start();
    let path = htpasswd(&world, "users", "-5", "ann", "one");
    let proxy = world.proxy(&backend::site(&backend.url(), "basic_auth = \"users\""));
    let status = |user: &str| proxy.curl("app.test").arg("-u").arg(user).get("/").status;
    assert_eq!([status("ann:one"), status("bob:two")], [200, 401]);
    htpasswd(&world, "users", "-B", "bob", "two");
    wait_until("bob comes in", SOON, || status("bob:two") == 200);
    assert_eq!(status("ann:one"), 200);
    let end = finish("htpasswd -D", Command::new(program(&["htpasswd"])).arg("-D").arg(&path).arg("ann"));
    assert_eq!(end.code, 0, "{}", end.said());
    wait_until("ann stays out, although her password was known to be right", SOON, || status("ann:one") == 401);
    assert_eq!(status("bob:two"), 200);
    std::fs::remove_file(&path).unwrap();
    wait_until("without the file nobody comes in", SOON, || status("bob:two") == 500);
    assert!(proxy.running.said().contains("cannot be read, and nobody can sign in"), "{}", proxy.running.said());
}

#[test]
fn php_is_told_who_has_signed_in() {
    let world = World::new();
    let fpm = Fpm::unix(&world);
    htpasswd(&world, "users", "-B", "ann", "one");
    let open = "basic_auth = \"users\"\n[[site.app.route]]\npath = \"/open/*\"\nbasic_auth = \"off\"\n\
                strip_prefix = \"/open\"\n";
    let route = format!("{open}php = {:?}\n", fpm.address);
    let proxy = world.proxy(&php::site(&world, &fpm, &route));
    for http1 in [true, false] {
        let curl = || if http1 { proxy.curl("app.test").http1() } else { proxy.curl("app.test") };
        let server = curl().arg("-u").arg("ann:one").header("Remote-User: eve").get("/env").expect(200).json();
        let server = &server["server"];
        assert_eq!(server["REMOTE_USER"], "ann");
        assert_eq!(server["AUTH_TYPE"], "Basic");
        assert_eq!(server["PHP_AUTH_USER"], "ann");
        assert_eq!(server["HTTP_AUTHORIZATION"], "Basic YW5uOm9uZQ==");
        curl().get("/env").expect(401);
    }
}

#[test]
fn handshakes_need_a_password_too_and_routes_may_have_other_users_or_none() {
    let world = World::new();
    let backend = BackEnd::start();
    let url = backend.url();
    htpasswd(&world, "users", "-B", "ann", "one");
    htpasswd(&world, "admins", "-B", "root", "two");
    world.write("webroot/.well-known/acme-challenge/token", "token.thumb");
    let acme = format!("[acme]\nwebroot = {:?}\n", world.path("webroot"));
    let more = format!(
        "http = \"serve\"\nbasic_auth = \"users\"\n[site.app.websocket]\npreset = \"any\"\nto = {url:?}\n\
         [[site.app.route]]\npath = \"/hooks/*\"\nbasic_auth = \"off\"\nupstream = {url:?}\n\
         [[site.app.route]]\npath = \"/admin/*\"\nbasic_auth = \"admins\"\nupstream = {url:?}\n\
         [[site.app.redirect]]\nfrom = \"/old\"\nto = \"/new\"\n"
    );
    let proxy = world.proxy(&format!("{acme}{}", backend::site(&url, &more)));
    let open = |fields: &[(&'static str, &str)]| {
        Socket::try_open(&world, &proxy, "app.test", "/live", fields).map_err(|status| status.as_u16())
    };
    assert_eq!(open(&[]).err(), Some(401));
    assert_eq!(open(&[("Authorization", "Basic YW5uOnR3bw==")]).err(), Some(401), "ann:two");
    open(&[("Authorization", "Basic YW5uOm9uZQ==")]).unwrap().echoes("ann:one");
    let get = |path: &str, user: &str| proxy.curl("app.test").arg("-u").arg(user).get(path).status;
    proxy.curl("app.test").get("/hooks/x").expect(200);
    assert_eq!([get("/admin/", "ann:one"), get("/admin/", "root:two"), get("/", "root:two")], [401, 200, 401]);
    assert_eq!([get("/old", "ann:two"), get("/old", "ann:one")], [401, 301], "redirects are the site's as well");
    let challenge = proxy.plain("app.test").get("/.well-known/acme-challenge/token").expect(200);
    assert_eq!(challenge.text(), "token.thumb", "an authority has no password");
}

#[test]
fn a_file_that_cannot_be_read_closes_its_paths_alone_and_no_reload_may_name_it_newly() {
    let world = World::new();
    let backend = BackEnd::start();
    let url = backend.url();
    let two = |more: &str| {
        format!(
            "{}{}[site.shop]\nhosts = [\"shop.example.com\"]\nupstream = {url:?}\n{more}\n",
            world.head(),
            backend::site(&url, "basic_auth = \"none\"")
        )
    };
    let (code, said) = check(&world, &two(""));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("none cannot be read, and nobody can sign in: No such file"), "{said}");
    let proxy = Proxy::start(&world, &two(""));
    assert!(proxy.running.said().contains("none cannot be read"), "{}", proxy.running.said());
    proxy.curl("app.test").arg("-u").arg("ann:one").get("/").expect(500);
    proxy.curl("shop.example.com").get("/").expect(200);
    // What was so before keeps nobody from a change elsewhere.
    proxy.rewrite(&two("max_body = \"1MiB\""));
    let end = proxy.reload();
    assert_eq!(end.code, 0, "{}", end.said());
    proxy.rewrite(&two("basic_auth = \"neither\""));
    let end = proxy.reload();
    assert_eq!(end.code, 1, "{}", end.said());
    assert!(end.stderr.contains("[site.shop] basic_auth: "), "{}", end.said());
    proxy.curl("shop.example.com").get("/").expect(200);
    // It mends itself.
    htpasswd(&world, "none", "-B", "ann", "one");
    let status = || proxy.curl("app.test").arg("-u").arg("ann:one").get("/").status;
    wait_until("ann comes in", SOON, || status() == 200);
}

#[test]
fn a_password_in_the_clear_lets_nobody_in_and_is_told() {
    let world = World::new();
    let backend = BackEnd::start();
    let path = htpasswd(&world, "users", "-B", "ann", "one");
    htpasswd(&world, "users", "-p", "bob", "HUSH");
    htpasswd(&world, "users", "-d", "cid", "old");
    let toml = format!("{}{}", world.head(), backend::site(&backend.url(), "basic_auth = \"users\""));
    let (code, said) = check(&world, &toml);
    assert_eq!(code, 0, "a warning: {said}");
    for line in ["line 2", "line 3"] {
        assert!(
            said.contains(&format!("{}, {line}: its password is in the clear, or hashed", path.display())),
            "{said}"
        );
    }
    assert!(!said.contains("HUSH"), "{said}");
    let proxy = Proxy::start(&world, &toml);
    let status = |user: &str| proxy.curl("app.test").arg("-u").arg(user).get("/").status;
    assert_eq!([status("ann:one"), status("bob:HUSH"), status("cid:old")], [200, 401, 401]);
    assert!(proxy.running.said().contains("line 2: its password is in the clear"), "{}", proxy.running.said());
    let (_, said) = check(&world, &toml.replace("basic_auth", "http = \"serve\"\nbasic_auth"));
    assert!(said.contains("passwords over plain HTTP"), "{said}");
}

#[test]
fn addresses_are_let_in_or_kept_out_sockets_included() {
    let world = World::new();
    let backend = BackEnd::start();
    let url = backend.url();
    let more = format!(
        "http = \"serve\"\nallow = [\"10.0.0.0/8\", \"2001:db8::/32\"]\ndeny = [\"10.6.0.0/16\"]\n\
         [site.app.websocket]\npreset = \"any\"\nto = {url:?}\n\
         [[site.app.route]]\npath = \"/admin/*\"\nallow = [\"10.0.0.0/16\"]\ndeny = [\"10.0.6.0/24\"]\n\
         deny_status = 404\nupstream = {url:?}\n"
    );
    world.write("webroot/.well-known/acme-challenge/token", "token.thumb");
    let acme = format!("[acme]\nwebroot = {:?}\n", world.path("webroot"));
    let head = world.head().replace("workers = 2\n", "workers = 2\ntrusted_proxies = [\"127.0.0.1\"]\n");
    let proxy = Proxy::start(&world, &format!("{head}{acme}{}", backend::site(&url, &more)));
    let get = |client: &str, path: &str| {
        proxy.curl("app.test").header(&format!("X-Forwarded-For: {client}")).get(path).status
    };
    for (client, site, admin) in [
        ("10.0.0.1", 200, 200),
        ("::ffff:10.0.0.1", 200, 200),
        ("10.0.6.1", 200, 404),
        ("10.1.0.1", 200, 404),
        ("10.6.0.1", 403, 403),
        ("2001:db8::1", 200, 404),
        ("2001:db9::1", 403, 403),
        ("192.0.2.1", 403, 403),
    ] {
        assert_eq!([get(client, "/"), get(client, "/admin/")], [site, admin], "{client}");
        let socket = Socket::try_open(&world, &proxy, "app.test", "/live", &[("X-Forwarded-For", client)]);
        assert_eq!(socket.err().map_or(200, |status| status.as_u16()), site, "{client}");
    }
    let answer = proxy.curl("app.test").get("/").expect(403);
    assert!(answer.text().contains("403 Forbidden"), "{}", answer.text());
    proxy.plain("app.test").get("/.well-known/acme-challenge/token").expect(200);
}

/// No HTTP: 502, as often as it is asked. A back end that cannot be reached is out after the first time, which is 503.
const NONSENSE: &[u8] = b"nonsense\r\n\r\n";

/// A site with pages for most that can go wrong.
fn with_pages(world: &World, to: &str, dead: &str) -> String {
    for (name, text) in [("404.html", "<h1>Lost?</h1>"), ("sorry.html", "<h1>Sorry</h1>"), ("login.txt", "log in")] {
        world.write(&format!("public/{name}"), text);
    }
    htpasswd(world, "users", "-B", "ann", "one");
    let root = world.path("public");
    format!(
        "[limit.one]\nrate = \"1/m\"\nburst = 0\n\
         [site.app]\nhosts = [\"app.test\"]\nroot = {root:?}\nmax_body = \"1KiB\"\n\
         error_pages = {{ 404 = \"/404.html\", 401 = \"/login.txt\", 4xx = \"/sorry.html\", 502 = \"/late.html\", 5xx = \"/sorry.html\" }}\n\
         [[site.app.route]]\npath = \"/app/*\"\nupstream = {to:?}\ncache_control = \"public, max-age=60\"\n\
         [[site.app.route]]\npath = \"/dead/*\"\nupstream = {dead:?}\n\
         [[site.app.route]]\npath = \"/closed/*\"\nallow = [\"192.0.2.1\"]\nupstream = {to:?}\n\
         [[site.app.route]]\npath = \"/limited\"\nlimit = \"one\"\nrespond = \"ok\"\n\
         [[site.app.route]]\npath = \"/login\"\nbasic_auth = \"users\"\nrespond = \"ok\"\n\
         [[site.app.route]]\npath = \"/gone\"\nrespond = 410\n"
    )
}

#[test]
fn the_site_s_own_pages_stand_in_for_doorward_s() {
    let world = World::new();
    let backend = BackEnd::saying(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nConnection: close\r\n\r\nown\n");
    let dead = BackEnd::saying(NONSENSE);
    let proxy = world.proxy(&with_pages(&world, &backend.url(), &dead.url()));
    for http1 in [true, false] {
        let curl = || if http1 { proxy.curl("app.test").http1() } else { proxy.curl("app.test") };
        let answer = curl().get("/nothing").expect(404);
        assert_eq!(answer.text(), "<h1>Lost?</h1>");
        assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!(answer.field("cache-control"), Some("no-store"));
        assert_eq!(curl().get("/closed/x").expect(403).text(), "<h1>Sorry</h1>");
        assert_eq!(curl().get("/gone").expect(410).text(), "<h1>Sorry</h1>");
        let long = curl().post("/app/x", &[b'x'; 2000]).expect(413);
        assert_eq!(long.text(), "<h1>Sorry</h1>");
        assert_eq!(long.field("cache-control"), Some("no-store"), "a route's cache_control is not for faults");
        let login = curl().get("/login").expect(401);
        assert_eq!((login.text().as_str(), login.field("content-type")), ("log in", Some("text/plain; charset=utf-8")));
        assert!(login.field("www-authenticate").is_some_and(|value| value.starts_with("Basic ")));
        let head = curl().head("/nothing").expect(404);
        assert_eq!(head.field("content-length"), Some("14"));
        // An application's answers are its own.
        let own = curl().get("/app/x").expect(404);
        assert_eq!((own.text().as_str(), own.field("cache-control")), ("own\n", Some("public, max-age=60")));
        // This page is missing.
        assert!(curl().get("/dead/x").expect(502).text().contains("502 Bad Gateway"));
    }
    proxy.curl("app.test").get("/limited").expect(200);
    let limited = proxy.curl("app.test").get("/limited").expect(429);
    assert_eq!(limited.text(), "<h1>Sorry</h1>");
    assert!(limited.field("retry-after").is_some());
    let said = proxy.running.stderr();
    assert_eq!(said.iter().filter(|line| line.contains("late.html")).count(), 1, "{}", proxy.running.said());
    // Before a site is known there is none that could have a page.
    assert!(proxy.plain("shop.example.com").get("/").expect(404).text().contains("Reference"));
}

#[test]
fn a_page_that_is_written_or_replaced_is_shown_without_a_reload_and_none_from_outside_the_root() {
    let world = World::new();
    let dead = BackEnd::saying(NONSENSE);
    let pages = with_pages(&world, &dead.url(), &dead.url());
    let proxy = world.proxy(&pages);
    let text = |path: &str| proxy.curl("app.test").get(path).text();
    assert!(text("/dead/x").contains("502 Bad Gateway"));
    world.write("public/late.html", "back soon");
    wait_until("the new page is shown", SOON, || text("/dead/x") == "back soon");
    assert_eq!(text("/nothing"), "<h1>Lost?</h1>");
    world.write("public/404.html", "another");
    wait_until("the changed page is shown", SOON, || text("/nothing") == "another");
    world.write("secret", "SECRET");
    std::fs::remove_file(world.path("public/404.html")).unwrap();
    std::os::unix::fs::symlink("../secret", world.path("public/404.html")).unwrap();
    wait_until("the page has gone", SOON, || text("/nothing") != "another");
    assert!(!text("/nothing").contains("SECRET"));
    let (_, said) = check(&world, &format!("{}{pages}", world.head()));
    std::fs::remove_file(world.path("public/late.html")).unwrap();
    assert!(!said.contains("late.html"), "{said}");
    let (_, said) = check(&world, &format!("{}{pages}", world.head()));
    assert!(said.contains("`error_pages`, 502: /late.html below"), "{said}");
}

#[test]
fn cross_origin_requests_are_the_application_s_to_answer() {
    let world = World::new();
    let backend = BackEnd::answering(|seen, stream| {
        use std::io::Write;
        let allow = if seen.line().starts_with("OPTIONS ") {
            "HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: https://a.test\r\nAccess-Control-Allow-Methods: PUT\r\n\r\n"
        } else {
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        };
        stream.write_all(allow.as_bytes()).is_ok()
    });
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    for http1 in [true, false] {
        let curl = || {
            let curl = proxy.curl("app.test").header("Origin: https://a.test");
            if http1 { curl.http1() } else { curl }
        };
        let preflight = curl().header("Access-Control-Request-Method: PUT").arg("-X").arg("OPTIONS");
        let answer = preflight.get("/api").expect(204);
        assert_eq!(answer.field("access-control-allow-origin"), Some("https://a.test"));
        assert_eq!(answer.field("access-control-allow-methods"), Some("PUT"));
        assert_eq!(backend.last().field("access-control-request-method"), Some("PUT"));
        assert_eq!(backend.last().field("origin"), Some("https://a.test"));
        let plain = curl().get("/api").expect(200);
        assert!(plain.headers.iter().all(|(name, _)| !name.starts_with("access-control-")), "{:?}", plain.headers);
    }
}

#[test]
fn a_crowd_of_wrong_passwords_holds_up_no_other_request() {
    let world = World::new();
    let backend = BackEnd::start();
    // A quarter of a second each.
    let path = world.path("users");
    let mut command = Command::new(program(&["htpasswd"]));
    let end = finish("htpasswd", command.args(["-cbB", "-C", "11"]).arg(&path).args(["ann", "one"]));
    assert_eq!(end.code, 0, "{}", end.said());
    let open = format!("[[site.app.route]]\npath = \"/open\"\nbasic_auth = \"off\"\nupstream = {:?}\n", backend.url());
    let proxy = world.proxy(&backend::site(&backend.url(), &format!("basic_auth = \"users\"\n{open}")));
    proxy.curl("app.test").arg("-u").arg("ann:one").get("/").expect(200);
    std::thread::scope(|scope| {
        let guessing: Vec<_> = (0..12)
            .map(|n| {
                let proxy = &proxy;
                scope.spawn(move || {
                    let guess = format!("ann:{n}");
                    proxy.curl("app.test").arg("-u").arg(guess).patient(Duration::from_secs(20)).get("/").status
                })
            })
            .collect();
        for _ in 0..10 {
            proxy.curl("app.test").get("/open").expect(200);
            proxy.curl("app.test").arg("-u").arg("ann:one").get("/").expect(200);
        }
        for guess in guessing {
            let status = guess.join().unwrap();
            assert!(status == 401 || status == 503, "{status}");
        }
    });
}

#[test]
fn nobody_goes_around_a_route_to_what_stands_behind_it() {
    let world = World::new();
    world.write("public/index.php", "<?php");
    let back_end = BackEnd::start();
    let (root, to) = (world.path("public"), back_end.url());
    let proxy = world.proxy(&format!(
        "[site.app]\nhosts = [\"app.test\"]\nroot = {root:?}\nphp = {{ to = \"unix:/nonexistent/fpm.sock\", restart_window = \"0s\" }}\n\
         [site.app.websocket]\npreset = \"any\"\nto = {to:?}\n\
         [[site.app.route]]\npath = \"/admin/*\"\nallow = [\"192.0.2.1\"]\nupstream = {to:?}\n"
    ));
    let curl = || proxy.curl("app.test").http1();
    curl().get("/admin/x").expect(403);
    // PHP would take these for /admin/x.
    curl().get("/index.php/admin/x").expect(403);
    curl().get("/index.php/%61dmin").expect(403);
    curl().get("/index.php/other").expect(502);
    // An application may answer a handshake as a plain request.
    let handshake = |path: &str| {
        curl()
            .header("Connection: Upgrade")
            .header("Upgrade: websocket")
            .header("Sec-WebSocket-Version: 13")
            .header("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
            .patient(Duration::from_secs(2))
            .send(path)
    };
    assert_eq!(handshake("/admin/x").unwrap().expect(403).status, 403);
    assert!(back_end.seen().is_empty());
    // Elsewhere it is a socket, which curl does not leave by itself.
    let _ = handshake("/live/x");
    assert_eq!(back_end.seen().len(), 1);
}
