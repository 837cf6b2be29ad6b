//! What FPM sends, and what becomes of it.

use super::*;
use crate::upstream::fastcgi::answer::MAX_HEAD;

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
async fn a_script_that_only_complains_comes_to_an_end() {
    let much = record(7, 1, &[b'e'; 65_535], 0).repeat(1000);
    let said = |times| [much.repeat(times), whole([HEAD, b"hello"].concat())].concat();
    assert_eq!(answered(said(2), 1 << 20).await.map(|r| r.status()).unwrap_err().kind, Kind::BadAnswer);
    // Below the limit each time: words of the answer come between.
    let bytes = [much.clone(), stdout(HEAD), much.clone(), stdout("hello"), much, end()].concat();
    let response = answered(bytes, 1 << 20).await.unwrap();
    assert_eq!(read(response.into_body()).await, (b"hello".to_vec(), None));
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
        assert_eq!(read(more.into_body()).await, (b"hello".to_vec(), None));
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
    tokio::task::LocalSet::new()
        .run_until(async {
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
        })
        .await;
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
