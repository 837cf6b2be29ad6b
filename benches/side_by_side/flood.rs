//! Open sockets while others do nothing but handshakes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::time::{MissedTickBehavior, interval_at};

use crate::load::{Meter, percentile};
use crate::server::{Place, Server};
use crate::wire::{client, secure};
use crate::{on_a_worker, sockets};

/// Sockets that are open.
const SOCKETS: usize = 50;
/// Between two messages of a socket.
const PAUSE: Duration = Duration::from_millis(100);
/// How long they echo, first alone and then beside the flood.
const TIME: Duration = Duration::from_secs(5);
/// Handshakes at one time.
const AT_ONCE: usize = 32;

pub fn measure(place: &Place) {
    println!(
        "\nWhat {SOCKETS} open sockets wait for their echoes, ten messages a second each, alone and beside {AT_ONCE} clients \
         that do full handshakes as fast as they can.\n\n\
         | proxy | alone: p50, ms | p99, ms | flooded: p50, ms | p99, ms | handshakes a second | busy, % |\n\
         |---|---:|---:|---:|---:|---:|---:|"
    );
    for &kind in place.kinds {
        let server = Server::start(kind, place);
        let alone = on_a_worker(echoes(&server));
        let (ends, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let (flooded, rate, busy) = std::thread::scope(|scope| {
            scope.spawn(|| flood(&server, &ends, &done));
            // Whatever happens to the echoes: nobody waits for a flood that goes on.
            let _end = End(&ends);
            let (meter, begun, before) = (Meter::start(&server), Instant::now(), done.load(Ordering::Relaxed));
            let flooded = on_a_worker(echoes(&server));
            let rate = (done.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64();
            let busy = meter.stop().busy();
            (flooded, rate, busy)
        });
        assert!(rate > 0.0, "{kind:?} finished no handshake");
        let times = |times: Vec<Duration>| {
            let [half, most] = percentile(times, [50, 99]).map(|time| time.as_secs_f64() * 1e3);
            format!("{half:.2} | {most:.2}")
        };
        println!("| {} | {} | {} | {rate:.0} | {busy:.0} |", kind.name(), times(alone), times(flooded));
    }
}

/// Ends the flood when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How long each echo took.
async fn echoes(server: &Server) -> Vec<Duration> {
    let held = sockets::open(server, true, SOCKETS).await;
    let begun = tokio::time::Instant::now() + PAUSE;
    let each = held.into_iter().enumerate().map(|(at, mut stream)| async move {
        let mut ticks = interval_at(begun + PAUSE / SOCKETS as u32 * at as u32, PAUSE);
        // What is late is made up for, so that a proxy that stands still is asked as often as the others.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut times = Vec::new();
        while begun.elapsed() < TIME {
            ticks.tick().await;
            let sent = Instant::now();
            sockets::once(&mut stream).await;
            times.push(sent.elapsed());
        }
        times
    });
    join_all(each).await.concat()
}

/// On a thread that gives way to the sockets', whose own wait is not what is measured.
fn flood(server: &Server, ends: &AtomicBool, done: &AtomicU64) {
    rustix::process::setpriority_process(None, 19).unwrap();
    let client = client(server, "http/1.1", false);
    on_a_worker(join_all((0..AT_ONCE).map(|_| async {
        while !ends.load(Ordering::Relaxed) {
            let mut stream = secure(&client, server.ports.https).await;
            done.fetch_add(1, Ordering::Relaxed);
            // The proxy may be faster to close.
            let _ = stream.shutdown().await;
        }
    })));
}
