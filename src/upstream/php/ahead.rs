//! What was read of an answer before its client took it: bounded, for each answer and for all together.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::body::Source;
use super::exchange::Exchange;
use crate::base::fault::Fault;

/// What one answer may hold; one frame more may be on top.
pub(super) const AHEAD: usize = 256 * 1024;
/// What all answers may hold. Beyond it each has one frame, and FPM waits for its client.
pub(super) const AHEAD_OF_ALL: usize = 64 * 1024 * 1024;

/// Frames on their way from the task that reads them to the body that gives them away.
pub(super) struct Ahead {
    state: Mutex<State>,
    of_all: Arc<AtomicUsize>,
    keep: bool,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Bytes>,
    /// What the frames cost.
    held: usize,
    /// The data in them.
    bytes: u64,
    failed: Option<Fault>,
    /// Nothing more will come in.
    over: bool,
    ended: Option<Exchange>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Reads `source` to its end, as far ahead as `ahead` has room.
pub(super) async fn fill(ahead: Arc<Ahead>, mut source: Source) {
    loop {
        poll_fn(|cx| ahead.poll_room(cx)).await;
        let next = poll_fn(|cx| source.poll_next(cx)).await;
        let over = source.is_over();
        ahead.put(next, over, source.take_ended());
        if over {
            return;
        }
    }
}

impl Ahead {
    /// Nothing yet. `of_all` counts the bytes of all answers; `keep` is whether the connection is of use afterwards.
    pub fn new(of_all: Arc<AtomicUsize>, keep: bool) -> Ahead {
        Ahead { state: Mutex::default(), of_all, keep }
    }

    /// The next frame; `None` is the end.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        let mut state = self.lock();
        if let Some(frame) = state.frames.pop_front() {
            state.held = state.held.saturating_sub(cost(&frame));
            state.bytes = state.bytes.saturating_sub(frame.len() as u64);
            self.of_all.fetch_sub(cost(&frame), Ordering::Relaxed);
            let writer = state.writer.take();
            drop(state);
            wake(writer);
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(fault) = state.failed.take() {
            return Poll::Ready(Some(Err(fault)));
        }
        if state.over {
            return Poll::Ready(None);
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The exchange, once: its answer came to a good end.
    pub fn ended(&self) -> Option<Exchange> {
        self.lock().ended.take()
    }

    /// Whether nothing more comes out.
    pub fn is_over(&self) -> bool {
        let state = self.lock();
        state.over && state.frames.is_empty() && state.failed.is_none()
    }

    /// Bytes that can be taken at once.
    pub fn len(&self) -> u64 {
        self.lock().bytes
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        let room = state.held < AHEAD && self.of_all.load(Ordering::Relaxed) < AHEAD_OF_ALL;
        if room || state.held == 0 {
            return Poll::Ready(());
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn put(&self, next: Option<Result<Bytes, Fault>>, over: bool, ended: Option<Exchange>) {
        let mut state = self.lock();
        match next {
            Some(Ok(frame)) => {
                state.held += cost(&frame);
                state.bytes += frame.len() as u64;
                self.of_all.fetch_add(cost(&frame), Ordering::Relaxed);
                state.frames.push_back(frame);
            }
            Some(Err(fault)) => state.failed = Some(fault),
            None => {}
        }
        state.over = over;
        // PHP waits for us to close. For a connection that nobody takes over now, a slow client would hold a worker.
        state.ended = ended.filter(|_| self.keep && state.frames.len() <= 1);
        let reader = state.reader.take();
        drop(state);
        wake(reader);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.of_all.fetch_sub(self.lock().held, Ordering::Relaxed);
    }
}

/// What a frame costs in memory: its bytes, and what holds them.
fn cost(frame: &Bytes) -> usize {
    frame.len() + 128
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
