//! The client's side of a tunnel over HTTP/2 (RFC 8441): hyper's stream, and the task that hyper starts to carry what is
//! written to it. The tunnel and that task know of one another's end.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::edge::facts::Facts;
use crate::http::frames::Piece;

/// Bytes that are handed over at a time: one DATA frame of the usual size. hyper copies each piece and holds up to
/// three, and one more is on its way: this is what bounds the memory of a tunnel whose client takes nothing.
const PIECE: usize = 16 * 1024;

/// What a tunnel and the task that carries its bytes to the client tell each other.
pub struct Carrier {
    /// Of the connection.
    facts: Arc<Facts>,
    /// The task has ended: behind the end of our side, or because the client has reset the stream.
    ended: Cell<bool>,
    /// Since when the tunnel is over.
    over: Cell<Option<Instant>>,
    task: Cell<Option<Waker>>,
}

impl Carrier {
    /// For a stream of the connection with `facts`.
    pub fn new(facts: Arc<Facts>) -> Carrier {
        Carrier { facts, ended: Cell::new(false), over: Cell::new(None), task: Cell::new(None) }
    }

    /// Runs hyper's `task` to its end. When the tunnel is over and the client does not take the rest within `patience`,
    /// the task is dropped, which resets the stream.
    pub async fn run(self: Rc<Carrier>, task: impl Future, patience: Duration) {
        {
            let mut task = pin!(task);
            let mut alarm: Option<Pin<Box<Sleep>>> = None;
            poll_fn(|cx| {
                if task.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let Some(over) = self.over.get() else {
                    self.park(cx);
                    return Poll::Pending;
                };
                alarm.get_or_insert_with(|| Box::pin(sleep_until(over + patience))).as_mut().poll(cx)
            })
            .await;
        }
        self.ended.set(true);
    }

    fn park(&self, cx: &Context<'_>) {
        let parked = self.task.take().filter(|parked| parked.will_wake(cx.waker()));
        self.task.set(parked.or_else(|| Some(cx.waker().clone())));
    }
}

/// See the module.
pub struct Http2Client {
    io: TokioIo<Upgraded>,
    carrier: Rc<Carrier>,
    /// Our side has ended.
    shut: bool,
    /// The end of the client's side was seen, and the carrier had its turn to tell what kind of end it is.
    looked: bool,
}

impl Http2Client {
    /// The stream that hyper gave for an extended CONNECT, and its carrier.
    pub fn new(upgraded: Upgraded, carrier: Rc<Carrier>) -> Http2Client {
        Http2Client { io: TokioIo::new(upgraded), carrier, shut: false, looked: false }
    }
}

impl Http2Client {
    /// Takes what else is there, behind what was read into `buf` behind `before`. hyper gives one DATA frame at a time:
    /// a client of short ones would cost a write to the back end for each, and would be ahead of us in no time. An end
    /// or an error comes again. Behind a back end that takes nothing they still pile up, and the h2 library ends the
    /// connection at about 2,000.
    fn read_on(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, mut before: usize) {
        while buf.filled().len() > before && buf.remaining() > 0 {
            before = buf.filled().len();
            let _ = Pin::new(&mut self.io).poll_read(cx, buf);
        }
    }
}

impl AsyncRead for Http2Client {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read {
            // The end of the whole connection, however it came, is more than the end of the client's side.
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error.to_string())));
        }
        let ended = matches!(read, Poll::Ready(Ok(()))) && buf.filled().len() == before && buf.remaining() > 0;
        if !ended {
            self.read_on(cx, buf, before);
            return read;
        }
        if self.shut {
            return read;
        }
        if self.carrier.ended.get() {
            // RFC 8441, section 5: "TCP-level closures … RST exceptions are represented with the RST_STREAM frame".
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "the client reset the stream")));
        }
        if !self.looked {
            // hyper tells a stream that was cancelled like one that has ended. The carrier was woken by the same frame
            // and runs before this task does again.
            self.looked = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        read
    }
}

impl AsyncWrite for Http2Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let piece = bytes.get(..PIECE).unwrap_or(bytes);
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, piece))?;
        self.carrier.facts.hand(Piece::Content);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Drop for Http2Client {
    fn drop(&mut self) {
        self.carrier.over.set(Some(Instant::now()));
        if let Some(task) = self.carrier.task.take() {
            task.wake();
        }
    }
}
