//! Where a request ends: Content-Length, Transfer-Encoding, chunks, trailers (rows 1 to 11).

use crate::corpus::case::{CHUNKED, Cases, chunks, get, line, post, saw};

pub fn cases() -> Cases {
    let mut cases = Cases::default();
    codings(&mut cases);
    lengths(&mut cases);
    bodies(&mut cases);
    expectations(&mut cases);
    extensions(&mut cases);
    sizes(&mut cases);
    data(&mut cases);
    trailers(&mut cases);
    cases
}

fn codings(cases: &mut Cases) {
    let chunked = "Transfer-Encoding: chunked\r\n";
    cases.closed(1, "cl-te", 400, &post(&format!("Content-Length: 4\r\n{chunked}"), "0\r\n\r\n"));
    cases.closed(1, "te-cl", 400, &post(&format!("{chunked}Content-Length: 4\r\n"), "0\r\n\r\n"));
    cases.closed(1, "te-cl-0", 400, &post(&format!("{chunked}Content-Length: 0\r\n"), "0\r\n\r\n"));
    cases.closed(1, "te-cl-get", 400, &get(&format!("{chunked}Content-Length: 5\r\n")));
    // RFC 9112, section 6.1: an unknown coding is 501; what is no coding at all is 400.
    for (name, status, value) in [
        ("xchunked", 501, " xchunked"),
        ("identity", 501, " identity"),
        ("single-quoted", 501, " 'chunked'"),
        ("deflate", 501, " deflate"),
        ("gzip-chunked", 501, " gzip, chunked"),
        ("identity-chunked", 501, " identity, chunked"),
        ("compress-chunked", 501, " compress,chunked"),
        ("comma", 400, " ,chunked"),
        ("comma-end", 400, " chunked,"),
        ("vt", 400, " \u{b}chunked"),
        ("vt-end", 400, " chunked\u{b}"),
        ("ff", 400, " \u{c}chunked"),
        ("nul", 400, " chunked\0"),
        ("nbsp", 400, " \u{a0}chunked"),
        ("quoted", 400, " \"chunked\""),
        ("parameter", 400, " chunked;a"),
        ("quality", 400, " chunked;q=1"),
        ("space-inside", 400, " chun ked"),
        ("twice-by-space", 400, " chunked chunked"),
        ("dup-chunked", 400, " chunked, chunked"),
        ("chunked-gzip", 400, " chunked, gzip"),
        ("chunked-identity", 400, " chunked, identity"),
        ("empty", 400, ""),
        ("high", 400, " chunk\u{e9}d"),
        ("fold", 400, "\r\n chunked"),
        ("fold-tab", 400, "\r\n\tchunked"),
    ] {
        for (with, length) in [("te", ""), ("te-cl", "Content-Length: 5\r\n")] {
            let row = if name.contains("chunked") && name.contains('-') { 3 } else { 2 };
            let raw = post(&format!("{length}Transfer-Encoding:{value}\r\n"), "0\r\n\r\n");
            cases.closed(row, format!("{with}-{name}"), status, &raw);
        }
    }
    for (name, fields) in [
        ("te-cl-space-colon", "Content-Length: 5\r\nTransfer-Encoding : chunked\r\n"),
        ("te-cl-tab-colon", "Content-Length: 5\r\nTransfer-Encoding\t: chunked\r\n"),
        ("te-cl-indented", "Content-Length: 5\r\n Transfer-Encoding: chunked\r\n"),
        ("te-cl-behind-lf", "Content-Length: 5\r\nX: y\nTransfer-Encoding: chunked\r\n"),
        ("te-cl-behind-cr", "Content-Length: 5\r\nX: y\rTransfer-Encoding: chunked\r\n"),
        ("te-cl-name-nul", "Content-Length: 5\r\nTransfer\0-Encoding: chunked\r\n"),
        ("te-cl-name-high", "Content-Length: 5\r\nTransfer\u{ad}-Encoding: chunked\r\n"),
        ("te-cl-name-colon", "Content-Length: 5\r\n:Transfer-Encoding: chunked\r\n"),
        ("te-twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("te-then-identity", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        ("te-twice-case", "Transfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n"),
    ] {
        let row = if name.starts_with("te-t") { 3 } else { 2 };
        cases.closed(row, name, 400, &post(fields, "0\r\n\r\n"));
    }
    cases.closed(
        3,
        "te-identity-then",
        501,
        &post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "0"),
    );
    for (name, value) in
        [("te-upper", " CHUNKED"), ("te-tab", "\tchunked"), ("te-no-space", "chunked"), ("te-ows", "  chunked  ")]
    {
        let raw = post(&format!("Transfer-Encoding:{value}\r\n"), "5\r\nhello\r\n0\r\n\r\n");
        cases.passed(2, name, &raw, saw("POST /x").chunked("hello"));
    }
    let raw = post("Content_Length: 3\r\nContent-Length: 5\r\n", "hello");
    cases.passed(39, "cl-twin", &raw, saw("POST /x").length("hello"));
    cases.passed(
        39,
        "te-underscore",
        &post("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", "hello"),
        saw("POST /x").length("hello"),
    );

    let old = "POST /x HTTP/1.0\r\nHost: a.test\r\n";
    cases.closed(4, "te-http10", 400, &format!("{old}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"));
    cases.closed(4, "te-http10-keepalive", 400, &format!("{old}Connection: keep-alive\r\n{CHUNKED}\r\n0\r\n\r\n"));
    cases.closed(4, "te-cl-http10", 400, &format!("{old}Content-Length: 5\r\n{CHUNKED}\r\n0\r\n\r\n"));
    cases.last(4, "http10-closedelim", &format!("{old}\r\nhello"), saw("POST /x").length(""));
    cases.last(4, "http10-length", &format!("{old}Content-Length: 5\r\n\r\nhello"), saw("POST /x").length("hello"));
    let kept = format!("{old}Connection: keep-alive\r\nContent-Length: 5\r\n\r\nhello");
    cases.passed(4, "http10-keepalive", &kept, saw("POST /x").length("hello"));
}

fn lengths(cases: &mut Cases) {
    for (name, value) in [
        ("plus", " +5"),
        ("minus", " -5"),
        ("hex", " 0x5"),
        ("underscore", " 5_0"),
        ("list-differ", " 5, 6"),
        ("list-same", " 5, 5"),
        ("empty", ""),
        ("blank", " \t "),
        ("overflow", " 18446744073709551616"),
        ("overflow-5", " 18446744073709551621"),
        ("vt", " \u{b}5"),
        ("nul", " 5\0"),
        ("quoted", " \"5\""),
        ("two-words", " 5 5"),
        ("exponent", " 5e0"),
        ("point", " 5.0"),
        ("comma-end", " 5,"),
        ("semicolon", " 5;"),
        ("full-width", " \u{ef}\u{bc}\u{95}"),
        ("nbsp", " \u{a0}5"),
        ("fold", "\r\n 5"),
        ("fold-more", " 5\r\n 6"),
        ("letters", " five"),
        ("zeros", " 00000000000000000005"),
    ] {
        cases.closed(5, format!("cl-{name}"), 400, &post(&format!("Content-Length:{value}\r\n"), "hello"));
    }
    for (name, fields) in [
        ("cl-dup-differ", "Content-Length: 5\r\nContent-Length: 6\r\n"),
        ("cl-dup-same", "Content-Length: 5\r\nContent-Length: 5\r\n"),
        ("cl-dup-zero", "Content-Length: 0\r\nContent-Length: 5\r\n"),
        ("cl-dup-case", "content-length: 5\r\nCONTENT-LENGTH: 6\r\n"),
        ("cl-space-colon", "Content-Length : 5\r\n"),
        ("cl-behind-lf", "X: y\nContent-Length: 5\r\n"),
        ("cl-indented", " Content-Length: 5\r\n"),
    ] {
        cases.closed(5, name, 400, &post(fields, "hello"));
    }
    cases.passed(5, "cl-leading-zeros", &post("Content-Length: 00005\r\n", "hello"), saw("POST /x").length("hello"));
    cases.passed(5, "cl-ows", &post("Content-Length:\t5  \r\n", "hello"), saw("POST /x").length("hello"));
    cases.closed(5, "cl-too-long-to-read", 413, &post("Content-Length: 9223372036854775807\r\n", "hello"));
    // Nothing stands behind what was announced and did not come.
    cases.closed(16, "cl-short", 408, &post("Content-Length: 500\r\n", "hello"));
}

fn bodies(cases: &mut Cases) {
    let with =
        |method: &str, fields: &str, body: &str| format!("{method} /x HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{body}");
    for method in ["GET", "HEAD", "OPTIONS", "DELETE", "PROPFIND"] {
        let (name, start) = (method.to_ascii_lowercase(), format!("{method} /x"));
        let raw = with(method, "Content-Length: 5\r\n", "hello");
        cases.passed(6, format!("cl-on-{name}"), &raw, saw(&start).length("hello"));
        let raw = with(method, CHUNKED, "5\r\nhello\r\n0\r\n\r\n");
        cases.passed(6, format!("te-on-{name}"), &raw, saw(&start).chunked("hello"));
    }
    cases.passed(6, "cl-0-on-get", &get("Content-Length: 0\r\n"), saw("GET /x"));
    cases.passed(6, "te-empty-on-get", &(get(CHUNKED) + "0\r\n\r\n"), saw("GET /x").chunked(""));
    cases.passed(6, "post-without-body", &post("", ""), saw("POST /x").length(""));
    // What stands behind a body of no bytes is a request of its own, and answered as one.
    let inner = "GET /y HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let both = [saw("POST /x").length(""), saw("GET /y")];
    cases.several(7, "0cl", &post("Content-Length: 0\r\n", inner), &both);
    cases.several(7, "no-cl", &post("", inner), &both);
    let raw = post("Content-Length: 33\r\n", &format!("{inner:.33}"));
    cases.passed(7, "cl-holds-a-request", &raw, saw("POST /x").length(&inner[..33]));
    let three = ["/1", "/2", "/3"].map(|path| line(&format!("GET {path} HTTP/1.1"))).concat();
    cases.several(17, "pipeline-3", &three, &[saw("GET /1"), saw("GET /2"), saw("GET /3")]);
    let mixed = post("Content-Length: 5\r\n", "hello") + &chunks("5\r\nhello\r\n0\r\n\r\n") + &get("");
    let bodies = [saw("POST /x").length("hello"), saw("POST /x").chunked("hello"), saw("GET /x")];
    cases.several(17, "pipeline-bodies", &mixed, &bodies);
}

fn expectations(cases: &mut Cases) {
    let sent = |value: &str| post(&format!("Expect: {value}\r\nContent-Length: 5\r\n"), "hello");
    cases.passed(7, "expect", &sent("100-continue"), saw("POST /x").length("hello"));
    cases.passed(7, "expect-case", &sent("100-Continue"), saw("POST /x").length("hello"));
    cases.passed(7, "expect-get", &get("Expect: 100-continue\r\n"), saw("GET /x"));
    for (name, value) in [
        ("expect-obf", "y 100-continue"),
        ("expect-list", "100-continue, x"),
        ("expect-other", "200-ok"),
        ("expect-empty", ""),
    ] {
        cases.kept(7, name, 417, &sent(value));
    }
    cases.closed(7, "expect-fold", 400, &sent("\r\n 100-continue"));
}

fn extensions(cases: &mut Cases) {
    let rest = "\r\nhello\r\n0\r\n\r\n";
    for (name, extension) in [
        ("lf", ";a\nb"),
        ("lf-end", ";a\nhello"),
        ("cr", ";a\rb"),
        ("crcr", "\r\r;"),
        ("open-quote", ";a=\"x"),
        ("quoted-cr", ";a=\"\r\""),
        ("quoted-pair-end", ";a=\"\\\""),
        ("nul", ";a\0"),
        ("control", ";a\u{1}"),
        ("del", ";a\u{7f}"),
        ("space-before", " ;a"),
        ("no-semicolon", "a=b"),
    ] {
        cases.closed(8, format!("ext-{name}"), 400, &chunks(&format!("5{extension}{rest}")));
    }
    cases.closed(8, "ext-huge", 400, &chunks(&format!("5;{}{rest}", "a".repeat(300_000))));
    cases.closed(8, "ext-many", 400, &chunks(&("1;abcdefghi\r\nx\r\n".repeat(2000) + "0\r\n\r\n")));
    for (name, extension) in [("value", ";a=b"), ("quoted", ";c=\"d\\\"e;\""), ("bare", ";"), ("spaces", "; a = b")] {
        let raw = chunks(&format!("5{extension}{rest}"));
        cases.passed(8, format!("ext-ok-{name}"), &raw, saw("POST /x").chunked("hello"));
    }
    let raw = chunks("5\r\nhello\r\n0;last\r\n\r\n");
    cases.passed(8, "ext-ok-last", &raw, saw("POST /x").chunked("hello"));
}

fn sizes(cases: &mut Cases) {
    for (name, size) in [
        ("hex", "0x5"),
        ("plus", "+5"),
        ("minus", "-5"),
        ("underscore", "5_0"),
        ("space-before", " 5"),
        ("space-behind", "5 "),
        ("tab-before", "\t5"),
        ("vt", "\u{b}5"),
        ("nul", "5\0"),
        ("empty", ""),
        ("words", "5these"),
        ("point", "5.0"),
        ("full-width", "\u{ef}\u{bc}\u{95}"),
        ("f16", "FFFFFFFFFFFFFFFF"),
        ("f15e", "FFFFFFFFFFFFFFFE"),
        ("overflow", "10000000000000005"),
        ("zeros-16", "0000000000000005"),
    ] {
        cases.closed(9, format!("size-{name}"), 400, &chunks(&format!("{size}\r\nhello\r\n0\r\n\r\n")));
    }
    cases.passed(9, "size-zeros", &chunks("00005\r\nhello\r\n000\r\n\r\n"), saw("POST /x").chunked("hello"));
    let ten = "0123456789";
    cases.passed(9, "size-upper", &chunks(&format!("A\r\n{ten}\r\n0\r\n\r\n")), saw("POST /x").chunked(ten));
    cases.passed(9, "size-lower", &chunks(&format!("a\r\n{ten}\r\n0\r\n\r\n")), saw("POST /x").chunked(ten));
}

fn data(cases: &mut Cases) {
    for (name, body) in [
        ("data-lf", "5\r\nhello\n0\r\n\r\n"),
        ("data-cr", "5\r\nhello\r0\r\n\r\n"),
        ("data-xx", "5\r\nhelloXX0\r\n\r\n"),
        ("data-longer", "5\r\nhello!\r\n0\r\n\r\n"),
        ("data-shorter", "6\r\nhello\r\n0\r\n\r\n"),
        ("data-extra-crlf", "5\r\nhello\r\n\r\n0\r\n\r\n"),
        ("data-no-crlf", "5\r\nhello0\r\n\r\n"),
        ("size-lf", "5\nhello\r\n0\r\n\r\n"),
        ("size-cr", "5\rhello\r\n0\r\n\r\n"),
        ("last-lf", "0\n\n"),
        ("last-crlf-lf", "0\r\n\n"),
        ("last-lf-crlf", "0\n\r\n"),
        ("last-missing", "5\r\nhello\r\n"),
    ] {
        cases.closed(10, name, 400, &chunks(body));
    }
    // Answered first, as it is whole; then refused.
    cases.refused_behind(
        10,
        "extra-two-crlf",
        &chunks("5\r\nhello\r\n0\r\n\r\n\r\n\r\n"),
        saw("POST /x").chunked("hello"),
    );
    // RFC 9112, section 2.2: one empty line in front of a request line is ignored.
    cases.passed(10, "extra-crlf", &chunks("5\r\nhello\r\n0\r\n\r\n\r\n"), saw("POST /x").chunked("hello"));
}

fn trailers(cases: &mut Cases) {
    let with = |trailers: &str| chunks(&format!("5\r\nhello\r\n0\r\n{trailers}\r\n"));
    for (name, trailer) in [
        ("host", "Host: evil.test\r\n"),
        ("cl", "Content-Length: 50\r\n"),
        ("te", "Transfer-Encoding: chunked\r\n"),
        ("xff", "X-Forwarded-For: 6.6.6.6\r\n"),
        ("authorization", "Authorization: Basic eDp5\r\n"),
        ("cookie", "Cookie: admin=1\r\n"),
        ("connection", "Connection: close\r\n"),
        ("plain", "X-Sum: 1\r\n"),
        ("underscore", "X_Sum: 1\r\n"),
    ] {
        cases.passed(11, format!("trailer-{name}"), &with(trailer), saw("POST /x").chunked("hello"));
    }
    for (name, trailer) in [
        ("request-line", "GET /evil HTTP/1.1\r\n"),
        ("request-line-url", "GET http://a.test/ HTTP/1.1\r\n"),
        ("lf", "X: y\n"),
        ("lf-inside", "X: y\nZ: z\r\n"),
        ("cr-inside", "X: y\rZ: z\r\n"),
        ("fold", " x: fold\r\n"),
        ("fold-value", "X: y\r\n z\r\n"),
        ("nul", "X: \0\r\n"),
        ("name-nul", "\0: y\r\n"),
        ("name-empty", ": y\r\n"),
        ("space-colon", "X : y\r\n"),
    ] {
        cases.closed(11, format!("trailer-{name}"), 400, &with(trailer));
    }
    cases.closed(11, "trailer-5000", 431, &with(&"a: b\r\n".repeat(5000)));
    cases.closed(11, "trailer-16k", 431, &with(&format!("a: {}\r\n", "b".repeat(16_390))));
    cases.closed(8, "ext-16k", 400, &chunks(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(16_384))));
    let most = with(&"a: b\r\n".repeat(100));
    cases.passed(11, "trailer-100", &most, saw("POST /x").chunked("hello"));
    cases.closed(11, "trailer-101", 431, &with(&"a: b\r\n".repeat(101)));
    cases.closed(11, "trailer-huge", 431, &with(&format!("a: {}\r\n", "b".repeat(100_000))));
}
