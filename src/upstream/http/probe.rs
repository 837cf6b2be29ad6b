//! What is asked of a back end to know whether it is well: a page, or a WebSocket handshake. On connections of its own,
//! made as those of requests are.

use std::collections::hash_map::RandomState;
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header, response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::base::address::HttpBackEnd;
use crate::base::fault::{Fault, Kind};
use crate::base::proxy_head;
use crate::base::units::format_duration;
use crate::upstream::connect::{self, BackEndStream, ConnectError, TlsTarget};
use crate::upstream::http::back_end::BackEndState;
use crate::upstream::http::connection::Connection;
use crate::upstream::http::settings::{Probe, ProxyVersion};
use crate::upstream::http::upload::Upload;
use crate::upstream::http::{answer, outgoing};

/// How long the end of a conversation may take whose outcome is known already.
const PARTING: Duration = Duration::from_secs(1);

/// Bytes of an answer's body that are read so that the back end sees its connection end well.
const BODY: usize = 64 * 1024;

/// A question that is asked of one back end again and again.
pub struct Watch {
    state: Arc<BackEndState>,
    /// Differs when anything differs that decides: the address, how TLS is spoken, what is asked and how often.
    key: Arc<str>,
    to: HttpBackEnd,
    tls: Option<TlsTarget>,
    host: HeaderValue,
    probe: Probe,
    /// What its connections begin with.
    head: Vec<u8>,
}

/// Why a back end is not well.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It took too long.
    #[error("no answer within {}", format_duration(*.0))]
    Late(Duration),
    /// No connection.
    #[error("cannot connect")]
    Connect(#[source] ConnectError),
    /// What came is no answer.
    #[error(transparent)]
    NoAnswer(#[from] Fault),
    /// The answer is not one of a back end that is well.
    #[error("answered {0}")]
    Status(u16),
    /// No WebSocket server answers there.
    #[error("answered {0} and not 101")]
    NoWebSocket(u16),
}

impl Watch {
    /// `key` names the address, and what TLS is verified with.
    pub(super) fn new(
        state: Arc<BackEndState>,
        key: &str,
        to: HttpBackEnd,
        tls: Option<TlsTarget>,
        host: HeaderValue,
        probe: Probe,
    ) -> Watch {
        let key = Arc::from(format!("{key} {host:?} {probe:?}"));
        Watch { state, key, to, tls, host, probe, head: Vec::new() }
    }

    /// The same on connections that begin with a PROXY head, which says that they are our own.
    pub(super) fn after_head(self, version: Option<ProxyVersion>) -> Watch {
        let Some(version) = version else { return self };
        let key = Arc::from(format!("{} {version:?}", self.key));
        Watch { key, head: proxy_head::write_own(version), ..self }
    }

    /// Two with the same key ask the same.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Who is asked.
    pub fn back_end(&self) -> &Arc<BackEndState> {
        &self.state
    }

    /// What is asked.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// Asks until it is dropped, each time when one of `places` is free. Within a [`LocalSet`](tokio::task::LocalSet).
    pub async fn run(&self, places: &Semaphore) {
        loop {
            let Ok(place) = places.acquire().await else { return };
            let outcome = self.ask().await;
            drop(place);
            let pause = jitter(self.probe.interval);
            self.state.probed(self, outcome, pause);
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks once, and says what a back end that is well answered: its status. Within a
    /// [`LocalSet`](tokio::task::LocalSet).
    ///
    /// # Errors
    /// It is not well.
    pub async fn ask(&self) -> Result<String, ProbeError> {
        let within = self.probe.timeout;
        let late = |_| ProbeError::Late(within);
        if self.probe.websocket {
            let stream = tokio::time::timeout(within, self.shake_hands()).await.map_err(late)??;
            let _ = tokio::time::timeout(PARTING, part(stream)).await;
            return Ok("101".to_owned());
        }
        let (mut connection, status) = tokio::time::timeout(within, self.get()).await.map_err(late)??;
        if tokio::time::timeout(PARTING, read(&mut connection)).await.is_ok_and(|whole| whole) {
            connection.rest();
        }
        match self.probe.status.iter().any(|range| range.contains(&status.as_u16())) {
            true => Ok(status.as_u16().to_string()),
            false => Err(ProbeError::Status(status.as_u16())),
        }
    }

    async fn get(&self) -> Result<(Box<Connection>, StatusCode), ProbeError> {
        let mut request = self.request()?;
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        let mut connection = self.connect().await?;
        let mut head = send(&mut connection, &request).await?;
        let length = answer::check_framing(&mut head, false)?;
        connection.expect(length);
        Ok((connection, head.status))
    }

    async fn shake_hands(&self) -> Result<BackEndStream, ProbeError> {
        let mut request = self.request()?;
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        outgoing::complete_handshake(headers)?;
        let key = headers.get(header::SEC_WEBSOCKET_KEY).cloned();
        let mut connection = self.connect().await?;
        let head = send(&mut connection, &request).await?;
        if head.status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ProbeError::NoWebSocket(head.status.as_u16()));
        }
        answer::check_handshake(&head.headers, key.as_ref())?;
        let (stream, _) = connection.switch().ok_or_else(answer::no_stream)?;
        Ok(stream)
    }

    fn request(&self) -> Result<Request<()>, Fault> {
        let mut request = Request::new(());
        *request.uri_mut() = Uri::try_from(self.probe.path.as_str())
            .map_err(|error| Fault::new(Kind::Internal, "the path of the probe cannot be asked for").because(error))?;
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::HOST, self.host.clone());
        headers.insert(header::USER_AGENT, HeaderValue::from_static("doorward"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        *request.headers_mut() = headers;
        Ok(request)
    }

    async fn connect(&self) -> Result<Box<Connection>, ProbeError> {
        let (to, tls, within) = (&self.to.endpoint, self.tls.as_ref(), self.probe.timeout);
        let connected = connect::connect_with_head(to, tls, within, &self.state.source, &self.head).await;
        Ok(Connection::new(connected.map_err(ProbeError::Connect)?))
    }
}

async fn send(connection: &mut Connection, request: &Request<()>) -> Result<response::Parts, Fault> {
    connection.begin(request, Upload::none());
    let answered = poll_fn(|cx| connection.poll_head(cx)).await;
    answered.map_err(|broken| answer::no_answer(broken, connection.has_received()))
}

/// Whether the whole of the body came, and is no longer than anybody wants to know.
async fn read(connection: &mut Connection) -> bool {
    let mut left = BODY;
    loop {
        match poll_fn(|cx| connection.poll_body(cx)).await {
            Ok(Some(data)) if data.len() <= left => left -= data.len(),
            Ok(None) => return true,
            Ok(Some(_)) | Err(_) => return false,
        }
    }
}

/// RFC 6455, section 7.1.1: the Close frame, the other's, and the end of the connection, which is the server's to begin.
async fn part(mut stream: BackEndStream) -> std::io::Result<()> {
    // Section 5.3: "The masking key is a 32-bit value chosen at random by the client."
    let mask = RandomState::new().hash_one(0).to_be_bytes();
    let [a, b, c, d, ..] = mask;
    let [high, low] = 1000_u16.to_be_bytes();
    stream.write_all(&[0x88, 0x82, a, b, c, d, high ^ a, low ^ b]).await?;
    stream.flush().await?;
    let mut buffer = [0; 1024];
    let mut left = BODY;
    while left > 0 {
        match stream.read(&mut buffer).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    stream.shutdown().await
}

/// Within a tenth of `interval`: back ends that came into force together are not asked together for ever.
fn jitter(interval: Duration) -> Duration {
    let drawn = RandomState::new().hash_one(1) as f64 / u64::MAX as f64;
    interval.mul_f64(0.9 + 0.2 * drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_kept_to_a_tenth() {
        let interval = Duration::from_secs(10);
        let drawn: Vec<Duration> = (0..200).map(|_| jitter(interval)).collect();
        assert!(drawn.iter().all(|pause| (9.0..=11.0).contains(&pause.as_secs_f64())), "{drawn:?}");
        assert!(drawn.iter().max() > drawn.iter().min());
    }
}
