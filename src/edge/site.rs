//! A site as requests see it: its rules, and what it does to requests and answers. Made by `edge::snapshot`, never
//! changed.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::base::fault::{Fault, Kind};
use crate::base::host::{Host, HostPattern};
use crate::base::pattern::PathPattern;
use crate::edge::access::SiteLog;
use crate::edge::error_pages::ErrorPages;
use crate::edge::gate::Addresses;
use crate::edge::generation::Generation;
use crate::edge::handshake::SocketRules;
use crate::edge::limits::Limit;
use crate::edge::password_file::PasswordFile;
use crate::http::path::CanonicalPath;
use crate::http::request::ClientRequest;
use crate::route::{Asked, Rule, RuleTable};
use crate::upstream::files::root::Root;
use crate::upstream::files::try_files::TryFiles;
use crate::upstream::http::HttpUpstream;
use crate::upstream::php::PhpUpstream;

/// One site.
pub struct Site {
    /// Its name in the file: the label in logs.
    pub name: Arc<str>,
    /// The host that aliases lead to.
    pub canonical: Option<Host>,
    /// The hosts that it claims; one with `default` gets others as well.
    pub hosts: Vec<HostPattern>,
    /// Hosts that are redirected to the canonical one.
    pub aliases: HashSet<Host>,
    /// Whether the plain listeners redirect to https.
    pub redirects_plain: bool,
    /// The port of https that redirects lead to.
    pub https_port: u16,
    /// Who may see it.
    pub addresses: Addresses,
    /// What all of its requests are held to.
    pub limit: Option<Limit>,
    /// What asks for a name and a password.
    pub challenge: HeaderValue,
    /// Pages in place of Doorward's own.
    pub error_pages: ErrorPages,
    /// Bytes of a request body; `None` is no limit.
    pub max_body: Option<u64>,
    /// Whether back ends get the Forwarded field of RFC 7239 as well.
    pub forwarded: bool,
    /// What back ends get beside the client's own fields.
    pub request_headers: Edits,
    /// What is done to every answer.
    pub answers: AnswerPolicy,
    /// X-Accel-Redirect: path prefix → folder, longest prefix first.
    pub accel: Vec<(String, Root)>,
    /// Where its access log lines go; `None` is off.
    pub log: Option<Arc<SiteLog>>,
    /// Where requests go: the first that takes one.
    pub rules: RuleTable<Route>,
    /// Whether all sockets may come over HTTP/2 as well (RFC 8441). What a connection offers is for all paths of a
    /// host: one socket server that is to have none of it switches it off for its site.
    pub http2_sockets: bool,
    /// The configuration that it is of.
    pub generation: Arc<Generation>,
}

/// One way that a request can take.
pub struct Route {
    /// What it is called in `explain`: `websocket /socket.io/*`.
    pub label: String,
    /// Who may.
    pub addresses: Addresses,
    /// What the others get.
    pub deny_status: u16,
    /// Whether it takes what no path of the file names: the site itself, and `upgrade = "any"`.
    pub takes_the_rest: bool,
    /// What requests are held to beside the site's limit; of a websocket block, handshakes alone.
    pub limit: Option<Limit>,
    /// The users who may; `None` asks nobody.
    pub passwords: Option<Arc<PasswordFile>>,
    /// How the path changes.
    pub rewrite: Option<Rewrite>,
    /// Set where upgrades are taken: what is asked of them.
    pub socket: Option<SocketRules>,
    /// `Cache-Control` of the answers.
    pub cache_control: Option<HeaderValue>,
    /// What it does.
    pub action: Action,
}

/// How the path changes on its way to the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// What is taken off the front, at the end of a segment.
    pub strip: String,
    /// What is put there.
    pub put: String,
}

/// What a route does.
#[allow(clippy::large_enum_variant, reason = "one a route, made with the snapshot; a request only borrows it")]
pub enum Action {
    /// An HTTP destination.
    Http(HttpUpstream),
    /// Files, with what runs behind them.
    Files {
        /// The rule that finds files, scripts, or neither.
        files: TryFiles,
        /// What runs scripts.
        php: Option<PhpUpstream>,
        /// What answers when there is no file.
        http: Option<HttpUpstream>,
    },
    /// Elsewhere.
    Redirect {
        /// For `{rest}`.
        pattern: Option<PathPattern>,
        /// Where to.
        to: String,
        /// 301, 302, 303, 307 or 308.
        status: u16,
    },
    /// A fixed answer.
    Respond {
        /// Its status.
        status: u16,
        /// Its body.
        body: Bytes,
        /// Its media type.
        content_type: String,
    },
}

/// What is done to every answer of a site.
#[derive(Debug, Clone, Default)]
pub struct AnswerPolicy {
    /// Fields that are set, added and removed.
    pub edits: Edits,
    /// Fields that are set where the application has not: the security headers.
    pub defaults: Vec<(HeaderName, HeaderValue)>,
    /// Strict-Transport-Security, on TLS.
    pub hsts: Option<HeaderValue>,
    /// `Cache-Control` for style sheets, scripts, images and fonts.
    pub assets: Option<HeaderValue>,
    /// Whether answers are compressed.
    pub compress: bool,
}

/// Changes to header fields.
#[derive(Debug, Clone, Default)]
pub struct Edits {
    /// Fields that are removed, before the others are set.
    pub remove: Vec<HeaderName>,
    /// Fields that are replaced.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that are added beside those that are there.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl Edits {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Carries the changes out.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
    }
}

impl Site {
    /// Whether `host` is redirected to the canonical one.
    pub fn is_alias(&self, host: &Host) -> bool {
        !self.aliases.is_empty() && self.aliases.contains(host)
    }

    /// The name of the server for a request that asked for `host`, where that is none of the file's: a client may write
    /// what it likes there, and applications have put SERVER_NAME into mails (WordPress, CVE-2017-8295).
    pub fn stand_in_name(&self, host: &Host) -> Option<Host> {
        if self.hosts.iter().any(|pattern| pattern.matches(host)) { None } else { self.canonical.clone() }
    }

    /// Refuses a client that may not come here, or not as often.
    pub fn check(&self, request: &ClientRequest) -> Result<(), Fault> {
        self.addresses.check(request.client.address, 403)?;
        self.limit.as_ref().map_or(Ok(()), |limit| limit.count(request))
    }

    /// Whether `request`, unless it is a socket over HTTP/2, may go to `route`. Such a one is a socket or nothing: it
    /// is refused where HTTP/1.1's handshake would go on as a plain request.
    pub fn check_socket(&self, route: &Route, request: &ClientRequest) -> Result<(), Fault> {
        if !request.is_extended_connect() {
            return Ok(());
        }
        if !route.takes_sockets() {
            return Err(Fault::new(Kind::NotFound, format!("{} takes no sockets", route.label)));
        }
        if !self.http2_sockets {
            // RFC 9110, section 15.5.20: a client that gets 421 "MAY retry the request … over a different connection".
            return Err(Fault::new(Kind::Misdirected, "sockets over HTTP/2 are off here (websocket.http2)"));
        }
        Ok(())
    }

    /// Whose rules a request to `route` is held to: its own, and where it was found by no path of its own, also those of
    /// what a destination may take it for. An application may answer a handshake as the plain request that it is as well,
    /// and PHP takes what stands behind a script's name for the page that is asked for.
    pub fn gates<'s>(&'s self, route: &'s Route, request: &ClientRequest) -> [Option<&'s Route>; 3] {
        if !route.takes_the_rest {
            return [Some(route), None, None];
        }
        let plain = |path| {
            let asked = Asked { path, method: request.method.as_str(), websocket: false };
            self.rules.find(asked).map(|rule| &rule.target).filter(|other| !std::ptr::eq(*other, route))
        };
        let path = request.path.decoded();
        let handshake = if request.websocket { plain(path) } else { None };
        [Some(route), handshake, behind_script(path).and_then(plain)]
    }

    /// The route of a request.
    pub fn route(&self, request: &ClientRequest) -> Result<&Route, Fault> {
        let rule = self.rules.find(Asked {
            path: request.path.decoded(),
            method: request.method.as_str(),
            websocket: request.websocket,
        });
        rule.map(|rule: &Rule<Route>| &rule.target)
            .ok_or_else(|| Fault::new(Kind::NotFound, format!("no route of site {} takes this", self.name)))
    }
}

impl Route {
    /// Refuses a client that may not come here, or not as often.
    pub fn check(&self, request: &ClientRequest) -> Result<(), Fault> {
        self.addresses.check(request.client.address, self.deny_status)?;
        self.limit(request).map_or(Ok(()), |limit| limit.count(request))
    }

    /// The limit of its own that `request` is held to. Long polling goes the way of a socket, too, but is no handshake:
    /// only the site's limit holds for it.
    pub fn limit(&self, request: &ClientRequest) -> Option<&Limit> {
        self.limit.as_ref().filter(|_| self.socket.is_none() || request.websocket)
    }

    /// Whether WebSocket handshakes go through.
    pub fn takes_sockets(&self) -> bool {
        self.socket.is_some()
    }

    /// The path that the destination sees; `None` is the request's own.
    pub fn rewrite(&self, path: &CanonicalPath) -> Option<CanonicalPath> {
        let Rewrite { strip, put } = self.rewrite.as_ref()?;
        path.replace_prefix(strip, put)
    }
}

/// What stands behind the first segment that ends in `.php`, as PATH_INFO: `/login` of `/index.php/login`.
fn behind_script(path: &[u8]) -> Option<&[u8]> {
    let end = memchr::memmem::find(path, b".php/")?;
    path.get(end + b".php".len()..)
}
