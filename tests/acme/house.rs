//! One test's storage, ledger and keys.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use doorward::acme::account::Client;
use doorward::acme::call::Patience;
use doorward::acme::failure::Failure;
use doorward::acme::issued::Obtained;
use doorward::acme::ledger::{Ledger, Outcome};
use doorward::acme::order::{Wanted, obtain};
use doorward::acme::settings::{Authority, ChallengeKind};
use doorward::base::certified_name::CertifiedName;
use doorward::keys::{KeyKind, Keys, LocalKeys};
use doorward::store::{CertificateFolder, Storage, label};
use doorward::tls::challenges::Challenges;
use doorward::tls::pair::{CertificateFiles, Pair};

/// Short enough for a test, long enough for a busy machine.
pub const PATIENCE: Patience = Patience {
    request: Duration::from_secs(5),
    order: Duration::from_secs(20),
    hook: Duration::from_secs(20),
    poll: Duration::from_millis(10),
};

pub struct House {
    folder: tempfile::TempDir,
    pub storage: Storage,
    pub ledger: Ledger,
    pub keys: Arc<dyn Keys>,
    pub challenges: Arc<Challenges>,
    pub patience: Patience,
    pub email: Option<&'static str>,
}

impl House {
    pub fn new() -> House {
        let folder = tempfile::Builder::new().prefix("doorward-acme-").tempdir().unwrap();
        let storage = Storage::open(&folder.path().join("acme")).unwrap();
        let ledger = Ledger::open(&storage).unwrap();
        let (keys, challenges) = (Arc::new(LocalKeys::new()), Arc::default());
        House { folder, storage, ledger, keys, challenges, patience: PATIENCE, email: None }
    }

    /// What a restart reads anew.
    pub fn reopen(&mut self) {
        self.storage = Storage::open(&self.folder.path().join("acme")).unwrap();
        self.ledger = Ledger::open(&self.storage).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub async fn open(&self, authority: &Authority) -> Result<Client, Failure> {
        Client::open_with(&self.storage, authority, self.email, &self.ledger, self.patience).await
    }

    pub async fn client(&self, authority: &super::authority::Authority) -> Client {
        self.open(&settings(authority)).await.unwrap()
    }

    /// The folder of the certificate for these names.
    pub fn certificate(&self, wanted: &Wanted) -> CertificateFolder {
        self.storage.certificate(&label(&wanted.names[0].to_string()))
    }

    /// One attempt as a person would ask for it, written down in the ledger as it begins and ends.
    pub async fn obtain(&self, client: &Client, wanted: &Wanted) -> Result<Obtained, Failure> {
        let may_order = || {
            let begun = self.ledger.begin(client.directory(), &wanted.names, true, SystemTime::now());
            Ok(begun?)
        };
        let folder = self.certificate(wanted);
        let _lock = folder.try_lock().unwrap().expect("nobody else");
        let result = obtain(client, wanted, &folder, &self.keys, &self.challenges, &may_order).await;
        let (attempt, outcome) = match &result {
            Ok(obtained) => (obtained.attempt.clone(), Outcome::Issued { due: SystemTime::now() }),
            Err(failure) => (failure.attempt.as_deref().cloned(), failure.outcome()),
        };
        if let Some(attempt) = attempt {
            self.ledger.end(&attempt, outcome, SystemTime::now()).unwrap();
        }
        result
    }

    /// What is live.
    pub fn live(&self, wanted: &Wanted) -> Pair {
        let (cert, key) = self.certificate(wanted).live();
        Pair::load(&*self.keys, &CertificateFiles { cert, key }).unwrap()
    }

    /// Whether a draft knows the URL of an order.
    pub fn has_open_order(&self, wanted: &Wanted) -> bool {
        let draft = self.certificate(wanted).draft().unwrap();
        let note = draft.and_then(|draft| draft.note());
        note.is_some_and(|note| {
            let note: serde_json::Value = serde_json::from_slice(&note).unwrap();
            !note["order"].is_null()
        })
    }
}

/// The authority as the file would name it.
pub fn settings(authority: &super::authority::Authority) -> Authority {
    Authority {
        directory: authority.directory(),
        external_account: None,
        profile: None,
        directory_ca: Some(authority.ca_file()),
    }
}

pub fn name(text: &str) -> CertifiedName {
    text.parse::<IpAddr>().map_or_else(|_| CertifiedName::Dns(text.to_owned()), CertifiedName::Address)
}

pub fn wanted(names: &[&str]) -> Wanted {
    Wanted {
        names: names.iter().map(|text| name(text)).collect(),
        key_kind: KeyKind::EcdsaP256,
        challenges: vec![ChallengeKind::Http, ChallengeKind::TlsAlpn, ChallengeKind::Dns],
        dns_hook: None,
        profile: None,
        replaces: None,
    }
}
