//! The same cases before Debian's nginx, and where its answers differ.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::corpus::case::{Case, Verdict};
use crate::corpus::client::{self, Came};
use crate::corpus::record::{Recorder, Request};
use crate::edge::DEADLINE;
use crate::h2_client::End;

/// As it is found before many an application: the example of its documentation, with connections that are kept.
const CONFIG: &str = "daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events { worker_connections 256; }
http {
  access_log off; client_max_body_size 1m; keepalive_timeout 5s; client_header_timeout 2s; client_body_timeout 2s;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  ssl_certificate {folder}/site.pem; ssl_certificate_key {folder}/site.key;
  upstream back_end { server {back_end}; keepalive 8; }
  proxy_http_version 1.1;
  proxy_set_header Connection \"\";
  proxy_set_header Host $host;
  proxy_set_header X-Real-IP $remote_addr;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  proxy_set_header X-Forwarded-Proto $scheme;
  server {
    listen {address} ssl http2;
    server_name a.test;
    location / { proxy_pass http://back_end; }
    location /admin/ { return 403; }
    location /files/ { alias {folder}/root/; }
  }
  server {
    listen {address} ssl http2;
    server_name b.test;
    location / { proxy_pass http://back_end; }
  }
}
";

/// nginx in a folder of its own. Killed when dropped.
pub struct Nginx {
    pub address: SocketAddr,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Nginx {
    pub fn start(back_end: SocketAddr) -> Nginx {
        // Somebody may take the port between here and there.
        (0..5).find_map(|_| Nginx::try_start(back_end)).expect("nginx starts")
    }

    fn try_start(back_end: SocketAddr) -> Option<Nginx> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        std::fs::create_dir(path.join("root")).expect("a root");
        std::fs::write(path.join("root/a.txt"), "text\n").expect("a file");
        let names = ["a.test".to_owned(), "b.test".to_owned()];
        let pair = rcgen::generate_simple_self_signed(names).expect("a certificate");
        std::fs::write(path.join("site.pem"), pair.cert.pem()).expect("a certificate");
        std::fs::write(path.join("site.key"), pair.signing_key.serialize_pem()).expect("a key");
        let address = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let text = CONFIG
            .replace("{folder}", &path.display().to_string())
            .replace("{back_end}", &back_end.to_string())
            .replace("{address}", &address.to_string());
        std::fs::write(path.join("nginx.conf"), text).expect("the configuration");
        let program = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"];
        let program = program.into_iter().find(|program| Path::new(program).exists()).unwrap_or("nginx");
        let process = Command::new(program)
            .arg("-c")
            .arg(path.join("nginx.conf"))
            .arg("-p")
            .arg(path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed: tests/run does it");
        let mut nginx = Nginx { address, process, _folder: folder };
        let end = Instant::now() + DEADLINE;
        while TcpStream::connect(address).is_err() {
            if nginx.process.try_wait().expect("a child").is_some() || Instant::now() > end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What nginx makes of a case, coarsely.
pub fn observe(nginx: &Nginx, back_end: &Recorder, case: &Case) -> String {
    back_end.take();
    let came = client::exchange(nginx.address, case);
    let mut saw = client::saw(back_end);
    let canary = saw.last().is_some_and(client::is_canary);
    saw.retain(|request| !client::is_canary(request));
    let first = match &came {
        Came::H1(answers) => answers.first().map_or(0, |answer| answer.status),
        Came::H2(End::Answer(status, _), _) => *status,
        Came::H2(..) => 0,
    };
    let refused_behind = match &came {
        Came::H1(answers) => !canary && answers.last().is_some_and(|answer| answer.status >= 400),
        Came::H2(..) => false,
    };
    coarse(first, &saw, refused_behind)
}

/// What Doorward makes of it, as coarsely.
pub fn expected(case: &Case) -> String {
    match &case.want {
        Verdict::Closed(status) | Verdict::Kept(status) => coarse(*status, &[], false),
        Verdict::Passed(saw) | Verdict::Last(saw) => coarse(200, saw, false),
        Verdict::Then(saw, _) => coarse(200, saw, true),
        Verdict::Reset | Verdict::Gone | Verdict::Odd(_) => coarse(0, &[], false),
    }
}

fn coarse(status: u16, saw: &[Request], refused_behind: bool) -> String {
    if saw.is_empty() {
        return if (200..400).contains(&status) { format!("answers {status}") } else { "refuses".to_owned() };
    }
    let requests: Vec<String> = saw.iter().map(show).collect();
    let behind = if refused_behind { "; then refuses" } else { "" };
    let text = format!("passes {}{behind}", requests.join("; "));
    // It stands in a table.
    let text: String = text.chars().flat_map(char::escape_debug).collect::<String>().replace("\\\"", "\"");
    let text = text.replace('|', "\\u{7c}").replace('`', "\\u{60}");
    match text.char_indices().nth(120) {
        Some((at, _)) => format!("{}… ({} characters)", &text[..at], text.chars().count()),
        None => text,
    }
}

/// A request without what each has, and without how its body was framed.
fn show(request: &Request) -> String {
    let usual = Request::new("");
    let more = request.fields.iter().filter(|field| !usual.fields.contains(field)).filter(|(name, _)| {
        !matches!(name.as_str(), "content-length" | "transfer-encoding" | "x-forwarded-host" | "x-forwarded-port")
    });
    let more: Vec<String> = more.map(|(name, value)| format!(" [{name}: {value}]")).collect();
    let body = if request.body.is_empty() { String::new() } else { format!(" {:?}", request.body) };
    format!("{}{body}{}", request.start, more.concat())
}

/// The file that says where nginx differs, and why: a heading for each reason, and the cases below it.
pub struct Listed {
    path: PathBuf,
    /// Lines of prose, and rows by the name of their case, in the order of the file.
    lines: Vec<Line>,
}

enum Line {
    Prose(String),
    Row { name: String, ours: String, theirs: String },
}

const UNEXPLAINED: &str = "## Not explained yet";

impl Listed {
    pub fn read() -> Listed {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/nginx.md");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().map(|line| {
            let columns: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            match columns.as_slice() {
                [name, ours, theirs] if name.starts_with('`') => {
                    let name = name.trim_matches('`').to_owned();
                    Line::Row { name, ours: (*ours).to_owned(), theirs: (*theirs).to_owned() }
                }
                _ => Line::Prose(line.to_owned()),
            }
        });
        Listed { lines: lines.collect(), path }
    }

    /// What the file and the world do not agree about.
    pub fn disagree(&self, seen: &BTreeMap<String, (String, String)>) -> Vec<String> {
        let mut missing: BTreeMap<_, _> = seen.iter().collect();
        let mut wrong = Vec::new();
        for line in &self.lines {
            match line {
                Line::Prose(text) if text == UNEXPLAINED => wrong.push("differences without a reason".to_owned()),
                Line::Prose(_) => {}
                Line::Row { name, ours, theirs } => match missing.remove(name) {
                    Some(now) if now == &(ours.clone(), theirs.clone()) => {}
                    now => wrong.push(format!("listed: {name}: {ours} / {theirs}; seen: {now:?}")),
                },
            }
        }
        wrong.extend(missing.iter().map(|(name, now)| format!("not listed: {name}: {now:?}")));
        wrong
    }

    /// Brings the rows up to date; what is new goes below a heading of its own.
    pub fn bless(&self, seen: &BTreeMap<String, (String, String)>) {
        let mut new: BTreeMap<_, _> = seen.iter().collect();
        let row = |name: &str, (ours, theirs): &(String, String)| format!("| `{name}` | {ours} | {theirs} |\n");
        let mut text = String::new();
        for line in &self.lines {
            match line {
                Line::Prose(prose) => text.push_str(&format!("{prose}\n")),
                Line::Row { name, .. } => {
                    text.push_str(&new.remove(name).map(|now| row(name, now)).unwrap_or_default())
                }
            }
        }
        if !new.is_empty() {
            text.push_str(&format!("\n{UNEXPLAINED}\n\n| Case | Doorward | nginx |\n|---|---|---|\n"));
            new.iter().for_each(|(name, now)| text.push_str(&row(name, now)));
        }
        std::fs::write(&self.path, text).expect("the file is written");
    }
}
