//! A request body, read whole before its back end is asked.
//!
//! PHP-FPM gives a worker to a request from its first byte on: a client that uploads slowly would hold one for as long
//! as it likes. So the body is collected first, small ones in memory, large ones in a file that has no name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::base::fault::{Fault, Kind};
use crate::base::network::client_key;
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
    File(Arc<Stored>),
}

#[derive(Debug)]
struct Stored {
    file: File,
    /// Held as long as the file.
    _share: Share,
}

/// When a body that found no room may come again.
const RETRY: Duration = Duration::from_secs(10);

/// The bytes in the files of all bodies.
#[derive(Debug, Default)]
pub struct Room(Mutex<Used>);

#[derive(Debug, Default)]
struct Used {
    all: u64,
    /// Of each client that has any.
    by_client: HashMap<IpAddr, u64>,
}

/// What one body takes of the room.
#[derive(Debug)]
struct Share {
    room: Arc<Room>,
    most: Option<u64>,
    client: IpAddr,
    taken: u64,
}

impl Room {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    fn take(&mut self, bytes: usize) -> Result<(), Fault> {
        let (bytes, most) = (bytes as u64, self.most.unwrap_or(u64::MAX));
        let mut used = self.room.used();
        let own = used.by_client.get(&self.client).copied().unwrap_or(0);
        // Several bodies of one client take no more than half of the room: others go on uploading.
        let share = if own > self.taken { most / 2 } else { most };
        if used.all.saturating_add(bytes) > most || own.saturating_add(bytes) > share {
            let detail = "no room to store the request body: limits.max_spooled is reached";
            return Err(Fault::new(Kind::Storage, detail).status(503).retry_after(RETRY));
        }
        used.all += bytes;
        used.by_client.insert(self.client, own + bytes);
        self.taken += bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.room.used();
        used.all = used.all.saturating_sub(self.taken);
        let own = used.by_client.get(&self.client).map_or(0, |own| own.saturating_sub(self.taken));
        match own {
            0 => drop(used.by_client.remove(&self.client)),
            own => drop(used.by_client.insert(self.client, own)),
        }
    }
}

/// Reads `body` to its end. A fault of the body itself passes through; a disk that cannot take it is
/// [`Kind::Storage`], as are files that would be more than `most` bytes together with all others of `room`, or more than
/// half of that with those of the same client. The file is made in the system's folder for temporary files (`TMPDIR`).
pub async fn spool(body: Body, client: IpAddr, room: &Arc<Room>, most: Option<u64>) -> Result<Spooled, Fault> {
    let share = Share { room: room.clone(), most, client: client_key(client), taken: 0 };
    spool_into(body, share, tempfile::tempfile).await
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
                    spawn_blocking(move || read_at(&file.file, at, want))
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

async fn spool_into<F>(mut body: Body, mut share: Share, create: F) -> Result<Spooled, Fault>
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
    share.take(held.len())?;
    let mut file = spawn_blocking(create).await.map_err(io::Error::other).flatten().map_err(storage)?;
    // One buffer goes to the blocking thread and comes back: however long the body, memory stays flat.
    while let Some(data) = next(&mut body).await? {
        length += data.len() as u64;
        share.take(data.len())?;
        held.extend_from_slice(&data);
        if held.len() >= WRITE {
            (file, held) = write(file, held).await?;
        }
    }
    (file, _) = write(file, held).await?;
    Ok(Spooled { store: Store::File(Arc::new(Stored { file, _share: share })), length })
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
    use std::net::Ipv4Addr;

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

    fn room() -> Arc<Room> {
        Arc::default()
    }

    fn share() -> Share {
        Share { room: room(), most: None, client: ONE, taken: 0 }
    }

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    #[tokio::test]
    async fn one_client_cannot_use_up_the_room_of_all_and_may_upload_one_large_file() {
        let (room, most) = (room(), Some(300_000));
        let whole = spool(body(frames(290, 1000)), ONE, &room, most).await.unwrap();
        drop(whole);
        let first = spool(body(frames(100, 1000)), ONE, &room, most).await.unwrap();
        assert!(spool(body(frames(100, 1000)), ONE, &room, most).await.is_err());
        let second = spool(body(frames(200, 1000)), OTHER, &room, most).await.unwrap();
        drop((first, second));
        assert!(room.used().by_client.is_empty());
    }

    #[tokio::test]
    async fn all_files_together_have_a_bound_and_small_bodies_always_find_room() {
        let (room, most) = (room(), Some(300_000));
        let first = spool(body(frames(200, 1000)), ONE, &room, most).await.unwrap();
        let fault = spool(body(frames(200, 1000)), OTHER, &room, most).await.unwrap_err();
        assert_eq!((fault.kind, fault.status, fault.retry_after), (Kind::Storage, Some(503), Some(RETRY)));
        assert_eq!(room.used().all, 200_000, "what was refused has left");
        spool(body(frames(64, 1024)), ONE, &room, most).await.unwrap();
        let second = spool(body(frames(100, 1000)), OTHER, &room, most).await.unwrap();
        let reader = first.reader();
        drop((first, second));
        assert_eq!(room.used().all, 200_000, "a reader keeps the file");
        drop(reader);
        assert_eq!(room.used().all, 0);
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
            let spooled = spool(body(frames(count, size)), ONE, &room(), None).await.unwrap();
            assert_eq!(matches!(spooled.store, Store::Memory(_)), memory, "{count} x {size}");
            assert_eq!(spooled.length(), (count * size) as u64);
            let expected: Vec<u8> = (0..count).flat_map(|n| vec![n as u8; size]).collect();
            assert_eq!(collect(&spooled).await, expected);
            assert_eq!(collect(&spooled).await, expected);
        }
        let spooled = spool(Body::full(vec![1; 200_000]), ONE, &room(), Some(0)).await.unwrap();
        assert_eq!(collect(&spooled).await.len(), 200_000);
    }

    #[tokio::test]
    async fn a_full_disk_is_a_fault_of_storage() {
        let full = || File::options().write(true).open("/dev/full");
        let fault = spool_into(body(frames(100, 8192)), share(), full).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Storage);
        assert!(fault.to_string().contains("space"), "{fault}");
    }

    #[tokio::test]
    async fn a_fault_of_the_body_passes_through_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let mut frames = frames(100, 8192);
        frames.push_back(Err(Fault::new(Kind::BodyTooLarge, "over")));
        let fault = spool_into(body(frames), share(), move || tempfile::tempfile_in(path)).await.unwrap_err();
        assert_eq!(fault.kind, Kind::BodyTooLarge);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
