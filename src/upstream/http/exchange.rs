//! One request on one connection: the body on its way up, and the wait for the answer's head.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::upstream::http::pool::Link;
use crate::upstream::http::settings::Timeouts;

/// A request body as hyper gets it. What becomes of it is told to an [`Exchange`].
pub(super) struct Upload {
    body: Body,
    /// What is missing of an announced length: hyper drops a body that is complete without polling for its end.
    left: Option<u64>,
    exchange: Option<Rc<Exchange>>,
}

/// How far the body of one request has come.
pub(super) struct Exchange {
    state: Cell<State>,
    since: Cell<Instant>,
    fault: RefCell<Option<Fault>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The client is to send more.
    Client,
    /// The back end is to take what there is.
    BackEnd,
    /// All of it was handed over.
    Sent,
}

impl Upload {
    /// No body.
    pub(super) fn none() -> Upload {
        Upload { body: Body::Empty, left: Some(0), exchange: None }
    }

    /// `body`, watched unless it is empty.
    pub(super) fn new(body: Body) -> (Upload, Option<Rc<Exchange>>) {
        let left = body.length();
        if left == Some(0) {
            return (Upload::none(), None);
        }
        let exchange = Rc::new(Exchange {
            state: Cell::new(State::BackEnd),
            since: Cell::new(Instant::now()),
            fault: RefCell::new(None),
        });
        (Upload { body, left, exchange: Some(Rc::clone(&exchange)) }, Some(exchange))
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = &mut *self;
        loop {
            let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
                note(&this.exchange, State::Client);
                return Poll::Pending;
            };
            match frame {
                None => {
                    note(&this.exchange, State::Sent);
                    return Poll::Ready(None);
                }
                Some(Err(fault)) => {
                    // hyper would wrap it; its kind is what the client gets to see.
                    let told = Fault::new(fault.kind, "the request body failed");
                    if let Some(exchange) = &this.exchange {
                        exchange.fault.replace(Some(fault));
                    }
                    return Poll::Ready(Some(Err(told)));
                }
                Some(Ok(frame)) => {
                    // Trailers are not passed on: nothing that we forward to reads them.
                    let Ok(data) = frame.into_data() else { continue };
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    let done = this.left == Some(0) || this.body.is_end_stream();
                    note(&this.exchange, if done { State::Sent } else { State::BackEnd });
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn note(exchange: &Option<Rc<Exchange>>, state: State) {
    if let Some(exchange) = exchange {
        exchange.state.set(state);
        exchange.since.set(Instant::now());
    }
}

impl Exchange {
    /// Whether all of the body was handed over.
    pub(super) fn is_sent(&self) -> bool {
        self.state.get() == State::Sent
    }

    /// The fault that the body ended in, once.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.borrow_mut().take()
    }
}

/// Waits for `answer`, the future of the answer's head. The back end is waited for; the client is not: that is the
/// business of its body, which ends in a fault of its own.
pub(super) async fn wait<T>(
    answer: impl Future<Output = T>,
    exchange: Option<&Exchange>,
    link: &Link,
    timeouts: &Timeouts,
) -> Result<T, Fault> {
    let mut answer = std::pin::pin!(answer);
    // A first look when the shortest wait could be over; each look says when the next one is due.
    let mut wake = Instant::now() + if exchange.is_some() { timeouts.read.min(timeouts.send) } else { timeouts.read };
    loop {
        if let Ok(answered) = tokio::time::timeout_at(wake, answer.as_mut()).await {
            return Ok(answered);
        }
        wake = look(exchange, link.wrote(), timeouts, Instant::now())?;
    }
}

/// When to look again, or the fault that nothing moved for too long. A large buffer drains through a slow socket
/// without the body being asked for more: `wrote`, the time of the last write to the socket, counts as well.
fn look(exchange: Option<&Exchange>, wrote: Instant, timeouts: &Timeouts, now: Instant) -> Result<Instant, Fault> {
    let (state, since) = exchange.map_or((State::Sent, wrote), |e| (e.state.get(), e.since.get().max(wrote)));
    let (due, kind, told) = match state {
        State::Client => return Ok(now + timeouts.read.min(timeouts.send)),
        State::BackEnd => (since + timeouts.send, Kind::SendTimeout, "the back end took nothing of the request"),
        State::Sent => (since + timeouts.read, Kind::ReadTimeout, "the back end did not answer"),
    };
    if due <= now { Err(Fault::new(kind, told)) } else { Ok(due) }
}

/// Reads `body` to its end.
#[cfg(test)]
pub(super) async fn collect(mut body: Body) -> Result<Vec<u8>, Fault> {
    let mut all = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
    }
    Ok(all)
}
