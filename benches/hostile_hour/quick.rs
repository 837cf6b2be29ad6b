//! Attacks that are over in a moment.

use std::time::Duration;

use crate::ledger::{Chance, Tally};
use crate::wire::{Field, Wire, count, watch};

const HOST: &str = "Host: a.test\r\n";
const HANDSHAKE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
/// Whoever lets this through has been tricked: every form before it leaves the framing in doubt.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// What no parser has seen before: noise, and requests with some bytes changed.
pub fn garbage(field: Field, chance: &mut Chance) -> Tally {
    let mut wires = Vec::new();
    for number in 0..24 {
        let Some(mut wire) = Wire::open(field, number % 2 == 0) else { continue };
        let mut bytes = if number % 3 == 0 {
            let count = 1 + chance.below(4_000);
            chance.bytes(count)
        } else {
            let body = "5\r\nhello\r\n0\r\n\r\n";
            format!("POST /sum?a=b HTTP/1.1\r\n{HOST}Accept: */*\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
                .into_bytes()
        };
        for _ in 0..1 + chance.below(3) {
            let at = chance.below(bytes.len());
            bytes[at] = chance.next() as u8;
        }
        wire.say(&bytes);
        wires.push(wire);
    }
    watch(wires, 12)
}

pub fn smuggling(field: Field, chance: &mut Chance) -> Tally {
    let mut heads: Vec<String> = [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: \u{b}chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "X: y\rContent-Length: 4\r\n",
        "Content-Length: 0\r\nContent-Length: 44\r\n",
        "Content-Length: +0\r\n",
        "Content-Length: 0, 0\r\n",
        "Content-Length: 0x0\r\n",
        "Content-Length : 0\r\n",
        " Content-Length: 0\r\n",
        "Host: b.test\r\n",
    ]
    .iter()
    .map(|fields| format!("POST /sum HTTP/1.1\r\n{HOST}{fields}\r\n0\r\n\r\n"))
    .collect();
    for body in
        ["0x0\r\n\r\n", "0\n\n", "0\r\n\0: y\r\n\r\n", "5;a\nb\r\nhello\r\n0\r\n\r\n", "+0\r\n\r\n", "0\r\nx: y\n\r\n"]
    {
        heads.push(format!("POST /sum HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n{body}"));
    }
    heads.push(format!("GET /small HTTP/1.1\n{HOST}\r\n"));
    heads.push("GET /small HTTP/1.1\r\n\r\n".to_owned());
    let mut wires = Vec::new();
    for head in heads {
        let Some(mut wire) = Wire::open(field, chance.below(2) == 0) else { continue };
        wire.say(format!("{head}{SMUGGLED}").as_bytes());
        wires.push(wire);
    }
    watch(wires, 12)
}

pub fn oversize_heads(field: Field, _: &mut Chance) -> Tally {
    let raw = [
        format!("GET /{} HTTP/1.1\r\n{HOST}\r\n", "a".repeat(20_000)),
        format!("GET / HTTP/1.1\r\n{HOST}X: {}\r\n\r\n", "a".repeat(50_000)),
        format!("GET / HTTP/1.1\r\n{HOST}{}\r\n", "a: b\r\n".repeat(300)),
        format!("GET / HTTP/1.1\r\n{HOST}Cookie: {}\r\n\r\n", "a=b; ".repeat(10_000)),
        format!("{} / HTTP/1.1\r\n{HOST}\r\n", "A".repeat(9_000)),
    ];
    let wires = raw.iter().flat_map(|raw| Wire::several(field, 4, raw.as_bytes())).collect();
    watch(wires, 12)
}

/// Bodies that break off, and bodies that are too big.
pub fn aborted_uploads(field: Field, chance: &mut Chance) -> Tally {
    let mut tally = Tally::default();
    for number in 0..16 {
        let Some(mut wire) = Wire::open(field, number % 2 == 0) else { continue };
        let framing = ["Content-Length: 1000000", "Transfer-Encoding: chunked", "Content-Length: 90000000"][number % 3];
        wire.say(format!("POST /sum HTTP/1.1\r\n{HOST}{framing}\r\n\r\n").as_bytes());
        let mut piece = vec![b'x'; 1 + chance.below(100_000)];
        if number % 3 == 1 {
            piece.splice(..0, *b"f0000\r\n");
        }
        wire.say(&piece);
        tally.sent += 1;
        if number % 3 == 2 {
            count(&mut tally, &wire.hear(16), true);
        } else {
            tally.left += 1;
        }
        if number % 4 < 2 {
            wire.cut();
        }
    }
    tally
}

/// Answers that are read a little and left, politely or not.
pub fn aborted_downloads(field: Field, chance: &mut Chance) -> Tally {
    let mut tally = Tally::default();
    for number in 0..16 {
        let Some(mut wire) = Wire::open(field, number % 2 == 0) else { continue };
        let path = ["/files/big.bin", "/endless", "/stall", "/cut"][number % 4];
        wire.say(format!("GET {path} HTTP/1.1\r\n{HOST}\r\n").as_bytes());
        let heard = if path == "/stall" { Vec::new() } else { wire.hear(1 + chance.below(100_000)) };
        tally.sent += 1;
        count(&mut tally, &heard, false);
        if number % 8 < 4 {
            wire.cut();
        }
    }
    tally
}

/// Handshakes for sockets that are refused, with requests and frames behind them.
pub fn refused_upgrades(field: Field, chance: &mut Chance) -> Tally {
    let mut wires = Vec::new();
    for number in 0..12 {
        let Some(mut wire) = Wire::open(field, number % 2 == 0) else { continue };
        let (path, version) = [("/small", 13), ("/socket/x", 8), ("/sum", 13)][number % 3];
        let head = format!("GET {path} HTTP/1.1\r\n{HOST}{HANDSHAKE}Sec-WebSocket-Version: {version}\r\n\r\n");
        wire.say(head.as_bytes());
        if number % 2 == 0 {
            wire.say(format!("GET /small?piped HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n").as_bytes());
        } else {
            wire.say(b"\x81\x85\0\0\0\0hello");
            wire.say(&chance.bytes(200));
        }
        wires.push(wire);
    }
    watch(wires, 12)
}

/// Hundreds of connections at once that say nothing and go.
pub fn burst(field: Field, chance: &mut Chance) -> Tally {
    let address = if chance.below(2) == 0 { field.http } else { field.https };
    let wires: Vec<Wire> = (0..200 + chance.below(300)).filter_map(|_| Wire::plain(address)).collect();
    std::thread::sleep(Duration::from_millis(100));
    let tally = Tally { sent: wires.len() as u64, left: wires.len() as u64, ..Tally::default() };
    for (number, wire) in wires.into_iter().enumerate() {
        if number % 2 == 0 {
            wire.cut();
        }
    }
    tally
}

/// Handshakes that cost the server a signature each, and are not used.
pub fn handshakes(field: Field, _: &mut Chance) -> Tally {
    let wires: Vec<Wire> = (0..60).filter_map(|_| Wire::open(field, true)).collect();
    let count = wires.len() as u64;
    Tally { sent: count, left: count, ..Tally::default() }
}

/// What is no TLS, on the port of TLS.
pub fn no_tls(field: Field, chance: &mut Chance) -> Tally {
    let mut wires = Vec::new();
    for number in 0..30 {
        let Some(mut wire) = Wire::plain(field.https) else { continue };
        let bytes = match number % 5 {
            0 => format!("GET / HTTP/1.1\r\n{HOST}\r\n").into_bytes(),
            1 => chance.bytes(300),
            // SSL 2, a record that is too long, and an alert before anything.
            2 => b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10".to_vec(),
            3 => [b"\x16\x03\x01\xff\xff\x01".to_vec(), chance.bytes(2_000)].concat(),
            _ => b"\x15\x03\x01\x00\x02\x02\x00".to_vec(),
        };
        wire.say(&bytes);
        wires.push(wire);
    }
    watch(wires, 12)
}

/// Many requests in one go, by somebody who does not wait for the answers.
pub fn pipelines(field: Field, chance: &mut Chance) -> Tally {
    let many = format!("GET /small?piped HTTP/1.1\r\n{HOST}\r\n").repeat(100);
    let mut tally = Tally::default();
    for number in 0..6 {
        let Some(mut wire) = Wire::open(field, number % 2 == 0) else { continue };
        wire.say(many.as_bytes());
        let heard = wire.hear(chance.below(20_000));
        tally.sent += 1;
        count(&mut tally, &heard, false);
        wire.cut();
    }
    tally
}

/// Sockets that break the rules: frames without a mask, with reserved bits, too long, or noise.
pub fn broken_frames(field: Field, chance: &mut Chance) -> Tally {
    let mut wires = sockets(field, 12);
    for (number, wire) in wires.iter_mut().enumerate() {
        let bytes = match number % 4 {
            0 => b"\x81\x05hello".to_vec(),
            1 => b"\xf1\x85\0\0\0\0hello".to_vec(),
            2 => [b"\x82\xff\0\0\0\0\0\x02\0\0\0\0\0\0".to_vec(), vec![0; 0x2_0000]].concat(),
            _ => chance.bytes(1_000),
        };
        wire.say(&bytes);
    }
    watch(wires, 12)
}

/// Open sockets, with their 101 read.
pub fn sockets(field: Field, count: usize) -> Vec<Wire> {
    let ask = format!("GET /socket/x HTTP/1.1\r\n{HOST}{HANDSHAKE}Sec-WebSocket-Version: 13\r\n\r\n");
    let mut wires = Wire::several(field, count, ask.as_bytes());
    wires.retain_mut(|wire| wire.hear(1).starts_with(b"HTTP/1.1 101 "));
    wires
}
