//! Back ends that are left out: by what requests tell, by what probes find, and how they come back.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::harness::{
    BackEnd, Proxy, Raw, SOON, Socket, World, doorward, finish, free_port, promised, wait_for, wait_until,
};

/// A back end that says its name, and at /up how it is.
struct Named {
    back_end: BackEnd,
    /// What it answers at /up and /ready.
    up: Arc<AtomicU16>,
    /// What it answers elsewhere.
    status: Arc<AtomicU16>,
}

impl Named {
    fn start(name: &'static str) -> Named {
        let (up, status) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(200)));
        let (own_up, own_status) = (Arc::clone(&up), Arc::clone(&status));
        let back_end = BackEnd::answering(move |seen, stream| {
            let asked = seen.line().starts_with("GET /up ") || seen.line().starts_with("GET /ready ");
            let status = if asked { own_up.load(Ordering::SeqCst) } else { own_status.load(Ordering::SeqCst) };
            let close = seen.field("connection") == Some("close");
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            stream.write_all(head.as_bytes()).is_ok() && !close
        });
        Named { back_end, up, status }
    }

    fn asked(&self, path: &str) -> usize {
        let line = format!("GET {path} HTTP/1.1");
        self.back_end.seen().iter().filter(|seen| seen.line() == line).count()
    }
}

/// Two of them behind one site, and the keys that say when one is left out.
struct Pair {
    world: World,
    a: Named,
    b: Named,
    proxy: Proxy,
}

impl Pair {
    fn start(health: &str) -> Pair {
        let (world, a, b) = (World::new(), Named::start("a"), Named::start("b"));
        let toml = Pair::toml(&world, &a, &b, health);
        let proxy = Proxy::start_with(&world, &toml, |command| _ = command.env("RUNTIME_DIRECTORY", world.path("run")));
        Pair { world, a, b, proxy }
    }

    fn toml(world: &World, a: &Named, b: &Named, health: &str) -> String {
        let to = [a.back_end.url(), b.back_end.url()];
        format!("{}[site.app]\nhosts = [\"app.test\"]\nupstream = {to:?}\n{health}\n", world.head())
    }

    fn reload(&self, health: &str) {
        self.proxy.rewrite(&Pair::toml(&self.world, &self.a, &self.b, health));
        let mut command = doorward();
        command.args(["reload", "-c"]).arg(self.world.path("proxy.toml"));
        let end = finish("doorward reload", command.env("RUNTIME_DIRECTORY", self.world.path("run")));
        assert_eq!(end.code, 0, "{}", end.said());
    }

    /// The names of those who answer so many requests.
    fn names(&self, count: usize) -> String {
        (0..count).map(|_| self.proxy.curl("app.test").get("/").text()).collect()
    }

    fn lines(&self, part: &str) -> Vec<String> {
        self.proxy.running.stderr().into_iter().filter(|line| line.contains(part)).collect()
    }

    fn wait_line(&self, part: &str) -> String {
        wait_for(part, SOON, || self.lines(part).pop())
    }

    fn upstreams(&self, words: &[&str]) -> String {
        let mut command: Command = doorward();
        command.arg("upstreams").args(words).arg("-c").arg(self.world.path("proxy.toml"));
        let end = finish("doorward upstreams", command.env("RUNTIME_DIRECTORY", self.world.path("run")));
        assert_eq!(end.code, 0, "{}", end.said());
        end.stdout
    }

    fn row(&self, of: &Named) -> Value {
        let url = of.back_end.url();
        let said = self.upstreams(&["--json"]);
        let mut rows = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.find(|row| row["upstream"] == url.as_str()).unwrap_or_else(|| panic!("{url}: {said}"))
    }
}

const PROBED: &str = "upstream_health = { path = \"/up\", interval = \"1s\" }";

#[test]
fn a_probe_takes_out_one_that_still_answers_and_brings_it_back() {
    let pair = Pair::start(PROBED);
    wait_until("both were asked", SOON, || pair.a.asked("/up") > 0 && pair.b.asked("/up") > 0);
    let probe = pair.a.back_end.seen().into_iter().find(|seen| seen.line().starts_with("GET /up")).unwrap();
    assert_eq!(probe.field("user-agent"), Some("doorward"));
    assert_eq!(probe.field("host"), pair.a.back_end.url().strip_prefix("http://"));
    let both = pair.names(8);
    assert!(both.contains('a') && both.contains('b'), "{both}");

    pair.a.up.store(500, Ordering::SeqCst);
    let url = pair.a.back_end.url();
    pair.wait_line(&format!("back end {url} is out: GET /up: answered 500"));
    assert_eq!(pair.names(8), "bbbbbbbb");
    let row = pair.row(&pair.a);
    assert_eq!((&row["state"], &row["probe"]["passed"]), (&Value::from("out"), &Value::from(false)), "{row}");
    assert!(row["why"].as_str().unwrap().contains("answered 500") && row["failures"].as_u64() >= Some(2), "{row}");
    assert_eq!(pair.row(&pair.b)["state"], "in");
    let table = pair.upstreams(&[]);
    assert!(table.starts_with("BACK END ") && table.contains("GET /up: answered 500"), "{table}");

    pair.a.up.store(200, Ordering::SeqCst);
    pair.wait_line(&format!("back end {url} is back after "));
    let both = pair.names(8);
    assert!(both.contains('a') && both.contains('b'), "{both}");
    assert_eq!(pair.lines("is out: ").len() + pair.lines("is back after").len(), 2, "{}", pair.proxy.running.said());
}

#[test]
fn a_verdict_survives_a_reload_and_changed_settings_and_goes_with_the_last_probe() {
    let pair = Pair::start(PROBED);
    pair.a.up.store(500, Ordering::SeqCst);
    pair.wait_line("is out: ");
    pair.reload(PROBED);
    assert_eq!(pair.names(6), "bbbbbb", "the same probe");
    let asked = pair.a.asked("/up");
    pair.reload("upstream_health = { path = \"/ready\", interval = \"1s\", fails = 5 }");
    assert_eq!(pair.names(6), "bbbbbb", "another probe");
    wait_until("the new question is asked", SOON, || pair.a.asked("/ready") > 1);
    assert!(pair.a.asked("/up") <= asked + 1, "the old one is not");
    assert_eq!(pair.names(6), "bbbbbb", "its answer is as bad");
    assert_eq!(pair.lines("is out: ").len(), 1, "{}", pair.proxy.running.said());
    pair.reload("");
    pair.wait_line("is back after");
    let both = pair.names(8);
    assert!(both.contains('a') && both.contains('b'), "{both}");
    let asked = pair.a.asked("/ready");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(pair.a.asked("/ready"), asked, "nobody is asked any more");
}

#[test]
fn answers_that_the_file_calls_failures_put_a_back_end_out() {
    let pair = Pair::start("upstream_health = { max_fails = 3, fail_timeout = \"60s\", fail_status = [\"5xx\"] }");
    pair.a.status.store(503, Ordering::SeqCst);
    let mut refused = 0;
    wait_until("three were counted", SOON, || {
        refused += usize::from(pair.proxy.curl("app.test").get("/").status == 503);
        !pair.lines("is out: a request was answered 503").is_empty()
    });
    assert_eq!(refused, 3);
    assert_eq!(pair.names(6), "bbbbbb");
    assert_eq!(pair.row(&pair.a)["state"], "out");
}

#[test]
fn a_websocket_probe_tells_a_socket_server_from_one_that_only_listens() {
    let world = World::new();
    let liar = BackEnd::saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let (closed, seen) = (Arc::new(AtomicU16::new(0)), Arc::new(AtomicBool::new(false)));
    let (code, asked) = (Arc::clone(&closed), Arc::clone(&seen));
    let real = BackEnd::answering(move |seen, stream| {
        let key = derive_accept_key(seen.field("sec-websocket-key").unwrap_or("").as_bytes());
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {key}\r\n\r\n"
        );
        let _ = stream.write_all(head.as_bytes());
        let mut frame = [0; 8];
        if stream.read_exact(&mut frame).is_ok()
            && frame[..2] == [0x88, 0x82]
            && seen.line().starts_with("GET /ws?probe")
        {
            code.store(u16::from_be_bytes([frame[6] ^ frame[2], frame[7] ^ frame[3]]), Ordering::SeqCst);
            asked.store(seen.field("host") == Some("chat.test"), Ordering::SeqCst);
        }
        let _ = stream.write_all(&[0x88, 2, 3, 0xe8]);
        false
    });
    let health = "health = { path = \"/ws?probe\", websocket = true, interval = \"1s\", host = \"chat.test\" }";
    let to = [liar.url(), real.url()];
    let site =
        format!("[site.app]\nhosts = [\"app.test\"]\n[site.app.websocket]\npreset = \"any\"\nto = {to:?}\n{health}\n");
    let proxy = world.proxy(&site);
    let said = |part: &str| proxy.running.stderr().iter().any(|line| line.contains(part));
    let out = format!("back end {} is out: WebSocket handshake /ws?probe: answered 200 and not 101", liar.url());
    wait_until("the liar is out", SOON, || said(&out));
    wait_until("the real one was asked", SOON, || closed.load(Ordering::SeqCst) == 1000);
    assert!(seen.load(Ordering::SeqCst), "with the host of the file");
    for _ in 0..6 {
        assert!(Socket::try_open(&world, &proxy, "app.test", "/ws", &[]).is_ok());
    }
    assert!(!said(&format!("back end {} is out", real.url())), "{}", proxy.running.said());
}

/// A port that takes no connection and refuses none: its queue is full.
fn black_hole() -> (SocketAddr, socket2::Socket, Vec<socket2::Socket>) {
    let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let crowd: Vec<_> = (0..8)
        .map(|_| {
            let one = socket();
            one.set_nonblocking(true).unwrap();
            let _ = one.connect(&address);
            one
        })
        .collect();
    (address.as_socket().unwrap(), listener, crowd)
}

#[test]
fn when_all_are_out_the_answer_is_503_at_once_even_where_packets_vanish() {
    let world = World::new();
    let (address, _listener, _crowd) = black_hole();
    let head = format!("{}[timeouts]\nconnect = \"3s\"\n", world.head());
    let site = format!("[site.app]\nhosts = [\"app.test\"]\nhttp = \"serve\"\nupstream = \"http://{address}\"\n");
    let proxy = Proxy::start(&world, &format!("{head}{site}"));
    let ask = || {
        let started = Instant::now();
        let (status, head) = Raw::plain(proxy.http()).send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").head();
        (status, head, started.elapsed())
    };
    let (status, _, took) = ask();
    assert!(status == 502 && took > Duration::from_millis(2500), "{status} after {took:?}");
    for _ in 0..10 {
        let (status, head, took) = ask();
        assert_eq!(status, 503, "{head}");
        let field = head.lines().find_map(|line| line.to_lowercase().strip_prefix("retry-after: ").map(str::to_owned));
        let seconds: u64 = field.unwrap_or_else(|| panic!("{head}")).trim().parse().unwrap();
        assert!((1..=4).contains(&seconds), "three seconds, rounded up: {head}");
        assert!(took < promised(Duration::from_millis(100)), "{took:?}");
    }
}

#[test]
fn a_single_back_end_that_was_restarted_serves_again_within_a_second() {
    let world = World::new();
    let port = free_port();
    let proxy = world.proxy(&format!("[site.app]\nhosts = [\"app.test\"]\nupstream = \"http://127.0.0.1:{port}\"\n"));
    proxy.curl("app.test").get("/").expect(502);
    // Somebody asks all the time: that does not put off the day when it is tried.
    for _ in 0..10 {
        let status = proxy.curl("app.test").get("/").status;
        assert!(matches!(status, 502 | 503), "{status}");
    }
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _): (TcpStream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").unwrap();
    });
    let started = Instant::now();
    wait_until("it serves", SOON, || proxy.curl("app.test").get("/").status == 200);
    assert!(started.elapsed() < promised(Duration::from_secs(1)), "{:?}", started.elapsed());
    serving.join().unwrap();
    let said = |part: &str| proxy.running.stderr().iter().filter(|line| line.contains(part)).count();
    wait_until("it is told to be back", SOON, || said("is back after") == 1);
    assert_eq!(said(&format!("back end http://127.0.0.1:{port} is out: cannot connect: ")), 1);
}
