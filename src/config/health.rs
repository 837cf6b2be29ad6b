//! `health` of back ends: what is asked of them, and when one is left out.

use std::time::Duration;

use super::block::Block;
use super::item::Item;
use super::model::{Health, Probe, StatusRange};
use super::tree::Value;
use crate::base::host::Authority;

/// A path, or a table.
pub(super) fn health(item: &Item<'_>) -> Health {
    let mut health = Health::default();
    if !matches!(item.node.value, Value::Table(_)) {
        health.probe =
            item.text().filter(|text| !text.is_empty()).and_then(|text| Some(Box::new(Probe::of(path(item, text)?))));
        return health;
    }
    let Some(block) = item.table(&format!("`{}`", item.key)) else { return health };
    let path = block.take("path").and_then(|item| item.text().filter(|text| !text.is_empty()).map(|text| (item, text)));
    let asked = path.is_some();
    let mut probe = Probe::of(path.and_then(|(item, text)| self::path(&item, text)).unwrap_or_default());
    probe.websocket = block.flag("websocket", false);
    probe.status = statuses(&block, "status").unwrap_or(probe.status);
    if probe.websocket {
        block.no_effect("status", "a WebSocket handshake is answered with 101", "remove it");
    }
    probe.host = block.take("host").and_then(|item| host(&item));
    probe.interval = block.wait("interval", probe.interval);
    if probe.interval < Duration::from_secs(1) {
        let message = format!("`interval` of `{}` must be 1s or longer", item.key);
        block.reading.problem(block.place("interval"), message, "", "write \"10s\"");
    }
    probe.timeout = block.wait("timeout", probe.timeout);
    probe.fails = count(&block, "fails", probe.fails, 1);
    probe.passes = count(&block, "passes", probe.passes, 1);
    health.max_fails = count(&block, "max_fails", health.max_fails, 0);
    health.fail_timeout = block.wait("fail_timeout", health.fail_timeout);
    health.fail_status = statuses(&block, "fail_status").unwrap_or_default();
    if !asked {
        for key in ["websocket", "status", "host", "interval", "timeout", "fails", "passes"] {
            block.no_effect(key, "nothing is asked without a `path`", "add path = \"/up\", or remove it");
        }
    }
    block.finish();
    health.probe = asked.then(|| Box::new(probe));
    health
}

fn count(block: &Block<'_>, key: &'static str, default: u32, least: usize) -> u32 {
    u32::try_from(block.integer(key, default as usize, least..=1000)).unwrap_or(default)
}

fn path(item: &Item<'_>, text: &str) -> Option<String> {
    let sound = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !sound {
        item.problem(format!("\"{text}\" is not a path to ask for"), "write \"/up\"; a query may follow");
        return None;
    }
    Some(text.to_owned())
}

fn host(item: &Item<'_>) -> Option<String> {
    let text = item.text().filter(|text| !text.is_empty())?;
    match Authority::parse(text) {
        Ok(authority) => Some(authority.to_string()),
        Err(why) => {
            item.problem(format!("\"{text}\" is not a host: {why}"), "write a name with or without a port");
            None
        }
    }
}

/// `[200, "3xx"]`
fn statuses(block: &Block<'_>, key: &'static str) -> Option<Vec<StatusRange>> {
    let item = block.take(key)?;
    let items = if matches!(item.node.value, Value::List(_)) { item.items()? } else { vec![item] };
    Some(items.iter().filter_map(status).collect())
}

fn status(item: &Item<'_>) -> Option<StatusRange> {
    let read = match &item.node.value {
        Value::Integer(_) => return item.integer(100..=599).and_then(|n| u16::try_from(n).ok()).map(StatusRange::one),
        Value::Text(text) => StatusRange::parse(text),
        _ => None,
    };
    if read.is_none() {
        item.wrong("a status such as 200, or a class such as \"2xx\"", "write 200 or \"2xx\"");
    }
    read
}
