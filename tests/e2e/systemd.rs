//! sd_notify and socket activation.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use crate::backend;
use crate::harness::{BackEnd, Proxy, Running, World, binary, free_port, program};

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
    proxy.running.signal(rustix::process::Signal::TERM);
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
    // It did not open them itself: the descriptors are those that it was given.
    let pid = proxy.running.pid().as_raw_nonzero();
    for descriptor in [3, 4] {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).unwrap();
        assert!(link.to_string_lossy().starts_with("socket:"), "{}", link.display());
    }
}
