//! A part that is asked for always lies within the file.

use doorward::upstream::files::range::Span;

pub fn check(input: &[u8]) {
    let Some((length, value)) = input.split_first_chunk::<8>() else { return };
    let length = u64::from_be_bytes(*length);
    if let Span::Part { first, last } = Span::read(value, length) {
        assert!(first <= last && last < length);
        // Content-Range and Content-Length are written from these.
        assert!((last - first).checked_add(1).is_some_and(|part| part <= length));
    }
}
