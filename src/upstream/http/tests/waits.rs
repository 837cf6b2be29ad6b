//! Deadlines, and faults of the client's body.

use super::*;

#[test]
fn a_back_end_that_does_not_answer_times_out() {
    run(async {
        let back = back_end(|_, mut talk| async move {
            talk.hear().await;
            std::future::pending::<()>().await;
        })
        .await;
        let upstream = impatient(&back.address);
        for (method, body) in [("GET", Body::Empty), ("POST", Body::full("abc"))] {
            let fault = upstream.send(request(method, "/", &[]), body, &Pool::new()).await.err().unwrap();
            assert_eq!(fault.kind, Kind::ReadTimeout);
        }
    });
}

#[test]
fn a_back_end_that_stops_in_its_answer_times_out_but_a_slow_one_does_not() {
    run(async {
        let back = back_end(|_, mut talk| async move {
            talk.hear().await;
            talk.say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                talk.say("x").await;
            }
            std::future::pending::<()>().await;
        })
        .await;
        let reply = impatient(&back.address).send(get("/"), Body::Empty, &Pool::new()).await.unwrap();
        let mut body = response(reply).into_body();
        let mut got = 0;
        let fault = loop {
            match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap() {
                Ok(frame) => got += frame.into_data().unwrap().len(),
                Err(fault) => break fault,
            }
        };
        assert_eq!((got, fault.kind), (8, Kind::ReadTimeout));
    });
}

#[test]
fn a_back_end_that_takes_nothing_times_out_and_a_slow_client_does_not() {
    run(async {
        let back = back_end(|_, talk| async move {
            std::future::pending::<()>().await;
            drop(talk);
        })
        .await;
        let upstream = impatient(&back.address);
        let large = Body::stream(http_body_util::BodyExt::map_err(
            http_body_util::StreamBody::new(futures_util::stream::repeat_with(|| {
                Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(vec![0; 64 * 1024])))
            })),
            |never| match never {},
        ));
        let fault = upstream.send(request("POST", "/", &[]), large, &Pool::new()).await.err().unwrap();
        assert_eq!(fault.kind, Kind::SendTimeout);
        let back = answering(&[OK]).await;
        let (feed, body, _) = fed();
        tokio::task::spawn_local(async move {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_millis(80)).await;
                feed.send(Ok(Bytes::from_static(b"slow"))).unwrap();
            }
        });
        let reply = impatient(&back.address).send(request("POST", "/", &[]), body, &Pool::new()).await.unwrap();
        assert_eq!(text(reply).await, "ok");
    });
}

#[test]
fn a_fault_of_the_clients_body_comes_back_as_itself() {
    run(async {
        for kind in [Kind::BodyTooLarge, Kind::BodyTimeout, Kind::Malformed, Kind::Gone] {
            let back = back_end(|_, mut talk| async move { drop(talk.hear().await) }).await;
            let pool = Pool::new();
            let (feed, body, _) = fed();
            feed.send(Ok(Bytes::from_static(b"abc"))).unwrap();
            feed.send(Err(Fault::new(kind, "its own words"))).unwrap();
            let fault = upstream(&[&back.address]).send(request("POST", "/", &[]), body, &pool).await.err().unwrap();
            assert_eq!((fault.kind, &*fault.detail), (kind, "its own words"));
            assert_eq!(pool.idle(), 0);
        }
    });
}

#[test]
fn a_body_shorter_than_announced_is_not_passed_off_as_whole() {
    run(async {
        let whole = Rc::new(Cell::new(None));
        let told = Rc::clone(&whole);
        let back = back_end(move |_, mut talk| {
            let told = Rc::clone(&told);
            async move { told.set(Some(talk.hear().await.is_some())) }
        })
        .await;
        struct Short(Option<Bytes>);
        impl HttpBody for Short {
            type Data = Bytes;
            type Error = Fault;
            fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
                Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
            }
            fn size_hint(&self) -> http_body::SizeHint {
                http_body::SizeHint::with_exact(10)
            }
        }
        let body = Body::stream(Short(Some(Bytes::from_static(b"abc"))));
        let upstream = upstream(&[&back.address]);
        let fault = upstream.send(request("POST", "/", &[]), body, &Pool::new()).await.err().unwrap();
        assert_eq!(fault.kind, Kind::Gone, "{fault}");
        until(|| whole.get() == Some(false)).await;
    });
}

#[test]
fn a_fault_of_the_clients_body_ends_an_answer_that_has_begun() {
    run(async {
        let back = back_end(|_, mut talk| async move {
            talk.hear_head().await;
            talk.say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun").await;
            std::future::pending::<()>().await;
        })
        .await;
        let (feed, body, _) = fed();
        let reply = upstream(&[&back.address]).send(request("POST", "/", &[]), body, &Pool::new()).await.unwrap();
        feed.send(Err(Fault::new(Kind::BodyTooLarge, "its own words"))).unwrap();
        let fault = collect(response(reply).into_body()).await.unwrap_err();
        assert_eq!(fault.kind, Kind::BodyTooLarge);
    });
}
