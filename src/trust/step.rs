//! One command of a plan: shown as a shell would take it, and run without a shell.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::{Command, Stdio};

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step(Vec<OsString>);

impl Step {
    /// `program` without arguments.
    pub fn new(program: impl AsRef<OsStr>) -> Step {
        Step(vec![program.as_ref().to_owned()])
    }

    /// The same, with one argument more.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Step {
        self.0.push(argument.as_ref().to_owned());
        self
    }

    /// The same, with `arguments` more.
    pub fn args(mut self, arguments: &[&str]) -> Step {
        self.0.extend(arguments.iter().map(OsString::from));
        self
    }

    /// The same, run through `sudo`.
    pub fn through(mut self, sudo: &Path) -> Step {
        self.0.insert(0, sudo.into());
        self
    }

    /// Runs it to its end. It may ask at the terminal for a password, for which there is no deadline.
    ///
    /// # Errors
    /// It cannot be started, or fails; then with what it said.
    pub fn run(&self) -> Result<(), StepError> {
        let failed = |said: String| StepError::Failed { step: self.to_string(), said };
        let (program, arguments) = self.0.split_first().ok_or_else(|| failed("there is no command".to_owned()))?;
        let stdin = if io::stdin().is_terminal() { Stdio::inherit() } else { Stdio::null() };
        let output = Command::new(program)
            .args(arguments)
            .stdin(stdin)
            .output()
            .map_err(|source| StepError::Start { step: self.to_string(), source })?;
        if output.status.success() {
            return Ok(());
        }
        let said =
            [output.stderr, output.stdout].map(|text| String::from_utf8_lossy(&text).trim().to_owned()).join("\n");
        let said = if said.trim().is_empty() { output.status.to_string() } else { said.trim().to_owned() };
        Err(failed(said))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, word) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_char(' ')?;
            }
            let word = word.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
            if !word.is_empty() && word.chars().all(plain) {
                f.write_str(&word)?;
            } else {
                write!(f, "'{}'", word.replace('\'', "'\\''"))?;
            }
        }
        Ok(())
    }
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The program is not there, or may not be run.
    #[error("cannot run {step}")]
    Start {
        /// The command.
        step: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{step} failed: {said}")]
    Failed {
        /// The command.
        step: String,
        /// Its words.
        said: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_as_a_shell_would_take_it() {
        let step = Step::new("certutil").args(&["-n", "Doorward local CA 1", "-t", "C,,", "it's", ""]);
        let step = step.arg("/srv/a b/ca.pem").through(Path::new("/usr/bin/sudo"));
        let shown = r"/usr/bin/sudo certutil -n 'Doorward local CA 1' -t C,, 'it'\''s' '' '/srv/a b/ca.pem'";
        assert_eq!(step.to_string(), shown);
    }

    #[test]
    fn a_step_that_fails_says_what_it_said() {
        assert!(Step::new("true").run().is_ok());
        let error = Step::new("ls").arg("/nowhere/at/all").run().unwrap_err().to_string();
        assert!(error.starts_with("ls /nowhere/at/all failed: ") && error.contains("No such file"), "{error}");
        assert!(matches!(Step::new("/nowhere/at/all").run(), Err(StepError::Start { .. })));
        let error = Step::new("false").run().unwrap_err().to_string();
        assert!(error.contains("exit status: 1"), "{error}");
    }
}
