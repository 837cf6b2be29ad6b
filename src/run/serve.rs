//! What the control thread does while workers serve: signals, requests on the control socket, certificates, systemd;
//! and how the process ends or gives way to a new one.

use std::path::PathBuf;
use std::pin::Pin;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admin::control::{ControlSocket, ReloadRequest};
use crate::edge::worker::keep_a_thread;
use crate::run::follow::{Followed, follow};
use crate::run::handover::{AsyncChannel, Predecessor, Word};
use crate::run::house::House;
use crate::run::leftover;
use crate::run::probes;
use crate::run::signals::Signals;
use crate::run::start::{PidFile, StartError, machine};
use crate::run::systemd;
use crate::run::upgrade::{DEADLINE, Failed, Program, Successor};
use crate::tls::watch;

/// How often the certificates of the local authority are looked at.
const LOCAL_LEAVES: Duration = Duration::from_secs(12 * 3600);

/// How much longer than its grace a process may take that was told to stop.
const ANOTHER_PROCESS: Duration = Duration::from_secs(10);

/// How the process ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Requests and tunnels have ended, or had their time.
    Gracefully,
    /// A second signal came.
    AtOnce,
}

/// Why this process no longer serves all that comes.
enum Told {
    /// A signal says so.
    Stop,
    /// A new process does it.
    GiveWay(Successor),
}

/// Files that the process in charge has to do with.
pub(super) struct Files<'a> {
    /// What is read again when it changes.
    pub(super) followed: Option<Followed>,
    /// Where the process id is written.
    pub(super) pid: &'a mut Option<PidFile>,
}

/// What the control thread does: everything that is not a request. Gives how the process ends, and who came after it.
pub(super) async fn control(
    house: &mut House,
    program: Option<Program>,
    predecessor: Option<Predecessor>,
    files: Files<'_>,
) -> Result<(Ended, Option<Successor>), StartError> {
    let mut signals = Signals::new().map_err(machine("signal handlers"))?;
    let mut before = None;
    if let Some(predecessor) = predecessor {
        let channel = predecessor.take_over().await.map_err(machine("the process before this one"))?;
        tell(&channel, &Word::Reloaded);
        before = Some(channel);
        let path = house.config().server.pid_file.clone();
        *files.pid = path.and_then(|path| PidFile::write(path).inspect_err(|error| tracing::error!("{error}")).ok());
    }
    let (reloads, mut requests) = mpsc::channel(4);
    let path = house.standing().control().to_owned();
    let control = control_socket(path.clone());
    let (renewals, process) = (house.renewals().clone(), house.process().clone());
    let store = house.process().certificates.clone();
    let watching = house.config().tls.watch;
    let stop_renewals = CancellationToken::new();
    let keeping = renewals.clone().start(stop_renewals.clone()).map_err(machine("the thread for certificates"))?;
    house.store_listeners();
    systemd::ready();
    tracing::info!("ready");
    let told = tokio::select! {
        told = obey(house, &mut signals, &mut requests, program.as_ref(), &mut before) => told,
        () = async {
            match &control {
                Some(socket) => socket.serve(reloads.clone(), renewals.clone(), process.clone()).await,
                None => std::future::pending().await,
            }
        } => Told::Stop,
        () = async {
            if watching {
                watch::watch(store, std::future::pending()).await;
            }
            std::future::pending().await
        } => Told::Stop,
        () = async {
            if let Some(followed) = files.followed {
                follow(followed, reloads.clone()).await;
            }
            std::future::pending().await
        } => Told::Stop,
        () = probes::watch(&process) => Told::Stop,
        () = keep_alive() => Told::Stop,
        () = keep_a_thread() => Told::Stop,
    };
    stop_renewals.cancel();
    match told {
        Told::Stop => {
            // Nobody answers there any more.
            drop(control);
            let ended = stop(house, &mut signals, before).await;
            // It ends hooks that are running; a second signal is not kept waiting.
            if ended == Ended::Gracefully && keeping.join().is_err() {
                tracing::error!("the thread for certificates panicked");
            }
            Ok((ended, None))
        }
        Told::GiveWay(successor) => {
            house.leave().await;
            drop(control);
            let_go(keeping).await;
            systemd::main_process_is(successor.pid());
            tell(&successor.channel, &Word::Released);
            let mut remaining = leftover::Leftover { house, successor, before, reloads, requests };
            let ended = remaining.serve(&mut signals, &path).await;
            Ok((ended, Some(remaining.successor)))
        }
    }
}

/// Signals and requests, one after the other, until the process is to stop or another has taken over.
async fn obey(
    house: &mut House,
    signals: &mut Signals,
    requests: &mut mpsc::Receiver<ReloadRequest>,
    program: Option<&Program>,
    before: &mut Option<AsyncChannel>,
) -> Told {
    let (renewals, process) = (house.renewals().clone(), house.process().clone());
    let mut local_leaves = tokio::time::interval_at(tokio::time::Instant::now() + LOCAL_LEAVES, LOCAL_LEAVES);
    let mut upgrade: Option<Upgrade> = None;
    loop {
        // What a reload changes would not be known to a process that is just starting: the one waits for the other.
        let calm = upgrade.is_none();
        tokio::select! {
            Some(request) = requests.recv(), if calm => reload(house, Some(request), before.as_ref()).await,
            Some(()) = signals.hangup.recv(), if calm => reload(house, None, before.as_ref()).await,
            () = renewals.replanned() => house.replan(),
            () = process.latecomers.notified() => house.drain_gone(),
            // The local authority's leaves are made anew before they end; nobody reloads a machine that just works.
            _ = local_leaves.tick() => house.replan(),
            Some(()) = signals.user1.recv() => {
                house.reopen_logs();
                before.iter().for_each(|channel| tell(channel, &Word::Reopen));
            }
            Some(()) = signals.user2.recv() => match program {
                // The end of a container's first process ends the others.
                _ if std::process::id() == 1 => tracing::warn!("USR2: process 1 cannot be replaced; start a new container"),
                _ if !calm => tracing::warn!("USR2: a new process is just being started; nothing more is done"),
                Some(program) => upgrade = begin_upgrade(program, house),
                None => tracing::warn!("USR2: the demo cannot be upgraded"),
            },
            outcome = finished(&mut upgrade) => {
                upgrade = None;
                match outcome {
                    Ok(successor) => return Told::GiveWay(successor),
                    Err(failed) => tracing::error!("no upgrade, this process goes on: {failed}"),
                }
            }
            () = ended(before) => *before = None,
            () = signals.stop.recv() => return Told::Stop,
        }
    }
}

/// A new process on its way, with all that it takes to wait for it.
type Upgrade = Pin<Box<dyn Future<Output = Result<Successor, Failed>>>>;

fn begin_upgrade(program: &Program, house: &House) -> Option<Upgrade> {
    tracing::info!("USR2: starting {} to take over", program.path().display());
    match program.start(house.listeners(), house.standing().environment()) {
        Ok(newborn) => Some(Box::pin(newborn.serves(DEADLINE))),
        Err(failed) => {
            tracing::error!("no upgrade, this process goes on: {failed}");
            None
        }
    }
}

async fn finished(upgrade: &mut Option<Upgrade>) -> Result<Successor, Failed> {
    match upgrade {
        Some(upgrade) => upgrade.await,
        None => std::future::pending().await,
    }
}

/// Ready when the process before this one has ended, if there is one.
pub(super) async fn ended(before: &Option<AsyncChannel>) {
    match before {
        Some(channel) => channel.ended().await,
        None => std::future::pending().await,
    }
}

pub(super) fn tell(channel: &AsyncChannel, word: &Word) {
    if let Err(error) = channel.say(word) {
        tracing::warn!("the other process cannot be told: {error}");
    }
}

/// Waits until nothing here looks after certificates any more: the storage is for one process at a time.
async fn let_go(keeping: JoinHandle<()>) {
    let ended = async {
        while !keeping.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), ended).await.is_err() {
        tracing::warn!("the thread for certificates does not end");
    }
}

async fn reload(house: &mut House, request: Option<ReloadRequest>, before: Option<&AsyncChannel>) {
    systemd::reloading();
    let outcome = match house.reload().await {
        Ok(text) => {
            tracing::info!("reloaded: {text}");
            // The tunnels of an older process are of this configuration, too.
            before.into_iter().for_each(|channel| tell(channel, &Word::Reloaded));
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

/// Requests finish within `shutdown_grace`, over which tunnels get a Close frame. A second signal ends it all at once.
async fn stop(house: &mut House, signals: &mut Signals, before: Option<AsyncChannel>) -> Ended {
    let grace = house.config().server.shutdown_grace;
    systemd::stopping();
    tracing::info!("stopping: requests may finish within {} s", grace.as_secs());
    // First: its time is to be over when this one's is.
    before.iter().for_each(|channel| tell(channel, &Word::Stop));
    house.stop().await;
    // systemd kills what is left when the main process ends: the one before is waited for.
    let all_ended = async {
        house.stopped().await;
        if before.is_some() {
            let _ = tokio::time::timeout(grace + ANOTHER_PROCESS, ended(&before)).await;
        }
    };
    tokio::select! {
        () = all_ended => Ended::Gracefully,
        () = keep_alive() => Ended::AtOnce,
        () = signals.stop.recv() => {
            before.iter().for_each(|channel| tell(channel, &Word::EndNow));
            Ended::AtOnce
        }
    }
}

async fn keep_alive() {
    let Some(interval) = systemd::watchdog_interval() else { return std::future::pending().await };
    loop {
        systemd::alive();
        tokio::time::sleep(interval).await;
    }
}

pub(super) fn control_socket(path: PathBuf) -> Option<ControlSocket> {
    match ControlSocket::bind(path, rustix::process::getuid().as_raw()) {
        Ok(socket) => Some(socket),
        // The site is served without it; HUP still reloads.
        Err(error) => {
            tracing::warn!("no control socket, `doorward reload` will not work: {error}");
            None
        }
    }
}
