//! Why a file cannot come into force.

use crate::base::address::ListenAddress;
use crate::config;
use crate::config::needs::Need;
use crate::run::account::AccountError;
use crate::run::automatic::LocalFault;
use crate::run::logs::LogsError;
use crate::tls::pair::with_causes;
use crate::tls::policy::PolicyError;
use crate::tls::store::CertificateProblem;

/// Why a file cannot come into force. Printed as it is.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The file has problems.
    #[error("{0}")]
    Problems(#[from] config::Problems),
    /// A listener cannot be bound.
    #[error("cannot listen on {address}: {source}{}", hint(source))]
    Bind {
        /// The address.
        address: ListenAddress,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate that the file newly names cannot be served.
    #[error("{0}")]
    Certificate(Box<CertificateProblem>),
    /// A listener would have to speak something else than it does.
    #[error("{address} changes between server.http and server.https: this takes a restart")]
    Scheme {
        /// The address.
        address: ListenAddress,
    },
    /// The account of `server.user` cannot be had.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// Something would be written where the process has forbidden itself to write.
    #[error(
        "{0} lies outside of the folders that this process has confined itself to at its start: this needs a restart \
         (server.confine)"
    )]
    Confined(Need),
    /// A file of passwords that the file newly names cannot be read.
    #[error("[site.{site}] basic_auth: {} cannot be read: {source}", .path.display())]
    Passwords {
        /// The site.
        site: String,
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The local CA cannot make a certificate that the file newly wants.
    #[error("{0}")]
    LocalCa(Box<LocalFault>),
    /// The TLS settings cannot be put in force.
    #[error("[tls]: {}", with_causes(.0))]
    Tls(#[from] PolicyError),
    /// A site cannot be built.
    #[error(transparent)]
    Build(#[from] crate::edge::snapshot::BuildError),
    /// The program log cannot be opened.
    #[error("{}", with_causes(.0))]
    Log(#[from] LogsError),
    /// The thread that writes the access log cannot be started.
    #[error("cannot start the access log: {0}")]
    Access(std::io::Error),
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "; another server (nginx, Apache, another doorward) has this port",
        std::io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE (see systemd/doorward.service)"
        }
        _ => "",
    }
}
