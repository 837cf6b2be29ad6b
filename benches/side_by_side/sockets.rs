//! Load over WebSocket.

use std::time::Instant;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::load::{Meter, Outcome, drive, p99};
use crate::server::Server;
use crate::wire::{Transport, client, plain, secure, upgrade};
use crate::{STEP, on_a_worker};

/// Bytes of a message.
pub const MESSAGE: usize = 128;
/// Bytes of its frame from a client: head, mask, payload.
pub const FROM_CLIENT: usize = 8 + MESSAGE;
/// Its frame from the back end, with the payload still to be filled in.
pub const ANSWER: [u8; 4 + MESSAGE] = {
    let mut frame = [0; 4 + MESSAGE];
    [frame[0], frame[1], frame[3]] = [0x82, 126, MESSAGE as u8];
    frame
};

/// Sockets that echo at one time.
const ECHOES: usize = 32;
/// Sockets that a message is sent to.
const SUBSCRIBERS: usize = 100;

/// A frame from a client, with a mask of zeroes: what is masked costs the proxies the same.
fn from_client() -> [u8; FROM_CLIENT] {
    let mut frame = [b'x'; FROM_CLIENT];
    frame[..8].copy_from_slice(&[0x82, 0x80 | 126, 0, MESSAGE as u8, 0, 0, 0, 0]);
    frame
}

pub fn echo(server: &Server) -> Outcome {
    let client = client(server, "http/1.1", false);
    let open = async || {
        let mut stream = secure(&client, server.ports.https).await;
        upgrade(&mut stream, "/echo").await;
        stream
    };
    drive(server, ECHOES, open, async |stream| once(stream).await)
}

/// Sends a message and waits until it has come back.
pub async fn once(stream: &mut impl Transport) {
    let sent = from_client();
    stream.write_all(&sent).await.unwrap();
    stream.flush().await.unwrap();
    let mut got = ANSWER;
    stream.read_exact(&mut got).await.unwrap();
    assert!(got[..4] == ANSWER[..4] && got[4..] == sent[8..], "another message: {got:?}");
}

/// One client sends, all get it; then it sends again.
pub fn broadcast(server: &Server) -> Outcome {
    let (client, sent) = (client(server, "http/1.1", false), from_client());
    on_a_worker(async {
        let mut streams = Vec::new();
        for _ in 0..SUBSCRIBERS {
            let mut stream = secure(&client, server.ports.https).await;
            upgrade(&mut stream, "/broadcast").await;
            streams.push(stream);
        }
        // What was answered with 101 is a subscriber a moment later.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let meter = Meter::start(server);
        let begun = Instant::now();
        let mut times = Vec::new();
        while begun.elapsed() < STEP {
            let begun = Instant::now();
            streams[0].write_all(&sent).await.unwrap();
            streams[0].flush().await.unwrap();
            let all = join_all(streams.iter_mut().map(|stream| async move {
                let mut got = [0; ANSWER.len()];
                stream.read_exact(&mut got).await.unwrap();
                assert_eq!(got, ANSWER, "another message");
                begun.elapsed()
            }));
            times.extend(all.await);
        }
        Outcome { operations: times.len() as u64, usage: meter.stop(), p99: p99(times) }
    })
}

/// So many tunnels through which one message has gone.
pub async fn open(server: &Server, tls: bool, count: usize) -> Vec<Box<dyn Transport>> {
    let client = client(server, "http/1.1", false);
    let mut held: Vec<Box<dyn Transport>> = Vec::new();
    for _ in 0..count {
        let mut stream: Box<dyn Transport> = match tls {
            true => Box::new(secure(&client, server.ports.https).await),
            false => Box::new(plain(server.ports.http).await),
        };
        upgrade(&mut stream, "/echo").await;
        once(&mut stream).await;
        held.push(stream);
    }
    held
}
