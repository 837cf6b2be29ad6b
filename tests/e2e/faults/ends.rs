//! Processes that are killed, stopped, or given no more threads.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
use rustix::process::{Signal, geteuid};

use super::scene::{Bystanders, CALM, Row, SICK, Scene, ms, toml};
use crate::harness::{
    BackEnd, Fpm, Proxy, Raw, Running, SOON, Socket, World, doorward, finish, free_port, promised, status,
};
use crate::machine_limits::descriptors;

/// Names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

#[test]
fn whenever_it_is_killed_the_next_start_is_clean_and_nothing_is_left() {
    let (world, calm) = (World::new(), BackEnd::start());
    let fpm = Fpm::pool(&world, 2, "");
    world.write("app/index.php", "<?php echo strlen(file_get_contents('php://input'));");
    fs::create_dir(world.path("spool")).unwrap();
    let (http, https) = (free_port(), free_port());
    let (root, pid_file) = (world.path("app"), world.path("doorward.pid"));
    let site = format!("root = {root:?}\nphp = {:?}\nhttp = \"serve\"\n", fpm.address);
    let text = toml(&world, &calm, "", &site)
        .replacen("http = [\"127.0.0.1:0\"]", &format!("http = [\"127.0.0.1:{http}\"]\npid_file = {pid_file:?}"), 1)
        .replacen("https = [\"127.0.0.1:0\"]", &format!("https = [\"127.0.0.1:{https}\"]"), 1);
    let run = || {
        let mut command = doorward();
        command.args(["run", "-c"]).arg(world.write("proxy.toml", &text)).current_dir(world.path(""));
        command.env("RUNTIME_DIRECTORY", world.path("run")).env("TMPDIR", world.path("spool"));
        Running::start("doorward", &mut command)
    };
    let mut slowest = Duration::ZERO;
    let rounds = 12_u64;
    for round in 0..rounds {
        let mut running = run();
        if round % 3 == 0 {
            // While it starts.
            std::thread::sleep(Duration::from_millis(7 * round));
        } else {
            let begun = Instant::now();
            let proxy = Proxy::watch(&world, running);
            slowest = slowest.max(begun.elapsed());
            let mut socket = Socket::open(&world, &proxy, CALM, "/live");
            socket.echoes("here");
            // In the middle of an upload that is on the disk.
            let mut upload = Raw::plain(proxy.http());
            upload.send(format!("POST /x HTTP/1.1\r\nHost: {SICK}\r\nContent-Length: 900000\r\n\r\n"));
            upload.send(vec![b'x'; 400_000]);
            assert_eq!(fs::read_to_string(&pid_file).unwrap().trim(), proxy.pid().as_raw_nonzero().to_string());
            assert_eq!(proxy.plain(SICK).post("/x", &vec![0; 200_000]).expect(200).text(), "200000");
            if round == 4 {
                // What is left of a process that a newer one had taken over from.
                let control = names(&world.path("run")).into_iter().find(|name| name.ends_with(".sock")).unwrap();
                drop(UnixListener::bind(world.path("run").join(format!("{control}.999999"))).unwrap());
            }
            std::thread::sleep(Duration::from_millis(3 * round));
            running = proxy.running;
        }
        running.signal(Signal::KILL);
        running.wait_exit(SOON);
        assert_eq!(names(&world.path("spool")), [""; 0], "left after round {round}");
    }
    let proxy = Proxy::watch(&world, run());
    let reload = finish_reload(&world);
    assert_eq!(reload, 0, "{}", proxy.running.said());
    assert_eq!(proxy.curl(CALM).get("/").expect(200).status, 200);
    assert_eq!(names(&world.path("run")).len(), 1, "{:?}", names(&world.path("run")));
    let complaints: Vec<String> =
        proxy.running.stderr().into_iter().filter(|line| line.contains(" ERROR ") || line.contains(" WARN ")).collect();
    // That it stays root is told at every start of root's.
    let others: Vec<&String> = complaints.iter().filter(|line| !line.contains("this process stays root")).collect();
    assert!(others.is_empty(), "{others:?}");
    proxy.signal(Signal::TERM);
    let mut running = proxy.running;
    assert!(running.wait_exit(SOON).success());
    assert!(!pid_file.exists() && names(&world.path("run")).is_empty(), "a stop leaves nothing");
    Row {
        part: "6-process",
        number: 0,
        injected: "SIGKILL, a dozen times: while it starts, under requests, sockets and uploads",
        seen: "connections end".to_owned(),
        told: "nothing at the next start".to_owned(),
        others: "no file is left in TMPDIR, none but its own in the runtime folder".to_owned(),
        well: format!("ready {} after the next start at the latest", ms(slowest)),
    }
    .keep();
}

fn finish_reload(world: &World) -> i32 {
    let mut command = doorward();
    command.args(["reload", "-c"]).arg(world.path("proxy.toml")).env("RUNTIME_DIRECTORY", world.path("run"));
    finish("doorward reload", &mut command).code
}

#[test]
fn a_process_that_stood_still_goes_on_with_all_its_connections() {
    let site = format!("upstream = \"http://127.0.0.1:{}\"\n", free_port());
    // A head may take less time than it stands still.
    let scene = Scene::start(World::new(), "[timeouts]\nheader = \"2s\"\n", &site);
    let others = Bystanders::start(&scene);
    let before = descriptors(&scene.proxy);
    let mut kept: Vec<Raw> = (0..8).map(|_| scene.proxy.raw(&scene.world, CALM)).collect();
    let ask = format!("GET / HTTP/1.1\r\nHost: {CALM}\r\n\r\n");
    let answered = |raw: &mut Raw| {
        let (code, head) = raw.head();
        assert_eq!(code, 200, "{head}");
        let fields = head.to_lowercase();
        let length = fields.split("\r\ncontent-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
        raw.exactly(length.parse().unwrap());
    };
    for raw in &mut kept {
        raw.send(&ask);
        answered(raw);
    }
    let stood = Duration::from_secs(3);
    let mut slowest = Duration::ZERO;
    for _ in 0..2 {
        // The first half of a head is there before it stands still, the second half comes meanwhile.
        for raw in &mut kept {
            raw.send("GET / HTTP/1.1\r\n");
        }
        scene.proxy.signal(Signal::STOP);
        std::thread::sleep(stood / 2);
        for raw in &mut kept {
            raw.send(format!("Host: {CALM}\r\n\r\n"));
        }
        std::thread::sleep(stood / 2);
        let going = Instant::now();
        scene.proxy.signal(Signal::CONT);
        kept.iter_mut().for_each(answered);
        slowest = slowest.max(going.elapsed());
        others.go_on();
    }
    assert!(slowest < promised(Duration::from_secs(1)), "{slowest:?}");
    assert_eq!(scene.sockets(), 1);
    drop(kept);
    scene.is_clean("a standstill", before);
    Row {
        part: "6-process",
        number: 1,
        injected: "SIGSTOP for 3 s and SIGCONT (a machine that is suspended), with a `timeouts.header` of 2 s",
        seen: "200: what was sent meanwhile is answered".to_owned(),
        told: "nothing".to_owned(),
        others: others.stop_within(stood + Duration::from_secs(1)),
        well: ms(slowest),
    }
    .keep();
}

#[test]
fn a_machine_that_gives_no_more_threads_ends_nothing() {
    // An account of its own: the limit counts all threads of the account.
    const ACCOUNT: u32 = 61_234;
    let world = World::new();
    let fpm = Fpm::pool(&world, 2, "");
    world.write("app/index.php", "<?php echo strlen(file_get_contents('php://input'));");
    let site = format!("root = {:?}\nphp = {:?}\n", world.path("app"), fpm.address);
    let mut command = if geteuid().is_root() {
        fs::create_dir(world.path("run")).unwrap();
        fs::set_permissions(world.path("run"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        for file in ["run", "site.key", "fpm.sock"] {
            chownat(
                CWD,
                world.path(file),
                Some(Uid::from_raw(ACCOUNT)),
                Some(Gid::from_raw(ACCOUNT)),
                AtFlags::empty(),
            )
            .unwrap();
        }
        let mut command = Command::new("setpriv");
        command
            .args([&format!("--reuid={ACCOUNT}"), &format!("--regid={ACCOUNT}"), "--clear-groups"])
            .arg(world.binary());
        command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
        command
    } else {
        doorward()
    };
    command.env("TMPDIR", "/tmp");
    let scene = Scene::start_command(world, "", &site, command);
    let others = Bystanders::start(&scene);
    let before = descriptors(&scene.proxy);
    // Only the account itself may do that, where not even root has every power.
    let mut limit = Command::new("setpriv");
    if geteuid().is_root() {
        limit.args([&format!("--reuid={ACCOUNT}"), &format!("--regid={ACCOUNT}"), "--clear-groups"]);
    }
    let pid = scene.proxy.running.pid().as_raw_nonzero().to_string();
    let limited = finish("prlimit", limit.args(["prlimit", "--pid", &pid, "--nproc=1:1"]));
    assert_eq!(limited.code, 0, "{}", limited.said());
    // Threads that wait for a disk end after ten seconds without work; every one that is made anew then fails.
    let begun = Instant::now();
    let (mut asked, mut slowest) = (0, Duration::ZERO);
    while begun.elapsed() < Duration::from_secs(13) {
        let since = Instant::now();
        for _ in 0..4 {
            let answer = scene.proxy.curl(SICK).post("/x", &vec![0; 300_000]).expect(200);
            assert_eq!(answer.text(), "300000");
            asked += 1;
        }
        slowest = slowest.max(since.elapsed() / 4);
        // The certificates are looked at as well.
        let pair = scene.world.path("site.pem");
        fs::write(&pair, fs::read(&pair).unwrap()).unwrap();
        others.go_on();
        std::thread::sleep(if asked == 4 { Duration::from_secs(11) } else { Duration::from_millis(100) });
    }
    assert!(slowest < promised(Duration::from_secs(1)), "{slowest:?}");
    scene.is_clean("no more threads", before);
    Row {
        part: "6-process",
        number: 2,
        injected: "the machine gives no more threads (RLIMIT_NPROC, TasksMax)",
        seen: format!("200: {asked} uploads by way of the disk, each within {}", ms(slowest)),
        told: "nothing: each worker keeps a thread for that".to_owned(),
        others: others.stop(),
        well: "nothing to mend".to_owned(),
    }
    .keep();
    assert_eq!(status(&scene.ask("/").unwrap()), 200);
}
