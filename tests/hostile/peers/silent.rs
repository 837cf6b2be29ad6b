//! Peers that say nothing, take nothing, or are gone without a word. Each meets its limit, and nobody else waits for it.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use socket2::{SockFilter, SockRef};

use super::*;
use crate::edge::Edge;
use crate::machine::{is_full, not_run};
use crate::tls_client;

/// As if the machine at the other end had lost its power: nothing that is sent to this socket arrives, and nothing is
/// answered, not even by the kernel.
pub fn vanish(stream: &TcpStream) {
    // BPF_RET | BPF_K: so many bytes of each packet are taken.
    SockRef::from(stream).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).expect("a filter");
}

/// Sends a message without end on `/socket/flood`, never reads on `/socket/deaf`, sends a message each 50 ms on
/// `/socket/ticks`, sends back what it gets elsewhere.
pub fn back_end() -> Script {
    Script::start(|asked| {
        asked.say(asked.yes());
        match asked.path() {
            "/socket/flood" => {
                asked.say([0x82, 127, 0x7f, 0, 0, 0, 0, 0, 0, 0]);
                while asked.stream.write_all(&[0; 0x4000]).is_ok() {}
            }
            "/socket/deaf" => {
                let mut byte = [0];
                // Until the edge is gone: a peek takes nothing.
                while matches!(asked.stream.peek(&mut byte), Ok(1)) {
                    std::thread::sleep(Duration::from_millis(20));
                    if SockRef::from(&*asked.stream).take_error().is_ok_and(|error| error.is_some())
                        || asked.stream.write_all(b"\x89\x00").is_err()
                    {
                        return false;
                    }
                }
            }
            "/socket/ticks" => {
                while asked.stream.write_all(b"\x81\x04tick").is_ok() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            _ => {
                let mut bytes = [0; 0x4000];
                while let Ok(n @ 1..) = asked.stream.read(&mut bytes) {
                    asked.say(&bytes[..n]);
                }
            }
        }
        false
    })
}

const QUICK: &str = "[timeouts]\nwrite = \"1s\"\n[log]\naccess = \"stderr\"";

#[test]
fn a_client_that_takes_nothing_is_given_up_while_others_go_on() {
    let back_end = back_end();
    let edge = Edge::start(back_end.address, QUICK);
    let mut neighbour = open(&edge, "/socket/neighbour");
    let plain = open(&edge, "/socket/flood");
    let mut secured = tls_client::connect(edge.https, "a.test", &[]);
    secured.write_all(handshake("/socket/flood").as_bytes()).expect("the edge reads");
    assert!(read_head(&mut secured).starts_with("HTTP/1.1 101 "));
    for _ in 0..2 {
        edge.wait_for("ws=close");
        echoes(&mut neighbour, b"still here");
    }
    eventually("their back ends are let go", || back_end.open() == 1);
    echoes(&mut neighbour, b"still here");
    drop((plain, secured));
}

#[test]
fn a_back_end_that_takes_nothing_is_given_up_while_others_go_on() {
    let back_end = back_end();
    let edge = Edge::start(back_end.address, QUICK);
    let mut neighbour = open(&edge, "/socket/neighbour");
    let mut stream = open(&edge, "/socket/deaf");
    let mut writer = stream.try_clone().expect("a second handle");
    let writing = std::thread::spawn(move || {
        // A message of a gigabyte: far more than any kernel takes in.
        let _ = writer.write_all(&[0x82, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0]);
        while writer.write_all(&[0; 0x4000]).is_ok() {}
    });
    let mut sink = [0; 0x4000];
    let begun = Instant::now();
    while stream.read(&mut sink).is_ok_and(|n| n > 0) {
        assert!(begun.elapsed() < DEADLINE, "it is never given up");
        echoes(&mut neighbour, b"still here");
    }
    edge.wait_for("ws=close");
    writing.join().expect("it ends");
    echoes(&mut neighbour, b"still here");
}

#[test]
fn a_silent_socket_ends_with_1001_on_both_sides_and_its_neighbour_does_not() {
    let back_end = Script::echo();
    let extra = format!(
        "[site.b]\nhosts = [\"b.test\"]\nhttp = \"serve\"\ntls = \"self-signed\"\n\
         [site.b.websocket]\nto = \"http://{}\"\npreset = \"any\"\nidle_timeout = \"4s\"\n",
        back_end.address
    );
    let edge = Edge::start(back_end.address, &extra);
    let open = || open_with(&edge, &handshake("/x").replace("a.test", "b.test"));
    let begun = Instant::now();
    let (mut silent, mut busy) = (open(), open());
    silent.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
    let mut close = Vec::new();
    while close.len() < 4 {
        echoes(&mut busy, b"tick");
        let mut byte = [0];
        if let Ok(1) = silent.read(&mut byte) {
            close.push(byte[0]);
        }
        assert!(begun.elapsed() < DEADLINE, "it never ends");
    }
    assert_eq!(close, [0x88, 2, 0x03, 0xe9]);
    assert!(begun.elapsed() >= Duration::from_millis(3900), "{:?}", begun.elapsed());
    eventually("its back end is let go", || back_end.open() == 1);
    echoes(&mut busy, b"still here");
}

#[test]
fn a_client_that_vanished_is_found_by_its_silence_or_by_what_it_does_not_take() {
    let back_end = back_end();
    let extra = format!(
        "{QUICK}\n[site.b]\nhosts = [\"b.test\"]\nhttp = \"serve\"\ntls = \"self-signed\"\n\
         [site.b.websocket]\nto = \"http://{}\"\npreset = \"any\"\nping_interval = \"500ms\"\n",
        back_end.address
    );
    let edge = Edge::start(back_end.address, &extra);
    let mut neighbour = open(&edge, "/socket/neighbour");
    let flooded = open(&edge, "/socket/flood");
    let asked = open_with(&edge, &handshake("/x").replace("a.test", "b.test"));
    eventually("three sockets", || back_end.open() == 3);
    vanish(&flooded);
    vanish(&asked);
    for _ in 0..2 {
        edge.wait_for("ws=close");
    }
    eventually("their back ends are let go", || back_end.open() == 1);
    echoes(&mut neighbour, b"still here");
}

#[test]
fn the_kernel_asks_after_the_client_of_an_idle_socket() {
    const KEEPALIVE: u8 = 2;
    let back_end = Script::echo();
    let edge = Edge::start(back_end.address, "");
    let mut stream = open(&edge, "/socket/x");
    echoes(&mut stream, b"hello");
    let client = stream.local_addr().expect("bound");
    eventually("the timer of keepalive runs", || matches!(kernel_view(edge.http, client), Some((0, 0, KEEPALIVE))));
}

/// Keepalive is silent while something is under way; the kernel alone would try for a quarter of an hour.
/// The two minutes are waited for with `DOORWARD_FULL=1`; how long they are a unit test knows (`edge::listener`).
#[test]
fn a_client_that_vanished_while_it_was_sent_something_is_given_up_after_two_minutes() {
    if !is_full() {
        return not_run("takes two minutes: DOORWARD_FULL=1");
    }
    let back_end = back_end();
    let edge = Edge::start(back_end.address, "[log]\naccess = \"stderr\"");
    let stream = open(&edge, "/socket/ticks");
    let begun = Instant::now();
    vanish(&stream);
    while back_end.open() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(150), "it was never given up");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("given up after {:?}", begun.elapsed());
    assert!(begun.elapsed() > Duration::from_secs(100), "{:?}", begun.elapsed());
}
