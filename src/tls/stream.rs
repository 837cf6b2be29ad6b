//! A client's TLS connection on rustls's unbuffered interface. While it is idle it holds its keys and nothing else: what
//! is received, and what is encrypted, lies in memory that all connections of a worker share, and only what cannot go on
//! at once is kept, to the byte.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};
use rustls::{CommonState, InvalidMessage, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::gather::gather;
use super::kept::Kept;

/// Bytes of the largest record that is not refused: RFC 5246, section 6.2.3, allows 2048 beyond the plaintext, and five
/// are its header.
const RECORD: usize = 16 * 1024 + 2048 + 5;

/// Bytes of ciphertext that are looked at together: the beginning of a record that came before, and all that is received
/// at a time.
const RECEIVED: usize = 5 * RECORD;

/// Bytes of ciphertext that rustls may not be done with: a handshake message of 64 KiB, the longest that it takes, in
/// records. It measures the message alone, which may come in crumbs that are mostly padding (RFC 8446, section 5.4).
const MOST_PARTIAL: usize = RECEIVED;

/// What is received at a time where little is asked for. It saves a second look for what follows.
const LEAST: usize = 4 * 1024;

/// What a record may add to its plaintext; RFC 8446, section 5.2: "MUST NOT exceed 2^14 + 256 bytes".
const EXPANSION: usize = 256 + 5;

thread_local! {
    /// Ciphertext of whichever connection is being polled.
    static INCOMING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Plaintext that is gathered, and what becomes of it.
    static OUTGOING: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// See the module.
pub struct Stream<S = TcpStream> {
    socket: S,
    tls: UnbufferedServerConnection,
    /// Ciphertext that rustls has not done with: the beginning of a record, or of a message in several.
    partial: Vec<u8>,
    /// Decrypted, and not yet asked for.
    plain: Kept,
    /// Encrypted, and not yet taken by the socket.
    unsent: Kept,
    end: Option<End>,
    /// What is unsent is tickets of TLS 1.3, and the client has asked already: they go with the answer.
    tickets_wait: bool,
    /// close_notify has been written.
    has_taken_leave: bool,
}

/// How the client's side has ended.
#[derive(Debug)]
enum End {
    /// By close_notify: it has said all that it wanted to say.
    Closed,
    /// Without one: somebody on the way may have cut it off.
    Cut,
    /// It broke the rules of TLS.
    Broken(Box<rustls::Error>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// Makes a connection of `socket`, in a box for all its life, of which `received` has been read already. `answered` is called when our first answer
    /// is on its way.
    ///
    /// # Errors
    /// The socket's, and `InvalidData` around a [`rustls::Error`]; the client has been told.
    pub async fn accept(
        socket: S,
        config: Arc<ServerConfig>,
        mut received: Vec<u8>,
        answered: impl FnOnce(),
    ) -> io::Result<Box<Stream<S>>> {
        let tls = UnbufferedServerConnection::new(config).map_err(broken)?;
        let mut stream = Box::new(Stream {
            socket,
            tls,
            partial: Vec::new(),
            plain: Kept::default(),
            unsent: Kept::default(),
            end: None,
            tickets_wait: false,
            has_taken_leave: false,
        });
        stream.decrypt(&mut received, None);
        answered();
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    /// What was agreed upon.
    pub fn agreed(&self) -> &CommonState {
        &self.tls
    }

    /// The bare socket.
    pub fn socket(&mut self) -> &mut S {
        &mut self.socket
    }

    /// The same connection over what `exchange` makes of its socket.
    ///
    /// # Errors
    /// Those of `exchange`.
    pub fn try_map<T>(self, exchange: impl FnOnce(S) -> io::Result<T>) -> io::Result<Stream<T>> {
        let Stream { socket, tls, partial, plain, unsent, end, tickets_wait, has_taken_leave } = self;
        Ok(Stream { socket: exchange(socket)?, tls, partial, plain, unsent, end, tickets_wait, has_taken_leave })
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.tickets_wait {
                ready!(self.poll_send(cx))?;
            }
            match &self.end {
                Some(End::Broken(error)) => return Poll::Ready(Err(broken(*error.clone()))),
                _ if !self.tls.is_handshaking() => return Poll::Ready(Ok(())),
                Some(End::Closed | End::Cut) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                None => ready!(self.poll_receive(cx, None))?,
            }
        }
    }

    /// Receives once, and decrypts what is whole: into `wanted` as far as there is room, the rest is kept.
    fn poll_receive(&mut self, cx: &mut Context<'_>, wanted: Option<&mut ReadBuf<'_>>) -> Poll<io::Result<()>> {
        INCOMING.with_borrow_mut(|incoming| {
            let held = self.partial.len();
            let asked = wanted.as_ref().map_or(0, |buf| buf.remaining().saturating_add(EXPANSION));
            let most = held + asked.clamp(LEAST, RECEIVED);
            if incoming.len() < most {
                incoming.resize(most.max(RECEIVED), 0);
            }
            let mut received = ReadBuf::new(incoming.get_mut(held..most).unwrap_or_default());
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut received))?;
            let length = received.filled().len();
            if length == 0 {
                self.end.get_or_insert(End::Cut);
                return Poll::Ready(Ok(()));
            }
            let (front, _) = incoming.split_at_mut(held + length);
            if let Some(place) = front.get_mut(..held) {
                place.copy_from_slice(&self.partial);
            }
            let was_handshaking = self.tls.is_handshaking();
            self.decrypt(front, wanted);
            let has_shaken = was_handshaking & !self.tls.is_handshaking();
            if has_shaken && self.end.is_none() && self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
                self.tickets_wait = !self.plain.rest().is_empty();
            }
            if self.tickets_wait && self.end.is_none() {
                return Poll::Ready(Ok(()));
            }
            // What answers them (a key update, an alert) goes as far as it can; whoever writes next waits for the rest, or
            // hears that the socket is broken. What was decrypted is not lost for that.
            let _ = self.poll_send(cx);
            Poll::Ready(Ok(()))
        })
    }

    /// Gives rustls all of `incoming`, and keeps what it has not done with.
    fn decrypt(&mut self, incoming: &mut [u8], mut wanted: Option<&mut ReadBuf<'_>>) {
        let Stream { tls, plain, unsent, end, has_taken_leave, .. } = self;
        let mut done = 0;
        while let Some(rest) = incoming.get_mut(done..) {
            let UnbufferedStatus { mut discard, state, .. } = tls.process_tls_records(rest);
            let step = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                    match traffic.next_record() {
                        Some(Ok(record)) => {
                            discard += record.discard;
                            plain.hand(record.payload, wanted.as_deref_mut());
                        }
                        Some(Err(error)) => break Err(error),
                        None => break Ok(true),
                    }
                },
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, unsent).map(|()| true),
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    Ok(true)
                }
                Ok(ConnectionState::PeerClosed) => {
                    end.get_or_insert(End::Closed);
                    Ok(true)
                }
                Ok(_) => Ok(false),
                Err(error) => Err(error),
            };
            done += discard;
            match step {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    // rustls has an alert ready. It is not to be given anything more of what was received.
                    // RFC 8446, section 6.1: close_notify says that we "will not send any more messages".
                    while !*has_taken_leave && tls.wants_write() {
                        let Ok(ConnectionState::EncodeTlsData(data)) = tls.process_tls_records(&mut []).state else {
                            break;
                        };
                        if encode(data, unsent).is_err() {
                            break;
                        }
                    }
                    *end = Some(End::Broken(Box::new(error)));
                    self.partial = Vec::new();
                    return;
                }
            }
        }
        let rest = incoming.get(done..).unwrap_or_default();
        if rest.len() > MOST_PARTIAL {
            *end = Some(End::Broken(Box::new(InvalidMessage::HandshakePayloadTooLarge.into())));
            self.partial = Vec::new();
            return;
        }
        self.partial = rest.to_vec();
    }

    /// Ready when the socket has taken all that was encrypted.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tickets_wait = false;
        while !self.unsent.rest().is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, self.unsent.rest()))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        Poll::Ready(Ok(()))
    }

    /// Encrypts with `encrypt` into `outgoing` and sends it; what the socket does not take is kept. Nothing may be unsent.
    fn send(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: &mut Vec<u8>,
        mut encrypt: impl FnMut(&mut Traffic<'_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> io::Result<()> {
        let length = loop {
            let UnbufferedStatus { discard, state, .. } = self.tls.process_tls_records(&mut self.partial);
            let encrypted = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => Some(encrypt(&mut traffic, outgoing)),
                // A key update that has to go first.
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, &mut self.unsent).map_err(broken)?;
                    None
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    None
                }
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            };
            self.partial.drain(..discard.min(self.partial.len()));
            match encrypted {
                None => {}
                Some(Ok(length)) => break length,
                Some(Err(EncryptError::InsufficientSize(needed))) if needed.required_size > outgoing.len() => {
                    outgoing.resize(needed.required_size, 0);
                }
                Some(Err(error)) => return Err(io::Error::other(error)),
            }
        };
        let encrypted = outgoing.get(..length).unwrap_or_default();
        if !self.unsent.rest().is_empty() {
            self.unsent.push(encrypted);
            return match self.poll_send(cx) {
                Poll::Ready(Err(error)) => Err(error),
                _ => Ok(()),
            };
        }
        match Pin::new(&mut self.socket).poll_write(cx, encrypted) {
            Poll::Ready(Ok(sent)) => self.unsent.push(encrypted.get(sent..).unwrap_or_default()),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => self.unsent.push(encrypted),
        }
        Ok(())
    }
}

impl<S: std::fmt::Debug> std::fmt::Debug for Stream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("socket", &self.socket).field("end", &self.end).finish_non_exhaustive()
    }
}

type Traffic<'c> = rustls::unbuffered::WriteTraffic<'c, ServerConnectionData>;

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            let rest = this.plain.rest();
            if !rest.is_empty() {
                let count = rest.len().min(buf.remaining());
                buf.put_slice(rest.get(..count).unwrap_or_default());
                this.plain.advance(count);
                return Poll::Ready(Ok(()));
            }
            if buf.filled().len() > before || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            match &this.end {
                None => ready!(this.poll_receive(cx, Some(buf)))?,
                Some(End::Closed) => return Poll::Ready(Ok(())),
                // RFC 8446, section 6.1: without close_notify what was said may have been cut off.
                Some(End::Cut) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Some(End::Broken(error)) => return Poll::Ready(Err(broken(*error.clone()))),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // RFC 8446, section 6.2: after a fatal alert "both parties MUST immediately close the connection. Servers and
        // clients MUST forget the secret values and keys established in failed connections".
        if let Some(End::Broken(error)) = &this.end {
            return Poll::Ready(Err(broken(*error.clone())));
        }
        if !this.tickets_wait {
            ready!(this.poll_send(cx))?;
        }
        OUTGOING.with_borrow_mut(|(gathered, outgoing)| {
            let bytes = gather(slices, gathered);
            if bytes.is_empty() {
                return Poll::Ready(Ok(0));
            }
            this.send(cx, outgoing, |traffic, outgoing| traffic.encrypt(bytes, outgoing))?;
            Poll::Ready(Ok(bytes.len()))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper flushes while it waits for an answer; nothing of what it wrote is unsent.
        if this.tickets_wait { Poll::Ready(Ok(())) } else { this.poll_send(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        if !this.has_taken_leave && !matches!(this.end, Some(End::Broken(_))) {
            this.has_taken_leave = true;
            OUTGOING.with_borrow_mut(|(_, outgoing)| {
                this.send(cx, outgoing, |traffic, outgoing| traffic.queue_close_notify(outgoing))
            })?;
            ready!(this.poll_send(cx))?;
        }
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, into: &mut Kept) -> Result<(), rustls::Error> {
    if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) {
        let mut encoded = vec![0; needed.required_size];
        data.encode(&mut encoded).map_err(|error| rustls::Error::General(error.to_string()))?;
        into.push(&encoded);
    }
    Ok(())
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::version::{TLS12, TLS13};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
    use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;
    use crate::keys::LocalKeys;
    use crate::tls::gather::SENT;
    use crate::tls::policy::{MinVersion, Policy, server_config};
    use crate::tls::store::CertStore;
    use crate::tls::testing::{Issued, site};
    use crate::tls::tickets::Tickets;

    const SOON: Duration = Duration::from_secs(20);

    /// A client whose records the test sends as it likes.
    struct Client {
        tcp: TcpStream,
        tls: ClientConnection,
    }

    impl Client {
        /// All that rustls has to say.
        fn said(&mut self) -> Vec<u8> {
            let mut said = Vec::new();
            while self.tls.wants_write() {
                self.tls.write_tls(&mut said).unwrap();
            }
            said
        }

        fn encrypt(&mut self, bytes: &[u8]) -> Vec<u8> {
            io::Write::write_all(&mut self.tls.writer(), bytes).unwrap();
            self.said()
        }

        async fn send(&mut self, bytes: &[u8]) {
            self.tcp.write_all(bytes).await.unwrap();
        }

        /// Reads until there are so many bytes of plaintext, or the end.
        async fn receive(&mut self, count: usize) -> io::Result<Vec<u8>> {
            let (mut all, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
            while all.len() < count {
                let length = timeout(SOON, self.tcp.read(&mut piece)).await.expect("nothing comes")?;
                if length == 0 {
                    break;
                }
                let mut rest = &piece[..length];
                while !rest.is_empty() {
                    self.tls.read_tls(&mut rest)?;
                    let state = self.tls.process_new_packets().map_err(io::Error::other)?;
                    let start = all.len();
                    all.resize(start + state.plaintext_bytes_to_read(), 0);
                    io::Read::read_exact(&mut self.tls.reader(), &mut all[start..])?;
                }
            }
            Ok(all)
        }
    }

    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        client.as_ref().unwrap().set_nodelay(true).unwrap();
        (client.unwrap(), server.unwrap().0)
    }

    async fn strangers(version: &'static SupportedProtocolVersion) -> (Client, TcpStream, Arc<ServerConfig>) {
        let folder = tempfile::tempdir().unwrap();
        let issued = Issued::for_names(&["a.test"]);
        let store = Arc::new(CertStore::new(Arc::new(LocalKeys::new())));
        assert!(store.apply(vec![site("a", &["a.test"], issued.write(folder.path(), "a"))]).is_empty());
        let policy = Policy { h1: true, h2: true, min_version: MinVersion::Tls12, client_ca: None };
        let server = server_config(&policy, store, &Tickets::new()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let mut tls = ClientConnection::new(Arc::new(client), ServerName::try_from("a.test").unwrap()).unwrap();
        tls.set_buffer_limit(None);
        let (ours, theirs) = sockets().await;
        (Client { tcp: ours, tls }, theirs, server)
    }

    async fn pair(version: &'static SupportedProtocolVersion) -> (Client, Stream) {
        let (mut client, theirs, server) = strangers(version).await;
        let shaken = async {
            while client.tls.is_handshaking() {
                let said = client.said();
                // In single bytes: a handshake may be cut anywhere.
                for byte in said {
                    client.send(&[byte]).await;
                }
                if client.tls.is_handshaking() {
                    let mut piece = [0; 4096];
                    let length = client.tcp.read(&mut piece).await.unwrap();
                    let mut rest = &piece[..length];
                    while !rest.is_empty() {
                        client.tls.read_tls(&mut rest).unwrap();
                        client.tls.process_new_packets().unwrap();
                    }
                }
            }
            let said = client.said();
            client.send(&said).await;
        };
        let ((), stream) = tokio::join!(shaken, Stream::accept(theirs, server, Vec::new(), || ()));
        (client, *stream.unwrap())
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    fn is_empty(stream: &Stream) -> bool {
        let Stream { partial, plain, unsent, .. } = stream;
        partial.capacity() == 0 && plain.capacity() == 0 && unsent.capacity() == 0
    }

    #[tokio::test]
    async fn records_may_be_cut_anywhere_and_read_in_any_pieces() {
        for version in [&TLS12, &TLS13] {
            let (mut client, mut stream) = pair(version).await;
            for (length, cut, wanted) in [(1, 1, 1), (300, 1, 7), (40_000, 1000, 8192), (100_000, 70_000, 333)] {
                let bytes = pattern(length);
                let encrypted = client.encrypt(&bytes);
                let send = async {
                    for piece in encrypted.chunks(cut) {
                        client.send(piece).await;
                    }
                };
                let receive = async {
                    let (mut all, mut piece) = (Vec::new(), vec![0; wanted]);
                    while all.len() < length {
                        let read = timeout(SOON, stream.read(&mut piece)).await.expect("nothing comes").unwrap();
                        assert!(read > 0);
                        all.extend_from_slice(&piece[..read]);
                    }
                    all
                };
                let ((), all) = tokio::join!(send, receive);
                assert!(all == bytes, "{length} in pieces of {cut}, read by {wanted}");
                assert!(is_empty(&stream), "an idle connection holds nothing");
            }
        }
    }

    #[tokio::test]
    async fn what_the_socket_does_not_take_is_kept_and_nothing_more_is_taken_meanwhile() {
        let (mut client, mut stream) = pair(&TLS13).await;
        let bytes = pattern(20_000_000);
        let send = async {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (a, b) = rest.split_at(rest.len().min(10));
                let (b, c) = b.split_at(b.len().min(100_000));
                let slices = [IoSlice::new(a), IoSlice::new(&[]), IoSlice::new(b), IoSlice::new(c)];
                let written = stream.write_vectored(&slices).await.unwrap();
                assert!(written > 0 && written <= SENT && stream.unsent.rest().len() <= SENT + 5 * EXPANSION);
                rest = &rest[written..];
            }
            stream.flush().await.unwrap();
            stream
        };
        let (stream, received) = tokio::join!(send, client.receive(bytes.len()));
        assert!(received.unwrap() == bytes);
        assert!(is_empty(&stream));
    }

    #[tokio::test]
    async fn each_side_may_end_before_the_other() {
        for version in [&TLS12, &TLS13] {
            let (mut client, mut stream) = pair(version).await;
            client.tls.send_close_notify();
            let bye = [client.encrypt(b""), client.said()].concat();
            client.send(&bye).await;
            assert_eq!(stream.read(&mut [0; 9]).await.unwrap(), 0, "close_notify");
            assert_eq!(stream.read(&mut [0; 9]).await.unwrap(), 0, "and it stays so");
            // RFC 8446, section 6.1: "Note that this is a change from versions of TLS prior to TLS 1.3 in which
            // implementations were required to react to a "close_notify" by discarding pending writes".
            stream.write_all(b"still").await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(client.receive(99).await.unwrap(), b"still");
        }
        let (mut client, mut stream) = pair(&TLS13).await;
        stream.shutdown().await.unwrap();
        assert_eq!(client.receive(1).await.unwrap(), b"");
        let more = client.encrypt(b"more");
        client.send(&more).await;
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"more");
        let (mut client, mut stream) = pair(&TLS13).await;
        client.tcp.shutdown().await.unwrap();
        let cut = stream.read(&mut [0; 9]).await.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof, "without close_notify");
    }

    #[tokio::test]
    async fn keys_are_renewed_on_demand_while_both_sides_talk() {
        let (mut client, mut stream) = pair(&TLS13).await;
        for round in 0..3 {
            client.tls.refresh_traffic_keys().unwrap();
            let said = [client.said(), client.encrypt(b"after")].concat();
            for byte in said {
                client.send(&[byte]).await;
            }
            let mut heard = [0; 5];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"after", "{round}");
            stream.write_all(b"answer").await.unwrap();
            assert_eq!(client.receive(6).await.unwrap(), b"answer", "{round}");
        }
        assert!(is_empty(&stream));
    }

    #[tokio::test]
    async fn a_broken_record_ends_it_with_an_alert_behind_what_came_before() {
        let (mut client, mut stream) = pair(&TLS13).await;
        let mut said = client.encrypt(b"before");
        let good = said.len();
        said.extend(client.encrypt(b"broken"));
        said[good + 7] ^= 1;
        client.send(&said).await;
        let mut heard = [0; 6];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"before");
        for _ in 0..2 {
            let error = stream.read(&mut [0; 9]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert!(stream.write(b"x").await.is_err());
        let told = client.receive(1).await.unwrap_err();
        assert!(told.to_string().contains("BadRecordMac"), "{told}");
    }

    #[tokio::test]
    async fn a_broken_record_behind_our_own_end_is_answered_by_nothing() {
        for version in [&TLS12, &TLS13] {
            let (mut client, mut stream) = pair(version).await;
            stream.shutdown().await.unwrap();
            assert_eq!(client.receive(1).await.unwrap(), b"");
            let mut said = client.encrypt(b"broken");
            said[9] ^= 1;
            client.send(&said).await;
            let error = stream.read(&mut [0; 9]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(is_empty(&stream), "an alert that nobody may be sent");
        }
    }

    #[tokio::test]
    async fn what_comes_with_the_end_of_the_handshake_is_heard() {
        let (mut client, mut stream) = pair(&TLS13).await;
        let said = [client.encrypt(b"one"), client.encrypt(b"two")].concat();
        client.send(&said).await;
        let mut heard = [0; 6];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"onetwo");
    }

    /// What is there now, without waiting.
    fn waiting(tcp: &TcpStream) -> usize {
        let mut piece = vec![0; 64 * 1024];
        tcp.try_read(&mut piece).unwrap_or_default()
    }

    /// A handshake that ends with what the client says behind it, all in one segment.
    async fn pair_that_asks(request: &[u8]) -> (Client, Stream) {
        let (mut client, theirs, server) = strangers(&TLS13).await;
        let shaken = async {
            let said = client.said();
            client.send(&said).await;
            let mut piece = vec![0; 64 * 1024];
            while client.tls.is_handshaking() {
                let length = client.tcp.read(&mut piece).await.unwrap();
                client.tls.read_tls(&mut &piece[..length]).unwrap();
                client.tls.process_new_packets().unwrap();
            }
            let said = if request.is_empty() { client.said() } else { client.encrypt(request) };
            client.send(&said).await;
        };
        let ((), stream) = tokio::join!(shaken, Stream::accept(theirs, server, Vec::new(), || ()));
        (client, *stream.unwrap())
    }

    #[tokio::test]
    async fn tickets_go_with_the_answer_to_a_client_that_has_asked_already() {
        let (mut client, mut stream) = pair_that_asks(b"GET").await;
        let mut heard = [0; 3];
        stream.read_exact(&mut heard).await.unwrap();
        // As a server does while it waits for an answer.
        stream.flush().await.unwrap();
        let mut nothing = [0];
        assert!(timeout(Duration::from_millis(20), stream.read(&mut nothing)).await.is_err());
        assert_eq!((waiting(&client.tcp), client.tls.tls13_tickets_received()), (0, 0));
        stream.write_all(b"answer").await.unwrap();
        assert!(stream.unsent.rest().is_empty());
        assert_eq!(client.receive(6).await.unwrap(), b"answer");
        assert!(client.tls.tls13_tickets_received() > 0);
        assert!(is_empty(&stream));
        // One that leaves without an answer gets them as well.
        let (mut client, mut stream) = pair_that_asks(b"GET").await;
        stream.shutdown().await.unwrap();
        assert_eq!(client.receive(1).await.unwrap(), b"");
        assert!(client.tls.tls13_tickets_received() > 0);
    }

    #[tokio::test]
    async fn tickets_go_at_once_to_a_client_that_is_silent() {
        let (client, stream) = pair_that_asks(b"").await;
        assert!(is_empty(&stream));
        timeout(SOON, client.tcp.readable()).await.expect("no tickets come").unwrap();
        assert!(waiting(&client.tcp) > 0);
    }

    #[tokio::test]
    async fn a_handshake_message_in_crumbs_ends_the_connection_before_it_fills_the_memory() {
        let (mut client, theirs, server) = strangers(&TLS12).await;
        let hello = client.said();
        // ClientKeyExchange, said to have 65,535 bytes, one in each record of six.
        let crumbs = [&[22, 3, 3, 0, 4, 16, 0, 255, 255][..], &[22, 3, 3, 0, 1, 0].repeat(65_535)].concat();
        let say = async {
            client.send(&hello).await;
            // It ends in the middle.
            client.tcp.write_all(&crumbs).await
        };
        let (_, accepted) = tokio::join!(say, Stream::accept(theirs, server, Vec::new(), || ()));
        let error = accepted.unwrap_err();
        assert_eq!(error.to_string(), broken(InvalidMessage::HandshakePayloadTooLarge.into()).to_string());
    }
}
