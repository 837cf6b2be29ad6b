//! A cookie has one value, in crumbs as HTTP/2 sends them and joined as a back end gets them.

use doorward::upstream::http::sticky::cookie;
use http::{HeaderMap, HeaderValue, header};

/// Crumbs, a line each; the cookie is named `node`.
pub fn check(input: &[u8]) {
    let crumbs: Vec<&[u8]> = input.split(|byte| *byte == b'\n').take(20).collect();
    let fields = |values: &[&[u8]]| -> HeaderMap {
        values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok()).map(|v| (header::COOKIE, v)).collect()
    };
    let apart = fields(&crumbs);
    let value = cookie(&apart, "node");
    if let Some(value) = value {
        assert!(!value.contains(&b';') && value.trim_ascii() == value);
    }
    if apart.len() == crumbs.len() {
        assert_eq!(cookie(&fields(&[&crumbs.join(&b"; "[..])]), "node"), value);
    }
}
