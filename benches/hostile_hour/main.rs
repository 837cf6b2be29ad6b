//! An hour of honest and hostile load at once: what the server's memory and descriptors do, and whether an honest
//! client ever notices.
//!
//! ```sh
//! cargo bench --bench hostile_hour -- 3600         # the hour, in seconds
//! cargo bench --bench hostile_hour -- 300          # five minutes; a minute at least
//! cargo bench --bench hostile_hour -- 300 42       # with the seed of a run before
//! ```
//!
//! A table is printed, a line for each minute, and samples of every ten seconds go to target/hostile-hour.csv. It
//! exits with 1 where memory grows after the warm-up, a descriptor is left over, one honest request fails, of a minute
//! one in a hundred takes a second, or an attack never ran. It has to look into the server's process, whose memory is
//! nobody else's: run it as root. Where Debian's php-fpm is installed, it takes part.
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

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::client::Net;
use crate::edge::Edge;
use crate::ledger::Ledger;
use crate::report::Verdicts;
use crate::sample::{Sample, descriptors};
use crate::wire::Field;

#[path = "../../tests/hostile/anyone.rs"]
mod anyone;
#[path = "../../tests/hostile/attack.rs"]
mod attack;
#[path = "../../tests/hostile/attack_h2.rs"]
mod attack_h2;
mod back_end;
mod client;
mod edge;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/hostile/h2_client.rs"]
mod h2_client;
mod honest;
mod hostile;
mod ledger;
mod quick;
mod report;
mod sample;
mod slow;
#[path = "../../tests/hostile/tls_client.rs"]
mod tls_client;
mod wire;

const SAMPLE: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);
/// Between two renewals of the certificate; less in a short run.
const RENEWAL: Duration = Duration::from_secs(150);
/// Until what idles on either side has been let go.
const IDLE: Duration = Duration::from_secs(90);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs it too, and does not want to wait.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let mut numbers = arguments.iter().filter_map(|argument| argument.parse::<u64>().ok());
    // `cargo bench` without a name runs it too.
    let Some(seconds) = numbers.next() else {
        println!("cargo bench --bench hostile_hour -- SECONDS [SEED]");
        return;
    };
    let length = Duration::from_secs(seconds).max(MINUTE);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = numbers.next().unwrap_or(now.as_secs() % 1_000_000);
    raise_open_files();
    let verdicts = run(length, seed);
    if !verdicts.print() {
        std::process::exit(1);
    }
}

fn run(length: Duration, seed: u64) -> Verdicts {
    let smuggled = Arc::<AtomicU64>::default();
    let mut edge = Edge::start(back_end::start(smuggled.clone()));
    let field = Field { http: edge.http, https: edge.https };
    println!(
        "{} s with seed {seed}; PHP-FPM {}\n",
        length.as_secs(),
        if edge.php { "takes part" } else { "is not installed" }
    );
    let before = settle(&edge, seed);
    let mut verdicts = Verdicts::new(before, length, hostile::kinds(attack_h2::FLOODS));
    let ledger = Arc::new(Ledger::new());
    let honest = honest::start(Net::of(&edge, ledger.clone()), seed);
    let attackers = hostile::start(&ledger, field, attack_h2::FLOODS, seed);
    watch(&mut edge, &ledger, length, &mut verdicts);

    ledger.hostile_ends.store(true, Ordering::Relaxed);
    for attacker in attackers {
        attacker.join().unwrap();
    }
    // What came since the last whole minute.
    verdicts.end_minute(&mut ledger.take());
    ledger.honest_ends.store(true, Ordering::Relaxed);
    honest.join().unwrap();
    println!("\nThe load has ended after {:.0} s.", ledger.elapsed().as_secs_f32());
    let end = Instant::now() + IDLE;
    while Instant::now() < end && descriptors(edge.id()) != verdicts.before {
        std::thread::sleep(Duration::from_secs(1));
    }
    verdicts.after = descriptors(edge.id());
    verdicts.last = Some(Sample::take(edge.id(), ledger.elapsed(), edge.tunnels()));
    verdicts.smuggled = smuggled.load(Ordering::Relaxed);
    verdicts.panics = edge.panics.load(Ordering::Relaxed);
    verdicts.said = edge.said.lock().unwrap().clone();
    verdicts.own = sample::processor(std::process::id());
    verdicts.runs = edge.runs();
    verdicts.ends = edge.stop();
    verdicts.close(&ledger);
    verdicts
}

/// What the server holds when it has served everything once, and rests.
fn settle(edge: &Edge, seed: u64) -> BTreeMap<String, usize> {
    let ledger = Arc::new(Ledger::new());
    let honest = honest::start(Net::of(edge, ledger.clone()), seed);
    std::thread::sleep(Duration::from_secs(10));
    ledger.honest_ends.store(true, Ordering::Relaxed);
    honest.join().unwrap();
    let (mut held, mut since) = (descriptors(edge.id()), Instant::now());
    while since.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(500));
        let now = descriptors(edge.id());
        if now != held {
            (held, since) = (now, Instant::now());
        }
    }
    assert!(!held.is_empty(), "only root, or who has CAP_SYS_PTRACE, may look into the server");
    held
}

/// The hour itself: samples, and what an administrator does meanwhile.
fn watch(edge: &mut Edge, ledger: &Ledger, length: Duration, verdicts: &mut Verdicts) {
    let csv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/hostile-hour.csv");
    std::fs::create_dir_all(csv.parent().unwrap()).unwrap();
    let mut csv = std::fs::File::create(csv).unwrap();
    writeln!(csv, "{},requests,failures", Sample::COLUMNS).unwrap();
    report::print_head();
    let renewals = RENEWAL.min(length / 3);
    let (mut sample, mut minute, mut renewal) = (Duration::ZERO, MINUTE, renewals);
    let (mut reload, mut rotation, mut look) = (MINUTE / 3, MINUTE * 2 / 3, Duration::MAX);
    while ledger.elapsed() < length && edge.runs() {
        let now = ledger.elapsed();
        let due = |next: &mut Duration, every: Duration| {
            let due = now >= *next;
            if due {
                *next += every;
            }
            due
        };
        if due(&mut sample, SAMPLE) {
            let sample = Sample::take(edge.id(), now, edge.tunnels());
            let (requests, failures) = (&ledger.requests, &ledger.failed);
            let (requests, failures) = (requests.load(Ordering::Relaxed), failures.load(Ordering::Relaxed));
            writeln!(csv, "{},{requests},{failures}", sample.line()).unwrap();
            verdicts.samples.push(sample);
        }
        if due(&mut minute, MINUTE) {
            verdicts.end_minute(&mut ledger.take());
        }
        if due(&mut reload, MINUTE) {
            verdicts.reloads += 1;
            edge.reload();
        }
        if due(&mut renewal, renewals) {
            verdicts.renewals += 1;
            edge.renew();
        }
        if due(&mut rotation, MINUTE) {
            verdicts.rotations += 1;
            edge.rotate();
            look = now + SAMPLE;
        }
        if now >= look {
            verdicts.logs_missing += u64::from(!edge.has_log());
            look = Duration::MAX;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
