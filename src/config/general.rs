//! `[server]`, `[timeouts]`, `[limits]`, `[tls]`, `[log]`.

use std::net::SocketAddr;
use std::time::Duration;

use super::block::Block;
use super::item::Item;
use super::model::{
    AccessFormat, CertificateFiles, Level, Limits, Log, LogOutput, Server, Timeouts, Tls, TlsVersion, User,
};
use super::tree::Value;
use super::value;
use crate::base::address::ListenAddress;
use crate::base::network::Networks;
use crate::base::pattern::PathPattern;
use crate::base::units::parse_size;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A table of the root, or an empty one in its place, so that defaults stand in the getters alone.
pub(super) fn section<'a>(root: &Block<'a>, key: &'static str) -> Block<'a> {
    root.table(key).unwrap_or_else(|| Block::new(root.reading, format!("[{key}]"), root.at, &[]))
}

/// `hooked`: whether programs are run that may have to write anywhere.
pub(super) fn server(block: Block<'_>, hooked: bool) -> Server {
    let proxy_protocol = block.flag("proxy_protocol", false);
    let http = listeners(&block, "http", ListenAddress { ip: None, port: 80 });
    let https = listeners(&block, "https", ListenAddress { ip: None, port: 443 });
    for address in https.iter().filter(|address| address.port != 0 && http.contains(address)) {
        let message = format!("{address} is in `http` and in `https`");
        block.reading.problem(
            block.place("https"),
            message,
            "",
            "an address speaks TLS or not: remove it from one of the two",
        );
    }
    let nothing = |key| block.take(key).is_some_and(|item| item.node.value_is_empty_list());
    if nothing("http") && nothing("https") {
        block.reading.problem(
            block.at,
            "`http` and `https` are both empty: nothing would be listened on",
            "",
            "write https = [\":443\"]",
        );
    }
    let (h1, h2) = protocols(&block);
    let (trusted_proxies, trusted_proxies_written) = block
        .take("trusted_proxies")
        .and_then(|item| value::networks(&item))
        .unwrap_or((Networks::default(), Vec::new()));
    let client_ip_header = match block.take("client_ip_header") {
        Some(item) => item.text().and_then(|text| match ::http::HeaderName::from_bytes(text.as_bytes()) {
            Ok(name) => Some(name.as_str().to_owned()),
            Err(_) => {
                item.problem(
                    format!("\"{text}\" is not the name of a header field"),
                    "write \"X-Forwarded-For\" or \"CF-Connecting-IP\"",
                );
                None
            }
        }),
        // Cloudflare replaces this field, while it appends to the client's own X-Forwarded-For, which is still read from
        // other proxies.
        None if trusted_proxies_written.iter().any(|name| name == "cloudflare") => Some("cf-connecting-ip".to_owned()),
        None => None,
    };
    if proxy_protocol && trusted_proxies_written.is_empty() {
        block.no_effect(
            "proxy_protocol",
            "nobody is in `trusted_proxies`, and a PROXY head is taken from them alone",
            "add trusted_proxies = [\"10.0.0.0/8\"], with the addresses of the proxies",
        );
    }
    let server = Server {
        http,
        https,
        h1,
        h2,
        trusted_proxies,
        trusted_proxies_written,
        client_ip_header: client_ip_header.unwrap_or_else(|| "x-forwarded-for".to_owned()),
        workers: block.integer("workers", 0, 0..=1024),
        user: user(&block),
        confine: block.flag("confine", !hooked),
        pid_file: block.path("pid_file"),
        proxy_protocol,
        resolvers: block.list("resolvers", resolver).unwrap_or_default(),
        max_connections: block.integer("max_connections", 0, 0..=10_000_000),
        max_connections_per_ip: block.integer("max_connections_per_ip", 0, 0..=10_000_000),
        max_handshakes: block.integer("max_handshakes", 1024, 1..=10_000_000),
        max_memory: block.size_or_none("max_memory", None).unwrap_or(0),
        shutdown_grace: block.duration("shutdown_grace", Duration::from_secs(30)),
        upgrade_window: block.duration("upgrade_window", Duration::from_secs(3600)),
    };
    block.finish();
    server
}

/// `"www-data"`, `"www-data:tls-keys"`; empty is nobody else.
fn user(block: &Block<'_>) -> Option<User> {
    let item = block.take("user")?;
    let text = item.text().filter(|text| !text.is_empty())?;
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let is_name =
        |name: &str| !name.is_empty() && !name.contains([':', '/', '\0']) && !name.contains(char::is_whitespace);
    if !is_name(name) || !group.is_none_or(is_name) {
        let message = format!("\"{text}\" is not an account");
        item.problem(message, "write \"www-data\", or \"www-data:tls-keys\" with a group");
        return None;
    }
    Some(User { name: name.to_owned(), group: group.map(str::to_owned) })
}

/// A name server: `"10.0.0.2"`, `"127.0.0.1:5353"`.
fn resolver(item: &Item<'_>, text: &str) -> Option<SocketAddr> {
    let address = text.parse::<SocketAddr>().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, 53)));
    if address.is_none() {
        let help = "write \"10.0.0.2\", \"[2001:db8::53]:53\" or \"127.0.0.1:5353\"";
        item.problem(format!("\"{text}\" is not the address of a name server"), help);
    }
    address
}

fn listeners(block: &Block<'_>, key: &'static str, default: ListenAddress) -> Vec<ListenAddress> {
    let Some(item) = block.take(key) else { return vec![default] };
    let mut listeners: Vec<ListenAddress> = Vec::new();
    for item in item.items().unwrap_or_default() {
        let Some(text) = item.element() else { continue };
        match ListenAddress::parse(text) {
            // Port 0 is a free one each time: two of them differ.
            Ok(address) if address.port != 0 && listeners.contains(&address) => {
                item.problem(format!("{address} is in `{key}` twice"), "keep one");
            }
            Ok(address) => listeners.push(address),
            Err(why) => {
                item.problem(format!("\"{text}\": {why}"), &mend_listener(text));
            }
        }
    }
    listeners
}

fn mend_listener(text: &str) -> String {
    match text.strip_prefix("localhost:").or(text.strip_prefix("*:")) {
        _ if text.parse::<u16>().is_ok() => format!("write \":{text}\""),
        Some(port) if text.starts_with('*') => format!("write \":{port}\""),
        Some(port) => format!("write \"127.0.0.1:{port}\", and \"[::1]:{port}\" beside it"),
        None => String::new(),
    }
}

fn protocols(block: &Block<'_>) -> (bool, bool) {
    #[derive(Clone, PartialEq)]
    enum Protocol {
        H1,
        H2,
    }
    let Some(item) = block.take("protocols") else { return (true, true) };
    let Some(items) = item.items() else { return (true, true) };
    let choices = [("h1", Protocol::H1), ("h2", Protocol::H2)];
    let list: Vec<Protocol> = items.iter().filter_map(|item| item.one_of(&choices)).collect();
    if items.is_empty() {
        item.problem("`protocols` is empty: no client could speak", "write [\"h1\", \"h2\"]");
    }
    (list.contains(&Protocol::H1), list.contains(&Protocol::H2))
}

pub(super) fn timeouts(block: Block<'_>) -> Timeouts {
    let seconds = Duration::from_secs;
    let timeouts = Timeouts {
        header: block.wait("header", seconds(10)),
        body: block.wait("body", seconds(60)),
        keepalive: block.wait("keepalive", seconds(75)),
        write: block.wait("write", seconds(60)),
        connect: block.wait("connect", seconds(5)),
        read: block.wait("read", seconds(60)),
        send: block.wait("send", seconds(60)),
    };
    block.finish();
    timeouts
}

pub(super) fn limits(block: Block<'_>) -> Limits {
    let limits = Limits {
        max_body: block.size_or_none("max_body", Some(20 * MIB)),
        max_header_size: block.size("max_header_size", 32 << 10, KIB..=MIB),
        max_headers: block.integer("max_headers", 100, 1..=10_000),
        max_uri: block.size("max_uri", 8 << 10, 64..=MIB),
        min_rate: byte_rate(&block, "min_rate", 240),
        max_spooled: block.size_or_none("max_spooled", Some(1 << 30)),
    };
    block.finish();
    limits
}

/// A size for each second, `"240B/s"`, of which 0 means none.
fn byte_rate(block: &Block<'_>, key: &'static str, default: u64) -> Option<u64> {
    let Some(item) = block.take(key) else { return Some(default) };
    let size = match &item.node.value {
        Value::Integer(0) => Some(0),
        Value::Text(text) if text == "0" => Some(0),
        Value::Text(text) => text.strip_suffix("/s").and_then(|size| parse_size(size).ok()),
        _ => None,
    };
    match size {
        Some(size) => (size > 0).then_some(size),
        None => {
            item.problem(format!("`{key}` is not a size for each second"), "write \"240B/s\", or 0 for no limit");
            Some(default)
        }
    }
}

pub(super) fn tls(block: Block<'_>) -> Tls {
    let tls = Tls {
        files: certificate(&block),
        min_version: block.one_of(
            "min_version",
            TlsVersion::V1_2,
            &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)],
        ),
        watch: block.flag("watch", true),
        client_ca: block.path("client_ca"),
    };
    block.finish();
    tls
}

/// `cert` and `key` of a block: both or neither.
pub(super) fn certificate(block: &Block<'_>) -> Option<CertificateFiles> {
    let cert = block.path("cert");
    let key = block.path("key");
    let lonely = |has: &str, lacks: &str| {
        block.reading.missing(
            block.place(has),
            format!("`{has}` without `{lacks}`"),
            format!("add {lacks} = \"/…/{lacks}.pem\" beside it"),
        );
    };
    match (cert, key) {
        (Some(cert), Some(key)) => Some(CertificateFiles { cert, key }),
        (Some(_), None) => {
            lonely("cert", "key");
            None
        }
        (None, Some(_)) => {
            lonely("key", "cert");
            None
        }
        (None, None) => None,
    }
}

pub(super) fn log(block: Block<'_>) -> Log {
    let levels = [("error", Level::Error), ("warn", Level::Warn), ("info", Level::Info), ("debug", Level::Debug)];
    let log = Log {
        level: block.one_of("level", Level::Info, &levels),
        output: block
            .take("output")
            .and_then(|item| value::log_output(&item, value::OUTPUT))
            .flatten()
            .unwrap_or(LogOutput::Stderr),
        access: block
            .take("access")
            .and_then(|item| value::log_output(&item, value::ACCESS))
            .unwrap_or(Some(LogOutput::Stdout)),
        format: format(&block),
        skip_paths: value::patterns(&block, "skip_paths").unwrap_or_else(|| {
            ["/favicon.ico", "/robots.txt"].map(|path| PathPattern::Exact(path.to_owned())).to_vec()
        }),
        mask_query: block
            .list("mask_query", |_, text| Some(text.to_owned()))
            .unwrap_or_else(|| ["token", "auth_key", "auth_signature", "password"].map(str::to_owned).to_vec()),
    };
    block.finish();
    log
}

fn format(block: &Block<'_>) -> AccessFormat {
    let names = [("combined", AccessFormat::Combined), ("json", AccessFormat::Json), ("common", AccessFormat::Common)];
    let Some(item) = block.take("format") else { return AccessFormat::Combined };
    let Some(text) = item.text() else { return AccessFormat::Combined };
    if !text.contains('{') {
        return item.one_of(&names).unwrap_or(AccessFormat::Combined);
    }
    let closed = text.split('{').skip(1).all(|part| {
        part.split_once('}')
            .is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
    });
    if !closed || text.contains(['\n', '\r']) {
        item.problem(
            "`format` is not a template",
            "write one line with {name} for each field, such as \"{client} {status} {target}\"",
        );
    }
    AccessFormat::Template(text.to_owned())
}
