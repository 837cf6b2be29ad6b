//! The chunked transfer coding (RFC 9112, section 7.1), read strictly: a chunk ends where every other reader sees it end.

use bytes::{Buf, Bytes, BytesMut};

use crate::http::guard::is_token;

/// 16 digits are 64 bits.
const DIGITS: u8 = 16;
/// Spaces behind a size, which some servers fill it up with.
const PADDING: u8 = 32;
/// Bytes of chunk extensions in one body, and of its trailers. Both are read and dropped.
const ASIDE: u16 = 16 * 1024;

/// Why bytes are no chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadChunk {
    /// No hexadecimal number, or one of more than 64 bits.
    #[error("a chunk has no size")]
    Size,
    /// Something else than CR LF.
    #[error("a chunk or a line of its size does not end with CR LF")]
    End,
    /// A control character, or too many bytes.
    #[error("a chunk extension is malformed or too long")]
    Extension,
    /// No field, or too many bytes.
    #[error("the trailers are malformed or too long")]
    Trailer,
}

/// What comes next of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Some of it.
    Data(Bytes),
    /// It is over.
    End,
    /// More bytes are needed to tell.
    More,
}

/// Reads one chunked body, however its bytes arrive.
#[derive(Debug, Default)]
pub struct Chunks {
    state: State,
    /// The size that is being read, then what is missing of the chunk.
    left: u64,
    /// Digits, then spaces, of a size.
    count: u8,
    extensions: u16,
    trailers: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Size,
    Padding,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// Behind the last chunk or a trailer.
    Line,
    Name,
    Value,
    ValueLf,
    EndLf,
    End,
}

impl Chunks {
    /// Takes what comes next from the front of `input`.
    ///
    /// # Errors
    /// It is no chunked body.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Next, BadChunk> {
        loop {
            match self.state {
                State::End => return Ok(Next::End),
                State::Data if !input.is_empty() => {
                    let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
                    self.left -= count as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Next::Data(input.split_to(count).freeze()));
                }
                _ if input.is_empty() => return Ok(Next::More),
                _ => {
                    let framing = self.skip(input)?;
                    input.advance(framing);
                }
            }
        }
    }

    /// Reads up to the next data or the end; how many bytes that were.
    fn skip(&mut self, input: &[u8]) -> Result<usize, BadChunk> {
        for (at, byte) in input.iter().enumerate() {
            self.state = self.step(*byte)?;
            if matches!(self.state, State::Data | State::End) {
                return Ok(at + 1);
            }
        }
        Ok(input.len())
    }

    fn step(&mut self, byte: u8) -> Result<State, BadChunk> {
        Ok(match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => return self.digit(byte),
            (State::Size | State::Padding, b' ' | b'\t' | b'\r' | b';') if self.count > 0 => return self.behind(byte),
            (State::Size | State::Padding, _) => return Err(BadChunk::Size),
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, _) => {
                self.extensions += 1;
                if (byte.is_ascii_control() && byte != b'\t') || self.extensions >= ASIDE {
                    return Err(BadChunk::Extension);
                }
                State::Extension
            }
            (State::SizeLf, b'\n') => {
                self.count = 0;
                if self.left == 0 { State::Line } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::Line, b'\r') => State::EndLf,
            (State::EndLf, b'\n') => State::End,
            (State::Line | State::Name | State::Value | State::ValueLf, _) => return self.trailer(byte),
            (State::SizeLf | State::DataCr | State::DataLf | State::EndLf | State::Data | State::End, _) => {
                return Err(BadChunk::End);
            }
        })
    }

    fn digit(&mut self, byte: u8) -> Result<State, BadChunk> {
        let digit = char::from(byte).to_digit(16).ok_or(BadChunk::Size)?;
        self.count += 1;
        // RFC 9112, section 7.1: "A recipient MUST be able to parse and decode the chunked transfer coding" and "MUST
        // anticipate potentially large hexadecimal numerals and prevent parsing errors due to integer conversion
        // overflows".
        if self.count > DIGITS {
            return Err(BadChunk::Size);
        }
        self.left = (self.left << 4) | u64::from(digit);
        Ok(State::Size)
    }

    /// Behind the digits.
    fn behind(&mut self, byte: u8) -> Result<State, BadChunk> {
        match byte {
            b';' => Ok(State::Extension),
            b'\r' => Ok(State::SizeLf),
            _ => {
                self.count = if self.state == State::Size { 1 } else { self.count + 1 };
                if self.count > PADDING { Err(BadChunk::Size) } else { Ok(State::Padding) }
            }
        }
    }

    fn trailer(&mut self, byte: u8) -> Result<State, BadChunk> {
        self.trailers += 1;
        if self.trailers >= ASIDE {
            return Err(BadChunk::Trailer);
        }
        match (self.state, byte) {
            (State::Line | State::Name, byte) if is_token(byte) => Ok(State::Name),
            (State::Name, b':') => Ok(State::Value),
            (State::Value, b'\r') => Ok(State::ValueLf),
            (State::ValueLf, b'\n') => Ok(State::Line),
            (State::Value, byte) if byte == b'\t' || !byte.is_ascii_control() => Ok(State::Value),
            _ => Err(BadChunk::Trailer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The data of a body that comes in `pieces`, whether it is over, and what is left.
    fn read<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Result<(Vec<u8>, bool, usize), BadChunk> {
        let (mut chunks, mut input, mut data, mut over) = (Chunks::default(), BytesMut::new(), Vec::new(), false);
        for piece in pieces {
            input.extend_from_slice(piece);
            over = loop {
                match chunks.next(&mut input)? {
                    Next::Data(some) => data.extend_from_slice(&some),
                    Next::End => break true,
                    Next::More => break false,
                }
            };
        }
        Ok((data, over, input.len()))
    }

    #[test]
    fn chunks_are_read_to_their_end() {
        for (text, data, rest) in [
            ("0\r\n\r\n", "", 0),
            ("3\r\nabc\r\n0\r\n\r\n", "abc", 0),
            ("3\r\nabc\r\n00A\r\n0123456789\r\n000\r\n\r\nnext", "abc0123456789", 4),
            ("0000000000000003;a=b;c=\"d\"\r\nabc\r\n0;x\r\n\r\n", "abc", 0),
            ("3  \r\nabc\r\n0 ;x\r\n\r\n", "abc", 0),
            ("1\r\na\r\n0\r\nA: b\r\nc:\r\n\r\n", "a", 0),
        ] {
            assert_eq!(read([text.as_bytes()]), Ok((data.as_bytes().to_vec(), true, rest)), "{text:?}");
        }
    }

    #[test]
    fn what_ends_before_its_end_is_not_over() {
        let text = "3;x\r\nabc\r\n0\r\nA: b\r\n\r\n";
        for end in 0..text.len() {
            assert!(!read([&text.as_bytes()[..end]]).unwrap().1, "{end}");
        }
    }

    #[test]
    fn what_another_reader_may_read_otherwise_is_refused() {
        let long = format!("1;{}\r\na\r\n", "x".repeat(usize::from(ASIDE)));
        let often = "1;xxxxxxxxxxxxxxx\r\na\r\n".repeat(usize::from(ASIDE) / 15 + 1);
        let wide = format!("1{}\r\na\r\n", " ".repeat(33));
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(3000));
        for (text, why) in [
            ("\r\n", BadChunk::Size),
            (";x\r\n", BadChunk::Size),
            (" 3\r\nabc\r\n", BadChunk::Size),
            ("+3\r\nabc\r\n", BadChunk::Size),
            ("0x3\r\nabc\r\n", BadChunk::Size),
            ("3 3\r\nabc\r\n", BadChunk::Size),
            ("3_\r\nabc\r\n", BadChunk::Size),
            ("3\nabc\r\n", BadChunk::Size),
            ("00000000000000003\r\nabc\r\n", BadChunk::Size),
            ("10000000000000000\r\nabc\r\n", BadChunk::Size),
            (&wide, BadChunk::Size),
            ("3\rabc\r\n", BadChunk::End),
            ("3\r\nabcd\r\n", BadChunk::End),
            ("3\r\nabc\n", BadChunk::End),
            ("3\r\nabc\r\r\n", BadChunk::End),
            ("0\r\n\rx", BadChunk::End),
            ("3;x\nabc\r\n", BadChunk::Extension),
            ("3;\0\r\nabc\r\n", BadChunk::Extension),
            ("3;x\r\r\nabc\r\n", BadChunk::End),
            (&long, BadChunk::Extension),
            (&often, BadChunk::Extension),
            ("0\r\n\n", BadChunk::Trailer),
            ("0\r\nHTTP/1.1 200 OK\r\n\r\n", BadChunk::Trailer),
            ("0\r\na b: c\r\n\r\n", BadChunk::Trailer),
            ("0\r\na: b\r\n c\r\n\r\n", BadChunk::Trailer),
            ("0\r\na: b\nc: d\r\n\r\n", BadChunk::Trailer),
            ("0\r\na: \0\r\n\r\n", BadChunk::Trailer),
            ("0\r\na\r\n\r\n", BadChunk::Trailer),
            (&trailers, BadChunk::Trailer),
        ] {
            assert_eq!(read([text.as_bytes()]), Err(why), "{:?}", &text[..text.len().min(40)]);
        }
        // The largest that there is: taken, and never there.
        assert_eq!(read([&b"FFFFFFFFFFFFFFFF\r\nabc"[..]]), Ok((b"abc".to_vec(), false, 0)));
    }

    proptest! {
        #[test]
        fn every_split_gives_the_same_data(
            text in "([0-9a-fA-F]{0,2}(;[a-z]{0,3})?\r?\n?[a-z]{0,12}\r?\n?){0,4}(0\r\n([a-z]: [a-z]\r\n){0,2}\r\n[a-z]{0,3})?",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            prop_assert_eq!(read([bytes]), read(pieces));
        }
    }
}
