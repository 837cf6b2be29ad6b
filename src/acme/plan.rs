//! Which certificates there are to be. Pure.
//!
//! The names of one site share a certificate, so that a file of many hosts is few orders. A name that two sites have is
//! ordered once; a name that some site's wildcard covers is not ordered at all. Addresses are apart from names, since
//! authorities certify them under other terms; and so is, one by one, each name that an authority could not validate:
//! it must not hold up the others.

use std::collections::BTreeSet;

use crate::base::certified_name::CertifiedName;
use crate::store::label;

/// More names than this are not put into one certificate (Let's Encrypt takes 100; its profiles of short life 25).
pub const MOST_NAMES: usize = 25;

/// What one site needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteNames {
    /// The site's name.
    pub site: String,
    /// The names of its hosts and aliases.
    pub names: Vec<CertifiedName>,
}

/// One certificate that there is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its names, in the order of the file. The first one gives it its name; no other certificate of the plan has it.
    pub names: Vec<CertifiedName>,
    /// The sites that use it.
    pub sites: Vec<String>,
}

impl Planned {
    /// Where it is kept: the label of its first name.
    pub fn label(&self) -> String {
        label(&self.names.first().map(CertifiedName::to_string).unwrap_or_default())
    }

    /// Whether it is good for `name`.
    pub fn covers(&self, name: &CertifiedName) -> bool {
        self.names.iter().any(|own| own == name || !name.is_wildcard() && own.covers(&name.to_string()))
    }
}

/// The certificates for `sites`; the names `apart` get one each.
pub fn plan(sites: &[SiteNames], apart: &BTreeSet<CertifiedName>) -> Vec<Planned> {
    let wildcards: Vec<&CertifiedName> =
        sites.iter().flat_map(|site| &site.names).filter(|name| name.is_wildcard() && !apart.contains(name)).collect();
    let mut planned: Vec<Planned> = Vec::new();
    for site in sites {
        let mut own: Vec<Planned> = Vec::new();
        for name in &site.names {
            let others = wildcards.iter().find(|wildcard| **wildcard != name && covers(wildcard, name));
            let wanted = others.copied().unwrap_or(name);
            if let Some(known) = planned.iter_mut().chain(&mut own).find(|known| known.names.contains(wanted)) {
                if !known.sites.contains(&site.site) {
                    known.sites.push(site.site.clone());
                }
                continue;
            }
            let alone = apart.contains(wanted);
            let shared = own.iter_mut().find(|other| {
                let kind = |name: &CertifiedName| matches!(name, CertifiedName::Address(_));
                let first = other.names.first();
                !alone
                    && other.names.len() < MOST_NAMES
                    && first.is_some_and(|first| kind(first) == kind(wanted) && !apart.contains(first))
            });
            match shared {
                Some(shared) => shared.names.push(wanted.clone()),
                None => own.push(Planned { names: vec![wanted.clone()], sites: vec![site.site.clone()] }),
            }
        }
        planned.extend(own);
    }
    planned
}

fn covers(wildcard: &CertifiedName, name: &CertifiedName) -> bool {
    !name.is_wildcard() && wildcard.covers(&name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::host::HostPattern;

    fn site(name: &str, hosts: &[&str]) -> SiteNames {
        let names = hosts.iter().flat_map(|host| CertifiedName::of_pattern(&HostPattern::parse(host).unwrap()));
        SiteNames { site: name.to_owned(), names: names.collect() }
    }

    fn planned(sites: &[SiteNames], apart: &[&str]) -> Vec<String> {
        let apart = apart.iter().map(|name| CertifiedName::Dns((*name).to_owned())).collect();
        let text = |planned: &Planned| {
            let names: Vec<String> = planned.names.iter().map(CertifiedName::to_string).collect();
            format!("{}: {}", planned.sites.join("+"), names.join(" "))
        };
        plan(sites, &apart).iter().map(text).collect()
    }

    #[test]
    fn the_names_of_a_site_share_a_certificate() {
        let sites = [site("a", &["a.example", "www.a.example"]), site("b", &["b.example"])];
        assert_eq!(planned(&sites, &[]), ["a: a.example www.a.example", "b: b.example"]);
    }

    #[test]
    fn a_name_of_two_sites_is_ordered_once() {
        let sites = [site("a", &["a.example", "x.example"]), site("b", &["x.example", "b.example"])];
        assert_eq!(planned(&sites, &[]), ["a+b: a.example x.example", "b: b.example"]);
    }

    #[test]
    fn a_wildcard_of_any_site_covers_the_names_of_all() {
        let sites = [site("a", &["x.example", "a.x.example", "b.a.x.example"]), site("b", &[".x.example"])];
        assert_eq!(planned(&sites, &[]), ["a+b: x.example *.x.example b.a.x.example"]);
    }

    #[test]
    fn addresses_are_apart_from_names() {
        let sites = [site("a", &["a.example", "192.0.2.1", "b.example", "[2001:db8::1]"])];
        assert_eq!(planned(&sites, &[]), ["a: a.example b.example", "a: 192.0.2.1 2001:db8::1"]);
    }

    #[test]
    fn a_name_that_fails_holds_up_no_other() {
        let sites = [site("a", &["a.example", "bad.example", "c.example", "worse.example", "d.example"])];
        assert_eq!(
            planned(&sites, &["bad.example", "worse.example"]),
            ["a: a.example c.example d.example", "a: bad.example", "a: worse.example"]
        );
        assert_eq!(
            planned(&sites, &["a.example"]),
            ["a: a.example", "a: bad.example c.example worse.example d.example"]
        );
    }

    #[test]
    fn a_certificate_is_kept_under_its_first_name() {
        let labels = |hosts: &[&str]| -> Vec<String> {
            plan(&[site("a", hosts)], &BTreeSet::new()).iter().map(Planned::label).collect()
        };
        assert_eq!(labels(&["a.example", "b.example"]), ["a.example"]);
        assert_eq!(labels(&["*.x.example"]), ["_.x.example"]);
    }

    #[test]
    fn a_wildcard_that_fails_covers_nothing() {
        let sites = [site("a", &[".x.example", "a.x.example"])];
        assert_eq!(planned(&sites, &[]), ["a: x.example *.x.example"]);
        assert_eq!(planned(&sites, &["*.x.example"]), ["a: x.example a.x.example", "a: *.x.example"]);
    }

    #[test]
    fn a_certificate_has_a_limit_of_names() {
        let hosts: Vec<String> = (0..60).map(|n| format!("h{n}.example")).collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let sizes: Vec<usize> =
            plan(&[site("a", &hosts)], &BTreeSet::new()).iter().map(|planned| planned.names.len()).collect();
        assert_eq!(sizes, [25, 25, 10]);
    }
}
