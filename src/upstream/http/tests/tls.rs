//! TLS towards back ends.

use super::*;

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

/// Whether a connection to a TLS back end is kept that has answered with `answer`; and how it saw the connection end.
async fn ended_after(answer: &'static str) -> (usize, std::io::Result<usize>) {
    let authority = Authority::new();
    let (certificate, key) = authority.leaf("localhost");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let back = tokio::task::spawn_local(async move {
        let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut talk = Talk { stream, seen: Rc::default() };
        talk.hear().await;
        talk.say(answer).await;
        talk.stream.read(&mut [0; 10]).await
    });
    let upstream = tls_upstream(&address, TlsSettings { insecure: true, ..TlsSettings::default() });
    let pool = Pool::new();
    assert_eq!(fetch(&upstream, &pool).await, "ok");
    let idle = pool.idle();
    drop(pool.take(&upstream.targets[0].key, false));
    pool.clear();
    (idle, back.await.unwrap())
}

#[test]
fn a_connection_that_is_closed_at_rest_says_so() {
    run(async {
        // Without the alert rustls tells of an unexpected end.
        let (idle, ended) = ended_after(OK).await;
        assert_eq!((idle, ended.unwrap()), (1, 0));
        let (idle, ended) = ended_after("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!((idle, ended.unwrap()), (0, 0));
    });
}

#[test]
fn what_was_decrypted_behind_an_answer_is_seen() {
    run(async {
        for fill in [0, 9000] {
            let text =
                format!("HTTP/1.1 200 OK\r\nx: {}\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK", "x".repeat(fill));
            let (_, ended) = ended_after(Box::leak(text.into_boxed_str())).await;
            assert_eq!(ended.unwrap(), 0);
        }
    });
}
