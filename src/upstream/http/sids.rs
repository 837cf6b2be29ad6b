//! Which back end gave out which session id of Engine.IO. One register for the process: workers share it, and reloads
//! leave it as it is.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use lru::LruCache;

/// So many sessions are remembered at most. One takes about 100 bytes: 26 MB in all.
pub const MOST: usize = 256 * 1024;

/// How long a session is remembered after its last request. A client polls every 25 seconds unless the server says
/// otherwise (pingInterval).
pub const IDLE: Duration = Duration::from_secs(300);

/// Workers rarely wait for each other.
const SHARDS: usize = 16;

/// The name of a session within the process: a digest of its site and its id, so that an entry has one size whoever
/// chose the id, and the id of one site is nothing in another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Print(u128);

impl Print {
    /// The session `sid` of `site`.
    pub fn new(site: &str, sid: &str) -> Print {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&(site.len() as u64).to_be_bytes());
        context.update(site.as_bytes());
        context.update(sid.as_bytes());
        let digest = context.finish();
        Print(digest.as_ref().iter().take(16).fold(0, |print, byte| print << 8 | u128::from(*byte)))
    }
}

impl fmt::Debug for Print {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Half of it: who has a session's id can act for its client.
        write!(f, "Print({:016x}…)", (self.0 >> 64) as u64)
    }
}

/// See the module. Bounded: the sessions that nobody has come back to go first, down to a quarter of the room, so that
/// a flood of new ones cannot push out those in use; then those that were idle for longest.
pub struct Sids {
    shards: [Mutex<Shard>; SHARDS],
    /// Of one shard.
    most: usize,
}

/// Both oldest last.
struct Shard {
    /// Nobody has come back to these.
    fresh: LruCache<Print, Place>,
    /// The others.
    kept: LruCache<Print, Place>,
}

struct Place {
    back_end: Arc<str>,
    used: Instant,
}

impl Place {
    fn is_idle(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) >= IDLE
    }
}

impl Default for Sids {
    fn default() -> Sids {
        Sids::with_room(MOST)
    }
}

impl Sids {
    fn with_room(most: usize) -> Sids {
        let shard = || Mutex::new(Shard { fresh: LruCache::unbounded(), kept: LruCache::unbounded() });
        Sids { shards: std::array::from_fn(|_| shard()), most: (most / SHARDS).max(1) }
    }

    /// The back end of a session, which is in use now.
    pub fn find(&self, print: Print, now: Instant) -> Option<Arc<str>> {
        let mut shard = self.shard(print);
        let found = match shard.kept.get_mut(&print) {
            Some(place) => {
                let idle = place.is_idle(now);
                place.used = now;
                (!idle).then(|| Arc::clone(&place.back_end))
            }
            None => {
                let place = shard.fresh.pop(&print).filter(|place| !place.is_idle(now))?;
                let back_end = Arc::clone(&place.back_end);
                shard.kept.put(print, Place { used: now, ..place });
                Some(back_end)
            }
        };
        if found.is_none() {
            shard.kept.pop(&print);
        }
        found
    }

    /// `back_end` has the session.
    pub fn learn(&self, print: Print, back_end: &Arc<str>, now: Instant) {
        let mut shard = self.shard(print);
        let place = Place { back_end: Arc::clone(back_end), used: now };
        match shard.kept.get_mut(&print) {
            Some(known) => *known = place,
            None => drop(shard.fresh.put(print, place)),
        }
        shard.make_room(self.most, now);
    }

    /// `back_end` probably has the session. Whether nothing better was known.
    pub fn guess(&self, print: Print, back_end: &Arc<str>, now: Instant) -> bool {
        let shard = self.shard(print);
        let known = shard.fresh.contains(&print) || shard.kept.contains(&print);
        drop(shard);
        if !known {
            self.learn(print, back_end, now);
        }
        !known
    }

    /// `back_end` does not have the session, if that is what was thought.
    pub fn forget_at(&self, print: Print, back_end: &Arc<str>) {
        let mut shard = self.shard(print);
        let Shard { fresh, kept } = &mut *shard;
        for places in [fresh, kept] {
            if places.peek(&print).is_some_and(|place| place.back_end == *back_end) {
                places.pop(&print);
            }
        }
    }

    /// The session is over.
    pub fn forget(&self, print: Print) {
        let mut shard = self.shard(print);
        shard.fresh.pop(&print);
        shard.kept.pop(&print);
    }

    /// How many are remembered, some of them perhaps for too long already.
    pub fn count(&self) -> usize {
        self.all().map(|shard| shard.fresh.len() + shard.kept.len()).sum()
    }

    fn shard(&self, print: Print) -> std::sync::MutexGuard<'_, Shard> {
        let [first, ..] = &self.shards;
        let shard = self.shards.get(print.0 as usize % SHARDS).unwrap_or(first);
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> impl Iterator<Item = std::sync::MutexGuard<'_, Shard>> {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shard {
    fn make_room(&mut self, most: usize, now: Instant) {
        for list in [&mut self.fresh, &mut self.kept] {
            while list.peek_lru().is_some_and(|(_, place)| place.is_idle(now)) {
                list.pop_lru();
            }
        }
        while self.fresh.len() + self.kept.len() > most {
            // At least the one that has just come.
            let list = if self.fresh.len() > (most / 4).max(1) { &mut self.fresh } else { &mut self.kept };
            if list.pop_lru().is_none() {
                self.fresh.pop_lru();
            }
        }
    }
}

impl fmt::Debug for Sids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sids({})", self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(back_end: &str) -> Arc<str> {
        Arc::from(back_end)
    }

    fn print(number: usize) -> Print {
        Print::new("site", &number.to_string())
    }

    #[test]
    fn a_session_is_remembered_as_long_as_it_is_used() {
        let sids = Sids::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        sids.learn(print(1), &name("a"), at(0));
        for seconds in [10, 200, 499, 700] {
            assert_eq!(sids.find(print(1), at(seconds)).as_deref(), Some("a"), "{seconds}");
        }
        assert_eq!(sids.find(print(1), at(1000)), None, "idle");
        assert_eq!(sids.count(), 0);
        sids.learn(print(2), &name("a"), at(0));
        assert_eq!(sids.find(print(2), at(300)), None, "never used");
        assert_eq!(sids.count(), 0);
    }

    #[test]
    fn what_is_learned_last_counts_and_what_is_over_is_forgotten() {
        let sids = Sids::default();
        let now = Instant::now();
        sids.learn(print(1), &name("a"), now);
        sids.learn(print(1), &name("b"), now);
        assert_eq!(sids.find(print(1), now).as_deref(), Some("b"));
        sids.learn(print(1), &name("c"), now);
        assert_eq!(sids.find(print(1), now).as_deref(), Some("c"));
        assert_eq!(sids.count(), 1);
        sids.forget(print(1));
        assert_eq!((sids.find(print(1), now), sids.count()), (None, 0));
    }

    #[test]
    fn an_id_of_one_site_is_nothing_in_another() {
        assert_ne!(Print::new("a", "bc"), Print::new("ab", "c"));
        assert_ne!(Print::new("a", "x"), Print::new("b", "x"));
        assert_eq!(Print::new("a", "x"), Print::new("a", "x"));
        assert!(format!("{:?}", print(1)).len() < 30);
    }

    #[test]
    fn a_flood_of_new_sessions_pushes_out_none_in_use() {
        let sids = Sids::with_room(1600);
        let start = Instant::now();
        let active = 0..800;
        for number in active.clone() {
            sids.learn(print(number), &name("a"), start);
            assert!(sids.find(print(number), start).is_some());
        }
        for number in 10_000..40_000 {
            sids.learn(print(number), &name("b"), start + Duration::from_secs(1));
            assert!(sids.count() <= 1600);
        }
        let now = start + Duration::from_secs(2);
        let lost = active.filter(|number| sids.find(print(*number), now).is_none()).count();
        assert_eq!(lost, 0);
        assert!(sids.find(print(39_999), now).is_some(), "and the newest is known");
    }

    #[test]
    fn idle_sessions_make_room_when_they_are_met() {
        let sids = Sids::with_room(1600);
        let start = Instant::now();
        for number in 0..1000 {
            sids.learn(print(number), &name("a"), start);
        }
        for number in 1000..1500 {
            sids.learn(print(number), &name("a"), start + IDLE);
        }
        assert!(sids.count() <= 500, "{}", sids.count());
    }

    proptest! {
        #[test]
        fn the_register_never_grows_over_its_room_nor_says_what_it_was_not_told(
            deeds in proptest::collection::vec((0_u8..3, 0_usize..60, 0_u64..90), 0..300)
        ) {
            let sids = Sids::with_room(32);
            let mut now = Instant::now();
            let mut told = std::collections::HashMap::new();
            for (deed, number, seconds) in deeds {
                now += Duration::from_secs(seconds);
                match deed {
                    0 => {
                        let back_end = name(&format!("{}", number + seconds as usize % 3));
                        sids.learn(print(number), &back_end, now);
                        prop_assert_eq!(sids.find(print(number), now), Some(back_end.clone()));
                        told.insert(number, back_end);
                    }
                    1 => {
                        if let Some(found) = sids.find(print(number), now) {
                            prop_assert_eq!(told.get(&number), Some(&found));
                        }
                    }
                    _ => {
                        sids.forget(print(number));
                        told.remove(&number);
                    }
                }
                prop_assert!(sids.count() <= 32);
            }
        }
    }
}
