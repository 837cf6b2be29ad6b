//! Counts the frames of an HTTP/2 connection by their nine-byte headers (RFC 9113, section 4.1), so that a client
//! cannot keep the machine busy with frames that ask for nothing. The h2 library bounds CONTINUATION, header lists and
//! most resets itself; control frames it takes without end.

use std::time::{Duration, Instant};

/// Control frames that one connection may send within [`WINDOW`].
pub const MOST_CONTROL_FRAMES: u32 = 5_000;

/// The same for a trusted proxy: it carries the requests of many on one connection, and passes on what they give up.
pub const MOST_OF_A_PROXY: u32 = 10 * MOST_CONTROL_FRAMES;

/// The time over which control frames are counted.
pub const WINDOW: Duration = Duration::from_secs(10);

/// A stream that is reset, by whichever side, counts as so many control frames: there was work to do for it.
const RESET_COSTS: u32 = 5;

/// A request with more fields than the limits allow counts as so many control frames: a few bytes that name entries of
/// a table may have become all of them. On HTTP/1.1 it ends the connection at once.
const OVERSIZE_COSTS: u32 = 50;

/// Bytes in a control frame for which it counts as one more: they are decrypted and thrown away.
const COSTS_ONE: u32 = 1024;

/// DATA frames shorter than this are crumbs: what the h2 library keeps beside the content of one that waits is 256
/// bytes, and up to 256 of its bytes may be padding.
const CRUMB: u32 = 512;

/// Control frames for which one piece of an answer pays: the simplest clients grant window for each frame that they take,
/// for the stream and for the connection. A piece is what a back end sent at once. How many frames it becomes is the
/// client's choice, who may grant one byte of window at a time. The fields that end an answer pay the same: clients that
/// do not know where their content ends send an empty DATA frame. No piece may pay for the reset of the stream that it was
/// for, as it is then left over for another frame.
const PAID_BY_PIECE: u32 = 2;

/// Bytes in a DATA frame that pay for one control frame more: clients with the smallest of buffers grant window for every
/// 512 bytes, twice.
const PAYS_FOR_ONE: u32 = 256;

const PREFACE: u64 = 24;
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What becomes frames to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Content that a back end sent at once.
    Content,
    /// The fields that end an answer: a head without content, or trailers.
    LastFields,
}

/// The frames of one connection.
#[derive(Debug)]
pub struct FrameCounter {
    received: Scanner,
    sent: Scanner,
    most: u32,
    control: u32,
    crumbs: u32,
    /// Nothing but CONTINUATION may follow (RFC 9113, section 6.10).
    in_fields: bool,
    /// Frames that have begun, without CONTINUATION and what follows one.
    begun: u64,
    since: Instant,
}

/// Too many control frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {most} control frames within {} seconds", WINDOW.as_secs())]
pub struct TooManyFrames {
    /// How many there may be.
    pub most: u32,
    /// Bytes of those that were counted last which are in front of the place between two frames where it was noticed.
    pub passed: usize,
}

impl FrameCounter {
    /// A counter at the start of a connection, in front of the preface; `most` control frames may come within
    /// [`WINDOW`].
    pub fn new(now: Instant, most: u32) -> FrameCounter {
        FrameCounter {
            received: Scanner::behind(PREFACE),
            sent: Scanner::behind(0),
            most,
            control: 0,
            crumbs: 0,
            in_fields: false,
            begun: 0,
            since: now,
        }
    }

    /// What is wrong when there are more than there may be; `passed` as in [`TooManyFrames`].
    pub fn too_many(&self, passed: usize) -> TooManyFrames {
        TooManyFrames { most: self.most, passed }
    }

    /// Counts the frames whose headers are in `bytes`; `now` is when they arrived.
    pub fn count(&mut self, bytes: &[u8], now: Instant) -> Result<(), TooManyFrames> {
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.since = now;
            self.control = 0;
        }
        let mut rest = bytes;
        loop {
            self.received.skip(&mut rest);
            if self.control > self.most && self.received.is_between() && !self.in_fields {
                return Err(self.too_many(bytes.len() - rest.len()));
            }
            let Some(frame) = self.received.next(&mut rest) else { return Ok(()) };
            self.note_received(&frame);
        }
    }

    /// What the client has begun and not ended, by its number: the preface with the first frame behind it, a header list, a
    /// frame that is not of a body. Nothing else can come meanwhile.
    pub fn midway(&self) -> Option<u64> {
        let in_body = self.received.in_data && self.received.have == 0;
        let is_free = self.received.is_between() || in_body;
        (self.begun == 0 || self.in_fields || !is_free).then_some(self.begun)
    }

    fn note_received(&mut self, frame: &Header) {
        self.begun += u64::from(frame.kind != CONTINUATION);
        let costs = match frame.kind {
            // HEADERS and DATA with content are progress and have limits of their own.
            HEADERS => 0,
            DATA if frame.length > 0 => {
                let crumb = frame.length < CRUMB && frame.flags & END_STREAM == 0;
                self.crumbs = self.crumbs.saturating_add(u32::from(crumb));
                0
            }
            RESET => RESET_COSTS,
            // What it carries is bounded with the header list.
            CONTINUATION => 1,
            _ => 1 + frame.length / COSTS_ONE,
        };
        if matches!(frame.kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
            self.in_fields = frame.flags & END_HEADERS == 0;
        }
        self.control = self.control.saturating_add(costs);
    }

    /// Notes that `requests` came which had more fields than the limits allow.
    pub fn note_oversize(&mut self, requests: u32) {
        self.control = self.control.saturating_add(requests.saturating_mul(OVERSIZE_COSTS));
    }

    /// Notes that the first `written` bytes of `slices` went to the client, who has to grant window for the content of
    /// DATA. `take` says whether there is a piece of an answer that was not taken for an earlier frame.
    pub fn note_sent<'a>(
        &mut self,
        slices: impl IntoIterator<Item = &'a [u8]>,
        mut written: usize,
        mut take: impl FnMut(Piece) -> bool,
    ) {
        for slice in slices {
            let mut sent = slice.get(..written).unwrap_or(slice);
            written -= sent.len();
            while let Some(frame) = self.sent.next(&mut sent) {
                let ends = frame.flags & END_STREAM != 0;
                match frame.kind {
                    DATA => {
                        let piece = if frame.length > 0 && take(Piece::Content) { PAID_BY_PIECE } else { 0 };
                        // A stream that was answered may be reset: the work was not for nothing. No DATA is the
                        // library's own.
                        let whole = if ends { RESET_COSTS } else { 0 };
                        self.pay(piece + whole + frame.length / PAYS_FOR_ONE);
                    }
                    HEADERS if ends && take(Piece::LastFields) => self.pay(PAID_BY_PIECE),
                    // The h2 library itself says 431 to a header list that is too long.
                    HEADERS if ends => self.note_oversize(1),
                    RESET => self.control = self.control.saturating_add(RESET_COSTS),
                    _ => {}
                }
            }
        }
    }

    fn pay(&mut self, frames: u32) {
        self.control = self.control.saturating_sub(frames);
    }

    /// Whether so many crumbs came since this was true last that who reads them should have a turn.
    pub fn has_crumbs(&mut self, most: u32) -> bool {
        let has = self.crumbs >= most;
        if has {
            self.crumbs = 0;
        }
        has
    }
}

/// Finds the headers in one direction.
#[derive(Debug)]
struct Scanner {
    header: [u8; HEADER],
    have: u8,
    skip: u64,
    /// What is skipped is of DATA.
    in_data: bool,
}

struct Header {
    length: u32,
    kind: u8,
    flags: u8,
}

impl Scanner {
    fn behind(skip: u64) -> Scanner {
        Scanner { header: [0; HEADER], have: 0, skip, in_data: false }
    }

    /// Moves `bytes` behind what is left of a frame.
    fn skip(&mut self, bytes: &mut &[u8]) {
        let skipped = usize::try_from(self.skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
        self.skip -= skipped as u64;
        *bytes = bytes.get(skipped..).unwrap_or_default();
    }

    /// Whether a frame has ended and none has begun.
    fn is_between(&self) -> bool {
        self.skip == 0 && self.have == 0
    }

    /// The next header that ends in `bytes`, which go on behind it.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Header> {
        self.skip(bytes);
        while let Some((byte, rest)) = bytes.split_first() {
            *self.header.get_mut(usize::from(self.have))? = *byte;
            *bytes = rest;
            self.have += 1;
            if usize::from(self.have) == HEADER {
                let [l0, l1, l2, kind, flags, ..] = self.header;
                let length = u32::from_be_bytes([0, l0, l1, l2]);
                (self.have, self.skip, self.in_data) = (0, u64::from(length), kind == DATA);
                return Some(Header { length, kind, flags });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOD: Result<(), TooManyFrames> = Err(TooManyFrames { most: MOST_CONTROL_FRAMES, passed: 0 });

    fn stream(count: usize, kind: u8) -> Vec<u8> {
        [vec![0; 24], frames(count, kind, 8)].concat()
    }

    fn frames(count: usize, kind: u8, length: u16) -> Vec<u8> {
        let [l0, l1] = length.to_be_bytes();
        let flags = if kind == HEADERS { END_HEADERS } else { 0 };
        [vec![0, l0, l1, kind, flags, 0, 0, 0, 0], vec![0; usize::from(length)]].concat().repeat(count)
    }

    /// Of a connection that sent `bytes` behind its preface; where the flood was noticed does not matter.
    fn verdict(counter: &mut FrameCounter, bytes: &[u8]) -> Result<(), TooManyFrames> {
        let since = counter.since;
        counter.count(bytes, since).map_err(|_| counter.too_many(0))
    }

    fn fresh() -> FrameCounter {
        let mut counter = FrameCounter::new(Instant::now(), MOST_CONTROL_FRAMES);
        verdict(&mut counter, &stream(0, 0)).unwrap();
        counter
    }

    #[test]
    fn a_flood_of_pings_ends_and_data_does_not_count() {
        assert_eq!(verdict(&mut fresh(), &frames(5_000, 6, 8)), Ok(()));
        assert_eq!(verdict(&mut fresh(), &frames(5_001, 6, 8)), FLOOD);
        assert_eq!(verdict(&mut fresh(), &frames(20_000, DATA, 8)), Ok(()));
        assert_eq!(verdict(&mut fresh(), &frames(20_000, HEADERS, 8)), Ok(()));
        assert_eq!(verdict(&mut fresh(), &frames(5_001, DATA, 0)), FLOOD);
    }

    #[test]
    fn a_proxy_may_send_ten_times_as_many() {
        let proxy = || {
            let mut counter = FrameCounter::new(Instant::now(), MOST_OF_A_PROXY);
            verdict(&mut counter, &stream(0, 0)).unwrap();
            counter
        };
        assert_eq!(verdict(&mut proxy(), &frames(10_000, RESET, 4)), Ok(()));
        let flood = verdict(&mut proxy(), &frames(10_001, RESET, 4)).unwrap_err();
        assert_eq!(flood.to_string(), "more than 50000 control frames within 10 seconds");
    }

    #[test]
    fn long_frames_of_no_use_cost_more() {
        assert_eq!(verdict(&mut fresh(), &frames(294, 0xbb, 16_384)), Ok(()));
        assert_eq!(verdict(&mut fresh(), &frames(295, 0xbb, 16_384)), FLOOD);
    }

    #[test]
    fn the_place_of_a_flood_is_between_two_frames_and_not_among_the_fields_of_a_request() {
        let now = Instant::now();
        let flood = [stream(5_001, 6), frames(7, 6, 8)].concat();
        let place = 24 + 5_001 * 17;
        for size in [1, 5, 16, 17, 18, 1000, flood.len()] {
            let mut counter = FrameCounter::new(now, MOST_CONTROL_FRAMES);
            let mut at = 0;
            let found = flood.chunks(size).find_map(|part| {
                let found = counter.count(part, now).err().map(|too_many| at + too_many.passed);
                at += part.len();
                found
            });
            assert_eq!(found, Some(place), "{size}");
        }
        let request = [&[0, 0, 1, HEADERS, 0, 0, 0, 0, 1, 7][..], &frames(3, CONTINUATION, 0)].concat();
        let last = [0, 0, 0, CONTINUATION, END_HEADERS, 0, 0, 0, 1];
        let mut counter = fresh();
        verdict(&mut counter, &frames(4_999, 6, 8)).unwrap();
        assert_eq!(counter.count(&request, now), Ok(()));
        assert_eq!(counter.count(&[&last[..], &[0]].concat(), now), Err(counter.too_many(9)));
    }

    #[test]
    fn a_stream_may_be_reset_a_thousand_times_and_more_often_when_it_was_answered() {
        let resets = |count: usize, sent: &[u8]| {
            let mut counter = fresh();
            (0..count).try_for_each(|_| {
                counter.note_sent([sent], usize::MAX, |_| false);
                verdict(&mut counter, &frames(1, RESET, 4))
            })
        };
        assert_eq!((resets(1_000, &[]), resets(1_001, &[])), (Ok(()), FLOOD));
        let answered = [0, 0, 1, DATA, END_STREAM, 0, 0, 0, 1, 7];
        assert_eq!(resets(5_000, &answered), Ok(()));
        // What the server resets counts as well, and so do requests with too many fields.
        assert_eq!((resets(500, &frames(1, RESET, 4)), resets(501, &frames(1, RESET, 4))), (Ok(()), FLOOD));
        let mut counter = fresh();
        counter.note_oversize(100);
        assert_eq!(verdict(&mut counter, &frames(1, HEADERS, 8)), Ok(()));
        counter.note_oversize(1);
        assert_eq!(verdict(&mut counter, &frames(1, HEADERS, 8)), FLOOD);
    }

    #[test]
    fn every_end_of_an_answer_pays_for_the_empty_end_of_its_request() {
        let ends = |sent: &[u8]| {
            let mut counter = fresh();
            (0..20_000).try_for_each(|_| {
                counter.note_sent([sent], usize::MAX, |_| true);
                verdict(&mut counter, &frames(1, DATA, 0))
            })
        };
        let (fields, content) = ([0, 0, 1, HEADERS, 5, 0, 0, 0, 1, 7], [0, 0, 0, DATA, END_STREAM, 0, 0, 0, 1]);
        assert_eq!((ends(&fields), ends(&content), ends(&[])), (Ok(()), Ok(()), FLOOD));
        let mut counter = fresh();
        for _ in 0..5_000 {
            counter.note_sent([&content[..]], usize::MAX, |_| false);
            verdict(&mut counter, &frames(1, RESET, 4)).unwrap();
        }
    }

    #[test]
    fn what_a_reset_stream_has_left_over_costs_more_than_it_pays() {
        let answer = [0, 0, 1, HEADERS, END_HEADERS | END_STREAM, 0, 0, 0, 1, 7];
        let mut counter = fresh();
        let flood = (0..2_000).try_for_each(|_| {
            // A request for a head is reset, and one with too many fields takes its place.
            verdict(&mut counter, &[frames(1, HEADERS, 8), frames(1, RESET, 4), frames(1, HEADERS, 8)].concat())?;
            counter.note_sent([&answer[..]], usize::MAX, |_| true);
            Ok(())
        });
        assert_eq!(flood, FLOOD);
    }

    #[test]
    fn an_answer_of_the_library_itself_is_one_to_too_many_fields() {
        let answer = [0, 0, 1, HEADERS, END_HEADERS | END_STREAM, 0, 0, 0, 1, 7];
        let answered = |by_us: bool| {
            let mut counter = fresh();
            (0..1000).try_for_each(|_| {
                counter.note_sent([&answer[..]], usize::MAX, |piece| by_us && piece == Piece::LastFields);
                verdict(&mut counter, &frames(1, HEADERS, 8))
            })
        };
        assert_eq!((answered(true), answered(false)), (Ok(()), FLOOD));
    }

    #[test]
    fn a_client_that_takes_much_may_grant_much_window_and_one_that_pings_may_not() {
        let (mut download, mut pings) = (fresh(), fresh());
        for _ in 0..10_000 {
            download.note_sent([&frames(1, DATA, 16_384)[..]], usize::MAX, |_| false);
            verdict(&mut download, &frames(8, 8, 4)).unwrap();
        }
        let flood = (0..20_000).try_for_each(|_| {
            pings.note_sent([&frames(1, 6, 8)[..]], usize::MAX, |_| true);
            verdict(&mut pings, &frames(1, 6, 8))
        });
        assert_eq!(flood, FLOOD);
    }

    #[test]
    fn a_client_may_grant_window_twice_for_each_piece_that_it_takes() {
        let paid = |updates: usize, pieces: bool| {
            let mut counter = fresh();
            (0..20_000).try_for_each(|_| {
                // In two pieces, as a transport may take them.
                let sent = frames(1, DATA, 1);
                counter.note_sent([&sent[..3], &sent[3..]], 5, |_| pieces);
                counter.note_sent([&sent[5..8], &sent[8..]], 5, |_| pieces);
                verdict(&mut counter, &frames(updates, 8, 4))
            })
        };
        assert_eq!((paid(2, true), paid(3, true)), (Ok(()), FLOOD));
        // The same bytes, one at a time, from an answer that came in one piece.
        assert_eq!(paid(1, false), FLOOD);
        // Empty DATA and answers to PING and SETTINGS pay for nothing.
        for (kind, length) in [(DATA, 0), (6, 8), (4, 0)] {
            let mut counter = fresh();
            verdict(&mut counter, &frames(5_000, 8, 4)).unwrap();
            counter.note_sent([&frames(1000, kind, length)[..]], usize::MAX, |_| true);
            assert_eq!(verdict(&mut counter, &frames(1, 8, 4)), FLOOD);
        }
    }

    #[test]
    fn a_client_of_small_windows_may_download() {
        let mut counter = fresh();
        for _ in 0..100_000 {
            counter.note_sent([&frames(1, DATA, 512)[..]], usize::MAX, |_| false);
            verdict(&mut counter, &frames(2, 8, 4)).unwrap();
        }
    }

    #[test]
    fn short_data_is_crumbs_and_the_last_of_a_stream_is_not() {
        let mut counter = fresh();
        let last = [0, 0, 1, 0, 1, 0, 0, 0, 1, 7];
        let bytes = [frames(99, 0, 8), frames(5, 0, 512), frames(5, 6, 8), last.to_vec(), frames(1, 0, 511)].concat();
        verdict(&mut counter, &bytes).unwrap();
        assert!(!counter.has_crumbs(101) && counter.has_crumbs(100) && !counter.has_crumbs(1));
    }

    #[test]
    fn a_split_anywhere_counts_the_same_and_a_new_window_starts_over() {
        let now = Instant::now();
        let mut counter = FrameCounter::new(now, MOST_CONTROL_FRAMES);
        for piece in stream(4_999, 4).chunks(7) {
            counter.count(piece, now).unwrap();
        }
        counter.count(&frames(4_000, 4, 8), now + WINDOW).unwrap();
        assert_eq!(counter.control, 4_000);
    }
}
