//! The chat: one room; what one says, all hear. A client that says `{"echo": n}` alone hears it back, to take the time.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::frame::{self, Message, Reader, Violation};

/// How often a client is pinged, so that a proxy or a dead peer shows itself.
const BEAT: Duration = Duration::from_secs(30);
/// After how long without a byte a client is taken for gone: two pings without a pong.
const SILENCE: Duration = Duration::from_secs(75);
/// The longest that one frame may take to be written.
const WRITE: Duration = Duration::from_secs(10);
/// How long a client may take to answer a close frame.
const GOODBYE: Duration = Duration::from_secs(2);
/// Messages that a slow client may lag behind; it is told how many it missed.
const BACKLOG: usize = 64;
/// The least room that a read gets.
const READ: usize = 4096;

/// The chat's only room.
#[derive(Debug)]
pub struct Room {
    said: broadcast::Sender<Bytes>,
    /// Held while the count is announced, so that announcements come in the order of the counts.
    present: Mutex<usize>,
    guests: AtomicU64,
}

impl Room {
    /// An empty room.
    pub fn new() -> Room {
        Room { said: broadcast::Sender::new(BACKLOG), present: Mutex::new(0), guests: AtomicU64::new(0) }
    }

    fn enter(self: &Arc<Room>) -> Seat {
        let guest = self.guests.fetch_add(1, Ordering::Relaxed) + 1;
        let hears = self.said.subscribe();
        self.count(|present| present + 1);
        Seat { room: Arc::clone(self), name: format!("Guest {guest}"), hears }
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        *present = change(*present);
        self.tell(&json!({ "kind": "here", "count": *present }));
    }

    fn tell(&self, message: &Value) {
        // Fails when nobody is there to hear it, which is no failure.
        let _ = self.said.send(frame::text(&message.to_string()));
    }
}

/// One guest's place; given back when dropped.
struct Seat {
    room: Arc<Room>,
    name: String,
    hears: broadcast::Receiver<Bytes>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.count(|present| present.saturating_sub(1));
    }
}

/// What a client says. Text that is none of these is said as it is.
#[derive(Deserialize)]
#[serde(untagged)]
enum Spoken {
    Say { say: String },
    Echo { echo: u64 },
}

/// Talks with one client until it leaves, breaks the protocol, falls silent, or `stop` is cancelled. `handshake` is
/// what this back end saw of the handshake; the client is shown it.
pub async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    room: &Arc<Room>,
    handshake: Value,
    stop: &CancellationToken,
) {
    let mut seat = room.enter();
    let code = match talk(&mut stream, &mut seat, handshake, stop).await {
        Ok(code) => code,
        Err(error) => return tracing::debug!(%error, guest = seat.name, "a guest of the demo's chat is gone"),
    };
    drop(seat);
    let _ = timeout(GOODBYE, say_goodbye(&mut stream, code)).await;
}

/// Gives the code to close with.
async fn talk(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    seat: &mut Seat,
    handshake: Value,
    stop: &CancellationToken,
) -> io::Result<u16> {
    let welcome = json!({ "kind": "welcome", "name": seat.name, "handshake": handshake });
    write(stream, &frame::text(&welcome.to_string())).await?;
    let (mut reader, mut buffer) = (Reader::default(), BytesMut::new());
    let (mut beat, mut heard) = (interval(BEAT), Instant::now());
    beat.reset();
    loop {
        loop {
            match reader.next(&mut buffer) {
                Ok(None) => break,
                Ok(Some(Message::Text(text))) => {
                    if let Some(answer) = listen(seat, text) {
                        write(stream, &answer).await?;
                    }
                }
                Ok(Some(Message::Ping(payload))) => write(stream, &frame::pong(&payload)).await?,
                Ok(Some(Message::Pong)) => {}
                // RFC 6455, section 5.5.1: "the endpoint typically echos the status code it received".
                Ok(Some(Message::Close(code))) => return Ok(code.unwrap_or(1000)),
                Err(violation) => {
                    tracing::debug!(%violation, guest = seat.name, "a guest of the demo's chat is shown out");
                    return Ok(Violation::code(violation));
                }
            }
        }
        buffer.reserve(READ);
        tokio::select! {
            read = stream.read_buf(&mut buffer) => match read? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => heard = Instant::now(),
            },
            said = seat.hears.recv() => match said {
                Ok(frame) => write(stream, &frame).await?,
                Err(RecvError::Lagged(count)) => {
                    let missed = json!({ "kind": "missed", "count": count });
                    write(stream, &frame::text(&missed.to_string())).await?;
                }
                Err(RecvError::Closed) => return Ok(1001),
            },
            _ = beat.tick() => {
                if heard.elapsed() > SILENCE {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                write(stream, &frame::ping()).await?;
            }
            () = stop.cancelled() => return Ok(1001),
        }
    }
}

/// Passes on what a guest said; gives what it alone gets back.
fn listen(seat: &Seat, text: String) -> Option<Bytes> {
    match serde_json::from_str(&text).unwrap_or(Spoken::Say { say: text }) {
        Spoken::Echo { echo } => Some(frame::text(&json!({ "kind": "echo", "id": echo }).to_string())),
        Spoken::Say { say } => {
            seat.room.tell(&json!({ "kind": "said", "from": seat.name, "text": say }));
            None
        }
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    timeout(WRITE, async {
        stream.write_all(frame).await?;
        stream.flush().await
    })
    .await?
}

/// Closing while the client's bytes are unread would reset the connection and lose the close frame: they are read.
async fn say_goodbye(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), code: u16) -> io::Result<()> {
    stream.write_all(&frame::closing(code)).await?;
    stream.shutdown().await?;
    let mut unread = [0; 1024];
    while stream.read(&mut unread).await? != 0 {}
    Ok(())
}
