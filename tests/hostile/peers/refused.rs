//! A tunnel is opened by a back end's 101 and by nothing else; what stands behind a handshake is a request until then.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::edge::{Edge, read_to_end, send};
use crate::h2_client::{Client, End, extended, request};

/// What back ends answer to a handshake instead of the right 101, and the status that the client gets.
const ANSWERS: [(&str, &str, u16); 24] = [
    ("200", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200),
    ("200-upgrade", "HTTP/1.1 200 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok", 200),
    ("204", "HTTP/1.1 204 No Content\r\n\r\n", 204),
    ("302", "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", 302),
    ("400", "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno", 400),
    ("401", "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", 401),
    ("426", "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno", 426),
    ("503", "HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", 503),
    ("101-h2c", "HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n", 502),
    (
        "101-list",
        "HTTP/1.1 101 X\r\nUpgrade: websocket, h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        502,
    ),
    (
        "101-twice",
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        502,
    ),
    ("101-nothing", "HTTP/1.1 101 X\r\n\r\n", 502),
    ("101-no-connection", "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n", 502),
    ("101-no-accept", "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 502),
    (
        "101-wrong-accept",
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOp=\r\n\r\n",
        502,
    ),
    ("101-line-feeds", "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Up\ngrade\r\n\r\n", 502),
    ("100-only", "HTTP/1.1 100 Continue\r\n\r\n", 502),
    ("103-only", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 502),
    ("half", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso", 502),
    ("half-line", "HTTP/1.1 1", 502),
    ("garbage", "\x16\x03\x01 garbage\r\n\r\n", 502),
    ("frames", "\x01\x05hello\r\n\r\n", 502),
    ("nothing", "", 502),
    ("http-2", "HTTP/2 101\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 502),
];

/// Says what the path asks for, and waits a moment for whatever may come through a tunnel that should not be.
fn refusing() -> Script {
    Script::start(|asked| {
        let name = asked.path().trim_start_matches("/socket/").to_owned();
        let (_, answer, status) = ANSWERS.iter().find(|(case, ..)| *case == name).expect("a case");
        let accept = asked.yes();
        let accept = accept.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Accept: ")).unwrap_or_default();
        asked.say(answer.replace("{}", accept));
        *status != 502
    })
}

#[test]
fn nothing_but_a_true_101_opens_a_tunnel_and_what_follows_is_a_request() {
    let back_end = refusing();
    let edge = Edge::start(back_end.address, "");
    for (case, _, status) in ANSWERS {
        let mut stream = edge.connect();
        send(&mut stream, (handshake(&format!("/socket/{case}")) + CANARY).as_bytes());
        let answers = String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned();
        let heads: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).collect();
        let statuses: Vec<&str> = heads.iter().filter_map(|head| head.get(..3)).collect();
        assert_eq!(statuses, [status.to_string().as_str(), "200"], "{case}: {answers}");
        assert!(heads[1].ends_with("canary"), "{case}: {answers}");
        let first = heads[0].to_ascii_lowercase();
        assert!(!first.contains("upgrade: ") && !first.contains("sec-websocket-accept"), "{case}: {answers}");
        let seen = back_end.take();
        assert_eq!(seen.len(), 2, "{case}: {seen:?}");
        assert!(seen[1].starts_with("GET /canary HTTP/1.1\r\n"), "{case}: {seen:?}");
    }
    eventually("the connections of wrong answers are closed", || back_end.open() <= 1);
}

#[test]
fn nothing_but_a_true_101_opens_a_tunnel_over_http2() {
    let back_end = refusing();
    let edge = Edge::start(back_end.address, "");
    for (case, _, status) in ANSWERS {
        let mut client = Client::connect(edge.https);
        client.ask(1, &extended(&format!("/socket/{case}"), "websocket"), None);
        // 2xx would open the socket (RFC 8441, section 5).
        let expected = if status < 300 { 502 } else { status };
        let end = client.end(1);
        assert!(matches!(end, End::Answer(got, _) if got == expected), "{case}: {end:?}");
        client.ask(3, &request("GET", "/canary", &[]), None);
        // The status is in the table of a decoder that this client does not have where the first had the same one.
        let end = client.end(3);
        assert!(matches!(end, End::Answer(200, 6)), "{case}: {end:?}");
        let seen = back_end.take();
        assert_eq!(seen.len(), 2, "{case}: {seen:?}");
    }
}

#[test]
fn a_101_that_nobody_asked_for_is_a_502() {
    let back_end = Script::start(|asked| {
        asked.say(asked.yes() + "\x02\x7f and more");
        false
    });
    let edge = Edge::start(back_end.address, "");
    for raw in [
        "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(),
        "HEAD /x HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(),
        // Not where sockets go, and not a handshake.
        handshake("/x"),
        handshake("/socket/x").replace("Connection: Upgrade", "Connection: keep-alive"),
        handshake("/socket/x").replace("HTTP/1.1", "HTTP/1.0"),
    ] {
        let mut stream = edge.connect();
        send(&mut stream, (raw.clone() + CANARY).as_bytes());
        let answers = String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned();
        assert!(answers.starts_with("HTTP/1.1 502 ") || answers.starts_with("HTTP/1.0 502 "), "{raw:?}: {answers}");
        assert!(!answers.contains("and more"), "{raw:?}: {answers}");
    }
    let mut client = Client::connect(edge.https);
    client.ask(1, &request("GET", "/x", &[]), None);
    assert!(matches!(client.end(1), End::Answer(502, _)));
}

#[test]
fn a_handshake_that_is_not_answered_is_given_up() {
    let back_end = Script::start(|asked| {
        asked.rest();
        false
    });
    let edge = Edge::start(back_end.address, "[timeouts]\nread = \"1s\"");
    let mut stream = edge.connect();
    send(&mut stream, (handshake("/socket/x") + CANARY).as_bytes());
    let answers = String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned();
    assert!(answers.starts_with("HTTP/1.1 504 ") && answers.ends_with("canary"), "{answers}");
    let mut client = Client::connect(edge.https);
    client.ask(1, &extended("/socket/x", "websocket"), None);
    assert!(matches!(client.end(1), End::Answer(504, _)));
    eventually("the back end is let go", || back_end.open() <= 1);
}

/// What came before the answer, and behind it.
type Came = (Vec<u8>, Vec<u8>);

/// A back end that answers when it is told to, and then sends what it got.
fn withholding() -> (Script, mpsc::Sender<&'static str>, mpsc::Receiver<Came>) {
    let (answer, answers) = mpsc::channel::<&'static str>();
    let (tell, told) = mpsc::channel();
    let (answers, tell) = (Mutex::new(answers), Mutex::new(tell));
    let back_end = Script::start(move |asked| {
        let answer = answers.lock().expect("not poisoned").recv_timeout(DEADLINE).expect("an answer");
        // What came before the answer was given.
        asked.stream.set_nonblocking(true).expect("a socket");
        let mut early = [0; 64];
        let early = asked.stream.read(&mut early).map(|n| early[..n].to_vec()).unwrap_or_default();
        asked.stream.set_nonblocking(false).expect("a socket");
        if answer == "yes" {
            asked.say(asked.yes());
            let rest = asked.rest();
            tell.lock().expect("not poisoned").send((early, rest)).expect("the test listens");
            return false;
        }
        tell.lock().expect("not poisoned").send((early, Vec::new())).expect("the test listens");
        asked.say(answer);
        true
    });
    (back_end, answer, told)
}

#[test]
fn bytes_behind_a_handshake_wait_for_its_answer() {
    let (back_end, answer, told) = withholding();
    let edge = Edge::start(back_end.address, "");
    // It may become a request or a part of a tunnel.
    let behind = "GET /canary HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";

    let mut stream = edge.connect();
    send(&mut stream, (handshake("/socket/x") + behind).as_bytes());
    back_end.wait_for_head();
    answer.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").expect("the back end waits");
    assert!(told.recv_timeout(DEADLINE).expect("told").0.is_empty(), "something was sent before the answer");
    let answers = String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned();
    assert!(answers.starts_with("HTTP/1.1 403 ") && answers.ends_with("canary"), "{answers}");
    assert_eq!(back_end.take().len(), 1);

    // The same bytes behind a 101 are the socket's, a byte at a time as well.
    for piece in [behind.len(), 1] {
        let mut stream = edge.connect();
        stream.set_nodelay(true).expect("a socket");
        send(&mut stream, handshake("/socket/x").as_bytes());
        back_end.wait_for_head();
        for part in behind.as_bytes().chunks(piece) {
            send(&mut stream, part);
        }
        answer.send("yes").expect("the back end waits");
        assert!(read_head(&mut stream).starts_with("HTTP/1.1 101 "));
        drop(stream);
        let (early, came) = told.recv_timeout(DEADLINE).expect("told");
        assert!(early.is_empty(), "something was sent before the answer");
        assert_eq!(String::from_utf8_lossy(&came), behind);
        assert!(back_end.take().is_empty(), "it was read as a request");
    }
}

#[test]
fn what_is_no_request_behind_a_refused_handshake_is_400_and_the_end() {
    let back_end = Script::start(|asked| {
        asked.say("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        true
    });
    let edge = Edge::start(back_end.address, "");
    let mut stream = edge.connect();
    send(&mut stream, &[handshake("/socket/x").as_bytes(), &frame(0x81, b"hello\r\n\r\n"), CANARY.as_bytes()].concat());
    let answers = String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned();
    assert!(answers.starts_with("HTTP/1.1 403 ") && answers.contains("HTTP/1.1 400 "), "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 2, "{answers}");
    assert_eq!(back_end.take().len(), 1, "the canary behind garbage was asked");
}

#[test]
fn so_much_is_held_behind_an_unanswered_handshake_and_no_more() {
    let (back_end, answer, told) = withholding();
    let edge = Edge::start(back_end.address, "");
    let mut stream = edge.connect();
    send(&mut stream, handshake("/socket/x").as_bytes());
    back_end.wait_for_head();
    let (client, server) = (stream.local_addr().expect("bound"), edge.http);
    let message = frame(0x82, &vec![7; 8 << 20]);
    let written = Arc::new(AtomicU64::new(0));
    let (mut writer, count) = (stream.try_clone().expect("a second handle"), Arc::clone(&written));
    let expected = message.clone();
    let writing = std::thread::spawn(move || {
        for piece in message.chunks(4096) {
            writer.write_all(piece).expect("all is taken in the end");
            count.fetch_add(4096, Ordering::Relaxed);
        }
    });
    // What was written, less what lies with either kernel, is with the edge.
    let waiting = || {
        let (unread, _, _) = kernel_view(server, client).expect("the edge's side");
        let (_, unsent, _) = kernel_view(client, server).expect("the client's side");
        (written.load(Ordering::Relaxed), unread, unsent)
    };
    eventually("the edge takes no more", || {
        let before = waiting();
        std::thread::sleep(Duration::from_millis(300));
        // Which of the two kernels holds how much of it depends on what else the machine does.
        before.1 + before.2 > 100_000 && waiting() == before
    });
    let (written, unread, unsent) = waiting();
    let held = written.saturating_sub(unread + unsent);
    // What was read last may go beyond the limit, and a piece that is being written is not counted yet.
    assert!((60 << 10..=192 << 10).contains(&held), "{held} of {written} bytes");
    answer.send("yes").expect("the back end waits");
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 101 "));
    writing.join().expect("it ends");
    drop(stream);
    let (early, came) = told.recv_timeout(DEADLINE).expect("told");
    assert!(early.is_empty(), "something was sent before the answer");
    assert!(came == expected, "{} of {} bytes", came.len(), expected.len());
}

#[test]
fn what_is_no_handshake_is_a_plain_request_wherever_it_goes() {
    let back_end = Script::start(|asked| {
        asked.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        true
    });
    let edge = Edge::start(back_end.address, "");
    let good = handshake("/socket/x");
    let without = |line: &str| good.replace(&format!("{line}\r\n"), "");
    let instead = |line: &str, other: &str| {
        assert!(good.contains(line));
        good.replace(line, other)
    };
    let upgrade = |to: &str| instead("Upgrade: websocket", &format!("Upgrade: {to}"));
    let key = format!("Sec-WebSocket-Key: {KEY}");
    for (what, raw) in [
        ("h2c", upgrade("h2c")),
        (
            "h2c with settings",
            instead(
                "Upgrade: websocket\r\nConnection: Upgrade",
                "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings",
            ),
        ),
        ("h2c first", upgrade("h2c, websocket")),
        ("h2c behind", upgrade("websocket, h2c")),
        ("h2c beside", upgrade("h2c\r\nUpgrade: websocket")),
        ("TLS", upgrade("TLS/1.0")),
        ("both", upgrade("TLS/1.2, HTTP/1.1")),
        ("a version", upgrade("websocket/13")),
        ("unknown", upgrade("connect-udp")),
        ("empty", upgrade("")),
        ("HTTP/1.0", instead("HTTP/1.1", "HTTP/1.0")),
        ("no Connection", without("Connection: Upgrade")),
        ("another Connection", instead("Connection: Upgrade", "Connection: keep-alive")),
        ("almost a Connection", instead("Connection: Upgrade", "Connection: Upgrade2")),
        ("no Upgrade", without("Upgrade: websocket")),
        ("HEAD", instead("GET ", "HEAD ")),
        ("OPTIONS", instead("GET ", "OPTIONS ")),
        ("777", instead("Version: 13", "Version: 777")),
        ("8", instead("Version: 13", "Version: 8")),
        ("013", instead("Version: 13", "Version: 013")),
        ("a list", instead("Version: 13", "Version: 13, 8")),
        ("no version", without("Sec-WebSocket-Version: 13")),
        ("two versions", instead("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 8")),
        ("no key", without(&key)),
        ("two keys", instead(&key, &format!("{key}\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="))),
    ] {
        for raw in [raw.clone(), raw.replace("/socket/x", "/x")] {
            let mut stream = edge.connect();
            // What follows an HTTP/1.0 request is on a connection of its own.
            let canary = if raw.contains("HTTP/1.0") { "" } else { CANARY };
            send(&mut stream, (raw.clone() + canary).as_bytes());
            let answers = String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned();
            assert!(answers.starts_with("HTTP/1.1 200 ") || answers.starts_with("HTTP/1.0 200 "), "{what}: {answers}");
            assert!(canary.is_empty() || answers.ends_with("canary"), "{what}: {answers}");
            let seen = back_end.take();
            let head = seen[0].to_ascii_lowercase();
            for gone in ["\r\nupgrade:", "\r\nhttp2-settings:", "\r\nsec-websocket-", "\r\nconnection:"] {
                assert!(!head.contains(gone), "{what}: {head}");
            }
        }
    }
    // With a body they are plain requests as well, and the body is one.
    for fields in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
        let body = if fields.starts_with('C') { "hello" } else { "5\r\nhello\r\n0\r\n\r\n" };
        let recorder = crate::back_end::BackEnd::start();
        let edge = Edge::start(recorder.address, "");
        for method in ["GET", "POST"] {
            let raw = handshake_with("/socket/x", fields).replace("GET ", &format!("{method} "));
            let mut stream = edge.connect();
            send(&mut stream, (raw + body + CANARY).as_bytes());
            let answers = String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned();
            assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 2, "{method} {fields:?}: {answers}");
            let seen = recorder.take();
            assert_eq!((seen.len(), seen[0].body.as_str()), (2, body), "{method} {fields:?}: {seen:?}");
            assert!(!seen[0].head.to_ascii_lowercase().contains("\r\nupgrade:"), "{seen:?}");
        }
    }
}

#[test]
fn an_odd_key_is_for_the_back_end_to_judge_and_its_answer_is_checked() {
    let back_end = Script::echo();
    let edge = Edge::start(back_end.address, "");
    for key in ["x", "dGhlIHNhbXBsZSBub25jZQ", "not base64 at all", ""] {
        let mut stream = open_with(&edge, &handshake("/socket/x").replace(KEY, key));
        echoes(&mut stream, b"hello");
        let head = back_end.take().remove(0);
        assert!(head.contains(&format!("\r\nsec-websocket-key: {key}\r\n")), "{head}");
    }
}

#[test]
fn a_client_that_leaves_during_its_handshake_lets_go_of_the_back_end() {
    let back_end = Script::start(|asked| {
        asked.rest();
        false
    });
    let edge = Edge::start(back_end.address, "");
    for behind in [&b""[..], &[0x82; 1000]] {
        let mut stream = edge.connect();
        send(&mut stream, handshake("/socket/x").as_bytes());
        send(&mut stream, behind);
        back_end.wait_for_head();
        assert_eq!(back_end.open(), 1);
        drop(stream);
        eventually("the back end is let go", || back_end.open() == 0);
    }
}
