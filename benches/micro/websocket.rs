//! The frames that pass through a tunnel.

use divan::Bencher;
use divan::counter::BytesCount;
use doorward::tunnel::frames::Frames;

/// From a client: masked.
fn frame(opcode: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match length {
        0..126 => frame.push(0x80 | length as u8),
        126..65536 => frame.extend([&[0x80 | 126], &(length as u16).to_be_bytes()[..]].concat()),
        _ => frame.extend([&[0x80 | 127], &(length as u64).to_be_bytes()[..]].concat()),
    }
    frame.extend([1, 2, 3, 4]);
    frame.resize(frame.len() + length, b'x');
    frame
}

/// In parts of so many bytes.
fn feed(bencher: Bencher<'_, '_>, stream: &[u8], part: usize) {
    let parse = || {
        let mut frames = Frames::new();
        for part in divan::black_box(stream).chunks(part) {
            frames.feed(part);
        }
        assert!(frames.is_at_boundary() && !frames.is_opaque());
        frames.messages()
    };
    bencher.counter(BytesCount::of_slice(stream)).bench_local(parse);
}

#[divan::bench]
fn one_message(bencher: Bencher<'_, '_>) {
    feed(bencher, &frame(2, 128), usize::MAX);
}

#[divan::bench]
fn large_message(bencher: Bencher<'_, '_>) {
    feed(bencher, &frame(2, 1 << 20), 64 << 10);
}

#[divan::bench]
fn chat(bencher: Bencher<'_, '_>) {
    feed(bencher, &frame(1, 60).repeat(256), 16 << 10);
}

#[divan::bench]
fn thousands_of_one_byte_frames(bencher: Bencher<'_, '_>) {
    feed(bencher, &frame(2, 1).repeat(4096), 16 << 10);
}

#[divan::bench]
fn thousands_of_pings(bencher: Bencher<'_, '_>) {
    feed(bencher, &frame(9, 0).repeat(4096), 16 << 10);
}

#[divan::bench]
fn byte_by_byte(bencher: Bencher<'_, '_>) {
    feed(bencher, &frame(1, 60).repeat(256), 1);
}

/// A message in fragments of nothing, and one byte at its end.
#[divan::bench]
fn empty_fragments(bencher: Bencher<'_, '_>) {
    let mut stream = frame(2, 0);
    stream.extend(frame(0, 0).repeat(4096));
    // Not the last of its message.
    for at in (0..stream.len()).step_by(6) {
        stream[at] &= 0x7f;
    }
    stream.extend(frame(0, 1));
    feed(bencher, &stream, 16 << 10);
}
