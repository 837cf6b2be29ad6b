//! What every errand works with: the settings, the storage, the ledger and the accounts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, Semaphore};

use super::account::Client;
use super::failure::{Failure, FailureKind};
use super::ledger::Ledger;
use super::settings::{Authority, Settings};
use crate::store::{Storage, StorageError};

/// Orders that are open at once. More would only make the authority say 429 sooner.
const AT_ONCE: usize = 8;
/// How long an authority that could not be reached is left alone by all.
const DOWN: Duration = Duration::from_secs(30);

/// See the module. Made anew when the settings change.
pub(super) struct Desk {
    pub settings: Settings,
    /// Of the settings.
    pub fingerprint: String,
    pub storage: Storage,
    pub ledger: Ledger,
    /// One permit for each open order.
    pub orders: Semaphore,
    clients: Mutex<HashMap<String, Arc<OnceCell<Arc<Client>>>>>,
    /// Authorities that could not be reached, until when nobody tries again, and what was said.
    down: Mutex<HashMap<String, (Instant, String)>>,
}

impl Desk {
    /// Opens the storage and the ledger.
    pub fn open(settings: Settings) -> Result<Desk, StorageError> {
        let storage = Storage::open(&settings.storage)?;
        let ledger = Ledger::open(&storage)?;
        let fingerprint = settings.fingerprint();
        let (clients, down) = (Mutex::default(), Mutex::default());
        Ok(Desk { settings, fingerprint, storage, ledger, orders: Semaphore::new(AT_ONCE), clients, down })
    }

    /// The account at `authority`. Whoever asks first opens it, the others wait for that: one key, one account. Where it
    /// cannot be reached, the others hear so at once: a hundred sites do not wait for it one after the other.
    pub async fn client(&self, authority: &Authority) -> Result<Arc<Client>, Failure> {
        let directory = &authority.directory;
        let cell = Arc::clone(lock(&self.clients).entry(directory.clone()).or_default());
        let open = async || {
            if let Some((until, why)) = lock(&self.down).get(directory)
                && Instant::now() < *until
            {
                return Err(Failure::new(FailureKind::Unreachable, why.clone()));
            }
            let email = self.settings.email.as_deref();
            let opened = Client::open(&self.storage, authority, email, &self.ledger).await;
            if let Err(failure) = &opened
                && failure.kind == FailureKind::Unreachable
            {
                lock(&self.down).insert(directory.clone(), (Instant::now() + DOWN, failure.to_string()));
            }
            opened.map(Arc::new)
        };
        cell.get_or_try_init(open).await.cloned()
    }

    /// Whoever asks next tries, whatever was said before: a person may just have mended it.
    pub fn try_again(&self, authority: &Authority) {
        lock(&self.down).remove(&authority.directory);
    }

    /// The account is opened anew next time: its authority may have moved, or have lost it.
    pub fn forget(&self, authority: &Authority) {
        lock(&self.clients).remove(&authority.directory);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these locks is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
