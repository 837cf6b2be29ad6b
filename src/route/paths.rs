//! From a path, a method and the wish to upgrade to the first rule of a site that takes them.

use regex::bytes::{Regex, RegexSet};
use rustc_hash::FxHashMap;

use crate::base::pattern::PathPattern;

/// The rules of one site, in order. A lookup costs one hash per segment of the path, as far as the longest pattern goes,
/// one per length that bare prefixes have, and one pass over all regular expressions together; not one step per rule.
#[derive(Debug, Clone)]
pub struct RuleTable<T> {
    rules: Vec<Rule<T>>,
    exact: FxHashMap<Vec<u8>, Vec<usize>>,
    below: FxHashMap<Vec<u8>, Vec<usize>>,
    /// Bytes of the longest of `below`: a path of 8 KiB may have thousands of segments, and no rule for any of them.
    longest_below: usize,
    prefixes: FxHashMap<Vec<u8>, Vec<usize>>,
    /// Which lengths there are among `prefixes`, each once, the shortest first.
    prefix_lengths: Vec<usize>,
    regexes: RegexSet,
    /// Which rule each expression of the set belongs to.
    regex_rules: Vec<usize>,
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule<T> {
    /// Which paths.
    pub matcher: Matcher,
    /// Which methods; empty is all.
    pub methods: Vec<String>,
    /// Only WebSocket handshakes.
    pub upgrade: bool,
    /// What it leads to.
    pub target: T,
}

/// Which paths a rule takes.
#[derive(Debug, Clone)]
pub enum Matcher {
    /// A pattern.
    Path(PathPattern),
    /// An expression over the whole path.
    Regex(Regex),
}

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The decoded, canonical path.
    pub path: &'a [u8],
    /// The method.
    pub method: &'a str,
    /// Whether it is a WebSocket handshake.
    pub websocket: bool,
}

impl<T> RuleTable<T> {
    /// A table of `rules`; of several that take a request, the first wins.
    pub fn new(rules: Vec<Rule<T>>) -> Result<RuleTable<T>, regex::Error> {
        let mut table = RuleTable {
            exact: FxHashMap::default(),
            below: FxHashMap::default(),
            longest_below: 0,
            prefixes: FxHashMap::default(),
            prefix_lengths: Vec::new(),
            regexes: RegexSet::empty(),
            regex_rules: Vec::new(),
            rules: Vec::new(),
        };
        let mut expressions = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            match &rule.matcher {
                Matcher::Path(PathPattern::Exact(path)) => {
                    table.exact.entry(path.clone().into_bytes()).or_default().push(index);
                }
                Matcher::Path(PathPattern::Below(path)) => {
                    table.below.entry(path.clone().into_bytes()).or_default().push(index);
                }
                Matcher::Path(PathPattern::Prefix(prefix)) => {
                    table.prefixes.entry(prefix.clone().into_bytes()).or_default().push(index);
                }
                Matcher::Regex(regex) => {
                    expressions.push(regex.as_str().to_owned());
                    table.regex_rules.push(index);
                }
            }
        }
        table.longest_below = table.below.keys().map(Vec::len).max().unwrap_or_default();
        table.prefix_lengths = table.prefixes.keys().map(Vec::len).collect();
        table.prefix_lengths.sort_unstable();
        table.prefix_lengths.dedup();
        table.regexes = RegexSet::new(expressions)?;
        table.rules = rules;
        Ok(table)
    }

    /// The first rule that takes what is asked.
    pub fn find(&self, asked: Asked<'_>) -> Option<&Rule<T>> {
        let mut best: Option<usize> = None;
        let mut consider = |indices: &[usize]| {
            for index in indices {
                if best.is_some_and(|b| b <= *index) {
                    break;
                }
                if self.rules.get(*index).is_some_and(|rule| rule.takes(asked)) {
                    best = Some(*index);
                    break;
                }
            }
        };
        if let Some(indices) = self.exact.get(asked.path) {
            consider(indices);
        }
        if !self.below.is_empty() {
            // "/a/b" is below "", "/a" and "/a/b".
            let ends = memchr::memchr_iter(b'/', asked.path).chain([asked.path.len()]);
            let ends = ends.take_while(|end| *end <= self.longest_below);
            for stem in ends.filter_map(|end| asked.path.get(..end)) {
                if let Some(indices) = self.below.get(stem) {
                    consider(indices);
                }
            }
        }
        for stem in self.prefix_lengths.iter().map_while(|length| asked.path.get(..*length)) {
            if let Some(indices) = self.prefixes.get(stem) {
                consider(indices);
            }
        }
        if !self.regex_rules.is_empty() {
            for matched in self.regexes.matches(asked.path) {
                if let Some(index) = self.regex_rules.get(matched) {
                    consider(&[*index]);
                }
            }
        }
        best.and_then(|index| self.rules.get(index))
    }

    /// The rules in order.
    pub fn rules(&self) -> &[Rule<T>] {
        &self.rules
    }
}

impl<T> Rule<T> {
    fn takes(&self, asked: Asked<'_>) -> bool {
        if self.upgrade && !asked.websocket {
            return false;
        }
        // A route for GET answers HEAD as well (RFC 9110, section 9.3.2).
        let method = |m: &String| m == asked.method || (asked.method == "HEAD" && m == "GET");
        if !self.methods.is_empty() && !self.methods.iter().any(method) {
            return false;
        }
        match &self.matcher {
            Matcher::Path(pattern) => pattern.matches(asked.path),
            Matcher::Regex(regex) => regex.is_match(asked.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pattern: &str, target: u32) -> Rule<u32> {
        let matcher = match pattern.strip_prefix('~') {
            Some(regex) => Matcher::Regex(Regex::new(regex).unwrap()),
            None => Matcher::Path(PathPattern::parse(pattern).unwrap()),
        };
        Rule { matcher, methods: Vec::new(), upgrade: false, target }
    }

    fn ask(table: &RuleTable<u32>, path: &str) -> Option<u32> {
        table.find(Asked { path: path.as_bytes(), method: "GET", websocket: false }).map(|r| r.target)
    }

    #[test]
    fn the_first_rule_in_order_wins_whatever_its_kind() {
        let table = RuleTable::new(vec![
            rule("/a/b", 0),
            rule("/a/*", 1),
            rule("~^/v[0-9]+/", 2),
            rule("/v*", 3),
            rule("/*", 4),
            rule("/a/c", 5),
        ])
        .unwrap();
        assert_eq!(ask(&table, "/a/b"), Some(0));
        assert_eq!(ask(&table, "/a"), Some(1));
        assert_eq!(ask(&table, "/a/c"), Some(1));
        assert_eq!(ask(&table, "/v1/x"), Some(2));
        assert_eq!(ask(&table, "/vx"), Some(3));
        assert_eq!(ask(&table, "/ab"), Some(4));
        assert_eq!(ask(&table, "/"), Some(4));
    }

    #[test]
    fn the_longest_pattern_and_prefixes_of_every_length_are_found() {
        let table = RuleTable::new(vec![
            rule("/a/b/c/*", 0),
            rule("/pre*", 1),
            rule("/p*", 2),
            rule("/prefix*", 3),
            rule("/q/*", 4),
            rule("/qu*", 5),
        ])
        .unwrap();
        assert_eq!(ask(&table, "/a/b/c"), Some(0));
        assert_eq!(ask(&table, "/a/b/c/d/e/f"), Some(0));
        assert_eq!(ask(&table, "/a/b/cd"), None);
        assert_eq!(ask(&table, "/a/b"), None);
        // The first in order, not the longest.
        assert_eq!(ask(&table, "/prefixes"), Some(1));
        assert_eq!(ask(&table, "/pr"), Some(2));
        assert_eq!(ask(&table, "/qu"), Some(5));
        assert_eq!(ask(&table, &format!("/q{}", "/x".repeat(4096))), Some(4));
    }

    #[test]
    fn a_rule_for_upgrades_lets_plain_requests_pass_by() {
        let mut upgrade = rule("/*", 0);
        upgrade.upgrade = true;
        let mut post = rule("/x", 1);
        post.methods = vec!["POST".into()];
        let mut get = rule("/x", 2);
        get.methods = vec!["GET".into()];
        let table = RuleTable::new(vec![upgrade, post, get]).unwrap();
        let find = |method, websocket| table.find(Asked { path: b"/x", method, websocket }).map(|r| r.target);
        assert_eq!(find("GET", true), Some(0));
        assert_eq!(find("GET", false), Some(2));
        assert_eq!(find("POST", false), Some(1));
        assert_eq!(find("HEAD", false), Some(2));
        assert_eq!(find("PUT", false), None);
    }

    proptest::proptest! {
        #[test]
        fn the_table_finds_what_a_walk_over_the_rules_finds(
            patterns in proptest::collection::vec("/[ab]{0,2}(/[ab]{0,2}){0,2}(/\\*|\\*)?", 1..12),
            path in "/[ab]{0,2}(/[ab]{0,2}){0,3}",
        ) {
            let rules: Vec<Rule<u32>> = patterns.iter().enumerate().map(|(i, p)| rule(p, i as u32)).collect();
            let asked = Asked { path: path.as_bytes(), method: "GET", websocket: false };
            let walked = rules.iter().find(|r| r.takes(asked)).map(|r| r.target);
            let table = RuleTable::new(rules.clone()).unwrap();
            proptest::prop_assert_eq!(table.find(asked).map(|r| r.target), walked);
        }
    }
}
