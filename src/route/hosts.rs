//! From a host to the site that answers for it.

use rustc_hash::FxHashMap;

use crate::base::host::{Host, HostPattern};

/// Sites by host pattern. A lookup costs one hash per label of the name, whatever the number of sites.
#[derive(Debug, Clone)]
pub struct HostTable<T> {
    exact: FxHashMap<String, T>,
    /// By suffix, without its dot: everything strictly below.
    below: FxHashMap<String, T>,
    /// By the labels in front of `.*`.
    starts_with: FxHashMap<String, T>,
    default: Option<T>,
}

impl<T> Default for HostTable<T> {
    fn default() -> HostTable<T> {
        HostTable {
            exact: FxHashMap::default(),
            below: FxHashMap::default(),
            starts_with: FxHashMap::default(),
            default: None,
        }
    }
}

impl<T: Clone> HostTable<T> {
    /// Adds a pattern. The first of two that are the same stays.
    pub fn insert(&mut self, pattern: &HostPattern, target: T) {
        match pattern {
            HostPattern::Exact(host) => {
                self.exact.entry(host.as_str().to_owned()).or_insert(target);
            }
            HostPattern::Below(host) => {
                self.below.entry(host.as_str().to_owned()).or_insert(target);
            }
            HostPattern::AtOrBelow(host) => {
                self.below.entry(host.as_str().to_owned()).or_insert(target.clone());
                self.exact.entry(host.as_str().to_owned()).or_insert(target);
            }
            HostPattern::StartsWith(host) => {
                self.starts_with.entry(host.as_str().to_owned()).or_insert(target);
            }
        }
    }

    /// Sets what takes every other host.
    pub fn set_default(&mut self, target: T) {
        self.default.get_or_insert(target);
    }

    /// The target for `host`: exact names first, then the longest `*.x`, then the longest `x.*`, then the default;
    /// nginx's order.
    pub fn find(&self, host: &Host) -> Option<&T> {
        let name = host.as_str();
        if let Some(target) = self.exact.get(name) {
            return Some(target);
        }
        if !self.below.is_empty() {
            let suffixes = name.match_indices('.').filter_map(|(dot, _)| name.get(dot + 1..));
            if let Some(target) = suffixes.filter_map(|suffix| self.below.get(suffix)).next() {
                return Some(target);
            }
        }
        if !self.starts_with.is_empty() {
            let prefixes = name.rmatch_indices('.').filter_map(|(dot, _)| name.get(..dot));
            if let Some(target) = prefixes.filter_map(|prefix| self.starts_with.get(prefix)).next() {
                return Some(target);
            }
        }
        self.default.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_pattern_wins() {
        let mut table = HostTable::default();
        for (i, pattern) in
            ["a.example.com", "*.example.com", "*.b.example.com", ".example.org", "www.example.*"].iter().enumerate()
        {
            table.insert(&HostPattern::parse(pattern).unwrap(), i);
        }
        let find = |name: &str| table.find(&Host::parse(name).unwrap()).copied();
        assert_eq!(find("A.example.com"), Some(0));
        assert_eq!(find("x.example.com"), Some(1));
        assert_eq!(find("x.y.example.com"), Some(1));
        assert_eq!(find("x.b.example.com"), Some(2));
        assert_eq!(find("example.com"), None);
        assert_eq!(find("example.org"), Some(3));
        assert_eq!(find("x.example.org"), Some(3));
        assert_eq!(find("www.example.co.uk"), Some(4));
        assert_eq!(find("wwwx.example.net"), None);
        let mut with_default = table.clone();
        with_default.set_default(9);
        assert_eq!(with_default.find(&Host::parse("other.test").unwrap()), Some(&9));
    }
}
