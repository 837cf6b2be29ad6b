//! Validators of a file (RFC 9110, section 8.8) and the conditions that clients put on them (section 13).

use std::time::{Duration, SystemTime};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::upstream::files::encoding::Coding;

/// When a file was changed last, as the file system says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Modified {
    /// Seconds since 1970; may be negative.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

/// The validators of one representation.
#[derive(Debug, Clone)]
pub struct Validators {
    /// A strong entity tag, quotes included.
    pub etag: HeaderValue,
    /// The last change in whole seconds since 1970, and as a date; `None` where an HTTP date cannot say it.
    pub last_modified: Option<(u64, HeaderValue)>,
}

/// What the conditions of a request come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answer as if there were none. `range` says whether a `Range` field counts.
    Proceed {
        /// Whether `If-Range`, if there is one, holds.
        range: bool,
    },
    /// 304
    NotModified,
    /// 412
    Failed,
}

impl Validators {
    /// The validators of a file of `size` bytes, as it is sent in `coding`.
    pub fn of(size: u64, modified: Modified, coding: Option<Coding>, now: SystemTime) -> Validators {
        // RFC 9110, section 8.8.3.3: codings of one resource are different representations and need different tags.
        let suffix = coding.map_or("", Coding::name);
        let dash = if suffix.is_empty() { "" } else { "-" };
        let etag = format!("\"{:x}.{:x}-{size:x}{dash}{suffix}\"", modified.seconds, modified.nanoseconds);
        // Hexadecimal digits and names of ours: never refused.
        let etag = HeaderValue::try_from(etag).unwrap_or(HeaderValue::from_static("\"\""));
        let today = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        // Section 8.8.2.1: an origin server "MUST NOT generate a Last-Modified date that is later than the server's
        // time of message origination".
        let last_modified =
            u64::try_from(modified.seconds).ok().map(|seconds| seconds.min(today)).filter(|s| *s < YEAR_10000);
        let dated = |seconds| {
            let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            Some((seconds, HeaderValue::try_from(date).ok()?))
        };
        Validators { etag, last_modified: last_modified.and_then(dated) }
    }

    /// Sets `ETag` and `Last-Modified`.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(header::ETAG, self.etag.clone());
        if let Some((_, date)) = &self.last_modified {
            headers.insert(header::LAST_MODIFIED, date.clone());
        }
    }

    /// Weighs the conditions of a GET or HEAD in the order of RFC 9110, section 13.2.2.
    pub fn weigh(&self, method: &Method, headers: &HeaderMap, now: SystemTime) -> Outcome {
        // 1 and 2
        if headers.contains_key(header::IF_MATCH) {
            if !self.is_listed(headers, header::IF_MATCH, Comparison::Strong) {
                return Outcome::Failed;
            }
        } else if let (Some(date), Some((last, _))) = (date(headers, header::IF_UNMODIFIED_SINCE), &self.last_modified)
            && *last > date
        {
            return Outcome::Failed;
        }
        // 3 and 4
        if headers.contains_key(header::IF_NONE_MATCH) {
            if self.is_listed(headers, header::IF_NONE_MATCH, Comparison::Weak) {
                return Outcome::NotModified;
            }
        } else if let (Some(date), Some((last, _))) = (date(headers, header::IF_MODIFIED_SINCE), &self.last_modified)
            && *last <= date
        {
            return Outcome::NotModified;
        }
        // 5. Section 14.2: "A server MUST ignore a Range header field received with a request method [...] for which
        // range handling is not defined. For this specification, GET is the only method".
        Outcome::Proceed { range: *method == Method::GET && self.if_range_holds(headers, now) }
    }

    fn if_range_holds(&self, headers: &HeaderMap, now: SystemTime) -> bool {
        let Some(value) = headers.get(header::IF_RANGE) else { return true };
        let bytes = value.as_bytes();
        if bytes.starts_with(b"\"") {
            return bytes == self.etag.as_bytes();
        }
        // Section 13.1.5: "If the HTTP-date validator provided is not a strong validator [...] the condition is
        // false", and one that "exactly matches" is true. A change in this very second may be followed by another.
        let today = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let last = self.last_modified.as_ref().map(|(last, _)| *last);
        date(headers, header::IF_RANGE).is_some_and(|date| last == Some(date) && date < today)
    }

    fn is_listed(&self, headers: &HeaderMap, name: HeaderName, comparison: Comparison) -> bool {
        headers.get_all(name).into_iter().any(|value| {
            value.as_bytes().trim_ascii() == b"*"
                || tags(value.as_bytes())
                    .any(|(weak, tag)| (comparison == Comparison::Weak || !weak) && tag == self.etag.as_bytes())
        })
    }
}

/// Seconds from 1970 to the year 10000, which an HTTP date cannot write.
const YEAR_10000: u64 = 253_402_300_800;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// The entity tags of a list, each with its weakness and its quotes, up to the first thing that is none.
fn tags(list: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    let mut rest = list;
    std::iter::from_fn(move || {
        while let [b',' | b' ' | b'\t', tail @ ..] = rest {
            rest = tail;
        }
        let (weak, quoted) = match rest.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let end = memchr::memchr(b'"', quoted.strip_prefix(b"\"")?)? + 2;
        let (tag, tail) = quoted.split_at_checked(end)?;
        rest = tail;
        Some((weak, tag))
    })
}

/// A field that is one HTTP date, in seconds. Several, or what is no date, count as absent (section 13.1.3).
fn date(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    let mut values = headers.get_all(name).into_iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok().map(|d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGED: u64 = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT
    const AT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn validators() -> Validators {
        Validators {
            etag: HeaderValue::from_static("\"a\""),
            last_modified: Some((CHANGED, HeaderValue::from_static(AT))),
        }
    }

    fn weigh(method: Method, fields: &[(HeaderName, &str)]) -> Outcome {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        validators().weigh(&method, &headers, at(CHANGED + 100))
    }

    #[test]
    fn conditions_are_weighed_in_the_order_of_the_rfc() {
        use header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
        let go = Outcome::Proceed { range: true };
        let whole = Outcome::Proceed { range: false };
        let (same, failed) = (Outcome::NotModified, Outcome::Failed);
        let table: &[(&[(HeaderName, &str)], Outcome)] = &[
            (&[], go),
            (&[(IF_MATCH, "\"a\"")], go),
            (&[(IF_MATCH, "*")], go),
            (&[(IF_MATCH, "\"b\", \"a\"")], go),
            (&[(IF_MATCH, "\"b\""), (IF_MATCH, "\"a\"")], go),
            (&[(IF_MATCH, "\"b\"")], failed),
            (&[(IF_MATCH, "W/\"a\"")], failed),
            (&[(IF_MATCH, "")], failed),
            (&[(IF_MATCH, "a")], failed),
            (&[(IF_UNMODIFIED_SINCE, AT)], go),
            (&[(IF_UNMODIFIED_SINCE, BEFORE)], failed),
            (&[(IF_UNMODIFIED_SINCE, "yesterday")], go),
            (&[(IF_MATCH, "\"a\""), (IF_UNMODIFIED_SINCE, BEFORE)], go),
            (&[(IF_NONE_MATCH, "\"a\"")], same),
            (&[(IF_NONE_MATCH, "W/\"a\"")], same),
            (&[(IF_NONE_MATCH, "\"x,y\", W/\"a\"")], same),
            (&[(IF_NONE_MATCH, "*")], same),
            (&[(IF_NONE_MATCH, "\"b\"")], go),
            (&[(IF_NONE_MATCH, "\"")], go),
            (&[(IF_NONE_MATCH, "a")], go),
            (&[(IF_MODIFIED_SINCE, AT)], same),
            (&[(IF_MODIFIED_SINCE, AFTER)], same),
            (&[(IF_MODIFIED_SINCE, BEFORE)], go),
            (&[(IF_MODIFIED_SINCE, "0")], go),
            (&[(IF_MODIFIED_SINCE, AT), (IF_MODIFIED_SINCE, AT)], go),
            (&[(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, AT)], go),
            (&[(IF_NONE_MATCH, "\"a\""), (IF_MODIFIED_SINCE, BEFORE)], same),
            (&[(IF_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")], failed),
            (&[(IF_MATCH, "\"a\""), (IF_NONE_MATCH, "\"a\"")], same),
            (&[(IF_RANGE, "\"a\"")], go),
            (&[(IF_RANGE, "\"b\"")], whole),
            (&[(IF_RANGE, "W/\"a\"")], whole),
            (&[(IF_RANGE, AT)], go),
            (&[(IF_RANGE, AFTER)], whole),
            (&[(IF_RANGE, "?")], whole),
        ];
        for (fields, want) in table {
            assert_eq!(weigh(Method::GET, fields), *want, "{fields:?}");
        }
        assert_eq!(weigh(Method::HEAD, &[]), whole, "ranges are for GET alone");
        assert_eq!(weigh(Method::HEAD, &[(IF_NONE_MATCH, "\"a\"")]), same);
    }

    #[test]
    fn a_date_of_this_very_second_is_no_strong_validator() {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_RANGE, HeaderValue::from_static(AT));
        let outcome = validators().weigh(&Method::GET, &headers, at(CHANGED));
        assert_eq!(outcome, Outcome::Proceed { range: false });
    }

    #[test]
    fn tags_differ_by_size_time_and_coding_and_are_strong() {
        let time = Modified { seconds: 5, nanoseconds: 7 };
        let tag =
            |size, modified, coding| Validators::of(size, modified, coding, at(100)).etag.to_str().unwrap().to_owned();
        let all = [
            tag(1, time, None),
            tag(2, time, None),
            tag(1, Modified { seconds: 5, nanoseconds: 8 }, None),
            tag(1, Modified { seconds: 6, nanoseconds: 7 }, None),
            tag(1, time, Some(Coding::Brotli)),
            tag(1, time, Some(Coding::Gzip)),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(a.starts_with('"') && a.ends_with('"') && a.len() > 2);
            assert!(all.iter().skip(i + 1).all(|b| a != b), "{a}");
        }
    }

    #[test]
    fn dates_that_http_cannot_write_or_that_lie_ahead_are_not_sent() {
        let of = |seconds, now| {
            let validators = Validators::of(1, Modified { seconds, nanoseconds: 0 }, None, at(now));
            validators.last_modified.map(|(seconds, _)| seconds)
        };
        assert_eq!(of(50, 100), Some(50));
        assert_eq!(of(500, 100), Some(100), "the future is cut to now");
        assert_eq!(of(-1, 100), None);
        assert_eq!(of(i64::MAX, YEAR_10000 + 5), None);
        let mut headers = HeaderMap::new();
        validators().write(&mut headers);
        assert_eq!(headers[header::LAST_MODIFIED], AT);
    }

    proptest::proptest! {
        #[test]
        fn any_list_of_tags_ends(list in "[W/\", ab*]{0,30}") {
            for (_, tag) in tags(list.as_bytes()) {
                proptest::prop_assert!(tag.len() >= 2 && tag.starts_with(b"\"") && tag.ends_with(b"\""));
            }
        }
    }
}
