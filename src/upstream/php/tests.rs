//! Against a PHP-FPM that misbehaves in every way that was seen or feared.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use ::http::{Request, request};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use super::*;
use crate::base::network::Networks;
use crate::http::request::{Arrival, ClientRequest, HeadLimits, Scheme, Trust};
use crate::upstream::fastcgi::params::tests::decode;
use crate::upstream::fastcgi::record::{HEADER, Header, Type};

pub(super) fn request(builder: request::Builder) -> UpstreamRequest {
    let arrival = Arrival {
        peer: "192.0.2.7:5000".parse().unwrap(),
        local: "192.0.2.1:443".parse().unwrap(),
        scheme: Scheme::Https,
    };
    let trust = Trust { proxies: Networks(vec![]), header: HeaderName::from_static("x-forwarded-for") };
    let limits = HeadLimits { max_uri: 8192, max_headers: 100, max_header_size: 1 << 20 };
    ClientRequest::read(builder.body(()).unwrap().into_parts().0, None, arrival, &trust, limits)
        .unwrap()
        .forward(None, false)
}

fn get() -> UpstreamRequest {
    request(Request::get("/").header("host", "a.test"))
}

fn post() -> UpstreamRequest {
    request(Request::post("/").header("host", "a.test"))
}

fn record(kind: u8, id: u16, content: &[u8], padding: u8) -> Vec<u8> {
    let mut out = vec![1, kind];
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
    out.extend_from_slice(&[padding, 0]);
    out.extend_from_slice(content);
    out.extend(std::iter::repeat_n(0xff, usize::from(padding)));
    out
}

fn stdout(content: impl AsRef<[u8]>) -> Vec<u8> {
    content.as_ref().chunks(65535).flat_map(|part| record(6, 1, part, 0)).collect()
}

fn end() -> Vec<u8> {
    record(3, 1, &[0; 8], 0)
}

fn whole(content: impl AsRef<[u8]>) -> Vec<u8> {
    [stdout(content), end()].concat()
}

/// What the fake does with one connection.
#[derive(Clone)]
enum Act {
    /// Reads the request, sends these bytes in writes of this size, closes.
    Answer(Vec<u8>, usize),
    /// As before, and goes on with the next act on the same connection.
    Stay(Vec<u8>),
    /// Sends these bytes before it reads anything of the request.
    Early(Vec<u8>),
    /// Reads the request, sends these bytes, says nothing more, and tells when the other side has closed.
    Hang(Vec<u8>, Arc<Notify>),
    /// Accepts and reads nothing.
    Deaf,
    /// Reads the request and closes without a word.
    Leave,
}

#[derive(Debug, Default, Clone)]
struct Seen {
    connection: usize,
    keep: bool,
    params: Vec<(Vec<u8>, Vec<u8>)>,
    stdin: Vec<u8>,
}

struct Fake {
    _folder: tempfile::TempDir,
    endpoint: Endpoint,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    /// A fake that performs one act after the other, over as many connections as that takes.
    fn start(acts: Vec<Act>) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fpm.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(perform(listener, acts, Arc::clone(&seen)));
        Fake { _folder: folder, endpoint: Endpoint::Unix(path), seen }
    }

    fn upstream(&self, change: impl FnOnce(&mut Settings)) -> PhpUpstream {
        upstream(vec![self.endpoint.clone()], change)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn perform(listener: UnixListener, acts: Vec<Act>, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut acts = std::collections::VecDeque::from(acts);
    let mut connection = 0;
    'connections: loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        connection += 1;
        while let Some(act) = acts.front() {
            if let Act::Early(bytes) = act {
                stream.write_all(bytes).await.unwrap();
            }
            if let Act::Deaf = act {
                std::future::pending::<()>().await;
            }
            let Some(mut request) = receive(&mut stream).await else { continue 'connections };
            request.connection = connection;
            seen.lock().unwrap().push(request);
            // An act is spent by a request, not by a connection on which none comes.
            let Some(act) = acts.pop_front() else { return };
            match act {
                Act::Answer(bytes, size) => {
                    for part in bytes.chunks(size) {
                        if stream.write_all(part).await.is_err() {
                            break;
                        }
                    }
                    continue 'connections;
                }
                Act::Stay(bytes) => stream.write_all(&bytes).await.unwrap(),
                Act::Hang(bytes, closed) => {
                    stream.write_all(&bytes).await.unwrap();
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                    closed.notify_one();
                    continue 'connections;
                }
                Act::Early(_) | Act::Deaf | Act::Leave => continue 'connections,
            }
        }
        return;
    }
}

async fn receive(stream: &mut UnixStream) -> Option<Seen> {
    let mut seen = Seen::default();
    let mut params = Vec::new();
    loop {
        let mut bytes = [0; HEADER];
        stream.read_exact(&mut bytes).await.ok()?;
        let header = Header::decode(bytes).unwrap();
        let mut content = vec![0; usize::from(header.content) + usize::from(header.padding)];
        stream.read_exact(&mut content).await.ok()?;
        content.truncate(usize::from(header.content));
        match header.kind {
            Type::Begin => seen.keep = content[2] & 1 == 1,
            Type::Params => {
                let header = Header { padding: 0, ..header };
                params.extend_from_slice(&header.encode());
                params.extend_from_slice(&content);
            }
            Type::Stdin if content.is_empty() => {
                seen.params = decode(&params).unwrap();
                return Some(seen);
            }
            Type::Stdin => seen.stdin.extend_from_slice(&content),
            other => panic!("{other:?} from a server"),
        }
    }
}

fn upstream(pools: Vec<Endpoint>, change: impl FnOnce(&mut Settings)) -> PhpUpstream {
    let patience = Duration::from_secs(20);
    let mut settings = Settings {
        pools,
        params: BTreeMap::new(),
        connect: patience,
        read: patience,
        send: patience,
        keep_alive: 0,
        server_software: "doorward".to_owned(),
    };
    change(&mut settings);
    PhpUpstream::new(settings)
}

fn script() -> Script {
    Script {
        document_root: "/srv".into(),
        file: "/srv/index.php".into(),
        name: b"/index.php".to_vec(),
        path_info: Vec::new(),
    }
}

async fn ask(upstream: &PhpUpstream, request: UpstreamRequest) -> Result<Response<Body>, Fault> {
    upstream.send(request, Body::Empty, script(), &FastCgiPool::new()).await
}

/// The data, and the fault that ended it, if one did.
async fn read(mut body: Body) -> (Vec<u8>, Option<Kind>) {
    let mut data = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => data.extend_from_slice(frame.data_ref().unwrap()),
            Err(fault) => return (data, Some(fault.kind)),
        }
    }
    (data, None)
}

/// The answer to a GET that FPM answers with `bytes`.
async fn answered(bytes: Vec<u8>, size: usize) -> Result<Response<Body>, Fault> {
    let fake = Fake::start(vec![Act::Answer(bytes, size)]);
    ask(&fake.upstream(|_| {}), get()).await
}

const HEAD: &[u8] = b"Content-Type: text/plain\r\n\r\n";

#[tokio::test]
async fn records_of_one_byte_written_one_byte_at_a_time_are_one_answer() {
    let text = b"Status: 404 Not Found\r\nX-A: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nhello";
    let mut bytes: Vec<u8> = text.iter().flat_map(|byte| record(6, 1, &[*byte], 3)).collect();
    bytes.extend(end());
    for size in [1, 1 << 20] {
        let response = answered(bytes.clone(), size).await.unwrap();
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()["x-a"], "1");
        assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
        assert_eq!(read(response.into_body()).await, (b"hello".to_vec(), None));
    }
}

#[tokio::test]
async fn what_is_no_answer_is_a_fault_before_the_head() {
    let endless = stdout(vec![b'a'; MAX_HEAD + 70_000]);
    let injected = whole("X: a\rSet-Cookie: evil=1\r\n\r\n");
    for (what, bytes, kind) in [
        ("nothing", vec![], Kind::Truncated),
        ("half a header", record(6, 1, HEAD, 0)[..5].to_vec(), Kind::Truncated),
        ("half a head", stdout(&HEAD[..10]), Kind::Truncated),
        ("a record cut off", record(6, 1, HEAD, 0)[..20].to_vec(), Kind::Truncated),
        ("another request's record", record(6, 2, HEAD, 0), Kind::BadAnswer),
        ("another request's end", record(3, 7, &[0; 8], 0), Kind::BadAnswer),
        ("an unknown type", record(42, 1, b"x", 0), Kind::BadAnswer),
        ("a type of the server's", record(5, 1, b"x", 0), Kind::BadAnswer),
        ("another version", b"\x02\x06\0\x01\0\x01\0\0x".to_vec(), Kind::BadAnswer),
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), Kind::BadAnswer),
        ("an end alone", end(), Kind::BadAnswer),
        ("an end behind half a head", whole(&HEAD[..10]), Kind::BadAnswer),
        ("overload", record(3, 1, &[0, 0, 0, 0, 2, 0, 0, 0], 0), Kind::Busy),
        ("an endless head", endless, Kind::BadAnswer),
        ("an injected field", injected, Kind::BadAnswer),
        ("status 101", whole("Status: 101 Switching Protocols\r\n\r\n"), Kind::BadAnswer),
        ("status 099", whole("Status: 099\r\n\r\n"), Kind::BadAnswer),
        ("a status in words", whole("Status: fine\r\n\r\n"), Kind::BadAnswer),
    ] {
        assert_eq!(answered(bytes, 1 << 20).await.map(|r| r.status()).unwrap_err().kind, kind, "{what}");
    }
}

#[tokio::test]
async fn what_breaks_behind_the_head_breaks_the_body() {
    let start = [stdout(HEAD), stdout("hello")].concat();
    for (what, rest, kind) in [
        ("no end", vec![], Kind::Truncated),
        ("a record cut off", record(6, 1, b"hello", 0)[..10].to_vec(), Kind::Truncated),
        ("another request's record", record(6, 2, b"x", 0), Kind::BadAnswer),
        ("an unknown type", record(42, 1, b"x", 0), Kind::BadAnswer),
        ("a refusal", record(3, 1, &[0, 0, 0, 0, 3, 0, 0, 0], 0), Kind::BadAnswer),
    ] {
        for size in [1, 1 << 20] {
            let response = answered([start.clone(), rest.clone()].concat(), size).await.unwrap();
            let (data, fault) = read(response.into_body()).await;
            assert!(data.starts_with(b"hello"), "{what}");
            assert_eq!(fault, Some(kind), "{what}");
        }
    }
}

#[tokio::test]
async fn the_largest_records_pass_whole() {
    let content = vec![b'x'; 65535];
    let bytes = [record(6, 1, HEAD, 255), record(6, 1, &content, 255), record(6, 1, &content, 1), end()].concat();
    let response = answered(bytes, 1000).await.unwrap();
    let (data, fault) = read(response.into_body()).await;
    assert_eq!((data.len(), fault), (131_070, None));
}

#[tokio::test]
async fn a_head_of_64_kib_passes() {
    let text = format!("X-A: {}\r\nX-B: {}\r\n\r\nbody", "a".repeat(33_000), "b".repeat(33_000));
    let response = answered(whole(text), 1 << 20).await.unwrap();
    assert_eq!(response.headers()["x-b"].len(), 33_000);
    assert_eq!(read(response.into_body()).await.0, b"body");
}

#[tokio::test]
async fn complaints_go_to_the_log_and_not_to_the_client() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .with_max_level(tracing::Level::WARN);
    let _guard = tracing::subscriber::set_default(subscriber.finish());

    let bytes = [
        record(7, 1, b"PHP message: \x1b[31mred\nhalf", 5),
        stdout(&HEAD[..7]),
        record(7, 1, b" a line\n", 0),
        stdout(&HEAD[7..]),
        record(7, 1, &vec![b'e'; 65535], 0),
        record(7, 1, &vec![b'e'; 5000], 0),
        stdout("body"),
        record(7, 1, b"last words", 0),
        record(3, 1, &[0, 0, 0, 255, 0, 0, 0, 0], 0),
    ];
    let response = answered(bytes.concat(), 1 << 20).await.unwrap();
    assert_eq!(read(response.into_body()).await, (b"body".to_vec(), None));
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("PHP: PHP message: \\x1b[31mred"), "{log}");
    assert!(log.contains("PHP: half a line") && log.contains("GET /"), "{log}");
    assert!(log.contains("bytes on stderr were dropped") && log.len() < 20_000, "{log}");
}

#[tokio::test]
async fn a_declared_length_is_kept() {
    let declared = |body: &str| whole(format!("Content-Length: 5\r\n\r\n{body}"));
    for size in [1, 1 << 20] {
        let response = answered(declared("hello"), size).await.unwrap();
        assert_eq!(response.body().length(), Some(5));
        assert_eq!(response.headers()["content-length"], "5");
        assert_eq!(read(response.into_body()).await, (b"hello".to_vec(), None));
        let more = answered(declared("hello and more"), size).await.unwrap();
        assert_eq!(read(more.into_body()).await, (b"hello".to_vec(), Some(Kind::BadAnswer)));
        let fewer = answered(declared("hell"), size).await.unwrap();
        assert_eq!(read(fewer.into_body()).await, (b"hell".to_vec(), Some(Kind::Truncated)));
    }
}

#[tokio::test]
async fn an_answer_that_is_here_whole_has_a_length() {
    let fake = Fake::start(vec![Act::Answer(whole([HEAD, b"hello"].concat()), 1 << 20)]);
    let response = ask(&fake.upstream(|_| {}), get()).await.unwrap();
    assert_eq!(response.body().length(), Some(5));
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let text = "Content-Length: 5\r\nX-A: 1\r\n\r\nhello";
    let fake = Fake::start(vec![Act::Answer(whole(text), 1)]);
    let head = request(Request::head("/").header("host", "a.test"));
    let response = ask(&fake.upstream(|_| {}), head).await.unwrap();
    assert_eq!(response.headers()["content-length"], "5");
    assert_eq!(read(response.into_body()).await, (vec![], None));
    for (status, length) in [(204, false), (304, true)] {
        let response = answered(whole(format!("Status: {status}\r\n{text}")), 1 << 20).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers().contains_key("content-length"), length);
        assert_eq!(read(response.into_body()).await, (vec![], None));
    }
}

#[tokio::test]
async fn fields_of_the_hop_go_and_those_for_the_edge_stay() {
    let text = "Connection: close, X-Named\r\nX-Named: 1\r\nKeep-Alive: 5\r\nTransfer-Encoding: chunked\r\n\
                X-Accel-Buffering: no\r\nX-Accel-Redirect: /files/a\r\nLocation: /login\r\n\r\n";
    let response = answered(whole(text), 1 << 20).await.unwrap();
    assert_eq!(response.status(), 302);
    let mut names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["location", "x-accel-redirect"]);
}

#[tokio::test]
async fn the_request_arrives_whole_whatever_its_size() {
    let fake = Fake::start(vec![Act::Answer(whole(HEAD), 1 << 20); 3]);
    let upstream = fake.upstream(|_| {});
    for size in [0, 65_536, 1 << 20] {
        let builder = Request::post("/p?q").header("host", "a.test").header("x-large", "v".repeat(60_000));
        let request = request(builder.header("x-other", "w".repeat(60_000)));
        let body: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let sent = Body::full(body.clone());
        upstream.send(request, sent, script(), &FastCgiPool::new()).await.unwrap();
        let seen = fake.seen().pop().unwrap();
        assert_eq!(seen.stdin, body);
        assert!(!seen.keep);
        let value =
            |name: &str| seen.params.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, v)| v.clone()).unwrap();
        assert_eq!(value("CONTENT_LENGTH"), size.to_string().into_bytes());
        assert_eq!((value("HTTP_X_LARGE").len(), value("HTTP_X_OTHER").len()), (60_000, 60_000));
    }
    let large = request(Request::get("/").header("host", "a.test").header("x-large", "v".repeat(66_000)));
    assert_eq!(ask(&upstream, large).await.map(|r| r.status()).unwrap_err().kind, Kind::HeadTooLarge);
}

#[tokio::test]
async fn an_answer_before_the_body_was_read_is_no_deadlock() {
    let large = whole([HEAD, &vec![b'x'; 1 << 20]].concat());
    let fake = Fake::start(vec![Act::Early(large)]);
    let body = Body::full(vec![b'y'; 1 << 20]);
    let pool = FastCgiPool::new();
    let response = fake.upstream(|_| {}).send(post(), body, script(), &pool).await.unwrap();
    let (data, fault) = read(response.into_body()).await;
    assert_eq!((data.len(), fault), (1 << 20, None));
}

#[tokio::test]
async fn dropping_the_body_closes_the_connection() {
    let closed = Arc::new(Notify::new());
    let fake = Fake::start(vec![Act::Hang(stdout([HEAD, b"hello"].concat()), Arc::clone(&closed))]);
    let response = ask(&fake.upstream(|_| {}), get()).await.unwrap();
    drop(response);
    timeout(Duration::from_secs(10), closed.notified()).await.unwrap();
}

#[tokio::test]
async fn silence_is_a_timeout_and_a_slow_client_is_not() {
    let short = |settings: &mut Settings| {
        settings.read = Duration::from_millis(60);
        settings.send = Duration::from_millis(60);
    };
    let closed = Arc::new(Notify::new());
    let hello = [HEAD, b"hello"].concat();
    let acts = vec![
        Act::Hang(vec![], Arc::clone(&closed)),
        Act::Hang(stdout(&hello), closed),
        Act::Answer(whole([HEAD, &vec![b'x'; 3 << 20]].concat()), 65_536),
    ];
    let fake = Fake::start(acts);
    let upstream = fake.upstream(short);
    assert_eq!(ask(&upstream, get()).await.map(|r| r.status()).unwrap_err().kind, Kind::ReadTimeout);

    let response = ask(&upstream, get()).await.unwrap();
    assert_eq!(read(response.into_body()).await, (b"hello".to_vec(), Some(Kind::ReadTimeout)));

    let response = ask(&upstream, get()).await.unwrap();
    // The client takes nothing for longer than FPM may be silent.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (data, fault) = read(response.into_body()).await;
    assert_eq!((data.len(), fault), (3 << 20, None));

    let deaf = Fake::start(vec![Act::Deaf]);
    let body = Body::full(vec![b'y'; 8 << 20]);
    let pool = FastCgiPool::new();
    let failed = deaf.upstream(short).send(post(), body, script(), &pool).await;
    assert_eq!(failed.map(|r| r.status()).unwrap_err().kind, Kind::SendTimeout);
}

#[tokio::test]
async fn pools_are_taken_in_turn_and_a_dead_one_is_passed_over() {
    let (one, two) =
        (Fake::start(vec![Act::Answer(whole(HEAD), 99); 4]), Fake::start(vec![Act::Answer(whole(HEAD), 99); 4]));
    let gone = Endpoint::Unix("/nonexistent/fpm.sock".into());
    let both = upstream(vec![one.endpoint.clone(), gone.clone(), two.endpoint.clone()], |_| {});
    for _ in 0..3 {
        ask(&both, get()).await.unwrap();
    }
    assert_eq!((one.seen().len(), two.seen().len()), (1, 2));

    let started = Instant::now();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = Endpoint::Tcp("127.0.0.1".to_owned(), listener.local_addr().unwrap().port());
    drop(listener);
    let none = upstream(vec![gone, refusing], |_| {});
    assert_eq!(ask(&none, get()).await.map(|r| r.status()).unwrap_err().kind, Kind::Connect);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_full_queue_is_waited_for_and_then_busy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fpm.sock");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(1).unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = UnixStream::connect(&path).await {
        queued.push(stream);
    }
    let endpoint = Endpoint::Unix(path);
    let hasty = upstream(vec![endpoint.clone()], |settings| settings.connect = Duration::from_millis(50));
    assert_eq!(ask(&hasty, get()).await.map(|r| r.status()).unwrap_err().kind, Kind::Busy);

    socket.set_nonblocking(true).unwrap();
    let listener =
        UnixListener::from_std(std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket))).unwrap();
    let patient = upstream(vec![endpoint], |_| {});
    let server = async {
        // The queue is seen full at least once before it is emptied.
        tokio::time::sleep(Duration::from_millis(30)).await;
        drop(queued);
        perform(listener, vec![Act::Answer(whole(HEAD), 99)], Arc::default()).await;
    };
    let answer = async {
        let status = ask(&patient, get()).await.map(|r| r.status());
        assert_eq!(status.unwrap(), 200);
    };
    tokio::select! {
        () = answer => {}
        () = async { server.await; std::future::pending().await } => {}
    }
}

#[tokio::test]
async fn a_connection_is_kept_only_where_that_was_asked_for() {
    let hello = whole([HEAD, b"hello"].concat());
    let fake =
        Fake::start(vec![Act::Stay(hello.clone()), Act::Stay(hello.clone()), Act::Stay([hello, stdout("x")].concat())]);
    let (upstream, pool) = (fake.upstream(|settings| settings.keep_alive = 1), FastCgiPool::new());
    for kept in [1, 1, 0] {
        let response = upstream.send(get(), Body::Empty, script(), &pool).await.unwrap();
        assert_eq!(read(response.into_body()).await, (b"hello".to_vec(), None));
        // What follows an end unasked makes the connection useless, and it may come at any time.
        let quiet = pool.take(&fake.endpoint).map(|stream| pool.put(&fake.endpoint, stream, 1));
        assert_eq!(quiet.iter().count(), kept);
    }
    assert!(fake.seen().iter().all(|seen| seen.keep && seen.connection == 1));
}

#[tokio::test]
async fn a_kept_connection_that_died_costs_a_safe_request_nothing() {
    let hello = whole([HEAD, b"hello"].concat());
    let acts = vec![Act::Stay(hello.clone()), Act::Leave, Act::Stay(hello.clone()), Act::Leave, Act::Stay(hello)];
    let fake = Fake::start(acts);
    let (upstream, pool) = (fake.upstream(|settings| settings.keep_alive = 4), FastCgiPool::new());
    for request in [get(), get()] {
        let response = upstream.send(request, Body::Empty, script(), &pool).await.unwrap();
        assert_eq!(read(response.into_body()).await, (b"hello".to_vec(), None));
    }
    assert_eq!(fake.seen().iter().map(|seen| seen.connection).collect::<Vec<_>>(), [1, 1, 2]);
    // FPM may have done what the POST says: it is not said twice.
    let failed = upstream.send(post(), Body::Empty, script(), &pool).await;
    assert_eq!(failed.map(|r| r.status()).unwrap_err().kind, Kind::Truncated);
    assert_eq!(fake.seen().len(), 4);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_is_not_used() {
    let hello = whole([HEAD, b"hello"].concat());
    let fake = Fake::start(vec![Act::Answer(hello.clone(), 99), Act::Answer(hello, 99)]);
    let (upstream, pool) = (fake.upstream(|settings| settings.keep_alive = 4), FastCgiPool::new());
    for _ in 0..2 {
        let response = upstream.send(post(), Body::Empty, script(), &pool).await.unwrap();
        assert_eq!(read(response.into_body()).await, (b"hello".to_vec(), None));
    }
    assert_eq!(fake.seen().len(), 2);
}

#[tokio::test]
async fn idle_connections_are_few_and_do_not_grow_old() {
    let pool = FastCgiPool::new();
    let endpoint = Endpoint::Unix("/x".into());
    let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
    let (mut near, mut far): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    for stream in near.drain(..) {
        pool.put(&endpoint, BackEndStream::Unix(stream), 2);
    }
    assert_eq!(pool.len(), 2);
    drop(far.pop());
    assert!(pool.take(&endpoint).is_some(), "the newest is closed, the one before it is not");
    assert_eq!(pool.len(), 0);

    let (near, _far) = UnixStream::pair().unwrap();
    pool.put(&endpoint, BackEndStream::Unix(near), 2);
    let now = tokio::time::Instant::now();
    pool.sweep_at(now + Duration::from_secs(3));
    assert_eq!(pool.len(), 1);
    pool.sweep_at(now + Duration::from_secs(5));
    assert!(pool.is_empty());
}
