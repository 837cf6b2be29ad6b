//! However a chunked body is cut, the same data is read from it; and a body that is written from what was read is the
//! same body.

use bytes::BytesMut;
use doorward::upstream::http::codec::chunks::{BadChunk, Chunks, Next};

pub fn check(input: &[u8]) {
    let Some((size, body)) = input.split_first() else { return };
    let whole = read(std::iter::once(body));
    assert_eq!(read(body.chunks(usize::from(*size).max(1))), whole);
    let Ok((data, over, rest)) = whole else { return };
    assert!(data.len() + rest <= body.len());
    if over {
        let read_on = &body[..body.len() - rest];
        assert!(read_on.ends_with(b"\r\n\r\n"), "it ends where everybody sees its end");
        assert_eq!(read(std::iter::once(read_on)), Ok((data.clone(), true, 0)));
        let mut anew = if data.is_empty() { Vec::new() } else { format!("{:X}\r\n", data.len()).into_bytes() };
        anew.extend_from_slice(&data);
        anew.extend_from_slice(if data.is_empty() { b"0\r\n\r\n" } else { b"\r\n0\r\n\r\n" });
        assert_eq!(read(std::iter::once(&anew[..])), Ok((data, true, 0)));
    } else {
        assert_eq!(rest, 0);
    }
}

/// The data, whether it is over, and how much comes behind it.
fn read<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<(Vec<u8>, bool, usize), BadChunk> {
    let (mut chunks, mut buffer, mut data, mut over) = (Chunks::default(), BytesMut::new(), Vec::new(), false);
    for part in parts {
        buffer.extend_from_slice(part);
        over = loop {
            match chunks.next(&mut buffer)? {
                Next::Data(some) => data.extend_from_slice(&some),
                Next::End => break true,
                Next::More => break false,
            }
        };
    }
    Ok((data, over, buffer.len()))
}
