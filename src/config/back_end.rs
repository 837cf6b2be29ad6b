//! Lists of HTTP back ends: each with its weight, and the rules by which one is chosen, kept and left out.

use std::time::Duration;

use super::block::Block;
use super::health::health;
use super::item::Item;
use super::model::{BackEnd, Balance, HttpUpstream, ProxyProtocol, Sticky, StickyCookie};
use super::tree::Value;
use crate::base::address::{HttpBackEnd, InvalidAddress};

/// HTTP back ends: one string or table, or a list of them.
pub(super) fn back_ends(item: &Item<'_>) -> Option<Vec<BackEnd>> {
    let mut back_ends: Vec<BackEnd> = Vec::new();
    let items = match item.node.value {
        Value::Table(_) => vec![Item { ..*item }],
        _ => item.one_or_many()?,
    };
    for item in items {
        let Some(back_end) = back_end(&item) else { continue };
        match back_ends.iter().any(|other| other.to == back_end.to) {
            true => item.problem(format!("{} is in `{}` twice", back_end.to, item.key), "keep one"),
            false => back_ends.push(back_end),
        }
    }
    if !back_ends.is_empty() && back_ends.iter().all(|back_end| back_end.backup) {
        item.problem(
            format!("every back end of `{}` is a backup", item.key),
            "remove `backup` from those that are to answer",
        );
    }
    // With a bad one among them the list is still not empty to those who check what a site has.
    Some(back_ends)
}

/// `"http://…"`, or `{ to = "http://…", weight = 2, backup = true }`.
fn back_end(item: &Item<'_>) -> Option<BackEnd> {
    if !matches!(item.node.value, Value::Table(_)) {
        return Some(BackEnd { to: address(item, item.element()?)?, weight: 1, backup: false });
    }
    let block = item.table(&format!("a back end of `{}`", item.key))?;
    let to = match block.take("to") {
        Some(item) => item.text().and_then(|text| address(&item, text)),
        None => {
            block.reading.missing(
                block.at,
                format!("{} has no `to`", block.name),
                "add to = \"http://127.0.0.1:3444\"",
            );
            None
        }
    };
    let weight = u16::try_from(block.integer("weight", 1, 1..=1000)).unwrap_or(1);
    let backup = block.flag("backup", false);
    block.finish();
    Some(BackEnd { to: to?, weight, backup })
}

fn address(item: &Item<'_>, text: &str) -> Option<HttpBackEnd> {
    match HttpBackEnd::parse(text) {
        Ok(back_end) => Some(back_end),
        Err(why) => {
            item.problem(format!("\"{text}\": {why}"), &mend_back_end(text, why));
            None
        }
    }
}

fn mend_back_end(text: &str, why: InvalidAddress) -> String {
    match why {
        InvalidAddress::Scheme if text.starts_with('/') => format!("write \"unix:{text}\""),
        InvalidAddress::Scheme => match text.split_once("://") {
            Some(("ws", rest)) => format!("write \"http://{rest}\": a socket begins as an HTTP request"),
            Some(("wss", rest)) => format!("write \"https://{rest}\": a socket begins as an HTTP request"),
            Some(_) => String::new(),
            None => format!("write \"http://{text}\""),
        },
        _ => String::new(),
    }
}

/// The names of the keys: those of a websocket block, or those of a site with `upstream_` before them.
pub(super) struct Keys {
    balance: &'static str,
    sticky: &'static str,
    cookie: &'static str,
    cookie_secret: &'static str,
    slow_start: &'static str,
    health: &'static str,
    proxy_protocol: &'static str,
}

impl Keys {
    /// Of a websocket block, whose `to` they are about.
    pub const SOCKET: Keys = Keys {
        balance: "balance",
        sticky: "sticky",
        cookie: "cookie",
        cookie_secret: "cookie_secret",
        slow_start: "slow_start",
        health: "health",
        proxy_protocol: "proxy_protocol",
    };
    /// Of a site, whose `upstream` they are about.
    pub const SITE: Keys = Keys {
        balance: "upstream_balance",
        sticky: "upstream_sticky",
        cookie: "upstream_cookie",
        cookie_secret: "upstream_cookie_secret",
        slow_start: "upstream_slow_start",
        health: "upstream_health",
        proxy_protocol: "upstream_proxy_protocol",
    };

    /// All of them.
    pub fn all(&self) -> [&'static str; 7] {
        let Keys { balance, sticky, cookie, cookie_secret, slow_start, health, proxy_protocol } = *self;
        [balance, sticky, cookie, cookie_secret, slow_start, health, proxy_protocol]
    }
}

/// How one of several back ends is chosen, kept and left out.
pub(super) fn balance(block: &Block<'_>, keys: &Keys, cookie_for_lists: bool, upstream: &mut HttpUpstream) {
    let balances = [
        ("least_conn", Balance::LeastConn),
        ("round_robin", Balance::RoundRobin),
        ("ip_hash", Balance::IpHash),
        ("random", Balance::Random),
    ];
    upstream.balance = block.one_of(keys.balance, Balance::LeastConn, &balances);
    upstream.sticky = sticky(block, keys, cookie_for_lists, upstream.to.len() > 1);
    upstream.slow_start = block.optional_duration(keys.slow_start).unwrap_or(Duration::ZERO);
    if let Some(item) = block.take(keys.health) {
        upstream.health = health(&item);
    }
    let versions = [("off", None), ("v1", Some(ProxyProtocol::V1)), ("v2", Some(ProxyProtocol::V2))];
    upstream.proxy_protocol = block.one_of(keys.proxy_protocol, None, &versions);
}

fn sticky(block: &Block<'_>, keys: &Keys, cookie_for_lists: bool, many: bool) -> Sticky {
    let name = block.take(keys.cookie).and_then(|item| cookie_name(&item));
    let secret = block.text(keys.cookie_secret).map(str::to_owned);
    let cookie = StickyCookie { name: name.unwrap_or_else(|| "doorward_node".to_owned()), secret };
    let choices =
        [("cookie", Sticky::Cookie(cookie.clone())), ("ip", Sticky::Ip), ("sid", Sticky::Sid), ("off", Sticky::Off)];
    let sticky = match block.take(keys.sticky).and_then(|item| item.one_of(&choices)) {
        Some(sticky) => sticky,
        None if cookie_for_lists && many => Sticky::Cookie(cookie),
        None => Sticky::Off,
    };
    let idle = !matches!(sticky, Sticky::Cookie(_));
    // A single back end may keep its cookie's name for the day when it is a list again.
    if idle && (many || block.has(keys.sticky)) {
        for key in [keys.cookie, keys.cookie_secret] {
            block.no_effect(
                key,
                &format!("`{}` is not \"cookie\"", keys.sticky),
                &format!("write {} = \"cookie\", or remove it", keys.sticky),
            );
        }
    }
    sticky
}

fn cookie_name(item: &Item<'_>) -> Option<String> {
    let text = item.text()?;
    // RFC 6265, section 4.1.1: a cookie's name is a token.
    if ::http::Method::from_bytes(text.as_bytes()).is_err() {
        item.problem(format!("\"{text}\" is not a name for a cookie"), "use letters, digits, '-' and '_'");
        return None;
    }
    Some(text.to_owned())
}
