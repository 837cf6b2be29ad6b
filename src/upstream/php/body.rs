//! The body of an answer, on its way from FPM to the client.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::exchange::{Event, Exchange};
use super::pool::FastCgiPool;
use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::upstream::fastcgi::record::{End, ProtocolStatus};

/// PHP writes small records; up to this much of them becomes one frame.
const GATHER: usize = 16 * 1024;

/// Reads from FPM when it is polled and at no other time: a client that reads slowly slows PHP down, and no memory
/// fills up in between.
pub(super) struct AnswerBody {
    /// `None` once the answer is over.
    exchange: Option<Exchange>,
    gathered: Gathered,
    /// What Content-Length leaves to come.
    left: Option<u64>,
    failed: Option<Fault>,
    pool: FastCgiPool,
    keep: usize,
}

impl AnswerBody {
    /// The body of an answer of which `start` has been read, and which says that it is `length` bytes long. At most
    /// `keep` connections are kept in `pool`.
    pub fn body(exchange: Exchange, start: Bytes, length: Option<u64>, pool: FastCgiPool, keep: usize) -> Body {
        let (exchange, gathered) = (Some(exchange), Gathered::default());
        let mut body = AnswerBody { exchange, gathered, left: length, failed: None, pool, keep };
        body.take(Event::Output(start));
        body.absorb();
        if body.exchange.is_none() && body.failed.is_none() {
            // All of it is here already: its length is known, and the connection free.
            return Body::full(body.gathered.take());
        }
        Body::Stream(Box::pin(body))
    }

    /// Takes what has been read already, up to a frame's worth. The end is taken with the data before it, where both
    /// have come: a reader that knows the length does not ask for the end.
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
                        data.truncate(usize::try_from(*left).unwrap_or(0));
                        self.fail(Fault::new(Kind::BadAnswer, "PHP sent more than its Content-Length"));
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
        if let Some(exchange) = self.exchange.take() {
            exchange.recycle(&self.pool, self.keep);
        }
    }

    /// Closes the connection; the fault follows what has been gathered.
    fn fail(&mut self, fault: Fault) {
        self.exchange = None;
        self.failed = Some(fault);
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        loop {
            self.absorb();
            if self.gathered.len() > 0 {
                return Poll::Ready(Some(Ok(Frame::data(self.gathered.take()))));
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

    fn is_end_stream(&self) -> bool {
        self.exchange.is_none() && self.failed.is_none() && self.gathered.len() == 0
    }

    fn size_hint(&self) -> SizeHint {
        let gathered = self.gathered.len() as u64;
        match (self.left, &self.exchange, &self.failed) {
            (Some(left), Some(_), _) => SizeHint::with_exact(gathered + left),
            (_, None, None) => SizeHint::with_exact(gathered),
            _ => {
                let mut hint = SizeHint::new();
                hint.set_lower(gathered);
                hint
            }
        }
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
        if self.more.is_empty() { std::mem::take(&mut self.first) } else { std::mem::take(&mut self.more).freeze() }
    }
}
