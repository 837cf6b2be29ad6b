//! The same request over HTTP/2, as far as it can be said there.

use crate::corpus::case::{Case, Fields, Sent, Verdict};
use crate::corpus::record::text;

/// Where the protocols differ, and why.
pub const EXCEPT: [(&str, &str); 6] = [
    ("frag-uri", "the h2 library cuts a fragment off before anybody sees it"),
    ("frag-query", "the h2 library cuts a fragment off before anybody sees it"),
    ("fields-101", "Host is a field on HTTP/1.1, and :authority is none"),
    ("connect-path", "RFC 9113, section 8.5 knows no CONNECT with a path"),
    ("uri-64k", "the list of fields is too long before the path is looked at"),
    ("expect-fold", "a folded line is a line without a name here"),
];

/// Fields that HTTP/2 does not have (RFC 9113, section 8.2.2).
const OF_HTTP1: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "http2-settings"];

/// `None` where it cannot be said over HTTP/2: how lines end, framing by chunks, other forms of target.
pub fn translate(case: &Case) -> Option<Case> {
    let Sent::H1(bytes) = &case.sent else { return None };
    if !bytes.is_ascii() {
        return None;
    }
    let all = text(bytes);
    let (head, body) = all.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let start: Vec<&str> = lines.next()?.split(' ').collect();
    let [method, target, "HTTP/1.1"] = start.as_slice() else { return None };
    if !target.starts_with('/') || method.is_empty() {
        return None;
    }
    let (mut fields, mut hosts): (Fields, Vec<String>) = (Vec::new(), Vec::new());
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let (name, value) = (name.to_ascii_lowercase(), value.trim_matches([' ', '\t']));
        if OF_HTTP1.contains(&name.as_str()) {
            return None;
        }
        match name.as_str() {
            "host" => hosts.push(value.to_owned()),
            // There it is not part of any head.
            "content-length" if value.parse().is_ok_and(|length: u64| length != body.len() as u64) => return None,
            _ => fields.push((name, value.to_owned())),
        }
    }
    // What stands behind a request without a length is another request.
    if hosts.len() > 1 || (!body.is_empty() && !fields.iter().any(|(name, _)| name == "content-length")) {
        return None;
    }
    let mut all = vec![(":method".to_owned(), (*method).to_owned()), (":scheme".to_owned(), "https".to_owned())];
    all.extend(hosts.pop().map(|host| (":authority".to_owned(), host)));
    all.push((":path".to_owned(), (*target).to_owned()));
    all.extend(fields);
    let body = Some(body.as_bytes().to_vec()).filter(|body| !body.is_empty());
    let sent = Sent::H2 { fields: all, body, trailers: None };
    Some(Case { sent, ..case.clone() })
}

/// A stream that is reset is refused like one that is answered with 400.
pub fn agree(http1: &Verdict, http2: &Verdict) -> bool {
    match (http1, http2) {
        (Verdict::Closed(status) | Verdict::Kept(status), Verdict::Kept(other)) => status == other,
        (Verdict::Closed(400), Verdict::Reset | Verdict::Gone) => true,
        (Verdict::Passed(saw), Verdict::Passed(other)) => saw == other,
        _ => false,
    }
}
