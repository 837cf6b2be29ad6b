//! One worker: a thread with a runtime of its own, its accept loops, its idle back-end connections, its tasks.
//! Nothing here is shared, so nothing is locked.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::base::address::ListenAddress;
use crate::base::cached_time;
use crate::edge::crowd;
use crate::edge::finish::farewell::Farewells;
use crate::edge::guests::Guests;
use crate::edge::listener::{self, BoundListener};
use crate::edge::process::Process;
use crate::tls::turns::Turns;
use crate::tunnel::poller::Poller;
use crate::upstream::files::lately::Lately;
use crate::upstream::http::Pool;
use crate::upstream::php::FastCgiPool;

/// What the control thread asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Accept on these sockets too.
    Listen(Vec<BoundListener>),
    /// Stop accepting on these addresses.
    Unlisten(Vec<ListenAddress>),
    /// Stop accepting at all, and end when the last request and the last tunnel has ended. Requests have this long.
    Leave(Duration),
    /// End after this time, whatever is left.
    End(Duration),
}

/// What the tasks of one worker share.
pub struct Worker {
    /// What outlives reloads.
    pub process: Arc<Process>,
    /// Idle HTTP back-end connections.
    pub pool: Pool,
    /// Idle FastCGI connections.
    pub fastcgi: FastCgiPool,
    /// Small files that were asked for lately.
    pub files: Lately,
    /// Cancelled when requests have had their time: connections end that carry no tunnel.
    pub cut: CancellationToken,
    /// The plain sockets of tunnels.
    pub poller: Poller,
    /// The connections that serve requests.
    pub guests: Guests,
    /// Whose turn it is to compute a handshake.
    pub turns: Turns,
    /// What the log lines of tunnels have in common.
    pub farewells: Farewells,
    tasks: TaskTracker,
    tunnels: TaskTracker,
}

impl Worker {
    /// Within a runtime of its own.
    pub fn new(process: Arc<Process>) -> std::io::Result<Worker> {
        Ok(Worker {
            process,
            pool: Pool::default(),
            fastcgi: FastCgiPool::default(),
            files: Lately::default(),
            cut: CancellationToken::new(),
            poller: Poller::new()?,
            guests: Guests::default(),
            turns: Turns::default(),
            farewells: Farewells::default(),
            tasks: TaskTracker::new(),
            tunnels: TaskTracker::new(),
        })
    }

    /// Runs a connection as a task of this worker; a stop waits for it.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.spawn_local(task);
    }

    /// Runs a tunnel as a task of this worker; a stop waits for it after the connections.
    pub fn spawn_tunnel(&self, task: impl Future<Output = ()> + 'static) {
        self.tunnels.spawn_local(task);
    }

    /// Ready when there is no task any more, and there will be none: the listeners are closed.
    async fn ended(&self) {
        // Only a connection begins a tunnel: behind the last of the one there is none of the other to come.
        self.tasks.wait().await;
        self.tunnels.wait().await;
    }

    fn cut(&self) {
        self.cut.cancel();
        if !self.tasks.is_empty() {
            tracing::warn!("{} connections did not end within shutdown_grace", self.tasks.len());
        }
    }
}

/// Sockets of which the system tells at once. Tasks run in the order in which they were woken, and one that carries the
/// answers of many, an HTTP/2 connection's, behind all whose news came together: with more, clients and back ends would
/// wait for us while we work, and we for them.
const EVENTS_AT_A_TIME: usize = 16;

/// Runs a worker on the calling thread until it is told to stop.
pub fn run(process: Arc<Process>, commands: mpsc::Receiver<Command>) -> std::io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_io_events_per_tick(EVENTS_AT_A_TIME).build()?;
    let worker = Rc::new(runtime.block_on(async { Worker::new(process) })?);
    runtime.block_on(cached_time::keep(LocalSet::new().run_until(obey(worker, commands))));
    // What is still on a blocking thread (a file read, a spool) is not waited for.
    runtime.shutdown_background();
    Ok(())
}

async fn obey(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>) {
    let sweeping = tokio::task::spawn_local(sweep(worker.clone()));
    let polling = tokio::task::spawn_local({
        let poller = worker.poller.clone();
        async move { poller.run().await }
    });
    let threads = tokio::task::spawn_local(keep_a_thread());
    let mut listening: HashMap<ListenAddress, CancellationToken> = HashMap::new();
    // Times that have not been set are never.
    let (mut cut, mut end) = (None, None);
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            () = worker.ended() => break,
            () = at(cut) => {
                cut = None;
                worker.cut();
                continue;
            }
            () = at(end) => break,
        };
        match command {
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
            Some(Command::Leave(grace)) => {
                // Nobody accepts any more, and connections end after the request that they are at.
                for (_, close) in listening.drain() {
                    close.cancel();
                }
                worker.pool.clear();
                worker.tasks.close();
                worker.tunnels.close();
                cut = Some(Instant::now() + grace);
            }
            Some(Command::End(after)) => end = Some(Instant::now() + after),
            None => break,
        }
    }
    [sweeping, polling, threads].iter().for_each(JoinHandle::abort);
}

/// Keeps one thread of the runtime that may wait for a disk. tokio ends them after 10 s without work, and panics where the
/// machine then gives it none (TasksMax, `ulimit -u`); while there is one, work waits for it instead.
pub async fn keep_a_thread() {
    let mut tick = tokio::time::interval(Duration::from_secs(4));
    loop {
        tick.tick().await;
        // Nobody waits for nothing.
        drop(tokio::task::spawn_blocking(|| ()));
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// An idle FastCGI connection holds an FPM worker: it goes when its time is over, also where no request comes by. So
/// does what a crowd had in memory, and what is known of files. Tunnels whose deadline is near are woken to set
/// timers of their own. What was refused meanwhile is told.
async fn sweep(worker: Rc<Worker>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        if !worker.fastcgi.is_empty() {
            worker.fastcgi.sweep();
        }
        worker.farewells.sweep();
        worker.files.sweep();
        worker.process.tunnels.wake_due(Instant::now());
        let now = std::time::Instant::now();
        let process = &worker.process;
        if process.crowd.has_left(process.admission.open(), now) {
            drop(tokio::task::spawn_blocking(crowd::give_back_memory));
        }
        let clients = [process.admission.report(now), process.admission.handshakes.report(now)];
        let requests = [process.gate.limits.report(now), process.overload.look(now)];
        clients.iter().chain(&requests).flatten().for_each(|line| tracing::warn!("{line}"));
    }
}
