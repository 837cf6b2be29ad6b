//! Files of passwords, and error pages.

use std::path::Path;

use super::Finding;
use crate::config::{BasicAuth, Certificate, Config, Plain, Site};
use crate::edge::password_file;
use crate::edge::passwords::BadLine;
use crate::upstream::files::root::Root;

pub(super) fn check(config: &Config, findings: &mut Vec<Finding>) {
    for site in &config.sites {
        let routes = site.routes.iter().filter_map(|route| match &route.basic_auth {
            BasicAuth::File(path) => Some(path.as_path()),
            BasicAuth::Site | BasicAuth::Off => None,
        });
        let files: Vec<&Path> = site.access.basic_auth.as_deref().into_iter().chain(routes).collect();
        for path in &files {
            passwords(site, path, findings);
        }
        let plain =
            !config.server.http.is_empty() && site.plain == Plain::Serve || site.certificate == Certificate::Off;
        if plain && !files.is_empty() {
            let message = "`basic_auth` asks for passwords over plain HTTP, where everybody on the way can read them";
            let help = "write http = \"redirect\", unless a proxy in front of this one does TLS";
            findings.push(Finding::warning(Some(&site.name), message, help));
        }
        error_pages(site, findings);
    }
}

fn passwords(site: &Site, path: &Path, findings: &mut Vec<Finding>) {
    let name = Some(site.name.as_str());
    match password_file::read(path) {
        Ok((users, bad)) => {
            for BadLine { number, why } in bad {
                let message = format!("{}, line {number}: {why}", path.display());
                findings.push(Finding::warning(name, message, "nobody can sign in by that line"));
            }
            if users.count() == 0 {
                let message = format!("`basic_auth`: {} has no users, and nobody can sign in", path.display());
                findings.push(Finding::warning(name, message, "add one: htpasswd -B FILE NAME"));
            }
        }
        Err(why) => {
            let message = format!("`basic_auth`: {} cannot be read, and nobody can sign in: {why}", path.display());
            let help = "make it with `htpasswd -B -c`, and let the account of the server read it";
            findings.push(Finding::error(name, message, help));
        }
    }
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) && !site.dotfiles;
    if site.root.as_ref().is_some_and(|root| path.starts_with(root)) && !hidden {
        let message = format!("`basic_auth`: {} lies below the root, and can be downloaded", path.display());
        findings.push(Finding::warning(name, message, "move it out of there"));
    }
}

fn error_pages(site: &Site, findings: &mut Vec<Finding>) {
    let Some(root) = &site.root else { return };
    for (statuses, page) in &site.error_pages {
        if let Err(why) = Root::new(root).open(page.as_bytes()) {
            let message = format!("`error_pages`, {statuses}: /{page} below {}: {why}", root.display());
            findings.push(Finding::warning(Some(&site.name), message, "the plain page stands in until it is there"));
        }
    }
}
