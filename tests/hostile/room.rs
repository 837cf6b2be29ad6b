//! Time and size: bodies and answers that trickle, heads that are too large, bodies that would fill the disk.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::back_end::BackEnd;
use crate::edge::{DEADLINE, Edge, connect, eventually, read_to_end, send};
use crate::h2_client::{Client, DATA, END_HEADERS, End, HEADERS, block, frame, request};

fn status(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no answer: {text:?}"))
}

/// Sends `piece` every `pause` until the server answers or `count` are sent, and gives what it answers.
fn upload(address: SocketAddr, length: usize, piece: &[u8], pause: Duration, count: usize) -> Vec<u8> {
    let mut stream = connect(address);
    send(
        &mut stream,
        format!("POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").as_bytes(),
    );
    stream.set_read_timeout(Some(pause)).expect("a timeout");
    let mut answer = [0; 1024];
    for _ in 0..count {
        send(&mut stream, piece);
        // The pause, unless there is an answer.
        if let Ok(n) = stream.read(&mut answer) {
            return answer[..n].to_vec();
        }
    }
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    read_to_end(&mut stream)
}

/// The same over HTTP/2; gives the status.
fn upload_h2(address: SocketAddr, piece: &[u8], pause: Duration, count: usize) -> End {
    let mut client = Client::connect(address);
    client.send(&frame(HEADERS, END_HEADERS, 1, &block(&request("POST", "/x", &[]))));
    let mut watching = client.0.sock.try_clone().expect("a second handle");
    watching.set_nonblocking(false).expect("blocking");
    for round in 1..=count {
        let end = if round == count { crate::h2_client::END_STREAM } else { 0 };
        client.send(&frame(DATA, end, 1, piece));
        std::thread::sleep(pause);
        if round * 10 % count == 0 {
            // A ping is answered while the connection lives, and costs the stream nothing.
            client.send(&frame(crate::h2_client::PING, 0, 0, &[0; 8]));
        }
    }
    let _ = watching.flush();
    client.end(1)
}

#[test]
fn a_body_that_trickles_is_408_and_one_that_is_slow_is_taken() {
    let back_end = BackEnd::start();
    // Who is waited for brings 1 KiB each second, or has used up a pause and 5 s after a while.
    let edge = Edge::start(back_end.address, "min_rate = \"1KiB/s\"\n[timeouts]\nbody = \"2s\"");
    let (http, https) = (edge.http, edge.https);
    let slow = std::thread::spawn(move || upload(http, 50 * 400, &[b'x'; 400], Duration::from_millis(200), 50));
    let slow_h2 = std::thread::spawn(move || upload_h2(https, &[b'x'; 400], Duration::from_millis(200), 50));
    let trickle_h2 = std::thread::spawn(move || upload_h2(https, b"x", Duration::from_millis(200), 75));
    // A pause that timeouts.body allows is forgiven, early and late.
    let pausing = std::thread::spawn(move || upload(http, 5 * 4000, &[b'x'; 4000], Duration::from_secs(1), 5));
    let begun = Instant::now();
    let trickle = upload(edge.http, 100_000, b"x", Duration::from_millis(200), 100);
    let took = begun.elapsed();
    assert_eq!(status(&trickle), 408, "{}", String::from_utf8_lossy(&trickle));
    assert!((Duration::from_secs(6)..Duration::from_secs(15)).contains(&took), "{took:?}");
    let trickle_h2 = trickle_h2.join().expect("no panic");
    assert!(matches!(trickle_h2, End::Answer(408, _)), "{trickle_h2:?}");
    assert_eq!(status(&slow.join().expect("no panic")), 200);
    assert_eq!(slow_h2.join().expect("no panic"), End::Answer(200, 2));
    assert_eq!(status(&pausing.join().expect("no panic")), 200);
}

#[test]
fn a_slow_back_end_is_not_held_against_its_client() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    const BODY: usize = 24 << 20;
    // Takes nothing for longer than any client may, then all.
    let taking = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        std::thread::sleep(Duration::from_secs(8));
        let mut left = BODY;
        let mut piece = vec![0; 1 << 16];
        while left > 0 {
            let n = stream.read(&mut piece).expect("the body");
            assert!(n > 0, "{left} bytes are missing");
            left = left.saturating_sub(n);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("the answer is taken");
        std::thread::sleep(Duration::from_millis(100));
    });
    let back_end = BackEnd::start();
    let extra = format!(
        "min_rate = \"1MiB/s\"\n[timeouts]\nbody = \"1s\"\n\
         [site.b]\nhosts = [\"b.test\"]\nhttp = \"serve\"\ntls = \"off\"\nmax_body = \"32MiB\"\nupstream = \"http://{address}\""
    );
    let edge = Edge::start(back_end.address, &extra);
    let mut stream = connect(edge.http);
    send(
        &mut stream,
        format!("POST / HTTP/1.1\r\nHost: b.test\r\nContent-Length: {BODY}\r\nConnection: close\r\n\r\n").as_bytes(),
    );
    for _ in 0..BODY >> 16 {
        send(&mut stream, &[b'x'; 1 << 16]);
    }
    assert_eq!(status(&read_to_end(&mut stream)), 200);
    taking.join().expect("no panic");
}

#[test]
fn an_answer_that_is_taken_too_slowly_is_cut_off_and_its_back_end_let_go() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "min_rate = \"16MiB/s\"\n[timeouts]\nwrite = \"3s\"");
    let mut slow = connect(edge.http);
    send(&mut slow, b"GET /endless HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let begun = Instant::now();
    let mut piece = vec![0; 100_000];
    // It takes something all the time, and never stalls for timeouts.write.
    let ended = loop {
        match slow.read(&mut piece) {
            Ok(0) | Err(_) => break begun.elapsed(),
            Ok(_) => std::thread::sleep(Duration::from_millis(50)),
        }
        if back_end.open() == 0 {
            break begun.elapsed();
        }
        assert!(begun.elapsed() < DEADLINE, "it goes on");
    };
    assert!(ended > Duration::from_secs(6), "{ended:?}");
    eventually("the back end is let go", || back_end.open() == 0);
}

#[test]
fn heads_that_are_too_long_or_have_too_much_in_them_are_refused_on_both_versions() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let many: Vec<String> = (0..101).map(|n| format!("x-{n}")).collect();
    let big = "x".repeat(33_000);
    let long = format!("/{}", "x".repeat(8192));
    let method = "M".repeat(33);
    let fields: String = many.iter().map(|name| format!("{name}: 1\r\n")).collect();
    let cases = [
        (431, format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")),
        (431, format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {big}\r\n\r\n")),
        (414, format!("GET {long} HTTP/1.1\r\nHost: a.test\r\n\r\n")),
        (400, format!("{method} / HTTP/1.1\r\nHost: a.test\r\n\r\n")),
        // A first line that does not end within max_header_size: what it would have been is not known.
        (414, format!("{big} / HTTP/1.1\r\nHost: a.test\r\n\r\n")),
    ];
    for (wanted, raw) in &cases {
        let mut stream = connect(edge.http);
        send(&mut stream, raw.as_bytes());
        assert_eq!(status(&read_to_end(&mut stream)), *wanted, "{}", &raw[..60]);
    }
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "1")).collect();
    for (wanted, fields) in [
        (431, request("GET", "/", &many)),
        (431, request("GET", "/", &[("x", &big)])),
        (414, request("GET", &long, &[])),
        (400, request(&method, "/", &[])),
    ] {
        let mut client = Client::connect(edge.https);
        let mut rest = block(&fields);
        // A frame holds 16 KiB: what is longer goes on in CONTINUATION.
        let mut piece: Vec<u8> = rest.drain(..rest.len().min(16_000)).collect();
        let mut kind = HEADERS;
        loop {
            let flags = if rest.is_empty() { END_HEADERS } else { 0 } | u8::from(kind == HEADERS);
            client.send(&frame(kind, flags, 1, &piece));
            if rest.is_empty() {
                break;
            }
            kind = 9;
            piece = rest.drain(..rest.len().min(16_000)).collect();
        }
        match client.end(1) {
            End::Answer(status, _) => assert_eq!(status, wanted),
            // RFC 9113, section 10.5.1: a list over the size that was announced may be refused so as well.
            other => assert!(wanted == 431, "{wanted}: {other:?}"),
        }
    }
    assert!(back_end.take().is_empty(), "none of it went on");
}

/// Begins an upload of `length` bytes to PHP and sends all but one of them.
fn begin_upload(edge: &Edge, length: usize) -> TcpStream {
    let mut stream = connect(edge.http);
    send(
        &mut stream,
        format!("POST / HTTP/1.1\r\nHost: p.test\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").as_bytes(),
    );
    send(&mut stream, &vec![b'x'; length - 1]);
    stream
}

#[test]
fn uploads_for_php_fill_no_more_of_the_disk_than_they_may() {
    let back_end = BackEnd::start();
    let root = tempfile::tempdir().expect("a root");
    std::fs::write(root.path().join("index.php"), "<?php").expect("a script");
    // Nobody is there: a body that was taken whole is answered 502. Several bodies of one client get half of the room.
    let extra = format!(
        "max_spooled = \"1000KB\"\n[site.p]\nhosts = [\"p.test\"]\nhttp = \"serve\"\ntls = \"off\"\nroot = {:?}\n[site.p.php]\nto = \"unix:{}\"\nrestart_window = \"100ms\"",
        root.path(),
        root.path().join("none.sock").display(),
    );
    let edge = Edge::start(back_end.address, &extra);
    // None of the three can end before one has found no room.
    let mut three: Vec<TcpStream> = (0..3).map(|_| begin_upload(&edge, 200_000)).collect();
    edge.wait_for("limits.max_spooled is reached");
    // What fits into memory has no need of the room.
    let mut small = begin_upload(&edge, 60_000);
    send(&mut small, b"x");
    assert_eq!(status(&read_to_end(&mut small)), 502);
    let mut statuses = Vec::new();
    for stream in &mut three {
        send(stream, b"x");
        let answer = read_to_end(stream);
        let retry = String::from_utf8_lossy(&answer).to_lowercase().contains("retry-after: ");
        statuses.push((status(&answer), retry));
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [(502, false), (502, false), (503, true)], "one too many is told when to come again");
    let mut again = begin_upload(&edge, 200_000);
    send(&mut again, b"x");
    assert_eq!(status(&read_to_end(&mut again)), 502, "there is room again");
}
