//! What must come through as it comes.

use std::time::{Duration, Instant};

use crate::harness::{Fpm, Node, Proxy, World};
use crate::{backend, php};

/// Reads five events and fails unless they came one by one.
fn events_come_one_by_one(world: &World, proxy: &Proxy) {
    let mut raw = proxy.raw(world, "app.test");
    raw.send("GET /sse HTTP/1.1\r\nHost: app.test\r\nAccept: text/event-stream\r\n\r\n");
    let (status, head) = raw.head();
    assert_eq!(status, 200, "{head}");
    assert!(head.to_lowercase().contains("content-type: text/event-stream"), "{head}");
    let started = Instant::now();
    let mut arrivals = Vec::new();
    for number in 1..=5 {
        raw.until(format!("data: event {number}\n\n").as_bytes());
        arrivals.push(started.elapsed());
    }
    // They leave 200 ms apart; held back, they would arrive together.
    assert!(arrivals[4] - arrivals[0] > Duration::from_millis(500), "{arrivals:?}");
    assert!(arrivals[0] + Duration::from_millis(300) < arrivals[4], "{arrivals:?}");
}

#[test]
fn server_sent_events_of_php_arrive_one_by_one() {
    let world = World::new();
    let fpm = Fpm::unix(&world);
    let proxy = world.proxy(&php::site(&world, &fpm, ""));
    events_come_one_by_one(&world, &proxy);
}

#[test]
fn server_sent_events_of_a_back_end_arrive_one_by_one() {
    let world = World::new();
    let node = Node::serve(&world, "http-server.js", &[]);
    let proxy = world.proxy(&backend::site(&node.url(), ""));
    events_come_one_by_one(&world, &proxy);
}

#[test]
fn a_client_that_leaves_is_noticed_by_the_back_end() {
    let world = World::new();
    let (tell, told) = std::sync::mpsc::channel();
    let back_end = crate::harness::BackEnd::answering(move |_, stream| {
        use std::io::Write;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if stream.write_all(b"1\r\nx\r\n").is_err() {
                let _ = tell.send(());
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    let proxy = world.proxy(&backend::site(&back_end.url(), ""));
    let mut raw = proxy.raw(&world, "app.test");
    assert_eq!(raw.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").head().0, 200);
    drop(raw);
    told.recv_timeout(Duration::from_secs(10)).expect("the back end still sends to nobody");
}
