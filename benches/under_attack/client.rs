//! The ordinary client: a request every 20 ms on a connection that it keeps, and one on a new connection each second.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::crowds::from;
use crate::tls_client::{self, Tls};

/// Nobody waits longer for a page.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where it comes from: another address than the attackers'.
const ADDRESS: u8 = 9;

/// A client on its threads.
pub struct Client {
    stop: Arc<AtomicBool>,
    keeping: JoinHandle<Seen>,
    coming: JoinHandle<Seen>,
}

/// What it has seen.
#[derive(Default)]
pub struct Seen {
    /// Of its kept connection.
    latencies: Vec<Duration>,
    /// Requests on it that were not answered with 200 in time.
    pub failures: usize,
    /// The slowest new connection, with its answer.
    pub new_max: Duration,
    /// New connections that were not answered so.
    pub new_failures: usize,
    new: usize,
}

impl Client {
    pub fn start(server: SocketAddr) -> Client {
        let stop = Arc::new(AtomicBool::new(false));
        let (first, second) = (stop.clone(), stop.clone());
        let mut kept = connect(server).expect("nothing is going on yet");
        ask(&mut kept).expect("nothing is going on yet");
        Client {
            stop,
            keeping: std::thread::spawn(move || keep(server, kept, &first)),
            coming: std::thread::spawn(move || come(server, &second)),
        }
    }

    pub fn stop(self) -> Seen {
        self.stop.store(true, Relaxed);
        let (mut seen, new) = (self.keeping.join().unwrap(), self.coming.join().unwrap());
        (seen.new, seen.new_max, seen.new_failures) = (new.new, new.new_max, new.new_failures);
        seen.latencies.sort_unstable();
        seen
    }
}

fn keep(server: SocketAddr, kept: Tls, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut kept = Some(kept);
    while !stop.load(Relaxed) {
        let begun = Instant::now();
        let answered = match &mut kept {
            Some(kept) => ask(kept),
            None => connect(server).and_then(|fresh| ask(kept.insert(fresh))),
        };
        if answered.is_none() {
            seen.failures += 1;
            kept = None;
        }
        seen.latencies.push(begun.elapsed());
        std::thread::sleep(Duration::from_millis(20).saturating_sub(begun.elapsed()));
    }
    seen
}

fn come(server: SocketAddr, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Relaxed) {
        let begun = Instant::now();
        if connect(server).and_then(|mut fresh| ask(&mut fresh)).is_none() {
            seen.new_failures += 1;
        }
        seen.new += 1;
        seen.new_max = seen.new_max.max(begun.elapsed());
        while begun.elapsed() < Duration::from_secs(1) && !stop.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    seen
}

fn connect(server: SocketAddr) -> Option<Tls> {
    let stream = from(ADDRESS, server)?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(tls_client::over(stream, "a.test", &[b"http/1.1"]))
}

fn ask(tls: &mut Tls) -> Option<()> {
    tls.write_all(b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    let mut piece = [0; 2048];
    while !answer.ends_with(b"\r\n\r\nok") {
        let n = tls.read(&mut piece).ok().filter(|n| *n > 0)?;
        answer.extend_from_slice(&piece[..n]);
        if answer.len() > 8192 {
            return None;
        }
    }
    answer.starts_with(b"HTTP/1.1 200 ").then_some(())
}

impl Seen {
    pub fn asked(&self) -> usize {
        self.latencies.len() + self.new
    }

    pub fn p50(&self) -> Duration {
        self.percentile(50)
    }

    pub fn p99(&self) -> Duration {
        self.percentile(99)
    }

    pub fn max(&self) -> Duration {
        self.percentile(100)
    }

    fn percentile(&self, percent: usize) -> Duration {
        let at = (self.latencies.len() * percent).div_ceil(100).saturating_sub(1);
        self.latencies.get(at).copied().unwrap_or_default()
    }
}
