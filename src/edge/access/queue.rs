//! The queue between workers and the thread that writes, and that thread.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::sink::{Output, Severity, Target};

/// Lines that may wait. More are dropped: the log must not hold a request.
const LONGEST_QUEUE: usize = 8192;
/// How long the thread lets lines gather after a write. While it does, a worker's line costs no wake-up.
const GATHER: Duration = Duration::from_millis(10);
/// Dropped lines are told at most this often.
const TELL_DROPPED: Duration = Duration::from_secs(1);
/// Failed writes are told at most this often.
const TELL_LOST: Duration = Duration::from_secs(60);

/// The bounded queue of lines.
#[derive(Debug)]
pub(super) struct Queue {
    items: SyncSender<Item>,
    counts: Arc<Counts>,
    open: Mutex<HashMap<Target, Weak<Output>>>,
}

#[derive(Debug)]
enum Item {
    Line(Arc<Output>, Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

#[derive(Debug, Default)]
struct Counts {
    dropped: AtomicU64,
    lost: AtomicU64,
}

impl Queue {
    /// Starts the thread that writes; it ends when the queue and all that write to it are gone.
    pub(super) fn start() -> io::Result<Queue> {
        let (queue, mut writer) = Queue::new();
        thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run())?;
        Ok(queue)
    }

    fn new() -> (Queue, Writer) {
        let (items, inbox) = sync_channel(LONGEST_QUEUE);
        let counts = Arc::new(Counts::default());
        let writer = Writer {
            inbox,
            counts: counts.clone(),
            dropped: Telling::new(TELL_DROPPED),
            lost: Telling::new(TELL_LOST),
        };
        (Queue { items, counts, open: Mutex::default() }, writer)
    }

    /// Puts a line into the queue, or drops and counts it.
    pub(super) fn put(&self, output: &Arc<Output>, line: Vec<u8>) {
        if self.items.try_send(Item::Line(output.clone(), line)).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The open output of this target; opens it if there is none.
    pub(super) fn output(&self, target: &Target) -> io::Result<Arc<Output>> {
        let mut open = self.open();
        open.retain(|_, output| output.strong_count() > 0);
        if let Some(output) = open.get(target).and_then(Weak::upgrade) {
            return Ok(output);
        }
        let output = Arc::new(Output::open(target.clone())?);
        open.insert(target.clone(), Arc::downgrade(&output));
        Ok(output)
    }

    /// All that is open.
    pub(super) fn outputs(&self) -> Vec<Arc<Output>> {
        self.open().values().filter_map(Weak::upgrade).collect()
    }

    /// Whether all lines so far were written within `deadline`.
    pub(super) fn flush(&self, deadline: Duration) -> bool {
        let start = Instant::now();
        let (done, written) = sync_channel(1);
        let mut item = Item::Flush(done);
        loop {
            match self.items.try_send(item) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(refused)) => item = refused,
            }
            if start.elapsed() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        written.recv_timeout(deadline.saturating_sub(start.elapsed())).is_ok()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn lost(&self) -> u64 {
        self.counts.lost.load(Ordering::Relaxed)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Target, Weak<Output>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's own.
struct Writer {
    inbox: Receiver<Item>,
    counts: Arc<Counts>,
    dropped: Telling,
    lost: Telling,
}

impl Writer {
    fn run(&mut self) {
        while let Some(flushed) = self.write_next() {
            if !flushed {
                thread::sleep(GATHER);
            }
        }
    }

    /// Waits for lines and writes all that have gathered, one write for each output. Whether somebody waited for that;
    /// `None` when there will be no more.
    fn write_next(&mut self) -> Option<bool> {
        let first = if self.has_news() {
            match self.inbox.recv_timeout(TELL_DROPPED) {
                Ok(item) => Some(item),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        } else {
            Some(self.inbox.recv().ok()?)
        };
        let mut batches: Vec<(Arc<Output>, Vec<u8>, u64)> = Vec::new();
        let mut waiting = None;
        let rest = std::iter::from_fn(|| self.inbox.try_recv().ok());
        for item in first.into_iter().chain(rest).take(LONGEST_QUEUE) {
            match item {
                Item::Line(output, line) => match batches.iter_mut().find(|(known, ..)| Arc::ptr_eq(known, &output)) {
                    Some((_, lines, count)) => {
                        lines.extend_from_slice(&line);
                        *count += 1;
                    }
                    None => batches.push((output, line, 1)),
                },
                Item::Flush(done) => {
                    waiting = Some(done);
                    break;
                }
            }
        }
        for (output, lines, count) in &batches {
            if let Err(error) = output.write(Severity::Info, lines) {
                let lost = self.counts.lost.fetch_add(*count, Ordering::Relaxed) + count;
                if let Some(lines) = self.lost.tell(lost, Instant::now()) {
                    tracing::error!(lines, output = %output.target(), %error, "cannot write the access log");
                }
            }
        }
        if let Some(lines) = self.dropped.tell(self.counts.dropped.load(Ordering::Relaxed), Instant::now()) {
            tracing::warn!(lines, "access log lines dropped: its output is too slow");
        }
        // Outputs that nobody writes to any more are closed before anybody is told.
        drop(batches);
        let flushed = waiting.is_some();
        if let Some(done) = waiting {
            // Whoever asked may have stopped waiting.
            let _ = done.try_send(());
        }
        Some(flushed)
    }

    fn has_news(&self) -> bool {
        self.counts.dropped.load(Ordering::Relaxed) != self.dropped.told
    }
}

/// A count that is told now and then.
#[derive(Debug)]
struct Telling {
    interval: Duration,
    told: u64,
    last: Option<Instant>,
}

impl Telling {
    fn new(interval: Duration) -> Telling {
        Telling { interval, told: 0, last: None }
    }

    /// How many there are since the last time, if it is time to tell and there are any.
    fn tell(&mut self, count: u64, now: Instant) -> Option<u64> {
        let is_time = self.last.is_none_or(|last| now.saturating_duration_since(last) >= self.interval);
        if count == self.told || !is_time {
            return None;
        }
        let news = count.wrapping_sub(self.told);
        self.told = count;
        self.last = Some(now);
        Some(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts_and_never_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let (queue, mut writer) = Queue::new();
        let output = queue.output(&Target::File(path.clone())).unwrap();
        for _ in 0..LONGEST_QUEUE + 5 {
            queue.put(&output, b"x\n".to_vec());
        }
        assert_eq!(queue.dropped(), 5);
        assert!(!queue.flush(Duration::from_millis(5)), "nobody writes");
        assert_eq!(writer.write_next(), Some(false));
        assert_eq!(std::fs::read(&path).unwrap().len(), LONGEST_QUEUE * 2);
        assert_eq!(writer.dropped.told, 5);
        queue.put(&output, b"y\n".to_vec());
        drop((queue, output));
        assert_eq!(writer.write_next(), Some(false));
        assert_eq!(writer.write_next(), None);
    }

    #[test]
    fn a_full_disk_costs_lines_and_nothing_else() {
        let (queue, mut writer) = Queue::new();
        let output = queue.output(&Target::File("/dev/full".into())).unwrap();
        for _ in 0..3 {
            queue.put(&output, b"x\n".to_vec());
        }
        assert_eq!(writer.write_next(), Some(false));
        assert_eq!((queue.lost(), queue.dropped(), writer.lost.told), (3, 0, 3));
    }

    #[test]
    fn a_count_is_told_now_and_then() {
        let mut telling = Telling::new(Duration::from_secs(60));
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(telling.tell(0, after(0)), None);
        assert_eq!(telling.tell(2, after(1)), Some(2));
        assert_eq!(telling.tell(9, after(60)), None);
        assert_eq!(telling.tell(10, after(61)), Some(8));
        assert_eq!(telling.tell(10, after(200)), None);
    }
}
