//! The jobs whose cost is counted for each operation.

use crate::load::{self, Outcome};
use crate::server::{Kind, Place, Server};
use crate::{LARGE, SMALL, fpm, sockets, table, tools};

/// One job.
pub struct Scenario {
    pub name: &'static str,
    title: &'static str,
    host: &'static str,
    /// The path that is asked, and how long its answer is, where that is always the same.
    path: &'static str,
    length: usize,
    run: fn(&Server) -> Outcome,
    /// Who cannot do it.
    without: &'static [Kind],
}

/// What most of them are.
const USUAL: Scenario = Scenario {
    name: "",
    title: "",
    host: "a.test",
    path: "/",
    length: 2,
    run: |server| tools::wrk(server, "a.test", "/", 16),
    without: &[],
};

pub const SCENARIOS: [Scenario; 12] = [
    Scenario { name: "get", title: "HTTP/1.1 small GET", ..USUAL },
    Scenario { name: "h2", title: "HTTP/2 small GET", run: |s| tools::h2load(s, "/"), ..USUAL },
    Scenario {
        name: "file",
        title: "1 KiB file",
        path: "/files/small.bin",
        length: SMALL,
        run: |s| tools::wrk(s, "a.test", "/files/small.bin", 16),
        without: &[Kind::Haproxy],
        ..USUAL
    },
    Scenario {
        name: "large-file",
        title: "10 MiB file",
        path: "/files/large.bin",
        length: LARGE,
        run: |s| load::download(s, "/files/large.bin"),
        without: &[Kind::Haproxy],
        ..USUAL
    },
    Scenario {
        name: "down",
        title: "10 MiB down",
        path: "/large",
        length: LARGE,
        run: |s| load::download(s, "/large"),
        ..USUAL
    },
    Scenario { name: "upload", title: "1 GiB up", run: load::upload, ..USUAL },
    Scenario {
        name: "php",
        title: "PHP",
        host: "php.test",
        run: |s| tools::wrk(s, "php.test", "/", fpm::CLIENTS),
        ..USUAL
    },
    Scenario {
        name: "php-kept",
        title: "PHP, FastCGI connections kept",
        host: "kept.test",
        run: |s| tools::wrk(s, "kept.test", "/", fpm::CLIENTS),
        without: &[Kind::Caddy],
        ..USUAL
    },
    Scenario { name: "handshake", title: "full handshake + GET", run: |s| load::handshake(s, false), ..USUAL },
    Scenario { name: "resumed", title: "resumed handshake + GET", run: |s| load::handshake(s, true), ..USUAL },
    Scenario { name: "echo", title: "WebSocket echo, 128 B", run: sockets::echo, ..USUAL },
    Scenario { name: "broadcast", title: "WebSocket broadcast, 128 B", run: sockets::broadcast, ..USUAL },
];

/// Starts the proxies, gives each its turn in each round, and prints a line.
pub fn measure(scenario: &Scenario, rounds: usize, place: &Place) {
    let has_it = |kind: &Kind| !scenario.without.contains(kind);
    let servers: Vec<Option<Server>> =
        place.kinds.iter().map(|kind| has_it(kind).then(|| Server::start(*kind, place))).collect();
    for server in servers.iter().flatten() {
        load::probe(server, scenario.host, scenario.path, scenario.length);
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
    table::line(scenario.title, place.kinds, &columns, &memory);
}
