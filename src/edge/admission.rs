//! How many clients may be connected, in all and from one address. What is over is refused before descriptors run out:
//! then accept would fail, and with it every connection to a back end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::base::network::client_key;
use crate::edge::handshakes::Handshakes;

/// Refused connections that are answered at one time; more are closed without a word. Fewer where there are few
/// descriptors.
const REFUSING: usize = 64;

/// TLS handshakes under way that there is always room for.
const LEAST_HANDSHAKES: usize = 16;

/// Of the connections that there is room for, one in so many is kept free: idle ones give way to new clients then.
const SPARE: usize = 16;

/// Refusals are told at most this often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What the file and the machine allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at once.
    pub connections: usize,
    /// The open-file limit, if it is what bounds them; `None` is `server.max_connections`.
    pub by_open_files: Option<u64>,
    /// Connections of one address at once; 0 is no limit.
    pub per_address: usize,
    /// Connections that are told 503 at one time.
    pub refusing: usize,
    /// TLS handshakes under way at once.
    pub handshakes: usize,
    /// Descriptors that are not for clients and their back ends.
    own: u64,
}

impl Limits {
    /// What comes of `server.max_connections` and `server.max_connections_per_ip` where so many files may be open, and
    /// the process has `own` of them for itself: see [`own_descriptors`].
    pub fn new(max_connections: usize, per_address: usize, open_files: u64, own: u64) -> Limits {
        let (room, spare) = room(open_files, own);
        let refusing = usize::try_from(spare / 2).unwrap_or(REFUSING).clamp(1, REFUSING);
        let is_bound = max_connections == 0 || max_connections > room;
        Limits {
            connections: if is_bound { room } else { max_connections },
            by_open_files: is_bound.then_some(open_files),
            per_address,
            refusing,
            handshakes: usize::MAX,
            own,
        }
    }

    /// With so many TLS handshakes under way at once. Where there is room for few connections they are no more than half
    /// of them, so that who is served keeps its place.
    pub fn with_handshakes(self, most: usize) -> Limits {
        Limits { handshakes: most.min((self.connections / 2).max(LEAST_HANDSHAKES)), ..self }
    }

    /// What to say where the file wants more than the machine allows.
    pub fn complaint(&self, max_connections: usize) -> Option<String> {
        let open_files = self.by_open_files.filter(|_| max_connections > self.connections)?;
        Some(format!(
            "server.max_connections is {max_connections}, and the open-file limit of {open_files} has room for {}: raise \
             it to {} (LimitNOFILE= of the systemd unit, `ulimit -n` of a shell)",
            self.connections,
            needed(max_connections, self.own)
        ))
    }
}

/// What a process has open for itself: each worker its epolls and its socket of each listener, which the control thread
/// has as well, to hand it over; logs, signals, the control socket, what watches certificates.
pub fn own_descriptors(workers: usize, listeners: usize) -> u64 {
    let workers = if workers == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { workers };
    (workers * (4 + 2 * listeners) + 24) as u64
}

/// The connections that an open-file limit has room for, and the descriptors that are spare then. Each connection may
/// need a second descriptor, towards its back end; a sixteenth, and 64 at least, is spare: for files that are being sent,
/// spooled uploads, idle back-end connections and clients that are being refused.
fn room(open_files: u64, own: u64) -> (usize, u64) {
    let reserve = (own + (open_files / 16).max(64)).min(open_files / 4 * 3);
    let connections = usize::try_from((open_files - reserve) / 2).unwrap_or(usize::MAX).max(1);
    (connections, reserve.saturating_sub(own))
}

/// An open-file limit that has room for so many connections.
fn needed(connections: usize, own: u64) -> u64 {
    let both = 2 * connections as u64 + own;
    (both + both / 15 + 1).max(both + 64)
}

/// The limits, and who is connected. It outlives every reload.
#[derive(Debug)]
pub struct Admission {
    limits: Mutex<Limits>,
    connections: AtomicUsize,
    per_address: AtomicUsize,
    open: AtomicUsize,
    refusing: AtomicUsize,
    most_refusing: AtomicUsize,
    over_budget: AtomicU64,
    over_address: AtomicU64,
    dropped: AtomicU64,
    accept_errors: AtomicU64,
    /// Only of those who are connected.
    addresses: Mutex<HashMap<IpAddr, u32>>,
    told: Mutex<Told>,
    /// TLS handshakes under way.
    pub handshakes: Handshakes,
}

#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    over_budget: u64,
    over_address: u64,
}

/// What is done with a client that has connected.
#[derive(Debug)]
pub enum Verdict {
    /// It is served; the permit lives as long as its socket.
    Admitted(Permit),
    /// It gets 503.
    Refused(Refusing),
    /// It is closed at once: enough others are being refused.
    Dropped,
}

impl Admission {
    /// Nobody is connected yet.
    pub fn new(limits: Limits) -> Arc<Admission> {
        Arc::new(Admission {
            limits: Mutex::new(limits),
            connections: AtomicUsize::new(limits.connections),
            per_address: AtomicUsize::new(limits.per_address),
            open: AtomicUsize::new(0),
            refusing: AtomicUsize::new(0),
            most_refusing: AtomicUsize::new(limits.refusing),
            over_budget: AtomicU64::new(0),
            over_address: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            accept_errors: AtomicU64::new(0),
            addresses: Mutex::default(),
            told: Mutex::default(),
            handshakes: Handshakes::new(limits.handshakes),
        })
    }

    /// A new configuration is in force. Who is connected stays.
    pub fn change(&self, limits: Limits) {
        *locked(&self.limits) = limits;
        self.connections.store(limits.connections, Relaxed);
        self.per_address.store(limits.per_address, Relaxed);
        self.most_refusing.store(limits.refusing, Relaxed);
        self.handshakes.change(limits.handshakes);
    }

    /// A client has connected from `peer`. `is_proxy`: it is a trusted proxy, whose connections are those of many.
    pub fn admit(self: &Arc<Admission>, peer: IpAddr, is_proxy: bool) -> Verdict {
        let most = self.connections.load(Relaxed);
        if self.open.fetch_update(Relaxed, Relaxed, |open| (open < most).then_some(open + 1)).is_err() {
            self.over_budget.fetch_add(1, Relaxed);
            return self.refuse();
        }
        self.admit_client(Permit { admission: self.clone(), address: None }, peer, is_proxy)
    }

    /// The holder of `permit`, so far a trusted proxy, has turned out to be `client`.
    pub fn admit_client(self: &Arc<Admission>, mut permit: Permit, client: IpAddr, is_proxy: bool) -> Verdict {
        let most = self.per_address.load(Relaxed);
        if most > 0 && !is_proxy {
            let key = client_key(client);
            let mut addresses = locked(&self.addresses);
            let here = addresses.entry(key).or_default();
            if *here as usize >= most {
                drop(addresses);
                self.over_address.fetch_add(1, Relaxed);
                return self.refuse();
            }
            *here += 1;
            permit.address = Some(Box::new(key));
        }
        Verdict::Admitted(permit)
    }

    /// Whether so few places are free that idle connections should give theirs up. Never where there are few at all.
    pub fn is_tight(&self) -> bool {
        let most = self.connections.load(Relaxed);
        most >= SPARE && self.open.load(Relaxed) >= most - most / SPARE
    }

    /// A client has connected that there is no room for: it gets 503, or nothing.
    pub fn refuse(self: &Arc<Admission>) -> Verdict {
        let most = self.most_refusing.load(Relaxed);
        if self.refusing.fetch_update(Relaxed, Relaxed, |n| (n < most).then_some(n + 1)).is_err() {
            self.dropped.fetch_add(1, Relaxed);
            return Verdict::Dropped;
        }
        Verdict::Refused(Refusing(self.clone()))
    }

    /// A connection could not be accepted.
    pub fn note_accept_error(&self) {
        self.accept_errors.fetch_add(1, Relaxed);
    }

    /// Connections that have a place.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// What was refused since the start: over the budget, over the share of an address, those of both that got no
    /// answer, and what could not even be accepted.
    pub fn refused(&self) -> [(&'static str, u64); 4] {
        [
            ("clients refused by server.max_connections", self.over_budget.load(Relaxed)),
            ("clients refused by server.max_connections_per_ip", self.over_address.load(Relaxed)),
            ("clients closed without an answer, as too many were being refused", self.dropped.load(Relaxed)),
            ("clients that could not be accepted", self.accept_errors.load(Relaxed)),
        ]
    }

    /// What to tell of refusals since it was last told, at most once a minute. Cheap, and any worker may ask.
    pub fn report(&self, now: Instant) -> Vec<String> {
        let (over_budget, over_address) = (self.over_budget.load(Relaxed), self.over_address.load(Relaxed));
        let mut told = locked(&self.told);
        let fresh =
            (over_budget - told.over_budget.min(over_budget), over_address - told.over_address.min(over_address));
        let recently = told.at.is_some_and(|at| now.saturating_duration_since(at) < TOLD_EVERY);
        if fresh == (0, 0) || recently {
            return Vec::new();
        }
        *told = Told { at: Some(now), over_budget, over_address };
        drop(told);
        let limits = *locked(&self.limits);
        let refused = |count: u64| format!("refused {count} connection{}", if count == 1 { "" } else { "s" });
        let mut lines = Vec::new();
        if fresh.0 > 0 {
            let why = match limits.by_open_files {
                Some(open_files) => format!(
                    "{} are open, which is what the open-file limit of {open_files} has room for (LimitNOFILE)",
                    limits.connections
                ),
                None => format!("server.max_connections ({}) is reached", limits.connections),
            };
            lines.push(format!("{}: {why}", refused(fresh.0)));
        }
        if fresh.1 > 0 {
            let why = format!("server.max_connections_per_ip ({}) is reached", limits.per_address);
            lines.push(format!("{}: {why}", refused(fresh.1)));
        }
        lines
    }
}

/// A client's place. It is free again when this is dropped.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    /// Where its address counts.
    address: Option<Box<IpAddr>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.open.fetch_sub(1, Relaxed);
        let Some(address) = &self.address else { return };
        let mut addresses = locked(&self.admission.addresses);
        if let Some(here) = addresses.get_mut(&**address) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                addresses.remove(&**address);
            }
        }
        if addresses.is_empty() {
            // A crowd leaves its room behind.
            addresses.shrink_to_fit();
        }
    }
}

/// A place among those that are told 503.
#[derive(Debug)]
pub struct Refusing(Arc<Admission>);

impl Drop for Refusing {
    fn drop(&mut self) {
        self.0.refusing.fetch_sub(1, Relaxed);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn admission(connections: usize, per_address: usize) -> Arc<Admission> {
        Admission::new(Limits::new(connections, per_address, 20_000, 36))
    }

    fn is_admitted(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Admitted(_))
    }

    #[test]
    fn the_machine_has_room_for_less_than_half_of_its_descriptors() {
        for (open_files, connections) in [(64, 8), (1024, 462), (20_000, 9357), (524_288, 245_742), (0, 1)] {
            assert_eq!(room(open_files, 36).0, connections, "{open_files}");
        }
        for connections in [1, 10, 480, 10_000, 1_000_000] {
            let needed = needed(connections, 36);
            assert!(room(needed, 36).0 >= connections, "{connections}: {needed}");
        }
        // All that can be open at once, for clients that are refused too.
        for open_files in 60..2000 {
            let limits = Limits::new(0, 0, open_files, 36);
            assert!(36 + 2 * limits.connections + limits.refusing <= open_files as usize, "{open_files}: {limits:?}");
        }
    }

    #[test]
    fn the_file_may_ask_for_less_and_is_told_when_it_asks_for_more() {
        let few = Limits::new(100, 0, 20_000, 36);
        assert_eq!((few.connections, few.by_open_files, few.complaint(100)), (100, None, None));
        let all = Limits::new(0, 0, 20_000, 36);
        assert_eq!((all.connections, all.by_open_files, all.complaint(0)), (9357, Some(20_000), None));
        let many = Limits::new(10_000, 0, 20_000, 36);
        assert_eq!(many.connections, 9357);
        let complaint = many.complaint(10_000).unwrap();
        assert!(complaint.contains("LimitNOFILE") && complaint.contains("21372"), "{complaint}");
    }

    #[test]
    fn over_the_budget_some_are_told_and_the_others_are_closed() {
        let admission = admission(2, 0);
        let held: Vec<Verdict> = (0..2).map(|_| admission.admit(HERE, false)).collect();
        assert!(held.iter().all(is_admitted));
        let refused: Vec<Verdict> = (0..REFUSING).map(|_| admission.admit(HERE, false)).collect();
        assert!(refused.iter().all(|verdict| matches!(verdict, Verdict::Refused(_))));
        assert!(matches!(admission.admit(HERE, false), Verdict::Dropped));
        drop(refused);
        assert!(matches!(admission.admit(HERE, false), Verdict::Refused(_)));
        assert_eq!(admission.refused().map(|(_, count)| count), [66, 0, 1, 0]);
        assert_eq!(admission.open.load(Relaxed), 2);
        drop(held);
        assert!(is_admitted(&admission.admit(HERE, false)));
    }

    #[test]
    fn an_address_has_its_share_and_leaves_nothing_behind() {
        let admission = admission(100, 2);
        let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
        let one = admission.admit(v6("2001:db8:0:1::1"), false);
        let two = admission.admit(v6("2001:db8:0:1:ffff::2"), false);
        assert!(is_admitted(&one) && is_admitted(&two));
        assert!(matches!(admission.admit(v6("2001:db8:0:1::3"), false), Verdict::Refused(_)), "one /64");
        assert!(is_admitted(&admission.admit(v6("2001:db8:0:2::1"), false)));
        assert!(is_admitted(&admission.admit(v6("2001:db8:0:1::3"), true)), "a trusted proxy");
        let mapped = [admission.admit(HERE, false), admission.admit(v6("::ffff:192.0.2.1"), false)];
        assert!(mapped.iter().all(is_admitted));
        assert!(!is_admitted(&admission.admit(HERE, false)), "IPv4, however it is written");
        assert_eq!(admission.refused()[1].1, 2);
        drop((one, two, mapped));
        assert!(locked(&admission.addresses).is_empty());
        assert_eq!(admission.open.load(Relaxed), 0);
    }

    #[test]
    fn refusals_are_told_once_a_minute_with_their_number() {
        let admission = admission(1, 0);
        let _held = admission.admit(HERE, false);
        let start = Instant::now();
        assert!(admission.report(start).is_empty());
        admission.admit(HERE, false);
        assert_eq!(admission.report(start), ["refused 1 connection: server.max_connections (1) is reached"]);
        (0..5).for_each(|_| drop(admission.admit(HERE, false)));
        assert!(admission.report(start + TOLD_EVERY / 2).is_empty());
        let later = admission.report(start + TOLD_EVERY);
        assert_eq!(later, ["refused 5 connections: server.max_connections (1) is reached"]);
        assert!(admission.report(start + 3 * TOLD_EVERY).is_empty());
        admission.change(Limits::new(0, 0, 64, 36));
        (0..20).for_each(|_| std::mem::forget(admission.admit(HERE, false)));
        assert!(admission.report(start + 4 * TOLD_EVERY)[0].contains("open-file limit of 64"));
    }
}
