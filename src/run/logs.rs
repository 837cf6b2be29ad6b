//! The program's own log: `2026-11-21T02:30:21Z ERROR message key=value`, one line an event.
//!
//! Level and output change with a reload; a file is opened again on USR1. Control bytes are escaped, whoever they come
//! from, long lines are cut, and a message that repeats itself too often is counted instead of written. Whoever writes a
//! line does not wait for its reader: what an output does not take is counted, and told when it takes lines again.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::reload;

use crate::base::clock;
use crate::config::model::Level;
use crate::edge::access::format::LONGEST_LINE;
use crate::edge::access::sink::{Output, Severity, Target};

/// Lines of one kind of message within a second.
const LINES_A_SECOND: u32 = 50;

/// The program log, while it runs.
#[derive(Debug)]
pub struct Logs {
    filter: reload::Handle<Targets, Registry>,
    output: Arc<ArcSwap<Output>>,
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The output cannot be opened.
    #[error("cannot open the log {target}")]
    Open {
        /// What was to be opened.
        target: Target,
        /// Why it could not be.
        source: io::Error,
    },
    /// There is a log in this process already.
    #[error("the log is set up already")]
    Taken,
}

impl Logs {
    /// Sets up the log of this process. Once only.
    pub fn start(level: Level, target: Target) -> Result<Logs, LogsError> {
        let (subscriber, logs) = Logs::build(level, target)?;
        tracing::subscriber::set_global_default(subscriber).map_err(|_| LogsError::Taken)?;
        Ok(logs)
    }

    /// Changes level and output, as a reload does. On an error nothing has changed.
    pub fn change(&self, level: Level, target: Target) -> Result<(), LogsError> {
        if *self.output.load().target() != target {
            self.output.store(Arc::new(open(target)?));
        }
        // Fails only when the subscriber is gone, and the log with it.
        let _ = self.filter.reload(filter(level));
        Ok(())
    }

    /// Opens a file again by its name (USR1). On an error the old one stays in use.
    pub fn reopen(&self) -> Result<(), LogsError> {
        let output = self.output.load_full();
        output.reopen().map_err(|source| LogsError::Open { target: output.target().clone(), source })
    }

    fn build(level: Level, target: Target) -> Result<(impl Subscriber + Send + Sync + use<>, Logs), LogsError> {
        let output = Arc::new(ArcSwap::from_pointee(open(target)?));
        let (filter, handle) = reload::Layer::new(filter(level));
        let lines = Lines { output: output.clone(), repeats: Mutex::default(), lost: AtomicU64::new(0) };
        Ok((Registry::default().with(filter).with(lines), Logs { filter: handle, output }))
    }
}

/// From now on a panic is one line of the log. It ends the task that it is in and nothing else; it is a fault of ours.
pub fn tell_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let why = info.payload_as_str().unwrap_or("for an unknown reason");
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or_default();
        tracing::error!(place, thread, "a fault in doorward itself has ended what it was at, please report it: {why}");
        // Whoever wants to see the way there.
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            before(info);
        }
    }));
}

fn open(target: Target) -> Result<Output, LogsError> {
    Output::open(target.clone()).map_err(|source| LogsError::Open { target, source })
}

/// Ours from `level` on; of the libraries' inner life no more than warnings, and none of HTTP/2, where they are about
/// what clients do wrong: here that would only be a way to fill the disk.
fn filter(level: Level) -> Targets {
    let ours = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    };
    let libraries = ours.min(LevelFilter::WARN);
    Targets::new().with_default(libraries).with_target("h2", LevelFilter::ERROR).with_target("doorward", ours)
}

/// Writes events as lines.
struct Lines {
    output: Arc<ArcSwap<Output>>,
    repeats: Mutex<HashMap<Kind, Repeats>>,
    /// Lines that the output did not take.
    lost: AtomicU64,
}

/// What is counted together: one place in the source, and for requests that failed, one status. A flood of 502 is not to
/// hide a 500.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind(Identifier, u64);

impl Kind {
    fn of(event: &Event<'_>) -> Kind {
        let mut status = Status(0);
        event.record(&mut status);
        Kind(event.metadata().callsite(), status.0)
    }
}

/// The field `status`.
struct Status(u64);

impl Visit for Status {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "status" {
            self.0 = value;
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// How often one kind has spoken within a second.
struct Repeats {
    since: Instant,
    lines: u32,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(held_back) = self.admit(Kind::of(event), Instant::now()) else { return };
        let output = self.output.load();
        let bare = *output.target() == Target::Syslog;
        let line = line(event, SystemTime::now(), output.is_terminal(), held_back, bare);
        // There is nowhere left to tell that the log cannot be written, until it can.
        if output.offer(severity(*event.metadata().level()), line.as_bytes()).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let time = if bare { String::new() } else { format!("{} ", clock::rfc3339(SystemTime::now())) };
            let told = format!("{time}WARN {lost} lines of this log were lost: its output did not take them\n");
            if output.offer(Severity::Warning, told.as_bytes()).is_err() {
                self.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
    }
}

impl Lines {
    /// Whether one more line of this kind may be written, and how many were held back before it.
    fn admit(&self, kind: Kind, now: Instant) -> Option<u32> {
        let mut repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
        let repeats = repeats.entry(kind).or_insert(Repeats { since: now, lines: 0 });
        let mut held_back = 0;
        if now.saturating_duration_since(repeats.since).as_secs() > 0 {
            held_back = repeats.lines.saturating_sub(LINES_A_SECOND);
            *repeats = Repeats { since: now, lines: 0 };
        }
        repeats.lines = repeats.lines.saturating_add(1);
        (repeats.lines <= LINES_A_SECOND).then_some(held_back)
    }
}

fn severity(level: tracing::Level) -> Severity {
    match level {
        tracing::Level::ERROR => Severity::Error,
        tracing::Level::WARN => Severity::Warning,
        tracing::Level::INFO => Severity::Info,
        _ => Severity::Debug,
    }
}

/// The line of an event. The system log puts the time in front by itself.
fn line(event: &Event<'_>, time: SystemTime, colour: bool, held_back: u32, bare: bool) -> String {
    let level = *event.metadata().level();
    let mut line = if bare { String::new() } else { format!("{} ", clock::rfc3339(time)) };
    let (on, off) = match level {
        _ if !colour => ("", ""),
        tracing::Level::ERROR => ("\x1b[31m", "\x1b[0m"),
        tracing::Level::WARN => ("\x1b[33m", "\x1b[0m"),
        tracing::Level::INFO => ("\x1b[32m", "\x1b[0m"),
        _ => ("\x1b[2m", "\x1b[0m"),
    };
    let _ = write!(line, "{on}{level}{off}");
    let mut fields = Fields::default();
    event.record(&mut fields);
    line.push_str(&fields.message);
    line.push_str(&fields.rest);
    if held_back > 0 {
        let _ = write!(line, " held_back={held_back}");
    }
    if line.len() >= LONGEST_LINE {
        let cut = (0..=LONGEST_LINE - 4).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(cut);
        line.push_str("...");
    }
    line.push('\n');
    line
}

/// Message and fields, each with a space in front.
#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.add(field, format_args!("{text}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}

impl Fields {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // Writing into a string does not fail.
        if field.name() == "message" {
            self.message.push(' ');
            let _ = Escaped { out: &mut self.message, quoted: false }.write_fmt(value);
            return;
        }
        let _ = write!(self.rest, " {}=", field.name());
        let start = self.rest.len();
        let _ = Escaped { out: &mut self.rest, quoted: false }.write_fmt(value);
        let written = self.rest.get(start..).unwrap_or_default();
        if written.is_empty() || written.contains([' ', '"', '=']) {
            self.rest.truncate(start);
            self.rest.push('"');
            let _ = Escaped { out: &mut self.rest, quoted: true }.write_fmt(value);
            self.rest.push('"');
        }
    }
}

/// Text without control characters: they are written as `\xXX`, and within quotes the quote and the backslash too.
struct Escaped<'o> {
    out: &'o mut String,
    quoted: bool,
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            // Nothing beyond the longest line is shown: neither is it worth the memory.
            if self.out.len() > LONGEST_LINE {
                break;
            }
            match c {
                c if c.is_control() => write!(self.out, "\\x{:02X}", u32::from(c))?,
                // U+2028 and the overrides of direction rearrange what a terminal shows.
                '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => write!(self.out, "{}", c.escape_unicode())?,
                '"' | '\\' if self.quoted => {
                    self.out.push('\\');
                    self.out.push(c);
                }
                c => self.out.push(c),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing::Callsite as _;

    use super::*;

    struct Run {
        folder: tempfile::TempDir,
        logs: Logs,
        _guard: tracing::subscriber::DefaultGuard,
    }

    fn run(level: Level) -> Run {
        let folder = tempfile::tempdir().unwrap();
        let (subscriber, logs) = Logs::build(level, Target::File(folder.path().join("log"))).unwrap();
        Run { folder, logs, _guard: tracing::subscriber::set_default(subscriber) }
    }

    impl Run {
        fn target(&self, name: &str) -> Target {
            Target::File(self.folder.path().join(name))
        }

        /// The lines without their times.
        fn lines(&self, name: &str) -> Vec<String> {
            let text = std::fs::read_to_string(self.folder.path().join(name)).unwrap();
            text.lines().map(|line| line.split_once("Z ").unwrap().1.to_owned()).collect()
        }
    }

    #[test]
    fn an_event_is_one_line_of_plain_text() {
        let run = run(Level::Info);
        let error = LogsError::Open { target: Target::Syslog, source: io::ErrorKind::NotFound.into() };
        tracing::error!(fault = "f-1", count = 3, empty = "", site = "my site", "it broke: {}", "here");
        tracing::warn!(error = &error as &dyn std::error::Error, "no");
        tracing::info!(target: "hyper::proto", "not ours");
        tracing::debug!("not asked for");
        assert_eq!(
            run.lines("log"),
            [
                "ERROR it broke: here fault=f-1 count=3 empty=\"\" site=\"my site\"",
                "WARN no error=\"cannot open the log syslog: entity not found\"",
            ]
        );
        let text = std::fs::read_to_string(run.folder.path().join("log")).unwrap();
        assert!(text.starts_with("20") && text.as_bytes()[10] == b'T' && text.as_bytes()[19] == b'Z', "{text}");
    }

    #[test]
    fn nothing_written_by_others_ends_a_line_or_moves_a_cursor() {
        let run = run(Level::Info);
        let hostile = "x\n2026 ERROR forged \x1b[2J\u{9b}1m \"q\" \\";
        tracing::info!(agent = hostile, shown = %hostile, "said {hostile}");
        let long = "é".repeat(70_000);
        tracing::info!("{long}");
        let lines = run.lines("log");
        let escaped = r#"x\x0A2026 ERROR forged \x1B[2J\x9B1m "q" \"#;
        let quoted = r#""x\x0A2026 ERROR forged \x1B[2J\x9B1m \"q\" \\""#;
        assert_eq!(lines[0], format!("INFO said {escaped} agent={quoted} shown={quoted}"));
        assert!(lines[1].ends_with("é...") && lines[1].len() < LONGEST_LINE);
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn level_and_output_change_and_files_are_opened_again() {
        let run = run(Level::Warn);
        tracing::info!("too quiet");
        run.logs.change(Level::Debug, run.target("other")).unwrap();
        tracing::debug!("one");
        std::fs::rename(run.folder.path().join("other"), run.folder.path().join("other.1")).unwrap();
        run.logs.reopen().unwrap();
        tracing::debug!("two");
        let missing = run.logs.change(Level::Error, run.target("no/such/folder"));
        assert!(matches!(missing, Err(LogsError::Open { .. })));
        tracing::debug!("three");
        assert_eq!(run.lines("log"), [""; 0]);
        assert_eq!(run.lines("other.1"), ["DEBUG one"]);
        assert_eq!(run.lines("other"), ["DEBUG two", "DEBUG three"]);
    }

    #[test]
    fn lines_that_could_not_be_written_are_counted_and_told() {
        let run = run(Level::Info);
        run.logs.change(Level::Info, Target::File("/dev/full".into())).unwrap();
        (0..3).for_each(|_| tracing::info!("lost"));
        run.logs.change(Level::Info, run.target("other")).unwrap();
        tracing::info!("there is room again");
        tracing::info!("and still");
        let told = "WARN 3 lines of this log were lost: its output did not take them";
        assert_eq!(run.lines("other"), ["INFO there is room again", told, "INFO and still"]);
    }

    #[test]
    fn a_panic_is_one_line() {
        let run = run(Level::Info);
        let before = panic::take_hook();
        tell_panics();
        let caught = panic::catch_unwind(|| panic!("an invariant\nis broken"));
        panic::set_hook(before);
        assert!(caught.is_err());
        let lines = run.lines("log");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("please report it: an invariant\\x0Ais broken place=src/run/logs.rs:"), "{lines:?}");
    }

    #[test]
    fn a_message_that_repeats_itself_is_counted_instead() {
        let run = run(Level::Info);
        let start = Instant::now();
        let lines = Lines { output: run.logs.output.clone(), repeats: Mutex::default(), lost: AtomicU64::new(0) };
        static KIND: tracing::callsite::DefaultCallsite = {
            static META: tracing::Metadata<'static> = tracing::metadata! {
                name: "kind",
                target: "doorward",
                level: tracing::Level::INFO,
                fields: &[],
                callsite: &KIND,
                kind: tracing::metadata::Kind::EVENT,
            };
            tracing::callsite::DefaultCallsite::new(&META)
        };
        let kind = Kind(KIND.metadata().callsite(), 502);
        let admitted = (0..80).filter(|_| lines.admit(kind.clone(), start) == Some(0)).count();
        assert_eq!(admitted, 50);
        assert_eq!(lines.admit(kind.clone(), start + Duration::from_millis(900)), None);
        assert_eq!(
            lines.admit(Kind(KIND.metadata().callsite(), 500), start),
            Some(0),
            "another status is another kind"
        );
        assert_eq!(lines.admit(kind.clone(), start + Duration::from_secs(1)), Some(31));
        assert_eq!(lines.admit(kind, start + Duration::from_secs(3)), Some(0));
    }
}
