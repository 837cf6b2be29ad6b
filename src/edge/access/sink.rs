//! Where lines go: a standard stream, a file that can be opened again, the system log.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IsTerminal, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use crate::base::clock;

/// A thread of its own, which writes for others too.
const WRITER: Patience = Patience { at_once: 5000, in_all: 10_000 };
/// The same behind a reader that took nothing for all of that time.
const WRITER_GIVEN_UP: Patience = Patience { at_once: 20, in_all: 10_000 };
/// A thread that has better things to do than to wait for a reader.
const OFFER: Patience = Patience { at_once: 20, in_all: 20 };
const OFFER_STALLED: Patience = Patience { at_once: 0, in_all: 0 };
/// For so long after an offer had to wait, the next ones do not: a reader that is only slow would hold the thread up as much
/// as one that has stopped.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// The local system log's socket.
const SYSLOG_SOCKET: &str = "/dev/log";

/// A place for lines, before it is opened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The standard error stream.
    Stderr,
    /// The standard output stream.
    Stdout,
    /// The local system log at `/dev/log`.
    Syslog,
    /// A file, appended to, made with mode 0640.
    File(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Stderr => f.write_str("stderr"),
            Target::Stdout => f.write_str("stdout"),
            Target::Syslog => f.write_str("syslog"),
            Target::File(path) => path.display().fmt(f),
        }
    }
}

/// How grave a line is, for the system log (RFC 3164 section 4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// 3
    Error,
    /// 4
    Warning,
    /// 6
    Info,
    /// 7
    Debug,
}

/// An open place for lines, shared between threads. A write holds its lock.
#[derive(Debug)]
pub struct Output {
    target: Target,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sink: Sink,
    /// The last write ended within a line.
    torn: bool,
    /// When a line that was offered last had to wait.
    stalled: Option<Instant>,
    /// Nobody took anything of the last lines that were written.
    given_up: bool,
}

/// How many milliseconds a writer waits for a slow reader.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Until it takes something.
    at_once: u32,
    /// Until it has taken everything.
    in_all: u32,
}

#[derive(Debug)]
enum Sink {
    /// The standard error stream, and what it leads to.
    Stderr(FileType),
    Stdout(FileType),
    Syslog(Syslog),
    File(File),
    /// A file that is a pipe.
    Pipe(File),
}

impl Output {
    /// Opens `target`. A file is made if it does not exist; the system log is looked for at the first line.
    pub fn open(target: Target) -> io::Result<Output> {
        let sink = match &target {
            Target::Stderr => Sink::Stderr(kind_of(io::stderr().as_fd())),
            Target::Stdout => Sink::Stdout(kind_of(io::stdout().as_fd())),
            Target::Syslog => Sink::Syslog(Syslog::at(PathBuf::from(SYSLOG_SOCKET))),
            Target::File(path) => open_file(path)?,
        };
        Ok(Output { target, state: Mutex::new(State { sink, torn: false, stalled: None, given_up: false }) })
    }

    /// What was opened.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether somebody looks at it: only then do colours make sense.
    pub fn is_terminal(&self) -> bool {
        match self.target {
            Target::Stderr => io::stderr().is_terminal(),
            Target::Stdout => io::stdout().is_terminal(),
            Target::Syslog | Target::File(_) => false,
        }
    }

    /// Writes whole lines, each with its line feed. On an error some of the lines may be lost, never a part of a later
    /// one. Waits for a reader that takes something every 5 s, and all of it in 10; behind one that has stopped, 20 ms until it
    /// goes on.
    pub fn write(&self, severity: Severity, lines: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let patience = if state.given_up { WRITER_GIVEN_UP } else { WRITER };
        let (written, result) = state.write(severity, lines, patience);
        state.given_up = is_late(&result) && written == 0;
        result
    }

    /// The same for a thread that has better things to do than to wait for a reader: 20 ms at most, once in a second.
    pub fn offer(&self, severity: Severity, lines: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let start = Instant::now();
        let stalled = state.stalled.is_some_and(|last| start.saturating_duration_since(last) < IMPATIENCE);
        let (_, result) = state.write(severity, lines, if stalled { OFFER_STALLED } else { OFFER });
        if !stalled && (is_late(&result) || start.elapsed() >= Duration::from_millis(1)) {
            state.stalled = Some(Instant::now());
        }
        result
    }

    /// Opens a file again by its name, after somebody has moved it away. On an error the old one stays in use.
    /// Other outputs have nothing to open.
    pub fn reopen(&self) -> io::Result<()> {
        let Target::File(path) = &self.target else { return Ok(()) };
        let sink = open_file(path)?;
        *self.state() = State { sink, torn: false, stalled: None, given_up: false };
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How many bytes were written, and what stopped it.
    fn write(&mut self, severity: Severity, lines: &[u8], patience: Patience) -> (usize, io::Result<()>) {
        let State { sink, torn, .. } = self;
        match sink {
            Sink::Syslog(syslog) => (0, syslog.write(severity, lines)),
            Sink::Stderr(kind) => write_whole(lines, torn, patience, |rest| put(io::stderr().as_fd(), *kind, rest)),
            Sink::Stdout(kind) => write_whole(lines, torn, patience, |rest| put(io::stdout().as_fd(), *kind, rest)),
            Sink::File(file) => write_whole(lines, torn, patience, |rest| file.write(rest)),
            Sink::Pipe(file) => write_whole(lines, torn, patience, |rest| file.write(whole_lines(rest))),
        }
    }
}

fn is_late(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn kind_of(stream: BorrowedFd<'_>) -> FileType {
    fstat(stream).map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
}

/// Writes to a standard stream. One that we were given may block, and it is not ours to change that: the write itself says
/// that it must not, as another writer of the same pipe could take the room between a question and a write.
fn put(stream: BorrowedFd<'_>, kind: FileType, bytes: &[u8]) -> io::Result<usize> {
    if kind == FileType::RegularFile {
        // Some file systems would refuse what only takes a moment.
        return Ok(rustix::io::write(stream, bytes)?);
    }
    let bytes = whole_lines(bytes);
    if matches!(kind, FileType::Fifo | FileType::Socket) {
        // RWF_NOWAIT (preadv2(2)); an offset of -1 is wherever the stream is.
        match pwritev2(stream, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            outcome => return Ok(outcome?),
        }
    }
    put_if_ready(stream, bytes)
}

/// The same for terminals and devices, and for older kernels.
fn put_if_ready(stream: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let mut asked = [PollFd::from_borrowed_fd(stream, PollFlags::OUT)];
    if poll(&mut asked, Some(&Timespec::default()))? == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(rustix::io::write(stream, whole_lines(bytes))?)
}

/// As many lines as a pipe takes at once or not at all (pipe(7), PIPE_BUF): others may write to the same one.
fn whole_lines(bytes: &[u8]) -> &[u8] {
    const AT_ONCE: usize = 4096;
    let piece = bytes.get(..AT_ONCE).unwrap_or(bytes);
    let end = memchr::memrchr(b'\n', piece).map_or(piece.len(), |last| last + 1);
    piece.get(..end).unwrap_or(piece)
}

fn open_file(path: &Path) -> io::Result<Sink> {
    // Without NONBLOCK a pipe that nobody reads would hold the start for ever.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
    Ok(if file.metadata()?.file_type().is_fifo() { Sink::Pipe(file) } else { Sink::File(file) })
}

/// Writes whole lines; `torn` remembers that the last one before them has no end yet. How much of them was written, and what
/// stopped it.
fn write_whole(
    lines: &[u8],
    torn: &mut bool,
    patience: Patience,
    mut write: impl FnMut(&[u8]) -> io::Result<usize>,
) -> (usize, io::Result<()>) {
    if *torn {
        let (_, result) = write_fully(b"\n", patience, &mut write);
        if result.is_err() {
            return (0, result);
        }
        *torn = false;
    }
    let (written, result) = write_fully(lines, patience, write);
    *torn = written > 0 && lines.get(written - 1) != Some(&b'\n');
    (written, result)
}

/// Writes all of `bytes`; how many were written, and what stopped it.
fn write_fully(
    bytes: &[u8],
    patience: Patience,
    mut write: impl FnMut(&[u8]) -> io::Result<usize>,
) -> (usize, io::Result<()>) {
    let (mut written, mut at_once, mut in_all) = (0, patience.at_once, patience.in_all);
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match write(rest) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(length) => {
                written += length;
                at_once = patience.at_once;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && at_once.min(in_all) > 0 => {
                at_once -= 1;
                in_all -= 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// The system log: one datagram a line, never waited for.
#[derive(Debug)]
struct Syslog {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Syslog {
    fn at(path: PathBuf) -> Syslog {
        Syslog { path, socket: None }
    }

    fn write(&mut self, severity: Severity, lines: &[u8]) -> io::Result<()> {
        // Facility 3: system daemons.
        let priority = 3 * 8
            + match severity {
                Severity::Error => 3,
                Severity::Warning => 4,
                Severity::Info => 6,
                Severity::Debug => 7,
            };
        let time = clock::rfc3164(SystemTime::now());
        let head = format!("<{priority}>{time} doorward[{}]: ", std::process::id());
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let datagram = [head.as_bytes(), line].concat();
            if self.send(&datagram).is_err() {
                // The daemon may have been started again since.
                self.socket = None;
                self.send(&datagram)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                socket.connect(&self.path)?;
                self.socket.insert(socket)
            }
        };
        socket.send(datagram).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_appended_to_and_opened_again_after_a_rename() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("x.log"), folder.path().join("x.log.1"));
        std::fs::write(&path, "before\n").unwrap();
        let output = Output::open(Target::File(path.clone())).unwrap();
        output.write(Severity::Info, b"one\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        output.write(Severity::Info, b"two\n").unwrap();
        output.reopen().unwrap();
        output.write(Severity::Info, b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "before\none\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & !0o640, 0, "{mode:o}");
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_stays_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let output = Output::open(Target::File(path.clone())).unwrap();
        let moved = folder.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(output.reopen().is_err());
        output.write(Severity::Info, b"kept\n").unwrap();
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "kept\n");
    }

    #[test]
    fn what_stops_a_write_is_told_with_what_was_written() {
        let mut room = 5;
        let (written, result) = write_fully(b"12345678", OFFER, |rest| match room {
            0 => Err(io::ErrorKind::StorageFull.into()),
            n => {
                let n = rest.len().min(n).min(2);
                room -= n;
                Ok(n)
            }
        });
        assert_eq!((written, result.unwrap_err().kind()), (5, io::ErrorKind::StorageFull));
    }

    #[test]
    fn a_line_that_is_offered_waits_for_a_reader_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
        let mut reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let output = Output::open(Target::File(path)).unwrap();
        let full = |result: io::Result<()>| result.unwrap_err().kind() == io::ErrorKind::WouldBlock;
        let line = [vec![b'x'; 999], b"\n".to_vec()].concat();
        let mut fitted = 0;
        while output.offer(Severity::Info, &line).is_ok() {
            fitted += 1;
        }
        let start = Instant::now();
        assert!((0..1000).all(|_| full(output.offer(Severity::Info, &line))));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        io::Read::read_exact(&mut reader, &mut vec![0; 1000 * fitted]).unwrap();
        output.offer(Severity::Info, b"back\n").unwrap();
        let mut rest = [0; 2000];
        let length = io::Read::read(&mut reader, &mut rest).unwrap();
        let rest = std::str::from_utf8(&rest[..length]).unwrap();
        assert!(rest.ends_with("\nback\n") || rest == "back\n", "a torn line has an end: {rest:?}");
    }

    #[test]
    fn a_writer_gives_up_on_a_reader_that_has_stopped_until_it_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
        let mut reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let output = Output::open(Target::File(path)).unwrap();
        let lines = b"x\n".repeat(512 * 1024);
        let start = Instant::now();
        assert!(is_late(&output.write(Severity::Info, &lines)));
        let waited = start.elapsed();
        assert!(waited >= Duration::from_secs(5), "{waited:?}");
        // Something was taken of those, nothing of these.
        assert!(is_late(&output.write(Severity::Info, &lines)));
        let start = Instant::now();
        assert!((0..20).all(|_| is_late(&output.write(Severity::Info, &lines))));
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        // From here on somebody reads, slowly.
        let reading = std::thread::spawn(move || {
            let mut buffer = [0; 32 * 1024];
            let mut read = 0;
            while read < 2 * 1024 * 1024 {
                std::thread::sleep(Duration::from_millis(1));
                read += io::Read::read(&mut reader, &mut buffer).unwrap();
            }
            reader
        });
        while is_late(&output.write(Severity::Info, &lines)) {}
        // All of them, however long that takes.
        output.write(Severity::Info, &lines).unwrap();
        drop(reading.join().unwrap());
    }

    #[test]
    fn a_standard_stream_that_nobody_reads_holds_nobody_up() {
        let to_pipe = |stream: BorrowedFd<'_>, bytes: &[u8]| put(stream, FileType::Fifo, bytes);
        for put in [to_pipe, put_if_ready] {
            let (reader, writer) = io::pipe().unwrap();
            let mut written = 0;
            let error = loop {
                match put(writer.as_fd(), &[b'x'; 8192]) {
                    Ok(count) => written += count,
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert!(written >= 4096);
            drop(reader);
            assert_eq!(put(writer.as_fd(), b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
        // Whatever a service is given.
        let file = tempfile::tempfile().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let device = OpenOptions::new().write(true).open("/dev/null").unwrap();
        for stream in [file.as_fd(), socket.as_fd(), device.as_fd()] {
            assert_eq!(put(stream, kind_of(stream), b"line\n").unwrap(), 5);
        }
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let output = Output::open(Target::File(PathBuf::from("/dev/full"))).unwrap();
        assert_eq!(output.write(Severity::Info, b"x\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn the_system_log_gets_a_datagram_a_line_and_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut syslog = Syslog::at(path.clone());
        assert!(syslog.write(Severity::Info, b"lost\n").is_err());
        for _ in 0..2 {
            let daemon = UnixDatagram::bind(&path).unwrap();
            syslog.write(Severity::Warning, b"one\ntwo\n").unwrap();
            for text in ["one", "two"] {
                let mut buffer = [0; 200];
                let length = daemon.recv(&mut buffer).unwrap();
                let line = std::str::from_utf8(&buffer[..length]).unwrap();
                assert!(line.starts_with("<28>"), "{line}");
                assert!(line.ends_with(&format!(" doorward[{}]: {text}", std::process::id())), "{line}");
            }
            drop(daemon);
            std::fs::remove_file(&path).unwrap();
        }
    }
}
