//! What went wrong with a request, and on whose side.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Whose side a fault is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client sent something that is wrong, too much or too late.
    Client,
    /// Doorward itself, or the machine it runs on.
    Edge,
    /// The back end, or the way to it.
    Upstream,
}

/// The kinds of fault. `http::reply` holds the one table from kind to status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    // The client's.
    /// The request is malformed or ambiguous.
    Malformed,
    /// The request head did not arrive within `timeouts.header`.
    HeadTimeout,
    /// The body stalled for `timeouts.body`.
    BodyTimeout,
    /// The body is longer than `max_body`.
    BodyTooLarge,
    /// The request target is longer than `limits.max_uri`.
    TargetTooLong,
    /// The head is larger than `limits.max_header_size`, or has more fields than `limits.max_headers`.
    HeadTooLarge,
    /// An `Expect` other than `100-continue`.
    Expectation,
    /// A transfer coding other than `chunked`.
    UnknownCoding,
    /// An extended CONNECT for something other than WebSocket.
    UnknownProtocol,
    /// An HTTP version other than 1.0, 1.1 and 2.
    Version,
    /// The connection's certificate is not one for this host.
    Misdirected,
    /// No site, no route or no file answers here.
    NotFound,
    /// The route is closed to this client.
    Forbidden,
    /// The sockets of the route, or those of the client's address, are at their limit, or memory is.
    Crowded,
    /// The client asks more often than a limit lets it.
    Limited,
    /// A name and a password are asked for here, and none came that fits.
    Unauthorized,
    /// The method is not allowed here.
    Method,
    /// The method is neither GET nor HEAD, and a file answers no other.
    ReadOnly,
    /// The client left before the answer was complete.
    Gone,
    // Ours.
    /// Something of ours failed (disk, memory, descriptor).
    Internal,
    /// No room to store a request body.
    Storage,
    /// Doorward is stopping.
    Stopping,
    // The back end's.
    /// The back end could not be reached.
    Connect,
    /// The back end answered something that is not HTTP or not FastCGI.
    BadAnswer,
    /// The back end did not answer in time.
    ReadTimeout,
    /// The back end did not take the request in time.
    SendTimeout,
    /// The back end broke off in the middle of its answer.
    Truncated,
    /// The back end has no room for one more request.
    Busy,
}

impl Kind {
    /// The side that a fault of this kind is on.
    pub fn side(self) -> Side {
        use Kind::*;
        match self {
            Malformed | HeadTimeout | BodyTimeout | BodyTooLarge | TargetTooLong | HeadTooLarge | Expectation
            | UnknownCoding | UnknownProtocol | Version | Misdirected | NotFound | Forbidden | Crowded | Limited
            | Unauthorized | Method | ReadOnly | Gone => Side::Client,
            Internal | Storage | Stopping => Side::Edge,
            Connect | BadAnswer | ReadTimeout | SendTimeout | Truncated | Busy => Side::Upstream,
        }
    }
}

/// One failure: its kind, a sentence for the operator, and its cause. The sentence never reaches the client.
#[derive(Debug)]
pub struct Fault {
    /// What kind of failure this is.
    pub kind: Kind,
    /// What happened, for the error log: no full stop, no secret.
    pub detail: Cow<'static, str>,
    /// When it may be worth another try, where that is known.
    pub retry_after: Option<Duration>,
    /// The status that the file gives it, from 400 to 599; `None` is that of its kind.
    pub status: Option<u16>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Fault {
    /// A fault of `kind`, told by `detail`.
    pub fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Fault {
        Fault { kind, detail: detail.into(), retry_after: None, status: None, source: None }
    }

    /// The same fault with its cause kept.
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Fault {
        self.source = Some(source.into());
        self
    }

    /// The same fault, worth another try after `wait`.
    pub fn retry_after(mut self, wait: Duration) -> Fault {
        self.retry_after = Some(wait);
        self
    }

    /// The same fault, answered with `status`.
    pub fn status(mut self, status: u16) -> Fault {
        self.status = Some(status);
        self
    }

    /// Whose side this fault is on.
    pub fn side(&self) -> Side {
        self.kind.side()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.detail, Causes(self))
    }
}

/// The causes of an error as they stand behind it in a line: each after a colon, the nearest first.
#[derive(Debug)]
pub struct Causes<'e>(pub &'e dyn Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_tells_its_whole_chain_of_causes() {
        let io = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "refused");
        let fault = Fault::new(Kind::Connect, "cannot connect to unix:/run/x.sock").because(io);
        assert_eq!(fault.to_string(), "cannot connect to unix:/run/x.sock: refused");
        assert_eq!(fault.side(), Side::Upstream);
    }
}
