//! Tunnels.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::harness::{BackEnd, Proxy, SOON, Socket, World, wait_until};

fn site(to: &str, more: &str) -> String {
    format!(
        "[site.app]\nhosts = [\"app.test\"]\nupstream = {to:?}\n[site.app.websocket]\npreset = \"any\"\nto = {to:?}\n{more}\n"
    )
}

fn start(world: &World, more: &str) -> (BackEnd, Proxy) {
    let backend = BackEnd::start();
    let proxy = world.proxy(&site(&backend.url(), more));
    (backend, proxy)
}

const HANDSHAKE: &str = "GET /live HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn frames_of_every_size_come_back_whole() {
    let world = World::new();
    let (backend, proxy) = start(&world, "");
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live?x=1");
    for size in [0, 1, 125, 126, 65_535, 65_536, 1 << 20, 8 << 20] {
        let bytes: Vec<u8> = (0..size).map(|i: usize| u8::try_from(i * 31 % 253).unwrap()).collect();
        socket.echoes_bytes(&bytes);
    }
    let seen = backend.last();
    assert_eq!(seen.line(), "GET /live?x=1 HTTP/1.1");
    assert_eq!(seen.field("upgrade"), Some("websocket"));
    assert_eq!(seen.field("connection").map(str::to_lowercase).as_deref(), Some("upgrade"));
    assert_eq!(seen.field("host"), Some(format!("app.test:{}", proxy.https()).as_str()));
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    socket.close(1000);
}

#[test]
fn a_refusal_of_the_back_end_is_passed_on_and_the_connection_stays() {
    let world = World::new();
    let backend = BackEnd::answering(|_, stream| {
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nX-Why: origin\r\n\r\nno").is_ok()
    });
    let proxy = world.proxy(&site(&backend.url(), ""));
    let mut raw = proxy.raw(&world, "app.test");
    for _ in 0..2 {
        let (status, head) = raw.send(HANDSHAKE).head();
        assert_eq!(status, 403, "{head}");
        assert!(head.to_lowercase().contains("x-why: origin"), "{head}");
        assert_eq!(raw.exactly(2), b"no");
    }
}

#[test]
fn the_client_hears_101_only_after_the_back_end_has_said_it() {
    let world = World::new();
    let (allow, allowed) = std::sync::mpsc::channel::<()>();
    let allowed = std::sync::Mutex::new(allowed);
    let backend = BackEnd::answering(move |_, stream| {
        let _ = allowed.lock().unwrap().recv_timeout(Duration::from_secs(10));
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nfirst bytes",
        );
        std::thread::sleep(Duration::from_millis(200));
        false
    });
    let proxy = world.proxy(&site(&backend.url(), ""));
    let mut raw = proxy.raw(&world, "app.test");
    raw.send(HANDSHAKE);
    wait_until("the handshake is with the back end", SOON, || !backend.seen().is_empty());
    allow.send(()).unwrap();
    let (status, head) = raw.head();
    assert_eq!(status, 101, "{head}");
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    // Sent in one piece with the 101; nothing of it may be lost.
    assert_eq!(raw.exactly(11), b"first bytes");
}

#[test]
fn bytes_sent_right_behind_the_handshake_are_not_lost() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    let mut raw = proxy.raw(&world, "app.test");
    // A masked text frame "hi" with a mask of zeros.
    let mut bytes = HANDSHAKE.as_bytes().to_vec();
    bytes.extend_from_slice(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
    assert_eq!(raw.send(bytes).head().0, 101);
    assert_eq!(raw.exactly(4), [0x81, 0x02, b'h', b'i']);
}

#[test]
fn what_is_no_websocket_handshake_is_a_plain_request() {
    let world = World::new();
    let (backend, proxy) = start(&world, "");
    let cases = [
        ("HTTP/1.0", HANDSHAKE.replace("HTTP/1.1", "HTTP/1.0")),
        ("no Connection", HANDSHAKE.replace("Connection: Upgrade\r\n", "")),
        ("another protocol", HANDSHAKE.replace("Upgrade: websocket", "Upgrade: h2c")),
        ("POST", HANDSHAKE.replace("GET ", "POST ").replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n")),
    ];
    for (what, bytes) in cases {
        let mut raw = proxy.raw(&world, "app.test");
        let (status, head) = raw.send(bytes).head();
        assert_ne!(status, 101, "{what}: {head}");
        assert!(backend.seen().iter().all(|seen| seen.fields("upgrade").is_empty()), "{what} went on as an upgrade");
    }
}

#[test]
fn a_silent_tunnel_ends_after_its_idle_timeout_and_a_busy_one_does_not() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "idle_timeout = \"700ms\"");
    let mut silent = Socket::open(&world, &proxy, "app.test", "/silent");
    let mut busy = Socket::open(&world, &proxy, "app.test", "/busy");
    let started = Instant::now();
    let end = std::thread::spawn(move || {
        silent.closed();
        started.elapsed()
    });
    while started.elapsed() < Duration::from_millis(2000) {
        busy.echoes("tick");
        std::thread::sleep(Duration::from_millis(100));
    }
    let after = end.join().unwrap();
    assert!(after > Duration::from_millis(600) && after < Duration::from_secs(5), "{after:?}");
    busy.echoes("still open");
}

#[test]
fn a_tunnel_is_not_held_to_the_timeouts_of_requests() {
    let world = World::new();
    let backend = BackEnd::start();
    let toml = format!(
        "{}[timeouts]\nheader = \"300ms\"\nbody = \"300ms\"\nkeepalive = \"300ms\"\nread = \"300ms\"\n{}",
        world.head(),
        site(&backend.url(), "")
    );
    let proxy = Proxy::start(&world, &toml);
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    // Silence for longer than any of them is the very thing under test.
    std::thread::sleep(Duration::from_millis(1200));
    socket.echoes("still here");
}

#[test]
fn the_end_of_one_side_is_the_end_of_the_other() {
    let world = World::new();
    let (closed, was_closed) = std::sync::mpsc::channel();
    let backend = BackEnd::answering(move |_, stream| {
        use std::io::Read;
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        );
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let mut rest = Vec::new();
        let _ = closed.send(stream.read_to_end(&mut rest).is_ok());
        false
    });
    let proxy = world.proxy(&site(&backend.url(), ""));
    let mut raw = proxy.raw(&world, "app.test");
    assert_eq!(raw.send(HANDSHAKE).head().0, 101);
    drop(raw);
    assert!(was_closed.recv_timeout(Duration::from_secs(10)).unwrap(), "the back end still waits");
}

#[test]
fn silent_tunnels_hold_little_memory() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    let mut first = Socket::open(&world, &proxy, "app.test", "/live");
    first.echoes("warm");
    let before = proxy.memory("VmRSS");
    // The test's own descriptors are the bound here: three for each tunnel on its two sides.
    let sockets: Vec<_> = (0..250).map(|_| Socket::open(&world, &proxy, "app.test", "/live")).collect();
    let each = proxy.memory("VmRSS").saturating_sub(before) / 250;
    assert!(each < 96 << 10, "{each} bytes for each tunnel");
    drop(sockets);
}
