//! What a client gets that is one too many: 503, and the end of the connection. Nothing of what it says is parsed on
//! HTTP/1.1; HTTP/2 has no answer without a request.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::edge::admission::Refusing;
use crate::edge::worker::Worker;
use crate::http::request::Scheme;
use crate::tls::accept::{self, Alpn, Handshake};

/// For all of it.
const PATIENCE: Duration = Duration::from_secs(5);
/// For what the client still sends when it has been answered: a socket that is closed with bytes unread is reset, and
/// the reset can overtake the answer (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(1);
/// Bytes that are read and dropped meanwhile.
const MOST_READ: usize = 64 * 1024;

/// The whole answer on HTTP/1.1.
pub const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 21\r\n\
                            Retry-After: 5\r\nCache-Control: no-store\r\nConnection: close\r\n\r\nToo many connections\n";
const TEXT: &str = "Too many connections\n";

/// Refuses a connection that was accepted. On TLS this takes a handshake, whose cost the number of places bounds.
pub async fn refuse(worker: Rc<Worker>, stream: TcpStream, scheme: Scheme, place: Refusing) {
    let answered = async {
        match scheme {
            Scheme::Http => answer_http1(stream).await,
            Scheme::Https => {
                let tls = worker.process.snapshot.load().tls.clone();
                // Who is refused has a place of its own.
                let (challenges, untold) = (&worker.process.challenges, |_| ());
                let handshake = accept::accept(stream, tls, challenges, &worker.turns, PATIENCE, untold);
                match Box::pin(handshake).await {
                    Ok(Handshake::Client(client)) if client.alpn == Alpn::H1 => answer_http1(client.stream).await,
                    Ok(Handshake::Client(client)) => answer_http2(client.stream).await,
                    Ok(Handshake::Challenge) | Err(_) => {}
                }
            }
        }
    };
    let _ = timeout(PATIENCE, Box::pin(answered)).await;
    drop(place);
}

async fn answer_http1(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut dropped = [0; 1024];
    // An answer before there is a question is taken for an error. Who never asks, gets none.
    if !matches!(timeout(LINGER, stream.read(&mut dropped)).await, Ok(Ok(read)) if read > 0) {
        return;
    }
    if stream.write_all(ANSWER).await.is_err() || stream.shutdown().await.is_err() {
        return;
    }
    let rest = async {
        for _ in 0..MOST_READ / dropped.len() {
            if !matches!(stream.read(&mut dropped).await, Ok(read) if read > 0) {
                break;
            }
        }
    };
    let _ = timeout(LINGER, rest).await;
}

/// Every request that comes before the client has seen GOAWAY is answered.
async fn answer_http2(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let asked = Notify::new();
    let service = service_fn(|_: Request<Incoming>| {
        asked.notify_one();
        std::future::ready(Ok::<_, Infallible>(response()))
    });
    let mut builder = http2::Builder::new(LocalExecutor);
    builder.max_concurrent_streams(16).max_header_list_size(16 * 1024);
    let mut running = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = running.as_mut() => return,
        () = asked.notified() => running.as_mut().graceful_shutdown(),
    }
    let _ = running.await;
}

fn response() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(TEXT));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Its streams live no longer than [`PATIENCE`] by the connection that they are of.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let text = std::str::from_utf8(ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        assert_eq!(body, TEXT);
    }

    #[tokio::test]
    async fn a_client_is_answered_before_it_has_said_all() {
        let (mut client, server) = tokio::io::duplex(64);
        let answering = tokio::spawn(answer_http1(server));
        client.write_all(b"POST / HTTP/1.1\r\n").await.unwrap();
        let mut heard = vec![0; ANSWER.len()];
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, ANSWER);
        client.write_all(&[b'x'; 1000]).await.unwrap();
        drop(client);
        answering.await.unwrap();
    }
}
