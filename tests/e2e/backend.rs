//! HTTP back ends: what they are told, what they are not, and how they may fail.

use crate::harness::{BackEnd, Node, Proxy, World};

/// A site whose application is `to`, with more keys.
pub fn site(to: &str, more: &str) -> String {
    format!("[site.app]\nhosts = [\"app.test\"]\nupstream = {to:?}\n{more}\n")
}

fn start(world: &World) -> (BackEnd, Proxy) {
    let backend = BackEnd::start();
    let proxy = world.proxy(&site(&backend.url(), ""));
    (backend, proxy)
}

#[test]
fn a_back_end_is_told_who_asks_for_what_and_how() {
    let world = World::new();
    let (backend, proxy) = start(&world);
    for http1 in [true, false] {
        let curl = proxy.curl("app.test").header("X-Kept: 1");
        let curl = if http1 { curl.http1() } else { curl };
        curl.get("/a%20b/c?x=%2F&y").expect(200);
        let seen = backend.last();
        assert_eq!(seen.line(), "GET /a%20b/c?x=%2F&y HTTP/1.1");
        let host = format!("app.test:{}", proxy.https());
        let expected = [
            ("host", host.as_str()),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", &host),
            ("x-forwarded-port", &proxy.https().to_string()),
            ("x-real-ip", "127.0.0.1"),
            ("x-kept", "1"),
        ];
        for (name, value) in expected {
            assert_eq!(seen.field(name), Some(value), "{name}\n{}", seen.head);
        }
        assert_eq!(seen.field("connection").unwrap_or("keep-alive").to_lowercase(), "keep-alive");
        assert_eq!(seen.field("transfer-encoding"), None, "a GET has no body");
        assert_eq!(seen.field("content-length").unwrap_or("0"), "0");
    }
}

#[test]
fn a_clients_own_claims_and_hop_by_hop_fields_go_no_further() {
    let world = World::new();
    let (backend, proxy) = start(&world);
    let fields = [
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: evil.test",
        "X-Forwarded-Port: 6666",
        "X-Forwarded-Prefix: /evil",
        "X-Real-IP: 6.6.6.6",
        "Forwarded: for=6.6.6.6",
        "X-Original-URL: /evil",
        "X-Rewrite-URL: /evil",
        "CF-Connecting-IP: 6.6.6.6",
        "Proxy: http://evil.test",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eA==",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Trailer: X-Later",
        "Connection: close, X-Named, Host, X-Forwarded-For",
        "X-Named: secret",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        "X_Under_Score: 1",
    ];
    let curl = fields.iter().fold(proxy.curl("app.test").http1(), |curl, line| curl.header(line));
    curl.get("/").expect(200);
    let seen = backend.last();
    for gone in [
        "forwarded",
        "x-forwarded-prefix",
        "x-original-url",
        "x-rewrite-url",
        "proxy",
        "proxy-connection",
        "proxy-authorization",
        "keep-alive",
        "te",
        "trailer",
        "x-named",
        "upgrade",
        "http2-settings",
        "x_under_score",
    ] {
        assert_eq!(seen.fields(gone), Vec::<&str>::new(), "{gone}\n{}", seen.head);
    }
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(
        seen.field("host"),
        Some(format!("app.test:{}", proxy.https()).as_str()),
        "Connection cannot remove Host"
    );
    assert!(!seen.head.contains("evil"), "{}", seen.head);
    assert!(!seen.head.contains("6.6.6.6"), "{}", seen.head);
}

#[test]
fn a_trusted_proxys_word_about_the_client_counts() {
    let world = World::new();
    let backend = BackEnd::start();
    let head = world.head().replace("[server]\n", "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n");
    let proxy = Proxy::start(&world, &format!("{head}{}", site(&backend.url(), "")));
    proxy.curl("app.test").header("X-Forwarded-For: 6.6.6.6, 192.0.2.9").get("/").expect(200);
    let seen = backend.last();
    assert_eq!(seen.field("x-forwarded-for"), Some("6.6.6.6, 192.0.2.9, 127.0.0.1"));
    assert_eq!(seen.field("x-real-ip"), Some("192.0.2.9"));
}

#[test]
fn cookies_that_http2_splits_are_joined() {
    let world = World::new();
    let (backend, proxy) = start(&world);
    proxy.curl("app.test").header("Cookie: a=1; b=2; c=3").get("/").expect(200);
    // RFC 9113, section 8.2.3: they MUST be concatenated before they go into HTTP/1.1.
    assert_eq!(backend.last().field("cookie"), Some("a=1; b=2; c=3"));
}

#[test]
fn bodies_reach_a_back_end_with_one_framing_field() {
    let world = World::new();
    let (backend, proxy) = start(&world);
    let body = vec![b'x'; 200_000];
    proxy.curl("app.test").http1().post("/", &body).expect(200);
    let seen = backend.last();
    assert!(seen.body == body);
    assert_eq!(seen.field("content-length"), Some("200000"));
    assert_eq!(seen.field("transfer-encoding"), None);
    proxy.curl("app.test").http1().header("Transfer-Encoding: chunked").post("/", &body).expect(200);
    let seen = backend.last();
    assert!(seen.body == body);
    assert_eq!(seen.fields("content-length").len() + seen.fields("transfer-encoding").len(), 1, "{}", seen.head);
}

#[test]
fn fields_can_be_set_and_removed_for_the_back_end_and_for_the_client() {
    let world = World::new();
    let backend = BackEnd::answering(|_, stream| {
        use std::io::Write;
        let text = "HTTP/1.1 200 OK\r\nX-Powered-By: PHP\r\nServer: back/1\r\nX-Old: 1\r\nX-Gone: 1\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(text.as_bytes()).is_ok()
    });
    let more = "request_headers = { set = { X-App = \"one\" }, remove = [\"X-Secret\"] }\n\
                response_headers = { set = { X-Old = \"2\" }, add = { X-New = \"3\" }, remove = [\"X-Gone\", \"X-Powered-By\"] }\n";
    let proxy = world.proxy(&site(&backend.url(), more));
    let answer = proxy.curl("app.test").http1().header("X-App: mine").header("X-Secret: s").get("/").expect(200);
    assert_eq!(backend.last().field("x-app"), Some("one"), "replaced, not doubled");
    assert_eq!(backend.last().field("x-secret"), None);
    assert_eq!(answer.field("x-old"), Some("2"));
    assert_eq!(answer.field("x-new"), Some("3"));
    for gone in ["x-gone", "x-powered-by", "x-hop"] {
        assert_eq!(answer.field(gone), None, "{gone}");
    }
}

#[test]
fn a_back_end_listens_on_a_unix_socket() {
    let world = World::new();
    let socket = world.path("app.sock");
    let _node = Node::serve(&world, "http-server.js", &["--socket", socket.to_str().unwrap()]);
    let proxy = world.proxy(&site(&format!("unix:{}", socket.display()), ""));
    let answer = proxy.curl("app.test").get("/see?x=1").expect(200).json();
    assert_eq!(answer["url"], "/see?x=1");
    assert_eq!(answer["headers"]["host"], format!("app.test:{}", proxy.https()));
}

#[test]
fn connections_to_a_back_end_are_kept_and_a_stale_one_is_no_failure() {
    let world = World::new();
    let backend = BackEnd::answering(|seen, stream| {
        use std::io::Write;
        let answer = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        // Says that the connection stays, and closes it.
        answer.is_ok() && !seen.line().contains("/close")
    });
    let proxy = world.proxy(&site(&backend.url(), ""));
    for path in ["/", "/close", "/", "/close", "/close", "/"] {
        assert_eq!(proxy.curl("app.test").get(path).expect(200).text(), "ok");
    }
}

#[test]
fn a_back_end_that_is_gone_is_502_and_one_that_hangs_504() {
    let world = World::new();
    let hanging = BackEnd::answering(|_, _| {
        std::thread::sleep(std::time::Duration::from_secs(5));
        false
    });
    let gone = format!("http://127.0.0.1:{}", crate::harness::free_port());
    let more =
        format!("[[site.app.route]]\npath = \"/slow\"\nupstream = {:?}\nread_timeout = \"300ms\"\n", hanging.url());
    let proxy = world.proxy(&site(&gone, &more));
    proxy.curl("app.test").get("/").expect(502);
    proxy.curl("app.test").get("/slow").expect(504);
}

#[test]
fn answers_that_are_not_http_are_502_and_broken_ones_are_seen_to_break() {
    let world = World::new();
    let broken: [&'static [u8]; 5] = [
        b"this is no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        b"",
    ];
    for bytes in broken {
        let backend = BackEnd::saying(bytes);
        let proxy = world.proxy(&site(&backend.url(), ""));
        let answer = proxy.curl("app.test").get("/");
        assert_eq!(answer.status, 502, "{:?}", String::from_utf8_lossy(bytes));
    }
    let backend = BackEnd::saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort");
    let proxy = world.proxy(&site(&backend.url(), ""));
    for curl in [proxy.curl("app.test").http1(), proxy.curl("app.test")] {
        let error = curl.send("/").expect_err("a truncated answer must not look whole");
        assert!(error.contains("curl exit 18") || error.contains("curl exit 92"), "{error}");
    }
}

#[test]
fn routes_redirects_and_answers_of_the_file_come_before_the_application() {
    let world = World::new();
    let backend = BackEnd::start();
    let api = BackEnd::start();
    let more = format!(
        "[[site.app.redirect]]\nfrom = \"/old/*\"\nto = \"/new/{{rest}}\"\n\
         [[site.app.route]]\npath = \"/api/*\"\nupstream = {:?}\nstrip_prefix = \"/api\"\n\
         [[site.app.route]]\npath = \"/health\"\nrespond = {{ status = 200, body = \"healthy\" }}\n\
         [[site.app.route]]\npath = \"/private/*\"\nallow = [\"10.0.0.0/8\"]\nrespond = {{ status = 200 }}\n",
        api.url()
    );
    let proxy = world.proxy(&site(&backend.url(), &more));
    let answer = proxy.curl("app.test").get("/old/a/b").expect(301);
    assert!(answer.field("location").unwrap().ends_with("/new/a/b"), "{:?}", answer.headers);
    assert_eq!(proxy.curl("app.test").get("/health").expect(200).text(), "healthy");
    proxy.curl("app.test").get("/private/x").expect(403);
    proxy.curl("app.test").get("/api/v1/x?y=1").expect(200);
    assert_eq!(api.last().line(), "GET /v1/x?y=1 HTTP/1.1");
    assert!(backend.seen().is_empty());
    proxy.curl("app.test").get("/apis").expect(200);
    assert_eq!(backend.last().line(), "GET /apis HTTP/1.1", "a segment, not a string prefix");
}
