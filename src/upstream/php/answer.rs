//! From FPM's first words to the answer.

use std::future::poll_fn;
use std::time::Duration;

use ::http::{HeaderName, Method, Response, StatusCode, header};
use bytes::Bytes;
use tokio::time::timeout;

use super::Job;
use super::body::AnswerBody;
use super::exchange::{Event, Exchange};
use super::pool::FastCgiPool;
use super::register::Fpm;
use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::http::hop;
use crate::upstream::fastcgi::answer::{Head, HeadReader};
use crate::upstream::fastcgi::record::{End, ProtocolStatus};

/// A field of nginx's: whether it should hold the answer back. Nothing is held back here.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How long, and how much, an answer without a body is read on so that its script can end in peace.
const DRAIN_TIME: Duration = Duration::from_secs(5);
const DRAIN_BYTES: usize = 1024 * 1024;

/// The head of an answer, and what has come behind it. `reader` holds what has come of it, should the future be dropped.
pub(super) async fn head(exchange: &mut Exchange, reader: &mut HeadReader, fpm: &Fpm) -> Result<(Head, Bytes), Fault> {
    let endpoint = &fpm.endpoint;
    loop {
        match poll_fn(|cx| exchange.poll_event(cx)).await? {
            Event::Output(data) => match reader.push(data) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => {
                    let detail = format!("{endpoint} sent a malformed answer");
                    return Err(Fault::new(Kind::BadAnswer, detail).because(error));
                }
            },
            Event::End(End { protocol_status, .. }) => {
                return Err(match protocol_status {
                    ProtocolStatus::Overloaded => Fault::new(Kind::Busy, format!("{endpoint} is overloaded")),
                    ProtocolStatus::Complete => {
                        Fault::new(Kind::BadAnswer, format!("{endpoint} ended without an answer"))
                    }
                    status => Fault::new(Kind::BadAnswer, format!("{endpoint} refused the request: {status:?}")),
                });
            }
        }
    }
}

/// The answer with the body that is still to come.
pub(super) fn answer(
    job: &Job,
    (head, start): (Head, Bytes),
    exchange: Exchange,
    fpm: &Fpm,
    (pool, keep): (&FastCgiPool, usize),
) -> Response<Body> {
    let Head { status, mut headers, length } = head;
    hop::clean_response(&mut headers);
    headers.remove(ACCEL_BUFFERING);
    let no_content = status == StatusCode::NO_CONTENT;
    // RFC 9110, section 8.6: "A server MUST NOT send a Content-Length header field in any response with a status
    // code of 1xx (Informational) or 204 (No Content)."
    if no_content {
        headers.remove(header::CONTENT_LENGTH);
    }
    let body = if no_content || status == StatusCode::NOT_MODIFIED || job.method == Method::HEAD {
        // Its client does not wait for what the script does behind its answer.
        tokio::task::spawn_local(drain(exchange, pool.clone(), keep));
        Body::Empty
    } else {
        AnswerBody::body(exchange, start, length, (pool.clone(), keep), fpm.ahead.clone())
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Reads an answer that nobody will see to its end, so that its script is not cut off and the connection can be kept;
/// but not for long.
async fn drain(mut exchange: Exchange, pool: FastCgiPool, keep: usize) {
    let mut left = DRAIN_BYTES;
    let ended = timeout(DRAIN_TIME, async {
        loop {
            match poll_fn(|cx| exchange.poll_event(cx)).await {
                Ok(Event::Output(data)) if data.len() <= left => left -= data.len(),
                Ok(Event::End(_)) => return true,
                _ => return false,
            }
        }
    });
    if ended.await.unwrap_or(false) {
        exchange.recycle(&pool, keep);
    }
}
