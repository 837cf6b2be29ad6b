//! `[site.NAME]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::general::{CertificateFiles, LogOutput};
use super::route::{Redirect, Route};
use super::upstream::{HttpUpstream, Php, StatusRange};
use super::websocket::WebSocket;
use crate::base::address::ListenAddress;
use crate::base::host::{Host, HostPattern};
use crate::base::network::Networks;
use crate::base::pattern::PathPattern;

/// `[site.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// The table's name: the label in logs and messages.
    pub name: String,
    /// The hosts it answers for.
    pub hosts: Vec<HostPattern>,
    /// Hosts that are answered with 301 to the first of `hosts`.
    pub aliases: Vec<Host>,
    /// Whether it takes requests that no other site claims.
    pub default: bool,
    /// Only on these addresses of `[server]`; empty is all.
    pub listen: Vec<ListenAddress>,
    /// What the plain listeners do.
    pub plain: Plain,
    /// Where its certificate comes from.
    pub certificate: Certificate,
    /// The document root.
    pub root: Option<PathBuf>,
    /// File names that stand for a folder.
    pub index: Vec<String>,
    /// What runs behind the files.
    pub application: Option<Application>,
    /// What is tried in turn; the first that exists answers.
    pub try_files: Vec<TryFile>,
    /// Whether answers are compressed.
    pub compress: bool,
    /// Bytes of a request body; `None` is no limit.
    pub max_body: Option<u64>,
    /// Whether files and folders whose name starts with a dot are served.
    pub dotfiles: bool,
    /// Whether sources, their copies, backups and dumps are served as files, all but `.php`.
    pub sources: bool,
    /// `Cache-Control: max-age` of style sheets, scripts, images and fonts.
    pub assets: Option<Duration>,
    /// Whether nosniff, SAMEORIGIN and a Referrer-Policy are set.
    pub security_headers: bool,
    /// `max-age` of Strict-Transport-Security.
    pub hsts: Option<Duration>,
    /// Changes to what the back end gets.
    pub request_headers: HeaderEdits,
    /// Changes to what the client gets.
    pub response_headers: HeaderEdits,
    /// Its own access log, if it has one: `Some(None)` is off.
    pub access_log: Option<Option<LogOutput>>,
    /// Paths that are not logged, beside those of `[log]`.
    pub skip_paths: Vec<PathPattern>,
    /// X-Accel-Redirect: path prefix → folder, longest prefix first.
    pub accel: Vec<(String, PathBuf)>,
    /// The `[limit.*]` that its requests are held to.
    pub limit: Option<String>,
    /// Who may see it.
    pub access: Access,
    /// Pages in place of Doorward's own: file below the root, the narrowest first.
    pub error_pages: Vec<(StatusRange, String)>,
    /// Whether back ends get the Forwarded field of RFC 7239 as well.
    pub forwarded: bool,
    /// `[site.x.websocket]`, one or several.
    pub websockets: Vec<WebSocket>,
    /// `[[site.x.route]]`, in file order.
    pub routes: Vec<Route>,
    /// `[[site.x.redirect]]`, in file order.
    pub redirects: Vec<Redirect>,
}

/// Who may see a site.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Only these; `None` is everybody.
    pub allow: Option<Networks>,
    /// Not these, whatever `allow` says.
    pub deny: Networks,
    /// The htpasswd file of those who may, and know their password.
    pub basic_auth: Option<PathBuf>,
}

/// What the plain listeners do for a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// Redirect to https: 301 for GET and HEAD, else 308.
    Redirect,
    /// Serve the site without TLS too.
    Serve,
    /// The site does not exist there.
    Off,
}

/// Where a site's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificate {
    /// The site is not on the TLS listeners.
    Off,
    /// A leaf of the local CA under `certs-dev`.
    SelfSigned,
    /// The authority of `[acme]`, for all hosts and aliases of the site.
    Acme,
    /// Files, watched.
    Files(CertificateFiles),
}

/// What runs behind the files of a site.
#[derive(Debug, Clone, PartialEq)]
pub enum Application {
    /// PHP-FPM.
    Php(Php),
    /// An HTTP application server.
    Http(HttpUpstream),
}

/// One step of `try_files`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TryFile {
    /// `{path}`: the file of the request's path.
    Path,
    /// `{path}/`: the folder of the request's path, through its index.
    Folder,
    /// `/index.php`, `/index.html`: this file, whatever was asked for.
    File(String),
    /// `@upstream`: the HTTP application.
    Upstream,
    /// `=404`: this status.
    Status(u16),
}

/// Changes to header fields. Names are lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Fields that are replaced.
    pub set: BTreeMap<String, String>,
    /// Fields that are added beside those that are there.
    pub add: BTreeMap<String, String>,
    /// Fields that are removed.
    pub remove: Vec<String>,
}
