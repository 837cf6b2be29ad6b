//! One side of a tunnel: whatever it was before, in the least memory.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::edge::client_stream::Transport;
use crate::tls::stream::Stream;
use crate::tunnel::poller::{PolledSocket, Poller};
use crate::upstream::connect::BackEndStream;

/// A client or a back end behind the 101.
pub enum TunnelStream {
    /// TCP or a unix socket.
    Plain(PolledSocket),
    /// A client's TLS.
    Client(Box<Stream<PolledSocket>>),
    /// TLS to a back end.
    BackEnd(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl TunnelStream {
    /// The client's side.
    pub fn of_client(stream: Transport, poller: &Poller) -> io::Result<TunnelStream> {
        Ok(match stream {
            Transport::Plain(stream) => TunnelStream::Plain(poller.socket(stream.into_std()?.into())?),
            Transport::Tls(stream) => {
                let polled = |socket: TcpStream| poller.socket(socket.into_std()?.into());
                TunnelStream::Client(Box::new((*stream).try_map(polled)?))
            }
        })
    }

    /// The back end's side.
    pub fn of_back_end(stream: BackEndStream, poller: &Poller) -> io::Result<TunnelStream> {
        Ok(match stream {
            BackEndStream::Tcp(stream) => TunnelStream::Plain(poller.socket(stream.into_std()?.into())?),
            BackEndStream::Unix(stream) => TunnelStream::Plain(poller.socket(stream.into_std()?.into())?),
            BackEndStream::Tls(stream) => TunnelStream::BackEnd(stream),
        })
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            TunnelStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            TunnelStream::Client(stream) => Pin::new(stream).poll_read(cx, buf),
            TunnelStream::BackEnd(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            TunnelStream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            TunnelStream::Client(stream) => Pin::new(stream).poll_write(cx, bytes),
            TunnelStream::BackEnd(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            TunnelStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            TunnelStream::Client(stream) => Pin::new(stream).poll_flush(cx),
            TunnelStream::BackEnd(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            TunnelStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            TunnelStream::Client(stream) => Pin::new(stream).poll_shutdown(cx),
            TunnelStream::BackEnd(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
