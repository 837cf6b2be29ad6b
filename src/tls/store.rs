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
use super::pair::{CertificateFiles, Pair, PairError};
use super::slot::Slot;
use super::spare::Spares;
use crate::base::certified_name::CertifiedName;
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
    /// Whether the files may be yet to come: then their absence is no problem. Meanwhile each name is served with
    /// another certificate that is right for it, if there is one; handshakes are refused where there is none at all.
    pub awaited: bool,
}

/// What all sites want of the store.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Each site. One may come several times, with other names and other files.
    pub sites: Vec<SiteCertificate>,
    /// Pairs that no site names any more, and that will do for an awaited one. They are read only when needed.
    pub spare: Vec<CertificateFiles>,
}

impl From<Vec<SiteCertificate>> for Wanted {
    fn from(sites: Vec<SiteCertificate>) -> Wanted {
        Wanted { sites, spare: Vec::new() }
    }
}

/// What is served instead where a pair is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    /// Nothing: handshakes for these sites are refused.
    Nothing,
    /// The last good pair.
    Previous,
    /// The pair itself, for want of a better one: it is out of its time, in disorder, or for other names.
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
    /// Whether somebody is at work on these files: see [`SiteCertificate::awaited`].
    pub awaited: bool,
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
    /// Who issued the pair that is served.
    pub issuer: Option<String>,
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
    /// are broken keeps the pair it has now: that of the same files, else one of the same site that is for its hosts.
    pub fn prepare(&self, wanted: impl Into<Wanted>) -> (Prepared, Vec<CertificateProblem>) {
        let table = Table::build(wanted.into(), &self.table.load(), self.keys.as_ref(), SystemTime::now());
        let problems = table.problems();
        (Prepared(table), problems)
    }

    /// Reads once more those files of a prepared table that are out of reach and that `is_meant`: for one who has more
    /// rights than whoever prepared it. Blocks on the disk.
    pub fn read_denied(
        &self,
        prepared: &mut Prepared,
        mut is_meant: impl FnMut(&CertificateFiles) -> bool,
    ) -> Vec<CertificateProblem> {
        let Prepared(table) = prepared;
        let is_denied = |slot: &Slot| slot.problem().is_some_and(|problem| problem.is_denied());
        for slot in table.slots.iter_mut().filter(|slot| is_denied(slot) && is_meant(&slot.files)) {
            slot.read(self.keys.as_ref(), SystemTime::now());
        }
        table.problems()
    }

    /// Puts a prepared table in force for every handshake from now on. Cannot fail, touches no connection.
    pub fn commit(&self, prepared: Prepared) {
        let next = Arc::new(prepared.0);
        let before = self.table.swap(Arc::clone(&next));
        next.log_recoveries_since(&before);
        self.committed.notify_one();
    }

    /// [`CertStore::prepare`] and [`CertStore::commit`] in one.
    pub fn apply(&self, wanted: impl Into<Wanted>) -> Vec<CertificateProblem> {
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
        let name = sni.map(folded);
        let slot = table.plan.slot_for(name.as_deref())?;
        table.pair_of(slot, name.as_deref()).map(|pair| Arc::clone(&pair.certified))
    }

    /// Whether a connection with this server name was given a certificate that is right for `host`: the one that
    /// `host` itself would be given, or one that names it. Where not, the answer is 421.
    pub fn serves(&self, sni: Option<&str>, host: &Host) -> bool {
        let table = self.table.load();
        let name = sni.map(folded);
        let Some(slot) = table.plan.slot_for(name.as_deref()) else { return false };
        // Nearly every request asks for what its connection asked for.
        if name.as_deref() == Some(host.as_str()) {
            return true;
        }
        let given = table.pair_of(slot, name.as_deref());
        let same = if host.is_address() {
            // RFC 6066, section 3: "Literal IPv4 and IPv6 addresses are not permitted in "HostName"."
            table.plan.names.find(host.as_str()).or(table.plan.nameless) == Some(slot)
        } else {
            let host = folded(host.as_str());
            // The names of one slot may have different pairs, while theirs is yet to come.
            table.plan.slot_for(Some(&host)) == Some(slot)
                && table.pair_of(slot, Some(&host)).map(Arc::as_ptr) == given.map(Arc::as_ptr)
        };
        same || given.is_some_and(|pair| pair.covers(host.as_str()))
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

    /// Whether something is wrong with a pair of files.
    pub(super) fn is_troubled(&self) -> bool {
        self.table.load().slots.iter().any(Slot::is_troubled)
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

impl CertificateProblem {
    /// Whether nothing is served for want of the right to read the files.
    pub fn is_denied(&self) -> bool {
        let first: &(dyn std::error::Error + 'static) = self.error.as_ref();
        let mut causes = std::iter::successors(Some(first), |error| error.source());
        let is_denial = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
        self.serving == Serving::Nothing
            && causes.any(|error| error.downcast_ref::<std::io::Error>().is_some_and(is_denial))
    }
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let serving = match self.serving {
            Serving::Nothing => "handshakes are refused until it is mended",
            Serving::Previous => "the previous certificate stays in service",
            Serving::Itself => "it is served nevertheless, for want of a better one",
        };
        write!(f, "{}: ", self.sites.join(", "))?;
        if !self.error.names_a_file() {
            write!(f, "{}: ", self.files.cert.display())?;
        }
        write!(f, "{}; {serving}", super::pair::with_causes(self.error.as_ref()))
    }
}

/// What is in force: who gets which slot, and what is in the slots.
#[derive(Debug, Default)]
struct Table {
    plan: Arc<Plan>,
    slots: Vec<Slot>,
    /// For the names of awaited slots.
    spares: Arc<Spares>,
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
    /// `name` is [`folded`].
    fn slot_for(&self, name: Option<&str>) -> Option<usize> {
        match name {
            Some(name) => self.names.find(name).or(self.default),
            None => self.nameless,
        }
    }
}

impl Table {
    fn build(wanted: Wanted, current: &Table, keys: &dyn Keys, now: SystemTime) -> Table {
        let mut plan = Plan::default();
        let mut slots: Vec<Slot> = Vec::new();
        let mut numbers: HashMap<CertificateFiles, usize> = HashMap::new();
        let mut addressed = None;
        for site in wanted.sites {
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
                slot.claim(site);
            }
        }
        let only = (slots.len() == 1).then_some(0);
        plan.nameless = plan.default.or(only).or(addressed.flatten());
        for slot in &mut slots {
            let same_files = current.slots.iter().find(|old| old.files == slot.files);
            slot.inherit(same_files.or_else(|| current.slots.iter().find(|old| slot.may_inherit(old))));
            slot.read(keys, now);
        }
        let mut table = Table { plan: Arc::new(plan), slots, spares: Arc::default() };
        table.fill_in(current, &wanted.spare, keys, now);
        table
    }

    /// Finds other pairs for the names whose own one is yet to come: those in service, then those that are spare.
    fn fill_in(&mut self, current: &Table, spare: &[CertificateFiles], keys: &dyn Keys, now: SystemTime) {
        let lacking: Vec<HostPattern> = self.slots.iter().flat_map(Slot::lacking).cloned().collect();
        if lacking.is_empty() {
            return;
        }
        let served = self.slots.iter().chain(&current.slots).filter_map(|slot| slot.pair.as_ref());
        let mut pairs: Vec<Arc<Pair>> = served.chain(current.spares.pairs()).map(Arc::clone).collect();
        pairs.retain(|pair| pair.is_good(now));
        pairs.sort_by_key(Arc::as_ptr);
        pairs.dedup_by(|a, b| Arc::ptr_eq(a, b));
        if !lacking.iter().all(|host| pairs.iter().any(|pair| pair.covers_all_of(host))) {
            let read = spare.iter().filter_map(|files| Pair::load(keys, files).ok());
            pairs.extend(read.filter(|pair| pair.is_good(now)).map(Arc::new));
        }
        self.slots.iter_mut().for_each(|slot| slot.stand_in(&pairs, keys, now));
        self.spares = Arc::new(Spares::choose(pairs, &lacking));
    }

    /// What a slot gives for a name, [`folded`]: its own pair, unless that is awaited and another is right.
    fn pair_of(&self, slot: usize, name: Option<&str>) -> Option<&Arc<Pair>> {
        let slot = self.slots.get(slot)?;
        let spare = || name.filter(|name| slot.wants_another_for(name)).and_then(|name| self.spares.find(name));
        spare().or(slot.pair.as_ref())
    }

    fn reread(&self, keys: &dyn Keys, now: SystemTime) -> Table {
        let mut slots = self.slots.clone();
        slots.iter_mut().for_each(|slot| slot.read_if_changed(keys, now));
        Table { plan: Arc::clone(&self.plan), slots, spares: Arc::clone(&self.spares) }
    }

    fn problems(&self) -> Vec<CertificateProblem> {
        self.slots.iter().filter_map(Slot::problem).collect()
    }

    /// The slots of `before` may be others.
    fn log_recoveries_since(&self, before: &Table) {
        for old in before.slots.iter().filter(|old| old.is_troubled()) {
            self.slots.iter().filter(|new| new.files == old.files).for_each(|new| new.log_recovery_since(old));
        }
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

    fn awaited(name: &str, hosts: &[&str], files: CertificateFiles) -> SiteCertificate {
        SiteCertificate { awaited: true, ..site(name, hosts, files) }
    }

    /// Files that are not there.
    fn to_come(folder: &Path, name: &str) -> CertificateFiles {
        CertificateFiles { cert: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) }
    }

    #[test]
    fn names_find_their_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let (a, a_files) = pair(folder.path(), "a", &["app.example.com"]);
        let (b, b_files) = pair(folder.path(), "b", &["*.example.com", "example.com"]);
        let (c, c_files) = pair(folder.path(), "c", &["www.other.org"]);
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
    fn a_spare_pair_serves_until_there_is_a_better_one() {
        let folder = tempfile::tempdir().unwrap();
        let (a, a_files) = pair(folder.path(), "old", &["a.example", "b.example"]);
        let (_, other) = pair(folder.path(), "other", &["c.example"]);
        let (less, less_files) = pair(folder.path(), "less", &["a.example"]);
        let files = CertificateFiles { cert: folder.path().join("new.pem"), key: folder.path().join("new.key") };
        let spare = vec![a_files.clone(), less_files, other];
        let wanted = awaited("a", &["new.example", "a.example", "b.example"], files);
        let wanted = || Wanted { sites: vec![wanted.clone()], spare: spare.clone() };
        let store = store();
        assert!(store.apply(wanted()).is_empty());
        assert_eq!(given(&store, Some("b.example"), &[&a, &less]), Some(0), "the one that names most of the hosts");
        // A broken one is none.
        fs::write(&a_files.key, "half").unwrap();
        let restarted = self::store();
        restarted.apply(wanted());
        assert_eq!(given(&restarted, Some("a.example"), &[&a, &less]), Some(1));
        let new = Issued::for_names(&["new.example", "a.example", "b.example"]);
        new.write(folder.path(), "new");
        assert_eq!(store.refresh(), 1);
        assert_eq!(given(&store, Some("b.example"), &[&new]), Some(0));
    }

    #[test]
    fn a_certificate_that_is_yet_to_come_is_no_problem() {
        let folder = tempfile::tempdir().unwrap();
        let (a, a_files) = pair(folder.path(), "a", &["a.example"]);
        let store = store();
        store.apply(vec![site("a", &["a.example"], a_files)]);
        let wanted = |host: &str| vec![awaited("a", &[host], to_come(folder.path(), host))];
        // What the site had goes on, where it is right for the host.
        assert!(store.apply(wanted("a.example")).is_empty());
        assert_eq!(given(&store, Some("a.example"), &[&a]), Some(0));
        assert!(store.apply(wanted("b.example")).is_empty());
        assert!(store.find(Some("b.example")).is_none());
        let b = Issued::for_names(&["b.example"]);
        let files = b.write(folder.path(), "b.example");
        assert_eq!(store.refresh(), 1);
        assert_eq!(given(&store, Some("b.example"), &[&b]), Some(0));
        fs::write(files.cert, "half").unwrap();
        store.refresh();
        assert!(store.certificates()[0].problem.is_some(), "what came and broke is one");
    }

    #[test]
    fn names_that_join_a_certificate_keep_their_own_until_the_joint_one_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (x, x_files) = pair(folder.path(), "x", &["x.example"]);
        let (y, y_files) = pair(folder.path(), "y", &["y.example"]);
        let apart =
            || vec![awaited("a", &["x.example"], x_files.clone()), awaited("a", &["y.example"], y_files.clone())];
        let joint = || Wanted {
            sites: vec![awaited("a", &["x.example", "y.example"], x_files.clone())],
            spare: vec![x_files.clone(), y_files.clone()],
        };
        let (running, restarted) = (store(), store());
        running.apply(apart());
        let both =
            |store: &CertStore, all: &[&Issued]| ["X.example", "y.example."].map(|name| given(store, Some(name), all));
        for store in [&running, &restarted] {
            // Twice: the table that is replaced may be one with spares itself.
            for _ in 0..2 {
                assert!(store.apply(joint()).is_empty());
                assert_eq!(both(store, &[&x, &y]), [Some(0), Some(1)]);
                store.refresh();
                assert_eq!(both(store, &[&x, &y]), [Some(0), Some(1)]);
            }
            assert!(!store.serves(Some("x.example"), &host("y.example")), "another certificate is right for it");
        }
        let joined = Issued::for_names(&["x.example", "y.example"]);
        joined.write(folder.path(), "x");
        for store in [&running, &restarted] {
            assert_eq!(store.refresh(), 1);
            assert_eq!(both(store, &[&joined]), [Some(0), Some(0)], "without a reload");
            assert!(store.serves(Some("x.example"), &host("y.example")));
        }
    }

    #[test]
    fn sites_keep_their_certificates_until_the_wildcard_that_takes_them_over_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (a, a_files) = pair(folder.path(), "a", &["a.x.example"]);
        let (b, b_files) = pair(folder.path(), "b", &["b.x.example"]);
        let store = store();
        store.apply(vec![awaited("a", &["a.x.example"], a_files), awaited("b", &["b.x.example"], b_files)]);
        let files = to_come(folder.path(), "wild");
        let problems = store.apply(vec![
            awaited("a", &["a.x.example"], files.clone()),
            awaited("b", &["b.x.example"], files.clone()),
            awaited("c", &[".x.example"], files),
        ]);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(given(&store, Some("a.x.example"), &[&a, &b]), Some(0));
        assert_eq!(given(&store, Some("b.x.example"), &[&a, &b]), Some(1));
        let wild = Issued::for_names(&["x.example", "*.x.example"]);
        wild.write(folder.path(), "wild");
        assert_eq!(store.refresh(), 1);
        for name in ["a.x.example", "b.x.example", "c.x.example", "x.example"] {
            assert_eq!(given(&store, Some(name), &[&wild]), Some(0), "{name}");
        }
    }

    #[test]
    fn a_name_in_front_of_many_breaks_none_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let (one, one_files) = pair(folder.path(), "h1", &["h1.example", "h2.example"]);
        let (two, two_files) = pair(folder.path(), "h3", &["h3.example", "h4.example"]);
        let (three, three_files) = pair(folder.path(), "h5", &["h5.example"]);
        let spare = vec![one_files.clone(), two_files.clone(), three_files.clone()];
        let store = store();
        store.apply(vec![
            awaited("a", &["h1.example", "h2.example"], one_files),
            awaited("a", &["h3.example", "h4.example"], two_files),
            awaited("a", &["h5.example"], three_files),
        ]);
        let at = |name: &str| to_come(folder.path(), name);
        let sites = vec![
            awaited("a", &["h0.example", "h1.example"], at("h0")),
            awaited("a", &["h2.example", "h3.example"], at("h2")),
            awaited("a", &["h4.example", "h5.example"], at("h4")),
        ];
        let restarted = self::store();
        for store in [&store, &restarted] {
            assert!(store.apply(Wanted { sites: sites.clone(), spare: spare.clone() }).is_empty());
            let all = [&one, &two, &three];
            for (name, expected) in [("h1", 0), ("h2", 0), ("h3", 1), ("h4", 1), ("h5", 2)] {
                assert_eq!(given(store, Some(&format!("{name}.example")), &all), Some(expected), "{name}");
            }
        }
        // One after the other arrives, in any order.
        let new = Issued::for_names(&["h2.example", "h3.example"]);
        new.write(folder.path(), "h2");
        assert_eq!(store.refresh(), 1);
        for (name, expected) in [("h1", 0), ("h2", 3), ("h3", 3), ("h4", 1), ("h5", 2)] {
            let all = [&one, &two, &three, &new];
            assert_eq!(given(&store, Some(&format!("{name}.example")), &all), Some(expected), "{name}");
        }
    }

    #[test]
    fn an_awaited_certificate_that_is_damaged_or_over_gives_way_to_a_spare_one() {
        let folder = tempfile::tempdir().unwrap();
        let (spare, spare_files) = pair(folder.path(), "spare", &["a.example"]);
        let expired = Issued::between(&["a.example"], days_from_now(-90), days_from_now(-1));
        let files = expired.write(folder.path(), "a");
        let wanted =
            || Wanted { sites: vec![awaited("a", &["a.example"], files.clone())], spare: vec![spare_files.clone()] };
        for text in [None, Some("half")] {
            if let Some(text) = text {
                fs::write(&files.cert, text).unwrap();
            }
            let store = store();
            let problems = store.apply(wanted());
            assert_eq!((problems.len(), problems[0].serving, problems[0].awaited), (1, Serving::Previous, true));
            assert_eq!(given(&store, Some("a.example"), &[&spare, &expired]), Some(0));
        }
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
    fn a_certificate_for_other_names_never_replaces_a_good_one_and_is_told_of_alone() {
        let folder = tempfile::tempdir().unwrap();
        for (hosts, name) in [("a.example", "a.example"), ("*.a.example", "x.a.example"), ("www.a.*", "www.a.org")] {
            let good = Issued::for_names(&["a.example", "*.a.example", "www.a.org"]);
            let (one, two) = (Issued::for_names(&["b.example"]), Issued::for_names(&["c.example"]));
            let files = one.write(folder.path(), "a");
            let store = store();
            let served = |store: &CertStore| given(store, Some(name), &[&good, &one, &two]);
            let problems = store.apply(vec![site("a", &[hosts], files)]);
            assert_eq!(problems[0].serving, Serving::Itself, "{hosts}");
            let told = problems[0].to_string();
            assert!(told.contains("a.pem") && told.contains(&format!("{hosts} is not among them")), "{told}");
            for (issued, expected) in [(&one, 1), (&two, 2), (&good, 0), (&one, 0)] {
                issued.write(folder.path(), "a");
                store.refresh();
                assert_eq!(served(&store), Some(expected), "{hosts}");
            }
            assert!(store.is_troubled());
            good.write(folder.path(), "a");
            store.refresh();
            assert!(!store.is_troubled());
        }
    }

    #[test]
    fn a_certificate_that_has_lost_a_name_of_the_site_does_not_replace_the_whole_one() {
        let folder = tempfile::tempdir().unwrap();
        let whole = Issued::for_names(&["a.example", "www.a.example"]);
        let (part, more) =
            (Issued::for_names(&["www.a.example"]), Issued::for_names(&["*.a.example", "a.example", "b.example"]));
        let files = whole.write(folder.path(), "a");
        let store = store();
        store.apply(vec![site("a", &["a.example", "www.a.example", "never.example"], files.clone())]);
        let served = |store: &CertStore| given(store, Some("a.example"), &[&whole, &part, &more]);
        for (issued, expected) in [(&part, 0), (&more, 2), (&part, 2), (&whole, 0)] {
            issued.write(folder.path(), "a");
            store.refresh();
            assert_eq!(served(&store), Some(expected));
            assert_eq!(store.is_troubled(), std::ptr::eq(issued, &part));
        }
        part.write(folder.path(), "a");
        store.refresh();
        let told = store.certificates()[0].problem.as_ref().unwrap().to_string();
        assert!(told.contains("not for a.example, as the one in service is; the previous certificate stays"), "{told}");
        // Who takes the host out of the site means it.
        assert!(store.apply(vec![site("a", &["www.a.example"], files)]).is_empty());
        assert_eq!(given(&store, Some("www.a.example"), &[&whole, &part, &more]), Some(1));
    }

    #[test]
    fn a_pattern_may_lose_names_too_and_other_files_are_held_to_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = store();
        let (all, one) = (Issued::for_names(&["b.example", "*.b.example"]), Issued::for_names(&["www.b.example"]));
        let files_of_b = all.write(folder.path(), "b");
        store.apply(vec![site("b", &[".b.example"], files_of_b)]);
        one.write(folder.path(), "b");
        store.refresh();
        assert_eq!(given(&store, Some("www.b.example"), &[&all, &one]), Some(0));
        // Other files are held to nothing that was served before them.
        let other = one.write(folder.path(), "c");
        assert!(store.apply(vec![site("b", &[".b.example"], other)]).is_empty());
        assert_eq!(given(&store, Some("www.b.example"), &[&all, &one]), Some(1));
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
