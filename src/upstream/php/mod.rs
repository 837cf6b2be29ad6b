//! PHP-FPM: one request, one script, one answer over FastCGI.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::http::{HeaderName, Method, Response, StatusCode, header};
use bytes::Bytes;
use tokio::time::timeout;

use crate::base::address::Endpoint;
use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::http::hop;
use crate::http::request::UpstreamRequest;
use crate::upstream::connect::BackEndStream;
use crate::upstream::fastcgi::answer::{Head, HeadReader, MAX_HEAD};
use crate::upstream::fastcgi::record::{End, ProtocolStatus};
use crate::upstream::spool::{Spooled, spool};

mod body;
mod environment;
mod exchange;
mod pool;

use body::AnswerBody;
use environment::Fixed;
use exchange::{Event, Exchange, Patience};
pub use pool::FastCgiPool;

/// A field of nginx's: whether it should hold the answer back. Nothing is held back here.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How long, and how much, an answer without a body is read on so that its script can end in peace.
const DRAIN_TIME: Duration = Duration::from_secs(5);
const DRAIN_BYTES: usize = 1024 * 1024;

/// How PHP-FPM is reached and what it is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The FPM pools, at least one; taken in turn.
    pub pools: Vec<Endpoint>,
    /// Additional variables. They replace those that Doorward sets.
    pub params: BTreeMap<String, String>,
    /// The most that connecting to one pool may take, full queues included.
    pub connect: Duration,
    /// The longest silence of FPM, before its answer and within it.
    pub read: Duration,
    /// The longest that FPM may take nothing of a request.
    pub send: Duration,
    /// Idle connections that each worker keeps, per pool; each holds an FPM worker. 0 is one connection per request.
    pub keep_alive: usize,
    /// `SERVER_SOFTWARE`.
    pub server_software: String,
}

/// The script that a request runs. Whoever makes one has checked that `file` exists beneath the root and may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// `DOCUMENT_ROOT`, symlinks resolved or not as the site wants it.
    pub document_root: PathBuf,
    /// `SCRIPT_FILENAME`, in that root.
    pub file: PathBuf,
    /// `SCRIPT_NAME`: the script's path in the site, decoded: `/index.php`.
    pub name: Vec<u8>,
    /// `PATH_INFO`: what of the path is behind the script, decoded: empty or `/x`.
    pub path_info: Vec<u8>,
}

/// A PHP destination, shared by all workers.
#[derive(Debug)]
pub struct PhpUpstream {
    settings: Settings,
    turn: AtomicUsize,
}

impl PhpUpstream {
    /// A destination. Connects to nothing yet.
    pub fn new(settings: Settings) -> PhpUpstream {
        PhpUpstream { settings, turn: AtomicUsize::new(0) }
    }

    /// Where its pools are, as the file writes them.
    pub fn names(&self) -> String {
        let names: Vec<String> = self.settings.pools.iter().map(Endpoint::to_string).collect();
        names.join(", ")
    }

    /// Runs `script` for `request` and gives its answer as soon as the head is there. `body` is read to its end before
    /// FPM is asked. Dropping the future or the answer's body closes the connection.
    ///
    /// Faults: those of the request's body; [`Kind::Storage`] where it cannot be kept; [`Kind::HeadTooLarge`] for a
    /// field that FastCGI cannot carry; [`Kind::Connect`] and [`Kind::Busy`] where FPM does not take us;
    /// [`Kind::SendTimeout`], [`Kind::ReadTimeout`], [`Kind::BadAnswer`] and [`Kind::Truncated`]. Those that come
    /// behind the head end the answer's body.
    pub async fn send(
        &self,
        request: UpstreamRequest,
        body: Body,
        script: Script,
        pool: &FastCgiPool,
    ) -> Result<Response<Body>, Fault> {
        let settings = &self.settings;
        let body = spool(body).await?;
        let keep = settings.keep_alive > 0;
        let fixed = Fixed { software: &settings.server_software, params: &settings.params, keep };
        let head = environment::head(&request, &script, body.length(), &fixed)
            .map_err(|error| Fault::new(Kind::HeadTooLarge, "the request does not fit into FastCGI").because(error))?;
        let target = format!("{} {}", request.method, request.original.encoded());
        let job = Job { method: request.method, target, head, body };

        let turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(settings.pools.len()).unwrap_or(0);
        let in_turn = settings.pools.iter().cycle().skip(turn).take(settings.pools.len());
        let kept = in_turn.clone().find_map(|endpoint| pool.take(endpoint).map(|stream| (endpoint, stream)));
        if let Some((endpoint, stream)) = kept {
            match self.ask(&job, endpoint, stream, pool).await {
                // FPM closed it while it was idle, or as we wrote. RFC 9110, section 9.2.2: "A proxy MUST NOT
                // automatically retry non-idempotent requests", unless nothing of it can have been seen.
                Err(failure) if failure.unanswered && (job.is_repeatable() || failure.unsent) => {}
                other => return other.map_err(|failure| failure.fault),
            }
        }
        let (endpoint, stream) = pool::connect(in_turn, settings.connect).await?;
        self.ask(&job, endpoint, stream, pool).await.map_err(|failure| failure.fault)
    }

    /// One request on one connection, up to the head of its answer.
    async fn ask(
        &self,
        job: &Job,
        endpoint: &Endpoint,
        stream: BackEndStream,
        pool: &FastCgiPool,
    ) -> Result<Response<Body>, Failure> {
        let patience = Patience { send: self.settings.send, read: self.settings.read };
        let mut exchange = Exchange::new(stream, endpoint.clone(), &job.target, &job.head, &job.body, patience);
        let mut reader = HeadReader::new(MAX_HEAD);
        let (head, start) = loop {
            match poll_fn(|cx| exchange.poll_event(cx)).await {
                Ok(Event::Output(data)) => match reader.push(data) {
                    Ok(Some(found)) => break found,
                    Ok(None) => {}
                    Err(error) => {
                        let detail = format!("{endpoint} sent a malformed answer");
                        return Err(Fault::new(Kind::BadAnswer, detail).because(error).into());
                    }
                },
                Ok(Event::End(end)) => return Err(without_head(endpoint, end).into()),
                Err(fault) => {
                    let unanswered = fault.kind == Kind::Truncated && !exchange.is_answered();
                    return Err(Failure { fault, unanswered, unsent: exchange.is_unsent() });
                }
            }
        };
        Ok(self.answer(job, head, start, exchange, pool).await)
    }

    async fn answer(
        &self,
        job: &Job,
        head: Head,
        start: Bytes,
        exchange: Exchange,
        pool: &FastCgiPool,
    ) -> Response<Body> {
        let Head { status, mut headers, length } = head;
        hop::clean_response(&mut headers);
        headers.remove(ACCEL_BUFFERING);
        let keep = self.settings.keep_alive;
        let no_content = status == StatusCode::NO_CONTENT;
        // RFC 9110, section 8.6: "A server MUST NOT send a Content-Length header field in any response with a status
        // code of 1xx (Informational) or 204 (No Content)."
        if no_content {
            headers.remove(header::CONTENT_LENGTH);
        }
        let body = if no_content || status == StatusCode::NOT_MODIFIED || job.method == Method::HEAD {
            drain(exchange, pool, keep).await;
            Body::Empty
        } else {
            AnswerBody::body(exchange, start, length, pool.clone(), keep)
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// What is the same for every attempt.
struct Job {
    method: Method,
    /// Method and path, for the log.
    target: String,
    /// BEGIN_REQUEST and PARAMS.
    head: Bytes,
    body: Spooled,
}

impl Job {
    /// Whether asking twice does no harm.
    fn is_repeatable(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }
}

/// An attempt that failed, and whether another may be made.
struct Failure {
    fault: Fault,
    /// The connection closed before any byte of an answer.
    unanswered: bool,
    /// FPM cannot have seen anything of the request.
    unsent: bool,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure { fault, unanswered: false, unsent: false }
    }
}

fn without_head(endpoint: &Endpoint, end: End) -> Fault {
    match end.protocol_status {
        ProtocolStatus::Overloaded => Fault::new(Kind::Busy, format!("{endpoint} is overloaded")),
        ProtocolStatus::Complete => Fault::new(Kind::BadAnswer, format!("{endpoint} ended without an answer")),
        status => Fault::new(Kind::BadAnswer, format!("{endpoint} refused the request: {status:?}")),
    }
}

/// Reads an answer that nobody will see to its end, so that its script is not cut off and the connection can be kept;
/// but not for long.
async fn drain(mut exchange: Exchange, pool: &FastCgiPool, keep: usize) {
    let mut left = DRAIN_BYTES;
    let ended = timeout(DRAIN_TIME, async {
        loop {
            match poll_fn(|cx| exchange.poll_event(cx)).await {
                Ok(Event::Output(data)) if data.len() <= left => left -= data.len(),
                Ok(Event::End(_)) => return true,
                _ => return false,
            }
        }
    });
    if ended.await.unwrap_or(false) {
        exchange.recycle(pool, keep);
    }
}

#[cfg(test)]
mod tests;
