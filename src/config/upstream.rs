//! What stands behind a site: `php`, HTTP back ends, `[site.x.websocket]`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::block::Block;
use super::general::certificate;
use super::item::Item;
use super::model::{
    Api, Balance, HostField, HttpUpstream, Php, Preset, Scripts, Sticky, UpgradeRule, UpstreamTls, WebSocket,
};
use super::tree::{Entry, Value};
use super::{unbuilt, value};
use crate::base::address::{Endpoint, HttpBackEnd, InvalidAddress, parse_fastcgi};
use crate::base::host::Authority;
use crate::base::pattern::PathPattern;

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
    pub fn upstream(&self, to: Vec<HttpBackEnd>) -> HttpUpstream {
        HttpUpstream {
            to,
            tls: self.tls.clone(),
            balance: Balance::LeastConn,
            sticky: Sticky::Off,
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

/// HTTP back ends: one string, or a list of them.
pub(super) fn back_ends(item: &Item<'_>) -> Option<Vec<HttpBackEnd>> {
    let mut back_ends: Vec<HttpBackEnd> = Vec::new();
    for item in item.one_or_many()? {
        let Some(text) = item.element() else { continue };
        match HttpBackEnd::parse(text) {
            Ok(back_end) if back_ends.contains(&back_end) => {
                item.problem(format!("{back_end} is in `{}` twice", item.key), "keep one")
            }
            Ok(back_end) => back_ends.push(back_end),
            Err(why) => item.problem(format!("\"{text}\": {why}"), &mend_back_end(text, why)),
        }
    }
    // With a bad one among them the list is still not empty to those who check what a site has.
    Some(back_ends)
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

/// `…balance`, `…sticky` and `…cookie` of `upstream`, which is of a site or a websocket block.
pub(super) fn balance(block: &Block<'_>, keys: [&'static str; 3], cookie_for_lists: bool, upstream: &mut HttpUpstream) {
    let [balance, sticky, cookie] = keys;
    let balances = [
        ("least_conn", Balance::LeastConn),
        ("round_robin", Balance::RoundRobin),
        ("ip_hash", Balance::IpHash),
        ("random", Balance::Random),
    ];
    upstream.balance = block.one_of(balance, Balance::LeastConn, &balances);
    let name = block.take(cookie).and_then(|item| cookie_name(&item)).unwrap_or_else(|| "doorward_node".to_owned());
    let many = upstream.to.len() > 1;
    let written = block.take(sticky).and_then(|item| {
        if item.node.value_is("sid") {
            item.problem(
                format!("`{sticky} = \"sid\"` is not built yet: the session id of Socket.IO is not followed"),
                "write \"cookie\", or \"ip\" where clients refuse cookies",
            );
            return None;
        }
        item.one_of(&[("cookie", Sticky::Cookie(name.clone())), ("ip", Sticky::Ip), ("off", Sticky::Off)])
    });
    upstream.sticky = match written {
        Some(sticky) => sticky,
        None if cookie_for_lists && many => Sticky::Cookie(name),
        None => Sticky::Off,
    };
    let idle = !matches!(upstream.sticky, Sticky::Cookie(_));
    // A single back end may keep its cookie's name for the day when it is a list again.
    if idle && (many || block.has(sticky)) {
        block.no_effect(
            cookie,
            &format!("`{sticky}` is not \"cookie\""),
            &format!("write {sticky} = \"cookie\", or remove it"),
        );
    }
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
    };
    if !matches!(item.node.value, Value::Table(_)) {
        php.to = pools(item)?;
        return Some(php);
    }
    let block = item.table("`php`")?;
    unbuilt::refuse(&block, "php");
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

/// One `[site.x.websocket]`.
pub(super) fn websocket(block: Block<'_>, shared: &Shared) -> WebSocket {
    unbuilt::refuse(&block, "websocket");
    let presets =
        [("socket.io", Preset::SocketIo), ("pusher", Preset::Pusher), ("any", Preset::Any), ("none", Preset::None)];
    let read = block.take("preset").map(|item| item.one_of(&presets));
    let preset = read.flatten().unwrap_or(Preset::None);
    // A preset that is not known, or paths that are no list, are told already.
    let understood = read != Some(None) && !block.has("paths");
    let (paths, upgrade): (&[&str], UpgradeRule) = match preset {
        Preset::SocketIo => (&["/socket.io"], UpgradeRule::Optional),
        Preset::Pusher => (&["/app"], UpgradeRule::Optional),
        Preset::Any => (&[], UpgradeRule::Any),
        Preset::None => (&[], UpgradeRule::Optional),
    };
    let paths = value::patterns(&block, "paths")
        .unwrap_or_else(|| paths.iter().map(|path| PathPattern::Below((*path).to_owned())).collect());
    let upgrades =
        [("optional", UpgradeRule::Optional), ("required", UpgradeRule::Required), ("any", UpgradeRule::Any)];
    let upgrade = block.one_of("upgrade", upgrade, &upgrades);
    let nothing = block.take("paths").is_some_and(|item| item.node.value_is_empty_list());
    if paths.is_empty() && upgrade != UpgradeRule::Any && (understood || nothing) {
        let help = "add preset = \"socket.io\", \"pusher\" or \"any\", or paths = [\"/ws\"]";
        block.reading.missing(block.at, format!("{} does not say which paths are its own", block.name), help);
    }
    let api = match block.take("api") {
        Some(item) if preset != Preset::Pusher => {
            let message = "`api` has no effect: only preset = \"pusher\" has a publishing API";
            item.reading.problem(item.key_at, message, "", "remove it");
            Api::Closed
        }
        Some(item) => api(&item),
        None => Api::Closed,
    };
    let to = match block.take("to") {
        Some(item) => back_ends(&item),
        None => {
            let help = "add to = \"http://127.0.0.1:3444\", where the socket server listens";
            block.reading.missing(block.at, format!("{} has no `to`", block.name), help);
            None
        }
    };
    let mut upstream = shared.upstream(to.unwrap_or_default());
    balance(&block, ["balance", "sticky", "cookie"], preset == Preset::SocketIo, &mut upstream);
    let websocket = WebSocket {
        preset,
        upstream,
        paths,
        upgrade,
        api,
        idle_timeout: block.wait("idle_timeout", Duration::from_secs(3600)),
        max_message: block.size_or_none("max_message", None),
        message_rate: block.take("message_rate").and_then(|item| value::rate(&item)),
        ping_interval: ping_interval(&block),
        max_connections: block.integer("max_connections", 0, 0..=10_000_000),
        max_connections_per_ip: block.integer("max_connections_per_ip", 0, 0..=10_000_000),
        origins: block.list("origins", value::origin).unwrap_or_default(),
        http2: block.flag("http2", true),
    };
    block.finish();
    websocket
}

/// Asking more often than ten times a second would be a load of its own.
fn ping_interval(block: &Block<'_>) -> Option<Duration> {
    let interval = block.optional_duration("ping_interval").filter(|interval| !interval.is_zero())?;
    if interval < Duration::from_millis(100) {
        let message = "`ping_interval` must be 100ms or longer".to_owned();
        block.reading.problem(block.place("ping_interval"), message, "", "write \"30s\", or \"\" for no pings");
        return None;
    }
    Some(interval)
}

fn api(item: &Item<'_>) -> Api {
    match &item.node.value {
        Value::Flag(false) => Api::Closed,
        Value::Flag(true) => Api::Open,
        Value::List(_) => value::networks(item).map_or(Api::Closed, |(networks, _)| Api::Only(networks)),
        _ => {
            item.wrong(
                "true, false or a list of ranges",
                "write api = [\"127.0.0.0/8\"] for publishers on this machine",
            );
            Api::Closed
        }
    }
}
