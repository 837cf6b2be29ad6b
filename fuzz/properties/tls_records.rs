//! However the records of a TLS connection are cut, and whatever is said in between (key updates, close_notify), each side
//! hears what the other said, in order and whole. After a bit was damaged on the way it hears a beginning of it, and no
//! end that looks like one where any of it is missing.

use std::future::Future;
use std::io::{self, IoSlice, Read, Write};
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use doorward::tls::stream::Stream;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

/// rustls takes 32 without a byte of data between them for an attack.
const KEY_UPDATES: usize = 30;

/// A byte for the version of TLS, one for what the socket takes at a time, then pairs of a step and its size.
pub fn check(input: &[u8]) {
    let [version, room, steps @ ..] = input else { return };
    let mut cx = Context::from_waker(Waker::noop());
    let (ours, theirs) = duplex(usize::from(*room) * 64 + 16);
    let Some((client, stream)) = shake(version % 2 == 0, ours, theirs, &mut cx) else {
        panic!("a whole handshake fails");
    };
    let mut talk =
        Talk { client, stream, to_client: Said::default(), to_server: Said::default(), damaged: false, key_updates: 0 };
    for step in steps.chunks_exact(2).take(200) {
        talk.step(step[0], usize::from(step[1]), &mut cx);
    }
    talk.finish(&mut cx);
}

/// What one side says, and what the other has heard of it.
#[derive(Default)]
struct Said {
    said: Vec<u8>,
    heard: Vec<u8>,
    is_over: bool,
}

impl Said {
    /// More of a sequence in which nothing can be lost, doubled or moved without notice.
    fn next(&self, count: usize) -> Vec<u8> {
        let at = self.said.len();
        (at..at + count).map(|at| (at % 251) as u8 ^ (at / 251) as u8).collect()
    }
}

struct Client {
    socket: DuplexStream,
    tls: ClientConnection,
    /// Encrypted, and not yet sent.
    wire: Vec<u8>,
    /// Bytes that came over the wire.
    received: usize,
}

struct Talk {
    client: Client,
    stream: Stream<DuplexStream>,
    to_client: Said,
    to_server: Said,
    damaged: bool,
    key_updates: usize,
}

impl Talk {
    fn step(&mut self, step: u8, size: usize, cx: &mut Context<'_>) {
        match step % 10 {
            0 | 1 if !self.to_server.is_over => {
                // Up to several records at once.
                let bytes = self.to_server.next(if step.is_multiple_of(10) { size } else { size * 300 });
                if self.client.say(&bytes).is_ok() {
                    self.to_server.said.extend(bytes);
                } else {
                    assert!(self.damaged, "an alert for nothing");
                    self.to_server.is_over = true;
                }
            }
            2 => self.client.send(size, cx),
            3 => drop(self.read(1 + size * 40, cx)),
            4 if !self.to_client.is_over => self.write(size * 300, cx),
            5 => drop(self.client.receive(1 + size * 10, &mut self.to_client, cx)),
            6 if size == 0 && !self.to_server.is_over => {
                self.client.tls.send_close_notify();
                self.client.take_wire();
                self.to_server.is_over = true;
            }
            7 if !self.to_server.is_over && self.key_updates < KEY_UPDATES => {
                // TLS 1.2 has none.
                let _ = self.client.tls.refresh_traffic_keys();
                self.client.take_wire();
                self.key_updates += 1;
            }
            // A damaged record behind our own end is the unit tests' case: with its assertions rustls panics there.
            8 if size == 0 && !self.damaged => {
                self.to_client.is_over = true;
                let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
            }
            9 if !self.to_client.is_over && !self.client.wire.is_empty() && size.is_multiple_of(8) => {
                let at = size % self.client.wire.len();
                self.client.wire[at] ^= 1 << (size % 8);
                self.damaged = true;
            }
            _ => drop(Pin::new(&mut self.stream).poll_flush(cx)),
        }
    }

    /// Everything that is under way arrives.
    fn finish(mut self, cx: &mut Context<'_>) {
        let (mut ended, mut still) = (None, 0);
        while still < 3 {
            let before = (self.to_server.heard.len(), self.client.received, self.client.wire.len());
            self.client.send(usize::MAX, cx);
            match self.read(16 * 1024, cx) {
                Poll::Ready(Ok(true)) | Poll::Pending => {}
                Poll::Ready(Ok(false)) => ended = Some(Ok(())),
                Poll::Ready(Err(error)) => ended = Some(Err(error)),
            }
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
            if self.client.receive(64 * 1024, &mut self.to_client, cx).is_err() {
                assert!(self.damaged, "the client cannot read us");
            }
            let after = (self.to_server.heard.len(), self.client.received, self.client.wire.len());
            still = if before == after { still + 1 } else { 0 };
        }
        assert!(self.to_server.said.starts_with(&self.to_server.heard), "not what the client said");
        assert!(self.to_client.said.starts_with(&self.to_client.heard), "not what we said");
        if self.damaged {
            // What the first three bytes of a record say counts for nothing, and a second time may mend the first.
            let is_whole = self.to_server.heard.len() == self.to_server.said.len();
            assert!(is_whole || !matches!(ended, Some(Ok(()))), "damaged, and yet a proper end");
            return;
        }
        assert_eq!(self.to_server.heard.len(), self.to_server.said.len(), "of the client");
        assert_eq!(self.to_client.heard.len(), self.to_client.said.len(), "of ours");
        match ended {
            Some(Err(error)) => panic!("{error}"),
            Some(Ok(())) => assert!(self.to_server.is_over, "an end that nobody made"),
            None => assert!(!self.to_server.is_over, "the end is not heard"),
        }
    }

    /// Whether something came; `false` at the end.
    fn read(&mut self, size: usize, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut space = vec![0; size];
        let mut buffer = ReadBuf::new(&mut space);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
        self.to_server.heard.extend_from_slice(buffer.filled());
        read.map_ok(|()| !buffer.filled().is_empty())
    }

    fn write(&mut self, size: usize, cx: &mut Context<'_>) {
        let bytes = self.to_client.next(size);
        let (front, back) = bytes.split_at(size / 3);
        let slices = [IoSlice::new(front), IoSlice::new(&[]), IoSlice::new(back)];
        if let Poll::Ready(Ok(written)) = Pin::new(&mut self.stream).poll_write_vectored(cx, &slices) {
            self.to_client.said.extend_from_slice(&bytes[..written]);
        }
    }
}

impl Client {
    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tls.writer().write_all(bytes)?;
        self.take_wire();
        Ok(())
    }

    fn take_wire(&mut self) {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.wire).expect("memory");
        }
    }

    fn send(&mut self, most: usize, cx: &mut Context<'_>) {
        let some = &self.wire[..self.wire.len().min(most)];
        if let Poll::Ready(Ok(sent)) = Pin::new(&mut self.socket).poll_write(cx, some) {
            self.wire.drain(..sent);
        }
    }

    fn receive(&mut self, most: usize, said: &mut Said, cx: &mut Context<'_>) -> io::Result<()> {
        let mut space = vec![0; most];
        let mut buffer = ReadBuf::new(&mut space);
        if Pin::new(&mut self.socket).poll_read(cx, &mut buffer)?.is_pending() {
            return Ok(());
        }
        let mut rest = buffer.filled();
        self.received += rest.len();
        while !rest.is_empty() {
            self.tls.read_tls(&mut rest)?;
            let count = self.tls.process_new_packets().map_err(io::Error::other)?.plaintext_bytes_to_read();
            let start = said.heard.len();
            said.heard.resize(start + count, 0);
            self.tls.reader().read_exact(&mut said.heard[start..])?;
        }
        self.take_wire();
        Ok(())
    }
}

fn shake(
    old: bool,
    ours: DuplexStream,
    theirs: DuplexStream,
    cx: &mut Context<'_>,
) -> Option<(Client, Stream<DuplexStream>)> {
    let (server, [new_client, old_client]) = configs();
    let name = ServerName::try_from("a.test").expect("a name");
    let tls = ClientConnection::new(Arc::clone(if old { old_client } else { new_client }), name).expect("a client");
    let mut client = Client { socket: ours, tls, wire: Vec::new(), received: 0 };
    client.tls.set_buffer_limit(None);
    client.take_wire();
    let mut accept = pin!(Stream::accept(theirs, Arc::clone(server), Vec::new(), || ()));
    let mut nothing = Said::default();
    let mut accepted = None;
    for _ in 0..10_000 {
        client.send(usize::MAX, cx);
        if accepted.is_none()
            && let Poll::Ready(stream) = accept.as_mut().poll(cx)
        {
            accepted = Some(stream.ok()?);
        }
        client.receive(16 * 1024, &mut nothing, cx).ok()?;
        if !client.tls.is_handshaking() && client.wire.is_empty() && accepted.is_some() {
            return accepted.map(|stream| (client, *stream));
        }
    }
    None
}

/// A server's, and a client's for TLS 1.3 and for 1.2.
fn configs() -> &'static (Arc<ServerConfig>, [Arc<ClientConfig>; 2]) {
    static CONFIGS: OnceLock<(Arc<ServerConfig>, [Arc<ClientConfig>; 2])> = OnceLock::new();
    CONFIGS.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let issued = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).expect("a key");
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![issued.cert.der().clone()], key)
            .expect("a pair");
        let mut roots = RootCertStore::empty();
        roots.add(issued.cert.der().clone()).expect("a root");
        let client = |version| {
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
            let builder = builder.with_protocol_versions(&[version]).expect("a version");
            Arc::new(builder.with_root_certificates(roots.clone()).with_no_client_auth())
        };
        (Arc::new(server), [client(&TLS13), client(&TLS12)])
    })
}
