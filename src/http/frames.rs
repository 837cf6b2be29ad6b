//! Counts the frames of an HTTP/2 connection by their nine-byte headers (RFC 9113, section 4.1), so that a client
//! cannot keep the machine busy with frames that ask for nothing. The h2 library bounds resets, CONTINUATION and
//! header lists itself; control frames it takes without end.

use std::time::{Duration, Instant};

/// Control frames that one connection may send within [`WINDOW`].
pub const MOST_CONTROL_FRAMES: u32 = 10_000;

/// The time over which control frames are counted.
pub const WINDOW: Duration = Duration::from_secs(10);

/// DATA frames shorter than this are crumbs: what the h2 library keeps beside the content of one that waits is 256
/// bytes, and up to 256 of its bytes may be padding.
const CRUMB: u32 = 512;

/// Control frames for which one DATA frame to the client pays: the simplest clients grant window for each frame that
/// they take, for the stream and for the connection.
const PAID_BY_FRAME: u32 = 2;

/// Bytes in a DATA frame that pay for one control frame more: libraries grant window for every 4 to 32 KiB.
const PAYS_FOR_ONE: u32 = 1024;

const PREFACE: u64 = 24;
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// The frames of one connection.
#[derive(Debug)]
pub struct FrameCounter {
    received: Scanner,
    sent: Scanner,
    control: u32,
    crumbs: u32,
    since: Instant,
}

/// Too many control frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {MOST_CONTROL_FRAMES} control frames within {} seconds", WINDOW.as_secs())]
pub struct TooManyFrames;

impl FrameCounter {
    /// A counter at the start of a connection, in front of the preface.
    pub fn new(now: Instant) -> FrameCounter {
        FrameCounter { received: Scanner::behind(PREFACE), sent: Scanner::behind(0), control: 0, crumbs: 0, since: now }
    }

    /// Counts the frames whose headers are in `bytes`; `now` is when they arrived.
    pub fn count(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), TooManyFrames> {
        if now.duration_since(self.since) >= WINDOW {
            self.since = now;
            self.control = 0;
        }
        while let Some(frame) = self.received.next(&mut bytes) {
            match frame.kind {
                // DATA with content and HEADERS are progress and have limits of their own.
                HEADERS => {}
                DATA if frame.length > 0 => {
                    let crumb = frame.length < CRUMB && frame.flags & END_STREAM == 0;
                    self.crumbs = self.crumbs.saturating_add(u32::from(crumb));
                }
                _ => self.control += 1,
            }
            if self.control > MOST_CONTROL_FRAMES {
                return Err(TooManyFrames);
            }
        }
        Ok(())
    }

    /// Notes that the first `written` bytes of `slices` went to the client, who has to grant window for the content of
    /// DATA.
    pub fn note_sent<'a>(&mut self, slices: impl IntoIterator<Item = &'a [u8]>, mut written: usize) {
        for slice in slices {
            let mut sent = slice.get(..written).unwrap_or(slice);
            written -= sent.len();
            while let Some(frame) = self.sent.next(&mut sent) {
                if frame.kind == DATA && frame.length > 0 {
                    self.control = self.control.saturating_sub(PAID_BY_FRAME + frame.length / PAYS_FOR_ONE);
                }
            }
        }
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
}

struct Header {
    length: u32,
    kind: u8,
    flags: u8,
}

impl Scanner {
    fn behind(skip: u64) -> Scanner {
        Scanner { header: [0; HEADER], have: 0, skip }
    }

    /// The next header that ends in `bytes`, which go on behind it.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Header> {
        let skipped = usize::try_from(self.skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
        self.skip -= skipped as u64;
        *bytes = bytes.get(skipped..)?;
        while let Some((byte, rest)) = bytes.split_first() {
            *self.header.get_mut(usize::from(self.have))? = *byte;
            *bytes = rest;
            self.have += 1;
            if usize::from(self.have) == HEADER {
                let [l0, l1, l2, kind, flags, ..] = self.header;
                let length = u32::from_be_bytes([0, l0, l1, l2]);
                (self.have, self.skip) = (0, u64::from(length));
                return Some(Header { length, kind, flags });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(count: usize, kind: u8) -> Vec<u8> {
        [vec![0; 24], frames(count, kind, 8)].concat()
    }

    fn frames(count: usize, kind: u8, length: u16) -> Vec<u8> {
        let [l0, l1] = length.to_be_bytes();
        [vec![0, l0, l1, kind, 0, 0, 0, 0, 0], vec![0; usize::from(length)]].concat().repeat(count)
    }

    #[test]
    fn a_flood_of_pings_ends_and_data_does_not_count() {
        let now = Instant::now();
        assert_eq!(FrameCounter::new(now).count(&stream(10_000, 6), now), Ok(()));
        assert_eq!(FrameCounter::new(now).count(&stream(10_001, 6), now), Err(TooManyFrames));
        assert_eq!(FrameCounter::new(now).count(&stream(20_000, 0), now), Ok(()));
    }

    #[test]
    fn a_client_that_takes_much_may_grant_much_window_and_one_that_pings_may_not() {
        let now = Instant::now();
        let mut download = FrameCounter::new(now);
        let mut pings = FrameCounter::new(now);
        download.count(&stream(0, 8), now).unwrap();
        pings.count(&stream(0, 6), now).unwrap();
        for _ in 0..10_000 {
            download.note_sent([&frames(1, 0, 16_384)[..]], usize::MAX);
            download.count(&stream(8, 8)[24..], now).unwrap();
        }
        let flood = (0..20_000).try_for_each(|_| {
            pings.note_sent([&frames(1, 6, 8)[..]], usize::MAX);
            pings.count(&stream(1, 6)[24..], now)
        });
        assert_eq!(flood, Err(TooManyFrames));
    }

    #[test]
    fn a_client_may_grant_window_twice_for_each_frame_that_it_takes() {
        let now = Instant::now();
        let paid = |updates: usize| {
            let mut counter = FrameCounter::new(now);
            counter.count(&stream(0, 8), now).unwrap();
            (0..20_000).try_for_each(|_| {
                // In two pieces, as a transport may take them.
                let sent = frames(1, 0, 1);
                counter.note_sent([&sent[..3], &sent[3..]], 5);
                counter.note_sent([&sent[5..8], &sent[8..]], 5);
                counter.count(&frames(updates, 8, 4), now)
            })
        };
        assert_eq!((paid(2), paid(3)), (Ok(()), Err(TooManyFrames)));
        // Empty DATA and answers to PING and SETTINGS pay for nothing.
        for (kind, length) in [(0, 0), (6, 8), (4, 0)] {
            let mut counter = FrameCounter::new(now);
            counter.count(&stream(10_000, 8), now).unwrap();
            counter.note_sent([&frames(1000, kind, length)[..]], usize::MAX);
            assert_eq!(counter.count(&frames(1, 8, 4), now), Err(TooManyFrames));
        }
    }

    #[test]
    fn short_data_is_crumbs_and_the_last_of_a_stream_is_not() {
        let now = Instant::now();
        let mut counter = FrameCounter::new(now);
        let last = [0, 0, 1, 0, 1, 0, 0, 0, 1, 7];
        let bytes = [stream(99, 0), frames(5, 0, 512), frames(5, 6, 8), last.to_vec(), frames(1, 0, 511)].concat();
        counter.count(&bytes, now).unwrap();
        assert!(!counter.has_crumbs(101) && counter.has_crumbs(100) && !counter.has_crumbs(1));
    }

    #[test]
    fn a_split_anywhere_counts_the_same_and_a_new_window_starts_over() {
        let now = Instant::now();
        let mut counter = FrameCounter::new(now);
        for piece in stream(9_999, 4).chunks(7) {
            counter.count(piece, now).unwrap();
        }
        counter.count(&stream(9_000, 4)[24..], now + WINDOW).unwrap();
        assert_eq!(counter.control, 9_000);
    }
}
