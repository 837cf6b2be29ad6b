//! The register of live tunnels: counted, listed, told to close. It outlives every reload.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// What a tunnel is, for lists and for choosing which to close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelInfo {
    /// The name of its site.
    pub site: Arc<str>,
    /// Its back end, as logs name it: `http://127.0.0.1:3444`.
    pub back_end: Arc<str>,
    /// The client's address.
    pub client: IpAddr,
    /// The path of its handshake, without the query (which may hold secrets).
    pub path: Box<str>,
}

/// One line of [`Tunnels::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Never given twice in a process; ascending.
    pub id: u64,
    /// What it is.
    pub info: TunnelInfo,
    /// How long it has been open.
    pub age: Duration,
    /// Bytes that went to the back end.
    pub bytes_to_back_end: u64,
    /// Bytes that went to the client.
    pub bytes_to_client: u64,
}

/// All live tunnels of the process. Clones are the same register.
#[derive(Debug, Clone, Default)]
pub struct Tunnels(Arc<Register>);

#[derive(Debug, Default)]
struct Register {
    live: Mutex<HashMap<u64, Arc<Live>>>,
    next_id: AtomicU64,
    none_left: Notify,
}

/// What the register and the tunnel share.
#[derive(Debug)]
struct Live {
    info: TunnelInfo,
    opened: Instant,
    bytes_to_back_end: AtomicU64,
    bytes_to_client: AtomicU64,
    /// Whether `told` changed since the tunnel looked.
    news: AtomicBool,
    told: Mutex<Telling>,
}

#[derive(Debug, Default)]
struct Telling {
    close: Option<CloseRequest>,
    waker: Option<Waker>,
}

/// What a tunnel is told: close at this time with this code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CloseRequest {
    pub(super) at: Instant,
    pub(super) code: u16,
}

impl Tunnels {
    /// Enters a tunnel. It is in the register until the entry is dropped.
    pub fn open(&self, info: TunnelInfo) -> Entry {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(Live {
            info,
            opened: Instant::now(),
            bytes_to_back_end: AtomicU64::new(0),
            bytes_to_client: AtomicU64::new(0),
            news: AtomicBool::new(false),
            told: Mutex::default(),
        });
        self.0.live().insert(id, live.clone());
        Entry { id, live, register: self.0.clone(), waker: None }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.live().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, oldest first.
    pub fn list(&self) -> Vec<Listed> {
        let now = Instant::now();
        let mut list: Vec<Listed> = self
            .0
            .live()
            .iter()
            .map(|(id, live)| Listed {
                id: *id,
                info: live.info.clone(),
                age: now.saturating_duration_since(live.opened),
                bytes_to_back_end: live.bytes_to_back_end.load(Ordering::Relaxed),
                bytes_to_client: live.bytes_to_client.load(Ordering::Relaxed),
            })
            .collect();
        list.sort_unstable_by_key(|listed| listed.id);
        list
    }

    /// Tells the tunnels that `filter` chooses to close with `code`, spread evenly over the time `spread`, each
    /// somewhere within its share of it, so that their clients do not all come back at once. Returns how many were
    /// told, at once; [`closed`](Tunnels::closed) waits for the end. Of two requests the earlier counts.
    pub fn close(&self, filter: impl Fn(&TunnelInfo) -> bool, code: u16, spread: Duration) -> usize {
        let chosen: Vec<(u64, Arc<Live>)> = {
            let live = self.0.live();
            live.iter().filter(|(_, live)| filter(&live.info)).map(|(id, live)| (*id, live.clone())).collect()
        };
        let now = Instant::now();
        let random = RandomState::new();
        let share = spread.as_secs_f64() / chosen.len().max(1) as f64;
        for (place, (id, live)) in chosen.iter().enumerate() {
            let jitter = (random.hash_one(id) >> 11) as f64 / (1_u64 << 53) as f64;
            let delay = Duration::try_from_secs_f64(share * (place as f64 + jitter)).unwrap_or(spread);
            live.tell(CloseRequest { at: now.checked_add(delay).unwrap_or(now), code });
        }
        chosen.len()
    }

    /// Waits until there is no tunnel.
    pub async fn closed(&self) {
        loop {
            let mut none_left = std::pin::pin!(self.0.none_left.notified());
            // Listening before looking: an entry that goes in between is not missed.
            none_left.as_mut().enable();
            if self.is_empty() {
                return;
            }
            none_left.await;
        }
    }
}

impl Register {
    fn live(&self) -> MutexGuard<'_, HashMap<u64, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn told(&self) -> MutexGuard<'_, Telling> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, request: CloseRequest) {
        let waker = {
            let mut told = self.told();
            if told.close.is_some_and(|earlier| earlier.at <= request.at) {
                return;
            }
            told.close = Some(request);
            // Within the lock: a tunnel that puts its waker in place after this has to see it.
            self.news.store(true, Ordering::Release);
            told.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A tunnel's place in the register, which it leaves when this is dropped.
#[derive(Debug)]
pub struct Entry {
    id: u64,
    live: Arc<Live>,
    register: Arc<Register>,
    /// A copy of the waker that the register has, to see without a lock whether it is still the right one.
    waker: Option<Waker>,
}

impl Entry {
    /// The tunnel's number, for logs.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn opened(&self) -> Instant {
        self.live.opened
    }

    pub(super) fn count_to_back_end(&self, bytes: u64) {
        self.live.bytes_to_back_end.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_to_client(&self, bytes: u64) {
        self.live.bytes_to_client.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.live.bytes_to_back_end), load(&self.live.bytes_to_client))
    }

    /// What the tunnel was told since it last asked. The task of `cx` is woken when there is more.
    pub(super) fn told(&mut self, cx: &Context<'_>) -> Option<CloseRequest> {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
            self.live.told().waker = self.waker.clone();
        }
        // The waker is in place before this look: a request that comes after it wakes the task.
        if self.live.news.load(Ordering::Relaxed) && self.live.news.swap(false, Ordering::Acquire) {
            return self.live.told().close;
        }
        None
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut live = self.register.live();
        live.remove(&self.id);
        if live.is_empty() {
            // A crowd leaves its room behind.
            live.shrink_to_fit();
            self.register.none_left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(site: &str) -> TunnelInfo {
        TunnelInfo {
            site: site.into(),
            back_end: "http://127.0.0.1:3444".into(),
            client: "192.0.2.1".parse().unwrap(),
            path: "/socket.io/".into(),
        }
    }

    #[test]
    fn an_entry_is_cheap() {
        let per_tunnel = size_of::<Live>() + size_of::<Entry>() + size_of::<(u64, Arc<Live>)>();
        assert!(per_tunnel < 256, "{per_tunnel} bytes");
        assert!(size_of::<Live>() < 200, "{} bytes", size_of::<Live>());
        fn is_shared<T: Send + Sync>() {}
        is_shared::<Tunnels>();
        is_shared::<Entry>();
    }

    #[tokio::test]
    async fn an_entry_is_listed_until_it_is_dropped() {
        let tunnels = Tunnels::default();
        let (a, b) = (tunnels.open(info("a")), tunnels.open(info("b")));
        a.count_to_back_end(5);
        a.count_to_client(7);
        let list = tunnels.list();
        assert_eq!(list.iter().map(|l| &*l.info.site).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((list[0].bytes_to_back_end, list[0].bytes_to_client, list[1].bytes_to_client), (5, 7, 0));
        drop(a);
        assert_eq!(tunnels.len(), 1);
        let all_closed = tokio::spawn({
            let tunnels = tunnels.clone();
            async move { tunnels.closed().await }
        });
        tokio::task::yield_now().await;
        assert!(!all_closed.is_finished());
        drop(b);
        all_closed.await.unwrap();
        tunnels.closed().await;
    }

    #[tokio::test]
    async fn closing_is_spread_evenly_over_the_chosen() {
        let tunnels = Tunnels::default();
        let mut chosen: Vec<Entry> = (0..50).map(|_| tunnels.open(info("old"))).collect();
        let mut other = tunnels.open(info("new"));
        let before = Instant::now();
        assert_eq!(tunnels.close(|info| &*info.site == "old", 1001, Duration::from_secs(50)), 50);
        let after = Instant::now();
        let cx = Context::from_waker(Waker::noop());
        assert_eq!(other.told(&cx), None);
        let mut times: Vec<Instant> = chosen.iter_mut().map(|entry| entry.told(&cx).unwrap().at).collect();
        times.sort_unstable();
        for (place, at) in times.iter().enumerate() {
            let place = place as u64;
            assert!(*at >= before + Duration::from_secs(place) && *at <= after + Duration::from_secs(place + 1));
        }
        let offsets: std::collections::HashSet<u32> =
            times.iter().map(|at| (*at - before).subsec_millis() / 50).collect();
        assert!(offsets.len() > 3, "there is jitter: {offsets:?}");
    }

    #[tokio::test]
    async fn of_two_requests_the_earlier_counts() {
        let tunnels = Tunnels::default();
        let mut entry = tunnels.open(info("a"));
        let cx = Context::from_waker(Waker::noop());
        tunnels.close(|_| true, 1012, Duration::from_secs(1000));
        tunnels.close(|_| true, 1001, Duration::ZERO);
        tunnels.close(|_| true, 1000, Duration::from_secs(5000));
        assert_eq!(entry.told(&cx).map(|told| told.code), Some(1001));
        assert_eq!(entry.told(&cx), None);
    }

    #[test]
    fn a_request_from_another_thread_is_never_missed() {
        for _ in 0..500 {
            let tunnels = Tunnels::default();
            let mut entry = tunnels.open(info("a"));
            let start = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    let told = std::future::poll_fn(|cx| match entry.told(cx) {
                        Some(told) => std::task::Poll::Ready(told),
                        None => std::task::Poll::Pending,
                    });
                    start.wait();
                    let told = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), told).await });
                    assert_eq!(told.expect("it is told").code, 1001);
                });
                start.wait();
                assert_eq!(tunnels.close(|_| true, 1001, Duration::ZERO), 1);
            });
        }
    }
}
