//! What is known of PHP-FPM pools. It lives as long as the process: places and outages survive reloads.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::gate::Gate;
use super::presence::Presence;
use crate::base::address::Endpoint;
use crate::upstream::spool::Room;

/// All PHP-FPM pools by endpoint, for as long as a snapshot or a request knows them.
#[derive(Debug, Default)]
pub struct PhpRegister {
    known: Mutex<HashMap<Endpoint, Weak<Fpm>>>,
    ahead: Arc<AtomicUsize>,
    spooled: Arc<Room>,
}

impl PhpRegister {
    /// A register that knows nobody yet.
    pub fn new() -> PhpRegister {
        PhpRegister::default()
    }

    /// The bytes of all bodies that are stored.
    pub(super) fn spooled(&self) -> Arc<Room> {
        Arc::clone(&self.spooled)
    }

    pub(super) fn fpm(&self, endpoint: &Endpoint) -> Arc<Fpm> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fpm) = known.get(endpoint).and_then(Weak::upgrade) {
            return fpm;
        }
        known.retain(|_, fpm| fpm.strong_count() > 0);
        let fpm = Arc::new(Fpm {
            endpoint: endpoint.clone(),
            gate: Arc::default(),
            presence: Presence::new(),
            ahead: Arc::clone(&self.ahead),
        });
        known.insert(endpoint.clone(), Arc::downgrade(&fpm));
        fpm
    }
}

/// One pool.
#[derive(Debug)]
pub(super) struct Fpm {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Who may be there.
    pub gate: Arc<Gate>,
    /// Whether it is there.
    pub presence: Presence,
    /// Bytes of answers that were read before their clients took them, of all pools.
    pub ahead: Arc<AtomicUsize>,
}
