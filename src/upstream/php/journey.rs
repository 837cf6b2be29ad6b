//! The way of one request to a worker of PHP-FPM: a pool, a place, a connection, and whatever comes in between.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::http::Response;
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::exchange::{Exchange, Patience};
use super::gate::{BLIND, Limits, Place, QUICK, Refused};
use super::presence::Missing;
use super::register::Fpm;
use super::{FastCgiPool, Job, PhpUpstream, Settings, answer};
use crate::base::address::Endpoint;
use crate::base::cached_time;
use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::upstream::connect::{self, ConnectError, is_out_of_descriptors};
use crate::upstream::fastcgi::answer::{Head, HeadReader, MAX_HEAD};
use crate::upstream::source::Source;

/// An offer that FPM has left alone for so long: it has no idle worker.
const LATE: Duration = Duration::from_millis(100);
/// How long an offer is waited for where it was never seen that FPM took one: perhaps this kernel does not tell.
const BLIND_WAIT: Duration = Duration::from_millis(250);
/// Between two attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Before a request is sent a second time: a restart ends the workers one after the other, and the next one to take it
/// should not be the next one to go.
const WORKERS_END: Duration = Duration::from_millis(100);
/// For connecting to a pool that is missing.
const TRIAL_CONNECT: Duration = Duration::from_secs(1);
/// When it is worth another try after a refusal.
const COME_BACK: Duration = Duration::from_secs(1);

/// An attempt that failed.
struct Failure {
    fault: Fault,
    place: Option<Place>,
    what: Lost,
}

/// What is known of a request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// FPM's queue is full: it is there, and cannot have run it.
    Full,
    /// A kept connection was closed, and it cannot have run.
    Stale,
    /// FPM is not there, or went before it had the request; it cannot have run.
    NeverRun,
    /// FPM may have run it, and has said nothing.
    Unanswered,
    /// So may this one, sent whole over a kept connection that was then closed at once; more likely nobody has read it.
    Unread,
    /// There is nothing more to try.
    Final,
}

/// Runs `job` at one of the pools and gives its answer.
pub(super) async fn run(upstream: &PhpUpstream, job: &Job, pool: &FastCgiPool) -> Result<Response<Body>, Fault> {
    let settings = &upstream.settings;
    let mut turn = Instant::from_std(cached_time::now()) + settings.queue_timeout;
    let (mut held, mut missed, mut repeated, mut pause) = (None, None, false, FIRST_PAUSE);
    let mut may_be_whole = job.is_repeatable();
    loop {
        let (fpm, place) = match held.take() {
            Some(held) => held,
            None => {
                let fpm = choose(upstream)?;
                let limits = limits(settings, &fpm.endpoint);
                let place = fpm.gate.enter(limits, turn).await.map_err(|why| refusal(&fpm, why, settings))?;
                (fpm, place)
            }
        };
        let tried = attempt(settings, job, &fpm, place, pool, (turn, may_be_whole)).await;
        let Failure { fault, place, what } = match tried {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        may_be_whole = false;
        fpm.gate.note_answer(None);
        match what {
            Lost::Final => return Err(fault),
            // RFC 9110, section 9.2.2: "A proxy MUST NOT automatically retry non-idempotent requests."
            Lost::Unanswered | Lost::Unread if repeated || !job.is_repeatable() => return Err(fault),
            Lost::Unanswered => {
                repeated = true;
                sleep(WORKERS_END).await;
                // The time in which it ran was no waiting.
                turn = turn.max(Instant::now() + settings.queue_timeout);
            }
            Lost::Unread => repeated = true,
            Lost::Stale => {}
            Lost::Full if Instant::now() + pause >= turn => return Err(fault),
            Lost::Full => {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Lost::NeverRun => {
                let now = Instant::now();
                let (missing, first) = fpm.presence.miss(|| fault.to_string());
                if first {
                    tracing::warn!("{fault}; requests wait for it for up to {:?}", settings.restart_window);
                }
                // One that goes whenever it has come is not waited for longer than one that does not come.
                let since = missing.since.min(*missed.get_or_insert(now));
                let elsewhere =
                    upstream.pools.iter().any(|other| !Arc::ptr_eq(other, &fpm) && other.presence.missing().is_none());
                if !elsewhere && (now >= since + settings.restart_window || is_denied_from_the_start(&fault, &missing))
                {
                    return Err(gone(&fpm.endpoint, &missing, Some(fault)));
                }
                fpm.presence.wait(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                // What was waited for FPM is not held against it.
                turn = turn.max(Instant::now() + settings.queue_timeout);
                if elsewhere {
                    continue;
                }
            }
        }
        held = place.map(|mut place| {
            place.begin_again();
            (fpm, place)
        });
    }
}

/// The pool with the fewest requests for each worker, of those that are there or will be in a moment; of equals the next
/// in turn. Where all are down, one request now and then finds out whether one is back.
fn choose(upstream: &PhpUpstream) -> Result<Arc<Fpm>, Fault> {
    let PhpUpstream { settings, pools, turn, .. } = upstream;
    let now = Instant::from_std(cached_time::now());
    let turn = turn.fetch_add(1, Ordering::Relaxed).checked_rem(pools.len()).unwrap_or(0);
    let mut best: Option<(bool, usize, usize, &Arc<Fpm>)> = None;
    let mut down = None;
    for fpm in pools.iter().cycle().skip(turn).take(pools.len()) {
        let missing = fpm.presence.missing();
        // Beside others that are there, nobody waits for one that is missing: somebody has to look.
        if missing.is_some() && pools.len() > 1 && fpm.presence.claim_trial() {
            return Ok(Arc::clone(fpm));
        }
        if let Some(missing) = missing.as_ref().filter(|missing| now >= missing.since + settings.restart_window) {
            if fpm.presence.claim_trial() {
                return Ok(Arc::clone(fpm));
            }
            down = Some((fpm, missing.clone()));
            continue;
        }
        let (load, children) = fpm.gate.load(limits(settings, &fpm.endpoint).children);
        let (missing, children) = (missing.is_some(), children.max(1));
        let better = best.is_none_or(|(other_missing, other_load, other_children, _)| {
            // load / children, without dividing.
            let (mine, other) = (load.saturating_mul(other_children), other_load.saturating_mul(children));
            (missing, mine) < (other_missing, other)
        });
        if better {
            best = Some((missing, load, children, fpm));
        }
    }
    match (best, down) {
        (Some((.., fpm)), _) => Ok(Arc::clone(fpm)),
        (None, Some((fpm, missing))) => Err(gone(&fpm.endpoint, &missing, None)),
        (None, None) => Err(Fault::new(Kind::Connect, "there is no PHP-FPM to connect to")),
    }
}

fn limits(settings: &Settings, endpoint: &Endpoint) -> Limits {
    let told = (settings.children > 0).then_some(settings.children);
    let children = match endpoint {
        Endpoint::Unix(_) => told,
        // Nothing tells whether FPM has taken a request.
        Endpoint::Tcp(..) => told.or(Some(BLIND)),
    };
    Limits { children, queue: (settings.queue > 0).then_some(settings.queue) }
}

/// One request on one connection, up to the head of its answer.
async fn attempt(
    settings: &Settings,
    job: &Job,
    fpm: &Fpm,
    place: Place,
    pool: &FastCgiPool,
    (turn, may_be_whole): (Instant, bool),
) -> Result<Response<Body>, Failure> {
    let (stream, kept) = match pool.take(&fpm.endpoint) {
        Some(stream) => (stream, true),
        None => match connect::connect(&fpm.endpoint, None, connect_limit(settings, fpm), &Source::default()).await {
            Ok(stream) => (stream, false),
            Err(error) => return Err(unreachable(&fpm.endpoint, error, place)),
        },
    };
    if !kept {
        fpm.presence.stir();
    }
    let whole = match may_be_whole && fpm.gate.may_be_whole(limits(settings, &fpm.endpoint).children) {
        false => Whole::No,
        // FPM's worker stays with a connection until its end.
        true if kept => Whole::ToAWorker,
        true => Whole::ToTheQueue,
    };
    let patience = Patience { send: settings.send, read: settings.read };
    let mut exchange = Exchange::new(stream, fpm.endpoint.clone(), job, patience, place);
    match ask(&mut exchange, settings, fpm, (turn, whole)).await {
        Ok(head) => Ok(answer::answer(job, head, exchange, fpm, (pool, settings.keep_alive))),
        Err(fault) => {
            let broken = fault.kind == Kind::Truncated && !exchange.is_answered();
            let what = match broken {
                true if exchange.cannot_have_run() && kept => Lost::Stale,
                true if exchange.cannot_have_run() => Lost::NeverRun,
                true if whole == Whole::ToAWorker && !exchange.has_begun() => Lost::Unread,
                true => Lost::Unanswered,
                false => Lost::Final,
            };
            Err(Failure { fault, place: exchange.take_place(), what })
        }
    }
}

/// Whether a request goes out whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whole {
    /// It is offered first.
    No,
    /// On a new connection, which a worker has yet to take.
    ToTheQueue,
    /// On a kept one, at which a worker waits.
    ToAWorker,
}

/// The head of the answer to the request of `exchange`, which goes out whole or is offered first.
async fn ask(
    exchange: &mut Exchange,
    settings: &Settings,
    fpm: &Fpm,
    (turn, whole): (Instant, Whole),
) -> Result<(Head, Bytes), Fault> {
    let mut reader = HeadReader::new(MAX_HEAD);
    let attending = whole == Whole::ToAWorker && exchange.is_witness();
    if whole != Whole::No {
        exchange.send_whole(attending);
        if let Ok(head) = timeout(QUICK, answer::head(exchange, &mut reader, fpm)).await {
            let head = head?;
            begin(exchange, fpm, true);
            return Ok(head);
        }
        fpm.gate.note_answer(None);
    }
    let offered = if attending { Offered::Taken } else { offer(exchange, fpm, turn).await };
    let witnessed = match offered {
        Offered::Taken => true,
        Offered::Unknown => false,
        Offered::Gone => {
            let before = if exchange.cannot_have_run() { "it took the request" } else { "its answer" };
            return Err(Fault::new(Kind::Truncated, format!("{} closed before {before}", fpm.endpoint)));
        }
        Offered::Left => {
            let detail = format!("{} had no idle worker within {:?}", fpm.endpoint, settings.queue_timeout);
            return Err(Fault::new(Kind::Busy, detail).retry_after(COME_BACK));
        }
    };
    begin(exchange, fpm, witnessed);
    let began = Instant::now();
    let head = answer::head(exchange, &mut reader, fpm).await?;
    // One that was sent whole and is answered only now is known to be slow.
    if whole == Whole::No {
        fpm.gate.note_answer(witnessed.then(|| began.elapsed()));
    }
    Ok(head)
}

/// One that swallows packets must not hold up who finds out whether it is back.
fn connect_limit(settings: &Settings, fpm: &Fpm) -> Duration {
    if fpm.presence.missing().is_some() { settings.connect.min(TRIAL_CONNECT) } else { settings.connect }
}

/// What became of an offer.
enum Offered {
    /// A worker has begun to read it.
    Taken,
    /// Nothing tells.
    Unknown,
    /// The connection has ended.
    Gone,
    /// Nobody took it in time.
    Left,
}

async fn offer(exchange: &mut Exchange, fpm: &Fpm, turn: Instant) -> Offered {
    let tells = exchange.is_witness();
    let taken = |taken| match taken {
        false => Offered::Gone,
        true if tells => Offered::Taken,
        true => Offered::Unknown,
    };
    let mut offer = std::pin::pin!(exchange.offer());
    if let Ok(ended) = timeout(LATE, &mut offer).await {
        return taken(ended);
    }
    if let Some(running) = fpm.gate.note_late(Instant::now()) {
        tracing::warn!(
            "{} runs {running} requests at once and more wait for a worker: pm.max_children may be too low",
            fpm.endpoint
        );
    }
    let blind = !fpm.gate.is_witnessed();
    let until = if blind { turn.min(Instant::now() + BLIND_WAIT) } else { turn };
    match timeout_at(until, &mut offer).await {
        Ok(ended) => taken(ended),
        Err(_) if blind => Offered::Unknown,
        Err(_) => Offered::Left,
    }
}

fn begin(exchange: &mut Exchange, fpm: &Fpm, witnessed: bool) {
    exchange.begin(witnessed);
    if let Some(missing) = fpm.presence.meet() {
        tracing::info!("{} is back after {missing:.1?}", fpm.endpoint);
    }
}

fn unreachable(endpoint: &Endpoint, error: ConnectError, place: Place) -> Failure {
    let told = format!("cannot connect to {endpoint}");
    let (fault, what) = match error.io() {
        Some(io) if io.kind() == io::ErrorKind::WouldBlock => {
            let detail = format!("{endpoint} takes no more connections");
            (Fault::new(Kind::Busy, detail).because(error).retry_after(COME_BACK), Lost::Full)
        }
        Some(io) if is_out_of_descriptors(io) => (connect::no_descriptor(told, error), Lost::Final),
        _ => (Fault::new(Kind::Connect, told).because(error), Lost::NeverRun),
    };
    Failure { fault, place: Some(place), what }
}

/// A socket that never let us in will not do so by waiting; one that did may be about to get its owner.
fn is_denied_from_the_start(fault: &Fault, missing: &Missing) -> bool {
    let denied = |error: &(dyn std::error::Error + 'static)| {
        let io = error.downcast_ref::<ConnectError>().and_then(ConnectError::io);
        io.is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied)
    };
    !missing.seen && std::error::Error::source(fault).is_some_and(denied)
}

fn refusal(fpm: &Fpm, why: Refused, settings: &Settings) -> Fault {
    let endpoint = &fpm.endpoint;
    let detail = match why {
        Refused::Full(queue) => format!("{queue} requests wait for {endpoint} already"),
        Refused::Late => format!("no worker of {endpoint} was free within {:?}", settings.queue_timeout),
    };
    Fault::new(Kind::Busy, detail).retry_after(COME_BACK)
}

/// One that worked comes back; one that never did is more likely a mistake in a file.
fn gone(endpoint: &Endpoint, missing: &Missing, fault: Option<Fault>) -> Fault {
    let Missing { since, why, seen, .. } = missing;
    if *seen {
        let detail = format!("{endpoint} has been gone for {:.1?}: {why}", since.elapsed());
        return Fault::new(Kind::Busy, detail).retry_after(COME_BACK);
    }
    fault.unwrap_or_else(|| Fault::new(Kind::Connect, why.clone()))
}
