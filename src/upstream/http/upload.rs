//! A request on its way to a back end: its head, and behind it the body as the client sends it.

use std::fmt::Write as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::Body as HttpBody;
use tokio::io::AsyncWrite;

use crate::base::cached_time;
use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::upstream::connect::BackEndStream;
use crate::upstream::http::connection::Broken;

/// The body of a request, framed as its head says.
pub(super) struct Upload {
    body: Body,
    framing: Framing,
    /// Something of it was taken.
    begun: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// So many bytes are missing.
    Exactly(u64),
    Chunked,
    Over,
}

impl Upload {
    /// No body.
    pub(super) fn none() -> Upload {
        Upload { body: Body::Empty, framing: Framing::Over, begun: false }
    }

    /// `body`, of which the head says that it is `length` bytes long, or that it comes in chunks.
    pub(super) fn new(body: Body, length: Option<u64>) -> Upload {
        match length {
            Some(0) => Upload::none(),
            Some(length) => Upload { body, framing: Framing::Exactly(length), begun: false },
            None => Upload { body, framing: Framing::Chunked, begun: false },
        }
    }

    /// Whether there is nothing (more) to send.
    pub(super) fn is_over(&self) -> bool {
        self.framing == Framing::Over
    }

    /// The next piece: what comes before it is put into `front`, the bytes behind it are returned with it.
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        front: &mut BytesMut,
    ) -> Poll<Result<(Bytes, &'static [u8]), Fault>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else { return Poll::Pending };
            self.begun = true;
            let Some(frame) = frame.transpose()? else { return Poll::Ready(self.end(front)) };
            // Trailers are not passed on: nothing that we forward to reads them. An empty chunk would be the last one.
            let Some(data) = frame.into_data().ok().filter(|data| !data.is_empty()) else { continue };
            return Poll::Ready(self.frame(data, front));
        }
    }

    fn frame(&mut self, data: Bytes, front: &mut BytesMut) -> Result<(Bytes, &'static [u8]), Fault> {
        match self.framing {
            Framing::Chunked => {
                // A BytesMut takes whatever it is given.
                let _ = write!(front, "{:X}\r\n", data.len());
                if !self.body.is_end_stream() {
                    return Ok((data, b"\r\n"));
                }
                self.finish();
                Ok((data, b"\r\n0\r\n\r\n"))
            }
            Framing::Exactly(left) => {
                // RFC 9112, section 6.3 would have the rest read as another request.
                let left = left
                    .checked_sub(data.len() as u64)
                    .ok_or_else(|| Fault::new(Kind::Gone, "the request body is longer than announced"))?;
                self.framing = Framing::Exactly(left);
                if left == 0 {
                    self.finish();
                }
                Ok((data, b""))
            }
            Framing::Over => Ok((Bytes::new(), b"")),
        }
    }

    /// The body says that it is over.
    fn end(&mut self, front: &mut BytesMut) -> Result<(Bytes, &'static [u8]), Fault> {
        match self.framing {
            Framing::Chunked => front.put_slice(b"0\r\n\r\n"),
            Framing::Exactly(_) => return Err(Fault::new(Kind::Gone, "the request body ended early")),
            Framing::Over => {}
        }
        self.finish();
        Ok((Bytes::new(), b""))
    }

    fn finish(&mut self) {
        self.framing = Framing::Over;
        self.body = Body::Empty;
    }
}

/// Who is to do something that a request may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The client is to send more.
    Client,
    /// The back end is to take what there is.
    BackEnd,
    /// All of it went to the system.
    Nobody,
}

/// A request as it is written. The client is asked for more when the socket has taken what there was.
pub(super) struct Sending {
    upload: Upload,
    /// The head, or what comes before a piece of the body.
    front: BytesMut,
    piece: Bytes,
    back: &'static [u8],
    turn: Turn,
    /// When anything last went on.
    moved: Instant,
    wrote: bool,
    unflushed: bool,
    /// Writing stands still: the back end does not read any more.
    broken: bool,
}

impl Sending {
    pub(super) fn new(head: BytesMut, upload: Upload) -> Sending {
        Sending {
            upload,
            front: head,
            piece: Bytes::new(),
            back: b"",
            turn: Turn::BackEnd,
            moved: cached_time::now(),
            wrote: false,
            unflushed: false,
            broken: false,
        }
    }

    /// Nothing to send.
    pub(super) fn nothing() -> Sending {
        Sending { turn: Turn::Nobody, ..Sending::new(BytesMut::new(), Upload::none()) }
    }

    /// Whether anything was written or taken from the client.
    pub(super) fn has_begun(&self) -> bool {
        self.wrote || self.upload.begun
    }

    /// Whether all of the request has gone to the system.
    pub(super) fn is_over(&self) -> bool {
        self.turn == Turn::Nobody
    }

    /// Whose turn it is, and since when.
    pub(super) fn waits(&self) -> (Turn, Instant) {
        (self.turn, self.moved)
    }

    /// Whether a deadline may have to wait for a client.
    pub(super) fn has_body(&self) -> bool {
        !self.upload.is_over()
    }

    /// The body, if neither it nor the head has been touched.
    pub(super) fn take_unsent(&mut self) -> Option<Upload> {
        (!self.has_begun()).then(|| std::mem::replace(&mut self.upload, Upload::none()))
    }

    /// What it holds on to.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.front.capacity() + self.piece.len()
    }

    /// Writes as much as there is and the socket takes.
    pub(super) fn poll(&mut self, stream: &mut BackEndStream, cx: &mut Context<'_>) -> Result<(), Broken> {
        if self.broken || self.is_over() {
            return Ok(());
        }
        if !self.has_begun() && self.has_body() {
            // What is there of the body goes with the head.
            let _ = self.take_piece(cx)?;
        }
        loop {
            while self.has_bytes() {
                match self.poll_write(stream, cx) {
                    Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                    Poll::Ready(Ok(count)) => self.advance(count),
                    Poll::Ready(Err(error)) => return self.fail(error),
                    Poll::Pending => {
                        self.turn = Turn::BackEnd;
                        return Ok(());
                    }
                }
            }
            if self.has_body() && self.take_piece(cx)?.is_ready() {
                continue;
            }
            if self.unflushed {
                match Pin::new(&mut *stream).poll_flush(cx) {
                    Poll::Ready(Ok(())) => self.unflushed = false,
                    Poll::Ready(Err(error)) => return self.fail(error),
                    Poll::Pending if self.has_body() => {}
                    Poll::Pending => return Ok(()),
                }
            }
            if !self.has_body() {
                self.turn = Turn::Nobody;
                self.front = BytesMut::new();
            }
            return Ok(());
        }
    }

    fn take_piece(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Broken> {
        let Poll::Ready(piece) = self.upload.poll_piece(cx, &mut self.front) else {
            self.turn = Turn::Client;
            return Ok(Poll::Pending);
        };
        (self.piece, self.back) = piece.map_err(Broken::Fault)?;
        self.turn = Turn::BackEnd;
        self.moved = cached_time::now();
        Ok(Poll::Ready(()))
    }

    fn has_bytes(&self) -> bool {
        !(self.front.is_empty() && self.piece.is_empty() && self.back.is_empty())
    }

    fn poll_write(&self, stream: &mut BackEndStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(stream);
        if self.piece.is_empty() && self.back.is_empty() {
            return stream.poll_write(cx, &self.front);
        }
        stream.poll_write_vectored(cx, &[IoSlice::new(&self.front), IoSlice::new(&self.piece), IoSlice::new(self.back)])
    }

    fn advance(&mut self, count: usize) {
        let front = count.min(self.front.len());
        self.front.advance(front);
        let piece = (count - front).min(self.piece.len());
        self.piece.advance(piece);
        if self.piece.is_empty() {
            // It may be a slice of much more.
            self.piece = Bytes::new();
        }
        self.back = self.back.get(count - front - piece..).unwrap_or_default();
        self.wrote = true;
        self.unflushed = true;
        self.moved = cached_time::now();
    }

    /// A back end that answers early (413, a redirect) and closes makes our next write fail while its answer waits to
    /// be read. So such an error is not told: writing stands still from there, and what is read, an answer or the
    /// end, decides.
    fn fail(&mut self, error: io::Error) -> Result<(), Broken> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        if matches!(error.kind(), BrokenPipe | ConnectionReset | ConnectionAborted) {
            self.broken = true;
            self.turn = Turn::BackEnd;
            return Ok(());
        }
        Err(error.into())
    }
}
