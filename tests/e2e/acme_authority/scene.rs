//! What these tests stand on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use serde_json::Value;

use crate::authority::{Authority, Resource};
use crate::harness::{Finished, Proxy, Raw, World, doorward, finish, wait_for};

/// An order takes about a second; tests run beside others.
pub const ORDERED: Duration = Duration::from_secs(60);

/// A world with authorities, the first of which is asked first.
pub struct Scene {
    pub world: Arc<World>,
    pub authorities: Vec<Authority>,
}

impl Scene {
    /// With one authority that fails in nothing.
    pub fn new() -> Scene {
        Scene::of(vec![Authority::start()])
    }

    pub fn of(authorities: Vec<Authority>) -> Scene {
        let world = World::new();
        for authority in &authorities {
            world.trust(&std::fs::read_to_string(authority.ca_file()).unwrap());
        }
        Scene { world: Arc::new(world), authorities }
    }

    pub fn authority(&self) -> &Authority {
        &self.authorities[0]
    }

    pub fn storage(&self) -> PathBuf {
        self.world.path("acme")
    }

    /// The file with all authorities in their order; `with` is written beside the URL of each.
    pub fn config(&self, with: &str, sites: &str) -> String {
        let all: Vec<String> = self.authorities.iter().map(|authority| entry(authority, with)).collect();
        self.config_of(&format!("directory = [{}]\nstorage = {:?}\n", all.join(", "), self.storage()), sites)
    }

    /// The file with an `[acme]` of one's own.
    pub fn config_of(&self, acme: &str, sites: &str) -> String {
        format!(
            "[server]\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\nworkers = 2\nshutdown_grace = \"2s\"\n\
             [acme]\n{acme}\n{sites}"
        )
    }

    pub fn start(&self, sites: &str) -> Proxy {
        self.start_as("", sites)
    }

    pub fn start_as(&self, with: &str, sites: &str) -> Proxy {
        Proxy::start(&self.world, &self.config(with, sites))
    }

    /// A site with a certificate from a file: app.test.
    pub fn file_site(&self) -> String {
        let (cert, key) = (self.world.path("site.pem"), self.world.path("site.key"));
        let tls = format!("[site.file]\ntls = {{ cert = {cert:?}, key = {key:?} }}");
        site("file", &["app.test"]).replacen("[site.file]", &tls, 1)
    }

    /// Waits until `host` is served with a certificate that clients believe.
    pub fn served(&self, proxy: &Proxy, host: &str) -> CertificateDer<'static> {
        let shaken = || Raw::try_tls(&self.world, proxy.https(), host, &[]).ok();
        let said = || format!("a certificate for {host}\n{}", proxy.running.said());
        wait_for(&said(), ORDERED, shaken).leaf()
    }

    /// The certificate of `host`, which has to be there.
    pub fn leaf(&self, proxy: &Proxy, host: &str) -> CertificateDer<'static> {
        proxy.raw(&self.world, host).leaf()
    }

    pub fn command(&self, arguments: &[&str]) -> Finished {
        finish("doorward", doorward().args(arguments).args(["-c"]).arg(self.world.path("proxy.toml")))
    }

    /// `doorward cert list`
    pub fn list(&self) -> String {
        let listed = self.command(&["cert", "list"]);
        assert_eq!(listed.code, 0, "{}", listed.said());
        listed.stdout
    }

    /// `doorward cert renew NAME`
    pub fn renew(&self, name: &str) -> Finished {
        self.command(&["cert", "renew", name])
    }

    /// The same where it has to succeed.
    #[track_caller]
    pub fn renewed(&self, name: &str) {
        let renewed = self.renew(name);
        assert_eq!(renewed.code, 0, "{}", renewed.said());
    }

    /// Orders that the first authority was asked for, granted or not.
    pub fn asked_for_orders(&self) -> usize {
        self.authority().counters().requests.get(&Resource::NewOrder).copied().unwrap_or(0)
    }

    /// The attempts that the ledger has, of both its copies: id and entry.
    pub fn attempts(&self) -> BTreeMap<String, Value> {
        let copies = [self.storage().join("ledger.json"), self.world.path("acme.ledger")];
        let read = |path: &PathBuf| -> Option<Value> { serde_json::from_slice(&std::fs::read(path).ok()?).ok() };
        let orders = copies.iter().filter_map(read).filter_map(|book| book["orders"].as_object().cloned());
        orders.flatten().collect()
    }
}

/// An element of `directory`.
pub fn entry(authority: &Authority, with: &str) -> String {
    let comma = if with.is_empty() { "" } else { ", " };
    format!("{{ url = {:?}, ca = {:?}{comma}{with} }}", authority.directory(), authority.ca_file())
}

/// A site that answers with its name.
pub fn site(name: &str, hosts: &[&str]) -> String {
    format!("[site.{name}]\nhosts = {hosts:?}\n[[site.{name}.route]]\npath = \"/*\"\nrespond = {{ body = {name:?} }}\n")
}

/// Visitors of some hosts: one new connection and one request after the other.
pub struct Visitors {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Visitors {
    pub fn start(world: &Arc<World>, proxy: &Proxy, hosts: &[&str]) -> Visitors {
        let stop = Arc::new(AtomicBool::new(false));
        let (world, stopped, port) = (Arc::clone(world), Arc::clone(&stop), proxy.https());
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let thread = std::thread::spawn(move || {
            let (mut visits, mut failures) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                for host in &hosts {
                    visits += 1;
                    match Raw::try_tls(&world, port, host, &[]) {
                        Ok(mut raw) => {
                            raw.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
                            let (status, head) = raw.head();
                            if status != 200 {
                                failures.push(format!("{host}: {head}"));
                            }
                        }
                        Err(error) => failures.push(format!("{host}: {error}")),
                    }
                }
                // Some tens of visits a second are enough, and leave the machine to the others.
                std::thread::sleep(Duration::from_millis(20));
            }
            (visits, failures)
        });
        Visitors { stop, thread }
    }

    /// Sends them home. None may have been turned away.
    #[track_caller]
    pub fn all_were_served(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (visits, failures) = self.thread.join().unwrap();
        assert!(failures.is_empty(), "{} of {visits} failed: {:?}", failures.len(), failures.first());
        assert!(visits > 0);
    }
}
