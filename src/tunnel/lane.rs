//! One direction of a tunnel: read, send on at once, keep only what the writer refused.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frames::{Frames, encode_close};

/// Reads in a row before the other direction, and the other tasks of the worker, get their turn.
const READS_IN_A_ROW: usize = 8;

/// A direction, from its reader to its writer.
pub(super) struct Lane {
    pub(super) frames: Frames,
    /// What the writer refused, from `sent` on. Nothing more is read before it is gone: that is the backpressure, and
    /// it bounds this at one scratch buffer.
    kept: Vec<u8>,
    sent: usize,
    /// Since when the writer has taken nothing of what waits for it.
    pub(super) stalled: Option<Instant>,
    /// A Close frame for the next boundary.
    close: Option<CloseFrame>,
    unflushed: bool,
    /// The reader has ended.
    pub(super) ended: bool,
    /// Nothing more goes to the writer; what is read is looked at and dropped.
    discard: bool,
    end: End,
}

/// The end of the writer's half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// To be shut down behind what is kept.
    Due,
    Done,
}

/// A Close frame to be injected.
#[derive(Debug, Clone, Copy)]
pub(super) struct CloseFrame {
    pub(super) code: u16,
    pub(super) mask: Option<[u8; 4]>,
}

/// What a turn of a lane did.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) bytes_read: usize,
    pub(super) bytes_written: usize,
    /// The turn was over before there was nothing left to do.
    pub(super) more: bool,
}

/// Which end of a lane failed.
#[derive(Debug)]
pub(super) enum LaneError {
    Reader(io::Error),
    Writer(io::Error),
}

impl Lane {
    /// A lane that begins with bytes which were read before there was a tunnel. They are copied: the buffer that they
    /// lie in is larger than they are.
    pub(super) fn new(early: Bytes) -> Lane {
        let mut frames = Frames::new();
        frames.feed(&early);
        Lane {
            frames,
            kept: early.to_vec(),
            sent: 0,
            stalled: None,
            close: None,
            unflushed: false,
            ended: false,
            discard: false,
            end: End::Open,
        }
    }

    /// Whether the writer has yet to take something.
    pub(super) fn is_blocked(&self) -> bool {
        !self.kept.is_empty() || self.unflushed
    }

    /// Whether all that the reader had to say is said and the writer is shut down.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.end == End::Done
    }

    /// Whether its reader will say nothing more: it has ended or sent a Close frame.
    pub(super) fn is_quiet(&self) -> bool {
        self.ended || self.frames.close_code().is_some()
    }

    /// Whether a Close frame still waits for its boundary.
    pub(super) fn awaits_boundary(&self) -> bool {
        self.close.is_some()
    }

    /// Sends `frame` at the next boundary and nothing after it. An opaque stream has no boundary: its writer is shut
    /// down.
    pub(super) fn close(&mut self, frame: CloseFrame) {
        if self.end != End::Open {
            return;
        }
        self.close = Some(frame);
        if self.frames.is_at_boundary() {
            self.inject();
        } else if self.frames.is_opaque() {
            self.cut();
        }
    }

    /// Shuts the writer down behind what is kept, wherever the stream is. What the reader still says is dropped.
    pub(super) fn cut(&mut self) {
        self.close = None;
        self.discard = true;
        if self.end == End::Open {
            self.end = End::Due;
        }
    }

    /// Forgets the writer, which is dead.
    pub(super) fn abandon(&mut self) {
        self.kept = Vec::new();
        self.sent = 0;
        self.unflushed = false;
        self.close = None;
        self.discard = true;
        self.end = End::Done;
    }

    /// Notes since when the writer has taken nothing, after a turn in which it took `written` bytes.
    pub(super) fn note_stall(&mut self, written: usize) {
        if !self.is_blocked() {
            self.stalled = None;
        } else if written > 0 || self.stalled.is_none() {
            self.stalled = Some(Instant::now());
        }
    }

    /// Moves what can be moved without waiting. `scratch` is where bytes are on their way from one to the other.
    pub(super) fn turn<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        scratch: &mut [u8],
        turn: &mut Turn,
    ) -> Result<(), LaneError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..READS_IN_A_ROW {
            if self.drain(cx, writer, turn).map_err(LaneError::Writer)?.is_pending() {
                return Ok(());
            }
            if self.end == End::Due {
                // An error here says that the writer's half is gone already, which is what was wanted.
                if Pin::new(&mut *writer).poll_shutdown(cx).is_pending() {
                    return Ok(());
                }
                self.end = End::Done;
            }
            if self.ended {
                return Ok(());
            }
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut *reader).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(()),
                // A TLS stream that ended without close_notify: WebSocket says by itself whether all was said.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Poll::Ready(Err(error)) => return Err(LaneError::Reader(error)),
                Poll::Ready(Ok(())) => {}
            }
            let bytes = buffer.filled();
            turn.bytes_read += bytes.len();
            if bytes.is_empty() {
                self.end_of_reader();
            } else {
                self.pass(cx, writer, bytes, turn).map_err(LaneError::Writer)?;
            }
        }
        turn.more = true;
        Ok(())
    }

    fn end_of_reader(&mut self) {
        self.ended = true;
        self.close = None;
        // Behind a Close frame of ours the writer stays open for the answer; the tunnel ends soon.
        if !self.discard && self.end == End::Open {
            self.end = End::Due;
        }
    }

    /// Sends on what was read, up to the boundary where a Close frame is due.
    fn pass<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        bytes: &[u8],
        turn: &mut Turn,
    ) -> io::Result<()> {
        if self.discard {
            self.frames.feed(bytes);
            return Ok(());
        }
        if self.close.is_none() {
            self.frames.feed(bytes);
            return self.send(cx, writer, bytes, turn);
        }
        let (last, after) = bytes.split_at_checked(self.frames.feed_to_boundary(bytes)).unwrap_or((bytes, &[]));
        self.send(cx, writer, last, turn)?;
        if self.frames.is_at_boundary() {
            self.inject();
        } else if self.frames.is_opaque() {
            self.cut();
        }
        self.frames.feed(after);
        Ok(())
    }

    fn inject(&mut self) {
        if let Some(frame) = self.close.take() {
            self.kept.extend(encode_close(frame.code, frame.mask));
            self.discard = true;
        }
    }

    fn send<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        bytes: &[u8],
        turn: &mut Turn,
    ) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match write_some(cx, writer, rest)? {
                Poll::Ready(length) => {
                    turn.bytes_written += length;
                    self.unflushed = true;
                    rest = rest.get(length..).unwrap_or_default();
                }
                Poll::Pending => {
                    self.kept = rest.to_vec();
                    break;
                }
            }
        }
        Ok(())
    }

    /// Sends what is kept, and flushes: a TLS stream may hold what it has taken. Ready when nothing is left anywhere.
    fn drain<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        turn: &mut Turn,
    ) -> io::Result<Poll<()>> {
        while let Some(rest) = self.kept.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match write_some(cx, writer, rest)? {
                Poll::Ready(length) => {
                    turn.bytes_written += length;
                    self.sent += length;
                    self.unflushed = true;
                }
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        if self.kept.capacity() > 0 {
            self.kept = Vec::new();
            self.sent = 0;
        }
        if self.unflushed {
            match Pin::new(writer).poll_flush(cx) {
                Poll::Ready(flushed) => flushed?,
                Poll::Pending => return Ok(Poll::Pending),
            }
            self.unflushed = false;
        }
        Ok(Poll::Ready(()))
    }
}

fn write_some<W: AsyncWrite + Unpin>(cx: &mut Context<'_>, writer: &mut W, bytes: &[u8]) -> io::Result<Poll<usize>> {
    match Pin::new(writer).poll_write(cx, bytes) {
        Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
        Poll::Ready(Ok(length)) => Ok(Poll::Ready(length.min(bytes.len()))),
        Poll::Ready(Err(error)) => Err(error),
        Poll::Pending => Ok(Poll::Pending),
    }
}
