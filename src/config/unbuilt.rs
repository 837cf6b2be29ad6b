//! Keys of the file format whose feature does not exist yet. They are refused, whatever their value: what is
//! accepted and does nothing is worse than what is missing.

use super::block::Block;

/// A key that is refused: its block, its name, what is missing, what to do instead.
struct Unbuilt {
    block: &'static str,
    key: &'static str,
    what: &'static str,
    instead: &'static str,
}

/// Refuses every key of `kind` that is written in `block`.
pub(super) fn refuse(block: &Block<'_>, kind: &str) {
    for unbuilt in UNBUILT.iter().filter(|unbuilt| unbuilt.block == kind) {
        if let Some(at) = block.refuse(unbuilt.key) {
            let message = format!("`{}` is not built yet: {}", unbuilt.key, unbuilt.what);
            block.reading.problem(at, message, "", unbuilt.instead);
        }
    }
}

const fn unbuilt(block: &'static str, key: &'static str, what: &'static str, instead: &'static str) -> Unbuilt {
    Unbuilt { block, key, what, instead }
}

const UNBUILT: &[Unbuilt] = &[
    unbuilt(
        "root",
        "metrics",
        "there is no metrics listener",
        "remove [metrics]; the access log in json has the figures",
    ),
    unbuilt(
        "root",
        "limit",
        "requests are not rate limited",
        "remove the [limit.*] tables; limit in the firewall or the application",
    ),
    unbuilt(
        "server",
        "proxy_protocol",
        "PROXY protocol heads are not read",
        "remove it; let the proxy in front set X-Forwarded-For and name it in trusted_proxies",
    ),
    unbuilt(
        "server",
        "user",
        "the account is not changed after the start",
        "remove it; start as that account with CAP_NET_BIND_SERVICE, as the systemd unit does",
    ),
    unbuilt("site", "limit", "requests are not rate limited", "remove it; limit in the firewall or the application"),
    unbuilt(
        "site",
        "error_pages",
        "errors get a plain page",
        "remove it; an application answers its own errors as before",
    ),
    unbuilt(
        "site",
        "basic_auth",
        "passwords are not asked for",
        "remove it; restrict a [[site.x.route]] with `allow`, or ask in the application",
    ),
    unbuilt(
        "site",
        "upstream_health",
        "back ends are not probed",
        "remove it; a back end that does not answer is tried again with each request",
    ),
    unbuilt(
        "websocket",
        "limit",
        "requests are not rate limited",
        "remove it; limit in the firewall or the socket server",
    ),
    unbuilt(
        "websocket",
        "health",
        "back ends are not probed",
        "remove it; a back end that does not answer is tried again with each request",
    ),
    unbuilt(
        "php",
        "children",
        "requests at FPM are not counted",
        "remove it; pm.max_children of the pool is the bound",
    ),
    unbuilt(
        "php",
        "queue",
        "requests do not wait in a queue of ours",
        "remove it; listen.backlog of the pool is the queue",
    ),
];
