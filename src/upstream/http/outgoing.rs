//! The request as it is written to a back end: built anew from what was parsed, with one framing field.

use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};

use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::http::hop::drop_all;
use crate::http::request::UpstreamRequest;
use crate::upstream::http::exchange::{Exchange, Upload};
use crate::upstream::http::{HostField, Target};

/// Fields about this hop's own framing and routing: never taken over, whoever put them there.
const OURS: [HeaderName; 8] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::HOST,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    HeaderName::from_static("keep-alive"),
];

/// A request that is ready to be written, but for the Host field.
pub(super) struct Outgoing {
    /// Taken while it is on a connection; back again when nothing of it was written.
    request: Option<Request<Upload>>,
    pub(super) exchange: Option<Rc<Exchange>>,
    /// The client's authority, where it becomes the Host field.
    authority: Option<HeaderValue>,
    repeatable: bool,
}

impl Outgoing {
    /// What `request` becomes. The body of a handshake is dropped: it has none.
    pub(super) fn new(request: UpstreamRequest, body: Body, host: &HostField) -> Result<Outgoing, Fault> {
        let unwritable = |what: &'static str| Fault::new(Kind::Malformed, what);
        let target = PathAndQuery::try_from(request.target())
            .map_err(|error| unwritable("the target cannot be written").because(error))?;
        let authority = match host {
            HostField::Preserve => Some(
                HeaderValue::from_str(&request.authority.text())
                    .map_err(|error| unwritable("the host cannot be written").because(error))?,
            ),
            _ => None,
        };
        let UpstreamRequest { method, mut headers, websocket, .. } = request;
        drop_all(&mut headers, |field| OURS.contains(field));
        let (upload, exchange) = if websocket {
            // RFC 6455, section 4.1: the fields of a handshake; Sec-WebSocket-* are the client's own.
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            (Upload::none(), None)
        } else {
            frame(&mut headers, &method, body.length());
            Upload::new(body)
        };
        let repeatable = exchange.is_none() && is_safe(&method);
        let mut request = Request::new(upload);
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(target);
        *request.headers_mut() = headers;
        Ok(Outgoing { request: Some(request), exchange, authority, repeatable })
    }

    /// The request for `target`. `None` when it is under way.
    pub(super) fn take(&mut self, target: &Target) -> Option<Request<Upload>> {
        let mut request = self.request.take()?;
        if let Some(host) = self.authority.as_ref().or(target.host.as_ref()) {
            request.headers_mut().insert(header::HOST, host.clone());
        }
        Some(request)
    }

    /// Nothing of `request` was written: it can be sent elsewhere.
    pub(super) fn put_back(&mut self, request: Request<Upload>) {
        self.request = Some(request);
    }

    /// It has been sent, and is sent once more: whoever dies twice dies of the request.
    pub(super) fn repeat(&mut self, copy: Request<Upload>) {
        self.request = Some(copy);
        self.repeatable = false;
    }

    /// A copy to send to another back end when one has answered that it is the wrong one. `None` with a body.
    pub(super) fn spare(&self) -> Option<Request<Upload>> {
        self.request.as_ref().filter(|_| self.exchange.is_none()).map(duplicate)
    }

    /// A second copy, if the request may be sent twice: RFC 9110, section 9.2.2: "A proxy MUST NOT automatically retry
    /// non-idempotent requests."
    pub(super) fn copy(&self, request: &Request<Upload>) -> Option<Request<Upload>> {
        if !self.repeatable {
            return None;
        }
        Some(duplicate(request))
    }
}

fn duplicate(request: &Request<Upload>) -> Request<Upload> {
    let mut copy = Request::new(Upload::none());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Gives a handshake that came over HTTP/2, where there is none, a key of its own.
pub(super) fn complete_handshake(headers: &mut HeaderMap) -> Result<(), Fault> {
    if headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        return Ok(());
    }
    // RFC 6455, section 4.1: "The value of this header field MUST be a nonce consisting of a randomly selected 16-byte
    // value that has been base64-encoded".
    let mut nonce = [0; 16];
    let key = match aws_lc_rs::rand::fill(&mut nonce) {
        Ok(()) => HeaderValue::try_from(STANDARD.encode(nonce)).ok(),
        Err(_) => None,
    };
    let key = key.ok_or_else(|| Fault::new(Kind::Internal, "there is no randomness for a Sec-WebSocket-Key"))?;
    headers.insert(header::SEC_WEBSOCKET_KEY, key);
    Ok(())
}

/// The one framing field. RFC 9110, section 8.6: "A user agent SHOULD send Content-Length in a request when the method
/// defines a meaning for enclosed content and it is not sending Transfer-Encoding."
fn frame(headers: &mut HeaderMap, method: &Method, length: Option<u64>) {
    match length {
        Some(0) if !matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {}
        Some(length) => drop(headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length))),
        None => drop(headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))),
    }
}

/// PUT and DELETE are idempotent by definition and not always in fact; these three ask for nothing to be changed. A
/// WebSocket handshake is one of them.
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}
