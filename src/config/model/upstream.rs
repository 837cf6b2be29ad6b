//! `php`, `upstream` and `to`: what answers behind the edge.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::general::CertificateFiles;
use crate::base::address::{Endpoint, HttpBackEnd};

/// `php`: PHP-FPM over FastCGI.
#[derive(Debug, Clone, PartialEq)]
pub struct Php {
    /// The pools; more than one is taken in turn.
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
    pub to: Vec<HttpBackEnd>,
    /// How TLS is spoken to them.
    pub tls: UpstreamTls,
    /// Which one a new client gets.
    pub balance: Balance,
    /// Whether a client stays with its back end.
    pub sticky: Sticky,
    /// The Host field that they get.
    pub host: HostField,
    /// Between two reads from a back end.
    pub read_timeout: Duration,
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
    /// The back end's own.
    Upstream,
    /// This text.
    Literal(String),
}
