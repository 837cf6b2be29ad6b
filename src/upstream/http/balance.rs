//! Which back end a request goes to. What is counted lives as long as the process; which one is chosen for a sticky
//! client is a pure function of the request, so that several instances agree without asking one another.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use http::{HeaderMap, HeaderValue, header};
use rustls::RootCertStore;

use crate::http::request::Scheme;
use crate::upstream::http::settings::{Balance, Sticky};
use crate::upstream::http::tls;
use crate::upstream::source::Source;

/// How long a back end that could not be reached is tried last.
const AVOIDED: Duration = Duration::from_secs(3);

/// All back ends by name, and the system's authorities. It belongs to the process: counts survive reloads, for as
/// long as a snapshot, a request or a tunnel knows the back end.
#[derive(Default)]
pub struct BackEndRegister {
    known: Mutex<HashMap<String, Weak<BackEndState>>>,
    roots: OnceLock<Arc<RootCertStore>>,
}

impl BackEndRegister {
    /// A register that knows nobody yet.
    pub fn new() -> BackEndRegister {
        BackEndRegister::default()
    }

    /// The back ends that something still uses, by name.
    pub fn back_ends(&self) -> Vec<Arc<BackEndState>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = known.values().filter_map(Weak::upgrade).collect();
        drop(known);
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    pub(super) fn state(&self, name: &str) -> Arc<BackEndState> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = known.get(name).and_then(Weak::upgrade) {
            return state;
        }
        known.retain(|_, state| state.strong_count() > 0);
        let state = Arc::new(BackEndState {
            name: Arc::from(name),
            made: Instant::now(),
            load: AtomicUsize::new(0),
            failed: AtomicU64::new(0),
            source: Source::default(),
        });
        known.insert(name.to_owned(), Arc::downgrade(&state));
        state
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(self.roots.get_or_init(tls::system_roots))
    }
}

/// What is known of one back end.
#[derive(Debug)]
pub struct BackEndState {
    name: Arc<str>,
    made: Instant,
    load: AtomicUsize,
    /// Milliseconds after `made`, plus one; 0 is never.
    failed: AtomicU64,
    /// Where connections to it begin.
    pub(super) source: Source,
}

impl BackEndState {
    /// `http://127.0.0.1:3444`
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Requests and tunnels that are on it now.
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Whether it could not be reached a moment ago.
    pub fn is_avoided(&self) -> bool {
        let failed = self.failed.load(Ordering::Relaxed);
        failed != 0 && self.now().saturating_sub(failed) < u64::try_from(AVOIDED.as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn enter(self: &Arc<Self>) -> Load {
        self.load.fetch_add(1, Ordering::Relaxed);
        Load(Arc::clone(self))
    }

    pub(super) fn reached(&self) {
        self.failed.store(0, Ordering::Relaxed);
    }

    pub(super) fn missed(&self) {
        self.failed.store(self.now(), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// Counts as load on a back end until dropped: a request until its answer's end, a tunnel until it closes.
pub struct Load(Arc<BackEndState>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Load({})", self.0.name)
    }
}

/// One back end as the balancing sees it.
pub(super) struct Candidate {
    pub(super) state: Arc<BackEndState>,
    /// Its half of the rendezvous hash.
    seed: u64,
    /// Its name in a sticky cookie.
    tag: String,
}

/// The rule by which the back ends of one upstream are chosen.
pub(super) struct Balancer {
    balance: Balance,
    sticky: Sticky,
    turn: AtomicUsize,
}

impl Candidate {
    pub(super) fn new(state: Arc<BackEndState>, sticky: &Sticky) -> Candidate {
        let digest = digest::digest(&digest::SHA256, state.name.as_bytes());
        let seed = digest.as_ref().iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte));
        let tag = match sticky {
            Sticky::Cookie(name) => tag(&state.name, name),
            _ => String::new(),
        };
        Candidate { state, seed, tag }
    }
}

impl Balancer {
    pub(super) fn new(balance: Balance, sticky: Sticky) -> Balancer {
        Balancer { balance, sticky, turn: AtomicUsize::new(0) }
    }

    /// The back ends in the order in which they are tried: the client's own first, those that were out of reach a
    /// moment ago last.
    pub(super) fn order(&self, candidates: &[Candidate], address: IpAddr, headers: &HeaderMap) -> Vec<usize> {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        if order.len() < 2 {
            return order;
        }
        let of = |index: &usize| candidates.get(*index);
        let load = |index: &usize| of(index).map_or(usize::MAX, |candidate| candidate.state.load());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match (&self.sticky, self.balance) {
            (Sticky::Ip, _) | (_, Balance::IpHash) => {
                let client = hash_address(address);
                order.sort_by_cached_key(|index| Reverse(of(index).map(|candidate| mix(client ^ candidate.seed))));
            }
            (_, Balance::RoundRobin) => rotate(&mut order, turn),
            (_, Balance::LeastConn) => {
                // Equals take turns: a quiet site would else send everybody to the first.
                rotate(&mut order, turn);
                order.sort_by_cached_key(load);
            }
            (_, Balance::Random) => {
                let drawn = mix(turn as u64 ^ self.salt());
                rotate(&mut order, drawn as usize);
                let rest = order.get_mut(1..).unwrap_or_default();
                rotate(rest, (drawn >> 32) as usize);
                if let [first, second, ..] = order.as_mut_slice()
                    && load(second) < load(first)
                {
                    std::mem::swap(first, second);
                }
            }
        }
        if let Some(own) = self.own(candidates, headers) {
            order.sort_by_key(|index| *index != own);
        }
        order.sort_by_key(|index| of(index).is_some_and(|candidate| candidate.state.is_avoided()));
        order
    }

    /// The cookie that keeps a client with `chosen`, unless it has it already.
    pub(super) fn cookie(&self, chosen: &Candidate, headers: &HeaderMap, scheme: Scheme) -> Option<HeaderValue> {
        let Sticky::Cookie(name) = &self.sticky else { return None };
        if cookie(headers, name) == Some(chosen.tag.as_bytes()) {
            return None;
        }
        let secure = if scheme == Scheme::Https { "; Secure" } else { "" };
        HeaderValue::try_from(format!("{name}={}; Path=/; HttpOnly; SameSite=Lax{secure}", chosen.tag)).ok()
    }

    /// Whether [`Balancer::cookie`] will ask for the client's fields.
    pub(super) fn needs_cookie(&self) -> bool {
        matches!(self.sticky, Sticky::Cookie(_))
    }

    fn own(&self, candidates: &[Candidate], headers: &HeaderMap) -> Option<usize> {
        let Sticky::Cookie(name) = &self.sticky else { return None };
        let value = cookie(headers, name)?;
        candidates.iter().position(|candidate| candidate.tag.as_bytes() == value)
    }

    /// Workers and upstreams draw differently: an address of this process is salt enough for a draw.
    fn salt(&self) -> u64 {
        std::ptr::from_ref(self) as usize as u64
    }
}

/// Sixteen hexadecimal digits that name a back end to its clients without saying where it is.
fn tag(back_end: &str, cookie: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(back_end.as_bytes());
    context.update(cookie.as_bytes());
    tls::hex(context.finish().as_ref(), 8)
}

fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    headers.get_all(header::COOKIE).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b';')).find_map(
        |pair| {
            let at = memchr::memchr(b'=', pair)?;
            let (key, value) = pair.split_at(at);
            (key.trim_ascii() == name.as_bytes()).then(|| value.get(1..).unwrap_or_default().trim_ascii())
        },
    )
}

fn rotate(order: &mut [usize], by: usize) {
    if !order.is_empty() {
        order.rotate_left(by % order.len());
    }
}

/// IPv6 clients change the lower half of their address every day (RFC 8981): the upper half is the client.
fn hash_address(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => mix(u64::from(v4.to_bits())),
        IpAddr::V6(v6) => mix((v6.to_bits() >> 64) as u64),
    }
}

/// The finaliser of splitmix64: every bit of the input changes about half of the output.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOBODY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

    fn candidates(register: &BackEndRegister, count: usize, sticky: &Sticky) -> Vec<Candidate> {
        (0..count).map(|i| Candidate::new(register.state(&format!("http://10.0.0.{i}:80")), sticky)).collect()
    }

    fn first(balancer: &Balancer, candidates: &[Candidate]) -> usize {
        balancer.order(candidates, NOBODY, &HeaderMap::new())[0]
    }

    #[test]
    fn round_robin_takes_turns() {
        let list = candidates(&BackEndRegister::new(), 3, &Sticky::Off);
        let balancer = Balancer::new(Balance::RoundRobin, Sticky::Off);
        let taken: Vec<_> = (0..6).map(|_| first(&balancer, &list)).collect();
        assert_eq!(taken, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn the_least_loaded_is_taken_and_equals_take_turns() {
        let list = candidates(&BackEndRegister::new(), 3, &Sticky::Off);
        let balancer = Balancer::new(Balance::LeastConn, Sticky::Off);
        let _one = list[0].state.enter();
        let two = list[2].state.enter();
        assert_eq!(first(&balancer, &list), 1);
        let three = list[1].state.enter();
        drop(two);
        assert_eq!(first(&balancer, &list), 2);
        drop(three);
        let taken: Vec<_> = (0..8).map(|_| first(&balancer, &list)).collect();
        assert!(taken.contains(&1) && taken.contains(&2) && !taken.contains(&0), "{taken:?}");
    }

    #[test]
    fn random_prefers_the_less_loaded_of_two_and_reaches_all() {
        let list = candidates(&BackEndRegister::new(), 4, &Sticky::Off);
        let balancer = Balancer::new(Balance::Random, Sticky::Off);
        let mut seen = [0; 4];
        for _ in 0..400 {
            seen[first(&balancer, &list)] += 1;
        }
        assert!(seen.iter().all(|n| *n > 40), "{seen:?}");
        let two = &list[..2];
        let _busy = two[0].state.enter();
        assert!((0..50).all(|_| first(&balancer, two) == 1));
    }

    #[test]
    fn one_out_of_reach_is_tried_last_until_it_is_reached() {
        let list = candidates(&BackEndRegister::new(), 2, &Sticky::Off);
        let balancer = Balancer::new(Balance::RoundRobin, Sticky::Off);
        list[0].state.missed();
        assert!((0..4).all(|_| balancer.order(&list, NOBODY, &HeaderMap::new()) == [1, 0]));
        list[0].state.reached();
        assert!((0..4).any(|_| first(&balancer, &list) == 0));
    }

    #[test]
    fn a_sticky_cookie_leads_back_and_an_unknown_one_is_replaced() {
        let sticky = Sticky::Cookie("node".into());
        let list = candidates(&BackEndRegister::new(), 4, &sticky);
        let balancer = Balancer::new(Balance::RoundRobin, sticky);
        for chosen in &list {
            let set = balancer.cookie(chosen, &HeaderMap::new(), Scheme::Https).unwrap();
            let set = set.to_str().unwrap();
            let (pair, rest) = set.split_once(';').unwrap();
            assert_eq!(rest, " Path=/; HttpOnly; SameSite=Lax; Secure");
            assert_eq!(pair.len(), "node=".len() + 16);
            let mut headers = HeaderMap::new();
            headers.insert("cookie", HeaderValue::try_from(format!("a=1; {pair};b=2")).unwrap());
            let order = balancer.order(&list, NOBODY, &headers);
            assert!(Arc::ptr_eq(&list[order[0]].state, &chosen.state));
            assert!(balancer.cookie(chosen, &headers, Scheme::Https).is_none());
        }
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_static("node=10.0.0.1:80; xnode=1; node"));
        assert!(!balancer.cookie(&list[0], &headers, Scheme::Http).unwrap().to_str().unwrap().contains("Secure"));
    }

    #[test]
    fn a_state_is_shared_by_name_and_forgotten_with_its_last_user() {
        let register = BackEndRegister::new();
        let state = register.state("http://a:80");
        let load = state.enter();
        drop(state);
        assert_eq!(register.state("http://a:80").load(), 1);
        assert_eq!(register.back_ends().len(), 1);
        drop(load);
        assert!(register.back_ends().is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn an_address_always_leads_to_the_same_back_end_and_spreads_evenly(base in any::<u32>(), count in 2_usize..8) {
            let list = candidates(&BackEndRegister::new(), count, &Sticky::Off);
            let balancer = Balancer::new(Balance::IpHash, Sticky::Off);
            let mut seen = vec![0_usize; count];
            for i in 0..2000_u32 {
                let address = IpAddr::V4(base.wrapping_add(i).into());
                let order = balancer.order(&list, address, &HeaderMap::new());
                prop_assert_eq!(&order, &balancer.order(&list, address, &HeaderMap::new()));
                seen[order[0]] += 1;
            }
            let fair = 2000 / count;
            prop_assert!(seen.iter().all(|n| *n > fair / 2 && *n < fair * 2), "{:?}", seen);
        }

        #[test]
        fn one_more_back_end_moves_only_its_own_share(base in any::<u32>(), count in 2_usize..8) {
            let register = BackEndRegister::new();
            let more = candidates(&register, count + 1, &Sticky::Off);
            let balancer = Balancer::new(Balance::LeastConn, Sticky::Ip);
            let mut moved = 0;
            for i in 0..2000_u32 {
                let address = IpAddr::V4(base.wrapping_add(i.wrapping_mul(7919)).into());
                let before = balancer.order(&more[..count], address, &HeaderMap::new())[0];
                let after = balancer.order(&more, address, &HeaderMap::new())[0];
                if before != after {
                    prop_assert_eq!(after, count, "moved between old back ends");
                    moved += 1;
                }
            }
            let share = 2000 / (count + 1);
            prop_assert!(moved > share / 2 && moved < share * 2, "{} of {}", moved, share);
        }

        #[test]
        fn an_ipv6_client_keeps_its_back_end_when_its_interface_changes(net in any::<u64>(), a in any::<u64>(), b in any::<u64>()) {
            let at = |host: u64| IpAddr::V6((u128::from(net) << 64 | u128::from(host)).into());
            prop_assume!(net != 0);
            prop_assert_eq!(hash_address(at(a)), hash_address(at(b)));
        }
    }
}
