//! What an HTTP upstream is told: the meaning of `upstream`, `websocket.to` and the keys beside them.

use std::path::PathBuf;
use std::time::Duration;

use crate::base::address::HttpBackEnd;

/// An HTTP destination of one or several back ends.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The back ends, at least one.
    pub back_ends: Vec<HttpBackEnd>,
    /// How TLS is spoken to those that speak it.
    pub tls: TlsSettings,
    /// Which one a new client gets.
    pub balance: Balance,
    /// Whether a client stays with its back end.
    pub sticky: Sticky,
    /// The Host field that they get.
    pub host: HostField,
    /// How long is waited for them.
    pub timeouts: Timeouts,
}

/// How long a back end is waited for. None may be zero.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Resolving, connecting and the TLS handshake together.
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
    /// By a cookie of this name.
    Cookie(String),
    /// By its address.
    Ip,
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
