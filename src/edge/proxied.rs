//! Connections of trusted proxies that begin with a PROXY head (`server.proxy_protocol`): it is read, and from there on
//! the connection is the client's that it names. Nobody else's first bytes are ever taken for a head.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::base::proxy_head::{self, InvalidHead, Progress, Said};
use crate::edge::admission::{Refusing, Verdict};
use crate::edge::connection::{self, Accepted};
use crate::edge::refusal;
use crate::edge::refusals::Refused;
use crate::edge::worker::Worker;
use crate::http::request::Scheme;

/// How long the head of a connection is waited for that is to be refused.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes that are looked at in one go: an ordinary head is shorter.
const PIECE: usize = 256;

/// Why a connection has no head.
#[derive(Debug, thiserror::Error)]
enum NoHead {
    #[error("it did not arrive within timeouts.header")]
    Timeout,
    #[error("the connection ended before it")]
    Ended,
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Invalid(#[from] InvalidHead),
}

/// Reads the head of a trusted proxy's connection, within `timeouts.header`, and serves the client that it names.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let proxy = accepted.peer;
    let (within, cut) = (worker.process.snapshot.load().terms.timeouts.header, worker.cut.clone());
    let head = Box::pin(read_head(&accepted.stream, within));
    let said = tokio::select! {
        said = head => said,
        () = cut.cancelled() => return,
    };
    match said {
        Ok(Said::Nothing) => connection::serve(worker, accepted).await,
        Ok(Said::Unnamed) => connection::serve(worker, Accepted { unnamed: true, ..accepted }).await,
        Ok(Said::Relayed { source, .. }) => relay(worker, accepted, source).await,
        Err(why) => {
            worker.process.refused.count(Refused::ProxyHead);
            tracing::debug!(%proxy, "no PROXY head from a trusted proxy: {why}");
        }
    }
}

/// A connection of a trusted proxy is one too many: its head is passed over, and the client is told.
pub async fn refuse(worker: Rc<Worker>, stream: TcpStream, scheme: Scheme, place: Refusing) {
    if Box::pin(read_head(&stream, PATIENCE)).await.is_ok() {
        refusal::refuse(worker, stream, scheme, place).await;
    }
}

/// The client at `source` has its own share of connections. It may be a trusted proxy itself: Cloudflare behind a
/// balancer of TCP.
async fn relay(worker: Rc<Worker>, accepted: Accepted, source: SocketAddr) {
    let Accepted { stream, listener, scheme, close, permit, .. } = accepted;
    let is_proxy = worker.process.snapshot.load().trust.proxies.contains(source.ip());
    match worker.process.admission.admit_client(permit, source.ip(), is_proxy) {
        Verdict::Admitted(permit) => {
            let accepted = Accepted { stream, peer: source, listener, scheme, close, permit, unnamed: false };
            connection::serve(worker, accepted).await;
        }
        Verdict::Refused(place) => refusal::refuse(worker, stream, scheme, place).await,
        Verdict::Dropped => {}
    }
}

/// Takes the head off `stream`, and not a byte more: what follows is TLS or HTTP, and others read it.
async fn read_head(stream: &TcpStream, within: Duration) -> Result<Said, NoHead> {
    let reading = async {
        let mut bytes = Vec::with_capacity(PIECE);
        loop {
            let before = bytes.len();
            bytes.resize(before + PIECE, 0);
            let seen = stream.peek(bytes.get_mut(before..).unwrap_or_default()).await?;
            if seen == 0 {
                return Err(NoHead::Ended);
            }
            bytes.truncate(before + seen);
            let (said, end) = match proxy_head::read(&bytes)? {
                Progress::Complete { said, length } => (Some(said), length),
                Progress::Partial => (None, bytes.len()),
            };
            take(stream, bytes.get_mut(before..end).unwrap_or_default()).await?;
            if let Some(said) = said {
                return Ok(said);
            }
        }
    };
    timeout(within, reading).await.unwrap_or(Err(NoHead::Timeout))
}

/// Reads exactly what was seen before.
async fn take(stream: &TcpStream, mut into: &mut [u8]) -> Result<(), NoHead> {
    while !into.is_empty() {
        stream.readable().await?;
        match stream.try_read(into) {
            Ok(0) => return Err(NoHead::Ended),
            Ok(count) => into = into.get_mut(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::base::proxy_head::{Version, write};

    const SOON: Duration = Duration::from_secs(10);

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_head_is_taken_off_to_the_byte_however_it_is_cut() {
        let source: SocketAddr = "192.0.2.7:4711".parse().unwrap();
        for version in [Version::V1, Version::V2] {
            let head = write(version, source, "10.0.0.1:443".parse().unwrap());
            for cut in 1..=head.len() {
                let (mut client, mut server) = pair().await;
                let (first, second) = head.split_at(cut);
                client.write_all(first).await.unwrap();
                let (said, ()) = tokio::join!(read_head(&server, SOON), async {
                    // The reader is at the first part when the second comes.
                    tokio::task::yield_now().await;
                    client.write_all(&[second, b"\x16\x03\x01rest"].concat()).await.unwrap();
                });
                let Ok(Said::Relayed { source: read, .. }) = said else { panic!("{said:?}") };
                assert_eq!(read, source);
                let mut rest = [0; 7];
                server.read_exact(&mut rest).await.unwrap();
                assert_eq!(&rest, b"\x16\x03\x01rest", "cut at {cut}");
            }
        }
    }

    #[tokio::test]
    async fn a_long_head_is_read_and_one_that_never_ends_is_not() {
        let (mut client, server) = pair().await;
        let mut head = write(Version::V2, "192.0.2.7:1".parse().unwrap(), "10.0.0.1:2".parse().unwrap());
        let tlv = [&[0x04, 0x0b, 0xb8][..], &[0; 3000]].concat();
        let length = u16::try_from(12 + tlv.len()).unwrap().to_be_bytes();
        head[14..16].copy_from_slice(&length);
        head.extend(tlv);
        client.write_all(&head).await.unwrap();
        assert!(matches!(read_head(&server, SOON).await, Ok(Said::Relayed { .. })));

        let (mut client, server) = pair().await;
        client.write_all(b"PROXY TCP4 192.0.2.7 ").await.unwrap();
        assert!(matches!(read_head(&server, Duration::from_millis(50)).await, Err(NoHead::Timeout)));
        drop(client);
        assert!(matches!(read_head(&server, SOON).await, Err(NoHead::Ended)));
    }
}
