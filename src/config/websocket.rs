//! `[site.x.websocket]`.

use std::time::Duration;

use super::back_end::{Keys, back_ends, balance};
use super::block::Block;
use super::item::Item;
use super::model::{Api, Preset, UpgradeRule, WebSocket};
use super::tree::Value;
use super::upstream::Shared;
use super::value;
use crate::base::pattern::PathPattern;

/// One `[site.x.websocket]`.
pub(super) fn websocket(block: Block<'_>, shared: &Shared) -> WebSocket {
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
    balance(&block, &Keys::SOCKET, preset == Preset::SocketIo, &mut upstream);
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
        limit: block.text("limit").map(str::to_owned),
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
