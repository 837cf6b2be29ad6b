//! A request body as the client sends it, with a deadline between two pieces and the client's faults told apart.
//!
//! The service keeps hold of it beside whoever reads it: an answer that comes before the body has been read must not
//! drop it, or the client is told that its request was cancelled.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::base::cached_time;
use crate::base::fault::{Fault, Kind};
use crate::base::pace::Pace;
use crate::edge::facts::Facts;
use crate::edge::snapshot::Terms;
use crate::http::body::Body;

/// How much of an unread body is read after an early answer, and for how long: enough for what a form or a script
/// sends, so that its connection can be used again.
const DRAIN_BYTES: usize = 256 * 1024;
const DRAIN_TIME: Duration = Duration::from_millis(500);

/// hyper's body, shared by the service and whoever reads it.
pub struct Unread {
    body: Rc<RefCell<Incoming>>,
    /// Nothing more is to be read for its own sake.
    hopeless: Cell<bool>,
}

impl Unread {
    /// Gives up what has not been read.
    pub fn give_up(&self) {
        self.hopeless.set(true);
    }

    /// Reads on for a little, once, unless somebody still does or the end has come. Whether the end has come.
    pub async fn drain(&self) -> bool {
        if self.body.borrow().is_end_stream() {
            return true;
        }
        if self.hopeless.get() || Rc::strong_count(&self.body) > 1 {
            return false;
        }
        self.give_up();
        let mut left = DRAIN_BYTES;
        let end = async {
            while !self.body.borrow().is_end_stream() {
                match poll_fn(|cx| Pin::new(&mut *self.body.borrow_mut()).poll_frame(cx)).await {
                    Some(Ok(frame)) => match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                        Some(rest) => left = rest,
                        None => return false,
                    },
                    Some(Err(_)) => return false,
                    None => return true,
                }
            }
            true
        };
        tokio::time::timeout(DRAIN_TIME, end).await.unwrap_or(false)
    }

    /// `answer`, whose end waits a moment for the end of the body. Over HTTP/2 it would else be followed by an
    /// RST_STREAM, behind which clients lose what they have not read yet.
    pub fn outlast(self: &Rc<Self>, answer: impl HttpBody<Data = Bytes, Error = Fault> + Unpin + 'static) -> Body {
        let unread = Rc::clone(self);
        let rest: Pin<Box<dyn Future<Output = bool>>> = Box::pin(async move { unread.drain().await });
        Body::Stream(Box::pin(Early { answer, rest: Some(rest) }))
    }
}

/// An answer that has come before the end of its request's body.
struct Early<B> {
    answer: B,
    /// `None` when the body has been waited for.
    rest: Option<Pin<Box<dyn Future<Output = bool>>>>,
}

impl<B: HttpBody<Data = Bytes, Error = Fault> + Unpin> HttpBody for Early<B> {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = &mut *self;
        if let Some(frame) = ready!(Pin::new(&mut this.answer).poll_frame(cx)) {
            return Poll::Ready(Some(frame));
        }
        // Only now is the destination's hold of the body gone.
        if let Some(rest) = &mut this.rest {
            ready!(rest.as_mut().poll(cx));
            this.rest = None;
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

/// See the module. The deadlines run only while somebody waits for the client: what a slow back end has not taken yet
/// is not the client's fault.
pub struct ClientBody {
    inner: Rc<RefCell<Incoming>>,
    patience: Duration,
    pace: Pace,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Since when the client is waited for.
    waiting: Option<Instant>,
    facts: Arc<Facts>,
}

impl ClientBody {
    /// `incoming`, which has to come as `terms` say, for its reader and for the service.
    pub fn new(incoming: Incoming, terms: &Terms, facts: Arc<Facts>) -> (ClientBody, Unread) {
        let patience = terms.timeouts.body;
        let inner = Rc::new(RefCell::new(incoming));
        let unread = Unread { body: inner.clone(), hopeless: Cell::new(false) };
        let pace = Pace::new(terms.min_rate, patience);
        (ClientBody { inner, patience, pace, sleep: None, waiting: None, facts }, unread)
    }

    /// Something has come.
    fn note(&mut self, bytes: usize) {
        if let Some(since) = self.waiting.take() {
            self.pace.spend(cached_time::since(since));
        }
        self.pace.earn(bytes);
    }

    /// What the client has not kept to.
    fn late(&self) -> Fault {
        let too_slow = self.pace.left().is_some_and(|left| left < self.patience);
        let detail = if too_slow {
            "the request body came more slowly than limits.min_rate"
        } else {
            "the request body stalled for timeouts.body"
        };
        Fault::new(Kind::BodyTimeout, detail)
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self.pace.left().map_or(self.patience, |left| left.min(self.patience));
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        if self.waiting.is_none() {
            let now = cached_time::now();
            self.waiting = Some(now);
            sleep.as_mut().reset((now + patience).into());
        }
        sleep.as_mut().poll(cx)
    }
}

impl HttpBody for ClientBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let polled = Pin::new(&mut *self.inner.borrow_mut()).poll_frame(cx);
        match polled {
            Poll::Ready(frame) => {
                let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
                self.note(data.map_or(0, Bytes::len));
                Poll::Ready(frame.map(|frame| frame.map_err(broken_off)))
            }
            Poll::Pending if self.facts.body_refusal().is_some() => {
                Poll::Ready(self.facts.body_refusal().map(|refusal| Err(Fault::new(refusal.kind, refusal.detail))))
            }
            Poll::Pending if self.poll_deadline(cx).is_ready() => Poll::Ready(Some(Err(self.late()))),
            Poll::Pending => {
                self.facts.park_body(cx.waker());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.borrow().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.borrow().size_hint()
    }
}

/// The guard has seen the body first; where hyper is stricter after all, the client is told that it is at fault.
fn broken_off(error: hyper::Error) -> Fault {
    use std::io::ErrorKind::{InvalidData, InvalidInput};
    let io = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    if io.is_some_and(|io| matches!(io.kind(), InvalidData | InvalidInput)) {
        return Fault::new(Kind::Malformed, "the request body is not framed as announced").because(error);
    }
    Fault::new(Kind::Gone, "the client broke off its request body").because(error)
}
