//! What wrk and h2load cannot do exactly: transfers that end whole, uploads, handshakes.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;

use crate::server::{Server, Spent};
use crate::wire::{self, answer, ask, client, secure};
use crate::{LARGE, STEP, on_a_worker};

/// Connections that transfer at one time.
const TRANSFERS: usize = 2;
/// Handshakes at one time.
const HANDSHAKES: usize = 8;
/// Bytes of an upload.
const UPLOAD: usize = 64 << 20;
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

impl Outcome {
    /// How much of its core the proxy used, in percent.
    pub fn busy(&self) -> f64 {
        100.0 * self.usage.processor.as_secs_f64() / self.usage.elapsed.as_secs_f64()
    }

    /// Microseconds of CPU for an operation.
    pub fn cost(&self) -> f64 {
        self.usage.processor.as_secs_f64() * 1e6 / self.operations as f64
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
pub fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get((times.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
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
pub fn probe(server: &Server, path: &str, length: usize) {
    let client = client(server, "http/1.1", false);
    on_a_worker(async {
        let mut stream = secure(&client, server.https).await;
        ask(&mut stream, path).await;
        answer(&mut stream, &mut Vec::new(), Some(length)).await;
    });
}

pub fn download(server: &Server, path: &str) -> Outcome {
    let client = client(server, "http/1.1", false);
    drive(
        server,
        TRANSFERS,
        async || (secure(&client, server.https).await, Vec::new()),
        async |(stream, scratch)| {
            ask(stream, path).await;
            answer(stream, scratch, Some(LARGE)).await;
        },
    )
}

pub fn upload(server: &Server) -> Outcome {
    let client = client(server, "http/1.1", false);
    let piece = vec![b'x'; PIECE];
    let head = format!("POST /upload HTTP/1.1\r\nHost: a.test\r\nContent-Length: {UPLOAD}\r\n\r\n");
    drive(
        server,
        TRANSFERS,
        async || (secure(&client, server.https).await, Vec::new()),
        async |(stream, scratch)| {
            stream.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..UPLOAD / PIECE {
                stream.write_all(&piece).await.unwrap();
            }
            stream.flush().await.unwrap();
            let counted = answer(stream, scratch, None).await;
            assert_eq!(counted, UPLOAD.to_string().as_bytes(), "bytes that arrived");
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
            let mut stream = secure(client, server.https).await;
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
        let mut stream = secure(&client, server.https).await;
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
