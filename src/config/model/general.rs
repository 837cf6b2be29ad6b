//! The tables beside the sites: `[server]`, `[timeouts]`, `[limits]`, `[tls]`, `[log]`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::address::ListenAddress;
use crate::base::network::Networks;
use crate::base::pattern::PathPattern;

/// `[server]`: process and listeners.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Plain listeners. Default `:80`.
    pub http: Vec<ListenAddress>,
    /// TLS listeners. Default `:443`.
    pub https: Vec<ListenAddress>,
    /// Whether HTTP/1.1 is offered by ALPN.
    pub h1: bool,
    /// Whether HTTP/2 is offered by ALPN.
    pub h2: bool,
    /// Peers whose word about the client counts.
    pub trusted_proxies: Networks,
    /// The names and ranges of `trusted_proxies` as they were written, for `doorward config`.
    pub trusted_proxies_written: Vec<String>,
    /// The field that a trusted peer tells the client's address in, lower case.
    pub client_ip_header: String,
    /// Worker threads; 0 is one per core.
    pub workers: usize,
    /// Whether connections of trusted proxies begin with a PROXY head.
    pub proxy_protocol: bool,
    /// The name servers that are asked for back ends; empty is the system's own.
    pub resolvers: Vec<SocketAddr>,
    /// The account that it becomes when it is started as root.
    pub user: Option<User>,
    /// Whether it may write nowhere but where the file says. True unless there is a `dns_hook`.
    pub confine: bool,
    /// Where the process id is written.
    pub pid_file: Option<PathBuf>,
    /// Client connections at once; 0 is what the open-file limit allows.
    pub max_connections: usize,
    /// Client connections of one address at once, IPv6 by /64; 0 is no limit.
    pub max_connections_per_ip: usize,
    /// TLS handshakes under way at once.
    pub max_handshakes: usize,
    /// Bytes of memory; 0 is three quarters of the machine's, or of the control group's.
    pub max_memory: u64,
    /// How long requests may go on after QUIT or TERM, and over how long a drain closes sockets.
    pub shutdown_grace: Duration,
    /// How long the old process keeps its sockets after a binary upgrade.
    pub upgrade_window: Duration,
}

/// `user`: an account of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// A group in place of its own.
    pub group: Option<String>,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.group.iter().try_for_each(|group| write!(f, ":{group}"))
    }
}

/// `[timeouts]`. Zero is not allowed: every wait has a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// The whole request head, and the TLS handshake. 10 s.
    pub header: Duration,
    /// Between two reads of a request body. 60 s.
    pub body: Duration,
    /// An idle client connection. 75 s.
    pub keepalive: Duration,
    /// Between two writes to the client. 60 s.
    pub write: Duration,
    /// Connecting to a back end, its TLS handshake included. 5 s.
    pub connect: Duration,
    /// Between two reads from a back end. 60 s.
    pub read: Duration,
    /// Between two writes to a back end. 60 s.
    pub send: Duration,
}

/// `[limits]` of one request, and of what all of them store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request body; `None` is no limit. 20 MiB.
    pub max_body: Option<u64>,
    /// Bytes of the whole head. 32 KiB.
    pub max_header_size: usize,
    /// Header fields. 100.
    pub max_headers: usize,
    /// Bytes of the request target. 8 KiB.
    pub max_uri: usize,
    /// Bytes a second, on average, that a client sends of a body or takes of an answer while it is waited for; `None`
    /// is no limit. 240 B/s.
    pub min_rate: Option<u64>,
    /// Bytes of all request bodies that are stored for PHP at once; `None` is no limit. 1 GiB.
    pub max_spooled: Option<u64>,
}

/// `[tls]`: defaults for all sites.
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// The certificate and key of sites that name none.
    pub files: Option<CertificateFiles>,
    /// Whether TLS 1.2 is spoken beside 1.3.
    pub min_version: TlsVersion,
    /// Whether changed certificate files are reloaded by themselves.
    pub watch: bool,
    /// The authorities that client certificates must come from; set means that one is required.
    pub client_ca: Option<PathBuf>,
}

/// A TLS version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2
    V1_2,
    /// TLS 1.3
    V1_3,
}

/// A certificate chain and its private key, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// The least severe level that is written.
    pub level: Level,
    /// Where the program's own log goes.
    pub output: LogOutput,
    /// Where the access log goes; `None` is off.
    pub access: Option<LogOutput>,
    /// How an access log line looks.
    pub format: AccessFormat,
    /// Paths that are not logged when they are answered without error.
    pub skip_paths: Vec<PathPattern>,
    /// Query parameters whose values are masked.
    pub mask_query: Vec<String>,
}

/// A log level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// `error`
    Error,
    /// `warn`
    Warn,
    /// `info`
    Info,
    /// `debug`
    Debug,
}

/// Where a log goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogOutput {
    /// `stderr`
    Stderr,
    /// `stdout`
    Stdout,
    /// `syslog`: the local daemon at `/dev/log`.
    Syslog,
    /// A file, appended to and opened again on USR1.
    File(PathBuf),
}

/// How an access log line looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessFormat {
    /// nginx's and Apache's `combined`, byte for byte.
    Combined,
    /// `common`: without Referer and User-Agent.
    Common,
    /// One JSON object a line.
    Json,
    /// Text with `{name}` for each field; names are those of the JSON format.
    Template(String),
}
