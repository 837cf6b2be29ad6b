//! The old process's side of a binary upgrade: start the new program, give it the listening sockets, and wait until it
//! serves. Until then nothing changes here, and whatever goes wrong there leaves this process as it was.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::edge::listener::BoundListener;
use crate::run::handover::{AsyncChannel, Channel, VARIABLE, Word};

/// How long the new process may take from its start until it serves.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often it is looked at whether the new process still runs.
const LOOK: Duration = Duration::from_millis(50);

/// What systemd said to this process alone, by its id (sd_listen_fds(3), sd_watchdog_enabled(3)).
const ADDRESSED: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// How this process was started, remembered at its start: the file of the program may be another since.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// The program of this process, by the name that it was called by: where that is a symbolic link, the new program
    /// is what it leads to then.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn of_this_process() -> io::Result<Program> {
        let mut arguments = std::env::args_os();
        let called = arguments.next().unwrap_or_default();
        let path = by_name(Path::new(&called), &std::env::current_exe()?)?;
        Ok(Program { path, arguments: arguments.collect() })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts it and gives it `listeners`, and `environment` beside its own.
    ///
    /// # Errors
    /// The system cannot start it.
    pub fn start(
        &self,
        listeners: &[BoundListener],
        environment: Vec<(&'static str, OsString)>,
    ) -> Result<Newborn, Failed> {
        let (channel, theirs) = Channel::pair().map_err(Failed::Channel)?;
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env(VARIABLE, std::process::id().to_string()).stdin(Stdio::from(theirs));
        for name in ADDRESSED {
            command.env_remove(name);
        }
        command.envs(environment);
        let child = Unproven(Some(command.spawn().map_err(Failed::Start)?));
        // The command holds their end of the channel: with it, the end of the new process would not be seen.
        drop(command);
        let given = channel.send_listeners(listeners);
        Ok(Newborn { child, channel: channel.into_async().map_err(Failed::Channel)?, given })
    }
}

/// The path that leads to `program` when it is called by `name`, as a shell does it.
fn by_name(name: &Path, program: &Path) -> io::Result<PathBuf> {
    let leads_there = |path: &PathBuf| std::fs::canonicalize(path).is_ok_and(|found| found == *program);
    let candidates: Vec<PathBuf> = if name.components().count() > 1 {
        vec![std::path::absolute(name)?]
    } else {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).map(|folder| folder.join(name)).collect()
    };
    Ok(candidates.into_iter().find(leads_there).unwrap_or_else(|| program.to_owned()))
}

/// A new process that serves.
#[derive(Debug)]
pub struct Successor {
    child: Child,
    /// What it says.
    pub channel: AsyncChannel,
}

impl Successor {
    /// Its id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it read its file again.
    pub fn hang_up(&self) {
        // It is a child of ours: its id is no other's until it has been waited for.
        if let Err(error) = kill_process(Pid::from_child(&self.child), Signal::HUP) {
            tracing::warn!("process {} cannot be told to reload: {error}", self.pid());
        }
    }
}

/// Why there is no new process. Printed as it is.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The program cannot be run.
    #[error("it cannot be started: {0}")]
    Start(io::Error),
    /// The channel to it broke.
    #[error("the new process cannot be spoken to: {0}")]
    Channel(io::Error),
    /// It ended.
    #[error("the new process ended with {0} before it served; its own words are above")]
    Ended(ExitStatus),
    /// It said why it cannot serve.
    #[error("the new process cannot serve: {0}")]
    Refused(String),
    /// It said something else.
    #[error("the new process does not speak as a doorward that takes over does ({0}): is the file another program?")]
    Nonsense(String),
    /// It said nothing.
    #[error("the new process was not ready within {} s", .0.as_secs())]
    Silent(Duration),
}

/// A new process that does not serve yet. Dropped, it is killed.
#[derive(Debug)]
pub struct Newborn {
    child: Unproven,
    channel: AsyncChannel,
    /// Whether the listeners could be sent.
    given: io::Result<()>,
}

impl Newborn {
    /// Waits until it serves.
    ///
    /// # Errors
    /// It does not, and has ended.
    pub async fn serves(mut self, deadline: Duration) -> Result<Successor, Failed> {
        let outcome = tokio::time::timeout(deadline, self.speaks()).await;
        outcome.unwrap_or(Err(Failed::Silent(deadline)))?;
        let child = self.child.0.take().ok_or(Failed::Silent(deadline))?;
        Ok(Successor { child, channel: self.channel })
    }

    async fn speaks(&mut self) -> Result<(), Failed> {
        let Newborn { child, channel, given } = self;
        if let Err(error) = std::mem::replace(given, Ok(())) {
            // Most likely it has ended already, and how says more.
            let status = tokio::time::timeout(Duration::from_secs(1), child.ended()).await;
            return Err(
                status.map_or(Failed::Channel(error), |status| status.map_or_else(|failed| failed, Failed::Ended))
            );
        }
        let word = tokio::select! {
            word = channel.hear() => word,
            status = child.ended() => {
                // What it said last may have come together with its end.
                let last = tokio::time::timeout(LOOK, channel.hear()).await;
                return match last {
                    Ok(Ok(Some(Word::Refused(why)))) => Err(Failed::Refused(why)),
                    _ => Err(Failed::Ended(status?)),
                };
            }
        };
        match word {
            Ok(Some(Word::Ready)) => Ok(()),
            Ok(Some(Word::Refused(why))) => Err(Failed::Refused(why)),
            Ok(Some(other)) => Err(Failed::Nonsense(format!("{other:?}"))),
            Err(error) => Err(Failed::Nonsense(error.to_string())),
            // It has closed the channel, and may be about to end.
            Ok(None) => match tokio::time::timeout(Duration::from_secs(1), child.ended()).await {
                Ok(status) => Err(Failed::Ended(status?)),
                Err(_) => Err(Failed::Nonsense("it has closed its standard input".to_owned())),
            },
        }
    }
}

/// A child that is killed when it is dropped.
#[derive(Debug)]
struct Unproven(Option<Child>);

impl Unproven {
    async fn ended(&mut self) -> Result<ExitStatus, Failed> {
        let Some(child) = &mut self.0 else { return std::future::pending().await };
        loop {
            if let Some(status) = child.try_wait().map_err(Failed::Channel)? {
                return Ok(status);
            }
            sleep(LOOK).await;
        }
    }
}

impl Drop for Unproven {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            // It cannot refuse to be killed: this does not take long.
            let _ = child.wait();
        }
    }
}

/// When an old process ends, and how its remaining tunnels get there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// When the first of them is closed.
    pub begins: Instant,
    /// Over what time they are spread.
    pub spread: Duration,
}

impl Window {
    /// The last `grace` of `window` is for closing.
    pub fn from(now: Instant, window: Duration, grace: Duration) -> Window {
        let spread = grace.min(window);
        let year = Duration::from_secs(365 * 86_400);
        Window { begins: now.checked_add(window - spread).unwrap_or(now + year), spread }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::address::ListenAddress;
    use crate::edge::listener;
    use crate::http::request::Scheme;

    async fn run(script: &str, deadline: Duration) -> Result<Successor, Failed> {
        let program = Program { path: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()] };
        let address = ListenAddress::parse("127.0.0.1:0").unwrap();
        let socket = listener::bind(address).unwrap();
        program.start(&[BoundListener { address, scheme: Scheme::Http, socket }], Vec::new())?.serves(deadline).await
    }

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_program_that_ends_says_how() {
        let failed = run("exit 3", SOON).await.unwrap_err();
        assert!(matches!(failed, Failed::Ended(status) if status.code() == Some(3)), "{failed}");
        // A child of it that lives on holds the channel open.
        let failed = run("sleep 30 & echo $! >&2; kill $!; exit 4", SOON).await.unwrap_err();
        assert!(matches!(failed, Failed::Ended(status) if status.code() == Some(4)), "{failed}");
    }

    #[tokio::test]
    async fn a_program_that_says_nothing_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let failed = run(&format!("echo $$ > {}; exec sleep 100", pid.display()), Duration::from_millis(500)).await;
        assert!(matches!(failed.unwrap_err(), Failed::Silent(_)));
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "it still runs");
    }

    #[tokio::test]
    async fn a_program_that_says_something_else_is_not_taken_for_a_new_process() {
        for script in ["echo hello >&0; exec sleep 100", "exec <&-; exec sleep 100"] {
            let failed = run(script, SOON).await.unwrap_err();
            // One that closes its end early may do so before it is given anything.
            assert!(matches!(failed, Failed::Nonsense(_) | Failed::Channel(_)), "{script}: {failed}");
        }
    }

    #[tokio::test]
    async fn one_that_is_not_there_cannot_be_started() {
        let program = Program { path: "/nowhere/doorward".into(), arguments: Vec::new() };
        assert!(matches!(program.start(&[], Vec::new()), Err(Failed::Start(_))));
    }

    #[test]
    fn a_link_is_followed_anew_and_a_bare_name_is_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(folder.path()).unwrap();
        let (file, link) = (root.join("doorward-1"), root.join("doorward"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(by_name(&link, &file).unwrap(), link);
        assert_eq!(by_name(&file, &file).unwrap(), file);
        assert_eq!(by_name(Path::new("no-such-program"), &file).unwrap(), file, "not in PATH");
        assert_eq!(by_name(Path::new("/bin/sh"), &file).unwrap(), file, "a name of another program");
    }

    #[test]
    fn the_last_grace_of_the_window_is_for_closing() {
        let now = Instant::now();
        let seconds = Duration::from_secs;
        assert_eq!(Window::from(now, seconds(3600), seconds(30)).begins, now + seconds(3570));
        assert_eq!(Window::from(now, seconds(5), seconds(30)), Window { begins: now, spread: seconds(5) });
        assert!(Window::from(now, Duration::MAX, seconds(30)).begins > now + seconds(86_400));
    }
}
