//! From a host to a site, and from a path to a route.

use divan::Bencher;
use doorward::base::host::{Host, HostPattern};
use doorward::base::pattern::PathPattern;
use doorward::route::{Asked, HostTable, Matcher, Rule, RuleTable};

const COUNTS: [usize; 3] = [10, 1000, 10_000];

fn sites(count: usize, pattern: impl Fn(usize) -> String) -> HostTable<usize> {
    let mut table = HostTable::default();
    for site in 0..count {
        table.insert(&HostPattern::parse(&pattern(site)).unwrap(), site);
    }
    table
}

fn find_site(bencher: Bencher<'_, '_>, table: &HostTable<usize>, host: &str, found: Option<usize>) {
    let host = Host::parse(host).unwrap();
    assert_eq!(table.find(&host), found.as_ref());
    bencher.bench_local(|| table.find(divan::black_box(&host)).copied());
}

#[divan::bench(args = COUNTS)]
fn site_first(bencher: Bencher<'_, '_>, count: usize) {
    find_site(bencher, &sites(count, |site| format!("s{site}.test")), "s0.test", Some(0));
}

#[divan::bench(args = COUNTS)]
fn site_last(bencher: Bencher<'_, '_>, count: usize) {
    let last = count - 1;
    find_site(bencher, &sites(count, |site| format!("s{site}.test")), &format!("s{last}.test"), Some(last));
}

#[divan::bench(args = COUNTS)]
fn site_wildcard(bencher: Bencher<'_, '_>, count: usize) {
    let last = count - 1;
    find_site(bencher, &sites(count, |site| format!("*.s{site}.test")), &format!("a.s{last}.test"), Some(last));
}

#[divan::bench(args = COUNTS)]
fn site_none(bencher: Bencher<'_, '_>, count: usize) {
    find_site(bencher, &sites(count, |site| format!("*.s{site}.test")), "www.example.org", None);
}

/// The longest name that there is, of labels of one letter: a look-up for each.
#[divan::bench(args = COUNTS)]
fn site_none_hostile(bencher: Bencher<'_, '_>, count: usize) {
    find_site(bencher, &sites(count, |site| format!("*.s{site}.test")), &["a"; 127].join("."), None);
}

fn routes(count: usize, pattern: impl Fn(usize) -> String) -> RuleTable<usize> {
    let rule = |route: usize| {
        let matcher = Matcher::Path(PathPattern::parse(&pattern(route)).unwrap());
        Rule { matcher, methods: Vec::new(), upgrade: false, target: route }
    };
    RuleTable::new((0..count).map(rule).collect()).unwrap()
}

fn find_route(bencher: Bencher<'_, '_>, table: &RuleTable<usize>, path: &str, found: Option<usize>) {
    let asked = Asked { path: path.as_bytes(), method: "GET", websocket: false };
    assert_eq!(table.find(asked).map(|rule| rule.target), found);
    bencher.bench_local(|| table.find(divan::black_box(asked)).map(|rule| rule.target));
}

#[divan::bench(args = COUNTS)]
fn route_first(bencher: Bencher<'_, '_>, count: usize) {
    find_route(bencher, &routes(count, |route| format!("/r/{route}/*")), "/r/0/page", Some(0));
}

#[divan::bench(args = COUNTS)]
fn route_last(bencher: Bencher<'_, '_>, count: usize) {
    let last = count - 1;
    find_route(bencher, &routes(count, |route| format!("/r/{route}/*")), &format!("/r/{last}/page"), Some(last));
}

#[divan::bench(args = COUNTS)]
fn route_exact_last(bencher: Bencher<'_, '_>, count: usize) {
    let last = count - 1;
    find_route(bencher, &routes(count, |route| format!("/r/{route}")), &format!("/r/{last}"), Some(last));
}

/// Bare prefixes, as in `/r*`.
#[divan::bench(args = COUNTS)]
fn route_prefix_last(bencher: Bencher<'_, '_>, count: usize) {
    let last = count - 1;
    find_route(bencher, &routes(count, |route| format!("/r/{route:06}-*")), &format!("/r/{last:06}-page"), Some(last));
}

#[divan::bench(args = COUNTS)]
fn route_none(bencher: Bencher<'_, '_>, count: usize) {
    find_route(bencher, &routes(count, |route| format!("/r/{route}/*")), "/somewhere/else", None);
}

/// A path of 8 KiB with a look-up for each of its slashes.
#[divan::bench(args = COUNTS)]
fn route_none_hostile(bencher: Bencher<'_, '_>, count: usize) {
    find_route(bencher, &routes(count, |route| format!("/r/{route}/*")), &"/a".repeat(4 << 10), None);
}
