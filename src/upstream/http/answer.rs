//! What comes back: checked before anybody sees it, then streamed with every wait under a deadline.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header, response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use crate::base::cached_time;
use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::http::hop;
use crate::upstream::http::back_end::Load;
use crate::upstream::http::codec::body_length::BodyLength;
use crate::upstream::http::connection::{Broken, Connection};
use crate::upstream::http::pool::Pool;
use crate::upstream::http::settings::Timeouts;
use crate::upstream::http::upload::Turn;
use crate::upstream::{Reply, Switched};

/// What an answer comes with.
pub(super) struct Answered {
    pub(super) connection: Box<Connection>,
    pub(super) load: Load,
}

/// An ordinary answer to an ordinary request. Its connection goes to `pool` when both are complete.
pub(super) fn plain(
    response: Response<BodyLength>,
    answered: Answered,
    pool: &Pool,
    key: &Arc<str>,
    timeouts: &Timeouts,
) -> Result<Reply, Fault> {
    // RFC 9110, section 15.2.2: the server switches "via the Upgrade header field" to what was asked for. Nothing was.
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Fault::new(Kind::BadAnswer, "the back end switched protocols unasked"));
    }
    Ok(respond(response, answered, Some((pool.clone(), Arc::clone(key))), timeouts))
}

/// The answer to a handshake: a switch after the 101, and any other answer an ordinary one.
pub(super) fn switched(
    response: Response<BodyLength>,
    mut answered: Answered,
    key: Option<&HeaderValue>,
    timeouts: &Timeouts,
) -> Result<Reply, Fault> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(respond(response, answered, None, timeouts));
    }
    check_handshake(response.headers(), key)?;
    let (stream, leftover) = answered.connection.switch().ok_or_else(no_stream)?;
    let mut response = response.map(drop);
    hop::clean_response(response.headers_mut());
    response.headers_mut().remove(header::CONTENT_LENGTH);
    Ok(Reply::Switched(Box::new(Switched { response, stream, leftover, back_end: "".into(), load: answered.load })))
}

/// A 101 has been taken already.
pub(super) fn no_stream() -> Fault {
    Fault::new(Kind::BadAnswer, "the connection ended with its 101")
}

/// What a failure before the answer's head was.
pub(super) fn no_answer(broken: Broken, received: bool) -> Fault {
    let none = |error: Box<dyn Error + Send + Sync>| {
        Fault::new(Kind::BadAnswer, "the back end's answer is not HTTP").because(error)
    };
    match broken {
        Broken::Fault(fault) => fault,
        Broken::Head(error) => none(error.into()),
        Broken::Body(error) => none(error.into()),
        Broken::Unanswered => none("too much before the answer's head".into()),
        Broken::Io(error) if received => {
            Fault::new(Kind::Truncated, "the back end broke off in the head of its answer").because(error)
        }
        Broken::Io(error) => {
            Fault::new(Kind::BadAnswer, "the back end closed the connection without an answer").because(error)
        }
    }
}

/// What a failure in the answer's body was.
fn broken_off(broken: Broken) -> Fault {
    match broken {
        Broken::Fault(fault) => fault,
        Broken::Body(error) => {
            Fault::new(Kind::BadAnswer, "the back end's body is not framed as announced").because(error)
        }
        Broken::Io(error) => Fault::new(Kind::Truncated, "the back end broke off in its answer").because(error),
        Broken::Head(_) | Broken::Unanswered => no_answer(broken, true),
    }
}

fn respond(
    response: Response<BodyLength>,
    mut answered: Answered,
    shelf: Option<(Pool, Arc<str>)>,
    timeouts: &Timeouts,
) -> Reply {
    let (mut parts, length) = response.into_parts();
    // RFC 9112, section 2.3: "an intermediary … MUST send its own HTTP-version in forwarded messages". With the back
    // end's 1.0 the client would not get chunks, and could not tell a whole answer from one that broke off.
    parts.version = Version::HTTP_11;
    hop::clean_response(&mut parts.headers);
    answered.connection.expect(length);
    let whole = answered.connection.whole_body();
    let mut body = AnswerBody {
        answered: Some(answered),
        shelf,
        read: timeouts.read,
        unseen: true,
        failure: None,
        due: None,
        alarm: None,
    };
    let body = match whole {
        Some(whole) => {
            body.finish();
            Body::full(whole)
        }
        None => Body::stream(body),
    };
    Response::from_parts(parts, body).into()
}

/// Where the body of an answer ends: the one place that settles it. `head` says that the request was HEAD.
///
/// # Errors
/// Two readers could take the answer for one of different lengths.
pub fn check_framing(parts: &mut response::Parts, head: bool) -> Result<BodyLength, Fault> {
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
    let value = known.and_then(|known| HeaderValue::from_bytes(known).ok());
    let known = known.and_then(|known| std::str::from_utf8(known).ok()?.parse().ok());
    if parts.status == StatusCode::NO_CONTENT {
        parts.headers.remove(header::CONTENT_LENGTH);
    } else if let Some(value) = value {
        // One field with one value, whatever came.
        parts.headers.insert(header::CONTENT_LENGTH, value);
    }
    // RFC 9112, section 6.1: "A server MUST NOT send a response containing Transfer-Encoding unless the corresponding
    // request indicates HTTP/1.1 (or later minor revisions)"; one that speaks 1.0 may not know what it says.
    if coded && parts.version == Version::HTTP_10 {
        return bad("the back end's HTTP/1.0 answer has a Transfer-Encoding");
    }
    // RFC 9112, section 6.3, in its order: what has no body whatever its fields say; chunks; a length; the close.
    let status = parts.status;
    let empty =
        head || status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    match known {
        _ if empty => Ok(BodyLength::Exactly(0)),
        _ if coded => Ok(BodyLength::Chunked),
        Some(known) => Ok(BodyLength::Exactly(known)),
        None => Ok(BodyLength::UntilClose),
    }
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
    /// Gone when the body is over.
    answered: Option<Answered>,
    shelf: Option<(Pool, Arc<str>)>,
    read: Duration,
    /// What was passed on since the last wait, the head at first, may not have gone to the client yet.
    unseen: bool,
    /// Comes next, and is the end.
    failure: Option<Fault>,
    /// When the current wait is too long; `None` while there is none.
    due: Option<Instant>,
    /// Made for the first wait. It may ring early: then it is set anew.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl AnswerBody {
    fn finish(&mut self) {
        let Some(Answered { mut connection, .. }) = self.answered.take() else { return };
        if connection.rest()
            && let Some((pool, key)) = self.shelf.take()
        {
            pool.put(&key, connection);
        }
    }

    fn left(&self) -> Option<u64> {
        match &self.answered {
            Some(answered) => answered.connection.left(),
            None => self.failure.is_none().then_some(0),
        }
    }

    /// Pending until the wait for the back end is too long.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut due = *self.due.get_or_insert_with(|| cached_time::now() + self.read);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
        while alarm.as_mut().poll(cx).is_ready() {
            let now = cached_time::now();
            // A back end that has answered early may wait for the rest of the request, and that for the client.
            let moved = match self.answered.as_ref().map(|answered| answered.connection.waits()) {
                Some((Turn::Client, _)) => now,
                Some((Turn::BackEnd | Turn::Nobody, moved)) => moved,
                None => due,
            };
            due = due.max(moved + self.read);
            if now >= due {
                return Poll::Ready(());
            }
            self.due = Some(due);
            alarm.as_mut().reset(due.into());
        }
        Poll::Pending
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = &mut *self;
        let Some(answered) = &mut this.answered else { return Poll::Ready(this.failure.take().map(Err)) };
        let Poll::Ready(polled) = answered.connection.poll_body(cx) else {
            this.unseen = false;
            if this.poll_overdue(cx).is_pending() {
                return Poll::Pending;
            }
            this.answered = None;
            return Poll::Ready(Some(Err(Fault::new(Kind::ReadTimeout, "the back end stopped in its answer"))));
        };
        this.due = None;
        match polled {
            Ok(Some(data)) => {
                this.unseen = true;
                if this.left() == Some(0) {
                    this.finish();
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Ok(None) => {
                this.finish();
                Poll::Ready(None)
            }
            Err(broken) => {
                this.answered = None;
                let fault = broken_off(broken);
                if !this.unseen {
                    return Poll::Ready(Some(Err(fault)));
                }
                // A fault makes hyper drop what it has not sent yet: a moment for that, so that the client sees an
                // answer that broke off, and not none.
                this.failure = Some(fault);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
