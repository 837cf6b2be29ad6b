//! What FPM gets, and how long it may take.

use tokio::time::timeout;

use super::*;

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
