//! Layer 2: tunnels. Two byte streams joined after a 101: bytes both ways, half-close, deadlines, a clean end on demand.
//!
//! A tunnel holds two streams, a copied policy and its place in the register, never a snapshot or a route. While it is
//! idle it holds no buffer: bytes are read into scratch memory of the worker and sent on within the same poll.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use self::closing::{GOING_AWAY, random_key};
use self::lane::{Lane, LaneError, Turn};
use self::register::{CloseRequest, Entry};
use self::rules::Gate;
use crate::base::cached_time;

mod closing;
pub mod frames;
mod kept;
mod lane;
mod outcome;
mod policy;
pub mod poller;
mod pulse;
pub mod register;
pub mod rules;

pub use self::outcome::{EndedBy, Outcome};
use self::policy::Waits;
pub use self::policy::{Early, Policy};

/// Joins two streams until both have ended, one has broken, a deadline has passed or the register says so. Dropping
/// the future closes both at once. Bytes within [`Early`] are sent first.
pub fn run<C, B>(client: C, back_end: B, early: Early, policy: Policy, entry: Entry) -> impl Future<Output = Outcome>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    run_then(client, back_end, early, policy, entry, |outcome| outcome)
}

/// The same, with `then` at its end: a task that awaited [`run`] and went on would be twice as large, with room for the
/// tunnel both before and while it is awaited.
pub fn run_then<C, B, T>(
    client: C,
    back_end: B,
    early: Early,
    mut policy: Policy,
    entry: Entry,
    then: impl FnOnce(Outcome) -> T,
) -> impl Future<Output = T>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    // Outside the async block, which would keep room for the arguments beside the tunnel that they move into.
    let gate = policy.rules.take().map(|rules| Box::new(Gate::new(*rules, random_key(), Instant::now())));
    let mut tunnel = Tunnel {
        client,
        back_end,
        up: Lane::new(early.to_back_end, gate),
        down: Lane::new(early.to_client, None),
        policy: Waits::of(&policy),
        last_byte: entry.opened(),
        entry,
        ends: None,
        alarm: None,
        close_code: None,
        ending: Ending::Open,
    };
    async move {
        let outcome = poll_fn(|cx| tunnel.poll(cx)).await;
        then(outcome)
    }
}

struct Tunnel<C, B> {
    client: C,
    back_end: B,
    /// Client to back end.
    up: Lane,
    /// Back end to client.
    down: Lane,
    policy: Waits,
    entry: Entry,
    last_byte: Instant,
    /// What is known of its end, once there is something.
    ends: Option<Box<Ends>>,
    /// For a deadline that is near; a far one is the register's to tell.
    alarm: Option<Pin<Box<Sleep>>>,
    close_code: Option<u16>,
    ending: Ending,
}

/// How a tunnel is to end.
#[derive(Default)]
struct Ends {
    /// To close at that time.
    told: Option<CloseRequest>,
    /// When to stop waiting for the end of a frame.
    boundary_by: Option<Instant>,
    /// When the tunnel ends, whatever is still on its way.
    end_by: Option<Instant>,
    cause: Option<EndedBy>,
}

/// Large enough that bulk goes in sends of 64 KiB.
const SCRATCH: usize = 64 * 1024;

thread_local! {
    /// Where bytes are on their way from one stream to the other within one poll.
    static SCRATCH_OF_WORKER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl<C, B> Tunnel<C, B>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        if let Some(told) = self.entry.told(cx) {
            self.ends().told = Some(told);
        }
        // A closing may be due at once, and what it wants to send must go before the task sleeps.
        if self.told_at().is_some_and(|at| at <= Instant::now()) {
            self.obey();
        }
        loop {
            let mut scratch = SCRATCH_OF_WORKER.take();
            scratch.resize(SCRATCH, 0);
            let more = self.turn(cx, &mut scratch);
            SCRATCH_OF_WORKER.set(scratch);
            if self.is_over(more) {
                return Poll::Ready(self.finish(cx));
            }
            if more {
                cx.waker().wake_by_ref();
            }
            match self.keep_time(cx) {
                Time::Waiting => return Poll::Pending,
                Time::Acted => {}
                Time::Up => return Poll::Ready(self.finish(cx)),
            }
        }
    }

    /// One turn of both lanes. Whether they have more to do at once.
    fn turn(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> bool {
        let (mut up, mut down) = (Turn::default(), Turn::default());
        let went_up = self.up.turn(cx, &mut self.client, &mut self.back_end, scratch, &mut up);
        let went_down = self.down.turn(cx, &mut self.back_end, &mut self.client, scratch, &mut down);
        if up.bytes_read + up.bytes_written + down.bytes_read + down.bytes_written > 0 {
            self.last_byte = cached_time::now().into();
            self.entry.count(up.bytes_written as u64, down.bytes_written as u64, self.last_byte);
            self.entry.note_messages(self.up.frames.messages(), self.down.frames.messages());
        }
        let refused = self.note_violation();
        self.note_ends();
        let mut more = up.more || down.more || refused;
        match went_up {
            Ok(()) => {}
            Err(LaneError::Reader(error)) => self.reset(EndedBy::ClientError(error)),
            // What the back end had said before it broke was read by the other lane, right after this error.
            Err(LaneError::Writer(error)) => {
                self.up.abandon();
                self.break_off(EndedBy::BackEndError(error));
            }
        }
        match went_down {
            Ok(()) => {}
            Err(LaneError::Reader(error)) => self.reset(EndedBy::BackEndError(error)),
            Err(LaneError::Writer(error)) => {
                self.down.abandon();
                self.break_off(EndedBy::ClientError(error));
                // The client's last words may have come after the lane up had its turn.
                more = true;
            }
        }
        self.up.note_stall(up.bytes_written);
        let was_stalled = self.down.stalled().is_some();
        self.down.note_stall(down.bytes_written);
        self.note_pulse(up.bytes_read > 0, was_stalled || self.down.stalled().is_some());
        more
    }

    /// A stream cannot be written to: what it had to say goes to the other side yet.
    fn break_off(&mut self, cause: EndedBy) {
        self.ends().cause.get_or_insert(cause);
        self.ending = self.ending.max(Ending::LastWords);
    }

    /// A stream is gone: there is nothing left to wait for.
    fn reset(&mut self, cause: EndedBy) {
        self.ends().cause.get_or_insert(cause);
        self.ending = Ending::Now;
    }

    /// Notes who closed first, with which status, and how long the other side may go on.
    fn note_ends(&mut self) {
        let (up, down) = (self.up.frames.close_code(), self.down.frames.close_code());
        self.close_code = self.close_code.or(up).or(down);
        let cause = match (up, down) {
            (Some(_), _) => EndedBy::Client,
            (None, Some(_)) => EndedBy::BackEnd,
            (None, None) if self.up.ended => EndedBy::Client,
            (None, None) if self.down.ended => EndedBy::BackEnd,
            (None, None) => return,
        };
        self.ends().cause.get_or_insert(cause);
        let both_closed = up.is_some() && down.is_some();
        if self.end_by().is_none() && (both_closed || self.up.ended || self.down.ended) {
            self.ends().end_by = Some(after(Instant::now(), self.policy.half_close));
        }
    }

    fn is_over(&self, more: bool) -> bool {
        let sent = !self.up.is_blocked() && !self.down.is_blocked();
        match self.ending {
            Ending::Now => true,
            Ending::LastWords => sent && !more,
            Ending::Closing if sent && self.up.is_quiet() && self.down.is_quiet() => true,
            _ => self.up.is_over() && self.down.is_over(),
        }
    }

    fn ends(&mut self) -> &mut Ends {
        self.ends.get_or_insert_default()
    }

    fn told_at(&self) -> Option<Instant> {
        self.ends.as_ref()?.told.map(|told| told.at)
    }

    fn boundary_by(&self) -> Option<Instant> {
        self.ends.as_ref()?.boundary_by
    }

    fn end_by(&self) -> Option<Instant> {
        self.ends.as_ref()?.end_by
    }

    fn idle_deadline(&self) -> Option<Instant> {
        (self.ending == Ending::Open).then(|| after(self.last_byte, self.policy.idle_timeout))
    }

    /// The earliest time at which something has to be done.
    fn next_deadline(&self) -> Instant {
        let stalls = [self.up.stalled(), self.down.stalled()].map(|since| since.map(|at| after(at, self.policy.write)));
        let others = [self.end_by(), self.boundary_by(), self.told_at(), self.idle_deadline(), self.pulse_deadline()];
        let first = others.into_iter().chain(stalls).flatten().min();
        // A tunnel that is open may be idle, and one that is not has its end.
        first.unwrap_or_else(|| after(self.last_byte, self.policy.idle_timeout))
    }

    /// Sees to it that the task is woken at or before the next deadline: by the register while it is far, or by an
    /// alarm. Either is moved only when it has rung or is too late: bytes that come and go cost no timer work.
    fn keep_time(&mut self, cx: &mut Context<'_>) -> Time {
        loop {
            let next = self.next_deadline();
            let alarm = match &mut self.alarm {
                Some(alarm) if alarm.deadline() <= next => alarm,
                _ if self.entry.wakes_before(next) => return Time::Waiting,
                Some(alarm) => {
                    alarm.as_mut().reset(next);
                    alarm
                }
                alarm => alarm.insert(Box::pin(sleep_until(next))),
            };
            if alarm.as_mut().poll(cx).is_pending() {
                return Time::Waiting;
            }
            self.alarm = None;
            match self.strike(Instant::now()) {
                Time::Waiting => {}
                acted => return acted,
            }
        }
    }

    /// Does what is due.
    fn strike(&mut self, now: Instant) -> Time {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let has_stalled = |lane: &Lane| is_due(lane.stalled().map(|since| after(since, self.policy.write)));
        if is_due(self.end_by()) {
            return Time::Up;
        }
        if has_stalled(&self.up) || has_stalled(&self.down) {
            let cause = if has_stalled(&self.up) { EndedBy::BackEndStalled } else { EndedBy::ClientStalled };
            self.ends().cause.get_or_insert(cause);
            return Time::Up;
        }
        if is_due(self.idle_deadline()) {
            self.begin_closing(GOING_AWAY, EndedBy::Idle);
        } else if is_due(self.boundary_by()) {
            self.ends().boundary_by = None;
            for lane in [&mut self.up, &mut self.down] {
                if lane.awaits_boundary() {
                    lane.cut();
                }
            }
        } else if is_due(self.told_at()) {
            self.obey();
        } else if is_due(self.pulse_deadline()) {
            self.take_pulse();
        } else {
            return Time::Waiting;
        }
        Time::Acted
    }

    fn finish(&mut self, cx: &mut Context<'_>) -> Outcome {
        // Best effort: a TLS stream says close_notify, a TCP stream FIN. Nothing waits for it, the drop closes both.
        let _ = Pin::new(&mut self.client).poll_shutdown(cx);
        let _ = Pin::new(&mut self.back_end).poll_shutdown(cx);
        let (bytes_to_back_end, bytes_to_client) = self.entry.bytes();
        Outcome {
            bytes_to_back_end,
            bytes_to_client,
            messages_to_back_end: self.up.frames.messages(),
            messages_to_client: self.down.frames.messages(),
            close_code: self.close_code,
            ended: self.ends().cause.take().unwrap_or(EndedBy::Drain),
            duration: self.entry.opened().elapsed(),
        }
    }
}

/// How far the end of a tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    /// It is the streams' own.
    Open,
    /// The register's request is being carried out.
    Closing,
    /// One stream cannot be written to; the tunnel lives for what it said before.
    LastWords,
    Now,
}

/// What the clock says.
enum Time {
    Waiting,
    /// Something was set in motion: the lanes get another turn.
    Acted,
    Up,
}

fn after(start: Instant, wait: impl Into<Duration>) -> Instant {
    let wait = wait.into();
    // Past the end of the clock there is no difference to a year.
    let year = Duration::from_secs(365 * 86_400);
    start.checked_add(wait).or_else(|| start.checked_add(year)).unwrap_or(start)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream, DuplexStream, ReadBuf, duplex};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::frames::encode_close;
    use super::frames::tests::frame;
    use super::register::{TunnelInfo, Tunnels};
    use super::*;

    pub(super) const SOON: Duration = Duration::from_secs(20);
    pub(super) const KEY: [u8; 4] = [1, 2, 3, 4];

    fn entry(tunnels: &Tunnels) -> Entry {
        let timed = tunnels.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            loop {
                tick.tick().await;
                timed.wake_due(Instant::now());
            }
        });
        tunnels.open(TunnelInfo {
            site: "app".into(),
            back_end: "http://127.0.0.1:3444".into(),
            client: "192.0.2.1".parse().unwrap(),
            path: "/socket.io/".into(),
            http2: false,
        })
    }

    /// A tunnel with its two ends in the hands of the test.
    pub(super) struct Bench<S> {
        pub(super) client: S,
        pub(super) back_end: S,
        pub(super) tunnels: Tunnels,
        pub(super) outcome: JoinHandle<Outcome>,
    }

    impl<S> Bench<S> {
        pub(super) async fn outcome(self) -> Outcome {
            let outcome = timeout(SOON * 600, self.outcome).await.unwrap().unwrap();
            assert!(self.tunnels.is_empty());
            outcome
        }

        pub(super) fn close(&self, code: u16) {
            assert_eq!(self.tunnels.close(|_, _| true, code, Duration::ZERO), 1);
        }
    }

    fn in_memory(capacity: usize) -> Bench<DuplexStream> {
        with_policy(capacity, Policy::default())
    }

    pub(super) fn with_policy(capacity: usize, policy: Policy) -> Bench<DuplexStream> {
        with_early(capacity, policy, Early::default())
    }

    pub(super) fn with_early(capacity: usize, policy: Policy, early: Early) -> Bench<DuplexStream> {
        let (client, near_client) = duplex(capacity);
        let (back_end, near_back_end) = duplex(capacity);
        let tunnels = Tunnels::default();
        let tunnel = run(near_client, near_back_end, early, policy, entry(&tunnels));
        Bench { client, back_end, outcome: tokio::spawn(tunnel), tunnels }
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (a, b) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (a.unwrap(), b.unwrap().0)
    }

    async fn over_tcp() -> Bench<TcpStream> {
        let ((client, near_client), (back_end, near_back_end)) = (tcp_pair().await, tcp_pair().await);
        let tunnels = Tunnels::default();
        let tunnel = run(near_client, near_back_end, Early::default(), Policy::default(), entry(&tunnels));
        Bench { client, back_end, outcome: tokio::spawn(tunnel), tunnels }
    }

    /// Waits for exactly these bytes.
    pub(super) async fn expect<S: AsyncRead + Unpin>(stream: &mut S, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        timeout(SOON, stream.read_exact(&mut got)).await.expect("bytes arrive").unwrap();
        assert_eq!(got, bytes);
    }

    pub(super) async fn expect_end<S: AsyncRead + Unpin>(stream: &mut S) {
        let mut rest = Vec::new();
        timeout(SOON * 600, stream.read_to_end(&mut rest)).await.expect("the stream ends").unwrap();
        assert_eq!(rest, b"");
    }

    /// Reads a Close frame from the back end's view: masked.
    pub(super) async fn expect_masked_close<S: AsyncRead + Unpin>(stream: &mut S, code: u16) {
        let mut got = [0; 8];
        timeout(SOON, stream.read_exact(&mut got)).await.unwrap().unwrap();
        let key = [got[2], got[3], got[4], got[5]];
        assert_eq!(got.to_vec(), encode_close(code, Some(key)));
        assert_ne!(key, [0; 4]);
    }

    /// Lets the tunnel do all that it can do without time passing.
    pub(super) async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_early_ones_first() {
        let ((mut client, near_client), (mut back_end, near_back_end)) = (duplex(16), duplex(16));
        let tunnels = Tunnels::default();
        let hello = frame(0x81, Some(KEY), b"hello, this is longer than the pipe");
        let early = Early { to_back_end: hello.clone().into(), to_client: Bytes::from_static(b"\x81\x02ok") };
        let tunnel = tokio::spawn(run(near_client, near_back_end, early, Policy::default(), entry(&tunnels)));
        expect(&mut back_end, &hello).await;
        expect(&mut client, b"\x81\x02ok").await;
        back_end.write_all(b"\x81\x01a\x82\x01b").await.unwrap();
        expect(&mut client, b"\x81\x01a\x82\x01b").await;
        client.write_all(&hello).await.unwrap();
        expect(&mut back_end, &hello).await;
        let listed = &tunnels.list()[0];
        assert_eq!((listed.bytes_to_back_end, listed.bytes_to_client), (2 * hello.len() as u64, 10));
        drop(client);
        expect_end(&mut back_end).await;
        drop(back_end);
        let outcome = tunnel.await.unwrap();
        assert_eq!((outcome.messages_to_back_end, outcome.messages_to_client), (2, 3));
        assert!(matches!(outcome.ended, EndedBy::Client), "{outcome:?}");
        assert_eq!(outcome.close_code, None);
    }

    #[tokio::test]
    async fn a_half_close_lets_the_other_side_finish() {
        for client_ends in [true, false] {
            let mut bench = over_tcp().await;
            let (first, last) = if client_ends {
                (&mut bench.client, &mut bench.back_end)
            } else {
                (&mut bench.back_end, &mut bench.client)
            };
            first.write_all(b"last words").await.unwrap();
            first.shutdown().await.unwrap();
            expect(last, b"last words").await;
            expect_end(last).await;
            last.write_all(b"answer").await.unwrap();
            expect(first, b"answer").await;
            last.shutdown().await.unwrap();
            expect_end(first).await;
            let outcome = bench.outcome().await;
            assert_eq!(matches!(outcome.ended, EndedBy::Client), client_ends, "{outcome:?}");
            assert_eq!(matches!(outcome.ended, EndedBy::BackEnd), !client_ends, "{outcome:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_tunnel_ends_after_its_grace() {
        let start = Instant::now();
        let mut bench = in_memory(64);
        bench.client.shutdown().await.unwrap();
        expect_end(&mut bench.back_end).await;
        let outcome = bench.outcome().await;
        assert!(matches!(outcome.ended, EndedBy::Client));
        assert_eq!(start.elapsed().as_secs(), 30);
    }

    #[tokio::test]
    async fn a_reset_of_one_side_closes_the_other_at_once() {
        for client_resets in [true, false] {
            let Bench { client, back_end, outcome, .. } = over_tcp().await;
            let (first, mut last) = if client_resets { (client, back_end) } else { (back_end, client) };
            socket2::SockRef::from(&first).set_linger(Some(Duration::ZERO)).unwrap();
            drop(first);
            expect_end(&mut last).await;
            let ended = timeout(SOON, outcome).await.unwrap().unwrap().ended;
            assert_eq!(matches!(ended, EndedBy::ClientError(_)), client_resets, "{ended:?}");
            assert_eq!(matches!(ended, EndedBy::BackEndError(_)), !client_resets, "{ended:?}");
        }
    }

    #[tokio::test]
    async fn the_last_words_of_a_back_end_that_no_longer_listens_arrive() {
        let (client, near_client) = duplex(1024);
        let (back_end, near_back_end) = duplex(1024);
        let mut client = client;
        // A back end that takes nothing and has just said something: every write to it fails.
        let (back_end_reader, mut back_end_writer) = tokio::io::split(back_end);
        back_end_writer.write_all(b"bye").await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let deaf = tokio::io::join(near_back_end, Deaf);
        let tunnel = run(near_client, deaf, Early::default(), Policy::default(), entry(&Tunnels::default()));
        let outcome = timeout(SOON, tunnel).await.unwrap();
        expect(&mut client, b"bye").await;
        assert!(matches!(outcome.ended, EndedBy::BackEndError(_)), "{outcome:?}");
        drop(back_end_reader);
    }

    /// A writer whose reader is gone.
    struct Deaf;

    impl AsyncWrite for Deaf {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_slow_reader_holds_the_writer_back_within_bounded_memory() {
        let bench = in_memory(1000);
        let Bench { mut client, back_end, .. } = bench;
        let data: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let (mut reader, mut writer) = tokio::io::split(back_end);
        let mut at = 0;
        // The tunnel takes what it can hold, and no more.
        while let Ok(n) = timeout(Duration::from_millis(300), writer.write(&data[at..])).await {
            at += n.unwrap();
        }
        assert!(at <= SCRATCH + 2000, "{at} bytes were taken");
        let sender = async {
            writer.write_all(&data[at..]).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (received, ()) = tokio::join!(client.read_to_end(&mut got), sender);
        received.unwrap();
        assert!(got == data);
        drop(client);
        expect_end(&mut reader).await;
    }

    #[tokio::test]
    async fn a_stream_that_buffers_is_flushed() {
        let (mut client, near_client) = duplex(64);
        let (mut back_end, near_back_end) = duplex(64);
        let streams = (BufStream::new(near_client), BufStream::new(near_back_end));
        let tunnels = Tunnels::default();
        let tunnel = run(streams.0, streams.1, Early::default(), Policy::default(), entry(&tunnels));
        let tunnel = tokio::spawn(tunnel);
        client.write_all(&[7; 150]).await.unwrap();
        expect(&mut back_end, &[7; 150]).await;
        back_end.write_all(b"\x81\x01a").await.unwrap();
        expect(&mut client, b"\x81\x01a").await;
        tunnel.abort();
    }

    /// A TLS stream whose peer has gone without close_notify.
    struct Truncated;

    impl AsyncRead for Truncated {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
        }
    }

    #[tokio::test]
    async fn a_missing_close_notify_is_an_end_like_any_other() {
        let (mut back_end, near_back_end) = duplex(64);
        let (mut client, near_client) = duplex(64);
        let truncated = tokio::io::join(Truncated, near_client);
        let tunnel = run(truncated, near_back_end, Early::default(), Policy::default(), entry(&Tunnels::default()));
        let tunnel = tokio::spawn(tunnel);
        expect_end(&mut back_end).await;
        back_end.write_all(b"bye").await.unwrap();
        drop(back_end);
        expect(&mut client, b"bye").await;
        assert!(matches!(tunnel.await.unwrap().ended, EndedBy::Client));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_tunnel_ends_and_a_byte_keeps_it() {
        let start = Instant::now();
        let mut bench = in_memory(64);
        for (minute, upwards) in [(50, true), (100, false), (155, true)] {
            sleep_until(start + Duration::from_secs(60 * minute)).await;
            let (from, to) = if upwards {
                (&mut bench.client, &mut bench.back_end)
            } else {
                (&mut bench.back_end, &mut bench.client)
            };
            from.write_all(b"x").await.unwrap();
            expect(to, b"x").await;
        }
        let outcome = bench.outcome().await;
        assert!(matches!(outcome.ended, EndedBy::Idle));
        // Nobody answers the Close frames.
        assert_eq!(start.elapsed().as_secs(), 60 * (155 + 60) + 2);
        assert_eq!(outcome.duration.as_secs(), 60 * (155 + 60) + 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_takes_nothing_for_a_minute_ends_the_tunnel() {
        for client_stalls in [true, false] {
            let mut bench = in_memory(64);
            let (source, sink) = if client_stalls {
                (&mut bench.back_end, &mut bench.client)
            } else {
                (&mut bench.client, &mut bench.back_end)
            };
            source.write_all(&[0; 100]).await.unwrap();
            settle().await;
            tokio::time::sleep(Duration::from_secs(50)).await;
            // Progress counts.
            expect(sink, &[0; 10]).await;
            settle().await;
            let start = Instant::now();
            let outcome = bench.outcome().await;
            assert_eq!(matches!(outcome.ended, EndedBy::ClientStalled), client_stalls, "{outcome:?}");
            assert_eq!(matches!(outcome.ended, EndedBy::BackEndStalled), !client_stalls, "{outcome:?}");
            assert_eq!(start.elapsed().as_secs(), 60);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_says_goodbye_to_both_sides_and_waits_for_their_answers() {
        let start = Instant::now();
        let mut bench = in_memory(1024);
        bench.back_end.write_all(b"\x81\x02hi").await.unwrap();
        expect(&mut bench.client, b"\x81\x02hi").await;
        bench.close(1001);
        expect(&mut bench.client, &encode_close(1001, None)).await;
        expect_masked_close(&mut bench.back_end, 1001).await;
        bench.client.write_all(&encode_close(1001, Some(KEY))).await.unwrap();
        bench.back_end.write_all(b"\x81\x04late").await.unwrap();
        bench.back_end.write_all(&encode_close(1001, None)).await.unwrap();
        expect_end(&mut bench.client).await;
        expect_end(&mut bench.back_end).await;
        let outcome = bench.outcome().await;
        assert!(matches!(outcome.ended, EndedBy::Drain));
        assert_eq!((outcome.close_code, start.elapsed()), (Some(1001), Duration::ZERO));
        assert_eq!((outcome.bytes_to_client, outcome.bytes_to_back_end), (8, 8));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_does_not_wait_for_ever() {
        let start = Instant::now();
        let mut bench = in_memory(1024);
        bench.close(1012);
        expect(&mut bench.client, &encode_close(1012, None)).await;
        expect_end(&mut bench.client).await;
        let outcome = bench.outcome().await;
        assert_eq!((outcome.close_code, start.elapsed().as_secs()), (Some(1012), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_the_end_of_a_frame() {
        let mut bench = in_memory(1024);
        let (down, up) = (frame(0x82, None, &[5; 300]), frame(0x01, Some(KEY), b"fragment"));
        bench.back_end.write_all(&down[..100]).await.unwrap();
        bench.client.write_all(&up[..3]).await.unwrap();
        expect(&mut bench.client, &down[..100]).await;
        expect(&mut bench.back_end, &up[..3]).await;
        bench.close(1001);
        settle().await;
        // The rest of the frame and the beginning of another, in one write.
        bench.back_end.write_all(&[&down[100..], b"\x81\x05never"].concat()).await.unwrap();
        bench.client.write_all(&[&up[3..], b"\x89"].concat()).await.unwrap();
        expect(&mut bench.client, &[&down[100..], &encode_close(1001, None)].concat()).await;
        expect(&mut bench.back_end, &up[3..]).await;
        expect_masked_close(&mut bench.back_end, 1001).await;
        expect_end(&mut bench.client).await;
        let outcome = bench.outcome().await;
        assert_eq!(outcome.close_code, Some(1001));
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_does_not_end_is_cut_after_a_second() {
        let start = Instant::now();
        let mut bench = in_memory(1024);
        bench.back_end.write_all(b"\x82\x10half").await.unwrap();
        expect(&mut bench.client, b"\x82\x10half").await;
        bench.close(1001);
        expect_end(&mut bench.client).await;
        assert_eq!(start.elapsed().as_secs(), 1);
        // The other direction was at a boundary.
        expect_masked_close(&mut bench.back_end, 1001).await;
        bench.outcome().await;
        assert_eq!(start.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_opaque_stream_passes_and_is_cut_when_it_drains() {
        let start = Instant::now();
        let mut bench = in_memory(1024);
        bench.back_end.write_all(b"not websocket").await.unwrap();
        bench.client.write_all(b"nor is this").await.unwrap();
        expect(&mut bench.client, b"not websocket").await;
        expect(&mut bench.back_end, b"nor is this").await;
        bench.close(1001);
        expect_end(&mut bench.client).await;
        expect_end(&mut bench.back_end).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        drop((bench.client, bench.back_end));
        let outcome = bench.outcome.await.unwrap();
        assert!(matches!(outcome.ended, EndedBy::Drain));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_first_close_frame_tells_who_ended_it_and_how() {
        for client_closes in [true, false] {
            let mut bench = in_memory(1024);
            let (client, back_end) = (&mut bench.client, &mut bench.back_end);
            let (up, down) = (encode_close(1000, Some(KEY)), encode_close(4001, None));
            if client_closes {
                client.write_all(&up).await.unwrap();
                expect(back_end, &up).await;
                back_end.write_all(&down).await.unwrap();
            } else {
                back_end.write_all(&down).await.unwrap();
                expect(client, &down).await;
                client.write_all(&up).await.unwrap();
            }
            back_end.shutdown().await.unwrap();
            client.shutdown().await.unwrap();
            let outcome = bench.outcome().await;
            assert_eq!(outcome.close_code, Some(if client_closes { 1000 } else { 4001 }));
            assert_eq!(matches!(outcome.ended, EndedBy::Client), client_closes);
            assert_eq!(matches!(outcome.ended, EndedBy::BackEnd), !client_closes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_that_both_sides_have_closed_does_not_linger() {
        let start = Instant::now();
        let mut bench = in_memory(1024);
        bench.client.write_all(&encode_close(1000, Some(KEY))).await.unwrap();
        bench.back_end.write_all(&encode_close(1000, None)).await.unwrap();
        let Bench { outcome, client: _client, back_end: _back_end, .. } = bench;
        outcome.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_are_closed_evenly() {
        let (start, tunnels) = (Instant::now(), Tunnels::default());
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..10_000 {
            let ((mut client, near_client), (back_end, near_back_end)) = (duplex(64), duplex(64));
            let tunnel = run(near_client, near_back_end, Early::default(), Policy::default(), entry(&tunnels));
            tokio::spawn(tunnel);
            clients.spawn(async move {
                let mut frame = [0; 4];
                client.read_exact(&mut frame).await.unwrap();
                assert_eq!(frame[..], encode_close(1012, None)[..]);
                drop(back_end);
                start.elapsed().as_millis()
            });
        }
        settle().await;
        assert_eq!(tunnels.close(|_, _| true, 1012, Duration::from_secs(30)), 10_000);
        let times = clients.join_all().await;
        // Not only second by second: no tenth of one is a crowd or a gap.
        let mut tenths = [0_u32; 301];
        times.into_iter().for_each(|ms| tenths[usize::try_from(ms / 100).unwrap()] += 1);
        // Timers round up to a millisecond: the last may fall into the next tenth.
        assert!(tenths[300] <= 1, "{tenths:?}");
        assert!(tenths[..300].iter().all(|count| (30..=37).contains(count)), "{tenths:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_spread_over_its_window() {
        let start = Instant::now();
        let tunnels = Tunnels::default();
        let mut ends = Vec::new();
        let mut closed = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let ((client, near_client), (back_end, near_back_end)) = (duplex(64), duplex(64));
            let tunnel = run(near_client, near_back_end, Early::default(), Policy::default(), entry(&tunnels));
            closed.spawn(async move {
                tunnel.await;
                start.elapsed()
            });
            ends.push((client, back_end));
        }
        settle().await;
        assert_eq!(tunnels.close(|_, _| true, 1001, Duration::from_secs(100)), 10);
        tunnels.closed().await;
        let mut times = closed.join_all().await;
        times.sort_unstable();
        // Ten take ten seconds, not the hundred that they may.
        for (place, time) in times.into_iter().enumerate() {
            let place = place as u64;
            let share = Duration::from_secs(place + 2)..=Duration::from_millis(1_000 * (place + 1) + 2_002);
            assert!(share.contains(&time), "{place}: {time:?}");
        }
    }
}
