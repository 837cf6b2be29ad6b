//! `try_files` and `spa`: what is tried in turn.

use super::block::Block;
use super::item::Item;
use super::model::{Application, TryFile};
use super::value;

/// The steps of a site: as written, or the default for what it has.
pub(super) fn try_files(block: &Block<'_>, has_root: bool, application: Option<&Application>) -> Vec<TryFile> {
    // By what is written, not by what could be read: a bad address is one problem, not two.
    let http = block.has("upstream");
    let spa = block.flag("spa", false);
    if let Some(item) = block.take("try_files") {
        if spa {
            block.no_effect("spa", "`try_files` is written", "remove it, and end try_files with \"/index.html\"");
        }
        return steps(&item, has_root, http);
    }
    if spa && !has_root {
        block.no_effect("spa", "the site has no `root`", "add root = \"…\", the folder with index.html");
    }
    if spa && http {
        let why = "unknown paths cannot go to /index.html and to `upstream`";
        block.no_effect("spa", why, "remove it, or send the application's paths to it with [[site.x.route]]");
    }
    let mut steps = match (has_root, http) {
        (true, true) => vec![TryFile::Path, TryFile::Upstream],
        (false, true) => vec![TryFile::Upstream],
        (true, false) => vec![TryFile::Path, TryFile::Folder],
        (false, false) => Vec::new(),
    };
    match application {
        _ if spa => steps.push(TryFile::File("/index.html".to_owned())),
        Some(Application::Php(php)) if has_root => steps.push(TryFile::File(format!("/{}", php.index))),
        _ => {}
    }
    steps
}

fn steps(item: &Item<'_>, has_root: bool, http: bool) -> Vec<TryFile> {
    let last = item.items().map_or(0, |items| items.len()).saturating_sub(1);
    let mut steps = Vec::new();
    for (at, item) in item.items().unwrap_or_default().into_iter().enumerate() {
        let Some(text) = item.element() else { continue };
        let Some(step) = step(&item, text) else { continue };
        match &step {
            TryFile::Upstream if !http => {
                item.problem("the site has no `upstream`", "add upstream = \"http://…\", or remove \"@upstream\"")
            }
            TryFile::Path | TryFile::Folder | TryFile::File(_) if !has_root => {
                item.problem(format!("\"{text}\" needs `root`"), "add root = \"…\", or leave \"@upstream\" alone");
            }
            TryFile::Upstream | TryFile::Status(_) if at < last => {
                item.problem(format!("nothing is tried behind \"{text}\""), "put it last");
            }
            _ => steps.push(step),
        }
    }
    if item.node.value_is_empty_list() {
        item.problem("`try_files` is empty: nothing would be found", "remove it for the default");
    }
    steps
}

fn step(item: &Item<'_>, text: &str) -> Option<TryFile> {
    const HELP: &str = "a step is \"{path}\", \"{path}/\", a file such as \"/index.php\", \"@upstream\" or \"=404\"";
    let help = match text {
        "{path}" => return Some(TryFile::Path),
        "{path}/" => return Some(TryFile::Folder),
        "@upstream" => return Some(TryFile::Upstream),
        "$uri" => "write \"{path}\"",
        "$uri/" => "write \"{path}/\"",
        _ if text.starts_with('=') => match text.get(1..).and_then(|digits| digits.parse::<u16>().ok()) {
            Some(status @ 400..=599) => return Some(TryFile::Status(status)),
            _ => "a status is from 400 to 599: \"=404\"",
        },
        _ if text.contains('?') => "leave out the '?': the query goes along by itself",
        _ if text.starts_with('/') && !text.contains(['{', '$', '*']) => {
            return value::file_below(item, text).map(|name| TryFile::File(format!("/{name}")));
        }
        _ if text.starts_with('@') => "the one named destination is \"@upstream\"; use [[site.x.route]] for others",
        _ => HELP,
    };
    item.problem(format!("\"{text}\" is not a step of `try_files`"), help);
    None
}
