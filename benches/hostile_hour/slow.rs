//! Attacks that take their time: each holds what a server has few of.

use std::io::Write;
use std::time::Duration;

use crate::ledger::{Chance, Tally};
use crate::quick::sockets;
use crate::wire::{Field, Hold, Wire, hold, watch};

const LIMIT: Duration = Duration::from_secs(20);

fn slowly(wires: Vec<Wire>, every: u64, bytes: &[u8]) -> Tally {
    let every = Duration::from_millis(every);
    hold(wires, Hold { limit: LIMIT, every, reads: true }, |round, _, wire| {
        wire.write_all(&[bytes[round % bytes.len()]])?;
        wire.flush()
    })
}

/// A head that never ends.
pub fn heads(field: Field, _: &mut Chance) -> Tally {
    slowly(Wire::several(field, 40, b"GET / HTTP/1.1\r\nHost: a.test\r\n"), 300, b"X: y\r\n")
}

/// A body that never ends.
pub fn bodies(field: Field, _: &mut Chance) -> Tally {
    let head = b"POST /sum HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\n";
    slowly(Wire::several(field, 40, head), 1_000, b"x")
}

/// A body that is promised and never begun.
pub fn no_bodies(field: Field, _: &mut Chance) -> Tally {
    watch(Wire::several(field, 40, b"POST /sum HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\n"), 20)
}

/// Answers that nobody reads.
pub fn reads(field: Field, _: &mut Chance) -> Tally {
    let mut wires = Vec::new();
    for number in 0..40 {
        let Some(mut wire) = Wire::open(field, number % 2 == 0) else { continue };
        let _ = socket2::SockRef::from(wire.socket()).set_recv_buffer_size(4096);
        let path = ["/files/big.bin", "/endless"][number / 2 % 2];
        wire.say(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n").as_bytes());
        wires.push(wire);
    }
    hold(wires, Hold { limit: LIMIT, every: Duration::from_millis(500), reads: false }, |_, _, _| Ok(()))
}

/// Connections without a word, on both ports.
pub fn silence(field: Field, _: &mut Chance) -> Tally {
    let address = |number| if number % 2 == 0 { field.http } else { field.https };
    watch((0..120).filter_map(|number| Wire::plain(address(number))).collect(), 20)
}

/// Handshakes, and then not a word.
pub fn silence_after_handshakes(field: Field, _: &mut Chance) -> Tally {
    let alpn: [&[&[u8]]; 2] = [&[b"http/1.1"], &[b"h2"]];
    watch((0..40).filter_map(|number| Wire::with_alpn(field, true, alpn[number % 2])).collect(), 20)
}

/// A part of a ClientHello.
pub fn half_handshakes(field: Field, chance: &mut Chance) -> Tally {
    let mut wires = Vec::new();
    for _ in 0..80 {
        let Some(mut wire) = Wire::plain(field.https) else { continue };
        let mut hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
        let count = chance.below(300);
        hello.extend(chance.bytes(count));
        wire.say(&hello);
        wires.push(wire);
    }
    watch(wires, 20)
}

/// A request, and then nothing: the server keeps the connection for a while.
pub fn idlers(field: Field, _: &mut Chance) -> Tally {
    watch(Wire::several(field, 60, b"GET /small?idle HTTP/1.1\r\nHost: a.test\r\n\r\n"), 20)
}

/// Sockets whose clients have gone without a word: they answer no Ping.
pub fn zombies(field: Field, _: &mut Chance) -> Tally {
    watch(sockets(field, 30), 25)
}

/// Sockets that send without end and read nothing.
pub fn deaf_sockets(field: Field, _: &mut Chance) -> Tally {
    let mut frame = b"\x82\xfe\x40\x00\0\0\0\0".to_vec();
    frame.resize(8 + 0x4000, b'x');
    let wires = sockets(field, 10);
    let mut sent = vec![0; wires.len()];
    let every = Duration::from_millis(100);
    hold(wires, Hold { limit: Duration::from_secs(15), every, reads: false }, |_, number, wire| {
        // What did not fit is sent on from where it stopped: to the server it stays one frame after the other.
        for _ in 0..8 {
            sent[number] += wire.write(&frame[sent[number] % frame.len()..])?;
        }
        wire.flush()
    })
}
