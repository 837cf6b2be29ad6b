//! Files on disk.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use crate::harness::{Fpm, Proxy, SOON, World, program, wait_until};
use crate::php;

fn start(world: &World) -> (Fpm, Proxy) {
    let fpm = Fpm::unix(world);
    let proxy = world.proxy(&php::site(world, &fpm, ""));
    (fpm, proxy)
}

fn plain_site(world: &World, more: &str) -> Proxy {
    let root = world.copy("php").join("public");
    std::fs::remove_file(root.join("index.php")).unwrap();
    world.proxy(&format!("[site.app]\nhosts = [\"app.test\"]\nroot = {root:?}\n{more}\n"))
}

#[test]
fn a_file_is_served_with_type_length_and_strong_etag() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    let answer = proxy.curl("app.test").get("/hello.txt").expect(200);
    assert_eq!(answer.text(), "hello from a file\n");
    assert!(answer.field("content-type").unwrap().starts_with("text/plain"), "{:?}", answer.headers);
    assert_eq!(answer.field("content-length"), Some("18"));
    let etag = answer.field("etag").unwrap();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "not strong: {etag}");
    assert!(answer.field("last-modified").is_some());
    let head = proxy.curl("app.test").head("/hello.txt").expect(200);
    assert_eq!(head.field("content-length"), Some("18"));
    head_has_no_body(&world, &proxy, "/hello.txt");
}

#[test]
fn a_file_that_the_client_has_is_304() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    let first = proxy.curl("app.test").get("/hello.txt").expect(200);
    let etag = first.field("etag").unwrap();
    let modified = first.field("last-modified").unwrap();
    let ask = |line: String| proxy.curl("app.test").header(&line).get("/hello.txt");
    assert!(ask(format!("If-None-Match: {etag}")).expect(304).body.is_empty());
    ask(format!("If-None-Match: \"other\", {etag}")).expect(304);
    ask("If-None-Match: \"other\"".to_owned()).expect(200);
    ask(format!("If-Modified-Since: {modified}")).expect(304);
    ask("If-Modified-Since: Sat, 01 Jan 2000 00:00:00 GMT".to_owned()).expect(200);
    ask("If-Match: \"other\"".to_owned()).expect(412);
}

#[test]
fn ranges_are_answered_with_their_bytes() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    let ask = |range: &str| proxy.curl("app.test").arg("-r").arg(range).get("/hello.txt");
    let answer = ask("6-9").expect(206);
    assert_eq!(answer.text(), "from");
    assert_eq!(answer.field("content-range"), Some("bytes 6-9/18"));
    assert_eq!(ask("13-").expect(206).text(), "file\n");
    assert_eq!(ask("-5").expect(206).text(), "file\n");
    assert_eq!(ask("13-1000").expect(206).text(), "file\n");
    assert_eq!(ask("100-200").expect(416).field("content-range"), Some("bytes */18"));
    // RFC 9110, section 13.1.5: a range of something else is the whole.
    proxy.curl("app.test").arg("-r").arg("0-1").header("If-Range: \"other\"").get("/hello.txt").expect(200);
    let several = ask("0-1,6-9").text();
    assert!(several.contains("from") || several == "hello from a file\n", "{several}");
}

#[test]
fn a_file_that_was_just_asked_for_is_answered_alike_and_its_successor_at_once() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    let root = world.path("php/public");
    let file = root.join("hello.txt");
    // What was changed a moment ago is read anew each time, and not what this is about.
    wait_until("the file is some seconds old", SOON, || {
        let changed = std::time::Duration::from_secs(file.metadata().unwrap().ctime().cast_unsigned());
        (std::time::UNIX_EPOCH + changed).elapsed().is_ok_and(|age| age > std::time::Duration::from_secs(4))
    });
    let mut raw = proxy.raw(&world, "app.test");
    let mut ask = |method: &str, field: &str, length: usize| {
        raw.send(format!("{method} /hello.txt HTTP/1.1\r\nHost: app.test\r\n{field}\r\n"));
        let (status, head) = raw.head();
        (status, head.to_lowercase(), String::from_utf8(raw.exactly(length)).unwrap())
    };
    let (first, second) = (ask("GET", "", 18), ask("GET", "", 18));
    assert_eq!((first.0, first.2.as_str()), (200, "hello from a file\n"));
    let fields = |head: &str| head.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n");
    assert_eq!((fields(&first.1), &first.2), (fields(&second.1), &second.2));
    assert_eq!(ask("GET", "Range: bytes=6-9\r\n", 4).2, "from");
    assert_eq!(ask("GET", "If-None-Match: *\r\n", 0).0, 304);
    assert!(ask("HEAD", "", 0).1.contains("content-length: 18\r\n"));
    assert_eq!(ask("POST", "Content-Length: 0\r\n", 0).0, 405);

    let mut raw = proxy.raw(&world, "app.test");
    let mut ask = || {
        raw.send("GET /hello.txt HTTP/1.1\r\nHost: app.test\r\n\r\n");
        let (status, head) = raw.head();
        let length =
            head.to_lowercase().split_once("content-length: ").unwrap().1.lines().next().unwrap().parse().unwrap();
        (status, String::from_utf8(raw.exactly(length)).unwrap())
    };
    ask();
    std::fs::write(root.join("new.txt"), "another file of a\n").unwrap();
    std::fs::rename(root.join("new.txt"), &file).unwrap();
    assert_eq!(ask(), (200, "another file of a\n".to_owned()));
    std::fs::write(&file, "a file in its place").unwrap();
    assert_eq!(ask(), (200, "a file in its place".to_owned()));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(ask().0, 200, "the front controller's");
}

#[test]
fn answers_are_compressed_as_the_client_asks() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    let sheet = std::fs::read(world.path("php/public/assets/app.css")).unwrap();
    for coding in ["gzip", "br", "zstd"] {
        let answer = proxy.curl("app.test").header(&format!("Accept-Encoding: {coding}")).get("/assets/app.css");
        let answer = answer.expect(200);
        assert_eq!(answer.field("content-encoding"), Some(coding));
        assert!(answer.field("vary").unwrap_or("").to_lowercase().contains("accept-encoding"), "{:?}", answer.headers);
        assert!(answer.body.len() < sheet.len() / 2, "{coding}: {} of {}", answer.body.len(), sheet.len());
        // curl undoes the coding itself.
        let curl = proxy.curl("app.test").header(&format!("Accept-Encoding: {coding}")).arg("--compressed");
        assert!(curl.get("/assets/app.css").body == sheet, "{coding} gives other bytes back");
    }
    let plain = proxy.curl("app.test").get("/assets/app.css").expect(200);
    assert_eq!(plain.field("content-encoding"), None);
    assert!(plain.body == sheet);
    let refused = proxy.curl("app.test").header("Accept-Encoding: gzip;q=0, br;q=0, zstd;q=0").get("/assets/app.css");
    assert_eq!(refused.field("content-encoding"), None);
}

#[test]
fn a_compressed_answer_has_another_etag_than_the_plain_one() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    let plain = proxy.curl("app.test").get("/assets/app.css").expect(200);
    let gzip = proxy.curl("app.test").header("Accept-Encoding: gzip").get("/assets/app.css").expect(200);
    // RFC 9110, section 8.8.3.3: different codings of one resource have different strong tags.
    let (plain, gzip) = (plain.field("etag").unwrap(), gzip.field("etag").unwrap_or("none"));
    assert!(plain != gzip || gzip.starts_with("W/"), "{plain} {gzip}");
}

#[test]
fn precompressed_files_are_used() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    let sheet = world.path("php/public/assets/app.css");
    let content = std::fs::read(&sheet).unwrap();
    // A mark that only the file beside it can have: gzip's own name field.
    let packed = pipe("gzip", &["-9", "-c", "-N"], &content);
    std::fs::write(world.path("php/public/assets/app.css.gz"), &packed).unwrap();
    let answer = proxy.curl("app.test").header("Accept-Encoding: gzip").get("/assets/app.css").expect(200);
    assert_eq!(answer.field("content-encoding"), Some("gzip"));
    assert!(answer.body == packed, "not the file that lies there");
    assert!(answer.field("content-type").unwrap().starts_with("text/css"));
    assert!(proxy.curl("app.test").get("/assets/app.css").expect(200).body == content);
}

#[test]
fn answers_of_php_are_compressed_too_and_event_streams_are_not() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    let answer = proxy.curl("app.test").header("Accept-Encoding: gzip").get("/page").expect(200);
    assert_eq!(answer.field("content-encoding"), Some("gzip"));
    let text = String::from_utf8(pipe("gzip", &["-d", "-c"], &answer.body)).unwrap();
    assert!(text.contains("A page with a live socket"));
    let stream = proxy.curl("app.test").header("Accept-Encoding: gzip").get("/sse").expect(200);
    assert_eq!(stream.field("content-encoding"), None);
}

#[test]
fn dotfiles_do_not_exist_except_well_known() {
    let world = World::new();
    let (_fpm, proxy) = start(&world);
    for path in ["/.env", "/%2eenv", "/assets/../.env", "/%2e%65nv", "/.git/config", "/.htaccess"] {
        let answer = proxy.curl("app.test").get(path);
        assert!(!answer.text().contains("DOTFILE-MUST-NOT-LEAK"), "{path}");
        answer.expect(404);
    }
    let answer = proxy.curl("app.test").get("/.well-known/security.txt").expect(200);
    assert_eq!(answer.text(), "token of a challenge\n");
}

#[test]
fn nothing_outside_the_root_is_reachable() {
    let world = World::new();
    let proxy = plain_site(&world, "");
    world.write("php/secret.txt", "OUTSIDE");
    std::os::unix::fs::symlink("/etc/passwd", world.path("php/public/link.txt")).unwrap();
    let paths = [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/..%5csecret.txt",
        "/..\\secret.txt",
        "/%252e%252e/secret.txt",
        "/assets/../../secret.txt",
        "//../secret.txt",
        "/..;/secret.txt",
        "/.%00./secret.txt",
        "/%c0%ae%c0%ae/secret.txt",
        "/link.txt",
    ];
    for path in paths {
        let answer = proxy.curl("app.test").http1().get(path);
        assert!(!answer.text().contains("OUTSIDE"), "{path}");
        assert!(!answer.text().contains("root:"), "{path}");
        assert!([400, 403, 404].contains(&answer.status), "{path}: {}", answer.status);
    }
}

#[test]
fn php_source_is_never_a_file_even_without_php() {
    let world = World::new();
    let proxy = plain_site(&world, "");
    for path in ["/other.php", "/other.PHP", "/other.php/", "/other%2Ephp"] {
        let answer = proxy.curl("app.test").get(path);
        assert!(!answer.text().contains("SOURCE-MUST-NOT-LEAK"), "{path}");
        answer.expect(404);
    }
}

#[test]
fn other_methods_are_refused_on_files() {
    let world = World::new();
    let proxy = plain_site(&world, "");
    for method in ["POST", "PUT", "DELETE"] {
        let answer = proxy.curl("app.test").arg("-X").arg(method).get("/hello.txt").expect(405);
        assert!(answer.field("allow").is_some_and(|allow| allow.contains("GET")), "{:?}", answer.headers);
    }
    assert_eq!(std::fs::read_to_string(world.path("php/public/hello.txt")).unwrap(), "hello from a file\n");
}

#[test]
fn an_index_stands_for_its_folder_and_assets_may_be_kept() {
    let world = World::new();
    world.write("php/public/docs/index.html", "the index of docs");
    let proxy = plain_site(&world, "assets = \"30d\"\nsecurity_headers = true\nhsts = \"1y\"\n");
    world.write("php/public/docs/index.html", "the index of docs");
    let answer = proxy.curl("app.test").get("/docs/").expect(200);
    assert_eq!(answer.text(), "the index of docs");
    assert_eq!(
        answer.field("strict-transport-security").map(|v| v.split(';').next().unwrap()),
        Some("max-age=31536000")
    );
    assert_eq!(answer.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.field("x-frame-options"), Some("SAMEORIGIN"));
    let sheet = proxy.curl("app.test").get("/assets/app.css").expect(200);
    assert!(sheet.field("cache-control").is_some_and(|v| v.contains("max-age=2592000")), "{:?}", sheet.headers);
}

#[test]
fn a_single_page_application_answers_unknown_paths_with_its_index() {
    let world = World::new();
    world.write("app/index.html", "<title>the application</title>");
    world.write("app/main.js", "let x;");
    let root = world.path("app");
    let proxy = world.proxy(&format!("[site.app]\nhosts = [\"app.test\"]\nroot = {root:?}\nspa = true\n"));
    for path in ["/", "/orders/7", "/deep/er"] {
        assert_eq!(proxy.curl("app.test").get(path).expect(200).text(), "<title>the application</title>");
    }
    assert_eq!(proxy.curl("app.test").get("/main.js").expect(200).text(), "let x;");
}

#[test]
fn files_are_served_without_tls_when_the_site_says_so() {
    let world = World::new();
    let proxy = plain_site(&world, "http = \"serve\"\n");
    assert_eq!(proxy.plain("app.test").get("/hello.txt").expect(200).text(), "hello from a file\n");
}

/// A body behind a HEAD's answer would be read as the beginning of the next answer.
pub fn head_has_no_body(world: &World, proxy: &Proxy, path: &str) {
    let mut raw = proxy.raw(world, "app.test");
    raw.send(format!("HEAD {path} HTTP/1.1\r\nHost: app.test\r\n\r\n"));
    assert_eq!(raw.head().0, 200);
    raw.send("GET /hello.txt HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n");
    let next = raw.rest();
    assert!(next.starts_with("HTTP/1.1 200 OK\r\n"), "{next}");
}

fn pipe(name: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new(program(&[name])).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{name}");
    output.stdout
}
