//! What is written to a back end.

use super::*;

#[test]
fn the_request_is_written_anew_with_one_framing_field() {
    run(async {
        let back = answering(&[OK]).await;
        let upstream = upstream(&[&back.address]);
        let pool = Pool::new();
        let (feed, stream, _) = fed();
        feed.send(Ok(Bytes::from_static(b"abc"))).unwrap();
        drop(feed);
        let cases: Vec<(&str, Body, &[&str], &[&str])> = vec![
            ("GET", Body::Empty, &[], &["content-length", "transfer-encoding"]),
            ("DELETE", Body::Empty, &[], &["content-length", "transfer-encoding"]),
            ("OPTIONS", Body::Empty, &[], &["content-length", "transfer-encoding"]),
            ("POST", Body::Empty, &["content-length: 0\r\n"], &["transfer-encoding"]),
            ("PUT", Body::full("abc"), &["content-length: 3\r\n", "\r\n\r\nabc"], &["transfer-encoding"]),
            ("POST", stream, &["transfer-encoding: chunked\r\n", "\r\n\r\n3\r\nabc\r\n0\r\n\r\n"], &["content-length"]),
        ];
        for (method, body, has, lacks) in cases {
            let mut request = request(method, "/a%20b?q=1&x=%2F", &[("x-kept", "1"), ("keep-alive", "5")]);
            // What a route's own edits could put there.
            request.headers.insert("content-length", HeaderValue::from_static("77"));
            request.headers.insert("transfer-encoding", HeaderValue::from_static("gzip"));
            request.headers.insert("connection", HeaderValue::from_static("close"));
            request.headers.insert("host", HeaderValue::from_static("evil.test"));
            assert_eq!(text(upstream.send(request, body, &pool).await.unwrap()).await, "ok");
            let seen = back.seen.borrow_mut().pop().unwrap();
            assert!(seen.starts_with(&format!("{method} /a%20b?q=1&x=%2F HTTP/1.1\r\n")), "{seen}");
            assert_eq!(seen.matches("host: ").count(), 1 + seen.matches("x-forwarded-host: ").count(), "{seen}");
            for part in
                ["\r\nhost: app.test:8443\r\n", "\r\nx-kept: 1\r\n", "\r\nx-real-ip: 192.0.2.7\r\n"].iter().chain(has)
            {
                assert!(seen.contains(part), "{part:?} is not in {seen}");
            }
            for part in ["gzip", "close", "evil", "77", "upgrade"].iter().chain(lacks) {
                assert!(!seen.contains(part), "{part:?} is in {seen}");
            }
        }
        assert_eq!(back.accepted.get(), 1);
    });
}

#[test]
fn the_host_is_preserved_or_the_back_ends_or_a_text() {
    run(async {
        let back = answering(&[OK]).await;
        for (host, expected) in [
            (HostField::Preserve, "app.test:8443"),
            (HostField::Upstream, back.address.trim_start_matches("http://")),
            (HostField::Literal("inner.test".into()), "inner.test"),
        ] {
            let settings = Settings { host, ..settings(&[&back.address]) };
            let upstream = HttpUpstream::new(settings, &BackEndRegister::new()).unwrap();
            fetch(&upstream, &Pool::new()).await;
            let seen = back.seen.borrow_mut().pop().unwrap();
            assert!(seen.contains(&format!("\r\nhost: {expected}\r\n")), "{seen}");
        }
        assert_eq!(own_host(&HttpBackEnd::parse("https://a.test:443").unwrap()), "a.test");
        assert_eq!(own_host(&HttpBackEnd::parse("http://[::1]:80").unwrap()), "[::1]");
        assert_eq!(own_host(&HttpBackEnd::parse("http://a.test:443").unwrap()), "a.test:443");
    });
}
