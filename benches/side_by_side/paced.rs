//! Requests at a fixed rate, however fast they are answered, and how long their answers take: an open loop.
//!
//! Requests are due at evenly spaced times, and their answers are timed from then: whoever stands still for a moment is
//! charged for all that became due meanwhile. What the load is late by itself is told beside, and marked where it cannot
//! keep the pace: then the figures are its own. One thread waits for the next request and for answers at once, to the microsecond: the clocks of async
//! runtimes have milliseconds.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::load::{Meter, Usage, percentile, probe};
use crate::server::{Place, Server};
use crate::wire::{self, frame};
use crate::{STEP, table};

/// Requests a second that are about half of what each proxy could do here.
const RATE: u32 = 12_000;
/// Requests that may be under way on all connections together. What is due beyond them waits, and its time runs.
const MOST: usize = 32;
/// Of them on a connection of HTTP/2.
const STREAMS: usize = 8;
/// The load keeps the pace where 99 of 100 requests are taken up within this.
const LATE: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(10);

pub const NAMES: [(&str, &str, &str); 2] = [("paced", "HTTP/1.1", "http/1.1"), ("paced-h2", "HTTP/2", "h2")];

pub fn head(place: &Place) {
    println!(
        "\nSmall GETs at {RATE} a second, of {}: what an answer takes from when its request was due, and the ratios of p50 \
         and p99 to nginx; medians of the rounds.\n\n\
         | scenario | p50, µs | p99, µs | {} | CPU of an operation, µs | busy, % | the load was late, p99, µs |\n\
         |---|---:|---:|{}---:|---:|---:|",
        table::names(place.kinds),
        table::ratio_names(place.kinds),
        "---:|".repeat(place.kinds.len() - 1)
    );
}

pub fn measure(title: &str, protocol: &str, place: &Place, rounds: usize) {
    let servers: Vec<Server> = place.kinds.iter().map(|kind| Server::start(*kind, place)).collect();
    let mut columns: Vec<Vec<Seen>> = servers.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for turn in 0..servers.len() {
            let at = (round + turn) % servers.len();
            probe(&servers[at], "a.test", "/", 2);
            columns[at].push(run(&servers[at], protocol));
        }
    }
    let median = |at: usize, of: &dyn Fn(&Seen) -> f64| table::median(columns[at].iter().map(of).collect());
    let each = |of: &dyn Fn(&Seen) -> f64| {
        let texts = (0..columns.len()).map(|at| format!("{:.0}", median(at, of)));
        texts.collect::<Vec<_>>().join(" / ")
    };
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let (p50, p99) = (|seen: &Seen| micros(seen.p50), |seen: &Seen| micros(seen.p99));
    let ratio = |at: usize, to: usize| {
        let [half, most] = [median(at, &p50) / median(to, &p50), median(at, &p99) / median(to, &p99)];
        format!("{half:.2} / {most:.2}")
    };
    println!(
        "| {title} | {} | {} | {} | {} | {} | {}{} |",
        each(&p50),
        each(&p99),
        table::ratios(place.kinds, ratio),
        each(&|seen| seen.usage.cost(seen.operations)),
        each(&|seen| seen.usage.busy()),
        each(&|seen| micros(seen.late)),
        if (0..columns.len()).any(|at| median(at, &|seen| micros(seen.late)) > micros(LATE)) {
            ": **cannot keep the pace**"
        } else {
            ""
        }
    );
}

/// What a turn of a proxy came to.
struct Seen {
    operations: u64,
    usage: Usage,
    p50: Duration,
    p99: Duration,
    late: Duration,
}

fn run(server: &Server, protocol: &str) -> Seen {
    // A thread that sleeps is else woken up to 50 µs late.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)).unwrap();
    let each = if protocol == "h2" { STREAMS } else { 1 };
    let mut lanes: Vec<Lane> = (0..MOST / each).map(|_| Lane::open(server, protocol)).collect();
    // In turn, so that all connections are used alike.
    let mut free: VecDeque<usize> = (0..MOST).map(|slot| slot % lanes.len()).collect();
    let total = RATE * STEP.as_secs() as u32;
    let (mut times, mut late) = (Vec::with_capacity(total as usize), Vec::with_capacity(total as usize));
    let (mut next, mut waiting) = (0, VecDeque::new());
    let meter = Meter::start(server);
    let begun = Instant::now();
    let due = |request: u32| begun + Duration::from_secs(1) * request / RATE;
    while times.len() < total as usize {
        let now = Instant::now();
        while next < total && due(next) <= now {
            // By itself: it never waits for a proxy when something is due.
            late.push(now - due(next));
            waiting.push_back(due(next));
            next += 1;
        }
        while !waiting.is_empty() && !free.is_empty() {
            lanes[free.pop_front().unwrap()].ask(waiting.pop_front().unwrap());
        }
        let pause = if next < total { due(next).saturating_duration_since(Instant::now()) } else { PATIENCE };
        let pause = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() };
        let busy: Vec<usize> = (0..lanes.len()).filter(|at| !lanes[*at].asked.is_empty()).collect();
        let mut ready: Vec<PollFd> =
            busy.iter().map(|at| PollFd::new(&lanes[*at].stream.sock, PollFlags::IN)).collect();
        let found = poll(&mut ready, Some(&pause)).unwrap();
        assert!(
            found > 0 || next < total,
            "{:?} leaves {} requests unanswered",
            server.kind,
            total as usize - times.len()
        );
        let is_ready: Vec<bool> = ready.iter().map(|polled| !polled.revents().is_empty()).collect();
        for at in busy.into_iter().zip(is_ready).filter_map(|(at, is_ready)| is_ready.then_some(at)) {
            for due in lanes[at].take() {
                times.push(due.elapsed());
                free.push_back(at);
            }
        }
    }
    let usage = meter.stop();
    let ([late], [p50, p99]) = (percentile(late, [99]), percentile(times, [50, 99]));
    Seen { operations: total.into(), usage, p50, p99, late }
}

/// A connection.
struct Lane {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// Answers that are not whole yet.
    held: Vec<u8>,
    /// When what is under way was due, with its stream in HTTP/2.
    asked: VecDeque<(u32, Instant)>,
    /// The last stream, of HTTP/2.
    last: Option<u32>,
}

impl Lane {
    fn open(server: &Server, protocol: &str) -> Lane {
        let config = wire::config(server, protocol, false);
        let socket = TcpStream::connect(server.ports.https).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let session = ClientConnection::new(config, ServerName::try_from("a.test").unwrap()).unwrap();
        let mut stream = StreamOwned::new(session, socket);
        let last = (protocol == "h2").then(|| {
            stream.write_all(&wire::h2_preface()).unwrap();
            1
        });
        stream.flush().unwrap();
        assert_eq!(stream.conn.alpn_protocol(), Some(protocol.as_bytes()), "protocol");
        let mut lane = Lane { stream, held: Vec::new(), asked: VecDeque::new(), last };
        // The first request of a connection costs more.
        lane.ask(Instant::now());
        while lane.take().is_empty() {}
        lane.stream.sock.set_nonblocking(true).unwrap();
        lane
    }

    fn ask(&mut self, due: Instant) {
        let stream = self.last.as_mut().map_or(0, |last| {
            *last += 2;
            *last
        });
        self.asked.push_back((stream, due));
        if stream > 0 {
            self.stream.write_all(&wire::h2_request(stream)).unwrap();
        } else {
            self.stream.write_all(wire::request("a.test", "/").as_bytes()).unwrap();
        }
        self.stream.flush().unwrap();
    }

    /// Receives once, and gives when those were due that are answered with it.
    fn take(&mut self) -> Vec<Instant> {
        match self.stream.conn.read_tls(&mut self.stream.sock) {
            Ok(0) => panic!("the connection was closed"),
            Ok(_) => self.stream.conn.process_new_packets().map(drop).unwrap(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Vec::new(),
            Err(error) => panic!("{error}"),
        }
        let read = self.stream.conn.reader().read_to_end(&mut self.held);
        assert!(
            read.is_ok() || read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
            "end of the connection"
        );
        if self.last.is_some() { self.take_h2() } else { self.take_h1() }
    }

    fn take_h1(&mut self) -> Vec<Instant> {
        let Some(end) = memchr::memmem::find(&self.held, b"\r\n\r\n") else { return Vec::new() };
        assert!(self.held.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&self.held));
        // Behind the head are the two bytes that the probe has seen.
        if self.held.len() < end + 6 {
            return Vec::new();
        }
        assert!(self.held.ends_with(b"\r\n\r\nok"), "{}", String::from_utf8_lossy(&self.held));
        self.held.clear();
        self.asked.pop_front().map(|(_, due)| due).into_iter().collect()
    }

    fn take_h2(&mut self) -> Vec<Instant> {
        const END_STREAM: u8 = 1;
        let mut answered = Vec::new();
        while let Some((head, rest)) = self.held.split_first_chunk::<9>() {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let Some(payload) = rest.get(..length) else { break };
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match kind {
                1 => assert!(wire::is_200(payload), "{payload:?}"),
                // Settings and pings want to be told that they have come.
                4 | 6 if flags & 1 == 0 => {
                    let told = frame(kind, 1, 0, if kind == 6 { payload } else { &[] });
                    self.stream.write_all(&told).unwrap();
                    self.stream.flush().unwrap();
                }
                3 | 7 => panic!("frame {kind}: {payload:?}"),
                _ => {}
            }
            if kind <= 1 && flags & END_STREAM != 0 {
                let at = self.asked.iter().position(|(asked, _)| *asked == stream).expect("a stream that was asked");
                answered.extend(self.asked.remove(at).map(|(_, due)| due));
            }
            self.held.drain(..9 + length);
        }
        answered
    }
}
