//! One request on one connection: sends what is left to send and reads what has come, both whenever it is polled, so
//! that neither side can wait for the other for ever. Dropping it closes the connection, which frees the FPM worker.
//!
//! On a unix socket a request is offered first: its head goes out but for the last record, without which FPM runs
//! nothing. Only when a worker has begun to read does the rest follow. So it is known of every request that fails
//! whether it can have run, whatever its method. One that may be asked once more goes out whole where FPM is quick:
//! waking its worker twice is a good part of what such a request costs.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::net::SendFlags;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::io::poll_read_buf;

use super::Job;
use super::complaints::Complaints;
use super::gate::Place;
use super::pool::FastCgiPool;
use super::unread;
use crate::base::address::Endpoint;
use crate::base::fault::{Fault, Kind};
use crate::upstream::connect::BackEndStream;
use crate::upstream::fastcgi::record::{self, Decoder, End, HEADER, Piece, Type};
use crate::upstream::spool::SpoolReader;

/// The first read; most answers fit.
const FIRST_READ: usize = 16 * 1024;
/// The reads after it.
const READ: usize = 64 * 1024;
/// What is sent at once.
const AT_ONCE: usize = 64 * 1024;
/// The empty record that ends PARAMS: what is kept back of an offer.
const LAST: usize = HEADER;
/// Less room than this is not worth a read.
const LEAST_READ: usize = 4 * 1024;

/// What an exchange waits for, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For FPM to take more of the request.
    pub send: Duration,
    /// For FPM to say more of its answer.
    pub read: Duration,
}

/// What came of the answer.
pub(super) enum Event {
    /// Some of its head or body, never empty.
    Output(Bytes),
    /// It is over.
    End(End),
}

/// A request under way.
pub(super) struct Exchange {
    stream: BackEndStream,
    endpoint: Endpoint,
    outgoing: Outgoing,
    incoming: BytesMut,
    decoder: Decoder,
    complaints: Complaints,
    patience: Patience,
    /// Runs while we wait; what the client is slow to take does not count.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    answered: bool,
    ended: bool,
    /// Held until FPM has ended its answer.
    place: Option<Place>,
}

impl Exchange {
    /// Begins to send the head (BEGIN_REQUEST and PARAMS) and the body of `job`. On a unix socket [`Exchange::offer`] is
    /// to be awaited before anything else, but for what [`Exchange::send_whole`] allows. `place` is held until FPM has
    /// ended.
    pub fn new(stream: BackEndStream, endpoint: Endpoint, job: &Job, patience: Patience, place: Place) -> Exchange {
        let Job { target, head, body, .. } = job;
        let complaints = Complaints::new(endpoint.clone(), target.clone());
        let (pending, last) = match &stream {
            BackEndStream::Unix(_) => {
                head.split_at_checked(head.len().saturating_sub(LAST)).unwrap_or((&head[..], &[]))
            }
            _ => (&head[..], &[][..]),
        };
        let outgoing = Outgoing {
            pending: BytesMut::from(pending),
            last: BytesMut::from(last),
            body: Some(body.reader()),
            head: head.len() as u64,
            sent: 0,
            refused: None,
        };
        Exchange {
            stream,
            endpoint,
            outgoing,
            incoming: BytesMut::new(),
            decoder: Decoder::default(),
            complaints,
            patience,
            timer: None,
            waiting: false,
            answered: false,
            ended: false,
            place: Some(place),
        }
    }

    /// Sends a request without a body whole, as far as FPM takes it at once; for those that may be asked once more. The
    /// answer may be waited for, and [`Exchange::offer`] still tells when a worker has begun to read, unless a worker
    /// is `attending`: at a connection that was kept there is nobody to wait for.
    pub fn send_whole(&mut self, attending: bool) {
        let BackEndStream::Unix(stream) = &self.stream else { return };
        let outgoing = &mut self.outgoing;
        outgoing.pending.extend_from_slice(&std::mem::take(&mut outgoing.last));
        let mut end = BytesMut::new();
        record::put_stream_end(&mut end, Type::Stdin);
        if attending {
            outgoing.pending.unsplit(end.split());
            outgoing.body = None;
        }
        // Not through the runtime, which has not heard of a new socket yet: a worker that the connection wakes would find
        // nothing, and have to be woken again.
        let send = |bytes: &[u8]| Ok(rustix::net::send(stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?);
        match outgoing.try_send(send) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                outgoing.refused = Some(error);
                return;
            }
        }
        // By itself: FPM leaves it unread while the script runs, and what is not used up whole is not told.
        if !attending && let Ok(count) = send(&end) {
            end.advance(count);
            (outgoing.pending, outgoing.body) = (end, None);
        }
    }

    /// Whether FPM is seen to take a request: on a unix socket.
    pub fn is_witness(&self) -> bool {
        matches!(self.stream, BackEndStream::Unix(_))
    }

    /// Offers the request: ready when FPM has begun to read it, false when the connection has ended instead. May be
    /// polled as often as wanted. On anything but a unix socket nothing tells, and the answer is yes at once.
    pub async fn offer(&mut self) -> bool {
        let BackEndStream::Unix(stream) = &self.stream else { return true };
        let was_sent = self.outgoing.pending.is_empty();
        while let Err(error) = self.outgoing.try_send(|bytes| stream.try_write(bytes)) {
            if error.kind() != io::ErrorKind::WouldBlock || stream.writable().await.is_err() {
                return false;
            }
        }
        forget_room(stream);
        // What was told of one that was sent whole may have been that the socket is new: the kernel is asked.
        if was_sent && unread::is_at_most_an_empty_record(stream) {
            return !self.stream.has_ended();
        }
        // A connection that ends wakes as well.
        stream.writable().await.is_ok() && !self.stream.has_ended()
    }

    /// FPM runs the request from now on, or may: the rest of it goes out. `witnessed`: it was seen to take it.
    pub fn begin(&mut self, witnessed: bool) {
        let last = std::mem::take(&mut self.outgoing.last);
        self.outgoing.pending.extend_from_slice(&last);
        // The time until a worker took it was no silence of its script.
        self.waiting = false;
        if let Some(place) = &mut self.place {
            place.begin(witnessed);
        }
    }

    /// Whether FPM was seen to take the request, or was taken to have done so.
    pub fn has_begun(&self) -> bool {
        self.place.as_ref().is_some_and(Place::is_running)
    }

    /// The place, from an exchange that has failed.
    pub fn take_place(&mut self) -> Option<Place> {
        self.place.take()
    }

    /// Whether any byte of the answer has come.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// Whether FPM cannot have run the request: it begins when it has read the whole head.
    pub fn cannot_have_run(&self) -> bool {
        self.outgoing.sent < self.outgoing.head
    }

    /// The next event. Sends and reads as far as both sides can.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Fault>> {
        loop {
            if let Some(event) = self.decode()? {
                self.waiting = false;
                return Poll::Ready(Ok(event));
            }
            let progress = self.outgoing.poll_send(&mut self.stream, cx)?;
            match self.poll_fill(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.broken_off(None))),
                Poll::Ready(Ok(_)) => {
                    self.answered = true;
                    self.waiting = false;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broken_off(Some(error)))),
                Poll::Pending => {
                    ready!(self.poll_timer(progress, cx));
                    return Poll::Ready(Err(self.out_of_patience()));
                }
            }
        }
    }

    /// The next event of what has been read already.
    pub fn decode(&mut self) -> Result<Option<Event>, Fault> {
        loop {
            let piece = self.decoder.next(&mut self.incoming).map_err(|error| {
                Fault::new(Kind::BadAnswer, format!("{} does not speak FastCGI", self.endpoint)).because(error)
            })?;
            match piece {
                None => return Ok(None),
                Some(Piece::Stdout(data)) => {
                    self.complaints.note_answer();
                    return Ok(Some(Event::Output(data)));
                }
                Some(Piece::Stderr(data)) => {
                    self.complaints.push(&data)?;
                }
                Some(Piece::End(end)) => {
                    self.ended = true;
                    self.place = None;
                    return Ok(Some(Event::End(end)));
                }
            }
        }
    }

    /// Tells that the application has said more than it announced.
    pub fn note_surplus(&self) {
        self.complaints.note_surplus();
    }

    /// Gives the connection to `pool`, which keeps at most `limit`, if it may carry another request.
    pub fn recycle(mut self, pool: &FastCgiPool, limit: usize) {
        // Skips the padding of END_REQUEST; anything else behind it is nothing that we asked for.
        let quiet = matches!(self.decoder.next(&mut self.incoming), Ok(None));
        let clean = quiet && self.decoder.is_between_records() && self.incoming.is_empty();
        if limit > 0 && self.ended && clean && self.outgoing.is_sent() {
            pool.put(&self.endpoint, self.stream, limit);
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.incoming.capacity() - self.incoming.len() < LEAST_READ {
            self.incoming.reserve(if self.answered { READ } else { FIRST_READ });
        }
        poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.incoming)
    }

    /// Ready once nothing has moved for as long as we are patient.
    fn poll_timer(&mut self, progress: bool, cx: &mut Context<'_>) -> Poll<()> {
        if progress || !self.waiting {
            self.waiting = true;
            let patience = if self.outgoing.is_over() { self.patience.read } else { self.patience.send };
            let deadline = Instant::now() + patience;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(deadline),
                None => self.timer = Some(Box::pin(sleep_until(deadline))),
            }
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    fn broken_off(&mut self, error: Option<io::Error>) -> Fault {
        let fault = Fault::new(Kind::Truncated, format!("{} closed before the end of its answer", self.endpoint));
        match error.or_else(|| self.outgoing.refused.take()) {
            Some(error) => fault.because(error),
            None => fault,
        }
    }

    fn out_of_patience(&self) -> Fault {
        let (endpoint, Patience { send, read }) = (&self.endpoint, self.patience);
        if self.outgoing.is_over() {
            Fault::new(Kind::ReadTimeout, format!("{endpoint} said nothing for {read:?}"))
        } else {
            Fault::new(Kind::SendTimeout, format!("{endpoint} took nothing for {send:?}"))
        }
    }
}

/// The kernel tells the sender whenever the receiver has used up a buffer. What was told before does not count.
fn forget_room(stream: &UnixStream) {
    let _ = stream.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}

/// What is still to be sent.
struct Outgoing {
    pending: BytesMut,
    /// What is kept back until FPM has begun to read.
    last: BytesMut,
    body: Option<SpoolReader>,
    /// Bytes of the head.
    head: u64,
    sent: u64,
    /// Why FPM takes no more. It may answer all the same.
    refused: Option<io::Error>,
}

impl Outgoing {
    /// Sends all that is pending with `send`; `WouldBlock` where that is not possible at once.
    fn try_send(&mut self, send: impl Fn(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        while !self.pending.is_empty() {
            let count = send(&self.pending)?;
            self.pending.advance(count);
            self.sent += count as u64;
        }
        Ok(())
    }

    /// Sends until the socket is full or all is sent; says whether anything was.
    fn poll_send(&mut self, stream: &mut BackEndStream, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let mut progress = false;
        while !self.is_over() {
            self.fill(cx)?;
            if self.pending.is_empty() {
                break;
            }
            match Pin::new(&mut *stream).poll_write(cx, &self.pending) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => self.refused = Some(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.pending.advance(count);
                    self.sent += count as u64;
                    progress = true;
                }
                Poll::Ready(Err(error)) => self.refused = Some(error),
            }
        }
        if self.is_over() {
            // An answer may take long: it needs no buffer of the request's.
            self.pending = BytesMut::new();
            self.body = None;
        }
        Ok(progress)
    }

    /// Takes from the body what there is, so that the head of a request and a small body go out in one write.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        while self.pending.len() < AT_ONCE
            && let Some(body) = &mut self.body
        {
            match body.poll_chunk(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(chunk))) => record::put_stream(&mut self.pending, Type::Stdin, &chunk),
                Poll::Ready(Some(Err(error))) => {
                    return Err(Fault::new(Kind::Storage, "cannot read the stored request body").because(error));
                }
                Poll::Ready(None) => {
                    record::put_stream_end(&mut self.pending, Type::Stdin);
                    self.body = None;
                }
            }
        }
        Ok(())
    }

    /// Whether nothing more will be sent.
    fn is_over(&self) -> bool {
        self.refused.is_some() || self.is_sent()
    }

    /// Whether everything was sent.
    fn is_sent(&self) -> bool {
        self.refused.is_none() && self.body.is_none() && self.pending.is_empty()
    }
}
