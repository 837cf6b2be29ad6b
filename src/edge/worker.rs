//! One worker: a thread with a runtime of its own, its accept loops, its idle back-end connections, its tasks.
//! Nothing here is shared, so nothing is locked.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::base::address::ListenAddress;
use crate::edge::listener::{self, BoundListener};
use crate::edge::process::Process;
use crate::upstream::http::Pool;
use crate::upstream::php::FastCgiPool;

/// What tunnels are closed with when the process ends (RFC 6455, section 7.4.1: "going away").
const GOING_AWAY: u16 = 1001;

/// How long tunnels may take to be told, to answer their Close frame and to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What the control thread asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Accept on these sockets too.
    Listen(Vec<BoundListener>),
    /// Stop accepting on these addresses.
    Unlisten(Vec<ListenAddress>),
    /// Stop accepting at all, let requests finish for this long, then end.
    Stop(Duration),
}

/// What the tasks of one worker share.
pub struct Worker {
    /// What outlives reloads.
    pub process: Arc<Process>,
    /// Idle HTTP back-end connections.
    pub pool: Pool,
    /// Idle FastCGI connections.
    pub fastcgi: FastCgiPool,
    tasks: TaskTracker,
    tunnels: TaskTracker,
}

impl Worker {
    /// Runs a connection as a task of this worker; a stop waits for it.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.spawn_local(task);
    }

    /// Runs a tunnel as a task of this worker; a stop waits for it after the connections.
    pub fn spawn_tunnel(&self, task: impl Future<Output = ()> + 'static) {
        self.tunnels.spawn_local(task);
    }
}

/// Runs a worker on the calling thread until it is told to stop.
pub fn run(process: Arc<Process>, commands: mpsc::Receiver<Command>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let worker = Rc::new(Worker {
        process,
        pool: Pool::default(),
        fastcgi: FastCgiPool::default(),
        tasks: TaskTracker::new(),
        tunnels: TaskTracker::new(),
    });
    LocalSet::new().block_on(&runtime, obey(worker, commands));
    // What is still on a blocking thread (a file read, a spool) is not waited for.
    runtime.shutdown_background();
    Ok(())
}

async fn obey(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>) {
    let sweeping = tokio::task::spawn_local(sweep(worker.fastcgi.clone()));
    let mut listening: HashMap<ListenAddress, CancellationToken> = HashMap::new();
    let grace = loop {
        match commands.recv().await {
            Some(Command::Listen(sockets)) => {
                for socket in sockets {
                    let close = listening.entry(socket.address).or_default().clone();
                    worker.spawn(listener::accept(worker.clone(), socket, close));
                }
            }
            Some(Command::Unlisten(addresses)) => {
                for address in addresses {
                    if let Some(close) = listening.remove(&address) {
                        close.cancel();
                    }
                }
            }
            Some(Command::Stop(grace)) => break grace,
            None => break Duration::ZERO,
        }
    };
    // Nobody accepts any more, and connections end after the request that they are at.
    for close in listening.values() {
        close.cancel();
    }
    worker.pool.clear();
    sweeping.abort();
    worker.tasks.close();
    worker.tunnels.close();
    if tokio::time::timeout(grace, worker.tasks.wait()).await.is_err() {
        tracing::warn!("{} connections did not end within shutdown_grace", worker.tasks.len());
    }
    let told = worker.process.tunnels.close(|_| true, GOING_AWAY, LAST_WORDS / 5);
    tracing::debug!("{told} tunnels were told to close");
    let _ = tokio::time::timeout(LAST_WORDS, worker.tunnels.wait()).await;
}

/// An idle FastCGI connection holds an FPM worker: it goes when its time is over, also where no request comes by.
async fn sweep(fastcgi: FastCgiPool) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        if !fastcgi.is_empty() {
            fastcgi.sweep();
        }
    }
}
