//! However a back end's bytes are cut, the same answer, complaints and end are read from its records.

use bytes::BytesMut;
use doorward::upstream::fastcgi::record::{BadRecord, Decoder, End, HEADER, Header, Piece};

pub fn check(input: &[u8]) {
    let Some((size, stream)) = input.split_first() else { return };
    assert_eq!(decode(stream.chunks(usize::from(*size).max(1))), decode(std::iter::once(stream)));
    if let Some(bytes) = stream.first_chunk::<HEADER>()
        && let Ok(header) = Header::decode(*bytes)
    {
        assert_eq!(Header::decode(header.encode()), Ok(header));
    }
}

#[derive(Debug, Default, PartialEq)]
struct Decoded {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    ends: Vec<End>,
    error: Option<BadRecord>,
    is_between_records: bool,
}

fn decode<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Decoded {
    let (mut decoder, mut buffer, mut seen) = (Decoder::default(), BytesMut::new(), Decoded::default());
    for part in parts {
        buffer.extend_from_slice(part);
        loop {
            match decoder.next(&mut buffer) {
                Ok(None) => break,
                Ok(Some(Piece::Stdout(data))) => {
                    assert!(!data.is_empty());
                    seen.stdout.extend_from_slice(&data);
                }
                Ok(Some(Piece::Stderr(data))) => {
                    assert!(!data.is_empty());
                    seen.stderr.extend_from_slice(&data);
                }
                Ok(Some(Piece::End(end))) => seen.ends.push(end),
                Err(error) => return Decoded { error: Some(error), ..seen },
            }
        }
    }
    Decoded { is_between_records: decoder.is_between_records() && buffer.is_empty(), ..seen }
}
