//! HTTP/1.1, byte for byte. Each case is followed by a second request on the same connection: it is answered where the
//! first was understood, and never seen where the framing is in doubt.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::back_end::BackEnd;
use crate::edge::{DEADLINE, Edge, connect, eventually, read_to_end, send};

const CANARY: &str = "GET /canary HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
const HANDSHAKE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn get(fields: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{body}")
}

fn line(line: &str) -> String {
    format!("{line}\r\nHost: a.test\r\n\r\n")
}

fn host(host: &str) -> String {
    format!("GET /x HTTP/1.1\r\n{host}\r\n")
}

fn chunks(body: &str) -> String {
    post(CHUNKED, body)
}

fn statuses(answers: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answers);
    text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

/// Sends `raw` and the canary; gives the statuses of the answers and the request lines that the back end saw.
fn exchange(edge: &Edge, back_end: &BackEnd, raw: &str) -> (Vec<u16>, Vec<String>) {
    back_end.take();
    let mut stream = edge.connect();
    // One byte for each character: a case can have any byte below 256.
    let bytes: Vec<u8> =
        format!("{raw}{CANARY}").chars().map(|c| u8::try_from(u32::from(c)).expect("a byte")).collect();
    send(&mut stream, &bytes);
    let answers = read_to_end(&mut stream);
    let seen = back_end.take().iter().map(|seen| seen.head.lines().next().unwrap_or_default().to_owned()).collect();
    (statuses(&answers), seen)
}

/// What must be refused, with the status; the connection closes and the back end sees nothing.
fn refused() -> Vec<(u16, String)> {
    let mut cases: Vec<(u16, String)> = Vec::new();
    let mut bad = |status: u16, raw: String| cases.push((status, raw));
    bad(400, post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"));
    bad(400, post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"));
    for coding in [
        ",chunked",
        "chunked,",
        "\u{b}chunked",
        "chunked\0",
        "\"chunked\"",
        "chunked;a",
        "chunked, chunked",
        "chunked, gzip",
        "",
        "chunk\u{e9}d",
    ] {
        bad(400, post(&format!("Transfer-Encoding: {coding}\r\n"), "0\r\n\r\n"));
    }
    for coding in ["xchunked", "identity", "identity, chunked", "gzip, chunked"] {
        bad(501, post(&format!("Transfer-Encoding: {coding}\r\n"), "0\r\n\r\n"));
    }
    for fields in [
        ":protocol: websocket\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
        "Transfer\0-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    ] {
        bad(400, post(fields, "0\r\n\r\n"));
    }
    bad(400, "POST /x HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned());
    for length in
        ["+5", "-5", "0x5", "5_0", "5, 6", "5, 5", "", "18446744073709551616", "\u{b}5", "5\0", "\"5\"", "5 5", "1e1"]
    {
        bad(400, post(&format!("Content-Length: {length}\r\n"), "hello"));
    }
    bad(400, post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"));
    bad(400, post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"));
    for body in [
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5\r\r;\r\nhello\r\n0\r\n\r\n",
        "5;a=\"x\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n",
        "+5\r\nhello\r\n",
        "5_0\r\nhello",
        "5 \r\nhello\r\n",
        " 5\r\nhello\r\n",
        "FFFFFFFFFFFFFFFE\r\nhello\r\n",
        "5these\r\nhello",
        "\r\nhello",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "5\nhello\r\n",
        "0\n\n",
        "0\r\n\n",
        "0\r\nbad line\r\n\r\n",
        "0\r\nx: y\n\r\n",
        "0\r\n x: fold\r\n\r\n",
        "0\r\n\0: y\r\n\r\n",
    ] {
        bad(400, chunks(body));
    }
    bad(400, chunks(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(20_000))));
    bad(431, chunks(&format!("0\r\n{}\r\n", "a: b\r\n".repeat(5000))));
    bad(400, get("").replace("\r\n", "\n"));
    bad(400, "GET /x HTTP/1.1\r\nHost: a.test\r\n\n".to_owned());
    bad(400, "GET /x HTTP/1.1\rHost: a.test\r\n\r\n".to_owned());
    for fields in [
        "X: a\r\n b\r\n",
        "X: a\r\n\tb\r\n",
        "no colon\r\n",
        ": v\r\n",
        "a b: v\r\n",
        "a(: v\r\n",
        "a\0: v\r\n",
        "a\u{e9}: v\r\n",
        "a : v\r\n",
        "X: a\0b\r\n",
        "X: \u{1b}[31m\r\n",
        "X: a\rb\r\n",
    ] {
        bad(400, get(fields));
    }
    for text in [
        "GET  /x HTTP/1.1",
        "GET\t/x HTTP/1.1",
        "GET /x HTTP/1.1 ",
        " GET /x HTTP/1.1",
        "GET /x y HTTP/1.1",
        "GET /x",
        "GET /x\0 HTTP/1.1",
        "GET /x#f HTTP/1.1",
        "GET /x HTTP/1.10",
        "GET /x http/1.1",
        "GET @evil HTTP/1.1",
    ] {
        bad(400, line(text));
    }
    bad(505, line("GET /x HTTP/2.0"));
    bad(505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned());
    bad(405, line("CONNECT a.test:443 HTTP/1.1"));
    bad(400, line(&format!("{} /x HTTP/1.1", "A".repeat(33))));
    for fields in ["", "Host: a.test\r\nHost: a.test\r\n", "Host: a.test\r\nHost: b.test\r\n", "Host : a.test\r\n"] {
        bad(400, host(fields));
    }
    bad(414, line(&format!("GET /{} HTTP/1.1", "a".repeat(9000))));
    bad(414, line(&format!("GET /{} HTTP/1.1", "a".repeat(65_536))));
    bad(431, get(&"a: b\r\n".repeat(100)));
    bad(431, get(&format!("a: {}\r\n", "b".repeat(40_000))));
    cases
}

#[test]
fn what_two_readers_could_read_differently_is_refused_and_the_connection_closes() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    for (status, raw) in refused() {
        let shown: String = raw.chars().take(120).collect();
        assert_eq!(exchange(&edge, &back_end, &raw), (vec![status], vec![]), "{shown:?}");
    }
}

#[test]
fn a_refusal_that_leaves_no_doubt_about_the_framing_keeps_the_connection() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut cases = vec![
        (417, post("Expect: y 100-continue\r\nContent-Length: 5\r\n", "hello")),
        (405, line("TRACE /x HTTP/1.1")),
        (405, line("TRACK /x HTTP/1.1")),
        (404, host("Host: other.test\r\n")),
    ];
    for target in ["/%00", "/%zz", "/a%0ab", "/a\\b", "/a%5cb", "/a%2fb", "/../x", "/%2e%2e/x"] {
        cases.push((400, line(&format!("GET {target} HTTP/1.1"))));
    }
    for target in ["x", "up.test:443", "ftp://a.test/", "http://u@a.test/", "*", "http://a.test:99999/"] {
        cases.push((400, line(&format!("GET {target} HTTP/1.1"))));
    }
    for name in
        ["", "a.test,b.test", "u@a.test", "a.test:99999", "a.test:x", "a.test/x", "\"a.test\"", "a..test", "[::1"]
    {
        cases.push((400, host(&format!("Host: {name}\r\n"))));
    }
    for (status, raw) in cases {
        let (answers, seen) = exchange(&edge, &back_end, &raw);
        assert_eq!(answers.first(), Some(&status), "{raw:?}");
        assert!(seen.iter().all(|seen| seen.starts_with("GET /canary ")), "{raw:?}: {seen:?}");
        // hyper may close where it finds the target odd; what it may not do is pass it on.
        assert!(answers.len() == 1 || answers[1] == 200, "{raw:?}: {answers:?}");
    }
}

#[test]
fn odd_but_clear_requests_keep_their_bodies_and_their_order() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    for (raw, body) in [
        (get("Content-Length: 5\r\n").to_owned() + "hello", "hello"),
        (get(CHUNKED) + "5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        (line("DELETE /x HTTP/1.1").replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"), "hello"),
        (post("Content-Length: 00005\r\n", "hello"), "hello"),
        (chunks("000005;a=b;c=\"d\"\r\nhello\r\n00;x\r\n\r\n"), "5\r\nhello\r\n0\r\n\r\n"),
        (chunks("5\r\nhello\r\n0\r\nHost: evil\r\nContent-Length: 5\r\n\r\n"), "5\r\nhello\r\n0\r\n\r\n"),
        ("\r\n".to_owned() + &get(""), ""),
        (line("GET http://a.test/x HTTP/1.1"), ""),
        (host("Host: A.TEST.\r\n"), ""),
        (get(&"a: b\r\n".repeat(99)), ""),
        // Not a handshake, or not where sockets go: a plain request.
        (get(HANDSHAKE), ""),
        (get("Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), ""),
        (post(&format!("{HANDSHAKE}Content-Length: 5\r\n"), "hello"), "hello"),
        (get("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"), ""),
    ] {
        back_end.take();
        let mut stream = edge.connect();
        send(&mut stream, format!("{raw}{CANARY}").as_bytes());
        assert_eq!(statuses(&read_to_end(&mut stream)), [200, 200], "{raw:?}");
        let seen = back_end.take();
        assert_eq!(seen.len(), 2, "{raw:?}");
        assert_eq!(seen[0].body, body, "{raw:?}");
        let head = seen[0].head.to_ascii_lowercase();
        assert!(head.split(' ').nth(1) == Some("/x"), "{head}");
        assert!(!head.contains("upgrade") && !head.contains("http2-settings") && !head.contains("sec-web"), "{head}");
        assert!(head.matches("content-length:").count() + head.matches("transfer-encoding:").count() <= 1, "{head}");
    }
}

#[test]
fn what_only_this_hop_or_a_trusted_proxy_may_say_does_not_arrive() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let fields = "Connection: X-Secret, X-Forwarded-For, Host, Content-Length\r\nX-Secret: 666\r\nX-Forwarded-For: 666\r\n\
                  X-Real-IP: 666\r\nForwarded: for=666\r\nX_Forwarded_For: 666\r\nX.Forwarded: 666\r\nProxy: 666\r\n\
                  TE: trailers\r\nX-Original-URL: /666\r\nTrailer: x666\r\nKeep-Alive: 666\r\nX-Forwarded-Prefix: /666\r\n\
                  Proxy-Authorization: 666\r\nCookie: a=1\r\nCookie: b=2\r\nContent-Length: 5\r\n";
    let (answers, _) = exchange(&edge, &back_end, "");
    assert_eq!(answers, [200]);
    let mut stream = edge.connect();
    send(&mut stream, (post(fields, "hello") + CANARY).as_bytes());
    assert_eq!(statuses(&read_to_end(&mut stream)), [200, 200]);
    let seen = back_end.take();
    let head = seen[0].head.to_ascii_lowercase();
    assert!(!head.contains("666") && !head.contains("te:") && !head.contains("\r\nconnection:"), "{head}");
    for line in ["cookie: a=1; b=2", "host: a.test", "content-length: 5", "x-forwarded-for: 127.0.0.1"] {
        assert_eq!(head.lines().filter(|seen| *seen == line).count(), 1, "{line}: {head}");
    }
    assert_eq!(seen[0].body, "hello");
}

#[test]
fn pipelined_requests_are_answered_in_order_around_a_refused_handshake_and_garbage() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let handshake = get(HANDSHAKE).replace("/x", "/no-socket");
    assert_eq!(exchange(&edge, &back_end, &format!("{handshake}{}", get(""))).0, [403, 200, 200]);
    let (answers, seen) = exchange(&edge, &back_end, &format!("{}\x16\x03\x01 garbage\r\n\r\n", get("")));
    assert_eq!((answers, seen.len()), (vec![200, 400], 1));
    // Nobody reads these bodies; what stands behind them is a request only if they were well framed.
    let moved = |body: &str| post(CHUNKED, body).replace("/x", "/moved/x");
    assert_eq!(exchange(&edge, &back_end, &moved("5\r\nhelloXX")).0, [301]);
    let files = post(CHUNKED, "5\r\nhelloXX").replace("/x", "/files/a.txt");
    assert_eq!(exchange(&edge, &back_end, &files), (vec![405], vec![]));
}

#[test]
fn a_broken_answer_is_a_502_or_visibly_cut() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let ask = |path: &str| {
        let mut stream = edge.connect();
        send(&mut stream, format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").as_bytes());
        String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned()
    };
    for path in ["/both", "/two-lengths", "/nul", "/gzip-coding", "/unasked", "/garbage", "/nothing"] {
        assert!(ask(path).starts_with("HTTP/1.1 502 "), "{path}: {}", ask(path));
    }
    let cut = ask("/cut-length");
    assert!(cut.contains("content-length: 10\r\n") && cut.ends_with("\r\n\r\nshort"), "{cut}");
    let cut = ask("/cut-chunks");
    assert!(cut.starts_with("HTTP/1.1 200 ") && cut.ends_with("5\r\nhello\r\n"), "{cut}");
    let old = ask("/old");
    assert!(old.starts_with("HTTP/1.1 200 ") && old.ends_with("\r\n0\r\n\r\n"), "the client can tell its end: {old}");
    assert!(ask("/hints").ends_with("ok"));
    let none = ask("/no-content");
    assert!(none.starts_with("HTTP/1.1 204 ") && !none.contains("content-length"), "{none}");
    for _ in 0..2 {
        let leftover = ask("/leftover");
        assert!(leftover.ends_with("\r\n\r\nok"), "{leftover}");
    }
}

#[test]
fn an_upload_that_is_refused_early_is_read_on_so_that_the_answer_arrives() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut stream = edge.connect();
    stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
    stream.write_all(post("Content-Length: 8000000\r\n", "").as_bytes()).expect("the head goes out");
    // The answer is out long before the last of this: a reset would break these writes.
    for _ in 0..125 {
        stream.write_all(&[b'x'; 64_000]).expect("the edge still reads");
    }
    assert_eq!(statuses(&read_to_end(&mut stream)), [413]);
    assert!(back_end.take().is_empty());
}

#[test]
fn slow_clients_and_slow_back_ends_meet_their_deadlines() {
    let back_end = BackEnd::start();
    let all =
        "[timeouts]\nheader = \"1s\"\nbody = \"1s\"\nkeepalive = \"2s\"\nwrite = \"1s\"\nread = \"1s\"\nsend = \"1s\"";
    let edge = Edge::start(back_end.address, all);
    for (raw, expected) in [
        (String::new(), vec![]),
        ("GET / HT".to_owned(), vec![408]),
        (post("Content-Length: 10\r\n", "ab"), vec![408]),
        (post(CHUNKED, "5\r\nab"), vec![408]),
        (get("") + "GET /", vec![200, 408]),
        (get(""), vec![200]),
        (get("Upgrade: websocket\r\n"), vec![200]),
        (get("").replace("/x", "/silent"), vec![504]),
        (post("Content-Length: 10\r\n", "ab").replace("/x", "/moved/x"), vec![301]),
    ] {
        let begun = Instant::now();
        let mut stream = edge.connect();
        send(&mut stream, raw.as_bytes());
        assert_eq!(statuses(&read_to_end(&mut stream)), expected, "{raw:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{raw:?} took {:?}", begun.elapsed());
    }
    eventually("no connection to the back end is left", || back_end.open() == 0);
    let mut slow = connect(edge.http);
    send(&mut slow, get("").replace("/x", "/endless").as_bytes());
    eventually("the back end is asked", || !back_end.take().is_empty());
    eventually("a client that takes nothing lets go of the back end", || back_end.open() == 0);
}
