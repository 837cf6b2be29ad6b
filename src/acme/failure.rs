//! Why there is no new certificate: whose matter it is, which names, in the authority's own words, and what to do.

use std::error::Error;
use std::fmt;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use instant_acme::{Identifier, Problem};

use super::ledger::{self, Attempt, Outcome};
use super::settings::ChallengeKind;
use super::transport::{Refusal, TransportError};
use crate::base::certified_name::CertifiedName;
use crate::base::fault::Causes;

/// What kind of failure it is, and so who may do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The authority cannot be reached, is out of order, or answers nonsense. Another one may be well.
    Unreachable,
    /// The authority had not decided at the deadline. The order stays open and is resumed by the next attempt.
    Unfinished,
    /// The authority wants fewer questions; see [`Failure::retry_after`].
    RateLimited,
    /// The authority will not: the account, the profile, a name, a CAA record. Another one may.
    Refused,
    /// The authority could not see that a name is this machine's; see [`Failure::names`].
    Validation,
    /// The command of `dns_hook` failed.
    Hook,
    /// The disk.
    Storage,
    /// A private key, or something made with it.
    Key,
    /// The authority issued something that cannot be served.
    WrongCertificate,
    /// What the authority issued is not valid yet by this machine's clock, which is likely to be behind. The order is
    /// kept, and its certificate is fetched again by the next attempt; another authority would see the same clock.
    NotYetValid,
    /// Nobody was asked: this machine's clock is behind the year that this program was written in.
    Clock,
    /// Nobody was asked: the ledger says it is too early.
    Wait,
}

/// One attempt that came to nothing. Its [`Display`](fmt::Display) is one line, with its causes.
#[derive(Debug)]
pub struct Failure {
    /// What kind it is.
    pub kind: FailureKind,
    /// What happened: no full stop, no secret.
    pub what: Box<str>,
    /// The names that it is about, each with what was said of it. Empty when it is about all of them alike.
    pub names: Vec<(CertifiedName, String)>,
    /// The ways that were tried in vain, by name.
    pub failed: Box<[(CertifiedName, ChallengeKind)]>,
    /// How long the authority (or the ledger) wants to be left alone, counted from when it said so.
    pub retry_after: Option<Duration>,
    /// The entry of the ledger that ends with this, to be written down. `None` when nothing was ordered.
    pub attempt: Option<Box<Attempt>>,
    /// Whether the authority has issued a certificate all the same, and so counts one.
    pub issued: bool,
    /// The authority's word for the problem without its prefix, such as `rateLimited` (RFC 8555, section 6.7).
    pub problem: Option<Box<str>>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A failure of `kind`, told by `what`.
    pub fn new(kind: FailureKind, what: impl Into<String>) -> Failure {
        Failure {
            kind,
            what: what.into().into(),
            names: Vec::new(),
            failed: Box::default(),
            retry_after: None,
            attempt: None,
            issued: false,
            problem: None,
            source: None,
        }
    }

    /// What is to be written into the ledger about [`Failure::attempt`].
    pub fn outcome(&self) -> Outcome {
        let (why, retry_after) = (self.to_string(), self.retry_after);
        match self.issued {
            true => Outcome::Unused { why, retry_after },
            false => Outcome::Failed { why, retry_after },
        }
    }

    /// The same failure with its cause kept.
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        self.source = Some(source.into());
        self
    }

    /// The disk did not do as it was told.
    pub fn storage(source: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure::new(FailureKind::Storage, "the certificate storage cannot be used").because(source)
    }

    /// What `authority` (its host) answered, or did not, when it was asked for `asked`.
    pub(super) fn of(error: instant_acme::Error, authority: &str, asked: &str) -> Failure {
        match error {
            instant_acme::Error::Api(problem) => {
                let status = problem.status.and_then(|status| StatusCode::from_u16(status).ok());
                Failure::refused(authority, asked, &problem, status, None)
            }
            instant_acme::Error::Other(cause) => match cause.downcast::<TransportError>() {
                Ok(cause) => Failure::of_transport(*cause, authority, asked),
                Err(cause) => nonsense(authority, asked).because(cause),
            },
            instant_acme::Error::Crypto | instant_acme::Error::KeyRejected => {
                Failure::new(FailureKind::Key, format!("the account key for {authority} cannot be used")).because(error)
            }
            error @ instant_acme::Error::Timeout(_) => no_answer(authority, asked).because(error),
            error => nonsense(authority, asked).because(error),
        }
    }

    fn of_transport(error: TransportError, authority: &str, asked: &str) -> Failure {
        match error {
            TransportError::Refused(Refusal { status, retry_after, problem: Some(problem) }) => {
                Failure::refused(authority, asked, &problem, Some(status), retry_after)
            }
            TransportError::Refused(Refusal { status, retry_after, problem: None }) => {
                let kind = match status {
                    StatusCode::TOO_MANY_REQUESTS => FailureKind::RateLimited,
                    _ => FailureKind::Unreachable,
                };
                let what = format!("{authority} answered {status} without a reason when asked for {asked}");
                Failure { retry_after, ..Failure::new(kind, what) }
            }
            error @ (TransportError::TooLong | TransportError::NotHttps(_) | TransportError::NoUrl(_)) => {
                nonsense(authority, asked).because(error)
            }
            error => no_answer(authority, asked).because(error),
        }
    }

    fn refused(
        authority: &str,
        asked: &str,
        problem: &Problem,
        status: Option<StatusCode>,
        retry_after: Option<Duration>,
    ) -> Failure {
        let word = problem.r#type.as_deref().map(short);
        let kind = kind_of(word, status);
        let what = format!("{authority} refuses {asked}: {}", words(problem.detail.as_deref(), word));
        let names = problem.subproblems.iter().filter_map(|sub| {
            let name = certified_name(sub.identifier.as_ref()?)?;
            Some((name, words(sub.detail.as_deref(), sub.r#type.as_deref().map(short))))
        });
        let mut failure = Failure { retry_after, ..Failure::new(kind, what) };
        failure.names = names.collect();
        failure.problem = word.map(Box::from);
        failure
    }

    /// Whether `problem` is this word of RFC 8555, section 6.7.
    pub(super) fn is(&self, problem: &str) -> bool {
        self.problem.as_deref() == Some(problem)
    }

    /// What a person can do about it, where that is not already said.
    fn advice(&self) -> Option<&'static str> {
        match (self.kind, self.problem.as_deref()?) {
            (_, "externalAccountRequired") => Some("set eab of this authority"),
            (_, "userActionRequired") => Some("its terms have changed: see its web site"),
            (_, "accountDoesNotExist") => Some("the account is made anew at the next attempt"),
            (_, "invalidContact" | "unsupportedContact") => Some("correct acme.email"),
            (_, "rejectedIdentifier" | "unsupportedIdentifier") => {
                Some("it gives no certificates for such names: use tls.cert and tls.key or another authority for them")
            }
            (_, "invalidProfile") => Some("correct the profile of this authority"),
            (_, problem) => advice_for(problem),
        }
    }
}

impl From<ledger::Refusal> for Failure {
    fn from(refusal: ledger::Refusal) -> Failure {
        match refusal {
            ledger::Refusal::Wait(wait) => {
                let mut failure = Failure::new(FailureKind::Wait, wait.why);
                failure.retry_after = Some(wait.until.duration_since(SystemTime::now()).unwrap_or_default());
                failure
            }
            ledger::Refusal::Storage(source) => Failure::storage(source),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for (name, said) in &self.names {
            write!(f, "; {name}: {said}")?;
        }
        if let Some(advice) = self.advice() {
            write!(f, "; {advice}")?;
        }
        write!(f, "{}", Causes(self))
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// What the authority says of one challenge that failed, and what to do about it.
pub(super) fn of_challenge(problem: &Problem) -> String {
    let word = problem.r#type.as_deref().map(short);
    let said = words(problem.detail.as_deref(), word);
    match word.and_then(advice_for) {
        Some(advice) => format!("{said}: {advice}"),
        None => said,
    }
}

/// Whether a failed challenge says that the authority must not issue, rather than that the proof failed.
pub(super) fn is_forbidden(problem: &Problem) -> bool {
    matches!(problem.r#type.as_deref().map(short), Some("caa" | "rejectedIdentifier" | "unsupportedIdentifier"))
}

fn no_answer(authority: &str, asked: &str) -> Failure {
    Failure::new(FailureKind::Unreachable, format!("{authority} gave no answer when asked for {asked}"))
}

fn nonsense(authority: &str, asked: &str) -> Failure {
    Failure::new(FailureKind::Unreachable, format!("{authority} answered nonsense when asked for {asked}"))
}

fn kind_of(word: Option<&str>, status: Option<StatusCode>) -> FailureKind {
    match word {
        Some("rateLimited") => FailureKind::RateLimited,
        Some("serverInternal" | "badNonce") => FailureKind::Unreachable,
        _ if status == Some(StatusCode::TOO_MANY_REQUESTS) => FailureKind::RateLimited,
        _ if status.is_some_and(|status| status.is_server_error()) => FailureKind::Unreachable,
        _ => FailureKind::Refused,
    }
}

fn advice_for(problem: &str) -> Option<&'static str> {
    match problem {
        "caa" => Some("a CAA record of the name has to name this authority"),
        "connection" => Some("ports 80 and 443 at every address of the name have to be open and lead to this server"),
        "dns" => Some("look at the records of the name, A and AAAA or TXT, at its name servers"),
        "dnssec" => Some("the name's DNSSEC signatures are wrong at its name servers"),
        "unauthorized" | "incorrectResponse" => {
            Some("another server answers for the name, or a DNS record has not arrived yet")
        }
        "tls" => Some("port 443 at every address of the name has to lead to this server, without TLS in between"),
        _ => None,
    }
}

/// `rateLimited` of `urn:ietf:params:acme:error:rateLimited`.
fn short(problem: &str) -> &str {
    problem.rsplit(':').next().unwrap_or(problem)
}

/// `text` of somebody else's, fit for terminals and logs: no line ends or other control characters, and not too long.
pub(super) fn one_line(text: &str, longest: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(longest).collect()
}

/// What the authority said, in one line that cannot be taken for several.
fn words(detail: Option<&str>, word: Option<&str>) -> String {
    let detail = detail.map(|detail| one_line(detail, LONGEST_DETAIL));
    match (detail, word) {
        (Some(detail), Some(word)) => format!("{} ({word})", detail.trim_end_matches('.')),
        (Some(detail), None) => detail,
        (None, Some(word)) => word.to_owned(),
        (None, None) => "no reason given".to_owned(),
    }
}

/// How much of the authority's own words is kept, in characters.
const LONGEST_DETAIL: usize = 600;

fn certified_name(identifier: &Identifier) -> Option<CertifiedName> {
    match identifier {
        Identifier::Dns(name) => Some(CertifiedName::Dns(name.to_ascii_lowercase())),
        Identifier::Ip(address) => Some(CertifiedName::Address(*address)),
        _ => None,
    }
}

/// Whether the authority refused a request for what it said, and might not, said otherwise.
pub(super) fn is_about_request(cause: &(dyn Error + Send + Sync + 'static)) -> bool {
    match cause.downcast_ref() {
        Some(TransportError::Refused(refusal)) => {
            let word = refusal.problem.as_ref().and_then(|problem| problem.r#type.as_deref()).map(short);
            kind_of(word, Some(refusal.status)) == FailureKind::Refused
        }
        // Whatever else went wrong, the request may have been acted upon.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: &str) -> Problem {
        serde_json::from_str(json).unwrap()
    }

    fn told(problem: Problem) -> Failure {
        Failure::of(instant_acme::Error::Api(problem), "acme.example", "an order")
    }

    #[test]
    fn a_refusal_tells_who_what_which_names_and_what_to_do() {
        let failure = told(problem(
            r#"{"type": "urn:ietf:params:acme:error:rejectedIdentifier", "detail": "Cannot issue.", "status": 400,
                "subproblems": [{"type": "urn:ietf:params:acme:error:rejectedIdentifier", "detail": "Forbidden\nby policy",
                                 "identifier": {"type": "dns", "value": "Bad.example"}},
                                {"type": "urn:ietf:params:acme:error:caa", "detail": "no",
                                 "identifier": {"type": "ip", "value": "192.0.2.7"}}]}"#,
        ));
        assert_eq!(failure.kind, FailureKind::Refused);
        assert_eq!(failure.names.len(), 2);
        assert_eq!(
            failure.to_string(),
            "acme.example refuses an order: Cannot issue (rejectedIdentifier); bad.example: Forbidden by policy \
             (rejectedIdentifier); 192.0.2.7: no (caa); it gives no certificates for such names: use tls.cert and \
             tls.key or another authority for them"
        );
    }

    #[test]
    fn whose_matter_it_is_follows_from_the_type_and_the_status() {
        for (json, kind) in [
            (r#"{"type": "urn:ietf:params:acme:error:rateLimited", "status": 503}"#, FailureKind::RateLimited),
            (r#"{"status": 429}"#, FailureKind::RateLimited),
            (r#"{"type": "about:blank", "status": 502}"#, FailureKind::Unreachable),
            (r#"{"type": "urn:ietf:params:acme:error:serverInternal"}"#, FailureKind::Unreachable),
            (r#"{"type": "urn:ietf:params:acme:error:badNonce", "status": 400}"#, FailureKind::Unreachable),
            (r#"{"type": "urn:ietf:params:acme:error:userActionRequired", "status": 403}"#, FailureKind::Refused),
            ("{}", FailureKind::Refused),
        ] {
            assert_eq!(told(problem(json)).kind, kind, "{json}");
        }
    }

    #[test]
    fn words_without_end_are_cut() {
        let detail = "x".repeat(100_000);
        assert!(told(problem(&format!(r#"{{"detail": "{detail}"}}"#))).to_string().len() < 1000);
    }

    #[test]
    fn a_failed_challenge_says_what_to_do() {
        let said = of_challenge(&problem(
            r#"{"type": "urn:ietf:params:acme:error:dns", "detail": "no valid A records found for a.example"}"#,
        ));
        assert!(said.starts_with("no valid A records found for a.example (dns): look at the records"), "{said}");
    }
}
