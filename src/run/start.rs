//! `doorward run`: from the file to a serving process, and to its end.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::edge::crowd;
use crate::edge::listener::BoundListener;
use crate::edge::worker::{self, Command};
use crate::run::follow::Followed;
use crate::run::handover::Predecessor;
use crate::run::house::{House, Refused};
use crate::run::listeners::Inherited;
use crate::run::privilege;
use crate::run::serve::{Ended, Files, control};
use crate::run::source::Source;
use crate::run::systemd;
use crate::run::upgrade::Program;

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

pub(super) fn machine(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::Machine { what, source }
}

/// Serves `source` until a signal ends it; with `watch`, its file is read again whenever it changes. `begin` is called on
/// the thread of each worker before anything else, `ready` once, when the listeners are open.
pub fn run(source: Source, watch: bool, begin: fn(), ready: impl FnOnce()) -> Result<(), StartError> {
    privilege::harden().map_err(machine("no_new_privs"))?;
    // Before anything could rename the file of the program. The demo brings its own back ends along, which cannot be
    // handed over.
    let program = matches!(source, Source::File(_)).then(Program::of_this_process).transpose();
    let program = program.map_err(machine("the path of this program"))?;
    let followed = (watch && matches!(source, Source::File(_))).then(|| Followed::look_at(source.path()));
    let (predecessor, inherited) = match Predecessor::find().map_err(machine("the process before this one"))? {
        Some((predecessor, inherited)) => (Some(predecessor), inherited),
        None => (None, systemd::inherited_listeners().map_err(machine("the sockets of systemd"))?),
    };
    let mut started = match start(source, inherited, predecessor.is_none(), begin) {
        Ok(started) => started,
        Err(error) => {
            predecessor.inspect(|predecessor| predecessor.refuse(&error.to_string()));
            return Err(error);
        }
    };
    let Started { house, bound, threads, runtime, pid_file } = &mut started;
    let (senders, handles): (Vec<_>, Vec<_>) = std::mem::take(threads).into_iter().unzip();
    // The one after this waits for the end of the channel that belongs to it: it is kept to the very end.
    let (ended, _successor) = LocalSet::new().block_on(&*runtime, async {
        if let Err(refused) = house.open(senders, std::mem::take(bound)).await {
            predecessor.inspect(|predecessor| predecessor.refuse(&refused.to_string()));
            return Err(refused.into());
        }
        ready();
        crowd::give_back_memory();
        let files = Files { followed, pid: pid_file };
        control(house, program, predecessor, files).await
    })?;
    let Started { house, runtime, pid_file, .. } = started;
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

/// A process that has everything it needs, and does not listen yet.
struct Started {
    house: House,
    bound: Vec<BoundListener>,
    threads: Vec<WorkerThread>,
    runtime: tokio::runtime::Runtime,
    pid_file: Option<PidFile>,
}

/// The first process writes its id before it serves; a later one when the service is its own.
fn start(source: Source, inherited: Vec<Inherited>, first: bool, begin: fn()) -> Result<Started, StartError> {
    let (house, bound) = House::furnish(source, inherited, first)?;
    let pid_file = house.config().server.pid_file.clone().filter(|_| first).map(PidFile::write).transpose()?;
    let threads = start_workers(&house, begin)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(machine("the control runtime"))?;
    Ok(Started { house, bound, threads, runtime, pid_file })
}

type WorkerThread = (mpsc::Sender<Command>, JoinHandle<()>);

fn start_workers(house: &House, begin: fn()) -> Result<Vec<WorkerThread>, StartError> {
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
                    begin();
                    if let Err(error) = worker::run(process, receiver) {
                        tracing::error!("worker {index}: {error}");
                    }
                })
                .map_err(machine("a worker thread"))?;
            Ok((sender, handle))
        })
        .collect()
}

/// The process id in a file, removed at the end unless it has become another's.
pub(super) struct PidFile(PathBuf);

impl PidFile {
    pub(super) fn write(path: PathBuf) -> Result<PidFile, StartError> {
        std::fs::write(&path, format!("{}\n", std::process::id()))
            .map_err(machine(format!("pid_file {}", path.display())))?;
        Ok(PidFile(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let is_ours = std::fs::read_to_string(&self.0).is_ok_and(|id| id.trim() == std::process::id().to_string());
        // An account may write its file and not remove it: nobody is to signal the number of a process that is gone.
        if is_ours && std::fs::remove_file(&self.0).is_err() {
            let _ = std::fs::write(&self.0, "");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::rc::Rc;

    use tokio::sync::oneshot;

    use super::*;
    use crate::admin::testing::process;
    use crate::edge::admission::Verdict;
    use crate::edge::worker::Worker;

    #[test]
    fn a_panic_ends_its_connection_and_gives_back_what_that_held() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let worker = Rc::new(Worker::new(process()).unwrap());
            let admission = &worker.process.admission;
            let permit = || match admission.admit(IpAddr::V4(Ipv4Addr::LOCALHOST), false) {
                Verdict::Admitted(permit) => permit,
                refused => panic!("{refused:?}"),
            };
            let (go, mut told) = mpsc::channel::<()>(1);
            let (answer, answered) = oneshot::channel();
            // One that was there before, and goes on behind the panics of others.
            let held = permit();
            worker.spawn(async move {
                told.recv().await;
                drop(held);
                answer.send("still here").unwrap();
            });
            for _ in 0..3 {
                let (connection, tunnel) = (permit(), permit());
                worker.spawn(async move {
                    let _permit = connection;
                    panic!("a fault of ours, at a request");
                });
                worker.spawn_tunnel(async move {
                    let _permit = tunnel;
                    panic!("a fault of ours, in a tunnel");
                });
            }
            tokio::time::timeout(Duration::from_secs(10), async {
                while admission.open() > 1 {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .unwrap();
            go.send(()).await.unwrap();
            assert_eq!(answered.await, Ok("still here"));
            assert_eq!(admission.open(), 0);
        });
    }
}
