//! A page is let in only by an entry that stands for its very scheme, host and port.

use doorward::base::origin::{Origin, OriginPattern};

/// Two lines: the value of an Origin field, and an entry of `origins`.
pub fn check(input: &[u8]) {
    let Some(text) = super::text(input) else { return };
    let (said, entry) = text.split_once('\n').unwrap_or((text, "self"));
    let origin = Origin::parse(said);
    let target = Origin::parse("https://app.test").expect("an origin");
    if let Some(origin) = &origin {
        let scheme = if origin.secure { "https" } else { "http" };
        let again = format!("{scheme}://{}:{}", origin.host, origin.port);
        assert_eq!(Origin::parse(&again).as_ref(), Some(origin), "{again}");
        let looks = said.to_ascii_lowercase();
        assert!(looks.starts_with("http") && looks.contains("://"), "{said:?}");
    }
    let Ok(pattern) = OriginPattern::parse(entry) else { return };
    assert_eq!(OriginPattern::parse(&pattern.to_string()).as_ref(), Ok(&pattern));
    let is_allowed = pattern.allows(origin.as_ref(), &target);
    match (&pattern, &origin) {
        (OriginPattern::Null, origin) => assert_eq!(is_allowed, origin.is_none()),
        (OriginPattern::Itself, origin) => assert_eq!(is_allowed, origin.as_ref() == Some(&target)),
        (OriginPattern::Like { .. }, None) => assert!(!is_allowed),
        (OriginPattern::Like { secure, port, .. }, Some(origin)) => {
            assert!(!is_allowed || (*secure, *port) == (origin.secure, origin.port));
        }
    }
}
