//! The access log: one line a request, two a socket, written off the request path.
//!
//! A worker formats its line and puts it in a bounded queue without ever waiting; one thread writes what has gathered.
//! A line that finds the queue full is dropped and counted.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use self::format::Format;
use self::queue::Queue;
use self::sink::{Output, Target};
use crate::base::pattern::PathPattern;

pub mod escape;
pub mod format;
mod queue;
pub mod sink;

/// What there is to tell of one request. Everything that a client wrote is as it wrote it; formats escape it.
#[derive(Debug, Clone)]
pub struct Record<'r> {
    /// When the request came.
    pub time: SystemTime,
    /// The client's address, behind trusted proxies too.
    pub client: IpAddr,
    /// The name of the site; empty if there is none.
    pub site: &'r str,
    /// `https` or `http`
    pub scheme: &'r str,
    /// The host that was asked for.
    pub host: Option<&'r [u8]>,
    /// The method; empty if the request had none.
    pub method: &'r str,
    /// The request target as it was sent; of a malformed request, its first line as far as it is known.
    pub target: &'r [u8],
    /// The decoded, canonical path, for `skip_paths`; empty if it has none.
    pub path: &'r [u8],
    /// The version; `None` if the request line was not one.
    pub version: Option<::http::Version>,
    /// The answer's status; for both lines of a socket 101, or 200 over HTTP/2.
    pub status: u16,
    /// Bytes of the answer's body; at the end of a socket, bytes to the client.
    pub bytes_sent: u64,
    /// Bytes of the request's body; at the end of a socket, bytes to the back end.
    pub bytes_received: u64,
    /// From the head to the end of the answer or of the socket.
    pub duration: Duration,
    /// Referer
    pub referer: Option<&'r [u8]>,
    /// User-Agent
    pub user_agent: Option<&'r [u8]>,
    /// The name in Basic authentication.
    pub user: Option<&'r [u8]>,
    /// The back end that answered.
    pub upstream: Option<&'r str>,
    /// Whether this is a line of a socket.
    pub upgrade: Upgrade,
    /// The status of the first Close frame.
    pub close_code: Option<u16>,
    /// The id of what went wrong.
    pub fault: Option<&'r str>,
    /// `TLSv1.3`
    pub tls: Option<&'r str>,
    /// The id of the request.
    pub request_id: Option<&'r str>,
}

/// Which line of a socket a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// An ordinary request.
    None,
    /// A socket was opened.
    Open,
    /// A socket has ended.
    Close,
}

/// How a site writes its access log; part of the snapshot.
#[derive(Debug)]
pub struct SiteLog {
    queue: Arc<Queue>,
    output: Arc<Output>,
    format: Format,
    skip_paths: Vec<PathPattern>,
    mask_query: Vec<String>,
}

impl SiteLog {
    /// Queues the line of `record`, unless its path is one of `skip_paths` and its status below 400. Never waits.
    pub fn write(&self, record: &Record<'_>) {
        if self.skips(record.path, record.status) {
            return;
        }
        let mut line = Vec::with_capacity(256);
        self.format.write(record, &self.mask_query, &mut line);
        self.queue.put(&self.output, line);
    }

    /// Whether an answer of this status to this path has no line.
    pub fn skips(&self, path: &[u8], status: u16) -> bool {
        status < 400 && self.skip_paths.iter().any(|pattern| pattern.matches(path))
    }
}

/// The access log of the process: its thread, its queue and what is open. It outlives every reload.
#[derive(Debug)]
pub struct AccessLog {
    queue: Arc<Queue>,
}

impl AccessLog {
    /// Starts the thread that writes.
    pub fn start() -> io::Result<AccessLog> {
        Ok(AccessLog { queue: Arc::new(Queue::start()?) })
    }

    /// What a site needs to write to `target`. Sites, and snapshots, with the same target share one open output, which
    /// is closed when the last of them is gone.
    pub fn site(
        &self,
        target: &Target,
        format: Format,
        skip_paths: Vec<PathPattern>,
        mask_query: Vec<String>,
    ) -> io::Result<SiteLog> {
        let output = self.queue.output(target)?;
        Ok(SiteLog { queue: self.queue.clone(), output, format, skip_paths, mask_query })
    }

    /// Opens all files again (USR1), and returns those that could not be opened; they go on as they were. Does file
    /// I/O: not for a worker.
    pub fn reopen(&self) -> Vec<(Target, io::Error)> {
        self.queue
            .outputs()
            .into_iter()
            .filter_map(|output| Some((output.target().clone(), output.reopen().err()?)))
            .collect()
    }

    /// Waits until every line that was queued before is written, at most for `deadline`. Whether it is. Blocks the
    /// thread: for the end of the process.
    pub fn flush(&self, deadline: Duration) -> bool {
        self.queue.flush(deadline)
    }

    /// Lines dropped because the queue was full, since the start.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped()
    }

    /// Lines lost because they could not be written (disk full), since the start.
    pub fn lost(&self) -> u64 {
        self.queue.lost()
    }
}

#[cfg(test)]
mod tests {
    use super::format::Template;
    use super::format::tests::record;
    use super::*;

    fn file(folder: &tempfile::TempDir, name: &str) -> Target {
        Target::File(folder.path().join(name))
    }

    fn read(folder: &tempfile::TempDir, name: &str) -> String {
        std::fs::read_to_string(folder.path().join(name)).unwrap()
    }

    fn template(text: &str) -> Format {
        Format::Template(Template::parse(text).unwrap())
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn lines_of_many_threads_arrive_whole_and_sites_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let log = AccessLog::start().unwrap();
        let site = |text, name| Arc::new(log.site(&file(&folder, name), template(text), vec![], vec![]).unwrap());
        let (a, b, c) = (site("a {status}", "one"), site("b {status}", "one"), site("c {status}", "two"));
        assert!(Arc::ptr_eq(&a.output, &b.output) && !Arc::ptr_eq(&a.output, &c.output));
        std::thread::scope(|scope| {
            for site in [&a, &b, &c] {
                scope.spawn(|| (0..500).for_each(|_| site.write(&record())));
            }
        });
        assert!(log.flush(SOON));
        let one = read(&folder, "one");
        assert_eq!(one.lines().filter(|l| *l == "a 200").count(), 500);
        assert_eq!(one.lines().filter(|l| *l == "b 200").count(), 500);
        assert_eq!((one.lines().count(), read(&folder, "two").lines().count(), log.dropped()), (1000, 500, 0));
    }

    #[test]
    fn skipped_paths_have_lines_for_errors_only() {
        let folder = tempfile::tempdir().unwrap();
        let log = AccessLog::start().unwrap();
        let skip = vec![PathPattern::parse("/health/*").unwrap()];
        let site = log.site(&file(&folder, "x"), template("{target} {status}"), skip, vec!["token".into()]).unwrap();
        for (path, status) in [("/health", 200), ("/health", 404), ("/healthy", 204), ("/health/x", 399)] {
            let record = Record { path: path.as_bytes(), target: path.as_bytes(), status, ..record() };
            site.write(&record);
        }
        site.write(&record());
        assert!(log.flush(SOON));
        assert_eq!(read(&folder, "x"), "/health 404\n/healthy 204\n/socket.io/?EIO=4&token=*** 200\n");
    }

    #[test]
    fn files_are_opened_again_after_a_rename() {
        let folder = tempfile::tempdir().unwrap();
        let log = AccessLog::start().unwrap();
        let site = log.site(&file(&folder, "x"), template("{status}"), vec![], vec![]).unwrap();
        site.write(&record());
        assert!(log.flush(SOON));
        std::fs::rename(folder.path().join("x"), folder.path().join("x.1")).unwrap();
        assert!(log.reopen().is_empty());
        site.write(&Record { status: 404, ..record() });
        assert!(log.flush(SOON));
        assert_eq!((read(&folder, "x.1"), read(&folder, "x")), ("200\n".to_owned(), "404\n".to_owned()));
        std::fs::remove_file(folder.path().join("x")).unwrap();
        std::fs::create_dir(folder.path().join("x")).unwrap();
        assert_eq!(log.reopen().into_iter().map(|(target, _)| target).collect::<Vec<_>>(), [file(&folder, "x")]);
        drop(site);
        assert!(log.flush(SOON));
        assert!(log.reopen().is_empty(), "what nobody writes to is closed");
    }
}
