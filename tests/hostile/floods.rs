//! Floods over HTTP/2: each is ended within 10,000 frames, and everybody else is served meanwhile.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::attack::{Bounds, Target};
use crate::attack_h2::{Ending, FLOODS, Flood};
use crate::back_end::BackEnd;
use crate::edge::{self, Edge, eventually};
use crate::h2_client::*;
use crate::machine::promised;

/// Frames within which every flood is over.
const MOST_FRAMES: u64 = 10_000;

/// Requests of one flood that a back end may see: a thousand resets within ten seconds, and what was open with them.
const MOST_REQUESTS: usize = 1_200;

/// What the floods of a test may leave in memory, in KiB: a debug build under all of them at once.
const MOST_MEMORY: u64 = 64 << 10;

/// RFC 9113, section 7.
const PROTOCOL_ERROR: u32 = 1;
const STREAM_CLOSED: u32 = 5;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The floods of each test, by a part of their names.
const RESETS: &[&str] = &["rapid reset", "streams beyond", "made you reset", "RST_STREAM"];
const IDLE: &[&str] = &["SETTINGS", "PING", "PRIORITY of", "WINDOW_UPDATE", "unknown", "GOAWAY", "PUSH_PROMISE"];
const CONTENT: &[&str] = &["CONTINUATION", " DATA", "DATA o", "HPACK", "tiny", "huge", "churn", "one byte at a time"];

#[test]
fn resets_of_either_side_end_the_connection_and_spare_the_back_end() {
    throw(RESETS);
}

#[test]
fn frames_that_ask_for_nothing_end_the_connection() {
    throw(IDLE);
}

#[test]
fn fields_without_end_and_content_without_bytes_end_the_connection() {
    throw(CONTENT);
}

#[test]
fn every_flood_is_thrown() {
    let thrown = |name: &str| [RESETS, IDLE, CONTENT].concat().iter().any(|part| name.contains(part));
    let missed: Vec<_> = FLOODS.iter().map(|flood| flood.name).filter(|name| !thrown(name)).collect();
    assert!(missed.is_empty(), "{missed:?}");
}

/// Runs the floods whose names begin like one of `names` against one edge, with ordinary clients beside them.
fn throw(names: &[&str]) {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    // Some are opened with the first request.
    let mut first = Client::connect(edge.https);
    first.ask(1, &request("GET", "/x", &[]), None);
    assert_eq!(first.end(1), End::Answer(200, 2));
    drop(first);
    let (descriptors, memory) = (edge.descriptors(), edge.memory());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (http, https, stop) = (edge.http, edge.https, &stop);
        let ordinary = [scope.spawn(move || ask_http1(http, stop)), scope.spawn(move || ask_http2(https, stop))];
        let stop = Stop(stop);
        for flood in FLOODS.iter().filter(|flood| names.iter().any(|name| flood.name.contains(name))) {
            let busy = edge.processor_time();
            let bounds = Bounds { time: Duration::from_secs(15), frames: MOST_FRAMES };
            let ending = (flood.run)(Target { address: edge.https }, bounds);
            let busy = edge.processor_time() - busy;
            let asked = back_end.take().iter().filter(|seen| !seen.head.contains("/ordinary")).count();
            println!("{:45} {ending:?}, {busy:?} of processor time, {asked} requests", flood.name);
            check(flood, ending, asked);
        }
        drop(stop);
        for client in ordinary {
            let mut times = client.join().expect("an ordinary client is served");
            times.sort_unstable();
            println!("ordinary client: {} requests, at most {:?}", times.len(), times.last());
            assert!(!times.is_empty() && times.last() < Some(&promised(Duration::from_secs(5))), "{:?}", times.last());
        }
    });
    let grown = edge.memory().saturating_sub(memory);
    assert!(grown < MOST_MEMORY, "{grown} KiB");
    eventually("no descriptors are left", || edge.descriptors() <= descriptors + back_end.open());
}

/// Ends the ordinary clients, also where a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn check(flood: &Flood, ending: Ending, asked: usize) {
    let name = flood.name;
    assert!(ending.outcome.sent > 1, "{name}: nothing was thrown: {ending:?}");
    assert!(ending.outcome.ended.is_some(), "{name}: {ending:?}");
    assert!(ending.outcome.sent <= MOST_FRAMES + 200, "{name}: {ending:?}");
    assert!(asked <= MOST_REQUESTS, "{name}: {asked} requests");
    let expected: &[u32] = match name {
        // Not allowed at all (RFC 9113, sections 5.1, 6.4, 6.5.3, 6.6 and 6.9).
        "made you reset: window of zero"
        | "made you reset: DATA behind the end"
        | "made you reset: HEADERS behind the end"
        | "made you reset: PRIORITY of four bytes"
        | "made you reset: malformed request"
        | "SETTINGS acknowledgements"
        | "RST_STREAM of an idle stream"
        | "PUSH_PROMISE from a client" => &[PROTOCOL_ERROR, STREAM_CLOSED],
        // The client said that it would go, and nothing was under way.
        "GOAWAY" => &[0, ENHANCE_YOUR_CALM],
        _ => &[ENHANCE_YOUR_CALM],
    };
    assert!(ending.goaway.is_some_and(|code| expected.contains(&code)), "{name}: {ending:?}");
}

fn ask_http1(http: SocketAddr, stop: &AtomicBool) -> Vec<Duration> {
    let mut client = edge::connect(http);
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        edge::send(&mut client, b"GET /ordinary HTTP/1.1\r\nhost: a.test\r\n\r\n");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nok") {
            let mut bytes = [0; 1024];
            let n = std::io::Read::read(&mut client, &mut bytes).expect("an answer");
            assert!(n > 0, "the connection ended behind {:?}", String::from_utf8_lossy(&answer));
            answer.extend(&bytes[..n]);
        }
        times.push(begun.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
    times
}

fn ask_http2(https: SocketAddr, stop: &AtomicBool) -> Vec<Duration> {
    let mut client = Client::connect(https);
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let stream = 2 * u32::try_from(times.len()).expect("few") + 1;
        let begun = Instant::now();
        client.ask(stream, &request("GET", "/ordinary", &[]), None);
        assert_eq!(client.end(stream), End::Answer(200, 2));
        times.push(begun.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
    times
}

#[test]
fn requests_whose_content_never_comes_end_at_the_deadline_for_it() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[timeouts]\nbody = \"2s\"");
    let mut client = Client::connect(edge.https);
    for n in 0..100 {
        client.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &block(&request("POST", "/x", &[]))));
    }
    let mut over = 0;
    while over < 100 {
        let (kind, flags, ..) = client.frame().expect("the connection lives");
        over += usize::from(kind == RESET || kind == HEADERS && flags & END_STREAM != 0);
        over += usize::from(kind == DATA && flags & END_STREAM != 0);
    }
    eventually("the back ends are let go", || back_end.open() == 0);
    client.ask(201, &request("GET", "/x", &[]), None);
    assert_eq!(client.end(201), End::Answer(200, 2));
}

#[test]
fn a_hundred_streams_without_window_hold_little_and_are_given_up() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[timeouts]\nwrite = \"3s\"");
    let memory = edge.memory();
    let mut client = Client::connect(edge.https);
    // SETTINGS_INITIAL_WINDOW_SIZE = 0.
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for n in 0..100 {
        client.ask(2 * n + 1, &request("GET", "/endless", &[]), None);
    }
    eventually("the back ends are asked", || back_end.open() >= 100);
    let grown = edge.memory().saturating_sub(memory);
    println!("100 answers that wait for window: {grown} KiB");
    assert!(grown < 32 << 10, "{grown} KiB");
    eventually("the back ends are let go", || back_end.open() == 0);
    let mut reset = 0;
    while reset < 100 {
        let (kind, ..) = client.frame().expect("the connection lives");
        reset += usize::from(kind == RESET);
    }
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]));
    client.ask(201, &request("GET", "/x", &[]), None);
    assert_eq!(client.end(201), End::Answer(200, 2));
}

#[test]
fn a_client_that_grants_everything_and_reads_nothing_holds_a_bounded_buffer() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[timeouts]\nwrite = \"1s\"");
    let memory = edge.memory();
    let mut client = Client::connect(edge.https);
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
    client.send(&frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes()));
    for n in 0..64 {
        client.ask(2 * n + 1, &request("GET", "/endless", &[]), None);
    }
    eventually("the back ends are asked", || back_end.open() >= 64);
    let most = Cell::new(0);
    eventually("the connection is given up", || {
        most.set(most.get().max(edge.memory().saturating_sub(memory)));
        back_end.open() == 0
    });
    println!("64 answers that nobody reads: {} KiB", most.get());
    assert!(most.get() < 32 << 10, "{} KiB", most.get());
}
