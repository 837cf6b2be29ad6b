//! WebSocket handshakes.

use super::*;

async fn switching(answer: String) -> BackEnd {
    back_end(move |_, mut talk| {
        let answer = answer.clone();
        async move {
            talk.hear().await;
            talk.say(&answer).await;
            let mut bytes = [0; 4];
            while talk.stream.read_exact(&mut bytes).await.is_ok() {
                let _ = talk.stream.write_all(&bytes).await;
            }
        }
    })
    .await
}

#[test]
fn after_a_101_the_stream_and_what_came_behind_it_are_handed_over() {
    run(async {
        let back = switching(format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\
             Sec-WebSocket-Protocol: chat\r\n\r\nfirst frame"
        ))
        .await;
        let settings =
            Settings { sticky: Sticky::Cookie { name: "node".into(), secret: None }, ..settings(&[&back.address]) };
        let upstream = HttpUpstream::new(settings, &BackEndRegister::new()).unwrap();
        let pool = Pool::new();
        let mut tunnel = switched(upstream.send(handshake(), Body::Empty, &pool).await.unwrap());
        let seen = back.seen.borrow_mut().pop().unwrap();
        for field in
            ["connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-protocol: chat"]
        {
            assert!(seen.contains(&format!("\r\n{field}\r\n")), "{field} is not in {seen}");
        }
        assert!(seen.contains(KEY) && !seen.contains("content-length"));
        assert_eq!(tunnel.response.status(), 101);
        assert!(!tunnel.response.headers().contains_key("upgrade"));
        assert!(!tunnel.response.headers().contains_key("connection"));
        assert_eq!(tunnel.response.headers()["sec-websocket-accept"], ACCEPT);
        assert_eq!(tunnel.response.headers()["sec-websocket-protocol"], "chat");
        assert!(tunnel.response.headers().contains_key("set-cookie"));
        assert_eq!(&*tunnel.back_end, back.address);
        // The system may deliver the rest apart from the head.
        let mut came = tunnel.leftover.to_vec();
        while came.len() < 11 {
            came.push(tunnel.stream.read_u8().await.unwrap());
        }
        assert_eq!(came, b"first frame");
        tunnel.stream.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        tunnel.stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
        assert_eq!((upstream.back_ends().next().unwrap().load(), pool.idle()), (1, 0));
        drop(tunnel);
        assert_eq!(upstream.back_ends().next().unwrap().load(), 0);
    });
}

#[test]
fn another_answer_to_a_handshake_is_an_ordinary_one() {
    run(async {
        for status in ["200 OK", "400 Bad Request", "426 Upgrade Required", "503 Busy"] {
            let back =
                switching(format!("HTTP/1.1 {status}\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nok")).await;
            let pool = Pool::new();
            let reply = response(upstream(&[&back.address]).send(handshake(), Body::Empty, &pool).await.unwrap());
            assert!(status.starts_with(reply.status().as_str()));
            assert!(!reply.headers().contains_key("upgrade"));
            assert_eq!(collect(reply.into_body()).await.unwrap(), b"ok");
            assert_eq!(pool.idle(), 0);
        }
    });
}

#[test]
fn a_101_that_is_no_websocket_is_refused() {
    run(async {
        for fields in [
            "Connection: Upgrade\r\nUpgrade: h2c\r\n".to_owned(),
            format!("Connection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"),
            format!("Upgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"),
            format!("Connection: keep-alive\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"),
            format!("Connection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"),
            "Connection: Upgrade\r\nUpgrade: websocket\r\n".to_owned(),
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n"
                .to_owned(),
        ] {
            let back = switching(format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n")).await;
            let upstream = upstream(&[&back.address]);
            let fault = upstream.send(handshake(), Body::Empty, &Pool::new()).await.err().unwrap();
            assert_eq!(fault.kind, Kind::BadAnswer, "{fields}");
            assert_eq!(upstream.back_ends().next().unwrap().load(), 0);
        }
    });
}
