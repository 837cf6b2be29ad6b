//! How a head is written: line ends, names, values, request lines, Host, targets and methods (rows 12 to 15, 17, 42 to
//! 45, 50, 53).

use crate::corpus::case::{Cases, get, host, line, post, saw};

pub fn cases() -> Cases {
    let mut cases = Cases::default();
    line_ends(&mut cases);
    fields(&mut cases);
    request_lines(&mut cases);
    hosts(&mut cases);
    targets(&mut cases);
    paths(&mut cases);
    methods(&mut cases);
    cases
}

fn line_ends(cases: &mut Cases) {
    for (name, raw) in [
        ("lf-all", get("").replace("\r\n", "\n")),
        ("lf-request-line", "GET /x HTTP/1.1\nHost: a.test\r\n\r\n".to_owned()),
        ("lf-field", "GET /x HTTP/1.1\r\nHost: a.test\nX: y\r\n\r\n".to_owned()),
        ("lf-end", "GET /x HTTP/1.1\r\nHost: a.test\r\n\n".to_owned()),
        ("lf-last-field", "GET /x HTTP/1.1\r\nHost: a.test\n\r\n".to_owned()),
        ("lf-lf-end", "GET /x HTTP/1.1\r\nHost: a.test\n\n".to_owned()),
        ("lf-first", "\nGET /x HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("lf-cr", "GET /x HTTP/1.1\n\rHost: a.test\n\r\n\r".to_owned()),
        ("cr-request-line", "GET /x HTTP/1.1\rHost: a.test\r\n\r\n".to_owned()),
        ("cr-all", get("").replace("\r\n", "\r") + "\r\n\r\n"),
        ("cr-field", "GET /x HTTP/1.1\r\nHost: a.test\rX: y\r\n\r\n".to_owned()),
        ("cr-crlf", "GET /x HTTP/1.1\r\r\nHost: a.test\r\n\r\n".to_owned()),
        ("cr-crlf-field", "GET /x HTTP/1.1\r\nHost: a.test\r\r\n\r\n".to_owned()),
        ("cr-end", "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\r\n\r\n".to_owned()),
        ("crlf-two-first", format!("\r\n\r\n{}", get(""))),
        (
            "lf-smuggle",
            "GET /x HTTP/1.1\r\nHost: a.test\r\nX: y\n\nGET /evil HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(),
        ),
    ] {
        cases.closed(12, name, 400, &raw);
    }
    cases.passed(12, "crlf-first", &format!("\r\n{}", get("")), saw("GET /x"));
    for (name, fields) in [
        ("fold-space", "X: a\r\n b\r\n"),
        ("fold-tab", "X: a\r\n\tb\r\n"),
        ("fold-blank", "X: a\r\n \r\n"),
        ("fold-empty", "X:\r\n a\r\n"),
        ("fold-field", "X: a\r\n Y: b\r\n"),
    ] {
        cases.closed(13, name, 400, &get(fields));
    }
    cases.closed(13, "fold-first", 400, "GET /x HTTP/1.1\r\n X: a\r\nHost: a.test\r\n\r\n");
    cases.closed(13, "fold-host", 400, &host("Host:\r\n a.test\r\n"));
}

fn fields(cases: &mut Cases) {
    for (name, field) in [
        ("no-colon", "no colon"),
        ("no-colon-word", "word"),
        ("name-empty", ": v"),
        ("name-colon", ":protocol: websocket"),
        ("name-space", "a b: v"),
        ("name-paren", "a(: v"),
        ("name-slash", "a/b: v"),
        ("name-quote", "\"a\": v"),
        ("name-comma", "a,b: v"),
        ("name-at", "a@b: v"),
        ("name-semicolon", "a;b: v"),
        ("name-equals", "a=b: v"),
        ("name-bracket", "a[0]: v"),
        ("name-high", "a\u{e9}: v"),
        ("name-nul", "a\0: v"),
        ("name-control", "a\u{1}: v"),
        ("name-del", "a\u{7f}: v"),
        ("name-space-colon", "a : v"),
        ("name-tab-colon", "a\t: v"),
        ("value-nul", "X: a\0b"),
        ("value-nul-first", "X:\0b"),
        ("value-escape", "X: \u{1b}[31m"),
        ("value-bell", "X: \u{7}"),
        ("value-backspace", "X: a\u{8}"),
        ("value-vt", "X: a\u{b}b"),
        ("value-del", "X: a\u{7f}b"),
        ("value-cr", "X: a\rb"),
    ] {
        cases.closed(14, name, 400, &get(&format!("{field}\r\n")));
    }
    for (name, value) in
        [("high", "caf\u{e9}"), ("utf8", "caf\u{c3}\u{a9}"), ("tab", "a\tb"), ("empty", ""), ("colon", "a: b")]
    {
        cases.passed(14, format!("value-ok-{name}"), &get(&format!("X: {value}\r\n")), saw("GET /x").with("x", value));
    }
    cases.passed(14, "value-ok-ows", &get("X: \t a \t \r\n"), saw("GET /x").with("x", "a"));
}

fn request_lines(cases: &mut Cases) {
    for (name, start) in [
        ("two-sp", "GET  /x HTTP/1.1"),
        ("two-sp-version", "GET /x  HTTP/1.1"),
        ("tab", "GET\t/x HTTP/1.1"),
        ("tab-version", "GET /x\tHTTP/1.1"),
        ("vt-method", "GET\u{b}/x HTTP/1.1"),
        ("sp-end", "GET /x HTTP/1.1 "),
        ("sp-first", " GET /x HTTP/1.1"),
        ("sp-uri", "GET /x y HTTP/1.1"),
        ("sp-uri-version", "GET /x HTTP/1.1 HTTP/1.1"),
        ("cr-uri", "GET /x\ry HTTP/1.1"),
        ("nul-uri", "GET /x\0 HTTP/1.1"),
        ("control-uri", "GET /x\u{1} HTTP/1.1"),
        ("del-uri", "GET /x\u{7f} HTTP/1.1"),
        ("frag-uri", "GET /x#f HTTP/1.1"),
        ("frag-query", "GET /x?a#f HTTP/1.1"),
        ("http09", "GET /x"),
        ("method-paren", "G(T /x HTTP/1.1"),
        ("method-nul", "GE\0T /x HTTP/1.1"),
        ("method-high", "G\u{c9}T /x HTTP/1.1"),
        ("method-colon", "GET: /x HTTP/1.1"),
        ("method-empty", "/x HTTP/1.1"),
        ("ver-110", "GET /x HTTP/1.10"),
        ("ver-01-1", "GET /x HTTP/01.1"),
        ("ver-lower", "GET /x http/1.1"),
        ("ver-1", "GET /x HTTP/1"),
        ("ver-dot", "GET /x HTTP/1.1."),
        ("ver-11", "GET /x HTTP/11"),
        ("ver-htp", "GET /x HTP/1.1"),
        ("ver-https", "GET /x HTTPS/1.1"),
        ("ver-comma", "GET /x HTTP/1,1"),
        ("ver-hex", "GET /x HTTP/1.a"),
        ("proxy-v1", "PROXY TCP4 6.6.6.6 127.0.0.1 1234 443"),
        ("proxy-unknown", "PROXY UNKNOWN"),
    ] {
        cases.closed(if name.starts_with("proxy") { 41 } else { 15 }, name, 400, &line(start));
    }
    cases.closed(41, "proxy-v1-in-front", 400, &format!("PROXY TCP4 6.6.6.6 127.0.0.1 1 443\r\n{}", get("")));
    let v2 = "\r\n\r\n\0\r\nQUIT\n\u{20}\0\0\0";
    cases.closed(41, "proxy-v2-local", 400, &format!("{v2}{}", get("")));
    for (name, version) in [("ver-20", "2.0"), ("ver-12", "1.2"), ("ver-09", "0.9"), ("ver-30", "3.0")] {
        cases.closed(15, name, 505, &line(&format!("GET /x HTTP/{version}")));
    }
    cases.closed(15, "preface", 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    cases.refused_behind(
        17,
        "garbage-after-get",
        &format!("{}\u{16}\u{3}\u{1} garbage\r\n\r\n", get("")),
        saw("GET /x"),
    );
    cases.refused_behind(17, "half-after-get", &format!("{}GET /y HTTP/1.1 x\r\n", get("")), saw("GET /x"));
    for (name, query) in
        [("plain", "a=b&c"), ("odd", "a=%zz&%00&'{}|^`"), ("two", "?a?b"), ("slash", "/../x"), ("empty", "")]
    {
        cases.passed(
            15,
            format!("query-{name}"),
            &line(&format!("GET /x?{query} HTTP/1.1")),
            saw(&format!("GET /x?{query}")),
        );
    }
    cases.closed(15, "query-angle", 400, &line("GET /x?<script> HTTP/1.1"));
    cases.closed(15, "query-quote", 400, &line("GET /x?\" HTTP/1.1"));
    cases.closed(15, "query-high", 400, &line("GET /x?caf\u{e9} HTTP/1.1"));
    cases.passed(15, "high-uri", &line("GET /caf\u{c3}\u{a9} HTTP/1.1"), saw("GET /caf%C3%A9"));
}

fn hosts(cases: &mut Cases) {
    for (name, fields) in [
        ("none", ""),
        ("two-same", "Host: a.test\r\nHost: a.test\r\n"),
        ("two-differ", "Host: a.test\r\nHost: b.test\r\n"),
        ("two-empty", "Host:\r\nHost: a.test\r\n"),
        ("space-colon", "Host : a.test\r\n"),
        ("indented", " Host: a.test\r\n"),
        ("nul", "Host: a.test\0\r\n"),
        ("nul-inside", "Host: a.test\0.evil.test\r\n"),
        ("cr", "Host: a.test\rX: y\r\n"),
    ] {
        cases.closed(42, format!("host-{name}"), 400, &host(fields));
    }
    for (name, value) in [
        ("empty", ""),
        ("comma", "a.test,b.test"),
        ("comma-space", "a.test, b.test"),
        ("userinfo", "u@a.test"),
        ("password", "u:p@a.test"),
        ("port-99999", "a.test:99999"),
        ("port-0", "a.test:0"),
        ("port-word", "a.test:x"),
        ("port-empty", "a.test:"),
        ("port-plus", "a.test:+443"),
        ("port-two", "a.test:80:80"),
        ("path", "a.test/x"),
        ("query", "a.test?x"),
        ("fragment", "a.test#x"),
        ("backslash", "a.test\\x"),
        ("quote", "\"a.test\""),
        ("single-quote", "a.test'"),
        ("angle", "<a.test>"),
        ("dots", "a..test"),
        ("dot-first", ".a.test"),
        ("dots-end", "a.test.."),
        ("dot-dot", ".."),
        ("percent", "a%2etest"),
        ("bracket", "[::1"),
        ("bracket-behind", "[::1]x"),
        ("tab", "a.te\tst"),
        ("space", "a.te st"),
        ("high", "\u{e4}.test"),
        ("star", "*"),
        ("star-test", "*.test"),
        ("url", "https://a.test"),
        ("number", "1.2.3"),
        ("label-64", "a123456789012345678901234567890123456789012345678901234567890123.test"),
    ] {
        cases.closed(42, format!("host-{name}"), 400, &host(&format!("Host: {value}\r\n")));
    }
    for name in ["other.test", "b.a.test", "a.test.evil.test", "xa.test", "127.0.0.1", "[::1]", "localhost"] {
        cases.kept(42, format!("host-unknown-{name}"), 421, &host(&format!("Host: {name}\r\n")));
    }
    cases.kept(43, "sni-other", 421, &host("Host: b.test\r\n"));
    cases.kept(43, "sni-other-port", 421, &host("Host: b.test:443\r\n"));
    cases.kept(43, "sni-other-absolute", 421, &line("GET https://b.test/x HTTP/1.1"));
    for (name, value, host_is, port) in [
        ("upper", "A.TEST", "a.test", "443"),
        ("dot-end", "a.test.", "a.test", "443"),
        ("port", "a.test:443", "a.test:443", "443"),
        ("port-other", "A.test.:8443", "a.test:8443", "8443"),
        ("port-zeros", "a.test:00443", "a.test:443", "443"),
    ] {
        let seen = saw("GET /x").authority(host_is, port);
        cases.passed(42, format!("host-ok-{name}"), &host(&format!("Host: {value}\r\n")), seen);
    }
}

fn targets(cases: &mut Cases) {
    for (name, target) in [
        ("abs-userinfo", "http://u@a.test/x"),
        ("abs-password", "http://u:p@a.test/x"),
        ("abs-ftp", "ftp://a.test/x"),
        ("abs-ws", "ws://a.test/x"),
        ("abs-empty-host", "http:///x"),
        ("abs-port", "http://a.test:99999/x"),
        ("abs-backslash", "http:\\\\a.test/x"),
        ("abs-one-slash", "http:/a.test/x"),
        ("abs-comma", "http://a.test,b.test/x"),
        ("abs-javascript", "javascript:alert(1)"),
        ("at-target", "@evil.test"),
        ("at-target-path", "@evil.test/x"),
        ("rel-target", "x"),
        ("rel-dot", "./x"),
        ("rel-query", "?x"),
        ("star-get", "*"),
        ("authority", "a.test:443"),
        ("authority-word", "a.test"),
        ("backslash-target", "\\x"),
    ] {
        cases.closed(44, name, 400, &line(&format!("GET {target} HTTP/1.1")));
    }
    cases.closed(44, "star-options", 400, &line("OPTIONS * HTTP/1.1"));
    cases.kept(44, "abs-other", 421, &line("GET http://evil.test/x HTTP/1.1"));
    for (name, target, path) in [
        ("abs-http", "http://a.test/x", "/x"),
        ("abs-https", "https://a.test/x", "/x"),
        ("abs-upper", "HTTP://A.TEST/x", "/x"),
        ("abs-no-path", "http://a.test", "/"),
        ("abs-query", "http://a.test?a=b", "/?a=b"),
        ("slashslash", "//evil.test/x", "/evil.test/x"),
        ("slashes", "///x", "/x"),
        ("url-in-path", "/http://evil.test/", "/http://evil.test/"),
        ("at-in-path", "/@evil.test", "/@evil.test"),
    ] {
        cases.passed(44, name, &line(&format!("GET {target} HTTP/1.1")), saw(&format!("GET {path}")));
    }
    // RFC 9112, section 3.2.2: the target's host counts, not the field's.
    let raw = "GET http://a.test/x HTTP/1.1\r\nHost: b.test\r\n\r\n";
    cases.passed(44, "abs-host-differs", raw, saw("GET /x"));
    cases.closed(44, "abs-host-none", 400, "GET http://a.test/x HTTP/1.1\r\n\r\n");
}

fn paths(cases: &mut Cases) {
    for (name, path) in [
        ("nul", "/%00"),
        ("nul-behind", "/x%00.html"),
        ("newline", "/x%0aSet-Cookie:a"),
        ("cr", "/x%0d%0aX:y"),
        ("del", "/x%7f"),
        ("percent-bad", "/%zz"),
        ("percent-short", "/%4"),
        ("percent-end", "/x%"),
        ("percent-u", "/%u0041"),
        ("slash", "/admin/..%2fws"),
        ("slash-upper", "/a%2Fb"),
        ("backslash", "/a\\b"),
        ("backslash-encoded", "/admin/..%5cws"),
        ("escape", "/../x"),
        ("escape-deep", "/x/../../y"),
        ("escape-encoded", "/%2e%2e/x"),
        ("escape-half", "/.%2e/x"),
        ("escape-slashes", "//../x"),
        ("quote", "/a\"b"),
        ("angle", "/<script>"),
    ] {
        cases.closed(50, format!("path-{name}"), 400, &line(&format!("GET {path} HTTP/1.1")));
    }
    // What a rule is about is met by every way to write it.
    for (name, path) in [
        ("plain", "/admin/x"),
        ("dots", "/y/../admin/x"),
        ("dot", "/./admin/x"),
        ("percent", "/%61dmin/x"),
        ("percent-all", "/%61%64%6D%69%6e/x"),
        ("slashes", "//admin/x"),
        ("slashes-behind", "/admin//x"),
        ("dots-behind", "/admin/y/../x"),
        ("dots-encoded", "/y/%2e%2e/admin/x"),
        ("absolute", "https://a.test/admin/x"),
        ("query", "/admin/x?/../../y"),
    ] {
        cases.kept(50, format!("rule-{name}"), 403, &line(&format!("GET {path} HTTP/1.1")));
    }
    for (name, path, seen) in [
        ("case", "/ADMIN/x", "/ADMIN/x"),
        ("dots-out", "/admin/../y", "/y"),
        ("twice", "/%2561dmin/x", "/%2561dmin/x"),
        ("parameter", "/admin;/x", "/admin;/x"),
        ("dots-parameter", "/admin;/..;/x", "/admin;/..;/x"),
        ("inner", "/y/admin/x", "/y/admin/x"),
    ] {
        cases.passed(
            50,
            format!("rule-not-{name}"),
            &line(&format!("GET {path} HTTP/1.1")),
            saw(&format!("GET {seen}")),
        );
    }
    for (name, path) in [
        ("plain", "/files/a.txt"),
        ("dots", "/x/../files/a.txt"),
        ("percent", "/%66iles/a%2etxt"),
        ("slashes", "//files//a.txt"),
    ] {
        cases.kept(50, format!("file-{name}"), 200, &line(&format!("GET {path} HTTP/1.1")));
    }
}

fn methods(cases: &mut Cases) {
    cases.closed(45, "connect", 405, &line("CONNECT a.test:443 HTTP/1.1"));
    cases.closed(45, "connect-path", 405, &line("CONNECT /x HTTP/1.1"));
    cases.closed(45, "connect-url", 405, &line("CONNECT http://a.test/ HTTP/1.1"));
    cases.kept(45, "trace", 405, &line("TRACE /x HTTP/1.1"));
    cases.kept(45, "track", 405, &line("TRACK /x HTTP/1.1"));
    cases.closed(61, "method-33", 400, &line(&format!("{} /x HTTP/1.1", "M".repeat(33))));
    let longest = "M".repeat(32);
    cases.passed(61, "method-32", &line(&format!("{longest} /x HTTP/1.1")), saw(&format!("{longest} /x")));
    cases.passed(45, "method-lower", &line("get /x HTTP/1.1"), saw("get /x"));
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"] {
        let raw = line(&format!("{method} /files/a.txt HTTP/1.1"));
        cases.kept(53, format!("method-file-{}", method.to_ascii_lowercase()), 405, &raw);
    }
    cases.kept(53, "method-file-body", 405, &post("Content-Length: 5\r\n", "hello").replace("/x", "/files/a.txt"));
    let range = |range: &str| get(&format!("Range: bytes={range}\r\n")).replace("/x", "/files/a.txt");
    cases.kept(53, "range", 206, &range("0-1"));
    cases.kept(53, "range-tail", 206, &range("-2"));
    cases.kept(53, "range-behind", 416, &range("99-"));
    cases.kept(53, "range-tail-0", 416, &range("-0"));
    cases.kept(53, "range-backwards", 200, &range("3-1"));
    cases.kept(53, "range-overflow", 200, &range("-9223372036854775808,-9223372036854775807"));
    cases.kept(53, "range-many", 200, &range(&["0-"; 500].join(",")));
    cases.closed(61, "uri-long", 414, &line(&format!("GET /{} HTTP/1.1", "a".repeat(9000))));
    cases.closed(61, "uri-64k", 414, &line(&format!("GET /{} HTTP/1.1", "a".repeat(65_536))));
    let most = (0..99).fold(saw("GET /x"), |seen, _| seen.with("a", "b"));
    cases.passed(61, "fields-100", &get(&"a: b\r\n".repeat(99)), most);
    cases.closed(61, "fields-101", 431, &get(&"a: b\r\n".repeat(100)));
    cases.closed(61, "field-40k", 431, &get(&format!("a: {}\r\n", "b".repeat(40_000))));
}
