//! Places for sockets: how many a websocket block, and one client address of it, may have at once. They outlive every
//! reload: a socket keeps its place under a new file, and a lower limit closes nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::base::network::client_key;

/// All places of the process.
#[derive(Debug, Default)]
pub struct Places(Mutex<HashMap<Arc<str>, Weak<Block>>>);

/// How many places there are; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlaceLimits {
    /// Of the block.
    pub all: usize,
    /// Of one client address, IPv6 by /64.
    pub per_address: usize,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The block has no place left.
    Block,
    /// The client's address has no place left.
    Address,
}

#[derive(Debug, Default)]
struct Block(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// By [`client_key`]. Only what is taken: what is back at zero is not here.
    by_network: HashMap<IpAddr, usize>,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub struct Place {
    block: Arc<Block>,
    /// Set where the place counts for the address too.
    network: Option<IpAddr>,
}

impl Places {
    /// Takes a place of `block`, which is a name that stays the same over reloads. Every socket counts for its block,
    /// also while that has no limit; for its address, those that are opened under such a limit do.
    pub fn take(&self, block: &Arc<str>, client: IpAddr, limits: PlaceLimits) -> Result<Place, Full> {
        let block = self.block(block);
        let network = (limits.per_address > 0).then(|| client_key(client));
        {
            let mut taken = block.taken();
            if limits.all > 0 && taken.all >= limits.all {
                return Err(Full::Block);
            }
            if let Some(network) = network {
                let count = taken.by_network.entry(network).or_default();
                if *count >= limits.per_address {
                    return Err(Full::Address);
                }
                *count += 1;
            }
            taken.all += 1;
        }
        Ok(Place { block, network })
    }

    fn block(&self, name: &Arc<str>) -> Arc<Block> {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = blocks.get(name).and_then(Weak::upgrade) {
            return block;
        }
        // A block without sockets is forgotten, at the latest when another gets its first.
        blocks.retain(|_, block| block.strong_count() > 0);
        let block = Arc::new(Block::default());
        blocks.insert(name.clone(), Arc::downgrade(&block));
        block
    }
}

impl Block {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.block.taken();
        taken.all = taken.all.saturating_sub(1);
        let Some(network) = self.network else { return };
        if let Some(count) = taken.by_network.get_mut(&network) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.by_network.remove(&network);
            }
        }
        if taken.by_network.capacity() > 64 && taken.by_network.len() < taken.by_network.capacity() / 4 {
            // A crowd leaves its room behind.
            taken.by_network.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn limits(all: usize, per_address: usize) -> PlaceLimits {
        PlaceLimits { all, per_address }
    }

    #[test]
    fn a_block_is_full_until_a_place_is_given_back() {
        let (places, block, other): (_, Arc<str>, Arc<str>) = (Places::default(), "a".into(), "b".into());
        let client = ip("192.0.2.1");
        let first = places.take(&block, client, limits(2, 0)).unwrap();
        let _second = places.take(&block, client, limits(2, 0)).unwrap();
        assert_eq!(places.take(&block, client, limits(2, 0)).unwrap_err(), Full::Block);
        places.take(&other, client, limits(2, 0)).unwrap();
        drop(first);
        let _third = places.take(&block, client, limits(2, 0)).unwrap();
    }

    #[test]
    fn an_address_is_counted_by_itself_and_ipv6_by_its_network() {
        let (places, block): (_, Arc<str>) = (Places::default(), "a".into());
        let take = |client: &str| places.take(&block, ip(client), limits(0, 1));
        let first = take("192.0.2.1").unwrap();
        assert_eq!(take("192.0.2.1").unwrap_err(), Full::Address);
        assert_eq!(take("::ffff:192.0.2.1").unwrap_err(), Full::Address, "the same, mapped");
        let _neighbour = take("192.0.2.2").unwrap();
        let _v6 = take("2001:db8::1").unwrap();
        assert_eq!(take("2001:db8::ffff:1").unwrap_err(), Full::Address);
        let _other = take("2001:db8:0:1::1").unwrap();
        drop(first);
        let _again = take("192.0.2.1").unwrap();
    }

    #[test]
    fn a_limit_that_comes_later_counts_those_that_are_there() {
        let (places, block): (_, Arc<str>) = (Places::default(), "a".into());
        let client = ip("192.0.2.1");
        let before: Vec<Place> = (0..5).map(|_| places.take(&block, client, limits(0, 0)).unwrap()).collect();
        assert_eq!(places.take(&block, client, limits(5, 0)).unwrap_err(), Full::Block);
        drop(before);
        assert!(places.take(&block, client, limits(1, 1)).is_ok());
    }

    #[test]
    fn nothing_is_kept_of_whoever_has_left() {
        let places = Places::default();
        for n in 0..1000_u32 {
            let block: Arc<str> = format!("site {n}").into();
            let client = IpAddr::from(n.to_be_bytes());
            let _refused =
                places.take(&block, client, limits(1, 1)).map(|_place| places.take(&block, client, limits(1, 1)));
        }
        let block: Arc<str> = "last".into();
        let crowd: Vec<Place> =
            (0..1000_u32).map(|n| places.take(&block, IpAddr::from(n.to_be_bytes()), limits(0, 5)).unwrap()).collect();
        let one = places.take(&block, ip("192.0.2.1"), limits(0, 5)).unwrap();
        drop(crowd);
        assert_eq!(places.0.lock().unwrap().len(), 1);
        let taken = one.block.taken();
        assert_eq!((taken.all, taken.by_network.len()), (1, 1));
        assert!(taken.by_network.capacity() < 100, "{}", taken.by_network.capacity());
    }

    #[test]
    fn places_are_never_given_twice_by_threads_that_race() {
        let (places, block): (_, Arc<str>) = (Places::default(), "a".into());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        if let Ok(place) = places.take(&block, ip("192.0.2.1"), limits(2, 2)) {
                            assert!(place.block.taken().all <= 2);
                        }
                    }
                });
            }
        });
        assert!(places.take(&block, ip("192.0.2.1"), limits(1, 1)).is_ok());
    }
}
