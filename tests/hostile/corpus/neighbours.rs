//! Clients that share connections to a back end: what one of them breaks off, or a back end answers too early or too
//! much, never reaches another (rows 16 and 46).

use std::io::Read;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::corpus::client::{self, Answer};
use crate::corpus::record::{Act, Recorder, Request};
use crate::edge::{Edge, send};
use crate::h2_client::{self, Client, DATA, END_HEADERS, HEADERS, RESET, block, frame};
use crate::tls_client::Tls;

const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL";

/// By the path: an answer that is wrong somehow, or whose it is.
fn script(request: &Request) -> Act {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let no = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno";
    let early = |stay| Act { parts: vec![no.into()], early: true, stay };
    let parts = |parts: &[&str], stay| Act {
        parts: parts.iter().map(|part| part.as_bytes().to_vec()).collect(),
        early: false,
        stay,
    };
    match request.path() {
        "/early" => early(true),
        "/early-close" => early(false),
        "/leftover" => parts(&[&format!("{ok}{EVIL}")], true),
        "/interim" => parts(&["HTTP/1.1 100 Continue\r\n\r\n", ok], true),
        "/flood" => parts(&[&"HTTP/1.1 102 Processing\r\n\r\n".repeat(40_000)], true),
        "/cut" => parts(&["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"], false),
        "/head" => parts(&["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"], true),
        "/unchanged" => parts(&["HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nEVIL"], true),
        "/slow" => parts(&["HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n", "EV", "IL", "EV", "IL"], true),
        _ => {
            let body = format!("for {}", request.field("x-id").unwrap_or_default());
            Act::answer(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
        }
    }
}

/// A client that does it wrong.
type Dirty = fn(SocketAddr);

const DIRTY: [(&str, Dirty); 17] = [
    ("a body that is cut by its length", |at| leave(at, "POST /x", "Content-Length: 100\r\n", "ab")),
    ("a body that is cut in a chunk", |at| leave(at, "POST /x", "Transfer-Encoding: chunked\r\n", "a\r\nab")),
    ("a body that is cut between chunks", |at| leave(at, "POST /x", "Transfer-Encoding: chunked\r\n", "2\r\nab\r\n")),
    ("a body without its last chunk", |at| leave(at, "POST /x", "Transfer-Encoding: chunked\r\n", "2\r\nab\r\n0\r\n")),
    ("a chunk that is broken", |at| finish(at, "POST /x", "Transfer-Encoding: chunked\r\n", "2\r\nabXX")),
    ("an early answer to a body that is cut", |at| leave(at, "POST /early", "Content-Length: 9\r\n", "ab")),
    ("an early answer to a body that comes", |at| finish(at, "POST /early", "Content-Length: 9\r\n", "ab1234567")),
    ("an early answer to a request in a body", |at| {
        let inner = "GET /evil HTTP/1.1\r\nHost: a.test\r\n\r\n";
        finish(at, "POST /early", &format!("Content-Length: {}\r\n", inner.len()), inner);
    }),
    ("an early answer and a closed connection", |at| finish(at, "POST /early-close", "Content-Length: 9\r\n", "ab")),
    ("leftover bytes", |at| finish(at, "GET /leftover", "", "")),
    ("an interim answer", |at| finish(at, "GET /interim", "", "")),
    ("a flood of interim answers", |at| finish(at, "GET /flood", "", "")),
    ("an answer that is cut", |at| finish(at, "GET /cut", "", "")),
    ("a body behind the answer to a HEAD", |at| finish(at, "HEAD /head", "", "")),
    ("a body behind a 304", |at| finish(at, "GET /unchanged", "", "")),
    ("an answer that nobody waits for", |at| leave(at, "GET /slow", "", "")),
    ("streams that are reset", reset),
];

fn start(at: SocketAddr, line: &str, fields: &str, body: &str) -> Tls {
    let mut stream = client::h1(at, "a.test");
    send(&mut stream, format!("{line} HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{body}").as_bytes());
    stream
}

/// Sends, and goes as soon as it may have arrived.
fn leave(at: SocketAddr, line: &str, fields: &str, body: &str) {
    let stream = start(at, line, fields, body);
    std::thread::sleep(std::time::Duration::from_millis(10));
    drop(stream);
}

/// Sends, and reads one answer or the end.
fn finish(at: SocketAddr, line: &str, fields: &str, body: &str) {
    let mut stream = start(at, line, fields, body);
    read_one(&mut stream, line.starts_with("HEAD "));
}

/// Uploads and downloads over one connection, each given up in the middle.
fn reset(at: SocketAddr) {
    let mut client = Client::connect(at);
    for (stream, path) in [(1, "/x"), (3, "/early"), (5, "/slow"), (7, "/leftover")] {
        client.send(&frame(HEADERS, END_HEADERS, stream, &block(&h2_client::request("POST", path, &[]))));
        client.send(&frame(DATA, 0, stream, b"half of it"));
        client.send(&frame(RESET, 0, stream, &8u32.to_be_bytes()));
    }
    client.ask(9, &h2_client::request("GET", "/x", &[]), None);
    client.end(9);
}

/// One answer, or as much as came of it before the end.
fn read_one(stream: &mut impl Read, head: bool) -> Option<Answer> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 16384]);
    loop {
        let n = stream.read(&mut piece).unwrap_or(0);
        bytes.extend_from_slice(&piece[..n]);
        let answer = client::answers(&bytes, head).into_iter().next();
        if n == 0 || answer.as_ref().is_some_and(|answer| answer.whole) {
            return answer;
        }
    }
}

static IDS: AtomicUsize = AtomicUsize::new(0);

/// Asks honestly, with a body or without, and fails unless the answer is its own.
fn ask(stream: &mut Tls, behind: &str) {
    let id = IDS.fetch_add(1, Ordering::Relaxed);
    let body = format!("body of {id}");
    let raw = match id % 3 {
        0 => format!("POST /h HTTP/1.1\r\nHost: a.test\r\nX-Id: {id}\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        1 => format!(
            "POST /h HTTP/1.1\r\nHost: a.test\r\nX-Id: {id}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ),
        _ => format!("GET /h HTTP/1.1\r\nHost: a.test\r\nX-Id: {id}\r\n\r\n"),
    };
    send(stream, raw.as_bytes());
    let answer = read_one(stream, false);
    let own = answer.as_ref().is_some_and(|answer| answer.status == 200 && answer.body == format!("for {id}"));
    assert!(own, "behind {behind}: {answer:?} for {id}");
}

#[test]
fn what_one_client_breaks_never_reaches_another() {
    const ROUNDS: usize = 3;
    let back_end = Recorder::scripted(script);
    let edge = Edge::start(back_end.address, "");
    let (at, done, asked) = (edge.https, AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        // They are at it all the time, so that connections change hands in every order.
        for _ in 0..2 {
            scope.spawn(|| {
                let mut stream = client::h1(at, "a.test");
                while !done.load(Ordering::Relaxed) {
                    ask(&mut stream, "something");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let all = std::panic::catch_unwind(|| {
            let mut own = client::h1(at, "a.test");
            for (what, dirty) in DIRTY.iter().cycle().take(ROUNDS * DIRTY.len()) {
                ask(&mut own, what);
                dirty(at);
                ask(&mut own, what);
                ask(&mut client::h1(at, "a.test"), what);
            }
        });
        done.store(true, Ordering::Relaxed);
        all.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let (mut own, mut shared) = (0, 0);
    let seen = back_end.take();
    for seen_one in seen.iter().filter(|seen| seen.request.path() == "/h") {
        let id = seen_one.request.field("x-id").expect("an id").to_owned();
        let body =
            if id.parse::<usize>().expect("a number") % 3 == 2 { String::new() } else { format!("body of {id}") };
        assert!(seen_one.whole && seen_one.request.body == body, "{seen_one:?}");
        own += 1;
        let others = |other: &&crate::corpus::record::Seen| other.connection == seen_one.connection;
        shared += usize::from(seen.iter().filter(others).any(|other| other.request.path() != "/h"));
    }
    assert!(seen.iter().all(|seen| seen.request.path() != "/evil"), "a body was taken for a request");
    assert_eq!(own, IDS.load(Ordering::Relaxed));
    assert!(shared > 0, "no connection was ever shared");
    assert!(asked.load(Ordering::Relaxed) > 50, "{asked:?}");
    assert_eq!(back_end.faults(), Vec::<String>::new());
}
