//! How long and how often an authority is asked.

use std::time::Duration;

use instant_acme::Error;
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use super::transport::TransportError;

/// How long things may take. The defaults are for the world, others for tests.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// One HTTP request, from the look-up of the name to the last byte of the answer.
    pub request: Duration,
    /// A whole order, from the first question to the certificate.
    pub order: Duration,
    /// One run of the DNS hook.
    pub hook: Duration,
    /// The wait before the first look at what the authority decided; each further one is half as long again, up to
    /// ten times this. What the authority says with Retry-After goes before.
    pub poll: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            request: Duration::from_secs(30),
            order: Duration::from_secs(600),
            hook: Duration::from_secs(120),
            poll: Duration::from_millis(500),
        }
    }
}

/// Whom something is asked of, and what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking<'a> {
    /// The authority's host.
    pub(super) authority: &'a str,
    /// Such as `an order`.
    pub(super) asked: &'a str,
    pub(super) patience: &'a Patience,
}

/// Makes a call of instant-acme, again and again while its nonce is refused, under a deadline; an error becomes a
/// [`Failure`]. `call!(asking, expression with .await)`. A macro, because of a closure whose future borrows what the
/// closure has nobody can prove that it is `Send`.
///
/// RFC 8555, section 6.5: a client that meets badNonce SHOULD retry with the nonce that it is given. A busy authority
/// behind several front ends may refuse half of them.
macro_rules! call {
    ($asking:expr, $call:expr) => {{
        let asking = $asking;
        let mut rounds = asking.rounds();
        loop {
            let result = rounds.limit(async { $call }).await;
            if let Some(result) = rounds.judge(result) {
                break result;
            }
        }
    }};
}

pub(super) use call;

/// One call, and how often it is made yet.
pub(super) struct Rounds<'a> {
    asking: &'a Asking<'a>,
    left: usize,
    deadline: Instant,
}

/// How often one call is made as long as its nonce is refused. instant-acme itself sends each call three times.
const ROUNDS: usize = 10;

impl Asking<'_> {
    pub(super) fn rounds(&self) -> Rounds<'_> {
        Rounds { asking: self, left: ROUNDS, deadline: Instant::now() + self.limit() }
    }

    /// Each request has its own deadline; this one is for an authority that refuses nonces slowly.
    fn limit(&self) -> Duration {
        self.patience.request * 2
    }
}

impl Rounds<'_> {
    /// Makes the call once.
    pub(super) async fn limit<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let result = timeout_at(self.deadline, call).await;
        result.unwrap_or_else(|_| Err(TransportError::Deadline(self.asking.limit()).into()))
    }

    /// The end, unless the call is to be made once more.
    pub(super) fn judge<T>(&mut self, result: Result<T, Error>) -> Option<Result<T, Failure>> {
        self.left = self.left.saturating_sub(1);
        let is_bad_nonce = matches!(&result, Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(BAD_NONCE));
        if is_bad_nonce && self.left > 0 {
            return None;
        }
        Some(result.map_err(|error| Failure::of(error, self.asking.authority, self.asking.asked)))
    }
}

/// RFC 8555, section 6.7.
pub(super) const BAD_NONCE: &str = "urn:ietf:params:acme:error:badNonce";
