//! An honest client: it keeps connections, asks over HTTP/1.1 or HTTP/2, and checks every answer to the last byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::back_end::digest;
use crate::edge::Edge;
use crate::ledger::Ledger;

/// What a client waits for an answer at most.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How long after a renewal the certificate before may still be shown.
const RENEWED_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    H1,
    H2,
}

/// Who is asked, and what is right.
pub struct Net {
    pub https: SocketAddr,
    pub big_digest: String,
    pub php: bool,
    pub ledger: Arc<Ledger>,
    served: Arc<std::sync::Mutex<crate::edge::Served>>,
    roots: Arc<rustls::RootCertStore>,
}

impl Net {
    pub fn of(edge: &Edge, ledger: Arc<Ledger>) -> Net {
        let (served, roots) = (edge.served.clone(), edge.roots.clone());
        Net { https: edge.https, big_digest: edge.big_digest.clone(), php: edge.php, ledger, served, roots }
    }

    /// What one client knows; it resumes its sessions if it may.
    pub fn config(&self, way: Way, resumes: bool) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(self.roots.clone()).with_no_client_auth();
        config.resumption = if resumes { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
        config.alpn_protocols = vec![if way == Way::H2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        Arc::new(config)
    }

    /// From an address that no attacker comes from.
    pub async fn connect(&self, config: Arc<ClientConfig>, name: &str) -> Result<TlsStream<TcpStream>, String> {
        let socket = TcpSocket::new_v4().map_err(said("socket"))?;
        socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).map_err(said("bind"))?;
        let stream = socket.connect(self.https).await.map_err(said("connect"))?;
        stream.set_nodelay(true).map_err(said("nodelay"))?;
        let name = ServerName::try_from(name.to_owned()).map_err(said("name"))?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(said("handshake"))?;
        let session = stream.get_ref().1;
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.ledger.resumed.fetch_add(1, Ordering::Relaxed);
            return Ok(stream);
        }
        let leaf = session.peer_certificates().and_then(|chain| chain.first()).map_or(&[][..], |leaf| leaf);
        let served = self.served.lock().unwrap();
        let in_time = served.since.is_some_and(|since| since.elapsed() < RENEWED_WITHIN);
        if leaf == served.now || (in_time && leaf == served.before) {
            return Ok(stream);
        }
        drop(served);
        Err("an old certificate".to_owned())
    }
}

pub fn said<E: std::fmt::Debug>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error:?}")
}

/// A request, and what is right to come back.
#[derive(Debug, Clone)]
pub struct Wish {
    pub kind: &'static str,
    pub site: &'static str,
    pub path: String,
    /// What is posted.
    pub body: Option<Bytes>,
    pub expected: Expected,
}

#[derive(Debug, Clone)]
pub enum Expected {
    Text(String),
    Digest(String),
}

impl Wish {
    fn request(&self, way: Way) -> Request<Full<Bytes>> {
        let method = if self.body.is_some() { "POST" } else { "GET" };
        let mut request = Request::builder().method(method);
        if way == Way::H2 {
            request = request.uri(format!("https://{}{}", self.site, self.path));
        } else {
            request = request.uri(&self.path).header("host", self.site);
        }
        request.body(Full::new(self.body.clone().unwrap_or_default())).unwrap()
    }
}

enum Sender {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

/// Why an attempt failed.
enum Trouble {
    /// The connection ended before an answer: it may be tried once more on a new one.
    Ended(String),
    Wrong(String),
}

pub struct Client {
    net: Arc<Net>,
    way: Way,
    site: &'static str,
    config: Arc<ClientConfig>,
    sender: Option<Sender>,
    used: bool,
}

impl Client {
    pub fn new(net: Arc<Net>, way: Way, site: &'static str, resumes: bool) -> Client {
        let config = net.config(way, resumes);
        Client { net, way, site, config, sender: None, used: false }
    }

    /// Lets the connection go.
    pub fn leave(&mut self) {
        self.sender = None;
    }

    /// Asks and counts what came.
    pub async fn ask(&mut self, wish: &Wish) {
        let start = Instant::now();
        let mut outcome = self.attempt_in_time(wish).await;
        if let Err(Trouble::Ended(_)) = outcome {
            self.net.ledger.retried();
            outcome = self.attempt_in_time(wish).await;
        }
        self.count(wish, start, outcome);
    }

    /// Several at a time over one connection of HTTP/2.
    pub async fn ask_together(&mut self, wishes: &[Wish]) {
        let start = Instant::now();
        let (mut senders, mut again) = (Vec::new(), Vec::new());
        for _ in wishes {
            match timeout(DEADLINE, self.ready()).await {
                Ok(Ok(Sender::H2(sender))) => {
                    self.sender = Some(Sender::H2(sender.clone()));
                    senders.push(Sender::H2(sender));
                }
                Ok(Ok(_)) => unreachable!("this is for HTTP/2"),
                Ok(Err(why)) => return self.net.ledger.failed("h2 connection", &why),
                Err(_) => return self.net.ledger.failed("h2 connection", "not there in time"),
            }
        }
        let asked = wishes.iter().zip(senders).map(|(wish, mut sender)| async move {
            let outcome = timeout(DEADLINE, exchange(&mut sender, wish, Way::H2)).await;
            (wish, outcome.unwrap_or_else(|_| Err(Trouble::Wrong("no answer in time".to_owned()))))
        });
        for (wish, outcome) in futures_util::future::join_all(asked).await {
            match outcome {
                Err(Trouble::Ended(_)) if self.used => again.push(wish),
                outcome => self.count(wish, start, outcome),
            }
        }
        self.used = true;
        if !again.is_empty() {
            self.leave();
        }
        for wish in again {
            self.net.ledger.retried();
            let start = Instant::now();
            let outcome = self.attempt_in_time(wish).await;
            self.count(wish, start, outcome);
        }
    }

    fn count(&mut self, wish: &Wish, start: Instant, outcome: Result<(), Trouble>) {
        match outcome {
            Ok(()) => self.net.ledger.succeeded(wish.kind, start.elapsed()),
            Err(Trouble::Ended(why) | Trouble::Wrong(why)) => {
                self.leave();
                self.net.ledger.failed(wish.kind, &format!("{why} ({:?} {})", self.way, wish.path));
            }
        }
    }

    async fn attempt_in_time(&mut self, wish: &Wish) -> Result<(), Trouble> {
        let attempt = timeout(DEADLINE, self.attempt(wish)).await;
        attempt.unwrap_or_else(|_| Err(Trouble::Wrong("no answer in time".to_owned())))
    }

    async fn attempt(&mut self, wish: &Wish) -> Result<(), Trouble> {
        let mut sender = self.ready().await.map_err(Trouble::Wrong)?;
        let fresh = !std::mem::replace(&mut self.used, true);
        match exchange(&mut sender, wish, self.way).await {
            Ok(()) => {
                self.sender = Some(sender);
                Ok(())
            }
            Err(Trouble::Ended(why)) if fresh => Err(Trouble::Wrong(format!("a new connection: {why}"))),
            Err(trouble) => Err(trouble),
        }
    }

    /// The connection, which is opened anew where the server has closed it.
    async fn ready(&mut self) -> Result<Sender, String> {
        let open = match self.sender.take() {
            Some(Sender::H1(mut sender)) => sender.ready().await.is_ok().then_some(Sender::H1(sender)),
            Some(Sender::H2(mut sender)) => sender.ready().await.is_ok().then_some(Sender::H2(sender)),
            None => None,
        };
        if let Some(sender) = open {
            return Ok(sender);
        }
        let stream = TokioIo::new(self.net.connect(self.config.clone(), self.site).await?);
        self.used = false;
        if self.way == Way::H2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.map_err(said("h2"))?;
            tokio::spawn(connection);
            return Ok(Sender::H2(sender));
        }
        let (sender, connection) = http1::handshake(stream).await.map_err(said("h1"))?;
        tokio::spawn(connection);
        Ok(Sender::H1(sender))
    }
}

async fn exchange(sender: &mut Sender, wish: &Wish, way: Way) -> Result<(), Trouble> {
    let request = wish.request(way);
    let answer = match sender {
        Sender::H1(sender) => sender.send_request(request).await,
        Sender::H2(sender) => sender.send_request(request).await,
    };
    let answer = answer.map_err(|error| Trouble::Ended(format!("{error:?}")))?;
    let status = answer.status();
    let content = answer.into_body().collect().await;
    let content = content.map_err(|error| Trouble::Wrong(format!("{status}, then {error:?}")))?.to_bytes();
    let right = match &wish.expected {
        Expected::Text(text) => content == text.as_bytes(),
        Expected::Digest(expected) => digest(&content) == *expected,
    };
    if status == StatusCode::OK && right {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(&content[..content.len().min(100)]).into_owned();
    Err(Trouble::Wrong(format!("{status} with {} bytes: {shown:?}", content.len())))
}
