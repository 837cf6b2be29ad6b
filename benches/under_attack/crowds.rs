//! Attacks that need no tool: handshakes, silence, and a server without descriptors.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use socket2::{Domain, Socket, Type};

use crate::server::Server;
use crate::{Became, Dearth, tls_client};

/// A connection from another address of loopback.
pub fn from(last: u8, to: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).ok()?;
    socket.connect_timeout(&to.into(), Duration::from_secs(5)).ok()?;
    Some(socket.into())
}

/// As many full handshakes as three threads can make in six seconds.
pub fn handshakes(server: &Server) -> Became {
    let (made, begun) = (AtomicU64::new(0), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while begun.elapsed() < Duration::from_secs(6) {
                    let mut tls = tls_client::connect(server.https, "a.test", &[b"http/1.1"]);
                    if tls.conn.complete_io(&mut tls.sock).is_ok() {
                        made.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    let made = made.load(Relaxed);
    Became { text: format!("{} handshakes a second", made / 6), thrown: made, ..Became::default() }
}

/// 250 connections to each port that say nothing, until they are closed.
pub fn silent(server: &Server) -> Became {
    let begun = Instant::now();
    let mut crowd: Vec<TcpStream> = Vec::new();
    for _ in 0..250 {
        crowd.extend(from(1, server.http));
        crowd.extend(from(1, server.https));
    }
    let all = crowd.len();
    while !crowd.is_empty() && begun.elapsed() < Duration::from_secs(13) {
        crowd.retain(|stream| !is_closed(stream));
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = match crowd.len() {
        0 => format!("all closed after {:.1} s", begun.elapsed().as_secs_f64()),
        left => format!("{left} of {all} open after 13 s"),
    };
    Became { text, thrown: all as u64, ..Became::default() }
}

fn is_closed(stream: &TcpStream) -> bool {
    let _ = stream.set_nonblocking(true);
    match (&mut &*stream).read(&mut [0; 64]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// The limit of open files is put below what is open, for three seconds; fifty clients of each port wait. What the
/// ordinary client costs, in the three seconds before, is taken off.
pub fn no_descriptors(server: &Server) -> Became {
    let cost_of_3_s = || {
        let before = server.processor_time();
        std::thread::sleep(Duration::from_secs(3));
        server.processor_time() - before
    };
    let ordinary = cost_of_3_s();
    let maximum = getrlimit(Resource::Nofile).maximum;
    let set = |current| {
        for pid in server.processes() {
            prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum }).expect("only root may set a limit");
        }
    };
    set(Some(3));
    let mut waiting: Vec<TcpStream> = (0..50).filter_map(|_| from(1, server.http)).collect();
    let silent: Vec<TcpStream> = (0..50).filter_map(|_| from(1, server.https)).collect();
    std::thread::sleep(Duration::from_millis(200));
    let cost = cost_of_3_s();
    set(maximum);
    let since = Instant::now();
    let answered = waiting.iter_mut().filter_map(|stream| ask(stream).ok()).filter(|well| *well).count();
    let recovery = since.elapsed();
    let waited = waiting.len();
    drop(silent);
    let text = format!(
        "{:.3} s of CPU in 3 s, {:.3} s before; {answered} of {waited} that waited answered within {:.2} s",
        cost.as_secs_f64(),
        ordinary.as_secs_f64(),
        recovery.as_secs_f64()
    );
    let dearth = Dearth { processor: cost.saturating_sub(ordinary), recovery, left: 50 - answered };
    Became { text, dearth: Some(dearth), ..Became::default() }
}

/// Whether a client that has waited is answered with 200.
fn ask(stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n")?;
    let mut start = [0; 12];
    stream.read_exact(&mut start)?;
    Ok(&start == b"HTTP/1.1 200")
}
