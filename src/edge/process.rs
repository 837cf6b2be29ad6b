//! What outlives every reload, made once and shared by all workers.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::edge::access::AccessLog;
use crate::edge::admission::Admission;
use crate::edge::crowd::Crowd;
use crate::edge::gate::Gate;
use crate::edge::generation::Generations;
use crate::edge::overload::Overload;
use crate::edge::places::Places;
use crate::edge::refusals::Refusals;
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
    /// Rung when it was replaced, for whoever does what the file says beside requests.
    pub replaced: Notify,
    /// Which configurations are in memory.
    pub generations: Generations,
    /// The certificates in use.
    pub certificates: Arc<CertStore>,
    /// The open questions of certificate authorities.
    pub challenges: Arc<Challenges>,
    /// The keys of session tickets.
    pub tickets: Arc<Tickets>,
    /// Who is connected, and who may be.
    pub admission: Arc<Admission>,
    /// How many of them there were.
    pub crowd: Crowd,
    /// How much memory there is for them.
    pub overload: Overload,
    /// The live tunnels.
    pub tunnels: Tunnels,
    /// Rung when a socket was opened under a configuration that is not in force any more: a reload had looked for sockets
    /// without a place before it was there.
    pub latecomers: Notify,
    /// The places of sockets.
    pub places: Places,
    /// What was refused to sockets.
    pub refused: Refusals,
    /// Who has asked how often, and who has signed in.
    pub gate: Arc<Gate>,
    /// Load and health of back ends, by address.
    pub back_ends: Arc<BackEndRegister>,
    /// The access log's writer.
    pub access: AccessLog,
    ids: AtomicU64,
    /// Makes ids of this process differ from those of the next.
    seed: u64,
}

impl Process {
    /// A process that serves `snapshot`.
    pub fn new(
        snapshot: Snapshot,
        certificates: Arc<CertStore>,
        challenges: Arc<Challenges>,
        tickets: Arc<Tickets>,
        back_ends: Arc<BackEndRegister>,
        access: AccessLog,
        admission: Arc<Admission>,
    ) -> Process {
        let generations = Generations::default();
        generations.enter(&snapshot.generation);
        back_ends.resolver().ask(&snapshot.resolvers);
        Process {
            gate: snapshot.gate.clone(),
            crowd: Crowd::default(),
            overload: Overload::new(snapshot.max_memory),
            snapshot: ArcSwap::from_pointee(snapshot),
            replaced: Notify::new(),
            generations,
            certificates,
            challenges,
            tickets,
            admission,
            tunnels: Tunnels::default(),
            latecomers: Notify::new(),
            places: Places::default(),
            refused: Refusals::default(),
            back_ends,
            access,
            ids: AtomicU64::new(0),
            seed: RandomState::new().hash_one(std::process::id()),
        }
    }

    /// Puts `snapshot` in force.
    pub fn replace(&self, snapshot: Snapshot) {
        self.generations.enter(&snapshot.generation);
        self.back_ends.resolver().ask(&snapshot.resolvers);
        self.overload.change(snapshot.max_memory);
        self.snapshot.store(Arc::new(snapshot));
        self.replaced.notify_one();
    }

    /// A socket that was let in by `snapshot` is in the register.
    pub fn note_socket(&self, snapshot: &Arc<Snapshot>) {
        if !Arc::ptr_eq(snapshot, &self.snapshot.load()) {
            self.latecomers.notify_one();
        }
    }

    /// What was refused since the start, in a phrase, and how often: `doorward sockets` shows it.
    pub fn refusals(&self) -> Vec<(String, u64)> {
        let own = self.refused.list().into_iter().chain(self.admission.refused());
        let own = own.chain(self.admission.handshakes.refused()).chain(self.overload.refused());
        own.map(|(name, count)| (name.to_owned(), count)).chain(self.gate.limits.refused()).collect()
    }

    /// An id for one failure: on the error page, in the error log and in the access log.
    pub fn next_id(&self) -> String {
        let n = self.ids.fetch_add(1, Ordering::Relaxed);
        // Spread so that neighbours look different, one to one so that none is given twice.
        format!("{:012x}", (self.seed.wrapping_add(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0xffff_ffff_ffff)
    }
}
