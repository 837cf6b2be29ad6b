//! Whole exchanges with back ends in this process: what they get, what the client gets of what they say.

mod answers;
mod connections;
mod handshakes;
mod sent;
mod tls;
mod uploads;
mod waits;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;

use super::exchange::collect;
use super::*;
use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::http::request::{Arrival, ClientRequest, HeadLimits, Scheme, Trust, UpstreamRequest};
use crate::upstream::{Reply, Switched};

const LONG: Duration = Duration::from_secs(20);
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn run(test: impl Future<Output = ()> + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { tokio::time::timeout(LONG, test).await.expect("the test hangs") });
}

/// Until `true`; the clock of [`run`] ends it.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

// ---- back ends

struct BackEnd {
    address: String,
    accepted: Rc<Cell<usize>>,
    seen: Rc<RefCell<Vec<String>>>,
}

/// A back end that runs `talk` for each connection, numbered from 0.
async fn back_end<F, Fut>(talk: F) -> BackEnd
where
    F: Fn(usize, Talk<TcpStream>) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let accepted = Rc::new(Cell::new(0));
    let seen = Rc::new(RefCell::new(Vec::new()));
    let (count, log) = (Rc::clone(&accepted), Rc::clone(&seen));
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let number = count.replace(count.get() + 1);
            tokio::task::spawn_local(talk(number, Talk { stream, seen: Rc::clone(&log) }));
        }
    });
    BackEnd { address, accepted, seen }
}

/// A back end that gives `answers` in turn, each whole, on connections that stay open.
async fn answering(answers: &'static [&'static str]) -> BackEnd {
    let next = Rc::new(Cell::new(0));
    back_end(move |_, mut talk| {
        let next = Rc::clone(&next);
        async move {
            while talk.hear().await.is_some() {
                let at = next.replace(next.get() + 1);
                talk.say(answers[at % answers.len()]).await;
            }
        }
    })
    .await
}

struct Talk<S> {
    stream: S,
    seen: Rc<RefCell<Vec<String>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    async fn say(&mut self, text: &str) {
        let _ = self.stream.write_all(text.as_bytes()).await;
        let _ = self.stream.flush().await;
    }

    /// One request with its body.
    async fn hear(&mut self) -> Option<String> {
        let mut text = self.hear_head().await?;
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).map(|n| n.parse().unwrap());
        if let Some(length) = length {
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await.ok()?;
            text.push_str(&String::from_utf8_lossy(&body));
        } else if text.contains("\r\ntransfer-encoding: chunked\r\n") {
            self.hear_until(&mut text, "\r\n0\r\n\r\n").await?;
        }
        self.seen.borrow_mut().push(text.clone());
        Some(text)
    }

    async fn hear_head(&mut self) -> Option<String> {
        let mut text = String::new();
        self.hear_until(&mut text, "\r\n\r\n").await?;
        Some(text)
    }

    async fn hear_until(&mut self, text: &mut String, end: &str) -> Option<()> {
        while !text.ends_with(end) {
            text.push(char::from(self.stream.read_u8().await.ok()?));
        }
        Some(())
    }
}

// ---- requests

fn settings(addresses: &[&str]) -> Settings {
    Settings {
        back_ends: addresses
            .iter()
            .map(|address| super::BackEnd { to: HttpBackEnd::parse(address).unwrap(), weight: 1, backup: false })
            .collect(),
        tls: TlsSettings::default(),
        balance: Balance::RoundRobin,
        sticky: Sticky::Off,
        slow_start: Duration::ZERO,
        health: Health { probe: None, max_fails: 1, fail_timeout: Duration::from_secs(3), fail_status: Vec::new() },
        proxy_protocol: None,
        host: HostField::Preserve,
        timeouts: Timeouts { connect: LONG, read: LONG, send: LONG },
    }
}

fn upstream(addresses: &[&str]) -> HttpUpstream {
    HttpUpstream::new(settings(addresses), &BackEndRegister::new()).unwrap()
}

fn impatient(address: &str) -> HttpUpstream {
    let short = Duration::from_millis(60);
    let mut settings = settings(&[address]);
    settings.timeouts = Timeouts { connect: LONG, read: short, send: short };
    HttpUpstream::new(settings, &BackEndRegister::new()).unwrap()
}

fn request(method: &str, target: &str, fields: &[(&str, &str)]) -> UpstreamRequest {
    let mut builder = Request::builder().method(method).uri(target).header("host", "app.test:8443");
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    let arrival = Arrival {
        peer: "192.0.2.7:5000".parse().unwrap(),
        local: "192.0.2.1:443".parse().unwrap(),
        scheme: Scheme::Https,
        unnamed: false,
    };
    let trust = Trust {
        proxies: crate::base::network::Networks(Vec::new()),
        header: http::HeaderName::from_static("x-forwarded-for"),
        cloudflare: crate::base::network::Networks(vec![]),
    };
    let limits = HeadLimits { max_uri: 8192, max_headers: 100, max_header_size: 32768 };
    let head = builder.body(()).unwrap().into_parts().0;
    ClientRequest::read(head, None, arrival, &trust, limits).unwrap().forward(None, true)
}

fn get(target: &str) -> UpstreamRequest {
    request("GET", target, &[])
}

fn handshake() -> UpstreamRequest {
    request(
        "GET",
        "/ws",
        &[
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "chat"),
            ("sec-websocket-key", KEY),
        ],
    )
}

/// The name of the back end that gave a plain answer.
fn who(reply: &Reply) -> Arc<str> {
    match reply {
        Reply::Response(_, back_end) => back_end.clone().unwrap(),
        Reply::Switched(_) => panic!("switched"),
    }
}

fn response(reply: Reply) -> Response<Body> {
    match reply {
        Reply::Response(response, _) => response,
        Reply::Switched(_) => panic!("switched"),
    }
}

fn switched(reply: Reply) -> Box<Switched> {
    match reply {
        Reply::Switched(switched) => switched,
        Reply::Response(response, _) => panic!("not switched: {}", response.status()),
    }
}

async fn text(reply: Reply) -> String {
    String::from_utf8(collect(response(reply).into_body()).await.unwrap()).unwrap()
}

async fn fetch(upstream: &HttpUpstream, pool: &Pool) -> String {
    text(upstream.send(get("/"), Body::Empty, pool).await.unwrap()).await
}

/// A body that is fed from outside and tells when it is dropped.
struct Fed {
    frames: mpsc::UnboundedReceiver<Result<Bytes, Fault>>,
    dropped: Rc<Cell<bool>>,
}

fn fed() -> (mpsc::UnboundedSender<Result<Bytes, Fault>>, Body, Rc<Cell<bool>>) {
    let (sender, frames) = mpsc::unbounded_channel();
    let dropped = Rc::new(Cell::new(false));
    (sender, Body::stream(Fed { frames, dropped: Rc::clone(&dropped) }), dropped)
}

impl HttpBody for Fed {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.frames.poll_recv(cx).map(|frame| frame.map(|frame| frame.map(Frame::data)))
    }
}

impl Drop for Fed {
    fn drop(&mut self) {
        self.dropped.set(true);
    }
}
