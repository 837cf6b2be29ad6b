//! What the file says, as requests see it: built whole from a [`Config`], replaced whole by a reload. The only place
//! in the data path that knows the configuration.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderName;
use rustc_hash::FxHashMap;

use crate::base::address::ListenAddress;
use crate::base::host::{Host, HostPattern};
use crate::base::pattern::PathPattern;
use crate::config::{self, Certificate, Config, Plain, Site as SiteConfig};
use crate::edge::access::format::{Format, InvalidTemplate, Template};
use crate::edge::access::sink::Target;
use crate::edge::access::{AccessLog, SiteLog};
use crate::edge::gate::Gate;
use crate::edge::generation::Generation;
use crate::edge::site::{Action, Site};
use crate::http::request::{HeadLimits, Trust};
use crate::route::HostTable;
use crate::upstream::files::root::Root;
use crate::upstream::http::{BackEndRegister, HttpUpstream, UpstreamTlsError, Watch};

mod destination;
mod rules;

pub use destination::settings as upstream_settings;

/// See the module.
pub struct Snapshot {
    /// Tells when this configuration has left the memory.
    pub generation: Arc<Generation>,
    /// The sites of each listener, by host.
    listeners: FxHashMap<ListenAddress, HostTable<Arc<Site>>>,
    /// A host of each site whose sockets are not to come over HTTP/2; of a pattern, one that it stands for.
    without_http2_sockets: Vec<Host>,
    /// Whose word about the client counts.
    pub trust: Trust,
    /// Whether connections of trusted proxies begin with a PROXY head.
    pub proxy_protocol: bool,
    /// What connections keep of it.
    pub terms: Arc<Terms>,
    /// Bytes of memory; 0 is a share of what there is.
    pub max_memory: u64,
    /// Where the lines of requests go that no site was found for.
    pub log: Option<Arc<SiteLog>>,
    /// What TLS listeners speak.
    pub tls: Arc<rustls::ServerConfig>,
    /// Where another ACME client leaves its challenges.
    pub webroot: Option<Root>,
    /// Who is asked for the addresses of back ends; none are the system's.
    pub resolvers: Vec<SocketAddr>,
    /// What of limits and passwords outlives it.
    pub gate: Arc<Gate>,
    /// What is to be asked of back ends again and again; none asks the same as another.
    pub watches: Vec<Arc<Watch>>,
}

/// What a connection keeps of the configuration that it began under, which may be gone by then.
#[derive(Debug)]
pub struct Terms {
    /// The limits of a head.
    pub limits: HeadLimits,
    /// How long is waited for whom.
    pub timeouts: config::Timeouts,
    /// Bytes a second that a client which is waited for sends or takes; `None` is no limit.
    pub min_rate: Option<u64>,
}

/// Why a checked configuration cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The TLS settings towards a back end.
    #[error("site {site}: {source}")]
    UpstreamTls {
        /// The site.
        site: String,
        /// What is wrong.
        source: UpstreamTlsError,
    },
    /// An access log cannot be opened.
    #[error("cannot open the access log {target}: {source}")]
    Log {
        /// Where it would be.
        target: Target,
        /// Why.
        source: std::io::Error,
    },
    /// The template of the access log.
    #[error("log.format: {0}")]
    Template(#[from] InvalidTemplate),
    /// A regular expression is too large.
    #[error("site {site}: the path_regex of its routes are too large together: {source}")]
    Regex {
        /// The site.
        site: String,
        /// What is wrong.
        source: regex::Error,
    },
}

/// What a snapshot needs beside the file.
pub struct Surroundings<'a> {
    /// The ports that listeners are bound to, where the file says 0.
    pub ports: &'a HashMap<ListenAddress, u16>,
    /// Load of back ends.
    pub back_ends: &'a BackEndRegister,
    /// Who has asked how often, and who has signed in.
    pub gate: &'a Arc<Gate>,
    /// What TLS listeners speak.
    pub tls: Arc<rustls::ServerConfig>,
    /// What writes the access log; `None` writes none.
    pub access: Option<&'a AccessLog>,
    /// Held by all that is built.
    pub generation: Arc<Generation>,
}

impl Snapshot {
    /// Builds what `config` means. Reads the certificates that back ends are verified with.
    pub fn build(config: &Config, surroundings: Surroundings<'_>) -> Result<Snapshot, BuildError> {
        let mut listeners: FxHashMap<ListenAddress, HostTable<Arc<Site>>> = FxHashMap::default();
        let mut watches: HashMap<Arc<str>, Arc<Watch>> = HashMap::new();
        for site in &config.sites {
            let built = Arc::new(rules::build(config, site, &surroundings)?);
            for watch in upstreams(&built).flat_map(HttpUpstream::watches) {
                watches.insert(Arc::clone(watch.key()), Arc::clone(watch));
            }
            for address in addresses_of(config, site) {
                let table = listeners.entry(address).or_default();
                for host in &site.hosts {
                    table.insert(host, built.clone());
                }
                for alias in &site.aliases {
                    table.insert(&HostPattern::Exact(alias.clone()), built.clone());
                }
                if site.default {
                    table.set_default(built.clone());
                }
            }
        }
        let server = &config.server;
        let switched_off = config.sites.iter().filter(|site| site.websockets.iter().any(|socket| !socket.http2));
        let without_http2_sockets = switched_off.flat_map(|site| site.hosts.iter().filter_map(example)).collect();
        Ok(Snapshot {
            generation: surroundings.generation,
            listeners,
            without_http2_sockets,
            trust: Trust {
                proxies: server.trusted_proxies.clone(),
                header: header_name(&server.client_ip_header).unwrap_or(HeaderName::from_static("x-forwarded-for")),
                cloudflare: config::cloudflare(),
            },
            proxy_protocol: server.proxy_protocol,
            terms: Arc::new(Terms {
                limits: HeadLimits {
                    max_uri: config.limits.max_uri,
                    max_headers: config.limits.max_headers,
                    max_header_size: config.limits.max_header_size,
                },
                timeouts: config.timeouts,
                min_rate: config.limits.min_rate,
            }),
            max_memory: server.max_memory,
            log: site_log(config, surroundings.access, config.log.access.as_ref(), &[])?,
            tls: surroundings.tls,
            gate: surroundings.gate.clone(),
            webroot: config.acme.webroot.clone().map(Root::new),
            resolvers: server.resolvers.clone(),
            watches: watches.into_values().collect(),
        })
    }

    /// The site that answers for `host` on `listener`.
    pub fn site(&self, listener: ListenAddress, host: &Host) -> Option<&Arc<Site>> {
        self.listeners.get(&listener)?.find(host)
    }

    /// The site of `host` on `listener`, if sockets may come over HTTP/2 on a connection for it (RFC 8441). Browsers use
    /// a connection for every host that its certificate `covers`, and one that is offered this falls back to HTTP/1.1
    /// no more: it must be true of all of them.
    pub fn offers_http2_sockets(&self, listener: ListenAddress, host: &Host, covers: impl Fn(&Host) -> bool) -> bool {
        self.site(listener, host).is_some_and(|site| site.http2_sockets)
            && !self.without_http2_sockets.iter().any(covers)
    }
}

/// Everything at `site` that has HTTP back ends.
fn upstreams(site: &Site) -> impl Iterator<Item = &HttpUpstream> {
    site.rules.rules().iter().filter_map(|rule| match &rule.target.action {
        Action::Http(upstream) => Some(upstream),
        Action::Files { http, .. } => http.as_ref(),
        _ => None,
    })
}

/// A host that `pattern` stands for.
fn example(pattern: &HostPattern) -> Option<Host> {
    match pattern {
        HostPattern::Exact(host) | HostPattern::AtOrBelow(host) => Some(host.clone()),
        HostPattern::Below(host) => Host::parse(&format!("x.{host}")).ok(),
        HostPattern::StartsWith(host) => Host::parse(&format!("{host}.x")).ok(),
    }
}

/// The listeners that a site is on.
fn addresses_of<'a>(config: &'a Config, site: &'a SiteConfig) -> impl Iterator<Item = ListenAddress> + 'a {
    let wanted = |address: &&ListenAddress| site.listen.is_empty() || site.listen.contains(address);
    let plain = config.server.http.iter().filter(|_| site.plain != Plain::Off);
    let tls = config.server.https.iter().filter(|_| site.certificate != Certificate::Off);
    plain.chain(tls).filter(wanted).copied()
}

/// What a site, or what has none, needs to write its lines.
fn site_log(
    config: &Config,
    access: Option<&AccessLog>,
    output: Option<&config::LogOutput>,
    skip_paths: &[PathPattern],
) -> Result<Option<Arc<SiteLog>>, BuildError> {
    let (Some(access), Some(output)) = (access, output) else { return Ok(None) };
    let format = match &config.log.format {
        config::AccessFormat::Combined => Format::Combined,
        config::AccessFormat::Common => Format::Common,
        config::AccessFormat::Json => Format::Json,
        config::AccessFormat::Template(text) => Format::Template(Template::parse(text)?),
    };
    let skip_paths = config.log.skip_paths.iter().chain(skip_paths).cloned().collect();
    let target = log_target(output);
    let log = access.site(&target, format, skip_paths, config.log.mask_query.clone());
    Ok(Some(Arc::new(log.map_err(|source| BuildError::Log { target, source })?)))
}

/// Where the file's word for an output leads.
pub fn log_target(output: &config::LogOutput) -> Target {
    match output {
        config::LogOutput::Stderr => Target::Stderr,
        config::LogOutput::Stdout => Target::Stdout,
        config::LogOutput::Syslog => Target::Syslog,
        config::LogOutput::File(path) => Target::File(path.clone()),
    }
}

fn header_name(name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).ok()
}
