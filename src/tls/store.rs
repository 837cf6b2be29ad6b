//! The certificate store: which pair answers for which name. One pointer is swapped; no lock on the way of a handshake.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;
use tokio::sync::Notify;

use super::names::NameTable;
use super::pair::{CertificateFiles, CertifiedName, PairError};
use super::slot::Slot;
use crate::base::host::{Host, HostPattern};
use crate::keys::Keys;

/// What a site wants of the store.
#[derive(Debug, Clone)]
pub struct SiteCertificate {
    /// The site's name, for messages.
    pub site: String,
    /// The site's hosts and aliases.
    pub names: Vec<HostPattern>,
    /// Whether the site takes what no other site claims.
    pub default: bool,
    /// Its certificate. Sites that name the same two files share one.
    pub files: CertificateFiles,
}

/// What is served instead where a pair is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    /// Nothing: handshakes for these sites are refused.
    Nothing,
    /// The last good pair.
    Previous,
    /// The pair itself, for want of a better one: it has expired, or is not valid yet.
    Itself,
}

/// A pair that is not as it should be.
#[derive(Debug, Clone)]
pub struct CertificateProblem {
    /// The sites it is for.
    pub sites: Vec<String>,
    /// Its files.
    pub files: CertificateFiles,
    /// What is wrong with it.
    pub error: Arc<PairError>,
    /// What is served meanwhile.
    pub serving: Serving,
}

/// One certificate, as `status`, `doctor` and the metrics want to know it.
#[derive(Debug, Clone)]
pub struct CertificateStatus {
    /// The sites it is for.
    pub sites: Vec<String>,
    /// Its files.
    pub files: CertificateFiles,
    /// The names in the pair that is served; empty where none is.
    pub names: Vec<CertifiedName>,
    /// The period of the pair that is served.
    pub valid: Option<(SystemTime, SystemTime)>,
    /// What is wrong with the files.
    pub problem: Option<CertificateProblem>,
}

/// The certificates of all sites. Lives as long as the process; a reload replaces what is in it.
pub struct CertStore {
    keys: Arc<dyn Keys>,
    table: ArcSwap<Table>,
    committed: Notify,
}

/// A table that has been read and checked, and is not in force yet.
#[derive(Debug)]
pub struct Prepared(Table);

impl CertStore {
    /// An empty store: it refuses every name.
    pub fn new(keys: Arc<dyn Keys>) -> CertStore {
        CertStore { keys, table: ArcSwap::from_pointee(Table::default()), committed: Notify::new() }
    }

    /// Reads and checks what the sites want, without touching what is served. Blocks on the disk. An entry whose files
    /// are broken keeps the pair it has now: that of the same files, else that of the same site.
    pub fn prepare(&self, wanted: Vec<SiteCertificate>) -> (Prepared, Vec<CertificateProblem>) {
        let table = Table::build(wanted, &self.table.load(), self.keys.as_ref(), SystemTime::now());
        let problems = table.problems();
        (Prepared(table), problems)
    }

    /// Puts a prepared table in force for every handshake from now on. Cannot fail, touches no connection.
    pub fn commit(&self, prepared: Prepared) {
        self.table.store(Arc::new(prepared.0));
        self.committed.notify_one();
    }

    /// [`CertStore::prepare`] and [`CertStore::commit`] in one.
    pub fn apply(&self, wanted: Vec<SiteCertificate>) -> Vec<CertificateProblem> {
        let (prepared, problems) = self.prepare(wanted);
        self.commit(prepared);
        problems
    }

    /// Reads again what has changed on the disk, swaps what is good, and logs what is not, once. Blocks on the disk.
    /// Returns how many pairs were swapped.
    pub fn refresh(&self) -> usize {
        // A reload that commits meanwhile wins, and what it brought is looked at anew. It can hardly happen twice.
        for _ in 0..3 {
            let current = self.table.load_full();
            let next = Arc::new(current.reread(self.keys.as_ref(), SystemTime::now()));
            let previous = self.table.compare_and_swap(&current, Arc::clone(&next));
            if Arc::ptr_eq(&previous, &current) {
                return next.log_changes_since(&current);
            }
        }
        0
    }

    /// The pair for a server name. Without a name: the default site's, else the only one there is, else the one of the
    /// only site that is reached by its address. An unknown name gets the default site's, or none.
    pub fn find(&self, sni: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let table = self.table.load();
        let slot = table.slots.get(table.plan.slot_for(sni)?)?;
        slot.pair.as_ref().map(|pair| Arc::clone(&pair.certified))
    }

    /// Whether a connection with this server name was given a certificate that is right for `host`: the one that
    /// `host` itself would be given, or one that names it. Where not, the answer is 421.
    pub fn serves(&self, sni: Option<&str>, host: &Host) -> bool {
        let table = self.table.load();
        let Some(given) = table.plan.slot_for(sni) else { return false };
        let wanted = if host.is_address() {
            // RFC 6066, section 3: "Literal IPv4 and IPv6 addresses are not permitted in "HostName"."
            table.plan.names.find(host.as_str()).or(table.plan.nameless)
        } else {
            table.plan.slot_for(Some(host.as_str()))
        };
        if wanted == Some(given) {
            return true;
        }
        table.slots.get(given).and_then(|slot| slot.pair.as_ref()).is_some_and(|pair| pair.covers(host.as_str()))
    }

    /// All certificates, in the order of their first site.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        let table = self.table.load();
        table.slots.iter().map(Slot::status).collect()
    }

    /// The files that the table in force is made of.
    pub fn files(&self) -> Vec<CertificateFiles> {
        self.table.load().slots.iter().map(|slot| slot.files.clone()).collect()
    }

    /// Waits for a commit that no earlier call has told of. For one waiter: the watch.
    pub(super) async fn committed(&self) {
        self.committed.notified().await;
    }
}

impl fmt::Debug for CertStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertStore").field("table", &self.table.load()).finish_non_exhaustive()
    }
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let serving = match self.serving {
            Serving::Nothing => "handshakes are refused until it is mended",
            Serving::Previous => "the previous certificate stays in service",
            Serving::Itself => "it is served nevertheless, for want of a better one",
        };
        write!(f, "{}: {}; {serving}", self.sites.join(", "), super::pair::with_causes(self.error.as_ref()))
    }
}

/// What is in force: who gets which slot, and what is in the slots.
#[derive(Debug, Default)]
struct Table {
    plan: Arc<Plan>,
    slots: Vec<Slot>,
}

/// Which slot a name gets. Changes with the configuration, not with the files.
#[derive(Debug, Default)]
struct Plan {
    names: NameTable,
    /// For a name that nobody claims.
    default: Option<usize>,
    /// For a handshake without a name.
    nameless: Option<usize>,
}

impl Plan {
    fn slot_for(&self, sni: Option<&str>) -> Option<usize> {
        match sni {
            Some(name) => self.names.find(&folded(name)).or(self.default),
            None => self.nameless,
        }
    }
}

impl Table {
    fn build(wanted: Vec<SiteCertificate>, current: &Table, keys: &dyn Keys, now: SystemTime) -> Table {
        let mut plan = Plan::default();
        let mut slots: Vec<Slot> = Vec::new();
        let mut numbers: HashMap<CertificateFiles, usize> = HashMap::new();
        let mut addressed = None;
        for site in wanted {
            let slot = *numbers.entry(site.files.clone()).or_insert_with(|| {
                slots.push(Slot::empty(site.files.clone()));
                slots.len() - 1
            });
            for pattern in &site.names {
                plan.names.add(pattern, slot);
                if matches!(pattern, HostPattern::Exact(host) if host.is_address()) {
                    addressed = match addressed {
                        None => Some(Some(slot)),
                        Some(Some(other)) if other == slot => addressed,
                        Some(_) => Some(None),
                    };
                }
            }
            if site.default {
                plan.default.get_or_insert(slot);
            }
            if let Some(slot) = slots.get_mut(slot) {
                slot.claim(site.site, &site.names);
            }
        }
        let only = (slots.len() == 1).then_some(0);
        plan.nameless = plan.default.or(only).or(addressed.flatten());
        for slot in &mut slots {
            let previous = current.slots.iter().find(|old| old.files == slot.files);
            let previous =
                previous.or_else(|| current.slots.iter().find(|old| old.sites.iter().any(|s| slot.sites.contains(s))));
            slot.inherit(previous);
            slot.read(keys, now);
        }
        Table { plan: Arc::new(plan), slots }
    }

    fn reread(&self, keys: &dyn Keys, now: SystemTime) -> Table {
        let mut slots = self.slots.clone();
        slots.iter_mut().for_each(|slot| slot.read_if_changed(keys, now));
        Table { plan: Arc::clone(&self.plan), slots }
    }

    fn problems(&self) -> Vec<CertificateProblem> {
        self.slots.iter().filter_map(Slot::problem).collect()
    }

    /// The slots of `before` are the same ones, in the same order.
    fn log_changes_since(&self, before: &Table) -> usize {
        self.slots.iter().zip(&before.slots).filter(|(new, old)| new.log_changes_since(old)).count()
    }
}

/// RFC 6066, section 3: "DNS hostnames are case-insensitive"; the dot at the end of an absolute name says nothing new.
fn folded(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::keys::LocalKeys;
    use crate::tls::testing::{Issued, days_from_now, site};

    fn store() -> CertStore {
        CertStore::new(Arc::new(LocalKeys::new()))
    }

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    /// Which of the issued certificates a name gets.
    fn given(store: &CertStore, sni: Option<&str>, issued: &[&Issued]) -> Option<usize> {
        let key = store.find(sni)?;
        Some(issued.iter().position(|issued| issued.is(&key)).expect("a certificate of somebody else"))
    }

    fn pair(folder: &Path, name: &str, names: &[&str]) -> (Issued, CertificateFiles) {
        let issued = Issued::for_names(names);
        let files = issued.write(folder, name);
        (issued, files)
    }

    #[test]
    fn names_find_their_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let (a, a_files) = pair(folder.path(), "a", &["app.example.com"]);
        let (b, b_files) = pair(folder.path(), "b", &["*.example.com", "example.com"]);
        let (c, c_files) = pair(folder.path(), "c", &["other.test"]);
        let store = store();
        let problems = store.apply(vec![
            site("a", &["app.example.com"], a_files),
            site("b", &[".example.com"], b_files),
            SiteCertificate { default: true, ..site("c", &["www.other.*"], c_files) },
        ]);
        assert!(problems.is_empty(), "{problems:?}");
        for (name, expected) in [
            (Some("app.example.com"), 0),
            (Some("APP.Example.COM."), 0),
            (Some("example.com"), 1),
            (Some("x.y.example.com"), 1),
            (Some("www.other.org"), 2),
            (Some("unknown.test"), 2),
            (None, 2),
        ] {
            assert_eq!(given(&store, name, &[&a, &b, &c]), Some(expected), "{name:?}");
        }
    }

    #[test]
    fn without_a_default_site_unknown_names_get_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (a, a_files) = pair(folder.path(), "a", &["a.example"]);
        let (b, b_files) = pair(folder.path(), "b", &["b.example", "127.0.0.1"]);
        let store = store();
        assert_eq!(given(&store, None, &[&a]), None);
        // Two sites with one certificate: it is the only one.
        store.apply(vec![site("a", &["a.example"], a_files.clone()), site("a2", &["a2.example"], a_files.clone())]);
        assert_eq!(store.certificates().len(), 1);
        assert_eq!(given(&store, None, &[&a]), Some(0));
        assert_eq!(given(&store, Some("unknown.example"), &[&a]), None);
        let wanted = vec![site("a", &["a.example"], a_files.clone()), site("b", &["b.example"], b_files.clone())];
        store.apply(wanted);
        assert_eq!(given(&store, None, &[&a, &b]), None);
        store.apply(vec![site("a", &["a.example"], a_files), site("b", &["127.0.0.1"], b_files)]);
        assert_eq!(given(&store, None, &[&a, &b]), Some(1));
    }

    #[test]
    fn a_broken_site_is_refused_and_the_others_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let (a, a_files) = pair(folder.path(), "a", &["*.example"]);
        let (b, b_files) = pair(folder.path(), "b", &["b.example"]);
        fs::remove_file(&b_files.key).unwrap();
        let store = store();
        let problems = store.apply(vec![site("a", &["*.example"], a_files), site("b", &["b.example"], b_files)]);
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        assert_eq!((problem.sites.as_slice(), problem.serving), (&["b".to_owned()][..], Serving::Nothing));
        assert!(problem.to_string().contains("b.key"), "{problem}");
        assert_eq!(given(&store, Some("a.example"), &[&a, &b]), Some(0));
        assert_eq!(given(&store, Some("b.example"), &[&a, &b]), None, "another site's certificate leaked");
        assert_eq!(given(&store, None, &[&a, &b]), None);
    }

    #[test]
    fn a_prepared_table_is_not_in_force_before_its_commit() {
        let folder = tempfile::tempdir().unwrap();
        let (a, a_files) = pair(folder.path(), "a", &["a.example"]);
        let (b, b_files) = pair(folder.path(), "b", &["a.example"]);
        let store = store();
        store.apply(vec![site("a", &["a.example"], a_files)]);
        let (prepared, problems) = store.prepare(vec![site("a", &["a.example"], b_files.clone())]);
        assert!(problems.is_empty());
        assert_eq!(given(&store, Some("a.example"), &[&a, &b]), Some(0));
        store.commit(prepared);
        assert_eq!(given(&store, Some("a.example"), &[&a, &b]), Some(1));
        assert_eq!(store.files(), [b_files]);
    }

    #[test]
    fn a_reload_keeps_the_last_good_pair_of_the_files_or_of_the_site() {
        let folder = tempfile::tempdir().unwrap();
        let (a, a_files) = pair(folder.path(), "a", &["a.example"]);
        let store = store();
        store.apply(vec![site("a", &["a.example"], a_files.clone())]);
        fs::write(&a_files.cert, "half").unwrap();
        let problems = store.apply(vec![site("renamed", &["a.example"], a_files)]);
        assert_eq!(problems[0].serving, Serving::Previous);
        assert_eq!(given(&store, Some("a.example"), &[&a]), Some(0));
        let absent = CertificateFiles { cert: folder.path().join("x.pem"), key: folder.path().join("x.key") };
        let problems = store.apply(vec![site("renamed", &["a.example"], absent)]);
        assert_eq!(problems[0].serving, Serving::Previous);
        assert_eq!(given(&store, Some("a.example"), &[&a]), Some(0));
    }

    #[test]
    fn an_expired_pair_is_served_only_for_want_of_a_better_one() {
        let folder = tempfile::tempdir().unwrap();
        let good = Issued::for_names(&["a.example"]);
        let expired = Issued::between(&["a.example"], days_from_now(-90), days_from_now(-1));
        let older = Issued::between(&["a.example"], days_from_now(-90), days_from_now(-5));
        let early = Issued::between(&["a.example"], days_from_now(1), days_from_now(90));
        let other = Issued::for_names(&["b.example"]);
        let files = older.write(folder.path(), "a");
        let store = store();
        let all = [&good, &expired, &older, &early, &other];
        let problems = store.apply(vec![site("a", &["a.example"], files)]);
        assert_eq!(problems[0].serving, Serving::Itself);
        assert_eq!(given(&store, Some("a.example"), &all), Some(2));
        for (issued, served) in
            [(&expired, 1), (&older, 1), (&early, 3), (&good, 0), (&expired, 0), (&early, 0), (&other, 0)]
        {
            issued.write(folder.path(), "a");
            store.refresh();
            assert_eq!(given(&store, Some("a.example"), &all), Some(served));
        }
        let status = store.certificates();
        assert!(matches!(*status[0].problem.as_ref().unwrap().error, PairError::OtherNames { .. }));
        good.write(folder.path(), "a");
        assert_eq!(store.refresh(), 0, "the pair that is in service was swapped for itself");
        assert!(store.certificates()[0].problem.is_none());
    }

    #[test]
    fn a_connection_serves_the_hosts_its_certificate_is_right_for() {
        let folder = tempfile::tempdir().unwrap();
        let (_, a) = pair(folder.path(), "a", &["*.a.example"]);
        let (_, b) = pair(folder.path(), "b", &["b.example"]);
        let (_, c) = pair(folder.path(), "c", &["c.example", "192.0.2.1"]);
        let store = store();
        store.apply(vec![
            site("a", &["x.a.example", "uncovered.example"], a),
            site("b", &["b.example", "y.a.example"], b),
            SiteCertificate { default: true, ..site("c", &["c.example"], c) },
        ]);
        for (sni, name, right) in [
            (Some("x.a.example"), "x.a.example", true),
            (Some("X.A.example"), "uncovered.example", true),
            (Some("x.a.example"), "y.a.example", true),
            (Some("x.a.example"), "a.b.a.example", false),
            (Some("x.a.example"), "b.example", false),
            (Some("b.example"), "x.a.example", false),
            (Some("x.a.example"), "nobody.example", false),
            (Some("nobody.example"), "nobody.example", true),
            (Some("nobody.example"), "c.example", true),
            (None, "c.example", true),
            (None, "b.example", false),
            (None, "127.0.0.1", true),
            (None, "[::1]", true),
            (Some("c.example"), "192.0.2.1", true),
            (Some("b.example"), "192.0.2.1", false),
        ] {
            assert_eq!(store.serves(sni, &host(name)), right, "{sni:?} {name}");
        }
    }
}
