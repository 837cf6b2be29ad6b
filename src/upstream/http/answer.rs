//! What comes back: checked before anybody sees it, then streamed with every wait under a deadline.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header, response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::http::hop;
use crate::upstream::http::back_end::Load;
use crate::upstream::http::exchange::Exchange;
use crate::upstream::http::pool::{Connection, Pool};
use crate::upstream::http::settings::Timeouts;
use crate::upstream::{Reply, Switched};

/// What an answer comes with.
pub(super) struct Answered {
    pub(super) connection: Connection,
    pub(super) load: Load,
    pub(super) exchange: Option<Rc<Exchange>>,
    /// Whether the request was HEAD.
    pub(super) head: bool,
}

/// An ordinary answer to an ordinary request. Its connection goes to `pool` when both are complete.
pub(super) fn plain(
    response: Response<Incoming>,
    answered: Answered,
    pool: &Pool,
    key: &Arc<str>,
    timeouts: &Timeouts,
) -> Result<Reply, Fault> {
    let (parts, incoming) = response.into_parts();
    // RFC 9110, section 15.2.2: the server switches "via the Upgrade header field" to what was asked for. Nothing was.
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Fault::new(Kind::BadAnswer, "the back end switched protocols unasked"));
    }
    let sent = answered.exchange.as_ref().is_none_or(|exchange| exchange.is_sent());
    // hyper would speak HTTP/1.0 from here on, and drop every body without a length.
    let shelf = (sent && parts.version == Version::HTTP_11).then(|| (pool.clone(), Arc::clone(key)));
    respond(parts, incoming, answered, shelf, timeouts)
}

/// The answer to a handshake: a switch after the 101, and any other answer an ordinary one.
pub(super) async fn switched(
    response: Response<Incoming>,
    answered: Answered,
    key: Option<&HeaderValue>,
    leftover: oneshot::Receiver<Bytes>,
    timeouts: &Timeouts,
) -> Result<Reply, Fault> {
    let (mut parts, incoming) = response.into_parts();
    if parts.status != StatusCode::SWITCHING_PROTOCOLS {
        return respond(parts, incoming, answered, None, timeouts);
    }
    check_handshake(&parts.headers, key)?;
    drop(incoming);
    let leftover = tokio::time::timeout(timeouts.read, leftover).await;
    let (Ok(Ok(leftover)), Some(stream)) = (leftover, answered.connection.link().take()) else {
        return Err(Fault::new(Kind::BadAnswer, "the connection ended with its 101"));
    };
    answered.connection.rest();
    // An empty rest still holds the whole read buffer, for as long as the tunnel lives.
    let leftover = if leftover.is_empty() { Bytes::new() } else { leftover };
    hop::clean_response(&mut parts.headers);
    parts.headers.remove(header::CONTENT_LENGTH);
    let response = Response::from_parts(parts, ());
    Ok(Reply::Switched(Box::new(Switched { response, stream, leftover, back_end: "".into(), load: answered.load })))
}

/// What a failure before the answer's head was.
pub(super) fn no_answer(error: hyper::Error, received: bool) -> Fault {
    if error.is_user() {
        return Fault::new(Kind::Gone, "the request body ended early").because(error);
    }
    if error.is_parse() {
        return Fault::new(Kind::BadAnswer, "the back end's answer is not HTTP").because(error);
    }
    if received {
        return Fault::new(Kind::Truncated, "the back end broke off in the head of its answer").because(error);
    }
    Fault::new(Kind::BadAnswer, "the back end closed the connection without an answer").because(error)
}

fn respond(
    mut parts: response::Parts,
    incoming: Incoming,
    answered: Answered,
    shelf: Option<(Pool, Arc<str>)>,
    timeouts: &Timeouts,
) -> Result<Reply, Fault> {
    check_framing(&mut parts, answered.head)?;
    // RFC 9112, section 2.3: "an intermediary … MUST send its own HTTP-version in forwarded messages". With the back
    // end's 1.0 the client would not get chunks, and could not tell a whole answer from one that broke off.
    parts.version = Version::HTTP_11;
    hop::clean_response(&mut parts.headers);
    let mut body =
        AnswerBody { incoming, answered: Some(answered), shelf, read: timeouts.read, due: None, alarm: None };
    let body = if body.incoming.is_end_stream() {
        body.finish();
        Body::Empty
    } else {
        Body::stream(body)
    };
    Ok(Reply::Response(Response::from_parts(parts, body)))
}

/// hyper settles how long an answer is, and is lenient about what contradicts it. `head` says that the request was HEAD.
///
/// # Errors
/// Two readers could take the answer for one of different lengths.
pub fn check_framing(parts: &mut response::Parts, head: bool) -> Result<(), Fault> {
    let bad = |told: &'static str| Err(Fault::new(Kind::BadAnswer, told));
    let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    let coded = match (codings.next(), codings.next()) {
        (None, _) => false,
        // RFC 9112, section 6.1 names other codings; we announced none with TE.
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => true,
        _ => return bad("the back end's Transfer-Encoding is not \"chunked\""),
    };
    let lengths = parts.headers.get_all(header::CONTENT_LENGTH);
    let mut known: Option<&[u8]> = None;
    for length in lengths.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
        let length = length.trim_ascii();
        if length.is_empty() || length.len() > 19 || !length.iter().all(u8::is_ascii_digit) {
            return bad("the back end's Content-Length is not a number");
        }
        if known.is_some_and(|known| known != length) {
            return bad("the back end's Content-Length fields differ");
        }
        known = Some(length);
    }
    // RFC 9112, section 6.3: "Such a message might indicate an attempt to perform request smuggling or response
    // splitting and ought to be handled as an error."
    if coded && known.is_some() {
        return bad("the back end's answer has both Transfer-Encoding and Content-Length");
    }
    // RFC 9110, section 8.6: "A server MUST NOT send a Content-Length header field in any response with a status code
    // of 1xx (Informational) or 204 (No Content)."
    if parts.status == StatusCode::NO_CONTENT {
        parts.headers.remove(header::CONTENT_LENGTH);
    } else if let Some(known) = known.and_then(|known| HeaderValue::from_bytes(known).ok()) {
        // One field with one value, whatever came.
        parts.headers.insert(header::CONTENT_LENGTH, known);
    }
    // RFC 9112, section 6.1: "A server MUST NOT send a response containing Transfer-Encoding unless the corresponding
    // request indicates HTTP/1.1 (or later minor revisions)"; hyper checks it where there is a body.
    if coded && head && parts.version == Version::HTTP_10 {
        return bad("the back end's HTTP/1.0 answer has a Transfer-Encoding");
    }
    Ok(())
}

/// RFC 6455, section 4.1: what a client must check of a 101. It is done for clients that can do it themselves too: who
/// answers otherwise is no WebSocket server. A client over HTTP/2 has nothing to check (RFC 8441, section 5).
pub(super) fn check_handshake(headers: &HeaderMap, key: Option<&HeaderValue>) -> Result<(), Fault> {
    let bad = |told: &'static str| Err(Fault::new(Kind::BadAnswer, told));
    let mut upgrades = headers.get_all(header::UPGRADE).iter();
    match (upgrades.next(), upgrades.next()) {
        (Some(upgrade), None) if upgrade.as_bytes().eq_ignore_ascii_case(b"websocket") => {}
        _ => return bad("the back end switched to something that is not WebSocket"),
    }
    // "If the response lacks a |Connection| header field or the |Connection| header field doesn't contain a token that
    // is an ASCII case-insensitive match for the value "Upgrade", the client MUST _Fail the WebSocket Connection_."
    if !hop::connection_names(headers).any(|name| name.eq_ignore_ascii_case(b"upgrade")) {
        return bad("the back end's 101 has no Connection: Upgrade");
    }
    let Some(key) = key else { return Ok(()) };
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes().trim_ascii());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let expected = STANDARD.encode(context.finish());
    match headers.get(header::SEC_WEBSOCKET_ACCEPT) {
        Some(accept) if accept.as_bytes() == expected.as_bytes() => Ok(()),
        _ => bad("the back end's Sec-WebSocket-Accept does not answer the key"),
    }
}

/// The body of an answer on its way. Read to its end it gives its connection back; dropped before, it closes it.
struct AnswerBody {
    incoming: Incoming,
    /// Gone when the body is over.
    answered: Option<Answered>,
    shelf: Option<(Pool, Arc<str>)>,
    read: Duration,
    /// When the current wait is too long; `None` while there is none.
    due: Option<Instant>,
    /// Made for the first wait. It may ring early: then it is set anew.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl AnswerBody {
    fn finish(&mut self) {
        let Some(Answered { connection, exchange, .. }) = self.answered.take() else { return };
        if exchange.is_some_and(|exchange| !exchange.is_sent()) || !connection.link().is_flushed() {
            // The back end answered before it had the whole request, and does not want the rest.
            return;
        }
        connection.rest();
        if let Some((pool, key)) = self.shelf.take() {
            pool.put(&key, connection);
        }
    }

    fn fail(&mut self, error: hyper::Error) -> Fault {
        let told = self.answered.take().and_then(|answered| answered.exchange.and_then(|exchange| exchange.fault()));
        if let Some(fault) = told {
            return fault;
        }
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            use std::io::ErrorKind::{InvalidData, InvalidInput};
            if inner.downcast_ref::<std::io::Error>().is_some_and(|io| matches!(io.kind(), InvalidData | InvalidInput))
            {
                return Fault::new(Kind::BadAnswer, "the back end's body is not framed as announced").because(error);
            }
            cause = inner.source();
        }
        Fault::new(Kind::Truncated, "the back end broke off in its answer").because(error)
    }

    /// Pending until the wait for the back end is too long.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = *self.due.get_or_insert_with(|| Instant::now() + self.read);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        while alarm.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(due);
        }
        Poll::Pending
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = &mut *self;
        if this.answered.is_none() {
            return Poll::Ready(None);
        }
        loop {
            match Pin::new(&mut this.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.due = None;
                    // Trailers end here: we announced to the back end that we take none (no TE: trailers).
                    let Ok(data) = frame.into_data() else { continue };
                    if this.incoming.is_end_stream() {
                        this.finish();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(this.fail(error)))),
                Poll::Ready(None) => {
                    this.finish();
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    if this.poll_overdue(cx).is_pending() {
                        return Poll::Pending;
                    }
                    this.answered = None;
                    return Poll::Ready(Some(Err(Fault::new(Kind::ReadTimeout, "the back end stopped in its answer"))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.answered.is_none() || self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.answered.is_none() { SizeHint::with_exact(0) } else { self.incoming.size_hint() }
    }
}
