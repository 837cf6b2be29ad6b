//! The addresses of back ends that are written as names: asked for again when their time (TTL) is over, kept while the
//! name servers are silent, and asked for once however many wait for them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::upstream::resolve::client::{Client, Found};

mod client;
#[cfg(test)]
mod tests;

/// For one question with all its attempts.
const QUESTION: Duration = Duration::from_secs(5);
/// An answer holds at least this long, whatever its TTL.
const SHORTEST: Duration = Duration::from_secs(1);
/// And at most this long.
const LONGEST: Duration = Duration::from_secs(3600);
/// After a question that failed, the next one has to wait.
const PAUSE: Duration = Duration::from_secs(1);
/// An answer whose time is over serves so much longer while the name servers fail (RFC 8767).
const STALE: Duration = Duration::from_secs(86_400);
/// So long a new answer is waited for where an old one would do.
const PATIENCE: Duration = Duration::from_millis(300);
/// Addresses of one name.
const MOST: usize = 64;
/// An address that could not be connected to is tried behind its siblings for this long.
const AVOIDED: Duration = Duration::from_secs(10);

/// All names that back ends have. It belongs to the process: what it has learned survives reloads, for as long as a
/// back end has the name.
#[derive(Default)]
pub struct Resolver {
    names: Mutex<HashMap<String, Weak<Name>>>,
    shared: Arc<Shared>,
}

/// What names have in common.
#[derive(Default)]
struct Shared {
    client: Client,
    /// Where questions are asked: it outlives every worker.
    runtime: OnceLock<Handle>,
}

impl Resolver {
    /// A resolver that knows nothing yet, and asks the system's name servers.
    pub fn new() -> Resolver {
        Resolver::default()
    }

    /// Asks its questions on `runtime` from now on. Without it, they are asked where the first connection needs them.
    pub fn settle(&self, runtime: Handle) {
        // The first one stays.
        let _ = self.shared.runtime.set(runtime);
    }

    /// Asks these name servers from now on; none are those of /etc/resolv.conf. What others said is forgotten.
    pub fn ask(&self, servers: &[SocketAddr]) {
        if !self.shared.client.ask(servers) {
            return;
        }
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.values().filter_map(Weak::upgrade).for_each(|name| name.forget());
    }

    /// What is known of `host`. `None` when it is an address itself. Nothing is asked yet.
    pub(super) fn name(&self, host: &str) -> Option<Arc<Name>> {
        if host.parse::<IpAddr>().is_ok() {
            return None;
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = names.get(host).and_then(Weak::upgrade) {
            return Some(name);
        }
        names.retain(|_, name| name.strong_count() > 0);
        let name = Arc::new(Name::new(host, Arc::clone(&self.shared)));
        names.insert(host.to_owned(), Arc::downgrade(&name));
        Some(name)
    }
}

/// A name, and the addresses that it has. Shared by all workers; what is known is read without a lock.
pub(super) struct Name {
    host: String,
    shared: Arc<Shared>,
    known: ArcSwap<Known>,
    question: Mutex<Option<Question>>,
    turn: AtomicUsize,
}

/// What the last questions came to.
#[derive(Default)]
struct Known {
    /// The last answer, and when its time is over.
    answer: Option<(Arc<Answer>, Instant)>,
    /// Why there is no newer one, and until when none is asked for.
    failure: Option<(Arc<str>, Instant)>,
}

/// A question that is under way.
#[derive(Clone)]
struct Question {
    since: Instant,
    /// Cancelled with the end of the question, whatever that is.
    over: CancellationToken,
}

impl Name {
    fn new(host: &str, shared: Arc<Shared>) -> Name {
        let known = Known { answer: local(host).map(|answer| (Arc::new(answer), never())), failure: None };
        Name {
            host: host.to_owned(),
            shared,
            known: ArcSwap::from_pointee(known),
            question: Mutex::new(None),
            turn: AtomicUsize::new(0),
        }
    }

    /// The addresses. Returns within about [`QUESTION`].
    ///
    /// # Errors
    ///
    /// There are none, or they cannot be learned: in words.
    pub(super) async fn addresses(self: &Arc<Self>) -> Result<Addresses, Arc<str>> {
        // Twice, should the name servers be changed meanwhile.
        for _ in 0..2 {
            let known = self.known.load_full();
            let now = Instant::now();
            if let Some(told) = known.now(now) {
                return told.map(|answer| self.in_turn(answer));
            }
            let question = self.question(now);
            match known.stale(now) {
                None => question.over.cancelled().await,
                Some(old) => {
                    let patience = (question.since + PATIENCE).saturating_duration_since(now);
                    if tokio::time::timeout(patience, question.over.cancelled()).await.is_err() {
                        return Ok(self.in_turn(old));
                    }
                }
            }
        }
        let known = self.known.load_full();
        let told = known.now(Instant::now()).unwrap_or_else(|| Err("the question was given up".into()));
        told.map(|answer| self.in_turn(answer))
    }

    /// Whether a connection to `address` may be used again: the name still has it, as far as is known. Asks for news
    /// without waiting for them.
    pub(super) fn still_has(self: &Arc<Self>, address: IpAddr) -> bool {
        let known = self.known.load();
        let now = Instant::now();
        if known.now(now).is_none() {
            self.question(now);
        }
        known.answer.as_ref().is_none_or(|(answer, _)| answer.addresses.iter().any(|known| known.ip == address))
    }

    /// The question that is under way, or a new one.
    fn question(self: &Arc<Self>, now: Instant) -> Question {
        let mut slot = self.question.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(question) = slot.as_ref().filter(|question| !question.over.is_cancelled()) {
            return question.clone();
        }
        let question = Question { since: now, over: CancellationToken::new() };
        *slot = Some(question.clone());
        drop(slot);
        let (name, over) = (Arc::clone(self), question.over.clone());
        // Its deadline is its own: whoever waits may leave without ending it for the others.
        let asked = async move {
            let guard = over.clone().drop_guard();
            let found = tokio::time::timeout(QUESTION, name.shared.client.look_up(&name.host)).await;
            name.learn(found.unwrap_or(Found::Failed("the name servers did not answer".into())), &over);
            drop(guard);
        };
        match self.shared.runtime.get() {
            Some(runtime) => drop(runtime.spawn(asked)),
            None => drop(tokio::spawn(asked)),
        }
        question
    }

    /// Keeps what was `found`, unless the question was forgotten meanwhile.
    fn learn(&self, found: Found, question: &CancellationToken) {
        let slot = self.question.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_none_or(|current| current.over != *question) {
            return;
        }
        let now = Instant::now();
        let before = self.known.load_full();
        let known = match found {
            Found::Addresses(addresses, until) => {
                let until = until.clamp(now + SHORTEST, now + LONGEST);
                let answer = Answer::new(&addresses, before.answer.as_ref().map(|(answer, _)| &**answer));
                Known { answer: Some((Arc::new(answer), until)), failure: None }
            }
            // An answer as well: what was known is wrong.
            Found::Nothing(told) => Known { answer: None, failure: Some((told.into(), now + PAUSE)) },
            Found::Failed(told) => {
                let answer = before.answer.clone().filter(|(_, until)| now < *until + STALE);
                let told: Arc<str> = told.into();
                tracing::warn!("cannot resolve \"{}\": {told}", self.host);
                Known { answer, failure: Some((told, now + PAUSE)) }
            }
        };
        self.known.store(Arc::new(known));
    }

    fn forget(&self) {
        if local(&self.host).is_some() {
            return;
        }
        let mut slot = self.question.lock().unwrap_or_else(PoisonError::into_inner);
        self.known.store(Arc::default());
        if let Some(question) = slot.take() {
            question.over.cancel();
        }
    }

    /// In turn, those that failed a moment ago last.
    fn in_turn(&self, answer: Arc<Answer>) -> Addresses {
        let mut order: Vec<usize> = (0..answer.addresses.len()).collect();
        if order.len() > 1 && !answer.fixed {
            order.rotate_left(self.turn.fetch_add(1, Ordering::Relaxed) % answer.addresses.len());
        }
        order.sort_by_cached_key(|index| answer.addresses.get(*index).is_some_and(|address| address.is_avoided()));
        Addresses { answer, order }
    }
}

impl Known {
    /// What holds at `now`: an answer or a failure. `None` is to be asked for.
    fn now(&self, now: Instant) -> Option<Result<Arc<Answer>, Arc<str>>> {
        match (&self.answer, &self.failure) {
            (Some((answer, until)), _) if now < *until => Some(Ok(Arc::clone(answer))),
            (_, Some((told, until))) if now < *until => Some(self.stale(now).ok_or_else(|| Arc::clone(told))),
            _ => None,
        }
    }

    /// An answer that may serve although its time is over.
    fn stale(&self, now: Instant) -> Option<Arc<Answer>> {
        self.answer.as_ref().filter(|(_, until)| now < *until + STALE).map(|(answer, _)| Arc::clone(answer))
    }
}

/// The addresses of one name.
struct Answer {
    addresses: Vec<Address>,
    /// They have an order of their own.
    fixed: bool,
}

struct Address {
    ip: IpAddr,
    /// Milliseconds from `made` until it is not avoided any more.
    avoided: AtomicU64,
    made: Instant,
}

impl Answer {
    /// `addresses`, without those that come twice; what is known of one `before` is kept.
    fn new(addresses: &[IpAddr], before: Option<&Answer>) -> Answer {
        let mut kept: Vec<Address> = Vec::with_capacity(addresses.len().min(MOST));
        for ip in addresses {
            if kept.len() == MOST {
                break;
            }
            if kept.iter().any(|address| address.ip == *ip) {
                continue;
            }
            let old = before.and_then(|before| before.addresses.iter().find(|address| address.ip == *ip));
            kept.push(match old {
                Some(old) => Address { avoided: old.avoided.load(Ordering::Relaxed).into(), ..*old },
                None => Address { ip: *ip, avoided: AtomicU64::new(0), made: Instant::now() },
            });
        }
        // Their order is the server's whim; ours must not change with it.
        kept.sort_by_key(|address| address.ip);
        Answer { addresses: kept, fixed: false }
    }
}

impl Address {
    fn is_avoided(&self) -> bool {
        self.made.elapsed().as_millis() < u128::from(self.avoided.load(Ordering::Relaxed))
    }
}

/// The addresses of a name in the order in which one connection tries them.
pub(super) struct Addresses {
    answer: Arc<Answer>,
    order: Vec<usize>,
}

impl Addresses {
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = IpAddr> {
        self.order.iter().map(|index| self.answer.addresses.get(*index).map_or(Ipv4Addr::UNSPECIFIED.into(), |a| a.ip))
    }

    /// `ip` could not be connected to, or it could.
    pub(super) fn note(&self, ip: IpAddr, reached: bool) {
        if let Some(address) = self.answer.addresses.iter().find(|address| address.ip == ip) {
            let until = if reached { Duration::ZERO } else { address.made.elapsed() + AVOIDED };
            address.avoided.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}

/// RFC 6761, section 6.3: "Name resolution APIs and libraries SHOULD recognize localhost names as special and SHOULD
/// always return the IP loopback address for address queries". IPv4 first: it has room for more sockets.
fn local(host: &str) -> Option<Answer> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if host != "localhost" && !host.ends_with(".localhost") {
        return None;
    }
    let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    Some(Answer { fixed: true, ..Answer::new(&both, None) })
}

/// Far enough.
fn never() -> Instant {
    Instant::now() + Duration::from_secs(100 * 365 * 86_400)
}
