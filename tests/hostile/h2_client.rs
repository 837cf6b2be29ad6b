//! An HTTP/2 client in frames made by hand: it sends what a well-behaved library never would.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

use crate::tls_client::{self, Tls};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub type Fields<'a> = Vec<(&'a str, &'a str)>;

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A whole answer: its status, and the bytes of its content.
    Answer(u16, usize),
    /// The stream was reset, with so many bytes of content before.
    Reset(usize),
    /// The connection ended.
    Gone,
}

pub struct Client(pub Tls);

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        let mut client = Client(tls_client::connect(address, "a.test", &[b"h2"]));
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        client.send(&frame(SETTINGS, 0, 0, &[]));
        client
    }

    /// Sends all of `bytes`, or as much as the server takes before it closes.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.0.write_all(bytes) {
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
        }
    }

    /// A request with everything that belongs to it.
    pub fn ask(&mut self, stream: u32, fields: &Fields<'_>, body: Option<&[u8]>) {
        let end = if body.is_some() { 0 } else { END_STREAM };
        let mut bytes = frame(HEADERS, END_HEADERS | end, stream, &block(fields));
        if let Some(body) = body {
            bytes.extend(frame(DATA, END_STREAM, stream, body));
        }
        self.send(&bytes);
    }

    /// Asks, leaves its own side open, and waits for the 200.
    pub fn open(&mut self, stream: u32, fields: &Fields<'_>) {
        self.send(&frame(HEADERS, END_HEADERS, stream, &block(fields)));
        while let Some((kind, flags, id, payload)) = self.frame() {
            if kind == HEADERS && id == stream {
                assert_eq!((read_status(&payload), flags & END_STREAM), (200, 0));
                return;
            }
        }
        panic!("the connection ended");
    }

    /// Reads until `stream` or the connection has ended.
    pub fn end(&mut self, stream: u32) -> End {
        let (mut status, mut content) = (0, 0);
        while let Some((kind, flags, id, payload)) = self.frame() {
            match kind {
                GOAWAY => return End::Gone,
                RESET if id == stream => return End::Reset(content),
                HEADERS if id == stream => status = read_status(&payload),
                DATA if id == stream => content += payload.len(),
                _ => {}
            }
            if id == stream && flags & END_STREAM != 0 && (kind == HEADERS || kind == DATA) {
                return End::Answer(status, content);
            }
        }
        End::Gone
    }

    /// The next frame: its kind, flags, stream and payload.
    pub fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// RFC 7541, section 6.2.2: literal fields with new names, nothing compressed, so that any byte can stand anywhere.
pub fn block(fields: &Fields<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            let mut rest = text.len();
            if rest < 127 {
                bytes.push(u8::try_from(rest).expect("short"));
            } else {
                bytes.push(127);
                rest -= 127;
                while rest >= 128 {
                    bytes.push(u8::try_from(rest % 128 + 128).expect("a byte"));
                    rest /= 128;
                }
                bytes.push(u8::try_from(rest).expect("a byte"));
            }
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// The status, which comes first, maybe behind a new size of the table: an entry of the static table, or a literal whose
/// digits are Huffman-coded or not.
pub fn read_status(block: &[u8]) -> u16 {
    let updates = block.iter().take_while(|byte| **byte & 0xe0 == 0x20).count();
    let block = &block[updates..];
    let fixed = [200, 204, 206, 304, 400, 404, 500];
    if let Some(status) = block[0].checked_sub(0x88).and_then(|index| fixed.get(usize::from(index))) {
        return *status;
    }
    assert!(matches!(block[0], 0x08 | 0x18 | 0x48), "a literal :status in {block:?}");
    let length = usize::from(block[1] & 0x7f);
    if block[1] & 0x80 == 0 {
        return block[2..2 + length].iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    }
    let bits: Vec<u8> = block[2..2 + length].iter().flat_map(|b| (0..8).rev().map(move |n| b >> n & 1)).collect();
    let (mut at, mut status) = (0, 0);
    let take = |at: usize, n: usize| bits[at..at + n].iter().fold(0u16, |value, bit| value << 1 | u16::from(*bit));
    // RFC 7541, appendix B: '0' to '2' have five bits, '3' to '9' six from 011001 on.
    for _ in 0..3 {
        let short = take(at, 5);
        let digit = if short <= 2 { short } else { take(at, 6) - 0b01_1001 + 3 };
        at += if short <= 2 { 5 } else { 6 };
        status = status * 10 + digit;
    }
    status
}

/// The fields of a request to `path` with `more` behind them.
pub fn request<'a>(method: &'a str, path: &'a str, more: &[(&'a str, &'a str)]) -> Fields<'a> {
    let mut fields = vec![(":method", method), (":scheme", "https"), (":authority", "a.test"), (":path", path)];
    fields.extend(more);
    fields
}

/// An extended CONNECT (RFC 8441, section 4).
pub fn extended<'a>(path: &'a str, protocol: &'a str) -> Fields<'a> {
    let mut fields = request("CONNECT", path, &[]);
    fields.insert(1, (":protocol", protocol));
    fields
}
