//! What PHP is told of a request, byte for byte, whatever a client calls its fields; and what an application's own
//! instructions to a server come to.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;

use super::bait::{Bait, RAN, SECRET};
use super::exchange;
use super::fastcgi::Tap;
use crate::harness::{Fpm, Proxy, World};

struct House {
    world: World,
    proxy: Proxy,
    tap: Tap,
    bait: Bait,
    _fpm: Fpm,
}

impl House {
    fn start(limits: &str) -> House {
        House::start_with(limits, "")
    }

    /// More tables in front of the site's, and more keys in it.
    fn start_with(limits: &str, more: &str) -> House {
        let world = World::new();
        let bait = Bait::lay(&world);
        let fpm = Fpm::careless(&world);
        let tap = Tap::start(world.path("tap.sock"), world.path("fpm.sock"));
        let (root, to) = (&bait.root, tap.address());
        let site = format!("[site.app]\nhosts = [\"app.test\"]\nroot = {root:?}\nphp = {to:?}\n{more}");
        let proxy = Proxy::start(&world, &format!("{}{limits}{site}", world.head()));
        House { world, proxy, tap, bait, _fpm: fpm }
    }

    /// What FPM was told of this request, which has to be answered with 200; a name is told once.
    fn told(&self, request: &str) -> BTreeMap<String, Vec<u8>> {
        let answer = exchange(&self.world, &self.proxy, request, request.as_bytes());
        assert_eq!(answer.status, 200, "{request}: {}", answer.head);
        assert!(answer.content.starts_with("FRONT "), "{request}: {}", answer.content);
        self.bait.assert_untouched(request);
        let params = self.tap.take().pop().unwrap();
        let count = params.len();
        let text = |name: Vec<u8>| String::from_utf8(name).unwrap();
        let told: BTreeMap<_, _> = params.into_iter().map(|(name, value)| (text(name), value)).collect();
        assert_eq!(told.len(), count, "{request}: a name was told twice");
        self.check(request, &told);
        told
    }

    /// What is the same whatever a client says.
    fn check(&self, request: &str, told: &BTreeMap<String, Vec<u8>>) {
        let root = self.bait.root.as_os_str().as_bytes();
        let port = self.proxy.https().to_string();
        let script = [root, b"/index.php"].concat();
        for (name, value) in [
            ("SCRIPT_FILENAME", &script[..]),
            ("DOCUMENT_ROOT", root),
            ("SCRIPT_NAME", b"/index.php"),
            ("REMOTE_ADDR", b"127.0.0.1"),
            ("SERVER_ADDR", b"127.0.0.1"),
            ("SERVER_NAME", b"app.test"),
            ("HTTPS", b"on"),
            ("REQUEST_SCHEME", b"https"),
            ("GATEWAY_INTERFACE", b"CGI/1.1"),
            ("REDIRECT_STATUS", b"200"),
            ("HTTP_X_FORWARDED_FOR", b"127.0.0.1"),
            ("HTTP_X_FORWARDED_PROTO", b"https"),
        ] {
            assert_eq!(told.get(name).map(Vec::as_slice), Some(value), "{request}: {name}");
        }
        for name in
            ["HTTP_PROXY", "PHP_VALUE", "PHP_ADMIN_VALUE", "PATH_INFO", "HTTP_EXPECT", "HTTP_TE", "HTTP_UPGRADE"]
        {
            assert!(!told.contains_key(name), "{request}: {name}");
        }
        assert!(
            told.keys().all(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'))
        );
        assert_ne!(told["REMOTE_PORT"], port.as_bytes());
    }
}

fn request(fields: &str) -> String {
    format!("GET /page HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n{fields}\r\n")
}

#[test]
fn a_field_becomes_a_variable_of_its_own_name_or_none() {
    let house = House::start("");
    // Fields, and the variables in which their value may be.
    let cases: [(&str, &[&str]); 44] = [
        ("Proxy: evil", &[]),
        ("pRoXy: evil", &[]),
        ("Proxy: evil\r\nProxy: evil", &[]),
        ("Proxy_: evil", &[]),
        ("Content_Length: evil", &[]),
        ("Content_Type: evil", &[]),
        ("CONTENT_LENGTH: evil", &[]),
        ("Content-Type: evil", &["CONTENT_TYPE"]),
        ("Script-Filename: evil", &["HTTP_SCRIPT_FILENAME"]),
        ("Script_Filename: evil", &[]),
        ("SCRIPT_FILENAME: evil", &[]),
        ("SCRIPT_NAME: evil", &[]),
        ("Document-Root: evil", &["HTTP_DOCUMENT_ROOT"]),
        ("DOCUMENT_ROOT: evil", &[]),
        ("PATH_INFO: evil", &[]),
        ("Path-Info: evil", &["HTTP_PATH_INFO"]),
        ("PHP_VALUE: auto_prepend_file=evil", &[]),
        ("PHP-Value: auto_prepend_file=evil", &["HTTP_PHP_VALUE"]),
        ("PHP_ADMIN_VALUE: evil", &[]),
        ("PHP-Admin-Value: evil", &["HTTP_PHP_ADMIN_VALUE"]),
        ("REMOTE_ADDR: evil", &[]),
        ("Remote-Addr: evil", &["HTTP_REMOTE_ADDR"]),
        ("REMOTE_USER: evil", &[]),
        ("Remote-User: evil", &["HTTP_REMOTE_USER"]),
        ("HTTPS: evil", &["HTTP_HTTPS"]),
        ("SERVER_NAME: evil", &[]),
        ("Redirect-Status: evil", &["HTTP_REDIRECT_STATUS"]),
        ("Query-String: evil", &["HTTP_QUERY_STRING"]),
        ("HTTP_HOST: evil", &[]),
        ("HTTP-Host: evil", &["HTTP_HTTP_HOST"]),
        ("X_Forwarded_For: evil", &[]),
        ("X.Forwarded.For: evil", &[]),
        ("X-Forwarded_For: evil", &[]),
        ("X-Forwarded-For: evil", &[]),
        ("X-Forwarded-Host: evil", &[]),
        ("X-Forwarded-Prefix: evil", &[]),
        ("X-Real-IP: evil", &[]),
        ("Client-IP: evil", &[]),
        ("X-Original-URL: /evil", &[]),
        ("X-Rewrite-URL: /evil", &[]),
        ("X-Original-Host: evil", &[]),
        ("X-Host: evil", &[]),
        ("X-Named: evil\r\nConnection: X-Named", &[]),
        ("X-A.B: evil\r\nX-A!B: evil\r\nX-A~B: evil\r\nX-A'B: evil", &[]),
    ];
    for (fields, variables) in cases {
        let told = house.told(&request(&format!("{fields}\r\n")));
        let holding: Vec<&str> = told
            .iter()
            .filter(|(_, value)| value.windows(4).any(|part| part == b"evil"))
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(holding, variables, "{fields}");
    }
}

#[test]
fn several_fields_of_one_name_become_one_variable() {
    let house = House::start("");
    for (fields, name, value) in [
        ("X-A: 1\r\nX-A: 2", "HTTP_X_A", "1, 2"),
        ("X-A: 1\r\nX-a: 2\r\nx-A: 3", "HTTP_X_A", "1, 2, 3"),
        ("X-A:\r\nX-A: 2", "HTTP_X_A", ", 2"),
        ("X-A:", "HTTP_X_A", ""),
        ("X-A:  padded \t", "HTTP_X_A", "padded"),
        ("Cookie: a=1\r\nCookie: b=2", "HTTP_COOKIE", "a=1; b=2"),
        ("Accept: a/b\r\nAccept: c/d", "HTTP_ACCEPT", "a/b, c/d"),
        ("X-A: 1\r\nX_A: 2", "HTTP_X_A", "1"),
        ("X_A: 2\r\nX-A: 1", "HTTP_X_A", "1"),
        ("Content-Type: a/b\r\nContent-Type: c/d", "CONTENT_TYPE", "a/b, c/d"),
        ("X-Y: z", "CONTENT_TYPE", ""),
        ("X-Y: z", "CONTENT_LENGTH", ""),
        ("X-A: caf\u{e9}", "HTTP_X_A", "caf\u{e9}"),
    ] {
        let told = house.told(&request(&format!("{fields}\r\n")));
        assert_eq!(told[name], value.as_bytes(), "{fields}");
    }
    let h2 = house.proxy.curl("app.test").header("Cookie: a=1").header("Cookie: b=2").get("/page").expect(200);
    assert!(h2.text().starts_with("FRONT "));
    let params = house.tap.take().pop().unwrap();
    let cookies: Vec<_> = params.iter().filter(|(name, _)| name == b"HTTP_COOKIE").collect();
    assert_eq!(cookies, [&(b"HTTP_COOKIE".to_vec(), b"a=1; b=2".to_vec())]);
}

#[test]
fn names_and_values_around_the_limits_of_fastcgi_arrive_whole() {
    // A record's content ends at 65535 bytes, and a length of one byte at 127.
    let house = House::start("[limits]\nmax_header_size = \"1MiB\"\n");
    for length in 126..=129 {
        let name = "X".repeat(length - "HTTP_".len());
        let told = house.told(&request(&format!("{name}: {}\r\n", "v".repeat(length))));
        assert_eq!(told[&format!("HTTP_{name}")], "v".repeat(length).as_bytes(), "{length}");
    }
    for length in [255, 256, 16_383, 32_768, 60_000, 65_000] {
        let fields = format!("X-A: {}\r\nX-B: {0}\r\nX-C: end\r\n", "v".repeat(length));
        let told = house.told(&request(&fields));
        assert_eq!((told["HTTP_X_A"].len(), told["HTTP_X_B"].len()), (length, length));
        assert_eq!(told["HTTP_X_C"], b"end");
    }
    // One that is too long is told so: it is neither cut nor left out.
    for length in [65_530, 65_535, 65_536, 70_000, 200_000] {
        let text = request(&format!("X-A: {}\r\n", "v".repeat(length)));
        let answer = exchange(&house.world, &house.proxy, "a long field", text.as_bytes());
        assert_eq!(answer.status, 431, "{length}: {}", answer.head);
        assert!(house.tap.take().is_empty(), "{length}");
    }
}

#[test]
fn the_host_is_that_of_the_file_and_the_port_the_clients() {
    let house = House::start("");
    for (host, name, port) in [
        ("app.test", "app.test", "443"),
        ("APP.test", "app.test", "443"),
        ("app.test:8443", "app.test:8443", "8443"),
        ("app.test.", "app.test", "443"),
    ] {
        let told = house.told(&format!("GET /page HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert_eq!((&told["HTTP_HOST"][..], &told["SERVER_PORT"][..]), (name.as_bytes(), port.as_bytes()), "{host}");
    }
    // The target's own host wins, and what stands in the field is told to nobody (RFC 9112, section 3.2.2).
    let told = house.told("GET https://app.test/page HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n");
    assert_eq!(told["HTTP_HOST"], b"app.test");
    for host in ["evil.test", "", "app.test, evil.test", "app.test@evil.test", "app.test/evil", "app.test:99999", "a b"]
    {
        let text = format!("GET /page HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = exchange(&house.world, &house.proxy, host, text.as_bytes());
        assert!(matches!(answer.status, 400 | 404 | 421), "{host}: {}", answer.status);
        assert!(house.tap.take().is_empty(), "{host}");
    }
}

#[test]
fn a_site_that_takes_every_host_keeps_its_own_name() {
    let house = House::start_with("", "default = true\n");
    for host in ["evil.test", "app.test.evil.test", "192.0.2.1", "EVIL.test:8443"] {
        let text = format!("GET /page HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let told = house.told(&text);
        assert_eq!(told["HTTP_HOST"], host.to_lowercase().as_bytes());
    }
}

#[test]
fn a_body_has_its_length_however_it_came() {
    let house = House::start("");
    let post = |fields: &str, body: &str| {
        format!("POST /page HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n{fields}\r\n{body}")
    };
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (text, length) in [
        (post("Content-Length: 5\r\n", "hello"), "5"),
        (post("Content-Length: 0\r\n", ""), "0"),
        (post("", ""), "0"),
        (post(chunked, "5\r\nhello\r\n0\r\n\r\n"), "5"),
        (post(chunked, "2\r\nhe\r\n3;ext=1\r\nllo\r\n0\r\n\r\n"), "5"),
        (post(chunked, "0\r\n\r\n"), "0"),
        (post(chunked, "5\r\nhello\r\n0\r\nScript-Filename: evil\r\nContent-Length: 9\r\nX-A: 1\r\n\r\n"), "5"),
        (post("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"), "5"),
        (post("TE: trailers\r\nContent-Length: 5\r\n", "hello"), "5"),
    ] {
        // An interim answer comes before the one that is looked at.
        if text.contains("Expect") {
            let mut raw = house.proxy.raw(&house.world, "app.test");
            assert_eq!(raw.send(&text).head().0, 100);
            assert_eq!(raw.head().0, 200);
            house.tap.take();
            continue;
        }
        let told = house.told(&text);
        assert_eq!(told["CONTENT_LENGTH"], length.as_bytes(), "{text}");
        for name in
            ["HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_LENGTH", "HTTP_TRAILER", "HTTP_SCRIPT_FILENAME", "HTTP_X_A"]
        {
            assert!(!told.contains_key(name), "{text}: {name}");
        }
    }
    let whole = || house.tap.bodies().iter().filter(|body| *body == b"hello").count();
    crate::harness::wait_until("the bodies", crate::harness::SOON, || whole() == 6);
    for size in [65_535, 65_536, 65_537, 131_072] {
        // Of a form PHP reads all before the script runs.
        let form = "Content-Type: application/x-www-form-urlencoded\r\n";
        house.told(&post(&format!("{form}Content-Length: {size}\r\n"), &"x".repeat(size)));
        crate::harness::wait_until("the body", crate::harness::SOON, || {
            house.tap.bodies().iter().any(|body| body.len() == size)
        });
    }
}

#[test]
fn an_applications_word_to_a_server_is_neither_followed_nor_told() {
    let house = House::start("");
    let secret = house.world.path("secret.txt").display().to_string();
    for (field, value, passes) in [
        ("X-Accel-Redirect", "/hello.txt", false),
        ("X-Accel-Redirect", "/../secret.txt", false),
        ("X-Accel-Redirect", "/etc/passwd", false),
        ("X-Accel-Redirect", "http://127.0.0.1:1/", false),
        ("X-Accel-Expires", "10", false),
        ("X-Accel-Buffering", "no", false),
        ("X-Accel-Limit-Rate", "1", false),
        ("X-Accel-Charset", "utf-8", false),
        ("X-Sendfile", &secret, false),
        ("X-LIGHTTPD-send-file", &secret, false),
        ("X-Sendfile2", &secret, false),
        ("Server", "evil", false),
        ("X-Powered-By", "evil", false),
        ("Connection", "upgrade", false),
        ("Upgrade", "evil", false),
        ("Keep-Alive", "timeout=evil", false),
        ("Location", "/hello.txt", true),
        ("Location", "http://127.0.0.1:1/", true),
        ("X-Other", "passes", true),
    ] {
        let field_value = format!("{field}: {value}").replace(' ', "%20").replace('#', "%23");
        let text = format!("GET /page?field={field_value} HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n");
        let answer = exchange(&house.world, &house.proxy, field, text.as_bytes());
        let wanted = if field == "Location" { 302 } else { 200 };
        assert_eq!(answer.status, wanted, "{field}: {value}");
        assert!(answer.content.starts_with("FRONT"), "{field}: {value}: {}", answer.content);
        let told = answer.head.contains(&format!("\r\n{field}: {value}").to_lowercase());
        assert_eq!(told, passes, "{field}: {value}: {}", answer.head);
        for never in [SECRET, RAN, "root:x:"] {
            assert!(!answer.content.contains(never), "{field}: {value}");
        }
        assert!(answer.complete, "{field}: {value}");
        assert_eq!(house.tap.take().len(), 1, "{field}: {value}: asked once");
    }
}
