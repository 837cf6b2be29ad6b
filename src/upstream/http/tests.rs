//! Whole exchanges with back ends in this process: what they get, what the client gets of what they say.

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
use crate::upstream::{Reply, ServedBy, Switched};

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
        back_ends: addresses.iter().map(|address| HttpBackEnd::parse(address).unwrap()).collect(),
        tls: TlsSettings::default(),
        balance: Balance::RoundRobin,
        sticky: Sticky::Off,
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
    };
    let trust = Trust {
        proxies: crate::base::network::Networks(Vec::new()),
        header: http::HeaderName::from_static("x-forwarded-for"),
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

fn response(reply: Reply) -> Response<Body> {
    match reply {
        Reply::Response(response) => response,
        Reply::Switched(_) => panic!("switched"),
    }
}

fn switched(reply: Reply) -> Box<Switched> {
    match reply {
        Reply::Switched(switched) => switched,
        Reply::Response(response) => panic!("not switched: {}", response.status()),
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

// ---- what is sent

#[test]
fn the_request_is_written_anew_with_one_framing_field() {
    run(async {
        let back = answering(&[OK]).await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        let (feed, stream, _) = fed();
        feed.send(Ok(Bytes::from_static(b"abc"))).unwrap();
        drop(feed);
        let cases: Vec<(&str, Body, &[&str], &[&str])> = vec![
            ("GET", Body::Empty, &[], &["content-length", "transfer-encoding"]),
            ("DELETE", Body::Empty, &[], &["content-length", "transfer-encoding"]),
            ("OPTIONS", Body::Empty, &[], &["content-length", "transfer-encoding"]),
            ("POST", Body::Empty, &["content-length: 0\r\n"], &["transfer-encoding"]),
            ("PUT", Body::full("abc"), &["content-length: 3\r\n", "\r\n\r\nabc"], &["transfer-encoding"]),
            ("POST", stream, &["transfer-encoding: chunked\r\n", "\r\n\r\n3\r\nabc\r\n0\r\n\r\n"], &["content-length"]),
        ];
        for (method, body, has, lacks) in cases {
            let mut request = request(method, "/a%20b?q=1&x=%2F", &[("x-kept", "1"), ("keep-alive", "5")]);
            // What a route's own edits could put there.
            request.headers.insert("content-length", HeaderValue::from_static("77"));
            request.headers.insert("transfer-encoding", HeaderValue::from_static("gzip"));
            request.headers.insert("connection", HeaderValue::from_static("close"));
            request.headers.insert("host", HeaderValue::from_static("evil.test"));
            assert_eq!(text(upstream.send(request, body, &pool).await.unwrap()).await, "ok");
            let seen = back.seen.borrow_mut().pop().unwrap();
            assert!(seen.starts_with(&format!("{method} /a%20b?q=1&x=%2F HTTP/1.1\r\n")), "{seen}");
            assert_eq!(seen.matches("host: ").count(), 1 + seen.matches("x-forwarded-host: ").count(), "{seen}");
            for part in
                ["\r\nhost: app.test:8443\r\n", "\r\nx-kept: 1\r\n", "\r\nx-real-ip: 192.0.2.7\r\n"].iter().chain(has)
            {
                assert!(seen.contains(part), "{part:?} is not in {seen}");
            }
            for part in ["gzip", "close", "evil", "77", "upgrade"].iter().chain(lacks) {
                assert!(!seen.contains(part), "{part:?} is in {seen}");
            }
        }
        assert_eq!(back.accepted.get(), 1);
    });
}

#[test]
fn the_host_is_preserved_or_the_back_ends_or_a_text() {
    run(async {
        let back = answering(&[OK]).await;
        for (host, expected) in [
            (HostField::Preserve, "app.test:8443"),
            (HostField::Upstream, back.address.trim_start_matches("http://")),
            (HostField::Literal("inner.test".into()), "inner.test"),
        ] {
            let settings = Settings { host, ..settings(&[&back.address]) };
            let upstream = HttpUpstream::new(settings, &BackEndRegister::new()).unwrap();
            fetch(&upstream, &Pool::new()).await;
            let seen = back.seen.borrow_mut().pop().unwrap();
            assert!(seen.contains(&format!("\r\nhost: {expected}\r\n")), "{seen}");
        }
        assert_eq!(own_host(&HttpBackEnd::parse("https://a.test:443").unwrap()), "a.test");
        assert_eq!(own_host(&HttpBackEnd::parse("http://[::1]:80").unwrap()), "[::1]");
        assert_eq!(own_host(&HttpBackEnd::parse("http://a.test:443").unwrap()), "a.test:443");
    });
}

// ---- connections

#[test]
fn a_connection_is_reused_after_its_answer_was_read() {
    run(async {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        let back = answering(Box::leak(Box::new([OK, chunked]))).await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        for _ in 0..6 {
            assert_eq!(fetch(&upstream, &pool).await, "ok");
            assert_eq!(pool.idle(), 1);
        }
        assert_eq!(back.accepted.get(), 1);
        // Two at once need two.
        let both = tokio::join!(fetch(&upstream, &pool), fetch(&upstream, &pool));
        assert_eq!(both, ("ok".to_owned(), "ok".to_owned()));
        assert_eq!((back.accepted.get(), pool.idle()), (2, 2));
    });
}

#[test]
fn an_idle_connection_is_closed_before_the_back_end_would() {
    run(async {
        let closed = Rc::new(Cell::new(false));
        let told = Rc::clone(&closed);
        let back = back_end(move |_, mut talk| {
            let told = Rc::clone(&told);
            async move {
                while talk.hear().await.is_some() {
                    talk.say(OK).await;
                }
                told.set(true);
            }
        })
        .await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        fetch(&upstream, &pool).await;
        assert_eq!(pool.idle(), 1);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(4)).await;
        tokio::time::resume();
        // Whether or not the sweep came yet: too old to be used.
        assert_eq!(fetch(&upstream, &pool).await, "ok");
        assert_eq!(back.accepted.get(), 2);
        until(|| closed.get()).await;
    });
}

#[test]
fn the_sweep_closes_what_nobody_asks_for_and_ends() {
    run(async {
        let back = answering(&[OK]).await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        fetch(&upstream, &pool).await;
        tokio::task::yield_now().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(6)).await;
        tokio::time::resume();
        until(|| pool.idle() == 0).await;
        // And begins anew.
        fetch(&upstream, &pool).await;
        tokio::task::yield_now().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(6)).await;
        tokio::time::resume();
        until(|| pool.idle() == 0).await;
    });
}

/// Answers once, then takes a second request and closes without a word.
async fn dies_on_the_second() -> BackEnd {
    back_end(|_, mut talk| async move {
        talk.hear().await;
        talk.say(OK).await;
        talk.hear().await;
    })
    .await
}

#[test]
fn a_get_is_repeated_when_its_pooled_connection_dies_and_a_post_is_not() {
    run(async {
        let back = dies_on_the_second().await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        fetch(&upstream, &pool).await;
        assert_eq!(fetch(&upstream, &pool).await, "ok");
        assert_eq!(back.accepted.get(), 2);
        for (method, body) in [("POST", Body::Empty), ("PUT", Body::full("x"))] {
            let before = back.accepted.get();
            assert_eq!(pool.idle(), 1);
            let fault = upstream.send(request(method, "/", &[]), body, &pool).await.err().unwrap();
            assert_eq!(fault.kind, Kind::BadAnswer, "{fault}");
            assert_eq!(back.accepted.get(), before, "{method} was repeated");
            fetch(&upstream, &pool).await;
        }
    });
}

#[test]
fn a_request_is_not_repeated_on_a_new_connection() {
    run(async {
        let back = back_end(|_, mut talk| async move { drop(talk.hear().await) }).await;
        let upstream = upstream(&[&back.address]);
        let fault = upstream.send(get("/"), Body::Empty, &Pool::new()).await.err().unwrap();
        assert_eq!(fault.kind, Kind::BadAnswer);
        assert_eq!(back.accepted.get(), 1);
    });
}

#[test]
fn a_connection_that_was_closed_meanwhile_is_not_given_a_post() {
    use std::io::Read as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (close, closing) = std::sync::mpsc::channel::<()>();
    let (told, closed) = std::sync::mpsc::channel::<()>();
    // A thread of its own: it closes while our runtime stands still and cannot hear of the FIN.
    let back = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = Vec::new();
            let mut byte = [0];
            while !heard.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                heard.push(byte[0]);
            }
            stream.write_all(OK.as_bytes()).unwrap();
            closing.recv().unwrap();
            drop(stream);
            told.send(()).unwrap();
        }
    });
    run(async move {
        let upstream = upstream(&[&address]);
        let pool = Pool::new();
        for _ in 0..2 {
            let sent = upstream.send(request("POST", "/", &[]), Body::Empty, &pool).await.unwrap();
            assert_eq!((text(sent).await, pool.idle()), ("ok".to_owned(), 1));
            close.send(()).unwrap();
            closed.recv().unwrap();
        }
    });
    back.join().unwrap();
}

#[test]
fn unasked_bytes_end_an_idle_connection() {
    run(async {
        let back = answering(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            OK,
        ])
        .await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        assert_eq!(fetch(&upstream, &pool).await, "ok");
        assert_eq!(fetch(&upstream, &pool).await, "ok");
        assert_eq!(back.accepted.get(), 2);
    });
}

#[test]
fn an_http_1_0_answer_or_a_close_ends_the_connection() {
    run(async {
        for answer in [
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        ] {
            let back = answering(Box::leak(Box::new([answer]))).await;
            let upstream = upstream(&[&back.address]);
            let pool = Pool::new();
            assert_eq!(fetch(&upstream, &pool).await, "ok");
            assert_eq!(fetch(&upstream, &pool).await, "ok");
            assert_eq!((back.accepted.get(), pool.idle()), (2, 0));
        }
    });
}

#[test]
fn the_next_back_end_is_asked_when_one_cannot_be_reached() {
    run(async {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = format!("http://{}", gone.local_addr().unwrap());
        drop(gone);
        let back = answering(&[OK]).await;
        let register = BackEndRegister::new();
        let upstream = HttpUpstream::new(settings(&[&nobody, &back.address]), &register).unwrap();
        let pool = Pool::new();
        let sent = upstream.send(request("POST", "/", &[]), Body::full("body"), &pool).await.unwrap();
        let served = response(sent).extensions().get::<ServedBy>().unwrap().0.clone();
        assert_eq!(*served, *back.address);
        assert!(back.seen.borrow()[0].ends_with("body"));
        assert!(register.back_ends().iter().any(|known| *known.name() == nobody.as_str().into() && known.is_avoided()));
        let alone = HttpUpstream::new(settings(&[&nobody]), &register).unwrap();
        let fault = alone.send(get("/"), Body::Empty, &pool).await.err().unwrap();
        assert_eq!(fault.kind, Kind::Connect);
        assert!(fault.to_string().contains(&nobody), "{fault}");
        assert_eq!(alone.back_ends().next().unwrap().load(), 0);
    });
}

#[test]
fn a_unix_socket_is_a_back_end() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut talk = Talk { stream, seen: Rc::default() };
            while talk.hear().await.is_some() {
                talk.say(OK).await;
            }
        });
        let upstream = upstream(&[&format!("unix:{}", path.display())]);
        let pool = Pool::new();
        assert_eq!(fetch(&upstream, &pool).await, "ok");
        assert_eq!(fetch(&upstream, &pool).await, "ok");
    });
}

// ---- answers

#[test]
fn an_early_answer_is_delivered_and_ends_the_upload() {
    run(async {
        // With the rest of the body unread, closing resets the connection under our writes.
        for closes in [true, false] {
            let back = back_end(move |_, mut talk| async move {
                talk.hear_head().await;
                talk.say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
                if !closes {
                    let mut sink = [0; 1024];
                    while talk.stream.read(&mut sink).await.is_ok_and(|n| n > 0) {}
                }
            })
            .await;
            let upstream = upstream(&[&back.address]);
            let pool = Pool::new();
            let (feed, body, dropped) = fed();
            let source = tokio::task::spawn_local(async move {
                while feed.send(Ok(Bytes::from(vec![0; 16 * 1024]))).is_ok() {
                    tokio::task::yield_now().await;
                }
            });
            let reply = response(upstream.send(request("POST", "/", &[]), body, &pool).await.unwrap());
            assert_eq!(reply.status(), 413);
            assert_eq!(collect(reply.into_body()).await.unwrap(), b"big");
            until(|| dropped.get()).await;
            source.await.unwrap();
            assert_eq!(pool.idle(), 0);
        }
    });
}

#[test]
fn an_answer_that_breaks_off_is_seen_to_break_off() {
    run(async {
        for (answer, kind) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", Kind::Truncated),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", Kind::Truncated),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nha", Kind::Truncated),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n", Kind::BadAnswer),
        ] {
            let back = back_end(move |_, mut talk| async move {
                talk.hear().await;
                talk.say(answer).await;
            })
            .await;
            let pool = Pool::new();
            let reply = upstream(&[&back.address]).send(get("/"), Body::Empty, &pool).await.unwrap();
            let fault = collect(response(reply).into_body()).await.unwrap_err();
            assert_eq!(fault.kind, kind, "{answer:?}: {fault}");
            assert_eq!(pool.idle(), 0);
        }
    });
}

#[test]
fn an_answer_that_is_none_is_refused() {
    run(async {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(200));
        let large = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(200 * 1024));
        let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(40_000);
        let cases = [
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 099 No\r\n\r\n",
            "HTTP/1.1 20 No\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
            "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nokk",
            "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: \0\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\rc\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\na : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            &many,
            &large,
            &flood,
        ];
        for answer in cases {
            let owned = answer.to_owned();
            let back = back_end(move |_, mut talk| {
                let owned = owned.clone();
                async move {
                    talk.hear().await;
                    talk.say(&owned).await;
                }
            })
            .await;
            let pool = Pool::new();
            let told = &answer[..answer.len().min(80)];
            match upstream(&[&back.address]).send(get("/"), Body::Empty, &pool).await {
                Ok(_) => panic!("{told:?} was taken"),
                Err(fault) => assert!(matches!(fault.kind, Kind::BadAnswer | Kind::Truncated), "{told:?}: {fault:?}"),
            }
            assert_eq!(pool.idle(), 0);
        }
    });
}

#[test]
fn an_answer_is_cleaned_of_what_ends_at_this_hop() {
    run(async {
        let back = answering(&[
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nServer: s\r\nConnection: keep-alive, X-Hop\r\n\
             X-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-Kept: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nok",
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        ])
        .await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        let answer = response(upstream.send(get("/"), Body::Empty, &pool).await.unwrap());
        let names: Vec<_> = answer.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(
            (&answer.headers()["server"], &answer.headers()["x-kept"]),
            (&"s".parse().unwrap(), &"1".parse().unwrap())
        );
        assert_eq!(answer.headers().get_all("set-cookie").iter().count(), 2);
        assert_eq!(answer.headers()["content-length"], "2");
        assert_eq!(answer.body().length(), Some(2));
        assert_eq!(collect(answer.into_body()).await.unwrap(), b"ok");
        let empty = response(upstream.send(get("/"), Body::Empty, &pool).await.unwrap());
        assert!(empty.headers().is_empty());
        assert_eq!(empty.body().length(), Some(0));
        assert_eq!(back.accepted.get(), 1);
    });
}

#[test]
fn the_answer_to_head_keeps_its_length_and_has_no_body() {
    run(async {
        let back = answering(&["HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"]).await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        for _ in 0..2 {
            let answer = response(upstream.send(request("HEAD", "/", &[]), Body::Empty, &pool).await.unwrap());
            assert_eq!(answer.headers()["content-length"], "5000");
            assert_eq!(collect(answer.into_body()).await.unwrap(), b"");
        }
        assert_eq!(back.accepted.get(), 1);
    });
}

#[test]
fn an_event_passes_before_the_next_one_exists() {
    run(async {
        let (go, wait) = mpsc::unbounded_channel::<()>();
        let wait = Rc::new(RefCell::new(Some(wait)));
        let back = back_end(move |_, mut talk| {
            let mut wait = wait.borrow_mut().take().unwrap();
            async move {
                talk.hear().await;
                talk.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await;
                for event in ["data: 1\n\n", "data: 2\n\n"] {
                    wait.recv().await;
                    talk.say(&format!("{:x}\r\n{event}\r\n", event.len())).await;
                }
                talk.say("0\r\n\r\n").await;
            }
        })
        .await;
        let upstream = upstream(&[&back.address]);
        let mut body = response(upstream.send(get("/"), Body::Empty, &Pool::new()).await.unwrap()).into_body();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            go.send(()).unwrap();
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), event);
        }
        assert!(collect(body).await.unwrap().is_empty());
    });
}

#[test]
fn a_client_that_leaves_frees_its_back_end() {
    run(async {
        let freed = Rc::new(Cell::new(0));
        let told = Rc::clone(&freed);
        let back = back_end(move |number, mut talk| {
            let told = Rc::clone(&told);
            async move {
                talk.hear().await;
                if number == 0 {
                    talk.say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbeginning").await;
                }
                let mut byte = [0; 1];
                assert!(!talk.stream.read(&mut byte).await.is_ok_and(|n| n > 0));
                told.set(told.get() + 1);
            }
        })
        .await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        let answer = response(upstream.send(get("/"), Body::Empty, &pool).await.unwrap());
        assert_eq!(upstream.back_ends().next().unwrap().load(), 1);
        drop(answer);
        until(|| freed.get() == 1).await;
        assert_eq!(upstream.back_ends().next().unwrap().load(), 0);
        // And before the answer's head.
        let mut sending = Box::pin(upstream.send(get("/"), Body::Empty, &pool));
        let seen = Rc::clone(&back.seen);
        tokio::select! {
            _ = &mut sending => panic!("answered"),
            () = until(|| seen.borrow().len() == 2) => {}
        }
        drop(sending);
        until(|| freed.get() == 2).await;
        assert_eq!((upstream.back_ends().next().unwrap().load(), pool.idle()), (0, 0));
    });
}

// ---- waits

#[test]
fn a_back_end_that_does_not_answer_times_out() {
    run(async {
        let back = back_end(|_, mut talk| async move {
            talk.hear().await;
            std::future::pending::<()>().await;
        })
        .await;
        let upstream = impatient(&back.address);
        for (method, body) in [("GET", Body::Empty), ("POST", Body::full("abc"))] {
            let fault = upstream.send(request(method, "/", &[]), body, &Pool::new()).await.err().unwrap();
            assert_eq!(fault.kind, Kind::ReadTimeout);
        }
    });
}

#[test]
fn a_back_end_that_stops_in_its_answer_times_out_but_a_slow_one_does_not() {
    run(async {
        let back = back_end(|_, mut talk| async move {
            talk.hear().await;
            talk.say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                talk.say("x").await;
            }
            std::future::pending::<()>().await;
        })
        .await;
        let reply = impatient(&back.address).send(get("/"), Body::Empty, &Pool::new()).await.unwrap();
        let mut body = response(reply).into_body();
        let mut got = 0;
        let fault = loop {
            match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap() {
                Ok(frame) => got += frame.into_data().unwrap().len(),
                Err(fault) => break fault,
            }
        };
        assert_eq!((got, fault.kind), (8, Kind::ReadTimeout));
    });
}

#[test]
fn a_back_end_that_takes_nothing_times_out_and_a_slow_client_does_not() {
    run(async {
        let back = back_end(|_, talk| async move {
            std::future::pending::<()>().await;
            drop(talk);
        })
        .await;
        let upstream = impatient(&back.address);
        let large = Body::stream(http_body_util::BodyExt::map_err(
            http_body_util::StreamBody::new(futures_util::stream::repeat_with(|| {
                Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(vec![0; 64 * 1024])))
            })),
            |never| match never {},
        ));
        let fault = upstream.send(request("POST", "/", &[]), large, &Pool::new()).await.err().unwrap();
        assert_eq!(fault.kind, Kind::SendTimeout);
        let back = answering(&[OK]).await;
        let (feed, body, _) = fed();
        tokio::task::spawn_local(async move {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_millis(80)).await;
                feed.send(Ok(Bytes::from_static(b"slow"))).unwrap();
            }
        });
        let reply = impatient(&back.address).send(request("POST", "/", &[]), body, &Pool::new()).await.unwrap();
        assert_eq!(text(reply).await, "ok");
    });
}

#[test]
fn a_fault_of_the_clients_body_comes_back_as_itself() {
    run(async {
        for kind in [Kind::BodyTooLarge, Kind::BodyTimeout, Kind::Malformed, Kind::Gone] {
            let back = back_end(|_, mut talk| async move { drop(talk.hear().await) }).await;
            let pool = Pool::new();
            let (feed, body, _) = fed();
            feed.send(Ok(Bytes::from_static(b"abc"))).unwrap();
            feed.send(Err(Fault::new(kind, "its own words"))).unwrap();
            let fault = upstream(&[&back.address]).send(request("POST", "/", &[]), body, &pool).await.err().unwrap();
            assert_eq!((fault.kind, &*fault.detail), (kind, "its own words"));
            assert_eq!(pool.idle(), 0);
        }
    });
}

#[test]
fn a_body_shorter_than_announced_is_not_passed_off_as_whole() {
    run(async {
        let whole = Rc::new(Cell::new(None));
        let told = Rc::clone(&whole);
        let back = back_end(move |_, mut talk| {
            let told = Rc::clone(&told);
            async move { told.set(Some(talk.hear().await.is_some())) }
        })
        .await;
        struct Short(Option<Bytes>);
        impl HttpBody for Short {
            type Data = Bytes;
            type Error = Fault;
            fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
                Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
            }
            fn size_hint(&self) -> http_body::SizeHint {
                http_body::SizeHint::with_exact(10)
            }
        }
        let body = Body::stream(Short(Some(Bytes::from_static(b"abc"))));
        let upstream = upstream(&[&back.address]);
        let fault = upstream.send(request("POST", "/", &[]), body, &Pool::new()).await.err().unwrap();
        assert_eq!(fault.kind, Kind::Gone, "{fault}");
        until(|| whole.get() == Some(false)).await;
    });
}

#[test]
fn a_fault_of_the_clients_body_ends_an_answer_that_has_begun() {
    run(async {
        let back = back_end(|_, mut talk| async move {
            talk.hear_head().await;
            talk.say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun").await;
            std::future::pending::<()>().await;
        })
        .await;
        let (feed, body, _) = fed();
        let reply = upstream(&[&back.address]).send(request("POST", "/", &[]), body, &Pool::new()).await.unwrap();
        feed.send(Err(Fault::new(Kind::BodyTooLarge, "its own words"))).unwrap();
        let fault = collect(response(reply).into_body()).await.unwrap_err();
        assert_eq!(fault.kind, Kind::BodyTooLarge);
    });
}

// ---- stickiness

#[test]
fn a_sticky_cookie_is_set_once_and_leads_back() {
    run(async {
        let (one, two) = (answering(&[OK]).await, answering(&[OK]).await);
        let settings = Settings { sticky: Sticky::Cookie("node".into()), ..settings(&[&one.address, &two.address]) };
        let upstream = HttpUpstream::new(settings, &BackEndRegister::new()).unwrap();
        let pool = Pool::new();
        let first = response(upstream.send(get("/"), Body::Empty, &pool).await.unwrap());
        let set = first.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(set.ends_with("; Path=/; HttpOnly; SameSite=Lax; Secure"), "{set}");
        let pair = set.split(';').next().unwrap().to_owned();
        let served = first.extensions().get::<ServedBy>().unwrap().0.clone();
        for _ in 0..4 {
            let again = request("GET", "/", &[("cookie", &format!("a=b; {pair}"))]);
            let again = response(upstream.send(again, Body::Empty, &pool).await.unwrap());
            assert_eq!(again.extensions().get::<ServedBy>().unwrap().0, served);
            assert!(!again.headers().contains_key("set-cookie"));
        }
        let forged = request("GET", "/", &[("cookie", "node=127.0.0.1")]);
        let forged = response(upstream.send(forged, Body::Empty, &pool).await.unwrap());
        assert!(forged.headers().contains_key("set-cookie"));
    });
}

// ---- handshakes

async fn switching(answer: String) -> BackEnd {
    back_end(move |_, mut talk| {
        let answer = answer.clone();
        async move {
            talk.hear().await;
            talk.say(&answer).await;
            let mut bytes = [0; 4];
            while talk.stream.read_exact(&mut bytes).await.is_ok() {
                let _ = talk.stream.write_all(&bytes).await;
            }
        }
    })
    .await
}

#[test]
fn after_a_101_the_stream_and_what_came_behind_it_are_handed_over() {
    run(async {
        let back = switching(format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\
             Sec-WebSocket-Protocol: chat\r\n\r\nfirst frame"
        ))
        .await;
        let settings = Settings { sticky: Sticky::Cookie("node".into()), ..settings(&[&back.address]) };
        let upstream = HttpUpstream::new(settings, &BackEndRegister::new()).unwrap();
        let pool = Pool::new();
        let mut tunnel = switched(upstream.send(handshake(), Body::Empty, &pool).await.unwrap());
        let seen = back.seen.borrow_mut().pop().unwrap();
        for field in
            ["connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-protocol: chat"]
        {
            assert!(seen.contains(&format!("\r\n{field}\r\n")), "{field} is not in {seen}");
        }
        assert!(seen.contains(KEY) && !seen.contains("content-length"));
        assert_eq!(tunnel.response.status(), 101);
        assert!(!tunnel.response.headers().contains_key("upgrade"));
        assert!(!tunnel.response.headers().contains_key("connection"));
        assert_eq!(tunnel.response.headers()["sec-websocket-accept"], ACCEPT);
        assert_eq!(tunnel.response.headers()["sec-websocket-protocol"], "chat");
        assert!(tunnel.response.headers().contains_key("set-cookie"));
        assert_eq!(&*tunnel.back_end, back.address);
        // The system may deliver the rest apart from the head.
        let mut came = tunnel.leftover.to_vec();
        while came.len() < 11 {
            came.push(tunnel.stream.read_u8().await.unwrap());
        }
        assert_eq!(came, b"first frame");
        tunnel.stream.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        tunnel.stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
        assert_eq!((upstream.back_ends().next().unwrap().load(), pool.idle()), (1, 0));
        drop(tunnel);
        assert_eq!(upstream.back_ends().next().unwrap().load(), 0);
    });
}

#[test]
fn another_answer_to_a_handshake_is_an_ordinary_one() {
    run(async {
        for status in ["200 OK", "400 Bad Request", "426 Upgrade Required", "503 Busy"] {
            let back =
                switching(format!("HTTP/1.1 {status}\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nok")).await;
            let pool = Pool::new();
            let reply = response(upstream(&[&back.address]).send(handshake(), Body::Empty, &pool).await.unwrap());
            assert!(status.starts_with(reply.status().as_str()));
            assert!(!reply.headers().contains_key("upgrade"));
            assert_eq!(collect(reply.into_body()).await.unwrap(), b"ok");
            assert_eq!(pool.idle(), 0);
        }
    });
}

#[test]
fn a_101_that_is_no_websocket_is_refused() {
    run(async {
        for fields in [
            "Connection: Upgrade\r\nUpgrade: h2c\r\n".to_owned(),
            format!("Connection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"),
            format!("Connection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"),
            "Connection: Upgrade\r\nUpgrade: websocket\r\n".to_owned(),
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n"
                .to_owned(),
        ] {
            let back = switching(format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n")).await;
            let upstream = upstream(&[&back.address]);
            let fault = upstream.send(handshake(), Body::Empty, &Pool::new()).await.err().unwrap();
            assert_eq!(fault.kind, Kind::BadAnswer, "{fields}");
            assert_eq!(upstream.back_ends().next().unwrap().load(), 0);
        }
    });
}

// ---- TLS

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Authority { issuer, folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    }

    fn ca(&self) -> std::path::PathBuf {
        self.file("ca.pem", &self.issuer.pem())
    }

    fn leaf(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// A back end that speaks TLS with this certificate; with `clients`, one of theirs is required.
async fn tls_back_end(
    certificate: &rcgen::Certificate,
    key: &KeyPair,
    clients: Option<&Authority>,
) -> (String, Rc<RefCell<Vec<String>>>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority.issuer.der().clone()).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let names = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&names);
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            log.borrow_mut().push(stream.get_ref().1.server_name().unwrap_or("-").to_owned());
            let mut talk = Talk { stream, seen: Rc::default() };
            tokio::task::spawn_local(async move {
                while let Some(heard) = talk.hear().await {
                    if heard.contains("upgrade: websocket") {
                        talk.say(&format!(
                            "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\nhello"
                        ))
                        .await;
                    } else {
                        talk.say(OK).await;
                    }
                }
            });
        }
    });
    (format!("https://localhost:{port}"), names)
}

fn tls_upstream(address: &str, tls: TlsSettings) -> HttpUpstream {
    HttpUpstream::new(Settings { tls, ..settings(&[address]) }, &BackEndRegister::new()).unwrap()
}

#[test]
fn a_back_end_with_a_certificate_of_our_ca_is_trusted_and_pooled() {
    run(async {
        let authority = Authority::new();
        let (certificate, key) = authority.leaf("localhost");
        let (address, names) = tls_back_end(&certificate, &key, None).await;
        let upstream = tls_upstream(&address, TlsSettings { ca: Some(authority.ca()), ..TlsSettings::default() });
        let pool = Pool::new();
        for _ in 0..3 {
            assert_eq!(fetch(&upstream, &pool).await, "ok");
        }
        assert_eq!(*names.borrow(), ["localhost"]);
        let mut tunnel = switched(upstream.send(handshake(), Body::Empty, &pool).await.unwrap());
        let mut came = tunnel.leftover.to_vec();
        while came.len() < 5 {
            came.push(tunnel.stream.read_u8().await.unwrap());
        }
        assert_eq!(came, b"hello");
        // Verified otherwise, it is another connection.
        let unchecked = tls_upstream(&address, TlsSettings { insecure: true, ..TlsSettings::default() });
        assert_eq!(fetch(&unchecked, &pool).await, "ok");
        assert_eq!(names.borrow().len(), 3);
    });
}

#[test]
fn a_back_end_that_cannot_be_verified_is_not_reached_unless_told_so() {
    run(async {
        let (authority, other) = (Authority::new(), Authority::new());
        let (certificate, key) = authority.leaf("localhost");
        let (address, _) = tls_back_end(&certificate, &key, None).await;
        let pool = Pool::new();
        let wrong_name =
            TlsSettings { ca: Some(authority.ca()), server_name: Some("other.test".into()), ..TlsSettings::default() };
        for tls in [TlsSettings { ca: Some(other.ca()), ..TlsSettings::default() }, wrong_name] {
            let fault = tls_upstream(&address, tls).send(get("/"), Body::Empty, &pool).await.err().unwrap();
            assert_eq!(fault.kind, Kind::Connect);
            assert!(fault.to_string().contains("certificate"), "{fault}");
        }
        let insecure = TlsSettings { insecure: true, ..TlsSettings::default() };
        assert_eq!(fetch(&tls_upstream(&address, insecure), &pool).await, "ok");
    });
}

#[test]
fn the_server_name_replaces_the_host_for_sni_and_verification() {
    run(async {
        let authority = Authority::new();
        let (certificate, key) = authority.leaf("inner.test");
        let (address, names) = tls_back_end(&certificate, &key, None).await;
        let tls =
            TlsSettings { ca: Some(authority.ca()), server_name: Some("inner.test".into()), ..TlsSettings::default() };
        assert_eq!(fetch(&tls_upstream(&address, tls), &Pool::new()).await, "ok");
        assert_eq!(*names.borrow(), ["inner.test"]);
    });
}

#[test]
fn a_client_certificate_is_shown_to_who_asks_for_one() {
    run(async {
        let authority = Authority::new();
        let (certificate, key) = authority.leaf("localhost");
        let (address, _) = tls_back_end(&certificate, &key, Some(&authority)).await;
        let (own, own_key) = authority.leaf("doorward");
        let client = Some((authority.file("own.pem", &own.pem()), authority.file("own.key", &own_key.serialize_pem())));
        let pool = Pool::new();
        let with = TlsSettings { ca: Some(authority.ca()), client, ..TlsSettings::default() };
        assert_eq!(fetch(&tls_upstream(&address, with), &pool).await, "ok");
        let without = TlsSettings { ca: Some(authority.ca()), ..TlsSettings::default() };
        assert!(tls_upstream(&address, without).send(get("/"), Body::Empty, &pool).await.is_err());
    });
}

#[test]
fn a_self_signed_certificate_may_stand_for_itself() {
    run(async {
        for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
            let folder = tempfile::tempdir().unwrap();
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.is_ca = is_ca;
            let certificate = params.clone().self_signed(&key).unwrap();
            let (address, _) = tls_back_end(&certificate, &key, None).await;
            let ca = folder.path().join("own.pem");
            std::fs::write(&ca, certificate.pem()).unwrap();
            let tls = TlsSettings { ca: Some(ca.clone()), ..TlsSettings::default() };
            assert_eq!(fetch(&tls_upstream(&address, tls.clone()), &Pool::new()).await, "ok");
            // Another key under the same name is another certificate.
            let key = KeyPair::generate().unwrap();
            let (address, _) = tls_back_end(&params.self_signed(&key).unwrap(), &key, None).await;
            let fault = tls_upstream(&address, tls).send(get("/"), Body::Empty, &Pool::new()).await.err().unwrap();
            assert_eq!(fault.kind, Kind::Connect);
        }
    });
}

#[test]
fn unusable_tls_files_and_names_are_told_when_the_upstream_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "nothing here").unwrap();
    let make = |address: &str, tls: TlsSettings| {
        HttpUpstream::new(Settings { tls, ..settings(&[address]) }, &BackEndRegister::new()).err()
    };
    let missing = TlsSettings { ca: Some(folder.path().join("missing.pem")), ..TlsSettings::default() };
    assert!(matches!(make("https://a.test", missing.clone()), Some(UpstreamTlsError::Read { .. })));
    assert!(make("http://a.test", missing).is_none(), "read for nobody");
    let nothing = TlsSettings { ca: Some(empty), ..TlsSettings::default() };
    assert!(matches!(make("https://a.test", nothing), Some(UpstreamTlsError::Empty(_))));
    let name = TlsSettings { insecure: true, server_name: Some("a b".into()), ..TlsSettings::default() };
    assert!(matches!(make("https://a.test", name), Some(UpstreamTlsError::ServerName(_))));
}
