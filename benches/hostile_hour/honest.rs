//! What honest clients do: they keep connections and ask, come anew, resume, and hold sockets open for minutes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper::{Method, Request, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::back_end::{digest, small};
use crate::client::{Client, DEADLINE, Expected, Net, Way, Wish, said};
use crate::ledger::{Chance, Ledger};

/// Clients that keep their connection, for each protocol.
const KEEPING: u64 = 4;
const SOCKETS: u64 = 20;
/// Some of them over HTTP/2 (RFC 8441).
const SOCKETS_H2: u64 = 5;

/// Runs until it is told to end.
pub fn start(net: Net, seed: u64) -> std::thread::JoinHandle<()> {
    let net = Arc::new(net);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut all = JoinSet::new();
            for number in 0..KEEPING {
                all.spawn(keep(net.clone(), Way::H1, Chance::new(seed + number)));
                all.spawn(keep(net.clone(), Way::H2, Chance::new(seed + 100 + number)));
            }
            all.spawn(come_anew(net.clone(), false, Chance::new(seed + 200)));
            all.spawn(come_anew(net.clone(), true, Chance::new(seed + 201)));
            if net.php {
                all.spawn(ask_php(net.clone(), Chance::new(seed + 202)));
            }
            for number in 0..SOCKETS {
                let way = if number < SOCKETS_H2 { Way::H2 } else { Way::H1 };
                all.spawn(hold_sockets(net.clone(), way, Chance::new(seed + 300 + number)));
            }
            while let Some(ended) = all.join_next().await {
                ended.unwrap();
            }
        });
    })
}

/// Sleeps in steps, so that an end is seen; false when it has come.
async fn rest(ledger: &Ledger, time: Duration) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if ledger.honest_ends() {
            return false;
        }
        sleep(Duration::from_millis(200).min(end.saturating_duration_since(Instant::now()))).await;
    }
    !ledger.honest_ends()
}

fn wish(net: &Net, chance: &mut Chance) -> Wish {
    let number = chance.next() % 1_000_000;
    let (kind, path, body, expected) = match chance.below(30) {
        0 => ("1 MiB file", "/files/big.bin".to_owned(), None, Expected::Digest(net.big_digest.clone())),
        1..=9 => {
            let count = 1 + chance.below(64 * 1024);
            let body = Bytes::from(chance.bytes(count));
            let sum = digest(&body);
            ("POST", "/sum".to_owned(), Some(body), Expected::Text(sum))
        }
        _ => {
            let query = format!("n={number}");
            ("GET", format!("/small?{query}"), None, Expected::Text(small(&query)))
        }
    };
    Wish { kind, site: "a.test", path, body, expected }
}

/// Asks over a connection that it keeps, with a pause now and then that is longer than the server's patience.
async fn keep(net: Arc<Net>, way: Way, mut chance: Chance) {
    let mut client = Client::new(net.clone(), way, "a.test", true);
    loop {
        let pause = if chance.below(100) == 0 { chance.between(5_500, 8_000) } else { chance.between(300, 900) };
        if !rest(&net.ledger, pause).await {
            return;
        }
        if way == Way::H2 {
            let wishes: Vec<Wish> = (0..1 + chance.below(4)).map(|_| wish(&net, &mut chance)).collect();
            client.ask_together(&wishes).await;
        } else {
            client.ask(&wish(&net, &mut chance)).await;
        }
    }
}

/// A new connection for each request.
async fn come_anew(net: Arc<Net>, resumes: bool, mut chance: Chance) {
    let mut clients = [Way::H1, Way::H2].map(|way| Client::new(net.clone(), way, "a.test", resumes));
    while rest(&net.ledger, chance.between(400, 800)).await {
        let client = &mut clients[chance.below(2)];
        client.ask(&wish(&net, &mut chance)).await;
        client.leave();
    }
}

async fn ask_php(net: Arc<Net>, mut chance: Chance) {
    let mut client = Client::new(net.clone(), Way::H1, "php.test", true);
    while rest(&net.ledger, chance.between(600, 1_400)).await {
        let number = chance.next() % 1_000_000;
        let count = chance.below(20_000);
        let body = (chance.below(2) == 0).then(|| Bytes::from(chance.bytes(count)));
        let sum = digest(body.as_deref().unwrap_or_default());
        let expected = Expected::Text(format!("php {number} {sum}\n"));
        let wish = Wish { kind: "PHP", site: "php.test", path: format!("/page?id={number}"), body, expected };
        client.ask(&wish).await;
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Socket = WebSocketStream<Box<dyn Stream>>;

/// One socket after the other, each for one to five minutes.
async fn hold_sockets(net: Arc<Net>, way: Way, mut chance: Chance) {
    // Not all at once.
    let mut pause = chance.between(0, 3_000);
    while rest(&net.ledger, pause).await {
        pause = chance.between(200, 3_000);
        let start = Instant::now();
        let (socket, _keeper) = match timeout(DEADLINE, open(&net, way)).await {
            Ok(Ok(open)) => open,
            Ok(Err(why)) => {
                net.ledger.failed("opening a socket", &format!("{why} ({way:?})"));
                continue;
            }
            Err(_) => {
                net.ledger.failed("opening a socket", &format!("not in time ({way:?})"));
                continue;
            }
        };
        net.ledger.succeeded("opening a socket", start.elapsed());
        let life = chance.between(60_000, 300_000);
        if let Err(why) = talk(&net.ledger, socket, life, &mut chance).await {
            let age = start.elapsed().as_secs_f32();
            net.ledger.failed("message", &format!("{why} ({way:?}, after {age:.1} s)"));
        }
    }
}

type Keeper = Option<http2::SendRequest<Empty<Bytes>>>;

async fn open(net: &Net, way: Way) -> Result<(Socket, Keeper), String> {
    let tls = net.connect(net.config(way, false), "a.test").await?;
    if way == Way::H1 {
        let request = "wss://a.test/socket/echo".into_client_request().map_err(said("request"))?;
        let stream: Box<dyn Stream> = Box::new(tls);
        return Ok((client_async(request, stream).await.map_err(said("handshake"))?.0, None));
    }
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.map_err(said("h2"))?;
    tokio::spawn(connection);
    // Behind an answer the server's SETTINGS are known.
    let plain = Request::get("https://a.test/small").body(Empty::new()).map_err(said("request"))?;
    sender.send_request(plain).await.map_err(said("a request before"))?;
    let request = Request::builder().method(Method::CONNECT).uri("https://a.test/socket/echo").version(Version::HTTP_2);
    let request = request.extension(Protocol::from_static("websocket")).header("sec-websocket-version", "13");
    let request = request.body(Empty::new()).map_err(said("request"))?;
    let mut answer = sender.send_request(request).await.map_err(said("CONNECT"))?;
    if answer.status() != StatusCode::OK {
        return Err(format!("CONNECT: {}", answer.status()));
    }
    let stream: Box<dyn Stream> =
        Box::new(TokioIo::new(hyper::upgrade::on(&mut answer).await.map_err(said("upgrade"))?));
    Ok((WebSocketStream::from_raw_socket(stream, Role::Client, None).await, Some(sender)))
}

/// Sends a message every few seconds, and wants each back, in order, in time; closes as it is done.
async fn talk(ledger: &Ledger, mut socket: Socket, life: Duration, chance: &mut Chance) -> Result<(), String> {
    let start = Instant::now();
    let mut sent: VecDeque<(Instant, String)> = VecDeque::new();
    let mut next = Instant::now();
    loop {
        if sent.front().is_some_and(|(at, _)| at.elapsed() > DEADLINE) {
            return Err("no echo in time".to_owned());
        }
        let ends = start.elapsed() > life || ledger.honest_ends();
        if ends && sent.is_empty() {
            socket.close(None).await.map_err(said("closing"))?;
            let quiet = async { while socket.next().await.is_some_and(|message| message.is_ok()) {} };
            return timeout(DEADLINE, quiet).await.map_err(|_| "no end in time".to_owned());
        }
        if !ends && Instant::now() >= next {
            let text = format!("{} {}", chance.next(), "x".repeat(chance.below(2_000)));
            socket.send(Message::text(text.clone())).await.map_err(said("sending"))?;
            sent.push_back((Instant::now(), text));
            next = Instant::now() + chance.between(1_000, 4_000);
        }
        let came = match timeout(Duration::from_millis(250), socket.next()).await {
            Err(_) => continue,
            Ok(None) => return Err("the socket ended".to_owned()),
            Ok(Some(came)) => came.map_err(said("reading"))?,
        };
        match came {
            Message::Text(text) => {
                let (at, expected) = sent.pop_front().ok_or("an echo of nothing")?;
                if text.as_str() != expected {
                    return Err(format!("another text came back: {text:.40}"));
                }
                ledger.succeeded("message", at.elapsed());
            }
            Message::Close(frame) => return Err(format!("closed: {frame:?}")),
            _ => {}
        }
    }
}
