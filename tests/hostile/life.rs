//! Descriptors, reloads, and the end.

use std::io::Read;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::back_end::BackEnd;
use crate::edge::{Edge, eventually, read_to_end, send};
use crate::machine::{is_root_for, promised};

/// The sockets that the edge has open. Files and watches are opened when they are first needed. Only root may look: for
/// others it has none.
#[track_caller]
fn sockets(edge: &Edge) -> usize {
    if !is_root_for("the edge's sockets are not counted") {
        return 0;
    }
    let folder = format!("/proc/{}/fd", edge.process.id());
    let links = std::fs::read_dir(folder).expect("its descriptors").flatten();
    links
        .filter_map(|link| link.path().read_link().ok())
        .filter(|to| to.to_string_lossy().starts_with("socket:"))
        .count()
}

#[test]
fn clients_that_leave_in_the_middle_leave_nothing_behind() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    // The worker's runtime has sockets of its own: it is up when it has answered.
    let mut stream = edge.connect();
    send(&mut stream, b"GET /files/a.txt HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
    assert!(read_to_end(&mut stream).ends_with(b"text\n"));
    let before = sockets(&edge);
    leave(&edge, 200);
    eventually("all back ends are let go", || back_end.open() == 0);
    eventually("all sockets are closed", || sockets(&edge) <= before);
}

/// Clients that send something and go.
fn leave(edge: &Edge, count: usize) {
    for round in 0..count {
        let mut stream = edge.connect();
        let raw = match round % 5 {
            0 => "GET /endless HTTP/1.1\r\nHost: a.test\r\n\r\n",
            1 => "POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\nab",
            2 => "GET /silent HTTP/1.1\r\nHost: a.test\r\n\r\n",
            3 => "GET / HTTP/1.1\nbroken",
            _ => "GET /files/a.txt HTTP/1.1\r\nHost: a.test\r\n\r\n",
        };
        send(&mut stream, raw.as_bytes());
    }
}

#[test]
fn a_reload_that_cannot_be_carried_out_changes_nothing() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let file = edge.folder.path().join("proxy.toml");
    let good = std::fs::read_to_string(&file).expect("the configuration");
    // The port is free: nobody else on this machine asks for this one between here and there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let taken = good.replacen("https = [", &format!("https = [\"{}\", ", edge.http), 1);
    let plain = good.replacen("http = [", &format!("http = [\"{free}\", "), 1);
    let secure = good.replacen("https = [", &format!("https = [\"{free}\", "), 1);
    std::fs::write(&file, &plain).expect("the configuration");
    edge.signal(Signal::HUP);
    edge.wait_for("reloaded");
    for broken in ["[[[", taken.as_str(), secure.as_str(), &good.replace("a.test", "a.test:x!")] {
        std::fs::write(&file, broken).expect("the configuration");
        edge.signal(Signal::HUP);
        edge.wait_for("reload refused");
        let mut stream = edge.connect();
        send(&mut stream, b"GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
        assert!(read_to_end(&mut stream).ends_with(b"ok"));
    }
    // Nothing of the file names the listener any more: what is open there ends, instead of meeting no site.
    let mut idle = crate::edge::connect(free);
    send(&mut idle, b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let mut answer = [0; 1024];
    let n = idle.read(&mut answer).expect("an answer");
    assert!(answer[..n].starts_with(b"HTTP/1.1 200 "));
    std::fs::write(&file, &good).expect("the configuration");
    edge.signal(Signal::HUP);
    assert!(read_to_end(&mut idle).iter().all(|byte| b"ok".contains(byte)));
}

#[test]
fn requests_under_way_finish_at_the_end_and_a_second_signal_does_not_wait() {
    let back_end = BackEnd::start();
    let mut edge = Edge::start(back_end.address, "[timeouts]\nread = \"1s\"");
    let mut stream = edge.connect();
    send(&mut stream, b"GET /silent HTTP/1.1\r\nHost: a.test\r\n\r\n");
    eventually("the back end is asked", || !back_end.take().is_empty());
    edge.signal(Signal::TERM);
    let answer = read_to_end(&mut stream);
    assert!(answer.starts_with(b"HTTP/1.1 504 "), "{}", String::from_utf8_lossy(&answer));
    assert!(edge.process.wait().expect("it ends").success());

    let mut edge = Edge::start(back_end.address, "");
    let mut stream = edge.connect();
    send(&mut stream, b"GET /silent HTTP/1.1\r\nHost: a.test\r\n\r\n");
    eventually("the back end is asked", || !back_end.take().is_empty());
    edge.signal(Signal::TERM);
    edge.wait_for("stopping");
    let begun = Instant::now();
    edge.signal(Signal::TERM);
    edge.process.wait().expect("it ends");
    assert!(begun.elapsed() < promised(Duration::from_secs(4)), "{:?}", begun.elapsed());
}
