//! Requests that two readers could read in two ways: 400, and the connection ends.

use crate::backend;
use crate::harness::{BackEnd, Proxy, Raw, World, status};

/// Each answers 400 (501 where the coding is unknown) and ends the connection; nothing reaches the back end.
#[test]
fn ambiguous_requests_are_refused_and_the_connection_ends() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), "http = \"serve\""));
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n";
    let host = "Host: app.test\r\n";
    let cases = [
        ("bare LF ends lines", format!("GET / HTTP/1.1\nHost: app.test\n\n{smuggled}")),
        ("bare LF ends one line", format!("GET / HTTP/1.1\r\nHost: app.test\nX: 1\r\n\r\n{smuggled}")),
        ("bare LF ends the head", format!("GET / HTTP/1.1\r\n{host}\n{smuggled}")),
        ("bare CR in a value", format!("GET / HTTP/1.1\r\n{host}X: a\rb\r\n\r\n")),
        ("NUL in a value", format!("GET / HTTP/1.1\r\n{host}X: a\0b\r\n\r\n")),
        (
            "Content-Length beside Transfer-Encoding",
            format!(
                "POST / HTTP/1.1\r\n{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
            ),
        ),
        (
            "Transfer-Encoding beside Content-Length",
            format!(
                "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{smuggled}"
            ),
        ),
        ("two lengths", format!("POST / HTTP/1.1\r\n{host}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello")),
        ("a list of lengths", format!("POST / HTTP/1.1\r\n{host}Content-Length: 5, 6\r\n\r\nhello")),
        ("a signed length", format!("POST / HTTP/1.1\r\n{host}Content-Length: +5\r\n\r\nhello")),
        ("an empty length", format!("POST / HTTP/1.1\r\n{host}Content-Length:\r\n\r\nhello")),
        ("a hexadecimal length", format!("POST / HTTP/1.1\r\n{host}Content-Length: 0x5\r\n\r\nhello")),
        ("a huge length", format!("POST / HTTP/1.1\r\n{host}Content-Length: 18446744073709551621\r\n\r\nhello")),
        ("xchunked", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n")),
        (
            "identity, chunked",
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n"),
        ),
        ("chunked twice", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n")),
        (
            "two coding fields",
            format!(
                "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        ("a comma before chunked", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n")),
        ("chunked with a parameter", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked;a\r\n\r\n0\r\n\r\n")),
        ("chunked before gzip", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n")),
        ("a vertical tab", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n")),
        ("space before the colon", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n")),
        ("a folded line", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n")),
        ("a line without colon", format!("GET / HTTP/1.1\r\n{host}nonsense\r\n\r\n")),
        ("an empty name", format!("GET / HTTP/1.1\r\n{host}: x\r\n\r\n")),
        ("coding in HTTP/1.0", format!("POST / HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("two hosts", "GET / HTTP/1.1\r\nHost: app.test\r\nHost: app.test\r\n\r\n".to_owned()),
        ("no host", "GET / HTTP/1.1\r\nX: 1\r\n\r\n".to_owned()),
        ("an empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned()),
        ("a list of hosts", "GET / HTTP/1.1\r\nHost: app.test, evil.test\r\n\r\n".to_owned()),
        ("a host with userinfo", "GET / HTTP/1.1\r\nHost: a@app.test\r\n\r\n".to_owned()),
        ("a host with a path", "GET / HTTP/1.1\r\nHost: app.test/x\r\n\r\n".to_owned()),
        ("a port over 65535", "GET / HTTP/1.1\r\nHost: app.test:99999\r\n\r\n".to_owned()),
        ("a relative target", format!("GET x HTTP/1.1\r\n{host}\r\n")),
        ("another scheme", format!("GET ftp://app.test/ HTTP/1.1\r\n{host}\r\n")),
        ("a fragment of another version", format!("GET / HTTP/1.1 x\r\n{host}\r\n")),
        ("two spaces", format!("GET  / HTTP/1.1\r\n{host}\r\n")),
        ("a tab between", format!("GET\t/ HTTP/1.1\r\n{host}\r\n")),
    ];
    refused(&world, &proxy, &backend, &cases);
}

#[test]
fn ambiguous_chunks_are_refused_and_the_connection_ends() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), "http = \"serve\""));
    let host = "Host: app.test\r\n";
    let cases = [
        (
            "a chunk size that is none",
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n"),
        ),
        (
            "a chunk line that ends in LF",
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"),
        ),
        (
            "a chunk that is longer than it says",
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"),
        ),
    ];
    refused(&world, &proxy, &backend, &cases);
}

/// Sends each to both kinds of listener and fails for those that are not answered once, with 400 or 501, and closed.
fn refused(world: &World, proxy: &Proxy, backend: &BackEnd, cases: &[(&str, String)]) {
    let mut wrong = Vec::new();
    for (what, bytes) in cases {
        for mut raw in [proxy.raw(world, "app.test"), Raw::plain(proxy.http())] {
            match raw.send(bytes).ended() {
                Ok(text) if matches!(status(&text), 400 | 501) && text.matches("HTTP/1.1 ").count() == 1 => {}
                Ok(text) => wrong.push(format!("{what}: {:?}", text.lines().next())),
                Err(text) => wrong.push(format!("{what}: still open after {:?}", text.lines().next())),
            }
        }
    }
    assert!(wrong.is_empty(), "not refused, or answered twice:\n{}", wrong.join("\n"));
    for seen in backend.seen() {
        // A body that turns out bad after its head was passed on may have been seen; a second request may not.
        assert!(seen.line().starts_with("POST / "), "reached the back end: {}", seen.head);
        assert!(!seen.head.contains("smuggled"));
    }
}

#[test]
fn decent_requests_in_unusual_dress_are_served() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    let cases = [
        ("absolute form", "GET https://app.test/x HTTP/1.1\r\nHost: app.test\r\n\r\n"),
        ("upper case host", "GET /x HTTP/1.1\r\nHost: APP.TEST\r\n\r\n"),
        ("no space after the colon", "GET /x HTTP/1.1\r\nHost:app.test\r\nX:1\r\n\r\n"),
        (
            "mixed case coding",
            "POST /x HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "a chunk extension",
            "POST /x HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
        ),
        ("a trailer", "POST /x HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\n"),
        ("a body on GET", "GET /x HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\n\r\nhello"),
    ];
    for (what, bytes) in cases {
        let mut raw = proxy.raw(&world, "app.test");
        let (status, head) = raw.send(bytes).head();
        assert_eq!(status, 200, "{what}: {head}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    let one = |path: &str, end: &str| format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n{end}\r\n");
    let text =
        proxy.raw(&world, "app.test").send(one("/1", "") + &one("/2", "") + &one("/3", "Connection: close\r\n")).rest();
    let paths: Vec<_> = backend.seen().iter().map(|seen| seen.line().to_owned()).collect();
    assert_eq!(paths, ["GET /1 HTTP/1.1", "GET /2 HTTP/1.1", "GET /3 HTTP/1.1"]);
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
}

#[test]
fn a_client_that_sends_its_bytes_one_by_one_is_served() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    let mut raw = proxy.raw(&world, "app.test");
    for byte in b"POST /x HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\n\r\nhello" {
        raw.send([*byte]);
    }
    assert_eq!(raw.head().0, 200);
    assert_eq!(backend.last().body, b"hello");
}
