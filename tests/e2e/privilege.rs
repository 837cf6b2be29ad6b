//! What the process gives up: root, more rights for what it starts, its memory, and writing anywhere but where its file
//! says.

use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::process::{Pid, Signal};

use crate::backend;
use crate::harness::{
    BackEnd, Finished, Fpm, Proxy, Raw, SOON, Socket, World, doorward, finish, is_root_for, not_run, wait_until,
};

/// An account that every machine has, and that nothing belongs to.
const ACCOUNT: &str = "nobody";

/// CAP_NET_BIND_SERVICE (capabilities(7)).
const NET_BIND_SERVICE: u64 = 1 << 10;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The number of an account and of its group.
fn ids(account: &str) -> (u32, u32) {
    let text = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = text.lines().find(|line| line.split(':').next() == Some(account)).unwrap();
    let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
    (fields.next().unwrap(), fields.next().unwrap())
}

/// A world that the account may look at.
fn open_world() -> World {
    let world = World::new();
    std::fs::set_permissions(world.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (uid, gid) = ids(ACCOUNT);
    for folder in ["logs", "tmp"] {
        std::fs::create_dir(world.path(folder)).unwrap();
        chown(world.path(folder), Some(uid), Some(gid)).unwrap();
    }
    readable(&world.path("site.key"));
    world
}

/// Lets the account's group read a key, as a group of its own would.
fn readable(key: &Path) {
    chown(key, None, Some(ids(ACCOUNT).1)).unwrap();
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o640)).unwrap();
}

fn head(world: &World, keys: &str) -> String {
    world.head().replace("[server]", &format!("[server]\nuser = {ACCOUNT:?}\n{keys}"))
}

/// Started as root with a folder for the control socket that no other server here shares, and one for temporary files that
/// the rest of the world does not lie in.
fn start(world: &World, toml: &str) -> Proxy {
    start_command(world, toml, doorward())
}

fn start_command(world: &World, toml: &str, mut command: Command) -> Proxy {
    command.env("RUNTIME_DIRECTORY", world.path("run")).env("TMPDIR", world.path("tmp"));
    Proxy::start_command(world, toml, command)
}

fn reload(world: &World) -> Finished {
    let mut command = doorward();
    command.env("RUNTIME_DIRECTORY", world.path("run")).args(["reload", "-c"]).arg(world.path("proxy.toml"));
    finish("doorward reload", &mut command)
}

/// `/proc/PID/task/*/status`, one for each thread.
fn threads(pid: Pid) -> Vec<HashMap<String, String>> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    let texts = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
    texts
        .map(|text| {
            let fields = text.lines().filter_map(|line| line.split_once(':'));
            fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
        })
        .collect()
}

fn all(ids: &str, id: u32) -> bool {
    ids.split_whitespace().all(|one| one == id.to_string())
}

/// Every thread is the account, with no right but that to low ports, and nobody gets more or looks in.
fn is_the_account(pid: Pid) {
    let (uid, gid) = ids(ACCOUNT);
    let threads = threads(pid);
    assert!(threads.len() >= 4, "{threads:?}");
    for thread in &threads {
        assert!(all(&thread["Uid"], uid) && all(&thread["Gid"], gid) && all(&thread["Groups"], gid), "{thread:?}");
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            let held = u64::from_str_radix(&thread[set], 16).unwrap();
            assert!(held & !NET_BIND_SERVICE == 0, "{set}: {thread:?}");
        }
    }
    assert!(threads.iter().any(|it| it["CapAmb"].ends_with("400") && it["CapBnd"] == it["CapAmb"]), "{threads:?}");
    is_closed(pid);
}

/// What is so whoever it is.
fn is_closed(pid: Pid) {
    for thread in threads(pid) {
        assert_eq!(thread["NoNewPrivs"], "1", "{thread:?}");
    }
    // Of a process that may not be dumped /proc belongs to root (proc(5)).
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    assert_eq!(std::fs::metadata(format!("{proc}/environ")).unwrap().uid(), 0);
    let limits = std::fs::read_to_string(format!("{proc}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
}

/// A port that only root may bind, free on loopback.
fn low_port() -> u16 {
    // Others of this process look at the same time, and bind theirs later.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 300).unwrap() + 20 * NEXT.fetch_add(1, Ordering::Relaxed);
    let ports = (0..300).map(|at| 600 + (start + at) % 300);
    ports.into_iter().find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).unwrap()
}

#[test]
fn started_as_root_it_serves_as_its_account_and_reloads_reopens_and_binds_low_ports() {
    if !is_root_for("becoming another account") {
        return;
    }
    let world = open_world();
    let back_end = BackEnd::start();
    let fpm = Fpm::unix(&world);
    std::fs::set_permissions(world.path("fpm.sock"), std::fs::Permissions::from_mode(0o666)).unwrap();
    world.write("public/index.php", "<?php echo 'php ', strlen(file_get_contents('php://input'));");
    world.write("public/page.html", "a page");
    let sites = format!(
        "[log]\noutput = {:?}\naccess = {:?}\n{}[site.php]\nhosts = [\"shop.example.com\"]\nroot = {:?}\nphp = {:?}\n",
        world.path("logs/program.log"),
        world.path("logs/access.log"),
        backend::site(&back_end.url(), ""),
        world.path("public"),
        fpm.address
    );
    let pid_file = format!("pid_file = {:?}\n", world.path("logs/doorward.pid"));
    let toml = format!("{}{sites}", head(&world, &pid_file));
    // Its words go to the file when it is the account: its ports are not to be read from its output.
    let stderr = toml.replace(&format!("output = {:?}\n", world.path("logs/program.log")), "");
    let proxy = start(&world, &stderr);
    is_the_account(proxy.pid());
    proxy.curl("app.test").get("/x").expect(200);
    proxy.curl("shop.example.com").get("/page.html").expect(200);
    // More than is kept in memory: it is spooled.
    let body = "b".repeat(300_000);
    let answer = proxy.curl("shop.example.com").post("/index.php", body.as_bytes()).expect(200);
    assert_eq!(answer.text(), "php 300000");
    let pid = std::fs::read_to_string(world.path("logs/doorward.pid")).unwrap();
    assert_eq!(pid.trim(), proxy.pid().as_raw_nonzero().to_string());

    // A reload: another log, and a port that only root may bind.
    let port = low_port();
    proxy.rewrite(&toml.replace("https = [", &format!("https = [\"127.0.0.1:{port}\", ")));
    let reloaded = reload(&world);
    assert_eq!(reloaded.code, 0, "{}", reloaded.said());
    let url = format!("https://app.test:{port}");
    crate::harness::Curl::new(url, &world.ca(), &world.path("")).get("/low").expect(200);

    // Logs that were moved away are opened again.
    for name in ["program", "access"] {
        std::fs::rename(world.path(format!("logs/{name}.log")), world.path(format!("logs/{name}.1"))).unwrap();
    }
    proxy.running.signal(Signal::USR1);
    wait_until("new logs", SOON, || {
        proxy.curl("app.test").get("/again").expect(200);
        std::fs::read_to_string(world.path("logs/access.log")).is_ok_and(|text| text.contains("/again"))
    });
    assert_eq!(std::fs::metadata(world.path("logs/program.log")).unwrap().uid(), ids(ACCOUNT).0);
    is_the_account(proxy.pid());
}

#[test]
fn a_key_that_the_account_cannot_read_is_told_and_the_certificate_before_it_stays() {
    if !is_root_for("becoming another account") {
        return;
    }
    let world = open_world();
    let back_end = BackEnd::start();
    let mut proxy = start(&world, &format!("{}{}", head(&world, ""), backend::site(&back_end.url(), "")));
    let shown = || proxy.raw(&world, "app.test").leaf();
    let first = shown();
    // certbot's way: root's alone.
    world.certificate("site", &["app.test"]);
    proxy.running.wait_line("the key", |line| line.contains("site.key") && line.contains("ermission denied"));
    let shown = || proxy.raw(&world, "app.test").leaf();
    assert_eq!(shown(), first);
    readable(&world.path("site.key"));
    wait_until("the new certificate", SOON, || shown() != first);
}

#[test]
fn what_the_account_may_not_do_is_told_at_the_start_and_by_check() {
    if !is_root_for("becoming another account") {
        return;
    }
    let world = open_world();
    std::fs::set_permissions(world.path("site.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::create_dir(world.path("closed")).unwrap();
    std::fs::set_permissions(world.path("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let sites = format!("[site.app]\nhosts = [\"app.test\"]\nroot = {:?}\n", world.path("closed"));
    let mut proxy = start(&world, &format!("{}{sites}", head(&world, "")));
    proxy
        .running
        .wait_line("the key", |line| line.contains("site.key cannot be read by nobody") && line.contains("chgrp"));
    proxy.running.wait_line("the root", |line| line.contains("closed cannot be read by nobody"));
    // What root had read goes on.
    proxy.curl("app.test").get("/");
    let checked = finish("doorward check", doorward().args(["check", "-c"]).arg(world.path("proxy.toml")));
    assert_eq!(checked.code, 1, "{}", checked.said());
    for part in ["site.key", "/closed may not be used: it is root:root with mode 0700"] {
        assert!(checked.said().contains(part), "{part}: {}", checked.said());
    }
    readable(&world.path("site.key"));
    std::fs::set_permissions(world.path("closed"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let checked = finish("doorward check", doorward().args(["check", "-c"]).arg(world.path("proxy.toml")));
    assert_eq!(checked.code, 0, "{}", checked.said());
}

#[test]
fn root_reads_no_key_that_the_account_could_have_linked_to() {
    if !is_root_for("becoming another account") {
        return;
    }
    let world = open_world();
    std::fs::set_permissions(world.path("site.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let folder = world.path("own");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(world.path("site.key"), folder.join("site.key")).unwrap();
    let toml = format!("{}{}", head(&world, ""), backend::site("http://127.0.0.1:1", ""));
    let toml = toml.replace(world.path("site.key").to_str().unwrap(), folder.join("site.key").to_str().unwrap());
    assert!(toml.contains("own/site.key"), "{toml}");
    // A folder of root's, as certbot's live/ is.
    let proxy = start(&world, &toml);
    let shaken = |proxy: &Proxy| Raw::try_tls(&world, proxy.https(), "app.test", &[]).is_ok();
    assert!(shaken(&proxy));
    drop(proxy);
    chown(&folder, Some(ids(ACCOUNT).0), None).unwrap();
    let mut proxy = start(&world, &toml);
    proxy
        .running
        .wait_line("the pair", |line| line.contains("own/site.key") && line.contains("handshakes are refused"));
    assert!(!shaken(&proxy));
}

#[test]
fn a_log_that_the_account_cannot_open_ends_the_start() {
    if !is_root_for("becoming another account") {
        return;
    }
    let world = open_world();
    std::fs::create_dir(world.path("closed")).unwrap();
    let sites =
        format!("[log]\naccess = {:?}\n{}", world.path("closed/access.log"), backend::site("http://127.0.0.1:1", ""));
    world.write("proxy.toml", format!("{}{sites}", head(&world, "")));
    let mut command = doorward();
    command.env("RUNTIME_DIRECTORY", world.path("run")).args(["run", "-c"]).arg(world.path("proxy.toml"));
    let ended = finish("doorward run", &mut command);
    assert_eq!(ended.code, 1, "{}", ended.said());
    assert!(ended.said().contains("closed/access.log cannot be written by nobody"), "{}", ended.said());
    assert!(!world.path("closed/access.log").exists(), "root has made it");
}

#[test]
fn a_new_binary_takes_over_as_the_account() {
    if !is_root_for("becoming another account") {
        return;
    }
    let world = open_world();
    let back_end = BackEnd::start();
    let toml = format!(
        "{}[log]\naccess = {:?}\n{}",
        head(&world, &format!("pid_file = {:?}\n", world.path("logs/doorward.pid"))),
        world.path("logs/access.log"),
        backend::site(&back_end.url(), &format!("[site.app.websocket]\npreset = \"any\"\nto = {:?}\n", back_end.url()))
    );
    // The account has to be able to run it.
    let mut proxy = start_command(&world, &toml, Command::new(world.binary()));
    for _ in 0..2 {
        let mut socket = Socket::open(&world, &proxy, "app.test", "/ws");
        let pid = proxy.upgrade();
        is_the_account(pid);
        socket.echoes("the old process keeps it");
        proxy.curl("app.test").get("/new").expect(200);
    }
    let written = std::fs::read_to_string(world.path("logs/doorward.pid")).unwrap();
    assert_eq!(written.trim(), proxy.pid().as_raw_nonzero().to_string());
    let port = low_port();
    proxy.rewrite(&toml.replace("https = [", &format!("https = [\"127.0.0.1:{port}\", ")));
    let reloaded = reload(&world);
    assert_eq!(reloaded.code, 0, "{}", reloaded.said());
    // It is confined as the first was.
    proxy.rewrite(&toml.replace("logs/access.log", "elsewhere.log"));
    let refused = reload(&world);
    assert_eq!(refused.code, 1, "{}", refused.said());
    assert!(refused.said().contains("needs a restart"), "{}", refused.said());
}

#[test]
fn another_account_takes_root_and_one_that_is_not_there_is_told() {
    let world = World::new();
    std::fs::set_permissions(world.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let site = backend::site("http://127.0.0.1:1", "");
    let ends = |user: &str, mut command: Command, part: &str| {
        let toml = format!("{}{site}", world.head().replace("[server]", &format!("[server]\nuser = {user:?}\n")));
        command.env("RUNTIME_DIRECTORY", world.path("run")).args(["run", "-c"]).arg(world.write("proxy.toml", toml));
        let ended = finish("doorward run", &mut command);
        assert_eq!(ended.code, 1, "{}", ended.said());
        assert!(ended.said().contains(part), "{}", ended.said());
    };
    ends("no-such-account", doorward(), "has no account \"no-such-account\"");
    ends(&format!("{ACCOUNT}:no-such-group"), doorward(), "has no group \"no-such-group\"");
    if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "daemon", "--clear-groups", "--inh-caps=-all"]).arg(world.binary());
        ends(ACCOUNT, command, "only root can become another account");
    } else {
        ends(ACCOUNT, doorward(), "only root can become another account");
    }
}

#[test]
fn whoever_it_is_it_gets_no_new_rights_and_is_not_dumped() {
    let world = World::new();
    let back_end = BackEnd::start();
    let mut proxy = world.proxy(&backend::site(&back_end.url(), ""));
    proxy.curl("app.test").get("/").expect(200);
    is_closed(proxy.pid());
    if is_root() {
        proxy.running.wait_line("the warning", |line| line.contains("WARN") && line.contains("stays root"));
    } else {
        assert!(!proxy.running.said().contains("stays root"), "{}", proxy.running.said());
    }
    // Also a program that it starts.
    is_closed(proxy.upgrade());
}

/// Whether the kernel of this machine confines anybody.
fn has_landlock(proxy: &Proxy) -> bool {
    !proxy.running.said().contains("no Landlock")
}

#[test]
fn a_reload_that_would_write_elsewhere_is_refused_and_says_that_it_needs_a_restart() {
    let world = World::new();
    let back_end = BackEnd::start();
    std::fs::create_dir(world.path("logs")).unwrap();
    std::fs::create_dir(world.path("other")).unwrap();
    let toml = |server: &str, log: &str| {
        let head = world.head().replace("[server]", &format!("[server]\n{server}"));
        format!("{head}[log]\naccess = {:?}\n{}", world.path(log), backend::site(&back_end.url(), ""))
    };
    // The folder for temporary files is one of those that it may write to, and this test's lies there.
    std::fs::create_dir(world.path("tmp")).unwrap();
    let prepare = |command: &mut Command| {
        command.env("TMPDIR", world.path("tmp")).env("RUNTIME_DIRECTORY", world.path("run"));
    };
    let proxy = Proxy::start_with(&world, &toml("", "logs/access.log"), prepare);
    if !has_landlock(&proxy) {
        return not_run("this kernel has no Landlock");
    }
    proxy.rewrite(&toml("", "other/access.log"));
    let refused = reload(&world);
    assert_eq!(refused.code, 1, "{}", refused.said());
    for part in ["the log file", "other/access.log", "needs a restart"] {
        assert!(refused.said().contains(part), "{part}: {}", refused.said());
    }
    assert!(!world.path("other/access.log").exists());
    proxy.rewrite(&toml("", "logs/second.log"));
    assert_eq!(reload(&world).code, 0);
    proxy.curl("app.test").get("/second").expect(200);
    wait_until("the second log", SOON, || {
        std::fs::read_to_string(world.path("logs/second.log")).is_ok_and(|text| text.contains("/second"))
    });
    drop(proxy);

    // It is the kernel that refuses, not our own word alone: a link that appears later leads nowhere.
    let proxy = Proxy::start_with(&world, &toml("", "logs/access.log"), prepare);
    std::fs::rename(world.path("logs/access.log"), world.path("logs/access.1")).unwrap();
    std::os::unix::fs::symlink(world.path("other/stolen"), world.path("logs/access.log")).unwrap();
    proxy.running.signal(Signal::USR1);
    wait_until("the refusal", SOON, || proxy.running.said().contains("ermission denied"));
    assert!(!world.path("other/stolen").exists());
    std::fs::remove_file(world.path("logs/access.log")).unwrap();
    drop(proxy);

    let proxy = Proxy::start_with(&world, &toml("confine = false\n", "logs/access.log"), prepare);
    assert!(proxy.running.said().contains("server.confine is false"), "{}", proxy.running.said());
    proxy.rewrite(&toml("confine = false\n", "other/access.log"));
    assert_eq!(reload(&world).code, 0);
}

#[test]
fn beside_a_hook_nothing_is_confined_unless_the_file_says_so() {
    let world = World::new();
    let back_end = BackEnd::start();
    let toml = |server: &str| {
        let head = world.head().replace("[server]", &format!("[server]\n{server}"));
        format!("{head}[acme]\ndns_hook = [\"/bin/true\"]\n{}", backend::site(&back_end.url(), ""))
    };
    let proxy = Proxy::start(&world, &toml(""));
    assert!(proxy.running.said().contains("acme.dns_hook may have to write elsewhere"), "{}", proxy.running.said());
    drop(proxy);
    let proxy = Proxy::start(&world, &toml("confine = true\n"));
    assert!(!proxy.running.said().contains("not confined") || !has_landlock(&proxy), "{}", proxy.running.said());
}

/// Becomes its arguments, behind a filter that answers the three calls of Landlock (444 to 446) with EPERM, as systemd's
/// SystemCallFilter= does.
const WITHOUT_LANDLOCK: &str = r#"
    use strict; use POSIX ();
    my $prctl = (POSIX::uname())[4] eq 'x86_64' ? 157 : 167;
    my @steps = ([0x20, 0, 0, 0], [0x35, 0, 2, 444], [0x25, 1, 0, 446], [0x06, 0, 0, 0x00050001], [0x06, 0, 0, 0x7fff0000]);
    my $steps = join '', map { pack 'SCCL', @$_ } @steps;
    my $filter = pack 'S x6 P', scalar(@steps), $steps;
    syscall($prctl, 38, 1, 0, 0, 0) == 0 or die "no_new_privs: $!";
    syscall($prctl, 22, 2, $filter, 0, 0) == 0 or die "seccomp: $!";
    exec @ARGV or die $!;
"#;

#[test]
fn a_filter_that_forbids_landlock_is_survived_with_one_line() {
    let world = World::new();
    let back_end = BackEnd::start();
    let mut command = Command::new("perl");
    command.args(["-e", WITHOUT_LANDLOCK]).arg(crate::harness::binary());
    let toml = format!("{}{}", world.head(), backend::site(&back_end.url(), ""));
    let proxy = Proxy::start_command(&world, &toml, command);
    let told = proxy.running.stderr().iter().filter(|line| line.contains("no Landlock")).count();
    assert_eq!(told, 1, "{}", proxy.running.said());
    proxy.curl("app.test").get("/").expect(200);
}

#[test]
fn no_path_of_the_public_listeners_leads_to_the_process() {
    let world = World::new();
    let back_end = BackEnd::start();
    let proxy = world.proxy(&backend::site(&back_end.url(), "http = \"serve\"\n"));
    for path in ["/metrics", "/status", "/stub_status", "/admin", "/config", "/debug/pprof/", "/reload", "/healthz"] {
        proxy.plain("app.test").get(path).expect(200);
        assert!(back_end.last().line().starts_with(&format!("GET {path} ")), "{path} did not reach the back end");
    }
    // Nor does the control socket's language.
    let mut raw = Raw::plain(proxy.http());
    assert_eq!(raw.send("reload\n\n").head().0, 400);
}
