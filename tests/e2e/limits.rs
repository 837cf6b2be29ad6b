//! Limits: 413, 414, 431, 408.

use std::time::{Duration, Instant};

use crate::harness::{BackEnd, Fpm, Proxy, SOON, World, status, wait_until};
use crate::{backend, php};

#[test]
fn a_body_over_the_limit_is_413_however_it_comes() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), "max_body = \"100KiB\""));
    let exact = vec![b'x'; 102_400];
    let over = vec![b'x'; 102_401];
    for http1 in [true, false] {
        for chunked in [true, false] {
            let curl = || {
                let curl = proxy.curl("app.test");
                let curl = if http1 { curl.http1() } else { curl };
                if chunked && http1 { curl.header("Transfer-Encoding: chunked") } else { curl }
            };
            curl().post("/", &exact).expect(200);
            curl().post("/", &over).expect(413);
        }
    }
    assert!(backend.seen().iter().all(|seen| seen.body.len() <= 102_400));
}

#[test]
fn a_length_over_the_limit_is_refused_before_the_body_comes() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    // The default is 20 MiB.
    let mut raw = proxy.raw(&world, "app.test");
    raw.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 20971521\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(raw.head().0, 413);
    let mut raw = proxy.raw(&world, "app.test");
    raw.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(raw.head().0, 100);
    assert_eq!(raw.send("hello").head().0, 200);
    assert_eq!(backend.seen().len(), 1);
}

#[test]
fn a_body_over_the_limit_never_reaches_php() {
    let world = World::new();
    let fpm = Fpm::unix(&world);
    let proxy = world.proxy(&php::site(&world, &fpm, "max_body = \"1MiB\""));
    let over = vec![0; (1 << 20) + 1];
    proxy.curl("app.test").http1().post("/echo", &over).expect(413);
    proxy.curl("app.test").http1().header("Transfer-Encoding: chunked").post("/echo", &over).expect(413);
    proxy.curl("app.test").http1().post("/echo", &over[1..]).expect(200);
}

#[test]
fn a_target_over_the_limit_is_414() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    let long = |count: usize| format!("/{}", "x".repeat(count));
    for http1 in [true, false] {
        let curl = || if http1 { proxy.curl("app.test").http1() } else { proxy.curl("app.test") };
        curl().get(&long(8000)).expect(200);
        curl().get(&long(8200)).expect(414);
    }
}

#[test]
fn a_head_over_the_limit_is_431() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    let answer = proxy.curl("app.test").http1().header(&format!("X-Big: {}", "x".repeat(33_000))).get("/");
    answer.expect(431);
    let many = |count: usize| (0..count).fold(proxy.curl("app.test").http1(), |c, i| c.header(&format!("X-{i}: 1")));
    many(90).get("/").expect(200);
    many(101).get("/").expect(431);
    // On HTTP/2 the stream may be refused instead of answered.
    let curl = proxy.curl("app.test").header(&format!("X-Big: {}", "x".repeat(33_000)));
    match curl.send("/") {
        Ok(answer) => assert_eq!(answer.status, 431),
        Err(error) => assert!(error.contains("HTTP/2"), "{error}"),
    }
    assert_eq!(backend.seen().len(), 1);
}

#[test]
fn an_endless_head_is_cut_off() {
    let world = World::new();
    let backend = BackEnd::start();
    let proxy = world.proxy(&backend::site(&backend.url(), ""));
    let mut raw = proxy.raw(&world, "app.test");
    raw.send("GET / HTTP/1.1\r\nHost: app.test\r\n");
    for _ in 0..200 {
        raw.send(format!("X: {}\r\n", "y".repeat(1000)));
    }
    // A client that is still sending may find the connection reset before it reads why.
    let text = raw.rest();
    assert!(text.is_empty() || status(&text) == 431, "{text}");
    wait_until("the refusal is logged", SOON, || proxy.running.stdout().iter().any(|line| line.contains(" 431 ")));
}

#[test]
fn a_head_or_body_that_does_not_come_in_time_is_408_and_the_connection_ends() {
    let world = World::new();
    let backend = BackEnd::start();
    let toml = format!(
        "{}[timeouts]\nheader = \"500ms\"\nbody = \"500ms\"\n{}",
        world.head(),
        backend::site(&backend.url(), "")
    );
    let proxy = Proxy::start(&world, &toml);
    for partial in [
        "GET / HTTP/1.1\r\nHost: app.test\r\nX: ",
        "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 10\r\n\r\nhel",
    ] {
        let started = Instant::now();
        let text = proxy.raw(&world, "app.test").send(partial).rest();
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(status(&text), 408, "{text:?}");
    }
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let world = World::new();
    let backend = BackEnd::start();
    let toml = format!(
        "{}[timeouts]\nheader = \"300ms\"\nkeepalive = \"300ms\"\n{}",
        world.head(),
        backend::site(&backend.url(), "")
    );
    let proxy = Proxy::start(&world, &toml);
    // Before the handshake, after it, and after a request.
    crate::harness::Raw::plain(proxy.https()).rest();
    proxy.raw(&world, "app.test").rest();
    let mut raw = proxy.raw(&world, "app.test");
    assert_eq!(raw.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").head().0, 200);
    raw.rest();
}
