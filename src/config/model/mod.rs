//! The configuration as it is meant: defaults filled, units read, presets expanded, paths absolute.

use std::path::PathBuf;

mod acme;
mod general;
mod limit;
mod route;
mod site;
mod upstream;
mod websocket;

pub use acme::*;
pub use general::*;
pub use limit::*;
pub use route::*;
pub use site::*;
pub use upstream::*;
pub use websocket::*;

/// A whole configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[timeouts]`
    pub timeouts: Timeouts,
    /// `[limits]`
    pub limits: Limits,
    /// `[limit.*]`, in file order.
    pub rate_limits: Vec<RateLimit>,
    /// `[tls]`
    pub tls: Tls,
    /// `[acme]`
    pub acme: Acme,
    /// `[log]`
    pub log: Log,
    /// `[site.*]`, in file order.
    pub sites: Vec<Site>,
    /// The folder of the file: relative paths are relative to it; `certs-dev` lies here.
    pub folder: PathBuf,
    /// The file itself and all that it includes, for messages and watching.
    pub files: Vec<PathBuf>,
}
