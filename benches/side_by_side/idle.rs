//! What an idle connection holds.

use std::time::{Duration, Instant};

use crate::server::{Kind, Place, Server};
use crate::wire::Transport;
use crate::{load, on_a_worker, sockets, table};

/// Connections that are idle.
const COUNT: usize = 2000;
/// Sockets of a crowd, and when it is looked at what they left.
const CROWD: usize = 9000;
const LEFT: Duration = Duration::from_secs(10);
/// Memory has settled when it has not moved by more than this for [`STILL`].
const MOVES: u64 = 128 << 10;
const STILL: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(30);

const KINDS: [&str; 4] = ["wss tunnel", "ws tunnel", "HTTP/1.1 over TLS", "HTTP/2"];

pub fn measure(place: &Place) {
    println!(
        "\nPss of {} while {COUNT} are idle, and what is left 5 s after they were closed.\n\n\
         | idle connection | KiB for each | {} | before, MiB | idle, MiB | after, MiB |\n|---|---:|{}---:|---:|---:|",
        table::names(place.kinds),
        table::ratio_names(place.kinds),
        "---:|".repeat(place.kinds.len() - 1)
    );
    for kind in KINDS {
        let wait = Duration::from_secs(5);
        let look = |proxy: &Kind| look(&Server::start(*proxy, place), kind, COUNT, wait);
        let seen: Vec<Seen> = place.kinds.iter().map(look).collect();
        let each = |of: &dyn Fn(&Seen) -> String| seen.iter().map(of).collect::<Vec<_>>().join(" / ");
        let mib = |of: fn(&Seen) -> u64| each(&|seen| format!("{:.1}", table::mib(of(seen))));
        println!(
            "| {kind} | {} | {} | {} | {} | {} |",
            each(&|seen| format!("{:.2}", seen.kib())),
            table::ratios(place.kinds, |at, to| format!("{:.2}", seen[at].kib() / seen[to].kib())),
            mib(|seen| seen.before),
            mib(|seen| seen.idle),
            mib(|seen| seen.after),
        );
    }
}

/// What is left of the memory that a crowd of sockets took.
pub fn crowd(place: &Place) {
    println!(
        "\nPss of each proxy before {CROWD} tunnels, while they are idle, and {} s after they were closed.\n\n\
         | proxy | | before, MiB | idle, MiB | KiB for each | after, MiB | after to idle, % |\n\
         |---|---|---:|---:|---:|---:|---:|",
        LEFT.as_secs()
    );
    for (&kind, tunnel) in place.kinds.iter().flat_map(|kind| KINDS[..2].iter().map(move |tunnel| (kind, tunnel))) {
        let seen = look(&Server::start(kind, place), tunnel, CROWD, LEFT);
        let [before, idle, after] = [seen.before, seen.idle, seen.after].map(table::mib);
        println!(
            "| {} | {tunnel} | {before:.1} | {idle:.1} | {:.2} | {after:.1} | {:.0} |",
            kind.name(),
            seen.kib(),
            100.0 * after / idle
        );
    }
}

/// Memory in bytes.
struct Seen {
    before: u64,
    idle: u64,
    after: u64,
    /// How many connections there were.
    count: usize,
}

impl Seen {
    fn kib(&self) -> f64 {
        self.idle.saturating_sub(self.before) as f64 / 1024.0 / self.count as f64
    }
}

fn look(server: &Server, kind: &str, count: usize, wait: Duration) -> Seen {
    on_a_worker(async {
        // What the first connections make once and keep is no connection's.
        drop(open(server, kind, 64).await);
        let before = settled(server).await;
        let held = open(server, kind, count).await;
        let idle = settled(server).await;
        drop(held);
        tokio::time::sleep(wait).await;
        Seen { before, idle, after: server.memory(), count }
    })
}

async fn open(server: &Server, kind: &str, count: usize) -> Vec<Box<dyn Transport>> {
    match kind {
        "wss tunnel" => sockets::open(server, true, count).await,
        "ws tunnel" => sockets::open(server, false, count).await,
        "HTTP/2" => load::kept(server, "h2", count).await,
        _ => load::kept(server, "http/1.1", count).await,
    }
}

/// Waits until the memory does not move any more, and gives it.
async fn settled(server: &Server) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    let (mut last, mut since) = (server.memory(), Instant::now());
    while since.elapsed() < STILL {
        assert!(Instant::now() < deadline, "the memory of {:?} does not settle", server.kind);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = server.memory();
        if now.abs_diff(last) > MOVES {
            (last, since) = (now, Instant::now());
        }
    }
    server.memory()
}
