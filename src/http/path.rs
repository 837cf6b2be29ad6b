//! The path of a request, decoded and normalised once. Everything that routes, opens files or runs scripts looks at
//! the decoded bytes; back ends get the encoded form of the same path.

/// A canonical path: absolute, without `.` and `..`, without empty segments at its front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalPath {
    encoded: String,
    /// `None` where it is the same.
    decoded: Option<Box<[u8]>>,
}

/// Why a path is refused. All are 400: what two readers may read differently is not repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// It does not start with a slash.
    #[error("the path does not start with '/'")]
    Relative,
    /// `%` without two hexadecimal digits.
    #[error("'%' without two hexadecimal digits in the path")]
    Percent,
    /// A control byte, written or encoded.
    #[error("a control character in the path")]
    Control,
    /// A backslash, written or encoded.
    #[error("a backslash in the path")]
    Backslash,
    /// An encoded slash.
    #[error("an encoded slash in the path")]
    Slash,
    /// `..` that leaves the root.
    #[error("'..' leaves the root")]
    Escape,
    /// A character that no path has (RFC 3986, section 3.3).
    #[error("a character that a path cannot have")]
    Character,
}

impl CanonicalPath {
    /// Reads the path of a request target, without its query.
    pub fn parse(raw: &str) -> Result<CanonicalPath, InvalidPath> {
        if !raw.starts_with('/') {
            return Err(InvalidPath::Relative);
        }
        if is_canonical(raw) {
            return Ok(CanonicalPath { encoded: raw.to_owned(), decoded: None });
        }
        let (mut decoded, mut encoded) = (Vec::with_capacity(raw.len()), String::with_capacity(raw.len()));
        // Where each segment kept so far starts, in the decoded and in the encoded form, for `..`.
        let mut starts: Vec<(usize, usize)> = Vec::new();
        let last = raw.split('/').count() - 1;
        for (index, segment) in raw.split('/').enumerate().skip(1) {
            let start = (decoded.len(), encoded.len());
            encoded.push('/');
            if !segment.is_empty() || index == last {
                decoded.push(b'/');
            }
            decode_segment(segment, &mut decoded, &mut encoded)?;
            let resolved = match decoded.get(start.0 + 1..) {
                Some(b".") => Some(start),
                Some(b"..") => Some(starts.pop().ok_or(InvalidPath::Escape)?),
                _ => None,
            };
            match resolved {
                Some(kept) => {
                    decoded.truncate(kept.0);
                    encoded.truncate(kept.1);
                    // RFC 3986, section 5.2.4: "/a/." and "/a/.." end in a slash.
                    if index == last {
                        decoded.push(b'/');
                        encoded.push('/');
                    }
                }
                // "//x" is read as a host by some back ends and by every browser that is redirected there.
                None if segment.is_empty() && start.0 == 0 && index != last => encoded.clear(),
                None => starts.push(start),
            }
        }
        let differs = decoded != encoded.as_bytes();
        Ok(CanonicalPath { encoded, decoded: differs.then(|| decoded.into()) })
    }

    /// The decoded bytes: what routes and files are matched with. Empty segments inside are merged.
    pub fn decoded(&self) -> &[u8] {
        self.decoded.as_deref().unwrap_or(self.encoded.as_bytes())
    }

    /// The same path as it goes to a back end: the client's own encoding, unreserved characters decoded.
    pub fn encoded(&self) -> &str {
        &self.encoded
    }

    /// The path with `prefix` taken off its front and `replacement` put there. `None` where it has no such prefix at
    /// a segment's end.
    pub fn replace_prefix(&self, prefix: &str, replacement: &str) -> Option<CanonicalPath> {
        let prefix = prefix.trim_end_matches('/');
        let rest = self.decoded().strip_prefix(prefix.as_bytes())?;
        if !rest.is_empty() && rest.first() != Some(&b'/') {
            return None;
        }
        let at = skip_segments(&self.encoded, prefix.split('/').filter(|segment| !segment.is_empty()).count());
        let front = replacement.trim_end_matches('/');
        let joined = [front, self.encoded.get(at..).unwrap_or_default()].concat();
        CanonicalPath::parse(if joined.is_empty() { "/" } else { &joined }).ok()
    }
}

/// Where the encoded path goes on behind its first `count` segments; empty segments do not count.
fn skip_segments(encoded: &str, count: usize) -> usize {
    let mut seen = 0;
    for (at, _) in encoded.match_indices('/') {
        let empty = encoded.as_bytes().get(at + 1).is_none_or(|next| *next == b'/');
        if seen == count {
            return at;
        }
        if !empty {
            seen += 1;
        }
    }
    encoded.len()
}

/// Decoded path bytes as they are written in a target; slashes stay.
pub fn encode(decoded: &[u8]) -> String {
    let mut encoded = String::with_capacity(decoded.len());
    for byte in decoded {
        if *byte == b'/' || is_unreserved(*byte) || is_path_character(*byte) {
            encoded.push(char::from(*byte));
        } else {
            push_escaped(&mut encoded, *byte);
        }
    }
    encoded
}

fn push_escaped(encoded: &mut String, byte: u8) {
    encoded.push('%');
    for nibble in [byte >> 4, byte & 15] {
        let digit = char::from_digit(u32::from(nibble), 16).unwrap_or('0');
        encoded.push(digit.to_ascii_uppercase());
    }
}

/// Whether `raw`, which starts with a slash, is its own canonical form, decoded and encoded: that of most requests is. May
/// say no to one that is.
fn is_canonical(raw: &str) -> bool {
    let mut before = 0;
    raw.bytes().all(|byte| {
        let fits = match byte {
            b'/' | b'.' => before != b'/',
            _ => is_unreserved(byte) || is_path_character(byte),
        };
        before = byte;
        fits
    })
}

fn decode_segment(segment: &str, decoded: &mut Vec<u8>, encoded: &mut String) -> Result<(), InvalidPath> {
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        let (value, escaped) = match byte {
            b'%' => match (bytes.next().and_then(hex), bytes.next().and_then(hex)) {
                (Some(high), Some(low)) => (high << 4 | low, true),
                _ => return Err(InvalidPath::Percent),
            },
            other => (other, false),
        };
        match value {
            0..=0x1f | 0x7f => return Err(InvalidPath::Control),
            b'\\' => return Err(InvalidPath::Backslash),
            b'/' => return Err(InvalidPath::Slash),
            b' ' | b'"' | b'#' | b'<' | b'>' | b'?' if !escaped => return Err(InvalidPath::Character),
            _ => {}
        }
        decoded.push(value);
        // Browsers send '|', '^', '{' and the like as they are; they are encoded here, never refused.
        if is_unreserved(value) || (!escaped && is_path_character(value)) {
            encoded.push(char::from(value));
        } else {
            push_escaped(encoded, value);
        }
    }
    Ok(())
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

// RFC 3986, section 3.3: pchar without the unreserved ones.
fn is_path_character(byte: u8) -> bool {
    matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(raw: &str) -> String {
        CanonicalPath::parse(raw).unwrap().encoded
    }

    #[test]
    fn dot_segments_are_resolved_once() {
        for (raw, want) in [
            ("/", "/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/%2e/a/%2E%2e/b", "/b"),
            ("/a/...", "/a/..."),
            ("/x/../ws", "/ws"),
        ] {
            assert_eq!(canonical(raw), want, "{raw}");
        }
    }

    #[test]
    fn encoding_is_canonical() {
        assert_eq!(canonical("/%77s"), "/ws");
        assert_eq!(canonical("/a%20b/caf%c3%a9"), "/a%20b/caf%C3%A9");
        assert_eq!(canonical("/a%3Fb%23c%25"), "/a%3Fb%23c%25");
        assert_eq!(canonical("/a|b"), "/a%7Cb");
        assert_eq!(canonical("/a%3Db=c"), "/a%3Db=c");
        assert_eq!(CanonicalPath::parse("/caf%c3%a9").unwrap().decoded(), "/café".as_bytes());
    }

    #[test]
    fn empty_segments_at_the_front_are_merged_and_inner_ones_kept() {
        assert_eq!(canonical("//evil.test/x"), "/evil.test/x");
        assert_eq!(canonical("///"), "/");
        assert_eq!(canonical("/unsafe/https://x.test/a.png"), "/unsafe/https://x.test/a.png");
        assert_eq!(canonical("/a/.//../b"), "/a/b");
        assert_eq!(CanonicalPath::parse("/a//b//").unwrap().decoded(), b"/a/b/");
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for (raw, why) in [
            ("a", InvalidPath::Relative),
            ("/%", InvalidPath::Percent),
            ("/%g0", InvalidPath::Percent),
            ("/%00", InvalidPath::Control),
            ("/%0a", InvalidPath::Control),
            ("/a\\b", InvalidPath::Backslash),
            ("/a%5cb", InvalidPath::Backslash),
            ("/a%2fb", InvalidPath::Slash),
            ("/..", InvalidPath::Escape),
            ("/a/../../b", InvalidPath::Escape),
            ("/%2e%2e/etc/passwd", InvalidPath::Escape),
            ("/a#b", InvalidPath::Character),
            ("/a b", InvalidPath::Character),
        ] {
            assert_eq!(CanonicalPath::parse(raw), Err(why), "{raw}");
        }
    }

    #[test]
    fn a_prefix_is_replaced_at_a_segment_only() {
        let path = CanonicalPath::parse("/api/v1/a%20b").unwrap();
        assert_eq!(path.replace_prefix("/api", "").unwrap().encoded(), "/v1/a%20b");
        assert_eq!(path.replace_prefix("/api/", "/x/").unwrap().encoded(), "/x/v1/a%20b");
        assert_eq!(path.replace_prefix("/ap", ""), None);
        let doubled = CanonicalPath::parse("/a//b/c").unwrap();
        assert_eq!(doubled.replace_prefix("/a/b", "/x").unwrap().encoded(), "/x/c");
        assert_eq!(doubled.replace_prefix("/a", "").unwrap().encoded(), "/b/c");
        assert_eq!(CanonicalPath::parse("/api").unwrap().replace_prefix("/api", "").unwrap().encoded(), "/");
    }

    proptest::proptest! {
        #[test]
        fn what_needs_no_look_at_its_segments_is_what_one_would_make_of_it(raw in "/[a-z.~!:@=/%2| ]{0,12}") {
            if is_canonical(&raw) {
                // An escape that is not needed has the path looked at; the segment before it is taken back.
                let path = CanonicalPath::parse(&raw).unwrap();
                proptest::prop_assert_eq!(CanonicalPath::parse(&format!("/%61/..{raw}")).unwrap(), path.clone());
                proptest::prop_assert_eq!((path.encoded(), path.decoded()), (&*raw, raw.as_bytes()));
            }
        }

        #[test]
        fn a_canonical_path_is_its_own_canonical_form(raw in "/[a-z%0-9./ ~|]{0,40}") {
            if let Ok(path) = CanonicalPath::parse(&raw) {
                let again = CanonicalPath::parse(path.encoded()).unwrap();
                proptest::prop_assert_eq!(&again, &path);
                proptest::prop_assert!(path.decoded().starts_with(b"/"));
                proptest::prop_assert!(!path.decoded().split(|b| *b == b'/').any(|s| s == b".." || s == b"."));
            }
        }
    }
}
