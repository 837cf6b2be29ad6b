//! What an upstream gives back, and the one table from fault to status.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;

/// The status that a client sees for a fault: the file's own, or that of its kind.
pub fn status(fault: &Fault) -> StatusCode {
    fault.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or_else(|| status_of(fault.kind))
}

/// The status of a kind of fault: the only such table in the house.
fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Malformed => StatusCode::BAD_REQUEST,
        Kind::HeadTimeout | Kind::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        Kind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::TargetTooLong => StatusCode::URI_TOO_LONG,
        Kind::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Kind::Expectation => StatusCode::EXPECTATION_FAILED,
        Kind::UnknownCoding | Kind::UnknownProtocol => StatusCode::NOT_IMPLEMENTED,
        Kind::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        Kind::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::Limited => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unauthorized => StatusCode::UNAUTHORIZED,
        Kind::Method | Kind::ReadOnly => StatusCode::METHOD_NOT_ALLOWED,
        // Nobody reads it; nginx's number, so that logs say what happened.
        Kind::Gone => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Kind::Storage => StatusCode::INSUFFICIENT_STORAGE,
        Kind::Stopping | Kind::Busy | Kind::Crowded => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Connect | Kind::BadAnswer | Kind::Truncated => StatusCode::BAD_GATEWAY,
        Kind::ReadTimeout | Kind::SendTimeout => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// The answer to a fault: a small page that says the status and the fault's id, which the log shares, and nothing
/// about the inside.
pub fn page(fault: &Fault, id: &str) -> Response<Body> {
    let status = status(fault);
    let title = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or("Error"));
    let mut response = Response::new(Body::full(Bytes::from(format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:20vh auto;padding:0 1rem;color:#222}}\
         small{{color:#777}}</style>\n<h1>{title}</h1>\n<p><small>Reference {id}</small></p>\n</html>\n"
    ))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match fault.kind {
        // RFC 9110, section 15.5.6: "The origin server MUST generate an Allow header field in a 405 response".
        Kind::Method => {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        Kind::ReadOnly => {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        _ => {}
    }
    if let Some(seconds) = retry_after(fault) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Whole seconds, rounded up: who comes a moment too early is refused again.
fn retry_after(fault: &Fault) -> Option<u64> {
    let wait = match fault.kind {
        Kind::Busy | Kind::Stopping => fault.retry_after.unwrap_or(Duration::from_secs(1)),
        // Sockets live long: whoever asks at once is refused again.
        Kind::Crowded => fault.retry_after.unwrap_or(Duration::from_secs(10)),
        _ => fault.retry_after?,
    };
    Some(wait.as_nanos().div_ceil(1_000_000_000).max(1).try_into().unwrap_or(u64::MAX))
}
