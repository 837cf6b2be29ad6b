//! Where the body of an answer ends (RFC 9112, section 6.3), and how it is read up to there.

use bytes::{Bytes, BytesMut};

use super::chunks::{BadChunk, Chunks, Next};

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// So many bytes; 0 where there is no body.
    Exactly(u64),
    /// By the chunked transfer coding.
    Chunked,
    /// The connection ends.
    UntilClose,
}

/// Reads one body, however its bytes arrive.
#[derive(Debug)]
pub enum BodyReader {
    /// What is missing.
    Exactly(u64),
    /// In chunks.
    Chunked(Chunks),
    /// Whatever comes.
    UntilClose,
}

impl BodyReader {
    /// For a body that ends as `length` says.
    pub fn new(length: BodyLength) -> BodyReader {
        match length {
            BodyLength::Exactly(length) => BodyReader::Exactly(length),
            BodyLength::Chunked => BodyReader::Chunked(Chunks::default()),
            BodyLength::UntilClose => BodyReader::UntilClose,
        }
    }

    /// What is missing, where that is known.
    pub fn left(&self) -> Option<u64> {
        match self {
            BodyReader::Exactly(left) => Some(*left),
            BodyReader::Chunked(_) | BodyReader::UntilClose => None,
        }
    }

    /// Takes what comes next from the front of `buffer`.
    ///
    /// # Errors
    /// It is not framed as was announced.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Next, BadChunk> {
        match self {
            BodyReader::Exactly(0) => Ok(Next::End),
            BodyReader::Chunked(chunks) => chunks.next(buffer),
            _ if buffer.is_empty() => Ok(Next::More),
            BodyReader::UntilClose => Ok(Next::Data(buffer.split().freeze())),
            BodyReader::Exactly(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                *left -= count as u64;
                Ok(Next::Data(buffer.split_to(count).freeze()))
            }
        }
    }

    /// All of the body, if its length is known and `buffer` has it.
    pub fn whole(&mut self, buffer: &mut BytesMut) -> Option<Bytes> {
        let BodyReader::Exactly(left) = self else { return None };
        let count = usize::try_from(*left).ok().filter(|count| *count <= buffer.len())?;
        *left = 0;
        Some(buffer.split_to(count).freeze())
    }

    /// The connection has ended: whether that is the body's end.
    pub fn close(&mut self) -> bool {
        let ends = matches!(self, BodyReader::UntilClose | BodyReader::Exactly(0));
        if ends {
            *self = BodyReader::Exactly(0);
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_kept_to() {
        let mut reader = BodyReader::new(BodyLength::Exactly(5));
        let mut buffer = BytesMut::from("abc");
        assert_eq!(reader.whole(&mut buffer), None);
        assert_eq!(reader.next(&mut buffer), Ok(Next::Data("abc".into())));
        assert_eq!((reader.next(&mut buffer), reader.left(), reader.close()), (Ok(Next::More), Some(2), false));
        buffer.extend_from_slice(b"defg");
        assert_eq!(reader.next(&mut buffer), Ok(Next::Data("de".into())));
        assert_eq!((reader.next(&mut buffer), &buffer[..]), (Ok(Next::End), &b"fg"[..]));
        let mut whole = BodyReader::new(BodyLength::Exactly(2));
        assert_eq!((whole.whole(&mut buffer), whole.next(&mut buffer)), (Some("fg".into()), Ok(Next::End)));
    }

    #[test]
    fn only_a_body_without_a_length_ends_with_its_connection() {
        let mut reader = BodyReader::new(BodyLength::UntilClose);
        let mut buffer = BytesMut::from("abc");
        assert_eq!((reader.whole(&mut buffer), reader.left()), (None, None));
        assert_eq!(reader.next(&mut buffer), Ok(Next::Data("abc".into())));
        assert_eq!(reader.next(&mut buffer), Ok(Next::More));
        assert!(reader.close());
        assert_eq!(reader.next(&mut buffer), Ok(Next::End));
        assert!(!BodyReader::new(BodyLength::Chunked).close());
    }
}
