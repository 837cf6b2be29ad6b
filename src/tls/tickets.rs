//! Session-ticket keys that outlive a reload, so that clients resume with the snapshot after it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;

/// How many sets of client authorities have ticket keys at once; the one that waited longest goes first.
const KEPT: usize = 4;

/// The ticket keys of the process: made once, rotated by rustls every 6 hours, valid for 12. They never leave memory.
///
/// A ticket stands for a client certificate that was checked when it was made, so each set of client authorities has
/// keys of its own: a client that one set let in cannot resume under another.
pub struct Tickets {
    keys: Mutex<Vec<(Authorities, Arc<dyn ProducesTickets>)>>,
}

/// The SHA-256 of the client authorities' file; `None` where clients need no certificate.
type Authorities = Option<Vec<u8>>;

impl Tickets {
    /// No keys yet: they are made for the first policy that needs them.
    pub fn new() -> Tickets {
        Tickets { keys: Mutex::new(Vec::new()) }
    }

    /// The keys for connections whose clients are checked against `client_ca` (the content of the file).
    ///
    /// # Errors
    /// The system has no randomness.
    pub(super) fn for_clients_of(&self, client_ca: Option<&[u8]>) -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
        let authorities = client_ca.map(|pem| digest::digest(&digest::SHA256, pem).as_ref().to_vec());
        // Nothing panics while the lock is held, and if it did the list would still be whole.
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = keys.iter().position(|(known, _)| *known == authorities) {
            let known = keys.remove(at);
            let ticketer = Arc::clone(&known.1);
            keys.push(known);
            return Ok(ticketer);
        }
        let ticketer = Ticketer::new()?;
        if keys.len() == KEPT {
            keys.remove(0);
        }
        keys.push((authorities, Arc::clone(&ticketer)));
        Ok(ticketer)
    }
}

impl Default for Tickets {
    fn default() -> Tickets {
        Tickets::new()
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_for_twelve_hours_that_is_two_sets_of_keys() {
        let tickets = Tickets::new();
        assert_eq!(tickets.for_clients_of(None).unwrap().lifetime(), 2 * 6 * 60 * 60);
    }

    #[test]
    fn each_set_of_client_authorities_has_keys_of_its_own() {
        let tickets = Tickets::new();
        let get = |ca: Option<&[u8]>| tickets.for_clients_of(ca).unwrap();
        let none = get(None);
        let a = get(Some(b"a"));
        let ticket = none.encrypt(b"session").unwrap();
        assert_eq!(get(None).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(a.decrypt(&ticket), None);
        assert_eq!(get(Some(b"a")).decrypt(&a.encrypt(b"x").unwrap()).as_deref(), Some(&b"x"[..]));
        for ca in [b"b", b"c", b"d", b"e"] {
            get(None);
            get(Some(ca));
        }
        assert_eq!(get(None).decrypt(&ticket).as_deref(), Some(&b"session"[..]), "keys in use were dropped");
        assert_eq!(tickets.keys.lock().unwrap().len(), KEPT);
    }
}
