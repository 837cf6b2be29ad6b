//! What outlives every reload, made once and shared by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::edge::access::AccessLog;
use crate::edge::snapshot::Snapshot;
use crate::tls::challenges::Challenges;
use crate::tls::store::CertStore;
use crate::tls::tickets::Tickets;
use crate::tunnel::register::Tunnels;
use crate::upstream::http::BackEndRegister;

/// If a client would notice its loss at a reload, it is here.
pub struct Process {
    /// What the file says, replaced whole by a reload.
    pub snapshot: ArcSwap<Snapshot>,
    /// The certificates in use.
    pub certificates: Arc<CertStore>,
    /// The open questions of certificate authorities.
    pub challenges: Arc<Challenges>,
    /// The keys of session tickets.
    pub tickets: Arc<Tickets>,
    /// The live tunnels.
    pub tunnels: Tunnels,
    /// Load and health of back ends, by address.
    pub back_ends: Arc<BackEndRegister>,
    /// The access log's writer.
    pub access: AccessLog,
    ids: AtomicU64,
    /// Makes ids of this process differ from those of the next.
    seed: u64,
}

impl Process {
    /// A process that serves `snapshot`. `seed` is random.
    pub fn new(
        snapshot: Snapshot,
        certificates: Arc<CertStore>,
        challenges: Arc<Challenges>,
        tickets: Arc<Tickets>,
        back_ends: Arc<BackEndRegister>,
        access: AccessLog,
        seed: u64,
    ) -> Process {
        Process {
            snapshot: ArcSwap::from_pointee(snapshot),
            certificates,
            challenges,
            tickets,
            tunnels: Tunnels::default(),
            back_ends,
            access,
            ids: AtomicU64::new(0),
            seed,
        }
    }

    /// An id for one failure: on the error page, in the error log and in the access log.
    pub fn next_id(&self) -> String {
        let n = self.ids.fetch_add(1, Ordering::Relaxed);
        // Spread so that neighbours look different, one to one so that none is given twice.
        format!("{:012x}", (self.seed.wrapping_add(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0xffff_ffff_ffff)
    }
}
