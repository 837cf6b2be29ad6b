//! One certificate of the store: its files, the pair that is served, and what is wrong with the files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::pair::{CertificateFiles, Pair, PairError, with_causes};
use super::store::{CertificateProblem, CertificateStatus, Serving};
use crate::base::host::HostPattern;
use crate::keys::Keys;

/// A pair of files and what they hold.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) files: CertificateFiles,
    pub(super) sites: Vec<String>,
    /// The exact hosts of the sites.
    hosts: Vec<String>,
    /// The last good pair.
    pub(super) pair: Option<Arc<Pair>>,
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
        Slot { files, sites: Vec::new(), hosts: Vec::new(), pair: None, failure: None, stamps: None }
    }

    /// One more site uses this certificate.
    pub(super) fn claim(&mut self, site: String, names: &[HostPattern]) {
        self.sites.push(site);
        self.hosts.extend(names.iter().filter_map(|pattern| match pattern {
            HostPattern::Exact(host) | HostPattern::AtOrBelow(host) => Some(host.as_str().to_owned()),
            HostPattern::Below(_) | HostPattern::StartsWith(_) => None,
        }));
    }

    /// Takes over the pair of the table before.
    pub(super) fn inherit(&mut self, previous: Option<&Slot>) {
        self.pair = previous.and_then(|previous| previous.pair.clone());
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
        self.pair = pair;
        self.failure = failure.map(|(error, serving)| Failure { error: Arc::new(error), serving });
    }

    pub(super) fn problem(&self) -> Option<CertificateProblem> {
        let failure = self.failure.as_ref()?;
        Some(CertificateProblem {
            sites: self.sites.clone(),
            files: self.files.clone(),
            error: Arc::clone(&failure.error),
            serving: failure.serving,
        })
    }

    pub(super) fn status(&self) -> CertificateStatus {
        CertificateStatus {
            sites: self.sites.clone(),
            files: self.files.clone(),
            names: self.pair.as_ref().map(|pair| pair.names.clone()).unwrap_or_default(),
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
                        tracing::error!(%sites, %cert, %reason, "the certificate in service is not valid, and there is no better one");
                    }
                }
            }
            (None, Some(_)) => tracing::info!(%sites, %cert, "the certificate files are in order again"),
            _ => {}
        }
        swapped
    }

    /// Never replaces a valid pair by one that is broken, expired, not yet valid or for other names.
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
        let validity = new.validity(now);
        let Some(old) = &self.pair else {
            return (Some(Arc::new(new)), validity.err().map(|error| (error, Serving::Itself)));
        };
        if new.is_same(old) {
            return (Some(Arc::clone(old)), validity.err().map(|error| (error, Serving::Itself)));
        }
        if old.validity(now).is_ok() {
            return match validity.and_then(|()| self.keeps_a_name(old, &new)) {
                Ok(()) => (Some(Arc::new(new)), None),
                Err(error) => (Some(Arc::clone(old)), Some((error, Serving::Previous))),
            };
        }
        match validity {
            Ok(()) => (Some(Arc::new(new)), None),
            // Neither is valid: the one that lasts longer is the lesser evil.
            Err(error) if new.not_after > old.not_after => (Some(Arc::new(new)), Some((error, Serving::Itself))),
            Err(error) => (Some(Arc::clone(old)), Some((error, Serving::Previous))),
        }
    }

    /// A certificate that lost one of several names may be meant; one that lost them all is another site's.
    fn keeps_a_name(&self, old: &Pair, new: &Pair) -> Result<(), PairError> {
        let mut covered = self.hosts.iter().filter(|host| old.covers(host)).peekable();
        let Some(host) = covered.peek().map(|host| (*host).clone()) else { return Ok(()) };
        if covered.any(|host| new.covers(host)) { Ok(()) } else { Err(PairError::OtherNames { host }) }
    }
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
