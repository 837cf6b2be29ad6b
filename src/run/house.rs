//! The single writer: whatever the file says comes into force here, at the start and at every reload.
//!
//! Load and check → bind → build → swap certificates → swap snapshot → let go of what left the file. Nothing is
//! visible before the swaps; nothing can fail after them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::acme::renewals::Renewals;
use crate::base::address::ListenAddress;
use crate::config::Config;
use crate::edge::access::AccessLog;
use crate::edge::access::sink::Target;
use crate::edge::gate::Gate;
use crate::edge::listener::BoundListener;
use crate::edge::process::Process;
use crate::edge::snapshot::log_target;
use crate::edge::worker::Command;
use crate::keys::{Keys, LocalKeys};
use crate::run::automatic::{self, LocalFault};
use crate::run::leaving;
use crate::run::listeners::{self, Inherited};
use crate::run::logs::{self, Logs};
use crate::run::open_files;
use crate::run::password_files;
use crate::run::prepare::{Shared, prepare};
use crate::run::privilege::Standing;
pub use crate::run::refused::Refused;
use crate::run::source::Source;
use crate::run::systemd;
use crate::tls::challenges::Challenges;
use crate::tls::pair::with_causes;
use crate::tls::store::{CertStore, CertificateProblem, Serving};
use crate::tls::tickets::Tickets;
use crate::tunnel::register::TunnelInfo;
use crate::upstream::http::BackEndRegister;

/// What tunnels are closed with when their back end left the file, or their process gives way to a newer one (RFC 6455
/// and the IANA registry: "service restart").
pub const SERVICE_RESTART: u16 = 1012;

/// What tunnels are closed with when the service ends (RFC 6455, section 7.4.1: "going away").
const GOING_AWAY: u16 = 1001;

/// How long a tunnel may take to answer its Close frame and to end, behind the time at which it was told to.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Everything that a reload needs to know of the running process.
pub struct House {
    source: Source,
    config: Config,
    process: Arc<Process>,
    workers: Vec<mpsc::Sender<Command>>,
    /// What is listened on, and the port where the file says 0.
    listening: HashMap<ListenAddress, u16>,
    /// Every socket that a worker accepts from, once more: for the process after this one, and for systemd.
    open: Vec<BoundListener>,
    /// What was handed over under these names, and is closed.
    unwanted: Vec<String>,
    logs: Logs,
    renewals: Arc<Renewals>,
    standing: Standing,
    /// The number of the configuration in force.
    generation: u64,
}

impl House {
    /// Reads `source` and makes a process that serves it. `inherited` are the sockets that systemd has bound, or the
    /// process before this one, unless this is the `first`. Nobody listens on what is returned yet: see [`House::open`].
    pub fn furnish(
        source: Source,
        inherited: Vec<Inherited>,
        first: bool,
    ) -> Result<(House, Vec<BoundListener>), Refused> {
        let config = source.load()?;
        // Before there is any other thread.
        let mut standing = Standing::take(&source, &config, first)?;
        let target = log_target(&config.log.output);
        let logs = Logs::start(config.log.level, if standing.is_ahead() { Target::Stderr } else { target.clone() })?;
        standing.tell();
        logs::tell_panics();
        // What takes over is bound as who came before it: as at a reload, it is refused rather than left unable to write.
        if let Some(need) = standing.lacking(&config).filter(|_| !first) {
            return Err(Refused::Confined(need));
        }
        let access = AccessLog::start().map_err(Refused::Access)?;
        let keys: Arc<dyn Keys> = Arc::new(LocalKeys::new());
        let certificates = Arc::new(CertStore::new(Arc::clone(&keys)));
        let challenges = Arc::new(Challenges::default());
        let renewals = Arc::new(Renewals::new(keys, challenges.clone(), certificates.clone()));
        let (tickets, back_ends, gate) = (Arc::new(Tickets::new()), Arc::new(BackEndRegister::new()), Gate::new());
        let (certs, access_log) = (&certificates, &access);
        let shared =
            Shared { certificates: certs, tickets: &tickets, back_ends: &back_ends, gate: &gate, access: access_log };
        let mut ready =
            prepare(&config, shared, 1, &HashMap::new(), inherited, &mut standing).inspect_err(|_| standing.tell())?;
        // The process before this one may have read it as root, and serves it still.
        if let Some(at) = ready.problems.iter().position(|problem| !first && !problem.awaited && problem.is_denied()) {
            return Err(Refused::Certificate(Box::new(ready.problems.swap_remove(at))));
        }
        logs.change(config.log.level, target)?;
        standing.tell();
        // At the start a site without a usable certificate refuses its own handshakes, and no other site notices.
        ready.local.iter().for_each(|fault| tracing::error!("{fault}"));
        ready.problems.iter().for_each(|problem| tracing::error!("{problem}"));
        certificates.commit(ready.certificates);
        renewals.assign(ready.automatic);
        let admission = open_files::admission(&config);
        let process = Process::new(ready.snapshot, certificates, challenges, tickets, back_ends, access, admission);
        let (process, workers, open) = (Arc::new(process), Vec::new(), Vec::new());
        let (listening, unwanted) = (ready.bound.ports, ready.bound.unwanted);
        let house = House {
            source,
            config,
            process,
            workers,
            listening,
            open,
            unwanted,
            logs,
            renewals,
            standing,
            generation: 1,
        };
        Ok((house, ready.bound.sockets))
    }

    /// Gives the workers their commands' channels and the first listeners.
    pub async fn open(
        &mut self,
        workers: Vec<mpsc::Sender<Command>>,
        bound: Vec<BoundListener>,
    ) -> Result<(), Refused> {
        self.workers = workers;
        self.process.back_ends.resolver().settle(tokio::runtime::Handle::current());
        let shares = listeners::share(bound, self.workers.len())?;
        let copies = listeners::copies(&shares)?;
        self.hand_out(shares, copies).await;
        Ok(())
    }

    /// Has systemd keep the listening sockets for the next start. It listens to the main process only.
    pub fn store_listeners(&mut self) {
        self.unwanted.drain(..).for_each(|name| systemd::forget(&name));
        systemd::keep(&self.open);
    }

    /// Every listening socket: each has a queue of its own.
    pub fn listeners(&self) -> &[BoundListener] {
        &self.open
    }

    /// What the process is, and what it may.
    pub fn standing(&self) -> &Standing {
        &self.standing
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
            gate: &self.process.gate,
            access: &self.process.access,
        };
        self.check_schemes(&config)?;
        if let Some(need) = self.standing.lacking(&config) {
            return Err(Refused::Confined(need));
        }
        password_files::check(&self.config, &config)?;
        let ready = prepare(&config, shared, self.generation + 1, &self.listening, Vec::new(), &mut self.standing)?;
        self.check_certificates(ready.problems, ready.local)?;
        let shares = listeners::share(ready.bound.sockets, self.workers.len())?;
        let copies = listeners::copies(&shares)?;
        self.logs.change(config.log.level, log_target(&config.log.output))?;
        self.process.certificates.commit(ready.certificates);
        self.renewals.assign(ready.automatic);
        self.generation += 1;
        self.process.replace(ready.snapshot);
        self.process.admission.change(open_files::limits(&config));
        let gone: Vec<ListenAddress> =
            self.listening.keys().filter(|address| !ready.bound.ports.contains_key(address)).copied().collect();
        self.listening = ready.bound.ports;
        systemd::keep(&copies);
        self.hand_out(shares, copies).await;
        if !gone.is_empty() {
            let (closed, open) = self.open.drain(..).partition(|it| gone.contains(&it.address));
            self.open = open;
            systemd::forget_all(&closed);
            self.tell(|| Command::Unlisten(gone.clone())).await;
        }
        if config.server.workers != self.config.server.workers {
            tracing::warn!("server.workers takes effect at the next start or upgrade");
        }
        self.standing.compare(&self.config, &config);
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
    pub fn drain_gone(&self) {
        self.drain_others(&self.config);
    }

    /// The process in charge has put the file in force. The tunnels here are of that configuration, too.
    pub fn follow(&self) {
        match self.source.load() {
            Ok(config) => self.drain_others(&config),
            Err(problems) => tracing::warn!("no socket is closed here for what left the file: {problems}"),
        }
    }

    fn drain_others(&self, config: &Config) {
        let gone = |info: &TunnelInfo| !leaving::has_place(config, info);
        let told = self.process.tunnels.drain(gone, SERVICE_RESTART, self.config.server.shutdown_grace);
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

    /// Stops accepting. Connections end after the request that they are at, at the latest after `shutdown_grace`;
    /// tunnels go on. The workers end with the last of them.
    pub async fn leave(&mut self) {
        self.open.clear();
        let grace = self.config.server.shutdown_grace;
        self.tell(|| Command::Leave(grace)).await;
    }

    /// All tunnels are closed with `code`, spread over `spread`, those too that are just being opened; behind it the
    /// workers end whatever is left.
    pub async fn end(&mut self, code: u16, spread: Duration) {
        let told = self.process.tunnels.close_all(code, spread);
        if told > 0 {
            tracing::info!("{} will be closed with {code}", count(told, "socket"));
        }
        self.tell(|| Command::End(spread + LAST_WORDS)).await;
    }

    /// Requests may go on for `shutdown_grace`, and over the same time tunnels are closed.
    pub async fn stop(&mut self) {
        self.leave().await;
        self.end(GOING_AWAY, self.config.server.shutdown_grace).await;
    }

    /// Ready when every worker has ended.
    pub async fn stopped(&self) {
        for worker in &self.workers {
            worker.closed().await;
        }
    }

    /// A worker that has ended needs not to be told: it had nothing left to do, or has said why.
    async fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            let _ = worker.send(command()).await;
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

    async fn hand_out(&mut self, shares: Vec<Vec<BoundListener>>, copies: Vec<BoundListener>) {
        for (worker, share) in self.workers.iter().zip(shares) {
            if worker.send(Command::Listen(share)).await.is_err() {
                tracing::error!("a worker has ended");
            }
        }
        self.open.extend(copies);
    }
}

/// `1 site`, `2 sites`.
pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
