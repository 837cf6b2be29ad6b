//! What an idle tunnel costs: user memory of the one process, for each tunnel, while thousands of them are silent, and
//! what is left of it when they have gone.
//!
//! ```sh
//! cargo bench --bench idle_sockets                # 4,000 tunnels, then 9,000; wss, then plain
//! cargo bench --bench idle_sockets -- 2000 wss    # fewer, one of the two
//! ```
//!
//! Clients and the back end are processes of their own, so that every process holds one or two descriptors for each
//! tunnel: the open-file limit has to be twice the number of tunnels and some. All of it stays on this machine.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that meets the unexpected has to fail"
)]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::task::LocalSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const PATIENCE: Duration = Duration::from_secs(120);
/// Handshakes at one time.
const AT_ONCE: usize = 32;
/// Memory has settled when it has not moved by more than this for [`STILL`].
const MOVES: u64 = 128 << 10;
const STILL: Duration = Duration::from_secs(4);

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    raise_open_files();
    match arguments.first().map(String::as_str) {
        Some("back-end") => return back_end(Path::new(&arguments[1])),
        Some("clients") => return clients(&arguments[1..]),
        _ => {}
    }
    // `cargo test --all-targets` runs it too, and does not want to wait.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    arguments.retain(|argument| !argument.starts_with("--"));
    let mut counts: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if counts.is_empty() {
        counts = vec![4000, 9000];
    }
    let wanted = |kind: &str| !arguments.iter().any(|a| a == "wss" || a == "ws") || arguments.iter().any(|a| a == kind);
    println!(
        "| tunnels | | before, MiB | idle, MiB | KiB for each | peak, MiB | 10 s after closing, MiB |\n|---:|---|---:|---:|---:|---:|---:|"
    );
    for count in counts {
        for kind in ["wss", "ws"] {
            if wanted(kind) {
                measure(count, kind == "wss");
            }
        }
    }
}

fn measure(count: usize, tls: bool) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("back-end.sock");
    let mut back_end = Role::start(&[OsString::from("back-end"), socket.clone().into()]);
    back_end.expect("listening");
    let mut proxy = proxy(folder.path(), &socket);
    proxy.expect_end("ready");
    let port = proxy.port(if tls { "listening on https " } else { "listening on http " });
    let open = |count: usize| {
        let (count, port) = (count.to_string(), port.to_string());
        let ca = folder.path().join("ca.pem");
        let mut clients =
            Role::start(&["clients".into(), count.into(), port.into(), if tls { ca.into() } else { OsString::new() }]);
        clients.expect("open");
        clients
    };
    // What the first connection of each worker makes once and keeps is no tunnel's.
    open(64).finish();
    let before = settled(proxy.id());
    let clients = open(count);
    let idle = settled(proxy.id());
    let peak = status(proxy.id(), "VmHWM");
    clients.finish();
    std::thread::sleep(Duration::from_secs(10));
    let left = proportional(proxy.id());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "| {count} | {} | {:.1} | {:.1} | **{:.2}** | {:.1} | {:.1} |",
        if tls { "wss" } else { "ws" },
        mib(before),
        mib(idle),
        idle.saturating_sub(before) as f64 / 1024.0 / count as f64,
        mib(peak),
        mib(left)
    );
}

fn proxy(folder: &Path, socket: &Path) -> Role {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["app.test".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &authority).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("ca.pem", &authority.pem());
    write("site.pem", &leaf.pem());
    write("site.key", &key.serialize_pem());
    let config = format!(
        "[server]\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\n\
         [site.app]\nhosts = [\"app.test\"]\nhttp = \"serve\"\ntls = {{ cert = \"site.pem\", key = \"site.key\" }}\n\
         [site.app.websocket]\npreset = \"any\"\nto = \"unix:{}\"\n",
        socket.display()
    );
    write("proxy.toml", &config);
    let binary = std::env::var_os("DOORWARD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_doorward").into());
    let mut command = Command::new(binary);
    command.args(["run", "-c"]).arg(folder.join("proxy.toml")).env_remove("NOTIFY_SOCKET").current_dir(folder);
    // The program's log is on standard error; the access log on standard output is written and not read.
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let output: Box<dyn Read + Send> = Box::new(child.stderr.take().unwrap());
    Role::new(child, output)
}

/// User memory of a process: its share of the pages that it has mapped (proc_pid_smaps(5)).
fn proportional(id: u32) -> u64 {
    read_kib(&format!("/proc/{id}/smaps_rollup"), "Pss")
}

fn status(id: u32, field: &str) -> u64 {
    read_kib(&format!("/proc/{id}/status"), field)
}

fn read_kib(path: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Waits until the memory of a process does not move any more, and gives it.
fn settled(id: u32) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    let (mut last, mut since) = (proportional(id), Instant::now());
    while since.elapsed() < STILL {
        assert!(Instant::now() < deadline, "the memory does not settle");
        std::thread::sleep(Duration::from_millis(200));
        let now = proportional(id);
        if now.abs_diff(last) > MOVES {
            (last, since) = (now, Instant::now());
        }
    }
    proportional(id)
}

/// A process of this measurement; it ends with its standard input, and is ended with its owner.
struct Role {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<BufReader<Box<dyn Read + Send>>>,
    said: Vec<String>,
}

impl Role {
    fn start(arguments: &[OsString]) -> Role {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output: Box<dyn Read + Send> = Box::new(child.stdout.take().unwrap());
        Role::new(child, output)
    }

    fn new(mut child: Child, output: Box<dyn Read + Send>) -> Role {
        Role { input: child.stdin.take(), child, output: Some(BufReader::new(output)), said: Vec::new() }
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let output = self.output.as_mut().unwrap();
        assert!(output.read_line(&mut line).unwrap() > 0, "it ended: {:?}", self.said);
        self.said.push(line.trim_end().to_owned());
        line.trim_end().to_owned()
    }

    fn expect(&mut self, word: &str) {
        assert_eq!(self.line(), word);
    }

    fn expect_end(&mut self, word: &str) {
        while !self.said.last().is_some_and(|line| line.ends_with(word)) {
            self.line();
        }
        // What is said later must not fill the pipe.
        let mut output = self.output.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    }

    fn port(&self, before: &str) -> u16 {
        let address = self.said.iter().find_map(|line| line.split_once(before)).unwrap().1;
        address.split_whitespace().next().unwrap().rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Lets it end, and waits for that.
    fn finish(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn on_a_worker(task: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, task);
}

/// Ready when the one who started this process has closed its standard input.
async fn told_to_end() {
    let (sender, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = sender.send(());
    });
    let _ = told.await;
}

fn say(word: &str) {
    println!("{word}");
    std::io::stdout().flush().unwrap();
}

/// Answers handshakes, and whatever a client sends with one small message.
fn back_end(path: &Path) {
    on_a_worker(async {
        let listener = UnixListener::bind(path).unwrap();
        say("listening");
        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::task::spawn_local(async move {
                    let head = read_head(&mut stream).await?;
                    let key = field(&head, "sec-websocket-key");
                    let accept = derive_accept_key(key.as_bytes());
                    let answer = format!(
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Accept: {accept}\r\n\r\n"
                    );
                    stream.write_all(answer.as_bytes()).await.ok()?;
                    let mut piece = [0; 64];
                    while stream.read(&mut piece).await.ok()? > 0 {
                        stream.write_all(b"\x81\x02hi").await.ok()?;
                    }
                    Some(())
                });
            }
        };
        tokio::select! { () = serve => {}, () = told_to_end() => {} }
    });
}

/// Opens so many tunnels, sends a message on each and waits for the answer; then it is silent.
fn clients(arguments: &[String]) {
    let (count, port): (usize, u16) = (arguments[0].parse().unwrap(), arguments[1].parse().unwrap());
    let tls = arguments.get(2).filter(|ca| !ca.is_empty()).map(|ca| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        tokio_rustls::TlsConnector::from(Arc::new(config))
    });
    on_a_worker(async {
        let (mut held, mut begun) = (Vec::new(), 0);
        let mut opening = tokio::task::JoinSet::new();
        while held.len() < count {
            while begun < count && opening.len() < AT_ONCE {
                begun += 1;
                opening.spawn_local(timeout(PATIENCE, open(tls.clone(), port)));
            }
            held.push(opening.join_next().await.unwrap().unwrap().expect("a tunnel opens"));
        }
        say("open");
        told_to_end().await;
    });
}

trait Transport: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Transport for T {}

async fn open(tls: Option<tokio_rustls::TlsConnector>, port: u16) -> Box<dyn Transport> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let mut stream: Box<dyn Transport> = match tls {
        Some(tls) => Box::new(tls.connect(ServerName::try_from("app.test").unwrap(), socket).await.unwrap()),
        None => Box::new(socket),
    };
    // As a browser asks, with a path like that of Socket.IO and cookies that are not short.
    let asked = format!(
        "GET /socket.io/?EIO=4&transport=websocket&sid=0123456789abcdefghij HTTP/1.1\r\nHost: app.test:{port}\r\n\
         Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: https://app.test\r\nCookie: session={}\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 \
         Safari/537.36\r\n\r\n",
        "0".repeat(200)
    );
    stream.write_all(asked.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream.write_all(b"\x81\x82\0\0\0\0hi").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"\x81\x02hi");
    stream
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(have, _)| have.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
}
