//! Stopping.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::backend;
use crate::harness::{BackEnd, Proxy, Socket, World, wait_until};

fn start(world: &World, grace: &str) -> (BackEnd, BackEnd, Proxy) {
    let backend = BackEnd::answering(|seen, stream| {
        use std::io::Write;
        if seen.line().contains("/slow") {
            std::thread::sleep(Duration::from_millis(800));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").is_ok()
    });
    let sockets = BackEnd::start();
    let head = world.head().replace("shutdown_grace = \"2s\"", &format!("shutdown_grace = {grace:?}"));
    let more = format!("[site.app.websocket]\npreset = \"none\"\npaths = [\"/live\"]\nto = {:?}\n", sockets.url());
    let proxy = Proxy::start(world, &format!("{head}{}", backend::site(&backend.url(), &more)));
    (backend, sockets, proxy)
}

#[test]
fn term_lets_a_request_finish_and_takes_no_new_one() {
    for signal in [Signal::TERM, Signal::QUIT, Signal::INT] {
        let world = World::new();
        let (backend, _sockets, mut proxy) = start(&world, "10s");
        let mut raw = proxy.raw(&world, "app.test");
        raw.send("GET /slow HTTP/1.1\r\nHost: app.test\r\n\r\n");
        wait_until("the request is with the back end", crate::harness::SOON, || !backend.seen().is_empty());
        proxy.running.signal(signal);
        let port = proxy.https();
        wait_until("the listener is closed", Duration::from_secs(5), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
        });
        let (status, _) = raw.head();
        assert_eq!(status, 200, "{signal:?}");
        assert_eq!(raw.exactly(4), b"done");
        let status = proxy.running.wait_exit(Duration::from_secs(5));
        assert!(status.success(), "{signal:?}: {status}");
    }
}

#[test]
fn sockets_get_a_close_frame_when_the_grace_is_over() {
    let world = World::new();
    let (_backend, _sockets, mut proxy) = start(&world, "1s");
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    socket.echoes("hello");
    proxy.running.signal(Signal::TERM);
    assert_eq!(socket.closed(), Some(1001));
    drop(socket);
    assert!(proxy.running.wait_exit(Duration::from_secs(5)).success());
}

#[test]
fn a_second_term_ends_it_at_once() {
    let world = World::new();
    let (_backend, _sockets, mut proxy) = start(&world, "60s");
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    socket.echoes("hello");
    proxy.running.signal(Signal::TERM);
    let port = proxy.https();
    wait_until("the listener is closed", Duration::from_secs(5), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
    });
    assert!(proxy.running.alive(), "the first waits for the socket");
    let started = Instant::now();
    proxy.running.signal(Signal::TERM);
    proxy.running.wait_exit(Duration::from_secs(5));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn an_idle_proxy_ends_at_once() {
    let world = World::new();
    let (_backend, _sockets, mut proxy) = start(&world, "60s");
    // A kept connection that asks for nothing holds nothing up.
    let mut raw = proxy.raw(&world, "app.test");
    raw.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n");
    assert_eq!(raw.head().0, 200);
    let started = Instant::now();
    proxy.running.signal(Signal::TERM);
    assert!(proxy.running.wait_exit(Duration::from_secs(10)).success());
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}
