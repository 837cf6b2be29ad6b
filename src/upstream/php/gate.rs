//! Who may be at one PHP-FPM pool: a bounded number of requests, and the others in the order in which they came.
//!
//! A request that has a [`Place`] is either offered (FPM has not begun to read it) or running (a worker has). Where the
//! number of workers is told, both count against it. Where it is not, only offers are bounded: as long as FPM takes
//! them, it has idle workers, however many that may be.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// Offers that may stand in FPM's own queue where the number of its workers is learned.
pub(super) const OFFERS: usize = 8;
/// Of them, those that may have been sent whole. The others are taken in no time, as long as there are idle workers:
/// however many there are, all of them get work.
pub(super) const UNSEEN: usize = OFFERS - 2;
/// Requests at once where nothing tells whether FPM has taken one, and nobody has said how many it can.
pub(super) const BLIND: usize = 128;
/// An answer within so long: its request need not have been offered. For so long a request that was sent whole stands
/// among the offers although a worker has it.
pub(super) const QUICK: Duration = Duration::from_millis(5);
/// The least that may wait where the number of workers is learned: a burst is no overload.
pub(super) const LEAST_QUEUE: usize = 512;
/// How often the log says that workers are too few.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// How many requests may be at a pool, and how many may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Workers; `None` is learned.
    pub children: Option<usize>,
    /// Waiting requests; `None` is four times the workers.
    pub queue: Option<usize>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// So many wait already.
    Full(usize),
    /// The deadline has passed.
    Late,
}

/// The gate of one pool, shared by all workers and all snapshots.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    /// Whether the last answer of which that is known came within a moment.
    quick: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    offered: usize,
    running: usize,
    /// Requests that FPM runs at once, as far as was seen; 0 is nothing yet.
    learned: usize,
    /// Whether it was ever seen that FPM took an offer.
    witnessed: bool,
    told: Option<Instant>,
    waiting: VecDeque<Waiter>,
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    children: Option<usize>,
    grant: oneshot::Sender<Place>,
}

impl Gate {
    /// A place, at once or when it is this request's turn. Dropping the future leaves the queue.
    pub async fn enter(self: &Arc<Self>, limits: Limits, deadline: Instant) -> Result<Place, Refused> {
        let (ticket, turn) = {
            let mut state = self.lock();
            if state.waiting.is_empty() && state.has_room(limits.children) {
                state.offered += 1;
                drop(state);
                return Ok(Place { gate: Arc::clone(self), running: false });
            }
            let queue = state.queue(limits);
            if state.waiting.len() >= queue {
                return Err(Refused::Full(queue));
            }
            let (grant, turn) = oneshot::channel();
            let id = state.next;
            state.next = state.next.wrapping_add(1);
            state.waiting.push_back(Waiter { id, children: limits.children, grant });
            (Ticket { gate: self, id }, turn)
        };
        let place = timeout_at(deadline, turn).await;
        drop(ticket);
        place.ok().and_then(Result::ok).ok_or(Refused::Late)
    }

    /// How many requests are here, waiting ones included, and how many FPM runs at once; 0 is not known.
    pub fn load(&self, children: Option<usize>) -> (usize, usize) {
        let state = self.lock();
        (state.offered + state.running + state.waiting.len(), children.unwrap_or(state.learned))
    }

    /// Whether it was ever seen that FPM took an offer.
    pub fn is_witnessed(&self) -> bool {
        self.lock().witnessed
    }

    /// Whether a request with a place may go out whole: FPM was seen to take an offer, answered within [`QUICK`] when last
    /// it did, and enough of the offers are left for those whose taking is seen.
    pub fn may_be_whole(&self, children: Option<usize>) -> bool {
        self.quick.load(Ordering::Relaxed) && (children.is_some() || self.lock().offered <= UNSEEN)
    }

    /// An answer, or none, came `after` so long; `None` where that says nothing of the next one.
    pub fn note_answer(&self, after: Option<Duration>) {
        self.quick.store(after.is_some_and(|after| after < QUICK), Ordering::Relaxed);
    }

    /// FPM leaves an offer alone: what it runs now is all that it can. Gives that number where it is time to tell it.
    pub fn note_late(&self, now: Instant) -> Option<usize> {
        let mut state = self.lock();
        if state.running == 0 {
            return None;
        }
        state.learned = state.running;
        if state.told.is_some_and(|told| now.duration_since(told) < TOLD_EVERY) {
            return None;
        }
        state.told = Some(now);
        Some(state.running)
    }

    /// Lets in whose turn it is.
    fn advance(self: &Arc<Self>) {
        loop {
            let waiter = {
                let mut state = self.lock();
                let first = state.waiting.front().map(|waiter| waiter.children);
                if !first.is_some_and(|children| state.has_room(children)) {
                    return;
                }
                let Some(waiter) = state.waiting.pop_front() else { return };
                state.offered += 1;
                waiter
            };
            // Unlocked: the place of one that has just left comes back here.
            let _ = waiter.grant.send(Place { gate: Arc::clone(self), running: false });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self, children: Option<usize>) -> bool {
        let here = self.offered + self.running;
        match children {
            Some(children) => here < children,
            None => self.offered < OFFERS && (self.witnessed || here < BLIND),
        }
    }

    fn queue(&self, limits: Limits) -> usize {
        match (limits.queue, limits.children) {
            (Some(queue), _) => queue,
            (None, Some(children)) => children.saturating_mul(4),
            (None, None) => self.learned.saturating_mul(4).max(LEAST_QUEUE),
        }
    }
}

/// Leaves the queue when dropped, unless its turn has come.
struct Ticket<'a> {
    gate: &'a Arc<Gate>,
    id: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        // The oldest stand in front and ids only grow, but for one wrap in an age.
        if let Some(at) = state.waiting.iter().position(|waiter| waiter.id == self.id) {
            state.waiting.remove(at);
        }
        drop(state);
        // Who stands behind it may be let in by a limit of its own.
        self.gate.advance();
    }
}

/// One request at FPM; given back when dropped.
pub(super) struct Place {
    gate: Arc<Gate>,
    running: bool,
}

impl Place {
    /// FPM runs the request, or may. `witnessed`: it was seen to take it.
    pub fn begin(&mut self, witnessed: bool) {
        if self.running {
            return;
        }
        self.running = true;
        let mut state = self.gate.lock();
        state.offered = state.offered.saturating_sub(1);
        state.running += 1;
        state.witnessed |= witnessed;
        state.learned = state.learned.max(state.running);
        drop(state);
        self.gate.advance();
    }

    /// Whether it is at FPM's worker, as far as is known.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// The request will be offered once more.
    pub fn begin_again(&mut self) {
        if !self.running {
            return;
        }
        self.running = false;
        let mut state = self.gate.lock();
        state.running = state.running.saturating_sub(1);
        state.offered += 1;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        let count = if self.running { &mut state.running } else { &mut state.offered };
        *count = count.saturating_sub(1);
        drop(state);
        self.gate.advance();
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.running { "Place(running)" } else { "Place(offered)" })
    }
}

#[cfg(test)]
mod tests;
