//! Clients that never stop asking: each time a new connection, a full handshake, one request.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::CertificateDer;

use super::proxy::Proxy;
use super::raw::{Raw, client_config, status};
use super::wait::{SOON, wait_until};
use super::world::World;

/// Requests at one host that go on until [`Load::stop`].
pub struct Load {
    host: String,
    seen: Arc<Seen>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    answered: AtomicUsize,
    failures: Mutex<Vec<String>>,
    /// Each leaf that was shown, once, in the order of its first appearance.
    leaves: Mutex<Vec<CertificateDer<'static>>>,
}

impl Load {
    /// `clients` of them at `host`.
    pub fn start(world: &World, proxy: &Proxy, host: &str, clients: usize) -> Load {
        let mut config = client_config(world);
        config.resumption = Resumption::disabled();
        let (config, seen, port) = (Arc::new(config), Arc::new(Seen::default()), proxy.https());
        let clients = (0..clients).map(|_| {
            let (config, seen, host) = (Arc::clone(&config), Arc::clone(&seen), host.to_owned());
            std::thread::spawn(move || {
                while !seen.stop.load(Ordering::Relaxed) {
                    match ask(&config, port, &host) {
                        Ok(leaf) => seen.note(leaf),
                        Err(why) => seen.failures.lock().unwrap().push(why),
                    }
                    // Leaves the two cores of a small machine something for the proxy.
                    std::thread::sleep(Duration::from_millis(4));
                }
            })
        });
        Load { host: host.to_owned(), clients: clients.collect(), seen }
    }

    /// Waits until `more` requests have been answered, or have failed, since this was called.
    pub fn goes_on(&self, more: usize) {
        let before = self.answered();
        let failed = || !self.seen.failures.lock().unwrap().is_empty();
        wait_until(&format!("{more} requests at {}", self.host), SOON, || self.answered() >= before + more || failed());
    }

    /// How many requests have been answered.
    pub fn answered(&self) -> usize {
        self.seen.answered.load(Ordering::Relaxed)
    }

    /// Ends it; a single failure is one of the test. Gives how many requests were answered, and the leaves that were
    /// shown.
    pub fn stop(mut self) -> (usize, Vec<CertificateDer<'static>>) {
        self.seen.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().unwrap();
        }
        let failures = std::mem::take(&mut *self.seen.failures.lock().unwrap());
        let answered = self.answered();
        assert!(failures.is_empty(), "{}: {} of {} failed: {failures:?}", self.host, failures.len(), answered);
        assert!(answered > 0, "{} was never asked", self.host);
        let leaves = std::mem::take(&mut *self.seen.leaves.lock().unwrap());
        (answered, leaves)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    fn note(&self, leaf: CertificateDer<'static>) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        let mut leaves = self.leaves.lock().unwrap();
        if !leaves.contains(&leaf) {
            leaves.push(leaf);
        }
    }
}

fn ask(config: &Arc<ClientConfig>, port: u16, host: &str) -> Result<CertificateDer<'static>, String> {
    let mut raw = Raw::with_config(Arc::clone(config), port, host).map_err(|error| format!("handshake: {error}"))?;
    raw.send(format!("GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"));
    let answer = raw.ended().map_err(|open| format!("kept open after {open:?}"))?;
    if status(&answer) == 200 { Ok(raw.leaf()) } else { Err(format!("answered {answer:?}")) }
}
