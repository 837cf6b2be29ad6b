//! What the file says about automatic certificates.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::keys::KeyKind;

/// `[acme]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the authority may write to about expiring certificates; `None` is nowhere.
    pub email: Option<String>,
    /// The authorities, tried in this order.
    pub authorities: Vec<Authority>,
    /// The challenges that may be used, the preferred one first. Wildcards use [`ChallengeKind::Dns`] alone.
    pub challenges: Vec<ChallengeKind>,
    /// What sets and removes DNS records.
    pub dns_hook: Option<DnsHook>,
    /// Where keys, certificates, accounts and the ledger are kept.
    pub storage: PathBuf,
    /// What kind of key a new certificate is for.
    pub key_kind: KeyKind,
    /// How long before its end a certificate is renewed; `None` is a third of its lifetime.
    pub renew_before: Option<Duration>,
}

impl Settings {
    /// Different for different settings, of what an order depends on. Tells nothing about them. Another version of
    /// this program may come to another one.
    pub fn fingerprint(&self) -> String {
        let Settings { email, authorities, challenges, dns_hook, storage: _, key_kind, renew_before: _ } = self;
        // Its Debug leaves the key out.
        let external = authorities.iter().map(|authority| authority.external_account.as_ref());
        let secrets: Vec<_> = external.map(|account| account.map(|account| &account.hmac_key)).collect();
        let text = format!("{:?}", (email, authorities, secrets, challenges, dns_hook, key_kind));
        BASE64_URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, text.as_bytes()))
    }
}

/// One certificate authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The URL of its directory (RFC 8555, section 7.1.1). https.
    pub directory: String,
    /// Who is known to it already under another account (RFC 8555, section 7.3.4).
    pub external_account: Option<ExternalAccount>,
    /// The profile that is ordered; `None` is its default.
    pub profile: Option<String>,
    /// The certificates (PEM) that it is itself verified with; `None` is the system's.
    pub directory_ca: Option<PathBuf>,
}

/// An external account binding. Its `Debug` does not show the key.
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    /// The key identifier.
    pub key_id: String,
    /// The key, decoded.
    pub hmac_key: Vec<u8>,
}

impl fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalAccount").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// How control over a name is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeKind {
    /// A file on port 80.
    Http,
    /// A handshake on port 443.
    TlsAlpn,
    /// A TXT record.
    Dns,
}

/// A command that sets and removes TXT records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsHook {
    /// The program and its first arguments.
    pub command: Vec<String>,
    /// How long the record may take to be seen everywhere; the authority is asked after that.
    pub wait: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_an_external_account_is_not_shown_but_matters() {
        let settings = |hmac_key: &[u8]| {
            let external_account = ExternalAccount { key_id: "kid".to_owned(), hmac_key: hmac_key.to_vec() };
            let authority = Authority {
                directory: "https://acme.example/".to_owned(),
                external_account: Some(external_account),
                profile: None,
                directory_ca: None,
            };
            Settings {
                email: None,
                authorities: vec![authority],
                challenges: Vec::new(),
                dns_hook: None,
                storage: PathBuf::new(),
                key_kind: KeyKind::default(),
                renew_before: None,
            }
        };
        assert_eq!(format!("{:?}", settings(b"one")), format!("{:?}", settings(b"two")));
        assert_ne!(settings(b"one").fingerprint(), settings(b"two").fingerprint());
    }
}
