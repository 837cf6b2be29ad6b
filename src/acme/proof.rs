//! Showing the authority that names are this machine's: all answers are ready before the first question is invited.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{AuthorizationStatus, ChallengeStatus, ChallengeType, Order, OrderStatus};
use tokio::time::{Instant, sleep};

use super::account::Client;
use super::call::call;
use super::challenge::{self, Question};
use super::failure::{self, Failure, FailureKind};
use super::hook::{Action, Hook, Record};
use super::note::Note;
use super::order::{Wanted, name_of};
use super::settings::ChallengeKind;
use crate::base::certified_name::CertifiedName;
use crate::store::Draft;
use crate::tls::challenges::{Answering, Challenges};

/// The answers of one attempt.
pub(super) struct Proof<'a> {
    client: &'a Client,
    wanted: &'a Wanted,
    challenges: &'a Arc<Challenges>,
    /// Held while the authority may ask.
    answering: Vec<Answering>,
    /// DNS records that this attempt has set.
    set: Vec<Record>,
    given: bool,
    /// How long the hook ran, and its records were waited for.
    hook_time: Duration,
}

/// A name that was not proven.
pub(super) struct Failed {
    pub(super) name: CertifiedName,
    /// How it was tried, where that is known.
    pub(super) kind: Option<ChallengeKind>,
    /// In the authority's words, with what to do.
    pub(super) said: String,
    /// Whether the authority must not issue, rather than could not see.
    pub(super) is_forbidden: bool,
}

/// A hook that failed so often in a row is not run for the other names: it may take minutes each time.
const MOST_HOOK_FAILURES: u32 = 3;
/// Of what the hook said about each name after the first, in characters.
const LONGEST_SAID: usize = 200;

impl<'a> Proof<'a> {
    pub(super) fn new(client: &'a Client, wanted: &'a Wanted, challenges: &'a Arc<Challenges>) -> Proof<'a> {
        Proof {
            client,
            wanted,
            challenges,
            answering: Vec::new(),
            set: Vec::new(),
            given: false,
            hook_time: Duration::ZERO,
        }
    }

    /// Whether the authority was invited to ask, for every name.
    pub(super) fn is_given(&self) -> bool {
        self.given
    }

    /// How much of the time up to now was the hook's.
    pub(super) fn hook_time(&self) -> Duration {
        self.hook_time
    }

    /// Whether `name` might be shown by a DNS record.
    pub(super) fn may_use_dns(&self, name: &CertifiedName) -> bool {
        matches!(name, CertifiedName::Dns(_)) && self.allowed(name).contains(&ChallengeKind::Dns)
    }

    /// Prepares the answers for every name that is not proven yet, then invites the authority. The note is kept in `draft`.
    pub(super) async fn give(&mut self, order: &mut Order, note: &mut Note, draft: &Draft) -> Result<(), Failure> {
        self.fetch(order).await?;
        let questions = self.questions(order, note).await?;
        // A second try within one attempt meets the same tokens: the old answers go first.
        self.answering.clear();
        for (question, _) in &questions {
            if let Some(challenge) = question.for_listeners()? {
                let answering = self.challenges.answer(challenge).map_err(|source| {
                    Failure::new(FailureKind::Key, format!("{} cannot be answered for", question.name)).because(source)
                })?;
                self.answering.push(answering);
            }
        }
        self.set_records(&questions, note, draft).await?;
        let mut refused = None;
        for (question, is_invited) in &questions {
            if !is_invited {
                match self.invite(order, question).await {
                    // Perhaps it has asked already: that shows in the order's state.
                    Err(failure) if failure.kind == FailureKind::Refused => refused = Some(failure),
                    invited => invited?,
                }
            }
        }
        if let Some(failure) = refused {
            self.check_refusal(order, failure).await?;
        }
        self.given = true;
        Ok(())
    }

    /// Takes the answers back. What the hook says about it is only logged.
    pub(super) async fn withdraw(&mut self, note: &mut Note, draft: &Draft) {
        self.answering.clear();
        self.set.clear();
        if note.records.is_empty() {
            return;
        }
        if let Some(hook) = self.hook() {
            let begun = Instant::now();
            hook.remove_all(&note.records).await;
            self.hook_time += begun.elapsed();
        }
        note.records.clear();
        if let Err(failure) = note.keep(draft) {
            tracing::warn!(%failure, "cannot note that DNS records were removed");
        }
    }

    /// The names of an invalid order that failed.
    pub(super) async fn why_failed(&self, order: &mut Order) -> Result<Vec<Failed>, Failure> {
        self.refresh_all(order).await?;
        let mut failed = Vec::new();
        let mut all = order.authorizations();
        while let Some(Ok(authorization)) = all.next().await {
            if authorization.status != AuthorizationStatus::Invalid {
                continue;
            }
            let Some(name) = name_of(&authorization) else { continue };
            let tried = authorization.challenges.iter().find_map(|tried| Some((tried, tried.error.as_ref()?)));
            failed.push(match tried {
                Some((tried, problem)) => {
                    let kind = kind_of(&tried.r#type);
                    let title = kind.map_or("", challenge::title);
                    let said = format!("{title}: {}", failure::of_challenge(problem));
                    Failed { name, kind, said, is_forbidden: failure::is_forbidden(problem) }
                }
                None => Failed { name, kind: None, said: "no reason given".to_owned(), is_forbidden: false },
            });
        }
        Ok(failed)
    }

    /// The names of a pending order that the authority has not decided about.
    pub(super) async fn undecided(&self, order: &mut Order) -> Result<Vec<CertifiedName>, Failure> {
        self.refresh_all(order).await?;
        let mut undecided = Vec::new();
        let mut all = order.authorizations();
        while let Some(Ok(authorization)) = all.next().await {
            if authorization.status == AuthorizationStatus::Pending {
                undecided.extend(name_of(&authorization));
            }
        }
        Ok(undecided)
    }

    /// Has the state of every authorization fetched, one call for each.
    async fn fetch(&self, order: &mut Order) -> Result<(), Failure> {
        for index in 0..order.state().authorizations.len() {
            let fetched = call!(self.client.asking("an authorization"), {
                let mut all = order.authorizations();
                for _ in 0..=index {
                    all.next().await.transpose()?;
                }
                Ok(())
            });
            fetched?;
        }
        Ok(())
    }

    async fn refresh_all(&self, order: &mut Order) -> Result<(), Failure> {
        self.fetch(order).await?;
        for index in 0..order.state().authorizations.len() {
            let refreshed = call!(self.client.asking("an authorization"), {
                let mut all = order.authorizations();
                for _ in 0..index {
                    all.next().await.transpose()?;
                }
                match all.next().await.transpose()? {
                    Some(mut authorization) => authorization.refresh().await.map(|_| ()),
                    None => Ok(()),
                }
            });
            refreshed?;
        }
        Ok(())
    }

    /// What is to be answered, each with whether the authority was invited already.
    async fn questions(&self, order: &mut Order, note: &Note) -> Result<Vec<(Question, bool)>, Failure> {
        let mut questions = Vec::new();
        let mut all = order.authorizations();
        while let Some(Ok(mut authorization)) = all.next().await {
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            // What comes from outside goes into a hook's arguments and into certificates: only what we said ourselves.
            let Some(name) = name_of(&authorization).filter(|name| self.wanted.names.contains(name)) else {
                let what = format!("{} asks about a name that was not ordered", self.client.host());
                return Err(Failure::new(FailureKind::Refused, what));
            };
            let offers: Vec<ChallengeType> = authorization.challenges.iter().map(|c| c.r#type.clone()).collect();
            let allowed = self.allowed(&name);
            // One that it has begun to ask, for an earlier attempt, is the one to answer.
            let begun = authorization.challenges.iter().filter(|begun| begun.status == ChallengeStatus::Processing);
            let begun: Vec<ChallengeType> = begun.map(|begun| begun.r#type.clone()).collect();
            let chosen = challenge::choose(&name, &begun, &allowed, |_| 0);
            let chosen =
                chosen.or_else(|| challenge::choose(&name, &offers, &allowed, |kind| note.failures(&name, kind)));
            let Some(kind) = chosen else { return Err(self.no_way(name, &offers)) };
            let Some(handle) = authorization.challenge(challenge::protocol_name(kind)) else { continue };
            let key_authorization = handle.key_authorization();
            let question = Question {
                name,
                kind,
                token: handle.token.clone(),
                digest: key_authorization.digest().as_ref().to_vec(),
                dns_value: key_authorization.dns_value(),
                key_authorization: key_authorization.as_str().to_owned(),
            };
            questions.push((question, handle.status != ChallengeStatus::Pending));
        }
        Ok(questions)
    }

    fn allowed(&self, name: &CertifiedName) -> Vec<ChallengeKind> {
        let has_hook = self.wanted.dns_hook.is_some();
        // There is no other way for a wildcard, so whoever gives a hook means it to be used.
        if has_hook && name.is_wildcard() {
            return vec![ChallengeKind::Dns];
        }
        self.wanted.challenges.iter().copied().filter(|kind| *kind != ChallengeKind::Dns || has_hook).collect()
    }

    fn no_way(&self, name: CertifiedName, offers: &[ChallengeType]) -> Failure {
        let offers = offers.iter().filter_map(kind_of).map(challenge::title).collect::<Vec<_>>().join(", ");
        let what = format!("{} offers no challenge that may be answered", self.client.host());
        let advice = match self.wanted.dns_hook {
            None if name.is_wildcard() => ", and that takes acme.dns_hook",
            _ => ": acme.challenges says which may be answered",
        };
        let mut failure = Failure::new(FailureKind::Refused, what);
        failure.names = vec![(name, format!("it offers {offers}{advice}"))];
        failure
    }

    /// All records are set, then waited for once: those of a name and of its wildcard stand at one place.
    async fn set_records(
        &mut self,
        questions: &[(Question, bool)],
        note: &mut Note,
        draft: &Draft,
    ) -> Result<(), Failure> {
        let records = questions.iter().filter_map(|(question, _)| {
            let record = Record { domain: question.domain()?.to_owned(), value: question.dns_value.clone() };
            Some((&question.name, record))
        });
        let missing: Vec<_> = records.filter(|(_, record)| !self.set.contains(record)).collect();
        let Some(hook) = self.hook().filter(|_| !missing.is_empty()) else { return Ok(()) };
        // Noted first, so that they are removed even if the process dies.
        let unknown = missing.iter().map(|(_, record)| record).filter(|record| !note.records.contains(record));
        let unknown: Vec<Record> = unknown.cloned().collect();
        note.records.extend(unknown);
        note.keep(draft)?;
        let begun = Instant::now();
        let mut failure = Failure::new(FailureKind::Hook, "a DNS record cannot be set");
        let (mut in_a_row, mut failed_names) = (0, Vec::new());
        for (name, record) in missing {
            if in_a_row >= MOST_HOOK_FAILURES {
                failure.names.push((name.clone(), "not tried: dns_hook failed too often in a row".to_owned()));
                continue;
            }
            match hook.run(Action::Add, &record).await {
                Ok(()) => {
                    in_a_row = 0;
                    self.set.push(record);
                }
                // The others are tried all the same: which names can be shown is to be known at once, and not one
                // order after the other.
                Err(failed) => {
                    in_a_row += 1;
                    note.failed(name, ChallengeKind::Dns);
                    failed_names.push((name.clone(), ChallengeKind::Dns));
                    let said = failed.to_string();
                    let longest = if failure.names.is_empty() { usize::MAX } else { LONGEST_SAID };
                    failure.names.push((name.clone(), said.chars().take(longest).collect()));
                }
            }
        }
        if failure.names.is_empty() {
            sleep(hook.command.wait).await;
        }
        self.hook_time += begun.elapsed();
        failure.failed = failed_names.into();
        if failure.names.is_empty() { Ok(()) } else { Err(failure) }
    }

    fn hook(&self) -> Option<Hook<'a>> {
        let command = self.wanted.dns_hook.as_ref()?;
        Some(Hook { command, authority: self.client.directory(), deadline: self.client.patience().hook })
    }

    async fn invite(&self, order: &mut Order, question: &Question) -> Result<(), Failure> {
        call!(self.client.asking("a look at the answer to its challenge"), {
            let mut all = order.authorizations();
            while let Some(authorization) = all.next().await {
                let mut authorization = authorization?;
                if name_of(&authorization).as_ref() == Some(&question.name) {
                    return match authorization.challenge(challenge::protocol_name(question.kind)) {
                        Some(mut handle) => handle.set_ready().await,
                        None => Ok(()),
                    };
                }
            }
            Ok(())
        })
    }

    /// A refused invitation counts only while the authority still waits for one.
    async fn check_refusal(&self, order: &mut Order, refusal: Failure) -> Result<(), Failure> {
        call!(self.client.asking("the state of the order"), order.refresh().await.map(|_| ()))?;
        if order.state().status != OrderStatus::Pending {
            return Ok(());
        }
        self.fetch(order).await?;
        let mut all = order.authorizations();
        while let Some(Ok(authorization)) = all.next().await {
            let is_untouched = |status| status == ChallengeStatus::Pending;
            if authorization.status == AuthorizationStatus::Pending
                && authorization.challenges.iter().all(|challenge| is_untouched(challenge.status))
            {
                return Err(refusal);
            }
        }
        Ok(())
    }
}

fn kind_of(r#type: &ChallengeType) -> Option<ChallengeKind> {
    match r#type {
        ChallengeType::Http01 => Some(ChallengeKind::Http),
        ChallengeType::TlsAlpn01 => Some(ChallengeKind::TlsAlpn),
        ChallengeType::Dns01 => Some(ChallengeKind::Dns),
        _ => None,
    }
}
