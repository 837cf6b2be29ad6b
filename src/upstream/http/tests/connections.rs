//! Which connection and which back end a request gets, and when it is repeated.

use super::*;

#[test]
fn a_connection_is_reused_after_its_answer_was_read() {
    run(async {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        let back = answering(Box::leak(Box::new([OK, chunked]))).await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        for _ in 0..6 {
            assert_eq!(fetch(&upstream, &pool).await, "ok");
            assert_eq!(pool.idle(), 1);
        }
        assert_eq!(back.accepted.get(), 1);
        // Two at once need two.
        let both = tokio::join!(fetch(&upstream, &pool), fetch(&upstream, &pool));
        assert_eq!(both, ("ok".to_owned(), "ok".to_owned()));
        assert_eq!((back.accepted.get(), pool.idle()), (2, 2));
    });
}

#[test]
fn an_idle_connection_is_closed_before_the_back_end_would() {
    run(async {
        let closed = Rc::new(Cell::new(false));
        let told = Rc::clone(&closed);
        let back = back_end(move |_, mut talk| {
            let told = Rc::clone(&told);
            async move {
                while talk.hear().await.is_some() {
                    talk.say(OK).await;
                }
                told.set(true);
            }
        })
        .await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        fetch(&upstream, &pool).await;
        assert_eq!(pool.idle(), 1);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(4)).await;
        tokio::time::resume();
        // Whether or not the sweep came yet: too old to be used.
        assert_eq!(fetch(&upstream, &pool).await, "ok");
        assert_eq!(back.accepted.get(), 2);
        until(|| closed.get()).await;
    });
}

#[test]
fn the_sweep_closes_what_nobody_asks_for_and_ends() {
    run(async {
        let back = answering(&[OK]).await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        fetch(&upstream, &pool).await;
        tokio::task::yield_now().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(6)).await;
        tokio::time::resume();
        until(|| pool.idle() == 0).await;
        // And begins anew.
        fetch(&upstream, &pool).await;
        tokio::task::yield_now().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(6)).await;
        tokio::time::resume();
        until(|| pool.idle() == 0).await;
    });
}

/// Answers once, then takes a second request and closes without a word.
async fn dies_on_the_second() -> BackEnd {
    back_end(|_, mut talk| async move {
        talk.hear().await;
        talk.say(OK).await;
        talk.hear().await;
    })
    .await
}

#[test]
fn a_get_is_repeated_when_its_pooled_connection_dies_and_a_post_is_not() {
    run(async {
        let back = dies_on_the_second().await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        fetch(&upstream, &pool).await;
        assert_eq!(fetch(&upstream, &pool).await, "ok");
        assert_eq!(back.accepted.get(), 2);
        for (method, body) in [("POST", Body::Empty), ("PUT", Body::full("x"))] {
            let before = back.accepted.get();
            assert_eq!(pool.idle(), 1);
            let fault = upstream.send(request(method, "/", &[]), body, &pool).await.err().unwrap();
            assert_eq!(fault.kind, Kind::BadAnswer, "{fault}");
            assert_eq!(back.accepted.get(), before, "{method} was repeated");
            fetch(&upstream, &pool).await;
        }
    });
}

#[test]
fn a_request_is_not_repeated_on_a_new_connection() {
    run(async {
        let back = back_end(|_, mut talk| async move { drop(talk.hear().await) }).await;
        let upstream = upstream(&[&back.address]);
        let fault = upstream.send(get("/"), Body::Empty, &Pool::new()).await.err().unwrap();
        assert_eq!(fault.kind, Kind::BadAnswer);
        assert_eq!(back.accepted.get(), 1);
    });
}

#[test]
fn a_connection_that_was_closed_meanwhile_is_not_given_a_post() {
    use std::io::Read as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (close, closing) = std::sync::mpsc::channel::<()>();
    let (told, closed) = std::sync::mpsc::channel::<()>();
    // A thread of its own: it closes while our runtime stands still and cannot hear of the FIN.
    let back = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = Vec::new();
            let mut byte = [0];
            while !heard.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                heard.push(byte[0]);
            }
            stream.write_all(OK.as_bytes()).unwrap();
            closing.recv().unwrap();
            drop(stream);
            told.send(()).unwrap();
        }
    });
    run(async move {
        let upstream = upstream(&[&address]);
        let pool = Pool::new();
        for _ in 0..2 {
            let sent = upstream.send(request("POST", "/", &[]), Body::Empty, &pool).await.unwrap();
            assert_eq!((text(sent).await, pool.idle()), ("ok".to_owned(), 1));
            close.send(()).unwrap();
            closed.recv().unwrap();
        }
    });
    back.join().unwrap();
}

#[test]
fn unasked_bytes_end_an_idle_connection() {
    run(async {
        let back = answering(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            OK,
        ])
        .await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        assert_eq!(fetch(&upstream, &pool).await, "ok");
        assert_eq!(fetch(&upstream, &pool).await, "ok");
        assert_eq!(back.accepted.get(), 2);
    });
}

#[test]
fn an_http_1_0_answer_or_a_close_ends_the_connection() {
    run(async {
        for answer in [
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        ] {
            let back = answering(Box::leak(Box::new([answer]))).await;
            let upstream = upstream(&[&back.address]);
            let pool = Pool::new();
            assert_eq!(fetch(&upstream, &pool).await, "ok");
            assert_eq!(fetch(&upstream, &pool).await, "ok");
            assert_eq!((back.accepted.get(), pool.idle()), (2, 0));
        }
    });
}

#[test]
fn the_next_back_end_is_asked_when_one_cannot_be_reached() {
    run(async {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = format!("http://{}", gone.local_addr().unwrap());
        drop(gone);
        let back = answering(&[OK]).await;
        let register = BackEndRegister::new();
        let upstream = HttpUpstream::new(settings(&[&nobody, &back.address]), &register).unwrap();
        let pool = Pool::new();
        let sent = upstream.send(request("POST", "/", &[]), Body::full("body"), &pool).await.unwrap();
        assert_eq!(*who(&sent), *back.address);
        assert!(back.seen.borrow()[0].ends_with("body"));
        assert!(register.back_ends().iter().any(|known| *known.name() == nobody.as_str().into() && known.is_out()));
        let alone = HttpUpstream::new(settings(&[&nobody]), &register).unwrap();
        // It is known to be out: there is nobody to wait for.
        let fault = alone.send(get("/"), Body::Empty, &pool).await.err().unwrap();
        assert_eq!(fault.kind, Kind::Busy);
        assert!(fault.retry_after.is_some());
        assert!(fault.to_string().contains(&nobody), "{fault}");
        assert_eq!(alone.back_ends().next().unwrap().load(), 0);
    });
}

#[test]
fn a_unix_socket_is_a_back_end() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut talk = Talk { stream, seen: Rc::default() };
            while talk.hear().await.is_some() {
                talk.say(OK).await;
            }
        });
        let upstream = upstream(&[&format!("unix:{}", path.display())]);
        let pool = Pool::new();
        assert_eq!(fetch(&upstream, &pool).await, "ok");
        assert_eq!(fetch(&upstream, &pool).await, "ok");
    });
}

#[test]
fn a_sticky_cookie_is_set_once_and_leads_back() {
    run(async {
        let (one, two) = (answering(&[OK]).await, answering(&[OK]).await);
        let settings = Settings {
            sticky: Sticky::Cookie { name: "node".into(), secret: None },
            ..settings(&[&one.address, &two.address])
        };
        let upstream = HttpUpstream::new(settings, &BackEndRegister::new()).unwrap();
        let pool = Pool::new();
        let first = upstream.send(get("/"), Body::Empty, &pool).await.unwrap();
        let served = who(&first);
        let first = response(first);
        let set = first.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(set.ends_with("; Path=/; HttpOnly; SameSite=Lax; Secure"), "{set}");
        let pair = set.split(';').next().unwrap().to_owned();
        for _ in 0..4 {
            let again = request("GET", "/", &[("cookie", &format!("a=b; {pair}"))]);
            let again = upstream.send(again, Body::Empty, &pool).await.unwrap();
            assert_eq!(who(&again), served);
            assert!(!response(again).headers().contains_key("set-cookie"));
        }
        let forged = request("GET", "/", &[("cookie", "node=127.0.0.1")]);
        let forged = response(upstream.send(forged, Body::Empty, &pool).await.unwrap());
        assert!(forged.headers().contains_key("set-cookie"));
    });
}
