//! Which back end a request goes to. Which one is chosen for a sticky client is a pure function of the request, so that
//! several instances agree without asking one another.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest;
use http::HeaderMap;

use crate::base::network::client_key;
use crate::upstream::http::back_end::BackEndState;
use crate::upstream::http::balance::rules::{HEAVIEST, Member, mix};
use crate::upstream::http::settings::{Balance, Sticky};
use crate::upstream::http::sticky;

mod rules;
#[cfg(test)]
mod tests;

/// One back end as the balancing sees it.
pub(super) struct Candidate {
    pub(super) state: Arc<BackEndState>,
    /// In thousandths, as [`Member`] has it.
    weight: u32,
    backup: bool,
    /// Its half of the rendezvous hash.
    seed: u64,
    /// Its name in a sticky cookie.
    pub(super) tag: String,
}

/// The rule by which the back ends of one upstream are chosen.
pub(super) struct Balancer {
    balance: Balance,
    pub(super) sticky: Sticky,
    slow_start: Duration,
    turn: AtomicU64,
}

impl Candidate {
    pub(super) fn new(state: Arc<BackEndState>, weight: u16, backup: bool, sticky: &Sticky) -> Candidate {
        let digest = digest::digest(&digest::SHA256, state.name().as_bytes());
        let seed = digest.as_ref().iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte));
        let tag = match sticky {
            Sticky::Cookie { name, secret } => sticky::tag(state.name(), name, secret.as_deref()),
            _ => String::new(),
        };
        let weight = (u32::from(weight.max(1)) * 1000).min(HEAVIEST);
        Candidate { state, weight, backup, seed, tag }
    }

    /// Its weight now.
    fn weight(&self, slow_start: Duration) -> u32 {
        self.state.returned().map_or(self.weight, |returned| grown(self.weight, returned, slow_start))
    }
}

impl Balancer {
    pub(super) fn new(balance: Balance, sticky: Sticky, slow_start: Duration) -> Balancer {
        Balancer { balance, sticky, slow_start, turn: AtomicU64::new(0) }
    }

    /// The back ends that are not out in the order in which they are tried: the client's own first, backups last. A
    /// client stays with a backup that it has got in the meantime: what it knows of the client is nowhere else.
    pub(super) fn order(&self, candidates: &[Candidate], address: IpAddr, headers: &HeaderMap) -> Vec<usize> {
        // Most sites have one back end, and nothing is to be chosen.
        if let [only] = candidates {
            return if only.state.is_out() { Vec::new() } else { vec![0] };
        }
        let mut order = Vec::with_capacity(candidates.len());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        for backup in [false, true] {
            let group = candidates.iter().enumerate().filter(|(_, candidate)| candidate.backup == backup);
            let members = group.filter(|(_, candidate)| !candidate.state.is_out());
            let mut members: Vec<Member> = members.map(|(index, candidate)| self.member(index, candidate)).collect();
            match (&self.sticky, self.balance) {
                (Sticky::Ip, _) | (_, Balance::IpHash) => rules::by_hash(&mut members, hash_address(address)),
                (_, Balance::RoundRobin) => rules::in_turn(&mut members, turn),
                (_, Balance::LeastConn) => rules::by_load(&mut members, turn),
                (_, Balance::Random) => rules::by_draw(&mut members, mix(turn ^ self.salt())),
            }
            order.extend(members.iter().map(|member| member.index));
        }
        if let Some(own) = self.own(candidates, headers) {
            order.sort_by_key(|index| *index != own);
        }
        order
    }

    /// Whether clients are to stay with their back ends.
    pub(super) fn keeps_clients(&self) -> bool {
        self.sticky != Sticky::Off || self.balance == Balance::IpHash
    }

    fn member(&self, index: usize, candidate: &Candidate) -> Member {
        let weight = match (&self.sticky, self.balance) {
            // A pure function of the address and the file: several instances agree.
            (Sticky::Ip, _) | (_, Balance::IpHash) => candidate.weight,
            _ => candidate.weight(self.slow_start),
        };
        Member { index, weight, load: candidate.state.load(), seed: candidate.seed }
    }

    /// Workers and upstreams draw differently: an address of this process is salt enough for a draw.
    fn salt(&self) -> u64 {
        std::ptr::from_ref(self) as usize as u64
    }
}

/// What `weight` is so long after the return: over `slow_start` it grows from a hundredth to the whole.
fn grown(weight: u32, returned: Duration, slow_start: Duration) -> u32 {
    if returned >= slow_start {
        return weight;
    }
    let share = (returned.as_secs_f64() / slow_start.as_secs_f64()).clamp(0.01, 1.0);
    ((f64::from(weight) * share) as u32).max(1)
}

/// IPv6 clients change the lower half of their address every day (RFC 8981): the upper half is the client.
fn hash_address(address: IpAddr) -> u64 {
    match client_key(address) {
        IpAddr::V4(v4) => mix(u64::from(v4.to_bits())),
        IpAddr::V6(v6) => mix((v6.to_bits() >> 64) as u64),
    }
}
