//! X-Accel-Redirect leads into a folder that the file maps, and to what is below its prefix there.

use doorward::edge::accel::locate;
use doorward::http::path::CanonicalPath;
use doorward::upstream::files::root::Root;

/// Two lines: a prefix of the configuration, and the value of the field.
pub fn check(input: &[u8]) {
    let Some((prefix, target)) = super::text(input).and_then(|text| text.split_once('\n')) else { return };
    let Ok(path) = CanonicalPath::parse(target) else { return };
    let maps = [(prefix.to_owned(), Root::new("/srv/first")), ("/protected/".to_owned(), Root::new("/srv/second"))];
    let Some((root, rest)) = locate(&maps, path.decoded()) else { return };
    assert!(rest.is_empty() || rest.starts_with(b"/"), "a prefix ends with a segment");
    let prefix = if root.path() == maps[0].1.path() { prefix } else { "/protected" };
    assert_eq!([prefix.trim_end_matches('/').as_bytes(), rest].concat(), path.decoded());
}
