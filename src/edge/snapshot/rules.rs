//! One site of the file: its rules in their order, and what it does to requests and answers.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::destination::Destinations;
use super::{BuildError, Surroundings, header_name, site_log};
use crate::base::gcra::Gcra;
use crate::base::host::{Host, HostPattern};
use crate::base::pattern::PathPattern;
use crate::config::{self, Api, Config, Plain, Preset, Site as SiteConfig, UpgradeRule};
use crate::edge::error_pages::ErrorPages;
use crate::edge::gate::Addresses;
use crate::edge::handshake::SocketRules;
use crate::edge::limits::Limit;
use crate::edge::password_file::PasswordFile;
use crate::edge::places::PlaceLimits;
use crate::edge::sign_in;
use crate::edge::site::{Action, AnswerPolicy, Edits, Rewrite, Route, Site};
use crate::route::{Matcher, Rule, RuleTable};
use crate::tunnel;
use crate::upstream::files::root::Root;

/// Builds `site`.
pub(super) fn build(config: &Config, site: &SiteConfig, surroundings: &Surroundings<'_>) -> Result<Site, BuildError> {
    let rules = Rules { config, site, to: Destinations { config, site, surroundings } };
    let canonical = site.hosts.iter().find_map(|pattern| match pattern {
        HostPattern::Exact(host) => Some(host.clone()),
        HostPattern::AtOrBelow(host) => Some(host.clone()),
        _ => None,
    });
    let https = config.server.https.iter().find(|a| site.listen.is_empty() || site.listen.contains(a));
    let output = match &site.access_log {
        Some(own) => own.as_ref(),
        None => config.log.access.as_ref(),
    };
    Ok(Site {
        name: site.name.as_str().into(),
        canonical,
        hosts: site.hosts.clone(),
        aliases: site.aliases.iter().cloned().collect::<HashSet<Host>>(),
        redirects_plain: site.plain == Plain::Redirect,
        https_port: https.map_or(443, |a| surroundings.ports.get(a).copied().unwrap_or(a.port)),
        addresses: Addresses { allow: site.access.allow.clone(), deny: site.access.deny.clone() },
        limit: rules.limit(site.limit.as_deref()),
        challenge: sign_in::challenge(&site.name),
        error_pages: error_pages(site),
        max_body: site.max_body,
        forwarded: site.forwarded,
        request_headers: edits(&site.request_headers),
        answers: answers(site),
        accel: site.accel.iter().map(|(prefix, folder)| (prefix.clone(), Root::new(folder))).collect(),
        log: site_log(config, surroundings.access, output, &site.skip_paths)?,
        rules: RuleTable::new(rules.in_order()?)
            .map_err(|source| BuildError::Regex { site: site.name.clone(), source })?,
        http2_sockets: !site.websockets.is_empty() && site.websockets.iter().all(|socket| socket.http2),
        generation: surroundings.generation.clone(),
    })
}

/// The rules of a site.
struct Rules<'a> {
    config: &'a Config,
    site: &'a SiteConfig,
    to: Destinations<'a>,
}

impl Rules<'_> {
    /// The rules in their order: socket paths, redirects, every other upgrade, routes, then the site itself. Socket
    /// paths come first for plain requests too: long polling is not an Upgrade.
    fn in_order(&self) -> Result<Vec<Rule<Route>>, BuildError> {
        let mut rules = Vec::new();
        for socket in &self.site.websockets {
            // Before the paths: a wide one of them does not open it.
            if socket.preset == Preset::Pusher {
                rules.push(self.api_rule(socket)?);
            }
            for path in &socket.paths {
                let required = socket.upgrade == UpgradeRule::Required;
                rules.push(self.socket_rule(socket, path, required, format!("websocket {path}"))?);
            }
        }
        for redirect in &self.site.redirects {
            let action = Action::Redirect {
                pattern: Some(redirect.from.clone()),
                to: redirect.to.clone(),
                status: redirect.status,
            };
            rules.push(rule(redirect.from.clone(), self.route(format!("redirect {}", redirect.from), action)));
        }
        for socket in self.site.websockets.iter().filter(|socket| socket.upgrade == UpgradeRule::Any) {
            let label = "websocket upgrade = \"any\"".to_owned();
            let mut any = self.socket_rule(socket, &everything(), true, label)?;
            any.target.takes_the_rest = true;
            rules.push(any);
        }
        for configured in &self.site.routes {
            rules.push(self.route_rule(configured)?);
        }
        if let Some(action) = self.to.application()? {
            let target = Route { takes_the_rest: true, ..self.route("the site itself".to_owned(), action) };
            rules.push(rule(everything(), target));
        }
        Ok(rules)
    }

    fn socket_rule(
        &self,
        socket: &config::WebSocket,
        path: &PathPattern,
        upgrade: bool,
        label: String,
    ) -> Result<Rule<Route>, BuildError> {
        let mut to = self.route(label, Action::Http(self.to.http(&socket.upstream)?));
        to.limit = self.limit(socket.limit.as_deref());
        to.socket = Some(SocketRules {
            block: self.block_name(socket).into(),
            places: PlaceLimits { all: socket.max_connections, per_address: socket.max_connections_per_ip },
            origins: socket.origins.clone(),
            idle_timeout: socket.idle_timeout,
            client: tunnel::rules::Rules {
                max_message: socket.max_message,
                message_rate: socket.message_rate,
                ping_interval: socket.ping_interval,
            },
        });
        Ok(Rule { upgrade, ..rule(path.clone(), to) })
    }

    /// What a websocket block is called in the register of places: blocks have no names, but no two of a site have the
    /// same paths.
    fn block_name(&self, socket: &config::WebSocket) -> String {
        let any = if socket.upgrade == UpgradeRule::Any { " any" } else { "" };
        let paths: Vec<String> = socket.paths.iter().map(PathPattern::to_string).collect();
        format!("{}{any} {}", self.site.name, paths.join(" "))
    }

    /// `/apps/*` of the Pusher protocol publishes events: closed unless the file opens it.
    fn api_rule(&self, socket: &config::WebSocket) -> Result<Rule<Route>, BuildError> {
        let path = PathPattern::Below("/apps".to_owned());
        let label = "websocket api /apps/*".to_owned();
        Ok(match &socket.api {
            Api::Closed => rule(path, self.route(label, respond(404))),
            Api::Open => self.socket_rule(socket, &path, false, label)?,
            Api::Only(networks) => {
                let mut open = self.socket_rule(socket, &path, false, label)?;
                open.target.addresses.allow = Some(networks.clone());
                open
            }
        })
    }

    /// A route that is open to whom the site is.
    fn route(&self, label: String, action: Action) -> Route {
        Route {
            label,
            addresses: Addresses::default(),
            deny_status: 403,
            takes_the_rest: false,
            limit: None,
            passwords: self.passwords(),
            rewrite: None,
            socket: None,
            cache_control: None,
            action,
        }
    }

    /// The site's users.
    fn passwords(&self) -> Option<Arc<PasswordFile>> {
        self.site.access.basic_auth.as_deref().map(|file| self.to.surroundings.gate.sign_in.file(file))
    }

    /// The limit of this name; a checked file has every one that it names.
    fn limit(&self, name: Option<&str>) -> Option<Limit> {
        let limit = self.config.rate_limits.iter().find(|limit| Some(limit.name.as_str()) == name)?;
        let name: Arc<str> = limit.name.as_str().into();
        Some(Limit {
            field: match &limit.key {
                config::LimitKey::ClientIp => None,
                config::LimitKey::Header(name) => header_name(name),
            },
            rate: Gcra::new(limit.rate, limit.burst),
            status: limit.status,
            table: self.to.surroundings.gate.limits.table(&name),
            name,
        })
    }

    fn route_rule(&self, configured: &config::Route) -> Result<Rule<Route>, BuildError> {
        let (matcher, pattern, name) = match &configured.matcher {
            config::Matcher::Path(p) => (Matcher::Path(p.clone()), Some(p.clone()), p.to_string()),
            config::Matcher::Regex(r) => (Matcher::Regex(r.clone()), None, r.as_str().to_owned()),
        };
        let stem = pattern.as_ref().map(|pattern| match pattern {
            PathPattern::Exact(stem) | PathPattern::Below(stem) | PathPattern::Prefix(stem) => stem.clone(),
        });
        let mut alias = None;
        let action = match &configured.action {
            config::Action::Http(upstream) => Action::Http(self.to.http(upstream)?),
            config::Action::Php(php) => self.to.php_files(php)?,
            config::Action::Root(folder) => self.to.plain_files(folder),
            config::Action::Alias(folder) => {
                alias = Some(Rewrite { strip: stem.clone().unwrap_or_default(), put: String::new() });
                self.to.plain_files(folder)
            }
            config::Action::Redirect { to, status } => Action::Redirect { pattern, to: to.clone(), status: *status },
            config::Action::Respond { status, body, content_type } => {
                Action::Respond { status: *status, body: body.clone().into(), content_type: content_type.clone() }
            }
        };
        let rewrite = match (&configured.strip_prefix, &configured.replace_prefix) {
            (None, None) => alias,
            (strip, put) => Some(Rewrite {
                strip: strip.clone().or(stem).unwrap_or_default(),
                put: put.clone().unwrap_or_default(),
            }),
        };
        let target = Route {
            addresses: Addresses { allow: configured.allow.clone(), deny: configured.deny.clone() },
            deny_status: configured.deny_status,
            // The site has counted its own already.
            limit: self.limit(configured.limit.as_deref().filter(|name| self.site.limit.as_deref() != Some(name))),
            passwords: match &configured.basic_auth {
                config::BasicAuth::Site => self.passwords(),
                config::BasicAuth::Off => None,
                config::BasicAuth::File(file) => Some(self.to.surroundings.gate.sign_in.file(file)),
            },
            rewrite,
            cache_control: configured.cache_control.as_deref().and_then(|v| HeaderValue::from_str(v).ok()),
            ..self.route(format!("route {name}"), action)
        };
        Ok(Rule { matcher, methods: configured.methods.clone(), upgrade: false, target })
    }
}

fn error_pages(site: &SiteConfig) -> ErrorPages {
    let Some(root) = &site.root else { return ErrorPages::default() };
    let pages = site.error_pages.iter().map(|(statuses, file)| (statuses.first..=statuses.last, file.clone()));
    ErrorPages::new(&Arc::new(Root::new(root)), pages)
}

fn everything() -> PathPattern {
    PathPattern::Below(String::new())
}

fn rule(path: PathPattern, target: Route) -> Rule<Route> {
    Rule { matcher: Matcher::Path(path), methods: Vec::new(), upgrade: false, target }
}

fn respond(status: u16) -> Action {
    Action::Respond { status, body: Default::default(), content_type: String::new() }
}

fn answers(site: &SiteConfig) -> AnswerPolicy {
    let max_age =
        |prefix: &str, age: Duration| HeaderValue::from_str(&format!("{prefix}max-age={}", age.as_secs())).ok();
    let security = [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "SAMEORIGIN"),
        ("referrer-policy", "strict-origin-when-cross-origin"),
    ];
    AnswerPolicy {
        edits: edits(&site.response_headers),
        defaults: security
            .iter()
            .filter(|_| site.security_headers)
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect(),
        hsts: site.hsts.and_then(|age| max_age("", age)),
        assets: site.assets.and_then(|age| max_age("", age)),
        compress: site.compress,
    }
}

fn edits(edits: &config::HeaderEdits) -> Edits {
    let pairs = |map: &BTreeMap<String, String>| {
        map.iter().filter_map(|(name, value)| Some((header_name(name)?, HeaderValue::from_str(value).ok()?))).collect()
    };
    Edits {
        set: pairs(&edits.set),
        add: pairs(&edits.add),
        remove: edits.remove.iter().filter_map(|name| header_name(name)).collect(),
    }
}
