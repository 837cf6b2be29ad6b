//! A back end that records what arrives, byte for byte, and answers by path.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// One request as it arrived: its head, and its body in the framing it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub head: String,
    pub body: String,
}

/// Listens on a port of its own until the test ends.
pub struct BackEnd {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    open: Arc<()>,
}

impl BackEnd {
    pub fn start() -> BackEnd {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (seen, open) = (Arc::new(Mutex::new(Vec::new())), Arc::new(()));
        let (record, count) = (Arc::clone(&seen), Arc::clone(&open));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (record, token) = (Arc::clone(&record), Arc::clone(&count));
                std::thread::spawn(move || {
                    // The other end leaving is how most connections end.
                    let _ = serve(stream, &record);
                    drop(token);
                });
            }
        });
        BackEnd { address, seen, open }
    }

    /// What arrived since the last call.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().expect("not poisoned"))
    }

    /// How many connections are open; the accept loop and this one hold a token each.
    pub fn open(&self) -> usize {
        Arc::strong_count(&self.open) - 2
    }
}

fn serve(mut stream: TcpStream, record: &Mutex<Vec<Seen>>) -> std::io::Result<()> {
    let mut held = Vec::new();
    loop {
        let Some(head) = read_until(&mut stream, &mut held, b"\r\n\r\n")? else { return Ok(()) };
        let head = String::from_utf8_lossy(&head).into_owned();
        let lower = head.to_ascii_lowercase();
        let at = {
            let mut seen = record.lock().expect("not poisoned");
            seen.push(Seen { head: head.clone(), body: String::new() });
            seen.len() - 1
        };
        if head.starts_with("POST /early ") {
            return early(&mut stream);
        }
        let body = match lower.lines().find_map(|line| line.strip_prefix("content-length: ")) {
            Some(length) => read_exactly(&mut stream, &mut held, length.trim().parse().unwrap_or(0))?,
            None if lower.contains("transfer-encoding: chunked") => read_until(&mut stream, &mut held, b"0\r\n\r\n")?,
            None => Some(Vec::new()),
        };
        let Some(body) = body else { return Ok(()) };
        if let Some(seen) = record.lock().expect("not poisoned").get_mut(at) {
            seen.body = String::from_utf8_lossy(&body).into_owned();
        }
        if !answer(&mut stream, &head)? {
            return Ok(());
        }
    }
}

/// Answers before it has the body, and not at once.
fn early(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n")?;
    std::thread::sleep(std::time::Duration::from_millis(50));
    stream.write_all(b"0\r\n\r\n")?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// Answers; `false` closes the connection.
fn answer(stream: &mut TcpStream, head: &str) -> std::io::Result<bool> {
    let path = head.split(' ').nth(1).unwrap_or_default();
    let (answer, stay): (&[u8], bool) = match path {
        "/no-socket" => (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", true),
        "/old" => (b"HTTP/1.0 200 OK\r\n\r\nto the end", false),
        "/cut-length" => (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", false),
        "/cut-chunks" => (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", false),
        "/both" => (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false),
        "/two-lengths" => (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", false),
        "/nul" => (b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok", false),
        "/gzip-coding" => (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", false),
        "/unasked" => (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", false),
        "/garbage" => (b"\x16\x03\x01 garbage\r\n\r\n", false),
        "/nothing" => (b"", false),
        "/hints" => {
            (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true)
        }
        "/leftover" => {
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL", true)
        }
        "/no-content" => (b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok", false),
        "/socket/stubborn" => return stubborn(stream, head),
        "/socket/echo" => return echo(stream, head),
        "/socket/flood" => return flood(stream, head),
        "/endless" => return endless(stream),
        "/large" => return large(stream),
        "/silent" => return stream.read(&mut [0]).map(|_| false),
        _ if head.starts_with("HEAD ") => (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", true),
        _ => (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true),
    };
    stream.write_all(answer)?;
    Ok(stay)
}

fn switch(stream: &mut TcpStream, head: &str) -> std::io::Result<()> {
    let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap_or_default();
    let accept = derive_accept_key(key.as_bytes());
    let fields = "Upgrade: websocket\r\nConnection: Upgrade";
    write!(stream, "HTTP/1.1 101 Switching Protocols\r\n{fields}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n")
}

/// A socket that takes what comes and does not end when its client does.
fn stubborn(stream: &mut TcpStream, head: &str) -> std::io::Result<bool> {
    switch(stream, head)?;
    stream.read_to_end(&mut Vec::new())?;
    std::thread::sleep(std::time::Duration::from_secs(60));
    Ok(false)
}

/// A socket that sends back what it gets, byte by byte the same.
fn echo(stream: &mut TcpStream, head: &str) -> std::io::Result<bool> {
    switch(stream, head)?;
    let mut bytes = [0; 0x4000];
    loop {
        let n = stream.read(&mut bytes)?;
        if n == 0 {
            return Ok(false);
        }
        stream.write_all(&bytes[..n])?;
    }
}

/// A socket with a message without end.
fn flood(stream: &mut TcpStream, head: &str) -> std::io::Result<bool> {
    switch(stream, head)?;
    stream.write_all(&[0x82, 127, 0, 0, 0xff, 0, 0, 0, 0, 0])?;
    loop {
        stream.write_all(&[0; 0x4000])?;
    }
}

/// 100 KiB.
fn large(stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 102400\r\n\r\n")?;
    stream.write_all(&[b'x'; 102_400])?;
    Ok(true)
}

fn endless(stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    loop {
        stream.write_all(format!("4000\r\n{}\r\n", "x".repeat(0x4000)).as_bytes())?;
    }
}

fn read_until(stream: &mut TcpStream, held: &mut Vec<u8>, end: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(at) = held.windows(end.len()).position(|window| window == end) {
            let rest = held.split_off(at + end.len());
            return Ok(Some(std::mem::replace(held, rest)));
        }
        if !more(stream, held)? {
            return Ok(None);
        }
    }
}

fn read_exactly(stream: &mut TcpStream, held: &mut Vec<u8>, length: usize) -> std::io::Result<Option<Vec<u8>>> {
    while held.len() < length {
        if !more(stream, held)? {
            return Ok(None);
        }
    }
    let rest = held.split_off(length);
    Ok(Some(std::mem::replace(held, rest)))
}

fn more(stream: &mut TcpStream, held: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut bytes = [0; 16384];
    let n = stream.read(&mut bytes)?;
    held.extend_from_slice(&bytes[..n]);
    Ok(n > 0)
}
