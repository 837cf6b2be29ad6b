//! FastCGI records (FastCGI 1.0, section 3.3): eight bytes of header, content, padding.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a record's header.
pub const HEADER: usize = 8;

/// The most content that one record of ours carries. The protocol allows 65535, but PHP-FPM refuses a PARAMS record
/// whose content and padding together are over 65535; this is the largest multiple of eight below.
pub const MAX_CONTENT: usize = 65528;

/// The id of the one request on a connection: PHP-FPM does not multiplex.
pub const REQUEST_ID: u16 = 1;

const VERSION: u8 = 1;
const ROLE_RESPONDER: u16 = 1;
const FLAG_KEEP_CONNECTION: u8 = 1;
/// What an END_REQUEST has before its reserved bytes end.
const END_BODY: u32 = 8;

/// The types of record that a server and a responder exchange (section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Opens a request.
    Begin,
    /// Closes a request.
    End,
    /// The request's variables.
    Params,
    /// The request's body.
    Stdin,
    /// The answer, head and body.
    Stdout,
    /// Complaints for the server's log.
    Stderr,
}

impl Type {
    fn number(self) -> u8 {
        match self {
            Type::Begin => 1,
            Type::End => 3,
            Type::Params => 4,
            Type::Stdin => 5,
            Type::Stdout => 6,
            Type::Stderr => 7,
        }
    }

    fn from_number(number: u8) -> Option<Type> {
        [Type::Begin, Type::End, Type::Params, Type::Stdin, Type::Stdout, Type::Stderr]
            .into_iter()
            .find(|kind| kind.number() == number)
    }
}

/// The header of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the record carries.
    pub kind: Type,
    /// The request that it belongs to.
    pub id: u16,
    /// Bytes of content.
    pub content: u16,
    /// Bytes of padding behind the content.
    pub padding: u8,
}

impl Header {
    /// The header as it goes over the wire.
    pub fn encode(self) -> [u8; HEADER] {
        let [id1, id0] = self.id.to_be_bytes();
        let [length1, length0] = self.content.to_be_bytes();
        [VERSION, self.kind.number(), id1, id0, length1, length0, self.padding, 0]
    }

    /// Reads a header. The id is the caller's to check.
    pub fn decode(bytes: [u8; HEADER]) -> Result<Header, BadRecord> {
        let [version, kind, id1, id0, length1, length0, padding, _] = bytes;
        if version != VERSION {
            return Err(BadRecord::Version(version));
        }
        let kind = Type::from_number(kind).ok_or(BadRecord::Type(kind))?;
        let id = u16::from_be_bytes([id1, id0]);
        Ok(Header { kind, id, content: u16::from_be_bytes([length1, length0]), padding })
    }
}

/// Why bytes are not a record that an application may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Not FastCGI 1.
    #[error("FastCGI version {0} instead of 1")]
    Version(u8),
    /// A type that does not exist, or that only a server sends.
    #[error("a record of type {0}, which no application sends")]
    Type(u8),
    /// A record of a request that was not made.
    #[error("a record of request {0} instead of {REQUEST_ID}")]
    RequestId(u16),
    /// An END_REQUEST without its eight bytes.
    #[error("an END_REQUEST of {0} bytes instead of 8")]
    ShortEnd(u16),
}

/// Opens a request in the role of a responder. `keep` asks the application to leave the connection open behind it.
pub fn put_begin(out: &mut BytesMut, keep: bool) {
    put_header(out, Type::Begin, 8, 0);
    out.put_u16(ROLE_RESPONDER);
    out.put_u8(if keep { FLAG_KEEP_CONNECTION } else { 0 });
    out.put_bytes(0, 5);
}

/// Puts a part of a stream, of any size, into as many records as it takes. Nothing is put for nothing: an empty
/// record would end the stream.
pub fn put_stream(out: &mut BytesMut, kind: Type, content: &[u8]) {
    for part in content.chunks(MAX_CONTENT) {
        let padding = padding(part.len());
        out.reserve(HEADER + part.len() + usize::from(padding));
        put_header(out, kind, u16::try_from(part.len()).unwrap_or(u16::MAX), padding);
        out.put_slice(part);
        out.put_bytes(0, usize::from(padding));
    }
}

/// Ends a stream.
pub fn put_stream_end(out: &mut BytesMut, kind: Type) {
    put_header(out, kind, 0, 0);
}

/// Section 3.3: "We recommend that records be placed on boundaries that are multiples of eight bytes."
pub(super) fn padding(content: usize) -> u8 {
    u8::try_from(content.wrapping_neg() % 8).unwrap_or(0)
}

fn put_header(out: &mut BytesMut, kind: Type, content: u16, padding: u8) {
    out.put_slice(&Header { kind, id: REQUEST_ID, content, padding }.encode());
}

/// What an application sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A part of the answer, never empty.
    Stdout(Bytes),
    /// A part of its complaints, never empty.
    Stderr(Bytes),
    /// The request is over.
    End(End),
}

/// The body of an END_REQUEST (section 5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The exit status of the script. PHP answers normally whatever it is.
    pub app_status: u32,
    /// Whether the application took the request at all.
    pub protocol_status: ProtocolStatus,
}

/// Whether the application took the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolStatus {
    /// It did.
    Complete,
    /// It has a request on this connection already.
    CannotMultiplex,
    /// It has no room.
    Overloaded,
    /// It is no responder.
    UnknownRole,
    /// A number that the protocol does not have.
    Unknown(u8),
}

/// Takes records apart as their bytes come. Content is handed on before its record is complete, so that a record of
/// 64 KiB needs no buffer of 64 KiB.
#[derive(Debug)]
pub struct Decoder {
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// So many bytes mean nothing; then a header follows.
    Skip(u32),
    /// So many bytes of this stream are to come, and then so much padding.
    Stream(Type, u32, u32),
    /// An END_REQUEST's body is to come; this much follows it.
    End(u32),
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { state: State::Skip(0) }
    }
}

impl Decoder {
    /// Takes the next piece off the front of `buffer`. `None` asks for more bytes; what is left in the buffer then is
    /// less than a header or less than an END_REQUEST.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Piece>, BadRecord> {
        loop {
            match self.state {
                State::Skip(left) => {
                    let gone = left.min(held(buffer));
                    buffer.advance(gone as usize);
                    self.state = State::Skip(left - gone);
                    if left > gone {
                        return Ok(None);
                    }
                    let Some(header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
                    let header = Header::decode(*header)?;
                    self.state = open(header)?;
                    buffer.advance(HEADER);
                }
                State::Stream(_, 0, padding) => self.state = State::Skip(padding),
                State::Stream(kind, left, padding) => {
                    let taken = left.min(held(buffer));
                    if taken == 0 {
                        return Ok(None);
                    }
                    self.state = State::Stream(kind, left - taken, padding);
                    let data = buffer.split_to(taken as usize).freeze();
                    return Ok(Some(if kind == Type::Stderr { Piece::Stderr(data) } else { Piece::Stdout(data) }));
                }
                State::End(rest) => {
                    let Some(&[a3, a2, a1, a0, status, _, _, _]) = buffer.first_chunk::<8>() else { return Ok(None) };
                    buffer.advance(END_BODY as usize);
                    self.state = State::Skip(rest);
                    let app_status = u32::from_be_bytes([a3, a2, a1, a0]);
                    return Ok(Some(Piece::End(End { app_status, protocol_status: protocol_status(status) })));
                }
            }
        }
    }

    /// Whether the last record, its padding included, has been taken whole.
    pub fn is_between_records(&self) -> bool {
        matches!(self.state, State::Skip(0))
    }
}

/// What follows a header. All sums are of at most 65535 + 255, in 32 bits.
fn open(header: Header) -> Result<State, BadRecord> {
    let (content, padding) = (u32::from(header.content), u32::from(header.padding));
    let state = match header.kind {
        Type::Stdout | Type::Stderr => State::Stream(header.kind, content, padding),
        Type::End => State::End(content.checked_sub(END_BODY).ok_or(BadRecord::ShortEnd(header.content))? + padding),
        Type::Begin | Type::Params | Type::Stdin => return Err(BadRecord::Type(header.kind.number())),
    };
    if header.id != REQUEST_ID {
        return Err(BadRecord::RequestId(header.id));
    }
    Ok(state)
}

fn held(buffer: &BytesMut) -> u32 {
    u32::try_from(buffer.len()).unwrap_or(u32::MAX)
}

fn protocol_status(number: u8) -> ProtocolStatus {
    match number {
        0 => ProtocolStatus::Complete,
        1 => ProtocolStatus::CannotMultiplex,
        2 => ProtocolStatus::Overloaded,
        3 => ProtocolStatus::UnknownRole,
        other => ProtocolStatus::Unknown(other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Decoded {
        stdout: Vec<u8>,
        stderr: Vec<u8>,
        end: Option<End>,
        error: Option<BadRecord>,
    }

    fn decode<'a>(parts: impl Iterator<Item = &'a [u8]>) -> (Decoded, Decoder) {
        let (mut decoder, mut buffer, mut seen) = (Decoder::default(), BytesMut::new(), Decoded::default());
        'parts: for part in parts {
            buffer.extend_from_slice(part);
            loop {
                match decoder.next(&mut buffer) {
                    Ok(None) => break,
                    Ok(Some(Piece::Stdout(data))) => seen.stdout.extend_from_slice(&data),
                    Ok(Some(Piece::Stderr(data))) => seen.stderr.extend_from_slice(&data),
                    Ok(Some(Piece::End(end))) => seen.end = Some(end),
                    Err(error) => {
                        seen.error = Some(error);
                        break 'parts;
                    }
                }
            }
        }
        (seen, decoder)
    }

    fn record(kind: u8, id: u16, content: &[u8], padding: u8) -> Vec<u8> {
        let mut out = vec![1, kind];
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
        out.extend_from_slice(&[padding, 0]);
        out.extend_from_slice(content);
        out.extend(std::iter::repeat_n(0xff, usize::from(padding)));
        out
    }

    #[test]
    fn the_largest_record_with_the_largest_padding_is_read_whole() {
        let content = vec![b'x'; 65535];
        let mut bytes = record(6, 1, &content, 255);
        bytes.extend(record(3, 1, &[0, 0, 1, 2, 0, 0, 0, 0], 255));
        let (seen, decoder) = decode(std::iter::once(&bytes[..]));
        assert!(decoder.is_between_records());
        assert_eq!(seen.stdout, content);
        assert_eq!(seen.end, Some(End { app_status: 258, protocol_status: ProtocolStatus::Complete }));
        assert_eq!(seen.error, None);
        // The padding of the last record is still to be skipped by whoever reuses the connection.
        let (_, decoder) = decode(std::iter::once(&bytes[..bytes.len() - 1]));
        assert!(!decoder.is_between_records());
    }

    #[test]
    fn records_that_no_application_sends_are_errors() {
        let error = |bytes: Vec<u8>| decode(std::iter::once(&bytes[..])).0.error;
        assert_eq!(error(record(6, 2, b"x", 0)), Some(BadRecord::RequestId(2)));
        assert_eq!(error(record(3, 0, &[0; 8], 0)), Some(BadRecord::RequestId(0)));
        for kind in [0, 1, 2, 4, 5, 8, 9, 10, 11, 12, 255] {
            assert_eq!(error(record(kind, 1, b"x", 0)), Some(BadRecord::Type(kind)));
        }
        assert_eq!(error(record(3, 1, &[0; 7], 0)), Some(BadRecord::ShortEnd(7)));
        assert_eq!(error(b"HTTP/1.1 400 Bad Request\r\n".to_vec()), Some(BadRecord::Version(b'H')));
    }

    #[test]
    fn what_is_put_is_split_padded_and_fits_what_php_reads() {
        let content = vec![7; MAX_CONTENT * 2 + 3];
        let mut out = BytesMut::new();
        put_begin(&mut out, true);
        assert_eq!(&out[..], [1, 1, 0, 1, 0, 8, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]);
        out.clear();
        put_stream(&mut out, Type::Stdin, &content);
        put_stream(&mut out, Type::Stdin, b"");
        put_stream_end(&mut out, Type::Stdin);
        let mut seen = Vec::new();
        let mut rest = &out[..];
        let mut records = 0;
        while !rest.is_empty() {
            let header = Header::decode(*rest.first_chunk().unwrap()).unwrap();
            let (content, padding) = (usize::from(header.content), usize::from(header.padding));
            assert!(content + padding <= 65535 && (content + padding) % 8 == 0);
            seen.extend_from_slice(&rest[HEADER..HEADER + content]);
            rest = &rest[HEADER + content + padding..];
            records += 1;
        }
        assert_eq!((records, seen), (4, content));
    }

    fn any_record() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop_oneof![8 => Just(6u8), 4 => Just(7), 1 => Just(3), 1 => any::<u8>()];
        let id = prop_oneof![20 => Just(1u16), 1 => any::<u16>()];
        (kind, id, proptest::collection::vec(any::<u8>(), 0..40), any::<u8>())
            .prop_map(|(kind, id, content, padding)| record(kind, id, &content, padding))
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_gives_the_same_pieces(
            records in proptest::collection::vec(any_record(), 0..12), size in 1usize..50
        ) {
            let bytes = records.concat();
            let (whole, _) = decode(std::iter::once(&bytes[..]));
            let (split, _) = decode(bytes.chunks(size));
            prop_assert_eq!(whole, split);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1usize..30) {
            let (whole, _) = decode(std::iter::once(&bytes[..]));
            let (split, _) = decode(bytes.chunks(size));
            prop_assert_eq!(whole, split);
        }

        #[test]
        fn a_header_reads_back(id: u16, content: u16, padding: u8) {
            let header = Header { kind: Type::Stdout, id, content, padding };
            prop_assert_eq!(Header::decode(header.encode()), Ok(header));
        }
    }
}
