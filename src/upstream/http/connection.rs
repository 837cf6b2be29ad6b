//! One HTTP/1.1 connection to a back end. No task drives it: whoever waits for its answer moves it.

use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, Version, response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::base::fault::Fault;
use crate::http::hop;
use crate::upstream::connect::BackEndStream;
use crate::upstream::http::codec::answer_head::{BadHead, HeadReader};
use crate::upstream::http::codec::body_length::{BodyLength, BodyReader};
use crate::upstream::http::codec::chunks::{BadChunk, Next};
use crate::upstream::http::codec::request_head;
use crate::upstream::http::upload::{Sending, Turn, Upload};

/// Room for a head and what comes with it, and for a body that is not known to be longer.
const SMALL: usize = 8 * 1024;
/// Room for a piece of a long body: what a client that reads slowly can make us hold of it.
const PIECE: usize = 64 * 1024;
/// With less room than this a read is not worth its system call.
const LEAST: usize = 1024;
/// Bytes that may come before an answer's final head: bounds a flood of 1xx answers.
const UNANSWERED: usize = 512 * 1024;

/// Why there is no answer, or no more of it.
#[derive(Debug)]
pub(super) enum Broken {
    /// The client's body ended in it, or a wait was too long.
    Fault(Fault),
    /// What came is not HTTP.
    Head(BadHead),
    /// More than [`UNANSWERED`].
    Unanswered,
    /// The body is not framed as announced.
    Body(BadChunk),
    /// The connection ended or failed.
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        Broken::Io(error)
    }
}

/// One connection. Dropped in the middle of an exchange it closes at once: the back end need not go on working for a
/// client that has left.
pub(super) struct Connection {
    /// Gone behind a 101.
    stream: Option<BackEndStream>,
    sending: Sending,
    /// What came and was not looked at yet. There is none between two exchanges.
    buffer: BytesMut,
    head: HeadReader,
    body: BodyReader,
    /// Bytes that came since the request began, up to the answer's head.
    received: usize,
    /// Room for the next read of the body.
    room: usize,
    /// Whether another exchange may follow.
    keep: bool,
    /// The last answer had no body. Back ends that send one nevertheless are many: it may still be on its way.
    bodiless: bool,
    /// What the upload ended in, told behind what had come of the answer.
    failure: Option<Broken>,
    /// No exchange is under way: dropped now, the connection closes gently.
    resting: bool,
    /// Whether it has served a request before.
    pub(super) reused: bool,
    /// Whether it is for one request: it has begun with the name of that one's client.
    pub(super) single: bool,
}

impl Connection {
    /// Speaks HTTP/1.1 over `stream`. Boxed: it passes through many hands.
    pub(super) fn new(stream: BackEndStream) -> Box<Connection> {
        Box::new(Connection {
            stream: Some(stream),
            sending: Sending::nothing(),
            buffer: BytesMut::new(),
            head: HeadReader::default(),
            body: BodyReader::Exactly(0),
            received: 0,
            room: SMALL,
            keep: true,
            bodiless: false,
            failure: None,
            resting: true,
            reused: false,
            single: false,
        })
    }

    /// Begins an exchange; nothing is written yet.
    pub(super) fn begin(&mut self, head: &Request<()>, upload: Upload) {
        self.sending = Sending::new(request_head::write(head, self.single), upload);
        self.head = HeadReader::default();
        self.received = 0;
        (self.keep, self.resting) = (false, false);
    }

    /// Sends what there is to send, and waits for the answer's final head.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<response::Parts, Broken>> {
        let first = !self.sending.has_begun();
        if first {
            self.poll_send(cx)?;
        }
        // From then on reading has precedence: a body that always has more must not hide an early answer.
        let read = self.poll_read_head(cx);
        if !first && read.is_pending() {
            self.poll_send(cx)?;
        }
        read
    }

    fn poll_read_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<response::Parts, Broken>> {
        loop {
            // RFC 9110, section 15.2: "A client MUST be able to parse one or more 1xx responses received prior to a
            // final response". A 101 is final: what follows is not HTTP.
            while let Some(parts) = self.head.read(&mut self.buffer).map_err(Broken::Head)? {
                if !parts.status.is_informational() || parts.status == StatusCode::SWITCHING_PROTOCOLS {
                    // RFC 9112, section 9.3: HTTP/1.1 persists unless it says "close"; with 1.0 we do not try.
                    self.keep = parts.version == Version::HTTP_11
                        && !hop::connection_names(&parts.headers).any(|name| name.eq_ignore_ascii_case(b"close"));
                    return Poll::Ready(Ok(parts));
                }
            }
            if self.received > UNANSWERED {
                return Poll::Ready(Err(Broken::Unanswered));
            }
            let room = self.buffer.len().max(SMALL);
            let count = ready!(self.poll_fill(cx, room))?;
            if count == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
            self.received += count;
        }
    }

    /// How long the body is whose head was read.
    pub(super) fn expect(&mut self, length: BodyLength) {
        self.body = BodyReader::new(length);
        self.room = if self.body.left().is_some() { PIECE } else { SMALL };
        self.keep &= length != BodyLength::UntilClose;
        self.bodiless = self.body.left() == Some(0);
    }

    /// All of the body, if it came with the head.
    pub(super) fn whole_body(&mut self) -> Option<Bytes> {
        self.body.whole(&mut self.buffer)
    }

    /// The next piece of the body; `None` is its end. The rest of the request goes on beside it.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        if let Some(broken) = self.failure.take() {
            return Poll::Ready(Err(broken));
        }
        let read = self.poll_read_body(cx);
        if !matches!(read, Poll::Ready(Ok(None)))
            && let Err(broken) = self.poll_send(cx)
        {
            if !matches!(read, Poll::Ready(Ok(Some(_)))) {
                return Poll::Ready(Err(broken));
            }
            self.failure = Some(broken);
        }
        read
    }

    fn poll_read_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        loop {
            match self.body.next(&mut self.buffer).map_err(Broken::Body)? {
                // A crumb would keep all of its room for as long as it waits for the client.
                Next::Data(data) if data.len() < LEAST => return Poll::Ready(Ok(Some(Bytes::copy_from_slice(&data)))),
                Next::Data(data) => return Poll::Ready(Ok(Some(data))),
                Next::End => return Poll::Ready(Ok(None)),
                Next::More => {}
            }
            // One byte more than is missing: a read that fills its room does not tell the runtime that the socket is
            // empty, and the next one would be in vain.
            let left = self.body.left().map_or(PIECE, |left| usize::try_from(left).unwrap_or(PIECE).saturating_add(1));
            let count = ready!(self.poll_fill(cx, left.min(self.room)))?;
            if count == 0 {
                return Poll::Ready(match self.body.close() {
                    true => Ok(None),
                    false => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                });
            }
            // A trickle gets little room: each of its pieces keeps all of it from being freed.
            if self.buffer.len() == self.buffer.capacity() {
                self.room = PIECE;
            } else if count < SMALL {
                self.room = SMALL;
            }
        }
    }

    /// What is left of a body of known length.
    pub(super) fn left(&self) -> Option<u64> {
        self.body.left()
    }

    /// The answer is over. Whether another exchange may follow; if not, the connection has only to be dropped.
    pub(super) fn rest(&mut self) -> bool {
        let clean = self.buffer.is_empty();
        self.buffer = BytesMut::new();
        // A back end that answered before it had the whole request does not want the rest.
        self.resting = self.sending.is_over();
        self.resting && clean && self.keep && !self.single
    }

    /// Takes the stream away from HTTP, behind a 101, and what has come already.
    pub(super) fn switch(&mut self) -> Option<(BackEndStream, Bytes)> {
        // Copied: the rest of the buffer would live as long as the tunnel.
        let leftover = Bytes::copy_from_slice(&std::mem::take(&mut self.buffer));
        self.stream.take().map(|stream| (stream, leftover))
    }

    /// The body, if nothing of the request was written. Over TLS that cannot be known.
    pub(super) fn take_unsent(&mut self) -> Option<Upload> {
        match self.stream {
            Some(BackEndStream::Tls(_)) | None => None,
            Some(_) => self.sending.take_unsent(),
        }
    }

    /// Whether the back end has said anything since the request began.
    pub(super) fn has_received(&self) -> bool {
        self.received > 0
    }

    /// Whether the client may still have to send something.
    pub(super) fn has_upload(&self) -> bool {
        self.sending.has_body()
    }

    /// Whose turn it is, and since when.
    pub(super) fn waits(&self) -> (Turn, Instant) {
        self.sending.waits()
    }

    /// The address at the other end.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        self.stream.as_ref().and_then(BackEndStream::peer)
    }

    /// Whether the other end has neither closed nor said anything, while there was nothing to say. For a request that may be
    /// `repeated` it is enough that the runtime has not heard of it.
    pub(super) fn is_good(&mut self, repeated: bool) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let has_news = |cx: &mut Context<'_>| if stream.has_news(cx) { Poll::Ready(()) } else { Poll::Pending };
        if repeated && !self.bodiless && at_once(has_news).is_pending() {
            return true;
        }
        if let BackEndStream::Tls(_) = stream {
            // What was decrypted already is no longer the system's. A session ticket is taken and says nothing.
            let mut byte = [0];
            if at_once(|cx| Pin::new(&mut *stream).poll_read(cx, &mut ReadBuf::new(&mut byte))).is_ready() {
                return false;
            }
        }
        stream.is_quiet()
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        match &mut self.stream {
            Some(stream) => self.sending.poll(stream, cx),
            None => Err(io::Error::from(io::ErrorKind::NotConnected).into()),
        }
    }

    /// Reads once, into `room` or what is left of the last room. While it waits it holds none.
    fn poll_fill(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(0)) };
        let free = self.buffer.capacity() - self.buffer.len();
        if free < LEAST.min(room) && !self.buffer.try_reclaim(room) {
            let mut fresh = BytesMut::with_capacity(room + self.buffer.len());
            fresh.extend_from_slice(&self.buffer);
            self.buffer = fresh;
        }
        let filled = poll_read_buf(Pin::new(stream), cx, &mut self.buffer);
        if filled.is_pending() && self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        filled
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(stream @ BackEndStream::Tls(_)) = self.stream.as_mut().filter(|_| self.resting) {
            // The other end has a right to a close_notify, and none to keep us waiting: at rest the socket has room.
            let _ = at_once(|cx| Pin::new(&mut *stream).poll_shutdown(cx));
        }
    }
}

/// What `poll` says now, to nobody who would wait.
fn at_once<T>(poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    pin!(tokio::task::unconstrained(poll_fn(poll))).poll(&mut Context::from_waker(Waker::noop()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::Body;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs") });
    }

    /// A connection that has asked, and its other end.
    fn asked(upload: Upload) -> (Box<Connection>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(BackEndStream::Unix(ours));
        connection.begin(&Request::get("/").body(()).unwrap(), upload);
        (connection, theirs)
    }

    async fn head(connection: &mut Connection) -> Result<response::Parts, Broken> {
        poll_fn(|cx| connection.poll_head(cx)).await
    }

    async fn piece(connection: &mut Connection) -> Option<Bytes> {
        poll_fn(|cx| connection.poll_body(cx)).await.unwrap()
    }

    fn held(connection: &Connection) -> usize {
        connection.buffer.capacity() + connection.sending.room()
    }

    #[test]
    fn behind_an_answer_without_a_body_the_system_is_asked_whether_there_is_one_nevertheless() {
        run(async {
            for (length, seen) in [(0, true), (2, false)] {
                let (mut connection, mut theirs) = asked(Upload::none());
                theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\nok").await.unwrap();
                head(&mut connection).await.unwrap();
                connection.buffer.truncate(length);
                connection.expect(BodyLength::Exactly(length as u64));
                assert!(connection.whole_body().is_some() && connection.rest());
                assert!(connection.is_good(true) && connection.is_good(false));
                // The runtime has not heard of it.
                theirs.try_write(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                assert_eq!(connection.is_good(true), !seen, "{length}");
                assert!(!connection.is_good(false));
            }
        });
    }

    #[test]
    fn what_came_with_the_head_is_the_body_and_at_rest_no_buffer_is_held() {
        run(async {
            let (mut connection, mut theirs) = asked(Upload::new(Body::full("abc"), Some(3)));
            for _ in 0..3 {
                theirs.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                let head = head(&mut connection).await.unwrap();
                connection.expect(BodyLength::Exactly(2));
                assert_eq!(connection.whole_body().unwrap(), "ok");
                drop(head);
                assert!(connection.rest());
                assert_eq!(held(&connection), 0);
                assert!(connection.is_good(false));
                connection.begin(&Request::get("/").body(()).unwrap(), Upload::none());
            }
            theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\nok").await.unwrap();
            head(&mut connection).await.unwrap();
            let mut heard = vec![0; 29];
            theirs.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard[..], b"GET / HTTP/1.1\r\n\r\nabcGET / HT");
        });
    }

    #[test]
    fn a_wait_for_the_head_or_the_body_holds_no_buffer() {
        run(async {
            let (mut connection, mut theirs) = asked(Upload::none());
            assert!(at_once(|cx| connection.poll_head(cx)).is_pending());
            assert_eq!(held(&connection), 0);
            theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n").await.unwrap();
            head(&mut connection).await.unwrap();
            connection.expect(BodyLength::Chunked);
            connection.expect(BodyLength::UntilClose);
            assert_eq!(piece(&mut connection).await.unwrap(), "data: 1\n\n");
            assert!(at_once(|cx| connection.poll_body(cx)).is_pending());
            assert_eq!(held(&connection), 0);
        });
    }

    #[test]
    fn a_slow_reader_holds_at_most_a_piece() {
        run(async {
            const LENGTH: usize = 4 << 20;
            let chunk = [b"8000\r\n".to_vec(), vec![b'x'; 0x8000], b"\r\n".to_vec()].concat().repeat(LENGTH / 0x8000);
            for (length, body) in [
                (BodyLength::Exactly(LENGTH as u64), vec![b'x'; LENGTH]),
                (BodyLength::Chunked, [chunk, b"0\r\n\r\n".to_vec()].concat()),
            ] {
                let (mut connection, mut theirs) = asked(Upload::none());
                let writing = async move {
                    theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    theirs.write_all(&body).await.unwrap();
                    theirs
                };
                let reading = async {
                    head(&mut connection).await.unwrap();
                    connection.expect(length);
                    let (mut got, mut largest) = (0, 0);
                    while let Some(data) = piece(&mut connection).await {
                        got += data.len();
                        largest = largest.max(data.len());
                        assert!(held(&connection) <= PIECE + LEAST, "{}", held(&connection));
                        tokio::task::yield_now().await;
                    }
                    assert_eq!(got, LENGTH);
                    assert!((SMALL..=PIECE).contains(&largest), "{largest}");
                    assert!(connection.rest());
                };
                tokio::join!(reading, writing);
            }
        });
    }

    #[test]
    fn a_request_that_was_not_written_can_be_taken_back() {
        run(async {
            let (mut connection, theirs) = asked(Upload::none());
            drop(theirs);
            let Err(Broken::Io(_)) = head(&mut connection).await else { panic!("answered") };
            assert!(connection.take_unsent().is_some());
            let (mut connection, theirs) = asked(Upload::none());
            assert!(at_once(|cx| connection.poll_head(cx)).is_pending());
            drop(theirs);
            let Err(Broken::Io(_)) = head(&mut connection).await else { panic!("answered") };
            assert!(connection.take_unsent().is_none(), "it was written");
        });
    }

    #[test]
    fn interim_answers_are_skipped_up_to_a_bound() {
        run(async {
            let (mut connection, mut theirs) = asked(Upload::none());
            theirs
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
                .await
                .unwrap();
            assert!(at_once(|cx| connection.poll_head(cx)).is_pending());
            theirs.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            assert_eq!(head(&mut connection).await.unwrap().status, StatusCode::NO_CONTENT);
            let (mut connection, mut theirs) = asked(Upload::none());
            let flood =
                async { while theirs.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n").await.is_ok() {} };
            tokio::select! {
                () = flood => panic!("closed"),
                answer = head(&mut connection) => assert!(matches!(answer, Err(Broken::Unanswered))),
            }
            assert!(held(&connection) <= PIECE);
        });
    }

    #[test]
    fn what_comes_behind_an_answer_ends_the_connection() {
        run(async {
            for (answer, length, keeps) in [
                ("HTTP/1.1 200 OK\r\n\r\nok", BodyLength::Exactly(2), true),
                ("HTTP/1.1 200 OK\r\n\r\nokH", BodyLength::Exactly(2), false),
                ("HTTP/1.1 200 OK\r\n\r\n2\r\nok\r\n0\r\n\r\n", BodyLength::Chunked, true),
                ("HTTP/1.1 200 OK\r\n\r\n2\r\nok\r\n0\r\n\r\n\r\n", BodyLength::Chunked, false),
                ("HTTP/1.1 304 Not Modified\r\n\r\n", BodyLength::Exactly(0), true),
                ("HTTP/1.1 304 Not Modified\r\n\r\nok", BodyLength::Exactly(0), false),
                ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nok", BodyLength::Exactly(2), false),
                ("HTTP/1.1 200 OK\r\nConnection: x, Close\r\n\r\nok", BodyLength::Exactly(2), false),
                (
                    "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: close\r\n\r\nok",
                    BodyLength::Exactly(2),
                    false,
                ),
            ] {
                let (mut connection, mut theirs) = asked(Upload::none());
                theirs.write_all(answer.as_bytes()).await.unwrap();
                head(&mut connection).await.unwrap();
                connection.expect(length);
                while piece(&mut connection).await.is_some() {}
                assert_eq!(connection.rest(), keeps, "{answer:?}");
                assert_eq!(held(&connection), 0);
            }
            let (mut connection, mut theirs) = asked(Upload::none());
            theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\nok").await.unwrap();
            drop(theirs);
            head(&mut connection).await.unwrap();
            connection.expect(BodyLength::UntilClose);
            assert_eq!(piece(&mut connection).await.unwrap(), "ok");
            assert_eq!(piece(&mut connection).await, None);
            assert!(!connection.rest());
        });
    }
}
