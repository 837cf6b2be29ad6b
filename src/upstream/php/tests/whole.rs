//! Requests that are sent whole because FPM was quick, and those that are not.

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::super::gate::{OFFERS, QUICK, UNSEEN};
use super::*;

const SOON: Duration = Duration::from_secs(10);

/// FPM was seen to take a request, and answered the last one within a moment.
fn note_quick(upstream: &PhpUpstream) {
    upstream.pools[0].gate.note_answer(Some(Duration::ZERO));
}

fn load(upstream: &PhpUpstream) -> usize {
    upstream.pools[0].gate.load(None).0
}

/// What comes first on the next connection, which is then answered `after` so long.
async fn first_words(listener: &UnixListener, after: Duration) -> Vec<u8> {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut words = vec![0; 64 * 1024];
    let length = stream.read(&mut words).await.unwrap();
    words.truncate(length);
    sleep(after).await;
    stream.write_all(&whole(HEAD)).await.unwrap();
    words
}

/// Reads as far as FPM does before it runs a script that asks for no body.
async fn receive_params(stream: &mut UnixStream) {
    loop {
        let (header, _) = receive_record(stream).await.unwrap();
        if header.kind == Type::Params && header.content == 0 {
            return;
        }
    }
}

#[tokio::test]
async fn only_what_may_be_asked_again_goes_out_whole_and_only_where_fpm_was_quick() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fpm.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let upstream = upstream(vec![Endpoint::Unix(path)], |_| {});
    // What an offer lacks.
    let (end_of_params, end_of_stdin) = (record(4, 1, b"", 0), record(5, 1, b"", 0));
    for (request, quick, after, is_whole) in [
        (get(), false, Duration::ZERO, false),
        (get(), true, QUICK * 2, true),
        (post(), true, Duration::ZERO, false),
        (get(), true, Duration::ZERO, true),
    ] {
        if quick {
            note_quick(&upstream);
        }
        let asked = format!("{} quick={quick}", request.method);
        let (response, words) =
            timeout(SOON, async { tokio::join!(ask(&upstream, request), first_words(&listener, after)) })
                .await
                .unwrap();
        assert_eq!(response.unwrap().status(), StatusCode::OK);
        let head = words.strip_suffix(&end_of_stdin[..]).unwrap_or(&words);
        assert_eq!(head.ends_with(&end_of_params), is_whole, "{asked}");
        if after >= QUICK {
            assert!(!upstream.pools[0].gate.may_be_whole(Some(1)), "a slow answer");
        }
        assert_eq!(load(&upstream), 0, "{asked}");
    }
}

#[tokio::test]
async fn long_scripts_whose_requests_were_sent_whole_keep_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fpm.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let queue_timeout = Duration::from_millis(500);
    let upstream = upstream(vec![Endpoint::Unix(path)], |settings| settings.queue_timeout = queue_timeout);
    let (first, _) = tokio::join!(ask(&upstream, post()), first_words(&listener, Duration::ZERO));
    assert!(first.is_ok());
    note_quick(&upstream);
    let all_whole = Notify::new();
    let fpm = async {
        let mut running = Vec::new();
        while running.len() < OFFERS * 3 {
            let (mut stream, _) = listener.accept().await.unwrap();
            receive_params(&mut stream).await;
            running.push(stream);
            if running.len() == UNSEEN {
                all_whole.notify_one();
            }
        }
        // They run for longer than anybody may wait for a worker.
        sleep(queue_timeout * 2).await;
        for mut stream in running {
            stream.write_all(&whole(HEAD)).await.unwrap();
        }
    };
    let asked = |count: usize| join_all((0..count).map(|_| ask(&upstream, get())));
    let others = async {
        all_whole.notified().await;
        asked(OFFERS * 3 - UNSEEN).await
    };
    let (first, others, ()) = timeout(SOON, async { tokio::join!(asked(UNSEEN), others, fpm) }).await.unwrap();
    for answer in first.into_iter().chain(others) {
        assert_eq!(answer.map(|answer| answer.status()).map_err(|fault| fault.to_string()), Ok(StatusCode::OK));
    }
    assert_eq!(load(&upstream), 0);
}

#[tokio::test]
async fn one_that_was_sent_whole_and_that_nobody_reads_is_refused_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fpm.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let upstream = upstream(vec![Endpoint::Unix(path)], |settings| {
        settings.queue_timeout = Duration::from_millis(200);
    });
    let (first, _) = tokio::join!(ask(&upstream, post()), first_words(&listener, Duration::ZERO));
    assert!(first.is_ok());
    note_quick(&upstream);
    let fault = timeout(SOON, ask(&upstream, get())).await.unwrap().err().unwrap();
    assert_eq!((fault.kind, load(&upstream)), (Kind::Busy, 0), "{fault}");
    assert!(fault.to_string().contains("no idle worker within 200ms"), "{fault}");
}

#[tokio::test]
async fn one_that_was_sent_whole_and_whose_worker_ended_is_asked_once_more_and_offered() {
    let fake = Fake::start(vec![Act::Leave, Act::Answer(whole(HEAD), 99), Act::Leave, Act::Leave]);
    let upstream = fake.upstream(|_| {});
    note_quick(&upstream);
    assert_eq!(ask(&upstream, get()).await.unwrap().status(), StatusCode::OK);
    assert_eq!(fake.seen().len(), 2);
    note_quick(&upstream);
    assert_eq!(ask(&upstream, get()).await.err().unwrap().kind, Kind::Truncated);
    assert_eq!((fake.seen().len(), load(&upstream)), (4, 0));
}

#[tokio::test]
async fn a_long_script_of_a_kept_worker_is_waited_for_although_its_request_went_in_one_piece() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fpm.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let queue_timeout = Duration::from_millis(100);
    let upstream = upstream(vec![Endpoint::Unix(path)], |settings| {
        (settings.queue_timeout, settings.keep_alive) = (queue_timeout, 1);
    });
    let fpm = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        receive(&mut stream).await.unwrap();
        stream.write_all(&whole(HEAD)).await.unwrap();
        // What is left unread hides that the rest was taken.
        receive_params(&mut stream).await;
        sleep(queue_timeout * 2).await;
        let (end, _) = receive_record(&mut stream).await.unwrap();
        stream.write_all(&whole(HEAD)).await.unwrap();
        end
    };
    let pool = FastCgiPool::new();
    let asked = |request| upstream.send(request, Body::Empty, script(), &pool);
    let client = async {
        read(asked(post()).await.unwrap().into_body()).await;
        note_quick(&upstream);
        asked(get()).await.map(|answer| answer.status()).map_err(|fault| fault.to_string())
    };
    let (end, answer) = timeout(SOON, async { tokio::join!(fpm, client) }).await.unwrap();
    assert_eq!((end.kind, end.content), (Type::Stdin, 0));
    assert_eq!((answer, load(&upstream)), (Ok(StatusCode::OK), 0));
}
