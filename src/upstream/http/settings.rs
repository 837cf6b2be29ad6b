//! What an HTTP upstream is told: the meaning of `upstream`, `websocket.to` and the keys beside them.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::address::HttpBackEnd;
pub use crate::base::proxy_head::Version as ProxyVersion;

/// An HTTP destination of one or several back ends.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The back ends, at least one.
    pub back_ends: Vec<BackEnd>,
    /// How TLS is spoken to those that speak it.
    pub tls: TlsSettings,
    /// Which one a new client gets.
    pub balance: Balance,
    /// Whether a client stays with its back end.
    pub sticky: Sticky,
    /// Over how long a back end that came back gets its full share again; zero is at once.
    pub slow_start: Duration,
    /// When one is left out.
    pub health: Health,
    /// Whether connections begin with a PROXY head that names the client.
    pub proxy_protocol: Option<ProxyVersion>,
    /// The Host field that they get.
    pub host: HostField,
    /// How long is waited for them.
    pub timeouts: Timeouts,
}

/// One of the back ends.
#[derive(Debug, Clone)]
pub struct BackEnd {
    /// Where it is.
    pub to: HttpBackEnd,
    /// Its share, compared with those of the others; at least 1.
    pub weight: u16,
    /// Whether it is asked only where all others are out.
    pub backup: bool,
}

/// When a back end is left out.
#[derive(Debug, Clone)]
pub struct Health {
    /// What is asked of it; `None` asks nothing.
    pub probe: Option<Probe>,
    /// So many failures of requests within `fail_timeout` put it out for `fail_timeout`; 0 never does.
    pub max_fails: u32,
    /// See `max_fails`.
    pub fail_timeout: Duration,
    /// Answers that count as failures.
    pub fail_status: Vec<RangeInclusive<u16>>,
}

/// What is asked of a back end to know whether it is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Path and query.
    pub path: String,
    /// Whether it is a WebSocket handshake, which is to be answered with 101.
    pub websocket: bool,
    /// The answers of one that is well.
    pub status: Vec<RangeInclusive<u16>>,
    /// The Host field; `None` is the literal of [`HostField`], or the back end's own.
    pub host: Option<String>,
    /// Between two of them.
    pub interval: Duration,
    /// For the whole of one.
    pub timeout: Duration,
    /// So many failures in a row, and it is out.
    pub fails: u32,
    /// So many successes in a row, and it is back.
    pub passes: u32,
}

/// How long a back end is waited for. None may be zero.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Resolving, connecting and the TLS handshake together, for all back ends that one request tries.
    pub connect: Duration,
    /// From the request's end to the answer's head, and between two reads of the answer.
    pub read: Duration,
    /// Between two writes of the request.
    pub send: Duration,
}

/// How TLS is spoken to back ends.
#[derive(Debug, Clone, Default)]
pub struct TlsSettings {
    /// Any certificate is taken.
    pub insecure: bool,
    /// The name for SNI and verification instead of the back end's host.
    pub server_name: Option<String>,
    /// A PEM file of authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// A client certificate to show: the PEM files of its chain and of its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Which back end a new client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest requests and tunnels.
    LeastConn,
    /// In turn.
    RoundRobin,
    /// By the client's address.
    IpHash,
    /// The less loaded of two drawn at random.
    Random,
}

/// Whether a client stays with its back end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sticky {
    /// It does not.
    Off,
    /// By a cookie.
    Cookie {
        /// Its name.
        name: String,
        /// What its value is made with; without it, whoever guesses a back end's address can tell that it is one.
        secret: Option<String>,
    },
    /// By its address.
    Ip,
    /// By the session id of Engine.IO, learned from the answer that gave it.
    Sid {
        /// Whose sessions they are: an id of one site is nothing in another.
        site: String,
    },
}

/// The Host field that a back end gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostField {
    /// The client's, name and port.
    Preserve,
    /// The back end's own; without the port that its scheme implies.
    Upstream,
    /// This text.
    Literal(String),
}
