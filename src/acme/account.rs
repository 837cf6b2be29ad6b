//! The account at an authority: made once, kept, and used for ever after.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instant_acme::{Account, AccountBuilder, CertificateIdentifier, Error, ExternalAccountKey, Key, NewAccount};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::call::{Asking, Patience, call};
use super::failure::{Failure, FailureKind};
use super::ledger::Ledger;
use super::settings::{Authority, ExternalAccount};
use super::transport::{Transport, TransportError};
use crate::store::{self, Storage};

/// An account that is ready to order. Cheap to clone; clones share one connection.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    account: Account,
    transport: Transport,
    files: Files,
    directory: String,
    host: String,
    patience: Patience,
}

/// When an authority wants a certificate renewed (RFC 9773, section 4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewalWindow {
    /// The renewal should be at a random moment from here on.
    pub start: SystemTime,
    /// It should be done by then. After `start`.
    pub end: SystemTime,
    /// A page that says why, where it is out of the ordinary.
    pub explanation: Option<String>,
    /// When to ask again: from a minute to a day.
    pub check_again: Duration,
}

impl Client {
    /// Takes the account at `authority` from the storage, or makes it. Its key is on the disk before the authority
    /// hears of it, so that a crash leaves no account behind that nobody has the key of; an external account, where
    /// the key is made in the same step, is the exception.
    ///
    /// # Errors
    /// `Unreachable`, `RateLimited`, `Refused`; `Storage`; `Wait` when too many accounts were made of late.
    pub async fn open(
        storage: &Storage,
        authority: &Authority,
        email: Option<&str>,
        ledger: &Ledger,
    ) -> Result<Client, Failure> {
        Client::open_with(storage, authority, email, ledger, Patience::default()).await
    }

    /// The same with another patience.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub async fn open_with(
        storage: &Storage,
        authority: &Authority,
        email: Option<&str>,
        ledger: &Ledger,
        patience: Patience,
    ) -> Result<Client, Failure> {
        let transport = Transport::new(authority.directory_ca.as_deref(), patience.request);
        let host = host_of(&authority.directory);
        let transport = transport.map_err(|source: TransportError| {
            Failure::new(FailureKind::Unreachable, format!("{host} cannot be verified")).because(source)
        })?;
        let files = Files::new(storage, &authority.directory);
        let opening = Opening { transport, authority, email, host: &host, patience: &patience, files, ledger };
        let account = opening.account().await?;
        let Opening { transport, files, .. } = opening;
        let directory = authority.directory.clone();
        let client = Client(Arc::new(Inner { account, transport, files, directory, host, patience }));
        client.tell_contact(email).await;
        Ok(client)
    }

    /// The URL of the authority's directory.
    pub fn directory(&self) -> &str {
        &self.0.directory
    }

    /// The host of that URL: what the authority is called in messages.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// When the authority wants the certificate `leaf` renewed. `None` where it does not say: it offers no renewal
    /// information, does not know the certificate, or the certificate does not name its issuer's key.
    ///
    /// # Errors
    /// `Unreachable`, also for a window that ends before it starts; `RateLimited`, `Refused`.
    pub async fn renewal_info(&self, leaf: &CertificateDer<'_>) -> Result<Option<RenewalWindow>, Failure> {
        let Ok(identifier) = CertificateIdentifier::try_from(leaf) else { return Ok(None) };
        let asked = "renewal information";
        let told = call!(self.asking(asked), {
            match self.account().renewal_info(&identifier).await {
                Err(Error::Unsupported(_)) => Ok(None),
                Err(error) if is_not_found(&error) => Ok(None),
                told => told.map(Some),
            }
        });
        let Some((info, check_again)) = told? else { return Ok(None) };
        let (start, end) = (info.suggested_window.start.into(), info.suggested_window.end.into());
        // RFC 9773, section 4.2: clients MUST treat a window that ends where or before it starts as though they had
        // received no answer.
        if end <= start {
            let what = format!("{} answered nonsense when asked for {asked}: it ends before it starts", self.host());
            return Err(Failure::new(FailureKind::Unreachable, what));
        }
        // RFC 9773, section 4.3.2: values under one minute and over one day are taken as these.
        let check_again = check_again.clamp(Duration::from_secs(60), Duration::from_secs(86_400));
        Ok(Some(RenewalWindow { start, end, explanation: info.explanation_url.and_then(page), check_again }))
    }

    pub(super) fn account(&self) -> &Account {
        &self.0.account
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.0.transport
    }

    pub(super) fn storage(&self) -> &Storage {
        &self.0.files.storage
    }

    pub(super) fn patience(&self) -> &Patience {
        &self.0.patience
    }

    pub(super) fn asking<'a>(&'a self, asked: &'a str) -> Asking<'a> {
        Asking { authority: &self.0.host, asked, patience: &self.0.patience }
    }

    /// The authority does not know the account any more: the next [`Client::open`] makes it anew.
    pub(super) fn forget(&self) {
        tracing::warn!(authority = self.host(), "the authority has lost our account: it is made anew");
        if let Err(error) = self.0.files.write(&Kept::default()) {
            tracing::warn!(authority = self.host(), %error, "cannot forget the account");
        }
    }

    /// An address that the authority will not have is no reason to do without certificates.
    async fn tell_contact(&self, email: Option<&str>) {
        let mut kept = self.0.files.read();
        if kept.contact.as_deref() == email {
            return;
        }
        let contact = email.map(|email| format!("mailto:{email}"));
        let contacts: Vec<&str> = contact.as_deref().into_iter().collect();
        match call!(self.asking("a change of the contact"), self.account().update_contacts(&contacts).await) {
            Ok(()) => {
                kept.contact = email.map(str::to_owned);
                if let Err(error) = self.0.files.write(&kept) {
                    tracing::warn!(authority = self.host(), %error, "cannot keep the contact");
                }
            }
            Err(error) => tracing::warn!(%error, "acme.email could not be told"),
        }
    }
}

/// A URL that people are told. One that is none, or that would not be one line, is left out.
fn page(url: String) -> Option<String> {
    let is_web = url.parse::<http::Uri>().is_ok_and(|url| matches!(url.scheme_str(), Some("http" | "https")));
    (is_web && url.is_ascii() && url.len() <= LONGEST_PAGE).then_some(url)
}

/// In bytes.
const LONGEST_PAGE: usize = 200;

/// What is kept of an account beside its key.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// Its URL.
    account: Option<String>,
    /// The address that the authority was told.
    contact: Option<String>,
    /// The key identifier of the external account that it is bound to.
    external_account: Option<String>,
}

/// Where one authority's account is kept.
struct Files {
    storage: Storage,
    account: String,
    key: String,
}

impl Files {
    fn new(storage: &Storage, directory: &str) -> Files {
        let label = store::label(directory.trim_start_matches("https://"));
        let (account, key) = (format!("accounts/{label}.json"), format!("accounts/{label}.key"));
        Files { storage: storage.clone(), account, key }
    }

    /// What cannot be read is made anew: with the same key it is the same account.
    fn read(&self) -> Kept {
        let bytes = self.storage.read(&self.account).unwrap_or_else(|error| {
            tracing::warn!(%error, "the account has to be looked up anew");
            None
        });
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn write(&self, kept: &Kept) -> Result<(), Failure> {
        let bytes = serde_json::to_vec_pretty(kept).map_err(Failure::storage)?;
        self.storage.write(&self.account, &bytes).map_err(Failure::storage)
    }

    fn read_key(&self) -> Result<Option<PrivatePkcs8KeyDer<'static>>, Failure> {
        let Some(pem) = self.storage.read(&self.key).map_err(Failure::storage)? else { return Ok(None) };
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|source| {
            let what =
                format!("the account key {} is damaged: put it back, or remove it to have a new account", self.key);
            Failure::new(FailureKind::Key, what).because(source)
        })?;
        Ok(Some(key))
    }

    fn write_key(&self, key: &KeyPair) -> Result<(), Failure> {
        self.storage.write(&self.key, key.serialize_pem().as_bytes()).map_err(Failure::storage)
    }
}

/// All that is needed on the way to an account.
struct Opening<'a> {
    transport: Transport,
    authority: &'a Authority,
    email: Option<&'a str>,
    host: &'a str,
    patience: &'a Patience,
    files: Files,
    ledger: &'a Ledger,
}

impl Opening<'_> {
    async fn account(&self) -> Result<Account, Failure> {
        let kept = self.files.read();
        let external_account = self.authority.external_account.as_ref();
        let is_bound = kept.external_account.as_deref() == external_account.map(|bound| bound.key_id.as_str());
        let key = self.files.read_key()?;
        if let (Some(url), Some(key), true) = (&kept.account, &key, is_bound) {
            return self.load(url, key).await;
        }
        let (account, contact) = match external_account {
            Some(external_account) => (self.bind(external_account, key, &kept).await?, self.email.map(str::to_owned)),
            None => (self.register(key).await?, None),
        };
        let external_account = external_account.map(|bound| bound.key_id.clone());
        self.files.write(&Kept { account: Some(account.id().to_owned()), contact, external_account })?;
        tracing::info!(authority = self.host, account = account.id(), "an account is ready");
        Ok(account)
    }

    async fn load(&self, url: &str, key: &PrivatePkcs8KeyDer<'static>) -> Result<Account, Failure> {
        let directory = &self.authority.directory;
        call!(
            self.asking("its directory"),
            self.builder().from_parts(url.to_owned(), key.clone_key(), directory.clone()).await
        )
    }

    /// An account of our own key. If the authority knows the key already, this is the account that it has.
    async fn register(&self, key: Option<PrivatePkcs8KeyDer<'static>>) -> Result<Account, Failure> {
        let key = match key {
            Some(key) => key,
            None => {
                let made = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
                self.files.write_key(&made)?;
                PrivatePkcs8KeyDer::from(made.serialize_der())
            }
        };
        self.begin_registration()?;
        let directory = &self.authority.directory;
        let made = call!(self.asking("an account"), {
            let pair = (Key::from_pkcs8_der(key.clone_key())?, PrivateKeyDer::Pkcs8(key.clone_key()));
            self.builder().create_from_key(pair, directory.clone()).await
        });
        made.map(|(account, _)| account)
    }

    /// An account that is bound to an external one (RFC 8555, section 7.3.4). `kept` says whether `key` may be that
    /// of an account that was made right before a crash.
    async fn bind(
        &self,
        external_account: &ExternalAccount,
        key: Option<PrivatePkcs8KeyDer<'static>>,
        kept: &Kept,
    ) -> Result<Account, Failure> {
        if let (Some(key), None) = (&key, &kept.account)
            && let Some(account) = self.look_up(key).await?
        {
            return Ok(account);
        }
        self.begin_registration()?;
        let contact = self.email.map(|email| format!("mailto:{email}"));
        let contacts: Vec<&str> = contact.as_deref().into_iter().collect();
        let wish = NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
        let binding = ExternalAccountKey::new(external_account.key_id.clone(), &external_account.hmac_key);
        let directory = &self.authority.directory;
        let made =
            call!(self.asking("an account"), self.builder().create(&wish, directory.clone(), Some(&binding)).await);
        let (account, credentials) = made?;
        let key = KeyPair::try_from(credentials.private_key()).map_err(unusable)?;
        self.files.write_key(&key)?;
        Ok(account)
    }

    async fn look_up(&self, key: &PrivatePkcs8KeyDer<'static>) -> Result<Option<Account>, Failure> {
        let directory = &self.authority.directory;
        let found = call!(self.asking("its account"), {
            let pair = (Key::from_pkcs8_der(key.clone_key())?, PrivateKeyDer::Pkcs8(key.clone_key()));
            self.builder().from_key(pair, directory.clone()).await
        });
        match found {
            Ok((account, _)) => Ok(Some(account)),
            Err(failure) if failure.kind == FailureKind::Refused => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn begin_registration(&self) -> Result<(), Failure> {
        Ok(self.ledger.begin_registration(&self.authority.directory, SystemTime::now())?)
    }

    fn builder(&self) -> AccountBuilder {
        Account::builder_with_http(Box::new(self.transport.clone()))
    }

    fn asking<'a>(&'a self, asked: &'a str) -> Asking<'a> {
        Asking { authority: self.host, asked, patience: self.patience }
    }
}

fn unusable(source: rcgen::Error) -> Failure {
    Failure::new(FailureKind::Key, "cannot make an account key").because(source)
}

fn is_not_found(error: &Error) -> bool {
    let Error::Other(cause) = error else { return false };
    matches!(cause.downcast_ref(), Some(TransportError::Refused(refusal)) if refusal.status == http::StatusCode::NOT_FOUND)
}

/// The host of a URL, for messages; the URL itself where it has none.
fn host_of(url: &str) -> String {
    let host = url.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    host.unwrap_or_else(|| url.to_owned())
}
