//! One look at one certificate, and what has to be done about it: nothing, asking its authority when to renew it, or
//! an order.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::apart;
use super::desk::Desk;
use super::drafts::{hand_over, is_open};
use super::failure::{Failure, FailureKind};
use super::ledger::{Attempt, Ledger, Outcome, Refusal};
use super::live::Live;
use super::order::{Wanted, obtain};
use super::plan::Planned;
use super::rehearsal::rehearse;
use super::renewals::Renewals;
use super::schedule::{Reason, by_age};
use super::setback::Setback;
use super::settings::Authority;
use super::state::{LastFailure, Seconds, State, Suggestion};
use super::suggestion;
use super::way;
use crate::base::certified_name::CertifiedName;
use crate::store::{CertificateFolder, label};
use crate::tls::pair::{CertificateFiles, with_causes};

/// How often a certificate is looked at although nothing is due: its files may be lost, and clocks jump.
const LOOK: Duration = Duration::from_secs(60);
/// How soon it is looked at again while another process works on it.
const BUSY: Duration = Duration::from_secs(5);
/// Before this, the clock is wrong: 2026-01-01. A certificate that is ordered then would not be valid.
const NOT_BEFORE: Seconds = Seconds(1_767_225_600);
/// Longer than any wait: an authority that asks for more than a week is not believed.
const LONGEST_WAIT: Duration = Duration::from_secs(8 * 86_400);

/// See the module.
pub(super) struct Errand {
    pub renewals: Arc<Renewals>,
    pub desk: Arc<Desk>,
    pub planned: Planned,
    pub purpose: Purpose,
}

/// What an errand is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The certificate is to be there and in time.
    Keep,
    /// A person wants it renewed now.
    Renew,
    /// A person wants to know whether it could be ordered.
    Rehearse,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Visited {
    /// When to look again.
    pub next: SystemTime,
    /// For the person who asked.
    pub told: Result<String, String>,
}

impl Visited {
    fn at_rest(next: SystemTime) -> Visited {
        Visited { next, told: Ok("nothing to do".to_owned()) }
    }
}

/// What is known of the certificate at one moment.
struct Sight {
    live: Option<Live>,
    state: State,
    reason: Option<Reason>,
    /// Whether the authority is to be asked when it would have it renewed.
    ask: bool,
}

impl Sight {
    /// How often in a row authorities were asked in vain.
    fn times(&self) -> u32 {
        self.state.failure.as_ref().map_or(0, |failure| failure.times)
    }

    /// Nothing is to be done before its renewal.
    fn at_rest(&self, now: SystemTime) -> Visited {
        let renewal = self.state.renewal.as_ref().map(|renewal| renewal.at.time() + Duration::from_secs(1));
        Visited::at_rest(renewal.unwrap_or(now + LOOK).clamp(now, now + LOOK))
    }
}

impl Errand {
    pub async fn run(mut self) -> Visited {
        let folder = self.desk.storage.certificate(&self.planned.label());
        if self.purpose == Purpose::Rehearse {
            return self.rehearse(&folder).await;
        }
        let now = SystemTime::now();
        let sight = self.look(&folder, now);
        if let Some(rest) = self.may_rest(&sight, now) {
            return rest;
        }
        let lock = match folder.try_lock() {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                let told = Err("another process is at work on this certificate".to_owned());
                return Visited { next: now + BUSY, told };
            }
            Err(error) => {
                let setback = Setback::of(Failure::storage(error), sight.times());
                return self.failed(&folder, sight, setback);
            }
        };
        // Once more under the lock: another process may just have done it.
        let mut sight = self.look(&folder, now);
        if let Some(live) = sight.live.as_ref().filter(|_| sight.ask) {
            suggestion::ask(&self.desk, live, &mut sight.state, now).await;
            self.write(&folder, &sight.state);
            sight = self.look(&folder, now);
        }
        let Some(reason) = sight.reason.clone() else { return sight.at_rest(now) };
        let mut apart = Vec::new();
        let mut visited = loop {
            match self.order(&folder, &sight, &reason).await {
                Ok(authority) => break self.succeeded(&folder, authority),
                Err(setback) => match self.part(&setback) {
                    Some(rest) => {
                        apart.push(format!("{}; the other names are tried without it", setback.failure));
                        self.planned = rest;
                    }
                    None => break self.failed(&folder, sight, setback),
                },
            }
            // Without its first name it is another certificate, and so another errand's.
            if self.planned.label() != folder.label() {
                break Visited::at_rest(now + LOOK);
            }
        };
        if !apart.is_empty() {
            let (Ok(told) | Err(told)) = visited.told;
            visited.told = Err(format!("{}\n{told}", apart.join("\n")));
        }
        drop(lock);
        visited
    }

    /// An order that nobody uses. The lock is the certificate's own: two answers for one name would be in each other's
    /// way.
    async fn rehearse(&self, folder: &CertificateFolder) -> Visited {
        let next = SystemTime::now();
        let told = match folder.try_lock() {
            Ok(Some(_lock)) => rehearse(&self.desk, &self.planned, &self.renewals).await,
            Ok(None) => Err("an order for these names is under way: see `doorward cert list`".to_owned()),
            Err(error) => Err(with_causes(&error)),
        };
        Visited { next, told }
    }

    fn is_by_hand(&self) -> bool {
        self.purpose != Purpose::Keep
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.planned.names.iter().map(CertifiedName::to_string).collect();
        names.join(", ")
    }

    fn look(&self, folder: &CertificateFolder, now: SystemTime) -> Sight {
        let settings = &self.desk.settings;
        let mut state = State::parse(folder.read_state().ok().flatten().as_deref());
        let (cert, key) = folder.live();
        let (live, mut reason) = match Live::read(self.renewals.keys().as_ref(), &CertificateFiles { cert, key }) {
            Ok(Some(live)) => {
                let reason = live.reason(&self.planned, &state, settings, now);
                (Some(live), reason)
            }
            Ok(None) => (None, Some(Reason::Missing)),
            Err(error) => (None, Some(Reason::Unusable(with_causes(&error)))),
        };
        if self.is_by_hand() {
            reason = Some(Reason::ByHand);
        }
        if let Some(live) = &live {
            state.renewal = Some(live.shown(&state, settings));
        }
        let due = |suggestion: &Suggestion| is_due(suggestion.ask_again, suggestion::ASK_AGAIN.1, now);
        let ask = live.is_some() && reason.is_none() && state.suggestion.as_ref().is_none_or(due);
        Sight { live, state, reason, ask }
    }

    /// Whether there is nothing to do, or it is too early after a failure.
    fn may_rest(&self, sight: &Sight, now: SystemTime) -> Option<Visited> {
        if sight.reason.is_none() && !sight.ask {
            return Some(sight.at_rest(now));
        }
        let failure = sight.state.failure.as_ref().filter(|_| sight.reason.is_some() && !self.is_by_hand())?;
        // Whoever changes the file wants to see what comes of it. What an authority was asked for is in the ledger.
        if failure.settings != self.desk.fingerprint {
            return None;
        }
        let wait = !is_due(failure.next, LONGEST_WAIT, now);
        wait.then(|| Visited::at_rest(failure.next.time().min(now + LOOK)))
    }

    /// Asks one authority after the other. `Ok` is the directory of the one that certified.
    async fn order(&self, folder: &CertificateFolder, sight: &Sight, reason: &Reason) -> Result<String, Setback> {
        let times = sight.times();
        if !is_due(NOT_BEFORE, Duration::MAX, SystemTime::now()) {
            let what = "this machine's clock is wrong, and nothing can be ordered until it is right";
            return Err(Setback::of(Failure::new(FailureKind::Clock, what), times));
        }
        self.desk.storage.check_room().map_err(|error| Setback::of(Failure::storage(error), times))?;
        // The semaphore is never closed.
        let _permit = self.desk.orders.acquire().await;
        let mut setback: Option<Setback> = None;
        for authority in &self.desk.settings.authorities {
            if self.is_by_hand() {
                self.desk.try_again(authority);
            }
            let failure = match self.order_from(authority, folder, sight, reason).await {
                Ok(()) => return Ok(authority.directory.clone()),
                Err(failure) => failure,
            };
            if failure.kind == FailureKind::Unreachable || failure.is("accountDoesNotExist") {
                self.desk.forget(authority);
            }
            let next = another_may(failure.kind);
            if next && self.desk.settings.authorities.last() != Some(authority) {
                tracing::warn!(names = self.names(), "the next authority is tried: {failure}");
            }
            setback = Some(Setback::of(failure, times).after(setback));
            if !next {
                break;
            }
        }
        let nobody = || Setback::of(Failure::new(FailureKind::Refused, "no authority is named"), times);
        Err(setback.unwrap_or_else(nobody))
    }

    async fn order_from(
        &self,
        authority: &Authority,
        folder: &CertificateFolder,
        sight: &Sight,
        reason: &Reason,
    ) -> Result<(), Failure> {
        let (ledger, names, url) = (&self.desk.ledger, &self.planned.names, authority.directory.as_str());
        let settings = &self.desk.settings;
        let replaces = sight.live.as_ref().filter(|_| sight.state.authority.as_deref() == Some(url));
        let wanted = Wanted {
            names: names.clone(),
            key_kind: settings.key_kind,
            challenges: settings.challenges.clone(),
            dns_hook: settings.dns_hook.clone(),
            profile: authority.profile.clone(),
            replaces: replaces.map(|live| live.leaf.clone()),
        };
        // An order that is open already costs no other.
        if !is_open(url, &wanted, folder)? {
            ledger.may_order(url, names, self.is_by_hand(), SystemTime::now()).map_err(Refusal::Wait)?;
            if sight.live.is_none() && sight.state.authority.is_none() {
                way::check(names, authority, self.renewals.challenges()).await?;
            }
        }
        let client = self.desk.client(authority).await?;
        tracing::info!(names = self.names(), authority = url, "ordering a certificate: {reason}");
        let may_order = || Ok(ledger.begin(url, names, self.is_by_hand(), SystemTime::now())?);
        let (keys, challenges) = (self.renewals.keys(), self.renewals.challenges());
        match obtain(&client, &wanted, folder, keys, challenges, &may_order).await {
            Ok(obtained) => {
                note(ledger, obtained.attempt.as_ref(), Outcome::Issued { due: self.due(folder) });
                Ok(())
            }
            Err(failure) => {
                note(ledger, failure.attempt.as_deref(), failure.outcome());
                Err(failure)
            }
        }
    }

    /// When the certificate that has just come will be renewed.
    fn due(&self, folder: &CertificateFolder) -> SystemTime {
        let (cert, key) = folder.live();
        match Live::read(self.renewals.keys().as_ref(), &CertificateFiles { cert, key }) {
            Ok(Some(live)) => by_age(live.life, self.desk.settings.renew_before, 0),
            _ => SystemTime::now(),
        }
    }

    fn succeeded(&self, folder: &CertificateFolder, authority: String) -> Visited {
        let now = SystemTime::now();
        let (cert, key) = folder.live();
        let mut state = State { authority: Some(authority), ..State::default() };
        let mut told = format!("{}: a new certificate is in service", self.names());
        if let Ok(Some(live)) = Live::read(self.renewals.keys().as_ref(), &CertificateFiles { cert, key }) {
            state.renewal = Some(live.shown(&state, &self.desk.settings));
            told = format!("{told}, valid until {}", httpdate::fmt_http_date(live.life.not_after));
        }
        self.write(folder, &state);
        self.renewals.certificates().refresh();
        // At once: the authority is asked when it would have it renewed.
        Visited { next: now, told: Ok(told) }
    }

    fn failed(&self, folder: &CertificateFolder, mut sight: Sight, setback: Setback) -> Visited {
        let last = self.last(&setback);
        let (next, why) = (last.next.time(), last.why.clone());
        // A wait is not news: what happened before says more.
        if setback.failure.kind != FailureKind::Wait || sight.state.failure.is_none() {
            let next = httpdate::fmt_http_date(next);
            if sight.live.is_some() {
                tracing::warn!(names = self.names(), "no new certificate: {why}; next try {next}");
            } else {
                tracing::error!(names = self.names(), "no certificate: {why}; next try {next}");
            }
            sight.state.failure = Some(last);
        } else if let Some(before) = &mut sight.state.failure {
            (before.next, before.settings) = (last.next, last.settings);
        }
        self.write(folder, &sight.state);
        Visited { next: next.min(SystemTime::now() + LOOK), told: Err(why) }
    }

    /// What is remembered of it.
    fn last(&self, setback: &Setback) -> LastFailure {
        let now = SystemTime::now();
        // Rounded up: a moment too early would be refused once more.
        let next = Seconds::of(now + setback.wait + Duration::from_millis(999));
        let (why, settings) = (setback.failure.to_string(), self.desk.fingerprint.clone());
        LastFailure { at: Seconds::of(now), why, times: setback.times, next, settings }
    }

    /// Puts the names that could not be validated apart, so that they do not hold up the others: what is left is given.
    fn part(&self, setback: &Setback) -> Option<Planned> {
        let failure = &setback.failure;
        let failed = |name: &CertifiedName| failure.names.iter().any(|(other, _)| other == name);
        let (bad, rest): (Vec<_>, Vec<_>) = self.planned.names.iter().cloned().partition(failed);
        if bad.is_empty() || rest.is_empty() {
            return None;
        }
        let storage = &self.desk.storage;
        if let Err(error) = apart::add(storage, &bad, SystemTime::now()) {
            tracing::error!("cannot put a name apart: {}", with_causes(&error));
            return None;
        }
        for name in &bad {
            tracing::error!(%name, "no certificate: {failure}; the other names of the site are tried without it");
            let folder = storage.certificate(&label(&name.to_string()));
            // What failed for it here is tried last there. While another has that folder, it finds out by itself.
            let _ = hand_over(failure, name, &folder);
            let state = State::parse(folder.read_state().ok().flatten().as_deref());
            self.write(&folder, &State { failure: Some(self.last(setback)), ..state });
        }
        self.renewals.replan();
        Some(Planned { names: rest, sites: self.planned.sites.clone() })
    }

    fn write(&self, folder: &CertificateFolder, state: &State) {
        if let Err(error) = folder.write_state(&state.to_bytes()) {
            tracing::warn!("the state of a certificate cannot be written: {}", with_causes(&error));
        }
    }
}

/// Writes down what came of an order, if one was placed.
pub(super) fn note(ledger: &Ledger, attempt: Option<&Attempt>, outcome: Outcome) {
    if let Some(attempt) = attempt
        && let Err(error) = ledger.end(attempt, outcome, SystemTime::now())
    {
        tracing::warn!("the ledger of orders cannot be written: {}", with_causes(&error));
    }
}

/// Whether another authority may do what this one did not.
fn another_may(kind: FailureKind) -> bool {
    use FailureKind::{RateLimited, Refused, Unfinished, Unreachable, Wait, WrongCertificate};
    matches!(kind, RateLimited | Refused | Unfinished | Unreachable | Wait | WrongCertificate)
}

/// Whether `time` has come. One that lies further ahead than anybody would wait was written by a clock that has been
/// set back since.
fn is_due(time: Seconds, longest: Duration, now: SystemTime) -> bool {
    time.time().duration_since(now).map_or(true, |ahead| ahead > longest)
}
