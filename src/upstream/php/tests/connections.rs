//! Which connection a request takes, and which are kept.

use std::time::Instant;

use super::*;
use crate::upstream::connect::BackEndStream;

#[tokio::test]
async fn pools_are_taken_in_turn_and_a_dead_one_is_passed_over() {
    let (one, two) =
        (Fake::start(vec![Act::Answer(whole(HEAD), 99); 4]), Fake::start(vec![Act::Answer(whole(HEAD), 99); 4]));
    let gone = Endpoint::Unix("/nonexistent/fpm.sock".into());
    let both = upstream(vec![one.endpoint.clone(), gone.clone(), two.endpoint.clone()], |_| {});
    for _ in 0..3 {
        ask(&both, get()).await.unwrap();
    }
    let (one, two) = (one.seen().len(), two.seen().len());
    assert!(one + two == 3 && one > 0 && two > 0, "{one} and {two}");

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
    let hasty = upstream(vec![endpoint.clone()], |settings| settings.queue_timeout = Duration::from_millis(50));
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
    // The runtime looks at its sockets.
    tokio::time::sleep(Duration::from_millis(1)).await;
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
