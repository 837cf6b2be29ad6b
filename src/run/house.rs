//! The single writer: whatever the file says comes into force here, at the start and at every reload.
//!
//! Load and check → bind → build → swap certificates → swap snapshot → let go of what left the file. Nothing is
//! visible before the swaps; nothing can fail after them.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::acme::plan::Planned;
use crate::acme::renewals::Renewals;
use crate::acme::settings::Settings;
use crate::base::address::ListenAddress;
use crate::config::{self, Config};
use crate::edge::access::AccessLog;
use crate::edge::listener::{self, BoundListener};
use crate::edge::process::Process;
use crate::edge::snapshot::{Snapshot, Surroundings, log_target};
use crate::edge::worker::Command;
use crate::http::request::Scheme;
use crate::keys::{Keys, LocalKeys};
use crate::run::automatic::{self, LocalFault};
use crate::run::leaving;
use crate::run::logs::{Logs, LogsError};
use crate::run::source::Source;
use crate::run::systemd;
use crate::tls::challenges::Challenges;
use crate::tls::pair::with_causes;
use crate::tls::policy::{self, MinVersion, Policy, PolicyError};
use crate::tls::store::{CertStore, CertificateProblem, Prepared, Serving};
use crate::tls::tickets::Tickets;
use crate::tunnel::register::TunnelInfo;
use crate::upstream::http::BackEndRegister;

/// What tunnels are closed with when their back end left the file (RFC 6455 and the IANA registry: "service restart").
const SERVICE_RESTART: u16 = 1012;

/// Everything that a reload needs to know of the running process.
pub struct House {
    source: Source,
    config: Config,
    process: Arc<Process>,
    workers: Vec<mpsc::Sender<Command>>,
    /// What is listened on, and the port where the file says 0.
    listening: HashMap<ListenAddress, u16>,
    logs: Logs,
    renewals: Arc<Renewals>,
}

/// Why a file cannot come into force. Printed as it is.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The file has problems.
    #[error("{0}")]
    Problems(#[from] config::Problems),
    /// A listener cannot be bound.
    #[error("cannot listen on {address}: {source}{}", hint(source))]
    Bind {
        /// The address.
        address: ListenAddress,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate that the file newly names cannot be served.
    #[error("{0}")]
    Certificate(Box<CertificateProblem>),
    /// A listener would have to speak something else than it does.
    #[error("{address} changes between server.http and server.https: this takes a restart")]
    Scheme {
        /// The address.
        address: ListenAddress,
    },
    /// The local CA cannot make a certificate that the file newly wants.
    #[error("{0}")]
    LocalCa(Box<LocalFault>),
    /// The TLS settings cannot be put in force.
    #[error("[tls]: {}", with_causes(.0))]
    Tls(#[from] PolicyError),
    /// A site cannot be built.
    #[error(transparent)]
    Build(#[from] crate::edge::snapshot::BuildError),
    /// The program log cannot be opened.
    #[error("{}", with_causes(.0))]
    Log(#[from] LogsError),
    /// The thread that writes the access log cannot be started.
    #[error("cannot start the access log: {0}")]
    Access(std::io::Error),
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "; another server (nginx, Apache, another doorward) has this port",
        std::io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE (see systemd/doorward.service)"
        }
        _ => "",
    }
}

/// A configuration that has everything it needs, and is not yet in force.
struct Ready {
    snapshot: Snapshot,
    certificates: Prepared,
    automatic: Option<(Settings, Vec<Planned>)>,
    problems: Vec<CertificateProblem>,
    local: Vec<LocalFault>,
    bound: Vec<BoundListener>,
    ports: HashMap<ListenAddress, u16>,
}

impl House {
    /// Reads `source` and makes a process that serves it. `inherited` are the sockets that systemd has bound. Nobody
    /// listens on what is returned yet: see [`House::open`].
    pub fn furnish(
        source: Source,
        inherited: Vec<(SocketAddr, TcpListener)>,
    ) -> Result<(House, Vec<BoundListener>), Refused> {
        let config = source.load()?;
        let logs = Logs::start(config.log.level, log_target(&config.log.output))?;
        let access = AccessLog::start().map_err(Refused::Access)?;
        let keys: Arc<dyn Keys> = Arc::new(LocalKeys::new());
        let certificates = Arc::new(CertStore::new(Arc::clone(&keys)));
        let challenges = Arc::new(Challenges::default());
        let renewals = Arc::new(Renewals::new(keys, challenges.clone(), certificates.clone()));
        let (tickets, back_ends) = (Arc::new(Tickets::new()), Arc::new(BackEndRegister::new()));
        let shared = Shared { certificates: &certificates, tickets: &tickets, back_ends: &back_ends, access: &access };
        let ready = prepare(&config, shared, &HashMap::new(), inherited)?;
        // At the start a site without a usable certificate refuses its own handshakes, and no other site notices.
        ready.local.iter().for_each(|fault| tracing::error!("{fault}"));
        ready.problems.iter().for_each(|problem| tracing::error!("{problem}"));
        certificates.commit(ready.certificates);
        renewals.assign(ready.automatic);
        let mut seed = [0; 8];
        // Ids need to differ, not to be secret; without randomness they start at zero.
        let _ = aws_lc_rs::rand::fill(&mut seed);
        let seed = u64::from_le_bytes(seed);
        let process = Process::new(ready.snapshot, certificates, challenges, tickets, back_ends, access, seed);
        let (process, workers, listening) = (Arc::new(process), Vec::new(), ready.ports);
        Ok((House { source, config, process, workers, listening, logs, renewals }, ready.bound))
    }

    /// Gives the workers their commands' channels and the first listeners.
    pub async fn open(
        &mut self,
        workers: Vec<mpsc::Sender<Command>>,
        bound: Vec<BoundListener>,
    ) -> Result<(), Refused> {
        self.workers = workers;
        let shares = share(bound, self.workers.len())?;
        self.hand_out(shares).await;
        Ok(())
    }

    /// The shared part.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// What is in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Reads the file again and puts it in force, or changes nothing. Says in one line what is in force then.
    pub async fn reload(&mut self) -> Result<String, Refused> {
        let config = self.source.load()?;
        let shared = Shared {
            certificates: &self.process.certificates,
            tickets: &self.process.tickets,
            back_ends: &self.process.back_ends,
            access: &self.process.access,
        };
        self.check_schemes(&config)?;
        let ready = prepare(&config, shared, &self.listening, Vec::new())?;
        self.check_certificates(ready.problems, ready.local)?;
        let shares = share(ready.bound, self.workers.len())?;
        self.logs.change(config.log.level, log_target(&config.log.output))?;
        self.process.certificates.commit(ready.certificates);
        self.renewals.assign(ready.automatic);
        self.process.snapshot.store(Arc::new(ready.snapshot));
        let gone: Vec<ListenAddress> =
            self.listening.keys().filter(|address| !ready.ports.contains_key(address)).copied().collect();
        self.listening = ready.ports;
        self.hand_out(shares).await;
        if !gone.is_empty() {
            self.tell(|| Command::Unlisten(gone.clone())).await;
        }
        if config.server.workers != self.config.server.workers {
            tracing::warn!("server.workers takes effect at the next start");
        }
        self.config = config;
        self.drain_gone();
        Ok(format!("{} is in force: {}", self.source.path().display(), count(self.config.sites.len(), "site")))
    }

    /// Who looks after the automatic certificates.
    pub fn renewals(&self) -> &Arc<Renewals> {
        &self.renewals
    }

    /// Names have gone apart from their site, or the local CA's certificates near their end: all are planned anew.
    pub fn replan(&self) {
        automatic::make_local(&self.config).iter().for_each(|fault| tracing::error!("{fault}"));
        match automatic::wanted(&self.config) {
            Ok(wanted) => {
                for problem in self.process.certificates.apply(wanted.stored) {
                    tracing::error!("{problem}");
                }
                self.renewals.assign(wanted.automatic);
            }
            Err(refused) => tracing::error!("the certificates cannot be planned anew: {refused}"),
        }
    }

    /// A pair that the file newly names and that cannot be used is a mistake in the file. One that was named before
    /// and broke since is not: it must not keep other sites from being changed. Nor is one that is not named at all, but
    /// looked after here.
    fn check_certificates(&self, problems: Vec<CertificateProblem>, local: Vec<LocalFault>) -> Result<(), Refused> {
        for fault in local {
            if !automatic::self_signed(&self.config).any(|site| site.name == fault.site) {
                return Err(Refused::LocalCa(Box::new(fault)));
            }
            tracing::error!("{fault}");
        }
        for problem in problems {
            let known = problem.awaited || automatic::names(&self.config, &problem.files);
            if problem.serving != Serving::Itself && !known {
                return Err(Refused::Certificate(Box::new(problem)));
            }
            tracing::error!("{problem}");
        }
        Ok(())
    }

    /// Tunnels whose site, route or back end left the file are closed, spread over `shutdown_grace`. All others stay:
    /// they hold nothing of the configuration.
    fn drain_gone(&self) {
        let gone = |info: &TunnelInfo| !leaving::has_place(&self.config, info);
        let told = self.process.tunnels.close(gone, SERVICE_RESTART, self.config.server.shutdown_grace);
        if told > 0 {
            tracing::info!("{} of sites, routes or back ends that left the file will be closed", count(told, "socket"));
        }
    }

    /// Opens the log files again, after logrotate has renamed them.
    pub fn reopen_logs(&self) {
        if let Err(error) = self.logs.reopen() {
            tracing::error!("{}", with_causes(&error));
        }
        for (target, error) in self.process.access.reopen() {
            tracing::error!("cannot open the access log {target} again: {error}");
        }
        tracing::info!("log files opened again");
    }

    /// Tells the workers to stop; requests may go on for `grace`.
    pub async fn stop(&self, grace: Duration) {
        self.tell(|| Command::Stop(grace)).await;
    }

    /// Ready when every worker has ended.
    pub async fn stopped(&self) {
        for worker in &self.workers {
            worker.closed().await;
        }
    }

    async fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            if worker.send(command()).await.is_err() {
                tracing::error!("a worker has ended");
            }
        }
    }

    /// A listener that is open speaks what it spoke when it was bound.
    fn check_schemes(&self, config: &Config) -> Result<(), Refused> {
        let (old, new) = (&self.config.server, &config.server);
        let to_plain = new.http.iter().find(|a| old.https.contains(a) && !old.http.contains(a));
        let to_tls = || new.https.iter().find(|a| old.http.contains(a) && !old.https.contains(a));
        match to_plain.or_else(to_tls) {
            Some(address) => Err(Refused::Scheme { address: *address }),
            None => Ok(()),
        }
    }

    async fn hand_out(&self, shares: Vec<Vec<BoundListener>>) {
        for (worker, share) in self.workers.iter().zip(shares) {
            if worker.send(Command::Listen(share)).await.is_err() {
                tracing::error!("a worker has ended");
            }
        }
    }
}

/// Every worker gets a socket of its own on each address: the kernel spreads connections over them.
fn share(bound: Vec<BoundListener>, workers: usize) -> Result<Vec<Vec<BoundListener>>, Refused> {
    let mut shares: Vec<Vec<BoundListener>> = (0..workers).map(|_| Vec::new()).collect();
    for first in bound {
        let local = first.socket.local_addr().map_or_else(|_| first.address.to_string(), |a| a.to_string());
        tracing::info!("listening on {} {local}", first.scheme.as_str());
        let refused = |source| Refused::Bind { address: first.address, source };
        let (address, scheme) = (first.address, first.scheme);
        for share in shares.iter_mut().take(workers.saturating_sub(1)) {
            // A socket that was handed over has no SO_REUSEPORT: its one queue is shared.
            let socket = listener::bind_again(&first.socket).or_else(|_| first.socket.try_clone()).map_err(refused)?;
            share.push(BoundListener { address, scheme, socket });
        }
        if let Some(share) = shares.last_mut() {
            share.push(first);
        }
    }
    Ok(shares)
}

/// What outlives reloads and is needed to prepare one.
struct Shared<'a> {
    certificates: &'a Arc<CertStore>,
    tickets: &'a Arc<Tickets>,
    back_ends: &'a BackEndRegister,
    access: &'a AccessLog,
}

fn prepare(
    config: &Config,
    shared: Shared<'_>,
    listening: &HashMap<ListenAddress, u16>,
    inherited: Vec<(SocketAddr, TcpListener)>,
) -> Result<Ready, Refused> {
    let (bound, ports) = bind(config, listening, inherited)?;
    let wanted = automatic::wanted(config)?;
    let local = automatic::make_local(config);
    let (certificates, problems) = shared.certificates.prepare(wanted.stored);
    let policy = Policy {
        h1: config.server.h1,
        h2: config.server.h2,
        min_version: match config.tls.min_version {
            config::TlsVersion::V1_2 => MinVersion::Tls12,
            config::TlsVersion::V1_3 => MinVersion::Tls13,
        },
        client_ca: config.tls.client_ca.clone(),
    };
    let tls = policy::server_config(&policy, shared.certificates.clone(), shared.tickets)?;
    let surroundings = Surroundings { ports: &ports, back_ends: shared.back_ends, tls, access: Some(shared.access) };
    let snapshot = Snapshot::build(config, surroundings)?;
    Ok(Ready { snapshot, certificates, automatic: wanted.automatic, problems, local, bound, ports })
}

/// Binds what is not listened on yet, or takes it from what was handed over.
fn bind(
    config: &Config,
    listening: &HashMap<ListenAddress, u16>,
    mut inherited: Vec<(SocketAddr, TcpListener)>,
) -> Result<(Vec<BoundListener>, HashMap<ListenAddress, u16>), Refused> {
    let plain = config.server.http.iter().map(|address| (*address, Scheme::Http));
    let tls = config.server.https.iter().map(|address| (*address, Scheme::Https));
    let (mut bound, mut ports) = (Vec::new(), HashMap::new());
    for (address, scheme) in plain.chain(tls) {
        if let Some(port) = listening.get(&address) {
            ports.insert(address, *port);
            continue;
        }
        let refused = |source| Refused::Bind { address, source };
        let (ours, others): (Vec<_>, Vec<_>) =
            inherited.into_iter().partition(|(local, _)| systemd::is_same(address, *local));
        inherited = others;
        if ours.is_empty() {
            listener::probe(address).map_err(refused)?;
            let socket = listener::bind(address).map_err(refused)?;
            ports.insert(address, socket.local_addr().map_err(refused)?.port());
            bound.push(BoundListener { address, scheme, socket });
        }
        for (local, socket) in ours {
            ports.insert(address, local.port());
            bound.push(BoundListener { address, scheme, socket });
        }
    }
    for (local, _) in inherited {
        tracing::warn!("the socket unit hands over {local}, which [server] does not name: it is closed");
    }
    Ok((bound, ports))
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
