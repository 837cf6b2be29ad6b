//! Many at once: handshakes, idle connections, slow readers, descriptors. Who is being served notices nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use socket2::{Domain, Socket, Type};

use crate::back_end::BackEnd;
use crate::edge::{DEADLINE, Edge, connect, eventually, read_to_end, send};
use crate::h2_client;
use crate::machine::promised;
use crate::tls;
use crate::tls_client::{self, Tls};

const ASK: &[u8] = b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n";
const ENDLESS: &[u8] = b"GET /endless HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// A connection from another address of loopback.
fn from(last: u8, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).expect("an address of loopback");
    socket.connect(&to.into()).expect("the edge listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

/// A client that has been answered once and stays.
fn steady(edge: &Edge) -> Tls {
    let mut client = tls_client::connect(edge.https, "a.test", &[b"http/1.1"]);
    assert_eq!(ask(&mut client), 200);
    client
}

/// Asks, and gives the status; the answer is read to its end.
fn ask(stream: &mut (impl Read + Write)) -> u16 {
    stream.write_all(ASK).expect("the request is taken");
    let head = read_head(stream);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).expect("the body");
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|e| panic!("after {:?}: {e}", String::from_utf8_lossy(&head)));
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).to_lowercase()
}

/// Whether the server has ended it, without waiting for that.
fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a mode");
    let closed = match (&mut &*stream).read(&mut [0; 64]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false).expect("a mode");
    closed
}

/// Memory of the edge that no file stands behind, in bytes.
fn memory(edge: &Edge) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", edge.process.id())).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// User and system time of all threads.
fn processor_time(edge: &Edge) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", edge.process.id())).expect("it runs");
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("ticks") + fields[12].parse::<u64>().expect("ticks");
    Duration::from_millis(ticks * 10)
}

/// Puts a line in the place of another in the file, and waits until it is in force.
fn rewrite(edge: &Edge, before: &str, after: &str) {
    let file = edge.folder.path().join("proxy.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    assert!(text.contains(before), "{text}");
    std::fs::write(&file, text.replacen(before, after, 1)).expect("the configuration");
    edge.signal(Signal::HUP);
    edge.wait_for("reloaded");
}

#[test]
fn silent_handshakes_give_way_to_new_clients_and_end_in_time() {
    let back_end = BackEnd::start();
    let edge = Edge::start_with(back_end.address, "max_handshakes = 64", "[timeouts]\nheader = \"8s\"");
    let mut client = steady(&edge);
    let closed = |crowd: &[TcpStream]| crowd.iter().filter(|stream| is_closed(stream)).count();
    let begun = Instant::now();
    let first: Vec<TcpStream> = (0..40).map(|_| from(2, edge.https)).collect();
    eventually("all over half give way", || closed(&first) == 8);
    assert_eq!(closed(&first[..8]), 8, "the oldest ones");
    let others: Vec<TcpStream> =
        (3..7).flat_map(|last| (0..16).map(move |_| last)).map(|last| from(last, edge.https)).collect();
    eventually("all over the limit give way", || closed(&first) == 40);
    assert_eq!(closed(&others), 0);
    // All places are taken by silence: who says hello is served, and so is the next one.
    for last in 10..42 {
        let mut honest = tls_client::over(from(last, edge.https), "a.test", &[b"http/1.1"]);
        assert_eq!(ask(&mut honest), 200);
    }
    // Who has had a handshake, or needs none, is served all the while.
    assert_eq!(ask(&mut client), 200);
    assert_eq!(ask(&mut connect(edge.http)), 200);
    edge.wait_for("that kept us waiting: others needed their places");
    eventually("silence has its end", || closed(&others) == 64);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(ask(&mut steady(&edge)), 200);
}

#[test]
fn the_first_half_of_another_ones_handshake_keeps_no_place_from_new_clients() {
    let back_end = BackEnd::start();
    let edge = Edge::start_with(back_end.address, "max_handshakes = 64", "[timeouts]\nheader = \"60s\"");
    let hello = tls::first_flight("a.test", &[b"http/1.1"]);
    let replay = |last| {
        let mut stream = from(last, edge.https);
        send(&mut stream, &hello);
        let mut answer = [0];
        stream.read_exact(&mut answer).expect("an answer to the hello");
        stream
    };
    let replayed: Vec<TcpStream> = [2; 32].into_iter().chain([3; 32]).map(replay).collect();
    let is_served = || {
        let mut honest = tls_client::over(from(4, edge.https), "a.test", &[b"http/1.1"]);
        honest.conn.complete_io(&mut honest.sock).is_ok() && ask(&mut honest) == 200
    };
    eventually("a place for who means it", is_served);
    edge.wait_for("that kept us waiting: others needed their places");
    drop(replayed);
}

#[test]
fn a_trusted_proxy_has_no_share_of_handshakes() {
    let back_end = BackEnd::start();
    let server = "max_handshakes = 64\ntrusted_proxies = [\"127.0.0.2\"]";
    let edge = Edge::start_with(back_end.address, server, "[timeouts]\nheader = \"3s\"");
    let crowd: Vec<TcpStream> = (0..63).map(|_| from(2, edge.https)).collect();
    assert_eq!(ask(&mut steady(&edge)), 200);
    assert_eq!(crowd.iter().filter(|stream| is_closed(stream)).count(), 0);
}

#[test]
fn a_flood_of_handshakes_leaves_time_for_who_is_connected() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut client = steady(&edge);
    let stop = AtomicBool::new(false);
    let mut took = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mut flood = tls_client::connect(edge.https, "a.test", &[b"http/1.1"]);
                    flood.conn.complete_io(&mut flood.sock).expect("a handshake");
                }
            });
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let since = Instant::now();
            assert_eq!(ask(&mut client), 200);
            took.push(since.elapsed());
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
    });
    took.sort_unstable();
    let asked = took.len();
    assert!(asked > 10, "{asked} answers");
    // One in a hundred may meet the scheduler instead of the edge.
    let slow = took[(asked * 99).div_ceil(100) - 1];
    assert!(slow < promised(Duration::from_secs(1)), "{asked} answers, one in a hundred takes {slow:?}");
}

#[test]
fn an_idle_connection_gives_way_to_a_new_client_and_a_busy_one_does_not() {
    let back_end = BackEnd::start();
    let edge = Edge::start_with(back_end.address, "max_connections = 48", "");
    let mut busy = connect(edge.http);
    send(&mut busy, ENDLESS);
    assert!(read_head(&mut busy).starts_with("http/1.1 200 "));
    let mut tunnel = connect(edge.http);
    let handshake = "GET /socket/echo HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    send(&mut tunnel, handshake.as_bytes());
    assert!(read_head(&mut tunnel).starts_with("http/1.1 101 "));
    // Many more than there are places for: every one of them is served.
    let crowd: Vec<(Tls, TcpStream)> = (0..60)
        .map(|_| {
            let mut plain = connect(edge.http);
            assert_eq!(ask(&mut plain), 200);
            (steady(&edge), plain)
        })
        .collect();
    let gone = crowd.iter().filter(|(tls, plain)| is_closed(&tls.sock) || is_closed(plain)).count();
    assert!(gone >= 30, "{gone}");
    let mut piece = [0; 5];
    busy.read_exact(&mut piece).expect("it goes on");
    send(&mut tunnel, b"\x81\x82\0\0\0\0hi");
    tunnel.read_exact(&mut piece[..4]).expect("an echo");
}

/// A client behind a thin line: little of an answer is under way to it.
fn narrow(to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(2048).expect("a buffer");
    socket.set_tcp_mss(536).expect("a segment");
    socket.connect(&to.into()).expect("the edge listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

#[test]
fn who_gives_way_gets_the_whole_of_its_last_answer() {
    const LARGE: &[u8] = b"GET /large HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let back_end = BackEnd::start();
    let edge = Edge::start_with(back_end.address, "max_connections = 48", "");
    let mut plain = narrow(edge.http);
    let mut secure = tls_client::over(narrow(edge.https), "a.test", &[b"http/1.1"]);
    for slow in [&mut plain as &mut dyn Write, &mut secure] {
        slow.write_all(LARGE).expect("the request is taken");
    }
    for head in [read_head(&mut plain), read_head(&mut secure)] {
        assert!(head.starts_with("http/1.1 200 "), "{head}");
    }
    // The slow ones keep their places for a while: there may be none for some.
    let crowd: Vec<TcpStream> = (0..90)
        .filter_map(|_| {
            let mut stream = connect(edge.http);
            (ask(&mut stream) == 200).then_some(stream)
        })
        .collect();
    assert!(crowd.iter().any(is_closed), "some had to go");
    for slow in [&mut plain as &mut dyn Read, &mut secure] {
        let mut body = vec![0; 102_400];
        slow.read_exact(&mut body).expect("the whole answer");
        assert!(body.iter().all(|byte| *byte == b'x'));
    }
}

#[test]
fn http2_clients_that_do_not_go_when_told_to_are_ended_soon() {
    let back_end = BackEnd::start();
    let edge = Edge::start_with(back_end.address, "max_connections = 48", "");
    // They answer no PING, which hyper sends behind GOAWAY.
    let crowd: Vec<h2_client::Client> = (0..47)
        .map(|_| {
            let mut client = h2_client::Client::connect(edge.https);
            client.ask(1, &h2_client::request("GET", "/x", &[]), None);
            assert_eq!(client.end(1), h2_client::End::Answer(200, 2));
            client
        })
        .collect();
    let begun = Instant::now();
    eventually("they give way", || {
        // Each newcomer ends one.
        drop(connect(edge.http));
        std::thread::sleep(Duration::from_millis(100));
        crowd.iter().filter(|client| is_closed(&client.0.sock)).count() >= 8
    });
    assert!(begun.elapsed() >= Duration::from_secs(4), "not before they had time to go: {:?}", begun.elapsed());
    assert_eq!(ask(&mut connect(edge.http)), 200);
}

#[test]
fn a_client_that_has_just_connected_does_not_give_way() {
    let back_end = BackEnd::start();
    for _ in 0..5 {
        let edge = Edge::start_with(back_end.address, "max_connections = 48", "");
        let begun = Instant::now();
        let mut fresh = connect(edge.http);
        let _silent: Vec<TcpStream> = (0..30).map(|_| connect(edge.http)).collect();
        let _answered: Vec<TcpStream> = (0..17)
            .map(|_| {
                let mut stream = connect(edge.http);
                ask(&mut stream);
                stream
            })
            .collect();
        let served = fresh.write_all(ASK).is_ok() && fresh.read(&mut [0]).is_ok_and(|n| n == 1);
        // A machine that is too busy proves nothing.
        if served || begun.elapsed() < Duration::from_millis(900) {
            assert!(served, "it was cut {:?} after it came", begun.elapsed());
            return;
        }
    }
    panic!("the machine is too busy to connect 48 times in a second");
}

#[test]
fn slow_readers_cost_what_is_stated_and_memory_has_a_limit() {
    /// What one client costs that takes nothing of an answer without end.
    const EACH: u64 = 256 << 10;
    let back_end = BackEnd::start();
    let edge = Edge::start_with(back_end.address, "max_memory = \"8GiB\"", "");
    let mut client = steady(&edge);
    let reader = || {
        let mut reader = tls_client::connect(edge.https, "a.test", &[b"http/1.1"]);
        reader.write_all(ENDLESS).expect("the request is taken");
        assert!(read_head(&mut reader).starts_with("http/1.1 200 "));
        reader
    };
    let mut crowd: Vec<Tls> = vec![reader()];
    let before = memory(&edge);
    crowd.extend((0..50).map(|_| reader()));
    let mut settled = memory(&edge);
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = memory(&edge);
        if now <= settled + (1 << 20) {
            break;
        }
        settled = now;
    }
    let each = memory(&edge).saturating_sub(before) / 50;
    assert!(each <= EACH, "{} KiB each", each >> 10);
    // As if what there is were 6 MiB more than what is in use: the next forty meet the limit.
    let limit = (memory(&edge) + (6 << 20)) / 9 * 10;
    rewrite(&edge, "max_memory = \"8GiB\"", &format!("max_memory = \"{limit}B\""));
    assert_eq!(ask(&mut client), 200);
    let end = Instant::now() + DEADLINE;
    while ask(&mut client) == 200 {
        assert!(Instant::now() < end, "{} MiB in use, {} readers", memory(&edge) >> 20, crowd.len());
        let mut reader = tls_client::connect(edge.https, "a.test", &[b"http/1.1"]);
        reader.write_all(ENDLESS).expect("the request is taken");
        crowd.push(reader);
        // Memory is looked at once a second: no more of it than a tenth may be taken meanwhile.
        std::thread::sleep(Duration::from_millis(200));
    }
    edge.wait_for("server.max_memory is ");
    assert!(memory(&edge) < limit, "{} MiB of {} MiB", memory(&edge) >> 20, limit >> 20);
    drop(crowd);
    eventually("it recovers", || {
        std::thread::sleep(Duration::from_millis(100));
        ask(&mut tls_client::connect(edge.https, "a.test", &[b"http/1.1"])) == 200
    });
    // With less than is in use nobody gets in, and who is connected is answered: nobody gives way to who is refused.
    let mut client = steady(&edge);
    rewrite(&edge, &format!("max_memory = \"{limit}B\""), "max_memory = \"1MiB\"");
    let is_refused = || {
        let mut stream = connect(edge.http);
        send(&mut stream, ASK);
        String::from_utf8_lossy(&read_to_end(&mut stream)).contains("Too many connections")
    };
    eventually("new connections are refused", is_refused);
    assert!((0..8).all(|_| is_refused()));
    assert_eq!(ask(&mut client), 503);
}

#[test]
fn without_descriptors_accept_costs_next_to_nothing_and_recovers_at_once() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut client = steady(&edge);
    let pid = Some(Pid::from_raw(edge.process.id().cast_signed()).expect("a process id"));
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limits = prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), maximum }).expect("a limit");
    let mut waiting: Vec<TcpStream> = (0..50).map(|_| connect(edge.http)).collect();
    let silent: Vec<TcpStream> = (0..50).map(|_| connect(edge.https)).collect();
    edge.wait_for("cannot accept on");
    let begun = processor_time(&edge);
    std::thread::sleep(Duration::from_secs(3));
    let spent = processor_time(&edge) - begun;
    assert!(spent <= Duration::from_millis(150), "{spent:?} of processor time in 3 s");
    send(&mut client, b"GET /files/a.txt HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert!(read_head(&mut client).starts_with("http/1.1 5"), "no file can be opened");
    prlimit(pid, Resource::Nofile, limits).expect("a limit");
    let since = Instant::now();
    for stream in &mut waiting {
        assert_eq!(ask(stream), 200);
    }
    assert!(since.elapsed() < promised(Duration::from_secs(4)), "{:?}", since.elapsed());
    drop(silent);
}
