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
fn what_cannot_become_a_request_is_refused_before_it_ends() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[timeouts]\nheader = \"60s\"");
    let hello = crate::tls::first_flight("a.test", &[b"h2"]);
    for (raw, expected) in [
        (&b"GET /x\r\n"[..], 400),
        (b"GET /x HTTP/1.1\rHost: a.test\r\r", 400),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 400),
        (b"GET /x HTTP/3.0\r\n", 505),
        (b"GET /x HTTP/1.1\r\nHost: a.test\r\nX: \0", 400),
        (&hello, 400),
    ] {
        let mut stream = connect(edge.http);
        send(&mut stream, raw);
        assert_eq!(statuses(&read_to_end(&mut stream)), [expected], "{:?}", String::from_utf8_lossy(raw));
    }
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
