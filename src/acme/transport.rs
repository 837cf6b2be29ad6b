//! HTTPS to one authority: one connection at a time, every request under a deadline, every refusal with its
//! Retry-After.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT_LANGUAGE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient, Problem};
use rustls::ClientConfig;
use rustls_pki_types::{ServerName, pem};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::call::BAD_NONCE;
use super::echo;
use super::ledger::LONGEST_RETRY_AFTER;
use super::roots;

/// Speaks HTTP/1.1 over TLS to an authority. Cheap to clone; clones share the kept connection.
#[derive(Clone)]
pub(super) struct Transport(Arc<Shared>);

/// Why an authority gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The certificates that the authority is verified with cannot be read.
    #[error("cannot read directory_ca {}", path.display())]
    ReadRoots {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// There is nothing to verify the authority with.
    #[error("{0}")]
    NoRoots(String),
    /// rustls refuses the settings.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    /// The URL is none.
    #[error("\"{0}\" is not a URL with a host")]
    NoUrl(String),
    /// RFC 8555, section 6.1: every request is over HTTPS.
    #[error("{0} is not https")]
    NotHttps(String),
    /// The name cannot be looked up.
    #[error("cannot look {host} up")]
    Resolve {
        /// The host.
        host: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// None of the addresses takes a connection.
    #[error("cannot connect to {host}")]
    Connect {
        /// The host.
        host: String,
        /// What the last address said.
        #[source]
        source: io::Error,
    },
    /// The handshake failed: most often because of who is trusted.
    #[error("no TLS with {host} (directory_ca and SSL_CERT_FILE say who is trusted)")]
    Handshake {
        /// The host.
        host: String,
        /// What rustls said.
        #[source]
        source: io::Error,
    },
    /// The connection broke off, or what came is not HTTP.
    #[error("the connection broke off")]
    Broken(#[source] hyper::Error),
    /// There was no whole answer in time.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// The answer's body is longer than 1 MiB.
    #[error("the answer is longer than 1 MiB")]
    TooLong,
    /// The answer is a refusal.
    #[error("{}", .0.status)]
    Refused(Refusal),
}

/// An answer of 400 and above.
#[derive(Debug)]
pub struct Refusal {
    /// Its status.
    pub status: StatusCode,
    /// Its Retry-After, seconds or date, counted from now.
    pub retry_after: Option<Duration>,
    /// Its reason, where its body is a problem document (RFC 7807).
    pub problem: Option<Problem>,
}

impl From<TransportError> for instant_acme::Error {
    fn from(error: TransportError) -> instant_acme::Error {
        instant_acme::Error::Other(Box::new(error))
    }
}

impl Transport {
    /// Trusts the certificates of `directory_ca`, or the system's (`SSL_CERT_FILE` and `SSL_CERT_DIR` say where they
    /// are). Reads files.
    ///
    /// # Errors
    /// There is nobody to trust.
    pub(super) fn new(directory_ca: Option<&Path>, deadline: Duration) -> Result<Transport, TransportError> {
        let roots = roots::of(directory_ca)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TransportError::Setup)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Transport(Arc::new(Shared {
            tls: TlsConnector::from(Arc::new(tls)),
            deadline,
            kept: Mutex::default(),
            pauses: Mutex::default(),
        })))
    }

    /// How long `url` asked to be left alone with its last answer, if that was a good one. Told once.
    pub(super) fn pause(&self, url: &str) -> Option<Duration> {
        self.0.pauses.lock().unwrap_or_else(PoisonError::into_inner).remove(url)
    }
}

impl HttpClient for Transport {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let deadline = shared.deadline;
            let answer = tokio::time::timeout(deadline, shared.exchange(request)).await;
            Ok(answer.unwrap_or(Err(TransportError::Deadline(deadline)))?)
        })
    }
}

struct Shared {
    tls: TlsConnector,
    deadline: Duration,
    /// The connection of the last exchange. Whoever uses it takes it out.
    kept: Mutex<Option<Kept>>,
    /// The Retry-After of good answers by URL: instant-acme does not tell it.
    pauses: Mutex<HashMap<String, Duration>>,
}

struct Kept {
    origin: Origin,
    connection: Connection,
    since: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    host: String,
    port: u16,
}

type Driver = Pin<Box<http1::Connection<TokioIo<TlsStream<TcpStream>>, BodyWrapper<Bytes>>>>;

/// The two halves of a hyper connection. The driver is polled by whoever waits, so that no task is left behind.
struct Connection {
    sender: http1::SendRequest<BodyWrapper<Bytes>>,
    driver: Option<Driver>,
}

/// Shorter than any server's own patience with an idle connection: a request must not race with its end.
const LONGEST_IDLE: Duration = Duration::from_secs(4);
const LONGEST_BODY: usize = 1 << 20;
/// One address of several that does not answer must not use up the whole deadline.
const LONGEST_CONNECT: Duration = Duration::from_secs(8);
/// RFC 9773, section 4.3.3: without Retry-After, "a client SHOULD … check every 6 hours".
const RENEWAL_INFO_AGAIN: Duration = Duration::from_secs(6 * 3600);
const MOST_PAUSES: usize = 1024;
const AGENT: &str = concat!("doorward/", env!("CARGO_PKG_VERSION"));

impl Shared {
    async fn exchange(&self, mut request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, TransportError> {
        let url = request.uri().to_string();
        let origin = address(&mut request)?;
        let method = request.method().clone();
        let (request, replaces) = echo::of(request).await;
        let (mut connection, response) = self.send(&origin, request).await?;
        let (mut parts, body) = response.into_parts();
        let body = connection.drive(Limited::new(body, LONGEST_BODY).collect()).await.map_err(body_error)?.to_bytes();
        self.keep(origin, connection);
        let retry_after = retry_after(&parts.headers, SystemTime::now());
        if parts.status.is_client_error() || parts.status.is_server_error() {
            let problem = serde_json::from_slice::<Problem>(&body).ok();
            // instant-acme retries with the nonce that came along, so it has to see this one.
            let is_bad_nonce = problem.as_ref().is_some_and(|problem| problem.r#type.as_deref() == Some(BAD_NONCE));
            if !(is_bad_nonce && parts.status == StatusCode::BAD_REQUEST) {
                return Err(TransportError::Refused(Refusal { status: parts.status, retry_after, problem }));
            }
        } else {
            self.note_pause(url, retry_after);
        }
        amend(&method, &mut parts, retry_after);
        let body = echo::repeated(parts.status, body, replaces);
        Ok(BytesResponse { parts, body: Box::new(body) })
    }

    /// Sends `request` on the kept connection while that lives, else on a new one.
    async fn send(
        &self,
        origin: &Origin,
        mut request: Request<BodyWrapper<Bytes>>,
    ) -> Result<(Connection, Response<Incoming>), TransportError> {
        if let Some(mut kept) = self.take(origin)
            && kept.ready().await
        {
            let sending = kept.sender.try_send_request(request);
            match drive(&mut kept.driver, sending).await {
                Ok(response) => return Ok((kept, response)),
                // Given back means that no byte of it was sent. Everything else might have been acted upon.
                Err(mut refused) => match refused.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(TransportError::Broken(refused.into_error())),
                },
            }
        }
        let mut connection = self.connect(origin).await?;
        let sending = connection.sender.send_request(request);
        let response = drive(&mut connection.driver, sending).await.map_err(TransportError::Broken)?;
        Ok((connection, response))
    }

    async fn connect(&self, origin: &Origin) -> Result<Connection, TransportError> {
        let host = || origin.host.clone();
        let stream = connect_tcp(origin).await?;
        let _ = stream.set_nodelay(true);
        let name = ServerName::try_from(origin.host.clone()).map_err(|_| TransportError::NoUrl(origin.host.clone()))?;
        let stream = self.tls.connect(name, stream).await;
        let stream = stream.map_err(|source| TransportError::Handshake { host: host(), source })?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(TransportError::Broken)?;
        Ok(Connection { sender, driver: Some(Box::pin(driver)) })
    }

    fn take(&self, origin: &Origin) -> Option<Connection> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        (kept.origin == *origin && kept.since.elapsed() < LONGEST_IDLE).then_some(kept.connection)
    }

    fn keep(&self, origin: Origin, connection: Connection) {
        if connection.driver.is_some() {
            let kept = Kept { origin, connection, since: Instant::now() };
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
    }

    fn note_pause(&self, url: String, pause: Option<Duration>) {
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        match pause {
            Some(pause) if pauses.len() < MOST_PAUSES => drop(pauses.insert(url, pause)),
            _ => drop(pauses.remove(&url)),
        }
    }
}

impl Connection {
    /// Whether one more request can be sent.
    async fn ready(&mut self) -> bool {
        drive(&mut self.driver, self.sender.ready()).await.is_ok() && self.driver.is_some()
    }

    async fn drive<T>(&mut self, work: impl Future<Output = T>) -> T {
        drive(&mut self.driver, work).await
    }
}

/// Waits for `work` and moves the connection meanwhile. A driver that ended is dropped; `work` then learns why.
async fn drive<T>(driver: &mut Option<Driver>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        if driver.as_mut().is_some_and(|driver| driver.as_mut().poll(context).is_ready()) {
            *driver = None;
        }
        match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn connect_tcp(origin: &Origin) -> Result<TcpStream, TransportError> {
    let host = || origin.host.clone();
    let addresses: Vec<SocketAddr> = match tokio::net::lookup_host((origin.host.as_str(), origin.port)).await {
        Ok(addresses) => addresses.collect(),
        Err(source) => return Err(TransportError::Resolve { host: host(), source }),
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in addresses {
        match tokio::time::timeout(LONGEST_CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(TransportError::Connect { host: host(), source: last })
}

/// Takes the origin out of the request's URL and puts it into its Host field.
fn address(request: &mut Request<BodyWrapper<Bytes>>) -> Result<Origin, TransportError> {
    let url = request.uri().clone();
    let no_url = || TransportError::NoUrl(url.to_string());
    // RFC 8555, section 6.1: "ACME clients and servers MUST … use HTTPS".
    if url.scheme_str() != Some("https") {
        return Err(TransportError::NotHttps(url.to_string()));
    }
    let authority = url.authority().ok_or_else(no_url)?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| no_url())?;
    let bare = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let origin = Origin { host: bare, port: authority.port_u16().unwrap_or(443) };
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse::<Uri>().map_err(|_| no_url())?;
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    headers.insert(ACCEPT_LANGUAGE, HeaderValue::from_static("en"));
    // RFC 8555, section 6.1: the User-Agent SHOULD name the ACME software, beside the HTTP library's own.
    let library = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    if let Ok(agent) = HeaderValue::from_str(format!("{AGENT} {library}").trim_end()) {
        headers.insert(USER_AGENT, agent);
    }
    Ok(origin)
}

/// Makes good where instant-acme is stricter than the RFCs, and where it believes too much: it adds what Retry-After
/// says to the clock.
fn amend(method: &Method, parts: &mut http::response::Parts, retry_after: Option<Duration>) {
    if *method == Method::HEAD && parts.status.is_success() {
        // RFC 8555, section 7.2: newNonce "SHOULD" answer 200; some answer 204.
        parts.status = StatusCode::OK;
    }
    // Only the directory and renewal information are fetched with GET.
    let retry_after = retry_after.or_else(|| (*method == Method::GET).then_some(RENEWAL_INFO_AGAIN));
    parts.headers.remove(RETRY_AFTER);
    if let Some(retry_after) = retry_after {
        parts.headers.insert(RETRY_AFTER, retry_after.as_secs().into());
    }
}

/// RFC 9110, section 10.2.3: a date or a number of seconds. A date that is over is no wait.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let told = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(told.min(LONGEST_RETRY_AFTER))
}

fn body_error(error: Box<dyn std::error::Error + Send + Sync>) -> TransportError {
    if error.is::<LengthLimitError>() {
        return TransportError::TooLong;
    }
    match error.downcast::<hyper::Error>() {
        Ok(error) => TransportError::Broken(*error),
        Err(_) => TransportError::TooLong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_a_number_or_a_date_within_reason() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers, now)
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(read("120"), seconds(120));
        assert_eq!(read(" 0 "), seconds(0));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:37 GMT"), seconds(60));
        assert_eq!(read("Sun, 06 Nov 1994 08:40:37 GMT"), seconds(0));
        assert_eq!(read("Fri, 31 Dec 9999 23:59:59 GMT"), Some(LONGEST_RETRY_AFTER));
        assert_eq!(read("18446744073709551615"), Some(LONGEST_RETRY_AFTER));
        for nonsense in ["", "soon", "-1", "1.5", "18446744073709551616"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
