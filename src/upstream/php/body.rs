//! The body of an answer, on its way from FPM to the client.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::task::AbortOnDropHandle;

use super::ahead::{Ahead, fill};
use super::exchange::{Event, Exchange};
use super::pool::FastCgiPool;
use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::upstream::fastcgi::record::{End, ProtocolStatus};

/// PHP writes small records; up to this much of them becomes one frame.
const GATHER: usize = 16 * 1024;

/// An answer that is read a little ahead of its client: FPM's worker is free once the rest of the answer fits into what
/// may be held, however slow the client is. Dropping it closes the connection.
pub(super) struct AnswerBody {
    ahead: Arc<Ahead>,
    /// What Content-Length leaves to come.
    left: Option<u64>,
    pool: FastCgiPool,
    keep: usize,
    _reading: AbortOnDropHandle<()>,
}

impl AnswerBody {
    /// The body of an answer of which `start` has been read, and which says that it is `length` bytes long. At most
    /// `keep` connections are kept in `pool`. `held` counts what all answers have read ahead.
    pub fn body(
        exchange: Exchange,
        start: Bytes,
        length: Option<u64>,
        (pool, keep): (FastCgiPool, usize),
        held: Arc<AtomicUsize>,
    ) -> Body {
        let mut source =
            Source { exchange: Some(exchange), gathered: Gathered::default(), left: length, failed: None, ended: None };
        source.take(Event::Output(start));
        source.absorb();
        if source.exchange.is_none() && source.failed.is_none() {
            // All of it is here already: its length is known, and the connection free.
            if let Some(exchange) = source.ended {
                exchange.recycle(&pool, keep);
            }
            return Body::full(source.gathered.take());
        }
        let ahead = Arc::new(Ahead::new(held, keep > 0));
        let reading = AbortOnDropHandle::new(tokio::spawn(fill(Arc::clone(&ahead), source)));
        Body::Stream(Box::pin(AnswerBody { ahead, left: length, pool, keep, _reading: reading }))
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let next = ready!(self.ahead.poll_take(cx));
        if let Some(exchange) = self.ahead.ended() {
            exchange.recycle(&self.pool, self.keep);
        }
        if let (Some(Ok(data)), Some(left)) = (&next, &mut self.left) {
            *left = left.saturating_sub(data.len() as u64);
        }
        Poll::Ready(next.map(|next| next.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(left) = self.left {
            return SizeHint::with_exact(left);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(self.ahead.len());
        hint
    }
}

/// What FPM sends, as frames.
pub(super) struct Source {
    /// `None` once the answer is over.
    exchange: Option<Exchange>,
    gathered: Gathered,
    /// What Content-Length leaves to come.
    left: Option<u64>,
    failed: Option<Fault>,
    /// An exchange whose answer came to a good end.
    ended: Option<Exchange>,
}

impl Source {
    /// The next frame; never empty.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        loop {
            self.absorb();
            if self.gathered.len() > 0 {
                return Poll::Ready(Some(Ok(self.gathered.take())));
            }
            if let Some(fault) = self.failed.take() {
                return Poll::Ready(Some(Err(fault)));
            }
            let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
            match ready!(exchange.poll_event(cx)) {
                Ok(event) => self.take(event),
                Err(fault) => self.fail(fault),
            }
        }
    }

    /// Whether nothing more comes. The end is taken with the data before it, where both have come: a reader that knows
    /// the length does not ask for the end.
    pub fn is_over(&self) -> bool {
        self.exchange.is_none() && self.gathered.len() == 0 && self.failed.is_none()
    }

    /// The exchange, once its answer came to a good end.
    pub fn take_ended(&mut self) -> Option<Exchange> {
        self.ended.take()
    }

    /// Takes what has been read already, up to a frame's worth.
    fn absorb(&mut self) {
        while self.gathered.len() < GATHER
            && let Some(exchange) = &mut self.exchange
        {
            match exchange.decode() {
                Ok(None) => return,
                Ok(Some(event)) => self.take(event),
                Err(fault) => self.fail(fault),
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Output(mut data) => {
                if let Some(left) = &mut self.left {
                    let size = data.len() as u64;
                    if size > *left {
                        // A line feed behind the last "?>" is enough for this. As with nginx, the client gets what it
                        // was told of; over HTTP/1.1 there would be no way to take that back.
                        data.truncate(usize::try_from(*left).unwrap_or(0));
                        if let Some(exchange) = self.exchange.take() {
                            exchange.note_surplus();
                        }
                        self.left = Some(0);
                    } else {
                        *left -= size;
                    }
                }
                self.gathered.push(data);
            }
            Event::End(end) => self.end(end),
        }
    }

    fn end(&mut self, end: End) {
        if end.protocol_status != ProtocolStatus::Complete {
            return self.fail(Fault::new(Kind::BadAnswer, format!("PHP-FPM broke off: {:?}", end.protocol_status)));
        }
        if self.left.is_some_and(|left| left > 0) {
            return self.fail(Fault::new(Kind::Truncated, "PHP sent less than its Content-Length"));
        }
        self.ended = self.exchange.take();
    }

    /// Closes the connection; the fault follows what has been gathered.
    fn fail(&mut self, fault: Fault) {
        self.exchange = None;
        self.failed = Some(fault);
    }
}

/// Data on its way: one piece as it came, several copied into one.
#[derive(Default)]
struct Gathered {
    first: Bytes,
    more: BytesMut,
}

impl Gathered {
    fn len(&self) -> usize {
        self.first.len() + self.more.len()
    }

    fn push(&mut self, data: Bytes) {
        if self.len() == 0 {
            self.first = data;
            return;
        }
        if !self.first.is_empty() {
            self.more.reserve(GATHER);
            self.more.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.more.extend_from_slice(&data);
    }

    fn take(&mut self) -> Bytes {
        if self.more.is_empty() {
            return std::mem::take(&mut self.first);
        }
        let more = std::mem::take(&mut self.more);
        // A small piece is not to hold a large buffer for as long as its client is slow.
        if more.len() < more.capacity() / 2 { Bytes::copy_from_slice(&more) } else { more.freeze() }
    }
}
