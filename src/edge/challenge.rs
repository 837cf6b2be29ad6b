//! HTTP-01 (RFC 8555, section 8.3): the answers to certificate authorities, before any site has a say. Neither a
//! redirect nor an application stands in the way of a certificate.

use std::time::SystemTime;

use bytes::Bytes;
use http::{Method, Response, StatusCode};

use crate::base::fault::Fault;
use crate::edge::redirect::respond;
use crate::http::body::Body;
use crate::http::request::ClientRequest;
use crate::tls::challenges::Challenges;
use crate::upstream::files::answer::{self, Asked};
use crate::upstream::files::root::Root;

const PREFIX: &[u8] = b"/.well-known/acme-challenge/";

/// The answer to a challenge: our own, or one that another ACME client left below `webroot`. `None` is anything else:
/// the site has it.
pub fn answer(
    challenges: &Challenges,
    webroot: Option<&Root>,
    request: &ClientRequest,
) -> Option<Result<Response<Body>, Fault>> {
    let token = request.path.decoded().strip_prefix(PREFIX)?;
    // RFC 8555, section 8.3: "It MUST NOT contain any characters outside the base64url alphabet".
    let sound = !token.is_empty() && token.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if !sound || !matches!(request.method, Method::GET | Method::HEAD) {
        return None;
    }
    if let Some(answer) = std::str::from_utf8(token).ok().and_then(|token| challenges.http(token)) {
        let site = request.authority.host.as_str();
        tracing::info!(site, client = %request.client.address, "the answer to an HTTP-01 challenge is fetched");
        let body = Bytes::copy_from_slice(answer.as_bytes());
        return Some(Ok(respond(StatusCode::OK.as_u16(), body, "application/octet-stream")));
    }
    let file = webroot?.open(request.path.decoded()).ok()?;
    let asked =
        Asked { method: &request.method, headers: &request.headers, precompressed: false, now: SystemTime::now() };
    Some(answer::answer(file, asked))
}
