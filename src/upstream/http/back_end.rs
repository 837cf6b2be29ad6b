//! What is known of back ends. It lives as long as the process: counts and failures survive reloads.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::StatusCode;
use rustls::RootCertStore;

use crate::base::cached_time;
use crate::base::fault::{Causes, Fault, Kind, Side};
use crate::base::units::format_duration;
use crate::upstream::connect::ConnectError;
use crate::upstream::http::health::{BackEndHealth, Failure, News, Pace, Standing, Threshold};
use crate::upstream::http::probe::{ProbeError, Watch};
use crate::upstream::http::settings::Health;
use crate::upstream::http::sids::Sids;
use crate::upstream::http::tls;
use crate::upstream::php::PhpRegister;
use crate::upstream::resolve::Resolver;
use crate::upstream::source::Source;

/// All back ends by name, and the system's authorities. It belongs to the process: counts survive reloads, for as
/// long as a snapshot, a request or a tunnel knows the back end.
#[derive(Default)]
pub struct BackEndRegister {
    /// PHP-FPM pools.
    pub php: PhpRegister,
    known: Mutex<HashMap<String, Weak<BackEndState>>>,
    roots: OnceLock<Arc<RootCertStore>>,
    resolver: Resolver,
    /// The sessions of Engine.IO that they gave out.
    pub(super) sids: Arc<Sids>,
}

impl BackEndRegister {
    /// A register that knows nobody yet.
    pub fn new() -> BackEndRegister {
        BackEndRegister::default()
    }

    /// The back ends that something still uses, by name.
    pub fn back_ends(&self) -> Vec<Arc<BackEndState>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = known.values().filter_map(Weak::upgrade).collect();
        drop(known);
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// Has `watches` decide from now on, and no others. Whoever gave up a place stays out until one of the new probes
    /// says otherwise; without a probe it is in.
    pub fn watch(&self, watches: &[Arc<Watch>]) {
        for state in self.back_ends() {
            let own = watches.iter().filter(|watch| Arc::ptr_eq(watch.back_end(), &state));
            let keys: Vec<Arc<str>> = own.map(|watch| Arc::clone(watch.key())).collect();
            state.report(state.standing.watch(state.now(), &keys));
        }
    }

    pub(super) fn state(&self, name: &str) -> Arc<BackEndState> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = known.get(name).and_then(Weak::upgrade) {
            return state;
        }
        known.retain(|_, state| state.strong_count() > 0);
        let state = Arc::new(BackEndState {
            name: Arc::from(name),
            made: Instant::now(),
            load: AtomicUsize::new(0),
            standing: Standing::default(),
            source: Source::default(),
        });
        known.insert(name.to_owned(), Arc::downgrade(&state));
        state
    }

    /// Who knows the addresses of back ends that are written as names.
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(self.roots.get_or_init(tls::system_roots))
    }
}

/// What is known of one back end. Upstreams with the same back end share it: what the requests of one tell is so for the
/// others, whose own `max_fails` only says what their own requests tell.
#[derive(Debug)]
pub struct BackEndState {
    name: Arc<str>,
    made: Instant,
    load: AtomicUsize,
    standing: Standing,
    /// Where connections to it begin.
    pub(super) source: Source,
}

impl BackEndState {
    /// `http://127.0.0.1:3444`
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Requests and tunnels that are on it now.
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Whether it is left out of the choice: requests failed a moment ago, or a probe holds it out.
    pub fn is_out(&self) -> bool {
        self.standing.is_out(self.now())
    }

    /// How it is, and why.
    pub fn health(&self) -> BackEndHealth {
        self.standing.view(self.now())
    }

    /// Whether nothing is held against it; else it is out, and may be due for a trial.
    pub(super) fn is_in(&self) -> bool {
        self.standing.is_in()
    }

    /// Whether a request that has chosen it may go there. Behind `fail_timeout` a back end that is out can be chosen again,
    /// and one request at a time finds out how it is.
    pub(super) fn admits(&self) -> bool {
        self.standing.admits(self.now())
    }

    /// Whether a request that nobody else can serve may try it although it is out; says so to one of those that ask, now
    /// and then. Never while a probe holds it out.
    pub(super) fn claim_trial(&self) -> bool {
        self.standing.claim_trial(self.now())
    }

    /// How long ago it came back; `None` if it was never out, or is.
    pub(super) fn returned(&self) -> Option<Duration> {
        self.standing.returned(self.now())
    }

    /// How long it takes until a request may get through to it again: the next trial, or the next probe that may end
    /// well. Zero while it is in.
    pub(super) fn wait(&self) -> Duration {
        self.standing.wait(self.now())
    }

    pub(super) fn enter(self: &Arc<Self>) -> Load {
        self.load.fetch_add(1, Ordering::Relaxed);
        Load(Arc::clone(self))
    }

    /// A connection was made.
    pub(super) fn reached(&self) {
        self.standing.reached(self.now());
    }

    /// None could be made for a request that tried since `began`.
    pub(super) fn unreached(&self, error: &ConnectError, began: Instant, health: &Health) {
        let why = format!("cannot connect: {error}{}", Causes(error));
        self.failed(Failure::Connect, why, began, health);
    }

    /// The same, by the default settings.
    #[cfg(test)]
    pub(super) fn missed(&self) {
        let error = ConnectError::NoAddress("nowhere".to_owned());
        let fail_timeout = Duration::from_secs(10);
        self.unreached(
            &error,
            Instant::now(),
            &Health { probe: None, max_fails: 1, fail_timeout, fail_status: Vec::new() },
        );
    }

    /// A request that was written from `began` on was answered.
    pub(super) fn answered(&self, status: StatusCode, began: Instant, health: &Health) {
        if health.fail_status.iter().any(|range| range.contains(&status.as_u16())) {
            return self.failed(Failure::Status, format!("a request was answered {}", status.as_u16()), began, health);
        }
        let began = began.saturating_duration_since(self.made);
        self.report(self.standing.answered(self.now(), began));
    }

    /// A request that was written from `began` on was not answered. Faults of the client's or ours tell nothing.
    pub(super) fn unanswered(&self, fault: &Fault, began: Instant, health: &Health) {
        if fault.side() == Side::Upstream && fault.kind != Kind::Busy {
            let late = matches!(fault.kind, Kind::ReadTimeout | Kind::SendTimeout);
            let failure = if late { Failure::Timeout } else { Failure::Broken };
            self.failed(failure, fault.to_string(), began, health);
        }
    }

    /// A probe ended; the next one is due after `pause`.
    pub(super) fn probed(&self, watch: &Watch, outcome: Result<String, ProbeError>, pause: Duration) {
        let probe = watch.probe();
        let outcome = outcome.map_err(|error| {
            let handshake = if probe.websocket { "WebSocket handshake" } else { "GET" };
            format!("{handshake} {}: {error}{}", probe.path, Causes(&error))
        });
        let pace = Pace { fails: probe.fails, passes: probe.passes, interval: probe.interval };
        self.report(self.standing.probed(self.now(), watch.key(), outcome, pace, pause));
    }

    fn failed(&self, failure: Failure, why: String, began: Instant, health: &Health) {
        let threshold = Threshold { max_fails: health.max_fails, fail_timeout: health.fail_timeout };
        let began = began.saturating_duration_since(self.made);
        // The time itself: none that began before, by another worker's time, may seem to have begun after it.
        let now = self.made.elapsed();
        self.report(self.standing.failed(now, began, failure, why, threshold));
    }

    /// One line when it goes, and one when it is back.
    fn report(&self, news: Option<News>) {
        match news {
            Some(News::Out { why }) => tracing::warn!("back end {} is out: {why}", self.name),
            Some(News::Back { after }) => {
                // Nobody needs more than tenths of a second.
                let after = Duration::from_millis(after.as_millis().try_into().unwrap_or(u64::MAX) / 100 * 100);
                tracing::info!("back end {} is back after {}", self.name, format_duration(after));
            }
            None => {}
        }
    }

    fn now(&self) -> Duration {
        cached_time::since(self.made)
    }
}

/// Counts as load on a back end until dropped: a request until its answer's end, a tunnel until it closes.
pub struct Load(Arc<BackEndState>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Load({})", self.0.name)
    }
}
