//! A path that is taken has one reading: it is canonical, it stays below the root, and so do its rewritten forms.

use doorward::base::pattern::PathPattern;
use doorward::http::path::CanonicalPath;

/// Three lines: a path, a prefix that is replaced, and what it is replaced with, which is a pattern as well.
pub fn check(input: &[u8]) {
    let Some(text) = super::text(input) else { return };
    let mut lines = text.splitn(3, '\n');
    let [raw, prefix, pattern] = [(); 3].map(|()| lines.next().unwrap_or_default());
    let Ok(path) = CanonicalPath::parse(raw) else { return };
    check_path(&path);
    if prefix.starts_with('/')
        && let Some(rewritten) = path.replace_prefix(prefix, pattern)
    {
        check_path(&rewritten);
    }
    if let Ok(pattern) = PathPattern::parse(pattern)
        && let Some(rest) = pattern.rest(path.decoded())
    {
        assert!(path.decoded().ends_with(rest), "the rest is the end of the path");
    }
}

fn check_path(path: &CanonicalPath) {
    let again = CanonicalPath::parse(path.encoded()).expect("a canonical path is a path");
    assert_eq!(&again, path, "a canonical path is its own canonical form");
    assert!(path.decoded().starts_with(b"/"));
    assert!(path.encoded().bytes().all(|b| b.is_ascii_graphic() && b != b'\\' && b != b'?' && b != b'#'));
    assert!(!path.encoded().starts_with("//"), "\"//x\" is read as a host");
    assert!(path.decoded().split(|b| *b == b'/').all(|segment| segment != b".." && segment != b"."));
    assert!(!path.decoded().iter().any(|b| *b < b' ' || *b == 0x7f || *b == b'\\'));
}
