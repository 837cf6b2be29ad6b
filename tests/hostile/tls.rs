//! TLS below and beside the requests: what is not spoken, hellos in every shape, floods of what carries nothing, and
//! sessions that are resumed where they must not be.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, ClientConnection, HandshakeKind, NamedGroup};

use crate::back_end::BackEnd;
use crate::edge::{Edge, connect, read_to_end, send};
use crate::machine::promised;
use crate::tls_client::{self, Tls, config, over_with};

// RFC 8446, section 5.1 and 6.
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

const HANDSHAKE_FAILURE: u8 = 40;
const MISSING_EXTENSION: u8 = 109;
const UNRECOGNIZED_NAME: u8 = 112;
const NO_APPLICATION_PROTOCOL: u8 = 120;

const GET: &[u8] = b"GET /files/a.txt HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a short body").to_be_bytes();
    [&[kind, 3, 3, length[0], length[1]][..], body].concat()
}

/// The ClientHello of an ordinary client, without its record.
fn hello(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    first_flight(name, alpn).split_off(5)
}

/// What an ordinary client sends first.
pub fn first_flight(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config(alpn)), name).expect("a session");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("memory");
    assert_eq!(bytes[0], HANDSHAKE);
    bytes
}

/// Sends `bytes` and reads until the edge closes.
fn answer(edge: &Edge, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(edge.https);
    send(&mut stream, bytes);
    read_to_end(&mut stream)
}

/// A fatal alert and nothing else: no certificate was shown.
fn is_alert(answer: &[u8], number: u8) {
    assert_eq!(answer, [ALERT, 3, 3, 0, 2, 2, number], "{:?}", String::from_utf8_lossy(answer));
}

/// The edge still serves, and soon.
fn serves(edge: &Edge) {
    let begun = Instant::now();
    let mut stream = tls_client::connect(edge.https, "a.test", &[b"http/1.1"]);
    send(&mut stream, GET);
    assert!(answer_of(&mut stream).ends_with("text\n"));
    assert!(begun.elapsed() < promised(Duration::from_secs(5)), "{:?}", begun.elapsed());
}

/// What comes over TLS until its end.
fn answer_of(stream: &mut Tls) -> String {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        bytes.extend_from_slice(&piece[..length]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// CPU time of the edge so far.
fn cpu(edge: &Edge) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", edge.process.id())).expect("it runs");
    let fields: Vec<&str> = text.rsplit(") ").next().expect("fields").split(' ').collect();
    let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

/// `openssl s_client` with these arguments and this input; what it says.
fn openssl(edge: &Edge, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &edge.https.to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl; tests/run installs it");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it listens");
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn only_1_2_and_1_3_with_forward_secrecy_are_spoken() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let tries = |arguments: &[&str]| openssl(&edge, &[arguments, &["-servername", "a.test"]].concat(), "");
    for (arguments, alert) in [
        (&["-tls1", "-cipher", "ALL:@SECLEVEL=0"][..], "alert handshake failure"),
        (&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "alert handshake failure"),
        // Without forward secrecy; CBC; SHA-1; DHE; without a certificate; without encryption.
        (&["-tls1_2", "-cipher", "kRSA:@SECLEVEL=0"], "alert handshake failure"),
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES256-SHA:@SECLEVEL=0"],
            "alert handshake failure",
        ),
        (&["-tls1_2", "-cipher", "kDHE:@SECLEVEL=0"], "alert handshake failure"),
        (&["-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"], "alert handshake failure"),
        (&["-tls1_2", "-cipher", "eNULL:@SECLEVEL=0"], "alert handshake failure"),
        (&["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"], "alert handshake failure"),
    ] {
        let said = tries(arguments);
        assert!(said.contains(alert), "{arguments:?}: {said}");
        assert!(!said.contains("BEGIN CERTIFICATE"), "{arguments:?}: {said}");
    }
    for (version, words) in [
        (
            "-tls1_2",
            &["TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", "Extended master secret: yes", "Compression: NONE"][..],
        ),
        ("-tls1_3", &["TLSv1.3", "TLS_AES_128_GCM_SHA256", "Early data was not sent"]),
    ] {
        let said = tries(&[version]);
        for word in words {
            assert!(said.contains(word), "{version}, {word}: {said}");
        }
    }
    // The client's order does not count: a weaker wish is not followed.
    let said = tries(&[
        "-tls1_2",
        "-cipher",
        "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256",
    ]);
    assert!(said.contains("Cipher is ECDHE-ECDSA-AES128-GCM-SHA256"), "{said}");
}

#[test]
fn a_renegotiation_is_refused() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    // s_client renegotiates at a line "R".
    let said = openssl(&edge, &["-servername", "a.test", "-tls1_2"], "R\n");
    assert!(said.contains("RENEGOTIATING"), "{said}");
    assert!(
        said.contains("no renegotiation") || said.contains("handshake failure") || said.contains("unexpected"),
        "{said}"
    );
    serves(&edge);
}

#[test]
fn protocols_that_are_not_ours_are_refused_by_alpn() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    for offer in [
        &[&b"ftp"[..]][..],
        &[b"smtp"],
        &[b"imap"],
        &[b"pop3"],
        &[b"http/1.0"],
        &[b"h2c"],
        &[b"H2"],
        &[b"acme-tls/1"],
        &[b"ftp", b"x"],
    ] {
        is_alert(&answer(&edge, &record(HANDSHAKE, &hello("a.test", offer))), NO_APPLICATION_PROTOCOL);
    }
    // Among others, ours is taken.
    let mut stream = tls_client::connect(edge.https, "a.test", &[b"ftp", b"http/1.0", b"http/1.1"]);
    send(&mut stream, GET);
    assert!(answer_of(&mut stream).ends_with("text\n"));
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
}

/// A hello whose server name is `name`, whatever that is.
fn hello_for(name: &[u8]) -> Vec<u8> {
    const PLACE: &[u8] = b"name-of-a-place.test";
    let whole = hello(std::str::from_utf8(PLACE).expect("text"), &[b"http/1.1"]);
    let at = whole.windows(PLACE.len()).position(|it| it == PLACE).expect("the name");
    let two = |number: usize| u16::try_from(number).expect("short").to_be_bytes();
    // RFC 6066, section 3: extension length, list length, type, name length, name.
    let mut head = whole[..at - 7].to_vec();
    head.extend(two(name.len() + 5));
    head.extend(two(name.len() + 3));
    head.push(0);
    head.extend(two(name.len()));
    let mut changed = [&head, name, &whole[at + PLACE.len()..]].concat();
    // The lengths of all extensions and of the message: what follows the compression methods.
    let extensions = extensions_at(&whole);
    let length = changed.len() - extensions - 2;
    changed.splice(extensions..extensions + 2, two(length));
    let length = u32::try_from(changed.len() - 4).expect("short").to_be_bytes();
    changed.splice(1..4, length[1..].iter().copied());
    changed
}

/// Where the length of the extensions is: behind version, random, session id, suites and compression methods.
fn extensions_at(hello: &[u8]) -> usize {
    let session = 4 + 2 + 32;
    let suites = session + 1 + usize::from(hello[session]);
    let methods = suites + 2 + usize::from(u16::from_be_bytes([hello[suites], hello[suites + 1]]));
    methods + 1 + usize::from(hello[methods])
}

#[test]
fn a_server_name_is_ours_in_any_case_or_gets_no_certificate() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let begins = |name: &[u8]| {
        let mut stream = connect(edge.https);
        send(&mut stream, &record(HANDSHAKE, &hello_for(name)));
        let mut kind = [0];
        stream.read_exact(&mut kind).expect("an answer");
        kind[0]
    };
    // The same name with the dot of DNS behind it, which RFC 6066, section 3, leaves out, is the same site.
    for ours in [&b"a.test"[..], b"A.TEST", b"a.TeSt", b"a.test."] {
        assert_eq!(begins(ours), HANDSHAKE, "{}", String::from_utf8_lossy(ours));
    }
    let long = [&[b'x'; 60][..], b"."].concat().repeat(4);
    for foreign in [&b"b.test"[..], b"x.a.test", b"test", b"a.test.evil.example", &long[..240], b"localhost"] {
        is_alert(&answer(&edge, &record(HANDSHAKE, &hello_for(foreign))), UNRECOGNIZED_NAME);
    }
    // No DNS names (RFC 6066, section 3): refused as any hello that is not well-formed, or as one without a name.
    let oversize = [b'x'; 5000];
    for broken in
        [&b""[..], b".", b"a..test", b"-", b"a test", b"a.test\0", b"a.test\r\n", b"\xff\xfe", b"[::1]", &oversize]
    {
        let answer = answer(&edge, &record(HANDSHAKE, &hello_for(broken)));
        assert!(
            answer.len() == 7 && answer[0] == ALERT && answer[5] == 2,
            "{:?}: {answer:?}",
            String::from_utf8_lossy(broken)
        );
    }
    // Without a name, or with an address, which is none: the only certificate there is.
    let address = ServerName::try_from("127.0.0.1").expect("an address");
    let mut client = ClientConnection::new(Arc::new(config(&[])), address).expect("a session");
    let mut nameless = Vec::new();
    client.write_tls(&mut nameless).expect("memory");
    for name in [&b"127.0.0.1"[..], b"::1"] {
        assert_eq!(begins(name), HANDSHAKE, "{}", String::from_utf8_lossy(name));
    }
    // Of two sites neither is meant.
    let file = edge.folder.path().join("proxy.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let second = format!("[site.b]\nhosts = [\"other.test\"]\nupstream = \"http://{}\"\n", back_end.address);
    std::fs::write(&file, text + &second).expect("the configuration");
    edge.signal(Signal::HUP);
    edge.wait_for("reloaded");
    is_alert(&answer(&edge, &nameless), MISSING_EXTENSION);
    is_alert(&answer(&edge, &record(HANDSHAKE, &hello_for(b"127.0.0.1"))), MISSING_EXTENSION);
    serves(&edge);
}

#[test]
fn a_hello_may_come_in_any_pieces() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let whole = hello("a.test", &[b"http/1.1"]);
    // Over many records: RFC 8446, section 5.1.
    for size in [1, 2, 7, 100] {
        let records: Vec<u8> = whole.chunks(size).flat_map(|piece| record(HANDSHAKE, piece)).collect();
        begins_handshake(&edge, &records, records.len());
    }
    // In segments of one byte each.
    begins_handshake(&edge, &record(HANDSHAKE, &whole), 1);
    // Both.
    let records: Vec<u8> = whole.chunks(3).flat_map(|piece| record(HANDSHAKE, piece)).collect();
    begins_handshake(&edge, &records, 1);
    serves(&edge);
}

fn begins_handshake(edge: &Edge, bytes: &[u8], segment: usize) {
    let mut stream = connect(edge.https);
    stream.set_nodelay(true).expect("a socket");
    for piece in bytes.chunks(segment) {
        stream.write_all(piece).expect("the edge listens");
    }
    let mut kind = [0];
    stream.read_exact(&mut kind).expect("an answer");
    assert_eq!(kind, [HANDSHAKE]);
}

#[test]
fn what_is_no_hello_ends_at_once() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let told = answer(&edge, GET);
    assert!(
        told.starts_with(b"HTTP/1.1 400 ") && told.ends_with(b"use https://\n"),
        "{}",
        String::from_utf8_lossy(&told)
    );
    let whole = hello("a.test", &[b"http/1.1"]);
    let mut huge = vec![1, 0xff, 0xff, 0xff];
    huge.resize(16_000, 0);
    let oversized = [HANDSHAKE, 3, 3, 0xff, 0xff];
    let heartbeat = [24, 3, 3, 0, 3, 1, 0xff, 0xff];
    let garbage: Vec<u8> = (0..4000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect();
    // SSLv2's hello, as old clients sent it.
    let sslv2 = [0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80, 2, 0, 0x80];
    let finished_first = record(HANDSHAKE, &[20, 0, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    for (what, bytes) in [
        ("garbage", garbage.as_slice()),
        ("a record beyond 16 KiB", &oversized.repeat(100)),
        ("a hello of 16 MiB", &record(HANDSHAKE, &huge).repeat(40)),
        ("application data", &record(APPLICATION_DATA, &[0; 100])),
        ("a fatal alert", &record(ALERT, &[2, HANDSHAKE_FAILURE])),
        ("heartbleed", &heartbeat),
        ("SSLv2", &sslv2),
        ("a Finished", &finished_first),
        ("a hello cut short", &record(HANDSHAKE, &[&[1, 0, 0, 60][..], &whole[4..64]].concat())),
    ] {
        let begun = Instant::now();
        let answer = answer(&edge, bytes);
        assert!(answer.is_empty() || answer[0] == ALERT, "{what}: {answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(8), "{what}: {:?}", begun.elapsed());
    }
    serves(&edge);
}

#[test]
fn floods_of_records_that_carry_nothing_end_or_cost_little() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[timeouts]\nheader = \"2s\"");
    let whole = record(HANDSHAKE, &hello("a.test", &[b"http/1.1"]));
    let half = record(HANDSHAKE, &whole[5..105]);
    let warning = record(ALERT, &[1, 90]);
    let spec = record(CHANGE_CIPHER_SPEC, &[1]);
    for (what, bytes) in [
        ("empty handshake records", record(HANDSHAKE, &[]).repeat(20_000)),
        ("empty records within a hello", [&half[..], &record(HANDSHAKE, &[]).repeat(20_000)].concat()),
        ("warnings", warning.repeat(20_000)),
        ("warnings behind the hello", [&whole[..], &warning.repeat(20_000)].concat()),
        ("ChangeCipherSpec", spec.repeat(20_000)),
        ("ChangeCipherSpec behind the hello", [&whole[..], &spec.repeat(20_000)].concat()),
        ("empty records behind the hello", [&whole[..], &record(APPLICATION_DATA, &[]).repeat(20_000)].concat()),
        ("records that do not decrypt", [&whole[..], &record(APPLICATION_DATA, &[7; 40]).repeat(5_000)].concat()),
    ] {
        let (begun, before) = (Instant::now(), cpu(&edge));
        let mut stream = connect(edge.https);
        send(&mut stream, &bytes);
        read_to_end(&mut stream);
        let spent = cpu(&edge).saturating_sub(before);
        println!("{what}: ended after {:?}, {spent:?} of CPU", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(8), "{what}: {:?}", begun.elapsed());
        assert!(spent < Duration::from_secs(2), "{what}: {spent:?}");
        serves(&edge);
    }
}

#[test]
fn a_flood_of_key_updates_costs_little_and_starves_nobody() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let mut stream = tls_client::connect(edge.https, "a.test", &[b"http/1.1"]);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).expect("a handshake");
    }
    let before = cpu(&edge);
    let mut sent = 0;
    for _ in 0..3000 {
        let updated = stream.conn.refresh_traffic_keys().and_then(|()| {
            stream.conn.write_tls(&mut stream.sock).map_err(|error| rustls::Error::General(error.to_string()))
        });
        if updated.is_err() {
            break;
        }
        sent += 1;
    }
    let mut rest = Vec::new();
    let _ = stream.sock.set_read_timeout(Some(Duration::from_millis(300)));
    let _ = stream.sock.read_to_end(&mut rest);
    let spent = cpu(&edge).saturating_sub(before);
    println!("{sent} KeyUpdates: {spent:?} of CPU");
    assert!(spent < Duration::from_secs(3), "{spent:?}");
    serves(&edge);
}

#[test]
fn plain_bytes_behind_the_handshake_end_the_connection() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    // A plaintext record, a hello among them, behind the handshake: RFC 8446, section 5: "unexpected_message".
    for bytes in [record(HANDSHAKE, &hello("a.test", &[])), record(ALERT, &[2, 0]), GET.to_vec()] {
        let mut stream = tls_client::connect(edge.https, "a.test", &[b"http/1.1"]);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).expect("a handshake");
        }
        send(&mut stream.sock, &bytes);
        let said = read_to_end(&mut stream.sock);
        assert!(!said.windows(5).any(|it| it == b"text\n"));
    }
    serves(&edge);
}

/// Remembers one session, and shows it whatever the name.
#[derive(Debug)]
struct AnyName(ClientSessionMemoryCache);

impl AnyName {
    fn name() -> ServerName<'static> {
        ServerName::try_from("any.test").expect("a name")
    }
}

impl ClientSessionStore for AnyName {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(AnyName::name(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&AnyName::name())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(AnyName::name(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&AnyName::name())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&AnyName::name());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(AnyName::name(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&AnyName::name())
    }
}

/// A client that remembers its last session.
fn remembering() -> Arc<ClientConfig> {
    let mut client = config(&[b"http/1.1"]);
    client.resumption = Resumption::store(Arc::new(AnyName(ClientSessionMemoryCache::new(64))));
    client.enable_early_data = true;
    Arc::new(client)
}

/// One request; how the session began, and whether 0-RTT data could have been sent.
fn visit(client: &Arc<ClientConfig>, address: SocketAddr, name: &str) -> (Option<HandshakeKind>, bool) {
    let mut stream = over_with(Arc::clone(client), connect(address), name);
    let early = stream.conn.early_data().is_some();
    send(&mut stream, GET);
    assert!(!answer_of(&mut stream).is_empty());
    (stream.conn.handshake_kind(), early)
}

#[test]
fn sessions_resume_across_a_reload_and_never_send_early_data() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let client = remembering();
    assert_eq!(visit(&client, edge.https, "a.test"), (Some(HandshakeKind::Full), false));
    for _ in 0..2 {
        edge.signal(Signal::HUP);
        edge.wait_for("reloaded");
        assert_eq!(visit(&client, edge.https, "a.test"), (Some(HandshakeKind::Resumed), false));
    }
}

#[test]
fn a_session_is_not_resumed_under_another_name_nor_where_clients_need_a_certificate_since() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let file = edge.folder.path().join("proxy.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let both = text.replace("hosts = [\"a.test\"]", "hosts = [\"a.test\", \"b.test\"]");
    std::fs::write(&file, &both).expect("the configuration");
    edge.signal(Signal::HUP);
    edge.wait_for("reloaded");
    let client = remembering();
    assert_eq!(visit(&client, edge.https, "a.test").0, Some(HandshakeKind::Full));
    assert_eq!(visit(&client, edge.https, "b.test").0, Some(HandshakeKind::Full), "the ticket of a.test was taken");
    assert_eq!(visit(&client, edge.https, "b.test").0, Some(HandshakeKind::Resumed));
    let ca = edge.folder.path().join("certs-dev/ca.pem");
    std::fs::write(&file, format!("[tls]\nclient_ca = {ca:?}\n{both}")).expect("the configuration");
    edge.signal(Signal::HUP);
    edge.wait_for("reloaded");
    // With the old ticket no one gets in: there was no certificate to check when it was made.
    let mut stream = over_with(client, connect(edge.https), "b.test");
    send(&mut stream, GET);
    let mut piece = [0; 100];
    let outcome = stream.read(&mut piece);
    let error = outcome.expect_err("a client without a certificate was let in");
    let inner = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>());
    assert!(
        matches!(inner, Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)))
            || error.kind() == std::io::ErrorKind::ConnectionReset,
        "{error:?}"
    );
}

#[test]
fn half_open_handshakes_are_ended_at_the_deadline_and_others_are_served_meanwhile() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "[timeouts]\nheader = \"3s\"");
    let whole = record(HANDSHAKE, &hello("a.test", &[b"http/1.1"]));
    let begun = Instant::now();
    let mut silent: Vec<TcpStream> = (0..150)
        .map(|round| {
            let mut stream = connect(edge.https);
            // Nothing, a part of a hello, or a hello that nothing follows.
            let part: &[u8] = [&[][..], &whole[..40], &whole][round % 3];
            send(&mut stream, part);
            stream
        })
        .collect();
    serves(&edge);
    for stream in &mut silent {
        read_to_end(stream);
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    serves(&edge);
}

#[test]
fn a_request_that_is_cut_without_close_notify_is_not_taken_for_whole() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    for head in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        let mut stream = tls_client::connect(edge.https, "a.test", &[b"http/1.1"]);
        send(&mut stream, format!("POST /x HTTP/1.1\r\nHost: a.test\r\n{head}\r\n\r\n5\r\nhello\r\n").as_bytes());
        stream.flush().expect("it is sent");
        stream.sock.shutdown(std::net::Shutdown::Write).expect("it is open");
        // FIN, and no close_notify: what there is of a body must not be the body.
        let said = String::from_utf8_lossy(&read_to_end(&mut stream.sock)).into_owned();
        assert!(!said.contains("200 OK"), "{said}");
    }
    // The back end keeps a body when it has come to its end.
    assert!(back_end.take().iter().all(|seen| seen.body.is_empty()));
    serves(&edge);
}

/// Answers every request over TLS without a length, and ends with a close_notify or without one, by the path.
fn cutting_back_end() -> SocketAddr {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a pair");
    let server = Arc::new(server);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let session = rustls::ServerConnection::new(Arc::clone(&server)).expect("a session");
            let mut stream = rustls::StreamOwned::new(session, socket);
            let mut head = [0; 4096];
            let Ok(length) = stream.read(&mut head) else { continue };
            let is_whole = head[..length].starts_with(b"GET /whole ");
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nwords");
            if is_whole {
                stream.conn.send_close_notify();
            }
            let _ = stream.flush();
            let _ = stream.sock.shutdown(std::net::Shutdown::Write);
            let _ = stream.sock.read_to_end(&mut Vec::new());
        }
    });
    address
}

#[test]
fn an_answer_without_a_length_that_ends_without_close_notify_is_visibly_cut() {
    let back_end = BackEnd::start();
    let edge = Edge::start(back_end.address, "");
    let file = edge.folder.path().join("proxy.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let over_tls = format!("upstream = \"https://{}\"\nupstream_tls = {{ verify = false }}", cutting_back_end());
    let plain = format!("upstream = \"http://{}\"", back_end.address);
    let text = text.replacen(&plain, &over_tls, 1);
    // All back ends of a site speak TLS or none does.
    let socket = text.find("[site.a.websocket]").expect("a block");
    let route = text.find("[[site.a.route]]").expect("a block");
    std::fs::write(&file, [&text[..socket], &text[route..]].concat()).expect("the configuration");
    edge.signal(Signal::HUP);
    edge.wait_for("reloaded");
    for (path, is_whole) in [("/whole", true), ("/cut", false)] {
        let mut stream = edge.connect();
        send(&mut stream, format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").as_bytes());
        let answer = String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned();
        assert!(answer.contains("words") || !is_whole, "{path}: {answer}");
        assert_eq!(answer.ends_with("\r\n0\r\n\r\n"), is_whole, "{path}: {answer}");
    }
}
