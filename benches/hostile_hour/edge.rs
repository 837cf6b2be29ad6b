//! The server: its binary, its configuration, its certificates, and PHP-FPM beside it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use rustls::RootCertStore;

use crate::back_end::digest;

const PATIENCE: Duration = Duration::from_secs(60);

/// The file that honest clients download.
pub const BIG: usize = 1 << 20;

/// Which certificate is the right one.
#[derive(Clone, Default)]
pub struct Served {
    pub now: Vec<u8>,
    pub before: Vec<u8>,
    pub since: Option<Instant>,
}

pub type Said = Arc<Mutex<BTreeMap<String, u64>>>;

pub struct Edge {
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub served: Arc<Mutex<Served>>,
    pub roots: Arc<RootCertStore>,
    pub big_digest: String,
    pub php: bool,
    /// Lines of the log that speak of a panic.
    pub panics: Arc<AtomicU64>,
    /// How often the log said what, without its numbers.
    pub said: Said,
    authority: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
    process: Child,
    fpm: Option<Child>,
    configuration: String,
    turn: u32,
}

impl Edge {
    pub fn start(back_end: SocketAddr) -> Edge {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let big: Vec<u8> = (0..BIG as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(root.join("big.bin"), &big).unwrap();
        let page =
            "<?php echo 'php ', $_GET['id'] ?? '', ' ', hash('sha256', file_get_contents('php://input')), \"\\n\";";
        std::fs::write(root.join("index.php"), page).unwrap();
        let fpm = fpm(folder.path());

        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();

        let configuration = configuration(folder.path(), back_end, fpm.is_some());
        let unset = SocketAddr::from(([127, 0, 0, 1], 0));
        let served = Arc::<Mutex<Served>>::default();
        renew(&authority, folder.path(), &served);
        let file = folder.path().join("proxy.toml");
        std::fs::write(&file, &configuration).unwrap();
        let binary = std::env::var_os("DOORWARD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_doorward").into());
        let mut command = Command::new(binary);
        command.args(["run", "-c"]).arg(&file).env("RUNTIME_DIRECTORY", folder.path()).env_remove("NOTIFY_SOCKET");
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let panics = Arc::<AtomicU64>::default();
        let said = Said::default();
        let lines = follow(process.stderr.take().unwrap(), panics.clone(), said.clone());
        let mut edge = Edge {
            http: unset,
            https: unset,
            served,
            roots: Arc::new(roots),
            big_digest: digest(&big),
            php: fpm.is_some(),
            panics,
            said,
            authority,
            folder,
            process,
            fpm,
            configuration,
            turn: 0,
        };
        let port = |what: &str| {
            let line = wait_for(&lines, what);
            let digits: String = line.split(what).nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect();
            SocketAddr::from(([127, 0, 0, 1], digits.parse().unwrap()))
        };
        edge.http = port("listening on http 127.0.0.1:");
        edge.https = port("listening on https 127.0.0.1:");
        wait_for(&lines, "ready");
        edge
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// HUP, after a change to the file that matters to every site.
    pub fn reload(&mut self) {
        self.turn += 1;
        let turn = format!("response_headers = {{ set = {{ X-Turn = \"{}\" }} }}", self.turn);
        let text = self.configuration.replace("# turn", &turn);
        std::fs::write(self.folder.path().join("proxy.toml"), text).unwrap();
        self.signal(Signal::HUP);
    }

    /// A new pair in the place of the old one. The server has to see that by itself.
    pub fn renew(&self) {
        renew(&self.authority, self.folder.path(), &self.served);
    }

    /// As logrotate does it.
    pub fn rotate(&self) {
        let log = self.folder.path().join("access.log");
        let _ = std::fs::rename(&log, self.folder.path().join("access.log.1"));
        self.signal(Signal::USR1);
    }

    /// The log that was asked for is there.
    pub fn has_log(&self) -> bool {
        self.folder.path().join("access.log").exists()
    }

    /// Open sockets, as the server counts them.
    pub fn tunnels(&self) -> u64 {
        let binary = std::env::var_os("DOORWARD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_doorward").into());
        let mut command = Command::new(binary);
        command.args(["sockets", "--json", "-c"]).arg(self.folder.path().join("proxy.toml"));
        let output = command.env("RUNTIME_DIRECTORY", self.folder.path()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().count() as u64
    }

    pub fn runs(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// TERM; true where it ends in order within its grace.
    pub fn stop(&mut self) -> bool {
        self.signal(Signal::TERM);
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_raw(self.process.id().cast_signed()).unwrap(), signal);
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(fpm) = &mut self.fpm {
            // Its master ends its workers when it is asked to.
            let _ = kill_process(Pid::from_raw(fpm.id().cast_signed()).unwrap(), Signal::TERM);
            let _ = fpm.wait();
        }
    }
}

/// Short waits, so that what an attacker leaves behind is gone soon, and limits that attacks run into.
fn configuration(folder: &Path, back_end: SocketAddr, php: bool) -> String {
    let root = folder.join("root");
    let (root, folder) = (root.display(), folder.display());
    let php = if php {
        format!("[site.php]\nhosts = [\"php.test\"]\nroot = \"{root}\"\nphp = \"unix:{folder}/fpm.sock\"\n")
    } else {
        String::new()
    };
    format!(
        "[server]\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\nworkers = 2\nshutdown_grace = \"5s\"\n\
         max_connections_per_ip = 400\n\
         [timeouts]\nheader = \"8s\"\nbody = \"8s\"\nkeepalive = \"6s\"\nwrite = \"8s\"\n\
         [limits]\nmax_body = \"2MiB\"\n\
         [log]\naccess = \"{folder}/access.log\"\n\
         [tls]\ncert = \"{folder}/site.pem\"\nkey = \"{folder}/site.key\"\n\
         {php}\
         [site.a]\nhosts = [\"a.test\"]\nhttp = \"serve\"\nupstream = \"http://{back_end}\"\n# turn\n\
         [site.a.websocket]\nto = \"http://{back_end}\"\npaths = [\"/socket/*\"]\nping_interval = \"8s\"\n\
         max_message = \"64KiB\"\n\
         [[site.a.route]]\npath = \"/files/*\"\nstrip_prefix = \"/files\"\nroot = \"{root}\"\n"
    )
}

fn renew(authority: &CertifiedIssuer<'static, KeyPair>, folder: &Path, served: &Mutex<Served>) {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["a.test".to_owned(), "php.test".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, authority).unwrap();
    {
        let mut served = served.lock().unwrap();
        served.before = std::mem::replace(&mut served.now, leaf.der().to_vec());
        served.since = Some(Instant::now());
    }
    for (name, text) in [("site.key", key.serialize_pem()), ("site.pem", leaf.pem())] {
        let draft = folder.join(format!("{name}.new"));
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, folder.join(name)).unwrap();
    }
}

/// Reads the log for as long as the process lives, passes on its first lines and shows what must not be in it.
fn follow(log: impl std::io::Read + Send + 'static, panics: Arc<AtomicU64>, said: Said) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let mut errors = 0;
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            // In the words of src/run/logs.rs, or in Rust's own before those are in force.
            if line.contains("a fault in doorward itself") || line.contains("panicked") {
                panics.fetch_add(1, Ordering::Relaxed);
                eprintln!("{line}");
            }
            if line.contains(" ERROR ") && errors < 20 {
                errors += 1;
                eprintln!("{line}");
            }
            // Without the time in front, and alike for all addresses, counts and ports.
            let shape: String =
                line.chars().skip(21).take(70).map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
            let mut all = said.lock().unwrap();
            if all.len() < 1000 || all.contains_key(&shape) {
                *all.entry(shape).or_default() += 1;
            }
            drop(all);
            let _ = sender.send(line);
        }
    });
    lines
}

fn wait_for(lines: &mpsc::Receiver<String>, what: &str) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let line = lines.recv_timeout(end.saturating_duration_since(Instant::now()));
        let line = line.unwrap_or_else(|_| panic!("the log never said {what:?}"));
        if line.contains(what) {
            return line;
        }
    }
}

/// PHP-FPM with a pool of its own, where it is installed.
fn fpm(folder: &Path) -> Option<Child> {
    let places = ["/usr/sbin/php-fpm8.4", "/usr/sbin/php-fpm8.3", "/usr/sbin/php-fpm8.2", "/usr/sbin/php-fpm"];
    let program = places.iter().map(PathBuf::from).find(|place| place.exists())?;
    let account = |flag: &str| {
        let text = Command::new("id").arg(flag).output().unwrap().stdout;
        String::from_utf8(text).unwrap().trim().to_owned()
    };
    let text = format!(
        "[global]\nerror_log = {folder}/fpm.log\ndaemonize = no\n[www]\nuser = {user}\ngroup = {group}\n\
         listen = {folder}/fpm.sock\nlisten.mode = 0600\npm = static\npm.max_children = 2\n",
        folder = folder.display(),
        user = account("-un"),
        group = account("-gn"),
    );
    let file = folder.join("fpm.conf");
    std::fs::write(&file, text).unwrap();
    // -R: who measures in a container is often root, and the pool serves nobody else.
    let mut command = Command::new(program);
    let child = command.args(["-F", "-R", "-y"]).arg(file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(folder.join("fpm.sock")).is_err() {
        assert!(Instant::now() < end, "PHP-FPM does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(child)
}
