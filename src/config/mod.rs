//! Layer 1: the configuration file. Text → TOML with spans → [`Config`], every problem of the file in one run.
//!
//! ```text
//! include ─▶ tree ──────▶ block ──────▶ general, site, upstream, route ─▶ check ─▶ Config ─▶ show
//! (files)    (TOML, ${…})  (typed keys)  (one table each)                (between sites)
//!                └──────────────┴───────────── problem (file:line:column, caret, help)
//! ```
//!
//! [`load`] reads files; everything below it is pure.

use std::path::Path;

mod access;
mod acme;
mod back_end;
mod block;
mod certified;
mod check;
mod directory;
mod general;
mod health;
mod include;
mod item;
mod limit;
pub mod model;
pub mod needs;
pub mod problem;
mod reading;
mod route;
mod show;
mod site;
mod transport;
mod tree;
mod try_files;
mod unbuilt;
mod upstream;
mod value;
mod websocket;
mod words;

pub use include::{files, include_patterns, load};
pub use model::*;
pub use problem::{Problem, Problems};
pub use show::show;
pub use value::cloudflare;

use block::Block;
use item::Item;
use reading::{Lookup, Reading, Source};
use tree::{Place, Value};

use crate::base::host::HostPattern;

/// Reads a configuration from texts: the first of `files` is the main one, the others are those that its `include`
/// may find. Names are relative to `folder`, which must be absolute.
///
/// # Errors
/// Every problem of the files, sorted by file and place.
pub fn parse(folder: &Path, files: &[(&str, &str)], env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Problems> {
    let source = |(name, text): &(&str, &str)| Source {
        name: (*name).to_owned(),
        path: folder.join(name),
        text: (*text).to_owned(),
    };
    let Some((main, others)) = files.split_first() else {
        return Err(Problems(vec![Problem::of_file("", "there is no file", "")]));
    };
    let lookup = |pattern: &str| {
        let (parent, last) = include::split(pattern)?;
        let mut found: Vec<Source> = others
            .iter()
            .filter(|(name, _)| name.strip_prefix(parent).is_some_and(|name| include::matches(last, name)))
            .map(source)
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        if found.is_empty() && !last.contains('*') {
            return Err((format!("{pattern} cannot be read: no such file or directory"), String::new()));
        }
        Ok(found)
    };
    assemble(source(main), &lookup, folder, env)
}

fn assemble(
    main: Source,
    lookup: &Lookup<'_>,
    folder: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Problems> {
    let mut reading = Reading::new(folder, env);
    let entries = reading.merge(main, lookup);
    let start = Place { file: 0, start: 0, end: 0 };
    let root = Block::new(&reading, "the file".to_owned(), start, &entries);
    unbuilt::refuse(&root, "root");
    root.list("include", |_, _| Some(()));
    let timeouts = general::timeouts(general::section(&root, "timeouts"));
    let limits = general::limits(general::section(&root, "limits"));
    let tls = general::tls(general::section(&root, "tls"));
    let acme = acme::acme(general::section(&root, "acme"));
    let server = general::server(general::section(&root, "server"), acme.acme.dns_hook.is_some());
    let log = general::log(general::section(&root, "log"));

    let mut limit_names = Vec::new();
    let mut rate_limits = Vec::new();
    if let Some(block) = root.take("limit").and_then(|item| item.table("[limit]")) {
        for entry in block.entries() {
            let name = format!("[limit.{}]", entry.key);
            let item = Item { reading: &reading, key: "limit", key_at: entry.key_at, node: &entry.node };
            limit_names.push(entry.key.as_str());
            rate_limits.extend(item.table(&name).and_then(|block| limit::limit(block, &entry.key)));
        }
    }

    let inherited = site::Inherited {
        limit_names: &limit_names,
        server: &server,
        timeouts: &timeouts,
        limits: &limits,
        tls: &tls,
        acme: &acme,
    };
    let mut sites = Vec::new();
    match root.take("site") {
        Some(item) => {
            for entry in item.table("[site]").iter().flat_map(|block| block.entries()) {
                let name = format!("[site.{}]", entry.key);
                match &entry.node.value {
                    Value::Table(keys) => {
                        let block = Block::new(&reading, name, entry.key_at, keys);
                        sites.push(site::site(block, &entry.key, &inherited));
                    }
                    other => {
                        let message = format!("`{}` is {}, but [site] holds tables", entry.key, other.kind());
                        let help = "a site has a name of its own: write [site.app] above its keys";
                        reading.problem(entry.key_at, message, "", help);
                    }
                }
            }
        }
        None => reading.missing(start, "there is no site", "add a [site.NAME] with hosts, and root, php or upstream"),
    }
    check::sites(&reading, &sites);
    // Wildcards are proven over DNS, whatever else there is.
    let asked_for = |placed: &site::Placed| {
        let below = |name: &HostPattern| matches!(name, HostPattern::Below(_));
        placed.site.certificate == Certificate::Acme && placed.names.iter().any(|(name, _)| !below(name))
    };
    if sites.iter().any(asked_for) {
        acme.check(&reading, &server);
    }
    root.finish();
    let files = reading.files();
    let sites = sites.into_iter().map(|placed| placed.site).collect();
    reading.finish()?;
    Ok(Config {
        server,
        timeouts,
        limits,
        rate_limits,
        tls,
        acme: acme.acme,
        log,
        sites,
        folder: folder.to_owned(),
        files,
    })
}
