//! What back ends answer wrongly (row 46): the client gets a 502 or can see that the answer is cut, and never waits.

use std::net::SocketAddr;
use std::sync::OnceLock;

use crate::corpus::client::{self, Answer};
use crate::corpus::record::{Act, Recorder, Request};
use crate::edge::{Edge, eventually, send};
use crate::h2_client::{self, Client, End};

/// What the client gets.
#[derive(Debug, Clone, Copy)]
enum Want {
    Bad,
    /// The head and so much of the body; then it can see that this is not all.
    Cut(&'static str),
    Whole(u16, &'static str),
}

use Want::{Bad, Cut, Whole};

/// One answer, and whether the back end closes behind it.
struct Form {
    name: &'static str,
    method: &'static str,
    parts: Vec<Vec<u8>>,
    stay: bool,
    want: Want,
}

const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL";

fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    let mut add = |name, text: &str, want| {
        let parts = vec![text.as_bytes().to_vec()];
        forms.push(Form { name, method: "GET", parts, stay: false, want });
    };
    let ok = |fields: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}");
    let start = |start: &str| format!("{start}\r\nContent-Length: 2\r\n\r\nok");
    let chunked = |body: &str| ok("Transfer-Encoding: chunked\r\n", body);
    let empty = "0\r\n\r\n";

    add("cl-te", &ok("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", empty), Bad);
    add("te-cl", &ok("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", empty), Bad);
    add("cl-differ", &ok("Content-Length: 2\r\nContent-Length: 3\r\n", "ok!"), Bad);
    add("cl-list-differ", &ok("Content-Length: 2, 3\r\n", "ok!"), Bad);
    add("cl-plus", &ok("Content-Length: +2\r\n", "ok"), Bad);
    add("cl-minus", &ok("Content-Length: -2\r\n", "ok"), Bad);
    add("cl-hex", &ok("Content-Length: 0x2\r\n", "ok"), Bad);
    add("cl-empty", &ok("Content-Length:\r\n", "ok"), Bad);
    add("cl-overflow", &ok("Content-Length: 18446744073709551618\r\n", "ok"), Bad);
    add("cl-same", &ok("Content-Length: 2\r\nContent-Length: 2\r\n", "ok"), Whole(200, "ok"));
    add("te-gzip", &ok("Transfer-Encoding: gzip\r\n", "ok"), Bad);
    add("te-gzip-chunked", &ok("Transfer-Encoding: gzip, chunked\r\n", empty), Bad);
    add("te-chunked-twice", &ok("Transfer-Encoding: chunked, chunked\r\n", empty), Bad);
    add("te-two-fields", &ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", empty), Bad);
    add("te-identity", &ok("Transfer-Encoding: identity\r\n", "ok"), Bad);
    add("te-http10", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", Bad);
    add("nul-value", &ok("X: a\0b\r\nContent-Length: 2\r\n", "ok"), Bad);
    add("nul-name", &ok("X\0: a\r\nContent-Length: 2\r\n", "ok"), Bad);
    add("cr-value", &ok("X: a\rb\r\nContent-Length: 2\r\n", "ok"), Bad);
    add("control-value", &ok("X: a\u{1}b\r\nContent-Length: 2\r\n", "ok"), Bad);
    add("no-colon", &ok("nonsense\r\nContent-Length: 2\r\n", "ok"), Bad);
    add("name-empty", &ok(": x\r\nContent-Length: 2\r\n", "ok"), Bad);
    add("name-space", &ok("Content-Length : 2\r\n", "ok"), Bad);
    add("fold", &ok("X: a\r\n b\r\nContent-Length: 2\r\n", "ok"), Bad);
    add("status-099", &start("HTTP/1.1 099 Odd"), Bad);
    add("status-99", &start("HTTP/1.1 99 Odd"), Bad);
    add("status-1000", &start("HTTP/1.1 1000 Odd"), Bad);
    add("status-letters", &start("HTTP/1.1 2x0 Odd"), Bad);
    add("status-none", &start("HTTP/1.1 OK"), Bad);
    add("status-000", &start("HTTP/1.1 000 Odd"), Bad);
    add("version-20", &start("HTTP/2.0 200 OK"), Bad);
    add("version-lower", &start("http/1.1 200 OK"), Bad);
    add("version-icy", &start("ICY 200 OK"), Bad);
    add("reason-none", &start("HTTP/1.1 200"), Whole(200, "ok"));
    add("http09", "hello", Bad);
    add("garbage", "\u{16}\u{3}\u{1} garbage\r\n\r\n", Bad);
    add("plain-text-first", &format!("warning: x\r\n{}", ok("Content-Length: 2\r\n", "ok")), Bad);
    add("nothing", "", Bad);
    add("empty-lines", "\r\n\r\n\r\n", Bad);
    add("cut-in-status", "HTTP/1.1 200", Bad);
    add("cut-in-head", "HTTP/1.1 200 OK\r\nContent-Le", Bad);
    add("cut-before-body", &ok("Content-Length: 5\r\n", ""), Cut(""));
    add("cut-length", &ok("Content-Length: 10\r\n", "short"), Cut("short"));
    add("cut-chunk", &chunked("a\r\nshort"), Cut("short"));
    add("cut-behind-chunk", &chunked("5\r\nhello\r\n"), Cut("hello"));
    add("cut-last-chunk", &chunked("5\r\nhello\r\n0\r\n"), Cut("hello"));
    add("chunk-hex", &chunked("5\r\nhello\r\n0x5\r\nEVIL!\r\n0\r\n\r\n"), Cut("hello"));
    add("chunk-minus", &chunked("5\r\nhello\r\n-5\r\nEVIL!\r\n0\r\n\r\n"), Cut("hello"));
    add("chunk-overflow", &chunked("5\r\nhello\r\n10000000000000005\r\nEVIL!\r\n0\r\n\r\n"), Cut("hello"));
    add("chunk-longer", &chunked("5\r\nhelloXX\r\n0\r\n\r\n"), Cut("hello"));
    add("chunk-lf", &chunked("5\r\nhello\n0\r\n\r\n"), Cut("hello"));
    add("chunk-extension", &chunked("5;a=b\r\nhello\r\n0\r\n\r\n"), Whole(200, "hello"));
    add("trailers", &chunked("5\r\nhello\r\n0\r\nSet-Cookie: a=1\r\nContent-Length: 9\r\n\r\n"), Whole(200, "hello"));
    add("to-the-end-10", "HTTP/1.0 200 OK\r\n\r\nhello", Whole(200, "hello"));
    add("to-the-end-11", &ok("", "hello"), Whole(200, "hello"));
    add("101-unasked", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", Bad);
    add("100-only", "HTTP/1.1 100 Continue\r\n\r\n", Bad);
    add("100-flood", &"HTTP/1.1 100 Continue\r\n\r\n".repeat(100_000), Bad);
    add("103-flood", &"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(50_000), Bad);
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(3);
    add("103-then", &format!("{hints}{}", ok("Content-Length: 2\r\n", "ok")), Whole(200, "ok"));
    add("head-4m", &ok(&format!("X: {}\r\nContent-Length: 2\r\n", "x".repeat(4 << 20)), "ok"), Bad);
    add("fields-10000", &ok(&("X: y\r\n".repeat(10_000) + "Content-Length: 2\r\n"), "ok"), Bad);
    add("204-with-body", "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nEVIL", Whole(204, ""));
    add(
        "204-with-chunks",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nEVIL\r\n0\r\n\r\n",
        Whole(204, ""),
    );
    let mut more = |name, method, parts: &[&str], want| {
        let parts = parts.iter().map(|part| part.as_bytes().to_vec()).collect();
        forms.push(Form { name, method, parts, stay: true, want });
    };
    let two = ok("Content-Length: 2\r\n", "ok");
    more("leftover", "GET", &[&format!("{two}{EVIL}")], Whole(200, "ok"));
    more("leftover-late", "GET", &[&two, EVIL], Whole(200, "ok"));
    more("leftover-chunked", "GET", &[&format!("{}{EVIL}", chunked("2\r\nok\r\n0\r\n\r\n"))], Whole(200, "ok"));
    more("leftover-chunked-late", "GET", &[&chunked("2\r\nok\r\n0\r\n\r\n"), EVIL], Whole(200, "ok"));
    more("leftover-half", "GET", &[&format!("{two}HTTP/1.1 2")], Whole(200, "ok"));
    more("longer-than-said", "GET", &[&format!("{two}!!!")], Whole(200, "ok"));
    more("304-with-body", "GET", &["HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nEVIL"], Whole(304, ""));
    more("head-with-body", "HEAD", &[&ok("Content-Length: 4\r\n", "EVIL")], Whole(200, ""));
    more("head-with-body-late", "HEAD", &[&ok("Content-Length: 4\r\n", ""), "EVIL"], Whole(200, ""));
    more("head-cl-te", "HEAD", &[&ok("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "")], Bad);
    more("100-after", "GET", &[&two, "HTTP/1.1 100 Continue\r\n\r\n"], Whole(200, "ok"));
    forms
}

/// They are large: made once.
fn all() -> &'static [Form] {
    static FORMS: OnceLock<Vec<Form>> = OnceLock::new();
    FORMS.get_or_init(forms)
}

/// Heads of a 101 that do not answer the handshake of [`handshake`].
const SWITCHES: [(&str, &str); 7] = [
    (
        "to something else",
        "Upgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
    ),
    (
        "to two things",
        "Upgrade: websocket, h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
    ),
    ("to nothing", "Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
    ("with another key's answer", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n"),
    ("without an answer to the key", "Upgrade: websocket\r\nConnection: Upgrade\r\n"),
    ("with a NUL", "Upgrade: websocket\0\r\nConnection: Upgrade\r\n"),
    ("without fields", ""),
];

/// RFC 6455, section 1.3.
fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// `/socket/<number of the switch>`, `/<number of the form>`, or anything else for an ordinary answer.
fn script(request: &Request) -> Act {
    let number = request.path().trim_start_matches("/socket/").trim_start_matches('/').parse::<usize>();
    if request.path().starts_with("/socket/") {
        let (_, fields) = SWITCHES[number.expect("a number")];
        return Act::answer(format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\nEVIL"));
    }
    match number.ok().and_then(|number| all().get(number)) {
        Some(form) => Act { parts: form.parts.clone(), early: false, stay: form.stay },
        None => {
            let body = format!("own {}", request.path());
            Act::answer(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
        }
    }
}

fn over_http1(address: SocketAddr, method: &str, path: &str) -> Vec<Answer> {
    let mut stream = client::h1(address, "a.test");
    let raw = format!("{method} {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
    send(&mut stream, raw.as_bytes());
    client::answers(&client::read_all(&mut stream), method == "HEAD")
}

fn over_http2(address: SocketAddr, method: &str, path: &str) -> End {
    let mut client = Client::connect(address);
    client.ask(1, &h2_client::request(method, path, &[]), None);
    client.end(1)
}

#[test]
fn a_broken_answer_is_a_502_or_visibly_cut_and_never_the_next_clients() {
    let back_end = Recorder::scripted(script);
    let edge = Edge::start(back_end.address, "");
    let mut wrong = Vec::new();
    for (number, form) in all().iter().enumerate() {
        let path = format!("/{number}");
        let answers = over_http1(edge.https, form.method, &path);
        // What comes while the next request is under way cannot be told from its answer: nobody asks before it is there.
        eventually("the back end has said all", || back_end.is_done());
        if answers.is_empty() && matches!(form.want, Cut("")) {
            // Nothing but the head was to come, and it is not sent alone.
            continue;
        }
        let [answer] = answers.as_slice() else {
            wrong.push(format!("{}: {answers:?}", form.name));
            continue;
        };
        let good = match form.want {
            Bad => answer.status == 502 && answer.whole,
            Cut(body) => answer.status == 200 && !answer.whole && answer.body == body,
            Whole(status, body) => answer.status == status && answer.whole && answer.body == body,
        };
        if !good || answer.body.contains("EVIL") {
            wrong.push(format!("{}: want {:?}, got {answer:?}", form.name, form.want));
        }
        let end = over_http2(edge.https, form.method, &path);
        eventually("the back end has said all", || back_end.is_done());
        let good = match form.want {
            Bad => matches!(end, End::Answer(502, _)),
            Cut(body) => matches!(end, End::Reset(length) if length <= body.len()),
            Whole(status, body) => end == End::Answer(status, body.len()),
        };
        if !good {
            wrong.push(format!("{} over HTTP/2: want {:?}, got {end:?}", form.name, form.want));
        }
        // Whatever is left of it, the next client gets its own.
        let canary = over_http1(edge.https, "GET", &format!("/canary-{number}"));
        if canary.len() != 1 || !canary[0].whole || canary[0].body != format!("own /canary-{number}") {
            wrong.push(format!("behind {}: {canary:?}", form.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(back_end.faults(), Vec::<String>::new());
}

#[test]
fn a_101_that_does_not_answer_the_handshake_is_a_502_and_opens_nothing() {
    let back_end = Recorder::scripted(script);
    let edge = Edge::start(back_end.address, "");
    for (number, (what, _)) in SWITCHES.iter().enumerate() {
        let mut stream = client::h1(edge.https, "a.test");
        send(&mut stream, handshake(&format!("/socket/{number}")).as_bytes());
        send(&mut stream, client::CANARY);
        let answers = client::answers(&client::read_all(&mut stream), false);
        let got: Vec<(u16, bool)> = answers.iter().map(|answer| (answer.status, answer.whole)).collect();
        assert!(matches!(got.as_slice(), [(502, true), (200, true)] | [(502, true)]), "{what}: {answers:?}");
        assert!(answers.iter().all(|answer| !answer.body.contains("EVIL")), "{what}: {answers:?}");
        let seen = back_end.take();
        let sockets: Vec<usize> = seen.iter().filter(|s| s.request.path() != "/canary").map(|s| s.connection).collect();
        let shared = seen.iter().any(|s| s.request.path() == "/canary" && sockets.contains(&s.connection));
        assert!(sockets.len() == 1 && !shared, "{what}: {seen:?}");
    }
    assert_eq!(back_end.faults(), Vec::<String>::new());
}
