//! HTTP/2 over TLS, in frames made by hand: what a well-behaved library would never send.

use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::back_end::BackEnd;
use crate::edge::{DEADLINE, Edge, eventually};
use crate::h2_client::*;
use crate::tls_client;

#[test]
fn answers_to_head_and_without_content_have_no_data() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut client = Client::connect(edge.https);
    for (stream, method, path, status) in [
        (1, "HEAD", "/files/none", 404),
        (3, "HEAD", "/a%2fb", 400),
        (5, "HEAD", "/files/a.txt", 200),
        (7, "HEAD", "/x", 200),
        (9, "GET", "/no-content", 204),
        (11, "GET", "/moved/x", 301),
    ] {
        // Literal statuses go into a table that this client does not keep: a new connection each.
        if status != 200 {
            client = Client::connect(edge.https);
        }
        client.ask(stream, &request(method, path, &[]), None);
        assert_eq!(client.end(stream), End::Answer(status, 0), "{method} {path}");
    }
}

#[test]
fn a_cut_answer_is_reset_and_a_reset_frees_the_back_end() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut client = Client::connect(edge.https);
    client.ask(1, &request("GET", "/cut-length", &[]), None);
    assert_eq!(client.end(1), End::Reset(5));
    client.ask(3, &request("GET", "/endless", &[]), None);
    client.ask(5, &request("GET", "/silent", &[]), None);
    eventually("both are asked", || back_end.open() >= 2);
    for stream in [3, 5] {
        client.send(&frame(RESET, 0, stream, &8u32.to_be_bytes()));
    }
    eventually("both back ends are let go", || back_end.open() == 0);
    // What was under way has used the connection's window up.
    client.send(&frame(WINDOW_UPDATE, 0, 0, &0x10_0000u32.to_be_bytes()));
    client.ask(7, &request("GET", "/x", &[]), None);
    assert_eq!(client.end(7), End::Answer(200, 2));
}

/// The frames of stream 1, up to the end of stream 3, its reset, or the connection's end: kind, END_STREAM, payload.
fn frames_of_the_first(client: &mut Client) -> Vec<(u8, bool, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((kind, flags, stream, payload)) = client.frame() {
        let end = flags & END_STREAM != 0 && (kind == HEADERS || kind == DATA);
        if stream == 1 && kind != WINDOW_UPDATE {
            frames.push((kind, end, payload));
        }
        if kind == RESET || stream == 3 && end {
            break;
        }
    }
    frames
}

#[test]
fn an_answer_before_the_end_of_a_short_body_waits_for_it_and_is_not_reset() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let head = frame(HEADERS, END_HEADERS, 1, &block(&request("POST", "/early", &[("content-length", "9")])));
    for rest in [&b"1234567"[..], b""] {
        let mut client = Client::connect(edge.https);
        client.send(&[head.clone(), frame(DATA, 0, 1, b"ab")].concat());
        while client.frame().is_some_and(|(kind, ..)| kind != DATA) {}
        if rest.is_empty() {
            // RFC 9113, section 8.1: all of the answer first, then "an error code of NO_ERROR".
            let frames = frames_of_the_first(&mut client);
            assert_eq!(frames, [(DATA, true, vec![]), (RESET, false, vec![0; 4])]);
            continue;
        }
        // The back end has said all by now.
        std::thread::sleep(Duration::from_millis(150));
        client.send(&frame(DATA, END_STREAM, 1, rest));
        client.ask(3, &request("GET", "/x", &[]), None);
        assert_eq!(frames_of_the_first(&mut client), [(DATA, true, vec![])]);
    }
}

#[test]
fn what_a_client_begins_to_say_has_to_be_said_in_time() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[timeouts]\nheader = \"1s\"");
    let preface = &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..];
    let settings = frame(SETTINGS, 0, 0, &[]);
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&request("GET", "/x", &[])));
    let begun = |bytes: &[u8]| [preface, &settings, bytes].concat();
    for (what, bytes) in [
        ("silence", Vec::new()),
        ("half a preface", preface[..11].to_vec()),
        ("no SETTINGS", preface.to_vec()),
        ("half of SETTINGS", [preface, &frame(SETTINGS, 0, 0, &[0; 6])[..12]].concat()),
        ("half a frame's header", begun(&head[..5])),
        ("half a head", begun(&head[..head.len() - 3])),
        ("a head without its CONTINUATION", begun(&frame(HEADERS, END_STREAM, 1, &head[9..]))),
        ("half a PING", begun(&frame(PING, 0, 0, &[0; 8])[..12])),
    ] {
        let since = Instant::now();
        let mut client = Client(tls_client::connect(edge.https, "a.test", &[b"h2"]));
        client.0.conn.complete_io(&mut client.0.sock).expect("a handshake");
        client.send(&bytes);
        while client.frame().is_some() {}
        assert!(since.elapsed() >= Duration::from_millis(900) && since.elapsed() < DEADLINE / 2, "{what}: {since:?}");
    }
    // Drop by drop is no way around it, and who has said all may be silent.
    let mut client = Client::connect(edge.https);
    client.ask(1, &request("GET", "/x", &[]), None);
    assert_eq!(client.end(1), End::Answer(200, 2));
    std::thread::sleep(Duration::from_millis(1500));
    let slow = block(&request("GET", "/x", &[("x", &"a".repeat(400))]));
    client.send(
        &[&[0, (slow.len() >> 8) as u8, slow.len() as u8, HEADERS, END_HEADERS | END_STREAM, 0, 0, 0, 3][..]].concat(),
    );
    let since = Instant::now();
    for byte in slow {
        client.send(&[byte]);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(client.end(3), End::Gone);
    assert!(since.elapsed() < DEADLINE / 2);
}

#[test]
fn a_client_that_grants_no_window_lets_go_of_the_back_end() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[timeouts]\nwrite = \"1s\"");
    let mut client = Client::connect(edge.https);
    // SETTINGS_INITIAL_WINDOW_SIZE = 0.
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    client.ask(1, &request("GET", "/endless", &[]), None);
    eventually("the back end is asked", || back_end.open() >= 1);
    eventually("the back end is let go", || back_end.open() == 0);
    assert_eq!(client.end(1), End::Reset(0));
}

#[test]
fn a_back_ends_no_to_a_socket_is_passed_on() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    // The client need not have seen SETTINGS: nobody can tell (RFC 8441, section 3).
    for protocol in ["websocket", "WebSocket"] {
        let mut client = Client::connect(edge.https);
        client.ask(1, &extended("/no-socket", protocol), None);
        assert_eq!(client.end(1), End::Answer(403, 2), "{protocol}");
        client.ask(3, &request("GET", "/canary", &[]), None);
        assert_eq!(client.end(3), End::Answer(200, 2));
        let seen = back_end.take();
        assert!(seen[0].head.starts_with("GET /no-socket HTTP/1.1\r\n"), "{seen:?}");
        assert!(seen[0].head.contains("\r\nupgrade: websocket\r\n"), "{seen:?}");
        assert!(!seen[0].head.contains("protocol"), "{seen:?}");
    }
}

#[test]
fn a_reset_ends_a_tunnel_at_once_whatever_its_back_end_does() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[log]\naccess = \"stderr\"");
    for code in [8u32, 0, 1] {
        let mut client = Client::connect(edge.https);
        client.open(1, &extended("/socket/stubborn", "websocket"));
        client.open(3, &extended("/socket/stubborn", "websocket"));
        client.send(&frame(RESET, 0, 1, &code.to_be_bytes()));
        let begun = Instant::now();
        edge.wait_for("ws=close");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?} after code {code}", begun.elapsed());
        // The end of the connection is the end of the other.
        drop(client);
        edge.wait_for("ws=close");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?} after the connection", begun.elapsed());
    }
}

#[test]
fn a_tunnel_whose_client_grants_no_window_is_given_up_and_reset() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[timeouts]\nwrite = \"1s\"\n[log]\naccess = \"stderr\"");
    let mut client = Client::connect(edge.https);
    // SETTINGS_INITIAL_WINDOW_SIZE = 0.
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    client.open(1, &extended("/socket/flood", "websocket"));
    edge.wait_for("ws=close");
    eventually("the back end is let go", || back_end.open() == 0);
    assert_eq!(client.end(1), End::Reset(0));
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]));
    client.ask(3, &request("GET", "/x", &[]), None);
    assert_eq!(client.end(3), End::Answer(200, 2));
}

/// The head of a client's binary frame of `length` bytes; its mask is zeros.
fn socket_frame(length: u16) -> Vec<u8> {
    [&[0x82, 0xfe][..], &length.to_be_bytes(), &[0; 4]].concat()
}

#[test]
fn a_burst_of_tiny_data_frames_goes_through_and_the_connection_lives() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut client = Client::connect(edge.https);
    for stream in [1, 3] {
        client.open(stream, &extended("/socket/echo", "websocket"));
    }
    // 2 × 20,000 frames of one byte: at a time, and each behind one of the other stream.
    let said = [socket_frame(19_992), vec![7; 19_992]].concat();
    let frames = said.iter().flat_map(|byte| [frame(DATA, 0, 1, &[*byte]), frame(DATA, 0, 3, &[*byte])]);
    client.send(&frames.flatten().collect::<Vec<u8>>());
    let mut heard = [Vec::new(), Vec::new()];
    while heard.iter().any(|heard| heard.len() < said.len()) {
        let (kind, _, stream, payload) = client.frame().expect("the connection lives");
        if kind == DATA {
            heard[usize::from(stream == 3)].extend(payload);
        }
    }
    assert!(heard.iter().all(|heard| *heard == said));
    client.ask(5, &request("GET", "/x", &[]), None);
    assert_eq!(client.end(5), End::Answer(200, 2));
}

#[test]
fn frames_that_ask_for_nothing_end_the_connection_of_a_socket() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[log]\nlevel = \"debug\"");
    for (flood, most, why) in [
        (frame(PING, 0, 0, &[0; 8]), 10_000, "control frames"),
        (frame(PING, ACK, 0, &[0; 8]), 10_000, "control frames"),
        (frame(SETTINGS, 0, 0, &[]), 10_000, "control frames"),
        (frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()), 10_000, "control frames"),
        (frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()), 10_000, "control frames"),
        (frame(PRIORITY, 0, 1, &[0; 5]), 10_000, "control frames"),
        (frame(DATA, 0, 1, b""), 100, "excessive load"),
    ] {
        let mut client = Client::connect(edge.https);
        client.open(1, &extended("/socket/echo", "websocket"));
        client.send(&flood.repeat(most + 1));
        assert_eq!(client.end(1), End::Gone, "{flood:?}");
        // What it still sends would be read for a while.
        drop(client);
        let line = edge.wait_for("connection ended");
        assert!(line.contains(why), "{flood:?}: {line}");
    }
}

#[test]
fn a_trusted_proxy_may_send_more_control_frames_and_not_without_end() {
    let back_end = BackEnd::start();
    let edge = Edge::start_with(back_end.address, "trusted_proxies = [\"127.0.0.1\"]", "[log]\nlevel = \"debug\"");
    let mut client = Client::connect(edge.https);
    let flood = frame(PING, ACK, 0, &[0; 8]);
    client.send(&flood.repeat(20_000));
    client.ask(1, &request("GET", "/x", &[]), None);
    assert_eq!(client.end(1), End::Answer(200, 2));
    client.send(&flood.repeat(60_000));
    assert_eq!(client.end(3), End::Gone);
    let line = edge.wait_for("connection ended");
    assert!(line.contains("more than 50000 control frames"), "{line}");
}

#[test]
fn a_client_may_grant_window_for_each_tiny_frame_that_it_gets() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut client = Client::connect(edge.https);
    client.open(1, &extended("/socket/echo", "websocket"));
    client.send(&frame(DATA, 0, 1, &socket_frame(8000)));
    let mut heard = 0;
    // One byte is under way at a time, so that each comes back in a frame of its own.
    let grants = [0, 1].map(|stream| frame(WINDOW_UPDATE, 0, stream, &1u32.to_be_bytes())).concat();
    while heard < 8000 {
        let (kind, _, _, payload) = client.frame().expect("the connection lives");
        if kind == DATA {
            heard += payload.len();
            client.send(&[grants.clone(), frame(DATA, 0, 1, b"x")].concat());
        }
    }
}

#[test]
fn a_client_that_goes_on_sending_and_reads_late_is_still_told_why_its_connection_ended() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    // What does not fit into so little waits in the server's socket, where a reset destroys it.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(&edge.https.into()).expect("the edge listens");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut client = Client(tls_client::over(socket.into(), "a.test", &[b"h2"]));
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.send(&frame(SETTINGS, 0, 0, &[]));
    client.ask(1, &request("GET", "/endless", &[]), None);
    eventually("the back end is asked", || back_end.open() >= 1);
    std::thread::sleep(Duration::from_millis(200));
    // RFC 9113, section 6.9: an increment of 0 is an error of the connection. Behind it comes what nobody reads any more.
    client.send(&[frame(WINDOW_UPDATE, 0, 0, &[0; 4]), frame(PING, 0, 0, &[0; 8]).repeat(4000)].concat());
    eventually("the back end is let go", || back_end.open() == 0);
    std::thread::sleep(Duration::from_millis(200));
    let reason = std::iter::from_fn(|| client.frame()).find(|(kind, ..)| *kind == GOAWAY);
    let (.., payload) = reason.expect("GOAWAY");
    assert_eq!(payload[4..8], [0, 0, 0, 1], "PROTOCOL_ERROR");
}
