//! An ordinary client while each attack runs, and what the attack costs the server: Doorward's, beside nginx's.
//!
//! ```sh
//! cargo bench --bench under_attack -- all             # everything, about eight minutes
//! cargo bench --bench under_attack -- slow            # some of the attacks: slow, load, crowds, floods
//! cargo bench --bench under_attack -- slow doorward   # against one of the two servers: doorward, nginx
//! ```
//!
//! Both servers have one worker, the same certificate and the same small back end, which is a thread of this process. The
//! ordinary client is at another address than the attackers. It asks every 20 ms on a connection that it keeps, and once
//! a second on a new one. Needs an open-file limit of 4,096, and of Debian the packages nginx-light, slowhttptest and
//! nghttp2-client; `crowds` needs root, who may set limits of a process. All of it stays on this machine.
//!
//! Ends with a non-zero status where Doorward breaks a promise: see [`promises`].
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that meets the unexpected has to fail"
)]

use std::path::Path;
use std::time::{Duration, Instant};

#[path = "../tests/hostile/anyone.rs"]
mod anyone;
#[path = "../tests/hostile/attack.rs"]
mod attack;
#[path = "../tests/hostile/attack_h2.rs"]
mod attack_h2;
#[path = "under_attack/back_end.rs"]
mod back_end;
#[path = "under_attack/client.rs"]
mod client;
#[path = "under_attack/crowds.rs"]
mod crowds;
#[path = "../tests/hostile/h2_client.rs"]
#[allow(dead_code, reason = "the attacks need little of it")]
mod h2_client;
#[path = "under_attack/server.rs"]
mod server;
#[path = "../tests/hostile/tls_client.rs"]
mod tls_client;
#[path = "under_attack/tools.rs"]
mod tools;

use attack::{Bounds, Target};
use client::{Client, Seen};
use server::Server;

/// Memory that Doorward has for itself at most, whatever is thrown at it: 256 KiB for each of 500 clients, which is what
/// SECURITY.md says of one that takes nothing of its answer.
const MEMORY: u64 = 500 * (256 << 10);

/// A new connection of the ordinary client has its answer within this.
const NEW: Duration = Duration::from_secs(3);

/// What is thrown, and what became of it.
struct Assault {
    group: &'static str,
    name: String,
    run: Box<dyn Fn(&Server) -> Became>,
    promise: Promise,
}

#[derive(Clone, Copy, PartialEq)]
enum Promise {
    /// The ordinary client is answered.
    Answered,
    /// The attack is ended soon and costs next to nothing.
    Ended,
    /// Nothing spins without descriptors, and all is well soon after.
    Frugal,
}

/// What became of an attack.
#[derive(Default)]
struct Became {
    text: String,
    /// Frames, connections, or requests: without any there was no attack.
    thrown: u64,
    /// The time until the server said GOAWAY.
    ended: Option<Duration>,
    dearth: Option<Dearth>,
}

/// A server without descriptors.
#[derive(Clone, Copy)]
struct Dearth {
    /// Time on the processor, beyond what the ordinary client costs.
    processor: Duration,
    /// Until all who waited were answered.
    recovery: Duration,
    /// Who were not.
    left: usize,
}

/// The groups of attacks.
const GROUPS: [&str; 4] = ["slow", "load", "crowds", "floods"];

const SERVERS: [&str; 2] = ["doorward", "nginx"];

/// A line of the table.
struct Line {
    attack: String,
    promise: Promise,
    became: Became,
    processor: Duration,
    memory: u64,
    seen: Seen,
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs it too, and does not want to wait.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    arguments.retain(|argument| !argument.starts_with("--"));
    let is_known = |word: &String| word == "all" || [&GROUPS[..], &SERVERS].concat().contains(&word.as_str());
    // `cargo bench` without a name runs it too.
    if !arguments.iter().all(is_known) || !arguments.iter().any(|word| word == "all" || GROUPS.contains(&word.as_str()))
    {
        println!("cargo bench --bench under_attack -- all|slow|load|crowds|floods [doorward|nginx]");
        return;
    }
    let is_wanted = |word: &str, of: &[&str]| {
        let named = arguments.iter().any(|argument| of.contains(&argument.as_str()));
        !named || arguments.iter().any(|argument| argument == word)
    };
    raise_open_files();
    let folder = tempfile::tempdir().unwrap();
    server::write_certificate(folder.path());
    let back_end = back_end::start();
    let mut broken = Vec::new();
    for name in SERVERS {
        if is_wanted(name, &SERVERS) {
            let assaults: Vec<_> = assaults().into_iter().filter(|a| is_wanted(a.group, &GROUPS)).collect();
            let lines = measure(name, folder.path(), back_end, &assaults);
            if name == "doorward" {
                broken = lines.iter().flat_map(promises).collect();
            }
        }
    }
    if !broken.is_empty() {
        eprintln!("\nbroken promises:\n{}", broken.join("\n"));
        std::process::exit(1);
    }
}

/// Everything that is thrown, in this order.
fn assaults() -> Vec<Assault> {
    let assault = |group, name: &str, promise, run: Box<dyn Fn(&Server) -> Became>| Assault {
        group,
        name: name.to_owned(),
        run,
        promise,
    };
    let mut all = vec![
        assault(
            "slow",
            "none",
            Promise::Answered,
            Box::new(|_| {
                std::thread::sleep(Duration::from_secs(3));
                Became { thrown: 1, ..Became::default() }
            }),
        ),
        assault(
            "slow",
            "slowhttptest -H: slow heads",
            Promise::Answered,
            Box::new(|s| tools::slow(s, &["-H", "-i", "5"])),
        ),
        assault(
            "slow",
            "slowhttptest -B: slow bodies",
            Promise::Answered,
            Box::new(|s| tools::slow(s, &["-B", "-i", "5"])),
        ),
        assault(
            "slow",
            "slowhttptest -R: ranges",
            Promise::Answered,
            Box::new(|s| tools::slow(s, &["-R", "-a", "1", "-b", "3000"])),
        ),
        assault(
            "slow",
            "slowhttptest -X: slow reading",
            Promise::Answered,
            Box::new(|s| tools::slow(s, &["-X", "-k", "3"])),
        ),
        assault("load", "h2load: 500 connections", Promise::Answered, Box::new(|s| tools::h2load(s, 500, 1))),
        assault(
            "load",
            "h2load: 8 connections, 100 streams each",
            Promise::Answered,
            Box::new(|s| tools::h2load(s, 8, 100)),
        ),
        assault("crowds", "full handshakes, 3 threads", Promise::Answered, Box::new(crowds::handshakes)),
        assault("crowds", "500 silent connections", Promise::Answered, Box::new(crowds::silent)),
        assault("crowds", "no descriptors", Promise::Frugal, Box::new(crowds::no_descriptors)),
    ];
    for attack in attack_h2::FLOODS {
        all.push(assault(
            "floods",
            &format!("HTTP/2: {}", attack.name),
            Promise::Ended,
            Box::new(move |server: &Server| flood(server, attack)),
        ));
    }
    all
}

fn flood(server: &Server, flood: &attack_h2::Flood) -> Became {
    // What is on its way is counted as sent: more would say how much the kernel takes, not what the server bears.
    let bounds = Bounds { time: Duration::from_secs(5), frames: 10_000 };
    let ending = (flood.run)(Target { address: server.https }, bounds);
    let frames = ending.outcome.sent;
    let text = match (ending.outcome.ended, ending.goaway) {
        (Some(after), Some(_)) => format!("ended after {:.2} s, {frames} frames", after.as_secs_f64()),
        (Some(after), None) => format!("closed without GOAWAY after {:.2} s, {frames} frames", after.as_secs_f64()),
        (None, _) => format!("goes on after 5 s, {frames} frames"),
    };
    Became { text, thrown: frames, ended: ending.outcome.ended.filter(|_| ending.goaway.is_some()), dearth: None }
}

fn measure(name: &str, folder: &Path, back_end: std::net::SocketAddr, assaults: &[Assault]) -> Vec<Line> {
    println!(
        "\n### {name}\n\n| attack | what came of it | CPU, s | peak memory, MiB | p50, ms | p99, ms | max, ms | new connection, max, ms | failures |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    let server = Server::start(name, folder, back_end);
    let mut lines = Vec::new();
    for assault in assaults {
        let client = Client::start(server.https);
        std::thread::sleep(Duration::from_millis(300));
        let memory = server.watch_memory();
        let (before, begun) = (server.processor_time(), Instant::now());
        let became = (assault.run)(&server);
        let processor = became.dearth.map_or_else(|| server.processor_time() - before, |dearth| dearth.processor);
        std::thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
        let line = Line {
            attack: assault.name.clone(),
            promise: assault.promise,
            became,
            processor,
            memory: memory.stop(),
            seen: client.stop(),
        };
        println!("{line}");
        lines.push(line);
    }
    lines
}

/// What is promised of Doorward, and was not kept.
fn promises(line: &Line) -> Vec<String> {
    let mut broken = Vec::new();
    let mut hold = |kept: bool, what: &str| {
        if !kept {
            broken.push(format!("{}: {what}", line.attack));
        }
    };
    let (seen, became) = (&line.seen, &line.became);
    hold(line.memory <= MEMORY, &format!("{} MiB of memory", line.memory >> 20));
    hold(became.thrown > 0 || line.promise == Promise::Frugal, "nothing was thrown");
    // Who has a connection is served whatever happens.
    let within = Duration::from_millis(if line.promise == Promise::Ended { 250 } else { 1000 });
    hold(seen.p99() < within, &format!("p99 is {:?}", seen.p99()));
    hold(seen.failures == 0, &format!("{} requests failed", seen.failures));
    if line.promise != Promise::Frugal {
        hold(seen.new_failures == 0, &format!("{} new connections failed", seen.new_failures));
        hold(seen.new_max < NEW, &format!("a new connection took {:?}", seen.new_max));
    }
    match line.promise {
        Promise::Answered => {}
        Promise::Ended => {
            let soon = became.ended.is_some_and(|after| after <= Duration::from_secs(2));
            // The last few go out together.
            hold(soon && (2..10_010).contains(&became.thrown), &became.text);
            hold(line.processor <= Duration::from_millis(200), &format!("{:?} of processor time", line.processor));
        }
        Promise::Frugal => match became.dearth {
            Some(Dearth { processor, recovery, left }) => {
                hold(processor <= Duration::from_millis(50), &format!("{processor:?} of processor time in 3 s"));
                hold(recovery < Duration::from_secs(1), &format!("recovery took {recovery:?}"));
                hold(left == 0, &format!("{left} of 50 that waited were not answered"));
            }
            None => hold(false, "it was not measured"),
        },
    }
    broken
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |duration: Duration| format!("{:.1}", duration.as_secs_f64() * 1000.0);
        let seen = &self.seen;
        write!(f, "| {} | {} ", self.attack, self.became.text)?;
        write!(f, "| {:.2} | {:.1} ", self.processor.as_secs_f64(), self.memory as f64 / f64::from(1 << 20))?;
        write!(f, "| {} | {} | {} ", ms(seen.p50()), ms(seen.p99()), ms(seen.max()))?;
        write!(f, "| {} | {} of {} |", ms(seen.new_max), seen.failures + seen.new_failures, seen.asked())
    }
}

fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
