//! A request body, read whole before its back end is asked.
//!
//! PHP-FPM gives a worker to a request from its first byte on: a client that uploads slowly would hold one for as long
//! as it likes. So the body is collected first, small ones in memory, large ones in a file that has no name.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::base::fault::{Fault, Kind};
use crate::http::body::Body;

/// What is kept in memory; a longer body goes to a file.
const IN_MEMORY: usize = 64 * 1024;
/// What is written to the file at once.
const WRITE: usize = 256 * 1024;
/// What is read from it at once.
const READ: usize = 64 * 1024;

/// A body that is there whole. Dropping it, and its readers, leaves nothing behind.
#[derive(Debug, Clone)]
pub struct Spooled {
    store: Store,
    length: u64,
}

#[derive(Debug, Clone)]
enum Store {
    Memory(Bytes),
    File(Arc<File>),
}

/// Reads `body` to its end. A fault of the body itself passes through; a disk that cannot take it is
/// [`Kind::Storage`]. The file is made in the system's folder for temporary files (`TMPDIR`).
pub async fn spool(body: Body) -> Result<Spooled, Fault> {
    spool_into(body, tempfile::tempfile).await
}

impl Spooled {
    /// Bytes of the body.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The body from its start; as often as wanted.
    pub fn reader(&self) -> SpoolReader {
        SpoolReader { store: self.store.clone(), at: 0, left: self.length, reading: None }
    }
}

/// Gives a spooled body in chunks of at most 64 KiB.
#[derive(Debug)]
pub struct SpoolReader {
    store: Store,
    at: u64,
    left: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl SpoolReader {
    /// The next chunk, never empty; `None` at the end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let want = usize::try_from(self.left).unwrap_or(READ).min(READ);
        let chunk = match &mut self.store {
            Store::Memory(bytes) => bytes.split_to(want.min(bytes.len())),
            Store::File(file) => {
                let at = self.at;
                let reading = self.reading.get_or_insert_with(|| {
                    let file = Arc::clone(file);
                    spawn_blocking(move || read_at(&file, at, want))
                });
                let read = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                match read {
                    Ok(Ok(chunk)) => chunk,
                    Ok(Err(error)) => return Poll::Ready(Some(Err(error))),
                    Err(ended) => return Poll::Ready(Some(Err(io::Error::other(ended)))),
                }
            }
        };
        self.at += chunk.len() as u64;
        self.left = self.left.saturating_sub(chunk.len() as u64);
        Poll::Ready(Some(Ok(chunk)))
    }
}

fn read_at(file: &File, at: u64, want: usize) -> io::Result<Bytes> {
    let mut chunk = BytesMut::zeroed(want);
    file.read_exact_at(&mut chunk, at)?;
    Ok(chunk.freeze())
}

async fn spool_into<F>(mut body: Body, create: F) -> Result<Spooled, Fault>
where
    F: FnOnce() -> io::Result<File> + Send + 'static,
{
    let mut held = match body {
        Body::Empty => return Ok(in_memory(Bytes::new())),
        Body::Full(bytes) => return Ok(in_memory(bytes)),
        Body::Stream(_) => BytesMut::new(),
    };
    while held.len() <= IN_MEMORY {
        match next(&mut body).await? {
            Some(data) => held.extend_from_slice(&data),
            None => return Ok(in_memory(held.freeze())),
        }
    }
    let mut length = held.len() as u64;
    let mut file = spawn_blocking(create).await.map_err(io::Error::other).flatten().map_err(storage)?;
    // One buffer goes to the blocking thread and comes back: however long the body, memory stays flat.
    while let Some(data) = next(&mut body).await? {
        length += data.len() as u64;
        held.extend_from_slice(&data);
        if held.len() >= WRITE {
            (file, held) = write(file, held).await?;
        }
    }
    (file, _) = write(file, held).await?;
    Ok(Spooled { store: Store::File(Arc::new(file)), length })
}

fn in_memory(bytes: Bytes) -> Spooled {
    Spooled { length: bytes.len() as u64, store: Store::Memory(bytes) }
}

/// The next data of a body; trailers are nothing that CGI knows.
async fn next(body: &mut Body) -> Result<Option<Bytes>, Fault> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

async fn write(mut file: File, mut buffer: BytesMut) -> Result<(File, BytesMut), Fault> {
    let written = spawn_blocking(move || {
        file.write_all(&buffer)?;
        buffer.clear();
        Ok((file, buffer))
    });
    written.await.map_err(io::Error::other).flatten().map_err(storage)
}

fn storage(error: io::Error) -> Fault {
    Fault::new(Kind::Storage, "cannot store the request body").because(error)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::poll_fn;

    use http_body::Frame;

    use super::*;

    struct Frames(VecDeque<Result<Bytes, Fault>>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Fault;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
            Poll::Ready(self.0.pop_front().map(|frame| frame.map(Frame::data)))
        }
    }

    fn frames(count: usize, size: usize) -> VecDeque<Result<Bytes, Fault>> {
        (0..count).map(|n| Ok(Bytes::from(vec![n as u8; size]))).collect()
    }

    fn body(frames: VecDeque<Result<Bytes, Fault>>) -> Body {
        Body::stream(Frames(frames))
    }

    async fn collect(spooled: &Spooled) -> Vec<u8> {
        let mut reader = spooled.reader();
        let mut all = Vec::new();
        while let Some(chunk) = poll_fn(|cx| reader.poll_chunk(cx)).await {
            let chunk = chunk.unwrap();
            assert!(!chunk.is_empty() && chunk.len() <= READ);
            all.extend_from_slice(&chunk);
        }
        all
    }

    #[tokio::test]
    async fn small_bodies_stay_in_memory_and_large_ones_read_back_twice() {
        for (count, size, memory) in
            [(0, 0, true), (1, 10, true), (64, 1024, true), (65, 1024, false), (700, 5000, false)]
        {
            let spooled = spool(body(frames(count, size))).await.unwrap();
            assert_eq!(matches!(spooled.store, Store::Memory(_)), memory, "{count} x {size}");
            assert_eq!(spooled.length(), (count * size) as u64);
            let expected: Vec<u8> = (0..count).flat_map(|n| vec![n as u8; size]).collect();
            assert_eq!(collect(&spooled).await, expected);
            assert_eq!(collect(&spooled).await, expected);
        }
        let spooled = spool(Body::full(vec![1; 200_000])).await.unwrap();
        assert_eq!(collect(&spooled).await.len(), 200_000);
    }

    #[tokio::test]
    async fn a_full_disk_is_a_fault_of_storage() {
        let full = || File::options().write(true).open("/dev/full");
        let fault = spool_into(body(frames(100, 8192)), full).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Storage);
        assert!(fault.to_string().contains("space"), "{fault}");
    }

    #[tokio::test]
    async fn a_fault_of_the_body_passes_through_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let mut frames = frames(100, 8192);
        frames.push_back(Err(Fault::new(Kind::BodyTooLarge, "over")));
        let fault = spool_into(body(frames), move || tempfile::tempfile_in(path)).await.unwrap_err();
        assert_eq!(fault.kind, Kind::BodyTooLarge);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
