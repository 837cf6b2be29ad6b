//! Who may see a site or a route, and what is shown instead of an error: `allow`, `deny`, `basic_auth`, `error_pages`.

use super::block::Block;
use super::item::Item;
use super::model::{Access, BasicAuth, StatusRange};
use super::tree::{Entry, Value};
use super::value;
use crate::base::network::Networks;

/// `allow`, `deny` and `basic_auth` of a site.
pub(super) fn of_site(block: &Block<'_>) -> Access {
    let basic_auth = block.path("basic_auth");
    Access { allow: allow(block), deny: deny(block), basic_auth }
}

/// `basic_auth` of a route: the site's, where it is absent.
pub(super) fn basic_auth(block: &Block<'_>) -> BasicAuth {
    let Some(item) = block.take("basic_auth") else { return BasicAuth::Site };
    match item.text() {
        Some("off") => BasicAuth::Off,
        Some("") => {
            item.problem("`basic_auth` is empty", "write \"off\", or the path of an htpasswd file");
            BasicAuth::Site
        }
        _ => item.path().map_or(BasicAuth::Site, BasicAuth::File),
    }
}

/// Only these ranges.
pub(super) fn allow(block: &Block<'_>) -> Option<Networks> {
    let item = block.take("allow")?;
    let (networks, written) = value::networks(&item)?;
    if written.is_empty() && item.node.value_is_empty_list() {
        item.problem("`allow` is empty: nobody would pass", "name ranges, such as [\"10.0.0.0/8\"], or remove it");
    }
    Some(networks)
}

/// Not these ranges.
pub(super) fn deny(block: &Block<'_>) -> Networks {
    block.take("deny").and_then(|item| value::networks(&item)).map(|(networks, _)| networks).unwrap_or_default()
}

/// `{ 502 = "/502.html", 4xx = "/sorry.html" }`
pub(super) fn error_pages(site: &Block<'_>) -> Vec<(StatusRange, String)> {
    let mut pages = Vec::new();
    let Some(item) = site.take("error_pages") else { return pages };
    let Some(block) = item.table("`error_pages`") else { return pages };
    for Entry { key, key_at, node } in block.entries() {
        let Some(statuses) = StatusRange::parse(key).filter(|statuses| statuses.first >= 400) else {
            let message = format!("\"{key}\" is not the status of an error");
            block.reading.problem(*key_at, message, "", "write 404, 502, \"4xx\" or \"5xx\"");
            continue;
        };
        let page = Item { node, key_at: *key_at, ..item };
        let Value::Text(text) = &node.value else {
            page.wrong("a string", "write the page below the root, such as \"/502.html\"");
            continue;
        };
        pages.extend(value::file_below(&page, text).map(|file| (statuses, file)));
    }
    if !pages.is_empty() && !site.has("root") {
        let help = "add root = \"/srv/app/public\", the folder with the pages";
        block.reading.missing(site.place("error_pages"), "`error_pages` needs `root`", help);
    }
    pages.sort_by_key(|(statuses, _)| (statuses.last - statuses.first, statuses.first));
    pages
}
