//! sd_notify and socket activation.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;

use crate::backend;
use crate::harness::{
    BackEnd, Proxy, Raw, Running, SOON, Socket, World, binary, finish, free_port, is_root_for, program, wait_until,
};

fn messages(socket: &UnixDatagram, wanted: &str) -> String {
    let mut all = String::new();
    let mut buffer = [0; 4096];
    loop {
        let count = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("no {wanted}: {e}; so far {all:?}"));
        all += &String::from_utf8_lossy(&buffer[..count]);
        all.push('\n');
        if all.lines().any(|line| line.starts_with(wanted)) {
            return all;
        }
    }
}

#[test]
fn systemd_is_told_of_readiness_reloads_and_the_end() {
    let world = World::new();
    let backend = BackEnd::start();
    let path = world.path("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let toml = format!("{}{}", world.head(), backend::site(&backend.url(), ""));
    let mut proxy = Proxy::start_with(&world, &toml, |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    messages(&socket, "READY=1");
    proxy.curl("app.test").get("/").expect(200);
    assert_eq!(proxy.reload().code, 0);
    proxy.running.signal(Signal::TERM);
    messages(&socket, "STOPPING=1");
    assert!(proxy.running.wait_exit(Duration::from_secs(10)).success());
}

#[test]
fn listeners_that_systemd_opened_are_used() {
    let world = World::new();
    let backend = BackEnd::start();
    let (https, http) = (free_port(), free_port());
    let head = world
        .head()
        .replace("http = [\"127.0.0.1:0\"]", &format!("http = [\"127.0.0.1:{http}\"]"))
        .replace("https = [\"127.0.0.1:0\"]", &format!("https = [\"127.0.0.1:{https}\"]"));
    let config = world.write("proxy.toml", format!("{head}{}", backend::site(&backend.url(), "")));
    // Opens the listeners, passes them on as descriptors 3 and 4, and becomes the proxy: what systemd does.
    let script = r#"
        use strict; use Socket; use POSIX ();
        my ($http, $https, @command) = @ARGV;
        my @kept;
        for my $port ($http, $https) {
            socket(my $s, PF_INET, SOCK_STREAM, 0) or die $!;
            setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1);
            bind($s, sockaddr_in($port, INADDR_LOOPBACK)) or die $!;
            listen($s, 128) or die $!;
            push @kept, $s;
        }
        # First out of the way, then into place: dup2 also clears close-on-exec.
        POSIX::dup2(fileno($kept[$_]), 20 + $_) for 0 .. $#kept;
        POSIX::dup2(20 + $_, 3 + $_) for 0 .. $#kept;
        POSIX::close(20 + $_) for 0 .. $#kept;
        $ENV{LISTEN_FDS} = 2; $ENV{LISTEN_PID} = $$;
        exec @command or die $!;
    "#;
    let mut command = Command::new(program(&["perl"]));
    command.args(["-e", script, &http.to_string(), &https.to_string()]);
    command.arg(binary()).args(["run", "-c"]).arg(config).current_dir(world.path(""));
    let proxy = Proxy::watch(&world, Running::start("doorward", &mut command));
    assert_eq!(proxy.https(), https);
    proxy.curl("app.test").get("/").expect(200);
    proxy.plain("app.test").get("/").expect(301);
    // It did not open them itself: the descriptors are those that it was given. Only root sees them.
    if !is_root_for("a look at the descriptors") {
        return;
    }
    let pid = proxy.running.pid().as_raw_nonzero();
    for descriptor in [3, 4] {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).unwrap();
        assert!(link.to_string_lossy().starts_with("socket:"), "{}", link.display());
    }
}

/// systemd's end of NOTIFY_SOCKET.
struct Manager {
    socket: UnixDatagram,
    /// What it was told, message by message.
    told: Vec<String>,
    /// The fd store.
    stored: Vec<(String, OwnedFd)>,
}

impl Manager {
    fn new(world: &World) -> Manager {
        let socket = UnixDatagram::bind(world.path("notify.sock")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Manager { socket, told: Vec::new(), stored: Vec::new() }
    }

    /// Listens until a message has a line that begins with `wanted`.
    fn hear(&mut self, wanted: &str) -> String {
        loop {
            let mut text = [0; 4096];
            let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut room);
            let received =
                recvmsg(&self.socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
                    .unwrap_or_else(|e| panic!("no {wanted}: {e}; so far {:?}", self.told));
            let message = String::from_utf8_lossy(&text[..received.bytes]).into_owned();
            let name = message.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("").to_owned();
            for part in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                    self.stored.extend(descriptors.map(|descriptor| (name.clone(), descriptor)));
                }
            }
            if message.contains("FDSTOREREMOVE=1") {
                self.stored.retain(|(stored, _)| *stored != name);
            }
            self.told.push(message.clone());
            if message.lines().any(|line| line.starts_with(wanted)) {
                return message;
            }
        }
    }
}

/// Starts the command in its arguments as systemd starts a service: with its own id in the environment, and with the
/// descriptors that `KEPT` names from 3 on.
const LAUNCHER: &str = r#"
    use strict; use POSIX ();
    my @kept = split /,/, ($ENV{KEPT} // "");
    POSIX::dup2($kept[$_], 100 + $_) for 0 .. $#kept;
    POSIX::close($_) for @kept;
    POSIX::dup2(100 + $_, 3 + $_) for 0 .. $#kept;
    POSIX::close(100 + $_) for 0 .. $#kept;
    $ENV{LISTEN_FDS} = @kept; $ENV{LISTEN_PID} = $$; $ENV{WATCHDOG_PID} = $$;
    exec @ARGV or die $!;
"#;

/// Ports that mean the same at the next start, and `[server]` with them: https, http.
fn fixed_ports(world: &World) -> (u16, u16, String) {
    let (https, http) = (free_port(), free_port());
    let head = world
        .head()
        .replace("http = [\"127.0.0.1:0\"]", &format!("http = [\"127.0.0.1:{http}\"]"))
        .replace("https = [\"127.0.0.1:0\"]", &format!("https = [\"127.0.0.1:{https}\"]"));
    (https, http, head)
}

fn launch(world: &World, manager: &Manager, toml: &str) -> Proxy {
    let mut command = Command::new(program(&["perl"]));
    let config = world.write("proxy.toml", toml);
    command.args(["-e", LAUNCHER]).arg(binary()).args(["run", "-c"]).arg(config).current_dir(world.path(""));
    command.env("NOTIFY_SOCKET", world.path("notify.sock")).env("WATCHDOG_USEC", "400000");
    let numbers: Vec<String> = manager.stored.iter().map(|(_, fd)| fd.as_raw_fd().to_string()).collect();
    let names: Vec<&str> = manager.stored.iter().map(|(name, _)| name.as_str()).collect();
    command.env("KEPT", numbers.join(",")).env("LISTEN_FDNAMES", names.join(":"));
    manager.stored.iter().for_each(|(_, fd)| fcntl_setfd(fd, FdFlags::empty()).unwrap());
    let running = Running::start("doorward", &mut command);
    // Soon: what other tests start in this moment gets them, too.
    manager.stored.iter().for_each(|(_, fd)| fcntl_setfd(fd, FdFlags::CLOEXEC).unwrap());
    Proxy::watch(world, running)
}

#[test]
fn systemd_is_told_of_a_new_main_process_which_speaks_from_then_on() {
    let world = World::new();
    let backend = BackEnd::start();
    let mut manager = Manager::new(&world);
    let socket = format!("[site.app.websocket]\npreset = \"any\"\nto = {:?}\n", backend.url());
    let (_, _, head) = fixed_ports(&world);
    let mut proxy = launch(&world, &manager, &format!("{head}{}", backend::site(&backend.url(), &socket)));
    manager.hear("READY=1");
    let mut socket = Socket::open(&world, &proxy, "app.test", "/live");
    socket.echoes("hello");
    let new = proxy.upgrade();
    let before = manager.told.len();
    assert!(manager.hear("MAINPID=").contains(&format!("MAINPID={}\n", new.as_raw_nonzero())));
    let early = manager.told[before..].iter().filter(|told| told.contains("READY=1") || told.contains("FDSTORE"));
    assert_eq!(early.count(), 0, "the new one spoke before it was believed: {:?}", manager.told);
    manager.hear("READY=1");
    // The old one is left with its socket, and the watchdog is the new one's: systemd would end it.
    socket.echoes("still");
    drop(socket);
    assert!(proxy.running.wait_exit(SOON).success());
    while manager.told.last().is_some_and(|told| !told.starts_with("WATCHDOG=1")) {
        manager.hear("");
    }
    for _ in 0..3 {
        manager.hear("WATCHDOG=1");
    }
    proxy.signal(Signal::TERM);
    manager.hear("STOPPING=1");
    let stopping = manager.told.iter().filter(|told| told.contains("STOPPING=1")).count();
    assert_eq!(stopping, 1, "the old one did not speak for the service: {:?}", manager.told);
}

#[test]
fn a_restart_refuses_nobody_while_systemd_keeps_the_sockets() {
    let world = World::new();
    let backend = BackEnd::start();
    let (https, http, head) = fixed_ports(&world);
    let toml = format!("{head}{}", backend::site(&backend.url(), ""));
    let mut manager = Manager::new(&world);
    let mut first = launch(&world, &manager, &toml);
    manager.hear("READY=1");
    let mut names: Vec<&str> = manager.stored.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let (plain, tls) = (format!("doorward-http-127.0.0.1_{http}"), format!("doorward-https-127.0.0.1_{https}"));
    assert_eq!(names, [&plain, &plain, &tls, &tls], "one for each worker");
    first.running.signal(Signal::TERM);
    assert!(first.running.wait_exit(SOON).success());
    drop(first);
    // Nobody runs. The clients do not notice.
    let mut waiting: Vec<Raw> = (0..20).map(|_| Raw::plain(http)).collect();
    for raw in &mut waiting {
        raw.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n");
    }
    // Another number of workers takes what there is.
    let mut second = launch(&world, &manager, &toml.replace("workers = 2", "workers = 1"));
    for raw in &mut waiting {
        assert_eq!(raw.head().0, 301);
    }
    second.curl("app.test").get("/").expect(200);
    // A listener that leaves the file leaves the store, be it by a reload or by an upgrade.
    second.rewrite(&toml.replace(&format!("http = [\"127.0.0.1:{http}\"]"), "http = []"));
    second.signal(Signal::HUP);
    assert!(manager.hear("FDSTOREREMOVE=1").contains(&format!("FDNAME={plain}\n")));
    let before = manager.stored.len();
    second.upgrade();
    manager.hear("MAINPID=");
    manager.hear("READY=1");
    assert!(manager.stored.len() > before, "the new main process has its sockets kept, too");
    wait_until("nobody has the plain port", SOON, || std::net::TcpStream::connect(("127.0.0.1", http)).is_err());
    second.curl("app.test").get("/").expect(200);
}

#[test]
fn the_unit_leaves_no_more_open_than_it_has_to() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/doorward.service");
    let mut command = Command::new(program(&["systemd-analyze"]));
    let assessed = finish("systemd-analyze", command.args(["security", "--offline=true", "--no-pager", unit]));
    let line =
        assessed.stdout.lines().find(|line| line.contains("Overall exposure level")).expect("a verdict").to_owned();
    let exposure: f32 = line.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    // 1.4 by systemd 252: sockets of both families, CAP_NET_BIND_SERVICE, the host's users and network.
    assert!(line.contains(" OK ") && exposure <= 1.5, "{}", assessed.said());
}
