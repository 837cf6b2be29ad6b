//! `doorward run`: from the file to a serving process, and to its end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use crate::admin::control::{ControlSocket, ReloadRequest, socket_path};
use crate::edge::worker::{self, Command};
use crate::run::house::{House, Refused};
use crate::run::source::Source;
use crate::run::systemd;
use crate::tls::watch;

/// How often the certificates of the local authority are looked at.
const LOCAL_LEAVES: Duration = Duration::from_secs(12 * 3600);

/// Why the process could not start. Printed as it is.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file cannot come into force.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The machine refuses something.
    #[error("{what}: {source}")]
    Machine {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

fn machine(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::Machine { what, source }
}

/// Serves `source` until a signal ends it. `ready` is called once, when the listeners are open.
pub fn run(source: Source, ready: impl FnOnce()) -> Result<(), StartError> {
    let inherited = systemd::inherited_listeners().map_err(machine("the sockets of the socket unit"))?;
    let name = source.path();
    let (mut house, bound) = House::furnish(source, inherited)?;
    raise_open_files();
    let pid_file = house.config().server.pid_file.clone().map(PidFile::write).transpose()?;
    let threads = start_workers(&house)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(machine("the control runtime"))?;
    let (senders, handles): (Vec<_>, Vec<_>) = threads.into_iter().unzip();
    let ended = LocalSet::new().block_on(&runtime, async {
        house.open(senders, bound).await?;
        ready();
        control(&mut house, &name).await
    })?;
    // A name that is being looked up is not waited for.
    runtime.shutdown_background();
    // Whoever signals twice does not want to wait for workers either.
    if ended == Ended::Gracefully {
        for handle in handles {
            if handle.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
    house.process().access.flush(Duration::from_secs(2));
    drop(pid_file);
    tracing::info!("stopped");
    Ok(())
}

/// How the process ends.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// Requests and tunnels have ended, or had their time.
    Gracefully,
    /// A second signal came.
    AtOnce,
}

type WorkerThread = (mpsc::Sender<Command>, std::thread::JoinHandle<()>);

fn start_workers(house: &House) -> Result<Vec<WorkerThread>, StartError> {
    let count = match house.config().server.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    (0..count)
        .map(|index| {
            let (sender, receiver) = mpsc::channel(16);
            let process = house.process().clone();
            let handle = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    if let Err(error) = worker::run(process, receiver) {
                        tracing::error!("worker {index}: {error}");
                    }
                })
                .map_err(machine("a worker thread"))?;
            Ok((sender, handle))
        })
        .collect()
}

/// What the control thread does: everything that is not a request.
async fn control(house: &mut House, file: &Path) -> Result<Ended, StartError> {
    let mut signals = Signals::new().map_err(machine("signal handlers"))?;
    let (reloads, mut requests) = mpsc::channel(4);
    let control = control_socket(file);
    let renewals = house.renewals().clone();
    let serve_control = async {
        match &control {
            Some(socket) => socket.serve(reloads.clone(), renewals.clone()).await,
            None => std::future::pending().await,
        }
    };
    let store = house.process().certificates.clone();
    let watching = house.config().tls.watch;
    let watch_certificates = async {
        if watching {
            watch::watch(store, std::future::pending()).await;
        }
        std::future::pending::<()>().await
    };
    let stop_renewals = CancellationToken::new();
    let keeping = renewals.clone().start(stop_renewals.clone()).map_err(machine("the thread for certificates"))?;
    systemd::ready();
    tracing::info!("ready");
    let mut local_leaves = tokio::time::interval_at(tokio::time::Instant::now() + LOCAL_LEAVES, LOCAL_LEAVES);
    let obey = async {
        loop {
            tokio::select! {
                Some(request) = requests.recv() => reload(house, Some(request)).await,
                Some(()) = signals.hangup.recv() => reload(house, None).await,
                () = renewals.replanned() => house.replan(),
                // The local authority's leaves are made anew before they end; nobody reloads a machine that just works.
                _ = local_leaves.tick() => house.replan(),
                Some(()) = signals.user1.recv() => house.reopen_logs(),
                Some(()) = signals.user2.recv() => {
                    tracing::warn!("USR2: binary upgrade is not built yet; restart through a socket unit loses no connection");
                }
                Some(()) = signals.terminate.recv() => return,
                Some(()) = signals.interrupt.recv() => return,
                Some(()) = signals.quit.recv() => return,
            }
        }
    };
    let alive = keep_alive();
    tokio::select! {
        () = obey => {}
        () = serve_control => {}
        () = watch_certificates => {}
        () = alive => {}
    }
    stop_renewals.cancel();
    let ended = stop(house, &mut signals).await;
    // It ends hooks that are running; a second signal is not kept waiting.
    if ended == Ended::Gracefully && keeping.join().is_err() {
        tracing::error!("the thread for certificates panicked");
    }
    Ok(ended)
}

async fn reload(house: &mut House, request: Option<ReloadRequest>) {
    systemd::reloading();
    let outcome = match house.reload().await {
        Ok(text) => {
            tracing::info!("reloaded: {text}");
            Ok(text)
        }
        Err(refused) => {
            tracing::error!("reload refused, the old configuration stays in force: {refused}");
            Err(refused.to_string())
        }
    };
    systemd::ready();
    if let Some(request) = request {
        // Whoever asked may have left; the log has the outcome.
        let _ = request.reply.send(outcome);
    }
}

/// Requests finish within `shutdown_grace`, then tunnels get a Close frame. A second signal ends it all at once.
async fn stop(house: &House, signals: &mut Signals) -> Ended {
    let grace = house.config().server.shutdown_grace;
    systemd::stopping();
    tracing::info!("stopping: requests may finish within {} s", grace.as_secs());
    house.stop(grace).await;
    tokio::select! {
        () = house.stopped() => Ended::Gracefully,
        () = keep_alive() => Ended::AtOnce,
        Some(()) = signals.terminate.recv() => Ended::AtOnce,
        Some(()) = signals.interrupt.recv() => Ended::AtOnce,
        Some(()) = signals.quit.recv() => Ended::AtOnce,
    }
}

async fn keep_alive() {
    let Some(interval) = systemd::watchdog_interval() else { return std::future::pending().await };
    loop {
        systemd::alive();
        tokio::time::sleep(interval).await;
    }
}

fn control_socket(file: &Path) -> Option<ControlSocket> {
    let uid = rustix::process::getuid().as_raw();
    match ControlSocket::bind(socket_path(file, &|name| std::env::var(name).ok(), uid), uid) {
        Ok(socket) => Some(socket),
        // The site is served without it; HUP still reloads.
        Err(error) => {
            tracing::warn!("no control socket, `doorward reload` will not work: {error}");
            None
        }
    }
}

struct Signals {
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }
}

/// Every socket is a descriptor; the soft limit of most systems is 1024.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!("cannot raise the open-file limit: {error}");
    }
}

/// The process id in a file, removed at the end.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: PathBuf) -> Result<PidFile, StartError> {
        std::fs::write(&path, format!("{}\n", std::process::id()))
            .map_err(machine(format!("pid_file {}", path.display())))?;
        Ok(PidFile(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
