//! What a client wrote, made harmless for a log: nothing in it can end a line, close a quote or move a terminal's cursor.

use std::borrow::Cow;

/// Appends `value` the way nginx's default escaping writes it: `\xXX` for control bytes, the double quote, the
/// backslash and everything from 0x7F on. Ends with `...` instead of growing by more than `cap` bytes.
pub fn push_escaped(out: &mut Vec<u8>, value: &[u8], cap: usize) {
    push_capped(out, value.iter().map(std::slice::from_ref), cap, |out, one| match one {
        [byte @ (0..0x20 | b'"' | b'\\' | 0x7F..)] => push_hex(out, b"\\x", *byte),
        other => out.extend_from_slice(other),
    });
}

/// Appends `value` as the inside of a JSON string (RFC 8259 section 7): UTF-8 stays, control characters (C1 too, and
/// DEL) become `\u00XX`, bytes that are not UTF-8 become `\\xXX`. Ends with `...` instead of growing by more than `cap`
/// bytes.
pub fn push_json(out: &mut Vec<u8>, value: &[u8], cap: usize) {
    let pieces = value.utf8_chunks().flat_map(|chunk| {
        let (text, invalid) = (chunk.valid(), chunk.invalid());
        let valid =
            text.char_indices().map(move |(at, c)| text.as_bytes().get(at..at + c.len_utf8()).unwrap_or_default());
        valid.chain(invalid.iter().map(std::slice::from_ref))
    });
    push_capped(out, pieces, cap, |out, piece| match piece {
        b"\"" => out.extend_from_slice(b"\\\""),
        b"\\" => out.extend_from_slice(b"\\\\"),
        [byte @ (0..0x20 | 0x7F)] | [0xC2, byte @ 0x80..0xA0] => push_hex(out, b"\\u00", *byte),
        [byte @ (0x80..)] => push_hex(out, b"\\\\x", *byte),
        character => out.extend_from_slice(character),
    });
}

/// The target or URL with the values of the query parameters in `names` replaced by `***`. Names are compared decoded,
/// without regard to case, and without PHP's `[…]`.
pub fn mask_query<'t>(target: &'t [u8], names: &[String]) -> Cow<'t, [u8]> {
    let Some(question) = memchr::memchr(b'?', target).filter(|_| !names.is_empty()) else { return target.into() };
    let (path, query) = target.split_at(question + 1);
    let mut masked = Vec::new();
    let mut any = false;
    for (place, pair) in query.split(|b| *b == b'&').enumerate() {
        if place > 0 {
            masked.push(b'&');
        }
        let (name, value) = pair.split_at(memchr::memchr(b'=', pair).unwrap_or(pair.len()));
        masked.extend_from_slice(name);
        if value.len() > 1 && is_named(name, names) {
            masked.extend_from_slice(b"=***");
            any = true;
        } else {
            masked.extend_from_slice(value);
        }
    }
    if any { [path, &masked].concat().into() } else { target.into() }
}

fn is_named(name: &[u8], names: &[String]) -> bool {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, after)) = rest.split_first() {
        let pair = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match pair.filter(|_| byte == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                decoded.push(byte);
                rest = after;
            }
        }
    }
    let end = memchr::memchr(b'[', &decoded).unwrap_or(decoded.len());
    let plain = decoded.get(..end).unwrap_or_default();
    names.iter().any(|name| plain.eq_ignore_ascii_case(name.as_bytes()))
}

fn push_hex(out: &mut Vec<u8>, mark: &[u8], byte: u8) {
    const DIGITS: [u8; 16] = *b"0123456789ABCDEF";
    out.extend_from_slice(mark);
    out.extend([byte >> 4, byte & 15].map(|nibble| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0')));
}

/// Appends the pieces as `escape` writes them; takes back the last ones for `...` where they exceed `cap`.
fn push_capped<'v>(
    out: &mut Vec<u8>,
    pieces: impl Iterator<Item = &'v [u8]>,
    cap: usize,
    escape: impl Fn(&mut Vec<u8>, &[u8]),
) {
    let start = out.len();
    // Where the value can be cut so that the dots still fit.
    let mut cut = start;
    for piece in pieces {
        escape(out, piece);
        let length = out.len() - start;
        if length > cap {
            out.truncate(cut);
            out.extend_from_slice(b"...");
            return;
        }
        if length + 3 <= cap {
            cut = out.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(value: &[u8], cap: usize) -> String {
        let mut out = Vec::new();
        push_escaped(&mut out, value, cap);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn bytes_are_escaped_as_nginx_does() {
        assert_eq!(escaped(b"a\"b\\c\x1b[31m\r\n\x7f\xc3\xa9 ~", 999), r"a\x22b\x5Cc\x1B[31m\x0D\x0A\x7F\xC3\xA9 ~");
        assert_eq!(escaped(b"abcdefgh", 8), "abcdefgh");
        assert_eq!(escaped(b"abcdefghi", 8), "abcde...");
        assert_eq!(escaped(b"abcd\n\n", 8), "abcd...");
    }

    #[test]
    fn values_of_the_named_parameters_are_masked() {
        let names = ["token".to_owned(), "auth_key".to_owned()];
        let masked = |target: &str| String::from_utf8(mask_query(target.as_bytes(), &names).into_owned()).unwrap();
        assert_eq!(masked("/a?token=secret&x=1&auth_key=2"), "/a?token=***&x=1&auth_key=***");
        assert_eq!(masked("/a?x=token&mytoken=1&token=&token"), "/a?x=token&mytoken=1&token=&token");
        assert_eq!(
            masked("/a?%74oken=1&TOKEN=2&token[]=3&token%5Ba%5D=4"),
            "/a?%74oken=***&TOKEN=***&token[]=***&token%5Ba%5D=***"
        );
        assert_eq!(masked("/token=1"), "/token=1");
        assert_eq!(masked("/a?token=a=b?c&%"), "/a?token=***&%");
    }

    proptest! {
        #[test]
        fn escaped_values_are_printable_ascii_and_within_the_cap(value: Vec<u8>, cap in 3usize..64) {
            let text = escaped(&value, cap);
            prop_assert!(text.len() <= cap);
            prop_assert!(text.bytes().all(|b| (0x20..0x7F).contains(&b) && b != b'"'));
        }

        #[test]
        fn json_strings_are_valid_whatever_they_hold(value: Vec<u8>, cap in 3usize..64) {
            let mut out = vec![b'"'];
            push_json(&mut out, &value, cap);
            prop_assert!(out.len() <= cap + 1);
            out.push(b'"');
            prop_assert!(serde_json::from_slice::<String>(&out).is_ok(), "{}", String::from_utf8_lossy(&out));
        }

        #[test]
        fn json_keeps_text(value: String) {
            let mut out = vec![b'"'];
            push_json(&mut out, value.as_bytes(), usize::MAX - 3);
            out.push(b'"');
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), value);
        }
    }
}
