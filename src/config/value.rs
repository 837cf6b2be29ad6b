//! Values that several blocks share: ranges, patterns, header fields, status codes, places to go to.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use ::http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use super::block::Block;
use super::item::Item;
use super::model::{HeaderEdits, LogOutput};
use super::reading::Reading;
use super::tree::{Entry, Place, Value};
use super::words::closest;
use crate::base::network::{Networks, parse_network, private_networks};
use crate::base::origin::{InvalidOrigin, OriginPattern};
use crate::base::pattern::PathPattern;
use crate::base::rate::Rate;

/// Cloudflare's published ranges; the file says how to refresh them.
const CLOUDFLARE: &str = include_str!("cloudflare.txt");

/// The ranges behind the name `cloudflare`.
pub fn cloudflare() -> Networks {
    Networks(CLOUDFLARE.lines().filter_map(parse_network).collect())
}

/// A list of ranges, and how it was written. Names stand for several ranges.
pub(super) fn networks(item: &Item<'_>) -> Option<(Networks, Vec<String>)> {
    let read: Vec<(Vec<IpNet>, String)> = item.list(|item, text| {
        let ranges: Vec<IpNet> = match text {
            "private" => private_networks().collect(),
            "cloudflare" => cloudflare().0,
            _ => parse_network(text).into_iter().collect(),
        };
        if ranges.is_empty() {
            let help = match closest(text, ["private", "cloudflare"].into_iter()) {
                Some(name) => format!("did you mean \"{name}\"?"),
                None => {
                    "write \"10.0.0.0/8\", \"192.0.2.7\", \"2001:db8::/32\", \"private\" or \"cloudflare\"".to_owned()
                }
            };
            item.problem(format!("\"{text}\" is not an address, a range or a name for ranges"), &help);
            return None;
        }
        Some((ranges, text.to_owned()))
    })?;
    let (ranges, written): (Vec<Vec<IpNet>>, Vec<String>) = read.into_iter().unzip();
    Some((Networks(ranges.into_iter().flatten().collect()), written))
}

/// One path pattern.
pub(super) fn pattern(item: &Item<'_>, text: &str) -> Option<PathPattern> {
    match PathPattern::parse(text) {
        Ok(pattern) => Some(pattern),
        Err(why) => {
            let help = if text.starts_with('/') { String::new() } else { format!("write \"/{text}\"") };
            item.problem(format!("\"{text}\" is not a path: {why}"), &help);
            None
        }
    }
}

/// One entry of `origins`.
pub(super) fn origin(item: &Item<'_>, text: &str) -> Option<OriginPattern> {
    match OriginPattern::parse(text) {
        Ok(origin) => Some(origin),
        Err(why) => {
            let help = match (why, text.split_once("://")) {
                (InvalidOrigin::Scheme, Some((_, rest))) => format!("write \"https://{rest}\""),
                (InvalidOrigin::Scheme, None) if text.eq_ignore_ascii_case("self") => "write \"self\"".to_owned(),
                (InvalidOrigin::Scheme, None) => format!("write \"https://{text}\""),
                (InvalidOrigin::Path, Some((scheme, rest))) => {
                    format!("write \"{scheme}://{}\"", rest.split('/').next().unwrap_or_default())
                }
                _ => "write \"self\", \"https://app.example.com\" or \"https://*.example.com\"".to_owned(),
            };
            item.problem(format!("\"{text}\" is not an origin: {why}"), &help);
            None
        }
    }
}

/// A rate of which `""` means none.
pub(super) fn rate(item: &Item<'_>) -> Option<Rate> {
    let text = item.text().filter(|text| !text.is_empty())?;
    match Rate::parse(text) {
        Ok(rate) => Some(rate),
        Err(why) => {
            item.problem(format!("\"{text}\" is not a rate: {why}"), "write \"50/s\" or \"600/m\"");
            None
        }
    }
}

/// A list of path patterns.
pub(super) fn patterns(block: &Block<'_>, key: &'static str) -> Option<Vec<PathPattern>> {
    block.list(key, pattern)
}

/// A file name below a root: no leading slash, no `..`.
pub(super) fn file_below(item: &Item<'_>, text: &str) -> Option<String> {
    let name = text.strip_prefix('/').unwrap_or(text);
    let sound = !name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !sound || name.contains(['\0', '\\']) {
        item.problem(
            format!("\"{text}\" is not the name of a file below the root"),
            "write it relative to the root, such as \"index.php\"",
        );
        return None;
    }
    Some(name.to_owned())
}

/// An HTTP status within `range`.
pub(super) fn status(block: &Block<'_>, key: &'static str, default: u16, range: RangeInclusive<usize>) -> u16 {
    let status = block.integer(key, usize::from(default), range);
    u16::try_from(status).unwrap_or(default)
}

/// The status of a redirect.
pub(super) fn redirect_status(block: &Block<'_>) -> u16 {
    const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];
    let Some(item) = block.take("status") else { return 301 };
    match item.integer(0..=usize::from(u16::MAX)) {
        Some(number) => match REDIRECTS.iter().find(|status| usize::from(**status) == number) {
            Some(status) => *status,
            None => {
                item.problem(format!("{number} is not a redirect"), "write 301, 302, 303, 307 or 308");
                301
            }
        },
        None => 301,
    }
}

/// Where a redirect goes: a path or a URL. `{rest}` stands for what the pattern's `*` does, if it has one.
pub(super) fn target(item: &Item<'_>, has_rest: bool) -> Option<String> {
    let text = item.text()?;
    if !(text.starts_with('/') || text.starts_with("https://") || text.starts_with("http://")) {
        item.problem(
            format!("\"{text}\" is not a place to redirect to"),
            "write a path (\"/new\") or a URL (\"https://www.example.com/new\")",
        );
        return None;
    }
    if text.contains("{rest}") && !has_rest {
        item.problem(
            "`{rest}` stands for nothing here: the path has no `*`",
            "end the path with \"/*\", or leave {rest} out",
        );
        return None;
    }
    let left = text.replace("{rest}", "");
    if left.contains(['{', '}', ' ']) || HeaderValue::from_str(&left).is_err() {
        let help = "only {rest} is replaced; write other special characters percent-encoded";
        item.problem(format!("\"{}\" cannot stand in a Location field", text.escape_debug()), help);
        return None;
    }
    Some(text.to_owned())
}

/// The value of a header field.
pub(super) fn field_value(reading: &Reading<'_>, item: &Item<'_>) -> Option<String> {
    let text = item.text()?;
    // RFC 9110, section 5.5: CR, LF and NUL are dangerous in a field value.
    if HeaderValue::from_str(text).is_err() {
        reading.problem(
            item.node.at,
            format!("the value of `{}` has a control character", item.key),
            "",
            "a field is one line of text",
        );
        return None;
    }
    Some(text.to_owned())
}

/// Fields that belong to the connection or are written by the server itself (RFC 9110, section 7.6.1).
const OURS: &[&str] = &["connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// `request_headers` and `response_headers`. Names become lower case.
pub(super) fn header_edits(site: &Block<'_>, key: &'static str, default: HeaderEdits) -> HeaderEdits {
    let Some(item) = site.take(key) else { return default };
    let Some(block) = item.table(&format!("`{key}`")) else { return default };
    let request = key == "request_headers";
    let set = block.take("set").map(|item| fields(&item, request)).unwrap_or(default.set);
    let add = match request {
        true => BTreeMap::new(),
        false => block.take("add").map(|item| fields(&item, request)).unwrap_or(default.add),
    };
    let remove =
        block.list("remove", |item, text| field_name(item, item.node.at, text, request)).unwrap_or(default.remove);
    block.finish();
    HeaderEdits { set, add, remove }
}

fn fields(item: &Item<'_>, request: bool) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let Some(block) = item.table(&format!("`{}`", item.key)) else { return fields };
    for Entry { key, key_at, node } in block.entries() {
        let field = Item { node, key_at: *key_at, ..*item };
        let Value::Text(text) = &node.value else {
            let message = format!("the field `{key}` is {}, but must be a string", node.value.kind());
            item.reading.problem(node.at, message, "expected a string", "put it in quotes");
            continue;
        };
        if HeaderValue::from_str(text).is_err() {
            item.reading.problem(
                node.at,
                format!("the field `{key}` has a control character"),
                "",
                "a field is one line of text",
            );
            continue;
        }
        if let Some(name) = field_name(&field, *key_at, key, request)
            && fields.insert(name, text.clone()).is_some()
        {
            item.reading.problem(
                *key_at,
                format!("the field `{key}` is here a second time"),
                "",
                "upper and lower case do not differ",
            );
        }
    }
    fields
}

fn field_name(item: &Item<'_>, at: Place, text: &str, request: bool) -> Option<String> {
    let problem = |message: String, help: &str| item.reading.problem(at, message, "", help);
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        problem(
            format!("\"{text}\" is not the name of a header field"),
            "a name has letters, digits and hyphens, such as \"X-Frame-Options\"",
        );
        return None;
    };
    if OURS.contains(&name.as_str()) {
        problem(
            format!("the field `{text}` cannot be changed: it belongs to the connection"),
            "remove it; it is set where it is needed",
        );
        return None;
    }
    if request && name == ::http::header::HOST {
        problem(
            "the field `Host` is not changed here".to_owned(),
            "write host = \"preserve\", \"upstream\" or a name in the site",
        );
        return None;
    }
    Some(name.as_str().to_owned())
}

/// Where a log goes: one of `names`, or a file.
pub(super) fn log_output(item: &Item<'_>, names: &[(&str, Option<LogOutput>)]) -> Option<Option<LogOutput>> {
    if matches!(item.node.value, Value::Flag(false)) && names.iter().any(|(_, output)| output.is_none()) {
        item.wrong("a string", &format!("write {} = \"off\"", item.key));
        return None;
    }
    let text = item.text()?;
    if text.contains('/') {
        return item.path().map(|path| Some(LogOutput::File(path)));
    }
    if let Some((_, output)) = names.iter().find(|(name, _)| *name == text) {
        return Some(output.clone());
    }
    let list = names.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let help = match closest(text, names.iter().map(|(name, _)| *name)) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None => format!("write {list} or the path of a file, such as \"/var/log/doorward/access.log\""),
    };
    item.problem(format!("\"{text}\" is not a place for a log"), &help);
    None
}

/// The names for an access log's place.
pub(super) const ACCESS: &[(&str, Option<LogOutput>)] =
    &[("off", None), ("stdout", Some(LogOutput::Stdout)), ("stderr", Some(LogOutput::Stderr))];

/// The names for the program's own log's place.
pub(super) const OUTPUT: &[(&str, Option<LogOutput>)] =
    &[("stderr", Some(LogOutput::Stderr)), ("stdout", Some(LogOutput::Stdout)), ("syslog", Some(LogOutput::Syslog))];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_cloudflare_list_is_a_comment_or_a_range() {
        let (comments, lines): (Vec<&str>, Vec<&str>) = CLOUDFLARE.lines().partition(|line| line.starts_with('#'));
        let date = comments[0].split_once("as of ").unwrap().1.get(..10).unwrap();
        assert!(date.split('-').map(str::len).eq([4, 2, 2]), "{date}");
        let ranges: Vec<IpNet> = lines.iter().map(|line| parse_network(line).expect(line)).collect();
        let private = Networks(private_networks().collect());
        for range in &ranges {
            assert!(!private.contains(range.network()) && range.prefix_len() >= 8, "{range}");
            assert!(ranges.iter().all(|other| other == range || !other.contains(range)), "{range} is there twice");
        }
        assert!(ranges.iter().any(|range| range.addr().is_ipv4()) && ranges.iter().any(|range| range.addr().is_ipv6()));
        assert!(cloudflare().contains("104.16.0.1".parse().unwrap()));
    }
}
