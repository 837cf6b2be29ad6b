//! One certificate of the store: its files, the pair that is served, and what is wrong with the files.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::pair::{CertificateFiles, Pair, PairError, with_causes};
use super::store::{CertificateProblem, CertificateStatus, Serving, SiteCertificate};
use crate::base::host::HostPattern;
use crate::keys::Keys;

/// A pair of files and what they hold.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) files: CertificateFiles,
    pub(super) sites: Vec<String>,
    /// The hosts of the sites.
    hosts: Vec<HostPattern>,
    /// Whether the files may be yet to come.
    awaited: bool,
    /// The last good pair.
    pub(super) pair: Option<Arc<Pair>>,
    /// Whether the pair is another certificate's, until there is one in the files.
    lent: bool,
    /// Whether the pair was neither out of its time nor in disorder when the files were last read.
    good: bool,
    failure: Option<Failure>,
    /// The state of the files when they were last read.
    stamps: Option<(Stamp, Stamp)>,
}

/// Why the files are not what is served, or should not be.
#[derive(Debug, Clone)]
struct Failure {
    error: Arc<PairError>,
    serving: Serving,
}

impl Slot {
    pub(super) fn empty(files: CertificateFiles) -> Slot {
        Slot {
            files,
            sites: Vec::new(),
            hosts: Vec::new(),
            awaited: false,
            pair: None,
            lent: false,
            good: false,
            failure: None,
            stamps: None,
        }
    }

    /// One more site uses this certificate.
    pub(super) fn claim(&mut self, site: SiteCertificate) {
        self.sites.push(site.site);
        self.awaited = site.awaited;
        self.hosts.extend(site.names);
    }

    /// Whether the pair of `old` will do while there is none: it is of the same site, and for one of the hosts. One that
    /// is awaited has [`Slot::stand_in`].
    pub(super) fn may_inherit(&self, old: &Slot) -> bool {
        if self.awaited {
            return false;
        }
        let right = |pair: &Arc<Pair>| names_one_of(self.hosts.iter(), pair).is_ok();
        old.sites.iter().any(|site| self.sites.contains(site)) && old.pair.as_ref().is_some_and(right)
    }

    /// Takes over the pair of the table before.
    pub(super) fn inherit(&mut self, previous: Option<&Slot>) {
        // What was lent may suit another by now.
        let previous = previous.filter(|previous| !(self.awaited && previous.lent));
        self.pair = previous.and_then(|previous| previous.pair.clone());
        // What was served from other files is nothing that new ones are held to.
        self.lent = previous.is_some_and(|previous| previous.lent || previous.files != self.files);
    }

    /// The hosts for which another certificate would be better, until the awaited one is there.
    pub(super) fn lacking(&self) -> impl Iterator<Item = &HostPattern> {
        let own = self.pair.as_ref().filter(|_| self.good);
        self.hosts.iter().filter(move |host| self.awaited && !own.is_some_and(|pair| pair.covers_all_of(host)))
    }

    /// Whether `name` is to have another certificate if there is one.
    pub(super) fn wants_another_for(&self, name: &str) -> bool {
        self.awaited && !(self.good && self.pair.as_ref().is_some_and(|pair| pair.covers(name)))
    }

    /// Reads the files again if they changed, or if all was not well with them.
    pub(super) fn read_if_changed(&mut self, keys: &dyn Keys, now: SystemTime) {
        let well = self.failure.is_none() && self.pair.as_ref().is_some_and(|pair| pair.validity(now).is_ok());
        let stamps = Stamp::of_both(&self.files, now);
        let unchanged = match (&stamps, &self.stamps) {
            (Some(new), Some(old)) => new.0.is_still(&old.0) && new.1.is_still(&old.1),
            _ => false,
        };
        if !(well && unchanged) {
            self.read(keys, now);
        }
    }

    /// Reads the files and takes what is better than the pair in service.
    pub(super) fn read(&mut self, keys: &dyn Keys, now: SystemTime) {
        // Before the reading: a change after it is then seen as one.
        self.stamps = Stamp::of_both(&self.files, now);
        let read = Pair::load(keys, &self.files);
        let (pair, failure) = self.judge(read, now);
        self.good = pair.as_ref().is_some_and(|pair| pair.is_good(now));
        self.lent &= matches!(failure, Some((_, Serving::Previous)));
        self.pair = pair;
        self.failure = failure.map(|(error, serving)| Failure { error: Arc::new(error), serving });
    }

    /// An awaited one takes the best of `pairs` while it has no good one of its own.
    pub(super) fn stand_in(&mut self, pairs: &[Arc<Pair>], keys: &dyn Keys, now: SystemTime) {
        if !self.awaited || self.good {
            return;
        }
        let named = |pair: &Pair| self.hosts.iter().filter(|host| pair.is_for(host)).count();
        let fit = pairs.iter().filter(|pair| self.is_fit(pair, now).is_ok());
        if let Some(best) = fit.max_by_key(|pair| (named(pair), pair.not_after)) {
            self.pair = Some(Arc::clone(best));
            self.lent = true;
            self.read(keys, now);
        }
    }

    pub(super) fn problem(&self) -> Option<CertificateProblem> {
        let failure = self.trouble()?;
        Some(CertificateProblem {
            sites: self.sites.clone(),
            files: self.files.clone(),
            error: Arc::clone(&failure.error),
            serving: failure.serving,
            awaited: self.awaited,
        })
    }

    pub(super) fn is_troubled(&self) -> bool {
        self.trouble().is_some()
    }

    /// What is wrong. Files that are yet to come are not.
    fn trouble(&self) -> Option<&Failure> {
        self.failure.as_ref().filter(|failure| !(self.awaited && is_absence(&failure.error)))
    }

    pub(super) fn status(&self) -> CertificateStatus {
        CertificateStatus {
            sites: self.sites.clone(),
            files: self.files.clone(),
            names: self.pair.as_ref().map(|pair| pair.names.clone()).unwrap_or_default(),
            issuer: self.pair.as_ref().map(|pair| pair.issuer.clone()),
            valid: self.pair.as_ref().map(|pair| (pair.not_before, pair.not_after)),
            problem: self.problem(),
        }
    }

    /// Tells the log what a refresh changed; whether the pair was swapped.
    pub(super) fn log_changes_since(&self, before: &Slot) -> bool {
        let swapped = match (&self.pair, &before.pair) {
            (Some(new), Some(old)) => !Arc::ptr_eq(new, old),
            (new, old) => new.is_some() != old.is_some(),
        };
        let sites = self.sites.join(", ");
        let cert = self.files.cert.display();
        if let (true, Some(pair)) = (swapped, &self.pair) {
            let until = httpdate::fmt_http_date(pair.not_after);
            tracing::info!(%sites, %cert, %until, "a new certificate is in service");
        }
        let told = before.problem().map(|problem| problem.to_string());
        match (self.problem(), told) {
            (Some(problem), told) if told.as_deref() != Some(&problem.to_string()) => {
                let reason = with_causes(problem.error.as_ref());
                match problem.serving {
                    Serving::Nothing => {
                        tracing::error!(%sites, %cert, %reason, "no certificate: handshakes are refused")
                    }
                    Serving::Previous => {
                        tracing::error!(%sites, %cert, %reason, "the certificate on disk is not taken: the previous one stays in service");
                    }
                    Serving::Itself => {
                        tracing::error!(%sites, %cert, %reason, "the certificate in service is not as it should be, and there is no better one");
                    }
                }
            }
            _ => self.log_recovery_since(before),
        }
        swapped
    }

    /// Tells the log that all is well again, where it was not.
    pub(super) fn log_recovery_since(&self, before: &Slot) {
        if before.is_troubled() && !self.is_troubled() {
            let (sites, cert) = (self.sites.join(", "), self.files.cert.display());
            tracing::info!(%sites, %cert, "the certificate files are in order again");
        }
    }

    /// Never replaces a good pair by one that is broken, expired, not yet valid, in disorder or for other names.
    fn judge(
        &self,
        read: Result<Pair, PairError>,
        now: SystemTime,
    ) -> (Option<Arc<Pair>>, Option<(PairError, Serving)>) {
        let new = match (read, &self.pair) {
            (Ok(new), _) => new,
            (Err(error), Some(old)) => return (Some(Arc::clone(old)), Some((error, Serving::Previous))),
            (Err(error), None) => return (None, Some((error, Serving::Nothing))),
        };
        let fit = self.is_fit(&new, now);
        let itself = |error| (error, Serving::Itself);
        let Some(old) = &self.pair else {
            return (Some(Arc::new(new)), fit.err().map(itself));
        };
        if new.is_same(old) {
            return (Some(Arc::clone(old)), fit.err().map(itself));
        }
        let keep = |error| (Some(Arc::clone(old)), Some((error, Serving::Previous)));
        if self.is_fit(old, now).is_ok() {
            return match fit.and_then(|()| if self.lent { Ok(()) } else { self.keeps_names(old, &new) }) {
                Ok(()) => (Some(Arc::new(new)), None),
                Err(error) => keep(error),
            };
        }
        match fit {
            // Neither is good. One that is out of its time is the greater evil; of two, the one that is over sooner.
            Err(error)
                if new.validity(now).is_err() && (old.validity(now).is_ok() || new.not_after <= old.not_after) =>
            {
                keep(error)
            }
            fit => (Some(Arc::new(new)), fit.err().map(itself)),
        }
    }

    /// Whether a pair is what its sites need.
    fn is_fit(&self, pair: &Pair, now: SystemTime) -> Result<(), PairError> {
        pair.validity(now)?;
        match pair.stray {
            Some(number) => Err(PairError::Disordered { number }),
            None => names_one_of(self.hosts.iter(), pair),
        }
    }

    /// A pair that names less of the site than the one in service would turn visitors away. Who means it takes the host out
    /// of the site.
    fn keeps_names(&self, old: &Pair, new: &Pair) -> Result<(), PairError> {
        let is_lost = |host: &&HostPattern| {
            (old.is_for(host) && !new.is_for(host)) || (old.covers_all_of(host) && !new.covers_all_of(host))
        };
        let lost = self.hosts.iter().find(is_lost);
        lost.map_or(Ok(()), |host| Err(PairError::LostName { host: host.to_string() }))
    }
}

/// A pair that names none of several hosts is for others. Where there are none, any pair will do.
fn names_one_of<'a>(hosts: impl Iterator<Item = &'a HostPattern>, pair: &Pair) -> Result<(), PairError> {
    let mut hosts = hosts.peekable();
    let Some(first) = hosts.peek().copied() else { return Ok(()) };
    if hosts.any(|host| pair.is_for(host)) { Ok(()) } else { Err(PairError::OtherNames { host: first.to_string() }) }
}

fn is_absence(error: &PairError) -> bool {
    matches!(error, PairError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// What stays the same of a file while nobody writes to it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    identity: (u64, u64, u64),
    modified: (i64, i64),
    changed: (i64, i64),
    /// Whether the file was changed so recently that a second change could bear the same time.
    fresh: bool,
}

impl Stamp {
    /// `None` where one of the files may not be looked at: then they are read each time.
    fn of_both(files: &CertificateFiles, now: SystemTime) -> Option<(Stamp, Stamp)> {
        Some((Stamp::of(&files.cert, now)?, Stamp::of(&files.key, now)?))
    }

    fn of(path: &Path, now: SystemTime) -> Option<Stamp> {
        let metadata = fs::metadata(path).ok()?;
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        Some(Stamp {
            identity: (metadata.dev(), metadata.ino(), metadata.size()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            fresh: metadata.ctime() >= now.saturating_sub(2),
        })
    }

    fn is_still(&self, old: &Stamp) -> bool {
        let same = |stamp: &Stamp| (stamp.identity, stamp.modified, stamp.changed);
        !old.fresh && same(self) == same(old)
    }
}
