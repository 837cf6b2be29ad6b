//! The rules for live sockets, with ws for Node on both sides where it can show them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{BackEnd, Node, Proxy, Raw, SOON, Socket, World, run_node, wait_until};

const HANDSHAKE: &str = "GET /live HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn site(to: &str, rules: &str) -> String {
    format!(
        "[log]\naccess = \"access.log\"\nformat = \"json\"\n\
         [site.app]\nhosts = [\"app.test\"]\nupstream = {to:?}\n[site.app.websocket]\npreset = \"any\"\nto = {to:?}\n{rules}\n"
    )
}

struct Stack {
    world: World,
    proxy: Proxy,
    node: Node,
}

impl Stack {
    fn start(rules: &str) -> Stack {
        let world = World::new();
        let node = Node::serve(&world, "ws-echo.js", &[]);
        let toml = site(&node.url(), rules).replace("access.log", world.path("access.log").to_str().unwrap());
        let proxy = world.proxy(&toml);
        Stack { world, proxy, node }
    }

    fn client(&self, arguments: &[&str]) -> Value {
        let url = format!("wss://app.test:{}/live", self.proxy.https());
        run_node(&self.world, "ws-rules-client.js", &[&["--url", &url], arguments].concat())
    }

    /// What the back end saw of its sockets.
    fn seen(&self) -> Value {
        self.proxy.curl("app.test").get("/seen").expect(200).json()
    }

    /// Waits until the back end saw its first socket close, and with which code.
    fn code_at_back_end(&self) -> Value {
        let mut code = Value::Null;
        wait_until("the back end's socket closes", SOON, || {
            code = self.seen()[0]["code"].clone();
            !code.is_null()
        });
        code
    }

    /// The closing lines of sockets in the access log.
    fn closing_codes(&self) -> Vec<Value> {
        let path = self.world.path("access.log");
        let mut codes = Vec::new();
        wait_until("the closing line", SOON, || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines = text.lines().filter(|line| line.contains("/live"));
            codes = lines
                .map(|line| serde_json::from_str::<Value>(line).unwrap())
                .filter_map(|line| line.get("close_code").filter(|code| !code.is_null()).cloned())
                .collect();
            !codes.is_empty()
        });
        codes
    }

    /// A socket whose bytes the test chooses.
    fn raw(&self) -> Raw {
        let mut raw = self.proxy.raw(&self.world, "app.test");
        assert_eq!(raw.send(HANDSHAKE).head().0, 101);
        raw
    }
}

/// A masked frame of a client: with a mask of zeros the payload reads as it is.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        n @ 0..=125 => frame.push(0x80 | u8::try_from(n).unwrap()),
        n @ 126..=65535 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(n).unwrap().to_be_bytes());
        }
        n => {
            frame.push(0x80 | 127);
            frame.extend((n as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

#[test]
fn a_message_over_max_message_is_closed_with_1009_on_both_sides() {
    for deflate in ["no", "yes"] {
        let stack = Stack::start("max_message = \"20KiB\"");
        let fits = stack.client(&["--rounds", "30", "--deflate", deflate]);
        assert_eq!((&fits["echoed"], &fits["code"]), (&json!(30), &json!(1000)), "{fits}");
        let over = stack.client(&["--bytes", "30000", "--deflate", deflate]);
        assert_eq!((&over["echoed"], &over["code"]), (&json!(0), &json!(1009)), "{over}");
        wait_until("the back end's socket closes", SOON, || stack.seen()[1]["code"] == 1009);
        assert_eq!(stack.seen()[1]["messages"], 0);
        wait_until("both closing lines", SOON, || stack.closing_codes() == [json!(1000), json!(1009)]);
    }
}

#[test]
fn nothing_of_a_frame_that_is_too_large_reaches_the_back_end() {
    let stack = Stack::start("max_message = \"1KiB\"");
    let mut raw = stack.raw();
    raw.send(frame(0x81, &[b'x'; 1024]));
    assert_eq!(raw.exactly(4 + 1024)[..4], [0x81, 126, 4, 0]);
    // A header of a gigabyte, byte by byte, and nothing behind it.
    for byte in [0x82, 0xFF, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4] {
        raw.send([byte]);
    }
    assert_eq!(raw.exactly(4), [0x88, 2, 0x03, 0xF1]);
    assert_eq!(stack.code_at_back_end(), 1009);
    assert_eq!(stack.seen()[0]["messages"], 1);
}

#[test]
fn a_client_over_message_rate_is_closed_with_1008_on_both_sides() {
    let stack = Stack::start("message_rate = \"50/s\"");
    let result = stack.client(&["--flood", "500"]);
    assert_eq!(result["code"], 1008, "{result}");
    assert!(result["echoed"].as_u64().unwrap() <= 60, "{result}");
    assert_eq!(stack.code_at_back_end(), 1008);
    assert_eq!(stack.closing_codes(), [1008]);
}

#[test]
fn what_cannot_be_limited_is_closed_with_1002() {
    let stack = Stack::start("max_message = \"1MiB\"");
    let mut raw = stack.raw();
    raw.send(b"\x83\x80\0\0\0\0and so on");
    assert_eq!(raw.exactly(4), [0x88, 2, 0x03, 0xEA]);
    assert_eq!(stack.code_at_back_end(), 1002);
}

#[test]
fn a_silent_client_is_asked_and_its_back_end_does_not_notice() {
    let stack = Stack::start("ping_interval = \"300ms\"\nidle_timeout = \"1s\"");
    let result = stack.client(&["--silent", "2500", "--deflate", "yes"]);
    assert_eq!((&result["echoed"], &result["code"]), (&json!(1), &json!(1000)), "{result}");
    let pings = result["pings"].as_u64().unwrap();
    assert!((3..=9).contains(&pings), "{result}");
    assert_eq!(stack.code_at_back_end(), 1000);
    let seen = &stack.seen()[0];
    assert_eq!((&seen["pongs"], &seen["pings"], &seen["messages"]), (&json!([]), &json!([]), &json!(1)), "{seen}");
}

#[test]
fn the_pings_of_a_back_end_are_its_own() {
    let stack = Stack::start("ping_interval = \"200ms\"");
    let mut raw = stack.proxy.raw(&stack.world, "app.test");
    assert_eq!(raw.send(HANDSHAKE.replace("/live", "/live?pings=2")).head().0, 101);
    assert_eq!(raw.exactly(14), b"\x89\x05own 0\x89\x05own 1");
    let ours = raw.exactly(10);
    assert_eq!(ours[..2], [0x89, 8]);
    // Answers to all three, in pieces.
    let answers = [frame(0x8A, b"own 0"), frame(0x8A, &ours[2..]), frame(0x8A, b"own 1")].concat();
    for piece in answers.chunks(5) {
        raw.send(piece);
    }
    raw.send(frame(0x81, b"hi"));
    raw.until(b"\x81\x02hi");
    assert_eq!(stack.seen()[0]["pongs"], json!(["own 0", "own 1"]));
    raw.send(frame(0x88, &1000_u16.to_be_bytes()));
    raw.until(b"\x88\x02\x03\xE8");
    drop(raw);
    assert_eq!(stack.code_at_back_end(), 1000);
}

#[test]
fn a_client_that_does_not_answer_is_dead() {
    let stack = Stack::start("ping_interval = \"400ms\"");
    let started = Instant::now();
    let result = stack.client(&["--deaf", "yes"]);
    assert_eq!((&result["pings"], &result["code"]), (&json!(1), &json!(1006)), "{result}");
    assert_eq!(stack.code_at_back_end(), 1001);
    assert!(started.elapsed() >= Duration::from_millis(800));
    assert_eq!(stack.closing_codes(), [1001]);
}

#[test]
fn a_socket_that_is_idle_is_closed_with_1001_on_both_sides() {
    let stack = Stack::start("idle_timeout = \"500ms\"");
    let result = stack.client(&[]);
    assert_eq!((&result["opened"], &result["code"]), (&json!(true), &json!(1001)), "{result}");
    assert_eq!(stack.code_at_back_end(), 1001);
    assert_eq!(stack.closing_codes(), [1001]);
}

#[test]
fn a_foreign_page_is_refused_before_the_back_end_hears_of_it() {
    let world = World::new();
    let backend = BackEnd::start();
    let path = world.path("access.log");
    let rules = "origins = [\"self\", \"https://*.partner.test\"]";
    let proxy = world.proxy(&site(&backend.url(), rules).replace("access.log", path.to_str().unwrap()));
    let open = |origin: &str| Socket::try_open(&world, &proxy, "app.test", "/live", &[("origin", origin)]);
    for good in [&proxy.url("app.test"), "https://a.partner.test", "HTTPS://A.B.Partner.Test:443"] {
        open(good).unwrap_or_else(|status| panic!("{good}: {status}")).echoes("hi");
    }
    Socket::open(&world, &proxy, "app.test", "/live").echoes("no browser, no Origin");
    let before = backend.seen().len();
    for bad in ["https://app.test", "https://evil.test", "https://partner.test", "http://a.partner.test", "null", "x"] {
        assert_eq!(open(bad).err().map(|status| status.as_u16()), Some(403), "{bad}");
    }
    let twice =
        HANDSHAKE.replace("\r\n\r\n", "\r\nOrigin: https://a.partner.test\r\nOrigin: https://evil.test\r\n\r\n");
    assert_eq!(proxy.raw(&world, "app.test").send(twice).head().0, 403);
    assert_eq!(backend.seen().len(), before, "the back end was asked");
    // A plain request is not a handshake.
    proxy.curl("app.test").header("Origin: https://evil.test").get("/plain").expect(200);
    wait_until("the refusals are logged", SOON, || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.matches("\"status\":403").count() == 7)
    });
}

#[test]
fn a_block_has_so_many_places_and_an_address_so_many_of_them() {
    let world = World::new();
    let backend = BackEnd::start();
    let toml =
        |rules: &str| site(&backend.url(), rules).replace("access.log", world.path("access.log").to_str().unwrap());
    let proxy = world.proxy(&toml("max_connections = 3"));
    let open = || Socket::try_open(&world, &proxy, "app.test", "/live", &[]).map_err(|status| status.as_u16());
    let mut sockets: Vec<Socket> = (0..3).map(|_| open().unwrap()).collect();
    let asked = backend.seen().len();
    assert_eq!(open().err(), Some(503));
    let (status, head) = proxy.raw(&world, "app.test").send(HANDSHAKE).head();
    assert!(status == 503 && head.to_lowercase().contains("retry-after: 10"), "{head}");
    assert_eq!(backend.seen().len(), asked, "the back end was asked");
    // A plain request needs no place.
    proxy.curl("app.test").get("/plain").expect(200);
    sockets.pop().unwrap().close(1000);
    let mut back = None;
    wait_until("the place is given back", SOON, || {
        back = open().ok();
        back.is_some()
    });
    sockets.extend(back);
    // A lower limit closes nobody, and counts those that are there.
    let reload = |rules: &str| {
        proxy.rewrite(&format!("{}{}", world.head(), toml(rules)));
        let end = proxy.reload();
        assert_eq!(end.code, 0, "{}", end.said());
    };
    reload("max_connections = 1");
    for socket in &mut sockets {
        socket.echoes("still here");
    }
    assert_eq!(open().err(), Some(503));
    sockets.pop().unwrap().close(1000);
    assert_eq!(open().err(), Some(503));
    reload("max_connections = 4\nmax_connections_per_ip = 1");
    // Those from before the rule do not count for their address.
    let one = open().unwrap();
    assert_eq!(open().err(), Some(503));
    drop(one);
    wait_until("the address has room again", SOON, || open().is_ok());
}

#[test]
fn a_handshake_that_the_back_end_refuses_gives_its_place_back() {
    let world = World::new();
    let backend = BackEnd::saying(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    let toml =
        site(&backend.url(), "max_connections = 1").replace("access.log", world.path("access.log").to_str().unwrap());
    let proxy = world.proxy(&toml);
    let mut raw = proxy.raw(&world, "app.test");
    for _ in 0..5 {
        assert_eq!(raw.send(HANDSHAKE).head().0, 403);
    }
}

#[test]
fn a_socket_without_rules_passes_what_is_not_websocket() {
    let stack = Stack::start("ping_interval = \"10s\"");
    let mut raw = stack.raw();
    raw.send(b"\x83\x80\0\0\0\0");
    // It is the back end's own answer to an invalid opcode.
    assert_eq!(raw.exactly(4), [0x88, 2, 0x03, 0xEA]);
    assert!(stack.node.port > 0);
}
