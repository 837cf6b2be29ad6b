//! The first bytes of a client on a TLS port, before anything is decided: whether they are a ClientHello, and whether it
//! deserves a handshake. Nothing here waits or writes; whoever holds the socket says what is to be said.

use std::io::{self, Read};

use rustls::server::{Accepted, Acceptor, ServerConfig};

use super::policy::ALPN_H1;

/// Why a handshake came to nothing. Whatever there was to say to the client has been said.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It was not complete within the deadline.
    #[error("the handshake was not complete in time")]
    Timeout,
    /// The client speaks HTTP without TLS; it was told so.
    #[error("plain HTTP on a TLS port")]
    PlainHttp,
    /// The first bytes are of no TLS record.
    #[error("not TLS")]
    NotTls,
    /// No site has a certificate for this name, or for a client that names none.
    #[error("no certificate for {}", name.as_deref().unwrap_or("a client that sends no server name"))]
    UnknownName {
        /// The name the client asked for.
        name: Option<String>,
    },
    /// The client offers none of our protocols.
    #[error("the client speaks none of the protocols that are offered (ALPN)")]
    NoCommonProtocol,
    /// The client went away.
    #[error("the client left during the handshake")]
    ClientLeft(#[source] io::Error),
    /// The handshake failed by the rules of TLS.
    #[error("the handshake failed")]
    Tls(#[source] rustls::Error),
}

impl From<rustls::Error> for AcceptError {
    fn from(error: rustls::Error) -> AcceptError {
        use rustls::InvalidMessage::{InvalidContentType, MessageTooLarge, UnknownProtocolVersion};
        match error {
            rustls::Error::NoApplicationProtocol => AcceptError::NoCommonProtocol,
            rustls::Error::InvalidMessage(InvalidContentType | MessageTooLarge | UnknownProtocolVersion) => {
                AcceptError::NotTls
            }
            error => AcceptError::Tls(error),
        }
    }
}

/// Why there is no handshake, and what to say to the client.
#[derive(Debug)]
pub struct Refusal {
    /// Why.
    pub error: AcceptError,
    /// An alert in a record of its own, an answer in plain HTTP, or nothing.
    pub answer: Vec<u8>,
}

impl Refusal {
    /// One about which there is nobody to tell.
    pub fn silent(error: AcceptError) -> Refusal {
        Refusal { error, answer: Vec::new() }
    }
}

/// Bytes that are read for a ClientHello. rustls takes one of 64 KiB; this leaves room for the headers of its records.
const MOST: usize = 128 * 1024;

/// Collects a ClientHello, however its bytes are cut.
#[derive(Default)]
pub struct HelloReader {
    acceptor: Acceptor,
    received: Vec<u8>,
}

impl HelloReader {
    /// Reads from `source` once. `None` where there is no whole ClientHello yet.
    ///
    /// # Errors
    /// There will never be one.
    pub fn read(&mut self, source: &mut impl Read) -> Result<Option<Accepted>, Refusal> {
        let left = |error| Refusal::silent(AcceptError::ClientLeft(error));
        match self.acceptor.read_tls(&mut Copied { source, received: &mut self.received }) {
            Ok(0) => return Err(left(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(left(error)),
        }
        if self.received.len() > MOST {
            let error = rustls::Error::InvalidMessage(rustls::InvalidMessage::HandshakePayloadTooLarge);
            return Err(Refusal::silent(AcceptError::Tls(error)));
        }
        // No TLS record begins with a letter; all methods of HTTP do.
        if self.received.first().is_some_and(u8::is_ascii_uppercase) {
            return Err(Refusal { error: AcceptError::PlainHttp, answer: plain_http_answer() });
        }
        self.acceptor.accept().map_err(|(error, mut alert)| {
            let mut answer = Vec::new();
            // Writing to memory does not fail.
            let _ = alert.write_all(&mut answer);
            Refusal { error: error.into(), answer }
        })
    }

    /// All that was read: the ClientHello, and what came behind it.
    pub fn into_received(self) -> Vec<u8> {
        self.received
    }
}

/// The source as the acceptor reads it; keeps a copy for the connection, which begins anew.
struct Copied<'a, R> {
    source: &'a mut R,
    received: &'a mut Vec<u8>,
}

impl<R: Read> Read for Copied<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.received.extend_from_slice(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}

/// What rustls would answer with `access_denied`, behind a ServerHello, or not at all.
///
/// # Errors
/// What the ClientHello deserves instead of a handshake.
pub fn judge(hello: &Accepted, config: &ServerConfig) -> Result<(), Refusal> {
    let hello = hello.client_hello();
    let name = hello.server_name().map(str::to_owned);
    let is_ours = |offered: &[u8]| config.alpn_protocols.iter().any(|name| name == offered);
    // RFC 9113, section 3.2: "A client that makes a request to an "https" URI uses TLS … with the ALPN extension";
    // one without it can only mean HTTP/1.1.
    let speaks_ours = hello.alpn().map_or_else(|| is_ours(ALPN_H1), |mut offered| offered.any(is_ours));
    if config.cert_resolver.resolve(hello).is_none() {
        // RFC 8446, section 9.2: "Servers requiring this extension SHOULD respond to a ClientHello lacking a
        // "server_name" extension by terminating the connection with a "missing_extension" alert."
        let alert = if name.is_some() { UNRECOGNIZED_NAME } else { MISSING_EXTENSION };
        return Err(Refusal { error: AcceptError::UnknownName { name }, answer: fatal(alert) });
    }
    // RFC 7301, section 3.2: "In the event that the server supports no protocols that the client advertises, then the
    // server SHALL respond with a fatal "no_application_protocol" alert."
    if !speaks_ours {
        return Err(Refusal { error: AcceptError::NoCommonProtocol, answer: fatal(NO_APPLICATION_PROTOCOL) });
    }
    Ok(())
}

type AlertNumber = u8;

// RFC 8446, section 6.
const MISSING_EXTENSION: AlertNumber = 109;
const UNRECOGNIZED_NAME: AlertNumber = 112;
const NO_APPLICATION_PROTOCOL: AlertNumber = 120;

/// A fatal alert in a record of its own, before any key is agreed upon.
pub(super) fn fatal(alert: AlertNumber) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, alert]
}

fn plain_http_answer() -> Vec<u8> {
    let text = "This port speaks TLS: use https://\n";
    format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
    .into_bytes()
}
