//! An HTTP back end that keeps every byte of what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};

/// A request as it arrived.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Request line and fields, without the empty line.
    pub head: String,
    /// The body, unchunked.
    pub body: Vec<u8>,
}

impl Seen {
    /// The request line.
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or("")
    }

    /// All values of a field; names are compared without case.
    pub fn fields(&self, name: &str) -> Vec<&str> {
        let pairs = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        pairs.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect()
    }

    /// The only value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let values = self.fields(name);
        assert!(values.len() < 2, "{name} came {} times:\n{}", values.len(), self.head);
        values.first().copied()
    }
}

type Answer = dyn Fn(&Seen, &mut TcpStream) -> bool + Send + Sync;

/// A listening back end; it ends with the test.
pub struct BackEnd {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
}

impl BackEnd {
    /// Answers 200 with the head that it saw, and echoes WebSocket messages.
    pub fn start() -> BackEnd {
        BackEnd::answering(|seen, stream| {
            if seen.field("upgrade").is_some() {
                echo_websocket(seen, stream);
                return false;
            }
            let body = if seen.line().starts_with("HEAD ") { "" } else { seen.head.as_str() };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
                seen.head.len()
            );
            stream.write_all(head.as_bytes()).is_ok()
        })
    }

    /// Answers every request with these bytes, and closes.
    pub fn saying(bytes: &'static [u8]) -> BackEnd {
        BackEnd::answering(move |_, stream| {
            let _ = stream.write_all(bytes);
            false
        })
    }

    /// Answers as `answer` does; it says whether the connection stays.
    pub fn answering(answer: impl Fn(&Seen, &mut TcpStream) -> bool + Send + Sync + 'static) -> BackEnd {
        BackEnd::answering_at("127.0.0.1:0", answer)
    }

    /// The same at an address of the test's choice.
    pub fn answering_at(
        address: &str,
        answer: impl Fn(&Seen, &mut TcpStream) -> bool + Send + Sync + 'static,
    ) -> BackEnd {
        let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let answer: Arc<Answer> = Arc::new(answer);
        let (log, ended) = (Arc::clone(&seen), Arc::clone(&stop));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                let Ok(stream) = stream else { continue };
                std::thread::spawn(move || serve(stream, &*answer, &log));
            }
        });
        BackEnd { port, seen, stop }
    }

    /// `http://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The last request.
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("the back end was asked")
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(stream: TcpStream, answer: &Answer, log: &Mutex<Vec<Seen>>) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    while let Some(seen) = read_request(&mut reader, &mut writer) {
        log.lock().unwrap().push(seen.clone());
        if !answer(&seen, &mut writer) {
            // Says that this is all, and lets the other side read it before the socket goes.
            let _ = writer.shutdown(std::net::Shutdown::Write);
            break;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>, writer: &mut TcpStream) -> Option<Seen> {
    let mut seen = Seen::default();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        seen.head.push_str(&line.replace("\r\n", "\n"));
    }
    if seen.field("expect").is_some() {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    if seen.field("transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut piece = vec![0; size + 2];
            reader.read_exact(&mut piece).ok()?;
            if size == 0 {
                break;
            }
            seen.body.extend_from_slice(&piece[..size]);
        }
    } else if let Some(length) = seen.field("content-length") {
        seen.body = vec![0; length.parse().ok()?];
        reader.read_exact(&mut seen.body).ok()?;
    }
    Some(seen)
}

fn echo_websocket(seen: &Seen, stream: &mut TcpStream) {
    let key = derive_accept_key(seen.field("sec-websocket-key").unwrap_or("").as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {key}\r\n\r\n"
    );
    if stream.write_all(head.as_bytes()).is_err() {
        return;
    }
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, None);
    while let Ok(message) = socket.read() {
        let answer = if message.is_text() || message.is_binary() { socket.send(message) } else { socket.flush() };
        if answer.is_err() {
            break;
        }
    }
}
