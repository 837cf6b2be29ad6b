//! What a tunnel is given beside its streams: the bytes that came early, its deadlines, its rules.

use std::time::Duration;

use bytes::Bytes;

use super::rules::Rules;

/// Bytes that were read behind the two heads, before the streams became a tunnel.
#[derive(Debug, Default)]
pub struct Early {
    /// What the client sent behind its handshake.
    pub to_back_end: Bytes,
    /// What the back end sent behind its 101.
    pub to_client: Bytes,
}

/// The deadlines and rules of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Without a byte in either direction; then both sides are told 1001. 1 h.
    pub idle_timeout: Duration,
    /// Without progress of a write. 60 s.
    pub write: Duration,
    /// For the other direction after one side has ended, or for both after both have sent a Close frame. 30 s.
    pub half_close: Duration,
    /// For the end of a frame in which a Close frame is to be injected; then the stream is cut. 1 s.
    pub boundary: Duration,
    /// For both sides to answer an injected Close frame. 2 s.
    pub close: Duration,
    /// What the client is held to; most tunnels have nothing of it and do not pay for it.
    pub rules: Option<Box<Rules>>,
}

/// The deadlines of a tunnel as it keeps them, in a quarter of the room.
#[derive(Clone, Copy)]
pub(super) struct Waits {
    pub(super) idle_timeout: Wait,
    pub(super) write: Wait,
    pub(super) half_close: Wait,
    pub(super) boundary: Wait,
    pub(super) close: Wait,
}

/// Milliseconds; the highest number is for ever.
#[derive(Clone, Copy)]
pub(super) struct Wait(u32);

impl Waits {
    pub(super) fn of(policy: &Policy) -> Waits {
        let wait = |wait: Duration| Wait(u32::try_from(wait.as_millis()).unwrap_or(u32::MAX));
        Waits {
            idle_timeout: wait(policy.idle_timeout),
            write: wait(policy.write),
            half_close: wait(policy.half_close),
            boundary: wait(policy.boundary),
            close: wait(policy.close),
        }
    }
}

impl From<Wait> for Duration {
    fn from(wait: Wait) -> Duration {
        if wait.0 == u32::MAX { Duration::MAX } else { Duration::from_millis(wait.0.into()) }
    }
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            idle_timeout: Duration::from_secs(3600),
            write: Duration::from_secs(60),
            half_close: Duration::from_secs(30),
            boundary: Duration::from_secs(1),
            close: Duration::from_secs(2),
            rules: None,
        }
    }
}
