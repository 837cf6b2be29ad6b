//! How sockets end: a side at a time, all at once, with a reset; and what a reload and a stop make of odd ones.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::SockRef;

use super::silent::{back_end, vanish};
use super::*;
use crate::edge::{Edge, send};
use crate::tls_client;

const LAST_WORDS: usize = 1 << 20;

/// Says its last words on `/socket/first`, ends its side, and reads on; on `/socket/last` it does so once the client has
/// ended. On `/socket/cut` it resets, on `/socket/wait` it reads until the end. What it read and how that ended is told.
fn ending() -> (Script, mpsc::Receiver<(usize, bool)>) {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let back_end = Script::start(move |asked| {
        asked.say(asked.yes());
        let path = asked.path().to_owned();
        if path == "/socket/first" {
            asked.say(vec![b'w'; LAST_WORDS]);
            asked.stream.shutdown(Shutdown::Write).expect("a socket");
        }
        let mut rest = Vec::new();
        if path == "/socket/cut" {
            asked.stream.read_exact(&mut [0; 6]).expect("a word");
            SockRef::from(&*asked.stream).set_linger(Some(Duration::ZERO)).expect("a socket");
            return false;
        }
        let whole = asked.stream.read_to_end(&mut rest).is_ok();
        tell.lock().expect("not poisoned").send((rest.len(), whole)).expect("the test listens");
        if path == "/socket/last" {
            asked.say(vec![b'w'; LAST_WORDS]);
        }
        false
    });
    (back_end, told)
}

#[test]
fn a_side_that_has_ended_hears_the_last_words_of_the_other() {
    let (back_end, told) = ending();
    let edge = Edge::start(back_end.address, "");
    let said = vec![b'c'; LAST_WORDS];
    for path in ["/socket/last", "/socket/first"] {
        let mut stream = open(&edge, path);
        let mut heard = Vec::new();
        if path == "/socket/first" {
            stream.read_to_end(&mut heard).expect("last words and an end");
        }
        stream.write_all(&said).expect("the edge reads");
        stream.shutdown(Shutdown::Write).expect("a socket");
        assert_eq!(told.recv_timeout(DEADLINE).expect("told"), (LAST_WORDS, true), "{path}");
        stream.read_to_end(&mut heard).expect("last words and an end");
        assert_eq!(heard.len(), LAST_WORDS, "{path}");
    }
    // Over TLS an end is a close_notify, and a FIN without one is an end as well.
    for notify in [true, false] {
        let mut stream = tls_client::connect(edge.https, "a.test", &[]);
        stream.write_all(handshake("/socket/last").as_bytes()).expect("the edge reads");
        assert!(read_head(&mut stream).starts_with("HTTP/1.1 101 "));
        stream.write_all(&said).expect("the edge reads");
        if notify {
            stream.conn.send_close_notify();
        }
        stream.flush().expect("the edge reads");
        stream.sock.shutdown(Shutdown::Write).expect("a socket");
        assert_eq!(told.recv_timeout(DEADLINE).expect("told"), (LAST_WORDS, true), "close_notify: {notify}");
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).expect("last words and a close_notify");
        assert_eq!(heard.len(), LAST_WORDS, "close_notify: {notify}");
    }
    eventually("all is closed", || back_end.open() == 0);
}

#[test]
fn a_reset_of_one_side_is_the_end_of_the_other_at_once() {
    let (back_end, told) = ending();
    let edge = Edge::start(back_end.address, "");
    let begun = Instant::now();
    let stream = open(&edge, "/socket/wait");
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
    drop(stream);
    told.recv_timeout(DEADLINE).expect("the back end hears of it");
    let mut stream = open(&edge, "/socket/cut");
    stream.write_all(&frame(0x81, b"")).expect("the edge reads");
    // An end or a reset, but not silence.
    let _ = stream
        .read_to_end(&mut Vec::new())
        .map_err(|error| assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    eventually("both are closed", || back_end.open() == 0);
}

/// One of each kind that may be in nobody's way.
struct Odd {
    silent: TcpStream,
    _others: Vec<TcpStream>,
}

/// Sockets that take nothing, vanished, ended a side, stopped within a frame or a head, and one that is silent.
fn odd_ones(edge: &Edge) -> Odd {
    let silent = open(edge, "/socket/silent");
    let zombie = open(edge, "/socket/flood");
    let vanished = [open(edge, "/socket/ticks"), open(edge, "/socket/flood")];
    vanished.iter().for_each(vanish);
    let half = open(edge, "/socket/ticks");
    half.shutdown(Shutdown::Write).expect("a socket");
    let mut within_a_header = open(edge, "/socket/x");
    within_a_header.write_all(&[0x82]).expect("the edge reads");
    let mut within_a_frame = open(edge, "/socket/x");
    within_a_frame.write_all(&frame(0x82, &[7; 1000])[..500]).expect("the edge reads");
    let mut opaque = open(edge, "/socket/x");
    opaque.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("the edge reads");
    let mut unasked = edge.connect();
    send(&mut unasked, b"GET /socket/x HTTP/1.1\r\nHost: a.test\r\nUpgrade: webso");
    let [gone, flooded] = vanished;
    Odd { silent, _others: vec![zombie, gone, flooded, half, within_a_header, within_a_frame, opaque, unasked] }
}

#[test]
fn a_reload_touches_no_socket_however_odd() {
    let back_end = back_end();
    let edge = Edge::start(back_end.address, "");
    let mut odd = odd_ones(&edge);
    eventually("all are open", || back_end.open() == 8);
    for _ in 0..3 {
        edge.signal(Signal::HUP);
        edge.wait_for("reloaded");
        echoes(&mut odd.silent, b"still here");
    }
    assert_eq!(back_end.open(), 8);
    echoes(&mut open(&edge, "/socket/x"), b"hello");
}

#[test]
fn a_stop_ends_every_socket_within_the_grace_however_odd() {
    let back_end = back_end();
    let mut edge = Edge::start(back_end.address, "");
    let mut odd = odd_ones(&edge);
    eventually("all are open", || back_end.open() == 8);
    edge.signal(Signal::TERM);
    let begun = Instant::now();
    let mut close = [0; 4];
    odd.silent.read_exact(&mut close).expect("a goodbye");
    assert_eq!(close, [0x88, 2, 0x03, 0xe9]);
    odd.silent.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]).expect("the edge reads");
    assert!(edge.process.wait().expect("it ends").success());
    // `shutdown_grace` is 5 s, and a second or two are for the answers of those that were told last.
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    eventually("all are closed", || back_end.open() == 0);
}
