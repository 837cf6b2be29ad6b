//! A new binary takes over: USR2. With `DOORWARD_FULL=1` twenty times in a row.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::backend;
use crate::harness::{
    Asking, BackEnd, Load, Node, Proxy, Raw, SOON, Socket, Waiting, World, binary, is_full, is_running, wait_until,
};

/// A program in the test's folder that is the binary under test, until it is replaced.
struct Installed {
    link: PathBuf,
}

impl Installed {
    fn new(world: &World) -> Installed {
        let link = world.path("doorward");
        std::os::unix::fs::symlink(binary(), &link).unwrap();
        Installed { link }
    }

    /// A package with a broken program is installed.
    fn breaks(&self, world: &World, script: &str) {
        let broken = world.write("broken", format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
        self.leads_to(broken);
    }

    fn is_mended(&self) {
        self.leads_to(binary().into());
    }

    fn leads_to(&self, program: PathBuf) {
        std::fs::remove_file(&self.link).unwrap();
        std::os::unix::fs::symlink(program, &self.link).unwrap();
    }

    fn start(&self, world: &World, toml: &str) -> Proxy {
        let mut command = Command::new(&self.link);
        command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
        Proxy::start_command(world, toml, command)
    }
}

fn sockets(to: &str) -> String {
    backend::site(to, &format!("[site.app.websocket]\npreset = \"none\"\npaths = [\"/live\"]\nto = {to:?}\n"))
}

fn start(world: &World, server: &str) -> (BackEnd, Proxy) {
    let back_end = BackEnd::start();
    let head = world.head().replace("[server]\n", &format!("[server]\n{server}\n"));
    let proxy = Proxy::start(world, &format!("{head}{}", sockets(&back_end.url())));
    (back_end, proxy)
}

/// All three kinds of clients at once.
fn loads(world: &World, proxy: &Proxy) -> Vec<Load> {
    [Asking::Once, Asking::KeepAlive, Asking::Http2].map(|how| Load::asking(world, proxy, "app.test", 3, how)).into()
}

fn go_on(loads: &[Load]) {
    loads.iter().for_each(|load| load.goes_on(40));
}

fn stop(loads: Vec<Load>) {
    loads.into_iter().for_each(|load| drop(load.stop()));
}

/// How many threads that accept a process has.
fn workers(pid: rustix::process::Pid) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
    names.filter(|name| name.starts_with("worker")).count()
}

#[test]
fn no_request_fails_while_one_process_after_another_takes_over() {
    let world = World::new();
    let (_back_end, mut proxy) = start(&world, "");
    let first = proxy.pid();
    let loads = loads(&world, &proxy);
    let rounds = if is_full() { 20 } else { 3 };
    for _ in 0..rounds {
        go_on(&loads);
        let before = proxy.pid();
        proxy.upgrade();
        go_on(&loads);
        wait_until("the old process has ended", SOON, || !is_running(before));
    }
    let answered: Vec<usize> = loads.into_iter().map(|load| load.stop().0).collect();
    println!("{rounds} upgrades: {answered:?} requests on new, kept and HTTP/2 connections, none failed");
    assert!(!is_running(first) && is_running(proxy.pid()));
}

#[test]
fn no_request_fails_when_the_number_of_workers_changes() {
    let world = World::new();
    let (back_end, mut proxy) = start(&world, "");
    let loads = loads(&world, &proxy);
    assert_eq!(workers(proxy.pid()), 2);
    for count in [1, 3, 2] {
        let head = world.head().replace("workers = 2", &format!("workers = {count}"));
        proxy.rewrite(&format!("{head}{}", sockets(&back_end.url())));
        go_on(&loads);
        let pid = proxy.upgrade();
        // A thread that a worker has just begun has its name for a moment.
        wait_until("the number of workers", SOON, || workers(pid) == count);
        go_on(&loads);
    }
    stop(loads);
}

#[test]
fn live_sockets_stay_with_the_old_process_which_ends_after_the_last() {
    let world = World::new();
    let (_back_end, mut proxy) = start(&world, "");
    let old = proxy.pid();
    let mut sockets: Vec<Socket> = (0..10).map(|_| Socket::open(&world, &proxy, "app.test", "/live")).collect();
    sockets.iter_mut().for_each(|socket| socket.echoes("before"));
    let new = proxy.upgrade();
    assert_ne!(old, new);
    sockets.iter_mut().for_each(|socket| socket.echoes("after"));
    let mut later = Socket::open(&world, &proxy, "app.test", "/live");
    // Requests had their time; sockets have more.
    std::thread::sleep(Duration::from_millis(2500));
    sockets.iter_mut().for_each(|socket| socket.echoes("still"));
    assert!(is_running(old));
    // It has nothing to say any more, and says so; who means the one in charge is heard there.
    proxy.running.signal(Signal::USR2);
    proxy.running.wait_line("a word", |line| line.contains("USR2: this process only finishes"));
    proxy.running.signal(Signal::HUP);
    proxy.running.wait_line("a reload of the new process", |line| line.contains("reloaded: "));
    drop(sockets);
    assert!(proxy.running.wait_exit(SOON).success());
    later.echoes("the new one's");
    proxy.curl("app.test").get("/").expect(200);
}

/// Answers `/events` with server-sent events until `done`, and others with the length of what they sent.
fn slow_back_end(done: Arc<AtomicBool>) -> BackEnd {
    BackEnd::answering(move |seen, stream| {
        use std::io::Write;
        if seen.line().contains("/events") {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = stream.write_all(head.as_bytes());
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                number += 1;
                let event = format!("data: {number}\n\n");
                if stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).is_err() {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            return stream.write_all(b"c\r\ndata: last\n\n\r\n0\r\n\r\n").is_ok();
        }
        let body = seen.body.len().to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes()).is_ok()
    })
}

/// An upload and a stream of events that are under way while something happens.
struct UnderWay {
    upload: Raw,
    events: Raw,
    done: Arc<AtomicBool>,
}

const UPLOAD: usize = 300_000;

impl UnderWay {
    fn begin(world: &World, proxy: &Proxy, done: Arc<AtomicBool>) -> UnderWay {
        let mut upload = proxy.raw(world, "app.test");
        upload.send(format!("POST /upload HTTP/1.1\r\nHost: app.test\r\nContent-Length: {UPLOAD}\r\n\r\n"));
        upload.send(vec![b'x'; 1000]);
        let mut events = proxy.raw(world, "app.test");
        events.send("GET /events HTTP/1.1\r\nHost: app.test\r\n\r\n");
        assert_eq!(events.head().0, 200);
        events.until(b"data: 3\n\n");
        UnderWay { upload, events, done }
    }

    fn finish(mut self) {
        self.events.until(b"\n\n");
        for _ in 0..10 {
            self.upload.send(vec![b'x'; (UPLOAD - 1000) / 10]);
            std::thread::sleep(Duration::from_millis(20));
        }
        self.upload.send(vec![b'x'; (UPLOAD - 1000) % 10]);
        assert_eq!(self.upload.head().0, 200);
        assert_eq!(self.upload.exactly(6), UPLOAD.to_string().as_bytes());
        self.done.store(true, Ordering::Relaxed);
        self.events.until(b"data: last\n\n");
        self.events.until(b"0\r\n\r\n");
    }
}

#[test]
fn uploads_and_event_streams_finish() {
    for what in ["upgrade", "stop", "reload"] {
        let world = World::new();
        let done = Arc::new(AtomicBool::new(false));
        let back_end = slow_back_end(done.clone());
        let head = world.head().replace("\"2s\"", "\"20s\"");
        let mut proxy = Proxy::start(&world, &format!("{head}{}", backend::site(&back_end.url(), "")));
        let (under_way, port) = (UnderWay::begin(&world, &proxy, done), proxy.https());
        match what {
            "upgrade" => drop(proxy.upgrade()),
            "stop" => {
                proxy.running.signal(Signal::TERM);
                wait_until("the listener is closed", SOON, || {
                    std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
                });
            }
            // Their site is gone from the file.
            _ => {
                proxy.rewrite(&format!(
                    "{head}{}",
                    backend::site(&back_end.url(), "").replace("app.test", "no.app.test")
                ));
                assert_eq!(proxy.reload().code, 0);
                assert!(proxy.curl("app.test").send("/").is_err());
            }
        }
        under_way.finish();
        if what != "reload" {
            assert!(proxy.running.wait_exit(SOON).success(), "{what}");
        }
    }
}

#[test]
fn a_broken_binary_changes_nothing() {
    let world = World::new();
    let back_end = BackEnd::start();
    let installed = Installed::new(&world);
    let mut proxy = installed.start(&world, &format!("{}{}", world.head(), sockets(&back_end.url())));
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    let loads = loads(&world, &proxy);
    let faults = [
        ("echo the new library is missing >&2; exit 127", "the new process ended with exit status: 127"),
        ("kill -9 $$", "the new process ended with signal: 9"),
        ("echo hello >&0; exec sleep 100", "does not speak as a doorward that takes over does"),
    ];
    for (script, reason) in faults {
        installed.breaks(&world, script);
        proxy.running.signal(Signal::USR2);
        proxy.running.wait_line(reason, |line| line.contains("no upgrade") && line.contains(reason));
        go_on(&loads);
    }
    std::fs::remove_file(&installed.link).unwrap();
    proxy.running.signal(Signal::USR2);
    proxy.running.wait_line("no program", |line| line.contains("no upgrade") && line.contains("No such file"));
    std::os::unix::fs::symlink("/", &installed.link).unwrap();
    go_on(&loads);
    stop(loads);
    socket.echoes("as if nothing had been");
    assert!(proxy.running.alive());
    assert!(proxy.running.said().contains("the new library is missing"), "its last words");
}

#[test]
fn after_a_failed_upgrade_the_mended_binary_takes_over() {
    let world = World::new();
    let back_end = BackEnd::start();
    let installed = Installed::new(&world);
    let mut proxy = installed.start(&world, &format!("{}{}", world.head(), sockets(&back_end.url())));
    installed.breaks(&world, "exec sleep 100");
    proxy.running.signal(Signal::USR2);
    proxy.running.wait_line("the start", |line| line.contains("to take over"));
    // It hangs. Nobody waits for it, and a second one is not started beside it.
    proxy.curl("app.test").get("/").expect(200);
    proxy.running.signal(Signal::USR2);
    proxy.running.wait_line("the second", |line| line.contains("a new process is just being started"));
    let hanging = children(&proxy);
    assert_eq!(hanging.len(), 1, "{hanging:?}");
    rustix::process::kill_process(hanging[0], Signal::KILL).unwrap();
    proxy.running.wait_line("the failure", |line| line.contains("no upgrade"));
    installed.is_mended();
    proxy.upgrade();
    proxy.curl("app.test").get("/").expect(200);
}

fn children(proxy: &Proxy) -> Vec<rustix::process::Pid> {
    let pid = proxy.running.pid().as_raw_nonzero();
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let text = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|id| rustix::process::Pid::from_raw(id.parse().unwrap())));
    }
    all
}

#[test]
fn a_stop_during_an_upgrade_ends_both() {
    let world = World::new();
    let back_end = BackEnd::start();
    let installed = Installed::new(&world);
    let mut proxy = installed.start(&world, &format!("{}{}", world.head(), sockets(&back_end.url())));
    installed.breaks(&world, "exec sleep 100");
    proxy.running.signal(Signal::USR2);
    wait_until("the new process", SOON, || children(&proxy).len() == 1);
    let new = children(&proxy)[0];
    proxy.running.signal(Signal::TERM);
    assert!(proxy.running.wait_exit(SOON).success());
    assert!(!is_running(new));
}

#[test]
fn a_broken_file_at_an_upgrade_changes_nothing_and_is_told() {
    let world = World::new();
    let (back_end, mut proxy) = start(&world, "");
    let good = format!("{}{}", world.head(), sockets(&back_end.url()));
    proxy.rewrite(&format!("{good}[nonsense]\n"));
    proxy.running.signal(Signal::USR2);
    let told = proxy.running.wait_line("the reason", |line| line.contains("no upgrade"));
    assert!(told.contains("cannot serve") && proxy.running.said().contains("nonsense"), "{}", proxy.running.said());
    proxy.curl("app.test").get("/").expect(200);
    assert!(proxy.running.alive());
}

#[test]
fn an_upgrade_reads_the_file_listeners_come_and_go() {
    let world = World::new();
    let (back_end, mut proxy) = start(&world, "");
    let (https, http, port) = (proxy.https(), proxy.http(), crate::harness::free_port());
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    let head = world
        .head()
        .replace("http = [\"127.0.0.1:0\"]", "http = []")
        .replace("https = [\"127.0.0.1:0\"]", &format!("https = [\"127.0.0.1:0\", \"127.0.0.1:{port}\"]"));
    proxy.rewrite(&format!("{head}{}", sockets(&back_end.url())));
    proxy.upgrade();
    proxy.curl("app.test").get("/").expect(200);
    crate::harness::Curl::new(format!("https://app.test:{port}"), &world.ca(), &world.path("")).get("/").expect(200);
    assert_eq!(proxy.https(), https);
    wait_until("the plain listener is closed", SOON, || std::net::TcpStream::connect(("127.0.0.1", http)).is_err());
    socket.echoes("stays");
    // The site leaves the file: the sockets that the old process keeps are the file's, too.
    let old = proxy.running.pid();
    proxy.rewrite(&format!("{head}{}", sockets(&back_end.url()).replace("site.app", "site.other")));
    proxy.signal(Signal::HUP);
    assert_eq!(socket.closed(), Some(1012));
    drop(socket);
    wait_until("the end of the old process", SOON, || !is_running(old) || !proxy.running.alive());
}

#[test]
fn the_window_closes_with_1012() {
    let world = World::new();
    let (_back_end, mut proxy) = start(&world, "upgrade_window = \"3s\"");
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    socket.echoes("hello");
    proxy.upgrade();
    socket.echoes("within the window");
    assert_eq!(socket.closed(), Some(1012));
    drop(socket);
    assert!(proxy.running.wait_exit(SOON).success());
}

#[test]
fn a_stop_ends_every_generation_and_the_newest_last() {
    let world = World::new();
    let (_back_end, mut proxy) = start(&world, "");
    let mut sockets = vec![Socket::open(&world, &proxy, "app.test", "/live")];
    let mut pids = vec![proxy.pid()];
    for _ in 0..2 {
        pids.push(proxy.upgrade());
        sockets.push(Socket::open(&world, &proxy, "app.test", "/live"));
    }
    sockets.iter_mut().for_each(|socket| socket.echoes("each of its own process"));
    proxy.signal(Signal::TERM);
    for mut socket in sockets {
        assert_eq!(socket.closed(), Some(1001));
    }
    wait_until("the newest has ended", SOON, || !is_running(pids[2]));
    // Their last act was to close what the newest waits on. systemd would kill what is left.
    wait_until("all have ended", Duration::from_millis(300), || !is_running(pids[0]) && !is_running(pids[1]));
}

#[test]
fn the_middle_process_stays_for_the_oldest_sockets() {
    let world = World::new();
    let (_back_end, mut proxy) = start(&world, "");
    let mut oldest = Socket::open(&world, &proxy, "app.test", "/live");
    oldest.echoes("hello");
    let middle = proxy.upgrade();
    proxy.upgrade();
    // It has nothing to do but to be there: through it the oldest hears what the newest is told.
    std::thread::sleep(Duration::from_millis(1500));
    assert!(is_running(middle));
    oldest.echoes("not ended with the middle one");
    proxy.signal(Signal::TERM);
    assert_eq!(oldest.closed(), Some(1001), "told through the middle one");
    drop(oldest);
    wait_until("the end of all", SOON, || !is_running(middle) && !is_running(proxy.pid()));
}

#[test]
fn when_the_new_process_dies_the_old_one_closes_its_sockets() {
    let world = World::new();
    let (_back_end, mut proxy) = start(&world, "");
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    socket.echoes("hello");
    proxy.upgrade();
    proxy.signal(Signal::KILL);
    assert_eq!(socket.closed(), Some(1001));
    drop(socket);
    assert!(proxy.running.wait_exit(SOON).success());
}

#[test]
fn a_second_term_ends_every_generation_at_once() {
    let world = World::new();
    let done = Arc::new(AtomicBool::new(false));
    let back_end = slow_back_end(done.clone());
    let head = world.head().replace("\"2s\"", "\"60s\"");
    let mut proxy = Proxy::start(&world, &format!("{head}{}", backend::site(&back_end.url(), "")));
    let mut events = proxy.raw(&world, "app.test");
    events.send("GET /events HTTP/1.1\r\nHost: app.test\r\n\r\n").until(b"data: 3\n\n");
    let new = proxy.upgrade();
    proxy.signal(Signal::TERM);
    proxy.running.wait_line("the old one stops", |line| line.trim_end().ends_with("stopping"));
    events.until(b"\n\n");
    assert!(is_running(new) && proxy.running.alive(), "the first waits");
    let second = Instant::now();
    proxy.signal(Signal::TERM);
    proxy.running.wait_exit(SOON);
    wait_until("the new one's end", SOON, || !is_running(new));
    assert!(second.elapsed() < crate::harness::promised(Duration::from_secs(2)), "{:?}", second.elapsed());
    done.store(true, Ordering::Relaxed);
}

#[test]
fn the_pid_file_and_the_control_socket_are_those_of_the_process_in_charge() {
    let world = World::new();
    let (pid_file, run) = (world.path("doorward.pid"), world.path("run"));
    let back_end = BackEnd::start();
    let head = world.head().replace("[server]\n", &format!("[server]\npid_file = {pid_file:?}\n"));
    let toml = format!("{head}{}", sockets(&back_end.url()));
    let mut proxy = Proxy::start_with(&world, &toml, |command| {
        command.env("RUNTIME_DIRECTORY", &run);
    });
    let read = || std::fs::read_to_string(&pid_file).unwrap().trim().parse::<i32>().unwrap();
    assert_eq!(read(), proxy.pid().as_raw_nonzero().get());
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    let (old, new) = (proxy.pid(), proxy.upgrade());
    assert_eq!(read(), new.as_raw_nonzero().get());
    let control = || -> Vec<PathBuf> {
        let mut all: Vec<_> = std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    };
    wait_until("two control sockets", SOON, || control().len() == 2);
    let [first, second] = &control()[..] else { panic!("{:?}", control()) };
    assert_eq!(second.display().to_string(), format!("{}.{}", first.display(), old.as_raw_nonzero()));
    assert_eq!(std::fs::metadata(second).unwrap().permissions().mode() & 0o777, 0o600);
    let reload = |path: &PathBuf| doorward_control(path, "reload\n");
    assert!(reload(first).starts_with("ok\n"), "the new one reloads");
    assert!(reload(second).contains("this process only finishes"));
    socket.echoes("still");
    drop(socket);
    assert!(proxy.running.wait_exit(SOON).success());
    assert_eq!(read(), new.as_raw_nonzero().get(), "the old one removed a file that is not its own");
    assert_eq!(control().len(), 1);
    proxy.signal(Signal::TERM);
    wait_until("the end", SOON, || !is_running(new));
    assert!(!pid_file.exists() && control().is_empty());
}

fn doorward_control(path: &PathBuf, request: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn socket_io_loses_no_event_over_a_reload_and_an_upgrade() {
    let world = World::new();
    let node = Node::serve(&world, "socketio-server.js", &[]);
    let websocket = crate::socketio::websocket(&node.url());
    let head = world.head().replace("\"2s\"", "\"30s\"");
    let toml = format!("{head}{}", backend::site(&node.url(), &websocket));
    let mut proxy = Proxy::start(&world, &toml);
    let url = proxy.url("app.test");
    let over = world.path("over");
    let clients: Vec<Waiting> = ["polling", "websocket", "upgrade"]
        .into_iter()
        .map(|mode| {
            let arguments = ["--url", &url, "--mode", mode, "--until", over.to_str().unwrap()];
            Waiting::start(&world, "socketio-client.js", &arguments).0
        })
        .collect();
    for _ in 0..2 {
        proxy.rewrite(&format!("{toml}[site.more]\nhosts = [\"more.app.test\"]\nupstream = {:?}\n", node.url()));
        assert_eq!(proxy.reload().code, 0);
        std::thread::sleep(Duration::from_millis(300));
        proxy.upgrade();
        std::thread::sleep(Duration::from_millis(1500));
    }
    std::fs::write(&over, "").unwrap();
    for client in clients {
        let result = client.result();
        assert!(result["broken"].is_null(), "{result}");
        assert!(result["sent"] == result["received"] && result["sent"].as_u64() > Some(100), "{result}");
    }
}

#[test]
fn sockets_over_http2_stay_with_the_old_process_beyond_the_grace_of_requests() {
    let world = World::new();
    let (_back_end, mut proxy) = start(&world, "");
    let url = proxy.url("app.test");
    let arguments = ["--url", &url, "--mode", "hold", "--sockets", "3", "--quiet", "5000"];
    let (client, _) = Waiting::start(&world, "h2-sockets.js", &arguments);
    proxy.upgrade();
    let expected = json!({ "codes": [1000, 1000, 1000], "echoes": [true, true, true], "goaway": true });
    assert_eq!(client.result(), expected);
    assert!(proxy.running.wait_exit(SOON).success());
}
