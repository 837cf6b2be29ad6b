//! `[limit.x]`: how often a client may ask.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::{BackEnd, Proxy, SOON, Socket, World, doorward, finish, wait_for, wait_until};

/// Trusts the tests themselves, so that they can be anybody.
fn head(world: &World) -> String {
    world.head().replace("workers = 2\n", "workers = 2\ntrusted_proxies = [\"127.0.0.1\"]\n")
}

fn site(to: &str, more: &str) -> String {
    format!("[site.app]\nhosts = [\"app.test\"]\nhttp = \"serve\"\nupstream = {to:?}\n{more}\n")
}

fn start(world: &World, limits: &str, more: &str) -> (BackEnd, Proxy) {
    let backend = BackEnd::start();
    let log = format!("[log]\naccess = {:?}\n", world.path("access.log"));
    let proxy = Proxy::start(world, &format!("{}{log}{limits}\n{}", head(world), site(&backend.url(), more)));
    (backend, proxy)
}

fn statuses(count: usize, mut ask: impl FnMut(usize) -> u16) -> Vec<u16> {
    (0..count).map(&mut ask).collect()
}

#[test]
fn a_site_s_limit_counts_every_request_whatever_the_protocol_and_the_path() {
    let world = World::new();
    let (backend, proxy) = start(&world, "[limit.all]\nrate = \"1/m\"\nburst = 3\n", "limit = \"all\"\n");
    let ask = |n: usize| {
        let curl = if n % 3 == 2 { proxy.plain("app.test") } else { proxy.curl("app.test") };
        let curl = if n.is_multiple_of(3) { curl.http1() } else { curl };
        curl.get(&format!("/{n}")).status
    };
    assert_eq!(statuses(7, ask), [200, 200, 200, 200, 429, 429, 429]);
    assert_eq!(backend.seen().len(), 4, "what is refused goes no further");
    for http1 in [true, false] {
        let curl = if http1 { proxy.curl("app.test").http1() } else { proxy.curl("app.test") };
        let answer = curl.get("/refused").expect(429);
        let wait: u64 = answer.field("retry-after").unwrap().parse().unwrap();
        assert!((50..=60).contains(&wait), "{wait}");
        assert_eq!(answer.field("cache-control"), Some("no-store"));
        assert!(answer.text().contains("429 Too Many Requests"));
    }
    wait_until("the refusal is in the access log", SOON, || {
        std::fs::read_to_string(world.path("access.log")).unwrap_or_default().contains("\"GET /refused HTTP/2.0\" 429 ")
    });
    let told = wait_for("the error log sums up", SOON, || {
        proxy.running.stderr().into_iter().find(|line| line.contains("[limit.all]"))
    });
    assert!(told.contains("refused ") && told.contains("the access log has each of them"), "{told}");
    let lines = proxy.running.stderr().iter().filter(|line| line.contains("limit.all")).count();
    assert_eq!(lines, 1, "{}", proxy.running.said());
    let table = finish("doorward sockets", doorward().args(["sockets", "-c"]).arg(world.path("proxy.toml")));
    assert!(table.stdout.contains("requests refused by limit.all"), "{}", table.said());
}

#[test]
fn a_refused_request_keeps_its_connection_and_its_body_is_not_asked_for() {
    let world = World::new();
    let (backend, proxy) = start(&world, "[limit.all]\nrate = \"1/m\"\nburst = 0\nstatus = 503\n", "limit = \"all\"\n");
    let mut raw = proxy.raw(&world, "app.test");
    for status in [200, 503, 503] {
        raw.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n");
        let (got, head) = raw.head();
        assert_eq!(got, status, "{head}");
        let head = head.to_lowercase();
        assert_eq!(head.contains("retry-after: "), status == 503, "{head}");
        assert!(!head.contains("connection: close"), "{head}");
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
        raw.exactly(length.trim().parse().unwrap());
    }
    raw.send("POST / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n");
    assert_eq!(raw.head().0, 503, "and not 100");
    assert_eq!(backend.seen().len(), 1);
}

#[test]
fn a_route_s_limit_counts_beside_the_site_s() {
    let world = World::new();
    let limits = "[limit.all]\nrate = \"1/m\"\nburst = 4\n[limit.login]\nrate = \"1/m\"\nburst = 1\nstatus = 503\n";
    let more = "limit = \"all\"\n[[site.app.route]]\npath = \"/login\"\nmethods = [\"POST\"]\nlimit = \"login\"\n\
                respond = \"welcome\"\n";
    let (_backend, proxy) = start(&world, limits, more);
    let post = || proxy.curl("app.test").post("/login", b"x").status;
    assert_eq!([post(), post(), post()], [200, 200, 503]);
    // Three of the site's five are gone: what a route refuses has passed the site's limit.
    let get = |_| proxy.curl("app.test").get("/login").status;
    assert_eq!(statuses(3, get), [200, 200, 429]);
    assert_eq!(post(), 429, "the site's comes first");
}

#[test]
fn handshakes_have_a_limit_of_their_own_and_long_polling_is_none() {
    let world = World::new();
    let backend = BackEnd::start();
    let url = backend.url();
    let socket = format!("[site.app.websocket]\npreset = \"socket.io\"\nto = {url:?}\nlimit = \"open\"\n");
    let limits = "[limit.open]\nrate = \"1/m\"\nburst = 1\n";
    let proxy = Proxy::start(&world, &format!("{}{limits}{}", head(&world), site(&url, &socket)));
    for _ in 0..5 {
        proxy.curl("app.test").get("/socket.io/?transport=polling").expect(200);
    }
    let open =
        |client: &str| Socket::try_open(&world, &proxy, "app.test", "/socket.io/?x=1", &[("X-Forwarded-For", client)]);
    let (mut first, mut second) = (open("192.0.2.1").unwrap(), open("192.0.2.1").unwrap());
    assert_eq!(open("192.0.2.1").err().map(|status| status.as_u16()), Some(429));
    open("192.0.2.2").unwrap().echoes("another client");
    for _ in 0..50 {
        first.echoes("messages are not counted");
        second.echoes("nor here");
    }
    proxy.curl("app.test").header("X-Forwarded-For: 192.0.2.1").get("/socket.io/?transport=polling").expect(200);
}

#[test]
fn a_field_tells_clients_apart_and_whoever_lacks_it_counts_by_address() {
    let world = World::new();
    let limits = "[limit.keys]\nkey = \"header:X-Api-Key\"\nrate = \"1/m\"\nburst = 1\n";
    let (_backend, proxy) = start(&world, limits, "limit = \"keys\"\n");
    let ask = |key: &str| proxy.curl("app.test").header(&format!("X-Api-Key: {key}")).get("/").status;
    assert_eq!([ask("a"), ask("a"), ask("a"), ask("b"), ask("b"), ask("b")], [200, 200, 429, 200, 200, 429]);
    let bare = |_| proxy.curl("app.test").get("/").status;
    assert_eq!(statuses(3, bare), [200, 200, 429]);
    proxy.curl("app.test").header("X-Forwarded-For: 192.0.2.1").get("/").expect(200);
}

#[test]
fn a_client_of_ipv6_is_its_network() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "[limit.all]\nrate = \"1/m\"\nburst = 1\n", "limit = \"all\"\n");
    let ask = |client: &str| proxy.curl("app.test").header(&format!("X-Forwarded-For: {client}")).get("/").status;
    assert_eq!([ask("2001:db8:0:1::1"), ask("2001:db8:0:1:ffff::2")], [200, 200]);
    assert_eq!(ask("2001:db8:0:1::3"), 429, "the same /64");
    assert_eq!(ask("2001:db8:0:2::1"), 200, "another");
    assert_eq!([ask("192.0.2.1"), ask("::ffff:192.0.2.1"), ask("192.0.2.1")], [200, 200, 429], "the same, mapped");
    assert_eq!(ask("192.0.2.2"), 200);
}

#[test]
fn a_reload_keeps_the_count_and_a_limit_that_left_the_file_is_forgotten() {
    let world = World::new();
    let backend = BackEnd::start();
    let file = |limit: &str, more: &str| format!("{}{limit}{}", head(&world), site(&backend.url(), more));
    let limit = |burst: u32| format!("[limit.all]\nrate = \"1/m\"\nburst = {burst}\n");
    let proxy = Proxy::start(&world, &file(&limit(2), "limit = \"all\"\n"));
    let ask = |_| proxy.curl("app.test").get("/").status;
    let reload = |toml: &str| {
        proxy.rewrite(toml);
        let end = proxy.reload();
        assert_eq!(end.code, 0, "{}", end.said());
    };
    assert_eq!(statuses(4, ask), [200, 200, 200, 429]);
    reload(&file(&limit(2), "limit = \"all\"\nmax_body = \"1MiB\"\n"));
    assert_eq!(statuses(2, ask), [429, 429]);
    reload(&file(&limit(4), "limit = \"all\"\n"));
    assert_eq!(statuses(3, ask), [200, 200, 429], "a larger burst adds what it is larger by");
    reload(&file(&limit(4).replace("1/m", "100/s"), "limit = \"all\"\n"));
    wait_until("a faster rate holds at once: the old debt is a moment", SOON, || ask(0) == 200);
    assert_eq!(statuses(3, ask), [200, 200, 200]);
    reload(&file("", ""));
    assert_eq!(statuses(3, ask), [200, 200, 200]);
    reload(&file(&limit(2), "limit = \"all\"\n"));
    assert_eq!(statuses(4, ask), [200, 200, 200, 429]);
}

#[test]
fn who_waits_as_told_passes() {
    let world = World::new();
    let (_backend, proxy) = start(&world, "[limit.all]\nrate = \"20/m\"\nburst = 0\n", "limit = \"all\"\n");
    proxy.curl("app.test").get("/").expect(200);
    for _ in 0..2 {
        let refused = Instant::now();
        let answer = proxy.curl("app.test").get("/").expect(429);
        let wait = Duration::from_secs(answer.field("retry-after").unwrap().parse().unwrap());
        assert!(wait <= Duration::from_secs(3), "{wait:?}");
        // It was refused after `refused`, so that the time it is told is over behind this.
        std::thread::sleep(wait.saturating_sub(refused.elapsed()) + Duration::from_millis(300));
        proxy.curl("app.test").get("/").expect(200);
    }
}

/// Asks for `/` as each of `clients` in turn, many at a time on one connection; gives how many were let through.
fn flood(port: u16, clients: impl Iterator<Item = u32>) -> usize {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let clients: Vec<u32> = clients.collect();
    let mut passed = 0;
    for batch in clients.chunks(50) {
        let mut text = String::new();
        for client in batch {
            let client = std::net::Ipv4Addr::from_bits(*client);
            text.push_str(&format!("GET / HTTP/1.1\r\nHost: app.test\r\nX-Forwarded-For: {client}\r\n\r\n"));
        }
        stream.write_all(text.as_bytes()).unwrap();
        let (mut buffer, mut answers, mut seen) = ([0; 65536], 0, Vec::new());
        while answers < batch.len() {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "the connection ended after {answers} of {}", batch.len());
            seen.extend_from_slice(&buffer[..read]);
            answers = seen.windows(9).filter(|part| part == b"HTTP/1.1 ").count();
        }
        passed += seen.windows(12).filter(|part| part == b"HTTP/1.1 204").count();
    }
    passed
}

#[test]
fn a_flood_of_addresses_takes_no_memory_and_frees_no_debtor() {
    let world = World::new();
    let more = "limit = \"all\"\n[[site.app.route]]\npath = \"/\"\nrespond = 204\n";
    let toml = "[limit.all]\nrate = \"1/m\"\nburst = 9\n";
    let backend = BackEnd::start();
    let log = "[log]\naccess = \"off\"\n";
    let proxy = Proxy::start(&world, &format!("{}{log}{toml}{}", head(&world), site(&backend.url(), more)));
    let port = proxy.http();
    let debtor = u32::from(std::net::Ipv4Addr::new(192, 0, 2, 1));
    assert_eq!(flood(port, std::iter::repeat_n(debtor, 30)), 10);
    let crowd = |from: u32, count: u32| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|n| scope.spawn(move || flood(port, (0..count).map(move |at| from + n * count + at))))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        })
    };
    assert_eq!(crowd(0x0a00_0000, 5_000), 20_000, "each of them is new, and passes");
    let before = proxy.memory("VmRSS");
    // More than the table holds.
    assert_eq!(crowd(0x0b00_0000, 20_000), 80_000);
    let after = proxy.memory("VmRSS");
    assert!(after < before + 6 * 1024 * 1024, "{before} → {after}");
    assert_eq!(flood(port, std::iter::repeat_n(debtor, 10)), 0, "it still owes");
}
