//! The command that sets and removes DNS records.
//!
//! It is run as `COMMAND… add|remove NAME VALUE`, where NAME is `_acme-challenge.DOMAIN` and VALUE the content of its
//! TXT record. Several values of one NAME stand side by side: those of a domain and of its wildcard. The environment
//! says the same: `DOORWARD_ACTION`, `DOORWARD_DOMAIN`, `DOORWARD_NAME`, `DOORWARD_VALUE` and `DOORWARD_AUTHORITY` (the
//! directory's URL); and for scripts that were written for certbot's `--manual-auth-hook`, `CERTBOT_DOMAIN` and
//! `CERTBOT_VALIDATION`. It ends with 0 when the record is set, and may take two minutes.

use std::fmt;
use std::io::{self, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use super::failure::{Failure, FailureKind};
use super::settings::DnsHook;

/// One TXT record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Without `_acme-challenge.` and without `*.`.
    pub(super) domain: String,
    pub(super) value: String,
}

/// What the hook does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Add,
    Remove,
}

/// The hook as it is run for one authority.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook<'a> {
    pub(super) command: &'a DnsHook,
    /// The directory's URL.
    pub(super) authority: &'a str,
    /// How long one run may take.
    pub(super) deadline: Duration,
}

impl Hook<'_> {
    /// Runs the command once and waits for its end. When this is dropped, the command is killed.
    ///
    /// # Errors
    /// It cannot be started, did not end in time (and was killed with everything that it had started), or did not end
    /// with 0. The last of its output is in the failure.
    pub(super) async fn run(&self, action: Action, record: &Record) -> Result<(), Failure> {
        let name = format!("_acme-challenge.{}", record.domain);
        let failed = |what: &str, output: &Tail| {
            let program = self.command.command.first().map_or("", String::as_str);
            let what = format!("dns_hook {program:?} {what} at \"{action} {name}\"{output}");
            Failure::new(FailureKind::Hook, what)
        };
        let mut output = Tail::default();
        let mut running =
            self.start(action, &name, record).map_err(|source| failed("cannot be run", &output).because(source))?;
        let ended = tokio::time::timeout(self.deadline, running.wait(&mut output)).await;
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(failed(&format!("failed with {status}"), &output)),
            Ok(Err(source)) => Err(failed("cannot be waited for", &output).because(source)),
            Err(_) => Err(failed(&format!("did not end within {:?}", self.deadline), &output)),
        }
    }

    /// Removes all of `records`; what cannot be removed is only logged.
    pub(super) async fn remove_all(&self, records: &[Record]) {
        for record in records {
            if let Err(failure) = self.run(Action::Remove, record).await {
                tracing::warn!(domain = record.domain, %failure, "a DNS record could not be removed");
            }
        }
    }

    fn start(&self, action: Action, name: &str, record: &Record) -> io::Result<Running> {
        let Some((program, arguments)) = self.command.command.split_first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no command"));
        };
        let (reader, writer) = io::pipe()?;
        fcntl_setfl(&reader, fcntl_getfl(&reader)? | OFlags::NONBLOCK)?;
        let mut command = Command::new(program);
        command.args(arguments).arg(action.to_string()).arg(name).arg(&record.value);
        // What a process was told at its start is not for its children (`run::handover`).
        command.env_remove("DOORWARD_HANDOVER").env_remove("DOORWARD_CONFINED");
        command.env("DOORWARD_ACTION", action.to_string());
        command.env("DOORWARD_DOMAIN", &record.domain).env("DOORWARD_NAME", name);
        command.env("DOORWARD_VALUE", &record.value).env("DOORWARD_AUTHORITY", self.authority);
        command.env("CERTBOT_DOMAIN", &record.domain).env("CERTBOT_VALIDATION", &record.value);
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        // Its own group, so that what it starts can be ended with it.
        command.process_group(0);
        let child = command.spawn()?;
        Ok(Running { child, over: false, output: Some(reader) })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Add => "add",
            Action::Remove => "remove",
        })
    }
}

/// A command that is running. Dropped before its end, it is killed with its group.
struct Running {
    child: Child,
    /// Read without waiting, until its end.
    output: Option<PipeReader>,
    over: bool,
}

/// How often a command that says nothing is looked at.
const LOOK: Duration = Duration::from_millis(25);

impl Running {
    async fn wait(&mut self, tail: &mut Tail) -> io::Result<ExitStatus> {
        loop {
            let ended = self.child.try_wait()?;
            // What it wrote last, too. A grandchild may hold the pipe open: its end is not waited for.
            if let Some(output) = &mut self.output
                && !tail.read(output)
            {
                self.output = None;
            }
            if let Some(status) = ended {
                self.over = true;
                return Ok(status);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// The last bytes of an output.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

/// How much of the output is told, in bytes.
const LONGEST_OUTPUT: usize = 2048;

impl Tail {
    /// Reads what is there, some of it. Whether more may come.
    fn read(&mut self, output: &mut PipeReader) -> bool {
        let mut buffer = [0; 4096];
        // Whoever talks without end is not listened to without end.
        for _ in 0..64 {
            match output.read(&mut buffer) {
                Ok(0) => return false,
                Ok(read) => self.push(buffer.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }

    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.drain(..self.0.len().saturating_sub(LONGEST_OUTPUT));
    }
}

impl fmt::Display for Tail {
    /// In one line, behind a colon; nothing when there was none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(&self.0);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() {
            return Ok(());
        }
        let line: String = lines.join(" | ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        write!(f, ", and said: {line}")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    fn hook(script: &str) -> DnsHook {
        let command = ["/bin/sh", "-c", script, "hook"].map(str::to_owned).to_vec();
        DnsHook { command, wait: Duration::ZERO }
    }

    fn run(command: &DnsHook, action: Action, deadline: Duration) -> Result<(), Failure> {
        let hook = Hook { command, authority: "https://acme.example/directory", deadline };
        let record = Record { domain: "a.example".to_owned(), value: "the-value".to_owned() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(hook.run(action, &record))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn the_command_is_told_everything_twice() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("told");
        let script = format!(
            "echo \"$@\" $DOORWARD_ACTION $DOORWARD_DOMAIN $DOORWARD_NAME $DOORWARD_VALUE $DOORWARD_AUTHORITY \
             $CERTBOT_DOMAIN $CERTBOT_VALIDATION >> {}",
            told.display()
        );
        run(&hook(&script), Action::Add, LONG).unwrap();
        run(&hook(&script), Action::Remove, LONG).unwrap();
        let line = |action: &str| {
            format!(
                "{action} _acme-challenge.a.example the-value {action} a.example _acme-challenge.a.example the-value \
                 https://acme.example/directory a.example the-value\n"
            )
        };
        assert_eq!(fs::read_to_string(told).unwrap(), line("add") + &line("remove"));
    }

    #[test]
    fn a_failure_tells_the_status_and_the_last_words() {
        let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo no such zone >&2; exit 3";
        let failure = run(&hook(script), Action::Add, LONG).unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.kind, FailureKind::Hook);
        assert!(text.contains("failed with exit status: 3") && text.ends_with("no such zone"), "{text}");
        assert!(text.len() < LONGEST_OUTPUT * 2, "{}", text.len());
        let absent = DnsHook { command: vec!["/nowhere/hook".to_owned()], wait: Duration::ZERO };
        let text = run(&absent, Action::Add, LONG).unwrap_err().to_string();
        assert!(text.contains("/nowhere/hook") && text.contains("No such file"), "{text}");
    }

    #[test]
    fn at_the_deadline_the_command_ends_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let pids = folder.path().join("pids");
        let script = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; echo working; wait", pids.display());
        let begun = Instant::now();
        let failure = run(&hook(&script), Action::Add, Duration::from_millis(1500)).unwrap_err().to_string();
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert!(failure.contains("did not end within 1.5s") && failure.ends_with("working"), "{failure}");
        let pid = fs::read_to_string(&pids).unwrap().trim().to_owned();
        let deadline = Instant::now() + LONG;
        while is_alive(&pid) {
            assert!(Instant::now() < deadline, "the hook's child {pid} lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A killed process may still wait for its parent to take notice.
    fn is_alive(pid: &str) -> bool {
        let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    #[test]
    fn a_child_in_the_background_holds_nothing_up() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let begun = Instant::now();
        run(&hook(&format!("sleep 1000 & echo $! > {}", pid.display())), Action::Add, LONG).unwrap();
        assert!(begun.elapsed() < LONG);
        let pid = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn a_command_that_never_stops_talking_ends_at_the_deadline() {
        let begun = Instant::now();
        let failure = run(&hook("yes no"), Action::Add, Duration::from_millis(1500)).unwrap_err().to_string();
        assert!(begun.elapsed() < LONG);
        // The last word may be cut where the pipe was.
        assert!(failure.contains("did not end within") && failure.contains("| no | no"), "{failure}");
    }
}
