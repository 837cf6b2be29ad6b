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
        let timeouts = &self.config.timeouts;
        let php = php::PhpUpstream::new(php::Settings {
            pools: configured.to.clone(),
            params: configured.params.clone(),
            connect: timeouts.connect,
            read: configured.read_timeout,
            send: timeouts.send,
            keep_alive: configured.keep_alive,
            server_software: "doorward".to_owned(),
        });
        let http = match &self.site.application {
            Some(Application::Http(upstream)) => Some(self.http(upstream)?),
            _ => None,
        };
        Ok(Action::Files { files: TryFiles::new(settings), php: Some(php), http })
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
        }
    }

    pub(super) fn http(&self, configured: &HttpConfig) -> Result<HttpUpstream, BuildError> {
        let timeouts = &self.config.timeouts;
        let tls = &configured.tls;
        let settings = upstream_http::Settings {
            back_ends: configured.to.clone(),
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
                config::Sticky::Cookie(name) => upstream_http::Sticky::Cookie(name.clone()),
                config::Sticky::Ip => upstream_http::Sticky::Ip,
            },
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
        };
        HttpUpstream::new(settings, self.surroundings.back_ends)
            .map_err(|source| BuildError::UpstreamTls { site: self.site.name.clone(), source })
    }
}
