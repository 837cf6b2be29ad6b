//! One client connection: TLS under a deadline, the protocol by ALPN, hyper behind the guard, until either side ends
//! it or a WebSocket takes it over.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::base::address::ListenAddress;
use crate::base::fault::{Fault, Kind};
use crate::edge::client_io::{ClientIo, ClientStream, Patience};
use crate::edge::facts::Facts;
use crate::edge::process::Process;
use crate::edge::service;
use crate::edge::snapshot::Snapshot;
use crate::edge::stall;
use crate::edge::worker::Worker;
use crate::http::guard::Guard;
use crate::http::request::{Arrival, ClientRequest, Scheme};
use crate::tls::accept::{self, Alpn, Handshake};

/// A client's socket as the listener hands it over.
pub struct Accepted {
    /// The socket.
    pub stream: TcpStream,
    /// The other end.
    pub peer: SocketAddr,
    /// The configured address that it came in on.
    pub listener: ListenAddress,
    /// Whether TLS is spoken there.
    pub scheme: Scheme,
    /// Cancelled when the connection is to end after the request that it is at: its listener has left the file, or
    /// the worker is stopping.
    pub close: CancellationToken,
}

/// What every request on one connection shares.
pub struct Connection {
    /// What outlives reloads.
    pub process: Arc<Process>,
    /// The worker that it lives on.
    pub worker: Rc<Worker>,
    /// Its own facts.
    pub arrival: Arrival,
    /// The configured address that it came in on.
    pub listener: ListenAddress,
    /// What the byte stream and the service tell each other.
    pub facts: Arc<Facts>,
    /// The server name that the client asked for with TLS; `None` without TLS or without SNI.
    sni: Option<String>,
    http1: bool,
    closing: Cell<bool>,
}

impl Connection {
    /// Whether this is HTTP/1.
    pub fn is_http1(&self) -> bool {
        self.http1
    }

    /// Whether it is to end, so that answers tell HTTP/1 clients to go.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// RFC 9110, section 15.5.20: a request for a host that the connection's certificate is not for is misdirected.
    /// Virtual hosts with different access rules would else be reached through one another.
    pub fn check_certificate(&self, request: &ClientRequest) -> Result<(), Fault> {
        if self.arrival.scheme == Scheme::Http
            || self.process.certificates.serves(self.sni.as_deref(), &request.authority.host)
        {
            return Ok(());
        }
        Err(Fault::new(Kind::Misdirected, "the connection's certificate is not for this host"))
    }
}

/// Serves one connection to its end.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let process = worker.process.clone();
    let snapshot = process.snapshot.load_full();
    let Accepted { stream, peer, listener, scheme, close } = accepted;
    let Ok(local) = stream.local_addr() else { return };
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    // Answers are written whole; waiting for more (Nagle) would only delay them.
    let _ = stream.set_nodelay(true);
    let (stream, sni, alpn) = match scheme {
        Scheme::Http => (ClientStream::Plain(stream), None, Alpn::H1),
        Scheme::Https => {
            let (tls, deadline) = (snapshot.tls.clone(), snapshot.timeouts.header);
            let handshake = accept::accept(stream, tls, &process.challenges, deadline);
            match Box::pin(handshake).await {
                Ok(Handshake::Client(secured)) => {
                    (ClientStream::Tls(Box::new(secured.stream)), secured.sni, secured.alpn)
                }
                Ok(Handshake::Challenge) => {
                    tracing::info!(%peer, "a certificate authority has fetched the answer to a TLS-ALPN-01 challenge");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%peer, "TLS handshake: {error}");
                    return;
                }
            }
        }
    };
    let connection = Rc::new(Connection {
        process,
        worker,
        arrival: Arrival { peer, local, scheme },
        listener,
        facts: Arc::new(Facts::default()),
        sni,
        http1: alpn == Alpn::H1,
        closing: Cell::new(false),
    });
    match alpn {
        Alpn::H1 => Box::pin(serve_http1(connection, stream, &snapshot, close)).await,
        Alpn::H2 => Box::pin(serve_http2(connection, stream, &snapshot, close)).await,
    }
}

async fn serve_http1(connection: Rc<Connection>, stream: ClientStream, snapshot: &Snapshot, close: CancellationToken) {
    let facts = connection.facts.clone();
    let io = ClientIo::http1(stream, Guard::new(snapshot.limits), patience(snapshot), facts);
    let mut builder = http1::Builder::new();
    builder
        // The guard holds the limits; these are a second fence.
        .max_headers(snapshot.limits.max_headers)
        .max_buf_size((2 * snapshot.limits.max_header_size).max(64 * 1024))
        // Deadlines are the stream's own: hyper's would not tell an idle client from a slow head.
        .header_read_timeout(None)
        .half_close(false)
        .timer(TokioTimer::new());
    let shared = connection.clone();
    let serve = service_fn(move |request: Request<Incoming>| service::serve(shared.clone(), request));
    let mut running = pin!(builder.serve_connection(TokioIo::new(io), serve).with_upgrades());
    let ended = tokio::select! {
        ended = running.as_mut() => ended,
        () = close.cancelled() => {
            connection.closing.set(true);
            running.as_mut().graceful_shutdown();
            running.await
        }
    };
    note_end(&connection, ended);
}

async fn serve_http2(connection: Rc<Connection>, stream: ClientStream, snapshot: &Snapshot, close: CancellationToken) {
    let io = ClientIo::http2(stream, patience(snapshot), connection.facts.clone());
    let mut builder = http2::Builder::new(LocalExecutor { write: snapshot.timeouts.write });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .max_header_list_size(u32::try_from(snapshot.limits.max_header_size).unwrap_or(u32::MAX))
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(64 * 1024)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(256)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let shared = connection.clone();
    let serve = service_fn(move |request: Request<Incoming>| service::serve(shared.clone(), request));
    let mut running = pin!(builder.serve_connection(TokioIo::new(io), serve));
    let idle = idle(&connection.facts, snapshot.timeouts.keepalive);
    let ended = tokio::select! {
        ended = running.as_mut() => ended,
        () = async { tokio::select! { () = idle => {}, () = close.cancelled() => {} } } => {
            connection.closing.set(true);
            running.as_mut().graceful_shutdown();
            // hyper waits until the client has taken the last answer, and such a client need never do that.
            let abandoned = self::idle(&connection.facts, snapshot.timeouts.write);
            tokio::select! { ended = running => ended, () = abandoned => Ok(()) }
        }
    };
    note_end(&connection, ended);
}

/// Ready when an HTTP/2 connection has had no request for `patience`.
async fn idle(facts: &Facts, patience: Duration) {
    let mut answered = facts.begun();
    loop {
        tokio::time::sleep(patience).await;
        let now = facts.begun();
        if now == answered && !facts.is_busy() {
            return;
        }
        answered = now;
    }
}

fn patience(snapshot: &Snapshot) -> Patience {
    let timeouts = &snapshot.timeouts;
    Patience { header: timeouts.header, keepalive: timeouts.keepalive, write: timeouts.write }
}

fn note_end(connection: &Connection, ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        tracing::debug!(peer = %connection.arrival.peer, "connection ended: {error}{cause}");
    }
}

/// Streams of an HTTP/2 connection stay on its worker.
#[derive(Clone, Copy)]
struct LocalExecutor {
    /// How long a client may take nothing of an answer.
    write: Duration,
}

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        let LocalExecutor { write } = *self;
        tokio::task::spawn_local(async move {
            if !stall::watched(future, write).await {
                tracing::debug!("an HTTP/2 client took nothing of an answer for timeouts.write");
            }
        });
    }
}
