//! The bytes of a file on their way: read on the worker when the page cache has them, by a blocking thread when it has
//! not. One buffer a body, whatever the file's size.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::task::JoinHandle;

use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;
use crate::upstream::files::root::Content;

/// Up to this size a file is read at once and leaves in one piece with its head.
const SMALL: u64 = 16 * 1024;

/// Bytes of one read of a larger file.
const CHUNK: usize = 64 * 1024;

/// The bytes `first..first + length` of `content` as a body.
pub(super) fn body(content: Content, first: u64, length: u64) -> Body {
    if length == 0 {
        return Body::Empty;
    }
    let fd = match content {
        Content::Disk(fd) => fd,
        Content::Memory(file) => {
            let span = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(file.bytes.len());
            return Body::Full(file.bytes.slice(span(first)..span(first.saturating_add(length))));
        }
    };
    if let Some(bytes) = read_small(&fd, first, length) {
        return Body::Full(bytes);
    }
    Body::stream(FileBody { fd, at: first, left: length, spare: Spare::default(), state: State::Ready })
}

/// All of a span, if it is small and the page cache has it all.
pub(super) fn read_small(fd: &OwnedFd, first: u64, length: u64) -> Option<Bytes> {
    if length > SMALL {
        return None;
    }
    let mut buffer = vec![0; usize::try_from(length).ok()?];
    let read = rustix::io::preadv2(fd, &mut [IoSliceMut::new(&mut buffer)], first, ReadWriteFlags::NOWAIT).ok()?;
    (read == buffer.len()).then(|| Bytes::from(buffer))
}

struct FileBody {
    fd: Arc<OwnedFd>,
    at: u64,
    left: u64,
    spare: Spare,
    state: State,
}

enum State {
    Ready,
    Reading(JoinHandle<(Box<[u8]>, io::Result<usize>)>),
}

impl FileBody {
    fn take(&mut self, buffer: Box<[u8]>, read: usize) -> Option<Result<Frame<Bytes>, Fault>> {
        if read == 0 {
            return self.fail(Fault::new(Kind::Truncated, "the file became shorter while it was sent"));
        }
        self.at += read as u64;
        self.left -= (read as u64).min(self.left);
        Some(Ok(Frame::data(Bytes::from_owner(Lease { buffer, length: read, home: self.spare.clone() }))))
    }

    fn fail(&mut self, fault: Fault) -> Option<Result<Frame<Bytes>, Fault>> {
        self.left = 0;
        Some(Err(fault))
    }
}

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = self.get_mut();
        loop {
            if let State::Reading(task) = &mut this.state {
                let done = ready!(Pin::new(task).poll(cx));
                this.state = State::Ready;
                return Poll::Ready(match done {
                    Ok((buffer, Ok(read))) => this.take(buffer, read),
                    Ok((_, Err(error))) => this.fail(broken(error)),
                    Err(error) => this.fail(broken(io::Error::other(error))),
                });
            }
            if this.left == 0 {
                return Poll::Ready(None);
            }
            let want = usize::try_from(this.left).unwrap_or(CHUNK).min(CHUNK);
            let mut buffer = this.spare.take();
            let slices = &mut [IoSliceMut::new(buffer.get_mut(..want).unwrap_or_default())];
            match rustix::io::preadv2(&this.fd, slices, this.at, ReadWriteFlags::NOWAIT) {
                Ok(read) => return Poll::Ready(this.take(buffer, read)),
                // Not in the page cache, or a file system that cannot say (EOPNOTSUPP): let a thread wait.
                Err(Errno::AGAIN | Errno::INTR | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    let (fd, at) = (Arc::clone(&this.fd), this.at);
                    this.state = State::Reading(tokio::task::spawn_blocking(move || {
                        let read = read_waiting(&fd, &mut buffer, want, at);
                        (buffer, read)
                    }));
                }
                Err(error) => return Poll::Ready(this.fail(broken(error.into()))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

fn read_waiting(fd: &OwnedFd, buffer: &mut [u8], want: usize, at: u64) -> io::Result<usize> {
    let span = buffer.get_mut(..want).unwrap_or_default();
    loop {
        match rustix::io::pread(fd, &mut *span, at) {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

fn broken(error: io::Error) -> Fault {
    Fault::new(Kind::Internal, "cannot read the file").because(error)
}

/// The buffer that comes back when a chunk has been sent. `Bytes` asks for `Send`, so it is a lock that nobody else
/// holds; it saves zeroing 64 KiB for every read.
#[derive(Clone, Default)]
struct Spare(Arc<Mutex<Option<Box<[u8]>>>>);

impl Spare {
    fn take(&self) -> Box<[u8]> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice())
    }
}

struct Lease {
    buffer: Box<[u8]>,
    length: usize,
    home: Spare,
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or_default()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        *self.home.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::io::Write;

    fn file(bytes: &[u8]) -> Arc<OwnedFd> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file.into())
    }

    fn body(fd: Arc<OwnedFd>, first: u64, length: u64) -> Body {
        super::body(Content::Disk(fd), first, length)
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8).collect()
    }

    #[tokio::test]
    async fn spans_of_every_size_arrive_whole() {
        let bytes = pattern(300_000);
        let fd = file(&bytes);
        for (first, length) in
            [(0, 300_000), (0, 1), (299_999, 1), (5, 16 * 1024), (5, 16 * 1024 + 1), (1, 131_072), (7, 0)]
        {
            let body = body(Arc::clone(&fd), first as u64, length as u64);
            assert_eq!(body.length(), Some(length as u64));
            let got = body.collect().await.unwrap().to_bytes();
            assert!(got == bytes[first..first + length], "{first}+{length}");
        }
    }

    #[tokio::test]
    async fn chunks_that_are_kept_do_not_change_under_the_reader() {
        let bytes = pattern(200_000);
        let mut body = body(file(&bytes), 0, 200_000);
        let mut kept = Vec::new();
        while let Some(frame) = body.frame().await {
            kept.push(frame.unwrap().into_data().unwrap());
        }
        assert!(kept.len() >= 4 && kept.iter().all(|c| c.len() <= CHUNK));
        assert!(kept.concat() == bytes);
    }

    #[tokio::test]
    async fn a_file_that_shrinks_ends_in_truncated_and_not_in_silence() {
        let fd = file(&pattern(200_000));
        let mut body = body(Arc::clone(&fd), 0, 200_000);
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(!first.is_empty());
        rustix::fs::ftruncate(&fd, first.len() as u64).unwrap();
        let fault = body.frame().await.unwrap().unwrap_err();
        assert_eq!(fault.kind, Kind::Truncated);
        assert!(body.frame().await.is_none());
        let small = self::body(file(b"abc"), 0, 10).collect().await;
        assert_eq!(small.unwrap_err().kind, Kind::Truncated, "a small one too");
    }

    #[tokio::test]
    async fn what_is_not_in_memory_is_read_by_a_thread() {
        // procfs refuses RWF_NOWAIT, so this takes the slow way on every machine.
        let fd: OwnedFd = std::fs::File::open("/proc/version").unwrap().into();
        let want = std::fs::read("/proc/version").unwrap();
        assert!(read_small(&fd, 0, want.len() as u64).is_none());
        let got = body(Arc::new(fd), 0, want.len() as u64).collect().await.unwrap().to_bytes();
        assert!(got == want);
        // On a disk the kernel may forget the pages when it is asked to; the bytes are the same either way.
        let bytes = pattern(1_000_000);
        let fd = file(&bytes);
        rustix::fs::fsync(&fd).unwrap();
        rustix::fs::fadvise(&fd, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let got = body(fd, 0, 1_000_000).collect().await.unwrap().to_bytes();
        assert!(got == bytes);
    }

    #[tokio::test]
    async fn a_waiting_read_gives_the_same_bytes() {
        let fd = file(b"0123456789");
        let mut buffer = [0; 8];
        assert_eq!(read_waiting(&fd, &mut buffer, 4, 3).unwrap(), 4);
        assert_eq!(&buffer[..4], b"3456");
        // A write-only descriptor cannot be read at all: the error is told.
        let write_only = tempfile::NamedTempFile::new().unwrap();
        let fd: OwnedFd = std::fs::OpenOptions::new().write(true).open(write_only.path()).unwrap().into();
        let fault = body(Arc::new(fd), 0, 100_000).collect().await.unwrap_err();
        assert_eq!(fault.kind, Kind::Internal);
    }
}
