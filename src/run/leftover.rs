//! A process that another has taken over from: it accepts nothing, finishes its requests, and keeps its tunnels until
//! they end, until `upgrade_window` closes, or until the service stops.

use std::path::Path;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::admin::control::{ReloadRequest, leftover_path};
use crate::run::handover::{AsyncChannel, Word};
use crate::run::house::{House, SERVICE_RESTART, count};
use crate::run::serve::{Ended, control_socket, ended, tell};
use crate::run::signals::Signals;
use crate::run::upgrade::{Successor, Window};

/// See the module.
pub(super) struct Leftover<'a> {
    /// What it still serves.
    pub(super) house: &'a mut House,
    /// Who serves the rest.
    pub(super) successor: Successor,
    /// The process that this one took over from, while it still has tunnels of its own.
    pub(super) before: Option<AsyncChannel>,
    /// Where its control socket sends requests for a reload, and where they arrive.
    pub(super) reloads: mpsc::Sender<ReloadRequest>,
    /// See `reloads`.
    pub(super) requests: mpsc::Receiver<ReloadRequest>,
}

/// What came.
enum News {
    Ended,
    WindowCloses,
    Word(std::io::Result<Option<Word>>),
    Signal(&'static str),
    Reload,
    ReopenLogs,
    Stop,
    Asked(ReloadRequest),
}

impl Leftover<'_> {
    /// Serves to the end. Its control socket is beside the one of the process in charge: `path` with its own id behind.
    pub(super) async fn serve(&mut self, signals: &mut Signals, path: &Path) -> Ended {
        let server = &self.house.config().server;
        let window = Window::from(Instant::now(), server.upgrade_window, server.shutdown_grace);
        let (sockets, pid) = (self.house.process().tunnels.len(), self.successor.pid());
        let sockets = count(sockets, "open socket");
        tracing::info!("process {pid} has taken over; {sockets} may go on here for {:?}", server.upgrade_window);
        let control = control_socket(leftover_path(path, std::process::id()));
        let (renewals, reloads) = (self.house.renewals().clone(), self.reloads.clone());
        let process = self.house.process().clone();
        let serve_control = async {
            match &control {
                Some(socket) => socket.serve(reloads, renewals, process).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = self.obey(signals, window) => ended,
            () = serve_control => Ended::Gracefully,
        }
    }

    async fn obey(&mut self, signals: &mut Signals, window: Window) -> Ended {
        // The window is over for tunnels that have been told to close; a second stop is one at once.
        let (mut closing, mut stopping, mut alone) = (false, false, false);
        loop {
            match self.news(signals, window, closing, alone).await {
                News::Ended => return Ended::Gracefully,
                News::WindowCloses => {
                    closing = true;
                    tracing::info!("server.upgrade_window closes");
                    self.house.end(SERVICE_RESTART, window.spread).await;
                }
                News::Word(Ok(Some(word))) => match word {
                    Word::Stop if stopping => {}
                    Word::Stop => {
                        (closing, stopping) = (true, true);
                        self.stop().await;
                    }
                    Word::EndNow => {
                        self.pass_on(&Word::EndNow);
                        return Ended::AtOnce;
                    }
                    Word::Reopen => {
                        self.house.reopen_logs();
                        self.pass_on(&Word::Reopen);
                    }
                    Word::Reloaded => {
                        self.pass_on(&Word::Reloaded);
                        self.house.follow();
                    }
                    other => tracing::debug!("the new process said {other:?}"),
                },
                News::Word(Ok(None) | Err(_)) => {
                    alone = true;
                    if !stopping {
                        tracing::warn!("process {} has ended: this one ends, too", self.successor.pid());
                        (closing, stopping) = (true, true);
                        self.stop().await;
                    }
                }
                News::Signal(name) => {
                    tracing::warn!("{name}: this process only finishes; process {} is in charge", self.successor.pid());
                }
                // It may have come while the new process was starting.
                News::Reload => {
                    tracing::info!("HUP: passed on to process {}", self.successor.pid());
                    self.successor.hang_up();
                }
                News::ReopenLogs => {
                    self.house.reopen_logs();
                    self.pass_on(&Word::Reopen);
                }
                News::Stop if stopping => {
                    self.pass_on(&Word::EndNow);
                    return Ended::AtOnce;
                }
                News::Stop => {
                    (closing, stopping) = (true, true);
                    self.stop().await;
                }
                News::Asked(request) => {
                    let why = format!("this process only finishes; process {} is in charge", self.successor.pid());
                    let _ = request.reply.send(Err(why));
                }
            }
        }
    }

    async fn news(&mut self, signals: &mut Signals, window: Window, closing: bool, alone: bool) -> News {
        let all_ended = async {
            self.house.stopped().await;
            // Whoever is told to stop passes it on: the one before is not left without somebody to tell it.
            if self.before.is_some() {
                ended(&self.before).await;
            }
        };
        tokio::select! {
            () = all_ended => News::Ended,
            () = sleep_until(window.begins), if !closing => News::WindowCloses,
            word = self.successor.channel.hear(), if !alone => News::Word(word),
            Some(()) = signals.hangup.recv() => News::Reload,
            Some(()) = signals.user2.recv() => News::Signal("USR2"),
            Some(()) = signals.user1.recv() => News::ReopenLogs,
            () = signals.stop.recv() => News::Stop,
            Some(request) = self.requests.recv() => News::Asked(request),
        }
    }

    async fn stop(&mut self) {
        tracing::info!("stopping");
        self.pass_on(&Word::Stop);
        self.house.stop().await;
    }

    fn pass_on(&self, word: &Word) {
        self.before.iter().for_each(|channel| tell(channel, word));
    }
}
