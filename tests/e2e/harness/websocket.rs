//! A WebSocket client on a connection of our own.

use tokio_tungstenite::tungstenite::client::{IntoClientRequest, client};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, HandshakeError, Message, WebSocket};

use super::proxy::Proxy;
use super::raw::Raw;
use super::world::World;

/// An open WebSocket through the proxy.
pub struct Socket(WebSocket<Raw>);

impl Socket {
    /// Opens one at `path` of `host`; a refusal is a failure.
    pub fn open(world: &World, proxy: &Proxy, host: &str, path: &str) -> Socket {
        Socket::try_open(world, proxy, host, path, &[]).unwrap_or_else(|status| panic!("{path}: answered {status}"))
    }

    /// Opens one with more fields; an error is the status of the refusal.
    pub fn try_open(
        world: &World,
        proxy: &Proxy,
        host: &str,
        path: &str,
        fields: &[(&'static str, &str)],
    ) -> Result<Socket, StatusCode> {
        let url = format!("wss://{host}:{}{path}", proxy.https());
        let mut request = url.into_client_request().unwrap();
        for (name, value) in fields {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        match client(request, proxy.raw(world, host)) {
            Ok((socket, _)) => Ok(Socket(socket)),
            Err(HandshakeError::Failure(Error::Http(answer))) => Err(answer.status()),
            Err(other) => panic!("{path}: {other}"),
        }
    }

    /// Sends a text.
    pub fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).unwrap();
    }

    /// The next text.
    pub fn receive(&mut self) -> String {
        match self.0.read().unwrap() {
            Message::Text(text) => text.to_string(),
            other => panic!("expected a text, got {other:?}"),
        }
    }

    /// Sends a text and checks that it comes back.
    pub fn echoes(&mut self, text: &str) {
        self.send(text);
        assert_eq!(self.receive(), text);
    }

    /// Sends bytes and checks that they come back.
    pub fn echoes_bytes(&mut self, bytes: &[u8]) {
        self.0.send(Message::binary(bytes.to_vec())).unwrap();
        match self.0.read().unwrap() {
            Message::Binary(back) => assert!(back == bytes, "{} bytes came back changed", bytes.len()),
            other => panic!("expected bytes, got {other:?}"),
        }
    }

    /// Closes with a code, and waits until the other side has answered.
    pub fn close(mut self, code: u16) {
        self.0.close(Some(CloseFrame { code: CloseCode::from(code), reason: "".into() })).unwrap();
        while self.0.read().is_ok() {}
    }

    /// Waits for the other side's close frame and gives its code; `None` when the connection just ends.
    pub fn closed(&mut self) -> Option<u16> {
        loop {
            match self.0.read() {
                Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }
}
