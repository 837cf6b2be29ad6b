//! How many TLS handshakes may be under way, in all and of one address. A client that says nothing costs a descriptor
//! and a task until `timeouts.header` is over: where places run out, who has been silent for longest gives way, or who
//! does not take up our answer. Silence, and the first half of another's handshake, would else be the cheapest ways
//! to keep everybody out.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::base::network::client_key;
use crate::edge::told::Told;

/// Handshakes that every address may have under way, however few there may be in all: a browser opens six at once.
const LEAST_SHARE: usize = 16;

/// For so long a client that has our answer need not give way: several round trips of a poor line.
const ROUND_TRIPS: Duration = Duration::from_secs(2);

/// The handshakes that are under way.
#[derive(Debug)]
pub struct Handshakes {
    most: AtomicUsize,
    crowd: Mutex<Crowd>,
}

#[derive(Debug, Default)]
struct Crowd {
    under_way: usize,
    /// Only of those who are at it.
    addresses: HashMap<IpAddr, Here>,
    /// Those whose turn it is, the first to give way first.
    waited_for: BTreeMap<Place, WaitedFor>,
    last: u64,
    over: Counted,
    over_share: Counted,
    displaced: Counted,
}

/// The handshakes of one address.
#[derive(Debug, Default)]
struct Here {
    under_way: usize,
    waited_for: BTreeSet<Place>,
}

/// Who is waited for, and the number of those who came.
type Place = (Stage, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It has not said hello.
    Silent,
    /// It has our half of the handshake.
    Answered,
}

#[derive(Debug)]
struct WaitedFor {
    address: Option<IpAddr>,
    since: Instant,
    displaced: CancellationToken,
}

#[derive(Debug, Default)]
struct Counted {
    count: u64,
    told: Told,
}

impl Handshakes {
    /// Nobody is at it yet.
    pub fn new(most: usize) -> Handshakes {
        Handshakes { most: AtomicUsize::new(most), crowd: Mutex::default() }
    }

    /// A new configuration is in force. Who is at it goes on.
    pub fn change(&self, most: usize) {
        self.most.store(most, Relaxed);
    }

    /// A client begins; it is at it until what this gives is dropped. `None`: it is one too many, and nobody gives way.
    /// `is_proxy`: it is a trusted proxy, whose connections are those of many.
    pub fn begin(&self, client: IpAddr, is_proxy: bool) -> Option<Handshaking<'_>> {
        self.begin_at(client, is_proxy, Instant::now())
    }

    fn begin_at(&self, client: IpAddr, is_proxy: bool, now: Instant) -> Option<Handshaking<'_>> {
        let most = self.most.load(Relaxed);
        let address = (!is_proxy).then(|| client_key(client));
        let mut crowd = locked(&self.crowd);
        let here = address.and_then(|address| crowd.addresses.get(&address));
        if let Some(here) = here.filter(|here| here.under_way >= share(most)) {
            // One address cannot displace the others.
            let first = crowd.first_of(|from| here.waited_for.range(from..).next().copied(), now);
            if !crowd.displace(first) {
                crowd.over_share.count += 1;
                return None;
            }
        } else if crowd.under_way >= most {
            let first = crowd.first_of(|from| crowd.waited_for.range(from..).next().map(|(place, _)| *place), now);
            if !crowd.displace(first) {
                crowd.over.count += 1;
                return None;
            }
        }
        crowd.last += 1;
        crowd.under_way += 1;
        let (place, displaced) = ((Stage::Silent, crowd.last), CancellationToken::new());
        if let Some(address) = address {
            crowd.addresses.entry(address).or_default().under_way += 1;
        }
        crowd.wait_for(place, WaitedFor { address, since: now, displaced: displaced.clone() });
        Some(Handshaking { all: self, place: Cell::new(place), address, displaced })
    }

    /// What was closed since the start.
    pub fn refused(&self) -> [(&'static str, u64); 3] {
        let crowd = locked(&self.crowd);
        [
            ("clients closed by server.max_handshakes", crowd.over.count),
            ("clients closed by an address's share of server.max_handshakes", crowd.over_share.count),
            ("clients that kept us waiting and gave way by server.max_handshakes", crowd.displaced.count),
        ]
    }

    /// What to tell of it, at most once a minute. Cheap, and any worker may ask.
    pub fn report(&self, now: Instant) -> Vec<String> {
        let most = self.most.load(Relaxed);
        let share = share(most);
        let mut crowd = locked(&self.crowd);
        let over = crowd
            .over
            .fresh(now)
            .map(|count| format!("closed {count} connections: server.max_handshakes ({most}) were under way"));
        let over_share = crowd.over_share.fresh(now).map(|count| {
            format!("closed {count} connections: {share} handshakes of their address were under way, half of server.max_handshakes")
        });
        let displaced = crowd.displaced.fresh(now).map(|count| {
            format!("closed {count} connections that kept us waiting: others needed their places, server.max_handshakes is {most}, {share} for one address")
        });
        over.into_iter().chain(over_share).chain(displaced).collect()
    }
}

impl Crowd {
    /// Who gives way: who has been silent for longest, but where that is not long, sooner who does not take up our answer.
    /// `from`: the first place that is not before one.
    fn first_of(&self, from: impl Fn(Place) -> Option<Place>, now: Instant) -> Option<Place> {
        let silent = from((Stage::Silent, 0)).filter(|(stage, _)| *stage == Stage::Silent);
        let answered = from((Stage::Answered, 0));
        let is_long = |place: &Place| {
            let since = self.waited_for.get(place).map(|waited_for| waited_for.since);
            since.is_some_and(|since| now.saturating_duration_since(since) >= ROUND_TRIPS)
        };
        silent.filter(is_long).or(answered.filter(is_long)).or(silent)
    }

    /// Ends a handshake whose client keeps us waiting. It counts no more, however long its task takes to notice.
    fn displace(&mut self, place: Option<Place>) -> bool {
        let Some((place, waited_for)) = place.and_then(|place| self.waited_for.remove_entry(&place)) else {
            return false;
        };
        waited_for.displaced.cancel();
        self.displaced.count += 1;
        self.no_longer_wait_for(place, waited_for.address);
        self.leave(waited_for.address);
        true
    }

    fn wait_for(&mut self, place: Place, waited_for: WaitedFor) {
        if let Some(here) = waited_for.address.and_then(|address| self.addresses.get_mut(&address)) {
            here.waited_for.insert(place);
        }
        self.waited_for.insert(place, waited_for);
    }

    fn no_longer_wait_for(&mut self, place: Place, address: Option<IpAddr>) {
        self.waited_for.remove(&place);
        if let Some(here) = address.and_then(|address| self.addresses.get_mut(&address)) {
            here.waited_for.remove(&place);
        }
    }

    fn leave(&mut self, address: Option<IpAddr>) {
        self.under_way = self.under_way.saturating_sub(1);
        let Some(address) = address else { return };
        if let Some(here) = self.addresses.get_mut(&address) {
            here.under_way = here.under_way.saturating_sub(1);
            if here.under_way == 0 {
                self.addresses.remove(&address);
            }
        }
        if self.addresses.is_empty() {
            // A crowd leaves its room behind.
            self.addresses.shrink_to_fit();
        }
    }
}

impl Counted {
    fn fresh(&mut self, now: Instant) -> Option<u64> {
        self.told.fresh(self.count, now)
    }
}

/// So that no one address can use them all up. Half, as a proxy that nobody has named in `trusted_proxies`, or a load
/// test, begins hundreds at once.
fn share(most: usize) -> usize {
    (most / 2).max(LEAST_SHARE)
}

/// A handshake that is under way.
#[derive(Debug)]
pub struct Handshaking<'a> {
    all: &'a Handshakes,
    place: Cell<Place>,
    /// Where its address counts.
    address: Option<IpAddr>,
    displaced: CancellationToken,
}

impl Handshaking<'_> {
    /// The client has said hello: it does not give way while it waits for our answer.
    pub fn hello(&self) {
        locked(&self.all.crowd).no_longer_wait_for(self.place.get(), self.address);
    }

    /// The client has our answer, and it is its turn again.
    pub fn answered(&self) {
        self.answered_at(Instant::now());
    }

    fn answered_at(&self, now: Instant) {
        let mut crowd = locked(&self.all.crowd);
        if !self.displaced.is_cancelled() {
            crowd.last += 1;
            self.place.set((Stage::Answered, crowd.last));
            let waited_for = WaitedFor { address: self.address, since: now, displaced: self.displaced.clone() };
            crowd.wait_for(self.place.get(), waited_for);
        }
    }

    /// Ready when another client needs its place.
    pub async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Drop for Handshaking<'_> {
    fn drop(&mut self) {
        let mut crowd = locked(&self.all.crowd);
        if !self.displaced.is_cancelled() {
            crowd.no_longer_wait_for(self.place.get(), self.address);
            crowd.leave(self.address);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
    }

    fn begin(handshakes: &Handshakes, last: u8, says_hello: bool) -> Handshaking<'_> {
        let handshaking = handshakes.begin(address(last), false).unwrap();
        if says_hello {
            handshaking.hello();
        }
        handshaking
    }

    fn assert_empty(handshakes: &Handshakes) {
        let crowd = locked(&handshakes.crowd);
        assert!(crowd.under_way == 0 && crowd.addresses.is_empty() && crowd.waited_for.is_empty(), "{crowd:?}");
    }

    #[test]
    fn one_address_cannot_use_up_all_handshakes_and_all_of_them_have_an_end() {
        let handshakes = Handshakes::new(100);
        let mut held: Vec<_> = (0..50).map(|_| begin(&handshakes, 1, true)).collect();
        assert!(handshakes.begin(address(1), false).is_none());
        assert!(handshakes.begin(address(2), false).is_some(), "another address");
        held.extend((0..50).map(|_| handshakes.begin(address(1), true).unwrap()));
        held.iter().for_each(Handshaking::hello);
        assert!(handshakes.begin(address(2), false).is_none());
        assert!(handshakes.begin(address(9), true).is_none());
        assert_eq!(handshakes.refused().map(|(_, count)| count), [2, 1, 0]);
        let told = handshakes.report(Instant::now());
        assert!(
            told.len() == 2 && told[0].contains("max_handshakes (100)") && told[1].contains("50 handshakes"),
            "{told:?}"
        );
        assert!(handshakes.report(Instant::now()).is_empty());
        held.clear();
        assert_empty(&handshakes);
    }

    #[test]
    fn who_has_said_nothing_for_longest_gives_way() {
        let handshakes = Handshakes::new(40);
        let gone = |held: &[Handshaking<'_>]| held.iter().map(|one| one.displaced.is_cancelled()).collect::<Vec<_>>();
        let polite = begin(&handshakes, 1, true);
        let mut one: Vec<_> = (0..20).map(|_| begin(&handshakes, 1, false)).collect();
        assert_eq!(gone(&one), [vec![true], vec![false; 19]].concat(), "over its share: its own oldest");
        let two: Vec<_> = (0..20).map(|_| begin(&handshakes, 2, false)).collect();
        assert_eq!(gone(&two), [false; 20]);
        let late = [begin(&handshakes, 3, true), handshakes.begin(address(4), true).unwrap()];
        assert_eq!(gone(&one), [vec![true; 3], vec![false; 17]].concat(), "all places: the oldest of all");
        // Where nobody is silent, nobody gives way.
        one.iter().chain(&two).chain(&late).for_each(Handshaking::hello);
        assert!(handshakes.begin(address(5), false).is_none());
        assert!(!polite.displaced.is_cancelled());
        assert_eq!(gone(&late), [false; 2]);
        assert_eq!(handshakes.refused().map(|(_, count)| count), [1, 0, 3]);
        assert!(handshakes.report(Instant::now())[1].starts_with("closed 3 connections that kept us waiting"));
        one.clear();
        assert_eq!(locked(&handshakes.crowd).under_way, 23, "who gave way counts once");
        drop((polite, two, late));
        assert_empty(&handshakes);
    }

    #[test]
    fn who_has_our_answer_and_does_not_take_it_up_gives_way_after_the_silent() {
        let handshakes = Handshakes::new(20);
        let start = Instant::now();
        let replayed: Vec<_> = (0..19).map(|at| begin(&handshakes, at / 10, true)).collect();
        let silent = begin(&handshakes, 3, false);
        replayed.iter().for_each(|one| one.answered_at(start));
        let first = handshakes.begin_at(address(4), false, start + ROUND_TRIPS / 2).unwrap();
        assert!(silent.displaced.is_cancelled() && !replayed.iter().any(|one| one.displaced.is_cancelled()));
        first.hello();
        assert!(handshakes.begin_at(address(5), false, start + ROUND_TRIPS / 2).is_none(), "they may be on their way");
        let second = handshakes.begin_at(address(5), false, start + ROUND_TRIPS).unwrap();
        assert!(replayed[0].displaced.is_cancelled() && !replayed[1].displaced.is_cancelled());
        let third = handshakes.begin_at(address(6), false, start + ROUND_TRIPS).unwrap();
        assert!(replayed[1].displaced.is_cancelled() && !second.displaced.is_cancelled(), "hardly silent");
        drop((replayed, silent, first, second, third));
        assert_empty(&handshakes);
    }
}
