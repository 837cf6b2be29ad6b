//! A chunked body (RFC 9112, section 7.1), followed byte by byte around its data. hyper decodes it again; what is
//! checked here is what it would take and others would not.

use super::head::split_field;
use super::{Refusal, malformed};
use crate::base::fault::Kind;

/// Bytes of all chunk extensions of one body together, and of its trailers. hyper has the same limits, one byte
/// further on: what is over them is refused here, where it is known whose fault it is.
const EXTENSIONS: usize = 16 * 1024 - 1;
const TRAILERS: usize = 16 * 1024 - 1;

#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    extensions: usize,
    /// The trailer line that has not ended yet.
    trailer: Vec<u8>,
    trailers_left: usize,
    trailer_bytes_left: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Size { value: u64, digits: u8 },
    Extension { value: u64, quoted: bool, escaped: bool },
    SizeLf { value: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailer,
}

impl Chunked {
    pub(super) fn new(max_trailer_size: usize, max_trailers: usize) -> Chunked {
        Chunked {
            state: State::Size { value: 0, digits: 0 },
            extensions: 0,
            trailer: Vec::new(),
            trailers_left: max_trailers,
            trailer_bytes_left: max_trailer_size.min(TRAILERS),
        }
    }

    /// How many bytes belong to the body, and whether it has ended.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<(usize, bool), Refusal> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if let State::Data { left } = &mut self.state {
                let available = bytes.len() - at;
                let n = usize::try_from(*left).map_or(available, |left| left.min(available));
                *left -= n as u64;
                at += n;
                if *left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            at += 1;
            if self.byte(*byte)? {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    fn byte(&mut self, byte: u8) -> Result<bool, Refusal> {
        self.state = match (self.state, byte) {
            (State::Size { value, digits }, b) if b.is_ascii_hexdigit() => {
                if digits >= 15 {
                    return Err(malformed("a chunk size that is too large"));
                }
                let digit = char::from(b).to_digit(16).unwrap_or(0);
                State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { value, digits: 1.. }, b'\r') => State::SizeLf { value },
            (State::Size { value, digits: 1.. }, b';') => State::Extension { value, quoted: false, escaped: false },
            (State::Size { .. }, _) => return Err(malformed("a chunk size that is not hexadecimal")),
            (State::Extension { value, quoted: false, .. }, b'\r') => State::SizeLf { value },
            (State::Extension { value, quoted, escaped }, b) => {
                self.extensions += 1;
                if (b < b' ' && b != b'\t') || b == 0x7f || self.extensions > EXTENSIONS {
                    return Err(malformed("a chunk extension that is malformed or too long"));
                }
                let quoted = if b == b'"' && !escaped { !quoted } else { quoted };
                State::Extension { value, quoted, escaped: quoted && b == b'\\' && !escaped }
            }
            (State::SizeLf { value: 0 }, b'\n') => State::Trailer,
            (State::SizeLf { value }, b'\n') => State::Data { left: value },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { value: 0, digits: 0 },
            (State::Trailer, b) => return self.trailer_byte(b),
            _ => return Err(malformed("a chunk that does not end in CRLF")),
        };
        Ok(false)
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<bool, Refusal> {
        const TOO_MANY: Refusal = Refusal { kind: Kind::HeadTooLarge, detail: "the trailers are over the limits" };
        self.trailer_bytes_left = self.trailer_bytes_left.checked_sub(1).ok_or(TOO_MANY)?;
        if byte != b'\n' {
            self.trailer.push(byte);
            return Ok(false);
        }
        let line = std::mem::take(&mut self.trailer);
        let line = line.strip_suffix(b"\r").ok_or(malformed("a trailer line ends in a bare LF"))?;
        if line.is_empty() {
            return Ok(true);
        }
        self.trailers_left = self.trailers_left.checked_sub(1).ok_or(TOO_MANY)?;
        split_field(line)?;
        Ok(false)
    }
}
