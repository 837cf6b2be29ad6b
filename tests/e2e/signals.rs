//! Stopping.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::backend;
use crate::harness::{BackEnd, Proxy, Socket, World, promised, wait_until};

fn start(world: &World, grace: &str) -> (BackEnd, BackEnd, Proxy) {
    let backend = BackEnd::answering(|seen, stream| {
        use std::io::Write;
        if seen.line().contains("/slow") {
            std::thread::sleep(Duration::from_millis(800));
        }
        if seen.line().contains("/hang") {
            std::thread::sleep(Duration::from_secs(15));
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

/// When each of `sockets` was closed, from now on, and with what.
fn closings(sockets: Vec<Socket>, code: u16, begin: impl FnOnce()) -> Vec<Duration> {
    let begun = Instant::now();
    let waiting: Vec<_> =
        sockets.into_iter().map(|mut socket| std::thread::spawn(move || (socket.closed(), begun.elapsed()))).collect();
    begin();
    let closed = waiting.into_iter().map(|thread| thread.join().unwrap());
    let mut times: Vec<Duration> =
        closed.inspect(|(with, _)| assert_eq!(*with, Some(code))).map(|(_, at)| at).collect();
    times.sort_unstable();
    times
}

#[test]
fn few_sockets_are_closed_within_a_second_each_while_a_request_goes_on() {
    let world = World::new();
    let (backend, _sockets, mut proxy) = start(&world, "60s");
    let mut raw = proxy.raw(&world, "app.test");
    raw.send("GET /slow HTTP/1.1\r\nHost: app.test\r\n\r\n");
    wait_until("the request is with the back end", crate::harness::SOON, || !backend.seen().is_empty());
    let sockets: Vec<Socket> = (0..6).map(|_| Socket::open(&world, &proxy, "app.test", "/live")).collect();
    let times = closings(sockets, 1001, || proxy.running.signal(Signal::TERM));
    assert!(times[5] < promised(Duration::from_secs(8)), "{times:?}");
    // Each has a second of its own: they do not come back together.
    assert!(times[5] - times[0] > Duration::from_secs(3), "{times:?}");
    assert_eq!(raw.head().0, 200);
    assert!(proxy.running.wait_exit(Duration::from_secs(5)).success());
    let closed = proxy.running.stdout().into_iter().filter(|line| line.contains("ws=close code=1001")).count();
    assert_eq!(closed, 6, "a line for the end of each: {}", proxy.running.said());
}

#[test]
fn a_crowd_is_closed_over_the_grace_and_no_longer() {
    let world = World::new();
    let (_backend, _sockets, mut proxy) = start(&world, "3s");
    let sockets: Vec<Socket> = (0..60).map(|_| Socket::open(&world, &proxy, "app.test", "/live")).collect();
    let times = closings(sockets, 1001, || proxy.running.signal(Signal::TERM));
    assert!(times[59] < promised(Duration::from_secs(4)), "{times:?}");
    // Even: what is closed by a moment is what of the time has gone by.
    for (place, time) in times.iter().enumerate() {
        let even = Duration::from_secs(3).mul_f64(place as f64 / 60.0);
        assert!(time.abs_diff(even) < promised(Duration::from_millis(600)), "{place}: {times:?}");
    }
    assert!(proxy.running.wait_exit(Duration::from_secs(5)).success());
}

#[test]
fn what_is_left_after_the_grace_is_cut() {
    let world = World::new();
    let (backend, _sockets, mut proxy) = start(&world, "1s");
    let mut raw = proxy.raw(&world, "app.test");
    raw.send("GET /hang HTTP/1.1\r\nHost: app.test\r\n\r\n");
    wait_until("the request is with the back end", crate::harness::SOON, || !backend.seen().is_empty());
    let started = Instant::now();
    proxy.running.signal(Signal::TERM);
    assert_eq!(raw.ended().unwrap(), "");
    assert!(proxy.running.wait_exit(Duration::from_secs(10)).success());
    assert!(started.elapsed() < promised(Duration::from_secs(3)), "{:?}", started.elapsed());
}

#[test]
fn a_kept_connection_gets_its_next_answer_and_is_told_to_go() {
    let world = World::new();
    let (_backend, _sockets, mut proxy) = start(&world, "20s");
    let mut raw = proxy.raw(&world, "app.test");
    raw.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n");
    assert_eq!(raw.head().0, 200);
    assert_eq!(raw.exactly(4), b"done");
    proxy.running.signal(Signal::TERM);
    let port = proxy.https();
    wait_until("the listener is closed", Duration::from_secs(5), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
    });
    // It did not know yet.
    raw.send("GET /slow HTTP/1.1\r\nHost: app.test\r\n\r\n");
    let (status, head) = raw.head();
    assert_eq!(status, 200);
    assert!(head.to_lowercase().contains("connection: close"), "{head}");
    assert_eq!(raw.rest(), "done");
    assert!(proxy.running.wait_exit(Duration::from_secs(5)).success());
}

#[test]
fn a_second_term_ends_it_at_once() {
    let world = World::new();
    let (backend, _sockets, mut proxy) = start(&world, "60s");
    let mut raw = proxy.raw(&world, "app.test");
    raw.send("GET /hang HTTP/1.1\r\nHost: app.test\r\n\r\n");
    wait_until("the request is with the back end", crate::harness::SOON, || !backend.seen().is_empty());
    proxy.running.signal(Signal::TERM);
    let port = proxy.https();
    wait_until("the listener is closed", Duration::from_secs(5), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
    });
    assert!(proxy.running.alive(), "the first waits for the request");
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
