//! What must not grow with the file: the cost of a request with the number of routes, and what a reload leaves behind.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::load::{self, Outcome};
use crate::server::{Kind, Place, Server};
use crate::{table, tools};

/// Sites besides those that are always there, each with a name and a certificate of its own.
pub const SITES: usize = 1000;
/// Reloads of each proxy.
const RELOADS: usize = 5;
/// What a reload has let go is gone by then: jemalloc gives back what is unused for a second.
const SETTLED: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two questions whether the new configuration is in force.
const POLL: Duration = Duration::from_millis(5);

/// Routes of a small and of a large file. One in two takes a path, the other all below one.
const ROUTES: [usize; 2] = [10, 10_000];

/// The last route takes it.
fn last(routes: usize) -> String {
    format!("/r/{}/page", routes - 1)
}

/// Whether this one takes only its path.
pub fn is_exact(route: usize) -> bool {
    route.is_multiple_of(2)
}

/// With few routes and with many, side by side: what a request for the last one costs.
pub fn routes(place: &Place, rounds: usize) {
    let [few, many] = ROUTES;
    println!(
        "\nA small GET over HTTP/1.1 for the last of {few} routes, and of {many}; the ratio as its median, and its \
         minimum in brackets.\n\n\
         | proxy | CPU with {few}, µs | with {many}, µs | {many} to {few} | memory with {few}, MiB | with {many}, MiB |\n\
         |---|---:|---:|---:|---:|---:|"
    );
    for &kind in place.kinds {
        let servers = ROUTES.map(|routes| (last(routes), Server::start(kind, &Place { routes, ..*place })));
        let mut costs = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for turn in 0..servers.len() {
                let at = (round + turn) % servers.len();
                let (path, server) = &servers[at];
                load::probe(server, "a.test", path, 2);
                costs[at].push(Outcome::cost(&tools::wrk(server, "a.test", path, 16)));
            }
        }
        let ratio = table::median_and_least(costs[1].iter().zip(&costs[0]).map(|(many, few)| many / few).collect());
        let [few, many] = costs.map(|costs| table::number(table::median(costs)));
        let [with_few, with_many] = servers.map(|(_, server)| table::mib(server.memory()));
        println!("| {} | {few} | {many} | {ratio} | {with_few:.1} | {with_many:.1} |", kind.name());
    }
}

/// Reloads with many sites.
pub fn sites(place: &Place) {
    println!(
        "\nA reload with {SITES} sites that have a certificate each, the median of {RELOADS}: CPU of all processes of the \
         proxy, the time until the new configuration answers, the longest answer meanwhile, and memory {} s after the first \
         and after the last.\n\n\
         | proxy | CPU, ms | to nginx | until it answers, ms | longest answer, ms | before, MiB | after one, MiB | after \
         {RELOADS}, MiB |\n|---|---:|---:|---:|---:|---:|---:|---:|",
        SETTLED.as_secs()
    );
    let seen: Vec<(Kind, Vec<Reload>, u64)> = place.kinds.iter().map(|kind| reloads(*kind, place)).collect();
    let cost = |reloads: &[Reload]| table::median(reloads.iter().map(|reload| ms(reload.processor)).collect());
    let nginx = seen.iter().find(|(kind, ..)| *kind == Kind::Nginx).map(|(_, reloads, _)| cost(reloads)).unwrap();
    for (kind, reloads, before) in &seen {
        let median = |of: fn(&Reload) -> Duration| table::median(reloads.iter().map(|reload| ms(of(reload))).collect());
        let [first, last] = [reloads.first(), reloads.last()].map(|reload| table::mib(reload.unwrap().memory));
        println!(
            "| {} | {:.0} | {:.2} | {:.0} | {:.1} | {:.1} | {first:.1} | {last:.1} |",
            kind.name(),
            cost(reloads),
            cost(reloads) / nginx,
            median(|reload| reload.until),
            median(|reload| reload.longest),
            table::mib(*before),
        );
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

struct Reload {
    processor: Duration,
    until: Duration,
    longest: Duration,
    memory: u64,
}

/// Each of them, and the memory before the first.
fn reloads(kind: Kind, place: &Place) -> (Kind, Vec<Reload>, u64) {
    let mut place = Place { sites: SITES, ..*place };
    let mut server = Server::start(kind, &place);
    wait_for(&server, 0);
    load::probe_site(&server, &format!("s{}.test", SITES - 1));
    std::thread::sleep(SETTLED);
    let before = server.memory();
    let mut reloads = Vec::new();
    for revision in 1..=RELOADS {
        place.revision = revision;
        let (spent, begun) = (server.spent_with_ended(), Instant::now());
        server.reload(&place);
        let longest = wait_for(&server, revision);
        let until = begun.elapsed();
        std::thread::sleep(SETTLED);
        let processor = server.spent_with_ended().saturating_sub(spent);
        reloads.push(Reload { processor, until, longest, memory: server.memory() });
    }
    load::probe_site(&server, &format!("s{}.test", SITES - 1));
    (kind, reloads, before)
}

/// Asks again and again which revision of its configuration answers, until it is this one; gives the longest time that
/// an answer took.
fn wait_for(server: &Server, revision: usize) -> Duration {
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    loop {
        let asked = Instant::now();
        let answer = ask(server);
        longest = longest.max(asked.elapsed());
        if answer.as_deref() == Some(&*revision.to_string()) {
            return longest;
        }
        assert!(begun.elapsed() < PATIENCE, "{:?} answers {answer:?}, not {revision}", server.kind);
        std::thread::sleep(POLL);
    }
}

/// On a connection of its own: those that are kept may stay with the old configuration. Whoever lets go of it at the
/// wrong moment gives no answer.
fn ask(server: &Server) -> Option<String> {
    let mut stream = TcpStream::connect(server.ports.http).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: mark.test\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}
