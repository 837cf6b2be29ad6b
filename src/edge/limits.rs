//! Rate limits, `[limit.NAME]`: who has asked how often. The tables outlive every reload, and are as large as they are
//! from the start: a flood of addresses costs no memory, and cannot wash away what a busy client owes.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::HeaderName;

use crate::base::cached_time;
use crate::base::fault::{Fault, Kind};
use crate::base::gcra::Gcra;
use crate::base::network::client_key;
use crate::http::request::ClientRequest;

/// Clients that a table knows at once.
pub const CLIENTS: usize = 65_536;

/// The places of one bucket. A client's bucket is chosen by its hash, and it has no place elsewhere.
const PLACES: usize = 8;

/// Refusals are told at most this often, of each limit.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What a client is known by: 64 bits of a hash with a key that is new in each process.
type Id = u64;

/// A limit as the file has it, with the table of its name.
#[derive(Debug)]
pub struct Limit {
    /// The name in the file.
    pub name: Arc<str>,
    /// The field that tells clients apart; `None` is their address.
    pub field: Option<HeaderName>,
    /// How often.
    pub rate: Gcra,
    /// What is answered to more.
    pub status: u16,
    /// Who has asked.
    pub table: Arc<Table>,
}

impl Limit {
    /// Counts `request`, or says when to come again.
    pub fn count(&self, request: &ClientRequest) -> Result<(), Fault> {
        let value = self.field.as_ref().and_then(|name| request.headers.get(name));
        let id = match value {
            Some(value) => self.table.hash.hash_one(("field", value.as_bytes())),
            None => self.table.hash.hash_one(("address", client_key(request.client.address))),
        };
        self.table.count(id, &self.rate, self.table.now()).map_err(|wait| {
            self.table.refused.fetch_add(1, Relaxed);
            Fault::new(Kind::Limited, format!("over [limit.{}]", self.name)).status(self.status).retry_after(wait)
        })
    }
}

/// The tables of all limits that a configuration in memory names.
#[derive(Debug, Default)]
pub struct RateLimits(Mutex<HashMap<Arc<str>, Weak<Table>>>);

impl RateLimits {
    /// The table of the limit `name`: the same one for as long as anybody has it.
    pub fn table(&self, name: &Arc<str>) -> Arc<Table> {
        let mut tables = locked(&self.0);
        if let Some(table) = tables.get(name).and_then(Weak::upgrade) {
            return table;
        }
        tables.retain(|_, table| table.strong_count() > 0);
        let table = Arc::new(Table::new());
        tables.insert(name.clone(), Arc::downgrade(&table));
        table
    }

    /// What each limit has refused since its table was made.
    pub fn refused(&self) -> Vec<(String, u64)> {
        let named = |(name, table): (Arc<str>, Arc<Table>)| {
            (format!("requests refused by limit.{name}"), table.refused.load(Relaxed))
        };
        self.tables().into_iter().map(named).collect()
    }

    /// What to tell of refusals since they were last told, at most once a minute for each limit. Cheap, and any worker
    /// may ask.
    pub fn report(&self, now: Instant) -> Vec<String> {
        let tell = |(name, table): (Arc<str>, Arc<Table>)| {
            let refused = table.refused.load(Relaxed);
            let mut told = locked(&table.told);
            let fresh = refused - told.refused.min(refused);
            let recently = told.at.is_some_and(|at| now.saturating_duration_since(at) < TOLD_EVERY);
            if fresh == 0 || recently {
                return None;
            }
            *told = Told { at: Some(now), refused };
            let requests = if fresh == 1 { "request" } else { "requests" };
            Some(format!("refused {fresh} {requests}: over [limit.{name}]; the access log has each of them"))
        };
        self.tables().into_iter().filter_map(tell).collect()
    }

    fn tables(&self) -> Vec<(Arc<str>, Arc<Table>)> {
        let tables = locked(&self.0);
        let mut all: Vec<_> =
            tables.iter().filter_map(|(name, table)| Some((name.clone(), table.upgrade()?))).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }
}

/// When the clients of one limit are due. 16 bytes a client and a lock for every eight: 1.1 MiB, whatever happens.
#[derive(Debug)]
pub struct Table {
    hash: RandomState,
    /// Times are counted from here.
    start: Instant,
    buckets: Box<[Mutex<Bucket>]>,
    refused: AtomicU64,
    told: Mutex<Told>,
}

type Bucket = [Place; PLACES];

/// A client that is due in the past is idle: nothing has to be known of it, and its place is free. So is a place that
/// nobody ever had.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    id: Id,
    due: u64,
}

#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    refused: u64,
}

impl Table {
    fn new() -> Table {
        Table {
            hash: RandomState::new(),
            start: Instant::now(),
            buckets: (0..CLIENTS / PLACES).map(|_| Mutex::default()).collect(),
            refused: AtomicU64::new(0),
            told: Mutex::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(cached_time::since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }

    /// One more of `id`. Where its bucket is full, it takes the place of the one that owes least: of an idle client, if
    /// there is one. Whoever wants its own debt forgotten has to make eight others owe more, and cannot know which of
    /// them share its bucket.
    fn count(&self, id: Id, rate: &Gcra, now: u64) -> Result<(), Duration> {
        let bucket = usize::try_from(id % (CLIENTS / PLACES) as u64).ok().and_then(|at| self.buckets.get(at));
        let Some(bucket) = bucket else { return Ok(()) };
        let mut bucket = locked(bucket);
        if let Some(known) = bucket.iter_mut().find(|place| place.id == id) {
            known.due = rate.adopt(known.due, now);
            known.due = rate.admit(known.due, now)?;
            return Ok(());
        }
        let due = rate.admit(0, now)?;
        if let Some(place) = bucket.iter_mut().min_by_key(|place| place.due) {
            *place = Place { id, due };
        }
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::rate::Rate;

    const SECOND: u64 = 1_000_000_000;

    fn gcra(rate: &str, burst: u32) -> Gcra {
        Gcra::new(Rate::parse(rate).unwrap(), burst)
    }

    #[test]
    fn a_million_clients_take_no_more_room_than_the_first() {
        let table = Table::new();
        let rate = gcra("1/m", 3);
        for client in 0..1_000_000_u64 {
            let id = table.hash.hash_one(client);
            assert_eq!(table.count(id, &rate, SECOND + client), Ok(()), "who is new passes");
        }
        let bytes = size_of_val(&*table.buckets);
        assert!(bytes <= 1_179_648, "{bytes}");
        assert_eq!(table.buckets.len() * PLACES, CLIENTS);
    }

    #[test]
    fn a_flood_does_not_wash_away_the_debt_of_a_busy_client() {
        let table = Table::new();
        let rate = gcra("1/m", 3);
        let busy = table.hash.hash_one("busy");
        while table.count(busy, &rate, SECOND).is_ok() {}
        for client in 0..1_000_000_u64 {
            let _ = table.count(table.hash.hash_one(client), &rate, SECOND + client);
        }
        assert!(table.count(busy, &rate, 2 * SECOND).is_err(), "three others of a bucket would have to owe as much");
    }

    #[test]
    fn an_idle_client_makes_room_before_a_busy_one() {
        let table = Table::new();
        let rate = gcra("1/s", 0);
        let same_bucket = |n: u64| n * (CLIENTS / PLACES) as u64 + 7;
        for n in 1..=8 {
            table.count(same_bucket(n), &rate, SECOND * n).unwrap();
        }
        // At 8.5 s the first seven are idle, the eighth is not: seven more find a place and none of them loses it.
        let now = SECOND * 17 / 2;
        for n in 9..=15 {
            table.count(same_bucket(n), &rate, now).unwrap();
        }
        for n in 8..=15 {
            assert!(table.count(same_bucket(n), &rate, now).is_err(), "{n}");
        }
        // All owe: the one that owes least goes, which is the eighth.
        table.count(same_bucket(16), &rate, now).unwrap();
        assert!(table.count(same_bucket(15), &rate, now).is_err());
        assert!(table.count(same_bucket(8), &rate, now).is_ok());
    }

    #[test]
    fn a_table_lives_as_long_as_its_name_is_in_a_configuration() {
        let limits = RateLimits::default();
        let name: Arc<str> = "api".into();
        let (rate, faster) = (gcra("1/m", 0), gcra("1/s", 0));
        let before = limits.table(&name);
        before.count(7, &rate, SECOND).unwrap();
        let after = limits.table(&name);
        drop(before);
        assert_eq!(after.count(7, &rate, SECOND), Err(Duration::from_secs(60)), "a reload forgets nothing");
        assert_eq!(after.count(7, &faster, SECOND), Err(Duration::from_secs(1)), "and a new rate holds at once");
        drop(after);
        assert!(limits.table(&name).count(7, &rate, SECOND).is_ok(), "what had left the file begins anew");
    }

    #[test]
    fn refusals_are_told_once_a_minute_with_their_number() {
        let limits = RateLimits::default();
        let (name, start) = ("api".into(), Instant::now());
        let table = limits.table(&name);
        assert!(limits.report(start).is_empty());
        table.refused.fetch_add(1, Relaxed);
        let line = "refused 1 request: over [limit.api]; the access log has each of them";
        assert_eq!(limits.report(start), [line]);
        table.refused.fetch_add(5, Relaxed);
        assert!(limits.report(start + TOLD_EVERY / 2).is_empty());
        assert!(limits.report(start + TOLD_EVERY)[0].starts_with("refused 5 requests: "));
        assert_eq!(limits.refused(), [("requests refused by limit.api".to_owned(), 6)]);
    }

    #[test]
    fn threads_that_race_let_no_more_through_than_one_alone() {
        let table = Table::new();
        let (rate, passed) = (gcra("1/m", 99), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let count = (0..1000).filter(|_| table.count(7, &rate, SECOND).is_ok()).count();
                    passed.fetch_add(count as u64, Relaxed);
                });
            }
        });
        assert_eq!(passed.into_inner(), 100);
    }

    proptest! {
        /// As long as a table has room it decides as if it knew everybody.
        #[test]
        fn with_room_nobody_is_confused_with_another(asked in prop::collection::vec((0_u64..40, 0_u64..80_000_000), 1..400)) {
            let (table, rate) = (Table::new(), gcra("10/s", 2));
            let (mut now, mut model) = (SECOND, HashMap::<u64, u64>::new());
            for (client, step) in asked {
                now += step;
                // At most five of the forty share a bucket.
                let id = client * (CLIENTS / PLACES / 8) as u64;
                let due = model.entry(client).or_default();
                let wanted = rate.admit(*due, now).map(|next| *due = next);
                prop_assert_eq!(table.count(id, &rate, now), wanted);
            }
        }
    }
}
