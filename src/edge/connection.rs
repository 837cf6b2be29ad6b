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
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::base::address::ListenAddress;
use crate::base::bell::Bell;
use crate::base::boxed::in_place;
use crate::base::cached_time;
use crate::base::fault::{Fault, Kind};
use crate::base::host::Host;
use crate::edge::admission::Permit;
use crate::edge::client_io::ClientIo;
use crate::edge::client_stream::{ClientStream, Transport};
use crate::edge::executor::LocalExecutor;
use crate::edge::facts::Facts;
use crate::edge::guests::Stay;
use crate::edge::process::Process;
use crate::edge::service;
use crate::edge::snapshot::{Snapshot, Terms};
use crate::edge::worker::Worker;
use crate::http::frames::{FrameCounter, MOST_CONTROL_FRAMES, MOST_OF_A_PROXY, TooManyFrames};
use crate::http::guard::Guard;
use crate::http::request::{Arrival, ClientRequest, Scheme};
use crate::tls::accept::{self, Alpn, Handshake, Step};

/// How long a connection has to be idle before it is closed without having been told to go. A client that has sent its
/// next request by then gets its answer; closed at once, it would get a reset.
const LINGER: Duration = Duration::from_secs(1);

/// How long an HTTP/2 client whose place is needed may take to go. It is one that asks nothing.
const LEAVE: Duration = Duration::from_secs(5);

/// How often it is looked at whether a connection that is to be cut still carries a tunnel.
const LOOK: Duration = Duration::from_millis(250);

/// Requests that one HTTP/2 connection may have open at once.
const STREAMS: u32 = 128;
/// The same where sockets are among them: all tabs of a browser share one connection, and a tab that finds no stream
/// left waits without a word. Browsers allow themselves 255 sockets for a host over HTTP/1.1.
const STREAMS_WITH_SOCKETS: u32 = 256;

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
    /// Its place among all clients.
    pub permit: Permit,
    /// Whether a proxy relays it for somebody whom it cannot name.
    pub unnamed: bool,
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
    /// Control frames of HTTP/2 that may come within [`WINDOW`](crate::http::frames::WINDOW).
    most_frames: u32,
    closing: Cell<bool>,
    /// To end after what is under way, for a reason of its own.
    retired: Notify,
    /// Its place is needed.
    gives_way: Cell<bool>,
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

    /// A request was refused with `fault` before anything was done for it.
    pub fn note_fault(&self, fault: &Fault) {
        if fault.kind == Kind::HeadTooLarge {
            self.facts.note_oversize();
        }
    }

    /// The connection is to end after what is under way: a socket over HTTP/2 is refused because the switch has been
    /// turned off since it began. RFC 8441, section 3 forbids to take the offer back: the client's next one is without.
    pub fn retire(&self) {
        self.retired.notify_one();
    }

    /// It is idle and its place is needed: it is to end, and soon.
    pub fn give_way(&self) {
        self.gives_way.set(true);
        self.retired.notify_one();
    }

    /// Whether sockets may come over this HTTP/2 connection. Never where the client did not say which host it wants.
    fn offers_sockets(&self, snapshot: &Snapshot) -> bool {
        let sni = self.sni.as_deref();
        let covers = |host: &Host| self.process.certificates.serves(sni, host);
        let host = sni.and_then(|name| Host::parse(name).ok());
        host.is_some_and(|host| snapshot.offers_http2_sockets(self.listener, &host, covers))
    }

    /// Ready when the connection is to close and nobody asks anything any more. Answers say so from `close` on.
    async fn idle_after(&self, close: &CancellationToken) {
        close.cancelled().await;
        self.closing.set(true);
        idle(&self.facts, LINGER).await;
    }

    /// Ready when an HTTP/2 client that was told to go has asked nothing for `patience` and is still there.
    async fn stays(&self, patience: Duration) {
        if !self.gives_way.get() {
            return idle(&self.facts, patience).await;
        }
        loop {
            idle(&self.facts, patience.min(LEAVE)).await;
            // The end of an answer that is on its way has deadlines of its own.
            if !self.facts.is_blocked() {
                return;
            }
        }
    }

    /// Ready when requests have had their time and no tunnel lives on this connection.
    async fn cut(&self) {
        self.worker.cut.cancelled().await;
        while self.facts.has_tunnel() {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Serves one connection to its end. Each of its times is a future in a box of its own, so that an idle connection holds
/// nothing of how it began.
pub fn serve(worker: Rc<Worker>, accepted: Accepted) -> impl Future<Output = ()> {
    let beginning = in_place(|| begin(worker, accepted));
    async move {
        let Some(begun) = beginning.await else { return };
        let _stay = Stay::begin(&begun.connection);
        if begun.connection.http1 {
            in_place(|| serve_http1(begun)).await;
        } else {
            in_place(|| serve_http2(begun)).await;
        }
    }
}

/// A connection on which requests may come. Boxed where it goes from future to future: those that it is moved out of have
/// its room to their end.
struct Begun {
    connection: Rc<Connection>,
    stream: ClientStream,
    terms: Arc<Terms>,
    /// Whether sockets may come over HTTP/2.
    sockets: bool,
    close: CancellationToken,
}

/// Up to the end of the TLS handshake, where there is one.
async fn begin(worker: Rc<Worker>, accepted: Accepted) -> Option<Box<Begun>> {
    let process = worker.process.clone();
    let snapshot = process.snapshot.load_full();
    let Accepted { stream, peer, listener, scheme, close, permit, unnamed } = accepted;
    let local = stream.local_addr().ok()?;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    let is_proxy = snapshot.trust.proxies.contains(peer.ip());
    let (transport, sni, alpn) = match scheme {
        Scheme::Http => (Transport::Plain(stream), None, Alpn::H1),
        Scheme::Https => {
            let secured = shake(&worker, &snapshot, stream, peer, is_proxy).await?;
            (Transport::Tls(secured.stream), secured.sni, secured.alpn)
        }
    };
    let connection = Rc::new(Connection {
        process,
        worker,
        arrival: Arrival { peer, local, scheme, unnamed },
        listener,
        facts: Arc::new(Facts::default()),
        sni,
        http1: alpn == Alpn::H1,
        // Whom a PROXY head does not name is one client.
        most_frames: if is_proxy && !unnamed { MOST_OF_A_PROXY } else { MOST_CONTROL_FRAMES },
        closing: Cell::new(false),
        retired: Notify::new(),
        gives_way: Cell::new(false),
    });
    let sockets = alpn == Alpn::H2 && connection.offers_sockets(&snapshot);
    // The snapshot ends here: a connection may outlive many configurations, and must not keep one in memory.
    let stream = ClientStream { transport, permit };
    Some(Box::new(Begun { connection, stream, terms: snapshot.terms.clone(), sockets, close }))
}

/// Makes a TLS connection of `stream`, unless there are too many handshakes, or nothing comes of it.
async fn shake(
    worker: &Worker,
    snapshot: &Snapshot,
    stream: TcpStream,
    peer: SocketAddr,
    is_proxy: bool,
) -> Option<accept::Accepted> {
    let (process, tls, deadline) = (&worker.process, snapshot.tls.clone(), snapshot.terms.timeouts.header);
    // Closed without a word: any answer would take the handshake.
    let handshaking = process.admission.handshakes.begin(peer.ip(), is_proxy)?;
    let tell = |step| match step {
        Step::Hello => handshaking.hello(),
        Step::Answered => handshaking.answered(),
    };
    let handshake = accept::accept(stream, tls, &process.challenges, &worker.turns, deadline, tell);
    let ended = tokio::select! { ended = handshake => ended, () = handshaking.displaced() => return None };
    match ended {
        Ok(Handshake::Client(secured)) => Some(secured),
        Ok(Handshake::Challenge) => {
            tracing::info!(%peer, "a certificate authority has fetched the answer to a TLS-ALPN-01 challenge");
            None
        }
        Err(error) => {
            tracing::debug!(%peer, "TLS handshake: {error}");
            None
        }
    }
}

/// What may end a connection from outside.
enum News {
    /// It is to end after what is under way.
    Leave,
    /// It is to end.
    Cut,
}

async fn serve_http1(begun: Box<Begun>) {
    let Begun { connection, stream, terms, close, .. } = unboxed(begun);
    let io = ClientIo::http1(stream, Guard::new(terms.limits), terms.clone(), connection.facts.clone());
    let shared = connection.clone();
    let serve = service_fn(move |request: Request<Incoming>| service::serve(shared.clone(), request));
    let running = http1::Builder::new()
        // The guard holds the limits; these are a second fence.
        .max_headers(terms.limits.max_headers)
        .max_buf_size((2 * terms.limits.max_header_size).max(64 * 1024))
        // Deadlines are the stream's own: hyper's would not tell an idle client from a slow head.
        .header_read_timeout(None)
        .half_close(false)
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(io), serve);
    let mut running = pin!(running.with_upgrades());
    let news = pin!(async {
        tokio::select! {
            () = connection.idle_after(&close) => News::Leave,
            () = connection.retired.notified() => News::Leave,
            () = connection.worker.cut.cancelled() => News::Cut,
        }
    });
    let ended = tokio::select! {
        biased;
        ended = running.as_mut() => ended,
        news = Bell::new(news) => match news {
            News::Cut => Ok(()),
            News::Leave => {
                // At once, unless a request has just come, or the client has not taken all of the last answer yet: hyper
                // still holds its end then.
                connection.closing.set(true);
                running.as_mut().graceful_shutdown();
                tokio::select! { ended = running => ended, () = connection.worker.cut.cancelled() => Ok(()) }
            }
        },
    };
    note_end(&connection, ended);
}

async fn serve_http2(begun: Box<Begun>) {
    let Begun { connection, stream, terms, sockets, close } = unboxed(begun);
    let (keepalive, write) = (terms.timeouts.keepalive, terms.timeouts.write);
    // In a box of its own, and what it is made of out of scope: this future lives as long as the connection.
    let mut running = {
        let counter = FrameCounter::new(cached_time::now(), connection.most_frames);
        let io = ClientIo::http2(stream, counter, terms.clone(), connection.facts.clone());
        let mut builder = http2::Builder::new(LocalExecutor { write });
        if sockets {
            builder.enable_connect_protocol();
        }
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(if sockets { STREAMS_WITH_SOCKETS } else { STREAMS })
            .max_header_list_size(u32::try_from(terms.limits.max_header_size).unwrap_or(u32::MAX))
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .max_send_buf_size(64 * 1024)
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(256)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        let shared = connection.clone();
        let serve = service_fn(move |request: Request<Incoming>| service::serve(shared.clone(), request));
        Box::pin(builder.serve_connection(TokioIo::new(io), serve))
    };
    let idle = pin!(idle(&connection.facts, keepalive));
    let told = pin!(async {
        tokio::select! { () = idle => {}, () = close.cancelled() => {}, () = connection.retired.notified() => {} }
    });
    let ended = tokio::select! {
        // First what was told: a refusal and the GOAWAY behind it go out together. A client that has read only the first
        // would try again on this connection.
        biased;
        () = Bell::new(told) => {
            connection.closing.set(true);
            // RFC 9113, section 6.8: what the client sent before it knew is served. hyper says GOAWAY twice, the second
            // time with the last stream.
            running.as_mut().graceful_shutdown();
            // hyper waits until the client has taken the last answer, and such a client need never do that.
            let stays = Box::pin(async {
                tokio::select! { () = connection.stays(write) => {}, () = connection.cut() => {} }
            });
            tokio::select! { ended = running => ended, () = stays => Ok(()) }
        }
        ended = running.as_mut() => ended,
    };
    note_end(&connection, ended);
}

/// Ready when a connection has had no request for `patience`.
async fn idle(facts: &Facts, patience: Duration) {
    loop {
        let (begun, busy) = (facts.begun(), facts.is_busy());
        tokio::time::sleep(patience).await;
        if !busy && !facts.is_busy() && begun == facts.begun() {
            return;
        }
    }
}

/// A box that is taken apart by a future is not freed before the future's end.
#[expect(clippy::boxed_local, reason = "freed here, and that is the point")]
fn unboxed(begun: Box<Begun>) -> Begun {
    *begun
}

fn note_end(connection: &Connection, ended: Result<(), hyper::Error>) {
    if connection.facts.is_flooded() {
        let too_many = TooManyFrames { most: connection.most_frames, passed: 0 };
        tracing::debug!(peer = %connection.arrival.peer, "connection ended: {too_many}");
    } else if let Err(error) = ended {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        tracing::debug!(peer = %connection.arrival.peer, "connection ended: {error}{cause}");
    }
}
