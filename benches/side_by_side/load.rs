//! What wrk and h2load cannot do exactly: transfers that end whole, uploads, handshakes.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;

use crate::server::{Server, Spent};
use crate::wire::{self, answer, ask, ask_host, client, secure};
use crate::{LARGE, STEP, on_a_worker};

/// Connections that transfer at one time.
const TRANSFERS: usize = 2;
/// Handshakes at one time.
const HANDSHAKES: usize = 8;
/// Bytes of an upload, and of the one beforehand that is not measured.
const UPLOAD: usize = 1 << 30;
const FIRST: usize = 64 << 20;
const PIECE: usize = 64 << 10;

/// What a turn of a proxy came to.
pub struct Outcome {
    pub operations: u64,
    /// What all operations took.
    pub usage: Usage,
    /// What clients waited for an operation, 99 of 100.
    pub p99: Duration,
}

/// What a proxy used.
pub struct Usage {
    /// CPU time of all its processes.
    processor: Duration,
    elapsed: Duration,
}

impl Usage {
    /// Microseconds of CPU for each of so many operations.
    pub fn cost(&self, operations: u64) -> f64 {
        self.processor.as_secs_f64() * 1e6 / operations as f64
    }

    /// How much of its core the proxy used, in percent.
    pub fn busy(&self) -> f64 {
        100.0 * self.processor.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}

impl Outcome {
    /// Microseconds of CPU for an operation.
    pub fn cost(&self) -> f64 {
        self.usage.cost(self.operations)
    }
}

/// Looks at the CPU time of a proxy and at the clock, at the same time.
pub struct Meter<'a> {
    server: &'a Server,
    before: Spent,
    begun: Instant,
}

impl<'a> Meter<'a> {
    pub fn start(server: &'a Server) -> Meter<'a> {
        Meter { server, before: server.spent(), begun: Instant::now() }
    }

    pub fn stop(self) -> Usage {
        Usage { elapsed: self.begun.elapsed(), processor: self.server.spent().since(self.before) }
    }
}

/// The time that 99 of 100 are not above.
pub fn p99(times: Vec<Duration>) -> Duration {
    let [time] = percentile(times, [99]);
    time
}

/// The times that so many of 100 are not above.
pub fn percentile<const N: usize>(mut times: Vec<Duration>, of: [usize; N]) -> [Duration; N] {
    times.sort_unstable();
    of.map(|of| times.get((times.len() * of).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default())
}

/// Opens what each of so many clients needs, lets each operate once unmeasured, and then again and again at the same
/// time. Every operation that was begun is finished and counts.
pub fn drive<S>(server: &Server, clients: usize, open: impl AsyncFn() -> S, operate: impl AsyncFn(&mut S)) -> Outcome {
    on_a_worker(async {
        let mut states = Vec::new();
        for _ in 0..clients {
            let mut state = open().await;
            operate(&mut state).await;
            states.push(state);
        }
        let operate = &operate;
        let meter = Meter::start(server);
        let end = Instant::now() + STEP;
        let loops = states.iter_mut().map(|state| async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let begun = Instant::now();
                operate(state).await;
                times.push(begun.elapsed());
            }
            times
        });
        let times = join_all(loops).await.concat();
        Outcome { operations: times.len() as u64, usage: meter.stop(), p99: p99(times) }
    })
}

/// Asks once, and fails where the answer is not that.
pub fn probe(server: &Server, host: &str, path: &str, length: usize) {
    let client = client(server, "http/1.1", false);
    on_a_worker(async {
        let mut stream = secure(&client, server.ports.https).await;
        ask_host(&mut stream, host, path).await;
        answer(&mut stream, &mut Vec::new(), Some(length)).await;
    });
}

/// Asks a site that has a certificate of its own.
pub fn probe_site(server: &Server, name: &str) {
    let client = client(server, "http/1.1", false);
    on_a_worker(async {
        let mut stream = wire::secure_as(&client, server.ports.https, name).await;
        ask_host(&mut stream, name, "/").await;
        answer(&mut stream, &mut Vec::new(), Some(2)).await;
    });
}

pub fn download(server: &Server, path: &str) -> Outcome {
    let client = client(server, "http/1.1", false);
    drive(
        server,
        TRANSFERS,
        async || (secure(&client, server.ports.https).await, Vec::new()),
        async |(stream, scratch)| {
            ask(stream, path).await;
            answer(stream, scratch, Some(LARGE)).await;
        },
    )
}

pub fn upload(server: &Server) -> Outcome {
    let client = client(server, "http/1.1", false);
    let piece = vec![b'x'; PIECE];
    drive(
        server,
        TRANSFERS,
        async || (secure(&client, server.ports.https).await, Vec::new(), FIRST),
        async |(stream, scratch, length)| {
            let head = format!("POST /upload HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..*length / PIECE {
                stream.write_all(&piece).await.unwrap();
            }
            stream.flush().await.unwrap();
            let counted = answer(stream, scratch, None).await;
            assert_eq!(counted, length.to_string().as_bytes(), "bytes that arrived");
            *length = UPLOAD;
        },
    )
}

/// Connects, asks once and closes, again and again.
pub fn handshake(server: &Server, resumes: bool) -> Outcome {
    drive(
        server,
        HANDSHAKES,
        // Each has tickets of its own, so that one is always there: the answer comes after it.
        async || (client(server, "http/1.1", resumes), Vec::new(), false),
        async |(client, scratch, has_ticket)| {
            let mut stream = secure(client, server.ports.https).await;
            ask(&mut stream, "/").await;
            answer(&mut stream, scratch, Some(2)).await;
            let kind = stream.get_ref().1.handshake_kind().unwrap();
            let expected = if *has_ticket { rustls::HandshakeKind::Resumed } else { rustls::HandshakeKind::Full };
            assert_eq!(kind, expected, "kind of the handshake");
            *has_ticket = resumes;
            // The proxy may be faster to close.
            let _ = stream.shutdown().await;
        },
    )
}

/// So many connections that have asked once, and are kept.
pub async fn kept(server: &Server, protocol: &str, count: usize) -> Vec<Box<dyn wire::Transport>> {
    let client = client(server, protocol, false);
    let mut held: Vec<Box<dyn wire::Transport>> = Vec::new();
    for _ in 0..count {
        let mut stream = secure(&client, server.ports.https).await;
        if protocol == "h2" {
            wire::ask_h2(&mut stream).await;
        } else {
            ask(&mut stream, "/").await;
            answer(&mut stream, &mut Vec::new(), Some(2)).await;
        }
        held.push(Box::new(stream));
    }
    held
}
