//! Connections to PHP-FPM: made anew, or kept by one worker.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::base::address::Endpoint;
use crate::base::fault::{Fault, Kind};
use crate::upstream::connect::{self, BackEndStream, is_out_of_descriptors};
use crate::upstream::source::Source;

/// How long a connection may wait for its next request. Each one holds an FPM worker that serves nobody else.
const MAX_IDLE: Duration = Duration::from_secs(4);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A worker's idle connections to PHP-FPM, by endpoint; shared by all of its snapshots. Clones are the same pool.
///
/// Invariant: no connection in it has a request, or anything of an answer, on it.
#[derive(Debug, Clone, Default)]
pub struct FastCgiPool {
    idle: Rc<RefCell<HashMap<Endpoint, VecDeque<Idle>>>>,
}

#[derive(Debug)]
struct Idle {
    stream: BackEndStream,
    since: Instant,
}

impl FastCgiPool {
    /// An empty pool.
    pub fn new() -> FastCgiPool {
        FastCgiPool::default()
    }

    /// Closes what has been idle for 4 s. A worker calls it about once a second where `keep_alive` is not 0: between
    /// requests nothing else frees the FPM workers that idle connections hold.
    pub fn sweep(&self) {
        self.sweep_at(Instant::now());
    }

    pub(super) fn sweep_at(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, shelf| {
            shelf.retain(|idle| now.duration_since(idle.since) < MAX_IDLE);
            !shelf.is_empty()
        });
    }

    /// How many connections are idle.
    pub fn len(&self) -> usize {
        self.idle.borrow().values().map(VecDeque::len).sum()
    }

    /// Whether no connection is idle.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The connection that was used last, so that the others may grow old.
    pub(super) fn take(&self, endpoint: &Endpoint) -> Option<BackEndStream> {
        let mut idle = self.idle.borrow_mut();
        let shelf = idle.get_mut(endpoint)?;
        while let Some(Idle { stream, since }) = shelf.pop_back() {
            if since.elapsed() < MAX_IDLE && stream.is_quiet() {
                return Some(stream);
            }
        }
        None
    }

    /// Keeps `stream`, and at most `limit` of its kind.
    pub(super) fn put(&self, endpoint: &Endpoint, stream: BackEndStream, limit: usize) {
        let mut idle = self.idle.borrow_mut();
        if !idle.contains_key(endpoint) {
            idle.insert(endpoint.clone(), VecDeque::new());
        }
        let Some(shelf) = idle.get_mut(endpoint) else { return };
        shelf.push_back(Idle { stream, since: Instant::now() });
        while shelf.len() > limit {
            shelf.pop_front();
        }
    }
}

/// Connects to the first of `endpoints`, tried in this order, that takes us. What refuses or is not there is passed
/// over at once; a unix socket whose queue is full is tried again until `limit` is over ([`Kind::Busy`] then).
pub(super) async fn connect<'a>(
    endpoints: impl Iterator<Item = &'a Endpoint> + Clone,
    limit: Duration,
) -> Result<(&'a Endpoint, BackEndStream), Fault> {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        let mut full = None;
        let mut failed = None;
        for endpoint in endpoints.clone() {
            // Each gets the whole time: one that swallows packets must not use up that of the next.
            match connect::connect(endpoint, None, limit, &Source::default()).await {
                Ok(stream) => return Ok((endpoint, stream)),
                Err(error) if error.io().is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock) => {
                    full = Some((endpoint, error));
                }
                Err(error) => failed = Some((endpoint, error)),
            }
        }
        match (full, failed) {
            (Some((endpoint, error)), _) if Instant::now() + pause >= deadline => {
                let detail = format!("{endpoint} takes no more connections");
                return Err(Fault::new(Kind::Busy, detail).because(error));
            }
            (Some(_), _) => sleep(pause).await,
            (None, Some((endpoint, error))) if error.io().is_some_and(is_out_of_descriptors) => {
                return Err(connect::no_descriptor(format!("cannot connect to {endpoint}"), error));
            }
            (None, Some((endpoint, error))) => {
                return Err(Fault::new(Kind::Connect, format!("cannot connect to {endpoint}")).because(error));
            }
            (None, None) => return Err(Fault::new(Kind::Connect, "there is no PHP-FPM to connect to")),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
