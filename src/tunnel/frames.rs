//! WebSocket frames by their headers alone (RFC 6455 section 5.2): where one ends, what a Close says, how many
//! messages went by. Pure: it is shown the bytes of one direction in slices of any length and never touches a payload,
//! so that compressed messages (RFC 7692) pass like any other.
//!
//! It reads what can be read: reserved bits, a mask that is missing or too much and a length written longer than need
//! be are the endpoints' business. Only what leaves the place of the next header unknown, or breaks the order of
//! frames, makes a stream opaque.

/// The status of a Close frame without one (RFC 6455 section 7.4.1). It is never on the wire.
pub const NO_STATUS: u16 = 1005;

/// The frames of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    /// Payload bytes that are still to come; while the length is read, what is known of it.
    left: u64,
    messages: u64,
    key: [u8; 4],
    close: u16,
    step: Step,
    opcode: u8,
    /// Bytes of the status code that were seen.
    code_seen: u8,
    last: bool,
    masked: bool,
    in_message: bool,
    closed: bool,
}

/// What the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// FIN, RSV and opcode: the stream is between two frames.
    First,
    /// MASK and the short length.
    Second,
    /// Of the extended length; so many bytes are left.
    Length(u8),
    /// Of the masking key; so many bytes are left.
    Key(u8),
    Payload,
    /// What was read is not WebSocket: nothing is known any more.
    Opaque,
}

/// A frame's header, as far as rules ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kind of frame.
    pub opcode: u8,
    /// FIN: it is the last frame of its message.
    pub last: bool,
    /// Bytes of the payload.
    pub length: u64,
}

pub(super) const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
pub(super) const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
pub(super) const PONG: u8 = 0xA;

/// The longest header: two bytes, eight of the length, four of the key.
pub(super) const LONGEST_HEADER: usize = 14;

impl Default for Frames {
    fn default() -> Frames {
        Frames::new()
    }
}

impl Frames {
    /// Nothing read yet: the stream is at a boundary.
    pub fn new() -> Frames {
        Frames {
            left: 0,
            messages: 0,
            key: [0; 4],
            close: 0,
            step: Step::First,
            opcode: 0,
            code_seen: 0,
            last: false,
            masked: false,
            in_message: false,
            closed: false,
        }
    }

    /// Takes note of the bytes that come next.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let used = self.advance(rest);
            rest = rest.get(used..).unwrap_or_default();
        }
    }

    /// Takes note of `bytes` up to the next end of a frame, and says how many bytes that were: all of them if no frame
    /// ends in them or if the stream is opaque.
    pub fn feed_to_boundary(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            used += self.advance(rest);
            if self.is_at_boundary() {
                break;
            }
        }
        used
    }

    /// Takes note of `bytes` up to the end of a header, or to the byte that makes the stream opaque, and says how many
    /// bytes that were. For a stream that is not within a payload.
    pub(super) fn feed_to_header(&mut self, bytes: &[u8]) -> (usize, Option<Header>) {
        let mut used = 0;
        while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            used += self.advance(rest);
            match self.step {
                Step::Opaque => break,
                // A frame without a payload has ended already.
                Step::Payload | Step::First => {
                    return (used, Some(Header { opcode: self.opcode, last: self.last, length: self.left }));
                }
                _ => {}
            }
        }
        (used, None)
    }

    /// Whether the next byte is of a payload, or of nothing that is known.
    pub(super) fn is_past_header(&self) -> bool {
        matches!(self.step, Step::Payload | Step::Opaque)
    }

    /// Whether the bytes so far end with a whole frame, so that a control frame may follow (RFC 6455 section 5.4:
    /// also between the fragments of a message).
    pub fn is_at_boundary(&self) -> bool {
        self.step == Step::First
    }

    /// Whether the stream broke the protocol. It is not our place to end it, but nothing is known of it from there on.
    pub fn is_opaque(&self) -> bool {
        self.step == Step::Opaque
    }

    /// Whole messages, text or binary, however many frames they had.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// The status of the first Close frame; [`NO_STATUS`] if it had none; `None` before there was one.
    pub fn close_code(&self) -> Option<u16> {
        self.closed.then_some(self.close)
    }

    /// Reads one field of a header, or as much of a payload as there is. Uses at least one of the bytes, which are not
    /// empty.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        let Some(&byte) = bytes.first() else { return 0 };
        match self.step {
            Step::Opaque => return bytes.len(),
            Step::Payload => return self.payload(bytes),
            Step::First => self.first(byte),
            Step::Second => self.second(byte),
            Step::Length(left) => self.length(byte, left),
            Step::Key(left) => {
                let [_, b, c, d] = self.key;
                self.key = [b, c, d, byte];
                self.step = Step::Key(left.saturating_sub(1));
                if left <= 1 {
                    self.begin_payload();
                }
            }
        }
        1
    }

    fn first(&mut self, byte: u8) {
        self.last = byte & 0x80 != 0;
        self.opcode = byte & 0x0F;
        let fits = match self.opcode {
            CONTINUATION => self.in_message,
            TEXT | BINARY => !self.in_message,
            // RFC 6455 section 5.5: "All control frames MUST have a payload length of 125 bytes or less and MUST NOT
            // be fragmented."
            CLOSE | PING | PONG => self.last,
            _ => false,
        };
        self.step = if fits { Step::Second } else { Step::Opaque };
    }

    fn second(&mut self, byte: u8) {
        self.masked = byte & 0x80 != 0;
        self.left = u64::from(byte & 0x7F);
        let control = self.opcode >= CLOSE;
        match self.left {
            126 | 127 if control => self.step = Step::Opaque,
            // RFC 6455 section 5.5.1: "If there is a body, the first two bytes of the body MUST be a 2-byte unsigned
            // integer".
            1 if self.opcode == CLOSE => self.step = Step::Opaque,
            126 => self.extended_length(2),
            127 => self.extended_length(8),
            _ => self.begin_key(),
        }
    }

    fn extended_length(&mut self, bytes: u8) {
        self.left = 0;
        self.step = Step::Length(bytes);
    }

    fn length(&mut self, byte: u8, left: u8) {
        // RFC 6455 section 5.2: "the most significant bit MUST be 0".
        if left == 8 && byte & 0x80 != 0 {
            self.step = Step::Opaque;
            return;
        }
        self.left = self.left << 8 | u64::from(byte);
        self.step = Step::Length(left.saturating_sub(1));
        if left <= 1 {
            self.begin_key();
        }
    }

    fn begin_key(&mut self) {
        if self.masked {
            self.step = Step::Key(4);
        } else {
            self.key = [0; 4];
            self.begin_payload();
        }
    }

    fn begin_payload(&mut self) {
        self.step = Step::Payload;
        if self.left == 0 {
            if self.opcode == CLOSE && !self.closed {
                self.close = NO_STATUS;
                self.closed = true;
            }
            self.end();
        }
    }

    fn payload(&mut self, bytes: &[u8]) -> usize {
        let length = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if self.opcode == CLOSE && !self.closed {
            let key = self.key.into_iter().skip(usize::from(self.code_seen));
            for (byte, key) in bytes.iter().take(length).zip(key).take(2 - usize::from(self.code_seen)) {
                self.close = self.close << 8 | u16::from(byte ^ key);
                self.code_seen += 1;
            }
            self.closed = self.code_seen == 2;
        }
        self.left -= length as u64;
        if self.left == 0 {
            self.end();
        }
        length
    }

    fn end(&mut self) {
        self.step = Step::First;
        if self.opcode <= BINARY {
            self.in_message = !self.last;
            self.messages += u64::from(self.last);
        }
    }
}

/// A Close frame. A client's frames carry a `mask`, a server's do not (RFC 6455 section 5.1). Codes that must not be on
/// the wire (section 7.4.1: 1005, 1006 and 1015) become a Close without a status.
pub fn encode_close(code: u16, mask: Option<[u8; 4]>) -> Vec<u8> {
    let status = if matches!(code, 1005 | 1006 | 1015) { Vec::new() } else { code.to_be_bytes().to_vec() };
    let mut frame = vec![0x80 | CLOSE, status.len() as u8 | if mask.is_some() { 0x80 } else { 0 }];
    let key = mask.unwrap_or_default();
    frame.extend(mask.iter().flatten());
    frame.extend(status.iter().zip(key).map(|(byte, key)| byte ^ key));
    frame
}

/// A Ping of ours to a client: unmasked (RFC 6455 section 5.1).
pub(super) fn encode_ping(payload: [u8; 8]) -> Vec<u8> {
    [&[0x80 | PING, 8], &payload[..]].concat()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as an endpoint would write it.
    pub(crate) fn frame(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
        let bit = if mask.is_some() { 0x80 } else { 0 };
        let mut out = vec![first];
        match payload.len() {
            n @ 0..=125 => out.push(n as u8 | bit),
            n @ 126..=65535 => {
                out.push(126 | bit);
                out.extend((n as u16).to_be_bytes());
            }
            n => {
                out.push(127 | bit);
                out.extend((n as u64).to_be_bytes());
            }
        }
        let key = mask.unwrap_or_default();
        out.extend(mask.iter().flatten());
        out.extend(payload.iter().enumerate().map(|(i, b)| b ^ key[i % 4]));
        out
    }

    fn read(bytes: &[u8]) -> Frames {
        let mut frames = Frames::new();
        frames.feed(bytes);
        frames
    }

    #[test]
    fn the_state_is_small() {
        assert!(size_of::<Frames>() <= 40, "{} bytes", size_of::<Frames>());
    }

    #[test]
    fn messages_are_counted_whatever_their_frames() {
        let mut stream = Vec::new();
        stream.extend(frame(0x81, None, b"one"));
        stream.extend(frame(0x02, None, &[7; 300]));
        stream.extend(frame(0x89, None, b"ping between fragments"));
        stream.extend(frame(0x00, None, b""));
        stream.extend(frame(0x80, None, &[9; 70_000]));
        stream.extend(frame(0xC1, Some([1, 2, 3, 4]), b"compressed"));
        let frames = read(&stream);
        assert_eq!((frames.messages(), frames.is_at_boundary(), frames.close_code()), (3, true, None));
        assert!(!read(&stream[..stream.len() - 1]).is_at_boundary());
    }

    #[test]
    fn the_status_of_a_close_is_read_masked_or_not_and_split_anywhere() {
        for mask in [None, Some([0xA5, 0x5A, 1, 2])] {
            let frame = frame(0x88, mask, &[0x03, 0xE9, b'b', b'y', b'e', b'!']);
            for cut in 0..frame.len() {
                let mut frames = read(&frame[..cut]);
                frames.feed(&frame[cut..]);
                assert_eq!((frames.close_code(), frames.is_at_boundary()), (Some(1001), true));
            }
            assert_eq!(read(&encode_close(1012, mask)).close_code(), Some(1012));
            assert_eq!(read(&encode_close(1006, mask)).close_code(), Some(NO_STATUS));
        }
        assert_eq!(read(&[0x88, 0]).close_code(), Some(NO_STATUS));
        assert_eq!(read(&[0x88, 2, 3]).close_code(), None);
        assert_eq!(encode_close(1001, None), [0x88, 2, 0x03, 0xE9]);
    }

    #[test]
    fn nonsense_makes_the_stream_opaque() {
        let nonsense: [&[u8]; 9] = [
            &[0x83, 0],                        // reserved opcode
            &[0x8B, 0],                        // reserved control opcode
            &[0x09, 0],                        // fragmented ping
            &[0x89, 126],                      // ping of more than 125 bytes
            &[0x88, 1, 0],                     // half a status code
            &[0x82, 127, 0x80, 0, 0, 0, 0, 0], // 64 bit length with the high bit
            &[0x80, 0],                        // continuation of nothing
            &[0x01, 0, 0x81, 0],               // a new message inside a message
            b"GET / HTTP/1.1\r\n",
        ];
        for bytes in nonsense {
            let frames = read(bytes);
            assert!(frames.is_opaque() && !frames.is_at_boundary(), "{bytes:x?}");
        }
        assert!(!read(&[0x82, 127, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1]).is_opaque());
    }

    #[test]
    fn a_boundary_is_found_in_the_middle_of_a_slice() {
        let mut stream = frame(0x82, None, &[1; 200]);
        let end = stream.len();
        stream.extend(frame(0x81, None, b"next"));
        let mut frames = read(&stream[..50]);
        assert_eq!(frames.feed_to_boundary(&stream[50..]), end - 50);
        assert!(frames.is_at_boundary());
        assert_eq!(frames.feed_to_boundary(&stream[end..end + 3]), 3);
        assert!(!frames.is_at_boundary());
    }

    fn any_stream() -> impl Strategy<Value = Vec<u8>> {
        let mask = proptest::option::of(any::<[u8; 4]>());
        let one = (any::<u8>(), mask, prop_oneof![0..130usize, 60_000..70_000usize])
            .prop_map(|(first, mask, length)| frame(first, mask, &vec![first; length]));
        let sane = (prop_oneof![Just(0x81), Just(0x82), Just(0x89), Just(0x88)], any::<[u8; 4]>(), 2..126usize)
            .prop_map(|(first, mask, length)| frame(first, Some(mask), &vec![first; length]));
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            proptest::collection::vec(one, 0..4).prop_map(|v| v.concat()),
            proptest::collection::vec(sane, 0..20).prop_map(|v| v.concat()),
        ]
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_result(stream in any_stream(), cuts in proptest::collection::vec(any::<u16>(), 0..12)) {
            let whole = read(&stream);
            let mut cuts: Vec<usize> = cuts.iter().map(|c| usize::from(*c) % (stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let mut split = Frames::new();
            let mut walked = Frames::new();
            for pair in cuts.windows(2) {
                let slice = &stream[pair[0]..pair[1]];
                split.feed(slice);
                let mut at = 0;
                while at < slice.len() {
                    let used = walked.feed_to_boundary(&slice[at..]);
                    prop_assert!(used > 0);
                    at += used;
                }
            }
            prop_assert_eq!(&whole, &split);
            prop_assert_eq!(&whole, &walked);
            let mut bytewise = Frames::new();
            stream.iter().for_each(|b| bytewise.feed(&[*b]));
            prop_assert_eq!(&whole, &bytewise);
        }
    }
}
