//! Which certificate is looked at when.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::desk::Desk;
use super::errand::{Errand, Purpose, Visited};
use super::plan::Planned;
use super::renewals::{Asked, Assignment, LONGEST_SLEEP, Renewals, Told};
use super::settings::Settings;
use crate::base::certified_name::CertifiedName;
use crate::tls::pair::with_causes;

/// What somebody asked for, and where the outcome goes.
type Waiting = (Purpose, oneshot::Sender<Told>);

/// See the module.
#[derive(Default)]
pub(super) struct Diary {
    desk: Option<Arc<Desk>>,
    entries: HashMap<String, Entry>,
}

#[derive(Default)]
struct Entry {
    /// An errand is under way.
    busy: bool,
    /// Not before this; `None` is now.
    next: Option<SystemTime>,
    /// The names of the last errand: another plan for the same label is looked at at once.
    names: Vec<CertifiedName>,
    /// Who waits for the errand that is under way.
    served: Vec<Waiting>,
    /// Who waits for one that a person asked for.
    asked: Vec<Waiting>,
}

impl Diary {
    /// Sends an errand to every certificate that is due; says how long there is nothing to do.
    pub fn start_due(
        &mut self,
        renewals: &Arc<Renewals>,
        assignment: &Arc<Assignment>,
        errands: &mut JoinSet<(String, Visited)>,
    ) -> Duration {
        let desk = match self.desk_for(&assignment.settings, renewals.closed()) {
            Ok(desk) => desk,
            Err(why) => {
                self.refuse(&why);
                return LONGEST_SLEEP;
            }
        };
        let now = SystemTime::now();
        let mut sleep = LONGEST_SLEEP;
        let labels: BTreeSet<String> = assignment.planned.iter().map(Planned::label).collect();
        self.entries.retain(|label, entry| entry.busy || labels.contains(label));
        for planned in &assignment.planned {
            let entry = self.entries.entry(planned.label()).or_default();
            if entry.busy {
                continue;
            }
            let purpose = entry.asked.first().map_or(Purpose::Keep, |(purpose, _)| *purpose);
            if entry.names != planned.names {
                entry.names.clone_from(&planned.names);
                entry.next = None;
            }
            let ahead = entry.next.and_then(|next| next.duration_since(now).ok()).unwrap_or_default();
            if purpose == Purpose::Keep && !ahead.is_zero() {
                sleep = sleep.min(ahead);
                continue;
            }
            entry.busy = true;
            let (served, asked) =
                std::mem::take(&mut entry.asked).into_iter().partition(|(other, _)| *other == purpose);
            entry.served = served;
            entry.asked = asked;
            let (label, planned) = (planned.label(), planned.clone());
            let errand = Errand { renewals: Arc::clone(renewals), desk: Arc::clone(&desk), planned, purpose };
            errands.spawn_local(async move { (label, errand.run().await) });
        }
        sleep
    }

    pub fn note(&mut self, label: String, visited: Visited) {
        let Some(entry) = self.entries.get_mut(&label) else { return };
        entry.busy = false;
        entry.next = Some(visited.next);
        for (_, reply) in entry.served.drain(..) {
            // Whoever asked may have left; the log has the outcome.
            let _ = reply.send(visited.told.clone());
        }
    }

    pub fn take(&mut self, asked: Vec<Asked>) {
        for Asked { label, purpose, reply } in asked {
            self.entries.entry(label).or_default().asked.push((purpose, reply));
        }
        // A new plan is looked at at once.
        for entry in self.entries.values_mut().filter(|entry| !entry.busy) {
            entry.next = None;
        }
    }

    /// An errand came to no end. Nobody knows which; all are looked at anew, in a while.
    pub fn lose(&mut self) {
        let next = SystemTime::now() + LONGEST_SLEEP;
        for entry in self.entries.values_mut().filter(|entry| entry.busy) {
            *entry = Entry { next: Some(next), names: std::mem::take(&mut entry.names), ..Entry::default() };
        }
    }

    /// Answers everybody who asked for a certificate and cannot have it.
    fn refuse(&mut self, why: &str) {
        for (_, reply) in self.entries.values_mut().flat_map(|entry| entry.asked.drain(..)) {
            // Whoever asked may have left.
            let _ = reply.send(Err(format!("no certificate can be ordered: {why}")));
        }
    }

    /// The desk for these settings; an error, told once, while the storage cannot be opened.
    fn desk_for(&mut self, settings: &Settings, closed: &ArcSwapOption<String>) -> Result<Arc<Desk>, String> {
        if let Some(desk) = self.desk.as_ref().filter(|desk| desk.settings == *settings) {
            return Ok(Arc::clone(desk));
        }
        self.desk = None;
        match Desk::open(settings.clone()) {
            Ok(desk) => {
                closed.store(None);
                Ok(Arc::clone(self.desk.insert(Arc::new(desk))))
            }
            Err(error) => {
                let why = with_causes(&error);
                if closed.load().as_deref() != Some(&why) {
                    tracing::error!("no certificate can be ordered: {why}");
                }
                closed.store(Some(Arc::new(why.clone())));
                Err(why)
            }
        }
    }
}
