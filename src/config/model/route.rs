//! `[[site.NAME.route]]` and `[[site.NAME.redirect]]`.

use std::path::PathBuf;

use super::upstream::{HttpUpstream, Php};
use crate::base::network::Networks;
use crate::base::pattern::PathPattern;

/// One `[[site.x.route]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The path.
    pub matcher: Matcher,
    /// The methods; empty is all.
    pub methods: Vec<String>,
    /// Who may; `None` is everybody.
    pub allow: Option<Networks>,
    /// Who may not, whatever `allow` says.
    pub deny: Networks,
    /// What those get who may not.
    pub deny_status: u16,
    /// Who is asked for a password.
    pub basic_auth: BasicAuth,
    /// The `[limit.*]` that requests are held to, beside the site's.
    pub limit: Option<String>,
    /// What it does.
    pub action: Action,
    /// The front of the path that the destination does not see.
    pub strip_prefix: Option<String>,
    /// What the destination sees instead of the stripped prefix, or of the pattern's own stem.
    pub replace_prefix: Option<String>,
    /// `Cache-Control` of its answers.
    pub cache_control: Option<String>,
}

/// Who is asked for a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BasicAuth {
    /// As the site says.
    Site,
    /// Nobody.
    Off,
    /// Everybody, with the users of this htpasswd file.
    File(PathBuf),
}

/// The path of a route.
#[derive(Debug, Clone)]
pub enum Matcher {
    /// `path`
    Path(PathPattern),
    /// `path_regex`, over the decoded, canonical path.
    Regex(regex::bytes::Regex),
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Matcher) -> bool {
        match (self, other) {
            (Matcher::Path(a), Matcher::Path(b)) => a == b,
            (Matcher::Regex(a), Matcher::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// What a route does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// `upstream`
    Http(HttpUpstream),
    /// `php`; runs under the site's root.
    Php(Php),
    /// `root`: files, the whole path below this folder.
    Root(PathBuf),
    /// `alias`: files, what the pattern's `*` stands for below this folder.
    Alias(PathBuf),
    /// `redirect`
    Redirect {
        /// Where to; `{rest}` is what `*` stands for.
        to: String,
        /// 301 unless said.
        status: u16,
    },
    /// `respond`
    Respond {
        /// 200 unless said.
        status: u16,
        /// The body, may be empty.
        body: String,
        /// Its media type.
        content_type: String,
    },
}

/// One `[[site.x.redirect]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// The path.
    pub from: PathPattern,
    /// Where to; `{rest}` is what `*` stands for.
    pub to: String,
    /// 301 unless said.
    pub status: u16,
}
