//! Which configurations are in memory: the one in force, and those before it that requests under way still hold.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One configuration, counted from the start. Its snapshot and the sites of it hold it; nothing else does.
#[derive(Debug)]
pub struct Generation(u64);

impl Generation {
    /// The configuration of this number, 1 at the start.
    pub fn new(number: u64) -> Arc<Generation> {
        Arc::new(Generation(number))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        tracing::debug!("configuration {} is freed", self.0);
    }
}

/// All generations that may still be held.
#[derive(Debug, Default)]
pub struct Generations(Mutex<Vec<Weak<Generation>>>);

impl Generations {
    /// `generation` comes into force.
    pub fn enter(&self, generation: &Arc<Generation>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(generation));
    }

    /// The numbers of those that are in memory, the oldest first.
    pub fn held(&self) -> Vec<u64> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(|one| one.upgrade().map(|one| one.0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_known_for_as_long_as_it_is_held() {
        let generations = Generations::default();
        let (first, second) = (Generation::new(1), Generation::new(2));
        generations.enter(&first);
        generations.enter(&second);
        let site = first.clone();
        drop(first);
        assert_eq!(generations.held(), [1, 2]);
        drop(site);
        assert_eq!(generations.held(), [2]);
        generations.enter(&Generation::new(3));
        assert_eq!(generations.0.lock().unwrap().len(), 2, "what was freed is forgotten");
    }
}
