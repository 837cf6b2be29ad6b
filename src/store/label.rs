//! File names for certificates.

use std::fmt::Write as _;
use std::net::Ipv6Addr;

/// The longest label, in bytes. File names end at 255, and temporary ones are longer than what they stand for.
const LONGEST: usize = 200;

/// A file name for the certificate called `name`: `a.example` is itself, `*.a.example` becomes `_.a.example`,
/// `2001:db8::1` becomes `2001_db8__1`. What has other characters, or is too long, is cut and told apart by a hash:
/// different names never share a label.
pub fn label(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let (wild, rest) = name.strip_prefix("*.").map_or(("", name.as_str()), |rest| ("_.", rest));
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    if !rest.is_empty() && !rest.starts_with('.') && name.len() <= LONGEST {
        if rest.chars().all(is_plain) {
            return format!("{wild}{rest}");
        }
        // None begins with ":.", so that it cannot be taken for a wildcard.
        if wild.is_empty() && rest.parse::<Ipv6Addr>().is_ok() {
            return rest.replace(':', "_");
        }
    }
    let mut label: String = name.chars().take(40).map(|c| if is_plain(c) { c } else { '_' }).collect();
    if label.starts_with('.') {
        label.insert(0, '_');
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes());
    label.push('~');
    for byte in digest.as_ref().iter().take(12) {
        // Writing to a String cannot fail.
        let _ = write!(label, "{byte:02x}");
    }
    label
}

/// Whether `name` can be a label as it is.
pub fn is_label(name: &str) -> bool {
    let is_safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_' | '~');
    !name.is_empty() && !name.starts_with('.') && name.len() <= LONGEST && name.chars().all(is_safe)
}

/// `name` when it is a label, else the label for it.
pub fn safe(name: &str) -> String {
    if is_label(name) { name.to_owned() } else { label(name) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_certificate_name_becomes_a_file_name() {
        for (name, expected) in [
            ("a.example", "a.example"),
            ("A.Example", "a.example"),
            ("*.a.example", "_.a.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "2001_db8__1"),
            ("::1", "__1"),
        ] {
            assert_eq!(label(name), expected);
            assert_eq!(safe(&label(name)), expected, "a label stays what it is");
        }
        for name in ["", ".", "..", "*.", ".a", "a/b", "../etc", "a b", "a\0b", "bücher.example", "_.a.example", "a:b"]
        {
            let made = label(name);
            assert!(made.contains('~') && is_label(&made), "{name:?} became {made}");
        }
        assert_ne!(label("_.a.example"), label("*.a.example"));
        assert!(label(&"a".repeat(201)).len() < 100);
    }

    proptest! {
        #[test]
        fn every_name_has_a_safe_label_of_its_own(a in "\\PC{0,80}|[a-z*._:/~-]{0,12}", b in "[a-z*._:/~-]{0,12}") {
            prop_assert!(is_label(&label(&a)) && is_label(&safe(&a)));
            prop_assert!(a.eq_ignore_ascii_case(&b) || label(&a) != label(&b), "{a:?} and {b:?}");
        }
    }
}
