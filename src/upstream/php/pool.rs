//! Connections to PHP-FPM that are kept by one worker.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::base::address::Endpoint;
use crate::base::cached_time;
use crate::upstream::connect::BackEndStream;

/// How long a connection may wait for its next request. Each one holds an FPM worker that serves nobody else.
const MAX_IDLE: Duration = Duration::from_secs(4);

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
            if cached_time::since(since.into_std()) < MAX_IDLE && is_good(&stream) {
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
        shelf.push_back(Idle { stream, since: cached_time::now().into() });
        while shelf.len() > limit {
            shelf.pop_front();
        }
    }
}

/// On a unix socket it costs little to be mistaken: FPM takes no request over a connection that it has closed, and that
/// is seen. So the system is asked only where the runtime knows of something.
fn is_good(stream: &BackEndStream) -> bool {
    let has_news = || stream.has_news(&mut Context::from_waker(Waker::noop()));
    (matches!(stream, BackEndStream::Unix(_)) && !has_news()) || stream.is_quiet()
}
