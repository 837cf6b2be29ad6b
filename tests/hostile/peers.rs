//! Whoever is at the ends of a socket: refused ones, ones that say too much, nothing, or go without a word.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::edge::{DEADLINE, Edge, eventually};

#[path = "peers/ends.rs"]
mod ends;
#[path = "peers/refused.rs"]
mod refused;
#[path = "peers/rules.rs"]
mod rules;
#[path = "peers/silent.rs"]
mod silent;

pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const CANARY: &str = "GET /canary HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";

/// A handshake for a path of the site `a.test`.
fn handshake(path: &str) -> String {
    handshake_with(path, "")
}

fn handshake_with(path: &str, fields: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{fields}\r\n"
    )
}

/// A frame of a client; its mask is zeros, so that the payload reads as it is.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u64::try_from(payload.len()).expect("short");
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(0x80 | u8::try_from(length).expect("short")),
        126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).expect("short").to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    [bytes, vec![0; 4], payload.to_vec()].concat()
}

/// A connection of the back end, and the head that came on it.
struct Asked<'a> {
    head: &'a str,
    stream: &'a mut TcpStream,
}

impl Asked<'_> {
    fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// The 101 that this handshake asks for.
    fn yes(&self) -> String {
        let key = self.head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap_or_default();
        let accept = derive_accept_key(key.as_bytes());
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
    }

    fn say(&mut self, answer: impl AsRef<[u8]>) {
        // The edge may have left.
        let _ = self.stream.write_all(answer.as_ref());
    }

    /// All that comes until the edge ends its side.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }
}

/// A back end whose script is called with each head and answers it; `false` closes the connection. What was asked is
/// recorded, `/canary` answered with 200.
struct Script {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    open: Arc<()>,
}

impl Script {
    fn start(script: impl Fn(&mut Asked<'_>) -> bool + Send + Sync + 'static) -> Script {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (heads, open) = (Arc::new(Mutex::new(Vec::new())), Arc::new(()));
        let (record, count, script) = (Arc::clone(&heads), Arc::clone(&open), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (record, token, script) = (Arc::clone(&record), Arc::clone(&count), Arc::clone(&script));
                std::thread::spawn(move || {
                    converse(stream, &record, &*script);
                    drop(token);
                });
            }
        });
        Script { address, heads, open }
    }

    /// One that answers every handshake with 101 and sends back what it gets.
    fn echo() -> Script {
        Script::start(|asked| {
            asked.say(asked.yes());
            let mut bytes = [0; 0x4000];
            while let Ok(n @ 1..) = asked.stream.read(&mut bytes) {
                asked.say(&bytes[..n]);
            }
            false
        })
    }

    /// The heads that came since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock().expect("not poisoned"))
    }

    fn wait_for_head(&self) -> String {
        let taken = Mutex::new(Vec::new());
        eventually("the back end is asked", || {
            taken.lock().expect("not poisoned").extend(self.take());
            !taken.lock().expect("not poisoned").is_empty()
        });
        taken.into_inner().expect("not poisoned").remove(0)
    }

    /// How many connections are open; the accept loop and this one hold a token each.
    fn open(&self) -> usize {
        Arc::strong_count(&self.open) - 2
    }
}

fn converse(mut stream: TcpStream, record: &Mutex<Vec<String>>, script: &(impl Fn(&mut Asked<'_>) -> bool + ?Sized)) {
    // Nobody waits for ever, whatever a test forgets.
    let _ = stream.set_read_timeout(Some(DEADLINE * 3));
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        record.lock().expect("not poisoned").push(head.clone());
        let mut asked = Asked { head: &head, stream: &mut stream };
        if asked.path() == "/canary" {
            asked.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ncanary");
        } else if !script(&mut asked) {
            return;
        }
    }
}

/// Reads a head, byte by byte, so that nothing behind it is taken.
fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        let n = stream.read(&mut byte).unwrap_or_else(|error| panic!("after {head:?}: {error}"));
        assert_eq!(n, 1, "the connection ended after {:?}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("a head is text")
}

/// An open socket at `path`, over plain TCP.
fn open(edge: &Edge, path: &str) -> TcpStream {
    open_with(edge, &handshake(path))
}

fn open_with(edge: &Edge, handshake: &str) -> TcpStream {
    let mut stream = edge.connect();
    stream.write_all(handshake.as_bytes()).expect("the edge reads");
    let head = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream
}

/// Sends a message and waits until it has come back.
fn echoes(stream: &mut (impl Read + Write), text: &[u8]) {
    let sent = frame(0x82, text);
    stream.write_all(&sent).expect("the edge reads");
    let mut back = vec![0; sent.len()];
    stream.read_exact(&mut back).expect("it comes back");
    assert!(back == sent, "what came back is not what was sent");
}

/// What the kernel says of the socket between these two, as the side `local` has it: bytes that nobody has taken, bytes
/// that the other side has not, and what its timer is for.
fn kernel_view(local: SocketAddr, remote: SocketAddr) -> Option<(u64, u64, u8)> {
    let name = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), v4.port()),
        SocketAddr::V6(_) => panic!("IPv4 only"),
    };
    let (local, remote) = (name(local), name(remote));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, from, to, _, queues, timer, ..] = columns[..] else { return None };
        let (sending, receiving) = queues.split_once(':')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let kind = timer.split(':').next().and_then(hex)?;
        (from == local && to == remote).then_some((hex(receiving)?, hex(sending)?, u8::try_from(kind).ok()?))
    })
}
