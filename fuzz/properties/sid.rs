//! Whatever a back end answers and a client asks, an id that is read is one, and is read the same from its beginning.

use doorward::upstream::http::sid::{self, Query};

pub fn check(input: &[u8]) {
    if let Some(sid) = sid::given_out(input) {
        assert!((1..=sid::LONGEST).contains(&sid.len()) && sid.is_ascii());
        let beginning = &input[..input.len().min(sid::LOOKED_AT)];
        assert_eq!(sid::given_out(beginning).as_deref(), Some(sid.as_str()));
        // As the client will write it.
        let encoded: String = sid.bytes().map(|byte| format!("%{byte:02x}")).collect();
        assert_eq!(Query::read(&format!("transport=polling&sid={encoded}")), Query::Of(sid));
    }
    sid::denies(input);
    if let Ok(query) = std::str::from_utf8(input)
        && let Query::Of(sid) = Query::read(query)
    {
        assert!((1..=sid::LONGEST).contains(&sid.len()) && sid.is_ascii());
    }
}
