//! Places at FPM, restarts, and clients that are slow or leave.

use std::time::Instant;

use tokio::time::{sleep, timeout};

use super::super::ahead::AHEAD;
use super::*;

const SOON: Duration = Duration::from_secs(10);

fn load(upstream: &PhpUpstream) -> usize {
    upstream.pools.iter().map(|fpm| fpm.gate.load(None).0).sum()
}

/// Waits until so many requests are at FPM or wait for it.
async fn until_load(upstream: &PhpUpstream, wanted: usize) {
    let waited = timeout(SOON, async {
        while load(upstream) != wanted {
            sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("the load is {} and not {wanted}", load(upstream)));
}

fn a_listener(path: &std::path::Path) -> UnixListener {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).unwrap()
}

#[tokio::test]
async fn a_slow_client_of_an_ordinary_page_holds_no_worker_and_one_of_a_large_answer_does() {
    for (size, holds) in [(AHEAD - 16 * 1024, 0), (AHEAD * 20, 1)] {
        let body = vec![b'x'; size];
        let act = Act::Answer([stdout(HEAD), stdout(&body[..100]), stdout(&body[100..]), end()].concat(), 50_000);
        let fake = Fake::start(vec![act]);
        let upstream = fake.upstream(|_| {});
        let response = ask(&upstream, get()).await.unwrap();
        if holds == 1 {
            sleep(Duration::from_millis(200)).await;
        }
        until_load(&upstream, holds).await;
        let held = upstream.pools[0].ahead.load(std::sync::atomic::Ordering::Relaxed);
        assert!(held <= AHEAD + 80 * 1024, "{held} bytes are held");
        let (data, fault) = read(response.into_body()).await;
        assert_eq!((data.len(), fault), (size, None));
        assert_eq!((load(&upstream), upstream.pools[0].ahead.load(std::sync::atomic::Ordering::Relaxed)), (0, 0));
    }
}

#[tokio::test]
async fn a_place_comes_back_wherever_a_request_ends() {
    let closed = Arc::new(Notify::new());
    let acts = vec![
        Act::Answer(b"no FastCGI at all".to_vec(), 99),
        Act::Hang(vec![], Arc::clone(&closed)),
        Act::Hang(stdout([HEAD, b"hello"].concat()), Arc::clone(&closed)),
    ];
    let fake = Fake::start(acts);
    let upstream = fake.upstream(|settings| settings.children = 1);
    assert_eq!(ask(&upstream, get()).await.map(|r| r.status()).unwrap_err().kind, Kind::BadAnswer);
    assert_eq!(load(&upstream), 0);
    // The client leaves before the answer, and in the middle of it.
    assert!(timeout(Duration::from_millis(100), ask(&upstream, get())).await.is_err());
    timeout(SOON, closed.notified()).await.unwrap();
    assert_eq!(load(&upstream), 0);
    let response = ask(&upstream, get()).await.unwrap();
    assert_eq!(load(&upstream), 1);
    drop(response);
    timeout(SOON, closed.notified()).await.unwrap();
    until_load(&upstream, 0).await;
}

#[tokio::test]
async fn what_fpm_has_not_begun_is_offered_again_whatever_its_method() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fpm.sock");
    let endpoint = Endpoint::Unix(path.clone());
    let upstream = upstream(vec![endpoint], |settings| settings.restart_window = SOON);
    let first = a_listener(&path);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let fpm = async {
        // One stands in the queue when FPM goes, one is dropped as it is accepted.
        let (stream, _) = first.accept().await.unwrap();
        drop(stream);
        sleep(Duration::from_millis(50)).await;
        drop(first);
        sleep(Duration::from_millis(50)).await;
        perform(a_listener(&path), vec![Act::Answer(whole(HEAD), 99); 2], Arc::clone(&seen)).await;
    };
    let asked = async {
        let (one, two) = tokio::join!(ask(&upstream, post()), ask(&upstream, post()));
        assert_eq!((one.unwrap().status(), two.unwrap().status()), (StatusCode::OK, StatusCode::OK));
    };
    let ended = timeout(SOON, async {
        tokio::select! {
            () = asked => {}
            () = async { fpm.await; std::future::pending().await } => {}
        }
    });
    ended.await.unwrap();
    assert_eq!(seen.lock().unwrap().len(), 2);
    assert_eq!(load(&upstream), 0);
}

#[tokio::test]
async fn a_get_whose_worker_ended_is_asked_once_more_when_the_other_workers_have_ended_too() {
    let fake = Fake::start(vec![Act::Leave, Act::Answer(whole(HEAD), 99), Act::Leave, Act::Leave]);
    let upstream = fake.upstream(|_| {});
    let started = Instant::now();
    assert_eq!(ask(&upstream, get()).await.unwrap().status(), StatusCode::OK);
    assert!(started.elapsed() >= Duration::from_millis(100), "{:?}", started.elapsed());
    assert_eq!(fake.seen().len(), 2);
    assert_eq!(ask(&upstream, get()).await.err().unwrap().kind, Kind::Truncated);
    assert_eq!(fake.seen().len(), 4);
    until_load(&upstream, 0).await;
}

#[tokio::test]
async fn a_pool_that_is_gone_for_too_long_is_refused_at_once_until_it_is_back() {
    let window = Duration::from_millis(300);
    let fake = Fake::start(vec![Act::Answer(whole(HEAD), 99)]);
    let upstream = fake.upstream(|settings| settings.restart_window = window);
    ask(&upstream, get()).await.unwrap();
    let Endpoint::Unix(path) = &fake.endpoint else { panic!("no socket") };
    std::fs::remove_file(path).unwrap();
    let started = Instant::now();
    let fault = ask(&upstream, post()).await.map(|r| r.status()).unwrap_err();
    assert!(started.elapsed() >= window && fault.kind == Kind::Busy && fault.retry_after.is_some(), "{fault}");
    assert!(fault.to_string().contains("No such file"), "{fault}");
    for _ in 0..5 {
        let started = Instant::now();
        assert_eq!(ask(&upstream, get()).await.map(|r| r.status()).unwrap_err().kind, Kind::Busy);
        assert!(started.elapsed() < window / 2, "{:?}", started.elapsed());
    }
    let acts = vec![Act::Answer(whole(HEAD), 99); 50];
    tokio::spawn(perform(a_listener(path), acts, Arc::default()));
    let back = async {
        while ask(&upstream, get()).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(2), back).await.unwrap();
    ask(&upstream, post()).await.unwrap();
}

#[tokio::test]
async fn where_one_pool_is_gone_the_other_serves_without_a_wait() {
    let fake = Fake::start(vec![Act::Answer(whole(HEAD), 99); 20]);
    let gone = Endpoint::Unix("/nonexistent/fpm.sock".into());
    let upstream = upstream(vec![gone, fake.endpoint.clone()], |settings| settings.restart_window = SOON);
    let started = Instant::now();
    for _ in 0..10 {
        ask(&upstream, post()).await.unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn busy_pools_are_left_alone_for_idle_ones() {
    let closed = Arc::new(Notify::new());
    let one = Fake::start(vec![Act::Hang(vec![], Arc::clone(&closed)), Act::Answer(whole(HEAD), 99)]);
    let two = Fake::start(vec![Act::Answer(whole(HEAD), 99); 9]);
    let upstream = upstream(vec![one.endpoint.clone(), two.endpoint.clone()], |settings| settings.children = 4);
    let asked = async {
        until_load(&upstream, 1).await;
        for _ in 0..5 {
            ask(&upstream, get()).await.unwrap();
        }
    };
    tokio::select! {
        _ = ask(&upstream, get()) => panic!("nothing was answered"),
        () = asked => {}
    }
    assert_eq!((one.seen().len(), two.seen().len()), (1, 5));
}
