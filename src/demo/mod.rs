//! Layer 6: the back ends of `doorward demo`: a small site and a WebSocket chat server, both on loopback.
//!
//! The proxy in front of them is the real one: [`config_text`] is an ordinary configuration file, printed by
//! [`banner`] and read by the ordinary load path. Nothing in here is seen by that path.

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod chat;
mod frame;
mod site;

/// The back ends, running. They end when the token given to [`start`] is cancelled.
#[derive(Debug)]
pub struct DemoBackEnds {
    /// Where the site listens: HTTP/1.1 on loopback.
    pub site: SocketAddr,
    /// Where the chat server listens: WebSocket at `/ws` on loopback.
    pub chat: SocketAddr,
    tasks: TaskTracker,
}

impl DemoBackEnds {
    /// Ready when `stop` is cancelled and every task of the back ends has ended.
    pub fn ended_when(&self, stop: CancellationToken) -> impl Future<Output = ()> + use<> {
        let tasks = self.tasks.clone();
        async move {
            stop.cancelled().await;
            tasks.close();
            tasks.wait().await;
        }
    }
}

/// Binds both back ends to free ports of 127.0.0.1 and serves them on the current runtime until `stop` is cancelled.
///
/// # Errors
///
/// When loopback has no free port.
pub async fn start(stop: CancellationToken) -> io::Result<DemoBackEnds> {
    let site = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let chat = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let tasks = TaskTracker::new();
    let back_ends = DemoBackEnds { site: site.local_addr()?, chat: chat.local_addr()?, tasks: tasks.clone() };
    let room = Arc::new(chat::Room::new());
    for (listener, role) in [(site, site::Role::Site), (chat, site::Role::Chat)] {
        tasks.spawn(site::serve(listener, role, Arc::clone(&room), tasks.clone(), stop.clone()));
    }
    Ok(back_ends)
}

/// The configuration of the demo, as one would write it in a file of one's own. Relative to its folder, the local
/// authority and its certificate come to lie in `certs-dev`.
pub fn config_text(back_ends: &DemoBackEnds, https_port: u16, http_port: u16) -> String {
    format!(
        "[server]\n\
         https = [\"127.0.0.1:{https_port}\"]\n\
         http  = [\"127.0.0.1:{http_port}\"]\n\
         \n\
         [site.demo]\n\
         hosts    = [\"localhost\"]\n\
         tls      = \"self-signed\"\n\
         upstream = \"http://{site}\"\n\
         \n\
         [site.demo.websocket]\n\
         preset = \"none\"\n\
         paths  = [\"/ws\"]\n\
         to     = \"http://{chat}\"\n",
        site = back_ends.site,
        chat = back_ends.chat,
    )
}

/// What `doorward demo` says once it listens: where to look, and `config`, the text of [`config_text`].
pub fn banner(config: &str, https_port: u16, http_port: u16) -> String {
    let mut text = format!(
        "Doorward is running with two back ends of its own: a small site and a chat over WebSocket.\n\
         \n\
         \x20 https://localhost:{https_port}    the site and its chat, both through Doorward\n\
         \x20 http://localhost:{http_port}     redirects to the line above\n\
         \n\
         The certificate comes from a local authority that was made in ./certs-dev for you. No browser knows it\n\
         yet, so yours will ask once; answer that you want to go on, or run `doorward trust` in this folder to have\n\
         this machine believe it. For curl: --cacert certs-dev/ca.pem\n\
         \n\
         This is the configuration in force. As proxy.toml, `doorward run -c proxy.toml` would do the same:\n\
         \n"
    );
    for line in config.lines() {
        // Writing to a String cannot fail.
        let _ = if line.is_empty() { writeln!(text) } else { writeln!(text, "    {line}") };
    }
    text.push_str("\nPress Ctrl-C to end it.\n");
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
    use tokio_tungstenite::tungstenite::{Bytes, Message};
    use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

    struct Demo {
        back_ends: DemoBackEnds,
        stop: CancellationToken,
    }

    impl Demo {
        async fn start() -> Demo {
            let stop = CancellationToken::new();
            Demo { back_ends: start(stop.clone()).await.unwrap(), stop }
        }

        async fn end(self) {
            self.stop.cancel();
            timeout(SOON, self.back_ends.ended_when(self.stop.clone()))
                .await
                .expect("every task ends when the demo stops");
        }
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:8443\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    async fn join(address: SocketAddr) -> Socket {
        let (mut socket, _) = timeout(SOON, connect_async(format!("ws://{address}/ws"))).await.unwrap().unwrap();
        let welcome = next(&mut socket).await;
        assert_eq!(welcome["kind"], "welcome", "{welcome}");
        socket
    }

    /// The next text message, read as JSON.
    async fn next(socket: &mut Socket) -> serde_json::Value {
        loop {
            match timeout(SOON, socket.next()).await.expect("a message in time").unwrap().unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn next_of(socket: &mut Socket, kind: &str) -> serde_json::Value {
        loop {
            let message = next(socket).await;
            if message["kind"] == kind {
                return message;
            }
        }
    }

    async fn close_code(socket: &mut Socket) -> CloseCode {
        loop {
            match timeout(SOON, socket.next()).await.expect("a close frame in time").unwrap().unwrap() {
                Message::Close(frame) => return frame.expect("a close code").code,
                _ => continue,
            }
        }
    }

    #[tokio::test]
    async fn the_site_answers_with_its_page_and_with_what_it_saw() {
        let demo = Demo::start().await;
        let page = get(demo.back_ends.site, "/").await;
        assert!(page.starts_with("HTTP/1.1 200 ") && page.contains("<title>Doorward demo</title>"), "{page}");
        assert!(page.to_ascii_lowercase().contains("content-security-policy: default-src 'none'"), "{page}");
        let seen = get(demo.back_ends.site, "/request?a=b").await;
        let seen: serde_json::Value = serde_json::from_str(seen.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(seen["target"], "/request?a=b");
        assert!(seen["headers"].as_array().unwrap().contains(&serde_json::json!(["x-forwarded-proto", "https"])));
        assert!(get(demo.back_ends.site, "/nothing").await.starts_with("HTTP/1.1 404 "));
        demo.end().await;
    }

    #[tokio::test]
    async fn a_plain_request_to_the_chat_is_told_to_upgrade() {
        let demo = Demo::start().await;
        let answer = get(demo.back_ends.chat, "/ws").await;
        assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
        assert!(get(demo.back_ends.chat, "/").await.starts_with("HTTP/1.1 404 "));
        demo.end().await;
    }

    #[tokio::test]
    async fn what_one_says_all_hear_and_an_echo_goes_to_its_sender_alone() {
        let demo = Demo::start().await;
        let mut one = join(demo.back_ends.chat).await;
        // Without the proxy the page's relative URL leads to the site, which has the same room.
        let mut other = join(demo.back_ends.site).await;
        assert_eq!(next_of(&mut one, "here").await["count"], 1);
        assert_eq!(next_of(&mut one, "here").await["count"], 2);
        one.send(Message::text(r#"{"echo": 7}"#)).await.unwrap();
        assert_eq!(next_of(&mut one, "echo").await["id"], 7);
        one.send(Message::text(r#"{"say": "good morning"}"#)).await.unwrap();
        for socket in [&mut one, &mut other] {
            let said = next_of(socket, "said").await;
            assert_eq!(said["text"], "good morning");
            assert_eq!(said["from"], "Guest 1");
        }
        other.close(None).await.unwrap();
        assert_eq!(next_of(&mut one, "here").await["count"], 1);
        demo.end().await;
    }

    #[tokio::test]
    async fn a_ping_is_answered_and_a_long_message_ends_the_socket() {
        let demo = Demo::start().await;
        let mut socket = join(demo.back_ends.chat).await;
        socket.send(Message::Ping(Bytes::from_static(b"here?"))).await.unwrap();
        loop {
            match timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap() {
                Message::Pong(payload) => break assert_eq!(&payload[..], b"here?"),
                _ => continue,
            }
        }
        socket.send(Message::text("x".repeat(frame::LONGEST_MESSAGE + 1))).await.unwrap();
        assert_eq!(close_code(&mut socket).await, CloseCode::Size);
        let mut socket = join(demo.back_ends.chat).await;
        socket.send(Message::binary(&b"\x00"[..])).await.unwrap();
        assert_eq!(close_code(&mut socket).await, CloseCode::Unsupported);
        demo.end().await;
    }

    #[tokio::test]
    async fn stopping_says_going_away_and_ends_every_task() {
        let demo = Demo::start().await;
        let mut socket = join(demo.back_ends.chat).await;
        let idle = TcpStream::connect(demo.back_ends.site).await.unwrap();
        demo.stop.cancel();
        assert_eq!(close_code(&mut socket).await, CloseCode::Away);
        demo.end().await;
        drop(idle);
    }

    #[test]
    fn the_configuration_is_toml_and_names_both_back_ends() {
        let back_ends = DemoBackEnds {
            site: "127.0.0.1:4001".parse().unwrap(),
            chat: "127.0.0.1:4002".parse().unwrap(),
            tasks: TaskTracker::new(),
        };
        let text = config_text(&back_ends, 8443, 8080);
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read["server"]["https"][0].as_str(), Some("127.0.0.1:8443"));
        assert_eq!(read["site"]["demo"]["upstream"].as_str(), Some("http://127.0.0.1:4001"));
        assert_eq!(read["site"]["demo"]["websocket"]["to"].as_str(), Some("http://127.0.0.1:4002"));
        let banner = banner(&text, 8443, 8080);
        let indented: Vec<&str> = banner.lines().filter_map(|l| l.strip_prefix("    ")).collect();
        assert_eq!(indented, text.lines().filter(|l| !l.is_empty()).collect::<Vec<_>>(), "{banner}");
    }
}
