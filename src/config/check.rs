//! What is wrong between sites, and between the websocket blocks of one.

use super::model::{HttpUpstream, Sticky, UpgradeRule, WebSocket};
use super::reading::Reading;
use super::site::Placed;
use super::tree::Place;
use crate::base::host::HostPattern;

/// Hosts that two sites claim, and two default sites, on a listener that both answer on.
pub(super) fn sites(reading: &Reading<'_>, sites: &[Placed]) {
    for (at, second) in sites.iter().enumerate() {
        twice_in_one(reading, second);
        let before = sites.get(..at).unwrap_or_default();
        for first in before.iter().filter(|first| overlap(first, second)) {
            same_host(reading, first, second);
            if first.site.default && second.site.default {
                let names = (&first.site.name, &second.site.name);
                let message =
                    format!("[site.{}] and [site.{}] are both `default` on the same listener", names.0, names.1);
                let help = format!("keep it in one of the two; the other is at {}", reading.describe(first.default));
                reading.problem(second.default, message, "", help);
            }
        }
    }
}

fn overlap(first: &Placed, second: &Placed) -> bool {
    first.listeners.iter().any(|address| second.listeners.contains(address))
}

fn twice_in_one(reading: &Reading<'_>, placed: &Placed) {
    for (at, (name, place)) in placed.names.iter().enumerate() {
        if placed.names.iter().take(at).any(|(other, _)| other == name) {
            let message = format!("`{name}` is in [site.{}] a second time", placed.site.name);
            reading.problem(*place, message, "", "remove it");
        }
    }
}

fn same_host(reading: &Reading<'_>, first: &Placed, second: &Placed) {
    for (name, place) in &second.names {
        let other: Option<&(HostPattern, Place)> = first.names.iter().find(|(other, _)| other == name);
        if let Some((_, other)) = other {
            let message = format!("`{name}` belongs to [site.{}] and to [site.{}]", first.site.name, second.site.name);
            let help = format!("remove it from one of the two; the other is at {}", reading.describe(*other));
            reading.problem(*place, message, "", help);
        }
    }
}

/// Two lists with one cookie would take their clients from each other: a browser sends it to both.
pub(super) fn cookies(reading: &Reading<'_>, lists: &[(&HttpUpstream, Place)]) {
    let name = |upstream: &HttpUpstream| match &upstream.sticky {
        Sticky::Cookie(cookie) => Some(cookie.name.clone()),
        _ => None,
    };
    for (at, (second, place)) in lists.iter().enumerate() {
        let Some(cookie) = name(second) else { continue };
        let taken = |(first, _): &&(&HttpUpstream, Place)| name(first) == Some(cookie.clone()) && first.to != second.to;
        if let Some((_, other)) = lists.iter().take(at).find(taken) {
            let other = reading.describe(*other);
            let help =
                format!("give one of the two a `cookie` (`upstream_cookie`) of its own; the other is at {other}");
            reading.problem(*place, format!("two lists of back ends have the cookie \"{cookie}\""), "", help);
        }
    }
}

/// Paths that two websocket blocks of a site claim, and two that claim every Upgrade. `places` are those of the blocks.
pub(super) fn websockets(reading: &Reading<'_>, places: &[Place], websockets: &[WebSocket]) {
    for (at, (second, place)) in websockets.iter().zip(places).enumerate() {
        for (first, other) in websockets.iter().zip(places).take(at) {
            let other = reading.describe(*other);
            if first.upgrade == UpgradeRule::Any && second.upgrade == UpgradeRule::Any {
                let help =
                    format!("write upgrade = \"optional\" and `paths` in one of the two; the other is at {other}");
                reading.problem(*place, "two websocket blocks take every Upgrade", "", help);
            }
            for path in second.paths.iter().filter(|path| first.paths.contains(path)) {
                let help = format!("remove it from one of the two; the other is at {other}");
                reading.problem(*place, format!("two websocket blocks have the path \"{path}\""), "", help);
            }
        }
    }
}
