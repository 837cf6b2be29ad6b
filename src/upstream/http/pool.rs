//! Connections to back ends that wait for their next request: those of one worker.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::base::cached_time;
use crate::upstream::http::connection::Connection;

/// Idle connections of one back end that are kept.
const KEPT: usize = 64;
/// Node closes an idle connection after five seconds; a request that crosses the FIN would be lost.
const IDLE: Duration = Duration::from_secs(4);
const SWEEP: Duration = Duration::from_secs(1);

/// The idle connections of one worker. Cloning gives another handle to the same ones.
#[derive(Clone, Default)]
pub struct Pool(Rc<Shelves>);

#[derive(Default)]
struct Shelves {
    idle: RefCell<FxHashMap<Arc<str>, Vec<Idle>>>,
    swept: Cell<bool>,
}

struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

impl Pool {
    /// An empty pool. Its worker's requests must run in a [`LocalSet`](tokio::task::LocalSet).
    pub fn new() -> Pool {
        Pool::default()
    }

    /// How many connections wait.
    pub fn idle(&self) -> usize {
        self.0.idle.borrow().values().map(Vec::len).sum()
    }

    /// Closes all that wait, for a drain.
    pub fn clear(&self) {
        self.0.idle.borrow_mut().clear();
    }

    /// The connection to `key` that was used last, if it is still [good](Connection::is_good).
    pub(super) fn take(&self, key: &str, repeated: bool) -> Option<Box<Connection>> {
        let mut shelves = self.0.idle.borrow_mut();
        let shelf = shelves.get_mut(key)?;
        while let Some(mut idle) = shelf.pop() {
            if cached_time::since(idle.since) >= IDLE {
                // The others have waited longer.
                shelf.clear();
                return None;
            }
            if idle.connection.is_good(repeated) {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Keeps a connection that may have [another exchange](Connection::rest).
    pub(super) fn put(&self, key: &Arc<str>, mut connection: Box<Connection>) {
        connection.reused = true;
        let mut shelves = self.0.idle.borrow_mut();
        let idle = Idle { connection, since: cached_time::now() };
        match shelves.get_mut(&**key) {
            Some(shelf) if shelf.len() >= KEPT => return,
            Some(shelf) => shelf.push(idle),
            None => drop(shelves.insert(Arc::clone(key), vec![idle])),
        }
        drop(shelves);
        if !self.0.swept.replace(true) {
            tokio::task::spawn_local(sweep(Rc::downgrade(&self.0)));
        }
    }
}

/// Closes what has waited too long; ends with the last connection, and with the pool.
async fn sweep(shelves: Weak<Shelves>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(shelves) = shelves.upgrade() else { return };
        let mut idle = shelves.idle.borrow_mut();
        idle.retain(|_, shelf| {
            // Nobody hears of it when a back end closes one: no task waits for them.
            shelf.retain_mut(|idle| cached_time::since(idle.since) < IDLE && idle.connection.is_good(true));
            !shelf.is_empty()
        });
        if idle.is_empty() {
            shelves.swept.set(false);
            return;
        }
    }
}
