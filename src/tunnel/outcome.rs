//! What became of a tunnel, for the log and whoever waits for it.

use std::io;
use std::time::Duration;

use super::rules::Violation;
#[cfg(doc)]
use super::{Policy, frames, register, rules::Rules};

/// What became of a tunnel.
#[derive(Debug)]
pub struct Outcome {
    /// Bytes that the back end's socket took.
    pub bytes_to_back_end: u64,
    /// Bytes that the client's socket took.
    pub bytes_to_client: u64,
    /// Whole messages from the client.
    pub messages_to_back_end: u64,
    /// Whole messages from the back end.
    pub messages_to_client: u64,
    /// The status of the first Close frame; [`frames::NO_STATUS`] if it had none; `None` if there was no Close frame.
    pub close_code: Option<u16>,
    /// What came first of all that can end a tunnel.
    pub ended: EndedBy,
    /// How long it was open.
    pub duration: Duration,
}

/// What ended a tunnel.
#[derive(Debug)]
pub enum EndedBy {
    /// The client closed, with a Close frame or without.
    Client,
    /// The back end closed, with a Close frame or without.
    BackEnd,
    /// There was no byte for [`Policy::idle_timeout`].
    Idle,
    /// It was told to close: [`Tunnels::close`](register::Tunnels::close).
    Drain,
    /// The client broke a rule.
    Refused(Violation),
    /// The client did not answer a Ping within [`Rules::ping_interval`].
    ClientDead,
    /// The client took nothing for [`Policy::write`].
    ClientStalled,
    /// The back end took nothing for [`Policy::write`].
    BackEndStalled,
    /// The connection to the client broke.
    ClientError(io::Error),
    /// The connection to the back end broke.
    BackEndError(io::Error),
}

impl EndedBy {
    /// One word for logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            EndedBy::Client => "client",
            EndedBy::BackEnd => "back_end",
            EndedBy::Idle => "idle",
            EndedBy::Drain => "drain",
            EndedBy::Refused(Violation::TooLarge) => "max_message",
            EndedBy::Refused(Violation::TooFast) => "message_rate",
            EndedBy::Refused(Violation::BadFrames) => "bad_frames",
            EndedBy::ClientDead => "client_dead",
            EndedBy::ClientStalled => "client_stalled",
            EndedBy::BackEndStalled => "back_end_stalled",
            EndedBy::ClientError(_) => "client_error",
            EndedBy::BackEndError(_) => "back_end_error",
        }
    }
}
