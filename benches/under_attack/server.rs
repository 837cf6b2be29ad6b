//! The two servers, and what they use.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A server that is attacked. It ends when this is dropped.
pub struct Server {
    pub http: SocketAddr,
    pub https: SocketAddr,
    child: Child,
}

pub fn write_certificate(folder: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["a.test".to_owned(), "127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

impl Server {
    pub fn start(name: &str, folder: &Path, back_end: SocketAddr) -> Server {
        let (http, https) = (free_port(), free_port());
        let mut command = match name {
            "nginx" => nginx(folder, http, https, back_end),
            _ => doorward(folder, http, https, back_end),
        };
        command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(folder.join(format!("{name}.log"))).unwrap());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let server = Server { http, https, child };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(https).is_err() {
            let log = || std::fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
            assert!(Instant::now() < deadline, "{name} does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// The process and its children.
    pub fn processes(&self) -> Vec<Pid> {
        let own = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let ids = children.split_whitespace().filter_map(|id| id.parse().ok());
        ids.chain([own.cast_signed()]).filter_map(Pid::from_raw).collect()
    }

    /// User and system time of all of them.
    pub fn processor_time(&self) -> Duration {
        self.processes().iter().map(|pid| nanoseconds(pid.as_raw_nonzero().get())).sum()
    }

    /// Memory that no file stands behind, of all of them.
    fn memory(pids: &[Pid]) -> u64 {
        let own = |pid: &Pid| {
            let text = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        pids.iter().filter_map(own).sum::<u64>() * 1024
    }

    /// Looks at the memory again and again.
    pub fn watch_memory(&self) -> Watch {
        let (stop, pids) = (Arc::new(AtomicBool::new(false)), self.processes());
        let stopped = stop.clone();
        let watching = std::thread::spawn(move || {
            let mut peak = 0;
            while !stopped.load(Relaxed) {
                peak = peak.max(Server::memory(&pids));
                std::thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        Watch { stop, watching }
    }
}

/// Of all threads; schedstat counts in nanoseconds where stat does in ticks.
fn nanoseconds(pid: i32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let spent = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx ends its workers itself.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// A watch over memory.
pub struct Watch {
    stop: Arc<AtomicBool>,
    watching: JoinHandle<u64>,
}

impl Watch {
    /// The most that it saw, in bytes.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.watching.join().unwrap()
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn doorward(folder: &Path, http: SocketAddr, https: SocketAddr, back_end: SocketAddr) -> Command {
    let text = format!(
        "[server]\nhttp = [\"{http}\"]\nhttps = [\"{https}\"]\nworkers = 1\nshutdown_grace = \"1s\"\n\
         [log]\naccess = \"off\"\n\
         [site.a]\nhosts = [\"a.test\", \"127.0.0.1\"]\ndefault = true\nhttp = \"serve\"\n\
         tls = {{ cert = \"cert.pem\", key = \"key.pem\" }}\nupstream = \"http://{back_end}\"\n"
    );
    std::fs::write(folder.join("proxy.toml"), text).unwrap();
    let binary = std::env::var_os("DOORWARD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_doorward").into());
    let mut command = Command::new(binary);
    command
        .args(["run", "-c"])
        .arg(folder.join("proxy.toml"))
        .env("RUNTIME_DIRECTORY", folder)
        .env_remove("NOTIFY_SOCKET");
    command
}

/// As Debian has it, but for what has to be the same: one worker, more connections than its 768, no access log.
fn nginx(folder: &Path, http: SocketAddr, https: SocketAddr, back_end: SocketAddr) -> Command {
    let user = if rustix::process::getuid().is_root() { "user root;\n" } else { "" };
    let place = folder.display();
    let text = format!(
        "{user}worker_processes 1;\ndaemon off;\npid {place}/nginx.pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n access_log off;\n client_body_temp_path {place}/body;\n proxy_temp_path {place}/proxy;\n \
         fastcgi_temp_path {place}/fastcgi;\n uwsgi_temp_path {place}/uwsgi;\n scgi_temp_path {place}/scgi;\n \
         upstream back {{ server {back_end}; keepalive 32; }}\n \
         server {{\n  listen {http};\n  listen {https} ssl http2;\n  server_name a.test 127.0.0.1;\n  \
         ssl_certificate cert.pem;\n  ssl_certificate_key key.pem;\n  ssl_protocols TLSv1.2 TLSv1.3;\n  \
         ssl_session_cache shared:s:1m;\n  \
         location / {{ proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}\n }}\n}}\n"
    );
    std::fs::write(folder.join("nginx.conf"), text).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
    command
}
