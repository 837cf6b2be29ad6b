//! Connections to back ends, and those of one worker that wait for their next request.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, header};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::upstream::connect::BackEndStream;
use crate::upstream::http::exchange::Upload;

/// Idle connections of one back end that are kept.
const KEPT: usize = 64;
/// Node closes an idle connection after five seconds; a request that crosses the FIN would be lost.
const IDLE: Duration = Duration::from_secs(4);
const SWEEP: Duration = Duration::from_secs(1);
/// Bytes that hyper holds of an answer, and of a request.
const BUFFER: usize = 128 * 1024;
/// Bytes of an answer's head.
const HEAD: usize = 64 * 1024;
/// Bytes that may come before an answer's final head: bounds a flood of 1xx answers, which hyper skips for ever.
/// Larger than all that hyper reads ahead.
const UNANSWERED: usize = 4 * BUFFER;

/// The idle connections of one worker. Cloning gives another handle to the same ones.
#[derive(Clone, Default)]
pub struct Pool(Rc<Shelves>);

#[derive(Default)]
struct Shelves {
    idle: RefCell<HashMap<Arc<str>, Vec<Idle>>>,
    swept: Cell<bool>,
}

struct Idle {
    connection: Connection,
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

    /// The connection to `key` that was used last, if it is still good.
    pub(super) fn take(&self, key: &str) -> Option<Connection> {
        let mut shelves = self.0.idle.borrow_mut();
        let shelf = shelves.get_mut(key)?;
        while let Some(idle) = shelf.pop() {
            if idle.since.elapsed() >= IDLE {
                // The others have waited longer.
                shelf.clear();
                return None;
            }
            if idle.connection.is_good() {
                return Some(idle.connection);
            }
        }
        None
    }

    pub(super) fn put(&self, key: &Arc<str>, mut connection: Connection) {
        if connection.single || connection.sender.is_closed() {
            return;
        }
        connection.reused = true;
        let mut shelves = self.0.idle.borrow_mut();
        let idle = Idle { connection, since: Instant::now() };
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
            shelf.retain(|idle| idle.since.elapsed() < IDLE && !idle.connection.sender.is_closed());
            !shelf.is_empty()
        });
        if idle.is_empty() {
            shelves.swept.set(false);
            return;
        }
    }
}

/// One HTTP/1.1 connection. A task of its own drives it. Dropped in the middle of an exchange it closes at once: the
/// back end need not go on working for a client that has left.
pub(super) struct Connection {
    sender: SendRequest<Upload>,
    link: Rc<Link>,
    task: AbortHandle,
    /// Whether it has served a request before.
    pub(super) reused: bool,
    /// Whether it is for one request: it has begun with the name of that one's client.
    pub(super) single: bool,
}

impl Connection {
    /// Speaks HTTP/1.1 over `stream`. If the connection switches protocols, `switched` gets what came behind the 101.
    pub(super) async fn open(
        stream: BackEndStream,
        switched: Option<oneshot::Sender<Bytes>>,
    ) -> hyper::Result<Connection> {
        let link = Rc::new(Link {
            stream: RefCell::new(Some(stream)),
            received: Cell::new(0),
            answered: Cell::new(false),
            wrote: Cell::new(Instant::now()),
            pending: Cell::new(false),
            broken: Cell::new(false),
            resting: Cell::new(true),
        });
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER).max_header_size(HEAD);
        let (sender, driver) = builder.handshake(TokioIo::new(Wire(Rc::clone(&link)))).await?;
        let held = Rc::clone(&link);
        let task = tokio::task::spawn_local(async move {
            match driver.without_shutdown().await {
                Ok(parts) => {
                    // Behind a 101 somebody waits for the rest; behind any other answer nobody does.
                    if switched.is_some_and(|switched| switched.send(parts.read_buf).is_ok()) {
                        return;
                    }
                    // The other end has a right to a close_notify; it has none to keep us waiting.
                    let _ = tokio::time::timeout(SWEEP, poll_fn(|cx| held.poll_shutdown(cx))).await;
                }
                Err(error) => tracing::debug!(%error, "a connection to a back end ended"),
            }
        });
        Ok(Connection { sender, link, task: task.abort_handle(), reused: false, single: false })
    }

    /// Sends `request`. Its exchange ends with [`Connection::rest`] or with the connection.
    pub(super) fn send(
        &mut self,
        mut request: http::Request<Upload>,
    ) -> impl Future<Output = Result<http::Response<Incoming>, TrySendError<http::Request<Upload>>>> + use<> {
        self.link.received.set(0);
        self.link.answered.set(false);
        self.link.resting.set(false);
        self.link.wrote.set(Instant::now());
        let headers = request.headers_mut();
        if self.single && !headers.contains_key(header::UPGRADE) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.sender.try_send_request(request)
    }

    /// The exchange is over: dropped from now on, the connection closes gently.
    pub(super) fn rest(&self) {
        self.link.resting.set(true);
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// The address at the other end.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        self.link.stream.borrow().as_ref().and_then(BackEndStream::peer)
    }

    fn is_good(&self) -> bool {
        self.sender.is_ready() && !self.sender.is_closed() && self.link.is_quiet()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.link.resting.get() {
            self.task.abort();
        }
    }
}

/// The socket of a connection, as its task and its exchange both see it.
pub(super) struct Link {
    stream: RefCell<Option<BackEndStream>>,
    /// Bytes that came since the request began.
    received: Cell<usize>,
    answered: Cell<bool>,
    wrote: Cell<Instant>,
    /// A write was refused and nothing was flushed since.
    pending: Cell<bool>,
    broken: Cell<bool>,
    resting: Cell<bool>,
}

impl Link {
    /// Whether the back end has said anything since the request began.
    pub(super) fn has_received(&self) -> bool {
        self.received.get() > 0
    }

    /// The answer's head is there.
    pub(super) fn answered(&self) {
        self.answered.set(true);
    }

    /// When bytes last went to the back end.
    pub(super) fn wrote(&self) -> Instant {
        self.wrote.get()
    }

    /// Whether all that was written has gone to the system.
    pub(super) fn is_flushed(&self) -> bool {
        !self.pending.get() && !self.broken.get()
    }

    /// Takes the stream away from HTTP, behind a 101.
    pub(super) fn take(&self) -> Option<BackEndStream> {
        self.stream.borrow_mut().take()
    }

    fn is_quiet(&self) -> bool {
        self.stream.borrow().as_ref().is_some_and(BackEndStream::is_quiet)
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }

    fn with<T>(&self, poll: impl FnOnce(Pin<&mut BackEndStream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match self.stream.borrow_mut().as_mut() {
            Some(stream) => poll(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// A back end that answers early (413, a redirect) and closes makes our next write fail while its answer waits to
    /// be read. So such an error is not told: writing stands still from there, and what is read, an answer or the
    /// end, decides.
    fn write<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match &written {
            Poll::Ready(Err(error)) if matches!(error.kind(), BrokenPipe | ConnectionReset | ConnectionAborted) => {
                self.broken.set(true);
                Poll::Pending
            }
            Poll::Ready(Ok(_)) => {
                self.wrote.set(Instant::now());
                written
            }
            Poll::Pending => {
                self.pending.set(true);
                written
            }
            Poll::Ready(Err(_)) => written,
        }
    }
}

/// What hyper reads and writes.
struct Wire(Rc<Link>);

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let link = &self.0;
        let before = buf.filled().len();
        ready!(link.with(|stream| stream.poll_read(cx, buf)))?;
        let received = link.received.get().saturating_add(buf.filled().len().saturating_sub(before));
        link.received.set(received);
        if received > UNANSWERED && !link.answered.get() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too much before the answer's head")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.0.broken.get() {
            return Poll::Pending;
        }
        self.0.write(self.0.with(|stream| stream.poll_write(cx, buf)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.0.broken.get() {
            return Poll::Pending;
        }
        self.0.write(self.0.with(|stream| stream.poll_write_vectored(cx, bufs)))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.stream.borrow().as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.broken.get() {
            return Poll::Pending;
        }
        // hyper flushes us only when its own buffer is empty.
        match self.0.with(|stream| stream.poll_flush(cx)) {
            Poll::Ready(Ok(())) => {
                self.0.pending.set(false);
                Poll::Ready(Ok(()))
            }
            other => self.0.write(other),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}
