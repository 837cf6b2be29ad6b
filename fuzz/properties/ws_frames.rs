//! However one direction of a tunnel is cut, the same is known of its frames, and a Close frame of ours is one.

use doorward::tunnel::frames::{Frames, NO_STATUS, encode_close};

pub fn check(input: &[u8]) {
    let Some((size, stream)) = input.split_first() else { return };
    let mut whole = Frames::new();
    whole.feed(stream);
    let mut cut = Frames::new();
    for part in stream.chunks(usize::from(*size).max(1)) {
        cut.feed(part);
    }
    assert_eq!(cut, whole);

    let (mut walked, mut rest) = (Frames::new(), stream);
    while !rest.is_empty() {
        let used = walked.feed_to_boundary(rest);
        assert!(used > 0);
        rest = &rest[used..];
        assert!(rest.is_empty() || walked.is_at_boundary());
    }
    assert_eq!(walked, whole);

    if let Some([c1, c0, key @ ..]) = stream.first_chunk::<6>() {
        let code = u16::from_be_bytes([*c1, *c0]);
        let mut closed = Frames::new();
        closed.feed(&encode_close(code, Some(*key)));
        assert!(closed.is_at_boundary());
        assert!(closed.close_code() == Some(code) || closed.close_code() == Some(NO_STATUS));
    }
}
