//! `php`, `upstream` and `to`: what answers behind the edge.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::general::CertificateFiles;
use crate::base::address::{Endpoint, HttpBackEnd};

/// `php`: PHP-FPM over FastCGI.
#[derive(Debug, Clone, PartialEq)]
pub struct Php {
    /// The pools; of several the one with the fewest requests for its workers.
    pub to: Vec<Endpoint>,
    /// Which scripts may run.
    pub scripts: Scripts,
    /// Whether symlinks in the root are resolved for SCRIPT_FILENAME and DOCUMENT_ROOT.
    pub resolve_symlinks: bool,
    /// Additional FastCGI parameters.
    pub params: BTreeMap<String, String>,
    /// The front controller, relative to the root. Default `index.php`.
    pub index: String,
    /// Between two reads from FPM.
    pub read_timeout: Duration,
    /// Idle connections that are kept; each pins an FPM worker.
    pub keep_alive: usize,
    /// Requests at FPM at once; 0 is learned.
    pub children: usize,
    /// Requests that may wait for their turn; 0 is four times the children.
    pub queue: usize,
    /// How long one may wait for its turn.
    pub queue_timeout: Duration,
    /// How long FPM may be gone, as in a restart, before requests are refused.
    pub restart_window: Duration,
}

/// Which scripts may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scripts {
    /// The front controller only.
    Index,
    /// Every existing `.php` file under the root.
    All,
    /// These, relative to the root, without a leading slash.
    Only(Vec<String>),
}

/// An HTTP destination of one or several back ends.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpUpstream {
    /// The back ends, at least one.
    pub to: Vec<BackEnd>,
    /// How TLS is spoken to them.
    pub tls: UpstreamTls,
    /// Which one a new client gets.
    pub balance: Balance,
    /// Whether a client stays with its back end.
    pub sticky: Sticky,
    /// Over how long a back end that came back gets its full share again; zero is at once.
    pub slow_start: Duration,
    /// When one is left out.
    pub health: Health,
    /// Whether connections begin with a PROXY head that names the client.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The Host field that they get.
    pub host: HostField,
    /// Between two reads from a back end.
    pub read_timeout: Duration,
}

/// One of the back ends of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackEnd {
    /// Where it is.
    pub to: HttpBackEnd,
    /// Its share, compared with those of the others; 1 unless said, at most 1000.
    pub weight: u16,
    /// Whether it is asked only where all others are out.
    pub backup: bool,
}

/// `health`: when a back end is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What is asked of it; `None` asks nothing.
    pub probe: Option<Box<Probe>>,
    /// So many failures of requests within `fail_timeout` put it out for `fail_timeout`; 0 never does. 1 unless said.
    pub max_fails: u32,
    /// See `max_fails`. 10 s.
    pub fail_timeout: Duration,
    /// Answers that count as failures.
    pub fail_status: Vec<StatusRange>,
}

/// What is asked of a back end to know whether it is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Path and query.
    pub path: String,
    /// Whether it is a WebSocket handshake, which is to be answered with 101.
    pub websocket: bool,
    /// The answers of one that is well. 2xx and 3xx unless said.
    pub status: Vec<StatusRange>,
    /// The Host field; `None` is that of `host`, or the back end's own.
    pub host: Option<String>,
    /// Between two of them. 10 s.
    pub interval: Duration,
    /// For the whole of one. 5 s.
    pub timeout: Duration,
    /// So many failures in a row, and it is out. 2.
    pub fails: u32,
    /// So many successes in a row, and it is back. 2.
    pub passes: u32,
}

/// `200` or `2xx`: one status, or a class of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// The version of a PROXY head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// `upstream_tls`
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// `verify = false`: any certificate is taken.
    pub insecure: bool,
    /// The name for SNI and verification instead of the back end's host.
    pub server_name: Option<String>,
    /// Authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// A client certificate to show.
    pub client: Option<CertificateFiles>,
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
    /// At random.
    Random,
}

/// Whether a client stays with its back end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sticky {
    /// It does not.
    Off,
    /// By a cookie.
    Cookie(StickyCookie),
    /// By its address.
    Ip,
    /// By the session id of Engine.IO, learned from the answer that gave it.
    Sid,
}

/// `cookie` and `cookie_secret`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StickyCookie {
    /// Its name.
    pub name: String,
    /// What its value is made with, so that nobody can find out by trying which back ends there are.
    pub secret: Option<String>,
}

/// The Host field that a back end gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostField {
    /// The client's, name and port.
    Preserve,
    /// The back end's own.
    Upstream,
    /// This text.
    Literal(String),
}

impl Default for Health {
    fn default() -> Health {
        Health { probe: None, max_fails: 1, fail_timeout: Duration::from_secs(10), fail_status: Vec::new() }
    }
}

impl Probe {
    /// A GET of `path`, and the defaults.
    pub fn of(path: String) -> Probe {
        Probe {
            path,
            websocket: false,
            status: vec![StatusRange { first: 200, last: 299 }, StatusRange { first: 300, last: 399 }],
            host: None,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            fails: 2,
            passes: 2,
        }
    }
}

impl StatusRange {
    /// This status alone.
    pub fn one(status: u16) -> StatusRange {
        StatusRange { first: status, last: status }
    }

    /// `2xx`, `503`
    pub fn parse(text: &str) -> Option<StatusRange> {
        if let Some(class) = text.strip_suffix("xx") {
            let class = class.parse::<u16>().ok().filter(|class| (1..=5).contains(class))?;
            return Some(StatusRange { first: class * 100, last: class * 100 + 99 });
        }
        text.parse().ok().filter(|status| (100..=599).contains(status)).map(StatusRange::one)
    }

    /// Whether `status` is in it.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}xx", self.first / 100) }
    }
}
