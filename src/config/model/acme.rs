//! `[acme]`: automatic certificates.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// `[acme]`: how the certificates of sites with `tls = "acme"` are got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// Where the authority may write to; `None` is nowhere.
    pub email: Option<String>,
    /// The authorities, tried in this order; never empty.
    pub directories: Vec<Directory>,
    /// The challenges that may be used, the preferred one first; never empty. Wildcards use DNS alone.
    pub challenges: Vec<ChallengeKind>,
    /// The program that sets and removes DNS records.
    pub dns_hook: Option<DnsHook>,
    /// How long a record may take to be seen everywhere. 15 s; 0 is not waited for.
    pub dns_wait: Duration,
    /// Where keys, certificates and accounts are kept.
    pub storage: PathBuf,
    /// What kind of key a new certificate is for. ECDSA over P-256.
    pub key_type: KeyType,
    /// How long before its end a certificate is renewed; `None` is a third of its lifetime.
    pub renew_before: Option<Duration>,
    /// The folder in which another client puts its answers for `/.well-known/acme-challenge/`.
    pub webroot: Option<PathBuf>,
}

/// One certificate authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The URL of its directory (RFC 8555, section 7.1.1); https.
    pub url: String,
    /// The account that it knows its customer by already.
    pub eab: Option<ExternalAccount>,
    /// The profile that is ordered; `None` is its default.
    pub profile: Option<String>,
    /// The authorities (PEM) that the directory itself is verified with; `None` is the system's.
    pub ca: Option<PathBuf>,
}

/// An external account binding (RFC 8555, section 7.3.4).
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    /// The key identifier.
    pub kid: String,
    /// The key, decoded. A secret.
    pub hmac_key: Vec<u8>,
}

/// Without the key.
impl fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalAccount").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// How control over a name is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeKind {
    /// `http-01`: a path on port 80.
    Http,
    /// `tls-alpn-01`: a handshake on port 443.
    TlsAlpn,
    /// `dns-01`: a TXT record.
    Dns,
}

/// A program that sets and removes TXT records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsHook {
    /// The program, absolute.
    pub program: PathBuf,
    /// Its first arguments.
    pub arguments: Vec<String>,
}

/// A kind of private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// `ecdsa-p256`
    EcdsaP256,
    /// `ecdsa-p384`
    EcdsaP384,
    /// `rsa-2048`
    Rsa2048,
    /// `rsa-4096`
    Rsa4096,
}
