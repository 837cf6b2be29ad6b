//! The register of live tunnels: counted, listed, told to close. It outlives every reload.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
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
    /// Whether the client speaks HTTP/2 (RFC 8441) and not HTTP/1.1.
    pub http2: bool,
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
    /// How long ago the last byte went either way, to the second.
    pub idle: Duration,
    /// Bytes that went to the back end.
    pub bytes_to_back_end: u64,
    /// Bytes that went to the client.
    pub bytes_to_client: u64,
    /// Whole messages from the client.
    pub messages_to_back_end: u64,
    /// Whole messages from the back end.
    pub messages_to_client: u64,
}

/// All live tunnels of the process. Clones are the same register.
#[derive(Debug, Clone, Default)]
pub struct Tunnels(Arc<Register>);

/// How many tunnels are looked at under one hold of the lock: opening and closing wait for no more than that.
const PAGE: usize = 512;

#[derive(Debug, Default)]
struct Register {
    /// By id: pages can be told apart, and room is given back as a crowd leaves.
    live: Mutex<BTreeMap<u64, Arc<Live>>>,
    next_id: AtomicU64,
    none_left: Notify,
    /// Tunnels that open now are closed at once with this code; 0 is none.
    ending: AtomicU16,
    /// When it was last looked which tunnels want to be woken.
    woken: Mutex<Option<Instant>>,
}

/// Of [`Live::wake_at`].
const NEVER: u32 = u32::MAX;
/// The least time between two looks at all tunnels.
const LOOKS: Duration = Duration::from_millis(900);
/// A deadline that is no further away gets a timer of its own: more than the time between two looks.
const NEAR: Duration = Duration::from_secs(3);

/// What the register and the tunnel share. Its counters have one writer, the tunnel.
#[derive(Debug)]
struct Live {
    info: TunnelInfo,
    opened: Instant,
    bytes_to_back_end: AtomicU64,
    bytes_to_client: AtomicU64,
    messages_to_back_end: AtomicU64,
    messages_to_client: AtomicU64,
    /// Seconds from the opening to the last byte.
    last_byte: AtomicU32,
    /// Seconds from the opening to when the tunnel wants to be woken; [`NEVER`] if it does not.
    wake_at: AtomicU32,
    /// Whether `told` changed since the tunnel looked.
    news: AtomicBool,
    told: Mutex<Telling>,
}

#[derive(Debug, Default)]
struct Telling {
    /// In a box: most tunnels are never told anything.
    close: Option<Box<CloseRequest>>,
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
            messages_to_back_end: AtomicU64::new(0),
            messages_to_client: AtomicU64::new(0),
            last_byte: AtomicU32::new(0),
            wake_at: AtomicU32::new(NEVER),
            news: AtomicBool::new(false),
            told: Mutex::default(),
        });
        {
            let mut all = self.0.live();
            all.insert(id, live.clone());
            // Within the lock: whoever came before the end of all is told with the others.
            let code = self.0.ending.load(Ordering::Relaxed);
            if code != 0 {
                live.tell(CloseRequest { at: live.opened, code });
            }
        }
        Entry { id, live, register: self.0.clone() }
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
        self.pages().flatten().collect()
    }

    /// All of them in pieces of bounded size, oldest first. One that opens or closes meanwhile may be there or not.
    pub fn pages(&self) -> impl Iterator<Item = Vec<Listed>> {
        let now = Instant::now();
        self.0.pages().map(move |page| page.iter().map(|(id, live)| live.listed(*id, now)).collect())
    }

    /// Tells the tunnels that `filter` chooses to close with `code`, spread evenly over [`window`], in no order, each
    /// somewhere within its share of it, so that their clients do not all come back at once. Returns how many were
    /// told, at once; [`closed`](Tunnels::closed) waits for the end. Of two requests the earlier counts.
    pub fn close(&self, filter: impl Fn(u64, &TunnelInfo) -> bool, code: u16, spread: Duration) -> usize {
        let chosen = self.0.pages().flatten().filter(|(id, live)| filter(*id, &live.info));
        Tunnels::tell(chosen.collect(), code, spread)
    }

    /// The same for those that were not told to close before: who asks again does not deal the others' places anew.
    pub fn drain(&self, filter: impl Fn(&TunnelInfo) -> bool, code: u16, spread: Duration) -> usize {
        let chosen = self.0.pages().flatten().filter(|(_, live)| live.told().close.is_none() && filter(&live.info));
        Tunnels::tell(chosen.collect(), code, spread)
    }

    /// The same for all tunnels, and for those that open later: they are closed at once.
    pub fn close_all(&self, code: u16, spread: Duration) -> usize {
        {
            let _entering = self.0.live();
            self.0.ending.store(code, Ordering::Relaxed);
        }
        Tunnels::tell(self.0.pages().flatten().collect(), code, spread)
    }

    fn tell(mut chosen: Vec<(u64, Arc<Live>)>, code: u16, spread: Duration) -> usize {
        let random = RandomState::new();
        // Those that came together, of one site or one client, leave at different times.
        chosen.sort_by_cached_key(|(id, _)| random.hash_one(id));
        let now = Instant::now();
        let window = window(chosen.len(), spread);
        let share = window.as_secs_f64() / chosen.len().max(1) as f64;
        for (place, (id, live)) in chosen.iter().enumerate() {
            let jitter = (random.hash_one((place, id)) >> 11) as f64 / (1_u64 << 53) as f64;
            let delay = Duration::try_from_secs_f64(share * (place as f64 + jitter)).unwrap_or(window);
            live.tell(CloseRequest { at: now.checked_add(delay).unwrap_or(now), code });
        }
        chosen.len()
    }

    /// Wakes the tunnels whose deadline is near. It is to be called about once a second, by whoever comes first.
    pub fn wake_due(&self, now: Instant) {
        {
            let mut last = self.0.woken.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| now.saturating_duration_since(last) < LOOKS) {
                return;
            }
            *last = Some(now);
        }
        for (_, live) in self.0.pages().flatten() {
            live.wake_if_due(now);
        }
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

/// Over which time so many tunnels are closed: over `spread`, but a few do not make anybody wait. A second for each is
/// as gentle as it needs to be.
pub fn window(tunnels: usize, spread: Duration) -> Duration {
    spread.min(Duration::from_secs(tunnels as u64))
}

impl Register {
    fn live(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages(&self) -> impl Iterator<Item = Vec<(u64, Arc<Live>)>> {
        let mut from = Some(0);
        std::iter::from_fn(move || {
            let page: Vec<(u64, Arc<Live>)> =
                self.live().range(from?..).take(PAGE).map(|(id, live)| (*id, live.clone())).collect();
            from = page.last().and_then(|(id, _)| id.checked_add(1));
            (!page.is_empty()).then_some(page)
        })
    }
}

impl Live {
    fn listed(&self, id: u64, now: Instant) -> Listed {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let age = now.saturating_duration_since(self.opened);
        let last_byte = Duration::from_secs(u64::from(self.last_byte.load(Ordering::Relaxed)));
        Listed {
            id,
            info: self.info.clone(),
            age,
            idle: age.saturating_sub(last_byte),
            bytes_to_back_end: load(&self.bytes_to_back_end),
            bytes_to_client: load(&self.bytes_to_client),
            messages_to_back_end: load(&self.messages_to_back_end),
            messages_to_client: load(&self.messages_to_client),
        }
    }

    fn wake_if_due(&self, now: Instant) {
        let at = self.wake_at.load(Ordering::Relaxed);
        if at == NEVER || now.saturating_duration_since(self.opened).as_secs() < u64::from(at) {
            return;
        }
        // Unless the tunnel has just set another time.
        if self.wake_at.compare_exchange(at, NEVER, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            && let Some(waker) = self.told().waker.clone()
        {
            waker.wake();
        }
    }

    fn told(&self) -> MutexGuard<'_, Telling> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, request: CloseRequest) {
        let waker = {
            let mut told = self.told();
            if told.close.as_ref().is_some_and(|earlier| earlier.at <= request.at) {
                return;
            }
            told.close = Some(Box::new(request));
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
}

impl Entry {
    /// The tunnel's number, for logs.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn opened(&self) -> Instant {
        self.live.opened
    }

    /// Bytes went over at this time.
    pub(super) fn count(&self, to_back_end: u64, to_client: u64, at: Instant) {
        // One writer: no read-modify-write is needed.
        let add = |counter: &AtomicU64, n: u64| counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        add(&self.live.bytes_to_back_end, to_back_end);
        add(&self.live.bytes_to_client, to_client);
        let last_byte = at.saturating_duration_since(self.live.opened).as_secs();
        self.live.last_byte.store(u32::try_from(last_byte).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Whether the tunnel is woken before `deadline`, early enough to set a timer: not if that is near.
    pub(super) fn wakes_before(&self, deadline: Instant) -> bool {
        let wanted = deadline.saturating_duration_since(self.live.opened).saturating_sub(NEAR).as_secs();
        let wanted = u32::try_from(wanted).unwrap_or(NEVER - 1);
        if self.live.wake_at.load(Ordering::Relaxed) <= wanted {
            return true;
        }
        if deadline.saturating_duration_since(Instant::now()) <= NEAR {
            return false;
        }
        self.live.wake_at.store(wanted, Ordering::Relaxed);
        true
    }

    /// So many whole messages have gone each way since the opening.
    pub(super) fn note_messages(&self, to_back_end: u64, to_client: u64) {
        self.live.messages_to_back_end.store(to_back_end, Ordering::Relaxed);
        self.live.messages_to_client.store(to_client, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.live.bytes_to_back_end), load(&self.live.bytes_to_client))
    }

    /// What the tunnel was told since it last asked. The task of `cx` is woken when there is more.
    pub(super) fn told(&mut self, cx: &Context<'_>) -> Option<CloseRequest> {
        // Nobody else holds this lock for more than a moment.
        let mut told = self.live.told();
        if !told.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            told.waker = Some(cx.waker().clone());
        }
        drop(told);
        // The waker is in place before this look: a request that comes after it wakes the task.
        if self.live.news.load(Ordering::Relaxed) && self.live.news.swap(false, Ordering::Acquire) {
            return self.live.told().close.as_deref().copied();
        }
        None
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut live = self.register.live();
        live.remove(&self.id);
        if live.is_empty() {
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
            http2: false,
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
        a.count(5, 0, Instant::now());
        a.count(0, 7, Instant::now());
        a.note_messages(1, 2);
        let list = tunnels.list();
        assert_eq!(list.iter().map(|l| &*l.info.site).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((list[0].bytes_to_back_end, list[0].bytes_to_client, list[1].bytes_to_client), (5, 7, 0));
        assert_eq!((list[0].messages_to_back_end, list[0].messages_to_client, list[1].messages_to_client), (1, 2, 0));
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
    async fn few_are_closed_within_a_second_each_and_late_comers_at_once() {
        let tunnels = Tunnels::default();
        let mut few: Vec<Entry> = (0..3).map(|_| tunnels.open(info("a"))).collect();
        let before = Instant::now();
        assert_eq!(tunnels.close_all(1001, Duration::from_secs(30)), 3);
        let cx = Context::from_waker(Waker::noop());
        let mut times: Vec<Duration> =
            few.iter_mut().map(|entry| entry.told(&cx).unwrap().at.saturating_duration_since(before)).collect();
        times.sort_unstable();
        for (place, time) in times.iter().enumerate() {
            assert!(*time <= Duration::from_millis(place as u64 * 1000 + 1100), "{times:?}");
        }
        let late = tunnels.open(info("b")).told(&cx).unwrap();
        assert_eq!(late.code, 1001);
        assert!(late.at <= Instant::now());
    }

    #[tokio::test]
    async fn closing_is_spread_evenly_over_the_chosen() {
        let tunnels = Tunnels::default();
        let mut chosen: Vec<Entry> = (0..50).map(|_| tunnels.open(info("old"))).collect();
        let mut other = tunnels.open(info("new"));
        let before = Instant::now();
        assert_eq!(tunnels.close(|_, info| &*info.site == "old", 1001, Duration::from_secs(50)), 50);
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

    #[tokio::test(start_paused = true)]
    async fn silence_is_told_from_age() {
        let tunnels = Tunnels::default();
        let entry = tunnels.open(info("a"));
        tokio::time::sleep(Duration::from_secs(100)).await;
        entry.count(1, 0, Instant::now());
        tokio::time::sleep(Duration::from_secs(20)).await;
        let listed = &tunnels.list()[0];
        assert_eq!((listed.age.as_secs(), listed.idle.as_secs()), (120, 20));
    }

    #[tokio::test]
    async fn a_crowd_is_listed_page_by_page() {
        let tunnels = Tunnels::default();
        let mut entries: Vec<Entry> = (0..PAGE * 2 + 3).map(|_| tunnels.open(info("a"))).collect();
        let mut pages = tunnels.pages();
        assert_eq!(pages.next().unwrap().len(), PAGE);
        // The register is free between two pages.
        entries.truncate(PAGE + 1);
        let late = tunnels.open(info("late"));
        assert_eq!(pages.next().unwrap().iter().map(|l| l.id).collect::<Vec<_>>(), [PAGE as u64, late.id()]);
        assert_eq!(pages.next(), None);
        assert_eq!(tunnels.list().len(), PAGE + 2);
        assert!(tunnels.list().is_sorted_by_key(|listed| listed.id));
    }

    #[tokio::test]
    async fn one_can_be_closed_by_its_id() {
        let tunnels = Tunnels::default();
        let (mut a, mut b) = (tunnels.open(info("a")), tunnels.open(info("a")));
        let wanted = b.id();
        assert_eq!(tunnels.close(|id, _| id == wanted, 1012, Duration::from_secs(30)), 1);
        let cx = Context::from_waker(Waker::noop());
        assert_eq!(a.told(&cx), None);
        assert!(b.told(&cx).unwrap().at <= Instant::now() + Duration::from_secs(1));
    }

    #[test]
    fn a_few_do_not_take_the_whole_window() {
        let spread = Duration::from_secs(30);
        for (tunnels, seconds) in [(0, 0), (1, 1), (3, 3), (29, 29), (30, 30), (10_000, 30)] {
            assert_eq!(window(tunnels, spread), Duration::from_secs(seconds), "{tunnels}");
        }
        assert_eq!(window(10_000, Duration::ZERO), Duration::ZERO);
        assert_eq!(window(3, Duration::from_millis(500)), Duration::from_millis(500));
    }

    #[tokio::test]
    async fn who_drains_again_leaves_the_places_of_those_that_were_told() {
        let tunnels = Tunnels::default();
        let mut first: Vec<Entry> = (0..20).map(|_| tunnels.open(info("a"))).collect();
        assert_eq!(tunnels.drain(|_| true, 1012, Duration::from_secs(20)), 20);
        let cx = Context::from_waker(Waker::noop());
        assert!(first.iter_mut().all(|entry| entry.told(&cx).is_some()));
        let mut late = tunnels.open(info("a"));
        for _ in 0..5 {
            tunnels.drain(|_| true, 1012, Duration::from_secs(20));
        }
        assert!(late.told(&cx).is_some());
        assert!(first.iter_mut().all(|entry| entry.told(&cx).is_none()), "nothing new");
    }

    #[tokio::test]
    async fn of_two_requests_the_earlier_counts() {
        let tunnels = Tunnels::default();
        let mut entry = tunnels.open(info("a"));
        let cx = Context::from_waker(Waker::noop());
        tunnels.close(|_, _| true, 1012, Duration::from_secs(1000));
        tunnels.close(|_, _| true, 1001, Duration::ZERO);
        tunnels.close(|_, _| true, 1000, Duration::from_secs(5000));
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
                assert_eq!(tunnels.close(|_, _| true, 1001, Duration::ZERO), 1);
            });
        }
    }
}
