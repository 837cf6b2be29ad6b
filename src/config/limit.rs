//! `[limit.NAME]`, and the `limit` keys that name one.

use super::block::Block;
use super::item::Item;
use super::model::{LimitKey, RateLimit, Site};
use super::tree::Place;
use super::value;
use super::words::closest;
use crate::base::rate::Rate;

/// One `[limit.NAME]`. `None` where it lacks its rate; why is recorded.
pub(super) fn limit(block: Block<'_>, name: &str) -> Option<RateLimit> {
    let key = block.take("key").and_then(|item| key(&item)).unwrap_or(LimitKey::ClientIp);
    let rate: Option<Rate> = match block.take("rate") {
        Some(item) if item.node.value_is("") => {
            item.problem("`rate` is empty", "write \"10/s\" or \"600/m\"");
            None
        }
        Some(item) => value::rate(&item),
        None => {
            block.reading.missing(block.at, format!("{} has no `rate`", block.name), "add rate = \"10/s\"");
            None
        }
    };
    let burst = block.integer("burst", 20, 0..=1_000_000);
    let status = value::status(&block, "status", 429, 400..=599);
    block.finish();
    Some(RateLimit { name: name.to_owned(), key, rate: rate?, burst: u32::try_from(burst).unwrap_or(20), status })
}

fn key(item: &Item<'_>) -> Option<LimitKey> {
    let text = item.text()?;
    let field = text.strip_prefix("header:").map(|name| ::http::HeaderName::from_bytes(name.as_bytes()));
    match (text, field) {
        ("client_ip", _) => Some(LimitKey::ClientIp),
        (_, Some(Ok(name))) => Some(LimitKey::Header(name.as_str().to_owned())),
        _ => {
            item.problem(
                format!("\"{text}\" does not tell clients apart"),
                "write \"client_ip\" or \"header:X-Api-Key\"",
            );
            None
        }
    }
}

/// Whether every `limit` of a site is one of `known`. `names` are those of all tables, usable or not.
pub(super) fn check(block: &Block<'_>, site: &Site, places: &Places, names: &[&str]) {
    let sockets = site.websockets.iter().map(|socket| &socket.limit).zip(&places.sockets);
    let routes = site.routes.iter().map(|route| &route.limit).zip(&places.routes);
    let own = [(&site.limit, &block.place("limit"))];
    for (limit, at) in own.into_iter().chain(sockets).chain(routes) {
        let Some(limit) = limit.as_deref().filter(|limit| !names.contains(limit)) else { continue };
        let help = match closest(limit, names.iter().copied()) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None => format!("add a table [limit.{limit}] with rate = \"10/s\""),
        };
        block.reading.problem(*at, format!("there is no [limit.{limit}]"), "", help);
    }
}

/// Where the `limit` keys of a site's blocks are.
pub(super) struct Places {
    /// Of each websocket block.
    pub sockets: Vec<Place>,
    /// Of each route.
    pub routes: Vec<Place>,
}
