//! HTTP/2 before a back end that speaks HTTP/1.1 (rows 18 to 25).

use crate::corpus::case::{Case, Cases, Fields, Sent, Verdict, saw};
use crate::corpus::record::Request;

use Verdict::{Gone, Kept, Passed, Reset};

fn owned(fields: &[(&str, &str)]) -> Fields {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Fields {
    let mut fields = owned(&[(":method", method), (":scheme", "https"), (":authority", "a.test"), (":path", path)]);
    fields.extend(owned(more));
    fields
}

fn with(name: &str, value: Option<&str>) -> Fields {
    let mut fields = request("GET", "/x", &[]);
    match value {
        Some(value) => fields.iter_mut().filter(|field| field.0 == name).for_each(|field| field.1 = value.to_owned()),
        None => fields.retain(|field| field.0 != name),
    }
    fields
}

fn passed(request: Request) -> Verdict {
    Passed(vec![request])
}

pub fn cases() -> Cases {
    let mut cases = Cases::default();
    lengths(&mut cases);
    fields(&mut cases);
    pseudo(&mut cases);
    authorities(&mut cases);
    connects(&mut cases);
    bodies(&mut cases);
    cases
}

fn lengths(cases: &mut Cases) {
    for (name, length) in [
        ("zero", "0"),
        ("shorter", "3"),
        ("longer", "9"),
        ("plus", "+5"),
        ("minus", "-1"),
        ("hex", "0x5"),
        ("list-same", "5, 5"),
        ("list-differ", "5, 6"),
        ("empty", ""),
        ("space", " 5"),
        ("overflow", "18446744073709551621"),
    ] {
        let fields = request("POST", "/x", &[("content-length", length)]);
        cases.h2(18, format!("h2-cl-{name}"), fields, Some("hello"), Reset);
    }
    for (name, other) in [("differ", "6"), ("same", "5")] {
        let fields = request("POST", "/x", &[("content-length", "5"), ("content-length", other)]);
        // The h2 library looks at the first.
        let want = if name == "same" { Kept(400) } else { Reset };
        cases.h2(18, format!("h2-cl-dup-{name}"), fields, Some("hello"), want);
    }
    cases.h2(18, "h2-cl-end-stream", request("POST", "/x", &[("content-length", "5")]), None, Reset);
    cases.h2(18, "h2-cl-get-end-stream", request("GET", "/x", &[("content-length", "5")]), None, Reset);
    for (name, value) in [("chunked", "chunked"), ("identity", "identity"), ("empty", "")] {
        let fields = request("POST", "/x", &[("transfer-encoding", value)]);
        cases.h2(19, format!("h2-te-{name}"), fields, Some("0\r\n\r\n"), Reset);
    }
    let fields = request("POST", "/x", &[("content-length", "5"), ("transfer-encoding", "chunked")]);
    cases.h2(19, "h2-te-cl", fields, Some("0\r\n\r\n"), Reset);
}

fn fields(cases: &mut Cases) {
    for (name, value, want) in [
        ("crlf", "a\r\nb: c", Gone),
        ("lf", "a\nb", Gone),
        ("cr", "a\rb", Gone),
        ("nul", "a\0b", Gone),
        ("escape", "\u{1b}[31m", Gone),
        ("del", "a\u{7f}b", Gone),
        ("crlf-end", "a\r\n", Gone),
        ("space-first", " a", passed(saw("GET /x").with("x", "a"))),
        ("space-end", "a ", passed(saw("GET /x").with("x", "a"))),
        ("tab-end", "a\t", passed(saw("GET /x").with("x", "a"))),
    ] {
        cases.h2(20, format!("h2-value-{name}"), request("GET", "/x", &[("x", value)]), None, want);
    }
    for (name, field) in [
        ("colon", "a:"),
        ("colon-inside", "a:b"),
        ("crlf", "a\r\nb"),
        ("crlf-field", "a: b\r\nc"),
        ("space", "a b"),
        ("space-end", "a "),
        ("upper", "Abc"),
        ("nul", "a\0"),
        ("high", "\u{e9}"),
        ("paren", "a("),
        ("empty", ""),
    ] {
        cases.h2(20, format!("h2-name-{name}"), request("GET", "/x", &[(field, "v")]), None, Gone);
    }
    for (name, field, value) in [
        ("te-gzip", "te", "gzip"),
        ("te-trailers-more", "te", "trailers, gzip"),
        ("connection", "connection", "x"),
        ("connection-close", "connection", "close"),
        ("keep-alive", "keep-alive", "timeout=5"),
        ("proxy-connection", "proxy-connection", "x"),
        ("upgrade", "upgrade", "h2c"),
        ("upgrade-websocket", "upgrade", "websocket"),
    ] {
        cases.h2(21, format!("h2-conn-{name}"), request("GET", "/x", &[(field, value)]), None, Reset);
    }
    cases.h2(21, "h2-te-trailers", request("GET", "/x", &[("te", "trailers")]), None, passed(saw("GET /x")));
    cases.h2(7, "h2-expect-obf", request("GET", "/x", &[("expect", "y")]), None, Kept(417));
    cases.h2(7, "h2-expect", request("GET", "/x", &[("expect", "100-continue")]), None, passed(saw("GET /x")));
    let crumbs = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")];
    let seen = saw("GET /x").with("cookie", "a=1; b=2; c=3").with("x", "y");
    cases.h2(25, "h2-cookie-crumbs", request("GET", "/x", &crumbs), None, passed(seen));
    for name in
        ["x-forwarded-for", "x-real-ip", "forwarded", "x-forwarded-host", "x_forwarded_for", "a.b", "x-original-url"]
    {
        let row = if name.contains(['_', '.']) { 39 } else { 38 };
        cases.h2(
            row,
            format!("h2-claim-{name}"),
            request("GET", "/x", &[(name, "6.6.6.6")]),
            None,
            passed(saw("GET /x")),
        );
    }
    for name in ["keep-alive", "x-secret"] {
        // Nothing of HTTP/2 names fields of this hop.
        let fields = request("GET", "/x", &[("x-connection", name), ("x-secret", "1")]);
        let seen = saw("GET /x").with("x-connection", name).with("x-secret", "1");
        cases.h2(36, format!("h2-conn-named-{name}"), fields, None, passed(seen));
    }
    for name in ["proxy-authorization", "proxy-authenticate", "trailer", "http2-settings"] {
        cases.h2(37, format!("h2-hop-{name}"), request("GET", "/x", &[(name, "x")]), None, passed(saw("GET /x")));
    }
    cases.h2(61, "h2-hdr-101", request("GET", "/x", &[("a", "b"); 101]), None, Kept(431));
    let long = "b".repeat(20_000);
    cases.h2(61, "h2-hdr-40k", request("GET", "/x", &[("a", &long), ("b", &long)]), None, Kept(431));
}

fn pseudo(cases: &mut Cases) {
    for (name, value, want) in [
        ("crlf", "GET /evil HTTP/1.1\r\nHost: x", Gone),
        ("empty", "", Gone),
        ("space", "GE T", Gone),
        ("nul", "GET\0", Gone),
        ("trace", "TRACE", Kept(405)),
        ("track", "TRACK", Kept(405)),
        ("33", "MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMM", Kept(400)),
    ] {
        cases.h2(20, format!("h2-method-{name}"), with(":method", Some(value)), None, want);
    }
    for (name, value, want) in [
        ("crlf", "/x HTTP/1.1\r\nX: y", Reset),
        ("empty", "", Reset),
        ("relative", "x", Reset),
        ("space", "/a b", Reset),
        ("star", "*", Kept(400)),
        ("nul", "/a\0", Reset),
        // The h2 library cuts a fragment off before anybody sees it: what is routed is what is passed on.
        ("fragment", "/x#b", passed(saw("GET /x"))),
        ("absolute", "http://b.test/", Reset),
        ("escape", "/..", Kept(400)),
        ("escape-encoded", "/%2e%2e/", Kept(400)),
        ("backslash", "/a\\b", Kept(400)),
        ("slash", "/admin/..%2fws", Kept(400)),
        ("rule", "/y/../%61dmin/x", Kept(403)),
    ] {
        cases.h2(20, format!("h2-path-{name}"), with(":path", Some(value)), None, want);
    }
    for (name, value, want) in [
        ("ftp", "ftp", Kept(400)),
        ("space", "h ttp", Reset),
        ("url", "https://a.test/x?", Reset),
        ("crlf", "https\r\nX: y", Reset),
        ("empty", "", Kept(400)),
    ] {
        cases.h2(20, format!("h2-scheme-{name}"), with(":scheme", Some(value)), None, want);
    }
    cases.h2(20, "h2-scheme-http", with(":scheme", Some("http")), None, passed(saw("GET /x")));
    for name in [":method", ":scheme", ":path"] {
        cases.h2(22, format!("h2-no-{}", &name[1..]), with(name, None), None, Reset);
    }
    cases.h2(22, "h2-no-authority", with(":authority", None), None, Kept(400));
    let mut fields = with(":authority", None);
    fields.extend(owned(&[("host", "a.test")]));
    cases.h2(22, "h2-no-authority-host", fields, None, passed(saw("GET /x")));
    for name in [":method", ":scheme", ":path", ":authority"] {
        let value = with(name, Some("/x")).iter().find(|field| field.0 == name).map(|field| field.1.clone());
        let fields = request("GET", "/x", &[(name, value.as_deref().unwrap_or_default())]);
        let want = || if name == ":method" { Gone } else { Reset };
        cases.h2(22, format!("h2-dup-{}", &name[1..]), fields.clone(), None, want());
        let mut first = fields;
        let last = first.pop().expect("it was added");
        first.insert(0, last);
        cases.h2(22, format!("h2-dup-first-{}", &name[1..]), first, None, want());
        let mut late = with(name, None);
        late.extend(owned(&[("x", "y"), (name, if name == ":path" { "/x" } else { "GET" })]));
        cases.h2(22, format!("h2-late-{}", &name[1..]), late, None, Reset);
    }
    for name in [":unknown", ":status", ":", ":Path"] {
        let mut fields = request("GET", "/x", &[]);
        fields.insert(0, (name.to_owned(), "200".to_owned()));
        let want = if name == ":status" { Reset } else { Gone };
        cases.h2(22, format!("h2-pseudo-{}", &name[1..]), fields, None, want);
    }
}

fn authorities(cases: &mut Cases) {
    for (name, value, want) in [
        ("crlf", "a.test\r\nX: y", Reset),
        ("userinfo", "evil@a.test", Kept(400)),
        ("path", "a.test/x", Reset),
        ("empty", "", Reset),
        ("port", "a.test:99999", Kept(400)),
        ("port-empty", "a.test:", Kept(400)),
        ("comma", "a.test,b.test", Kept(400)),
        ("space", "a.test b", Reset),
        ("nul", "a.test\0", Reset),
        ("percent", "a%2etest", Reset),
        ("unknown", "other.test", Kept(421)),
    ] {
        cases.h2(23, format!("h2-auth-{name}"), with(":authority", Some(value)), None, want);
    }
    cases.h2(43, "h2-auth-sni", with(":authority", Some("b.test")), None, Kept(421));
    cases.h2(23, "h2-host-differs", request("GET", "/x", &[("host", "b.test")]), None, Kept(400));
    cases.h2(23, "h2-host-port-differs", request("GET", "/x", &[("host", "a.test:8443")]), None, Kept(400));
    cases.h2(23, "h2-host-twice", request("GET", "/x", &[("host", "a.test"), ("host", "a.test")]), None, Kept(400));
    cases.h2(23, "h2-host-same", request("GET", "/x", &[("host", "A.test")]), None, passed(saw("GET /x")));
    let seen = saw("GET /x").authority("a.test:8443", "8443");
    cases.h2(23, "h2-auth-ok-port", with(":authority", Some("A.TEST.:8443")), None, passed(seen));
}

fn connects(cases: &mut Cases) {
    let extended = |path: &str, protocol: &str| {
        let mut fields = request("CONNECT", path, &[]);
        fields.insert(1, (":protocol".to_owned(), protocol.to_owned()));
        fields
    };
    cases.h2(24, "h2-connect", owned(&[(":method", "CONNECT"), (":authority", "a.test:443")]), None, Kept(405));
    cases.h2(24, "h2-connect-path", request("CONNECT", "/x", &[]), None, Reset);
    for (name, protocol) in [
        ("unknown", "unknown"),
        ("udp", "connect-udp"),
        ("websocket2", "websocket2"),
        ("space", " websocket"),
        ("list", "websocket, h2c"),
        ("empty", ""),
        ("h2c", "h2c"),
    ] {
        cases.h2(24, format!("h2-ext-connect-{name}"), extended("/no-socket", protocol), None, Kept(501));
    }
    for missing in [":path", ":scheme", ":authority"] {
        let mut fields = extended("/no-socket", "websocket");
        fields.retain(|field| field.0 != missing);
        let want = if missing == ":authority" { Kept(400) } else { Reset };
        cases.h2(24, format!("h2-ext-connect-no-{}", &missing[1..]), fields, None, want);
    }
    for (name, value, want) in [
        (":path", "no-socket", Reset),
        (":path", "*", Kept(400)),
        (":path", "/no-socket/..", Kept(404)),
        (":scheme", "wss", Kept(400)),
        (":authority", "evil@a.test", Kept(400)),
        (":authority", "other.test", Kept(421)),
        (":method", "GET", Reset),
        (":method", "POST", Reset),
    ] {
        let mut fields = extended("/no-socket", "websocket");
        fields.iter_mut().filter(|field| field.0 == name).for_each(|field| field.1 = value.to_owned());
        cases.h2(24, format!("h2-ext-connect-{}-{value}", &name[1..]), fields, None, want);
    }
    for (name, value, want) in [
        (":protocol", "websocket", Reset),
        ("sec-websocket-version", "8", Kept(400)),
        // hyper takes it for a CONNECT with a body, and gives up.
        ("content-length", "5", Gone),
        ("transfer-encoding", "chunked", Reset),
        ("upgrade", "websocket", Reset),
        ("connection", "upgrade", Reset),
        ("host", "b.test", Kept(400)),
    ] {
        let mut fields = extended("/no-socket", "websocket");
        fields.push((name.to_owned(), value.to_owned()));
        cases.h2(24, format!("h2-ext-connect-with-{}", name.trim_start_matches(':')), fields, Some("hello"), want);
    }
    // Where no sockets go there is nothing to fall back to.
    cases.h2(24, "h2-ext-connect-web-route", extended("/x", "websocket"), None, Kept(404));
    cases.h2(24, "h2-ext-connect-file", extended("/files/a.txt", "websocket"), None, Kept(404));
}

fn bodies(cases: &mut Cases) {
    let seen = || saw("POST /x").length("hello");
    cases.h2(18, "h2-cl-right", request("POST", "/x", &[("content-length", "5")]), Some("hello"), passed(seen()));
    cases.h2(18, "h2-cl-zeros", request("POST", "/x", &[("content-length", "005")]), Some("hello"), passed(seen()));
    cases.h2(18, "h2-no-cl", request("POST", "/x", &[]), Some("hello"), passed(saw("POST /x").chunked("hello")));
    cases.h2(6, "h2-body-on-get", request("GET", "/x", &[]), Some("hello"), passed(saw("GET /x").chunked("hello")));
    let smuggled = "0\r\n\r\nGET /evil HTTP/1.1\r\nHost: a.test\r\n\r\n";
    cases.h2(
        18,
        "h2-body-of-chunks",
        request("POST", "/x", &[]),
        Some(smuggled),
        passed(saw("POST /x").chunked(smuggled)),
    );
    let mut trailers = |name: &str, trailers: &[(&str, &str)], want: Verdict| {
        let sent = Sent::H2 {
            fields: request("POST", "/x", &[]),
            body: Some(b"hello".to_vec()),
            trailers: Some(owned(trailers)),
        };
        cases.0.push(Case { row: 22, name: format!("h2-trailer-{name}"), sent, want });
    };
    let dropped = || passed(saw("POST /x").chunked("hello"));
    trailers("plain", &[("x-sum", "1")], dropped());
    trailers("claims", &[("host", "evil.test"), ("content-length", "50"), ("x-forwarded-for", "6")], dropped());
    // The h2 library takes these out without a word; trailers go nowhere.
    trailers("pseudo", &[(":path", "/evil")], dropped());
    trailers("crlf", &[("x", "a\r\nb")], Gone);
}
