//! What is asked of the fields of a head beyond what hyper asks, on both versions.

use http::{HeaderMap, HeaderValue, header};

use super::guard::is_token;
use super::request::{HeadLimits, malformed};
use crate::base::fault::{Fault, Kind};

/// The limits, once more: over HTTP/2 no guard has looked.
pub(super) fn check_size(uri: &http::Uri, headers: &HeaderMap, limits: HeadLimits) -> Result<(), Fault> {
    let target = uri.path_and_query().map_or(0, |p| p.as_str().len());
    if target > limits.max_uri {
        return Err(Fault::new(Kind::TargetTooLong, "the target is over limits.max_uri"));
    }
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if headers.len() > limits.max_headers || size + target > limits.max_header_size {
        return Err(Fault::new(Kind::HeadTooLarge, "the head is over limits.max_headers or limits.max_header_size"));
    }
    Ok(())
}

/// Takes white space off both ends of every value, as HTTP/1.1 has it: it is not part of the value there (RFC 9110,
/// section 5.5). RFC 9113, section 8.2.1 has a server refuse such requests; curl and scripts send them, and behind us
/// there is one reading.
pub(super) fn trim(headers: &mut HeaderMap) {
    for value in headers.values_mut() {
        let bare = value.as_bytes().trim_ascii();
        if bare.len() < value.len()
            && let Ok(mut trimmed) = HeaderValue::from_bytes(bare)
        {
            trimmed.set_sensitive(value.is_sensitive());
            *value = trimmed;
        }
    }
}

/// What the guard asks of HTTP/1.1 fields, for those of HTTP/2, which no guard has seen.
pub(super) fn check_fields(headers: &HeaderMap) -> Result<(), Fault> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    // RFC 9110, section 8.6 lets a recipient take a length that is said twice, or refuse it.
    if let (Some(_), Some(_)) = (lengths.next(), lengths.next()) {
        return Err(malformed("two Content-Length fields"));
    }
    // The http crate takes a quotation mark for a letter.
    if !headers.keys().all(|name| name.as_str().bytes().all(is_token)) {
        return Err(malformed("a field name that is not a token"));
    }
    Ok(())
}
