//! WebSocket frames as a server reads and writes them (RFC 6455, section 5): just what the chat needs, pure.
//! No extension is ever agreed, so all reserved bits are zero.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The most bytes of a message, all its fragments together. A longer one ends the connection with 1009.
pub const LONGEST_MESSAGE: usize = 64 * 1024;

/// The longest frame head of a client: 2 bytes, 8 of length, 4 of mask.
const LONGEST_HEAD: usize = 14;

/// A message or control frame of a client, unmasked.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// A whole text message.
    Text(String),
    /// A ping that wants its payload back.
    Ping(Bytes),
    /// A pong.
    Pong,
    /// The client closes, with this code where it gave one.
    Close(Option<u16>),
}

/// Why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The frame breaks the protocol.
    #[error("the frame breaks the protocol")]
    Protocol,
    /// A binary message, which the chat has no use for.
    #[error("a binary message")]
    Binary,
    /// A text that is not UTF-8.
    #[error("a text that is not UTF-8")]
    Utf8,
    /// A message over [`LONGEST_MESSAGE`].
    #[error("a message over {LONGEST_MESSAGE} bytes")]
    TooLong,
}

impl Violation {
    /// The close code that says so (RFC 6455, section 7.4.1).
    pub fn code(self) -> u16 {
        match self {
            Violation::Protocol => 1002,
            Violation::Binary => 1003,
            Violation::Utf8 => 1007,
            Violation::TooLong => 1009,
        }
    }
}

/// Reads a client's frames out of a byte stream, whatever pieces it comes in.
#[derive(Debug, Default)]
pub struct Reader {
    /// The fragments so far of a text message; `None` between messages.
    partial: Option<Vec<u8>>,
}

impl Reader {
    /// Takes the next message off the front of `buffer`; `None` where more bytes are needed. `buffer` never has to
    /// hold more than one frame of [`LONGEST_MESSAGE`].
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, Violation> {
        while let Some((head, payload)) = take_frame(buffer, self.partial.as_ref().map_or(0, Vec::len))? {
            match (head.opcode, &mut self.partial) {
                (0x1, None) | (0x0, Some(_)) => {
                    self.partial.get_or_insert_default().extend_from_slice(&payload);
                    if head.last {
                        let whole = self.partial.take().unwrap_or_default();
                        return String::from_utf8(whole).map(|t| Some(Message::Text(t))).map_err(|_| Violation::Utf8);
                    }
                }
                (0x2, None) => return Err(Violation::Binary),
                (0x8, _) => return close(&payload).map(Some),
                (0x9, _) => return Ok(Some(Message::Ping(payload))),
                (0xa, _) => return Ok(Some(Message::Pong)),
                _ => return Err(Violation::Protocol),
            }
        }
        Ok(None)
    }
}

/// A text frame.
pub fn text(text: &str) -> Bytes {
    write(0x1, text.as_bytes())
}

/// A ping without payload.
pub fn ping() -> Bytes {
    write(0x9, &[])
}

/// A pong that gives `payload` back.
pub fn pong(payload: &[u8]) -> Bytes {
    write(0xa, payload)
}

/// A close frame with `code`.
pub fn closing(code: u16) -> Bytes {
    write(0x8, &code.to_be_bytes())
}

struct Head {
    last: bool,
    opcode: u8,
}

/// Takes one frame off `buffer`, where it is whole. `before` bytes of its message came with earlier frames.
fn take_frame(buffer: &mut BytesMut, before: usize) -> Result<Option<(Head, Bytes)>, Violation> {
    let Some((&first, &second)) = buffer.first().zip(buffer.get(1)) else { return Ok(None) };
    // RFC 6455, section 5.2: "MUST be 0 unless an extension is negotiated that defines meanings for non-zero values".
    // Section 5.1: "The server MUST close the connection upon receiving a frame that is not masked."
    if first & 0x70 != 0 || second & 0x80 == 0 {
        return Err(Violation::Protocol);
    }
    let head = Head { last: first & 0x80 != 0, opcode: first & 0x0f };
    let mut rest = buffer.get(2..buffer.len().min(LONGEST_HEAD)).unwrap_or_default();
    let length = match second & 0x7f {
        126 => rest.try_get_u16().ok().map(u64::from),
        127 => rest.try_get_u64().ok(),
        short => Some(u64::from(short)),
    };
    let Some(length) = length else { return Ok(None) };
    let control = head.opcode & 0x8 != 0;
    // RFC 6455, section 5.5: "All control frames MUST have a payload length of 125 bytes or less and MUST NOT be
    // fragmented."
    if control && (length > 125 || !head.last) {
        return Err(Violation::Protocol);
    }
    let length = usize::try_from(length).ok().filter(|l| *l <= LONGEST_MESSAGE).ok_or(Violation::TooLong)?;
    if !control && before + length > LONGEST_MESSAGE {
        return Err(Violation::TooLong);
    }
    let Some(mask) = rest.get(..4).and_then(|m| <[u8; 4]>::try_from(m).ok()) else { return Ok(None) };
    let start = buffer.len().min(LONGEST_HEAD) - rest.len() + mask.len();
    if buffer.len() < start + length {
        return Ok(None);
    }
    buffer.advance(start);
    let mut payload = buffer.split_to(length);
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Some((head, payload.freeze())))
}

fn close(payload: &[u8]) -> Result<Message, Violation> {
    match payload {
        [] => Ok(Message::Close(None)),
        [high, low, reason @ ..] if std::str::from_utf8(reason).is_ok() => {
            Ok(Message::Close(Some(u16::from_be_bytes([*high, *low]))))
        }
        _ => Err(Violation::Protocol),
    }
}

/// One whole, unmasked frame.
fn write(opcode: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(payload.len() + LONGEST_HEAD);
    frame.put_u8(0x80 | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short), _) if short < 126 => frame.put_u8(short),
        (_, Ok(medium)) => {
            frame.put_u8(126);
            frame.put_u16(medium);
        }
        _ => {
            frame.put_u8(127);
            frame.put_u64(payload.len() as u64);
        }
    }
    frame.put_slice(payload);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame: `first` is FIN, reserved bits and opcode.
    fn client(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let mut frame = vec![first];
        match payload.len() {
            short @ 0..=125 => frame.push(0x80 | short as u8),
            medium @ 126..=0xffff => {
                frame.push(0xfe);
                frame.extend((medium as u16).to_be_bytes());
            }
            long => {
                frame.push(0xff);
                frame.extend((long as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        frame
    }

    fn read(bytes: &[u8]) -> Result<Option<Message>, Violation> {
        Reader::default().next(&mut BytesMut::from(bytes))
    }

    #[test]
    fn the_example_of_the_rfc_is_read() {
        // RFC 6455, section 5.7.
        let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(&masked), Ok(Some(Message::Text("Hello".into()))));
        assert_eq!(&text("Hello")[..], [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
    }

    #[test]
    fn fragments_make_one_message_and_control_frames_may_stand_between() {
        let mut reader = Reader::default();
        let stream = [client(0x01, b"Hel"), client(0x89, b"?"), client(0x80, b"lo"), client(0x88, &[3, 232])].concat();
        let mut buffer = BytesMut::from(&stream[..]);
        assert_eq!(reader.next(&mut buffer), Ok(Some(Message::Ping(Bytes::from_static(b"?")))));
        assert_eq!(reader.next(&mut buffer), Ok(Some(Message::Text("Hello".into()))));
        assert_eq!(reader.next(&mut buffer), Ok(Some(Message::Close(Some(1000)))));
        assert_eq!(reader.next(&mut buffer), Ok(None));
    }

    #[test]
    fn what_breaks_the_protocol_ends_the_connection() {
        let fragment = client(0x01, &[b'x'; 60_000]);
        for (bytes, why) in [
            (vec![0x81, 0x05, b'H', b'e', b'l', b'l', b'o'], Violation::Protocol),
            (client(0xc1, b"x"), Violation::Protocol),
            (client(0x80, b"x"), Violation::Protocol),
            (client(0x83, b"x"), Violation::Protocol),
            (client(0x09, b"x"), Violation::Protocol),
            (client(0x89, &[0; 126]), Violation::Protocol),
            (client(0x88, &[3]), Violation::Protocol),
            ([client(0x01, b"x"), client(0x81, b"x")].concat(), Violation::Protocol),
            (client(0x82, b"x"), Violation::Binary),
            (client(0x81, &[0xff]), Violation::Utf8),
            (client(0x81, &[b'x'; LONGEST_MESSAGE + 1]), Violation::TooLong),
            ([fragment.clone(), client(0x80, &[b'x'; 60_000])].concat(), Violation::TooLong),
        ] {
            assert_eq!(read(&bytes), Err(why), "{:?}", &bytes[..bytes.len().min(8)]);
        }
    }

    #[test]
    fn a_length_is_refused_before_its_payload_is_awaited() {
        assert_eq!(read(&[0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Err(Violation::TooLong));
    }

    proptest::proptest! {
        #[test]
        fn pieces_read_as_the_whole(text in ".{0,200}", cut in 0usize..64, long in proptest::bool::ANY) {
            let text = if long { text.repeat(300).chars().take(15_000).collect() } else { text };
            let frame = client(0x81, text.as_bytes());
            let mut reader = Reader::default();
            let mut buffer = BytesMut::new();
            let mut got = None;
            for piece in frame.chunks(cut + 1) {
                proptest::prop_assert!(got.is_none());
                buffer.extend_from_slice(piece);
                got = reader.next(&mut buffer).unwrap();
            }
            proptest::prop_assert_eq!(got, Some(Message::Text(text)));
            proptest::prop_assert!(buffer.is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut reader = Reader::default();
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = reader.next(&mut buffer) {}
        }
    }
}
