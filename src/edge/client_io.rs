//! A client's byte stream as hyper gets it: deadlines on reading and writing, and in front of HTTP/1.1 the guard,
//! in front of HTTP/2 the frame counter. It holds no buffer while it is idle.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::base::cached_time;
use crate::base::fault::Kind;
use crate::base::pace::Pace;
use crate::edge::client_stream::ClientStream;
use crate::edge::deadline::{Deadline, Phase};
use crate::edge::facts::Facts;
use crate::edge::snapshot::Terms;
use crate::http::frames::FrameCounter;
use crate::http::guard::{Guard, Place, Refusal, Step};

/// What hyper reads in the place of a head that was refused: a request of our own making, so that its answer takes
/// the usual way and its place among pipelined answers. [`Facts::begin`] tells the service which it is.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused.invalid\r\nconnection: close\r\n\r\n";

/// Bytes that are held back behind a WebSocket handshake until the back end has answered it.
const MOST_HELD: usize = 64 * 1024;

/// How long what a client still sends is read and dropped behind the end of our side. A socket that is closed with
/// bytes unread is reset, and the reset destroys the answer (413, 400) that is on its way (RFC 9112, section 9.6), or
/// the GOAWAY that says why (RFC 9113, section 5.4.1).
const LINGER: Duration = Duration::from_secs(5);

/// Bytes of an HTTP/2 client that are dropped so: twice the window of a connection. Only a flood is longer.
const MOST_DROPPED: usize = 2 << 20;

/// Short DATA frames after which the streams' readers have a turn. The h2 library ends a connection with about 2,000
/// of them unread, and takes all that it can get first; a read brings no more than 16 KiB, which hold 1,800.
const CRUMBS_AT_A_TIME: u32 = 128;
const READ_AT_A_TIME: usize = 16 * 1024;

/// What hyper reads in the place of the frame that was one too many: HEADERS without END_HEADERS, and CONTINUATION until
/// the h2 library has had enough, which is after one and a quarter of them for each 16 KiB of header list. It then says
/// GOAWAY with ENHANCE_YOUR_CALM and resets every stream; from an error it would close without a word.
static FLOODED: [[u8; 9]; 256] = {
    let mut frames = [[0, 0, 0, 9, 0, 0, 0, 0, 1]; 256];
    frames[0][3] = 1;
    frames
};

/// See the module.
pub struct ClientIo {
    stream: ClientStream,
    watch: Watch,
    terms: Arc<Terms>,
    facts: Arc<Facts>,
    reading: Deadline,
    writing: Deadline,
    /// Of what the client takes.
    pace: Pace,
    /// Since when it is waited for until it takes something.
    blocked: Option<Instant>,
    /// Our side has ended.
    shut: bool,
    /// Bytes that came behind that.
    dropped: usize,
}

enum Watch {
    Http1(Box<Guarded>),
    Http2 {
        counter: FrameCounter,
        /// Bytes of [`FLOODED`] that hyper has read.
        told: usize,
    },
}

/// What HTTP/1.1 needs beside its bytes. In a box: a connection of HTTP/2 has no room for it.
struct Guarded {
    guard: Guard,
    /// Read, but not yet judged: an incomplete head, or what follows a handshake.
    held: Vec<u8>,
    /// Judged, but not yet taken by hyper.
    ready: Bytes,
}

impl ClientIo {
    /// A stream in front of hyper's HTTP/1.1.
    pub fn http1(stream: ClientStream, guard: Guard, terms: Arc<Terms>, facts: Arc<Facts>) -> ClientIo {
        let guarded = Guarded { guard, held: Vec::new(), ready: Bytes::new() };
        ClientIo::new(stream, Watch::Http1(Box::new(guarded)), terms, facts)
    }

    /// A stream in front of hyper's HTTP/2.
    pub fn http2(stream: ClientStream, counter: FrameCounter, terms: Arc<Terms>, facts: Arc<Facts>) -> ClientIo {
        ClientIo::new(stream, Watch::Http2 { counter, told: 0 }, terms, facts)
    }

    /// The bare transport and the bytes that were read ahead of the upgrade.
    pub fn into_parts(self) -> (ClientStream, Vec<u8>) {
        let early = match self.watch {
            Watch::Http1(guarded) => [&guarded.ready[..], &guarded.held].concat(),
            Watch::Http2 { .. } => Vec::new(),
        };
        (self.stream, early)
    }

    fn new(stream: ClientStream, watch: Watch, terms: Arc<Terms>, facts: Arc<Facts>) -> ClientIo {
        ClientIo {
            stream,
            watch,
            facts,
            reading: Deadline::default(),
            writing: Deadline::default(),
            pace: Pace::new(terms.min_rate, terms.timeouts.write),
            terms,
            blocked: None,
            shut: false,
            dropped: 0,
        }
    }

    fn poll_guarded(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let Watch::Http1(guarded) = &mut self.watch else { return Poll::Ready(Ok(())) };
            if !guarded.ready.is_empty() {
                let n = guarded.ready.len().min(buf.remaining());
                buf.put_slice(&guarded.ready.split_to(n));
                return Poll::Ready(Ok(()));
            }
            match guarded.guard.place() {
                // hyper answers the stand-in and closes; there is nothing more to read.
                Place::Refused => return Poll::Pending,
                Place::Handshake if self.facts.answered() >= guarded.guard.heads() => {
                    guarded.guard.handshake_refused();
                    let step = guarded.release();
                    self.note(step);
                    continue;
                }
                Place::Handshake if guarded.held.len() >= MOST_HELD => {
                    self.facts.park_reader(cx.waker());
                    return Poll::Pending;
                }
                _ => {}
            }
            let before = buf.filled().len();
            if Pin::new(&mut self.stream.transport).poll_read(cx, buf)?.is_pending() {
                // While a request is answered nobody is idle; its end wakes us.
                self.facts.park_reader(cx.waker());
                if self.facts.is_busy() && guarded.held.is_empty() {
                    return Poll::Pending;
                }
                if ready!(self.poll_patience(cx)) {
                    continue;
                }
                return Poll::Ready(Ok(())); // End of stream: an idle client.
            }
            if buf.filled().len() == before {
                return Poll::Ready(Ok(())); // End of stream.
            }
            let step = guarded.judge(buf, before);
            self.note(step);
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_counted(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Watch::Http2 { counter, told } = &mut self.watch else { return Poll::Ready(Ok(())) };
        if !self.facts.is_flooded() {
            if counter.has_crumbs(CRUMBS_AT_A_TIME) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            counter.note_oversize(self.facts.take_oversize());
            let read = self.stream.transport.poll_read_some(cx, buf, READ_AT_A_TIME)?;
            if read.is_pending() {
                return self.poll_frame_patience(cx);
            }
            let fresh = buf.filled().get(before..).unwrap_or_default();
            let Err(too_many) = counter.count(fresh, cached_time::now()) else { return Poll::Ready(Ok(())) };
            buf.set_filled(before + too_many.passed);
            self.facts.note_flood();
        }
        let rest = FLOODED.as_flattened().get(*told..).unwrap_or_default();
        let rest = rest.get(..buf.remaining()).unwrap_or(rest);
        buf.put_slice(rest);
        *told += rest.len();
        if buf.filled().len() == before {
            return Poll::Ready(Err(io::Error::other(counter.too_many(0))));
        }
        Poll::Ready(Ok(()))
    }

    /// Ready, as if the client had ended, when it has taken too long over what it has begun to say: a head, or the beginning
    /// of all. While it is answered, the h2 library's own PINGs find out whether it still lives.
    fn poll_frame_patience(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Watch::Http2 { counter, .. } = &self.watch else { return Poll::Pending };
        let Some(begun) = counter.midway() else {
            self.reading.stop();
            return Poll::Pending;
        };
        self.facts.park_reader(cx.waker());
        if !self.facts.is_busy() {
            ready!(self.reading.poll(cx, Phase::Head(begun), self.terms.timeouts.header));
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    fn note(&mut self, step: Step) {
        if step.pass > 0 {
            self.reading.stop();
        }
        match step.refusal {
            None => {}
            // The head is with the service: whoever reads the body is told. hyper sees a body that does not go on;
            // from an error it would close without an answer.
            Some(refusal) if step.in_body => self.facts.refuse_body(refusal),
            Some(refusal) => self.refuse(refusal),
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        let Watch::Http1(guarded) = &mut self.watch else { return };
        self.facts.refuse_head(guarded.guard.heads(), refusal);
        guarded.refuse();
    }

    /// Ready when the client has taken too long over a head, which is then refused, or was idle for too long. Whether it is
    /// the first.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Watch::Http1(guarded) = &self.watch else { return Poll::Pending };
        if guarded.guard.place() != Place::Head {
            return Poll::Pending;
        }
        let (heads, begun) = (guarded.guard.heads(), !guarded.held.is_empty());
        // The first head is waited for as if its first byte had come with the connection.
        let (phase, patience) = if heads == 0 || begun {
            (Phase::Head(heads), self.terms.timeouts.header)
        } else {
            (Phase::Idle(heads), self.terms.timeouts.keepalive)
        };
        ready!(self.reading.poll(cx, phase, patience));
        if begun {
            self.refuse(Refusal { kind: Kind::HeadTimeout, detail: "the head did not arrive within timeouts.header" });
        }
        Poll::Ready(begun)
    }

    /// Ready when the client has nothing more to send, or has had its time.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let most = match &self.watch {
            Watch::Http1(guarded) if matches!(guarded.guard.place(), Place::Body | Place::Refused) => usize::MAX,
            Watch::Http1(_) => return Poll::Ready(()),
            Watch::Http2 { .. } => MOST_DROPPED,
        };
        let mut scratch = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            match self.stream.transport.socket().poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.dropped = self.dropped.saturating_add(buf.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.reading.poll(cx, Phase::Linger, LINGER),
            }
            // A client that never pauses has no more time than one that does.
            if self.dropped > most || self.reading.poll(cx, Phase::Linger, LINGER).is_ready() {
                return Poll::Ready(());
            }
        }
    }

    fn note_sent(&mut self, slices: &[io::IoSlice<'_>], written: &Poll<io::Result<usize>>) {
        if let (Watch::Http2 { counter, .. }, Poll::Ready(Ok(written))) = (&mut self.watch, written) {
            counter.note_sent(slices.iter().map(|slice| &**slice), *written, |piece| self.facts.take(piece));
        }
    }

    /// The deadlines run only while the client is waited for, never while a back end is slow.
    fn poll_written<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: usize,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if let Some(since) = self.blocked.take() {
                self.pace.spend(cached_time::since(since));
                self.writing.stop();
                self.facts.note_blocked(false);
            }
            self.pace.earn(bytes);
            return written;
        }
        self.blocked.get_or_insert_with(cached_time::now);
        self.facts.note_blocked(true);
        let write = self.terms.timeouts.write;
        let patience = self.pace.left().map_or(write, |left| left.min(write));
        ready!(self.writing.poll(cx, Phase::Write, patience));
        let what = "the client took nothing for timeouts.write, or less than limits.min_rate";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)))
    }
}

impl Guarded {
    /// Looks at what was just read into `buf` behind `before`; what may not pass yet is taken out.
    fn judge(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> Step {
        let fresh = buf.filled().get(before..).unwrap_or_default();
        if !self.held.is_empty() {
            self.held.extend_from_slice(fresh);
            buf.set_filled(before);
            return self.release();
        }
        let step = self.guard.inspect(fresh);
        if step.pass < fresh.len() {
            self.held = fresh.get(step.pass..).unwrap_or_default().to_vec();
        }
        buf.set_filled(before + step.pass);
        step
    }

    /// Looks at the held bytes again, and moves what has passed to the ready ones.
    fn release(&mut self) -> Step {
        let step = self.guard.inspect(&self.held);
        if step.pass > 0 {
            let rest = self.held.split_off(step.pass.min(self.held.len()));
            self.ready = Bytes::from(std::mem::replace(&mut self.held, rest));
        }
        step
    }

    /// Puts the stand-in behind what has passed.
    fn refuse(&mut self) {
        self.guard.refuse();
        self.held = Vec::new();
        let ready = std::mem::take(&mut self.ready);
        self.ready = if ready.is_empty() { Bytes::from_static(STAND_IN) } else { [&ready, STAND_IN].concat().into() };
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.watch {
            Watch::Http1(_) => self.poll_guarded(cx, buf),
            Watch::Http2 { .. } => self.poll_counted(cx, buf),
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream.transport).poll_write(cx, bytes);
        self.note_sent(&[io::IoSlice::new(bytes)], &written);
        let bytes = count(&written);
        self.poll_written(cx, written, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream.transport).poll_write_vectored(cx, slices);
        self.note_sent(slices, &written);
        let bytes = count(&written);
        self.poll_written(cx, written, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream.transport).poll_flush(cx);
        self.poll_written(cx, flushed, 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            let shut = Pin::new(&mut self.stream.transport).poll_shutdown(cx);
            ready!(self.poll_written(cx, shut, 0))?;
            self.shut = true;
        }
        self.poll_linger(cx).map(Ok)
    }
}

/// The bytes of a write.
fn count(written: &Poll<io::Result<usize>>) -> usize {
    match written {
        Poll::Ready(Ok(count)) => *count,
        _ => 0,
    }
}
