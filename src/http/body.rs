//! The one body type of the house, and what is done to bodies on their way.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::base::fault::{Fault, Kind};

/// A body on its way. Bodies live on one worker and need not be `Send`.
#[derive(Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// All of it, in memory.
    Full(Bytes),
    /// A stream.
    Stream(Pin<Box<dyn HttpBody<Data = Bytes, Error = Fault>>>),
}

impl Body {
    /// A body of these bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Body {
        let bytes = bytes.into();
        if bytes.is_empty() { Body::Empty } else { Body::Full(bytes) }
    }

    /// A body that streams from `body`.
    pub fn stream(body: impl HttpBody<Data = Bytes, Error = Fault> + 'static) -> Body {
        if body.is_end_stream() { Body::Empty } else { Body::Stream(Box::pin(body)) }
    }

    /// The length, where it is known before the end.
    pub fn length(&self) -> Option<u64> {
        self.size_hint().exact()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match &mut *self {
            Body::Empty => Poll::Ready(None),
            Body::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Body::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Body::Stream(inner) => {
                let frame = ready!(inner.as_mut().poll_frame(cx));
                // Fused: some readers poll once more after the end.
                if frame.is_none() {
                    *self = Body::Empty;
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(bytes) => bytes.is_empty(),
            Body::Stream(inner) => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Stream(inner) => inner.size_hint(),
        }
    }
}

/// A request body that ends in a fault when it grows over its limit. Trailers are dropped: nothing that we forward
/// to reads them, and merging them is how smuggling starts (RFC 9110, section 6.5.1).
pub struct Limited<B> {
    inner: B,
    left: Option<u64>,
}

impl<B> Limited<B> {
    /// `inner` up to `limit` bytes; `None` is no limit.
    pub fn new(inner: B, limit: Option<u64>) -> Limited<B> {
        Limited { inner, left: limit }
    }
}

impl<B> HttpBody for Limited<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<Fault>,
{
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            if let Some(left) = &mut self.left {
                let Some(rest) = left.checked_sub(data.len() as u64) else {
                    return Poll::Ready(Some(Err(Fault::new(Kind::BodyTooLarge, "the request body is over max_body"))));
                };
                *left = rest;
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
