//! `Range` of one span of bytes (RFC 9110, section 14). More than one is answered with the whole file: nobody but
//! attackers asks for many, and a multipart answer is larger than what it saves.

/// What a `Range` field asks of a representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// All of it: no range, one that is not understood, or several.
    Whole,
    /// The bytes `first..=last`, both within the representation.
    Part {
        /// The first byte.
        first: u64,
        /// The last byte, counted in.
        last: u64,
    },
    /// None of what it asks for exists: 416.
    Unsatisfiable,
}

impl Span {
    /// Reads the value of one `Range` field for a representation of `length` bytes.
    pub fn read(value: &[u8], length: u64) -> Span {
        // RFC 9110, section 14.2: "A server MAY ignore the Range header field"; 14.1: unit names are case-insensitive.
        match spec(value) {
            Some(spec) => spec.of(length),
            None => Span::Whole,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spec {
    From { first: u64, last: Option<u64> },
    Suffix(u64),
}

impl Spec {
    fn of(self, length: u64) -> Span {
        match self {
            Spec::From { first, .. } if first >= length => Span::Unsatisfiable,
            Spec::From { first, last } => {
                Span::Part { first, last: last.unwrap_or(u64::MAX).min(length.saturating_sub(1)) }
            }
            Spec::Suffix(0) => Span::Unsatisfiable,
            // Satisfiable, says section 14.1.2, but Content-Range cannot say "no bytes".
            Spec::Suffix(_) if length == 0 => Span::Whole,
            Spec::Suffix(suffix) => Span::Part { first: length.saturating_sub(suffix), last: length - 1 },
        }
    }
}

fn spec(value: &[u8]) -> Option<Spec> {
    let (unit, set) = value.split_at_checked(memchr::memchr(b'=', value)?)?;
    if !unit.trim_ascii().eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    // Section 5.6.1.2: "a recipient MUST parse and ignore a reasonable number of empty list elements".
    let mut specs = set.get(1..)?.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|s| !s.is_empty());
    let one = specs.next()?;
    if specs.next().is_some() {
        return None;
    }
    let (first, last) = one.split_at_checked(memchr::memchr(b'-', one)?)?;
    let last = last.get(1..)?;
    match (first.is_empty(), last.is_empty()) {
        (true, true) => None,
        (true, false) => Some(Spec::Suffix(number(last)?)),
        (false, true) => Some(Spec::From { first: number(first)?, last: None }),
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            // Section 14.1.1: "An int-range is invalid if the last-pos value is present and less than first-pos".
            (first <= last).then_some(Spec::From { first, last: Some(last) })
        }
    }
}

/// Digits only; what is larger than any file is as good as the largest number.
fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(value.saturating_mul(10).saturating_add(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_read_by_the_rules() {
        let part = |first, last| Span::Part { first, last };
        for (value, length, want) in [
            ("bytes=0-0", 10, part(0, 0)),
            ("bytes=0-", 10, part(0, 9)),
            ("bytes=2-5", 10, part(2, 5)),
            ("bytes=2-99", 10, part(2, 9)),
            ("bytes=-3", 10, part(7, 9)),
            ("bytes=-99", 10, part(0, 9)),
            ("BYTES = 1-2", 10, part(1, 2)),
            ("bytes=, 1-2 ,", 10, part(1, 2)),
            ("bytes=9-9", 10, part(9, 9)),
            ("bytes=0-18446744073709551616", 10, part(0, 9)),
            ("bytes=-99999999999999999999999", 10, part(0, 9)),
            ("bytes=10-", 10, Span::Unsatisfiable),
            ("bytes=99999999999999999999999-", 10, Span::Unsatisfiable),
            ("bytes=-0", 10, Span::Unsatisfiable),
            ("bytes=0-", 0, Span::Unsatisfiable),
            ("bytes=-5", 0, Span::Whole),
            ("bytes=5-2", 10, Span::Whole),
            ("bytes=-", 10, Span::Whole),
            ("bytes=", 10, Span::Whole),
            ("bytes", 10, Span::Whole),
            ("", 10, Span::Whole),
            ("bytes=a-b", 10, Span::Whole),
            ("bytes=+1-2", 10, Span::Whole),
            ("bytes=1-2-3", 10, Span::Whole),
            ("bytes=1 -2", 10, Span::Whole),
            ("bytes=0-1,3-4", 10, Span::Whole),
            ("bytes=-9223372036854775809,-1", 10, Span::Whole),
            ("lines=0-1", 10, Span::Whole),
        ] {
            assert_eq!(Span::read(value.as_bytes(), length), want, "{value} of {length}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_part_always_lies_within(value in "(bytes=)?[0-9,= -]{0,24}", length in 0u64..1000) {
            if let Span::Part { first, last } = Span::read(value.as_bytes(), length) {
                proptest::prop_assert!(first <= last && last < length);
            }
        }
    }
}
