//! From a socket to a TLS connection, under a deadline. The ClientHello is seen before anything is decided.

use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::server::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::challenges::{ALPN_ACME, Challenges};
pub use super::hello::AcceptError;
use super::hello::{HelloReader, Refusal, judge};
use super::policy::ALPN_H2;
use super::stream::Stream;
use super::turns::Turns;

/// Which protocol the two sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/1.1, or no ALPN at all.
    H1,
    /// HTTP/2.
    H2,
}

/// A connection whose handshake is complete.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: Box<Stream>,
    /// The server name the client asked for: a lower-case DNS name. Addresses are not server names.
    pub sni: Option<String>,
    /// The protocol to speak.
    pub alpn: Alpn,
}

/// What came of a handshake.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one for each connection, and taken apart at once")]
pub enum Handshake {
    /// A client's connection, to be served.
    Client(Accepted),
    /// A certificate authority has seen the answer to its TLS-ALPN-01 challenge; the connection is closed.
    Challenge,
}

/// How far a handshake has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The client has said all of its ClientHello.
    Hello,
    /// Our answer is on its way.
    Answered,
}

/// Makes a TLS connection of `tcp`, or says why not, within `deadline`. `tell` is called at each step.
///
/// # Errors
/// See [`AcceptError`]; the connection is closed.
pub async fn accept(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    challenges: &Challenges,
    turns: &Turns,
    deadline: Duration,
    tell: impl Fn(Step),
) -> Result<Handshake, AcceptError> {
    // Boxed: the state of a handshake is large, and the caller's task lives much longer.
    let handshake = Box::pin(handshake(tcp, config, challenges, turns, tell));
    timeout(deadline, handshake).await.unwrap_or(Err(AcceptError::Timeout))
}

async fn handshake(
    mut tcp: TcpStream,
    config: Arc<ServerConfig>,
    challenges: &Challenges,
    turns: &Turns,
    tell: impl Fn(Step),
) -> Result<Handshake, AcceptError> {
    let (hello, received) = match read_hello(&mut tcp).await {
        Ok(read) => read,
        Err(refusal) => return Err(refuse(tcp, refusal).await),
    };
    tell(Step::Hello);
    if let Some(challenge) = challenge(&hello, challenges) {
        return answer_challenge(tcp, received, challenge, tell).await;
    }
    if let Err(refusal) = judge(&hello, &config) {
        return Err(refuse(tcp, refusal).await);
    }
    let sni = hello.client_hello().server_name().map(str::to_owned);
    drop(hello);
    turns.wait().await;
    let stream = Stream::accept(tcp, config, received, || tell(Step::Answered)).await.map_err(classify)?;
    let alpn = if stream.agreed().alpn_protocol() == Some(ALPN_H2) { Alpn::H2 } else { Alpn::H1 };
    Ok(Handshake::Client(Accepted { stream, sni, alpn }))
}

/// What a validating authority is served with, if this is one and a challenge for the name is open.
fn challenge(hello: &rustls::server::Accepted, challenges: &Challenges) -> Option<Arc<ServerConfig>> {
    let hello = hello.client_hello();
    let mut offered = hello.alpn()?;
    // RFC 8737, section 3: "The ACME server MUST provide an ALPN extension with the single protocol name "acme-tls/1""
    if offered.next() != Some(ALPN_ACME) || offered.next().is_some() {
        return None;
    }
    challenges.tls_alpn(hello.server_name()?)
}

/// RFC 8737, section 3: once the handshake is complete, nothing is exchanged and the connection is closed.
async fn answer_challenge(
    tcp: TcpStream,
    received: Vec<u8>,
    config: Arc<ServerConfig>,
    tell: impl Fn(Step),
) -> Result<Handshake, AcceptError> {
    let mut stream = Stream::accept(tcp, config, received, || tell(Step::Answered)).await.map_err(classify)?;
    let _ = stream.shutdown().await;
    Ok(Handshake::Challenge)
}

/// The ClientHello, and all that was read for it.
async fn read_hello(tcp: &mut TcpStream) -> Result<(rustls::server::Accepted, Vec<u8>), Refusal> {
    let mut reader = HelloReader::default();
    let hello = poll_fn(|cx| {
        let mut socket = Socket { tcp, cx, is_empty: false };
        while !socket.is_empty {
            if let Some(hello) = reader.read(&mut socket)? {
                return Poll::Ready(Ok(hello));
            }
        }
        Poll::Pending
    });
    let hello = hello.await?;
    Ok((hello, reader.into_received()))
}

/// The socket as the reader of a ClientHello sees it: what is not there yet is told, and wakes the task when it is. Not
/// through `try_read`: of that the runtime does not learn that a short read took all there was, and tries once more.
struct Socket<'a, 'c> {
    tcp: &'a mut TcpStream,
    cx: &'a mut Context<'c>,
    is_empty: bool,
}

impl Read for Socket<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut *self.tcp).poll_read(self.cx, &mut buffer) {
            Poll::Ready(read) => read.map(|()| buffer.filled().len()),
            Poll::Pending => {
                self.is_empty = true;
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }
}

/// Says what there is to say and waits a moment until the client has taken it: closing a socket with unread data resets it, and a
/// reset can overtake the answer.
async fn refuse(mut tcp: TcpStream, refusal: Refusal) -> AcceptError {
    let Refusal { error, answer } = refusal;
    if answer.is_empty() || tcp.write_all(&answer).await.is_err() || tcp.shutdown().await.is_err() {
        return error;
    }
    let rest = async {
        let mut scratch = [0; 1024];
        for _ in 0..64 {
            if !matches!(tcp.read(&mut scratch).await, Ok(length) if length > 0) {
                break;
            }
        }
    };
    let _ = timeout(Duration::from_secs(1), rest).await;
    error
}

fn classify(error: io::Error) -> AcceptError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => error.clone().into(),
        None => AcceptError::ClientLeft(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, SignatureAlgorithm};
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
    use rustls::version::{TLS12, TLS13};
    use rustls::{
        AlertDescription, CipherSuite, ClientConfig, DigitallySignedStruct, HandshakeKind, ProtocolVersion,
        SignatureScheme, SupportedProtocolVersion,
    };
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::keys::LocalKeys;
    use crate::tls::challenges::Challenge;
    use crate::tls::policy::{MinVersion, Policy, server_config};
    use crate::tls::store::{CertStore, SiteCertificate};
    use crate::tls::testing::{Issued, days_from_now, site};
    use crate::tls::tickets::Tickets;

    const LONG: Duration = Duration::from_secs(20);

    fn policy() -> Policy {
        Policy { h1: true, h2: true, min_version: MinVersion::Tls12, client_ca: None }
    }

    /// A store with sites, and the certificates in it.
    struct World {
        folder: tempfile::TempDir,
        store: Arc<CertStore>,
        tickets: Tickets,
        exact: Issued,
        wild: Issued,
        default: Issued,
    }

    impl World {
        fn new(has_default: bool) -> World {
            let folder = tempfile::tempdir().unwrap();
            let exact = Issued::for_names(&["app.example.com"]);
            let wild = Issued::for_names(&["*.example.com"]);
            let default = Issued::for_names(&["default.test"]);
            let put = |issued: &Issued, name: &str, host: &str| site(name, &[host], issued.write(folder.path(), name));
            let store = Arc::new(CertStore::new(Arc::new(LocalKeys::new())));
            let problems = store.apply(vec![
                put(&exact, "exact", "app.example.com"),
                put(&wild, "wild", "*.example.com"),
                SiteCertificate { default: has_default, ..put(&default, "default", "default.test") },
            ]);
            assert!(problems.is_empty());
            World { folder, store, tickets: Tickets::new(), exact, wild, default }
        }

        fn config(&self, policy: &Policy) -> Arc<ServerConfig> {
            server_config(policy, Arc::clone(&self.store), &self.tickets).unwrap()
        }
    }

    /// Believes every certificate, but checks that its key signed the handshake.
    #[derive(Debug)]
    struct Credulous(WebPkiSupportedAlgorithms);

    impl ServerCertVerifier for Credulous {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.supported_schemes()
        }
    }

    fn client_with(
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
        identity: Option<&Issued>,
    ) -> ClientConfig {
        let provider: CryptoProvider = aws_lc_rs::default_provider();
        let verifier = Arc::new(Credulous(provider.signature_verification_algorithms));
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(issued) => {
                let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![issued.der.clone()], key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    fn client(alpn: &[&str]) -> Arc<ClientConfig> {
        Arc::new(client_with(&[&TLS13, &TLS12], alpn, None))
    }

    type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    /// [`accept`] while no challenge is open.
    async fn accept_client(
        theirs: TcpStream,
        config: Arc<ServerConfig>,
        deadline: Duration,
    ) -> Result<Accepted, AcceptError> {
        match accept(theirs, config, &Challenges::default(), &Turns::default(), deadline, |_| ()).await? {
            Handshake::Client(accepted) => Ok(accepted),
            Handshake::Challenge => panic!("no challenge is open"),
        }
    }

    async fn shake(
        server: Arc<ServerConfig>,
        client: Arc<ClientConfig>,
        name: &str,
    ) -> (Result<Accepted, AcceptError>, io::Result<ClientStream>) {
        let (ours, theirs) = sockets().await;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connect = async {
            let mut stream = TlsConnector::from(client).connect(name, ours).await?;
            // In TLS 1.3 a client is done before the server is, and learns of its refusal when it reads.
            let mut byte = [0];
            let _ = stream.read_exact(&mut byte).await?;
            Ok(stream)
        };
        let serve = async {
            let mut accepted = accept_client(theirs, server, LONG).await?;
            accepted.stream.write_all(b"!").await.map_err(AcceptError::ClientLeft)?;
            accepted.stream.flush().await.map_err(AcceptError::ClientLeft)?;
            Ok(accepted)
        };
        tokio::join!(serve, connect)
    }

    fn alert(outcome: io::Result<ClientStream>) -> AlertDescription {
        let error = outcome.expect_err("the handshake succeeded");
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => *alert,
            _ => panic!("no alert: {error}"),
        }
    }

    fn leaf(stream: &ClientStream) -> &CertificateDer<'static> {
        &stream.get_ref().1.peer_certificates().unwrap()[0]
    }

    #[tokio::test]
    async fn the_server_name_chooses_the_certificate() {
        let world = World::new(true);
        for (name, expected, sni) in [
            ("app.example.com", &world.exact, Some("app.example.com")),
            ("APP.Example.com", &world.exact, Some("app.example.com")),
            ("x.y.example.com", &world.wild, Some("x.y.example.com")),
            ("unknown.test", &world.default, Some("unknown.test")),
            ("127.0.0.1", &world.default, None),
        ] {
            let (accepted, connected) = shake(world.config(&policy()), client(&["h2"]), name).await;
            assert_eq!(leaf(&connected.unwrap()), &expected.der, "{name}");
            assert_eq!(accepted.unwrap().sni.as_deref(), sni, "{name}");
        }
    }

    #[tokio::test]
    async fn an_unknown_name_is_refused_without_any_certificate() {
        let world = World::new(false);
        let (accepted, connected) = shake(world.config(&policy()), client(&["h2"]), "unknown.test").await;
        assert_eq!(alert(connected), AlertDescription::UnrecognisedName);
        assert!(matches!(accepted, Err(AcceptError::UnknownName { name: Some(name) }) if name == "unknown.test"));
        let (accepted, connected) = shake(world.config(&policy()), client(&["h2"]), "127.0.0.1").await;
        assert_eq!(alert(connected), AlertDescription::MissingExtension);
        assert!(matches!(accepted, Err(AcceptError::UnknownName { name: None })));
    }

    #[tokio::test]
    async fn http2_is_preferred_and_http1_is_the_fallback() {
        let world = World::new(true);
        let h1_only = Policy { h2: false, ..policy() };
        let h2_only = Policy { h1: false, ..policy() };
        for (policy, offered, expected) in [
            (policy(), &["http/1.1", "h2"][..], Some(Alpn::H2)),
            (policy(), &["http/1.1"], Some(Alpn::H1)),
            (policy(), &["spdy/3", "http/1.1"], Some(Alpn::H1)),
            (policy(), &[], Some(Alpn::H1)),
            (policy(), &["http/1.0"], None),
            (policy(), &["ftp"], None),
            (h1_only.clone(), &["h2", "http/1.1"], Some(Alpn::H1)),
            (h1_only, &["h2"], None),
            (h2_only.clone(), &["h2"], Some(Alpn::H2)),
            (h2_only, &[], None),
        ] {
            let (accepted, connected) = shake(world.config(&policy), client(offered), "app.example.com").await;
            match expected {
                Some(alpn) => assert_eq!(accepted.unwrap().alpn, alpn, "{offered:?}"),
                None => {
                    assert_eq!(alert(connected), AlertDescription::NoApplicationProtocol, "{offered:?}");
                    assert!(matches!(accepted, Err(AcceptError::NoCommonProtocol)), "{offered:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn versions_are_1_2_and_1_3_and_the_cheap_suite_wins() {
        let world = World::new(true);
        for (versions, expected) in [
            (&[&TLS12][..], ProtocolVersion::TLSv1_2),
            (&[&TLS13], ProtocolVersion::TLSv1_3),
            (&[&TLS12, &TLS13], ProtocolVersion::TLSv1_3),
        ] {
            let client = Arc::new(client_with(versions, &["h2"], None));
            let (accepted, connected) = shake(world.config(&policy()), client, "app.example.com").await;
            connected.unwrap();
            let accepted = accepted.unwrap();
            let connection = accepted.stream.agreed();
            assert_eq!(connection.protocol_version(), Some(expected));
            let suite = match expected {
                ProtocolVersion::TLSv1_3 => CipherSuite::TLS13_AES_128_GCM_SHA256,
                _ => CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            };
            assert_eq!(connection.negotiated_cipher_suite().map(|suite| suite.suite()), Some(suite));
        }
        let strict = world.config(&Policy { min_version: MinVersion::Tls13, ..policy() });
        let old = Arc::new(client_with(&[&TLS12], &["h2"], None));
        let (accepted, connected) = shake(strict, old, "app.example.com").await;
        assert_eq!(alert(connected), AlertDescription::ProtocolVersion);
        assert!(matches!(accepted, Err(AcceptError::Tls(_))));
    }

    #[tokio::test]
    async fn every_kind_of_key_signs() {
        let folder = tempfile::tempdir().unwrap();
        let algorithms: [(&str, &'static SignatureAlgorithm); 3] =
            [("rsa", &PKCS_RSA_SHA256), ("p384", &PKCS_ECDSA_P384_SHA384), ("ed25519", &PKCS_ED25519)];
        for (name, algorithm) in algorithms {
            let issued = Issued::with(algorithm, &["a.test"], days_from_now(-1), days_from_now(1));
            let store = Arc::new(CertStore::new(Arc::new(LocalKeys::new())));
            let problems = store.apply(vec![site("a", &["a.test"], issued.write(folder.path(), name))]);
            assert!(problems.is_empty(), "{problems:?}");
            let server = server_config(&policy(), store, &Tickets::new()).unwrap();
            for version in [&TLS12, &TLS13] {
                let client = Arc::new(client_with(&[version], &["h2"], None));
                let (_, connected) = shake(Arc::clone(&server), client, "a.test").await;
                assert_eq!(leaf(&connected.unwrap()), &issued.der, "{name} {version:?}");
            }
        }
    }

    #[tokio::test]
    async fn sessions_resume_across_a_reload_and_not_under_another_client_ca() {
        let world = World::new(true);
        for version in [&TLS12, &TLS13] {
            let client = Arc::new(client_with(&[version], &["h2"], None));
            let mut kinds = Vec::new();
            for _ in 0..3 {
                // A configuration of its own for each connection, as after a reload.
                let (accepted, connected) =
                    shake(world.config(&policy()), Arc::clone(&client), "app.example.com").await;
                accepted.unwrap();
                kinds.push(connected.unwrap().get_ref().1.handshake_kind().unwrap());
            }
            assert!(!matches!(kinds[0], HandshakeKind::Resumed), "{version:?}");
            assert_eq!(kinds[1..], [HandshakeKind::Resumed, HandshakeKind::Resumed], "{version:?}");
        }

        let identity = Issued::for_names(&["client"]);
        let ca = world.folder.path().join("clients.pem");
        let client = Arc::new(client_with(&[&TLS13], &["h2"], Some(&identity)));
        let connect = async |authority: &Issued| {
            std::fs::write(&ca, &authority.cert).unwrap();
            let config = world.config(&Policy { client_ca: Some(ca.clone()), ..policy() });
            let (accepted, connected) = shake(config, Arc::clone(&client), "app.example.com").await;
            accepted.map(|_| connected.unwrap().get_ref().1.handshake_kind().unwrap())
        };
        assert_ne!(connect(&identity).await.unwrap(), HandshakeKind::Resumed);
        assert_eq!(connect(&identity).await.unwrap(), HandshakeKind::Resumed);
        let stranger = connect(&Issued::for_names(&["other authority"])).await;
        assert!(matches!(stranger, Err(AcceptError::Tls(_))), "{stranger:?}");
    }

    #[tokio::test]
    async fn a_client_certificate_is_required_where_one_is_asked_for() {
        let world = World::new(true);
        let (known, stranger) = (Issued::for_names(&["client"]), Issued::for_names(&["client"]));
        let ca = known.write(world.folder.path(), "clients").cert;
        let config = world.config(&Policy { client_ca: Some(ca), ..policy() });
        let connect = async |identity: Option<&Issued>| {
            let client = Arc::new(client_with(&[&TLS13, &TLS12], &["h2"], identity));
            shake(Arc::clone(&config), client, "app.example.com").await
        };
        let (accepted, connected) = connect(Some(&known)).await;
        connected.unwrap();
        assert_eq!(accepted.unwrap().stream.agreed().peer_certificates().unwrap()[0], known.der);
        let (accepted, connected) = connect(None).await;
        assert_eq!(alert(connected), AlertDescription::CertificateRequired);
        assert!(matches!(accepted, Err(AcceptError::Tls(_))));
        let (accepted, _) = connect(Some(&stranger)).await;
        assert!(matches!(accepted, Err(AcceptError::Tls(_))));
    }

    #[tokio::test]
    async fn an_authority_sees_its_challenge_and_a_client_never_does() {
        let world = World::new(false);
        let challenges = Arc::new(Challenges::default());
        let proof = Issued::for_names(&["new.example"]);
        let certified = proof.certified();
        let challenge = Challenge::TlsAlpn { name: "new.example".to_owned(), certified };
        let answering = challenges.answer(challenge).unwrap();
        let shake = async |name: &'static str, alpn: &[&str]| {
            let (ours, theirs) = sockets().await;
            let connector = TlsConnector::from(client(alpn));
            let name = ServerName::try_from(name).unwrap();
            let config = world.config(&policy());
            let turns = Turns::default();
            tokio::join!(accept(theirs, config, &challenges, &turns, LONG, |_| ()), connector.connect(name, ours))
        };
        let (accepted, connected) = shake("new.example", &["acme-tls/1"]).await;
        assert!(matches!(accepted, Ok(Handshake::Challenge)), "{accepted:?}");
        let connected = connected.unwrap();
        assert_eq!(leaf(&connected), &proof.der);
        assert_eq!(connected.get_ref().1.alpn_protocol(), Some(ALPN_ACME));
        // A name of the store has its certificate as before; the protocol beside others is not an authority's.
        for (name, alpn) in [("app.example.com", &["h2"][..]), ("app.example.com", &["acme-tls/1", "h2"])] {
            let (accepted, connected) = shake(name, alpn).await;
            assert!(matches!(accepted, Ok(Handshake::Client(_))), "{accepted:?}");
            assert_eq!(leaf(&connected.unwrap()), &world.exact.der);
        }
        for (name, alpn) in [("new.example", &["h2"][..]), ("app.example.com", &["acme-tls/1"])] {
            let (accepted, connected) = shake(name, alpn).await;
            assert!(accepted.is_err() && connected.is_err(), "{name} {alpn:?}");
        }
        drop(answering);
        let (accepted, connected) = shake("new.example", &["acme-tls/1"]).await;
        assert!(accepted.is_err() && connected.is_err());
    }

    /// What a client that says `bytes`, and then waits, is told.
    async fn answer_to(bytes: &[u8]) -> (AcceptError, Vec<u8>) {
        let world = World::new(true);
        let (mut ours, theirs) = sockets().await;
        ours.write_all(bytes).await.unwrap();
        let told = async {
            let mut told = Vec::new();
            ours.read_to_end(&mut told).await.unwrap();
            drop(ours);
            told
        };
        let (outcome, told) = tokio::join!(accept_client(theirs, world.config(&policy()), LONG), told);
        (outcome.expect_err("a handshake came of it"), told)
    }

    #[tokio::test]
    async fn plain_http_is_told_where_to_go() {
        let mut request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n".to_vec();
        request.extend([b'x'; 9000]);
        for bytes in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"P", &request, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let (error, told) = answer_to(bytes).await;
            assert!(matches!(error, AcceptError::PlainHttp), "{error}");
            let told = String::from_utf8(told).unwrap();
            assert!(told.starts_with("HTTP/1.1 400 Bad Request\r\n") && told.contains("https://"), "{told}");
        }
    }

    #[tokio::test]
    async fn garbage_ends_at_once() {
        for bytes in [&[0; 64][..], &[0xff; 64], b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00", b"ssh-2.0-x\r\n"] {
            let (error, _) = answer_to(bytes).await;
            assert!(matches!(error, AcceptError::NotTls), "{bytes:?}: {error}");
        }
        let (error, _) = answer_to(b"\x16\x03\x01\x00\x04\x00\x00\x00\x00").await;
        assert!(matches!(error, AcceptError::Tls(_)), "{error}");
    }

    #[tokio::test]
    async fn tls_1_1_is_refused_by_its_alert() {
        // A ClientHello of TLS 1.1 with TLS_RSA_WITH_AES_128_CBC_SHA and no extensions.
        let mut hello = vec![1, 0, 0, 41, 3, 2];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
        let mut record = vec![22, 3, 1, 0, hello.len() as u8];
        record.extend(hello);
        let (error, told) = answer_to(&record).await;
        assert!(matches!(error, AcceptError::Tls(_)), "{error}");
        // handshake_failure, since such a client names no signature schemes either, or protocol_version.
        assert!(told == crate::tls::hello::fatal(40) || told == crate::tls::hello::fatal(70), "{told:?}");
    }

    #[tokio::test]
    async fn a_hello_in_single_bytes_is_a_hello() {
        let world = World::new(true);
        let (ours, theirs) = sockets().await;
        let (mut near, far) = tokio::io::duplex(1);
        let trickle = async {
            let mut ours = ours;
            ours.set_nodelay(true).unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut ours).await;
        };
        let name = ServerName::try_from("app.example.com").unwrap();
        let connector = TlsConnector::from(client(&["h2"]));
        let shake =
            async { tokio::join!(accept_client(theirs, world.config(&policy()), LONG), connector.connect(name, far)) };
        tokio::select! {
            (accepted, connected) = shake => {
                assert_eq!(accepted.unwrap().alpn, Alpn::H2);
                connected.unwrap();
            }
            () = trickle => panic!("the connection ended"),
        }
    }

    #[tokio::test]
    async fn a_silent_client_and_a_stalled_one_meet_the_deadline() {
        let world = World::new(true);
        for said in [&b""[..], b"\x16\x03\x01\x02"] {
            let (mut ours, theirs) = sockets().await;
            ours.write_all(said).await.unwrap();
            let deadline = Duration::from_millis(50);
            let outcome = timeout(LONG, accept_client(theirs, world.config(&policy()), deadline)).await.unwrap();
            assert!(matches!(outcome, Err(AcceptError::Timeout)));
            assert_eq!(ours.read(&mut [0]).await.unwrap_or(0), 0, "the connection was left open");
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_no_fault_of_tls() {
        let world = World::new(true);
        for said in [&b""[..], b"\x16\x03\x01\x02"] {
            let (mut ours, theirs) = sockets().await;
            ours.write_all(said).await.unwrap();
            drop(ours);
            let outcome = accept_client(theirs, world.config(&policy()), LONG).await;
            assert!(matches!(outcome, Err(AcceptError::ClientLeft(_))));
        }
    }

    #[tokio::test]
    async fn a_new_certificate_counts_from_the_next_handshake_on() {
        let world = World::new(true);
        let server = world.config(&policy());
        let (first, connected) = shake(Arc::clone(&server), client(&["h2"]), "app.example.com").await;
        let (mut first, mut connected) = (first.unwrap(), connected.unwrap());
        let renewed = Issued::for_names(&["app.example.com"]);
        renewed.write(Path::new(world.folder.path()), "exact");
        assert_eq!(world.store.refresh(), 1);
        let (_, second) = shake(server, client(&["h2"]), "app.example.com").await;
        assert_eq!(leaf(&second.unwrap()), &renewed.der);
        // And the connection from before lives on.
        first.stream.write_all(b"still here").await.unwrap();
        first.stream.flush().await.unwrap();
        let mut heard = [0; 10];
        connected.read_exact(&mut heard).await.unwrap();
        assert_eq!((&heard[..], leaf(&connected)), (&b"still here"[..], &world.exact.der));
    }
}
