//! How a tunnel ends by our will: told to, against the rules, idle, or because its client is dead; and how that is
//! found out.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::lane::CloseFrame;
use super::pulse::Pulse;
use super::{EndedBy, Ending, Tunnel, after};

/// RFC 6455 section 5.3: "The masking key MUST be derived from a strong source of entropy".
pub(super) fn random_key() -> Option<[u8; 4]> {
    let mut key = [0; 4];
    aws_lc_rs::rand::fill(&mut key).ok().map(|()| key)
}

/// What is said to both sides of a tunnel that nobody uses: the edge leaves, and a client that still wants it may come
/// back at once. 1000 would say that the talk is done, and some clients do not come back after that.
pub(super) const GOING_AWAY: u16 = 1001;

impl<C, B> Tunnel<C, B>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    /// Carries out the register's request.
    pub(super) fn obey(&mut self) {
        if let Some(told) = self.ends.as_mut().and_then(|ends| ends.told.take()) {
            self.begin_closing(told.code, EndedBy::Drain);
        }
    }

    /// A Close frame each way, unless a side has closed already: then its own goes on, or ours takes the place of one
    /// that is no longer let through.
    pub(super) fn begin_closing(&mut self, code: u16, cause: EndedBy) {
        if self.ending != Ending::Open {
            return;
        }
        self.ending = Ending::Closing;
        let refused = matches!(cause, EndedBy::Refused(_));
        self.ends().cause.get_or_insert(cause);
        let now = Instant::now();
        let mut end_by = after(now, self.policy.close);
        let is_first = self.close_code.is_none();
        if is_first {
            self.close_code = Some(code);
            self.down.close(CloseFrame { code, mask: None });
        }
        if is_first || refused && !self.up.has_closed() {
            self.close_up(code);
        }
        if self.up.awaits_boundary() || self.down.awaits_boundary() {
            let boundary_by = after(now, self.policy.boundary);
            self.ends().boundary_by = Some(boundary_by);
            end_by = after(boundary_by, self.policy.close);
        }
        let ends = self.ends();
        ends.end_by = Some(ends.end_by.map_or(end_by, |earlier| earlier.min(end_by)));
    }

    /// A Close frame to the back end. Without a masking key there is none.
    fn close_up(&mut self, code: u16) {
        match random_key() {
            Some(key) => self.up.close(CloseFrame { code, mask: Some(key) }),
            None => self.up.cut(),
        }
    }

    /// The client is dead: nothing is heard from it and nothing said to it. The back end gets its Close frame.
    fn bury_client(&mut self) {
        self.ending = Ending::Closing;
        self.ends().cause.get_or_insert(EndedBy::ClientDead);
        self.close_code.get_or_insert(GOING_AWAY);
        self.down.abandon();
        self.up.ended = true;
        self.close_up(GOING_AWAY);
        if self.up.awaits_boundary() {
            // The frame that was begun will never end.
            self.up.cut();
        }
        self.ends().end_by = Some(after(Instant::now(), self.policy.close));
    }

    /// When the client is to be asked for a sign of life, or is dead. A side that has closed, and a stream whose
    /// frames are not known, ask nobody. Nor is a client dead whose bytes wait for a back end that takes nothing: nothing
    /// more is read of it until then, and the write deadline sees to that.
    pub(super) fn pulse_deadline(&self) -> Option<Instant> {
        let pulse = self.up.gate.as_ref()?.pulse.as_ref()?;
        let is_open = self.ending == Ending::Open && self.close_code.is_none() && self.end_by().is_none();
        let is_known = !self.up.frames.is_opaque() && !self.down.frames.is_opaque();
        pulse.deadline().filter(|_| is_open && is_known && !self.up.is_blocked())
    }

    /// Closes both sides once the client has broken a rule. Whether there is something to send.
    pub(super) fn note_violation(&mut self) -> bool {
        let violation = self.up.gate.as_ref().and_then(|gate| gate.violation());
        let Some(violation) = violation.filter(|_| self.ending == Ending::Open) else { return false };
        self.begin_closing(violation.code(), EndedBy::Refused(violation));
        true
    }

    fn pulse(&mut self) -> Option<&mut Pulse> {
        self.up.gate.as_mut()?.pulse.as_mut()
    }

    /// Notes signs of life, and what becomes of a Ping.
    pub(super) fn note_pulse(&mut self, heard: bool, stalled: bool) {
        let is_queued = self.down.awaits_boundary();
        let Some(pulse) = self.pulse() else { return };
        let now = Instant::now();
        if heard && pulse.hear(now) {
            self.down.forget_ping();
        } else if !is_queued {
            pulse.sent(now);
            if stalled {
                pulse.wait_anew(now);
            }
        }
    }

    /// Asks a client that was silent for long enough, and buries one that did not answer.
    pub(super) fn take_pulse(&mut self) {
        let Some(pulse) = self.pulse() else { return };
        if pulse.is_waiting() {
            return self.bury_client();
        }
        let payload = pulse.ask();
        self.down.ping(payload);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::{sleep, timeout};

    use super::super::frames::encode_close;
    use super::super::frames::tests::frame;
    use super::super::rules::{Rules, Violation};
    use super::super::tests::{Bench, KEY, SOON, expect, expect_end, expect_masked_close, settle, with_policy};
    use super::super::{Early, Policy};
    use super::*;
    use crate::base::rate::Rate;

    const SECOND: Duration = Duration::from_secs(1);

    fn held_to(rules: Rules) -> Bench<DuplexStream> {
        with_policy(1024, Policy { rules: Some(Box::new(rules)), ..Policy::default() })
    }

    fn max(bytes: u64) -> Rules {
        Rules { max_message: Some(bytes), ..Rules::default() }
    }

    fn ping() -> Rules {
        Rules { ping_interval: Some(SECOND * 30), ..Rules::default() }
    }

    /// The payload of the Ping that comes next.
    async fn expect_ping(client: &mut DuplexStream) -> Vec<u8> {
        let mut got = [0; 10];
        timeout(SOON * 600, client.read_exact(&mut got)).await.expect("a Ping").unwrap();
        assert_eq!(got[..2], [0x89, 8]);
        got[2..].to_vec()
    }

    async fn expect_silence(stream: &mut DuplexStream) {
        settle().await;
        let mut byte = [0];
        let read = timeout(Duration::from_millis(1), stream.read(&mut byte)).await;
        assert!(read.is_err(), "{read:?} {byte:x?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_too_large_closes_both_sides_with_1009() {
        let mut bench = held_to(max(10));
        let good = frame(0x82, Some(KEY), &[1; 10]);
        let begun = frame(0x02, Some(KEY), &[1; 6]);
        bench.client.write_all(&[&good[..], &begun].concat()).await.unwrap();
        expect(&mut bench.back_end, &[&good[..], &begun].concat()).await;
        // The header comes in two pieces, the payload never: nothing of it goes on.
        bench.client.write_all(&[0x80, 0x85]).await.unwrap();
        expect_silence(&mut bench.back_end).await;
        bench.client.write_all(&KEY).await.unwrap();
        expect(&mut bench.client, &encode_close(1009, None)).await;
        expect_masked_close(&mut bench.back_end, 1009).await;
        // The rest of the message, and the answers.
        bench.client.write_all(&[7; 5]).await.unwrap();
        bench.client.write_all(&encode_close(1009, Some(KEY))).await.unwrap();
        bench.back_end.write_all(&encode_close(1009, None)).await.unwrap();
        expect_end(&mut bench.back_end).await;
        expect_end(&mut bench.client).await;
        let outcome = bench.outcome().await;
        assert!(matches!(outcome.ended, EndedBy::Refused(Violation::TooLarge)), "{outcome:?}");
        assert_eq!(outcome.close_code, Some(1009));
        assert_eq!(outcome.bytes_to_back_end, (good.len() + begun.len() + 8) as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_goodbye_right_behind_a_violation_does_not_hide_it() {
        let mut bench = held_to(max(10));
        let over = [frame(0x82, Some(KEY), &[1; 11]), encode_close(1000, Some(KEY))].concat();
        bench.client.write_all(&over).await.unwrap();
        expect_masked_close(&mut bench.back_end, 1009).await;
        expect(&mut bench.client, &encode_close(1009, None)).await;
        bench.back_end.write_all(&encode_close(1009, None)).await.unwrap();
        let outcome = bench.outcome().await;
        assert_eq!((outcome.close_code, outcome.ended.as_str()), (Some(1009), "max_message"));
    }

    #[tokio::test(start_paused = true)]
    async fn early_bytes_are_held_to_the_rules_as_well() {
        let over = frame(0x82, Some(KEY), &[1; 11]);
        let good = frame(0x81, Some(KEY), b"hi");
        let early = Early { to_back_end: [&good[..], &over].concat().into(), ..Early::default() };
        let policy = Policy { rules: Some(Box::new(max(10))), ..Policy::default() };
        let mut bench = super::super::tests::with_early(1024, policy, early);
        expect(&mut bench.back_end, &good).await;
        expect_masked_close(&mut bench.back_end, 1009).await;
        expect(&mut bench.client, &encode_close(1009, None)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_messages_closes_both_sides_with_1008() {
        let mut bench = held_to(Rules { message_rate: Some(Rate::parse("2/s").unwrap()), ..Rules::default() });
        let text = frame(0x81, Some(KEY), b"x");
        for _ in 0..3 {
            bench.client.write_all(&text.repeat(2)).await.unwrap();
            expect(&mut bench.back_end, &text.repeat(2)).await;
            sleep(SECOND).await;
        }
        bench.client.write_all(&text.repeat(3)).await.unwrap();
        expect(&mut bench.back_end, &text.repeat(2)).await;
        expect_masked_close(&mut bench.back_end, 1008).await;
        expect(&mut bench.client, &encode_close(1008, None)).await;
        let outcome = bench.outcome().await;
        assert_eq!((outcome.close_code, outcome.ended.as_str()), (Some(1008), "message_rate"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_cannot_be_limited_is_closed_with_1002() {
        let start = Instant::now();
        let mut bench = held_to(max(10));
        bench.client.write_all(b"nonsense").await.unwrap();
        expect_masked_close(&mut bench.back_end, 1002).await;
        expect(&mut bench.client, &encode_close(1002, None)).await;
        let outcome = bench.outcome().await;
        assert_eq!((outcome.close_code, outcome.ended.as_str()), (Some(1002), "bad_frames"));
        assert_eq!(start.elapsed(), SECOND * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_violation_behind_the_back_ends_goodbye_does_not_pass() {
        let mut bench = held_to(max(10));
        bench.back_end.write_all(&encode_close(4000, None)).await.unwrap();
        expect(&mut bench.client, &encode_close(4000, None)).await;
        bench.client.write_all(&frame(0x82, Some(KEY), &[1; 11])).await.unwrap();
        expect_masked_close(&mut bench.back_end, 1009).await;
        expect_end(&mut bench.client).await;
        assert_eq!(bench.outcome().await.close_code, Some(4000));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_tunnel_says_goodbye_to_both_sides() {
        let start = Instant::now();
        let mut bench = with_policy(1024, Policy::default());
        sleep(SECOND * 3590).await;
        expect(&mut bench.client, &encode_close(1001, None)).await;
        assert_eq!(start.elapsed(), SECOND * 3600);
        expect_masked_close(&mut bench.back_end, 1001).await;
        bench.client.write_all(&encode_close(1001, Some(KEY))).await.unwrap();
        bench.back_end.write_all(&encode_close(1001, None)).await.unwrap();
        let outcome = bench.outcome().await;
        assert_eq!((outcome.close_code, outcome.ended.as_str()), (Some(1001), "idle"));
        assert_eq!(start.elapsed(), SECOND * 3600);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_asked_and_its_answer_keeps_the_tunnel_for_ever() {
        let start = Instant::now();
        let policy = Policy { idle_timeout: SECOND * 45, rules: Some(Box::new(ping())), ..Policy::default() };
        let mut bench = with_policy(1024, policy);
        let mut payloads = std::collections::HashSet::new();
        for n in 1..=20 {
            let payload = expect_ping(&mut bench.client).await;
            assert_eq!(start.elapsed(), SECOND * 30 * n);
            bench.client.write_all(&frame(0x8A, Some(KEY), &payload)).await.unwrap();
            payloads.insert(payload);
        }
        assert_eq!(payloads.len(), 20, "no payload twice");
        settle().await;
        assert_eq!(bench.tunnels.list()[0].bytes_to_back_end, 0);
        let text = frame(0x81, Some(KEY), b"the first that it sees");
        bench.client.write_all(&text).await.unwrap();
        expect(&mut bench.back_end, &text).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_talks_is_not_asked() {
        let mut bench = held_to(ping());
        for _ in 0..10 {
            sleep(SECOND * 29).await;
            bench.client.write_all(b"\x81\x80\0\0\0\0").await.unwrap();
            expect(&mut bench.back_end, b"\x81\x80\0\0\0\0").await;
        }
        expect_silence(&mut bench.client).await;
        // The back end's talk is no sign of the client's life.
        let start = Instant::now();
        for _ in 0..2 {
            sleep(SECOND * 14).await;
            bench.back_end.write_all(b"\x81\0").await.unwrap();
            expect(&mut bench.client, b"\x81\0").await;
        }
        expect_ping(&mut bench.client).await;
        assert_eq!(start.elapsed().as_millis(), 29_999);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_answer_is_dead() {
        let start = Instant::now();
        let mut bench = held_to(ping());
        expect_ping(&mut bench.client).await;
        let text = frame(0x81, None, b"to nobody");
        bench.back_end.write_all(&text).await.unwrap();
        expect(&mut bench.client, &text).await;
        sleep(SECOND * 29).await;
        expect_masked_close(&mut bench.back_end, 1001).await;
        assert_eq!(start.elapsed(), SECOND * 60);
        bench.back_end.write_all(&encode_close(1001, None)).await.unwrap();
        expect_end(&mut bench.client).await;
        let outcome = bench.outcome().await;
        assert_eq!((outcome.close_code, outcome.ended.as_str()), (Some(1001), "client_dead"));
        assert_eq!(start.elapsed(), SECOND * 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_dies_within_a_frame_leaves_no_close_in_it() {
        let mut bench = held_to(ping());
        bench.client.write_all(b"\x82\x90\0\0\0\0half").await.unwrap();
        expect(&mut bench.back_end, b"\x82\x90\0\0\0\0half").await;
        expect_end(&mut bench.back_end).await;
        drop(bench.back_end);
        assert_eq!(bench.outcome.await.unwrap().ended.as_str(), "client_dead");
    }

    #[tokio::test(start_paused = true)]
    async fn a_ping_waits_for_the_end_of_a_frame() {
        let start = Instant::now();
        let mut bench = held_to(ping());
        let frame = frame(0x82, None, &[5; 300]);
        bench.back_end.write_all(&frame[..100]).await.unwrap();
        expect(&mut bench.client, &frame[..100]).await;
        sleep(SECOND * 200).await;
        expect_silence(&mut bench.client).await;
        bench.back_end.write_all(&[&frame[100..], b"\x81\x02hi"].concat()).await.unwrap();
        expect(&mut bench.client, &frame[100..]).await;
        expect_ping(&mut bench.client).await;
        expect(&mut bench.client, b"\x81\x02hi").await;
        // Its time begins with the Ping, not with the wish for it.
        sleep(SECOND * 29).await;
        expect_masked_close(&mut bench.back_end, 1001).await;
        assert_eq!(start.elapsed().as_secs(), 230);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ping_that_still_waits_is_not_sent_to_a_client_that_speaks() {
        let mut bench = held_to(ping());
        bench.back_end.write_all(b"\x82\x04ha").await.unwrap();
        expect(&mut bench.client, b"\x82\x04ha").await;
        sleep(SECOND * 40).await;
        bench.client.write_all(b"\x81\x80\0\0\0\0").await.unwrap();
        expect(&mut bench.back_end, b"\x81\x80\0\0\0\0").await;
        bench.back_end.write_all(b"lf").await.unwrap();
        expect(&mut bench.client, b"lf").await;
        expect_silence(&mut bench.client).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_is_given_time_behind_what_it_has_to_read() {
        let start = Instant::now();
        let mut bench = with_policy(64, Policy { rules: Some(Box::new(ping())), ..Policy::default() });
        let data = frame(0x82, None, &[5; 4000]);
        let (mut back_end, mut client) = (bench.back_end, bench.client);
        let sent = data.clone();
        let writer = tokio::spawn(async move {
            back_end.write_all(&sent).await.unwrap();
            back_end
        });
        for piece in data.chunks(500) {
            sleep(SECOND * 20).await;
            expect(&mut client, piece).await;
        }
        assert_eq!(start.elapsed().as_secs(), 180);
        bench.back_end = writer.await.unwrap();
        let payload = expect_ping(&mut client).await;
        client.write_all(&frame(0x8A, Some(KEY), &payload)).await.unwrap();
        sleep(SECOND).await;
        assert!(!bench.outcome.is_finished());
        expect_silence(&mut bench.back_end).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_bytes_wait_for_the_back_end_is_not_dead() {
        let rules = Rules { ping_interval: Some(SECOND * 10), ..Rules::default() };
        let mut bench = with_policy(64, Policy { rules: Some(Box::new(rules)), ..Policy::default() });
        let data = frame(0x82, Some(KEY), &[5; 4000]);
        let (mut client, sent) = (bench.client, data.clone());
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client
        });
        sleep(SECOND * 45).await;
        expect(&mut bench.back_end, &data).await;
        bench.client = writer.await.unwrap();
        assert!(!bench.outcome.is_finished());
        expect_ping(&mut bench.client).await;
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_behind_a_close_or_in_a_stream_that_is_not_websocket() {
        for (client_says, back_end_says) in
            [(&b""[..], &b"\x88\0"[..]), (b"\x88\x80\0\0\0\0", b""), (b"", b"not websocket"), (b"nor is this", b"")]
        {
            let mut bench = held_to(ping());
            bench.client.write_all(client_says).await.unwrap();
            bench.back_end.write_all(back_end_says).await.unwrap();
            expect(&mut bench.back_end, client_says).await;
            expect(&mut bench.client, back_end_says).await;
            sleep(SECOND * 300).await;
            expect_silence(&mut bench.client).await;
            expect_silence(&mut bench.back_end).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_header_goes_on_when_the_client_ends() {
        let mut bench = held_to(max(10));
        bench.client.write_all(b"\x81").await.unwrap();
        bench.client.shutdown().await.unwrap();
        expect(&mut bench.back_end, b"\x81").await;
        expect_end(&mut bench.back_end).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_meets_half_a_header_at_a_boundary() {
        let start = Instant::now();
        let mut bench = held_to(max(10));
        bench.client.write_all(b"\x81").await.unwrap();
        settle().await;
        bench.close(1012);
        expect_masked_close(&mut bench.back_end, 1012).await;
        expect(&mut bench.client, &encode_close(1012, None)).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
