//! Answers that lead elsewhere, and those that are written in the file.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};

use crate::base::fault::{Fault, Kind};
use crate::base::pattern::PathPattern;
use crate::edge::connection::Connection;
use crate::edge::site::Site;
use crate::http::body::Body;
use crate::http::path;
use crate::http::request::{ClientRequest, Scheme, UpstreamRequest};

/// The redirect of a plain request to https, or of an alias to the site's first host; `None` where the site itself
/// is to answer.
pub fn elsewhere(site: &Site, connection: &Connection, request: &ClientRequest) -> Option<Response<Body>> {
    // A trusted proxy that took the request over TLS has done our part already.
    let to_https =
        site.redirects_plain && connection.arrival.scheme == Scheme::Http && request.client.scheme == Scheme::Http;
    let alias = site.is_alias(&request.authority.host);
    if !to_https && !alias {
        return None;
    }
    let host = if alias { site.canonical.as_ref()? } else { &request.authority.host };
    let (scheme, port) = match (to_https, request.client.scheme) {
        (true, _) => (Scheme::Https, site.https_port),
        (false, scheme) => (scheme, request.authority.port.unwrap_or(scheme.default_port())),
    };
    let port = if port == scheme.default_port() { String::new() } else { format!(":{port}") };
    // 308 keeps the method and the body of a POST; old clients know only 301 for GET.
    let safe = request.method == Method::GET || request.method == Method::HEAD;
    let status =
        if safe || alias && !to_https { StatusCode::MOVED_PERMANENTLY } else { StatusCode::PERMANENT_REDIRECT };
    let location = format!("{}://{host}{port}{}", scheme.as_str(), request.target());
    to(status, &location).ok()
}

/// A redirect of the file: `{rest}` is what the pattern's `*` stands for; the query goes along unless `target` has
/// one.
pub fn answer(
    pattern: Option<&PathPattern>,
    target: &str,
    status: u16,
    request: &UpstreamRequest,
) -> Result<Response<Body>, Fault> {
    let rest = pattern.and_then(|pattern| pattern.rest(request.path.decoded())).unwrap_or_default();
    let mut location = target.replace("{rest}", path::encode(rest).trim_start_matches('/'));
    if let Some(query) = request.query.as_deref().filter(|_| !target.contains('?')) {
        location = format!("{location}?{query}");
    }
    to(status_code(status), &location)
}

/// A fixed answer.
pub fn respond(status: u16, body: Bytes, content_type: &str) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status_code(status);
    if let Ok(value) = HeaderValue::from_str(content_type)
        && !content_type.is_empty()
    {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn to(status: StatusCode, location: &str) -> Result<Response<Body>, Fault> {
    let location = HeaderValue::from_bytes(location.as_bytes())
        .map_err(|error| Fault::new(Kind::Internal, "the redirect's target is not a field value").because(error))?;
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}
