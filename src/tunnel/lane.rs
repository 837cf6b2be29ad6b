//! One direction of a tunnel: read, send on at once, keep only what the writer refused.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frames::{Frames, encode_close, encode_ping};
use super::kept::Kept;
use super::rules::{Gate, Sifted};
use crate::base::cached_time;

/// Reads in a row before the other direction, and the other tasks of the worker, get their turn.
const READS_IN_A_ROW: usize = 8;

/// A direction, from its reader to its writer.
pub(super) struct Lane {
    pub(super) frames: Frames,
    /// What the writer refused. Nothing more is read before it is gone: that is the backpressure, and it bounds this at
    /// one scratch buffer. With it, since when the writer has taken nothing, and a frame of ours for the next boundary.
    kept: Kept,
    /// What holds the reader to rules, where there are some.
    pub(super) gate: Option<Box<Gate>>,
    unflushed: bool,
    /// The reader has ended.
    pub(super) ended: bool,
    /// Nothing more goes to the writer; what is read is looked at and dropped.
    discard: bool,
    /// A Close frame of the reader's went to the writer.
    closed: bool,
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

/// What is to be injected.
#[derive(Debug, Clone, Copy)]
pub(super) enum Due {
    Close(CloseFrame),
    Ping([u8; 8]),
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
    pub(super) fn new(early: Bytes, gate: Option<Box<Gate>>) -> Lane {
        let mut lane = Lane {
            frames: Frames::new(),
            kept: Kept::default(),
            gate,
            unflushed: false,
            ended: false,
            discard: false,
            closed: false,
            end: End::Open,
        };
        let mut rest = &early[..];
        while !rest.is_empty() {
            let sifted = lane.sift(rest);
            lane.kept.extend(rest.get(..sifted.pass).unwrap_or_default());
            lane.kept.extend(sifted.release.as_slice());
            rest = rest.get(sifted.used..).unwrap_or_default();
        }
        lane
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

    /// Whether a frame of ours still waits for its boundary.
    pub(super) fn awaits_boundary(&self) -> bool {
        self.kept.due().is_some()
    }

    /// Since when the writer has taken nothing of what waits for it.
    pub(super) fn stalled(&self) -> Option<Instant> {
        self.kept.stalled()
    }

    /// Whether a Close frame of the reader's went to the writer.
    pub(super) fn has_closed(&self) -> bool {
        self.closed
    }

    /// Whether what was sent on so far ends with a whole frame.
    fn is_at_boundary(&self) -> bool {
        self.frames.is_at_boundary() || self.gate.as_ref().is_some_and(|gate| gate.holds_back())
    }

    /// Sends `frame` at the next boundary and nothing after it. An opaque stream has no boundary: its writer is shut
    /// down.
    pub(super) fn close(&mut self, frame: CloseFrame) {
        if self.end != End::Open {
            return;
        }
        self.kept.set_due(Due::Close(frame));
        self.meet_boundary();
    }

    /// Sends a Ping at the next boundary, unless the stream closes or has none.
    pub(super) fn ping(&mut self, payload: [u8; 8]) {
        if self.end == End::Open && !self.discard && !self.closed && !self.awaits_boundary() {
            self.kept.set_due(Due::Ping(payload));
            self.meet_boundary();
        }
    }

    /// Forgets a Ping that still waits for its boundary.
    pub(super) fn forget_ping(&mut self) {
        if matches!(self.kept.due(), Some(Due::Ping(_))) {
            self.kept.take_due();
        }
    }

    /// Shuts the writer down behind what is kept, wherever the stream is. What the reader still says is dropped.
    pub(super) fn cut(&mut self) {
        self.kept.take_due();
        self.discard = true;
        if self.end == End::Open {
            self.end = End::Due;
        }
    }

    /// Forgets the writer, which is dead.
    pub(super) fn abandon(&mut self) {
        self.kept = Kept::default();
        self.unflushed = false;
        self.discard = true;
        self.end = End::Done;
    }

    /// Notes since when the writer has taken nothing, after a turn in which it took `written` bytes.
    pub(super) fn note_stall(&mut self, written: usize) {
        if !self.is_blocked() {
            self.kept.set_stalled(None);
        } else if written > 0 || self.stalled().is_none() {
            self.kept.set_stalled(Some(Instant::now()));
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
        self.kept.take_due();
        // Behind a Close frame of ours the writer stays open for the answer; the tunnel ends soon.
        if !self.discard && self.end == End::Open {
            // Half a header is not ours to keep.
            if let Some(gate) = &mut self.gate {
                self.kept.extend(gate.release().as_slice());
            }
            self.end = End::Due;
        }
    }

    /// Sends on what was read, as far as the rules allow and up to the boundary where a Close frame is due.
    fn pass<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        bytes: &[u8],
        turn: &mut Turn,
    ) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sifted = self.sift(rest);
            self.send(cx, writer, rest.get(..sifted.pass).unwrap_or_default(), turn)?;
            self.send(cx, writer, sifted.release.as_slice(), turn)?;
            self.meet_boundary();
            rest = rest.get(sifted.used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Takes note of the front of `bytes`, and says what of it goes on.
    fn sift(&mut self, bytes: &[u8]) -> Sifted {
        let all = bytes.len();
        if self.discard {
            self.frames.feed(bytes);
            return Sifted { used: all, ..Sifted::default() };
        }
        if let Some(gate) = &mut self.gate {
            let sifted = gate.sift(&mut self.frames, bytes, cached_time::now().into(), self.kept.due().is_some());
            self.discard = gate.violation().is_some();
            self.closed |= self.frames.close_code().is_some();
            return sifted;
        }
        let used = if self.awaits_boundary() {
            self.frames.feed_to_boundary(bytes)
        } else {
            self.frames.feed(bytes);
            all
        };
        self.closed |= self.frames.close_code().is_some();
        Sifted { used, pass: used, ..Sifted::default() }
    }

    /// Injects what is due if the stream is at a boundary. An opaque one will not be: it is cut, or is not asked.
    fn meet_boundary(&mut self) {
        if !self.awaits_boundary() {
            return;
        }
        if self.is_at_boundary() {
            match self.kept.take_due() {
                Some(Due::Close(frame)) => {
                    // The frame that was waited for may itself have been a Close.
                    if !self.closed {
                        self.kept.extend(&encode_close(frame.code, frame.mask));
                    }
                    self.discard = true;
                }
                Some(Due::Ping(payload)) if !self.closed => self.kept.extend(&encode_ping(payload)),
                Some(Due::Ping(_)) | None => {}
            }
        } else if self.frames.is_opaque() {
            match self.kept.take_due() {
                Some(Due::Close(_)) => self.cut(),
                Some(Due::Ping(_)) | None => {}
            }
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
        // Behind what the writer refused, or a frame of ours, all waits for its turn.
        if !self.kept.is_empty() {
            self.kept.extend(rest);
            return Ok(());
        }
        while !rest.is_empty() {
            match write_some(cx, writer, rest)? {
                Poll::Ready(length) => {
                    turn.bytes_written += length;
                    self.unflushed = true;
                    rest = rest.get(length..).unwrap_or_default();
                }
                Poll::Pending => {
                    self.kept.extend(rest);
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
        while !self.kept.is_empty() {
            match write_some(cx, writer, self.kept.rest())? {
                Poll::Ready(length) => {
                    turn.bytes_written += length;
                    self.kept.sent(length);
                    self.unflushed = true;
                }
                Poll::Pending => return Ok(Poll::Pending),
            }
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
