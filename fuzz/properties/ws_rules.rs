//! However a client's stream is cut, the same of it goes to the back end, and nothing that is over the rules.

use std::time::Duration;

use doorward::base::rate::Rate;
use doorward::tunnel::frames::Frames;
use doorward::tunnel::rules::{Gate, Rules, Violation};
use tokio::time::Instant;

pub fn check(input: &[u8]) {
    let Some(([size, max, rate, which], stream)) = input.split_first_chunk::<4>() else { return };
    let rules = Rules {
        max_message: (which & 1 > 0).then(|| u64::from(*max) * 8),
        message_rate: (which & 2 > 0).then(|| Rate { count: u32::from(*rate) + 1, per: Duration::from_secs(60) }),
        ping_interval: (which & 4 > 0).then(|| Duration::from_secs(30)),
    };
    let now = Instant::now();
    let whole = sift(rules, stream, stream.len().max(1), now);
    assert_eq!(sift(rules, stream, usize::from(*size).max(1), now), whole);
    assert_eq!(sift(rules, stream, 1, now), whole);
    let (passed, violation) = whole;
    // No Ping was sent, so that no Pong is ours: all passes up to the violation.
    assert!(stream.starts_with(&passed));
    assert!(violation.is_some() || passed == stream);
    if violation.is_some() {
        let mut frames = Frames::new();
        frames.feed(&passed);
        assert!(frames.is_at_boundary(), "what passed ends with a frame");
    }
    if rules.max_message.is_none() && rules.message_rate.is_none() {
        assert_eq!(violation, None);
    }
}

fn sift(rules: Rules, stream: &[u8], size: usize, now: Instant) -> (Vec<u8>, Option<Violation>) {
    let mut gate = Gate::new(rules, Some([1, 2, 3, 4]), now);
    let mut frames = Frames::new();
    let mut got = Vec::new();
    for part in stream.chunks(size) {
        let mut rest = part;
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
