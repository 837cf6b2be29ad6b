//! Tunnels over HTTP/2 (RFC 8441): Node's http2 asks, ws and back ends of our own answer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::harness::{BackEnd, Node, Proxy, SOON, Seen, Waiting, World, free_port, run_node, wait_until};

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

fn ask(world: &World, proxy: &Proxy, mode: &str, more: &[&str]) -> Value {
    let url = proxy.url("app.test");
    run_node(world, "h2-sockets.js", &[&["--url", &url, "--mode", mode], more].concat())
}

/// The 101 that answers `seen`.
fn switch(seen: &Seen, stream: &mut TcpStream) {
    let accept = derive_accept_key(seen.field("sec-websocket-key").unwrap_or("").as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
}

/// A back end that does `then` with every socket at /live, echoes at /echo, and answers the rest with 200.
fn special(then: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> BackEnd {
    BackEnd::answering(move |seen, stream| {
        if seen.field("upgrade").is_none() {
            return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok();
        }
        switch(seen, stream);
        if seen.line().contains("/echo") {
            echo_frames(stream);
        } else {
            then(stream);
        }
        false
    })
}

/// Unmasks and sends back, for short frames.
fn echo_frames(stream: &mut TcpStream) {
    let mut head = [0; 6];
    while stream.read_exact(&mut head).is_ok() {
        let mut payload = vec![0; usize::from(head[1] & 0x7f)];
        stream.read_exact(&mut payload).unwrap();
        payload.iter_mut().zip(head[2..].iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        let mut frame = vec![head[0], head[1] & 0x7f];
        frame.extend(payload);
        if stream.write_all(&frame).is_err() {
            return;
        }
    }
}

#[test]
fn a_hundred_sockets_of_one_connection_echo_through_ws() {
    let world = World::new();
    let node = Node::serve(&world, "ws-server.js", &[]);
    let proxy = world.proxy(&site(&node.url(), ""));
    let result = ask(&world, &proxy, "echo", &["--sockets", "100"]);
    assert_eq!(result["offered"], true, "{result}");
    assert_eq!(result["intact"], true);
    assert_eq!(result["page"]["status"], 200);
    assert!(result["codes"].as_array().unwrap().iter().all(|code| code == 4001), "{result}");
}

#[test]
fn the_back_end_gets_an_http1_handshake_with_a_fresh_key() {
    let world = World::new();
    let (backend, proxy) = start(&world, "");
    let fields = json!({
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-protocol": "chat",
        "origin": "https://app.test",
        "cookie": "a=1",
    });
    for _ in 0..2 {
        ask(&world, &proxy, "refused", &["--path", "/live?x=1", "--fields", &fields.to_string()]);
    }
    let seen: Vec<Seen> = backend.seen().into_iter().filter(|seen| seen.field("upgrade").is_some()).collect();
    assert_eq!(seen.len(), 2);
    for seen in &seen {
        assert_eq!(seen.line(), "GET /live?x=1 HTTP/1.1");
        assert_eq!(seen.field("upgrade"), Some("websocket"));
        assert_eq!(seen.field("connection").map(str::to_lowercase).as_deref(), Some("upgrade"));
        assert_eq!(seen.field("host"), Some(format!("app.test:{}", proxy.https()).as_str()));
        assert_eq!(seen.field("sec-websocket-version"), Some("13"));
        assert_eq!(seen.field("sec-websocket-protocol"), Some("chat"));
        assert_eq!(seen.field("origin"), Some("https://app.test"));
        assert_eq!(seen.field("x-forwarded-proto"), Some("https"));
        assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(seen.field("sec-websocket-key").map(str::len), Some(24));
        assert_ne!(seen.field("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    }
    assert_ne!(seen[0].field("sec-websocket-key"), seen[1].field("sec-websocket-key"));
}

#[test]
fn what_is_sent_before_the_answer_is_not_lost() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    assert_eq!(ask(&world, &proxy, "early", &[]), json!({ "status": 200, "back": "early" }));
}

#[test]
fn an_end_of_one_side_leaves_the_other_open() {
    let world = World::new();
    let backend = special(|stream| {
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        // A large answer, for which the client has to grant window, and the end behind it.
        stream.write_all(said.repeat(100_000).as_bytes()).unwrap();
    });
    let proxy = world.proxy(&site(&backend.url(), ""));
    let result = ask(&world, &proxy, "half", &[]);
    assert_eq!(result["status"], 200);
    assert_eq!(result["said"].as_str().map(str::len), Some(300_000));
    assert_eq!(result["reset"], 0, "{result}");
}

#[test]
fn a_reset_stream_ends_its_tunnel_and_no_other() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    for (before, code) in ["8", "0", "2"].into_iter().enumerate() {
        let url = proxy.url("app.test");
        let (client, _) = Waiting::start(&world, "h2-sockets.js", &["--url", &url, "--mode", "reset", "--code", code]);
        let begun = Instant::now();
        wait_until("the tunnel has ended", SOON, || closed(&proxy).len() > 2 * before);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?} after code {code}", begun.elapsed());
        assert_eq!(client.result()["other"], true, "code {code}");
        wait_until("the other has ended", SOON, || closed(&proxy).len() == 2 * (before + 1));
    }
}

/// The closing lines of sockets in the access log.
fn closed(proxy: &Proxy) -> Vec<String> {
    proxy.running.stdout().into_iter().filter(|line| line.contains("ws=close")).collect()
}

#[test]
fn the_log_says_that_a_socket_came_over_http2() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    ask(&world, &proxy, "echo", &[]);
    wait_until("the closing line", SOON, || !closed(&proxy).is_empty());
    let lines: Vec<String> = proxy.running.stdout().into_iter().filter(|line| line.contains("CONNECT")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("\"CONNECT /live HTTP/2.0\" 200 ")), "{lines:?}");
    assert!(lines[1].contains("ws=close code=4001"), "{lines:?}");
}

#[test]
fn a_quiet_socket_outlives_the_timeouts_of_its_connection() {
    let world = World::new();
    let backend = BackEnd::start();
    let short = "[timeouts]\nheader = \"300ms\"\nbody = \"300ms\"\nkeepalive = \"300ms\"\nread = \"300ms\"\nwrite = \"300ms\"\n";
    let proxy = Proxy::start(&world, &format!("{}{short}{}", world.head(), site(&backend.url(), "")));
    // Silence for longer than any of them is the very thing under test.
    let result = ask(&world, &proxy, "hold", &["--sockets", "3", "--quiet", "1500"]);
    assert_eq!(result, json!({ "codes": [1000, 1000, 1000], "echoes": [true, true, true], "goaway": false }));
}

#[test]
fn a_connection_that_is_told_to_go_keeps_its_sockets() {
    let world = World::new();
    let backend = BackEnd::start();
    let two = format!("https = [\"127.0.0.1:{}\", \"127.0.0.2:0\"]", free_port());
    let both = world.head().replace("https = [\"127.0.0.1:0\"]", &two);
    let one = world.head().replace("https = [\"127.0.0.1:0\"]", "https = [\"127.0.0.2:0\"]");
    let more = format!("[timeouts]\nwrite = \"300ms\"\nkeepalive = \"300ms\"\n{}", site(&backend.url(), ""));
    let proxy = Proxy::start(&world, &format!("{both}{more}"));
    let url = proxy.url("app.test");
    let arguments = ["--url", &url, "--mode", "hold", "--sockets", "2", "--quiet", "2000"];
    let (client, _) = Waiting::start(&world, "h2-sockets.js", &arguments);
    // The listener leaves the file, and its connections end with what is under way.
    proxy.rewrite(&format!("{one}{more}"));
    assert_eq!(proxy.reload().code, 0);
    assert_eq!(client.result(), json!({ "codes": [1000, 1000], "echoes": [true, true], "goaway": true }));
}

#[test]
fn a_stop_closes_sockets_with_a_close_frame() {
    let world = World::new();
    let (_backend, mut proxy) = start(&world, "");
    let url = proxy.url("app.test");
    let (client, _) = Waiting::start(&world, "h2-sockets.js", &["--url", &url, "--mode", "hold", "--sockets", "20"]);
    proxy.running.signal(rustix::process::Signal::TERM);
    let result = client.result();
    assert_eq!(result["goaway"], true);
    assert_eq!(result["codes"], json!([1001].repeat(20)), "{result}");
    assert!(proxy.running.wait_exit(SOON).success());
}

/// What a handshake with these fields is answered with; the page beside it must be answered 200.
fn refused(world: &World, proxy: &Proxy, path: &str, fields: &Value) -> Value {
    let result = ask(world, proxy, "refused", &["--path", path, "--fields", &fields.to_string()]);
    assert_eq!(result["page"]["status"], 200, "{fields}: {result}");
    result
}

#[test]
fn what_is_not_offered_is_not_taken() {
    let world = World::new();
    let backend = BackEnd::start();
    let to = backend.url();
    let proxies =
        [
            world.proxy(&site(&to, "http2 = false")),
            world.proxy(&format!("[site.app]\nhosts = [\"app.test\"]\nupstream = {to:?}\n")),
            // One that is off is off for its site: the offer is the connection's.
            world.proxy(
                &site(&to, &format!("[[site.app.websocket]]\nto = {to:?}\npaths = [\"/x\"]\nhttp2 = false\n"))
                    .replacen("[site.app.websocket]", "[[site.app.websocket]]", 1),
            ),
            // A browser would use the connection for all hosts of its certificate.
            world.proxy(
                &(site(&to, "")
                    + &site(&to, "http2 = false").replace("site.app", "site.b").replace("app.test", "*.app.test")),
            ),
        ];
    for proxy in &proxies {
        let result = refused(&world, proxy, "/live", &json!({}));
        assert_ne!(result["offered"], true, "{result}");
        assert_eq!((&result["status"], &result["reset"]), (&json!(0), &json!(1)), "PROTOCOL_ERROR: {result}");
    }
    assert!(backend.seen().iter().all(|seen| seen.field("upgrade").is_none()));
}

#[test]
fn a_socket_that_cannot_be_is_refused_and_never_a_page() {
    let world = World::new();
    let backend = BackEnd::answering(|seen, stream| {
        let head = match seen.line().split(' ').nth(1).unwrap() {
            "/plain" | "/" => "HTTP/1.1 200 OK\r\n",
            "/forbidden" => "HTTP/1.1 403 Forbidden\r\nX-Why: origin\r\n",
            "/wrong" => {
                "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n"
            }
            _ => "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        };
        let _ = stream.write_all(format!("{head}Content-Length: 2\r\n\r\nno").as_bytes());
        // The proxy is to close it, unless it is a page.
        let mut rest = Vec::new();
        seen.field("upgrade").is_none() || stream.read_to_end(&mut rest).is_err()
    });
    let to = backend.url();
    let more = "[[site.app.route]]\npath = \"/files/*\"\nroot = \"/\"\n";
    let paths = "preset = \"none\"\npaths = [\"/live/*\", \"/plain\", \"/forbidden\", \"/wrong\", \"/without\"]";
    let proxy = world.proxy(&site(&to, more).replace("preset = \"any\"\nto", &format!("{paths}\nto")));
    for (path, fields, status) in [
        ("/plain", json!({}), 502),
        ("/wrong", json!({}), 502),
        ("/without", json!({}), 502),
        ("/forbidden", json!({}), 403),
        ("/elsewhere", json!({}), 404),
        ("/files/etc/hostname", json!({}), 404),
        ("/live/x", json!({ ":protocol": "connect-udp" }), 501),
        ("/live/x", json!({ "sec-websocket-version": "8" }), 400),
        ("/live/../..", json!({}), 400),
    ] {
        let result = refused(&world, &proxy, path, &fields);
        assert_eq!(result["status"], status, "{path} {fields}: {result}");
        assert_eq!(result["reset"], 0, "NO_ERROR: {path} {fields}: {result}");
    }
}

#[test]
fn the_rules_of_sockets_hold_over_http2() {
    let world = World::new();
    let (backend, proxy) = start(&world, "origins = [\"self\"]\nmax_message = \"1KiB\"\nmax_connections = 1");
    let foreign = refused(&world, &proxy, "/live", &json!({ "origin": "https://evil.test" }));
    assert_eq!((&foreign["status"], &foreign["reset"]), (&json!(403), &json!(0)), "{foreign}");
    assert!(backend.seen().iter().all(|seen| seen.field("upgrade").is_none()));
    // The place of each is free again for the next.
    for _ in 0..3 {
        let before = closed(&proxy).len();
        assert_eq!(ask(&world, &proxy, "breach", &["--size", "1025"]), json!({ "code": 1009 }));
        wait_until("its place is free", SOON, || closed(&proxy).len() > before);
    }
}

#[test]
fn a_switch_that_is_turned_off_ends_the_offer_and_no_socket() {
    let world = World::new();
    let (backend, proxy) = start(&world, "");
    let url = proxy.url("app.test");
    let (client, _) = Waiting::start(&world, "h2-sockets.js", &["--url", &url, "--mode", "switched"]);
    proxy.rewrite(&format!("{}{}", world.head(), site(&backend.url(), "http2 = false")));
    assert_eq!(proxy.reload().code, 0);
    let result = client.result();
    assert_eq!(result["offered"], true);
    // The client learns it, is sent away, and does not find the offer again; what is open stays.
    assert_eq!(
        (&result["status"], &result["goaway"], &result["again"]),
        (&json!(421), &json!(true), &json!(false)),
        "{result}"
    );
    assert_eq!(result["echo"], true);
}

#[test]
fn silent_tunnels_hold_little_memory() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "");
    ask(&world, &proxy, "echo", &[]);
    let before = proxy.memory("VmRSS");
    let url = proxy.url("app.test");
    let (client, _) = Waiting::start(&world, "h2-sockets.js", &["--url", &url, "--mode", "hold", "--sockets", "250"]);
    // What the handshakes took goes back within a second or two.
    let each = || proxy.memory("VmRSS").saturating_sub(before) / 250;
    wait_until("a tunnel holds less than 16 KiB", SOON, || each() < 16 << 10);
    drop(client);
}

#[test]
fn a_flood_is_held_back_by_a_client_that_does_not_read() {
    let world = World::new();
    let written = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&written);
    let backend = special(move |stream| {
        // A binary frame of 8 GiB, so that all of it is one message.
        stream.write_all(&[0x82, 127, 0, 0, 0, 2, 0, 0, 0, 0]).unwrap();
        let piece = vec![7; 64 << 10];
        while stream.write_all(&piece).is_ok() {
            count.fetch_add(64 << 10, Ordering::Relaxed);
        }
    });
    let proxy = world.proxy(&site(&backend.url(), ""));
    let url = proxy.url("app.test");
    ask(&world, &proxy, "refused", &["--path", "/echo"]);
    let before = proxy.memory("VmRSS");
    let arguments = ["--url", &url, "--mode", "flood", "--ms", "3000", "--bytes", "200000000"];
    let (client, _) = Waiting::start(&world, "h2-sockets.js", &arguments);
    std::thread::sleep(Duration::from_millis(2500));
    let (taken, grown) = (written.load(Ordering::Relaxed), proxy.memory("VmRSS").saturating_sub(before));
    let result = client.result();
    eprintln!("taken {taken}, grown {grown}, {result}");
    // Nearly all of this lies in the buffers of the kernel.
    assert!(taken < 16 << 20, "{taken} bytes were taken from the back end");
    assert!(grown < 8 << 20, "{grown} bytes were put on");
    assert!(result["pages"].as_u64().unwrap() > 10, "{result}");
    assert!(result["slowest"].as_u64().unwrap() < 1000, "a GET beside the flood: {result}");
    assert!(result["bytes"].as_u64().unwrap() >= 200_000_000, "{result}");
}

#[test]
fn a_client_that_floods_is_held_back_by_a_back_end_that_does_not_read() {
    let world = World::new();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let backend = special(move |_| {
        let _ = released.lock().unwrap().recv_timeout(Duration::from_secs(30));
    });
    let proxy = world.proxy(&site(&backend.url(), ""));
    ask(&world, &proxy, "refused", &["--path", "/echo"]);
    let before = proxy.memory("VmRSS");
    let result = ask(&world, &proxy, "fill", &[]);
    let grown = proxy.memory("VmRSS").saturating_sub(before);
    drop(release);
    eprintln!("grown {grown}, {result}");
    assert!(result["bytes"].as_u64().unwrap() < 16 << 20, "{result}");
    assert!(grown < 8 << 20, "{grown} bytes were put on");
    assert_eq!((&result["page"]["status"], &result["beside"]), (&json!(200), &json!(true)), "{result}");
    assert!(result["page"]["ms"].as_u64().unwrap() < 1000, "{result}");
}
