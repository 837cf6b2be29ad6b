//! How a site is reached: the listeners it is on, and its certificate.

use std::path::PathBuf;

use super::block::Block;
use super::item::Item;
use super::model::{Certificate, CertificateFiles, Plain, Server};
use super::site::Inherited;
use super::tree::{Place, Value};
use super::words::closest;
use super::{certified, general};
use crate::base::address::ListenAddress;
use crate::base::host::HostPattern;

/// The addresses of `listen`; empty is all of `[server]`.
pub(super) fn listen(block: &Block<'_>, server: &Server) -> Vec<ListenAddress> {
    let mut listen = Vec::new();
    for item in block.take("listen").and_then(|item| item.items()).unwrap_or_default() {
        let Some(text) = item.element() else { continue };
        match ListenAddress::parse(text) {
            Ok(address) if server.http.contains(&address) || server.https.contains(&address) => listen.push(address),
            Ok(address) => {
                let all: Vec<_> =
                    server.http.iter().chain(&server.https).map(|address| format!("\"{address}\"")).collect();
                let help = format!("[server] has {}: add it there, or write one of these", all.join(", "));
                item.problem(format!("nobody listens on {address}"), &help);
            }
            Err(why) => item.problem(format!("\"{text}\": {why}"), ""),
        }
    }
    listen
}

/// Where the certificate comes from, and what the plain listeners do. `names` are those of the site.
pub(super) fn transport(
    block: &Block<'_>,
    inherited: &Inherited<'_>,
    listen: &[ListenAddress],
    names: &[(HostPattern, Place)],
) -> (Certificate, Plain) {
    let secure = inherited.server.https.iter().any(|address| listen.is_empty() || listen.contains(address));
    let certificate = match block.take("tls") {
        Some(item) => {
            let certificate = certificate(&item);
            if !secure && certificate.as_ref().is_some_and(|certificate| *certificate != Certificate::Off) {
                let help =
                    "add an address to `https` in [server] (and to `listen` of the site), or write tls = \"off\"";
                block.no_effect("tls", "the site is on no TLS listener", help);
                None
            } else {
                certificate
            }
        }
        None => match &inherited.tls.files {
            _ if !secure => Some(Certificate::Off),
            Some(files) => Some(Certificate::Files(files.clone())),
            None => certified::by_names(block, names, inherited.acme),
        },
    };
    let off = certificate == Some(Certificate::Off);
    let plains = [("redirect", Plain::Redirect), ("serve", Plain::Serve), ("off", Plain::Off)];
    let plain = block.one_of("http", if off { Plain::Serve } else { Plain::Redirect }, &plains);
    if off && plain == Plain::Redirect {
        let message = "`http = \"redirect\"` leads nowhere: the site is without TLS";
        block.reading.problem(
            block.place("http"),
            message,
            "",
            "write http = \"serve\", or give the site a certificate",
        );
    }
    (certificate.unwrap_or(Certificate::SelfSigned), plain)
}

fn certificate(item: &Item<'_>) -> Option<Certificate> {
    const WORDS: [&str; 3] = ["self-signed", "off", "acme"];
    if matches!(item.node.value, Value::Table(_)) {
        let block = item.table("`tls`")?;
        let files = general::certificate(&block);
        if files.is_none() && !block.has("cert") && !block.has("key") {
            block.reading.missing(block.at, "`tls` names no files", "write tls = { cert = \"…\", key = \"…\" }");
        }
        block.finish();
        return files.map(Certificate::Files);
    }
    let Value::Text(text) = &item.node.value else {
        item.wrong(
            "a string or { cert, key }",
            "write tls = \"acme\", \"/etc/letsencrypt/live/NAME\", \"self-signed\", \"off\" or { cert = \"…\", key = \"…\" }",
        );
        return None;
    };
    match text.as_str() {
        "off" => Some(Certificate::Off),
        "self-signed" => Some(Certificate::SelfSigned),
        "acme" => Some(Certificate::Acme),
        folder if folder.contains('/') => {
            let folder: PathBuf = item.path()?;
            Some(Certificate::Files(CertificateFiles {
                cert: folder.join("fullchain.pem"),
                key: folder.join("privkey.pem"),
            }))
        }
        word => {
            let help = match closest(word, WORDS.into_iter()) {
                Some(word) => format!("did you mean \"{word}\"?"),
                None => "write \"acme\", \"self-signed\", \"off\", a folder (\"/etc/letsencrypt/live/NAME\") or { cert = \"…\", key = \"…\" }".to_owned(),
            };
            item.problem(format!("\"{word}\" is not a value of `tls`"), &help);
            None
        }
    }
}

/// The listeners that the site answers on; none is a problem.
pub(super) fn listeners(
    block: &Block<'_>,
    server: &Server,
    listen: &[ListenAddress],
    certificate: &Certificate,
    plain: Plain,
) -> Vec<ListenAddress> {
    let http = server.http.iter().filter(|_| plain != Plain::Off);
    let https = server.https.iter().filter(|_| *certificate != Certificate::Off);
    let listeners: Vec<ListenAddress> =
        http.chain(https).filter(|address| listen.is_empty() || listen.contains(address)).copied().collect();
    // Addresses that could not be read, and a [server] without any, are told already.
    let told = listen.is_empty() && block.take("listen").is_some_and(|item| !item.node.value_is_empty_list())
        || server.http.is_empty() && server.https.is_empty();
    if listeners.is_empty() && !told {
        let at = ["http", "tls", "listen"].iter().find(|key| block.has(key)).map_or(block.at, |key| block.place(key));
        let help = "give it a certificate, write http = \"serve\", or add an address to [server]";
        block.reading.missing(at, format!("{} is on no listener: nobody can reach it", block.name), help);
    }
    listeners
}
