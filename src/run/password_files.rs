//! The files of `basic_auth` that a reload newly names: one that cannot be read is a mistake in the file. One that was
//! named before and broke since keeps nobody from changing another site, as with certificates; its paths stay closed.

use std::path::Path;

use crate::config::{BasicAuth, Config};
use crate::edge::password_file;
use crate::run::refused::Refused;

/// Refuses a file that `config` names, `before` did not, and nobody could sign in with.
pub fn check(before: &Config, config: &Config) -> Result<(), Refused> {
    let known: Vec<(&str, &Path)> = named(before).collect();
    for (site, path) in named(config).filter(|(_, path)| !known.iter().any(|(_, known)| known == path)) {
        password_file::read(path).map_err(|source| Refused::Passwords {
            site: site.to_owned(),
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// The site and the path of each.
fn named(config: &Config) -> impl Iterator<Item = (&str, &Path)> {
    config.sites.iter().flat_map(|site| {
        let routes = site.routes.iter().filter_map(|route| match &route.basic_auth {
            BasicAuth::File(path) => Some(path.as_path()),
            BasicAuth::Site | BasicAuth::Off => None,
        });
        let all = site.access.basic_auth.as_deref().into_iter().chain(routes);
        all.map(|path| (site.name.as_str(), path))
    })
}
