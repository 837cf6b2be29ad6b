//! What a certificate authority asks of this machine while an order is open, and the answers: HTTP-01 (RFC 8555,
//! section 8.3) by a token, TLS-ALPN-01 (RFC 8737) by a server name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;

use super::policy::provider;

/// The ALPN name that only a validating authority speaks (RFC 8737, section 6.2).
pub const ALPN_ACME: &[u8] = b"acme-tls/1";

/// The open questions of all authorities. Outlives every reload. Reading takes no lock.
#[derive(Debug, Default)]
pub struct Challenges {
    open: ArcSwap<Open>,
    /// One change at a time. The number of the next answer.
    writing: Mutex<u64>,
}

/// One question and its answer.
#[derive(Debug, Clone)]
pub enum Challenge {
    /// `/.well-known/acme-challenge/{token}` on port 80 is answered with `answer`.
    Http {
        /// The last segment of the path.
        token: String,
        /// The body.
        answer: String,
    },
    /// A handshake for `name` with [`ALPN_ACME`] alone is given this certificate.
    TlsAlpn {
        /// The server name: lower case; of an address the name below `in-addr.arpa` or `ip6.arpa` (RFC 8738).
        name: String,
        /// Self-signed, with the acmeIdentifier extension.
        certified: Arc<CertifiedKey>,
    },
}

/// The question is answered while this lives.
#[derive(Debug)]
#[must_use = "the answer is withdrawn when this is dropped"]
pub struct Answering {
    challenges: Arc<Challenges>,
    challenge: Challenge,
    number: u64,
}

/// Two orders may ask for the same name at once. A handshake does not say which one it is for: the newest is answered,
/// and the older one again when that is over.
#[derive(Debug, Default, Clone)]
struct Open {
    http: Stacks<str>,
    alpn: Stacks<ServerConfig>,
}

/// Answers with their numbers by what is asked for, the newest last. None is empty.
type Stacks<T> = HashMap<String, Vec<(u64, Arc<T>)>>;

impl Challenges {
    /// Answers `challenge` from now on, until what is returned is dropped.
    ///
    /// # Errors
    /// rustls cannot serve the certificate of a TLS-ALPN-01 challenge.
    pub fn answer(self: &Arc<Challenges>, challenge: Challenge) -> Result<Answering, rustls::Error> {
        let number = match &challenge {
            Challenge::Http { token, answer } => {
                let answer: Arc<str> = answer.as_str().into();
                self.change(|open, number| open.http.entry(token.clone()).or_default().push((number, answer)))
            }
            Challenge::TlsAlpn { name, certified } => {
                let config = Arc::new(one_shot_config(Arc::clone(certified))?);
                self.change(|open, number| open.alpn.entry(name.clone()).or_default().push((number, config)))
            }
        };
        Ok(Answering { challenges: Arc::clone(self), challenge, number })
    }

    /// The body for an HTTP-01 token.
    pub fn http(&self, token: &str) -> Option<Arc<str>> {
        newest(&self.open.load().http, token)
    }

    /// What a handshake that offers [`ALPN_ACME`] for this server name is served with.
    pub fn tls_alpn(&self, name: &str) -> Option<Arc<ServerConfig>> {
        newest(&self.open.load().alpn, &name.to_ascii_lowercase())
    }

    /// Makes a change that is given a number of its own, and says which.
    fn change(&self, change: impl FnOnce(&mut Open, u64)) -> u64 {
        // Nothing panics while the lock is held.
        let mut last = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        let mut open = Open::clone(&self.open.load());
        change(&mut open, *last);
        self.open.store(Arc::new(open));
        *last
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.challenges.change(|open, _| match &self.challenge {
            Challenge::Http { token, .. } => take(&mut open.http, token, self.number),
            Challenge::TlsAlpn { name, .. } => take(&mut open.alpn, name, self.number),
        });
    }
}

fn newest<T: ?Sized>(stacks: &Stacks<T>, key: &str) -> Option<Arc<T>> {
    stacks.get(key)?.last().map(|(_, answer)| Arc::clone(answer))
}

fn take<T: ?Sized>(stacks: &mut Stacks<T>, key: &str, number: u64) {
    let Some(stack) = stacks.get_mut(key) else { return };
    stack.retain(|(other, _)| *other != number);
    if stack.is_empty() {
        stacks.remove(key);
    }
}

/// RFC 8737, section 3: the server must negotiate "acme-tls/1" and nothing else, and the certificate is for nobody but
/// the validating authority: it is never in the certificate store.
fn one_shot_config(certified: Arc<CertifiedKey>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Only(certified)));
    config.alpn_protocols = vec![ALPN_ACME.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_until_its_answer_is_dropped() {
        let challenges = Arc::new(Challenges::default());
        let http = |token: &str, answer: &str| Challenge::Http { token: token.to_owned(), answer: answer.to_owned() };
        let first = challenges.answer(http("a", "a.thumb")).unwrap();
        let second = challenges.answer(http("b", "b.thumb")).unwrap();
        assert_eq!(challenges.http("a").as_deref(), Some("a.thumb"));
        drop(first);
        assert_eq!(challenges.http("a"), None);
        assert_eq!(challenges.http("b").as_deref(), Some("b.thumb"));
        drop(second);
        assert_eq!(challenges.http("b"), None);
    }

    #[test]
    fn of_two_answers_for_a_name_each_ends_alone_and_the_newest_is_given() {
        let challenges = Arc::new(Challenges::default());
        let answer = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let leaf = rcgen::CertificateParams::default().self_signed(&key).unwrap();
            let key = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
            let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
            let certified = Arc::new(CertifiedKey::new(vec![leaf.der().clone()], key));
            challenges.answer(Challenge::TlsAlpn { name: "a.example".to_owned(), certified }).unwrap()
        };
        let served = || challenges.tls_alpn("A.example");
        let is = |one: &Option<Arc<ServerConfig>>, other: &Option<Arc<ServerConfig>>| match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        let first = answer();
        let of_first = served();
        let second = answer();
        let of_second = served();
        assert!(!is(&of_first, &of_second), "the newest");
        drop(second);
        assert!(is(&served(), &of_first), "the older one again");
        let third = answer();
        let of_third = served();
        drop(first);
        assert!(is(&served(), &of_third), "only its own");
        drop(third);
        assert!(served().is_none());
    }
}
