//! What stands behind the server: answers that tell the request, sums of bodies, an echo over WebSocket, and a few
//! paths that behave badly when attackers ask for them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Counts requests that no client meant to send. Serves on a thread of its own for as long as this process lives.
pub fn start(smuggled: Arc<AtomicU64>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                let smuggled = smuggled.clone();
                let service = service_fn(move |request| answer(smuggled.clone(), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                tokio::spawn(connection);
            }
        });
    });
    address
}

pub fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The content of `/x?…`.
pub fn small(query: &str) -> String {
    format!("small {query}\n")
}

fn whole(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed_unsync())
}

async fn answer(smuggled: Arc<AtomicU64>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    if path.contains("smuggled") || request.headers().values().any(|value| value.as_bytes().contains(&b'\n')) {
        smuggled.fetch_add(1, Ordering::Relaxed);
        eprintln!("smuggled: {} {path}", request.method());
    }
    Ok(match path.as_str() {
        "/sum" => match request.body_mut().collect().await {
            Ok(body) => whole(digest(&body.to_bytes())),
            Err(_) => Response::builder().status(400).body(whole("").into_body()).unwrap(),
        },
        "/stall" => std::future::pending().await,
        "/cut" => {
            let frames =
                vec![Ok(Frame::data(Bytes::from_static(b"ten bytes."))), Err(std::io::ErrorKind::Other.into())];
            let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
            Response::builder().header("content-length", 1000).body(body).unwrap()
        }
        "/endless" => {
            let frames = futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(2)).await;
                Some((Ok(Frame::data(Bytes::from_static(&[b'.'; 8192]))), ()))
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
        path if path.starts_with("/socket/") => socket(request),
        _ => whole(small(request.uri().query().unwrap_or_default())),
    })
}

/// RFC 6455, section 4.2.2.
fn socket(mut request: Request<Incoming>) -> Response<Body> {
    let Some(key) = request.headers().get("sec-websocket-key") else {
        return Response::builder().status(400).body(whole("").into_body()).unwrap();
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let stream = TokioIo::new(upgrade.await.ok()?);
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.ok()?;
            }
        }
        Some(())
    });
    Response::builder()
        .status(101)
        .header("upgrade", "websocket")
        .header("connection", "Upgrade")
        .header("sec-websocket-accept", accept)
        .body(whole("").into_body())
        .unwrap()
}
