//! Connections of attackers, many at a time on one thread, and what the server makes of them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::ledger::Tally;
use crate::tls_client::{self, Tls};

/// What an attacker waits for a handshake or for room to write at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// The listeners under attack.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub http: SocketAddr,
    pub https: SocketAddr,
}

pub enum Wire {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

impl Wire {
    /// `None` where the server does not want one more.
    pub fn open(field: Field, secure: bool) -> Option<Wire> {
        Wire::with_alpn(field, secure, &[b"http/1.1"])
    }

    pub fn with_alpn(field: Field, secure: bool, alpn: &[&[u8]]) -> Option<Wire> {
        let wire = if secure {
            let mut tls = tls_client::connect(field.https, "a.test", alpn);
            bound(&tls.sock)?;
            while tls.conn.is_handshaking() {
                tls.conn.complete_io(&mut tls.sock).ok()?;
            }
            Wire::Tls(Box::new(tls))
        } else {
            Wire::plain(field.http)?
        };
        Some(wire)
    }

    /// TCP alone.
    pub fn plain(address: SocketAddr) -> Option<Wire> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        bound(&stream)?;
        Some(Wire::Plain(stream))
    }

    /// As many as are let in, half of them over TLS, with `bytes` sent on each.
    pub fn several(field: Field, count: usize, bytes: &[u8]) -> Vec<Wire> {
        let open = |number: usize| {
            let mut wire = Wire::open(field, number.is_multiple_of(2))?;
            wire.say(bytes);
            Some(wire)
        };
        (0..count).filter_map(open).collect()
    }

    pub fn socket(&self) -> &TcpStream {
        match self {
            Wire::Plain(stream) => stream,
            Wire::Tls(tls) => &tls.sock,
        }
    }

    /// All of it, or as much as the server takes.
    pub fn say(&mut self, bytes: &[u8]) {
        let _ = self.write_all(bytes);
        let _ = self.flush();
    }

    /// Reads about so much, or what comes in time.
    pub fn hear(&mut self, count: usize) -> Vec<u8> {
        let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
        while heard.len() < count {
            match self.read(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(n) => heard.extend_from_slice(&piece[..n]),
            }
        }
        heard
    }

    /// Ends it with a reset, as a process that dies does.
    pub fn cut(self) {
        let _ = socket2::SockRef::from(self.socket()).set_linger(Some(Duration::ZERO));
    }
}

fn bound(stream: &TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    stream.set_nodelay(true).ok()
}

impl Read for Wire {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.read(bytes),
            Wire::Tls(tls) => tls.read(bytes),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.write(bytes),
            Wire::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Wire::Plain(stream) => stream.flush(),
            Wire::Tls(tls) => tls.flush(),
        }
    }
}

/// How connections are held.
#[derive(Debug, Clone, Copy)]
pub struct Hold {
    /// How long at most; what is open then is cut.
    pub limit: Duration,
    /// Between two steps.
    pub every: Duration,
    /// Whether what the server sends is read meanwhile.
    pub reads: bool,
}

impl Hold {
    pub fn silent(seconds: u64) -> Hold {
        Hold { limit: Duration::from_secs(seconds), every: Duration::from_millis(250), reads: true }
    }
}

/// One held connection: the first bytes of what came, and whether the server has ended it.
struct Held {
    wire: Wire,
    head: Vec<u8>,
    ended: bool,
}

impl Held {
    fn read(&mut self) {
        let mut piece = [0; 16 * 1024];
        // Bounded: an endless answer must not keep this thread from the others.
        for _ in 0..64 {
            match self.wire.read(&mut piece) {
                Ok(0) => return self.ended = true,
                Ok(n) => {
                    let room = 16_usize.saturating_sub(self.head.len()).min(n);
                    self.head.extend_from_slice(&piece[..room]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.ended = true,
            }
        }
    }
}

/// Goes round `wires` with `step`, which gets the round and the number of the connection, until the server has ended all of them, or the time is over.
pub fn hold(
    wires: Vec<Wire>,
    hold: Hold,
    mut step: impl FnMut(usize, usize, &mut Wire) -> std::io::Result<()>,
) -> Tally {
    let start = Instant::now();
    let keep = |wire: Wire| wire.socket().set_nonblocking(true).is_ok().then_some(wire);
    let begin = |wire| Held { wire, head: Vec::new(), ended: false };
    let mut all: Vec<Held> = wires.into_iter().filter_map(keep).map(begin).collect();
    let mut round = 0;
    while start.elapsed() < hold.limit && all.iter().any(|held| !held.ended) {
        for (number, held) in all.iter_mut().enumerate().filter(|(_, held)| !held.ended) {
            match step(round, number, &mut held.wire) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    held.read();
                    held.ended = true;
                }
                _ if hold.reads => held.read(),
                _ => {}
            }
        }
        round += 1;
        std::thread::sleep(hold.every);
    }
    let mut tally = Tally { sent: all.len() as u64, ..Tally::default() };
    for mut held in all {
        if !held.ended {
            held.read();
        }
        count(&mut tally, &held.head, held.ended);
        held.wire.cut();
    }
    tally
}

/// Holds them and says nothing more.
pub fn watch(wires: Vec<Wire>, seconds: u64) -> Tally {
    hold(wires, Hold::silent(seconds), |_, _, _| Ok(()))
}

pub fn count(tally: &mut Tally, head: &[u8], ended: bool) {
    let status = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "));
    match status.and_then(<[u8]>::first) {
        Some(b'4' | b'5') => tally.refused += 1,
        Some(_) => tally.answered += 1,
        None if ended => tally.closed += 1,
        None => tally.left += 1,
    }
}
