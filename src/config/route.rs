//! `[[site.x.route]]` and `[[site.x.redirect]]`.

use super::back_end::back_ends;
use super::block::Block;
use super::item::Item;
use super::model::{Action, Matcher, Redirect, Route};
use super::tree::Value;
use super::upstream::{Shared, php};
use super::{access, value};
use crate::base::pattern::PathPattern;

/// The keys of which a route has exactly one.
const ACTIONS: [&str; 6] = ["upstream", "php", "root", "alias", "redirect", "respond"];
/// Type of a `respond` that names none.
const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// One route. `None` where it lacks its path or its action; why is recorded.
pub(super) fn route(block: Block<'_>, shared: &Shared, site_has_root: bool) -> Option<Route> {
    let matcher = matcher(&block);
    let methods = block.list("methods", method).unwrap_or_default();
    let allow = access::allow(&block);
    let deny = access::deny(&block);
    let deny_status = value::status(&block, "deny_status", 403, 400..=599);
    if !block.has("allow") && !block.has("deny") {
        block.no_effect("deny_status", "the route has no `allow`", "add `allow` or `deny`, or remove it");
    }
    let action = action(&block, shared, matcher.as_ref());
    if block.has("php") && !site_has_root {
        block.reading.missing(
            block.place("php"),
            "`php` needs the site's `root`",
            "add root = \"/srv/app/public\" to the site",
        );
    }
    let strip_prefix = prefix(&block, "strip_prefix");
    let replace_prefix = prefix(&block, "replace_prefix");
    if !(block.has("upstream") || block.has("php") || block.has("root")) {
        for key in ["strip_prefix", "replace_prefix"] {
            block.no_effect(key, "only `upstream`, `php` and `root` see a path", "remove it");
        }
    }
    if block.has("path_regex") && !block.has("strip_prefix") {
        let help = "add strip_prefix, or write `path` with a `*` at its end";
        block.no_effect("replace_prefix", "a path_regex has no prefix to replace", help);
    }
    if !(block.has("upstream") || block.has("php")) {
        block.no_effect("read_timeout", "nothing is read from a back end", "remove it");
    }
    let cache_control = block
        .take("cache_control")
        .and_then(|item| value::field_value(block.reading, &item))
        .filter(|text| !text.is_empty());
    let basic_auth = access::basic_auth(&block);
    let limit = block.text("limit").map(str::to_owned);
    block.finish();
    Some(Route {
        matcher: matcher?,
        methods,
        allow,
        deny,
        deny_status,
        basic_auth,
        limit,
        action: action?,
        strip_prefix,
        replace_prefix,
        cache_control,
    })
}

fn matcher(block: &Block<'_>) -> Option<Matcher> {
    let path = block.take("path");
    let regex = block.take("path_regex");
    match (path, regex) {
        (Some(item), None) => value::pattern(&item, item.text()?).map(Matcher::Path),
        (None, Some(item)) => match regex::bytes::Regex::new(item.text()?) {
            Ok(regex) => Some(Matcher::Regex(regex)),
            Err(why) => {
                let why = why.to_string();
                let last = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
                let help = "the syntax is that of the Rust crate regex: no look-around, no back references";
                item.problem(format!("`path_regex` is not a regular expression: {last}"), help);
                None
            }
        },
        (Some(_), Some(item)) => {
            let message = "`path` and `path_regex` exclude each other";
            item.reading.problem(item.key_at, message, "", "keep one of the two, or write two routes");
            None
        }
        (None, None) => {
            block.reading.missing(
                block.at,
                format!("{} has no path", block.name),
                "add path = \"/x/*\" or path_regex = '^/x/'",
            );
            None
        }
    }
}

fn action(block: &Block<'_>, shared: &Shared, matcher: Option<&Matcher>) -> Option<Action> {
    let read_timeout = block.wait("read_timeout", shared.read_timeout);
    let written: Vec<Item<'_>> = ACTIONS.iter().filter_map(|key| block.take(key)).collect();
    let item = match written.as_slice() {
        [item] => item,
        [] => {
            let help = "add one of upstream, php, root, alias, redirect, respond";
            block.reading.missing(block.at, format!("{} does nothing", block.name), help);
            return None;
        }
        several => {
            let keys = several.iter().map(|item| format!("`{}`", item.key)).collect::<Vec<_>>().join(" and ");
            let last = several.last()?;
            let message = format!("a route does one thing, and this one has {keys}");
            last.reading.problem(last.key_at, message, "", "keep one, and write another route for the other");
            return None;
        }
    };
    match item.key {
        "upstream" => {
            let mut upstream = shared.upstream(back_ends(item)?);
            upstream.read_timeout = read_timeout;
            Some(Action::Http(upstream))
        }
        "php" => php(item, read_timeout).map(Action::Php),
        "root" => folder(item).map(Action::Root),
        "alias" => {
            if matches!(matcher, Some(Matcher::Regex(_))) {
                let help = "use `root`, or `path` with a `*` at its end";
                item.reading.problem(
                    item.key_at,
                    "`alias` needs `path`: a path_regex has no rest to look for",
                    "",
                    help,
                );
            }
            folder(item).map(Action::Alias)
        }
        "redirect" => redirect_action(item, matcher),
        _ => respond(item),
    }
}

fn folder(item: &Item<'_>) -> Option<std::path::PathBuf> {
    if item.node.value_is("") {
        item.problem(format!("`{}` is empty", item.key), "write the path of a folder");
        return None;
    }
    item.path()
}

fn redirect_action(item: &Item<'_>, matcher: Option<&Matcher>) -> Option<Action> {
    // Where the path itself is wrong, its rest is not worth a second problem.
    let has_rest = matcher.is_none_or(|matcher| matches!(matcher, Matcher::Path(pattern) if rest(pattern)));
    if matches!(item.node.value, Value::Text(_)) {
        return Some(Action::Redirect { to: value::target(item, has_rest)?, status: 301 });
    }
    if !matches!(item.node.value, Value::Table(_)) {
        item.wrong("a string or a table", "write redirect = \"/new\" or redirect = { to = \"/new\", status = 302 }");
        return None;
    }
    let block = item.table("`redirect`")?;
    let to = to(&block, has_rest);
    let status = value::redirect_status(&block);
    block.finish();
    Some(Action::Redirect { to: to?, status })
}

fn to(block: &Block<'_>, has_rest: bool) -> Option<String> {
    match block.take("to") {
        Some(item) => value::target(&item, has_rest),
        None => {
            block.reading.missing(
                block.at,
                format!("{} has no `to`", block.name),
                "add to = \"/new\" or to = \"https://…\"",
            );
            None
        }
    }
}

fn rest(pattern: &PathPattern) -> bool {
    !matches!(pattern, PathPattern::Exact(_))
}

fn respond(item: &Item<'_>) -> Option<Action> {
    let answer =
        |status, body: &str| Action::Respond { status, body: body.to_owned(), content_type: PLAIN_TEXT.to_owned() };
    match &item.node.value {
        Value::Text(body) => Some(answer(200, body)),
        Value::Integer(_) => {
            let status = item.integer(200..=599)?;
            Some(answer(u16::try_from(status).ok()?, ""))
        }
        Value::Table(_) => {
            let block = item.table("`respond`")?;
            let status = value::status(&block, "status", 200, 200..=599);
            let body = block.text("body").unwrap_or_default();
            let content_type = block.take("type").and_then(|item| value::field_value(block.reading, &item));
            if matches!(status, 204 | 304) && !body.is_empty() {
                // RFC 9110, sections 15.3.5 and 15.4.5: a 204 or 304 has no content.
                block.no_effect("body", &format!("{status} has no content"), "remove it, or write status = 200");
            }
            block.finish();
            Some(Action::Respond {
                status,
                body: body.to_owned(),
                content_type: content_type.unwrap_or_else(|| PLAIN_TEXT.to_owned()),
            })
        }
        _ => {
            item.wrong(
                "a text, a status or a table",
                "write respond = \"ok\", respond = 410, or respond = { status = 200, body = \"…\", type = \"…\" }",
            );
            None
        }
    }
}

fn method<'a>(item: &Item<'a>, text: &'a str) -> Option<String> {
    let upper = text.to_ascii_uppercase();
    if ::http::Method::from_bytes(upper.as_bytes()).is_err() {
        item.problem(format!("\"{text}\" is not a method"), "write \"GET\", \"POST\" and so on");
        return None;
    }
    if matches!(upper.as_str(), "CONNECT" | "TRACE" | "TRACK") {
        item.problem(format!("{upper} is never taken"), "remove it");
        return None;
    }
    Some(upper)
}

fn prefix(block: &Block<'_>, key: &'static str) -> Option<String> {
    let item = block.take(key)?;
    let text = item.text().filter(|text| !text.is_empty())?;
    if !text.starts_with('/') || text.contains(['*', '?', '#', '\0']) {
        item.problem(
            format!("\"{text}\" is not the front of a path"),
            "write \"/api\": it starts with '/' and has no '*'",
        );
        return None;
    }
    let text = if key == "strip_prefix" { text.trim_end_matches('/') } else { text };
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

/// One redirect. `None` where a part is missing; why is recorded.
pub(super) fn redirect(block: Block<'_>) -> Option<Redirect> {
    let from = match block.take("from") {
        Some(item) => item.text().and_then(|text| value::pattern(&item, text)),
        None => {
            block.reading.missing(block.at, format!("{} has no `from`", block.name), "add from = \"/old/*\"");
            None
        }
    };
    let to = to(&block, from.as_ref().is_none_or(rest));
    let status = value::redirect_status(&block);
    block.finish();
    Some(Redirect { from: from?, to: to?, status })
}
