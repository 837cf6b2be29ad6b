//! PHP-FPM behind all proxies, as a process that nobody is charged for.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Requests at one time, and FastCGI connections that are kept where any are.
pub const CLIENTS: usize = 8;

/// A worker for each connection that any proxy keeps, and for each request beside them.
const WORKERS: usize = 6 * CLIENTS;

/// Says its length: a proxy that does not know it would have to send chunks.
const SCRIPT: &str = "<?php header('Content-Type: text/plain'); header('Content-Length: 2'); echo 'ok';";

/// It ends when this is dropped.
pub struct Fpm(Child);

/// Where it listens.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join("fpm.sock")
}

/// Where the script is.
pub fn root(folder: &Path) -> PathBuf {
    folder.join("app")
}

pub fn write_script(folder: &Path) {
    std::fs::create_dir(root(folder)).unwrap();
    std::fs::write(root(folder).join("index.php"), SCRIPT).unwrap();
}

pub fn start(folder: &Path) -> Fpm {
    let account = |flag: &str| {
        let name = Command::new("id").arg(flag).output().unwrap().stdout;
        String::from_utf8(name).unwrap().trim().to_owned()
    };
    let (socket, configuration, log) = (socket(folder), folder.join("fpm.conf"), folder.join("load/fpm.log"));
    let text = format!(
        "[global]\nerror_log = {}\ndaemonize = no\n[www]\nuser = {}\ngroup = {}\nlisten = {}\n\
         pm = static\npm.max_children = {WORKERS}\npm.max_requests = 0\n",
        log.display(),
        account("-un"),
        account("-gn"),
        socket.display()
    );
    std::fs::write(&configuration, text).unwrap();
    let mut command = Command::new("setpriv");
    // -R: it would otherwise refuse to run as root. It stays on the core of the load, as all that this process starts.
    command.args(["--pdeathsig", "TERM", "php-fpm8.2", "-F", "-R", "-y"]).arg(&configuration);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut fpm = Fpm(child.unwrap_or_else(|error| panic!("{command:?}: {error}")));
    let deadline = Instant::now() + Duration::from_secs(20);
    while UnixStream::connect(&socket).is_err() {
        let log = || std::fs::read_to_string(&log).unwrap_or_default();
        assert!(fpm.0.try_wait().unwrap().is_none(), "PHP-FPM has ended: {}", log());
        assert!(Instant::now() < deadline, "PHP-FPM does not listen: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
    fpm
}

impl Drop for Fpm {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}
