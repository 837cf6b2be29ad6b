//! Where the requests of a site go: files, PHP, HTTP.

use std::path::Path;

use super::{BuildError, Surroundings};
use crate::config::{self, Application, Config, HttpUpstream as HttpConfig, Php, Scripts, Site as SiteConfig, TryFile};
use crate::edge::site::Action;
use crate::upstream::files::try_files::{self, TryFiles};
use crate::upstream::http::HttpUpstream;
use crate::upstream::{http as upstream_http, php};

/// Builds destinations of one site.
pub(super) struct Destinations<'a> {
    pub(super) config: &'a Config,
    pub(super) site: &'a SiteConfig,
    pub(super) surroundings: &'a Surroundings<'a>,
}

impl Destinations<'_> {
    /// What answers when nothing else has.
    pub(super) fn application(&self) -> Result<Option<Action>, BuildError> {
        let site = self.site;
        Ok(match (&site.root, &site.application) {
            (_, Some(Application::Php(php))) => Some(self.php_files(php)?),
            (None, Some(Application::Http(upstream))) => Some(Action::Http(self.http(upstream)?)),
            (Some(root), Some(Application::Http(upstream))) => {
                let files = TryFiles::new(self.files(root, &site.try_files, None));
                Some(Action::Files { files, php: None, http: Some(self.http(upstream)?) })
            }
            (Some(root), None) => {
                let files = TryFiles::new(self.files(root, &site.try_files, None));
                Some(Action::Files { files, php: None, http: None })
            }
            (None, None) => None,
        })
    }

    pub(super) fn php_files(&self, configured: &Php) -> Result<Action, BuildError> {
        let root = self.site.root.clone().unwrap_or_default();
        let scripts = match &configured.scripts {
            Scripts::Index => try_files::Scripts::Index,
            Scripts::All => try_files::Scripts::All,
            Scripts::Only(names) => try_files::Scripts::Only(names.clone()),
        };
        let rule = try_files::PhpRule { scripts, index: configured.index.clone() };
        let mut settings = self.files(&root, &self.site.try_files, Some(rule));
        settings.resolve_symlinks = configured.resolve_symlinks;
        let files = TryFiles::new(settings);
        let timeouts = &self.config.timeouts;
        let settings = php::Settings {
            pools: configured.to.clone(),
            params: configured.params.clone(),
            connect: timeouts.connect,
            read: configured.read_timeout,
            send: timeouts.send,
            keep_alive: configured.keep_alive,
            children: configured.children,
            queue: configured.queue,
            queue_timeout: configured.queue_timeout,
            restart_window: configured.restart_window,
            max_spooled: self.config.limits.max_spooled,
            server_software: "doorward".to_owned(),
        };
        let php = php::PhpUpstream::new(settings, &self.surroundings.back_ends.php);
        let http = match &self.site.application {
            Some(Application::Http(upstream)) => Some(self.http(upstream)?),
            _ => None,
        };
        Ok(Action::Files { files, php: Some(php), http })
    }

    pub(super) fn plain_files(&self, folder: &Path) -> Action {
        let files = TryFiles::new(self.files(folder, &[TryFile::Path, TryFile::Folder], None));
        Action::Files { files, php: None, http: None }
    }

    fn files(&self, root: &Path, steps: &[TryFile], php: Option<try_files::PhpRule>) -> try_files::Settings {
        try_files::Settings {
            root: root.to_owned(),
            resolve_symlinks: true,
            index: self.site.index.clone(),
            steps: steps
                .iter()
                .map(|step| match step {
                    TryFile::Path => try_files::Step::Path,
                    TryFile::Folder => try_files::Step::Folder,
                    TryFile::File(name) => try_files::Step::File(name.clone()),
                    TryFile::Upstream => try_files::Step::Upstream,
                    TryFile::Status(status) => try_files::Step::Status(*status),
                })
                .collect(),
            php,
            dotfiles: self.site.dotfiles,
            sources: self.site.sources,
        }
    }

    pub(super) fn http(&self, configured: &HttpConfig) -> Result<HttpUpstream, BuildError> {
        HttpUpstream::new(settings(self.config, self.site, configured), self.surroundings.back_ends)
            .map_err(|source| BuildError::UpstreamTls { site: self.site.name.clone(), source })
    }
}

/// What the file says of an HTTP destination of `site`.
pub fn settings(config: &Config, site: &SiteConfig, configured: &HttpConfig) -> upstream_http::Settings {
    let timeouts = &config.timeouts;
    let tls = &configured.tls;
    upstream_http::Settings {
        back_ends: configured.to.iter().map(back_end).collect(),
        tls: upstream_http::TlsSettings {
            insecure: tls.insecure,
            server_name: tls.server_name.clone(),
            ca: tls.ca.clone(),
            client: tls.client.as_ref().map(|files| (files.cert.clone(), files.key.clone())),
        },
        balance: match configured.balance {
            config::Balance::LeastConn => upstream_http::Balance::LeastConn,
            config::Balance::RoundRobin => upstream_http::Balance::RoundRobin,
            config::Balance::IpHash => upstream_http::Balance::IpHash,
            config::Balance::Random => upstream_http::Balance::Random,
        },
        sticky: match &configured.sticky {
            config::Sticky::Off => upstream_http::Sticky::Off,
            config::Sticky::Cookie(config::StickyCookie { name, secret }) => {
                upstream_http::Sticky::Cookie { name: name.clone(), secret: secret.clone() }
            }
            config::Sticky::Ip => upstream_http::Sticky::Ip,
            config::Sticky::Sid => upstream_http::Sticky::Sid { site: site.name.clone() },
        },
        slow_start: configured.slow_start,
        health: health(&configured.health),
        proxy_protocol: configured.proxy_protocol.map(|version| match version {
            config::ProxyProtocol::V1 => upstream_http::ProxyVersion::V1,
            config::ProxyProtocol::V2 => upstream_http::ProxyVersion::V2,
        }),
        host: match &configured.host {
            config::HostField::Preserve => upstream_http::HostField::Preserve,
            config::HostField::Upstream => upstream_http::HostField::Upstream,
            config::HostField::Literal(text) => upstream_http::HostField::Literal(text.clone()),
        },
        timeouts: upstream_http::Timeouts {
            connect: timeouts.connect,
            read: configured.read_timeout,
            send: timeouts.send,
        },
    }
}

fn back_end(configured: &config::BackEnd) -> upstream_http::BackEnd {
    let config::BackEnd { to, weight, backup } = configured;
    upstream_http::BackEnd { to: to.clone(), weight: *weight, backup: *backup }
}

fn health(configured: &config::Health) -> upstream_http::Health {
    let ranges = |statuses: &[config::StatusRange]| statuses.iter().map(|s| s.first..=s.last).collect();
    upstream_http::Health {
        probe: configured.probe.as_ref().map(|probe| upstream_http::Probe {
            path: probe.path.clone(),
            websocket: probe.websocket,
            status: ranges(&probe.status),
            host: probe.host.clone(),
            interval: probe.interval,
            timeout: probe.timeout,
            fails: probe.fails,
            passes: probe.passes,
        }),
        max_fails: configured.max_fails,
        fail_timeout: configured.fail_timeout,
        fail_status: ranges(&configured.fail_status),
    }
}
