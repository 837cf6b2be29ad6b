//! What an attack is given and what it gives, in tests, in the table of benches/under_attack and in the hour of
//! benches/hostile_hour: it runs against an address, whatever serves there, on the calling thread, and stops by itself.

#![allow(dead_code, reason = "tests and benches use different parts")]

use std::net::SocketAddr;
use std::time::Duration;

/// What is attacked: a TLS listener with the site `a.test`.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub address: SocketAddr,
}

/// What an attack may use up before it gives up.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub time: Duration,
    pub frames: u64,
}

/// What became of it.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Frames (or connections, or requests) that were sent; none where there was no connection to send them on.
    pub sent: u64,
    /// How long it took from the first of them until the server ended it; `None` where it never did.
    pub ended: Option<Duration>,
}
