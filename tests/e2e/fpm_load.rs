//! PHP-FPM under load: a bounded number of requests, restarts that nobody notices, clients that are slow or leave.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Fpm, Proxy, Raw, Redis, SOON, World, finish, promised, wait_for, wait_until};

const SCRIPT: &str = r#"<?php
$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
$redis = new Redis();
$redis->connect(getenv('REDIS_SOCKET'));
switch ($path) {
    case '/count':
        $body = file_get_contents('php://input');
        $redis->hIncrBy('runs', $_GET['id'], 1);
        usleep(random_int(1000, 15000));
        echo 'ran ', $_GET['id'], ' with ', strlen($body);
        break;
    case '/wait':
        $redis->incr('started');
        $redis->blPop(['go'], 20);
        echo 'waited';
        break;
    case '/cookies':
        for ($i = 0; $i < (int) $_GET['count']; $i++) {
            header("Set-Cookie: c$i=" . str_repeat('x', 1000), false);
        }
        echo 'cookies';
        break;
    case '/page':
        header('Content-Type: application/octet-stream');
        for ($i = 0; $i < (int) $_GET['kib']; $i++) {
            echo str_repeat("0123456789abcde\n", 64);
            flush();
        }
        break;
    case '/length':
        echo strlen(file_get_contents('php://input'));
        break;
    default:
        echo 'here';
}
"#;

/// A site on `fpm` whose script counts in Redis; `php` is more keys of the pool.
fn site(world: &World, fpm: &Fpm, php: &str) -> String {
    world.write("app/index.php", SCRIPT);
    let (root, to) = (world.path("app"), &fpm.address);
    format!(
        "[site.app]\nhosts = [\"app.test\"]\nroot = {root:?}\ncompress = false\nmax_body = \"100MiB\"\n\
         php = {{ to = {to:?}{php} }}\n"
    )
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n\r\n")
}

/// Status, head and body of the next answer.
fn answer(raw: &mut Raw) -> (u16, String, Vec<u8>) {
    let (status, head) = raw.head();
    let fields = head.to_lowercase();
    let body = match fields.split("\r\ncontent-length: ").nth(1) {
        Some(rest) => raw.exactly(rest.split("\r\n").next().unwrap().parse().unwrap()),
        None => raw.until(b"0\r\n\r\n"),
    };
    (status, head, body)
}

/// What Redis says to one command.
fn redis(redis: &Redis, command: &str) -> String {
    let mut stream = UnixStream::connect(&redis.socket).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said.trim_end().strip_suffix("+OK").unwrap().to_owned()
}

/// How often each request was run.
fn runs(server: &Redis) -> BTreeMap<String, u32> {
    let said = redis(server, "HGETALL runs");
    let values: Vec<&str> =
        said.split("\r\n").filter(|line| !line.starts_with(['*', '$']) && !line.is_empty()).collect();
    values.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].parse().unwrap())).collect()
}

/// Clients that ask one request after the other, each with an id of its own.
struct Callers {
    stop: Arc<AtomicBool>,
    /// Answers of each.
    answered: Arc<Vec<AtomicUsize>>,
    /// Status and time by id.
    seen: Arc<Mutex<BTreeMap<String, (u16, Duration)>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Callers {
    fn start(world: &World, proxy: &Proxy, clients: usize, methods: &'static [&'static str]) -> Callers {
        let stop = Arc::new(AtomicBool::new(false));
        let answered: Arc<Vec<AtomicUsize>> = Arc::new((0..clients).map(|_| AtomicUsize::new(0)).collect());
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let threads = (0..clients).map(|client| {
            let (stop, answered, seen) = (Arc::clone(&stop), Arc::clone(&answered), Arc::clone(&seen));
            let mut raw = proxy.raw(world, "app.test");
            std::thread::spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (method, id) = (methods[number % methods.len()], format!("{client}-{number}"));
                    let body = if method == "GET" { String::new() } else { "x".repeat(number % 5000) };
                    let length = body.len();
                    let started = Instant::now();
                    raw.send(format!(
                        "{method} /count?id={id} HTTP/1.1\r\nHost: app.test\r\nContent-Length: {length}\r\n\r\n{body}"
                    ));
                    let (status, _, said) = answer(&mut raw);
                    if status == 200 {
                        let said = String::from_utf8_lossy(&said).into_owned();
                        assert!(said.contains(&format!("ran {id} with {length}")), "{said}");
                    }
                    seen.lock().unwrap().insert(id, (status, started.elapsed()));
                    answered[client].fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Callers { stop, answered, seen, threads }
    }

    /// Waits for so many more answers, and one for each client: no request sees what was done before and what is done behind
    /// this.
    fn go_on(&self, more: usize) {
        let counts = || self.answered.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let before = counts();
        wait_until("more answers", SOON, || {
            let now = counts();
            now.iter().sum::<usize>() >= before.iter().sum::<usize>() + more
                && now.iter().zip(&before).all(|(now, before)| now > before)
        });
    }

    fn stop(mut self) -> BTreeMap<String, (u16, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn failures(seen: &BTreeMap<String, (u16, Duration)>) -> Vec<(&String, u16)> {
    seen.iter().filter(|(_, (status, _))| *status != 200).map(|(id, (status, _))| (id, *status)).collect()
}

fn told(what: &str, seen: &BTreeMap<String, (u16, Duration)>) {
    let longest = seen.values().map(|(_, time)| *time).max().unwrap_or_default();
    let failed = failures(seen).len();
    eprintln!("{what}: {} requests, {failed} not answered with 200, the longest took {longest:?}", seen.len());
}

#[test]
fn ten_restarts_under_load_lose_nothing_and_run_nothing_twice() {
    let world = World::new();
    let server = Redis::start(&world);
    let mut fpm = Fpm::pool(&world, 4, "process_control_timeout = 10s");
    let proxy = world.proxy(&site(&world, &fpm, ""));
    let callers = Callers::start(&world, &proxy, 8, &["GET", "POST", "GET", "PUT"]);
    for number in 0..10 {
        callers.go_on(20);
        if number % 2 == 0 {
            fpm.reload();
        } else {
            fpm.stop(Signal::QUIT);
            fpm.start_again();
        }
    }
    callers.go_on(20);
    let seen = callers.stop();
    told("restarted by USR2 and by QUIT", &seen);
    assert_eq!(failures(&seen), [], "of {}\n{}", seen.len(), proxy.running.said());
    let runs = runs(&server);
    assert_eq!(runs.len(), seen.len(), "a request was lost");
    assert_eq!(runs.iter().filter(|(_, times)| **times != 1).collect::<Vec<_>>(), [], "run twice");
}

#[test]
fn ten_restarts_that_kill_scripts_cost_no_get_and_run_no_post_twice() {
    let world = World::new();
    let server = Redis::start(&world);
    // As Debian has it: no time for scripts to end.
    let mut fpm = Fpm::pool(&world, 4, "");
    let proxy = world.proxy(&site(&world, &fpm, ""));
    let gets = Callers::start(&world, &proxy, 4, &["GET"]);
    for number in 0..10 {
        gets.go_on(20);
        if number % 2 == 0 {
            fpm.stop(Signal::TERM);
            fpm.start_again();
        } else {
            fpm.reload();
        }
    }
    gets.go_on(20);
    let seen = gets.stop();
    told("GETs, restarted by TERM and by USR2 without process_control_timeout", &seen);
    assert_eq!(failures(&seen), [], "of {}\n{}", seen.len(), proxy.running.said());
    let again = runs(&server).values().filter(|times| **times > 1).count();
    eprintln!("{again} of the GETs were run twice: their first worker was killed");

    redis(&server, "DEL runs");
    let posts = Callers::start(&world, &proxy, 4, &["POST"]);
    for _ in 0..5 {
        posts.go_on(20);
        fpm.reload();
    }
    posts.go_on(20);
    let seen = posts.stop();
    told("POSTs, the same", &seen);
    assert!(failures(&seen).iter().all(|(_, status)| *status == 502), "{:?}", failures(&seen));
    let runs = runs(&server);
    assert_eq!(runs.iter().filter(|(_, times)| **times != 1).collect::<Vec<_>>(), [], "run twice");
    let unanswered = failures(&seen).len();
    assert!(runs.len() <= seen.len() && runs.len() + unanswered >= seen.len(), "{} of {}", runs.len(), seen.len());
}

#[test]
fn two_stalled_uploads_hold_neither_of_two_workers() {
    let world = World::new();
    let _redis = Redis::start(&world);
    let fpm = Fpm::pool(&world, 2, "");
    let proxy = world.proxy(&site(&world, &fpm, ", children = 2, queue = 1"));
    let mut stalled: Vec<Raw> = (0..2).map(|_| proxy.raw(&world, "app.test")).collect();
    for raw in &mut stalled {
        raw.send("POST /length HTTP/1.1\r\nHost: app.test\r\nContent-Length: 300000\r\n\r\n").send(vec![b'x'; 200_000]);
    }
    let mut raw = proxy.raw(&world, "app.test");
    for _ in 0..30 {
        let (status, _, body) = answer(raw.send(get("/")));
        assert_eq!((status, body.as_slice()), (200, &b"here"[..]));
    }
    for raw in &mut stalled {
        let (status, _, body) = answer(raw.send(vec![b'x'; 100_000]));
        assert_eq!((status, body.as_slice()), (200, &b"300000"[..]));
    }
}

/// Sends `count` requests at once, each on a connection of its own, and gives their answers as they come.
fn all_at_once(world: &World, proxy: &Proxy, path: &'static str, count: usize) -> Receiver<(u16, String)> {
    let (tell, told) = channel();
    let raws: Vec<Raw> = (0..count).map(|_| proxy.raw(world, "app.test")).collect();
    for mut raw in raws {
        let tell = tell.clone();
        std::thread::spawn(move || {
            let (status, head, _) = answer(raw.send(get(path)));
            let _ = tell.send((status, head));
        });
    }
    told
}

/// `refused` answers are 503 at once, and `served` are 200 once the scripts may go on.
fn some_are_refused(server: &Redis, answers: &Receiver<(u16, String)>, refused: usize, served: usize) {
    let started = Instant::now();
    for _ in 0..refused {
        let (status, head) = answers.recv_timeout(SOON).unwrap();
        assert_eq!(status, 503, "{head}");
        assert!(head.to_lowercase().contains("\r\nretry-after: 1\r\n"), "{head}");
    }
    // A queue's deadline is 10 s.
    assert!(started.elapsed() < promised(Duration::from_secs(3)), "{:?}", started.elapsed());
    for _ in 0..served {
        redis(server, "RPUSH go 1");
    }
    for _ in 0..served {
        let (status, head) = answers.recv_timeout(SOON).unwrap();
        assert_eq!(status, 200, "{head}");
    }
}

#[test]
fn beyond_the_workers_and_the_queue_the_answer_is_503_at_once() {
    let world = World::new();
    let server = Redis::start(&world);
    let fpm = Fpm::pool(&world, 2, "");
    let proxy = world.proxy(&site(&world, &fpm, ", children = 2, queue = 4"));
    let answers = all_at_once(&world, &proxy, "/wait", 11);
    some_are_refused(&server, &answers, 5, 6);
    assert_eq!(redis(&server, "GET started"), "$1\r\n6\r\n", "FPM was asked for more");
}

#[test]
fn workers_are_learned_where_nobody_tells_them() {
    let world = World::new();
    let server = Redis::start(&world);
    let fpm = Fpm::pool(&world, 2, "");
    let proxy = world.proxy(&site(&world, &fpm, ", queue = 4"));
    let running = all_at_once(&world, &proxy, "/wait", 2);
    wait_until("both workers run", SOON, || redis(&server, "GET started").contains("\r\n2\r\n"));
    // Eight stand in FPM's own queue, four in ours.
    let answers = all_at_once(&world, &proxy, "/wait", 18);
    wait_until("the log says how many workers there are", SOON, || {
        proxy.running.stderr().iter().any(|line| line.contains("runs 2 requests at once and more wait"))
    });
    (0..2).for_each(|_| drop(redis(&server, "RPUSH go 1")));
    (0..2).for_each(|_| assert_eq!(running.recv_timeout(SOON).unwrap().0, 200));
    some_are_refused(&server, &answers, 6, 12);
}

#[test]
fn who_waits_too_long_for_a_worker_gets_503() {
    for php in [", children = 1, queue_timeout = \"300ms\"", ", queue_timeout = \"300ms\""] {
        let world = World::new();
        let server = Redis::start(&world);
        let fpm = Fpm::pool(&world, 1, "");
        let proxy = world.proxy(&site(&world, &fpm, php));
        let first = all_at_once(&world, &proxy, "/wait", 1);
        wait_until("the first runs", SOON, || redis(&server, "GET started").contains("\r\n1\r\n"));
        let answer = proxy.curl("app.test").get("/").expect(503);
        assert_eq!(answer.field("retry-after"), Some("1"));
        redis(&server, "RPUSH go 1");
        assert_eq!(first.recv_timeout(SOON).unwrap().0, 200);
        proxy.curl("app.test").get("/").expect(200);
    }
}

#[test]
fn a_client_that_leaves_gives_its_place_back_at_once() {
    let world = World::new();
    let server = Redis::start(&world);
    // One place, and a worker more than that: a script that nobody waits for any more holds the other.
    let fpm = Fpm::pool(&world, 2, "");
    let proxy = world.proxy(&site(&world, &fpm, ", children = 1, queue = 1"));
    let mut running = proxy.raw(&world, "app.test");
    running.send(get("/wait"));
    wait_until("the first runs", SOON, || redis(&server, "GET started").contains("\r\n1\r\n"));
    let mut queued = proxy.raw(&world, "app.test");
    queued.send(get("/wait"));
    wait_until("the queue is full", SOON, || {
        proxy.curl("app.test").arg("-m").arg("1").send("/").is_ok_and(|a| a.status == 503)
    });
    drop(queued);
    // The place in the queue is free again, and who takes it is served when the first client leaves as well.
    let next = wait_for("a place in the queue", SOON, || {
        let answers = all_at_once(&world, &proxy, "/", 1);
        match answers.recv_timeout(Duration::from_millis(500)) {
            Ok((status, head)) => {
                assert_eq!(status, 503, "{head}");
                None
            }
            Err(_) => Some(answers),
        }
    });
    drop(running);
    assert_eq!(next.recv_timeout(SOON).unwrap().0, 200);
    assert!(redis(&server, "GET started").contains("\r\n1\r\n"), "the one that left the queue was run");
}

#[test]
fn a_pool_that_is_gone_for_longer_is_a_quick_503_and_is_back_within_a_second() {
    let world = World::new();
    let _redis = Redis::start(&world);
    let mut fpm = Fpm::pool(&world, 2, "");
    let proxy = world.proxy(&site(&world, &fpm, ", restart_window = \"1s\""));
    proxy.curl("app.test").get("/").expect(200);
    fpm.stop(Signal::QUIT);
    let started = Instant::now();
    proxy.curl("app.test").get("/").expect(503);
    assert!(started.elapsed() >= Duration::from_secs(1), "it was not waited for");
    for _ in 0..4 {
        let started = Instant::now();
        let answer = proxy.curl("app.test").post("/", b"x").expect(503);
        assert_eq!(answer.field("retry-after"), Some("1"));
        assert!(!answer.text().contains("fpm.sock"), "the inside is not told: {}", answer.text());
        assert!(started.elapsed() < promised(Duration::from_millis(900)), "{:?}", started.elapsed());
    }
    let said = |text: &str| proxy.running.stderr().iter().any(|line| line.contains(text));
    assert!(said("requests wait for it for up to 1s") && said("has been gone for"), "{}", proxy.running.said());
    fpm.start_again();
    let started = Instant::now();
    wait_until("it is back", SOON, || proxy.curl("app.test").post("/", b"x").status == 200);
    assert!(started.elapsed() < promised(Duration::from_secs(1)), "{:?}", started.elapsed());
    assert!(said("is back after"), "{}", proxy.running.said());
}

#[test]
fn a_slow_reader_of_an_ordinary_page_holds_no_worker() {
    let world = World::new();
    let _redis = Redis::start(&world);
    let fpm = Fpm::pool(&world, 1, "");
    let proxy = world.proxy(&site(&world, &fpm, ", children = 1, queue = 1"));
    // An HTTP/2 client that grants no window: nothing of the page can go out.
    let mut slow = Raw::try_tls(&world, proxy.https(), "app.test", &["h2"]).unwrap();
    slow.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    // SETTINGS with INITIAL_WINDOW_SIZE 0.
    slow.send([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    let mut block = vec![0x82, 0x87, 0x41, 8];
    block.extend_from_slice(b"app.test");
    block.extend_from_slice(&[0x44, 13]);
    block.extend_from_slice(b"/page?kib=200");
    let mut frame = vec![0, 0, u8::try_from(block.len()).unwrap(), 1, 5, 0, 0, 0, 1];
    frame.extend_from_slice(&block);
    slow.send(frame);
    // Its answer's head has come: the script runs, or has run.
    loop {
        let head = slow.exactly(9);
        slow.exactly(usize::from(head[1]) * 256 + usize::from(head[2]));
        if head[3] == 1 {
            break;
        }
    }
    proxy.curl("app.test").get("/").expect(200);
}

#[test]
fn sixty_kib_of_cookies_pass_and_far_more_is_502_with_a_reason() {
    let world = World::new();
    let _redis = Redis::start(&world);
    let fpm = Fpm::unix(&world);
    let proxy = world.proxy(&site(&world, &fpm, ""));
    for http1 in [true, false] {
        let curl = || if http1 { proxy.curl("app.test").http1() } else { proxy.curl("app.test") };
        let answer = curl().get("/cookies?count=60").expect(200);
        assert_eq!(answer.version, if http1 { "1.1" } else { "2" });
        assert_eq!(answer.fields("set-cookie").len(), 60);
        assert!(answer.fields("set-cookie").iter().all(|value| value.len() > 1000));
        curl().get("/cookies?count=300").expect(502);
    }
    let said = |line: &String| line.contains("the head of the answer is over 262144 bytes");
    assert!(proxy.running.stderr().iter().any(said), "{}", proxy.running.said());
}

/// A folder for temporary files that a body does not fit into: a file system of its own, or, for those who may not
/// mount, a folder that cannot be written to.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// At this path.
    pub fn at(path: PathBuf) -> SmallDisk {
        std::fs::create_dir_all(&path).unwrap();
        if rustix::process::geteuid().is_root() {
            let mut command = Command::new("mount");
            command.args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "doorward-tests"]).arg(&path);
            let mounted = finish("mount", &mut command);
            assert_eq!(mounted.code, 0, "{}", mounted.said());
        } else {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o500)).unwrap();
        }
        SmallDisk(path)
    }

    /// Files on it.
    pub fn used(&self) -> usize {
        std::fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if rustix::process::geteuid().is_root() {
            let _ = Command::new("umount").arg(Path::new(&self.0)).status();
        }
    }
}

#[test]
fn a_body_that_the_disk_cannot_take_is_507_and_leaves_nothing() {
    let world = World::new();
    let _redis = Redis::start(&world);
    let fpm = Fpm::pool(&world, 2, "");
    let disk = SmallDisk::at(world.path("small"));
    let proxy = Proxy::start_with(&world, &format!("{}{}", world.head(), site(&world, &fpm, "")), |command| {
        command.env("TMPDIR", world.path("small"));
    });
    for _ in 0..2 {
        proxy.curl("app.test").post("/length", &vec![0; 4 << 20]).expect(507);
        proxy
            .curl("app.test")
            .http1()
            .header("Transfer-Encoding: chunked")
            .post("/length", &vec![0; 4 << 20])
            .expect(507);
        // What needs no disk goes on.
        assert_eq!(proxy.curl("app.test").post("/length", &vec![0; 40_000]).expect(200).text(), "40000");
    }
    if rustix::process::geteuid().is_root() {
        assert_eq!(proxy.curl("app.test").post("/length", &vec![0; 500_000]).expect(200).text(), "500000");
    }
    assert_eq!(disk.used(), 0);
    let said = |line: &String| line.contains("cannot store the request body");
    assert!(proxy.running.stderr().iter().any(said), "{}", proxy.running.said());
    drop(proxy);
}
