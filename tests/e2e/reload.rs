//! A new file under live traffic.

use std::io::{Read, Write};
use std::time::Duration;

use crate::harness::{BackEnd, Node, Proxy, SOON, Socket, Waiting, World, wait_until};

fn site(name: &str, host: &str, to: &str) -> String {
    format!(
        "[site.{name}]\nhosts = [{host:?}]\nupstream = {to:?}\n[site.{name}.websocket]\npreset = \"any\"\nto = {to:?}\n"
    )
}

fn start(world: &World) -> (BackEnd, BackEnd, Proxy) {
    let (one, two) = (BackEnd::start(), BackEnd::start());
    let proxy = world.proxy(&site("app", "app.test", &one.url()));
    (one, two, proxy)
}

fn asked(backend: &BackEnd, path: &str) -> bool {
    backend.seen().iter().any(|seen| seen.line().contains(path))
}

#[test]
fn doorward_reload_puts_the_new_file_in_force() {
    let world = World::new();
    let (one, two, proxy) = start(&world);
    proxy.curl("app.test").get("/first").expect(200);
    assert!(asked(&one, "/first"));
    let port = proxy.https();
    proxy.rewrite(&format!("{}{}", world.head(), site("app", "app.test", &two.url())));
    let end = proxy.reload();
    assert_eq!(end.code, 0, "{}", end.said());
    // In force when the command ends, not some time after.
    proxy.curl("app.test").get("/second").expect(200);
    assert!(asked(&two, "/second") && !asked(&one, "/second"));
    assert_eq!(proxy.https(), port, "the listener stayed");
}

#[test]
fn sighup_puts_the_new_file_in_force() {
    let world = World::new();
    let (_one, two, proxy) = start(&world);
    proxy.rewrite(&format!("{}{}", world.head(), site("app", "app.test", &two.url())));
    proxy.running.signal(rustix::process::Signal::HUP);
    wait_until("the new file", SOON, || {
        proxy.curl("app.test").get("/second").expect(200);
        asked(&two, "/second")
    });
}

#[test]
fn a_bad_file_changes_nothing_and_is_told() {
    let world = World::new();
    let (one, two, mut proxy) = start(&world);
    let bad = [
        ("not TOML", "this is [no TOML".to_owned()),
        ("an unknown key", format!("{}[site.app]\nhosts = [\"app.test\"]\nupstraem = {:?}\n", world.head(), two.url())),
        (
            "a certificate that is not there",
            format!(
                "{}[site.app]\nhosts = [\"app.test\"]\ntls = \"/nowhere\"\nupstream = {:?}\n",
                world.head(),
                two.url()
            ),
        ),
        ("an empty file", String::new()),
    ];
    for (what, toml) in bad {
        proxy.rewrite(&toml);
        let end = proxy.reload();
        assert_eq!(end.code, 1, "{what}: {}", end.said());
        assert!(end.stderr.len() > 10, "{what}: no reason given");
        proxy.curl("app.test").get("/still").expect(200);
    }
    proxy.rewrite("[nonsense");
    let before = proxy.running.stderr().len();
    proxy.running.signal(rustix::process::Signal::HUP);
    wait_until("a word in the log", SOON, || {
        proxy.running.stderr()[before..].iter().any(|line| line.contains("proxy.toml"))
    });
    proxy.curl("app.test").get("/still").expect(200);
    assert!(two.seen().is_empty());
    assert!(asked(&one, "/still"));
    assert!(proxy.running.alive());
}

#[test]
fn live_websockets_outlast_many_reloads() {
    let world = World::new();
    let (one, two, proxy) = start(&world);
    let mut sockets: Vec<_> = (0..20).map(|_| Socket::open(&world, &proxy, "app.test", "/live")).collect();
    for round in 0..5 {
        let extra = site("more", &format!("r{round}.app.test"), &two.url());
        let same = format!("{}{}", world.head(), site("app", "app.test", &one.url()));
        proxy.rewrite(&format!("{same}{extra}"));
        let end = proxy.reload();
        assert_eq!(end.code, 0, "{}", end.said());
        proxy.curl(&format!("r{round}.app.test")).get("/").expect(200);
        for socket in &mut sockets {
            socket.echoes(&format!("round {round}"));
        }
    }
}

#[test]
fn a_websocket_ends_when_its_site_leaves_the_file_and_others_stay() {
    let world = World::new();
    let (one, two) = (BackEnd::start(), BackEnd::start());
    let stays = site("app", "app.test", &one.url());
    let proxy = world.proxy(&format!("{stays}{}", site("gone", "gone.app.test", &two.url())));
    let mut kept = Socket::open(&world, &proxy, "app.test", "/live");
    let mut lost = Socket::open(&world, &proxy, "gone.app.test", "/live");
    lost.echoes("hello");
    proxy.rewrite(&format!("{}{stays}", world.head()));
    assert_eq!(proxy.reload().code, 0);
    // "going away", by a close frame; it never just breaks.
    assert_eq!(lost.closed(), Some(1012));
    kept.echoes("still here");
    assert!(proxy.curl("gone.app.test").send("/").is_err(), "the name is served no more");
}

#[test]
fn a_websocket_ends_when_its_route_leaves_the_file_though_its_back_end_stays() {
    let world = World::new();
    let one = BackEnd::start();
    let site = |paths: &str| {
        let to = one.url();
        format!(
            "[site.app]\nhosts = [\"app.test\"]\nupstream = {to:?}\n[site.app.websocket]\npaths = {paths}\nto = {to:?}\n"
        )
    };
    let proxy = world.proxy(&site("[\"/live\", \"/chat/*\"]"));
    let mut kept = Socket::open(&world, &proxy, "app.test", "/chat/%72oom?id=1");
    let mut lost = Socket::open(&world, &proxy, "app.test", "/live");
    lost.echoes("hello");
    proxy.rewrite(&format!("{}{}", world.head(), site("[\"/chat/room\"]")));
    assert_eq!(proxy.reload().code, 0);
    assert_eq!(lost.closed(), Some(1012));
    kept.echoes("still here");
}

#[test]
fn a_socket_io_session_loses_no_event_over_reloads() {
    let world = World::new();
    let node = Node::serve(&world, "socketio-server.js", &[]);
    let socket_io = format!("[site.app.websocket]\npreset = \"socket.io\"\nto = {:?}\n", node.url());
    let app = format!("[site.app]\nhosts = [\"app.test\"]\nupstream = {:?}\n{socket_io}", node.url());
    let proxy = world.proxy(&app);
    for mode in ["polling", "websocket", "upgrade"] {
        let (url, done) = (proxy.url("app.test"), world.path(format!("done-{mode}")));
        let until = done.display().to_string();
        let arguments = ["--url", &url, "--mode", mode, "--until", &until];
        let (client, _) = Waiting::start(&world, "socketio-client.js", &arguments);
        for round in 0..6 {
            let more = site("more", &format!("r{round}.app.test"), &node.url());
            proxy.rewrite(&format!("{}{app}{}", world.head(), if round % 3 == 2 { "[nonsense" } else { &more }));
            assert_eq!(proxy.reload().code, i32::from(round % 3 == 2));
        }
        std::fs::write(&done, "").unwrap();
        let result = client.result();
        // Each is numbered: none is missing, none came twice, and nobody was disconnected.
        assert!(result["broken"].is_null(), "{mode}: {result}");
        assert!(result["sent"].as_u64() > Some(50), "{mode}: {result}");
        assert_eq!(result["received"], result["sent"], "{mode}: {result}");
    }
}

#[test]
fn a_websocket_that_opens_while_its_site_leaves_the_file_is_closed_too() {
    let world = World::new();
    let (allow, allowed) = std::sync::mpsc::channel::<()>();
    let allowed = std::sync::Mutex::new(allowed);
    let slow = BackEnd::answering(move |_, stream| {
        let _ = allowed.lock().unwrap().recv_timeout(SOON);
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        );
        // The masked Close frame of the edge.
        stream.read_exact(&mut [0; 8]).is_ok()
    });
    let other = site("other", "other.test", &slow.url());
    let proxy = world.proxy(&format!("{other}{}", site("app", "app.test", &slow.url())));
    let mut raw = proxy.raw(&world, "app.test");
    raw.send(
        "GET /live HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    wait_until("the handshake is with the back end", SOON, || !slow.seen().is_empty());
    proxy.rewrite(&format!("{}{other}", world.head()));
    assert_eq!(proxy.reload().code, 0);
    allow.send(()).unwrap();
    assert_eq!(raw.head().0, 101);
    assert_eq!(raw.exactly(4), [0x88, 0x02, 0x03, 0xF4], "1012");
}

#[test]
fn a_request_in_flight_outlasts_a_reload() {
    let world = World::new();
    let slow = BackEnd::answering(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
        std::thread::sleep(Duration::from_millis(800));
        stream.write_all(b"cd").is_ok()
    });
    let proxy = world.proxy(&site("app", "app.test", &slow.url()));
    let mut raw = proxy.raw(&world, "app.test");
    raw.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n");
    assert_eq!(raw.head().0, 200);
    assert_eq!(proxy.reload().code, 0);
    assert_eq!(raw.exactly(4), b"abcd");
}

#[test]
fn a_listener_can_be_added_by_a_reload() {
    let world = World::new();
    let (_one, two, proxy) = start(&world);
    let port = crate::harness::free_port();
    let head =
        world.head().replace("https = [\"127.0.0.1:0\"]", &format!("https = [\"127.0.0.1:0\", \"127.0.0.1:{port}\"]"));
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    proxy.rewrite(&format!("{head}{}", site("app", "app.test", &two.url())));
    let end = proxy.reload();
    assert_eq!(end.code, 0, "{}", end.said());
    let curl = crate::harness::Curl::new(format!("https://app.test:{port}"), &world.ca(), &world.path(""));
    curl.get("/new").expect(200);
    proxy.curl("app.test").get("/old").expect(200);
}
