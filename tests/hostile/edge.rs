//! The binary under attack, and raw connections to it.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine::is_root_for;

pub const DEADLINE: Duration = Duration::from_secs(20);

/// `doorward run` in a folder of its own. Killed when dropped; then nothing in it may have panicked.
pub struct Edge {
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub folder: tempfile::TempDir,
    pub process: Child,
    lines: mpsc::Receiver<String>,
    /// Gives the lines that speak of a panic.
    log: Option<JoinHandle<Vec<String>>>,
}

impl Edge {
    /// With one site `a.test` in front of `back_end`; `extra` goes in front of the site.
    pub fn start(back_end: SocketAddr, extra: &str) -> Edge {
        Edge::start_with(back_end, "", extra)
    }

    /// The same with further keys of `[server]`.
    pub fn start_with(back_end: SocketAddr, server: &str, extra: &str) -> Edge {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        std::fs::create_dir(&root).expect("a root");
        std::fs::write(root.join("a.txt"), "text\n").expect("a file");
        let text = format!(
            "[server]\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\nworkers = 1\nshutdown_grace = \"5s\"\n{server}\n\
             [limits]\nmax_body = \"1MiB\"\n{extra}\n\
             [site.a]\nhosts = [\"a.test\"]\nhttp = \"serve\"\ntls = \"self-signed\"\nupstream = \"http://{back_end}\"\n\
             [site.a.websocket]\nto = \"http://{back_end}\"\npreset = \"none\"\npaths = [\"/no-socket\", \"/socket/*\"]\n\
             [[site.a.route]]\npath = \"/files/*\"\nstrip_prefix = \"/files\"\nroot = \"{root}\"\n\
             [[site.a.redirect]]\nfrom = \"/moved/*\"\nto = \"/new/{{rest}}\"\n",
            root = root.display(),
        );
        let file = folder.path().join("proxy.toml");
        std::fs::write(&file, text).expect("the configuration");
        let mut process = Command::new(env!("CARGO_BIN_EXE_doorward"))
            .args(["run", "-c"])
            .arg(&file)
            .env("RUNTIME_DIRECTORY", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = process.stderr.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        let log = std::thread::spawn(move || {
            let mut panics = Vec::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // In the words of src/run/logs.rs, or in Rust's own before those are in force.
                if line.contains("a fault in doorward itself") || line.contains("panicked") {
                    panics.push(line.clone());
                }
                let _ = sender.send(line);
            }
            panics
        });
        let unset = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut edge = Edge { http: unset, https: unset, folder, process, lines, log: Some(log) };
        edge.http = edge.port("listening on http 127.0.0.1:");
        edge.https = edge.port("listening on https 127.0.0.1:");
        edge.wait_for("ready");
        edge
    }

    fn port(&self, what: &str) -> SocketAddr {
        let line = self.wait_for(what);
        let digits: String =
            line.split(what).nth(1).unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
        SocketAddr::from(([127, 0, 0, 1], digits.parse().expect("a port")))
    }

    /// The next line of the log that has `what` in it.
    pub fn wait_for(&self, what: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let line = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("the log never said {what:?}"));
            if line.contains(what) {
                return line;
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("the process is there");
    }

    pub fn connect(&self) -> TcpStream {
        connect(self.http)
    }

    /// How many descriptors the process has open. Only root may look: for others it has none.
    #[track_caller]
    pub fn descriptors(&self) -> usize {
        if !is_root_for("the edge's descriptors are not counted") {
            return 0;
        }
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("its descriptors").count()
    }

    /// Its memory that no file stands behind, in KiB (proc_pid_status(5)).
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// What it has used of the processor, in steps of 10 ms (proc_pid_stat(5)).
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).expect("its figures");
        let fields = stat.rsplit(") ").next().expect("fields").split(' ').skip(11).take(2);
        Duration::from_millis(fields.map(|ticks| ticks.parse::<u64>().expect("a number") * 10).sum())
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let panics = self.log.take().map(|log| log.join().unwrap_or_default()).unwrap_or_default();
        // A test that fails already has said more.
        if !std::thread::panicking() {
            assert!(panics.is_empty(), "{panics:?}");
        }
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the edge listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

/// Sends all of `bytes`, or as much as the edge takes before it closes.
pub fn send(stream: &mut impl Write, bytes: &[u8]) {
    if let Err(error) = stream.write_all(bytes) {
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    }
}

/// Everything up to the end of the stream; it must come within the deadline.
pub fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 16384];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return bytes,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
            Err(error) => panic!("after {:?}: {error}", String::from_utf8_lossy(&bytes)),
        }
    }
}

/// Waits until `done`, up to the deadline.
pub fn eventually(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
