//! However a connection's bytes are cut, the frames in them are counted as whoever reads one after the other would.
#![no_main]

use std::time::Instant;

use doorward::http::frames::{FrameCounter, MOST_CONTROL_FRAMES, TooManyFrames};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((size, frames)) = input.split_first() else { return };
    // Many times over, so that a short input is a flood.
    let mut stream = vec![0; 24];
    while !frames.is_empty() && stream.len() < 200_000 {
        stream.extend_from_slice(frames);
    }
    let size = usize::from(*size).max(1);
    let expected = if control_frames(&stream[24..]) > MOST_CONTROL_FRAMES { Err(TooManyFrames) } else { Ok(()) };
    let now = Instant::now();
    assert_eq!(FrameCounter::new(now).count(&stream, now), expected);
    let mut counter = FrameCounter::new(now);
    assert_eq!(stream.chunks(size).try_for_each(|part| counter.count(part, now)), expected);
});

fn control_frames(mut stream: &[u8]) -> u32 {
    let mut control = 0;
    while let Some(([l0, l1, l2, kind, ..], rest)) = stream.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, *l0, *l1, *l2]) as usize;
        control += u32::from(*kind > 1 || *kind == 0 && length == 0);
        stream = rest.get(length..).unwrap_or_default();
    }
    control
}
