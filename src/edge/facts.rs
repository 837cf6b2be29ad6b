//! What the byte stream of a connection and the service that answers its requests tell each other.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::Waker;

use crate::http::frames::Piece;
use crate::http::guard::Refusal;

/// Pieces of answers that may wait for their frames: a few for each stream. What streams that were reset leave over is
/// not worth more.
const MOST_PIECES: u32 = 1024;

/// Shared by one connection's stream and its service. Atomic only because hyper asks for a `Send` stream: both ends
/// live on one worker, and no ordering between them is needed.
#[derive(Debug, Default)]
pub struct Facts {
    refused: OnceLock<(u64, Refusal)>,
    body_refused: OnceLock<Refusal>,
    begun: AtomicU64,
    answered: AtomicU64,
    busy: AtomicUsize,
    tunnels: AtomicUsize,
    /// Pieces of answers that hyper has got and that no frame was taken for.
    content: AtomicU32,
    last_fields: AtomicU32,
    /// Requests that had too many fields, since the stream asked last.
    oversize: AtomicU32,
    flooded: AtomicBool,
    blocked: AtomicBool,
    /// The task that waits for the client's next head, or for its handshake's outcome.
    reader: Mutex<Option<Waker>>,
    /// The task that waits for the client's body.
    body: Mutex<Option<Waker>>,
}

impl Facts {
    /// The guard refuses the head behind `heads` good ones.
    pub fn refuse_head(&self, heads: u64, refusal: Refusal) {
        let _ = self.refused.set((heads, refusal));
    }

    /// The guard refuses the body that is being read.
    pub fn refuse_body(&self, refusal: Refusal) {
        let _ = self.body_refused.set(refusal);
        wake(&self.body);
    }

    /// Why the body that is being read broke off, if the guard ended it.
    pub fn body_refusal(&self) -> Option<Refusal> {
        self.body_refused.get().copied()
    }

    /// A request has arrived; gives the refusal that stands in its place, if one does.
    pub fn begin(&self) -> Option<Refusal> {
        self.busy.fetch_add(1, Ordering::Relaxed);
        let index = self.begun.fetch_add(1, Ordering::Relaxed);
        self.refused.get().filter(|(heads, _)| *heads == index).map(|(_, refusal)| *refusal)
    }

    /// How many requests have arrived.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// A request was answered with an ordinary response, not with 101.
    pub fn answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        wake(&self.reader);
    }

    /// How many requests were answered with an ordinary response.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// A response has been sent to its end, or given up.
    pub fn end(&self) {
        self.busy.fetch_sub(1, Ordering::Relaxed);
        wake(&self.reader);
    }

    /// A request became a tunnel.
    pub fn open_tunnel(&self) {
        self.tunnels.fetch_add(1, Ordering::Relaxed);
    }

    /// A tunnel has ended.
    pub fn close_tunnel(&self) {
        self.tunnels.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a tunnel lives on the connection.
    pub fn has_tunnel(&self) -> bool {
        self.tunnels.load(Ordering::Relaxed) > 0
    }

    /// hyper gets a piece of an answer.
    pub fn hand(&self, piece: Piece) {
        let more = |pieces: u32| (pieces < MOST_PIECES).then_some(pieces + 1);
        let _ = self.pieces(piece).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// A frame went out: whether there is a piece of an answer for it.
    pub fn take(&self, piece: Piece) -> bool {
        let pieces = self.pieces(piece);
        pieces.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pieces| pieces.checked_sub(1)).is_ok()
    }

    fn pieces(&self, piece: Piece) -> &AtomicU32 {
        match piece {
            Piece::Content => &self.content,
            Piece::LastFields => &self.last_fields,
        }
    }

    /// A request came that had too many fields.
    pub fn note_oversize(&self) {
        self.oversize.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests came that had too many fields, since this was asked last.
    pub fn take_oversize(&self) -> u32 {
        self.oversize.swap(0, Ordering::Relaxed)
    }

    /// The client has sent too many control frames.
    pub fn note_flood(&self) {
        self.flooded.store(true, Ordering::Relaxed);
    }

    /// Whether the client has sent too many control frames.
    pub fn is_flooded(&self) -> bool {
        self.flooded.load(Ordering::Relaxed)
    }

    /// Whether what was written waits until the client takes it.
    pub fn note_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    /// Whether bytes wait for the client, be it the end of an answer that hyper has got already.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// The stream has nothing to read until something here changes. hyper does not ask again by itself: it trusts
    /// that whoever blocked its read will wake it.
    pub fn park_reader(&self, waker: &Waker) {
        park(&self.reader, waker);
    }

    /// The body has nothing until the guard refuses it or hyper has more.
    pub fn park_body(&self, waker: &Waker) {
        park(&self.body, waker);
    }

    /// Whether a request is being answered.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }
}

fn park(place: &Mutex<Option<Waker>>, waker: &Waker) {
    let mut parked = place.lock().unwrap_or_else(PoisonError::into_inner);
    if !parked.as_ref().is_some_and(|parked| parked.will_wake(waker)) {
        *parked = Some(waker.clone());
    }
}

fn wake(place: &Mutex<Option<Waker>>) {
    let parked = place.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(waker) = parked {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_never_go_out_are_not_kept_without_end() {
        let facts = Facts::default();
        (0..3 * MOST_PIECES).for_each(|_| facts.hand(Piece::LastFields));
        let taken = (0..3 * MOST_PIECES).filter(|_| facts.take(Piece::LastFields)).count();
        assert_eq!((taken, facts.take(Piece::Content)), (1024, false));
    }
}
