//! A small certificate authority that speaks ACME (RFC 8555, RFC 8738, RFC 9773, profiles) over TLS and plays every
//! fault that a real one might have. Signatures, nonces, `kid` and `jwk`, external account bindings and requests are
//! checked for real; certificates are real; names are believed, or validated for real where a test says so.
//!
//! It runs in a thread of its own on a free port of 127.0.0.1 until it is dropped.

#![allow(dead_code, reason = "each of the test programs that share it uses its own part")]

mod book;
mod issue;
mod jose;
mod serve;
mod validate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::sync::oneshot;

use book::Book;
use issue::Issuer;

/// The authority.
pub struct Authority {
    world: Arc<World>,
    folder: TempDir,
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the threads share.
struct World {
    book: Mutex<Book>,
    rules: Mutex<Rules>,
    issuer: Issuer,
    base: String,
}

/// How it behaves: changed at any time with [`Authority::rules`].
#[derive(Debug, Clone)]
pub struct Rules {
    /// Of a hundred nonces, how many are refused though they are good.
    pub bad_nonce: u8,
    /// Hands out nonces that it does not take.
    pub wrong_nonces: bool,
    /// What befalls requests; see [`Authority::fault`].
    pub faults: Vec<Fault>,
    /// What is offered for names that are no wildcards; these get `dns-01` alone.
    pub challenges: Vec<&'static str>,
    /// How names are validated.
    pub validation: Validation,
    /// How long each validation takes.
    pub validation_delay: Duration,
    /// Kinds of challenge that never succeed, each with the problem that is told.
    pub failing: BTreeMap<&'static str, &'static str>,
    /// Where orders get stuck.
    pub stuck: Option<Stuck>,
    /// Names that are never validated.
    pub never_looks_at: Vec<String>,
    /// How often an order says `processing` before it is valid.
    pub processing: u32,
    /// The Retry-After of orders that are pending or processing, in seconds.
    pub order_retry_after: Option<u64>,
    /// What is issued.
    pub issues: Issues,
    /// From a bit before now.
    pub lifetime: Duration,
    /// What authorizations are said to be for, whatever was ordered.
    pub asks_about: Option<String>,
    /// Names that are not taken (`rejectedIdentifier` with subproblems).
    pub rejected: Vec<String>,
    /// What becomes of `replaces`.
    pub replaces: Replaces,
    /// Whether there is renewal information.
    pub renewal_info: bool,
    /// The window that is suggested for every certificate; `None` is the last third of each one's lifetime.
    pub window: Option<(SystemTime, SystemTime)>,
    /// The windows of single certificates, by their number from 0. They go before `window`.
    pub windows: BTreeMap<usize, (SystemTime, SystemTime)>,
    /// The page that explains it.
    pub explanation: String,
    /// The Retry-After of renewal information, in seconds; `None` leaves it out.
    pub window_retry_after: Option<u64>,
    /// Name and description. Others are refused.
    pub profiles: Vec<(&'static str, &'static str)>,
    /// Key identifier and key, if an external account is required.
    pub external_account: Option<(String, Vec<u8>)>,
}

/// How names are validated.
#[derive(Debug, Clone)]
pub enum Validation {
    /// They are believed.
    Automatic,
    /// By asking on 127.0.0.1, whatever the name. What is not set fails.
    Real {
        /// The port for HTTP-01.
        http: Option<u16>,
        /// The port for TLS-ALPN-01.
        tls_alpn: Option<u16>,
        /// For DNS-01, a folder: the lines of the file `_acme-challenge.DOMAIN` are its TXT records.
        dns: Option<PathBuf>,
    },
}

/// Where orders get stuck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// Before any validation.
    Pending,
    /// After the certificate was asked for.
    Processing,
}

/// What is issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Issues {
    /// What was ordered.
    Right,
    /// A certificate for a key of somebody else.
    WrongKey,
    /// A certificate for other names.
    OtherNames,
    /// One that is over.
    Expired,
    /// One that begins after this many seconds.
    ValidIn(u64),
    /// No PEM.
    Garbage,
}

/// What becomes of `replaces`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaces {
    /// It is repeated in the order, as RFC 9773 wants it.
    Reflected,
    /// It is passed over in silence.
    Ignored,
    /// It is refused (409).
    AlreadyReplaced,
}

/// What befalls requests for a resource.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Whose requests.
    pub resource: Resource,
    /// How many more.
    pub times: usize,
    /// What.
    pub what: What,
}

/// What befalls a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A problem document with this status, type (without its prefix) and detail, and this Retry-After.
    Problem(u16, &'static str, &'static str, Option<String>),
    /// This status with a page of HTML.
    Html(u16),
    /// This status with a body of this many bytes.
    Flood(u16, usize),
    /// The connection is closed without an answer; the request was not acted upon.
    HangUp,
    /// The connection is closed in the middle of the answer; the request was acted upon.
    BreakOff,
    /// No answer, ever; the request was not acted upon.
    Silence,
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// The directory.
    Directory,
    /// newNonce.
    NewNonce,
    /// newAccount.
    NewAccount,
    /// newOrder.
    NewOrder,
    /// An account's URL.
    Account,
    /// An order's URL.
    Order,
    /// An authorization's URL.
    Authorization,
    /// A challenge's URL.
    Challenge,
    /// An order's finalize URL.
    Finalize,
    /// A certificate's URL.
    Certificate,
    /// renewalInfo.
    RenewalInfo,
}

/// What happened so far.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Accounts that were made.
    pub accounts: usize,
    /// Orders that were made.
    pub orders: usize,
    /// The same by their names: sorted, with commas.
    pub orders_for: BTreeMap<String, usize>,
    /// The same, one by one.
    pub placed: Vec<Placed>,
    /// Certificates that were issued.
    pub certificates: usize,
    /// Requests by resource, whatever befell them.
    pub requests: BTreeMap<Resource, usize>,
    /// TLS connections.
    pub connections: usize,
    /// Requests that were refused for their nonce.
    pub bad_nonces: usize,
    /// The contacts that the last account was given.
    pub contact: Vec<String>,
    /// The profile and the replaced certificate of the last order.
    pub last_order: (Option<String>, Option<String>),
    /// The kinds of the challenges that the client chose, in order.
    pub chosen: Vec<String>,
    /// The User-Agent of the last request.
    pub user_agent: String,
}

/// An order that was made.
#[derive(Debug, Clone)]
pub struct Placed {
    /// When.
    pub at: SystemTime,
    /// Its names: sorted, with commas.
    pub names: String,
    /// Its profile.
    pub profile: Option<String>,
    /// The certificate that it replaces (RFC 9773, section 4.1).
    pub replaces: Option<String>,
}

impl Authority {
    /// One that believes everything and fails in nothing.
    pub fn start() -> Authority {
        Authority::with(|_| ())
    }

    /// One with other rules from its first moment.
    pub fn with(change: impl FnOnce(&mut Rules)) -> Authority {
        let folder = tempfile::Builder::new().prefix("doorward-authority-").tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let issuer = Issuer::new();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        let mut rules = Rules::default();
        change(&mut rules);
        let base = format!("https://127.0.0.1:{port}");
        let world = World { book: Mutex::default(), rules: Mutex::new(rules), issuer, base };
        let world = Arc::new(world);
        let (stop, stopped) = oneshot::channel();
        let thread = {
            let world = Arc::clone(&world);
            std::thread::spawn(move || serve::run(&world, listener, stopped))
        };
        Authority { world, folder, port, stop: Some(stop), thread: Some(thread) }
    }

    /// The URL of the directory.
    pub fn directory(&self) -> String {
        format!("{}/directory", self.world.base)
    }

    /// The root (PEM) of the authority's own server and of every certificate that it issues.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A folder that goes with the authority.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The port of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes how it behaves from the next request on.
    pub fn rules(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.world.rules());
    }

    /// Lets `what` befall every request for `resource`.
    pub fn fault(&self, resource: Resource, what: What) {
        self.fault_times(resource, usize::MAX, what);
    }

    /// Lets `what` befall the next `times` requests for `resource`.
    pub fn fault_times(&self, resource: Resource, times: usize, what: What) {
        self.rules(|rules| rules.faults.push(Fault { resource, times, what }));
    }

    /// From now on nothing befalls requests.
    pub fn repair(&self) {
        self.rules(|rules| rules.faults.clear());
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.world.book().counters.clone()
    }

    /// The serial numbers of all certificates, in base64url.
    pub fn serials(&self) -> Vec<String> {
        self.world.book().certificates.iter().map(|certificate| certificate.serial.clone()).collect()
    }

    /// Loses all accounts, as staging authorities do now and then.
    pub fn lose_accounts(&self) {
        self.world.book().accounts.clear();
    }

    /// Loses all orders.
    pub fn lose_orders(&self) {
        self.world.book().orders.clear();
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the authority itself has failed");
        }
    }
}

impl World {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap()
    }
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            bad_nonce: 0,
            wrong_nonces: false,
            faults: Vec::new(),
            challenges: vec!["http-01", "dns-01", "tls-alpn-01"],
            validation: Validation::Automatic,
            validation_delay: Duration::ZERO,
            failing: BTreeMap::new(),
            stuck: None,
            never_looks_at: Vec::new(),
            processing: 0,
            order_retry_after: None,
            issues: Issues::Right,
            lifetime: Duration::from_secs(90 * 86_400),
            asks_about: None,
            rejected: Vec::new(),
            replaces: Replaces::Reflected,
            renewal_info: true,
            window: None,
            windows: BTreeMap::new(),
            explanation: "https://acme.example/why".to_owned(),
            window_retry_after: Some(21_600),
            profiles: Vec::new(),
            external_account: None,
        }
    }
}
