//! However a back end's bytes are cut, the same head is read from them, and no head holds what HTTP would read as another
//! field.

use bytes::BytesMut;
use doorward::upstream::http::codec::answer_head::{BadHead, HeadReader, LARGEST, MOST_FIELDS};
use http::{HeaderMap, StatusCode, Version};

type Read = (StatusCode, Version, HeaderMap, usize);

pub fn check(input: &[u8]) {
    let Some((size, output)) = input.split_first() else { return };
    let whole = read(std::iter::once(output));
    match (read(output.chunks(usize::from(*size).max(1))), &whole) {
        (Ok(cut), Ok(whole)) => assert_eq!(cut, *whole),
        // What cannot become a head may be known before it is too long to be looked at again.
        (Err(_), Err(_) | Ok(None)) => {}
        (cut, whole) => panic!("{cut:?}, and whole {whole:?}"),
    }
    if let Ok(Some((_, _, headers, length))) = whole {
        assert!(length <= LARGEST && headers.len() <= MOST_FIELDS);
        let head = &output[..length];
        assert!(head.starts_with(b"HTTP/1.") && head.ends_with(b"\n"));
        assert_eq!(head.iter().filter(|byte| **byte == b'\n').count(), headers.len() + 2);
        for value in headers.values() {
            assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
        }
    }
}

/// A head and how long it was.
fn read<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<Option<Read>, BadHead> {
    let (mut reader, mut buffer, mut came) = (HeadReader::default(), BytesMut::new(), 0);
    for part in parts {
        buffer.extend_from_slice(part);
        came += part.len();
        if let Some(head) = reader.read(&mut buffer)? {
            return Ok(Some((head.status, head.version, head.headers, came - buffer.len())));
        }
    }
    Ok(None)
}
