//! Clients that never stop asking.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::CertificateDer;

use super::proxy::Proxy;
use super::raw::{Raw, client_config, status};
use super::wait::{SOON, wait_until};
use super::world::World;

/// How a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// Each time a new connection, a full handshake, one request.
    Once,
    /// One HTTP/1.1 connection for as long as the server lets it be.
    KeepAlive,
    /// One HTTP/2 connection for as long as the server lets it be, four requests at a time.
    Http2,
}

/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(4);

/// Requests at one host that go on until [`Load::stop`].
pub struct Load {
    host: String,
    seen: Arc<Seen>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    answered: AtomicUsize,
    /// The longest that one waited for its answer, in microseconds; where one connection is kept.
    slowest: AtomicU64,
    failures: Mutex<Vec<String>>,
    /// Each leaf that was shown, once, in the order of its first appearance.
    leaves: Mutex<Vec<CertificateDer<'static>>>,
}

impl Load {
    /// `clients` of them at `host`, each time on a new connection.
    pub fn start(world: &World, proxy: &Proxy, host: &str, clients: usize) -> Load {
        Load::asking(world, proxy, host, clients, Asking::Once)
    }

    /// `clients` of them at `host`.
    pub fn asking(world: &World, proxy: &Proxy, host: &str, clients: usize, how: Asking) -> Load {
        let mut config = client_config(world);
        config.resumption = Resumption::disabled();
        if how == Asking::Http2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let (config, seen, port) = (Arc::new(config), Arc::new(Seen::default()), proxy.https());
        let clients = (0..clients).map(|_| {
            let (config, seen, host) = (Arc::clone(&config), Arc::clone(&seen), host.to_owned());
            std::thread::spawn(move || {
                while !seen.stop.load(Ordering::Relaxed) {
                    let outcome = match how {
                        Asking::Once => ask(&config, port, &host).map(|leaf| seen.note(leaf)),
                        Asking::KeepAlive => keep_asking(&config, port, &host, &seen),
                        Asking::Http2 => keep_asking_http2(&config, port, &host, &seen),
                    };
                    if let Err(why) = outcome {
                        seen.failures.lock().unwrap().push(why);
                    }
                    // Leaves the two cores of a small machine something for the proxy.
                    std::thread::sleep(PAUSE);
                }
            })
        });
        Load { host: host.to_owned(), clients: clients.collect(), seen }
    }

    /// Waits until `more` requests have been answered, or have failed, since this was called.
    pub fn goes_on(&self, more: usize) {
        let before = self.answered();
        let failed = || !self.seen.failures.lock().unwrap().is_empty();
        wait_until(&format!("{more} requests at {}", self.host), SOON, || self.answered() >= before + more || failed());
    }

    /// How many requests have been answered.
    pub fn answered(&self) -> usize {
        self.seen.answered.load(Ordering::Relaxed)
    }

    /// The longest that a client of [`Asking::KeepAlive`] has waited for an answer.
    pub fn slowest(&self) -> Duration {
        Duration::from_micros(self.seen.slowest.load(Ordering::Relaxed))
    }

    /// Ends it; a single failure is one of the test. Gives how many requests were answered, and the leaves that were
    /// shown.
    pub fn stop(mut self) -> (usize, Vec<CertificateDer<'static>>) {
        self.seen.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().unwrap();
        }
        let failures = std::mem::take(&mut *self.seen.failures.lock().unwrap());
        let answered = self.answered();
        assert!(failures.is_empty(), "{}: {} of {} failed: {failures:?}", self.host, failures.len(), answered);
        assert!(answered > 0, "{} was never asked", self.host);
        let leaves = std::mem::take(&mut *self.seen.leaves.lock().unwrap());
        (answered, leaves)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    fn note(&self, leaf: CertificateDer<'static>) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        let mut leaves = self.leaves.lock().unwrap();
        if !leaves.contains(&leaf) {
            leaves.push(leaf);
        }
    }
}

fn ask(config: &Arc<ClientConfig>, port: u16, host: &str) -> Result<CertificateDer<'static>, String> {
    let mut raw = Raw::with_config(Arc::clone(config), port, host).map_err(|error| format!("handshake: {error}"))?;
    raw.send(format!("GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"));
    let answer = raw.ended().map_err(|open| format!("kept open after {open:?}"))?;
    if status(&answer) == 200 { Ok(raw.leaf()) } else { Err(format!("answered {answer:?}")) }
}

/// Asks on one connection until the server says that it closes it, or the test ends. An end without a word is a failure.
fn keep_asking(config: &Arc<ClientConfig>, port: u16, host: &str, seen: &Seen) -> Result<(), String> {
    let mut raw = Raw::with_config(Arc::clone(config), port, host).map_err(|error| format!("handshake: {error}"))?;
    let mut answered = 0;
    while !seen.stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        raw.send(format!("GET / HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"));
        let head = one_answer(&mut raw).map_err(|why| format!("after {answered} answers on the connection: {why}"))?;
        if status(&head) != 200 {
            return Err(format!("answered {head:?}"));
        }
        let took = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        seen.slowest.fetch_max(took, Ordering::Relaxed);
        seen.note(raw.leaf());
        answered += 1;
        if head.to_lowercase().contains("\r\nconnection: close\r\n") {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Reads one answer with a Content-Length and gives its head.
fn one_answer(raw: &mut Raw) -> Result<String, String> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at + 4]).into_owned();
            let fields = head.to_lowercase();
            let length = fields.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            let length: usize = length.ok_or(format!("no length: {head:?}"))?.parse().unwrap();
            if bytes.len() >= at + 4 + length {
                return Ok(head);
            }
        }
        match raw.read(&mut piece) {
            Ok(0) => return Err(format!("closed after {:?}", String::from_utf8_lossy(&bytes))),
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn keep_asking_http2(config: &Arc<ClientConfig>, port: u16, host: &str, seen: &Seen) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let failed = |what: &str, error: &dyn std::error::Error| format!("{what}: {error:?}");
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| failed("connect", &e))?;
        let name = rustls_pki_types::ServerName::try_from(host.to_owned()).unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, tcp).await;
        let tls = tls.map_err(|e| failed("handshake", &e))?;
        let leaf = tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
        let opened = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await;
        let (mut sender, connection) = opened.map_err(|e| failed("preface", &e))?;
        tokio::spawn(connection);
        while !seen.stop.load(Ordering::Relaxed) {
            // After GOAWAY a client asks on a new connection: that is no failure.
            if sender.ready().await.is_err() {
                return Ok(());
            }
            let mut asked = Vec::new();
            for _ in 0..4 {
                let request = http::Request::get(format!("https://{host}:{port}/")).body(Empty::<bytes::Bytes>::new());
                asked.push(sender.send_request(request.unwrap()));
            }
            for answer in asked {
                match answer.await {
                    Ok(answer) if answer.status() == 200 => {
                        answer.into_body().collect().await.map_err(|e| failed("body", &e))?;
                        seen.note(leaf.clone());
                    }
                    Ok(answer) => return Err(format!("answered {}", answer.status())),
                    // It was not sent: GOAWAY was there first.
                    Err(error) if error.is_canceled() => return Ok(()),
                    Err(error) => return Err(failed("request", &error)),
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    })
}
