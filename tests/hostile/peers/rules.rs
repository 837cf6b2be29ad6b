//! Frames that no client should send, and floods of those that it may: with rules, and without.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;
use crate::edge::Edge;

/// A site of its own for each set of rules, all with one back end.
fn sites(back_end: SocketAddr, rules: &[(&str, &str)]) -> String {
    let site = |(name, rules): &(&str, &str)| {
        format!(
            "[site.{name}]\nhosts = [\"{name}.test\"]\nhttp = \"serve\"\ntls = \"self-signed\"\nupstream = \"http://{back_end}\"\n\
             [site.{name}.websocket]\nto = \"http://{back_end}\"\npreset = \"any\"\n{rules}\n"
        )
    };
    rules.iter().map(site).collect()
}

fn open_at(edge: &Edge, site: &str, path: &str) -> TcpStream {
    open_with(edge, &handshake(path).replace("a.test", &format!("{site}.test")))
}

/// Keeps what came through each socket, by its path, and answers nothing.
fn recorder() -> (Script, mpsc::Receiver<(String, Vec<u8>)>) {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let back_end = Script::start(move |asked| {
        asked.say(asked.yes());
        let (path, rest) = (asked.path().to_owned(), asked.rest());
        let _ = tell.lock().expect("not poisoned").send((path, rest));
        false
    });
    (back_end, told)
}

/// The status of a masked Close frame.
fn read_close(frame: &[u8]) -> Option<u16> {
    let [0x88, 0x82, k0, k1, _, _, c1, c0] = frame else { return None };
    Some(u16::from_be_bytes([c1 ^ k0, c0 ^ k1]))
}

#[test]
fn frames_that_break_a_rule_or_the_protocol_never_reach_the_back_end() {
    let (back_end, told) = recorder();
    let edge = Edge::start(back_end.address, &sites(back_end.address, &[("size", "max_message = \"1KiB\"")]));
    let text = frame(0x81, b"hi");
    let begun = frame(0x01, &[b'x'; 600]);
    let header = |bytes: &[u8]| bytes.to_vec();
    // What is sent, how much of it goes on, and the status that both sides get.
    let cases: Vec<(&str, Vec<u8>, usize, u16)> = vec![
        ("reserved opcode", [&text[..], &frame(0x83, b"x")].concat(), text.len(), 1002),
        ("reserved control opcode", frame(0x8b, b""), 0, 1002),
        ("last opcode", frame(0x8f, b""), 0, 1002),
        ("fragmented ping", frame(0x09, b""), 0, 1002),
        ("long ping", header(&[0x89, 0xfe, 0, 126, 0, 0, 0, 0]), 0, 1002),
        ("continuation of nothing", frame(0x80, b"x"), 0, 1002),
        ("text within text", [&begun[..], &frame(0x81, b"x")].concat(), begun.len(), 1002),
        ("close with one byte", frame(0x88, b"x"), 0, 1002),
        ("2^63", header(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0, 1002),
        ("2^64 - 1", header(&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]), 0, 1002),
        ("2^63 - 1", header(&[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]), 0, 1009),
        ("oversize", frame(0x82, &[7; 1025]), 0, 1009),
        ("oversize without a mask", header(&[0x82, 126, 4, 1]), 0, 1009),
        ("oversize in fragments", [&begun[..], &frame(0x80, &[b'x'; 425])].concat(), begun.len(), 1009),
        (
            "oversize by lengths that add up to 0",
            {
                let wrap = [0x80, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
                [&begun[..], &wrap].concat()
            },
            begun.len(),
            1009,
        ),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_vec(), 0, 1002),
    ];
    let mut sockets = Vec::new();
    for (number, (_, bytes, ..)) in cases.iter().enumerate() {
        let mut stream = open_at(&edge, "size", &format!("/{number}"));
        stream.write_all(bytes).expect("the edge reads");
        sockets.push(stream);
    }
    for (mut stream, (what, _, _, code)) in sockets.into_iter().zip(&cases) {
        let mut close = [0; 4];
        stream.read_exact(&mut close).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(close, [0x88, 2, code.to_be_bytes()[0], code.to_be_bytes()[1]], "{what}");
    }
    let mut came: HashMap<String, Vec<u8>> = HashMap::new();
    while came.len() < cases.len() {
        came.extend([told.recv_timeout(DEADLINE).expect("each socket ends")]);
    }
    for (number, (what, bytes, passed, code)) in cases.iter().enumerate() {
        let got = &came[&format!("/{number}")];
        let (before, close) = got.split_at(got.len().saturating_sub(8));
        assert_eq!(read_close(close), Some(*code), "{what}: {got:x?}");
        assert!(before == &bytes[..*passed], "{what}: {before:x?}");
    }
}

#[test]
fn what_a_back_end_has_to_judge_reaches_it_as_it_is() {
    let back_end = Script::echo();
    let rules = "max_message = \"1KiB\"\nmessage_rate = \"1000/s\"";
    let edge = Edge::start(back_end.address, &sites(back_end.address, &[("both", rules)]));
    let huge = [0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    // Extensions have their bits, and a mask is for a server to ask for (RFC 6455, section 5.1).
    for bytes in [
        vec![0x81, 2, b'h', b'i'],
        frame(0xc1, b"deflated"),
        frame(0xf1, b"reserved"),
        vec![0x82, 0xfe, 0, 1, 0, 0, 0, 0, b'x'],
        frame(0x81, b"\xff\xfe no text"),
    ] {
        let mut stream = open_at(&edge, "both", "/x");
        stream.write_all(&bytes).expect("the edge reads");
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).expect("it comes back");
        assert_eq!(back, bytes);
    }
    // Without rules everything is.
    for bytes in [huge, frame(0x83, b"x"), b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0xff; 100_000]] {
        let mut stream = open(&edge, "/socket/x");
        stream.write_all(&bytes).expect("the edge reads");
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).expect("it comes back");
        assert!(back == bytes);
    }
}

#[test]
fn floods_of_pings_tiny_frames_and_fragments_are_closed_with_1008() {
    const FLOOD: usize = 20_000;
    let (back_end, told) = recorder();
    let edge = Edge::start(back_end.address, &sites(back_end.address, &[("rate", "message_rate = \"100/m\"")]));
    let floods = [
        ("/pings", vec![], frame(0x89, b"")),
        ("/pongs", vec![], frame(0x8a, b"12345678")),
        ("/texts", vec![], frame(0x81, b"x")),
        ("/empty-texts", vec![], frame(0x81, b"")),
        ("/fragments", frame(0x01, b"x"), frame(0x00, b"x")),
        ("/empty-fragments", frame(0x01, b""), frame(0x00, b"")),
        ("/without-a-mask", vec![], vec![0x89, 0]),
    ];
    for (path, first, flood) in &floods {
        let mut stream = open_at(&edge, "rate", path);
        let mut writer = stream.try_clone().expect("a second handle");
        let bytes = [first.clone(), flood.repeat(FLOOD)].concat();
        // The edge closes in the middle of it.
        let writing = std::thread::spawn(move || writer.write_all(&bytes));
        let mut close = [0; 4];
        stream.read_exact(&mut close).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(close, [0x88, 2, 0x03, 0xf0], "{path}");
        drop(stream);
        let _ = writing.join().expect("it ends");
        let (at, came) = told.recv_timeout(DEADLINE).expect("the socket ends");
        assert_eq!(at, *path);
        let (before, end) = came.split_at(came.len().saturating_sub(8));
        assert_eq!(read_close(end), Some(1008), "{path}");
        let frames = (before.len() - first.len()) / flood.len();
        assert!((95..=150).contains(&frames), "{path}: {frames} of {FLOOD} frames went on");
        assert!(before[first.len()..] == flood.repeat(frames), "{path}");
    }
}

#[test]
fn a_flood_that_no_rule_forbids_keeps_nobody_waiting() {
    let back_end = Script::echo();
    let edge = Edge::start(back_end.address, "");
    let mut neighbour = open(&edge, "/socket/neighbour");
    let mut stream = open(&edge, "/socket/flood");
    let flood = frame(0x89, b"").repeat(100_000);
    let (mut reader, length) = (stream.try_clone().expect("a second handle"), flood.len());
    let reading = std::thread::spawn(move || {
        let mut back = vec![0; length];
        reader.read_exact(&mut back).expect("all of it comes back");
        back
    });
    let sent = flood.clone();
    let writing = std::thread::spawn(move || stream.write_all(&sent));
    let mut slowest = Duration::ZERO;
    while !reading.is_finished() {
        let begun = Instant::now();
        echoes(&mut neighbour, b"still here");
        slowest = slowest.max(begun.elapsed());
    }
    writing.join().expect("it ends").expect("all is taken");
    assert!(reading.join().expect("it ends") == flood);
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

#[test]
fn a_foreign_page_opens_no_socket_and_where_nobody_asks_its_origin_is_passed_on() {
    let back_end = Script::echo();
    let edge = Edge::start(back_end.address, &sites(back_end.address, &[("own", "origins = [\"self\"]")]));
    let ask = |site: &str, origin: &str| {
        let mut stream = edge.connect();
        let fields = format!("Origin: {origin}\r\n");
        let raw = handshake_with("/socket/x", &fields).replace("a.test", &format!("{site}.test"));
        stream.write_all(raw.as_bytes()).expect("the edge reads");
        read_head(&mut stream)
    };
    // The page of this very port, as a browser names it.
    for foreign in ["https://evil.test", "http://own.test.evil.test", "https://own.test", "null", "http://own.test:1"] {
        let head = ask("own", foreign);
        assert!(head.starts_with("HTTP/1.1 403 "), "{foreign}: {head}");
    }
    assert!(back_end.take().is_empty(), "the back end was asked");
    assert!(ask("own", "http://own.test").starts_with("HTTP/1.1 101 "));
    back_end.take();
    assert!(ask("a", "https://evil.test").starts_with("HTTP/1.1 101 "));
    assert!(back_end.take()[0].contains("\r\norigin: https://evil.test\r\n"));
}
