//! Bodies on their way up.

use super::*;

/// Sends back each piece of what it hears, in a chunk of its own, until `last` has come.
async fn echoing(last: &'static str) -> BackEnd {
    back_end(move |_, mut talk| async move {
        talk.hear_head().await;
        talk.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let (mut piece, mut heard) = ([0; 1024], String::new());
        while !heard.ends_with(last) {
            let count = talk.stream.read(&mut piece).await.unwrap();
            let text = String::from_utf8(piece[..count].to_vec()).unwrap();
            talk.say(&format!("{count:x}\r\n{text}\r\n")).await;
            heard.push_str(&text);
        }
        talk.say("0\r\n\r\n").await;
        std::future::pending::<()>().await;
    })
    .await
}

async fn frame(body: &mut Body) -> Bytes {
    let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await.unwrap().unwrap();
    frame.into_data().unwrap()
}

#[test]
fn an_upload_goes_on_beside_its_answer() {
    run(async {
        let back = echoing("0\r\n\r\n").await;
        let pool = Pool::new();
        let (feed, body, dropped) = fed();
        let upstream = upstream(&[&back.address]);
        let reply = response(upstream.send(request("POST", "/", &[]), body, &pool).await.unwrap());
        let mut answer = reply.into_body();
        for word in ["one", "two", "three"] {
            feed.send(Ok(Bytes::from_static(word.as_bytes()))).unwrap();
            assert_eq!(frame(&mut answer).await, format!("{:X}\r\n{word}\r\n", word.len()));
        }
        assert!(!dropped.get());
        drop(feed);
        assert_eq!(collect(answer).await.unwrap(), b"0\r\n\r\n");
        assert!(dropped.get());
        // Both are complete.
        assert_eq!(pool.idle(), 1);
    });
}

#[test]
fn a_back_end_that_has_answered_early_is_not_blamed_for_a_slow_client() {
    run(async {
        let back = echoing("0\r\n\r\n").await;
        let upstream = impatient(&back.address);
        let (feed, body, _) = fed();
        let reply = response(upstream.send(request("POST", "/", &[]), body, &Pool::new()).await.unwrap());
        let mut answer = reply.into_body();
        let late = async {
            tokio::time::sleep(upstream.timeouts.read * 3).await;
            feed.send(Ok(Bytes::from_static(b"late"))).unwrap();
        };
        let ((), echoed) = tokio::join!(late, frame(&mut answer));
        assert_eq!(echoed, "4\r\nlate\r\n");
    });
}

#[test]
fn what_came_of_an_answer_is_not_lost_when_the_upload_breaks_off() {
    run(async {
        let back = echoing("never").await;
        let (feed, body, _) = fed();
        let upstream = upstream(&[&back.address]);
        let reply = response(upstream.send(request("POST", "/", &[]), body, &Pool::new()).await.unwrap());
        let mut answer = reply.into_body();
        feed.send(Ok(Bytes::from_static(b"said"))).unwrap();
        assert_eq!(frame(&mut answer).await, "4\r\nsaid\r\n");
        feed.send(Err(Fault::new(Kind::Gone, "gone"))).unwrap();
        assert_eq!(collect(answer).await.unwrap_err().kind, Kind::Gone);
    });
}

#[test]
fn a_body_is_written_as_its_head_says() {
    run(async {
        let back = answering(&[OK]).await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        for length in [1, 100, 5000, 1 << 20] {
            let text = "x".repeat(length);
            let whole = upstream.send(request("POST", "/", &[]), Body::full(text.clone()), &pool).await.unwrap();
            assert_eq!(self::text(whole).await, "ok");
            let seen = back.seen.borrow_mut().pop().unwrap();
            assert!(
                seen.contains(&format!("\r\ncontent-length: {length}\r\n"))
                    && seen.ends_with(&format!("\r\n\r\n{text}"))
            );
            let (feed, body, _) = fed();
            for piece in ["", &text, "", "y"] {
                feed.send(Ok(Bytes::copy_from_slice(piece.as_bytes()))).unwrap();
            }
            drop(feed);
            assert_eq!(self::text(upstream.send(request("PUT", "/", &[]), body, &pool).await.unwrap()).await, "ok");
            let seen = back.seen.borrow_mut().pop().unwrap();
            assert!(seen.ends_with(&format!("\r\n\r\n{length:X}\r\n{text}\r\n1\r\ny\r\n0\r\n\r\n")), "{length}");
        }
        assert_eq!(back.accepted.get(), 1);
    });
}

#[test]
fn a_body_longer_than_announced_is_the_clients_fault() {
    run(async {
        struct Long(Option<Bytes>);
        impl HttpBody for Long {
            type Data = Bytes;
            type Error = Fault;
            fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
                Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
            }
            fn size_hint(&self) -> http_body::SizeHint {
                http_body::SizeHint::with_exact(3)
            }
        }
        let back = answering(&[OK]).await;
        let pool = Pool::new();
        let body = Body::stream(Long(Some(Bytes::from_static(b"abcGET /smuggled HTTP/1.1\r\n\r\n"))));
        let fault = upstream(&[&back.address]).send(request("POST", "/", &[]), body, &pool).await.err().unwrap();
        assert_eq!((fault.kind, pool.idle()), (Kind::Gone, 0));
        assert!(back.seen.borrow().is_empty());
    });
}

#[test]
fn a_client_is_asked_for_more_when_the_back_end_took_what_there_was() {
    run(async {
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let wait = Rc::new(RefCell::new(Some(wait)));
        let back = back_end(move |_, mut talk| {
            let wait = wait.borrow_mut().take().unwrap();
            async move {
                let _ = wait.await;
                let (mut piece, mut end) = (vec![0; 1 << 20], Vec::new());
                while !end.ends_with(b"\r\n0\r\n\r\n") {
                    let count = talk.stream.read(&mut piece).await.unwrap();
                    end.extend_from_slice(&piece[count.saturating_sub(7)..count]);
                }
                talk.say(OK).await;
            }
        })
        .await;
        const PIECE: usize = 64 * 1024;
        const PIECES: usize = 400;
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        let pieces = futures_util::stream::iter((0..PIECES).map(move |number| {
            count.set(number + 1);
            Ok::<_, Fault>(Frame::data(Bytes::from(vec![b'x'; PIECE])))
        }));
        let body = Body::stream(http_body_util::StreamBody::new(pieces));
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        let mut sending = Box::pin(upstream.send(request("POST", "/", &[]), body, &pool));
        let stands = async {
            let mut before = 0;
            while before == 0 || asked.get() != before {
                before = asked.get();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            _ = &mut sending => panic!("answered"),
            () = stands => {}
        }
        // What the two sockets hold, and no more.
        assert!(asked.get() < PIECES, "{} pieces were asked for", asked.get());
        go.send(()).unwrap();
        assert_eq!(text(sending.await.unwrap()).await, "ok");
        assert_eq!(asked.get(), PIECES);
    });
}
