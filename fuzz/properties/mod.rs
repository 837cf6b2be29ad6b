//! What has to hold of everything that reads the bytes of strangers: one function for each such reader, which takes any
//! bytes at all and panics where the reader is wrong.
//!
//! cargo-fuzz calls them for as long as it is let (`fuzz/run`), `tests/fuzz.rs` for a moment with every `cargo test`. A
//! property has a file here, a target in `fuzz_targets`, seeds in `seeds` and a line in [`ALL`]; the test misses none.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a property fails by panicking")]

use http::{HeaderMap, HeaderName, HeaderValue};

pub mod accel;
pub mod answer_head;
pub mod back_end_answer;
pub mod cgi_environment;
pub mod cgi_headers;
pub mod chunks;
pub mod conditions;
pub mod config;
pub mod cookie;
pub mod credentials;
pub mod fastcgi_record;
pub mod forwarded;
pub mod fpm_stderr;
pub mod guard;
pub mod h2_frames;
pub mod host;
pub mod htpasswd;
pub mod log_line;
pub mod origin;
pub mod path;
pub mod proxy_head;
pub mod range;
pub mod request;
pub mod sid;
pub mod tls_records;
pub mod tls_stream;
pub mod units;
pub mod ws_frames;
pub mod ws_rules;

/// A property: its name, its function, and how many inputs the short run makes for it.
#[derive(Debug, Clone, Copy)]
pub struct Property {
    pub name: &'static str,
    pub check: fn(&[u8]),
    pub cases: u32,
}

const fn property(name: &'static str, check: fn(&[u8]), cases: u32) -> Property {
    Property { name, check, cases }
}

/// All of them.
#[allow(dead_code, reason = "a target has one of them")]
pub const ALL: [Property; 29] = [
    property("accel", accel::check, 2000),
    property("answer_head", answer_head::check, 2000),
    property("back_end_answer", back_end_answer::check, 2000),
    property("cgi_environment", cgi_environment::check, 1000),
    property("cgi_headers", cgi_headers::check, 2000),
    property("chunks", chunks::check, 2000),
    property("conditions", conditions::check, 1000),
    property("config", config::check, 300),
    property("cookie", cookie::check, 2000),
    property("credentials", credentials::check, 2000),
    property("fastcgi_record", fastcgi_record::check, 2000),
    property("forwarded", forwarded::check, 500),
    property("fpm_stderr", fpm_stderr::check, 1000),
    property("guard", guard::check, 2000),
    property("h2_frames", h2_frames::check, 100),
    property("host", host::check, 2000),
    property("htpasswd", htpasswd::check, 500),
    property("log_line", log_line::check, 1000),
    property("origin", origin::check, 2000),
    property("path", path::check, 2000),
    property("proxy_head", proxy_head::check, 1000),
    property("range", range::check, 2000),
    property("request", request::check, 1000),
    property("sid", sid::check, 2000),
    property("tls_records", tls_records::check, 150),
    property("tls_stream", tls_stream::check, 1000),
    property("units", units::check, 2000),
    property("ws_frames", ws_frames::check, 1000),
    property("ws_rules", ws_rules::check, 500),
];

fn text(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok()
}

/// The lines that can be fields of HTTP: name, colon, value.
fn fields(input: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(50) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}
