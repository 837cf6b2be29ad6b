//! Other certificates for names whose own one is yet to come.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use super::pair::Pair;
use crate::base::certified_name::CertifiedName;
use crate::base::host::HostPattern;

/// The best other pair for each name. Chosen once per table, so that a handshake is two lookups at most.
#[derive(Debug, Default)]
pub(super) struct Spares {
    exact: HashMap<Box<str>, Arc<Pair>>,
    /// Of `*.x`, by `x`.
    below: HashMap<Box<str>, Arc<Pair>>,
}

impl Spares {
    /// Of several pairs for a name, the one for most of `lacking` is taken, of such the one that lasts longest. One that
    /// is for none of them is left out.
    pub(super) fn choose(mut pairs: Vec<Arc<Pair>>, lacking: &[HostPattern]) -> Spares {
        let worth = |pair: &Pair| lacking.iter().filter(|host| pair.is_for(host)).count();
        pairs.retain(|pair| worth(pair) > 0);
        pairs.sort_by_cached_key(|pair| Reverse((worth(pair), pair.not_after)));
        let mut spares = Spares::default();
        for pair in pairs {
            for name in &pair.names {
                // A handshake cannot ask for an address (RFC 6066, section 3).
                let CertifiedName::Dns(name) = name else { continue };
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut spares.below, parent),
                    None => (&mut spares.exact, name.as_str()),
                };
                map.entry(name.into()).or_insert_with(|| Arc::clone(&pair));
            }
        }
        spares
    }

    /// The pair for `name`: lower case, no trailing dot.
    pub(super) fn find(&self, name: &str) -> Option<&Arc<Pair>> {
        // RFC 9525, section 6.3: a wildcard is the whole left-most label, and matches one label.
        let above = || self.below.get(name.split_once('.')?.1);
        self.exact.get(name).or_else(above)
    }

    /// All of them; one may come more than once.
    pub(super) fn pairs(&self) -> impl Iterator<Item = &Arc<Pair>> {
        self.exact.values().chain(self.below.values())
    }
}
