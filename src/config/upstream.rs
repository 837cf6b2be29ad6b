//! What stands behind a site: `php`, and what its HTTP back ends have in common.

use std::collections::BTreeMap;
use std::time::Duration;

use super::block::Block;
use super::general::certificate;
use super::item::Item;
use super::model::{BackEnd, Balance, Health, HostField, HttpUpstream, Php, Scripts, Sticky, UpstreamTls};
use super::tree::{Entry, Value};
use super::value;
use crate::base::address::{Endpoint, InvalidAddress, parse_fastcgi};
use crate::base::host::Authority;

/// What all HTTP back ends of a site share.
pub(super) struct Shared {
    pub tls: UpstreamTls,
    pub host: HostField,
    pub read_timeout: Duration,
}

impl Shared {
    /// Reads `upstream_tls` and `host` of a site.
    pub fn read(site: &Block<'_>, read_timeout: Duration) -> Shared {
        Shared { tls: upstream_tls(site), host: host(site), read_timeout }
    }

    /// These back ends, one for all and without stickiness.
    pub fn upstream(&self, to: Vec<BackEnd>) -> HttpUpstream {
        HttpUpstream {
            to,
            tls: self.tls.clone(),
            balance: Balance::LeastConn,
            sticky: Sticky::Off,
            slow_start: Duration::ZERO,
            health: Health::default(),
            proxy_protocol: None,
            host: self.host.clone(),
            read_timeout: self.read_timeout,
        }
    }
}

fn upstream_tls(site: &Block<'_>) -> UpstreamTls {
    let Some(block) = site.take("upstream_tls").and_then(|item| item.table("`upstream_tls`")) else {
        return UpstreamTls::default();
    };
    let insecure = !block.flag("verify", true);
    let server_name = block.take("server_name").and_then(|item| {
        let text = item.text().filter(|text| !text.is_empty())?;
        match crate::base::host::Host::parse(text) {
            Ok(host) => Some(host.as_str().to_owned()),
            Err(why) => {
                item.problem(
                    format!("\"{text}\" is not a server name: {why}"),
                    "write the name in the back end's certificate, such as \"admin.internal\"",
                );
                None
            }
        }
    });
    let tls = UpstreamTls { insecure, server_name, ca: block.path("ca"), client: certificate(&block) };
    if insecure && tls.ca.is_some() {
        block.no_effect(
            "ca",
            "verify = false takes any certificate",
            "remove `verify`, so that this authority is asked for",
        );
    }
    block.finish();
    tls
}

fn host(site: &Block<'_>) -> HostField {
    let Some(item) = site.take("host") else { return HostField::Preserve };
    match item.text() {
        None | Some("preserve") => HostField::Preserve,
        Some("upstream") => HostField::Upstream,
        Some(text) => match Authority::parse(text) {
            Ok(authority) => HostField::Literal(authority.to_string()),
            Err(why) => {
                item.problem(
                    format!("\"{text}\" is not a value of `host`: {why}"),
                    "write \"preserve\", \"upstream\" or a name with or without a port",
                );
                HostField::Preserve
            }
        },
    }
}

/// `php`: a string, a list, or a table.
pub(super) fn php(item: &Item<'_>, read_timeout: Duration) -> Option<Php> {
    let mut php = Php {
        to: Vec::new(),
        scripts: Scripts::Index,
        resolve_symlinks: true,
        params: BTreeMap::new(),
        index: "index.php".to_owned(),
        read_timeout,
        keep_alive: 0,
        children: 0,
        queue: 0,
        queue_timeout: Duration::from_secs(10),
        restart_window: Duration::from_secs(10),
    };
    if !matches!(item.node.value, Value::Table(_)) {
        php.to = pools(item)?;
        return Some(php);
    }
    let block = item.table("`php`")?;
    match block.take("to") {
        Some(item) => php.to = pools(&item).unwrap_or_default(),
        None => block.reading.missing(
            block.at,
            "`php` has no `to`",
            "add to = \"unix:/run/php/php8.3-fpm.sock\" or \"127.0.0.1:9000\"",
        ),
    }
    if let Some(item) = block.take("scripts") {
        php.scripts = match &item.node.value {
            Value::List(_) => Scripts::Only(item.list(value::file_below).unwrap_or_default()),
            _ => item.one_of(&[("index", Scripts::Index), ("all", Scripts::All)]).unwrap_or(Scripts::Index),
        };
    }
    php.resolve_symlinks = block.flag("resolve_symlinks", true);
    php.params = block.take("params").map(|item| params(&item)).unwrap_or_default();
    if let Some(index) = block.take("index").and_then(|item| value::file_below(&item, item.text()?)) {
        php.index = index;
    }
    php.read_timeout = block.wait("read_timeout", read_timeout);
    php.keep_alive = block.integer("keep_alive", 0, 0..=1024);
    php.children = block.integer("children", 0, 0..=100_000);
    php.queue = block.integer("queue", 0, 0..=1_000_000);
    php.queue_timeout = block.wait("queue_timeout", php.queue_timeout);
    php.restart_window = block.duration("restart_window", php.restart_window);
    block.finish();
    Some(php)
}

fn pools(item: &Item<'_>) -> Option<Vec<Endpoint>> {
    let mut pools = Vec::new();
    for item in item.one_or_many()? {
        let Some(text) = item.element() else { continue };
        match parse_fastcgi(text) {
            Ok(pool) if pools.contains(&pool) => item.problem(format!("{pool} is in `{}` twice", item.key), "keep one"),
            Ok(pool) => pools.push(pool),
            Err(why) => {
                let help = match why {
                    InvalidAddress::FastCgiScheme => {
                        text.split_once("://").map_or(String::new(), |(_, rest)| format!("write \"{rest}\""))
                    }
                    _ if text.starts_with('/') => format!("write \"unix:{text}\""),
                    InvalidAddress::Port => {
                        format!("write \"{}:9000\", or the port that the pool listens on", text.trim_end_matches(':'))
                    }
                    _ => String::new(),
                };
                item.problem(format!("\"{text}\": {why}"), &help);
            }
        }
    }
    Some(pools)
}

fn params(item: &Item<'_>) -> BTreeMap<String, String> {
    let mut params = BTreeMap::new();
    let Some(block) = item.table("`params`") else { return params };
    for Entry { key, key_at, node } in block.entries() {
        let field = Item { node, key_at: *key_at, ..*item };
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            block.reading.problem(
                *key_at,
                format!("\"{key}\" is not a name for a parameter"),
                "",
                "use letters, digits and '_', such as APP_ENV",
            );
        } else if let Some(text) = field.element() {
            params.insert(key.clone(), text.to_owned());
        }
    }
    params
}
