//! `[site.NAME]`.

use std::path::PathBuf;

use super::back_end::{Keys, back_ends, balance};
use super::block::Block;
use super::item::Item;
use super::model::{Application, Certificate, HeaderEdits, Limits, LogOutput, Server, Site, Timeouts, Tls};
use super::transport::{listen, listeners, transport};
use super::tree::Place;
use super::try_files::try_files;
use super::upstream::{Shared, php};
use super::websocket::websocket;
use super::{access, acme, certified, check, limit, route, value};
use crate::base::address::ListenAddress;
use crate::base::host::{Host, HostPattern};
use crate::base::pattern::PathPattern;

/// What a site inherits.
pub(super) struct Inherited<'a> {
    pub server: &'a Server,
    /// The names of all `[limit.*]`.
    pub limit_names: &'a [&'a str],
    pub timeouts: &'a Timeouts,
    pub limits: &'a Limits,
    pub tls: &'a Tls,
    pub acme: &'a acme::Placed,
}

/// A site, and the places that the checks between sites speak of.
pub(super) struct Placed {
    pub site: Site,
    /// The listeners that it answers on.
    pub listeners: Vec<ListenAddress>,
    /// Its hosts and aliases as written, each with its place.
    pub names: Vec<(HostPattern, Place)>,
    /// The place of `default`.
    pub default: Place,
}

pub(super) fn site(block: Block<'_>, name: &str, inherited: &Inherited<'_>) -> Placed {
    check_name(&block, name);
    let (hosts, aliases, names) = hosts(&block);
    let default = block.flag("default", false);
    let listen = listen(&block, inherited.server);
    let (certificate, plain) = transport(&block, inherited, &listen, &names);
    let listeners = listeners(&block, inherited.server, &listen, &certificate, plain);

    let root = block.path("root");
    // By what is written: a root of the wrong kind is one problem, not two.
    let has_root = block.take("root").is_some_and(|item| !item.node.value_is(""));
    let shared = Shared::read(&block, inherited.timeouts.read);
    let application = application(&block, &shared, has_root);
    let index = index(&block, application.as_ref());
    let try_files = try_files(&block, has_root, application.as_ref());
    let sockets = block.tables("websocket");
    let limits = sockets.iter().map(|block| block.place("limit")).collect();
    let places: Vec<Place> = sockets.iter().map(|block| block.at).collect();
    let websockets: Vec<_> = sockets.into_iter().map(|block| websocket(block, &shared)).collect();
    check::websockets(block.reading, &places, &websockets);
    let own = match &application {
        Some(Application::Http(upstream)) => Some((upstream, block.place("upstream"))),
        _ => None,
    };
    let sockets = websockets.iter().zip(&places).map(|(socket, place)| (&socket.upstream, *place));
    check::cookies(block.reading, &own.into_iter().chain(sockets).collect::<Vec<_>>());
    let mut limits = limit::Places { sockets: limits, routes: Vec::new() };
    let mut routes = Vec::new();
    for block in block.tables("route") {
        let place = block.place("limit");
        if let Some(route) = route::route(block, &shared, has_root) {
            routes.push(route);
            limits.routes.push(place);
        }
    }
    let redirects: Vec<_> = block.tables("redirect").into_iter().filter_map(route::redirect).collect();
    without_back_end(&block);

    let (access_log, skip_paths) = log(&block);
    let hsts = block.optional_duration("hsts");
    if hsts.is_some() && certificate == Certificate::Off {
        block.no_effect("hsts", "the site is without TLS", "remove it");
    }
    let site = Site {
        name: name.to_owned(),
        hosts,
        aliases,
        default,
        listen,
        plain,
        certificate,
        root,
        index,
        application,
        try_files,
        compress: block.flag("compress", true),
        max_body: block.size_or_none("max_body", inherited.limits.max_body),
        dotfiles: block.one_of("dotfiles", false, &[("deny", false), ("allow", true)]),
        sources: block.one_of("sources", false, &[("deny", false), ("allow", true)]),
        assets: block.optional_duration("assets"),
        security_headers: block.flag("security_headers", false),
        hsts,
        request_headers: value::header_edits(&block, "request_headers", HeaderEdits::default()),
        response_headers: value::header_edits(
            &block,
            "response_headers",
            HeaderEdits { remove: vec!["x-powered-by".to_owned()], ..HeaderEdits::default() },
        ),
        access_log,
        skip_paths,
        accel: accel(&block),
        limit: block.text("limit").map(str::to_owned),
        access: access::of_site(&block),
        error_pages: access::error_pages(&block),
        forwarded: block.flag("forwarded", false),
        websockets,
        routes,
        redirects,
    };
    required(&block, &site);
    limit::check(&block, &site, &limits, inherited.limit_names);
    if site.certificate == Certificate::Acme {
        certified::check(&block, site.default, &names, inherited.acme);
    }
    let default = block.place("default");
    block.finish();
    Placed { site, listeners, names, default }
}

/// What a site cannot be without. All keys are known by now: one that is misspelt is told as that alone.
fn required(block: &Block<'_>, site: &Site) {
    const ANSWERS: [&str; 6] = ["root", "php", "upstream", "websocket", "route", "redirect"];
    if !site.default && !block.has("hosts") && !block.misspelt(&["hosts"]) {
        let help = "add hosts = [\"app.example.com\"], or default = true for requests that no other site claims";
        block.reading.missing(block.at, format!("{} has no `hosts`", block.name), help);
    }
    if !site.default && block.take("hosts").is_some_and(|item| item.node.value_is_empty_list()) {
        block.reading.problem(
            block.place("hosts"),
            "`hosts` is empty: the site would get no request",
            "",
            "name at least one host, or write default = true",
        );
    }
    if !ANSWERS.iter().any(|key| block.has(key)) && !block.misspelt(&ANSWERS) {
        let help = "add root = \"/srv/app/public\", php = \"unix:…\", upstream = \"http://…\", a websocket, a route or a redirect";
        block.reading.missing(block.at, format!("{} answers nothing", block.name), help);
    }
}

fn check_name(block: &Block<'_>, name: &str) {
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(sound) {
        let help = "use letters, digits, '-', '_' and '.': the name is the label in logs";
        block.reading.problem(block.at, format!("\"{name}\" is not a name for a site"), "", help);
    }
}

type Names = (Vec<HostPattern>, Vec<Host>, Vec<(HostPattern, Place)>);

fn hosts(block: &Block<'_>) -> Names {
    let mut names = Vec::new();
    let mut hosts = Vec::new();
    let mut aliases = Vec::new();
    let complain = |item: &Item<'_>, text: &str, why: String| {
        let help = match text.split_once("://") {
            Some((_, rest)) => format!("write \"{}\": a host has no scheme", rest.trim_end_matches('/')),
            None if text == "*" || text == "_" => "remove it and write default = true".to_owned(),
            None if !text.is_ascii() => "write the name in its ASCII form (xn--…)".to_owned(),
            None if text.contains(':') => {
                "a host has no port here: ports are those of `http` and `https` in [server]".to_owned()
            }
            None => "write \"app.example.com\", \"*.example.com\", \".example.com\" or \"www.example.*\"".to_owned(),
        };
        item.problem(format!("\"{text}\" is not a host: {why}"), &help);
    };
    for item in block.take("hosts").and_then(|item| item.items()).unwrap_or_default() {
        let Some(text) = item.element() else { continue };
        match HostPattern::parse(text) {
            Ok(pattern) => {
                names.push((pattern.clone(), item.node.at));
                hosts.push(pattern);
            }
            Err(why) => complain(&item, text, why.to_string()),
        }
    }
    for item in block.take("aliases").and_then(|item| item.items()).unwrap_or_default() {
        let Some(text) = item.element() else { continue };
        if text.starts_with("*.") || text.starts_with('.') || text.ends_with(".*") {
            item.problem(
                format!("the alias \"{text}\" has a wildcard"),
                "name each alias, or put the pattern into `hosts`",
            );
            continue;
        }
        match Host::parse(text) {
            Ok(host) => {
                names.push((HostPattern::Exact(host.clone()), item.node.at));
                aliases.push(host);
            }
            Err(why) => complain(&item, text, why.to_string()),
        }
    }
    if !aliases.is_empty() && !matches!(hosts.first(), Some(HostPattern::Exact(_))) {
        block.no_effect(
            "aliases",
            "the first of `hosts` is not a plain name to redirect to",
            "put the plain name first in `hosts`",
        );
    }
    (hosts, aliases, names)
}

fn application(block: &Block<'_>, shared: &Shared, has_root: bool) -> Option<Application> {
    let php_item = block.take("php");
    let upstream = block.take("upstream");
    if let (Some(_), Some(item)) = (&php_item, &upstream) {
        let help = "keep one; the other may answer some paths in a [[site.x.route]]";
        block.reading.problem(item.key_at, "`php` and `upstream` exclude each other", "", help);
    }
    if php_item.is_some() && !has_root {
        let help = "add root = \"/srv/app/public\", the folder with index.php";
        block.reading.missing(block.place("php"), "`php` needs `root`", help);
    }
    if let Some(item) = php_item {
        return php(&item, shared.read_timeout).map(Application::Php);
    }
    let mut upstream = shared.upstream(back_ends(&upstream?)?);
    balance(block, &Keys::SITE, false, &mut upstream);
    Some(Application::Http(upstream))
}

/// Keys about HTTP back ends where there is none.
fn without_back_end(block: &Block<'_>) {
    if !block.has("upstream") {
        for key in Keys::SITE.all() {
            if let Some(item) = block.take(key) {
                block.no_effect(item.key, "the site has no `upstream`", "add `upstream`, or remove it");
            }
        }
    }
    if !["upstream", "websocket", "route"].iter().any(|key| block.has(key)) {
        for key in ["upstream_tls", "host"] {
            block.no_effect(key, "the site has no HTTP back end", "add `upstream`, or remove it");
        }
    }
}

fn index(block: &Block<'_>, application: Option<&Application>) -> Vec<String> {
    let written = block.list("index", |item, text| {
        if text.contains('/') {
            item.problem(
                format!("\"{text}\" is not the name of a file"),
                "an index is a name without '/', looked for in each folder",
            );
            return None;
        }
        value::file_below(item, text)
    });
    written.unwrap_or_else(|| {
        let script = match application {
            Some(Application::Php(php)) if !php.index.contains('/') => php.index.clone(),
            _ => "index.php".to_owned(),
        };
        vec![script, "index.html".to_owned()]
    })
}

type SiteLog = (Option<Option<LogOutput>>, Vec<PathPattern>);

fn log(site: &Block<'_>) -> SiteLog {
    let Some(block) = site.table("log") else { return (None, Vec::new()) };
    let access = block.take("access").and_then(|item| value::log_output(&item, value::ACCESS));
    let skip_paths = value::patterns(&block, "skip_paths").unwrap_or_default();
    block.finish();
    (access, skip_paths)
}

fn accel(site: &Block<'_>) -> Vec<(String, PathBuf)> {
    let Some(item) = site.take("accel") else { return Vec::new() };
    let Some(block) = item.table("`accel`") else { return Vec::new() };
    let mut accel = Vec::new();
    for entry in block.entries() {
        let prefix = &entry.key;
        if !prefix.starts_with('/') || !prefix.ends_with('/') {
            let help = format!("write \"/{}/\"", prefix.trim_matches('/'));
            block.reading.problem(
                entry.key_at,
                format!("\"{prefix}\" is not a folder of paths"),
                "it begins and ends with '/'",
                help,
            );
            continue;
        }
        let folder = Item { node: &entry.node, key_at: entry.key_at, ..item };
        match folder.element().map(str::is_empty) {
            Some(false) => accel.extend(folder.path().map(|path| (prefix.clone(), path))),
            Some(true) => {
                folder.problem("the folder is empty", "write the path of a folder, such as \"/srv/app/storage/\"")
            }
            None => {}
        }
    }
    accel.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    accel
}
