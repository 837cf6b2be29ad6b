//! What stands behind a site, and what chooses among several; who may ask, and how often.

use super::{MASK, inline, key, list, masked, path, text};
use crate::base::units::format_duration;
use crate::config::model::{
    Access, BackEnd, Balance, Health, HttpUpstream, LimitKey, Php, ProxyProtocol, RateLimit, Scripts, StatusRange,
    Sticky,
};

/// `[limit.NAME]`
pub(super) fn limit(out: &mut String, limit: &RateLimit) {
    super::header(out, &format!("[limit.{}]", super::bare(&limit.name)));
    let told = match &limit.key {
        LimitKey::ClientIp => "client_ip".to_owned(),
        LimitKey::Header(name) => format!("header:{name}"),
    };
    key(out, "key", text(told));
    key(out, "rate", text(limit.rate));
    key(out, "burst", limit.burst);
    key(out, "status", limit.status);
}

/// `allow`, `deny` and `basic_auth` of a site.
pub(super) fn access(out: &mut String, access: &Access) {
    if let Some(allow) = &access.allow {
        key(out, "allow", list(&allow.0));
    }
    key(out, "deny", list(&access.deny.0));
    key(out, "basic_auth", path(access.basic_auth.as_deref()));
}

/// `to` or `upstream`.
pub(super) fn back_ends(back_ends: &[BackEnd]) -> String {
    let one = |back_end: &BackEnd| match back_end {
        BackEnd { to, weight: 1, backup: false } => text(to),
        BackEnd { to, weight, backup } => format!("{{ to = {}, weight = {weight}, backup = {backup} }}", text(to)),
    };
    format!("[{}]", back_ends.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// How one of them is chosen, kept and left out. Keys of a site begin with `prefix`.
pub(super) fn balance(out: &mut String, prefix: &str, upstream: &HttpUpstream) {
    let balance = match upstream.balance {
        Balance::LeastConn => "least_conn",
        Balance::RoundRobin => "round_robin",
        Balance::IpHash => "ip_hash",
        Balance::Random => "random",
    };
    key(out, &format!("{prefix}balance"), text(balance));
    let sticky = match &upstream.sticky {
        Sticky::Off => "off",
        Sticky::Cookie(_) => "cookie",
        Sticky::Ip => "ip",
        Sticky::Sid => "sid",
    };
    key(out, &format!("{prefix}sticky"), text(sticky));
    if let Sticky::Cookie(cookie) = &upstream.sticky {
        key(out, &format!("{prefix}cookie"), text(&cookie.name));
        key(out, &format!("{prefix}cookie_secret"), text(cookie.secret.as_ref().map_or("", |_| MASK)));
    }
    key(out, &format!("{prefix}slow_start"), text(format_duration(upstream.slow_start)));
    key(out, &format!("{prefix}health"), health(&upstream.health));
    let version = match upstream.proxy_protocol {
        None => "off",
        Some(ProxyProtocol::V1) => "v1",
        Some(ProxyProtocol::V2) => "v2",
    };
    key(out, &format!("{prefix}proxy_protocol"), text(version));
}

/// PHP-FPM.
pub(super) fn php(php: &Php) -> String {
    let scripts = match &php.scripts {
        Scripts::Index => text("index"),
        Scripts::All => text("all"),
        Scripts::Only(names) => list(names),
    };
    inline(
        [
            format!("to = {}", list(&php.to)),
            format!("scripts = {scripts}"),
            format!("resolve_symlinks = {}", php.resolve_symlinks),
            format!("params = {}", masked(&php.params)),
            format!("index = {}", text(&php.index)),
            format!("read_timeout = {}", text(format_duration(php.read_timeout))),
            format!("keep_alive = {}", php.keep_alive),
            format!("children = {}", php.children),
            format!("queue = {}", php.queue),
            format!("queue_timeout = {}", text(format_duration(php.queue_timeout))),
            format!("restart_window = {}", text(format_duration(php.restart_window))),
        ]
        .into_iter(),
    )
}

fn health(health: &Health) -> String {
    let mut parts = Vec::new();
    if let Some(probe) = &health.probe {
        parts.push(format!("path = {}, websocket = {}", text(&probe.path), probe.websocket));
        if !probe.websocket {
            parts.push(format!("status = {}", statuses(&probe.status)));
        }
        parts.push(format!("host = {}", text(probe.host.as_deref().unwrap_or_default())));
        for (name, value) in [("interval", probe.interval), ("timeout", probe.timeout)] {
            parts.push(format!("{name} = {}", text(format_duration(value))));
        }
        parts.push(format!("fails = {}, passes = {}", probe.fails, probe.passes));
    }
    parts.push(format!("max_fails = {}", health.max_fails));
    parts.push(format!("fail_timeout = {}", text(format_duration(health.fail_timeout))));
    parts.push(format!("fail_status = {}", statuses(&health.fail_status)));
    inline(parts.into_iter())
}

fn statuses(statuses: &[StatusRange]) -> String {
    let one = |status: &StatusRange| match status.first == status.last {
        true => status.to_string(),
        false => text(status),
    };
    format!("[{}]", statuses.iter().map(one).collect::<Vec<_>>().join(", "))
}
