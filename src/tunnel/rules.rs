//! What a client may send through a tunnel, and the gate that holds it to that. Pure: it is shown the client's bytes
//! and says which of them go on.
//!
//! A message is measured as it is on the wire: compressed, where the endpoints have agreed on permessage-deflate. The
//! gate decides on a frame when its header is whole, so a header is held back until then, and so is a Pong that may be
//! the answer to a Ping of ours. Everything else passes in place. A stream that stops being WebSocket cannot be held to
//! a limit: it is refused where there is one, and passes where there is none.

use std::time::Duration;

use tokio::time::Instant;

use super::frames::{CLOSE, CONTINUATION, Frames, Header, LONGEST_HEADER, PONG};
use super::pulse::Pulse;
use crate::base::rate::Rate;

/// The rules for the client of one tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// Bytes of one message over all its fragments, as they are on the wire.
    pub max_message: Option<u64>,
    /// Messages, control frames, and fragments of less than 126 bytes before the last.
    pub message_rate: Option<Rate>,
    /// How long a client may be silent before it is asked whether it lives, and how long it may take to answer.
    pub ping_interval: Option<Duration>,
}

impl Rules {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Rules::default()
    }
}

/// What a client did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A message over [`Rules::max_message`].
    TooLarge,
    /// More than [`Rules::message_rate`].
    TooFast,
    /// Something that is not WebSocket.
    BadFrames,
}

impl Violation {
    /// What is said to both sides (RFC 6455 section 7.4.1).
    pub fn code(self) -> u16 {
        match self {
            Violation::TooLarge => 1009,
            Violation::TooFast => 1008,
            Violation::BadFrames => 1002,
        }
    }
}

/// A fragment of less is counted, so that a message cannot be a flood of tiny frames.
const SMALL_FRAGMENT: u64 = 126;

/// The rules at work on one stream.
#[derive(Debug)]
pub struct Gate {
    max_message: Option<u64>,
    /// Bytes of the current message.
    message: u64,
    bucket: Option<Bucket>,
    pub(super) pulse: Option<Pulse>,
    held: Held,
    violation: Option<Violation>,
    /// The client has sent a Close frame.
    closed: bool,
}

/// The bytes of a frame that is not decided on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    bytes: [u8; LONGEST_HEADER],
    length: u8,
}

/// What [`Gate::sift`] says about the front of a slice.
#[derive(Debug, Default)]
pub struct Sifted {
    /// So many bytes of the slice are decided on; the rest is to be shown again.
    pub used: usize,
    /// So many of them go on, as they are;
    pub pass: usize,
    /// and behind them this, which was held back.
    pub release: Held,
}

impl Gate {
    /// A gate for a stream that begins. `nonce` is random, to tell our Pings from others; without one none is sent.
    pub fn new(rules: Rules, nonce: Option<[u8; 4]>, now: Instant) -> Gate {
        Gate {
            max_message: rules.max_message,
            message: 0,
            bucket: rules.message_rate.map(|rate| Bucket::new(rate, now)),
            pulse: rules.ping_interval.zip(nonce).map(|(interval, nonce)| Pulse::new(interval, nonce, now)),
            held: Held::default(),
            violation: None,
            closed: false,
        }
    }

    /// Sees the client's next `bytes`. With `one_frame` it goes no further than the end of a frame. Behind a violation
    /// nothing passes.
    pub fn sift(&mut self, frames: &mut Frames, bytes: &[u8], now: Instant, one_frame: bool) -> Sifted {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty() && self.violation.is_none()) {
            if frames.is_past_header() {
                if !self.held.is_empty() {
                    return self.sift_pong(frames, rest, now);
                }
                at += frames.feed_to_boundary(rest);
            } else {
                let (used, header) = frames.feed_to_header(rest);
                let own = header.is_some_and(|header| self.may_be_own(header));
                let verdict = if own { Ok(()) } else { self.judge(header, frames, now) };
                if let Err(violation) = verdict {
                    self.violation = Some(violation);
                    self.held = Held::default();
                    return Sifted { used: at + used, pass: at, release: Held::default() };
                }
                let undecided = own || header.is_none() && !frames.is_opaque();
                if undecided || !self.held.is_empty() {
                    self.held.extend(rest.get(..used).unwrap_or_default());
                    let release = if undecided { Held::default() } else { std::mem::take(&mut self.held) };
                    return Sifted { used: at + used, pass: at, release };
                }
                at += used;
            }
            if one_frame && frames.is_at_boundary() {
                break;
            }
        }
        Sifted { used: at, pass: at, release: Held::default() }
    }

    /// Whether what was passed on ends with a whole frame, though the stream is within another.
    pub fn holds_back(&self) -> bool {
        !self.held.is_empty() || self.violation.is_some()
    }

    /// The violation that closed the gate.
    pub fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// What is held back, once nothing follows.
    pub fn release(&mut self) -> Held {
        std::mem::take(&mut self.held)
    }

    /// The rest of a Pong that may be ours.
    fn sift_pong(&mut self, frames: &mut Frames, bytes: &[u8], now: Instant) -> Sifted {
        let used = frames.feed_to_boundary(bytes);
        self.held.extend(bytes.get(..used).unwrap_or_default());
        let mut sifted = Sifted { used, ..Sifted::default() };
        if !frames.is_at_boundary() {
            return sifted;
        }
        let held = std::mem::take(&mut self.held);
        if !self.is_own(held) {
            match self.count(now) {
                Ok(()) => sifted.release = held,
                Err(violation) => self.violation = Some(violation),
            }
        }
        sifted
    }

    /// Whether a frame with this header has to be seen whole. Its length alone says that the held bytes have room.
    fn may_be_own(&self, header: Header) -> bool {
        self.pulse.is_some() && header.opcode == PONG && header.length == 8
    }

    /// A Pong of ours is masked, has no reserved bit, and its length is written in one byte.
    fn is_own(&mut self, held: Held) -> bool {
        let [0x8A, 0x88, k0, k1, k2, k3, payload @ ..] = held.bytes else { return false };
        let mut unmasked = payload;
        for (byte, key) in unmasked.iter_mut().zip([k0, k1, k2, k3].into_iter().cycle()) {
            *byte ^= key;
        }
        usize::from(held.length) == LONGEST_HEADER && self.pulse.as_mut().is_some_and(|pulse| pulse.takes(unmasked))
    }

    /// Decides on a frame by its header; `None` is a header that is not whole, or none.
    fn judge(&mut self, header: Option<Header>, frames: &Frames, now: Instant) -> Result<(), Violation> {
        let Some(Header { opcode, last, length }) = header else {
            let limited = self.max_message.is_some() || self.bucket.is_some();
            return if limited && frames.is_opaque() { Err(Violation::BadFrames) } else { Ok(()) };
        };
        let counts = match opcode {
            CONTINUATION => !last && length < SMALL_FRAGMENT,
            // Saying goodbye is always allowed.
            CLOSE => std::mem::replace(&mut self.closed, true),
            _ => true,
        };
        if opcode < CLOSE {
            self.message = if opcode == CONTINUATION { self.message.saturating_add(length) } else { length };
            if self.max_message.is_some_and(|max| self.message > max) {
                return Err(Violation::TooLarge);
            }
        }
        if counts { self.count(now) } else { Ok(()) }
    }

    fn count(&mut self, now: Instant) -> Result<(), Violation> {
        let has_room = self.bucket.as_mut().is_none_or(|bucket| bucket.take(now));
        if has_room { Ok(()) } else { Err(Violation::TooFast) }
    }
}

impl Held {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn extend(&mut self, more: &[u8]) {
        for byte in more {
            if let Some(place) = self.bytes.get_mut(usize::from(self.length)) {
                *place = *byte;
                self.length += 1;
            }
        }
    }
}

/// So many at once, and then one each time that one takes (the generic cell rate algorithm).
#[derive(Debug)]
struct Bucket {
    /// What one takes.
    interval: Duration,
    /// How far ahead of its time a client may be.
    ahead: Duration,
    /// When all that was taken has had its time.
    settled: Instant,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Bucket {
        let interval = rate.interval();
        Bucket { interval, ahead: rate.per.saturating_sub(interval), settled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let settled = self.settled.max(now);
        if settled.saturating_duration_since(now) > self.ahead {
            return false;
        }
        self.settled = super::after(settled, self.interval);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frames::tests::frame;
    use super::*;

    const KEY: [u8; 4] = [0xA5, 1, 0x5A, 2];

    /// What a back end gets of `stream` cut at `cuts`, and how the gate ended.
    fn sift(rules: Rules, pings: u32, stream: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<Violation>) {
        let now = Instant::now();
        let mut gate = Gate::new(rules, Some([1, 2, 3, 4]), now);
        for _ in 0..pings {
            gate.pulse.as_mut().unwrap().ask();
        }
        let mut frames = Frames::new();
        let mut got = Vec::new();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            let mut rest = &stream[pair[0]..pair[1]];
            while !rest.is_empty() && gate.violation().is_none() {
                let sifted = gate.sift(&mut frames, rest, now, false);
                assert!(sifted.used > 0 && sifted.pass <= sifted.used);
                got.extend(&rest[..sifted.pass]);
                got.extend(sifted.release.as_slice());
                rest = &rest[sifted.used..];
            }
        }
        got.extend(gate.release().as_slice());
        (got, gate.violation())
    }

    fn own(count: u8) -> Vec<u8> {
        frame(0x8A, Some(KEY), &[1, 2, 3, 4, 0, 0, 0, count])
    }

    fn max(bytes: u64) -> Rules {
        Rules { max_message: Some(bytes), ..Rules::default() }
    }

    fn rate(text: &str) -> Rules {
        Rules { message_rate: Some(Rate::parse(text).unwrap()), ..Rules::default() }
    }

    fn ping() -> Rules {
        Rules { ping_interval: Some(Duration::from_secs(30)), ..Rules::default() }
    }

    #[test]
    fn the_gate_is_small() {
        assert!(size_of::<Gate>() <= 192, "{} bytes", size_of::<Gate>());
    }

    #[test]
    fn a_message_is_measured_over_all_its_fragments_and_stops_at_the_header_that_is_too_much() {
        let first = frame(0x02, Some(KEY), &[7; 600]);
        let ping = frame(0x89, Some(KEY), &[9; 100]);
        let fits = frame(0x80, Some(KEY), &[7; 400]);
        let over = frame(0x80, Some(KEY), &[7; 401]);
        let good = [&first[..], &ping, &fits].concat();
        assert_eq!(sift(max(1000), 0, &good, &[]), (good.clone(), None));
        let bad = [&good[..], &first, &ping, &over].concat();
        let passed = [&good[..], &first, &ping].concat();
        for cut in 0..bad.len() {
            assert_eq!(sift(max(1000), 0, &bad, &[cut]), (passed.clone(), Some(Violation::TooLarge)), "cut at {cut}");
        }
        // Before a byte of the payload has come.
        let huge = [0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4];
        assert_eq!(sift(max(u64::MAX / 2 - 1), 0, &huge, &[]), (Vec::new(), Some(Violation::TooLarge)));
        // Lengths that add up to more than there are numbers.
        let mut gate = Gate::new(max(u64::MAX - 1), None, Instant::now());
        gate.message = u64::MAX - 5;
        let more = Header { opcode: CONTINUATION, last: false, length: 300 };
        assert_eq!(gate.judge(Some(more), &Frames::new(), Instant::now()), Err(Violation::TooLarge));
    }

    #[test]
    fn messages_control_frames_and_tiny_fragments_count() {
        let text = frame(0x81, Some(KEY), b"x");
        let three = [&text[..], &frame(0x89, Some(KEY), b""), &frame(0x8A, Some(KEY), b"12345678")].concat();
        assert_eq!(sift(rate("3/s"), 0, &three, &[]), (three.clone(), None));
        let four = [&three[..], &text].concat();
        assert_eq!(sift(rate("3/s"), 0, &four, &[]), (three.clone(), Some(Violation::TooFast)));
        // Whoever has had enough may say so.
        let goodbye = [&three[..], &frame(0x88, Some(KEY), b"")].concat();
        assert_eq!(sift(rate("3/s"), 0, &goodbye, &[]), (goodbye.clone(), None));
        let twice = [&goodbye[..], &frame(0x88, Some(KEY), b"")].concat();
        assert_eq!(sift(rate("3/s"), 0, &twice, &[]), (goodbye, Some(Violation::TooFast)));
        // One message in large fragments is one; in tiny ones it is a flood.
        let large =
            [frame(2, Some(KEY), &[1; 200]), frame(0, Some(KEY), &[1; 200]).repeat(9), frame(0x80, Some(KEY), b"")];
        assert_eq!(sift(rate("1/s"), 0, &large.concat(), &[]).1, None);
        let tiny = [frame(2, Some(KEY), b"x"), frame(0, Some(KEY), b"").repeat(9)].concat();
        assert_eq!(sift(rate("9/s"), 0, &tiny, &[]).1, Some(Violation::TooFast));
        assert_eq!(sift(rate("10/s"), 0, &tiny, &[]).1, None);
    }

    #[test]
    fn a_bucket_fills_again_at_its_rate() {
        let start = Instant::now();
        for (text, count) in [("1/s", 1), ("3/s", 3), ("7/m", 7), ("600/m", 600), ("1000000/s", 1_000_000)] {
            let rate = Rate::parse(text).unwrap();
            let mut bucket = Bucket::new(rate, start);
            let taken = (0..count + 5).filter(|_| bucket.take(start)).count();
            assert_eq!(taken, count, "{text}: all at once");
            let later = start + rate.interval() * 2;
            assert_eq!((0..5).filter(|_| bucket.take(later)).count(), count.min(2), "{text}: two more");
            let idle = start + rate.per * 9;
            assert_eq!((0..count + 5).filter(|_| bucket.take(idle)).count(), count, "{text}: no more than a burst");
        }
    }

    #[test]
    fn what_is_not_websocket_passes_without_a_limit_and_not_with_one() {
        let text = frame(0x81, Some(KEY), b"fine");
        for nonsense in
            [&b"\x83\x80"[..], b"\x09\x80", b"\x89\xFE", b"\x82\xFF\x80", b"\x80\x80", b"GET / HTTP/1.1\r\n"]
        {
            let stream = [&text[..], nonsense, &[0; 50]].concat();
            for cut in 0..stream.len() {
                assert_eq!(sift(ping(), 0, &stream, &[cut]), (stream.clone(), None));
                for rules in [max(100), rate("9/s")] {
                    assert_eq!(sift(rules, 0, &stream, &[cut]), (text.clone(), Some(Violation::BadFrames)));
                }
            }
        }
    }

    #[test]
    fn our_pong_is_taken_out_once_and_any_other_goes_on() {
        let text = frame(0x01, Some(KEY), b"frag");
        let others = [
            frame(0x8A, Some(KEY), b"12345678"),
            frame(0x8A, Some(KEY), b""),
            frame(0x8A, Some(KEY), &[1, 2, 3, 4, 0, 0, 0, 3]),
            frame(0xCA, Some(KEY), &[1, 2, 3, 4, 0, 0, 0, 2]),
            frame(0x8A, None, &[1, 2, 3, 4, 0, 0, 0, 2]),
            frame(0x89, Some(KEY), &[1, 2, 3, 4, 0, 0, 0, 2]),
        ]
        .concat();
        let stream = [&text[..], &own(1), &others, &own(2), &own(2), &text[..1]].concat();
        let seen = [&text[..], &others, &own(2), &text[..1]].concat();
        for cut in 0..stream.len() {
            for second in [cut, cut + 1, cut + 7] {
                assert_eq!(sift(ping(), 2, &stream, &[cut, second]), (seen.clone(), None));
            }
        }
        assert_eq!(sift(Rules::default(), 0, &stream, &[]).0, stream, "who does not ask takes nothing out");
    }

    #[test]
    fn our_pong_does_not_count() {
        let rules = Rules { ping_interval: Some(Duration::from_secs(1)), ..rate("1/s") };
        let text = frame(0x81, Some(KEY), b"x");
        let stream = [&own(1)[..], &own(2), &text].concat();
        assert_eq!(sift(rules, 2, &stream, &[]), (text.clone(), None));
        let stream = [&text[..], &own(1), &own(1)].concat();
        assert_eq!(sift(rules, 2, &stream, &[]), (text, Some(Violation::TooFast)), "the second is not ours");
    }

    fn any_stream() -> impl Strategy<Value = Vec<u8>> {
        let mask = proptest::option::weighted(0.9, any::<[u8; 4]>());
        let first = prop_oneof![
            Just(0x81),
            Just(0x01),
            Just(0x00),
            Just(0x80),
            Just(0x89),
            Just(0x8A),
            Just(0x88),
            any::<u8>()
        ];
        let one = (first, mask, prop_oneof![0..20usize, 120..130usize, 65_530..65_540usize])
            .prop_map(|(first, mask, length)| frame(first, mask, &vec![first; length]));
        let ours = (1..6u8, any::<[u8; 4]>()).prop_map(|(n, key)| frame(0x8A, Some(key), &[1, 2, 3, 4, 0, 0, 0, n]));
        let noise = proptest::collection::vec(any::<u8>(), 0..20);
        let pieces = prop_oneof![6 => one, 3 => ours, 1 => noise];
        proptest::collection::vec(pieces, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_split_of_a_stream_is_judged_alike(
            stream in any_stream(),
            cuts in proptest::collection::vec(any::<usize>(), 0..12),
            max_message in proptest::option::of(0..70_000u64),
            count in proptest::option::of(1..20u32),
            ping in any::<bool>(),
        ) {
            let rules = Rules {
                max_message,
                message_rate: count.map(|count| Rate { count, per: Duration::from_secs(60) }),
                ping_interval: ping.then_some(Duration::from_secs(30)),
            };
            let pings = if ping { 4 } else { 0 };
            let whole = sift(rules, pings, &stream, &[]);
            prop_assert_eq!(&sift(rules, pings, &stream, &cuts), &whole);
            let bytewise: Vec<usize> = (0..stream.len().min(300)).collect();
            prop_assert_eq!(&sift(rules, pings, &stream, &bytewise), &whole);
            if rules.is_empty() {
                prop_assert_eq!(&whole.0, &stream);
            }
        }

        #[test]
        fn what_is_sifted_is_what_remains_without_our_pongs(
            pieces in proptest::collection::vec((any::<bool>(), 0..40usize), 0..20),
            cuts in proptest::collection::vec(any::<usize>(), 0..20),
        ) {
            let (mut stream, mut plain, mut pings) = (Vec::new(), Vec::new(), 0);
            for (ours, length) in pieces {
                if ours {
                    pings += 1;
                    stream.extend(own(pings));
                } else {
                    let other = frame(if length % 2 == 0 { 0x82 } else { 0x8A }, Some(KEY), &vec![7; length]);
                    stream.extend(&other);
                    plain.extend(other);
                }
            }
            prop_assert_eq!(sift(ping(), u32::from(pings), &stream, &cuts), (plain, None));
        }
    }
}
