//! What a draft remembers of its order, so that a restart resumes it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::challenge::title;
use super::failure::Failure;
use super::hook::Record;
use super::ledger::Attempt;
use super::settings::ChallengeKind;
use crate::base::certified_name::CertifiedName;
use crate::keys::KeyKind;
use crate::store::Draft;

/// The content of `order.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The URL of the authority's directory.
    authority: String,
    /// In order.
    names: Vec<String>,
    key_kind: String,
    profile: Option<String>,
    /// The order, once it is placed.
    order: Option<Placed>,
    /// The ledger's entry for that order.
    #[serde(default)]
    attempt: Option<Attempt>,
    /// Per name, the challenges that failed since the last success.
    #[serde(default)]
    failures: BTreeMap<String, Vec<String>>,
    /// The DNS records that may be set.
    #[serde(default)]
    pub(super) records: Vec<Record>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Placed {
    url: String,
    /// Seconds since 1970.
    at: u64,
    /// Its certificate is there, and waits for the clock.
    #[serde(default)]
    waits: bool,
}

/// RFC 8555, section 7.1.3: an order "expires"; the common authorities keep one for a week. Whoever was away for
/// longer than this begins anew.
const LONGEST_OPEN: Duration = Duration::from_secs(24 * 3600);
/// How long an order is kept while another authority is asked for the same.
const UNDER_WAY: Duration = Duration::from_secs(3600);
/// Failures that are remembered per name.
const MOST_FAILURES: usize = 100;

impl Note {
    pub(super) fn new(authority: &str, names: &[CertifiedName], key_kind: KeyKind, profile: Option<&str>) -> Note {
        Note {
            authority: authority.to_owned(),
            names: sorted(names),
            key_kind: format!("{key_kind:?}"),
            profile: profile.map(str::to_owned),
            order: None,
            attempt: None,
            failures: BTreeMap::new(),
            records: Vec::new(),
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Note> {
        serde_json::from_slice(bytes).ok()
    }

    /// Writes it into the draft.
    pub(super) fn keep(&self, draft: &Draft) -> Result<(), Failure> {
        let bytes = serde_json::to_vec_pretty(self).map_err(Failure::storage)?;
        draft.set_note(&bytes).map_err(Failure::storage)
    }

    /// Whether the draft of this note can go on as one of `wanted`: with its key, and with its order if that is open.
    pub(super) fn serves(&self, wanted: &Note) -> bool {
        (&self.authority, &self.names, &self.key_kind) == (&wanted.authority, &wanted.names, &wanted.key_kind)
            && self.profile == wanted.profile
    }

    /// What an earlier attempt learnt about the ways to this machine, whatever authority it asked, of each name that
    /// this one is for as well.
    pub(super) fn learn_from(&mut self, earlier: &Note) {
        for (name, theirs) in earlier.failures.iter().filter(|(name, _)| self.names.contains(name)) {
            let ours = self.failures.entry(name.clone()).or_default();
            if theirs.len() > ours.len() {
                ours.clone_from(theirs);
            }
        }
    }

    /// Whether another authority than that of `wanted` has an order for the same names, and that for less than an hour.
    pub(super) fn is_under_way_elsewhere(&self, wanted: &Note, now: SystemTime) -> bool {
        let since = self.order.as_ref().map(|order| UNIX_EPOCH + Duration::from_secs(order.at));
        let age = since.and_then(|since| now.duration_since(since).ok());
        self.authority != wanted.authority && self.names == wanted.names && age.is_some_and(|age| age < UNDER_WAY)
    }

    /// The URL of the authority's directory.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// The order's URL, unless it is too old or from the future.
    pub(super) fn order(&self, now: SystemTime) -> Option<&str> {
        let order = self.order.as_ref()?;
        // The clock that says how old it is was wrong then or is now. The authority knows whether it still has it.
        if order.waits {
            return Some(order.url.as_str());
        }
        let age = now.duration_since(UNIX_EPOCH + Duration::from_secs(order.at)).ok()?;
        (age <= LONGEST_OPEN).then_some(order.url.as_str())
    }

    /// An order is placed.
    pub(super) fn set_order(&mut self, url: &str, attempt: Attempt, now: SystemTime) {
        let at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.order = Some(Placed { url: url.to_owned(), at, waits: false });
        self.attempt = Some(attempt);
    }

    /// The order's certificate is to be fetched again when the clock is right.
    pub(super) fn wait_for_clock(&mut self) {
        if let Some(order) = &mut self.order {
            order.waits = true;
        }
    }

    /// The order has come to its end.
    pub(super) fn forget_order(&mut self) {
        (self.order, self.attempt) = (None, None);
    }

    /// The ledger's entry for the order.
    pub(super) fn attempt(&self) -> Option<&Attempt> {
        self.attempt.as_ref()
    }

    pub(super) fn failed(&mut self, name: &CertifiedName, kind: ChallengeKind) {
        let failures = self.failures.entry(name.to_string()).or_default();
        if failures.len() < MOST_FAILURES {
            failures.push(title(kind).to_owned());
        }
    }

    /// How often `kind` failed for `name` since the last success.
    pub(super) fn failures(&self, name: &CertifiedName, kind: ChallengeKind) -> u32 {
        let failures = self.failures.get(&name.to_string()).map(Vec::as_slice).unwrap_or_default();
        let count = failures.iter().filter(|failed| *failed == title(kind)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

fn sorted(names: &[CertifiedName]) -> Vec<String> {
    let mut names: Vec<String> = names.iter().map(CertifiedName::to_string).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<CertifiedName> {
        names.iter().map(|name| CertifiedName::Dns((*name).to_owned())).collect()
    }

    fn note(authority: &str, of: &[&str]) -> Note {
        Note::new(authority, &names(of), KeyKind::EcdsaP256, None)
    }

    fn attempt() -> Attempt {
        let text = r#"{"id":"1","authority":"https://a/","names":["a.example"],"at":0}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let now = SystemTime::now();
        let mut written = note("https://a/", &["b.example", "a.example"]);
        written.set_order("https://a/order/1", attempt(), now);
        written.failed(&names(&["a.example"])[0], ChallengeKind::Http);
        written.records.push(Record { domain: "a.example".to_owned(), value: "x".to_owned() });
        let read = Note::read(&serde_json::to_vec(&written).unwrap()).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.order(now), Some("https://a/order/1"));
        assert_eq!(read.failures(&names(&["a.example"])[0], ChallengeKind::Http), 1);
        assert_eq!(read.failures(&names(&["a.example"])[0], ChallengeKind::TlsAlpn), 0);
        assert_eq!(Note::read(b"{"), None);
    }

    #[test]
    fn only_the_same_order_is_gone_on_with() {
        let a = note("https://a/", &["a.example", "b.example"]);
        assert!(a.serves(&note("https://a/", &["b.example", "a.example"])));
        assert!(!a.serves(&note("https://b/", &["a.example", "b.example"])));
        assert!(!a.serves(&note("https://a/", &["a.example"])));
        assert!(!a.serves(&Note::new("https://a/", &names(&["a.example", "b.example"]), KeyKind::Rsa2048, None)));
    }

    #[test]
    fn what_is_known_of_a_name_goes_with_it() {
        let [a, b] = [&names(&["a.example"])[0], &names(&["b.example"])[0]];
        let mut both = note("https://a/", &["a.example", "b.example"]);
        both.failed(a, ChallengeKind::Http);
        both.failed(b, ChallengeKind::Http);
        let mut one = note("https://b/", &["a.example"]);
        one.learn_from(&both);
        assert_eq!((one.failures(a, ChallengeKind::Http), one.failures(b, ChallengeKind::Http)), (1, 0));
        one.failed(a, ChallengeKind::TlsAlpn);
        one.learn_from(&both);
        assert_eq!(one.failures(a, ChallengeKind::TlsAlpn), 1, "who knows more keeps it");
    }

    #[test]
    fn an_order_is_open_for_a_day() {
        let now = SystemTime::now();
        let mut note = note("https://a/", &["a.example"]);
        note.set_order("https://a/order/1", attempt(), now);
        assert!(note.order(now + Duration::from_secs(86_400 - 1)).is_some());
        assert!(note.order(now + Duration::from_secs(86_400 + 2)).is_none());
        assert!(note.order(now - Duration::from_secs(60)).is_none());
    }
}
