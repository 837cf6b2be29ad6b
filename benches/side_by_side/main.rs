//! What the same job costs Doorward, nginx and HAProxy: the proxy's own CPU time for each operation, side by side.
//!
//! ```sh
//! benches/side-by-side                             # everything, five rounds: about ten minutes
//! cargo bench --bench side_by_side -- get 3        # one scenario, three rounds
//! cargo bench --bench side_by_side -- get echo     # some: get h2 paced paced-h2 file large-file down upload handshake
//!                                                  # resumed echo broadcast idle crowd
//! cargo bench --bench side_by_side -- get h2 logs  # with access logs
//! ```
//!
//! Needs two cores, an open-file limit of 20,000, and of Debian the packages nginx-light, haproxy, wrk and
//! nghttp2-client; `benches/side-by-side` installs them. Load goes over loopback only. It fails where an answer has
//! another status or length than it should. `DOORWARD_BIN` names another binary of Doorward.
//!
//! # How it is measured
//!
//! Each proxy has one worker, pinned to one core; the load and the back end have another. The proxies have the same
//! certificate (ECDSA P-256), TLS 1.3 with X25519 and TLS_AES_128_GCM_SHA256 (the load offers nothing else), connections
//! to the back end that are kept, the fields X-Forwarded-For and X-Forwarded-Proto, and no access log; with `logs`
//! Doorward and nginx write one each, in the combined format, nginx in pieces of 64 KiB. The back end, a process of this
//! bench, speaks HTTP/1.1. In each round every proxy has its turn of two seconds. An operation is one
//! answer, one upload of 64 MiB, one connection with its first answer, one message that came back, or one that reached
//! one subscriber.
//!
//! # How to read it
//!
//! * CPU is what the kernel counted for all processes of the proxy, user and system, divided by the operations: the
//!   median of the rounds. It says how many cores a load needs, not how fast an answer is.
//! * The ratio is taken within each round. Only ratios of one run count: absolute figures drift by a quarter between runs
//!   on a shared machine, and differences below 7 % are noise.
//! * Busy is how much of its core the proxy used, until the slowest client was done. Well below 100 the load and the back
//!   end, which share the other core, could do no more.
//! * p99 is what the clients saw with a fixed number of requests under way all the time: it tells more of the throughput
//!   of all together than of the delay that a lightly loaded proxy adds. That is what the paced scenarios are for: 12,000
//!   requests a second are about half of what each proxy could do.
//! * Memory is Pss after the last round. Idle connections are measured once, each kind with fresh proxies: what 2,000 of
//!   them add to Pss, for each. A crowd is 9,000 sockets over TLS, and what the proxy still holds 10 s after they left.
//!
//! # What is not comparable
//!
//! * HAProxy serves no files.
//! * nginx is Debian's, and HAProxy too: older than what their projects offer, with the system's OpenSSL.
//! * nginx has it better than Debian's configuration: connections end after 1,000 requests there, uploads are written to
//!   disk before they are passed on, and so is what the client does not take at once. All that is switched off here.
//! * Doorward checks request heads, paths and frames, and watches rates of bodies, as it always does; the others do what
//!   they do by default.
//! * Tickets: each proxy sends as many as it does by default.
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
use std::time::Duration;

mod back_end;
mod configuration;
mod idle;
mod load;
mod server;
mod sockets;
mod table;
mod tools;
mod wire;

use load::Outcome;
use server::{Kind, Place, Server};

/// How long each proxy is loaded in each round.
const STEP: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;
/// Requests a second that are about half of what each proxy could do here.
const RATE: usize = 12_000;
/// Bytes of the small file.
const SMALL: usize = 1 << 10;
/// Bytes of the large file, and of the large answer of the back end.
const LARGE: usize = 10 << 20;

/// One job.
struct Scenario {
    name: &'static str,
    title: &'static str,
    /// The path that is asked, and how long its answer is, where that is always the same.
    probe: (&'static str, usize),
    run: fn(&Server) -> Outcome,
}

const SCENARIOS: [Scenario; 12] = [
    Scenario { name: "get", title: "HTTP/1.1 small GET", probe: ("/", 2), run: |s| tools::wrk(s, "/", 16) },
    Scenario { name: "h2", title: "HTTP/2 small GET", probe: ("/", 2), run: |s| tools::h2load(s, "/") },
    Scenario {
        name: "paced",
        title: "HTTP/1.1, 12,000 a second",
        probe: ("/", 2),
        run: |s| tools::paced(s, "http/1.1"),
    },
    Scenario { name: "paced-h2", title: "HTTP/2, 12,000 a second", probe: ("/", 2), run: |s| tools::paced(s, "h2") },
    Scenario {
        name: "file",
        title: "1 KiB file",
        probe: ("/files/small.bin", SMALL),
        run: |s| tools::wrk(s, "/files/small.bin", 16),
    },
    Scenario {
        name: "large-file",
        title: "10 MiB file",
        probe: ("/files/large.bin", LARGE),
        run: |s| load::download(s, "/files/large.bin"),
    },
    Scenario { name: "down", title: "10 MiB down", probe: ("/large", LARGE), run: |s| load::download(s, "/large") },
    Scenario { name: "upload", title: "64 MiB up", probe: ("/", 2), run: load::upload },
    Scenario { name: "handshake", title: "full handshake + GET", probe: ("/", 2), run: |s| load::handshake(s, false) },
    Scenario { name: "resumed", title: "resumed handshake + GET", probe: ("/", 2), run: |s| load::handshake(s, true) },
    Scenario { name: "echo", title: "WebSocket echo, 128 B", probe: ("/", 2), run: sockets::echo },
    Scenario { name: "broadcast", title: "WebSocket broadcast, 128 B", probe: ("/", 2), run: sockets::broadcast },
];

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    server::raise_open_files();
    if arguments.first().is_some_and(|argument| argument == "back-end") {
        return back_end::run();
    }
    // `cargo test --all-targets` runs it too, and does not want to wait.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    arguments.retain(|argument| !argument.starts_with("--"));
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    arguments.retain(|argument| argument.parse::<usize>().is_err());
    let names = || SCENARIOS.iter().map(|scenario| scenario.name).chain(["idle", "crowd", "all", "logs"]);
    // `cargo bench` without a name runs it too.
    if rounds == 0 || arguments.is_empty() || !arguments.iter().all(|word| names().any(|name| name == word)) {
        println!("cargo bench --bench side_by_side -- {} [rounds]", names().collect::<Vec<_>>().join("|"));
        return;
    }
    let is_wanted = |name: &str| arguments.iter().any(|word| word == name || (word == "all" && name != "logs"));

    let proxy_core = server::pin();
    let folder = tempfile::tempdir().unwrap();
    server::write_files(folder.path());
    let back_end = back_end::start();
    let logs = is_wanted("logs");
    let place = Place { folder: folder.path(), back_end: back_end.address, core: proxy_core, logs };
    table::versions();
    if SCENARIOS.iter().any(|scenario| is_wanted(scenario.name)) {
        table::head();
    }
    for scenario in SCENARIOS.iter().filter(|scenario| is_wanted(scenario.name)) {
        measure(scenario, rounds, &place);
    }
    if is_wanted("idle") {
        idle::measure(&place);
    }
    if is_wanted("crowd") {
        idle::crowd(&place);
    }
}

/// Starts the proxies, gives each its turn in each round, and prints a line.
fn measure(scenario: &Scenario, rounds: usize, place: &Place) {
    let has_it = |kind: &Kind| *kind != Kind::Haproxy || !scenario.probe.0.starts_with("/files/");
    let servers: Vec<Option<Server>> =
        Kind::ALL.iter().map(|kind| has_it(kind).then(|| Server::start(*kind, place))).collect();
    for server in servers.iter().flatten() {
        load::probe(server, scenario.probe.0, scenario.probe.1);
    }
    let mut columns: Vec<Vec<Outcome>> = servers.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        // Who is first changes, so that what drifts with time favours nobody.
        for turn in 0..servers.len() {
            let at = (round + turn) % servers.len();
            if let Some(server) = &servers[at] {
                let outcome = (scenario.run)(server);
                assert!(outcome.operations > 0, "{}: {:?} did nothing", scenario.name, server.kind);
                columns[at].push(outcome);
            }
        }
    }
    let memory: Vec<Option<u64>> = servers.iter().map(|server| server.as_ref().map(Server::memory)).collect();
    table::line(scenario.title, &columns, &memory);
}

/// Runs a task of the load on this thread.
fn on_a_worker<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task)
}

/// Where the files are that the proxies serve.
fn files(folder: &Path) -> std::path::PathBuf {
    folder.join("files")
}
