//! However an application's output is cut, the same head and body are read from it, and no head holds what HTTP
//! would read as another field.

use bytes::Bytes;
use doorward::upstream::fastcgi::answer::{BadHead, Head, HeadReader};

/// Short, so that inputs reach it.
const LIMIT: usize = 500;

pub fn check(input: &[u8]) {
    let Some((size, output)) = input.split_first() else { return };
    let whole = read(std::iter::once(output));
    assert_eq!(read(output.chunks(usize::from(*size).max(1))), whole);
    if let Ok(Some((head, body))) = whole {
        assert!(!head.status.is_informational());
        assert!(!head.headers.contains_key("status"));
        assert!(output.ends_with(&body));
        for value in head.headers.values() {
            assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
        }
    }
}

fn read<'a>(mut parts: impl Iterator<Item = &'a [u8]>) -> Result<Option<(Head, Vec<u8>)>, BadHead> {
    let mut reader = HeadReader::new(LIMIT);
    while let Some(part) = parts.next() {
        if let Some((head, rest)) = reader.push(Bytes::copy_from_slice(part))? {
            let mut body = rest.to_vec();
            parts.for_each(|part| body.extend_from_slice(part));
            return Ok(Some((head, body)));
        }
    }
    Ok(None)
}
