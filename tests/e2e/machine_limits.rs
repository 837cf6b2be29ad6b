//! Limits of the machine: connections, descriptors, ports.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use crate::harness::{BackEnd, Proxy, Raw, SOON, Socket, World, binary, is_root_for, status, wait_until};

const ASK: &str = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";

fn site(to: &str) -> String {
    format!(
        "[site.app]\nhosts = [\"app.test\"]\nhttp = \"serve\"\nupstream = {to:?}\n\
         [site.app.websocket]\npreset = \"any\"\nto = {to:?}\n"
    )
}

/// The usual head, with more keys of `[server]`.
fn toml(world: &World, server: &str, backend: &BackEnd) -> String {
    world.head().replace("[server]\n", &format!("[server]\n{server}\n")) + &site(&backend.url())
}

fn start(server: &str) -> (World, BackEnd, Proxy) {
    let (world, backend) = (World::new(), BackEnd::start());
    let proxy = Proxy::start(&world, &toml(&world, server, &backend));
    (world, backend, proxy)
}

/// A connection that has been served once and stays.
fn held(raw: Raw) -> Raw {
    let mut raw = raw;
    ask(&mut raw);
    raw
}

fn ask(raw: &mut Raw) {
    let (status, head) = raw.send(ASK).head();
    assert_eq!(status, 200, "{head}");
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    raw.exactly(length.parse().unwrap());
}

fn told(proxy: &Proxy, what: &str) -> bool {
    proxy.running.stderr().iter().any(|line| line.contains(" WARN ") && line.contains(what))
}

#[test]
fn a_connection_too_many_gets_503_and_the_others_notice_nothing() {
    let (world, _backend, proxy) = start("max_connections = 4");
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    let mut connections = vec![held(proxy.raw(&world, "app.test")), held(Raw::plain(proxy.http()))];
    connections.push(held(proxy.raw(&world, "app.test")));
    for _ in 0..5 {
        for raw in [&mut Raw::plain(proxy.http()), &mut proxy.raw(&world, "app.test")] {
            let text = raw.send(ASK).rest();
            assert_eq!(status(&text), 503, "{text}");
            assert!(text.contains("Retry-After: ") && text.contains("Connection: close"), "{text}");
        }
        let answer = proxy.curl("app.test").get("/");
        assert_eq!(answer.status, 503, "on HTTP/2");
        assert!(answer.field("retry-after").is_some());
        socket.echoes("still here");
        connections.iter_mut().for_each(ask);
    }
    wait_until("a word about it", SOON, || told(&proxy, "server.max_connections (4) is reached"));
    let lines = proxy.running.stderr().iter().filter(|line| line.contains("refused ")).count();
    assert!(lines <= 2, "told more than once: {}", proxy.running.said());
    // A place that is free again is given to the next.
    drop(connections.pop());
    wait_until("a free place", SOON, || proxy.curl("app.test").get("/").status == 200);
    // The tunnel has kept its own, and gives it back as well.
    connections.push(held(proxy.raw(&world, "app.test")));
    assert_eq!(proxy.curl("app.test").get("/").status, 503);
    socket.close(1000);
    wait_until("the tunnel's place", SOON, || proxy.curl("app.test").get("/").status == 200);
}

#[test]
fn a_refused_client_that_is_still_sending_reads_its_answer() {
    let (_world, _backend, proxy) = start("max_connections = 1");
    let _held = held(Raw::plain(proxy.http()));
    for _ in 0..20 {
        let mut raw = Raw::plain(proxy.http());
        raw.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 20000\r\n\r\n").send(vec![b'x'; 20_000]);
        let text = raw.rest();
        assert_eq!(status(&text), 503, "{text:?}");
    }
}

#[test]
fn silent_connections_over_the_limit_are_bounded_and_gone_within_seconds() {
    let (world, _backend, proxy) = start("max_connections = 2");
    let mut connections = [held(proxy.raw(&world, "app.test")), held(Raw::plain(proxy.http()))];
    let before = descriptors(&proxy);
    let flood: Vec<TcpStream> = (0..400)
        .map(|at| {
            let port = if at % 2 == 0 { proxy.https() } else { proxy.http() };
            TcpStream::connect(("127.0.0.1", port)).unwrap()
        })
        .collect();
    assert!(descriptors(&proxy) <= before + 64 + 8, "{} descriptors", descriptors(&proxy));
    connections.iter_mut().for_each(ask);
    wait_until("the end of the refused", SOON, || descriptors(&proxy) <= before);
    drop(flood);
}

#[test]
fn one_address_has_its_share_and_a_reload_changes_it() {
    let (world, backend, proxy) = start("max_connections_per_ip = 2");
    let mut connections = vec![held(proxy.raw(&world, "app.test")), held(proxy.raw(&world, "app.test"))];
    assert_eq!(proxy.curl("app.test").get("/").status, 503);
    // Another address of loopback has a share of its own.
    assert!(from([127, 0, 0, 2], proxy.http()).starts_with("HTTP/1.1 200 "));
    wait_until("a word about it", SOON, || told(&proxy, "server.max_connections_per_ip (2) is reached"));
    proxy.rewrite(&toml(&world, "max_connections_per_ip = 3", &backend));
    assert_eq!(proxy.reload().code, 0);
    connections.push(held(proxy.raw(&world, "app.test")));
    assert_eq!(proxy.curl("app.test").get("/").status, 503);
    connections.iter_mut().for_each(ask);
    proxy.rewrite(&toml(&world, "max_connections_per_ip = 1\ntrusted_proxies = [\"127.0.0.1\"]", &backend));
    assert_eq!(proxy.reload().code, 0);
    assert_eq!(proxy.curl("app.test").get("/").status, 200, "a trusted proxy speaks for many");
}

#[test]
fn more_than_the_machine_allows_is_told_at_the_start_and_by_check() {
    let (world, _backend, proxy) = start("max_connections = 9000000");
    assert!(told(&proxy, "LimitNOFILE"), "{}", proxy.running.said());
    let config = world.path("proxy.toml");
    let checked = crate::harness::finish("check", crate::harness::doorward().args(["check", "-c"]).arg(config));
    assert!(checked.said().contains("LimitNOFILE"), "{}", checked.said());
    assert_eq!(checked.code, 0, "a warning does not fail");
}

#[test]
fn without_descriptors_nothing_spins_and_all_is_well_when_there_are_some() {
    let (world, _backend, proxy) = start("");
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    let mut steady = held(proxy.raw(&world, "app.test"));
    let pid = Some(proxy.running.pid());
    let maximum = getrlimit(Resource::Nofile).maximum;
    // The budget was computed with the limit at the start: this is what it keeps from happening.
    let limits = prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), maximum }).unwrap();
    let waiting: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(("127.0.0.1", proxy.http())).unwrap()).collect();
    let begun = processor_time(&proxy);
    std::thread::sleep(Duration::from_secs(3));
    let spent = processor_time(&proxy) - begun;
    assert!(spent < Duration::from_millis(300), "{spent:?} of processor time in 3 s");
    wait_until("a word about it", SOON, || proxy.running.stderr().iter().any(|line| line.contains("cannot accept on")));
    // Those who are connected go on, and a back end that takes a new descriptor is a matter of load.
    socket.echoes("still here");
    let (status, head) = steady.send(HANDSHAKE).head();
    assert_eq!(status, 503, "{head}");
    let named = |line: &String| line.contains("the open-file limit of ") && line.contains("LimitNOFILE");
    wait_until("the limit is named", SOON, || proxy.running.stderr().iter().any(named));
    prlimit(pid, Resource::Nofile, limits).unwrap();
    let since = Instant::now();
    for mut stream in waiting {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(ASK.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(proxy.curl("app.test").get("/").status, 200);
}

const HANDSHAKE: &str = "GET /live HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn a_process_with_few_descriptors_refuses_before_it_runs_out() {
    let (world, backend) = (World::new(), BackEnd::start());
    let mut command = Command::new("prlimit");
    command.arg("--nofile=64:64").arg(binary());
    let proxy = Proxy::start_command(&world, &toml(&world, "", &backend), command);
    // 64 have room for 8, each with a connection to its back end, beside what the process has for itself.
    let mut sockets: Vec<Raw> = (0..8)
        .map(|_| {
            let mut raw = Raw::plain(proxy.http());
            assert_eq!(raw.send(HANDSHAKE).head().0, 101);
            raw
        })
        .collect();
    for _ in 0..30 {
        assert_eq!(status(&Raw::plain(proxy.http()).send(ASK).rest()), 503);
    }
    assert!(!proxy.running.stderr().iter().any(|line| line.contains("cannot accept on")), "{}", proxy.running.said());
    wait_until("a word about it", SOON, || told(&proxy, "open-file limit of 64"));
    for raw in &mut sockets {
        raw.send([0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
        assert_eq!(raw.exactly(4), [0x81, 0x02, b'h', b'i']);
    }
}

#[test]
fn ports_towards_a_local_back_end_do_not_run_out() {
    // The namespace is this process's alone; the test runs itself again in it.
    const INSIDE: &str = "DOORWARD_INSIDE_NAMESPACE";
    const NAME: &str = "machine_limits::ports_towards_a_local_back_end_do_not_run_out";
    if std::env::var_os(INSIDE).is_none() {
        let script =
            "ip link set lo up && echo 40000 40063 >/proc/sys/net/ipv4/ip_local_port_range && exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sh", "-c", script]);
        command.arg(std::env::current_exe().unwrap()).args(["--exact", NAME, "--nocapture"]).env(INSIDE, "1");
        let end = crate::harness::finish("the test in a namespace of its own", &mut command);
        assert_eq!(end.code, 0, "{}", end.said());
        return;
    }
    let (world, backend) = (World::new(), BackEnd::start());
    let proxy = Proxy::start(&world, &toml(&world, "", &backend));
    let mut sockets: Vec<TcpStream> = (0..200)
        .map(|at: u32| {
            // Clients have to share 64 ports too: four addresses are enough for them.
            let stream = connect_from([127, 0, 1, u8::try_from(at / 50).unwrap() + 1], proxy.http());
            (&stream).write_all(HANDSHAKE.as_bytes()).unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                (&stream)
                    .read_exact(&mut byte)
                    .unwrap_or_else(|e| panic!("socket {at}: {e}\n{}", proxy.running.said()));
                head.push(byte[0]);
            }
            assert!(head.starts_with(b"HTTP/1.1 101 "), "socket {at}: {}", String::from_utf8_lossy(&head));
            stream
        })
        .collect();
    for stream in &mut sockets {
        stream.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0x81, 0x02, b'h', b'i']);
    }
}

/// A connection of a client at another address of loopback.
fn connect_from(address: [u8; 4], port: u16) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// The first bytes that a client at another address of loopback gets.
fn from(address: [u8; 4], port: u16) -> String {
    let mut stream = connect_from(address, port);
    stream.write_all(ASK.as_bytes()).unwrap();
    let mut answer = [0; 13];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Open descriptors of the process. Of one that may not be dumped only root sees them: for others it has none.
#[track_caller]
pub fn descriptors(proxy: &Proxy) -> usize {
    if !is_root_for("its descriptors are not counted") {
        return 0;
    }
    std::fs::read_dir(format!("/proc/{}/fd", proxy.running.pid().as_raw_nonzero())).unwrap().count()
}

/// User and system time of all threads.
pub fn processor_time(proxy: &Proxy) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", proxy.running.pid().as_raw_nonzero())).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
