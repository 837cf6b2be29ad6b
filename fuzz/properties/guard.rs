//! However a connection's bytes are cut, the guard passes the same requests and refuses for the same reason.

use doorward::http::guard::{Guard, Place, Refusal};
use doorward::http::request::HeadLimits;

const LIMITS: HeadLimits = HeadLimits { max_uri: 100, max_headers: 5, max_header_size: 500 };

pub fn check(input: &[u8]) {
    let Some((size, stream)) = input.split_first() else { return };
    let whole = read(stream, stream.len().max(1));
    let cut = read(stream, usize::from(*size).max(1));
    assert_eq!((cut.refusal, cut.heads), (whole.refusal, whole.heads));
    // Shown piecemeal, what precedes a broken chunk has passed already.
    assert!(cut.passed >= whole.passed);
    assert!(cut.passed == whole.passed || cut.refusal.is_some());
}

struct Verdict {
    passed: usize,
    heads: u64,
    refusal: Option<Refusal>,
}

/// Shows the stream as a connection does: a part more each time, what has not passed before it.
fn read(stream: &[u8], size: usize) -> Verdict {
    let mut guard = Guard::new(LIMITS);
    let (mut passed, mut shown) = (0, 0);
    loop {
        let step = guard.inspect(&stream[passed..shown]);
        assert!(step.pass <= shown - passed);
        passed += step.pass;
        if step.refusal.is_some() {
            assert_eq!(guard.place(), Place::Refused);
            return Verdict { passed, heads: guard.heads(), refusal: step.refusal };
        }
        if guard.place() == Place::Handshake {
            guard.handshake_refused();
        } else if shown == stream.len() {
            return Verdict { passed, heads: guard.heads(), refusal: None };
        } else {
            shown = (shown + size).min(stream.len());
        }
    }
}
