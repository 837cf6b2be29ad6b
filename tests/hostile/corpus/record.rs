//! A back end that records byte for byte what arrives, and reads it strictly: what is not beyond doubt is a fault.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request: its first line without the version, its fields in lower case and sorted by name, its body decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub start: String,
    pub fields: Vec<(String, String)>,
    pub body: String,
}

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which connection it came on.
    pub connection: usize,
    pub request: Request,
    /// Whether all of its body arrived.
    pub whole: bool,
    /// What is wrong with it.
    pub faults: Vec<String>,
}

/// What the back end does with a request.
pub struct Act {
    /// Written one after the other, with a pause between.
    pub parts: Vec<Vec<u8>>,
    /// Before the body is read.
    pub early: bool,
    /// Whether the connection stays open.
    pub stay: bool,
}

/// What it does by request.
pub type Script = fn(&Request) -> Act;

/// Listens on a port of its own until the test ends.
pub struct Recorder {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    seen: Mutex<Vec<Seen>>,
    /// Of all requests, whether or not they were taken.
    faults: Mutex<Vec<String>>,
    script: Script,
    /// Answers that are being written.
    writing: AtomicUsize,
    /// Whether requests with faults are answered too, as far as their framing is clear.
    lenient: bool,
}

impl Request {
    /// With what every request to a.test over TLS from 127.0.0.1 has.
    pub fn new(start: &str) -> Request {
        Request { start: start.to_owned(), fields: Vec::new(), body: String::new() }
            .with("x-forwarded-for", "127.0.0.1")
            .with("x-forwarded-proto", "https")
            .with("x-real-ip", "127.0.0.1")
            .authority("a.test", "443")
    }

    pub fn with(mut self, name: &str, value: &str) -> Request {
        self.fields.push((name.to_owned(), value.to_owned()));
        self.fields.sort_by(|a, b| a.0.cmp(&b.0));
        self
    }

    /// With another host than a.test.
    pub fn authority(mut self, host: &str, port: &str) -> Request {
        self.fields.retain(|(name, _)| !matches!(name.as_str(), "host" | "x-forwarded-host" | "x-forwarded-port"));
        self.with("host", host).with("x-forwarded-host", host).with("x-forwarded-port", port)
    }

    /// With a body behind a Content-Length.
    pub fn length(mut self, body: &str) -> Request {
        self.body = body.to_owned();
        self.with("content-length", &body.len().to_string())
    }

    /// With a body in chunks.
    pub fn chunked(mut self, body: &str) -> Request {
        self.body = body.to_owned();
        self.with("transfer-encoding", "chunked")
    }

    pub fn path(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// The value of the first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|field| field.0 == name).map(|field| field.1.as_str())
    }
}

impl Act {
    /// Ordinary: the whole request, then this.
    pub fn answer(bytes: impl Into<Vec<u8>>) -> Act {
        Act { parts: vec![bytes.into()], early: false, stay: true }
    }
}

impl Recorder {
    /// Answers `ok` to everything that is beyond doubt.
    pub fn start() -> Recorder {
        Recorder::run(ok, false)
    }

    /// Answers `ok` to everything.
    pub fn lenient() -> Recorder {
        Recorder::run(ok, true)
    }

    pub fn scripted(script: Script) -> Recorder {
        Recorder::run(script, false)
    }

    fn run(script: Script, lenient: bool) -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            faults: Mutex::default(),
            script,
            writing: AtomicUsize::new(0),
            lenient,
        });
        let record = Arc::clone(&shared);
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().flatten().enumerate() {
                let record = Arc::clone(&record);
                // What is written is there when the call returns, not when something before it is acknowledged.
                stream.set_nodelay(true).expect("a socket");
                std::thread::spawn(move || {
                    let mut line = Line { stream, held: Vec::new(), connection, shared: record };
                    // The other end leaving is how most connections end.
                    let _ = line.serve();
                });
            }
        });
        Recorder { address, shared }
    }

    /// What arrived since the last call.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen.lock().expect("not poisoned"))
    }

    /// How many requests have arrived, whole or not, since the last [`Recorder::take`].
    pub fn count(&self) -> usize {
        self.shared.seen.lock().expect("not poisoned").len()
    }

    /// Whether all answers are out, to their last byte.
    pub fn is_done(&self) -> bool {
        self.shared.writing.load(Ordering::SeqCst) == 0
    }

    /// What was wrong with anything that ever arrived.
    pub fn faults(&self) -> Vec<String> {
        self.shared.faults.lock().expect("not poisoned").clone()
    }
}

fn ok(request: &Request) -> Act {
    let body = if request.start.starts_with("HEAD ") { "" } else { "ok" };
    Act::answer(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}"))
}

/// One connection.
struct Line {
    stream: TcpStream,
    held: Vec<u8>,
    connection: usize,
    shared: Arc<Shared>,
}

enum Framing {
    None,
    Length(usize),
    Chunked,
}

impl Line {
    fn serve(&mut self) -> std::io::Result<()> {
        loop {
            let Some(head) = self.head()? else { return Ok(()) };
            let (request, framing, faults) = read_head(&head);
            let act = (self.shared.script)(&request);
            let broken = !faults.is_empty() && !self.shared.lenient;
            let seen = Seen { connection: self.connection, request, whole: false, faults };
            let at = self.note(seen, &head);
            if broken {
                return Ok(());
            }
            if act.early {
                self.write(&act)?;
                if !act.stay {
                    return Ok(());
                }
            }
            let body = match framing {
                Framing::None => Some(Vec::new()),
                Framing::Length(length) => self.exactly(length)?,
                Framing::Chunked => self.chunks(at)?,
            };
            let Some(body) = body else { return Ok(()) };
            if let Some(seen) = self.shared.seen.lock().expect("not poisoned").get_mut(at) {
                seen.request.body = text(&body);
                seen.whole = true;
            }
            if !act.early {
                self.write(&act)?;
            }
            if !act.stay {
                return Ok(());
            }
        }
    }

    fn write(&mut self, act: &Act) -> std::io::Result<()> {
        self.shared.writing.fetch_add(1, Ordering::SeqCst);
        let mut written = Ok(());
        for (number, part) in act.parts.iter().enumerate() {
            if number > 0 {
                std::thread::sleep(Duration::from_millis(30));
            }
            written = written.and_then(|()| self.stream.write_all(part));
        }
        self.shared.writing.fetch_sub(1, Ordering::SeqCst);
        written
    }

    fn note(&self, seen: Seen, head: &[u8]) -> usize {
        let told = seen.faults.iter().map(|fault| format!("{fault}: {:?}", text(head)));
        self.shared.faults.lock().expect("not poisoned").extend(told);
        let mut all = self.shared.seen.lock().expect("not poisoned");
        all.push(seen);
        all.len() - 1
    }

    fn fault(&self, at: usize, fault: &str) {
        self.shared.faults.lock().expect("not poisoned").push(fault.to_owned());
        if let Some(seen) = self.shared.seen.lock().expect("not poisoned").get_mut(at) {
            seen.faults.push(fault.to_owned());
        }
    }

    fn head(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = find(&self.held, b"\r\n\r\n") {
                return Ok(Some(self.take(at + 4)));
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    fn exactly(&mut self, length: usize) -> std::io::Result<Option<Vec<u8>>> {
        while self.held.len() < length {
            if !self.more()? {
                return Ok(None);
            }
        }
        Ok(Some(self.take(length)))
    }

    /// RFC 9112, section 7.1, without extensions and trailers.
    fn chunks(&mut self, at: usize) -> std::io::Result<Option<Vec<u8>>> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(end) = find(&self.held, b"\r\n") {
                    break end;
                }
                if !self.more()? {
                    return Ok(None);
                }
            };
            let size = text(&self.take(end + 2)[..end]);
            let Some(size) = usize::from_str_radix(&size, 16).ok().filter(|_| !size.starts_with('+')) else {
                self.fault(at, &format!("a chunk of size {size:?}"));
                return Ok(None);
            };
            let Some(data) = self.exactly(size + 2)? else { return Ok(None) };
            if !data.ends_with(b"\r\n") {
                self.fault(at, "a chunk that does not end in CRLF, or a trailer");
                return Ok(None);
            }
            if size == 0 {
                return Ok(Some(body));
            }
            body.extend_from_slice(&data[..size]);
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.held.split_off(length);
        std::mem::replace(&mut self.held, rest)
    }

    fn more(&mut self) -> std::io::Result<bool> {
        let mut bytes = [0; 16384];
        let n = self.stream.read(&mut bytes)?;
        self.held.extend_from_slice(&bytes[..n]);
        Ok(n > 0)
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// One character for each byte.
pub fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Fields that end at each hop, and those that nobody but a proxy may write, beside the five that it writes.
const NEVER: [&str; 14] = [
    "connection",
    "keep-alive",
    "proxy",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "expect",
    "forwarded",
    "x-original-url",
    "x-rewrite-url",
];
const OURS: [&str; 5] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip"];

/// A head, its last empty line included, and whatever is wrong with it.
fn read_head(head: &[u8]) -> (Request, Framing, Vec<String>) {
    let mut faults = Vec::new();
    let head = text(head);
    let mut lines = head.trim_end_matches("\r\n").split("\r\n");
    let start = lines.next().unwrap_or_default();
    let parts: Vec<&str> = start.split(' ').collect();
    match parts.as_slice() {
        [method, target, "HTTP/1.1"] if !method.is_empty() && target.starts_with('/') && target.is_ascii() => {}
        _ => faults.push("a request line that is not method, path and HTTP/1.1".to_owned()),
    }
    let mut fields = Vec::new();
    for line in lines {
        if line.contains(|c: char| c.is_ascii_control() && c != '\t') {
            faults.push("a control character in a field".to_owned());
        }
        let Some((name, value)) = line.split_once(':') else {
            faults.push("a field without a colon".to_owned());
            continue;
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            faults.push("a field name that is not letters, digits and hyphens".to_owned());
        }
        fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
    }
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    if start.contains(|c: char| c.is_ascii_control()) {
        faults.push("a control character in the request line".to_owned());
    }
    let values = |name: &str| -> Vec<&str> {
        fields.iter().filter(|field| field.0 == name).map(|field| field.1.as_str()).collect()
    };
    if values("host").len() != 1 {
        faults.push("not one Host".to_owned());
    }
    // The one thing that may cross is a WebSocket handshake.
    let handshake = values("upgrade") == ["websocket"] && values("connection") == ["Upgrade"];
    for (name, _) in &fields {
        let foreign = name.starts_with("x-forwarded-") && !OURS.contains(&name.as_str());
        let crosses = handshake && matches!(name.as_str(), "upgrade" | "connection");
        if foreign || (NEVER.contains(&name.as_str()) && !crosses) {
            faults.push(format!("the field {name}"));
        }
    }
    for name in OURS.iter().chain(&["cookie"]) {
        if values(name).len() > 1 {
            faults.push(format!("the field {name} twice"));
        }
    }
    let framing = match (values("content-length").as_slice(), values("transfer-encoding").as_slice()) {
        ([], []) => Framing::None,
        ([], ["chunked"]) => Framing::Chunked,
        ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            Framing::Length(length.parse().unwrap_or(usize::MAX))
        }
        _ => {
            faults.push("framing in doubt".to_owned());
            Framing::None
        }
    };
    let start = start.strip_suffix(" HTTP/1.1").unwrap_or(start).to_owned();
    (Request { start, fields, body: String::new() }, framing, faults)
}
