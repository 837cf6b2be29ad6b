//! What was refused to sockets and their clients since the start, counted by reason.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::tunnel::EndedBy;
use crate::tunnel::rules::Violation;

/// A reason for a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// A handshake of a page that is not in `origins`.
    Origin,
    /// A handshake over `max_connections` of the block.
    Sockets,
    /// A handshake over `max_connections_per_ip` of the block.
    SocketsOfAddress,
    /// A message over `max_message`.
    MessageSize,
    /// A client over `message_rate`.
    MessageRate,
    /// Frames that cannot be held to a limit.
    BadFrames,
    /// A client that did not answer a Ping.
    DeadClient,
    /// A trusted proxy's connection without a PROXY head, or with one that cannot be read.
    ProxyHead,
}

/// Name and place of each reason.
const REASONS: [(&str, Refused); 8] = [
    ("sockets refused by origins", Refused::Origin),
    ("sockets refused by websocket.max_connections", Refused::Sockets),
    ("sockets refused by websocket.max_connections_per_ip", Refused::SocketsOfAddress),
    ("sockets closed by max_message", Refused::MessageSize),
    ("sockets closed by message_rate", Refused::MessageRate),
    ("sockets closed for frames that cannot be read", Refused::BadFrames),
    ("sockets closed for a Ping without an answer", Refused::DeadClient),
    ("connections of trusted proxies closed for want of a PROXY head", Refused::ProxyHead),
];

/// The counters of the process.
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; REASONS.len()]);

impl Refusals {
    /// One more.
    pub fn count(&self, why: Refused) {
        if let Some(counter) = self.0.get(why as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A tunnel has ended: counted if a rule ended it. The access log has its close code; at a higher level here a
    /// client could fill the disk.
    pub fn note(&self, ended: &EndedBy, site: &str, client: IpAddr, path: &str) {
        if let Some(why) = Refused::of(ended) {
            self.count(why);
            tracing::debug!(site, %client, path, rule = ended.as_str(), "a socket was closed by a rule");
        }
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        REASONS.iter().zip(&self.0).map(|((name, _), counter)| (*name, counter.load(Ordering::Relaxed))).collect()
    }
}

impl Refused {
    /// The reason why a tunnel was closed, where it was closed for one.
    fn of(ended: &EndedBy) -> Option<Refused> {
        match ended {
            EndedBy::Refused(Violation::TooLarge) => Some(Refused::MessageSize),
            EndedBy::Refused(Violation::TooFast) => Some(Refused::MessageRate),
            EndedBy::Refused(Violation::BadFrames) => Some(Refused::BadFrames),
            EndedBy::ClientDead => Some(Refused::DeadClient),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let refusals = Refusals::default();
        for (place, (name, why)) in REASONS.into_iter().enumerate() {
            for _ in 0..=place {
                refusals.count(why);
            }
            assert_eq!(refusals.list()[place], (name, place as u64 + 1));
        }
    }
}
