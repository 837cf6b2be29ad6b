//! Who attacks, in which order, and how often.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::attack::{Bounds, Target};
use crate::attack_h2;
use crate::ledger::{Chance, Ledger, Tally};
use crate::wire::Field;
use crate::{quick, slow};

/// One kind of attack, over HTTP/1.1, TLS or TCP.
type Run = fn(Field, &mut Chance) -> Tally;

const QUICK: &[(&str, Run)] = &[
    ("garbage", quick::garbage),
    ("smuggling", quick::smuggling),
    ("oversize heads", quick::oversize_heads),
    ("aborted uploads", quick::aborted_uploads),
    ("aborted downloads", quick::aborted_downloads),
    ("refused upgrades, piped", quick::refused_upgrades),
    ("bursts of connections", quick::burst),
    ("handshakes for nothing", quick::handshakes),
    ("no TLS on its port", quick::no_tls),
    ("pipelines", quick::pipelines),
    ("broken frames in sockets", quick::broken_frames),
];

const SLOW: &[(&str, Run)] = &[
    ("slow heads", slow::heads),
    ("slow bodies", slow::bodies),
    ("bodies never begun", slow::no_bodies),
    ("answers not read", slow::reads),
    ("silent TCP", slow::silence),
    ("silent TLS", slow::silence_after_handshakes),
    ("half handshakes", slow::half_handshakes),
    ("idle connections", slow::idlers),
    ("zombies in sockets", slow::zombies),
    ("sockets that do not read", slow::deaf_sockets),
];

/// Of one flood over HTTP/2.
const BOUNDS: Bounds = Bounds { time: Duration::from_secs(3), frames: 10_000 };

#[derive(Clone, Copy)]
enum Kind {
    Raw(&'static str, Run),
    Flood(&'static attack_h2::Flood),
}

/// The names of all.
pub fn kinds(floods: &[attack_h2::Flood]) -> Vec<&'static str> {
    let raw = QUICK.iter().chain(SLOW).map(|(name, _)| *name);
    raw.chain(floods.iter().map(|flood| flood.name)).collect()
}

/// Attackers that are slow, quick, and speak HTTP/2, each on a thread of its own, until they are told to end.
pub fn start(
    ledger: &Arc<Ledger>,
    field: Field,
    floods: &'static [attack_h2::Flood],
    seed: u64,
) -> Vec<std::thread::JoinHandle<()>> {
    let raw = |kinds: &[(&'static str, Run)]| kinds.iter().map(|(name, run)| Kind::Raw(name, *run)).collect();
    let floods: Vec<Kind> = floods.iter().map(Kind::Flood).collect();
    let rotas: Vec<Vec<Kind>> = vec![raw(QUICK), raw(QUICK), raw(SLOW), raw(SLOW), raw(SLOW), floods];
    let rotas = rotas.into_iter().filter(|rota| !rota.is_empty());
    let start = |(number, rota): (usize, Vec<Kind>)| {
        let (ledger, chance) = (ledger.clone(), Chance::new(seed + 1_000 + number as u64));
        std::thread::spawn(move || attack(&ledger, field, rota, chance))
    };
    rotas.enumerate().map(start).collect()
}

/// All of the rota in random order, again and again.
fn attack(ledger: &Ledger, field: Field, mut rota: Vec<Kind>, mut chance: Chance) {
    loop {
        chance.shuffle(&mut rota);
        for kind in &rota {
            if ledger.hostile_ends() {
                return;
            }
            let before = own_time();
            let name = match kind {
                Kind::Raw(name, _) => name,
                Kind::Flood(flood) => flood.name,
            };
            let run = || match kind {
                Kind::Raw(_, run) => run(field, &mut chance),
                Kind::Flood(attack) => flood(attack, field),
            };
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
                // A server at its limits may let nobody in.
                Ok(tally) if tally.sent > 0 => ledger.attacked(name, tally),
                Ok(_) => {}
                Err(_) => ledger.attack_failed(name),
            }
            // An hour of this must leave most of the machine to the others.
            let used = own_time().saturating_sub(before);
            let pause = (used * 8).clamp(Duration::from_millis(500), Duration::from_secs(10));
            let end = Instant::now() + pause + chance.between(0, 500);
            while Instant::now() < end && !ledger.hostile_ends() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn flood(flood: &attack_h2::Flood, field: Field) -> Tally {
    let ending = (flood.run)(Target { address: field.https }, BOUNDS);
    let mut tally = Tally { sent: ending.outcome.sent, ..Tally::default() };
    match (ending.outcome.ended, ending.goaway) {
        (Some(_), Some(_)) => tally.refused = 1,
        (Some(_), None) => tally.closed = 1,
        (None, _) => tally.left = 1,
    }
    tally
}

/// Time on a processor of the calling thread.
fn own_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0))
}
