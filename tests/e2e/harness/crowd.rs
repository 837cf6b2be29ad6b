//! Thousands of WebSockets from one thread, and the servers that echo them from another.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, accept_async_with_config, client_async_with_config};
use tokio_util::sync::CancellationToken;

use super::proxy::Proxy;
use super::raw::client_config;
use super::wait::wait_until;
use super::world::World;

/// Handshakes that are under way at once.
const AT_ONCE: usize = 64;

/// Sockets to some sites. A part of them talks all the time: one message after the other, each compared byte by byte
/// with what comes back.
pub struct Crowd {
    seen: Arc<Seen>,
    round: watch::Sender<u64>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
    size: usize,
}

/// How a crowd behaves.
#[derive(Clone, Copy)]
pub struct Manner {
    /// Each so many-th socket talks.
    pub talks: usize,
    /// How long a talking socket thinks between two messages.
    pub pause: Duration,
}

/// A socket that has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The host that it was opened to.
    pub host: String,
    /// When its Close frame came.
    pub at: Instant,
    /// The status in it.
    pub code: u16,
}

#[derive(Default)]
struct Seen {
    open: AtomicUsize,
    /// Messages that came back whole, and their bytes.
    echoes: AtomicU64,
    bytes: AtomicU64,
    /// Messages that have not come back yet.
    outstanding: AtomicUsize,
    /// How many sockets have answered in the round that is called last.
    answered: AtomicUsize,
    ended: Mutex<Vec<Ended>>,
    failures: Mutex<Vec<String>>,
}

impl Crowd {
    /// Opens `groups` of sockets, each at a host of the proxy, and waits until all are open.
    pub fn open(world: &World, proxy: &Proxy, groups: &[(&str, usize)], manner: Manner) -> Crowd {
        let (round, rounds) = watch::channel(0);
        let (seen, stop) = (Arc::new(Seen::default()), CancellationToken::new());
        let size = groups.iter().map(|(_, count)| count).sum();
        let place = Place {
            tls: TlsConnector::from(Arc::new(client_config(world))),
            port: proxy.https(),
            gate: Arc::new(Semaphore::new(AT_ONCE)),
            seen: Arc::clone(&seen),
            rounds,
        };
        let hosts: Vec<String> =
            groups.iter().flat_map(|(host, count)| std::iter::repeat_n((*host).to_owned(), *count)).collect();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                alone(async move {
                    let mut all = JoinSet::new();
                    for (index, host) in hosts.into_iter().enumerate() {
                        let (place, talks) = (place.clone(), index % manner.talks == 0);
                        all.spawn_local(async move { place.one(index, host, talks.then_some(manner.pause)).await });
                    }
                    tokio::select! { _ = all.join_all() => {}, () = stop.cancelled() => {} }
                });
            }
        });
        let crowd = Crowd { seen, round, stop, thread: Some(thread), size };
        wait_until("all sockets are open", Duration::from_secs(180), || {
            crowd.assert_intact();
            crowd.alive() == crowd.size
        });
        crowd
    }

    /// How many are open.
    pub fn alive(&self) -> usize {
        self.seen.open.load(Ordering::Relaxed)
    }

    /// Messages that came back whole, and their bytes.
    pub fn echoed(&self) -> (u64, u64) {
        (self.seen.echoes.load(Ordering::Relaxed), self.seen.bytes.load(Ordering::Relaxed))
    }

    /// Has every socket send a message now, and waits until each has it back.
    pub fn all_echo(&self) {
        self.seen.answered.store(0, Ordering::Relaxed);
        let alive = self.alive();
        self.round.send_modify(|round| *round += 1);
        wait_until("an echo on every socket", Duration::from_secs(60), || {
            self.assert_intact();
            self.seen.answered.load(Ordering::Relaxed) >= alive
        });
    }

    /// No byte was changed or lost, and no socket ended without a Close frame.
    pub fn assert_intact(&self) {
        let failures = self.seen.failures.lock().unwrap();
        assert!(failures.is_empty(), "{} failures, such as {:?}", failures.len(), &failures[..failures.len().min(5)]);
    }

    /// Those that have ended so far.
    pub fn ended(&self) -> Vec<Ended> {
        self.seen.ended.lock().unwrap().clone()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What every socket of a crowd shares.
#[derive(Clone)]
struct Place {
    tls: TlsConnector,
    port: u16,
    gate: Arc<Semaphore>,
    seen: Arc<Seen>,
    rounds: watch::Receiver<u64>,
}

impl Place {
    async fn one(self, index: usize, host: String, talks: Option<Duration>) {
        let seen = Arc::clone(&self.seen);
        let ended = match self.connect(&host).await {
            Err(error) => Err(format!("cannot open: {error}")),
            Ok(socket) => {
                seen.open.fetch_add(1, Ordering::Relaxed);
                let ended = self.live(socket, index, talks).await;
                seen.open.fetch_sub(1, Ordering::Relaxed);
                ended
            }
        };
        match ended {
            Ok((at, code)) => seen.ended.lock().unwrap().push(Ended { host, at, code }),
            Err(why) => seen.failures.lock().unwrap().push(format!("socket {index} to {host}: {why}")),
        }
    }

    async fn connect(
        &self,
        host: &str,
    ) -> Result<WebSocketStream<impl AsyncRead + AsyncWrite + Unpin + use<>>, String> {
        let _permit = self.gate.acquire().await.map_err(|e| e.to_string())?;
        let open = async {
            let tcp = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.map_err(|e| e.to_string())?;
            let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
            let stream = self.tls.connect(name, tcp).await.map_err(|e| e.to_string())?;
            let request =
                format!("wss://{host}:{}/live", self.port).into_client_request().map_err(|e| e.to_string())?;
            let (socket, _) =
                client_async_with_config(request, stream, Some(small())).await.map_err(|e| e.to_string())?;
            Ok::<_, String>(socket)
        };
        tokio::time::timeout(Duration::from_secs(60), open).await.map_err(|_| "no answer".to_owned())?
    }

    /// Talks until the other side closes; gives when it did, and with what.
    async fn live<S: AsyncRead + AsyncWrite + Unpin>(
        mut self,
        mut socket: WebSocketStream<S>,
        index: usize,
        talks: Option<Duration>,
    ) -> Result<(Instant, u16), String> {
        let mut counter = 0_usize;
        let mut expected: Option<Vec<u8>> = None;
        let (mut round, mut called) = (*self.rounds.borrow(), false);
        // Talkers do not all talk at once.
        let mut next =
            tokio::time::Instant::now() + talks.unwrap_or_default() * u32::try_from(index % 97).unwrap() / 97;
        loop {
            let due = talks.is_some() && expected.is_none();
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(back))) => {
                        let Some(sent) = expected.take() else { return Err("an echo of nothing".to_owned()) };
                        if *back != *sent {
                            return Err(format!("{} bytes came back as other {}", sent.len(), back.len()));
                        }
                        self.seen.outstanding.fetch_sub(1, Ordering::Relaxed);
                        self.seen.echoes.fetch_add(1, Ordering::Relaxed);
                        self.seen.bytes.fetch_add(sent.len() as u64, Ordering::Relaxed);
                        if called {
                            called = false;
                            self.seen.answered.fetch_add(1, Ordering::Relaxed);
                        }
                        next = tokio::time::Instant::now() + talks.unwrap_or_default();
                    }
                    Some(Ok(Message::Close(frame))) => {
                        let at = Instant::now();
                        // The answer goes out, and the stream ends in peace.
                        while let Some(Ok(_)) = socket.next().await {}
                        return frame.map(|frame| (at, frame.code.into())).ok_or_else(|| "closed without a status".to_owned());
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(format!("broke: {error}")),
                    None => return Err("ended without a Close frame".to_owned()),
                },
                () = tokio::time::sleep_until(next), if due => {
                    expected = Some(self.say(&mut socket, index, &mut counter).await?);
                }
                changed = self.rounds.changed(), if expected.is_none() => {
                    if changed.is_err() {
                        return Err("the test has ended".to_owned());
                    }
                    if *self.rounds.borrow() != round {
                        round = *self.rounds.borrow();
                        called = true;
                        expected = Some(self.say(&mut socket, index, &mut counter).await?);
                    }
                }
            }
        }
    }

    async fn say<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        socket: &mut WebSocketStream<S>,
        index: usize,
        counter: &mut usize,
    ) -> Result<Vec<u8>, String> {
        *counter += 1;
        // Of all lengths that frames write differently, and none like the last.
        let length = [0, 5, 125, 126, 700, 4000][(*counter + index) % 6] + index % 11;
        let seed = index.wrapping_mul(31).wrapping_add(*counter);
        let bytes: Vec<u8> = (0..length).map(|i| (i.wrapping_mul(7).wrapping_add(seed) % 251) as u8).collect();
        self.seen.outstanding.fetch_add(1, Ordering::Relaxed);
        socket.send(Message::binary(bytes.clone())).await.map_err(|error| format!("cannot send: {error}"))?;
        Ok(bytes)
    }
}

/// A server that echoes every message of every socket.
pub struct EchoServer {
    /// What `to` says in the file.
    pub url: String,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl EchoServer {
    /// On a TCP port of loopback.
    pub fn tcp() -> EchoServer {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        listener.set_nonblocking(true).unwrap();
        EchoServer::serve(url, async move |all| {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    all.lock().unwrap().spawn_local(echo(stream));
                }
            }
        })
    }

    /// On a unix socket, which needs no port for a connection.
    pub fn unix(path: PathBuf) -> EchoServer {
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        EchoServer::serve(format!("unix:{}", path.display()), async move |all| {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    all.lock().unwrap().spawn_local(echo(stream));
                }
            }
        })
    }

    fn serve(url: String, accept: impl AsyncFnOnce(Arc<Mutex<JoinSet<()>>>) + Send + 'static) -> EchoServer {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            alone(async move {
                let all = Arc::new(Mutex::new(JoinSet::new()));
                tokio::select! { () = accept(all) => {}, () = stopped.cancelled() => {} }
            });
        });
        EchoServer { url, stop, thread: Some(thread) }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
    let Ok(mut socket) = accept_async_with_config(stream, Some(small())).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            while let Some(Ok(_)) = socket.next().await {}
            return;
        }
        if (message.is_binary() || message.is_text()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// Thousands of them have to fit.
fn small() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0)
}

fn alone(all: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, all);
}

/// How even closes are: the fewest and the most in one second of `window`, against the mean.
pub fn per_second(ended: &[Ended], window: Duration) -> (usize, usize, f64) {
    let first = ended.iter().map(|ended| ended.at).min().unwrap();
    let seconds = usize::try_from(window.as_secs()).unwrap();
    let mut counts: BTreeMap<usize, usize> = (0..seconds).map(|second| (second, 0)).collect();
    for ended in ended {
        // The first comes somewhere within its share, and the last may be late by what the test itself takes.
        let second = usize::try_from((ended.at - first).as_secs()).unwrap().min(seconds - 1);
        *counts.entry(second).or_default() += 1;
    }
    let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
    (*least, *most, ended.len() as f64 / seconds as f64)
}
