//! Whatever a client asks of a file, what it gets was weighed against the file: 304 only where it has it, a part only for
//! a GET, and a coding only that it takes.

use std::time::{Duration, SystemTime};

use doorward::upstream::files::encoding::{Accepted, is_compressible};
use doorward::upstream::files::validator::{Modified, Outcome, Validators};
use http::{Method, header};

/// The fields of a request, a line each.
pub fn check(input: &[u8]) {
    let headers = super::fields(input);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let modified = Modified { seconds: 1_600_000_000, nanoseconds: 7 };
    let validators = Validators::of(1234, modified, None, now);
    for method in [Method::GET, Method::HEAD] {
        let names_it = |name| {
            let mut values = headers.get_all::<header::HeaderName>(name).into_iter();
            values.any(|value| {
                let text = String::from_utf8_lossy(value.as_bytes());
                text.trim() == "*" || validators.etag.to_str().is_ok_and(|tag| text.contains(tag))
            })
        };
        match validators.weigh(&method, &headers, now) {
            Outcome::NotModified => {
                assert!(names_it(header::IF_NONE_MATCH) || headers.contains_key(header::IF_MODIFIED_SINCE));
            }
            Outcome::Failed => {
                assert!(headers.contains_key(header::IF_MATCH) || headers.contains_key(header::IF_UNMODIFIED_SINCE));
            }
            Outcome::Proceed { range } => assert!(!range || method == Method::GET),
        }
    }
    if let Some(coding) = Accepted::read(&headers).best() {
        let named = headers.get_all(header::ACCEPT_ENCODING).into_iter().any(|value| {
            let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
            text.contains(coding.name()) || text.contains('*')
        });
        assert!(named, "{coding:?} was not asked for");
    }
    is_compressible(input);
}
