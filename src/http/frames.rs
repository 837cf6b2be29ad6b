//! Counts the frames of an HTTP/2 connection by their nine-byte headers (RFC 9113, section 4.1), so that a client
//! cannot keep the machine busy with frames that ask for nothing. The h2 library bounds resets, CONTINUATION and
//! header lists itself; control frames it takes without end.

use std::time::{Duration, Instant};

/// Control frames that one connection may send within [`WINDOW`].
pub const MOST_CONTROL_FRAMES: u32 = 10_000;

/// The time over which control frames are counted.
pub const WINDOW: Duration = Duration::from_secs(10);

const PREFACE: u64 = 24;
const HEADER: usize = 9;

/// The frames of one connection, client to us.
#[derive(Debug)]
pub struct FrameCounter {
    header: [u8; HEADER],
    have: usize,
    skip: u64,
    control: u32,
    since: Instant,
}

/// Too many control frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {MOST_CONTROL_FRAMES} control frames within {} seconds", WINDOW.as_secs())]
pub struct TooManyFrames;

impl FrameCounter {
    /// A counter at the start of a connection, in front of the preface.
    pub fn new(now: Instant) -> FrameCounter {
        FrameCounter { header: [0; HEADER], have: 0, skip: PREFACE, control: 0, since: now }
    }

    /// Counts the frames whose headers are in `bytes`; `now` is when they arrived.
    pub fn count(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), TooManyFrames> {
        if now.duration_since(self.since) >= WINDOW {
            self.since = now;
            self.control = 0;
        }
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = usize::try_from(self.skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
                self.skip -= n as u64;
                bytes = bytes.get(n..).unwrap_or_default();
                continue;
            }
            let n = (HEADER - self.have).min(bytes.len());
            let (part, rest) = bytes.split_at(n);
            if let Some(slot) = self.header.get_mut(self.have..self.have + n) {
                slot.copy_from_slice(part);
            }
            self.have += n;
            bytes = rest;
            if self.have == HEADER {
                self.have = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), TooManyFrames> {
        let [l0, l1, l2, kind, ..] = self.header;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        self.skip = u64::from(length);
        // DATA with content and HEADERS are progress and have limits of their own.
        let control = match kind {
            0 => length == 0,
            1 => false,
            _ => true,
        };
        if control {
            self.control += 1;
        }
        if self.control > MOST_CONTROL_FRAMES { Err(TooManyFrames) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(frames: usize, kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 24];
        for _ in 0..frames {
            bytes.extend_from_slice(&[0, 0, 8, kind, 0, 0, 0, 0, 0]);
            bytes.extend_from_slice(&[0; 8]);
        }
        bytes
    }

    #[test]
    fn a_flood_of_pings_ends_and_data_does_not_count() {
        let now = Instant::now();
        assert_eq!(FrameCounter::new(now).count(&stream(10_000, 6), now), Ok(()));
        assert_eq!(FrameCounter::new(now).count(&stream(10_001, 6), now), Err(TooManyFrames));
        assert_eq!(FrameCounter::new(now).count(&stream(20_000, 0), now), Ok(()));
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
