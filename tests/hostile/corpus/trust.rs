//! Fields that carry trust, and fields that end at this hop (rows 30, 31, 36 to 39).

use crate::corpus::case::{Cases, get, post, saw};

/// Who claims to be somebody else, or elsewhere.
const CLAIMS: [(&str, &str); 24] = [
    ("X-Forwarded-For", "6.6.6.6"),
    ("x-forwarded-for", "127.0.0.1"),
    ("X-FORWARDED-FOR", "6.6.6.6, 127.0.0.1"),
    ("X-Real-IP", "6.6.6.6"),
    ("Forwarded", "for=6.6.6.6;proto=http;host=evil.test"),
    ("X-Forwarded-Proto", "http"),
    ("X-Forwarded-Host", "evil.test"),
    ("X-Forwarded-Port", "80"),
    ("X-Forwarded-Prefix", "/evil"),
    ("X-Forwarded-Server", "evil.test"),
    ("X-Forwarded-Ssl", "on"),
    ("X-Forwarded-Scheme", "http"),
    ("X-Forwarded-User", "admin"),
    ("X-Forwarded-Tls-Client-Cert", "x"),
    ("X-Forwarded", "for=6.6.6.6"),
    ("X-Client-IP", "6.6.6.6"),
    ("Client-IP", "6.6.6.6"),
    ("True-Client-IP", "6.6.6.6"),
    ("CF-Connecting-IP", "6.6.6.6"),
    ("X-Cluster-Client-IP", "6.6.6.6"),
    ("Front-End-Https", "on"),
    ("X-Original-Host", "evil.test"),
    ("X-Host", "evil.test"),
    ("X-Url-Scheme", "http"),
];

pub fn cases() -> Cases {
    let mut cases = Cases::default();
    for name in ["X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "Host", "Content-Length", "X-Secret"] {
        let fields = format!("X-Secret: 1\r\nConnection: {name}\r\nContent-Length: 5\r\n");
        let seen = saw("POST /x").length("hello");
        let seen = if name == "X-Secret" { seen } else { seen.with("x-secret", "1") };
        cases.passed(36, format!("conn-strip-{}", name.to_ascii_lowercase()), &post(&fields, "hello"), seen);
    }
    for (name, value) in [
        ("several", "keep-alive, X-Secret, X-Other"),
        ("odd-list", " ,,x-secret ,\t, X-OTHER,"),
        ("not-token", "X-Secret, \"x\", X Y, X-Other"),
    ] {
        let fields = format!("Connection: {value}\r\nX-Secret: 1\r\nX-Other: 2\r\nX-Kept: 3\r\n");
        cases.passed(36, format!("conn-strip-{name}"), &get(&fields), saw("GET /x").with("x-kept", "3"));
    }
    let two = "Connection: X-Secret\r\nConnection: X-Other\r\nX-Secret: 1\r\nX-Other: 2\r\n";
    cases.passed(36, "conn-strip-two-lines", &get(two), saw("GET /x"));
    let coded = "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n";
    cases.passed(
        36,
        "conn-strip-transfer-encoding",
        &post(coded, "5\r\nhello\r\n0\r\n\r\n"),
        saw("POST /x").chunked("hello"),
    );
    for (name, value) in [
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("TE", "gzip, chunked"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("Proxy-Authenticate", "Basic"),
        ("Trailer", "X-Sum"),
        ("Upgrade", "h2c"),
        ("Upgrade", "TLS/1.0"),
        ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
    ] {
        let label = value.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        let label = format!("hop-{}-{label}", name.to_ascii_lowercase());
        cases.passed(37, label, &get(&format!("{name}: {value}\r\n")), saw("GET /x"));
    }
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    cases.passed(30, "up-h2c", &get(h2c), saw("GET /x"));
    let both = h2c.replace("h2c", "websocket, h2c");
    cases.passed(30, "up-h2c-ws", &get(&both), saw("GET /x"));
    let handshake = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    cases.passed(31, "ws-on-web-route", &get(handshake), saw("GET /x"));
    let raw = post(&format!("{handshake}Content-Length: 5\r\n"), "hello");
    cases.passed(31, "ws-post-cl", &raw, saw("POST /x").length("hello"));
    cases.passed(31, "ws-noconn", &get(&handshake.replace("Connection: Upgrade\r\n", "")), saw("GET /x"));
    for (number, (name, value)) in CLAIMS.into_iter().enumerate() {
        let label = format!("claim-{number}-{}", name.to_ascii_lowercase());
        cases.passed(38, label, &get(&format!("{name}: {value}\r\n")), saw("GET /x"));
    }
    for (row, name, value) in
        [(40, "Proxy", "http://evil.test"), (59, "X-Original-URL", "/admin/x"), (59, "X-Rewrite-URL", "/admin/x")]
    {
        let label = format!("never-{}", name.to_ascii_lowercase());
        cases.passed(row, label, &get(&format!("{name}: {value}\r\n")), saw("GET /x"));
    }
    let lines = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\n";
    cases.passed(38, "claim-xff-two-lines", &get(lines), saw("GET /x"));
    for (number, name) in [
        "X_Forwarded_For",
        "X-Forwarded_For",
        "X.Forwarded.For",
        "Host_",
        "Remote_User",
        "A.B",
        "a!b",
        "a~b",
        "a`b",
        "a|b",
    ]
    .into_iter()
    .enumerate()
    {
        cases.passed(39, format!("twin-{number}"), &get(&format!("{name}: 6\r\n")), saw("GET /x"));
    }
    let raw = get("Cookie: a=1\r\nCookie: b=2\r\nCookie: c=3; d=4\r\n");
    cases.passed(25, "cookie-lines", &raw, saw("GET /x").with("cookie", "a=1; b=2; c=3; d=4"));
    let raw = get("Accept: a\r\nX: 1\r\naccept: b\r\nX: 2\r\n");
    let seen = saw("GET /x").with("accept", "a").with("accept", "b").with("x", "1").with("x", "2");
    cases.passed(37, "lists-keep-their-order", &raw, seen);
    cases
}
