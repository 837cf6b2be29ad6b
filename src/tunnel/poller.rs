//! Sockets of idle tunnels, for a tenth of what the runtime keeps for each: 256 bytes a descriptor. Each worker has one
//! epoll of its own, which the runtime watches as a single descriptor; a socket in it costs a slot of 24 bytes.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// Events that are fetched at one time.
const BATCH: usize = 256;

/// The epoll of one worker. Clones are the same one.
#[derive(Clone)]
pub struct Poller(Rc<Epoll>);

struct Epoll {
    watched: AsyncFd<OwnedFd>,
    slots: RefCell<Slots>,
}

#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<u32>,
}

/// What is known of one socket.
#[derive(Default)]
struct Slot {
    /// The one task that polls it, both ways.
    waker: Option<Waker>,
    /// Tells the events of the socket from those of an earlier one in the same slot.
    turn: u32,
    ready: u8,
}

// What a socket may be tried for. The two ends are never taken back: the kernel tells of them once.
const READ: u8 = 1;
const WRITE: u8 = 2;
const READ_ENDED: u8 = 4;
const WRITE_ENDED: u8 = 8;

impl Poller {
    /// Makes one. It must be called inside the worker's runtime, and [`run`](Poller::run) must be.
    pub fn new() -> io::Result<Poller> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        #[allow(deprecated, reason = "unsound only for a type that may change its descriptor: an OwnedFd does not")]
        let watched = AsyncFd::with_interest(epoll, Interest::READABLE)?;
        Ok(Poller(Rc::new(Epoll { watched, slots: RefCell::default() })))
    }

    /// Wakes the tasks whose sockets have become ready, for ever.
    pub async fn run(&self) {
        let mut events = [const { MaybeUninit::<Event>::uninit() }; BATCH];
        // An error would say that the runtime is going.
        while let Ok(mut guard) = self.0.watched.readable().await {
            while let Ok((events, _)) = epoll::wait(guard.get_inner(), &mut events, Some(&Timespec::default())) {
                for event in events.iter() {
                    self.0.note(event.data.u64(), event.flags);
                }
                if events.len() < BATCH {
                    break;
                }
            }
            guard.clear_ready();
            drop(guard);
            // Readiness that never ends must not keep the other tasks of the worker waiting.
            tokio::task::yield_now().await;
        }
    }

    /// Takes a socket, which must not block. One task polls it, for both directions.
    pub fn socket(&self, socket: OwnedFd) -> io::Result<PolledSocket> {
        let data = self.0.slots.borrow_mut().take();
        let slot = data as u32;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let added = epoll::add(self.0.watched.get_ref(), &socket, EventData::new_u64(data), flags);
        let polled = PolledSocket { socket, slot, epoll: self.0.clone() };
        // Dropped, it gives its slot back.
        added?;
        Ok(polled)
    }
}

impl Slots {
    fn take(&mut self) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.all.push(Slot::default());
            u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
        });
        let Some(taken) = self.all.get_mut(slot as usize) else { return u64::from(slot) };
        // Whatever has come before the epoll had it is found by trying.
        taken.ready = READ | WRITE;
        u64::from(taken.turn) << 32 | u64::from(slot)
    }

    fn give_back(&mut self, slot: u32) {
        let Some(given) = self.all.get_mut(slot as usize) else { return };
        given.turn = given.turn.wrapping_add(1);
        given.waker = None;
        self.free.push(slot);
        if self.free.len() == self.all.len() {
            // A crowd leaves its room behind. Events of it may still be on their way: turns go on from the highest.
            let turn = self.all.iter().map(|slot| slot.turn).max().unwrap_or_default();
            *self = Slots { all: vec![Slot { turn, ..Slot::default() }], free: vec![0] };
        }
    }
}

impl Epoll {
    fn note(&self, data: u64, flags: EventFlags) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.all.get_mut((data as u32) as usize).filter(|slot| u64::from(slot.turn) == data >> 32)
        else {
            return;
        };
        if flags.intersects(EventFlags::IN | EventFlags::PRI) {
            slot.ready |= READ;
        }
        if flags.contains(EventFlags::OUT) {
            slot.ready |= WRITE;
        }
        if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            slot.ready |= READ_ENDED;
        }
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            slot.ready |= WRITE_ENDED;
        }
        if let Some(waker) = &slot.waker {
            waker.wake_by_ref();
        }
    }
}

/// A connected socket in a [`Poller`].
pub struct PolledSocket {
    socket: OwnedFd,
    slot: u32,
    epoll: Rc<Epoll>,
}

impl PolledSocket {
    /// Tries `attempt` if the socket may be ready for one of `wanted`; `asked` is how much it could have moved.
    fn poll(
        &self,
        cx: &Context<'_>,
        wanted: u8,
        asked: usize,
        mut attempt: impl FnMut(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let once = wanted & (READ | WRITE);
        loop {
            let mut slots = self.epoll.slots.borrow_mut();
            let Some(slot) = slots.all.get_mut(self.slot as usize) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            if slot.ready & wanted == 0 {
                if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    slot.waker = Some(cx.waker().clone());
                }
                return Poll::Pending;
            }
            match attempt(&self.socket) {
                Ok(moved) => {
                    // Less than there was room for: the next news is an event (epoll(7), question 9).
                    if moved > 0 && moved < asked {
                        slot.ready &= !once;
                    }
                    return Poll::Ready(Ok(moved));
                }
                Err(Errno::AGAIN) => slot.ready &= !wanted,
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncRead for PolledSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.initialize_unfilled();
        let asked = room.len();
        let read = self.poll(cx, READ | READ_ENDED, asked, |socket| {
            rustix::net::recv(socket, &mut *room, RecvFlags::DONTWAIT).map(|(length, _)| length)
        });
        read.map_ok(|length| buf.advance(length))
    }
}

impl AsyncWrite for PolledSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, WRITE | WRITE_ENDED, bytes.len(), |socket| {
            rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&self.socket, Shutdown::Write).map_err(io::Error::from))
    }
}

impl Drop for PolledSocket {
    fn drop(&mut self) {
        // Closing would do, unless another process has a copy of the descriptor.
        let _ = epoll::delete(self.epoll.watched.get_ref(), &self.socket);
        self.epoll.slots.borrow_mut().give_back(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::LocalSet;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(20);

    fn pair(poller: &Poller) -> (PolledSocket, PolledSocket) {
        let (a, b) = UnixStream::pair().unwrap();
        let polled = |end: UnixStream| {
            end.set_nonblocking(true).unwrap();
            poller.socket(end.into()).unwrap()
        };
        (polled(a), polled(b))
    }

    async fn with_poller(test: impl AsyncFnOnce(Poller)) {
        let poller = Poller::new().unwrap();
        let running = poller.clone();
        LocalSet::new()
            .run_until(async move {
                let driver = tokio::task::spawn_local(async move { running.run().await });
                timeout(SOON, test(poller)).await.unwrap();
                driver.abort();
            })
            .await;
    }

    #[test]
    fn a_socket_is_cheap() {
        assert!(size_of::<PolledSocket>() + size_of::<Slot>() <= 40);
    }

    #[tokio::test]
    async fn an_idle_tunnel_is_small() {
        use crate::tunnel::register::{TunnelInfo, Tunnels};
        use crate::tunnel::{Early, Policy, run};
        with_poller(async |poller| {
            let entry = Tunnels::default().open(TunnelInfo {
                site: "app".into(),
                back_end: "unix:/run/app.sock".into(),
                client: "192.0.2.1".parse().unwrap(),
                path: "/socket.io/".into(),
                http2: false,
            });
            let (client, back_end) = pair(&poller);
            let tunnel = run(client, back_end, Early::default(), Policy::default(), entry);
            // With the farewell, the tracker's 8 and the runtime's own 104 bytes a task of 384, in steps of 128.
            assert!(size_of_val(&tunnel) <= 248, "{} bytes", size_of_val(&tunnel));
        })
        .await;
    }

    #[tokio::test]
    async fn bytes_larger_than_any_buffer_go_both_ways_at_once() {
        with_poller(async |poller| {
            let (a, b) = pair(&poller);
            let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 31 % 253) as u8).collect();
            let send = async |end: PolledSocket, bytes: Vec<u8>| {
                let (mut read, mut write) = tokio::io::split(end);
                let mut back = Vec::new();
                let (sent, got) = tokio::join!(
                    async {
                        write.write_all(&bytes).await?;
                        write.shutdown().await
                    },
                    read.read_to_end(&mut back)
                );
                sent.unwrap();
                got.unwrap();
                assert_eq!(back, bytes);
            };
            // Each end is one task, as a tunnel is.
            let other = tokio::task::spawn_local(send(a, bytes.clone()));
            send(b, bytes).await;
            other.await.unwrap();
        })
        .await;
    }

    #[tokio::test]
    async fn the_end_that_comes_with_the_last_bytes_is_seen() {
        with_poller(async |poller| {
            for _ in 0..100 {
                let (mut a, mut b) = pair(&poller);
                let writer = tokio::task::spawn_local(async move {
                    tokio::task::yield_now().await;
                    a.write_all(b"last").await.unwrap();
                    drop(a);
                });
                let mut all = Vec::new();
                b.read_to_end(&mut all).await.unwrap();
                assert_eq!(all, b"last");
                writer.await.unwrap();
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_socket_in_a_used_slot_hears_nothing_of_the_one_before() {
        with_poller(async |poller| {
            let (a, mut b) = pair(&poller);
            let (slot, turn) = (a.slot, poller.0.slots.borrow().all[a.slot as usize].turn);
            drop(a);
            let (c, _d) = pair(&poller);
            let (c, _d) = if c.slot == slot { (c, _d) } else { (_d, c) };
            assert_eq!(c.slot, slot);
            poller.0.slots.borrow_mut().all[slot as usize].ready = 0;
            poller.0.note(u64::from(turn) << 32 | u64::from(slot), EventFlags::IN | EventFlags::HUP);
            assert_eq!(poller.0.slots.borrow().all[slot as usize].ready, 0);
            assert_eq!(b.read(&mut [0; 8]).await.unwrap(), 0);
        })
        .await;
    }

    #[tokio::test]
    async fn a_crowd_leaves_its_room_behind() {
        with_poller(async |poller| {
            let crowd: Vec<_> = (0..200).map(|_| pair(&poller)).collect();
            assert_eq!(poller.0.slots.borrow().all.len(), 400);
            drop(crowd);
            assert_eq!(poller.0.slots.borrow().all.len(), 1);
            let (mut a, mut b) = pair(&poller);
            a.write_all(b"x").await.unwrap();
            assert_eq!(b.read_u8().await.unwrap(), b'x');
        })
        .await;
    }
}
