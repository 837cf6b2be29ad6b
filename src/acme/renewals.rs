//! The one who sees to it that every certificate of the plan is there and in time. Lives as long as the process; a
//! reload replaces the plan.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;

use super::apart;
use super::diary::Diary;
use super::errand::Purpose;
use super::list::list;
use super::plan::{Planned, SiteNames, plan};
use super::settings::Settings;
use crate::base::certified_name::CertifiedName;
use crate::keys::Keys;
use crate::store::{self, Storage};
use crate::tls::challenges::Challenges;
use crate::tls::pair::CertificateFiles;
use crate::tls::store::CertStore;

/// The longest sleep: clocks jump, and a storage may be mended meanwhile.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What came of something that a person asked for: a text for them.
pub type Told = Result<String, String>;

/// See the module.
pub struct Renewals {
    keys: Arc<dyn Keys>,
    challenges: Arc<Challenges>,
    certificates: Arc<CertStore>,
    assignment: ArcSwapOption<Assignment>,
    asked: Mutex<Vec<Asked>>,
    /// The assignment is another, or somebody asks.
    changed: Notify,
    /// The plan is to be made anew.
    replan: Notify,
    /// Why the storage cannot be opened.
    closed: ArcSwapOption<String>,
}

/// What is to be looked after.
pub(super) struct Assignment {
    pub settings: Settings,
    pub planned: Vec<Planned>,
}

/// What a person wants done about a certificate.
pub(super) struct Asked {
    pub label: String,
    pub purpose: Purpose,
    pub reply: oneshot::Sender<Told>,
}

impl Renewals {
    /// Nothing to look after yet: see [`Renewals::assign`].
    pub fn new(keys: Arc<dyn Keys>, challenges: Arc<Challenges>, certificates: Arc<CertStore>) -> Renewals {
        Renewals {
            keys,
            challenges,
            certificates,
            assignment: ArcSwapOption::empty(),
            asked: Mutex::default(),
            changed: Notify::new(),
            replan: Notify::new(),
            closed: ArcSwapOption::empty(),
        }
    }

    /// From now on these are looked after, and no others. `None` is none at all.
    pub fn assign(&self, assignment: Option<(Settings, Vec<Planned>)>) {
        let assignment = assignment.map(|(settings, planned)| Arc::new(Assignment { settings, planned }));
        if assignment.is_none() {
            self.closed.store(None);
        }
        self.assignment.store(assignment);
        self.changed.notify_one();
    }

    /// Waits until the plan is to be made anew, because names go apart from their site. For one waiter: the single
    /// writer, who makes it and assigns it.
    pub async fn replanned(&self) {
        self.replan.notified().await;
    }

    /// Looks after the certificates until `stop`, on a thread of its own: the disk and other people's machines are slow,
    /// and the control thread has a watchdog to answer. Orders that are open then are resumed by the next process.
    ///
    /// # Errors
    /// The thread or its runtime cannot be made.
    pub fn start(self: Arc<Renewals>, stop: CancellationToken) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("certificates".to_owned()).spawn(move || {
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    never = self.run() => never,
                    () = stop.cancelled() => {}
                }
            });
            // A look-up or a key that is being made is not waited for.
            runtime.shutdown_background();
        })
    }

    async fn run(self: Arc<Renewals>) -> ! {
        let mut diary = Diary::default();
        let mut errands = JoinSet::new();
        loop {
            let sleep = match self.assignment.load_full() {
                Some(assignment) => diary.start_due(&self, &assignment, &mut errands),
                None => LONGEST_SLEEP,
            };
            tokio::select! {
                () = self.changed.notified() => diary.take(self.take_asked()),
                Some(ended) = errands.join_next(), if !errands.is_empty() => match ended {
                    Ok((label, visited)) => diary.note(label, visited),
                    Err(error) => {
                        tracing::error!("looking after a certificate failed: {error}");
                        diary.lose();
                    }
                },
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Renews what is for `name` (a host, or a site) now, and waits for what comes of it.
    pub async fn renew(&self, name: &str) -> Told {
        self.ask(name, Purpose::Renew).await
    }

    /// Goes through an order for what is for `name` without using what comes of it.
    pub async fn test(&self, name: &str) -> Told {
        self.ask(name, Purpose::Rehearse).await
    }

    async fn ask(&self, name: &str, purpose: Purpose) -> Told {
        let mut waiting = Vec::new();
        for planned in self.find(name)? {
            let (reply, answer) = oneshot::channel();
            self.asked().push(Asked { label: planned.label(), purpose, reply });
            waiting.push(answer);
        }
        self.changed.notify_one();
        let (mut told, mut failed) = (Vec::new(), false);
        for answer in waiting {
            let answer = answer.await.unwrap_or_else(|_| Err("the certificate is no longer in the file".to_owned()));
            failed |= answer.is_err();
            told.push(answer.unwrap_or_else(|why| why));
        }
        let told = told.join("\n");
        if failed { Err(told) } else { Ok(told) }
    }

    /// Every certificate that is served or awaited, in words.
    pub fn list(&self) -> String {
        let assignment = self.assignment.load_full();
        let automatic = assignment.as_ref().map(|it| (&it.settings, it.planned.as_slice()));
        let certificates = list(&self.certificates.certificates(), automatic, self.keys.as_ref(), SystemTime::now());
        match self.closed.load_full() {
            Some(why) => format!("no certificate can be ordered: {why}\n\n{certificates}"),
            None => certificates,
        }
    }

    pub(super) fn keys(&self) -> &Arc<dyn Keys> {
        &self.keys
    }

    pub(super) fn challenges(&self) -> &Arc<Challenges> {
        &self.challenges
    }

    pub(super) fn certificates(&self) -> &CertStore {
        &self.certificates
    }

    pub(super) fn replan(&self) {
        self.replan.notify_one();
    }

    /// Why the storage cannot be opened, for whoever wants to know.
    pub(super) fn closed(&self) -> &ArcSwapOption<String> {
        &self.closed
    }

    fn find(&self, name: &str) -> Result<Vec<Planned>, String> {
        let assignment = self.assignment.load_full().ok_or("no site has an automatic certificate")?;
        let found = named(&assignment.planned, name);
        if found.is_empty() {
            let all: Vec<String> =
                assignment.planned.iter().flat_map(|p| &p.names).map(CertifiedName::to_string).collect();
            return Err(format!("no automatic certificate is for {name}; there are {}", all.join(", ")));
        }
        Ok(found.into_iter().cloned().collect())
    }

    fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked())
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, Vec<Asked>> {
        // Nothing panics while the lock is held.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The certificates for `sites`, each with its files, there or not. Names that could not be validated are apart.
/// Makes nothing: the storage may be yet to come.
pub fn planned(settings: &Settings, sites: &[SiteNames]) -> Vec<(Planned, CertificateFiles)> {
    let storage = Storage::open_if_there(&settings.storage).ok().flatten();
    let apart = storage.as_ref().map_or_else(BTreeSet::new, |storage| apart::read(storage, SystemTime::now()));
    let root = storage.as_ref().map_or(settings.storage.as_path(), Storage::root);
    let with_files = |planned: Planned| {
        let (cert, key) = store::live_files(root, &planned.label());
        (planned, CertificateFiles { cert, key })
    };
    plan(sites, &apart).into_iter().map(with_files).collect()
}

/// Every pair that is in the storage, whatever it was ordered for.
pub fn pairs(settings: &Settings) -> Vec<CertificateFiles> {
    let Some(storage) = Storage::open_if_there(&settings.storage).ok().flatten() else { return Vec::new() };
    let labels = storage.labels().unwrap_or_default();
    let pairs = labels.iter().flat_map(|label| storage.certificate(label).pairs());
    pairs.map(|(cert, key)| CertificateFiles { cert, key }).collect()
}

/// Those of the plan that `name` means: a host, or a site.
pub fn named<'a>(all: &'a [Planned], name: &str) -> Vec<&'a Planned> {
    let host = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let is_for = |planned: &&Planned| {
        planned.sites.iter().any(|site| site == name)
            || planned.names.iter().any(|own| own.to_string() == host || own.covers(&host))
    };
    all.iter().filter(is_for).collect()
}
