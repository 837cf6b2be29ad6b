//! Path patterns of the file: `/x` is that path, `/x/*` the segment x and all below, `/x*` the bare string prefix.

use std::fmt;

/// A pattern over the decoded, canonical path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// `/x`: exactly this path.
    Exact(String),
    /// `/x/*`: the segment `/x` and everything below it. Kept without the trailing slash; `/*` is the empty string.
    Below(String),
    /// `/x*`: everything that starts with these characters.
    Prefix(String),
}

/// Why a text is not a path pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// It does not start with `/`.
    #[error("a path starts with '/'")]
    Relative,
    /// A `*` that is not the last character.
    #[error("'*' may stand at the end only: \"/x/*\" or \"/x*\"; use path_regex for more")]
    Star,
}

impl PathPattern {
    /// Reads a pattern as it is written in `path`, `paths` and `from`.
    pub fn parse(text: &str) -> Result<PathPattern, InvalidPattern> {
        if !text.starts_with('/') {
            return Err(InvalidPattern::Relative);
        }
        let Some(stem) = text.strip_suffix('*') else {
            return if text.contains('*') {
                Err(InvalidPattern::Star)
            } else {
                Ok(PathPattern::Exact(text.to_owned()))
            };
        };
        if stem.contains('*') {
            return Err(InvalidPattern::Star);
        }
        Ok(match stem.strip_suffix('/') {
            Some(segment) => PathPattern::Below(segment.to_owned()),
            None => PathPattern::Prefix(stem.to_owned()),
        })
    }

    /// Whether `path` (decoded and canonical) is of this pattern.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.rest(path).is_some()
    }

    /// What `*` stands for in `path`, without a leading slash; empty for an exact match; `None` where it does not match.
    pub fn rest<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        match self {
            PathPattern::Exact(exact) => (path == exact.as_bytes()).then_some(&[]),
            PathPattern::Below(segment) => match path.strip_prefix(segment.as_bytes())? {
                [] => Some(&[]),
                [b'/', rest @ ..] => Some(rest),
                _ => None,
            },
            PathPattern::Prefix(prefix) => path.strip_prefix(prefix.as_bytes()),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathPattern::Exact(path) => f.write_str(path),
            PathPattern::Below(segment) => write!(f, "{segment}/*"),
            PathPattern::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_pattern_is_not_a_string_prefix() {
        let app = PathPattern::parse("/app/*").unwrap();
        assert_eq!(app.rest(b"/app"), Some(&b""[..]));
        assert_eq!(app.rest(b"/app/key"), Some(&b"key"[..]));
        assert!(!app.matches(b"/apps/1/events"));
        assert!(PathPattern::parse("/app*").unwrap().matches(b"/apps"));
        assert!(PathPattern::parse("/*").unwrap().matches(b"/"));
        assert!(!PathPattern::parse("/app").unwrap().matches(b"/app/"));
        assert_eq!(PathPattern::parse("app"), Err(InvalidPattern::Relative));
        assert_eq!(PathPattern::parse("/a*b"), Err(InvalidPattern::Star));
    }
}
