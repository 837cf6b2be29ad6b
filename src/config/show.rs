//! [`Config`] → TOML: the configuration in force, defaults filled, secrets masked.

mod acme;
mod rules;

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::path::Path;

use super::model::{
    AccessFormat, Action, Api, Application, BasicAuth, Certificate, Config, HeaderEdits, HostField, Level, Limits, Log,
    LogOutput, Matcher, Plain, Preset, Redirect, Route, Server, Site, Timeouts, Tls, TlsVersion, TryFile, UpgradeRule,
    WebSocket,
};
use crate::base::units::{format_duration, format_size};

/// What stands in place of a secret.
const MASK: &str = "********";
/// A header or parameter whose name has one of these is a secret.
const SECRETS: [&str; 9] =
    ["auth", "password", "passwd", "secret", "token", "key", "cookie", "credential", "signature"];

/// The configuration in the file's own format. Without secrets in it, it reads back as an equal [`Config`], but for
/// `files`: included files are all in one here.
pub fn show(config: &Config) -> String {
    let mut out = String::new();
    server(&mut out, &config.server);
    timeouts(&mut out, &config.timeouts);
    limits(&mut out, &config.limits);
    tls(&mut out, &config.tls);
    acme::show(&mut out, &config.acme);
    log(&mut out, &config.log);
    for one in &config.rate_limits {
        rules::limit(&mut out, one);
    }
    for one in &config.sites {
        site(&mut out, one);
    }
    out
}

fn header(out: &mut String, name: &str) {
    let gap = if out.is_empty() { "" } else { "\n" };
    let _ = writeln!(out, "{gap}{name}");
}

fn key(out: &mut String, name: &str, value: impl Display) {
    let _ = writeln!(out, "{name} = {value}");
}

fn server(out: &mut String, server: &Server) {
    header(out, "[server]");
    key(out, "http", list(&server.http));
    key(out, "https", list(&server.https));
    let protocols = [(server.h1, "h1"), (server.h2, "h2")];
    key(out, "protocols", list(protocols.iter().filter(|(on, _)| *on).map(|(_, name)| name)));
    key(out, "trusted_proxies", list(&server.trusted_proxies_written));
    key(out, "client_ip_header", text(&server.client_ip_header));
    key(out, "proxy_protocol", server.proxy_protocol);
    key(out, "resolvers", list(&server.resolvers));
    key(out, "workers", server.workers);
    key(out, "user", text(server.user.iter().map(ToString::to_string).collect::<String>()));
    key(out, "confine", server.confine);
    key(out, "pid_file", path(server.pid_file.as_deref()));
    key(out, "max_connections", server.max_connections);
    key(out, "max_connections_per_ip", server.max_connections_per_ip);
    key(out, "max_handshakes", server.max_handshakes);
    key(out, "max_memory", text(format_size(server.max_memory)));
    key(out, "shutdown_grace", text(format_duration(server.shutdown_grace)));
    key(out, "upgrade_window", text(format_duration(server.upgrade_window)));
}

fn timeouts(out: &mut String, timeouts: &Timeouts) {
    header(out, "[timeouts]");
    for (name, value) in [
        ("header", timeouts.header),
        ("body", timeouts.body),
        ("keepalive", timeouts.keepalive),
        ("write", timeouts.write),
        ("connect", timeouts.connect),
        ("read", timeouts.read),
        ("send", timeouts.send),
    ] {
        key(out, name, text(format_duration(value)));
    }
}

fn limits(out: &mut String, limits: &Limits) {
    header(out, "[limits]");
    key(out, "max_body", text(format_size(limits.max_body.unwrap_or(0))));
    key(out, "max_header_size", text(format_size(limits.max_header_size as u64)));
    key(out, "max_headers", limits.max_headers);
    key(out, "max_uri", text(format_size(limits.max_uri as u64)));
    let rate = limits.min_rate.map_or_else(|| "0".to_owned(), |rate| format!("{}/s", format_size(rate)));
    key(out, "min_rate", text(rate));
    key(out, "max_spooled", text(format_size(limits.max_spooled.unwrap_or(0))));
}

fn tls(out: &mut String, tls: &Tls) {
    header(out, "[tls]");
    key(out, "cert", path(tls.files.as_ref().map(|files| files.cert.as_path())));
    key(out, "key", path(tls.files.as_ref().map(|files| files.key.as_path())));
    key(out, "min_version", text(if tls.min_version == TlsVersion::V1_2 { "1.2" } else { "1.3" }));
    key(out, "watch", tls.watch);
    key(out, "client_ca", path(tls.client_ca.as_deref()));
}

fn log(out: &mut String, log: &Log) {
    header(out, "[log]");
    let level = match log.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    key(out, "level", text(level));
    key(out, "output", output(Some(&log.output)));
    key(out, "access", output(log.access.as_ref()));
    let format = match &log.format {
        AccessFormat::Combined => "combined",
        AccessFormat::Common => "common",
        AccessFormat::Json => "json",
        AccessFormat::Template(template) => template,
    };
    key(out, "format", text(format));
    key(out, "skip_paths", list(&log.skip_paths));
    key(out, "mask_query", list(&log.mask_query));
}

fn output(output: Option<&LogOutput>) -> String {
    match output {
        None => text("off"),
        Some(LogOutput::Stderr) => text("stderr"),
        Some(LogOutput::Stdout) => text("stdout"),
        Some(LogOutput::Syslog) => text("syslog"),
        Some(LogOutput::File(file)) => path(Some(file)),
    }
}

fn site(out: &mut String, site: &Site) {
    let name = bare(&site.name);
    header(out, &format!("[site.{name}]"));
    key(out, "hosts", list(&site.hosts));
    key(out, "aliases", list(&site.aliases));
    key(out, "default", site.default);
    key(out, "listen", list(&site.listen));
    let plain = match site.plain {
        Plain::Redirect => "redirect",
        Plain::Serve => "serve",
        Plain::Off => "off",
    };
    key(out, "http", text(plain));
    match &site.certificate {
        Certificate::Off => key(out, "tls", text("off")),
        Certificate::SelfSigned => key(out, "tls", text("self-signed")),
        Certificate::Acme => key(out, "tls", text("acme")),
        Certificate::Files(files) => {
            key(out, "tls", format!("{{ cert = {}, key = {} }}", path(Some(&files.cert)), path(Some(&files.key))));
        }
    }
    key(out, "root", path(site.root.as_deref()));
    key(out, "index", list(&site.index));
    ways_out(out, site);
    if !site.try_files.is_empty() {
        key(out, "try_files", list(site.try_files.iter().map(step)));
    }
    key(out, "compress", site.compress);
    key(out, "max_body", text(format_size(site.max_body.unwrap_or(0))));
    for (name, allowed) in [("dotfiles", site.dotfiles), ("sources", site.sources)] {
        key(out, name, text(if allowed { "allow" } else { "deny" }));
    }
    key(out, "assets", text(site.assets.map(format_duration).unwrap_or_default()));
    key(out, "security_headers", site.security_headers);
    key(out, "hsts", text(site.hsts.map(format_duration).unwrap_or_default()));
    key(out, "request_headers", edits(&site.request_headers, false));
    key(out, "response_headers", edits(&site.response_headers, true));
    let access = site.access_log.as_ref().map(|access| format!("access = {}, ", output(access.as_ref())));
    key(out, "log", format!("{{ {}skip_paths = {} }}", access.unwrap_or_default(), list(&site.skip_paths)));
    let accel = site.accel.iter().map(|(prefix, folder)| format!("{} = {}", text(prefix), path(Some(folder))));
    key(out, "accel", inline(accel));
    rules::access(out, &site.access);
    key(out, "limit", text(site.limit.as_deref().unwrap_or_default()));
    let pages = site.error_pages.iter().map(|(statuses, page)| format!("{statuses} = {}", text(format!("/{page}"))));
    key(out, "error_pages", inline(pages));
    key(out, "forwarded", site.forwarded);
    for one in &site.websockets {
        websocket(out, &name, one);
    }
    for one in &site.routes {
        route(out, &name, one);
    }
    for one in &site.redirects {
        redirect(out, &name, one);
    }
}

fn ways_out(out: &mut String, site: &Site) {
    let application = match &site.application {
        Some(Application::Http(upstream)) => Some(upstream),
        _ => None,
    };
    match &site.application {
        Some(Application::Php(one)) => key(out, "php", rules::php(one)),
        Some(Application::Http(upstream)) => {
            key(out, "upstream", rules::back_ends(&upstream.to));
            rules::balance(out, "upstream_", upstream);
        }
        None => {}
    }
    let routes = site.routes.iter().filter_map(|route| match &route.action {
        Action::Http(upstream) => Some(upstream),
        _ => None,
    });
    let sockets = site.websockets.iter().map(|websocket| &websocket.upstream);
    // All HTTP back ends of a site share these.
    let Some(upstream) = application.into_iter().chain(sockets).chain(routes).next() else { return };
    let tls = &upstream.tls;
    let client = tls.client.as_ref();
    let mut parts = vec![
        format!("verify = {}", !tls.insecure),
        format!("server_name = {}", text(tls.server_name.as_deref().unwrap_or_default())),
    ];
    if !tls.insecure {
        parts.push(format!("ca = {}", path(tls.ca.as_deref())));
    }
    parts.push(format!("cert = {}", path(client.map(|files| files.cert.as_path()))));
    parts.push(format!("key = {}", path(client.map(|files| files.key.as_path()))));
    key(out, "upstream_tls", inline(parts.into_iter()));
    let host = match &upstream.host {
        HostField::Preserve => "preserve",
        HostField::Upstream => "upstream",
        HostField::Literal(literal) => literal,
    };
    key(out, "host", text(host));
}

fn step(step: &TryFile) -> String {
    match step {
        TryFile::Path => "{path}".to_owned(),
        TryFile::Folder => "{path}/".to_owned(),
        TryFile::File(file) => file.clone(),
        TryFile::Upstream => "@upstream".to_owned(),
        TryFile::Status(status) => format!("={status}"),
    }
}

fn edits(edits: &HeaderEdits, response: bool) -> String {
    let add = if response { format!("add = {}, ", masked(&edits.add)) } else { String::new() };
    format!("{{ set = {}, {add}remove = {} }}", masked(&edits.set), list(&edits.remove))
}

fn websocket(out: &mut String, site: &str, websocket: &WebSocket) {
    header(out, &format!("[[site.{site}.websocket]]"));
    let preset = match websocket.preset {
        Preset::SocketIo => "socket.io",
        Preset::Pusher => "pusher",
        Preset::Any => "any",
        Preset::None => "none",
    };
    key(out, "preset", text(preset));
    key(out, "to", rules::back_ends(&websocket.upstream.to));
    key(out, "paths", list(&websocket.paths));
    let upgrade = match websocket.upgrade {
        UpgradeRule::Optional => "optional",
        UpgradeRule::Required => "required",
        UpgradeRule::Any => "any",
    };
    key(out, "upgrade", text(upgrade));
    if websocket.preset == Preset::Pusher {
        match &websocket.api {
            Api::Closed => key(out, "api", false),
            Api::Open => key(out, "api", true),
            Api::Only(networks) => key(out, "api", list(&networks.0)),
        }
    }
    rules::balance(out, "", &websocket.upstream);
    key(out, "idle_timeout", text(format_duration(websocket.idle_timeout)));
    key(out, "ping_interval", text(websocket.ping_interval.map(format_duration).unwrap_or_default()));
    key(out, "max_message", text(format_size(websocket.max_message.unwrap_or(0))));
    key(out, "message_rate", text(websocket.message_rate.map(|rate| rate.to_string()).unwrap_or_default()));
    key(out, "max_connections", websocket.max_connections);
    key(out, "max_connections_per_ip", websocket.max_connections_per_ip);
    key(out, "origins", list(&websocket.origins));
    key(out, "http2", websocket.http2);
    key(out, "limit", text(websocket.limit.as_deref().unwrap_or_default()));
}

fn route(out: &mut String, site: &str, route: &Route) {
    header(out, &format!("[[site.{site}.route]]"));
    match &route.matcher {
        Matcher::Path(pattern) => key(out, "path", text(pattern)),
        Matcher::Regex(regex) => key(out, "path_regex", text(regex.as_str())),
    }
    key(out, "methods", list(&route.methods));
    if let Some(allow) = &route.allow {
        key(out, "allow", list(&allow.0));
    }
    key(out, "deny", list(&route.deny.0));
    if route.allow.is_some() || !route.deny.is_empty() {
        key(out, "deny_status", route.deny_status);
    }
    match &route.basic_auth {
        BasicAuth::Site => {}
        BasicAuth::Off => key(out, "basic_auth", text("off")),
        BasicAuth::File(file) => key(out, "basic_auth", path(Some(file))),
    }
    key(out, "limit", text(route.limit.as_deref().unwrap_or_default()));
    match &route.action {
        Action::Http(upstream) => {
            key(out, "upstream", rules::back_ends(&upstream.to));
            key(out, "read_timeout", text(format_duration(upstream.read_timeout)));
        }
        Action::Php(one) => key(out, "php", rules::php(one)),
        Action::Root(folder) => key(out, "root", path(Some(folder))),
        Action::Alias(folder) => key(out, "alias", path(Some(folder))),
        Action::Redirect { to, status } => key(out, "redirect", format!("{{ to = {}, status = {status} }}", text(to))),
        Action::Respond { status, body, content_type } => {
            let (body, content_type) = (text(body), text(content_type));
            key(out, "respond", format!("{{ status = {status}, body = {body}, type = {content_type} }}"));
        }
    }
    if let Some(prefix) = &route.strip_prefix {
        key(out, "strip_prefix", text(prefix));
    }
    if let Some(prefix) = &route.replace_prefix {
        key(out, "replace_prefix", text(prefix));
    }
    if let Some(value) = &route.cache_control {
        key(out, "cache_control", text(value));
    }
}

fn redirect(out: &mut String, site: &str, redirect: &Redirect) {
    header(out, &format!("[[site.{site}.redirect]]"));
    key(out, "from", text(&redirect.from));
    key(out, "to", text(&redirect.to));
    key(out, "status", redirect.status);
}

fn masked(fields: &BTreeMap<String, String>) -> String {
    inline(fields.iter().map(|(name, value)| {
        let lower = name.to_ascii_lowercase();
        let secret = SECRETS.iter().any(|part| lower.contains(part));
        format!("{} = {}", bare(name), text(if secret { MASK } else { value }))
    }))
}

fn inline(parts: impl Iterator<Item = String>) -> String {
    let parts = parts.collect::<Vec<_>>().join(", ");
    if parts.is_empty() { "{}".to_owned() } else { format!("{{ {parts} }}") }
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    format!("[{}]", items.into_iter().map(text).collect::<Vec<_>>().join(", "))
}

fn path(path: Option<&Path>) -> String {
    text(path.map(|path| path.display().to_string()).unwrap_or_default())
}

/// A key as it may stand without quotes, or in them.
fn bare(name: &str) -> String {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    // `$${` is for values: nothing is replaced in keys.
    if plain { name.to_owned() } else { quote(name) }
}

/// A string value. `${` is written so that it is not replaced again.
fn text(value: impl Display) -> String {
    quote(&value.to_string().replace("${", "$${"))
}

fn quote(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
