//! However a connection's bytes are cut, a flood is noticed at the same place, which is between two frames.

use std::time::Instant;

use doorward::http::frames::{FrameCounter, MOST_CONTROL_FRAMES};

pub fn check(input: &[u8]) {
    let Some((size, frames)) = input.split_first() else { return };
    // Many times over, so that a short input is a flood.
    let mut stream = vec![0; 24];
    while !frames.is_empty() && stream.len() < 200_000 {
        stream.extend_from_slice(frames);
    }
    let now = Instant::now();
    let whole = FrameCounter::new(now, MOST_CONTROL_FRAMES).count(&stream, now).err().map(|flood| flood.passed);
    let (mut counter, mut at) = (FrameCounter::new(now, MOST_CONTROL_FRAMES), 0);
    let cut = stream.chunks(usize::from(*size).max(1)).find_map(|part| {
        let found = counter.count(part, now).err().map(|flood| at + flood.passed);
        at += part.len();
        found
    });
    assert_eq!(whole, cut);
    assert!(whole.is_none_or(|place| is_end_of_frame(&stream, place)));
}

fn is_end_of_frame(stream: &[u8], place: usize) -> bool {
    let mut at = 24;
    while at < place {
        let Some([l0, l1, l2]) = stream.get(at..).and_then(|rest| rest.first_chunk()) else { return false };
        at += 9 + u32::from_be_bytes([0, *l0, *l1, *l2]) as usize;
    }
    at == place
}
