//! From a server name to a number: exact names and wildcards, the most specific first.

use rustc_hash::FxHashMap;

use crate::base::host::HostPattern;

/// Which of several things a name belongs to. One lookup per label at most.
#[derive(Debug, Default)]
pub(super) struct NameTable {
    exact: FxHashMap<Box<str>, usize>,
    /// The names of `.x`: exact too, but an exact pattern of another site goes before.
    apex: FxHashMap<Box<str>, usize>,
    below: FxHashMap<Box<str>, usize>,
    starts_with: FxHashMap<Box<str>, usize>,
}

impl NameTable {
    /// Adds a pattern; of two equal ones the first stays.
    pub(super) fn add(&mut self, pattern: &HostPattern, to: usize) {
        let put = |map: &mut FxHashMap<Box<str>, usize>, name: &str| {
            map.entry(name.into()).or_insert(to);
        };
        match pattern {
            HostPattern::Exact(host) => put(&mut self.exact, host.as_str()),
            HostPattern::Below(host) => put(&mut self.below, host.as_str()),
            HostPattern::AtOrBelow(host) => {
                put(&mut self.apex, host.as_str());
                put(&mut self.below, host.as_str());
            }
            HostPattern::StartsWith(host) => put(&mut self.starts_with, host.as_str()),
        }
    }

    /// What `name` (lower case, no trailing dot) belongs to: its exact pattern, else the longest `*.x` or `.x`, else
    /// the longest `x.*`, as nginx has it.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.exact
            .get(name)
            .or_else(|| self.apex.get(name))
            .or_else(|| parents(name).find_map(|parent| self.below.get(parent)))
            .or_else(|| stems(name).find_map(|stem| self.starts_with.get(stem)))
            .copied()
    }
}

/// `b.c` and `c` of `a.b.c`: the longest first.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, parent)| parent)).skip(1)
}

/// `a.b` and `a` of `a.b.c`: the longest first.
fn stems(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |name| name.rsplit_once('.').map(|(stem, _)| stem)).skip(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_pattern_wins() {
        let patterns = ["*.example.com", ".b.example.com", "a.b.example.com", "www.example.*", "*.com", "www.*"];
        let mut table = NameTable::default();
        for (number, pattern) in patterns.iter().enumerate() {
            table.add(&HostPattern::parse(pattern).unwrap(), number);
        }
        table.add(&HostPattern::parse("*.com").unwrap(), 99);
        for (name, pattern) in [
            ("x.example.com", Some("*.example.com")),
            ("x.y.example.com", Some("*.example.com")),
            ("b.example.com", Some(".b.example.com")),
            ("x.b.example.com", Some(".b.example.com")),
            ("a.b.example.com", Some("a.b.example.com")),
            ("x.a.b.example.com", Some(".b.example.com")),
            ("example.com", Some("*.com")),
            ("www.example.com", Some("*.example.com")),
            ("www.example.org", Some("www.example.*")),
            ("www.example.co.uk", Some("www.example.*")),
            ("www.other.org", Some("www.*")),
            ("www", None),
            ("com", None),
            ("", None),
            (".", None),
            ("example.org", None),
        ] {
            assert_eq!(table.find(name).map(|number| patterns[number]), pattern, "{name}");
        }
    }

    #[test]
    fn an_exact_name_goes_before_an_apex_whatever_their_order() {
        let mut table = NameTable::default();
        table.add(&HostPattern::parse(".example.com").unwrap(), 0);
        table.add(&HostPattern::parse("example.com").unwrap(), 1);
        assert_eq!(table.find("example.com"), Some(1));
        assert_eq!(table.find("a.example.com"), Some(0));
    }
}
