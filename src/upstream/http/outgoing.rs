//! The request as it is written to a back end: built anew from what was parsed, with one framing field.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};

use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::http::hop::drop_all;
use crate::http::request::UpstreamRequest;
use crate::upstream::http::upload::Upload;
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
    head: Request<()>,
    /// Taken while it is on a connection; back again when it may go on another.
    upload: Option<Upload>,
    has_body: bool,
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
        let upload = if websocket {
            // RFC 6455, section 4.1: the fields of a handshake; Sec-WebSocket-* are the client's own.
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            Upload::none()
        } else {
            let length = body.length();
            frame(&mut headers, &method, length);
            Upload::new(body, length)
        };
        let has_body = !upload.is_over();
        // RFC 9110, section 9.2.2: "A proxy MUST NOT automatically retry non-idempotent requests."
        let repeatable = !has_body && is_safe(&method);
        let mut head = Request::new(());
        *head.method_mut() = method;
        *head.uri_mut() = Uri::from(target);
        *head.headers_mut() = headers;
        Ok(Outgoing { head, upload: Some(upload), has_body, authority, repeatable })
    }

    /// The request for `target`. `None` when it is under way.
    pub(super) fn take(&mut self, target: &Target) -> Option<(&Request<()>, Upload)> {
        let upload = self.upload.take()?;
        if let Some(host) = self.authority.as_ref().or(target.host.as_ref()) {
            self.head.headers_mut().insert(header::HOST, host.clone());
        }
        Some((&self.head, upload))
    }

    /// Nothing of it was written: it can be sent elsewhere.
    pub(super) fn put_back(&mut self, upload: Upload) {
        self.upload = Some(upload);
    }

    /// Whether it may be sent once more when its connection has died.
    pub(super) fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    /// It has been sent, and is sent once more: whoever dies twice dies of the request.
    pub(super) fn repeat(&mut self) {
        self.again();
        self.repeatable = false;
    }

    /// Whether another back end can be asked when one has answered that it is the wrong one.
    pub(super) fn has_body(&self) -> bool {
        self.has_body
    }

    /// It was answered, and is asked elsewhere. It has no body.
    pub(super) fn again(&mut self) {
        self.upload = Some(Upload::none());
    }
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
