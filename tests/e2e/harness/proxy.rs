//! The proxy under test: the real binary with a file of the test's own.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::curl::Curl;
use super::process::{Finished, Running, finish};
use super::raw::Raw;
use super::wait::{SOON, wait_until};
use super::world::World;

/// `doorward run`
pub struct Proxy {
    /// Those that took over, oldest first. Before `running`: they end first.
    successors: Successors,
    /// The first process, for signals and its words; what took over from it speaks through the same pipes.
    pub running: Running,
    config: PathBuf,
    ca: PathBuf,
    scratch: PathBuf,
    https: Vec<u16>,
    http: Vec<u16>,
}

impl Proxy {
    /// Starts it with `toml` and waits until it is ready.
    pub fn start(world: &World, toml: &str) -> Proxy {
        Proxy::start_with(world, toml, |_| ())
    }

    /// The same, with a say in how it is started.
    pub fn start_with(world: &World, toml: &str, prepare: impl FnOnce(&mut Command)) -> Proxy {
        let mut command = doorward();
        prepare(&mut command);
        Proxy::start_command(world, toml, command)
    }

    /// The same by a command of the caller's, to which `run -c FILE` is added.
    pub fn start_command(world: &World, toml: &str, mut command: Command) -> Proxy {
        let config = world.write("proxy.toml", toml);
        command.args(["run", "-c"]).arg(&config).current_dir(world.path(""));
        Proxy::watch(world, Running::start("doorward", &mut command))
    }

    /// Takes over a process that runs the proxy on `proxy.toml` of `world`.
    pub fn watch(world: &World, mut running: Running) -> Proxy {
        running.wait_line("ready", |line| line.trim_end().ends_with("ready"));
        let said = [running.stdout(), running.stderr()].concat();
        Proxy {
            https: ports(&said, "listening on https "),
            http: ports(&said, "listening on http "),
            config: world.path("proxy.toml"),
            ca: world.ca(),
            scratch: world.path(""),
            successors: Successors(Vec::new()),
            running,
        }
    }

    /// The port of the first TLS listener.
    pub fn https(&self) -> u16 {
        *self.https.first().unwrap_or_else(|| panic!("no TLS listener was named\n{}", self.running.said()))
    }

    /// The port of the first plain listener.
    pub fn http(&self) -> u16 {
        *self.http.first().unwrap_or_else(|| panic!("no plain listener was named\n{}", self.running.said()))
    }

    /// `https://host:port`
    pub fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.https())
    }

    /// curl over TLS, verifying against the test's authority.
    pub fn curl(&self, host: &str) -> Curl {
        Curl::new(self.url(host), &self.ca, &self.scratch)
    }

    /// curl without TLS.
    pub fn plain(&self, host: &str) -> Curl {
        Curl::new(format!("http://{host}:{}", self.http()), &self.ca, &self.scratch)
    }

    /// A TLS connection for bytes that no decent client would send.
    pub fn raw(&self, world: &World, host: &str) -> Raw {
        Raw::tls(world, self.https(), host)
    }

    /// Replaces the configuration file, without telling the proxy.
    pub fn rewrite(&self, toml: &str) {
        std::fs::write(&self.config, toml).unwrap();
    }

    /// `doorward reload -c FILE`
    pub fn reload(&self) -> Finished {
        finish("doorward reload", doorward().args(["reload", "-c"]).arg(&self.config).current_dir(&self.scratch))
    }

    /// The process in charge.
    pub fn pid(&self) -> Pid {
        self.successors.0.last().copied().unwrap_or_else(|| self.running.pid())
    }

    /// Sends a signal to the process in charge.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// USR2; ready when a new process is in charge. Gives its id.
    pub fn upgrade(&mut self) -> Pid {
        let before = self.successors.0.len();
        let running = &self.running;
        let said = |end: &str| running.stderr().into_iter().filter(|line| line.contains(end)).collect::<Vec<_>>();
        let failures = said("no upgrade").len();
        self.signal(Signal::USR2);
        let taken = || said("has taken over").len() > before;
        wait_until("the new process has taken over", 3 * SOON, || taken() || said("no upgrade").len() > failures);
        assert!(taken(), "{}", running.said());
        let line = said("has taken over").pop().unwrap();
        let word = line.split("process ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        let pid = Pid::from_raw(word.parse().unwrap()).unwrap();
        self.successors.0.push(pid);
        wait_until("the new process is ready", SOON, || {
            running.stderr().iter().filter(|line| line.trim_end().ends_with("ready")).count() == before + 2
        });
        pid
    }

    /// A number of `/proc/PID/status`, in bytes.
    pub fn memory(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.running.pid().as_raw_nonzero());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Starts the peak of resident memory (`VmHWM`) anew. The process may not be looked into: where this is not root, the
    /// peak remains that since the start, which is no less.
    pub fn reset_peak(&self) {
        let path = format!("/proc/{}/clear_refs", self.running.pid().as_raw_nonzero());
        let reset = std::fs::write(&path, "5");
        assert!(reset.is_ok() || !rustix::process::geteuid().is_root(), "{path}: {reset:?}");
    }
}

/// Whether a process runs that may be nobody's child here.
pub fn is_running(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // One that nobody has waited for is over.
    test_kill_process(pid).is_ok() && !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

/// Processes that are ended with the test.
struct Successors(Vec<Pid>);

impl Drop for Successors {
    fn drop(&mut self) {
        for signal in [Signal::TERM, Signal::KILL] {
            let running: Vec<Pid> = self.0.iter().copied().filter(|pid| is_running(*pid)).collect();
            for pid in &running {
                // It may have ended just now.
                let _ = kill_process(*pid, signal);
            }
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            while running.iter().any(|pid| is_running(*pid)) && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// The binary under test: cargo's, or the one that `DOORWARD_BIN` names, such as a release build for figures.
pub fn binary() -> OsString {
    std::env::var_os("DOORWARD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_doorward").into())
}

/// A command of the binary under test.
pub fn doorward() -> Command {
    without_systemd(Command::new(binary()))
}

/// The same, bound by the modes of files as any service is that does not run as root: root's power to read everything
/// is taken away first, where the tests have it.
pub fn doorward_bound_by_modes() -> Command {
    if !rustix::process::geteuid().is_root() {
        return doorward();
    }
    let mut command = Command::new("setpriv");
    let powers = "-dac_override,-dac_read_search";
    command.args(["--bounding-set", powers, "--inh-caps", powers]).arg(binary());
    without_systemd(command)
}

fn without_systemd(mut command: Command) -> Command {
    command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
    command
}

fn ports(lines: &[String], before: &str) -> Vec<u16> {
    let mut ports = Vec::new();
    for line in lines {
        let Some((_, address)) = line.split_once(before) else { continue };
        let word = address.split_whitespace().next().unwrap_or("");
        let port = word.rsplit(':').next().and_then(|port| port.parse().ok());
        ports.push(port.unwrap_or_else(|| panic!("no port in {line:?}")));
    }
    ports.dedup();
    ports
}
