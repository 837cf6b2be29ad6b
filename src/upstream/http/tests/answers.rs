//! Answers, sound and unsound.

use super::*;

#[test]
fn an_early_answer_is_delivered_and_ends_the_upload() {
    run(async {
        // With the rest of the body unread, closing resets the connection under our writes.
        for closes in [true, false] {
            let back = back_end(move |_, mut talk| async move {
                talk.hear_head().await;
                talk.say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
                if !closes {
                    let mut sink = [0; 1024];
                    while talk.stream.read(&mut sink).await.is_ok_and(|n| n > 0) {}
                }
            })
            .await;
            let upstream = upstream(&[&back.address]);
            let pool = Pool::new();
            let (feed, body, dropped) = fed();
            let source = tokio::task::spawn_local(async move {
                while feed.send(Ok(Bytes::from(vec![0; 16 * 1024]))).is_ok() {
                    tokio::task::yield_now().await;
                }
            });
            let reply = response(upstream.send(request("POST", "/", &[]), body, &pool).await.unwrap());
            assert_eq!(reply.status(), 413);
            assert_eq!(collect(reply.into_body()).await.unwrap(), b"big");
            until(|| dropped.get()).await;
            source.await.unwrap();
            assert_eq!(pool.idle(), 0);
        }
    });
}

#[test]
fn an_answer_that_breaks_off_is_seen_to_break_off() {
    run(async {
        for (answer, kind) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", Kind::Truncated),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", Kind::Truncated),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nha", Kind::Truncated),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n", Kind::BadAnswer),
        ] {
            let back = back_end(move |_, mut talk| async move {
                talk.hear().await;
                talk.say(answer).await;
            })
            .await;
            let pool = Pool::new();
            let reply = upstream(&[&back.address]).send(get("/"), Body::Empty, &pool).await.unwrap();
            let fault = collect(response(reply).into_body()).await.unwrap_err();
            assert_eq!(fault.kind, kind, "{answer:?}: {fault}");
            assert_eq!(pool.idle(), 0);
        }
    });
}

#[test]
fn the_client_has_a_moment_to_see_what_came_before_an_answer_broke_off() {
    run(async {
        for part in ["", "half"] {
            let back = back_end(move |_, mut talk| async move {
                talk.hear().await;
                talk.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{part}")).await;
            })
            .await;
            let reply = upstream(&[&back.address]).send(get("/"), Body::Empty, &Pool::new()).await.unwrap();
            // The end has come as well.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut body = response(reply).into_body();
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mut poll = || match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Pending => "waits".to_owned(),
                Poll::Ready(None) => "whole".to_owned(),
                Poll::Ready(Some(Err(fault))) => format!("{:?}", fault.kind),
                Poll::Ready(Some(Ok(frame))) => String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap(),
            };
            assert!(part.is_empty() || poll() == part);
            assert_eq!([poll(), poll(), poll()], ["waits", "Truncated", "whole"]);
        }
    });
}

#[test]
fn an_answer_that_is_none_is_refused() {
    run(async {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(200));
        let large = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(200 * 1024));
        let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(40_000);
        let cases = [
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 099 No\r\n\r\n",
            "HTTP/1.1 20 No\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
            "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nokk",
            "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: \0\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\rc\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\na : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            &many,
            &large,
            &flood,
        ];
        for answer in cases {
            let owned = answer.to_owned();
            let back = back_end(move |_, mut talk| {
                let owned = owned.clone();
                async move {
                    talk.hear().await;
                    talk.say(&owned).await;
                }
            })
            .await;
            let pool = Pool::new();
            let told = &answer[..answer.len().min(80)];
            match upstream(&[&back.address]).send(get("/"), Body::Empty, &pool).await {
                Ok(_) => panic!("{told:?} was taken"),
                Err(fault) => assert!(matches!(fault.kind, Kind::BadAnswer | Kind::Truncated), "{told:?}: {fault:?}"),
            }
            assert_eq!(pool.idle(), 0);
        }
    });
}

#[test]
fn an_answer_is_cleaned_of_what_ends_at_this_hop() {
    run(async {
        let back = answering(&[
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nServer: s\r\nConnection: keep-alive, X-Hop\r\n\
             X-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-Kept: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nok",
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        ])
        .await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        let answer = response(upstream.send(get("/"), Body::Empty, &pool).await.unwrap());
        let names: Vec<_> = answer.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(
            (&answer.headers()["server"], &answer.headers()["x-kept"]),
            (&"s".parse().unwrap(), &"1".parse().unwrap())
        );
        assert_eq!(answer.headers().get_all("set-cookie").iter().count(), 2);
        assert_eq!(answer.headers()["content-length"], "2");
        assert_eq!(answer.body().length(), Some(2));
        assert_eq!(collect(answer.into_body()).await.unwrap(), b"ok");
        let empty = response(upstream.send(get("/"), Body::Empty, &pool).await.unwrap());
        assert!(empty.headers().is_empty());
        assert_eq!(empty.body().length(), Some(0));
        assert_eq!(back.accepted.get(), 1);
    });
}

#[test]
fn the_answer_to_head_keeps_its_length_and_has_no_body() {
    run(async {
        let back = answering(&["HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"]).await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        for _ in 0..2 {
            let answer = response(upstream.send(request("HEAD", "/", &[]), Body::Empty, &pool).await.unwrap());
            assert_eq!(answer.headers()["content-length"], "5000");
            assert_eq!(collect(answer.into_body()).await.unwrap(), b"");
        }
        assert_eq!(back.accepted.get(), 1);
    });
}

#[test]
fn an_event_passes_before_the_next_one_exists() {
    run(async {
        let (go, wait) = mpsc::unbounded_channel::<()>();
        let wait = Rc::new(RefCell::new(Some(wait)));
        let back = back_end(move |_, mut talk| {
            let mut wait = wait.borrow_mut().take().unwrap();
            async move {
                talk.hear().await;
                talk.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await;
                for event in ["data: 1\n\n", "data: 2\n\n"] {
                    wait.recv().await;
                    talk.say(&format!("{:x}\r\n{event}\r\n", event.len())).await;
                }
                talk.say("0\r\n\r\n").await;
            }
        })
        .await;
        let upstream = upstream(&[&back.address]);
        let mut body = response(upstream.send(get("/"), Body::Empty, &Pool::new()).await.unwrap()).into_body();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            go.send(()).unwrap();
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), event);
        }
        assert!(collect(body).await.unwrap().is_empty());
    });
}

#[test]
fn a_client_that_leaves_frees_its_back_end() {
    run(async {
        let freed = Rc::new(Cell::new(0));
        let told = Rc::clone(&freed);
        let back = back_end(move |number, mut talk| {
            let told = Rc::clone(&told);
            async move {
                talk.hear().await;
                if number == 0 {
                    talk.say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbeginning").await;
                }
                let mut byte = [0; 1];
                assert!(!talk.stream.read(&mut byte).await.is_ok_and(|n| n > 0));
                told.set(told.get() + 1);
            }
        })
        .await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        let answer = response(upstream.send(get("/"), Body::Empty, &pool).await.unwrap());
        assert_eq!(upstream.back_ends().next().unwrap().load(), 1);
        drop(answer);
        until(|| freed.get() == 1).await;
        assert_eq!(upstream.back_ends().next().unwrap().load(), 0);
        // And before the answer's head.
        let mut sending = Box::pin(upstream.send(get("/"), Body::Empty, &pool));
        let seen = Rc::clone(&back.seen);
        tokio::select! {
            _ = &mut sending => panic!("answered"),
            () = until(|| seen.borrow().len() == 2) => {}
        }
        drop(sending);
        until(|| freed.get() == 2).await;
        assert_eq!((upstream.back_ends().next().unwrap().load(), pool.idle()), (0, 0));
    });
}

#[test]
fn an_answer_ends_as_its_head_says() {
    run(async {
        // Status and fields, what follows, the body, and whether the connection is kept.
        for (method, head, rest, body, kept) in [
            ("GET", "HTTP/1.1 200 OK\r\n", "until the close", Some("until the close"), false),
            ("GET", "HTTP/1.0 200 OK\r\n", "until the close", Some("until the close"), false),
            ("GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n", "ok", Some("ok"), false),
            ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", "", Some(""), true),
            ("GET", "HTTP/1.1 204 No Content\r\n", "", Some(""), true),
            ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", Some(""), false),
            ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n", "", Some(""), true),
            ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", "", Some(""), true),
            ("HEAD", "HTTP/1.1 200 OK\r\n", "", Some(""), true),
            (
                "GET",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n",
                "2;x=y\r\nok\r\n0\r\nA: b\r\n\r\n",
                Some("ok"),
                true,
            ),
            ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", "2\nok\r\n0\r\n\r\n", None, false),
            ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\n", None, false),
            ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", "okHTTP/1.1 200 OK\r\n\r\n", Some("ok"), false),
        ] {
            let closes = !kept;
            let back = back_end(move |_, mut talk| async move {
                talk.hear_head().await;
                talk.say(head).await;
                talk.say("\r\n").await;
                talk.say(rest).await;
                if !closes {
                    std::future::pending::<()>().await;
                }
            })
            .await;
            let pool = Pool::new();
            let upstream = upstream(&[&back.address]);
            let reply = response(upstream.send(request(method, "/", &[]), Body::Empty, &pool).await.unwrap());
            let got = collect(reply.into_body()).await;
            assert_eq!(got.as_ref().ok().map(Vec::as_slice), body.map(str::as_bytes), "{head:?} {rest:?}: {got:?}");
            assert!(kept || pool.take(&back.address, false).is_none(), "{head:?} {rest:?}");
            assert_eq!(pool.idle(), usize::from(kept), "{head:?} {rest:?}");
        }
    });
}
