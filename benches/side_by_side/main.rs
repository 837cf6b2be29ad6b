//! What the same job costs Doorward, nginx, HAProxy and Caddy: the proxy's own CPU time for each operation, side by side.
//!
//! ```sh
//! benches/side-by-side                             # everything, five rounds: about half an hour
//! benches/side-by-side get 3                       # one scenario, three rounds
//! benches/side-by-side get echo                    # some: get h2 paced paced-h2 file large-file down upload php
//!                                                  # php-kept handshake resumed echo broadcast flood routes sites idle
//!                                                  # crowd
//! benches/side-by-side get h2 logs                 # with access logs
//! ```
//!
//! Needs two cores, an open-file limit of 20,000, and of Debian the packages nginx-light, haproxy, php8.2-fpm, wrk and
//! nghttp2-client; `benches/side-by-side` installs them, and caddy, which is left out where it is missing. Load goes over
//! loopback only. It fails where an answer has another status or length than it should. `DOORWARD_BIN` names another
//! binary of Doorward; `cargo bench` by itself takes one that is built for tests, and without the profile.
//!
//! # How it is measured
//!
//! Each proxy has one worker, pinned to one core; the load and the back end have another. The proxies have the same
//! certificate (ECDSA P-256), TLS 1.3 with X25519 and TLS_AES_128_GCM_SHA256 (the load offers nothing else), connections
//! to the back end that are kept, the fields X-Forwarded-For and X-Forwarded-Proto, and no access log; with `logs`
//! Doorward and nginx write one each, in the combined format, nginx in pieces of 64 KiB. The back end, a process of this
//! bench, speaks HTTP/1.1. PHP-FPM listens on a unix socket, runs a script of one line, has more workers than there are
//! clients and shares the core of the load: once each request has a FastCGI connection of its own, and once as many are
//! kept as there are clients. In each round every proxy has its turn of two seconds. An operation is one answer, one
//! upload of 1 GiB, one connection with its first answer, one message that came back, or one that reached one subscriber.
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
//!   requests a second, about half of what Doorward, nginx and HAProxy can do, evenly spaced, and timed from when each was
//!   due, sent or not. The last column is how late the load itself was: it should be far below the p50. Caddy is at its
//!   limit there.
//! * Memory is Pss after the last round. Idle connections are measured once, each kind with fresh proxies: what 2,000 of
//!   them add to Pss, for each. A crowd is 9,000 sockets, with TLS and without, and what the
//!   proxy still holds 10 s after they left.
//!   Pss moves where others on the machine start or end programs that share libraries with a proxy.
//! * Flood: the clients of the flood give way to the open sockets on the core that they share, so that what these wait for
//!   is the proxy. That Doorward's sockets are answered in time is a test as well: `room_crowds` of `tests/hostile`.
//! * Routes: whether the cost of a request grows with the file. The request is for the last of the routes, of which one in
//!   two takes a path and the others all below one.
//! * Sites: what a reload costs with many certificates, whether those who ask meanwhile have to wait, and whether it leaves
//!   something behind. A hundred reloads under 5,000 sockets are a test: `sockets_at_scale` of `tests/e2e`, which with
//!   `DOORWARD_FULL=1` tells the memory before and after.
//!
//! # What is not comparable
//!
//! * HAProxy serves no files, and looks for none where there is PHP: it takes every path for a script, the others look
//!   first whether a file is there.
//! * nginx is Debian's, and so are HAProxy and Caddy: older than what their projects offer, the first two with the
//!   system's OpenSSL.
//! * Caddy keeps no FastCGI connections, and writes no access log here. One of its threads runs Go at a time
//!   (GOMAXPROCS=1); others wait in the kernel.
//! * nginx has it better than Debian's configuration: connections end after 1,000 requests there, uploads are written to
//!   disk before they are passed on, and so is what the client does not take at once. All that is switched off here.
//! * HAProxy has all routes in one map of prefixes, and all sites in one map of hosts, as its users do.
//! * A reload starts a new worker of nginx and of HAProxy, and the old one ends when its connections have; Doorward and
//!   Caddy stay one process. Caddy gets the new file over its admin interface, which is on for that alone.
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
mod flood;
mod fpm;
mod growth;
mod idle;
mod load;
mod paced;
mod scenarios;
mod server;
mod sockets;
mod table;
mod tools;
mod wire;

use scenarios::SCENARIOS;
use server::{Kind, Place};

/// How long each proxy is loaded in each round.
const STEP: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;
/// Bytes of the small file.
const SMALL: usize = 1 << 10;
/// Bytes of the large file, and of the large answer of the back end.
const LARGE: usize = 10 << 20;

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
    let names = || {
        SCENARIOS
            .iter()
            .map(|scenario| scenario.name)
            .chain(["paced", "paced-h2", "flood", "routes", "sites", "idle", "crowd", "all", "logs"])
    };
    // `cargo bench` without a name runs it too.
    if rounds == 0 || arguments.is_empty() || !arguments.iter().all(|word| names().any(|name| name == word)) {
        println!("cargo bench --bench side_by_side -- {} [rounds]", names().collect::<Vec<_>>().join("|"));
        return;
    }
    let is_wanted = |name: &str| arguments.iter().any(|word| word == name || (word == "all" && name != "logs"));

    let proxy_core = server::pin();
    let folder = tempfile::tempdir().unwrap();
    server::write_files(folder.path(), if is_wanted("sites") { growth::SITES } else { 0 });
    let back_end = back_end::start();
    let _fpm = ["php", "php-kept"].into_iter().any(is_wanted).then(|| fpm::start(folder.path()));
    let logs = is_wanted("logs");
    let kinds = Kind::all();
    let place = Place {
        folder: folder.path(),
        kinds: &kinds,
        back_end: back_end.address,
        core: proxy_core,
        logs,
        sites: 0,
        routes: 0,
        revision: 0,
    };
    table::versions(&kinds);
    if SCENARIOS.iter().any(|scenario| is_wanted(scenario.name)) {
        table::head(&kinds);
    }
    for scenario in SCENARIOS.iter().filter(|scenario| is_wanted(scenario.name)) {
        scenarios::measure(scenario, rounds, &place);
    }
    let paced: Vec<_> = paced::NAMES.into_iter().filter(|(name, ..)| is_wanted(name)).collect();
    if !paced.is_empty() {
        paced::head(&place);
    }
    for (_, title, protocol) in paced {
        paced::measure(title, protocol, &place, rounds);
    }
    if is_wanted("flood") {
        flood::measure(&place);
    }
    if is_wanted("routes") {
        growth::routes(&place, rounds);
    }
    if is_wanted("sites") {
        growth::sites(&place);
    }
    if is_wanted("idle") {
        idle::measure(&place);
    }
    if is_wanted("crowd") {
        idle::crowd(&place);
    }
}

/// Runs a task of the load on this thread.
fn on_a_worker<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task)
}

/// Where the files are that the proxies serve.
fn files(folder: &Path) -> std::path::PathBuf {
    folder.join("files")
}
