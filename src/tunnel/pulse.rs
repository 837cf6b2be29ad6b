//! Whether a silent client lives: when to ask it with a Ping (RFC 6455 section 5.5.2), which Pongs are answers to that,
//! and when a client that does not answer is dead. Any byte of the client's is a sign of life. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::after;

/// The asking of one client.
#[derive(Debug)]
pub(super) struct Pulse {
    interval: Duration,
    /// When the client said something last.
    heard: Instant,
    asked: Asked,
    /// Tells our Pings from the back end's.
    nonce: [u8; 4],
    /// Pings so far.
    asked_count: u32,
    /// The latest of them whose Pong has come.
    answered: u32,
}

/// What the client was asked since it was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    /// The Ping waits for the end of a frame.
    Queued,
    At(Instant),
}

impl Pulse {
    pub(super) fn new(interval: Duration, nonce: [u8; 4], now: Instant) -> Pulse {
        Pulse { interval, heard: now, asked: Asked::Nothing, nonce, asked_count: 0, answered: 0 }
    }

    /// The client said something. Whether a Ping that is queued is needed no more.
    pub(super) fn hear(&mut self, now: Instant) -> bool {
        self.heard = now;
        std::mem::replace(&mut self.asked, Asked::Nothing) == Asked::Queued
    }

    /// When to ask, or when to give up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.asked {
            Asked::Nothing => Some(after(self.heard, self.interval)),
            // The end of the frame has its own deadlines.
            Asked::Queued => None,
            Asked::At(at) => Some(after(at, self.interval)),
        }
    }

    /// Whether the client was asked and has not answered.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.asked, Asked::At(_))
    }

    /// The payload of the next Ping, which is queued.
    pub(super) fn ask(&mut self) -> [u8; 8] {
        self.asked = Asked::Queued;
        self.asked_count = self.asked_count.wrapping_add(1);
        let ([a, b, c, d], [e, f, g, h]) = (self.nonce, self.asked_count.to_be_bytes());
        [a, b, c, d, e, f, g, h]
    }

    /// The Ping that was queued is on its way.
    pub(super) fn sent(&mut self, now: Instant) {
        if self.asked == Asked::Queued {
            self.asked = Asked::At(now);
        }
    }

    /// What lies before the Ping was not taken yet: the client gets its time from now on.
    pub(super) fn wait_anew(&mut self, now: Instant) {
        if self.is_waiting() {
            self.asked = Asked::At(now);
        }
    }

    /// Whether a Pong with this payload is the first answer to a Ping of ours. RFC 6455 section 5.5.3: an endpoint "MAY
    /// elect to send a Pong frame for only the most recently processed Ping frame", so that some are never answered.
    pub(super) fn takes(&mut self, payload: [u8; 8]) -> bool {
        let [p0, p1, p2, p3, count @ ..] = payload;
        let count = u32::from_be_bytes(count);
        let unanswered = self.asked_count.wrapping_sub(self.answered);
        let back = self.asked_count.wrapping_sub(count);
        if [p0, p1, p2, p3] != self.nonce || back >= unanswered {
            return false;
        }
        self.answered = count;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_client_is_asked_after_its_silence_and_given_up_after_another() {
        let start = Instant::now();
        let mut pulse = Pulse::new(SECOND * 30, [1, 2, 3, 4], start);
        assert_eq!((pulse.deadline(), pulse.is_waiting()), (Some(start + SECOND * 30), false));
        pulse.ask();
        assert_eq!((pulse.deadline(), pulse.is_waiting()), (None, false), "the Ping waits for a boundary");
        pulse.sent(start + SECOND * 31);
        assert_eq!((pulse.deadline(), pulse.is_waiting()), (Some(start + SECOND * 61), true));
        pulse.wait_anew(start + SECOND * 40);
        assert_eq!(pulse.deadline(), Some(start + SECOND * 70));
        assert!(!pulse.hear(start + SECOND * 50));
        assert_eq!((pulse.deadline(), pulse.is_waiting()), (Some(start + SECOND * 80), false));
        pulse.ask();
        assert!(pulse.hear(start + SECOND * 51), "the Ping is not needed");
        pulse.sent(start + SECOND * 51);
        assert!(!pulse.is_waiting());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pong_is_ours_once_and_only_for_a_ping_that_was_sent() {
        let mut pulse = Pulse::new(SECOND, [1, 2, 3, 4], Instant::now());
        assert!(!pulse.takes([1, 2, 3, 4, 0, 0, 0, 0]) && !pulse.takes([1, 2, 3, 4, 0, 0, 0, 1]));
        let first = pulse.ask();
        let (second, third) = (pulse.ask(), pulse.ask());
        assert_eq!(first, [1, 2, 3, 4, 0, 0, 0, 1]);
        assert!(!pulse.takes([9, 2, 3, 4, 0, 0, 0, 1]), "another nonce");
        assert!(!pulse.takes([1, 2, 3, 4, 0, 0, 0, 4]), "from the future");
        assert!(pulse.takes(first) && !pulse.takes(first));
        assert!(pulse.takes(third) && !pulse.takes(second), "older than what was answered");
    }
}
