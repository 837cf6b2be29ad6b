//! One order, from the first question to a certificate that is live.
//!
//! Every step is written down before it is taken, so that the process may die between any two: the draft has the key
//! before the order is placed, the order's URL right after, the DNS records before they are set. The authority knows
//! the rest: what is to be done next follows from the state of the order alone, so the same loop serves a new order
//! and one that is resumed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instant_acme::{AuthorizationState, Error, Identifier, Order, OrderState, OrderStatus};
use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::account::Client;
use super::call::call;
use super::drafts;
pub use super::drafts::{hand_over, is_open};
use super::failure::{Failure, FailureKind};
use super::issued::{self, Obtained};
use super::ledger::Attempt;
use super::note::Note;
use super::place;
use super::proof::Proof;
use super::settings::{ChallengeKind, DnsHook};
use crate::base::certified_name::CertifiedName;
use crate::keys::{KeyKind, Keys};
use crate::store::{CertificateFolder, Draft};
use crate::tls::challenges::Challenges;

/// What is ordered.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// At least one.
    pub names: Vec<CertifiedName>,
    /// What kind of key the certificate is for. The key is made.
    pub key_kind: KeyKind,
    /// What may be answered, the preferred one first. Of several that the authority offers for a name, the one that
    /// failed least often since the last success is taken; the draft's note remembers.
    pub challenges: Vec<ChallengeKind>,
    /// What sets DNS records; without it [`ChallengeKind::Dns`] is not answered. Wildcards are proven with it, whatever
    /// `challenges` has.
    pub dns_hook: Option<DnsHook>,
    /// The authority's profile.
    pub profile: Option<String>,
    /// The certificate that this one is instead of (RFC 9773, section 5).
    pub replaces: Option<CertificateDer<'static>>,
}

/// Asked right before an order is placed: the place for [`Ledger::begin`](super::ledger::Ledger::begin). The order is
/// not placed without it.
pub type MayOrder<'a> = &'a (dyn Fn() -> Result<Attempt, Failure> + Send + Sync);

/// Gets a certificate and makes it live in `folder`, whose lock the caller holds. Goes on with the folder's draft where
/// that is of the same order; otherwise places one, and asks `may_order` right before that. Dropped at any point, and
/// called again, it goes on.
///
/// What is to be ended in the ledger is in the result: [`Obtained::attempt`] or [`Failure::attempt`]. An order that
/// stays open is ended as failed too, for the time being: when it is resumed and succeeds, its entry is told again.
///
/// # Errors
/// What was live still is. The draft is kept, with its key, and with its order unless that came to its end.
/// `Unfinished` when the authority has not decided after [`Patience::order`](super::call::Patience::order).
pub async fn obtain(
    client: &Client,
    wanted: &Wanted,
    folder: &CertificateFolder,
    keys: &Arc<dyn Keys>,
    challenges: &Arc<Challenges>,
    may_order: MayOrder<'_>,
) -> Result<Obtained, Failure> {
    let (draft, note) = drafts::begin(client, wanted, folder, keys).await?;
    let proof = Proof::new(client, wanted, challenges);
    let begun_at = Instant::now();
    let deadline = begun_at + client.patience().order + for_hook(client, wanted, &proof);
    let mut work = Work { client, wanted, draft, note, proof, keys, begun_at, deadline, begun: None, issued: false };
    // Records that an earlier attempt may have left.
    work.withdraw().await;
    let mut order = None;
    let ended = timeout_at(deadline, work.run(may_order, &mut order)).await;
    work.withdraw().await;
    let mut ended = ended.unwrap_or_else(|_| Err(work.unfinished()));
    if let (Err(failure), Some(order)) = (&mut ended, &mut order)
        && failure.kind == FailureKind::Unfinished
    {
        failure.names = work.undecided(order).await;
    }
    ended.map_err(|failure| work.end(failure))
}

struct Work<'a> {
    client: &'a Client,
    wanted: &'a Wanted,
    draft: Draft,
    note: Note,
    proof: Proof<'a>,
    keys: &'a Arc<dyn Keys>,
    begun_at: Instant,
    /// With all that the hook may take.
    deadline: Instant,
    /// The ledger's entry for the order.
    begun: Option<Attempt>,
    /// There is a certificate.
    issued: bool,
}

/// From here on waits are told in whole seconds.
const SECONDS: Duration = Duration::from_secs(10);
/// All runs of the hook for one order.
const LONGEST_HOOK: Duration = Duration::from_secs(3600);
/// Failures on the way, one after the other, that are waited for.
const MOST_TROUBLES: u32 = 4;
/// A Retry-After that is waited for with the order open. A longer one is the next attempt's.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Work<'_> {
    async fn run(&mut self, may_order: MayOrder<'_>, held: &mut Option<Order>) -> Result<Obtained, Failure> {
        let (order, resumed) = match self.resume().await? {
            Some(order) => (order, true),
            None => (self.place(may_order).await?, false),
        };
        let order = held.insert(order);
        let mut troubles = 0;
        let mut polls = 0;
        let chain = loop {
            match self.step(order, &mut polls).await {
                Ok(Some(chain)) => break chain,
                Ok(None) => troubles = 0,
                Err(failure) => {
                    troubles += 1;
                    self.recover(order, failure, troubles).await?;
                }
            }
        };
        let keys = Arc::clone(self.keys);
        let checked = issued::check(&chain, &self.draft, &self.wanted.names, &*keys, self.client.host())?;
        self.draft.commit(&chain).map_err(Failure::storage)?;
        Ok(Obtained { resumed, attempt: self.begun.take(), ..checked })
    }

    /// Takes the order one state further. The chain, at the end.
    async fn step(&mut self, order: &mut Order, polls: &mut u32) -> Result<Option<String>, Failure> {
        match order.state().status {
            OrderStatus::Pending if !self.proof.is_given() => self.prove(order).await?,
            OrderStatus::Pending | OrderStatus::Processing => self.poll(order, polls).await?,
            OrderStatus::Ready => {
                self.withdraw().await;
                self.finalize(order).await?;
                *polls = 0;
            }
            OrderStatus::Valid => {
                self.issued = true;
                return call!(self.client.asking("the certificate"), order.certificate().await);
            }
            OrderStatus::Invalid => return Err(self.why_invalid(order).await),
        }
        Ok(None)
    }

    /// The order of the draft, if the authority still has it.
    async fn resume(&mut self) -> Result<Option<Order>, Failure> {
        let Some(url) = self.note.order(SystemTime::now()).map(str::to_owned) else { return Ok(None) };
        self.begun = self.note.attempt().cloned();
        match call!(self.client.asking("the order"), self.client.account().order(url.clone()).await) {
            Ok(mut order) => match order.state() {
                // It expired, or its proof failed when nobody looked. Only the second one has a reason to tell.
                OrderState { status: OrderStatus::Invalid, error: None, .. } => {
                    let failure = self.why_invalid(&mut order).await;
                    if failure.names.is_empty() { Ok(None) } else { Err(failure) }
                }
                _ => Ok(Some(order)),
            },
            Err(failure) if failure.kind == FailureKind::Refused && !failure.is("accountDoesNotExist") => {
                tracing::debug!(%failure, "the open order is gone");
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn place(&mut self, may_order: MayOrder<'_>) -> Result<Order, Failure> {
        self.begun = None;
        place::check_profile(self.client, self.wanted)?;
        // A disk that is full is told now, and not after the authority has counted one more order.
        self.client.storage().check_room().map_err(Failure::storage)?;
        let attempt = may_order()?;
        // Kept in mind before the order is placed: a failure to place it ends the attempt as well.
        self.begun = Some(attempt.clone());
        let order = place::place(self.client, self.wanted).await?;
        self.note.set_order(order.url(), attempt, SystemTime::now());
        self.write_note()?;
        Ok(order)
    }

    async fn prove(&mut self, order: &mut Order) -> Result<(), Failure> {
        self.proof.give(order, &mut self.note, &self.draft).await
    }

    async fn finalize(&mut self, order: &mut Order) -> Result<(), Failure> {
        let request = self.keys.certificate_request(&self.draft.key_file(), &self.wanted.names);
        let request = request
            .map_err(|source| Failure::new(FailureKind::Key, "cannot make a certificate request").because(source))?;
        call!(self.client.asking("a certificate for the request"), order.finalize_csr(&request).await)
    }

    /// Waits as long as the authority asks for, and looks again.
    async fn poll(&mut self, order: &mut Order, polls: &mut u32) -> Result<(), Failure> {
        let first = self.client.patience().poll;
        let usual = first.mul_f64(1.5_f64.powi((*polls).min(8).cast_signed())).min(first * 10);
        *polls += 1;
        let told = self.client.transport().pause(order.url());
        let pause = told.map_or(usual, |told| told.max(first));
        if Instant::now() + pause > self.deadline() {
            let mut failure = self.unfinished();
            failure.retry_after = told;
            return Err(failure);
        }
        sleep(pause).await;
        self.refresh(order).await
    }

    async fn refresh(&self, order: &mut Order) -> Result<(), Failure> {
        call!(self.client.asking("the state of the order"), order.refresh().await.map(|_| ()))
    }

    /// A short trouble on the way is waited for, and the order's state asked anew: nobody knows which of the last
    /// requests was acted upon.
    async fn recover(&self, order: &mut Order, mut failure: Failure, troubles: u32) -> Result<(), Failure> {
        let mut troubles = troubles;
        loop {
            let passes = match failure.kind {
                FailureKind::Unreachable | FailureKind::RateLimited => {
                    failure.retry_after.is_none_or(|pause| pause <= LONGEST_PAUSE)
                }
                _ => failure.is("orderNotReady"),
            };
            let usual = self.client.patience().poll * 2_u32.saturating_pow(troubles);
            let pause = failure.retry_after.unwrap_or_default().max(usual);
            if !passes || troubles >= MOST_TROUBLES || Instant::now() + pause > self.deadline() {
                return Err(failure);
            }
            tracing::debug!(%failure, "trouble with an order; it is looked at again in {pause:?}");
            sleep(pause).await;
            match self.refresh(order).await {
                Ok(()) => return Ok(()),
                Err(next) => failure = next,
            }
            troubles += 1;
        }
    }

    /// The order has failed. Which names, and why.
    async fn why_invalid(&mut self, order: &mut Order) -> Failure {
        let failed = match self.proof.why_failed(order).await {
            Ok(failed) => failed,
            Err(failure) => return failure,
        };
        let host = self.client.host();
        if failed.is_empty() {
            return match order.state().error.clone() {
                Some(problem) => Failure::of(Error::Api(problem), host, "the order"),
                None => {
                    Failure::new(FailureKind::Refused, format!("{host} has made the order invalid, and says no more"))
                }
            };
        }
        let forbidden = failed.iter().all(|failed| failed.is_forbidden);
        let (kind, what) = match forbidden {
            true => (FailureKind::Refused, format!("{host} must not issue")),
            false => (FailureKind::Validation, format!("{host} could not see that this server answers")),
        };
        let mut failure = Failure::new(kind, what);
        failure.failed = failed.iter().filter_map(|failed| Some((failed.name.clone(), failed.kind?))).collect();
        for failed in failed {
            if let Some(kind) = failed.kind {
                self.note.failed(&failed.name, kind);
            }
            failure.names.push((failed.name, failed.said));
        }
        self.forget_order();
        failure
    }

    /// The authority's time: what the hook took is not its own.
    fn deadline(&self) -> Instant {
        self.deadline.min(self.begun_at + self.client.patience().order + self.proof.hook_time())
    }

    fn unfinished(&self) -> Failure {
        let waited = Duration::from_millis(u64::try_from(self.begun_at.elapsed().as_millis()).unwrap_or(u64::MAX));
        let waited = if waited < SECONDS { waited } else { Duration::from_secs(waited.as_secs()) };
        let what = format!("{} had not decided after {waited:?}; the order stays open", self.client.host());
        Failure::new(FailureKind::Unfinished, what)
    }

    /// The names that an order which is pending waits for; none when it waits for all of them.
    async fn undecided(&self, order: &mut Order) -> Vec<(CertifiedName, String)> {
        if order.state().status != OrderStatus::Pending {
            return Vec::new();
        }
        let asked = timeout(self.client.patience().request, self.proof.undecided(order)).await;
        let names = asked.ok().and_then(Result::ok).unwrap_or_default();
        if names.len() == self.wanted.names.len() {
            return Vec::new();
        }
        names.into_iter().map(|name| (name, "the authority has not looked at it yet".to_owned())).collect()
    }

    /// What is left of the draft after `failure`.
    fn end(mut self, mut failure: Failure) -> Failure {
        failure.attempt = self.begun.take().map(Box::new);
        failure.issued = self.issued;
        match failure.kind {
            _ if failure.is("accountDoesNotExist") => {
                self.client.forget();
                self.forget_order();
            }
            FailureKind::WrongCertificate => self.discard(),
            // Its request is refused, so its key may be: a weak one, or one that became known.
            FailureKind::Refused if failure.is("badCSR") || failure.is("badPublicKey") => self.discard(),
            FailureKind::Refused | FailureKind::Validation => self.forget_order(),
            FailureKind::NotYetValid => {
                self.note.wait_for_clock();
                if let Err(error) = self.write_note() {
                    tracing::warn!(%error, "it cannot be noted that a certificate waits for the clock");
                }
            }
            _ => {}
        }
        failure
    }

    fn discard(self) {
        if let Err(error) = self.draft.discard() {
            tracing::warn!(%error, "a failed order cannot be removed");
        }
    }

    /// The key stays for the next order.
    fn forget_order(&mut self) {
        self.note.forget_order();
        if let Err(error) = self.write_note() {
            tracing::warn!(%error, "a failed order cannot be forgotten");
        }
    }

    async fn withdraw(&mut self) {
        self.proof.withdraw(&mut self.note, &self.draft).await;
    }

    fn write_note(&self) -> Result<(), Failure> {
        self.note.keep(&self.draft)
    }
}

/// What the hook may take is not the authority's time: each name once, and the wait for all of them. Nothing where no
/// name can be shown by DNS.
fn for_hook(client: &Client, wanted: &Wanted, proof: &Proof<'_>) -> Duration {
    let Some(hook) = &wanted.dns_hook else { return Duration::ZERO };
    let runs = wanted.names.iter().filter(|name| proof.may_use_dns(name)).count();
    if runs == 0 {
        return Duration::ZERO;
    }
    let runs = u32::try_from(runs).unwrap_or(u32::MAX);
    client.patience().hook.saturating_mul(runs).saturating_add(hook.wait).min(LONGEST_HOOK)
}

/// The name that an authorization is for.
pub(super) fn name_of(authorization: &AuthorizationState) -> Option<CertifiedName> {
    let authorized = authorization.identifier();
    match authorized.identifier {
        Identifier::Dns(name) if authorized.wildcard => {
            Some(CertifiedName::Dns(format!("*.{}", name.to_ascii_lowercase())))
        }
        Identifier::Dns(name) => Some(CertifiedName::Dns(name.to_ascii_lowercase())),
        Identifier::Ip(address) => Some(CertifiedName::Address(*address)),
        _ => None,
    }
}
