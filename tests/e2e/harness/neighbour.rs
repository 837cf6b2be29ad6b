//! The programs that stand behind the proxy and in front of it: PHP-FPM, Redis, Node.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, kill_process_group};
use serde_json::Value;

use super::process::{Running, finish_within};
use super::wait::{SOON, wait_until};
use super::world::{World, free_port, neighbours};

/// PHP-FPM with a pool of its own.
pub struct Fpm {
    running: Running,
    config: PathBuf,
    /// What the proxy's `php` key says.
    pub address: String,
}

impl Fpm {
    /// On a unix socket.
    pub fn unix(world: &World) -> Fpm {
        Fpm::pool(world, 4, "")
    }

    /// On a unix socket, with so many workers and more keys of `[global]`.
    pub fn pool(world: &World, children: usize, global: &str) -> Fpm {
        let socket = world.path("fpm.sock");
        let address = format!("unix:{}", socket.display());
        let fpm = Fpm::start(world, &socket.display().to_string(), address, children, (global, ""));
        wait_until("PHP-FPM listens", SOON, || UnixStream::connect(&socket).is_ok());
        fpm
    }

    /// On a unix socket, and as badly set up as people do it: it runs whatever file it is told to, and looks for one
    /// further up the path where there is none.
    pub fn careless(world: &World) -> Fpm {
        let socket = world.path("fpm.sock");
        let address = format!("unix:{}", socket.display());
        let pool = "security.limit_extensions =\nphp_admin_value[cgi.fix_pathinfo] = 1";
        let fpm = Fpm::start(world, &socket.display().to_string(), address, 4, ("", pool));
        wait_until("PHP-FPM listens", SOON, || UnixStream::connect(&socket).is_ok());
        fpm
    }

    /// On a TCP port.
    pub fn tcp(world: &World) -> Fpm {
        let address = format!("127.0.0.1:{}", free_port());
        let fpm = Fpm::start(world, &address, address.clone(), 4, ("", ""));
        wait_until("PHP-FPM listens", SOON, || std::net::TcpStream::connect(&address).is_ok());
        fpm
    }

    /// USR2; ready when it has started anew, on the same socket.
    pub fn reload(&self) {
        let ready = || self.running.stderr().iter().filter(|line| line.contains("ready to handle connections")).count();
        let before = ready();
        self.running.signal(Signal::USR2);
        wait_until("PHP-FPM has reloaded", SOON, || ready() > before);
    }

    /// Ends it by a signal and waits for that.
    pub fn stop(&mut self, signal: Signal) {
        self.running.signal(signal);
        self.running.wait_exit(SOON);
    }

    /// Ends it and all its workers as a crash of the machine's would.
    pub fn kill(&mut self) {
        kill_process_group(self.running.pid(), Signal::KILL).unwrap();
        self.running.wait_exit(SOON);
    }

    /// Starts it again, on a new socket.
    pub fn start_again(&mut self) {
        self.running = Fpm::run(&self.config);
        self.running.wait_line("being ready", |line| line.contains("ready to handle connections"));
    }

    fn run(config: &Path) -> Running {
        let mut command = Command::new(program(&["php-fpm8.2", "php-fpm"]));
        // -R: the tests of a container often run as root, and the pool serves nobody but them.
        command.args(["-F", "-R", "-y"]).arg(config);
        Running::start("php-fpm", &mut command)
    }

    fn start(world: &World, listen: &str, address: String, children: usize, (global, pool): (&str, &str)) -> Fpm {
        let account = |flag: &str| {
            let text = Command::new("id").arg(flag).output().unwrap().stdout;
            String::from_utf8(text).unwrap().trim().to_owned()
        };
        std::fs::create_dir_all(world.path("tmp")).unwrap();
        let text = std::fs::read_to_string(neighbours().join("fpm.conf")).unwrap();
        let text = text
            .replace("{{log}}", "/proc/self/fd/2")
            .replace("{{user}}", &account("-un"))
            .replace("{{group}}", &account("-gn"))
            .replace("{{listen}}", listen)
            .replace("{{children}}", &children.to_string())
            .replace("daemonize = no", &format!("daemonize = no\n{global}"))
            .replace("pm = static", &format!("pm = static\n{pool}"))
            .replace("{{redis}}", &redis_socket(world).display().to_string())
            .replace("{{tmp}}", &world.path("tmp").display().to_string());
        let config = world.write("fpm.conf", text);
        Fpm { running: Fpm::run(&config), config, address }
    }
}

/// A Redis of the test's own, on a unix socket.
pub struct Redis {
    _running: Running,
    /// The socket.
    pub socket: PathBuf,
}

impl Redis {
    /// Starts it; PHP-FPM of the same world knows where it is.
    pub fn start(world: &World) -> Redis {
        let socket = redis_socket(world);
        let mut command = Command::new(program(&["redis-server"]));
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(&socket);
        command.arg("--dir").arg(world.path(""));
        let running = Running::start("redis-server", &mut command);
        wait_until("Redis listens", SOON, || UnixStream::connect(&socket).is_ok());
        Redis { _running: running, socket }
    }
}

fn redis_socket(world: &World) -> PathBuf {
    world.path("redis.sock")
}

/// A Node server from tests/neighbours that prints where it listens.
pub struct Node {
    running: Running,
    /// Its port; 0 for a unix socket.
    pub port: u16,
}

impl Node {
    /// Starts `script` with `arguments`.
    pub fn serve(world: &World, script: &str, arguments: &[&str]) -> Node {
        let mut running = Running::start(script, node(world, script).args(arguments));
        let line = running.wait_line("listening", |line| line.starts_with("{\"listening\""));
        let value: Value = serde_json::from_str(&line).unwrap();
        let port = value["listening"].as_u64().map_or(0, |port| u16::try_from(port).unwrap());
        Node { running, port }
    }

    /// Ends it as a crash would.
    pub fn kill(&self) {
        self.running.signal(Signal::KILL);
    }

    /// `http://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Runs a Node client to its end and gives the JSON that it prints last.
pub fn run_node(world: &World, script: &str, arguments: &[&str]) -> Value {
    let end = finish_within(script, node(world, script).args(arguments), Duration::from_secs(90));
    assert_eq!(end.code, 0, "{script} {arguments:?} failed:\n{}", end.said());
    last_json(&end.stdout)
}

/// A Node client that says when it is ready and then waits for something that the test does.
pub struct Waiting(Running);

impl Waiting {
    /// Starts it and waits until it is ready; also gives what it said then.
    pub fn start(world: &World, script: &str, arguments: &[&str]) -> (Waiting, Value) {
        let mut running = Running::start(script, node(world, script).args(arguments));
        let line = running.wait_line("being ready", |line| line.starts_with("{\"ready\":true"));
        (Waiting(running), serde_json::from_str(&line).unwrap())
    }

    /// Waits for its end and gives the JSON that it prints last.
    pub fn result(self) -> Value {
        self.result_within(Duration::from_secs(60))
    }

    /// The same for one that has much to do.
    pub fn result_within(mut self, limit: Duration) -> Value {
        let status = self.0.wait_exit(limit);
        assert!(status.success(), "{}", self.0.said());
        let mut lines = Vec::new();
        wait_until("the client's last words", SOON, || {
            lines = self.0.stdout();
            lines.iter().filter(|line| line.starts_with('{')).count() > 1
        });
        last_json(&lines.join("\n"))
    }
}

fn last_json(text: &str) -> Value {
    let line = text.lines().rfind(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no JSON in {text:?}"));
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
}

fn node(world: &World, script: &str) -> Command {
    let folder = neighbours();
    let modules = folder.parent().unwrap().join("node_modules");
    assert!(modules.is_dir(), "{} is missing; `tests/run` installs it", modules.display());
    let mut command = Command::new(program(&["node", "nodejs"]));
    // Every client verifies certificates against the test's authority, and finds the test's names here.
    command
        .arg("--require")
        .arg(folder.join("resolve.js"))
        .arg(folder.join(script))
        .env("NODE_EXTRA_CA_CERTS", world.ca())
        .env_remove("NODE_OPTIONS")
        .current_dir(folder);
    command
}

/// The first of `names` that is installed.
pub fn program(names: &[&str]) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/usr/local/sbin"]);
    let mut all = folders.flat_map(|folder| names.iter().map(move |name| Path::new(folder).join(name)));
    all.find(|path| path.is_file()).unwrap_or_else(|| panic!("{names:?} is not installed; `tests/run` installs it"))
}
