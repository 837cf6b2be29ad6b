//! The demo's HTTP: the page, what the back end saw of a request, and the handshake that leads into the chat.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::chat::{self, Room};

/// The page, whole: it asks for nothing but `/request` and `/ws`.
const PAGE: &str = include_str!("page.html");
/// What the page may do, and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
     img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Connections that one back end takes at a time; further ones wait in the backlog.
const CONNECTIONS: usize = 256;
/// The longest that a connection may be idle, or a request head may take.
const HEAD: Duration = Duration::from_secs(120);
/// How long requests may go on after the demo was told to stop.
const GRACE: Duration = Duration::from_secs(1);
/// The pause after a failed accept: out of descriptors, most likely, and trying again at once would spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Which of the two back ends a listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The site. It has the chat at `/ws` too, so that the page works without a proxy.
    Site,
    /// The chat server alone.
    Chat,
}

/// One back end, as its requests see it.
#[derive(Clone)]
struct BackEnd {
    role: Role,
    room: Arc<Room>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy)]
struct Ends {
    local: SocketAddr,
    peer: SocketAddr,
}

/// Accepts until `stop` is cancelled. Connections and conversations are spawned on `tasks`.
pub async fn serve(listener: TcpListener, role: Role, room: Arc<Room>, tasks: TaskTracker, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let back_end = BackEnd { role, room, tasks, stop };
    while let Some(Ok(permit)) = back_end.stop.run_until_cancelled(Arc::clone(&permits).acquire_owned()).await {
        match back_end.stop.run_until_cancelled(listener.accept()).await {
            None => return,
            Some(Err(error)) => {
                tracing::warn!(%error, "a back end of the demo cannot accept");
                sleep(PAUSE).await;
            }
            Some(Ok((stream, _))) => {
                let back_end = back_end.clone();
                back_end.tasks.clone().spawn(async move {
                    connection(stream, back_end).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn connection(stream: TcpStream, back_end: BackEnd) {
    // Neither address is to be had of a client that has left already.
    let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return };
    // Small answers one by one: waiting for more to send would only show as latency.
    let _ = stream.set_nodelay(true);
    let stop = back_end.stop.clone();
    let service = service_fn(move |request| {
        let answer = answer(request, Ends { local, peer }, &back_end);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            timeout(GRACE, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to a back end of the demo broke");
    }
}

fn answer(mut request: Request<Incoming>, ends: Ends, back_end: &BackEnd) -> Response<Full<Bytes>> {
    let is_get = request.method() == Method::GET || request.method() == Method::HEAD;
    match (request.uri().path(), back_end.role) {
        ("/ws", _) => open(&mut request, ends, back_end),
        ("/" | "/request", Role::Site) if !is_get => {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "Only GET and HEAD are answered here.\n");
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            answer
        }
        ("/", Role::Site) => {
            let mut answer = typed(StatusCode::OK, "text/html; charset=utf-8", PAGE);
            answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
            answer
        }
        ("/request", Role::Site) => typed(StatusCode::OK, "application/json", seen(&request, ends).to_string()),
        _ => text(StatusCode::NOT_FOUND, "There is nothing here.\n"),
    }
}

/// Answers a WebSocket handshake (RFC 6455, section 4.2) and sends the conversation on its way.
fn open(request: &mut Request<Incoming>, ends: Ends, back_end: &BackEnd) -> Response<Full<Bytes>> {
    const VERSION: HeaderValue = HeaderValue::from_static("13");
    let headers = request.headers();
    let asks = request.method() == Method::GET
        && names(headers, &header::CONNECTION, "upgrade")
        && names(headers, &header::UPGRADE, "websocket");
    if !asks || headers.get(header::SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
        let mut answer = text(StatusCode::UPGRADE_REQUIRED, "This address speaks WebSocket, version 13.\n");
        // RFC 9110, section 15.5.22: "The server MUST send an Upgrade header field in a 426 response".
        answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        answer.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, VERSION);
        return answer;
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| is_key(key.as_bytes()));
    let Some(accept) = key.and_then(|key| HeaderValue::try_from(accept(key.as_bytes())).ok()) else {
        return text(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is not 16 bytes in base64.\n");
    };
    let handshake = seen(request, ends);
    let upgrade = hyper::upgrade::on(request);
    let back_end = back_end.clone();
    back_end.tasks.clone().spawn(async move {
        match upgrade.await {
            Ok(stream) => chat::converse(TokioIo::new(stream), &back_end.room, handshake, &back_end.stop).await,
            Err(error) => tracing::debug!(%error, "a client of the demo's chat left during its handshake"),
        }
    });
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    answer
}

/// The proof that the handshake was understood (RFC 6455, section 4.2.2).
fn accept(key: &[u8]) -> String {
    use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
    let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(hash.finish())
}

fn is_key(key: &[u8]) -> bool {
    BASE64_STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

/// Whether a list field has this token.
fn names(headers: &HeaderMap, field: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(field).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|listed| listed.trim().eq_ignore_ascii_case(token))
}

/// A request as this back end saw it, for the page to show.
fn seen<B>(request: &Request<B>, ends: Ends) -> Value {
    let fields: Vec<(&str, _)> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    json!({
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "version": format!("{:?}", request.version()),
        "peer": ends.peer.to_string(),
        "local": ends.local.to_string(),
        "headers": fields,
    })
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_that_of_the_rfc() {
        // RFC 6455, section 1.3.
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(is_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(!is_key(b"dGhlIHNhbXBsZQ=="));
    }

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere() {
        for foreign in ["src=\"http", "href=\"http", "url(http", "@import", "//cdn"] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
    }
}
