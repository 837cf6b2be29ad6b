//! What a client gets of a back end's answer has one length, and no field that was between the two of us.

use doorward::http::hop;
use doorward::upstream::http::answer::check_framing;
use http::{Response, StatusCode, Version, header};

/// A byte for the status, one for the version and HEAD, and the fields, a line each.
pub fn check(input: &[u8]) {
    let Some(([status, kind], fields)) = input.split_first_chunk::<2>() else { return };
    let mut parts = Response::new(()).into_parts().0;
    parts.status = StatusCode::from_u16(200 + u16::from(*status)).expect("a status");
    parts.version = if kind & 1 > 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    parts.headers = super::fields(fields);
    let coded = parts.headers.contains_key(header::TRANSFER_ENCODING);
    let named: Vec<Vec<u8>> = hop::connection_names(&parts.headers).map(<[u8]>::to_ascii_lowercase).collect();
    if check_framing(&mut parts, kind & 2 > 0).is_err() {
        return;
    }
    let lengths: Vec<_> = parts.headers.get_all(header::CONTENT_LENGTH).iter().collect();
    assert!(lengths.len() <= 1, "{lengths:?}");
    assert!(!coded || lengths.is_empty());
    for length in lengths {
        assert!(length.to_str().is_ok_and(|text| text.parse::<u64>().is_ok()), "{length:?}");
    }
    hop::clean_response(&mut parts.headers);
    for name in parts.headers.keys().map(header::HeaderName::as_str) {
        assert!(!["connection", "transfer-encoding", "upgrade", "keep-alive", "trailer", "te"].contains(&name));
        assert!(name == "content-length" || !named.iter().any(|named| named == name.as_bytes()), "{name} was for us");
    }
}
