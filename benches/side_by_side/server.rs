//! The proxies as processes: how they are started, pinned and looked at.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::configuration::{self, Ports};
use crate::fpm;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Doorward,
    Nginx,
    Haproxy,
    Caddy,
}

impl Kind {
    /// In the order of the columns. Caddy is there where it is installed.
    pub fn all() -> Vec<Kind> {
        let has_caddy =
            Command::new("caddy").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
        let mut all = vec![Kind::Doorward, Kind::Nginx, Kind::Haproxy];
        all.extend(has_caddy.then_some(Kind::Caddy));
        all
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Doorward => "Doorward",
            Kind::Nginx => "nginx",
            Kind::Haproxy => "HAProxy",
            Kind::Caddy => "Caddy",
        }
    }
}

/// What all proxies share.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub folder: &'a Path,
    pub kinds: &'a [Kind],
    pub back_end: SocketAddr,
    /// The core of the proxies.
    pub core: usize,
    /// Whether each request is written to an access log.
    pub logs: bool,
    /// Sites and routes besides those that are always there: see [`crate::growth`].
    pub sites: usize,
    pub routes: usize,
    /// What the site `mark.test` answers where there are more sites.
    pub revision: usize,
}

/// A proxy. It ends when this is dropped.
pub struct Server {
    pub kind: Kind,
    pub ports: Ports,
    /// Where the certificate of its authority is.
    pub folder: std::path::PathBuf,
    child: Child,
}

/// CPU time of a process: to the nanosecond but without threads that have ended, and in ticks with them.
#[derive(Clone, Copy)]
pub struct Spent {
    threads: Duration,
    ticks: Duration,
}

impl Spent {
    pub fn since(self, before: Spent) -> Duration {
        let (threads, ticks) = (self.threads.saturating_sub(before.threads), self.ticks.saturating_sub(before.ticks));
        // More than rounding: a thread has ended meanwhile.
        if ticks > threads + Duration::from_millis(20) { ticks } else { threads }
    }
}

impl Server {
    pub fn start(kind: Kind, place: &Place) -> Server {
        let ports = free_ports();
        let folder = place.folder.to_owned();
        let arguments = configuration::write(kind, place, ports);
        let log = folder.join(format!("{kind:?}.log"));
        // Ended from outside, the bench leaves no proxy behind.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "taskset", "-c"])
            .arg(place.core.to_string())
            .args(arguments)
            .current_dir(&folder);
        // Caddy's: one thread that runs Go, and nothing in the home directory.
        command
            .env("GOMAXPROCS", "1")
            .env("HOME", &folder)
            .env("XDG_CONFIG_HOME", &folder)
            .env("XDG_DATA_HOME", &folder);
        command.env("RUNTIME_DIRECTORY", &folder).env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut server = Server { kind, ports, folder, child };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(ports.http).is_err() || TcpStream::connect(ports.https).is_err() {
            let log = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(server.child.try_wait().unwrap().is_none(), "{kind:?} ended: {}", log());
            assert!(Instant::now() < deadline, "{kind:?} does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Writes a new configuration, and asks to put it in force.
    pub fn reload(&mut self, place: &Place) {
        configuration::write(self.kind, place, self.ports);
        let signal = match self.kind {
            Kind::Doorward | Kind::Nginx => Signal::HUP,
            Kind::Haproxy => Signal::USR2,
            Kind::Caddy => return load(self.ports.admin, std::fs::read(place.folder.join("Caddyfile")).unwrap()),
        };
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// CPU time until now in hundredths of a second, with that of children that have ended.
    pub fn spent_with_ended(&self) -> Duration {
        let of = |id: u32| ticks(id, if id == self.child.id() { 11..15 } else { 11..13 });
        self.processes().into_iter().map(of).sum()
    }

    /// The process and its children.
    fn processes(&self) -> Vec<u32> {
        let own = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
        children.split_whitespace().map(|id| id.parse().unwrap()).chain([own]).collect()
    }

    /// CPU time of all processes until now.
    pub fn spent(&self) -> Spent {
        let processes = self.processes();
        Spent {
            threads: processes.iter().map(|id| of_threads(*id)).sum(),
            ticks: processes.iter().map(|id| ticks(*id, 11..13)).sum(),
        }
    }

    /// User memory of all processes, in bytes: their share of the pages that they have mapped (proc_pid_smaps(5)).
    pub fn memory(&self) -> u64 {
        let of = |id: &u32| {
            let path = format!("/proc/{id}/smaps_rollup");
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
        };
        self.processes().iter().map(of).sum()
    }
}

/// Caddy takes a file over HTTP. It answers only when the file is in force: nobody waits for it here.
fn load(admin: SocketAddr, file: Vec<u8>) {
    let head = format!(
        "POST /load HTTP/1.1\r\nHost: {admin}\r\nContent-Type: text/caddyfile\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        file.len()
    );
    let mut stream = TcpStream::connect(admin).unwrap();
    std::thread::spawn(move || {
        stream.write_all(&[head.into_bytes(), file].concat()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}

fn of_threads(id: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten();
    let spent = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}

/// Fields of proc_pid_stat(5), counted from the one behind the name: utime and stime, then those of children that have
/// ended and been waited for.
fn ticks(id: u32, fields: std::ops::Range<usize>) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    // The name, in brackets, may have spaces.
    let all: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = all[fields].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    // Linux tells programs hundredths of a second, whatever it counts in itself.
    Duration::from_millis(ticks * 10)
}

impl Drop for Server {
    fn drop(&mut self) {
        // At the first one Doorward lets requests finish.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Three that differ: HAProxy would share one between two of its listeners without a word.
fn free_ports() -> Ports {
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [http, https, admin] = held.each_ref().map(|listener| listener.local_addr().unwrap());
    Ports { http, https, admin }
}

/// Pins this process, and what it starts, to one core, and says which other one the proxies get.
pub fn pin() -> usize {
    let allowed = sched_getaffinity(None).unwrap();
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let (proxy, load) = (cores.next().unwrap(), cores.next().expect("two cores are needed"));
    let mut set = CpuSet::new();
    set.set(load);
    sched_setaffinity(None, &set).unwrap();
    proxy
}

/// The certificate, for all, and the files that are served.
pub fn write_files(folder: &Path, sites: usize) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let names = ["a.test", "php.test", "kept.test", "127.0.0.1"].map(str::to_owned);
    let leaf = rcgen::CertificateParams::new(names.to_vec()).unwrap().signed_by(&key, &authority).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("ca.pem", &authority.pem());
    write("cert.pem", &leaf.pem());
    write("key.pem", &key.serialize_pem());
    write("both.pem", &(leaf.pem() + &key.serialize_pem()));
    for folders in ["sites", "pairs"] {
        std::fs::create_dir(folder.join(folders)).unwrap();
    }
    for site in 0..sites {
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec![format!("s{site}.test")]).unwrap();
        let leaf = leaf.signed_by(&key, &authority).unwrap();
        write(&format!("sites/{site}.pem"), &leaf.pem());
        write(&format!("sites/{site}.key"), &key.serialize_pem());
        write(&format!("pairs/{site}.pem"), &(leaf.pem() + &key.serialize_pem()));
    }
    // For programs with OpenSSL that have no options for it.
    write("openssl.cnf", configuration::OPENSSL);
    std::fs::create_dir(crate::files(folder)).unwrap();
    std::fs::create_dir(folder.join("load")).unwrap();
    fpm::write_script(folder);
    std::fs::write(crate::files(folder).join("small.bin"), vec![b'x'; crate::SMALL]).unwrap();
    std::fs::write(crate::files(folder).join("large.bin"), vec![b'x'; crate::LARGE]).unwrap();
}

pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
